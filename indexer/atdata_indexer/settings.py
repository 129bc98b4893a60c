"""The indexer's settings."""

from __future__ import annotations

from pydantic import Field

from atdata_backend.settings import BackendSettings


class IndexerSettings(BackendSettings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``."""

    relay: str = Field(
        default="wss://bsky.network",
        description="Host whose firehose is read: a relay, or a single PDS such as `ws://localhost:2583`.",
    )
    plc_url: str = Field(default="https://plc.directory", description="Directory of did:plc documents.")
    handle_resolver: str | None = Field(
        default=None,
        description="Service to ask what DID a handle belongs to, instead of DNS and HTTPS: for local networks, whose"
        " handles no DNS server knows.",
    )
    backfill: bool = Field(
        default=True,
        description="Fetch what was published before the firehose was first read, and what it skipped. Off: only what"
        " comes by from now on.",
    )
    allow_private_hosts: bool = Field(
        default=False,
        description="Let DID documents name hosts on private and loopback addresses: for local networks only.",
    )
    quarantine_bytes: int = Field(
        default=1_000_000_000,
        ge=0,
        description="Room for what could not be understood; once it is full, such input is only counted.",
    )
