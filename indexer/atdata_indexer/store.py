"""All the indexer's SQL: one writer, whole batches, each in one transaction with the cursor it reaches."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from atdata.atmosphere import records
from atdata.nsid import kind_of
from atdata_backend import postgres
from atdata_indexer.backfill import Snapshot
from atdata_indexer.changes import Changes, Key, Repository, fold
from atdata_indexer.events import Commit, Event, RecordWritten, Rejected, read_record

logger = logging.getLogger(__name__)

# Any constant, as long as every version of the indexer uses the same one.
_WRITER_LOCK = 0x61746978

#: An outbox row with this for a URI asks for a comparison of the engine with Postgres, and for all to be fed again.
REBUILD = "*"

# What Postgres says to values it cannot hold, whatever we checked before: class 22, and class 54 (too long, too deep).
_REFUSED = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)
# Classes of OperationalError that are about the server (connection, resources, shutting down) and not about a value.
_GONE = ("08", "53", "57", "58")

# An index entry must fit a third of a page; an AT URI in use is far shorter.
_MAX_REFERENCE = 1500
_MAX_NAME = 1000
_MAX_TAG = 600  # characters, of up to four bytes


@dataclass(frozen=True, slots=True)
class Item:
    """An event with the frame it came in, so that both can go to quarantine together."""

    event: Event
    frame: bytes
    seq: int | None


@dataclass(slots=True)
class Applied:
    """What a batch came to. ``tracked`` are repositories seen for the first time."""

    commits: int = 0
    replayed: int = 0
    written: int = 0
    deleted: int = 0
    quarantined: int = 0
    tracked: set[str] = field(default_factory=set)
    identities: bool = False  # some DID document is to be read


class Store:
    """The database as its one writer sees it.

        store = await Store.open(url, source="bsky.network")
        applied = await store.apply(items, cursor=31527015322)

    *source* is the host that events come from: cursors and quarantine are kept by it. After a lost connection every
    method raises psycopg.OperationalError until `reopen` succeeds.
    """

    def __init__(self, url: str, source: str, *, backfill: bool = True, quarantine_bytes: int = 1_000_000_000) -> None:
        self.source = source
        self._url = url
        self._backfill = backfill
        self._quarantine_bytes = quarantine_bytes
        self._connection: AsyncConnection | None = None
        # One connection, several tasks: a transaction must not be entered by a second one.
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, source: str, **options: Any) -> Store:
        """A connected store, once no other indexer writes to this database. Raises ConfigError."""
        store = cls(url, source, **options)
        await store.reopen()
        return store

    async def reopen(self) -> None:
        """Connect anew, and wait to be the only writer: a second indexer stands by here until the first is gone."""
        await self.close()
        connection = await postgres.connect(self._url)
        try:
            await connection.set_autocommit(True)
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", [_WRITER_LOCK])).fetchone()
            if row is not None and not row[0]:
                logger.warning("another indexer writes to this database; standing by until it stops")
                await connection.execute("SELECT pg_advisory_lock(%s)", [_WRITER_LOCK])
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    # Reading what the indexer itself needs.

    async def cursor(self) -> int | None:
        """The sequence number up to which this source was read, None if it never was."""
        async with self._alone() as connection:
            row = await (await connection.execute("SELECT seq FROM cursors WHERE host = %s", [self.source])).fetchone()
        return row[0] if row else None

    async def tracked(self) -> set[str]:
        """The DIDs of all repositories that we follow."""
        async with self._alone() as connection:
            return {did async for (did,) in connection.cursor().stream("SELECT did FROM repositories", size=1000)}

    async def counts(self) -> dict[str, int]:
        """Backlogs and totals for the status line."""
        async with self._alone() as connection:
            row = await (
                await connection.execute(
                    """
                    SELECT (SELECT count(*) FROM search_outbox),
                           (SELECT count(*) FROM repositories WHERE desynced IS NOT NULL AND status = 'active'),
                           (SELECT coalesce(sum(times), 0)::bigint FROM quarantine_counts)
                    """
                )
            ).fetchone()
        assert row is not None
        return {"searchBacklog": row[0], "desynced": row[1], "quarantined": row[2]}

    # The stream.

    async def apply(self, items: Sequence[Item], cursor: int | None) -> Applied:
        """Apply *items* in order and move the cursor, all or nothing, but for what Postgres refuses to hold.

        A record that gets past every check and is refused by the database is quarantined: it must not stop the stream.
        """
        dids = list({did for item in items if (did := getattr(item.event, "did", None))})
        rejected = [item for item in items if isinstance(item.event, Rejected)]
        async with self._alone() as connection, connection.transaction():
            held = await self._held(connection, dids) if dids else {}
            changes = fold((item.event for item in items), held, backfill=self._backfill)
            for key, reason in (await self._write_records(connection, changes)).items():
                frame = next(item for item in reversed(items) if _writes(item.event, key))
                rejected.append(Item(Rejected("refused-by-database", reason, key[0]), frame.frame, frame.seq))
            async with connection.pipeline():
                await self._write(connection, changes)
                if rejected:
                    await self._quarantine(connection, rejected)
                if cursor is not None:
                    await connection.execute(_CURSOR, [self.source, cursor])
        return Applied(
            commits=changes.commits,
            replayed=changes.replayed,
            written=sum(record is not None for record in changes.records.values()),
            deleted=sum(record is None for record in changes.records.values()),
            quarantined=len(rejected),
            tracked=changes.repositories.keys() - held.keys(),
            identities=bool(changes.identities or changes.repositories.keys() - held.keys()),
        )

    async def save_cursor(self, cursor: int) -> None:
        """Move the cursor alone, over frames that concerned nobody."""
        async with self._alone() as connection:
            await connection.execute(_CURSOR, [self.source, cursor])

    # Whole repositories.

    async def discovered(self, dids: Sequence[str]) -> set[str]:
        """Follow *dids* from now on, and have those we did not know read whole. Returns the new ones."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "INSERT INTO repositories (did, desynced) SELECT did, 'discovered' FROM unnest(%s::text[]) t (did)"
                    " ON CONFLICT DO NOTHING RETURNING did",
                    [list(dids)],
                )
            ).fetchall()
        return {did for (did,) in rows}

    async def to_resync(self, limit: int) -> list[str]:
        """Repositories that are due for a resync, the longest waiting first."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did FROM repositories WHERE desynced IS NOT NULL AND resync_at <= now()"
                    " AND (status = 'active' OR account_seq IS NULL) ORDER BY resync_at LIMIT %s",
                    [limit],
                )
            ).fetchall()
        return [did for (did,) in rows]

    async def apply_snapshot(self, snapshot: Snapshot) -> Applied | None:
        """Make what we hold of a repository equal to *snapshot*, deletions included.

        None, and nothing changed, when a newer commit has been applied meanwhile: fetch again.
        """
        did = snapshot.did
        # Reading is work for the processor, done before anybody has to wait for the transaction.
        async with self._alone() as connection:
            held = await self._cids(connection, did)
        read = {}
        for collection, rkey, cid, block in snapshot.records:
            if held.get((collection, rkey)) != cid:
                read[collection, rkey] = read_record(collection, rkey, cid, block)
                await asyncio.sleep(0)
        async with self._alone() as connection, connection.transaction():
            known = (await self._held(connection, [did])).get(did, Repository())
            if known.records_rev is not None and known.records_rev > snapshot.rev:
                return None
            # Anew, for the stream may have come by meanwhile.
            held = await self._cids(connection, did)
            changes = Changes()
            rejected = []
            for collection, rkey, cid, block in snapshot.records:
                if held.pop((collection, rkey), None) == cid:
                    continue
                written = read.get((collection, rkey)) or read_record(collection, rkey, cid, block)
                if isinstance(written, RecordWritten):
                    changes.records[did, collection, rkey] = (written, snapshot.rev)
                else:
                    changes.records[did, collection, rkey] = None
                    rejected.append(Item(Rejected(written.reason, written.detail, did), block, None))
            for collection, rkey in held:
                changes.records[did, collection, rkey] = None
            # Commits that touched nothing of ours may have moved the repository on.
            is_ahead = known.rev is not None and known.rev > snapshot.rev
            changes.repositories[did] = replace(
                known,
                rev=known.rev if is_ahead else snapshot.rev,
                data=known.data if is_ahead else snapshot.data,
                records_rev=snapshot.rev,
                desynced=None,
            )
            blocks = {(did, r.collection, r.rkey): r.block for r in snapshot.records}
            for key, reason in (await self._write_records(connection, changes)).items():
                rejected.append(Item(Rejected("refused-by-database", reason, did), blocks[key], None))
            async with connection.pipeline():
                await self._write(connection, changes)
                # Its host gives it out, so it is not hidden, unless the stream has told us otherwise.
                await connection.execute(
                    "UPDATE repositories SET resync_tries = 0,"
                    " status = CASE WHEN account_seq IS NULL THEN 'active' ELSE status END WHERE did = %s",
                    [did],
                )
                await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])
                if rejected:
                    await self._quarantine(connection, rejected)
        return Applied(
            written=sum(record is not None for record in changes.records.values()),
            deleted=sum(record is None for record in changes.records.values()),
            quarantined=len(rejected),
            tracked={snapshot.did},
        )

    async def desync_all(self, reason: str) -> None:
        """Have every repository read again."""
        async with self._alone() as connection:
            await connection.execute(
                "UPDATE repositories SET desynced = %s, resync_at = now() WHERE desynced IS NULL AND status = 'active'",
                [_clean(reason)],
            )

    async def resync_failed(self, did: str, reason: str) -> None:
        """Put the resync of *did* off: five seconds at first, then twice as long each time, up to a day."""
        async with self._alone() as connection:
            await connection.execute(
                "UPDATE repositories SET desynced = left(%s, 500), resync_tries = resync_tries + 1,"
                " resync_at = now() + least(interval '1 day', interval '5 seconds' * 2 ^ least(resync_tries, 15))"
                " WHERE did = %s",
                [_clean(reason), did],
            )

    async def unavailable(self, did: str, status: str) -> None:
        """Its host says that *did* is not to be had: ask again in an hour.

        Hidden until then, unless the stream has told us its state: that is later word than an answer under way.
        """
        async with self._alone() as connection, connection.transaction(), connection.pipeline():
            await connection.execute(
                "UPDATE repositories SET resync_at = now() + interval '1 hour',"
                " status = CASE WHEN account_seq IS NULL THEN %s ELSE status END WHERE did = %s",
                [status, did],
            )
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])

    # Identities.

    async def to_resolve(self, limit: int) -> list[str]:
        """Repositories whose DID document is due to be read."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did FROM repositories WHERE resolve_at <= now() ORDER BY resolve_at LIMIT %s", [limit]
                )
            ).fetchall()
        return [did for (did,) in rows]

    async def resolved(self, did: str, handle: str | None, pds: str | None) -> None:
        """Note what the DID document of *did* says. A handle that another repository held is taken from that one."""
        async with self._alone() as connection, connection.transaction(), connection.pipeline():
            await connection.execute(
                """
                WITH losers AS (
                    UPDATE repositories SET handle = NULL, resolve_at = now() + interval '10 minutes'
                    WHERE handle = %s AND did <> %s RETURNING did
                )
                INSERT INTO search_outbox (uri)
                SELECT uri FROM records JOIN losers USING (did) WHERE kind = 'dataset'
                """,
                [handle, did],
            )
            # Documents change rarely and announce it; once a day catches what was missed.
            await connection.execute(
                """
                WITH before AS (SELECT handle FROM repositories WHERE did = %(did)s),
                changed AS (
                    UPDATE repositories SET handle = %(handle)s, pds = %(pds)s, resolve_at = now() + interval '1 day'
                    WHERE did = %(did)s RETURNING did
                )
                INSERT INTO search_outbox (uri)
                SELECT uri FROM records JOIN changed USING (did), before
                WHERE kind = 'dataset' AND before.handle IS DISTINCT FROM %(handle)s
                """,
                {"did": did, "handle": handle, "pds": pds},
            )

    async def unresolved(self, did: str) -> None:
        """The DID document of *did* could not be read: again in ten minutes, what is known stays."""
        async with self._alone() as connection:
            await connection.execute(
                "UPDATE repositories SET resolve_at = now() + interval '10 minutes' WHERE did = %s", [did]
            )

    # Search.

    async def outbox(self, limit: int) -> list[tuple[int, str]]:
        """The oldest entries of the outbox, id and URI: no more than *limit*, and a few megabytes of records."""
        async with self._alone() as connection:
            return await (
                await connection.execute(
                    """
                    SELECT id, uri FROM (
                        SELECT o.id, o.uri, row_number() OVER earlier AS number,
                               sum(octet_length(r.record::text)) OVER earlier AS bytes
                        FROM (SELECT id, uri FROM search_outbox ORDER BY id LIMIT %s) o
                        LEFT JOIN records r USING (uri)
                        WINDOW earlier AS (ORDER BY o.id)
                    ) entries
                    WHERE number = 1 OR bytes IS NULL OR bytes < 4000000 ORDER BY id
                    """,
                    [limit],
                )
            ).fetchall()

    async def datasets(self, uris: Sequence[str]) -> list[dict[str, Any]]:
        """Those of *uris* that are datasets of active repositories, each with its publisher's handle."""
        async with self._alone() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(
                """
                SELECT d.uri, d.did, d.collection, d.record, d.indexed_at, d.schema_ref, p.handle
                FROM records d
                JOIN repositories p ON p.did = d.did AND p.status = 'active'
                WHERE d.uri = ANY(%s) AND d.kind = 'dataset'
                """,
                [list(uris)],
            )
            return await cursor.fetchall()

    async def schemas(self, uris: Sequence[str]) -> list[dict[str, Any]]:
        """Those of *uris* that are schemas we hold."""
        async with self._alone() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(
                "SELECT uri, collection, record FROM records WHERE uri = ANY(%s) AND kind = 'schema'", [list(uris)]
            )
            return await cursor.fetchall()

    async def fed(self, ids: Sequence[int]) -> None:
        """The search engine has these outbox entries durably."""
        async with self._alone() as connection:
            await connection.execute("DELETE FROM search_outbox WHERE id = ANY(%b)", [list(ids)])

    async def feed_all(self, stale: Iterable[str] = ()) -> None:
        """Have the search engine look again at every dataset, and at the *stale* URIs that it holds."""
        async with self._alone() as connection, connection.transaction():
            await connection.execute("INSERT INTO search_outbox (uri) SELECT unnest(%s::text[])", [list(stale)])
            await connection.execute("INSERT INTO search_outbox (uri) SELECT uri FROM records WHERE kind = 'dataset'")

    # Status.

    async def report(self, status: Mapping[str, Any]) -> None:
        """Publish the indexer's own account of itself."""
        async with self._alone() as connection:
            await connection.execute(
                "INSERT INTO indexer_status (status) VALUES (%s)"
                " ON CONFLICT (only_row) DO UPDATE SET status = excluded.status, updated_at = now()",
                [Jsonb(dict(status), orjson.dumps)],
            )

    # How.

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[AsyncConnection]:
        async with self._turn:
            if self._connection is None:
                raise psycopg.OperationalError("the connection to the database was lost")
            yield self._connection

    async def _held(self, connection: AsyncConnection, dids: Sequence[str]) -> dict[str, Repository]:
        rows = await (
            await connection.execute(
                # Each relay counts its events in its own way.
                "SELECT did, rev, data, records_rev, CASE WHEN account_host = %s THEN account_seq END, desynced"
                " FROM repositories WHERE did = ANY(%b)",
                [self.source, list(dids)],
            )
        ).fetchall()
        return {did: Repository(*rest) for did, *rest in rows}

    async def _cids(self, connection: AsyncConnection, did: str) -> dict[tuple[str, str], str]:
        """The CIDs of all records that we hold of *did*, by collection and record key."""
        rows = await (
            await connection.execute("SELECT collection, rkey, cid FROM records WHERE did = %s", [did])
        ).fetchall()
        return {(collection, rkey): cid for collection, rkey, cid in rows}

    async def _write_records(self, connection: AsyncConnection, changes: Changes) -> dict[Key, str]:
        """Write the records of *changes*; those that the database refuses become deletions, and are returned."""
        refused: dict[Key, str] = {}

        async def write(rows: list[tuple[Key, tuple[Any, ...]]]) -> None:
            try:
                async with connection.transaction():
                    columns = zip(*(row for _, row in rows), strict=True)
                    await connection.execute(_RECORDS, [list(column) for column in columns])
            except _REFUSED as e:
                if len(rows) > 1:
                    await write(rows[: len(rows) // 2])
                    await write(rows[len(rows) // 2 :])
                else:
                    refused[rows[0][0]] = str(e)

        rows = [
            (key, _row(key[0], record, rev))
            for key, (record, rev) in ((k, v) for k, v in changes.records.items() if v is not None)
        ]
        if rows:
            await write(rows)
        # What we hold under its key, if anything, is no longer what the repository says.
        changes.records.update(dict.fromkeys(refused))
        return refused

    async def _write(self, connection: AsyncConnection, changes: Changes) -> None:
        if changes.repositories:
            known = changes.repositories
            await connection.execute(
                _REPOSITORIES,
                [
                    list(known),
                    [r.rev for r in known.values()],
                    [r.data for r in known.values()],
                    [r.records_rev for r in known.values()],
                    [r.desynced for r in known.values()],
                ],
            )
        deleted = [_uri(key) for key, value in changes.records.items() if value is None]
        schemas = []
        datasets = []
        if deleted:
            await connection.execute("DELETE FROM records WHERE uri = ANY(%b)", [deleted])
        for key in changes.records:
            kind = kind_of(key[1])
            if kind == "schema":
                schemas.append(_uri(key))
            elif kind == "dataset":
                datasets.append(_uri(key))
        if datasets:
            await connection.execute("INSERT INTO search_outbox (uri) SELECT unnest(%b::text[])", [datasets])
        if schemas:
            await connection.execute(_OUTBOX_OF_SCHEMAS, [schemas])
        if accounts := list(changes.accounts.values()):
            await connection.execute(
                _ACCOUNTS,
                [self.source, [a.did for a in accounts], [a.status for a in accounts], [a.seq for a in accounts]],
            )
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[a.did for a in accounts]])
        if changes.identities:
            await connection.execute(
                "UPDATE repositories SET resolve_at = now() WHERE did = ANY(%b)", [list(changes.identities)]
            )

    async def _quarantine(self, connection: AsyncConnection, items: Sequence[Item]) -> None:
        seen: dict[tuple[bytes, str], list[Any]] = {}
        counts: dict[str, int] = {}
        for item in items:
            event = item.event
            assert isinstance(event, Rejected)
            counts[event.reason] = counts.get(event.reason, 0) + 1
            digest = hashlib.sha256(item.frame).digest()
            detail, did = _clean(event.detail), _clean(event.did or "") or None
            row = [event.reason, digest, detail, self.source, item.seq, did, item.frame, 0]
            seen.setdefault((digest, event.reason), row)[-1] += 1
        await connection.execute(
            _QUARANTINE, [*(list(column) for column in zip(*seen.values(), strict=True)), self._quarantine_bytes]
        )
        await connection.execute(_QUARANTINE_COUNTS, [list(counts), list(counts.values())])


def is_gone(error: BaseException) -> bool:
    """Whether *error* says that the database is not there, rather than that it did not like something."""
    if isinstance(error, psycopg.OperationalError):
        return error.sqlstate is None or error.sqlstate.startswith(_GONE)
    return isinstance(error, psycopg.InterfaceError)


def _writes(event: Event, key: Key) -> bool:
    return (
        isinstance(event, Commit)
        and event.did == key[0]
        and any((op.collection, op.rkey) == key[1:] for op in event.ops)
    )


def _uri(key: Key) -> str:
    return f"at://{key[0]}/{key[1]}/{key[2]}"


def _row(did: str, written: RecordWritten, rev: str) -> tuple[Any, ...]:
    """A record's columns, in the order of `_RECORDS`."""
    reading = written.reading
    name = version = schema_ref = tags = source = target = dataset = None
    match reading.value:
        case records.SchemaRecord() as schema:
            name, version = schema.name, schema.version
        case records.DatasetRecord() as value:
            name, schema_ref = value.name, value.schema_ref
            tags = _array([tag[:_MAX_TAG] for tag in value.tags]) if value.tags else None
        case records.LensRecord() as lens:
            name, source, target = lens.name, lens.source_schema, lens.target_schema
        case records.LabelRecord() as label:
            name, version, dataset = label.name, label.version, label.dataset_uri
        case _:
            pass
    return (
        did,
        written.collection,
        written.rkey,
        reading.kind,
        written.cid,
        rev,
        written.json.decode(),
        _array(reading.problems),
        _clean(name or "", _MAX_NAME) or None,
        _clean(version or "", _MAX_NAME) or None,
        _reference(schema_ref),
        tags,
        _reference(source),
        _reference(target),
        _reference(dataset),
    )


def _array(texts: Sequence[str]) -> str:
    """Texts as an array literal: arrays of arrays must be rectangular, so these travel as text."""
    quoted = (_clean(text).replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _reference(uri: str | None) -> str | None:
    """A reference fit for an index: what is no AT URI of a sane length refers to nothing."""
    return uri if uri and len(uri) <= _MAX_REFERENCE and uri.startswith("at://") and uri.isascii() else None


def _clean(text: str, limit: int = 2000) -> str:
    """Text that Postgres can hold: no U+0000, and not for ever."""
    return text[:limit].replace("\x00", "\N{REPLACEMENT CHARACTER}")


# Arrays go in binary form (%b): as text, escaping their quotes takes twice the time of all the rest.

_CURSOR = """
INSERT INTO cursors (host, seq) VALUES (%s, %s)
ON CONFLICT (host) DO UPDATE SET seq = excluded.seq, updated_at = now()
"""

_REPOSITORIES = """
INSERT INTO repositories (did, rev, data, records_rev, desynced)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET
    rev = excluded.rev, data = excluded.data, records_rev = excluded.records_rev, desynced = excluded.desynced,
    resync_at = CASE WHEN repositories.desynced IS NULL THEN now() ELSE repositories.resync_at END
"""

_RECORDS = """
INSERT INTO records (did, collection, rkey, kind, cid, rev, record, problems, name, version,
                     schema_ref, tags, source_schema, target_schema, dataset_ref)
SELECT did, collection, rkey, kind, cid, rev, record::jsonb, problems::text[], name, version,
       schema_ref, tags::text[], source_schema, target_schema, dataset_ref
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     t (did, collection, rkey, kind, cid, rev, record, problems, name, version,
        schema_ref, tags, source_schema, target_schema, dataset_ref)
ON CONFLICT (uri) DO UPDATE SET
    cid = excluded.cid, rev = excluded.rev, record = excluded.record, problems = excluded.problems,
    verified = excluded.verified, indexed_at = now(), name = excluded.name, version = excluded.version,
    schema_ref = excluded.schema_ref, tags = excluded.tags, source_schema = excluded.source_schema,
    target_schema = excluded.target_schema, dataset_ref = excluded.dataset_ref
"""

_ACCOUNTS = """
UPDATE repositories SET status = t.status, account_seq = t.seq, account_host = %s
FROM unnest(%b::text[], %b::text[], %b::bigint[]) t (did, status, seq) WHERE repositories.did = t.did
"""

# A dataset's document holds its schema's name and fields, and its publisher's handle and state.
_OUTBOX_OF_SCHEMAS = """
INSERT INTO search_outbox (uri) SELECT uri FROM records WHERE schema_ref = ANY(%b::text[])
"""
_OUTBOX_OF_REPOSITORIES = """
INSERT INTO search_outbox (uri) SELECT uri FROM records WHERE did = ANY(%b::text[]) AND kind = 'dataset'
"""

_QUARANTINE = """
INSERT INTO quarantine (reason, digest, detail, source, seq, did, bytes, times)
SELECT * FROM unnest(%b::text[], %b::bytea[], %b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[],
                     %b::bigint[])
WHERE pg_total_relation_size('quarantine') < %s
ON CONFLICT (digest, reason) DO UPDATE SET
    times = quarantine.times + excluded.times, last_seen = now(), seq = excluded.seq
"""

_QUARANTINE_COUNTS = """
INSERT INTO quarantine_counts (reason, times) SELECT * FROM unnest(%b::text[], %b::bigint[])
ON CONFLICT (reason) DO UPDATE SET times = quarantine_counts.times + excluded.times
"""


async def request_rebuild(url: str) -> None:
    """Ask the indexer that runs on this database to compare the search engine with it and feed everything again."""
    connection = await postgres.connect(url)
    async with connection:
        await connection.execute("INSERT INTO search_outbox (uri) VALUES (%s)", [REBUILD])


async def forget_cursor(url: str, source: str) -> bool:
    """Forget how far *source* was read, so that it is read from now on; True if that was known."""
    connection = await postgres.connect(url)
    async with connection:
        return (await connection.execute("DELETE FROM cursors WHERE host = %s", [source])).rowcount > 0
