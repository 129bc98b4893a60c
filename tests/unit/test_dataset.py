"""Datasets and batches: what is in the shards comes out, in order or shuffled, one by one or stacked."""

from __future__ import annotations

import datetime
import functools
import itertools
import operator
import pickle
import random
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ormsgpack
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from numpy.typing import NDArray
from shard_files import Digit, Labelled, digits, packed_shard, tar, write_shard

import atdata
from atdata import Dataset, DictSample, LensNetwork, SampleBatch, packable
from atdata.dataset import _shuffle
from atdata.errors import ArgumentError, LensError, MissingExtraError, SampleError, SchemaError, ShardError
from atdata.schema import type_to_schema


@pytest.fixture
def url(tmp_path) -> str:
    """Three shards with 10 digits each."""
    for i in range(3):
        write_shard(tmp_path / f"digits-{i}.tar", digits(10, i * 10))
    return f"{tmp_path}/digits-{{0..2}}.tar"


def test_ordered(url):
    """Samples come typed, in the order of the shards and of the samples in them."""
    assert list(Dataset[Digit](url).ordered()) == digits(30)


def test_batches(url):
    """Arrays are stacked into one, everything else is a list; the last batch may be short."""
    batches = list(Dataset[Digit](url).ordered(batch_size=8))
    assert [len(batch.label) for batch in batches] == [8, 8, 8, 6]
    assert [label for batch in batches for label in batch.label] == list(range(30))
    assert batches[0].image.shape == (8, 8, 8)
    assert batches[0].image.dtype == np.uint8
    assert batches[3].samples == digits(30)[24:]


def test_each_iteration_is_one_pass(url):
    """What `ordered` and `shuffled` return can be iterated over again; each time the shards are read once."""
    dataset = Dataset[Digit](url)
    once = dataset.ordered()
    assert list(once) == list(once) == list(dataset)
    shuffled = dataset.shuffled()
    first, second = list(shuffled), list(shuffled)
    assert first != second
    assert {sample.label for sample in first} == {sample.label for sample in second} == set(range(30))


@pytest.mark.parametrize(("shards", "samples"), [(100, 10_000), (1, 1), (2, 5), (1, 10_000)])
def test_shuffled_is_a_permutation(url, shards, samples):
    """Whatever the buffers, every sample comes once."""
    found = [sample.label for sample in Dataset[Digit](url).shuffled(shards, samples)]
    assert sorted(found) == list(range(30))
    if (shards, samples) == (1, 1):
        assert found == list(range(30))


def test_shuffled_batches(url):
    """Shuffled samples come in batches, too."""
    batches = list(Dataset[Digit](url).shuffled(batch_size=16))
    assert [len(batch) for batch in batches] == [16, 14]
    assert batches[0].image[:, 0, 0].tolist() == batches[0].label


def test_shuffling_mixes_shards(url):
    """With buffers as large as the dataset, shards do not stay together."""
    found = [sample.label // 10 for sample in Dataset[Digit](url).shuffled()]
    assert sum(a != b for a, b in itertools.pairwise(found)) > 5


def test_the_buffer_holds_no_more_than_it_may():
    """Before an item is given, at most the buffer and one more were taken; all positions get all items."""
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    shuffled = _shuffle(items(), 5, random.Random(1))
    next(shuffled)
    assert len(taken) == 6
    assert sorted([*shuffled, taken[0]])[0] == 0
    firsts = {next(_shuffle(iter(range(5)), 5, random.Random(seed))) for seed in range(100)}
    assert firsts == set(range(5))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}])
def test_impossible_sizes_are_errors(url, options):
    """Batches and buffers hold one sample at least."""
    with pytest.raises(ValueError, match="at least 1"):
        Dataset[Digit](url).ordered(**options)
    with pytest.raises(ValueError, match="at least 1"):
        Dataset[Digit](url).shuffled(buffer_samples=0)


def test_what_a_dataset_says_of_itself(url, tmp_path):
    """Its type, its shards, its source and its URL, under every documented name."""
    dataset = Dataset[Digit](url)
    shards = [f"{tmp_path}/digits-{i}.tar" for i in range(3)]
    assert dataset.sample_type is Digit
    assert dataset.batch_type == SampleBatch[Digit]
    assert dataset.list_shards() == dataset.shard_list == list(dataset.shards) == shards
    assert dataset.url == url
    assert isinstance(dataset.source, atdata.URLSource)
    assert dataset.metadata_url is None
    assert dataset.metadata is None
    assert repr(dataset) == f"Dataset[Digit]({url!r})"
    assert Dataset(url).sample_type is DictSample

    class Digits(Dataset[Digit]):
        pass

    assert Digits(url).sample_type is Digit
    assert next(iter(Digits(url))).label == 0


def test_any_data_source_will_do(url):
    """A class with the three methods of the protocol is a source."""

    class Memory:
        shards: Any = ()

        def list_shards(self) -> list[str]:
            return ["one"]

        def open_shard(self, shard_id: str) -> Any:
            import io

            return io.BytesIO(packed_shard(digits(2)))

    assert list(Dataset[Digit](Memory())) == digits(2)
    assert Dataset[Digit](Memory()).url == "one"
    with pytest.raises(TypeError, match="expected a URL or a data source, found int"):
        Dataset[Digit](5)


def test_without_a_type(url):
    """Samples without a declared type have their fields as attributes and items; batches of them stack."""
    batch = next(iter(Dataset(url).ordered(batch_size=4)))
    assert isinstance(batch.samples[0], DictSample)
    assert batch.image.shape == (4, 8, 8)
    assert batch.label == [0, 1, 2, 3]


def test_shards_of_webdataset_itself(tmp_path):
    """A dataset written by webdataset's ShardWriter is read, and webdataset's samples can be wrapped."""
    with wds.writer.ShardWriter(f"file:{tmp_path}/s-%06d.tar", maxcount=4, verbose=0) as sink:
        for sample in digits(10):
            sink.write(sample.as_wds)
    url = f"{tmp_path}/s-{{000000..000002}}.tar"
    dataset = Dataset[Digit](url)
    assert list(dataset) == digits(10)
    raws = [{"__key__": "a", "msgpack": sample.packed} for sample in digits(3)]
    assert [dataset.wrap(raw) for raw in raws] == digits(3)
    together = {"__key__": ["a", "b", "c"], "msgpack": [raw["msgpack"] for raw in raws]}
    assert dataset.wrap_batch(together).label == [0, 1, 2]
    with pytest.raises(SampleError, match="sample a: has no bytes under 'msgpack', only __key__, jpg"):
        dataset.wrap({"__key__": "a", "jpg": b""})
    with pytest.raises(SampleError, match="no list"):
        dataset.wrap_batch({"__key__": "a"})
    with pytest.raises(SampleError, match="sample b: field label: expected int"):
        Dataset[Labelled](url).wrap({"__key__": "b", "msgpack": ormsgpack.packb({"label": "x"})})


def test_errors_name_shard_key_and_field(tmp_path):
    """A sample that does not fit is named by its shard, its key and the field."""
    path = tmp_path / "s.tar"
    for data, message in [
        ({"label": "x"}, "field label: expected int, found str 'x'"),
        ({"other": 1}, "field label: is missing; the sample has only other"),
    ]:
        path.write_bytes(tar({"good.msgpack": Labelled(1).packed, "bad.msgpack": ormsgpack.packb(data)}))
        with pytest.raises(SampleError) as caught:
            list(Dataset[Labelled](str(path)))
        assert str(caught.value).startswith(f"{path}: sample bad: {message}")
        assert (caught.value.shard, caught.value.key, caught.value.field) == (str(path), "bad", "label")
    path.write_bytes(tar({"bad.msgpack": DictSample(image=np.zeros((2, 2)), label=1).packed}))
    with pytest.raises(SampleError, match="sample bad: field image: expected an array of dtype uint8, found float64"):
        list(Dataset[Digit](str(path)))
    path.write_bytes(tar({"bad.msgpack": b"\xc1"}))
    with pytest.raises(SampleError, match="sample bad: not msgpack"):
        list(Dataset[Labelled](str(path)))


def test_a_dataset_of_something_else_is_an_error(url):
    """A type argument that is no sample type says what to do."""
    with pytest.raises(SchemaError, match=r"dict is not a sample type; decorate the class with @atdata\.packable"):
        list(Dataset[dict](url))
    assert repr(Dataset[dict](url)).startswith("Dataset[?]")


def test_streams_are_closed_when_reading_stops(url, monkeypatch):
    """Leaving a loop early closes the shard."""
    opened = []
    original = atdata.URLSource.open_shard

    def open_shard(self: Any, shard_id: str) -> Any:
        opened.append(original(self, shard_id))
        return opened[-1]

    monkeypatch.setattr(atdata.URLSource, "open_shard", open_shard)
    for _ in Dataset[Digit](url).ordered(batch_size=3):
        break
    assert len(opened) == 1
    assert opened[0].closed


def test_metadata(tmp_path, url):
    """The map at metadata_url is read once; what is none, is an error that names the URL."""
    path = tmp_path / "meta.msgpack"
    path.write_bytes(ormsgpack.packb({"classes": ["a", "b"]}))
    dataset = Dataset[Digit](url, metadata_url=str(path))
    assert dataset.metadata == {"classes": ["a", "b"]}
    path.unlink()
    assert dataset.metadata == {"classes": ["a", "b"]}
    with pytest.raises(FileNotFoundError):
        _ = Dataset[Digit](url, str(path)).metadata
    path.write_bytes(b"[]")
    with pytest.raises(ShardError, match=r"meta\.msgpack: is no msgpack map"):
        _ = Dataset[Digit](url, str(path)).metadata


def test_datasets_can_be_pickled(url):
    """A dataset travels to worker processes."""
    again = pickle.loads(pickle.dumps(Dataset[Digit](url)))
    assert again.sample_type is Digit
    assert list(again) == digits(30)


def test_datasets_of_decoded_types_reach_spawned_processes(tmp_path):
    """A process that never saw the schema reads a dataset of its type, and what it sends back is of that type."""
    decoded = atdata.schema_to_type(type_to_schema(Labelled, description="A label."))
    url = write_shard(tmp_path / "s.tar", map(Labelled, range(3)))
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(list, (Dataset[decoded](url),)) == [decoded(0), decoded(1), decoded(2)]


def test_as_type(url):
    """A dataset is viewed through a lens, through several, and from no type at all; it is read lazily."""

    @packable
    class Text:
        text: str

    @atdata.lens
    def to_label(source: Digit) -> Labelled:
        return Labelled(source.label)

    @atdata.lens
    def to_text(source: Labelled) -> Text:
        calls.append(source.label)
        return Text(str(source.label))

    calls: list[int] = []
    viewed = Dataset[Digit](url).as_type(Text)
    assert viewed.sample_type is Text
    assert viewed.list_shards() == Dataset[Digit](url).list_shards()
    iterator = iter(viewed.ordered())
    assert next(iterator) == Text("0")
    assert calls == [0]
    assert [batch.text for batch in viewed.ordered(batch_size=20)][1] == [str(i) for i in range(20, 30)]
    assert [one.text for one in Dataset[Digit](url).as_type(Labelled).as_type(Text)] == [str(i) for i in range(30)]
    assert list(Dataset(url).as_type(Digit)) == digits(30)
    assert list(Dataset(url).as_type(Digit).as_type(Labelled))[3] == Labelled(3)
    assert viewed.as_type(Text).ordered() is not None
    assert next(iter(viewed.as_type(Text))) == Text("0")
    assert viewed.wrap({"__key__": "a", "msgpack": digits(8)[7].packed}) == Text("7")
    with pytest.raises(LensError, match="no lens leads from Text to Digit"):
        viewed.as_type(Digit)


# --- Batches


@packable
class Mixed:
    array: NDArray
    maybe: NDArray | None
    words: list[str]
    when: NDArray[np.datetime64]


def mixed(n: int, maybe: Any = None) -> Mixed:
    return Mixed(np.full((2, 3), n, np.float16), maybe, ["w"] * n, np.array(n, "M8[s]"))


def test_batches_stack_arrays_only():
    """Arrays are stacked, whatever their dtype; if one sample has None, the field is a list; so is everything else."""
    batch = SampleBatch([mixed(1), mixed(2, np.zeros(2))])
    assert batch.array.shape == (2, 2, 3)
    assert batch.array.dtype == np.float16
    assert batch.when.dtype == np.dtype("M8[s]")
    assert batch.when.shape == (2,)
    assert batch.maybe[0] is None
    assert isinstance(batch.maybe, list)
    assert batch.words == [["w"], ["w", "w"]]
    assert len(batch) == 2
    assert list(batch) == batch.samples
    assert repr(batch) == "SampleBatch of 2 Mixed"


def test_batches_put_a_field_together_once():
    """A field is cached."""
    batch = SampleBatch([mixed(1), mixed(2)])
    assert batch.array is batch.array
    assert batch.words is batch.words
    assert pickle.loads(pickle.dumps(SampleBatch(digits(2)))).samples == digits(2)


def test_batches_of_unlike_arrays_are_an_error_that_helps():
    """Arrays of different shapes are not stacked; the message has the shapes and what goes instead."""
    batch = SampleBatch([Digit(np.zeros((2, 2), np.uint8), 0), Digit(np.zeros((3, 3), np.uint8), 1)])
    with pytest.raises(SampleError, match=r"field image: .*\(2, 2\), uint8 \(3, 3\); use \[sample\.image for"):
        _ = batch.image
    assert batch.label == [0, 1]


def one_array(values: Any, dtype: str) -> DictSample:
    return DictSample(a=np.array(values, dtype))


UNLIKE = {
    "signs": (one_array([2**53 + 1], "i8"), one_array([1], "u8"), r"int64 \(1,\), uint64 \(1,\)"),
    "units": (one_array(["3000-01-01"], "M8[D]"), one_array(["2000-01-01"], "M8[ns]"), r"datetime64\[D\]"),
    "text and numbers": (one_array(["a"], "U1"), one_array([1], "i8"), "<U1"),
    "sizes": (one_array([1], "u1"), one_array([1], "u2"), "uint8"),
    "flags": (one_array([0.1], "f2"), one_array([True], "?"), "float16"),
}


@pytest.mark.parametrize(("first", "second", "message"), UNLIKE.values(), ids=UNLIKE)
def test_batches_change_no_values(first, second, message):
    """Arrays of different dtypes are not stacked into one of a third; the message says what to do."""
    with pytest.raises(
        SampleError, match=rf"field a: arrays of different dtypes .*{message}.*\.astype, or use \[sample"
    ):
        _ = SampleBatch([first, second]).a


def test_batches_stack_what_differs_in_writing_only():
    """Arrays that differ in byte order or the length of text are stacked."""
    assert SampleBatch([one_array([1], ">i4"), one_array([2], "<i4")]).a.tolist() == [[1], [2]]
    assert SampleBatch([one_array(["a"], "U1"), one_array(["bc"], "U2")]).a.tolist() == [["a"], ["bc"]]
    masked = [DictSample(a=np.ma.array([1, 2], mask=[0, 1]))] * 2
    with pytest.raises(SampleError, match="field a: arrays of different masks cannot be stacked"):
        _ = SampleBatch(masked).a


def test_batches_of_nothing_and_fields_of_nobody():
    """A batch has samples; a field that they do not have is an AttributeError."""
    with pytest.raises(SampleError, match="at least one"):
        SampleBatch([])
    with pytest.raises(AttributeError):
        _ = SampleBatch(digits(2)).nothing
    with pytest.raises(AttributeError):
        _ = SampleBatch([DictSample(a=1), DictSample(b=1)]).a
    assert SampleBatch([DictSample({"keys": 1}), DictSample({"keys": 2})]).keys == [1, 2]
    assert not hasattr(SampleBatch(digits(1)), "__array__")


# --- Parquet


def test_parquet(url, tmp_path):
    """Fields become columns, arrays nested lists of their dtype."""
    path = tmp_path / "digits.parquet"
    Dataset[Digit](url).to_parquet(path)
    table = pq.read_table(path)
    assert table.column_names == ["image", "label"]
    assert str(table.schema.field("image").type) == "list<element: list<element: uint8>>"
    assert table["label"].to_pylist() == list(range(30))
    assert np.array(table["image"][7].as_py()).tolist() == digits(8)[7].image.tolist()


def test_parquet_in_parts_and_by_a_function(url, tmp_path):
    """With maxcount there are several files; sample_map makes the rows."""
    Dataset[Digit](url).to_parquet(tmp_path / "d.parquet", lambda sample: {"double": sample.label * 2}, maxcount=12)
    files = sorted(path.name for path in tmp_path.glob("*.parquet"))
    assert files == ["d-000000.parquet", "d-000001.parquet", "d-000002.parquet"]
    rows = [pq.read_table(tmp_path / name)["double"].to_pylist() for name in files]
    assert [len(one) for one in rows] == [12, 12, 6]
    assert functools.reduce(operator.iadd, rows, []) == [i * 2 for i in range(30)]


def test_parquet_of_every_kind_of_field(tmp_path):
    """None, text, bytes, lists, other byte orders, 0-d arrays and times survive, and a value that comes late."""

    @packable
    class Row:
        n: int
        maybe: str | None
        blob: bytes
        words: list[str]
        big: NDArray
        scalar: NDArray
        when: NDArray
        flags: NDArray

    def row(i: int, maybe: str | None = None) -> Row:
        when, flags = np.array([i], "M8[us]"), np.ones(2, bool)
        return Row(i, maybe, b"b", ["x"], np.arange(3, dtype=">f4"), np.array(i), when, flags)

    rows = [*map(row, range(1500)), row(1500, "late")]
    url = write_shard(tmp_path / "s.tar", rows)
    Dataset[Row](url).to_parquet(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 1501
    last = table.slice(1500).to_pylist()[0]
    assert last["maybe"] == "late"
    assert last["big"] == [0, 1, 2]
    assert last["scalar"] == 1500
    assert last["flags"] == [True, True]
    assert last["blob"] == b"b"


def rows_of(path: Path, *samples: Any, sample_type: Any = DictSample, **options: Any) -> list[dict[str, Any]]:
    """What a Parquet file of *samples* holds."""
    source = write_shard(path / "rows.tar", samples)
    Dataset[sample_type](source).to_parquet(path / "rows.parquet", **options)
    return pq.read_table(path / "rows.parquet").to_pylist()


LIKE = {
    "strided flags": (np.array([True, False, True, False])[::2], [True, True]),
    "reversed": (np.arange(3)[::-1], [2, 1, 0]),
    "big endian, 2-d": (np.array([[1, 2], [3, 4]], ">i4"), [[1, 2], [3, 4]]),
    "fortran": (np.asfortranarray(np.arange(6).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]]),
    "empty inside": (np.zeros((2, 0, 3)), [[], []]),
    "empty outside": (np.zeros((0, 2)), []),
    "0-d": (np.array(5), 5),
    "half": (np.array([1.5], "f2"), [1.5]),
    "text": (np.array(["a", "bc"]), ["a", "bc"]),
    "bytes": (np.array([b"a\0b", b""]), [b"a\0b", b""]),
    "days": (np.array(["2020-02-03", "NaT"], "M8[D]"), [datetime.date(2020, 2, 3), None]),
    "seconds": (np.array([["2020-02-03T04:05:06"]], "M8[s]"), [[datetime.datetime(2020, 2, 3, 4, 5, 6)]]),
    "spans": (np.array([3], "m8[ms]"), [datetime.timedelta(milliseconds=3)]),
    "within": ({"k": [np.array([1], "u1"), None], "n": None}, {"k": [[1], None], "n": None}),
    "list of 0-d": ([np.array(1), np.array(2)], [1, 2]),
}


@pytest.mark.parametrize(("value", "expected"), LIKE.values(), ids=LIKE)
def test_parquet_holds_what_the_samples_hold(tmp_path, value, expected):
    """Arrays of every memory order, depth and dtype come out as their values, beside samples that have none."""
    rows = rows_of(tmp_path, DictSample(a=None), DictSample(a=value), DictSample(b=1), DictSample(a=value))
    assert rows == [{"a": one, "b": b} for one, b in [(None, None), (expected, None), (None, 1), (expected, None)]]


TWO_TYPES = {
    "units": (np.array([1], "M8[s]"), np.array([1], "M8[ns]")),
    "units the other way": (np.array([1], "M8[ns]"), np.array([1], "M8[s]")),
    "days and seconds": (np.array([1], "M8[D]"), np.array([1], "M8[s]")),
    "spans": (np.array([1], "m8[s]"), np.array([1], "m8[ms]")),
    "sizes": (np.array([1], "f4"), np.array([0.1], "f8")),
    "signs": (np.array([1], "i1"), np.array([200], "u1")),
    "dimensions": (np.array([1]), np.array([[1]])),
    "text and bytes": ("a", b"a"),
    "numbers and flags": (1, True),
    "numbers and text": ([1], ["a"]),
    "a float that an integer is not": (2**53 + 1, 0.5),
    "an array's as well": (np.array([2**53 + 1]), np.array([0.5])),
    "multiples of a unit": (np.array([1], "M8[25s]"), None),
    "a mask": (np.array([1]), "masked"),
}


@pytest.mark.parametrize("between", [0, 1000])
@pytest.mark.parametrize(("first", "second"), TWO_TYPES.values(), ids=TWO_TYPES)
def test_parquet_columns_have_one_type(tmp_path, first, second, between):
    """A value of another type or dtype than the column's is an error, however late it comes, and leaves no file."""
    samples = [DictSample(a=first), *([DictSample(a=first)] * between), DictSample(a=second)]
    mask = functools.partial(np.ma.array, [1], mask=[1])
    with pytest.raises(SampleError, match=r"field a: Parquet cannot hold it: .*; give a sample_map"):
        rows_of(tmp_path, *samples, sample_map=lambda one: {"a": mask() if one["a"] == "masked" else one["a"]})
    assert [path.name for path in tmp_path.iterdir()] == ["rows.tar"]


@packable
class Maybe:
    array: NDArray[np.uint8] | None = None
    words: list[str] | None = None
    anything: Any = None


LATE = {
    "a field": ({"a": 1}, {"a": 1, "b": [1]}),
    "an order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "floats": ({"a": 1}, {"a": 0.5}),
    "integers": ({"a": 0.5}, {"a": 1}),
    "arrays of floats": ({"a": np.array([1])}, {"a": np.array([0.5])}),
    "items": ({"a": []}, {"a": ["x"]}),
    "items within": ({"a": {"b": [], "c": 1}}, {"a": {"b": [None, ["x"]], "d": 2}}),
}


@pytest.mark.parametrize("maxcount", [None, 900])
@pytest.mark.parametrize(("early", "late"), LATE.values(), ids=LATE)
def test_parquet_types_may_become_known_late(tmp_path, early, late, maxcount):
    """What only later samples show, the first value of a column among it, is right in all files, in one order."""
    samples = [*([DictSample(early)] * 1000), DictSample(late)]
    source = write_shard(tmp_path / "rows.tar", samples)
    Dataset(source).to_parquet(tmp_path / "rows.parquet", maxcount=maxcount)
    files = sorted(tmp_path.glob("*.parquet"))
    tables = [pq.read_table(path) for path in files]
    assert len(files) == (1 if maxcount is None else 2)
    assert len({str(table.schema) for table in tables}) == 1
    rows = [row for table in tables for row in table.to_pylist()]
    names = dict.fromkeys([*early, *late])
    assert tables[0].column_names == list(names)
    for row, written in ((rows[0], early), (rows[999], early), (rows[1000], late)):
        for name, value in written.items():
            found = row[name]
            if isinstance(value, dict):
                found = {key: one for key, one in found.items() if key in value}
            assert found == (value.tolist() if isinstance(value, np.ndarray) else value)
        assert all(row[name] is None for name in names if name not in written)
    assert len(rows) == 1001


def test_parquet_of_optional_fields_that_come_late(tmp_path):
    """Optional fields may be None in as many samples as it takes, or in all."""
    late = Maybe(np.zeros(3, np.uint8), ["a"])
    rows = rows_of(tmp_path, *([Maybe()] * 1000), late, sample_type=Maybe)
    assert rows[0] == {"array": None, "words": None, "anything": None}
    assert rows[1000] == {"array": [0, 0, 0], "words": ["a"], "anything": None}
    schema = pq.read_schema(tmp_path / "rows.parquet")
    assert [str(field.type) for field in schema] == ["list<element: uint8>", "list<element: string>", "null"]


@pytest.mark.parametrize("maxcount", [None, 300])
def test_parquet_files_are_whole_or_not_there(tmp_path, maxcount):
    """An error on the way leaves the folder as it was, an older file of the name among it."""
    broken = tmp_path / "broken.tar"
    broken.write_bytes(tar({**{f"{i:06}.msgpack": Labelled(1).packed for i in range(1500)}, "bad.msgpack": b"\xc1"}))
    (tmp_path / "d.parquet").write_bytes(b"older")
    with pytest.raises(SampleError, match="sample bad: not msgpack"):
        Dataset(str(broken)).to_parquet(tmp_path / "d.parquet", maxcount=maxcount)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.tar", "d.parquet"]
    assert (tmp_path / "d.parquet").read_bytes() == b"older"


def test_parquet_errors(url, tmp_path, monkeypatch):
    """What Parquet has no type for, an empty dataset, and a missing package are errors that say what to do."""

    @packable
    class Wave:
        wave: NDArray

    source = write_shard(tmp_path / "w.tar", [Wave(np.ones(2, np.complex64))])
    with pytest.raises(SampleError, match=r"field wave: Parquet cannot hold it: .*give a sample_map"):
        Dataset[Wave](source).to_parquet(tmp_path / "w.parquet")
    empty = tmp_path / "empty.tar"
    empty.write_bytes(tar({}))
    with pytest.raises(SampleError, match="has no samples"):
        Dataset[Wave](str(empty)).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="at least 1"):
        Dataset[Digit](url).to_parquet(tmp_path / "e.parquet", maxcount=0)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "atdata.parquet")
    monkeypatch.delattr(atdata, "parquet")
    with pytest.raises(MissingExtraError, match=r"pip install 'atdata-network\[parquet\]'"):
        Dataset[Digit](url).to_parquet(tmp_path / "e.parquet")


@atdata.lens
def to_labelled(source: Digit) -> Labelled:
    """At the top of a module, where other processes find it."""
    return Labelled(source.label)


def labels_of(samples: Any) -> list[int]:
    return [sample.label for sample in samples]


def test_passes_go_to_spawned_workers(url):
    """What `ordered` and `shuffled` return is read in another process, through lenses as well."""
    LensNetwork().register(to_labelled)  # tests before this one may have put another in its place
    dataset = Dataset[Digit](url)
    passes = [dataset.ordered(), dataset.as_type(Labelled).ordered(), dataset.shuffled(seed=3)]
    with get_context("spawn").Pool(1) as pool:
        found = pool.map(labels_of, passes)
    assert found == [list(range(30)), list(range(30)), labels_of(dataset.shuffled(seed=3))]
    batches = pickle.loads(pickle.dumps(dataset.ordered(batch_size=20)))
    assert [len(batch) for batch in batches] == [20, 10]
    viewed = pickle.loads(pickle.dumps(Dataset(url).as_type(Digit).as_type(Labelled)))
    assert labels_of(viewed) == list(range(30))


def test_workers_read_slices_of_the_shards(url):
    """A slice of `list_shards()` for each worker covers the dataset."""
    shards = Dataset[Digit](url).list_shards()
    assert sorted(label for i in range(2) for label in labels_of(Dataset[Digit](shards[i::2]))) == list(range(30))


def test_a_seed_fixes_the_order(url):
    """The order is the same each time for one seed, and another one for another."""
    dataset = Dataset[Digit](url)
    first = dataset.shuffled(seed=1)
    assert labels_of(first) == labels_of(first) == labels_of(dataset.shuffled(seed=1))
    assert labels_of(first) != labels_of(dataset.shuffled(seed=2))
    assert sorted(labels_of(first)) == list(range(30))


def test_sizes_are_whole_numbers(url):
    """A size of another type is an error that names the argument."""
    with pytest.raises(ArgumentError, match="batch_size is a whole number such as 32, not '3'"):
        Dataset[Digit](url).ordered(batch_size="3")  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="buffer_samples is a whole number"):
        Dataset[Digit](url).shuffled(buffer_samples=1.5)  # type: ignore[call-overload]
