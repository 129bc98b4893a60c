"""Already-decoded records to committed rows, embedded Postgres, one process. Prints one JSON line.

    python tests/benchmarks/store_throughput.py [--records 40000] [--batch 1000]

Each commit carries one record of the size of a real dataset card; the batches are what the indexer applies when it
catches up. ``statement_an_event`` is the same work in the plain way, a transaction an event, for the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from frames import DATASET, commit, dataset
from postgres import databases

from atdata_indexer.events import Commit, Scope, parse
from atdata_indexer.store import Item, Store


def decoded(count: int) -> list[Item]:
    """Commits of 200 repositories in turn, one record each."""
    scope = Scope(("ac.foundation.dataset.",), ())
    items = []
    for n in range(count):
        repository = n % 200
        record = dataset(
            f"Dataset {n}", description="Field recordings of owls, annotated by hand. " * 12, tags=["audio"]
        )
        frame = commit(
            n + 1,
            [("create", f"{DATASET}/{n}", record)],
            did=f"did:plc:{repository:024d}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d"),
            since=n + 1 - 200 if n >= 200 else None,
        )
        (event,) = parse(frame, scope).events
        assert isinstance(event, Commit)
        # Decoded and proven: `verified_commits.py` measures that part.
        items.append(Item(replace(event, proof=None), frame, n + 1))
    return items


async def measure(url: str, items: list[Item], batch: int) -> float:
    """Records a second."""
    store = await Store.open(url, "benchmark")
    started = time.perf_counter()
    for at in range(0, len(items), batch):
        applied = await store.apply(items[at : at + batch], items[min(at + batch, len(items)) - 1].seq)
        assert applied.written == len(items[at : at + batch])
    rate = len(items) / (time.perf_counter() - started)
    await store.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=1000)
    arguments = parser.parse_args()
    items = decoded(arguments.records)
    with databases() as server:
        with server.database() as url:
            batched = asyncio.run(measure(url, items, arguments.batch))
        with server.database() as url:
            single = asyncio.run(measure(url, items[:1000], 1))
    print(
        json.dumps(
            {
                "benchmark": "store_throughput",
                "records": arguments.records,
                "batch": arguments.batch,
                "records_per_second": round(batched),
                "statement_an_event": round(single),
                "ratio": round(batched / single, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
