"""The subscription: changes as they happen, over a WebSocket.

Specification: https://atproto.com/specs/event-stream
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import psycopg
from starlette.websockets import WebSocket, WebSocketDisconnect

from atdata_appview import frames, tasks
from atdata_appview.event_stream import EventStream
from atdata_appview.services import Services

# Seconds that a subscriber has to take a message, and to be back in step once it fell behind what is in memory.
_PATIENCE: Final = 30.0

# RFC 6455, section 7.4.1, and the registry: https://www.iana.org/assignments/websocket
_POLICY_VIOLATION: Final = 1008
_TRY_AGAIN_LATER: Final = 1013


async def subscribe_changes(services: Services, params: Mapping[str, Any], websocket: WebSocket) -> None:
    """What happens to records and accounts, after a cursor or from now on.

    Raises RateLimitExceeded and what the store raises before there is a WebSocket.
    """
    stream = services.stream
    address = websocket.client.host if websocket.client else ""
    with stream.subscriber(address):
        latest = await services.store.latest_change()
        after = params.get("cursor", latest)
        await websocket.accept()
        if after > latest:
            await _fail(websocket, "FutureCursor", f"the latest change here is {latest}; connect without a cursor")
            return
        sending = asyncio.create_task(_send_all(websocket, stream, after))
        leaving = asyncio.create_task(_until_gone(websocket))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(sending, leaving)
        if not sending.cancelled():
            sending.result()


class _TooSlow(Exception):
    """The subscriber does not keep up."""


async def _send_all(websocket: WebSocket, stream: EventStream, after: int) -> None:
    """Send what comes *after* a change until the subscriber is gone, or too slow."""
    in_step = time.monotonic()
    # Who comes with an old cursor may take its time until it has caught up.
    has_caught_up = False
    try:
        while True:
            piece = await stream.read(after)
            # Of what is kept for it alone it must take a megabyte in that time, or it could hold it for hours.
            deadline = None if piece.is_recent else _PATIENCE
            async with asyncio.timeout(deadline):
                for frame in piece.frames:
                    await _send(websocket, frame)
            after = piece.end
            has_caught_up |= piece.is_recent
            if piece.is_recent:
                in_step = time.monotonic()
            elif has_caught_up and time.monotonic() - in_step > _PATIENCE:
                raise _TooSlow
            await asyncio.sleep(0)
    except (_TooSlow, TimeoutError):
        await _fail(websocket, "ConsumerTooSlow", "read faster, or less; connect again with the cursor you are at")
    except psycopg.Error:
        await _fail(websocket, "ServiceUnavailable", "the database does not answer; connect again", _TRY_AGAIN_LATER)
    except WebSocketDisconnect:
        pass


async def _send(websocket: WebSocket, frame: bytes) -> None:
    try:
        # Returns when the frames before it are on their way, but for some kilobytes.
        async with asyncio.timeout(_PATIENCE):
            await websocket.send_bytes(frame)
    except TimeoutError:
        raise _TooSlow from None


async def _fail(websocket: WebSocket, name: str, text: str, code: int = _POLICY_VIOLATION) -> None:
    """Send an error and close. Who does not take that either is left to the server, which drops the connection."""
    with suppress(TimeoutError, WebSocketDisconnect):
        async with asyncio.timeout(_PATIENCE):
            await websocket.send_bytes(frames.error(name, text))
            await websocket.close(code, name)


async def _until_gone(websocket: WebSocket) -> None:
    """Return when the connection is closed, by whomever. What a subscriber sends means nothing: streams are one-way."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
