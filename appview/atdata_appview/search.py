"""Searching: the parameters of searches into a question for the engine, and its hits into rows of Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar

from atdata.nsid import Kind
from atdata.syntax import parse_datetime
from atdata_appview.models import Match, Record, SearchPage
from atdata_appview.store import ANSWER_BYTES, BlockingStore
from atdata_backend.search.base import Hit, Query, Results, SearchEngine

_T = TypeVar("_T")

# A page loses hits that were hidden or deleted a moment ago; so often we ask the engine for others in their place.
_REFILLS: Final = 3

#: Searches that run at once. More would only be in each other's way.
THREADS: Final = 6


def query_of(params: Mapping[str, Any]) -> Query:
    """The engine's query for *params*, as `searchDatasets` has checked them and with handles replaced by DIDs.

    >>> query_of({"q": "digits", "tags": ["vision"], "sort": "newest", "limit": 10}).tags
    ('vision',)

    Raises ValueError that starts with the parameter's name for a time that cannot be told.
    """
    return Query(
        text=params.get("q", ""),
        tags=tuple(params.get("tags", ())),
        licenses=tuple(params.get("licenses", ())),
        schemas=tuple(params.get("schemas", ())),
        publishers=tuple(params.get("publishers", ())),
        storage=tuple(params.get("storage", ())),
        fields=tuple(params.get("fields", ())),
        min_samples=params.get("minSamples"),
        max_samples=params.get("maxSamples"),
        min_bytes=params.get("minBytes"),
        max_bytes=params.get("maxBytes"),
        created_after=_moment(params, "createdAfter"),
        created_before=_moment(params, "createdBefore"),
        sort=params["sort"],
        facets=tuple(dict.fromkeys(params.get("facets", ()))),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )


def _moment(params: Mapping[str, Any], name: str) -> datetime | None:
    if name not in params:
        return None
    try:
        return parse_datetime(params[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class Search:
    """The engine and its hits' rows, in threads of their own: one turn in a thread for each search."""

    def __init__(self, engine: SearchEngine, store: BlockingStore) -> None:
        self._engine = engine
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")

    async def datasets(self, query: Query) -> SearchPage:
        """The page of *query*. Hits whose row is gone or hidden are left out, of the total, too.

        One call of the engine and one query of the database, unless hits were left out: then others take their place,
        within limits, so that a page can stay short. So is one whose records are large. Raises BadCursor, and
        NetworkError when the engine is a server that does not answer.
        """
        return await self._in_thread(lambda: self._page(self._engine, query, "dataset"))

    async def schemas(self, query: Query) -> SearchPage:
        """The same for schemas."""
        return await self._in_thread(lambda: self._page(self._engine.schemas, query, "schema"))

    async def similar(self, uri: str, limit: int) -> tuple[Match, list[Match]] | None:
        """The dataset at *uri*, and those that are most like it; None if there is none. Raises what `datasets` does."""
        return await self._in_thread(lambda: self._similar(uri, limit))

    async def count(self) -> int:
        """How many datasets the engine has."""
        return await self._in_thread(self._engine.count)

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _page(self, engine: SearchEngine, query: Query, kind: Kind) -> SearchPage:
        first, rows = self._portion(engine, query, kind, ANSWER_BYTES)
        results = first
        matches: list[Match] = []
        left_out, left = 0, ANSWER_BYTES
        for refills in range(_REFILLS + 1):
            if refills:
                asked = replace(query, facets=(), limit=query.limit - len(matches), cursor=results.cursor)
                results, rows = self._portion(engine, asked, kind, left)
            matches += _matches(results.hits, rows)
            left_out += len(results.hits) - len(rows)
            left = ANSWER_BYTES - sum(len(match.record.json) for match in matches)
            if len(matches) == query.limit or left <= 0 or results.cursor is None:
                break
        return SearchPage(matches, max(first.total - left_out, len(matches)), first.facets, results.cursor)

    def _portion(
        self, engine: SearchEngine, query: Query, kind: Kind, limit_bytes: int
    ) -> tuple[Results, dict[str, Record]]:
        """The hits of *query* whose records, as far as there are any, fit into so many bytes, and those records."""
        first = results = engine.search(query)
        while True:
            uris = [hit.uri for hit in results.hits]
            rows = self._store.records(uris, kind, limit_bytes) if uris else {}
            beyond = next((i for i, uri in enumerate(uris) if uri in rows and not rows[uri].json), None)
            if beyond is None:
                return replace(first, hits=results.hits, cursor=results.cursor), rows
            # Asked for fewer hits, the engine says with which cursor the others follow.
            results = engine.search(replace(query, facets=(), limit=beyond))

    def _similar(self, uri: str, limit: int) -> tuple[Match, list[Match]] | None:
        # Some may be hidden or gone. One that was published a moment ago may not be in the engine yet.
        hits = self._engine.similar(uri, limit + limit // 2) or (Hit(uri),)
        rows = self._store.records([hit.uri for hit in hits], "dataset")
        if uri not in rows:
            return None
        itself, *others = [match for match in _matches(hits, rows) if match.record.json]
        return itself, others[:limit]

    def close(self) -> None:
        """Wait for searches that run, and release the engine."""
        self._threads.shutdown()
        self._engine.close()


def _matches(hits: Sequence[Hit], rows: Mapping[str, Record]) -> list[Match]:
    return [Match(rows[hit.uri], hit.highlights, hit.structure) for hit in hits if hit.uri in rows]
