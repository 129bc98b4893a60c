"""Structures: the fingerprints that equal ones share, who can read whose samples, and what changed between two."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray as Arr

from atdata import nsid, structure
from atdata.atmosphere.records import DTYPES, Array, NDArray, Primitive, Ref
from atdata.atmosphere.records import Field as RecordField
from atdata.errors import SampleError, SchemaError
from atdata.sample import PackableSample, is_same, packable
from atdata.schema import schema_to_type, type_to_schema
from atdata.structure import Difference, Field, Structure, compare, covers, structure_of, structure_of_type

INNER_URI = "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a"
OTHER_URI = "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2b"
NDARRAY_REF = "https://foundation.ac/schemas/atdata-ndarray-bytes/1.0.0#/$defs/ndarray"


def record_of(*fields: RecordField, **members: Any) -> dict[str, Any]:
    """A schema record in the written shape."""
    return {
        "$type": nsid.SAMPLE_SCHEMA,
        "name": "Digit",
        "version": "1.0.0",
        "fields": [field.to_record() for field in fields],
        "createdAt": "2026-01-02T00:00:00.000Z",
        **members,
    }


def json_schema_of(*fields: RecordField, **members: Any) -> dict[str, Any]:
    """The same in the later shape."""
    schema = {
        "$type": nsid.JSON_SCHEMA_FORMAT,
        "type": "object",
        "properties": {field.name: json_type_of(field.type) for field in fields},
        "required": [field.name for field in fields if not field.optional],
    }
    return {
        "$type": nsid.SCHEMA,
        "name": "Digit",
        "version": "1.0.0",
        "schemaType": "jsonSchema",
        "schema": schema,
        "createdAt": "2026-01-02T00:00:00.000Z",
        **members,
    }


def json_type_of(field_type: Any) -> dict[str, Any]:
    match field_type:
        case Primitive("bytes"):
            return {"type": "string", "contentEncoding": "base64"}
        case Primitive(name):
            return {"type": {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}[name]}
        case NDArray(dtype, shape):
            return {"$ref": NDARRAY_REF, "dtype": dtype} | ({} if shape is None else {"shape": list(shape)})
        case Array(None):
            return {"type": "array"}
        case Array(items):
            return {"type": "array", "items": json_type_of(items)}
        case Ref(uri):
            return {"$ref": uri}
    raise AssertionError(field_type)


def structure_with(*fields: RecordField) -> Structure:
    return structure_of(record_of(*fields))


def type_text(field_type: Any) -> str:
    return structure_with(RecordField("x", field_type)).fields[0].type


# --- What is generated

# A schema says float32 of arrays of any dtype, too, so the type that is decoded from one reads any. Spelled like this
# it means what it says, and so do both sides of the comparison below.
FLOAT32 = "<f4"

dtypes = st.sampled_from(
    [
        FLOAT32, "float64", ">f8", "uint8", "u1", "int64", "intp", "str", "U5", "bytes", "bool", "longdouble",
        "datetime64", "M8[s]", "datetime64[1s]", "datetime64[D]", "timedelta64", "m8[s]", "complex64", "clongdouble",
    ]
)  # fmt: skip
lengths = st.sampled_from([0, 3, 4])
shapes = st.none() | st.lists(lengths, max_size=3).map(tuple)
primitives = st.sampled_from(["str", "int", "float", "bool", "bytes"]).map(Primitive)
arrays = st.builds(NDArray, dtypes, shapes)
leaves = primitives | arrays | st.sampled_from([Array(), Ref(INNER_URI), Ref(OTHER_URI)])
field_types = st.recursive(leaves, lambda inner: inner.map(Array), max_leaves=3)
names = st.sampled_from(["a", "b", "c", "d"])


def fields_of(named: st.SearchStrategy[str]) -> st.SearchStrategy[list[RecordField]]:
    one = st.builds(RecordField, named, field_types, st.booleans())
    return st.lists(one, max_size=4, unique_by=lambda field: field.name)


any_fields = fields_of(names)


def relaxed(field_type: Any) -> st.SearchStrategy[Any]:
    """Types that are likely to read *field_type*, and some that nearly do."""
    match field_type:
        case NDArray(dtype, shape):
            kinds = {"i": "intp", "f": "longdouble", "M": "datetime64"}
            near = [dtype, kinds.get(np.dtype(dtype).kind, dtype)]
            looser = [None, shape, *([tuple(0 for _ in shape), (*shape, 3)] if shape else [])]
            return st.builds(NDArray, st.sampled_from(near), st.sampled_from(looser))
        case Array(items) if items is not None:
            return st.just(Array()) | relaxed(items).map(Array)
    return st.just(field_type)


@st.composite
def near_pairs(draw: st.DrawFn) -> tuple[list[RecordField], list[RecordField]]:
    """Two lists of fields, of which the second is often such that it reads samples of the first."""
    first = draw(any_fields)
    second = []
    for field in first:
        step = draw(st.sampled_from(["drop", "keep", "optional", "relax", "relax", "other"]))
        if step == "other":
            field = draw(st.builds(RecordField, st.just(field.name), field_types, st.booleans()))
        elif step == "relax":
            field = dataclasses.replace(field, type=draw(relaxed(field.type)))
        if step == "optional":
            field = dataclasses.replace(field, optional=True)
        if step != "drop":
            second.append(field)
    taken = {field.name for field in first}
    second += [field for field in draw(any_fields) if field.name not in taken and draw(st.booleans())]
    return first, second


pairs = near_pairs() | st.tuples(any_fields, any_fields)


# --- Equal structures, equal fingerprints


def fingerprint_by_the_book(fields: list[tuple[str, str, bool]]) -> str:
    """The docstring's definition, written again."""
    text = ",".join(
        f"[{json.dumps(n, ensure_ascii=False)},{json.dumps(t)},{str(o).lower()}]" for n, t, o in sorted(fields)
    )
    return f"s1-{hashlib.sha256(f'[{text}]'.encode()).hexdigest()[:40]}"


# Written to search indexes and kept by others: these never change.
GOLDEN = [
    ([], "s1-4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d"),
    ([("label", "int", True), ("image", "ndarray:uint8", False)], "s1-181027f048822f3b15d2935cf0f3f0e0a01aad36"),
    ([("image", "ndarray:uint8", False), ("label", "int", False)], "s1-a370797b87b439bfe8bbc863853dbd59eae01999"),
    ([("x", "ndarray:float32:3x0x0", False)], "s1-f9ab357c32b74c33f86738f3b605980853326a75"),
    ([("when", "ndarray:datetime64[ns]", False)], "s1-dd7f82cd66e4bb840ae47d6c4d3bc18498961a46"),
    ([("words", "array<str>", False), ("anything", "array", True)], "s1-c0995a9ab17993d54c241dff9d30bf92bf05bb63"),
    ([("inner", f"ref<{INNER_URI}>", False)], "s1-d7874a3cb30d45fcd918a8a1a1305735814cfc87"),
    (
        [("größe", "float", False), ("\U0001f600", "str", True), ("\uff5e", "bytes", False)],
        "s1-a709e29cf81496f933a4087547387032e93890f7",
    ),
    ([('a "quoted"\n\\ \x7f\x1f', "bool", False)], "s1-f603d87c5b8923565c4cb337fa42ab8d72032919"),
]


@pytest.mark.parametrize(("fields", "fingerprint"), GOLDEN)
def test_fingerprints_never_change(fields, fingerprint):
    """Each structure has the fingerprint that it always had, and that the definition in words gives."""
    made = Structure(tuple(Field(*field) for field in fields))
    assert made.fingerprint == fingerprint
    assert fingerprint_by_the_book(fields) == fingerprint


def test_the_docstring_shows_a_true_example():
    """The canonical bytes in the module's docstring have the fingerprint beside them."""
    text, fingerprint = re.search(r"^    (\[\[.*\]\])\s+(s1-\w+)$", structure.__doc__, re.MULTILINE).groups()
    made = Structure(tuple(Field(*field) for field in json.loads(text)))
    assert made.fingerprint == fingerprint
    assert f"s1-{hashlib.sha256(text.encode()).hexdigest()[:40]}" == fingerprint


@given(any_fields, st.randoms(use_true_random=False))
def test_words_order_and_shape_make_no_difference(fields, random):
    """Order, names, versions, descriptions and the shape of the record are not part of a structure."""
    shuffled = [dataclasses.replace(field, description=f"field {i}") for i, field in enumerate(fields)]
    random.shuffle(shuffled)
    first = structure_of(record_of(*fields))
    others = [
        structure_of(record_of(*shuffled, name="Other", version="2.1.0", description="Words.", metadata={"a": 1})),
        structure_of(json_schema_of(*shuffled)),
        structure_of({name: value for name, value in record_of(*fields).items() if name != "$type"}),
    ]
    for other in others:
        assert other == first
        assert other.fingerprint == first.fingerprint


SPELLINGS = [
    ("float32", ["<f4", ">f4", "f4", "=f4"]),
    ("uint8", ["u1", "|u1"]),
    ("int64", ["i8", "<i8", ">i8"]),
    ("bool", ["?", "b1", "|b1"]),
    ("float128", ["f16"]),
    ("complex64", ["c8", "<c8"]),
    ("str", ["U7", "<U100", "U0"]),
    ("bytes", ["S7", "|S1", "a3"]),
    ("datetime64", ["M8", "<M8"]),
    ("datetime64[ns]", ["M8[ns]", ">M8[ns]", "datetime64[1ns]", "M8[01ns]"]),
    ("timedelta64[25s]", ["m8[25s]", "timedelta64[025s]"]),
]


@pytest.mark.parametrize(("dtype", "spellings"), SPELLINGS)
def test_dtypes_have_one_name(dtype, spellings):
    """Spellings of one dtype, whatever the byte order and the length of text, are one."""
    for spelling in [dtype, *spellings]:
        assert type_text(NDArray(spelling)) == f"ndarray:{dtype}"


def test_dtypes_that_differ_have_names_that_differ():
    """No two names of dtypes that NumPy tells apart, or that depend on the machine, become one."""
    assert len({type_text(NDArray(dtype)) for dtype in DTYPES}) == len(DTYPES)
    for one, other in [("M8[s]", "m8[s]"), ("M8[m]", "M8[M]"), ("M8[10s]", "M8[s]"), ("M8[0s]", "M8[s]"), ("S1", "U1")]:
        assert type_text(NDArray(one)) != type_text(NDArray(other))


@pytest.mark.parametrize(
    ("field_type", "text"),
    [
        (Primitive("bytes"), "bytes"),
        (NDArray(), "ndarray:float32"),
        (NDArray("uint8", ()), "ndarray:uint8"),
        (NDArray("uint8", (3, 0, 0)), "ndarray:uint8:3x0x0"),
        (Array(), "array"),
        (Array(Array(NDArray("<i8", (2,)))), "array<array<ndarray:int64:2>>"),
        (Ref(INNER_URI), f"ref<{INNER_URI}>"),
    ],
)
def test_texts_of_types(field_type, text):
    """Each kind of type has its text, in both shapes of records."""
    assert type_text(field_type) == text
    assert structure_of(json_schema_of(RecordField("x", field_type))).fields[0].type == text


tricky = st.text(st.sampled_from('ab",[]:<>\\\n'), min_size=1, max_size=8)
raw_fields = st.lists(
    st.builds(Field, tricky | names, tricky | st.sampled_from(["int", "str"]), st.booleans()),
    max_size=4,
    unique_by=lambda field: field.name,
).map(tuple)


@given(raw_fields, raw_fields)
def test_different_structures_have_different_fingerprints(one, other):
    """Fingerprints are equal exactly where names, types and optionality are, whatever stands in the names."""
    assert (Structure(one).fingerprint == Structure(other).fingerprint) is (set(one) == set(other))


@given(any_fields.filter(bool), st.data())
def test_any_change_changes_the_fingerprint(fields, data):
    """A field gone, renamed, made optional or of another type is another structure."""
    field = data.draw(st.sampled_from(fields))
    other_type = data.draw(field_types)
    assume(type_text(other_type) != type_text(field.type))
    rest = [one for one in fields if one is not field]
    for changed in (
        rest,
        [*rest, dataclasses.replace(field, name=field.name + "_")],
        [*rest, dataclasses.replace(field, optional=not field.optional)],
        [*rest, dataclasses.replace(field, type=other_type)],
    ):
        assert structure_with(*changed).fingerprint != structure_with(*fields).fingerprint


@packable
class Digit:
    label: int | None
    image: Annotated[Arr[np.uint8], NDArray("uint8", (28, 28))]
    words: list[str]


def test_a_type_has_the_structure_of_its_schema():
    """A class gives the fingerprint of its schema without publishing it; and one that is decoded gives it back."""
    made = structure_of_type(Digit)
    assert made == structure_of(type_to_schema(Digit, created_at=datetime(2026, 1, 2, tzinfo=UTC)).to_record())
    assert [field.name for field in made.fields] == ["image", "label", "words"]
    assert made.fields[0] == Field("image", "ndarray:uint8:28x28", False)
    assert made.fields[1].optional
    assert structure_of_type(schema_to_type(type_to_schema(Digit))) == made


def test_a_nested_type_needs_its_uri():
    """The structure of a type that holds another names that one's schema, which *refs* gives."""

    @packable
    class Pair:
        left: Digit

    Pair.__annotations__ = {"left": Digit}
    with pytest.raises(SchemaError, match=r"Pair\.left: publish the schema of Digit first"):
        structure_of_type(Pair)
    assert structure_of_type(Pair, refs=lambda _: INNER_URI).fields == (Field("left", f"ref<{INNER_URI}>"),)


def test_reading_structures_needs_no_numpy():
    """A service that reads records loads neither NumPy nor anything else that samples take."""
    code = "import atdata.structure, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "atdata.structure" in loaded
    assert {"numpy", "ormsgpack", "httpx"}.isdisjoint(loaded)


# --- What has no structure

A = RecordField("a", Primitive("int")).to_record()


def deep(depth: int) -> dict[str, Any]:
    field_type: dict[str, Any] = {"$type": f"{nsid.FIELD_TYPE}#primitive", "primitive": "int"}
    for _ in range(depth):
        field_type = {"$type": f"{nsid.FIELD_TYPE}#array", "items": field_type}
    return {"name": "a", "fieldType": field_type}


def typed(kind: str, **members: Any) -> list[Any]:
    return [{"name": "a", "fieldType": {"$type": f"{nsid.FIELD_TYPE}#{kind}", **members}}]


UNREADABLE = [
    ({"fields": None}, "fields: is required"),
    ({"fields": "image"}, "fields: must be an array, not a string"),
    ({"fields": [5]}, r"fields\[0\]: must be an object"),
    ({"fields": [A, A]}, r"fields\[1\]\.name: 'a' is used twice"),
    ({"fields": [A | {"name": 5}]}, r"fields\[0\]\.name: must be a string"),
    ({"fields": [A | {"name": ""}]}, "'' is not the name of a field"),
    ({"fields": [A | {"name": "a\0b"}]}, r"'a\\x00b' is not the name of a field"),
    ({"fields": [A | {"name": "\ud800"}]}, r"fields\[0\]\.name: must be valid Unicode"),
    ({"fields": [A | {"optional": "yes"}]}, r"fields\[0\]\.optional: must be a boolean"),
    ({"fields": [{"name": "a"}]}, r"fields\[0\]\.fieldType: is required"),
    ({"fields": typed("map")}, r"fields\[0\]\.fieldType\.\$type: is not a field type that we know"),
    ({"fields": typed("primitive", primitive="long")}, r"fieldType\.primitive: must be one of"),
    ({"fields": typed("array", items={"$type": "x"})}, r"items\.\$type: is not a field type"),
    ({"fields": typed("ndarray", dtype="object")}, r"fieldType\.dtype: 'object' is not"),
    ({"fields": typed("ndarray", dtype=["float32"])}, r"fieldType\.dtype: must be a string"),
    ({"fields": typed("ndarray", dtype="uint8", shape=[3, "x"])}, r"shape\[1\]: must be an integer"),
    ({"fields": typed("ndarray", dtype="uint8", shape=[-1])}, r"shape\[0\]: must be an integer"),
    ({"fields": typed("ndarray", dtype="uint8", shape=[1] * 65)}, "a: no array has more than 64 dimensions"),
    ({"fields": typed("ref", ref="https://example.com")}, r"fieldType\.ref: must be an AT URI"),
    ({"fields": [deep(20)]}, "is nested too deeply"),
    ({"fields": [deep(900)]}, "is nested too deeply"),
    ({"fields": [A | {"name": f"a{i}"} for i in range(1001)]}, "1,001 fields, more than 1,000"),
    ({"fields": [A | {"name": f"a{i}"} for i in range(100_000)]}, "must have at most 10,000 items"),
    ({"fields": [A] * 100_000}, "must have at most 10,000 items"),
    ({"fields": None, "schema": []}, "schema: must be an object"),
    ({"fields": None, "schema": {"type": "object"}}, r"schema\.properties: is required"),
    ({"fields": None, "schema": {"properties": {"a": {"type": "object"}}}}, r"schema\.properties\.a\.type: is not"),
    ({"fields": None, "schema": {"properties": {"a": {}}, "required": [["a"]]}}, r"schema\.required\[0\]: must be"),
    ({"fields": None, "schemaType": "avro", "schema": {"a": 1}}, "schemaType: is not a form of schema that we know"),
    ({"$type": nsid.DATASET}, f"a record of type {nsid.DATASET} is no schema"),
    ({"$type": ["x"]}, "is no schema"),
]


@pytest.mark.parametrize(("members", "message"), UNREADABLE)
def test_what_cannot_be_read_has_no_structure(members, message):
    """A record that leaves open what its samples are is an error that names the place."""
    with pytest.raises(SchemaError, match=message):
        structure_of(record_of(RecordField("a", Primitive("int"))) | members)


@pytest.mark.parametrize("record", [None, 5, "x", [], [{}], {}])
def test_what_is_no_record_has_no_structure(record):
    """Nor has what is no record at all."""
    with pytest.raises(SchemaError):
        structure_of(record)


def test_what_is_odd_but_clear_has_a_structure():
    """What is wrong elsewhere in a record does not hide its fields; none at all are a structure, too."""
    odd = record_of(RecordField("a b", Primitive("int")), name="", version="one", createdAt=5)
    assert structure_of(odd).fields == (Field("a b", "int"),)
    assert structure_of(record_of()).fields == ()
    assert structure_of(json_schema_of()) == structure_of(record_of())


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["object", "array", "float32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["name", "fieldType", "optional", "$type", "primitive", "dtype", "shape", "items", "ref", "type"]
)
kinds = st.sampled_from([f"{nsid.FIELD_TYPE}#{kind}" for kind in ("primitive", "ndarray", "array", "ref")])
near_fields = st.recursive(kinds | junk, lambda inner: st.dictionaries(keys, inner, max_size=6), max_leaves=12)


@given(st.lists(near_fields, max_size=3) | junk, st.booleans())
def test_hostile_records_are_an_error_or_a_structure(fields, is_later):
    """Whatever a record says, it has a structure or raises SchemaError."""
    members = {"schema": {"properties": fields}} if is_later else {"fields": fields}
    try:
        made = structure_of({"$type": nsid.SCHEMA, **members})
    except SchemaError:
        return
    assert covers(made, made)


def test_a_structure_has_no_name_twice():
    """A name that stands for two fields is an error."""
    with pytest.raises(SchemaError, match="'a' is declared twice"):
        Structure((Field("a", "int"), Field("b", "int"), Field("a", "str")))


# --- Wider and narrower


def resolve(uri: str) -> dict[str, Any]:
    name = {INNER_URI: "text", OTHER_URI: "number"}[uri]
    return record_of(RecordField(name, Primitive("str" if name == "text" else "int")), name=name)


def made_type(fields: list[RecordField]) -> type[PackableSample]:
    return schema_to_type(record_of(*fields), resolve=resolve)


def witnesses(field_type: Any) -> list[Any]:
    """Values of *field_type*, among them the most awkward one for a reader of any other type."""
    match field_type:
        case Primitive(name):
            return {
                "str": ["", "text", "1"],
                "int": [0, 1, -(2**63), 2**53 + 1],
                "float": [0.0, 0.5, float("inf"), float("nan")],
                "bool": [True, False],
                "bytes": [b"", b"\x01", b"\x93"],
            }[name]
        case NDArray(dtype, shape):
            dims = [(), (5,), (3, 4), (2, 0, 1)] if not shape else [tuple(n or m for n in shape) for m in (1, 3, 4, 5)]
            return [np.zeros(dim, concrete) for dim in dims for concrete in concrete_dtypes(dtype)]
        case Array(None):
            return [[], [1], ["a"], [[1.5]], [None], [{"a": 1}], [np.arange(3)]]
        case Array(items):
            return [[], *([one] for one in witnesses(items)), witnesses(items)]
        case Ref(uri):
            return [schema_to_type(resolve(uri))(*(["x"] if uri == INNER_URI else [5]))]
    raise AssertionError(field_type)


def concrete_dtypes(dtype: str) -> list[str]:
    """The dtypes of arrays that may stand where *dtype* is declared."""
    one = np.dtype(dtype)
    if one.kind in "US":
        return [f"{one.kind}3", f"{one.kind}9"]
    open_ones = {
        "intp": ["int8", "int32", "int64"],
        "longdouble": ["float16", "float64", "longdouble"],
        "clongdouble": ["complex64", "complex128"],
        "datetime64": ["M8[s]", "M8[D]"],
        "timedelta64": ["m8[s]", "m8[ms]"],
    }
    return open_ones.get(dtype, [dtype])


def samples_of(fields: list[RecordField]) -> list[PackableSample]:
    """Samples in which each field has each of its witnesses at least once."""
    columns = [[*witnesses(field.type), *([None] if field.optional else [])] for field in fields]
    rows = zip(*(islice(cycle(column), max(map(len, columns))) for column in columns), strict=True)
    sample_type = made_type(fields)
    return [sample_type(**dict(zip((f.name for f in fields), row, strict=True))) for row in rows] or [sample_type()]


def plain(value: Any) -> Any:
    if isinstance(value, PackableSample):
        return {name: plain(one) for name, one in vars(value).items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def is_readable(sample: PackableSample, reader: type[PackableSample]) -> bool:
    """Whether *reader* reads *sample*, and finds in it the values that were written."""
    try:
        read = reader.from_bytes(sample.packed)
    except SampleError:
        return False
    return all(is_same(plain(value), plain(getattr(sample, name, None))) for name, value in vars(read).items())


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(pairs)
@example(([RecordField("a", Primitive("int"))], [RecordField("a", Primitive("float"))]))
@example(([RecordField("a", NDArray("uint8"))], [RecordField("a", Primitive("bytes"))]))
@example(([RecordField("a", Primitive("bool"))], [RecordField("a", Primitive("int"))]))
@example(([RecordField("a", NDArray("uint8", (3, 4)))], [RecordField("a", NDArray("uint8", (3, 0)))]))
@example(([RecordField("a", NDArray("uint8", (3, 0)))], [RecordField("a", NDArray("uint8", (3, 4)))]))
@example(([RecordField("a", Array(Ref(INNER_URI)))], [RecordField("a", Array())]))
@example(([], [RecordField("a", Primitive("int"), optional=True)]))
def test_covering_is_what_samples_do(pair):
    """One structure covers another exactly when the library reads every sample of the one as the other, unchanged."""
    wider, narrower = pair
    reader = made_type(narrower)
    is_read = all(is_readable(sample, reader) for sample in samples_of(wider))
    assert covers(structure_with(*wider), structure_with(*narrower)) is is_read


LEAVES = [
    *map(Primitive, ("str", "int", "float", "bool", "bytes")),
    *(
        NDArray(dtype)
        for dtype in (
            FLOAT32, "float16", "float64", "bool", "uint8", "int8", "int64", "intp", "uintp", "longdouble",
            "complex64", "complex128", "clongdouble", "str", "S3",
            "datetime64", "M8[s]", "M8[D]", "timedelta64", "m8[s]",
        )
    ),
    *(NDArray("uint8", shape) for shape in ((0,), (3,), (4,), (0, 0), (3, 0), (0, 4), (3, 4), (3, 5))),
    Ref(INNER_URI),
    Ref(OTHER_URI),
    Array(),
    Array(Primitive("int")),
    Array(NDArray("uint8", (3,))),
    Array(NDArray("uint8")),
    Array(Array()),
    Array(Array(Primitive("str"))),
]  # fmt: skip


def test_every_type_is_read_as_the_types_that_cover_it_and_no_other():
    """The same, for each pair of types: what is read as what is what the table of types says."""
    readers = [(one, made_type([RecordField("a", one)])) for one in LEAVES]
    for one in LEAVES:
        samples = samples_of([RecordField("a", one)])
        for other, reader in readers:
            is_read = all(is_readable(sample, reader) for sample in samples)
            structures = (structure_with(RecordField("a", kind)) for kind in (one, other))
            assert covers(*structures) is is_read, (one, other)


def test_decoded_types_take_more_where_a_schema_says_float32():
    """Publishers write float32 for arrays of any dtype, so decoded types read any; a structure takes it at its word."""
    reader, other = [RecordField("a", NDArray("float32"))], [RecordField("a", NDArray("uint8"))]
    assert all(is_readable(sample, made_type(reader)) for sample in samples_of(other))
    assert not covers(structure_with(*other), structure_with(*reader))


@given(pairs)
def test_every_structure_covers_itself(pair):
    """Covering is reflexive, and structures that cover each other differ at most in fields that both may be without."""
    one, other = (structure_with(*fields) for fields in pair)
    assert covers(one, one)
    assert covers(one, other) or one != other
    if covers(one, other) and covers(other, one):
        shared = {field.name for field in one.fields} & {field.name for field in other.fields}
        assert {f for f in one.fields if f.name in shared} == {f for f in other.fields if f.name in shared}
        assert all(field.optional for field in {*one.fields} ^ {*other.fields})


@st.composite
def chains(draw: st.DrawFn) -> list[list[RecordField]]:
    """Three lists of fields that are likely to cover one another in turn."""
    first, second = draw(near_pairs())
    third = [
        dataclasses.replace(field, type=draw(relaxed(field.type)), optional=field.optional or draw(st.booleans()))
        for field in second
        if draw(st.booleans())
    ]
    taken = {field.name for field in second}
    third += [dataclasses.replace(field, optional=True) for field in draw(any_fields) if field.name not in taken]
    return [first, second, third]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(chains())
@example([[RecordField("f", Primitive("str"))], [], [RecordField("f", Primitive("int"), optional=True)]])
def test_covering_is_transitive_but_for_forgotten_fields(chain):
    """What covers what covers a third covers that, unless the middle one forgot a field that is optional there."""
    a, b, c = (structure_with(*fields) for fields in chain)
    assume(covers(a, b) and covers(b, c))
    known = {field.name for field in b.fields}
    forgotten = {field.name for field in c.fields if field.optional} - known
    a_type = {field.name: field.type for field in a.fields}
    is_clash = any(
        field.name in a_type
        and not covers(Structure((Field("x", a_type[field.name]),)), Structure((Field("x", field.type),)))
        for field in c.fields
        if field.name in forgotten
    )
    assert covers(a, c) is not is_clash


# --- What changed


def field(name: str, type_: str, optional: bool = False) -> Field:
    return Field(name, type_, optional)


# Old, new, verdict, differences by change and what they break.
COMPARISONS = [
    ([], [], "identical", []),
    ([field("a", "int")], [field("a", "int")], "identical", []),
    ([], [field("a", "int")], "forward", [("added", ("backward",))]),
    ([], [field("a", "int", True)], "full", [("added", ())]),
    ([field("a", "int")], [], "backward", [("removed", ("forward",))]),
    ([field("a", "int", True)], [], "full", [("removed", ())]),
    ([field("a", "int")], [field("a", "int", True)], "backward", [("optionality", ("forward",))]),
    ([field("a", "int", True)], [field("a", "int")], "forward", [("optionality", ("backward",))]),
    ([field("a", "int")], [field("a", "float")], "breaking", [("type", ("backward", "forward"))]),
    ([field("a", "array<int>")], [field("a", "array")], "backward", [("type", ("forward",))]),
    ([field("a", "ndarray:uint8")], [field("a", "ndarray:uint8:3x0")], "forward", [("type", ("backward",))]),
    ([field("a", "int")], [field("b", "int")], "breaking", [("removed", ("forward",)), ("added", ("backward",))]),
    (
        [field("a", "array", True)],
        [field("a", "array<int>", False)],
        "forward",
        [("type", ("backward",)), ("optionality", ("backward",))],
    ),
]


@pytest.mark.parametrize(("old", "new", "verdict", "differences"), COMPARISONS)
def test_comparisons(old, new, verdict, differences):
    """Each difference says which direction it breaks, and the verdict follows from them."""
    made = compare(Structure(tuple(old)), Structure(tuple(new)))
    assert made.verdict == verdict
    assert [(one.change, one.breaks) for one in made.differences] == differences


@given(pairs)
def test_verdicts_are_what_readers_can_do(pair):
    """Backward is that readers of the new can read the old, forward the reverse; full is both, breaking neither."""
    old, new = (structure_with(*fields) for fields in pair)
    made = compare(old, new)
    is_backward, is_forward = covers(old, new), covers(new, old)
    both = {(True, True): "full", (True, False): "backward", (False, True): "forward", (False, False): "breaking"}
    assert made.verdict == ("identical" if old == new else both[is_backward, is_forward])
    assert is_backward is not any("backward" in one.breaks for one in made.differences)
    assert is_forward is not any("forward" in one.breaks for one in made.differences)
    back = compare(new, old)
    opposite = {"backward": "forward", "forward": "backward"}
    assert back.verdict == opposite.get(made.verdict, made.verdict)
    assert [one.name for one in made.differences] == sorted(one.name for one in made.differences)


SUMMARIES = [
    ([], [], "The structures are identical: readers of either schema can read data of the other."),
    (
        [],
        [field("a", "int", True)],
        "Compatible in both directions: readers of either schema can read data of the other. "
        "a (int, optional) was added.",
    ),
    (
        [field("a", "int")],
        [],
        "Backward compatible only. Readers of the new schema can read data of the old one. Readers of the old schema "
        "cannot read data of the new one: a (int) was removed, so that new data is without it.",
    ),
    (
        [field("a", "int", True), field("b", "array")],
        [field("a", "int"), field("b", "array<str>")],
        "Forward compatible only. Readers of the new schema cannot read data of the old one: a must now be there; "
        "b was array and is array<str>. Readers of the old schema can read data of the new one.",
    ),
    (
        [field("a", "int")],
        [field("a", "str", True)],
        "Breaking. Readers of the new schema cannot read data of the old one: a was int and is str. "
        "Readers of the old schema cannot read data of the new one: a was int and is str; a may now be absent.",
    ),
    (
        [],
        [field(f"a{i}", "int") for i in range(9)],
        "Forward compatible only. Readers of the new schema cannot read data of the old one: "
        + "".join(f"a{i} (int) was added, which old data is without; " for i in range(5))
        + "and 4 more. Readers of the old schema can read data of the new one.",
    ),
]


@pytest.mark.parametrize(("old", "new", "summary"), SUMMARIES)
def test_summaries(old, new, summary):
    """A summary says in words who can read what, and why not; of many reasons, the first."""
    assert compare(Structure(tuple(old)), Structure(tuple(new))).summary == summary


def test_summaries_are_short():
    """Names and types of any length do not make a summary long."""
    old = Structure(tuple(Field("n" * 5000 + str(i), "array<" * 900 + "int" + ">" * 900) for i in range(50)))
    assert len(compare(old, Structure(())).summary) < 3000


def test_a_difference_has_its_fields():
    """The field before and the field after are there, where there was one."""
    old, new = Structure((field("a", "int"), field("b", "int"))), Structure((field("a", "str"), field("c", "int")))
    assert compare(old, new).differences == (
        Difference("type", field("a", "int"), field("a", "str")),
        Difference("removed", field("b", "int"), None),
        Difference("added", None, field("c", "int")),
    )
    assert [one.name for one in compare(old, new).differences] == ["a", "b", "c"]
