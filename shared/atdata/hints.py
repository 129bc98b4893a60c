"""Read a sample class's type hints: what each of its fields holds. No I/O."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Union

import numpy as np

from atdata.atmosphere.records import NDArray, Primitive, Ref, is_dtype
from atdata.errors import SchemaError

__all__ = [
    "ArrayOf",
    "FieldHint",
    "Kind",
    "ListOf",
    "Nested",
    "TupleOf",
    "dtype_name",
    "is_reserved",
    "is_sample_type",
    "read_hints",
    "type_text",
]


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """An array, of any dtype when that is None, and of any shape likewise; a 0 in it allows any length there."""

    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list. `items` is None when they may be anything."""

    items: Kind | None = None
    is_nullable: bool = False
    """Whether an item may be None."""


@dataclass(frozen=True, slots=True)
class TupleOf:
    """A tuple: of these items, each with whether it may be None, or, when `is_repeated`, of any number of its one."""

    items: tuple[tuple[Kind | None, bool], ...] = ((None, True),)
    is_repeated: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """A sample within a sample. `uri` is that of its schema, when the hint says it."""

    sample: type[Any]
    uri: str | None = None


Kind = Primitive | ArrayOf | ListOf | TupleOf | Nested


@dataclass(frozen=True, slots=True)
class FieldHint:
    """One field. A kind of None means that any value goes, none of which a schema can describe."""

    name: str
    kind: Kind | None
    is_optional: bool
    has_default: bool
    is_argument: bool
    """Whether the constructor takes it; a field with `init=False` is set after it."""
    text: str
    """The hint as it was written, for messages."""


# What the machinery of samples and batches uses itself.
_RESERVED: Final = frozenset({"packed", "as_wds", "from_bytes", "from_data", "samples"})
_MEMO: Final = "_atdata_hints"
# What a schema says of an array whose hint has no dtype; in a record it may therefore mean either.
_UNSAID_DTYPE: Final = NDArray().dtype
_PRIMITIVES: Final[Mapping[Any, Primitive]] = {t: Primitive(t.__name__) for t in (str, int, float, bool, bytes)}
# NumPy names these after the platform or their length.
_DTYPE_OF_TYPE: Final[Mapping[type[np.generic], str]] = {
    np.str_: "str",
    np.bytes_: "bytes",
    np.longdouble: "longdouble",
    np.clongdouble: "clongdouble",
}


def is_reserved(name: str) -> bool:
    """Whether samples and batches use *name* themselves, so that no field can have it."""
    return name in _RESERVED or name.startswith(("__", "_atdata_"))


def is_sample_type(hint: Any) -> bool:
    """Whether *hint* is a class made by `@packable`, or a dataclass under `PackableSample`."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and hasattr(hint, "from_data")


def read_hints(sample_type: type[Any]) -> tuple[FieldHint, ...]:
    """What each field of *sample_type* holds, in declared order.

    >>> [field.kind for field in read_hints(Digit)]
    [ArrayOf(dtype='uint8', shape=None), Primitive(name='int')]

    Fields that neither the constructor nor equality looks at (`init=False, compare=False`) are no part of a sample.
    Raises SchemaError, a ValueError, that names the field whose hint cannot be read.
    """
    known: tuple[FieldHint, ...] | None = sample_type.__dict__.get(_MEMO)
    if known is not None:
        return known
    if not is_sample_type(sample_type):
        name = getattr(sample_type, "__name__", repr(sample_type))
        raise SchemaError(f"{name} is not a sample type; decorate the class with @atdata.packable")
    try:
        hints = typing.get_type_hints(sample_type, include_extras=True)
    except (NameError, SyntaxError, TypeError) as e:
        raise SchemaError(
            f"{sample_type.__name__}: a type hint cannot be read: {e}; "
            "import or define what it names at the top of its module, and not under TYPE_CHECKING"
        ) from None
    found = []
    for field in dataclasses.fields(sample_type):
        if not field.init and not field.compare:
            continue
        where = f"{sample_type.__name__}.{field.name}"
        if is_reserved(field.name):
            raise SchemaError(f"{where}: every sample has a member of this name already; rename the field")
        hint = hints[field.name]
        try:
            kind, is_optional = _read(hint)
        except SchemaError as e:
            raise SchemaError(f"{where}: {e}") from None
        defaults = field.default, field.default_factory
        has_default = not field.init or any(one is not dataclasses.MISSING for one in defaults)
        found.append(FieldHint(field.name, kind, is_optional, has_default, field.init, type_text(hint)))
    # Kept on the class rather than in a table, so that a decoded type can be forgotten.
    setattr(sample_type, _MEMO, tuple(found))
    return tuple(found)


def type_text(hint: Any) -> str:
    """*hint* as one writes it: `NDArray[uint8] | None`, `list[str]`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if hint is ...:
        return "..."
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is np.ndarray or hint is np.ndarray:
        dtype = _read_array(arguments).dtype
        return f"NDArray[{dtype}]" if dtype else "NDArray"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]" if arguments else str(origin.__name__)
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")


def _read(hint: Any) -> tuple[Kind | None, bool]:
    """The kind of a hint, and whether None goes as well."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [one for one in arguments if one is not type(None)]
        is_optional = len(rest) < len(arguments)
        if len(rest) > 1:
            return None, is_optional
        kind, _ = _read(rest[0])
        return kind, is_optional
    if origin is Annotated:
        kind, is_optional = _read(arguments[0])
        for note in arguments[1:]:
            # `Annotated[NDArray[np.uint8], records.NDArray("uint8", (28, 28))]` adds what Python's own hint cannot say.
            if isinstance(note, NDArray) and isinstance(kind, ArrayOf):
                if not is_dtype(note.dtype):
                    raise SchemaError(f"{note.dtype!r} is not a dtype that samples can hold")
                kind = ArrayOf(kind.dtype if note.dtype == _UNSAID_DTYPE else note.dtype, note.shape)
            elif isinstance(note, Ref) and isinstance(kind, Nested):
                kind = Nested(kind.sample, note.uri)
        return kind, is_optional
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint], False
    if hint is np.ndarray or origin is np.ndarray:
        return _read_array(arguments), False
    if hint is list or hint is typing.List:  # noqa: UP006 — older code says List
        return ListOf(), False
    if origin is list:
        return ListOf(*_read(arguments[0])), False
    if hint is tuple or hint is typing.Tuple:  # noqa: UP006
        return TupleOf(), False
    if origin is tuple:
        is_repeated = arguments[-1:] == (...,)
        return TupleOf(tuple(_read(one) for one in arguments if one is not ...), is_repeated), False
    if is_sample_type(hint):
        return Nested(hint), False
    return None, hint is Any or hint is type(None)


def _has_dtype(arguments: tuple[Any, ...]) -> bool:
    scalar = _scalar(arguments)
    return isinstance(scalar, type) and issubclass(scalar, np.generic)


def _scalar(arguments: tuple[Any, ...]) -> Any:
    """The element type in `np.ndarray[shape, np.dtype[element type]]`, which `NDArray[element type]` stands for."""
    inner = typing.get_args(arguments[1]) if len(arguments) == 2 else ()
    return inner[0] if inner else None


def _read_array(arguments: tuple[Any, ...]) -> ArrayOf:
    if not _has_dtype(arguments):  # NDArray, NDArray[Any], np.ndarray
        return ArrayOf()
    scalar = _scalar(arguments)
    if scalar is np.object_:
        raise SchemaError("arrays of objects would need pickle; use a numeric, text, bytes or time dtype")
    name = dtype_name(scalar)
    if name is None:  # np.floating and the like stand for many dtypes
        return ArrayOf()
    if not is_dtype(name):
        raise SchemaError(f"arrays of dtype {name} have no place in a schema")
    return ArrayOf(name)


def dtype_name(scalar: type[np.generic]) -> str | None:
    """What schemas call arrays of *scalar*; None for an abstract one.

    >>> dtype_name(np.float64), dtype_name(np.floating)
    ('float64', None)
    """
    if scalar in _DTYPE_OF_TYPE:
        return _DTYPE_OF_TYPE[scalar]
    try:
        return np.dtype(scalar).name
    except TypeError:
        return None
