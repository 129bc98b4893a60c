"""The protocols that the parts of the library meet each other by; anything that has these methods will do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

__all__ = ["AbstractDataStore", "AbstractIndex", "DataSource", "IndexEntry", "Packable", "Stream"]


@runtime_checkable
class Packable(Protocol):
    """A sample: what `@packable` makes, and `DictSample`.

    >>> isinstance(DictSample(label=7), Packable)
    True
    """

    @property
    def packed(self) -> bytes:
        """The sample as msgpack."""
        ...

    @property
    def as_wds(self) -> dict[str, Any]:
        """The sample as webdataset's writers take it: `__key__` and `msgpack`."""
        ...

    @classmethod
    def from_bytes(cls, data: bytes, /) -> Self:
        """The sample in *data*."""
        ...

    @classmethod
    def from_data(cls, data: Mapping[str, Any], /) -> Self:
        """The sample with the fields of *data*."""
        ...


@runtime_checkable
class Stream(Protocol):
    """The bytes of one shard, read from the beginning to the end."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to *size* bytes; fewer than one only at the end."""
        ...

    def close(self) -> None:
        """Give back what the stream holds."""
        ...


@runtime_checkable
class DataSource(Protocol):
    """Where the shards of a dataset are.

    >>> isinstance(URLSource("digits-{00..09}.tar"), DataSource)
    True
    """

    def list_shards(self) -> list[str]:
        """The ids of the shards, in order."""
        ...

    @property
    def shards(self) -> Iterable[tuple[str, Stream]]:
        """Each shard's id and its bytes. A stream is closed when the next one is asked for."""
        ...

    def open_shard(self, shard_id: str) -> Stream:
        """The bytes of one shard. Raises KeyError for an id that `list_shards` does not give."""
        ...


@runtime_checkable
class IndexEntry(Protocol):
    """A dataset that an index knows."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        ...

    @property
    def schema_ref(self) -> str:
        """The AT URI of its schema."""
        ...

    @property
    def data_urls(self) -> list[str]:
        """Where its shards are."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What else its publisher said."""
        ...


@runtime_checkable
class AbstractIndex(Protocol):
    """Where datasets and schemas are published and found."""

    def publish_schema(self, sample_type: type[Any], /, *, version: str = "1.0.0") -> str:
        """Publish the schema of *sample_type*; its reference."""
        ...

    def insert_dataset(self, ds: Any, /, *, name: str, schema_ref: str | None = None) -> IndexEntry:
        """Publish a dataset."""
        ...

    def list_datasets(self, repo: str | None = None) -> Sequence[IndexEntry]:
        """The datasets of one repository."""
        ...

    @property
    def datasets(self) -> Iterable[IndexEntry]:
        """The same, one by one."""
        ...

    def get_dataset(self, ref: str, /) -> IndexEntry:
        """One dataset."""
        ...

    def list_schemas(self, repo: str | None = None) -> Sequence[Any]:
        """The schemas of one repository."""
        ...

    @property
    def schemas(self) -> Iterable[Any]:
        """The same, one by one."""
        ...

    def get_schema(self, ref: str, /) -> Any:
        """One schema."""
        ...

    def decode_schema(self, ref: str, /) -> type[Any]:
        """The sample type that a schema describes."""
        ...


@runtime_checkable
class AbstractDataStore(Protocol):
    """Where the shards of datasets are put."""

    def write_shards(self, ds: Any, /, *, prefix: str) -> list[str]:
        """Store a dataset's samples; the URLs of the shards."""
        ...

    def read_url(self, url: str, /) -> str:
        """A URL that anybody can read, for one of the store's."""
        ...

    def supports_streaming(self) -> bool:
        """Whether shards can be read while they arrive."""
        ...


# What `shards` of every source of ours is.
Shards = Iterator[tuple[str, Stream]]
