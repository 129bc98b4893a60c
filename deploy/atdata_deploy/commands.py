"""`atdata up`: the whole system, from one command to Ctrl-C."""

from __future__ import annotations

import ipaddress
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from atdata_appview.commands import listen
from atdata_appview.settings import AppViewSettings
from atdata_backend.postgres import migrate
from atdata_deploy.processes import Child, data_folder, embedded_postgres, get_json
from atdata_deploy.settings import UpSettings
from atdata_indexer.stream import subscription_url


@click.command()
@click.option("--relay", metavar="URL", help="Relay or PDS whose firehose is read.")
@click.option("--plc", "plc_url", metavar="URL", help="Directory of did:plc documents.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder for everything that is kept.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Port to listen on.")
@click.option("--backfill/--no-backfill", default=None, help="Whether to fetch what was published before.")
def up(**flags: Any) -> None:
    """Run Postgres, search, indexer and AppView on this machine until Ctrl-C.

    Every flag has an environment variable (ATDATA_RELAY, ATDATA_PLC_URL, ATDATA_DATA, ATDATA_HOST, ATDATA_PORT,
    ATDATA_BACKFILL); ATDATA_DATABASE_URL and ATDATA_MEILI_URL replace the embedded Postgres and search engine.
    """
    settings = UpSettings.load(**flags)
    relay = subscription_url(settings.relay)
    # Before anything is started: a taken port is the most common mistake. Raises ConfigError.
    listen(AppViewSettings.load(database_url="", host=settings.host, port=settings.port)).close()
    # From here on a signal unwinds the stack, so that everything that was started is stopped, in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        data = stack.enter_context(data_folder(settings.data))
        try:
            _run(settings, relay, data, stack)
        except KeyboardInterrupt:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            click.echo("\nStopping …")
            stack.close()
            click.echo("Stopped. What was indexed is kept in " + str(data))


def _run(settings: UpSettings, relay: str, data: Path, stack: ExitStack) -> None:
    url = settings.database_url
    if url is None:
        click.echo("Starting the embedded Postgres …")
        url = stack.enter_context(embedded_postgres(data / "postgres"))
    migrate(url)
    children = [
        Child(name, [name, "run"], _environment(settings, relay, url, data), data / "logs" / f"{name}.log")
        for name in ("indexer", "appview")
    ]
    for child in children:
        stack.callback(child.stop)
        child.start()

    address = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{settings.port}"  # noqa: S104
    progress = _Progress()
    announced = False
    while True:
        for child in children:
            child.tend()
        status = get_json(f"{address}/xrpc/ac.foundation.dataset.getStatus")
        if status is not None and not announced:
            announced = True
            click.echo(
                f"\n  web    {address}/\n"
                f"  API    {address}/docs\n"
                f"  relay  {urlsplit(relay).netloc}\n"
                f"  data   {data} (logs in logs/)\n\nCtrl-C stops everything; the next start goes on from here.\n"
            )
        if status is not None:
            progress.show(status)
        time.sleep(1.0)


def _environment(settings: UpSettings, relay: str, url: str, data: Path) -> dict[str, str]:
    """What the services are told."""
    local = _is_local(urlsplit(relay).hostname or "")
    resolver = settings.handle_resolver
    if resolver is None and local:
        # Handles of a network on this machine are unknown to DNS; its PDS knows them.
        resolver = relay.replace("wss:", "https:", 1).replace("ws:", "http:", 1).split("/xrpc/")[0]
    private = local if settings.allow_private_hosts is None else settings.allow_private_hosts
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


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Progress:
    """One line that is written over on a terminal, and a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._next = 0.0
        self._last = ""

    def show(self, status: dict[str, Any]) -> None:
        indexer = (status.get("indexer") or {}).get("status") or {}
        if not indexer:
            line = "waiting for the indexer …"
        elif not indexer.get("connected"):
            line = str(indexer.get("trouble") or f"connecting to {indexer.get('relay')} …")
        else:
            lag = indexer.get("lagSeconds")
            line = "  ".join(
                [
                    f"seq {indexer.get('seq') if indexer.get('seq') is not None else '–'}",
                    f"lag {lag:.1f} s" if lag is not None else "lag –",
                    f"records {sum(status['records'].values()):,}",
                    f"{indexer.get('framesPerSecond', 0):,.0f} frames/s",
                    f"to search {status['backlog']:,}",
                    f"to fetch {status['repositories']['desynchronized']:,}",
                    f"quarantined {sum(q['count'] for q in status['quarantine']):,}",
                ]
            )
        if self._terminal:
            click.echo("\r\033[K" + line[:200], nl=False)
        elif line != self._last and time.monotonic() >= self._next:
            self._next = time.monotonic() + 5.0
            self._last = line
            click.echo(line)
