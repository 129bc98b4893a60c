"""Own the proof on demand: what the index holds of each repository against what its host gives out, and search.

Nothing is taken from the stream or from earlier checks: each repository is read anew, its signature and tree checked.
What differs is looked at again after a while, as events may be on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from psycopg import AsyncConnection

from atdata.errors import NetworkError
from atdata_backend.search.base import Document, SearchEngine
from atdata_indexer.backfill import Backfill, FetchFailed, RepoUnavailable, Snapshot
from atdata_indexer.events import RecordWritten, Rejected, RelayError, RelayInfo, Scope, read_record
from atdata_indexer.feed import documents, schema_documents
from atdata_indexer.jetstream import parse_any
from atdata_indexer.store import (
    Holdings,
    Quarantined,
    altered,
    datasets,
    holdings,
    miscounted,
    schemas,
    tracked,
    uris_of,
)

# Looks at what differs, and the seconds between them.
_LOOKS = 4
_PAUSE = 3.0

# What a host says of accounts whose records must not be kept.
_GONE = ("deleted", "not-found")


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the index says otherwise than a host, or search otherwise than Postgres, about a URI."""

    uri: str
    what: str


@dataclass(slots=True)
class Report:
    """What a comparison came to. ``unreachable`` maps DIDs to why their hosts could not be asked, the last time.

    ``hosted`` maps those that differ to what their hosts say of them: active, or why not. ``unlisted`` is why the relay
    could not tell which repositories there are: then those compared are the ones that the index knows.
    """

    repositories: int = 0
    records: int = 0
    documents: int = 0
    differences: list[Difference] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    hosted: dict[str, str] = field(default_factory=dict)
    unlisted: str | None = None


async def compare(
    connection: AsyncConnection,
    backfill: Backfill,
    engine: SearchEngine,
    dids: Collection[str],
    *,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Compare the repositories *dids* with their hosts, and the datasets and schemas of all with the search engine.

    *connection* is one with autocommit. *progress* is called for each repository at the first look.
    """
    report = Report(len(dids))
    waiting: Collection[str] = dids
    differing: dict[str, list[Difference]] = {}
    records: dict[str, int] = {}
    before: Collection[Difference] | None = None
    for look in range(_LOOKS):
        if look:
            await asyncio.sleep(_PAUSE)
        async for did, found in _repositories(connection, backfill, waiting, report, records):
            # What a look found stands until another has seen otherwise.
            if found is not None:
                differing[did] = found
            if not look:
                progress()
        waiting = sorted(did for did, found in differing.items() if found)
        report.documents, derived = await _search(connection, engine)
        derived += [
            Difference(f"at://{did}", "has other numbers of records than are counted here")
            for did in await miscounted(connection)
        ]
        # While others publish, something is always on its way: what stays so is not.
        lasting = [difference for difference in derived if before is None or difference in before]
        before = set(derived)
        report.differences = [difference for did in waiting for difference in differing[did]] + lasting
        if not report.differences:
            break
    report.records = sum(records.values())
    mentioned = {did_of(difference.uri) for difference in report.differences}
    report.hosted = {did: status for did, status in report.hosted.items() if did in mentioned}
    return report


async def followed(connection: AsyncConnection, backfill: Backfill) -> tuple[list[str], str | None]:
    """The repositories that the index follows and those that it should, and why the relay could not tell of these."""
    held = await tracked(connection)
    known = set(held)
    try:
        return held + [did async for did in backfill.discover() if did not in known], None
    except NetworkError as e:
        return held, str(e)


def read_again(entry: Quarantined, scope: Scope) -> set[str] | None:
    """The repositories that something in quarantine concerns, None if it still cannot be understood."""
    if entry.seq is None and entry.did is not None:
        # A record of a repository that was read whole.
        written = read_record("", "", "", entry.data)
        return None if isinstance(written, Rejected) else {entry.did}
    events = parse_any(entry.data, scope).events
    if any(isinstance(event, Rejected) for event in events):
        return None
    return {event.did for event in events if not isinstance(event, RelayInfo | RelayError | Rejected)}


def did_of(uri: str) -> str:
    """The repository in a URI `at://did/…`."""
    return uri.removeprefix("at://").partition("/")[0]


async def _repositories(
    connection: AsyncConnection, backfill: Backfill, dids: Collection[str], report: Report, records: dict[str, int]
) -> AsyncIterator[tuple[str, list[Difference] | None]]:
    """What differs of each of *dids*; None where its host could not be asked."""
    async for result in backfill.run(dids):
        report.unreachable.pop(result.did, None)
        if isinstance(result, FetchFailed):
            report.unreachable[result.did] = result.reason
            yield result.did, None
            continue
        held = await holdings(connection, result.did)
        records[result.did] = len(held.records)
        if isinstance(result, RepoUnavailable):
            report.hosted[result.did] = result.status
            yield result.did, list(_compare_gone(result, held))
        else:
            report.hosted[result.did] = "active"
            found = list(_compare(result, held))
            for collection, rkey in sorted(await altered(connection, result.did, _written(result))):
                found.append(Difference(f"at://{result.did}/{collection}/{rkey}", "is not what its CID says here"))
            yield result.did, found


def _compare(snapshot: Snapshot, held: Holdings) -> Iterator[Difference]:
    repository = f"at://{snapshot.did}"
    if held.status is None:
        if snapshot.records:
            yield Difference(repository, "is not followed")
        return
    if held.status != "active":
        yield Difference(repository, f"is {held.status} here, active at its host")
    if held.rev is not None and held.rev != snapshot.rev:
        yield Difference(repository, f"is at {held.rev} here, at {snapshot.rev} at its host")
    left = dict(held.records)
    for collection, rkey, cid, block in snapshot.records:
        record = left.pop((collection, rkey), None)
        uri = f"{repository}/{collection}/{rkey}"
        if record is None:
            # What cannot be held is in quarantine, with its bytes.
            if not isinstance(read_record(collection, rkey, cid, block), Rejected) and (
                sha256(block).digest() not in held.refused
            ):
                yield Difference(uri, "is missing here")
        elif record.cid != cid:
            yield Difference(uri, f"is {record.cid} here, {cid} at its host")
        elif not record.is_verified:
            yield Difference(uri, "is not verified here")
    for collection, rkey in left:
        yield Difference(f"{repository}/{collection}/{rkey}", "is here, and not at its host")


def _written(snapshot: Snapshot) -> Iterator[RecordWritten]:
    """What would be written of a repository now."""
    for record in snapshot.records:
        written = read_record(*record)
        if isinstance(written, RecordWritten):
            yield written


def _compare_gone(gone: RepoUnavailable, held: Holdings) -> Iterator[Difference]:
    if held.status == "active":
        yield Difference(f"at://{gone.did}", f"is shown here, and {gone.status} at its host")
    elif gone.status in _GONE:
        for collection, rkey in held.records:
            yield Difference(f"at://{gone.did}/{collection}/{rkey}", f"is kept here, and its account is {gone.status}")


async def _search(connection: AsyncConnection, engine: SearchEngine) -> tuple[int, list[Difference]]:
    """Every document against what would be made of its record now."""
    stamps = await asyncio.to_thread(lambda: {**dict(engine.stamps()), **dict(engine.schemas.stamps())})
    count = len(stamps)
    differences = []
    async for document in _documents(connection):
        stamp = stamps.pop(document.uri, None)
        if stamp is None:
            differences.append(Difference(document.uri, "is missing in search"))
        elif stamp != document.stamp:
            differences.append(Difference(document.uri, "is in search as something older"))
    differences += [Difference(uri, "is in search, and is not to be shown") for uri in stamps]
    return count, differences


async def _documents(connection: AsyncConnection) -> AsyncIterator[Document]:
    """What search should hold."""
    async for uris in uris_of(connection, "dataset"):
        rows = await datasets(connection, uris)
        refs = {row.schema_ref for row in rows if row.schema_ref}
        for document in documents(rows, await schemas(connection, refs)):
            yield document
    async for uris in uris_of(connection, "schema"):
        for document in schema_documents(await schemas(connection, uris)):
            yield document
