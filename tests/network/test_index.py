"""`atdata index …` beside a running indexer: what was tampered with is found, named and mended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from frames import DATASET, SCHEMA, dataset, schema
from network.atproto_network import Account, Network
from network.system import System, start_system
from postgres import TestDatabases


@pytest.fixture(scope="module")
def system(network: Network, postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with postgres.database() as url, start_system(network, url, tmp_path_factory.mktemp("index")) as system:
        yield system


def index(system: System, *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "atdata", "index", *arguments],
        env=system.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def execute(system: System, statement: str, *values: object) -> None:
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        connection.execute(statement.encode(), values)


def test_what_differs_is_found_and_mended(system: System, network: Network, account: Account) -> None:
    """A record lost, one changed, one made up, one not proven, one missing in search, an account hidden or not."""
    uris = {name: account.create_record(DATASET, dataset(name))["uri"] for name in ("lost", "changed", "unsearchable")}
    account.create_record(SCHEMA, schema("Unproven"))
    other, gone = network.create_account(), network.create_account()
    kept = other.create_record(DATASET, dataset("Kept"))["uri"]
    gone.create_record(DATASET, dataset("Gone"))
    repos = [argument for a in (account, other, gone) for argument in ("--repo", a.did)]
    system.until(lambda: system.sql("SELECT 1 FROM records WHERE did = %s", gone.did), "the last record")
    system.settled()
    code, said = index(system, "verify", *repos)
    assert (code, "no differences" in said) == (0, True), said

    gone.deactivate()
    system.until(
        lambda: system.sql("SELECT 1 FROM repositories WHERE did = %s AND status = 'deactivated'", gone.did), "it"
    )
    execute(system, "DELETE FROM records WHERE uri = %s", uris["lost"])
    execute(system, "UPDATE records SET cid = 'bafyreialtered', name = 'altered' WHERE uri = %s", uris["changed"])
    execute(system, "UPDATE records SET verified_at = NULL WHERE did = %s AND kind = 'schema'", account.did)
    execute(
        system,
        "INSERT INTO records (did, collection, rkey, kind, cid, rev, record) SELECT did, collection, 'invented', kind,"
        " cid, rev, record FROM records WHERE uri = %s",
        uris["unsearchable"],
    )
    execute(system, "UPDATE repositories SET status = 'takendown' WHERE did = %s", other.did)
    execute(system, "UPDATE repositories SET status = 'active' WHERE did = %s", gone.did)

    code, said = index(system, "verify", *repos)
    assert code == 1, said
    for expected in (
        f"{uris['lost']} is missing here",
        f"{uris['changed']} is bafyreialtered here",
        "is not verified here",
        "/invented is here, and not at its host",
        f"at://{other.did} is takendown here, active at its host",
        f"at://{gone.did} is shown here, and deactivated at its host",
    ):
        assert expected in said, said

    code, said = index(system, "repair", *repos)
    assert (code, "no differences" in said) == (0, True), said
    assert system.query("getRecord", uri=uris["changed"])["record"]["name"] == "changed"
    assert system.query("getRecord", uri=kept)["verified"] is True
    assert system.get("/xrpc/ac.foundation.dataset.getRecord", uri=f"at://{account.did}/{DATASET}/invented").is_error


def test_what_was_written_into_the_database_is_found_and_mended(system: System, account: Account) -> None:
    """Where a record has its CID, and what it says, what was read of it, or how many there are, was changed by hand."""
    before = system.query("getStatus")["records"]["dataset"]
    names = ("text", "address", "column", "untouched")
    uris = {name: account.create_record(DATASET, dataset(name))["uri"] for name in names}
    system.until(lambda: system.query("getStatus")["records"]["dataset"] == before + 4, "them all")
    system.settled()
    execute(
        system,
        """UPDATE records SET record = jsonb_set(record, '{description}', '"not what was published"') WHERE uri = %s""",
        uris["text"],
    )
    execute(
        system,
        """UPDATE records SET record = jsonb_set(record, '{storage,urls}', '["https://evil.example/x"]')"""
        " WHERE uri = %s",
        uris["address"],
    )
    execute(system, "UPDATE records SET name = 'altered', problems = '{fake}' WHERE uri = %s", uris["column"])
    execute(system, "UPDATE publishers SET datasets = 99 WHERE did = %s", account.did)

    code, said = index(system, "verify", "--repo", account.did)
    assert code == 1, said
    for name in ("text", "address", "column"):
        assert f"{uris[name]} is not what its CID says here" in said, said
    assert uris["untouched"] not in said
    assert f"at://{account.did} has other numbers of records than are counted here" in said, said

    code, said = index(system, "repair", "--repo", account.did)
    # Three records, of each what search has of it, and the count.
    assert (code, "7 of 7 differences mended" in said) == (0, True), said
    assert "description" not in system.query("getRecord", uri=uris["text"])["record"]
    assert "evil" not in str(system.query("getRecord", uri=uris["address"]))
    assert system.sql("SELECT name FROM records WHERE uri = %s", uris["column"]) == [("column",)]
    assert system.sql("SELECT datasets FROM publishers WHERE did = %s", account.did) == [(4,)]


def test_search_is_compared_with_postgres(system: System, account: Account) -> None:
    """A document as it was before, and one that is not there: both are named, and fed again."""
    uri = account.create_record(DATASET, dataset("Stale"))["uri"]
    system.until(lambda: system.query("searchDatasets", q="stale", publishers=[account.did])["datasets"], "it")
    system.settled()
    execute(system, "UPDATE repositories SET handle = 'other.test' WHERE did = %s", account.did)
    code, said = index(system, "verify", "--repo", account.did)
    assert (code, f"{uri} is in search as something older" in said) == (1, True), said
    code, said = index(system, "repair", "--repo", account.did)
    assert (code, "no differences" in said) == (0, True), said


def test_a_whole_comparison_is_published(system: System, account: Account) -> None:
    """Without --repo everything that is followed, or should be, is compared, and `getStatus` tells when and how."""
    account.create_record(DATASET, dataset("Everything"))
    system.settled()
    code, said = index(system, "verify")
    assert (code, "no differences" in said) == (0, True), said
    sweep = system.query("getStatus")["sweep"]
    assert (sweep["reason"], sweep["differing"], sweep["unreachable"]) == ("atdata index verify", 0, 0)
    assert sweep["checked"] >= 1


def test_quarantine(system: System, account: Account) -> None:
    """Listed, shown, and read again after a fix: the repository it concerns is read anew."""
    uri = account.create_record(DATASET, dataset("Once refused"))["uri"]
    system.until(lambda: system.sql("SELECT 1 FROM records WHERE uri = %s", uri), "it")
    execute(
        system,
        "INSERT INTO quarantine (reason, digest, detail, source, seq, did, bytes)"
        " VALUES ('refused-by-database', 'x', 'too \x1b[31mred', 'relay.example', NULL, %s, '\\xa16161f6')",
        account.did,
    )
    execute(
        system,
        "INSERT INTO quarantine (reason, digest, detail, source, seq, did, bytes)"
        " VALUES ('not-cbor', 'y', 'noise', 'relay.example', 5, E'\\x1b[2Jdid', '\\xfffefd')",
    )
    code, said = index(system, "quarantine", "ls")
    assert code == 0
    assert "refused-by-database" in said
    assert "\x1b" not in said
    number = next(line.split()[0] for line in said.splitlines() if "refused-by-database" in line)
    code, said = index(system, "quarantine", "show", number)
    assert (code, "a1 61 61 f6" in said) == (0, True)
    execute(system, "DELETE FROM records WHERE uri = %s", uri)
    code, said = index(system, "quarantine", "replay", "--reason", "refused-by-database")
    assert said.startswith("1 understood by now, 0 still not; 1 repositor"), said
    system.until(lambda: system.sql("SELECT 1 FROM records WHERE uri = %s", uri), "the record again")
    code, said = index(system, "quarantine", "replay", "--reason", "not-cbor")
    assert said.startswith("0 understood by now, 1 still not"), said
    assert index(system, "quarantine", "show", "999999")[0] != 0
    assert index(system, "quarantine", "replay")[0] != 0
    assert index(system, "verify", "--repo", "alice")[0] != 0
