"""Jetstream's messages made to order, a Jetstream that sends them, and hosts that prove what is true."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cbrrr
from frames import DID, Op, Repo, block, car, cid, did_document, rev, signed, tree
from web import Reply, Web
from web import serve as serve_web
from websockets.asyncio.server import Server, ServerConnection, serve


def message(kind: str, body: dict[str, Any] | None = None, *, at: int, did: str = DID) -> bytes:
    """A message of any *kind*, seen *at* microseconds since 1970."""
    return json.dumps({"did": did, "time_us": at, "kind": kind, **({kind: body} if body else {})}).encode()


def commit(op: Op, n: int | str, *, at: int, did: str = DID, **changes: Any) -> bytes:
    """What Jetstream says of one operation of the commit *n*: an action, a path, and the record as JSON or a block."""
    action, path, record = op
    collection, _, rkey = path.partition("/")
    body = {"rev": n if isinstance(n, str) else rev(n), "operation": action, "collection": collection, "rkey": rkey}
    if record is not None:
        data = record if isinstance(record, bytes) else block(record)
        body["record"] = cbrrr.decode_dag_cbor(data, atjson_mode=True)
        body["cid"] = cbrrr.CID(cid(data)).encode()
    return message("commit", body | changes, at=at, did=did)


def account(active: bool, *, at: int, did: str = DID, **more: Any) -> bytes:
    """An account's state."""
    body = {"active": active, "did": did, "seq": 1, "time": "2026-01-01T00:00:00.000Z", **more}
    return message("account", body, at=at, did=did)


def now() -> int:
    """The time as Jetstream counts it."""
    return time.time_ns() // 1000


class Jetstream:
    """Sends *messages* to whoever subscribes, those of its collections and after its cursor; more can be added."""

    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        self.messages = list(messages)
        self.queries: list[dict[str, list[str]]] = []
        self.url = ""
        self.server: Server | None = None
        self._connections: dict[ServerConnection, asyncio.Task[Any]] = {}
        self._more = asyncio.Condition()

    async def send(self, *messages: bytes) -> None:
        async with self._more:
            self.messages += messages
            self._more.notify_all()

    async def stop(self) -> None:
        """Be out of reach from now on."""
        assert self.server is not None
        self.server.close(close_connections=False)
        await self.cut()

    async def cut(self) -> None:
        """End every connection."""
        for connection, task in self._connections.copy().items():
            connection.transport.abort()
            task.cancel()

    async def handle(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        url = urlsplit(socket.request.path)
        assert url.path == "/subscribe"
        query = parse_qs(url.query)
        self.queries.append(query)
        task = asyncio.current_task()
        assert task is not None
        self._connections[socket] = task
        # Without a cursor the real one sends what comes from now on; so that nothing depends on who is first, this one
        # begins at its beginning.
        cursor = int(query.get("cursor", ["0"])[0])
        prefixes = tuple(wanted.removesuffix("*") for wanted in query["wantedCollections"])
        at = 0
        try:
            while True:
                for data in self.messages[at:]:
                    try:
                        body = json.loads(data)
                        is_wanted = body["time_us"] >= cursor and (
                            body["kind"] != "commit" or body["commit"]["collection"].startswith(prefixes)
                        )
                    except (ValueError, KeyError, TypeError):
                        is_wanted = True
                    if is_wanted:
                        await socket.send(data, text=True)
                at = len(self.messages)
                async with self._more:
                    await self._more.wait_for(lambda at=at: len(self.messages) > at)
        finally:
            del self._connections[socket]


@asynccontextmanager
async def jetstream(messages: Sequence[bytes] = ()) -> AsyncIterator[Jetstream]:
    """A Jetstream on loopback until the block ends."""
    source = Jetstream(messages)
    async with serve(source.handle, "127.0.0.1", 0, max_size=None) as server:
        host, port = server.sockets[0].getsockname()
        source.url, source.server = f"ws://{host}:{port}", server
        try:
            yield source
        finally:
            await source.cut()


class Hosted(Repo):
    """A repository whose host proves what it holds."""

    def __init__(self, did: str = DID) -> None:
        super().__init__(did)
        self._blocks: dict[bytes, bytes] = {}

    def commit_body(self, seq: int, ops: Sequence[Op], **more: Any) -> dict[str, Any]:
        for _, _, record in ops:
            if record is not None:
                data = record if isinstance(record, bytes) else block(record)
                self._blocks[cid(data)] = data
        return super().commit_body(seq, ops, **more)

    @property
    def head(self) -> bytes:
        """Its signed commit."""
        assert self.rev is not None
        return signed(self.did, self.rev, tree(self.records)[0])

    def whole(self) -> bytes:
        """All of it, as a CAR file."""
        head = self.head
        return car(cid(head), [head, *tree(self.records)[1], *(self._blocks[c] for c in set(self.records.values()))])


class Host:
    """A PDS of *repos*, the directory of their DIDs, and of a relay what it `lists`. Waits while it is not `open`."""

    def __init__(self, repos: Sequence[Hosted]) -> None:
        self.repos = {repo.did: repo for repo in repos}
        self.open = threading.Event()
        self.open.set()
        self.lists = True
        self.web = Web("")

    def asked_for(self, method: str) -> list[dict[str, list[str]]]:
        """The parameters of every question for *method* that came."""
        urls = [urlsplit(path) for path in self.web.requests]
        return [parse_qs(url.query) for url in urls if url.path == f"/xrpc/{method}"]

    def answer(self, path: str) -> Reply:
        url = urlsplit(path)
        if url.path.startswith("/did:"):
            return _json(did_document(url.path[1:], self.web.url))
        query = parse_qs(url.query)
        method = url.path.removeprefix("/xrpc/")
        if method == "com.atproto.sync.listReposByCollection":
            return _json({"repos": []}) if self.lists else Reply(status=404)
        self.open.wait(30)
        repo = self.repos.get(query["did"][0])
        if repo is None or repo.rev is None:
            return _json({"error": "RepoNotFound", "message": "none"}, 400)
        match method:
            case "com.atproto.sync.getRepo" | "com.atproto.sync.getRecord":
                return Reply(repo.whole())
            case "com.atproto.sync.getLatestCommit":
                return _json({"rev": repo.rev, "cid": cbrrr.CID(cid(repo.head)).encode()})
            case _:
                return Reply(status=404)


@contextmanager
def host(*repos: Hosted) -> Iterator[Host]:
    """A host on loopback until the block ends."""
    source = Host(repos)
    with serve_web(source.answer) as source.web:
        try:
            yield source
        finally:
            source.open.set()


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status)
