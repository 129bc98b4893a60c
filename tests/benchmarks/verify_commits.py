"""Captured commits to proofs: split the CAR, check the signature, undo the operations. Prints one JSON line.

    python tests/benchmarks/verify_commits.py [--rounds 40]

Microseconds a commit, over the 148 real commits of the relay capture; a round is all of them. ``mean_us`` is of all
rounds, ``best_us`` of the least disturbed one, to compare where the machine does other work as well, and
``signature_floor`` the bare library call. Where the PyPI package `atmst` is installed, it undoes the same operations,
and ``ratio`` is how many times as long it takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import cbrrr
import libipld
import orjson
import zstandard
from conformance import shared_folder
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from atdata_backend import signatures
from atdata_backend.identity import read_document
from atdata_indexer.car import decode, split
from atdata_indexer.verify import Op, check_signature, tree_before


class Commit(NamedTuple):
    packed: bytes
    blocks: dict[bytes, memoryview]
    block: memoryview
    key: str
    data: bytes
    ops: list[Op]
    prev_data: bytes


def captured() -> list[Commit]:
    folder = shared_folder() / "conformance/relay-capture"
    unpack = zstandard.ZstdDecompressor().decompress
    frames = unpack((folder / "frames.bin.zst").read_bytes(), max_output_size=2**26)
    documents = orjson.loads(unpack((folder / "did_docs.json.zst").read_bytes(), max_output_size=2**26))
    commits = []
    at = 0
    while at < len(frames):
        (length,) = struct.unpack_from("<I", frames, at)
        header, body = libipld.decode_dag_cbor_multi(frames[at + 4 : at + 4 + length])
        at += 4 + length
        if header["t"] != "#commit":
            continue
        roots, blocks = split(body["blocks"])
        key = read_document(body["repo"], documents[body["repo"]])[0].signing_key
        assert key is not None
        data = decode(blocks[roots[0]])["data"].cid_bytes
        ops = [Op(op["path"], op["cid"], op.get("prev")) for op in body["ops"]]
        commits.append(Commit(body["blocks"], blocks, blocks[roots[0]], key, data, ops, body["prevData"]))
    return commits


def signature_floor(commits: Sequence[Commit]) -> Callable[[], None]:
    """Only what the library does, everything prepared."""
    prepared = []
    for commit in commits:
        fields = decode(commit.block)
        signature = fields.pop("sig")
        der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        public: Any = signatures._public_key(commit.key)
        prepared.append((public, der, cbrrr.encode_dag_cbor(fields)))

    def run() -> None:
        for public, der, message in prepared:
            assert public.verify(der, message)

    return run


def atmst_inversion(commits: Sequence[Commit]) -> Callable[[], None]:
    from atmst.blockstore import MemoryBlockStore
    from atmst.mst.node_store import NodeStore
    from atmst.mst.node_wrangler import NodeWrangler

    def run() -> None:
        for commit in commits:
            store = MemoryBlockStore()
            for cid, block in commit.blocks.items():
                store.put_block(cid, bytes(block))
            wrangler = NodeWrangler(NodeStore(store))
            root = cbrrr.CID(commit.data)
            for op in commit.ops:
                if op.prev is None:
                    root = wrangler.del_record(root, op.path)
                else:
                    root = wrangler.put_record(root, op.path, cbrrr.CID(op.prev))
            assert root.cid_bytes == commit.prev_data

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    commits = captured()

    def inversion() -> None:
        for commit in commits:
            assert tree_before(commit.data, commit.ops, commit.blocks) == commit.prev_data

    def signature() -> None:
        for commit in commits:
            check_signature(commit.block, commit.key)

    def splitting() -> None:
        for commit in commits:
            split(commit.packed)

    runs = {
        "split": splitting,
        "signature": signature,
        "signature_floor": signature_floor(commits),
        "inversion": inversion,
    }
    if importlib.util.find_spec("atmst"):
        runs["atmst"] = atmst_inversion(commits)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        # In turns, so that what disturbs one disturbs all.
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / len(commits) * 1e6)
    mean = {name: sum(each) / len(each) for name, each in times.items()}
    best = {name: min(each) for name, each in times.items()}
    result = {
        "benchmark": "verify_commits",
        "commits": len(commits),
        "rounds": arguments.rounds,
        "mean_us": {name: round(value, 1) for name, value in mean.items()},
        "best_us": {name: round(value, 1) for name, value in best.items()},
    }
    if "atmst" in runs:
        result["ratio"] = round(mean["atmst"] / mean["inversion"], 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
