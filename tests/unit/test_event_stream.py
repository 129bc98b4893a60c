"""Frames of the event stream, byte by byte, and how many are kept for whom."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

import cbrrr
import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata.lexicon import Lexicons, load_lexicons
from atdata.nsid import PREFIX
from atdata_appview import event_stream, frames
from atdata_appview.changes import Change, ShownChange, ShownChanges
from atdata_appview.errors import RateLimitExceeded
from atdata_appview.event_stream import EventStream
from atdata_appview.store import Store

NSID = PREFIX + "subscribeChanges"
LABEL = PREFIX + "label"
DID = "did:plc:" + "a" * 24
AT = datetime(2026, 11, 22, 10, 30, 0, 250_000, UTC)
CID = "bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"
RECORD = {"$type": LABEL, "name": "é", "n": -1, "link": {"$link": CID}, "raw": {"$bytes": "AAE"}}


def shown(seq: int = 7, **more: Any) -> ShownChange:
    place = {"did": DID, "collection": LABEL, "rkey": "x", "kind": "label", "cid": CID}
    return ShownChange(**{"seq": seq, "at": AT, "action": "create", **place, "json": json.dumps(RECORD), **more})


def account(status: str) -> ShownChange:
    return ShownChange(9, AT, "account", DID, status=status)


@pytest.mark.parametrize(
    ("frame", "octets"),
    [
        (
            frames.message("#info", {"name": "OutdatedCursor"}),
            "a2 6174 65 23696e666f 626f70 01 | a1 64 6e616d65 6e 4f75746461746564437572736f72",
        ),
        (
            frames.error("FutureCursor", "no"),
            "a1 626f70 20 | a2 65 6572726f72 6c 467574757265437572736f72 67 6d657373616765 62 6e6f",
        ),
        # Keys by their length and then by their bytes; bytes and a link in the place of their JSON forms.
        (
            frames.message("#x", {"r": {"b": {"$bytes": "AAE"}, "aa": {"$link": CID}, "a": -1}}),
            "a2 6174 62 2378 626f70 01 | a1 6172 a3 6161 20 6162 42 0001 62 6161 d82a 5825 00"
            "01711220 65062a5a5a00fc16d73c6944237ccbc15b1c4a7234489336891d091741a239d0",
        ),
    ],
)
def test_vectors(frame: bytes, octets: str) -> None:
    """A header and a body, each in canonical DAG-CBOR, one after the other."""
    assert frame == bytes.fromhex(octets.replace("|", ""))


def test_a_record() -> None:
    """Everything that a copy needs, the record in the form in which its repository has it."""
    header, body = libipld.decode_dag_cbor_multi(frames.change(shown(verified=True)))
    assert header == {"op": 1, "t": "#record"}
    record = body.pop("record")
    link = libipld.decode_dag_cbor(cbrrr.encode_dag_cbor(cbrrr.CID.decode(CID)))
    assert record == {**RECORD, "link": link, "raw": b"\0\1"}
    assert body == {
        "seq": 7,
        "time": "2026-11-22T10:30:00.250Z",
        "did": DID,
        "uri": f"at://{DID}/{LABEL}/x",
        "collection": LABEL,
        "rkey": "x",
        "kind": "label",
        "action": "create",
        "cid": CID,
        "verified": True,
    }


CHANGES = [
    shown(),
    shown(action="update", verified=True),
    shown(kind=None, collection=PREFIX + "novelty"),
    shown(action="delete", json=""),
    account("active"),
    account("takendown"),
    # Not from a repository, where neither is possible.
    shown(json='{"$type": "x", "n": 1.5}'),
    shown(json='{"$type": "x", "link": {"$link": "nowhere"}}'),
]


@pytest.mark.parametrize("change", CHANGES)
def test_messages_are_what_the_lexicon_says(change: ShownChange) -> None:
    """Each is valid as the definition that its header names; what cannot be encoded is left out."""
    header, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(frames.change(change), atjson_mode=True)
    assert breaches(header["t"], body) == ()
    assert ("cid" in body) == (change.action in ("create", "update"))
    assert ("record" in body) == (change.json == json.dumps(RECORD))
    assert ("status" in body) == (change.status == "takendown")


def breaches(name: str, body: Any) -> tuple[Any, ...]:
    """What the definition of a message says against *body*."""
    return checker(name).validate_record("test.an.it", {"$type": "test.an.it", "it": body})


@cache
def checker(name: str) -> Lexicons:
    record = {"type": "object", "required": ["it"], "properties": {"it": {"type": "ref", "ref": NSID + name}}}
    wrapper = {"lexicon": 1, "id": "test.an.it", "defs": {"main": {"type": "record", "key": "any", "record": record}}}
    return Lexicons.from_documents([*load_lexicons().documents.values(), wrapper])


def test_the_lexicon_is_a_subscription() -> None:
    """Its messages and errors are known by their names."""
    (subscription,) = load_lexicons().subscriptions()
    assert subscription.nsid == NSID
    assert set(subscription.messages) == {"#record", "#account", "#info"}
    assert {"FutureCursor", "ConsumerTooSlow"} <= set(subscription.errors)


_texts = st.text(max_size=20).filter(lambda text: not text.startswith("$"))
_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(_texts, _values, max_size=5))
def test_any_record_keeps_its_bytes(record: dict[str, Any]) -> None:
    """Whatever order JSON had its members in, the record in a message is the block that the CID names."""
    _, body = libipld.decode_dag_cbor_multi(frames.change(shown(json=json.dumps(record))))
    assert libipld.encode_dag_cbor(body["record"]) == cbrrr.encode_dag_cbor(record)


# --- What is kept


class Shelf:
    """Changes with records of a size, in place of a database; *pruned* are gone."""

    def __init__(self, count: int, size: int = 100) -> None:
        self.count, self.size = count, size
        self.pruned = 0
        self.asked: list[int] = []

    async def shown_changes(self, after: int) -> ShownChanges:
        self.asked.append(after)
        seqs = range(max(after, self.pruned) + 1, min(self.count, max(after, self.pruned) + 5) + 1)
        # Every third is of a hidden account.
        rows = [shown(seq, json=json.dumps({"text": "x" * self.size})) for seq in seqs if seq % 3]
        return ShownChanges(rows, seqs[-1] if seqs else after, self.pruned)


def stream_of(shelf: Shelf, latest: int = 0) -> EventStream:
    return EventStream(cast(Store, shelf), latest)


def seqs(piece: event_stream.Piece) -> list[int]:
    return [libipld.decode_dag_cbor_multi(frame)[1]["seq"] for frame in piece.frames]


async def all_of(stream: EventStream, after: int, until: int) -> list[int]:
    found = []
    while after < until:
        piece = await stream.read(after)
        assert piece.end > after
        found += seqs(piece)
        after = piece.end
    return found


def news(seq: int) -> list[Change]:
    return [Change(seq, AT, "create", DID)]


async def test_what_is_new_is_read_once() -> None:
    """Ten read everything that is shown, in order; the database is asked as if it was one."""
    shelf = Shelf(20)
    stream = stream_of(shelf)
    with stream.subscriber("192.0.2.1"):
        reading = [asyncio.create_task(all_of(stream, 0, 20)) for _ in range(10)]
        await stream.take(news(11))
        await stream.take(news(20))
        for each in await asyncio.gather(*reading):
            assert each == [seq for seq in range(1, 21) if seq % 3]
    assert shelf.asked == [0, 5, 10, 15]


async def test_nothing_is_read_for_nobody() -> None:
    """Without subscribers the database is not asked; who comes then gets what came before from there."""
    shelf = Shelf(10)
    stream = stream_of(shelf)
    await stream.take(news(10))
    assert (shelf.asked, stream.end) == ([], 10)
    with stream.subscriber("192.0.2.1"):
        assert await all_of(stream, 2, 10) == [4, 5, 7, 8, 10]
        shelf.count = 20
        await stream.take(news(20))
        assert await all_of(stream, 10, 20) == [11, 13, 14, 16, 17, 19, 20]


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest frames are kept, as many as fit; who is behind them reads the same from the database."""
    monkeypatch.setattr(event_stream, "_RECENT", 10_000)
    shelf = Shelf(300, size=1000)
    stream = stream_of(shelf)
    with stream.subscriber("192.0.2.1"):
        await stream.take(news(300))
        assert 5000 < sum(map(len, stream._frames)) <= 10_000
        shelf.asked.clear()
        assert (await stream.read(299)).is_recent
        assert shelf.asked == []
        assert not (await stream.read(0)).is_recent
        assert await all_of(stream, 0, 300) == [seq for seq in range(1, 301) if seq % 3]


async def test_a_gap_is_told() -> None:
    """Who is before what was pruned is told once and goes on with the oldest; who asks for 0 asks for what there is."""
    shelf = Shelf(20)
    shelf.pruned = 10
    stream = stream_of(shelf, 20)
    first, *rest = (await stream.read(5)).frames
    assert libipld.decode_dag_cbor_multi(first)[0] == {"op": 1, "t": "#info"}
    assert libipld.decode_dag_cbor_multi(first)[1]["name"] == "OutdatedCursor"
    assert [libipld.decode_dag_cbor_multi(frame)[1]["seq"] for frame in rest] == [11, 13, 14]
    assert seqs(await stream.read(10)) == [11, 13, 14]
    assert seqs(await stream.read(0)) == [11, 13, 14]
    # All of it.
    shelf.pruned = 20
    piece = await stream.read(5)
    assert (len(piece.frames), piece.end) == (1, 20)


async def test_subscribers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many from one address, a network of IPv6, and so many altogether."""
    monkeypatch.setattr(event_stream, "MAX_OF_ADDRESS", 2)
    monkeypatch.setattr(event_stream, "MAX_SUBSCRIBERS", 3)
    stream = stream_of(Shelf(0))
    with stream.subscriber("2001:db8::1"):
        with stream.subscriber("2001:db8::2"), pytest.raises(RateLimitExceeded, match="your address"):
            stream.subscriber("2001:db8::3").__enter__()
        with stream.subscriber("192.0.2.1"), stream.subscriber("192.0.2.2"):
            assert stream.subscribers == 3
            with pytest.raises(RateLimitExceeded, match="try again"):
                stream.subscriber("192.0.2.3").__enter__()
        with stream.subscriber("2001:db8::3"):
            pass
    assert stream.subscribers == 0
    assert not stream._subscribers
