"""The indexer at work: stream to events to store, and beside it search, identities, resyncs and the status."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg

from atdata import __version__, syntax
from atdata.errors import AtdataError, ConfigError, NetworkError
from atdata_backend.http import guarded_client
from atdata_backend.identity import IdentityError, Resolver
from atdata_backend.search.base import SearchEngine
from atdata_indexer import events, jetstream
from atdata_indexer.backfill import Backfill, FetchFailed, RepoUnavailable, Snapshot
from atdata_indexer.changes import Key
from atdata_indexer.feed import Feed
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import AHEAD, CROWD, Applied, Check, Item, Store, is_gone
from atdata_indexer.stream import Stream, host_of, http_url, subscription_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

# In seconds: the longest between saves of a cursor that passed nothing of ours, between looks at work that nobody
# announced, between discoveries, and between looks for changes that are old enough to be forgotten.
_SAVE_CURSOR = 5.0
_LOOK = 5.0
_DISCOVER = 86_400.0
_PRUNE = 600.0

# In seconds: how long a relay may be out of reach before the next is asked, how long an event may be on its way before
# a difference is one, and the jump in the relay's clock that makes a gap of silence.
_FAILOVER = 30.0
_ON_ITS_WAY = 2.0
_SILENCE = 600.0

# Sweeps that gaps ask for are no more often than this, in seconds, and leave hosts a rest as long as they take.
_SWEEP = 60.0
_CHECKS_PER_SECOND = 100.0

# Questions to hosts at a time, beside the backfill's own; and for proofs of records, most of them waiting for the turn
# of their host.
_AT_A_TIME = 8
_PROOFS_AT_A_TIME = 64

# Bytes of JSON that are written at once: what came together may be many times as much.
_MAX_BATCH_JSON = 16_000_000

# Some weeks of the whole network's events: a cursor does not leap over more.
_LEAP = 1_000_000_000

# A Jetstream is read again from some seconds before the last event, as its documentation advises: the clocks of several
# differ. More than a day it may not have kept, and does not say so.
_OVERLAP = 5_000_000
_KEPT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Source:
    """A host to read events from. ``host`` is what its cursor is kept by; ``is_timed``, its numbers are times."""

    host: str
    url: str
    parse: Callable[[bytes, events.Scope], events.Frame]
    is_timed: bool

    @staticmethod
    def all(settings: IndexerSettings) -> list[Source]:
        """Those that *settings* name. Raises ConfigError."""
        if settings.source == "firehose":
            return [Source(host_of(relay), subscription_url(relay), events.parse, False) for relay in settings.relays]
        return [
            Source(
                jetstream.host_of(server), jetstream.subscription_url(server, settings.prefixes), jetstream.parse, True
            )
            for server in settings.jetstreams
        ]


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
            Source.all(settings)[0].host,
            prefixes=settings.prefixes,
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
        self._sources = Source.all(settings)
        self._source = self._sources[0]
        self._stream = self._open_stream()
        self._feed = Feed(store, engine)
        self._started = started
        self._tracked: set[str] = set()
        self._seq: int | None = None
        self._saved: int | None = None
        self._time: datetime | None = None  # of the last frame
        self._lag: float | None = None
        self._gap: str | None = None  # what may be missing before the frames to be applied next
        self._leaps = 0
        self._directory: str | None = None  # what is wrong with the directory of did:plc
        self._unlisted: str | None = None  # why nobody tells which repositories there are
        self._frames = self._commits = self._written = self._deleted = self._quarantined = 0
        self._resyncing: set[str] = set()
        self._to_resolve = asyncio.Event()
        self._to_resync = asyncio.Event()
        self._to_refresh = asyncio.Event()
        self._to_purge = asyncio.Event()
        self._to_check = asyncio.Event()
        self._to_confirm = asyncio.Event()

    async def run(self) -> None:
        settings = self._settings
        self._tracked = await self._store.tracked()
        try:
            async with (
                guarded_client(allow_private=settings.allow_private_hosts) as client,
                asyncio.TaskGroup() as tasks,
            ):
                resolver = Resolver(
                    client,
                    plc_url=settings.plc_url,
                    handle_resolver=settings.handle_resolver,
                    allow_private=settings.allow_private_hosts,
                )
                backfill = Backfill(
                    client, resolver, relay_url=http_url(settings.relays[0]), prefixes=settings.prefixes
                )
                tasks.create_task(self._read_sources())
                tasks.create_task(self._feed.run())
                tasks.create_task(self._resolve(resolver))
                tasks.create_task(self._refresh_keys(resolver))
                tasks.create_task(self._purge(backfill))
                tasks.create_task(self._confirm(backfill))
                if settings.backfill:
                    tasks.create_task(self._discover(backfill))
                    tasks.create_task(self._resync(backfill))
                    tasks.create_task(self._sweep(backfill))
                tasks.create_task(self._prune())
                tasks.create_task(self._report())
        except* Exception as group:  # noqa: BLE001
            # One cause is enough, and an operator's comes first: the others are its consequences, or as good.
            causes = list(_leaves(group))
            raise next((e for e in causes if isinstance(e, ConfigError)), causes[0]) from None

    # The stream.

    async def _read_sources(self) -> None:
        """Read one host at a time; the next when it is out of reach."""
        for source in itertools.cycle(self._sources):
            self._store.source, self._source = source.host, source
            before = self._seq
            self._seq = self._saved = await self._store.cursor()
            if source.is_timed and before is not None:
                self._seq = max(before, self._seq or 0)  # a time at one is a time at another
            self._time = None
            self._stream = self._open_stream()
            gap = None
            if self._seq is None:
                gap = f"{source.host} is read for the first time"
            elif source.is_timed and self._age(self._seq) > _KEPT:
                gap = f"{source.host} was last read up to {jetstream.time_of(self._seq):%F %T}"
            async with asyncio.TaskGroup() as tasks:
                of_source = [tasks.create_task(self._read())]
                if gap is not None:
                    # Only from the connection on will it tell of everything.
                    of_source.append(tasks.create_task(self._greet(gap)))
                if len(self._sources) > 1:
                    await self._until_out_of_reach()
                    for task in of_source:
                        task.cancel()
            logger.warning("%s; reading the next one", self._stream.trouble)
            await self._store.save_cursor(None, gap=f"{source.host} was out of reach")

    async def _greet(self, gap: str) -> None:
        """Have everything compared once the source is connected."""
        await self._until_connected()
        await self._store.save_cursor(None, gap=gap)
        self._to_check.set()

    async def _until_connected(self) -> None:
        while not self._stream.connected:  # noqa: ASYNC110 — the stream may be replaced meanwhile
            await asyncio.sleep(0.1)

    def _open_stream(self) -> Stream:
        def cursor() -> int | None:
            return self._seq - _OVERLAP if self._source.is_timed and self._seq is not None else self._seq

        return Stream(self._source.host, url=self._source.url, cursor=cursor)

    @staticmethod
    def _age(seq: int) -> timedelta:
        """How long ago the event *seq* was, of a source whose numbers are times."""
        return datetime.now(UTC) - jetstream.time_of(seq)

    async def _until_out_of_reach(self) -> None:
        seconds, frames = 0, self._frames
        while seconds < _FAILOVER:
            await asyncio.sleep(1.0)
            is_well = self._stream.connected or self._frames != frames
            seconds, frames = 0 if is_well else seconds + 1, self._frames

    async def _read(self) -> None:
        async for frames in self._stream.batches():
            scope = events.Scope(self._settings.prefixes, self._tracked, syntax.tid_at(datetime.now(UTC) + AHEAD))
            items: list[Item] = []
            size = 0
            seq = self._seq
            time_of_frame: str | None = None
            for frame in frames:
                parsed = _parse(self._source, frame, scope)
                # A relay that repeats itself does not move us back, and one absurd number not out of its reach.
                if parsed.seq is not None and seq is None:
                    seq = parsed.seq
                elif parsed.seq is not None and seq is not None and self._is_next(seq, parsed.seq):
                    self._see_gap(seq, parsed.seq)
                    seq = parsed.seq
                time_of_frame = parsed.time or time_of_frame
                for event in parsed.events:
                    if isinstance(event, (events.RelayError, events.RelayInfo)):
                        await self._heed(event)
                        continue
                    if isinstance(event, events.Commit | events.Mention):
                        # At once: a later frame of this batch may be about it.
                        self._tracked.add(event.did)
                    items.append(Item(event, frame, parsed.seq))
                    size += events.json_size(event)
                if size > _MAX_BATCH_JSON:
                    await self._apply(items, seq)
                    items, size = [], 0
            self._frames += len(frames)
            if time_of_frame is not None:
                self._pass(time_of_frame)
            if items or self._gap is not None:
                await self._apply(items, seq)
            self._seq = seq
            if time_of_frame is None and self._source.is_timed and seq is not None:
                self._lag = max(0.0, self._age(seq).total_seconds())

    async def _apply(self, items: list[Item], seq: int | None) -> None:
        """Have *items* applied up to *seq*, and the gap before them remembered, if there is one."""
        gap, self._gap = self._gap, None
        self._note(await self._store.apply(items, seq, gap=gap))
        self._seq = self._saved = seq
        if gap is not None:
            self._to_check.set()

    def _is_next(self, seq: int, following: int) -> bool:
        """Whether to go on to a number after *seq*. Times that are yet to come were rejected.

        One that leaps far ahead would put all after it behind the cursor; a hundred in a row are the relay's own.
        """
        if following <= seq:
            return False
        self._leaps = 0 if self._source.is_timed or following < seq + _LEAP else self._leaps + 1
        return self._leaps in (0, 100)

    def _see_gap(self, seq: int, following: int) -> None:
        """See whether something may be missing between two events. Times have gaps between them, but no long ones."""
        host = self._source.host
        if self._source.is_timed:
            if following - seq > _SILENCE * 1_000_000:
                start, end = jetstream.time_of(seq), jetstream.time_of(following)
                self._gap = f"{host} was silent from {start:%F %T} to {end:%F %T}"
        elif following != seq + 1:
            self._gap = f"{host} went from {seq} to {following}"

    def _pass(self, time_of_frame: str) -> None:
        """Keep the relay's time, and see whether it jumped."""
        try:
            time = syntax.parse_datetime(time_of_frame)
        except ValueError:  # whatever the relay calls a time
            return
        if self._time is not None and (time - self._time).total_seconds() > _SILENCE:
            self._gap = f"{self._stream.host} was silent from {self._time:%F %T} to {time:%F %T}"
        self._time = time
        self._lag = max(0.0, (datetime.now(UTC) - time).total_seconds())

    def _note(self, applied: Applied) -> None:
        """Count, and wake whom it concerns."""
        self._commits += applied.commits
        self._written += applied.written
        self._deleted += applied.deleted
        self._quarantined += applied.quarantined
        self._tracked |= applied.tracked
        self._feed.wake.set()
        if applied.identities:
            self._to_resolve.set()
        if applied.desynced:
            self._to_refresh.set()
            self._to_resync.set()
        if applied.deleted_accounts:
            self._to_purge.set()
        if applied.mentions:
            self._to_confirm.set()

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
            self._gap = f"{self._stream.host} no longer had the events after {self._seq}"

    async def _resolve(self, resolver: Resolver) -> None:
        async def resolve(did: str) -> None:
            try:
                identity = await resolver.resolve(did)
                await self._store.resolved(identity)
            except (AtdataError, psycopg.DataError) as e:
                self._note_directory(did, e)
                logger.info("cannot resolve %s: %s", did, e)
                await self._store.unresolved(did)
            except psycopg.Error:
                raise
            except Exception:
                # Whatever a stranger's document or server made us stumble over is no reason to stop.
                logger.exception("resolving %s", did)
                await self._store.unresolved(did)
            else:
                self._note_directory(did, None)
                self._feed.wake.set()

        await _work_off(self._store.to_resolve, resolve, self._to_resolve, places=20)

    def _note_directory(self, did: str, error: Exception | None) -> None:
        """Remember whether the directory answers: without it, new repositories wait."""
        if not did.startswith("did:plc:") or (error is not None and not isinstance(error, NetworkError)):
            return
        trouble = None if error is None else f"the directory of DIDs does not answer: {error}"
        if trouble is not None and self._directory is None:
            logger.warning("%s", trouble)
        self._directory = trouble

    async def _discover(self, backfill: Backfill) -> None:
        # What is published before that, the stream may not tell of.
        await self._until_connected()
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
                self._unlisted = None
                await asyncio.sleep(_DISCOVER)
            except NetworkError as e:
                logger.warning("discovery failed: %s; trying again in a minute", e)
                self._unlisted = f"the relay does not say which repositories there are, so some may be missing: {e}"
                await asyncio.sleep(60)

    async def _follow(self, dids: list[str]) -> int:
        new = await self._store.discovered(dids)
        self._tracked |= new
        if new:
            self._to_resync.set()
            self._to_resolve.set()
        return len(new)

    async def _resync(self, backfill: Backfill) -> None:
        """Read repositories that are out of step whole. A slow one keeps its place, and nobody else waiting."""
        async for result in backfill.run(self._due()):
            match result:
                case Snapshot() if result.rev > syntax.tid_at(datetime.now(UTC) + AHEAD):
                    await self._store.resync_failed(
                        result.did, f"its rev {result.rev} is of a time that is yet to come"
                    )
                case Snapshot():
                    try:
                        applied = await self._store.apply_snapshot(result)
                    except FetchFailed as e:
                        logger.info("cannot keep %s: %s", result.did, e.reason)
                        await self._store.resync_failed(result.did, e.reason)
                    else:
                        if applied is None:
                            await self._store.resync_failed(result.did, f"its host is behind, at {result.rev}")
                        else:
                            self._note(applied)
                case RepoUnavailable():
                    await self._store.unavailable(result.did, result.status)
                case FetchFailed():
                    logger.info("cannot resync %s: %s", result.did, result.reason)
                    await self._store.resync_failed(result.did, result.reason)
            self._resyncing.discard(result.did)
            if len(self._resyncing) < CROWD // 2:
                self._to_resync.set()  # others of the same host may wait behind these
            self._feed.wake.set()

    async def _due(self) -> AsyncIterator[str]:
        """Repositories to be read whole, each until it was."""
        while True:
            self._to_resync.clear()
            due = await self._store.to_resync(CROWD, but=self._resyncing)
            self._resyncing.update(due)
            for did in due:
                yield did
            if not due:
                await _wait(self._to_resync, _LOOK)

    async def _refresh_keys(self, resolver: Resolver) -> None:
        """Read the signing keys that commits wait for; without backfill, that is all there is to a resync."""

        async def refresh(did: str) -> None:
            try:
                identity = await resolver.document(did)
                if identity.signing_key is None:
                    raise IdentityError(f"the DID document of {did} has no signing key")
                self._note(await self._store.apply_identity(identity))
            except (AtdataError, psycopg.DataError) as e:
                self._note_directory(did, e)
                logger.info("cannot read the key of %s: %s", did, e)
                await self._store.resync_failed(did, str(e))
            except psycopg.Error:
                raise
            except Exception as e:
                logger.exception("reading the key of %s", did)
                await self._store.resync_failed(did, f"{type(e).__name__}: {e}")
            else:
                self._note_directory(did, None)

        async def due(limit: int, but: Collection[str]) -> list[str]:
            return await self._store.to_refresh(limit, but=but, keys_only=self._settings.backfill)

        await _work_off(due, refresh, self._to_refresh, places=_AT_A_TIME)

    async def _confirm(self, backfill: Backfill) -> None:
        """Have hosts prove what they were only said to hold."""

        async def confirm(key: Key) -> None:
            did = key[0]
            try:
                proof = await backfill.prove(*key)
                if proof.rev > syntax.tid_at(datetime.now(UTC) + AHEAD):
                    raise FetchFailed(did, f"its rev {proof.rev} is of a time that is yet to come")
            except RepoUnavailable as e:
                await self._store.unavailable(did, e.status)
                await self._store.not_confirmed(key)
            except FetchFailed as e:
                logger.info("cannot prove %s/%s of %s: %s", *key[1:], did, e.reason)
                await self._store.not_confirmed(key)
            except Exception:
                logger.exception("proving %s/%s of %s", *key[1:], did)
                await self._store.not_confirmed(key)
            else:
                applied = await self._store.confirm(key, proof)
                if applied is None:
                    logger.info("%s is behind what was said of %s/%s", did, *key[1:])
                else:
                    self._note(applied)
            self._feed.wake.set()

        await _work_off(self._store.to_confirm, confirm, self._to_confirm, places=_PROOFS_AT_A_TIME)

    async def _purge(self, backfill: Backfill) -> None:
        """Forget deleted accounts, if their own hosts say that they are: a relay's word is not enough."""

        async def purge(check: Check) -> None:
            try:
                hosting = await backfill.status(check.did)
            except FetchFailed as e:
                logger.info("cannot tell whether %s was deleted: %s", check.did, e.reason)
                await self._store.not_purged(check, None)
                return
            if hosting.status in ("deleted", "not-found"):
                await self._store.purge(check)
            else:
                await self._store.not_purged(check, hosting.status)
                self._to_resync.set()
            self._feed.wake.set()

        await _work_off(self._store.to_purge, purge, self._to_purge, places=_AT_A_TIME, key=_did)

    async def _sweep(self, backfill: Backfill) -> None:
        """Compare repositories with their hosts when a gap in the stream may have hidden something, or on demand."""

        async def check(asked: Check) -> None:
            did = asked.did
            try:
                try:
                    rev: str | None = (await backfill.latest(did, asked.pds)).rev
                except RepoUnavailable:
                    # It may have moved since: what its document says now decides.
                    hosting = await backfill.status(did)
                    if hosting.status != "active":
                        status = "not-found" if hosting.status == "deleted" else hosting.status
                        await self._store.found_unavailable(asked, status)
                        self._to_purge.set()
                        self._feed.wake.set()
                        return
                    rev = hosting.rev
                if rev is not None and await self._store.checked(did, rev):
                    return
                if asked.status != "active" and (word := await backfill.relayed(did)) not in (None, "active"):
                    # The relay took it down: its host would never know.
                    await self._store.found_unavailable(asked, word)
                    return
                await asyncio.sleep(_ON_ITS_WAY)
                if rev is None or not await self._store.checked(did, rev):
                    await self._store.differs(asked, f"its host is at {rev}")
                    self._to_resync.set()
            except (FetchFailed, RepoUnavailable) as e:
                logger.info("cannot check %s: %s", did, e)
                await self._store.unchecked(did)

        rested = 0.0

        async def due(limit: int, but: Collection[str]) -> list[Check]:
            nonlocal rested
            if time.monotonic() >= rested and (reason := await self._store.start_sweep()):
                logger.info("comparing repositories with their hosts: %s", reason)
                rested = time.monotonic() + max(_SWEEP, len(self._tracked) / _CHECKS_PER_SECOND)
            return await self._store.to_check(limit, but=but)

        await _work_off(due, check, self._to_check, places=_AT_A_TIME, key=_did)

    async def _prune(self) -> None:
        """Forget old changes, now and then."""
        while True:
            await self._store.prune_changes()
            await asyncio.sleep(_PRUNE)

    async def _report(self) -> None:
        """Say how it goes, about once a second, and save a cursor that passed nothing of ours."""
        before = saved_at = reported_at = time.monotonic()
        frames, last = 0, None
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            rate, frames, before = (self._frames - frames) / (now - before), self._frames, now
            is_due = self._saved is None or now - saved_at >= _SAVE_CURSOR
            if self._seq is not None and self._seq != self._saved and is_due:
                await self._store.save_cursor(self._seq)
                self._saved, saved_at = self._seq, now
            status: dict[str, Any] = {
                "version": __version__,
                "startedAt": syntax.format_datetime(self._started),
                "source": self._settings.source,
                "relay": self._source.host,
                "connected": self._stream.connected,
                "trouble": self._stream.trouble or self._feed.trouble or self._directory or self._unlisted,
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


def _parse(source: Source, frame: bytes, scope: events.Scope) -> events.Frame:
    try:
        return source.parse(frame, scope)
    except Exception as e:
        # A mistake of ours, which the same frame would meet again after every start.
        logger.exception("parsing a frame of %d bytes", len(frame))
        return events.Frame(None, None, (events.Rejected("parser-failed", f"{type(e).__name__}: {e}"[:2000]),))


def _did(check: Check) -> str:
    return check.did


async def _work_off(
    due: Callable[[int, Collection[Any]], Awaitable[Sequence[T]]],
    work: Callable[[T], Coroutine[Any, Any, None]],
    wake: asyncio.Event,
    *,
    places: int,
    key: Callable[[T], Any] = lambda item: item,
) -> None:
    """Do *work* on what is *due*, for ever, *places* at a time: who is slow keeps a place, and nobody else waiting.

    *due* is asked for so many, but for those under way, when there is room: after `wake`, and now and then.
    """
    under_way: set[Any] = set()

    async def one(item: T) -> None:
        try:
            await work(item)
        finally:
            under_way.discard(key(item))
            wake.set()

    async with asyncio.TaskGroup() as tasks:
        while True:
            wake.clear()
            if room := places - len(under_way):
                for item in await due(room, list(under_way)):
                    under_way.add(key(item))
                    tasks.create_task(one(item))
            await _wait(wake, _LOOK)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]
