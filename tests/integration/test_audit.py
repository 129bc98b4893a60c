"""The commands `verify` and `repair` where hosts fail: what was found stands, and silence is no success."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import psycopg
import pytest
from frames import DATASET, DID, block, cid, dataset, multikey, rev

from atdata.errors import NetworkError
from atdata_backend.identity import Identity
from atdata_backend.search.tantivy import TantivyEngine
from atdata_indexer import audit, commands
from atdata_indexer.backfill import FetchFailed, RepoRecord, Result, Snapshot
from atdata_indexer.car import cid_text
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import Store

DATA = block(dataset())
SNAPSHOT = Snapshot(
    DID,
    rev(1),
    cid_text(cid(b"tree")),
    (RepoRecord(DATASET, "lost", cid_text(cid(DATA)), DATA),),
    cid_text(cid(b"commit")),
    Identity(DID, None, "https://pds.example", multikey(DID)),
)
FAILED = FetchFailed(DID, "no answer")


class Hosts:
    """What hosts give out, one result a look; the last one stays."""

    def __init__(self, *results: Result) -> None:
        self.results = list(results)

    async def run(self, dids: Collection[str]) -> AsyncIterator[Result]:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        for _ in dids:
            yield result


async def compare(url: str, folder: Path, hosts: Any) -> audit.Report:
    store = await Store.open(url, "relay.example")
    await store.discovered([DID])
    await store.close()
    engine = TantivyEngine(folder)
    try:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            return await audit.compare(connection, hosts, engine, [DID])
    finally:
        engine.close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_PAUSE", 0.0)


async def test_a_difference_stands_until_disproved(database_url: str, tmp_path: Path) -> None:
    """A host that gives out a record we lack, and then fails, has not taken it back."""
    report = await compare(database_url, tmp_path, Hosts(SNAPSHOT, FAILED))
    assert [difference.what for difference in report.differences] == ["is missing here"]
    assert report.unreachable == {DID: "no answer"}
    assert report.hosted == {DID: "active"}
    assert commands._exit_status(report) == 1


async def test_what_was_on_its_way_is_no_difference(database_url: str, tmp_path: Path) -> None:
    """A difference that a later look does not see is forgotten, also after a failure in between."""
    same = Snapshot(DID, rev(1), SNAPSHOT.data, (), SNAPSHOT.commit, SNAPSHOT.identity)
    report = await compare(database_url, tmp_path, Hosts(SNAPSHOT, FAILED, same))
    assert (report.differences, report.unreachable) == ([], {})
    assert commands._exit_status(report) == 0


async def test_nothing_compared_is_no_success(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every host out of reach the exit status is 3, and the last line does not say that all is well."""
    report = await compare(database_url, tmp_path, Hosts(FAILED))
    commands._print(report)
    assert commands._exit_status(report) == 3
    assert capsys.readouterr().out.splitlines() == [
        f"at://{DID} could not be compared: no answer",
        "1 repository, no records, no documents in search: "
        "no differences in what could be compared, 1 repository could not",
    ]


async def test_what_is_on_its_way_to_search_is_no_difference(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others publish, each look finds another record that search does not have yet."""
    looks = iter(["a", "b", "b"])

    async def search(connection: Any, engine: Any) -> tuple[int, list[audit.Difference]]:
        return 1, [audit.Difference(f"at://{DID}/{DATASET}/{next(looks)}", "is missing in search")]

    monkeypatch.setattr(audit, "_search", search)
    same = Snapshot(DID, rev(1), SNAPSHOT.data, (), SNAPSHOT.commit, SNAPSHOT.identity)
    assert (await compare(database_url, tmp_path, Hosts(same))).differences == []


async def test_what_stays_missing_in_search_is_a_difference(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is looked for."""
    missing = audit.Difference(f"at://{DID}/{DATASET}/a", "is missing in search")

    async def search(connection: Any, engine: Any) -> tuple[int, list[audit.Difference]]:
        return 1, [missing]

    monkeypatch.setattr(audit, "_search", search)
    same = Snapshot(DID, rev(1), SNAPSHOT.data, (), SNAPSHOT.commit, SNAPSHOT.identity)
    assert (await compare(database_url, tmp_path, Hosts(same))).differences == [missing]


async def test_without_the_relay_what_is_known_is_compared(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which repositories there are besides is said to be unknown, with an exit status of its own."""

    class Unlisted:
        async def discover(self) -> AsyncIterator[str]:
            raise NetworkError("relay.example: connection refused")
            yield ""

    store = await Store.open(database_url, "relay.example")
    await store.discovered([DID])
    await store.close()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        dids, why = await audit.followed(connection, Unlisted())  # type: ignore[arg-type]
    assert (dids, why) == ([DID], "relay.example: connection refused")
    report = audit.Report(repositories=1, unlisted=why)
    commands._print(report)
    assert "relay.example: connection refused" in capsys.readouterr().out
    assert commands._exit_status(report) == 3


async def test_a_repair_ends(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An indexer that does not get to it is not waited for beyond the deadline; what is left is named."""
    report = await compare(database_url, tmp_path, Hosts(SNAPSHOT))
    monkeypatch.setattr(commands, "_MENDING", 0.2)
    store = await Store.open(database_url, "relay.example")
    await commands._mend(IndexerSettings(database_url=database_url, search_dir=tmp_path), report)
    await store.close()
    assert f"at://{DID} is still to be looked at" in capsys.readouterr().err
