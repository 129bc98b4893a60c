"""Own backfill: find the repositories that hold records of ours, and read them whole from their hosts.

What is read is given back as a snapshot; comparing it with what we hold is the store's. Memory is bounded: a
repository's blocks are spooled to a temporary SQLite database, as which of them are ours shows only when its tree is
there. At most 256 MiB of a repository are read, 2 MiB of a block, and 64 MiB of records kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import cbrrr
import httpx

from atdata import nsid, syntax
from atdata.errors import AtdataError, NetworkError
from atdata_indexer.car import CarError, cid_text, decode, read_blocks, walk_mst
from atdata_indexer.http import Refused, StatusError, get, get_json, iter_limited, raise_for_status
from atdata_indexer.identity import Identity, IdentityError, Resolver

logger = logging.getLogger(__name__)

__all__ = ["Backfill", "FetchFailed", "RepoRecord", "RepoUnavailable", "Snapshot"]

_MAX_REPOSITORY: Final = 256 * 2**20
_MAX_BLOCK: Final = 2 * 2**20
_MAX_RECORDS: Final = 64 * 2**20
_MAX_ANSWER: Final = 4 * 2**20

_ATTEMPTS: Final = 4
# In seconds: the first backoff, the longest, the longest that a server may ask for, and the ends of an exchange.
_BACKOFF: Final = 1.0
_LONGEST_BACKOFF: Final = 30.0
_LONGEST_PAUSE: Final = 10.0
# A host that asks for longer is asked again all the same.
_FORGIVEN: Final = 600.0
_QUERY_DEADLINE: Final = 30.0
_REPOSITORY_DEADLINE: Final = 3600.0
# A host that sends less than this, in bytes per second after the first seconds, does not get to hold a place for long.
_SLOWEST: Final = 50_000
_SLOW_START: Final = 30.0

# The errors of com.atproto.sync.getRepo, and what #account events call the same states.
_UNAVAILABLE: Final = {
    "RepoNotFound": "not-found",
    "RepoDeactivated": "deactivated",
    "RepoSuspended": "suspended",
    "RepoTakendown": "takendown",
}

T = TypeVar("T")


class RepoRecord(NamedTuple):
    """A record in a repository: where it is, and its block, which hashes to *cid*."""

    collection: str
    rkey: str
    cid: str
    block: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every record of ours in a repository at *rev*. *data* is the CID of its tree.

    The signature in *commit*, the block, is unchecked; *identity* has the key for it.
    """

    did: str
    rev: str
    data: str
    records: tuple[RepoRecord, ...]
    commit: bytes
    identity: Identity


class RepoUnavailable(AtdataError):
    """The host does not give out a repository: *status* is not-found, deactivated, suspended or takendown."""

    def __init__(self, did: str, status: str) -> None:
        super().__init__(f"{did}: {status}")
        self.did = did
        self.status = status


class FetchFailed(AtdataError):
    """A repository could not be read, for *reason*; what it holds is unknown."""

    def __init__(self, did: str, reason: str) -> None:
        super().__init__(f"{did}: {reason}")
        self.did = did
        self.reason = reason


class Backfill:
    """Finds repositories at a relay, and reads them from their hosts.

    >>> backfill = Backfill(client, resolver, relay_url="https://bsky.network")
    >>> async for result in backfill.run(backfill.discover()):
    ...     match result:
    ...         case Snapshot(): await store.apply_snapshot(result)

    *client* is a `guarded_client`. Records whose collection starts with one of *prefixes* are ours. At most
    *concurrency* repositories are read at a time, *per_host* of them from one host. Requests that a host puts off or
    fails to answer are repeated a few times, at the pace that it asks for.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        resolver: Resolver,
        *,
        relay_url: str,
        prefixes: Sequence[str] = (nsid.PREFIX,),
        concurrency: int = 8,
        per_host: int = 2,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._resolver = resolver
        self._relay_url = relay_url.rstrip("/")
        self._prefixes = tuple(prefixes)
        self._concurrency = concurrency
        self._hosts: defaultdict[str, _Host] = defaultdict(lambda: _Host(per_host))
        self._sleep = sleep

    async def discover(self) -> AsyncIterator[str]:
        """The DIDs of repositories that may hold records of ours, each once.

        Asks for the known collections. A host that has no index of collections, such as a bare PDS, is asked for all
        its repositories and what is in each. Raises NetworkError when the host does not answer, or offers neither.
        """
        seen: set[str] = set()
        try:
            for collection in nsid.KINDS:
                if collection.startswith(self._prefixes):
                    async for entry in self._pages("com.atproto.sync.listReposByCollection", collection=collection):
                        if entry["did"] not in seen:
                            seen.add(entry["did"])
                            yield entry["did"]
        except StatusError as e:
            # The reference PDS forwards what it does not know, so that its refusals have many names.
            if e.status == 429 or (e.status >= 500 and e.status != 501):
                raise
        else:
            return
        async for entry in self._pages("com.atproto.sync.listRepos"):
            if entry["did"] not in seen and entry.get("active") is not False and await self._has_ours(entry["did"]):
                seen.add(entry["did"])
                yield entry["did"]

    async def _has_ours(self, did: str) -> bool:
        try:
            description = await self._query("com.atproto.repo.describeRepo", repo=did)
        except StatusError as e:
            if _is_unknown_method(e):
                raise NetworkError(
                    f"{self._relay_url} offers neither com.atproto.sync.listReposByCollection nor"
                    " com.atproto.repo.describeRepo: set ATDATA_RELAY to a relay that lists collections, or to a PDS"
                ) from None
            if e.status < 500:
                return False  # it went away since it was listed
            raise
        collections = description.get("collections")
        return any(isinstance(c, str) and c.startswith(self._prefixes) for c in _list(collections))

    async def _pages(self, method: str, **parameters: str) -> AsyncIterator[dict[str, Any]]:
        """The entries of a list of repositories, from all its pages."""
        cursor: dict[str, str] = {}
        while True:
            page = await self._query(method, limit=1000, **parameters, **cursor)
            for entry in _list(page.get("repos")):
                if isinstance(entry, dict) and isinstance(entry.get("did"), str) and syntax.is_did(entry["did"]):
                    yield entry
            following = page.get("cursor")
            if not following or not isinstance(following, str):
                return
            if cursor.get("cursor") == following:
                raise NetworkError(f"{self._relay_url}: {method} goes in circles at cursor {following[:80]!r}")
            cursor["cursor"] = following

    async def _query(self, method: str, **parameters: str | int) -> dict[str, Any]:
        answer = await self._patiently(
            self._relay_url,
            lambda: get_json(
                self._client,
                f"{self._relay_url}/xrpc/{method}",
                params=parameters,
                limit=_MAX_ANSWER,
                seconds=_QUERY_DEADLINE,
                trusted=True,
            ),
        )
        if not isinstance(answer, dict):
            raise NetworkError(f"{self._relay_url}: {method} answers with {type(answer).__name__}, not an object")
        return answer

    async def run(
        self, dids: Iterable[str] | AsyncIterable[str]
    ) -> AsyncIterator[Snapshot | RepoUnavailable | FetchFailed]:
        """One result for each of *dids*, in the order they come in, several repositories being read at a time.

        An error of *dids* itself is raised when the results of what it gave before are out.
        """
        source = aiter(dids) if isinstance(dids, AsyncIterable) else _aiter(dids)
        upcoming: asyncio.Task[str | None] | None = asyncio.create_task(_next(source))
        reading: set[asyncio.Task[Snapshot | RepoUnavailable | FetchFailed]] = set()
        failure: BaseException | None = None
        try:
            while upcoming or reading:
                waiting = {*reading, upcoming} if upcoming and len(reading) < self._concurrency else reading
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if upcoming and upcoming in waiting and upcoming.done():
                    failure = upcoming.exception()
                    did = None if failure else upcoming.result()
                    upcoming = None
                    if did is not None:
                        reading.add(asyncio.create_task(self._result(did)))
                        upcoming = asyncio.create_task(_next(source))
                for done in [task for task in reading if task.done()]:
                    reading.discard(done)
                    yield done.result()
            if failure:
                raise failure
        finally:
            tasks = [*reading, *([upcoming] if upcoming else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _result(self, did: str) -> Snapshot | RepoUnavailable | FetchFailed:
        try:
            return await self.fetch(did)
        except (RepoUnavailable, FetchFailed) as e:
            return e
        except Exception as e:
            # Whatever a stranger's server made us stumble over is no reason to stop reading the others'.
            logger.exception("reading %s", did)
            return FetchFailed(did, f"{type(e).__name__}: {e}")

    async def fetch(self, did: str) -> Snapshot:
        """What the repository of *did* holds now, read from its host. Every block was hashed.

        Raises RepoUnavailable when the host says so, and FetchFailed for everything else, a damaged file included.
        """
        try:
            # Directories are one host; what a did:web waits for is its own.
            place = did if did.startswith("did:web:") else "did:plc"
            identity = await self._patiently(place, lambda: self._resolver.resolve(did))
            if identity.pds is None:
                raise FetchFailed(did, "its DID document names no host of its repository")
            return await self._patiently(identity.pds, lambda: self._read(identity))
        except StatusError as e:
            if e.error in _UNAVAILABLE:
                raise RepoUnavailable(did, _UNAVAILABLE[e.error]) from None
            raise FetchFailed(did, str(e)) from e
        except sqlite3.Error as e:
            raise FetchFailed(did, f"its blocks cannot be spooled, see TMPDIR: {e}") from e
        except (NetworkError, IdentityError, CarError) as e:
            raise FetchFailed(did, str(e)) from e

    async def _read(self, identity: Identity) -> Snapshot:
        url = f"{identity.pds}/xrpc/com.atproto.sync.getRepo"
        exchange = get(self._client, url, params={"did": identity.did}, seconds=_REPOSITORY_DEADLINE)
        with closing(_Spool()) as spool:
            async with exchange as response:
                await raise_for_status(response)
                pieces = _at_a_pace(url, iter_limited(response, _MAX_REPOSITORY))
                roots, blocks = await read_blocks(pieces, max_block=_MAX_BLOCK, max_total=_MAX_REPOSITORY)
                async for cid, block in blocks:
                    spool.add(cid, block)
            return await self._snapshot(identity, roots, spool)

    async def _snapshot(self, identity: Identity, roots: list[bytes], spool: _Spool) -> Snapshot:
        block = spool.get(roots[0]) if roots else None
        if block is None:
            raise CarError("truncated: the file has no commit")
        commit = decode(block)
        if not isinstance(commit, dict) or commit.get("did") != identity.did:
            raise CarError("the commit is not of this repository")
        rev, data = commit.get("rev"), commit.get("data")
        if not isinstance(rev, str) or not syntax.is_tid(rev) or not isinstance(data, cbrrr.CID):
            raise CarError("the commit has no valid rev or data")
        records = []
        room = _MAX_RECORDS
        for path, cid in walk_mst(data.cid_bytes, spool, prefixes=self._prefixes):
            record = spool.get(cid)
            if record is None:
                raise CarError(f"truncated: the record {path} is missing")
            room -= len(record)
            if room < 0:
                raise Refused(f"more than {_MAX_RECORDS} bytes of records")
            collection, _, rkey = path.partition("/")
            records.append(RepoRecord(collection, rkey, cid_text(cid), record))
            if len(records) % 100 == 0:
                await asyncio.sleep(0)  # others' turn
        return Snapshot(identity.did, rev, cid_text(data.cid_bytes), tuple(records), block, identity)

    async def _patiently(self, place: str, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of a host, asked again when it is busy or does not answer, and never by too many at a time."""
        host = self._hosts[place]
        now = asyncio.get_running_loop().time
        attempt = 0
        while True:
            try:
                async with host.turns:
                    # Others wait for our place: what takes longer is better asked again another time.
                    if (pause := host.paused_until - now()) > _LONGEST_PAUSE:
                        raise Refused(f"{place} asks us to wait for {pause:.0f} s")
                    if pause > 0:
                        await self._sleep(pause)
                    return await ask()
            except NetworkError as e:
                attempt += 1
                asked_for = e.retry_after if isinstance(e, StatusError) else None
                # Full jitter, lest all who failed at once come back at once.
                backoff = random.uniform(0, min(_LONGEST_BACKOFF, _BACKOFF * 2**attempt))  # noqa: S311
                is_told = asked_for is not None or (isinstance(e, StatusError) and e.status == 429)
                if is_told:
                    # Everyone who asks this host waits.
                    pause = min(max(asked_for or 0, backoff), _FORGIVEN)
                    host.paused_until = max(host.paused_until, now() + pause)
                if attempt == _ATTEMPTS or not _is_passing(e) or (asked_for or 0) > _LONGEST_PAUSE:
                    raise
                if not is_told:
                    await self._sleep(backoff)


class _Host:
    """What we owe a host: few requests at a time, and none for a while when it says so."""

    def __init__(self, at_a_time: int) -> None:
        self.turns = asyncio.Semaphore(at_a_time)
        self.paused_until = 0.0


def _is_passing(error: NetworkError) -> bool:
    """Whether asking again may help."""
    if isinstance(error, StatusError):
        return error.status == 429 or (error.status >= 500 and error.status != 501)
    return not isinstance(error, Refused)


def _is_unknown_method(error: StatusError) -> bool:
    if error.error in ("MethodNotImplemented", "XRPCNotSupported"):
        return True
    return error.status == 501 or (error.status == 404 and error.error in (None, "NotFound"))


async def _at_a_pace(url: str, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """*pieces*, unless they come too slowly. Raises Refused, as a host that drips is hardly faster the next time."""
    now = asyncio.get_running_loop().time
    start = now()
    received = 0
    async for piece in pieces:
        received += len(piece)
        if now() - start > _SLOW_START + received / _SLOWEST:
            raise Refused(f"{url}: only {received} bytes in {now() - start:.0f} s")
        yield piece


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


async def _aiter(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def _next(source: AsyncIterator[T]) -> T | None:
    return await anext(source, None)


class _Spool(Mapping[bytes, bytes]):
    """Blocks by CID, in a temporary database: in memory while they are few, on disk beyond some 8 MiB."""

    def __init__(self) -> None:
        # A name of "" is SQLite's for a private database that goes away with its connection.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA cache_size = -8192")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE blocks (cid BLOB PRIMARY KEY, block BLOB NOT NULL)")
        self._db.execute("BEGIN")

    def add(self, cid: bytes, block: bytes) -> None:
        self._db.execute("INSERT OR IGNORE INTO blocks VALUES (?, ?)", (cid, block))

    def __getitem__(self, cid: bytes) -> bytes:
        row = self._db.execute("SELECT block FROM blocks WHERE cid = ?", (cid,)).fetchone()
        if row is None:
            raise KeyError(cid)
        block: bytes = row[0]
        return block

    def __iter__(self) -> Iterator[bytes]:
        return (cid for (cid,) in self._db.execute("SELECT cid FROM blocks"))

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM blocks").fetchone()[0]
        return count

    def close(self) -> None:
        self._db.close()
