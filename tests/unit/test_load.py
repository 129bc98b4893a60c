"""load_dataset: every kind of path, splits by name, and errors that say what is there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from shard_files import Digit, digits, packed_shard, write_shard
from web import Reply, serve

import atdata
from atdata import Dataset, DatasetDict, DictSample, load_dataset
from atdata.errors import MissingShardError, NotFoundError, SchemaError, SourceError
from atdata.schema import type_to_schema


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with shards in files and folders that are named after splits, and one that looks like it."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(
        ["data/train-0.tar", "data/train-1.tar", "data/digits_test_0.tar", "data/dev/0.tar", "data/deep/er/val.tar.gz"]
    ):
        write_shard(tmp_path / name, digits(2, i * 2))
    (tmp_path / "data/readme.md").write_text("not a shard")
    (tmp_path / "data/.hidden.tar").write_text("not a shard")
    return tmp_path


def labels(dataset: Dataset[Any]) -> list[int]:
    return [sample.label for sample in dataset]


def test_a_folder_is_sorted_into_splits(folder):
    """Shards anywhere in a folder belong to the split that their name, or their folder's, says."""
    splits = load_dataset("data", Digit)
    assert isinstance(splits, DatasetDict)
    assert {name: labels(dataset) for name, dataset in splits.items()} == {
        "validation": [8, 9, 6, 7],
        "test": [4, 5],
        "train": [0, 1, 2, 3],
    }
    assert splits.num_shards == {"validation": 2, "test": 1, "train": 2}
    assert splits.sample_type is Digit
    assert splits["train"].sample_type is Digit
    assert splits.streaming is False
    assert load_dataset("data/", Digit, streaming=True).streaming is True
    assert repr(splits).startswith("DatasetDict({")


@pytest.mark.parametrize("slash", ["", "/"])
def test_one_split(folder, slash):
    """With a split, its dataset alone; one that is not there is a ValueError with those that are."""
    assert labels(load_dataset(folder / f"data{slash}", Digit, split="train")) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="there is no split 'dev'; there are: '"):
        load_dataset("data", Digit, split="dev")


PATHS = {
    "a file": ("data/train-1.tar", {"train": [2, 3]}),
    "a glob": ("data/train-*.tar", {"train": [0, 1, 2, 3]}),
    "a deep glob": ("data/**/*.tar", {"validation": [6, 7], "test": [4, 5], "train": [0, 1, 2, 3]}),
    "braces": ("data/train-{0..1}.tar", {"train": [0, 1, 2, 3]}),
    "braces and a glob": ("data/{train,digits_test}*.tar", {"train": [0, 1, 2, 3], "test": [4, 5]}),
    "a folder of one split": ("data/dev", {"validation": [6, 7]}),
    "a file in a folder of one split": ("data/dev/0.tar", {"validation": [6, 7]}),
    "a folder without splits": ("data/deep/er/../../dev/../dev", {"validation": [6, 7]}),
    "compressed": ("data/deep/er/val.tar.gz", {"validation": [8, 9]}),
}


@pytest.mark.parametrize(("path", "expected"), PATHS.values(), ids=PATHS)
def test_paths(folder, path, expected):
    """A file, a glob, braces, a folder."""
    splits = load_dataset(path, Digit)
    assert {name: sorted(labels(dataset)) for name, dataset in splits.items()} == expected


NAMES = [
    ("train.tar", "train"), ("training-0.tar", "train"), ("mnist_train_3.tar", "train"), ("a.TRAIN.tar", "train"),
    ("test-0.tar", "test"), ("testing.tar", "test"), ("val.tar", "validation"), ("valid0.tar", "validation"),
    ("validation-00-of-05.tar", "validation"), ("dev.tar", "validation"), ("development_1.tar", "validation"),
    ("data.tar", "train"), ("contest.tar", "train"), ("trainer.tar", "train"), ("value.tar", "train"),
    ("latest-0.tar", "train"), ("device.tar", "train"), ("0.tar", "train"), ("Test/0.tar", "test"),
    ("dev/a.tar", "validation"), ("train/val.tar", "validation"), ("test_set/0.tar", "train"),
    ("a/test/b/0.tar", "test"), ("test/train/0.tar", "train"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "split"), NAMES)
def test_splits_by_name(tmp_path, name, split):
    """A split is a word of the file's name, or a folder's whole name; the nearest counts; without one it is train."""
    write_shard(tmp_path / "root" / name, digits(1))
    assert list(load_dataset(tmp_path / "root")) == [split]


def test_folders_above_do_not_count(tmp_path):
    """What contains the dataset may be called anything."""
    write_shard(tmp_path / "test" / "mine" / "0.tar", digits(1))
    assert list(load_dataset(tmp_path / "test" / "mine")) == ["train"]
    assert list(load_dataset(tmp_path / "test" / "mine" / "0.tar")) == ["train"]
    assert list(load_dataset(tmp_path / "test")) == ["test"]


def test_names_with_braces_are_taken_as_they_are(tmp_path):
    """A file that was found, whatever it is called, is that file."""
    write_shard(tmp_path / "odd{1,2}\\x.tar", digits(2))
    write_shard(tmp_path / "a,b.tar", digits(2, 2))
    assert sorted(labels(load_dataset(tmp_path, Digit, split="train"))) == [0, 1, 2, 3]


def test_data_files(folder):
    """Files relative to the path, one or several, by split or not; whole paths and URLs as they are."""
    assert labels(load_dataset("data", Digit, split="train", data_files="train-0.tar")) == [0, 1]
    by_name = load_dataset("data", Digit, data_files=["train-*.tar", str(folder / "data/digits_test_0.tar")])
    assert {name: labels(dataset) for name, dataset in by_name.items()} == {"train": [0, 1, 2, 3], "test": [4, 5]}
    given = load_dataset("data", Digit, data_files={"mine": "dev/0.tar", "other": ["train-0.tar", "train-1.tar"]})
    assert {name: labels(dataset) for name, dataset in given.items()} == {"mine": [6, 7], "other": [0, 1, 2, 3]}
    with pytest.raises(FileNotFoundError, match=r"no\.tar"):
        load_dataset("data", data_files="no.tar")


def test_nothing_found_is_an_error(folder):
    """A path, pattern or folder without shards is a FileNotFoundError that names it."""
    (folder / "empty").mkdir()
    for path in ("no.tar", "no/*.tar", "empty", "no/", "data/train-{0..5}.tar"):
        with pytest.raises(FileNotFoundError) as caught:
            load_dataset(path)
        assert isinstance(caught.value, MissingShardError)
    with pytest.raises(FileNotFoundError, match=r"train-2\.tar: there is no such file; the current folder is"):
        load_dataset("data/train-{0..5}.tar")


def test_without_a_type(folder):
    """Files say nothing of types: samples are DictSamples."""
    dataset = load_dataset("data", split="test")
    assert dataset.sample_type is DictSample
    assert labels(dataset) == [4, 5]
    with pytest.raises(SchemaError, match="decorate the class"):
        load_dataset("data", dict)


def test_http():
    """URLs are taken as they are, in brace notation or not, and sorted into splits by their names."""
    with serve(lambda path: Reply(packed_shard(digits(2, int(path.split("-")[1][0]) * 2)))) as web:
        splits = load_dataset(f"{web.url}/x/{{train-{{0..1}},test-2}}.tar?key=val", Digit)
        assert {name: labels(dataset) for name, dataset in splits.items()} == {"train": [0, 1, 2, 3], "test": [4, 5]}
        assert list(load_dataset(f"{web.url}/dev/a-0.tar")) == ["validation"]


@pytest.mark.parametrize("path", ["pipe:cat x", "{pipe:cat,a}.tar", "ftp://x/a.tar"])
def test_other_schemes_are_refused(path):
    """Nothing is opened by a scheme that is not on the list."""
    with pytest.raises(SourceError, match="is not opened"):
        load_dataset(path)


def network(monkeypatch: pytest.MonkeyPatch, source: Any, schema: Any) -> list[Any]:
    asked: list[Any] = []

    def resolve_path(path: str, *, index: Any = None) -> tuple[Any, Any, str]:
        asked.append((path, index))
        return source, schema, "digits"

    monkeypatch.setitem(sys.modules, "atdata.atmosphere.load", SimpleNamespace(resolve_path=resolve_path))
    return asked


@pytest.mark.parametrize("path", ["at://did:plc:abc/ac.foundation.dataset.record/x", "@alice.example.com/d@1.0"])
def test_datasets_of_the_network(folder, monkeypatch, path):
    """at:// and @handle/name are looked up; samples are of the published type, or of the one that is given."""
    source = atdata.URLSource("data/{train-0,train-1,digits_test_0}.tar")
    index = SimpleNamespace(get_schema=None)
    asked = network(monkeypatch, source, type_to_schema(Digit))
    splits = load_dataset(path, index=index)
    assert asked == [(path, index)]
    assert {name: labels(dataset) for name, dataset in splits.items()} == {"train": [0, 1, 2, 3], "test": [4, 5]}
    assert splits["train"].sample_type.__name__ == "Digit"
    assert splits.sample_type is splits["test"].sample_type is not Digit
    assert load_dataset(path, Digit, split="test").sample_type is Digit


def test_blobs_are_one_split(monkeypatch):
    """The letters of a CID are no name: a dataset in blobs is one split."""
    did = "did:plc:z72i7hdynmk6r22z27h6tvur"
    cids = ["bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity", "bafkrei2val2test4dev5"]
    source = atdata.BlobSource([{"did": did, "cid": cid} for cid in cids])
    network(monkeypatch, source, None)
    splits = load_dataset("@alice.example.com/digits")
    assert splits.num_shards == {"train": 2}
    assert splits["train"].source is source
    assert splits.sample_type is DictSample


def test_a_name_that_nobody_has_is_nothing_found(monkeypatch):
    """A dataset that is not on the network is a FileNotFoundError, as one that is not on disk."""

    def resolve_path(path: str, *, index: Any = None) -> Any:
        raise NotFoundError("alice.example.com has neither label nor dataset 'digits'")

    monkeypatch.setitem(sys.modules, "atdata.atmosphere.load", SimpleNamespace(resolve_path=resolve_path))
    with pytest.raises(FileNotFoundError, match=r"@alice\.example\.com/digits: .*neither label nor dataset"):
        load_dataset("@alice.example.com/digits")


def test_a_dataset_without_shards_is_an_error(monkeypatch):
    """A record without any is as good as none."""
    network(monkeypatch, atdata.URLSource([]), None)
    with pytest.raises(FileNotFoundError, match="the dataset has no shards"):
        load_dataset("@alice.example.com/digits")
