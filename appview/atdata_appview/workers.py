"""Own where calls run that take a core for milliseconds: in processes of their own, or in threads of this one."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from atdata_backend.memory import share_memory_among_threads

_LENGTH = struct.Struct("!I")

log = logging.getLogger(__name__)

# Seconds that a process has to end when it is told to, by which a call may still run.
_GRACE = 10


class Served(Protocol):
    """What answers the calls."""

    def close(self) -> None: ...


class Workers(Protocol):
    """Some that answer calls, each one at a time."""

    async def call(self, method: str, *args: Any) -> Any:
        """What the method of that name returns. Raises what it raises."""
        ...

    async def close(self) -> None:
        """Wait for calls that run, and close what answered."""
        ...


class Threads:
    """Threads that share one *served*: for what waits for others most of the time."""

    def __init__(self, served: Served, count: int) -> None:
        self._served = served
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")

    async def call(self, method: str, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, getattr(self._served, method), *args)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._served.close()


class Processes:
    """Processes that each *open* their own: for what Python would do on one core only.

    One that dies is replaced, and the call that it died of is made once more: it must not change anything. Each ends
    by itself when this process does. *open*, the arguments and the answers are pickled, by and for ourselves alone.
    """

    def __init__(self, open: Callable[[], Served], count: int) -> None:
        self._open = open
        # The one that was busy last comes first: its caches are warm.
        self._idle: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        self._all = [_Process(open) for _ in range(count)]
        for process in self._all:
            self._idle.put_nowait(process)

    async def call(self, method: str, *args: Any) -> Any:
        process = await self._idle.get()
        # Who gives up waiting must not leave an answer behind for the next.
        return await asyncio.shield(asyncio.ensure_future(self._ask(process, (method, args))))

    async def _ask(self, process: _Process, call: tuple[str, tuple[Any, ...]]) -> Any:
        try:
            try:
                is_answer, result = await process.ask(call)
            except (EOFError, OSError):
                process = self._instead_of(process, call[0])
                is_answer, result = await process.ask(call)
        except (EOFError, OSError) as error:
            process = self._instead_of(process, call[0])
            raise RuntimeError(f"two processes died during {call[0]}") from error
        finally:
            self._idle.put_nowait(process)
        if is_answer:
            return result
        raise result

    def _instead_of(self, dead: _Process, method: str) -> _Process:
        log.warning("the process %s died during %s; another takes over", dead.pid, method)
        self._all.remove(dead)
        dead.hang_up()
        self._all.append(process := _Process(self._open))
        return process

    async def close(self) -> None:
        for _ in self._all:  # which are idle when their calls are answered
            (await self._idle.get()).hang_up()
        for process in self._all:
            await asyncio.to_thread(process.end)


class _Process:
    """One process and our end of the socket to it, on which messages have their length in front."""

    def __init__(self, open: Callable[[], Served]) -> None:
        self._ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")  # a fork would take threads' locks with it
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, open), daemon=True)
        self._process.start()
        theirs.close()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def ask(self, call: tuple[str, tuple[Any, ...]]) -> tuple[bool, Any]:
        """Whether the call succeeded, and what it returned or raised. Raises EOFError or OSError when it is dead."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._ours)
        reader, writer = self._streams
        message = pickle.dumps(call)
        writer.write(_LENGTH.pack(len(message)) + message)
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        is_answer, result = pickle.loads(await reader.readexactly(length))  # noqa: S301 - our own
        return is_answer, result

    def hang_up(self) -> None:
        """Tell it to end when it has answered."""
        if self._streams:
            self._streams[1].close()
        else:
            self._ours.close()

    def end(self) -> None:
        """Wait until it is gone, by force if need be."""
        self._process.join(_GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: socket.socket, open: Callable[[], Served]) -> None:
    """Answer until the socket is closed, which it also is when the other process is gone."""
    # Ctrl-C reaches all processes of a terminal, and systemd's SIGTERM all of a service: the first one tells us when it
    # has finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    share_memory_among_threads()
    served = open()
    with connection, connection.makefile("rb") as calls, suppress(ConnectionError):
        while length := calls.read(_LENGTH.size):
            method, args = pickle.loads(calls.read(_LENGTH.unpack(length)[0]))  # noqa: S301 - our own
            try:
                answer = (True, getattr(served, method)(*args))
            except Exception as error:  # noqa: BLE001 - raised where the call was made
                error.add_note("".join(traceback.format_tb(error.__traceback__)))
                answer = (False, error)
            try:
                message = pickle.dumps(answer)
            except Exception:  # noqa: BLE001 - what it says can still be told
                message = pickle.dumps((False, RuntimeError(f"{method}: {answer[1]!r}")))
            connection.sendall(_LENGTH.pack(len(message)) + message)
    served.close()
