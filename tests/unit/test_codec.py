"""Arrays and maps as bytes: exact for honest ones, a SampleError for all others."""

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atdata import codec
from atdata.errors import SampleError

DTYPES = [
    "?",
    "u1",
    "<i8",
    ">i8",
    "<f2",
    "<f4",
    ">f4",
    "<f8",
    "<c8",
    ">c16",
    "<M8[ns]",
    "<M8[D]",
    ">m8[s]",
    "<U5",
    "S3",
]

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def is_identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(arrays)
def test_arrays_survive_bit_for_bit(array):
    """What is packed is what NumPy reads, and what comes back: dtype with byte order, shape, and every bit."""
    packed = codec.pack_array(array)
    assert is_identical(np.load(io.BytesIO(packed), allow_pickle=False), array)
    unpacked = codec.unpack_array(packed)
    assert is_identical(unpacked, array)
    assert type(unpacked) is np.ndarray
    assert unpacked.flags.writeable
    assert unpacked.flags.aligned


@given(arrays)
def test_what_numpy_saves_is_read(array):
    """A file of np.save, in any version of the format it picks, is an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    assert is_identical(codec.unpack_array(buffer.getvalue()), array)


@given(arrays)
def test_compact_form_is_read(array):
    """The form that older publishers wrote is read like the other."""
    name = array.dtype.str.encode()
    header = bytes([len(name)]) + name + bytes([array.ndim]) + struct.pack(f"<{array.ndim}q", *array.shape)
    assert is_identical(codec.unpack_array(header + array.tobytes()), array)


def test_memory_order_is_kept():
    """A Fortran-ordered array comes back in Fortran order, with the same values."""
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    unpacked = codec.unpack_array(codec.pack_array(array))
    assert unpacked.flags.f_contiguous
    np.testing.assert_array_equal(unpacked, array)


def test_views_are_packed_as_what_they_show():
    """Neither contiguous order: the values are packed in C order."""
    array = np.arange(24).reshape(4, 6)[::2, ::-3]
    np.testing.assert_array_equal(codec.unpack_array(codec.pack_array(array)), array)


def test_structured_arrays_survive():
    """Records of fields need no pickle."""
    array = np.array([(1, 2.5), (3, 4.5)], [("x", "<i4"), ("y", "<f8")])
    assert is_identical(codec.unpack_array(codec.pack_array(array)), array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.array([{}, 1], object),
        np.array(["text"], np.dtypes.StringDType()),
        np.array([(1, None)], [("x", int), ("y", object)]),
        np.zeros(3, np.dtype("V0")),
    ],
    ids=["none", "object", "string-dtype", "nested-object", "no-bytes"],
)
def test_arrays_that_need_pickle_are_refused(array):
    """Arrays that the format holds by pickle only, or not at all, are an error when they are written."""
    with pytest.raises(SampleError, match="dtype"):
        codec.pack_array(array)


MASKED = [
    np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    np.ma.array(["ab", "cd"], mask=[0, 1]),
    np.ma.array([1.0]),
    np.ma.masked,
]


@pytest.mark.parametrize("array", MASKED, ids=["numbers", "text", "nothing masked", "a masked value"])
@pytest.mark.parametrize("pack", [codec.pack_array, codec.pack_any, lambda array: codec.pack_any({"a": [array]})])
def test_masked_arrays_are_refused(array, pack):
    """No array loses its mask on the way, wherever it is."""
    with pytest.raises(SampleError, match="a masked array would lose its mask"):
        pack(array)


def saved_with_pickle() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode("latin1") + data


def npy_of(descr: str, shape: str, data: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n", data)


HOSTILE = {
    "nothing": b"",
    "one byte": b"\x93",
    "pickled": saved_with_pickle(),
    "magic only": b"\x93NUMPY",
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100,
    "version 9": b"\x93NUMPY\x09\x00\x76\x00" + b" " * 200,
    "version 3": npy("{}", version=b"\x03\x00"),
    "no dictionary": npy("[]"),
    "an expression": npy("__import__('os').system('true')"),
    "deep parentheses": npy("(" * 9000),
    "deep minus": npy("-" * 9000 + "1"),
    "deep list": npy("[" * 199 + "]" * 199),
    "wrong keys": npy("{'descr': '<f4'}"),
    "objects": npy_of("'O'", "(1,)", bytes(8)),
    "objects in fields": npy_of("[('x', 'O')]", "(1,)", bytes(8)),
    "unknown dtype": npy_of("'<q99'", "(1,)", bytes(8)),
    "huge": npy_of("'<f8'", "(1000000000000,)", bytes(8)),
    "huge product": npy_of("'<f8'", f"({2**62}, {2**62})", bytes(8)),
    "huge beside none": npy_of("'<f8'", f"(0, {2**62}, {2**62})"),
    "beyond 64 bits": npy_of("'<f8'", f"(0, {10**30})"),
    "negative": npy_of("'<f8'", "(-1,)", bytes(8)),
    "both negative": npy_of("'<f8'", "(-1, -1)", bytes(8)),
    "65 dimensions": npy_of("'u1'", f"({'1, ' * 65})", bytes(1)),
    "items of no bytes": npy_of("'<U0'", "(1000000000000,)"),
    "one byte short": npy_of("'u1'", "(3,)", bytes(2)),
    "one byte long": npy_of("'u1'", "(3,)", bytes(4)),
    "compact: objects": b"\x02|O\x01" + struct.pack("<q", 1) + bytes(8),
    "compact: a call": b"\x09i4,(2,)i4\x00" + bytes(8),
    "compact: cut name": b"\x40<f4",
    "compact: cut shape": b"\x03<f4\x09" + bytes(8),
    "compact: huge": b"\x03<f4\x01" + struct.pack("<q", 2**62),
    "compact: negative": b"\x03<f4\x02" + struct.pack("<2q", -1, -1) + bytes(4),
    "compact: no such unit": b"\x06<M8[q]\x00" + bytes(8),
    "compact: too many dimensions": b"\x02u1\x46" + struct.pack("<70q", *[1] * 70) + bytes(1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_arrays_are_an_error(data):
    """No header makes us allocate, execute, unpickle or crash: it is a SampleError."""
    with pytest.raises(SampleError):
        codec.unpack_array(data)


@given(
    st.binary(max_size=300).flatmap(
        lambda tail: st.sampled_from([tail, b"\x93NUMPY\x01\x00" + tail, b"\x03<f4" + tail])
    )
)
def test_any_bytes_are_an_array_or_an_error(data):
    """Whatever the bytes: an array, or a SampleError."""
    with contextlib.suppress(SampleError):
        codec.unpack_array(data)


@given(st.data())
def test_a_flipped_byte_is_an_array_or_an_error(data):
    """An honest array with one byte changed is read, as something else maybe, or is a SampleError."""
    packed = bytearray(codec.pack_array(data.draw(arrays)))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SampleError):
        codec.unpack_array(bytes(packed))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary().filter(lambda data: not data.startswith(codec.NPY_MAGIC)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_maps_survive(fields):
    """Every value that msgpack knows comes back equal, of the same type, in the same order."""
    unpacked = codec.unpack_any(codec.unpack_map(codec.pack_map(codec.pack_any(fields))))
    assert unpacked == fields
    assert list(unpacked) == list(fields)


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, "\ud800", {1: 2}, {1, 2}, object(), 1j, np.datetime64("2026-01-02"), Exception]
)
def test_what_msgpack_cannot_hold_is_an_error_that_names_the_field(value):
    """No value becomes silently something else."""
    with pytest.raises(SampleError, match="culprit"):
        codec.pack_map({"fine": 1, "culprit": value})


@pytest.mark.parametrize(
    "value", [b"\x93NUMPY", b"\x93NUMPY is how these begin", codec.pack_array(np.zeros(2)), bytearray(b"\x93NUMPY1")]
)
def test_bytes_that_would_be_read_as_an_array_are_refused(value):
    """Without a declared type, bytes that begin like a .npy file would come back as an array, or not at all."""
    for one in (value, [value], {"a": value}):
        with pytest.raises(SampleError, match=r"begin like a \.npy file"):
            codec.pack_any(one)
        assert codec.pack_stored(one) == one


@given(values, values)
def test_identical_values_are_packed_in_the_same_way(a, b):
    """Values are identical if msgpack holds them in the same bytes."""
    assert codec.is_identical(a, a)
    assert codec.is_identical(a, b) == (codec.pack_map({"": a}) == codec.pack_map({"": b}))
    assert not codec.is_identical([1], [True])
    assert not codec.is_identical(1, 1.0)
    assert not codec.is_identical(object(), object())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_an_error(data):
    """Whatever the bytes: a map, or a SampleError."""
    with contextlib.suppress(SampleError):
        assert isinstance(codec.unpack_map(data), dict)


@pytest.mark.parametrize(
    "data",
    [b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000, b"\x90", b"\x01", b""],
)
def test_hostile_maps_are_an_error(data):
    """Claimed lengths, endless nesting, and what is no map."""
    with pytest.raises(SampleError):
        codec.unpack_map(data)


def test_endless_nesting_is_an_error_both_ways():
    """Nesting beyond any honest one is a SampleError before Python's recursion limit."""
    value: list = []
    for _ in range(900):
        value = [value]
    with pytest.raises(SampleError, match="nested"):
        codec.pack_any(value)
    with pytest.raises(SampleError, match="nested"):
        codec.unpack_any(value)


def test_arrays_are_found_wherever_they_are():
    """Without a declared type, arrays in lists and maps are packed and found again."""
    value = {"list": [np.arange(3), {"deep": np.float32(1.5)}], "bytes": b"\x93NUMP"}
    unpacked = codec.unpack_any(codec.unpack_map(codec.pack_map(codec.pack_any(value))))
    np.testing.assert_array_equal(unpacked["list"][0], np.arange(3))
    assert unpacked["list"][1] == {"deep": 1.5}
    assert unpacked["bytes"] == b"\x93NUMP"
