"""Fixtures of the test network, for every folder of tests that imports them into its conftest.py."""

import os
from collections.abc import Iterator

import pytest
from network.atproto_network import Account, Network, has_node, start_network


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """A PDS and a PLC directory for the whole run. Tests share them: look only at accounts of your own."""
    if not has_node() and os.environ.get("CI") != "true":
        pytest.skip("the test network needs Node.js 20 or newer, with npm: https://nodejs.org/")
    with start_network() as network:
        yield network


@pytest.fixture
def account(network: Network) -> Account:
    """A new account of the test's own."""
    return network.create_account()
