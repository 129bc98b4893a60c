"""How fast lens paths are found, over HTTP: embedded Postgres and the AppView as its own process.

    python tests/benchmarks/lens_graph.py [--schemas 100000] [--lenses 300000] [--folder FOLDER]

It publishes a synthetic world straight into Postgres; `--folder` keeps it for another run. Fields are as unevenly
frequent as words (Zipf), a fifth of the structures are published twice, a fifth are others' with one field more, and
every thousandth has one field only, which thousands of others have, too. Lenses lead from and to anything, half of them
to those that are popular (Zipf); there are cycles everywhere, one hub more with a twentieth of all lenses, two thousand
lenses between the same two schemas, lenses to themselves, and lenses to schemas that nobody has.

Prints one JSON line, times in milliseconds: paths (default of hops and of paths) and graphs (of two hops) between and
around schemas, no question twice; how often something was truncated, and how many bytes an answer has; the time from
the commit of a lens until a path leads over it; the seconds until a starting AppView answers such questions, and what
others take meanwhile; its memory beyond that of an AppView without records; the CPU that a request takes, and how busy
and how fast the machine is. Times mean little while other programs want the same cores: then compare the CPU times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import psutil
import psycopg
import uvloop
from search_http import Client, Spent, appview, machine, postgres_pid
from search_latency import Zipf, milliseconds

from atdata.nsid import LENS, PREFIX, SAMPLE_SCHEMA
from atdata_backend.postgres import migrate
from atdata_backend.search.tantivy import TantivyEngine
from atdata_deploy.postgres import embedded_postgres
from atdata_deploy.processes import data_folder

TYPE = "ac.foundation.dataset.schemaType#"
TYPES = [
    {"$type": TYPE + "primitive", "primitive": "int"},
    {"$type": TYPE + "primitive", "primitive": "str"},
    {"$type": TYPE + "primitive", "primitive": "float"},
    {"$type": TYPE + "ndarray", "dtype": "uint8"},
    {"$type": TYPE + "ndarray", "dtype": "float32"},
    {"$type": TYPE + "primitive", "primitive": "bytes"},
    {"$type": TYPE + "ndarray", "dtype": "float32", "shape": [3, 224, 224]},
    {"$type": TYPE + "primitive", "primitive": "bool"},
    {"$type": TYPE + "array", "items": {"$type": TYPE + "primitive", "primitive": "str"}},
    {"$type": TYPE + "ndarray", "dtype": "uint8", "shape": [28, 28]},
]
CREATED = "2026-01-01T00:00:00.000Z"
CODE = {"repository": "https://example.org/lenses", "commit": "0123456789", "path": "lenses.py:lens"}

Fields = dict[str, dict[str, object]]


def did(n: int) -> str:
    return f"did:plc:{n:024}"


def schema_uri(n: int) -> str:
    return f"at://{did(n // 20)}/{SAMPLE_SCHEMA}/{n:013}"


def structures(count: int, chance: random.Random) -> Iterator[Fields]:
    """The fields of *count* schemas."""
    name = Zipf([f"field_{n}" for n in range(5000)], chance)
    types = Zipf([str(n) for n in range(len(TYPES))], chance)
    made: list[Fields] = []

    def field(name: str, optional: float) -> dict[str, object]:
        return {"name": name, "fieldType": TYPES[int(types())], "optional": chance.random() < optional}

    for n in range(count):
        kind = chance.random()
        if n % 1000 == 0:
            fields = {(one := f"field_{n // 1000}"): {"name": one, "fieldType": TYPES[0]}}
        elif n > 100 and kind < 0.4:
            fields = dict(chance.choice(made))
            if kind < 0.2:
                fields[more] = field((more := name()), 0.3)
        else:
            fields = {one: field(one, 0.15) for one in (name() for _ in range(chance.randrange(2, 9)))}
        made.append(fields)
        yield fields


def ends(schemas: int, lenses: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """The schemas from which and to which *lenses* lead."""
    places = list(range(schemas))
    chance.shuffle(places)
    popular = Zipf([str(place) for place in places], chance)

    def end() -> int:
        return int(popular()) if chance.random() < 0.5 else chance.randrange(schemas)

    for n in range(lenses):
        source, target = end(), end()
        if n % 40 == 0:
            source = 7  # the hub
        elif n % 40 == 20:
            target = 7
        elif n % (lenses // 2000) == 1:
            source, target = 11, 13
        elif n % 1000 == 2:
            target = source
        is_lost = chance.random() < 0.02
        yield schema_uri(source), schema_uri(10**9 + chance.randrange(5000) if is_lost else target)


def publish(url: str, schemas: int, lenses: int, chance: random.Random) -> None:
    dids = {did(n // 20) for n in range(schemas)} | {did(n // 30) for n in range(lenses)}
    columns = "did, collection, rkey, kind, cid, rev, record, name, source_schema, target_schema, verified_at"
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY repositories (did) FROM STDIN") as copy:
            for one in sorted(dids):
                copy.write_row((one,))
        with cursor.copy(f"COPY records ({columns}) FROM STDIN") as copy:

            def write(uri: str, kind: str, record: dict[str, object], *, verified: bool = True) -> None:
                did, collection, rkey = uri.removeprefix("at://").split("/")
                refs = (record.get("sourceSchema"), record.get("targetSchema"))
                row = (did, collection, rkey, kind, f"bafyrei{rkey:0>52}", rkey, json.dumps(record), record["name"])
                copy.write_row((*row, *refs, CREATED if verified else None))

            for n, fields in enumerate(structures(schemas, chance)):
                record = {"$type": SAMPLE_SCHEMA, "name": f"Schema {n}", "version": "1.0.0", "createdAt": CREATED}
                write(schema_uri(n), "schema", {**record, "fields": list(fields.values())})
            for n, pair in enumerate(ends(schemas, lenses, chance)):
                record = lens(f"Lens {n}", *pair, has_putter=chance.random() < 0.5)
                write(f"at://{did(n // 30)}/{LENS}/{n:013}", "lens", record, verified=chance.random() < 0.9)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def lens(name: str, source: str, target: str, *, has_putter: bool) -> dict[str, object]:
    record = {"$type": LENS, "name": name, "sourceSchema": source, "targetSchema": target, "createdAt": CREATED}
    return {**record, "getterCode": CODE, **({"putterCode": CODE} if has_putter else {})}


def path_of(method: str, **params: str | int) -> str:
    return f"/xrpc/{PREFIX}{method}?{urlencode(params)}"


async def ready(client: Client, probe: str) -> dict[str, object]:
    """Wait until the lens graph is read, and ask something else meanwhile."""
    start = time.perf_counter()
    others = []
    while b'"lensGraph":"ready"' not in await client.get("/xrpc/_health"):
        asked = time.perf_counter()
        await client.get(probe)
        others.append(time.perf_counter() - asked)
        await asyncio.sleep(0.05)
    return {"seconds": round(time.perf_counter() - start, 1), "others_meanwhile": milliseconds(others or [0.0])}


async def asked(
    client: Client, served: Mapping[str, Callable[[], list[psutil.Process]]], paths: list[str]
) -> dict[str, object]:
    spent = Spent(**served)
    times, sizes, truncated, nothing = [], [], 0, 0
    for path in paths:
        start = time.perf_counter()
        body = await client.get(path)
        times.append(time.perf_counter() - start)
        sizes.append(float(len(body)) / 1e3)
        truncated += b'"truncated":true' in body
        nothing += b'"paths":[]' in body
    cpu = {name: round(seconds * 1e3 / len(paths), 2) for name, seconds in spent.seconds().items()}
    return {
        **milliseconds(times),
        "max": round(max(times) * 1e3, 2),
        "truncated": truncated / len(paths),
        "no_path": nothing / len(paths),
        "bytes": milliseconds(sizes),
        "cpu_ms": cpu,
    }


async def new_lenses(client: Client, url: str, schemas: int, chance: random.Random) -> dict[str, float]:
    """From the commit of a lens until a path leads over it: between two schemas that are new, too."""
    times = []
    insert = (
        "INSERT INTO records (did, collection, rkey, kind, cid, rev, record, name, source_schema, target_schema)"
        " VALUES (%s, %s, %s, 'lens', 'bafy', 'x', %s, 'New', %s, %s)"
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for n in range(40):
            await asyncio.sleep(chance.random() / 4)
            pair = (schema_uri(2 * 10**9 + n), schema_uri(chance.randrange(schemas)))
            record = json.dumps(lens("New", *pair, has_putter=True))
            await connection.execute(insert, [did(0), LENS, f"new{time.time_ns()}", record, *pair])
            start = time.perf_counter()
            path = path_of("getLensPath", **{"from": pair[0], "to": pair[1], "k": 1, "maxHops": 1})
            while b'"paths":[{' not in await client.get(path, (200, 404)):
                await asyncio.sleep(0.002)
            times.append(time.perf_counter() - start)
        await connection.execute("DELETE FROM records WHERE name = 'New' AND kind = 'lens'")
    return {**milliseconds(times), "max": round(max(times) * 1e3, 2)}


class Asker(Client):
    """A client for which other answers than 200 can be right."""

    async def get(self, path: str, allowed: tuple[int, ...] = (200,)) -> bytes:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert int(head[9:12]) in allowed, head
        at = head.index(b"content-length:") + 15
        return await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))


async def measure(url: str, folder: Path, schemas: int, requests: int, idle: int) -> dict[str, object]:
    chance = random.Random(2)
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT source_schema, target_schema FROM records WHERE kind = 'lens'").fetchall()

    def any_of(end: int) -> str:
        return schema_uri(chance.randrange(schemas)) if chance.random() < 0.5 else chance.choice(rows)[end]

    postmaster = psutil.Process(postgres_pid(url))
    with appview(url, folder) as (process, port):
        async with Asker(port) as client:
            figures: dict[str, object] = {"load": await ready(client, path_of("listSchemas", limit=1))}
            figures["memory_mb"] = round((process.memory_info().rss - idle) / 2**20)
            figures["read_cpu_seconds"] = round(process.cpu_times().user + process.cpu_times().system, 1)
            served = {"appview": lambda: [process], "postgres": lambda: [postmaster, *postmaster.children()]}
            questions: dict[str, Callable[[], str]] = {
                "getLensPath": lambda: path_of("getLensPath", **{"from": any_of(0), "to": any_of(1)}),
                "getLensPath_hub": lambda: path_of("getLensPath", **{"from": any_of(0), "to": schema_uri(7), "k": 10}),
                "getLensGraph": lambda: path_of("getLensGraph", root=any_of(0), depth=2),
            }
            for name, make in questions.items():
                paths = list({make(): None for _ in range(requests)})
                await client.get(paths[0])
                figures[name] = await asked(client, served, paths[1:])
            figures["new_lens"] = await new_lenses(client, url, schemas, chance)
    return figures


async def idle_memory(url: str, folder: Path) -> int:
    """What an AppView takes that has no records."""
    with appview(url, folder) as (process, port):
        async with Asker(port) as client:
            await ready(client, "/")
            for path in (path_of("listSchemas"), path_of("listLenses")) * 50:
                await client.get(path)
            return int(process.memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=100_000)
    parser.add_argument("--lenses", type=int, default=300_000)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind (default 2000)")
    parser.add_argument("--folder", type=Path, help="keep Postgres here")
    arguments = parser.parse_args()
    figures: dict[str, object] = {
        "schemas": arguments.schemas,
        "lenses": arguments.lenses,
        "before": machine(),
    }
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = stack.enter_context(data_folder(folder))
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        postgres = stack.enter_context(embedded_postgres(folder / "postgres", folder / "logs" / "postgres.log", say))
        TantivyEngine(folder / "search").close()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS empty")
            connection.execute("CREATE DATABASE empty")
        empty = psycopg.conninfo.make_conninfo(postgres.url, dbname="empty")
        for url in (postgres.url, empty):
            migrate(url)
        with psycopg.connect(postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM records WHERE kind = 'lens'").fetchone()
        if row == (0,):
            publish(postgres.url, arguments.schemas, arguments.lenses, random.Random(1))
        idle = uvloop.run(idle_memory(empty, folder))
        figures |= uvloop.run(measure(postgres.url, folder, arguments.schemas, arguments.requests, idle))
    figures["after"] = machine()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
