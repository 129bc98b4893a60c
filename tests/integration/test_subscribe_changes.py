"""`subscribeChanges`, over real WebSockets: what a subscriber gets, what it need not fear, and who is refused."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import cbrrr
import httpx
import psycopg
import pytest
import uvicorn
from frames import DATASET, SCHEMA, Repo, account, cid, dataset, multikey, schema
from integration.test_changes import allowing
from unit.test_event_stream import breaches
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from atdata.lexicon import load_lexicons
from atdata.nsid import PREFIX
from atdata_appview import event_stream
from atdata_appview.app import create_app
from atdata_appview.commands import listen, server_config
from atdata_appview.event_stream import EventStream
from atdata_appview.routes import subscriptions
from atdata_appview.settings import AppViewSettings
from atdata_appview.store import Store as Reader
from atdata_indexer.events import Scope, parse
from atdata_indexer.store import Item, Store

NSID = PREFIX + "subscribeChanges"
ALICE, BOB, EVE = ("did:plc:" + letter * 24 for letter in "abe")


@dataclass
class Service:
    """A running AppView, and the connections to it that a test opens."""

    port: int
    stream: EventStream
    settings: AppViewSettings

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/xrpc/{NSID}"

    def subscribe(self, cursor: int | str | None = None, **options: Any) -> connect:
        query = "" if cursor is None else f"?cursor={cursor}"
        # With a queue that can be full, the client would neither see pings nor close before it was emptied.
        options = {"max_size": 5_000_000, "max_queue": None, "ping_interval": None, "proxy": None, **options}
        return connect(self.url + query, **options)


@asynccontextmanager
async def serving(settings: AppViewSettings) -> AsyncIterator[Service]:
    """An AppView in this process, behind the server and on a socket as the command has them."""
    with listen(settings) as listener:
        # Little fits between the two ends, so that who does not read is soon noticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            server = uvicorn.Server(server_config(app))
            running = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0)
            yield Service(listener.getsockname()[1], app.state.services.stream, settings)
            server.should_exit = True
            await running


@pytest.fixture
async def service(database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    settings = AppViewSettings(database_url=database_url, search_dir=tmp_path, rate_limit=0, port=0, search_processes=0)
    async with serving(settings) as running:
        yield running


class Network:
    """Accounts that write, and an indexer that reads them."""

    def __init__(self, store: Store, url: str) -> None:
        self.store, self.url = store, url
        self.repos = {did: Repo(did) for did in (ALICE, BOB, EVE)}
        self._seqs = count(1)

    async def commit(self, did: str, *ops: tuple[str, str, dict[str, Any] | None]) -> None:
        await self._feed(self.repos[did].commit(next(self._seqs), ops))

    async def account(self, did: str, status: str) -> None:
        active = status == "active"
        await self._feed(account(next(self._seqs), active=active, status=None if active else status, did=did))
        # It was read whole since.
        self.execute("UPDATE repositories SET desynced = NULL")

    async def _feed(self, frame: bytes) -> None:
        parsed = parse(frame, Scope(("ac.foundation.dataset.",), set(self.repos)))
        applied = await self.store.apply([Item(event, frame, parsed.seq) for event in parsed.events], parsed.seq)
        assert (applied.quarantined, applied.waiting) == (0, 0)

    def execute(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def age(self, days: int) -> None:
        """Everything that happened did so *days* earlier."""
        self.execute("UPDATE changes SET at = at - %s * interval '1 day'", days)


@pytest.fixture
async def network(database_url: str) -> AsyncIterator[Network]:
    store = await Store.open(database_url, "relay.example")
    network = Network(store, database_url)
    for did in network.repos:
        network.execute("INSERT INTO repositories (did, signing_key) VALUES (%s, %s)", did, multikey(did))
    yield network
    await store.close()


def decoded(frame: str | bytes) -> tuple[dict[str, Any], Any]:
    """A frame as other people's clients read it: the SDK for Python, and beneath it libipld."""
    assert isinstance(frame, bytes)
    sdk = pytest.importorskip("atproto_subscription.frames")
    read = sdk.Frame.from_bytes(frame)
    if read.is_error:
        return {"op": -1}, {"error": read.body.error, "message": read.body.message}
    _, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(frame, atjson_mode=True)
    assert breaches(read.type, body) == ()
    return {"op": 1, "t": read.type}, read.body


@dataclass
class Copy:
    """A copy of the index, made of messages; it does what the lexicon says, and no more."""

    cursor: int | None = None
    records: dict[str, tuple[str, Any, bool]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)

    def take(self, frame: str | bytes) -> None:
        header, body = decoded(frame)
        assert header["op"] == 1, body
        if header["t"] == "#info":
            self.infos.append(body["name"])
            return
        assert body["seq"] > (self.cursor or 0)
        self.cursor = body["seq"]
        if header["t"] == "#account":
            self.told.append(f"{body['did'][8]} {body.get('status', 'active')}")
            if not body["active"]:
                self.records = {
                    uri: it for uri, it in self.records.items() if not uri.startswith(f"at://{body['did']}/")
                }
            return
        self.told.append(f"{body['action']} {body['rkey']}")
        if body["action"] == "delete":
            self.records.pop(body["uri"], None)
            return
        self.records[body["uri"]] = (body["cid"], body["record"], body["verified"])
        # Proof enough without asking anybody: what came has the CID that it says.
        assert cbrrr.CID.decode(body["cid"]) == cbrrr.CID(cid(cbrrr.encode_dag_cbor(body["record"])))

    async def follow(self, connection: ClientConnection, last: str) -> Copy:
        """Take messages up to one that tells of *last*."""
        async with asyncio.timeout(60):
            while not self.told or self.told[-1] != last:
                self.take(await connection.recv())
        return self


def held(network: Network) -> dict[str, tuple[str, Any, bool]]:
    """What the index shows."""
    rows = network.execute(
        "SELECT uri, cid, record, verified_at IS NOT NULL FROM records r"
        " JOIN repositories a ON a.did = r.did AND a.status = 'active'"
    )
    return {uri: (cid, record, verified) for uri, cid, record, verified in rows}


async def closing(connection: ClientConnection) -> tuple[list[bytes], ConnectionClosed]:
    """What still comes until the connection is closed, and how it is."""
    frames = []
    async with asyncio.timeout(60):
        while True:
            try:
                frames.append(await connection.recv(decode=False))
            except ConnectionClosed as closed:
                return frames, closed


# --- What comes


async def test_what_happens_comes_as_it_happens(service: Service, network: Network) -> None:
    """From now on without a cursor, from the beginning with 0, and after a message with its number."""
    await network.commit(ALICE, ("create", f"{DATASET}/a", dataset("A")), ("create", f"{SCHEMA}/s", schema()))
    async with service.subscribe() as live, service.subscribe(0) as whole, service.subscribe(1) as rest:
        await network.commit(ALICE, ("update", f"{DATASET}/a", dataset("B")))
        await network.commit(ALICE, ("delete", f"{SCHEMA}/s", None))
        following = Copy()
        assert (await following.follow(live, "delete s")).told == ["update a", "delete s"]
        await network.account(ALICE, "takendown")
        assert (await following.follow(live, "a takendown")).records == {}
        await network.account(ALICE, "active")
        assert (await following.follow(live, "create a")).told[-2:] == ["a active", "create a"]
        await network.commit(BOB, ("create", f"{DATASET}/end", dataset()))
        await following.follow(live, "create end")
        for late in (await Copy().follow(whole, "create end"), await Copy().follow(rest, "create end")):
            assert late.told[-6:] == ["update a", "delete s", "a takendown", "a active", "create a", "create end"]
            assert late.records == following.records == held(network)
        cid_, record, verified = following.records[f"at://{ALICE}/{DATASET}/a"]
        assert (record, verified, cid_[:7]) == (dataset("B"), True, "bafyrei")


async def test_a_day_away(service: Service, network: Network) -> None:
    """Who comes back after a day, and six more, with the last number it had, has missed nothing."""
    copy = Copy()
    await network.commit(ALICE, ("create", f"{DATASET}/before", dataset()))
    async with service.subscribe(0) as connection:
        await copy.follow(connection, "create before")
    for n in range(7):
        network.age(1)
        await network.store.prune_changes()
        await network.commit(ALICE, ("create", f"{DATASET}/{n}", dataset(str(n))))
    async with service.subscribe(copy.cursor) as connection:
        await network.commit(ALICE, ("create", f"{DATASET}/after", dataset()))
        await copy.follow(connection, "create after")
    assert copy.told == ["create before", *(f"create {n}" for n in range(7)), "create after"]
    assert copy.infos == []
    assert copy.records == held(network)


async def test_too_long_away(service: Service, network: Network) -> None:
    """Who was away for more than a week is told so, and goes on with the oldest change that is kept."""
    await network.commit(ALICE, ("create", f"{DATASET}/old", dataset()), ("create", f"{DATASET}/older", dataset()))
    network.age(8)
    await network.commit(ALICE, ("create", f"{DATASET}/new", dataset()))
    await network.store.prune_changes()
    for cursor, infos in ((1, ["OutdatedCursor"]), (2, []), (0, [])):
        async with service.subscribe(cursor) as connection:
            copy = await Copy().follow(connection, "create new")
            assert (copy.told, copy.infos) == (["create new"], infos)
    # And when nothing is left at all.
    network.age(8)
    await network.store.prune_changes()
    async with service.subscribe(1) as connection, service.subscribe(3) as recent:
        await network.commit(ALICE, ("create", f"{DATASET}/now", dataset()))
        for each, infos in ((connection, ["OutdatedCursor"]), (recent, [])):
            copy = await Copy().follow(each, "create now")
            assert (copy.told, copy.infos) == (["create now"], infos)


@pytest.mark.parametrize("seed", range(3))
async def test_a_copy_is_equal(seed: int, service: Service, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens, copies end up equal to the index: that which follows, that which comes and goes, a late one."""
    monkeypatch.setattr(event_stream, "_RECENT", 20_000)
    chance = random.Random(seed)
    states = dict.fromkeys(network.repos, "active")
    following, leaving = Copy(), Copy(cursor=0)
    async with service.subscribe() as live:
        for n in range(120):
            did = chance.choice([ALICE, BOB])
            repo = network.repos[did]
            if chance.random() < 0.15:
                states[did] = chance.choice(["active", "active", "deactivated", "takendown"])
                await network.account(did, states[did])
            elif chance.random() < 0.6 or not repo.records:
                await network.commit(did, ("create", f"{DATASET}/{n}", dataset(str(n), description="x" * 500)))
            else:
                path = chance.choice(sorted(repo.records))
                action = chance.choice(["update", "delete"])
                await network.commit(did, (action, path, dataset(f"{n}!") if action == "update" else None))
            if n % 20 == 7:
                async with service.subscribe(leaving.cursor) as connection:
                    leaving.take(await connection.recv())
        for did in states:
            await network.account(did, "active")
            await network.account(did, "deactivated" if did == BOB else "active")
        await network.commit(EVE, ("create", f"{DATASET}/last", dataset()))
        await following.follow(live, "create last")
    for copy in (leaving, late := Copy(cursor=0)):
        async with service.subscribe(copy.cursor) as connection:
            await copy.follow(connection, "create last")
    assert len(held(network)) > 10
    assert following.records == held(network)
    assert leaving.records == held(network)
    assert late.records == held(network)


async def test_nothing_of_a_hidden_account(service: Service, network: Network) -> None:
    """Of an account that is hidden, nobody is sent a record, nor what became of one: but that it is hidden."""
    await network.commit(ALICE, ("create", f"{DATASET}/a", dataset()), ("create", f"{DATASET}/b", dataset()))
    async with service.subscribe() as live:
        await network.account(ALICE, "deactivated")
        await network.commit(ALICE, ("update", f"{DATASET}/a", dataset("Hidden")), ("delete", f"{DATASET}/b", None))
        await network.commit(BOB, ("create", f"{DATASET}/end", dataset()))
        assert (await Copy().follow(live, "create end")).told == ["a deactivated", "create end"]
        async with service.subscribe(0) as whole:
            assert (await Copy().follow(whole, "create end")).told == ["a deactivated", "create end"]


async def test_large_records(service: Service, network: Network) -> None:
    """A record of the largest size that the protocol has comes whole, from memory as from the database."""
    async with service.subscribe() as live:
        noise = random.Random(1).randbytes(430_000).hex()
        for n in range(6):
            await network.commit(ALICE, ("create", f"{DATASET}/{n}", dataset(str(n), description=noise)))
        assert (await Copy().follow(live, "create 5")).records == held(network)
    async with service.subscribe(0) as whole:
        assert (await Copy().follow(whole, "create 5")).records == held(network)


async def test_a_database_that_goes_away(service: Service, network: Network, database_url: str) -> None:
    """Who follows gets what happens once it is back; who must read from it is told to come again."""
    await network.commit(ALICE, ("create", f"{DATASET}/a", dataset()))
    allow = allowing(database_url)
    async with service.subscribe() as live:
        await asyncio.to_thread(allow, False)
        with pytest.raises(InvalidStatus) as refused:
            await service.subscribe(0).__aenter__()
        assert refused.value.response.status_code == 503
        await asyncio.to_thread(allow, True)
        await network.store.reopen()
        await network.commit(ALICE, ("create", f"{DATASET}/b", dataset()))
        assert (await Copy().follow(live, "create b")).told == ["create b"]


async def test_a_database_that_goes_away_in_between(
    service: Service, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is reading what was before is told to come again."""
    await network.commit(ALICE, ("create", f"{DATASET}/a", dataset()))
    async with asyncio.timeout(30):
        while not service.stream.end:
            await asyncio.sleep(0)

    async def gone(*_: Any) -> None:
        raise psycopg.OperationalError("the connection is closed")

    with monkeypatch.context() as context:
        context.setattr(Reader, "shown_changes", gone)
        async with service.subscribe(0) as connection:
            (frame,), closed = await closing(connection)
            assert decoded(frame)[1]["error"] == "ServiceUnavailable"
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1013
    async with service.subscribe(0) as connection:
        await Copy().follow(connection, "create a")


# --- Who is too slow, too many, or wrong


async def test_who_is_too_slow_is_cut_off(service: Service, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that do not read get ConsumerTooSlow, and the rest when they come again; one that reads gets everything."""
    monkeypatch.setattr(subscriptions, "_PATIENCE", 2.0)
    monkeypatch.setattr(event_stream, "_RECENT", 100_000)
    failed: asyncio.Queue[str] = asyncio.Queue()
    fail = subscriptions._fail

    async def noted(websocket: Any, name: str, *more: Any) -> None:
        failed.put_nowait(name)
        await fail(websocket, name, *more)

    monkeypatch.setattr(subscriptions, "_fail", noted)
    text = random.Random(1).randbytes(25_000).hex()
    async with AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(service.subscribe(sock=narrow(service.port), max_queue=1)) for _ in range(2)
        ]
        fast = Copy().follow(await stack.enter_async_context(service.subscribe()), "create 59")
        following = asyncio.create_task(fast)
        for n in range(60):
            await network.commit(ALICE, ("create", f"{DATASET}/{n}", dataset(str(n), description=text)))
        copy = await following
        assert copy.told == [f"create {n}" for n in range(60)]
        assert copy.records == held(network)
        async with asyncio.timeout(30):
            assert {await failed.get(), await failed.get()} == {"ConsumerTooSlow"}
        for connection in slow:
            *frames, error = (await closing(connection))[0]
            assert decoded(error)[1]["error"] == "ConsumerTooSlow"
            assert connection.close_code == 1008
            late = Copy()
            for frame in frames:
                late.take(frame)
            assert len(late.told) < 60
            async with service.subscribe(late.cursor) as again:
                await late.follow(again, "create 59")
            assert (late.told, late.records) == (copy.told, copy.records)
    assert failed.empty()
    # What they did not take is not kept for them.
    assert service.stream._size <= 100_000


def narrow(port: int) -> socket.socket:
    """A connection that takes little that its owner does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


async def test_who_falls_behind_for_long_is_cut_off(
    service: Service, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was in step, and then for long is behind what is in memory, is too slow, even if it takes every message."""
    async with service.subscribe() as connection, service.subscribe(0) as resumed:
        await network.commit(ALICE, ("create", f"{DATASET}/0", dataset()))
        for each in (connection, resumed):
            await Copy().follow(each, "create 0")
        monkeypatch.setattr(event_stream, "_RECENT", 0)
        await network.commit(ALICE, ("create", f"{DATASET}/1", dataset()))
        for each in (connection, resumed):
            await Copy().follow(each, "create 1")
        monkeypatch.setattr(subscriptions, "_PATIENCE", -1.0)
        async with service.subscribe(0) as late:
            await network.commit(ALICE, ("create", f"{DATASET}/2", dataset()))
            for each in (connection, resumed):
                (*_, error), _ = await closing(each)
                assert decoded(error)[1]["error"] == "ConsumerTooSlow"
            # It may take its time until it has caught up.
            await Copy().follow(late, "create 2")


async def test_so_many_from_one_address(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 beyond, before there is a WebSocket; who leaves makes room."""
    monkeypatch.setattr(event_stream, "MAX_OF_ADDRESS", 2)
    async with service.subscribe():
        async with service.subscribe():
            await refused(service, 429, "RateLimitExceeded", "your address")
        await left(service, 1)
        async with service.subscribe():
            pass


async def left(service: Service, count: int) -> None:
    """Wait until no more than *count* subscribers are there."""
    async with asyncio.timeout(30):
        while service.stream.subscribers > count:
            await asyncio.sleep(0)


async def refused(service: Service, status: int, name: str, says: str, path: str | None = None) -> None:
    """That opening a WebSocket is answered with an error of XRPC's form."""
    with pytest.raises(InvalidStatus) as raised:
        await connect(service.url if path is None else f"ws://127.0.0.1:{service.port}{path}", proxy=None).__aenter__()
    response = raised.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    error = httpx.Response(200, content=bytes(response.body or b"")).json()
    assert (set(error), error["error"]) == ({"error", "message"}, name)
    assert says in error["message"]


@pytest.mark.parametrize("cursor", ["x", "", "-1", "1.5", "9" * 30, "1&cursor=2", "%00"])
async def test_a_wrong_cursor(cursor: str, service: Service) -> None:
    """400, before there is a WebSocket, with the parameter's name in front."""
    await refused(service, 400, "InvalidRequest", "cursor", f"/xrpc/{NSID}?cursor={cursor}")


async def test_other_methods(service: Service) -> None:
    """A query is none, and what does not exist is not implemented."""
    await refused(service, 400, "InvalidRequest", "GET", f"/xrpc/{PREFIX}getStatus")
    await refused(service, 501, "MethodNotImplemented", "no method", f"/xrpc/{PREFIX}subscribeNothing")


async def test_without_a_websocket(service: Service) -> None:
    """A plain request is told what to do, and with which header."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        for response in (await client.get(f"/xrpc/{NSID}"), await client.post(f"/xrpc/{NSID}")):
            assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")
            assert response.json()["error"] == "InvalidRequest"
            assert "WebSocket" in response.json()["message"]


async def test_a_cursor_of_the_future(service: Service, network: Network) -> None:
    """Is answered with an error, and the end: whoever has it, has it from elsewhere."""
    await network.commit(ALICE, ("create", f"{DATASET}/a", dataset()))
    for cursor in (2, 2**53):
        async with service.subscribe(cursor) as connection:
            (frame,), closed = await closing(connection)
            assert decoded(frame)[0] == {"op": -1}
            assert decoded(frame)[1]["error"] == "FutureCursor"
            assert closed.rcvd is not None
            assert (closed.rcvd.code, closed.rcvd.reason) == (1008, "FutureCursor")
    await left(service, 0)


async def test_opening_counts_as_a_request(service: Service) -> None:
    """Whoever opens one WebSocket after the other is refused as is who asks too often."""
    settings = service.settings.model_copy(update={"rate_limit": 2})
    async with serving(settings) as limited:
        for _ in range(2):
            async with limited.subscribe():
                pass
        await refused(limited, 429, "RateLimitExceeded", "too many requests")


async def test_what_a_subscriber_sends_means_nothing(service: Service, network: Network) -> None:
    """It is read and forgotten; what is long ends the connection."""
    async with service.subscribe() as connection:
        for _ in range(100):
            await connection.send("hello")
        await network.commit(ALICE, ("create", f"{DATASET}/a", dataset()))
        assert (await Copy().follow(connection, "create a")).told == ["create a"]
        await connection.send(b"x" * 2000)
        _, closed = await closing(connection)
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1009


async def test_it_is_documented(service: Service) -> None:
    """The page has it with its messages; the OpenAPI document, which knows no WebSockets, has not."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        page = (await client.get("/docs")).text
        assert 'id="subscribeChanges"' in page
        for name in load_lexicons().subscriptions()[0].messages:
            assert f"<code>{name}</code>" in page
        assert f"/xrpc/{NSID}" not in (await client.get("/openapi.json")).json()["paths"]
        async with service.subscribe():
            assert "\natdata_subscribers 1\n" in (await client.get("/metrics")).text


# --- Stopping


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
async def test_a_service_that_is_stopped(network: Network, database_url: str, tmp_path: Path) -> None:
    """SIGTERM closes every subscription as a restart does, also one that does not read, and leaves no traceback."""
    await network.commit(ALICE, *(("create", f"{DATASET}/{n}", dataset(description="x" * 20_000)) for n in range(50)))
    environment = {**os.environ, "ATDATA_DATABASE_URL": database_url, "ATDATA_SEARCH_DIR": str(tmp_path)}
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "atdata", "appview", "run", "--port", "0"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert program.stderr is not None
        port = 0
        while not port:
            line = (await program.stderr.readline()).decode()
            assert line, "the program ended"
            port = int(line.rpartition(":")[2]) if "serving " in line else 0
        url = f"ws://127.0.0.1:{port}/xrpc/{NSID}"
        async with (
            connect(url, proxy=None) as live,
            connect(url + "?cursor=0", proxy=None, sock=narrow(port), close_timeout=1),
        ):
            await network.commit(ALICE, ("create", f"{DATASET}/last", dataset()))
            await Copy().follow(live, "create last")
            with pytest.raises(InvalidStatus):
                await connect(url + "?cursor=x", proxy=None).__aenter__()
            program.send_signal(signal.SIGTERM)
            _, closed = await closing(live)
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1012
        assert await asyncio.wait_for(program.wait(), 30) == 0
        said = (await program.stderr.read()).decode()
        assert "Traceback" not in said
        assert "handshake" not in said
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
