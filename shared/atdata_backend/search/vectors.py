"""Own the table of vectors in Postgres: which documents have which, made by which model, and which are nearest."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from atdata.errors import ConfigError, NetworkError
from atdata_backend.postgres import describe, open_blocking_pool
from atdata_backend.search.embedding import Vector

# Named after the model, so that a change of the model cannot be forgotten: the next writer starts an empty table and
# drops the old one, readers find no neighbours until it has, and the feed fills it.
_TABLES = "^semantic_[0-9a-f]{8}$"

_CONNECTIONS = 6

# Seconds that a search waits for the database before it goes on by words only.
_PATIENCE = 2


class NoVectors(NetworkError):
    """There is no table: no indexer has made vectors with this model yet, or one with another has dropped it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A document's vector: ``stamp`` of the document, ``digest`` of the text of which it was made."""

    uri: str
    stamp: str
    digest: str
    vector: Vector | None


class Vectors:
    """The vectors that the model *id* made, in the database at *url*. One process writes, many may read.

    They are kept in half precision: the half of the disk, and no other neighbours. Raises NetworkError when the
    database does not answer, `NoVectors` when there is no table.
    """

    def __init__(self, url: str, id: str, dimensions: int) -> None:
        self.table = f"semantic_{id}"
        self._url = url
        self._dimensions = dimensions
        self._opening = threading.Lock()
        self._pool: ConnectionPool | None = None

    def prepare(self) -> None:
        """Make the table, and drop those of other models. Raises ConfigError where Postgres has no pgvector."""
        with self._writing() as connection:
            if not connection.execute("SELECT FROM pg_extension WHERE extname = 'vector'").fetchall():
                self._make_extension(connection)
            if connection.execute("SELECT to_regclass(%s)", [self.table]).fetchone() == (None,):
                self._make_table(connection)
            others = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema::regnamespace"
                " AND relname ~ %s AND relname != %s",
                [_TABLES, self.table],
            ).fetchall()
            for (other,) in others:
                connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(other)))

    def _make_extension(self, connection: psycopg.Connection) -> None:
        where = describe(self._url)
        try:
            connection.execute("CREATE EXTENSION vector")
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"the user {connection.info.user} may not add pgvector to the database {where}: as a superuser, run "
                "`CREATE EXTENSION vector` there, or unset ATDATA_SEMANTIC_MODEL to search by words only"
            ) from error
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            raise ConfigError(
                f"the server of the database {where} has no pgvector: install it there (Debian's package is "
                "`postgresql-NN-pgvector`), or unset ATDATA_SEMANTIC_MODEL to search by words only"
            ) from error

    def _make_table(self, connection: psycopg.Connection) -> None:
        try:
            connection.execute(
                self._sql(
                    "CREATE TABLE {table} (number bigint GENERATED ALWAYS AS IDENTITY UNIQUE, uri text PRIMARY KEY,"
                    " stamp text NOT NULL, digest text NOT NULL, embedding halfvec({dimensions}));"
                    " CREATE INDEX ON {table} USING hnsw (embedding halfvec_cosine_ops)"
                )
            )
        except psycopg.errors.UndefinedObject as error:
            raise ConfigError(
                f"pgvector in the database {describe(self._url)} is older than 0.7: install a newer one and run "
                "`ALTER EXTENSION vector UPDATE`, or unset ATDATA_SEMANTIC_MODEL to search by words only"
            ) from error
        except psycopg.errors.ProgramLimitExceeded as error:
            raise ConfigError(
                f"vectors of {self._dimensions} numbers are too long for pgvector ({error.diag.message_primary}): name "
                "a smaller model in ATDATA_SEMANTIC_MODEL"
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"the user {connection.info.user} may make no table in the database {describe(self._url)}: as its "
                f'owner, run `GRANT USAGE, CREATE ON SCHEMA public TO "{connection.info.user}"`'
            ) from error

    def digests(self, uris: Sequence[str]) -> dict[str, str]:
        """The digest of each of *uris* that has a row."""
        with self._writing() as connection:
            query = self._sql("SELECT uri, digest FROM {table} WHERE uri = ANY(%s)")
            return dict(connection.execute(query, [list(uris)]).fetchall())

    def store(self, rows: Iterable[Row], restamped: Mapping[str, str], deletes: Sequence[str]) -> None:
        """Write *rows*, give others new stamps, and delete, all at once."""
        with self._writing() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.execute(self._sql("DELETE FROM {table} WHERE uri = ANY(%s)"), [list(deletes)])
            # A row keeps its number: cursors of searches hold it.
            cursor.executemany(
                self._sql(
                    "INSERT INTO {table} (uri, stamp, digest, embedding) VALUES (%s, %s, %s, %s::halfvec)"
                    " ON CONFLICT (uri) DO UPDATE"
                    " SET stamp = excluded.stamp, digest = excluded.digest, embedding = excluded.embedding"
                ),
                [(row.uri, row.stamp, row.digest, _literal(row.vector)) for row in rows],
            )
            cursor.executemany(
                self._sql("UPDATE {table} SET stamp = %s WHERE uri = %s"),
                [(stamp, uri) for uri, stamp in restamped.items()],
            )

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and stamp."""
        with self._writing() as connection, connection.transaction(), connection.cursor("stamps") as cursor:
            yield from cursor.execute(self._sql("SELECT uri, stamp FROM {table}"))

    def clear(self) -> None:
        with self._writing() as connection:
            connection.execute(self._sql("TRUNCATE {table}"))

    def nearest(self, vector: Vector, limit: int, likeness: float) -> list[tuple[int, str]]:
        """Numbers and URIs of the nearest *limit* documents whose cosine to *vector* is at least *likeness*."""
        with self._reading() as connection, connection.transaction():
            # So many the index looks at; pgvector's default finds no more than 40.
            connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(max(limit, 40)))
            query = self._sql(
                "SELECT number, uri, embedding <=> %s::halfvec AS distance FROM {table}"
                " WHERE embedding IS NOT NULL ORDER BY distance LIMIT %s"
            )
            found = connection.execute(query, [_literal(vector), limit]).fetchall()
        return [(number, uri) for number, uri, distance in found if 1 - distance >= likeness]

    def uris(self, numbers: Sequence[int]) -> dict[int, str]:
        """The URIs of the rows of these *numbers* that are there."""
        with self._reading() as connection:
            query = self._sql("SELECT number, uri FROM {table} WHERE number = ANY(%s)")
            return dict(connection.execute(query, [list(numbers)]).fetchall())

    def close(self) -> None:
        with self._opening:
            pool, self._pool = self._pool, None
        if pool:
            pool.close()

    def _sql(self, query: LiteralString) -> sql.Composed:
        return sql.SQL(query).format(table=sql.Identifier(self.table), dimensions=sql.Literal(self._dimensions))

    @contextmanager
    def _writing(self) -> Iterator[psycopg.Connection]:
        with self._asking(), psycopg.connect(self._url, autocommit=True, connect_timeout=10) as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[psycopg.Connection]:
        with self._opening:
            if self._pool is None:
                self._pool = open_blocking_pool(self._url, max_size=_CONNECTIONS)
            pool = self._pool
        with self._asking(), pool.connection(timeout=_PATIENCE) as connection:
            yield connection

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The database's errors turned into ours."""
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            where = describe(self._url)
            raise NoVectors(f"the database {where} has no vectors of the model in ATDATA_SEMANTIC_MODEL") from error
        except (psycopg.Error, PoolTimeout) as error:
            where, what = describe(self._url), " ".join(str(error).split())
            raise NetworkError(f"the vectors in the database {where} cannot be used: {what}") from error


def _literal(vector: Vector | None) -> str | None:
    return None if vector is None else f"[{','.join(map(str, vector.tolist()))}]"
