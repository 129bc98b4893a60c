"""The indexer and the AppView as processes of their own, on a real database, reading a real firehose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
from network.atproto_network import Network

from atdata_backend.postgres import migrate

T = TypeVar("T")

#: Long enough for a busy machine; nothing that works takes a tenth of it.
DEADLINE = 60.0


class System:
    """One indexer and one AppView. `start_indexer` and `kill_indexer` may be called at any moment."""

    def __init__(self, network: Network, database_url: str, folder: Path, **settings: str) -> None:
        self.network = network
        self.database_url = database_url
        self.search_dir = folder / "search"
        self._folder = folder
        self.environment = {
            **os.environ,
            "ATDATA_DATABASE_URL": database_url,
            "ATDATA_SEARCH_DIR": str(self.search_dir),
            "ATDATA_RELAY": network.relay,
            "ATDATA_PLC_URL": network.plc,
            "ATDATA_HANDLE_RESOLVER": network.pds,
            "ATDATA_ALLOW_PRIVATE_HOSTS": "true",
            "ATDATA_PORT": "0",
            "ATDATA_RATE_LIMIT": "0",
            **settings,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""
        self._http = httpx.Client(timeout=30)

    def start_indexer(self) -> None:
        """Start it and wait until it reads the firehose."""
        started = time.time()
        self._start("indexer")
        self.until(lambda: self._is_reading(started), "the indexer to read the firehose")

    def kill_indexer(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self._end("indexer", signal.SIGKILL)

    def stop_indexer(self) -> int:
        """SIGTERM, and the exit code."""
        return self._end("indexer", signal.SIGTERM)

    @property
    def indexer_pid(self) -> int:
        return self._processes["indexer"].pid

    def start_appview(self) -> None:
        """Start it and wait until it answers."""
        self._start("appview")

        def address() -> str | None:
            for line in self.log("appview").splitlines():
                if "serving http" in line:
                    return "http" + line.partition("serving http")[2].split()[0]
            return None

        self.url = self.until(address, "the AppView to listen")

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._http.get(self.url + path, params=params)

    def query(self, method: str, **params: Any) -> Any:
        """The answer of ``ac.foundation.dataset.<method>``."""
        response = self.get(f"/xrpc/ac.foundation.dataset.{method}", **params)
        assert response.status_code == 200, response.text
        return response.json()

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """The first true value of *condition*; fails, with the logs, if none comes."""
        deadline = time.monotonic() + DEADLINE
        while True:
            if value := condition():
                return value
            for name, process in self._processes.items():
                if (code := process.poll()) is not None:
                    raise AssertionError(f"{name} ended with code {code}:\n{self.log(name)}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-4000:]}" for name in self._processes)
                raise AssertionError(f"waited {DEADLINE:.0f} s for {what}\n{logs}")
            time.sleep(0.02)

    def settled(self) -> None:
        """Wait until everything published so far is in Postgres and in the search engine."""
        latest = {
            repo["did"]: repo["rev"]
            for repo in self.network.query("com.atproto.sync.listRepos", limit=1000)["repos"]
            if repo.get("active", True)
        }

        def is_done() -> bool:
            held = dict(self.sql("SELECT did, rev FROM repositories WHERE desynced IS NULL"))
            behind = [did for did in held if did in latest and held[did] < latest[did]]
            (busy,) = self.sql(
                "SELECT (SELECT count(*) FROM search_outbox)"
                " + (SELECT count(*) FROM repositories WHERE desynced IS NOT NULL AND status = 'active')"
            )[0]
            return not behind and busy == 0

        self.until(is_done, "the index to be in step")

    def log(self, name: str) -> str:
        path = self._folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for name in list(self._processes):
            self._end(name, signal.SIGTERM)
        self._http.close()

    def _is_reading(self, since: float) -> bool:
        rows = self.sql("SELECT (status->>'connected')::boolean, extract(epoch FROM updated_at) FROM indexer_status")
        return bool(rows and rows[0][0] and rows[0][1] >= since)

    def _start(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "atdata", name, "run", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _end(self, name: str, sign: signal.Signals) -> int:
        process = self._processes.pop(name)
        process.send_signal(sign)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextmanager
def start_system(network: Network, database_url: str, folder: Path, **settings: str) -> Iterator[System]:
    """Both services, ready: the indexer reads, the AppView answers."""
    migrate(database_url)
    system = System(network, database_url, folder, **settings)
    try:
        system.start_indexer()
        system.start_appview()
        yield system
    finally:
        system.close()
