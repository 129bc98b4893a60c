"""Translate sample types into schema records, schema records into sample types, and both into Python source. No I/O.

Nothing a record says is ever executed: types are built by `dataclasses.make_dataclass` from names and dtypes that were
checked, and source is only printed.
"""

from __future__ import annotations

import copyreg
import dataclasses
import json
import keyword
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from atdata import nsid, syntax
from atdata.atmosphere import records
from atdata.atmosphere.records import (
    MAX_FIELDS,
    Array,
    Field,
    FieldType,
    NDArray,
    Primitive,
    Ref,
    SchemaRecord,
    is_dtype,
)
from atdata.errors import SchemaError
from atdata.hints import ArrayOf, Kind, ListOf, Nested, TupleOf, dtype_name, is_reserved, read_hints
from atdata.sample import PackableSample

__all__ = ["Resolve", "schema_to_type", "to_source", "type_to_schema"]

Resolve: TypeAlias = Callable[[str], SchemaRecord | Mapping[str, Any]]
"""The schema at an AT URI: looks up what a field of type `ref` names."""

# Schemas that refer to schemas that refer to schemas …
_MAX_NESTING: Final = 16
# … or to very many, each of which somebody has to look up.
_MAX_SCHEMAS: Final = 100


# --- A type's schema


def type_to_schema(
    sample_type: type[Any],
    *,
    name: str | None = None,
    version: str = "1.0.0",
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    created_at: datetime | None = None,
    refs: Callable[[type[Any]], str] | None = None,
) -> SchemaRecord:
    """The schema record of *sample_type*; its name is the class's unless *name* says otherwise.

    >>> type_to_schema(ImageSample).fields[0]
    Field(name='image', type=NDArray(dtype='uint8', shape=None), optional=False, description=None)

    A field that holds another sample becomes a `ref`, for which *refs* gives the AT URI of that type's schema. The
    description of a field is `dataclasses.field(metadata={"description": …})`. A default has no place in a schema: the
    field is one that every sample has, and what this library writes always has it. Raises SchemaError, a ValueError,
    that names the field which a schema cannot express.
    Specification: the lexicon `ac.foundation.dataset.sampleSchema`.
    """
    if not syntax.is_semver(version):
        raise SchemaError(f"{version!r} is not a semantic version such as 1.0.0")
    described = {field.name: field.metadata.get("description") for field in dataclasses.fields(sample_type)}
    fields = []
    for hint in read_hints(sample_type):
        try:
            if hint.kind is None or isinstance(hint.kind, TupleOf):
                raise SchemaError(
                    f"no schema can express {hint.text}; use str, int, float, bool, bytes, an array, "
                    "a list of these or another sample"
                )
            field_type = _to_field_type(hint.kind, refs)
        except SchemaError as e:
            raise SchemaError(f"{sample_type.__name__}.{hint.name}: {e}") from None
        fields.append(Field(hint.name, field_type, hint.is_optional, described.get(hint.name)))
    return SchemaRecord(
        name=sample_type.__name__ if name is None else name,
        version=version,
        fields=tuple(fields),
        description=description,
        metadata=metadata,
        created_at=created_at,
    )


def _to_field_type(kind: Kind, refs: Callable[[type[Any]], str] | None) -> FieldType:
    match kind:
        case Primitive():
            return kind
        case ArrayOf(dtype, shape):
            return NDArray(shape=shape) if dtype is None else NDArray(dtype, shape)
        case ListOf(None | TupleOf()) | TupleOf():  # a list of whatever they are
            return Array()
        case ListOf(items, is_nullable):
            assert items is not None
            if is_nullable:
                raise SchemaError("no schema can express that an item of a list may be None")
            return Array(_to_field_type(items, refs))
        case Nested(sample, uri):
            if uri is None and refs is None:
                raise SchemaError(f"publish the schema of {sample.__name__} first, and give its AT URI")
            return Ref(uri if uri is not None else refs(sample))  # type: ignore[misc]


# --- A schema's type

# By everything that a type shows of its schema, so that equal schemas share one and others never do.
_types: WeakValueDictionary[Any, type[PackableSample]] = WeakValueDictionary()


def schema_to_type(schema: SchemaRecord | Mapping[str, Any], *, resolve: Resolve | None = None) -> type[PackableSample]:
    """The sample type that *schema*, a record or its JSON, describes.

    >>> Digit = schema_to_type(index.get_schema(uri))
    >>> Digit(image=np.zeros((28, 28), np.uint8), label=7).packed

    Schemas that say the same of name, version, description and fields give the same class, whoever published them; all
    others give different ones, so that neither documentation nor lenses of one apply to the other. The class can be
    pickled, and so can a dataset of it.

    Optional fields default to None; required ones after them are given by keyword. Arrays are of the dtype and shape
    that *schema* says, but of any dtype where it says float32, as that is what schemas call arrays of any. *resolve*
    looks up the schemas of nested samples. Raises SchemaError, a ValueError, when *schema* is no schema, when its
    fields cannot be read or are more than 1,000, or when one is named in a way that Python cannot; such a dataset can
    still be read as `DictSample`.
    """
    return _Builder(resolve).build(_read(schema), 0)


def _read(schema: SchemaRecord | Mapping[str, Any]) -> SchemaRecord:
    if isinstance(schema, SchemaRecord):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaError(f"expected a schema record, found {type(schema).__name__}")
    collection = schema.get("$type", nsid.SAMPLE_SCHEMA)
    reading = records.read(collection, {"$type": collection, **schema})
    if not isinstance(reading.value, SchemaRecord):
        raise SchemaError(f"a record of type {str(collection)[:100]} is no schema")
    fields = reading.value.fields
    # A type without the fields would read anything as nothing. Those of an unknown type are there, and hold anything.
    is_whole = all(field.name for field in fields) if fields else not any(map(_is_about_fields, reading.problems))
    if not reading.value.name or not is_whole:
        raise SchemaError(f"the schema cannot be read: {'; '.join(reading.problems)}")
    return reading.value


def _is_about_fields(problem: str) -> bool:
    return problem.startswith(("fields", "schema"))


class _Builder:
    """Builds the type of one schema and of those it refers to."""

    def __init__(self, resolve: Resolve | None) -> None:
        self._resolve = resolve
        self._resolved: dict[str, SchemaRecord] = {}
        self._built: dict[str, type[PackableSample]] = {}

    def build(self, schema: SchemaRecord, depth: int) -> type[PackableSample]:
        if depth > _MAX_NESTING:
            raise SchemaError(f"{schema.name[:100]}: schemas are nested more than {_MAX_NESTING} deep, or in a circle")
        # The time that it takes to make a class grows with the square of their number.
        if len(schema.fields) > MAX_FIELDS:
            raise SchemaError(f"{schema.name[:100]}: has {len(schema.fields):,} fields, more than {MAX_FIELDS:,}")
        annotations: list[tuple[str, Any, bool]] = []
        taken: set[str] = set()
        for field in schema.fields:
            try:
                _check_name(field.name, taken)
                hint = self._annotation(field.type, depth)
            except SchemaError as e:
                raise SchemaError(f"{schema.name[:100]}.{field.name[:100]}: {e}") from None
            annotations.append((field.name, hint | None if field.optional else hint, field.optional))
            taken.add(field.name)
        key = (*_identity(schema), *annotations)
        made = _types.get(key)
        if made is None:
            made = _types[key] = _make(schema, annotations, dict(self._resolved))
        return made

    def _annotation(self, field_type: FieldType | None, depth: int) -> Any:
        match field_type:
            case None:
                return Any
            case Primitive(name):
                if name not in _PRIMITIVES:
                    raise SchemaError(f"{name[:50]!r} is not a primitive type")
                return _PRIMITIVES[name]
            case NDArray(dtype, shape):
                return _array_annotation(dtype, shape)
            case Array(None):
                return list
            case Array(items):
                if depth > _MAX_NESTING:
                    raise SchemaError(f"lists are nested more than {_MAX_NESTING} deep")
                return list[self._annotation(items, depth + 1)]  # type: ignore[misc]
            case Ref(uri):
                if uri not in self._built:
                    self._built[uri] = self.build(self.lookup(uri), depth + 1)
                return Annotated[self._built[uri], Ref(uri)]

    def resolved(self) -> Iterable[SchemaRecord]:
        return self._resolved.values()

    def lookup(self, uri: str) -> SchemaRecord:
        if uri not in self._resolved:
            if self._resolve is None:
                raise SchemaError(f"refers to {uri[:200]}; look it up, or decode through an index, which does")
            if len(self._resolved) >= _MAX_SCHEMAS:
                raise SchemaError(f"the schema refers to more than {_MAX_SCHEMAS} others")
            self._resolved[uri] = _read(self._resolve(uri))
        return self._resolved[uri]


_PRIMITIVES: Final[Mapping[str, type[Any]]] = {"str": str, "int": int, "float": float, "bool": bool, "bytes": bytes}


def _identity(schema: SchemaRecord) -> tuple[Any, ...]:
    """What a type shows of its schema."""
    return schema.name, schema.version, schema.description, schema.fields


class _DecodedType(type):
    """The class of decoded types: pickle, which finds no other class of theirs by its name, makes them again."""


def _reduce(decoded: _DecodedType) -> str | tuple[Any, ...]:
    # A class that somebody derives from a decoded one is found where it was written.
    origin: tuple[Any, ...] | None = decoded.__dict__.get("_atdata_origin")
    return decoded.__qualname__ if origin is None else (_restore, origin)


# pickle asks nothing else of a class than what is registered for its metaclass.
copyreg.pickle(_DecodedType, _reduce)


class _Decoded(PackableSample, metaclass=_DecodedType):
    """The base of decoded types."""


def _make(
    schema: SchemaRecord, annotations: list[tuple[str, Any, bool]], resolved: Mapping[str, SchemaRecord]
) -> type[PackableSample]:
    fields = []
    has_default = False
    for field, (name, hint, optional) in zip(schema.fields, annotations, strict=True):
        has_default |= optional
        metadata = {"description": field.description} if field.description else None
        if optional:
            fields.append((name, hint, dataclasses.field(default=None, metadata=metadata)))
        else:
            fields.append((name, hint, dataclasses.field(metadata=metadata, kw_only=has_default)))
    # What it takes to build the type again where a pickle of it arrives.
    origin = (SchemaRecord(schema.name, schema.version, schema.fields, schema.description), resolved)
    return dataclasses.make_dataclass(
        _class_name(schema.name),
        fields,
        bases=(_Decoded,),
        namespace={"__module__": __name__, "__doc__": schema.description, "_atdata_origin": origin},
        eq=False,
    )


def _restore(schema: SchemaRecord, resolved: Mapping[str, SchemaRecord]) -> type[PackableSample]:
    return schema_to_type(schema, resolve=resolved.__getitem__)


def _array_annotation(dtype: str, shape: tuple[int, ...] | None) -> Any:
    if not is_dtype(dtype):
        raise SchemaError(f"{dtype[:50]!r} is not a dtype that samples can hold")
    scalar = _declared_scalar(dtype)
    hint: Any = npt.NDArray[Any] if scalar is None else npt.NDArray[scalar]  # type: ignore[valid-type]
    return hint if _is_plain(dtype, shape, scalar) else Annotated[hint, NDArray(dtype, shape)]


def _declared_scalar(dtype: str) -> type[np.generic] | None:
    """The element type in the hint of an array; None for one that may be of any."""
    return None if dtype == NDArray().dtype else _scalar(dtype)


def _is_plain(dtype: str, shape: tuple[int, ...] | None, scalar: type[np.generic] | None) -> bool:
    """Whether Python's own hint says it all; it cannot say the shape, the unit of times, the byte order."""
    return shape is None and dtype == (NDArray().dtype if scalar is None else dtype_name(scalar))


def _scalar(dtype: str) -> type[np.generic] | None:
    try:
        return np.dtype(dtype).type
    except (TypeError, ValueError, DeprecationWarning):  # of another platform: float128
        return None


# --- Names


def _is_name(name: str) -> bool:
    # Python reads identifiers in NFKC, so others would not be found again under their own name.
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _check_name(name: str, taken: set[str]) -> None:
    if not _is_name(name):
        raise SchemaError("is not a name that a field of a Python class can have; read the dataset as DictSample")
    if name in taken:
        raise SchemaError("is declared twice")
    if is_reserved(name):
        raise SchemaError("every sample has a member of this name already; read the dataset as DictSample")


def _class_name(name: str) -> str:
    """*name* if a class can be called that, else its words in one: `digits, v2` becomes `DigitsV2`."""
    if _is_name(name) and not name.startswith("__"):
        return name
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", name))
    joined = "".join(word[:1].upper() + word[1:] for word in (word.lstrip("_") for word in words))
    return next((one for one in (joined, f"Sample{joined}") if _is_name(one)), "Sample")


# --- Source


def to_source(schema: SchemaRecord | Mapping[str, Any] | type[Any], *, resolve: Resolve | None = None) -> str:
    """Python source that declares the sample type of *schema*, or *schema* itself when it is a sample type.

    >>> print(to_source(index.get_schema(uri)))
    # -*- coding: utf-8 -*-
    from __future__ import annotations
    ...

    Type checkers accept it, and running it makes a type that reads the same samples. Raises SchemaError as
    `schema_to_type` does.
    """
    builder = _Builder(resolve)
    if isinstance(schema, type):
        # Nested types have no URI of their own here: the class stands in for it.
        nested: dict[str, type[Any]] = {}

        def stand_in(sample_type: type[Any]) -> str:
            uri = f"at://did:web:localhost/{nsid.SAMPLE_SCHEMA}/{id(sample_type)}"
            nested[uri] = sample_type
            return uri

        record = type_to_schema(schema, refs=stand_in)
        builder = _Builder(lambda uri: type_to_schema(nested[uri], refs=stand_in) if uri in nested else resolve(uri))  # type: ignore[misc]
    else:
        record = _read(schema)
    builder.build(record, 0)  # checks every name and dtype
    return _Source(builder).text(record)


class _Source:
    """Prints one schema, after those it refers to."""

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        self._imports: set[str] = set()
        self._class_names: dict[tuple[Any, ...], str] = {}
        self._classes: list[str] = []
        self._taken: set[str] = set()

    def text(self, schema: SchemaRecord) -> str:
        # A field called `int` would hide the type of that name from the fields after it; so would a class.
        self._taken = {
            name for one in (schema, *self._builder.resolved()) for name in (*(f.name for f in one.fields), one.name)
        }
        self._declare(schema)
        title = _comment(f"{schema.name} {schema.version if syntax.is_semver(schema.version) else ''}")
        order = ["builtins", "dataclasses", "typing", "numpy", "numpy.typing", "atdata", "atdata.atmosphere.records"]
        imports = [
            f"import {module}" if (alias := self._alias(module)) == module else f"import {module} as {alias}"
            for module in order
            if module in self._imports
        ]
        # Python takes a codec's name out of a comment on the first two lines, whatever else that says (PEP 263), and
        # some codecs turn comments into code: no text of the record is there, and the first line has the say.
        head = ["# -*- coding: utf-8 -*-", "from __future__ import annotations", "", *imports, "", title]
        return "\n".join([*head, "", "", "\n\n\n".join(self._classes), ""])

    def _alias(self, module: str) -> str:
        alias = {"numpy": "np", "numpy.typing": "npt", "atdata.atmosphere.records": "records"}.get(module, module)
        while alias in self._taken:
            alias += "_"
        return alias

    def _use(self, module: str) -> str:
        self._imports.add(module)
        return self._alias(module)

    def _declare(self, schema: SchemaRecord) -> str:
        key = _identity(schema)
        if key in self._class_names:
            return self._class_names[key]
        lines = []
        has_default = False
        for field in schema.fields:
            has_default |= field.optional
            if field.description:
                lines.append(f"    {_comment(field.description)}")
            default = ""
            if field.optional:
                default = " = None"
            elif has_default:
                default = f" = {self._use('dataclasses')}.field(kw_only=True)"
            hint = self._hint(field.type)
            lines.append(f"    {field.name}: {hint}{' | None' if field.optional else ''}{default}")
        base = name = _class_name(schema.name)
        count = 1
        used = {*self._class_names.values(), *_BUILTIN_NAMES, *map(self._alias, self._imports)}
        while name in used:
            count += 1
            name = f"{base}_{count}"
        self._class_names[key] = name
        head = [_comment(schema.description)] if schema.description else []
        head += [f"@{self._use('atdata')}.packable", f"class {name}:"]
        self._classes.append("\n".join([*head, *(lines or ["    pass"])]))
        return name

    def _hint(self, field_type: FieldType | None) -> str:
        match field_type:
            case None:
                return f"{self._use('typing')}.Any"
            case Primitive(name):
                return self._builtin(name)
            case NDArray(dtype, shape):
                scalar = _declared_scalar(dtype)
                # The name under which NumPy's own stubs know it.
                element = f"{self._use('typing')}.Any" if scalar is None else f"{self._use('numpy')}.{scalar.__name__}"
                hint = f"{self._use('numpy.typing')}.NDArray[{element}]"
                if _is_plain(dtype, shape, scalar):
                    return hint
                note = f"{self._use('atdata.atmosphere.records')}.NDArray({json.dumps(dtype)}, {shape!r})"
                return f"{self._use('typing')}.Annotated[{hint}, {note}]"
            case Array(None):
                return f"{self._builtin('list')}[{self._use('typing')}.Any]"
            case Array(items):
                return f"{self._builtin('list')}[{self._hint(items)}]"
            case Ref(uri):
                return self._declare(self._builder.lookup(uri))

    def _builtin(self, name: str) -> str:
        return f"{self._use('builtins')}.{name}" if name in self._taken else name


_BUILTIN_NAMES: Final = frozenset({"str", "int", "float", "bool", "bytes", "list"})


def _comment(text: str) -> str:
    """*text* as a comment of one line: no character of it ends the line, for Python or for whoever looks at it."""
    return f"# {''.join(c for c in ' '.join(text.split()) if c.isprintable())}".rstrip()
