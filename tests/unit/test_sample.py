"""Samples: what goes in comes out, what does not fit is an error that names the field, keys never collide."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Annotated, Any, Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
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
    described: int = field(default=7, metadata={"description": "a number"})


arrays = st.sampled_from(["?", "u1", "i8", "f2", "f4", "f8", "c8", "<M8[ns]"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
integers = st.integers(-(2**63), 2**64 - 1)
untyped = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
inners = st.builds(Inner, st.text(), arrays)
everything = st.builds(
    Everything,
    text=st.text(),
    number=integers,
    ratio=st.floats(),
    flag=st.booleans(),
    blob=st.binary(),
    image=arrays,
    any_array=arrays,
    words=st.lists(st.text()),
    parts=st.lists(arrays, max_size=3),
    nested=inners,
    inners=st.lists(inners, max_size=2),
    anything=untyped,
    maybe_text=st.none() | st.text(),
    maybe_array=st.none() | arrays,
    maybe_inner=st.none() | inners,
    noted=arrays,
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
    "parts": [np.zeros(1)],
    "nested": Inner("n", np.ones(1, bool)),
    "inners": [],
    "anything": None,
    "maybe_text": None,
    "maybe_array": None,
    "maybe_inner": None,
    "noted": np.zeros((2, 2), np.uint8),
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
    ("image", np.array([None]), "image: arrays of dtype object would need pickle"),
    ("image", np.ma.masked_array([1], [True]), "image: a masked array would lose its mask"),
    ("words", "abc", "words: expected a list, found str"),
    ("words", ["a", 2], r"words\[1\]: expected str, found int 2"),
    ("parts", [np.zeros(1), "x"], r"parts\[1\]: expected a NumPy array"),
    ("nested", {"name": "n"}, "nested: expected a sample of type Inner, found dict"),
    ("nested", Inner(3, np.zeros(1)), "nested.name: expected str"),
    ("inners", [Inner("a", "b")], r"inners\[0\].mask: expected a NumPy array"),
    ("anything", object(), "anything"),
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
        Digit.from_data({"image": np.zeros(1)})


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
            "image": np.float64(2.0),
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


UNREADABLE = {
    "reserved": ("packed", int, "has a member of this name"),
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
