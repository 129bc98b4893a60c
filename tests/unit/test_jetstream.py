"""Jetstream's messages: what they say, what is wrong with them, and what they change."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from frames import DATASET, DID, Repo, block, dataset, frame, multikey, rev
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jetstream import account, commit, message

from atdata.atmosphere.records import Reading
from atdata.errors import ConfigError
from atdata.syntax import tid_at
from atdata_indexer import events
from atdata_indexer.changes import Repository, fold
from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    Event,
    Frame,
    IdentityChanged,
    Mention,
    RecordDeleted,
    RecordWritten,
    Rejected,
    Scope,
)
from atdata_indexer.jetstream import host_of, parse, parse_any, subscription_url, time_of

NOW = datetime(2026, 11, 22, tzinfo=UTC)
AT = int(NOW.timestamp()) * 1_000_000
OTHER = "did:plc:" + "b" * 24
SCOPE = Scope(("ac.foundation.dataset.",), {DID}, tid_at(NOW))
PATH = f"{DATASET}/k"


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("jetstream2.us-east.bsky.network", "wss://jetstream2.us-east.bsky.network/subscribe?"),
        ("wss://jetstream.example/subscribe", "wss://jetstream.example/subscribe?"),
        ("https://jetstream.example", "wss://jetstream.example/subscribe?"),
        ("ws://localhost:6008", "ws://localhost:6008/subscribe?"),
    ],
)
def test_subscriptions(server: str, url: str) -> None:
    """Whatever way the host is given, only the collections of ours are asked for."""
    wanted = "wantedCollections=ac.foundation.dataset.*&wantedCollections=science.alt.dataset.*"
    assert subscription_url(server, ("ac.foundation.dataset.", "science.alt.dataset.")) == url + wanted
    assert host_of(server) == url.split("//")[1].rstrip("?")


@pytest.mark.parametrize("server", ["", "ftp://host", "wss://host:port", "wss://host?cursor=1"])
def test_what_is_no_host(server: str) -> None:
    """A setting that names no host is refused with an example of one."""
    with pytest.raises(ConfigError, match="jetstream2"):
        subscription_url(server, ())


def test_a_record_written() -> None:
    """A message of a commit is a mention of one record, read as the firehose's would be."""
    (event,) = parse(commit(("create", PATH, dataset("Owls")), 7, at=AT), SCOPE).events
    assert isinstance(event, Mention)
    assert (event.did, event.rev) == (DID, rev(7))
    assert isinstance(event.op, RecordWritten)
    assert (event.op.collection, event.op.rkey, orjson.loads(event.op.json)) == (DATASET, "k", dataset("Owls"))
    assert event.op.reading.problems == ()


def test_a_record_deleted() -> None:
    """A deletion names the place, and nothing that was there."""
    frame = parse(commit(("delete", PATH, None), 7, at=AT), SCOPE)
    assert frame == Frame(AT, None, (Mention(DID, rev(7), RecordDeleted(DATASET, "k")),))


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (message("identity", {"did": DID, "handle": "a.test", "seq": 1}, at=AT), IdentityChanged(DID)),
        (account(True, at=AT), AccountChanged(DID, AT, "active")),
        (account(False, at=AT, status="takendown"), AccountChanged(DID, AT, "takendown")),
        (account(False, at=AT), AccountChanged(DID, AT, "inactive")),
        (message("identity", at=AT, did=OTHER), None),
        (account(False, at=AT, did=OTHER), None),
        (commit(("create", "app.bsky.feed.post/k", {"text": "hi"}), 7, at=AT), None),
    ],
)
def test_what_concerns_us(data: bytes, event: Event | None) -> None:
    """Accounts and identities that we follow, whatever the server was asked for; each message moves the cursor."""
    assert parse(data, SCOPE) == Frame(AT, None, () if event is None else (event,))


BAD: list[tuple[bytes, str]] = [
    (b"", "not-json"),
    (b"\xff", "not-json"),
    (b"[" * 100_000, "not-json"),
    (b'{"did": "' + b"x" * 6_000_000 + b'"}', "frame-too-large"),
    (b"[]", "bad-message"),
    (b"null", "bad-message"),
    (b"{}", "bad-field"),
    (message("commit", at=-1), "bad-field"),
    (message("commit", at=2**60), "bad-field"),
    (message("commit", at=True), "bad-field"),
    (message("identity", at=AT + 1_000), "future-time"),
    (message("identity", at=AT, did="did:x"), "bad-field"),
    (message("identity", at=AT, did="did:plc:" + "a" * 5000), "bad-field"),
    (message("sync", at=AT), "unknown-type"),
    (message("account", at=AT), "bad-field"),
    (message("account", {"active": "yes"}, at=AT), "bad-field"),
    (account(False, at=AT, status="<b>"), "bad-account"),
]


@pytest.mark.parametrize(("data", "reason"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_read(data: bytes, reason: str) -> None:
    """What is no message of Jetstream's is set aside for a reason, and tells nothing of any repository."""
    (event,) = parse(data, SCOPE).events
    assert isinstance(event, Rejected)
    assert event.reason == reason


BAD_COMMITS: list[tuple[dict[str, Any], str]] = [
    ({"collection": None}, "bad-field"),
    ({"collection": "ac.foundation.dataset.x y"}, "bad-commit"),
    ({"rkey": ".."}, "bad-commit"),
    ({"rkey": "a/b"}, "bad-commit"),
    ({"rkey": None}, "bad-field"),
    ({"rev": "1"}, "bad-field"),
    ({"rev": "zzzzzzzzzzzzz"}, "bad-field"),
    ({"rev": tid_at(datetime(2027, 1, 1, tzinfo=UTC))}, "future-rev"),
    ({"operation": "upsert"}, "bad-commit"),
    ({"operation": ["create"]}, "bad-commit"),
    ({"cid": None}, "bad-field"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_COMMITS)
def test_a_commit_that_cannot_be_read(changes: dict[str, Any], reason: str) -> None:
    """Its repository did something, and its host can tell what: it is to be read."""
    rejected, desynced = parse(commit(("create", PATH, dataset()), 7, at=AT, **changes), SCOPE).events
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.did) == (reason, DID)
    assert isinstance(desynced, Desynced)
    assert desynced.did == DID


def test_a_strangers_commit_that_cannot_be_read() -> None:
    """Of a repository that is not followed, it counts only when it names a collection of ours."""
    ours = commit(("create", PATH, dataset()), 7, at=AT, did=OTHER, rev="1")
    assert [type(event) for event in parse(ours, SCOPE).events] == [Rejected, Desynced]
    whose = commit(("create", PATH, dataset()), 7, at=AT, did=OTHER, collection=None)
    assert [type(event) for event in parse(whose, SCOPE).events] == [Rejected]


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"cid": "bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, "cid-mismatch"),
    ({"cid": "no CID \x00"}, "cid-mismatch"),
    ({"record": dataset("forged")}, "cid-mismatch"),
    ({"record": {"x": 1.5}}, "bad-record"),
    ({"record": {"x": 2**64}}, "bad-record"),
    ({"record": {"x": {"$link": "no CID"}}}, "bad-record"),
    ({"record": {"x": {"$bytes": "?"}}}, "bad-record"),
    ({"record": {"x": {"$bytes": "AA", "y": 1}}}, "bad-record"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_RECORDS)
def test_a_record_that_is_not_what_it_is_called(changes: dict[str, Any], reason: str) -> None:
    """It is set aside, and counts as gone until its host proves what is there."""
    gone, rejected = parse(commit(("update", PATH, dataset()), 7, at=AT, **changes), SCOPE).events
    assert gone == Mention(DID, rev(7), RecordDeleted(DATASET, "k"))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.did) == (reason, DID)


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"x": "a\x00b"}, "nul-character"),
        ({"x": "y" * 1_000_001}, "record-too-large"),
        ({"x": _deep(200)}, "bad-record"),
        ({"x": [0] * 60_000}, "bad-record"),
        ({"$bytes": "AA"}, "bad-record"),
        (7, "bad-record"),
        (None, "bad-record"),
    ],
    ids=range(7),
)
def test_a_record_that_cannot_be_kept(record: Any, reason: str) -> None:
    """The limits are those of the firehose."""
    data = commit(("create", PATH, block(record)), 7, at=AT, record=record)
    gone, rejected = parse(data, SCOPE).events
    assert gone == Mention(DID, rev(7), RecordDeleted(DATASET, "k"))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXT
    | st.just({"$link": "bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"})
    | st.just({"$bytes": "AAE"})
    | st.just({"$bytes": "AAE="}),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(TEXT.filter(lambda t: t[:1] != "$"), values, max_size=4)
    ),
    max_leaves=20,
)
RECORD = st.dictionaries(TEXT.filter(lambda t: t[:1] != "$"), VALUE, max_size=5)


@given(RECORD)
@example({"$type": "blob", "ref": {"$link": "bafkreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, "size": 0})
@example({"é": "\U0001f389", "e\u0301": "\u2028"})
def test_both_sources_say_the_same(record: dict[str, Any]) -> None:
    """A record is the same, byte for byte, whether it came as JSON or in a commit's blocks."""
    (mention,) = parse(commit(("create", PATH, record), 1, at=AT), SCOPE).events
    (proven,) = events.parse(Repo().commit(1, [("create", PATH, record)]), SCOPE).events
    assert isinstance(mention, Mention)
    assert isinstance(proven, Commit)
    assert (mention.op,) == proven.ops


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=10), values, max_size=4),
    max_leaves=20,
)


@given(st.data())
@settings(max_examples=300)
def test_nothing_makes_it_raise(data: st.DataObject) -> None:
    """A message with anything anywhere is read or rejected, and moves nothing but its own repository."""
    body = json.loads(commit(("create", PATH, dataset()), 7, at=AT))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([body, body["commit"] if isinstance(body.get("commit"), dict) else body]))
        key = data.draw(st.sampled_from([*place, "account"]))
        place[key] = data.draw(JSON)
    frame = parse(json.dumps(body).encode("utf-8", "surrogatepass"), SCOPE)
    assert frame.seq is None or frame.seq <= AT
    for event in frame.events:
        assert getattr(event, "did", None) in (None, body["did"])


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_rejected(noise: bytes, has_brace: bool) -> None:
    """Bytes of any kind, kept or just come, do not make the parsers raise."""
    data = b"{" + noise if has_brace else noise
    assert all(isinstance(event, Rejected) for event in parse(data, SCOPE).events)
    parse_any(data, SCOPE)


def test_what_was_kept_is_read_by_what_it_is() -> None:
    """Frames and messages that waited together are told apart."""
    assert parse_any(commit(("delete", PATH, None), 7, at=AT), SCOPE).seq == AT
    assert parse_any(Repo().commit(8), SCOPE).seq == 8
    assert parse_any(frame("#identity", {"seq": 9, "did": DID}), SCOPE).events == (IdentityChanged(DID),)


def test_numbers_are_times() -> None:
    """Microseconds since 1970."""
    assert time_of(AT) == NOW


# What they change.

KEY = (DID, DATASET, "k")


def mention(n: int, name: str | None = "x", rkey: str = "k") -> Mention:
    op = RecordWritten(DATASET, rkey, f"cid-{name}", b"{}", Reading("dataset", None)) if name else None
    return Mention(DID, rev(n), op or RecordDeleted(DATASET, rkey))


HELD = {DID: Repository(rev(5), "data-5", key=multikey(DID))}


def test_a_mention_is_applied_without_a_proof() -> None:
    """The record stands there unproven, to be asked for, and of the repository's tree nothing is known any more."""
    changes = fold([mention(7)], HELD, backfill=True)
    (written,) = changes.records.values()
    assert written is not None
    assert (written.rev, written.commit, written.key) == (rev(7), None, None)
    assert (changes.mentioned, changes.commits) == ({KEY: rev(7)}, 1)
    assert changes.repositories == {DID: replace(HELD[DID], rev=rev(7), data=None)}
    changes = fold([mention(7), mention(8, None)], HELD, backfill=True)
    assert (changes.records, changes.mentioned) == ({KEY: None}, {KEY: rev(8)})


def test_mentions_of_one_commit_belong_together() -> None:
    """All that have one rev count, also when another batch brings the rest."""
    changes = fold([mention(7, rkey="a"), mention(7, rkey="b")], HELD, backfill=True)
    assert (len(changes.records), changes.commits, changes.replayed) == (2, 1, 0)
    again = fold([mention(7, rkey="c")], changes.repositories, backfill=True)
    assert (len(again.records), again.commits, again.replayed) == (1, 0, 0)


def test_old_mentions_are_replays() -> None:
    """What is older than what is held changes nothing; neither does what is of a rev that is held whole."""
    changes = fold([mention(4), mention(5)], HELD, backfill=True)
    assert (changes.records, changes.mentioned, changes.repositories, changes.replayed) == ({}, {}, {}, 2)


@pytest.mark.parametrize("backfill", [True, False])
def test_a_mention_of_a_repository_out_of_step_waits(backfill: bool) -> None:
    """Until it was read."""
    changes = fold([mention(7)], {DID: replace(HELD[DID], desynced="gap")}, backfill=backfill)
    assert (changes.records, changes.waiting) == ({}, [0])


def test_a_mention_of_an_unknown_repository() -> None:
    """Nobody says whether it is its first commit: it is read whole, where that is wanted."""
    changes = fold([mention(7), mention(8)], {}, backfill=True)
    assert (changes.records, changes.waiting) == ({}, [0, 1])
    assert changes.repositories[DID].desynced is not None
    changes = fold([mention(7)], {}, backfill=False)
    assert (len(changes.records), changes.repositories) == (1, {DID: Repository(rev(7))})


def test_the_firehose_does_not_build_on_mentions() -> None:
    """A commit that follows one which was only mentioned has its repository read, as its tree is not known."""
    repo = Repo()
    (first,) = events.parse(repo.commit(1, [("create", PATH, dataset())]), SCOPE).events
    held = fold([first], {DID: Repository(key=multikey(DID))}, backfill=True).repositories
    repo.commit(2, [("create", f"{DATASET}/b", dataset())])
    held = fold([mention(2, rkey="b")], held, backfill=True).repositories
    assert held[DID].rev == rev(2)
    (third,) = events.parse(repo.commit(3, [("delete", PATH, None)]), SCOPE).events
    changes = fold([third], held, backfill=True)
    assert (changes.waiting, changes.records) == ([0], {})
    assert "another tree" in (changes.repositories[DID].desynced or "")
