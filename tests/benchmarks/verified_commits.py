"""Frames in scope to committed rows, every commit verified, one process. Prints one JSON line.

    python tests/benchmarks/verified_commits.py [--repositories 50] [--commits 60] [--held 100]

Each commit creates one record the size of a real dataset card, in a repository that holds a hundred others already,
is signed (secp256k1), and brings the whole tree, somewhat more than hosts send. Measured is all from the bytes of the
frame: CBOR, CAR with every block hashed, signature, tree, lexicon, transaction. ``unverified`` is the same without
signature and tree, for the ratio.
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

import psycopg
from frames import DATASET, Repo, cid, dataset, frame, multikey
from postgres import databases

from atdata_indexer.events import Commit, Scope, parse
from atdata_indexer.store import Item, Store

BATCH = 500


def did_of(n: int) -> str:
    return "did:plc:" + f"{n:024d}".translate(str.maketrans("0189", "abcd"))


def frames_of(repositories: int, commits: int, held: int) -> tuple[list[bytes], list[bytes]]:
    """The first commit of each repository, with all that it holds, and then its others, in turn."""
    repos = [Repo(did_of(n)) for n in range(repositories)]
    first = []
    for n, repo in enumerate(repos):
        # The records' own blocks are not ours to have: they are in other collections.
        repo.records = {f"app.example.post/{key:05d}": cid(f"{n} {key}".encode()) for key in range(held)}
        body = repo.commit_body(n + 1, [("create", f"{DATASET}/first", dataset("First"))])
        first.append(frame("#commit", body))
    following = []
    for round_ in range(commits):
        for n, repo in enumerate(repos):
            record = dataset(
                f"Dataset {n} {round_}",
                description="Field recordings of owls, annotated by hand. " * 12,
                tags=["audio"],
            )
            seq = (round_ + 1) * repositories + n + 1
            body = repo.commit_body(seq, [("create", f"{DATASET}/k{round_:06d}", record)])
            following.append(frame("#commit", body))
    return first, following


async def measure(url: str, first: list[bytes], frames: list[bytes], *, is_verified: bool) -> tuple[float, float]:
    """Commits a second, and seconds of this process's own for each."""
    scope = Scope(("ac.foundation.dataset.",), set())
    # Without backfill: a history that begins in the middle is taken as it is.
    store = await Store.open(url, "benchmark", backfill=False)

    def items(batch: list[bytes]) -> list[Item]:
        found = []
        for data in batch:
            parsed = parse(data, scope)
            for event in parsed.events:
                if isinstance(event, Commit) and not is_verified:
                    event = replace(event, proof=None)
                found.append(Item(event, data, parsed.seq))
        return found

    dids = [parse(data, scope).events[0].did for data in first]
    with psycopg.connect(url) as admin:
        for did in dids:
            admin.execute("INSERT INTO repositories (did, signing_key) VALUES (%s, %s)", [did, multikey(did)])
    assert (await store.apply(items(first), 0)).commits == len(first)
    await store.close()
    store = await Store.open(url, "benchmark", backfill=True)
    started, spent = time.perf_counter(), time.process_time()
    for at in range(0, len(frames), BATCH):
        batch = frames[at : at + BATCH]
        applied = await store.apply(items(batch), at)
        assert (applied.written, applied.quarantined) == (len(batch), 0)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    await store.close()
    return len(frames) / seconds, cpu / len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=int, default=50)
    parser.add_argument("--commits", type=int, default=60, help="of each repository")
    parser.add_argument("--held", type=int, default=100, help="records of other collections that each has")
    arguments = parser.parse_args()
    first, frames = frames_of(arguments.repositories, arguments.commits, arguments.held)
    with databases() as server:
        with server.database() as url:
            verified, cpu = asyncio.run(measure(url, first, frames, is_verified=True))
        with server.database() as url:
            unverified, _ = asyncio.run(measure(url, first, frames, is_verified=False))
    print(
        json.dumps(
            {
                "benchmark": "verified_commits",
                "commits": len(frames),
                "mean_frame_bytes": round(sum(map(len, frames)) / len(frames)),
                "verified_per_second": round(verified),
                "own_cpu_microseconds": round(cpu * 1e6),
                "unverified_per_second": round(unverified),
                "ratio": round(verified / unverified, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
