"""Resident memory of an indexer that follows many repositories, while frames of the real relay go by.

    python tests/benchmarks/indexer_memory.py [--repositories 200000] [--frames 1000000]

`atdata indexer run` in a process of its own, on a real Postgres, reads the capture that is sent over and over, as fast
as it takes it: it concerns none of the repositories. Measured at rest on an empty database, at rest with the
repositories, and then at every quarter of the frames; the limit is 250 MB, and no growth between the first quarter and
the last. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import psycopg
from benchmarks.firehose_replay import capture, did, relay
from postgres import databases

REST = 5.0  # seconds


class Indexer:
    """A running indexer, and what it says of itself in the database."""

    def __init__(self, connection: psycopg.Connection[Any], process: subprocess.Popen[bytes], started: float) -> None:
        self._connection = connection
        self._process = process
        self._memory = psutil.Process(process.pid)
        self._started = started

    @property
    def megabytes(self) -> float:
        """Its resident memory."""
        return self._memory.memory_info().rss / 1e6

    @property
    def peak(self) -> float:
        """The most that it ever had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6

    def read_until(self, frames: int) -> None:
        """Wait until it is connected and has read that many."""
        deadline = time.monotonic() + 600
        while self._frames() < frames:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the indexer read {self._frames()} of {frames} frames, and then nothing")
            time.sleep(0.1)

    def _frames(self) -> int:
        row = self._connection.execute(
            "SELECT (status->>'frames')::bigint FROM indexer_status"
            " WHERE (status->>'connected')::boolean AND updated_at > to_timestamp(%s)",
            [self._started],
        ).fetchone()
        return -1 if row is None else row[0]


@contextmanager
def running(url: str, relay_url: str, folder: str) -> Iterator[Indexer]:
    """An indexer that reads *relay_url* and asks nobody else anything."""
    environment = {
        **os.environ,
        "ATDATA_DATABASE_URL": url,
        "ATDATA_SEARCH_DIR": folder,
        "ATDATA_RELAY": relay_url,
        "ATDATA_PLC_URL": "http://127.0.0.1:1",
        "ATDATA_ALLOW_PRIVATE_HOSTS": "true",
        "ATDATA_BACKFILL": "false",
    }
    started = time.time()
    process = subprocess.Popen([sys.executable, "-m", "atdata", "indexer", "run"], env=environment)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            indexer = Indexer(connection, process, started)
            indexer.read_until(0)
            yield indexer
    finally:
        process.terminate()
        process.wait(30)


def follow(url: str, repositories: int) -> None:
    """Track that many repositories, whose DID documents are not due to be read."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY repositories (did, rev, data, resolve_at) FROM STDIN") as copy:
            for n in range(repositories):
                copy.write_row((did(n), f"3kz{n:010d}".translate(str.maketrans("0189", "abcd")), "bafy", "infinity"))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=int, default=200_000)
    parser.add_argument("--frames", type=int, default=1_000_000)
    arguments = parser.parse_args()
    frames = capture()
    quarters = []
    with (
        relay(frames, 0) as quiet,
        relay(frames, arguments.frames) as busy,
        databases() as server,
        server.database() as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        with running(url, quiet, folder) as indexer:
            time.sleep(REST)
            empty = indexer.megabytes
        follow(url, arguments.repositories)
        with running(url, quiet, folder) as indexer:
            time.sleep(REST)
            tracking = indexer.megabytes
        started = time.perf_counter()
        with running(url, busy, folder) as indexer:
            for quarter in range(1, 5):
                indexer.read_until(arguments.frames * quarter // 4)
                quarters.append(indexer.megabytes)
            seconds = time.perf_counter() - started
            time.sleep(REST)
            after, peak = indexer.megabytes, indexer.peak
    print(
        json.dumps(
            {
                "benchmark": "indexer_memory",
                "repositories": arguments.repositories,
                "frames": arguments.frames,
                "empty_mb": round(empty),
                "with_repositories_mb": round(tracking),
                "quarters_mb": [round(megabytes) for megabytes in quarters],
                "at_rest_after_mb": round(after),
                "peak_mb": round(peak),
                "growth_mb": round(quarters[-1] - quarters[0], 1),
                "frames_per_second": round(arguments.frames / seconds),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
