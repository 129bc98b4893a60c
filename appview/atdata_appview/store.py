"""All SQL of the AppView. It only reads; a method is one query, and its name is what comes back.

Whatever returns records goes through `_VISIBLE`: a record of an account that is not active does not exist here.
"""

# ruff: noqa: S608 - statements are put together of constants only; values are parameters

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import args_row
from psycopg_pool import AsyncConnectionPool

from atdata.nsid import Kind
from atdata_appview.models import Listing, Record, Relay, Status, Sweep
from atdata_backend.search.base import BadCursor

# How long a request waits for a connection: with the database gone, it is told so after that.
_PATIENCE = 2.0

#: Bytes of records in an answer, of which the last may be beyond: a hundred of the largest would be 100 MB, which a
#: client that reads slowly keeps in memory.
ANSWER_BYTES = 4_000_000

_VISIBLE: LiteralString = "JOIN repositories a ON a.did = r.did AND a.status = 'active'"

# The columns are `Record`'s fields, in their order. The records go by `place`, and those that come when there are so
# many bytes already are without their text, which then the database does not send.
_RECORDS: LiteralString = f"""
SELECT id, uri, cid, did, collection, rkey, kind, handle, pds,
    CASE WHEN coalesce(sum(octet_length(record::text)) OVER before, 0) < %s THEN record::text ELSE '' END,
    problems, verified_at, verified_key, commit_cid, indexed_at
FROM (
    SELECT r.*, a.handle, a.pds, {{place}} AS place FROM records r {_VISIBLE} WHERE {{where}} {{end}}
) AS found
WINDOW before AS (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
ORDER BY place
"""

_STATUS: LiteralString = f"""
SELECT
    (SELECT coalesce(jsonb_object_agg(kind, n), '{{}}') FROM (
        SELECT coalesce(r.kind, 'unknown') AS kind, count(*) AS n FROM records r {_VISIBLE} GROUP BY 1
    ) AS kinds),
    (SELECT jsonb_build_object(
        'active', count(*) FILTER (WHERE status = 'active'),
        'hidden', count(*) FILTER (WHERE status <> 'active'),
        'desynchronized', count(desynced)
    ) FROM repositories),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(host, seq, updated_at) ORDER BY host), '[]') FROM cursors),
    (SELECT jsonb_build_array(status, updated_at) FROM indexer_status),
    (SELECT count(*) FROM search_outbox),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(reason, times) ORDER BY times DESC, reason), '[]')
        FROM quarantine_counts)
"""

_SWEEP: LiteralString = """
SELECT reason, started_at, finished_at, checked, differing, unreachable FROM sweeps
WHERE started_at IS NOT NULL ORDER BY id DESC LIMIT 1
"""


class Store:
    """The queries, over a pool of connections that cannot write."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    def _connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._pool.connection(timeout=_PATIENCE)

    async def is_ready(self) -> bool:
        """Whether the database answers. Raises what the pool raises when it does not."""
        async with self._connection() as connection:
            return await (await connection.execute("SELECT true")).fetchone() is not None

    # --- Records

    async def record(self, uri: str) -> Record | None:
        """The record at *uri*, whose authority is a DID; None if we hold none."""
        rows = await self._records([uri], where="r.uri = %s")
        return rows[0] if rows else None

    async def records(self, uris: Sequence[str], kind: Kind, limit_bytes: int = ANSWER_BYTES) -> dict[str, Record]:
        """Those of *uris*, whose authorities are DIDs, that we hold and that are of *kind*, by URI.

        Those that come, in this order, when there are *limit_bytes* of records already have an empty ``json``.
        """
        rows = await self._records(
            [list(uris), list(uris), kind],
            place="array_position(%s::text[], r.uri)",
            where="r.uri = ANY(%s) AND r.kind = %s",
            limit_bytes=limit_bytes,
        )
        return {row.uri: row for row in rows}

    async def datasets(
        self, *, publisher: str | None, schema: str | None, tag: str | None, limit: int, cursor: str | None
    ) -> Listing:
        """Datasets, the latest first; by a publisher, of a schema, with a tag."""
        return await self._listing(
            "dataset",
            {
                "r.did = %s": publisher,
                "r.schema_ref = %s": schema,
                "r.tags @> ARRAY[%s::text]": tag,
            },
            limit,
            cursor,
        )

    async def schemas(self, *, publisher: str | None, name: str | None, limit: int, cursor: str | None) -> Listing:
        """Sample schemas, the latest first; by a publisher, of a name."""
        return await self._listing("schema", {"r.did = %s": publisher, "r.name = %s": name}, limit, cursor)

    async def lenses(
        self, *, publisher: str | None, source: str | None, target: str | None, limit: int, cursor: str | None
    ) -> Listing:
        """Lenses, the latest first; by a publisher, from a schema, to a schema."""
        return await self._listing(
            "lens",
            {"r.did = %s": publisher, "r.source_schema = %s": source, "r.target_schema = %s": target},
            limit,
            cursor,
        )

    async def labels(self, dataset: str, *, publisher: str, limit: int) -> Listing:
        """Labels of *publisher* that point to the dataset with this URI, the latest first."""
        return await self._listing("label", {"r.dataset_ref = %s": dataset, "r.did = %s": publisher}, limit, None)

    async def _listing(
        self, kind: Kind, conditions: Mapping[LiteralString, str | None], limit: int, cursor: str | None
    ) -> Listing:
        # Only what is asked for is in the statement, so that the planner knows which index serves it.
        held: dict[LiteralString, Any] = {sql: value for sql, value in conditions.items() if value is not None}
        if cursor is not None:
            held["r.id < %s"] = _decode_cursor(cursor)
        where: LiteralString = " AND ".join(("r.kind = %s", *held))
        rows = await self._records(
            [kind, *held.values(), limit + 1], place="-r.id", where=where, end="ORDER BY r.id DESC LIMIT %s"
        )
        page = [row for row in rows[:limit] if row.json]
        return Listing(page, _encode_cursor(page[-1].id) if len(rows) > len(page) else None)

    async def _records(
        self,
        params: Sequence[Any],
        *,
        where: LiteralString,
        place: LiteralString = "0",
        end: LiteralString = "",
        limit_bytes: int = ANSWER_BYTES,
    ) -> list[Record]:
        sql = _RECORDS.format(place=place, where=where, end=end)
        async with self._connection() as connection, connection.cursor(row_factory=args_row(Record)) as cursor:
            return await (await cursor.execute(sql, [limit_bytes, *params])).fetchall()

    # --- Names

    async def dids(self, handles: Iterable[str]) -> dict[str, str]:
        """The DIDs of those *handles* that we know, by handle."""
        async with self._connection() as connection:
            rows = await connection.execute(
                "SELECT handle, did FROM repositories WHERE handle = ANY(%s) AND status = 'active'",
                [[handle.lower() for handle in handles]],
            )
            return dict(await rows.fetchall())

    async def handles(self, dids: Iterable[str]) -> dict[str, str]:
        """The handles of those *dids* of which we know one, by DID."""
        async with self._connection() as connection:
            rows = await connection.execute(
                "SELECT did, handle FROM repositories WHERE did = ANY(%s) AND handle IS NOT NULL AND status = 'active'",
                [list(dids)],
            )
            return dict(await rows.fetchall())

    async def schema_names(self, uris: Iterable[str]) -> dict[str, str]:
        """The names of those schemas that we hold, by URI."""
        async with self._connection() as connection:
            rows = await connection.execute(
                f"SELECT r.uri, r.name FROM records r {_VISIBLE} "
                "WHERE r.uri = ANY(%s) AND r.kind = 'schema' AND r.name <> ''",
                [list(uris)],
            )
            return dict(await rows.fetchall())

    # --- Numbers

    async def status(self, search_documents: int) -> Status:
        """What we hold and how far behind we are; the engine's *search_documents* are counted by the caller."""
        async with self._connection() as connection:
            row = await (await connection.execute(_STATUS)).fetchone()
            sweep = await (await connection.execute(_SWEEP)).fetchone()
        assert row is not None
        kinds, repositories, relays, indexer, backlog, quarantine = row
        return Status(
            records={kind: kinds.get(kind, 0) for kind in ("dataset", "schema", "lens", "label", "unknown")},
            repositories=repositories,
            relays=[Relay(host, seq, datetime.fromisoformat(moment)) for host, seq, moment in relays],
            indexer=indexer[0] if indexer and isinstance(indexer[0], dict) else None,
            indexer_seen_at=datetime.fromisoformat(indexer[1]) if indexer else None,
            backlog=backlog,
            quarantine=dict(quarantine),
            sweep=Sweep(*sweep) if sweep else None,
            search_documents=search_documents,
        )


# --- Cursors: the last record's id, dressed up so that nobody counts on it being a number


def _encode_cursor(id_: int) -> str:
    return base64.urlsafe_b64encode(id_.to_bytes(8, "big")).decode().rstrip("=")


def _decode_cursor(cursor: str) -> int:
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    id_ = int.from_bytes(data, "big")
    if len(data) != 8 or id_ >= 2**63:
        raise BadCursor("is not one that this method gave out; start again without it")
    return id_
