"""Settings of the all-in-one, beside those of the services that it starts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from atdata_backend.settings import Settings


class UpSettings(Settings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``. Flags of `atdata up` come first."""

    data: Path = Field(
        default=Path(".data"), description="Folder for the embedded Postgres, the embedded search engine and the logs."
    )
    database_url: str | None = Field(
        default=None, description="Postgres to use instead of the embedded one, as `postgresql://…`."
    )
    meili_url: str | None = Field(
        default=None, description="A Meilisearch server to use instead of the embedded search engine."
    )
    relay: str = Field(default="wss://bsky.network", description="Host whose firehose is read: a relay or a PDS.")
    plc_url: str | None = Field(default=None, description="Directory of did:plc documents; the public one by default.")
    handle_resolver: str | None = Field(
        default=None, description="See the indexer's setting. The relay itself, when that is on this machine."
    )
    allow_private_hosts: bool | None = Field(
        default=None, description="See the indexer's setting. On when the relay is on this machine."
    )
    host: str = Field(default="127.0.0.1", description="Address the AppView listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port the AppView listens on.")
    backfill: bool = Field(default=True, description="See the indexer's setting.")
