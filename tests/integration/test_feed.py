"""The outbox into the search engine: what the engine refuses, misses or has too much of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from frames import DATASET, DID, SCHEMA, Op, Repo, account, dataset, multikey, schema

from atdata.errors import NetworkError
from atdata.structure import structure_of
from atdata_backend.identity import Identity
from atdata_backend.search.base import Document, Query
from atdata_backend.search.tantivy import TantivyEngine
from atdata_indexer import audit, feed
from atdata_indexer.events import Scope, parse
from atdata_indexer.feed import Feed
from atdata_indexer.store import Item, Store, request_rebuild


class Moody(TantivyEngine):
    """An engine that refuses some documents, or does not answer for a while."""

    refuses = "\0"
    away = 0

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        if self.away:
            self.away -= 1
            raise NetworkError("the engine does not answer")
        if any(self.refuses in document.name for document in upserts):
            raise ValueError("no")
        super().apply(upserts, deletes)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = await Store.open(database_url, "relay.example")
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("INSERT INTO repositories (did, signing_key) VALUES (%s, %s)", [DID, multikey(DID)])
    yield store
    await store.close()


@pytest.fixture
def engine(tmp_path: Path) -> Moody:
    return Moody(tmp_path)


@pytest.fixture
def repo() -> Repo:
    return Repo()


async def write(store: Store, *frames: bytes) -> None:
    scope = Scope(("ac.foundation.dataset.",), {DID})
    items = [Item(event, frame, None) for frame in frames for event in parse(frame, scope).events]
    await store.apply(items, None)


def named(n: int, name: str) -> list[Op]:
    return [("create", f"{DATASET}/{n}", dataset(name))]


async def test_a_document_has_its_schema_and_publisher(store: Store, repo: Repo, engine: Moody) -> None:
    """Names of schema and fields are searchable with the dataset, as soon as the schema is there."""
    await write(store, repo.commit(1, named(1, "Birdsong")))
    await store.resolved(Identity(DID, "alice.test", None, multikey(DID)))
    feed = Feed(store, engine)
    await feed.step()
    assert engine.search(Query("waveform")).total == 0
    await write(store, repo.commit(2, [("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema())]))
    await feed.step()
    for text in ("waveform", "song", "alice"):
        assert engine.search(Query(text)).total == 1, text
    engine.close()


async def test_a_dataset_has_its_schemas_structure(store: Store, repo: Repo, engine: Moody) -> None:
    """Whoever published the schema; as long as it is not here, or cannot be read, its URI stands for it."""
    record = dataset("Birdsong")
    ref = record["schemaRef"]
    await write(store, repo.commit(1, [("create", f"{DATASET}/1", record)]))
    feed = Feed(store, engine)
    await feed.step()
    assert engine.search(Query(structures=(ref,))).total == 1
    await write(store, repo.commit(2, [("create", ref.removeprefix(f"at://{DID}/"), schema())]))
    while await feed.step():
        pass
    fingerprint = structure_of(schema()).fingerprint
    assert [hit.structure for hit in engine.search(Query(structures=(fingerprint,))).hits] == [fingerprint]
    unreadable = {**schema(), "fields": "none"}
    await write(store, repo.commit(3, [("update", ref.removeprefix(f"at://{DID}/"), unreadable)]))
    while await feed.step():
        pass
    assert engine.search(Query(structures=(ref,))).total == 1
    engine.close()


async def test_schemas_can_be_searched_for(store: Store, repo: Repo, engine: Moody) -> None:
    """By name, description, fields, types and publisher; apart from datasets; and no more once they are gone."""
    described = {**schema("Song"), "description": "One vocalisation"}
    await write(store, repo.commit(1, [*named(1, "Owl"), ("create", f"{SCHEMA}/3kzaaaaaaaaaa", described)]))
    await store.resolved(Identity(DID, "alice.test", None, multikey(DID)))
    feed = Feed(store, engine)
    while await feed.step():
        pass
    for text in ("song", "vocalisation", "waveform", "float32", "alice", "wavefrom", "vocal"):
        assert engine.schemas.search(Query(text)).total == 1, text
    assert engine.schemas.search(Query(fields=("waveform:ndarray",))).total == 1
    assert engine.schemas.search(Query("owl")).total == 0
    assert (engine.count(), engine.schemas.count()) == (1, 1)
    await write(store, repo.commit(2, [("delete", f"{SCHEMA}/3kzaaaaaaaaaa", None)]))
    while await feed.step():
        pass
    assert (engine.count(), engine.schemas.count()) == (1, 0)
    engine.close()


async def test_an_empty_engine_of_schemas_is_filled(store: Store, repo: Repo, engine: Moody) -> None:
    """Who comes from a version without it has schemas after the next start, and no dataset is fed again."""
    ops: list[Op] = [("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema())]
    await write(store, repo.commit(1, named(1, "Owl") + ops))
    feed = Feed(store, engine)
    while await feed.step():
        pass
    engine.schemas.clear()
    await feed.start()
    assert [uri for _, uri in await store.outbox(10)] == [f"at://{DID}/{SCHEMA}/3kzaaaaaaaaaa"]
    await feed.step()
    assert engine.schemas.count() == 1
    engine.close()


class NoHosts:
    async def run(self, dids: Collection[str]) -> AsyncIterator[Any]:
        for did in dids:
            yield did


async def test_a_comparison_sees_datasets_and_schemas(
    store: Store, repo: Repo, engine: Moody, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What search lacks, has of before, or has beyond what is shown, is named, and a rebuild mends it."""
    monkeypatch.setattr(audit, "_PAUSE", 0.0)
    ops: list[Op] = [("create", f"{SCHEMA}/{name}", schema(name)) for name in ("kept", "lost", "old")]
    await write(store, repo.commit(1, named(1, "Owl") + ops))
    feed = Feed(store, engine)

    async def differences() -> set[tuple[str, str]]:
        while await feed.step():
            pass
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            found = await audit.compare(connection, NoHosts(), engine, [])  # type: ignore[arg-type]
        return {(difference.uri.rpartition("/")[2], difference.what) for difference in found.differences}

    assert await differences() == set()
    (row,) = await store.schemas([f"at://{DID}/{SCHEMA}/old"])
    ghost = Document(f"at://{DID}/{SCHEMA}/ghost", DID, None, "Ghost", row.indexed_at)
    old = Document(row.uri, DID, None, "before", row.indexed_at)
    engine.schemas.apply([ghost, old], [f"at://{DID}/{SCHEMA}/lost"])
    engine.apply([], [f"at://{DID}/{DATASET}/1"])
    assert await differences() == {
        ("1", "is missing in search"),
        ("lost", "is missing in search"),
        ("old", "is in search as something older"),
        ("ghost", "is in search, and is not to be shown"),
    }
    await request_rebuild(database_url)
    assert await differences() == set()
    engine.close()


async def test_a_refused_document_costs_no_other(store: Store, repo: Repo, engine: Moody) -> None:
    """What the engine cannot take is left out of search, and everything around it is in."""
    engine.refuses = "3"
    await write(store, *(repo.commit(n, named(n, f"Owl {n}")) for n in range(1, 8)))
    feed = Feed(store, engine)
    assert await feed.step() == 7
    assert await feed.step() == 0
    assert sorted(uri.rpartition("/")[2] for uri in dict(engine.stamps())) == ["1", "2", "4", "5", "6", "7"]
    engine.close()


async def test_an_engine_that_is_away_gets_everything_later(store: Store, repo: Repo, engine: Moody) -> None:
    """The outbox keeps what could not be handed over, and the trouble is there to be read meanwhile."""
    engine.away = 1
    await write(store, repo.commit(1, named(1, "Owl")))
    feed = Feed(store, engine)
    task = asyncio.ensure_future(feed.run())
    async with asyncio.timeout(30):
        while feed.trouble is None:
            await asyncio.sleep(0.01)
        assert feed.trouble == "the engine does not answer"
        assert engine.count() == 0
        while engine.count() == 0 or feed.trouble:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engine.close()


async def test_a_rebuild_mends_what_differs(store: Store, repo: Repo, engine: Moody, database_url: str) -> None:
    """A rebuild brings what the engine lacks and removes what Postgres does not have."""
    await write(store, repo.commit(1, named(1, "Owl") + named(2, "Wren")))
    feed = Feed(store, engine)
    await feed.step()
    (kept, lost) = sorted(dict(engine.stamps()))
    ghost = f"at://{DID}/{DATASET}/ghost"
    (row, *_) = await store.datasets([kept])
    engine.apply([Document(uri=ghost, did=DID, handle=None, name="Ghost", created_at=row.indexed_at)], [lost])
    await request_rebuild(database_url)
    while await feed.step():
        pass
    assert sorted(dict(engine.stamps())) == [kept, lost]
    engine.close()


async def test_ever_more_at_a_time(store: Store, repo: Repo, engine: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there is more; and what comes alone is not kept waiting."""
    monkeypatch.setattr(feed, "_BATCH", 2)
    monkeypatch.setattr(feed, "_LARGEST", 8)
    await write(store, *(repo.commit(n, named(n, f"Owl {n}")) for n in range(1, 25)))
    feeding = Feed(store, engine)
    feeding._batch = 2
    assert [await feeding.step() for _ in range(6)] == [2, 4, 8, 8, 2, 0]
    assert engine.count() == 24
    await write(store, repo.commit(25, named(25, "Wren")))
    assert await feeding.step() == 1
    assert engine.search(Query("wren")).total == 1
    engine.close()


async def test_what_changes_often_waits_once(store: Store, repo: Repo, database_url: str) -> None:
    """Events that have all datasets of a repository fed again and again leave one entry for each."""
    await write(store, repo.commit(1, named(1, "Owl") + named(2, "Wren")))
    for seq in range(2, 22, 2):
        await write(store, account(seq, active=False, status="deactivated"), account(seq + 1, active=True))
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM search_outbox").fetchone() == (2,)


async def test_a_change_while_it_is_fed_is_fed_too(store: Store, repo: Repo) -> None:
    """An entry that was handed over stays if its dataset changed meanwhile, and leaves the next time."""
    await write(store, repo.commit(1, named(1, "Owl") + named(2, "Wren")))
    entries = await store.outbox(10)
    await write(store, repo.commit(2, [("update", f"{DATASET}/1", dataset("Barn owl"))]))
    await store.fed(entries)
    again = await store.outbox(10)
    assert [uri for _, uri in again] == [f"at://{DID}/{DATASET}/1"]
    await store.fed(again)
    assert await store.outbox(10) == []


async def test_a_rebuild_asked_for_twice(store: Store, repo: Repo, engine: Moody, database_url: str) -> None:
    """The second request changes nothing but that it is heeded, whether the first one was or not."""
    await write(store, repo.commit(1, named(1, "Owl")))
    feed = Feed(store, engine)
    for _ in range(2):
        await request_rebuild(database_url)
        await request_rebuild(database_url)
        while await feed.step():
            pass
        (lost,) = dict(engine.stamps())
        engine.apply([], [lost])
    await request_rebuild(database_url)
    while await feed.step():
        pass
    assert engine.count() == 1
    engine.close()


async def test_reading_for_search_does_not_wait_for_the_writer(store: Store, repo: Repo, database_url: str) -> None:
    """While a write is held up, the outbox and what it names can be read: they are not in each other's way."""
    await write(store, repo.commit(1, named(1, "Owl")))
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE cursors")
        writing = asyncio.ensure_future(store.save_cursor(1))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            ((_, uri),) = await store.outbox(10)
            assert [row.uri for row in await store.datasets([uri])] == [uri]
            assert await store.schemas([uri]) == []
        assert not writing.done()
    await writing


async def test_large_datasets_come_in_small_portions(store: Store, database_url: str) -> None:
    """What is read for one step is some megabytes, however well the database has compressed it."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            b"INSERT INTO records (did, collection, rkey, kind, cid, rev, record) SELECT %s, %s, n::text, 'dataset',"
            b" 'c', 'r', jsonb_build_object('x', repeat('a', 900000)) FROM generate_series(1, 60) n",
            [DID, DATASET],
        )
    await store.feed_all()
    entries = await store.outbox(200)
    assert 0 < len(entries) < 30
    await store.fed(entries)
    assert len(await store.outbox(200)) == len(entries)
