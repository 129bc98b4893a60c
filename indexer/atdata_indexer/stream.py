"""The only WebSocket: one subscription to a relay, kept alive, reconnecting where the reader stands.

websockets' Sans-I/O protocol shakes hands, closes and writes over a plain asyncio transport; what the relay sends is
taken apart by `Messages`. The library's own parser takes a dozen Python calls and three copies a message, half of all
the time from socket to event, and cannot step over a message that is too large.
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
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from atdata.errors import ConfigError, NetworkError
from atdata_indexer.events import printable

logger = logging.getLogger(__name__)

#: Frames may be 5 MB by the specification. Somewhat larger ones are handed on, so that they can be quarantined with
#: their bytes; beyond this size they are read to their end without being kept, and counted.
MAX_FRAME = 8_000_000

# Relays send what they write in pieces of 4 or 10 kB, so that a frame of 5 MB is some thousand fragments.
_MAX_FRAGMENTS = 10_000
_MAX_CONTROLS = 1_000  # in one read of the socket

_BUFFER = 16_000_000  # bytes waiting to be read before the socket is paused
# What a message costs besides its bytes, when it is as small as a hostile relay likes: objects here, events, rows.
_OVERHEAD = 1000
_MAX_UNSENT = 65_536  # bytes of ours that a relay may leave unread before its pings are no longer answered


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the stream is, in seconds."""

    connect: float = 15.0
    ping: float = 20.0  # silence after which the relay is asked for a sign of life; a stalled reader gives one as often
    silent: float = 60.0  # silence, or a message without an end, after which the connection counts as dead
    backoff_first: float = 1.0
    backoff_most: float = 30.0
    healthy: float = 60.0  # a connection that lasted this long starts the backoff anew


class Stream:
    """Frames of ``com.atproto.sync.subscribeRepos``, for ever.

        stream = Stream("wss://bsky.network", cursor=lambda: seq)
        async for frames in stream.batches():
            ...

    *cursor* is asked at every (re)connection for the sequence number to go on after; None means from now on. *url* is
    that of another subscription than the relay's own.
    `connected` and `trouble` say how it is going. Specification: https://atproto.com/specs/event-stream
    """

    def __init__(
        self,
        relay: str,
        *,
        cursor: Callable[[], int | None],
        url: str | None = None,
        timing: Timing = Timing(),
        max_frame: int = MAX_FRAME,
    ) -> None:
        self.url = url or subscription_url(relay)
        self.host = urlsplit(self.url).netloc
        self.connected = False
        self.trouble: str | None = None  # why it is not connected
        self.connections = 0
        self.oversize = 0  # frames that were beyond max_frame: they are read past, and their bytes are lost
        self._cursor = cursor
        self._timing = timing
        self._max_frame = max_frame

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Lists of whole frames in order, each all that arrived since the last one. Ends only by cancellation."""
        delay_limit = self._timing.backoff_first
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            cursor = self._cursor()
            connection = None
            try:
                connection = await self._connect(cursor)
                self.connected, self.trouble = True, None
                self.connections += 1
                logger.info("connected to %s, cursor %s", self.host, "none" if cursor is None else cursor)
                while frames := await connection.next_batch():
                    self._count(connection.messages)
                    yield frames
                reason = connection.why_closed()
            except (OSError, NetworkError, TimeoutError) as e:
                reason = str(e) or type(e).__name__
            finally:
                self.connected = False
                if connection is not None:
                    connection.abort()
                    self._count(connection.messages)
            if loop.time() - started >= self._timing.healthy:
                delay_limit = self._timing.backoff_first
            # Full jitter spreads the readers of a relay that comes back: all of them lost it at the same moment.
            delay = random.uniform(0, delay_limit)  # noqa: S311
            delay_limit = min(delay_limit * 2, self._timing.backoff_most)
            self.trouble = f"cannot read {self.host}: {reason}"
            logger.warning("%s; trying again in %.1f s", self.trouble, delay)
            await asyncio.sleep(delay)

    def _count(self, messages: Messages) -> None:
        if messages.oversize:
            logger.warning("%s sent %d frames of more than %d bytes", self.host, messages.oversize, self._max_frame)
            self.oversize += messages.oversize
            messages.oversize = 0

    async def _connect(self, cursor: int | None) -> _Connection:
        url = self.url if cursor is None else f"{self.url}{'&' if '?' in self.url else '?'}cursor={cursor}"
        uri = parse_uri(url)
        protocol = ClientProtocol(uri)
        context = ssl.create_default_context() if uri.secure else None
        async with asyncio.timeout(self._timing.connect):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(protocol, self._timing, self._max_frame), uri.host, uri.port, ssl=context
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


def host_of(relay: str) -> str:
    """The host of *relay*, with its port: what its cursor is kept by."""
    return urlsplit(subscription_url(relay)).netloc


def http_url(relay: str) -> str:
    """The address of *relay* for XRPC queries."""
    parts = urlsplit(subscription_url(relay))
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"


class Messages:
    """The messages in what a WebSocket server sends, in order and put together from their fragments. No I/O.

        messages = Messages(limit=8_000_000)
        for message in messages.feed(data): ...

    A message longer than *limit* is read to its end, not kept, and counted in `oversize`. Memory is bounded by the
    limit, whatever sizes are claimed. What breaks the protocol ends up in `error`: nothing after it counts.
    Specification: RFC 6455, section 5
    """

    def __init__(self, limit: int) -> None:
        self.oversize = 0  # for who counts to take away
        self.whole = 0  # signs of life: messages that came to their end, and control frames between messages
        self.ping: bytes | None = None  # of the last ping, for who answers it to take away
        self.close: bytes | None = None  # the close frame; nothing after it counts
        self.error: str | None = None
        self._limit = limit
        self._rest = b""  # of a header or control frame that is not whole yet
        self._missing = -1  # bytes of a fragment yet to come, -1 between fragments
        self._is_last = False  # that fragment
        self._fragments = 0  # of a message that has not ended, 0 between messages
        self._size = 0
        self._message = bytearray()
        self._controls = 0  # control frames in what is fed

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that *data* completes."""
        messages: list[bytes] = []
        if self.close is not None or self.error is not None:
            return messages
        if self._rest:
            data, self._rest = self._rest + data, b""
        self._controls = 0
        append = messages.append
        limit = self._limit
        size = len(data)
        at = 0
        while True:
            if self._missing >= 0:
                at = self._piece(data, at, messages)
                if self._missing >= 0:
                    break
            if at + 2 > size:
                break
            first, length = data[at], data[at + 1]
            start = at + 2
            if length == 126:
                start = at + 4
                if start > size:
                    break
                length = data[at + 2] << 8 | data[at + 3]
            elif length == 127:
                start = at + 10
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            elif length > 127:
                self.error = "a server masks nothing"
                break
            end = start + length
            # Nearly every message is one frame, and whole.
            if (first == 0x82 or first == 0x81) and end <= size and length <= limit and not self._fragments:
                append(data[start:end])
                at = end
            elif first & 0x70:
                self.error = "reserved bits are set"
                break
            elif first & 0x08:
                if first & 0x0F > Opcode.PONG:
                    self.error = f"there is no opcode {first & 0x0F}"
                    break
                if length > 125 or not first & 0x80:
                    self.error = "a control frame is fragmented or too long"
                    break
                if end > size:
                    break
                if not self._control(first & 0x0F, data[start:end], data[at:end]):
                    break
                at = end
            else:
                if not self._fragment(first & 0x0F, length):
                    break
                self._is_last = bool(first & 0x80)
                at = start
        self._rest = data[at:]
        self.whole += len(messages)
        return messages

    def _fragment(self, opcode: int, length: int) -> bool:
        """Begin a fragment; False if it cannot be one."""
        if opcode > Opcode.BINARY or (opcode == Opcode.CONT) != bool(self._fragments):
            self.error = "a fragment continues nothing, or a message begins within another"
            return False
        self._missing = length
        self._size += length
        self._fragments += 1
        if self._fragments > _MAX_FRAGMENTS:
            self.error = f"a message in more than {_MAX_FRAGMENTS} fragments"
            return False
        if self._size > self._limit:
            self._message.clear()
        return True

    def _piece(self, data: bytes, at: int, messages: list[bytes]) -> int:
        """Take what *data* has of a fragment; where it ends."""
        end = min(at + self._missing, len(data))
        if self._size <= self._limit:
            self._message += data[at:end]
        self._missing -= end - at
        if self._missing:
            return end
        self._missing = -1
        if self._is_last:
            if self._size <= self._limit:
                messages.append(bytes(self._message))
            else:
                self.oversize += 1
                self.whole += 1
            self._fragments = self._size = 0
            self._message.clear()
        return end

    def _control(self, opcode: int, payload: bytes, frame: bytes) -> bool:
        """Take a control frame; False if nothing is to be read after it."""
        self._controls += 1
        if self._controls > _MAX_CONTROLS:
            self.error = "a flood of control frames"
        elif opcode == Opcode.CLOSE:
            self.close = frame
        elif opcode == Opcode.PING:
            # Of several pings the last one may stand for all: RFC 6455, section 5.5.3.
            self.ping = payload
        # Within a message that never ends, they would make it look alive.
        self.whole += not self._fragments
        return self.error is None and self.close is None


class _Connection(asyncio.Protocol):
    """One WebSocket connection: bytes in, whole messages out, the socket paused while too many wait."""

    def __init__(self, protocol: ClientProtocol, timing: Timing, max_frame: int) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.messages = Messages(max_frame)
        self._protocol = protocol
        self._timing = timing
        self._transport: asyncio.Transport | None = None
        self._head = b""  # the end of what came before the connection was open
        self._frames: list[bytes] = []
        self._waiting = 0
        self._watching: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._is_awaited = False  # the reader waits for frames
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
        # Cancelled: who was to read it gave up.
        if self._closed or self.opened.cancelled():
            return
        assert self._transport is not None
        if self._protocol.state is State.CONNECTING:
            data = self._shake_hands(data)
            if not data:
                return
        messages = self.messages
        before = messages.whole
        frames = messages.feed(data)
        if messages.whole != before:
            # Not at every byte: a message without an end would pass for a sign of life.
            self._heard = self._loop.time()
        if frames:
            self._frames += frames
            self._waiting += sum(map(len, frames)) + _OVERHEAD * len(frames)
            self._wake.set()
            # A reader that waits goes first: the longer frames lie in memory, the slower they are to read again.
            if (self._is_awaited or self._waiting > _BUFFER) and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        if messages.ping is not None:
            self._pong(messages.ping)
            messages.ping = None
        if messages.error is not None:
            self._protocol.fail(CloseCode.PROTOCOL_ERROR, messages.error)
        elif messages.close is not None:
            self._protocol.receive_data(messages.close)
        else:
            return
        self._flush()
        self._end(None)

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        # The body of a refusal may end with the connection.
        if isinstance(self._protocol.handshake_exc, InvalidStatus):
            self._refuse()
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    # What the stream calls.

    async def next_batch(self) -> list[bytes]:
        """All frames that arrived since the last batch; none once the connection has ended."""
        # The time spent on the last one, perhaps with the socket paused, says nothing about the relay.
        self._heard = self._loop.time()
        if not self._frames and not self._closed:
            self._is_awaited = True
            self._wake.clear()
            await self._wake.wait()
            self._is_awaited = False
        frames, self._frames, self._waiting = self._frames, [], 0
        if self._is_paused and self._transport is not None and not self._closed:
            self._is_paused = False
            self._transport.resume_reading()
        return frames

    def why_closed(self) -> str:
        if self._lost is not None:
            return str(self._lost) or type(self._lost).__name__
        if self.messages.error is not None:
            return f"it breaks the WebSocket protocol: {self.messages.error}"
        if (close := self._protocol.close_rcvd) is not None:
            reason = f" ({printable(close.reason)})" if close.reason else ""
            return f"closed by the relay with code {close.code}{reason}"
        return "the connection was cut"

    def abort(self) -> None:
        if not self.opened.done():
            self.opened.cancel()
        # At once: uvloop may yet deliver what it has read.
        self._end(None)
        if self._transport is not None:
            self._transport.abort()

    # How.

    def _shake_hands(self, data: bytes) -> bytes:
        """Give the library the response, and return what follows it: the first messages may come along."""
        seen = self._head + data
        self._head = seen[-3:]
        end = seen.find(b"\r\n\r\n")
        cut = len(data) if end < 0 else end + 4 - len(seen) + len(data)
        self._protocol.receive_data(data[:cut])
        if self._protocol.state is State.OPEN:
            self.opened.set_result(None)
            self._watch()
            return data[cut:]
        if cut < len(data):
            self._protocol.receive_data(data[cut:])
        self._flush()
        if self._protocol.handshake_exc is not None:
            self._refuse()
        return b""

    def _refuse(self) -> None:
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            trouble = f"it answered HTTP {error.response.status_code}, not a WebSocket"
        else:
            trouble = f"it does not speak WebSocket: {error}"
        if not self.opened.done():
            self.opened.set_exception(NetworkError(trouble))
        self._end(None)

    def _watch(self) -> None:
        """From time to time, ask for a sign of life, or see that none has come, or give one."""
        silence = self._loop.time() - self._heard
        if self._is_paused:
            # Pings lie unread behind the frames that wait; a pong without one says that we live: RFC 6455, 5.5.3.
            self._pong(b"")
        elif silence >= self._timing.silent:
            self._end(NetworkError(f"no whole message for {self._timing.silent:g} s"))
            return
        elif silence >= self._timing.ping:
            self._protocol.send_ping(b"")
            self._flush()
        self._watching = self._loop.call_later(self._timing.ping, self._watch)

    def _pong(self, payload: bytes) -> None:
        assert self._transport is not None
        # A relay that asks and asks without reading the answers would fill our memory with them.
        if self._transport.get_write_buffer_size() < _MAX_UNSENT and self._protocol.state is State.OPEN:
            self._protocol.send_pong(payload)
            self._flush()

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
        if self._watching is not None:
            self._watching.cancel()
        self._wake.set()
        if not self.opened.done():
            self.opened.set_exception(NetworkError("the connection was cut before it was open"))
