"""Own the writing of schemas, datasets, lenses and labels: what is given becomes an exact record in our repository."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from atdata import codec, nsid
from atdata.atmosphere.blobs import TAR, StoredBlob, read_blob, release_blobs, stored_blob
from atdata.atmosphere.client import AtmosphereClient
from atdata.atmosphere.load import SchemaLoader
from atdata.atmosphere.records import (
    CodeReference,
    DatasetRecord,
    LabelRecord,
    LensRecord,
    SchemaRecord,
    Size,
    Storage,
    StorageBlobs,
    StorageExternal,
)
from atdata.atmosphere.uri import AtUri, BlobUri
from atdata.errors import RecordError, SampleError, SchemaError, SourceError
from atdata.lexicon import load_lexicons
from atdata.sample import DictSample
from atdata.schema import type_to_schema
from atdata.sources import expand

if TYPE_CHECKING:
    from atdata.dataset import Dataset
    from atdata.lens import Lens

__all__ = ["DatasetPublisher", "LabelPublisher", "LensPublisher", "SchemaPublisher"]


def _publish(
    client: AtmosphereClient,
    collection: str,
    record: SchemaRecord | DatasetRecord | LensRecord | LabelRecord,
    rkey: str | None = None,
) -> str:
    written = record.to_record()
    if rkey is not None and (problems := load_lexicons().validate_record(collection, written, rkey)):
        raise RecordError(f"cannot write this record: {'; '.join(map(str, problems))}")
    return client.create_record(collection, written, rkey)


def _now() -> datetime:
    return datetime.now(UTC)


# --- Schemas


class SchemaPublisher:
    """Publishes sample types as schemas in the repository of the account that *client* is logged in to."""

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def publish(
        self,
        sample_type: type[Any],
        *,
        name: str | None = None,
        version: str = "1.0.0",
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        rkey: str | None = None,
    ) -> str:
        """Publish the schema of *sample_type*; its AT URI.

        >>> SchemaPublisher(client).publish(ImageSample, version="1.0.0", description="An image with its label")
        'at://did:plc:…/ac.foundation.dataset.sampleSchema/…'

        Samples within the sample get schemas of their own, unless equal ones were published before. Raises SchemaError,
        a ValueError, for a type that no schema can express, RecordError for values that the lexicon forbids, LoginError
        and NetworkError.
        """
        record = self._record(sample_type, (), name, version, description, metadata)
        return _publish(self.client, nsid.SAMPLE_SCHEMA, record, rkey)

    def find_or_publish(self, sample_type: type[Any], *, version: str = "1.0.0") -> str:
        """The AT URI of the newest schema of ours with this name, version and fields; published if there is none."""
        return self._find_or_publish(sample_type, (), version)

    def _find_or_publish(self, sample_type: type[Any], outer: tuple[type[Any], ...], version: str) -> str:
        record = self._record(sample_type, outer, None, version, None, None)
        for known in SchemaLoader(self.client).list_all():
            value = known.reading.value
            if isinstance(value, SchemaRecord) and not known.problems and _is_same(value, record):
                return known.uri
        return _publish(self.client, nsid.SAMPLE_SCHEMA, record)

    def _record(
        self,
        sample_type: type[Any],
        outer: tuple[type[Any], ...],
        name: str | None,
        version: str,
        description: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> SchemaRecord:
        if sample_type is DictSample:
            raise SchemaError(
                "DictSample declares no fields; use a type made by @atdata.packable, or give the AT URI of a schema"
            )

        def nested(inner: type[Any]) -> str:
            if inner in (*outer, sample_type):
                raise SchemaError(f"{inner.__name__} holds samples of its own type, which no schema can express")
            return self._find_or_publish(inner, (*outer, sample_type), version)

        return type_to_schema(
            sample_type,
            name=name,
            version=version,
            description=description,
            metadata=metadata,
            created_at=_now(),
            refs=nested,
        )


def _is_same(one: SchemaRecord, other: SchemaRecord) -> bool:
    return (one.name, one.version, one.fields) == (other.name, other.version, other.fields)


# --- Datasets


class DatasetPublisher:
    """Publishes datasets as records in the repository of the account that *client* is logged in to."""

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def publish(
        self,
        ds: Dataset[Any],
        *,
        name: str,
        schema_uri: str | None = None,
        auto_publish_schema: bool = True,
        schema_version: str = "1.0.0",
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        rkey: str | None = None,
    ) -> str:
        """Publish *ds* with the URLs of its shards as they are; the record's AT URI.

        >>> DatasetPublisher(client).publish(dataset, name="digits", tags=["images"], license="MIT")
        'at://did:plc:…/ac.foundation.dataset.record/…'

        Without *schema_uri*, the schema of its type is published first, in *schema_version*, unless an equal one was
        before. Without *metadata*, those of *ds* are. Raises as `SchemaPublisher.publish` does.
        """
        about = _About(name, description, tags, license, ds.metadata if metadata is None else metadata)
        urls = _urls_of(ds)
        schema_uri = self.schema_of(ds, schema_uri, auto_publish_schema, schema_version)
        return self._write_urls(about, schema_uri, urls, rkey)

    def schema_of(
        self, ds: Dataset[Any], schema_uri: str | None, auto_publish: bool = True, version: str = "1.0.0"
    ) -> str:
        """The AT URI of the schema of *ds*: the one given, else that of its type, which is published if need be."""
        if schema_uri is not None:
            return str(AtUri.parse(str(schema_uri)))
        if not auto_publish:
            raise RecordError("a dataset has a schema: give schema_uri, or auto_publish_schema=True")
        return SchemaPublisher(self.client).find_or_publish(ds.sample_type, version=version)

    @staticmethod
    def check(**about: Any) -> None:
        """Raise RecordError, a ValueError, when what is said of a dataset, its name and so on, cannot be written."""
        _About(**about)

    def publish_with_urls(
        self,
        urls: Sequence[str],
        schema_uri: str,
        *,
        name: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        rkey: str | None = None,
    ) -> str:
        """Publish a dataset whose shards are at *urls*; the record's AT URI.

        >>> publisher.publish_with_urls(["https://example.com/digits-{000..009}.tar"], schema_uri, name="digits")

        Blobs of our own, `at://{did}/blob/{cid}`, are recorded as blobs, so that the server keeps them. Raises
        SourceError, a ValueError, for URLs that are not opened, NotFoundError for blobs that the server does not have,
        and else as `publish` does.
        """
        about = _About(name, description, tags, license, metadata)
        return self._write_urls(about, str(AtUri.parse(str(schema_uri))), urls, rkey)

    def publish_with_blobs(
        self,
        blobs: Sequence[bytes | Path],
        schema_uri: str,
        *,
        name: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        mime_type: str = TAR,
    ) -> str:
        """Upload *blobs*, the bytes or the files of shards, and publish a dataset of them; the record's AT URI.

        >>> publisher.publish_with_blobs([tar_buffer.getvalue()], schema_uri, name="small-dataset")

        The server may know the type of the bytes better than *mime_type*. Raises StatusError for blobs that are too
        large for it, and else as `publish` does.
        """
        about = _About(name, description, tags, license, metadata)
        if isinstance(blobs, bytes | str | Path):
            raise SourceError("blobs is a list of shards, not one")
        schema_uri = str(AtUri.parse(str(schema_uri)))
        stored = [StoredBlob(read_blob(self.client.upload_blob(blob, mime_type))) for blob in blobs]
        return self._write(about, schema_uri, *_blob_storage(stored))

    def publish_uploaded(
        self,
        stored: Sequence[StoredBlob],
        schema_uri: str,
        *,
        name: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """As `publish_with_blobs`, for what `PDSBlobStore.upload` gave."""
        about = _About(name, description, tags, license, metadata)
        return self._write(about, str(AtUri.parse(str(schema_uri))), *_blob_storage(stored))

    def _write_urls(self, about: _About, schema_uri: str, urls: Sequence[str], rkey: str | None) -> str:
        if isinstance(urls, str):
            raise SourceError("urls is a list of URLs, not one")
        # What nobody would open is not published.
        shards = [one for url in urls for one in expand(url)]
        own = f"at://{self.client.did}/blob/"
        if not shards or not all(shard.startswith(own) for shard in shards):
            return self._write(about, schema_uri, StorageExternal(tuple(urls)), Size(shards=len(shards)), rkey)
        stored = [stored_blob(self.client, BlobUri.parse(shard)) for shard in shards]
        uri = self._write(about, schema_uri, *_blob_storage(stored), rkey)
        release_blobs(self.client, [one.blob for one in stored])
        return uri

    def _write(self, about: _About, schema_uri: str, storage: Storage, size: Size, rkey: str | None = None) -> str:
        return _publish(self.client, nsid.DATASET, about.record(schema_uri, storage, size), rkey)


class _About:
    """What a publisher says of a dataset, apart from its shards. Raises RecordError for what the lexicon forbids.

    So nothing is uploaded, and no schema published, for a dataset that cannot be.
    """

    def __init__(
        self,
        name: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        license: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(tags, str):
            raise RecordError("tags is a list of tags, not one")
        self._name = name
        self._description = description
        self._tags = tuple(tags or ())
        self._license = license
        try:
            self._metadata = None if metadata is None else codec.pack_map(codec.pack_any(dict(metadata)))
        except SampleError as e:
            raise RecordError(f"metadata cannot be written: {e}") from None
        self.record(_SOME_SCHEMA, StorageExternal(("0.tar",)), None).to_record()

    def record(self, schema_uri: str, storage: Storage, size: Size | None) -> DatasetRecord:
        return DatasetRecord(
            name=self._name,
            schema_ref=schema_uri,
            storage=storage,
            description=self._description,
            tags=self._tags,
            license=self._license,
            size=size,
            metadata=self._metadata,
            created_at=_now(),
        )


_SOME_SCHEMA: Final = f"at://did:web:example.com/{nsid.SAMPLE_SCHEMA}/3jzfcijpj2z2a"


def _blob_storage(stored: Sequence[StoredBlob]) -> tuple[Storage, Size]:
    sizes = [one.blob.size for one in stored if one.blob.size is not None]
    samples = [one.samples for one in stored if one.samples is not None]
    size = Size(
        samples=sum(samples) if len(samples) == len(stored) else None,
        bytes=sum(sizes) if len(sizes) == len(stored) else None,
        shards=len(stored),
    )
    return StorageBlobs(tuple(one.blob for one in stored)), size


def _urls_of(ds: Dataset[Any]) -> list[str]:
    """Where the shards of *ds* are, in brace notation as far as they were given in it."""
    if ds._lens is not None:
        raise RecordError(
            "the dataset is viewed through a lens, and its shards hold other samples; publish it through an index with "
            "a data store, which stores the views, or publish the dataset behind it"
        )
    url = getattr(ds.source, "url", None)
    # Several URLs come as alternatives in braces: a record has room for each.
    if isinstance(url, str) and not url.startswith("{"):
        return [url]
    return [re.sub(r"([\\{},])", r"\\\1", one) if "{" in one or "}" in one else one for one in ds.list_shards()]


# --- Lenses

_CODE_MEMBERS: Final = frozenset({"repository", "commit", "path", "branch", "language"})


class LensPublisher:
    """Publishes lenses as records in the repository of the account that *client* is logged in to.

    A record says where the code of a lens is; nobody fetches or runs it.
    """

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def publish(
        self,
        *,
        name: str,
        source_schema: str | None = None,
        target_schema: str | None = None,
        description: str | None = None,
        getter_code: Mapping[str, str] | None = None,
        putter_code: Mapping[str, str] | None = None,
        rkey: str | None = None,
        source_schema_uri: str | None = None,
        target_schema_uri: str | None = None,
        code_repository: str | None = None,
        code_commit: str | None = None,
        getter_path: str | None = None,
        putter_path: str | None = None,
    ) -> str:
        """Publish a lens between two schemas; the record's AT URI.

        >>> LensPublisher(client).publish(name="simplify", source_schema=full_uri, target_schema=simple_uri,
        ...     getter_code={"repository": "https://github.com/org/repo", "commit": "abc123def",
        ...                  "path": "transforms/simplify.py:simplify_getter"})
        'at://did:plc:…/ac.foundation.dataset.lens/…'

        The arguments after *rkey* are an older spelling of the same. Raises RecordError, a ValueError, for what is
        missing, said twice or forbidden by the lexicon, LoginError and NetworkError.
        """
        record = LensRecord(
            name=name,
            source_schema=_either("source_schema", source_schema, source_schema_uri),
            target_schema=_either("target_schema", target_schema, target_schema_uri),
            description=description,
            getter_code=_code("getter", getter_code, code_repository, code_commit, getter_path),
            putter_code=_code("putter", putter_code, code_repository, code_commit, putter_path),
            created_at=_now(),
        )
        return _publish(self.client, nsid.LENS, record, rkey)

    def publish_from_lens(
        self,
        lens: Lens[Any, Any],
        *,
        source_schema: str,
        target_schema: str,
        name: str | None = None,
        code_repository: str | None = None,
        code_commit: str | None = None,
        description: str | None = None,
    ) -> str:
        """Publish *lens*, with its functions' name, docstring and, given repository and commit, places in the code.

        >>> LensPublisher(client).publish_from_lens(simplify, source_schema=full_uri, target_schema=simple_uri,
        ...     code_repository="https://github.com/org/repo", code_commit="abc123def")

        Raises as `publish` does.
        """
        getter = putter = None
        if code_repository is not None or code_commit is not None:
            getter = _code("getter", None, code_repository, code_commit, _path_of(lens.getter_function))
            if lens.putter_function is not None:
                putter = _code("putter", None, code_repository, code_commit, _path_of(lens.putter_function))
        record = LensRecord(
            name=name if name is not None else lens.name,
            source_schema=str(source_schema),
            target_schema=str(target_schema),
            description=description if description is not None else inspect.getdoc(lens.getter_function),
            language="python",
            getter_code=getter,
            putter_code=putter,
            created_at=_now(),
        )
        return _publish(self.client, nsid.LENS, record)


def _either(name: str, new: str | None, old: str | None) -> str:
    if (new is None) == (old is None):
        raise RecordError(f"a lens leads from one schema to another: give {name}, once")
    return str(new if new is not None else old)


def _code(
    kind: str, code: Mapping[str, str] | None, repository: str | None, commit: str | None, path: str | None
) -> CodeReference | None:
    if code is None:
        if path is None:
            return None
        code = {"repository": repository or "", "commit": commit or "", "path": path}
    elif path is not None:
        raise RecordError(f"give {kind}_code or {kind}_path, not both")
    missing = [member for member in ("repository", "commit", "path") if not code.get(member)]
    unknown = sorted(code.keys() - _CODE_MEMBERS)
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has no member {', '.join(unknown)}"
        raise RecordError(
            f"the code of the {kind} {wrong}; it is {{repository, commit, path}}, with a path like lenses/a.py:function"
        )
    return CodeReference(**code)


def _path_of(function: Any) -> str:
    """Where the source of *function* is: `transforms/simplify.py:simplify_getter`, relative to its Git repository."""
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        file = Path(inspect.getsourcefile(function) or "").resolve()
    except TypeError:  # built in
        return f"{getattr(function, '__module__', 'unknown')}:{name}"
    root = next((folder for folder in file.parents if (folder / ".git").exists()), None)
    if root is not None:
        return f"{file.relative_to(root).as_posix()}:{name}"
    # Installed, or not under Git: the module says the path within its own tree.
    depth = str(getattr(function, "__module__", "")).count(".") + (file.name == "__init__.py")
    return f"{'/'.join(file.parts[-1 - depth :])}:{name}"


# --- Labels


class LabelPublisher:
    """Publishes labels, names that point to datasets, in the repository of the account of *client*."""

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def publish(
        self, *, name: str, dataset_uri: str, version: str | None = None, description: str | None = None
    ) -> str:
        """Publish a label, like a git tag; the record's AT URI. A newer label of the same name is a newer version.

        >>> LabelPublisher(client).publish(name="digits", dataset_uri=entry.uri, version="1.2.0")
        'at://did:plc:…/ac.foundation.dataset.label/…'

        Raises RecordError, a ValueError, for values that the lexicon forbids, LoginError and NetworkError.
        """
        record = LabelRecord(name, str(AtUri.parse(str(dataset_uri))), version, description, _now())
        return _publish(self.client, nsid.LABEL, record)
