"""Prove what a commit claims: its signature, its operations against its tree, and the tree before them. Pure.

A commit is a step from one tree of records to the next. Undoing its operations on the nodes that come with it must lead
back to the root of the tree before: nothing else was changed then, and nobody need hold the whole tree to know it.

Blocks are those of `atdata_indexer.car.split`, which hashed them: here a block is taken for what its CID says.
Specifications: https://atproto.com/specs/sync, https://atproto.com/specs/repository and
https://atproto.com/specs/cryptography.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, TypeAlias

import cbrrr

from atdata.errors import AtdataError
from atdata_backend.signatures import BadSignature, check_bytes
from atdata_indexer import car

__all__ = ["NotProven", "Op", "check_signature", "record_at", "tree_before"]


class NotProven(AtdataError):
    """A claim does not follow from the blocks given for it. ``reason`` is a slug to count by, `str()` says where.

    ===============  ==========================================================================================
    bad-key          the key is no compressed secp256k1 or P-256 point in the Multikey encoding
    bad-commit       the commit block is not canonical DAG-CBOR of version 3 with a signature
    bad-signature    the signature is not this key's over these bytes, or not in the one allowed form
    missing-block    a node that the proof needs is not among the blocks
    bad-tree         a node is not what the specification allows: encoding, order of keys, layers, empty nodes
    op-mismatch      an operation says otherwise than the tree, or than itself
    ===============  ==========================================================================================
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Op(NamedTuple):
    """An operation on a record: its CID after and before the commit, None where there was or is no record."""

    path: str
    cid: bytes | None
    prev: bytes | None


# --- signatures


def check_signature(commit: bytes | memoryview, key: str) -> None:
    """Check that *commit*, a signed commit block, was signed with *key*, a Multikey as of `Identity.signing_key`.

    >>> check_signature(blocks[roots[0]], "zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc")

    The signature is over the canonical DAG-CBOR of all other fields, known or not. Raises NotProven: bad-commit,
    bad-key or bad-signature. Specification: https://atproto.com/specs/repository#commit-objects
    """
    try:
        # Reads the canonical encoding only: what is encoded again without the signature is the rest of this block.
        fields = car.decode(commit)
    except car.CarError as e:
        raise NotProven("bad-commit", f"the commit block is {e}") from None
    if not isinstance(fields, dict):
        raise NotProven("bad-commit", "the commit block is not a map")
    version, signature = fields.get("version"), fields.pop("sig", None)
    if type(version) is not int or version != 3:
        raise NotProven("bad-commit", "the commit's version is not 3")
    if not isinstance(signature, bytes):
        raise NotProven("bad-commit", "the commit has no signature")
    try:
        check_bytes(cbrrr.encode_dag_cbor(fields), signature, key)
    except BadSignature as e:
        raise NotProven(e.reason, e.detail) from None


# --- trees


def _head(major: int, value: int) -> bytes:
    """The head of a CBOR item, in its shortest form."""
    if value < 24:
        return bytes((major << 5 | value,))
    size = 1 if value < 0x100 else 2 if value < 0x10000 else 4
    return bytes((major << 5 | 23 + size.bit_length(),)) + value.to_bytes(size, "big")


_MAX_PATH: Final = 1024
_PATH: Final = re.compile(rb"[A-Za-z0-9_~.:-]+/[A-Za-z0-9_~.:-]+")
# Greater than every path.
_END: Final = b"\x7f"

_CID: Final = b"\x01\x71\x12\x20"
_LINK: Final = b"\xd8\x2a\x58\x25\x00"
_NULL: Final = b"\xf6"
_LEFT: Final = b"\x61l"
_VALUE: Final = b"\x61v" + _LINK
# A node ends in the kid left of its first key.
_LEFT_NULL: Final = _LEFT + _NULL
_LEFT_LINK: Final = _LEFT + _LINK + _CID
_LEFT_BYTES: Final = len(_LEFT_LINK) + 32

# An entry of a node, byte by byte. There is one encoding of a node, and reading that is cheaper than to decode whatever
# was encoded and to see how: https://atproto.com/specs/repository#mst-structure
_ENTRY: Final = re.compile(
    rb"""(?sx)
    ( \xa4 \x61k (?:[\x41-\x57]|\x58.|\x59..) ([A-Za-z0-9_~.:/-]+) \x61p ([\x00-\x17]|\x18.|\x19..) \x61t )
    ( \xf6 | \xd8\x2a\x58\x25\x00 \x01\x71\x12\x20 .{32} )
    ( \x61v \xd8\x2a\x58\x25\x00 \x01\x71\x12\x20 .{32} )
    | .+  # what is no entry matches once, to the end, with all groups empty
    """
)
# By length of the key's own part, and by encoding: only these are in their shortest form, and within limits.
_KEY_HEADS: Final = [b"\xa4\x61k" + _head(2, length) for length in range(_MAX_PATH + 1)]
_SHARED: Final = {_head(0, length): length for length in range(_MAX_PATH + 1)}
# By the first byte that tells how long the head of the list of entries is, else 4.
_OPENING_BYTES: Final = {b"\x98": 5, b"\x99": 6, b"\x9a": 8}


@lru_cache(maxsize=256)
def _opening(entries: int) -> bytes:
    return b"\xa2\x61e" + _head(4, entries)


EMPTY_TREE: Final = _CID + sha256(_opening(0) + _LEFT + _NULL).digest()


def tree_before(data: bytes, ops: Sequence[Op], blocks: Mapping[bytes, bytes | memoryview]) -> bytes:
    """The root of the tree before *ops* led to the one of root *data*: what the commit's ``prevData`` must be.

    >>> tree_before(commit["data"].cid_bytes, [Op("app.example.note/self", cid, None)], blocks) == prev_data
    True

    *blocks* need hold no more than a commit on the firehose brings: the nodes on the way to each path and to its
    neighbours. Operations on different paths may come in any order. A path may be named several times, as the
    reference PDS does when one request writes a record twice: such operations count as one, from before the first to
    after the last, and each must start from there, or from where the one before it ended.

    Raises NotProven: op-mismatch, missing-block or bad-tree. Whether the records' own blocks are there is for the
    caller to see. Specification: https://atproto.com/specs/sync
    """
    tree = _Tree(data, blocks)
    for key, (now, before) in _changes(ops).items():
        if before is not None and now is not None:
            tree.replace(key, now, before)
        elif now is not None:
            tree.remove(key, now)
        elif before is not None:
            tree.insert(key, before)
        elif tree.find(key) is not None:
            raise NotProven("op-mismatch", f"{key.decode()} is in the tree, though it was created and deleted again")
    return tree.root()


def record_at(data: bytes, path: str, blocks: Mapping[bytes, bytes | memoryview]) -> bytes | None:
    """The CID of the record at *path* in the tree of root *data*, None where *blocks* prove that there is none.

    >>> record_at(commit["data"].cid_bytes, "app.example.note/self", blocks)
    b'\\x01q\\x12 …'

    *blocks* need hold the nodes on the way to *path*, as `com.atproto.sync.getRecord` brings them. Raises NotProven:
    missing-block or bad-tree, and op-mismatch when *path* cannot be one. Specification: https://atproto.com/specs/sync
    """
    return _Tree(data, blocks).find(_key(path))


def _key(path: str) -> bytes:
    key = path.encode("utf-8", "replace")
    if len(key) > _MAX_PATH or not _PATH.fullmatch(key):
        raise NotProven("op-mismatch", f"{path[:80]!r} is not the path of a record")
    return key


def _changes(ops: Sequence[Op]) -> dict[bytes, tuple[bytes | None, bytes | None]]:
    """The CIDs after and before all of *ops*, by key."""
    changes: dict[bytes, tuple[bytes | None, bytes | None]] = {}
    for path, cid, prev in ops:
        key = _key(path)
        for link in (cid, prev):
            # Anything longer would smuggle entries into the encoding of a node.
            if link is not None and (len(link) != 36 or not link.startswith(_CID)):
                raise NotProven("op-mismatch", f"{path}: a CID of the operation is not CIDv1 of DAG-CBOR with SHA-256")
        now, before = changes.get(key, (prev, prev))
        if prev != now and prev != before:
            raise NotProven("op-mismatch", f"{path}: an operation starts from a record that none before it left")
        if key not in changes and cid is None and prev is None:
            raise NotProven("op-mismatch", f"{path}: an operation leads from no record to no record")
        changes[key] = cid, before
    return changes


def _layer(key: bytes) -> int:
    """The layer of the tree that *key* belongs on; 0 is the lowest."""
    return (256 - int.from_bytes(sha256(key).digest(), "big").bit_length()) // 2


# By layer: the hashes of its keys are not less than the first, and less than the second.
_HASHES: Final = [
    ((1 << 254 - 2 * layer).to_bytes(32, "big"), (1 << 256 - 2 * layer).to_bytes(32, "big") if layer else b"\xff" * 33)
    for layer in range(128)
]


def _entry_head(before: bytes, key: bytes) -> bytes:
    """The encoding of an entry of *key*, after *before* in its node, up to its kid."""
    length = min(len(before), len(key))
    differing = int.from_bytes(before[:length], "big") ^ int.from_bytes(key[:length], "big")
    shared = length - (differing.bit_length() + 7) // 8
    return _KEY_HEADS[len(key) - shared] + key[shared:] + b"\x61p" + _head(0, shared) + b"\x61t"


class _Node:
    """A node as the encoded pieces of its entries, which are joined again once, and its keys to find the way."""

    __slots__ = ("cid", "entries", "keys", "left")

    def __init__(
        self, keys: list[bytes], entries: list[_Entry], left: bytes | _Node = _NULL, cid: bytes | None = None
    ) -> None:
        self.keys = keys
        self.entries = entries
        self.left = left
        self.cid = cid
        """None as soon as the node may have changed."""

    def kid(self, at: int) -> bytes | _Node:
        """What lies before the key *at*, or after the last: `_NULL`, a link, or the node once it was read."""
        return self.entries[at - 1][_KID] if at else self.left

    def set_kid(self, at: int, kid: bytes | _Node) -> None:
        if at:
            head, _, _, _, value = self.entries[at - 1]
            self.entries[at - 1] = head, b"", b"", kid, value
        else:
            self.left = kid

    def set_head(self, at: int) -> None:
        """Encode the key *at* again, if there is one: other keys may have come before it."""
        if at < len(self.keys):
            _, _, _, kid, value = self.entries[at]
            self.entries[at] = _entry_head(self.keys[at - 1] if at else b"", self.keys[at]), b"", b"", kid, value

    def is_empty(self) -> bool:
        return not self.keys and self.left == _NULL

    def seal(self) -> bytes:
        """The CID of the node as it is now."""
        if self.cid is None:
            left = self.left
            parts = [_opening(len(self.keys))]
            for head, _, _, kid, value in self.entries:
                parts += head, kid if isinstance(kid, bytes) else _LINK + kid.seal(), value
            parts += _LEFT, left if isinstance(left, bytes) else _LINK + left.seal()
            self.cid = _CID + sha256(b"".join(parts)).digest()
        return self.cid


# An entry as `_ENTRY` finds it: all before the kid, the key's own part, how much it shares, the kid, the value.
_Entry: TypeAlias = tuple[bytes, bytes, bytes, bytes | _Node, bytes]
_KID: Final = 3
_RECORD: Final = 4


class _Tree:
    """The part of a tree that is in its blocks. Each is read once, when it is first needed.

    The number of steps down is bounded: a root has a key, a key's hash says on which layer it is, each step goes down
    one layer, and below the lowest there is nothing.
    """

    def __init__(self, data: bytes, blocks: Mapping[bytes, bytes | memoryview]) -> None:
        self._blocks = blocks
        self._root = _Node([], [], cid=EMPTY_TREE)
        self._layer = 0
        if data != EMPTY_TREE:
            self._root = self._read(data, None, b"", _END)
            self._layer = _layer(self._root.keys[0])

    def root(self) -> bytes:
        """The CID of the root."""
        root, layer = self._root, self._layer
        while not root.keys:
            # A tree is no higher than its highest key.
            if root.left == _NULL:
                return EMPTY_TREE
            layer -= 1
            root = self._node(root.left, layer, b"", _END)
        return root.seal()

    def find(self, key: bytes) -> bytes | None:
        """The CID of the record at *key*."""
        node, layer, low, high = self._root, self._layer, b"", _END
        while True:
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                return node.entries[at][_RECORD][len(_VALUE) :]
            kid = node.kid(at)
            if kid == _NULL:
                return None
            low, high = _gap(node, at, low, high)
            layer -= 1
            below = self._node(kid, layer, low, high)
            node.set_kid(at, below)
            node = below

    def replace(self, key: bytes, now: bytes, before: bytes) -> None:
        """Undo an update."""
        node, at = self._found(key, now)[0][-1]
        head, _, _, kid, _ = node.entries[at]
        node.entries[at] = head, b"", b"", kid, _VALUE + before

    def remove(self, key: bytes, now: bytes) -> None:
        """Undo a creation: what was left and right of the key becomes one."""
        path, low, high = self._found(key, now)
        node, at = path.pop()
        left, right = node.kid(at), node.kid(at + 1)
        del node.keys[at], node.entries[at]
        node.set_head(at)
        low, high = _gap(node, at, low, high)
        node.set_kid(at, self._merged(left, right, self._layer - len(path) - 1, low, key, high))
        while path and node.is_empty():
            node, at = path.pop()
            node.set_kid(at, _NULL)

    def insert(self, key: bytes, before: bytes) -> None:
        """Undo a deletion: what surrounds the place of the key is split."""
        layer = _layer(key)
        if layer > self._layer:
            root = _NULL if self._root.is_empty() else self._root
            left, right = self._split(root, key, self._layer, b"", _END)
            for _ in range(self._layer + 1, layer):
                left, right = _raised(left), _raised(right)
            self._root = _Node([key], [(_entry_head(b"", key), b"", b"", right, _VALUE + before)], left)
            self._layer = layer
            return
        path, low, high = self._path(key, layer)
        node, at = path[-1]
        for _ in range(len(path), self._layer - layer + 1):
            below = _Node([], [])
            node.set_kid(at, below)
            node, at = below, 0
        if at < len(node.keys) and node.keys[at] == key:
            raise NotProven("op-mismatch", f"{key.decode()} is in the tree, though it was deleted")
        low, high = _gap(node, at, low, high)
        left, right = self._split(node.kid(at), key, layer - 1, low, high)
        node.set_kid(at, left)
        node.keys.insert(at, key)
        node.entries.insert(at, (b"", b"", b"", right, _VALUE + before))
        node.set_head(at)
        node.set_head(at + 1)

    def _found(self, key: bytes, cid: bytes) -> tuple[list[tuple[_Node, int]], bytes, bytes]:
        """The path to *key*, where the record *cid* must be."""
        path, low, high = self._path(key, _layer(key))
        node, at = path[-1]
        if at == len(node.keys) or node.keys[at] != key:
            raise NotProven("op-mismatch", f"{key.decode()} is not in the tree")
        value = node.entries[at][_RECORD]
        if value != _VALUE + cid:
            there = car.cid_text(value[len(_VALUE) :])
            raise NotProven("op-mismatch", f"{key.decode()} is {there} in the tree, not {car.cid_text(cid)}")
        return path, low, high

    def _path(self, key: bytes, layer: int) -> tuple[list[tuple[_Node, int]], bytes, bytes]:
        """The nodes down to *layer*, or to the last there is, each with the place of *key* in it, about to be changed.

        What follows are the keys between which the last node lies.
        """
        node, low, high = self._root, b"", _END
        path = []
        for below in range(self._layer - 1, -2, -1):
            node.cid = None
            at = bisect_left(node.keys, key)
            path.append((node, at))
            kid = node.kid(at)
            if below < layer or kid == _NULL:
                break
            low, high = _gap(node, at, low, high)
            if isinstance(kid, bytes):
                kid = self._read(kid[len(_LINK) :], below, low, high)
                node.set_kid(at, kid)
            node = kid
        return path, low, high

    def _split(
        self, kid: bytes | _Node, key: bytes, layer: int, low: bytes, high: bytes
    ) -> tuple[bytes | _Node, bytes | _Node]:
        """What of *kid* is left of *key*, and what is right of it."""
        if kid == _NULL:
            return _NULL, _NULL
        node = self._node(kid, layer, low, high)
        at = bisect_left(node.keys, key)
        low, high = _gap(node, at, low, high)
        left, right = self._split(node.kid(at), key, layer - 1, low, high)
        # Before or after everything, the node stays as it was.
        if at == 0 and left == _NULL:
            node.set_kid(at, right)
            return _NULL, node
        if at == len(node.keys) and right == _NULL:
            node.set_kid(at, left)
            return node, _NULL
        after = _Node(node.keys[at:], node.entries[at:], right)
        after.set_head(0)
        node.cid = None
        del node.keys[at:], node.entries[at:]
        node.set_kid(at, left)
        return node, after

    def _merged(
        self, left: bytes | _Node, right: bytes | _Node, layer: int, low: bytes, key: bytes, high: bytes
    ) -> bytes | _Node:
        """*left* and *right*, between which *key* was, as one.

        Each is read as far down as it borders on *key*. In the tree before, what was put on the wrong side of a key
        can be in its right place again: then that tree is valid, and the one in question is not.
        """
        if left == _NULL:
            return self._split(right, key, layer, key, high)[1]
        if right == _NULL:
            return self._split(left, key, layer, low, key)[0]
        node = self._node(left, layer, low, key)
        after = self._node(right, layer, key, high)
        at = len(node.keys)
        low = node.keys[-1] if node.keys else low
        high = after.keys[0] if after.keys else high
        node.cid = None
        node.set_kid(at, self._merged(node.kid(at), after.left, layer - 1, low, key, high))
        node.keys += after.keys
        node.entries += after.entries
        node.set_head(at)
        return node

    def _node(self, kid: bytes | _Node, layer: int, low: bytes, high: bytes) -> _Node:
        return kid if isinstance(kid, _Node) else self._read(kid[len(_LINK) :], layer, low, high)

    def _read(self, cid: bytes, layer: int | None, low: bytes, high: bytes) -> _Node:
        """The node *cid*, which must be on *layer* and have its keys between *low* and *high*."""
        view = self._blocks.get(cid)
        if view is None:
            raise NotProven("missing-block", f"the node {car.cid_text(cid)} is not among the blocks")
        block = bytes(view)
        end = len(block) - _LEFT_BYTES
        # In this order: a link may well end in the bytes that say that there is none.
        if end > 0 and block.startswith(_LEFT_LINK, end):
            left = block[end + len(_LEFT) :]
        elif block.endswith(_LEFT_NULL):
            left = _NULL
            end = len(block) - len(_LEFT_NULL)
        else:
            raise _bad(cid, "does not end as one")
        start = _OPENING_BYTES.get(block[3:4], 4)
        entries: list[_Entry] = _ENTRY.findall(block, start, end)
        if block[:start] != _opening(len(entries)):
            raise _bad(cid, f"does not begin as one with as many entries as can be read, {len(entries)}")
        if not entries:
            if left == _NULL or not layer:
                raise _bad(cid, "has no entry, and is no way down to one either")
            return _Node([], [], left, cid)
        if layer is None:
            layer = _layer(entries[0][1])
        if not layer and (left != _NULL or any(entry[_KID] != _NULL for entry in entries)):
            raise _bad(cid, "is on the lowest layer, and has nodes below it")
        keys = []
        key = b""
        try:
            for head, suffix, length, _, _ in entries:
                shared = _SHARED[length]
                # The shared part is as long as it can be, and keys are in order.
                is_next = key[shared] < suffix[0] if shared < len(key) else shared == len(key)
                key = key[:shared] + suffix
                if not is_next or not head.startswith(_KEY_HEADS[len(suffix)]):
                    raise _bad(cid, f"has the key {key!r} out of order, or not in its one encoding")
                keys.append(key)
        except LookupError:
            raise _bad(cid, f"has no entry where one must be, after {key!r}") from None
        if max(map(len, keys)) > _MAX_PATH:
            raise _bad(cid, f"has a key of more than {_MAX_PATH} bytes")
        least, beyond = _HASHES[layer]
        for key in keys:
            if not least <= sha256(key).digest() < beyond:
                raise _bad(cid, f"is on layer {layer}, and has the key {key!r} of layer {_layer(key)}")
        if keys[0] <= low or keys[-1] >= high:
            raise _bad(cid, f"lies between {low!r} and {high!r}, and its keys do not")
        return _Node(keys, entries, left, cid)


def _gap(node: _Node, at: int, low: bytes, high: bytes) -> tuple[bytes, bytes]:
    """The keys between which the kid *at* lies, in a node between *low* and *high*."""
    keys = node.keys
    return keys[at - 1] if at else low, keys[at] if at < len(keys) else high


def _raised(kid: bytes | _Node) -> bytes | _Node:
    """*kid* one layer higher."""
    return _NULL if kid == _NULL else _Node([], [], kid)


def _bad(cid: bytes, problem: str) -> NotProven:
    return NotProven("bad-tree", f"the node {car.cid_text(cid)} {problem}")
