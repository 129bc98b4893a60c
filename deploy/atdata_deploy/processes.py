"""The parts of `atdata up` that outlive a moment: its data folder, and child processes that do not outlive it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atdata.cli import EX_CONFIG
from atdata.errors import ConfigError


@contextmanager
def data_folder(path: Path) -> Iterator[Path]:
    """*path*, made if need be and held by a lock.

    Raises ConfigError, before anything is touched, when it is somebody else's; also when it cannot be written or is
    in use.
    """
    path = path.expanduser().resolve()
    _require_ours(path)
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


def user_name(uid: int) -> str:
    """The name of a Unix user, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _require_ours(path: Path) -> None:
    """Refuse a folder that another user runs on: whichever files we made there, they could no longer use."""
    # The lock tells who has run there. A folder nobody has run on may be lent to us, as volumes are; root, who is
    # never kept from writing, is not to take it for that.
    for held in (path / "lock", path):
        try:
            owner = held.stat().st_uid
        except OSError:
            continue
        if owner == os.geteuid() or (held == path and os.geteuid() != 0 and os.access(path, os.W_OK)):
            return
        raise ConfigError(
            f"the data folder {path} belongs to {user_name(owner)}: run as {user_name(owner)},"
            " or give another folder with --data or ATDATA_DATA"
        )


class Child:
    """One process of ours, its output in the file *log*, ended with its parent whatever happens.

    >>> child = Child("indexer", [sys.executable, "-m", "atdata", "indexer", "run"], Path("indexer.log"))
    >>> child.start()
    >>> child.tend()  # every second or so
    'indexer ended with code -9; starting it again in 2 s (see indexer.log)'

    It is asked to end by *stop_with* and given *grace* seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stop_with: signal.Signals = signal.SIGTERM,
        grace: float = 5.0,
    ) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._stop_with = stop_with
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log_start = 0
        self._delay = 1.0
        self._due = 0.0

    def start(self) -> None:
        """Start it."""
        self._spawn()

    def _spawn(self, *, pass_fds: Sequence[int] = (), account: pwd.struct_passwd | None = None) -> None:
        """Start the process, as *account* if that is not who we are."""
        try:
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: S603
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C reaches a terminal's whole process group; the order of stopping is the parent's to decide.
                    start_new_session=True,
                    preexec_fn=die_with_parent(self._stop_with),
                    pass_fds=pass_fds,
                    user=account.pw_uid if account else None,
                    group=account.pw_gid if account else None,
                    extra_groups=[] if account else None,
                    # Where we are, another user may not be allowed to be.
                    cwd="/" if account else None,
                )
        except OSError as e:
            raise ConfigError(f"{self.name} cannot be started: {e}") from e
        self._started = time.monotonic()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def has_just_returned(self) -> bool:
        """Whether it died, and was not started again or only a moment ago: what needs it may be failing meanwhile."""
        return self.restarts > 0 and (not self.is_running or time.monotonic() - self._started < 60)

    def tend(self, *, is_patient: bool = False) -> str | None:
        """Start it again if it died; what is to be said about that, if anything.

        Raises ConfigError with its last words if only an operator can help, unless *is_patient*.
        """
        if self._process is None:
            if time.monotonic() >= self._due:
                self.start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        # Killed, it had no time for words, and the last ones in the log are about something else.
        words = self.last_words() if code > 0 else ""
        if code == EX_CONFIG and not is_patient:
            raise ConfigError(words or f"{self.name} cannot run with its settings; see {self.log}")
        lived = time.monotonic() - self._started
        self._delay = 1.0 if lived > 60 else min(self._delay * 2, 30.0)
        self._process, self._due = None, time.monotonic() + self._delay
        self.restarts += 1
        why = f" ({words})" if words else ""
        return f"{self.name} ended with code {code}{why}; starting it again in {self._delay:.0f} s (see {self.log})"

    def last_words(self) -> str:
        """The last line that it logged since it was started."""
        lines = self.logged()
        return lines[-1].removeprefix("atdata: ") if lines else ""

    def logged(self) -> list[str]:
        """The lines that it logged since it was started."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return []

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        stop([self])


def stop(children: Sequence[Child]) -> None:
    """End *children*, all at once, and wait until they are gone."""
    running = [(child, child._process) for child in children if child._process is not None]
    for child, process in running:
        if process.poll() is None:
            process.send_signal(child._stop_with)
    for child, process in running:
        try:
            process.wait(child._grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def die_with_parent(sign: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` by which the process gets *sign* when its parent is gone, however that ended; Linux only."""
    if sys.platform != "linux":
        return None
    # PR_SET_PDEATHSIG: without it a killed parent would leave processes behind that hold the port and the database.
    return partial(ctypes.CDLL(None).prctl, 1, sign)
