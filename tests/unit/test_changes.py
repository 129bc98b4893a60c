"""What a batch changes: replays, gaps and commits that do not hold, decided without a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from frames import DATASET, DID, Repo, commit_body, dataset, frame, multikey, rev
from hypothesis import given
from hypothesis import strategies as st

from atdata.atmosphere.records import Reading
from atdata_indexer.changes import KEY_NEEDED, Repository, fold
from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    Event,
    IdentityChanged,
    RecordDeleted,
    RecordWritten,
    Rejected,
    Scope,
    parse,
)


def write(name: str = "x", rkey: str = "k") -> RecordWritten:
    return RecordWritten(DATASET, rkey, f"cid-{name}", b"{}", Reading("dataset", None))


def commit(n: int, *ops: RecordWritten | RecordDeleted, since: int | None = None) -> Commit:
    """A commit that was proven before."""
    return Commit(DID, rev(n), None if since is None else rev(since), f"data-{n}", f"commit-{n}", ops, None)


def event(frame: bytes) -> Event:
    (event,) = parse(frame, Scope(("ac.foundation.dataset.",), {DID})).events
    return event


KEY = (DID, DATASET, "k")


def test_the_last_of_several_writes_counts() -> None:
    """Create, update and delete of one record in one batch leave only what stands at the end."""
    changes = fold([commit(1, write("a")), commit(2, write("b"), since=1)], {}, backfill=True)
    record = changes.records[KEY]
    assert record is not None
    assert (record.record.cid, record.rev, record.commit) == ("cid-b", rev(2), "commit-2")
    changes = fold([commit(1, write("a")), commit(2, RecordDeleted(DATASET, "k"), since=1)], {}, backfill=True)
    assert changes.records == {KEY: None}


def test_what_was_applied_is_not_applied_again() -> None:
    """A commit at or before the rev held changes nothing and is counted as a replay."""
    held = {DID: Repository(rev(5), "data-5")}
    changes = fold([commit(5, write(), since=4), commit(4, write(), since=3)], held, backfill=True)
    assert (changes.records, changes.repositories, changes.replayed) == ({}, {}, 2)


def test_a_gap_marks_the_repository() -> None:
    """A commit that does not follow the one we hold waits, with all after it, and its repository is to be read."""
    held = {DID: Repository(rev(5), "data-5")}
    changes = fold([commit(9, write(), since=7), commit(10, write(), since=9)], held, backfill=True)
    assert (changes.records, changes.waiting) == ({}, [0, 1])
    assert changes.repositories[DID].desynced == f"commit {rev(9)} follows {rev(7)}, not {rev(5)}"
    assert fold([commit(6, since=5)], held, backfill=True).repositories[DID].desynced is None
    assert fold([commit(9, write(), since=7)], held, backfill=False).repositories[DID] == Repository(rev(9), "data-9")


def test_a_history_that_began_before_us() -> None:
    """With backfill, a repository first met in the middle of its history is read whole; a new one need not be."""
    assert fold([commit(3, write(), since=2)], {}, backfill=True).repositories[DID].desynced is not None
    assert fold([commit(3, write(), since=2)], {}, backfill=False).repositories[DID].desynced is None
    assert fold([commit(1, write())], {}, backfill=True).repositories[DID].desynced is None


def held_at(repo: Repo, seq: int, **more: object) -> dict[str, Repository]:
    """What is held after a first commit of *repo*."""
    changes = fold(
        [event(repo.commit(seq, [("create", f"{DATASET}/k", dataset())]))],
        {DID: Repository(key=multikey(DID))},
        backfill=True,
    )
    return {DID: replace(changes.repositories[DID], **more)}


def test_a_commit_that_holds() -> None:
    """Signed, continuing the tree held: its record is applied, with the commit and the key that prove it."""
    repo = Repo()
    held = held_at(repo, 1)
    body = repo.commit_body(2, [("update", f"{DATASET}/k", dataset("b")), ("create", "app.bsky.feed.like/x", {})])
    changes = fold([event(frame("#commit", body))], held, backfill=True)
    (written,) = changes.records.values()
    assert written is not None
    assert (written.rev, written.key) == (rev(2), multikey(DID))
    assert (changes.waiting, changes.rejected, changes.commits) == ([], [], 1)


def test_without_a_key_commits_wait() -> None:
    """A repository whose key is unknown is out of step for that alone."""
    changes = fold([event(Repo().commit(1, [("create", f"{DATASET}/k", dataset())]))], {}, backfill=True)
    assert (changes.records, changes.waiting, changes.repositories[DID].desynced) == ({}, [0], KEY_NEEDED)


def test_another_key_is_looked_for_once() -> None:
    """A signature that does not fit has the key read again; one that does not fit a fresh key is forged."""
    other = "did:plc:" + "b" * 24
    repo = Repo()
    held = held_at(repo, 1, key=multikey(other))
    following = event(repo.commit(2, [("delete", f"{DATASET}/k", None)]))
    changes = fold([following], held, backfill=True)
    assert (changes.waiting, changes.repositories[DID].desynced) == ([0], KEY_NEEDED)
    changes = fold([following], {DID: replace(held[DID], key_is_fresh=True)}, backfill=True)
    ((position, rejected),) = changes.rejected
    assert (position, rejected.reason, rejected.did) == (0, "bad-signature", DID)
    assert (changes.waiting, changes.records, changes.repositories) == ([], {}, {})
    assert changes.suspects == {DID}


@pytest.mark.parametrize("backfill", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body["ops"].pop(), "bad-tree"),
        (lambda body: body["ops"][0].update(path=f"{DATASET}/other"), "op-mismatch"),
        (lambda body: body.update(prevData=body["commit"]), "bad-tree"),
    ],
)
def test_a_commit_that_contradicts_itself(
    change: Callable[[dict[str, Any]], None], reason: str, backfill: bool
) -> None:
    """Operations that do not lead from the tree before to the one signed: rejected, and the repository is read."""
    repo = Repo()
    held = held_at(repo, 1)
    body = repo.commit_body(2, [("create", f"{DATASET}/a", dataset()), ("create", f"{DATASET}/b", dataset())])
    change(body)
    changes = fold([event(frame("#commit", body))], held, backfill=backfill)
    assert [rejected.reason for _, rejected in changes.rejected] == [reason]
    assert changes.records == {}
    assert changes.repositories[DID].desynced is not None
    assert changes.repositories[DID].rev == rev(1)


def test_a_commit_on_another_tree() -> None:
    """A proven commit that says to follow ours and starts from another tree: somebody forked, or we are wrong."""
    held = held_at(Repo(), 1)
    stranger = event(frame("#commit", commit_body(2, [("create", f"{DATASET}/z", dataset())], since=1)))
    changes = fold([stranger], held, backfill=True)
    assert changes.waiting == [0]
    assert "another tree" in (changes.repositories[DID].desynced or "")


def test_sync_events() -> None:
    """The same data moves the rev; an old one is a replay; any other asks for a resync, and behind one it waits."""
    repo = Repo()
    held = held_at(repo, 1)
    same = event(repo.sync(3))
    assert fold([same], held, backfill=True).repositories[DID] == replace(held[DID], rev=rev(3))
    assert fold([same, same], held, backfill=True).replayed == 1
    repo.records.clear()
    other = event(repo.sync(4))
    changed = fold([other], held, backfill=True).repositories[DID]
    assert (changed.rev, changed.desynced) == (rev(1), "a #sync event")
    assert fold([other], {DID: replace(held[DID], desynced="gap")}, backfill=True).waiting == [0]
    forged = fold([same], {DID: replace(held[DID], key=multikey("did:x"), key_is_fresh=True)}, backfill=True)
    assert ([r.reason for _, r in forged.rejected], forged.repositories) == (["bad-signature"], {})


def test_an_event_that_could_not_be_read() -> None:
    """What a repository did is unknown then: it is read again."""
    changes = fold(
        [Rejected("bad-car", "cut", DID), Desynced(DID, None, "cut")], {DID: Repository(rev(1))}, backfill=True
    )
    assert changes.repositories[DID].desynced == "cut"
    assert [position for position, _ in changes.rejected] == [0]


def test_any_reason_is_stronger_than_a_missing_key() -> None:
    """An account that came back, while its key is looked for, is read whole all the same."""
    held = {DID: Repository(rev(1), desynced=KEY_NEEDED, status="deactivated")}
    changes = fold([AccountChanged(DID, 6, "active")], held, backfill=True)
    assert changes.repositories[DID].desynced == "its account became active again"


def test_what_a_repository_has_reached_is_remembered() -> None:
    """The rev of an event that says no more than that there is one: a snapshot from before it is not the latest."""
    held = {DID: Repository(rev(1), "data-1")}
    changes = fold([Desynced(DID, rev(7), "too big")], held, backfill=True)
    assert (changes.repositories[DID].rev, changes.repositories[DID].wanted) == (rev(1), rev(7))


def test_an_account_that_comes_back_is_read() -> None:
    """While it was gone, anything may have changed."""
    gone = {DID: Repository(rev(1), status="deactivated", account_seq=5)}
    changes = fold([AccountChanged(DID, 6, "active")], gone, backfill=True)
    assert changes.repositories[DID].desynced == "its account became active again"
    assert (
        fold([AccountChanged(DID, 6, "active")], {DID: Repository(rev(1))}, backfill=True).repositories[DID].desynced
        is None
    )


def test_account_states_are_guarded_by_seq() -> None:
    """A replayed deactivation does not undo the activation after it."""
    off, on = AccountChanged(DID, 10, "deactivated"), AccountChanged(DID, 11, "active")
    changes = fold([off, on, off], {DID: Repository(rev(1))}, backfill=True)
    assert (changes.accounts[DID].status, changes.replayed) == ("active", 1)
    assert fold([off], {DID: Repository(rev(1), account_seq=11)}, backfill=True).accounts == {}


def test_identities_are_collected() -> None:
    """Any number of identity events come to one look at the DID document."""
    assert fold([IdentityChanged(DID)] * 3, {}, backfill=True).identities == {DID}


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from("abc"), st.booleans()), max_size=30), st.data())
def test_replays_change_nothing(history: list[tuple[int, str, bool]], data: st.DataObject) -> None:
    """A stream that repeats any of its past at any point comes to the same records as one that does not."""
    commits = []
    before = None
    for n, (_, rkey, deletes) in enumerate(history, start=1):
        op = RecordDeleted(DATASET, rkey) if deletes else write(str(n), rkey)
        commits.append(commit(n, op, since=before))
        before = n
    stuttering = []
    for at, event in enumerate(commits):
        stuttering.append(event)
        back = data.draw(st.integers(0, at))
        stuttering.extend(commits[back : at + 1])
    once, again = fold(commits, {}, backfill=True), fold(stuttering, {}, backfill=True)
    assert once.records == again.records
    assert once.repositories == again.repositories
