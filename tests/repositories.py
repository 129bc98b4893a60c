"""Build repositories as a PDS does, for tests: trees, commits and the CAR files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import cbrrr

REV = "3lqdkdjpy6t2e"


def cid_of(block: bytes) -> bytes:
    """The CID, as bytes, of a block of DAG-CBOR."""
    return b"\x01\x71\x12\x20" + sha256(block).digest()


def encode(value: Any) -> bytes:
    return cbrrr.encode_dag_cbor(value)


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def car(roots: Iterable[bytes], blocks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A CAR file of *roots* and of *blocks*, pairs of CID and bytes."""
    header = encode({"version": 1, "roots": [cbrrr.CID(root) for root in roots]})
    sections = (varint(len(cid + block)) + cid + block for cid, block in blocks)
    return varint(len(header)) + header + b"".join(sections)


def tree(records: Mapping[str, bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """The root of the tree over *records*, from keys to CIDs, and its nodes by CID, the root first.

    https://atproto.com/specs/repository#mst-structure
    """
    blocks: dict[bytes, bytes] = {}
    keys = sorted(records)
    root = _node(keys, max(map(_layer, keys), default=0), records, blocks)
    return root, {root: blocks.pop(root), **blocks}


def _layer(key: str) -> int:
    digest = int.from_bytes(sha256(key.encode()).digest(), "big")
    return (256 - digest.bit_length()) // 2


def _node(keys: list[str], layer: int, records: Mapping[str, bytes], blocks: dict[bytes, bytes]) -> bytes:
    def subtree(keys: list[str]) -> cbrrr.CID | None:
        return cbrrr.CID(_node(keys, layer - 1, records, blocks)) if keys else None

    gaps: list[list[str]] = [[]]
    own = []
    for key in keys:
        if _layer(key) == layer:
            own.append(key)
            gaps.append([])
        else:
            gaps[-1].append(key)
    entries, before = [], b""
    for key, gap in zip(own, gaps[1:], strict=True):
        path = key.encode()
        shared = next((i for i, (a, b) in enumerate(zip(before, path, strict=False)) if a != b), len(before))
        entries.append({"p": shared, "k": path[shared:], "v": cbrrr.CID(records[key]), "t": subtree(gap)})
        before = path
    block = encode({"l": subtree(gaps[0]), "e": entries})
    blocks[cid_of(block)] = block
    return cid_of(block)


def repository(did: str, records: Mapping[str, Any], /, **commit: Any) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The roots and blocks of a repository of *records* by path; *commit* overrides fields of its commit."""
    contents = {path: encode(record) for path, record in records.items()}
    data, nodes = tree({path: cid_of(block) for path, block in contents.items()})
    root = encode(
        {"did": did, "version": 3, "data": cbrrr.CID(data), "rev": REV, "prev": None, "sig": bytes(64), **commit}
    )
    return [cid_of(root)], {cid_of(root): root, **nodes, **{cid_of(block): block for block in contents.values()}}
