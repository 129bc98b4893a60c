"""Migrations and connections, on a real Postgres."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from postgres import TestDatabases

from atdata.errors import ConfigError
from atdata_backend.postgres import connect, migrate, migrations, open_pool


def test_migrating_twice_changes_nothing(postgres: TestDatabases) -> None:
    """A second run finds nothing to do and reports the same version."""
    with postgres.database(migrated=False) as url:
        assert migrate(url) == migrate(url) == max(version for version, _, _ in migrations())


def test_an_old_database_is_refused_with_the_command_that_helps(postgres: TestDatabases) -> None:
    """Connecting to a database that lacks a migration says which command brings it up."""
    with postgres.database(migrated=False) as url, pytest.raises(ConfigError, match="run `atdata migrate`"):
        asyncio.run(connect(url))


def test_a_newer_database_is_refused(database_url: str) -> None:
    """A database that a newer version made is left alone."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO migrations (version, name) VALUES (9999, 'future')")
    with pytest.raises(ConfigError, match="upgrade the program"):
        migrate(database_url)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    """The message says where, and never repeats the password."""
    with pytest.raises(ConfigError) as caught:
        migrate("postgresql://someone:hunter2@127.0.0.1:1/nothing")
    assert "nothing at 127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_of_something_else_is_not_repeated() -> None:
    """What is no Postgres URL is said to be none, without its password."""
    with pytest.raises(ConfigError, match="is no URL of a Postgres") as caught:
        migrate("mysql://root:hunter2@localhost/x")
    assert "hunter2" not in str(caught.value)


def test_a_reading_pool_cannot_write(database_url: str) -> None:
    """The AppView's connections refuse to change anything."""

    async def write() -> None:
        pool = await open_pool(database_url)
        try:
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO cursors (host, seq) VALUES ('x', 1)")
        finally:
            await pool.close()

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asyncio.run(write())
