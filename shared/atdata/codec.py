"""Turn arrays and maps into bytes and back: NumPy's `.npy` format, the older compact form, msgpack. No I/O, no pickle.

Bytes come from strangers. Nothing is allocated because a header says so: what a header claims is compared with the
bytes that are there first. Every failure is a SampleError. Formats:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html and
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import ormsgpack
from numpy.lib import format as npy

from atdata.atmosphere.records import is_dtype
from atdata.errors import SampleError

__all__ = [
    "NPY_MAGIC",
    "is_identical",
    "pack_any",
    "pack_array",
    "pack_map",
    "pack_stored",
    "unpack_any",
    "unpack_array",
    "unpack_map",
]

NPY_MAGIC: Final = b"\x93NUMPY"
# NumPy's own limit for what `ast.literal_eval` is given.
_MAX_HEADER: Final = 10_000
_MAX_NESTING: Final = 64
# What msgpack has no word for is an error, never a silent conversion to text.
_PACK_OPTIONS: Final = (
    ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

Array = npt.NDArray[Any]


# --- Arrays


def pack_array(array: Array) -> bytes:
    """*array* in the `.npy` format: dtype, byte order, shape and memory order are kept.

    >>> pack_array(np.zeros((2, 3), np.uint8))[:6]
    b'\\x93NUMPY'

    Raises SampleError for dtypes that would need pickle, or that the format cannot name, and for masked arrays.
    """
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise SampleError("a masked array would lose its mask; store .filled() and .mask as two fields")
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    header = _npy_header(array.dtype, array.shape, is_fortran)
    return header + array.tobytes("F" if is_fortran else "C")


@lru_cache(1024)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...], is_fortran: bool) -> bytes:
    if dtype.hasobject:
        raise SampleError(f"arrays of dtype {dtype} would need pickle; use a numeric, text, bytes or time dtype")
    if dtype.itemsize == 0:
        raise SampleError(f"arrays of dtype {dtype} have items of no bytes")
    header = io.BytesIO()
    try:
        descr = npy.dtype_to_descr(dtype)
        # Types of other packages (bfloat16, float8) come back from their description as bytes without a meaning.
        is_faithful = npy.descr_to_dtype(descr) == dtype
        npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": is_fortran, "shape": shape})
    except ValueError as e:  # text in field names, or a header of more than 64 KiB
        raise SampleError(f"the .npy format cannot hold dtype {dtype}: {e}") from None
    if not is_faithful:
        raise SampleError(f"the .npy format cannot name dtype {dtype}; store a standard dtype, such as float32")
    return header.getvalue()


def unpack_array(data: bytes) -> Array:
    """The array in *data*, in the `.npy` format or the compact form; a writable copy with the dtype as written.

    >>> unpack_array(pack_array(np.array([1, 2, 3], ">i4")))
    array([1, 2, 3], dtype='>i4')

    Raises SampleError when *data* is neither, needs pickle, or is longer or shorter than its header says.
    """
    if data[:6] == NPY_MAGIC:
        start = _npy_start(data)
        dtype, shape, is_fortran = _parse_npy_header(data[:start])
    else:
        dtype, shape, start = _parse_compact_header(data)
        is_fortran = False
    expected = dtype.itemsize * math.prod(shape)
    if len(data) - start != expected:
        raise SampleError(
            f"an array of dtype {dtype} and shape {_cut(shape)} takes {expected} bytes, found {len(data) - start}"
        )
    try:
        # The copy makes it aligned, writable, and independent of the sample's bytes.
        if is_fortran:
            return np.ndarray(shape, dtype, data, start, order="F").copy("F")
        return np.ndarray(shape, dtype, data, start).copy()
    except (ValueError, OverflowError, MemoryError) as e:  # 65 dimensions; none, but each of 2**62
        raise SampleError(f"no array can have the shape {_cut(shape)}: {e}") from None


def _npy_start(data: bytes) -> int:
    """Where the items begin. Checks that the header is there, and not longer than any honest one."""
    if len(data) < 12:
        raise SampleError(f"an array in .npy format has a header, found {len(data)} bytes")
    version = data[6], data[7]
    if version == (1, 0):
        start = 10 + int.from_bytes(data[8:10], "little")
    elif version == (2, 0):
        start = 12 + int.from_bytes(data[8:12], "little")
    else:  # 3.0 only ever names fields of structured dtypes in other alphabets
        raise SampleError(f".npy version {version[0]}.{version[1]} is not read, only 1.0 and 2.0")
    if start > min(len(data), _MAX_HEADER):
        raise SampleError(f"the .npy header claims to end at byte {start} of {len(data)}")
    return start


@lru_cache(1024)
def _parse_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    stream = io.BytesIO(header)
    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as e:  # noqa: BLE001 — a hostile literal makes Python's parser raise nearly anything
        raise SampleError(f"the .npy header is malformed: {str(e)[:200]}") from None
    _check_layout(dtype, shape)
    return dtype, tuple(map(int, shape)), bool(is_fortran)


def _parse_compact_header(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """`u8 len(dtype.str)`, `dtype.str`, `u8 ndim`, `ndim` little-endian i64, items in C order."""
    length = data[0] if data else 0
    name = data[1 : 1 + length]
    if not length or len(data) < length + 2:
        raise SampleError(f"{len(data)} bytes are no array in .npy format, nor in the compact form")
    ndim = data[1 + length]
    start = 2 + length + 8 * ndim
    if not name.isascii() or not is_dtype(name.decode()) or start > len(data):
        raise SampleError("the bytes are no array in .npy format, nor in the compact form")
    try:
        dtype = np.dtype(name.decode())
    except (TypeError, ValueError) as e:
        raise SampleError(f"NumPy has no dtype {name.decode()!r}: {e}") from None
    shape = struct.unpack_from(f"<{ndim}q", data, 2 + length)
    _check_layout(dtype, shape)
    return dtype, shape, start


def _check_layout(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.hasobject:
        raise SampleError("an array of objects would need pickle, which is never loaded")
    if dtype.itemsize == 0:
        raise SampleError(f"arrays of dtype {dtype} have items of no bytes")
    if any(length < 0 for length in shape):
        raise SampleError(f"the shape {_cut(shape)} has a negative length")


def _cut(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else text[:79] + "…"


# --- Maps


def pack_map(fields: Mapping[str, Any]) -> bytes:
    """A msgpack map of *fields*, in their order.

    Raises SampleError that names the field which msgpack cannot hold.
    """
    try:
        return ormsgpack.packb(fields, option=_PACK_OPTIONS)
    except TypeError as e:
        for name, value in fields.items():
            try:
                ormsgpack.packb(value, option=_PACK_OPTIONS)
            except TypeError as cause:
                raise SampleError(f"msgpack cannot hold it: {cause}", str(name)) from None
        raise SampleError(f"msgpack cannot hold it: {e}") from None


def unpack_map(data: bytes | memoryview) -> dict[str, Any]:
    """The map that *data* holds. Raises SampleError when it is no msgpack, or no map of names."""
    try:
        fields = ormsgpack.unpackb(data)
    except ValueError as e:
        raise SampleError(f"not msgpack: {e}") from None
    if not isinstance(fields, dict):
        raise SampleError(f"a sample is a msgpack map of its fields, found {type(fields).__name__}")
    return fields


def is_identical(a: Any, b: Any) -> bool:
    """Whether msgpack holds two values in the same way: 1, 1.0 and True it does not, and a NaN is itself.

    >>> is_identical({"a": 1}, {"a": True})
    False
    """
    try:
        return ormsgpack.packb(a, option=_PACK_OPTIONS) == ormsgpack.packb(b, option=_PACK_OPTIONS)
    except TypeError:  # not at all
        return False


# --- Values of fields without a declared type


def pack_any(value: Any) -> Any:
    """*value* with every array in it, however deep, in the `.npy` format. Tuples become lists, as in JSON.

    Raises SampleError for what would not be found again: bytes that look like an array, and nesting without end.
    """
    return _packed(value, 0, False)


def pack_stored(value: Any) -> Any:
    """The same of a value in which arrays may be packed already, as they are in what was read."""
    return _packed(value, 0, True)


def _packed(value: Any, depth: int, is_stored: bool) -> Any:
    if isinstance(value, np.ndarray):
        return pack_array(value)
    if isinstance(value, np.generic):
        return pack_array(np.asarray(value)) if value.dtype.kind in "mMcV" else value.item()
    if isinstance(value, dict | list | tuple):
        _check_depth(depth)
        if isinstance(value, dict):
            return {key: _packed(one, depth + 1, is_stored) for key, one in value.items()}
        return [_packed(one, depth + 1, is_stored) for one in value]
    if not is_stored and isinstance(value, bytes | bytearray) and value.startswith(NPY_MAGIC):
        raise SampleError(
            "these bytes begin like a .npy file and would be read as an array; "
            "give the array itself, or store them in a field that is declared as bytes"
        )
    return value


def unpack_any(value: Any, depth: int = 0) -> Any:
    """*value* with all bytes that are in the `.npy` format turned into arrays, however deep."""
    if isinstance(value, bytes):
        return unpack_array(value) if value.startswith(NPY_MAGIC) else value
    if isinstance(value, dict | list):
        _check_depth(depth)
        if isinstance(value, dict):
            return {key: unpack_any(one, depth + 1) for key, one in value.items()}
        return [unpack_any(one, depth + 1) for one in value]
    return value


def _check_depth(depth: int) -> None:
    if depth > _MAX_NESTING:
        raise SampleError(f"nested deeper than {_MAX_NESTING} levels")
