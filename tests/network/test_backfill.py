"""Backfill of repositories on a real PDS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from network.atproto_network import Account, Network, creation

from atdata_backend.http import guarded_client
from atdata_backend.identity import Resolver
from atdata_indexer import backfill as module
from atdata_indexer.backfill import Backfill, FetchFailed, Head, RepoUnavailable, Snapshot
from atdata_indexer.car import decode_record

DATASET = "ac.foundation.dataset.record"
LABEL = "ac.foundation.dataset.label"


def dataset(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "schemaRef": "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a",
        "storage": {
            "$type": "ac.foundation.dataset.storageExternal",
            "urls": ["https://data.example.org/harbour/{000..003}.tar"],
        },
        "createdAt": "2026-01-01T00:00:00Z",
    }


@pytest.fixture
async def backfill(network: Network) -> AsyncIterator[Backfill]:
    async with guarded_client(allow_private=True) as client:
        resolver = Resolver(client, plc_url=network.plc, handle_resolver=network.pds)
        yield Backfill(client, resolver, relay_url=network.pds)


async def test_a_repository(network: Network, account: Account, backfill: Backfill) -> None:
    """A snapshot has our records as the PDS lists them, at its newest rev, and no others."""
    written = [account.create_record(DATASET, dataset(f"Harbour {n}")) for n in range(3)]
    written.append(account.create_record("ac.foundation.dataset.unheardOf", {"anything": 1}, "self"))
    account.create_record("com.example.note", {"subject": 1})
    account.create_record("ac.foundation.datasets.record", dataset("somebody else's"))
    account.delete_record(DATASET, written.pop(0)["uri"].rpartition("/")[2])
    snapshot = await backfill.fetch(account.did)
    found = {(f"at://{account.did}/{r.collection}/{r.rkey}", r.cid) for r in snapshot.records}
    assert found == {(record["uri"], record["cid"]) for record in written}
    assert {decode_record(r.block)["$type"] for r in snapshot.records} == {DATASET, "ac.foundation.dataset.unheardOf"}
    latest = network.query("com.atproto.sync.getLatestCommit", did=account.did)
    assert (snapshot.rev, snapshot.commit) == (latest["rev"], latest["cid"])
    assert snapshot.identity.handle is None  # nobody asked for it


async def test_many_records(account: Account, backfill: Backfill) -> None:
    """A tree of several levels is walked whole: each of 600 records, among 200 of another application."""
    for start in range(0, 600, 200):
        account.apply_writes([creation(LABEL, {"name": f"{n}"}, f"{n:04}") for n in range(start, start + 200)])
    account.apply_writes([creation("com.example.note", {"subject": n}, f"{n:04}") for n in range(200)])
    snapshot = await backfill.fetch(account.did)
    assert [record.rkey for record in snapshot.records] == [f"{n:04}" for n in range(600)]


@pytest.mark.parametrize("blocks_apart", [20_000, 100])
async def test_large_repositories(
    account: Account, backfill: Backfill, blocks_apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in parts, by its blocks, or as one stream, a large repository gives the same snapshot."""
    for start in range(0, 400, 200):
        account.apply_writes(
            [creation("com.example.note", {"subject": n}, f"{n:04}") for n in range(start, start + 200)]
        )
    account.apply_writes([creation(LABEL, {"name": f"{n}"}, f"{n:04}") for n in range(200)])
    whole = await backfill.fetch(account.did)
    assert len(whole.records) == 200
    monkeypatch.setattr(module, "_SMALL_REPOSITORY", 20_000)
    monkeypatch.setattr(module, "_MAX_BLOCKS_APART", blocks_apart)
    assert await backfill.fetch(account.did) == whole


async def test_an_empty_repository(account: Account, backfill: Backfill) -> None:
    """A repository without records is a snapshot, of none."""
    assert (await backfill.fetch(account.did)).records == ()


async def test_discovery_on_a_pds(network: Network, backfill: Backfill) -> None:
    """On a bare PDS, which has no index of collections, the repositories that hold our records are found."""
    ours, unknown, foreign, empty, gone = (network.create_account() for _ in range(5))
    for account in (ours, gone):
        account.create_record(DATASET, dataset("Harbour"))
    unknown.create_record("ac.foundation.dataset.unheardOf", {"anything": 1})
    foreign.create_record("com.example.note", {"subject": 1})
    gone.deactivate()
    found = [did async for did in backfill.discover()]
    assert len(found) == len(set(found))
    assert {ours.did, unknown.did} <= set(found)
    assert not {foreign.did, empty.did, gone.did} & set(found)


async def test_states_of_accounts(network: Network, backfill: Backfill) -> None:
    """Deactivated and taken-down accounts are unavailable by their state, and back when they are active again."""
    for hide, show, status in [
        (Account.deactivate, Account.activate, "deactivated"),
        (lambda a: network.takedown(a.did), lambda a: network.restore(a.did), "takendown"),
    ]:
        account = network.create_account()
        account.create_record(DATASET, dataset("Harbour"))
        hide(account)
        with pytest.raises(RepoUnavailable) as raised:
            await backfill.fetch(account.did)
        assert (raised.value.did, raised.value.status) == (account.did, status)
        show(account)
        assert len((await backfill.fetch(account.did)).records) == 1


async def test_deleted_accounts(network: Network, account: Account, backfill: Backfill) -> None:
    """Of a deleted account, whose DID document still names the PDS, the PDS says that there is no repository."""
    network.delete_account(account.did)
    with pytest.raises(RepoUnavailable, match=f"{account.did}: not-found"):
        await backfill.fetch(account.did)


async def test_latest_commits(network: Network, account: Account, backfill: Backfill) -> None:
    """The latest commit is that of the last write; of an account that is not active, its state."""
    before = await backfill.latest(account.did, network.pds)
    written = account.create_record(DATASET, dataset("Harbour"))
    assert await backfill.latest(account.did, network.pds) == Head(written["commit"]["rev"], written["commit"]["cid"])
    assert before.rev < written["commit"]["rev"]
    account.deactivate()
    with pytest.raises(RepoUnavailable, match="deactivated"):
        await backfill.latest(account.did, network.pds)
    network.delete_account(account.did)
    with pytest.raises(RepoUnavailable, match="not-found"):
        await backfill.latest(account.did, network.pds)


async def test_states(network: Network, account: Account, backfill: Backfill) -> None:
    """The PDS tells each state of an account, and of a deleted one that there is no repository."""

    async def state() -> tuple[str, str | None]:
        hosting = await backfill.status(account.did)
        assert hosting.identity is not None
        assert hosting.identity.pds == network.pds
        return hosting.status, hosting.rev

    written = account.create_record(DATASET, dataset("Harbour"))
    assert await state() == ("active", written["commit"]["rev"])
    account.deactivate()
    assert await state() == ("deactivated", None)
    network.takedown(account.did)
    assert await state() == ("takendown", None)
    network.restore(account.did)
    account.activate()
    assert (await state())[0] == "active"
    network.delete_account(account.did)
    assert await state() == ("not-found", None)


async def test_a_did_that_is_not_there(backfill: Backfill) -> None:
    """Of a DID that the directory does not have, nothing can be told: it may be the wrong directory."""
    with pytest.raises(FetchFailed, match="404"):
        await backfill.status("did:plc:" + "a" * 24)


async def test_proofs_of_records(network: Network, account: Account, backfill: Backfill) -> None:
    """The PDS proves that a record is there as it was written last, and that another is not, or not any more."""
    assert (await backfill.prove(account.did, DATASET, "a")).record is None
    account.apply_writes([creation(LABEL, {"name": f"{n}"}, f"{n:04}") for n in range(200)])
    account.create_record(DATASET, dataset("Harbour"), "a")
    written = account.put_record(DATASET, "a", dataset("Harbour, updated"))
    proof = await backfill.prove(account.did, DATASET, "a")
    assert proof.record is not None
    assert (proof.record.collection, proof.record.rkey, proof.record.cid) == (DATASET, "a", written["cid"])
    assert decode_record(proof.record.block)["name"] == "Harbour, updated"
    assert (proof.rev, proof.commit) == (written["commit"]["rev"], written["commit"]["cid"])
    for collection, rkey in [(DATASET, "b"), (LABEL, "0100x"), ("a.b.c", "d"), ("z.z.z", "z")]:
        assert (await backfill.prove(account.did, collection, rkey)).record is None
    account.delete_record(DATASET, "a")
    assert (await backfill.prove(account.did, DATASET, "a")).record is None
    network.takedown(account.did)
    with pytest.raises(RepoUnavailable, match="takendown"):
        await backfill.prove(account.did, DATASET, "a")


async def test_many_repositories(network: Network, backfill: Backfill) -> None:
    """Each of several repositories has its result, those that cannot be read, too."""
    accounts = [network.create_account() for _ in range(6)]
    for n, account in enumerate(accounts):
        account.create_record(DATASET, dataset(f"Harbour {n}"))
    accounts[0].deactivate()
    unknown = "did:plc:" + "a" * 24
    wanted = [unknown, *(account.did for account in accounts)]
    results = {result.did: result async for result in backfill.run(wanted)}
    assert results.keys() == set(wanted)
    assert isinstance(results.pop(unknown), FetchFailed)
    assert isinstance(results.pop(accounts[0].did), RepoUnavailable)
    for result in results.values():
        assert isinstance(result, Snapshot)
        assert len(result.records) == 1


async def test_private_hosts(network: Network, account: Account) -> None:
    """Where private hosts are not allowed, a repository on one is not read, though its directory is on one, too."""
    async with guarded_client(allow_private=False) as client:
        backfill = Backfill(client, Resolver(client, plc_url=network.plc), relay_url=network.pds)
        with pytest.raises(FetchFailed, match="only https"):
            await backfill.fetch(account.did)
