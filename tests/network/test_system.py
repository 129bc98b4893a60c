"""The whole chain on the real thing: a PDS's firehose, the indexer, Postgres, the search engine, the AppView."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from frames import DATASET, SCHEMA, dataset, schema
from network.atproto_network import Account, Network, creation, deletion, update
from network.corpus import load_cards, publish
from network.system import System, start_system
from postgres import TestDatabases

from atdata_backend.search import open_engine


@pytest.fixture(scope="module")
def system(network: Network, postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One running system for all tests of this file: each looks only at accounts of its own."""
    with postgres.database() as url, start_system(network, url, tmp_path_factory.mktemp("system")) as system:
        yield system


def names(answer: dict[str, list[dict[str, dict[str, str]]]]) -> list[str]:
    return [view["record"]["name"] for view in answer["datasets"]]


def test_a_record_written_is_found_changed_and_gone(system: System, account: Account) -> None:
    """Create, update and delete at the PDS show in search, in look-ups and in listings."""
    written = account.create_record(DATASET, dataset("Chorus of dawn"))
    uri = written["uri"]
    found = system.until(
        lambda: system.query("searchDatasets", q="chorus of dawn", publishers=[account.did])["datasets"], "the record"
    )
    assert [(view["uri"], view["cid"], view["verified"]) for view in found] == [(uri, written["cid"], True)]
    assert found[0]["record"] == dataset("Chorus of dawn")

    account.put_record(DATASET, uri.rpartition("/")[2], dataset("Chorus of dusk"))
    system.until(
        lambda: names(system.query("searchDatasets", q="dusk", publishers=[account.did])) == ["Chorus of dusk"],
        "the update",
    )
    assert system.query("getRecord", uri=uri)["record"]["name"] == "Chorus of dusk"

    account.delete_record(DATASET, uri.rpartition("/")[2])
    system.until(lambda: system.get("/xrpc/ac.foundation.dataset.getRecord", uri=uri).status_code == 404, "the delete")
    system.until(lambda: not names(system.query("searchDatasets", publishers=[account.did])), "search to forget it")


def test_every_kind_of_record(system: System, account: Account) -> None:
    """Schemas, datasets, lenses, labels and collections that we do not know are all kept."""
    one = account.create_record(SCHEMA, schema("One"))["uri"]
    two = account.create_record(SCHEMA, schema("Two"))["uri"]
    data = account.create_record(DATASET, dataset("Kinds", schemaRef=one))["uri"]
    lens = account.create_record(
        "ac.foundation.dataset.lens",
        {"name": "one to two", "sourceSchema": one, "targetSchema": two, "createdAt": "2026-01-01T00:00:00Z"},
    )["uri"]
    label = account.create_record(
        "ac.foundation.dataset.label", {"name": "kinds", "datasetUri": data, "createdAt": "2026-01-01T00:00:00Z"}
    )["uri"]
    new = account.create_record("ac.foundation.dataset.notYetKnown", {"anything": [1, {"goes": True}]})["uri"]
    system.until(
        lambda: system.get("/xrpc/ac.foundation.dataset.getRecord", uri=new).status_code == 200, "the last record"
    )
    assert [v["uri"] for v in system.query("getSchemas", uris=[two, one])["schemas"]] == [two, one]
    assert [v["uri"] for v in system.query("listDatasets", schema=one)["datasets"]] == [data]
    assert [v["uri"] for v in system.query("listLenses", source=one, target=two)["lenses"]] == [lens]
    assert system.query("getRecord", uri=label)["record"]["datasetUri"] == data
    assert system.query("getRecord", uri=new)["record"]["anything"] == [1, {"goes": True}]


def test_handles_are_found_out_and_followed(system: System, account: Account) -> None:
    """The publisher's handle stands with the record, can be asked for, and changes with the account's."""
    account.create_record(DATASET, dataset("Handled"))
    view = system.until(
        lambda: next(
            (
                v
                for v in system.query("listDatasets", publisher=account.did)["datasets"]
                if v["publisher"]["handle"] == account.handle
            ),
            None,
        ),
        "the handle",
    )
    assert view["publisher"]["did"] == account.did
    assert names(system.query("listDatasets", publisher=account.handle)) == ["Handled"]
    account.update_handle(account.handle.replace("user-", "new-"))
    system.until(
        lambda: (
            system.query("listDatasets", publisher=account.did)["datasets"][0]["publisher"]["handle"] == account.handle
        ),
        "the new handle",
    )


def test_inactive_accounts_are_hidden_and_come_back(system: System, network: Network, account: Account) -> None:
    """Deactivation and takedown hide all of an account at once; undoing them shows it again."""
    uri = account.create_record(DATASET, dataset("Now you see me"))["uri"]

    def is_shown() -> bool:
        found = names(system.query("searchDatasets", publishers=[account.did]))
        looked_up = system.get("/xrpc/ac.foundation.dataset.getRecord", uri=uri).status_code
        return bool(found) and looked_up == 200

    def is_hidden() -> bool:
        found = names(system.query("searchDatasets", publishers=[account.did]))
        looked_up = system.get("/xrpc/ac.foundation.dataset.getRecord", uri=uri).status_code
        return not found and looked_up == 404

    system.until(is_shown, "the record")
    account.deactivate()
    system.until(is_hidden, "the deactivation")
    account.activate()
    system.until(is_shown, "the activation")
    network.takedown(account.did)
    system.until(is_hidden, "the takedown")
    network.restore(account.did)
    system.until(is_shown, "the restoration")
    network.delete_account(account.did)
    system.until(is_hidden, "the deletion")


def test_a_malformed_record_is_shown_with_its_problems(system: System, account: Account) -> None:
    """What breaks its lexicon is kept raw and flagged, in look-ups and in listings."""
    odd = {"name": 7, "storage": "nowhere", "createdAt": "yesterday"}
    uri = account.create_record(DATASET, odd)["uri"]
    good = account.create_record(DATASET, dataset("Beside it"))["uri"]
    system.until(lambda: system.get("/xrpc/ac.foundation.dataset.getRecord", uri=good).status_code == 200, "both")
    view = system.query("getRecord", uri=uri)
    assert view["record"] == {"$type": DATASET, **odd}
    assert view["problems"]
    assert {v["uri"] for v in system.query("listDatasets", publisher=account.did)["datasets"]} == {uri, good}


def test_the_dataset_cards(system: System, network: Network) -> None:
    """Every card published from several accounts is in the index with its schema, and found by its name."""
    cards = load_cards()
    accounts = [network.create_account() for _ in range(5)]
    uris = publish(cards, accounts)
    dids = [a.did for a in accounts]
    system.until(
        lambda: system.query("searchDatasets", publishers=dids)["total"] == len(cards), "all cards to be searchable"
    )
    system.settled()
    first = 0
    for card in cards:
        found = system.query("searchDatasets", q=card.title, publishers=dids, limit=5)["datasets"]
        assert uris[card.name] in [v["uri"] for v in found], f"{card.title} is not among the first five"
        first += found[0]["uri"] == uris[card.name]
        (view,) = (v for v in found if v["uri"] == uris[card.name])
        assert "problems" not in view
        assert view["record"]["name"] == card.title
    assert first >= 0.95 * len(cards)
    # A publisher's listing pages through to the end, without repeats.
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = system.query("listDatasets", publisher=accounts[0].did, limit=30, **cursor)
        seen += [v["uri"] for v in page["datasets"]]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert sorted(seen) == sorted(uri for uri in uris.values() if accounts[0].did in uri)
    print(f"{len(cards)} cards from {cards[0].source}, {first} found first by their name")


def test_what_was_published_before_is_fetched(
    network: Network, postgres: TestDatabases, tmp_path: Path, account: Account
) -> None:
    """An indexer that never read this network finds what is in its repositories already."""
    uri = account.create_record(DATASET, dataset("Long before"))["uri"]
    with postgres.database() as url, start_system(network, url, tmp_path) as system:
        system.until(lambda: names(system.query("searchDatasets", q="long before", publishers=[account.did])), "it")
        assert system.query("getRecord", uri=uri)["record"]["name"] == "Long before"


def test_without_backfill_only_what_comes_by(
    network: Network, postgres: TestDatabases, tmp_path: Path, account: Account
) -> None:
    """With backfill off, an account's earlier records stay unknown."""
    account.create_record(DATASET, dataset("Earlier"))
    with postgres.database() as url, start_system(network, url, tmp_path, ATDATA_BACKFILL="false") as system:
        account.create_record(DATASET, dataset("Later"))
        system.until(lambda: names(system.query("searchDatasets", publishers=[account.did])) == ["Later"], "the later")


def test_killed_at_random_nothing_is_lost_and_nothing_is_twice(
    network: Network, postgres: TestDatabases, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a burst of writes, again and again: Postgres and search end up as the PDS is."""
    accounts = [network.create_account() for _ in range(4)]
    generator = random.Random(20261122)
    errors: list[BaseException] = []

    def write(account: Account, seed: int) -> None:
        choose = random.Random(seed)
        keys: list[str] = []
        try:
            for n in range(40):
                writes = []
                for _ in range(choose.randint(1, 5)):
                    action = choose.choice(["create", "create", "create", "update", "delete"]) if keys else "create"
                    if action == "create":
                        key = f"k{seed}-{n}-{len(writes)}"
                        writes.append(creation(DATASET, dataset(f"Burst {key}"), key))
                    else:
                        key = keys.pop(choose.randrange(len(keys)))
                        writes.append(
                            update(DATASET, key, dataset(f"Changed {n} {key}"))
                            if action == "update"
                            else deletion(DATASET, key)
                        )
                account.apply_writes(writes)
                keys += [w["rkey"] for w in writes if not w["$type"].endswith("delete")]
        except BaseException as e:
            errors.append(e)
            raise

    with postgres.database() as url, start_system(network, url, tmp_path) as system:
        writers = [threading.Thread(target=write, args=(a, n)) for n, a in enumerate(accounts)]
        for writer in writers:
            writer.start()
        kills = 0
        while any(writer.is_alive() for writer in writers) or kills < 5:
            # The pauses are the experiment, not a wait for anything.
            writers[0].join(generator.uniform(0.05, 0.8))
            system.kill_indexer()
            kills += 1
            system.start_indexer()
        for writer in writers:
            writer.join()
        assert not errors
        system.settled()

        expected = {r["uri"]: (r["cid"], r["value"]) for a in accounts for r in a.list_records(DATASET)}
        dids = [a.did for a in accounts]
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT uri, cid, record FROM records WHERE did = ANY(%s)", [dids]).fetchall()
        assert {uri: (cid, record) for uri, cid, record in rows} == expected
        assert system.stop_indexer() == 0
        system.start_indexer()
        engine = open_engine(folder=system.search_dir, meili_url=None)
        searchable = [uri for uri in dict(engine.stamps()) if uri.split("/")[2] in dids]
        engine.close()
        assert sorted(searchable) == sorted(expected)
        print(f"{kills} kills, {len(expected)} records")
