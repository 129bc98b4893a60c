"""Sample types, and shards of them on disk, as webdataset itself writes them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray

import atdata


@atdata.packable
class Digit:
    """A picture of a digit."""

    image: NDArray[np.uint8]
    label: int


@atdata.packable
class Labelled:
    """What a lens leaves of a digit."""

    label: int


def digits(count: int, first: int = 0) -> list[Digit]:
    """Some digits, each with its number as label."""
    return [Digit(np.full((8, 8), i % 256, np.uint8), i) for i in range(first, first + count)]


def packed_shard(samples: Iterable[Any]) -> bytes:
    """A shard of *samples* with the keys 000000, 000001, …, by webdataset's own writer."""
    buffer = io.BytesIO()
    with wds.writer.TarWriter(buffer) as sink:
        for i, sample in enumerate(samples):
            sink.write({**sample.as_wds, "__key__": f"{i:06d}"})
    return buffer.getvalue()


def write_shard(path: Path, samples: Iterable[Any]) -> str:
    """Write a shard; its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed_shard(samples))
    return str(path)


def tar(members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive with these members, by the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
