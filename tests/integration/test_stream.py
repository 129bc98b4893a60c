"""The WebSocket against real servers on this machine, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard
from conformance import shared_folder
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.server import ServerConnection, serve
from websockets.utils import accept_key

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
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()
        except asyncio.CancelledError:
            writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        visits.discard(task)

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"ws://{host}:{port}"
        # A visit that was accepted a moment ago begins some turns of the loop from now; asyncio loses its socket when
        # the server is closed before that.
        for _ in range(10):
            await asyncio.sleep(0)
        server.close()
        for task in list(visits):
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)


async def read(stream: Stream, count: int) -> list[bytes]:
    """The first *count* frames."""
    frames: list[bytes] = []
    async with asyncio.timeout(20), contextlib.aclosing(stream.batches()) as batches:
        async for batch in batches:
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


async def test_a_frame_that_is_too_large_is_read_past() -> None:
    """It costs neither the connection nor what comes behind it, and is counted, also after the next reconnect."""
    sent = [b"one", b"x" * 3_000_000, b"two"]

    async def handler(socket: ServerConnection) -> None:
        for frame in sent:
            await socket.send(frame)
        if stream.connections > 1:
            await socket.wait_closed()

    async with relay(handler) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK, max_frame=2_000_000)
        assert await read(stream, 4) == [b"one", b"two"] * 2
    assert stream.oversize == 2


async def test_frames_that_come_with_the_handshake() -> None:
    """The answer to the handshake may arrive in pieces, and the first frames in one piece with its end."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await handshake(reader)
        for at in range(0, len(answer) - 2, 7):
            writer.write(answer[at : min(at + 7, len(answer) - 2)])
            await asyncio.sleep(0.001)
        writer.write(answer[-2:] + b"\x82\x05first\x82\x06sec")
        await asyncio.sleep(0.001)
        writer.write(b"ond")
        await reader.read()

    async with raw_server(handler) as url:
        assert await read(Stream(url, cursor=lambda: None, timing=QUICK), 2) == [b"first", b"second"]


async def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wss, to a relay that proves its name."""

    async def handler(socket: ServerConnection) -> None:
        for n in range(100):
            await socket.send(bytes([n]) * 10_000)
        await socket.wait_closed()

    async with relay(handler, ssl=certificate(tmp_path, monkeypatch)) as url:
        port = url.rpartition(":")[2]
        stream = Stream(f"wss://localhost:{port}", cursor=lambda: None, timing=QUICK)
        assert await read(stream, 100) == [bytes([n]) * 10_000 for n in range(100)]
        other = Stream(f"wss://127.0.0.1:{port}", cursor=lambda: None, timing=QUICK)
        trouble = await troubled(other)
    assert "certificate" in trouble


async def test_silence_is_asked_and_then_given_up() -> None:
    """A relay that answers pings is kept however quiet; one that answers nothing is left."""
    pings = 0

    async def quiet(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with relay(quiet) as url:
        # A busy machine may be silent itself for a while.
        stream = Stream(url, cursor=lambda: None, timing=replace(QUICK, silent=1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await anext(stream.batches())
        assert stream.connections == 1

    async def dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        writer.write(await handshake(reader))
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


@pytest.mark.parametrize(
    "frames",
    [
        b"\x82\x7f" + (2**40).to_bytes(8, "big"),
        b"\x02\x01x\x89\x00\x00\x01x\x8a\x00",
    ],
    ids=["one frame", "many fragments"],
)
async def test_a_message_without_an_end_is_left(frames: bytes) -> None:
    """Bytes and pings in the middle of it are no signs of life: the next connection may do better."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await handshake(reader) + b"\x82\x03one" + frames)
        while True:
            writer.write(b"\x00\x01x\x89\x00")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(handler) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK)
        assert await read(stream, 2) == [b"one", b"one"]
        assert await troubled(stream) == f"cannot read {stream.host}: no whole message for 0.3 s"


async def test_pings_are_answered() -> None:
    """Each with its own payload, or the last of several at once: that is how a relay knows its readers."""

    async def handler(socket: ServerConnection) -> None:
        await asyncio.gather(await socket.ping(b"one"), await socket.ping(b"two"))
        await socket.send(b"frame")
        await socket.wait_closed()

    async with relay(handler) as url:
        assert await read(Stream(url, cursor=lambda: None, timing=QUICK), 1) == [b"frame"]


async def test_a_relay_that_breaks_the_protocol() -> None:
    """What it sent before counts, and the trouble says what it did."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await handshake(reader) + b"\x82\x03one\xf2\x03two")
        answers.append(await reader.read())

    answers: list[bytes] = []
    async with raw_server(handler) as url:
        stream = Stream(url, cursor=lambda: None, timing=QUICK)
        assert await read(stream, 2) == [b"one", b"one"]
        assert "breaks the WebSocket protocol: reserved bits are set" in await troubled(stream)
    # A close frame, masked, as the protocol asks.
    assert answers[0][0] == 0x88


async def troubled(stream: Stream) -> str:
    """Read until something goes wrong: what."""

    async def drain() -> None:
        async for _ in stream.batches():
            pass

    task = asyncio.ensure_future(drain())
    async with asyncio.timeout(20):
        while stream.trouble is None:
            await asyncio.sleep(0.01)
    trouble = stream.trouble
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return trouble


async def handshake(reader: asyncio.StreamReader) -> bytes:
    """Read the request for a WebSocket; the answer to it."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = next(line.split(": ")[1] for line in request.split("\r\n") if "-Key" in line)
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
    ).encode()


def certificate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS as localhost, with a fresh authority that clients of this test trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    both = folder / "certificate.pem"
    both.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(both))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "it answered HTTP 502, not a WebSocket"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\n\r\nNot\r\n\r\nhere",
            "it answered HTTP 404, not a WebSocket",
        ),
        (b"HTTP/1.1 403 Forbidden\r\n\r\nuntil the end", "it answered HTTP 403, not a WebSocket"),
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


async def test_a_stalled_reader_gives_signs_of_life() -> None:
    """While the socket is held up, the relay's pings lie unread behind its frames: pongs come without them."""
    pongs = asyncio.Semaphore(0)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await handshake(reader))
        frame = b"\x82\x7f" + (1_000_000).to_bytes(8, "big") + bytes(1_000_000)
        for _ in range(40):
            writer.write(frame)
        # A head of two bytes, a mask of four, no payload.
        while True:
            if (await reader.readexactly(6)).startswith(b"\x8a\x80"):
                pongs.release()

    async with raw_server(handler) as url:
        batches = Stream(url, cursor=lambda: None, timing=QUICK).batches()
        async with asyncio.timeout(20):
            total = len(await anext(batches))
            for _ in range(3):
                await pongs.acquire()
            while total < 40:
                total += len(await anext(batches))
        await batches.aclose()


async def test_tiny_frames_count_for_more_than_their_bytes() -> None:
    """A hostile relay's empty frames are bounded by what they cost us, not by what they weigh."""
    sent = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await handshake(reader) + b"\x82\x00" * 600_000)
        await writer.drain()
        sent.set()
        await reader.read()

    async with raw_server(handler) as url:
        batches = Stream(url, cursor=lambda: None, timing=QUICK).batches()
        async with asyncio.timeout(20):
            first = await anext(batches)
            await sent.wait()
            await asyncio.sleep(0.2)  # in which nothing is to happen
            # One read of the socket, no more.
            assert len(await anext(batches)) <= 262_144 // 2
            assert len(first) <= 262_144 // 2
        await batches.aclose()
