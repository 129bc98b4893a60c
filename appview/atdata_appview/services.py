"""What a request may use: the database, the engine, the status that everybody asks for, and the settings."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from atdata_appview.auth import Authenticator
from atdata_appview.changes import Follower
from atdata_appview.event_stream import EventStream
from atdata_appview.graph import GraphKeeper
from atdata_appview.lens_graph import LensGraph
from atdata_appview.metrics import RequestMetrics
from atdata_appview.models import Status
from atdata_appview.search import Search
from atdata_appview.settings import AppViewSettings
from atdata_appview.store import Store

# Counting a million records takes longer than anything else we do; nobody needs the numbers of this very second.
_STATUS_AGE = 2.0


class CachedStatus:
    """The status, counted anew at most every two seconds, and once at a time, however many ask."""

    def __init__(self, store: Store, search: Search) -> None:
        self._store = store
        self._search = search
        self._counting: asyncio.Task[Status] | None = None
        self._started_at = 0.0

    async def get(self) -> Status:
        """The status of now or of a moment ago. Raises what the database or the engine raise when they are gone."""
        if self._counting is None or self._is_stale(self._counting):
            self._started_at = time.monotonic()
            self._counting = asyncio.create_task(self._count())
        # Who gives up waiting must not take the others' answer away.
        return await asyncio.shield(self._counting)

    def _is_stale(self, counting: asyncio.Task[Status]) -> bool:
        if not counting.done():
            return False
        is_failed = counting.cancelled() or counting.exception() is not None
        return is_failed or time.monotonic() - self._started_at > _STATUS_AGE

    async def _count(self) -> Status:
        return await self._store.status(await self._search.count())


@dataclass(frozen=True, slots=True)
class Services:
    """Opened when the AppView starts, closed when it stops."""

    settings: AppViewSettings
    store: Store
    search: Search
    status: CachedStatus
    metrics: RequestMetrics
    changes: Follower
    stream: EventStream
    authenticator: Authenticator
    graph_keeper: GraphKeeper

    @property
    def graph(self) -> LensGraph:
        """The lens graph as it is now. Raises Unavailable while a starting service still reads it."""
        return self.graph_keeper.graph
