"""Firehose frames made to order, for what a real PDS does not send when asked."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import cbrrr
import coincurve
import libipld
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

DID = "did:plc:" + "a" * 24
DATASET = "ac.foundation.dataset.record"
SCHEMA = "ac.foundation.dataset.sampleSchema"

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


@cache
def private_key(did: str) -> coincurve.PrivateKey:
    """The key that the account signs with, always the same."""
    return coincurve.PrivateKey(hashlib.sha256(did.encode()).digest())


def multikey(did: str) -> str:
    """The public key of the account, as DID documents write it."""
    return str(libipld.encode_multibase("z", b"\xe7\x01" + private_key(did).public_key.format()))


def did_document(did: str, pds: str = "https://pds.example", key: str | None = None) -> dict[str, Any]:
    """The account's DID document."""
    return {
        "id": did,
        "alsoKnownAs": [],
        "verificationMethod": [
            {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": key or multikey(did)}
        ],
        "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": pds}],
    }


def layer(key: str) -> int:
    """The layer of a tree that *key* belongs to."""
    return (256 - int.from_bytes(hashlib.sha256(key.encode()).digest(), "big").bit_length()) // 2


def tree(records: Mapping[str, bytes]) -> tuple[bytes, list[bytes]]:
    """The root and the nodes of the tree of *records*, CIDs by path, built as its definition says."""
    nodes: list[bytes] = []

    def add(keys: Sequence[str], at: int) -> dict[str, str] | None:
        if not keys:
            return None
        node: dict[str, Any] = {"l": None, "e": []}
        before = b""
        for is_here, group in groupby(keys, key=lambda key: layer(key) == at):
            if not is_here:
                subtree = add(list(group), at - 1)
                if node["e"]:
                    node["e"][-1]["t"] = subtree
                else:
                    node["l"] = subtree
                continue
            for key in group:
                path = key.encode()
                shared = 0
                while shared < min(len(before), len(path)) and before[shared] == path[shared]:
                    shared += 1
                entry = {"p": shared, "k": _bytes(path[shared:]), "v": _link(records[key]), "t": None}
                node["e"].append(entry)
                before = path
        nodes.append(block(node))
        return _link(cid(nodes[-1]))

    keys = sorted(records)
    if not keys:
        nodes.append(block({"l": None, "e": []}))
    add(keys, max(map(layer, keys), default=0))
    return cid(nodes[-1]), nodes


def signed(did: str, rev: str, data: bytes) -> bytes:
    """The signed commit block of a repository."""
    unsigned = {"did": did, "rev": rev, "data": _link(data), "prev": None, "version": 3}
    r, s = decode_dss_signature(private_key(did).sign(block(unsigned)))
    return block({**unsigned, "sig": _bytes(r.to_bytes(32, "big") + s.to_bytes(32, "big"))})


class Repo:
    """A repository that remembers what it holds, so that each of its commits continues the one before."""

    def __init__(self, did: str = DID) -> None:
        self.did = did
        self.records: dict[str, bytes] = {}
        self.rev: str | None = None

    def commit_body(self, seq: int, ops: Sequence[Op], *, at: int | None = None) -> dict[str, Any]:
        """The body of a ``#commit``. An op is (action, path, record), the record as JSON, as a raw block, or None."""
        before, _ = tree(self.records)
        since, self.rev = self.rev, rev(seq if at is None else at)
        blocks = []
        named = []
        for action, path, record in ops:
            data = record if record is None or isinstance(record, bytes) else block(record)
            op = {"action": action, "path": path, "cid": None if data is None else cid(data)}
            if action != "create":
                op["prev"] = self.records.pop(path)
            if data is not None:
                blocks.append(data)
                self.records[path] = cid(data)
            named.append(op)
        root, nodes = tree(self.records)
        commit = signed(self.did, self.rev, root)
        return {
            "seq": seq,
            "repo": self.did,
            "rev": self.rev,
            "since": since,
            "prevData": None if since is None else before,
            "time": "2026-11-22T00:00:00.000Z",
            "commit": cid(commit),
            "blocks": car(cid(commit), [*dict.fromkeys((commit, *nodes, *blocks))]),
            "ops": named,
            "blobs": [],
            "tooBig": False,
            "rebase": False,
        }

    def commit(self, seq: int, ops: Sequence[Op] = (), *, at: int | None = None) -> bytes:
        """A ``#commit`` frame."""
        return frame("#commit", self.commit_body(seq, ops, at=at))

    def sync(self, seq: int, *, at: int | None = None) -> bytes:
        """A ``#sync`` frame: the repository as it is, at another rev."""
        self.rev = rev(seq if at is None else at)
        commit = signed(self.did, self.rev, tree(self.records)[0])
        body = {"seq": seq, "did": self.did, "rev": self.rev, "blocks": car(cid(commit), [commit])}
        return frame("#sync", {**body, "time": "2026-11-22T00:00:00.000Z"})


def commit_body(seq: int, ops: Sequence[Op], *, did: str = DID, at: int | None = None, since: int | None = None) -> Any:
    """The body of a ``#commit`` by itself: before it, the repository held no more than what it updates and deletes."""
    repo = Repo(did)
    repo.records = {path: cid(b"before") for action, path, _ in ops if action != "create"}
    repo.rev = None if since is None else rev(since)
    return repo.commit_body(seq, ops, at=at)


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


def _link(cid: bytes) -> dict[str, str]:
    return {"$link": cbrrr.CID(cid).encode()}


def _bytes(data: bytes) -> dict[str, str]:
    return {"$bytes": base64.b64encode(data).decode().rstrip("=")}


def _varint(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])
