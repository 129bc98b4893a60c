"""The lens graph of this process: read from Postgres when the service starts, and kept in step with the changes."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import orjson
import psycopg

from atdata import syntax
from atdata.errors import SchemaError
from atdata.structure import Structure, structure_of
from atdata_appview import tasks
from atdata_appview.changes import Change, Follower
from atdata_appview.errors import Unavailable
from atdata_appview.lens_graph import LensGraph
from atdata_appview.store import GraphLens, Store

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Seconds that a starting service waits for its graph. A small one is there by then; a large one comes when it comes.
_PATIENCE: Final = 1.0

# Seconds until the next try, when the database went away while the graph was read.
_PAUSE: Final = 1.0

# Changes that are made before requests have their turn again: some milliseconds' work.
_AT_ONCE: Final = 20

# From so many schemas and lenses on, the garbage collector does not look at them any more.
_LARGE: Final = 10_000


class GraphKeeper:
    """Reads the graph, follows the changes, and has the graph as it is now.

    keeper = GraphKeeper(store, follower)
    async with keeper.running():
        keeper.graph.paths(source, target)
    """

    def __init__(self, store: Store, changes: Follower) -> None:
        self._store = store
        self._changes = changes
        self._graph: LensGraph | None = None
        self._seq = 0
        self._loading: asyncio.Task[None] | None = None
        self._stop_listening: Callable[[], None] = lambda: None

    @property
    def graph(self) -> LensGraph:
        """The graph. Raises Unavailable while it is being read."""
        if self._graph is None:
            raise Unavailable("the lens graph is still being read; try again in a moment", {"Retry-After": "5"})
        return self._graph

    @property
    def is_ready(self) -> bool:
        """Whether the graph was read."""
        return self._graph is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the graph, and keep it in step while the block runs, which does not wait long for it."""
        self._load()
        assert self._loading is not None
        await asyncio.wait([self._loading], timeout=_PATIENCE)
        try:
            yield
        finally:
            self._stop_listening()
            await tasks.end(self._loading)

    def _load(self) -> None:
        self._loading = asyncio.create_task(self._read_until_done())

    async def _read_until_done(self) -> None:
        while True:
            started = time.monotonic()
            try:
                graph, seq = await self._read()
            except psycopg.Error as error:
                log.warning("cannot read the lens graph; trying again: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            except Exception:
                log.exception("cannot read the lens graph; trying again in a minute")
                await asyncio.sleep(60 * _PAUSE)
                continue
            self._graph, self._seq = graph, seq
            self._stop_listening = self._changes.listen(self.apply, after=seq)
            seconds = time.monotonic() - started
            log.info("read the lens graph: %d schemas, %d lenses, %.1f s", graph.schemas, graph.lenses, seconds)
            return

    async def _read(self) -> tuple[LensGraph, int]:
        graph = LensGraph()
        async with self._store.graph_snapshot() as snapshot:
            async for schemas in snapshot.schemas():
                await asyncio.to_thread(_put_schemas, graph, schemas)
            async for lenses in snapshot.lenses():
                await asyncio.to_thread(_put_lenses, graph, lenses)
        await asyncio.to_thread(graph.settle)
        if graph.schemas + graph.lenses > _LARGE:
            # None of this is garbage. To look through it takes a fifth of a second, in which nobody has an answer.
            gc.freeze()
        return graph, snapshot.seq

    async def apply(self, changes: Sequence[Change]) -> None:
        """Make *changes*, the next ones, in the graph; what they are about is read as it is now."""
        graph = self.graph
        if changes[0].seq > self._seq + 1 and await self._store.changes_pruned() > self._seq:
            log.warning("changes of which the lens graph does not know are no longer kept: reading it anew")
            self._graph = None
            self._stop_listening()
            self._load()
            return
        hidden = {change.did for change in changes if change.action == "account" and change.status != "active"}
        if hidden:
            # What is purged meanwhile is not among these; changes that say so are on their way.
            for rows in _some(await self._store.graph_uris(list(hidden))):
                for kind, uri in rows:
                    (graph.drop_schema if kind == "schema" else graph.drop_lens)(uri)
                await asyncio.sleep(0)
        for uris in _some(list(dict.fromkeys(change.uri for change in changes if change.kind == "schema"))):
            schemas = await self._store.graph_schemas(uris)
            # Hostile ones take long to read, and long enough, one by one, to be put in.
            structures = await asyncio.to_thread(_structures, schemas.items())
            for uri in uris:
                if uri in structures:
                    graph.put_schema(uri, structures[uri])
                else:
                    graph.drop_schema(uri)
                graph.settle()
                await asyncio.sleep(0)
        for uris in _some(list(dict.fromkeys(change.uri for change in changes if change.kind == "lens"))):
            lenses = await self._store.graph_lenses(uris)
            _put_lenses(graph, lenses.values())
            for uri in uris:
                if uri not in lenses:
                    graph.drop_lens(uri)
        self._seq = changes[-1].seq


def _some(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The items, some at a time."""
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))


def _put_schemas(graph: LensGraph, rows: Iterable[tuple[str, str]]) -> None:
    for uri, structure in _structures(rows).items():
        graph.put_schema(uri, structure)


def _put_lenses(graph: LensGraph, rows: Iterable[GraphLens]) -> None:
    for row in rows:
        if all(end in graph or syntax.is_at_uri(end) for end in (row.source, row.target)):
            graph.put_lens(
                row.uri, row.number, row.source, row.target, has_putter=row.has_putter, is_verified=row.is_verified
            )
        else:
            graph.drop_lens(row.uri)


def _structures(rows: Iterable[tuple[str, str]]) -> dict[str, Structure | None]:
    return {uri: _structure(uri, json) for uri, json in rows}


def _structure(uri: str, json: str) -> Structure | None:
    """The structure that a schema's record describes, or None if it cannot be told."""
    try:
        return structure_of(orjson.loads(json))
    except (SchemaError, orjson.JSONDecodeError):
        return None
    except Exception:
        # A record that finds a hole in the reader must not keep the others from being read.
        log.exception("the schema %s cannot be read", uri)
        return None
