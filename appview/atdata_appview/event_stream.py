"""The changes as an event stream: frames are made once, and kept for a moment for all who read them."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from atdata_appview import frames
from atdata_appview.changes import Change, ShownChange
from atdata_appview.errors import RateLimitExceeded
from atdata_appview.limits import client_of
from atdata_appview.store import Store

# Bytes of the latest frames that are kept in memory. Who is behind them reads from the database.
_RECENT: Final = 16_000_000
# What a frame takes beside its bytes.
_OVERHEAD: Final = 100

# Frames that are sent, and bytes that are encoded, before others have their turn.
_AT_ONCE: Final = 200
_TURN: Final = 100_000

# Subscribers that read from the database at a time: requests need its connections, too.
_READERS: Final = 2

#: Subscribers at a time: altogether, and from one address. Each may hold some 2 MB while it catches up.
MAX_SUBSCRIBERS: Final = 100
MAX_OF_ADDRESS: Final = 10

_OUTDATED: Final = frames.message(
    "#info",
    {
        "name": "OutdatedCursor",
        "message": "changes after your cursor are no longer kept; what follows begins with the oldest that are",
    },
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Frames that follow a position, in order, and the position after them. ``is_recent``, they were in memory."""

    frames: Sequence[bytes]
    end: int
    is_recent: bool


class EventStream:
    """What `Follower` reads, as frames, for many subscribers.

        stream = EventStream(store, await store.latest_change())
        follower.listen(stream.take, after=stream.end)
        with stream.subscriber("192.0.2.1"):
            piece = await stream.read(after=31)         # waits until there is something

    Memory is bounded, however many subscribe and however slow they are: the latest frames are kept once for all, and a
    subscriber that is behind them reads a piece at a time from the database.
    """

    def __init__(self, store: Store, latest: int) -> None:
        self._store = store
        # The frames of what is shown of the changes after `_start`, up to `end`.
        self._start = self.end = latest
        self._seqs: list[int] = []
        self._frames: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._readers = asyncio.Semaphore(_READERS)
        self._subscribers: Counter[str] = Counter()

    @property
    def subscribers(self) -> int:
        """How many read now."""
        return self._subscribers.total()

    @contextmanager
    def subscriber(self, address: str) -> Iterator[None]:
        """Count a subscriber from *address* while the block runs. Raises RateLimitExceeded when there are too many."""
        client = client_of(address)
        if self._subscribers[client] >= MAX_OF_ADDRESS:
            raise RateLimitExceeded(f"there are {MAX_OF_ADDRESS} subscriptions from your address; close one first")
        if self.subscribers >= MAX_SUBSCRIBERS:
            raise RateLimitExceeded("there are too many subscriptions; try again in a minute", {"Retry-After": "60"})
        self._subscribers[client] += 1
        try:
            yield
        finally:
            self._subscribers[client] -= 1
            self._subscribers += Counter()  # without those that are at zero

    async def take(self, changes: Sequence[Change]) -> None:
        """Take over *changes*, which are new; for `Follower.listen`."""
        latest = changes[-1].seq
        if not self._subscribers:
            self._begin(latest)
            return
        while self.end < latest:
            shown, end, pruned = await self._store.shown_changes(self.end)
            made = await _encoded(shown)
            if self.end < pruned:
                # Who is before it is told of that by `read`.
                self._begin(pruned)
            self._keep(shown, made)
            self.end = end if end > self.end else latest
            self._news.set()
            self._news = asyncio.Event()

    def _begin(self, at: int) -> None:
        self._start = self.end = at
        self._seqs, self._frames, self._size = [], [], 0

    def _keep(self, shown: Sequence[ShownChange], made: Sequence[bytes]) -> None:
        self._frames += made
        self._seqs += [each.seq for each in shown]
        self._size += sum(len(frame) + _OVERHEAD for frame in made)
        dropped = 0
        while self._size > _RECENT and dropped < len(self._frames):
            self._size -= len(self._frames[dropped]) + _OVERHEAD
            dropped += 1
        if dropped:
            self._start = self._seqs[dropped - 1]
            del self._frames[:dropped], self._seqs[:dropped]

    async def read(self, after: int) -> Piece:
        """What comes *after* a change, some of it, once there is anything. Raises what the store raises.

        What was pruned since comes as a message that says so.
        """
        while after >= self._start:
            at = bisect_right(self._seqs, after)
            if at < len(self._seqs):
                some = slice(at, at + _AT_ONCE)
                return Piece(self._frames[some], self._seqs[some][-1], is_recent=True)
            if after < self.end:
                return Piece((), self.end, is_recent=True)
            await self._news.wait()
        async with self._readers:
            shown, end, pruned = await self._store.shown_changes(after)
            made = await _encoded(shown)
        # Who asks for 0 asks for what there is.
        if 0 < after < pruned:
            made.insert(0, _OUTDATED)
        end = max(end, pruned)
        # It is never empty but where a backup was put in place of the database: go on from there.
        return Piece(made, end if end > after else self._start, is_recent=False)


async def _encoded(shown: Sequence[ShownChange]) -> list[bytes]:
    made = []
    size = 0
    for each in shown:
        made.append(frames.change(each))
        size += len(made[-1])
        if size > _TURN:
            size = 0
            await asyncio.sleep(0)
    return made
