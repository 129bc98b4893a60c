"""The indexer's commands: `atdata indexer …` and `atdata migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import click
import uvloop

from atdata import syntax
from atdata_backend.http import guarded_client
from atdata_backend.identity import Resolver
from atdata_backend.memory import share_memory_among_threads
from atdata_backend.postgres import connect
from atdata_backend.postgres import migrate as migrate_database
from atdata_backend.settings import BackendSettings
from atdata_indexer import audit
from atdata_indexer.backfill import Backfill
from atdata_indexer.events import Scope, printable
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import (
    Quarantined,
    forget_cursor,
    is_indexer_running,
    mend,
    note_sweep,
    quarantined,
    release,
    request_rebuild,
    tracked,
    unmended,
)
from atdata_indexer.stream import http_url

# In seconds: how long a repair is waited for. The indexer may have much else to do, and goes on afterwards.
_MENDING = 600.0


@click.group()
def indexer() -> None:
    """Read the firehose into Postgres and the search engine."""


@indexer.command()
@click.option("--source", type=click.Choice(["firehose", "jetstream"]), help="What to read. [ATDATA_SOURCE]")
def run(source: str | None) -> None:
    """Index until stopped. Settings come from the environment: see indexer/README.md."""
    share_memory_among_threads()
    from atdata_indexer.ingest import Indexer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every request at INFO would drown the rest.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = IndexerSettings.load(source=source)
    migrate_database(settings.database_url)
    engine = settings.open_engine()
    try:
        uvloop.run(_until_signal(Indexer(settings, engine).run()))
    finally:
        engine.close()


@click.group()
def index() -> None:
    """Look after what is indexed, beside the running indexer. Settings as for `atdata indexer run`."""


@index.command()
@click.option("--repo", "dids", multiple=True, metavar="DID", help="Only this repository; may be given several times.")
def verify(dids: tuple[str, ...]) -> None:
    """Compare the index with the repositories' hosts, and search with the index.

    Exits with 1 if something differs, with 3 if nothing does and some host could not be asked.
    """
    report = asyncio.run(_compare(IndexerSettings.load(), _checked(dids)))
    _print(report)
    sys.exit(_exit_status(report))


@index.command()
@click.option("--repo", "dids", multiple=True, metavar="DID", help="Only this repository; may be given several times.")
def repair(dids: tuple[str, ...]) -> None:
    """Verify, and have the running indexer read anew what differs.

    It is waited for, ten minutes at most, and everything is compared once more. Exits with 1 if something still
    differs, with 3 if nothing does and some host could not be asked.
    """
    settings = IndexerSettings.load()
    report = asyncio.run(_compare(settings, _checked(dids)))
    if found := len(report.differences):
        _print(report)
        asyncio.run(_mend(settings, report))
        report = asyncio.run(_compare(settings, dids))
        click.echo(f"{found - len(report.differences)} of {_count(found, 'difference')} mended")
    _print(report)
    sys.exit(_exit_status(report))


@index.command("rebuild-search")
def rebuild_search() -> None:
    """Have the running indexer compare the search engine with Postgres and fill it anew."""
    asyncio.run(request_rebuild(IndexerSettings.load().database_url))
    click.echo("The indexer will feed every dataset again; `getStatus` shows the backlog.")


@index.command("forget-cursor")
def forget() -> None:
    """Read the relays from now on instead of from where they were left, after one was reset."""
    from atdata_indexer.ingest import Source

    settings = IndexerSettings.load()
    for source in Source.all(settings):
        known = asyncio.run(forget_cursor(settings.database_url, source.host))
        click.echo(f"Forgot the cursor of {source.host}." if known else f"There was no cursor of {source.host}.")


@index.group()
def quarantine() -> None:
    """What could not be understood, kept with its bytes."""


@quarantine.command("ls")
@click.option("--reason", metavar="WORD", help="Only what was set aside for this reason.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The latest so many.")
def quarantine_ls(reason: str | None, limit: int) -> None:
    """List what is in quarantine, the latest first."""
    entries = _quarantined(reason=reason, limit=limit)
    if not entries:
        click.echo("There is nothing in quarantine" + (f" for the reason {reason!r}." if reason else "."), err=True)
    for entry in entries:
        who = f" {entry.did}" if entry.did else ""
        line = (
            f"{entry.id:>6}  {entry.last_seen:%Y-%m-%d %H:%M:%S}  {entry.times:>4}×  {entry.size:>8} B  "
            f"{entry.reason}{who}: {entry.detail[:120]}"
        )
        click.echo(printable(line))


@quarantine.command("show")
@click.argument("number", type=int)
@click.option("--raw", is_flag=True, help="The bytes alone, for another program.")
def quarantine_show(number: int, raw: bool) -> None:
    """Show one thing in quarantine whole."""
    entry = next(iter(_quarantined(ids=[number])), None)
    if entry is None:
        raise click.ClickException(f"there is no {number} in quarantine: see `atdata index quarantine ls`")
    if raw:
        sys.stdout.buffer.write(entry.data)
        return
    for name, value in entry._asdict().items():
        if name != "data" and value is not None:
            click.echo(f"{name:<11} {printable(str(value))}")
    for at in range(0, min(len(entry.data), 4096), 16):
        row = entry.data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        click.echo(f"{at:08x}  {row.hex(' '):<47}  {text}")
    if len(entry.data) > 4096:
        click.echo(f"… {len(entry.data) - 4096} bytes more: --raw gives all")


@quarantine.command("replay")
@click.argument("numbers", type=int, nargs=-1)
@click.option("--reason", metavar="WORD", help="All that was set aside for this reason.")
def quarantine_replay(numbers: tuple[int, ...], reason: str | None) -> None:
    """Read again what is in quarantine, after a fix: repositories that it concerns are read from their hosts.

    A frame's moment has passed, so it is not applied itself; what its repository holds by now is. What still cannot be
    understood stays.
    """
    if not numbers and not reason:
        raise click.UsageError("name what to replay: numbers as in `atdata index quarantine ls`, or --reason")
    settings = IndexerSettings.load()
    if reason and not _quarantined(reason=reason, limit=1):
        raise click.ClickException(
            f"nothing is in quarantine for the reason {reason!r}: see `atdata index quarantine ls`"
        )
    replayed, kept, dids = asyncio.run(_replay(settings, list(numbers), reason))
    click.echo(f"{replayed} understood by now, {kept} still not; {_count(len(dids), 'repository')} to be read again.")


@click.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    click.echo(f"The database is at migration {migrate_database(BackendSettings.load().database_url)}.")


def _checked(dids: tuple[str, ...]) -> tuple[str, ...]:
    for did in dids:
        if not syntax.is_did(did):
            raise click.UsageError(f"{did!r} is not a DID, such as did:plc:z72i7hdynmk6r22z27h6tvur")
    return dids


async def _compare(settings: IndexerSettings, dids: Sequence[str]) -> audit.Report:
    """Compare *dids*, or everything that is followed or should be."""
    engine = settings.open_engine()
    try:
        async with (
            await connect(settings.database_url) as connection,
            guarded_client(allow_private=settings.allow_private_hosts) as client,
        ):
            await connection.set_autocommit(True)
            resolver = Resolver(client, plc_url=settings.plc_url, allow_private=settings.allow_private_hosts)
            backfill = Backfill(client, resolver, relay_url=http_url(settings.relays[0]), prefixes=settings.prefixes)
            unlisted = None
            everything: Sequence[str] = dids
            if not dids:
                everything, unlisted = await audit.followed(connection, backfill)
            with click.progressbar(
                length=len(everything), label="Repositories", file=sys.stderr, hidden=not sys.stderr.isatty()
            ) as bar:
                report = await audit.compare(connection, backfill, engine, everything, progress=lambda: bar.update(1))
            report.unlisted = unlisted
            if not dids:
                await note_sweep(
                    connection,
                    "atdata index verify",
                    report.repositories - len(report.unreachable),
                    len({audit.did_of(difference.uri) for difference in report.differences}),
                    len(report.unreachable),
                )
            return report
    finally:
        engine.close()


def _print(report: audit.Report) -> None:
    for difference in report.differences:
        click.echo(printable(f"{difference.uri} {difference.what}"))
    for did, reason in report.unreachable.items():
        click.echo(printable(f"at://{did} could not be compared: {reason}"))
    if report.unlisted:
        click.echo(printable(f"the relay cannot tell whether there are others: {report.unlisted}"))
    found = f"{_count(len(report.differences), 'difference')}"
    if report.unreachable:
        found += f" in what could be compared, {_count(len(report.unreachable), 'repository')} could not"
    compared = [
        _count(report.repositories, "repository"),
        _count(report.records, "record"),
        f"{_count(report.documents, 'document')} in search",
    ]
    click.echo(f"{', '.join(compared)}: {found}")


def _count(number: int, noun: str) -> str:
    """*number* in words that fit: ``1 repository``, ``2 repositories``, ``no records``."""
    plural = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{number or 'no'} {noun if number == 1 else plural}"


def _exit_status(report: audit.Report) -> int:
    return 1 if report.differences else 3 if report.unreachable or report.unlisted else 0


async def _mend(settings: IndexerSettings, report: audit.Report) -> None:
    uris = [difference.uri for difference in report.differences]
    async with await connect(settings.database_url) as connection:
        await connection.set_autocommit(True)
        await mend(connection, report.hosted, uris)
        if not await is_indexer_running(connection):
            raise click.ClickException("no indexer is running on this database: the next one that starts will mend it")
        click.echo(f"The indexer reads {_count(len(report.hosted), 'repository')} again …", err=True)
        left: list[str] = []
        try:
            async with asyncio.timeout(_MENDING):
                # Another process does it.
                while left := await unmended(connection, report.hosted, uris):  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        except TimeoutError:
            for uri in left:
                click.echo(f"{printable(uri)} is still to be looked at, after {_MENDING / 60:.0f} minutes", err=True)


def _quarantined(**which: Any) -> list[Quarantined]:
    async def read() -> list[Quarantined]:
        async with await connect(IndexerSettings.load().database_url) as connection:
            return await quarantined(connection, **which)

    return asyncio.run(read())


async def _replay(settings: IndexerSettings, ids: list[int], reason: str | None) -> tuple[int, int, set[str]]:
    kept = 0
    understood: list[int] = []
    dids: set[str] = set()
    async with await connect(settings.database_url) as connection:
        await connection.set_autocommit(True)
        scope = Scope(settings.prefixes, set(await tracked(connection)))
        if reason:
            ids += [entry.id for entry in await quarantined(connection, reason=reason, limit=100_000)]
        for number in ids:
            for entry in await quarantined(connection, ids=[number]):
                found = audit.read_again(entry, scope)
                if found is None:
                    kept += 1
                else:
                    understood.append(number)
                    dids |= found
        await mend(connection, dict.fromkeys(dids, "active"), [])
        await release(connection, understood)
    return len(understood), kept, dids


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* until it ends, or SIGINT or SIGTERM cancels it."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
