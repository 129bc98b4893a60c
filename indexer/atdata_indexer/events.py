"""Turn firehose frames into events. No sockets, no SQL, no clock.

Specifications: https://atproto.com/specs/event-stream, https://atproto.com/specs/sync and the lexicon
``com.atproto.sync.subscribeRepos``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import cbrrr
import libipld
import orjson

from atdata import syntax
from atdata.atmosphere.records import Reading, read
from atdata_indexer import car

#: Limits of the specification, in bytes and operations.
MAX_FRAME: Final = 5_000_000
MAX_BLOCKS: Final = 2_000_000
MAX_OPS: Final = 200
MAX_RECORD: Final = 1_000_000

# A primary key of DID, collection and record key must fit a B-tree page. Real DIDs have 32 characters.
_MAX_DID: Final = 512

# A real NUL, not the six characters `\u0000` behind an escaped backslash.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

_STATUS = re.compile(r"[a-zA-Z-]{1,40}")


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """A record created or updated: as ``json`` in the atproto JSON form, verbatim, and as far as it could be read."""

    collection: str
    rkey: str
    cid: str
    json: bytes
    reading: Reading


@dataclass(frozen=True, slots=True)
class RecordDeleted:
    """A record deleted, or replaced by one that had to be rejected."""

    collection: str
    rkey: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A repository moved on to ``rev``. ``ops`` has the records in scope only, and may be empty."""

    did: str
    rev: str
    since: str | None
    data: str | None
    ops: tuple[RecordWritten | RecordDeleted, ...]


@dataclass(frozen=True, slots=True)
class Desynced:
    """A repository changed in a way that the stream does not spell out: ``#sync``, or a commit too big to carry."""

    did: str
    rev: str
    data: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class AccountChanged:
    """An account's state at its host. ``status`` is ``active`` or why it is not."""

    did: str
    seq: int
    status: str


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """A DID document or handle may have changed: what was cached of it is stale."""

    did: str


@dataclass(frozen=True, slots=True)
class RelayInfo:
    """A word from the relay, such as ``OutdatedCursor``."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class RelayError:
    """An error frame, such as ``FutureCursor`` or ``ConsumerTooSlow``. The relay closes the stream after it."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """What could not be understood: to be kept with its bytes, and counted under ``reason``."""

    reason: str
    detail: str
    did: str | None = None


Event = Commit | Desynced | AccountChanged | IdentityChanged | RelayInfo | RelayError | Rejected


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's place in the stream and its events in scope, mostly none. ``seq`` is None where the frame has none."""

    seq: int | None
    time: str | None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """What concerns us: collections by prefix (with the trailing dot), and repositories that we follow already.

    Revs are times: one beyond ``latest_rev``, some minutes from now, would make all that comes until then look old.
    """

    prefixes: tuple[str, ...]
    tracked: Collection[str]
    latest_rev: str = "zzzzzzzzzzzzz"


def parse(frame: bytes, scope: Scope) -> Frame:
    """The events of *frame* that are in *scope*. Never raises: what cannot be read becomes `Rejected`.

    >>> parse(b"no CBOR", Scope(("ac.foundation.dataset.",), ())).events[0].reason
    'not-cbor'
    """
    if len(frame) > MAX_FRAME:
        return _rejected(None, None, "frame-too-large", f"{len(frame)} bytes, the limit is {MAX_FRAME}")
    try:
        parts = libipld.decode_dag_cbor_multi(frame)
    except (ValueError, RecursionError) as e:
        return _rejected(None, None, "not-cbor", str(e))
    if len(parts) != 2 or not isinstance(parts[0], dict) or not isinstance(parts[1], dict):
        return _rejected(None, None, "bad-frame", "a frame is a header and a body, both maps")
    header, body = parts
    op = header.get("op")
    if op == -1:
        return Frame(None, None, (RelayError(_text(body.get("error")) or "Unknown", _text(body.get("message"))),))
    if op != 1:
        return _rejected(None, None, "unknown-operation", f"header says op {_show(op)}")
    seq, time = body.get("seq"), body.get("time")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**63:
        seq = None
    if not isinstance(time, str):
        time = None
    kind = header.get("t")
    if kind == "#commit":
        return _commit(seq, time, body, scope)
    try:
        match kind:
            case "#account":
                return _account(seq, time, body, scope)
            case "#identity":
                did = _did(body, "did")
                return Frame(seq, time, (IdentityChanged(did),) if did in scope.tracked else ())
            case "#sync":
                return _sync(seq, time, body, scope)
            case "#info":
                return Frame(seq, time, (RelayInfo(_text(body.get("name")), _text(body.get("message"))),))
    except _Bad as bad:
        return _rejected(seq, time, bad.reason, bad.detail, bad.did)
    return _rejected(seq, time, "unknown-type", f"header says t {_show(kind)}")


def read_record(collection: str, rkey: str, cid: str, block: bytes) -> RecordWritten | Rejected:
    """The record in *block*, checked against *cid* by its caller, or why it cannot be kept as one."""
    where = f"{collection}/{rkey}"
    if len(block) > MAX_RECORD:
        return Rejected("record-too-large", f"{where}: {len(block)} bytes, the limit is {MAX_RECORD}")
    try:
        record = car.decode_record(block)
        json = orjson.dumps(record)  # refuses integers beyond 64 bits
    except (TypeError, ValueError) as e:
        return Rejected("bad-record", f"{where}: {e}")
    if b"\\u0000" in json and _NUL.search(json):
        # The data model allows U+0000, Postgres does not.
        return Rejected("nul-character", f"{where}: a string contains U+0000, which cannot be stored")
    return RecordWritten(collection, rkey, cid, json, read(collection, record))


class _Bad(Exception):
    def __init__(self, reason: str, detail: str, did: str | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.did = reason, detail, did


def _commit(seq: int | None, time: str | None, body: dict[str, Any], scope: Scope) -> Frame:
    """A commit frame. First the question that nearly every frame answers with no: does it concern us?"""
    ops = body.get("ops")
    did = body.get("repo")
    try:
        tracked = did in scope.tracked
        ours = [op for op in ops if op["path"].startswith(scope.prefixes)] if ops else []
    except (TypeError, KeyError, AttributeError):
        return _rejected(seq, time, "bad-commit", "repo or ops are missing or malformed", _text(did) or None)
    if not tracked and not ours:
        if isinstance(ops, list) and isinstance(did, str):
            return Frame(seq, time)
        return _rejected(seq, time, "bad-commit", "repo or ops are missing or malformed", _text(did) or None)
    try:
        return Frame(seq, time, _commit_in_scope(body, ours, scope))
    except _Bad as bad:
        return _rejected(seq, time, bad.reason, bad.detail, bad.did or _text(did) or None)


def _commit_in_scope(body: dict[str, Any], ours: list[dict[str, Any]], scope: Scope) -> tuple[Event, ...]:
    did = _did(body, "repo")
    rev = _rev(body, scope)
    if _field(body, "seq", int) < 0:
        raise _Bad("bad-commit", "seq is negative")
    since = body.get("since")
    if since is not None and not isinstance(since, str):
        raise _Bad("bad-commit", "since is not a string")
    ops = _field(body, "ops", list)
    if len(ops) > MAX_OPS:
        raise _Bad("bad-commit", f"{len(ops)} operations, the limit is {MAX_OPS}")
    if body.get("tooBig"):
        return (Desynced(did, rev, None, "commit too big for the stream"),)
    packed = _field(body, "blocks", bytes)
    if len(packed) > MAX_BLOCKS:
        raise _Bad("blocks-too-large", f"{len(packed)} bytes of blocks, the limit is {MAX_BLOCKS}")
    commit_cid = _field(body, "commit", bytes)
    try:
        _, blocks = car.split(packed, verify=True)
    except car.CarError as e:
        raise _Bad("bad-car", str(e)) from None
    commit = _commit_block(blocks.get(commit_cid), did, rev)

    events: list[Event] = []
    applied: list[RecordWritten | RecordDeleted] = []
    # A path may occur several times in a commit, and only the block of its last state is there.
    for op in {op["path"]: op for op in ours}.values():
        collection, rkey, action = _operation(op)
        if action == "delete":
            applied.append(RecordDeleted(collection, rkey))
            continue
        cid = _field(op, "cid", bytes)
        block = blocks.get(cid)
        written = (
            Rejected("missing-block", f"{collection}/{rkey}: its block is not in the commit", did)
            if block is None
            else read_record(collection, rkey, car.cid_text(cid), bytes(block))
        )
        if isinstance(written, Rejected):
            events.append(Rejected(written.reason, written.detail, did))
            # What we hold under this key, if anything, is no longer what the repository says.
            applied.append(RecordDeleted(collection, rkey))
        else:
            applied.append(written)
    events.insert(0, Commit(did, rev, since, commit, tuple(applied)))
    return tuple(events)


def _commit_block(block: memoryview | None, did: str, rev: str) -> str:
    """The MST root's CID from a signed commit, which must agree with the frame that brought it."""
    if block is None:
        raise _Bad("missing-block", "the commit block is not among its blocks")
    try:
        commit = car.decode(block)
        signed_did, signed_rev, data = commit["did"], commit["rev"], commit["data"]
    except (ValueError, TypeError, KeyError) as e:
        raise _Bad("bad-commit", f"the commit block cannot be read: {e}") from None
    if (signed_did, signed_rev) != (did, rev) or not isinstance(data, cbrrr.CID):
        raise _Bad("bad-commit", "the signed commit names another repository or rev than the frame, or no tree")
    return data.encode()


def _operation(op: dict[str, Any]) -> tuple[str, str, str]:
    path = op["path"]
    collection, _, rkey = path.partition("/")
    if not syntax.is_nsid(collection) or not syntax.is_record_key(rkey):
        raise _Bad("bad-commit", f"operation on {path!r:.200}, which is no collection/record key")
    action = op.get("action")
    if action not in ("create", "update", "delete"):
        raise _Bad("bad-commit", f"operation {_show(action)} on {path!r:.200} is not create, update or delete")
    return collection, rkey, action


def _account(seq: int | None, time: str | None, body: dict[str, Any], scope: Scope) -> Frame:
    did = _did(body, "did")
    active = _field(body, "active", bool)
    status = body.get("status") or "inactive"
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise _Bad("bad-account", f"status {_show(status)} is not a word", did)
    if seq is None:
        raise _Bad("bad-account", "seq is missing", did)
    if did not in scope.tracked:
        return Frame(seq, time)
    return Frame(seq, time, (AccountChanged(did, seq, "active" if active else status),))


def _sync(seq: int | None, time: str | None, body: dict[str, Any], scope: Scope) -> Frame:
    did = _did(body, "did")
    rev = _rev(body, scope)
    if did not in scope.tracked:
        return Frame(seq, time)
    try:
        roots, blocks = car.split(_field(body, "blocks", bytes), verify=True)
    except car.CarError as e:
        raise _Bad("bad-car", str(e), did) from None
    data = _commit_block(blocks.get(roots[0]) if roots else None, did, rev)
    return Frame(seq, time, (Desynced(did, rev, data, "#sync event"),))


_T = TypeVar("_T")


def _field(body: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = body.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = "is missing" if value is None else f"is {type(value).__name__}, not {kind.__name__}"
        raise _Bad("bad-field", f"{name} {problem}")
    return value


def _did(body: Mapping[str, Any], name: str) -> str:
    did = _field(body, name, str)
    if len(did) > _MAX_DID or not syntax.is_did(did):
        raise _Bad("bad-field", f"{name} {did!r:.80} is not a DID")
    return did


def _rev(body: Mapping[str, Any], scope: Scope) -> str:
    rev = _field(body, "rev", str)
    if not syntax.is_tid(rev):
        raise _Bad("bad-field", f"rev {rev!r:.80} is not a TID")
    if rev > scope.latest_rev:
        raise _Bad("future-rev", f"rev {rev} is of a time that is yet to come")
    return rev


def _text(value: object) -> str:
    """A relay's words, fit for a log and a terminal."""
    return printable(value[:1000]) if isinstance(value, str) else ""


def printable(text: str) -> str:
    """*text* without control characters: a terminal might obey them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _show(value: object) -> str:
    # The repr of anything deeper may be endless, or not come at all.
    return f"{value!r:.80}" if isinstance(value, str | int) else type(value).__name__


def _rejected(seq: int | None, time: str | None, reason: str, detail: str, did: str | None = None) -> Frame:
    return Frame(seq, time, (Rejected(reason, detail[:2000], did),))
