"""Calls that run elsewhere: in threads or in processes, they answer, raise and end alike."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from atdata_appview.workers import Processes, Threads, Workers
from atdata_backend.search.base import BadCursor


class Answering:
    """What runs in the processes: they import this file."""

    def echo(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise BadCursor("not from here")

    def fail_unheard(self) -> None:
        raise LookupError(threading.Lock())  # which cannot be sent

    def die(self) -> None:
        os._exit(1)

    def die_once(self, marker: Path) -> int:
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return os.getpid()

    def wait_for(self, file: Path) -> str:
        """What is in *file*, a pipe, when somebody has written it."""
        return file.read_text()

    def close(self) -> None:
        with suppress(KeyError):
            Path(os.environ["TEST_CLOSED"]).touch()


@pytest.fixture(params=["threads", "processes"])
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Workers]:
    made: Workers = Threads(Answering(), 2) if request.param == "threads" else Processes(Answering, 2)
    yield made
    await made.close()


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    made = Processes(Answering, 1)
    yield made
    await made.close()


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


async def test_calls_are_answered(workers: Workers) -> None:
    """Each with its own answer, however many are made at once and however large they are."""
    values = [bytes([n]) * 300_000 for n in range(20)]
    assert await asyncio.gather(*(workers.call("echo", value) for value in values)) == values


async def test_errors_are_raised_where_the_call_was_made(workers: Workers) -> None:
    """As they are, and the next call is answered."""
    with pytest.raises(BadCursor, match="not from here"):
        await workers.call("fail")
    assert await workers.call("echo", 1) == 1


async def test_the_note_of_an_error_says_where_it_was_raised(processes: Processes) -> None:
    """In the other process, whose traceback is lost."""
    with pytest.raises(BadCursor) as caught:
        await processes.call("fail")
    assert "in fail" in caught.value.__notes__[0]


async def test_an_error_that_cannot_be_sent_is_told_of(processes: Processes) -> None:
    """It does not take the process with it."""
    pid = await processes.call("pid")
    with pytest.raises(RuntimeError, match="LookupError"):
        await processes.call("fail_unheard")
    assert await processes.call("pid") == pid


async def test_a_dead_process_is_replaced(processes: Processes) -> None:
    """Who asks next does not notice."""
    pid = await processes.call("pid")
    os.kill(pid, signal.SIGKILL)
    assert await processes.call("pid") != pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_that_all_processes_get_end_the_first_one_only(processes: Processes, number: int) -> None:
    """Calls that run are answered."""
    pid = await processes.call("pid")
    os.kill(pid, number)
    assert await processes.call("pid") == pid


async def test_the_call_that_a_process_died_of_is_made_once_more(processes: Processes, tmp_path: Path) -> None:
    """By another one."""
    pid = await processes.call("pid")
    assert await processes.call("die_once", tmp_path / "marker") != pid


async def test_a_call_that_always_kills_is_given_up(processes: Processes) -> None:
    """After the second process, and the next call is answered."""
    with pytest.raises(RuntimeError, match="died"):
        await processes.call("die")
    assert await processes.call("echo", 1) == 1


async def test_who_gives_up_leaves_no_answer_behind(processes: Processes, pipe: Path) -> None:
    """The next call gets its own."""
    waiting = asyncio.create_task(processes.call("wait_for", pipe))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    following = asyncio.create_task(processes.call("echo", "following"))
    await asyncio.to_thread(pipe.write_text, "late")
    assert await following == "following"


async def test_closing_waits_for_calls(
    processes: Processes, pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered, and what answered is closed."""
    closed = tmp_path / "closed"
    monkeypatch.setenv("TEST_CLOSED", str(closed))
    made = Processes(Answering, 1)
    pid = await made.call("pid")
    waiting = asyncio.create_task(made.call("wait_for", pipe))
    await asyncio.sleep(0)
    closing = asyncio.create_task(made.close())
    await asyncio.to_thread(pipe.write_text, "answer")
    assert await waiting == "answer"
    await closing
    assert closed.exists()
    assert not psutil.pid_exists(pid)


def test_processes_end_with_the_one_that_started_them() -> None:
    """Even when it is killed."""
    program = (
        "import asyncio\n"
        "from atdata_appview.workers import Processes\n"
        "from test_workers import Answering\n"
        "async def main():\n"
        "    print(await Processes(Answering, 1).call('pid'), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    with suppress(psutil.NoSuchProcess):
        worker.wait(timeout=30)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
