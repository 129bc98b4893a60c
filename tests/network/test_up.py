"""`atdata up` as an operator meets it: two seconds to a search, Ctrl-C, a second start, and what goes wrong."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from frames import DATASET, dataset
from network.atproto_network import Account, Network

#: Seconds that one `atdata up` may take in a test; nothing that works takes a tenth of it.
DEADLINE = 240.0


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
        # What never says what it should is ended, which fails the test, instead of being waited for.
        self._deadline = threading.Timer(DEADLINE, self.process.kill)
        self._deadline.start()

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

    def close(self) -> None:
        self._deadline.cancel()
        if self.process.poll() is None:
            self.interrupt()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def up(*arguments: str, **environment: str) -> Iterator[Up]:
    running = Up(*arguments, **environment)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for data. It is none of pytest's, which closes those to all others, also to Postgres' own user."""
    with tempfile.TemporaryDirectory(prefix="atdata-test-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@pytest.fixture
def arguments(network: Network, folder: Path) -> list[str]:
    return [
        *("--relay", network.relay),
        *("--plc", network.plc),
        *("--data", str(folder / "my data")),
        *("--port", str(free_port())),
    ]


def fails(arguments: list[str], **environment: str) -> list[str]:
    """The lines on stderr of an `atdata up` that ends by itself, as for a mistake that only an operator can mend."""
    done = subprocess.run(
        [sys.executable, "-m", "atdata", "up", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    return done.stderr.splitlines()


def postgres_of(arguments: list[str]) -> psutil.Process:
    return psutil.Process(int((Path(arguments[5]) / "postgres" / "postmaster.pid").read_text().splitlines()[0]))


def processes_on(folder: str | Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def found(port: str, account: Account) -> list[str]:
    answer = httpx.get(
        f"http://127.0.0.1:{port}/xrpc/ac.foundation.dataset.searchDatasets", params={"publishers": account.did}
    )
    if answer.status_code == 503:  # while the database that died comes back
        return []
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
        running.read_until(r"records \d")
        account.create_record(DATASET, dataset("First light"))
        wait_for(port, account, ["First light"])
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) >= 2
        assert running.interrupt() == 0
        assert "Stopped." in running.output
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
    assert not processes_on(arguments[5])
    # Written while nothing runs: the second start finds it behind its cursor.
    account.create_record(DATASET, dataset("In the dark"))
    with up(*arguments) as running:
        running.read_until(r"web +http://127\.0\.0\.1:" + port)
        wait_for(port, account, ["First light", "In the dark"])
        # The commands beside it find the same index.
        settings = shlex.quote(str(Path(arguments[5]) / "settings.sh"))
        verify = f"{shlex.quote(sys.executable)} -m atdata index verify --repo {account.did}"
        done = subprocess.run(["bash", "-c", f". {settings} && {verify}"], capture_output=True, text=True, check=False)
        assert (done.returncode, "no differences" in done.stdout) == (0, True), done.stdout + done.stderr


def test_environment_variables_do_what_flags_do(network: Network, folder: Path, account: Account) -> None:
    """Everything can be set by ATDATA_… variables, and ATDATA_DATABASE_URL replaces the embedded Postgres."""
    port = str(free_port())
    environment = {
        # A host on this machine needs no scheme.
        "ATDATA_RELAY": network.relay.removeprefix("ws://"),
        "ATDATA_PLC_URL": network.plc,
        "ATDATA_DATA": str(folder / "data"),
        "ATDATA_PORT": port,
        "ATDATA_BACKFILL": "off",
    }
    (line,) = fails([], **environment, ATDATA_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert "cannot reach the database none at 127.0.0.1" in line
    account.create_record(DATASET, dataset("Before"))
    with up(**environment, ATDATA_RELY="bsky.network") as running:
        running.read_until("ATDATA_RELY is no setting and has no effect: did you mean ATDATA_RELAY?")
        running.read_until(r"records \d")
        account.create_record(DATASET, dataset("After"))
        wait_for(port, account, ["After"])


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--port", "taken", "is taken: stop what uses it, or choose another with --port"),
        ("--data", "/dev/null/x", "the data folder /dev/null/x cannot be written"),
        ("--data", "", "ATDATA_DATA: is empty"),
        ("--relay", "ftp://x", "ATDATA_RELAY: must be a relay's or a PDS's host"),
        ("--plc", "nosuch", "ATDATA_PLC_URL: must be the URL of a service"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], flag: str, value: str, sentence: str) -> None:
    """A taken port, an unwritable folder, no folder and URLs that are none: one line, exit code 78, no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments[arguments.index(flag) + 1] = str(taken.getsockname()[1]) if value == "taken" else value
        (line,) = fails(arguments)
    assert sentence in line


def test_two_on_one_folder(arguments: list[str]) -> None:
    """A second start on a data folder in use says so and leaves the first alone."""
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        arguments[-1] = str(free_port())
        (line,) = fails(arguments)
        assert "another `atdata up` runs on the data folder" in line
        assert running.process.poll() is None


def test_interrupted_while_postgres_is_made(arguments: list[str]) -> None:
    """Ctrl-C and kill -9 in the middle of the very first start leave a folder that the next start can use."""
    data = Path(arguments[5])
    for sign, code in ((signal.SIGINT, 0), (signal.SIGKILL, -9)):
        with up(*arguments) as running:
            deadline = time.monotonic() + 30
            while not (data / "postgres.unfinished" / "PG_VERSION").exists():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            running.process.send_signal(sign)
            running.process.communicate(timeout=60)
            assert running.process.returncode == code
        assert not (data / "postgres").exists()
        if sign is signal.SIGINT:
            shutil.rmtree(data / "postgres.unfinished", ignore_errors=True)
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        assert running.interrupt() == 0
    # What a killed one left behind does not keep Postgres from being stopped.
    assert not processes_on(data)


def test_a_folder_of_somebody_elses_is_left_alone(arguments: list[str]) -> None:
    """What stands where the database should be, and is none, is refused and kept."""
    precious = Path(arguments[5]) / "postgres" / "important.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    if os.geteuid() == 0:
        shutil.chown(precious.parent, "pgserver")
    (line,) = fails(arguments)
    assert "holds something that is no Postgres database" in line
    assert precious.read_text() == "precious"


def test_killed_outright_nothing_is_left(arguments: list[str]) -> None:
    """kill -9 of `atdata up` takes the services and Postgres along, and the next start needs no help."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent is gone")
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert "postgres" in {child.name() for child in children}
        running.process.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    with up(*arguments) as running:
        running.read_until(r"records \d")


def test_a_removed_data_folder_ends_everything(arguments: list[str]) -> None:
    """Nothing can be kept any more: one sentence, exit code 78, and no process stays."""
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        shutil.rmtree(arguments[5], ignore_errors=True)
        running.read_until("the data folder .* is gone, with what was indexed: start again to make a new one")
        assert running.process.wait(30) == 78
    assert not processes_on(arguments[5])


def test_a_meilisearch_that_is_not_there_is_named(arguments: list[str]) -> None:
    """The line says what does not answer and which setting to look at; the rest runs, and stops when told."""
    port = free_port()
    with up(*arguments, ATDATA_MEILI_URL=f"http://127.0.0.1:{port}") as running:
        running.read_until(f"Meilisearch at 127.0.0.1:{port} does not answer .* ATDATA_MEILI_URL")
        running.read_until(r"web +http://")
        assert running.interrupt() == 0


def test_what_dies_is_started_again(arguments: list[str], account: Account) -> None:
    """The indexer killed, then Postgres: that is said, and a moment later everything goes on with what there was."""
    with up(*arguments) as running:
        running.read_until(r"records \d")
        # From here on there is a cursor to go on after.
        account.create_record(DATASET, dataset("Before"))
        wait_for(arguments[-1], account, ["Before"])
        (indexer,) = (
            p for p in psutil.Process(running.process.pid).children() if p.cmdline()[-2:] == ["indexer", "run"]
        )
        indexer.kill()
        running.read_until("indexer ended with code -9; starting it again")
        account.create_record(DATASET, dataset("Back again"))
        wait_for(arguments[-1], account, ["Back again", "Before"])
        postgres_of(arguments).kill()
        running.read_until("postgres ended with code -9; starting it again")
        account.create_record(DATASET, dataset("And again"))
        running.read_until(r"postgres ended(.*\n)+.*records \d")
        wait_for(arguments[-1], account, ["And again", "Back again", "Before"])


def test_an_unreachable_relay_is_waited_for(arguments: list[str], network: Network) -> None:
    """The web pages are up, the line says what is wrong, and nothing ends; the next run does not speak of it again."""
    port = free_port()
    arguments[1] = f"ws://127.0.0.1:{port}"
    with up(*arguments) as running:
        running.read_until(r"web +http://")
        running.read_until(f"cannot read 127.0.0.1:{port}: .*")
        assert running.process.poll() is None
    arguments[1] = network.relay
    with up(*arguments) as running:
        running.read_until(r"records \d")
        assert "cannot read" not in running.output
