"""Own samples: the declared ones, which know their fields' types, and `DictSample`, which takes what it finds.

A sample is a msgpack map of its fields; "Samples in a shard" of the wire formats says how.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping
from typing import Any, Final, NoReturn, Self, TypeVar, dataclass_transform

import numpy as np

from atdata import codec
from atdata.atmosphere.records import NDArray, Primitive
from atdata.errors import SampleError
from atdata.hints import Kind, ListOf, Nested, is_sample_type, read_hints

__all__ = ["DictSample", "PackableSample", "is_same", "new_key", "packable", "sample_type_of"]

T = TypeVar("T")


class PackableSample:
    """The base of declared samples. Subclass it as a dataclass, or write `@atdata.packable`, which does both.

    >>> @dataclass
    ... class Digit(PackableSample):
    ...     image: NDArray[np.uint8]
    ...     label: int | None
    >>> Digit.from_bytes(Digit(np.zeros((28, 28), np.uint8), 7).packed).label
    7

    Two samples are equal when they are of one type and their fields are equal: arrays by shape and values, whatever
    their dtypes, and a NaN equals a NaN, so that a sample equals its copy.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `@dataclass` leaves a method alone that the class itself has; its own would compare arrays with ==.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = _is_equal  # type: ignore[method-assign]
            cls.__hash__ = None  # type: ignore[assignment]

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
        try:
            for field, decode, is_required, is_optional in _layout(cls).readers:
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
        return cls(**values)


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
    """
    # A class that is a dataclass already keeps its options, such as frozen; only its __eq__ is not for arrays.
    is_made = "__dataclass_fields__" in cls.__dict__
    made = cls if is_made else dataclasses.dataclass(eq=False)(cls)
    if issubclass(made, PackableSample):
        return made
    members: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if "__eq__" in cls.__dict__ and not is_made:
        members |= {"__eq__": cls.__eq__, "__hash__": cls.__hash__}
    # A subclass, not a copy with another base: methods of the original may call super().
    bases: Any = (made, PackableSample)
    both: type[T] = type(cls.__name__, bases, members)
    return both


class DictSample:
    """A sample without a declared type. Fields are attributes and items.

    >>> sample = DictSample({"label": 7, "image": np.zeros((28, 28), np.uint8)})
    >>> sample.label, sample["label"], sorted(sample.keys())
    (7, 7, ['image', 'label'])

    Bytes in the `.npy` format are taken for the arrays they most likely are. A field whose name is also a method's is
    reached as an item only.
    """

    __slots__ = ("_raw", "_values")

    def __init__(self, data: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        # As read. Which bytes are arrays is decided on access: a typed view of the sample knows better.
        self._raw: dict[str, Any] = {**(data or {}), **fields}
        self._values: dict[str, Any] = {}

    @property
    def packed(self) -> bytes:
        """This sample as msgpack. Raises SampleError, a ValueError, that names the field which cannot be packed."""
        packed = {}
        for name, value in self._raw.items():
            try:
                packed[name] = codec.pack_any(value)
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
        return cls(codec.unpack_map(data))

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The sample with the fields of *data*."""
        return cls(data)

    @property
    def raw(self) -> Mapping[str, Any]:
        """The fields as they were read, arrays still packed."""
        return self._raw

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

    def _shown(self, name: str) -> str:
        try:
            return _brief(self[name])
        except SampleError:
            return _brief(self._raw[name])


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} array of shape {value.shape}>"
    text = repr(value[:40] if isinstance(value, bytes | str) else value)
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


_MEMO: Final = "_atdata_layout"


def _layout(sample_type: type[Any]) -> _Layout:
    known: _Layout | None = sample_type.__dict__.get(_MEMO)
    if known is not None:
        return known
    hints = read_hints(sample_type)
    made = _Layout(
        tuple((hint.name, _writer(hint.kind, hint.is_optional)) for hint in hints),
        tuple(
            (
                hint.name,
                _reader(hint.kind, hint.is_optional),
                not (hint.is_optional or hint.has_default),
                hint.is_optional and not hint.has_default,
            )
            for hint in hints
        ),
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


def _writer(kind: Kind | None, is_optional: bool) -> Callable[[Any], Any]:
    match kind:
        case None:
            return codec.pack_any
        case Primitive(name):
            return _primitive(name, is_optional, _ACCEPTED[name])
        case NDArray():
            write: Callable[[Any], Any] = _write_array
        case ListOf(items, is_nullable):
            write = _each(_writer(items, is_nullable))
        case Nested(sample):
            write = _write_nested(sample)
    return _or_none(write, kind, is_optional)


def _reader(kind: Kind | None, is_optional: bool) -> Callable[[Any], Any]:
    match kind:
        case None:
            return codec.unpack_any
        case Primitive(name):
            return _primitive(name, is_optional, _ACCEPTED[name])
        case NDArray():
            read: Callable[[Any], Any] = _read_array
        case ListOf(items, is_nullable):
            read = _each(_reader(items, is_nullable))
        case Nested(sample):
            read = _read_nested(sample)
    return _or_none(read, kind, is_optional)


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


def _primitive(name: str, is_optional: bool, accepted: tuple[type[Any], ...]) -> Callable[[Any], Any]:
    exact = _TYPES[name]
    kind = Primitive(name)

    def apply(value: Any) -> Any:
        if type(value) is exact or (value is None and is_optional):
            return value
        if value is not None and isinstance(value, accepted) and not (exact is float and isinstance(value, bool)):
            try:
                return exact(value)
            except OverflowError as e:
                raise SampleError(f"no {name} holds it: {e}") from None
        _refuse(kind, value)

    return apply


def _each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(values: Any) -> list[Any]:
        if not isinstance(values, list | tuple):
            _refuse(ListOf(), values)
        made: list[Any] = []
        try:
            for value in values:
                made.append(function(value))  # its length is the culprit's index
        except SampleError as e:
            raise e.inside(f"[{len(made)}]") from None
        return made

    return apply


def _write_array(value: Any) -> bytes:
    if type(value) is np.ndarray:
        return codec.pack_array(value)
    if isinstance(value, np.ma.MaskedArray):
        raise SampleError("a masked array would lose its mask; store .filled() and .mask as two fields")
    # Tensors of other libraries, NumPy's scalars, memory maps. Not lists: their dtype would be a guess.
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return codec.pack_array(np.asarray(value))
    return _refuse(NDArray(), value)


def _read_array(value: Any) -> codec.Array:
    if type(value) is bytes:
        return codec.unpack_array(value)
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bytearray | memoryview):
        return codec.unpack_array(bytes(value))
    return _refuse(NDArray(), value)


def _write_nested(sample_type: type[Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> dict[str, Any]:
        if not isinstance(value, sample_type):
            _refuse(Nested(sample_type), value)
        return _to_map(value)

    return apply


def _read_nested(sample_type: type[Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if isinstance(value, sample_type):
            return value
        if not isinstance(value, dict):
            _refuse(Nested(sample_type), value)
        return sample_type.from_data(value)

    return apply


def _refuse(kind: Kind, value: Any) -> NoReturn:
    match kind:
        case Primitive(name):
            expected = name
        case NDArray():
            expected = "a NumPy array"
        case ListOf():
            expected = "a list"
        case Nested(sample):
            expected = f"a sample of type {sample.__name__}"
    found = "None" if value is None else f"{type(value).__name__} {_brief(value)}"
    if isinstance(kind, NDArray) and isinstance(value, list):
        found += "; make it one with np.asarray(values, dtype)"
    raise SampleError(f"expected {expected}, found {found}")


def sample_type_of(value: Any) -> type[Any]:
    """*value* if samples can be read as it. Raises SchemaError, a ValueError, that says what to do."""
    if value is DictSample or is_sample_type(value):
        return value  # type: ignore[no-any-return]
    read_hints(value)  # raises
    raise AssertionError(value)
