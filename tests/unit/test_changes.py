"""What a batch changes: duplicates, replays, reordering and gaps, decided without a database."""

from __future__ import annotations

from frames import DATASET, DID, rev
from hypothesis import given
from hypothesis import strategies as st

from atdata.atmosphere.records import Reading
from atdata_indexer.changes import Repository, fold
from atdata_indexer.events import (
    AccountChanged,
    Commit,
    Desynced,
    IdentityChanged,
    RecordDeleted,
    RecordWritten,
)


def write(name: str = "x", rkey: str = "k") -> RecordWritten:
    return RecordWritten(DATASET, rkey, f"cid-{name}", b"{}", Reading("dataset", None))


def commit(n: int, *ops: RecordWritten | RecordDeleted, since: int | None = None) -> Commit:
    return Commit(DID, rev(n), None if since is None else rev(since), f"data-{n}", ops)


KEY = (DID, DATASET, "k")


def test_the_last_of_several_writes_counts() -> None:
    """Create, update and delete of one record in one batch leave only what stands at the end."""
    changes = fold([commit(1, write("a")), commit(2, write("b"), since=1)], {}, backfill=True)
    record = changes.records[KEY]
    assert record is not None
    assert (record[0].cid, record[1]) == ("cid-b", rev(2))
    changes = fold([commit(1, write("a")), commit(2, RecordDeleted(DATASET, "k"), since=1)], {}, backfill=True)
    assert changes.records == {KEY: None}


def test_what_was_applied_is_not_applied_again() -> None:
    """A commit at or before the rev held changes nothing and is counted as a replay."""
    held = {DID: Repository(rev(5), "data-5")}
    changes = fold([commit(5, write(), since=4), commit(4, write(), since=3)], held, backfill=True)
    assert (changes.records, changes.repositories, changes.replayed) == ({}, {}, 2)


def test_a_gap_marks_the_repository() -> None:
    """A commit that does not follow the one we hold is applied, and its repository is due for a resync."""
    held = {DID: Repository(rev(5), "data-5")}
    changes = fold([commit(9, write(), since=7)], held, backfill=True)
    assert KEY in changes.records
    assert changes.repositories[DID].desynced == f"commit {rev(9)} follows {rev(7)}, not {rev(5)}"
    assert fold([commit(6, since=5)], held, backfill=True).repositories[DID].desynced is None


def test_a_history_that_began_before_us() -> None:
    """With backfill, a repository first met in the middle of its history is read whole; a new one need not be."""
    assert fold([commit(3, write(), since=2)], {}, backfill=True).repositories[DID].desynced is not None
    assert fold([commit(3, write(), since=2)], {}, backfill=False).repositories[DID].desynced is None
    assert fold([commit(1, write())], {}, backfill=True).repositories[DID].desynced is None


def test_a_gap_stays_until_it_is_mended() -> None:
    """Commits that follow each other again do not hide that something is missing before them."""
    changes = fold([commit(9, since=7), commit(10, since=9)], {DID: Repository(rev(5))}, backfill=True)
    assert changes.repositories[DID].desynced is not None


def test_sync_events() -> None:
    """The same data is a no-op that moves the rev; an old one is a replay; any other asks for a resync."""
    held = {DID: Repository(rev(5), "same")}
    assert fold([Desynced(DID, rev(6), "same", "s")], held, backfill=True).repositories[DID] == Repository(
        rev(6), "same"
    )
    assert fold([Desynced(DID, rev(5), "other", "s")], held, backfill=True).replayed == 1
    changed = fold([Desynced(DID, rev(6), "other", "s")], held, backfill=True).repositories[DID]
    assert (changed.rev, changed.desynced) == (rev(5), "s")


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
