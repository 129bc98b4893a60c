"""The indexer's settings."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field, field_validator

from atdata import nsid
from atdata_backend.settings import BackendSettings


class IndexerSettings(BackendSettings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``."""

    relay: str = Field(
        default="wss://bsky.network",
        description="Host whose firehose is read: a relay, or a single PDS such as `ws://localhost:2583`. Of several,"
        " with commas between them, one is read at a time: the next when it is out of reach.",
    )
    source: Literal["firehose", "jetstream"] = Field(
        default="firehose",
        description="What events are read from: the relay's `firehose`, or `jetstream`, a fraction of the traffic and"
        " no proofs. Then each record is shown at once, and proven by its own host a moment later; the relay is only"
        " asked for repositories.",
    )
    jetstream: str = Field(
        default="wss://jetstream2.us-east.bsky.network",
        description="Jetstream to read when that is the source; several as for `ATDATA_RELAY`.",
    )
    namespaces: str = Field(
        default=nsid.NAMESPACE,
        description="Namespaces whose records are kept, with commas between them. `science.alt.dataset` is the other"
        " one that is understood.",
    )
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
    quarantine_bytes: int = Field(
        default=1_000_000_000,
        ge=0,
        description="Room for what could not be understood; once it is full, such input is only counted.",
    )

    @field_validator("namespaces")
    @classmethod
    def _are_known(cls, value: str) -> str:
        known = (nsid.NAMESPACE, nsid.SUCCESSOR)
        for name in _list(value):
            if name not in known:
                raise ValueError(f"{name!r} is not one of {', '.join(known)}")
        return value

    @cached_property
    def relays(self) -> tuple[str, ...]:
        """The hosts of `relay`."""
        return _list(self.relay)

    @cached_property
    def jetstreams(self) -> tuple[str, ...]:
        """The hosts of `jetstream`."""
        return _list(self.jetstream)

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """What the collections of `namespaces` start with."""
        return tuple(f"{name}." for name in _list(self.namespaces))


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
