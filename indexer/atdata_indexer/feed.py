"""The outbox into the search engine: what changed in Postgres is looked up again and handed over, at least once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from atdata.atmosphere import records
from atdata.errors import NetworkError
from atdata_backend.search.base import Document, SearchEngine
from atdata_indexer.store import REBUILD, Store

logger = logging.getLogger(__name__)

_BATCH = 1000


def document(row: dict[str, Any]) -> Document:
    """A row of `Store.datasets` as the engine wants it. Malformed records have the fields that could be read."""
    dataset = records.read(row["collection"], row["record"]).value
    assert isinstance(dataset, records.DatasetRecord)
    schema = records.read(row["schema_collection"], row["schema_record"]).value if row["schema_record"] else None
    size = dataset.size or records.Size()
    return Document(
        uri=row["uri"],
        did=row["did"],
        handle=row["handle"],
        name=dataset.name,
        created_at=dataset.created_at or row["indexed_at"],
        description=dataset.description or "",
        tags=dataset.tags,
        license=dataset.license,
        schema_uri=row["schema_ref"],
        schema_name=schema.name if isinstance(schema, records.SchemaRecord) else "",
        fields=records.field_summaries(schema) if isinstance(schema, records.SchemaRecord) else (),
        storage=records.storage_kind(dataset),
        samples=size.samples,
        bytes=size.bytes,
    )


class Feed:
    """Keeps the engine in step. `wake` is to be set whenever the outbox may have grown."""

    def __init__(self, store: Store, engine: SearchEngine) -> None:
        self.wake = asyncio.Event()
        self.trouble: str | None = None
        self._store = store
        self._engine = engine

    async def run(self) -> None:
        """Feed for ever. An engine that does not answer is asked again; the outbox keeps what it misses."""
        delay = 1.0
        while True:
            try:
                await self.start()
                while True:
                    self.wake.clear()
                    while await self.step():
                        delay = 1.0
                        self.trouble = None
                    # A command in another process may fill the outbox: look now and then without being woken.
                    try:
                        async with asyncio.timeout(5):
                            await self.wake.wait()
                    except TimeoutError:
                        pass
            except NetworkError as e:
                self.trouble = str(e)
                logger.warning("search is behind: %s; trying again in %.0f s", e, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60.0)

    async def start(self) -> None:
        """An empty engine (new, other, or of another version) is filled from Postgres."""
        if await asyncio.to_thread(self._engine.count) == 0:
            await self._store.feed_all()

    async def step(self) -> int:
        """Hand over the oldest entries of the outbox and return how many there were."""
        entries = await self._store.outbox(_BATCH)
        if not entries:
            return 0
        uris = {uri for _, uri in entries}
        if REBUILD in uris:
            uris.discard(REBUILD)
            held = await asyncio.to_thread(lambda: list(self._engine.uris()))
            await self._store.feed_all(stale=held)
        rows = await self._store.datasets(list(uris))
        found = [document(row) for row in rows]
        gone = list(uris - {doc.uri for doc in found})
        await asyncio.to_thread(self._apply, found, gone)
        await self._store.fed([id for id, _ in entries])
        return len(entries)

    def _apply(self, found: list[Document], gone: list[str]) -> None:
        """Give the engine *found*; a document that it refuses is found by halving, and left out of search only."""
        try:
            self._engine.apply(found, gone)
        except (ValueError, TypeError, OverflowError) as e:
            if len(found) > 1:
                middle = len(found) // 2
                self._apply(found[:middle], gone)
                self._apply(found[middle:], [])
            elif found:
                logger.error("%s cannot be searched for: %s", found[0].uri, e)
                self._engine.apply([], [*gone, found[0].uri])
            else:
                raise
