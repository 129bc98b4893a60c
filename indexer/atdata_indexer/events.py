"""Turn firehose frames into events. No sockets, no SQL, no clock.

Specifications: https://atproto.com/specs/event-stream, https://atproto.com/specs/sync and the lexicon
``com.atproto.sync.subscribeRepos``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import cbrrr
import libipld
import orjson

from atdata import syntax
from atdata.atmosphere.records import Reading, read
from atdata_indexer import car
from atdata_indexer.verify import Op

#: Limits of the specification, in bytes and operations.
MAX_FRAME: Final = 5_000_000
MAX_BLOCKS: Final = 2_000_000
MAX_OPS: Final = 200
MAX_RECORD: Final = 1_000_000

# Up to here, whatever its arrays claim to hold, decoding a frame takes milliseconds. Most frames are smaller.
_SMALL_FRAME: Final = 8192
# Of ours: as JSON, a control character takes six bytes, and every operation of a commit may name the same record.
_MAX_JSON: Final = 2_000_000
_MAX_COMMIT_JSON: Final = 8_000_000

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
class Proof:
    """What a commit brings to prove itself by: the signed block, and of the tree what its operations touched."""

    commit: memoryview
    data: bytes
    prev_data: bytes | None
    ops: tuple[Op, ...]
    blocks: Mapping[bytes, memoryview]


@dataclass(frozen=True, slots=True)
class Commit:
    """A repository moved on to ``rev``. ``ops`` has the records in scope only, and may be empty.

    ``data`` and ``cid`` are the CIDs of its tree and of the signed block. Without a ``proof`` it was proven before.
    """

    did: str
    rev: str
    since: str | None
    data: str
    cid: str
    ops: tuple[RecordWritten | RecordDeleted, ...]
    proof: Proof | None


@dataclass(frozen=True, slots=True)
class Mention:
    """A source that brings no proof says that a commit did this to a record."""

    did: str
    rev: str
    op: RecordWritten | RecordDeleted


@dataclass(frozen=True, slots=True)
class Desynced:
    """A repository changed, and the stream does not spell out how: ``#sync``, a commit too big or not to be read."""

    did: str
    rev: str | None
    reason: str
    data: str | None = None
    commit: memoryview | None = None  # the signed block that says so


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


Event = Commit | Mention | Desynced | AccountChanged | IdentityChanged | RelayInfo | RelayError | Rejected


class Frame(NamedTuple):
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
        return rejected(None, None, "frame-too-large", f"{len(frame)} bytes, the limit is {MAX_FRAME}")
    try:
        if len(frame) > _SMALL_FRAME:
            car.check_containers(frame, values=2)
        parts = libipld.decode_dag_cbor_multi(frame)
    except (ValueError, RecursionError) as e:
        return rejected(None, None, "not-cbor", str(e))
    if len(parts) != 2 or not isinstance(parts[0], dict) or not isinstance(parts[1], dict):
        return rejected(None, None, "bad-frame", "a frame is a header and a body, both maps")
    header, body = parts
    op = header.get("op")
    if op == -1:
        return Frame(None, None, (RelayError(_text(body.get("error")) or "Unknown", _text(body.get("message"))),))
    if op != 1:
        return rejected(None, None, "unknown-operation", f"header says op {show(op)}")
    seq, time = body.get("seq"), body.get("time")
    if type(seq) is not int or not 0 <= seq < 2**63:
        seq = None
    if type(time) is not str:
        time = None
    kind = header.get("t")
    if kind == "#commit":
        return _commit(seq, time, body, scope)
    try:
        match kind:
            case "#account":
                return _account(seq, time, body, scope)
            case "#identity":
                did = get_did(body, "did")
                return Frame(seq, time, (IdentityChanged(did),) if did in scope.tracked else ())
            case "#sync":
                return _sync(seq, time, body, scope)
            case "#info":
                return Frame(seq, time, (RelayInfo(_text(body.get("name")), _text(body.get("message"))),))
    except Malformed as bad:
        return rejected(seq, time, bad.reason, bad.detail, bad.did)
    return rejected(seq, time, "unknown-type", f"header says t {show(kind)}")


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
    if len(json) > _MAX_JSON:
        return Rejected("record-too-large", f"{where}: {len(json)} bytes of JSON, the limit is {_MAX_JSON}")
    if b"\\u0000" in json and _NUL.search(json):
        # The data model allows U+0000, Postgres does not.
        return Rejected("nul-character", f"{where}: a string contains U+0000, which cannot be stored")
    return RecordWritten(collection, rkey, cid, json, read(collection, record))


class RecordReader:
    """Reads the records of one commit or repository: what has the same CID once, and at most *limit* bytes of JSON."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._sizes: dict[tuple[str, str], int] = {}
        self._by_cid: dict[tuple[str, str], RecordWritten | Rejected] = {}

    def read(self, collection: str, rkey: str, cid: str, block: bytes | memoryview) -> RecordWritten | Rejected:
        """See `read_record`. Raises Malformed beyond the limit."""
        written = self._by_cid.get((collection, cid))
        if written is None:
            written = self._by_cid[collection, cid] = read_record(collection, rkey, cid, bytes(block))
        if isinstance(written, Rejected):
            return written
        # Read again, a record takes no more room.
        self._size += len(written.json) - self._sizes.get((collection, rkey), 0)
        self._sizes[collection, rkey] = len(written.json)
        if self._size > self._limit:
            raise Malformed("too-much-json", f"its records are more than {self._limit} bytes of JSON")
        return written if written.rkey == rkey else replace(written, rkey=rkey)


def json_size(event: Event) -> int:
    """The bytes of JSON that *event* brings."""
    ops = event.ops if isinstance(event, Commit) else (event.op,) if isinstance(event, Mention) else ()
    return sum(len(op.json) for op in ops if isinstance(op, RecordWritten))


class Malformed(Exception):
    """Some part of an event is not what it must be."""

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
        tracked, ours, ops = isinstance(did, str) and did in scope.tracked, [], None
    if not isinstance(ops, list) or not isinstance(did, str):
        bad = Malformed("bad-commit", "repo or ops are missing or malformed")
        return unreadable(seq, time, bad, did if tracked else None)
    if not tracked and not ours:
        return Frame(seq, time)
    try:
        return Frame(seq, time, _commit_in_scope(body, ours, scope))
    except Malformed as bad:
        return unreadable(seq, time, bad, did)


def unreadable(seq: int | None, time: str | None, bad: Malformed, did: str | None) -> Frame:
    """What a repository of ours did, and we cannot tell: its host can."""
    if did is None or len(did) > _MAX_DID or not syntax.is_did(did):
        return rejected(seq, time, bad.reason, bad.detail)
    refused = Rejected(bad.reason, bad.detail[:2000], did)
    return Frame(seq, time, (refused, Desynced(did, None, f"an event could not be read: {bad.detail[:500]}")))


def _commit_in_scope(body: dict[str, Any], ours: list[dict[str, Any]], scope: Scope) -> tuple[Event, ...]:
    did = get_did(body, "repo")
    rev = get_rev(body, scope)
    if get_field(body, "seq", int) < 0:
        raise Malformed("bad-commit", "seq is negative")
    since = body.get("since")
    if since is not None and (not isinstance(since, str) or not syntax.is_tid(since)):
        raise Malformed("bad-commit", "since is not a TID")
    ops = get_field(body, "ops", list)
    if len(ops) > MAX_OPS:
        raise Malformed("bad-commit", f"{len(ops)} operations, the limit is {MAX_OPS}")
    if body.get("tooBig"):
        return (Desynced(did, rev, "a commit was too big for the stream"),)
    packed = get_field(body, "blocks", bytes)
    if len(packed) > MAX_BLOCKS:
        raise Malformed("blocks-too-large", f"{len(packed)} bytes of blocks, the limit is {MAX_BLOCKS}")
    commit_cid = get_field(body, "commit", bytes)
    try:
        _, blocks = car.split(packed, verify=True)
    except car.CarError as e:
        raise Malformed("bad-car", str(e)) from None
    signed, data = _commit_block(blocks.get(commit_cid), did, rev)
    prev_data = body.get("prevData")
    if prev_data is not None and not isinstance(prev_data, bytes):
        raise Malformed("bad-commit", "prevData is not a link")
    proof = Proof(signed, data, prev_data, tuple(_op(op) for op in ops), blocks)

    events: list[Event] = []
    applied: list[RecordWritten | RecordDeleted] = []
    reader = RecordReader(_MAX_COMMIT_JSON)
    # A path may occur several times in a commit, and only the block of its last state is there.
    for op in {op["path"]: op for op in ours}.values():
        collection, rkey, action = _operation(op)
        if action == "delete":
            applied.append(RecordDeleted(collection, rkey))
            continue
        cid = get_field(op, "cid", bytes)
        block = blocks.get(cid)
        written = (
            Rejected("missing-block", f"{collection}/{rkey}: its block is not in the commit", did)
            if block is None
            else reader.read(collection, rkey, car.cid_text(cid), block)
        )
        if isinstance(written, Rejected):
            events.append(Rejected(written.reason, written.detail, did))
            # What we hold under this key, if anything, is no longer what the repository says.
            applied.append(RecordDeleted(collection, rkey))
        else:
            applied.append(written)
    commit = Commit(did, rev, since, car.cid_text(data), car.cid_text(commit_cid), tuple(applied), proof)
    return (commit, *events)


def _commit_block(block: memoryview | None, did: str, rev: str) -> tuple[memoryview, bytes]:
    """The signed block and its tree's CID. It must agree with the frame that brought it."""
    if block is None:
        raise Malformed("missing-block", "the commit block is not among its blocks")
    try:
        commit = car.decode(block)
        signed_did, signed_rev, data = commit["did"], commit["rev"], commit["data"]
    except (ValueError, TypeError, KeyError) as e:
        raise Malformed("bad-commit", f"the commit block cannot be read: {e}") from None
    if (signed_did, signed_rev) != (did, rev) or not isinstance(data, cbrrr.CID):
        raise Malformed("bad-commit", "the signed commit names another repository or rev than the frame, or no tree")
    return block, data.cid_bytes


def _op(op: Any) -> Op:
    """An operation as far as the proof needs it, in scope or not."""
    try:
        path, cid, prev = op["path"], op.get("cid"), op.get("prev")
    except (TypeError, KeyError, AttributeError):
        raise Malformed("bad-commit", "an operation is malformed") from None
    if not isinstance(path, str) or not isinstance(cid, bytes | None) or not isinstance(prev, bytes | None):
        raise Malformed("bad-commit", "an operation is malformed")
    # `prev` as it is: of several operations on one path in a commit, hosts give it where it is of use to them.
    match op.get("action"):
        case "create" | "update":
            return Op(path, cid, prev)
        case "delete":
            return Op(path, None, prev)
        case other:
            raise Malformed("bad-commit", f"operation {show(other)} on {path!r:.200} is not create, update or delete")


def _operation(op: dict[str, Any]) -> tuple[str, str, str]:
    path = op["path"]
    collection, _, rkey = path.partition("/")
    if not syntax.is_nsid(collection) or not syntax.is_record_key(rkey):
        raise Malformed("bad-commit", f"operation on {path!r:.200}, which is no collection/record key")
    return collection, rkey, op["action"]


def _account(seq: int | None, time: str | None, body: dict[str, Any], scope: Scope) -> Frame:
    did = get_did(body, "did")
    status = get_status(body, did)
    if seq is None:
        raise Malformed("bad-account", "seq is missing", did)
    return Frame(seq, time, (AccountChanged(did, seq, status),) if did in scope.tracked else ())


def _sync(seq: int | None, time: str | None, body: dict[str, Any], scope: Scope) -> Frame:
    did = get_did(body, "did")
    if did not in scope.tracked:
        return Frame(seq, time)
    try:
        rev = get_rev(body, scope)
        roots, blocks = car.split(get_field(body, "blocks", bytes), verify=True)
        signed, data = _commit_block(blocks.get(roots[0]) if roots else None, did, rev)
    except car.CarError as e:
        return unreadable(seq, time, Malformed("bad-car", str(e)), did)
    except Malformed as bad:
        return unreadable(seq, time, bad, did)
    return Frame(seq, time, (Desynced(did, rev, "a #sync event", car.cid_text(data), signed),))


# What the parsers of events share.

_T = TypeVar("_T")


def get_field(body: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """A field that must be there. Raises Malformed, as those below."""
    value = body.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = "is missing" if value is None else f"is {type(value).__name__}, not {kind.__name__}"
        raise Malformed("bad-field", f"{name} {problem}")
    return value


def get_did(body: Mapping[str, Any], name: str) -> str:
    """A field that is a DID."""
    did = get_field(body, name, str)
    if len(did) > _MAX_DID or not syntax.is_did(did):
        raise Malformed("bad-field", f"{name} {did!r:.80} is not a DID")
    return did


def get_rev(body: Mapping[str, Any], scope: Scope) -> str:
    """The rev, of a time that has come."""
    rev = get_field(body, "rev", str)
    if not syntax.is_tid(rev):
        raise Malformed("bad-field", f"rev {rev!r:.80} is not a TID")
    if rev > scope.latest_rev:
        raise Malformed("future-rev", f"rev {rev} is of a time that is yet to come")
    return rev


def get_status(body: Mapping[str, Any], did: str) -> str:
    """The state of an account."""
    active = get_field(body, "active", bool)
    status = body.get("status") or "inactive"
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise Malformed("bad-account", f"status {show(status)} is not a word", did)
    return "active" if active else status


def _text(value: object) -> str:
    """A relay's words, fit for a log and a terminal."""
    return printable(value[:1000]) if isinstance(value, str) else ""


def printable(text: str) -> str:
    """*text* without control characters: a terminal might obey them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def show(value: object) -> str:
    """*value* in a message."""
    # The repr of anything deeper may be endless, or not come at all.
    return f"{value!r:.80}" if isinstance(value, str | int) else type(value).__name__


def rejected(seq: int | None, time: str | None, reason: str, detail: str, did: str | None = None) -> Frame:
    """A frame of which nothing else is known."""
    return Frame(seq, time, (Rejected(reason, detail[:2000], did),))
