"""The WebSocket against real servers on this machine, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import zstandard
from conformance import shared_folder
from frames import commit
from websockets.asyncio.server import ServerConnection, serve

from atdata.errors import ConfigError
from atdata_indexer.events import Scope, parse
from atdata_indexer.stream import Stream, Timing, subscription_url

QUICK = Timing(connect=2, ping=0.05, silent=0.3, backoff_first=0.01, backoff_most=0.02, healthy=60)


@asynccontextmanager
async def relay(handler: Callable[[ServerConnection], object], **options: object) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, **options) as server:  # type: ignore[arg-type]
        host, port = server.sockets[0].getsockname()[:2]
        yield f"ws://{host}:{port}"


@asynccontextmanager
async def raw_server(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that speaks whatever *handler* does; leaves no connection behind."""
    visits: set[asyncio.Task[None]] = set()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        visits.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await handler(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()
        visits.discard(task)

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"ws://{host}:{port}"
        server.close()
        # One that was accepted a moment ago has yet to begin.
        await asyncio.sleep(0)
        for task in list(visits):
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)


async def read(stream: Stream, count: int) -> list[bytes]:
    """The first *count* frames."""
    frames: list[bytes] = []
    async with asyncio.timeout(20):
        async for batch in stream.batches():
            frames += batch
            if len(frames) >= count:
                return frames
    raise AssertionError("the stream ended")


@pytest.mark.parametrize(
    ("relay", "url"),
    [
        ("bsky.network", "wss://bsky.network"),
        ("wss://bsky.network/", "wss://bsky.network"),
        ("https://pds.example.com", "wss://pds.example.com"),
        ("http://localhost:2583", "ws://localhost:2583"),
        ("ws://[::1]:80", "ws://[::1]:80"),
    ],
)
def test_ways_to_name_a_relay(relay: str, url: str) -> None:
    """A host name means wss; http and https do as well as ws and wss."""
    assert subscription_url(relay) == f"{url}/xrpc/com.atproto.sync.subscribeRepos"


@pytest.mark.parametrize("relay", ["ftp://x", "ws://", "wss://x:port", "", "wss://x?y=z", "file:///etc/passwd"])
def test_what_is_no_relay(relay: str) -> None:
    """An operator's slip is a sentence, not a traceback."""
    with pytest.raises(ConfigError, match="is no host"):
        subscription_url(relay)


async def test_the_real_capture_over_a_socket() -> None:
    """All 150 real frames arrive whole and in order, and resuming asks for what comes after the last one."""
    packed = (shared_folder() / "conformance/relay-capture/frames.bin.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    frames, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    asked: list[str] = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(socket.request.path.partition("?")[2])
        seq = int(asked[-1].partition("=")[2] or 0)
        for frame in frames:
            if (parse(frame, Scope(("-",), ())).seq or 0) > seq:
                await socket.send(frame)
                # Cut in the middle of things, once.
                if len(asked) == 1 and frame is frames[70]:
                    await socket.close(1001)
                    return
        await socket.wait_closed()

    seen: list[int] = []
    async with relay(handler) as url:
        stream = Stream(url, cursor=lambda: seen[-1] if seen else None, timing=QUICK)
        async with asyncio.timeout(20):
            async for batch in stream.batches():
                seen += [parse(frame, Scope(("-",), ())).seq or 0 for frame in batch]
                if len(seen) >= 150:
                    break
    assert seen == list(range(31527015322, 31527015472))
    assert asked == ["", "cursor=31527015392"]
    assert stream.connections == 2


async def test_fragmented_messages_are_put_together() -> None:
    """A message in several WebSocket frames is one firehose frame."""

    async def handler(socket: ServerConnection) -> None:
        await socket.send([b"one ", b"two ", b"three"])
        await socket.send(b"four")
        await socket.wait_closed()

    async with relay(handler) as url:
        assert await read(Stream(url, cursor=lambda: None, timing=QUICK), 2) == [b"one two three", b"four"]


async def test_a_frame_that_is_too_large_is_stepped_over() -> None:
    """It would be met again after every reconnect: the next subscription starts behind it."""
    good = [commit(1, []), commit(3, [])]
    asked: list[str] = []

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(socket.request.path.partition("?")[2])
        cursor = int(asked[-1].partition("=")[2] or 0)
        for seq, frame in ((1, good[0]), (2, b"x" * 3000), (3, good[1])):
            if seq > cursor:
                await socket.send(frame)
        await socket.wait_closed()

    seen: list[bytes] = []
    async with relay(handler) as url:
        stream = Stream(
            url,
            cursor=lambda: parse(seen[-1], Scope(("-",), ())).seq if seen else None,
            timing=QUICK,
            max_frame=2000,
        )
        async with asyncio.timeout(20):
            async for batch in stream.batches():
                seen += batch
                if len(seen) == 2:
                    break
    assert seen == good
    assert stream.oversize == 1
    assert asked == ["", "cursor=2"]


async def test_silence_is_asked_and_then_given_up() -> None:
    """A relay that answers pings is kept however quiet; one that answers nothing is left."""
    pings = 0

    async def quiet(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with relay(quiet) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(stream.batches())
        assert stream.connections == 1

    async def dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        key = next(line for line in (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n") if b"Key" in line)
        writer.write(_accept(key.split(b": ")[1]))
        while await reader.read(100):
            pings += 1

    async with raw_server(dead) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK)
        task = asyncio.ensure_future(anext(stream.batches()))
        async with asyncio.timeout(20):
            while stream.connections < 2:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert pings > 0


def _accept(key: bytes) -> bytes:
    import base64
    import hashlib

    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "it answered HTTP 502, not a WebSocket"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak WebSocket"),
        (b"", "the connection was cut before it was open"),
    ],
)
async def test_what_is_no_websocket(answer: bytes, trouble: str) -> None:
    """The trouble names the host and what it did, and the stream tries again."""
    visits = asyncio.Semaphore(0)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        visits.release()

    async with raw_server(handler) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK)
        task = asyncio.ensure_future(anext(stream.batches()))
        async with asyncio.timeout(20):
            for _ in range(3):
                await visits.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert stream.trouble is not None
    assert trouble in stream.trouble
    assert url.removeprefix("ws://") in stream.trouble
    assert not stream.connected


async def test_a_relay_that_comes_back_is_read_again() -> None:
    """An unreachable relay is only trouble until it answers."""

    async def handler(socket: ServerConnection) -> None:
        await socket.send(b"hello")
        await socket.wait_closed()

    # A port that nobody listens on, until somebody does.
    probe = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    await probe.wait_closed()
    stream = Stream(f"ws://127.0.0.1:{port}", cursor=lambda: None, timing=QUICK)
    task = asyncio.ensure_future(read(stream, 1))
    async with asyncio.timeout(20):
        while stream.trouble is None:
            await asyncio.sleep(0.01)
        async with serve(handler, "127.0.0.1", port):
            assert await task == [b"hello"]
    assert stream.trouble is None


async def test_a_slow_reader_holds_the_socket_up() -> None:
    """What waits to be read is bounded: the relay's own sending comes to a stop."""
    sent = 0

    async def handler(socket: ServerConnection) -> None:
        nonlocal sent
        for _ in range(200):
            await socket.send(b"x" * 1_000_000)
            sent += 1
        await socket.wait_closed()

    async with relay(handler) as url:
        batches = Stream(url, cursor=lambda: None, timing=QUICK).batches()
        async with asyncio.timeout(30):
            first = await anext(batches)
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 60
            total = len(first)
            while total < 200:
                total += len(await anext(batches))
        await batches.aclose()
    assert total == 200
