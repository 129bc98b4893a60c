"""Repositories on the reference PDS to proven, committed rows: discovery, download, proof, Postgres. One JSON line.

    python tests/benchmarks/backfill_repositories.py [--repositories 200] [--records 100] [--data FOLDER]

Each record has the size of a real dataset card. Every commit's signature, every block's hash and the tree between them
are checked. The PDS and its directory are one Node process and on two cores the bottleneck: CPU seconds, theirs and
this process's, say what either costs. ``alone`` is this process's part again, from files in memory to the database,
with nobody else at work but Postgres. Writing the repositories takes a minute; --data keeps them for the next run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil
import uvloop
from frames import DATASET, dataset
from network.atproto_network import Network, creation, start_network
from postgres import TestDatabases, databases

from atdata_backend.http import guarded_client
from atdata_backend.identity import Resolver
from atdata_indexer.backfill import Backfill, Snapshot
from atdata_indexer.store import Store


def publish(network: Network, repositories: int, records: int) -> None:
    """Accounts of *records* datasets each, as many as there are not yet."""
    there = len(network.query("com.atproto.sync.listRepos", limit=1000)["repos"])
    for repository in range(there, repositories):
        account = network.create_account()
        writes = [
            creation(
                DATASET,
                dataset(
                    f"Dataset {repository}-{n}",
                    description="Field recordings of owls, annotated by hand. " * 12,
                    tags=["audio", "owls"],
                ),
            )
            for n in range(records)
        ]
        for start in range(0, records, 100):
            account.apply_writes(writes[start : start + 100])


async def index(client: httpx.AsyncClient, network: Network, url: str) -> tuple[int, float, float]:
    """Find and read all repositories into the database at *url*: the records, and the seconds and CPU seconds taken."""
    store = await Store.open(url, "benchmark")
    backfill = Backfill(client, Resolver(client, plc_url=network.plc), relay_url=network.pds)
    started, cpu = time.perf_counter(), time.process_time()

    async def found() -> AsyncIterator[str]:
        # As the indexer does: what was found is read while more is looked for.
        async for did in backfill.discover():
            await store.discovered([did])
            yield did

    records = 0
    async for result in backfill.run(found()):
        assert isinstance(result, Snapshot), result
        applied = await store.apply_snapshot(result)
        assert applied is not None
        assert applied.written == len(result.records)
        records += applied.written
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    await store.close()
    return records, seconds, cpu


class Recorded(httpx.AsyncBaseTransport):
    """Answers with what was answered before."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[int, bytes]] = {}
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        if url not in self._answers:
            response = await self._inner.handle_async_request(request)
            self._answers[url] = response.status_code, await response.aread()
        status, body = self._answers[url]
        return httpx.Response(status, content=_stream(body))

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def measure(network: Network, server: TestDatabases) -> dict[str, Any]:
    # Recording comes first: the PDS has just started, and its first answers are its slowest.
    async with httpx.AsyncClient(transport=Recorded(), timeout=60) as client:
        for _ in range(2):
            with server.database() as url:
                _, alone, cpu_alone = await index(client, network, url)
    node = psutil.Process(network._process.pid)
    async with guarded_client(allow_private=True) as client:
        with server.database() as url:
            before = sum(node.cpu_times()[:2])
            records, seconds, cpu = await index(client, network, url)
            theirs = sum(node.cpu_times()[:2]) - before
    return {
        "seconds": round(seconds, 2),
        "records_per_second": round(records / seconds),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_of_the_pds": round(theirs, 2),
        "alone": {
            "seconds": round(alone, 2),
            "records_per_second": round(records / alone),
            "cpu_seconds": round(cpu_alone, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=int, default=200)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    with start_network(data=arguments.data) as network, databases() as server:
        publish(network, arguments.repositories, arguments.records)
        figures = uvloop.run(measure(network, server))
    print(
        json.dumps(
            {
                "benchmark": "backfill_repositories",
                "repositories": arguments.repositories,
                "records": arguments.records * arguments.repositories,
                **figures,
            }
        )
    )


if __name__ == "__main__":
    main()
