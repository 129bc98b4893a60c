"""Show datasets, batches and schemas in a notebook: tables of fields and samples, arrays as images where they are.

Everything shown comes from strangers and is escaped. Showing something never raises and reads little: of a dataset, the
beginning of its first shard, as far as it comes within seconds.
"""

from __future__ import annotations

import base64
import dataclasses
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from atdata.atmosphere.records import Array, FieldType, NDArray, Primitive, Ref, SchemaRecord
from atdata.errors import redacted
from atdata.hints import read_hints
from atdata.protocols import Stream
from atdata.sample import DictSample
from atdata.shards import iter_samples

if TYPE_CHECKING:
    from atdata.dataset import Dataset, SampleBatch

__all__ = ["batch", "dataset", "facts", "png", "sample", "schema", "splits", "table"]

_SAMPLES: Final = 3
_MAX_BYTES: Final = 8 << 20
_SECONDS: Final = 10.0
_MAX_TEXT: Final = 120
_THUMBNAIL: Final = 64
# Beyond this, looking for the smallest and the largest value takes longer than one wants to wait for a table.
_MAX_RANGE: Final = 1 << 24


def dataset(ds: Dataset[Any]) -> str:
    """The fields of a dataset and its first samples."""
    return _safely(lambda: _dataset(ds))


def _dataset(ds: Dataset[Any]) -> str:
    shards = ds.list_shards()
    sample_type = ds.sample_type
    parts = [
        _title(f"Dataset[{sample_type.__name__}]"),
        _line(f"{redacted(ds.url)[:300]} ({_counted(len(shards), 'shard')})"),
    ]
    if sample_type is not DictSample:
        hints = read_hints(sample_type)
        parts.append(_rows(["field", "type"], ([escape(hint.name), escape(hint.text)] for hint in hints)))
    if shards:
        parts.append(_safely(lambda: _samples(_first(ds, shards[0]))))
    return "".join(parts)


def _first(ds: Dataset[Any], shard: str) -> list[Any]:
    from atdata import network  # takes as long as all else that is imported

    end = time.monotonic() + _SECONDS
    with network.deadline(_SECONDS):
        stream = ds.source.open_shard(shard)
        try:
            stored = islice(iter_samples(_Beginning(stream, end), shard, limit=_MAX_BYTES), _SAMPLES)
            return [ds.wrap({"__key__": key, "msgpack": data}) for key, data in stored]
        finally:
            stream.close()


class _Beginning:
    """A stream that is not read for long."""

    def __init__(self, stream: Stream, end: float) -> None:
        self._stream = stream
        self._left = _MAX_BYTES
        self._end = end

    def read(self, size: int = -1) -> bytes:
        if self._left <= 0:
            raise OSError(f"the first {_SAMPLES} samples take more than {_MAX_BYTES >> 20} MiB, and are not shown")
        if time.monotonic() > self._end:
            raise OSError(f"the first {_SAMPLES} samples take longer than {_SECONDS:g} s, and are not shown")
        # Small pieces: three samples are often a few kilobytes.
        data = self._stream.read(min(max(size, 1), 1 << 16, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._stream.close()


def batch(samples: SampleBatch[Any]) -> str:
    """The first samples of a batch."""
    return _safely(lambda: _title(repr(samples)) + _samples(samples.samples[:_SAMPLES]))


def sample(one: Any) -> str:
    """The fields of a sample."""
    return _safely(lambda: _title(type(one).__name__) + _samples([one]))


def splits(datasets: Mapping[str, Dataset[Any]]) -> str:
    """The splits of a dataset."""
    return _safely(
        lambda: (
            _title("DatasetDict")
            + _rows(
                ["split", "shards", "dataset"],
                (
                    [escape(name), str(len(one.list_shards())), escape(_cut(repr(one)))]
                    for name, one in datasets.items()
                ),
            )
        )
    )


def schema(record: SchemaRecord) -> str:
    """The fields of a schema record."""
    return _safely(
        lambda: (
            _title(f"{record.name[:_MAX_TEXT]} {record.version[:_MAX_TEXT]}")
            + (_line(record.description[:1000]) if record.description else "")
            + _rows(
                ["field", "type", "description"],
                (
                    [
                        escape(field.name),
                        escape(type_text(field.type) + (" | None" if field.optional else "")),
                        escape(_cut(field.description or "")),
                    ]
                    for field in record.fields
                ),
            )
        )
    )


def facts(title: str, values: Mapping[str, Any]) -> str:
    """Names and values below a title; values that are None are left out."""
    return _safely(
        lambda: (
            _title(title)
            + _rows(
                [], ([escape(name), escape(_cut(str(value)))] for name, value in values.items() if value is not None)
            )
        )
    )


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts and numbers below a title."""
    return _safely(
        lambda: _title(title[:1000]) + _rows(head, ([escape(_cut(str(cell))) for cell in row] for row in rows))
    )


def type_text(field_type: FieldType | None) -> str:
    """A field's type as one writes it in Python.

    >>> type_text(Array(NDArray("uint8", (0, 3))))
    'list[NDArray[uint8] (any, 3)]'
    """
    match field_type:
        case None:
            return "unknown"
        case Primitive(name):
            return name
        case NDArray(dtype, None):
            return f"NDArray[{dtype}]"
        case NDArray(dtype, shape):
            assert shape is not None
            return f"NDArray[{dtype}] ({', '.join(str(length) if length else 'any' for length in shape)})"
        case Array(None):
            return "list"
        case Array(items):
            return f"list[{type_text(items)}]"
        case Ref(uri):
            return f"sample of {uri}"


# --- Pieces


def _safely(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as e:  # noqa: BLE001 — a notebook shows the object as it is, whatever is wrong with it
        return _line(f"{type(e).__name__}: {e}"[:1000])


def _title(text: str) -> str:
    return f"<div><strong>{escape(text)}</strong></div>"


def _line(text: str) -> str:
    return f"<div>{escape(text)}</div>"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    return f"<table>{top}{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def _cells(row: Iterable[str]) -> str:
    return "".join(f'<td style="text-align: left">{cell}</td>' for cell in row)


def _samples(samples: Sequence[Any]) -> str:
    named = [_fields(sample) for sample in samples]
    names = list(dict.fromkeys(name for fields in named for name in fields))
    return _rows(names, ([_value(fields.get(name)) for name in names] for fields in named))


def _fields(sample: Any) -> Mapping[str, Any]:
    if isinstance(sample, DictSample):
        return sample.to_dict()
    return {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        image = _image(value)
        return (f'<img src="{image}"><br>' if image else "") + escape(_summary(value))
    if isinstance(value, bytes):
        return escape(f"{_counted(len(value), 'byte')} {value[:16]!r}")
    if isinstance(value, list) and any(isinstance(one, np.ndarray) for one in value[:10]):
        return escape(f"list of {len(value)}: ") + ", ".join(_value(one) for one in value[:_SAMPLES])
    return escape(_cut(repr(value)))


def _summary(array: np.ndarray[Any, Any]) -> str:
    text = f"{array.dtype} {array.shape}"
    if array.dtype.kind in "biuf" and 0 < array.size <= _MAX_RANGE:
        finite = array[np.isfinite(array)]
        if finite.size:
            text += f" {finite.min():.6g} … {finite.max():.6g}"
    return text


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


# --- Images


def _image(array: np.ndarray[Any, Any]) -> str | None:
    """A thumbnail as a data URI, if *array* looks like an image: height × width, or with 1, 3 or 4 channels."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) or min(array.shape[:2]) < 8:
        return None
    step = -(-max(array.shape[:2]) // _THUMBNAIL)
    array = array[::step, ::step]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        return None
    return "data:image/png;base64," + base64.b64encode(png(array)).decode()


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """*pixels*, uint8 of shape (height, width) or (height, width, 1, 3 or 4 channels), as a PNG file.

    >>> png(np.zeros((8, 8), np.uint8))[:4]
    b'\\x89PNG'

    Specification: https://www.w3.org/TR/png-3/
    """
    height, width = pixels.shape[:2]
    colour = {1: 0, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    # Each row begins with its filter: 0, none.
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
