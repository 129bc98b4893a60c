"""All the indexer's SQL: one writer, whole batches, each in one transaction with the cursor it reaches."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, LiteralString, NamedTuple

import orjson
import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import args_row
from psycopg.types.json import Jsonb

from atdata import syntax
from atdata.atmosphere import records
from atdata.nsid import PREFIX, Kind, kind_of
from atdata_backend import postgres
from atdata_backend.identity import Identity
from atdata_backend.published import Published
from atdata_indexer.backfill import FetchFailed, RecordProof, Snapshot
from atdata_indexer.changes import KEY_NEEDED, Changes, Key, Repository, Written, fold
from atdata_indexer.events import (
    Commit,
    Desynced,
    Event,
    Malformed,
    Mention,
    RecordReader,
    RecordWritten,
    Rejected,
    Scope,
    json_size,
    read_record,
)
from atdata_indexer.jetstream import parse_any

logger = logging.getLogger(__name__)

# Any constant, as long as every version of the indexer uses the same one.
_WRITER_LOCK = 0x61746978

# Why a repository is read again that a comparison found fault with: then nothing of it is believed.
_DIFFERED = "it differed from its host"

#: An outbox row with this for a URI asks for a comparison of the engine with Postgres, and for all to be fed again.
REBUILD = "*"

#: What can be searched for.
SEARCHABLE: tuple[Kind, ...] = ("dataset", "schema")

# Frames of one repository that wait for its resync: beyond either, they are dropped, and it is read once more.
_MAX_PENDING = 1000
_MAX_PENDING_BYTES = 32_000_000
_MAX_ALL_PENDING_BYTES = 4_000_000_000

#: How far a clock elsewhere may be ahead of ours.
AHEAD = timedelta(minutes=5)

# A host that says that it does not know an account may just have lost its database: it is asked again after this.
_PURGE_UNKNOWN = timedelta(days=7)

# Records of one repository to be proven one by one: beyond that it is less work for its host to give it out whole.
_MAX_CONFIRMATIONS = 50
# How often a host may be behind what was said of a record. Then what was said was made up.
_BEHIND = 3

# How long changes are kept, and how many are forgotten at once: others wait for the writer meanwhile.
_CHANGES = {"kept": timedelta(days=7), "piece": 10_000}

#: So many repositories of one host are read before it is others' turn.
CROWD = 32

# Bytes of JSON that are written to one repository in one transaction, and in one statement of it.
_MAX_REPOSITORY_JSON = 128_000_000
_MAX_STATEMENT_JSON = 4_000_000
# Bytes of records that are read before it is others' turn: some milliseconds of work.
_READ_AT_ONCE = 50_000

# What Postgres says to values it cannot hold, whatever we checked before: class 22, and class 54 (too long, too deep).
_REFUSED = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)
# Classes of OperationalError that are about the server (connection, resources, shutting down, transactions of others in
# the way) and not about a value.
_GONE = ("08", "40", "53", "57", "58")

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


class Check(NamedTuple):
    """A repository whose host is to be asked, with what is known of it before."""

    did: str
    pds: str
    status: str
    account_seq: int | None


@dataclass(slots=True)
class Applied:
    """What a batch came to. ``tracked`` are repositories seen for the first time."""

    commits: int = 0
    replayed: int = 0
    written: int = 0
    deleted: int = 0
    quarantined: int = 0
    waiting: int = 0
    tracked: set[str] = field(default_factory=set)
    identities: bool = False  # some DID document is to be read
    desynced: bool = False  # some repository is to be read
    mentions: bool = False  # some record is to be proven
    deleted_accounts: bool = False

    def add(self, other: Applied) -> None:
        """Add what another batch came to."""
        for each in fields(self):
            mine, more = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine | more if isinstance(mine, set | bool) else mine + more)


class Store:
    """The database as its one writer sees it.

        store = await Store.open(url, source="bsky.network")
        applied = await store.apply(items, cursor=31527015322)

    *source* is the host that events come from: cursors and quarantine are kept by it. After a lost connection every
    method raises psycopg.OperationalError until `reopen` succeeds.
    """

    def __init__(
        self,
        url: str,
        source: str,
        *,
        prefixes: tuple[str, ...] = (PREFIX,),
        backfill: bool = True,
        quarantine_bytes: int = 1_000_000_000,
    ) -> None:
        self.source = source
        self._url = url
        self._prefixes = prefixes
        self._backfill = backfill
        self._quarantine_bytes = quarantine_bytes
        self._connection: AsyncConnection | None = None
        # For the search engine: large rows must not keep the writer waiting.
        self._reader: AsyncConnection | None = None
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
            reader = await postgres.connect(self._url)
            await reader.set_autocommit(True)
        except BaseException:
            await connection.close()
            raise
        self._connection, self._reader = connection, reader

    async def close(self) -> None:
        for connection in (self._connection, self._reader):
            if connection is not None:
                await connection.close()
        self._connection = self._reader = None

    # Reading what the indexer itself needs.

    async def cursor(self) -> int | None:
        """The sequence number up to which this source was read, None if it never was."""
        async with self._alone() as connection:
            row = await (await connection.execute("SELECT seq FROM cursors WHERE host = %s", [self.source])).fetchone()
        return row[0] if row else None

    async def tracked(self) -> set[str]:
        """The DIDs of all repositories that we follow."""
        async with self._alone() as connection:
            return set(await tracked(connection))

    async def counts(self) -> dict[str, int]:
        """Backlogs and totals for the status line."""
        async with self._alone() as connection:
            row = await (
                await connection.execute(
                    """
                    SELECT (SELECT count(*) FROM search_outbox),
                           (SELECT count(*) FROM repositories WHERE desynced IS NOT NULL AND status = 'active'),
                           (SELECT coalesce(sum(times), 0)::bigint FROM quarantine_counts),
                           (SELECT count(*) FROM pending_frames),
                           (SELECT count(*) FROM repositories WHERE check_at IS NOT NULL),
                           (SELECT count(*) FROM confirmations)
                    """
                )
            ).fetchone()
        assert row is not None
        names = ("searchBacklog", "desynced", "quarantined", "waiting", "toCheck", "unconfirmed")
        return dict(zip(names, row, strict=True))

    # The stream.

    async def apply(self, items: Sequence[Item], cursor: int | None, *, gap: str | None = None) -> Applied:
        """Apply *items* in order and move the cursor, all or nothing, but for what Postgres refuses to hold.

        A *gap* before or among them asks for a sweep. A record that gets past every check and that the database refuses
        is quarantined: it must not stop the stream.
        """
        dids = {did for item in items if (did := getattr(item.event, "did", None))}
        async with self._alone() as connection, connection.transaction():
            held = await self._held(connection, dids) if dids else {}
            applied, waiting = await self._apply(connection, items, held)
            if waiting:
                await self._wait(connection, [items[position] for position in waiting])
            await self._move(connection, cursor, gap)
        return applied

    async def _move(self, connection: AsyncConnection, cursor: int | None, gap: str | None) -> None:
        """Move the cursor, and remember with it what is missing before it."""
        if cursor is not None:
            await connection.execute(_CURSOR, [self.source, cursor])
        if gap is not None:
            await connection.execute(_SWEEP, {"reason": _clean(gap, 500)})

    async def _apply(
        self, connection: AsyncConnection, items: Sequence[Item], held: Mapping[str, Repository]
    ) -> tuple[Applied, list[int]]:
        """Apply *items* to what is *held*, and return the positions of those that have to wait, too."""
        changes = fold((item.event for item in items), held, backfill=self._backfill)
        rejected = [Item(event, items[position].frame, items[position].seq) for position, event in changes.rejected]
        for key, reason in (await self._write_records(connection, changes)).items():
            frame = next(item for item in reversed(items) if _writes(item.event, key))
            rejected.append(Item(Rejected("refused-by-database", reason, key[0]), frame.frame, frame.seq))
        await self._write(connection, changes, rejected)
        tracked = changes.repositories.keys() - held.keys()
        applied = Applied(
            commits=changes.commits,
            replayed=changes.replayed,
            written=sum(record is not None for record in changes.records.values()),
            deleted=sum(record is None for record in changes.records.values()),
            quarantined=len(rejected),
            waiting=len(changes.waiting),
            tracked=tracked,
            identities=bool(changes.identities or tracked),
            deleted_accounts=any(account.status == "deleted" for account in changes.accounts.values()),
            desynced=any(repository.desynced for repository in changes.repositories.values()),
        )
        if changes.mentioned:
            applied.mentions = True
            applied.desynced |= await self._request_confirmations(connection, changes)
        return applied, changes.waiting

    async def _wait(self, connection: AsyncConnection, items: Sequence[Item]) -> None:
        """Keep the frames of *items* until their repositories are in step again."""
        dids = [item.event.did for item in items if isinstance(item.event, Commit | Mention | Desynced)]
        kept = await (
            await connection.execute(
                "INSERT INTO pending_frames (did, seq, frame) SELECT did, seq, frame"
                " FROM unnest(%b::text[], %b::bigint[], %b::bytea[]) WITH ORDINALITY t (did, seq, frame, place)"
                # Who is hidden by its account is not read until it is back.
                " JOIN repositories USING (did) WHERE (status = 'active' OR account_seq IS NULL)"
                " AND pg_total_relation_size('pending_frames') < %s ORDER BY place RETURNING did",
                [dids, [item.seq for item in items], [item.frame for item in items], _MAX_ALL_PENDING_BYTES],
            )
        ).fetchall()
        if lost := set(dids) - {did for (did,) in kept}:
            await connection.execute(
                "UPDATE repositories SET resync_started_at = 'infinity' WHERE did = ANY(%b::text[])", [list(lost)]
            )
        await connection.execute(
            "WITH dropped AS (DELETE FROM pending_frames WHERE did IN"
            " (SELECT did FROM pending_frames WHERE did = ANY(%b::text[])"
            " GROUP BY did HAVING count(*) > %s OR sum(octet_length(frame)) > %s) RETURNING did)"
            # Beyond the end of any resync: the one that is under way does not make up for them.
            " UPDATE repositories SET resync_started_at = 'infinity' WHERE did IN (SELECT did FROM dropped)",
            [dids, _MAX_PENDING, _MAX_PENDING_BYTES],
        )

    async def save_cursor(self, cursor: int | None, *, gap: str | None = None) -> None:
        """Move the cursor alone, over frames that concerned nobody, or a *gap*."""
        async with self._alone() as connection, connection.transaction():
            await self._move(connection, cursor, gap)

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

    async def to_resync(self, limit: int, *, but: Collection[str] = ()) -> list[str]:
        """Repositories that are to be read whole, *but* for those that are being read; the longest waiting first.

        Not those of hosts of which many are being read: however slow one is, and however many it has, there is room
        for the others'.
        """
        return await self._take_desynced("whole", limit, but)

    async def to_refresh(self, limit: int, *, keys_only: bool, but: Collection[str] = ()) -> list[str]:
        """Repositories whose DID documents commits wait for; without *keys_only*, all that are out of step."""
        return await self._take_desynced("key" if keys_only else "any", limit, but)

    async def _take_desynced(
        self, which: Literal["whole", "key", "any"], limit: int, but: Collection[str]
    ) -> list[str]:
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    """
                    WITH due AS (
                        SELECT did FROM repositories
                        WHERE desynced IS NOT NULL AND resync_at <= now() AND did <> ALL (%(but)s)
                        AND (%(which)s = 'any' OR (desynced = %(key)s) = (%(which)s = 'key'))
                        AND (status = 'active' OR account_seq IS NULL)
                        AND (pds IS NULL OR pds NOT IN (
                            SELECT pds FROM repositories WHERE did = ANY (%(but)s) AND pds IS NOT NULL
                            GROUP BY pds HAVING count(*) >= %(crowd)s
                        )) ORDER BY resync_at LIMIT %(limit)s
                    )
                    UPDATE repositories r SET resync_started_at = clock_timestamp() FROM due WHERE r.did = due.did
                    RETURNING r.did, r.resync_at
                    """,
                    {"but": list(but), "which": which, "key": KEY_NEEDED, "limit": limit, "crowd": CROWD},
                )
            ).fetchall()
        return [did for did, _ in sorted(rows, key=lambda row: row[1])]

    async def apply_snapshot(self, snapshot: Snapshot) -> Applied | None:
        """Make what we hold of a repository equal to *snapshot*, deletions included, and go on with what waited.

        None, and nothing changed, when the snapshot is older than what we hold: fetch again. A host that says the same
        a third time is believed: its repository was set back. Raises FetchFailed when its records are too much.
        """
        try:
            return await self._apply_snapshot(snapshot)
        except Malformed as e:
            raise FetchFailed(snapshot.did, e.detail) from None

    async def _apply_snapshot(self, snapshot: Snapshot) -> Applied | None:
        did = snapshot.did
        # Reading is work for the processor, done before anybody has to wait for the transaction.
        async with self._alone() as connection:
            held = await self._cids(connection, did)
        reader = RecordReader(_MAX_REPOSITORY_JSON)
        size = 0
        for record in snapshot.records:
            if held.get((record.collection, record.rkey)) != record.cid:
                reader.read(*record)
                size += len(record.block)
                if size > _READ_AT_ONCE:
                    size = 0
                    await asyncio.sleep(0)  # others' turn
        async with self._alone() as connection, connection.transaction():
            known = (await self._held(connection, [did])).get(did, Repository())
            latest = max(known.rev or "", known.wanted or "")
            if latest > snapshot.rev and not await self._is_set_back(connection, snapshot):
                return None
            # Anew, for the stream may have come by meanwhile.
            held = await self._cids(connection, did)
            wrong: set[tuple[str, str]] = set()
            if known.desynced == _DIFFERED:
                same = (reader.read(*r) for r in snapshot.records if held.get((r.collection, r.rkey)) == r.cid)
                wrong = await altered(connection, did, (r for r in same if isinstance(r, RecordWritten)))
            changes = Changes()
            rejected = []
            for collection, rkey, cid, block in snapshot.records:
                if held.pop((collection, rkey), None) == cid and (collection, rkey) not in wrong:
                    continue
                written = reader.read(collection, rkey, cid, block)
                if isinstance(written, RecordWritten):
                    changes.records[did, collection, rkey] = Written(
                        written, snapshot.rev, snapshot.commit, snapshot.identity.signing_key
                    )
                else:
                    changes.records[did, collection, rkey] = None
                    rejected.append(Item(Rejected(written.reason, written.detail, did), block, None))
            for collection, rkey in held:
                changes.records[did, collection, rkey] = None
            blocks = {(did, r.collection, r.rkey): r.block for r in snapshot.records}
            for key, reason in (await self._write_records(connection, changes)).items():
                rejected.append(Item(Rejected("refused-by-database", reason, did), blocks[key], None))
            changes.repositories[did] = replace(known, rev=snapshot.rev, data=snapshot.data, wanted=None)
            async with connection.pipeline():
                await self._request(connection, changes, rejected)
                # Its host gives it out, so it is not hidden, unless the stream has told us otherwise.
                await connection.execute(
                    "UPDATE repositories SET resynced_at = now(), wanted_rev = NULL, behind_times = 0,"
                    # Who has itself read over and over waits longer each time.
                    " resync_pause = CASE WHEN resynced_at > now() - 3 * resync_pause"
                    " THEN least(2 * resync_pause, interval '1 hour') ELSE interval '10 seconds' END,"
                    " behind_rev = NULL, status = CASE WHEN account_seq IS NULL THEN 'active' ELSE status END"
                    " WHERE did = %s",
                    [did],
                )
                await connection.execute(_PROVEN_REPOSITORY, [snapshot.identity.signing_key, snapshot.commit, did])
                if known.status != "active":
                    await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])
                await connection.execute("DELETE FROM confirmations WHERE did = %s", [did])
                frames = await self._release(connection, snapshot.identity, is_whole=True)
            applied = await self._go_on(connection, did, await frames.fetchall())
        applied.written += sum(record is not None for record in changes.records.values())
        applied.deleted += sum(record is None for record in changes.records.values())
        applied.quarantined += len(rejected)
        applied.tracked.add(did)
        return applied

    async def apply_identity(self, identity: Identity) -> Applied:
        """Go on with what waited for the signing key of a repository. *identity* has one."""
        async with self._alone() as connection, connection.transaction():
            frames = await self._release(connection, identity, is_whole=not self._backfill)
            return await self._go_on(connection, identity.did, await frames.fetchall())

    async def _release(self, connection: AsyncConnection, identity: Identity, *, is_whole: bool) -> AsyncCursor[Any]:
        """Note who *identity* is now, and take out the frames that waited for it. Not *is_whole*, only its key did."""
        await connection.execute(
            "UPDATE repositories SET signing_key = %s, pds = %s, resolved_at = now(), trouble = NULL, resync_tries = 0,"
            " desynced = CASE WHEN resync_started_at = 'infinity' THEN 'more came than could wait for it'"
            # What was found after the reading began is not mended by it.
            " WHEN desynced_at > resync_started_at OR (NOT %s AND desynced <> %s) THEN desynced END,"
            " resync_at = CASE WHEN resync_started_at = 'infinity' THEN now() + interval '10 seconds'"
            " ELSE resync_at END WHERE did = %s",
            [identity.signing_key, identity.pds, is_whole, KEY_NEEDED, identity.did],
        )
        return await connection.execute(
            "DELETE FROM pending_frames p USING repositories r WHERE p.did = %s AND r.did = p.did"
            " RETURNING p.id, p.seq, p.frame, p.received_at >= r.resync_started_at",
            [identity.did],
        )

    async def _go_on(self, connection: AsyncConnection, did: str, frames: Sequence[tuple[Any, ...]]) -> Applied:
        """Apply the *frames* that waited for a repository, in order."""
        scope = Scope(self._prefixes, {did}, syntax.tid_at(datetime.now(UTC) + AHEAD))
        items: list[Item] = []
        early = size = 0
        for _, seq, frame, is_late in sorted(frames, key=lambda row: row[0]):
            for event in parse_any(frame, scope).events:
                # What is wrong with it was kept when it came, and what could not be read then is read by now.
                if isinstance(event, Commit | Mention) or (isinstance(event, Desynced) and (event.rev or is_late)):
                    items.append(Item(event, frame, seq))
                    early += not is_late
                    size += json_size(event)
            if size > _MAX_REPOSITORY_JSON:
                items.append(Item(Desynced(did, None, "more came than could wait for it"), frame, seq))
                break
        if not items:
            return Applied()
        applied = Applied()
        # The document was read after the early ones came: if they do not fit its key, no other will.
        for batch, is_fresh in ((items[:early], True), (items[early:], False)):
            if batch:
                (held,) = (await self._held(connection, [did])).values()
                more, waiting = await self._apply(connection, batch, {did: replace(held, key_is_fresh=is_fresh)})
                if waiting:
                    await self._wait(connection, [batch[position] for position in waiting])
                applied.add(more)
        return applied

    async def _is_set_back(self, connection: AsyncConnection, snapshot: Snapshot) -> bool:
        """Whether its host says the same for the third time."""
        row = await (
            await connection.execute(
                "UPDATE repositories SET"
                " behind_times = CASE WHEN behind_rev = %(rev)s THEN behind_times + 1 ELSE 1 END,"
                " behind_rev = %(rev)s WHERE did = %(did)s RETURNING behind_times",
                {"rev": snapshot.rev, "did": snapshot.did},
            )
        ).fetchone()
        return bool(row and row[0] >= 3)

    async def resync_failed(self, did: str, reason: str) -> None:
        """Put the resync of *did* off: five seconds at first, then twice as long each time, up to a day."""
        async with self._alone() as connection:
            await connection.execute(
                "UPDATE repositories SET trouble = left(%s, 500), resync_tries = resync_tries + 1,"
                " resync_at = now() + least(interval '1 day', interval '5 seconds' * 2 ^ least(resync_tries, 15))"
                " WHERE did = %s",
                [_clean(reason), did],
            )

    async def unavailable(self, did: str, status: str) -> None:
        """Its host says that *did* is not to be had: hidden, and asked again, soon at first, then every hour.

        What the stream last said of it is forgotten, if it was that it is active: its host knows better.
        """
        async with self._alone() as connection, connection.transaction(), connection.pipeline():
            await connection.execute(
                "UPDATE repositories SET resync_tries = resync_tries + 1,"
                " resync_at = now() + least(interval '1 hour', interval '10 seconds' * 2 ^ least(resync_tries, 15)),"
                " account_seq = CASE WHEN status = 'active' THEN NULL ELSE account_seq END,"
                " status = CASE WHEN status = 'active' OR account_seq IS NULL THEN %s ELSE status END WHERE did = %s",
                [status, did],
            )
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])

    # Single records.

    async def _request_confirmations(self, connection: AsyncConnection, changes: Changes) -> bool:
        """Have what was only mentioned proven; True if some repository is to be read whole for that."""
        keys = list(changes.mentioned)
        cids = [written.record.cid if (written := changes.records[key]) else None for key in keys]
        columns = [*(list(column) for column in zip(*keys, strict=True)), list(changes.mentioned.values()), cids]
        await connection.execute(_CONFIRMATIONS, columns)
        if not self._backfill:
            return False
        cursor = await connection.execute(_MANY_CONFIRMATIONS, [list({key[0] for key in keys}), _MAX_CONFIRMATIONS])
        return cursor.rowcount > 0

    async def to_confirm(self, limit: int, but: Collection[Key] = ()) -> list[Key]:
        """Records that their hosts are to be asked for, *but* for those that are being asked for; longest due first.

        Not those of repositories out of step, whose resync brings the proof.
        """
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did, collection, rkey FROM confirmations JOIN repositories USING (did)"
                    " WHERE at <= now() AND uri <> ALL (%s) AND desynced IS NULL"
                    " AND (status = 'active' OR account_seq IS NULL) ORDER BY at LIMIT %s",
                    [[_uri(key) for key in but], limit],
                )
            ).fetchall()
        return [(did, collection, rkey) for did, collection, rkey in rows]

    async def confirm(self, key: Key, proof: RecordProof) -> Applied | None:
        """Take what the host of a repository proves of the record *key* for the truth, whatever was mentioned.

        None when the host is behind what was mentioned: it is to be asked again. The third time it is believed; whoever
        made that up may have hidden other things behind it, so that the repository is to be read whole.
        """
        did, uri = key[0], _uri(key)
        block = proof.record.block if proof.record else b""
        async with self._alone() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "SELECT c.rev, c.tries, r.cid FROM confirmations c LEFT JOIN records r USING (uri) WHERE uri = %s",
                    [uri],
                )
            ).fetchone()
            if row is None:
                return Applied()  # it was proven meanwhile, or its account is gone
            mentioned, tries, cid = row
            is_behind = proof.rev < mentioned
            if is_behind and tries + 1 < _BEHIND:
                await self._put_off(connection, key)
                return None
            changes = Changes()
            rejected = []
            if proof.record is None:
                if cid is not None:
                    changes.records[key] = None
            elif proof.record.cid != cid:
                written = read_record(*proof.record)
                if isinstance(written, RecordWritten):
                    changes.records[key] = Written(written, proof.rev, proof.commit, proof.identity.signing_key)
                else:
                    changes.records[key] = None
                    rejected.append(Item(Rejected(written.reason, written.detail, did), block, None))
            if is_behind:
                known = (await self._held(connection, [did])).get(did, Repository())
                desynced = f"its host is at {proof.rev}, and never came to {mentioned}" if self._backfill else None
                changes.repositories[did] = replace(
                    known, rev=proof.rev, data=None, desynced=known.desynced or desynced
                )
            for _, reason in (await self._write_records(connection, changes)).items():
                rejected.append(Item(Rejected("refused-by-database", reason, did), block, None))
            await self._write(connection, changes, rejected)
            await connection.execute("DELETE FROM confirmations WHERE uri = %s", [uri])
            if not changes.records:
                await connection.execute(_PROVEN_RECORD, [proof.identity.signing_key, proof.commit, uri])
            # Its host gives it out, so it is not hidden, unless the stream has told us otherwise.
            shown = await connection.execute(
                "UPDATE repositories SET status = 'active'"
                " WHERE did = %s AND account_seq IS NULL AND status <> 'active'",
                [did],
            )
            if shown.rowcount:
                await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])
        return Applied(
            written=sum(record is not None for record in changes.records.values()),
            deleted=sum(record is None for record in changes.records.values()),
            quarantined=len(rejected),
            desynced=bool(changes.repositories),
        )

    async def not_confirmed(self, key: Key) -> None:
        """The host did not prove anything of *key*: ask again in five seconds, then twice as long each time."""
        async with self._alone() as connection:
            await self._put_off(connection, key)

    async def _put_off(self, connection: AsyncConnection, key: Key) -> None:
        await connection.execute(
            "UPDATE confirmations SET tries = tries + 1,"
            " at = now() + least(interval '1 day', interval '5 seconds' * 2 ^ least(tries, 15)) WHERE uri = %s",
            [_uri(key)],
        )

    # Comparing with the hosts.

    async def start_sweep(self) -> str | None:
        """Begin to compare the rev of every repository with its host's, if that was asked for, and say what for.

        One that is under way ends with it.
        """
        async with self._alone() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "UPDATE sweeps SET started_at = now() WHERE started_at IS NULL RETURNING id, reason"
                )
            ).fetchone()
            if row is None:
                return None
            await connection.execute(
                "UPDATE sweeps SET finished_at = now() WHERE finished_at IS NULL AND id <> %s", [row[0]]
            )
            await connection.execute("UPDATE repositories SET check_at = now(), check_tries = 0 WHERE pds IS NOT NULL")
        return str(row[1])

    async def to_check(self, limit: int, but: Collection[str] = ()) -> list[Check]:
        """Repositories to compare with their hosts. None are left: the sweep is finished."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did, pds, status, account_seq FROM repositories WHERE check_at <= now()"
                    " AND pds IS NOT NULL AND did <> ALL (%b) ORDER BY check_at LIMIT %s",
                    [list(but), limit],
                )
            ).fetchall()
            if not rows and not but:
                await connection.execute(
                    "UPDATE sweeps SET finished_at = now() WHERE started_at IS NOT NULL AND finished_at IS NULL"
                )
        return [Check(*row) for row in rows]

    async def checked(self, did: str, rev: str) -> bool:
        """Its host gives *did* out, at *rev*: True if that is what we hold, or it is looked at again after a resync."""
        async with self._alone() as connection, connection.transaction():
            cursor = await connection.execute(
                "UPDATE repositories SET check_tries = 0,"
                " check_at = CASE WHEN desynced IS NOT NULL THEN now() + interval '30 seconds' END"
                " WHERE did = %s AND status = 'active' AND (rev = %s OR desynced IS NOT NULL)",
                [did, rev],
            )
            if cursor.rowcount:
                await connection.execute(_COUNT_CHECK, [1, 0, 0])
        return bool(cursor.rowcount)

    async def found_unavailable(self, check: Check, status: str) -> None:
        """Its host does not give a repository out: hidden, unless the stream had something to say of it meanwhile."""
        async with self._alone() as connection, connection.transaction():
            await connection.execute(
                "UPDATE repositories SET check_at = NULL, check_tries = 0, status = %(status)s,"
                " desynced = coalesce(desynced, 'its host did not give it out'), desynced_at = clock_timestamp(),"
                " resync_at = now() + interval '1 minute',"
                " account_seq = CASE WHEN status = 'active' THEN NULL ELSE account_seq END,"
                " purge_at = CASE WHEN %(status)s = 'not-found' THEN coalesce(purge_at, now() + %(later)s) END"
                " WHERE did = %(did)s AND status = %(was)s AND account_seq IS NOT DISTINCT FROM %(seq)s",
                {
                    "did": check.did,
                    "status": status,
                    "later": _PURGE_UNKNOWN,
                    "was": check.status,
                    "seq": check.account_seq,
                },
            )
            if check.status != status:
                await connection.execute(_OUTBOX_OF_REPOSITORIES, [[check.did]])
            await connection.execute(_COUNT_CHECK, [1, 0, 0])

    async def differs(self, check: Check, reason: str) -> None:
        """A host has something else than we hold, or gives out what is hidden here: it is to be read."""
        async with self._alone() as connection, connection.transaction():
            await connection.execute(
                "UPDATE repositories SET check_at = NULL, check_tries = 0, resync_at = now(), resync_tries = 0,"
                " desynced = CASE WHEN desynced = %(key)s THEN %(reason)s ELSE coalesce(desynced, %(reason)s) END,"
                " desynced_at = clock_timestamp(), status = CASE"
                " WHEN status = %(was)s AND account_seq IS NOT DISTINCT FROM %(seq)s THEN 'active' ELSE status END"
                " WHERE did = %(did)s",
                {
                    "did": check.did,
                    "key": KEY_NEEDED,
                    "reason": reason,
                    "was": check.status,
                    "seq": check.account_seq,
                },
            )
            if check.status != "active":
                await connection.execute(_OUTBOX_OF_REPOSITORIES, [[check.did]])
            await connection.execute(_COUNT_CHECK, [1, 1, 0])

    async def unchecked(self, did: str) -> None:
        """The host of *did* did not tell: again in ten minutes, then twice as long each time, up to a day."""
        async with self._alone() as connection, connection.transaction():
            await connection.execute(
                "UPDATE repositories SET check_tries = check_tries + 1, check_at = now()"
                " + least(interval '1 day', interval '10 minutes' * 2 ^ least(check_tries, 10)) WHERE did = %s",
                [did],
            )
            await connection.execute(_COUNT_CHECK, [0, 0, 1])

    async def to_purge(self, limit: int, but: Collection[str] = ()) -> list[Check]:
        """Repositories whose accounts are said to be deleted."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did, pds, status, account_seq FROM repositories WHERE purge_at <= now() AND did <> ALL (%b)"
                    " ORDER BY purge_at LIMIT %s",
                    [list(but), limit],
                )
            ).fetchall()
        return [Check(*row) for row in rows]

    async def purge(self, check: Check) -> None:
        """Forget a repository that is deleted, but for that fact, so that replays do not bring it back.

        Nothing, if the stream had something to say of it since it was asked for.
        """
        did = check.did
        async with self._alone() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "SELECT true FROM repositories WHERE did = %s AND status = %s"
                    " AND account_seq IS NOT DISTINCT FROM %s AND purge_at IS NOT NULL FOR UPDATE",
                    [did, check.status, check.account_seq],
                )
            ).fetchone()
            if row is None:
                return
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[did]])
            await connection.execute("DELETE FROM records WHERE did = %s", [did])
            await connection.execute("DELETE FROM pending_frames WHERE did = %s", [did])
            await connection.execute("DELETE FROM confirmations WHERE did = %s", [did])
            await connection.execute("DELETE FROM quarantine WHERE did = %s", [did])
            await connection.execute(
                "UPDATE repositories SET status = 'deleted', purge_at = NULL, rev = NULL, data = NULL, handle = NULL,"
                " pds = NULL, signing_key = NULL, desynced = NULL, check_at = NULL WHERE did = %s",
                [did],
            )

    async def not_purged(self, check: Check, status: str | None) -> None:
        """A host says that an account is not deleted but *status*; None if it did not tell: again in ten minutes."""
        async with self._alone() as connection, connection.transaction():
            if status is None:
                await connection.execute(
                    "UPDATE repositories SET purge_at = now() + interval '10 minutes' WHERE did = %s", [check.did]
                )
                return
            await connection.execute(
                "UPDATE repositories SET purge_at = NULL, status = %(status)s, resync_at = now(), resync_tries = 0,"
                " desynced = CASE WHEN desynced = %(key)s THEN %(reason)s ELSE coalesce(desynced, %(reason)s) END,"
                " desynced_at = clock_timestamp()"
                " WHERE did = %(did)s AND status = %(was)s AND account_seq IS NOT DISTINCT FROM %(seq)s",
                {
                    "did": check.did,
                    "status": status,
                    "key": KEY_NEEDED,
                    "reason": "it was said to be deleted, and is not",
                    "was": check.status,
                    "seq": check.account_seq,
                },
            )
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[check.did]])

    # Identities.

    async def to_resolve(self, limit: int, but: Collection[str] = ()) -> list[str]:
        """Repositories whose DID document is due to be read, *but* for those that are being read."""
        async with self._alone() as connection:
            rows = await (
                await connection.execute(
                    "SELECT did FROM repositories WHERE resolve_at <= now() AND did <> ALL (%b)"
                    " ORDER BY resolve_at LIMIT %s",
                    [list(but), limit],
                )
            ).fetchall()
        return [did for (did,) in rows]

    async def resolved(self, identity: Identity) -> None:
        """Note what a DID document says. A handle that another repository held is taken from that one."""
        async with self._alone() as connection, connection.transaction(), connection.pipeline():
            await connection.execute(
                _outbox(
                    "SELECT uri FROM records JOIN losers USING (did) WHERE kind IN ('dataset', 'schema')",
                    given="""
                WITH losers AS (
                    UPDATE repositories SET handle = NULL, resolve_at = now() + interval '10 minutes'
                    WHERE handle = %s AND did <> %s RETURNING did
                )
                """,
                ),
                [identity.handle, identity.did],
            )
            # Documents change rarely and announce it; once a day catches what was missed.
            await connection.execute(
                _outbox(
                    "SELECT uri FROM records JOIN changed USING (did), before"
                    " WHERE kind IN ('dataset', 'schema') AND before.handle IS DISTINCT FROM %(handle)s",
                    given="""
                WITH before AS (SELECT handle FROM repositories WHERE did = %(did)s),
                changed AS (
                    UPDATE repositories SET handle = %(handle)s, pds = %(pds)s, signing_key = %(signing_key)s,
                        resolved_at = now(), resolve_at = now() + interval '1 day',
                        -- It moved: its new host knows more than the old one said.
                        check_at = CASE WHEN pds <> %(pds)s THEN now() ELSE check_at END
                    WHERE did = %(did)s RETURNING did
                )
                """,
                ),
                asdict(identity),
            )

    async def unresolved(self, did: str) -> None:
        """The DID document of *did* could not be read: again in ten minutes, what is known stays."""
        async with self._alone() as connection:
            await connection.execute(
                "UPDATE repositories SET resolve_at = now() + interval '10 minutes' WHERE did = %s", [did]
            )

    # Search.

    async def outbox(self, limit: int) -> list[tuple[int, str]]:
        """The oldest entries of the outbox, how often each changed and its URI.

        No more than *limit*, and some megabytes of datasets and their schemas.
        """
        return await (await self._reading.execute(_OLDEST, [limit])).fetchall()

    async def datasets(self, uris: Collection[str]) -> list[Searchable]:
        """See `datasets`."""
        return await datasets(self._reading, uris)

    async def schemas(self, uris: Collection[str]) -> list[Searchable]:
        """See `schemas`."""
        return await schemas(self._reading, uris)

    async def fed(self, entries: Sequence[tuple[int, str]]) -> None:
        """The search engine has these *entries* of the outbox durably. Those that changed meanwhile stay."""
        async with self._alone() as connection:
            await connection.execute(
                "DELETE FROM search_outbox o USING unnest(%b::bigint[], %b::text[]) fed (changes, uri)"
                " WHERE o.uri = fed.uri AND o.changes = fed.changes",
                [[changes for changes, _ in entries], [uri for _, uri in entries]],
            )

    async def feed_all(self, kinds: Collection[Kind] = SEARCHABLE, stale: Iterable[str] = ()) -> None:
        """Have the search engine look again at every record of *kinds*, and at the *stale* URIs that it holds."""
        async with self._alone() as connection, connection.transaction():
            await connection.execute(_OUTBOX, [list(stale)])
            await connection.execute(_outbox("SELECT uri FROM records WHERE kind = ANY(%b::text[])"), [list(kinds)])

    # Changes, which triggers write down: see migration 0005.

    async def prune_changes(self) -> None:
        """Forget changes that are older than a week: who was away for longer begins anew."""
        while True:
            async with self._alone() as connection:
                if not (await connection.execute(_PRUNE_CHANGES, _CHANGES)).rowcount:
                    return

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

    @property
    def _reading(self) -> AsyncConnection:
        if self._reader is None:
            raise psycopg.OperationalError("the connection to the database was lost")
        return self._reader

    async def _held(self, connection: AsyncConnection, dids: Iterable[str]) -> dict[str, Repository]:
        rows = await (
            await connection.execute(
                # Each relay counts its events in its own way.
                "SELECT did, rev, data, desynced, status, CASE WHEN account_host = %s THEN account_seq END,"
                " signing_key, false, wanted_rev FROM repositories WHERE did = ANY(%b)",
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

        rows: list[tuple[Key, tuple[Any, ...]]] = []
        size = 0
        for key, written in changes.records.items():
            if written is None:
                continue
            # Postgres takes a gigabyte at most, and both sides hold several copies.
            if rows and size + len(written.record.json) > _MAX_STATEMENT_JSON:
                await write(rows)
                rows, size = [], 0
            rows.append((key, _row(key[0], written)))
            size += len(written.record.json)
        if rows:
            await write(rows)
        # What we hold under its key, if anything, is no longer what the repository says.
        changes.records.update(dict.fromkeys(refused))
        return refused

    async def _write(self, connection: AsyncConnection, changes: Changes, rejected: Sequence[Item]) -> None:
        """Write *changes*, but for the records that are there already, and set the *rejected* aside."""
        async with connection.pipeline():
            await self._request(connection, changes, rejected)

    async def _request(self, connection: AsyncConnection, changes: Changes, rejected: Sequence[Item]) -> None:
        """`_write`, in a pipeline of the caller's."""
        await self._write_repositories(connection, changes)
        if changes.suspects:
            await connection.execute(
                "UPDATE repositories SET check_at = coalesce(check_at, now() + interval '1 minute')"
                " WHERE did = ANY(%b)",
                [list(changes.suspects)],
            )
        await self._write_searchable(connection, changes)
        if rejected:
            await self._quarantine(connection, rejected)

    async def _write_repositories(self, connection: AsyncConnection, changes: Changes) -> None:
        if changes.repositories:
            known = changes.repositories
            await connection.execute(
                _REPOSITORIES,
                [
                    list(known),
                    [r.rev for r in known.values()],
                    [r.data for r in known.values()],
                    [r.desynced and _clean(r.desynced, 500) for r in known.values()],
                    [r.wanted for r in known.values()],
                ],
            )
        if accounts := list(changes.accounts.values()):
            await connection.execute(
                _ACCOUNTS,
                [self.source, [a.did for a in accounts], [a.status for a in accounts], [a.seq for a in accounts]],
            )
            await connection.execute(_OUTBOX_OF_REPOSITORIES, [[a.did for a in accounts]])
        if changes.identities:
            await connection.execute(
                "UPDATE repositories SET resolve_at = now(), resolved_at = NULL WHERE did = ANY(%b)",
                [list(changes.identities)],
            )

    async def _write_searchable(self, connection: AsyncConnection, changes: Changes) -> None:
        deleted = [_uri(key) for key, value in changes.records.items() if value is None]
        schemas = []
        datasets = []
        if deleted:
            await connection.execute("DELETE FROM records WHERE uri = ANY(%b)", [deleted])
        proven = [_uri(key) for key in changes.records if key not in changes.mentioned]
        if proven:
            await connection.execute("DELETE FROM confirmations WHERE uri = ANY(%b)", [proven])
        for key in changes.records:
            kind = kind_of(key[1])
            if kind == "schema":
                schemas.append(_uri(key))
            elif kind == "dataset":
                datasets.append(_uri(key))
        if datasets or schemas:
            await connection.execute(_OUTBOX, [datasets + schemas])
        if schemas:
            await connection.execute(_OUTBOX_OF_SCHEMAS, [schemas])

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
    if isinstance(event, Mention):
        return (event.did, event.op.collection, event.op.rkey) == key
    return (
        isinstance(event, Commit)
        and event.did == key[0]
        and any((op.collection, op.rkey) == key[1:] for op in event.ops)
    )


def _uri(key: Key) -> str:
    return f"at://{key[0]}/{key[1]}/{key[2]}"


def _row(did: str, written: Written) -> tuple[Any, ...]:
    """A record's columns, in the order of `_RECORDS`."""
    record = written.record
    reading = record.reading
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
        record.collection,
        record.rkey,
        reading.kind,
        record.cid,
        written.rev,
        record.json.decode(),
        written.commit,
        written.key,
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
INSERT INTO repositories (did, rev, data, desynced, wanted_rev)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET
    rev = excluded.rev, data = excluded.data, desynced = excluded.desynced, wanted_rev = excluded.wanted_rev,
    desynced_at = CASE WHEN excluded.desynced IS DISTINCT FROM repositories.desynced THEN clock_timestamp()
        ELSE repositories.desynced_at END,
    resync_at = CASE WHEN repositories.desynced IS NOT NULL OR excluded.desynced IS NULL THEN repositories.resync_at
        ELSE greatest(now(), repositories.resynced_at + repositories.resync_pause,
                      repositories.resolved_at + interval '2 seconds') END,
    -- What is said to be deleted and writes all the same: its host is asked.
    purge_at = CASE WHEN repositories.status = 'deleted' AND excluded.desynced IS NOT NULL
        THEN coalesce(repositories.purge_at, now()) ELSE repositories.purge_at END
"""

_RECORDS = """
INSERT INTO records (did, collection, rkey, kind, cid, rev, record, commit_cid, verified_key, verified_at, problems,
                     name, version, schema_ref, tags, source_schema, target_schema, dataset_ref)
SELECT did, collection, rkey, kind, cid, rev, record::jsonb, commit_cid, key, CASE WHEN key IS NOT NULL THEN now() END,
       problems::text[], name, version, schema_ref, tags::text[], source_schema, target_schema, dataset_ref
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     t (did, collection, rkey, kind, cid, rev, record, commit_cid, key, problems, name, version,
        schema_ref, tags, source_schema, target_schema, dataset_ref)
ON CONFLICT (uri) DO UPDATE SET
    cid = excluded.cid, rev = excluded.rev, record = excluded.record, problems = excluded.problems,
    commit_cid = excluded.commit_cid, verified_key = excluded.verified_key, verified_at = excluded.verified_at,
    indexed_at = now(), name = excluded.name, version = excluded.version,
    schema_ref = excluded.schema_ref, tags = excluded.tags, source_schema = excluded.source_schema,
    target_schema = excluded.target_schema, dataset_ref = excluded.dataset_ref
-- That a record was mentioned again, as it is, takes nothing from its proof.
WHERE records.cid <> excluded.cid OR excluded.verified_at IS NOT NULL
"""

# What would be written of records that are here with the same CID, and is not what is here.
_ALTERED = """
SELECT r.collection, r.rkey
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     t (did, collection, rkey, kind, cid, rev, record, commit_cid, key, problems, name, version,
        schema_ref, tags, source_schema, target_schema, dataset_ref)
JOIN records r ON r.uri = 'at://' || t.did || '/' || t.collection || '/' || t.rkey AND r.cid = t.cid
WHERE (r.kind, r.record, r.problems, r.name, r.version, r.schema_ref, r.tags, r.source_schema, r.target_schema,
       r.dataset_ref)
    IS DISTINCT FROM (t.kind, t.record::jsonb, t.problems::text[], t.name, t.version, t.schema_ref, t.tags::text[],
                      t.source_schema, t.target_schema, t.dataset_ref)
"""

# Triggers keep the table, see migration 0007: these are for who does not trust that nobody else wrote to it.
_COUNTED: LiteralString = """
SELECT did, count(*) FILTER (WHERE kind = 'dataset') AS datasets, count(*) FILTER (WHERE kind = 'schema') AS schemas,
       count(*) FILTER (WHERE kind = 'lens') AS lenses, count(*) FILTER (WHERE kind = 'label') AS labels,
       min(indexed_at) AS since, max(indexed_at) AS indexed_at
FROM records WHERE kind IS NOT NULL
"""
_COUNT_PUBLISHERS: LiteralString = f"INSERT INTO publishers {_COUNTED} AND did = ANY(%s) GROUP BY did"
_MISCOUNTED: LiteralString = f"""
SELECT did FROM publishers p FULL JOIN ({_COUNTED} GROUP BY did) c USING (did)
WHERE (p.datasets, p.schemas, p.lenses, p.labels) IS DISTINCT FROM (c.datasets, c.schemas, c.lenses, c.labels)
ORDER BY did
"""  # noqa: S608 - constants

_CONFIRMATIONS = """
INSERT INTO confirmations AS c (did, collection, rkey, rev)
SELECT did, collection, rkey, rev
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[]) t (did, collection, rkey, rev, cid)
WHERE NOT EXISTS (
    SELECT FROM records r WHERE r.uri = 'at://' || t.did || '/' || t.collection || '/' || t.rkey
    AND r.cid = t.cid AND r.rev >= t.rev AND r.verified_at IS NOT NULL
)
ON CONFLICT (uri) DO UPDATE SET rev = excluded.rev, at = now(), tries = 0 WHERE c.rev < excluded.rev
"""

_MANY_CONFIRMATIONS = """
UPDATE repositories SET desynced = 'many of its records are to be proven', desynced_at = clock_timestamp(),
    resync_at = greatest(now(), resynced_at + resync_pause)
WHERE did = ANY(%b::text[]) AND desynced IS NULL
AND (SELECT count(*) FROM confirmations c WHERE c.did = repositories.did) > %s
"""

_ACCOUNTS = """
UPDATE repositories SET status = t.status, account_seq = t.seq, account_host = %s,
    purge_at = CASE WHEN t.status = 'deleted' THEN now() END
FROM unnest(%b::text[], %b::text[], %b::bigint[]) t (did, status, seq) WHERE repositories.did = t.did
"""

# Asks for a comparison of every repository with its host, for a reason; `Store.start_sweep` begins it.
_SWEEP = """
WITH merged AS (
    UPDATE sweeps SET reason = left(reason || '; ' || %(reason)s, 500) WHERE started_at IS NULL RETURNING id
)
INSERT INTO sweeps (reason) SELECT %(reason)s WHERE NOT EXISTS (SELECT FROM merged)
"""
_COUNT_CHECK = """
UPDATE sweeps SET checked = checked + %s, differing = differing + %s, unreachable = unreachable + %s
WHERE started_at IS NOT NULL AND finished_at IS NULL
"""


def _outbox(uris: LiteralString, *, given: LiteralString = "") -> LiteralString:
    """SQL that has search look at *uris*, a query for a column of that name, which may rely on what is *given*.

    In order, so that two of these wait for each other's rows one way only.
    """
    return (
        f"{given} INSERT INTO search_outbox (uri) SELECT DISTINCT uri FROM ({uris}) found ORDER BY uri"  # noqa: S608
        " ON CONFLICT (uri) DO UPDATE SET changes = search_outbox.changes + 1"
    )


# A dataset's document holds its schema's name and fields, and its publisher's handle and state.
_OUTBOX_OF_SCHEMAS = _outbox("SELECT uri FROM records WHERE schema_ref = ANY(%b::text[])")
_OUTBOX_OF_REPOSITORIES = _outbox(
    """
    SELECT uri FROM records JOIN meant USING (did) WHERE kind IN ('dataset', 'schema')
    UNION ALL SELECT d.uri FROM records s JOIN meant USING (did) JOIN records d ON d.schema_ref = s.uri
    WHERE s.kind = 'schema'
    """,
    given="WITH meant AS (SELECT unnest(%b::text[]) AS did)",
)
_OUTBOX = _outbox("SELECT unnest(%b::text[]) AS uri")
# What is proven now: a hit says so, too.
_PROVEN: LiteralString = "UPDATE records SET verified_at = now(), verified_key = %s, commit_cid = %s WHERE "
_SEARCHABLE: LiteralString = "SELECT uri FROM proven WHERE kind IN ('dataset', 'schema')"
_PROVEN_REPOSITORY = _outbox(
    _SEARCHABLE, given=f"WITH proven AS ({_PROVEN} did = %s AND verified_at IS NULL RETURNING uri, kind)"
)
_PROVEN_RECORD = _outbox(_SEARCHABLE, given=f"WITH proven AS ({_PROVEN} uri = %s RETURNING uri, kind)")

# What is compressed is not unpacked to be measured: it is a hundredth of its size at the very least.
_OLDEST = """
SELECT changes, uri FROM (
    SELECT o.id, o.changes, o.uri, row_number() OVER earlier AS number, sum(read.bytes) OVER earlier AS bytes
    FROM (SELECT id, changes, uri FROM search_outbox ORDER BY id LIMIT %s) o
    LEFT JOIN records d USING (uri)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(
            pg_column_size(r.record) * CASE WHEN pg_column_compression(r.record) IS NULL THEN 1 ELSE 100 END
        ), 0) AS bytes
        FROM records r WHERE r.uri IN (d.uri, d.schema_ref)
    ) read
    WINDOW earlier AS (ORDER BY o.id)
) entries
WHERE number = 1 OR bytes < 16000000 ORDER BY id
"""

# A piece from the beginning, however the clock was set meanwhile: what is kept has no gaps. No rows when it is done.
_PRUNE_CHANGES = """
WITH pruned AS (
    DELETE FROM changes WHERE seq <= (
        SELECT max(seq) FROM (SELECT seq, at FROM changes ORDER BY seq LIMIT %(piece)s) oldest
        WHERE at < now() - %(kept)s
    ) RETURNING seq
)
UPDATE changes_pruned SET seq = (SELECT max(seq) FROM pruned) WHERE EXISTS (SELECT FROM pruned)
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


# For those who only read, or ask the indexer that runs for something.


@dataclass(slots=True)
class Searchable(Published):
    """A dataset or a schema that search is to have. The fields are the columns of a query."""

    schema_ref: str | None


async def datasets(connection: AsyncConnection, uris: Collection[str]) -> list[Searchable]:
    """Those of *uris* that are datasets of active repositories."""
    return await _searchable(connection, uris, "dataset")


async def schemas(connection: AsyncConnection, uris: Collection[str]) -> list[Searchable]:
    """Those of *uris* that are schemas of active repositories."""
    return await _searchable(connection, uris, "schema")


async def _searchable(connection: AsyncConnection, uris: Collection[str], kind: Kind) -> list[Searchable]:
    cursor = connection.cursor(row_factory=args_row(Searchable))
    await cursor.execute(
        """
        SELECT r.uri, r.cid, r.did, p.handle, r.record::text, r.problems, r.verified_at IS NOT NULL, r.indexed_at,
            r.schema_ref
        FROM records r
        JOIN repositories p ON p.did = r.did AND p.status = 'active'
        WHERE r.uri = ANY(%s) AND r.kind = %s
        """,
        [list(uris), kind],
    )
    return await cursor.fetchall()


async def tracked(connection: AsyncConnection) -> list[str]:
    """The DIDs of all repositories that the index follows."""
    return [did async for (did,) in connection.cursor().stream("SELECT did FROM repositories", size=1000)]


async def uris_of(connection: AsyncConnection, kind: Kind, size: int = 500) -> AsyncIterator[list[str]]:
    """The URIs of all records of *kind*, *size* at a time."""
    last = ""
    while True:
        rows = await (
            await connection.execute(
                "SELECT uri FROM records WHERE kind = %s AND uri > %s ORDER BY uri LIMIT %s", [kind, last, size]
            )
        ).fetchall()
        if not rows:
            return
        yield [uri for (uri,) in rows]
        last = rows[-1][0]


class Held(NamedTuple):
    """A record that the index holds."""

    cid: str
    is_verified: bool


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the index holds of a repository. ``status`` is None where it does not follow it.

    ``rev`` is that of its latest commit, None where nobody tells of those that concern others. ``refused`` are the
    SHA-256 digests of what of it is in quarantine.
    """

    status: str | None
    rev: str | None
    records: Mapping[tuple[str, str], Held]
    refused: Collection[bytes]


async def holdings(connection: AsyncConnection, did: str) -> Holdings:
    """All that is held of *did*, as of one moment."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = await (
            await connection.execute(
                "SELECT status, CASE WHEN data IS NOT NULL AND NOT EXISTS"
                " (SELECT FROM indexer_status s WHERE s.status->>'source' = 'jetstream') THEN rev END"
                " FROM repositories WHERE did = %s",
                [did],
            )
        ).fetchone()
        records = await (
            await connection.execute(
                "SELECT collection, rkey, cid, verified_at IS NOT NULL FROM records WHERE did = %s", [did]
            )
        ).fetchall()
        refused = await (await connection.execute("SELECT digest FROM quarantine WHERE did = %s", [did])).fetchall()
    status, rev = row or (None, None)
    return Holdings(
        status,
        rev,
        {(collection, rkey): Held(*rest) for collection, rkey, *rest in records},
        {digest for (digest,) in refused},
    )


async def altered(connection: AsyncConnection, did: str, written: Iterable[RecordWritten]) -> set[tuple[str, str]]:
    """Which of the records *written* of *did* are held under the same CID, and yet as something else.

    Whoever changed them did so in the database, or another version of this program read them otherwise.
    """
    found: set[tuple[str, str]] = set()

    async def look(records: list[RecordWritten]) -> None:
        rows = [_row(did, Written(record, "", None, None)) for record in records]
        columns = [list(column) for column in zip(*rows, strict=True)]
        found.update(await (await connection.execute(_ALTERED, columns)).fetchall())

    waiting: list[RecordWritten] = []
    size = 0
    for record in written:
        if waiting and size + len(record.json) > _MAX_STATEMENT_JSON:
            await look(waiting)
            waiting, size = [], 0
        waiting.append(record)
        size += len(record.json)
    if waiting:
        await look(waiting)
    return found


async def miscounted(connection: AsyncConnection) -> list[str]:
    """The DIDs of publishers whose records are counted wrongly."""
    return [did for (did,) in await (await connection.execute(_MISCOUNTED)).fetchall()]


async def mend(connection: AsyncConnection, hosted: Mapping[str, str | None], uris: Collection[str]) -> None:
    """Have repositories read anew, known before or not, and search look at *uris*.

    *hosted* maps DIDs to what their hosts say of them: active, or why not; None leaves what is known of that.
    """
    while True:
        try:
            await _mend(connection, hosted, uris)
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(0.1)
        else:
            return


async def _mend(connection: AsyncConnection, hosted: Mapping[str, str | None], uris: Collection[str]) -> None:
    async with connection.transaction():
        # Whoever changes records or accounts takes turns (see the table `changes`), with rows of repositories in hand:
        # where the indexer does, too, it is this that gives way, before Postgres makes one of the two do so.
        await connection.execute("SET LOCAL lock_timeout = '500ms'")
        await connection.execute(
            "UPDATE repositories r SET status = coalesce(t.status, r.status), desynced = %s,"
            " desynced_at = clock_timestamp(), resync_at = now(), resync_tries = 0, purge_at = CASE"
            " WHEN t.status IS NULL THEN purge_at WHEN t.status = 'not-found' THEN now() END"
            " FROM unnest(%s::text[], %s::text[]) t (did, status) WHERE r.did = t.did",
            [_DIFFERED, list(hosted), list(hosted.values())],
        )
        await connection.execute(
            "INSERT INTO repositories (did, status, desynced) SELECT did, coalesce(status, 'active'), %s"
            " FROM unnest(%s::text[], %s::text[]) t (did, status) ON CONFLICT DO NOTHING",
            [_DIFFERED, list(hosted), list(hosted.values())],
        )
        await connection.execute(_OUTBOX_OF_REPOSITORIES, [list(hosted)])
        await connection.execute(_OUTBOX, [list(uris)])
        # With nobody counting meanwhile, or what is counted now would be counted twice.
        await connection.execute("LOCK TABLE publishers IN EXCLUSIVE MODE")
        await connection.execute("DELETE FROM publishers WHERE did = ANY(%s)", [list(hosted)])
        await connection.execute(_COUNT_PUBLISHERS, [list(hosted)])


async def unmended(connection: AsyncConnection, dids: Collection[str], uris: Collection[str]) -> list[str]:
    """What of that which `mend` asked for is still to be tried: URIs of repositories to read and datasets to feed."""
    rows = await (
        await connection.execute(
            "SELECT 'at://' || did FROM repositories"
            " WHERE did = ANY(%(dids)s) AND desynced IS NOT NULL AND resync_tries = 0 AND status = 'active'"
            " UNION SELECT uri FROM search_outbox"
            " WHERE uri = ANY(%(uris)s) OR split_part(uri, '/', 3) = ANY(%(dids)s) ORDER BY 1",
            {"dids": list(dids), "uris": list(uris)},
        )
    ).fetchall()
    return [uri for (uri,) in rows]


async def is_indexer_running(connection: AsyncConnection) -> bool:
    """Whether some indexer writes to this database."""
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", [_WRITER_LOCK])).fetchone()
    if row is not None and row[0]:
        await connection.execute("SELECT pg_advisory_unlock(%s)", [_WRITER_LOCK])
        return False
    return True


async def note_sweep(connection: AsyncConnection, reason: str, checked: int, differing: int, unreachable: int) -> None:
    """Publish the result of a comparison."""
    await connection.execute(
        "INSERT INTO sweeps (reason, started_at, finished_at, checked, differing, unreachable)"
        " VALUES (%s, now(), now(), %s, %s, %s)",
        [reason, checked, differing, unreachable],
    )


class Quarantined(NamedTuple):
    """Something in quarantine."""

    id: int
    reason: str
    detail: str
    source: str
    seq: int | None
    did: str | None
    size: int
    times: int
    first_seen: datetime
    last_seen: datetime
    data: bytes


async def quarantined(
    connection: AsyncConnection, *, reason: str | None = None, ids: Collection[int] = (), limit: int = 1000
) -> list[Quarantined]:
    """What is in quarantine, the latest first: with *ids* these only, bytes included."""
    rows = await (
        await connection.execute(
            """
            SELECT id, reason, detail, source, seq, did, octet_length(bytes), times, first_seen, last_seen,
                   CASE WHEN %(ids)s::bigint[] = '{}' THEN ''::bytea ELSE bytes END
            FROM quarantine WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
            AND (%(ids)s::bigint[] = '{}' OR id = ANY(%(ids)s)) ORDER BY last_seen DESC LIMIT %(limit)s
            """,
            {"reason": reason, "ids": list(ids), "limit": limit},
        )
    ).fetchall()
    return [Quarantined(*row) for row in rows]


async def release(connection: AsyncConnection, ids: Collection[int]) -> None:
    """Take *ids* out of quarantine."""
    await connection.execute("DELETE FROM quarantine WHERE id = ANY(%s)", [list(ids)])


async def request_rebuild(url: str) -> None:
    """Ask the indexer that runs on this database to compare the search engine with it and feed everything again."""
    connection = await postgres.connect(url)
    async with connection:
        await connection.execute(_OUTBOX, [[REBUILD]])


async def forget_cursor(url: str, source: str) -> bool:
    """Forget how far *source* was read, so that it is read from now on; True if that was known."""
    connection = await postgres.connect(url)
    async with connection:
        # It may count its events anew: what it said of accounts must not outrank what it says from now on.
        await connection.execute("UPDATE repositories SET account_host = NULL WHERE account_host = %s", [source])
        return (await connection.execute("DELETE FROM cursors WHERE host = %s", [source])).rowcount > 0
