"""Postgres: connecting, pooling, and the migrations that both services rely on."""

from __future__ import annotations

import re
import select
from importlib import resources
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from atdata.errors import ConfigError

# Any constant will do, as long as every version of this program uses the same ones.
_MIGRATION_LOCK = 0x61746D69


def migrations() -> list[tuple[int, str, str]]:
    """The migrations in order: ``(version, name, SQL)``. Files are numbered and never change once released."""
    found = []
    for file in resources.files("atdata_backend").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append((int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found)


def describe(url: str) -> str:
    """*url* fit for a message: where the database is, without its password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "ATDATA_DATABASE_URL"
    return f"{parts.get('dbname') or 'postgres'} at {parts.get('host') or 'localhost'}"


def migrate(url: str) -> int:
    """Bring the database to the newest schema and return its version. Safe to run from several processes at once.

    Raises ConfigError when the database cannot be reached, was made by a newer version of this program, has another
    encoding than UTF-8, or does not let its user do this.
    """
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.Error as e:
        raise _unreachable(url, e) from e
    with connection:
        _require_utf8(url, connection)
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
            return _migrate(url, connection)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as e:
            user = connection.info.user
            raise ConfigError(
                f"the user {user} cannot migrate the database {describe(url)} ({e.diag.message_primary}): as its owner,"
                f' run `GRANT USAGE, CREATE ON SCHEMA public TO "{user}"`, or name another user in ATDATA_DATABASE_URL'
            ) from e


def _migrate(url: str, connection: psycopg.Connection) -> int:
    # Looked for first: a user who may only read and write can run on what another has migrated.
    found = connection.execute("SELECT to_regclass('migrations')").fetchone()
    if found is None or found[0] is None:
        connection.execute(
            "CREATE TABLE migrations ("
            "version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    current = _version(connection.execute("SELECT max(version) FROM migrations").fetchone())
    _refuse_newer(url, current)
    for version, name, sql in migrations():
        if version > current:
            with connection.transaction():
                connection.execute(sql.encode())
                connection.execute("INSERT INTO migrations (version, name) VALUES (%s, %s)", [version, name])
            current = version
    return current


async def connect(url: str) -> AsyncConnection:
    """One connection, for a process that writes in order. Raises ConfigError like `open_pool`."""
    try:
        connection = await AsyncConnection.connect(url, connect_timeout=10)
    except psycopg.Error as e:
        raise _unreachable(url, e) from e
    try:
        await _require_migrated(url, connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def open_pool(url: str, *, max_size: int = 8) -> AsyncConnectionPool:
    """A pool for reading: transactions are read-only and a statement may take ten seconds at most.

    Raises ConfigError when the database cannot be reached or is not at this program's migration.
    """
    await (await connect(url)).close()
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
        url, min_size=1, max_size=max_size, open=False, check=_check, **_POOL
    )
    await pool.open(wait=True, timeout=10)
    return pool


def open_blocking_pool(url: str, *, max_size: int) -> ConnectionPool:
    """The same for threads, where `open_pool` has found nothing wrong. It connects when it is first asked."""
    return ConnectionPool(url, min_size=0, max_size=max_size, open=True, check=_check_blocking, **_POOL)


_POOL: dict[str, Any] = {
    # Seconds that it goes on trying by itself when the server is gone; the next request makes it try again at once.
    "reconnect_timeout": 5.0,
    "kwargs": {
        "autocommit": True,
        "options": "-c default_transaction_read_only=on -c statement_timeout=10s -c timezone=UTC",
    },
}


# A restarted server leaves dead connections in a pool: look before handing one out. To ask the server would take as
# long as a query. But of an idle connection there is nothing to read, unless the server said good-bye, or is gone.


async def _check(connection: AsyncConnection) -> None:
    if _has_news(connection):
        await AsyncConnectionPool.check_connection(connection)


def _check_blocking(connection: Connection) -> None:
    if _has_news(connection):
        ConnectionPool.check_connection(connection)


def _has_news(connection: AsyncConnection | Connection) -> bool:
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def _version(row: TupleRow | None) -> int:
    return (row[0] if row else None) or 0


def _unreachable(url: str, e: psycopg.Error) -> ConfigError:
    if isinstance(e, psycopg.ProgrammingError):
        # The error quotes the URL, password and all.
        return ConfigError("ATDATA_DATABASE_URL is no URL of a Postgres: give one like postgresql://user@host/name")
    # libpq explains itself over several lines.
    return ConfigError(
        f"cannot reach the database {describe(url)}: {' '.join(str(e).split())} Check ATDATA_DATABASE_URL."
    )


def _require_utf8(url: str, connection: psycopg.Connection) -> None:
    # Elsewhere not every record has a place, and in SQL_ASCII no text is known to be one.
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigError(
            f"the encoding of the database {describe(url)} is {encoding}: make one with"
            " `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0` and name it in ATDATA_DATABASE_URL"
        )


def _refuse_newer(url: str, current: int) -> None:
    newest = max(version for version, _, _ in migrations())
    if current > newest:
        raise ConfigError(
            f"the database {describe(url)} is at migration {current}, this program knows {newest}: upgrade the program"
        )


async def _require_migrated(url: str, connection: AsyncConnection) -> None:
    newest = max(version for version, _, _ in migrations())
    try:
        row = await (await connection.execute("SELECT max(version) FROM migrations")).fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    await connection.rollback()
    current = _version(row)
    _refuse_newer(url, current)
    if current < newest:
        raise ConfigError(
            f"the database {describe(url)} is at migration {current} of {newest}: run `atdata migrate` first"
        )
