"""A web server in a thread of its own, for clients that block."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from atdata import network


@dataclass
class Reply:
    """What a path answers with. With *cut*, the connection ends after so many bytes of the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


Answer = Callable[[str], Reply]


@dataclass
class Web:
    """A running server, and what was asked of it."""

    url: str
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve(answer: Answer) -> Iterator[Web]:
    """Serve on loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            web.requests.append(self.path)
            web.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = answer(self.path)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that goes away in the middle is part of some tests

    with Server(("127.0.0.1", 0), Handler) as server:
        web = Web(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            _forget_connections()  # which the library keeps open, and for which the server would wait
            server.shutdown()
            thread.join()


def _forget_connections() -> None:
    for is_guarded in (True, False):
        network._client(is_guarded).close()
    network._client.cache_clear()


@dataclass
class Drip:
    """A running server that takes its time, and whether anybody waited for all of an answer."""

    url: str
    was_waited_for: bool = False


@contextmanager
def dripping(begin: bytes, drop: bytes, end: bytes) -> Iterator[Drip]:
    """A server that answers with *begin*, with a *drop* every tenth of a second, a hundred times over, and *end*."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(begin)
        for _ in range(100):
            connection.sendall(drop)
            if over.wait(0.1):
                return
        connection.sendall(end)
        drip.was_waited_for = True

    def run() -> None:
        while not over.is_set():
            connection, _ = listener.accept()
            # That the client has gone is what should happen.
            with connection, suppress(OSError):
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        drip = Drip(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield drip
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()
            _forget_connections()
