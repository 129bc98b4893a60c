"""The AppView's settings. Each field says what happens when it changes; the README's table is made of this."""

from __future__ import annotations

import os
from typing import Final, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator

from atdata.syntax import is_did
from atdata_backend.settings import BackendSettings

# Searches of one machine by default. Each holds its own connection and its own caches.
_MAX_PROCESSES: Final = 5


class AppViewSettings(BackendSettings):
    """What the AppView reads from the environment, beside what it shares with the indexer."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` for every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    public_url: str | None = Field(
        default=None,
        description="Where others reach the service, as `https://…`; without it, `http://HOST:PORT`. "
        "The DID document and the OpenAPI document name it.",
    )
    did: str | None = Field(
        default=None,
        description="The service's DID; without it, the did:web of the public URL's host, whose document it serves.",
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses or networks, comma-separated, of reverse proxies whose `X-Forwarded-For` is believed. "
        "Without it, everybody behind a proxy shares one rate limit.",
    )
    rate_limit: int = Field(
        default=6000, ge=0, description="Requests a minute that one client may make, all at once if it likes; 0: any."
    )

    search_processes: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Processes that search, some 100 MB each; 0: none, the service searches in threads. Without it, "
        "one more than there are cores, five at most, with the embedded engine; none with Meilisearch, which has its "
        "own.",
    )

    @field_validator("public_url")
    @classmethod
    def _is_origin(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("must be a URL such as https://datasets.example.org") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError("must be a URL without a path, such as https://datasets.example.org")
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("did")
    @classmethod
    def _is_did(cls, did: str | None) -> str | None:
        if did is not None and not is_did(did):
            raise ValueError("must be a DID such as did:web:datasets.example.org")
        return did

    @property
    def searching_processes(self) -> int:
        """How many processes are to search; 0: none beside the service's own."""
        if self.search_processes is not None:
            return self.search_processes
        # One more than there are cores: now and then, one waits for the database.
        return 0 if self.meili_url else min((os.cpu_count() or 1) + 1, _MAX_PROCESSES)

    @property
    def url(self) -> str:
        """Where others reach the service, without a slash at the end."""
        if self.public_url is not None:
            return self.public_url
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def service_did(self) -> str:
        """The service's DID. A port in a did:web is percent-encoded: https://atproto.com/specs/did."""
        return self.did or "did:web:" + quote(urlsplit(self.url).netloc, safe="")

    def listening_on(self, port: int) -> Self:
        """These settings once it is known which free port 0 has become."""
        return self.model_copy(update={"port": port})
