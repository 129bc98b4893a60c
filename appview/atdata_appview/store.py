"""All SQL of the AppView. It only reads; a method is one query, and its name is what comes back.

Whatever returns records goes through `_VISIBLE`: a record of an account that is not active does not exist here.
"""

# ruff: noqa: S608 - statements are put together of constants only; values are parameters

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import args_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from atdata.nsid import Kind
from atdata_appview import cursors
from atdata_appview.changes import Change, ShownChange, ShownChanges
from atdata_appview.models import Listing, Publisher, PublisherListing, Record, Relay, Status, Sweep
from atdata_appview.naming import Candidate
from atdata_appview.versions import SchemaVersion
from atdata_backend.published import Published
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
SELECT uri, cid, did, handle,
    CASE WHEN coalesce(sum(octet_length(record::text)) OVER before, 0) < %s THEN record::text ELSE '' END,
    problems, verified_at IS NOT NULL, indexed_at, id, pds, verified_at, verified_key, commit_cid
FROM (
    SELECT r.*, a.handle, a.pds, {{place}} AS place FROM records r {_VISIBLE} WHERE {{where}} {{end}}
) AS found
WINDOW before AS (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
ORDER BY place
"""

# The same for URIs that are given: a record is made text of once, and none is sorted by URI.
_RECORDS_AT: LiteralString = f"""
SELECT uri, cid, did, handle,
    CASE WHEN coalesce(sum(octet_length(json)) OVER before, 0) < %s THEN json ELSE '' END,
    problems, verified_at IS NOT NULL, indexed_at, id, pds, verified_at, verified_key, commit_cid
FROM (
    SELECT r.*, a.handle, a.pds, r.record::text AS json, place
    FROM unnest(%b::text[]) WITH ORDINALITY AS asked (uri, place) JOIN records r USING (uri) {_VISIBLE}
    WHERE r.kind = %s
    OFFSET 0
) AS found
WINDOW before AS (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
ORDER BY place
"""

# The same of those that are so small that a hundred of them fit into an answer; of others the text is NULL. What is
# compressed can be of any size. Nearly always, these are all, and to add up and sort would take as long as the rest.
_SMALL_RECORDS_AT: LiteralString = f"""
SELECT r.uri, r.cid, r.did, a.handle,
    CASE WHEN pg_column_size(r.record) < 10000 AND pg_column_compression(r.record) IS NULL THEN r.record::text END,
    r.problems, r.verified_at IS NOT NULL, r.indexed_at, r.id, a.pds, r.verified_at, r.verified_key, r.commit_cid
FROM records r {_VISIBLE} WHERE r.uri = ANY(%b) AND r.kind = %s
"""

# By what one sees whether a record that is held elsewhere is still so here. Most searches ask nothing else.
_SIGNS: LiteralString = f"""
SELECT r.uri, r.cid, a.handle, r.verified_at IS NOT NULL
FROM records r {_VISIBLE} WHERE r.uri = ANY(%b) AND r.kind = %s
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


# Of one name; who has more of them than that has no use for the oldest.
_MAX_NAMED = 10_000
# Looked through for names that are like another.
_MAX_NAMES = 500

# The index is on the first letters of the name. Of a field that is longer than what it may be, the beginning will do.
_NAMED: LiteralString = f"""
SELECT r.uri, r.kind, r.collection, r.rkey, r.version,
    CASE WHEN jsonb_typeof(r.record -> 'datasetUri') = 'string' THEN left(r.record ->> 'datasetUri', 3000) END,
    CASE WHEN jsonb_typeof(r.record -> 'createdAt') = 'string' THEN left(r.record ->> 'createdAt', 100) END
FROM records r {_VISIBLE}
WHERE r.did = %s AND r.kind IN ('label', 'dataset') AND left(r.name, 200) = left(%s, 200) AND r.name = %s
ORDER BY r.id DESC LIMIT %s
"""

# Of a name. The latest record of each version is the one with the last key: most are times, or hold the version.
_MAX_VERSIONS = 1000
_SCHEMA_VERSIONS: LiteralString = f"""
SELECT uri, version FROM (
    SELECT DISTINCT ON (version) id, uri, version FROM (
        SELECT r.id, r.uri, r.rkey, coalesce(r.version, '') AS version FROM records r {_VISIBLE}
        WHERE r.did = %s AND r.kind = 'schema' AND left(r.name, 200) = left(%s, 200) AND r.name = %s
        ORDER BY r.id DESC LIMIT %s
    ) AS named ORDER BY version, rkey COLLATE "C" DESC, id DESC
) AS versions ORDER BY id DESC LIMIT %s
"""

# Most used: nobody counts beyond a thousand datasets.
_MOST_USED: LiteralString = f"""
SELECT r.uri, coalesce(r.version, '') FROM records r {_VISIBLE}, LATERAL (
    SELECT count(*) AS times FROM (SELECT FROM records d WHERE d.schema_ref = r.uri LIMIT 1000) AS uses
) AS used
WHERE r.uri = ANY(%s) AND r.kind = 'schema' ORDER BY (r.verified_at IS NULL), used.times DESC, r.id
"""

_NAMES: LiteralString = f"""
SELECT DISTINCT name FROM unnest(%s::text[]) AS kinds (kind), LATERAL (
    SELECT r.name FROM records r {_VISIBLE} WHERE r.did = %s AND r.kind = kinds.kind ORDER BY r.id DESC LIMIT %s
) AS latest WHERE name <> ''
"""

#: The number of the latest change that the snapshot of a transaction shows; 0 if there never was one.
LATEST_CHANGE: LiteralString = "SELECT greatest((SELECT max(seq) FROM changes), (SELECT seq FROM changes_pruned))"

# Changes with their records, until there are so many bytes of them; what is compressed is not unpacked to be measured:
# it is a hundredth of its size at the very least. Of a record that was replaced or deleted since, the change is left
# out: a later one says what became of it. So is everything of an account that is hidden.
_SHOWN_CHANGES: LiteralString = """
SELECT pruned.seq, found.* FROM changes_pruned pruned LEFT JOIN (
    SELECT is_shown, seq, at, action, did, collection, rkey, kind, cid, status,
        CASE WHEN coalesce(sum(size) OVER before, 0) < %s THEN coalesce(record::text, '') END AS json, verified
    FROM (
        SELECT c.*, r.record, r.verified_at IS NOT NULL AS verified,
            c.action = 'account' OR (a.status = 'active' AND (c.action = 'delete' OR r.uri IS NOT NULL)) AS is_shown,
            pg_column_size(r.record) * CASE WHEN pg_column_compression(r.record) IS NULL THEN 1 ELSE 100 END AS size
        FROM (SELECT * FROM changes WHERE seq > %s ORDER BY seq LIMIT %s) c
        LEFT JOIN repositories a ON a.did = c.did
        LEFT JOIN records r ON r.uri = 'at://' || c.did || '/' || c.collection || '/' || c.rkey
            AND r.cid = c.cid AND c.action <> 'delete' AND a.status = 'active'
    ) AS joined
    WINDOW before AS (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
) AS found ON true ORDER BY found.seq
"""
_CHANGE_BYTES = 1_000_000
_CHANGES_AT_ONCE = 200


# What the lens graph is made of. A putter that names no code is none.
_GRAPH_SCHEMAS: LiteralString = f"SELECT r.uri, r.record::text FROM records r {_VISIBLE} WHERE r.kind = 'schema'"
_GRAPH_LENSES: LiteralString = f"""
SELECT r.uri, r.id, r.source_schema, r.target_schema,
    coalesce(jsonb_typeof(r.record #> '{{putterCode,path}}') = 'string', false), r.verified_at IS NOT NULL
FROM records r {_VISIBLE}
WHERE r.kind = 'lens' AND r.source_schema IS NOT NULL AND r.target_schema IS NOT NULL
"""
# Schemas that are read at once: they can be of a megabyte each.
_GRAPH_ROWS = 100


class GraphLens(NamedTuple):
    """A lens as the graph knows it. The fields are the columns of a query; ``number`` is the record's id."""

    uri: str
    number: int
    source: str
    target: str
    has_putter: bool
    is_verified: bool


class GraphSnapshot:
    """What the lens graph is made of, as of one moment: after the change ``seq``."""

    def __init__(self, connection: AsyncConnection, seq: int) -> None:
        self._connection = connection
        self.seq = seq

    async def schemas(self) -> AsyncIterator[list[tuple[str, str]]]:
        """URIs and records of schemas, the oldest first, some at a time."""
        async with self._connection.cursor("graph_schemas") as cursor:
            await cursor.execute(f"{_GRAPH_SCHEMAS} ORDER BY r.id")
            while rows := await cursor.fetchmany(_GRAPH_ROWS):
                yield rows

    async def lenses(self) -> AsyncIterator[list[GraphLens]]:
        """Lenses, the oldest first, some at a time."""
        async with self._connection.cursor("graph_lenses", row_factory=args_row(GraphLens)) as cursor:
            await cursor.execute(f"{_GRAPH_LENSES} ORDER BY r.id")
            while rows := await cursor.fetchmany(10 * _GRAPH_ROWS):
                yield rows


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
        params = _records_at(uris, kind, limit_bytes)
        async with self._connection() as connection, connection.cursor(row_factory=args_row(Record)) as cursor:
            return {row.uri: row for row in await (await cursor.execute(_RECORDS_AT, params)).fetchall()}

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
        self,
        *,
        publisher: str | None = None,
        source: str | None = None,
        target: str | None = None,
        schema: str | None = None,
        numbers: Sequence[int] | None = None,
        limit: int,
        cursor: str | None,
    ) -> Listing:
        """Lenses, the latest first; by a publisher, from a schema, to a schema, from or to one, of these ids."""
        return await self._listing(
            "lens",
            {
                "r.did = %s": publisher,
                "r.source_schema = %s": source,
                "r.target_schema = %s": target,
                "%s IN (r.source_schema, r.target_schema)": schema,
                "r.id = ANY(%s)": numbers,
            },
            limit,
            cursor,
        )

    async def labels(self, dataset: str, *, publisher: str, limit: int) -> Listing:
        """Labels of *publisher* that point to the dataset with this URI, the latest first."""
        return await self._listing("label", {"r.dataset_ref = %s": dataset, "r.did = %s": publisher}, limit, None)

    async def _listing(
        self, kind: Kind, conditions: Mapping[LiteralString, Any], limit: int, cursor: str | None
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

    # --- Publishers

    async def publishers(
        self, *, prefix: str | None, sort: Literal["newest", "datasets"], limit: int, cursor: str | None
    ) -> PublisherListing:
        """Who publishes; those with handles that begin with *prefix*."""
        place: LiteralString = "p.since" if sort == "newest" else "p.datasets"
        held: dict[LiteralString, Sequence[Any]] = {}
        if prefix is not None:
            # Handles are of letters, digits, dots and hyphens, after all of which comes the tilde.
            held["a.handle ~>=~ %s AND a.handle ~<~ %s"] = [prefix.lower(), prefix.lower() + "~"]
        if cursor is not None:
            held[f"({place}, p.did) < (%s, %s)"] = _decode_place(cursor, sort)
        where: LiteralString = "".join(f" AND {sql}" for sql in held)
        sql: LiteralString = (
            "SELECT p.did, a.handle, p.datasets, p.schemas, p.lenses, p.labels, p.since, p.indexed_at"
            f" FROM publishers p JOIN repositories a ON a.did = p.did AND a.status = 'active'{where}"
            f" ORDER BY {place} DESC, p.did DESC LIMIT %s"
        )
        params = [*chain.from_iterable(held.values()), limit + 1]
        async with self._connection() as connection, connection.cursor(row_factory=args_row(Publisher)) as rows:
            found = await (await rows.execute(sql, params)).fetchall()
        page = found[:limit]
        is_last = len(found) <= limit
        return PublisherListing(page, None if is_last else _encode_place(page[-1], sort))

    async def hosts(self, dids: Iterable[str]) -> dict[str, str]:
        """Where the repositories of those *dids* are of which we know it, by DID."""
        async with self._connection() as connection:
            rows = await connection.execute(
                "SELECT did, pds FROM repositories WHERE did = ANY(%s) AND pds IS NOT NULL AND status = 'active'",
                [list(dids)],
            )
            return dict(await rows.fetchall())

    async def signing_key(self, did: str) -> str | None:
        """The key with which *did* signs, as a Multikey; None if it is not known here."""
        async with self._connection() as connection:
            rows = await connection.execute("SELECT signing_key FROM repositories WHERE did = %s", [did])
            row = await rows.fetchone()
        return row[0] if row else None

    # --- Names

    async def named(self, did: str, name: str) -> list[Candidate]:
        """The labels and datasets of *did* that are called *name*; of very many the latest."""
        async with self._connection() as connection, connection.cursor(row_factory=args_row(Candidate)) as cursor:
            await cursor.execute(_NAMED, [did, name, name, _MAX_NAMED])
            return await cursor.fetchall()

    async def schema_versions(self, did: str, name: str) -> list[SchemaVersion]:
        """The latest schema of each version that *did* has of the schema *name*; of very many the latest."""
        async with self._connection() as connection, connection.cursor(row_factory=args_row(SchemaVersion)) as cursor:
            await cursor.execute(_SCHEMA_VERSIONS, [did, name, name, _MAX_NAMED, _MAX_VERSIONS])
            return await cursor.fetchall()

    async def most_used(self, schemas: Sequence[str]) -> list[SchemaVersion]:
        """Those of *schemas* that we hold: verified ones first, then those of most datasets, then the oldest."""
        async with self._connection() as connection, connection.cursor(row_factory=args_row(SchemaVersion)) as cursor:
            await cursor.execute(_MOST_USED, [list(schemas)])
            return await cursor.fetchall()

    async def names(self, did: str, kinds: Sequence[Kind]) -> list[str]:
        """What the latest records of *kinds* of *did* are called, each name once."""
        async with self._connection() as connection:
            rows = await connection.execute(_NAMES, [list(kinds), did, _MAX_NAMES])
            return [name for (name,) in await rows.fetchall()]

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

    # --- Changes

    async def changes_after(self, seq: int, limit: int) -> list[Change]:
        """The first *limit* changes after the one with this number, in order; those of hidden accounts, too."""
        async with self._connection() as connection, connection.cursor(row_factory=args_row(Change)) as cursor:
            await cursor.execute(
                "SELECT seq, at, action, did, collection, rkey, kind, cid, status FROM changes "
                "WHERE seq > %s ORDER BY seq LIMIT %s",
                [seq, limit],
            )
            return await cursor.fetchall()

    async def shown_changes(self, after: int) -> ShownChanges:
        """Some of what comes *after* the change with this number, as everybody may see it; in order."""
        async with self._connection() as connection:
            rows = await (
                await connection.execute(_SHOWN_CHANGES, [_CHANGE_BYTES, after, _CHANGES_AT_ONCE], prepare=True)
            ).fetchall()
        shown: list[ShownChange] = []
        for _, is_shown, seq, *columns in rows:
            if seq is None or columns[-2] is None:
                break  # there are none, or the rest is too much for one answer
            after = seq
            if is_shown:
                shown.append(ShownChange(seq, *columns))
        return ShownChanges(shown, after, rows[0][0])

    async def latest_change(self) -> int:
        """The number of the latest change; 0 if there never was one."""
        async with self._connection() as connection:
            row = await (await connection.execute(LATEST_CHANGE)).fetchone()
        assert row is not None
        return int(row[0])

    # --- The lens graph

    @asynccontextmanager
    async def graph_snapshot(self) -> AsyncIterator[GraphSnapshot]:
        """Everything that the lens graph is made of."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            row = await (await connection.execute(LATEST_CHANGE)).fetchone()
            assert row is not None
            yield GraphSnapshot(connection, int(row[0]))

    async def graph_schemas(self, uris: Sequence[str]) -> dict[str, str]:
        """The records of those *uris* that are schemas, by URI."""
        async with self._connection() as connection:
            rows = await connection.execute(f"{_GRAPH_SCHEMAS} AND r.uri = ANY(%s)", [list(uris)])
            return dict(await rows.fetchall())

    async def graph_lenses(self, uris: Sequence[str]) -> dict[str, GraphLens]:
        """Those *uris* that are lenses with two ends, by URI."""
        async with self._connection() as connection, connection.cursor(row_factory=args_row(GraphLens)) as cursor:
            await cursor.execute(f"{_GRAPH_LENSES} AND r.uri = ANY(%s)", [list(uris)])
            return {row.uri: row for row in await cursor.fetchall()}

    async def graph_uris(self, dids: Sequence[str]) -> list[tuple[str, str]]:
        """Kind and URI of every schema and lens of *dids*, hidden or not."""
        async with self._connection() as connection:
            rows = await connection.execute(
                "SELECT kind, uri FROM records WHERE did = ANY(%s) AND kind IN ('schema', 'lens')", [list(dids)]
            )
            return await rows.fetchall()

    async def changes_pruned(self) -> int:
        """The number of the last change that is no longer kept; 0 if all are."""
        async with self._connection() as connection:
            row = await (await connection.execute("SELECT seq FROM changes_pruned")).fetchone()
        return int(row[0]) if row else 0

    async def lenses_numbered(self, numbers: Iterable[int]) -> dict[int, Record]:
        """The lenses with these ids, by id. Those that come when there is an answer full already have no ``json``."""
        rows = await self._records([list(numbers)], where="r.kind = 'lens' AND r.id = ANY(%s)", place="r.id")
        return {row.id: row for row in rows}

    async def lens_names(self, numbers: Iterable[int]) -> dict[int, tuple[str, str]]:
        """URI and name of the lenses with these ids, by id."""
        async with self._connection() as connection:
            rows = await connection.execute(
                f"SELECT r.id, r.uri, coalesce(r.name, '') FROM records r {_VISIBLE} "
                "WHERE r.kind = 'lens' AND r.id = ANY(%s)",
                [list(numbers)],
            )
            return {number: (uri, name) for number, uri, name in await rows.fetchall()}

    async def held_schemas(self, uris: Iterable[str]) -> dict[str, str]:
        """Those of *uris* that are schemas and are here, and what they are called, which can be nothing."""
        async with self._connection() as connection:
            rows = await connection.execute(
                f"SELECT r.uri, coalesce(r.name, '') FROM records r {_VISIBLE} "
                "WHERE r.kind = 'schema' AND r.uri = ANY(%s)",
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


def _records_at(uris: Sequence[str], kind: Kind, limit_bytes: int) -> list[Any]:
    """What `_RECORDS_AT` wants. Each URI once: asked for twice, its record would be counted twice."""
    return [limit_bytes, list(dict.fromkeys(uris)), kind]


class BlockingStore:
    """The queries that a search ends with, for the thread that it runs in: an event loop would take twice as long.

    Over a pool of connections of its own, which cannot write either.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def records(self, uris: Sequence[str], kind: Kind, limit_bytes: int = ANSWER_BYTES) -> dict[str, Record]:
        """As `Store.records`."""
        limit_bytes, uris, kind = params = _records_at(uris, kind, limit_bytes)
        with self._pool.connection(_PATIENCE) as connection, connection.cursor(row_factory=args_row(Record)) as cursor:
            rows = cursor.execute(_SMALL_RECORDS_AT, [uris, kind]).fetchall()
            if any(row.json is None for row in rows) or sum(len(row.json) for row in rows) >= limit_bytes:
                rows = cursor.execute(_RECORDS_AT, params).fetchall()
            return {row.uri: row for row in rows}

    def outdated(self, held: Sequence[Published], kind: Kind) -> set[str]:
        """The URIs of those records *held* elsewhere that are otherwise by now, gone or hidden."""
        with self._pool.connection(_PATIENCE) as connection:
            rows = connection.execute(_SIGNS, [[one.uri for one in held], kind]).fetchall()
        signs = {uri: tuple(rest) for uri, *rest in rows}
        return {one.uri for one in held if signs.get(one.uri) != (one.cid, one.handle, one.verified)}


# --- Cursors: the last publisher's place in the order, or the last record's id, dressed up so that nobody counts on it
# being a number

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


def _encode_place(publisher: Publisher, sort: str) -> str:
    place = publisher.datasets if sort == "datasets" else (publisher.since - _EPOCH) // _TICK
    return cursors.encode(sort, place, publisher.did)


def _decode_place(cursor: str, sort: str) -> tuple[int | datetime, str]:
    of, place, did = cursors.decode(cursor, (str, int, str))
    try:
        if of == sort:
            return place if sort == "datasets" else _EPOCH + place * _TICK, did
    except OverflowError:  # beyond the year 9999
        pass
    raise BadCursor("is not one that this method gave out; start again without it")


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
