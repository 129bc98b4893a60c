"""A web server on loopback that says, byte for byte, what a test wants said."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[str], Awaitable[bytes] | AsyncGenerator[bytes]]
"""Given the target of a request (`/path?query`): the answer, at once or in pieces."""


@dataclass
class Server:
    """A running server, and what was asked of it."""

    port: int
    url: str
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def response(
    body: bytes | str | Any = b"", status: str = "200 OK", *, length: int | None = None, **headers: str | int
) -> bytes:
    """An answer. A *body* that is not bytes or text becomes JSON. Underscores in names of *headers* are hyphens."""
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def serve(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run a server until the block ends. A connection is closed after an answer in pieces, else kept."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                target = head[0].split(" ")[1]
                server.requests.append(target)
                server.headers.append(dict(line.lower().split(": ", 1) for line in head[1:] if line))
                answered = answer(target)
                if isinstance(answered, AsyncGenerator):
                    async with aclosing(answered):
                        async for piece in answered:
                            writer.write(piece)
                            await writer.drain()
                    break
                writer.write(await answered)
                await writer.drain()
        writer.close()
        tasks.discard(task)

    tasks: set[asyncio.Task[Any]] = set()
    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server = Server(port, f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
