"""Compare what schemas say of their samples: equal structures, wider ones, and what changed between two. No I/O.

The structure of a schema is its fields' names, types and optionality. Names, versions and words are left out, and so is
the order of the fields: a sample is a map. Schemas of equal structure describe the same samples, whoever published them
and in whichever form.

The text of a type is
    str, int, float, bool, bytes
    ndarray:DTYPE             an array of any shape; DTYPE is NumPy's name, without byte order and length of text:
                              `records.canonical_dtype`
    ndarray:DTYPE:3x0x0       one of three dimensions, the first of length 3, the others of any
    array, array<TYPE>        a list of anything, of TYPE
    ref<AT URI>               a nested sample of the schema at that URI; the URI is compared, not what is there

`float32` is taken at its word, although publishers whose hints name no dtype write it for arrays of any.

The fingerprint of a structure, version 1, is `s1-` and the first 40 hexadecimal digits, in lower case, of the SHA-256
of its canonical bytes. Those are the JSON array of all fields, each an array of name, type and whether it is optional,
ordered by the code points of their names, in the form of RFC 8785: UTF-8, no white space, nothing escaped that need not
be.

    [["image","ndarray:uint8",false],["label","int",true]]    s1-181027f048822f3b15d2935cf0f3f0e0a01aad36
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final, Literal

from atdata import nsid, syntax
from atdata.atmosphere import records
from atdata.atmosphere.records import MAX_FIELDS, PRIMITIVES, Array, FieldType, NDArray, Primitive, Ref, SchemaRecord
from atdata.errors import SchemaError

__all__ = [
    "Change",
    "Comparison",
    "Difference",
    "Direction",
    "Field",
    "Structure",
    "Verdict",
    "compare",
    "covers",
    "structure_of",
    "structure_of_type",
]

Direction = Literal["backward", "forward"]
Verdict = Literal["identical", "full", "backward", "forward", "breaking"]
Change = Literal["added", "removed", "type", "optionality"]

# NumPy has no array with more.
_MAX_DIMENSIONS: Final = 64


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, the text of its type, and whether a sample may be without it."""

    name: str
    type: str
    optional: bool = False

    def __str__(self) -> str:
        return f"{_cut(self.name)} ({_cut(self.type)}{', optional' if self.optional else ''})"


@dataclass(frozen=True, slots=True)
class Structure:
    """Fields, by name. Raises SchemaError, a ValueError, when two have the same one.

    >>> Structure((Field("label", "int", True), Field("image", "ndarray:uint8"))).fingerprint
    's1-181027f048822f3b15d2935cf0f3f0e0a01aad36'
    """

    fields: tuple[Field, ...]
    fingerprint: str = field(init=False, repr=False, compare=False)
    """Equal for equal structures and, short of a collision of SHA-256, for no others."""

    def __post_init__(self) -> None:
        fields = tuple(sorted(self.fields, key=attrgetter("name")))
        for one, other in pairwise(fields):
            if one.name == other.name:
                raise SchemaError(f"the field {_cut(one.name)!r} is declared twice")
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "fingerprint", _fingerprint(fields))


_CANONICAL: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _fingerprint(fields: Iterable[Field]) -> str:
    canonical = _CANONICAL.encode([[one.name, one.type, one.optional] for one in fields])
    return f"s1-{hashlib.sha256(canonical.encode()).hexdigest()[:40]}"


# --- Structures of schemas


def structure_of(record: Mapping[str, Any]) -> Structure:
    """The structure of a schema record, of any generation.

    >>> structure_of(index.get_schema(uri)).fields[0]
    Field(name='image', type='ndarray:uint8', optional=False)

    Raises SchemaError, a ValueError, that names what is wrong when *record* is no schema, or one of whose fields
    something cannot be read: then nobody can say which samples it describes.
    """
    if not isinstance(record, Mapping):
        raise SchemaError(f"expected a schema record, found {type(record).__name__}")
    collection = record.get("$type", nsid.SAMPLE_SCHEMA)
    reading = records.read_form(collection, {"$type": collection, **record})
    if not isinstance(reading.value, SchemaRecord):
        raise SchemaError(f"a record of type {str(collection)[:100]} is no schema")
    problems = [problem for problem in reading.problems if problem.startswith(("fields", "schema"))]
    if problems:
        raise SchemaError(f"the schema cannot be read: {'; '.join(problems[:3])}")
    return _structure(reading.value)


def structure_of_type(sample_type: type[Any], *, refs: Callable[[type[Any]], str] | None = None) -> Structure:
    """The structure of the schema that `type_to_schema` makes of *sample_type*.

    >>> structure_of_type(Digit).fingerprint == structure_of(index.get_schema(uri)).fingerprint
    True

    *refs* gives the AT URI of the schema of a nested sample. Raises SchemaError, a ValueError, that names the field
    which a schema cannot express.
    """
    from atdata.schema import type_to_schema  # brings NumPy, which records do without

    return _structure(type_to_schema(sample_type, refs=refs))


def _structure(schema: SchemaRecord) -> Structure:
    if len(schema.fields) > MAX_FIELDS:
        raise SchemaError(f"the schema has {len(schema.fields):,} fields, more than {MAX_FIELDS:,}")
    fields = []
    for one in schema.fields:
        if not one.name or "\0" in one.name:  # of which no database has text
            raise SchemaError(f"the schema cannot be read: {one.name[:50]!r} is not the name of a field")
        try:
            fields.append(Field(one.name, _type_text(one.type), one.optional))
        except SchemaError as error:
            raise SchemaError(f"the schema cannot be read: {_cut(one.name)}: {error}") from None
    return Structure(tuple(fields))


def _type_text(field_type: FieldType | None) -> str:
    # Whatever goes in here has no `<`, `>` or `:` of its own but where it is the last part, so that two types never
    # have one text.
    match field_type:
        case Primitive(name) if name in PRIMITIVES:
            return name
        case NDArray(dtype, shape) if records.is_dtype(dtype):
            if shape is not None and len(shape) > _MAX_DIMENSIONS:
                raise SchemaError(f"no array has more than {_MAX_DIMENSIONS} dimensions, as this one of {len(shape):,}")
            text = f"ndarray:{records.canonical_dtype(dtype)}"
            # A shape without lengths says nothing; see `atdata.sample`.
            return f"{text}:{'x'.join(map(str, shape))}" if shape else text
        case Array(None):
            return "array"
        case Array(items):
            return f"array<{_type_text(items)}>"
        case Ref(uri) if syntax.is_at_uri(uri):
            return f"ref<{uri}>"
        case _:
            raise SchemaError("is of a type that is not known")


# --- Wider and narrower


def covers(wider: Structure, narrower: Structure) -> bool:
    """Whether every sample of *wider* can be read as *narrower*, with the values that were written.

    >>> covers(structure_of_type(Digit), structure_of_type(JustTheLabel))
    True

    That is what this library's samples accept: fields that *narrower* does not know are ignored; one that it requires
    is there, and required; one that is optional may be absent. Of types, an array of given lengths is one of any, a
    list of numbers is a list of anything; nothing is converted, as not every int is a float, and not every string
    of bytes an array.

    Every structure covers itself. If *a* covers *b* and *b* covers *c*, then *a* covers *c*, but for one case that no
    reader can help: *c* has an optional field of which *b* does not speak, and *a* has one of that name and another
    type.
    """
    theirs = {one.name: one for one in wider.fields}
    for one in narrower.fields:
        their = theirs.get(one.name)
        if their is None:
            if not one.optional:
                return False
        elif (their.optional and not one.optional) or not _is_read_as(their.type, one.type):
            return False
    return True


# Of the types that a dtype stands for, those whose arrays a reader of it takes; see `atdata.sample`.
_DTYPES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "intp": ("int8", "int16", "int32", "int64"),
    "uintp": ("uint8", "uint16", "uint32", "uint64"),
    "longdouble": ("float16", "float32", "float64", "float128"),
    "clongdouble": ("complex64", "complex128", "complex256"),
}


@lru_cache(16_384)
def _is_read_as(written: str, read: str) -> bool:
    """Whether values of the type *written* are values of the type *read*."""
    if written == read:
        return True
    if written.startswith("array") and read.startswith("array"):
        # Without items a list of anything, which nothing but such a list takes.
        return read == "array" or (written != "array" and _is_read_as(written[6:-1], read[6:-1]))
    if written.startswith("ndarray:") and read.startswith("ndarray:"):
        (_, their_dtype, *their_shape), (_, dtype, *shape) = written.split(":"), read.split(":")
        return _is_dtype_read_as(their_dtype, dtype) and _is_shape_read_as(their_shape, shape)
    return False


def _is_dtype_read_as(written: str, read: str) -> bool:
    is_unit_open = read in ("datetime64", "timedelta64") and written.startswith(f"{read}[")
    return written == read or is_unit_open or written in _DTYPES_OF.get(read, ())


def _is_shape_read_as(written: list[str], read: list[str]) -> bool:
    if not read or not written:
        return not read
    theirs, ours = written[0].split("x"), read[0].split("x")
    return len(theirs) == len(ours) and all(n in ("0", m) for m, n in zip(theirs, ours, strict=True))


# --- What changed


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about one field that is not the same in an old and a new structure.

    `before` is None when the field was added, `after` when it was removed.
    """

    change: Change
    before: Field | None
    after: Field | None

    @property
    def name(self) -> str:
        """The field's name."""
        one = self.after or self.before
        assert one is not None
        return one.name

    @property
    def breaks(self) -> tuple[Direction, ...]:
        """The directions in which data cannot be read any more because of it."""
        before, after = self.before, self.after
        if before is None or after is None:
            one = before or after
            assert one is not None
            return () if one.optional else ("forward",) if after is None else ("backward",)
        if self.change == "optionality":
            return ("forward",) if after.optional else ("backward",)
        broken: list[Direction] = []
        if not _is_read_as(before.type, after.type):
            broken.append("backward")
        if not _is_read_as(after.type, before.type):
            broken.append("forward")
        return tuple(broken)

    def __str__(self) -> str:
        before, after = self.before, self.after
        if before is None or after is None:
            one = before or after
            assert one is not None
            if before is None:
                return f"{one} was added" if one.optional else f"{one} was added, which old data is without"
            return f"{one} was removed" if one.optional else f"{one} was removed, so that new data is without it"
        if self.change == "optionality":
            return f"{_cut(self.name)} {'may now be absent' if after.optional else 'must now be there'}"
        return f"{_cut(self.name)} was {_cut(before.type)} and is {_cut(after.type)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of an old structure in a new one."""

    old: Structure
    new: Structure
    differences: tuple[Difference, ...]
    """By the field's name."""

    @property
    def verdict(self) -> Verdict:
        """In the words of schema registries; see `compare`."""
        if not self.differences:
            return "identical"
        broken = {direction for one in self.differences for direction in one.breaks}
        if not broken:
            return "full"
        return "breaking" if len(broken) == 2 else "forward" if "backward" in broken else "backward"

    @property
    def summary(self) -> str:
        """The verdict and its reasons in plain words."""
        if self.verdict == "identical":
            return "The structures are identical: readers of either schema can read data of the other."
        if self.verdict == "full":
            return (
                "Compatible in both directions: readers of either schema can read data of the other. "
                f"{_listed(self.differences)}."
            )
        parts = []
        for direction, reader, data in (("backward", "new", "old"), ("forward", "old", "new")):
            reasons = [one for one in self.differences if direction in one.breaks]
            if reasons:
                text = f"readers of the {reader} schema cannot read data of the {data} one: {_listed(reasons)}"
            else:
                text = f"readers of the {reader} schema can read data of the {data} one"
            parts.append(f"{text[0].upper()}{text[1:]}.")
        return " ".join((_HEADINGS[self.verdict], *parts))


_HEADINGS: Final[Mapping[Verdict, str]] = {
    "backward": "Backward compatible only.",
    "forward": "Forward compatible only.",
    "breaking": "Breaking.",
}


def compare(old: Structure, new: Structure) -> Comparison:
    """What is different in *new*, field by field, and who can still read what.

    >>> print(compare(structure_of(v1), structure_of(v2)).summary)
    Backward compatible only. Readers of the new schema can read data of the old one. Readers of the old schema cannot
    read data of the new one: label (int) was removed, so that new data is without it.

    The verdict is `identical`, or else in the sense of schema registries `backward` when readers of *new* can read data
    of *old*, which is `covers(old, new)`; `forward` when readers of *old* can read data of *new*; `full` when both,
    `breaking` when neither:
    https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html
    """
    befores = {one.name: one for one in old.fields}
    afters = {one.name: one for one in new.fields}
    differences = []
    for name in sorted(befores.keys() | afters.keys()):
        before, after = befores.get(name), afters.get(name)
        if before is None or after is None:
            differences.append(Difference("added" if before is None else "removed", before, after))
            continue
        if before.type != after.type:
            differences.append(Difference("type", before, after))
        if before.optional != after.optional:
            differences.append(Difference("optionality", before, after))
    return Comparison(old, new, tuple(differences))


# Of a thousand reasons, a few will do.
_MAX_LISTED: Final = 5


def _listed(differences: Iterable[Difference]) -> str:
    texts = list(map(str, differences))
    more = len(texts) - _MAX_LISTED
    return "; ".join([*texts[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])])


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"
