"""Settings that the indexer and the AppView share; each service adds its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from atdata.errors import ConfigError
from atdata_backend.search import open_engine
from atdata_backend.search.base import SearchEngine

_PREFIX = "ATDATA_"

# Variables that are no service's setting: the library reads the first two, the tests the others.
_OTHERS = ("ATDATA_CACHE", "ATDATA_NO_PROGRESS", "ATDATA_SHARED")
_OF_TESTS = "ATDATA_TEST_"


def http_url(value: str) -> str:
    """*value*, if it is the URL of an HTTP service. Raises ValueError.

    >>> http_url("https://plc.directory")
    'https://plc.directory'
    """
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or " " in value:
        raise ValueError("must be the URL of a service, such as https://plc.directory or http://localhost:2582")
    return value


HttpUrl = Annotated[str, AfterValidator(http_url)]
"""The URL of an HTTP service, which an operator names."""


class Settings(BaseSettings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    @classmethod
    def load(cls, **given: Any) -> Self:
        """The settings in the environment, those *given* first. Raises ConfigError that names each one at fault."""
        faults = [f"{_variable(name)}: is empty" for name, value in given.items() if value == ""]
        try:
            settings = cls(**{name: value for name, value in given.items() if value is not None})
            if not faults:
                return settings
        except ValidationError as e:
            faults = [f"{_variable(str(x['loc'][0]))}: {_fault(x)}" for x in e.errors()]
        raise ConfigError(f"settings are incomplete or wrong: {'; '.join(faults)}")


def _fault(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "is not set; what `atdata up` uses is in its data folder: run `. .data/settings.sh` first"
    return error["msg"].removeprefix("Value error, ")


def misspelt_variables(environment: Mapping[str, str], classes: Iterable[type[Settings]]) -> list[str]:
    """A sentence for each variable of *environment* that looks like a setting and is in none of *classes*.

    >>> misspelt_variables({"ATDATA_RELY": "wss://bsky.network"}, [IndexerSettings])
    ['ATDATA_RELY is no setting and has no effect: did you mean ATDATA_RELAY?']
    """
    names = {*_OTHERS, *(_variable(name) for settings in classes for name in settings.model_fields)}
    sentences = []
    for name in sorted(environment):
        if not name.upper().startswith(_PREFIX) or name.upper() in names or name.startswith(_OF_TESTS):
            continue
        # Without what they all have in common, which would make any two names alike.
        near = get_close_matches(name.upper()[len(_PREFIX) :], [known[len(_PREFIX) :] for known in names], n=1)
        meant = f": did you mean {_variable(near[0])}?" if near else ""
        sentences.append(f"{name} is no setting and has no effect{meant}")
    return sentences


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


class BackendSettings(Settings):
    """Where the records and the search documents are, and whom to ask for identities."""

    database_url: str = Field(
        description="Postgres to use, as `postgresql://…`. `atdata up` starts an embedded one when it is not set."
    )
    search_dir: Path | None = Field(
        default=None, description="Folder of the embedded search engine; unused when `ATDATA_MEILI_URL` is set."
    )
    meili_url: HttpUrl | None = Field(
        default=None, description="A Meilisearch server to use instead of the embedded search engine."
    )
    meili_key: str | None = Field(default=None, description="API key of the Meilisearch server.")
    semantic_model: Path | None = Field(
        default=None,
        description="Folder of a sentence-embedding model, by which datasets are found by meaning, too. The same for"
        " both services; needs the extra `semantic` and pgvector.",
    )
    plc_url: str = Field(default="https://plc.directory", description="Directory of did:plc documents.")
    allow_private_hosts: bool = Field(
        default=False,
        description="Let records and DID documents name hosts on private and loopback addresses: for local networks"
        " only.",
    )

    def open_engine(self) -> SearchEngine:
        """The search engine these settings name."""
        if not self.meili_url and self.search_dir is None:
            raise ConfigError("no search engine: set ATDATA_SEARCH_DIR (embedded) or ATDATA_MEILI_URL (Meilisearch)")
        return open_engine(
            folder=self.search_dir,
            meili_url=self.meili_url,
            meili_key=self.meili_key,
            model=self.semantic_model,
            database_url=self.database_url,
        )
