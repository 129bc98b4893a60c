"""Take CAR files apart: the blocks by CID, the keys of the repository tree in them, the values of blocks. No I/O.

Strict on purpose: whatever is cut short, altered or ambiguous raises CarError, so that a damaged file is never mistaken
for a smaller repository. Specifications: https://ipld.io/specs/transport/car/carv1/ and
https://atproto.com/specs/repository.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import cbrrr
import libipld

from atdata.errors import AtdataError

__all__ = ["CarError", "check_containers", "cid_text", "decode", "decode_record", "read_blocks", "split", "walk_mst"]

# CIDv1, the codec, sha2-256, 32 bytes of digest: the only two forms that the protocol allows.
_DAG_CBOR: Final = b"\x01\x71\x12\x20"
_RAW: Final = b"\x01\x55\x12\x20"
_CID_BYTES: Final = 36

_MAX_HEADER: Final = 4096
# A varint of 5 bytes counts to 32 GiB, more than any limit in use.
_MAX_VARINT: Final = 5
# A key's layer is the number of leading zeros, two bits at a time, in 256 bits of hash.
_MAX_DEPTH: Final = 129

# Up to here, whatever a block claims, decoding it costs a few milliseconds at most.
_SMALL_BLOCK: Final = 2048
_MAX_NESTING: Final = 128
# The bytes that cannot begin an array, a map or a tag: what a block has of the others limits how deep it nests.
_NOT_CONTAINERS: Final = bytes(byte for byte in range(256) if not 0x80 <= byte < 0xE0)
# What reads records takes microseconds an item, and a megabyte holds a million.
_MAX_ITEMS: Final = 50_000

_KEY = re.compile(rb"[A-Za-z0-9_~.:-]+/[A-Za-z0-9_~.:-]+")
_MAX_KEY: Final = 1024


class CarError(AtdataError, ValueError):
    """A CAR file, or the repository tree in it, is not what its specification allows; the message says where."""


def cid_text(cid: bytes) -> str:
    """*cid* as the protocol writes it: base32, lower case.

    >>> cid_text(bytes.fromhex("01711220") + bytes(32))
    'bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
    """
    # cbrrr's own takes twelve times as long.
    return libipld.encode_multibase("b", cid)


def split(data: bytes, *, verify: bool = True) -> tuple[list[bytes], dict[bytes, memoryview]]:
    """The roots of a CAR file, and its blocks by CID, both as the bytes of CIDs; the blocks are views of *data*.

    >>> roots, blocks = split(frame["blocks"])
    >>> commit = cbrrr.decode_dag_cbor(blocks[roots[0]])

    With *verify*, every block is hashed and must match its CID. Raises CarError.
    Specification: https://ipld.io/specs/transport/car/carv1/
    """
    view = memoryview(data)
    size = len(view)
    length, at = _section(data, 0)
    if length > _MAX_HEADER or at + length > size:
        raise CarError(f"the header claims {length} bytes, {size - at} follow")
    roots = _roots(view[at : at + length])
    at += length
    blocks: dict[bytes, memoryview] = {}
    while at < size:
        start = at
        # Most blocks are longer than 127 bytes and shorter than 16 KiB.
        if at + 1 < size and data[at] & 0x80 and 0 < data[at + 1] < 0x80:
            length = data[at] & 0x7F | data[at + 1] << 7
            at += 2
        else:
            length, at = _section(data, at)
        end = at + length
        if end > size:
            raise CarError(f"truncated: the block at byte {start} claims {length} bytes, {size - at} follow")
        body = at + _CID_BYTES
        cid = data[at:body]
        block = view[body:end]
        if length < _CID_BYTES or not cid.startswith((_DAG_CBOR, _RAW)):
            raise CarError(f"the block at byte {start} has no CIDv1 of DAG-CBOR or raw bytes with SHA-256")
        if verify and sha256(block).digest() != cid[4:]:
            raise CarError(f"the block at byte {start} does not hash to its CID {cid_text(cid)}")
        blocks[cid] = block
        at = end
    return roots, blocks


async def read_blocks(
    stream: AsyncIterable[bytes], *, max_block: int = 2 * 2**20, max_total: int = 256 * 2**20
) -> tuple[list[bytes], AsyncIterator[tuple[bytes, bytes]]]:
    """The roots of a CAR file that arrives in pieces, and an iterator over its blocks, each hashed and found right.

    >>> roots, blocks = await read_blocks(response.aiter_raw())
    >>> async for cid, block in blocks: ...

    Holds at most one block and one piece of the stream. Raises CarError as `split` does, and when a block is longer
    than *max_block* or the file than *max_total* bytes.
    """
    reader = _Reader(stream, max_total)
    length = await reader.section()
    if length is None:
        raise CarError("truncated: the file is empty")
    if length > _MAX_HEADER:
        raise CarError(f"the header claims {length} bytes")
    return _roots(await reader.take(length)), _blocks(reader, max_block)


async def _blocks(reader: _Reader, max_block: int) -> AsyncIterator[tuple[bytes, bytes]]:
    while (length := await reader.section()) is not None:
        if not _CID_BYTES <= length <= max_block + _CID_BYTES:
            raise CarError(f"the block before byte {reader.position} claims {length} bytes of at most {max_block}")
        section = await reader.take(length)
        cid, block = section[:_CID_BYTES], section[_CID_BYTES:]
        if not cid.startswith((_DAG_CBOR, _RAW)):
            raise CarError(f"the block before byte {reader.position} has no CIDv1 of DAG-CBOR or raw with SHA-256")
        if sha256(block).digest() != cid[4:]:
            raise CarError(f"the block before byte {reader.position} does not hash to its CID {cid_text(cid)}")
        yield cid, block


class _Reader:
    """Takes exact numbers of bytes from a stream of pieces."""

    def __init__(self, stream: AsyncIterable[bytes], max_total: int) -> None:
        self._stream = aiter(stream)
        self._max_total = max_total
        self._received = 0
        self._piece = b""
        self._at = 0

    @property
    def position(self) -> int:
        return self._received - len(self._piece) + self._at

    async def _next_piece(self) -> bool:
        async for piece in self._stream:
            self._received += len(piece)
            if self._received > self._max_total:
                raise CarError(f"the file is longer than {self._max_total} bytes")
            if piece:
                self._piece, self._at = piece, 0
                return True
        return False

    async def section(self) -> int | None:
        """The length in front of the next section, None at the end of the file."""
        prefix = bytearray()
        while True:
            if self._at == len(self._piece) and not await self._next_piece():
                if prefix:
                    raise CarError("truncated: the file ends in a length")
                return None
            byte = self._piece[self._at]
            self._at += 1
            prefix.append(byte)
            if byte < 0x80 or len(prefix) > _MAX_VARINT:
                return _section(prefix, 0)[0]

    async def take(self, length: int) -> bytes:
        """The next *length* bytes."""
        end = self._at + length
        if end <= len(self._piece):
            taken = self._piece[self._at : end]
            self._at = end
            return taken
        taken_so_far = bytearray(self._piece[self._at :])
        self._at = len(self._piece)
        while missing := length - len(taken_so_far):
            if not await self._next_piece():
                raise CarError(f"truncated: {missing} of {length} bytes of a section are missing at the end")
            taken_so_far += self._piece[:missing]
            self._at = min(missing, len(self._piece))
        return bytes(taken_so_far)


def _section(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The unsigned varint at *at*, and where it ends. It must be minimal: https://github.com/multiformats/unsigned-varint"""
    value = 0
    for count in range(_MAX_VARINT):
        if at + count >= len(data):
            raise CarError(f"truncated: the length at byte {at} is cut off")
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            # A last byte of zero adds nothing; a zero alone is a section of no bytes, padding that CARv1 does not have.
            if byte == 0:
                raise CarError(f"the length at byte {at} is zero or not minimal")
            return value, at + count + 1
    raise CarError(f"the length at byte {at} is longer than {_MAX_VARINT} bytes")


def decode(block: bytes | memoryview) -> Any:
    """The value of a block of the repository's own (commit, node), links as `cbrrr.CID`, distinct from bytes.

    >>> decode(b"\\xa1\\x61a\\x01")
    {'a': 1}

    Raises CarError. Specification: https://ipld.io/specs/codecs/dag-cbor/spec/
    """
    if len(block) > _SMALL_BLOCK:
        check_containers(block)
    try:
        # cbrrr reads any buffer; its annotation says bytes.
        return cbrrr.decode_dag_cbor(block)  # type: ignore[arg-type, unused-ignore]
    except ValueError as e:
        raise CarError(f"not DAG-CBOR: {e}") from None


def decode_record(block: bytes | memoryview) -> dict[str, Any]:
    """The record in a block, in the protocol's JSON form: links as `{"$link": …}`, bytes as `{"$bytes": …}`.

    >>> decode_record(b"\\xa1\\x61a\\x41\\x00")
    {'a': {'$bytes': 'AA'}}

    Raises CarError for what is not DAG-CBOR, not a map, or nested deeper than 128 containers: readers of JSON give up
    at some depth. Specification: https://atproto.com/specs/data-model
    """
    if len(block) > _SMALL_BLOCK or len(bytes(block).translate(None, _NOT_CONTAINERS)) > _MAX_NESTING:
        check_containers(block)
    try:
        record = cbrrr.decode_dag_cbor(block, atjson_mode=True)  # type: ignore[arg-type, unused-ignore]
    except ValueError as e:
        raise CarError(f"not DAG-CBOR: {e}") from None
    # A lone link or byte string is a map only in its JSON form.
    if not isinstance(record, dict) or block[0] >> 5 != 5:
        raise CarError("the record is not a map")
    return record


def check_containers(data: bytes | memoryview, values: int = 1) -> None:
    """Refuse CBOR whose arrays claim more items than bytes follow, more than 50,000, or nest deeper than 128.

    >>> check_containers(frame, values=2)

    *data* is as many *values* behind one another. Raises CarError for these faults, and for bytes that follow; all
    others are for the decoder to find, which comes no further than they do.

    The decoder allocates what an array claims, and checks each claim for itself only: arrays nested in each other that
    all claim the rest of the block take 0.5 GB and 2 s for 30 kB, and the square of that for longer ones.
    """
    size = len(data)
    at = 0
    open_containers: list[int] = []
    left = values  # items to come in the innermost container
    owed = values  # items to come in all of them, at least a byte each
    total = values
    while True:
        while not left:
            if not open_containers:
                if at < size:
                    raise CarError(f"not DAG-CBOR: {size - at} bytes follow its end")
                return
            left = open_containers.pop()
        if at >= size:
            return  # cut off: the decoder says so
        head = data[at]
        at += 1
        argument = head & 31
        if argument > 23:
            if argument > 27:
                return  # not DAG-CBOR: the decoder says so
            end = at + (1 << argument - 24)
            argument = int.from_bytes(data[at:end], "big")
            at = end
        left -= 1
        owed -= 1
        if head < 0x40 or head >= 0xE0:  # integers, floats, booleans, null
            continue
        if head < 0x80:  # bytes, text
            at += argument
            continue
        items = argument if head < 0xA0 else 2 * argument if head < 0xC0 else 1  # array, map, tag
        owed += items
        if owed > size - at:
            raise CarError(f"not DAG-CBOR: {owed} items are to follow byte {at} of {size}")
        total += items
        if total > _MAX_ITEMS:
            raise CarError(f"more than {_MAX_ITEMS} items in one block")
        if len(open_containers) == _MAX_NESTING:
            raise CarError(f"nested deeper than {_MAX_NESTING} containers")
        open_containers.append(left)
        left = items


def _roots(header: bytes | memoryview) -> list[bytes]:
    value = decode(header)
    if not isinstance(value, dict) or set(value) != {"version", "roots"} or not isinstance(value["roots"], list):
        raise CarError("the header is not a map of a version and a list of roots")
    if type(value["version"]) is not int or value["version"] != 1:
        raise CarError("the header names another version than 1")
    return [_link(root) for root in value["roots"]]


def _link(value: Any) -> bytes:
    if not isinstance(value, cbrrr.CID):
        raise CarError(f"a {type(value).__name__} stands where a CID must be")
    cid = value.cid_bytes
    # Commits, nodes and records are DAG-CBOR; raw blocks are blobs, to which neither a header nor a tree links.
    if len(cid) != _CID_BYTES or not cid.startswith(_DAG_CBOR):
        raise CarError(f"the CID {cid[:_CID_BYTES].hex()} is not CIDv1 of DAG-CBOR with SHA-256")
    return cid


def walk_mst(
    root: bytes, blocks: Mapping[bytes, bytes | memoryview], *, prefixes: Collection[str] = ("",)
) -> Iterator[tuple[str, bytes]]:
    """The keys of a repository tree in order, each with the CID of its record; *root* is the commit's `data`.

    >>> list(walk_mst(data, blocks, prefixes=["ac.foundation.dataset."]))
    [('ac.foundation.dataset.record/3lqdkdjpy6t2e', b'\\x01q\\x12 …'), …]

    With *prefixes*, only keys that start with one of them, and subtrees that cannot hold such keys are not visited.
    Raises CarError when a node is missing, malformed or out of order: what was yielded before is then not the whole.
    Whether the records' blocks are there is for the caller to see.
    Specification: https://atproto.com/specs/repository#mst-structure
    """
    wanted = [prefix.encode() for prefix in prefixes]
    yields_all = b"" in wanted
    # A stack instead of recursion: hostile trees are deep. Each level holds what is left of a node, last things first.
    stack: list[list[_Entry | bytes]] = [[root]]
    before = b""  # the last key passed: everything to come is greater
    while stack:
        level = stack[-1]
        if not level:
            stack.pop()
            continue
        item = level.pop()
        if isinstance(item, bytes):
            # The next key at hand, on this level or one above, is greater than everything in the subtree. What follows
            # a subtree is always an entry.
            after = next((pending[-1].key for pending in reversed(stack) if pending), None)  # type: ignore[union-attr]
            if yields_all or any(_may_hold(prefix, before, after) for prefix in wanted):
                if len(stack) > _MAX_DEPTH:
                    raise CarError(f"the tree is deeper than {_MAX_DEPTH} nodes at {before!r}")
                stack.append(_node(item, blocks, is_root=len(stack) == 1))
            continue
        key = item.key
        if key <= before:
            raise CarError(f"the key {key!r} comes after {before!r} in the tree")
        before = key
        if yields_all or any(key.startswith(prefix) for prefix in wanted):
            yield key.decode("ascii"), item.cid


class _Entry:
    """A key of a node, with the CID of its record."""

    __slots__ = ("cid", "key")

    def __init__(self, key: bytes, cid: bytes) -> None:
        self.key = key
        self.cid = cid


def _may_hold(prefix: bytes, before: bytes, after: bytes | None) -> bool:
    """Whether a key that starts with *prefix* can lie between *before* and *after*."""
    return (before < prefix or before.startswith(prefix)) and (after is None or after > prefix)


def _node(cid: bytes, blocks: Mapping[bytes, bytes | memoryview], *, is_root: bool) -> list[_Entry | bytes]:
    """The entries and subtrees of a node, in reverse order."""
    block = blocks.get(cid)
    if block is None:
        raise CarError(f"truncated: the tree's node {cid_text(cid)} is missing")
    node = decode(block)
    try:
        left, entries = node["l"], node["e"]
    except (TypeError, KeyError):
        raise CarError(f"the block {cid_text(cid)} is not a node of a tree") from None
    if len(node) != 2 or not isinstance(entries, list):
        raise CarError(f"the node {cid_text(cid)} is malformed")
    if not entries and left is None and not is_root:
        # Only the empty repository has one. Elsewhere shared chains of them would make small trees slow to walk.
        raise CarError(f"the node {cid_text(cid)} is empty")
    items: list[_Entry | bytes] = []
    if left is not None:
        items.append(_link(left))
    key = b""
    for entry in entries:
        try:
            shared, suffix, value, right = entry["p"], entry["k"], entry["v"], entry["t"]
        except (TypeError, KeyError):
            raise CarError(f"an entry of the node {cid_text(cid)} is malformed") from None
        if len(entry) != 4 or type(shared) is not int or not isinstance(suffix, bytes):
            raise CarError(f"an entry of the node {cid_text(cid)} is malformed")
        # The shared part must be as long as it can be: otherwise one tree has two encodings, and thus two CIDs.
        if not 0 <= shared <= len(key) or (shared < len(key) and key[shared : shared + 1] == suffix[:1]):
            raise CarError(f"an entry of the node {cid_text(cid)} shares {shared} bytes with {key!r}: not the prefix")
        key = key[:shared] + suffix
        if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
            raise CarError(f"the node {cid_text(cid)} has the key {key[:80]!r}, which is no path of a record")
        items.append(_Entry(key, _link(value)))
        if right is not None:
            items.append(_link(right))
    items.reverse()
    return items
