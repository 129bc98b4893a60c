"""Jetstream between a real PDS and the indexer: what it says is shown, and what the PDS proves is kept."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import libipld
import pytest
from frames import DATASET, SCHEMA, dataset, schema
from jetstream import Jetstream, account, commit, jetstream, message, now
from network.atproto_network import Account, Network, creation, deletion, update
from network.system import System, start_system
from postgres import TestDatabases
from websockets.asyncio.client import connect

from atdata_indexer import car

LABEL = "ac.foundation.dataset.label"


class Translator:
    """A Jetstream, in a thread of its own, of what a PDS's firehose says from now on."""

    def __init__(self, network: Network) -> None:
        # Not what other tests did before: it would be thousands of commits, of accounts that nobody asks for here.
        self._firehose = network.firehose
        self._last = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._ready = threading.Event()
        self.server: Jetstream
        self._work = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        self._work.add_done_callback(self._tell)
        assert self._ready.wait(30)

    def send(self, *messages: bytes) -> None:
        """Say something that the PDS did not."""
        asyncio.run_coroutine_threadsafe(self.server.send(*messages), self._loop).result()

    def cut(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.cut(), self._loop).result()

    def close(self) -> None:
        self._work.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if tasks := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.close()

    def _tell(self, work: Future[None]) -> None:
        """Say why nothing comes any more: the indexer only sees that the connection was cut."""
        if not work.cancelled() and (error := work.exception()):
            traceback.print_exception(error)

    async def _run(self) -> None:
        async with jetstream() as self.server, connect(self._firehose, max_size=None) as firehose:
            self._ready.set()
            async for frame in firehose:
                assert isinstance(frame, bytes)
                header, body = libipld.decode_dag_cbor_multi(frame)
                await self.server.send(*self._translate(header["t"], body))

    def _translate(self, kind: str, body: dict[str, Any]) -> Iterator[bytes]:
        if kind == "#account":
            more = {"status": body["status"]} if "status" in body else {}
            yield account(body["active"], at=self._time(), did=body["did"], **more)
        elif kind == "#identity":
            yield message("identity", {"did": body["did"]}, at=self._time(), did=body["did"])
        elif kind == "#commit":
            _, blocks = car.split(body["blocks"])
            for op in body["ops"]:
                if op["cid"] is not None and op["cid"] not in blocks:
                    continue  # a path that occurs twice in one commit: only the last one's block is there
                record = None if op["cid"] is None else bytes(blocks[op["cid"]])
                said = (op["action"], op["path"], record)
                yield commit(said, body["rev"], at=self._time(), did=body["repo"])

    def _time(self) -> int:
        """Now, and later than any before."""
        self._last = max(self._last + 1, now())
        return self._last


@pytest.fixture(scope="module")
def translator(network: Network) -> Iterator[Translator]:
    translator = Translator(network)
    yield translator
    translator.close()


@pytest.fixture
def settings(translator: Translator) -> dict[str, str]:
    return {"ATDATA_SOURCE": "jetstream", "ATDATA_JETSTREAM": translator.server.url}


def verify(system: System, *accounts: Account) -> None:
    """`atdata index verify` finds no difference."""
    repos = [f"--repo={account.did}" for account in accounts]
    done = subprocess.run(
        [sys.executable, "-m", "atdata", "index", "verify", *repos],
        env=system.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no difference" in done.stdout
    assert "not compared" not in done.stdout


def settled(system: System, accounts: list[Account]) -> dict[str, str]:
    """Wait until everything is proven, and as it is in the repositories of *accounts*: their records, CIDs by URI."""
    expected = {r["uri"]: r["cid"] for a in accounts for name in (DATASET, SCHEMA, LABEL) for r in a.list_records(name)}
    dids = [a.did for a in accounts]

    def is_done() -> bool:
        held = system.sql("SELECT uri, cid, verified_at IS NOT NULL FROM records WHERE did = ANY(%s)", dids)
        (waiting,) = system.sql(
            "SELECT (SELECT count(*) FROM confirmations WHERE did = ANY(%s))"
            " + (SELECT count(*) FROM repositories WHERE desynced IS NOT NULL AND did = ANY(%s))"
            " + (SELECT count(*) FROM search_outbox)",
            dids,
            dids,
        )[0]
        return not waiting and {uri: cid for uri, cid, is_verified in held if is_verified} == expected == {
            uri: cid for uri, cid, _ in held
        }

    system.until(is_done, "the index to be as the repositories")
    return expected


def test_records_are_shown_and_proven(
    network: Network, translator: Translator, settings: dict[str, str], postgres: TestDatabases, tmp_path: Path
) -> None:
    """Created, changed and deleted at the PDS, records are in search, verified; lies about them do not last."""
    ada, bob = network.create_account(), network.create_account()
    ada.create_record(DATASET, dataset("Long before"), "before")
    with postgres.database() as url, start_system(network, url, tmp_path, **settings) as system:
        accounts = [ada, bob]
        settled(system, accounts)
        written = ada.create_record(DATASET, dataset("Chorus of dawn"), "dawn")
        found = system.until(
            lambda: [
                view
                for view in system.query("searchDatasets", q="chorus of dawn", publishers=[ada.did])["datasets"]
                if view["verified"]
            ],
            "the record, verified",
        )
        assert [(view["uri"], view["cid"]) for view in found] == [(written["uri"], written["cid"])]
        # Blobs and bytes come through JSON unharmed.
        blob = ada.upload_blob(b"shard", "application/x-tar")
        storage = {"$type": "ac.foundation.dataset.storageBlobs", "blobs": [blob]}
        ada.create_record(DATASET, dataset("Blobs", storage=storage, metadata={"$bytes": "gaFhAQ"}), "blobs")
        bob.create_record(SCHEMA, schema("Song"))
        bob.apply_writes([creation(LABEL, {"name": f"{n}"}, f"{n:04}") for n in range(120)])
        ada.put_record(DATASET, "before", dataset("Long before, updated"))
        ada.delete_record(DATASET, "dawn")
        settled(system, accounts)
        assert system.sql("SELECT count(*) FROM quarantine") == [(0,)]

        rev = ada.put_record(DATASET, "blobs", dataset("Not what it was"))["commit"]["rev"]
        before = settled(system, accounts)
        translator.send(
            commit(("create", f"{DATASET}/forged", dataset("Forged")), rev, at=now(), did=ada.did),
            commit(("update", f"{DATASET}/before", dataset("Forged")), rev, at=now(), did=ada.did),
            commit(("delete", f"{DATASET}/blobs", None), rev, at=now(), did=ada.did),
        )
        ada.create_record(DATASET, dataset("Last"), "last")
        after = settled(system, accounts)
        assert before.items() < after.items()


def test_killed_and_cut_off_nothing_is_lost(
    network: Network, translator: Translator, settings: dict[str, str], postgres: TestDatabases, tmp_path: Path
) -> None:
    """SIGKILL and broken connections in the middle of writes: the index ends as the PDS is, all of it proven."""
    accounts = [network.create_account() for _ in range(3)]
    choose = random.Random(20261122)
    keys: dict[str, list[str]] = {a.did: [] for a in accounts}
    with postgres.database() as url, start_system(network, url, tmp_path, **settings) as system:
        for n in range(60):
            author = choose.choice(accounts)
            held = keys[author.did]
            action = choose.choice(["create", "create", "update", "delete"]) if held else "create"
            if action == "create":
                held.append(f"k{n}")
                author.apply_writes([creation(DATASET, dataset(f"New {n}"), f"k{n}")])
            elif action == "update":
                author.apply_writes([update(DATASET, choose.choice(held), dataset(f"Changed {n}"))])
            else:
                author.apply_writes([deletion(DATASET, held.pop())])
            if n % 12 == 5:
                system.kill_indexer()
                system.start_indexer()
            elif n % 12 == 11:
                translator.cut()
        settled(system, accounts)
        # Of which Jetstream does not tell, and which makes no difference.
        accounts[0].create_record("com.example.note", {"subject": 1})
        verify(system, *accounts)


def test_from_jetstream_to_the_firehose_and_back(
    network: Network, settings: dict[str, str], postgres: TestDatabases, tmp_path: Path
) -> None:
    """One database, read from one source after the other: each goes on where the other left it."""
    ada = network.create_account()
    with postgres.database() as url, start_system(network, url, tmp_path, **settings) as system:
        for n, source in enumerate(["jetstream", "firehose", "jetstream", "firehose"]):
            if n:
                system.stop_indexer()
                ada.create_record(DATASET, dataset(f"While nobody listened {n}"), f"off{n}")
                ada.create_record("com.example.note", {"subject": n})
                system.environment["ATDATA_SOURCE"] = source
                system.start_indexer()
            ada.create_record(DATASET, dataset(f"By {source} {n}"), f"on{n}")
            ada.create_record("com.example.note", {"subject": n})
            settled(system, [ada])
        assert len(settled(system, [ada])) == 7
        verify(system, ada)
