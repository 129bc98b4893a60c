"""Own the writing of schemas, datasets, lenses and labels: what is given becomes an exact record in our repository."""

from __future__ import annotations

import inspect
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from atdata import codec, nsid
from atdata.atmosphere.blobs import TAR, StoredBlob, forget_blobs, read_blob, release_blobs, stored_blob
from atdata.atmosphere.client import AtmosphereClient, StoredRecord, check_blob
from atdata.atmosphere.load import DatasetLoader, SchemaLoader
from atdata.atmosphere.records import (
    Array,
    CodeReference,
    DatasetRecord,
    FieldType,
    LabelRecord,
    LensRecord,
    NDArray,
    Primitive,
    SchemaRecord,
    Size,
    Storage,
    StorageBlobs,
    StorageExternal,
)
from atdata.atmosphere.uri import AtUri, BlobUri
from atdata.errors import (
    ArgumentError,
    LensError,
    MissingShardError,
    NetworkError,
    NotFoundError,
    RecordError,
    SampleError,
    SchemaError,
    ShardError,
    SourceError,
    redacted,
)
from atdata.html import type_text
from atdata.lens import Lens
from atdata.lexicon import load_lexicons
from atdata.network import StatusError
from atdata.sample import DictSample, sample_type_of
from atdata.schema import type_to_schema
from atdata.shards import iter_samples
from atdata.sources import expand, literal, scheme_of

if TYPE_CHECKING:
    from atdata.dataset import Dataset

__all__ = ["DatasetPublisher", "LabelPublisher", "LensPublisher", "SchemaPublisher", "check_dataset"]


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
        sample_type_of(sample_type)  # raises
        record = self._record(sample_type, (), name, version, description, metadata)
        _warn_of_others(record, SchemaLoader(self.client).iter_all())
        return _publish(self.client, nsid.SAMPLE_SCHEMA, record, rkey)

    def find_or_publish(self, sample_type: type[Any], *, version: str = "1.0.0") -> str:
        """The AT URI of the newest schema of ours with this name, version and fields; published if there is none."""
        return self._find_or_publish(sample_type, (), version)

    def _find_or_publish(self, sample_type: type[Any], outer: tuple[type[Any], ...], version: str) -> str:
        record = self._record(sample_type, outer, None, version, None, None)
        there = SchemaLoader(self.client).list_all()
        for known in there:
            value = known.reading.value
            if isinstance(value, SchemaRecord) and not known.problems and _is_same(value, record):
                return known.uri
        _warn_of_others(record, there)
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


def _warn_of_others(record: SchemaRecord, there: Iterable[StoredRecord]) -> None:
    """Warn when a schema of the same name and version has other fields."""
    for known in there:
        value = known.reading.value
        if isinstance(value, SchemaRecord) and not known.problems and _is_other(value, record):
            warnings.warn(
                f"there is another schema {record.name} {record.version} already, {known.uri}, with other fields; "
                "give what has changed another version",
                stacklevel=3,
            )
            return


def _is_other(one: SchemaRecord, other: SchemaRecord) -> bool:
    return (one.name, one.version) == (other.name, other.version) and one.fields != other.fields


# --- What must be there already


def _existing(client: AtmosphereClient, uri: str, kind: Literal["schema", "dataset"]) -> StoredRecord | None:
    """The record at *uri*; None when its server does not answer, which is no reason to refuse what speaks of it.

    Raises NotFoundError when there is none, and UriError, a ValueError, when it is of another kind.
    """
    loader = SchemaLoader(client) if kind == "schema" else DatasetLoader(client)
    try:
        return loader.get(str(uri))
    except NotFoundError as e:
        how = "publish_schema" if kind == "schema" else "insert_dataset"
        problem = str(e).partition("; ")[0]
        raise NotFoundError(f"{problem}; check it, or publish the {kind} first, with {how}") from None
    except NetworkError:
        return None


def _check_fit(schema: StoredRecord | None, sample_type: type[Any]) -> None:
    """Raise SchemaError when samples of *sample_type* lack what *schema* says of them."""
    value = None if schema is None else schema.reading.value
    if schema is None or not isinstance(value, SchemaRecord) or sample_type is DictSample:
        return
    try:
        own = {field.name: field for field in type_to_schema(sample_type, refs=lambda _: _SOME_SCHEMA).fields}
    except SchemaError:  # no schema can express the type, so there is nothing to compare
        return
    for field in value.fields:
        mine = own.get(field.name)
        if mine is None and not field.optional:
            problem = f"lacks its field {field.name}"
        elif mine is not None and not _fits(mine.type, field.type):
            problem = f"has {type_text(mine.type)} in {field.name}, where it has {type_text(field.type)}"
        else:
            continue
        raise SchemaError(
            f"{schema.uri}: {sample_type.__name__} {problem}; leave the schema out to publish that of "
            f"{sample_type.__name__}, or give the one of these samples"
        )


def _fits(mine: FieldType | None, theirs: FieldType | None) -> bool:
    """Whether a field of type *mine* can be read as *theirs*; what is not known well enough fits."""
    match mine, theirs:
        case (None, _) | (_, None):
            return True
        case Primitive(one), Primitive(other):
            return one == other or (one, other) == ("int", "float")
        case NDArray(one), NDArray(other):
            # The default is also what is written for an array of any dtype.
            return one == other or NDArray().dtype in (one, other)
        case Array(one), Array(other):
            return _fits(one, other)
        case _:
            return type(mine) is type(theirs)


def _count_samples(name: str, blob: bytes | Path) -> int:
    """How many samples the shard has. Raises ShardError when it is none, ArgumentError for other objects."""
    check_blob(name, blob)
    try:
        with blob.open("rb") if isinstance(blob, Path) else io.BytesIO(blob) as stream:
            count = sum(1 for _ in iter_samples(stream, str(blob) if isinstance(blob, Path) else name))
    except FileNotFoundError:
        raise MissingShardError(str(blob), "there is no such file") from None
    if not count:
        raise ShardError(name, "is a shard without samples; nothing is published")
    return count


def check_dataset(ds: object) -> None:
    """Raise ArgumentError when *ds* is no dataset."""
    from atdata.dataset import Dataset
    from atdata.load import DatasetDict

    if isinstance(ds, Dataset):
        return
    if isinstance(ds, DatasetDict):
        advice = f"publish a split of it: {', '.join(f'splits[{name!r}]' for name in ds)}"
    else:
        shown = repr(ds) if isinstance(ds, str) else "…"
        advice = f"open it as one: atdata.Dataset[YourType]({shown})"
    raise ArgumentError(f"a dataset is published, not a {type(ds).__name__}; {advice}")


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
        before. Without *metadata*, those of *ds* are. Raises SourceError, a ValueError, for shards that others do not
        find by their URLs: in a service of its own, or, outside of a network of one's own, files. Else raises as
        `SchemaPublisher.publish` does.
        """
        check_dataset(ds)
        about = _About(name, description, tags, license, ds.metadata if metadata is None else metadata)
        urls = _urls_of(ds)
        shards = self._shards_of(urls)
        schema_uri = self.schema_of(ds, schema_uri, auto_publish_schema, schema_version)
        self.warn_of_namesakes(name)
        return self._write_urls(about, schema_uri, urls, shards, rkey)

    def schema_of(
        self, ds: Dataset[Any], schema_uri: str | None, auto_publish: bool = True, version: str = "1.0.0"
    ) -> str:
        """The AT URI of the schema of *ds*: the one given, else that of its type, which is published if need be.

        Raises NotFoundError when the one given does not exist, and SchemaError when *ds* has other fields.
        """
        if schema_uri is not None:
            _check_fit(_existing(self.client, schema_uri, "schema"), ds.sample_type)
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
        SourceError, a ValueError, for URLs that are not opened or have a password in them, NotFoundError for blobs that
        the server does not have, and else as `publish` does.
        """
        about = _About(name, description, tags, license, metadata)
        shards = self._shards_of(urls)
        _existing(self.client, schema_uri, "schema")
        self.warn_of_namesakes(name)
        return self._write_urls(about, str(AtUri.parse(str(schema_uri))), urls, shards, rkey)

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

        The server may know the type of the bytes better than *mime_type*. Raises ShardError, before anything is
        uploaded, for what is no tar archive with samples, StatusError for blobs that are too
        large for it, and else as `publish` does.
        """
        about = _About(name, description, tags, license, metadata)
        if isinstance(blobs, bytes | str | Path):
            raise SourceError("blobs is a list of shards, not one")
        counts = [_count_samples(f"blobs[{i}]", blob) for i, blob in enumerate(blobs)]
        _existing(self.client, schema_uri, "schema")
        self.warn_of_namesakes(name)
        schema_uri = str(AtUri.parse(str(schema_uri)))
        stored = [
            StoredBlob(read_blob(self.client.upload_blob(blob, mime_type)), samples)
            for blob, samples in zip(blobs, counts, strict=True)
        ]
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

    def warn_of_namesakes(self, name: str) -> None:
        """Warn when the account has a dataset of this name already."""
        for known in DatasetLoader(self.client).iter_all():
            if known.get("name") == name:
                warnings.warn(
                    f"there is a dataset {name!r} already, {known.uri}, and this makes another one; "
                    "delete_record removes it, and a label says which one is meant",
                    stacklevel=3,
                )
                return

    def _shards_of(self, urls: Sequence[str]) -> list[str]:
        """What *urls* stand for; what nobody would open is not published."""
        if isinstance(urls, str):
            raise SourceError("urls is a list of URLs, not one")
        shards = expand(*urls)
        for shard in shards:
            _check_address(shard, self.client.trusts_private_hosts)
        return shards

    def _write_urls(
        self, about: _About, schema_uri: str, urls: Sequence[str], shards: list[str], rkey: str | None
    ) -> str:
        own = f"at://{self.client.did}/blob/"
        if not shards or not all(shard.startswith(own) for shard in shards):
            return self._write(about, schema_uri, StorageExternal(tuple(urls)), Size(shards=len(shards)), rkey)
        stored = [stored_blob(self.client, BlobUri.parse(shard)) for shard in shards]
        try:
            uri = self._write(about, schema_uri, *_blob_storage(stored), rkey)
        except StatusError as e:
            if e.error != "BlobNotFound":
                raise
            forget_blobs(self.client, [one.blob for one in stored])
            raise NotFoundError(f"{e.message}: the server has forgotten it; call write_shards again") from e
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
        if metadata is not None and not isinstance(metadata, Mapping):
            raise RecordError(f"metadata is a mapping such as {{'split': 'train'}}, not {type(metadata).__name__}")
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
    is_elsewhere = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    is_s3 = any(shard.startswith("s3://") for shard in ds.list_shards())
    if not getattr(ds.source, "locates_shards", True) or (is_s3 and is_elsewhere):
        raise SourceError(f"{ds.source!r}: is in a service that s3:// URLs do not name to others; {_REFUSED}")
    url = getattr(ds.source, "url", None)
    # Several URLs come as alternatives in braces: a record has room for each.
    if isinstance(url, str) and not url.startswith("{"):
        return [url]
    return [literal(one) for one in ds.list_shards()]


_REFUSED: Final = "publish https:// URLs with publish_with_urls, or publish through an index with a data store"


def _check_address(shard: str, is_own_network: bool) -> None:
    """Raise SourceError for the URL of a shard by which others do not find it, or would learn a password."""
    if scheme_of(shard) in ("", "file") and not is_own_network:
        raise SourceError(f"{shard[:200]}: is a file of this machine, which nobody else can open; {_REFUSED}")
    if "://" in shard and "@" in re.split(r"[/?#\\]", shard.partition("://")[2], maxsplit=1)[0]:
        raise SourceError(f"{redacted(shard)[:200]}: has a password in it, which everybody could read; {_REFUSED}")


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
        source = _either("source_schema", source_schema, source_schema_uri)
        target = _either("target_schema", target_schema, target_schema_uri)
        record = LensRecord(
            name=name,
            source_schema=source,
            target_schema=target,
            description=description,
            getter_code=_code("getter", getter_code, code_repository, code_commit, getter_path),
            putter_code=_code("putter", putter_code, code_repository, code_commit, putter_path),
            created_at=_now(),
        )
        record.to_record()  # raises before anyone is asked
        for uri in (source, target):
            _existing(self.client, uri, "schema")
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
        if not isinstance(lens, Lens):
            raise LensError(f"{getattr(lens, '__name__', lens)!s} is no lens; make one of a function: @atdata.lens")
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
        record.to_record()  # raises before anyone is asked
        for uri in (source_schema, target_schema):
            _existing(self.client, uri, "schema")
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
    if not isinstance(code, Mapping):
        raise RecordError(
            f"{kind}_code is a mapping {{repository, commit, path}}, not {code!r}; "
            "its path is like lenses/a.py:function"
        )
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
        record.to_record()  # raises before anyone is asked
        _existing(self.client, dataset_uri, "dataset")
        return _publish(self.client, nsid.LABEL, record)
