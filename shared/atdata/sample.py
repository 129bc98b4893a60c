"""Own samples: the declared ones, which know their fields' types, and `DictSample`, which takes what it finds.

A sample is a msgpack map of its fields; "Samples in a shard" of the wire formats says how.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping
from functools import lru_cache
from itertools import repeat
from typing import Any, Final, NoReturn, Self, TypeVar, dataclass_transform

import numpy as np

from atdata import codec
from atdata.atmosphere.records import Primitive
from atdata.errors import SampleError
from atdata.hints import ArrayOf, Kind, ListOf, Nested, TupleOf, is_sample_type, read_hints

__all__ = ["DictSample", "PackableSample", "brief", "is_same", "new_key", "packable", "sample_type_of"]

T = TypeVar("T")


class PackableSample:
    """The base of declared samples. Subclass it as a dataclass, or write `@atdata.packable`, which does both.

    >>> @dataclass
    ... class Digit(PackableSample):
    ...     image: NDArray[np.uint8]
    ...     label: int | None
    >>> Digit.from_bytes(Digit(np.zeros((28, 28), np.uint8), 7).packed).label
    7

    What is packed is what is read: a value that its field cannot hold exactly is an error, on the way in and on the way
    out. A declared dtype is meant, apart from the byte order and the length of text; `NDArray` alone takes any.

    Two samples are equal when they are of one type and their fields are equal: arrays by shape and values, whatever
    their dtypes, and a NaN equals a NaN, so that a sample equals its copy.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `@dataclass` leaves a method alone that the class itself has; its own would compare arrays with ==.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = _is_equal  # type: ignore[method-assign]
            cls.__hash__ = None  # type: ignore[assignment]
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = _repr  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        from atdata import html

        return html.sample(self)

    @property
    def packed(self) -> bytes:
        """This sample as msgpack. Raises SampleError, a ValueError, that names the field with a wrong value."""
        return codec.pack_map(_to_map(self))

    @property
    def as_wds(self) -> dict[str, Any]:
        """This sample as webdataset's writers take it, under a new key that sorts after all earlier ones.

        >>> with wds.writer.TarWriter("digits.tar") as sink:
        ...     sink.write(sample.as_wds)
        """
        return {"__key__": new_key(), "msgpack": self.packed}

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """The sample in *data*. Raises SampleError, a ValueError, that names the field which does not fit."""
        return cls.from_data(codec.unpack_map(data))

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The sample whose fields *data* holds: arrays as arrays or packed, names that it does not know ignored.

        A field that is missing gets its default, or None where the type allows it. Raises SampleError else.
        """
        values = {}
        field = ""
        layout = _layout(cls)
        try:
            for field, decode, is_required, is_optional in layout.readers:
                if field in data:
                    values[field] = decode(data[field])
                elif is_required:
                    raise SampleError(
                        f"is missing; the sample has {_names(data)}. "
                        f"Give {cls.__name__}.{field} a default, or read the dataset as another type"
                    )
                elif is_optional:
                    values[field] = None
        except SampleError as e:
            raise e.inside(field) from None
        if not layout.late:
            return cls(**values)
        late = {name: values.pop(name) for name in layout.late if name in values}
        sample = cls(**values)
        for name, value in late.items():
            object.__setattr__(sample, name, value)  # the class may be frozen
        return sample


@dataclass_transform(eq_default=True)
def packable(cls: type[T]) -> type[T]:
    """Make a class with annotated fields a dataclass whose instances can be packed; see `PackableSample`.

    >>> @packable
    ... class Digit:
    ...     image: NDArray[np.uint8]
    ...     label: int
    >>> sorted(Digit(np.zeros((28, 28), np.uint8), 7).as_wds)
    ['__key__', 'msgpack']

    Fields may be str, int, float, bool, bytes, arrays, lists of these, and other samples, each `| None` as well; only
    those can be published in a schema. Hints are looked at when the first sample is packed, read or published.
    A decorator cannot tell type checkers of `packed` and the rest; `class Digit(PackableSample)` under it does.
    """
    # A class that is a dataclass already keeps its options, such as frozen; only its __eq__ is not for arrays.
    is_made = "__dataclass_fields__" in cls.__dict__
    made = cls if is_made else dataclasses.dataclass(eq=False)(cls)
    if issubclass(made, PackableSample):
        return made
    members: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if "__eq__" in cls.__dict__ and not is_made:
        members |= {"__eq__": cls.__eq__, "__hash__": cls.__hash__}
    # The one that dataclass writes wraps a function, and prints whole arrays.
    if not hasattr(cls.__dict__.get("__repr__", _repr), "__wrapped__") and "__repr__" in cls.__dict__:
        members["__repr__"] = cls.__repr__
    # A subclass, not a copy with another base: methods of the original may call super().
    bases: Any = (made, PackableSample)
    both: type[T] = type(cls.__name__, bases, members)
    return both


class DictSample:
    """A sample without a declared type. Fields are attributes and items.

    >>> sample = DictSample({"label": 7, "image": np.zeros((28, 28), np.uint8)})
    >>> sample.label, sample["label"], sorted(sample.keys())
    (7, 7, ['image', 'label'])

    Bytes that were read in the `.npy` format are taken for the arrays they most likely are. A field whose name is also
    a method's is reached as an item only. Arrays, lists and maps may be changed in place.
    """

    __slots__ = ("_raw", "_values")

    def __init__(self, data: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        # What is given is what it is. Of what is read, arrays are still packed in `_raw`, and found on access: a typed
        # view of the sample knows better which bytes are arrays.
        self._raw: dict[str, Any] = {**(data or {}), **fields}
        self._values: dict[str, Any] = self._raw

    @property
    def packed(self) -> bytes:
        """This sample as msgpack. Raises SampleError, a ValueError, that names the field which cannot be packed."""
        pack = codec.pack_any if self._values is self._raw else codec.pack_stored
        packed = {}
        for name, value in self.raw.items():
            try:
                packed[name] = pack(value)
            except SampleError as e:
                raise e.inside(str(name)) from None
        return codec.pack_map(packed)

    @property
    def as_wds(self) -> dict[str, Any]:
        """This sample as webdataset's writers take it, under a new key that sorts after all earlier ones."""
        return {"__key__": new_key(), "msgpack": self.packed}

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """The sample in *data*. Raises SampleError, a ValueError, when it is no msgpack map."""
        sample = cls.__new__(cls)
        sample._raw, sample._values = codec.unpack_map(data), {}
        return sample

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The sample with the fields of *data*: arrays as arrays or packed."""
        sample = cls(data)
        sample._values = {}
        return sample

    @property
    def raw(self) -> Mapping[str, Any]:
        """The fields as they were read or given, arrays of read ones still packed; with what was changed since.

        Raises SampleError, a ValueError, that names the field whose change cannot be packed.
        """
        if not self._values or self._values is self._raw:
            return self._raw
        return {name: self._current(name, raw) for name, raw in self._raw.items()}

    def _current(self, name: str, raw: Any) -> Any:
        value = self._values.get(name, raw)
        if value is raw:
            return raw
        try:
            now = codec.pack_any(value)
        except SampleError as e:
            raise e.inside(name) from None
        # What was only looked at stays as it was written, to the byte.
        return raw if codec.is_identical(now, codec.pack_stored(codec.unpack_any(raw))) else now

    def keys(self) -> KeysView[str]:
        """The names of the fields, in the order in which they were written."""
        return self._raw.keys()

    def items(self) -> ItemsView[str, Any]:
        """Names and values of the fields."""
        return self.to_dict().items()

    def get(self, name: str, default: Any = None) -> Any:
        """The field *name*, or *default* if there is none."""
        return self[name] if name in self._raw else default

    def to_dict(self) -> dict[str, Any]:
        """The fields as a new dictionary."""
        return {name: self[name] for name in self._raw}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            try:
                self._values[name] = codec.unpack_any(self._raw[name])
            except SampleError as e:
                raise e.inside(name) from None
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        # Unpickling looks for attributes before there are any.
        if name.startswith("__") or name in DictSample.__slots__:
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the sample has no field {name!r}; it has {_names(self._raw)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *filter(str.isidentifier, self._raw)]

    def __eq__(self, other: object) -> bool:
        return is_same(self.to_dict(), other.to_dict()) if isinstance(other, DictSample) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DictSample({', '.join(f'{name}={self._shown(name)}' for name in self._raw)})"

    def _repr_html_(self) -> str:
        from atdata import html

        return html.sample(self)

    def _shown(self, name: str) -> str:
        try:
            return brief(self[name])
        except SampleError:
            return brief(self._raw[name])


def brief(value: Any) -> str:
    """*value* in a few characters, for messages and notebooks: of an array its shape and dtype."""
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} array of shape {value.shape}>"
    if isinstance(value, bytes | str):
        return repr(value[:40]) + "…" * (len(value) > 40)
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _names(data: Mapping[str, Any]) -> str:
    names = [str(name)[:40] for name in data]
    return ("only " if len(names) == 1 else "") + (", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "none")


# --- Equality


def is_same(a: Any, b: Any) -> bool:
    """Whether two fields' values are equal: arrays by shape and values, a NaN to a NaN, lists and maps item by item."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _is_same_array(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    return bool(a == b) or bool(a != a and b != b)


def _is_same_array(a: codec.Array, b: codec.Array) -> bool:
    if a.shape != b.shape:
        return False
    try:
        # Only what is not equal to itself, NaN and NaT, needs the second look.
        return bool(np.all(a == b)) or bool(np.all((a == b) | ((a != a) & (b != b))))
    except TypeError:  # text and numbers, say
        return False


def _is_equal(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return all(
        is_same(getattr(self, field.name), getattr(other, field.name))
        for field in dataclasses.fields(self)
        if field.compare
    )


def _repr(self: Any) -> str:
    shown = (f"{one.name}={brief(getattr(self, one.name))}" for one in dataclasses.fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


# --- Keys


_key_lock = threading.Lock()
_last_key_time = 0


def new_key() -> str:
    """A key for a sample that sorts after every one this process made before, and that no other process makes.

    >>> new_key() < new_key()
    True

    Nanoseconds since 1970 and 64 random bits, in hexadecimal.
    """
    global _last_key_time
    with _key_lock:
        # One tick past the last one when the clock stands still or was set back.
        _last_key_time = now = max(time.time_ns(), _last_key_time + 1)
    # From the system, for a generator of our own would have the same state in every child of a fork.
    return f"{now:016x}{os.urandom(8).hex()}"


def _fresh_lock() -> None:
    # A fork while another thread holds the lock would leave the child's copy locked for ever.
    global _key_lock
    _key_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


# --- From hints to functions


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """A sample type, worked out once: per field, what packs its value and what reads it."""

    writers: tuple[tuple[str, Callable[[Any], Any]], ...]
    readers: tuple[tuple[str, Callable[[Any], Any], bool, bool], ...]
    """Name, function, whether a sample must have it, whether None stands in for it."""
    late: tuple[str, ...]
    """The fields that the constructor does not take."""


_MEMO: Final = "_atdata_layout"


def _layout(sample_type: type[Any]) -> _Layout:
    known: _Layout | None = sample_type.__dict__.get(_MEMO)
    if known is not None:
        return known
    hints = read_hints(sample_type)
    made = _Layout(
        tuple((hint.name, _function(hint.kind, hint.is_optional, _WRITE)) for hint in hints),
        tuple(
            (
                hint.name,
                _function(hint.kind, hint.is_optional, _READ),
                not (hint.is_optional or hint.has_default),
                hint.is_optional and not hint.has_default,
            )
            for hint in hints
        ),
        tuple(hint.name for hint in hints if not hint.is_argument),
    )
    setattr(sample_type, _MEMO, made)
    return made


def _to_map(sample: Any) -> dict[str, Any]:
    fields = {}
    name = ""
    try:
        for name, write in _layout(type(sample)).writers:
            fields[name] = write(getattr(sample, name))
    except SampleError as e:
        raise e.inside(name) from None
    return fields


@dataclasses.dataclass(frozen=True, slots=True)
class _Way:
    """In or out: what differs between packing a value and reading it."""

    untyped: Callable[[Any], Any]
    array: Callable[[ArrayOf], Callable[[Any], Any]]
    nested: Callable[[type[Any]], Callable[[Any], Any]]
    make_tuple: Callable[[Iterable[Any]], Any]


def _function(kind: Kind | None, is_optional: bool, way: _Way) -> Callable[[Any], Any]:
    """What packs or reads the values of a field of this kind."""
    match kind:
        case None:
            return way.untyped
        case Primitive(name):
            return _primitive(name, is_optional, _ACCEPTED[name], _EXACT[name])
        case ArrayOf():
            function = way.array(kind)
        case ListOf(items, is_nullable):
            function = _each((_function(items, is_nullable, way),), True, list)
        case TupleOf(items, is_repeated):
            function = _each(tuple(_function(*item, way) for item in items), is_repeated, way.make_tuple)
        case Nested(sample):
            function = way.nested(sample)
    return _or_none(function, kind, is_optional)


def _or_none(function: Callable[[Any], Any], kind: Kind, is_optional: bool) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if value is None:
            if is_optional:
                return None
            _refuse(kind, value)
        return function(value)

    return apply


_TYPES: Final[Mapping[str, type[Any]]] = {"str": str, "int": int, "float": float, "bool": bool, "bytes": bytes}
# What goes for a primitive beside its own type: NumPy's scalars, subclasses, and integers as floats, because msgpack
# writers of other languages do not tell 1.0 from 1.
_ACCEPTED: Final[Mapping[str, tuple[type[Any], ...]]] = {
    "str": (str,),
    "int": (int, np.integer),
    "float": (float, int, np.floating, np.integer),
    "bool": (bool, np.bool_),
    "bytes": (bytes, bytearray, memoryview),
}


def _to_float(value: Any) -> float:
    if isinstance(value, np.integer):  # compares itself with a float as one
        value = int(value)
    made = float(value)
    if made != value and value == value:
        raise SampleError(f"no float is exactly {brief(value)}; declare the field as int, or round the value")
    return made


# Not str(): of a member of `class Color(str, Enum)` that is its name, while what it equals is its value.
_EXACT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "str": str.__str__,
    "int": operator.index,
    "float": _to_float,
    "bool": bool,
    "bytes": bytes,
}


def _primitive(
    name: str, is_optional: bool, accepted: tuple[type[Any], ...], convert: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    exact = _TYPES[name]
    kind = Primitive(name)

    def apply(value: Any) -> Any:
        if type(value) is exact or (value is None and is_optional):
            return value
        # True is an int to Python, but would come back as 1.
        if isinstance(value, accepted) and type(value) is not bool:
            try:
                return convert(value)
            except OverflowError as e:
                raise SampleError(f"no {name} holds it: {e}") from None
        _refuse(kind, value)

    return apply


def _each(
    functions: tuple[Callable[[Any], Any], ...], is_repeated: bool, make: Callable[[Iterable[Any]], Any]
) -> Callable[[Any], Any]:
    """What applies *functions* to the items of a list or tuple, one each, or its one to all."""

    def apply(values: Any) -> Any:
        if not isinstance(values, list | tuple):
            _refuse(ListOf(), values)
        if not is_repeated and len(values) != len(functions):
            raise SampleError(f"expected {len(functions)} items, found {len(values)}")
        made: list[Any] = []
        try:
            for function, value in zip(repeat(functions[0]) if is_repeated else functions, values, strict=False):
                made.append(function(value))  # its length is the culprit's index
        except SampleError as e:
            raise e.inside(f"[{len(made)}]") from None
        return made if make is list else make(made)

    return apply


def _write_array(kind: ArrayOf) -> Callable[[Any], bytes]:
    check, usual = _array_check(kind)

    def write(value: Any) -> bytes:
        if not isinstance(value, np.ndarray):
            # Tensors of other libraries, NumPy's scalars. Not lists: their dtype would be a guess.
            if not isinstance(value, np.generic) and not hasattr(value, "__array__"):
                _refuse(kind, value)
            value = np.asarray(value)
        if value.dtype is not usual:
            check(value)
        return codec.pack_array(value)

    return write


def _read_array(kind: ArrayOf) -> Callable[[Any], codec.Array]:
    check, usual = _array_check(kind)

    def read(value: Any) -> codec.Array:
        if type(value) is bytes:
            value = codec.unpack_array(value)
        elif isinstance(value, bytearray | memoryview):
            value = codec.unpack_array(bytes(value))
        elif not isinstance(value, np.ndarray):
            _refuse(kind, value)
        if value.dtype is not usual:
            check(value)
        return value  # type: ignore[no-any-return]

    return read


def _array_check(kind: ArrayOf) -> tuple[Callable[[codec.Array], None], np.dtype[Any] | None]:
    """What raises SampleError for an array that is not as declared, and a dtype that makes a look at it needless."""
    name = kind.dtype
    # A shape without lengths, as one without the list of them, says nothing.
    shape = kind.shape or None

    def check(array: codec.Array) -> None:
        if name is not None and not _is_dtype(array.dtype, name):
            raise SampleError(
                f"expected an array of dtype {name}, found {array.dtype}; "
                "convert it with .astype, or declare the field as NDArray, which takes any dtype"
            )
        if shape is not None and not (
            len(shape) == array.ndim and all(n in (0, m) for n, m in zip(shape, array.shape, strict=True))
        ):
            declared = ", ".join("any" if n == 0 else str(n) for n in shape)
            raise SampleError(f"expected an array of shape ({declared}), found {array.shape}")

    return check, _dtype_of(name) if name is not None and shape is None else None


# Names that leave open how long an item is, because that depends on the platform.
_PLATFORM_DTYPES: Final = frozenset({"intp", "uintp", "longdouble", "clongdouble"})


@lru_cache(1024)
def _is_dtype(found: np.dtype[Any], name: str) -> bool:
    """Whether arrays of *found* are what *name* declares, apart from byte order, length of text, and what it leaves
    open, as `datetime64` does the unit. A dtype that this platform has not is taken on trust.
    """
    declared = _dtype_of(name)
    if declared is None:
        return True
    is_open = (
        declared.kind in "US"
        or name in _PLATFORM_DTYPES
        or (declared.kind in "mM" and np.datetime_data(declared)[0] == "generic")
    )
    return found.kind == declared.kind if is_open else found.newbyteorder("=") == declared.newbyteorder("=")


def _dtype_of(name: str) -> np.dtype[Any] | None:
    try:
        return np.dtype(name)
    except (TypeError, ValueError, DeprecationWarning):
        return None


def _write_nested(sample_type: type[Any]) -> Callable[[Any], Any]:
    def write(value: Any) -> dict[str, Any]:
        # Of a subclass, what it adds would be lost.
        if type(value) is not sample_type:
            _refuse(Nested(sample_type), value)
        return _to_map(value)

    return write


def _read_nested(sample_type: type[Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, sample_type):
            return value
        if not isinstance(value, dict):
            _refuse(Nested(sample_type), value)
        return sample_type.from_data(value)

    return read


_WRITE: Final = _Way(codec.pack_any, _write_array, _write_nested, list)
_READ: Final = _Way(codec.unpack_any, _read_array, _read_nested, tuple)


def _refuse(kind: Kind, value: Any) -> NoReturn:
    match kind:
        case Primitive(name):
            expected = name
        case ArrayOf():
            expected = "a NumPy array"
        case ListOf() | TupleOf():
            expected = "a list" if isinstance(kind, ListOf) else "a tuple"
        case Nested(sample):
            expected = f"a sample of type {sample.__name__}"
    found = "None" if value is None else f"{type(value).__name__} {brief(value)}"
    if isinstance(kind, ArrayOf) and isinstance(value, list):
        found += "; make it one with np.asarray(values, dtype)"
    elif isinstance(kind, Nested) and isinstance(value, kind.sample):
        found += f"; declare the field as {type(value).__name__}, or what that adds is lost"
    raise SampleError(f"expected {expected}, found {found}")


def sample_type_of(value: Any) -> type[Any]:
    """*value* if samples can be read as it. Raises SchemaError, a ValueError, that says what to do."""
    if value is DictSample or is_sample_type(value):
        return value  # type: ignore[no-any-return]
    read_hints(value)  # raises
    raise AssertionError(value)
