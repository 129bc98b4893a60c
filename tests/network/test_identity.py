"""Identities as a real PLC directory and PDS serve them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from network.atproto_network import Account, Network

from atdata.errors import NetworkError
from atdata_backend.http import Refused, guarded_client
from atdata_backend.identity import DidNotFound, Identity, Resolver


@pytest.fixture
async def resolver(network: Network) -> AsyncIterator[Resolver]:
    """One that asks the PDS for handles, as an operator of a local network sets it."""
    async with guarded_client(allow_private=False) as client:
        yield Resolver(client, plc_url=network.plc, handle_resolver=network.pds)


async def test_an_account(network: Network, account: Account, resolver: Resolver) -> None:
    """A new account resolves to its handle, its PDS and a key, though PLC and PDS are on loopback."""
    found = await resolver.resolve(account.did)
    async with httpx.AsyncClient() as client:
        operation = (await client.get(f"{network.plc}/{account.did}/data")).json()
    key = operation["verificationMethods"]["atproto"].removeprefix("did:key:")
    assert found == Identity(account.did, account.handle, network.pds, key)


async def test_a_new_handle(account: Account, resolver: Resolver) -> None:
    """A handle that was changed is the new one at once: nothing is remembered."""
    await resolver.resolve(account.did)
    new = account.handle.replace(".test", "-2.test")
    account.update_handle(new)
    assert (await resolver.resolve(account.did)).handle == new


async def test_a_handle_that_nobody_confirms(network: Network, account: Account) -> None:
    """Without the PDS to confirm it, a `.test` handle is none: no name server knows it."""
    async with guarded_client(allow_private=False) as client:
        found = await Resolver(client, plc_url=network.plc).resolve(account.did)
    assert found.handle is None
    assert found.pds == network.pds


async def test_unknown_did(resolver: Resolver) -> None:
    """A did:plc that the directory does not know is not found."""
    with pytest.raises(DidNotFound):
        await resolver.resolve("did:plc:" + "a" * 24)


async def test_no_directory(network: Network, account: Account) -> None:
    """A service that is no directory is a NetworkError; the DID may exist."""
    async with guarded_client(allow_private=False) as client:
        with pytest.raises(NetworkError, match=account.did):
            await Resolver(client, plc_url="http://localhost:1").resolve(account.did)


async def test_a_pds_as_did_web(network: Network) -> None:
    """The PDS's own did:web of localhost is refused where private hosts are not allowed."""
    async with guarded_client(allow_private=False) as client:
        resolver = Resolver(client, plc_url=network.plc, allow_private=True)
        with pytest.raises(Refused, match="only https"):
            await resolver.resolve("did:web:localhost" + network.pds.replace("http://localhost:", "%3A"))
