"""Own the index: publishing, finding and decoding datasets and schemas through one object."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from atdata.atmosphere.blobs import PDSBlobStore
from atdata.atmosphere.client import AtmosphereClient, StoredRecord
from atdata.atmosphere.load import DatasetLoader, SchemaLoader, data_urls, metadata_of
from atdata.atmosphere.publish import DatasetPublisher, SchemaPublisher, check_dataset
from atdata.atmosphere.records import DatasetRecord
from atdata.errors import ArgumentError, ConfigError, RecordError, UriError
from atdata.sample import PackableSample
from atdata.schema import schema_to_type

if TYPE_CHECKING:
    from atdata.appview import AppView, DatasetFilters, Results
    from atdata.dataset import Dataset
    from atdata.protocols import AbstractDataStore, AbstractIndex, IndexEntry
    from atdata.views import DatasetView, LensPaths

__all__ = ["AtmosphereIndex", "DatasetEntry"]


class DatasetEntry:
    """A dataset of the network. Made of its record, without asking anyone; a record that is odd makes an entry, too.

    >>> for entry in index.list_datasets("alice.example.com"):
    ...     print(entry.name, entry.uri, entry.problems)
    """

    def __init__(self, stored: StoredRecord) -> None:
        self.stored = stored

    @property
    def uri(self) -> str:
        """The AT URI of the record."""
        return self.stored.uri

    @property
    def cid(self) -> str:
        """The CID of the record."""
        return self.stored.cid

    @property
    def record(self) -> DatasetRecord:
        """What could be read of the record."""
        value = self.stored.reading.value
        assert isinstance(value, DatasetRecord)
        return value

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.record.name

    @property
    def schema_ref(self) -> str:
        """The AT URI of its schema."""
        return self.record.schema_ref

    @property
    def description(self) -> str | None:
        """What it is, in words."""
        return self.record.description

    @property
    def tags(self) -> tuple[str, ...]:
        """What people may search for."""
        return self.record.tags

    @property
    def license(self) -> str | None:
        """An SPDX identifier, if there is one."""
        return self.record.license

    @property
    def data_urls(self) -> list[str]:
        """Where its shards are, as the record says: URLs, `s3://bucket/key`, or `at://{did}/blob/{cid}`."""
        return data_urls(self.stored)

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What else its publisher said; None when nothing, or nothing that can be read."""
        try:
            return metadata_of(self.stored)
        except RecordError:
            return None

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the record, if anything."""
        return self.stored.problems

    def __repr__(self) -> str:
        return f"DatasetEntry({self.name!r}, {self.uri!r})"

    def _repr_html_(self) -> str:
        from atdata import html

        size = self.record.size
        shown = self.data_urls[:3] + (["…"] if len(self.data_urls) > 3 else [])
        return html.facts(
            self.name,
            {
                "description": self.description,
                "uri": self.uri,
                "schema": self.schema_ref,
                "shards": ", ".join(shown),
                "samples": size and size.samples,
                "bytes": size and size.bytes,
                "tags": ", ".join(self.tags) or None,
                "license": self.license,
                "metadata": self.metadata,
                "problems": "; ".join(self.problems) or None,
            },
        )


class AtmosphereIndex:
    """Datasets and schemas on the AT Protocol network, our own and those of others.

    >>> index = AtmosphereIndex(client, data_store=PDSBlobStore(client))
    >>> entry = index.insert_dataset(dataset, name="digits")
    >>> index.list_datasets("alice.example.com")

    With a *data_store*, shards of published datasets are uploaded to it; without one, their URLs are recorded. *client*
    need not be logged in, nor be given, to read what others have published. What only an index of the whole network can
    answer is asked of *appview*, an AppView or its URL, else of that at `ATDATA_APPVIEW`:

    >>> index = AtmosphereIndex(appview="https://appview.example.com")
    >>> for hit in index.search_datasets("speech recognition"): ...
    """

    def __init__(
        self,
        client: AtmosphereClient | None = None,
        data_store: AbstractDataStore | None = None,
        *,
        appview: str | AppView | None = None,
    ) -> None:
        for name, value in (("client", client), ("data_store", data_store)):
            if isinstance(value, type):
                made = "AtmosphereClient()" if name == "client" else f"{value.__name__}(client)"
                raise ArgumentError(f"{name} is the class {value.__name__}; give an instance of it: {made}")
        self.client = client if client is not None else AtmosphereClient()
        self.data_store = data_store
        self.appview: AppView | None = None
        """Where questions about the whole network go; None when none is known."""
        if appview is not None or os.environ.get("ATDATA_APPVIEW"):
            from atdata.appview import AppView  # which brings the views, and they this module's entries

            known = appview if isinstance(appview, AppView) else AppView(appview)
            self.appview = known.read_by(self.client)

    # --- Schemas

    def publish_schema(
        self,
        sample_type: type[Any],
        *,
        name: str | None = None,
        version: str = "1.0.0",
        description: str | None = None,
    ) -> str:
        """Publish the schema of *sample_type*; its AT URI.

        >>> index.publish_schema(ImageSample, version="1.0.0", description="An image with its label")
        'at://did:plc:…/ac.foundation.dataset.sampleSchema/…'

        Raises as `SchemaPublisher.publish` does.
        """
        return SchemaPublisher(self.client).publish(sample_type, name=name, version=version, description=description)

    def get_schema(self, ref: str) -> StoredRecord:
        """The schema at *ref*, an AT URI. Raises NotFoundError when there is none, UriError and NetworkError."""
        return SchemaLoader(self.client).get(ref)

    def list_schemas(self, repo: str | None = None) -> list[StoredRecord]:
        """The schemas of *repo*, a handle or a DID, else our own, the newest first; each with its members as items.

        >>> [f"{schema['name']} v{schema['version']}" for schema in index.list_schemas()]
        """
        return SchemaLoader(self.client).list_all(repo)

    @property
    def schemas(self) -> Iterator[StoredRecord]:
        """Our own schemas, page by page as they are asked for."""
        return SchemaLoader(self.client).iter_all()

    def decode_schema(self, ref: str) -> type[PackableSample]:
        """The sample type that the schema at *ref* describes, nested samples included. Equal schemas give one class.

        >>> SampleType = index.decode_schema(entry.schema_ref)
        >>> atdata.Dataset[SampleType](store.create_source(entry.data_urls))

        Raises SchemaError, a ValueError, for a schema that no type can express, and as `get_schema` does.
        """
        return schema_to_type(self.get_schema(ref), resolve=self.get_schema)

    # --- Datasets

    def insert_dataset(
        self,
        ds: Dataset[Any],
        *,
        name: str,
        schema_ref: str | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> DatasetEntry:
        """Publish *ds*, its shards as well if there is a data store.

        >>> entry = index.insert_dataset(dataset, name="digits", tags=["images"], license="MIT")
        >>> entry.uri, entry.data_urls

        Without *schema_ref*, the schema of its type is published, unless an equal one was before. Run again after an
        interruption, shards that are uploaded already are not uploaded again. Raises as `DatasetPublisher.publish` and
        `PDSBlobStore.write_shards` do.

        Each call makes a new record, with a warning when there is one of this name. To update a dataset, publish the
        new one and point a label at it, which is what `@handle/name` then loads; the old one stays until it is deleted:

        >>> entry = index.insert_dataset(better, name="digits-2")
        >>> LabelPublisher(client).publish(name="digits", dataset_uri=entry.uri, version="2.0.0")
        >>> client.delete_record(old.uri)
        """
        check_dataset(ds)
        publisher = DatasetPublisher(self.client)
        about: dict[str, Any] = {
            "name": name,
            "description": description,
            "tags": tags,
            "license": license,
            "metadata": ds.metadata if metadata is None else metadata,
        }
        if self.data_store is None:
            return self.get_dataset(publisher.publish(ds, schema_uri=schema_ref, **about))
        publisher.check(**about)
        schema_uri = publisher.schema_of(ds, schema_ref)
        if not isinstance(self.data_store, PDSBlobStore):
            urls = self.data_store.write_shards(ds, prefix=name)
            return self.get_dataset(publisher.publish_with_urls(urls, schema_uri, **about))
        publisher.warn_of_namesakes(name)
        uri = self.data_store.store(
            ds, lambda stored: publisher.publish_uploaded(stored, schema_uri, **about), prefix=name
        )
        return self.get_dataset(uri)

    def get_dataset(self, ref: str) -> DatasetEntry:
        """The dataset at *ref*, an AT URI. Raises NotFoundError when there is none, UriError and NetworkError."""
        if isinstance(ref, str) and ref.startswith("@"):
            raise UriError(
                f"{ref[:200]!r} is no AT URI; atdata.load_dataset({ref[:200]!r}) loads a dataset by its name"
            )
        return DatasetEntry(DatasetLoader(self.client).get(ref))

    def list_datasets(self, repo: str | None = None) -> list[DatasetEntry]:
        """The datasets of *repo*, a handle or a DID, else our own; the newest first.

        >>> index.list_datasets("alice.example.com")[0].name
        'digits'

        Raises NotFoundError for an account that is not there, LoginError without *repo* before login, and NetworkError.
        """
        return [DatasetEntry(stored) for stored in DatasetLoader(self.client).list_all(repo)]

    @property
    def datasets(self) -> Iterator[DatasetEntry]:
        """Our own datasets, page by page as they are asked for."""
        return map(DatasetEntry, DatasetLoader(self.client).iter_all())

    # --- What only an AppView knows

    def search_datasets(self, q: str = "", **filters: Unpack[DatasetFilters]) -> Results[DatasetView]:
        """Datasets of the whole network that have the words *q* and pass all *filters*; see `AppView.search_datasets`.

        >>> for hit in index.search_datasets("speech", licenses=["MIT"]):
        ...     print(hit.name, hit.publisher)

        Raises ConfigError without an AppView, and NetworkError when it does not answer.
        """
        return self._need_appview("searching all repositories").search_datasets(q, **filters)

    def datasets_loadable_as(
        self, sample_type: type[Any], q: str = "", **filters: Unpack[DatasetFilters]
    ) -> Results[DatasetView]:
        """Datasets of the whole network that can be read as *sample_type*; see `AppView.datasets_loadable_as`.

        >>> for hit in index.datasets_loadable_as(Digit):
        ...     for digit in hit.load(Digit, split="train"): ...
        """
        return self._need_appview("searching by type").datasets_loadable_as(sample_type, q, **filters)

    def similar(self, uri: str, *, limit: int = 10) -> tuple[DatasetView, ...]:
        """Datasets like the one at *uri*, the most alike first; see `AppView.similar`."""
        return self._need_appview("comparing all datasets").similar(uri, limit=limit)

    def find_lens_path(
        self, source: str | type[Any], target: str | type[Any], *, max_hops: int = 4, k: int = 3
    ) -> LensPaths:
        """The best ways from samples of *source* to samples of *target*; see `AppView.find_lens_path`.

        >>> for path in index.find_lens_path(entry.schema_ref, Simple):
        ...     print(path)
        """
        return self._need_appview("looking for lenses").find_lens_path(source, target, max_hops=max_hops, k=k)

    def _need_appview(self, what: str) -> AppView:
        if self.appview is None:
            raise ConfigError(
                f"{what} takes an AppView: give appview=URL, as AtmosphereIndex(client, appview='https://…'), or set "
                "ATDATA_APPVIEW; list_datasets(repo) lists one account's datasets without"
            )
        return self.appview

    def __repr__(self) -> str:
        appview = "" if self.appview is None else f", appview={self.appview!r}"
        return f"AtmosphereIndex({self.client!r}, data_store={self.data_store!r}{appview})"


if TYPE_CHECKING:

    def _fit(
        index: AtmosphereIndex, store: PDSBlobStore, entry: DatasetEntry
    ) -> tuple[AbstractIndex, AbstractDataStore, IndexEntry]:
        """What the type checkers would not look at otherwise: the classes are what the protocols ask for."""
        return index, store, entry
