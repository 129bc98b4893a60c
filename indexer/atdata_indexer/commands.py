"""The indexer's commands: `atdata indexer …` and `atdata migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop

from atdata_backend.postgres import migrate as migrate_database
from atdata_backend.settings import BackendSettings
from atdata_indexer.settings import IndexerSettings
from atdata_indexer.store import forget_cursor, request_rebuild
from atdata_indexer.stream import subscription_url


@click.group()
def indexer() -> None:
    """Read the firehose into Postgres and the search engine."""


@indexer.command()
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, not only what goes wrong.")
def run(verbose: bool) -> None:
    """Index until stopped. Settings come from the environment: see indexer/README.md."""
    from atdata_indexer.ingest import Indexer

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Every request at INFO would drown the rest.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = IndexerSettings.load()
    migrate_database(settings.database_url)
    engine = settings.open_engine()
    try:
        uvloop.run(_until_signal(Indexer(settings, engine).run()))
    finally:
        engine.close()


@indexer.command("rebuild-search")
def rebuild_search() -> None:
    """Have the running indexer compare the search engine with Postgres and fill it anew."""
    asyncio.run(request_rebuild(IndexerSettings.load().database_url))
    click.echo("The indexer will feed every dataset again; `getStatus` shows the backlog.")


@indexer.command("forget-cursor")
def forget() -> None:
    """Read the relay from now on instead of from where it was left, after it was reset."""
    settings = IndexerSettings.load()
    host = urlsplit(subscription_url(settings.relay)).netloc
    known = asyncio.run(forget_cursor(settings.database_url, host))
    click.echo(f"Forgot the cursor of {host}." if known else f"There was no cursor of {host}.")


@click.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    click.echo(f"The database is at migration {migrate_database(BackendSettings.load().database_url)}.")


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* until it ends, or SIGINT or SIGTERM cancels it."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
