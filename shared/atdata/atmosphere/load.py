"""Own the reading of published schemas, datasets, lenses and labels: from a URI or a name to a record, to shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

from atdata import codec, network, nsid
from atdata.atmosphere import records
from atdata.atmosphere.client import AtmosphereClient, StoredRecord
from atdata.atmosphere.records import (
    Blob,
    DatasetRecord,
    LabelRecord,
    LensRecord,
    Storage,
    StorageBlobs,
    StorageExternal,
    StorageHttp,
    StorageKind,
    StorageS3,
)
from atdata.atmosphere.uri import AtUri, BlobUri
from atdata.errors import NetworkError, NotFoundError, RecordError, SampleError, SourceError, UriError, redacted
from atdata.nsid import Kind
from atdata.protocols import DataSource
from atdata.sources import PublicS3Source, S3Source, URLSource, expand, literal, scheme_of

if TYPE_CHECKING:
    from atdata.appview import AppView
    from atdata.dataset import Dataset

__all__ = ["DatasetLoader", "LabelLoader", "LensLoader", "SchemaLoader", "data_urls", "metadata_of", "resolve_path"]

T = TypeVar("T")

# Somebody waits for an AppView whose answer can be had elsewhere.
_PATIENCE: Final = 10.0

_COLLECTIONS: Final[Mapping[Kind, tuple[str, ...]]] = {
    kind: tuple(name for name, held in nsid.KINDS.items() if held == kind and name.startswith(nsid.PREFIX))
    for kind in ("schema", "dataset", "lens", "label")
}


class _Loader:
    """What the loaders have in common: one kind of record, from any repository."""

    _kind: ClassVar[Kind]

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def get(self, uri: str | AtUri) -> StoredRecord:
        """The record at *uri*, from the server of its repository.

        Raises NotFoundError when there is none, UriError, a ValueError, for a URI of something else, and NetworkError.
        """
        parsed = uri if isinstance(uri, AtUri) else AtUri.parse(uri)
        kind = nsid.kind_of(parsed.collection)
        if kind != self._kind:
            what = f"a {kind}" if kind else "no record of ours"
            raise UriError(f"{parsed}: is {what}, not a {self._kind}; its collection is {_COLLECTIONS[self._kind][0]}")
        return self.client.get_record(parsed)

    def list_all(self, repo: str | None = None) -> list[StoredRecord]:
        """All such records of *repo*, a handle or a DID, else our own; the newest first, as they say themselves.

        A record that is odd is among them: its `problems` say what is wrong. Raises NotFoundError for an account that
        is not there, LoginError without *repo* before login, and NetworkError.
        """
        return sorted(self.iter_all(repo), key=_age, reverse=True)

    def iter_all(self, repo: str | None = None) -> Iterator[StoredRecord]:
        """The same, page by page as they are asked for: one collection after the other, by record key."""
        for collection in _COLLECTIONS[self._kind]:
            yield from self.client.iter_records(collection, repo)


_LONG_AGO: Final = datetime(1, 1, 1, tzinfo=UTC)


def _age(record: StoredRecord) -> tuple[datetime, str]:
    """When a record was made, by its own word, and its key, which is a TID for most, where the word is the same."""
    value = record.reading.value
    return (value.created_at if value is not None else None) or _LONG_AGO, AtUri.parse(record.uri).rkey


class SchemaLoader(_Loader):
    """Reads sample schemas.

    >>> schema = SchemaLoader(client).get("at://did:plc:abc/ac.foundation.dataset.sampleSchema/xyz")
    >>> schema["name"], schema["version"]
    ('ImageSample', '1.0.0')
    """

    _kind = "schema"


class LensLoader(_Loader):
    """Reads lenses. Their code is named, never fetched or run.

    >>> lens = LensLoader(client).get("at://did:plc:abc/ac.foundation.dataset.lens/xyz")
    >>> lens["sourceSchema"], lens["targetSchema"]
    """

    _kind = "lens"

    def find_by_schemas(
        self, source_schema_uri: str, target_schema_uri: str | None = None, repo: str | None = None
    ) -> list[StoredRecord]:
        """The lenses of *repo*, else our own, from one schema, to another one if it is given.

        >>> LensLoader(client).find_by_schemas(full_uri, simple_uri)

        Raises as `list_all` does. The AppView finds lenses of the whole network.
        """
        source = self._canonical(source_schema_uri)
        target = None if target_schema_uri is None else self._canonical(target_schema_uri)
        return [
            found
            for found in self.iter_all(repo)
            if isinstance(lens := found.reading.value, LensRecord)
            and lens.source_schema == source
            and target in (None, lens.target_schema)
        ]

    def _canonical(self, uri: str) -> str:
        parsed = AtUri.parse(str(uri))
        return str(AtUri(self.client.resolve_repo(parsed.authority), parsed.collection, parsed.rkey))


class LabelLoader(_Loader):
    """Reads labels.

    >>> LabelLoader(client).resolve("alice.example.com", "digits", version="1.2.0")
    'at://did:plc:…/ac.foundation.dataset.record/…'
    """

    _kind = "label"

    def resolve(self, repo: str, name: str, version: str | None = None) -> str:
        """The AT URI of the dataset to which the newest label *name* of *repo* points, or the newest of *version*.

        Raises NotFoundError, a LookupError, that says which versions there are, and NetworkError.
        """
        named = [
            (found, label)
            for found in self.iter_all(repo)
            if isinstance(label := found.reading.value, LabelRecord) and label.name == name
        ]
        fitting = [pair for pair in named if version in (None, pair[1].version) and pair[1].dataset_uri]
        if not fitting:
            versions = sorted({label.version for _, label in named if label.version})
            wanted = name if version is None else f"{name}@{version}"
            there = f"; it has {', '.join(versions[:20])}" if versions else ""
            if not named:
                names = sorted(
                    {one.name for found in self.iter_all(repo) if isinstance(one := found.reading.value, LabelRecord)}
                )
                there = f"; its labels are {', '.join(names[:20])}" if names else "; it has no labels"
            raise NotFoundError(f"{repo} has no label {wanted}{there}")
        _, newest = max(fitting, key=lambda pair: _age(pair[0]))
        return newest.dataset_uri


class DatasetLoader(_Loader):
    """Reads datasets, however their shards are stored.

    >>> loader = DatasetLoader(client)
    >>> for batch in loader.to_dataset(uri, ImageSample).ordered(batch_size=32): ...
    """

    _kind = "dataset"

    def get_storage_type(self, uri: str | AtUri) -> StorageKind:
        """How the shards are stored: `external` (URLs), `blobs`, `http` or `s3`.

        Raises RecordError, a ValueError, when the record does not say so in a way that we know, and as `get` does.
        """
        kind = records.storage_kind(self._storage(self.get(uri)))
        assert kind is not None
        return kind

    def get_urls(self, uri: str | AtUri) -> list[str]:
        """The URLs of the shards as the record has them, in brace notation where it is.

        Raises RecordError, a ValueError, for blobs: see `get_blob_urls`.
        """
        record = self.get(uri)
        storage = self._storage(record)
        if isinstance(storage, StorageBlobs):
            raise RecordError(f"{record.uri}: its shards are blobs, which have no URLs of their own; use get_blob_urls")
        return data_urls(record)

    def get_blob_urls(self, uri: str | AtUri) -> list[str]:
        """Where anybody can read the blobs: URLs at the server of their repository.

        >>> loader.get_blob_urls(uri)
        ['https://pds.example.com/xrpc/com.atproto.sync.getBlob?did=did%3Aplc%3Aabc&cid=bafkrei…', …]

        Raises RecordError, a ValueError, for other storage than blobs.
        """
        from atdata.atmosphere.blobs import blob_url

        record, blobs = self._blobs(uri)
        did = AtUri.parse(record.uri).authority
        return [blob_url(self.client, BlobUri(did, blob.cid)) for blob in blobs]

    def get_blobs(self, uri: str | AtUri) -> list[dict[str, Any]]:
        """The blobs as records refer to them: `{"$type": "blob", "ref": {"$link": CID}, "mimeType": …, "size": …}`.

        Raises RecordError, a ValueError, for other storage than blobs.
        """
        _, blobs = self._blobs(uri)
        return [Blob(blob.cid, blob.size, blob.mime_type).to_record() for blob in blobs]

    def get_metadata(self, uri: str | AtUri) -> dict[str, Any] | None:
        """What else the publisher said, or None. Raises RecordError, a ValueError, when it cannot be read."""
        return metadata_of(self.get(uri))

    def to_dataset(self, uri: str | AtUri, sample_type: type[T]) -> Dataset[T]:
        """The dataset at *uri* as samples of *sample_type*, with every shard, from any storage.

        >>> loader.to_dataset("at://did:plc:abc/ac.foundation.dataset.record/xyz", ImageSample)

        Blobs and checksums are verified while they are read. Addresses in records of others are strangers': our keys
        are never used for them, and files of this machine and hosts of private networks are refused, unless
        `ATDATA_ALLOW_PRIVATE_HOSTS=1` or a directory on this machine says that one is in a network of one's own. Raises
        RecordError and SourceError, ValueErrors both, for storage that cannot be read.
        """
        from atdata.dataset import Dataset

        dataset: Dataset[T] = Dataset[sample_type](self.source(self.get(uri)))  # type: ignore[valid-type]
        return dataset

    def source(self, record: StoredRecord) -> DataSource:
        """The data source of a dataset record. Raises as `to_dataset` does."""
        storage = self._storage(record)
        did = AtUri.parse(record.uri).authority
        is_own = self.client.is_authenticated and did == self.client.did
        # Also in a network of one's own, where whoever may publish is known.
        allow_private = is_own or self.client.trusts_private_hosts
        match storage:
            case StorageBlobs(blobs):
                return self.client.blob_source([{"did": did, "cid": blob.cid} for blob in blobs])
            case StorageExternal(urls):
                return self._at_urls(record.uri, urls, is_own, allow_private)
            case StorageHttp(shards):
                urls = tuple(shard.url for shard in shards)
                _check_schemes(record.uri, urls, {"http", "https"})
                checksums = {shard.url: shard.checksum for shard in shards if shard.checksum is not None}
                return URLSource(
                    [literal(url) for url in urls], checksums=checksums, trusted=is_own, allow_private=allow_private
                )
            case StorageS3(bucket, objects, region, endpoint):
                checksums = {f"s3://{bucket}/{one.key}": one.checksum for one in objects if one.checksum is not None}
                keys = [one.key for one in objects]
                endpoint, region = endpoint or None, region or None
                if is_own:
                    return S3Source(bucket, keys, endpoint, region=region, checksums=checksums)
                return PublicS3Source(bucket, keys, endpoint, region, checksums=checksums, allow_private=allow_private)

    def _at_urls(self, uri: str, urls: tuple[str, ...], is_own: bool, allow_private: bool) -> DataSource:
        shards = expand(*urls)
        if not allow_private:
            _check_schemes(uri, shards, {"http", "https", "s3", "gs", "at"})
        if shards and all(shard.startswith("at://") for shard in shards):
            return self.client.blob_source([{"did": one.did, "cid": one.cid} for one in map(BlobUri.parse, shards)])
        return URLSource(urls, trusted=is_own, allow_private=allow_private)

    def _blobs(self, uri: str | AtUri) -> tuple[StoredRecord, tuple[Blob, ...]]:
        record = self.get(uri)
        storage = self._storage(record)
        if not isinstance(storage, StorageBlobs):
            kind = records.storage_kind(storage)
            raise RecordError(f"{record.uri}: its shards are no blobs, its storage is {kind}; use get_urls")
        return record, storage.blobs

    def _storage(self, record: StoredRecord) -> Storage:
        value = record.reading.value
        storage = value.storage if isinstance(value, DatasetRecord) else None
        # Without the shards that cannot be read, the dataset would look as if it were whole.
        if storage is None or not (ids := _ids(storage)) or not all(ids):
            about = [problem for problem in record.problems if problem.startswith("storage")]
            raise RecordError(f"{record.uri}: its shards cannot be read: {'; '.join(about) or 'it names none'}")
        return storage


def _ids(storage: Storage) -> list[str]:
    """What names each shard; empty where the record could not be read."""
    match storage:
        case StorageBlobs(blobs):
            return [blob.cid for blob in blobs]
        case StorageExternal(urls):
            return list(urls)
        case StorageHttp(shards):
            return [shard.url for shard in shards]
        case StorageS3(bucket, keys):
            return [bucket and shard.key and f"s3://{bucket}/{shard.key}" for shard in keys]


def _check_schemes(uri: str, urls: tuple[str, ...] | list[str], allowed: set[str]) -> None:
    for url in urls:
        scheme = scheme_of(url)
        if scheme not in allowed:
            what = "a file on the machine of its publisher" if scheme in ("", "file") else f"a {scheme}: address"
            raise SourceError(
                f"{uri}: names the shard {url[:200]!r}, {what}, which is not opened; ask its publisher, or set "
                "ATDATA_ALLOW_PRIVATE_HOSTS=1 where publishers are trusted"
            )


def data_urls(record: StoredRecord) -> list[str]:
    """Where the shards of a dataset record are, as it says; of blobs, AT URIs. Never raises."""
    value = record.reading.value
    storage = value.storage if isinstance(value, DatasetRecord) else None
    if isinstance(storage, StorageBlobs):
        did = AtUri.parse(record.uri).authority
        return [str(BlobUri(did, cid)) for cid in _ids(storage)]
    return [] if storage is None else _ids(storage)


def metadata_of(record: StoredRecord) -> dict[str, Any] | None:
    """The metadata of a dataset record: a msgpack map, or an object. Raises RecordError when it is neither."""
    value = record.reading.value
    metadata = value.metadata if isinstance(value, DatasetRecord) else None
    if isinstance(metadata, bytes):
        try:
            unpacked: dict[str, Any] = codec.unpack_any(codec.unpack_map(metadata))
        except SampleError as e:
            raise RecordError(f"{record.uri}: its metadata cannot be read: {e}") from None
        return unpacked
    if metadata is None and record.get("metadata") is not None:
        raise RecordError(f"{record.uri}: its metadata are neither bytes nor an object")
    return None if metadata is None else dict(metadata)


# --- Paths


class ResolvedPath(NamedTuple):
    """What there is at a path: the shards, the AT URI of their schema, and its record where that came along."""

    source: DataSource
    schema_ref: str | None
    schema: StoredRecord | None = None


def resolve_path(path: str, client: AtmosphereClient, appview: AppView | None = None) -> ResolvedPath:
    """The shards of the dataset at *path*, and its schema.

    >>> source, schema_ref, _ = resolve_path("@alice.example.com/digits@1.2.0", AtmosphereClient())

    *path* is the AT URI of a dataset, of a label or of a blob, which has no schema, or `@handle/name` with an optional
    `@version`: the newest label of this name, else the newest dataset. *appview* is asked first, once, and the server
    of the repository when that does not answer, does not know it, or, with a warning, sends what cannot be right; our
    own server has the only word on what is ours, for it knows that first. Raises NotFoundError, a LookupError, when
    there is none, UriError, a ValueError, for another path, and as `DatasetLoader.to_dataset` does; where neither knew,
    the error says what each said.
    """
    if path.startswith("at://") and path.split("/")[3:4] == ["blob"]:
        blob = BlobUri.parse(path)
        return ResolvedPath(client.blob_source([{"did": blob.did, "cid": blob.cid}]), None)
    if appview is None or _is_own(path, client):
        return _from_repository(path, client)
    try:
        with network.deadline(_PATIENCE):
            found = appview.resolve_dataset(path)
    except NetworkError as e:
        refusal = e
    else:
        view, schema = found.dataset, found.schema
        source = DatasetLoader(client).source(view.stored)
        return ResolvedPath(source, view.schema_ref, None if schema is None else schema.stored)
    try:
        resolved = _from_repository(path, client)
    except NetworkError as e:
        # A status is of one answer; this is of two.
        kind = NetworkError if isinstance(e, network.StatusError) else type(e)
        raise kind(f"{refusal}; without the AppView: {e}") from e
    from atdata.views import FalseAnswerError  # which brings the index, and that this module

    if isinstance(refusal, FalseAnswerError):
        # `load_dataset` is called three levels above.
        warnings.warn(
            f"{refusal}; what {redacted(appview.url)} sent was not used, but what the publisher's own server has; "
            "tell whoever runs this AppView, or use another one",
            stacklevel=4,
        )
    return resolved


def _from_repository(path: str, client: AtmosphereClient) -> ResolvedPath:
    parsed = AtUri.parse(_named(client, path) if path.startswith("@") else path)
    if nsid.kind_of(parsed.collection) == "label":
        label = LabelLoader(client).get(parsed).reading.value
        parsed = AtUri.parse(label.dataset_uri if isinstance(label, LabelRecord) else "")
    loader = DatasetLoader(client)
    record = loader.get(parsed)
    source = loader.source(record)
    dataset = record.reading.value
    assert isinstance(dataset, DatasetRecord)
    return ResolvedPath(source, dataset.schema_ref)


def _is_own(path: str, client: AtmosphereClient) -> bool:
    owner = path.removeprefix("at://").removeprefix("@").partition("/")[0]
    return client.is_authenticated and owner.lower() in (client.did, client.handle.lower())


def _named(client: AtmosphereClient, path: str) -> str:
    repo, slash, wanted = path.removeprefix("@").partition("/")
    name, _, version = wanted.partition("@")
    if not slash or not repo or not name:
        raise UriError(f"{path[:200]!r} is no name of a dataset; write @handle/name or @handle/name@version")
    try:
        return LabelLoader(client).resolve(repo, name, version or None)
    except NotFoundError:
        if version:
            raise
    for record in DatasetLoader(client).list_all(repo):
        if isinstance(dataset := record.reading.value, DatasetRecord) and dataset.name == name:
            return record.uri
    raise NotFoundError(f"{repo} has neither label nor dataset {name!r}; list_datasets({repo!r}) says what it has")
