"""From a write at the PDS to the first search that finds it: real PDS, indexer, Postgres, tantivy, AppView over HTTP.

    python tests/benchmarks/publish_to_searchable.py [--writes 200]

Each write is a dataset with a word of its own; its clock runs from the moment the PDS has answered the write to the
first answer of ``searchDatasets`` that has it. Also the resident memory of the indexer, at rest before the first write
and after the last. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from frames import DATASET, dataset
from network.atproto_network import start_network
from network.system import start_system
from postgres import databases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--rest", type=float, default=5.0)
    arguments = parser.parse_args()
    delays = []
    with (
        start_network() as network,
        databases() as server,
        server.database() as url,
        tempfile.TemporaryDirectory() as folder,
        start_system(network, url, Path(folder)) as system,
    ):
        account = network.create_account()
        memory = psutil.Process(system.indexer_pid)
        time.sleep(arguments.rest)
        at_rest = memory.memory_info().rss
        for n in range(arguments.writes):
            word = f"zq{n:04d}xv"
            account.create_record(DATASET, dataset(f"Recording {word}", description="Dawn chorus, annotated."))
            started = time.perf_counter()
            while not system.query("searchDatasets", q=f'"{word}"', publishers=account.did)["datasets"]:
                time.sleep(0.005)
            delays.append((time.perf_counter() - started) * 1000)
        time.sleep(arguments.rest)
        after = memory.memory_info().rss
    delays.sort()
    print(
        json.dumps(
            {
                "benchmark": "publish_to_searchable",
                "writes": arguments.writes,
                "median_ms": round(delays[len(delays) // 2], 1),
                "p99_ms": round(delays[int(len(delays) * 0.99)], 1),
                "max_ms": round(delays[-1], 1),
                "indexer_rss_mb_at_rest": round(at_rest / 1e6),
                "indexer_rss_mb_after": round(after / 1e6),
            }
        )
    )


if __name__ == "__main__":
    main()
