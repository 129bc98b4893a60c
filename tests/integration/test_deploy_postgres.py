"""The embedded Postgres: where it can run, what it leaves alone, and how it goes on after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from atdata.errors import ConfigError
from atdata_deploy.postgres import Postgres, embedded_postgres

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for data. It is none of pytest's, which closes those to all others, also to Postgres' own user."""
    with tempfile.TemporaryDirectory(prefix="atdata-test-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@pytest.fixture
def said() -> list[str]:
    """What an operator was told."""
    return []


@pytest.fixture
def shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /tmp, which all users of a machine share."""
    shared = folder / "tmp"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    return shared


def run_on(folder: Path, said: list[str] | None = None) -> object:
    folder.mkdir(parents=True, exist_ok=True)
    return embedded_postgres(folder / "postgres", folder / "postgres.log", (said if said is not None else []).append)


def pid_of(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def value(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_nothing_outside_its_folder(folder: Path, shared: Path) -> None:
    """Another user's Postgres on this machine cannot be in the way: locks and sockets are in the data folder."""
    with run_on(folder / "data") as postgres:
        assert value(postgres.url, "SHOW server_encoding") == "UTF8"
        assert list(shared.iterdir()) == []
        pid = pid_of(folder / "data")
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    "name", ["x" * 120, "a, b", 'it\'s "my" data %20 ä'], ids=["too long for a socket", "comma", "blanks and quotes"]
)
def test_any_path_will_do(folder: Path, shared: Path, name: str) -> None:
    """Where a socket cannot be in the folder, it is in a private one, which goes when Postgres does."""
    with run_on(folder / name) as postgres:
        assert value(postgres.url, "SHOW data_directory") == str(folder / name / "postgres")
        assert [folder.stat().st_mode & 0o777 for folder in shared.iterdir()] in ([], [0o700])
    assert list(shared.iterdir()) == []


def test_a_damaged_folder_is_said_to_be_one(folder: Path) -> None:
    """When Postgres cannot start, its own reason is the message."""
    with run_on(folder):
        pass
    (folder / "postgres" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ConfigError, match=r"did not start: .*FATAL: +database files are incompatible with server"):
        with run_on(folder):
            pass


def test_a_database_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a user as whom Postgres would not run: the message says whose they are and how to hand them over."""
    (folder / "postgres").mkdir()
    if AS_ROOT:
        os.chown(folder / "postgres", 54321, 54321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match=r"belongs to .*: hand it over with `sudo chown -R "), run_on(folder):
        pass
    assert list((folder / "postgres").iterdir()) == []


@pytest.mark.skipif(not AS_ROOT, reason="only under root does Postgres need another user")
def test_under_root_only_closed_folders_are_opened_and_that_is_said(folder: Path, said: list[str]) -> None:
    """The folders above may be passed through and no more; who is open already is not touched."""
    closed, open_ = folder / "closed", folder / "closed" / "open"
    open_.mkdir(parents=True)
    closed.chmod(0o700)
    open_.chmod(0o751)
    with run_on(open_ / "data", said):
        pass
    assert closed.stat().st_mode & 0o777 == 0o701
    assert open_.stat().st_mode & 0o777 == 0o751
    (sentence,) = said
    assert f"{closed}" in sentence.replace(",", "").split()
    assert f"{open_}" not in sentence.replace(",", "").split()
    with run_on(open_ / "data", said):
        pass
    assert len(said) == 1


def test_killed_it_is_started_again(folder: Path) -> None:
    """After kill -9 it says so, and a moment later it has what was committed."""
    with run_on(folder) as postgres:
        assert isinstance(postgres, Postgres)
        with psycopg.connect(postgres.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        assert postgres.tend() is None
        os.kill(pid_of(folder), signal.SIGKILL)
        news: list[str | None] = []
        until(lambda: news.append(postgres.tend()) or news[-1], "it to be missed")
        assert "postgres ended with code -9; starting it again" in str(news[-1])
        assert postgres.has_just_returned
        until(lambda: postgres.tend() or postgres.is_running, "it to be started")
        postgres.wait_until_ready(print)
        assert value(postgres.url, "SELECT x FROM kept") == 1
        assert postgres.has_just_returned


def test_an_earlier_one_that_still_runs_is_ended(folder: Path) -> None:
    """A Postgres that outlived its parent does not keep the next start from the folder."""
    # Without Linux' help, as on macOS; and with its parent killed outright.
    program = (
        "import os, pathlib, atdata_deploy.processes as p; p.die_with_parent = lambda sign: None\n"
        "from atdata_deploy.postgres import embedded_postgres\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "with embedded_postgres(folder / 'postgres', folder / 'postgres.log', print): os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    earlier = psutil.Process(pid_of(folder))
    assert earlier.is_running()
    with run_on(folder) as postgres:
        assert value(postgres.url, "SELECT 1") == 1
        # Nobody may be there to collect it.
        assert not earlier.is_running() or earlier.status() == psutil.STATUS_ZOMBIE


def test_a_process_id_that_is_another_programs_by_now(folder: Path) -> None:
    """What a crash left over may name a process that is no Postgres: it neither keeps us from starting nor is ended."""
    with run_on(folder):
        lines = (folder / "postgres" / "postmaster.pid").read_text().splitlines()
    with subprocess.Popen(["sleep", "600"], user=(folder / "postgres").stat().st_uid if AS_ROOT else None) as other:
        try:
            left = folder / "postgres" / "postmaster.pid"
            left.write_text("\n".join([str(other.pid), *lines[1:], ""]))
            os.chown(left, (folder / "postgres").stat().st_uid, -1)
            with run_on(folder) as postgres:
                assert value(postgres.url, "SELECT 1") == 1
            assert other.poll() is None
        finally:
            other.kill()
