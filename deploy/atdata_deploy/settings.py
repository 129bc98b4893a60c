"""Settings of the all-in-one, beside those of the services that it starts."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from atdata.errors import ConfigError
from atdata_backend.settings import HttpUrl, Settings
from atdata_indexer.stream import subscription_url


def relay_url(value: str) -> str:
    """*value* as a URL with a scheme: without one, hosts on this machine speak ws, all others wss. Raises ValueError.

    >>> relay_url("localhost:2583"), relay_url("bsky.network")
    ('ws://localhost:2583', 'wss://bsky.network')
    """
    url = value
    if "://" not in value:
        url = f"ws://{value}" if is_on_this_machine(f"ws://{value}") else f"wss://{value}"
    try:
        subscription_url(url)
        is_url = " " not in url
    except ConfigError:
        is_url = False
    if not is_url:
        raise ValueError("must be a relay's or a PDS's host, such as bsky.network or ws://localhost:2583")
    return url


def relay_urls(value: str) -> str:
    """`relay_url` of each host in *value*, with commas between them. Raises ValueError."""
    return ",".join(relay_url(part.strip()) for part in value.split(","))


def is_on_this_machine(url: str) -> bool:
    """Whether the host of *url* is this machine by its name or address."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class UpSettings(Settings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``. Flags of `atdata up` come first."""

    data: Path = Field(
        default=Path(".data"), description="Folder for the embedded Postgres, the embedded search engine and the logs."
    )
    database_url: str | None = Field(
        default=None, description="Postgres to use instead of the embedded one, as `postgresql://…`."
    )
    meili_url: HttpUrl | None = Field(
        default=None, description="A Meilisearch server to use instead of the embedded search engine."
    )
    relay: Annotated[str, AfterValidator(relay_urls)] = Field(
        default="wss://bsky.network",
        description="Host whose firehose is read: a relay or a PDS. Several: see the indexer's setting.",
    )
    plc_url: HttpUrl | None = Field(
        default=None, description="Directory of did:plc documents; the public one by default."
    )
    handle_resolver: HttpUrl | None = Field(
        default=None, description="See the indexer's setting. The relay itself, when that is on this machine."
    )
    allow_private_hosts: bool | None = Field(
        default=None, description="See the indexer's setting. On when the relay is on this machine."
    )
    host: str = Field(default="127.0.0.1", description="Address the AppView listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port the AppView listens on.")
    backfill: bool = Field(default=True, description="See the indexer's setting.")

    @property
    def relays(self) -> list[str]:
        """The URLs in `relay`."""
        return self.relay.split(",")
