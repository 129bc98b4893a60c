"""Firehose frames made to order, for what a real PDS does not send when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import cbrrr
import libipld

DID = "did:plc:" + "a" * 24
DATASET = "ac.foundation.dataset.record"
SCHEMA = "ac.foundation.dataset.sampleSchema"
DATA = "bafyreihffx5a2e7k5uwrmmgofbvzujc5cmw5h4espouwuxt3liqoflx3ee"

Op = tuple[str, str, dict[str, Any] | bytes | None]


def rev(n: int) -> str:
    """The *n*-th of a row of revs in order."""
    alphabet = "234567abcdefghijklmnopqrstuvwxyz"
    digits = ""
    for _ in range(10):
        n, digit = divmod(n, 32)
        digits = alphabet[digit] + digits
    return "3kz" + digits


def dataset(name: str = "Birdsong", **more: Any) -> dict[str, Any]:
    """A valid dataset record."""
    return {
        "$type": DATASET,
        "name": name,
        "schemaRef": f"at://{DID}/{SCHEMA}/3kzaaaaaaaaaa",
        "storage": {"$type": "ac.foundation.dataset.storageExternal", "urls": ["https://example.com/{000..009}.tar"]},
        "createdAt": "2026-01-01T00:00:00.000Z",
        **more,
    }


def schema(name: str = "Song", **more: Any) -> dict[str, Any]:
    """A valid schema record."""
    return {
        "$type": SCHEMA,
        "name": name,
        "version": "1.0.0",
        "fields": [
            {
                "name": "waveform",
                "fieldType": {"$type": "ac.foundation.dataset.schemaType#ndarray", "dtype": "float32"},
                "optional": False,
            }
        ],
        "createdAt": "2026-01-01T00:00:00.000Z",
        **more,
    }


def block(value: dict[str, Any]) -> bytes:
    """*value*, in the atproto JSON form, as DAG-CBOR."""
    return cbrrr.encode_dag_cbor(value, atjson_mode=True)


def cid(data: bytes) -> bytes:
    """The CID of a DAG-CBOR block."""
    return b"\x01\x71\x12\x20" + hashlib.sha256(data).digest()


def car(root: bytes, blocks: Sequence[bytes]) -> bytes:
    """A CAR file of DAG-CBOR *blocks*."""
    header = libipld.encode_dag_cbor({"version": 1, "roots": [root]})
    return b"".join(_varint(len(part)) + part for part in [header, *(cid(b) + b for b in blocks)])


def frame(kind: str, body: dict[str, Any], *, op: int = 1) -> bytes:
    """A frame of any *kind*."""
    return libipld.encode_dag_cbor({"op": op, "t": kind}) + libipld.encode_dag_cbor(body)


def commit_body(seq: int, ops: Sequence[Op], *, did: str = DID, at: int | None = None, since: int | None = None) -> Any:
    """The body of a ``#commit``. An op is (action, path, record), the record as JSON, as a raw block, or None."""
    at = seq if at is None else at
    records = [r if isinstance(r, bytes) else block(r) for _, _, r in ops if r is not None]
    signed = block({"did": did, "rev": rev(at), "data": {"$link": DATA}, "prev": None, "version": 3})
    return {
        "seq": seq,
        "repo": did,
        "rev": rev(at),
        "since": None if since is None else rev(since),
        "time": "2026-11-22T00:00:00.000Z",
        "commit": cid(signed),
        "blocks": car(cid(signed), [signed, *records]),
        "ops": [
            {
                "action": action,
                "path": path,
                "cid": None if r is None else cid(r if isinstance(r, bytes) else block(r)),
            }
            for action, path, r in ops
        ],
        "blobs": [],
        "tooBig": False,
        "rebase": False,
    }


def commit(seq: int, ops: Sequence[Op], **more: Any) -> bytes:
    """A ``#commit`` frame: see `commit_body`."""
    return frame("#commit", commit_body(seq, ops, **more))


def account(seq: int, *, active: bool, status: str | None = None, did: str = DID) -> bytes:
    """An ``#account`` frame."""
    body = {"seq": seq, "did": did, "time": "2026-11-22T00:00:00.000Z", "active": active}
    return frame("#account", {**body, "status": status} if status else body)


def identity(seq: int, *, did: str = DID) -> bytes:
    """An ``#identity`` frame."""
    return frame("#identity", {"seq": seq, "did": did, "time": "2026-11-22T00:00:00.000Z"})


def _varint(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])
