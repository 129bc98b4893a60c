"""Datasets and batches: what is in the shards comes out, in order or shuffled, one by one or stacked."""

from __future__ import annotations

import functools
import itertools
import operator
import pickle
import random
import sys
from typing import Any

import numpy as np
import ormsgpack
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from numpy.typing import NDArray
from shard_files import Digit, Labelled, digits, packed_shard, tar, write_shard

import atdata
from atdata import Dataset, DictSample, SampleBatch, packable
from atdata.dataset import _shuffle
from atdata.errors import LensError, MissingExtraError, SampleError, SchemaError, ShardError


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
    with pytest.raises(MissingExtraError, match=r"pip install 'atdata-network\[parquet\]'"):
        Dataset[Digit](url).to_parquet(tmp_path / "e.parquet")
