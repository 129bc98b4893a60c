"""The outbox into the search engine: what changed in Postgres is looked up again and handed over, at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atdata.atmosphere import records
from atdata.errors import NetworkError
from atdata_backend.search.base import Document, SearchEngine
from atdata_indexer.store import REBUILD, Store

logger = logging.getLogger(__name__)

_BATCH = 200


def document(row: dict[str, Any], schema: SchemaSummary | None) -> Document:
    """A row of `Store.datasets` as the engine wants it. Malformed records have the fields that could be read."""
    dataset = records.read(row["collection"], row["record"]).value
    assert isinstance(dataset, records.DatasetRecord)
    size = dataset.size or records.Size()
    return Document(
        uri=row["uri"],
        did=row["did"],
        handle=row["handle"],
        name=dataset.name,
        # A time to come would stay the newest until then.
        created_at=min(dataset.created_at or row["indexed_at"], row["indexed_at"]),
        description=dataset.description or "",
        tags=dataset.tags,
        license=dataset.license,
        schema_uri=row["schema_ref"],
        schema_name=schema.name if schema else "",
        fields=schema.fields if schema else (),
        storage=records.storage_kind(dataset),
        samples=size.samples,
        bytes=size.bytes,
    )


@dataclass(frozen=True, slots=True)
class SchemaSummary:
    """What a dataset's document holds of its schema."""

    name: str
    fields: tuple[str, ...]

    @classmethod
    def of(cls, row: dict[str, Any]) -> SchemaSummary:
        """Of a row of `Store.schemas`."""
        schema = records.read(row["collection"], row["record"]).value
        assert isinstance(schema, records.SchemaRecord)
        return cls(schema.name, records.field_summaries(schema))


def documents(rows: Iterable[dict[str, Any]], schemas: Iterable[dict[str, Any]]) -> list[Document]:
    """What the engine is to hold of *rows*, whose schemas are among *schemas*, or unknown."""
    summaries = {row["uri"]: SchemaSummary.of(row) for row in schemas}
    return [document(row, summaries.get(row["schema_ref"])) for row in rows]


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
        """An empty engine (new, other, of another version, or damaged before) is filled from Postgres."""
        # Opens it for writing, which replaces a damaged one by an empty one.
        await asyncio.to_thread(self._engine.apply, [], [])
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
            held = await asyncio.to_thread(lambda: list(dict(self._engine.stamps())))
            await self._store.feed_all(stale=held)
        rows = await self._store.datasets(list(uris))
        # Many datasets share a schema: it is fetched and read once.
        refs = {row["schema_ref"] for row in rows if row["schema_ref"]}
        schemas = await self._store.schemas(list(refs))
        await asyncio.to_thread(self._feed, uris, rows, schemas)
        await self._store.fed(entries)
        return len(entries)

    def _feed(self, uris: set[str], rows: list[dict[str, Any]], schemas: list[dict[str, Any]]) -> None:
        found = documents(rows, schemas)
        self._apply(found, list(uris - {doc.uri for doc in found}))

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
