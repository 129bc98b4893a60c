"""CAR files and repository trees: what is whole is read, what is damaged is refused."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import cbrrr
import libipld
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repositories import car, cid_of, encode, repository, tree, varint

from atdata_indexer.car import CarError, cid_text, decode, decode_record, read_blocks, split, walk_mst

SHARED = Path(os.environ.get("ATDATA_SHARED", Path(__file__).parents[3] / "shared"))
CAPTURE = SHARED / "conformance/relay-capture"

needs_capture = pytest.mark.skipif(not CAPTURE.is_dir(), reason=f"the relay capture is not at {CAPTURE}")

DID = "did:plc:53iucmf5ldftgqyf2ac7hmhd"
RECORDS = {
    **{f"ac.foundation.dataset.record/3lqdkdjpy6t2{c}": {"name": c} for c in "abcdefg"},
    **{f"app.bsky.feed.post/3lqdkdjpy6t2{c}": {"text": c} for c in "abcdefg"},
    "science.alt.dataset.entry/self": {"name": "later"},
}
ROOTS, BLOCKS = repository(DID, RECORDS)
WHOLE = car(ROOTS, BLOCKS.items())


def records_of(data: bytes) -> dict[str, bytes]:
    """Every record of a repository, read as an indexer reads them."""
    roots, blocks = split(data)
    commit = blocks.get(roots[0]) if roots else None
    if commit is None:
        raise CarError("no commit")
    records = {}
    for path, cid in walk_mst(decode(commit)["data"].cid_bytes, blocks):
        if cid not in blocks:
            raise CarError("no record")
        records[path] = bytes(blocks[cid])
    return records


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def collected(stream: AsyncIterator[bytes], **limits: int) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    roots, blocks = await read_blocks(stream, **limits)
    return roots, [block async for block in blocks]


@needs_capture
def test_real_repository() -> None:
    """The captured repository holds the commit and the 23 records that the reference tool lists."""
    roots, blocks = split((CAPTURE / "repo.car").read_bytes())
    commit = decode(blocks[roots[0]])
    listed = dict(line.split(": ") for line in (CAPTURE / "car_expected_commit.txt").read_text().splitlines())
    assert commit["did"] == listed["DID"]
    assert commit["rev"] == listed["Revision"]
    assert commit["data"].encode() == listed["Data CID"]
    records = [f"{path}\t{cid_text(cid)}" for path, cid in walk_mst(commit["data"].cid_bytes, blocks)]
    assert records == (CAPTURE / "car_expected_records.tsv").read_text().splitlines()


@needs_capture
def test_real_commits() -> None:
    """The CAR of each captured commit splits into the blocks that another decoder finds, hashes and all."""
    data = zstandard.ZstdDecompressor().decompress((CAPTURE / "frames.bin.zst").read_bytes(), max_output_size=2**26)
    at = commits = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        header, body = libipld.decode_dag_cbor_multi(data[at + 4 : at + 4 + length])
        at += 4 + length
        if header.get("t") != "#commit":
            continue
        roots, blocks = split(body["blocks"])
        _, expected = libipld.decode_car(body["blocks"])
        assert blocks.keys() == expected.keys()
        assert roots == [body["commit"]]
        commits += 1
    assert commits == 148


def test_whole_repository() -> None:
    """Every record of a repository comes back, by path and in order."""
    assert list(records_of(WHOLE).items()) == [(path, encode(RECORDS[path])) for path in sorted(RECORDS)]


def test_empty_repository() -> None:
    """A repository without records is read as such."""
    roots, blocks = repository(DID, {})
    assert records_of(car(roots, blocks.items())) == {}


def test_every_truncation() -> None:
    """Wherever a repository's CAR is cut off, it is refused: it never looks like a smaller repository."""
    for end in range(len(WHOLE)):
        with pytest.raises(CarError):
            records_of(WHOLE[:end])


def test_every_flipped_bit() -> None:
    """Whichever bit of a repository's CAR is flipped, it is refused."""
    for at in range(len(WHOLE)):
        for bit in range(8):
            damaged = bytearray(WHOLE)
            damaged[at] ^= 1 << bit
            with pytest.raises(CarError):
                records_of(bytes(damaged))


async def test_every_truncation_of_a_stream() -> None:
    """A stream cut off within a section is refused, with that word."""
    roots, blocks = [cid_of(b"\xa0")], {cid_of(encode("x" * n)): encode("x" * n) for n in (1, 200, 20_000)}
    data = car(roots, blocks.items())
    boundaries = {len(car(roots, list(blocks.items())[:count])) for count in range(3)}
    for end in [*range(300), *range(300, len(data), 997), len(data) - 1]:
        if end in boundaries:
            continue
        with pytest.raises(CarError, match="truncated"):
            await collected(pieces(data[:end], 100))


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 400))
async def test_streams_agree_with_split(contents: list[bytes], size: int) -> None:
    """A CAR read from a stream in pieces of any size has the roots and blocks of the same bytes split at once."""
    blocks = {cid_of(content): content for content in contents}
    data = car(list(blocks)[:1], blocks.items())
    roots, split_blocks = split(data)
    assert (roots, split_blocks) == (list(blocks)[:1], blocks)
    assert await collected(pieces(data, size)) == (roots, list(blocks.items()))


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 50))
async def test_any_bytes(data: bytes, has_header: bool, size: int) -> None:
    """Bytes that are no CAR raise CarError and nothing else, split or streamed."""
    if has_header:
        data = car([cid_of(b"")], []) + data
    outcomes = []
    for verify in (True, False):
        try:
            outcomes.append(dict(split(data, verify=verify)[1]))
        except CarError:
            outcomes.append(None)
    try:
        outcomes.append(dict((await collected(pieces(data, size)))[1]))
    except CarError:
        outcomes.append(None)
    assert outcomes[0] == outcomes[2]


BLOCK = encode({"a": 1})
SECTION = varint(36 + len(BLOCK)) + cid_of(BLOCK) + BLOCK
HEADER = car([], [])


def header(value: Any) -> bytes:
    block = encode(value)
    return varint(len(block)) + block


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\x80", "truncated"),
        (b"\x00", "zero or not minimal"),
        (HEADER + b"\x00", "zero or not minimal"),
        (HEADER + bytes([SECTION[0] | 0x80, 0]) + SECTION[1:], "zero or not minimal"),
        (HEADER + b"\xff\xff\xff\xff\xff\x01" + SECTION[1:], "longer than 5 bytes"),
        (HEADER + varint(2**30) + SECTION[1:], "claims 1073741824 bytes"),
        (HEADER + varint(10) + cid_of(BLOCK)[:10], "no CIDv1|claims 10 bytes"),
        (HEADER + varint(37) + b"\x01\x70\x12\x20" + bytes(33), "no CIDv1"),  # DAG-PB
        (HEADER + varint(37) + b"\x01\x71\x13\x20" + bytes(33), "no CIDv1"),  # SHA-512
        (HEADER + varint(37) + b"\x12\x20" + bytes(35), "no CIDv1"),  # CIDv0
        (HEADER + varint(37) + cid_of(BLOCK) + b"x", "does not hash"),
        (varint(5000) + bytes(5000), "header claims 5000 bytes"),
        (header({"version": 2, "roots": []}), "another version"),
        (header({"version": True, "roots": []}), "another version"),
        (header({"version": 1}), "not a map of a version"),
        (header({"version": 1, "roots": None}), "not a map of a version"),
        (header({"version": 1, "roots": [], "more": 1}), "not a map of a version"),
        (header([1]), "not a map of a version"),
        (header({"version": 1, "roots": [cid_of(BLOCK)]}), "a bytes stands where a CID must be"),
        (header({"version": 1, "roots": [cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32))]}), "not CIDv1"),
        (header({"version": 1, "roots": [cbrrr.CID(b"\x01")]}), "not CIDv1"),
        (varint(3) + b"\xff\xff\xff", "not DAG-CBOR"),
    ],
)
async def test_invalid_cars(data: bytes, reason: str) -> None:
    """A CAR that breaks the specification is refused with the reason, split or streamed."""
    with pytest.raises(CarError, match=reason):
        split(data)
    with pytest.raises(CarError, match=reason.replace("no CIDv1", "no CIDv1|claims")):
        await collected(pieces(data, 7))


def test_split_without_hashing() -> None:
    """Without `verify`, blocks are not hashed; raw blocks are welcome."""
    raw = b"\x01\x55\x12\x20" + bytes(32)
    assert split(car([], [(raw, b"anything")]), verify=False) == ([], {raw: b"anything"})


async def test_limits_of_streams() -> None:
    """A stream is refused at the first block, or the first byte, over its limit."""
    block = encode("x" * 1000)
    data = car([], [(cid_of(block), block)])
    assert (await collected(pieces(data, 64), max_block=len(block), max_total=len(data)))[1] == [(cid_of(block), block)]
    with pytest.raises(CarError, match=f"claims {len(block) + 36} bytes of at most {len(block) - 1}"):
        await collected(pieces(data, 64), max_block=len(block) - 1)
    with pytest.raises(CarError, match=f"longer than {len(data) - 1} bytes"):
        await collected(pieces(data, 64), max_total=len(data) - 1)


async def test_an_endless_stream_is_not_read_to_its_end() -> None:
    """Nothing is read beyond the piece that breaks a limit."""
    served = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal served
        yield HEADER
        while True:
            served += 1
            yield SECTION

    with pytest.raises(CarError, match="longer than 10000 bytes"):
        await collected(endless(), max_total=10_000)
    assert served == (10_000 - len(HEADER)) // len(SECTION) + 1


# --- trees ---

VALUE = cbrrr.CID(cid_of(b"record"))
A, B, C = "a.b.c/a", "a.b.c/b", "a.b.c/c"


def node(*entries: dict[str, Any], left: bytes | None = None) -> bytes:
    return encode({"l": left and cbrrr.CID(left), "e": list(entries)})


def entry(key: str, *, shared: int = 0, right: bytes | None = None, **override: Any) -> dict[str, Any]:
    return {"p": shared, "k": key.encode(), "v": VALUE, "t": right and cbrrr.CID(right), **override}


def walk(*nodes: bytes, **options: Any) -> list[str]:
    """The keys of the tree whose root is the first of *nodes*."""
    return [key for key, _ in walk_mst(cid_of(nodes[0]), {cid_of(n): n for n in nodes}, **options)]


LEAF = node(entry(B))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node(left=cid_of(b"?"))], "node .* is missing"),
        ([node(entry(A, right=cid_of(b"?")))], "node .* is missing"),
        ([node(entry(B), entry("a", shared=6))], "comes after"),
        ([node(entry(B), entry("", shared=7))], "comes after"),
        ([node(entry(A), left=cid_of(LEAF)), LEAF], "comes after"),
        ([node(entry(B), entry("c", shared=6, right=cid_of(LEAF))), LEAF], "comes after"),
        ([node(entry(A, right=cid_of(LEAF)), entry("c", shared=6, right=cid_of(LEAF))), LEAF], "comes after"),
        ([node(entry("b", shared=6))], "shares 6 bytes"),
        ([node(entry(A), entry(B))], "shares 0 bytes"),
        ([node(entry(A), entry(".c/b", shared=3))], "shares 3 bytes"),
        ([node(entry(A), entry("x", shared=-1))], "shares -1 bytes"),
        ([node(entry("a.b.c"))], "no path"),
        ([node(entry("a.b.c/"))], "no path"),
        ([node(entry("a/b/c"))], "no path"),
        ([node(entry("a.b.c/ä"))], "no path"),
        ([node(entry("a.b.c/a\n"))], "no path"),
        ([node(entry("a/" + "a" * 1023))], "no path"),
        ([node(entry(A, v=VALUE.cid_bytes))], "a bytes stands where a CID"),
        ([node(entry(A, v=None))], "a NoneType stands where a CID"),
        ([node(entry(A, v=cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32))))], "not CIDv1"),
        ([node(entry(A, t=b"x"))], "a bytes stands where a CID"),
        ([node(entry(A, p=True))], "malformed"),
        ([node(entry(A, p="0"))], "malformed"),
        ([node(entry(A, k="text"))], "malformed"),
        ([node(entry(A, more=1))], "malformed"),
        ([encode({"l": None, "e": [{"p": 0}]})], "malformed"),
        ([encode({"l": None, "e": [[]]})], "malformed"),
        ([encode({"l": None, "e": {}})], "malformed"),
        ([encode({"l": None, "e": [], "x": 1})], "malformed"),
        ([encode({"l": None})], "not a node"),
        ([encode([])], "not a node"),
        ([encode(VALUE)], "not a node"),
        ([b"\xff"], "not DAG-CBOR"),
        ([node(left=cid_of(node())), node()], "is empty"),
        ([node(entry(A, right=cid_of(node()))), node()], "is empty"),
    ],
)
def test_invalid_trees(nodes: list[bytes], reason: str) -> None:
    """A tree that is incomplete, malformed or out of order is refused with the reason."""
    with pytest.raises(CarError, match=reason):
        walk(*nodes)


def test_small_trees() -> None:
    """Subtrees come in order: the left one, then each entry and the subtree after it."""
    assert walk(node()) == []
    assert walk(node(left=cid_of(LEAF)), LEAF) == [B]
    assert walk(node(entry(A, right=cid_of(LEAF)), entry("c", shared=6)), LEAF) == [A, B, C]


def test_cycles_end() -> None:
    """A tree that contains itself, which only blocks of false CIDs can, is refused rather than walked for ever."""
    root = cid_of(b"root")
    for cyclic, reason in [(node(left=root), "deeper"), (node(entry(A, right=root)), "comes after")]:
        with pytest.raises(CarError, match=reason):
            list(walk_mst(root, {root: cyclic}))


def test_deep_trees_end() -> None:
    """A chain of nodes longer than any hash can call for is refused."""
    nodes = [LEAF]
    for _ in range(128):
        nodes.insert(0, node(left=cid_of(nodes[0])))
    assert walk(*nodes) == [B]
    nodes.insert(0, node(left=cid_of(nodes[0])))
    with pytest.raises(CarError, match="deeper than 129"):
        walk(*nodes)


COLLECTIONS = ["a.b.c", "a.b.cc", "ac.foundation.dataset.record", "ac.foundation.datasets.x", "z.z.z"]
PATHS = st.dictionaries(st.sampled_from(COLLECTIONS), st.sets(st.integers(0, 99)).map(sorted)).map(
    lambda numbers: {f"{collection}/{n:02}" for collection, ns in numbers.items() for n in ns}
)
MANY_PATHS = {f"{collection}/{n}" for collection in COLLECTIONS for n in range(50)}


@given(PATHS, st.sets(st.sampled_from(["a.b.c/", "a.b.c", "ac.foundation.dataset.", "b", "z", ""])))
@example(MANY_PATHS, {"a.b.c/"})
@example(MANY_PATHS, {"ac.foundation.dataset.", "z.z.z/"})
def test_prefixes(paths: set[str], prefixes: set[str]) -> None:
    """With prefixes, the walk yields the keys that start with one, and needs no node that holds none of them."""
    records = {path: cid_of(path.encode()) for path in paths}
    root, nodes = tree(records)

    class Visited(dict[bytes, bytes]):
        def get(self, key: bytes, default: Any = None) -> Any:
            visited.add(key)
            return super().get(key, default)

    visited: set[bytes] = set()
    wanted = [path for path in sorted(paths) if path.startswith(tuple(prefixes))]
    assert list(walk_mst(root, Visited(nodes), prefixes=prefixes)) == [(path, records[path]) for path in wanted]
    # Whichever of the visited nodes is missing, the walk says so.
    for cid in visited:
        with pytest.raises(CarError, match="missing"):
            list(walk_mst(root, {c: n for c, n in nodes.items() if c != cid}, prefixes=prefixes))
    # A node is visited only if keys with the prefix could be below it.
    if "" in prefixes:
        assert visited == nodes.keys()
    if not prefixes:
        assert visited == set()


def test_foreign_subtrees_are_skipped() -> None:
    """Among thousands of records of other applications, the walk looks at the few nodes on the way to ours."""
    paths = [f"app.bsky.feed.{kind}/{n:05}" for kind in ("like", "post") for n in range(2000)]
    records = {path: cid_of(path.encode()) for path in [*paths, "ac.foundation.dataset.record/1"]}
    root, nodes = tree(records)
    looked_at = []

    class Recorded(Mapping[bytes, bytes]):
        def __getitem__(self, cid: bytes) -> bytes:
            looked_at.append(cid)
            return nodes[cid]

        def __iter__(self) -> Any:
            return iter(nodes)

        def __len__(self) -> int:
            return len(nodes)

    (only,) = walk_mst(root, Recorded(), prefixes=["ac.foundation.dataset."])
    assert only[0] == "ac.foundation.dataset.record/1"
    assert len(looked_at) < 20 < 500 < len(nodes)


# --- values ---

TEXT = st.text("aä\n😀", max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.binary(max_size=300) | st.just(VALUE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_values(value: Any) -> None:
    """Whatever DAG-CBOR can say is decoded as it was encoded."""
    assert decode(encode(value)) == value
    assert decode_record(encode(value)) == cbrrr.decode_dag_cbor(encode(value), atjson_mode=True)


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_any_block(block: bytes) -> None:
    """Bytes that are no DAG-CBOR raise CarError and nothing else."""
    for read in (decode, decode_record):
        try:
            read(block)
        except CarError:
            continue
        cbrrr.decode_dag_cbor(block)


@pytest.mark.parametrize("value", [[1], "text", None, VALUE, b"bytes"])
def test_records_are_maps(value: Any) -> None:
    """A record that is not a map is refused."""
    with pytest.raises(CarError, match="not a map"):
        decode_record(encode(value))


def test_deep_records() -> None:
    """A record is read 128 containers deep and refused beyond."""
    value: Any = 1
    for _ in range(127):
        value = [value]
    assert decode_record(encode({"a": value}))
    with pytest.raises(CarError, match="nested deeper than 128"):
        decode_record(encode({"a": [value]}))


def test_records_of_too_many_items() -> None:
    """What readers downstream take seconds for is refused."""
    assert decode_record(encode({"a": [{}] * 49_000}))
    with pytest.raises(CarError, match="more than 50000 items"):
        decode_record(encode({"a": [{}] * 50_000}))


@pytest.mark.parametrize("read", [decode, decode_record])
@pytest.mark.parametrize("size", [30_000, 2_000_000])
def test_containers_that_claim_too_much(read: Any, size: int) -> None:
    """Nested arrays that each claim the rest of the block are refused before memory is set aside for them."""
    bomb = bytearray(b"\xa1\x61a")
    while (rest := size - len(bomb) - 5) > 2**16 + 8:
        bomb += b"\x9a" + struct.pack(">I", rest - 8)
    while (rest := size - len(bomb) - 3) > 300:
        bomb += b"\x99" + struct.pack(">H", min(rest - 8, 65_535))
    with pytest.raises(CarError, match=r"items are to follow|more than 50000 items"):
        read(bytes(bomb) + bytes(size - len(bomb)))
