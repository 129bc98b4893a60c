"""The table of changes: every way in which records and accounts change, in order, and who follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from frames import DATASET, DID, SCHEMA, Repo, account, block, cid, dataset, multikey, rev, schema, tree
from jetstream import commit as mentioned
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from atdata_appview import changes as changes_module
from atdata_appview.changes import Change, Follower
from atdata_appview.store import Store as Reader
from atdata_backend.identity import Identity
from atdata_backend.postgres import open_pool
from atdata_indexer import store as store_module
from atdata_indexer.backfill import RecordProof, RepoRecord, Snapshot
from atdata_indexer.car import cid_text
from atdata_indexer.events import Scope
from atdata_indexer.jetstream import parse_any
from atdata_indexer.store import Applied, Check, Item, Store, mend

OTHER = "did:plc:" + "b" * 24
PATH = f"{DATASET}/song"
KEY = (DID, DATASET, "song")
NOVELTY = "ac.foundation.dataset.novelty/x"


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store that knows the keys of two repositories, and nothing else of them."""
    with psycopg.connect(database_url) as admin:
        for did in (DID, OTHER):
            admin.execute(
                "INSERT INTO repositories (did, pds, signing_key) VALUES (%s, 'https://pds.example', %s)",
                [did, multikey(did)],
            )
    store = await Store.open(database_url, "relay.example")
    yield store
    await store.close()


@pytest.fixture
def repo() -> Repo:
    return Repo()


async def feed(store: Store, *frames: bytes) -> Applied:
    """Apply *frames*, of a firehose or a Jetstream, as one batch."""
    scope = Scope(("ac.foundation.dataset.",), {DID, OTHER})
    return await store.apply([Item(event, data, 1) for data in frames for event in parse_any(data, scope).events], 1)


class Log:
    """What is new in the table, each time it is asked: actions and record keys, or what became of accounts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seq = 0

    def rows(self) -> list[tuple[Any, ...]]:
        query = "SELECT seq, action, did, collection, rkey, kind, cid, status FROM changes WHERE seq > %s ORDER BY seq"
        with psycopg.connect(self.url) as connection:
            rows = connection.execute(query, [self.seq]).fetchall()
        self.seq = rows[-1][0] if rows else self.seq
        return rows

    def __call__(self) -> list[str]:
        return [
            f"{did.removeprefix('did:plc:')[0]} {status}" if action == "account" else f"{action} {rkey}"
            for _, action, did, _, rkey, _, _, status in self.rows()
        ]


@pytest.fixture
def log(database_url: str) -> Log:
    return Log(database_url)


def identity_of(did: str) -> Identity:
    return Identity(did, None, "https://pds.example", multikey(did))


def snapshot_of(repo: Repo, at: int, **records: dict[str, Any]) -> Snapshot:
    """*repo* as its host gives it out, with *records* and no others."""
    blocks = {rkey: block(record) for rkey, record in records.items()}
    repo.records = {f"{DATASET}/{rkey}": cid(data) for rkey, data in blocks.items()}
    repo.rev = rev(at)
    entries = tuple(RepoRecord(DATASET, rkey, cid_text(cid(data)), data) for rkey, data in blocks.items())
    return Snapshot(repo.did, repo.rev, cid_text(tree(repo.records)[0]), entries, "commit", identity_of(repo.did))


# --- Every way to write


async def test_commits(store: Store, repo: Repo, log: Log) -> None:
    """What is created, updated and deleted is told in order, of every kind, and of collections that nobody knows."""
    await feed(store, repo.commit(1, [("create", PATH, dataset()), ("create", f"{SCHEMA}/s", schema())]))
    first = block(dataset())
    assert log.rows() == [
        (1, "create", DID, DATASET, "song", "dataset", cid_text(cid(first)), None),
        (2, "create", DID, SCHEMA, "s", "schema", cid_text(cid(block(schema()))), None),
    ]
    await feed(
        store,
        repo.commit(2, [("update", PATH, dataset("Owls"))]),
        repo.commit(3, [("create", NOVELTY, {"$type": NOVELTY.partition("/")[0]})]),
    )
    update, create = log.rows()
    assert update[1:] == ("update", DID, DATASET, "song", "dataset", cid_text(cid(block(dataset("Owls")))), None)
    assert (create[1], create[5]) == ("create", None)
    await feed(store, repo.commit(4, [("delete", PATH, None)]))
    assert [row[1:5] for row in log.rows()] == [("delete", DID, DATASET, "song")]


async def test_a_batch_is_its_sum(store: Store, repo: Repo, log: Log) -> None:
    """What is written and deleted in one batch changed nothing; what is written twice in it changed once."""
    await feed(
        store,
        repo.commit(1, [("create", f"{DATASET}/a", dataset())]),
        repo.commit(2, [("create", f"{DATASET}/b", dataset())]),
        repo.commit(3, [("update", f"{DATASET}/b", dataset("B")), ("delete", f"{DATASET}/a", None)]),
    )
    assert log() == ["create b"]


async def test_replays_change_nothing(store: Store, repo: Repo, log: Log) -> None:
    """The same batch again, an older one, and an account that is what it was, leave no trace."""
    batch = [
        repo.commit(1, [("create", PATH, dataset())]),
        repo.commit(2, [("update", PATH, dataset("Owls")), ("create", f"{DATASET}/b", dataset())]),
        account(3, active=True),
    ]
    await feed(store, *batch)
    assert log() == ["create song", "create b"]
    await feed(store, *batch)
    await feed(store, batch[0])
    await feed(store, account(4, active=True))
    assert log() == []


async def test_all_or_nothing(store: Store, repo: Repo, log: Log, database_url: str) -> None:
    """A batch that fails at its very end leaves no changes, and what is done again makes them once."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("ALTER TABLE cursors ADD CONSTRAINT no CHECK (seq <> 1)")
        batch = repo.commit(1, [("create", PATH, dataset())])
        with pytest.raises(psycopg.errors.CheckViolation):
            await feed(store, batch)
        assert log() == []
        admin.execute("ALTER TABLE cursors DROP CONSTRAINT no")
    await feed(store, batch)
    assert log() == ["create song"]


async def test_a_record_that_is_refused(store: Store, repo: Repo, log: Log, database_url: str) -> None:
    """What the database does not take does not show; what was there in its place is gone."""
    await feed(store, repo.commit(1, [("create", PATH, dataset()), ("create", f"{DATASET}/b", dataset())]))
    log()
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("ALTER TABLE records ADD CONSTRAINT no CHECK (name <> 'bad') NOT VALID")
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN IF NEW.name = 'bad' THEN"
            " RAISE EXCEPTION USING ERRCODE = '54000'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql;"
            " CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON records FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    ops = [("update", PATH, dataset("bad")), ("update", f"{DATASET}/b", dataset("good"))]
    assert (await feed(store, repo.commit(2, ops))).quarantined == 1
    assert log() == ["update b", "delete song"]


async def test_a_resync(store: Store, repo: Repo, log: Log) -> None:
    """Of a repository that is read whole, what differs: the rest is not touched, and what waited comes behind it."""
    names = ("same", "old", "gone")
    await feed(store, repo.commit(1, [("create", f"{DATASET}/{name}", dataset(name)) for name in names]))
    log()
    repo.rev = rev(4)
    waiting = repo.commit(9, [("create", f"{DATASET}/late", dataset("late"))])
    assert (await feed(store, waiting)).waiting == 1
    assert log() == []
    records = {"same": dataset("same"), "old": dataset("changed"), "new": dataset("new")}
    snapshot = snapshot_of(repo, 4, **records)
    repo.records.pop(f"{DATASET}/late", None)
    assert await store.apply_snapshot(snapshot) is not None
    assert sorted(log()) == ["create new", "delete gone", "update old"]
    await store.apply_snapshot(snapshot)
    assert log() == []


async def test_proofs(store: Store, repo: Repo, log: Log) -> None:
    """That a record is proven now is a change; that it is mentioned again, or proven again, is none."""
    await store.apply_snapshot(snapshot_of(repo, 1))

    def proof(n: int, record: dict[str, Any] | None) -> RecordProof:
        data = None if record is None else block(record)
        found = data and RepoRecord(DATASET, "song", cid_text(cid(data)), data)
        return RecordProof(DID, rev(n), f"commit-{n}", identity_of(DID), found or None)

    await feed(store, mentioned(("create", PATH, dataset()), 7, at=7))
    assert log() == ["create song"]
    await store.confirm(KEY, proof(7, dataset()))
    assert log() == ["update song"]
    await feed(store, mentioned(("create", PATH, dataset()), 8, at=8))
    await store.confirm(KEY, proof(8, dataset()))
    assert log() == []
    await feed(store, mentioned(("update", PATH, dataset("Forged")), 9, at=9))
    await store.confirm(KEY, proof(9, dataset("True")))
    assert log() == ["update song", "update song"]
    await feed(store, mentioned(("update", PATH, dataset("Gone")), 10, at=10))
    await store.confirm(KEY, proof(10, None))
    assert log() == ["update song", "delete song"]


async def test_a_snapshot_proves_what_was_mentioned(store: Store, repo: Repo, log: Log) -> None:
    """What was taken on trust is an update when its repository was read whole."""
    await store.apply_snapshot(snapshot_of(repo, 1))
    await feed(store, mentioned(("create", PATH, dataset()), 7, at=7))
    assert log() == ["create song"]
    await store.apply_snapshot(snapshot_of(repo, 8, song=dataset()))
    assert log() == ["update song"]


# --- Accounts


async def check_of(store: Store) -> Check:
    """The repository as a sweep comes upon it."""
    await store.save_cursor(None, gap="a gap")
    await store.start_sweep()
    return next(check for check in await store.to_check(10) if check.did == DID)


async def test_accounts(store: Store, repo: Repo, log: Log) -> None:
    """One that is hidden is told once; with one that is back, all that it has."""
    await feed(store, repo.commit(1, [("create", PATH, dataset()), ("create", f"{DATASET}/b", dataset())]))
    log()
    await feed(store, account(2, active=False, status="deactivated"))
    assert log() == ["a deactivated"]
    await feed(store, account(3, active=False, status="deactivated"), account(4, active=False, status="takendown"))
    assert log() == ["a takendown"]
    await feed(store, account(5, active=True))
    assert log() == ["a active", "create song", "create b"]


async def test_what_hosts_say_of_accounts(store: Store, repo: Repo, log: Log, database_url: str) -> None:
    """Hidden and shown in every way that there is: by resyncs, sweeps, proofs, repairs, questions before a purge."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]))
    log()
    back = ["a active", "create song"]
    await store.unavailable(DID, "suspended")
    assert log() == ["a suspended"]
    await store.unavailable(DID, "suspended")
    assert log() == []
    await store.apply_snapshot(snapshot_of(repo, 2, song=dataset()))
    assert log() == back

    await store.found_unavailable(await check_of(store), "not-found")
    assert log() == ["a not-found"]
    await store.differs(await check_of(store), "it is given out")
    assert log() == back

    await store.unavailable(DID, "deactivated")
    await feed(store, mentioned(("update", PATH, dataset("Owls")), 7, at=7))
    with psycopg.connect(database_url) as admin:
        admin.execute("INSERT INTO confirmations (did, collection, rkey, rev) VALUES (%s, %s, %s, '')", KEY)
    data = block(dataset())
    found = RepoRecord(DATASET, "song", cid_text(cid(data)), data)
    log()
    await store.confirm(KEY, RecordProof(DID, rev(8), "commit-8", identity_of(DID), found))
    assert log() == back

    await feed(store, account(9, active=False, status="deleted"))
    assert log() == ["a deleted"]
    (check,) = await store.to_purge(10)
    await store.not_purged(check, "active")
    assert log() == back

    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await mend(connection, {DID: "takendown", "did:web:new.example": "active"}, [])
        assert log() == ["a takendown"]
        await mend(connection, {DID: None}, [])
        assert log() == []
        await mend(connection, {DID: "active"}, [])
        assert log() == back


async def test_a_purge(store: Store, repo: Repo, log: Log) -> None:
    """The account is deleted, and then its records are; whoever is told twice has lost nothing."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]), account(2, active=False, status="deleted"))
    assert log() == ["create song", "a deleted"]
    (check,) = await store.to_purge(10)
    await store.purge(check)
    assert log() == ["delete song"]


# --- Order


async def until(url: str, query: str) -> None:
    """Wait until *query* finds something."""
    with psycopg.connect(url, autocommit=True) as watcher:
        async with asyncio.timeout(30):
            while not watcher.execute(query.encode()).fetchall():
                await asyncio.sleep(0)


async def test_numbers_are_in_the_order_of_commits(store: Store, repo: Repo, log: Log, database_url: str) -> None:
    """While a repair has a number and is not committed, the indexer gets none: nobody finds a smaller one later."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]))
    log()
    async with await AsyncConnection.connect(database_url) as repair:
        await repair.execute("UPDATE repositories SET status = 'takendown' WHERE did = %s", [OTHER])
        writing = asyncio.create_task(feed(store, repo.commit(2, [("update", PATH, dataset("Owls"))])))
        await until(database_url, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        assert (log(), writing.done()) == ([], False)
        await repair.commit()
    await writing
    assert log() == ["b takendown", "update song"]


async def test_a_repair_gives_way(store: Store, repo: Repo, log: Log, database_url: str) -> None:
    """Where each of the two has what the other needs, the repair lets go and comes again; the indexer just goes on."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]))
    log()
    await store.fed(await store.outbox(10))
    async with (
        await AsyncConnection.connect(database_url) as indexer,
        await AsyncConnection.connect(database_url, autocommit=True) as connection,
    ):
        await indexer.execute("INSERT INTO search_outbox (uri) VALUES (%s)", [f"at://{DID}/{PATH}"])
        repairing = asyncio.create_task(mend(connection, {DID: "takendown"}, []))
        await until(database_url, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        # The repair has its number, and waits for that row.
        await indexer.execute("UPDATE repositories SET status = 'suspended' WHERE did = %s", [OTHER])
        await indexer.commit()
        await repairing
    assert log() == ["b suspended", "a takendown"]


# --- Forgetting


async def test_pruning(store: Store, repo: Repo, log: Log, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than a week goes, from the beginning and in pieces, and up to where is known."""
    monkeypatch.setitem(store_module._CHANGES, "piece", 2)
    await feed(store, repo.commit(1, [("create", f"{DATASET}/{n}", dataset()) for n in range(8)]))

    def age(days: int, upto: int) -> None:
        with psycopg.connect(database_url) as admin:
            admin.execute("UPDATE changes SET at = now() - %s * interval '1 day' WHERE seq <= %s", [days, upto])

    def kept() -> tuple[Any, ...]:
        with psycopg.connect(database_url) as connection:
            query = "SELECT (SELECT min(seq) FROM changes), (SELECT max(seq) FROM changes), seq FROM changes_pruned"
            (row,) = connection.execute(query).fetchall()
        return tuple(row)

    await store.prune_changes()
    assert kept() == (1, 8, 0)
    age(6, upto=8)
    await store.prune_changes()
    assert kept() == (1, 8, 0)
    age(8, upto=5)
    await store.prune_changes()
    assert kept() == (6, 8, 5)
    age(8, upto=8)
    await store.prune_changes()
    assert kept() == (None, None, 8)
    async with reader(database_url) as reading:
        assert await reading.latest_change() == 8
        assert await reading.changes_after(0, 10) == []
    await feed(store, repo.commit(2, [("delete", f"{DATASET}/1", None)]))
    assert kept() == (9, 9, 8)


# --- Following


@asynccontextmanager
async def reader(url: str) -> AsyncIterator[Reader]:
    """The AppView's store."""
    pool = await open_pool(url)
    yield Reader(pool)
    await pool.close()


class Listener:
    """Remembers what it was given, and can be waited for; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.given: list[Change] = []
        self.sizes: list[int] = []
        self._news = asyncio.Event()

    async def __call__(self, changes: Sequence[Change]) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not now")
        self.given += changes
        self.sizes.append(len(changes))
        self._news.set()

    async def until(self, seq: int) -> list[int]:
        """The numbers that it was given, once *seq* is among them."""
        async with asyncio.timeout(30):
            while not self.given or self.given[-1].seq < seq:
                self._news.clear()
                await self._news.wait()
        return [change.seq for change in self.given]


async def test_a_follower(store: Store, repo: Repo, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who listens is given what comes after their number, once, in order, in batches; until they stop."""
    monkeypatch.setattr(changes_module, "BATCH", 3)
    await feed(store, repo.commit(1, [("create", f"{DATASET}/{n}", dataset()) for n in range(8)]))
    async with reader(database_url) as reading:
        follower = Follower(reading)
        all_, some, gone = Listener(), Listener(), Listener()
        follower.listen(all_, after=0)
        follower.listen(some, after=6)
        stop = follower.listen(gone, after=await reading.latest_change())
        async with follower.running():
            assert await all_.until(8) == [1, 2, 3, 4, 5, 6, 7, 8]
            assert max(all_.sizes) == 3
            assert await some.until(8) == [7, 8]
            stop()
            stop()
            late = Listener()
            follower.listen(late, after=7)
            await feed(store, repo.commit(2, [("delete", f"{DATASET}/0", None)]), account(3, active=False))
            assert await all_.until(10) == [*range(1, 11)]
            assert await some.until(10) == [7, 8, 9, 10]
            assert await late.until(10) == [8, 9, 10]
        assert gone.given == []
        hide, delete = all_.given[-2:]
        assert (hide.action, hide.uri, hide.kind, hide.status) == ("account", f"at://{DID}", None, "inactive")
        assert (delete.action, delete.uri, delete.kind) == ("delete", f"at://{DID}/{DATASET}/0", "dataset")


async def test_a_listener_that_fails(
    store: Store, repo: Repo, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is given the same again, is logged once, and keeps nobody else from what is new."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]))
    async with reader(database_url) as reading:
        follower = Follower(reading)
        failing, other = Listener(failures=3), Listener()
        follower.listen(failing, after=0)
        follower.listen(other, after=0)
        async with follower.running():
            await other.until(1)
            await feed(store, repo.commit(2, [("delete", PATH, None)]))
            assert await other.until(2) == [1, 2]
            assert await failing.until(2) == [1, 2]
    (record,) = [record for record in caplog.records if "a listener failed" in record.message]
    assert record.exc_info


async def test_a_database_that_goes_away(
    store: Store, repo: Repo, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that are cut, and a server that takes none for a while: who follows goes on where it was."""
    await feed(store, repo.commit(1, [("create", PATH, dataset())]))
    caplog.set_level("INFO", "atdata_appview")
    async with reader(database_url) as reading:
        follower, listener = Follower(reading), Listener()
        follower.listen(listener, after=0)
        async with follower.running():
            await listener.until(1)
            allow = allowing(database_url)
            await asyncio.to_thread(allow, False)
            async with asyncio.timeout(30):
                while "cannot read the changes" not in caplog.text:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(allow, True)
            await store.reopen()
            await feed(store, repo.commit(2, [("delete", PATH, None)]))
            assert await listener.until(2) == [1, 2]
    assert caplog.text.count("cannot read the changes") == caplog.text.count("following the changes again") == 1


def allowing(url: str) -> Callable[[bool], None]:
    """What lets the database take connections, or cuts and refuses them."""
    name = str(conninfo_to_dict(url)["dbname"])
    admin = make_conninfo(url, dbname="postgres")

    def allow(connections: bool) -> None:
        with psycopg.connect(admin, autocommit=True) as connection:
            allowed = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            connection.execute(allowed.format(sql.Identifier(name), sql.Literal(connections)))
            if not connections:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    return allow
