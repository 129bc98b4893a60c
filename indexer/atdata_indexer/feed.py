"""The outbox into the search engine: what changed in Postgres is looked up again and handed over, at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from atdata.atmosphere import records
from atdata.errors import NetworkError, SchemaError
from atdata.nsid import Kind, kind_of
from atdata.structure import structure_of
from atdata_backend.search.base import Document, SearchEngine
from atdata_indexer.store import REBUILD, Searchable, Store

logger = logging.getLogger(__name__)

# Entries that are handed over at a time. As long as there are more, ever more: to fill an index in few large portions
# takes two thirds of the time that it takes in many small ones.
_BATCH, _LARGEST = 200, 5_000


def documents(rows: Iterable[Searchable], schemas: Iterable[Searchable]) -> list[Document]:
    """What the engine is to hold of *rows* of `Store.datasets`, whose schemas are among *schemas*, or unknown."""
    summaries = {row.uri: SchemaSummary.of(row) for row in schemas}
    return [_dataset(row, summaries.get(row.schema_ref or "")) for row in rows]


def schema_documents(rows: Iterable[Searchable]) -> list[Document]:
    """What the engine is to hold of *rows* of `Store.schemas`."""
    return [_schema(row, SchemaSummary.of(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class SchemaSummary:
    """What a dataset's document holds of its schema."""

    record: records.SchemaRecord
    fields: tuple[str, ...]
    structure: str

    @classmethod
    def of(cls, row: Searchable) -> SchemaSummary:
        """Of a row of `Store.schemas`."""
        record = row.parsed()
        schema = records.read(row.collection, record).value
        assert isinstance(schema, records.SchemaRecord)
        try:
            structure = structure_of(record).fingerprint
        except SchemaError:
            structure = row.uri  # nobody can tell what it has in common with others
        return cls(schema, records.field_summaries(schema), structure)


def _dataset(row: Searchable, schema: SchemaSummary | None) -> Document:
    """Malformed records have the fields that could be read."""
    dataset = records.read(row.collection, row.parsed()).value
    assert isinstance(dataset, records.DatasetRecord)
    size = dataset.size or records.Size()
    return Document(
        uri=row.uri,
        did=row.did,
        handle=row.handle,
        name=dataset.name,
        created_at=_created(dataset.created_at, row),
        description=dataset.description or "",
        tags=dataset.tags,
        license=dataset.license,
        schema_uri=row.schema_ref,
        schema_name=schema.record.name if schema else "",
        fields=schema.fields if schema else (),
        storage=records.storage_kind(dataset),
        samples=size.samples,
        bytes=size.bytes,
        structure=schema.structure if schema else row.schema_ref,
        record=row,
    )


def _schema(row: Searchable, summary: SchemaSummary) -> Document:
    schema = summary.record
    return Document(
        uri=row.uri,
        did=row.did,
        handle=row.handle,
        name=schema.name,
        created_at=_created(schema.created_at, row),
        description=schema.description or "",
        fields=summary.fields,
        structure=summary.structure,
        keywords=_types(schema, summary.fields),
        record=row,
    )


def _types(schema: records.SchemaRecord, fields: Iterable[str]) -> tuple[str, ...]:
    """The types among the summaries of a schema's *fields*: ndarray, uint8, int …"""
    types = (summary[len(field.name) :] for field, summary in zip(schema.fields, fields, strict=True))
    return tuple(dict.fromkeys(part for type_ in types for part in type_.split(":") if part))


def _created(claimed: datetime | None, row: Searchable) -> datetime:
    # A time to come would stay the newest until then.
    return min(claimed or row.indexed_at, row.indexed_at)


class Feed:
    """Keeps the engine in step. `wake` is to be set whenever the outbox may have grown."""

    def __init__(self, store: Store, engine: SearchEngine) -> None:
        self.wake = asyncio.Event()
        self.trouble: str | None = None
        self._store = store
        self._engine = engine
        self._batch = _BATCH

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
        for kind, engine in self._engines().items():
            await asyncio.to_thread(engine.apply, [], [])
            if await asyncio.to_thread(engine.count) == 0:
                await self._store.feed_all([kind])

    async def step(self) -> int:
        """Hand over the oldest entries of the outbox and return how many there were."""
        entries = await self._store.outbox(self._batch)
        self._batch = _BATCH if len(entries) < _BATCH else min(2 * self._batch, _LARGEST)
        if not entries:
            return 0
        uris = {uri for _, uri in entries}
        if REBUILD in uris:
            uris.discard(REBUILD)
            for kind, engine in self._engines().items():
                await self._store.feed_all([kind], stale=await asyncio.to_thread(_held, engine))
        rows = await self._store.datasets(list(uris))
        # Many datasets share a schema: it is fetched and read once.
        refs = {row.schema_ref for row in rows if row.schema_ref}
        schemas = await self._store.schemas(list(uris | refs))
        await asyncio.to_thread(self._feed, uris, rows, schemas)
        await self._store.fed(entries)
        return len(entries)

    def _engines(self) -> dict[Kind, SearchEngine]:
        return {"dataset": self._engine, "schema": self._engine.schemas}

    def _feed(self, uris: set[str], rows: Sequence[Searchable], schemas: Sequence[Searchable]) -> None:
        found: dict[Kind, list[Document]] = {
            "dataset": documents(rows, schemas),
            "schema": schema_documents(row for row in schemas if row.uri in uris),
        }
        for kind, engine in self._engines().items():
            meant = {uri for uri in uris if (kind_of(_collection(uri)) == "schema") == (kind == "schema")}
            if meant:
                self._apply(engine, found[kind], list(meant - {document.uri for document in found[kind]}))

    def _apply(self, engine: SearchEngine, found: list[Document], gone: list[str]) -> None:
        """Give *engine* what was *found*; a document that it refuses is found by halving, and left out of search."""
        try:
            engine.apply(found, gone)
        except (ValueError, TypeError, OverflowError) as e:
            if len(found) > 1:
                middle = len(found) // 2
                self._apply(engine, found[:middle], gone)
                self._apply(engine, found[middle:], [])
            elif found:
                logger.error("%s cannot be searched for: %s", found[0].uri, e)
                engine.apply([], [*gone, found[0].uri])
            else:
                raise


def _held(engine: SearchEngine) -> list[str]:
    return [uri for uri, _ in engine.stamps()]


def _collection(uri: str) -> str:
    return uri.split("/", 4)[3] if uri.count("/") > 3 else ""
