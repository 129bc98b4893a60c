"""Jetstream as the source: shown at once, proven a moment later, and what it made up put right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from frames import DATASET, DID, block, cid, commit_body, dataset, frame, multikey, rev
from integration.test_ingest import relay, rows, until
from jetstream import Host, Hosted, Jetstream, account, commit, host, jetstream, message, now

from atdata.syntax import tid_at
from atdata_backend.identity import Identity
from atdata_backend.search import open_engine
from atdata_indexer.backfill import RecordProof, RepoRecord, Snapshot
from atdata_indexer.car import cid_text
from atdata_indexer.events import Scope
from atdata_indexer.ingest import Indexer
from atdata_indexer.jetstream import parse
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import Applied, Item, Store

OTHER = "did:plc:" + "b" * 24
PATH = f"{DATASET}/song"
URI = f"at://{DID}/{PATH}"
KEY = (DID, DATASET, "song")


# The store.

SCOPE = Scope(("ac.foundation.dataset.",), {DID, OTHER})
IDENTITY = Identity(DID, None, "https://pds.example", multikey(DID))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store that has read the empty repository of one account whole."""
    store = await Store.open(database_url, "jetstream.example/subscribe")
    await store.discovered([DID])
    await store.apply_snapshot(Snapshot(DID, rev(1), "data-1", (), "commit-1", IDENTITY))
    yield store
    await store.close()


async def feed(store: Store, *messages: bytes) -> Applied:
    """Apply *messages* as one batch."""
    items = [Item(event, data, 1) for data in messages for event in parse(data, SCOPE).events]
    return await store.apply(items, 1)


def proof(n: int, record: dict[str, Any] | bytes | None, path: str = PATH) -> RecordProof:
    """What the host proves at its commit *n*."""
    commit = f"commit-{n}"
    if record is None:
        return RecordProof(DID, rev(n), commit, IDENTITY, None)
    data = record if isinstance(record, bytes) else block(record)
    collection, _, rkey = path.partition("/")
    return RecordProof(DID, rev(n), commit, IDENTITY, RepoRecord(collection, rkey, cid_text(cid(data)), data))


def created(n: int, record: dict[str, Any] | None = None, path: str = PATH) -> bytes:
    return commit(("create", path, record or dataset()), n, at=n)


def deleted(n: int, path: str = PATH) -> bytes:
    return commit(("delete", path, None), n, at=n)


def out_of_step(url: str) -> None:
    """The repository is to be read whole."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE repositories SET desynced = 'gap', desynced_at = now(), resync_at = now()")


RECORDS = "SELECT rkey, name, verified_at IS NOT NULL, verified_key, commit_cid FROM records ORDER BY rkey"
MENTIONED = ("song", "Birdsong", False, None, None)


async def test_a_mention_asks_for_a_proof(store: Store, database_url: str) -> None:
    """The record is there, unverified, and its host is to be asked; both come with one transaction."""
    applied = await feed(store, created(7))
    assert (applied.written, applied.commits, applied.mentions) == (1, 1, True)
    assert rows(database_url, RECORDS) == [MENTIONED]
    assert rows(database_url, "SELECT rev, data FROM repositories") == [(rev(7), None)]
    assert await store.to_confirm(10) == [KEY]
    assert await store.to_confirm(10, but=[KEY]) == []
    assert (await store.counts())["unconfirmed"] == 1


async def test_a_proof_verifies(store: Store, database_url: str) -> None:
    """The record that was mentioned, proven at a later rev: nothing changes but that it is verified."""
    await feed(store, created(7))
    before = rows(database_url, "SELECT id, cid, rev, indexed_at FROM records")
    await store.fed(await store.outbox(10))
    applied = await store.confirm(KEY, proof(9, dataset()))
    assert applied == Applied()
    assert rows(database_url, RECORDS) == [("song", "Birdsong", True, multikey(DID), "commit-9")]
    assert rows(database_url, "SELECT id, cid, rev, indexed_at FROM records") == before
    assert rows(database_url, "SELECT rev FROM repositories") == [(rev(7),)], "what came between may yet be mentioned"
    assert await store.to_confirm(10) == []
    assert await store.outbox(10) == [(1, URI)], "hits say so, too"


async def test_a_mention_again_keeps_the_proof(store: Store, database_url: str) -> None:
    """After a reconnect the last messages come twice: what is proven stays so, and its host is not asked again."""
    await feed(store, created(7))
    await store.confirm(KEY, proof(7, dataset()))
    assert (await feed(store, created(7))).written == 1
    assert rows(database_url, RECORDS) == [("song", "Birdsong", True, multikey(DID), "commit-7")]
    # It was proven at the rev of the message; at a later one that would have to be proven, too.
    await feed(store, created(8))
    assert await store.to_confirm(10) == [KEY]
    assert rows(database_url, RECORDS) == [("song", "Birdsong", True, multikey(DID), "commit-7")]


async def test_a_proof_of_another_record(store: Store, database_url: str) -> None:
    """What the host proves is the truth, whether the mention was a lie or is older; search follows."""
    await feed(store, created(7, dataset("Forged")))
    await store.fed(await store.outbox(10))
    applied = await store.confirm(KEY, proof(7, dataset("True")))
    assert applied is not None
    assert (applied.written, applied.deleted) == (1, 0)
    assert rows(database_url, RECORDS) == [("song", "True", True, multikey(DID), "commit-7")]
    assert [uri for _, uri in await store.outbox(10)] == [URI]


async def test_a_proof_that_there_is_none(store: Store, database_url: str) -> None:
    """A record that its repository does not have goes, and goes from search."""
    await feed(store, created(7))
    await store.fed(await store.outbox(10))
    applied = await store.confirm(KEY, proof(8, None))
    assert applied is not None
    assert (applied.written, applied.deleted) == (0, 1)
    assert rows(database_url, RECORDS) == []
    assert [uri for _, uri in await store.outbox(10)] == [URI]


async def test_a_forged_delete(store: Store, database_url: str) -> None:
    """A record whose repository still has it comes back; one that is gone stays so."""
    await feed(store, created(7), created(7, path=f"{DATASET}/other"))
    await feed(store, deleted(8), deleted(8, f"{DATASET}/other"))
    assert rows(database_url, RECORDS) == []
    await store.confirm(KEY, proof(8, dataset()))
    assert await store.confirm((DID, DATASET, "other"), proof(8, None)) == Applied()
    assert rows(database_url, RECORDS) == [("song", "Birdsong", True, multikey(DID), "commit-8")]
    assert await store.to_confirm(10) == []


async def test_a_proven_record_that_cannot_be_kept(store: Store, database_url: str) -> None:
    """It is in quarantine with its bytes, and what was mentioned in its place goes."""
    await feed(store, created(7))
    bad = block(dataset("a\x00b"))
    applied = await store.confirm(KEY, proof(7, bad))
    assert applied is not None
    assert (applied.deleted, applied.quarantined) == (1, 1)
    assert rows(database_url, "SELECT reason, did, bytes FROM quarantine") == [("nul-character", DID, bad)]
    assert rows(database_url, RECORDS) == []


async def test_a_mention_while_its_host_was_asked(store: Store, database_url: str) -> None:
    """A proof from before the last mention proves nothing of it."""
    await feed(store, created(7))
    await feed(store, commit(("update", PATH, dataset("Owls")), 8, at=8))
    assert await store.confirm(KEY, proof(7, dataset())) is None
    assert rows(database_url, RECORDS) == [("song", "Owls", False, None, None)]
    assert await store.to_confirm(10) == []
    assert rows(database_url, "SELECT tries, at > now() FROM confirmations") == [(1, True)]
    await store.confirm(KEY, proof(8, dataset("Owls")))
    assert rows(database_url, RECORDS) == [("song", "Owls", True, multikey(DID), "commit-8")]


async def test_a_rev_that_never_was(store: Store, database_url: str) -> None:
    """A mention from ahead of its repository hides all that comes until then: found out, everything is read anew."""
    await feed(store, created(900))
    assert (await feed(store, created(8, path=f"{DATASET}/hidden"))).replayed == 1
    for _ in range(2):
        assert await store.confirm(KEY, proof(8, None)) is None
        assert await store.to_resync(10) == []
    applied = await store.confirm(KEY, proof(8, None))
    assert applied is not None
    assert (applied.deleted, applied.desynced) == (1, True)
    assert rows(database_url, "SELECT rev, data, desynced FROM repositories") == [
        (rev(8), None, f"its host is at {rev(8)}, and never came to {rev(900)}")
    ]


async def test_a_host_that_proves_nothing(store: Store, database_url: str) -> None:
    """It is asked again later and later."""
    await feed(store, created(7))
    for n in range(4):
        await store.not_confirmed(KEY)
        assert rows(
            database_url, "SELECT tries, round(extract(epoch FROM at - now()) / 5) FROM confirmations WHERE at > now()"
        ) == [(n + 1, 2**n)]
    await feed(store, created(7))
    assert await store.to_confirm(10) == [], "the same again is no news"
    await feed(store, deleted(8))
    assert await store.to_confirm(10) == [KEY]


async def test_a_resync_is_the_proof_of_all(store: Store, database_url: str) -> None:
    """What was read whole is not asked for one by one, nor is what waits for that."""
    await feed(store, created(7))
    out_of_step(database_url)
    assert await store.to_confirm(10) == []
    assert await store.to_resync(10) == [DID]
    data = block(dataset())
    record = RepoRecord(DATASET, "song", cid_text(cid(data)), data)
    await store.apply_snapshot(Snapshot(DID, rev(8), "data-8", (record,), "commit-8", IDENTITY))
    assert rows(database_url, RECORDS) == [("song", "Birdsong", True, multikey(DID), "commit-8")]
    assert (await store.counts())["unconfirmed"] == 0
    assert await store.confirm(KEY, proof(7, None)) == Applied(), "the answer to a question that is settled"
    assert len(rows(database_url, RECORDS)) == 1


async def test_many_records_are_proven_as_one(store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that wrote a lot is read whole: less work for its host than so many questions."""
    monkeypatch.setattr("atdata_indexer.store._MAX_CONFIRMATIONS", 3)
    assert not (await feed(store, *(created(7, path=f"{DATASET}/{n}") for n in range(3)))).desynced
    assert (await feed(store, created(8))).desynced
    assert await store.to_confirm(10) == []
    assert (await feed(store, created(9, path=f"{DATASET}/late"))).waiting == 1


async def test_mentions_wait_for_a_resync(store: Store, database_url: str) -> None:
    """Those of a repository out of step are applied after it was read, where they are later than that."""
    out_of_step(database_url)
    assert await store.to_resync(10) == [DID]
    assert (await feed(store, created(7, path=f"{DATASET}/old"))).waiting == 1
    assert (await feed(store, created(9, path=f"{DATASET}/new"))).waiting == 1
    assert rows(database_url, RECORDS) == []
    applied = await store.apply_snapshot(Snapshot(DID, rev(8), "data-8", (), "commit-8", IDENTITY))
    assert applied is not None
    assert (applied.replayed, applied.mentions) == (1, True)
    assert [row[0] for row in rows(database_url, RECORDS)] == ["new"]
    assert await store.to_confirm(10) == [(DID, DATASET, "new")]


async def test_too_many_mentions_waiting(store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would show that they are missing: the repository is read once more."""
    monkeypatch.setattr("atdata_indexer.store._MAX_PENDING", 2)
    out_of_step(database_url)
    assert await store.to_resync(10) == [DID]
    await feed(store, *(created(n, path=f"{DATASET}/{n}") for n in range(7, 10)))
    assert (await store.counts())["waiting"] == 0
    await store.apply_snapshot(Snapshot(DID, rev(6), "data-6", (), "commit-6", IDENTITY))
    assert rows(database_url, "SELECT desynced FROM repositories") == [("more came than could wait for it",)]


async def test_what_the_database_refuses(store: Store, database_url: str) -> None:
    """A record that gets past every check is set aside with its message, and its host is asked for it."""
    data = created(7)
    (event,) = parse(data, SCOPE).events
    refused = type(event.op)(DATASET, "song", event.op.cid, b'{"name": "\\u0000"}', event.op.reading)  # type: ignore[union-attr]
    applied = await store.apply([Item(type(event)(DID, rev(7), refused), data, 1)], 1)  # type: ignore[call-arg]
    assert (applied.quarantined, applied.deleted) == (1, 1)
    assert rows(database_url, "SELECT reason, bytes FROM quarantine") == [("refused-by-database", data)]
    assert await store.to_confirm(10) == [KEY]


async def test_a_deleted_account_is_not_asked_for(store: Store, database_url: str) -> None:
    """With the account go the questions about it."""
    await feed(store, created(7), account(False, at=8, status="deleted"))
    (check,) = await store.to_purge(10)
    await store.purge(check)
    assert rows(database_url, RECORDS) == []
    assert (await store.counts())["unconfirmed"] == 0


async def test_a_proof_shows_what_a_failed_question_hid(store: Store, database_url: str) -> None:
    """A host that gives out the record again takes back that it did not have the repository."""
    await feed(store, created(7))
    await store.unavailable(DID, "not-found")
    assert rows(database_url, "SELECT status FROM repositories") == [("not-found",)]
    assert await store.to_confirm(10) == [KEY]
    await store.confirm(KEY, proof(7, dataset()))
    assert rows(database_url, "SELECT status FROM repositories") == [("active",)]


# The indexer whole, over a local WebSocket and HTTP.


@asynccontextmanager
async def indexer(
    url: str, sources: Sequence[Jetstream], there: Host, folder: Path, **more: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """An indexer that reads *sources*, and finds everything else at one host."""
    settings = IndexerSettings(
        database_url=url,
        search_dir=folder,
        plc_url=there.web.url,
        allow_private_hosts=True,
        **{
            "source": "jetstream",
            "jetstream": ",".join(source.url for source in sources),
            "relay": there.web.url,
            **more,
        },
    )
    engine = settings.open_engine()
    task = asyncio.ensure_future(Indexer(settings, engine).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        engine.close()


@pytest.fixture
def repo() -> Hosted:
    """A repository with one record, as of its first commit."""
    repo = Hosted()
    repo.commit(1, [("create", f"{DATASET}/first", dataset("First"))])
    return repo


def says(repo: Hosted, n: int, op: Any) -> bytes:
    """*repo* makes the commit *n*, and Jetstream says so."""
    repo.commit(n, [op])
    return commit(op, n, at=now(), did=repo.did)


def first() -> bytes:
    return commit(("create", f"{DATASET}/first", dataset("First")), 1, at=now())


STATES = "SELECT rkey, name, verified_at IS NOT NULL FROM records ORDER BY rkey"


async def test_who_is_there_that_nobody_tells(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """Without a list of repositories some may be missing, which the status says."""
    async with jetstream([first()]) as source:
        with host(repo) as there:
            there.lists = False
            async with indexer(database_url, [source], there, tmp_path) as task:
                told = "SELECT status->>'trouble' FROM indexer_status"
                await until(lambda: "which repositories there are" in str(rows(database_url, told)), task)


async def test_shown_at_once_and_proven_a_moment_later(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """A record is there before its host was asked, verified when it has answered, and found in search."""
    async with jetstream([first()]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                # Met for the first time, a repository is read whole.
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                assert len(there.asked_for("com.atproto.sync.getRepo")) == 1
                there.open.clear()
                await source.send(says(repo, 2, ("create", PATH, dataset("Owls"))))
                await until(lambda: ("song", "Owls", False) in rows(database_url, STATES), task)
                there.open.set()
                await until(lambda: ("song", "Owls", True) in rows(database_url, STATES), task)
                assert there.asked_for("com.atproto.sync.getRecord") == [
                    {"did": [DID], "collection": [DATASET], "rkey": ["song"]}
                ]
                await source.send(says(repo, 3, ("update", PATH, dataset("Bats"))))
                await until(lambda: ("song", "Bats", True) in rows(database_url, STATES), task)
                await source.send(says(repo, 4, ("delete", f"{DATASET}/first", None)))
                await until(lambda: rows(database_url, "SELECT 1 FROM confirmations") == [], task)
                await until(lambda: rows(database_url, STATES) == [("song", "Bats", True)], task)
                await until(lambda: not rows(database_url, "SELECT 1 FROM search_outbox"), task)
                await until(
                    lambda: (
                        rows(database_url, "SELECT status->>'source', status->>'unconfirmed' FROM indexer_status")
                        == [("jetstream", "0")]
                    ),
                    task,
                )
                assert source.queries == [{"wantedCollections": ["ac.foundation.dataset.*"]}]
                assert len(there.asked_for("com.atproto.sync.getRepo")) == 1
    engine = open_engine(folder=tmp_path, meili_url=None)
    assert list(dict(engine.stamps())) == [URI]
    engine.close()


async def test_lies_are_put_right(
    database_url: str, tmp_path: Path, repo: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forged records, wrong CIDs, forged deletes and revs that never were: in the end all is as the host says."""
    monkeypatch.setattr("atdata_indexer.store._BEHIND", 1)
    async with jetstream([first()]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                repo.commit(2, [("create", PATH, dataset("Owls"))])
                truth = [("first", "First", True), ("song", "Owls", True)]
                await source.send(
                    commit(("create", PATH, dataset("Forged")), 2, at=now()),
                    commit(("create", f"{DATASET}/none", dataset("None")), 2, at=now()),
                    commit(("delete", f"{DATASET}/first", None), 2, at=now()),
                )

                def is_settled() -> bool:
                    return not rows(database_url, "SELECT 1 FROM confirmations") and not rows(
                        database_url, "SELECT 1 FROM repositories WHERE desynced IS NOT NULL"
                    )

                await until(lambda: rows(database_url, STATES) == truth and is_settled(), task)
                await source.send(commit(("update", PATH, dataset("Bats")), 2, at=now(), record=dataset("Other")))
                await until(lambda: rows(database_url, "SELECT reason FROM quarantine") == [("cid-mismatch",)], task)
                await until(lambda: rows(database_url, STATES) == truth and is_settled(), task)
                # From a minute ahead; what is true is older than that.
                ahead = tid_at(datetime.now(UTC) + timedelta(minutes=1))
                await source.send(commit(("create", PATH, dataset("Forged")), ahead, at=now()))
                await until(lambda: rows(database_url, STATES) == truth and is_settled(), task)
                await source.send(says(repo, 3, ("update", PATH, dataset("Bats"))))
                await until(lambda: ("song", "Bats", True) in rows(database_url, STATES), task)


async def test_accounts_and_identities(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """An account that its host hid is hidden, in spite of a state from before; those of others concern nobody."""
    start = now()
    async with jetstream([first()]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                await source.send(
                    account(True, at=now(), did=OTHER),
                    account(False, at=start + 2_000, status="deactivated"),
                    account(True, at=start + 1_000),
                    message("identity", {"did": DID}, at=now()),
                )
                await until(
                    lambda: (
                        rows(database_url, "SELECT did, status, account_seq FROM repositories")
                        == [(DID, "deactivated", start + 2_000)]
                    ),
                    task,
                )


async def test_an_account_that_is_met_and_hidden_at_once(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """What is said of a new repository right after its first record concerns us."""
    async with jetstream([first(), account(False, at=now(), status="deactivated")]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, "SELECT status FROM repositories") == [("deactivated",)], task)


async def test_it_goes_on_from_the_cursor(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """After a cut, and after a start, from some seconds before the last message; what comes twice counts once."""
    messages = [first()]
    async with jetstream(messages) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                last = says(repo, 2, ("create", PATH, dataset("Owls")))
                await source.send(last)
                await until(lambda: ("song", "Owls", True) in rows(database_url, STATES), task)
                before = rows(
                    database_url, "SELECT id, uri, cid, rev, indexed_at, verified_at FROM records ORDER BY id"
                )
                ((cursor,),) = rows(database_url, "SELECT seq FROM cursors")
                assert f'"time_us": {cursor}'.encode() in last
                assert rows(database_url, "SELECT host FROM cursors") == [(urlsplit(source.url).netloc + "/subscribe",)]
                await source.cut()
                await until(lambda: len(source.queries) == 2, task)
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: len(source.queries) == 3, task)
                assert [query.get("cursor") for query in source.queries] == [None, *[[str(cursor - 5_000_000)]] * 2]
                await source.send(says(repo, 3, ("create", f"{DATASET}/z", dataset("Z"))))
                await until(lambda: ("z", "Z", True) in rows(database_url, STATES), task)
                after = rows(database_url, "SELECT id, uri, cid, rev, indexed_at, verified_at FROM records ORDER BY id")
                assert after[:2] == before
                ((reason,),) = rows(database_url, "SELECT reason FROM sweeps")
                assert reason.endswith("is read for the first time")
                assert len(there.asked_for("com.atproto.sync.getRecord")) == 2


async def test_a_time_that_is_yet_to_come_moves_nothing(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """It would put everything that comes until then behind the cursor."""
    later = now() + 600_000_000
    async with jetstream([message("identity", at=later), first()]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                assert rows(database_url, "SELECT reason FROM quarantine") == [("future-time",)]
                assert rows(database_url, f"SELECT seq < {later} FROM cursors") == [(True,)]


async def test_a_silence_starts_a_sweep(
    database_url: str, tmp_path: Path, repo: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jetstream does not say what it dropped: ten minutes without a word do."""
    monkeypatch.setattr("atdata_indexer.ingest._SWEEP", 0)
    start = now() - 3_600_000_000
    messages = [commit(("create", f"{DATASET}/first", dataset("First")), 1, at=start)]
    messages += [message("identity", at=start + n * 500_000_000, did=OTHER) for n in range(3)]
    async with jetstream(messages) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                # As of a source that is read for the first time.
                await until(lambda: rows(database_url, "SELECT 1 FROM sweeps WHERE finished_at IS NOT NULL"), task)
                repo.commit(2, [("create", PATH, dataset("Missed"))])
                await source.send(message("identity", at=start + 1_601_000_000, did=OTHER))
                await until(lambda: ("song", "Missed", True) in rows(database_url, STATES), task)
                (_, (reason,)) = rows(database_url, "SELECT reason FROM sweeps ORDER BY id")
                assert "was silent from" in reason


async def test_a_cursor_of_the_day_before_starts_a_sweep(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """What was missed meanwhile may be more than Jetstream has kept."""
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO repositories (did, desynced) VALUES (%s, 'discovered')", [DID])
    async with jetstream() as source:
        with host(repo) as there:
            with psycopg.connect(database_url) as connection:
                connection.execute(
                    "INSERT INTO cursors VALUES (%s, %s)",
                    [urlsplit(source.url).netloc + "/subscribe", now() - 25 * 3_600_000_000],
                )
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, "SELECT 1 FROM sweeps"), task)
                ((reason,),) = rows(database_url, "SELECT reason FROM sweeps")
                assert "was last read up to" in reason


async def test_the_next_jetstream_goes_on_where_the_first_stopped(
    database_url: str, tmp_path: Path, repo: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are times, too."""
    monkeypatch.setattr("atdata_indexer.ingest._FAILOVER", 1)
    async with jetstream() as second:
        with host(repo) as there:
            async with jetstream([first()]) as source:
                async with indexer(database_url, [source, second], there, tmp_path) as task:
                    await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                    ((cursor,),) = rows(database_url, "SELECT seq FROM cursors")
                    await source.stop()
                    await until(lambda: second.queries, task)
                    assert second.queries[0]["cursor"] == [str(cursor - 5_000_000)]
                    await second.send(says(repo, 2, ("create", PATH, dataset("Owls"))))
                    await until(lambda: ("song", "Owls", True) in rows(database_url, STATES), task)


async def test_without_backfill(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """What comes by is shown and proven; what was there before is not asked for."""
    async with jetstream([says(repo, 2, ("create", PATH, dataset("Owls")))]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path, backfill=False) as task:
                await until(lambda: rows(database_url, STATES) == [("song", "Owls", True)], task)
                assert there.asked_for("com.atproto.sync.getRepo") == []


async def test_a_host_that_does_not_have_the_repository(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """What was said of it is hidden, and asked for again later."""
    async with jetstream([says(repo, 2, ("create", PATH, dataset("Owls")))]) as source:
        with host() as there:
            async with indexer(database_url, [source], there, tmp_path, backfill=False) as task:
                await until(lambda: rows(database_url, "SELECT status FROM repositories") == [("not-found",)], task)
                await until(lambda: rows(database_url, "SELECT tries FROM confirmations") == [(1,)], task)


async def test_from_jetstream_to_the_firehose(database_url: str, tmp_path: Path, repo: Hosted) -> None:
    """On one database, what was mentioned and not proven by then ends up proven, and the stream is followed on."""
    async with jetstream([first()]) as source:
        with host(repo) as there:
            async with indexer(database_url, [source], there, tmp_path) as task:
                await until(lambda: rows(database_url, STATES) == [("first", "First", True)], task)
                there.open.clear()
                await source.send(says(repo, 2, ("create", PATH, dataset("Owls"))))
                await until(lambda: ("song", "Owls", False) in rows(database_url, STATES), task)
            there.open.set()
            repo.commit(3, [("create", "app.bsky.feed.post/x", {"text": "of no concern here"})])
            third = repo.commit(4, [("update", PATH, dataset("Bats"))])
            async with relay([third]) as hose:
                from_relay = {"source": "firehose", "relay": hose.url}
                async with indexer(database_url, [source], there, tmp_path, **from_relay) as task:
                    await until(
                        lambda: rows(database_url, STATES) == [("first", "First", True), ("song", "Bats", True)], task
                    )
                    await until(lambda: not rows(database_url, "SELECT 1 FROM confirmations"), task)
                    await hose.send(repo.commit(5, [("delete", f"{DATASET}/first", None)]))
                    await until(lambda: rows(database_url, STATES) == [("song", "Bats", True)], task)
                    (row,) = rows(database_url, "SELECT rev, data IS NOT NULL, desynced FROM repositories")
                    assert row == (rev(5), True, None)
                    assert len(source.queries) == 1


async def test_a_relay_cannot_save_itself_the_proof(database_url: str, tmp_path: Path) -> None:
    """Jetstream's messages on a firehose are noise."""
    frames = [first(), frame("#commit", commit_body(1, [("create", PATH, dataset())]))]
    with host() as there:
        async with jetstream() as source, relay(frames) as hose:
            more = {"source": "firehose", "relay": hose.url, "backfill": False}
            async with indexer(database_url, [source], there, tmp_path, **more) as task:
                await until(lambda: rows(database_url, STATES) == [("song", "Birdsong", True)], task)
                assert rows(database_url, "SELECT reason FROM quarantine") == [("not-cbor",)]
