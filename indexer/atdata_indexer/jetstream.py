"""Turn Jetstream's messages into events. No sockets, no SQL, no clock.

Jetstream tells in JSON what the firehose proves in CBOR: of a commit, a message for each record in the collections that
were asked for, of accounts and identities everything. What is left out are signatures and trees, `#sync` events, and
commits that were too big. So its word on records is a `Mention`, until the record's host has proven it.

The messages are those of the endpoint ``/subscribe``, see https://github.com/bluesky-social/jetstream
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import cbrrr
import orjson

from atdata import syntax
from atdata.errors import ConfigError
from atdata_indexer import car, events, stream
from atdata_indexer.events import (
    MAX_FRAME,
    AccountChanged,
    Frame,
    IdentityChanged,
    Malformed,
    Mention,
    RecordDeleted,
    RecordWritten,
    Rejected,
    Scope,
    get_did,
    get_field,
    get_rev,
    get_status,
    rejected,
    show,
    unreadable,
)

__all__ = ["host_of", "parse", "parse_any", "subscription_url", "time_of"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME: Final = 2**53  # microseconds: until the year 2255


def subscription_url(server: str, prefixes: Collection[str]) -> str:
    """The URL at which *server* sends what concerns collections that start with *prefixes*. Raises ConfigError.

    >>> subscription_url("jetstream2.us-east.bsky.network", ["ac.foundation.dataset."])
    'wss://jetstream2.us-east.bsky.network/subscribe?wantedCollections=ac.foundation.dataset.*'
    """
    try:
        parts = urlsplit(stream.subscription_url(server))
    except ConfigError:
        raise ConfigError(
            f"Jetstream {server!r} is no host: give one like wss://jetstream2.us-east.bsky.network"
        ) from None
    query = urlencode([("wantedCollections", f"{prefix}*") for prefix in prefixes], safe="*")
    return f"{parts.scheme}://{parts.netloc}/subscribe?{query}"


def host_of(server: str) -> str:
    """What the cursor of *server* is kept by: not its host alone, where a relay may be that counts otherwise.

    >>> host_of("wss://jetstream2.us-east.bsky.network")
    'jetstream2.us-east.bsky.network/subscribe'
    """
    parts = urlsplit(subscription_url(server, ()))
    return f"{parts.netloc}{parts.path}"


def time_of(seq: int) -> datetime:
    """When Jetstream saw the event *seq*: its numbers are microseconds since 1970.

    >>> time_of(1_767_225_600_000_000)
    datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    return _EPOCH + timedelta(microseconds=seq)


def parse(message: bytes, scope: Scope) -> Frame:
    """The events of *message* that are in *scope*. Never raises: what cannot be read becomes `Rejected`.

    >>> parse(b"no JSON", Scope(("ac.foundation.dataset.",), ())).events[0].reason
    'not-json'
    """
    if len(message) > MAX_FRAME:
        return rejected(None, None, "frame-too-large", f"{len(message)} bytes, the limit is {MAX_FRAME}")
    try:
        body = orjson.loads(message)
    except ValueError as e:
        return rejected(None, None, "not-json", str(e))
    if not isinstance(body, dict):
        return rejected(None, None, "bad-message", f"a message is an object, not {show(body)}")
    seq = None
    try:
        seq = _seq(body, scope)
        kind, did = body.get("kind"), get_did(body, "did")
        match kind:
            case "commit":
                return _commit(seq, did, body, scope)
            case "identity":
                return Frame(seq, None, (IdentityChanged(did),) if did in scope.tracked else ())
            case "account":
                status = get_status(get_field(body, "account", dict), did)
                return Frame(seq, None, (AccountChanged(did, seq, status),) if did in scope.tracked else ())
    except Malformed as bad:
        return rejected(seq, None, bad.reason, bad.detail, bad.did)
    return rejected(seq, None, "unknown-type", f"the message's kind is {show(kind)}")


def parse_any(data: bytes, scope: Scope) -> Frame:
    """`parse`, or the firehose's: of what was kept, whichever it came from. A frame does not begin with a brace.

    Never of what comes in: a relay might save itself the proof.
    """
    return parse(data, scope) if data.startswith(b"{") else events.parse(data, scope)


def _seq(body: dict[str, Any], scope: Scope) -> int:
    seq = get_field(body, "time_us", int)
    if not 0 <= seq < _MAX_TIME:
        raise Malformed("bad-field", f"time_us {show(seq)} is no time")
    if syntax.tid_at(time_of(seq)) > scope.latest_rev:
        raise Malformed("future-time", f"time_us {seq} is a time that is yet to come")
    return seq


def _commit(seq: int, did: str, body: dict[str, Any], scope: Scope) -> Frame:
    is_ours = did in scope.tracked
    try:
        commit = get_field(body, "commit", dict)
        collection = get_field(commit, "collection", str)
        is_ours = collection.startswith(scope.prefixes)
        if not is_ours:
            return Frame(seq, None)
        rkey = get_field(commit, "rkey", str)
        if not syntax.is_nsid(collection) or not syntax.is_record_key(rkey):
            raise Malformed("bad-commit", f"{collection!r:.200}/{rkey!r:.200} is no collection and record key")
        rev = get_rev(commit, scope)
        written: RecordWritten | RecordDeleted | Rejected
        match commit.get("operation"):
            case "create" | "update":
                written = _record(collection, rkey, commit)
            case "delete":
                written = RecordDeleted(collection, rkey)
            case other:
                raise Malformed("bad-commit", f"operation {show(other)} is not create, update or delete")
    except Malformed as bad:
        return unreadable(seq, None, bad, did if is_ours else None)
    if isinstance(written, Rejected):
        # What we hold under this key, if anything, is no longer what the repository says; its host will tell.
        gone = Mention(did, rev, RecordDeleted(collection, rkey))
        return Frame(seq, None, (gone, Rejected(written.reason, written.detail, did)))
    return Frame(seq, None, (Mention(did, rev, written),))


def _record(collection: str, rkey: str, commit: dict[str, Any]) -> RecordWritten | Rejected:
    """The record, if it is the one with the CID that is named: there is one encoding of it, which can be hashed."""
    cid = get_field(commit, "cid", str)
    try:
        block = cbrrr.encode_dag_cbor(commit.get("record"), atjson_mode=True)
    except (ValueError, TypeError) as e:
        return Rejected("bad-record", f"{collection}/{rkey}: {e}")
    actual = car.cid_text(b"\x01\x71\x12\x20" + sha256(block).digest())
    if actual != cid:
        # A lie, or a record that its way through JSON has changed.
        return Rejected("cid-mismatch", f"{collection}/{rkey}: it is {actual}, not {cid!r:.80}")
    return events.read_record(collection, rkey, cid, block)
