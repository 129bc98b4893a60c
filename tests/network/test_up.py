"""`atdata up` as an operator meets it: two seconds to a search, Ctrl-C, a second start, and what goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from frames import DATASET, dataset
from network.atproto_network import Account, Network


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Up:
    """A running `atdata up`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atdata", "up", *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.output = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what it prints until *pattern* occurs."""
        assert self.process.stdout is not None
        while not (match := re.search(pattern, self.output)):
            line = self.process.stdout.readline()
            assert line, f"it ended without {pattern!r}:\n{self.output}"
            self.output += line
        return match

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.output += self.process.communicate(timeout=60)[0]
        return self.process.returncode


@contextmanager
def up(*arguments: str, **environment: str) -> Iterator[Up]:
    running = Up(*arguments, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()
        if running.process.stdout is not None:
            running.process.stdout.close()


@pytest.fixture
def arguments(network: Network, tmp_path: Path) -> list[str]:
    return [
        *("--relay", network.relay),
        *("--plc", network.plc),
        *("--data", str(tmp_path / "data")),
        *("--port", str(free_port())),
    ]


def found(port: str, account: Account) -> list[str]:
    answer = httpx.get(
        f"http://127.0.0.1:{port}/xrpc/ac.foundation.dataset.searchDatasets", params={"publishers": account.did}
    )
    return sorted(view["record"]["name"] for view in answer.json()["datasets"])


def wait_for(port: str, account: Account, names: list[str]) -> None:
    deadline = time.monotonic() + 30
    while found(port, account) != names:
        assert time.monotonic() < deadline, found(port, account)
        time.sleep(0.05)


def test_up_search_stop_and_resume(arguments: list[str], account: Account) -> None:
    """A record is searchable moments after it was written; Ctrl-C leaves no process; a second start goes on."""
    port = arguments[-1]
    with up(*arguments) as running:
        running.read_until(r"web +http://127\.0\.0\.1:" + port)
        running.read_until(r"seq .* records ")
        account.create_record(DATASET, dataset("First light"))
        wait_for(port, account, ["First light"])
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) >= 2
        assert running.interrupt() == 0
        assert "Stopped." in running.output
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
    assert not [p for p in psutil.process_iter(["cmdline"]) if arguments[5] in " ".join(p.info["cmdline"] or [])]
    # Written while nothing runs: the second start finds it behind its cursor.
    account.create_record(DATASET, dataset("In the dark"))
    with up(*arguments) as running:
        running.read_until(r"web +http://127\.0\.0\.1:" + port)
        wait_for(port, account, ["First light", "In the dark"])


def test_environment_variables_do_what_flags_do(network: Network, tmp_path: Path, account: Account) -> None:
    """Everything can be set by ATDATA_… variables, and ATDATA_DATABASE_URL replaces the embedded Postgres."""
    port = str(free_port())
    environment = {
        "ATDATA_RELAY": network.relay,
        "ATDATA_PLC_URL": network.plc,
        "ATDATA_DATA": str(tmp_path / "data"),
        "ATDATA_PORT": port,
        "ATDATA_BACKFILL": "off",
        "ATDATA_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }
    with up(**environment) as running:
        assert running.process.wait(30) == 78
        assert running.process.stdout is not None
        assert "cannot reach the database none at 127.0.0.1" in running.process.stdout.read()
    del environment["ATDATA_DATABASE_URL"]
    account.create_record(DATASET, dataset("Before"))
    with up(**environment) as running:
        running.read_until(r"seq .* records ")
        account.create_record(DATASET, dataset("After"))
        wait_for(port, account, ["After"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--port": "taken"}, "is taken: stop what uses it, or choose another with --port"),
        ({"--data": "/dev/null/x"}, "the data folder /dev/null/x cannot be written"),
        ({"--relay": "ftp://x"}, "relay 'ftp://x' is no host"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_get_one_sentence(arguments: list[str], change: dict[str, str], sentence: str) -> None:
    """A taken port, an unwritable folder and a relay that is none: one line, exit code 78, no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for flag, value in change.items():
            arguments[arguments.index(flag) + 1] = str(taken.getsockname()[1]) if value == "taken" else value
        done = subprocess.run(
            [sys.executable, "-m", "atdata", "up", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 78
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_on_one_folder(arguments: list[str]) -> None:
    """A second start on a data folder in use says so and leaves the first alone."""
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        arguments[-1] = str(free_port())
        done = subprocess.run(
            [sys.executable, "-m", "atdata", "up", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 78
        assert "another `atdata up` runs on the data folder" in done.stderr
        assert running.process.poll() is None


def test_interrupted_while_postgres_is_made(arguments: list[str]) -> None:
    """Ctrl-C and kill -9 in the middle of the very first start leave a folder that the next start can use."""
    folder = Path(arguments[5]) / "postgres"
    for sign, code in ((signal.SIGINT, 0), (signal.SIGKILL, -9)):
        with up(*arguments) as running:
            deadline = time.monotonic() + 30
            while not (folder / "PG_VERSION").exists():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            running.process.send_signal(sign)
            running.process.communicate(timeout=60)
            assert running.process.returncode == code
        if sign is signal.SIGINT:
            shutil.rmtree(folder)
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        assert running.interrupt() == 0
    # What a killed one left behind does not keep Postgres from being stopped.
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def test_a_folder_of_somebody_elses_is_left_alone(arguments: list[str]) -> None:
    """What stands where the database should be, and is none, is refused and kept."""
    precious = Path(arguments[5]) / "postgres" / "important.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "atdata", "up", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "holds something that is no Postgres database" in done.stderr
    assert precious.read_text() == "precious"


def test_a_service_that_dies_is_started_again(arguments: list[str], account: Account) -> None:
    """The indexer killed, the rest goes on, and so does the indexer after a moment."""
    with up(*arguments) as running:
        running.read_until(r"seq .* records ")
        (indexer,) = (
            p for p in psutil.Process(running.process.pid).children() if p.cmdline()[-2:] == ["indexer", "run"]
        )
        indexer.kill()
        running.read_until("indexer ended with code -9; starting it again")
        account.create_record(DATASET, dataset("Back again"))
        wait_for(arguments[-1], account, ["Back again"])


def test_an_unreachable_relay_is_waited_for(arguments: list[str]) -> None:
    """The web pages are up, the line says what is wrong, and nothing ends."""
    port = free_port()
    arguments[1] = f"ws://127.0.0.1:{port}"
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        running.read_until(f"cannot read 127.0.0.1:{port}: .*")
        assert running.process.poll() is None
