"""What type checkers must find; each line that ends in `# wrong` is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import atdata


@atdata.packable
class ImageSample:
    image: NDArray[np.uint8]
    label: str


ImageSample(np.zeros(1, np.uint8))  # wrong
ImageSample(np.zeros(1, np.uint8), label=3)  # wrong
dataset = atdata.Dataset[ImageSample]("images.tar")
for sample in dataset.ordered():
    print(sample.caption)  # wrong
for batch in dataset.ordered(batch_size=2):
    text: str = batch  # wrong
dataset.ordered(batch_size="2")  # wrong
atdata.Dataset[ImageSample](5)  # wrong


@atdata.lens
def number(source: ImageSample) -> int:
    return len(source.label)


@atdata.lens
def caption(source: ImageSample) -> str:
    return source.label


both = number | caption  # wrong


appview = atdata.AppView("https://appview.example.com")
appview.search_datasets(storage=["floppy"])  # wrong
appview.datasets_loadable_as(ImageSample, tagz=["cat"])  # wrong
for hit in appview.search_datasets():
    print(hit.names)  # wrong
