"""Write samples to Parquet files. Needs pyarrow, the extra `parquet`.

A column has one type, worked out from every value in it: none is converted by guess. Where a later value changes what
is known of a type (the first that is not None, say), a new part of the file begins; parts become one file at the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np

from atdata.atmosphere.records import Primitive
from atdata.errors import MissingExtraError, SampleError, how_to_install
from atdata.hints import Kind, ListOf, read_hints
from atdata.sample import DictSample

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise MissingExtraError(f"Parquet needs pyarrow: {how_to_install('parquet')}") from None

__all__ = ["write"]

# What is turned into columns at once, so that memory holds no more: rows, and bytes of arrays in them.
_MAX_ROWS: Final = 1000
_MAX_BYTES: Final = 64 << 20

_TYPES: Final[Mapping[type[Any], Any]] = {
    type(None): pa.null(),
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}
_DECLARED_TYPES: Final[Mapping[str, Any]] = {python.__name__: kind for python, kind in _TYPES.items()}


def write(
    samples: Iterable[Any],
    sample_type: type[Any],
    path: str,
    sample_map: Callable[[Any], Mapping[str, Any]] | None,
    maxcount: int | None,
) -> None:
    """Write *samples* to the file *path*, or to several; see `Dataset.to_parquet`."""
    if maxcount is not None and maxcount < 1:
        raise ValueError(f"a file has at least 1 row, not {maxcount}")
    rows: Iterator[dict[str, Any]] = (dict((sample_map or _row)(sample)) for sample in samples)
    first = next(rows, None)
    if first is None:
        raise SampleError("the dataset has no samples: a Parquet file needs the types of its columns")
    rows = chain([first], rows)
    schema = pa.schema([] if sample_map is not None or sample_type is DictSample else _declared(sample_type))
    whole = Path(path)
    # Beside the target, so that a finished file only has to be renamed.
    with TemporaryDirectory(prefix=f".{whole.name}-", dir=whole.parent) as folder:
        files: list[tuple[Path, list[_Part]]] = []
        for target in _targets(whole, maxcount):
            parts, schema = _write_parts(islice(rows, maxcount), schema, Path(folder, str(len(files))))
            if not parts:
                break
            files.append((target, parts))
        finished = [(_as_one(parts, schema), target) for target, parts in files]
        for file, target in finished:
            file.replace(target)


def _targets(whole: Path, maxcount: int | None) -> Iterator[Path]:
    if maxcount is None:
        yield whole
        return
    number = 0
    while True:
        yield whole.with_name(f"{whole.stem}-{number:06d}{whole.suffix or '.parquet'}")
        number += 1


def _declared(sample_type: type[Any]) -> list[tuple[str, Any]]:
    """The columns of a sample type, in its order, with as much of their types as the hints say."""
    return [(hint.name, _declared_type(hint.kind)) for hint in read_hints(sample_type)]


def _declared_type(kind: Kind | None) -> Any:
    match kind:
        case Primitive(name):
            return _DECLARED_TYPES[name]
        case ListOf(items):
            return pa.list_(_declared_type(items))
        case _:
            return pa.null()


def _row(sample: Any) -> dict[str, Any]:
    if isinstance(sample, DictSample):
        return sample.to_dict()
    return {field.name: _value(getattr(sample, field.name)) for field in dataclasses.fields(sample)}


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _row(value)
    if isinstance(value, list | tuple):
        return [_value(one) for one in value]
    return value


# --- Files


class _Part(NamedTuple):
    """A file on its own, with rows of one schema."""

    path: Path
    schema: Any


def _write_parts(rows: Iterator[dict[str, Any]], schema: Any, stem: Path) -> tuple[list[_Part], Any]:
    """The files with *rows*, one for each schema that they turned out to have, and the last of these."""
    parts: list[_Part] = []
    writer = None
    try:
        for group in _groups(rows):
            table = _table(group, schema)
            if writer is None or table.schema != schema:
                if writer is not None:
                    writer.close()
                schema = table.schema
                parts.append(_Part(stem.with_name(f"{stem.name}-{len(parts)}"), schema))
                writer = pq.ParquetWriter(parts[-1].path, schema)
            _write_table(writer, table)
    finally:
        if writer is not None:
            writer.close()
    return parts, schema


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        if len(group) == _MAX_ROWS or size >= _MAX_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _as_one(parts: list[_Part], schema: Any) -> Path:
    """One file with the rows of *parts*, in the types that are known now."""
    if len(parts) == 1 and parts[0].schema == schema:
        return parts[0].path
    whole = parts[0].path.with_name(f"{parts[0].path.name}-whole")
    with pq.ParquetWriter(whole, schema) as writer:
        for part in parts:
            with pq.ParquetFile(part.path) as file:
                for number in range(file.num_row_groups):
                    _write_table(writer, _cast(file.read_row_group(number), schema))
    return whole


def _cast(table: Any, schema: Any) -> Any:
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as e:  # an integer that no float holds, say
            raise _refused(e, field.name) from None
    return pa.table(columns, schema=schema)


def _write_table(writer: Any, table: Any) -> None:
    try:
        writer.write_table(table)
    except pa.ArrowException as e:
        raise _refused(e) from None


def _refused(e: Exception, name: str | None = None) -> SampleError:
    return SampleError(f"Parquet cannot hold it: {e}; give a sample_map that makes it something else", name)


# --- Columns


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    """The columns of *rows*: first those of *schema*, in its order, then what is new."""
    names = list(dict.fromkeys(chain(schema.names, *rows)))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        known = schema.field(name).type if name in schema.names else pa.null()
        try:
            columns.append(_column(values, _type_of_all(values, known)))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            raise _refused(e, name) from None
    return pa.table(columns, names=names)


def _type_of_all(values: Sequence[Any], known: Any) -> Any:
    """The type of a column or list with *values*, if it was *known* before, as far as it was."""
    found = {type(value) for value in values}
    # Most values are of primitive types, of which not every one needs a look.
    kind = reduce(_merged, (_TYPES[one] for one in found if one in _TYPES), known)
    if found <= _TYPES.keys():
        return kind
    return reduce(_merged, (_type_of(value) for value in values if type(value) not in _TYPES), kind)


def _type_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("a masked array would lose its mask")
        return _array_type(value.dtype, value.ndim)
    if isinstance(value, np.generic):
        return _array_type(value.dtype, 0)
    if isinstance(value, list | tuple):
        return pa.list_(_type_of_all(value, pa.null()))
    if isinstance(value, Mapping):
        return pa.struct([(name, _type_of_all([one], pa.null())) for name, one in value.items()])
    return pa.infer_type([value])


@lru_cache(1024)
def _array_type(dtype: np.dtype[Any], ndim: int) -> Any:
    if dtype.kind in "mM" and np.datetime_data(dtype)[1] != 1:
        raise TypeError(f"there is no type for {dtype}, whose unit is a multiple")
    kind = pa.from_numpy_dtype(dtype.newbyteorder("="))
    for _ in range(ndim):
        kind = pa.list_(kind)
    return kind


def _merged(a: Any, b: Any) -> Any:
    """The one type of a column that holds values of both."""
    if a is b or a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(_merged(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        both = {field.name: field.type for field in a}
        for field in b:
            both[field.name] = _merged(both.get(field.name, pa.null()), field.type)
        return pa.struct(list(both.items()))
    # Writers of other languages do not tell 1.0 from 1. An integer that no float holds is refused when it is converted.
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    raise TypeError(f"it is {a} in one sample, {b} in another")


def _column(values: list[Any], kind: Any) -> Any:
    if not any(map(_has_array, values)):
        return pa.array(values, kind)
    if all(value is None or isinstance(value, np.ndarray) for value in values):
        return _of_arrays(values, kind)
    is_none = pa.array([value is None for value in values])
    if pa.types.is_list(kind):
        lengths = [0 if value is None else len(value) for value in values]
        items = _column([one for value in values if value is not None for one in value], kind.value_type)
        return pa.ListArray.from_arrays(_offsets(lengths), items, mask=is_none)
    fields = list(kind)
    columns = [_column([value and value.get(field.name) for value in values], field.type) for field in fields]
    return pa.StructArray.from_arrays(columns, fields=fields, mask=is_none)


def _has_array(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_array, value))
    if isinstance(value, Mapping):
        return any(map(_has_array, value.values()))
    return isinstance(value, np.ndarray)


def _of_arrays(values: list[Any], kind: Any) -> Any:
    """Arrays, all of one dtype and number of dimensions, or None, as nested lists."""
    arrays = [value for value in values if value is not None]
    for _ in range(ndim := arrays[0].ndim):
        kind = kind.value_type
    items = pa.concat_arrays([_items(array).cast(kind) for array in arrays])
    for axis in reversed(range(1, ndim)):
        lengths = [np.full(math.prod(array.shape[:axis]), array.shape[axis]) for array in arrays]
        items = pa.ListArray.from_arrays(_offsets(np.concatenate(lengths)), items)
    if ndim:
        mask = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(
            _offsets([0 if value is None else len(value) for value in values]), items, mask=mask
        )
    rank = iter(range(len(arrays)))
    return items.take(pa.array([None if value is None else next(rank) for value in values], pa.int64()))


def _items(array: Any) -> Any:
    flat = array.ravel()
    return pa.array(flat.tolist() if flat.dtype.kind in "US" else flat.astype(flat.dtype.newbyteorder("="), copy=False))


def _offsets(lengths: Any) -> Any:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
