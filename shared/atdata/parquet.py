"""Write samples to Parquet files. pyarrow is the extra `parquet`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from atdata.atmosphere.records import Primitive
from atdata.errors import MissingExtraError, SampleError
from atdata.hints import read_hints
from atdata.sample import DictSample

__all__ = ["write"]

# Rows that are turned into columns at once, so that memory holds no more of them.
_GROUP: Final = 1000


def write(
    samples: Iterable[Any],
    sample_type: type[Any],
    path: str,
    sample_map: Callable[[Any], Mapping[str, Any]] | None,
    maxcount: int | None,
) -> None:
    """Write *samples* to the file *path*, or to several; see `Dataset.to_parquet`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'atdata-network[parquet]'") from None
    if maxcount is not None and maxcount < 1:
        raise ValueError(f"a file has at least 1 row, not {maxcount}")
    # What a column holds whose first thousand values are all None.
    known = {} if sample_map is not None or sample_type is DictSample else _known_types(sample_type, pa)
    rows = (dict((sample_map or _row)(sample)) for sample in samples)
    first = next(rows, None)
    if first is None:
        raise SampleError("the dataset has no samples: a Parquet file needs the types of its columns")
    pending = _chained(first, rows)
    for number, target in enumerate(_paths(path, maxcount)):
        of_file = pending if maxcount is None else islice(pending, maxcount)
        head = list(islice(of_file, _GROUP))
        if not head and number:
            return
        table = _table(head, known, pa)
        with pq.ParquetWriter(target, table.schema) as writer:
            writer.write_table(table)
            while group := list(islice(of_file, _GROUP)):
                writer.write_table(_table(group, {field.name: field.type for field in table.schema}, pa))


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _paths(path: str, maxcount: int | None) -> Iterator[str]:
    if maxcount is None:
        yield path
        return
    whole = Path(path)
    number = 0
    while True:
        yield str(whole.with_name(f"{whole.stem}-{number:06d}{whole.suffix or '.parquet'}"))
        number += 1


def _row(sample: Any) -> dict[str, Any]:
    if isinstance(sample, DictSample):
        return sample.to_dict()
    return {field.name: _value(getattr(sample, field.name)) for field in dataclasses.fields(sample)}


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _row(value)
    if isinstance(value, list):
        return [_value(one) for one in value]
    return value


def _known_types(sample_type: type[Any], pa: Any) -> dict[str, Any]:
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "bytes": pa.binary()}
    hints = read_hints(sample_type)
    return {hint.name: types[hint.kind.name] for hint in hints if isinstance(hint.kind, Primitive)}


def _table(rows: list[dict[str, Any]], known: Mapping[str, Any], pa: Any) -> Any:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row) | dict.fromkeys(known):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = _column(values, known.get(name), pa)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            raise SampleError(
                f"Parquet cannot hold it: {e}; give a sample_map that makes it something else", name
            ) from None
    return pa.table(columns)


def _column(values: list[Any], known: Any, pa: Any) -> Any:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if arrays:
        kind = known or _array_type(arrays[0], pa)
        # Arrow takes flat arrays as they are, and others as lists.
        return pa.array([_nested(value) for value in values], kind)
    return pa.array(values, known)


def _array_type(array: Any, pa: Any) -> Any:
    kind = pa.string() if array.dtype.kind == "U" else pa.binary() if array.dtype.kind == "S" else None
    kind = kind or pa.from_numpy_dtype(array.dtype.newbyteorder("="))
    for _ in range(array.ndim):
        kind = pa.list_(kind)
    return kind


def _nested(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 1 and value.dtype.isnative:
        return value
    if value.ndim > 1:
        return [_nested(row) for row in value]
    if value.ndim == 0:
        return value[()]
    return value.astype(value.dtype.newbyteorder("="))
