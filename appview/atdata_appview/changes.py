"""Follow what happens to the records, in order: one task a process reads what is new, once for all who listen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import psycopg

from atdata_appview import tasks

if TYPE_CHECKING:
    from atdata_appview.store import Store

log = logging.getLogger(__name__)

Action = Literal["create", "update", "delete", "account"]

# Seconds between looks. NOTIFY would be quicker by this much, and would want a connection of its own, which neither a
# standby that is read from nor a pooler between us and Postgres gives; a look is a fifth of a millisecond.
_INTERVAL: Final = 0.2

#: Changes that are read, and handed on, at once.
BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the table `changes`; the fields are its columns.

    Of ``create``, ``update`` and ``delete``, ``collection`` and ``rkey`` name the record of ``did``, ``kind`` is None
    for a collection that we do not know, and ``cid`` is the new one, or that of the record which was deleted. What is
    the same but for its proof is an ``update`` with the cid that it has. Who reads the record itself finds it as it is
    by then, or not at all: further changes are on their way.

    Of ``account`` they are None: ``status`` is that of the account from now on. Not ``active``, its records are hidden,
    all of them, and changes that follow stay so; with ``active``, a ``create`` follows for each record that is there.
    """

    seq: int
    at: datetime
    action: Action
    did: str
    collection: str | None = None
    rkey: str | None = None
    kind: str | None = None
    cid: str | None = None
    status: str | None = None

    @property
    def uri(self) -> str:
        """The record's, or of an account `at://` and its DID."""
        return f"at://{self.did}" if self.collection is None else f"at://{self.did}/{self.collection}/{self.rkey}"


@dataclass(frozen=True, slots=True)
class ShownChange(Change):
    """A change that everybody may see. Where a record is created or updated, ``json`` is the record, which still is the
    one that ``cid`` names, and ``verified`` says whether signature, CID and place in its tree were checked."""

    json: str = ""
    verified: bool = False


class ShownChanges(NamedTuple):
    """What is shown of the changes after some number up to ``end``; those up to ``pruned`` are no longer kept."""

    changes: Sequence[ShownChange]
    end: int
    pruned: int


Callback = Callable[[Sequence[Change]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Listener:
    callback: Callback
    position: int
    is_failing: bool = False


class Follower:
    """Reads what is new in the table `changes` and hands it to all who listen.

        follower = Follower(store)
        follower.listen(graph.apply, after=graph.seq)
        async with follower.running(): ...

    A listener is given each change after the number it names, once and in order, in lists of up to `BATCH` that are
    never empty. It is awaited, and the others with it: it should be quick. When it raises, that is logged, and it is
    given the same changes again at the next look; one that cannot go on stops listening. Without the database, the
    follower waits for it and then goes on where it was.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: list[_Listener] = []
        self._is_lost = False

    def listen(self, callback: Callback, *, after: int) -> Callable[[], None]:
        """Have *callback* given what comes *after* this number (see `Store.latest_change`). Returns what ends that.

        At any time, before `run` and from within a callback, too.
        """
        listener = _Listener(callback, after)
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow while the block runs."""
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            await tasks.end(task)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                is_more = await self._look()
            except Exception as error:  # noqa: BLE001 - logged, and tried again
                if not self._is_lost:
                    _warn("cannot read the changes; trying again", error)
                self._is_lost, is_more = True, False
            else:
                if self._is_lost:
                    log.info("following the changes again")
                self._is_lost = False
            if not is_more:
                await asyncio.sleep(_INTERVAL)

    async def _look(self) -> bool:
        """Hand on what there is, up to a batch for each listener; True if there may be more."""
        is_more = False
        # Who is in step with the others shares one query with them: that is everybody, nearly always.
        for position in {listener.position for listener in self._listeners}:
            changes = await self._store.changes_after(position, BATCH)
            if not changes:
                continue
            for listener in [each for each in self._listeners if each.position == position]:
                is_more |= await self._hand(listener, changes) and len(changes) == BATCH
        return is_more

    async def _hand(self, listener: _Listener, changes: Sequence[Change]) -> bool:
        try:
            await listener.callback(changes)
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            if not listener.is_failing:
                _warn(f"a listener failed on the changes after {listener.position}; it is given them again", error)
            listener.is_failing = True
            return False
        listener.position, listener.is_failing = changes[-1].seq, False
        return True


def _warn(what: str, error: Exception) -> None:
    # A database that goes away is part of life, and no mistake that somebody has to find.
    log.warning("%s: %s", what, error, exc_info=not isinstance(error, psycopg.Error))
