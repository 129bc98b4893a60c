"""Backfill against a relay, a directory and hosts that misbehave as told. Their server is real, on loopback."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cbrrr
import coincurve
import libipld
import pytest
import repositories
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from repositories import REV, car, cid_of, encode
from servers import Server, response, serve

from atdata import nsid
from atdata.errors import NetworkError
from atdata_backend.http import get_json, guarded_client
from atdata_backend.identity import Identity, Resolver
from atdata_indexer import backfill as module
from atdata_indexer.backfill import (
    Backfill,
    FetchFailed,
    Head,
    Hosting,
    RecordProof,
    RepoRecord,
    RepoUnavailable,
    Snapshot,
)
from atdata_indexer.car import CarError, cid_text

DID = "did:plc:2a7ygipkrbh544aqhcav53oy"
OTHER = "did:plc:2c6wev5ei4jzcy4imh5afa35"
RECORDS = {
    "ac.foundation.dataset.record/3lqdkdjpy6t2e": {"name": "Birdsong"},
    "ac.foundation.dataset.unheardOf/self": {"anything": 1},
    "ac.foundation.datasets.record/3lqdkdjpy6t2e": {"name": "somebody else's"},
    "app.bsky.feed.post/3lqdkdjpy6t2e": {"text": "hello"},
    "science.alt.dataset.entry/3lqdkdjpy6t2e": {"name": "later"},
}
SECRET = coincurve.PrivateKey(b"k" * 32)
KEY = libipld.encode_multibase("z", b"\xe7\x01" + SECRET.public_key.format())
OTHER_KEY = libipld.encode_multibase("z", b"\xe7\x01" + coincurve.PrivateKey(b"o" * 32).public_key.format())

Repository = tuple[list[bytes], dict[bytes, bytes]]


def repository(did: str, records: dict[str, Any], /, **commit: Any) -> Repository:
    """A repository as `repositories.repository` makes it, signed with SECRET unless *commit* has a `sig`."""
    (root,), blocks = repositories.repository(did, records, **commit)
    if "sig" in commit:
        return [root], blocks
    fields: Any = cbrrr.decode_dag_cbor(blocks[root])
    del fields["sig"]
    return repositories.repository(did, records, **commit, sig=SECRET.sign_recoverable(encode(fields))[:64])


ROOTS, BLOCKS = repository(DID, RECORDS)
REPOSITORY = response(car(ROOTS, BLOCKS.items()))

Answer = bytes | Callable[[], Awaitable[bytes]]

GET_REPO = "com.atproto.sync.getRepo"
GET_BLOCKS = "com.atproto.sync.getBlocks"
GET_RECORD = "com.atproto.sync.getRecord"
LATEST = "com.atproto.sync.getLatestCommit"
STATUS = "com.atproto.sync.getRepoStatus"


class World:
    """A relay, a directory and a host in one. `answers` are by the path, and the repository if one is named.

    A list of answers is given out in order, its last one for ever. What has no answer of its own is answered from what
    the host holds.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.held: dict[str, Repository] = {DID: (ROOTS, BLOCKS)}
        self.host: str | None = ""
        self.hosts: dict[str, str] = {}
        self.key: str | None = KEY
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
            return response(self.document(did))
        if did in self.held:
            return self.give_out(method, query, *self.held[did])
        return response({"error": "MethodNotImplemented"}, "501 Not Implemented")

    def document(self, did: str) -> dict[str, Any]:
        host = self.hosts.get(did, self.server.url if self.host == "" else self.host)
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": host}
        method = {"id": "#atproto", "type": "Multikey", "publicKeyMultibase": self.key}
        return {
            "id": did,
            "service": [service] if host else [],
            "verificationMethod": [method] if self.key else [],
            "alsoKnownAs": ["at://ada.example.org"],
        }

    def give_out(
        self, method: str, query: dict[str, list[str]], roots: list[bytes], blocks: dict[bytes, bytes]
    ) -> bytes:
        if method in (GET_REPO, GET_RECORD):
            return response(car(roots, blocks.items()))
        if method == LATEST:
            commit: Any = cbrrr.decode_dag_cbor(blocks[roots[0]])
            return response({"rev": commit["rev"], "cid": cid_text(roots[0])})
        if method == GET_BLOCKS:
            # As the reference PDS does: all or nothing.
            cids = [cbrrr.CID.decode(cid).cid_bytes for cid in query["cids"]]
            if missing := [cid_text(cid) for cid in cids if cid not in blocks]:
                message = f"Could not find cids: {missing}"
                return response({"error": "InvalidRequest", "message": message}, "400 Bad Request")
            return response(car([], [(cid, blocks[cid]) for cid in cids]))
        return response({"error": "MethodNotImplemented"}, "501 Not Implemented")

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def asked(self, method: str) -> int:
        return sum(f"/xrpc/{method}" in request for request in self.server.requests)

    def asked_for(self) -> list[str]:
        """The CIDs that getBlocks was asked for."""
        return [
            cid
            for request in self.server.requests
            if f"/xrpc/{GET_BLOCKS}" in request
            for cid in parse_qs(urlsplit(request).query)["cids"]
        ]


@asynccontextmanager
async def backfilling(**options: Any) -> AsyncIterator[tuple[World, Backfill]]:
    world = World()
    async with serve(world.answer) as server, guarded_client(allow_private=True, per_host=50) as client:
        world.server = server
        resolver = Resolver(client, plc_url=server.url)
        yield world, Backfill(client, resolver, relay_url=server.url, **{"sleep": world.sleep, **options})


async def fetched(answer: Answer | list[Answer]) -> tuple[Any, World]:
    """What becomes of DID's repository when its host answers so."""
    async with backfilling() as (world, backfill):
        world.answers[f"{GET_REPO} {DID}"] = answer
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
    assert snapshot.commit == cid_text(ROOTS[0])
    assert snapshot.data == cbrrr.decode_dag_cbor(BLOCKS[ROOTS[0]])["data"].encode()  # type: ignore[index, call-overload, union-attr]
    # A handle would take DNS, and nobody needs it here.
    assert (snapshot.identity.signing_key, snapshot.identity.handle) == (KEY, None)


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
    assert world.asked(GET_REPO) == 1


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
        (committed(version=2), "version is not 3"),
        (committed(sig=bytes(64)), "signature"),
        (committed(sig=None), "no signature"),
        (committed(sig=SECRET.sign_recoverable(b"something else")[:64]), f"signature is not by .*{KEY}"),
        (response(car(ROOTS, [])), "no commit"),
        (response(car([], BLOCKS.items())), "no commit"),
        (response(car([cid_of(encode([]))], [(cid_of(encode([])), encode([]))])), "not of this repository"),
        (response(car(ROOTS, [(c, b) for c, b in BLOCKS.items() if c != TREE])), "node .* is missing"),
        (without("ac.foundation.dataset.record/3lqdkdjpy6t2e"), "record ac.foundation.dataset.record/.* is missing"),
        (response(car(ROOTS, [(c, b + b"\0") for c, b in BLOCKS.items()])), "does not hash to its CID"),
        (response(car(ROOTS, BLOCKS.items())[:-1]), "truncated"),
        (response(b""), "truncated"),
        (response("<html>"), "header claims 60 bytes"),
        (response(b"x" * 200, content_encoding="gzip"), "compressed"),
        (response({"error": "InvalidRequest"}, "400 Bad Request"), "400 InvalidRequest"),
        (response({"error": "AuthRequired"}, "401 Unauthorized"), "401 AuthRequired"),
        (response(status="302 Found", location="http://169.254.169.254/"), "302"),
        (response(status="501 Not Implemented"), "501"),
    ],
)
async def test_failures(answer: bytes, reason: str) -> None:
    """A repository that is not whole and right is a failure with its reason, and not asked for again at once."""
    result, world = await fetched(answer)
    assert isinstance(result, FetchFailed)
    with pytest.raises(FetchFailed, match=f"{DID}: .*{reason}"):
        raise result
    assert world.asked(GET_REPO) == 1
    assert world.slept == []


async def test_records_of_others_may_be_missing() -> None:
    """What other applications' records say does not matter, nor whether they are there."""
    snapshot, _ = await fetched(without("app.bsky.feed.post/3lqdkdjpy6t2e"))
    assert len(snapshot.records) == 2


async def test_limit_on_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with more of our records than we keep is a failure."""
    monkeypatch.setattr(module, "_MAX_RECORDS", 10)
    result, _ = await fetched(REPOSITORY)
    assert isinstance(result, FetchFailed)
    assert result.reason == "more than 10 bytes of records"


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "names no key"), (OTHER_KEY, f"is not by .*{OTHER_KEY}"), ("zQ3sh", "zQ3sh.* is no")]
)
async def test_keys(key: str | None, reason: str) -> None:
    """A commit counts when the key in the DID document of now signed it."""
    async with backfilling() as (world, backfill):
        await backfill.fetch(DID)
        world.key = key
        with pytest.raises(FetchFailed, match=reason):
            await backfill.fetch(DID)
        with pytest.raises(FetchFailed, match=reason):
            await backfill.prove(DID, nsid.DATASET, "3lqdkdjpy6t2e")


async def test_slow_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sends a repository too slowly is given up."""
    monkeypatch.setattr(module, "_SLOW_START", -1e9)
    result, world = await fetched(REPOSITORY)
    assert isinstance(result, FetchFailed)
    assert "bytes in 0 s" in result.reason
    assert world.asked(GET_REPO) == 1


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


# --- large repositories ---


@asynccontextmanager
async def reading_parts(
    repository: Repository, limit: int = 1000, **options: Any
) -> AsyncIterator[tuple[World, Backfill]]:
    """DID's repository at a host, with *limit* as the size above which it is large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SMALL_REPOSITORY", limit)
        async with backfilling(**options) as (world, backfill):
            world.held[DID] = repository
            yield world, backfill


def many(ours: int, others: int = 3000) -> dict[str, Any]:
    """Records of a repository with a tree of several layers, in which ours are in the middle."""
    return {
        **{f"ac.foundation.dataset.record/{n:05}": {"name": n} for n in range(ours)},
        **{f"app.bsky.feed.post/{n:05}": {"text": f"{n}"} for n in range(others)},
        **{f"ac.aaa/{n:05}": {"n": n} for n in range(others // 10)},
    }


async def test_parts_of_large_repositories() -> None:
    """Of a large repository, only the way to records of ours and these are read; the snapshot is that of the whole."""
    repository_ = repository(DID, many(3))
    async with backfilling() as (world, backfill):
        world.held[DID] = repository_
        whole = await backfill.fetch(DID)
    async with reading_parts(repository_) as (world, backfill):
        assert await backfill.fetch(DID) == replace(whole, identity=replace(whole.identity, pds=world.server.url))
        asked_for = world.asked_for()
        assert {record.cid for record in whole.records} < set(asked_for)
        assert len(asked_for) == len(set(asked_for)) < 30 < len(repository_[1]) // 100
        # A commit, the layers of the tree, the records.
        assert world.asked(GET_BLOCKS) <= 10
        assert max(map(len, world.server.requests)) < 8000


PATHS = st.builds(
    "{}/{}".format,
    st.sampled_from(
        ["a.b.c", "ac.foundation.dataset.a", "ac.foundation.dataset.z", "ac.foundation.datasets.a", "z.z.z"]
    ),
    st.text("abz~", min_size=1, max_size=6),
)


# Shrinking would take minutes here.
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(st.lists(st.dictionaries(PATHS, st.integers(0, 5), max_size=60), min_size=10, max_size=20))
async def test_parts_are_as_the_whole(repositories: list[dict[str, int]]) -> None:
    """Whatever a repository holds: read in parts it gives the same snapshot, without a record too many."""
    async with reading_parts((ROOTS, BLOCKS), limit=10) as (world, backfill):
        world.answers[GET_REPO] = response(b"x" * 11)
        for records in repositories:
            world.held[DID] = repository(DID, {path: {"n": n} for path, n in records.items()})
            world.server.requests.clear()
            snapshot = await backfill.fetch(DID)
            ours = sorted(path for path in records if path.startswith(nsid.PREFIX))
            assert [f"{record.collection}/{record.rkey}" for record in snapshot.records] == ours
            contents = {cid_text(cid_of(encode({"n": n}))) for n in range(6)}
            assert {record.cid for record in snapshot.records} == contents.intersection(world.asked_for())


async def test_parts_in_a_moving_repository() -> None:
    """A repository that moves on while it is read is read on from its new commit, but for what stayed."""
    before = repository(DID, many(300))
    after = repository(DID, many(301), rev="3lqdkdjpy6t2f")
    async with reading_parts(before) as (world, backfill):
        requests = 0

        async def moving() -> bytes:
            nonlocal requests
            requests += 1
            if requests == 5:
                world.held[DID] = after
            return world.give_out(GET_BLOCKS, parse_qs(urlsplit(world.server.requests[-1]).query), *world.held[DID])

        world.answers[GET_BLOCKS] = moving
        snapshot = await backfill.fetch(DID)
        assert (snapshot.rev, len(snapshot.records)) == ("3lqdkdjpy6t2f", 301)
        assert world.asked(LATEST) == 2
        assert world.asked(GET_REPO) == 1
        asked_for = world.asked_for()
        # Those of the request that was refused, and no others.
        assert len(asked_for) - len(set(asked_for)) <= 100


async def test_a_repository_that_does_not_stand_still() -> None:
    """A repository that moves on faster than it is read in parts is read as a whole."""
    async with reading_parts((ROOTS, BLOCKS), limit=100) as (world, backfill):
        revs = iter("bcdefghij")

        async def moving() -> bytes:
            world.held[DID] = repository(DID, RECORDS, rev=f"3lqdkdjpy6t2{next(revs)}")
            return response({"error": "InvalidRequest"}, "400 Bad Request")

        world.answers[GET_BLOCKS] = moving
        snapshot = await backfill.fetch(DID)
        assert (snapshot.rev, len(snapshot.records)) == ("3lqdkdjpy6t2e", 2)
        assert (world.asked(LATEST), world.asked(GET_REPO)) == (4, 2)


NODE = BLOCKS[TREE]


@pytest.mark.parametrize(
    "answer",
    [
        response({"error": "MethodNotImplemented"}, "501 Not Implemented"),
        response({"error": "InvalidRequest"}, "400 Bad Request"),
        response("", "404 Not Found"),
        response(b""),
        response("<html>"),
        response(car([], [])),
        response(car([], [(ROOTS[0], BLOCKS[ROOTS[0]] + b" ")])),
        response(car([], [(ROOTS[0], BLOCKS[ROOTS[0]])])),
    ],
)
async def test_hosts_without_blocks(answer: bytes) -> None:
    """Where a host gives out no blocks, or wrong ones, a large repository is read as a whole."""
    async with reading_parts((ROOTS, BLOCKS), limit=100) as (world, backfill):
        world.answers[GET_BLOCKS] = answer
        assert len((await backfill.fetch(DID)).records) == 2
        # Once more, as it might have moved on, but it had not.
        assert (world.asked(GET_REPO), world.asked(LATEST), world.asked(GET_BLOCKS) <= 2) == (2, 2, True)


async def test_many_blocks_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large repository that is mostly ours is read as a whole, in fewer requests."""
    monkeypatch.setattr(module, "_MAX_BLOCKS_APART", 200)
    async with reading_parts(repository(DID, many(300))) as (world, backfill):
        assert len((await backfill.fetch(DID)).records) == 300
        assert (world.asked(GET_REPO), world.asked(GET_BLOCKS) <= 12) == (2, True)


async def test_a_repository_larger_than_the_cache() -> None:
    """A whole of more blocks than are kept in memory is read all the same, whatever the order of its blocks."""
    records: dict[str, Any] = {f"app.bsky.feed.post/{n:05}": {"text": f"{n}" + "x" * 2000} for n in range(6000)}
    records |= {f"ac.foundation.dataset.record/{n}": {"name": n} for n in range(9)}
    roots, blocks = repository(DID, records)
    async with backfilling() as (world, backfill):
        world.answers |= {
            GET_REPO: response(car(roots, reversed(blocks.items()))),
            GET_BLOCKS: response(status="501 No"),
        }
        world.held[DID] = roots, blocks
        snapshot = await backfill.fetch(DID)
    assert [cbrrr.decode_dag_cbor(record.block) for record in snapshot.records] == [{"name": n} for n in range(9)]


@pytest.mark.parametrize(
    ("method", "answer", "reason"),
    [
        (LATEST, response([]), "list, not an object"),
        (LATEST, response({"rev": REV}), "no valid rev or cid"),
        (LATEST, response({"rev": "now", "cid": cid_text(ROOTS[0])}), "no valid rev or cid"),
        (LATEST, response({"rev": REV, "cid": "b"}), "no valid rev or cid"),
        (LATEST, response({"rev": REV, "cid": "bafy"}), "no valid rev or cid"),
        (LATEST, response({"rev": REV, "cid": cid_text(ROOTS[0]).upper()}), "no valid rev or cid"),
        (LATEST, response({"rev": REV, "cid": cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32)).encode()}), "no valid"),
        (LATEST, response({"rev": REV, "cid": ["x"]}), "no valid rev or cid"),
        (GET_BLOCKS, BUSY := response(status="503 Busy"), "503"),
        (GET_BLOCKS, response(status="429 Slow", retry_after=3600), "429"),
    ],
)
async def test_parts_that_cannot_be_had(method: str, answer: bytes, reason: str) -> None:
    """A host in trouble, or one that does not say what its latest commit is, is a failure."""
    async with reading_parts((ROOTS, BLOCKS), limit=100) as (world, backfill):
        world.answers[method] = answer
        with pytest.raises(FetchFailed, match=reason):
            await backfill.fetch(DID)


async def test_parts_of_an_account_that_goes_away() -> None:
    """An account that is taken down while it is read is unavailable."""
    async with reading_parts((ROOTS, BLOCKS), limit=100) as (world, backfill):
        world.answers[GET_BLOCKS] = response({"error": "RepoTakendown"}, "400 Bad Request")
        with pytest.raises(RepoUnavailable, match="takendown"):
            await backfill.fetch(DID)


async def test_limits_on_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large repository over a limit is a failure, read in parts or as a whole."""
    for name, value, blocks in [
        ("_MAX_RECORDS", 10, {}),
        ("_MAX_RECORDS", 10, {GET_BLOCKS: response(status="501 No")}),
        ("_MAX_REPOSITORY", 500, {GET_BLOCKS: response(status="501 No")}),
        ("_MAX_BLOCK", 20, {GET_BLOCKS: response(status="501 No")}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            async with reading_parts((ROOTS, BLOCKS), limit=100) as (world, backfill):
                world.answers |= blocks
                with pytest.raises(FetchFailed, match=rf"\b{value}\b"):
                    await backfill.fetch(DID)


async def test_blocks_that_prove_nothing() -> None:
    """Blocks of a commit that is not signed with the key are worth nothing, and not read on."""
    async with reading_parts(repository(DID, RECORDS, sig=bytes(64)), limit=100) as (world, backfill):
        with pytest.raises(FetchFailed, match="signature"):
            await backfill.fetch(DID)
        assert (world.asked(GET_BLOCKS), world.asked(GET_REPO)) == (1, 1)


async def test_trees_that_hold_themselves() -> None:
    """A small tree that holds the same subtree many times over is given up soon."""
    blocks: dict[bytes, bytes] = {TREE: BLOCKS[TREE]}
    node: dict[str, Any] = {
        "l": None,
        "e": [{"p": 0, "k": b"ac.foundation.dataset.a/a", "v": cbrrr.CID(TREE), "t": None}],
    }
    for n in range(64):
        blocks[cid_of(encode(node))] = encode(node)
        link = cbrrr.CID(cid_of(encode(node)))
        node = {"l": link, "e": [{"p": 0, "k": f"ac.foundation.dataset.b/{n:02}".encode(), "v": link, "t": link}]}
    fields = {"did": DID, "version": 3, "data": link, "rev": REV, "prev": None}
    commit = encode({**fields, "sig": SECRET.sign_recoverable(encode(fields))[:64]})
    async with reading_parts(([cid_of(commit)], {cid_of(commit): commit, **blocks}), limit=100) as (world, backfill):
        with pytest.raises(FetchFailed, match="in the tree"):
            await backfill.fetch(DID)
        assert len(world.asked_for()) < 100


CBOR = st.recursive(
    st.none() | st.integers(-2, 300) | st.binary(max_size=4) | st.just(cbrrr.CID(TREE)) | st.sampled_from(["a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["l", "e", "p", "k", "v", "t"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(CBOR | st.builds(lambda left, entries: {"l": left, "e": entries}, CBOR, st.lists(CBOR)))
def test_any_node(value: Any) -> None:
    """Whatever a host gives as a node: it is one, or refused."""
    try:
        subtrees, records = module._children(module._Subtree(TREE, b"", None), encode(value), (b"",))
    except CarError:
        return
    assert all(len(cid) == 36 for cid in [subtree.root for subtree in subtrees] + records)


# --- patience ---


async def cut() -> bytes:
    return response(b"cut off", length=100)


async def hang_up() -> bytes:
    raise ConnectionResetError


@pytest.mark.parametrize("trouble", [BUSY, response(status="500 Oops"), response(status="429 Slow"), hang_up])
async def test_trouble_that_passes(trouble: Answer) -> None:
    """A host that is busy, broken for a moment or gone is asked again, after a while."""
    # A connection that breaks off is tried once more at once: an idle one may be closed just as it is used again.
    times = 2 if trouble is hang_up else 1
    result, world = await fetched([*[trouble] * 2 * times, REPOSITORY])
    assert isinstance(result, Snapshot)
    assert world.asked(GET_REPO) == 2 * times + 1
    assert len(world.slept) == 2
    assert all(0 <= pause <= 4 for pause in world.slept)


async def test_trouble_that_stays() -> None:
    """After four attempts, it is a failure."""
    result, world = await fetched(BUSY)
    assert isinstance(result, FetchFailed)
    assert "503" in result.reason
    assert world.asked(GET_REPO) == 4


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
        world.answers[f"{GET_REPO} {DID}"] = [slow, REPOSITORY]
        world.answers[f"{GET_REPO} {OTHER}"] = response(car(roots, blocks.items()))
        await backfill.fetch(DID)
        assert world.slept == [pytest.approx(8, abs=1)]
        await backfill.fetch(OTHER)
        assert world.slept == [pytest.approx(8, abs=1)] * 2


async def test_hosts_out_of_reach() -> None:
    """A host that cannot be reached is left alone for a while, by everybody, then tried once before it rests longer."""
    async with backfilling() as (world, backfill):
        world.answers[LATEST] = [*[hang_up] * 10, await world.answer(f"/xrpc/{LATEST}?did={DID}")]
        host = backfill._host(world.server.url)
        now = asyncio.get_running_loop().time
        for requests, rest in [(8, 30), (10, 60)]:  # each attempt asks twice
            with pytest.raises(FetchFailed):
                await backfill.latest(DID, world.server.url)
            with pytest.raises(FetchFailed, match="left alone"):
                await backfill.latest(DID, world.server.url)
            with pytest.raises(FetchFailed, match="left alone"):
                await backfill.fetch(DID)
            assert world.asked(LATEST) == requests
            assert host.paused_until - now() == pytest.approx(rest, abs=10)
            host.paused_until = 0.0
        await backfill.latest(DID, world.server.url)
        assert host.failures == 0


@asynccontextmanager
async def hosts(count: int, answer: Callable[[str], Awaitable[bytes]]) -> AsyncIterator[list[str]]:
    """Hosts, by their URLs, that answer alike."""
    async with AsyncExitStack() as stack:
        yield [(await stack.enter_async_context(serve(answer))).url for _ in range(count)]


async def test_slow_hosts_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hosts take for ever: those that do not are read."""
    monkeypatch.setattr(module, "_QUICK", 0.1)
    gate = Gate()
    slow = dids(12)

    async def answer(target: str) -> bytes:
        return await gate()

    async with hosts(6, answer) as urls, backfilling(concurrency=2) as (world, backfill):
        # Two repositories each, so that they take all places they can get, and more than those for slow ones.
        world.hosts = dict(zip(slow, urls * 2, strict=True))
        results = backfill.run([*slow, DID])
        assert isinstance(await anext(results), Snapshot)
        gate.open.set()
        late = [result async for result in results]
    assert sorted(result.did for result in late) == slow
    assert all(isinstance(result, RepoUnavailable) for result in late)


@pytest.mark.parametrize(("servers", "waited_for"), [(1, 2), (2, 3)])
async def test_lines_at_slow_hosts_are_short(servers: int, waited_for: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a host that takes for ever, two repositories are waited for, and a few in all at hosts like it."""
    monkeypatch.setattr(module, "_QUICK", 0.1)
    monkeypatch.setattr(module, "_SLOW_WAITING", 3)
    gate = Gate()

    async def answer(target: str) -> bytes:
        return await gate()

    async with hosts(servers, answer) as urls, backfilling() as (world, backfill):
        world.hosts = dict(zip(dids(10), urls * 10, strict=False))
        results = backfill.run(dids(10))
        for _ in range(10 - waited_for):
            with pytest.raises(FetchFailed, match="takes long"):
                raise await anext(results)  # type: ignore[misc]
        gate.open.set()
        assert [type(result) async for result in results] == [RepoUnavailable] * waited_for


async def test_hosts_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was slow and is not any more has the same places as others."""
    monkeypatch.setattr(module, "_QUICK", 0.5)
    async with backfilling() as (world, backfill):
        world.answers[f"{GET_REPO} {DID}"] = [Gate(), response(status="501 No"), REPOSITORY]
        with pytest.raises(FetchFailed, match="501"):
            await backfill.fetch(DID)
        host = backfill._host(world.server.url)
        assert host.is_slow
        await backfill.fetch(DID)
        assert not host.is_slow


async def test_an_end_also_for_the_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes for ever even at the places for slow ones is given up."""
    monkeypatch.setattr(module, "_QUICK", 0.1)
    monkeypatch.setattr(module, "_SLOW", 0.2)
    result, _ = await fetched(Gate())
    assert isinstance(result, FetchFailed)
    assert "within 0.2 s" in result.reason


async def test_many_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of hosts does not grow without end: those asked longest ago are forgotten."""
    monkeypatch.setattr(module, "_MAX_HOSTS", 3)
    async with backfilling() as (_, backfill):
        first = backfill._host("https://0.example")
        for n in range(5):
            assert backfill._host("https://0.example") is first
            backfill._host(f"https://{n + 1}.example")
        assert list(backfill._hosts) == ["https://4.example", "https://0.example", "https://5.example"]


async def test_a_pace_too_slow() -> None:
    """A host that wants to be left alone for an hour is a failure for now."""
    result, world = await fetched(response(status="429 Slow", retry_after=3600))
    assert isinstance(result, FetchFailed)
    assert (world.asked(GET_REPO), world.slept) == (1, [])


# --- many ---


def dids(count: int) -> list[str]:
    return [f"did:plc:{'a' * 22}{'abcdefghijklmnopqrstuvwxyz'[n]}a" for n in range(count)]


async def test_one_result_for_each() -> None:
    """Every DID has a result, whatever becomes of it, and wherever the DIDs come from."""
    gone, broken, busy = dids(3)
    for as_stream in (False, True):
        async with backfilling() as (world, backfill):
            world.answers[f"{GET_REPO} {gone}"] = response({"error": "RepoTakendown"}, "400 Bad Request")
            world.answers[f"{GET_REPO} {broken}"] = response("nonsense")
            world.answers[f"{GET_REPO} {busy}"] = BUSY
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


async def back_and_forth(world: World) -> None:
    """Some requests one after the other, while which others arrive, too, if they are under way."""
    async with guarded_client(allow_private=True) as client:
        for _ in range(20):
            await get_json(client, f"{world.server.url}/{DID}", limit=1000, seconds=30)


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
        world.answers[GET_REPO] = gate

        async def collect() -> int:
            return len([result async for result in backfill.run(dids(12))])

        collecting = asyncio.create_task(collect())
        for _ in range(expected):
            await gate.arrived.acquire()
        await back_and_forth(world)
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
        world.answers |= {GET_REPO: gate, f"{GET_REPO} {DID}": REPOSITORY}
        results = backfill.run([DID, *dids(5)])
        assert isinstance(await anext(results), Snapshot)
        await asyncio.wait_for(results.aclose(), 5)  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == before


async def test_dids_without_end() -> None:
    """What is under way is not read twice at once, but anew when it comes again later."""
    gate = Gate()
    a, b = dids(2)

    async def source() -> AsyncIterator[str]:
        for did in (a, b, a, a, DID):
            yield did
        await gate.open.wait()
        while True:
            yield a
            await asyncio.sleep(0)

    async with backfilling(per_host=8) as (world, backfill):
        world.answers |= {GET_REPO: gate, f"{GET_REPO} {DID}": REPOSITORY}
        results = backfill.run(source())
        assert (await anext(results)).did == DID
        for _ in range(2):
            await gate.arrived.acquire()
        await back_and_forth(world)
        read = [parse_qs(urlsplit(request).query)["did"] for request in world.server.requests if GET_REPO in request]
        assert sorted(read) == sorted([[DID], [a], [b]])
        gate.open.set()
        assert sorted([(await anext(results)).did, (await anext(results)).did]) == [a, b]
        assert (await anext(results)).did == a
        await results.aclose()  # type: ignore[attr-defined]


async def test_results_do_not_pile_up() -> None:
    """While nobody takes results, no more repositories are read than there are places."""
    async with backfilling(concurrency=3, per_host=3) as (world, backfill):
        world.held |= {did: repository(did, RECORDS) for did in dids(12)}
        results = backfill.run(dids(12))
        await anext(results)
        await back_and_forth(world)
        await back_and_forth(world)
        # The one taken, one on its way, those at the places.
        assert world.asked(GET_REPO) == 5
        assert len([result async for result in results]) == 11


# --- questions ---


async def test_latest() -> None:
    """The latest commit is what the host says it is."""
    async with backfilling() as (world, backfill):
        assert await backfill.latest(DID, world.server.url) == Head(REV, cid_text(ROOTS[0]))
        assert [request for request in world.server.requests if LATEST not in request] == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response("nonsense"), "not JSON"),
        (response([]), "not an object"),
        (response({"rev": REV, "cid": "?"}), "no valid rev or cid"),
        (response({"rev": REV + "2", "cid": cid_text(ROOTS[0])}), "no valid rev or cid"),
        (response({"error": "RepoNotFound"}, "500 Oops"), "500"),
        (response(status="302 Found", location="http://169.254.169.254/"), "302"),
        (response("x" * 100, content_encoding="gzip"), "compressed"),
        (response("[" + " " * 5_000_000), "more than"),
    ],
)
async def test_latest_that_is_not_told(answer: bytes, reason: str) -> None:
    """A host that does not say what its latest commit is, is a failure."""
    async with backfilling() as (world, backfill):
        world.answers[LATEST] = answer
        with pytest.raises(FetchFailed, match=reason):
            await backfill.latest(DID, world.server.url)


async def test_latest_of_the_unavailable() -> None:
    """A host that does not give out a repository says why, here, too."""
    async with backfilling() as (world, backfill):
        world.answers[LATEST] = response({"error": "RepoDeactivated"}, "400 Bad Request")
        with pytest.raises(RepoUnavailable, match="deactivated"):
            await backfill.latest(DID, world.server.url)


@pytest.mark.parametrize(
    ("answer", "status", "rev"),
    [
        (response({"did": DID, "active": True, "rev": REV}), "active", REV),
        (response({"did": DID, "active": True}), "active", None),
        (response({"did": DID, "active": True, "status": "throttled"}), "active", None),
        (response({"did": DID, "active": False, "status": "deactivated"}), "deactivated", None),
        (response({"did": DID, "active": False, "status": "deleted"}), "deleted", None),
        (response({"did": DID, "active": False, "status": "on-holiday", "rev": ""}), "on-holiday", None),
        (response({"did": DID, "active": False}), "inactive", None),
        (response({"error": "RepoNotFound"}, "400 Bad Request"), "not-found", None),
        (response({"error": "RepoNotFound"}, "404 Not Found"), "not-found", None),
        (response({"error": "RepoTakendown"}, "400 Bad Request"), "takendown", None),
        (response({"error": "RepoSuspended"}, "400 Bad Request"), "suspended", None),
        ([response(status="503 Busy"), response({"did": DID, "active": True})], "active", None),
    ],
)
async def test_status(answer: Answer | list[Answer], status: str, rev: str | None) -> None:
    """The state of an account is the word of the host that its document names now."""
    async with backfilling() as (world, backfill):
        world.answers[STATUS] = answer
        hosting = await backfill.status(DID)
        assert hosting == Hosting(Identity(DID, None, world.server.url, KEY), status, rev)


async def test_status_of_a_did_that_is_gone() -> None:
    """An account whose DID was closed is deleted: nobody can speak for it any more."""
    async with backfilling() as (world, backfill):
        world.answers[f"plc {DID}"] = response(status="410 Gone")
        assert await backfill.status(DID) == Hosting(None, "deleted", None)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (response({"did": DID, "active": True, "rev": REV}), "active"),
        (response({"did": DID, "active": False, "status": "takendown"}), "takendown"),
        (response({"did": DID, "active": False}), "inactive"),
        (response({"did": DID, "active": False, "status": "de leted"}), "inactive"),
        (response({"error": "RepoTakendown"}, "400 Bad Request"), "takendown"),
        # A relay need not know everybody, nor have this method.
        (response({"error": "RepoNotFound"}, "404 Not Found"), None),
        (response(status="501 Not Implemented"), None),
        (response(status="404 Not Found"), None),
        (response({"error": "InvalidRequest"}, "400 Bad Request"), None),
        (response({}), None),
    ],
)
async def test_what_the_relay_says(answer: bytes, status: str | None) -> None:
    """A relay may hide an account that its host shows; without a word of it, the host's counts."""
    async with backfilling() as (world, backfill):
        world.answers[STATUS] = answer
        assert await backfill.relayed(DID) == status


async def test_a_relay_that_does_not_say() -> None:
    """A relay that does not answer just now has not said that an account is fine."""
    async with backfilling() as (world, backfill):
        world.answers[STATUS] = response(status="503 Busy")
        with pytest.raises(FetchFailed, match="503"):
            await backfill.relayed(DID)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (f"plc {DID}", response(status="404 Not Found")),  # the setting may name the wrong directory
        (f"plc {DID}", response(status="503 Busy")),
        (f"plc {DID}", response(status="403 Forbidden")),
        (f"plc {DID}", response({"error": "RepoNotFound"}, "400 Bad Request")),
        (f"plc {DID}", response({"id": OTHER})),
        (f"plc {DID}", response({"id": DID})),
        (STATUS, response(status="503 Busy")),
        (STATUS, response({"error": "RepoNotFound"}, "502 Bad Gateway")),
        (STATUS, response(status="404 Not Found")),
        (STATUS, response(status="501 Not Implemented")),
        (STATUS, response({"error": "InvalidRequest"}, "400 Bad Request")),
        (STATUS, response("")),
        (STATUS, response(None)),
        (STATUS, response({})),
        (STATUS, response({"did": OTHER, "active": False, "status": "deleted"})),
        (STATUS, response({"did": DID, "active": "false", "status": "deleted"})),
        (STATUS, response({"did": DID, "active": False, "status": "active"})),
        (STATUS, response({"did": DID, "active": False, "status": "de leted"})),
        (STATUS, response({"did": DID, "active": False, "status": "d" * 41})),
        (STATUS, response({"did": DID, "active": False, "status": ["deleted"]})),
        (STATUS, response({"did": DID, "active": True, "rev": "soon"})),
        (STATUS, response({"did": DID, "active": True, "rev": 5})),
    ],
)
async def test_status_that_is_not_told(method: str, answer: bytes) -> None:
    """Where directory or host do not answer, or not sensibly, the state is unknown; never is it gone."""
    async with backfilling() as (world, backfill):
        world.answers[method] = answer
        with pytest.raises(FetchFailed, match=DID):
            await backfill.status(DID)


async def test_status_at_a_host_that_is_down() -> None:
    """A host that is down says nothing of its accounts."""
    async with backfilling() as (world, backfill):
        world.host = "http://127.0.0.1:1"
        with pytest.raises(FetchFailed, match=r"127\.0\.0\.1:1"):
            await backfill.status(DID)


async def test_proofs() -> None:
    """A record is proven to be there, with its block, or not to be there."""
    rkey = "3lqdkdjpy6t2e"
    block = encode(RECORDS[f"{nsid.DATASET}/{rkey}"])
    async with backfilling() as (world, backfill):
        identity = Identity(DID, None, world.server.url, KEY)
        proof = RecordProof(DID, REV, cid_text(ROOTS[0]), identity, None)
        record = RepoRecord(nsid.DATASET, rkey, cid_text(cid_of(block)), block)
        assert await backfill.prove(DID, nsid.DATASET, rkey) == replace(proof, record=record)
        assert await backfill.prove(DID, nsid.DATASET, "other") == proof
        assert await backfill.prove(DID, nsid.LABEL, rkey) == proof


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (committed(did=OTHER), "not of this repository"),
        (committed(rev="yesterday"), "no valid rev or data"),
        (committed(data=cbrrr.CID(cid_of(b"?"))), "not among|missing"),
        (committed(sig=bytes(64)), "signature"),
        (without("ac.foundation.dataset.record/3lqdkdjpy6t2e"), "record ac.foundation.dataset.record/.* is missing"),
        (response(car(ROOTS, [(c, b) for c, b in BLOCKS.items() if c != TREE])), "not among|missing"),
        (response(car(ROOTS, [(c, b + b"\0") for c, b in BLOCKS.items()])), "does not hash to its CID"),
        (response(car(ROOTS, BLOCKS.items())[:-1]), "truncated"),
        (response(car([], BLOCKS.items())), "no commit"),
        (response(car([TREE], BLOCKS.items())), "not of this repository"),
        (response(b""), "truncated"),
        (response(b"x" * 5_000_000), "more than"),
        (response({"error": "RecordNotFound"}, "404 Not Found"), "RecordNotFound"),
        (response(status="501 Not Implemented"), "501"),
    ],
)
async def test_proofs_that_fail(answer: bytes, reason: str) -> None:
    """What is no whole proof is a failure, for a record that is there and for one that is not."""
    async with backfilling() as (world, backfill):
        world.answers[GET_RECORD] = answer
        with pytest.raises(FetchFailed, match=reason):
            await backfill.prove(DID, nsid.DATASET, "3lqdkdjpy6t2e")


async def test_proofs_of_the_unavailable() -> None:
    """A host that does not give out a repository proves nothing, and says why."""
    async with backfilling() as (world, backfill):
        world.answers[GET_RECORD] = response({"error": "RepoTakendown"}, "400 Bad Request")
        with pytest.raises(RepoUnavailable, match="takendown"):
            await backfill.prove(DID, nsid.DATASET, "3lqdkdjpy6t2e")


async def test_questions_do_not_wait_for_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's places may all be taken by repositories that take long: a question is answered all the same."""
    monkeypatch.setattr(module, "_QUESTION_DEADLINE", 10.0)
    gate = Gate()
    async with backfilling(concurrency=1, per_host=1) as (world, backfill):
        world.answers[GET_REPO] = gate
        reading = asyncio.create_task(backfill.fetch(OTHER))
        await gate.arrived.acquire()
        assert (await backfill.latest(DID, world.server.url)).rev == REV
        gate.open.set()
        with pytest.raises(RepoUnavailable):
            await reading


async def test_questions_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that is not answered is a failure before long, and so are those that wait behind it."""
    monkeypatch.setattr(module, "_QUESTION_DEADLINE", 0.2)
    async with backfilling(per_host=1) as (world, backfill):
        world.answers[LATEST] = Gate()
        asked = [backfill.latest(DID, world.server.url) for _ in range(3)]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, FetchFailed)
            assert re.search("no answer within 0.2 s|left alone", outcome.reason)
        with pytest.raises(FetchFailed, match="left alone"):
            await backfill.latest(DID, world.server.url)


# --- discovery ---


async def until_it_fails(found: AsyncIterator[str]) -> tuple[list[str], NetworkError]:
    dids = []
    try:
        async for did in found:
            dids.append(did)
    except NetworkError as e:
        return dids, e
    raise AssertionError("it did not fail")


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


async def test_discovery_goes_on_where_it_failed() -> None:
    """After a failure, discovery goes on with the page that it had reached, and after a success anew."""
    a, b, c = dids(3)
    async with backfilling() as (world, backfill):
        world.answers = {
            BY_COLLECTION: page(),
            f"{BY_COLLECTION} {nsid.SAMPLE_SCHEMA}": page(a),
            f"{BY_COLLECTION} {nsid.DATASET}": page(b, cursor="next"),
            f"{BY_COLLECTION} {nsid.DATASET} next": [*[response(status="500 Oops")] * 4, page(c)],
        }
        found, failure = await until_it_fails(backfill.discover())
        assert (found, "500" in str(failure)) == ([a, b], True)
        before = len(world.server.requests)
        assert [did async for did in backfill.discover()] == [c]
        again = [parse_qs(urlsplit(request).query) for request in world.server.requests[before:]]
        assert [query["collection"][0] for query in again] == [nsid.DATASET, nsid.LENS, nsid.LABEL]
        assert [did async for did in backfill.discover()] == [a, b, c]


async def test_discovery_at_a_host_goes_on_where_it_failed() -> None:
    """At a host without an index, too, what was described before a failure is not described again."""
    a, b, c = dids(3)
    ours = response({"collections": [nsid.DATASET]})
    async with backfilling() as (world, backfill):
        world.answers = {
            LIST_REPOS: page(a, cursor="2"),
            f"{LIST_REPOS}  2": page(b, cursor="3"),
            f"{LIST_REPOS}  3": page(c),
            DESCRIBE: ours,
            f"{DESCRIBE} {b}": [response(status="429 Slow", retry_after=3600), ours],
        }
        found, failure = await until_it_fails(backfill.discover())
        assert (found, "429" in str(failure)) == ([a], True)
        backfill._host(world.server.url).paused_until = 0.0
        assert [did async for did in backfill.discover()] == [b, c]


async def test_cursors_that_expired() -> None:
    """A cursor that the relay does not take any more is an error, once; then discovery starts anew."""
    async with backfilling() as (world, backfill):
        world.answers = {
            BY_COLLECTION: page(DID, cursor="old"),
            f"{BY_COLLECTION} {nsid.SAMPLE_SCHEMA} old": response({"error": "InvalidRequest"}, "400 Bad Request"),
        }
        with pytest.raises(NetworkError, match="at cursor 'old'"):
            [did async for did in backfill.discover()]
        world.answers[BY_COLLECTION] = page(OTHER)
        assert [did async for did in backfill.discover()] == [OTHER]


async def test_lists_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay whose lists have no end, or pages longer than asked for, does not keep us busy for ever."""
    monkeypatch.setattr(module, "_MAX_PAGES", 5)
    monkeypatch.setattr(module, "_PAGE", 3)
    monkeypatch.setattr(module, "_MAX_SEEN", 2)
    async with backfilling() as (world, backfill):

        async def another() -> bytes:
            return page(*dids(4), cursor=f"{len(world.server.requests)}")

        world.answers[BY_COLLECTION] = another
        found, failure = await until_it_fails(backfill.discover())
        assert "no end after 5 pages" in str(failure)
        assert set(found) == set(dids(3))
        assert world.asked(BY_COLLECTION) == 5
