"""What subscribers of `subscribeChanges` get, and what they cost the AppView that serves them. Prints one JSON line.

    python tests/benchmarks/subscribe_changes.py [--records 20000] [--subscribers 20] [--stalled 50]

Embedded Postgres, the program as it is run, and clients in this process. ``backlog`` is one subscriber from the first
of so many changes, ``live`` are all subscribers while a tenth of that is written, in batches of a hundred; microseconds
are of the service's processor time for each message sent. ``delay`` is from the commit to the subscriber, in
milliseconds. ``memory`` is the service's resident set, in MB: at rest, and while subscribers that read nothing are
behind 100 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import psycopg
from frames import DATASET, DID, dataset
from postgres import databases
from websockets.asyncio.client import connect

from atdata_backend.search.tantivy import TantivyEngine

NSID = "ac.foundation.dataset.subscribeChanges"
TEXT = "Field recordings of owls, annotated by hand. " * 12


class Writer:
    """Writes records as the indexer does, a batch a transaction."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("INSERT INTO repositories (did) VALUES (%s)", [DID])
        self.count = 0

    def write(self, count: int, description: str = TEXT) -> None:
        numbers = range(self.count, self.count + count)
        self.count += count
        records = [json.dumps(dataset(f"Dataset {n}", description=description)) for n in numbers]
        self.connection.execute(
            "INSERT INTO records (did, collection, rkey, kind, cid, rev, record)"
            " SELECT %s, %s, n::text, 'dataset', 'cid' || n, 'rev', record::jsonb"
            " FROM unnest(%s::bigint[], %s::text[]) t (n, record)",
            [DID, DATASET, list(numbers), records],
        )


@contextmanager
def service(url: str, folder: str) -> Iterator[tuple[str, psutil.Process]]:
    """A running AppView: the address of the subscription, and its process."""
    TantivyEngine(Path(folder)).close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "ATDATA_DATABASE_URL": url, "ATDATA_SEARCH_DIR": folder, "ATDATA_RATE_LIMIT": "0"}
    command = [sys.executable, "-m", "atdata", "appview", "run", "--port", str(port)]
    program = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert program.stderr is not None
    while "serving" not in (line := program.stderr.readline()):
        assert line, "the program ended"
    try:
        yield f"ws://127.0.0.1:{port}/xrpc/{NSID}", psutil.Process(program.pid)
    finally:
        program.terminate()
        program.wait()


def busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def subscription(url: str, n: int = 0, **options: Any) -> connect:
    """From an address of its own for every ten: more are not let in from one."""
    local = (f"127.0.0.{2 + n // 10}", 0)
    return connect(url, max_size=5_000_000, proxy=None, compression=None, local_addr=local, **options)


async def measure(url: str, process: psutil.Process, writer: Writer, asked: argparse.Namespace) -> dict[str, Any]:
    await asyncio.to_thread(writer.write, asked.records)
    found: dict[str, Any] = {"records": asked.records, "subscribers": asked.subscribers, "stalled": asked.stalled}
    async with subscription(url) as connection:
        delays = []
        for _ in range(30):
            await asyncio.sleep(random.uniform(0, 0.2))
            await asyncio.to_thread(writer.write, 1)
            started = time.perf_counter()
            await connection.recv()
            delays.append(1000 * (time.perf_counter() - started))
    found["delay_p50_ms"] = round(statistics.median(delays))
    found["delay_max_ms"] = round(max(delays))

    async with subscription(f"{url}?cursor=0") as connection:
        before, started = busy(process), time.perf_counter()
        for _ in range(asked.records):
            await connection.recv()
        found["backlog_per_second"] = round(asked.records / (time.perf_counter() - started))
        found["backlog_us"] = round((busy(process) - before) / asked.records * 1e6, 1)

    count = asked.records // 10

    async def read(connection: Any) -> None:
        for _ in range(count):
            await connection.recv()

    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(subscription(url, n)) for n in range(asked.subscribers)]
        before, started = busy(process), time.perf_counter()
        reading = asyncio.gather(*map(read, connections))
        for _ in range(count // 100):
            await asyncio.to_thread(writer.write, 100)
        await reading
        sent = count * asked.subscribers
        found["live_per_second"] = round(sent / (time.perf_counter() - started))
        found["live_us"] = round((busy(process) - before) / sent * 1e6, 1)

    found["memory_at_rest"] = round(process.memory_info().rss / 1e6)
    async with AsyncExitStack() as stack:
        for n in range(asked.stalled):
            await stack.enter_async_context(subscription(url, n, max_queue=1, close_timeout=0.1))
        noise = random.Random(1).randbytes(50_000).hex()
        for _ in range(100):
            await asyncio.to_thread(writer.write, 10, noise)
        async with subscription(url, asked.stalled + 9) as connection:
            # Behind what they do not read.
            await asyncio.to_thread(writer.write, 1)
            await connection.recv()
            found["memory_with_stalled"] = round(process.memory_info().rss / 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--subscribers", type=int, default=20)
    parser.add_argument("--stalled", type=int, default=50)
    asked = parser.parse_args()
    with databases() as server, server.database() as url, tempfile.TemporaryDirectory() as folder:
        writer = Writer(url)
        with service(url, folder) as (address, process):
            found = asyncio.run(measure(address, process, writer, asked))
    print(json.dumps({"benchmark": "subscribe_changes", **found}))


if __name__ == "__main__":
    main()
