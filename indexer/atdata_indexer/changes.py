"""What a batch of events changes, given what is held: replays, gaps, and commits that do not hold. Pure.

A commit counts when it continues what is held, and is proven: by the signature, and by its tree, which must be the one
held with the operations applied. Otherwise its repository is out of step: whatever it does from then on waits until it
was read whole. Specification: https://atproto.com/specs/sync

What a source mentions without a proof is applied on trust, and listed, so that its host can be asked to prove it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from atdata_indexer import verify
from atdata_indexer.car import cid_text
from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    Event,
    IdentityChanged,
    Mention,
    RecordDeleted,
    RecordWritten,
    Rejected,
)

#: Why a repository is out of step when reading its DID document is enough to go on.
KEY_NEEDED: Final = "its signing key is to be read"

_EMPTY: Final = cid_text(verify.EMPTY_TREE)

#: A record's place: DID, collection, record key.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Repository:
    """What is held of a repository. ``desynced`` says why it is out of step, None if it is not.

    ``data`` is None where its tree at ``rev`` is not known: nothing of it is held, or what is was only mentioned.

    ``wanted`` is a rev that it is known to have reached. ``key`` is its signing key, ``key_is_fresh`` whether that was
    read after the events came, so that reading it again is no use.
    """

    rev: str | None = None
    data: str | None = None
    desynced: str | None = None
    status: str = "active"
    account_seq: int | None = None
    key: str | None = None
    key_is_fresh: bool = False
    wanted: str | None = None


class Written(NamedTuple):
    """A record, the rev of the commit that brought it, and what proves it: that commit's CID and the key, if any."""

    record: RecordWritten
    rev: str
    commit: str | None
    key: str | None


@dataclass(slots=True)
class Changes:
    """The sum of a batch: last state of every record and repository that it touched. None is a record deleted.

    ``mentioned`` are those records whose last state nobody proved, with the revs it was mentioned at. ``waiting`` and
    ``rejected`` name events by their position in the batch.
    """

    records: dict[Key, Written | None] = field(default_factory=dict)
    mentioned: dict[Key, str] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    accounts: dict[str, AccountChanged] = field(default_factory=dict)
    identities: set[str] = field(default_factory=set)
    suspects: set[str] = field(default_factory=set)  # of whom something was rejected: their hosts know what they did
    waiting: list[int] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    commits: int = 0
    replayed: int = 0  # commits and account events that were known already


def fold(events: Iterable[Event], held: Mapping[str, Repository], *, backfill: bool) -> Changes:
    """The changes that *events*, in order, make to the *held* repositories.

    A commit is applied if its rev is newer than the one held (revs are TIDs: they sort as text), so that everything may
    arrive twice. Without *backfill* gaps are accepted: what came before nobody will read.
    """
    changes = Changes()
    for position, event in enumerate(events):
        match event:
            case Commit():
                _commit(changes, position, event, _known(changes, held, event.did), backfill)
            case Mention():
                _mention(changes, position, event, _known(changes, held, event.did), backfill)
            case Desynced():
                _desynced(changes, position, event, _known(changes, held, event.did))
            case AccountChanged():
                _account(changes, event, _known(changes, held, event.did), backfill)
            case IdentityChanged():
                changes.identities.add(event.did)
            case Rejected():
                changes.rejected.append((position, event))
            case _:
                pass
    return changes


def _known(changes: Changes, held: Mapping[str, Repository], did: str) -> Repository:
    return changes.repositories.get(did) or held.get(did) or Repository()


def _is_replay(rev: str | None, known: Repository) -> bool:
    return rev is not None and known.rev is not None and rev <= known.rev


def _commit(changes: Changes, position: int, commit: Commit, known: Repository, backfill: bool) -> None:
    did = commit.did
    if _is_replay(commit.rev, known):
        changes.replayed += 1
        return
    if known.desynced is not None:
        changes.waiting.append(position)
        return
    try:
        _check(commit, known, backfill)
    except _OutOfStep as e:
        changes.repositories[did] = _out_of_step(known, str(e))
        changes.waiting.append(position)
        return
    except verify.NotProven as e:
        _reject(changes, position, Rejected(e.reason, f"commit {commit.rev}: {e}"[:2000], did))
        if e.reason != "bad-signature":
            # It is the account's own word: what it did, its host knows. Of a forged one, nothing follows.
            changes.repositories[did] = _out_of_step(known, f"commit {commit.rev} does not hold: {e}", commit.rev)
        return
    changes.commits += 1
    changes.repositories[did] = replace(known, rev=commit.rev, data=commit.data)
    for op in commit.ops:
        key = (did, op.collection, op.rkey)
        changes.records[key] = None if isinstance(op, RecordDeleted) else Written(op, commit.rev, commit.cid, known.key)
        changes.mentioned.pop(key, None)


def _mention(changes: Changes, position: int, event: Mention, known: Repository, backfill: bool) -> None:
    # What one commit did comes as several events of one rev; where all that it did is held, they are replays.
    if known.rev is not None and (event.rev < known.rev or (event.rev == known.rev and known.data is not None)):
        changes.replayed += 1
        return
    if known.desynced is not None:
        changes.waiting.append(position)
        return
    if backfill and known.rev is None:
        changes.repositories[event.did] = _out_of_step(known, "what came before its first commit here is unknown")
        changes.waiting.append(position)
        return
    changes.commits += event.rev != known.rev
    changes.repositories[event.did] = replace(known, rev=event.rev, data=None)
    key = (event.did, event.op.collection, event.op.rkey)
    changes.records[key] = None if isinstance(event.op, RecordDeleted) else Written(event.op, event.rev, None, None)
    changes.mentioned[key] = event.rev


def _out_of_step(known: Repository, reason: str, rev: str | None = None) -> Repository:
    """*known*, to be read for *reason*, at *rev* or later. Any other reason is stronger than a missing key."""
    if known.desynced in (None, KEY_NEEDED):
        known = replace(known, desynced=reason[:500])
    return known if rev is None else replace(known, wanted=max(rev, known.wanted or ""))


def _reject(changes: Changes, position: int, rejected: Rejected) -> None:
    changes.rejected.append((position, rejected))
    if rejected.did is not None:
        changes.suspects.add(rejected.did)


class _OutOfStep(Exception):
    """Something is missing before a commit can be judged."""


def _check(commit: Commit, known: Repository, backfill: bool) -> None:
    """Whether *commit* continues what is *known*, and is proven. Raises _OutOfStep and NotProven."""
    if backfill and known.rev is None and commit.since is not None:
        raise _OutOfStep("what came before its first commit here is unknown")
    if backfill and known.rev is not None and commit.since != known.rev:
        raise _OutOfStep(f"commit {commit.rev} follows {commit.since}, not {known.rev}")
    proof = commit.proof
    if proof is None:
        return
    _check_signature(proof.commit, known)
    before = verify.tree_before(proof.data, proof.ops, proof.blocks)
    if proof.prev_data is not None and before != proof.prev_data:
        raise verify.NotProven("bad-tree", "without its operations, its tree is not the one that it names")
    if backfill and cid_text(before) != (known.data or _EMPTY):
        raise _OutOfStep(f"commit {commit.rev} changes another tree than the one at {known.rev}")


def _check_signature(commit: memoryview, known: Repository) -> None:
    if known.key is None:
        raise _OutOfStep(KEY_NEEDED)
    try:
        verify.check_signature(commit, known.key)
    except verify.NotProven:
        if known.key_is_fresh:
            raise
        # The account may have changed its key, which its DID document tells.
        raise _OutOfStep(KEY_NEEDED) from None


def _desynced(changes: Changes, position: int, event: Desynced, known: Repository) -> None:
    if _is_replay(event.rev, known):
        changes.replayed += 1
        return
    if known.desynced is not None:
        changes.waiting.append(position)
        return
    if event.commit is not None and event.data is not None and event.data == known.data:
        try:
            _check_signature(event.commit, known)
        except _OutOfStep as e:
            changes.repositories[event.did] = _out_of_step(known, str(e))
            changes.waiting.append(position)
        except verify.NotProven as e:
            _reject(changes, position, Rejected(e.reason, f"#sync {event.rev}: {e}"[:2000], event.did))
        else:
            changes.repositories[event.did] = replace(known, rev=event.rev)
        return
    # The rev stays: reading the repository will bring it.
    changes.repositories[event.did] = _out_of_step(known, event.reason, event.rev)


def _account(changes: Changes, event: AccountChanged, known: Repository, backfill: bool) -> None:
    if known.account_seq is not None and event.seq <= known.account_seq:
        changes.replayed += 1
        return
    if backfill and event.status == "active" != known.status:
        known = _out_of_step(known, "its account became active again")
    changes.accounts[event.did] = event
    changes.repositories[event.did] = replace(known, account_seq=event.seq, status=event.status)
