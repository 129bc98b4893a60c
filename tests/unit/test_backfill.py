"""Backfill against a relay, a directory and hosts that misbehave as told. Their server is real, on loopback."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cbrrr
import pytest
from repositories import REV, car, cid_of, encode, repository
from servers import Server, response, serve

from atdata import nsid
from atdata.errors import NetworkError
from atdata_indexer import backfill as module
from atdata_indexer.backfill import Backfill, FetchFailed, RepoUnavailable, Snapshot
from atdata_indexer.car import cid_text
from atdata_indexer.http import get_json, guarded_client
from atdata_indexer.identity import Resolver

DID = "did:plc:2a7ygipkrbh544aqhcav53oy"
OTHER = "did:plc:2c6wev5ei4jzcy4imh5afa35"
RECORDS = {
    "ac.foundation.dataset.record/3lqdkdjpy6t2e": {"name": "Birdsong"},
    "ac.foundation.dataset.unheardOf/self": {"anything": 1},
    "ac.foundation.datasets.record/3lqdkdjpy6t2e": {"name": "somebody else's"},
    "app.bsky.feed.post/3lqdkdjpy6t2e": {"text": "hello"},
    "science.alt.dataset.entry/3lqdkdjpy6t2e": {"name": "later"},
}
ROOTS, BLOCKS = repository(DID, RECORDS)
REPOSITORY = response(car(ROOTS, BLOCKS.items()))

Answer = bytes | Callable[[], Awaitable[bytes]]


class World:
    """A relay, a directory and a host in one. `answers` are by the path, and the repository if one is named.

    A list of answers is given out in order, its last one for ever.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.host: str | None = ""
        self.slept: list[float] = []
        self.server: Server

    async def answer(self, target: str) -> bytes:
        url = urlsplit(target)
        query = parse_qs(url.query)
        method = url.path.removeprefix("/xrpc/")
        if url.path.startswith("/did:"):
            method, did = "plc", url.path[1:]
        else:
            did = query.get("did", query.get("repo", query.get("collection", [""])))[0]
        cursor = query.get("cursor", [""])[0]
        for key in (f"{method} {did} {cursor}".strip(), f"{method} {did}".strip(), method):
            if key in self.answers:
                found = self.answers[key]
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                return found if isinstance(found, bytes) else await found()
        if method == "plc":
            host = self.server.url if self.host == "" else self.host
            service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": host}
            return response({"id": did, "service": [service] if host else []})
        return response({"error": "MethodNotImplemented"}, "501 Not Implemented")

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def asked(self, method: str) -> int:
        return sum(f"/xrpc/{method}" in request for request in self.server.requests)


@asynccontextmanager
async def backfilling(**options: Any) -> AsyncIterator[tuple[World, Backfill]]:
    world = World()
    world.answers[f"com.atproto.sync.getRepo {DID}"] = REPOSITORY
    async with serve(world.answer) as server, guarded_client(allow_private=True, per_host=50) as client:
        world.server = server
        resolver = Resolver(client, plc_url=server.url)
        yield world, Backfill(client, resolver, relay_url=server.url, **{"sleep": world.sleep, **options})


async def fetched(answer: Answer | list[Answer]) -> tuple[Any, World]:
    """What becomes of DID's repository when its host answers so."""
    async with backfilling() as (world, backfill):
        world.answers[f"com.atproto.sync.getRepo {DID}"] = answer
        (result,) = [result async for result in backfill.run([DID])]
        return result, world


# --- reading ---


async def test_a_repository() -> None:
    """A snapshot has every record of our collections, known or not, and nobody else's."""
    async with backfilling() as (world, backfill):
        snapshot = await backfill.fetch(DID)
        assert snapshot.identity.pds == world.server.url
    ours = [path for path in RECORDS if path.startswith(nsid.PREFIX)]
    assert [f"{record.collection}/{record.rkey}" for record in snapshot.records] == ours
    for record, path in zip(snapshot.records, ours, strict=True):
        assert record.block == encode(RECORDS[path])
        assert record.cid == cid_text(cid_of(record.block))
    assert (snapshot.did, snapshot.rev) == (DID, REV)
    assert snapshot.commit == BLOCKS[ROOTS[0]]
    assert snapshot.data == cbrrr.decode_dag_cbor(snapshot.commit)["data"].encode()


async def test_other_namespaces() -> None:
    """An operator may ask for records of other namespaces."""
    async with backfilling(prefixes=[nsid.PREFIX, nsid.SUCCESSOR_PREFIX]) as (_, backfill):
        snapshot = await backfill.fetch(DID)
    assert [record.collection for record in snapshot.records] == [
        "ac.foundation.dataset.record",
        "ac.foundation.dataset.unheardOf",
        "science.alt.dataset.entry",
    ]


async def test_a_repository_without_ours() -> None:
    """A repository that holds nothing of ours is a snapshot of no records, not an error."""
    roots, blocks = repository(DID, {"app.bsky.feed.post/1": {"text": "hello"}})
    snapshot, _ = await fetched(response(car(roots, blocks.items())))
    assert snapshot.records == ()


async def test_a_repository_larger_than_the_cache() -> None:
    """A repository of more blocks than are kept in memory is read all the same, whatever the order of its blocks."""
    records: dict[str, Any] = {f"app.bsky.feed.post/{n:05}": {"text": f"{n}" + "x" * 2000} for n in range(6000)}
    records |= {f"ac.foundation.dataset.record/{n}": {"name": n} for n in range(9)}
    roots, blocks = repository(DID, records)
    snapshot, _ = await fetched(response(car(roots, reversed(blocks.items()))))
    assert [cbrrr.decode_dag_cbor(record.block) for record in snapshot.records] == [{"name": n} for n in range(9)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("RepoNotFound", "not-found"),
        ("RepoDeactivated", "deactivated"),
        ("RepoSuspended", "suspended"),
        ("RepoTakendown", "takendown"),
    ],
)
async def test_unavailable_repositories(error: str, status: str) -> None:
    """A host that does not give out a repository says why, and that is the result."""
    result, world = await fetched(response({"error": error, "message": "…"}, "400 Bad Request"))
    assert isinstance(result, RepoUnavailable)
    assert (result.did, result.status) == (DID, status)
    assert world.asked("com.atproto.sync.getRepo") == 1


def without(*paths: str) -> bytes:
    missing = {cid_of(encode(RECORDS[path])) for path in paths}
    return response(car(ROOTS, [(cid, block) for cid, block in BLOCKS.items() if cid not in missing]))


def committed(**changes: Any) -> bytes:
    roots, blocks = repository(DID, RECORDS, **changes)
    return response(car(roots, blocks.items()))


TREE = cbrrr.decode_dag_cbor(BLOCKS[ROOTS[0]])["data"].cid_bytes  # type: ignore[index, call-overload, union-attr]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (committed(did=OTHER), "not of this repository"),
        (committed(rev="yesterday"), "no valid rev or data"),
        (committed(rev=None), "no valid rev or data"),
        (committed(data=TREE), "no valid rev or data"),
        (committed(data=None), "no valid rev or data"),
        (committed(data=cbrrr.CID(cid_of(b"?"))), "node .* is missing"),
        (response(car(ROOTS, [])), "no commit"),
        (response(car([], BLOCKS.items())), "no commit"),
        (response(car([cid_of(encode([]))], [(cid_of(encode([])), encode([]))])), "not of this repository"),
        (response(car(ROOTS, [(c, b) for c, b in BLOCKS.items() if c != TREE])), "node .* is missing"),
        (without("ac.foundation.dataset.record/3lqdkdjpy6t2e"), "record ac.foundation.dataset.record/.* is missing"),
        (response(car(ROOTS, [(c, b + b"\0") for c, b in BLOCKS.items()])), "does not hash to its CID"),
        (response(car(ROOTS, BLOCKS.items())[:-1]), "truncated"),
        (response(b""), "truncated"),
        (response("<html>"), "truncated"),
        (response(b"x" * 200, content_encoding="gzip"), "compressed"),
        (response({"error": "InvalidRequest"}, "400 Bad Request"), "400 InvalidRequest"),
        (response({"error": "AuthRequired"}, "401 Unauthorized"), "401 AuthRequired"),
        (response(status="302 Found", location="http://169.254.169.254/"), "302"),
        (response(status="501 Not Implemented"), "501"),
        (response(car(ROOTS, [*BLOCKS.items(), (cid_of(b"x" * 2**22), b"x" * 2**22)])), "claims 4194340 bytes"),
    ],
)
async def test_failures(answer: bytes, reason: str) -> None:
    """A repository that is not whole and right is a failure with its reason, and not asked for again at once."""
    result, world = await fetched(answer)
    assert isinstance(result, FetchFailed)
    with pytest.raises(FetchFailed, match=f"{DID}: .*{reason}"):
        raise result
    assert world.asked("com.atproto.sync.getRepo") == 1
    assert world.slept == []


async def test_records_of_others_may_be_missing() -> None:
    """What other applications' records say does not matter, nor whether they are there."""
    snapshot, _ = await fetched(without("app.bsky.feed.post/3lqdkdjpy6t2e"))
    assert len(snapshot.records) == 2


@pytest.mark.parametrize(("name", "value"), [("_MAX_REPOSITORY", 1000), ("_MAX_RECORDS", 10), ("_MAX_BLOCK", 20)])
async def test_limits(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository over a limit is a failure."""
    monkeypatch.setattr(module, name, value)
    result, _ = await fetched(REPOSITORY)
    assert isinstance(result, FetchFailed)
    assert str(value) in result.reason


async def test_slow_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sends a repository too slowly is given up."""
    monkeypatch.setattr(module, "_SLOW_START", -1e9)
    result, world = await fetched(REPOSITORY)
    assert isinstance(result, FetchFailed)
    assert "bytes in 0 s" in result.reason
    assert world.asked("com.atproto.sync.getRepo") == 1


@pytest.mark.parametrize("did", ["did:plc:nonsense", "did:key:zQ3", DID])
async def test_identities_that_lead_nowhere(did: str) -> None:
    """A DID that does not resolve, or names no host, is a failure: that its repository is gone, nobody has said."""
    async with backfilling() as (world, backfill):
        world.answers[f"plc {DID}"] = response(status="404 Not Found")
        with pytest.raises(FetchFailed, match=did):
            await backfill.fetch(did)
        del world.answers[f"plc {DID}"]
        for host, reason in [(None, "names no host"), ("ftp://pds.test", "names no host"), ("http://[::1]:1", "::1")]:
            world.host = host
            with pytest.raises(FetchFailed, match=reason):
                await backfill.fetch(DID)


# --- patience ---

BUSY = response(status="503 Busy")


async def cut() -> bytes:
    return response(b"cut off", length=100)


async def hang_up() -> bytes:
    raise ConnectionResetError


@pytest.mark.parametrize("trouble", [BUSY, response(status="500 Oops"), response(status="429 Slow"), hang_up])
async def test_trouble_that_passes(trouble: Answer) -> None:
    """A host that is busy, broken for a moment or gone is asked again, after a while."""
    result, world = await fetched([trouble, trouble, REPOSITORY])
    assert isinstance(result, Snapshot)
    assert world.asked("com.atproto.sync.getRepo") == 3
    assert len(world.slept) == 2
    assert all(0 <= pause <= 4 for pause in world.slept)


async def test_trouble_that_stays() -> None:
    """After four attempts, it is a failure."""
    result, world = await fetched(BUSY)
    assert isinstance(result, FetchFailed)
    assert "503" in result.reason
    assert world.asked("com.atproto.sync.getRepo") == 4


async def test_directories_are_asked_again() -> None:
    """A directory that is busy is asked again, too."""
    async with backfilling() as (world, backfill):
        good = await world.answer(f"/{DID}")
        world.answers[f"plc {DID}"] = [response(status="429 Slow", retry_after=5), good]
        assert (await backfill.fetch(DID)).did == DID
        assert world.slept == [pytest.approx(5, abs=1)]


async def test_the_pace_a_host_asks_for() -> None:
    """A host that says when to come back is left alone until then, with all its repositories."""
    async with backfilling() as (world, backfill):
        roots, blocks = repository(OTHER, {})
        slow = response(status="429 Slow", retry_after=8)
        world.answers[f"com.atproto.sync.getRepo {DID}"] = [slow, REPOSITORY]
        world.answers[f"com.atproto.sync.getRepo {OTHER}"] = response(car(roots, blocks.items()))
        await backfill.fetch(DID)
        assert world.slept == [pytest.approx(8, abs=1)]
        await backfill.fetch(OTHER)
        assert world.slept == [pytest.approx(8, abs=1)] * 2


async def test_a_pace_too_slow() -> None:
    """A host that wants to be left alone for an hour is a failure for now."""
    result, world = await fetched(response(status="429 Slow", retry_after=3600))
    assert isinstance(result, FetchFailed)
    assert (world.asked("com.atproto.sync.getRepo"), world.slept) == (1, [])


# --- many ---


def dids(count: int) -> list[str]:
    return [f"did:plc:{'a' * 22}{'abcdefghijklmnopqrstuvwxyz'[n]}a" for n in range(count)]


async def test_one_result_for_each() -> None:
    """Every DID has a result, whatever becomes of it, and wherever the DIDs come from."""
    gone, broken, busy = dids(3)
    for as_stream in (False, True):
        async with backfilling() as (world, backfill):
            get_repo = "com.atproto.sync.getRepo"
            world.answers[f"{get_repo} {gone}"] = response({"error": "RepoTakendown"}, "400 Bad Request")
            world.answers[f"{get_repo} {broken}"] = response("nonsense")
            world.answers[f"{get_repo} {busy}"] = BUSY
            wanted = [DID, gone, broken, busy, "nonsense"]
            source = module._aiter(wanted) if as_stream else wanted
            results = {result.did: type(result) async for result in backfill.run(source)}
        assert results == {
            DID: Snapshot,
            gone: RepoUnavailable,
            broken: FetchFailed,
            busy: FetchFailed,
            "nonsense": FetchFailed,
        }


async def test_no_dids() -> None:
    """No DIDs, no results."""
    async with backfilling() as (_, backfill):
        assert [result async for result in backfill.run([])] == []


class Gate:
    """An answer that waits until it is let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)
        self.waiting = self.most = 0

    async def __call__(self) -> bytes:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self.arrived.release()
        await self.open.wait()
        self.waiting -= 1
        return response({"error": "RepoNotFound"}, "400 Bad Request")


@pytest.mark.parametrize(("concurrency", "per_host", "expected"), [(8, 2, 2), (3, 8, 3)])
async def test_how_many_at_a_time(concurrency: int, per_host: int, expected: int) -> None:
    """No more repositories are read at a time than asked for, overall and from one host."""
    gate = Gate()
    async with backfilling(concurrency=concurrency, per_host=per_host) as (world, backfill):
        world.answers["com.atproto.sync.getRepo"] = gate

        async def collect() -> int:
            return len([result async for result in backfill.run(dids(12))])

        collecting = asyncio.create_task(collect())
        for _ in range(expected):
            await gate.arrived.acquire()
        # While this goes back and forth, others would arrive, too.
        async with guarded_client(allow_private=True) as client:
            for _ in range(20):
                await get_json(client, f"{world.server.url}/{DID}", limit=1000, seconds=30)
        gate.open.set()
        assert await collecting == 12
        assert gate.most == expected


async def test_results_do_not_wait_for_more_dids() -> None:
    """A result is out as soon as it is there, also while the next DID is awaited."""
    more = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield DID
        await more.wait()
        yield "nonsense"

    async with backfilling() as (_, backfill):
        results = backfill.run(source())
        assert (await anext(results)).did == DID
        more.set()
        assert (await anext(results)).did == "nonsense"
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_dids_that_fail() -> None:
    """An error of the DIDs' source is raised after the results of those that came before."""

    async def source() -> AsyncIterator[str]:
        yield DID
        raise NetworkError("the relay is gone")

    async with backfilling() as (_, backfill):
        results = backfill.run(source())
        assert (await anext(results)).did == DID
        with pytest.raises(NetworkError, match="relay is gone"):
            await anext(results)


async def test_stopping_early() -> None:
    """When nobody wants more results, nothing is left running."""
    gate = Gate()
    before = asyncio.all_tasks()
    async with backfilling() as (world, backfill):
        world.answers["com.atproto.sync.getRepo"] = gate
        results = backfill.run([DID, *dids(5)])
        assert isinstance(await anext(results), Snapshot)
        await asyncio.wait_for(results.aclose(), 5)  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == before


# --- discovery ---

BY_COLLECTION = "com.atproto.sync.listReposByCollection"
LIST_REPOS = "com.atproto.sync.listRepos"
DESCRIBE = "com.atproto.repo.describeRepo"


def page(*found: Any, cursor: str | None = None) -> bytes:
    repos = [{"did": did} if isinstance(did, str) else did for did in found]
    return response({"repos": repos} | ({"cursor": cursor} if cursor else {}))


async def discovered(answers: dict[str, Answer | list[Answer]], **options: Any) -> tuple[list[str], World]:
    async with backfilling(**options) as (world, backfill):
        world.answers.update(answers)
        return [did async for did in backfill.discover()], world


async def test_discovery() -> None:
    """Every repository that the relay lists for one of our collections is found once, over all pages."""
    a, b, c, d = dids(4)
    found, world = await discovered(
        {
            BY_COLLECTION: page(),
            f"{BY_COLLECTION} {nsid.DATASET}": page(a, b, cursor="next"),
            f"{BY_COLLECTION} {nsid.DATASET} next": page(cursor="last"),
            f"{BY_COLLECTION} {nsid.DATASET} last": page(b, c),
            f"{BY_COLLECTION} {nsid.LENS}": page(d, a),
        }
    )
    assert sorted(found) == [a, b, c, d]
    asked = defaultdict(int)
    for request in world.server.requests:
        asked[parse_qs(urlsplit(request).query)["collection"][0]] += 1
    assert asked == {nsid.SAMPLE_SCHEMA: 1, nsid.SCHEMA: 1, nsid.DATASET: 3, nsid.LENS: 1, nsid.LABEL: 1}


async def test_discovery_of_other_namespaces() -> None:
    """The collections of other namespaces are asked for where an operator wants them."""
    found, _ = await discovered(
        {BY_COLLECTION: page(), f"{BY_COLLECTION} {nsid.SUCCESSOR_DATASET}": page(DID)},
        prefixes=[nsid.PREFIX, nsid.SUCCESSOR_PREFIX],
    )
    assert found == [DID]


async def test_odd_entries() -> None:
    """Entries of a list that are not repositories are passed over."""
    found, _ = await discovered({BY_COLLECTION: page({"did": 5}, {}, {"did": "nonsense"}, {"did": DID})})
    assert found == [DID]


@pytest.mark.parametrize(
    "answer",
    [
        response({"error": "MethodNotImplemented"}, "501 Not Implemented"),
        response({"error": "MethodNotImplemented"}, "400 Bad Request"),
        response({"error": "XRPCNotSupported"}, "404 Not Found"),
        response({"error": "NotFound"}, "404 Not Found"),
        response("404 page not found", "404 Not Found"),
        response({"error": "InvalidRequest", "message": "No service configured for …"}, "400 Bad Request"),
        response({"error": "AuthMissing"}, "401 Unauthorized"),
    ],
)
async def test_discovery_at_a_host(answer: bytes) -> None:
    """A host without an index of collections is asked for all its repositories, and what is in each."""
    ours, unknown, foreign, empty, gone, inactive, odd = dids(7)
    found, world = await discovered(
        {
            BY_COLLECTION: answer,
            LIST_REPOS: page(ours, unknown, foreign, cursor="2"),
            f"{LIST_REPOS}  2": page(
                empty, gone, odd, {"did": inactive, "active": False}, {"did": DID, "active": True}
            ),
            f"{DESCRIBE} {ours}": response({"collections": ["app.bsky.feed.post", nsid.DATASET]}),
            f"{DESCRIBE} {unknown}": response({"collections": [nsid.PREFIX + "unheardOf"]}),
            f"{DESCRIBE} {foreign}": response({"collections": ["ac.foundation.datasets.record"]}),
            f"{DESCRIBE} {empty}": response({"collections": []}),
            f"{DESCRIBE} {gone}": response({"error": "RepoTakendown"}, "400 Bad Request"),
            f"{DESCRIBE} {inactive}": response({"collections": [nsid.DATASET]}),
            f"{DESCRIBE} {odd}": response({"collections": {"a": 1}}),
            f"{DESCRIBE} {DID}": [BUSY, response({"collections": [None, nsid.LABEL]})],
        }
    )
    assert found == [ours, unknown, DID]
    assert len(world.slept) == 1


@pytest.mark.parametrize("answer", [response(status="501 No"), response({"error": "NotFound"}, "404 Not Found")])
async def test_a_relay_that_offers_neither(answer: bytes) -> None:
    """A relay that can tell nothing of collections is an error that says what to do."""
    with pytest.raises(NetworkError, match=r"offers neither .* set ATDATA_RELAY"):
        await discovered({LIST_REPOS: page(DID), DESCRIBE: answer})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (BUSY, "503"),
        (response(status="429 Slow"), "429"),
        (response("nonsense"), "not JSON"),
        (response([]), "not an object"),
        (page(DID, cursor="again"), "in circles"),
    ],
)
async def test_discovery_that_fails(answer: bytes, reason: str) -> None:
    """Discovery that cannot go on is an error, never a shorter list."""
    with pytest.raises(NetworkError, match=reason):
        await discovered({BY_COLLECTION: answer})
