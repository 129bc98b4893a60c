"""`atdata up`: the whole system, from one command to Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from atdata.errors import ConfigError
from atdata_appview.commands import listen
from atdata_appview.settings import AppViewSettings
from atdata_backend.postgres import migrate
from atdata_backend.settings import misspelt_variables
from atdata_deploy.postgres import Postgres, embedded_postgres
from atdata_deploy.processes import Child, data_folder, stop
from atdata_deploy.progress import Answer, Line, Progress, ask, line_of, meilisearch_trouble
from atdata_deploy.settings import UpSettings, is_on_this_machine
from atdata_indexer.settings import IndexerSettings


def _help(name: str, text: str) -> str:
    """The help of the flag for the setting *name*: its variable and its default are the setting's."""
    default = UpSettings.model_fields[name].default
    if default is None:
        default = IndexerSettings.model_fields[name].default
    return f"{text} [ATDATA_{name.upper()}, default {default}]"


@click.command()
@click.option("--relay", metavar="URL", help=_help("relay", "Relay or PDS whose firehose is read."))
@click.option("--plc", "plc_url", metavar="URL", help=_help("plc_url", "Directory of did:plc documents."))
@click.option("--data", metavar="FOLDER", help=_help("data", "Folder for everything that is kept."))
@click.option("--host", metavar="ADDRESS", help=_help("host", "Address to listen on."))
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help=_help("port", "Port to listen on."))
@click.option(
    "--backfill/--no-backfill",
    default=None,
    help=_help("backfill", "Whether to fetch what was published before."),
)
def up(**flags: Any) -> None:
    """Run Postgres, search, indexer and AppView on this machine until Ctrl-C.

    Every flag has an environment variable, named after it below; ATDATA_DATABASE_URL and ATDATA_MEILI_URL replace the
    embedded Postgres and search engine.
    """
    for sentence in misspelt_variables(os.environ, [UpSettings, IndexerSettings, AppViewSettings]):
        click.echo(f"atdata: {sentence}", err=True)
    settings = UpSettings.load(**flags)
    # Before anything is started: a taken port is the most common mistake. Raises ConfigError.
    listen(AppViewSettings.load(database_url="unused", host=settings.host, port=settings.port)).close()
    # From here on a signal unwinds the stack, so that everything that was started is stopped, in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        data = stack.enter_context(data_folder(settings.data))
        progress = Progress()
        stack.callback(progress.close)
        try:
            _run(settings, data, progress, stack)
        except KeyboardInterrupt:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            progress.tell("\nStopping …")
            stack.close()
            progress.tell(f"Stopped. What was indexed is kept in {data}")


def _run(settings: UpSettings, data: Path, progress: Progress, stack: ExitStack) -> None:
    logs = data / "logs"
    url, postgres = settings.database_url, None
    if url is None:
        progress.tell("Starting the embedded Postgres …")
        postgres = stack.enter_context(embedded_postgres(data / "postgres", logs / "postgres.log", progress.tell))
        url = postgres.url
    migrate(url)
    started = datetime.now(UTC)
    environment = _environment(settings, url, data)
    _write_settings(data / "settings.sh", environment)
    services = [
        Child(name, [sys.executable, "-m", "atdata", name, "run"], logs / f"{name}.log", environment=environment)
        for name in ("indexer", "appview")
    ]
    stack.callback(stop, services)
    for child in services:
        child.start()

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    address = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    is_announced = False
    while True:
        _tend(postgres, services, progress, data)
        answer = ask(address)
        if answer.is_listening and not is_announced:
            is_announced = True
            progress.tell(
                f"\n  web    {address}/\n"
                f"  API    {address}/docs\n"
                f"  relay  {', '.join(urlsplit(relay).netloc for relay in settings.relays)}\n"
                f"  data   {data} (logs in logs/)\n\nCtrl-C stops everything; the next start goes on from here.\n"
            )
        progress.show(_line(answer, settings, started, is_announced))
        time.sleep(1.0)


def _write_settings(path: Path, environment: dict[str, str]) -> None:
    """What the services are told, for a shell: so that commands beside them find the same index."""
    lines = [
        f"export {name}={shlex.quote(value)}\n" for name, value in environment.items() if name.startswith("ATDATA_")
    ]
    # It may hold passwords.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(sorted(lines))


def _tend(postgres: Postgres | None, services: list[Child], progress: Progress, data: Path) -> None:
    """Start again what died. Raises ConfigError for what only an operator can help."""
    if not (data / "lock").exists():
        raise ConfigError(f"the data folder {data} is gone, with what was indexed: start again to make a new one")
    for child in [postgres, *services] if postgres else services:
        # Without its database a service finds nothing to run on, which is then no mistake in its settings.
        is_patient = postgres is not None and (child is postgres or postgres.has_just_returned)
        if news := child.tend(is_patient=is_patient):
            progress.tell(news)


def _line(answer: Answer, settings: UpSettings, started: datetime, is_announced: bool) -> Line:
    if answer.status is not None:
        return line_of(answer.status, started, datetime.now(UTC))
    if settings.meili_url is not None and (trouble := meilisearch_trouble(settings.meili_url)):
        return Line(trouble, is_trouble=True)
    if answer.trouble is not None:
        return Line(answer.trouble, is_trouble=True)
    if is_announced:
        return Line("the AppView does not answer", is_trouble=True)
    return Line("waiting for the AppView …")


def _environment(settings: UpSettings, url: str, data: Path) -> dict[str, str]:
    """What the services are told."""
    is_local = all(map(is_on_this_machine, settings.relays))
    resolver = settings.handle_resolver
    if resolver is None and is_local:
        # Handles of a network on this machine are unknown to DNS; its PDS knows them.
        relay = urlsplit(settings.relays[0])
        resolver = f"{'https' if relay.scheme in ('wss', 'https') else 'http'}://{relay.netloc}"
    private = is_local if settings.allow_private_hosts is None else settings.allow_private_hosts
    values = {
        "DATABASE_URL": url,
        "SEARCH_DIR": str(data / "search"),
        "MEILI_URL": settings.meili_url,
        "RELAY": settings.relay,
        "PLC_URL": settings.plc_url,
        "HANDLE_RESOLVER": resolver,
        "ALLOW_PRIVATE_HOSTS": str(private),
        "BACKFILL": str(settings.backfill),
        "HOST": settings.host,
        "PORT": str(settings.port),
    }
    # An empty variable counts as unset.
    return {f"ATDATA_{name}": value or "" for name, value in values.items()}
