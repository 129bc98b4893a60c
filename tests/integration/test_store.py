"""Batches of events in a real Postgres: all or nothing, once, and whatever is refused set aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from frames import (
    DATASET,
    DID,
    SCHEMA,
    Repo,
    account,
    block,
    car,
    cid,
    dataset,
    frame,
    identity,
    multikey,
    rev,
    schema,
    signed,
    tree,
)
from psycopg.rows import dict_row

from atdata_backend.identity import Identity
from atdata_indexer import store as store_module
from atdata_indexer.backfill import FetchFailed, RepoRecord, Snapshot
from atdata_indexer.car import cid_text, split
from atdata_indexer.events import Commit, RecordWritten, Scope, parse
from atdata_indexer.store import CROWD, Applied, Check, Item, Store, forget_cursor, mend, unmended

OTHER = "did:plc:" + "b" * 24
IDENTITY = Identity(DID, None, "https://pds.example", multikey(DID))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store that knows the keys of two repositories, and nothing else of them."""
    with psycopg.connect(database_url) as admin:
        for did in (DID, OTHER):
            admin.execute(
                "INSERT INTO repositories (did, pds, signing_key) VALUES (%s, %s, %s)",
                [did, IDENTITY.pds, multikey(did)],
            )
    store = await Store.open(database_url, "relay.example")
    yield store
    await store.close()


@pytest.fixture
def repo() -> Repo:
    return Repo()


async def feed(store: Store, frames: Sequence[bytes], cursor: int | None = None) -> Applied:
    """Apply *frames* as one batch."""
    scope = Scope(("ac.foundation.dataset.",), {DID, OTHER})
    items = []
    for data in frames:
        parsed = parse(data, scope)
        cursor = parsed.seq or cursor
        items += [Item(event, data, parsed.seq) for event in parsed.events]
    return await store.apply(items, cursor)


def rows(url: str, query: str, *values: Any) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute(query.encode(), values).fetchall()


PATH = f"{DATASET}/song"
URI = f"at://{DID}/{PATH}"


async def test_a_commit_and_its_cursor(store: Store, repo: Repo, database_url: str) -> None:
    """Record, repository, cursor and search entry are there after one batch."""
    applied = await feed(store, [repo.commit(7, [("create", PATH, dataset(description="Tawny owls"))])])
    assert (applied.written, applied.quarantined, applied.waiting) == (1, 0, 0)
    (record,) = rows(database_url, "SELECT * FROM records")
    assert (record["uri"], record["kind"], record["rev"]) == (URI, "dataset", rev(7))
    assert record["record"] == dataset(description="Tawny owls")
    assert (record["name"], record["schema_ref"]) == ("Birdsong", dataset()["schemaRef"])
    assert (record["verified_key"], record["problems"]) == (multikey(DID), [])
    assert record["verified_at"] is not None
    (repository,) = rows(database_url, "SELECT * FROM repositories WHERE did = %s", DID)
    assert (repository["did"], repository["rev"], repository["status"]) == (DID, rev(7), "active")
    assert await store.cursor() == 7
    assert [uri for _, uri in await store.outbox(10)] == [URI]


async def test_update_and_delete(store: Store, repo: Repo, database_url: str) -> None:
    """An update replaces in place and keeps the order of arrival; a delete removes."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset()), ("create", f"{DATASET}/b", dataset())])])
    before = rows(database_url, "SELECT id FROM records WHERE uri = %s", URI)
    await feed(store, [repo.commit(2, [("update", PATH, dataset("Owls"))])])
    (after,) = rows(database_url, "SELECT id, name, rev FROM records WHERE uri = %s", URI)
    assert (after["id"], after["name"], after["rev"]) == (before[0]["id"], "Owls", rev(2))
    await feed(store, [repo.commit(3, [("delete", PATH, None)])])
    assert [r["rkey"] for r in rows(database_url, "SELECT rkey FROM records")] == ["b"]


async def test_replays_change_nothing(store: Store, repo: Repo, database_url: str) -> None:
    """The same batch again, or an older one, is a no-op."""
    batch = [
        repo.commit(1, [("create", PATH, dataset())]),
        repo.commit(2, [("update", PATH, dataset("Owls"))]),
        repo.commit(3, [("create", f"{DATASET}/b", dataset()), ("delete", PATH, None)]),
    ]
    await feed(store, batch)
    query = "SELECT uri, cid, rev, indexed_at FROM records"
    before = rows(database_url, query)
    assert (await feed(store, batch)).replayed == 3
    assert (await feed(store, batch[:2])).replayed == 2
    assert rows(database_url, query) == before


async def test_a_malformed_record_is_kept_and_flagged(store: Store, repo: Repo, database_url: str) -> None:
    """What breaks its lexicon is stored as it is, with what is wrong with it."""
    odd = {"$type": DATASET, "name": 5, "tags": "no list", "schemaRef": {"x": 1}, "storage": []}
    await feed(store, [repo.commit(1, [("create", PATH, odd), ("create", "ac.foundation.dataset.new/x", {"a": 1})])])
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
async def test_huge_values_do_not_break_an_index(
    store: Store, repo: Repo, database_url: str, field: dict[str, str]
) -> None:
    """A value beyond what a B-tree holds is kept in the record and left out of the columns."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset(**field))])])
    (record,) = rows(database_url, "SELECT * FROM records")
    assert record["record"] == dataset(**field)
    assert record["problems"]


async def test_what_the_database_refuses_is_set_aside(store: Store, repo: Repo, database_url: str) -> None:
    """A record that gets past every check and that Postgres will not hold costs nobody else anything."""
    good = [repo.commit(n, [("create", f"{DATASET}/{n}", dataset())]) for n in range(1, 8)]
    items = []
    for n, data in enumerate(good, start=1):
        (event,) = parse(data, Scope(("ac.foundation.dataset.",), ())).events
        assert isinstance(event, Commit)
        if n == 4:
            (op,) = event.ops
            assert isinstance(op, RecordWritten)
            refused = RecordWritten(op.collection, op.rkey, op.cid, b'{"name": "\\u0000"}', op.reading)
            event = replace(event, ops=(refused,))
        items.append(Item(event, data, n))
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


async def test_accounts_hide_and_come_back(store: Store, repo: Repo, database_url: str) -> None:
    """States follow #account in order of seq, and search looks again at every dataset of the account."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    await store.fed(await store.outbox(10))
    await feed(store, [account(5, active=False, status="deactivated")])
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "deactivated"}]
    assert [uri for _, uri in await store.outbox(10)] == [URI]
    assert await store.datasets([URI]) == []
    await feed(store, [account(6, active=True), account(5, active=False, status="deactivated")])
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "active"}]
    assert len(await store.datasets([URI])) == 1


async def test_a_schema_touches_its_datasets(store: Store, repo: Repo) -> None:
    """Search looks again at a schema, and at its datasets, when it arrives, changes or goes."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    for n, op in enumerate(
        [
            ("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema()),
            ("update", f"{SCHEMA}/3kzaaaaaaaaaa", schema("Call")),
            ("delete", f"{SCHEMA}/3kzaaaaaaaaaa", None),
        ],
        start=2,
    ):
        await store.fed(await store.outbox(10))
        await feed(store, [repo.commit(n, [op])])
        assert {uri for _, uri in await store.outbox(10)} == {URI, f"at://{DID}/{SCHEMA}/3kzaaaaaaaaaa"}


async def test_an_account_touches_the_datasets_of_its_schemas(store: Store, repo: Repo) -> None:
    """What samples look like cannot be told while the schema's publisher is hidden, whoever published the dataset."""
    other = Repo(OTHER)
    uri = f"at://{DID}/{SCHEMA}/3kzaaaaaaaaaa"
    await feed(store, [repo.commit(1, [("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema())])])
    await feed(store, [other.commit(2, [("create", PATH, {**dataset(), "schemaRef": uri})])])
    for seq, is_active in ((3, False), (4, True)):
        await store.fed(await store.outbox(10))
        await feed(store, [account(seq, active=is_active, status=None if is_active else "deactivated")])
        assert {uri for _, uri in await store.outbox(10)} == {uri, f"at://{OTHER}/{PATH}"}
        assert len(await store.schemas([uri])) == is_active


async def test_handles_and_documents(store: Store, repo: Repo, database_url: str) -> None:
    """A new repository's document is due; a handle belongs to one account, the last that proved it."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    await feed(store, [Repo(OTHER).commit(2, [("create", PATH, dataset())])])
    assert set(await store.to_resolve(10)) == {DID, OTHER}
    await store.resolved(replace(IDENTITY, handle="alice.test"))
    await store.unresolved(OTHER)
    assert await store.to_resolve(10) == []
    await feed(store, [identity(3, did=OTHER)])
    assert await store.to_resolve(10) == [OTHER]
    await store.resolved(Identity(OTHER, "alice.test", None, multikey(OTHER)))
    assert rows(database_url, "SELECT did FROM repositories WHERE handle = 'alice.test'") == [{"did": OTHER}]
    # The loser is asked again in a while, not at once: two that both claim a handle would keep us busy for ever.
    assert await store.to_resolve(10) == []
    assert rows(database_url, "SELECT handle FROM repositories WHERE did = %s", DID) == [{"handle": None}]
    assert f"at://{DID}/{PATH}" in [uri for _, uri in await store.outbox(10)]


async def test_a_snapshot_is_a_three_way_diff(store: Store, repo: Repo, database_url: str) -> None:
    """What is new comes, what changed changes, what is gone goes, what is equal is not touched."""
    await feed(
        store,
        [
            repo.commit(
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
    repo.rev = rev(4)
    applied = await feed(store, [repo.commit(5)])
    assert (applied.waiting, applied.commits) == (1, 0)
    assert await store.to_resync(10) == [DID]

    def entry(rkey: str, record: dict[str, Any]) -> RepoRecord:
        data = block(record)
        return RepoRecord(DATASET, rkey, cid_text(cid(data)), data)

    entries = (entry("same", dataset("same")), entry("old", dataset("changed")), entry("new", dataset("new")))
    repo.records = {f"{DATASET}/{e.rkey}": cid(e.block) for e in entries}
    snapshot = Snapshot(
        did=DID,
        rev=rev(6),
        data=cid_text(tree(repo.records)[0]),
        records=entries,
        commit="commit",
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
    repo.rev = rev(6)
    following = repo.commit(7, [("delete", f"{DATASET}/new", None)])
    assert (await feed(store, [repo.commit(6), following])).replayed == 1
    assert await store.to_resync(10) == []
    assert {r["rkey"] for r in rows(database_url, "SELECT rkey FROM records")} == {"same", "old"}


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
    applied = await store.apply_snapshot(Snapshot(DID, rev(1), "data", entries, "commit", IDENTITY))
    assert applied is not None
    assert (applied.written, applied.quarantined) == (1, 1)
    assert rows(database_url, "SELECT rkey FROM records") == [{"rkey": "good"}]
    assert rows(database_url, "SELECT reason, bytes FROM quarantine") == [
        {"reason": "refused-by-database", "bytes": bad}
    ]


def snapshot_of(repo: Repo, at: int, **records: dict[str, Any]) -> Snapshot:
    """*repo* as its host gives it out, with *records* and no others."""
    blocks = {rkey: block(record) for rkey, record in records.items()}
    repo.records = {f"{DATASET}/{rkey}": cid(data) for rkey, data in blocks.items()}
    repo.rev = rev(at)
    return Snapshot(
        repo.did,
        rev(at),
        cid_text(tree(repo.records)[0]),
        tuple(RepoRecord(DATASET, rkey, cid_text(cid(data)), data) for rkey, data in blocks.items()),
        "commit",
        replace(IDENTITY, did=repo.did, signing_key=multikey(repo.did)),
    )


async def test_commits_wait_for_a_resync(store: Store, repo: Repo, database_url: str) -> None:
    """What a repository out of step does waits in the database, and is applied in order behind the snapshot."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    repo.rev = rev(4)
    await feed(store, [repo.commit(5, [("update", PATH, dataset("lost"))])])
    assert rows(database_url, "SELECT name FROM records") == [{"name": "Birdsong"}]
    snapshot = snapshot_of(repo, 6, song=dataset("Owls"))
    waiting = [
        repo.commit(7, [("update", PATH, dataset("Tawny owls"))]),
        repo.commit(8, [("create", f"{DATASET}/b", dataset("b"))]),
        repo.sync(9),
    ]
    for data in waiting:
        assert (await feed(store, [data])).waiting == 1
    await store.reopen()
    assert (await store.counts())["waiting"] == 4
    applied = await store.apply_snapshot(snapshot)
    assert applied is not None
    assert (applied.commits, applied.replayed, applied.waiting) == (2, 1, 0)
    assert {(r["name"], r["rev"]) for r in rows(database_url, "SELECT name, rev FROM records")} == {
        ("Tawny owls", rev(7)),
        ("b", rev(8)),
    }
    assert rows(database_url, "SELECT rev, desynced FROM repositories WHERE did = %s", DID) == [
        {"rev": rev(9), "desynced": None}
    ]
    assert (await store.counts())["waiting"] == 0
    assert (await feed(store, [repo.commit(10, [("delete", PATH, None)])])).deleted == 1


async def test_a_gap_among_what_waited(store: Store, repo: Repo, database_url: str) -> None:
    """Behind the snapshot there is a gap again: the rest goes on waiting, for the next resync."""
    await store.discovered([DID])
    repo.rev = rev(4)
    await feed(store, [repo.commit(5)])
    repo.rev = rev(7)
    await feed(store, [repo.commit(8, [("create", f"{DATASET}/b", dataset("b"))])])
    rest = repo.rev
    applied = await store.apply_snapshot(snapshot_of(Repo(), 6))
    assert applied is not None
    assert (applied.waiting, applied.desynced) == (1, True)
    assert (await store.apply_snapshot(snapshot_of(repo, 7))) is not None
    assert rows(database_url, "SELECT rev FROM records") == [{"rev": rest}]


async def test_too_much_waiting_is_let_go(
    store: Store, repo: Repo, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded; its repository is read once more then, so that nothing is lost by it."""
    monkeypatch.setattr("atdata_indexer.store._MAX_PENDING", 3)
    repo.rev = rev(4)
    for n in range(5, 10):
        await feed(store, [repo.commit(n, [("create", f"{DATASET}/{n}", dataset())])])
    assert (await store.counts())["waiting"] == 1
    assert await store.apply_snapshot(snapshot_of(Repo(), 5)) is not None
    assert await store.to_resync(10) == []
    assert rows(database_url, "SELECT desynced FROM repositories WHERE did = %s", DID) == [
        {"desynced": "more came than could wait for it"}
    ]


async def test_an_event_that_cannot_be_read(store: Store, repo: Repo, database_url: str) -> None:
    """Its repository is read; when it comes while that is under way, once more."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])

    def unreadable(seq: int) -> bytes:
        return frame("#commit", {**repo.commit_body(seq, []), "blocks": b"\x00"})

    await feed(store, [unreadable(2)])
    assert await store.to_resync(10) == [DID]
    await feed(store, [unreadable(3)])
    assert await store.apply_snapshot(snapshot_of(repo, 2, song=dataset())) is not None
    assert rows(database_url, "SELECT desynced IS NULL AS mended FROM repositories WHERE did = %s", DID) == [
        {"mended": False}
    ]
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE repositories SET resync_at = now()")
    assert await store.to_resync(10) == [DID]
    assert await store.apply_snapshot(snapshot_of(repo, 3, song=dataset())) is not None
    assert await store.to_resync(10) == []
    assert {q["times"] for q in rows(database_url, "SELECT times FROM quarantine")} == {1}


async def test_a_new_key(store: Store, repo: Repo, database_url: str) -> None:
    """A commit signed with another key waits until the DID document was read, and counts if that has the key."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE repositories SET signing_key = %s, resolved_at = NULL", [multikey("did:old")])
    applied = await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    assert (applied.waiting, applied.desynced) == (1, True)
    assert await store.to_resync(10) == []
    assert await store.to_refresh(10, keys_only=True) == [DID]
    assert (await store.apply_identity(IDENTITY)).written == 1
    assert rows(database_url, "SELECT verified_key FROM records") == [{"verified_key": multikey(DID)}]


async def test_a_forged_commit(store: Store, repo: Repo, database_url: str) -> None:
    """One that its account did not sign is set aside, and changes nothing."""
    forged = Repo()
    body = forged.commit_body(1, [("create", PATH, dataset("forged"))])
    # The block keeps a CID that fits, as a forger's would.
    roots, parts = split(bytes(body["blocks"]))
    old = bytes(parts[roots[0]])
    new = bytearray(old)
    new[old.index(b"csigX@") + 20] ^= 1
    others = [bytes(part) for name, part in parts.items() if name != roots[0]]
    body["commit"] = cid(bytes(new))
    body["blocks"] = car(body["commit"], [bytes(new), *others])
    applied = await feed(store, [frame("#commit", body)])
    # The account might have another key by now.
    assert (applied.written, applied.waiting) == (0, 1)
    assert await store.to_refresh(10, keys_only=True) == [DID]
    assert (await store.apply_identity(IDENTITY)).quarantined == 1
    assert rows(database_url, "SELECT reason FROM quarantine") == [{"reason": "bad-signature"}]
    assert rows(database_url, "SELECT * FROM records") == []
    assert (await feed(store, [repo.commit(1, [("create", PATH, dataset())])])).written == 1


async def test_a_snapshot_proves_what_was_not_proven(store: Store, repo: Repo, database_url: str) -> None:
    """Records that were taken on trust are not written again, only marked."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE records SET verified_at = NULL, verified_key = NULL")
    assert await store.apply_snapshot(snapshot_of(repo, 2, song=dataset())) is not None
    (record,) = rows(database_url, "SELECT rev, verified_key, commit_cid FROM records")
    assert record == {"rev": rev(1), "verified_key": multikey(DID), "commit_cid": "commit"}


async def test_a_purge_leaves_a_tombstone(store: Store, repo: Repo, database_url: str) -> None:
    """Of a deleted account, nothing is kept but that it was deleted; replays do not bring it back."""
    create = repo.commit(1, [("create", PATH, dataset())])
    await feed(store, [create, account(2, active=False, status="deleted")])
    assert await store.datasets([URI]) == []
    (check,) = await store.to_purge(10)
    await store.not_purged(check, None)
    assert await store.to_purge(10) == []
    await store.purge(check)
    assert rows(database_url, "SELECT * FROM records") == []
    query = "SELECT status, handle, rev, account_seq FROM repositories WHERE did = %s"
    assert rows(database_url, query, DID) == [{"status": "deleted", "handle": None, "rev": None, "account_seq": 2}]
    assert (await feed(store, [account(2, active=False, status="deleted")])).replayed == 1


async def test_a_relay_that_calls_an_account_deleted(store: Store, repo: Repo, database_url: str) -> None:
    """Its own host knows better: it is shown again, and read."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())]), account(2, active=False, status="deleted")])
    (check,) = await store.to_purge(10)
    await store.not_purged(check, "active")
    assert await store.to_purge(10) == []
    assert len(await store.datasets([URI])) == 1
    assert await store.to_resync(10) == [DID]


async def test_a_sweep(store: Store, repo: Repo, database_url: str) -> None:
    """Every repository is asked for once; those that differ are read, the silent asked again, the counts kept."""
    third = "did:plc:" + "c" * 24
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("INSERT INTO repositories (did, pds) VALUES (%s, 'https://pds.example')", [third])
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    await store.save_cursor(5, gap="a gap")
    await store.save_cursor(9, gap="another gap")
    assert await store.to_check(10) == []
    assert await store.start_sweep() == "a gap; another gap"
    assert await store.start_sweep() is None
    checks = {check.did: check for check in await store.to_check(10)}
    assert checks.keys() == {DID, OTHER, third}
    assert [check.did for check in await store.to_check(10, but=[DID, OTHER])] == [third]
    assert await store.checked(DID, rev(1))
    assert not await store.checked(OTHER, rev(1))
    await store.differs(checks[OTHER], "it is elsewhere")
    await store.unchecked(third)
    assert await store.to_check(10) == []
    assert await store.to_resync(10) == [OTHER]
    (sweep,) = rows(database_url, "SELECT * FROM sweeps")
    assert (sweep["checked"], sweep["differing"], sweep["unreachable"]) == (2, 1, 1)
    assert sweep["finished_at"] is not None


async def test_a_gap_and_the_cursor_beyond_it(store: Store, repo: Repo, database_url: str) -> None:
    """One transaction: whoever goes on behind the gap knows of it."""
    frame_ = repo.commit(7, [("create", PATH, dataset())])
    (event,) = parse(frame_, Scope(("ac.foundation.dataset.",), {DID})).events
    await store.apply([Item(event, frame_, 7)], 7, gap="relay.example went from 3 to 7")
    await store.reopen()
    assert (await store.cursor(), await store.start_sweep()) == (7, "relay.example went from 3 to 7")


async def test_a_sweep_finds_what_became_of_accounts(store: Store, repo: Repo, database_url: str) -> None:
    """One that its host no longer gives out is hidden, and asked again; one that it gives out is shown, and read."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())]), account(2, active=True)])

    async def check() -> Check:
        await store.save_cursor(None, gap="a gap")
        await store.start_sweep()
        return next(check for check in await store.to_check(10) if check.did == DID)

    await store.found_unavailable(await check(), "takendown")
    assert await store.datasets([URI]) == []
    back = await check()
    assert not await store.checked(DID, rev(1))
    await store.differs(back, "it is back")
    assert len(await store.datasets([URI])) == 1
    gone = await check()
    await store.found_unavailable(gone, "not-found")
    assert await store.datasets([URI]) == []
    assert await store.to_purge(10) == [], "its host may have lost its database for a while only"


async def test_the_stream_has_the_last_word(store: Store, repo: Repo, database_url: str) -> None:
    """An answer of a host is about the moment it was asked: what the stream said since counts."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())]), account(2, active=True)])
    await store.save_cursor(None, gap="a gap")
    await store.start_sweep()
    (check,) = (check for check in await store.to_check(10) if check.did == DID)
    await feed(store, [account(3, active=False, status="takendown")])
    await store.differs(check, "its host is elsewhere")
    assert await store.datasets([URI]) == []
    await feed(store, [account(4, active=False, status="deleted")])
    (asked,) = await store.to_purge(10)
    await feed(store, [account(5, active=True)])
    await store.purge(asked)
    assert len(await store.datasets([URI])) == 1


async def test_a_deleted_account_that_writes(store: Store, repo: Repo, database_url: str) -> None:
    """A tombstone is not for ever: its host is asked again."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())]), account(2, active=False, status="deleted")])
    (asked,) = await store.to_purge(10)
    await store.purge(asked)
    assert await store.to_purge(10) == []
    await feed(store, [repo.commit(3, [("create", f"{DATASET}/b", dataset())])])
    (again,) = await store.to_purge(10)
    await store.not_purged(again, "active")
    assert await store.to_resync(10) == [DID]


async def test_a_key_that_changed_just_now(store: Store, repo: Repo, database_url: str) -> None:
    """However recently a key was read: a commit that came since may be signed with the next."""
    await store.apply_identity(replace(IDENTITY, signing_key=multikey("did:old")))
    applied = await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    assert (applied.waiting, applied.quarantined) == (1, 0)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE repositories SET resync_at = now()")
    assert await store.to_refresh(10, keys_only=True) == [DID]
    assert (await store.apply_identity(IDENTITY)).written == 1


async def test_a_key_is_not_all_that_is_missing(store: Store, repo: Repo, database_url: str) -> None:
    """What a sweep found while the key was looked for is still to be mended when it is there."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE repositories SET signing_key = %s", [multikey("did:old")])
    await feed(store, [repo.commit(2)])
    await store.save_cursor(None, gap="a gap")
    await store.start_sweep()
    (check,) = (check for check in await store.to_check(10) if check.did == DID)
    await store.differs(check, "its host is elsewhere")
    await store.apply_identity(IDENTITY)
    assert await store.to_resync(10) == [DID]


async def test_a_snapshot_from_before_what_was_found(store: Store, repo: Repo, database_url: str) -> None:
    """It was fetched before: the repository is read once more."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    await store.save_cursor(None, gap="a gap")
    await store.start_sweep()
    (check,) = (check for check in await store.to_check(10) if check.did == DID)
    await store.differs(check, "its host is elsewhere")
    assert await store.to_resync(10) == [DID]
    await store.differs(check, "it is elsewhere again")
    assert await store.apply_snapshot(snapshot_of(repo, 2, song=dataset())) is not None
    assert await store.to_resync(10) == [DID]


async def test_a_host_with_many_leaves_room(store: Store, database_url: str) -> None:
    """While many repositories of one host are being read, it is others' turn, however long its own have waited."""
    honest = "did:plc:" + "h" * 24
    crowd = [f"did:plc:{n:024}" for n in range(CROWD + 8)]
    await store.discovered(crowd)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE repositories SET pds = 'https://slow.example', resync_at = now() - interval '1 day'")
    taken = await store.to_resync(CROWD)
    assert len(taken) == CROWD
    await store.discovered([honest])
    assert await store.to_resync(CROWD, but=taken) == [honest]
    assert len(await store.to_resync(CROWD, but=[*taken[1:], honest])) == 9


async def test_who_is_read_over_and_over_waits(store: Store, repo: Repo, database_url: str) -> None:
    """A repository that is out of step again as soon as it was read waits twice as long each time; a quiet one not."""

    async def pause(seq: int, after: str) -> int:
        """How long it waits when it is out of step, *after* it was read before and read now."""
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute("UPDATE repositories SET resynced_at = resynced_at - %s::interval", [after])
            await store.apply_snapshot(snapshot_of(repo, seq, song=dataset()))
            repo.rev = rev(seq + 1)
            await feed(store, [repo.commit(seq + 2, [("update", PATH, dataset())])])
            row = admin.execute(
                "SELECT extract(epoch FROM resync_at - resynced_at) FROM repositories WHERE did = %s", [DID]
            ).fetchone()
            assert row is not None
            return round(row[0])

    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    times = enumerate(["1 s", "11 s", "21 s", "41 s", "10 min"], 1)
    assert [await pause(10 * n, after) for n, after in times] == [10, 20, 40, 80, 10]


async def test_a_commit_too_big_and_a_host_that_lags(store: Store, repo: Repo, database_url: str) -> None:
    """A snapshot that does not have the commit yet does not mend what it did."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())])])
    big = repo.commit_body(5, [("delete", PATH, None)])
    await feed(store, [frame("#commit", {**big, "tooBig": True, "blocks": b""})])
    assert await store.to_resync(10) == [DID]
    assert await store.apply_snapshot(snapshot_of(Repo(), 1, song=dataset())) is None
    assert await store.apply_snapshot(snapshot_of(Repo(), 5)) is not None
    assert rows(database_url, "SELECT * FROM records") == []


async def test_the_future_is_not_entered_by_waiting(store: Store, repo: Repo, database_url: str) -> None:
    """A rev of a time to come is refused behind a resync, too."""
    await store.discovered([DID])
    repo.rev = rev(4)
    await feed(store, [repo.commit(5)])
    held = snapshot_of(repo, 6)
    later = "3zzzzzzzzzzzz"
    body = repo.commit_body(7, [("create", PATH, dataset())])
    signed_later = signed(DID, later, tree(repo.records)[0])
    blocks = car(cid(signed_later), [signed_later, *tree(repo.records)[1], block(dataset())])
    body |= {"rev": later, "since": rev(6), "commit": cid(signed_later), "blocks": blocks}
    await feed(store, [frame("#commit", body)])
    assert await store.apply_snapshot(held) is not None
    assert rows(database_url, "SELECT rev FROM repositories WHERE did = %s", DID) == [{"rev": rev(6)}]


async def test_who_is_hidden_does_not_fill_the_waiting_room(store: Store, repo: Repo, database_url: str) -> None:
    """Frames of accounts that are gone for a while are let go: when they are back, they are read."""
    await feed(store, [repo.commit(1), account(2, active=False, status="deactivated")])
    repo.rev = rev(4)
    await feed(store, [repo.commit(5)])
    assert (await store.counts())["waiting"] == 0
    await feed(store, [account(6, active=True)])
    assert await store.to_resync(10) == [DID]


async def test_what_a_host_says_of_an_account(store: Store, database_url: str) -> None:
    """It hides an account until it gives it out again, whatever the stream last said."""
    await store.discovered([DID, OTHER])
    await store.unavailable(DID, "deactivated")
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "deactivated"}]
    await store.apply_snapshot(Snapshot(DID, rev(5), "data", (), "commit", IDENTITY))
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "active"}]
    await feed(store, [account(5, active=True, did=OTHER)])
    await store.unavailable(OTHER, "deactivated")
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", OTHER) == [{"status": "deactivated"}]
    await store.apply_snapshot(snapshot_of(Repo(OTHER), 5))
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", OTHER) == [{"status": "active"}]


async def test_each_relay_counts_in_its_own_way(store: Store, repo: Repo, database_url: str) -> None:
    """After a change of relay, account states go on, whatever number the other one was at."""
    await feed(store, [repo.commit(1, [("create", PATH, dataset())]), account(31_000_000_000, active=True)])
    await store.close()
    other = await Store.open(database_url, "other.example")
    assert (await feed(other, [account(500, active=False, status="takendown")])).replayed == 0
    assert rows(database_url, "SELECT status FROM repositories WHERE did = %s", DID) == [{"status": "takendown"}]
    await other.close()


async def test_a_host_that_is_behind(store: Store, repo: Repo, database_url: str) -> None:
    """An older snapshot than what we hold is refused, until its host insists: then it was set back."""
    await feed(store, [repo.commit(9, [("create", PATH, dataset())])])
    older = snapshot_of(repo, 8)
    for _ in range(3):
        await store.resync_failed(DID, "it did not answer")
    for _ in range(2):
        assert await store.apply_snapshot(older) is None
    assert await store.apply_snapshot(older) is not None
    assert rows(database_url, "SELECT * FROM records") == []


async def test_a_second_writer_waits(database_url: str, store: Store, repo: Repo) -> None:
    """An indexer beside a running one stands by, and takes over at the committed cursor when that is gone."""
    await feed(store, [repo.commit(7, [("create", PATH, dataset())])])
    second = asyncio.ensure_future(Store.open(database_url, "relay.example"))
    done, _ = await asyncio.wait([second], timeout=0.5)
    assert not done
    await store.close()
    taken_over = await second
    assert await taken_over.cursor() == 7
    await taken_over.close()


async def test_a_failed_batch_leaves_nothing(store: Store, repo: Repo, database_url: str) -> None:
    """A connection that breaks in the middle leaves neither records nor a moved cursor; afterwards all is applied."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION die() RETURNS trigger AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid());"
            " RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        admin.execute("CREATE TRIGGER die BEFORE INSERT ON cursors FOR EACH ROW EXECUTE FUNCTION die()")
        batch = [repo.commit(7, [("create", PATH, dataset())])]
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
    await store.discovered([DID])
    await feed(store, [account(31_000_000_000, active=True)], cursor=9)
    await store.save_cursor(9)
    assert await forget_cursor(database_url, "relay.example")
    assert not await forget_cursor(database_url, "relay.example")
    assert await store.cursor() is None
    # The relay may have been reset: what it said of accounts does not outrank what it says from now on.
    assert (await feed(store, [account(7, active=False, status="takendown")])).replayed == 0


async def test_a_snapshot_of_too_much_json(
    store: Store, repo: Repo, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository whose records are more than fit one transaction is not kept, and the reason says so."""
    monkeypatch.setattr(store_module, "_MAX_REPOSITORY_JSON", 1000)
    data = block(dataset("x" * 400))
    listed = [RepoRecord(DATASET, str(n), cid_text(cid(data)), data) for n in range(4)]
    for record in listed:
        repo.records[f"{DATASET}/{record.rkey}"] = cid(data)
    root, _ = tree(repo.records)
    snapshot = Snapshot(DID, rev(1), cid_text(root), tuple(listed), cid_text(cid(b"commit")), IDENTITY)
    with pytest.raises(FetchFailed, match="more than 1000 bytes of JSON"):
        await store.apply_snapshot(snapshot)
    assert rows(database_url, "SELECT 1 FROM records") == []
    monkeypatch.undo()
    await store.apply_snapshot(snapshot)
    assert len(rows(database_url, "SELECT 1 FROM records")) == 4


async def test_much_is_written_in_several_statements(
    store: Store, repo: Repo, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of one batch need not fit one statement; they are all there, or none."""
    monkeypatch.setattr(store_module, "_MAX_STATEMENT_JSON", 1000)
    commits = [repo.commit(n, [("create", f"{DATASET}/{n}", dataset("x" * 300))]) for n in range(1, 8)]
    applied = await feed(store, commits)
    assert (applied.written, applied.quarantined) == (7, 0)
    assert len(rows(database_url, "SELECT 1 FROM records")) == 7


async def test_waiting_frames_of_too_much_json(
    store: Store, repo: Repo, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what waited, no more is applied than fits one transaction; for the rest the repository is read once more."""
    monkeypatch.setattr(store_module, "_MAX_REPOSITORY_JSON", 2000)
    await feed(store, [repo.commit(1)])
    with psycopg.connect(database_url) as connection:
        connection.execute(b"UPDATE repositories SET signing_key = NULL, resolved_at = NULL WHERE did = %s", [DID])
    names = [(n, f"{DATASET}/{n}") for n in range(2, 20)]
    await feed(store, [repo.commit(n, [("create", path, dataset("x" * 400))]) for n, path in names])
    assert rows(database_url, "SELECT count(*) FROM pending_frames") == [{"count": 18}]
    await store.apply_identity(IDENTITY)
    (repository,) = rows(database_url, "SELECT desynced FROM repositories WHERE did = %s", DID)
    assert repository["desynced"] == "more came than could wait for it"
    assert 0 < len(rows(database_url, "SELECT 1 FROM records")) < 5


async def test_a_repair_waits_for_its_own(store: Store, database_url: str) -> None:
    """What others have to do is not waited for; the repositories and URIs that were asked for are, until tried."""
    mine = f"at://{DID}/{DATASET}/mine"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await mend(connection, {DID: "active"}, [mine])
        await connection.execute("INSERT INTO search_outbox (uri) VALUES ('at://did:web:other.example/x/y')")
        assert await unmended(connection, [DID], [mine]) == [f"at://{DID}", mine]
        await store.fed(await store.outbox(1))
        assert await unmended(connection, [DID], [mine]) == [f"at://{DID}"]
        await store.resync_failed(DID, "no answer")
        assert await unmended(connection, [DID], [mine]) == []
