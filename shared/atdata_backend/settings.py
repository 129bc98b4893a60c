"""Settings that the indexer and the AppView share; each service adds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from atdata.errors import ConfigError
from atdata_backend.search import open_engine
from atdata_backend.search.base import SearchEngine


class Settings(BaseSettings):
    """Read from the environment: a field ``name`` from ``ATDATA_NAME``; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_prefix="ATDATA_", env_ignore_empty=True, extra="ignore", frozen=True)

    @classmethod
    def load(cls, **given: Any) -> Self:
        """The settings in the environment, those *given* first. Raises ConfigError that names each one at fault."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as e:
            faults = "; ".join(f"ATDATA_{str(x['loc'][0]).upper()}: {x['msg']}" for x in e.errors())
            raise ConfigError(f"settings are incomplete or wrong: {faults}") from None


class BackendSettings(Settings):
    """Where the records and the search documents are."""

    database_url: str = Field(
        description="Postgres to use, as `postgresql://…`. `atdata up` starts an embedded one when it is not set."
    )
    search_dir: Path | None = Field(
        default=None, description="Folder of the embedded search engine; unused when `ATDATA_MEILI_URL` is set."
    )
    meili_url: str | None = Field(
        default=None, description="A Meilisearch server to use instead of the embedded search engine."
    )
    meili_key: str | None = Field(default=None, description="API key of the Meilisearch server.")

    def open_engine(self) -> SearchEngine:
        """The search engine these settings name."""
        if not self.meili_url and self.search_dir is None:
            raise ConfigError("no search engine: set ATDATA_SEARCH_DIR (embedded) or ATDATA_MEILI_URL (Meilisearch)")
        return open_engine(folder=self.search_dir, meili_url=self.meili_url, meili_key=self.meili_key)
