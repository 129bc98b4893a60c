"""The indexer at work: stream to events to store, and beside it search, identities, resyncs and the status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from atdata import __version__, nsid, syntax
from atdata.errors import AtdataError, ConfigError, NetworkError
from atdata_backend.search.base import SearchEngine
from atdata_indexer import events
from atdata_indexer.backfill import Backfill, FetchFailed, RepoUnavailable, Snapshot
from atdata_indexer.feed import Feed
from atdata_indexer.http import guarded_client
from atdata_indexer.identity import Resolver
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import Item, Store, is_gone
from atdata_indexer.stream import Stream, subscription_url

logger = logging.getLogger(__name__)

_PREFIXES = (nsid.PREFIX,)

# In seconds: the longest between saves of a cursor that passed nothing of ours, between looks at work that nobody
# announced, and between discoveries.
_SAVE_CURSOR = 5.0
_LOOK = 5.0
_DISCOVER = 86_400.0

# Some weeks of the whole network's events: a cursor does not leap over more.
_LEAP = 1_000_000_000

# How far a clock elsewhere may be ahead of ours.
_AHEAD = timedelta(minutes=5)


class Indexer:
    """One indexer: ``await Indexer(settings, engine).run()`` works until it is cancelled.

    A lost database ends a session; the next one starts from what was committed, so that no state in memory has to be
    mended. Raises ConfigError for what only an operator can put right.
    """

    def __init__(self, settings: IndexerSettings, engine: SearchEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._started = datetime.now(UTC)

    async def run(self) -> None:
        """Index until cancelled."""
        settings = self._settings
        store = Store(
            settings.database_url,
            urlsplit(subscription_url(settings.relay)).netloc,
            backfill=settings.backfill,
            quarantine_bytes=settings.quarantine_bytes,
        )
        was_connected = False
        delay = 0.5
        try:
            while True:
                try:
                    await store.reopen()
                    was_connected, delay = True, 0.5
                    await _Session(settings, store, self._engine, self._started).run()
                except (ConfigError, psycopg.Error) as e:
                    # At the first connection it is the settings; later, a database that went away.
                    if not was_connected or not is_gone(e.__cause__ or e):
                        raise
                    logger.warning("lost the database: %s; trying again in %.1f s", e, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
        finally:
            await store.close()


class _Session:
    """What runs while the database is there. Ends by the first error of any of its tasks."""

    def __init__(self, settings: IndexerSettings, store: Store, engine: SearchEngine, started: datetime) -> None:
        self._settings = settings
        self._store = store
        self._stream = Stream(settings.relay, cursor=lambda: self._seq)
        self._feed = Feed(store, engine)
        self._started = started
        self._tracked: set[str] = set()
        self._seq: int | None = None
        self._saved: int | None = None
        self._lag: float | None = None
        self._frames = self._commits = self._written = self._deleted = self._quarantined = 0
        self._to_resolve = asyncio.Event()
        self._to_resync = asyncio.Event()

    async def run(self) -> None:
        self._tracked = await self._store.tracked()
        self._seq = self._saved = await self._store.cursor()
        try:
            async with (
                guarded_client(allow_private=self._settings.allow_private_hosts) as client,
                asyncio.TaskGroup() as tasks,
            ):
                resolver = Resolver(
                    client,
                    plc_url=self._settings.plc_url,
                    handle_resolver=self._settings.handle_resolver,
                    allow_private=self._settings.allow_private_hosts,
                )
                tasks.create_task(self._read())
                tasks.create_task(self._feed.run())
                tasks.create_task(self._resolve(resolver))
                if self._settings.backfill:
                    backfill = Backfill(client, resolver, relay_url=_http_url(self._settings.relay))
                    tasks.create_task(self._discover(backfill))
                    tasks.create_task(self._resync(backfill))
                tasks.create_task(self._report())
        except* Exception as group:  # noqa: BLE001
            # One cause is enough, and an operator's comes first: the others are its consequences, or as good.
            causes = list(_leaves(group))
            raise next((e for e in causes if isinstance(e, ConfigError)), causes[0]) from None

    async def _read(self) -> None:
        async for frames in self._stream.batches():
            scope = events.Scope(_PREFIXES, self._tracked, syntax.tid_at(datetime.now(UTC) + _AHEAD))
            items: list[Item] = []
            seq = self._seq
            time_of_frame: str | None = None
            for frame in frames:
                parsed = _parse(frame, scope)
                # A relay that repeats itself does not move us back, and one absurd number not out of its reach.
                if parsed.seq is not None and (seq is None or seq < parsed.seq < seq + _LEAP):
                    seq = parsed.seq
                time_of_frame = parsed.time or time_of_frame
                for event in parsed.events:
                    if isinstance(event, (events.RelayError, events.RelayInfo)):
                        await self._heed(event)
                        continue
                    if isinstance(event, events.Commit):
                        # At once: a later frame of this batch may be about it.
                        self._tracked.add(event.did)
                    items.append(Item(event, frame, parsed.seq))
            self._frames += len(frames)
            if items:
                applied = await self._store.apply(items, seq)
                self._saved = seq
                self._commits += applied.commits
                self._written += applied.written
                self._deleted += applied.deleted
                self._quarantined += applied.quarantined
                self._feed.wake.set()
                if applied.identities:
                    self._to_resolve.set()
                if applied.tracked:
                    self._tracked |= applied.tracked
                    self._to_resync.set()
            self._seq = seq
            if time_of_frame is not None:
                with contextlib.suppress(ValueError):  # whatever the relay calls a time
                    self._lag = max(0.0, (datetime.now(UTC) - syntax.parse_datetime(time_of_frame)).total_seconds())

    async def _heed(self, event: events.RelayError | events.RelayInfo) -> None:
        logger.warning("%s says %s: %s", self._stream.host, event.name, event.message)
        if isinstance(event, events.RelayError) and event.name == "FutureCursor":
            # Never reset by ourselves: it may as well be the wrong relay under the right name.
            raise ConfigError(
                f"{self._stream.host} has not yet come as far as our cursor {self._seq}: it was reset, or it is another"
                " relay than before. To start anew there, run `atdata indexer forget-cursor`"
            )
        if event.name == "OutdatedCursor":
            # What lies between our cursor and the oldest event it still has, only the repositories can tell.
            await self._store.desync_all(f"{self._stream.host} no longer had the events after {self._seq}")
            self._to_resync.set()

    async def _resolve(self, resolver: Resolver) -> None:
        async def resolve(did: str) -> None:
            try:
                identity = await resolver.resolve(did)
            except AtdataError as e:
                logger.info("cannot resolve %s: %s", did, e)
                await self._store.unresolved(did)
            except Exception:
                # Whatever a stranger's document or server made us stumble over is no reason to stop.
                logger.exception("resolving %s", did)
                await self._store.unresolved(did)
            else:
                await self._store.resolved(did, identity.handle, identity.pds)

        while True:
            self._to_resolve.clear()
            while dids := await self._store.to_resolve(20):
                async with asyncio.TaskGroup() as tasks:
                    for did in dids:
                        tasks.create_task(resolve(did))
                self._feed.wake.set()
            await _wait(self._to_resolve, _LOOK)

    async def _discover(self, backfill: Backfill) -> None:
        while True:
            found = 0
            try:
                dids: list[str] = []
                async for did in backfill.discover():
                    dids.append(did)
                    if len(dids) >= 100:
                        found += await self._follow(dids)
                        dids = []
                found += await self._follow(dids)
                logger.info("discovery: %d new repositories", found)
                await asyncio.sleep(_DISCOVER)
            except NetworkError as e:
                logger.warning("discovery failed: %s; trying again in a minute", e)
                await asyncio.sleep(60)

    async def _follow(self, dids: list[str]) -> int:
        new = await self._store.discovered(dids)
        self._tracked |= new
        if new:
            self._to_resync.set()
            self._to_resolve.set()
        return len(new)

    async def _resync(self, backfill: Backfill) -> None:
        while True:
            self._to_resync.clear()
            while dids := await self._store.to_resync(100):
                async for result in backfill.run(dids):
                    await self._resynced(result)
            await _wait(self._to_resync, _LOOK)

    async def _resynced(self, result: Snapshot | RepoUnavailable | FetchFailed) -> None:
        match result:
            case Snapshot() if result.rev > syntax.tid_at(datetime.now(UTC) + _AHEAD):
                await self._store.resync_failed(result.did, f"its rev {result.rev} is of a time that is yet to come")
            case Snapshot():
                applied = await self._store.apply_snapshot(result)
                if applied is None:
                    await self._store.resync_failed(result.did, "a newer commit came while it was read")
                    return
                self._written += applied.written
                self._deleted += applied.deleted
                self._quarantined += applied.quarantined
            case RepoUnavailable():
                await self._store.unavailable(result.did, result.status)
            case FetchFailed():
                logger.info("cannot resync %s: %s", result.did, result.reason)
                await self._store.resync_failed(result.did, result.reason)
        self._feed.wake.set()

    async def _report(self) -> None:
        """Say how it goes, about once a second, and save a cursor that passed nothing of ours."""
        before = saved_at = reported_at = time.monotonic()
        frames, last = 0, None
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            rate, frames, before = (self._frames - frames) / (now - before), self._frames, now
            if self._seq is not None and self._seq != self._saved and now - saved_at >= _SAVE_CURSOR:
                await self._store.save_cursor(self._seq)
                self._saved, saved_at = self._seq, now
            status: dict[str, Any] = {
                "version": __version__,
                "startedAt": syntax.format_datetime(self._started),
                "relay": self._stream.host,
                "connected": self._stream.connected,
                "trouble": self._stream.trouble or self._feed.trouble,
                "seq": self._seq,
                "lagSeconds": None if self._lag is None else round(self._lag, 3),
                "framesPerSecond": round(rate, 1),
                "frames": self._frames,
                "commits": self._commits,
                "written": self._written,
                "deleted": self._deleted,
                "rejected": self._quarantined,
                "oversizeFrames": self._stream.oversize,
                "repositories": len(self._tracked),
                **await self._store.counts(),
            }
            # At rest, a sign of life every few seconds will do.
            if status != last or now - reported_at >= _LOOK:
                await self._store.report(status)
                last, reported_at = status, now


def _parse(frame: bytes, scope: events.Scope) -> events.Frame:
    try:
        return events.parse(frame, scope)
    except Exception as e:
        # A mistake of ours, which the same frame would meet again after every start.
        logger.exception("parsing a frame of %d bytes", len(frame))
        return events.Frame(None, None, (events.Rejected("parser-failed", f"{type(e).__name__}: {e}"[:2000]),))


def _http_url(relay: str) -> str:
    """The relay's address for XRPC queries."""
    parts = urlsplit(subscription_url(relay))
    return urlunsplit(("https" if parts.scheme == "wss" else "http", parts.netloc, "", "", ""))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]
