"""Migrations and connections, on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from postgres import TestDatabases
from psycopg import sql
from psycopg.conninfo import make_conninfo

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


@contextmanager
def role(postgres: TestDatabases, url: str) -> Iterator[tuple[str, str]]:
    """The name of a user without any rights of their own, and the URL that connects to *url* as them."""
    name = f"reader_{uuid4().hex[:8]}"
    with psycopg.connect(postgres.admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(name)))
        try:
            yield name, make_conninfo(url, user=name, password="secret")
        finally:
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_user_without_the_right_is_told_which(postgres: TestDatabases) -> None:
    """Who may not create tables gets a sentence with the statement that helps, and not a traceback."""
    with postgres.database(migrated=False) as url, role(postgres, url) as (name, as_role):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        with pytest.raises(ConfigError, match="cannot migrate the database") as caught:
            migrate(as_role)
        assert f'GRANT USAGE, CREATE ON SCHEMA public TO "{name}"' in str(caught.value)
        assert "secret" not in str(caught.value)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'GRANT USAGE, CREATE ON SCHEMA public TO "{name}"'.encode())
        assert migrate(as_role) > 0


def test_a_user_who_may_only_read_and_write_runs_on_what_is_migrated(
    postgres: TestDatabases, database_url: str
) -> None:
    """Migrating a database that is up to date needs no right but to see that it is."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with role(postgres, database_url) as (name, as_role):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f'GRANT SELECT ON migrations TO "{name}"'.encode())
        assert migrate(as_role) == migrate(database_url)


def test_a_database_of_another_encoding_is_refused(postgres: TestDatabases) -> None:
    """SQL_ASCII, which takes any bytes for text, is refused before anything is made in it."""
    name = f"ascii_{uuid4().hex[:8]}"
    with psycopg.connect(postgres.admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".encode())
        url = make_conninfo(postgres.admin, dbname=name)
        try:
            with pytest.raises(ConfigError, match=r"is SQL_ASCII: make one with .* ENCODING 'UTF8'"):
                migrate(url)
            with psycopg.connect(url) as other:
                assert other.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


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
