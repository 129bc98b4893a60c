"""The test network's fixtures, for the tests of the test network."""

from network.fixtures import account, network

__all__ = ["account", "network"]
