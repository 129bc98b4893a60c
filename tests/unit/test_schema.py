"""Sample types and schema records: each from the other, for every type a field can have."""

from __future__ import annotations

import ast
import dataclasses
import gc
import pickle
import subprocess
import sys
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, List, Optional  # noqa: UP035 — older code says List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray as Arr

import atdata
from atdata.atmosphere import records
from atdata.atmosphere.records import Array, Field, NDArray, Primitive, Ref, SchemaRecord
from atdata.errors import LensError, SampleError, SchemaError
from atdata.hints import is_reserved, read_hints
from atdata.sample import packable
from atdata.schema import _comment, schema_to_type, to_source, type_to_schema

INNER_URI = "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a"
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@packable
class Inner:
    name: str


@packable
class Everything:
    text: str
    number: int
    ratio: float
    flag: bool
    blob: bytes
    any_array: Arr
    any_too: np.ndarray
    u8: Arr[np.uint8]
    f64: Arr[np.float64]
    when: Arr[np.datetime64]
    texts: Arr[np.str_]
    unit: Annotated[Arr[np.datetime64], NDArray("datetime64[ns]", (0, 3))]
    words: list[str]
    old_words: List[str]  # noqa: UP006
    arrays: list[Arr[np.float16]]
    lists: list[list[int]]
    anything: list
    maybe: str | None
    maybe_old: Optional[int]  # noqa: UP045
    maybe_array: Arr[np.int8] | None
    nested: Annotated[Inner, Ref(INNER_URI)]
    nesteds: list[Inner]
    described: int = field(default=7, metadata={"description": "a number"})


EXPECTED = (
    Field("text", Primitive("str")),
    Field("number", Primitive("int")),
    Field("ratio", Primitive("float")),
    Field("flag", Primitive("bool")),
    Field("blob", Primitive("bytes")),
    Field("any_array", NDArray("float32")),
    Field("any_too", NDArray("float32")),
    Field("u8", NDArray("uint8")),
    Field("f64", NDArray("float64")),
    Field("when", NDArray("datetime64")),
    Field("texts", NDArray("str")),
    Field("unit", NDArray("datetime64[ns]", (0, 3))),
    Field("words", Array(Primitive("str"))),
    Field("old_words", Array(Primitive("str"))),
    Field("arrays", Array(NDArray("float16"))),
    Field("lists", Array(Array(Primitive("int")))),
    Field("anything", Array()),
    Field("maybe", Primitive("str"), optional=True),
    Field("maybe_old", Primitive("int"), optional=True),
    Field("maybe_array", NDArray("int8"), optional=True),
    Field("nested", Ref(INNER_URI)),
    Field("nesteds", Array(Ref(INNER_URI))),
    Field("described", Primitive("int"), description="a number"),
)
INNER = SchemaRecord("Inner", "1.0.0", (Field("name", Primitive("str")),))


class Derived(schema_to_type(INNER)):
    """A class of one's own, from a decoded one."""


def resolve(uri: str) -> SchemaRecord:
    assert uri == INNER_URI
    return INNER


def test_every_kind_of_field_has_a_record():
    """Each row of the field-type table, optional or not, in both spellings of lists and options, with descriptions."""
    schema = type_to_schema(Everything, refs=lambda sample_type: INNER_URI, created_at=WHEN)
    assert schema.name == "Everything"
    assert schema.version == "1.0.0"
    assert schema.fields == EXPECTED
    reading = records.read("ac.foundation.dataset.sampleSchema", schema.to_record())
    assert reading.problems == ()
    assert reading.value == schema


def test_a_record_becomes_a_type_and_the_same_record_again():
    """record → type → record changes nothing."""
    schema = SchemaRecord("Everything", "1.0.0", EXPECTED)
    made = schema_to_type(schema, resolve=resolve)
    assert type_to_schema(made) == schema


primitives = st.sampled_from(["str", "int", "float", "bool", "bytes"]).map(Primitive)
dtypes = st.sampled_from([*sorted(records.DTYPES), "<f4", ">i8", "|b1", "U5", "S3", "datetime64[ns]", "<m8[5us]"])
ndarrays = st.builds(NDArray, dtypes, st.none() | st.lists(st.integers(0, 2**40), max_size=4).map(tuple))
kinds = st.recursive(primitives | ndarrays, lambda inner: st.builds(Array, st.none() | inner), max_leaves=4)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("packed", "as_wds", "from_bytes", "from_data", "samples") and name not in KEYWORDS
)
KEYWORDS = {*__import__("keyword").kwlist}
schemas = st.builds(
    SchemaRecord,
    st.from_regex(r"[A-Z][A-Za-z0-9]{0,8}", fullmatch=True).filter(lambda name: name not in KEYWORDS),
    st.just("1.0.0"),
    st.lists(
        st.builds(Field, names, kinds, st.booleans(), st.none() | st.text(min_size=1)),
        max_size=6,
        unique_by=lambda one: one.name,
    ).map(tuple),
)


@given(schemas)
def test_any_record_survives_being_a_type(schema):
    """record → type → record, for generated schemas; those that say the same share the class, whenever published."""
    made = schema_to_type(schema)
    assert type_to_schema(made) == schema
    assert schema_to_type(dataclasses.replace(schema, created_at=WHEN, metadata={"a": 1})) is made


@given(schemas)
def test_any_record_prints_as_python(schema):
    """The source of any schema parses, and declares the fields in order."""
    (declared,) = [one for one in ast.parse(to_source(schema)).body if isinstance(one, ast.ClassDef)]
    assert declared.name == schema.name or declared.name.startswith(f"{schema.name}_")
    assert [one.target.id for one in declared.body if isinstance(one, ast.AnnAssign)] == [f.name for f in schema.fields]


def schema_of(*fields: Field, name: str = "S") -> SchemaRecord:
    return SchemaRecord(name, "1.0.0", fields)


def test_two_schemas_of_one_name_never_share_a_class():
    """The same name with other fields, another order, optionality, version or description is another class."""
    a, b = Field("a", Primitive("int")), Field("b", NDArray("uint8"))
    variants = [
        schema_of(a, b),
        schema_of(b, a),
        schema_of(a),
        schema_of(a, Field("b", NDArray("uint8"), optional=True)),
        schema_of(a, Field("b", NDArray("uint8", (3,)))),
        schema_of(a, Field("b", NDArray("int8"))),
        schema_of(a, Field("b", Array(Primitive("int")))),
        schema_of(a, b, name="S2"),
        dataclasses.replace(schema_of(a, b), version="2.0.0"),
        dataclasses.replace(schema_of(a, b), description="By Alice: in metres."),
        dataclasses.replace(schema_of(a, b), description="By Mallory: in feet."),
        schema_of(a, dataclasses.replace(b, description="in feet")),
    ]
    types = [schema_to_type(schema) for schema in variants]
    assert len(set(types)) == len(types)
    assert [schema_to_type(schema) for schema in variants] == types
    assert types[-2].__doc__ == "By Mallory: in feet."


def test_lenses_stay_with_the_schema_they_were_made_for():
    """A lens of one schema's type is no lens of another's, though their fields are the same."""
    metres = schema_to_type(dataclasses.replace(INNER, description="in metres"))
    feet = schema_to_type(dataclasses.replace(INNER, description="in feet"))
    target = schema_to_type(schema_of(Field("length", Primitive("str"))))
    lens = atdata.Lens(lambda source: target(source.name), source_type=metres, view_type=target)
    atdata.LensNetwork().register(lens)
    assert atdata.LensNetwork().transform(metres, target) is lens
    with pytest.raises(LensError):
        atdata.LensNetwork().transform(feet, target)


def test_descriptions_of_nested_schemas_are_printed_with_their_own():
    """Two nested schemas of one name and with the same fields keep their descriptions apart."""
    nested = {
        INNER_URI: dataclasses.replace(INNER, description="in metres"),
        INNER_URI + "b": dataclasses.replace(INNER, description="in feet"),
    }
    source = to_source(
        schema_of(Field("a", Ref(INNER_URI)), Field("b", Ref(INNER_URI + "b"))), resolve=nested.__getitem__
    )
    assert "# in metres\n@atdata.packable\nclass Inner:" in source
    assert "# in feet\n@atdata.packable\nclass Inner_2:" in source


def test_unused_types_are_forgotten():
    """The table of types does not keep them alive."""
    from atdata.schema import _types

    made = schema_to_type(schema_of(Field("only_here", Primitive("int"))))
    before = len(_types)
    del made
    gc.collect()
    assert len(_types) < before


def test_decoded_types_read_arrays_as_arrays():
    """A decoded type reads what the original wrote: uint8 stays uint8, optional arrays are arrays."""

    @packable
    class Picture:
        image: Arr[np.uint8]
        mask: Arr[np.bool_] | None
        label: int

    decoded = schema_to_type(type_to_schema(Picture))
    assert decoded.__name__ == "Picture"
    for mask in (None, np.array([True, False])):
        read = decoded.from_bytes(Picture(np.arange(4, dtype=np.uint8), mask, 3).packed)
        assert read.image.dtype == np.uint8
        assert mask is None or read.mask.dtype == np.bool_
        assert Picture.from_bytes(read.packed) == Picture(np.arange(4, dtype=np.uint8), mask, 3)
    made = decoded(image=np.zeros(1, np.uint8), label=3)
    assert made.mask is None
    assert pickle.loads(pickle.dumps(made)) == made


def test_what_a_schema_says_of_arrays_is_checked():
    """A decoded type takes arrays of the dtype and shape in its schema only; float32 stands for any dtype."""
    decoded = schema_to_type(schema_of(Field("image", NDArray("uint8", (2, 0))), Field("any", NDArray("float32"))))
    good = decoded(np.zeros((2, 3), np.uint8), np.zeros(2, np.int64))
    assert decoded.from_bytes(good.packed) == good
    for image in (np.array(["boom"]), np.zeros((3, 2), np.uint8)):
        with pytest.raises(SampleError, match="field image: expected an array of"):
            decoded.from_bytes(atdata.DictSample(image=image, any=np.zeros(2)).packed)
        with pytest.raises(SampleError, match="field image: expected an array of"):
            _ = decoded(image, np.zeros(2)).packed

    @packable
    class Loose:
        image: Arr

    @packable
    class Strict:
        image: Arr[np.float32]

    # One schema for both: a bare NDArray is published as float32.
    assert type_to_schema(Loose).fields == type_to_schema(Strict).fields
    assert schema_to_type(type_to_schema(Loose)).from_bytes(Loose(np.zeros(1, np.uint8)).packed).image.dtype == np.uint8
    with pytest.raises(SampleError, match="field image: expected an array of dtype float32, found uint8"):
        Strict.from_bytes(Loose(np.zeros(1, np.uint8)).packed)


def test_decoded_types_can_be_pickled():
    """A decoded type is found again by its schema, nested ones by theirs; a class derived from it by its name."""
    outer = schema_to_type(
        dataclasses.replace(schema_of(Field("one", Ref(INNER_URI))), version="1.2.3", description="outer"),
        resolve=resolve,
    )
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(outer, protocol)) is outer
        assert pickle.loads(pickle.dumps(atdata.Dataset[outer]("x.tar"), protocol)).sample_type is outer
    pickled = pickle.dumps((outer, outer(schema_to_type(INNER)("a"))))
    del outer
    gc.collect()
    again, sample = pickle.loads(pickled)
    assert (again.__name__, again.__doc__, sample.one.name) == ("S", "outer", "a")
    assert type(sample) is again
    assert pickle.loads(pickle.dumps(Derived)) is Derived
    assert pickle.loads(pickle.dumps(Derived("a"))) == Derived("a")


def test_nested_samples_are_decoded():
    """A field of type ref is read as the sample type of the schema it names, and pickles as one."""
    outer = schema_to_type(
        schema_of(Field("one", Ref(INNER_URI)), Field("many", Array(Ref(INNER_URI)))), resolve=resolve
    )
    inner = schema_to_type(INNER)
    sample = outer(inner("a"), [inner("b")])
    read = outer.from_bytes(sample.packed)
    assert read == sample
    assert type(read.many[0]) is inner
    assert pickle.loads(pickle.dumps(sample)) == sample


def test_json_records_of_every_generation_are_decoded():
    """The record's JSON will do, in the written shape and in the later JSON-Schema shape."""
    written = type_to_schema(Inner, created_at=WHEN).to_record()
    assert schema_to_type(written) is schema_to_type(INNER)
    later = {
        "$type": "ac.foundation.dataset.schema",
        "name": "Later",
        "version": "1.0.0",
        "schemaType": "jsonSchema",
        "schema": {
            "$type": "ac.foundation.dataset.schema#jsonSchemaFormat",
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "image": {
                    "$ref": "https://foundation.ac/schemas/atdata-ndarray-bytes/1.0.0#/$defs/ndarray",
                    "dtype": "uint8",
                    "shape": [28, 28],
                },
                "label": {"type": "integer"},
                "note": {"type": "string"},
            },
            "required": ["image", "label"],
        },
        "createdAt": "2026-01-02T00:00:00.000Z",
    }
    assert type_to_schema(schema_to_type(later)).fields == (
        Field("image", NDArray("uint8", (28, 28))),
        Field("label", Primitive("int")),
        Field("note", Primitive("str"), optional=True),
    )


UNDECODABLE = {
    "a path": schema_of(Field("image/png", Primitive("str"))),
    "a keyword": schema_of(Field("class", Primitive("str"))),
    "code": schema_of(Field("x: int = __import__('os').system('true')", Primitive("str"))),
    "not normal": schema_of(Field("ﬁeld", Primitive("str"))),
    "dunder": schema_of(Field("__init__", Primitive("str"))),
    "a member": schema_of(Field("packed", Primitive("str"))),
    "a batch's member": schema_of(Field("samples", Primitive("str"))),
    "a name of ours": schema_of(Field("_atdata_layout", Primitive("str"))),
    "twice": schema_of(Field("a", Primitive("str")), Field("a", Primitive("int"))),
    "objects": schema_of(Field("a", NDArray("object"))),
    "code for a dtype": schema_of(Field("a", NDArray("float32]; import os; x: Arr[np.int8"))),
    "code for a primitive": schema_of(Field("a", Primitive("str = print()"))),
    "ref": schema_of(Field("a", Ref(INNER_URI))),
    "a list of them": schema_of(Field("a", Array(NDArray("object")))),
}


@pytest.mark.parametrize("schema", UNDECODABLE.values(), ids=UNDECODABLE)
@pytest.mark.parametrize("function", [schema_to_type, to_source])
def test_what_no_type_can_say_is_an_error_that_names_the_field(schema, function):
    """Names and dtypes are checked before they get near a class or source."""
    with pytest.raises(SchemaError, match=r"^S\."):
        function(schema)


def test_names_that_samples_use_are_reserved():
    """No field takes the place of what every sample, batch or decoded type has."""
    members = {*dir(schema_to_type(INNER)), *vars(atdata.SampleBatch([Inner("a")]))} - {"name"}
    assert {name for name in members if not is_reserved(name)} <= {"_repr_html_"}


def test_very_many_fields_are_an_error():
    """A schema with more fields than any sample has is refused at once; a thousand are read."""
    fields = [Field(f"f{i}", Primitive("int")) for i in range(1001)]
    assert len(dataclasses.fields(schema_to_type(schema_of(*fields[:1000])))) == 1000
    for function in (schema_to_type, to_source):
        with pytest.raises(SchemaError, match=r"S: has 1,001 fields, more than 1,000"):
            function(schema_of(*fields))


BROKEN = {
    "no list of fields": ({"fields": "oops"}, "fields: must be an array"),
    "no fields": ({"fields": None}, "fields: must be an array"),
    "nothing": ({}, "fields: "),
    "an unknown form": ({"schemaType": "protobuf", "schema": {}}, "schemaType: is not a form"),
    "no properties": ({"schema": {"$type": "x", "properties": None}}, "schema"),
    "no object": ({"schema": []}, "schema: must be an object"),
    "a field that is none": ({"fields": [5]}, r"fields\[0\]: must be an object"),
    "a field without a name": ({"fields": [{"fieldType": {}}]}, r"fields\[0\].*name"),
}


@pytest.mark.parametrize(("members", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("collection", ["ac.foundation.dataset.sampleSchema", "ac.foundation.dataset.schema"])
def test_a_schema_that_lost_its_fields_is_an_error_that_names_the_problems(collection, members, message):
    """A record whose fields cannot be read is no type without fields, which would read anything as nothing."""
    record = {"$type": collection, "name": "X", "version": "1.0.0", "createdAt": "2026-01-02T00:00:00Z", **members}
    with pytest.raises(SchemaError, match=f"the schema cannot be read: .*{message}"):
        schema_to_type(record)


def test_a_field_of_an_unknown_type_holds_anything():
    """What a later generation may add to the field types does not make the other fields unreadable."""
    fields = [{"name": "a", "fieldType": {"$type": "ac.foundation.dataset.schemaType#tensor"}, "optional": False}]
    decoded = schema_to_type({"name": "X", "version": "1.0.0", "createdAt": "2026-01-02T00:00:00Z", "fields": fields})
    assert decoded.from_data({"a": [1]}).a == [1]


@pytest.mark.parametrize("schema", [{}, {"$type": "ac.foundation.dataset.label"}, {"$type": 5}, "text", None, []])
def test_what_is_no_schema_is_an_error(schema):
    """Anything else than a schema record is refused in words."""
    with pytest.raises(SchemaError):
        schema_to_type(schema)


def test_a_circle_of_schemas_is_an_error():
    """A schema that refers to itself, or a very long chain, ends in an error; a wide one is built once."""
    circle = schema_of(Field("again", Ref(INNER_URI)))
    with pytest.raises(SchemaError, match="circle"):
        schema_to_type(circle, resolve=lambda uri: circle)
    asked = []

    def wide(uri: str) -> SchemaRecord:
        asked.append(uri)
        depth = int(uri.rpartition("/")[2])
        if not depth:
            return INNER
        below = Ref(f"at://did:plc:abc123/ac.foundation.dataset.sampleSchema/{depth - 1}")
        return schema_of(*(Field(f"f{i}", below) for i in range(10)))

    top = "at://did:plc:abc123/ac.foundation.dataset.sampleSchema/12"
    schema_to_type(schema_of(Field("top", Ref(top))), resolve=wide)
    assert len(asked) == 13
    assert to_source(schema_of(Field("top", Ref(top))), resolve=wide).count("class ") == 14


def test_very_many_schemas_are_an_error():
    """Nobody is made to look up schema after schema."""
    uris = [f"at://did:plc:abc123/ac.foundation.dataset.sampleSchema/{i}" for i in range(101)]
    schema = schema_of(*(Field(f"f{i}", Ref(uri)) for i, uri in enumerate(uris)))
    with pytest.raises(SchemaError, match="refers to more than 100 others"):
        schema_to_type(schema, resolve=lambda uri: INNER)


CLASS_NAMES = [
    ("ImageSample", "ImageSample"),
    ("digits, v2", "DigitsV2"),
    ("2024 data", "Sample2024Data"),
    ("class", "Class"),
    ("données", "données"),
    ("💥", "Sample"),
    ("__main__", "Main__"),
    ("x\nimport os", "XImportOs"),
]


@pytest.mark.parametrize(("name", "expected"), CLASS_NAMES)
def test_names_of_records_become_names_of_classes(name, expected):
    """A schema may be called anything; its class is called something that Python allows."""
    assert schema_to_type(schema_of(Field("a", Primitive("int")), name=name)).__name__ == expected
    assert f"class {expected}:" in to_source(schema_of(Field("a", Primitive("int")), name=name))


INEXPRESSIBLE = {
    "dict": (dict[str, int], "no schema can express dict"),
    "any": (Any, "no schema can express Any"),
    "union": (int | str, "no schema can express int | str"),
    "scalar": (np.float32, "no schema can express float32"),
    "tuple": (tuple[int, ...], r"no schema can express tuple\[int, \.\.\.\]"),
    "none in a list": (list[int | None], "item of a list may be None"),
    "nested": (Inner, "publish the schema of Inner first"),
    "objects": (Arr[np.object_], "pickle"),
    "void": (Arr[np.void], "no place in a schema"),
}


@pytest.mark.parametrize(("hint", "message"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_no_schema_can_say_is_an_error_that_names_the_field(hint, message):
    """A hint outside the field-type table is named, with what goes instead."""
    made = packable(type("Odd", (), {"__annotations__": {"x": hint}}))
    with pytest.raises(SchemaError, match=message) as caught:
        type_to_schema(made)
    assert str(caught.value).startswith("Odd.x: ")


def test_versions_are_checked():
    """A version that is not semantic is refused before anything is published."""
    with pytest.raises(SchemaError, match="semantic version"):
        type_to_schema(Inner, version="1.0")


def test_hints_as_text():
    """Hints print as one writes them."""
    assert [hint.text for hint in read_hints(Everything)][:13] == [
        "str", "int", "float", "bool", "bytes", "NDArray", "NDArray", "NDArray[uint8]", "NDArray[float64]",
        "NDArray[datetime64]", "NDArray[str]", "NDArray[datetime64]", "list[str]",
    ]  # fmt: skip
    assert read_hints(Everything)[19].text == "NDArray[int8] | None"


def test_a_list_of_tuples_is_published_as_a_list_of_anything():
    """What cannot be said of the items of a list is left unsaid."""
    made = packable(type("Boxes", (), {"__annotations__": {"x": list[tuple[int, int]], "y": list[dict]}}))
    assert [field.type for field in type_to_schema(made).fields] == [Array(), Array()]


CODECS = {
    "utf-7": "+AAo-",
    "unicode_escape": "\\n",
    "raw_unicode_escape": "\\u000a",
    "utf-8": "\x0c\n\r\x0b\x1c\x1d\x1e\x85\u2028\u2029\0\u202e",
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("place", ["name", "description", "field", "version"])
def test_no_text_of_a_record_is_run(tmp_path, codec, place):
    """A record that names a codec (PEP 263), or ends the line in any other way, stays in comments."""
    ran = tmp_path / "ran"
    attack = f"coding: {codec} {CODECS[codec]}open({str(ran)!r}, 'w'){CODECS[codec]}"
    # A name and a description of two records that work together, and each alone.
    record = SchemaRecord(
        f"coding: {codec}" if place == "description" else attack if place == "name" else "S",
        attack if place == "version" else "1.0.0",
        (Field("x", Primitive("int"), description=attack if place == "field" else None),),
        description=attack if place in ("name", "description") else None,
    )
    path = tmp_path / "printed.py"
    path.write_text(to_source(record), encoding="utf-8")
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert not ran.exists()
    first, second = to_source(record).splitlines()[:2]
    assert (first, second) == ("# -*- coding: utf-8 -*-", "from __future__ import annotations")


def test_comments_are_one_line():
    """Whatever the text, a comment has one line, of characters that can be seen."""
    for text in ("a\nb", "a\x0cb", "\x85a\u2028b", "a\u202eb", "\x1ca\0b"):
        comment = _comment(text)
        assert len(comment.splitlines()) == 1
        assert comment.isprintable()
        assert comment.startswith("# a")


AWKWARD = (
    "int", "str", "float", "bool", "bytes", "list", "np", "npt", "numpy", "typing", "atdata", "records", "dataclasses",
    "builtins", "NDArray", "Any", "field", "packable", "_", "int_",
)  # fmt: skip


def awkward_sources() -> dict[str, str]:
    fields = tuple(Field(name, Primitive("int"), optional=i % 2 == 0) for i, name in enumerate(AWKWARD))
    arrays = (
        Field("a_list", Array(Array())),
        Field("an_array", NDArray(">f4", (0, 3)), optional=True),
        Field("some_bytes", Primitive("bytes"), description="several\nlines'''\\\r\x0c and \"quotes\"\u2028"),
        Field("platform", NDArray("complex256")),
        Field("one", Ref(INNER_URI)),
        Field("others", Array(Ref(INNER_URI + "b")), optional=True),
    )
    # Two nested types of one name.
    nested = {INNER_URI: INNER, INNER_URI + "b": schema_of(Field("other", Primitive("int")), name="Inner")}
    awkward = SchemaRecord("list", "1.0.0", (*fields, *arrays), description='""" + evil() + """')
    decoded = schema_to_type(awkward, resolve=nested.__getitem__)
    return {
        "everything": to_source(Everything, resolve=resolve),
        "awkward": to_source(awkward, resolve=nested.__getitem__),
        "decoded": to_source(decoded, resolve=nested.__getitem__),
        "empty": to_source(schema_of()),
    }


def test_source_makes_the_same_type(monkeypatch):
    """Running the printed source gives a type with the same fields, whatever they are called."""
    for name, source in awkward_sources().items():
        module = type(sys)(f"printed_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, name, "exec"), module.__dict__)  # that it can be run is the test
        declared = [one.name for one in ast.parse(source).body if isinstance(one, ast.ClassDef)]
        fields = type_to_schema(getattr(module, declared[-1]), refs=lambda sample_type: INNER_URI).fields
        if name == "everything":
            assert [(f.name, f.type, f.optional) for f in fields] == [(f.name, f.type, f.optional) for f in EXPECTED]
        elif name != "empty":
            assert tuple(field.name for field in fields[: len(AWKWARD)]) == AWKWARD
            assert [field.optional for field in fields[:4]] == [True, False, True, False]
            assert declared == ["Inner", "Inner_2", "list_2"]


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_accept_the_source(tmp_path, checker):
    """mypy --strict and pyright have nothing to say about printed types."""
    for name, source in awkward_sources().items():
        (tmp_path / f"{name}.py").write_text(source)
    root = Path(atdata.__file__).parents[2]
    command = {
        "mypy": ["mypy", "--strict", "--config-file", str(root / "pyproject.toml"), "--no-incremental"],
        "pyright": ["pyright", "--pythonpath", sys.executable],
    }[checker]
    files = sorted(str(path) for path in tmp_path.glob("*.py"))
    run = subprocess.run(
        [sys.executable, "-m", *command, *files], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
