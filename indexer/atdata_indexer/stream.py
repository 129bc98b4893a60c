"""The only WebSocket: one subscription to a relay, kept alive, reconnecting where the reader stands.

It runs websockets' Sans-I/O protocol over a plain asyncio transport: the library's own asyncio connection spends most
of its time in per-message flow control, here a read of the socket hands over all the messages it held.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from atdata.errors import ConfigError, NetworkError
from atdata_indexer.events import printable

logger = logging.getLogger(__name__)

#: Frames may be 5 MB by the specification. Larger ones are let in, so that they can be quarantined rather than met
#: again after every reconnect, up to this size; beyond it the connection is closed and the frame stepped over.
MAX_FRAME = 32_000_000

_BUFFER = 16_000_000  # bytes waiting to be read before the socket is paused
_MESSAGE_OPCODES = (Opcode.BINARY, Opcode.TEXT, Opcode.CONT)


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the stream is, in seconds."""

    connect: float = 15.0
    ping: float = 20.0  # silence after which the relay is asked for a sign of life
    silent: float = 60.0  # silence after which the connection counts as dead
    backoff_first: float = 1.0
    backoff_most: float = 30.0
    healthy: float = 60.0  # a connection that lasted this long starts the backoff anew


class Stream:
    """Frames of ``com.atproto.sync.subscribeRepos``, for ever.

        stream = Stream("wss://bsky.network", cursor=lambda: seq)
        async for frames in stream.batches():
            ...

    *cursor* is asked at every (re)connection for the sequence number to go on after; None means from now on.
    `connected` and `trouble` say how it is going. Specification: https://atproto.com/specs/event-stream
    """

    def __init__(
        self, relay: str, *, cursor: Callable[[], int | None], timing: Timing = Timing(), max_frame: int = MAX_FRAME
    ) -> None:
        self.url = subscription_url(relay)
        self.host = urlsplit(self.url).netloc
        self.connected = False
        self.trouble: str | None = None  # why it is not connected
        self.connections = 0
        self.oversize = 0  # frames stepped over because they were beyond max_frame
        self._cursor = cursor
        self._timing = timing
        self._max_frame = max_frame

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Lists of whole frames in order, each all that arrived since the last one. Ends only by cancellation."""
        delay_limit = self._timing.backoff_first
        step_over = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            cursor = self._cursor()
            connection = None
            try:
                connection = await self._connect(cursor if cursor is None else cursor + step_over)
                self.connected, self.trouble = True, None
                self.connections += 1
                logger.info("connected to %s, cursor %s", self.host, "none" if cursor is None else cursor)
                async for frames in connection.batches(self._timing):
                    step_over = 0
                    yield frames
                reason = connection.why_closed()
                if connection.oversize:
                    # The frame came right after the last one that was read, or after those stepped over already.
                    step_over += 1
                    self.oversize += 1
            except (OSError, NetworkError, TimeoutError) as e:
                reason = str(e) or type(e).__name__
            finally:
                self.connected = False
                if connection is not None:
                    connection.abort()
            if loop.time() - started >= self._timing.healthy:
                delay_limit = self._timing.backoff_first
            # Full jitter spreads the readers of a relay that comes back: all of them lost it at the same moment.
            delay = random.uniform(0, delay_limit)  # noqa: S311
            delay_limit = min(delay_limit * 2, self._timing.backoff_most)
            self.trouble = f"cannot read {self.host}: {reason}"
            logger.warning("%s; trying again in %.1f s", self.trouble, delay)
            await asyncio.sleep(delay)

    async def _connect(self, cursor: int | None) -> _Connection:
        url = self.url if cursor is None else f"{self.url}?cursor={cursor}"
        uri = parse_uri(url)
        protocol = ClientProtocol(uri, max_size=self._max_frame)
        context = ssl.create_default_context() if uri.secure else None
        async with asyncio.timeout(self._timing.connect):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(protocol), uri.host, uri.port, ssl=context
            )
            try:
                await connection.opened
            except BaseException:
                connection.abort()
                raise
        return connection


def subscription_url(relay: str) -> str:
    """The subscription's URL at *relay*: a host name, or an http(s) or ws(s) URL. Raises ConfigError for anything else.

    >>> subscription_url("bsky.network")
    'wss://bsky.network/xrpc/com.atproto.sync.subscribeRepos'
    """
    text = relay if "://" in relay else f"wss://{relay}"
    try:
        parts = urlsplit(text)
        scheme = {"ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}[parts.scheme]
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError
        _ = parts.port
    except (KeyError, ValueError):
        raise ConfigError(
            f"relay {relay!r} is no host: give one like wss://bsky.network or ws://localhost:2583"
        ) from None
    return f"{scheme}://{parts.netloc}/xrpc/com.atproto.sync.subscribeRepos"


class _Connection(asyncio.Protocol):
    """One WebSocket connection: bytes in, whole messages out, the socket paused while too many wait."""

    def __init__(self, protocol: ClientProtocol) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.oversize = False
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._frames: list[bytes] = []
        self._waiting = 0
        self._fragments: list[bytes] = []
        self._paused = False
        self._lost: Exception | None = None
        self._closed = False
        self._wake = asyncio.Event()
        self._heard = loop.time()
        self._loop = loop

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._protocol.receive_data(data)
        self._flush()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                if event.opcode in _MESSAGE_OPCODES:
                    self._receive(event)
            elif isinstance(event, Response):
                self._open()
        if self._protocol.handshake_exc is not None:
            self._open()
        if isinstance(self._protocol.parser_exc, PayloadTooBig):
            self.oversize = True
        if self._protocol.state is not State.OPEN and self.opened.done():
            self._end(None)

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    # What the stream calls.

    async def batches(self, timing: Timing) -> AsyncIterator[list[bytes]]:
        while True:
            if self._frames:
                frames, self._frames, self._waiting = self._frames, [], 0
                if self._paused and self._transport is not None and not self._closed:
                    self._paused = False
                    self._transport.resume_reading()
                yield frames
                # The time spent on that batch, perhaps with the socket paused, says nothing about the relay.
                self._heard = self._loop.time()
                continue
            if self._closed:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(timing.ping):
                    await self._wake.wait()
            except TimeoutError:
                if self._loop.time() - self._heard >= timing.silent:
                    raise NetworkError(f"nothing heard for {timing.silent:.0f} s") from None
                self._protocol.send_ping(b"")
                self._flush()

    def why_closed(self) -> str:
        if self.oversize:
            return "a frame is too large to take in"
        if self._lost is not None:
            return str(self._lost) or type(self._lost).__name__
        if (close := self._protocol.close_rcvd) is not None:
            reason = f" ({printable(close.reason)})" if close.reason else ""
            return f"closed by the relay with code {close.code}{reason}"
        return "the connection was cut"

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self.opened.done():
            self.opened.cancel()

    def _receive(self, frame: Frame) -> None:
        data = bytes(frame.data)
        if not frame.fin or frame.opcode is Opcode.CONT:
            self._fragments.append(data)
            if not frame.fin:
                return
            data = b"".join(self._fragments)
            self._fragments.clear()
        self._frames.append(data)
        self._waiting += len(data)
        self._wake.set()
        if self._waiting > _BUFFER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _open(self) -> None:
        if self.opened.done():
            return
        error = self._protocol.handshake_exc
        if error is None:
            self.opened.set_result(None)
        elif isinstance(error, InvalidStatus):
            self.opened.set_exception(NetworkError(f"it answered HTTP {error.response.status_code}, not a WebSocket"))
        else:
            self.opened.set_exception(NetworkError(f"it does not speak WebSocket: {error}"))

    def _flush(self) -> None:
        assert self._transport is not None
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()

    def _end(self, exc: Exception | None) -> None:
        if exc is not None and self._lost is None:
            self._lost = exc
        self._closed = True
        self._wake.set()
        if not self.opened.done():
            self.opened.set_exception(NetworkError("the connection was cut before it was open"))
