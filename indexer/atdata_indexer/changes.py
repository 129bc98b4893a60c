"""What a batch of events changes, given what is held already: duplicates, replays and gaps are decided here. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    Event,
    IdentityChanged,
    RecordDeleted,
    RecordWritten,
)

#: A record's place: DID, collection, record key.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Repository:
    """What is held of a repository. ``desynced`` says why it needs a resync, None if it is in step.

    ``records_rev`` is the rev of the last commit that touched records of ours: only that can outdate a snapshot.
    """

    rev: str | None = None
    data: str | None = None
    records_rev: str | None = None
    account_seq: int | None = None
    desynced: str | None = None


@dataclass(slots=True)
class Changes:
    """The sum of a batch: last state of every record and repository that it touched.

    ``records`` maps a key to the record and the rev that wrote it, or to None where it was deleted.
    """

    records: dict[Key, tuple[RecordWritten, str] | None] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    accounts: dict[str, AccountChanged] = field(default_factory=dict)
    identities: set[str] = field(default_factory=set)
    commits: int = 0
    replayed: int = 0  # commits and account events that were known already


def fold(events: Iterable[Event], held: Mapping[str, Repository], *, backfill: bool) -> Changes:
    """The changes that *events*, in order, make to the *held* repositories.

    A commit is applied if its rev is newer than the one held (revs are TIDs: they sort as text), so that everything may
    arrive twice. One that does not continue the rev held, or starts in the middle of a history (with *backfill*), is
    applied too, and its repository marked for a resync, which brings what lies between.
    """
    changes = Changes()
    for event in events:
        match event:
            case Commit():
                _commit(changes, event, held, backfill)
            case Desynced():
                known = _known(changes, held, event.did)
                if known.rev is not None and event.rev <= known.rev:
                    changes.replayed += 1
                elif event.data is not None and event.data == known.data:
                    changes.repositories[event.did] = replace(known, rev=event.rev)
                else:
                    # The rev stays: the resync will bring it.
                    changes.repositories[event.did] = replace(known, desynced=event.reason)
            case AccountChanged():
                known = _known(changes, held, event.did)
                if known.account_seq is not None and event.seq <= known.account_seq:
                    changes.replayed += 1
                else:
                    changes.accounts[event.did] = event
                    changes.repositories[event.did] = replace(known, account_seq=event.seq)
            case IdentityChanged():
                changes.identities.add(event.did)
            case _:
                pass
    return changes


def _known(changes: Changes, held: Mapping[str, Repository], did: str) -> Repository:
    return changes.repositories.get(did) or held.get(did) or Repository()


def _commit(changes: Changes, commit: Commit, held: Mapping[str, Repository], backfill: bool) -> None:
    known = _known(changes, held, commit.did)
    if known.rev is not None and commit.rev <= known.rev:
        changes.replayed += 1
        return
    desynced = known.desynced
    if desynced is None:
        if known.rev is not None and commit.since != known.rev:
            desynced = f"commit {commit.rev} follows {commit.since}, not {known.rev}"
        elif known.rev is None and commit.since is not None and backfill:
            desynced = "what came before its first commit here is unknown"
    changes.commits += 1
    records_rev = commit.rev if commit.ops else known.records_rev
    changes.repositories[commit.did] = replace(
        known, rev=commit.rev, data=commit.data, records_rev=records_rev, desynced=desynced
    )
    for op in commit.ops:
        key = (commit.did, op.collection, op.rkey)
        changes.records[key] = None if isinstance(op, RecordDeleted) else (op, commit.rev)
