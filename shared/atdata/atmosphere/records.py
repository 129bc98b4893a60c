"""The shapes of every record in the dataset namespace: exact writers, one tolerant reader. No I/O.

A writer writes the first form that can carry the value and refuses what the lexicon forbids. The reader reads every
generation that is on the network and never raises: what it cannot read becomes a default, and a problem in words.
Records and their parts are JSON data in the protocol's form (`{"$link": …}`, `{"$bytes": …}`):
https://atproto.com/specs/data-model#json-representation
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal

from atdata import nsid, syntax
from atdata.errors import RecordError
from atdata.lexicon import MAX_PROBLEMS, Problem, load_lexicons, type_name
from atdata.nsid import Kind

__all__ = [
    "DTYPES",
    "MAX_FIELDS",
    "PRIMITIVES",
    "Array",
    "Blob",
    "Checksum",
    "CodeReference",
    "DatasetRecord",
    "Field",
    "FieldType",
    "HttpShard",
    "LabelRecord",
    "LensRecord",
    "NDArray",
    "Primitive",
    "Reading",
    "Record",
    "Ref",
    "S3Shard",
    "SchemaRecord",
    "Size",
    "Storage",
    "StorageBlobs",
    "StorageExternal",
    "StorageHttp",
    "StorageKind",
    "StorageS3",
    "canonical_dtype",
    "field_summaries",
    "is_dtype",
    "read",
    "read_form",
    "read_value",
    "storage_kind",
]

StorageKind = Literal["external", "blobs", "http", "s3"]
Json = dict[str, Any]

PRIMITIVES: Final = frozenset({"str", "int", "float", "bool", "bytes"})

DTYPES: Final = frozenset(
    {
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
        # Platform-dependent, structured as text or time: legal names, if rarer ones.
        "intp", "uintp", "longdouble", "clongdouble", "float128", "complex256",
        "str", "bytes", "datetime64", "timedelta64",
    }
)  # fmt: skip
"""NumPy's names of element types that an array field may have; see `is_dtype`."""

_DTYPE_CODE = re.compile(
    r"[<>=|]?(?:b1|\?|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SUa][0-9]{1,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)"
    r"|(?:datetime64|timedelta64)\[[0-9]{0,9}[a-zA-Z]{1,2}\]"
)
_DTYPE_KINDS: Final = {
    "b": "bool", "?": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex", "S": "bytes", "a": "bytes",
    "U": "str", "M": "datetime64", "m": "timedelta64",
}  # fmt: skip
_TIME_STEP = re.compile(r"\[([0-9]*)([a-zA-Z]+)\]")

MAX_FIELDS: Final = 1000
"""How many fields a schema may have to be used as a type: no honest sample has more, and work grows with them."""

# Nested arrays deeper than this are an attack, not a dataset.
_MAX_DEPTH = 16
# No honest array is longer, and a hostile one must not cost more than its share of time.
_MAX_ITEMS = 10_000


def is_dtype(name: str) -> bool:
    """True if *name* is an element type that NumPy knows and that needs no pickle.

    >>> is_dtype("float32"), is_dtype("<f4"), is_dtype("datetime64[ns]"), is_dtype("object")
    (True, True, True, False)
    """
    return name in DTYPES or _DTYPE_CODE.fullmatch(name) is not None


def canonical_dtype(name: str) -> str:
    """The one name of all that declare what *name* does; what is no dtype (`is_dtype`) as it is.

    >>> canonical_dtype("<f4"), canonical_dtype(">i8"), canonical_dtype("U12"), canonical_dtype("M8[1ns]")
    ('float32', 'int64', 'str', 'datetime64[ns]')

    Byte order and the length of text are no part of what is declared. NumPy is not asked: what `longdouble` or `intp`
    is depends on the machine, and this must not.
    """
    if name in DTYPES or not is_dtype(name):
        return name
    code = name.lstrip("<>=|")
    step = _TIME_STEP.search(code)
    if step is not None:
        kind = "datetime64" if code.startswith(("M8", "datetime64")) else "timedelta64"
        count = int(step[1] or "1")
        return f"{kind}[{'' if count == 1 else count}{step[2]}]"
    kind = _DTYPE_KINDS[code[0]]
    return f"{kind}{8 * int(code[1:])}" if code[0] in "iufc" else kind


# --- Sample schemas


@dataclass(frozen=True, slots=True)
class Primitive:
    """One value: `str`, `int`, `float`, `bool` or `bytes`."""

    name: str

    def to_record(self) -> Json:
        return {"$type": f"{nsid.FIELD_TYPE}#primitive", "primitive": self.name}


@dataclass(frozen=True, slots=True)
class NDArray:
    """A NumPy array. A shape of None allows any; a 0 in it allows any length of that dimension."""

    dtype: str = "float32"
    shape: tuple[int, ...] | None = None

    def to_record(self) -> Json:
        return _sparse(
            {"$type": f"{nsid.FIELD_TYPE}#ndarray", "dtype": self.dtype, "shape": _list_of(self.shape)},
        )


@dataclass(frozen=True, slots=True)
class Array:
    """A list of values of one type; without `items`, of any."""

    items: FieldType | None = None

    def to_record(self) -> Json:
        return _sparse({"$type": f"{nsid.FIELD_TYPE}#array", "items": _part(self.items)})


@dataclass(frozen=True, slots=True)
class Ref:
    """A nested sample, whose schema is the record at `uri`."""

    uri: str

    def to_record(self) -> Json:
        return {"$type": f"{nsid.FIELD_TYPE}#ref", "ref": self.uri}


FieldType = Primitive | NDArray | Array | Ref


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a sample. The type is None when a record declares one that we do not know."""

    name: str
    type: FieldType | None
    optional: bool = False
    description: str | None = None

    def to_record(self) -> Json:
        return _sparse(
            {
                "name": self.name,
                "fieldType": _part(self.type),
                "optional": self.optional,
                "description": self.description,
            }
        )


@dataclass(frozen=True, slots=True)
class SchemaRecord:
    """A sample schema: what one sample of a dataset holds.

    >>> from datetime import UTC
    >>> schema = SchemaRecord("Digit", "1.0.0", (Field("image", NDArray("uint8")), Field("label", Primitive("int"))),
    ...                       created_at=datetime(2026, 1, 2, tzinfo=UTC))
    >>> schema.to_record()["fields"][1]["fieldType"]["primitive"]
    'int'
    """

    name: str
    version: str
    fields: tuple[Field, ...] = ()
    description: str | None = None
    metadata: Mapping[str, Any] | None = None
    created_at: datetime | None = None

    def to_record(self) -> Json:
        """The record to write. Raises RecordError, a ValueError, that names the field which cannot be written."""
        return _checked(
            nsid.SAMPLE_SCHEMA,
            {
                "name": self.name,
                "version": self.version,
                "fields": _list_of(self.fields),
                "description": self.description,
                "metadata": _plain(self.metadata),
                "createdAt": _written(self.created_at),
            },
        )


# --- Datasets


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest of a shard's bytes. The placeholder algorithm `none` is never kept: such a checksum is None."""

    algorithm: str
    digest: str

    def to_record(self) -> Json:
        return {"algorithm": self.algorithm, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Blob:
    """One shard in the publisher's own repository server, named by the CID of its bytes. `size` in bytes."""

    cid: str
    size: int | None = None
    mime_type: str | None = None
    checksum: Checksum | None = None

    def to_record(self) -> Json:
        """The blob itself, or, as only that form has room for a checksum, the blob wrapped beside its checksum."""
        blob = {"$type": "blob", "ref": {"$link": self.cid}, "mimeType": self.mime_type, "size": self.size}
        return blob if self.checksum is None else {"blob": blob, "checksum": _part(self.checksum)}


@dataclass(frozen=True, slots=True)
class StorageExternal:
    """Shards at WebDataset URLs, which may use brace notation."""

    urls: tuple[str, ...]

    def to_record(self) -> Json:
        return {"$type": nsid.STORAGE_EXTERNAL, "urls": _list_of(self.urls)}


@dataclass(frozen=True, slots=True)
class StorageBlobs:
    """Shards as blobs of the repository that holds the dataset record."""

    blobs: tuple[Blob, ...]

    def to_record(self) -> Json:
        return {"$type": nsid.STORAGE_BLOBS, "blobs": _list_of(self.blobs)}


@dataclass(frozen=True, slots=True)
class HttpShard:
    """One shard at an HTTP address."""

    url: str
    checksum: Checksum | None = None

    def to_record(self) -> Json:
        return {"url": self.url, "checksum": _checksum_or_placeholder(self.checksum)}


@dataclass(frozen=True, slots=True)
class StorageHttp:
    """Shards at HTTP addresses, each with its checksum."""

    shards: tuple[HttpShard, ...]

    def to_record(self) -> Json:
        return {"$type": nsid.STORAGE_HTTP, "shards": _list_of(self.shards)}


@dataclass(frozen=True, slots=True)
class S3Shard:
    """One shard in an S3 bucket."""

    key: str
    checksum: Checksum | None = None

    def to_record(self) -> Json:
        return {"key": self.key, "checksum": _checksum_or_placeholder(self.checksum)}


@dataclass(frozen=True, slots=True)
class StorageS3:
    """Shards in one bucket of S3, or of a service that speaks its protocol at `endpoint`."""

    bucket: str
    shards: tuple[S3Shard, ...]
    region: str | None = None
    endpoint: str | None = None

    def to_record(self) -> Json:
        return _sparse(
            {
                "$type": nsid.STORAGE_S3,
                "bucket": self.bucket,
                "shards": _list_of(self.shards),
                "region": self.region,
                "endpoint": self.endpoint,
            }
        )


Storage = StorageExternal | StorageBlobs | StorageHttp | StorageS3


@dataclass(frozen=True, slots=True)
class Size:
    """How large a dataset is, as far as its publisher says."""

    samples: int | None = None
    bytes: int | None = None
    shards: int | None = None

    def to_record(self) -> Json:
        return _sparse({"samples": self.samples, "bytes": self.bytes, "shards": self.shards})


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A dataset: its name, the schema of its samples, and where its shards are.

    `metadata` is written as bytes, a msgpack map; some records on the network hold a plain object instead.

    >>> from datetime import UTC
    >>> dataset = DatasetRecord("Digits", "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a",
    ...                         StorageExternal(("https://example.com/digits-{00..09}.tar",)),
    ...                         created_at=datetime(2026, 1, 2, tzinfo=UTC))
    >>> dataset.to_record()["createdAt"]
    '2026-01-02T00:00:00.000Z'
    """

    name: str
    schema_ref: str
    storage: Storage | None
    description: str | None = None
    tags: tuple[str, ...] = ()
    license: str | None = None
    size: Size | None = None
    metadata: bytes | Mapping[str, Any] | None = None
    metadata_schema_ref: str | None = None
    content_metadata: Mapping[str, Any] | None = None
    created_at: datetime | None = None

    def to_record(self) -> Json:
        """The record to write. Raises RecordError, a ValueError, that names the field which cannot be written."""
        if self.metadata is not None and not isinstance(self.metadata, bytes):
            given = type_name(self.metadata)
            raise RecordError(f"cannot write this dataset: metadata: must be bytes, not {given}; pack it with msgpack")
        return _checked(
            nsid.DATASET,
            {
                "name": self.name,
                "schemaRef": self.schema_ref,
                "storage": _part(self.storage),
                "description": self.description,
                "tags": _list_of(self.tags) or None,
                "license": self.license,
                "size": _part(self.size),
                "metadata": None if self.metadata is None else _bytes_json(self.metadata),
                "metadataSchemaRef": self.metadata_schema_ref,
                "contentMetadata": _plain(self.content_metadata),
                "createdAt": _written(self.created_at),
            },
        )


# --- Lenses and labels


@dataclass(frozen=True, slots=True)
class CodeReference:
    """Where a function's source is: `path` like `transforms/simplify.py:simplify_getter`. Never fetched, never run."""

    repository: str
    commit: str
    path: str
    branch: str | None = None
    language: str | None = None

    def to_record(self) -> Json:
        return _sparse(
            {
                "repository": self.repository,
                "commit": self.commit,
                "path": self.path,
                "branch": self.branch,
                "language": self.language,
            }
        )


@dataclass(frozen=True, slots=True)
class LensRecord:
    """A lens: a way to see samples of the source schema as samples of the target schema, and to write them back."""

    name: str
    source_schema: str
    target_schema: str
    description: str | None = None
    language: str | None = None
    metadata: Mapping[str, Any] | None = None
    getter_code: CodeReference | None = None
    putter_code: CodeReference | None = None
    source_schema_version: str | None = None
    target_schema_version: str | None = None
    created_at: datetime | None = None

    def to_record(self) -> Json:
        """The record to write. Raises RecordError, a ValueError, that names the field which cannot be written."""
        return _checked(
            nsid.LENS,
            {
                "name": self.name,
                "sourceSchema": self.source_schema,
                "targetSchema": self.target_schema,
                "description": self.description,
                "language": self.language,
                "metadata": _plain(self.metadata),
                "getterCode": _part(self.getter_code),
                "putterCode": _part(self.putter_code),
                "sourceSchemaVersion": self.source_schema_version,
                "targetSchemaVersion": self.target_schema_version,
                "createdAt": _written(self.created_at),
            },
        )


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """A name that points to a dataset, like a git tag. Many labels of one name are versions of it."""

    name: str
    dataset_uri: str
    version: str | None = None
    description: str | None = None
    created_at: datetime | None = None

    def to_record(self) -> Json:
        """The record to write. Raises RecordError, a ValueError, that names the field which cannot be written."""
        return _checked(
            nsid.LABEL,
            {
                "name": self.name,
                "datasetUri": self.dataset_uri,
                "version": self.version,
                "description": self.description,
                "createdAt": _written(self.created_at),
            },
        )


Record = SchemaRecord | DatasetRecord | LensRecord | LabelRecord


# --- What others ask of a record

_STORAGE_KINDS: Final[Mapping[type, StorageKind]] = {
    StorageExternal: "external",
    StorageBlobs: "blobs",
    StorageHttp: "http",
    StorageS3: "s3",
}


def storage_kind(value: DatasetRecord | Storage | None) -> StorageKind | None:
    """How a dataset's shards are stored; None when its record does not say so in a way that we know.

    >>> storage_kind(StorageExternal(("https://example.com/0.tar",)))
    'external'
    """
    storage = value.storage if isinstance(value, DatasetRecord) else value
    return _STORAGE_KINDS.get(type(storage))


def field_summaries(schema: SchemaRecord) -> tuple[str, ...]:
    """Each field in a word, for search: its name, its type, and an array's dtype.

    >>> field_summaries(SchemaRecord("S", "1.0.0", (Field("image", NDArray("uint8")), Field("tags", Array()))))
    ('image:ndarray:uint8', 'tags:array')
    """
    return tuple(f"{field.name}:{_summary(field.type)}" for field in schema.fields)


def _summary(field_type: FieldType | None) -> str:
    match field_type:
        case Primitive(name):
            return name
        case NDArray(dtype):
            return f"ndarray:{canonical_dtype(dtype)}"
        case Array():
            return "array"
        case Ref():
            return "ref"
        case None:
            return "unknown"


# --- Writing


def _checked(collection: str, members: Json) -> Json:
    record = _sparse({"$type": collection, **members})
    # What our own reader would complain about is not written.
    reading = read(collection, record)
    if reading.problems:
        raise RecordError(f"cannot write this {reading.kind}: {'; '.join(reading.problems)}")
    return record


def _sparse(members: Json) -> Json:
    return {name: value for name, value in members.items() if value is not None}


def _part(value: Any) -> Any:
    """A part's record; anything that is no part of ours as it is, for the check to name it."""
    return value.to_record() if hasattr(value, "to_record") else value


def _list_of(values: Any) -> Any:
    # Not list(values) whatever it is: a string given for a tuple of strings would fall apart into letters.
    return [_part(value) for value in values] if isinstance(values, tuple | list) else values


def _plain(mapping: Mapping[str, Any] | None) -> Any:
    return dict(mapping) if isinstance(mapping, Mapping) else mapping


def _written(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    try:
        return syntax.format_datetime(moment)
    except (ValueError, OverflowError, AttributeError) as error:
        raise RecordError(f"cannot write this record: createdAt: {error}") from None


def _bytes_json(data: bytes) -> Json:
    return {"$bytes": base64.b64encode(data).rstrip(b"=").decode()}


def _checksum_or_placeholder(checksum: Checksum | None) -> Json:
    # Other readers require the member; this is what publishers write when they have none.
    return checksum.to_record() if checksum is not None else {"algorithm": "none", "digest": ""}


# --- Reading


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a record, and what was wrong with it.

    `kind` and `value` are None for a collection that we do not know, and only for those.
    """

    kind: Kind | None
    value: Record | None
    problems: tuple[str, ...] = ()


def read(collection: str, record: Any) -> Reading:
    """Read a record of any generation, as far as it can be read. Never raises, whatever *record* is.

    >>> reading = read("ac.foundation.dataset.label", {"$type": "ac.foundation.dataset.label", "name": "mnist",
    ...                                                "datasetUri": 5, "createdAt": "2026-01-02T00:00:00.000Z"})
    >>> reading.kind, reading.value.name, reading.value.dataset_uri
    ('label', 'mnist', '')
    >>> reading.problems
    ('datasetUri: must be a string, not an integer',)
    """
    kind, value, found = _read_form(collection, record)
    if kind is None or not isinstance(record, dict):
        return Reading(kind, value, tuple(map(str, found)))
    problems: list[Problem] = []
    if collection.startswith(nsid.PREFIX):
        problems += load_lexicons().validate_record(collection, _first_form(kind, record))
    # The first word on a place, the lexicon's if it has one, is enough.
    for problem in found:
        if not any(_is_within(problem.path, said.path) for said in problems):
            problems.append(problem)
    return Reading(kind, value, tuple(map(str, problems[:MAX_PROBLEMS])))


def read_form(collection: str, record: Any) -> Reading:
    """As `read`, at a fraction of its price: the problems are those of reading it, and the lexicon is not asked.

    >>> read_form("ac.foundation.dataset.lens", None).problems
    ('must be an object, not null',)
    """
    kind, value, problems = _read_form(collection, record)
    return Reading(kind, value, tuple(map(str, problems)))


def _read_form(collection: str, record: Any) -> tuple[Kind | None, Record | None, Sequence[Problem]]:
    kind = nsid.kind_of(collection) if isinstance(collection, str) else None
    if kind is None:
        return None, None, ()
    notes = _Notes(record if isinstance(record, dict) else {})
    if notes.members.get("$type") != collection:
        notes.add("$type", f"must be {collection}")
    value = _READERS[kind](notes)
    if not isinstance(record, dict):
        return kind, value, [Problem("", f"must be an object, not {type_name(record)}")]
    return kind, value, notes.problems


def read_value(collection: str, record: Any) -> Record | None:
    """The value that `read` finds, at a fraction of its price, for who has no use for the problems. Never raises.

    >>> read_value("ac.foundation.dataset.label", {"name": "mnist"}).name
    'mnist'
    """
    kind = nsid.kind_of(collection) if isinstance(collection, str) else None
    return None if kind is None else _READERS[kind](_Notes(record if isinstance(record, dict) else {}))


def _is_within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def _first_form(kind: Kind, record: Json) -> Json:
    """*record* with the older forms that the lexicon language has no words for replaced, for the lexicon's check.

    Those are metadata as an object instead of bytes, and blobs wrapped beside a checksum.
    """
    if kind != "dataset":
        return record
    metadata, storage = record.get("metadata"), record.get("storage")
    if isinstance(metadata, dict) and "$bytes" not in metadata:
        record = {name: value for name, value in record.items() if name != "metadata"}
    blobs = storage.get("blobs") if isinstance(storage, dict) else None
    if isinstance(storage, dict) and isinstance(blobs, list) and any(map(_is_wrapped, blobs)):
        record = {**record, "storage": {**storage, "blobs": [b["blob"] if _is_wrapped(b) else b for b in blobs]}}
    return record


def _is_wrapped(blob: Any) -> bool:
    return isinstance(blob, dict) and "blob" in blob and blob.get("$type") != "blob"


class _Notes:
    """One object of a record under reading: takes members out of it and notes what is wrong with them."""

    __slots__ = ("members", "outer", "place", "problems")

    def __init__(self, members: Json, place: str | int = "", outer: _Notes | None = None) -> None:
        self.members = members
        self.place = place
        self.outer = outer
        self.problems: list[Problem] = [] if outer is None else outer.problems

    def path(self, *places: str | int) -> str:
        """Where *places* is in the record; put together only when something is wrong there."""
        notes: _Notes | None = self
        while notes is not None:
            places = (notes.place, *places)
            notes = notes.outer
        path = ""
        for place in places:
            path += f"[{place}]" if isinstance(place, int) else f".{place[:100]}" if path and place else place[:100]
        return path

    def add(self, key: str | int, message: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(self.path(key), message))

    def require(self, key: str) -> bool:
        if self.members.get(key) is not None:
            return True
        self.add(key, "is required")
        return False

    def inner(self, key: str | int, value: Any) -> _Notes:
        """The notes of one object further in; of an empty one, that nobody hears, when *value* is no object."""
        if isinstance(value, dict):
            return _Notes(value, key, self)
        self.add(key, f"must be an object, not {type_name(value)}")
        return _Notes({})

    def maybe(self, key: str) -> _Notes | None:
        """The notes of the object *key*, or None if there is none."""
        value = self.members.get(key)
        if value is None or isinstance(value, dict):
            return None if value is None else _Notes(value, key, self)
        self.add(key, f"must be an object, not {type_name(value)}")
        return None

    def mapping(self, key: str) -> Json | None:
        notes = self.maybe(key)
        return None if notes is None else notes.members

    def each(self, key: str) -> Iterator[tuple[int, Any, _Notes]]:
        """Each item of the array *key*, with its index and the notes to which the index belongs.

        Of an array that is too long, the first items, and one that cannot be read in place of all others.
        """
        value = self.members.get(key)
        if isinstance(value, list):
            if len(value) > _MAX_ITEMS:
                self.add(key, f"must have at most {_MAX_ITEMS:,} items to be read (has {len(value):,})")
            array = _Notes({}, key, self)
            for i, item in enumerate(value[:_MAX_ITEMS]):
                yield i, item, array
            if len(value) > _MAX_ITEMS:
                yield _MAX_ITEMS, None, _Notes({})  # what is wrong with it has been said
        elif value is not None:
            self.add(key, f"must be an array, not {type_name(value)}")

    def objects(self, key: str) -> Iterator[_Notes]:
        """The notes of each object in the array *key*."""
        return (array.inner(i, item) for i, item, array in self.each(key))

    def text(self, key: str) -> str | None:
        value = self.members.get(key)
        return None if value is None else self.as_text(key, value)

    def required_text(self, key: str) -> str:
        return (self.text(key) or "") if self.require(key) else ""

    def as_text(self, key: str | int, value: Any) -> str | None:
        if not isinstance(value, str):
            self.add(key, f"must be a string, not {type_name(value)}")
            return None
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # JSON can smuggle in half of a surrogate pair; no database takes it
                self.add(key, "must be valid Unicode")
                return None
        return value

    def at_uri(self, key: str) -> str | None:
        value = self.text(key)
        if value is not None and not syntax.is_at_uri(value):
            self.add(key, "must be an AT URI")
        return value

    def required_at_uri(self, key: str) -> str:
        return (self.at_uri(key) or "") if self.require(key) else ""

    def as_count(self, key: str | int, value: Any) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        self.add(key, "must be an integer, 0 or more")
        return None

    def count(self, key: str) -> int | None:
        value = self.members.get(key)
        return None if value is None else self.as_count(key, value)

    def moment(self, key: str) -> datetime | None:
        text = self.required_text(key)
        if not text:
            return None
        try:
            return syntax.parse_datetime(text)
        except ValueError as error:
            self.add(key, str(error))
            return None

    def semver(self, key: str) -> str:
        version = self.required_text(key)
        if version and not syntax.is_semver(version):
            self.add(key, "must be a semantic version such as 1.0.0")
        return version


def _read_schema(notes: _Notes) -> SchemaRecord:
    return SchemaRecord(
        name=notes.required_text("name"),
        version=notes.semver("version"),
        fields=_read_fields(notes),
        description=notes.text("description"),
        metadata=notes.mapping("metadata"),
        created_at=notes.moment("createdAt"),
    )


def _read_fields(notes: _Notes) -> tuple[Field, ...]:
    if notes.members.get("fields") is not None or notes.members.get("schema") is None:
        notes.require("fields")
        fields = tuple(_read_field(inner) for inner in notes.objects("fields"))
    elif notes.members.get("schemaType", "jsonSchema") != "jsonSchema":
        notes.add("schemaType", "is not a form of schema that we know")
        return ()
    else:
        fields = _read_json_schema(notes.inner("schema", notes.members["schema"]))
    seen: set[str] = set()
    for i, field in enumerate(fields):
        if field.name in seen:
            notes.add(f"fields[{i}].name", f"{field.name[:50]!r} is used twice")
        seen.add(field.name)
    return fields


def _read_field(notes: _Notes) -> Field:
    optional = notes.members.get("optional", False)
    if not isinstance(optional, bool):
        notes.add("optional", f"must be a boolean, not {type_name(optional)}")
        optional = False
    return Field(
        name=notes.required_text("name"),
        type=_read_field_type(notes, "fieldType"),
        optional=optional,
        description=notes.text("description"),
    )


def _read_field_type(outer: _Notes, key: str, depth: int = 0) -> FieldType | None:
    if depth > _MAX_DEPTH:
        outer.add(key, "is nested too deeply")
        return None
    if not outer.require(key):
        return None
    notes = outer.inner(key, outer.members[key])
    match _local_name(notes.members.get("$type")):
        case "schemaType#primitive":
            name = notes.required_text("primitive")
            if name and name not in PRIMITIVES:
                notes.add("primitive", f"must be one of {', '.join(sorted(PRIMITIVES))}, not {name[:50]!r}")
            return Primitive(name)
        case "schemaType#ndarray":
            return _read_ndarray(notes)
        case "schemaType#array":
            if notes.members.get("items") is None:
                return Array()
            return Array(_read_field_type(notes, "items", depth + 1))
        case "schemaType#ref":
            return Ref(notes.required_at_uri("ref"))
        case _:
            notes.add("$type", "is not a field type that we know")
            return None


def _read_ndarray(notes: _Notes) -> NDArray:
    dtype = notes.text("dtype")
    if dtype is not None and not is_dtype(dtype):
        notes.add("dtype", f"{dtype[:50]!r} is not the name of a NumPy dtype that can be read without pickle")
    if notes.members.get("shape") is None:
        return NDArray(dtype or "float32")
    # A length that cannot be read becomes 0, which means any.
    return NDArray(dtype or "float32", tuple(array.as_count(i, n) or 0 for i, n, array in notes.each("shape")))


# --- Reading the later shape of schemas: JSON Schema, draft 7

_NDARRAY_REF = re.compile(r"atdata-ndarray-bytes/1\.[0-9]+(?:\.[0-9]+)?#/\$defs/ndarray\Z")
_JSON_PRIMITIVES: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}


def _read_json_schema(notes: _Notes) -> tuple[Field, ...]:
    notes.require("properties")
    properties = notes.maybe("properties")
    if properties is None:
        return ()
    if len(properties.members) > _MAX_ITEMS:
        notes.add("properties", f"must have at most {_MAX_ITEMS:,} to be read (has {len(properties.members):,})")
    required = {name for _, item, names in notes.each("required") if (name := names.as_text(_, item)) is not None}
    names = islice(properties.members, _MAX_ITEMS)
    return tuple(_read_property(properties, name, name in required) for name in names)


def _read_property(properties: _Notes, name: str, is_required: bool) -> Field:
    notes = properties.inner(name, properties.members[name])
    field_type, is_nullable = _read_json_type(notes)
    return Field(
        name=properties.as_text(name, name) or "",
        type=field_type,
        optional=is_nullable or not is_required,
        description=notes.text("description"),
    )


def _read_json_type(notes: _Notes, depth: int = 0) -> tuple[FieldType | None, bool]:
    """The type that a property's JSON Schema describes, and whether null is allowed beside it."""
    schema = notes.members
    if depth > _MAX_DEPTH:
        notes.add("items", "is nested too deeply")
        return None, False
    reference = notes.text("$ref")
    if reference is not None:
        if _NDARRAY_REF.search(reference):
            return _read_ndarray(notes), False
        if syntax.is_at_uri(reference):
            return Ref(reference), False
        notes.add("$ref", f"{reference[:100]!r} is not a type that we know")
        return None, False
    # `T | None` comes as anyOf [T, null] or as type [T, "null"].
    for key in ("anyOf", "oneOf"):
        if key in schema:
            choices = list(notes.objects(key))
            options = [choice for choice in choices if choice.members.get("type") != "null"]
            if len(options) == 1:
                field_type, is_nullable = _read_json_type(options[0], depth + 1)
                return field_type, is_nullable or len(choices) > 1
            notes.add(key, "is a choice of types, which a field cannot have")
            return None, False
    name, is_nullable = schema.get("type"), False
    if isinstance(name, list):
        names = [one for one in name if one != "null"]
        is_nullable = len(names) < len(name)
        name = names[0] if len(names) == 1 else None
    if name == "array":
        if schema.get("items") is None:
            return Array(), is_nullable
        return Array(_read_json_type(notes.inner("items", schema["items"]), depth + 1)[0]), is_nullable
    if name == "string" and (schema.get("contentEncoding") == "base64" or schema.get("format") in ("byte", "binary")):
        return Primitive("bytes"), is_nullable
    if isinstance(name, str) and name in _JSON_PRIMITIVES:
        return Primitive(_JSON_PRIMITIVES[name]), is_nullable
    notes.add("type", "is not a type that a field can have")
    return None, is_nullable


# --- Reading datasets


def _read_dataset(notes: _Notes) -> DatasetRecord:
    size = notes.maybe("size")
    tags = (array.as_text(i, tag) for i, tag, array in notes.each("tags"))
    return DatasetRecord(
        name=notes.required_text("name"),
        schema_ref=notes.required_at_uri("schemaRef"),
        storage=_read_storage(notes),
        description=notes.text("description"),
        tags=tuple(tag for tag in tags if tag is not None),
        license=notes.text("license"),
        size=None if size is None else Size(size.count("samples"), size.count("bytes"), size.count("shards")),
        metadata=_read_metadata(notes),
        metadata_schema_ref=notes.at_uri("metadataSchemaRef"),
        content_metadata=notes.mapping("contentMetadata"),
        created_at=notes.moment("createdAt"),
    )


def _read_metadata(notes: _Notes) -> bytes | Json | None:
    value = notes.members.get("metadata")
    if value is None:
        return None
    if not isinstance(value, dict) or ("$bytes" in value and not isinstance(value["$bytes"], str)):
        notes.add("metadata", "must be bytes or an object")
        return None
    if "$bytes" not in value:
        return value
    text = value["$bytes"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        notes.add("metadata", "must be bytes in base64")
        return None


def _read_storage(outer: _Notes) -> Storage | None:
    if not outer.require("storage"):
        return None
    notes = outer.inner("storage", outer.members["storage"])
    match _local_name(notes.members.get("$type")):
        case "storageExternal":
            notes.require("urls")
            # What cannot be read stays as an empty URL or CID, here and below, and is not left out: a dataset that
            # lost a shard must not read as if it were whole. So does one shard for all those that are too many.
            return StorageExternal(tuple(array.as_text(i, url) or "" for i, url, array in notes.each("urls")))
        case "storageBlobs":
            notes.require("blobs")
            return StorageBlobs(tuple(_read_blob(blob) for blob in notes.objects("blobs")))
        case "storageHttp":
            notes.require("shards")
            return StorageHttp(
                tuple(HttpShard(shard.required_text("url"), _read_checksum(shard)) for shard in notes.objects("shards"))
            )
        case "storageS3":
            notes.require("shards")
            return StorageS3(
                bucket=notes.required_text("bucket"),
                shards=tuple(
                    S3Shard(shard.required_text("key"), _read_checksum(shard)) for shard in notes.objects("shards")
                ),
                region=notes.text("region"),
                endpoint=notes.text("endpoint"),
            )
        case _:
            notes.add("$type", "is not a kind of storage that we know")
            return None


def _read_blob(notes: _Notes) -> Blob:
    blob = notes.inner("blob", notes.members["blob"]) if _is_wrapped(notes.members) else notes
    link = blob.members.get("ref")
    cid = link.get("$link") if isinstance(link, dict) else None
    if not isinstance(cid, str) or not syntax.is_cid(cid):
        blob.add("ref", 'must be a link such as {"$link": CID}')
        cid = ""
    return Blob(cid, blob.count("size"), blob.text("mimeType"), _read_checksum(notes))


def _read_checksum(outer: _Notes) -> Checksum | None:
    notes = outer.maybe("checksum")
    if notes is None:
        # What cannot be read is no promise that there is nothing to check: no reader knows an algorithm without a name.
        return None if outer.members.get("checksum") is None else Checksum("", "")
    algorithm, digest = notes.required_text("algorithm"), notes.text("digest") or ""
    is_placeholder = algorithm == "none" and notes.members.get("digest") in (None, "")
    return None if is_placeholder else Checksum(algorithm, digest)


def _read_lens(notes: _Notes) -> LensRecord:
    return LensRecord(
        name=notes.required_text("name"),
        source_schema=notes.required_at_uri("sourceSchema"),
        target_schema=notes.required_at_uri("targetSchema"),
        description=notes.text("description"),
        language=notes.text("language"),
        metadata=notes.mapping("metadata"),
        getter_code=_read_code(notes, "getterCode"),
        putter_code=_read_code(notes, "putterCode"),
        source_schema_version=notes.text("sourceSchemaVersion"),
        target_schema_version=notes.text("targetSchemaVersion"),
        created_at=notes.moment("createdAt"),
    )


def _read_code(outer: _Notes, key: str) -> CodeReference | None:
    notes = outer.maybe(key)
    if notes is None:
        return None
    return CodeReference(
        repository=notes.required_text("repository"),
        commit=notes.required_text("commit"),
        path=notes.required_text("path"),
        branch=notes.text("branch"),
        language=notes.text("language"),
    )


def _read_label(notes: _Notes) -> LabelRecord:
    return LabelRecord(
        name=notes.required_text("name"),
        dataset_uri=notes.required_at_uri("datasetUri"),
        version=notes.text("version"),
        description=notes.text("description"),
        created_at=notes.moment("createdAt"),
    )


_READERS: Final[Mapping[Kind, Callable[[_Notes], Record]]] = {
    "schema": _read_schema,
    "dataset": _read_dataset,
    "lens": _read_lens,
    "label": _read_label,
}


def _local_name(type_: Any) -> str | None:
    """The name of a `$type` within either namespace: `storageHttp`, `schemaType#array`."""
    if isinstance(type_, str):
        for prefix in (nsid.PREFIX, nsid.SUCCESSOR_PREFIX):
            if type_.startswith(prefix):
                return type_.removeprefix(prefix).removesuffix("#main")
    return None
