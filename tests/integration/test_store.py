"""Batches of events in a real Postgres: all or nothing, once, and whatever is refused set aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest
from frames import DATASET, DID, SCHEMA, account, block, cid, commit, dataset, identity, rev, schema
from psycopg.rows import dict_row

from atdata_indexer.backfill import RepoRecord, Snapshot
from atdata_indexer.car import cid_text
from atdata_indexer.events import Commit, RecordWritten, Scope, parse
from atdata_indexer.identity import Identity
from atdata_indexer.store import Applied, Item, Store, forget_cursor

OTHER = "did:plc:" + "b" * 24
IDENTITY = Identity(DID, None, "https://pds.example", None)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = await Store.open(database_url, "relay.example")
    yield store
    await store.close()


async def feed(store: Store, frames: Sequence[bytes], cursor: int | None = None) -> Applied:
    """Apply *frames* as one batch."""
    scope = Scope(("ac.foundation.dataset.",), {DID, OTHER})
    items = []
    for frame in frames:
        parsed = parse(frame, scope)
        cursor = parsed.seq or cursor
        items += [Item(event, frame, parsed.seq) for event in parsed.events]
    return await store.apply(items, cursor)


def rows(url: str, query: str, *values: Any) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute(query.encode(), values).fetchall()


PATH = f"{DATASET}/song"
URI = f"at://{DID}/{PATH}"


async def test_a_commit_and_its_cursor(store: Store, database_url: str) -> None:
    """Record, repository, cursor and search entry are there after one batch."""
    applied = await feed(store, [commit(7, [("create", PATH, dataset(description="Tawny owls"))])])
    assert (applied.written, applied.tracked) == (1, {DID})
    (record,) = rows(database_url, "SELECT * FROM records")
    assert (record["uri"], record["kind"], record["rev"]) == (URI, "dataset", rev(7))
    assert record["record"] == dataset(description="Tawny owls")
    assert (record["name"], record["schema_ref"]) == ("Birdsong", dataset()["schemaRef"])
    assert (record["verified"], record["problems"]) == (False, [])
    (repository,) = rows(database_url, "SELECT * FROM repositories")
    assert (repository["did"], repository["rev"], repository["status"]) == (DID, rev(7), "active")
    assert await store.cursor() == 7
    assert [uri for _, uri in await store.outbox(10)] == [URI]


async def test_update_and_delete(store: Store, database_url: str) -> None:
    """An update replaces in place and keeps the order of arrival; a delete removes."""
    await feed(store, [commit(1, [("create", PATH, dataset()), ("create", f"{DATASET}/b", dataset())])])
    before = rows(database_url, "SELECT id FROM records WHERE uri = %s", URI)
    await feed(store, [commit(2, [("update", PATH, dataset("Owls"))], since=1)])
    (after,) = rows(database_url, "SELECT id, name, rev FROM records WHERE uri = %s", URI)
    assert (after["id"], after["name"], after["rev"]) == (before[0]["id"], "Owls", rev(2))
    await feed(store, [commit(3, [("delete", PATH, None)], since=2)])
    assert [r["rkey"] for r in rows(database_url, "SELECT rkey FROM records")] == ["b"]


async def test_replays_change_nothing(store: Store, database_url: str) -> None:
    """The same batch again, or an older one, is a no-op."""
    batch = [
        commit(1, [("create", PATH, dataset())]),
        commit(2, [("update", PATH, dataset("Owls"))], since=1),
        commit(3, [("create", f"{DATASET}/b", dataset()), ("delete", PATH, None)], since=2),
    ]
    await feed(store, batch)
    query = "SELECT uri, cid, rev, indexed_at FROM records"
    before = rows(database_url, query)
    assert (await feed(store, batch)).replayed == 3
    assert (await feed(store, batch[:2])).replayed == 2
    assert rows(database_url, query) == before


async def test_a_malformed_record_is_kept_and_flagged(store: Store, database_url: str) -> None:
    """What breaks its lexicon is stored as it is, with what is wrong with it."""
    odd = {"$type": DATASET, "name": 5, "tags": "no list", "schemaRef": {"x": 1}, "storage": []}
    await feed(store, [commit(1, [("create", PATH, odd), ("create", "ac.foundation.dataset.new/x", {"a": 1})])])
    flagged, unknown = rows(database_url, "SELECT * FROM records ORDER BY id")
    assert flagged["record"] == odd
    assert any(problem.startswith("name") for problem in flagged["problems"])
    assert (flagged["name"], flagged["schema_ref"]) == (None, None)
    assert (unknown["kind"], unknown["record"], unknown["problems"]) == (None, {"a": 1}, [])


@pytest.mark.parametrize(
    "field",
    [
        {"schemaRef": "at://" + "x" * 900_000},
        {"name": "n" * 900_000},
        {"license": "\u2028" * 100_000},
        {"tags": ["".join(chr(0x1F300 + n * 7 % 500) for n in range(2000))]},
    ],
)
async def test_huge_values_do_not_break_an_index(store: Store, database_url: str, field: dict[str, str]) -> None:
    """A value beyond what a B-tree holds is kept in the record and left out of the columns."""
    await feed(store, [commit(1, [("create", PATH, dataset(**field))])])
    (record,) = rows(database_url, "SELECT * FROM records")
    assert record["record"] == dataset(**field)
    assert record["problems"]


async def test_what_the_database_refuses_is_set_aside(store: Store, database_url: str) -> None:
    """A record that gets past every check and that Postgres will not hold costs nobody else anything."""
    good = [commit(n, [("create", f"{DATASET}/{n}", dataset())], since=n - 1) for n in range(1, 8)]
    items = []
    for n, frame in enumerate(good, start=1):
        (event,) = parse(frame, Scope(("ac.foundation.dataset.",), ())).events
        assert isinstance(event, Commit)
        if n == 4:
            (op,) = event.ops
            assert isinstance(op, RecordWritten)
            refused = RecordWritten(op.collection, op.rkey, op.cid, b'{"name": "\\u0000"}', op.reading)
            event = Commit(event.did, event.rev, event.since, event.data, (refused,))
        items.append(Item(event, frame, n))
    applied = await store.apply(items, 7)
    assert (applied.written, applied.quarantined) == (6, 1)
    (kept,) = rows(database_url, "SELECT * FROM quarantine")
    assert (kept["reason"], kept["seq"], kept["bytes"]) == ("refused-by-database", 4, good[3])
    assert {r["rkey"] for r in rows(database_url, "SELECT rkey FROM records")} == {"1", "2", "3", "5", "6", "7"}
    assert await store.cursor() == 7


async def test_quarantine_keeps_one_copy_and_counts_all(store: Store, database_url: str) -> None:
    """The same bytes again are counted, not stored again; reasons are counted over all."""
    bad = [b"\xff\x00noise", b"\xff\x00noise", b"other noise\xff"]
    await feed(store, bad, cursor=5)
    await feed(store, bad, cursor=6)
    kept = rows(database_url, "SELECT bytes, times, source FROM quarantine ORDER BY times")
    assert [(k["bytes"], k["times"], k["source"]) for k in kept] == [
        (bad[2], 2, "relay.example"),
        (bad[0], 4, "relay.example"),
    ]
    assert rows(database_url, "SELECT * FROM quarantine_counts") == [{"reason": "not-cbor", "times": 6}]
    assert (await store.counts())["quarantined"] == 6


async def test_a_full_quarantine_counts_on(database_url: str) -> None:
    """Without room the bytes are let go, the count is not."""
    store = await Store.open(database_url, "relay.example", quarantine_bytes=0)
    await feed(store, [b"\xffnoise"], cursor=1)
    assert rows(database_url, "SELECT * FROM quarantine") == []
    assert (await store.counts())["quarantined"] == 1
    await store.close()


async def test_accounts_hide_and_come_back(store: Store, database_url: str) -> None:
    """States follow #account in order of seq, and search looks again at every dataset of the account."""
    await feed(store, [commit(1, [("create", PATH, dataset())])])
    await store.fed([id for id, _ in await store.outbox(10)])
    await feed(store, [account(5, active=False, status="deactivated")])
    assert rows(database_url, "SELECT status FROM repositories") == [{"status": "deactivated"}]
    assert [uri for _, uri in await store.outbox(10)] == [URI]
    assert await store.datasets([URI]) == []
    await feed(store, [account(6, active=True), account(5, active=False, status="deactivated")])
    assert rows(database_url, "SELECT status FROM repositories") == [{"status": "active"}]
    assert len(await store.datasets([URI])) == 1


async def test_a_schema_touches_its_datasets(store: Store) -> None:
    """Search looks again at a dataset when its schema arrives, changes or goes."""
    await feed(store, [commit(1, [("create", PATH, dataset())])])
    for n, op in enumerate(
        [
            ("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema()),
            ("update", f"{SCHEMA}/3kzaaaaaaaaaa", schema("Call")),
            ("delete", f"{SCHEMA}/3kzaaaaaaaaaa", None),
        ],
        start=2,
    ):
        await store.fed([id for id, _ in await store.outbox(10)])
        await feed(store, [commit(n, [op], since=n - 1)])
        assert [uri for _, uri in await store.outbox(10)] == [URI]


async def test_handles_and_documents(store: Store, database_url: str) -> None:
    """A new repository's document is due; a handle belongs to one account, the last that proved it."""
    await feed(store, [commit(1, [("create", PATH, dataset())])])
    await feed(store, [commit(2, [("create", PATH, dataset())], did=OTHER)])
    assert set(await store.to_resolve(10)) == {DID, OTHER}
    await store.resolved(DID, "alice.test", "https://pds.example")
    await store.unresolved(OTHER)
    assert await store.to_resolve(10) == []
    await feed(store, [identity(3, did=OTHER)])
    assert await store.to_resolve(10) == [OTHER]
    await store.resolved(OTHER, "alice.test", None)
    assert rows(database_url, "SELECT did FROM repositories WHERE handle = 'alice.test'") == [{"did": OTHER}]
    # The loser is asked again in a while, not at once: two that both claim a handle would keep us busy for ever.
    assert await store.to_resolve(10) == []
    assert rows(database_url, "SELECT handle FROM repositories WHERE did = %s", DID) == [{"handle": None}]
    assert f"at://{DID}/{PATH}" in [uri for _, uri in await store.outbox(10)]


async def test_a_snapshot_is_a_three_way_diff(store: Store, database_url: str) -> None:
    """What is new comes, what changed changes, what is gone goes, what is equal is not touched."""
    await feed(
        store,
        [
            commit(
                1,
                [
                    ("create", f"{DATASET}/same", dataset("same")),
                    ("create", f"{DATASET}/old", dataset("old")),
                    ("create", f"{DATASET}/gone", dataset("gone")),
                ],
            )
        ],
    )
    (same,) = rows(database_url, "SELECT indexed_at FROM records WHERE rkey = 'same'")
    await feed(store, [commit(5, [], since=4)])
    assert await store.to_resync(10) == [DID]

    def entry(rkey: str, record: dict[str, Any]) -> RepoRecord:
        data = block(record)
        return RepoRecord(DATASET, rkey, cid_text(cid(data)), data)

    snapshot = Snapshot(
        did=DID,
        rev=rev(6),
        data="data",
        records=(entry("same", dataset("same")), entry("old", dataset("changed")), entry("new", dataset("new"))),
        commit=b"",
        identity=IDENTITY,
    )
    applied = await store.apply_snapshot(snapshot)
    assert applied is not None
    assert (applied.written, applied.deleted) == (2, 1)
    assert {(r["rkey"], r["name"]) for r in rows(database_url, "SELECT rkey, name FROM records")} == {
        ("same", "same"),
        ("old", "changed"),
        ("new", "new"),
    }
    assert rows(database_url, "SELECT indexed_at FROM records WHERE rkey = 'same'") == [same]
    assert await store.to_resync(10) == []
    # The stream goes on where the snapshot ends, and what the snapshot held already is a replay.
    assert (await feed(store, [commit(6, [("delete", f"{DATASET}/new", None)], since=5)])).replayed == 1
    await feed(store, [commit(7, [("delete", f"{DATASET}/new", None)], since=6)])
    assert await store.to_resync(10) == []


async def test_a_snapshot_with_a_record_that_is_refused(store: Store, database_url: str) -> None:
    """A repository's other records are kept, and the refused one is in quarantine with its block."""
    good, bad = block(dataset("good")), block(dataset("bad"))
    entries = tuple(RepoRecord(DATASET, k, cid_text(cid(b)), b) for k, b in (("good", good), ("bad", bad)))
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN IF NEW.rkey = 'bad' THEN"
            " RAISE EXCEPTION USING ERRCODE = '54000'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        admin.execute("CREATE TRIGGER refuse BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION refuse()")
    applied = await store.apply_snapshot(Snapshot(DID, rev(1), "data", entries, b"", IDENTITY))
    assert applied is not None
    assert (applied.written, applied.quarantined) == (1, 1)
    assert rows(database_url, "SELECT rkey FROM records") == [{"rkey": "good"}]
    assert rows(database_url, "SELECT reason, bytes FROM quarantine") == [
        {"reason": "refused-by-database", "bytes": bad}
    ]


async def test_a_repository_that_is_busy_with_other_things(store: Store, database_url: str) -> None:
    """Commits that touch nothing of ours do not outdate a snapshot, and are not undone by it."""
    await feed(store, [commit(1, [("create", PATH, dataset())])])
    await feed(store, [commit(9, [], since=5)])
    assert await store.to_resync(10) == [DID]
    data = block(dataset("Owls"))
    entries = (RepoRecord(DATASET, "song", cid_text(cid(data)), data),)
    assert await store.apply_snapshot(Snapshot(DID, rev(5), "old", entries, b"", IDENTITY)) is not None
    assert rows(database_url, "SELECT name FROM records") == [{"name": "Owls"}]
    assert rows(database_url, "SELECT rev, desynced FROM repositories") == [{"rev": rev(9), "desynced": None}]


async def test_what_a_host_says_of_an_account(store: Store, database_url: str) -> None:
    """It hides an account that the stream has said nothing of, until it gives it out; it never overrules the stream."""
    await store.discovered([DID, OTHER])
    await store.unavailable(DID, "deactivated")
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "deactivated"}]
    await store.apply_snapshot(Snapshot(DID, rev(5), "data", (), b"", IDENTITY))
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "active"}]
    await feed(store, [account(5, active=True, did=OTHER)])
    await store.unavailable(OTHER, "deactivated")
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", OTHER) == [{"status": "active"}]


async def test_each_relay_counts_in_its_own_way(store: Store, database_url: str) -> None:
    """After a change of relay, account states go on, whatever number the other one was at."""
    await feed(store, [commit(1, [("create", PATH, dataset())]), account(31_000_000_000, active=True)])
    await store.close()
    other = await Store.open(database_url, "other.example")
    assert (await feed(other, [account(500, active=False, status="takendown")])).replayed == 0
    assert rows(database_url, "SELECT status FROM repositories") == [{"status": "takendown"}]
    await other.close()


async def test_a_snapshot_older_than_what_we_hold_is_refused(store: Store) -> None:
    """A commit that came while the repository was fetched is not undone."""
    await feed(store, [commit(9, [("create", PATH, dataset())])])
    assert await store.apply_snapshot(Snapshot(DID, rev(8), "data", (), b"", IDENTITY)) is None


async def test_a_second_writer_waits(database_url: str, store: Store) -> None:
    """An indexer beside a running one stands by, and takes over at the committed cursor when that is gone."""
    await feed(store, [commit(7, [("create", PATH, dataset())])])
    second = asyncio.ensure_future(Store.open(database_url, "relay.example"))
    done, _ = await asyncio.wait([second], timeout=0.5)
    assert not done
    await store.close()
    taken_over = await second
    assert await taken_over.cursor() == 7
    await taken_over.close()


async def test_a_failed_batch_leaves_nothing(store: Store, database_url: str) -> None:
    """A connection that breaks in the middle leaves neither records nor a moved cursor; afterwards all is applied."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION die() RETURNS trigger AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid());"
            " RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        admin.execute("CREATE TRIGGER die BEFORE INSERT ON cursors FOR EACH ROW EXECUTE FUNCTION die()")
        batch = [commit(7, [("create", PATH, dataset())])]
        with pytest.raises(psycopg.OperationalError):
            await feed(store, batch)
        assert rows(database_url, "SELECT uri FROM records") == []
        admin.execute("DROP TRIGGER die ON cursors")
    await store.reopen()
    assert await store.cursor() is None
    assert (await feed(store, batch)).written == 1
    assert await store.cursor() == 7


async def test_the_cursor_can_be_forgotten(store: Store, database_url: str) -> None:
    """Forgetting a cursor says whether there was one."""
    await store.save_cursor(9)
    assert await forget_cursor(database_url, "relay.example")
    assert not await forget_cursor(database_url, "relay.example")
    assert await store.cursor() is None
