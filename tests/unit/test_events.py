"""Frames to events: real frames, made ones, and everything that can be wrong with them."""

from __future__ import annotations

import random
import struct
from typing import Any

import libipld
import orjson
import pytest
import zstandard
from conformance import shared_folder
from frames import DATASET, DID, Repo, account, block, cid, commit, commit_body, dataset, frame, identity, rev
from hypothesis import given
from hypothesis import strategies as st

from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    Frame,
    IdentityChanged,
    RecordDeleted,
    RecordWritten,
    Rejected,
    RelayError,
    RelayInfo,
    Scope,
    parse,
)
from atdata_indexer.verify import Op

OURS = Scope(("ac.foundation.dataset.",), frozenset())
FOLLOWING = Scope(("ac.foundation.dataset.",), frozenset({DID}))
PATH = f"{DATASET}/3kzaaaaaaaaaa"


def test_a_commit_of_ours_becomes_its_records() -> None:
    """Creates and updates carry the record, its CID and its JSON; deletes the key; other collections are left out."""
    record = dataset()
    parsed = parse(
        commit(
            7,
            [
                ("create", PATH, record),
                ("delete", f"{DATASET}/gone", None),
                ("create", "app.bsky.feed.post/x", {"text": "hi"}),
            ],
            since=6,
        ),
        OURS,
    )
    (event,) = parsed.events
    assert isinstance(event, Commit)
    assert (parsed.seq, event.did, event.rev, event.since) == (7, DID, rev(7), rev(6))
    written, deleted = event.ops
    assert isinstance(written, RecordWritten)
    assert orjson.loads(written.json) == record
    assert written.reading.problems == ()
    assert written.cid == libipld.encode_cid(cid(block(record)))
    assert deleted == RecordDeleted(DATASET, "gone")


def test_links_and_bytes_keep_their_json_form() -> None:
    """A byte string stays a byte string, also one that looks like a CID; a link stays a link."""
    like_a_cid = {"$bytes": "AXESIOUt+g0T6u0tFjDOKGuaJF0TLdPwknupal57WiDirvsh"}
    link = {"$link": "bafyreihffx5a2e7k5uwrmmgofbvzujc5cmw5h4espouwuxt3liqoflx3ee"}
    record = dataset(metadata=like_a_cid, contentMetadata={"x": link})
    (event,) = parse(commit(1, [("create", PATH, record)]), OURS).events
    assert isinstance(event, Commit)
    assert isinstance(event.ops[0], RecordWritten)
    assert orjson.loads(event.ops[0].json) == record


def test_a_commit_that_concerns_nobody_is_nothing() -> None:
    """Neither one of other collections, nor one in a namespace that merely begins like ours."""
    assert parse(commit(9, [("create", "app.bsky.feed.post/x", {"text": "hi"})]), OURS) == Frame(
        9, "2026-11-22T00:00:00.000Z"
    )
    assert parse(commit(9, [("create", "ac.foundation.datasets.x/y", {})]), OURS).events == ()


def test_a_followed_repository_moves_on_with_every_commit() -> None:
    """A commit that touches nothing of ours still brings the new rev of a repository that we follow."""
    (event,) = parse(commit(9, [("create", "app.bsky.feed.post/x", {"text": "hi"})]), FOLLOWING).events
    assert isinstance(event, Commit)
    assert (event.rev, event.ops) == (rev(9), ())


def test_accounts_and_identities_of_followed_repositories() -> None:
    """Their states come through, those of strangers do not."""
    assert parse(account(3, active=False, status="takendown"), FOLLOWING).events == (
        AccountChanged(DID, 3, "takendown"),
    )
    assert parse(account(3, active=False), FOLLOWING).events == (AccountChanged(DID, 3, "inactive"),)
    assert parse(account(4, active=True), FOLLOWING).events == (AccountChanged(DID, 4, "active"),)
    assert parse(identity(5), FOLLOWING).events == (IdentityChanged(DID),)
    assert parse(account(3, active=False), OURS).events == ()
    assert parse(identity(5), OURS).events == ()


def test_sync_and_oversize_commits_ask_for_a_resync() -> None:
    """`#sync` and `tooBig` say that a repository changed without saying how."""
    (event,) = parse(Repo().sync(8), FOLLOWING).events
    empty = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
    assert isinstance(event, Desynced)
    assert (event.did, event.rev, event.data, event.reason) == (DID, rev(8), empty, "a #sync event")
    too_big = commit_body(9, [("create", PATH, dataset())]) | {"tooBig": True, "blocks": b""}
    (event,) = parse(frame("#commit", too_big), OURS).events
    assert isinstance(event, Desynced)


def test_what_a_proof_needs() -> None:
    """All operations of a commit, with what was there before, and the tree that it names as the one before."""
    body = commit_body(2, [("update", PATH, dataset()), ("delete", "app.bsky.feed.post/x", None)], since=1)
    (event,) = parse(frame("#commit", body), OURS).events
    assert isinstance(event, Commit)
    assert event.proof is not None
    assert event.proof.ops == (
        Op(PATH, cid(block(dataset())), cid(b"before")),
        Op("app.bsky.feed.post/x", None, cid(b"before")),
    )
    assert (event.proof.prev_data, event.cid) == (body["prevData"], libipld.encode_cid(body["commit"]))


def test_json_that_would_be_many_times_the_frame() -> None:
    """A record that grows beyond 2 MB as JSON is rejected; a commit beyond 8 MB asks for a resync."""
    one = block({"$type": DATASET, "x": "\x01" * 900_000})
    _, rejected = parse(commit(1, [("create", PATH, one)]), OURS).events
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "record-too-large"
    shared = block({"$type": DATASET, "x": "\x01" * 10_000})
    paths = [f"{DATASET}/{n}" for n in range(200)]
    rejected, desynced = parse(commit(1, [("create", path, shared) for path in paths]), OURS).events
    assert isinstance(rejected, Rejected)
    assert isinstance(desynced, Desynced)
    assert (rejected.reason, desynced.did) == ("too-much-json", DID)


def test_a_record_under_several_keys_is_read_once() -> None:
    """Operations that name one CID share what was read, each with its own record key."""
    (event,) = parse(commit(1, [("create", f"{DATASET}/{key}", dataset()) for key in "ab"]), OURS).events
    assert isinstance(event, Commit)
    first, second = event.ops
    assert isinstance(first, RecordWritten)
    assert isinstance(second, RecordWritten)
    assert (first.rkey, second.rkey) == ("a", "b")
    assert first.json is second.json


def test_what_is_no_did_is_not_taken_for_one() -> None:
    """A frame that cannot be read concerns nobody if what it calls a repository is no DID."""
    for repo in ("\x1b]0;owned\x07", "did:plc:" + "a" * 600):
        body = commit_body(1, [("create", PATH, dataset())]) | {"repo": repo}
        (rejected,) = parse(frame("#commit", body), OURS).events
        assert isinstance(rejected, Rejected)
        assert rejected.did is None


def test_words_of_the_relay() -> None:
    """Error and info frames are events of their own."""
    assert parse(frame("", {"error": "FutureCursor", "message": "no"}, op=-1), OURS).events == (
        RelayError("FutureCursor", "no"),
    )
    assert parse(frame("#info", {"name": "OutdatedCursor"}), OURS).events == (RelayInfo("OutdatedCursor", ""),)


def _without(name: str) -> bytes:
    body = commit_body(1, [("create", PATH, dataset())])
    del body[name]
    return frame("#commit", body)


def _with(**changes: Any) -> bytes:
    return frame("#commit", commit_body(1, [("create", PATH, dataset())]) | changes)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


_NESTED = b"\x81" * 100_000 + b"\x01"
_BAD_RECORDS = {
    "NUL": (dataset(name="a\x00b"), "nul-character"),
    "deep": (block({"name": "deep", "x": None}).replace(b"\xf6", b"\x81" * 600 + b"\x01"), "bad-record"),
    "a claim of four billion items": (block({"x": None}).replace(b"\xf6", b"\x9a\xff\xff\xff\xff"), "bad-record"),
    "no CBOR": (b"\xff\xff", "bad-record"),
    "a lone link": (b"\xd8\x2a\x58\x25\x00" + cid(b""), "bad-record"),
    "a number beyond 64 bits": (block({"x": None}).replace(b"\xf6", b"\x3b" + b"\xff" * 8), "bad-record"),
    "large": (dataset(description="x" * 1_000_001), "record-too-large"),
}
_BAD_FRAMES = {
    "no CBOR": (b"\xff\xfe not CBOR", "not-cbor"),
    "nothing": (b"", "bad-frame"),
    "text": (b"hello", "not-cbor"),
    "a header alone": (libipld.encode_dag_cbor({"op": 1, "t": "#commit"}), "bad-frame"),
    "cut short": (commit(1, [("create", PATH, dataset())])[:-40], "not-cbor"),
    "two numbers": (b"\x01\x02", "bad-frame"),
    "nested deeply": (_NESTED, "not-cbor"),
    "an unknown type": (frame("#surprise", {"seq": 1}), "unknown-type"),
    "a type nested deeply": (libipld.encode_dag_cbor({"op": 1, "t": _nested(900)}) + b"\xa0", "unknown-type"),
    "an operation nested deeply": (libipld.encode_dag_cbor({"op": _nested(900)}) + b"\xa0", "unknown-operation"),
    "an unknown operation": (frame("#commit", {}, op=7), "unknown-operation"),
    "six megabytes": (commit(1, []) + b"\x00" * 6_000_000, "frame-too-large"),
    "three megabytes of blocks": (_with(blocks=b"\x00" * 3_000_000), "blocks-too-large"),
    "no repo": (_without("repo"), "bad-commit"),
    "no ops": (_without("ops"), "bad-commit"),
    "no rev": (_without("rev"), "bad-field"),
    "no blocks": (_without("blocks"), "bad-field"),
    "no commit": (_without("commit"), "bad-field"),
    "ops is text": (_with(ops="create"), "bad-commit"),
    "ops is numbers": (_with(ops=[1, 2]), "bad-commit"),
    "repo is a number": (_with(repo=5), "bad-commit"),
    "repo is a list": (_with(repo=[]), "bad-commit"),
    "repo is no DID": (_with(repo="alice"), "bad-field"),
    "rev is no TID": (_with(rev="yesterday"), "bad-field"),
    "seq is text": (_with(seq="12"), "bad-field"),
    "since has a NUL": (_with(since="\x00"), "bad-commit"),
    "since is a number": (_with(since=3), "bad-commit"),
    "too many ops": (_with(ops=[{"action": "delete", "path": PATH, "cid": None}] * 201), "bad-commit"),
    "an unknown action": (_with(ops=[{"action": "bless", "path": PATH, "cid": None}]), "bad-commit"),
    "a path without a key": (
        _with(ops=[{"action": "delete", "path": "ac.foundation.dataset.x", "cid": None}]),
        "bad-commit",
    ),
    "blocks is no CAR": (_with(blocks=b"CAR"), "bad-car"),
    "another commit's rev": (_with(rev=rev(99)), "bad-commit"),
    "another repository's commit": (_with(repo="did:plc:" + "b" * 24), "bad-commit"),
}


@pytest.mark.parametrize(("data", "reason"), _BAD_FRAMES.values(), ids=_BAD_FRAMES)
def test_bad_frames_are_rejected_with_their_reason(data: bytes, reason: str) -> None:
    """Whatever is wrong with a frame is one `Rejected`, and says what; a repository that it names is to be read."""
    event, *desynced = parse(data, OURS).events
    assert all(isinstance(e, Desynced) and e.rev is None for e in desynced)
    assert isinstance(event, Rejected)
    assert event.reason == reason, event.detail


@pytest.mark.parametrize(("record", "reason"), _BAD_RECORDS.values(), ids=_BAD_RECORDS)
def test_a_bad_record_does_not_take_its_commit_along(record: Any, reason: str) -> None:
    """The others of the commit are kept; under the bad one's key there is nothing any more."""
    parsed = parse(commit(1, [("create", PATH, record), ("create", f"{DATASET}/good", dataset())]), OURS)
    event, rejected = parsed.events
    assert isinstance(event, Commit)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.did) == (reason, DID)
    assert event.ops[0] == RecordDeleted(DATASET, "3kzaaaaaaaaaa")
    assert isinstance(event.ops[1], RecordWritten)


def test_a_path_twice_in_a_commit() -> None:
    """Created and deleted in one commit, a record leaves no block behind: only its end counts."""
    body = commit_body(1, [("delete", PATH, None)])
    body["ops"].insert(0, {"action": "create", "path": PATH, "cid": cid(block(dataset()))})
    (event,) = parse(frame("#commit", body), OURS).events
    assert isinstance(event, Commit)
    assert event.ops == (RecordDeleted(DATASET, "3kzaaaaaaaaaa"),)


def test_a_rev_of_the_future() -> None:
    """A rev is a time; one far ahead would outlive every honest commit after it."""
    data = commit(5, [("create", PATH, dataset())])
    assert isinstance(parse(data, Scope(OURS.prefixes, (), rev(5))).events[0], Commit)
    event, _ = parse(data, Scope(OURS.prefixes, (), rev(4))).events
    assert isinstance(event, Rejected)
    assert event.reason == "future-rev"


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    r"""The six characters ``\u0000`` are fine in a text; only U+0000 is not."""
    (event,) = parse(commit(1, [("create", PATH, dataset(description="\\u0000 and \\\\u0000"))]), OURS).events
    assert isinstance(event, Commit)
    assert isinstance(event.ops[0], RecordWritten)


def test_a_block_that_is_not_what_its_cid_says() -> None:
    """A flipped bit in a record is found by its hash."""
    body = commit_body(1, [("create", PATH, dataset())])
    at = body["blocks"].index(b"Birdsong")
    body["blocks"] = body["blocks"][:at] + b"b" + body["blocks"][at + 1 :]
    event, desynced = parse(frame("#commit", body), OURS).events
    assert isinstance(desynced, Desynced)
    assert isinstance(event, Rejected)
    assert event.reason == "bad-car"


def test_the_real_relay_frames() -> None:
    """All 150 frames of the capture are understood; none is ours; seq runs without a hole."""
    packed = (shared_folder() / "conformance/relay-capture/frames.bin.zst").read_bytes()
    frames = _split(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    parsed = [parse(f, OURS) for f in frames]
    assert [p.seq for p in parsed] == list(range(31527015322, 31527015472))
    assert all(p.events == () for p in parsed)


def test_the_real_relay_frames_when_everything_is_ours() -> None:
    """With the scope wide open, every commit is read to its records, and nothing is rejected."""
    packed = (shared_folder() / "conformance/relay-capture/frames.bin.zst").read_bytes()
    frames = _split(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    events = [e for f in frames for e in parse(f, Scope(("",), _Everybody())).events]
    commits = [e for e in events if isinstance(e, Commit)]
    assert len(commits) == 148
    written = [op for e in commits for op in e.ops if isinstance(op, RecordWritten)]
    deleted = [op for e in commits for op in e.ops if isinstance(op, RecordDeleted)]
    assert (len(written), len(deleted)) == (146, 4)
    assert [type(e) for e in events if not isinstance(e, Commit)] == [IdentityChanged, AccountChanged]


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_no_bytes_raise(data: bytes, seed: int) -> None:
    """Neither noise nor a mutilated frame gets past `parse` as an exception."""
    assert isinstance(parse(data, FOLLOWING), Frame)
    mutilated = bytearray(commit(1, [("create", PATH, dataset())]))
    generator = random.Random(seed)
    for _ in range(3):
        mutilated[generator.randrange(len(mutilated))] = generator.randrange(256)
    del mutilated[generator.randrange(len(mutilated)) :]
    assert isinstance(parse(bytes(mutilated), FOLLOWING), Frame)


@pytest.mark.parametrize(
    "arrays",
    [
        b"".join(b"\x9a" + (900_000 - 5 * depth).to_bytes(4, "big") for depth in range(1, 100)),
        b"\x81" * 200,
        b"\x9a" + (900_000).to_bytes(4, "big"),
        b"\x00" + b"".join(b"\x9a" + (900_000 - 5 * depth).to_bytes(4, "big") for depth in range(1, 100)),
    ],
)
def test_claims_of_arrays_are_not_believed(arrays: bytes) -> None:
    """A frame whose arrays all claim what is left of it is refused before anything is allocated for them."""
    data = frame("#commit", {})[:-1] + b"\xa1\x61a" + arrays
    (refused,) = parse(data + b"\0" * 900_000, OURS).events
    assert isinstance(refused, Rejected)
    assert refused.reason == "not-cbor"
    assert any(said in refused.detail for said in ("are to follow", "nested deeper", "items in one", "follow its end"))


class _Everybody(frozenset[str]):
    def __contains__(self, item: object) -> bool:
        return True


def _split(data: bytes) -> list[bytes]:
    frames, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return frames
