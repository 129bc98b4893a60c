"""Searching: the parameters of `searchDatasets` into a question for the engine, and its hits into rows of Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

from atdata.syntax import parse_datetime
from atdata_appview.models import Match, Record, SearchPage
from atdata_appview.store import ANSWER_BYTES, Store
from atdata_backend.search.base import Query, Results, SearchEngine

# A page loses hits that were hidden or deleted a moment ago; so often we ask the engine for others in their place.
_REFILLS = 3


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
    """The engine in threads of its own, and the database behind it."""

    def __init__(self, engine: SearchEngine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._threads = ThreadPoolExecutor(thread_name_prefix="search")

    async def datasets(self, query: Query) -> SearchPage:
        """The page of *query*. Hits whose row is gone or hidden are left out, of the total, too.

        One call of the engine and one query of the database, unless hits were left out: then others take their place,
        within limits, so that a page can stay short. So is one whose records are large. Raises BadCursor, and
        NetworkError when the engine is a server that does not answer.
        """
        first, rows = await self._page(query, ANSWER_BYTES)
        results = first
        matches: list[Match] = []
        left_out, left = 0, ANSWER_BYTES
        for refills in range(_REFILLS + 1):
            if refills:
                missing = query.limit - len(matches)
                results, rows = await self._page(replace(query, facets=(), limit=missing, cursor=results.cursor), left)
            matches += [Match(rows[hit.uri], hit.highlights) for hit in results.hits if hit.uri in rows]
            left_out += len(results.hits) - len(rows)
            left = ANSWER_BYTES - sum(len(match.record.json) for match in matches)
            if len(matches) == query.limit or left <= 0 or results.cursor is None:
                break
        return SearchPage(matches, max(first.total - left_out, len(matches)), first.facets, results.cursor)

    async def _page(self, query: Query, limit_bytes: int) -> tuple[Results, dict[str, Record]]:
        """The hits of *query* whose records, as far as there are any, fit into so many bytes, and those records."""
        first = results = await self._ask(query)
        while True:
            uris = [hit.uri for hit in results.hits]
            rows = await self._store.records(uris, "dataset", limit_bytes) if uris else {}
            beyond = next((i for i, uri in enumerate(uris) if uri in rows and not rows[uri].json), None)
            if beyond is None:
                return replace(first, hits=results.hits, cursor=results.cursor), rows
            # Asked for fewer hits, the engine says with which cursor the others follow.
            results = await self._ask(replace(query, facets=(), limit=beyond))

    async def count(self) -> int:
        """How many documents the engine has."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.count)

    async def _ask(self, query: Query) -> Results:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.search, query)

    def close(self) -> None:
        """Wait for searches that run, and release the engine."""
        self._threads.shutdown()
        self._engine.close()
