"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop
from postgres import TestDatabases, databases

from atdata import LensNetwork


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The stream runs on uvloop, whose transports differ in small ways from asyncio's: it is tested on both."""
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name == "test_stream.py":
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestDatabases]:
    """The Postgres server of this run."""
    with databases() as server:
        yield server


@pytest.fixture
def database_url(postgres: TestDatabases) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def own_lenses() -> Iterator[None]:
    """The test starts with no lenses, and leaves the registry as it was."""
    registry = LensNetwork()
    saved, registry._lenses = registry._lenses, {}
    yield
    registry._lenses = saved
