"""Typed samples read from local shards, by this library and by webdataset in the same run. Prints one JSON line.

    python tests/benchmarks/shard_read.py [--small 20000] [--images 600] [--rounds 3]

``small`` are samples of two fields, a text and a number; ``image`` ones of a 3 × 224 × 224 uint8 array and a number.
webdataset's side is what one writes with it: its pipeline, msgpack, and ``np.load``. Samples a second of CPU time, the
best of the rounds, because the machine is shared; ``ratio`` is ours to theirs.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import ormsgpack
import webdataset as wds
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from shard_files import write_shard

import atdata


@atdata.packable
class Small:
    """Two fields."""

    text: str
    number: int


@atdata.packable
class Image:
    """A picture as networks are trained on."""

    image: NDArray[np.uint8]
    label: int


def webdataset_small(url: str) -> Iterable[Small]:
    for raw in wds.WebDataset(url, shardshuffle=False, empty_check=False):
        yield Small(**ormsgpack.unpackb(raw["msgpack"]))


def webdataset_images(url: str) -> Iterable[Image]:
    for raw in wds.WebDataset(url, shardshuffle=False, empty_check=False):
        fields = ormsgpack.unpackb(raw["msgpack"])
        yield Image(np.load(io.BytesIO(fields["image"]), allow_pickle=False), fields["label"])


def rate(read: Callable[[], Iterable[Any]], count: int, rounds: int) -> float:
    """Samples a second of CPU time, the best of some rounds."""
    best = 0.0
    for _ in range(rounds):
        started = time.process_time()
        assert sum(1 for _ in read()) == count
        best = max(best, count / (time.process_time() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"benchmark": "shard_read"}
    with tempfile.TemporaryDirectory() as folder:
        small = write_shard(Path(folder) / "small.tar", (Small(f"sample {i}", i) for i in range(arguments.small)))
        pixels = np.random.default_rng(1).integers(0, 256, (3, 224, 224), np.uint8)
        images = write_shard(Path(folder) / "images.tar", (Image(pixels, i) for i in range(arguments.images)))
        for name, count, ours, theirs in [
            ("small", arguments.small, lambda: atdata.Dataset[Small](small), lambda: webdataset_small(small)),
            ("image", arguments.images, lambda: atdata.Dataset[Image](images), lambda: webdataset_images(images)),
        ]:
            mine = rate(ours, count, arguments.rounds)
            other = rate(theirs, count, arguments.rounds)
            result[name] = {"atdata": round(mine), "webdataset": round(other), "ratio": round(mine / other, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
