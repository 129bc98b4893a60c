"""The outbox into the search engine: what the engine refuses, misses or has too much of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from frames import DATASET, DID, SCHEMA, commit, dataset, schema

from atdata.errors import NetworkError
from atdata_backend.search.base import Document, Query
from atdata_backend.search.tantivy import TantivyEngine
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
    yield store
    await store.close()


@pytest.fixture
def engine(tmp_path: Path) -> Moody:
    return Moody(tmp_path)


async def write(store: Store, *frames: bytes) -> None:
    scope = Scope(("ac.foundation.dataset.",), ())
    items = [Item(event, frame, None) for frame in frames for event in parse(frame, scope).events]
    await store.apply(items, None)


def named(n: int, name: str) -> bytes:
    return commit(n, [("create", f"{DATASET}/{n}", dataset(name))], since=n - 1 or None)


async def test_a_document_has_its_schema_and_publisher(store: Store, engine: Moody) -> None:
    """Names of schema and fields are searchable with the dataset, as soon as the schema is there."""
    await write(store, named(1, "Birdsong"))
    await store.resolved(DID, "alice.test", None)
    feed = Feed(store, engine)
    await feed.step()
    assert engine.search(Query("waveform")).total == 0
    await write(store, commit(2, [("create", f"{SCHEMA}/3kzaaaaaaaaaa", schema())], since=1))
    await feed.step()
    for text in ("waveform", "song", "alice"):
        assert engine.search(Query(text)).total == 1, text
    engine.close()


async def test_a_refused_document_costs_no_other(store: Store, engine: Moody) -> None:
    """What the engine cannot take is left out of search, and everything around it is in."""
    engine.refuses = "3"
    await write(store, *(named(n, f"Owl {n}") for n in range(1, 8)))
    feed = Feed(store, engine)
    assert await feed.step() == 7
    assert await feed.step() == 0
    assert sorted(uri.rpartition("/")[2] for uri in engine.uris()) == ["1", "2", "4", "5", "6", "7"]
    engine.close()


async def test_an_engine_that_is_away_gets_everything_later(store: Store, engine: Moody) -> None:
    """The outbox keeps what could not be handed over, and the trouble is there to be read meanwhile."""
    engine.away = 1
    await write(store, named(1, "Owl"))
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


async def test_a_rebuild_mends_what_differs(store: Store, engine: Moody, database_url: str) -> None:
    """A rebuild brings what the engine lacks and removes what Postgres does not have."""
    await write(store, named(1, "Owl"), named(2, "Wren"))
    feed = Feed(store, engine)
    await feed.step()
    (kept, lost) = sorted(engine.uris())
    ghost = f"at://{DID}/{DATASET}/ghost"
    (row, *_) = await store.datasets([kept])
    engine.apply([Document(uri=ghost, did=DID, handle=None, name="Ghost", created_at=row["indexed_at"])], [lost])
    await request_rebuild(database_url)
    while await feed.step():
        pass
    assert sorted(engine.uris()) == [kept, lost]
    engine.close()
