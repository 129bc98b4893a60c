"""How fast searches are answered over HTTP: embedded Postgres, embedded search, and the AppView as its own process.

    python tests/benchmarks/search_http.py --documents 100000 [--folder FOLDER]

It publishes synthetic datasets, as `search_latency.py` makes them, straight into Postgres and the engine; `--folder`
keeps both for another run. Then it asks a seeded mix of queries of seven kinds, no query twice, from one client and
from sixteen, without and with all five facets, and the AppView starts anew for each of the four, so that nothing is
answered from what it remembers. Clients keep their connections, wait for an answer before they ask again, and read it
whole. Prints one JSON line: for each of the four, milliseconds for all queries and for each kind, requests a second,
the milliseconds of CPU that a request took of the AppView, of Postgres and of the clients; and before the first and
after each, the load of the machine and its speed. Times mean little while other programs want the same cores: then
compare the CPU times, in proportion to the speed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import psutil
import psycopg
import uvloop
from search_latency import Zipf, milliseconds, vocabulary

from atdata.nsid import DATASET, PREFIX, SAMPLE_SCHEMA
from atdata_backend.postgres import migrate
from atdata_backend.search.base import FACETS
from atdata_backend.search.tantivy import TantivyEngine
from atdata_deploy.postgres import embedded_postgres
from atdata_deploy.processes import data_folder
from atdata_indexer.feed import Feed
from atdata_indexer.store import Store

# Makes the parameters of a search.
Ask = Callable[[], list[tuple[str, str]]]

START = datetime(2023, 1, 1, tzinfo=UTC)


def moment(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def publish(url: str, count: int, words: list[str], chance: random.Random) -> None:
    """Publish *count* datasets, of 300 schemas, by a publisher for every twenty."""
    word, rare = Zipf(words, chance), words[len(words) // 20 :]
    tag = Zipf([f"{a}-{b}" for a, b in itertools.pairwise(words[100:600])], chance)
    dids = [f"did:plc:{n:024}" for n in range(max(count // 20, 1))]
    publisher = Zipf(dids, chance)
    refs = [f"at://{dids[n % len(dids)]}/{SAMPLE_SCHEMA}/{n:013}" for n in range(300)]
    schema = Zipf(refs, chance)
    license_ = Zipf([f"license-{n}" for n in range(15)], chance)
    kinds = {"storageExternal": {"urls": ["https://data.example/shard-{000..009}.tar"]}, "storageBlobs": {"blobs": []}}
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY repositories (did, handle) FROM STDIN") as copy:
            for n, did in enumerate(dids):
                copy.write_row((did, f"{words[n % len(words)]}{n}.example"))
        columns = "did, collection, rkey, kind, cid, rev, record, name, schema_ref, tags"
        with cursor.copy(f"COPY records ({columns}) FROM STDIN") as copy:

            def write(uri: str, kind: str, record: dict[str, object]) -> None:
                did, collection, rkey = uri.removeprefix("at://").split("/")
                values = (record["name"], record.get("schemaRef"), record.get("tags"))
                copy.write_row((did, collection, rkey, kind, f"bafyrei{rkey:0>52}", rkey, json.dumps(record), *values))

            for ref in refs:
                names = {word() for _ in range(5)}
                text = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "str"}
                fields = [{"name": name, "fieldType": text, "optional": False} for name in names]
                record = {"$type": SAMPLE_SCHEMA, "name": word().title(), "version": "1.0.0", "fields": fields}
                write(ref, "schema", {**record, "createdAt": moment(0)})
            for n in range(count):
                kind = chance.choice(list(kinds))
                record = {
                    "$type": DATASET,
                    "name": " ".join([chance.choice(rare), *(word() for _ in range(chance.randrange(3)))]).title(),
                    "schemaRef": schema(),
                    "storage": {"$type": PREFIX + kind, **kinds[kind]},
                    "description": " ".join(word() for _ in range(chance.randrange(30, 120))),
                    "tags": list({tag() for _ in range(chance.randrange(8))}),
                    "license": license_(),
                    "size": {"samples": chance.randrange(10**6), "bytes": chance.randrange(10**9)},
                    "createdAt": moment(chance.randrange(10**8)),
                }
                write(f"at://{publisher()}/{DATASET}/{n:013}", "dataset", record)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


async def index(url: str, engine: TantivyEngine) -> None:
    """As the indexer fills an empty engine."""
    store = await Store.open(url, "relay.example")
    feed = Feed(store, engine)
    await feed.start()
    while await feed.step():
        pass
    await store.close()


def queries(words: list[str], chance: random.Random) -> dict[str, Ask]:
    def common() -> str:
        return words[chance.randrange(100)]

    def rare() -> str:
        return words[chance.randrange(len(words) // 2, len(words))]

    def typo() -> str:
        word = next(w for w in iter(rare, None) if len(w) >= 6)
        at = chance.randrange(1, len(word) - 1)
        return word[:at] + word[at + 1 :]

    def tag() -> str:
        at = 100 + chance.randrange(20)
        return f"{words[at]}-{words[at + 1]}"

    return {
        "common": lambda: [("q", common())],
        "rare": lambda: [("q", rare())],
        "several": lambda: [("q", f"{common()} {rare()} {common()}")],
        "typo": lambda: [("q", typo())],
        "prefix": lambda: [("q", rare()[:4])],
        "filter": lambda: [("q", common()), ("tags", tag())],
        "browse": lambda: [("licenses", f"license-{chance.randrange(15)}"), ("tags", tag())],
    }


class Client:
    """One connection that is kept, and as little more as will do: a client must not be what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def get(self, path: str) -> bytes:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        at = head.index(b"content-length:") + 15
        return await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))


@contextlib.contextmanager
def appview(url: str, folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """An AppView that limits nobody, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"DATABASE_URL": url, "SEARCH_DIR": str(folder / "search"), "PORT": str(port), "RATE_LIMIT": "0"}
    environment = {**os.environ, **{f"ATDATA_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "atdata", "appview", "run"]
    with (
        (folder / "logs" / "appview.log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log) as process,
    ):
        try:
            while True:
                assert process.poll() is None, f"the AppView ended, see {log.name}"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield psutil.Process(process.pid), port
        finally:
            process.terminate()


class Spent:
    """The CPU time, in seconds, that groups of processes take from now on."""

    def __init__(self, **groups: Callable[[], list[psutil.Process]]) -> None:
        self._groups = groups
        self._before = {name: self._times(group()) for name, group in groups.items()}

    def _times(self, processes: list[psutil.Process]) -> dict[int, float]:
        times = {}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.cpu_times()
                times[process.pid] = found.user + found.system
        return times

    def seconds(self) -> dict[str, float]:
        return {
            name: sum(time - self._before[name].get(pid, 0.0) for pid, time in self._times(group()).items())
            for name, group in self._groups.items()
        }


def machine() -> dict[str, float]:
    """The load of the machine, and the milliseconds that 100,000 turns of an empty loop take: how fast it is."""
    times = []
    for _ in range(50):
        start = time.thread_time()
        for _ in range(100_000):
            pass
        times.append(time.thread_time() - start)
    return {"load": round(os.getloadavg()[0], 1), "loop_ms": round(sorted(times)[len(times) // 2] * 1e3, 2)}


@dataclass(frozen=True)
class Benchmark:
    """What is asked of which data."""

    url: str
    folder: Path
    words: list[str]
    per_kind: int

    async def measure(self, chance: random.Random, *, clients: int, facets: bool) -> dict[str, object]:
        """Ask an AppView that has just started, from so many clients."""
        jobs = self._jobs(chance, facets)
        waiting = iter(jobs)
        times: dict[str, list[float]] = {kind: [] for kind, _ in jobs}

        async def ask(client: Client) -> None:
            for kind, path in waiting:
                start = time.perf_counter()
                await client.get(path)
                times[kind].append(time.perf_counter() - start)

        with appview(self.url, self.folder) as (process, port):
            async with contextlib.AsyncExitStack() as stack:
                connections = [await stack.enter_async_context(Client(port)) for _ in range(clients)]
                for n, connection in enumerate(connections):  # a process takes longer for the first than for all others
                    await connection.get(f"/xrpc/{PREFIX}searchDatasets?q=warm{n}")
                postmaster = psutil.Process(postgres_pid(self.url))
                spent = Spent(
                    clients=lambda: [psutil.Process()],
                    appview=lambda: [process, *process.children()],
                    postgres=lambda: [postmaster, *postmaster.children()],
                )
                start = time.perf_counter()
                await asyncio.gather(*map(ask, connections))
                took = time.perf_counter() - start
                cpu = {name: round(seconds * 1e3 / len(jobs), 2) for name, seconds in spent.seconds().items()}
                # Proportional: what processes share, as pages of the index, counts once.
                memory = sum(one.memory_full_info().pss for one in (process, *process.children()))
        return {
            "requests": len(jobs),
            "per_second": round(len(jobs) / took),
            **milliseconds(list(itertools.chain(*times.values()))),
            **{kind: milliseconds(of_kind) for kind, of_kind in times.items()},
            "cpu_ms": cpu,
            "appview_pss_mb": round(memory / 2**20),
        }

    def _jobs(self, chance: random.Random, facets: bool) -> list[tuple[str, str]]:
        """Queries of all kinds in turn, none twice: of some kinds there are not that many."""
        counted = [("facets", facet) for facet in FACETS] if facets else []
        kinds = queries(self.words, chance)
        jobs: dict[str, str] = {}
        for _ in range(self.per_kind):
            for kind, make in kinds.items():
                paths = (f"/xrpc/{PREFIX}searchDatasets?{urlencode([*make(), *counted])}" for _ in range(100))
                path = next((path for path in paths if path not in jobs), None)
                if path is not None:
                    jobs[path] = kind
        return [(kind, path) for path, kind in jobs.items()]


def postgres_pid(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
    assert row is not None
    return int(row[0].split("\n")[0])


def fill(url: str, folder: Path, count: int, words: list[str]) -> None:
    """Publish and index, unless that was done before."""
    migrate(url)
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM records WHERE kind = 'dataset'").fetchone()
    if row == (0,):
        publish(url, count, words, random.Random(1))
    engine = TantivyEngine(folder / "search")
    if engine.count() != count:
        engine.clear()
        asyncio.run(index(url, engine))
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100, help="of each kind, in each of the four (default 100)")
    parser.add_argument("--folder", type=Path, help="keep Postgres and the index here")
    arguments = parser.parse_args()
    words = vocabulary(40_000, random.Random(1))
    figures: dict[str, object] = {"documents": arguments.documents}
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = stack.enter_context(data_folder(folder))
        log = folder / "logs" / "postgres.log"
        postgres = stack.enter_context(embedded_postgres(folder / "postgres", log, sys.stderr.write))
        fill(postgres.url, folder, arguments.documents, words)
        benchmark = Benchmark(postgres.url, folder, words, arguments.queries)
        machines = [machine()]
        for seed, (clients, facets) in enumerate(itertools.product((1, 16), (False, True)), start=2):
            name = f"{clients}_client{'s' * (clients > 1)}_{'with' if facets else 'without'}_facets"
            figures[name] = uvloop.run(benchmark.measure(random.Random(seed), clients=clients, facets=facets))
            machines.append(machine())
    print(json.dumps({**figures, "machine": machines}))


if __name__ == "__main__":
    main()
