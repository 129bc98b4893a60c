"""The command `atdata appview`."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI

from atdata.errors import ConfigError
from atdata_appview.app import create_app
from atdata_appview.settings import AppViewSettings
from atdata_backend.memory import share_memory_among_threads

log = logging.getLogger(__name__)

# Connections, and requests under way, beyond which others are told 503: each can hold an answer of a few megabytes.
_CONCURRENCY = 300

# Bytes of a message that a subscriber sends: streams are one-way.
_MAX_MESSAGE = 1024

# Seconds in which a connection that is written to takes nothing at all, before the kernel drops it.
_STALLED = 60

# Requests that still run when we are told to stop have so many seconds.
_GRACE = 10


@click.group()
def appview() -> None:
    """The AppView: answers questions about datasets, over XRPC and as web pages."""


@appview.command()
@click.option("--host", help="Address to listen on. [ATDATA_HOST, default 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. [ATDATA_PORT, default 8000]")
@click.option("--public-url", help="Where others reach the service. [ATDATA_PUBLIC_URL]")
@click.option("--database-url", help="Postgres to read from. [ATDATA_DATABASE_URL]")
@click.option(
    "--search-dir", type=click.Path(path_type=Path), help="Embedded search engine's folder. [ATDATA_SEARCH_DIR]"
)
@click.option("--meili-url", help="Meilisearch to use instead. [ATDATA_MEILI_URL]")
def run(**flags: str | int | Path | None) -> None:
    """Serve until Ctrl-C or SIGTERM. A flag overrides its environment variable."""
    share_memory_among_threads()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(AppViewSettings.load(**flags))


def serve(settings: AppViewSettings) -> None:
    """Answer requests until SIGINT or SIGTERM, then finish those that run and close everything.

    Raises ConfigError when the port is taken, or the database or the search engine cannot be opened.
    """
    # First of all: a taken port is the most common mistake, and the cheapest to find.
    with listen(settings) as listener:
        settings = settings.listening_on(listener.getsockname()[1])
        app = create_app(settings)
        config = server_config(app)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(app, config, listener, settings.url))


def server_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves *app*."""
    # It says this of every WebSocket that is refused with an answer.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "completing handshake" not in str(record.msg))
    return uvicorn.Config(
        app,
        # Not uvicorn's: it would print a traceback where a sentence is wanted.
        lifespan="off",
        log_config=None,
        # Nothing of each connection.
        log_level="warning",
        access_log=False,
        # The application believes proxies itself, where the settings say so; uvicorn would believe any local one.
        proxy_headers=False,
        server_header=False,
        # The implementation with the lightest connections, without compression, whose tables would be most of each.
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=_MAX_MESSAGE,
        limit_concurrency=_CONCURRENCY,
        timeout_graceful_shutdown=_GRACE,
    )


async def _serve(app: FastAPI, config: uvicorn.Config, listener: socket.socket, url: str) -> None:
    async with app.router.lifespan_context(app):
        server = uvicorn.Server(config)
        for number in (signal.SIGINT, signal.SIGTERM):
            # Once it is done, uvicorn raises the signals it caught again: here they find us and not the end.
            signal.signal(number, server.handle_exit)
        log.info("serving %s", url)
        await server.serve(sockets=[listener])
    log.info("stopped")


def listen(settings: AppViewSettings) -> socket.socket:
    """A socket bound to the address of *settings*. Raises ConfigError that says why there cannot be one."""
    where = f"{settings.host} port {settings.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror}; set ATDATA_HOST to an address of this machine"
        ) from error
    try:
        # A server that was stopped a moment ago must not keep its successor from the port.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections. Nothing else ends one whose other side is there and does not read.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED * 1000)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where} is taken: stop what uses it, or choose another with --port or ATDATA_PORT"
            ) from error
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror}; choose another with --host and --port"
        ) from error
    return listener
