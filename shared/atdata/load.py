"""Load datasets by a path: from files and folders, the web, S3, and the AT Protocol network; sorted into splits."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from atdata.dataset import Dataset
from atdata.errors import (
    ArgumentError,
    MissingShardError,
    NetworkError,
    NotFoundError,
    SourceError,
    UnknownSplitError,
    UriError,
)
from atdata.protocols import AbstractIndex, DataSource
from atdata.sample import DictSample, sample_type_of
from atdata.sources import S3Source, Subset, URLSource, expand, literal, scheme_of

if TYPE_CHECKING:
    from atdata.appview import AppView
    from atdata.atmosphere.load import ResolvedPath
    from atdata.protocols import IndexEntry
    from atdata.views import DatasetView

__all__ = ["DatasetDict", "load_dataset", "load_view"]

T = TypeVar("T")
DataFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
_SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
}
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])")


class DatasetDict(dict[str, Dataset[T]], Generic[T]):
    """The splits of a dataset by name.

    >>> splits = atdata.load_dataset("digits/", Digit)
    >>> splits["train"], splits.num_shards
    (Dataset[Digit](…), {'train': 10, 'test': 2})
    """

    def __init__(
        self, splits: Mapping[str, Dataset[T]], *, sample_type: type[T] | None = None, streaming: bool = False
    ) -> None:
        super().__init__(splits)
        self._sample_type = sample_type
        self._streaming = streaming

    @property
    def num_shards(self) -> dict[str, int]:
        """How many shards each split has."""
        return {name: len(dataset.list_shards()) for name, dataset in self.items()}

    @property
    def sample_type(self) -> type[T] | None:
        """The type of the samples of all splits."""
        return self._sample_type

    @property
    def streaming(self) -> bool:
        """As it was given to `load_dataset`; shards are always streamed."""
        return self._streaming

    def __missing__(self, name: object) -> Dataset[T]:
        raise UnknownSplitError(f"there is no split {name!r}; choose a split: {_names(self)}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Dataset, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        first = next(iter(self), "train")
        raise AttributeError(
            f"these are the splits of a dataset, and {name!r} is of one; choose a split: {_names(self)}, "
            f"as in splits[{first!r}].{name}, or load_dataset(…, split={first!r})"
        )

    def __repr__(self) -> str:
        return f"DatasetDict({dict(self)!r})"

    def _repr_html_(self) -> str:
        from atdata import html

        return html.splits(self)


@overload
def load_dataset(
    path: str | os.PathLike[str],
    sample_type: type[T],
    *,
    split: str,
    data_files: DataFiles | Mapping[str, DataFiles] | None = None,
    streaming: bool = False,
    index: AbstractIndex | None = None,
    appview: str | AppView | None = None,
) -> Dataset[T]: ...
@overload
def load_dataset(
    path: str | os.PathLike[str],
    sample_type: type[T],
    *,
    split: None = None,
    data_files: DataFiles | Mapping[str, DataFiles] | None = None,
    streaming: bool = False,
    index: AbstractIndex | None = None,
    appview: str | AppView | None = None,
) -> DatasetDict[T]: ...
@overload
def load_dataset(
    path: str | os.PathLike[str],
    sample_type: None = None,
    *,
    split: str,
    data_files: DataFiles | Mapping[str, DataFiles] | None = None,
    streaming: bool = False,
    index: AbstractIndex | None = None,
    appview: str | AppView | None = None,
) -> Dataset[Any]: ...
@overload
def load_dataset(
    path: str | os.PathLike[str],
    sample_type: None = None,
    *,
    split: None = None,
    data_files: DataFiles | Mapping[str, DataFiles] | None = None,
    streaming: bool = False,
    index: AbstractIndex | None = None,
    appview: str | AppView | None = None,
) -> DatasetDict[Any]: ...
def load_dataset(
    path: str | os.PathLike[str],
    sample_type: type[Any] | None = None,
    *,
    split: str | None = None,
    data_files: DataFiles | Mapping[str, DataFiles] | None = None,
    streaming: bool = False,
    index: AbstractIndex | None = None,
    appview: str | AppView | None = None,
) -> Dataset[Any] | DatasetDict[Any]:
    """The dataset at *path*: one split of it, or all of them by name.

    >>> atdata.load_dataset("digits/*.tar", Digit, split="train")
    Dataset[Digit](…)
    >>> atdata.load_dataset("@alice.example.com/digits@1.2.0").keys()
    dict_keys(['train'])

    *path* is a file, a folder, a glob pattern, a URL (http, https, s3) in brace notation or not, the `at://` URI of a
    dataset record, or `@handle/name` with an optional `@version`. Files belong to the split that their name or their
    folder's says, else to `train`. *data_files*, relative to *path*, name the files, by split or not. Samples are of
    *sample_type*; if it is not given, of the published schema's type for datasets of the network, else `DictSample`.
    *index* looks up datasets and schemas of the network; one that is no `AtmosphereIndex` knows no labels, and answers
    for the URLs that it gives. Without one, *appview*, an AppView or its URL, else that of `ATDATA_APPVIEW`, is asked
    first, in one request; the publisher's own server is where it does not answer, or does not know. `Dataset.as_type`
    asks it for lenses.

    Raises FileNotFoundError when nothing is found, and ValueError for a split that is not there and for URLs that are
    not opened.
    """
    if isinstance(sample_type, str):
        raise ArgumentError(f"sample_type is a class, not {sample_type!r}; for a split write split={sample_type!r}")
    if sample_type is not None:
        sample_type_of(sample_type)
    if index is not None and appview is not None:
        raise ArgumentError("an index has an AppView of its own; write AtmosphereIndex(client, appview=…)")
    path = os.fspath(path)
    if path.startswith(("at://", "@")):
        index = _default_index(appview) if index is None else index
        datasets = _published(path, _find_dataset(path, index), index, sample_type)
    else:
        sources = _by_split(_find(path), path) if data_files is None else _from_files(path, data_files)
        chosen: Any = sample_type or DictSample
        datasets = DatasetDict({name: Dataset[chosen](one) for name, one in sources.items()}, sample_type=chosen)
        if appview is not None:
            from atdata.appview import AppView

            for dataset in datasets.values():
                dataset._appview = (appview if isinstance(appview, AppView) else AppView(appview)).url
    datasets._streaming = streaming
    return datasets if split is None else _chosen(datasets, split, path)


def load_view(view: DatasetView, sample_type: type[Any] | None = None, *, split: str | None = None) -> Any:
    """What `load_dataset` gives for a dataset that an AppView found, whose record is not asked for again.

    >>> load_view(hit, split="train")
    Dataset[Digit](…)

    See `DatasetView.load`.
    """
    from atdata.atmosphere.client import AtmosphereClient
    from atdata.atmosphere.index import AtmosphereIndex
    from atdata.atmosphere.load import DatasetLoader, ResolvedPath
    from atdata.views import FalseAnswerError

    if sample_type is not None:
        sample_type_of(sample_type)
    client = view.check().client or AtmosphereClient()
    index = AtmosphereIndex(client, appview=view.appview)
    # Through lenses the samples come from their own type.
    is_viewed = sample_type is not None and view.path is not None and view.path.leads_to(sample_type)
    schema = None
    if (sample_type is None or is_viewed) and index.appview is not None:
        try:
            schema = index.appview.get_schema(view.schema_ref).stored
        except FalseAnswerError as e:
            warnings.warn(f"{e}; asking the schema's own server; tell whoever runs this AppView", stacklevel=3)
        except (NetworkError, UriError):
            pass  # its own server may know more
    found = ResolvedPath(DatasetLoader(client).source(view.stored), view.schema_ref, schema)
    datasets = _published(view.uri, found, index, None if is_viewed else sample_type)
    if sample_type is not None and is_viewed:
        viewed = {name: dataset.as_type(sample_type) for name, dataset in datasets.items()}
        datasets = DatasetDict(viewed, sample_type=sample_type)
    return datasets if split is None else _chosen(datasets, split, view.uri)


def _published(path: str, found: ResolvedPath, index: AbstractIndex, sample_type: type[Any] | None) -> DatasetDict[Any]:
    """The splits of a dataset of the network."""
    sources = _by_name(found.source, path)
    if sample_type is None and found.schema_ref is not None:
        sample_type = _decode_schema(path, found, index)
    chosen: Any = sample_type or DictSample
    datasets: dict[str, Dataset[Any]] = {name: Dataset[chosen](source) for name, source in sources.items()}
    appview: AppView | None = getattr(index, "appview", None)
    for dataset in datasets.values():
        dataset._schema_ref = found.schema_ref
        dataset._appview = None if appview is None else appview.url
    return DatasetDict(datasets, sample_type=chosen)


def _chosen(datasets: DatasetDict[Any], split: str, path: str) -> Dataset[Any]:
    if split not in datasets:
        raise UnknownSplitError(f"{path}: there is no split {split!r}; there are: {', '.join(map(repr, datasets))}")
    return datasets[split]


def _names(splits: Iterable[str]) -> str:
    return ", ".join(splits) or "it has none"


def _default_index(appview: str | AppView | None) -> AbstractIndex:
    from atdata.atmosphere.index import AtmosphereIndex

    return AtmosphereIndex(appview=appview)


def _find_dataset(path: str, index: AbstractIndex) -> ResolvedPath:
    """The shards of the dataset at *path*, and its schema, or what names it."""
    from atdata.atmosphere.index import AtmosphereIndex
    from atdata.atmosphere.load import ResolvedPath, resolve_path

    try:
        if isinstance(index, AtmosphereIndex):
            return resolve_path(path, index.client, index.appview)
        entry = index.get_dataset(path) if path.startswith("at://") else _entry(path, index)
    except LookupError as e:
        raise MissingShardError(path, str(e).removeprefix(f"{path}: ")) from e
    return ResolvedPath(URLSource(entry.data_urls), entry.schema_ref)


def _entry(path: str, index: AbstractIndex) -> IndexEntry:
    repo, _, name = path.removeprefix("@").partition("/")
    if "@" in name:
        raise SourceError(f"{path[:200]}: versions are labels, which only an AtmosphereIndex knows; leave it out")
    found = next((entry for entry in index.list_datasets(repo) if entry.name == name), None)
    if found is None:
        raise NotFoundError(f"{repo} has no dataset {name!r} in this index")
    return found


def _decode_schema(path: str, found: ResolvedPath, index: AbstractIndex) -> type[Any]:
    assert found.schema_ref is not None
    try:
        if found.schema is None:
            return index.decode_schema(found.schema_ref)
        from atdata.schema import schema_to_type

        return schema_to_type(found.schema, resolve=index.get_schema)
    except LookupError as e:
        raise MissingShardError(path, f"its schema cannot be read: {e}; give a sample type") from e
    except UriError as e:
        raise UriError(f"{path}: its schema cannot be read: {e}; give a sample type") from None


def _by_name(source: DataSource, path: str) -> Mapping[str, DataSource]:
    shards = source.list_shards()
    if not shards:
        raise MissingShardError(path, "the dataset has no shards")
    names: dict[str, list[str]] = {}
    for shard in shards:
        names.setdefault(_split_of(shard, "") or "train", []).append(shard)
    if len(names) == 1:
        return dict.fromkeys(names, source)
    return {name: Subset(source, ids) for name, ids in names.items()}


def _from_files(path: str, data_files: DataFiles | Mapping[str, DataFiles]) -> Mapping[str, DataSource]:
    if not data_files:
        raise MissingShardError(path, "data_files names no files")
    if isinstance(data_files, Mapping):
        return {split: _source(_find_all(path, files)) for split, files in data_files.items()}
    return _by_split(_find_all(path, data_files), path)


def _find_all(base: str, files: DataFiles) -> list[str]:
    patterns = [files] if isinstance(files, str | os.PathLike) else files
    found: dict[str, None] = {}
    for pattern in (os.fspath(one) for one in patterns):
        if scheme_of(pattern) or Path(pattern).is_absolute():
            shards = _find(pattern)
        elif os.path.isdir(base):  # noqa: PTH112 — which takes any string
            shards = _find(pattern, base)
        else:
            shards = _find(_joined(base, pattern))
        found |= dict.fromkeys(shards)
    if not found:
        raise MissingShardError(base, "data_files names no files")
    return list(found)


def _by_split(shards: Iterable[str], base: str) -> Mapping[str, DataSource]:
    splits: dict[str, list[str]] = {}
    for shard in shards:
        splits.setdefault(_split_of(shard, base) or "train", []).append(shard)
    return {name: _source(found) for name, found in splits.items()}


def _source(shards: Sequence[str]) -> DataSource:
    urls = [literal(shard) for shard in shards]
    if {shard.partition("://")[0] for shard in shards} == {"s3"} and len(
        {shard.split("/")[2] for shard in shards}
    ) == 1:
        return S3Source.from_urls(urls)
    return URLSource(urls)


def _split_of(shard: str, base: str) -> str | None:
    """The split that the name of a shard says, or the folders between it and *base*, the nearest first."""
    scheme = scheme_of(shard)
    if scheme == "at":  # a CID is no name, whatever its letters happen to say
        return None
    path = shard.partition("?")[0] if scheme else shard
    *folders, name = path.split("/")
    if found := _SPLIT_IN_NAME.search(name.lower()):
        return _SPLITS[found[0]]
    # Not the folders above the one that was asked for, whose names have other reasons; that one itself counts.
    inside = len(base.rstrip("/").split("/")) - 1 if shard.startswith(base.rstrip("/") + "/") else len(folders) - 1
    return next((_SPLITS[one.lower()] for one in reversed(folders[max(inside, 0) :]) if one.lower() in _SPLITS), None)


# --- Finding shards


def _find(path: str, folder: str = "") -> list[str]:
    """The shards at *path* in *folder*, in order. Raises MissingShardError when there are none."""
    found: list[str] = []
    # What is there is meant as it is, whatever pattern its name looks like; so is *folder*.
    is_there = os.path.exists(_joined(folder, path))  # noqa: PTH110 — which takes any string
    for one in [path] if is_there else expand(path):
        scheme = scheme_of(one)
        if scheme == "s3":
            found += _find_in_bucket(one)
        elif scheme == "":
            found += _find_files(one, folder)
        else:
            found.append(one)
    if not found:
        raise MissingShardError(path, f"no shards ({', '.join(_SUFFIXES)}) are there")
    return found


def _joined(folder: str, path: str) -> str:
    return f"{folder.rstrip('/')}/{path}" if folder else path


def _find_files(path: str, folder: str) -> list[str]:
    whole = _joined(folder, path)
    if os.path.isdir(whole):  # noqa: PTH112 — which takes any string
        root = whole.rstrip("/") or "/"
        names = glob.glob("**/*", root_dir=root, recursive=True)  # noqa: PTH207 — as relative names
        return [f"{root.rstrip('/')}/{name}" for name in sorted(names) if name.endswith(_SUFFIXES)]
    if os.path.exists(whole):  # noqa: PTH110
        return [whole]
    if glob.has_magic(path):
        names = glob.glob(_joined(glob.escape(folder), path), recursive=True)  # noqa: PTH207
        return sorted(name for name in names if not Path(name).is_dir())
    raise MissingShardError(whole, f"there is no such file; the current folder is {Path.cwd()}")


def _find_in_bucket(url: str) -> list[str]:
    """The objects that *url* names: one, a pattern, or all below a prefix that ends with a slash."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not glob.has_magic(key) and not key.endswith("/") and key:
        return [url]
    from fnmatch import fnmatchcase

    prefix = re.split(r"[*?[]", key, maxsplit=1)[0]
    keys = S3Source(bucket, []).list_keys(prefix)
    is_pattern = glob.has_magic(key)
    return [
        f"s3://{bucket}/{one}"
        for one in sorted(keys)
        if (fnmatchcase(one, key) if is_pattern else one.endswith(_SUFFIXES))
    ]
