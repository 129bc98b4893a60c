"""load_dataset: every kind of path, splits by name, and errors that say what is there."""

from __future__ import annotations

from typing import Any

import pytest
from shard_files import Digit, digits, packed_shard, write_shard
from web import Reply, serve

import atdata
from atdata import Dataset, DatasetDict, DictSample, load_dataset
from atdata.atmosphere import AtmosphereClient, AtmosphereIndex
from atdata.atmosphere.load import ResolvedPath
from atdata.errors import ArgumentError, MissingShardError, NotFoundError, SchemaError, SourceError
from atdata.schema import schema_to_type, type_to_schema


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


@pytest.mark.parametrize("name", ["data[1]", "data{1,2}", "data*", "{a", "s?"])
def test_folders_that_are_there_are_no_patterns(tmp_path, monkeypatch, name):
    """A folder or file that is there is meant as it is, and not what its name would match."""
    monkeypatch.chdir(tmp_path)
    for i, folder in enumerate((name, "data1", "data2", "datax", "sx")):
        write_shard(tmp_path / folder / "0.tar", digits(1, i))
        write_shard(tmp_path / folder / "1[2].tar", digits(1, i))
    for found in (
        load_dataset(name, Digit, split="train"),
        load_dataset(name, Digit, split="train", data_files="*.tar"),
        load_dataset(name, Digit, split="train", data_files=["{0,1[[]2[]]}.tar"]),
        load_dataset(tmp_path / name, Digit, split="train", data_files=["0.tar", "1[2].tar"]),
    ):
        assert labels(found) == [0, 0]
    assert labels(load_dataset(f"{name}/1[2].tar", Digit, split="train")) == [0]


@pytest.mark.parametrize("data_files", [[], {}, {"train": []}, {"train": ["train-0.tar"], "test": []}])
def test_data_files_that_name_none_are_an_error(folder, data_files):
    """An empty list of files is nothing found, not a dataset without samples."""
    with pytest.raises(FileNotFoundError, match="data: data_files names no files"):
        load_dataset("data", data_files=data_files)


def test_names_that_no_file_has_are_an_error(folder):
    """A name that is too long for a file, or a bucket that is none, is one of our errors like any other."""
    for path, error in (("x" * 5000, MissingShardError), ("s3://[x/0.tar{", SourceError)):
        with pytest.raises(error):
            load_dataset(path)
    assert load_dataset("s3://[x/0.tar", split="train").list_shards() == ["s3://[x/0.tar"]
    with pytest.raises(SourceError, match="is no URL"):
        list(load_dataset("file://[x/0.tar", split="train"))


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


SCHEMA_REF = "at://did:plc:abc/ac.foundation.dataset.sampleSchema/x"


def network(monkeypatch: pytest.MonkeyPatch, source: Any, schema: Any) -> list[Any]:
    """Have every path on the network be a dataset in *source*; what was asked for is noted."""
    asked: list[Any] = []

    def resolve_path(path: str, client: Any, appview: Any) -> ResolvedPath:
        asked.append((path, client))
        return ResolvedPath(source, schema and SCHEMA_REF)

    monkeypatch.setattr("atdata.atmosphere.load.resolve_path", resolve_path)
    monkeypatch.setattr(AtmosphereIndex, "decode_schema", lambda self, ref: schema_to_type({SCHEMA_REF: schema}[ref]))
    return asked


@pytest.mark.parametrize("path", ["at://did:plc:abc/ac.foundation.dataset.record/x", "@alice.example.com/d@1.0"])
def test_datasets_of_the_network(folder, monkeypatch, path):
    """at:// and @handle/name are looked up; samples are of the published type, or of the one that is given."""
    source = atdata.URLSource("data/{train-0,train-1,digits_test_0}.tar")
    index = AtmosphereIndex(AtmosphereClient())
    asked = network(monkeypatch, source, type_to_schema(Digit))
    splits = load_dataset(path, index=index)
    assert asked == [(path, index.client)]
    assert {name: labels(dataset) for name, dataset in splits.items()} == {"train": [0, 1, 2, 3], "test": [4, 5]}
    assert splits["train"].sample_type.__name__ == "Digit"
    assert splits.sample_type is splits["test"].sample_type is not Digit
    assert load_dataset(path, Digit, split="test").sample_type is Digit


class Entry:
    """A dataset in an index of somebody's own."""

    metadata = None

    def __init__(self, name: str, *urls: str) -> None:
        self.name = name
        self.schema_ref = "digit"
        self.data_urls = list(urls)


class Index:
    """An index of somebody's own: a table. It is empty to `len`, which says nothing of it."""

    def __init__(self, *entries: Entry) -> None:
        self.datasets = entries
        self.schemas = ()

    def __len__(self) -> int:
        return 0

    def publish_schema(self, sample_type: type[Any], /, *, version: str = "1.0.0") -> str:
        raise NotImplementedError

    def insert_dataset(self, ds: Any, /, *, name: str, schema_ref: str | None = None) -> Entry:
        raise NotImplementedError

    def list_datasets(self, repo: str | None = None) -> tuple[Entry, ...]:
        return self.datasets if repo == "us" else ()

    def get_dataset(self, ref: str, /) -> Entry:
        return {f"at://{entry.name}": entry for entry in self.datasets}[ref]

    def list_schemas(self, repo: str | None = None) -> tuple[()]:
        return self.schemas

    def get_schema(self, ref: str, /) -> Any:
        raise NotImplementedError

    def decode_schema(self, ref: str, /) -> type[Any]:
        return {"digit": Digit}[ref]


def test_any_index_will_do(folder):
    """What has the methods of an AbstractIndex finds datasets and their types; it knows no versions."""
    index = Index(Entry("d", "data/train-{0..1}.tar", "data/digits_test_0.tar"), Entry("none"))
    assert isinstance(index, atdata.AbstractIndex)
    for path in ("@us/d", "at://d"):
        splits = load_dataset(path, index=index)
        assert {name: labels(dataset) for name, dataset in splits.items()} == {"train": [0, 1, 2, 3], "test": [4, 5]}
        assert splits.sample_type is Digit
        assert load_dataset(path, DictSample, split="test", index=index).sample_type is DictSample
    for path in ("@us/e", "@them/d", "at://e", "@us/none"):
        with pytest.raises(FileNotFoundError, match=path):
            load_dataset(path, index=index)
    with pytest.raises(SourceError, match="versions are labels, which only an AtmosphereIndex knows"):
        load_dataset("@us/d@1.0", index=index)
    index.datasets[0].schema_ref = "gone"
    with pytest.raises(FileNotFoundError, match=r"@us/d: its schema cannot be read: .*; give a sample type"):
        load_dataset("@us/d", index=index)


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

    def resolve_path(path: str, client: Any, appview: Any) -> Any:
        raise NotFoundError("alice.example.com has neither label nor dataset 'digits'")

    monkeypatch.setattr("atdata.atmosphere.load.resolve_path", resolve_path)
    with pytest.raises(FileNotFoundError, match=r"@alice\.example\.com/digits: .*neither label nor dataset"):
        load_dataset("@alice.example.com/digits")


def test_a_dataset_without_shards_is_an_error(monkeypatch):
    """A record without any is as good as none."""
    network(monkeypatch, atdata.URLSource([]), None)
    with pytest.raises(FileNotFoundError, match="the dataset has no shards"):
        load_dataset("@alice.example.com/digits")


def test_a_split_is_chosen(folder):
    """What belongs to a dataset, or to no split, is an error that lists the splits."""
    with pytest.raises(ArgumentError, match="for a split write split='train'"):
        load_dataset("data", "train")  # type: ignore[call-overload]
    splits = load_dataset("data/train-*.tar", Digit)
    with pytest.raises(AttributeError, match=r"choose a split: train, as in splits\['train'\].ordered"):
        splits.ordered()
    assert not hasattr(splits, "nothing")
    for error in (KeyError, ValueError):
        with pytest.raises(error, match=r"there is no split 'trian'; choose a split: train$"):
            splits["trian"]
    assert splits.get("trian") is None
    assert "trian" not in splits
