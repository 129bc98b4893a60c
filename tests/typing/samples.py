"""What type checkers must understand of a user's code; `test_typing.py` runs them over this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import atdata
from atdata import (
    AppView,
    Dataset,
    DatasetDict,
    DictSample,
    Lens,
    LensNetwork,
    PackableSample,
    SampleBatch,
    URLSource,
    lens,
)
from atdata.appview import Results
from atdata.atmosphere import AtmosphereIndex
from atdata.views import DatasetView, LensPath, LensView, SchemaView


@atdata.packable
class ImageSample:
    image: NDArray[np.uint8]
    label: str
    confidence: float | None = None


@dataclass
class Declared(PackableSample):
    label: str


@atdata.packable
class Both(PackableSample):
    image: NDArray[np.uint8]
    label: str = ""


def samples() -> None:
    sample = ImageSample(np.zeros((2, 2), np.uint8), label="cat")
    assert_type(sample.label, str)
    assert_type(sample.confidence, float | None)
    declared = Declared("cat")
    assert_type(declared.packed, bytes)
    assert_type(declared.as_wds, dict[str, Any])
    assert_type(Declared.from_bytes(b""), Declared)
    assert_type(Declared.from_data({}), Declared)
    both = Both(np.zeros((2, 2), np.uint8), label="cat")
    assert_type(both.label, str)
    assert_type(both.packed, bytes)
    assert_type(Both.from_bytes(b""), Both)


def iteration() -> None:
    dataset = Dataset[ImageSample]("images-{00..09}.tar")
    assert_type(dataset.sample_type, type[ImageSample])
    for sample in dataset.ordered():
        assert_type(sample, ImageSample)
    for sample in dataset:
        assert_type(sample, ImageSample)
    for sample in dataset.shuffled():
        assert_type(sample, ImageSample)
    for sample in dataset.shuffled(buffer_shards=10, buffer_samples=100):
        assert_type(sample, ImageSample)
    for batch in dataset.ordered(batch_size=32):
        assert_type(batch, SampleBatch[ImageSample])
        assert_type(batch.samples, list[ImageSample])
        batch.image.shape  # noqa: B018 — anything goes for an aggregate
    for batch in dataset.shuffled(batch_size=32):
        assert_type(batch, SampleBatch[ImageSample])
    for batch in dataset.shuffled(10, 100, 32):
        assert_type(batch, SampleBatch[ImageSample])
    assert_type(dataset.as_type(Declared), Dataset[Declared])
    assert_type(dataset.wrap({}), ImageSample)
    assert_type(dataset.wrap_batch({}), SampleBatch[ImageSample])
    assert_type(Dataset("images.tar"), Dataset[DictSample])
    Dataset[ImageSample](URLSource("images.tar"))


def loading() -> None:
    assert_type(atdata.load_dataset("images.tar", ImageSample), DatasetDict[ImageSample])
    assert_type(atdata.load_dataset("images.tar", ImageSample, split="train"), Dataset[ImageSample])
    assert_type(atdata.load_dataset("images.tar", ImageSample)["train"], Dataset[ImageSample])
    assert_type(atdata.load_dataset("@alice.example.com/images", split="train"), Dataset[Any])
    sample_type = atdata.schema_to_type({})
    assert_type(sample_type, type[PackableSample])


@atdata.lens
def simplify(source: ImageSample) -> Declared:
    return Declared(source.label)


@simplify.putter
def simplify_put(view: Declared, source: ImageSample) -> ImageSample:
    return ImageSample(source.image, view.label)


@lens
def again(source: Declared) -> ImageSample:
    return ImageSample(np.zeros(1, np.uint8), source.label)


def lenses() -> None:
    assert_type(simplify, Lens[ImageSample, Declared])
    assert_type(simplify | again, Lens[ImageSample, ImageSample])
    assert_type(LensNetwork().transform(ImageSample, Declared), Lens[ImageSample, Declared])
    assert_type(atdata.lens.LensNetwork(), LensNetwork)
    assert_type(simplify(ImageSample(np.zeros(1, np.uint8), "cat")), Declared)


def finding() -> None:
    appview = AppView("https://appview.example.com")
    found = appview.search_datasets("cats", tags=["images"], storage=["blobs"], sort="newest", facets=["license"])
    assert_type(found, Results[DatasetView])
    assert_type(found.facets, dict[str, dict[str, int]])
    for hit in found:
        assert_type(hit, DatasetView)
        assert_type(hit.load(ImageSample, split="train"), Dataset[ImageSample])
        assert_type(hit.load(ImageSample), DatasetDict[ImageSample])
        assert_type(hit.load(split="train"), Dataset[Any])
        entry: atdata.IndexEntry = hit
        print(entry)
    for path in appview.find_lens_path(ImageSample, Declared):
        assert_type(path, LensPath)
        assert_type(path.lenses, tuple[LensView, ...])
    assert_type(appview.resolve_schema("alice.example.com", "Cat", version=">=1.2"), SchemaView)
    index = AtmosphereIndex(appview=appview)
    assert_type(index.search_datasets("cats", min_samples=10), Results[DatasetView])
    assert_type(index.datasets_loadable_as(ImageSample, licenses=["MIT"]), Results[DatasetView])
    assert_type(atdata.load_dataset("@a.example/cats", ImageSample, appview=appview), DatasetDict[ImageSample])


def protocols() -> None:
    source: atdata.DataSource = URLSource("images.tar")
    blobs: atdata.DataSource = atdata.BlobSource([])
    bucket: atdata.DataSource = atdata.S3Source("bucket", [])
    sample: atdata.Packable = Declared("cat")
    loose: atdata.Packable = DictSample(label="cat")
    print(source, blobs, bucket, sample, loose)
