"""Samples: what goes in comes out, what does not fit is an error that names the field, keys never collide."""

from __future__ import annotations

import copy
import dataclasses
import enum
import io
import pickle
import struct
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Annotated, Any, Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy
from numpy.typing import NDArray
from shard_files import Digit, digits

import atdata
from atdata import codec
from atdata.atmosphere import records
from atdata.errors import SampleError, SchemaError
from atdata.sample import DictSample, PackableSample, is_same, new_key, packable


@packable
class Inner:
    name: str
    mask: NDArray[np.bool_]


@packable
class Wide(Inner):
    extra: int


class Color(str, enum.Enum):  # noqa: UP042 — what older code has; str() of a member is its name
    RED = "red"


@packable
class Everything:
    text: str
    number: int
    ratio: float
    flag: bool
    blob: bytes
    image: NDArray[np.uint8]
    any_array: NDArray
    words: list[str]
    parts: list[NDArray[np.float32]]
    nested: Inner
    inners: list[Inner]
    anything: Any
    maybe_text: str | None
    maybe_array: Optional[NDArray[np.float64]]  # noqa: UP045 — both spellings are in use
    maybe_inner: Inner | None
    noted: Annotated[NDArray[np.uint8], records.NDArray("uint8", (2, 2))]
    pair: tuple[str, int]
    corners: tuple[tuple[int, int], ...]
    any_tuple: tuple
    described: int = field(default=7, metadata={"description": "a number"})
    made: int = field(default=0, init=False)
    cache: object = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        self.made = self.described
        self.cache = object()


arrays = st.sampled_from(["?", "u1", "i8", "f2", "f4", "f8", "c8", "<M8[ns]"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


def array_of(dtype: str, shape: Any = None) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.dtype(dtype), shape or hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


integers = st.integers(-(2**63), 2**64 - 1)
untyped = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
inners = st.builds(Inner, st.text(), array_of("?"))
everything = st.builds(
    Everything,
    text=st.text(),
    number=integers,
    ratio=st.floats(),
    flag=st.booleans(),
    blob=st.binary(),
    image=array_of("u1"),
    any_array=arrays,
    words=st.lists(st.text()),
    parts=st.lists(array_of("<f4") | array_of(">f4"), max_size=3),
    nested=inners,
    inners=st.lists(inners, max_size=2),
    anything=untyped,
    maybe_text=st.none() | st.text(),
    maybe_array=st.none() | array_of("f8"),
    maybe_inner=st.none() | inners,
    noted=array_of("u1", (2, 2)),
    pair=st.tuples(st.text(), integers),
    corners=st.lists(st.tuples(integers, integers), max_size=3).map(tuple),
    any_tuple=st.lists(untyped, max_size=3).map(tuple),
    described=integers,
)


@given(everything)
def test_samples_survive(sample):
    """decode(encode(x)) == x, for every kind of field, and encoding it again gives the same bytes."""
    read = Everything.from_bytes(sample.packed)
    assert read == sample
    assert read.packed == sample.packed
    assert read.image.dtype == sample.image.dtype


def test_the_message_is_a_map_in_declared_order():
    """A packed sample is a msgpack map of the fields in declared order, arrays in NumPy's format."""
    fields = codec.unpack_map(Digit(np.zeros((2, 2), np.uint8), 7).packed)
    assert list(fields) == ["image", "label"]
    assert fields["image"].startswith(b"\x93NUMPY")
    assert fields["label"] == 7


def test_packable_and_its_base_class_are_the_same_thing():
    """A dataclass under PackableSample packs like a class made by @packable, which is one."""

    @dataclass
    class Other(PackableSample):
        image: NDArray[np.uint8]
        label: int

    sample = Other(np.zeros((2, 2), np.uint8), 7)
    assert sample.packed == Digit(np.zeros((2, 2), np.uint8), 7).packed
    assert Other.from_bytes(sample.packed) == sample
    assert issubclass(Digit, PackableSample)
    assert dataclasses.is_dataclass(Digit)
    assert (Digit.__name__, Digit.__module__, Digit.__doc__) == ("Digit", "shard_files", "A picture of a digit.")
    assert isinstance(sample, atdata.Packable)
    assert isinstance(DictSample(), atdata.Packable)


def test_the_decorator_takes_a_class_that_has_the_base():
    """With both, type checkers see fields and members; the class is the same."""

    @packable
    class Both(PackableSample):
        label: int

    assert Both.from_bytes(Both(7).packed) == Both(7)
    assert Both.__mro__[1] is PackableSample


def test_methods_defaults_and_inheritance_are_kept():
    """A decorated class keeps its methods, super() calls, defaults and __post_init__; it can be inherited from."""

    @packable
    class Base:
        x: int
        log: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            self.log.append("made")

        def twice(self) -> int:
            return self.x * 2

    @packable
    class Derived(Base):
        y: int = 5

        def twice(self) -> int:
            return super().twice() + self.y

    read = Derived.from_bytes(Derived(3).packed)
    assert read.twice() == 11
    assert Derived(3).log == ["made"]
    assert isinstance(read, Base)


def test_a_dataclass_keeps_its_options():
    """@packable on a frozen dataclass leaves it frozen, and compares its arrays by value all the same."""

    @packable
    @dataclass(frozen=True)
    class Frozen:
        x: NDArray

    sample = Frozen.from_bytes(Frozen(np.arange(3)).packed)
    assert sample == Frozen(np.arange(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.x = np.arange(2)


def test_a_class_may_compare_itself():
    """An __eq__ of the class's own wins."""

    @packable
    class Loose:
        x: int

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    assert Loose(1) == Loose(2)


EQUAL = [
    (np.array([1, 2]), np.array([1, 2]), True),
    (np.array([1, 2], np.uint8), np.array([1.0, 2.0]), True),
    (np.array([1, 2]), np.array([1, 3]), False),
    (np.array([1, 2]), np.array([[1, 2]]), False),
    (np.array([1, 1]), np.array([1]), False),
    (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
    (np.array([np.nan, 1.0]), np.array([1.0, np.nan]), False),
    (np.array(["NaT", "2026-01-02"], "M8[D]"), np.array(["NaT", "2026-01-02"], "M8[D]"), True),
    (np.array(["a"]), np.array(["a"]), True),
    (np.array(["1"]), np.array([1]), False),
    (np.array([]), np.array([]), True),
    (np.array(3), np.array(3), True),
    (np.array([(1, np.nan)], "i4,f4"), np.array([(1, 2.0)], "i4,f4"), False),
    (np.array([1]), [1], False),
    (None, np.array([1]), False),
    (float("nan"), float("nan"), True),
    (float("nan"), 1.0, False),
    ([np.array([1]), {"a": np.array([2])}], [np.array([1]), {"a": np.array([2])}], True),
    ([np.array([1]), {"a": np.array([2])}], [np.array([1]), {"a": np.array([3])}], False),
    ({"a": 1}, {"b": 1}, False),
    ([1], (1,), False),
]


@pytest.mark.parametrize(("a", "b", "expected"), EQUAL)
def test_equality_is_by_value(a, b, expected):
    """Arrays by shape and values, a NaN to a NaN; lists and maps by their items."""
    assert is_same(a, b) is expected
    assert is_same(b, a) is expected
    assert is_same(a, copy.deepcopy(a))


def test_samples_of_two_types_are_not_equal_and_none_has_a_hash():
    """Equality is within one type; what holds arrays cannot be a key."""

    @packable
    class Twin:
        image: NDArray[np.uint8]
        label: int

    assert Twin(np.zeros(1), 1) != Digit(np.zeros(1), 1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Digit(np.zeros(1), 1))
    with pytest.raises(TypeError, match="unhashable"):
        hash(DictSample())


GOOD = {
    "text": "a",
    "number": 1,
    "ratio": 0.5,
    "flag": True,
    "blob": b"b",
    "image": np.zeros((2, 2), np.uint8),
    "any_array": np.zeros(1),
    "words": ["x"],
    "parts": [np.zeros(1, np.float32)],
    "nested": Inner("n", np.ones(1, bool)),
    "inners": [],
    "anything": None,
    "maybe_text": None,
    "maybe_array": None,
    "maybe_inner": None,
    "noted": np.zeros((2, 2), np.uint8),
    "pair": ("a", 1),
    "corners": ((1, 2),),
    "any_tuple": (1, "a"),
}

WRONG = [
    ("text", 1, "text: expected str, found int 1"),
    ("number", "x", "number: expected int, found str 'x'"),
    ("number", 1.0, "number: expected int, found float 1.0"),
    ("number", 2**64, "number"),
    ("ratio", "x", "ratio: expected float"),
    ("ratio", True, "ratio: expected float, found bool"),
    ("ratio", 10**400, "ratio: no float holds it"),
    ("flag", 1, "flag: expected bool"),
    ("blob", "x", "blob: expected bytes"),
    ("text", None, "text: expected str, found None"),
    ("image", None, "image: expected a NumPy array, found None"),
    ("image", [1, 2], r"image: expected a NumPy array, found list .*np.asarray"),
    ("any_array", np.array([None]), "any_array: arrays of dtype object would need pickle"),
    ("image", np.ma.masked_array([1], [True], np.uint8), "image: a masked array would lose its mask"),
    ("words", "abc", "words: expected a list, found str"),
    ("words", ["a", 2], r"words\[1\]: expected str, found int 2"),
    ("parts", [np.zeros(1, np.float32), "x"], r"parts\[1\]: expected a NumPy array"),
    ("parts", [np.zeros(1)], r"parts\[0\]: expected an array of dtype float32, found float64; convert it with .astype"),
    ("image", np.array([1.5, 300.0]), "image: expected an array of dtype uint8, found float64"),
    ("image", np.array(["a"]), "image: expected an array of dtype uint8, found <U1"),
    ("noted", np.zeros((2, 3), np.uint8), r"noted: expected an array of shape \(2, 2\), found \(2, 3\)"),
    ("noted", np.zeros(2, np.uint8), r"noted: expected an array of shape \(2, 2\), found \(2,\)"),
    ("any_array", np.ma.masked_array([1.0], [True]), "any_array: a masked array would lose its mask"),
    ("nested", {"name": "n"}, "nested: expected a sample of type Inner, found dict"),
    ("nested", Inner(3, np.zeros(1)), "nested.name: expected str"),
    ("inners", [Inner("a", "b")], r"inners\[0\].mask: expected a NumPy array"),
    ("nested", Wide("n", np.ones(1, bool), 3), "nested: expected a sample of type Inner, found Wide .*what that adds"),
    ("anything", object(), "anything"),
    ("anything", np.ma.masked_array([1], [True]), "anything: a masked array would lose its mask"),
    ("anything", [np.ma.masked_array(["ab"], [True])], "anything: a masked array would lose its mask"),
    ("anything", {"file": b"\x93NUMPY is how these begin"}, "anything: these bytes begin like a .npy file"),
    ("number", True, "number: expected int, found bool True"),
    ("ratio", 2**53 + 1, "ratio: no float is exactly 9007199254740993"),
    ("ratio", np.int64(2**53 + 1), "ratio: no float is exactly"),
    ("pair", ("a",), "pair: expected 2 items, found 1"),
    ("pair", ("a", "b"), r"pair\[1\]: expected int, found str"),
    ("pair", "ab", "pair: expected a list, found str"),
    ("maybe_text", 3, "maybe_text: expected str"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_value_is_an_error_that_names_the_field(name, value, message):
    """Packing a value that does not fit its field raises SampleError with the field, what was expected and found."""
    with pytest.raises(SampleError, match=message) as caught:
        _ = Everything(**{**GOOD, name: value}).packed
    assert caught.value.field.startswith(name)


READ_WRONG = [
    ({"label": "x"}, "label: expected int, found str 'x'"),
    ({"label": None}, "label: expected int, found None"),
    ({"image": "x"}, "image: expected a NumPy array"),
    ({"image": b"\x93NUMPY"}, "image: an array in .npy format has a header"),
    ({"image": b"junk"}, "image"),
    ({"image": codec.pack_array(np.array(["boom"]))}, "image: expected an array of dtype uint8, found <U4"),
    ({"label": True}, "label: expected int, found bool True"),
]


@pytest.mark.parametrize(("change", "message"), READ_WRONG)
def test_a_sample_of_another_type_is_an_error_that_names_the_field(change, message):
    """Reading a value that does not fit raises SampleError with the field."""
    data = {"image": codec.pack_array(np.zeros(1, np.uint8)), "label": 7, **change}
    with pytest.raises(SampleError, match=message):
        Digit.from_bytes(codec.pack_map(data))


def test_a_missing_field_is_an_error_that_says_what_there_is():
    """A field that is needed and not there is named, with those that are there and what to do."""
    with pytest.raises(
        SampleError, match=r"label: is missing; the sample has only image\. Give Digit\.label a default"
    ):
        Digit.from_data({"image": np.zeros(1, np.uint8)})


def test_absent_and_unknown_fields():
    """A default or None stands in for what is absent; what the type does not know is ignored."""

    @packable
    class Small:
        a: int = 3
        b: str | None = "default"
        c: NDArray | None = None

    @packable
    class Bare:
        a: str | None
        b: int = 1

    assert Small.from_data({"z": 1}) == Small(3, "default", None)
    assert Small.from_data({"b": None}) == Small(3, None, None)
    assert Bare.from_data({}) == Bare(None)


def test_close_values_are_taken():
    """NumPy's scalars, integers for floats, tuples for lists and other libraries' arrays are what they say."""

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(3)

    sample = Everything(
        **{
            **GOOD,
            "text": np.str_("a"),
            "number": np.uint8(3),
            "ratio": np.float32(0.5),
            "flag": np.bool_(True),
            "blob": bytearray(b"x"),
            "words": ("a", "b"),
            "any_array": Tensor(),
            "image": np.uint8(2),
        }
    )
    read = Everything.from_bytes(sample.packed)
    assert (read.text, read.number, read.ratio, read.flag, read.blob) == ("a", 3, 0.5, True, b"x")
    assert read.words == ["a", "b"]
    assert type(read.number) is int
    np.testing.assert_array_equal(read.any_array, np.arange(3))
    assert read.image.shape == ()
    assert type(Everything.from_data({**GOOD, "ratio": 2}).ratio) is float


def test_read_arrays_can_be_changed():
    """Arrays of a read sample are one's own: writable, and independent of the bytes."""
    packed = Digit(np.zeros((2, 2), np.uint8), 1).packed
    sample = Digit.from_bytes(packed)
    sample.image += 1
    assert Digit.from_bytes(packed).image.sum() == 0


DTYPES = [
    ("uint8", "u1", True),
    ("uint8", "i1", False),
    ("float32", ">f4", True),
    ("float32", "f8", False),
    ("<f4", ">f4", True),
    ("str", "U3", True),
    ("U5", "U7", True),
    ("str", "S3", False),
    ("bytes", "S3", True),
    ("datetime64", "M8[ns]", True),
    ("datetime64", "m8[ns]", False),
    ("datetime64[ns]", ">M8[ns]", True),
    ("datetime64[ns]", "M8[s]", False),
    ("timedelta64", "m8[s]", True),
    ("longdouble", "g", True),
    ("longdouble", "f8", True),
    ("intp", "i4", True),
    ("intp", "u4", False),
]


@pytest.mark.parametrize(("declared", "found", "is_good"), DTYPES)
def test_a_declared_dtype_is_meant(declared, found, is_good):
    """Arrays have the declared dtype, both ways, but for byte order, length of text and what the name leaves open."""
    hint = Annotated[NDArray, records.NDArray(declared)]
    if declared == "float32":
        hint = NDArray[np.float32]
    made = packable(type("Made", (), {"__annotations__": {"x": hint}}))
    array = np.zeros(2, found)
    stored = codec.pack_map({"x": codec.pack_array(array)})
    if is_good:
        assert made.from_bytes(made(array).packed).x.dtype == array.dtype
        assert made.from_bytes(stored).x.dtype == array.dtype
        return
    for attempt in (lambda: made(array).packed, lambda: made.from_bytes(stored)):
        with pytest.raises(SampleError, match=r"field x: expected an array of dtype .* found"):
            attempt()


SHAPES = [
    (None, (), True),
    ((), (2, 3), True),
    ((0, 3), (7, 3), True),
    ((0, 3), (0, 3), True),
    ((0, 3), (3, 4), False),
    ((3,), (3, 1), False),
]


@pytest.mark.parametrize(("declared", "found", "is_good"), SHAPES)
def test_a_declared_shape_is_meant(declared, found, is_good):
    """Arrays have the shape that is declared, both ways; 0 stands for any length, no lengths for any shape."""
    hint = Annotated[NDArray[np.uint8], records.NDArray("uint8", declared)]
    made = packable(type("Made", (), {"__annotations__": {"x": hint}}))
    array = np.zeros(found, np.uint8)
    stored = codec.pack_map({"x": codec.pack_array(array)})
    if is_good:
        assert made.from_bytes(made(array).packed) == made.from_bytes(stored) == made(array)
        return
    for attempt in (lambda: made(array).packed, lambda: made.from_bytes(stored)):
        with pytest.raises(SampleError, match=r"field x: expected an array of shape \((any, )?3"):
            attempt()


def test_what_equals_a_primitive_is_stored_as_what_it_equals():
    """A member of `class Color(str, Enum)` is stored as its value, not as its name."""

    @packable
    class Painted:
        color: str
        number: int

    class Five(enum.IntEnum):
        FIVE = 5

    read = Painted.from_bytes(Painted(Color.RED, Five.FIVE).packed)
    assert read == Painted("red", 5) == Painted(Color.RED, Five.FIVE)
    assert (type(read.color), type(read.number)) == (str, int)
    with pytest.raises(SampleError, match="field color: msgpack cannot hold it"):
        _ = DictSample(color=Color.RED).packed


def test_fields_that_the_constructor_does_not_take_survive():
    """A field with init=False is stored as it is; where a sample has none, it is what the constructor made of it."""

    @packable
    @dataclass(frozen=True)
    class Counted:
        words: list[str]
        count: int = field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "count", len(self.words))

    sample = Counted(["a", "b"])
    object.__setattr__(sample, "count", 5)
    assert Counted.from_bytes(sample.packed) == sample
    assert Counted.from_data({"words": ["a"]}).count == 1


UNREADABLE = {
    "reserved": ("packed", int, "has a member of this name"),
    "of a batch": ("samples", int, "has a member of this name"),
    "of ours": ("_atdata_layout", int, "has a member of this name"),
    "dunder": ("__secret", int, "has a member of this name"),
    "objects": ("x", NDArray[np.object_], "pickle"),
    "no such name": ("x", "Nonsense", "Nonsense"),
}


@pytest.mark.parametrize(("name", "hint", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_type_that_cannot_be_read_is_an_error(name, hint, message):
    """A hint that is not understood, or a field in the way of a sample's own members, is named."""
    made = packable(type("Odd", (), {"__annotations__": {name: hint}}))
    with pytest.raises(SchemaError, match=message):
        made.from_data({})


def test_what_is_no_sample_type_is_an_error():
    """A class without the decorator is told of it."""
    with pytest.raises(SchemaError, match="int is not a sample type; decorate the class"):
        next(iter(atdata.Dataset[int]("x.tar")))


# --- DictSample


def test_dict_samples():
    """Fields are attributes and items; what looks like an array is one; bytes and order survive."""
    digit = digits(4)[3]
    sample = DictSample.from_bytes(digit.packed)
    assert list(sample.keys()) == ["image", "label"]
    assert sample.label == sample["label"] == sample.get("label") == 3
    np.testing.assert_array_equal(sample.image, digit.image)
    assert dict(sample.items()).keys() == sample.to_dict().keys() == {"image", "label"}
    assert sample.get("nothing", 5) == 5
    assert "label" in sample
    assert len(sample) == 2
    assert set(sample) == {"image", "label"}
    assert "image" in dir(sample)
    assert sample.packed == digit.packed
    assert sample == DictSample(image=digit.image, label=3)
    assert sample != DictSample(image=digit.image, label=4)
    assert "uint8" in repr(sample)
    assert sample.as_wds["msgpack"] == digit.packed
    for copied in (copy.copy(sample), copy.deepcopy(sample), pickle.loads(pickle.dumps(sample))):
        assert copied == sample


def test_a_field_that_is_not_there_is_named():
    """An attribute that is no field is an AttributeError with the fields there are; an item a KeyError."""
    sample = DictSample(label=1)
    with pytest.raises(AttributeError, match="no field 'image'; it has only label"):
        _ = sample.image
    with pytest.raises(KeyError):
        sample["image"]


def test_a_field_named_like_a_method_is_an_item():
    """`keys` is a method, and an item."""
    sample = DictSample({"keys": 3})
    assert list(sample.keys()) == ["keys"]
    assert sample["keys"] == 3


def test_bytes_that_only_look_like_an_array_stay_readable_by_type():
    """A field of bytes that holds a .npy file is bytes to a type that says so."""

    @packable
    class File:
        content: bytes

    content = codec.pack_array(np.arange(3))
    assert File.from_data(DictSample.from_bytes(File(content).packed).raw).content == content


def test_changes_in_place_are_packed():
    """What was changed in a read sample is what is packed, and what a typed view sees."""
    sample = DictSample.from_bytes(DictSample(image=np.arange(4), meta={"k": [1]}, flag={"on": 1}, label=1).packed)
    sample.image[:] = 0
    sample.meta["k"].append(2)
    sample.flag["on"] = True
    read = DictSample.from_bytes(sample.packed)
    assert read == sample
    assert read.image.tolist() == [0, 0, 0, 0]
    assert read.meta == {"k": [1, 2]}
    assert read.flag["on"] is True
    assert sample.raw["meta"] == {"k": [1, 2]}
    sample.meta["k"] = object()
    with pytest.raises(SampleError, match="field meta: msgpack cannot hold it"):
        _ = sample.packed
    sample.meta["k"] = np.array([None])
    with pytest.raises(SampleError, match="field meta: arrays of dtype object"):
        _ = sample.packed


def test_what_was_only_looked_at_is_packed_as_it_was_written():
    """Looking at a field changes no byte of the sample, whichever way an array was written."""
    buffer = io.BytesIO()
    npy.write_array(buffer, np.arange(3), version=(2, 0))
    compact = b"\x03<f4\x01" + struct.pack("<q", 2) + np.array([1, 2], "<f4").tobytes()
    stored = codec.pack_map({"array": buffer.getvalue(), "compact": compact, "deep": {"a": [buffer.getvalue(), 1]}})
    sample = DictSample.from_bytes(stored)
    assert sample.to_dict()["deep"]["a"][0].tolist() == [0, 1, 2]
    assert sample.packed == stored


def test_bytes_that_are_no_array_cannot_be_taken_for_one():
    """Bytes that begin like a .npy file are refused where no type says that they are bytes, and not read as arrays."""
    content = codec.pack_array(np.arange(3))
    assert DictSample(content=content).content == content
    with pytest.raises(SampleError, match=r"field content: these bytes begin like a \.npy file"):
        _ = DictSample(content=content).packed
    assert DictSample.from_data({"content": content}).content.tolist() == [0, 1, 2]


@given(st.dictionaries(st.text(), untyped | arrays, max_size=4))
def test_dict_samples_survive(fields):
    """decode(encode(x)) == x without a type, too."""
    assert DictSample.from_bytes(DictSample(fields).packed) == DictSample(fields)


# --- Keys and pickles


def make_keys(count: int) -> list[str]:
    return [new_key() for _ in range(count)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_keys_sort_by_time_and_do_not_collide():
    """Keys of one process sort as they were made; those of forked processes are all different."""
    keys = make_keys(2000)
    assert keys == sorted(keys)
    with get_context("fork").Pool(4) as pool:
        lists = pool.map(make_keys, [500] * 8)
    every = keys + [key for one in lists for key in one]
    assert len(set(every)) == len(every)
    assert all("." not in key and "/" not in key for key in every)
    assert new_key() > max(every)


def test_keys_survive_a_clock_that_goes_back(monkeypatch):
    """A clock set back does not break the order."""
    first = new_key()
    monkeypatch.setattr("time.time_ns", lambda: 1)
    assert first < new_key() < new_key()


def test_as_wds():
    """webdataset gets a fresh key and the packed bytes."""
    sample = digits(1)[0]
    first, second = sample.as_wds, sample.as_wds
    assert first.keys() == {"__key__", "msgpack"}
    assert first["msgpack"] == sample.packed
    assert first["__key__"] < second["__key__"]


def test_samples_and_errors_can_be_pickled():
    """What worker processes send back arrives as it was."""
    sample = digits(1)[0]
    assert pickle.loads(pickle.dumps(sample)) == sample
    error = SampleError("odd", "label", "000003", "train-0.tar")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "train-0.tar: sample 000003: field label: odd"
    assert again.field == "label"


def test_a_sample_is_shown_in_one_line():
    """Arrays are shown by shape and dtype; a class's own __repr__ stays, and notebooks show a table."""

    @packable
    class Big:
        image: NDArray[np.uint8]
        label: int

    @packable
    class Own:
        label: int

        def __repr__(self) -> str:
            return "own"

    big = Big(np.zeros((100, 100), np.uint8), 7)
    assert repr(big).endswith("Big(image=<uint8 array of shape (100, 100)>, label=7)")
    assert repr(Own(1)) == "own"
    assert "uint8 (100, 100)" in big._repr_html_()
    assert "<td" in DictSample(label=1)._repr_html_()
