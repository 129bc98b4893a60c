"""Own backfill: find the repositories that hold records of ours, and have their hosts prove what they hold.

What is read is given back as a snapshot or a proof, whose signature, blocks and tree were checked; comparing it with
what we hold is the store's. Of a large repository only what concerns us is read, where its host gives out blocks apart.
At most 256 MiB of a repository are read, and 64 MiB of records kept. Hosts that take long have places of their own, so
that nobody waits for them who does not want something of them.

Specifications: https://atproto.com/specs/sync, https://atproto.com/specs/repository and the lexicons
``com.atproto.sync.*``.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import random
import re
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar

import cbrrr
import httpx

from atdata import nsid, syntax
from atdata.errors import AtdataError, NetworkError
from atdata_backend.http import (
    Parameters,
    Refused,
    StatusError,
    TooLong,
    get,
    get_json,
    iter_limited,
    raise_for_status,
)
from atdata_backend.identity import DidNotFound, Identity, IdentityError, Resolver
from atdata_indexer.car import CarError, cid_text, decode, read_blocks, split, walk_mst
from atdata_indexer.verify import NotProven, check_signature, record_at

logger = logging.getLogger(__name__)

__all__ = [
    "Backfill",
    "FetchFailed",
    "Head",
    "Hosting",
    "RecordProof",
    "RepoRecord",
    "RepoUnavailable",
    "Snapshot",
]

# What is read at once, and held in memory. Most repositories are smaller.
_SMALL_REPOSITORY: Final = 8 * 2**20
_MAX_REPOSITORY: Final = 256 * 2**20
_MAX_BLOCK: Final = 2 * 2**20
_MAX_RECORDS: Final = 64 * 2**20
_MAX_ANSWER: Final = 4 * 2**20
# A URL of 100 CIDs has 6.6 kB; many servers refuse more than 8. Beyond some number of blocks, one request for all of
# the repository is less work for its host.
_BLOCKS_AT_ONCE: Final = 100
_MAX_BLOCKS_APART: Final = 20_000
_MAX_KEY: Final = 1024
# How often a repository may move on while it is read in parts.
_COMMITS: Final = 4

_PAGE: Final = 1000
# Of all repositories on a host, each has to be asked for: a smaller page is less to repeat after a failure.
_PAGE_TO_DESCRIBE: Final = 100
# More than all repositories of the network; whoever lists more makes them up.
_MAX_PAGES: Final = 200_000
_MAX_SEEN: Final = 100_000

_ATTEMPTS: Final = 4
# In seconds: the first backoff, the longest, the longest that a server may ask for, and the end of an exchange.
_BACKOFF: Final = 1.0
_LONGEST_BACKOFF: Final = 30.0
_LONGEST_PAUSE: Final = 10.0
# A host that asks for longer is asked again all the same.
_FORGIVEN: Final = 600.0
# How long a host that cannot be reached is left alone at first; then twice as long each time.
_REST: Final = 30.0
_QUERY_DEADLINE: Final = 30.0
# A short question, with all that it may have to wait for.
_QUESTION_DEADLINE: Final = 60.0
# A host that sends less than this, in bytes per second after the first seconds, is not waited for at all.
_SLOWEST: Final = 50_000
_SLOW_START: Final = 30.0
# What takes longer than the first goes on at the places for slow hosts, there to end with the second.
_QUICK: Final = 20.0
_SLOW: Final = 900.0
_SLOW_PLACES: Final = 4
_SLOW_WAITING: Final = 16
_SLOW_WAITING_AT_A_HOST: Final = 2

# Under way at a time, most of them waiting for their turn.
_UNDER_WAY: Final = 256
_MAX_HOSTS: Final = 10_000

# The errors of com.atproto.sync.getRepo, and what #account events call the same states.
_UNAVAILABLE: Final = {
    "RepoNotFound": "not-found",
    "RepoDeactivated": "deactivated",
    "RepoSuspended": "suspended",
    "RepoTakendown": "takendown",
}
_STATUS = re.compile("[a-zA-Z-]{1,40}")

T = TypeVar("T")


class RepoRecord(NamedTuple):
    """A record in a repository: where it is, and its block, which hashes to *cid*."""

    collection: str
    rkey: str
    cid: str
    block: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every record of ours in a repository at *rev*: proven.

    *data* is the CID of its tree, *commit* of the block that *identity*'s key signed.
    """

    did: str
    rev: str
    data: str
    records: tuple[RepoRecord, ...]
    commit: str
    identity: Identity


@dataclass(frozen=True, slots=True)
class RecordProof:
    """A record as it is in a repository at *rev*, or None: there is none. Proven by *commit*, as of `Snapshot`."""

    did: str
    rev: str
    commit: str
    identity: Identity
    record: RepoRecord | None


class Head(NamedTuple):
    """What a host says is the latest commit of a repository."""

    rev: str
    cid: str


@dataclass(frozen=True, slots=True)
class Hosting:
    """The state of an account.

    *status* is active, deactivated, suspended, takendown, deleted, not-found or another word of its host's; *identity*
    is None when the DID itself is gone. *rev* is the host's word, too, where it says any.
    """

    identity: Identity | None
    status: str
    rev: str | None


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


Result = Snapshot | RepoUnavailable | FetchFailed


class Backfill:
    """Finds repositories at a relay, and reads them from their hosts.

    >>> backfill = Backfill(client, resolver, relay_url="https://bsky.network")
    >>> async for result in backfill.run(backfill.discover()):
    ...     match result:
    ...         case Snapshot(): await store.apply_snapshot(result)

    *client* is a `guarded_client`. Records whose collection starts with one of *prefixes* are ours. At most
    *concurrency* repositories are read at a time, *per_host* of them from one host, and a few more from hosts that
    take long. Requests that a host puts off or fails to answer are repeated a few times, at the pace that it asks for.
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
        self._per_host = per_host
        self._sleep = sleep
        self._hosts: dict[str, _Host] = {}
        self._directory = _Host("the directory of DIDs", concurrency)
        self._places = asyncio.Semaphore(concurrency)
        self._slow_places = asyncio.Semaphore(_SLOW_PLACES)
        self._slow: list[str] = []
        """The hosts at the slow places, and waiting for one, once for each repository."""
        self._reached: dict[str, str | None] = {}
        """The cursor that discovery reached, by list; None for a list that was read to its end."""

    # --- finding

    async def discover(self) -> AsyncIterator[str]:
        """The DIDs of repositories that may hold records of ours, each once as long as they are not too many.

        Asks for the known collections. A host that has no index of collections, such as a bare PDS, is asked for all
        its repositories and what is in each. Raises NetworkError when the host does not answer, or offers neither;
        called again after that, goes on with the page that it had reached.
        """
        seen: set[str] = set()
        try:
            for collection in nsid.KINDS:
                if collection.startswith(self._prefixes):
                    pages = self._pages("com.atproto.sync.listReposByCollection", _PAGE, collection=collection)
                    async for entry in pages:
                        if entry["did"] not in seen:
                            if len(seen) < _MAX_SEEN:
                                seen.add(entry["did"])
                            yield entry["did"]
        except _NotOffered:
            async for entry in self._pages("com.atproto.sync.listRepos", _PAGE_TO_DESCRIBE):
                if entry.get("active") is not False and await self._has_ours(entry["did"]):
                    yield entry["did"]
        self._reached.clear()

    async def _has_ours(self, did: str) -> bool:
        try:
            description = await self._query("com.atproto.repo.describeRepo", repo=did)
        except StatusError as e:
            if _is_unknown_method(e):
                raise NetworkError(
                    f"{self._relay_url} offers neither com.atproto.sync.listReposByCollection nor"
                    " com.atproto.repo.describeRepo: set ATDATA_RELAY to a relay that lists collections, or to a PDS"
                ) from None
            if e.status < 500 and e.status != 429:
                return False  # it went away since it was listed
            raise
        collections = description.get("collections")
        return any(isinstance(c, str) and c.startswith(self._prefixes) for c in _list(collections))

    async def _pages(self, method: str, limit: int, **parameters: str) -> AsyncIterator[dict[str, Any]]:
        """The entries of a list of repositories, from the page on that was reached the last time."""
        key = " ".join((method, *parameters.values()))
        cursor = self._reached.get(key, "")
        for _ in range(_MAX_PAGES):
            if cursor is None:
                return
            try:
                page = await self._query(method, limit=limit, **parameters, **({"cursor": cursor} if cursor else {}))
            except StatusError as e:
                if _is_passing(e):
                    raise
                if not cursor:
                    # The reference PDS forwards what it does not know, so that its refusals have many names.
                    raise _NotOffered(str(e)) from e
                # Whatever is wrong with the cursor, it is of no more use.
                del self._reached[key]
                raise NetworkError(f"{e}, at cursor {cursor[:80]!r}; the next time from the start") from e
            # A host may be asked for no more entries than it was to give.
            for entry in _list(page.get("repos"))[:limit]:
                if isinstance(entry, dict) and isinstance(entry.get("did"), str) and syntax.is_did(entry["did"]):
                    yield entry
            following = page.get("cursor")
            if not isinstance(following, str) or not following:
                following = None
            elif following == cursor:
                del self._reached[key]
                raise NetworkError(f"{self._relay_url}: {method} goes in circles at cursor {following[:80]!r}")
            cursor = self._reached[key] = following
        del self._reached[key]
        raise NetworkError(f"{self._relay_url}: {method} has no end after {_MAX_PAGES} pages")

    async def _query(self, method: str, **parameters: str | int) -> dict[str, Any]:
        """The answer of the relay."""
        async with self._asking(self._host(self._relay_url)):
            return await self._object(self._relay_url, method, parameters, trusted=True)

    # --- reading

    async def run(self, dids: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[Result]:
        """One result for each of *dids*, in the order they come in, several repositories being read at a time.

        *dids* may be without end, and name again what is under way: it is passed over until its result was taken.
        An error of *dids* itself is raised when the results of what it gave before are out.
        """
        results: asyncio.Queue[Result | None] = asyncio.Queue(1)
        under_way: set[str] = set()
        room = asyncio.Semaphore(_UNDER_WAY)

        async def read(did: str) -> None:
            try:
                # It keeps its place until its result is taken, lest results pile up.
                async with self._fetched(did) as snapshot:
                    await results.put(snapshot)
            except (RepoUnavailable, FetchFailed) as e:
                await results.put(e)
            except Exception as e:
                # Whatever a stranger's server made us stumble over is no reason to stop reading the others'.
                logger.exception("reading %s", did)
                await results.put(FetchFailed(did, f"{type(e).__name__}: {e}"))
            finally:
                room.release()

        async def read_all() -> None:
            failure = None
            async with asyncio.TaskGroup() as tasks:
                try:
                    async for did in dids if isinstance(dids, AsyncIterable) else _aiter(dids):
                        if did not in under_way:
                            under_way.add(did)
                            await room.acquire()
                            tasks.create_task(read(did))
                except Exception as e:  # noqa: BLE001
                    failure = e
            await results.put(None)
            if failure:
                raise failure

        reading = asyncio.create_task(read_all())
        try:
            while result := await results.get():
                yield result
                under_way.discard(result.did)
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def fetch(self, did: str) -> Snapshot:
        """What the repository of *did* holds now, read from its host and proven with the key in its DID document.

        >>> (await backfill.fetch("did:plc:z72i7hdynmk6r22z27h6tvur")).rev
        '3lqdkdjpy6t2e'

        Raises RepoUnavailable when the host says so, and FetchFailed for everything else, a damaged file included.
        """
        async with self._fetched(did) as snapshot:
            return snapshot

    @asynccontextmanager
    async def _fetched(self, did: str) -> AsyncIterator[Snapshot]:
        with _failures_of(did):
            identity, pds = await self._locate(did)
            async with self._in_turn(pds, lambda: self._read(identity, pds)) as snapshot:
                yield snapshot

    @asynccontextmanager
    async def _in_turn(self, place: str, read: Callable[[], Awaitable[T]]) -> AsyncIterator[T]:
        """What *read* gives, with a place that is free again when the block ends.

        Who does not come to an end soon has to leave for one of a few other places, and start anew there. So a host
        that drips, or that is down, holds up others for seconds, however many names and repositories it has.
        """
        host = self._host(place)
        if not host.is_slow:
            async with host.readers, self._places:
                if not host.is_slow:  # others may have found out meanwhile
                    deadline = asyncio.timeout(_QUICK)
                    try:
                        async with deadline:
                            result = await read()
                    except TimeoutError:
                        if not deadline.expired():
                            raise
                        host.is_slow = True
                    else:
                        yield result
                        return
        if self._slow.count(place) >= _SLOW_WAITING_AT_A_HOST or len(self._slow) >= _SLOW_WAITING:
            raise Refused(f"{place} takes long, and others are waiting for it or its like: to be tried later")
        self._slow.append(place)
        try:
            async with self._slow_places:
                now = asyncio.get_running_loop().time
                start = now()
                deadline = asyncio.timeout(_SLOW)
                try:
                    async with deadline:
                        result = await read()
                except TimeoutError:
                    if not deadline.expired():
                        raise
                    raise Refused(f"{place}: the repository was not read in full within {_SLOW:g} s") from None
                host.is_slow = now() - start > _QUICK
                yield result
        finally:
            self._slow.remove(place)

    async def _read(self, identity: Identity, pds: str) -> Snapshot:
        try:
            file = await self._file(pds, "com.atproto.sync.getRepo", {"did": identity.did}, _SMALL_REPOSITORY)
        except TooLong:
            return await self._read_parts(identity, pds) or await self._read_whole(identity, pds)
        roots, blocks = split(file)
        return await self._snapshot(identity, roots, blocks)

    async def _read_parts(self, identity: Identity, pds: str) -> Snapshot | None:
        """What concerns us of a large repository, or None when its host does not give out blocks apart."""
        # What was read of one commit serves for the next: most of a tree stays the same.
        blocks: dict[bytes, bytes] = {}
        tried: set[str] = set()
        for _ in range(_COMMITS):
            head = await self._head(identity.did, pds)
            if head.cid in tried:
                break
            tried.add(head.cid)
            root = cbrrr.CID.decode(head.cid).cid_bytes
            try:
                await self._gather(identity, pds, root, blocks)
            except _TooMany:
                break
            except (StatusError, CarError) as e:
                if isinstance(e, StatusError) and (_unavailable(e) or _is_passing(e)):
                    raise
                # Blocks of before are gone when the repository moved on.
                logger.debug("%s at %s in parts: %s", identity.did, head, e)
                continue
            return await self._snapshot(identity, [root], blocks)
        return None

    async def _gather(self, identity: Identity, pds: str, root: bytes, blocks: dict[bytes, bytes]) -> None:
        """Add to *blocks* what concerns us of the commit *root*, one layer of its tree after the other.

        This only finds out what to ask for: `walk_mst` judges what came.
        """
        prefixes = tuple(prefix.encode() for prefix in self._prefixes)
        await self._add_blocks(identity.did, pds, [root], blocks)
        layer = [_Subtree(_signed(identity, root, blocks).data, b"", None)]
        wanted = [layer[0].root]
        met: set[bytes] = set()
        while wanted:
            await self._add_blocks(identity.did, pds, wanted, blocks)
            wanted, above, layer = [], layer, []
            for subtree in above:
                if subtree.root in met:
                    # Small trees that hold themselves many times over would take for ever.
                    raise CarError(f"the node {cid_text(subtree.root)} is in the tree twice")
                met.add(subtree.root)
                below, records = _children(subtree, blocks[subtree.root], prefixes)
                layer += below
                wanted += [child.root for child in below] + records

    async def _add_blocks(self, did: str, pds: str, cids: Sequence[bytes], blocks: dict[bytes, bytes]) -> None:
        missing = [cid for cid in dict.fromkeys(cids) if cid not in blocks]
        if len(blocks) + len(missing) > _MAX_BLOCKS_APART:
            raise _TooMany
        for at in range(0, len(missing), _BLOCKS_AT_ONCE):
            wanted = missing[at : at + _BLOCKS_AT_ONCE]
            query = {"did": did, "cids": [cid_text(cid) for cid in wanted]}
            _, found = split(await self._file(pds, "com.atproto.sync.getBlocks", query, _MAX_RECORDS))
            for cid in wanted:
                if cid not in found:
                    raise CarError(f"the host does not give out the block {cid_text(cid)}")
                blocks[cid] = bytes(found[cid])
            if sum(map(len, blocks.values())) > _MAX_RECORDS:
                raise Refused(f"more than {_MAX_RECORDS} bytes of records")

    async def _read_whole(self, identity: Identity, pds: str) -> Snapshot:
        """A large repository from its first byte to its last, on disk until its tree shows what is ours."""
        return await self._patiently(self._host(pds), lambda: self._spooled(identity, pds))

    async def _spooled(self, identity: Identity, pds: str) -> Snapshot:
        url = f"{pds}/xrpc/com.atproto.sync.getRepo"
        with closing(_Spool()) as spool:
            async with get(self._client, url, params={"did": identity.did}, seconds=_SLOW) as response:
                await raise_for_status(response)
                pieces = _at_a_pace(url, iter_limited(response, _MAX_REPOSITORY))
                roots, blocks = await read_blocks(pieces, max_block=_MAX_BLOCK, max_total=_MAX_REPOSITORY)
                async for cid, block in blocks:
                    spool.add(cid, block)
            return await self._snapshot(identity, roots, spool)

    async def _snapshot(self, identity: Identity, roots: list[bytes], blocks: _Blocks) -> Snapshot:
        commit = _signed(identity, roots[0] if roots else None, blocks)
        records = []
        room = _MAX_RECORDS
        for path, cid in walk_mst(commit.data, blocks, prefixes=self._prefixes):
            record = _record(path, cid, blocks)
            room -= len(record.block)
            if room < 0:
                raise Refused(f"more than {_MAX_RECORDS} bytes of records")
            records.append(record)
            if len(records) % 100 == 0:
                await asyncio.sleep(0)  # others' turn
        return Snapshot(identity.did, commit.rev, cid_text(commit.data), tuple(records), cid_text(commit.cid), identity)

    # --- asking

    async def latest(self, did: str, pds: str) -> Head:
        """What the host *pds* says is the latest commit of *did*'s repository: its word, unproven.

        >>> (await backfill.latest(did, "https://pds.example.com")).rev
        '3lqdkdjpy6t2e'

        Raises RepoUnavailable and FetchFailed, as `fetch` does.
        """
        with _failures_of(did):
            async with self._asking(self._host(pds)):
                return await self._head(did, pds)

    async def _head(self, did: str, pds: str) -> Head:
        answer = await self._object(pds, "com.atproto.sync.getLatestCommit", {"did": did})
        rev, cid = answer.get("rev"), answer.get("cid")
        if not isinstance(rev, str) or not syntax.is_tid(rev) or not isinstance(cid, str) or not _is_commit_cid(cid):
            raise Refused(f"{pds}: the latest commit of {did} has no valid rev or cid")
        return Head(rev, cid)

    async def status(self, did: str) -> Hosting:
        """The state of the account at the host that its DID document names now.

        >>> (await backfill.status(did)).status
        'deactivated'

        Raises FetchFailed whenever that cannot be told, also when the document names no host: a state is somebody's
        word, never their silence.
        """
        with _failures_of(did):
            try:
                identity, pds = await self._locate(did)
            except DidNotFound as e:
                if not e.is_closed:
                    raise
                return Hosting(None, "deleted", None)
            try:
                async with self._asking(self._host(pds)):
                    answer = await self._object(pds, "com.atproto.sync.getRepoStatus", {"did": did})
            except StatusError as e:
                if status := _unavailable(e):
                    return Hosting(identity, status, None)
                raise
            return _hosting(identity, answer)

    async def relayed(self, did: str) -> str | None:
        """The state of the account as the relay has it, None where it does not say: it may hide what a host shows.

        >>> await backfill.relayed(did)
        'takendown'

        Raises FetchFailed when the relay does not answer.
        """
        with _failures_of(did):
            try:
                answer = await self._query("com.atproto.sync.getRepoStatus", did=did)
            except StatusError as e:
                if _is_passing(e):
                    raise
                return None if (status := _unavailable(e)) == "not-found" else status
        status = answer.get("status")
        if answer.get("active") is not False:
            return "active" if answer.get("active") is True else None
        return status if isinstance(status, str) and _STATUS.fullmatch(status) else "inactive"

    async def prove(self, did: str, collection: str, rkey: str) -> RecordProof:
        """The record at *collection*/*rkey* in the repository of *did*, or that there is none, proven by its host.

        >>> (await backfill.prove(did, "ac.foundation.dataset.record", "3lqdkdjpy6t2e")).record is None
        True

        Raises RepoUnavailable when the host says so, and FetchFailed for everything else, such as a host that says
        that there is no such record and proves nothing.
        """
        with _failures_of(did):
            identity, pds = await self._locate(did)
            query = {"did": did, "collection": collection, "rkey": rkey}
            async with self._asking(self._host(pds)):
                file = await self._file(pds, "com.atproto.sync.getRecord", query, _MAX_ANSWER)
            roots, blocks = split(file)
            commit = _signed(identity, roots[0] if roots else None, blocks)
            path = f"{collection}/{rkey}"
            cid = record_at(commit.data, path, blocks)
            record = None if cid is None else _record(path, cid, blocks)
            return RecordProof(did, commit.rev, cid_text(commit.cid), identity, record)

    async def _locate(self, did: str) -> tuple[Identity, str]:
        """Who *did* is now, and where its repository is."""
        # A directory is one host; what a did:web waits for is its own.
        host = self._host(did) if did.startswith("did:web:") else self._directory
        try:
            async with self._asking(host):
                identity = await self._patiently(host, lambda: self._resolver.document(did))
        except StatusError as e:
            raise FetchFailed(did, str(e)) from e  # the directory's errors are none of a repository's
        if identity.pds is None:
            raise FetchFailed(did, "its DID document names no host of its repository")
        return identity, identity.pds

    async def _object(
        self, origin: str, method: str, query: Mapping[str, str | int], *, trusted: bool = False
    ) -> dict[str, Any]:
        url = f"{origin}/xrpc/{method}"
        answer = await self._patiently(
            self._host(origin),
            lambda: get_json(
                self._client, url, params=query, limit=_MAX_ANSWER, seconds=_QUERY_DEADLINE, trusted=trusted
            ),
        )
        if not isinstance(answer, dict):
            raise Refused(f"{origin}: {method} answers with {type(answer).__name__}, not an object")
        return answer

    async def _file(self, origin: str, method: str, query: Parameters, limit: int) -> bytes:
        url = f"{origin}/xrpc/{method}"

        async def download() -> bytes:
            async with get(self._client, url, params=query, seconds=_SLOW) as response:
                await raise_for_status(response)
                file = bytearray()
                async for piece in _at_a_pace(url, iter_limited(response, limit)):
                    file += piece
            return bytes(file)

        return await self._patiently(self._host(origin), download)

    def _host(self, place: str) -> _Host:
        host = self._hosts.pop(place, None) or _Host(place, self._per_host)
        self._hosts[place] = host
        if len(self._hosts) > _MAX_HOSTS:
            del self._hosts[next(iter(self._hosts))]  # the one that was asked longest ago
        return host

    @asynccontextmanager
    async def _asking(self, host: _Host) -> AsyncIterator[None]:
        """A place for a short question, apart from those who read, and an end to it."""
        deadline = asyncio.timeout(_QUESTION_DEADLINE)
        try:
            async with deadline, host.askers:
                yield
        except TimeoutError:
            if deadline.expired():
                host.let_rest()
                raise NetworkError(f"{host.name}: no answer within {_QUESTION_DEADLINE:g} s") from None
            raise

    async def _patiently(self, host: _Host, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of a host, asked again when it is busy or does not answer."""
        now = asyncio.get_running_loop().time
        attempt = 0
        while True:
            # Others wait for our place: what takes longer is better asked again another time.
            if (pause := host.paused_until - now()) > _LONGEST_PAUSE:
                raise Refused(f"{host.name} is to be left alone for another {pause:.0f} s")
            if pause > 0:
                await self._sleep(pause)
            try:
                answer = await ask()
            except NetworkError as e:
                attempt += 1
                asked_for = None
                if isinstance(e, StatusError):
                    asked_for, host.failures = e.retry_after, 0
                # Full jitter, lest all who failed at once come back at once.
                backoff = random.uniform(0, min(_LONGEST_BACKOFF, _BACKOFF * 2**attempt))  # noqa: S311
                is_told = asked_for is not None or (isinstance(e, StatusError) and e.status == 429)
                if is_told:
                    # Everyone who asks this host waits.
                    pause = min(max(asked_for or 0, backoff), _FORGIVEN)
                    host.paused_until = max(host.paused_until, now() + pause)
                if not _is_passing(e) or (asked_for or 0) > _LONGEST_PAUSE:
                    raise
                if attempt == _ATTEMPTS or host.failures:
                    if not isinstance(e, StatusError):
                        host.let_rest()
                    raise
                if not is_told:
                    await self._sleep(backoff)
            else:
                host.failures = 0
                return answer


class _Host:
    """What we owe a host: few requests at a time, and none for a while when it says so. And what we expect of it."""

    def __init__(self, name: str, at_a_time: int) -> None:
        self.name = name
        self.readers = asyncio.Semaphore(at_a_time)
        self.askers = asyncio.Semaphore(at_a_time)
        self.paused_until = 0.0
        self.failures = 0
        self.is_slow = False

    def let_rest(self) -> None:
        """Leave a host alone that cannot be reached: nobody need wait for it to find that out again."""
        pause = min(_FORGIVEN, _REST * 2 ** min(self.failures, 10))
        self.failures += 1
        self.paused_until = max(self.paused_until, asyncio.get_running_loop().time() + pause)


class _NotOffered(NetworkError):
    """The host does not have this method."""


class _TooMany(Exception):
    """So many blocks concern us that they are better read with all the others."""


@contextmanager
def _failures_of(did: str) -> Iterator[None]:
    """Whatever goes wrong in the block, as RepoUnavailable or FetchFailed."""
    try:
        yield
    except StatusError as e:
        if status := _unavailable(e):
            raise RepoUnavailable(did, status) from None
        raise FetchFailed(did, str(e)) from e
    except sqlite3.Error as e:
        raise FetchFailed(did, f"its blocks cannot be spooled, see TMPDIR: {e}") from e
    except (NetworkError, IdentityError, CarError, NotProven) as e:
        raise FetchFailed(did, str(e)) from e


def _unavailable(error: StatusError) -> str | None:
    return _UNAVAILABLE.get(error.error or "") if error.status < 500 else None


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


def _hosting(identity: Identity, answer: dict[str, Any]) -> Hosting:
    active, status, rev = answer.get("active"), answer.get("status") or "inactive", answer.get("rev") or None
    if answer.get("did") != identity.did or not isinstance(active, bool):
        raise Refused(f"{identity.pds}: the status it gives is not of {identity.did}, or none")
    if active:
        status = "active"
    elif not isinstance(status, str) or not _STATUS.fullmatch(status) or status == "active":
        raise Refused(f"{identity.pds}: the status of an inactive account is {status!r:.80}")
    if rev is not None and not (isinstance(rev, str) and syntax.is_tid(rev)):
        raise Refused(f"{identity.pds}: the rev of {identity.did} is {rev!r:.80}")
    return Hosting(identity, status, rev)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


async def _aiter(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


# --- blocks

_Blocks = Mapping[bytes, bytes] | Mapping[bytes, memoryview]


class _Commit(NamedTuple):
    cid: bytes
    rev: str
    data: bytes


def _signed(identity: Identity, cid: bytes | None, blocks: _Blocks) -> _Commit:
    """The commit *cid*, signed by *identity*. Raises CarError, IdentityError and NotProven."""
    block = None if cid is None else blocks.get(cid)
    if cid is None or block is None:
        raise CarError("truncated: the file has no commit")
    commit = decode(block)
    if not isinstance(commit, dict) or commit.get("did") != identity.did:
        raise CarError("the commit is not of this repository")
    rev, data = commit.get("rev"), commit.get("data")
    if not isinstance(rev, str) or not syntax.is_tid(rev) or not _is_link(data):
        raise CarError("the commit has no valid rev or data")
    if identity.signing_key is None:
        raise IdentityError("its DID document names no key of its commits")
    check_signature(block, identity.signing_key)
    return _Commit(cid, rev, data.cid_bytes)


def _record(path: str, cid: bytes, blocks: _Blocks) -> RepoRecord:
    block = blocks.get(cid)
    if block is None:
        raise CarError(f"truncated: the record {path} is missing")
    collection, _, rkey = path.partition("/")
    return RepoRecord(collection, rkey, cid_text(cid), bytes(block))


class _Subtree(NamedTuple):
    """A part of a tree, and between which keys it lies. None stands for no end."""

    root: bytes
    low: bytes
    high: bytes | None


def _children(subtree: _Subtree, block: bytes, prefixes: tuple[bytes, ...]) -> tuple[list[_Subtree], list[bytes]]:
    """Of a node: the subtrees that may hold keys with *prefixes*, and the CIDs of the records that have such keys."""
    subtrees, records = [], []
    key, low = b"", subtree.low
    try:
        node = decode(block)
        left = node["l"]
        for entry in [*node["e"], None]:
            if entry is not None:
                key = key[: entry["p"]] + entry["k"]
            high = subtree.high if entry is None else key
            if left is not None and any(
                (low < prefix or low.startswith(prefix)) and (high is None or high > prefix) for prefix in prefixes
            ):
                subtrees.append(_Subtree(_link(left), low, high))
            if entry is not None:
                if key.startswith(prefixes):
                    records.append(_link(entry["v"]))
                if len(key) > _MAX_KEY:
                    raise CarError(f"the node {cid_text(subtree.root)} has a key of {len(key)} bytes")
                low, left = key, entry["t"]
    except (TypeError, KeyError):
        raise CarError(f"the node {cid_text(subtree.root)} is malformed") from None
    return subtrees, records


def _is_link(value: Any) -> TypeGuard[cbrrr.CID]:
    return isinstance(value, cbrrr.CID) and value.is_cidv1_dag_cbor_sha256_32()


def _link(value: Any) -> bytes:
    if not _is_link(value):
        raise CarError(f"a {type(value).__name__} stands where a CID must be")
    return value.cid_bytes


def _is_commit_cid(text: str) -> bool:
    try:
        cid = cbrrr.CID.decode(text)
    except (ValueError, binascii.Error):
        return False
    return _is_link(cid) and cid.encode() == text


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
