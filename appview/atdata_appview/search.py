"""Searching: the parameters of searches into a question for the engine, and its hits into records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final

from psycopg_pool import ConnectionPool

from atdata.nsid import Kind
from atdata.syntax import parse_datetime
from atdata_appview.models import Match, SearchPage, to_json
from atdata_appview.settings import AppViewSettings
from atdata_appview.store import ANSWER_BYTES, BlockingStore
from atdata_appview.workers import Processes, Threads, Workers
from atdata_backend.postgres import open_blocking_pool
from atdata_backend.published import Published
from atdata_backend.search.base import Hit, Query, Results, SearchEngine

# A page loses hits that were hidden or deleted a moment ago; so often we ask the engine for others in their place.
_REFILLS: Final = 3

# Searches that run at once within this process. More would only be in each other's way.
_THREADS: Final = 6


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


class Searcher:
    """The engine and its hits' records."""

    def __init__(self, engine: SearchEngine, rows: ConnectionPool) -> None:
        self._engine = engine
        self._rows = rows
        self._store = BlockingStore(rows)

    @classmethod
    def open(cls, settings: AppViewSettings, threads: int) -> Searcher:
        """For so many *threads*. Raises ConfigError when the settings name no engine."""
        return cls(settings.open_engine(), open_blocking_pool(settings.database_url, max_size=threads))

    def datasets(self, query: Query) -> SearchPage:
        """See `Search.datasets`."""
        return self._page(self._engine, query, "dataset")

    def dataset_answer(self, query: Query) -> bytes:
        """See `Search.dataset_answer`."""
        return to_json(self.datasets(query).answer("datasets"))

    def schemas(self, query: Query) -> SearchPage:
        """See `Search.schemas`."""
        return self._page(self._engine.schemas, query, "schema")

    def similar(self, uri: str, limit: int) -> tuple[Match, list[Match]] | None:
        """See `Search.similar`."""
        # Some may be hidden or gone. One that was published a moment ago may not be in the engine yet.
        hits = self._engine.similar(uri, limit + limit // 2) or (Hit(uri),)
        rows = self._found(hits, "dataset", ANSWER_BYTES)
        if uri not in rows:
            return None
        itself, *others = [rows[hit.uri] for hit in hits if hit.uri in rows and rows[hit.uri].record.json]
        return itself, others[:limit]

    def count(self) -> int:
        """See `Search.count`."""
        return self._engine.count()

    def close(self) -> None:
        """Release the engine and the connections."""
        self._engine.close()
        self._rows.close()

    def _page(self, engine: SearchEngine, query: Query, kind: Kind) -> SearchPage:
        first, rows = self._portion(engine, query, kind, ANSWER_BYTES)
        results = first
        matches: list[Match] = []
        left_out, left = 0, ANSWER_BYTES
        for refills in range(_REFILLS + 1):
            if refills:
                asked = replace(query, facets=(), limit=query.limit - len(matches), cursor=results.cursor)
                results, rows = self._portion(engine, asked, kind, left)
            matches += [rows[hit.uri] for hit in results.hits if hit.uri in rows]
            left_out += len(results.hits) - len(rows)
            left = ANSWER_BYTES - sum(len(match.record.json) for match in matches)
            if len(matches) == query.limit or left <= 0 or results.cursor is None:
                break
        return SearchPage(matches, max(first.total - left_out, len(matches)), first.facets, results.cursor)

    def _portion(
        self, engine: SearchEngine, query: Query, kind: Kind, limit_bytes: int
    ) -> tuple[Results, dict[str, Match]]:
        """The hits of *query* whose records, as far as there are any, fit into so many bytes, and what they found."""
        first = results = engine.search(query)
        while True:
            rows = self._found(results.hits, kind, limit_bytes)
            has_room = (hit.uri not in rows or bool(rows[hit.uri].record.json) for hit in results.hits)
            beyond = next((i for i, fits in enumerate(has_room) if not fits), None)
            if beyond is None:
                return replace(first, hits=results.hits, cursor=results.cursor), rows
            # Asked for fewer hits, the engine says with which cursor the others follow.
            results = engine.search(replace(query, facets=(), limit=beyond))

    def _found(self, hits: Sequence[Hit], kind: Kind, limit_bytes: int) -> dict[str, Match]:
        """The records of *hits*: those that came along, if they are still so, and of the others what the database has.

        It has the last word on what may be seen, however far behind the engine is. What has changed is not marked: the
        words that were found may be gone.
        """
        held = [hit.record for hit in hits if hit.record]
        outdated = self._store.outdated(held, kind) if held else ()
        rows: dict[str, Published] = {one.uri: one for one in held if one.json and one.uri not in outdated}
        if others := [hit.uri for hit in hits if hit.uri not in rows]:
            rows |= self._store.records(others, kind, limit_bytes)
        return {
            hit.uri: Match(rows[hit.uri], {} if hit.uri in outdated else hit.highlights, hit.structure)
            for hit in hits
            if hit.uri in rows
        }


class Search:
    """A `Searcher` for the event loop: every search is one call of another process, or of another thread."""

    def __init__(self, settings: AppViewSettings) -> None:
        count = settings.searching_processes
        self._workers: Workers = (
            Processes(partial(Searcher.open, settings, 1), count)
            if count
            else Threads(Searcher.open(settings, _THREADS), _THREADS)
        )

    async def datasets(self, query: Query) -> SearchPage:
        """The page of *query*. Hits whose row is gone or hidden are left out, of the total, too.

        One call of the engine and one query of the database, two where records have changed, unless hits were left out:
        then others take their place, within limits, so that a page can stay short. So is one whose records are large.
        Raises BadCursor, and NetworkError when the engine is a server that does not answer.
        """
        page: SearchPage = await self._workers.call("datasets", query)
        return page

    async def dataset_answer(self, query: Query) -> bytes:
        """The same as the JSON that `searchDatasets` answers."""
        answer: bytes = await self._workers.call("dataset_answer", query)
        return answer

    async def schemas(self, query: Query) -> SearchPage:
        """The same for schemas."""
        page: SearchPage = await self._workers.call("schemas", query)
        return page

    async def similar(self, uri: str, limit: int) -> tuple[Match, list[Match]] | None:
        """The dataset at *uri*, and those that are most like it; None if there is none. Raises what `datasets` does."""
        found: tuple[Match, list[Match]] | None = await self._workers.call("similar", uri, limit)
        return found

    async def count(self) -> int:
        """How many datasets the engine has."""
        count: int = await self._workers.call("count")
        return count

    async def close(self) -> None:
        """Wait for searches that run, and release the engine."""
        await self._workers.close()
