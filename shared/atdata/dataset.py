"""Own datasets: typed samples read lazily from the shards of a source, one by one or in batches."""

from __future__ import annotations

import os
import random
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, cast, overload

import numpy as np

from atdata import codec
from atdata.errors import (
    ArgumentError,
    LensError,
    NetworkError,
    NotFoundError,
    SampleError,
    SchemaError,
    ShardError,
    redacted,
)
from atdata.hints import is_sample_type
from atdata.lens import Lens, LensNetwork
from atdata.protocols import DataSource
from atdata.sample import DictSample, sample_type_of
from atdata.shards import iter_samples
from atdata.sources import URLSource, in_braces, open_url

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=DictSample)
else:
    from typing import TypeVar

    T = TypeVar("T")
V = typing.TypeVar("V")

__all__ = ["Dataset", "SampleBatch"]

# Metadata of datasets on the network is at most 100,000 bytes; a file of one's own may be longer.
_MAX_METADATA: Final = 64 << 20
# Of published paths, as many as an AppView gives: the best may be one whose code is not here.
_MAX_PATHS: Final = 10


class SampleBatch(Generic[T]):
    """Some samples at once. An attribute is that field of all of them: arrays stacked into one, all else a list.

    >>> batch = SampleBatch([Digit(np.zeros((28, 28), np.uint8), 7), Digit(np.ones((28, 28), np.uint8), 1)])
    >>> batch.image.shape, batch.label
    ((2, 28, 28), [7, 1])

    A field is put together when it is first asked for. Raises SampleError, a ValueError, for arrays whose shapes
    differ, or whose dtypes do by more than the byte order or the length of text: one array of them would hold other
    values.
    """

    def __init__(self, samples: Iterable[T]) -> None:
        self.samples: list[T] = list(samples)
        if not self.samples:
            raise SampleError("a batch has at least one sample")

    def __getattr__(self, name: str) -> Any:
        # Also when an attribute is missing because a copy has none yet.
        if name.startswith("__") or name == "samples":
            raise AttributeError(name)
        try:
            values = [
                sample[name] if isinstance(sample, DictSample) else getattr(sample, name) for sample in self.samples
            ]
        except KeyError:
            raise AttributeError(f"not every sample of the batch has a field {name!r}") from None
        if all(isinstance(value, np.ndarray) for value in values):
            values = _stack(name, values)  # type: ignore[assignment]
        # From now on an attribute like any other.
        self.__dict__[name] = values
        return values

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[T]:
        return iter(self.samples)

    def __repr__(self) -> str:
        return f"SampleBatch of {len(self.samples)} {type(self.samples[0]).__name__}"

    def _repr_html_(self) -> str:
        from atdata import html

        return html.batch(self)


def _stack(name: str, arrays: Sequence[codec.Array]) -> codec.Array:
    problem, advice = "shapes", ""
    # Not left to NumPy, which makes one dtype of any two: of int64 and uint64 a float64, of text and numbers text.
    if len({array.dtype for array in arrays}) > 1 and len({_kind_of(array.dtype) for array in arrays}) > 1:
        problem, advice = "dtypes", "convert them to one with .astype, or "
    else:
        try:
            stacked = np.stack(arrays)
        except ValueError:
            pass
        else:
            if not isinstance(stacked, np.ma.MaskedArray):
                return stacked
            problem = "masks"
    kinds = list(dict.fromkeys(f"{array.dtype} {array.shape}" for array in arrays))
    raise SampleError(
        f"arrays of different {problem} cannot be stacked: {', '.join(kinds[:4])}; "
        f"{advice}use [sample.{name} for sample in batch.samples]",
        name,
    )


def _kind_of(dtype: np.dtype[Any]) -> np.dtype[Any] | str:
    """What arrays must have in common to be stacked: their dtype, apart from byte order and length of text."""
    return dtype.kind if dtype.kind in "US" else dtype.newbyteorder("=")


class _Pass(Generic[V]):
    """Samples or batches of a dataset. Each iteration is one pass over its shards, shuffled anew where it is."""

    def __init__(self, start: Callable[[], Iterator[V]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[V]:
        return self._start()


class Dataset(Generic[T]):
    """Samples of type T, read lazily from the shards of *source*: a data source, or a URL in brace notation.

    >>> dataset = atdata.Dataset[Digit]("digits-{000..009}.tar")
    >>> for batch in dataset.shuffled(batch_size=32):
    ...     print(batch.image.shape)
    (32, 28, 28)
    ...

    Without a type, samples are `DictSample`s. *metadata_url* names a file with a msgpack map. Raises SourceError, a
    ValueError, for URLs that are not opened; reading raises ShardError and SampleError, which name shard, key and
    field.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Sequence[str] | DataSource, metadata_url: str | None = None
    ) -> None:
        if isinstance(source, str | os.PathLike | list | tuple):
            source = URLSource(source)
        if not isinstance(source, DataSource):
            raise TypeError(f"expected a URL or a data source, found {type(source).__name__}")
        self._source: DataSource = source
        self._metadata_url = metadata_url
        self._metadata: Mapping[str, Any] | None = None
        # How samples are made of what is stored; None where that is the type itself.
        self._lens: Lens[Any, T] | None = None
        # Of a published dataset: the AT URI of its schema, and the URL of the AppView that may know a way from there.
        self._schema_ref: str | None = None
        self._appview: str | None = None

    # --- What it is

    @property
    def sample_type(self) -> type[T]:
        """The type of the samples, `DictSample` if none was given."""
        # Set by typing when an instance is made by way of Dataset[T], after __init__.
        alias = getattr(self, "__orig_class__", None)
        bases = () if alias is not None else getattr(type(self), "__orig_bases__", ())
        for known in (alias, *bases):
            if known is not None and (arguments := typing.get_args(known)) and isinstance(arguments[0], type):
                return cast("type[T]", sample_type_of(arguments[0]))
        return cast("type[T]", DictSample)

    @property
    def batch_type(self) -> type[SampleBatch[T]]:
        """The type of its batches: `SampleBatch[T]`."""
        return cast("type[SampleBatch[T]]", SampleBatch[self.sample_type])  # type: ignore[name-defined]

    @property
    def source(self) -> DataSource:
        """Where the shards are."""
        return self._source

    @property
    def url(self) -> str:
        """The source's URL in brace notation; of a source without one, its shards in braces."""
        return getattr(self._source, "url", None) or in_braces(self.list_shards())

    def list_shards(self) -> list[str]:
        """The ids of the shards: URLs, paths, or whatever the source calls them."""
        return self._source.list_shards()

    @property
    def shard_list(self) -> list[str]:
        """The same as `list_shards()`."""
        return self.list_shards()

    @property
    def shards(self) -> Iterator[str]:
        """The ids of the shards, one by one."""
        return iter(self.list_shards())

    @property
    def metadata_url(self) -> str | None:
        """Where the metadata are, if anywhere."""
        return self._metadata_url

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """The map at `metadata_url`, read when it is first asked for; None without one. Raises ShardError."""
        if self._metadata is None and self._metadata_url is not None:
            stream = open_url(self._metadata_url)
            try:
                data = stream.read(_MAX_METADATA + 1)
            finally:
                stream.close()
            if len(data) > _MAX_METADATA:
                raise ShardError(self._metadata_url, f"more than the {_MAX_METADATA} bytes that metadata may have")
            try:
                self._metadata = codec.unpack_map(data)
            except SampleError as e:
                raise ShardError(self._metadata_url, f"is no msgpack map of metadata: {e}") from None
        return self._metadata

    def as_type(self, view: type[V]) -> Dataset[V]:
        """The same samples, viewed as *view* through registered lenses as they are read.

        >>> atdata.Dataset[FullSample]("full.tar").as_type(SimpleSample)
        Dataset[SimpleSample]('full.tar')

        Where the lenses of `LensNetwork` do not lead there from type to type, the AppView through which the dataset was
        loaded, else that of `ATDATA_APPVIEW`, is asked for paths of published lenses between the two structures. One is
        used when each lens on it is registered here, under the name of its function; see `atdata.lens_path`. No code is
        fetched. Where it knows of none because nobody has published a structure like that of *view*, and the samples
        have all the fields of *view*, they are read by these. Raises LensError, a ValueError, that says which lenses to
        install, or that none lead there.
        """
        viewed: Dataset[V] = Dataset[view](self._source, self._metadata_url)  # type: ignore[valid-type]
        viewed._schema_ref, viewed._appview = self._schema_ref, self._appview
        try:
            lens = LensNetwork().transform(self.sample_type, view)
        except LensError as e:
            lens = self._published_lens(view, e)
        if self.sample_type is view:
            viewed._lens = self._lens  # type: ignore[assignment]
        else:
            viewed._lens = lens if self._lens is None else self._lens | lens
        return viewed

    def _published_lens(self, view: type[V], unknown: LensError) -> Lens[Any, V]:
        """The lens to *view* along a published path, from what is stored, or from what a lens has made of it."""
        if not is_sample_type(view) or self.sample_type is DictSample:
            raise unknown
        from atdata.lens_path import compose, project

        # Whoever reads what is stored need not read it as this type.
        source = None if self._lens is None else self.sample_type
        projection = project(self.sample_type, source, view)
        advice = ""
        if source is None and projection is not None:
            advice = f"; or read the samples as they are stored: load_dataset(uri, {view.__name__})"
        url = self._appview or os.environ.get("ATDATA_APPVIEW")
        if not url:
            raise LensError(f"{unknown}{advice}")
        from atdata.appview import AppView

        appview = AppView(url)
        starts: list[str | type[Any]] = [self.sample_type]
        if source is None and self._schema_ref:
            starts.insert(0, self._schema_ref)
        problem: Exception = unknown
        for start in starts:
            try:
                paths = appview.find_lens_path(start, view, k=_MAX_PATHS)
                return compose(paths, source, view, LensNetwork().lenses)
            except NotFoundError as e:  # nobody has published this one; maybe somebody the same structure
                problem = e
            except (LensError, SchemaError, NetworkError) as e:
                problem = e
                break
        # As if the structure were published: then a path without lenses would lead there.
        if projection is not None and isinstance(problem, NotFoundError):
            return projection
        names = f"{self.sample_type.__name__} to {view.__name__}"
        # Those of the network say whose they are.
        said = str(problem) if isinstance(problem, NetworkError) else f"by {redacted(url)}, {problem}"
        raise LensError(f"no lens registered here leads from {names}; {said}{advice}") from None

    # --- Its samples

    @overload
    def ordered(self, batch_size: None = None) -> Iterable[T]: ...
    @overload
    def ordered(self, batch_size: int) -> Iterable[SampleBatch[T]]: ...
    def ordered(self, batch_size: int | None = None) -> Iterable[T] | Iterable[SampleBatch[T]]:
        """The samples in the order of the shards; batches of *batch_size*, of which the last may be short.

        >>> for sample in dataset.ordered(): ...
        >>> for batch in dataset.ordered(batch_size=32): ...

        Each iteration over the result reads the shards once. Raises ShardError and SampleError while reading.

        The result can be sent to other processes, each of which reads all of it. To read a dataset with *n* workers,
        give worker *i* a slice of the shards:

        >>> mine = atdata.Dataset[Digit](dataset.list_shards()[i::n])
        """
        return self._passes(self._in_order, batch_size)

    def _in_order(self) -> Iterator[T]:
        return self._decoded(self._stored(self.list_shards()))

    @overload
    def shuffled(
        self,
        buffer_shards: int = 100,
        buffer_samples: int = 10_000,
        batch_size: None = None,
        *,
        seed: int | None = None,
    ) -> Iterable[T]: ...
    @overload
    def shuffled(
        self, buffer_shards: int = 100, buffer_samples: int = 10_000, *, batch_size: int, seed: int | None = None
    ) -> Iterable[SampleBatch[T]]: ...
    @overload
    def shuffled(
        self, buffer_shards: int, buffer_samples: int, batch_size: int, *, seed: int | None = None
    ) -> Iterable[SampleBatch[T]]: ...
    def shuffled(
        self,
        buffer_shards: int = 100,
        buffer_samples: int = 10_000,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
    ) -> Iterable[T] | Iterable[SampleBatch[T]]:
        """The samples in another order on each iteration; else as `ordered`.

        Shards are drawn from a buffer of *buffer_shards* names, samples from one of *buffer_samples* still packed
        samples, which all stay in memory. Both cover a whole dataset that is not larger than they are.
        With a *seed* the order is the same each time: give another one for each epoch.
        """
        for name, size in (("buffer_shards", buffer_shards), ("buffer_samples", buffer_samples)):
            _check_count(name, size)
            if size < 1:
                raise ValueError(f"a buffer holds at least 1, not {size}")
        return self._passes(partial(self._in_random_order, buffer_shards, buffer_samples, seed), batch_size)

    def _in_random_order(self, buffer_shards: int, buffer_samples: int, seed: int | None) -> Iterator[T]:
        rng = random.Random(seed)  # noqa: S311 — an order is no secret
        shards = _shuffle(iter(self.list_shards()), buffer_shards, rng)
        return self._decoded(_shuffle(self._stored(shards), buffer_samples, rng))

    def __iter__(self) -> Iterator[T]:
        return iter(self.ordered())

    def _passes(
        self, start: Callable[[], Iterator[T]], batch_size: int | None
    ) -> Iterable[T] | Iterable[SampleBatch[T]]:
        if batch_size is None:
            return _Pass(start)
        _check_count("batch_size", batch_size)
        if batch_size < 1:
            raise ValueError(f"a batch has at least 1 sample, not {batch_size}")
        return _Pass(partial(_batches, start, batch_size))

    def _stored(self, shards: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
        """Shard, key and bytes of every sample."""
        for shard in shards:
            stream = self._source.open_shard(shard)
            try:
                for key, data in iter_samples(stream, shard):
                    yield shard, key, data
            finally:
                stream.close()

    def _decoded(self, stored: Iterable[tuple[str, str, bytes]]) -> Iterator[T]:
        read = self._reader()
        for shard, key, data in stored:
            try:
                yield read(data)
            except SampleError as e:
                raise e.located(shard, key) from None

    def _reader(self) -> Callable[[bytes], T]:
        if self._lens is None:
            return cast("Any", self.sample_type).from_bytes  # type: ignore[no-any-return]
        lens = self._lens
        read = cast("Any", lens.source_type).from_bytes
        return lambda data: lens.get(read(data))

    def wrap(self, raw: Mapping[str, Any]) -> T:
        """The sample in one of webdataset's own, a mapping with the bytes under `msgpack`.

        >>> dataset.wrap({"__key__": "000003", "msgpack": data}).label
        7

        Raises SampleError, a ValueError, when it holds none.
        """
        key = str(raw.get("__key__", ""))
        if not isinstance(raw.get("msgpack"), bytes):
            raise SampleError(f"has no bytes under 'msgpack', only {', '.join(map(str, raw))}", key=key)
        try:
            return self._reader()(raw["msgpack"])
        except SampleError as e:
            raise SampleError(e.problem, e.field, key) from None

    def wrap_batch(self, raw: Mapping[str, Any]) -> SampleBatch[T]:
        """The batch in one of webdataset's own, a mapping with lists under `__key__` and `msgpack`."""
        packed = raw.get("msgpack")
        if not isinstance(packed, list | tuple):
            raise SampleError(f"has no list under 'msgpack', only {', '.join(map(str, raw))}")
        keys = raw.get("__key__") or [""] * len(packed)
        return SampleBatch([self.wrap({"__key__": key, "msgpack": one}) for key, one in zip(keys, packed, strict=True)])

    def to_parquet(
        self,
        path: str | os.PathLike[str],
        sample_map: Callable[[T], Mapping[str, Any]] | None = None,
        maxcount: int | None = None,
    ) -> None:
        """Write the samples to a Parquet file, a field a column; arrays become nested lists.

        >>> dataset.to_parquet("digits.parquet")

        *sample_map* makes a sample's row. With *maxcount* there are as many files as it takes, each with at most so
        many rows: `digits-000000.parquet` and so on. No file is there before all of them are whole. Needs the extra
        `parquet`. Raises SampleError for values for which Parquet has no type, such as complex numbers, and for a
        column in which types or dtypes differ; only integers among floats are taken, where a float holds them exactly.
        """
        from atdata import parquet

        parquet.write(self.ordered(), self.sample_type, os.fspath(path), sample_map, maxcount)

    def __repr__(self) -> str:
        try:
            name = self.sample_type.__name__
        except SchemaError:
            name = "?"
        shown = getattr(self._source, "url", None)
        return f"Dataset[{name}]({self._source if shown is None else redacted(shown)!r})"

    def _repr_html_(self) -> str:
        from atdata import html

        return html.dataset(self)


def _check_count(name: str, value: object) -> None:
    if not hasattr(value, "__index__"):
        raise ArgumentError(f"{name} is a whole number such as 32, not {value!r}")


# Not closures: passes are sent to other processes.
def _batches(start: Callable[[], Iterator[T]], batch_size: int) -> Iterator[SampleBatch[T]]:
    samples = start()
    while batch := list(islice(samples, batch_size)):
        yield SampleBatch(batch)


def _shuffle(items: Iterator[V], size: int, rng: random.Random) -> Iterator[V]:
    """*items* in random order, from a buffer that holds *size* of them."""
    buffer = list(islice(items, size))
    for item in items:
        i = rng.randrange(len(buffer))
        buffer[i], item = item, buffer[i]
        yield item
    rng.shuffle(buffer)
    yield from buffer
