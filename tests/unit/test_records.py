"""Records as we write them, and as every generation of publishers wrote them."""

import base64
import copy
import doctest
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata import nsid
from atdata.atmosphere import records
from atdata.atmosphere.records import (
    Array,
    Blob,
    Checksum,
    CodeReference,
    DatasetRecord,
    Field,
    HttpShard,
    LabelRecord,
    LensRecord,
    NDArray,
    Primitive,
    Reading,
    Ref,
    S3Shard,
    SchemaRecord,
    Size,
    StorageBlobs,
    StorageExternal,
    StorageHttp,
    StorageS3,
    canonical_dtype,
    field_summaries,
    is_dtype,
    read,
    storage_kind,
)
from atdata.errors import RecordError
from atdata.lexicon import MAX_PROBLEMS

CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"
SCHEMA_URI = "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a"
DATASET_URI = "at://did:plc:abc123/ac.foundation.dataset.record/3jzfcijpj2z2a"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
WRITTEN_WHEN = "2026-01-02T03:04:05.678Z"
TYPE = "ac.foundation.dataset.schemaType"

# --- What to generate

texts = st.text(max_size=50)
names = st.text(min_size=1, max_size=50)
maybe_texts = st.none() | texts
uris = st.sampled_from([SCHEMA_URI, DATASET_URI, "at://alice.example.com/a.b.c/self"])
moments = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 12, 31),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-8))]),
)
data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8).map("k".__add__), inner, max_size=4)
    ),
    max_leaves=8,
)
maybe_objects = st.none() | st.dictionaries(st.text(max_size=8).map("k".__add__), data, max_size=4)

field_types = st.recursive(
    st.builds(Primitive, st.sampled_from(sorted(records.PRIMITIVES)))
    | st.builds(
        NDArray,
        st.sampled_from(sorted(records.DTYPES)),
        st.none() | st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    )
    | st.builds(Ref, uris)
    | st.just(Array()),
    lambda inner: st.builds(Array, inner),
    max_leaves=5,
)
schemas = st.builds(
    SchemaRecord,
    name=names,
    version=st.sampled_from(["1.0.0", "0.1.2-rc.1+build", "10.20.30"]),
    fields=st.lists(
        st.builds(Field, names, field_types, st.booleans(), maybe_texts), max_size=5, unique_by=lambda f: f.name
    ).map(tuple),
    description=maybe_texts,
    metadata=maybe_objects,
    created_at=moments,
)

checksums = st.none() | st.builds(Checksum, st.sampled_from(["sha256", "blake3"]), names)
storages = st.one_of(
    st.builds(StorageExternal, st.lists(names, min_size=1, max_size=4).map(tuple)),
    st.builds(
        StorageBlobs,
        st.lists(
            st.builds(Blob, st.just(CID), st.integers(0, 2**50), st.just("application/x-tar"), checksums),
            min_size=1,
            max_size=4,
        ).map(tuple),
    ),
    st.builds(
        StorageHttp,
        st.lists(st.builds(HttpShard, st.just("https://example.com/0.tar"), checksums), min_size=1, max_size=4).map(
            tuple
        ),
    ),
    st.builds(
        StorageS3,
        names,
        st.lists(st.builds(S3Shard, names, checksums), min_size=1, max_size=4).map(tuple),
        maybe_texts,
        maybe_texts,
    ),
)
counts = st.none() | st.integers(0, 2**63 - 1)
datasets = st.builds(
    DatasetRecord,
    name=names,
    schema_ref=uris,
    storage=storages,
    description=maybe_texts,
    tags=st.lists(texts, max_size=30).map(tuple),
    license=maybe_texts,
    size=st.none() | st.builds(Size, counts, counts, counts),
    metadata=st.none() | st.binary(max_size=100),
    metadata_schema_ref=st.none() | uris,
    content_metadata=maybe_objects,
    created_at=moments,
)
codes = st.none() | st.builds(CodeReference, texts, texts, texts, maybe_texts, maybe_texts)
lenses = st.builds(
    LensRecord,
    name=names,
    source_schema=uris,
    target_schema=uris,
    description=maybe_texts,
    language=st.none() | st.sampled_from(["python", "rust"]),
    metadata=maybe_objects,
    getter_code=codes,
    putter_code=codes,
    source_schema_version=maybe_texts,
    target_schema_version=maybe_texts,
    created_at=moments,
)
labels = st.builds(
    LabelRecord, name=names, dataset_uri=uris, version=maybe_texts, description=maybe_texts, created_at=moments
)

VALUES = {
    nsid.SAMPLE_SCHEMA: schemas,
    nsid.DATASET: datasets,
    nsid.LENS: lenses,
    nsid.LABEL: labels,
}

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.text(max_size=5)
            | st.sampled_from(
                ["$type", "$bytes", "$link", "$ref", "blob", "ref", "type", "anyOf", "items", "properties"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def places(value, path=()):
    """The path of every member and item of a record."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def damaged_records(draw):
    """A collection and a right record of it in which some parts were replaced by junk or taken out."""
    collection = draw(st.sampled_from(sorted(VALUES)))
    record = copy.deepcopy(draw(st.sampled_from(list(ODD.values())) | VALUES[collection].map(lambda v: v.to_record())))
    collection = draw(st.sampled_from(sorted(nsid.KINDS)))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(sorted(places(record), key=repr)))
        part = record
        for key in path[:-1]:
            part = part[key]
        if draw(st.booleans()):
            part[path[-1]] = draw(junk)
        else:
            del part[path[-1]]
        if not record:
            break
    return collection, record


# --- Writing


@pytest.mark.parametrize("collection", sorted(VALUES))
@given(data=st.data())
def test_round_trip(collection, data):
    """What is written reads back as the same value, and our own reader has nothing to say about it."""
    value = data.draw(VALUES[collection])
    record = value.to_record()
    assert record["$type"] == collection
    assert read(collection, record) == Reading(nsid.kind_of(collection), value)


def test_schema_is_written_in_the_first_form():
    """A schema is written with the members, in the order and the shapes that the format lists."""
    schema = SchemaRecord(
        name="ImageSample",
        version="1.0.0",
        fields=(
            Field("image", NDArray("uint8", (3, 0, 0)), description="RGB"),
            Field("embedding", NDArray()),
            Field("label", Primitive("str"), optional=True),
            Field("tags", Array(Primitive("str"))),
            Field("anything", Array()),
            Field("parent", Ref(SCHEMA_URI)),
        ),
        description="An image.",
        metadata={"author": "me"},
        created_at=WHEN,
    )
    assert schema.to_record() == {
        "$type": "ac.foundation.dataset.sampleSchema",
        "name": "ImageSample",
        "version": "1.0.0",
        "fields": [
            {
                "name": "image",
                "fieldType": {"$type": f"{TYPE}#ndarray", "dtype": "uint8", "shape": [3, 0, 0]},
                "optional": False,
                "description": "RGB",
            },
            {"name": "embedding", "fieldType": {"$type": f"{TYPE}#ndarray", "dtype": "float32"}, "optional": False},
            {"name": "label", "fieldType": {"$type": f"{TYPE}#primitive", "primitive": "str"}, "optional": True},
            {
                "name": "tags",
                "fieldType": {"$type": f"{TYPE}#array", "items": {"$type": f"{TYPE}#primitive", "primitive": "str"}},
                "optional": False,
            },
            {"name": "anything", "fieldType": {"$type": f"{TYPE}#array"}, "optional": False},
            {"name": "parent", "fieldType": {"$type": f"{TYPE}#ref", "ref": SCHEMA_URI}, "optional": False},
        ],
        "description": "An image.",
        "metadata": {"author": "me"},
        "createdAt": WRITTEN_WHEN,
    }


def a_blob(cid=CID, size=10, **more):
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": "application/x-tar", "size": size, **more}


def test_dataset_is_written_in_the_first_form():
    """A dataset is written with the members and the shapes that the format lists; metadata as bytes without padding."""
    dataset = DatasetRecord(
        name="Digits",
        schema_ref=SCHEMA_URI,
        storage=StorageBlobs((Blob(CID, 10, "application/x-tar"),)),
        description="Ten of them.",
        tags=("images", "classification"),
        license="MIT",
        size=Size(samples=10, bytes=0),
        metadata=b"\x81\xa1a\x01",
        created_at=WHEN,
    )
    assert dataset.to_record() == {
        "$type": "ac.foundation.dataset.record",
        "name": "Digits",
        "schemaRef": SCHEMA_URI,
        "storage": {"$type": "ac.foundation.dataset.storageBlobs", "blobs": [a_blob()]},
        "description": "Ten of them.",
        "tags": ["images", "classification"],
        "license": "MIT",
        "size": {"samples": 10, "bytes": 0},
        "metadata": {"$bytes": "gaFhAQ"},
        "createdAt": WRITTEN_WHEN,
    }
    small = DatasetRecord("Digits", SCHEMA_URI, StorageExternal(("d-{0..9}.tar",)), created_at=WHEN).to_record()
    assert list(small) == ["$type", "name", "schemaRef", "storage", "createdAt"]
    assert small["storage"] == {"$type": "ac.foundation.dataset.storageExternal", "urls": ["d-{0..9}.tar"]}


def test_lens_and_label_are_written_in_the_first_form():
    """Lenses and labels are written with the members and the shapes that the format lists."""
    code = CodeReference("https://example.com/repo", "abc123", "simplify.py:getter")
    lens = LensRecord("simplify", SCHEMA_URI, SCHEMA_URI, getter_code=code, language="python", created_at=WHEN)
    assert lens.to_record() == {
        "$type": "ac.foundation.dataset.lens",
        "name": "simplify",
        "sourceSchema": SCHEMA_URI,
        "targetSchema": SCHEMA_URI,
        "language": "python",
        "getterCode": {"repository": "https://example.com/repo", "commit": "abc123", "path": "simplify.py:getter"},
        "createdAt": WRITTEN_WHEN,
    }
    assert LabelRecord("mnist", DATASET_URI, "1.0", "First.", WHEN).to_record() == {
        "$type": "ac.foundation.dataset.label",
        "name": "mnist",
        "datasetUri": DATASET_URI,
        "version": "1.0",
        "description": "First.",
        "createdAt": WRITTEN_WHEN,
    }


def schema_of(*fields, **more):
    return SchemaRecord(**{"name": "S", "version": "1.0.0", "fields": fields, "created_at": WHEN, **more})


def dataset_of(**more):
    storage = StorageExternal(("https://example.com/0.tar",))
    return DatasetRecord(**{"name": "D", "schema_ref": SCHEMA_URI, "storage": storage, "created_at": WHEN, **more})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (schema_of(name=""), "cannot write this schema: name: must not be empty"),
        (schema_of(name="x" * 101), "name: must be at most 100 graphemes (has 101)"),
        (schema_of(name=None), "name: is required"),
        (schema_of(name=5), "name: must be a string, not an integer"),
        (schema_of(version="1.0"), "version: must be a semantic version such as 1.0.0"),
        (schema_of(description="x" * 5001), "description: must be at most 5000 graphemes (has 5001)"),
        (schema_of(metadata={"rate": 0.5}), "metadata: must not hold a fraction"),
        (schema_of(metadata="x"), "metadata: must be an object, not a string"),
        (schema_of(created_at=None), "createdAt: is required"),
        (schema_of(created_at=datetime(2026, 1, 2)), "createdAt: 2026-01-02 00:00:00 has no time zone"),
        (schema_of(created_at="2026-01-02T00:00:00Z"), "createdAt: "),
        (schema_of(fields="xy"), "fields: must be an array, not a string"),
        (schema_of("x"), "fields[0]: must be an object, not a string"),
        (schema_of(Field("a", None)), "fields[0].fieldType: is required"),
        (schema_of(Field("", Array())), "fields[0].name: must not be empty"),
        (schema_of(Field("a", Array()), Field("a", Array())), "fields[1].name: 'a' is used twice"),
        (schema_of(Field("a", Primitive("decimal"))), "fields[0].fieldType.primitive: must be one of bool, bytes"),
        (schema_of(Field("a", NDArray("object"))), "fields[0].fieldType.dtype: 'object' is not the name"),
        (schema_of(Field("a", NDArray(shape=(-1,)))), "fields[0].fieldType.shape[0]: must be at least 0 (is -1)"),
        (schema_of(Field("a", Ref("x"))), "fields[0].fieldType.ref: must be a valid at-uri (is 'x')"),
        (schema_of(Field("a", Array(Ref("x")))), "fields[0].fieldType.items.ref: must be a valid at-uri"),
        (dataset_of(name="x" * 201), "cannot write this dataset: name: must be at most 200 graphemes (has 201)"),
        (dataset_of(schema_ref="x"), "schemaRef: must be a valid at-uri"),
        (dataset_of(storage=None), "storage: is required"),
        (dataset_of(storage=StorageExternal(())), "storage.urls: must not be empty"),
        (dataset_of(storage=StorageExternal(("",))), "storage.urls[0]: must not be empty"),
        (dataset_of(storage=StorageExternal("http://x")), "storage.urls: must be an array, not a string"),
        (dataset_of(storage=StorageBlobs((Blob("x", 1, "a/b"),))), "storage.blobs[0].ref: must be a link"),
        (dataset_of(storage=StorageBlobs((Blob(CID),))), "storage.blobs[0].mimeType: must be a string, not null"),
        (dataset_of(storage=StorageBlobs((Blob(CID, -1, "a/b"),))), "storage.blobs[0].size: must be a number"),
        (dataset_of(storage=StorageHttp((HttpShard("x"),))), "storage.shards[0].url: must be a valid uri"),
        (dataset_of(tags=("t",) * 31), "tags: must have at most 30 items (has 31)"),
        (dataset_of(tags=("x" * 151,)), "tags[0]: must be at most 150 graphemes (has 151)"),
        (dataset_of(tags="abc"), "tags: must be an array, not a string"),
        (dataset_of(license="x" * 201), "license: must be at most 200 graphemes"),
        (dataset_of(size=Size(samples=-1)), "size.samples: must be at least 0 (is -1)"),
        (dataset_of(size=Size(samples=1.5)), "size.samples: must be an integer, not a fraction"),
        (dataset_of(metadata=b"x" * 100_001), "metadata: must be at most 100000 bytes (has 100001)"),
        (dataset_of(metadata={"a": 1}), "metadata: must be bytes, not an object; pack it with msgpack"),
        (dataset_of(content_metadata={"a": b"x"}), "contentMetadata: must not hold raw bytes"),
        (
            LensRecord("x" * 101, SCHEMA_URI, SCHEMA_URI, created_at=WHEN),
            "cannot write this lens: name: must be at most 100 graphemes",
        ),
        (LensRecord("l", "", SCHEMA_URI, created_at=WHEN), "sourceSchema: must be a valid at-uri (is '')"),
        (LensRecord("l", SCHEMA_URI, None, created_at=WHEN), "targetSchema: is required"),
        (
            LensRecord("l", SCHEMA_URI, SCHEMA_URI, getter_code=CodeReference("r", None, "p"), created_at=WHEN),
            "getterCode.commit: is required",
        ),
        (LabelRecord("l", "x", created_at=WHEN), "cannot write this label: datasetUri: must be a valid at-uri"),
        (LabelRecord("l", DATASET_URI, "v" * 51, created_at=WHEN), "version: must be at most 50 graphemes"),
    ],
)
def test_writers_refuse(value, message):
    """What the lexicon forbids, or our own reader would not understand, is not written; the error names the field."""
    with pytest.raises(RecordError) as caught:
        value.to_record()
    assert message in str(caught.value)


# --- Reading every generation

JSON_SCHEMA = {
    "$type": "ac.foundation.dataset.schema#jsonSchemaFormat",
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "image": {
            "$ref": "https://foundation.ac/schemas/atdata-ndarray-bytes/1.0.0#/$defs/ndarray",
            "dtype": "uint8",
            "shape": [3, 0],
            "description": "RGB",
        },
        "vector": {"$ref": "https://other.example/atdata-ndarray-bytes/1.1.0#/$defs/ndarray"},
        "caption": {"type": "string"},
        "count": {"type": "integer"},
        "score": {"type": ["number", "null"]},
        "is_real": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "raw": {"type": "string", "contentEncoding": "base64"},
        "blob": {"type": "string", "format": "byte"},
        "words": {"type": "array", "items": {"type": "string"}},
        "any": {"type": "array"},
        "parent": {"$ref": SCHEMA_URI},
    },
    "required": ["image", "vector", "caption", "score", "is_real", "words", "any", "parent"],
    "arrayFormatVersions": {"ndarrayBytes": "1.0.0"},
}
JSON_FIELDS = (
    Field("image", NDArray("uint8", (3, 0)), description="RGB"),
    Field("vector", NDArray("float32")),
    Field("caption", Primitive("str")),
    Field("count", Primitive("int"), optional=True),
    Field("score", Primitive("float"), optional=True),
    Field("is_real", Primitive("bool"), optional=True),
    Field("raw", Primitive("bytes"), optional=True),
    Field("blob", Primitive("bytes"), optional=True),
    Field("words", Array(Primitive("str"))),
    Field("any", Array()),
    Field("parent", Ref(SCHEMA_URI)),
)


def json_schema_record(collection, **more):
    return {
        "$type": collection,
        "name": "ImageSample",
        "version": "1.0.0",
        "schemaType": "jsonSchema",
        "schema": JSON_SCHEMA,
        "createdAt": WRITTEN_WHEN,
        **more,
    }


def dataset_record(storage, collection=nsid.DATASET, **more):
    return {
        "$type": collection,
        "name": "D",
        "schemaRef": SCHEMA_URI,
        "storage": storage,
        "createdAt": WRITTEN_WHEN,
        **more,
    }


SHA = {"algorithm": "sha256", "digest": "ab12"}
PLACEHOLDER = {"algorithm": "none", "digest": ""}

ODD = {
    "json schema": json_schema_record(nsid.SCHEMA),
    "successor schema": json_schema_record(nsid.SUCCESSOR_SCHEMA, atdataSchemaVersion=1),
    "first shape, later collection": {**schema_of(Field("a", Array(NDArray()))).to_record(), "$type": nsid.SCHEMA},
    "http": dataset_record({"$type": nsid.STORAGE_HTTP, "shards": [{"url": "https://x/0.tar", "checksum": SHA}]}),
    "s3": dataset_record({"$type": nsid.STORAGE_S3, "bucket": "b", "shards": [{"key": "k", "checksum": PLACEHOLDER}]}),
    "wrapped": dataset_record({"$type": nsid.STORAGE_BLOBS, "blobs": [{"blob": a_blob(), "checksum": SHA}]}),
    "object metadata": dataset_record({"$type": nsid.STORAGE_EXTERNAL, "urls": ["u"]}, metadata={"a": {"b": [1]}}),
    "lens": LensRecord(
        "l", SCHEMA_URI, SCHEMA_URI, getter_code=CodeReference("r", "c", "p"), created_at=WHEN
    ).to_record(),
}


@given(damaged_records() | st.tuples(st.sampled_from(sorted(nsid.KINDS)), junk))
def test_reading_never_raises(damaged):
    """Whatever stands in a record, it is read: a value of the right kind with defaults, and short problems in words."""
    collection, record = damaged
    before = copy.deepcopy(record)
    reading = read(collection, record)
    assert repr(record) == repr(before)
    assert reading.kind == nsid.kind_of(collection)
    value = reading.value
    assert len(reading.problems) <= MAX_PROBLEMS
    assert all(isinstance(problem, str) and len(problem) < 1000 for problem in reading.problems)
    match value:
        case SchemaRecord():
            assert all(isinstance(text, str) for text in (value.name, value.version, *field_summaries(value)))
            "".join(field_summaries(value)).encode()
        case DatasetRecord():
            assert all(isinstance(text, str) for text in (value.name, value.schema_ref, *value.tags))
            "".join((value.name, value.description or "", *value.tags)).encode()
            assert (storage_kind(value) is None) is (value.storage is None)
            if isinstance(value.storage, StorageExternal):
                assert all(isinstance(url, str) for url in value.storage.urls)
        case LensRecord():
            assert all(isinstance(text, str) for text in (value.name, value.source_schema, value.target_schema))
        case LabelRecord():
            assert all(isinstance(text, str) for text in (value.name, value.dataset_uri))
        case _:
            pytest.fail(f"no value of kind {reading.kind}")


@given(st.sampled_from(sorted(VALUES)).flatmap(lambda c: st.tuples(st.just(c), VALUES[c])))
def test_damage_is_reported(pair):
    """A record that lacks a required member has a problem that names it."""
    collection, value = pair
    record = value.to_record()
    for name in ("name", "createdAt", "$type"):
        lacking = {key: member for key, member in record.items() if key != name}
        assert any(problem.startswith(f"{name}: ") for problem in read(collection, lacking).problems)


@pytest.mark.parametrize("collection", [nsid.SCHEMA, nsid.SAMPLE_SCHEMA, nsid.SUCCESSOR_SCHEMA])
def test_json_schema_shape(collection):
    """The later, JSON-Schema shape of a schema reads as the same fields, in every collection that has schemas."""
    reading = read(collection, json_schema_record(collection, description="d", atdataSchemaVersion=1))
    assert reading == Reading(
        "schema", SchemaRecord("ImageSample", "1.0.0", JSON_FIELDS, description="d", created_at=WHEN)
    )


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"$ref": "https://x/atdata-ndarray-bytes/2.0.0#/$defs/ndarray"}, "$ref: 'https://x/atdata-ndarray-bytes/2.0"),
        ({"$ref": "#/definitions/Other"}, "$ref: '#/definitions/Other' is not a type that we know"),
        ({"$ref": 5}, "$ref: must be a string, not an integer"),
        ({"type": "object"}, "type: is not a type that a field can have"),
        ({}, "type: is not a type that a field can have"),
        ({"type": ["string", "integer"]}, "type: is not a type that a field can have"),
        ({"type": {"a": 1}}, "type: is not a type that a field can have"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "anyOf: is a choice of types"),
        ({"oneOf": 5}, "oneOf: must be an array, not an integer"),
        ({"type": "array", "items": {"type": "null"}}, "items.type: is not a type that a field can have"),
        (True, "must be an object, not a boolean"),
    ],
)
@pytest.mark.parametrize("collection", [nsid.SCHEMA, nsid.SUCCESSOR_SCHEMA])
def test_json_schemas_that_are_no_field(collection, schema, problem):
    """A property that is no field type keeps its name, has no type, and the problem says where and why."""
    body = {"$type": f"{collection}#jsonSchemaFormat", "properties": {"a": schema, "b": {"type": "string"}}}
    reading = read(collection, json_schema_record(collection, schema=body))
    assert [(field.name, field.optional) for field in reading.value.fields] == [("a", True), ("b", True)]
    assert reading.value.fields[0].type in (None, Array())
    assert reading.value.fields[1].type == Primitive("str")
    separator = ": " if schema is True else "."
    assert any(text.startswith(f"schema.properties.a{separator}{problem}") for text in reading.problems)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, "fields: is required"),
        ({"fields": None}, "fields: "),
        ({"fields": {}}, "fields: must be an array, not an object"),
        ({"schema": 5}, "schema: must be an object"),
        ({"schema": {"$type": "x.y.z"}}, "schema.properties: is required"),
        ({"schemaType": "protobuf", "schema": {"$type": "x.y.z"}}, "schemaType: is not a form of schema that we know"),
    ],
)
def test_schemas_without_fields(members, problem):
    """A schema in no shape that we know has no fields, and the problem says why."""
    record = {"$type": nsid.SCHEMA, "name": "S", "version": "1.0.0", "createdAt": WRITTEN_WHEN, **members}
    reading = read(nsid.SCHEMA, record)
    assert reading.value == SchemaRecord("S", "1.0.0", (), created_at=WHEN)
    assert any(text.startswith(problem) for text in reading.problems)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ({"name": "a", "fieldType": {"$type": f"{TYPE}#ndarray"}}, Field("a", NDArray("float32")), None),
        (
            {"name": "a", "fieldType": {"$type": "science.alt.dataset.schemaType#primitive", "primitive": "int"}},
            Field("a", Primitive("int")),
            None,
        ),
        ({"name": "a", "fieldType": {"$type": f"{TYPE}#tensor"}}, Field("a", None), "fieldType.$type: is not a field"),
        ({"name": "a", "fieldType": {"primitive": "int"}}, Field("a", None), "fieldType: must be an object with a"),
        ({"name": "a", "fieldType": "int"}, Field("a", None), "fieldType: must be an object with a $type"),
        ({"name": "a"}, Field("a", None), "fieldType: is required"),
        (
            {"name": "a", "fieldType": {"$type": f"{TYPE}#ndarray", "dtype": "quaternion", "shape": [1, "n", -1]}},
            Field("a", NDArray("quaternion", (1, 0, 0))),
            "fieldType.shape[1]: must be an integer, not a string",
        ),
        (
            {"name": "a", "fieldType": {"$type": f"{TYPE}#primitive", "primitive": "date"}, "optional": "yes"},
            Field("a", Primitive("date")),
            "optional: must be a boolean, not a string",
        ),
        ({"fieldType": {"$type": f"{TYPE}#array", "items": 5}}, Field("", Array()), "name: is required"),
    ],
)
def test_odd_fields(field, value, problem):
    """An odd field is read as far as it goes; what it lacks becomes a default and a problem."""
    record = {**schema_of().to_record(), "fields": [field]}
    reading = read(nsid.SAMPLE_SCHEMA, record)
    assert reading.value.fields == (value,)
    found = any(text.startswith(f"fields[0].{problem}") for text in reading.problems)
    assert found if problem else reading.problems == ()


@pytest.mark.parametrize("namespace", [nsid.NAMESPACE, nsid.SUCCESSOR])
@pytest.mark.parametrize("collection", [nsid.DATASET, nsid.SUCCESSOR_DATASET])
@pytest.mark.parametrize(
    ("kind", "storage", "value"),
    [
        ("external", {"urls": ["https://x/{0..9}.tar"]}, StorageExternal(("https://x/{0..9}.tar",))),
        (
            "blobs",
            {"blobs": [a_blob(), {"blob": a_blob(), "checksum": SHA}, {"blob": a_blob(), "checksum": PLACEHOLDER}]},
            StorageBlobs(
                (
                    Blob(CID, 10, "application/x-tar"),
                    Blob(CID, 10, "application/x-tar", Checksum("sha256", "ab12")),
                    Blob(CID, 10, "application/x-tar"),
                )
            ),
        ),
        (
            "http",
            {"shards": [{"url": "https://x/0", "checksum": SHA}, {"url": "https://x/1", "checksum": PLACEHOLDER}]},
            StorageHttp((HttpShard("https://x/0", Checksum("sha256", "ab12")), HttpShard("https://x/1"))),
        ),
        (
            "s3",
            {"bucket": "b", "shards": [{"key": "k", "checksum": SHA}, {"key": "l"}], "endpoint": "https://s3"},
            StorageS3("b", (S3Shard("k", Checksum("sha256", "ab12")), S3Shard("l")), endpoint="https://s3"),
        ),
    ],
)
def test_every_storage(namespace, collection, kind, storage, value):
    """Every kind of storage is read, in both namespaces; a checksum of algorithm `none` is none."""
    name = {"external": "External", "blobs": "Blobs", "http": "Http", "s3": "S3"}[kind]
    record = dataset_record({"$type": f"{namespace}.storage{name}", **storage}, collection)
    reading = read(collection, record)
    assert reading.problems == ()
    assert reading.value.storage == value
    assert storage_kind(reading.value) == storage_kind(value) == kind


@pytest.mark.parametrize(
    ("storage", "value", "problem"),
    [
        ({"$type": "ac.foundation.dataset.storageTape"}, None, "storage.$type: is not a kind of storage that we know"),
        ({"urls": ["u"]}, None, "storage: must be an object with a $type"),
        ("https://x/0.tar", None, "storage: must be an object with a $type"),
        (None, None, "storage: "),
        ({"$type": nsid.STORAGE_EXTERNAL}, StorageExternal(()), "storage.urls: is required"),
        (
            {"$type": nsid.STORAGE_EXTERNAL, "urls": ["a", 5, "c"]},
            StorageExternal(("a", "", "c")),
            "storage.urls[1]: must be a string, not an integer",
        ),
        (
            {"$type": nsid.STORAGE_BLOBS, "blobs": [{"blob": {"$type": "blob"}}, 5]},
            StorageBlobs((Blob(""), Blob(""))),
            "storage.blobs[1]: must be a blob, not an integer",
        ),
        (
            {"$type": nsid.STORAGE_BLOBS, "blobs": [a_blob(cid="?", size=-5)]},
            StorageBlobs((Blob("", None, "application/x-tar"),)),
            "storage.blobs[0].ref: must be a link",
        ),
        (
            {"$type": nsid.STORAGE_HTTP, "shards": [{"checksum": 5}]},
            StorageHttp((HttpShard("", Checksum("", "")),)),
            "storage.shards[0].url: is required",
        ),
        (
            {"$type": nsid.STORAGE_S3, "shards": [{"key": "k", "checksum": {"algorithm": "md5"}}]},
            StorageS3("", (S3Shard("k", Checksum("md5", "")),)),
            "storage.bucket: is required",
        ),
    ],
)
def test_odd_storage(storage, value, problem):
    """Odd storage keeps its number of shards, with an empty address where there is none to read, and says so."""
    reading = read(nsid.DATASET, dataset_record(storage))
    assert reading.value.storage == value
    assert any(text.startswith(problem) for text in reading.problems)


@pytest.mark.parametrize(
    ("checksum", "expected"),
    [
        (None, None),
        ({"algorithm": "none", "digest": ""}, None),
        ({"algorithm": "none"}, None),
        ({"algorithm": "sha256", "digest": "ab"}, Checksum("sha256", "ab")),
        ({"algorithm": "none", "digest": "ab"}, Checksum("none", "ab")),
        ({"algorithm": "none", "digest": 5}, Checksum("none", "")),
        ({"algorithm": "sha256"}, Checksum("sha256", "")),
        ({"algorithm": 5, "digest": "ab"}, Checksum("", "ab")),
        ({"algorithm": "", "digest": ""}, Checksum("", "")),
        ({"digest": "ab"}, Checksum("", "ab")),
        ({}, Checksum("", "")),
        ("sha256:ab", Checksum("", "")),
        (["x"], Checksum("", "")),
        (0, Checksum("", "")),
    ],
)
def test_only_the_placeholder_is_no_checksum(checksum, expected):
    """A checksum that cannot be read stays one, of an algorithm that nobody knows: it does not mean no check."""
    shards = [{"url": "https://x/0", "checksum": checksum}]
    reading = read(nsid.DATASET, dataset_record({"$type": nsid.STORAGE_HTTP, "shards": shards}))
    assert reading.value.storage.shards[0].checksum == expected


@pytest.mark.parametrize("collection", [nsid.DATASET, nsid.SUCCESSOR_DATASET])
@pytest.mark.parametrize(
    ("metadata", "value", "problem"),
    [
        ({"$bytes": "gaFhAQ"}, b"\x81\xa1a\x01", None),
        ({"$bytes": "gaFhAQ=="}, b"\x81\xa1a\x01", None),
        ({"$bytes": ""}, b"", None),
        ({"a": {"b": [1, None]}}, {"a": {"b": [1, None]}}, None),
        ({}, {}, None),
        ({"$bytes": "?"}, None, "metadata: must be bytes in base64"),
        ({"$bytes": "gaFhAQ=é"}, None, "metadata: must be bytes in base64"),
        ({"$bytes": 5}, None, "metadata: must be bytes"),
        ("abc", None, "metadata: must be bytes"),
        ([1], None, "metadata: must be bytes"),
    ],
)
def test_metadata_is_bytes_or_an_object(collection, metadata, value, problem):
    """Metadata is read as bytes or as a plain object; anything else is absent, with a problem."""
    record = dataset_record({"$type": nsid.STORAGE_EXTERNAL, "urls": ["u"]}, collection, metadata=metadata)
    reading = read(collection, record)
    assert reading.value.metadata == value
    found = any(text.startswith(problem or "") for text in reading.problems)
    assert found if problem else reading.problems == ()


def test_metadata_may_be_long():
    """Metadata over the limit is read all the same, and is a problem."""
    packed = {"$bytes": base64.b64encode(b"x" * 100_001).decode()}
    storage = {"$type": nsid.STORAGE_EXTERNAL, "urls": ["u"]}
    reading = read(nsid.DATASET, dataset_record(storage, metadata=packed))
    assert reading.value.metadata == b"x" * 100_001
    assert reading.problems == ("metadata: must be at most 100000 bytes (has 100001)",)


def test_successor_records():
    """Records of the successor namespace are read into the same values; what they add is no problem."""
    entry = dataset_record(
        {"$type": "science.alt.dataset.storageHttp", "shards": [{"url": "https://x/0.tar", "checksum": SHA}]},
        nsid.SUCCESSOR_DATASET,
        metadata={"a": 1},
        manifests=[{"header": a_blob()}],
    )
    assert read(nsid.SUCCESSOR_DATASET, entry) == Reading(
        "dataset",
        DatasetRecord(
            "D",
            SCHEMA_URI,
            StorageHttp((HttpShard("https://x/0.tar", Checksum("sha256", "ab12")),)),
            metadata={"a": 1},
            created_at=WHEN,
        ),
    )
    lens = {
        "$type": nsid.SUCCESSOR_LENS,
        "name": "l",
        "sourceSchema": SCHEMA_URI,
        "targetSchema": SCHEMA_URI,
        "sourceSchemaVersion": "1.0.0",
        "targetSchemaVersion": "2.0.0",
        "getterCode": {"repository": "r", "commit": "c", "path": "p", "language": "rust"},
        "createdAt": WRITTEN_WHEN,
    }
    assert read(nsid.SUCCESSOR_LENS, lens) == Reading(
        "lens",
        LensRecord(
            "l",
            SCHEMA_URI,
            SCHEMA_URI,
            getter_code=CodeReference("r", "c", "p", language="rust"),
            source_schema_version="1.0.0",
            target_schema_version="2.0.0",
            created_at=WHEN,
        ),
    )
    label = {"$type": nsid.SUCCESSOR_LABEL, "name": "l", "datasetUri": "nowhere", "createdAt": "today"}
    assert read(nsid.SUCCESSOR_LABEL, label) == Reading(
        "label",
        LabelRecord("l", "nowhere"),
        ("datasetUri: must be an AT URI", "createdAt: 'today' is not a datetime such as 2024-02-29T12:00:00.000Z"),
    )


@pytest.mark.parametrize(
    ("created", "moment", "is_problem"),
    [
        ("2026-01-02T03:04:05.678Z", WHEN, False),
        ("2026-01-02T05:04:05.678+02:00", WHEN, False),
        ("2026-01-02T03:04:05.678901234Z", WHEN.replace(microsecond=678901), False),
        ("0000-01-01T00:00:00Z", None, True),
        ("2026-02-30T00:00:00Z", None, True),
        ("2026-01-02", None, True),
        (1767323045, None, True),
        ("", None, True),
        (None, None, True),
    ],
)
def test_creation_times(created, moment, is_problem):
    """A creation time is read into UTC; one that cannot be read is None and a problem."""
    reading = read(nsid.LABEL, {**ODD["lens"], "$type": nsid.LABEL, "datasetUri": DATASET_URI, "createdAt": created})
    assert reading.value.created_at == moment
    assert any(text.startswith("createdAt: ") for text in reading.problems) is is_problem


@pytest.mark.parametrize("record", [None, [], "x", 5, True])
@pytest.mark.parametrize("collection", [nsid.DATASET, nsid.SUCCESSOR_DATASET])
def test_records_that_are_no_objects(collection, record):
    """A record that is no object reads as an empty one, with one problem."""
    reading = read(collection, record)
    assert reading.value == DatasetRecord("", "", None)
    assert len(reading.problems) == 1
    assert reading.problems[0].startswith("must be an object, not ")


@pytest.mark.parametrize("collection", ["ac.foundation.dataset.new", "app.bsky.feed.post", "", None, ["x"]])
def test_unknown_collections(collection):
    """A collection that we do not know is not judged."""
    assert read(collection, {"$type": collection, "name": 5}) == Reading(None, None, ())


def test_one_problem_for_one_place():
    """What the lexicon says about a place is not said again in other words."""
    reading = read(nsid.LABEL, {"$type": nsid.LABEL, "name": 5, "datasetUri": "x", "createdAt": 5})
    assert [text.partition(":")[0] for text in reading.problems] == ["name", "datasetUri", "createdAt"]


def test_broken_unicode_is_not_passed_on():
    """Half of a surrogate pair, which no database takes, is read as nothing and is a problem."""
    storage = {"$type": nsid.STORAGE_EXTERNAL, "urls": ["u"]}
    record = dataset_record(storage, name="\ud800", tags=["\ud800", "ok"], description="\ud800")
    reading = read(nsid.DATASET, record)
    assert (reading.value.name, reading.value.tags, reading.value.description) == ("", ("ok",), None)
    assert "tags[0]: must be valid Unicode" in reading.problems


def test_nesting_is_bounded():
    """Types nested without end are cut off with a problem, in both shapes of a schema."""
    field_type: dict = {"$type": f"{TYPE}#array"}
    json_type: dict = {"type": "array"}
    for _ in range(50_000):
        field_type = {"$type": f"{TYPE}#array", "items": field_type}
        json_type = {"type": "array", "items": json_type}
    first = read(nsid.SAMPLE_SCHEMA, {**schema_of().to_record(), "fields": [{"name": "a", "fieldType": field_type}]})
    later = read(
        nsid.SUCCESSOR_SCHEMA, json_schema_record(nsid.SUCCESSOR_SCHEMA, schema={"properties": {"a": json_type}})
    )
    for reading in (first, later):
        assert reading.value.fields[0].name == "a"
        assert any("is nested too deeply" in problem for problem in reading.problems)


def test_problems_are_bounded():
    """However much is wrong, there are at most MAX_PROBLEMS problems."""
    for collection in (nsid.SAMPLE_SCHEMA, nsid.SUCCESSOR_SCHEMA):
        assert len(read(collection, {"$type": collection, "fields": [5] * 1000}).problems) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("type_", "key", "item", "address"),
    [
        (nsid.STORAGE_EXTERNAL, "urls", "https://example.com/0.tar", ""),
        (nsid.STORAGE_BLOBS, "blobs", {"$type": "blob", "ref": {"$link": CID}, "mimeType": "a/b", "size": 1}, "cid"),
        (nsid.STORAGE_HTTP, "shards", {"url": "https://example.com/0.tar"}, "url"),
        (nsid.STORAGE_S3, "shards", {"key": "0.tar"}, "key"),
    ],
)
def test_too_many_shards_never_read_as_a_whole_dataset(type_, key, item, address):
    """Beyond so many items none is read: the record has problems, and a shard with no address stands for the rest."""
    for count, is_whole in ((10_000, True), (10_001, False), (30_000, False)):
        storage = {"$type": type_, "bucket": "b", key: [item] * count}
        reading = read(nsid.DATASET, {"$type": nsid.DATASET, "storage": storage})
        shards = getattr(reading.value.storage, key)
        last = shards[-1]
        assert bool(last if isinstance(last, str) else getattr(last, address)) is is_whole
        assert len(shards) == (count if is_whole else 10_001)
        assert any("at most 10,000 items" in problem for problem in reading.problems) is not is_whole


def test_a_value_alone_is_that_of_the_reading():
    """Whoever needs no problems gets the same value, whatever the record is."""
    for collection, record in [
        (nsid.DATASET, dataset_of(tags=("a",)).to_record()),
        (nsid.SAMPLE_SCHEMA, schema_of(Field("a", Primitive("int"))).to_record()),
        (nsid.DATASET, {"tags": ["a", 5], "storage": 7}),
        (nsid.DATASET, [{}]),
        ("com.example.other", {}),
    ]:
        assert records.read_value(collection, record) == read(collection, record).value


# --- What others ask


def test_very_many_properties_are_read_in_part():
    """Of a JSON Schema with more properties than any honest one has, the first are read, and the others are told of."""
    properties = {f"p{i}": {"type": "string"} for i in range(10_001)}
    schema = {"$type": "ac.foundation.dataset.schema#jsonSchemaFormat", "type": "object", "properties": properties}
    record = {"$type": "ac.foundation.dataset.schema", "schemaType": "jsonSchema", "schema": schema}
    reading = records.read("ac.foundation.dataset.schema", record)
    assert len(reading.value.fields) == 10_000
    assert "schema.properties: must have at most 10,000 to be read (has 10,001)" in reading.problems


def test_field_summaries():
    """Each field is summed up for search as its name, its type, and an array's dtype."""
    schema = schema_of(
        Field("image", NDArray("uint8", (3,))),
        Field("vector", NDArray()),
        Field("times", NDArray(">M8[1ns]")),
        Field("label", Primitive("str")),
        Field("tags", Array(Primitive("str"))),
        Field("parent", Ref(SCHEMA_URI)),
        Field("odd", None),
    )
    assert field_summaries(schema) == (
        "image:ndarray:uint8",
        "vector:ndarray:float32",
        "times:ndarray:datetime64[ns]",
        "label:str",
        "tags:array",
        "parent:ref",
        "odd:unknown",
    )


def test_storage_kind_of_nothing():
    """A dataset whose storage cannot be read has no kind of storage."""
    assert storage_kind(None) is None
    assert storage_kind(dataset_of(storage=None)) is None


def test_dtypes_are_numpys():
    """Each dtype that we allow is one that NumPy knows here, if the platform has it, and none is an object."""
    numpy = pytest.importorskip("numpy")
    wide = {"float128", "complex256"}  # names that exist only where a long double has 16 bytes
    for name in [*records.DTYPES, "<f4", ">i8", "|u1", "?", "b1", "<U12", "S5", "<M8[ns]", "datetime64[25s]", "=c16"]:
        assert is_dtype(name)
        if name not in wide or hasattr(numpy, name):
            assert not numpy.dtype(name).hasobject
    for name in ["object", "O", "|O8", "O8", "i3", "float8", "", "int32 ", "f4,i4", "void", "V8", "datetime64[]"]:
        assert not is_dtype(name)


def test_canonical_dtypes_are_numpys():
    """What is one dtype to NumPy, byte order and length of text aside, has one canonical name; nothing else has it."""
    numpy = pytest.importorskip("numpy")
    codes = [f"{order}{code}" for order in ("", "<", ">", "=") for code in (
        "?", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "U5", "U", "S5",
        "M8", "M8[ns]", "M8[1ns]", "M8[25s]", "m8", "m8[D]",
    )]  # fmt: skip
    for name in filter(is_dtype, [*codes, "float32", "int64", "uint8", "bool", "str", "bytes", "datetime64[D]"]):
        canonical = canonical_dtype(name)
        assert is_dtype(canonical)
        assert canonical_dtype(canonical) == canonical
        for other in filter(is_dtype, codes):
            one, two = numpy.dtype(name).newbyteorder("="), numpy.dtype(other).newbyteorder("=")
            is_same = one.kind == two.kind if one.kind in "US" else one == two
            assert (canonical_dtype(other) == canonical) is is_same, (name, other)
    for name in ["object", "", "int32 ", "float8"]:
        assert canonical_dtype(name) == name


def test_a_form_alone_is_read_with_its_own_problems():
    """`read_form` finds what `read` finds, apart from what only the lexicon says."""
    for record in [{"name": "a", "fields": [{"name": 5}]}, {"name": "x" * 200, "version": "1.0.0", "fields": []}, [{}]]:
        form, whole = records.read_form(nsid.SAMPLE_SCHEMA, record), read(nsid.SAMPLE_SCHEMA, record)
        assert form.value == whole.value
        assert {problem.split(":")[0] for problem in form.problems} <= {one.split(":")[0] for one in whole.problems}
    too_long = schema_of(Field("a", Primitive("int"))).to_record() | {"name": "x" * 200}
    assert read(nsid.SAMPLE_SCHEMA, too_long).problems
    assert not records.read_form(nsid.SAMPLE_SCHEMA, too_long).problems
    assert records.read_form("com.example.other", {}) == read("com.example.other", {})


def test_examples():
    """The examples in the documentation are true."""
    results = doctest.testmod(records)
    assert results.attempted > 0
    assert results.failed == 0
