"""What notebooks show: tables, images, and never an exception, a script, or a long download."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import time
import tracemalloc
import zlib
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from shard_files import Digit, digits, packed_shard, tar, write_shard
from web import dripping

from atdata import Dataset, DatasetDict, DictSample, SampleBatch, html, packable
from atdata.atmosphere.records import Array, Field, Primitive, Ref, SchemaRecord
from atdata.atmosphere.records import NDArray as ArrayType

EVIL = "<script>alert('x')</script>\"&"


class Checker(HTMLParser):
    """Collects tags, and notices those that were never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def parsed(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert set(checker.tags) <= {"div", "strong", "table", "tr", "th", "td", "img", "br"}
    return checker


def test_datasets(tmp_path):
    """A dataset shows its fields with their types, and its first samples with dtype, shape, range and a picture."""
    path = write_shard(tmp_path / "a.tar", digits(20))
    shown = parsed(Dataset[Digit](path)._repr_html_())
    for part in ("Dataset[Digit]", "a.tar (1 shard)", "NDArray[uint8]", "label", "uint8 (8, 8) 2 … 2"):
        assert part in shown.text
    assert shown.tags.count("img") == 3
    assert "data:image/png;base64," in Dataset[Digit](path)._repr_html_()
    untyped = parsed(Dataset(path)._repr_html_())
    assert "Dataset[DictSample]" in untyped.text
    assert untyped.tags.count("img") == 3


def test_batches_and_splits(tmp_path):
    """A batch shows its first samples; splits show their names and how many shards they have."""
    batch = parsed(SampleBatch(digits(10))._repr_html_())
    assert "SampleBatch of 10 Digit" in batch.text
    assert batch.tags.count("img") == 3
    path = write_shard(tmp_path / "a.tar", digits(1))
    splits = parsed(DatasetDict({"train": Dataset[Digit](path), EVIL: Dataset[Digit](path)})._repr_html_())
    assert "train" in splits.text
    assert EVIL in splits.text


def test_schemas():
    """A schema shows every field with its type in Python's words."""
    schema = SchemaRecord(
        EVIL,
        "1.0.0",
        (
            Field("image", ArrayType("uint8", (0, 28))),
            Field("scores", Array(ArrayType()), optional=True, description=EVIL),
            Field("anything", Array()),
            Field("inner", Ref("at://did:plc:abc/x.y.z/1")),
            Field("odd", None),
            Field("label", Primitive("int")),
        ),
        description=EVIL,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    shown = parsed(html.schema(schema))
    for part in (
        EVIL,
        "NDArray[uint8] (any, 28)",
        "list[NDArray[float32]] | None",
        "sample of at://did:plc",
        "unknown",
    ):
        assert part in shown.text
    facts = parsed(html.facts(EVIL, {"name": EVIL, "license": None}))
    assert facts.text.count(EVIL) == 2
    assert "license" not in facts.text


def test_everything_is_escaped(tmp_path):
    """Names, values, paths and errors of strangers stay text."""
    evil = [DictSample({EVIL: EVIL, "b": EVIL.encode(), "l": [EVIL], "a": np.array([EVIL])})]
    path = write_shard(tmp_path / "<b>.tar", evil)
    for text in (Dataset(path)._repr_html_(), SampleBatch(evil)._repr_html_()):
        assert "script" in parsed(text).text
        assert "<script" not in text
        assert "<b>" not in text


def test_what_is_wrong_is_shown(tmp_path):
    """A missing shard, another file, and a wrong type are shown as text, not raised."""
    (tmp_path / "page.tar").write_bytes(b"<html>" + b" " * 1000)
    write_shard(tmp_path / "other.tar", [DictSample(a=1)])
    assert "there is no such file" in parsed(Dataset[Digit](str(tmp_path / "no.tar"))._repr_html_()).text
    assert "looks like a web page" in parsed(Dataset[Digit](str(tmp_path / "page.tar"))._repr_html_()).text
    assert "field image: is missing" in parsed(Dataset[Digit](str(tmp_path / "other.tar"))._repr_html_()).text
    assert "is not a sample type" in parsed(Dataset[dict](str(tmp_path / "other.tar"))._repr_html_()).text
    assert "Dataset[Digit]" in parsed(Dataset[Digit]([])._repr_html_()).text


class Counting:
    """A source that counts what is read of it."""

    shards: Any = ()

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened: list[str] = []
        self.read = 0

    def list_shards(self) -> list[str]:
        return ["first", "second"]

    def open_shard(self, shard_id: str) -> Any:
        self.opened.append(shard_id)
        source = self

        class Stream(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                data = super().read(size)
                source.read += len(data)
                return data

        return Stream(self.data)


def test_little_is_read():
    """Only the beginning of the first shard is read, however large samples are."""
    source = Counting(packed_shard(digits(20_000)))
    Dataset[Digit](source)._repr_html_()
    assert source.opened == ["first"]
    assert source.read <= 1 << 17
    source = Counting(tar({"a.msgpack": DictSample(blob=bytes(50 << 20)).packed}))
    assert "are not shown" in parsed(Dataset(source)._repr_html_()).text
    assert source.read <= 9 << 20


def test_little_is_unpacked(tmp_path):
    """A compressed shard whose first sample is a gigabyte of zeros is not unpacked to be shown."""
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("a.msgpack")
    info.size = 1 << 30
    path.write_bytes(gzip.compress(info.tobuf() + bytes(32 << 20), 1))
    tracemalloc.start()
    shown = parsed(Dataset(str(path))._repr_html_()).text
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "claims" in shown
    assert peak < 24 << 20
    info.size = 100 << 20
    path.write_bytes(gzip.compress(info.tobuf() + bytes(32 << 20), 1))
    assert "is read no further" in parsed(Dataset(str(path))._repr_html_()).text


def test_nobody_waits_long_for_a_picture(monkeypatch):
    """A shard that arrives a letter at a time, or late, is given up after a while."""
    monkeypatch.setattr(html, "_SECONDS", 0.3)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"
    with dripping(head, b"a", b"") as server:
        assert "not answered in full within 0.3 s" in parsed(Dataset(f"{server.url}/0.tar")._repr_html_()).text
        assert not server.was_waited_for

    class Late(Counting):
        def open_shard(self, shard_id: str) -> Any:
            later = time.monotonic() + 1
            monkeypatch.setattr(time, "monotonic", lambda: later)
            return super().open_shard(shard_id)

    assert "take longer than 0.3 s" in parsed(Dataset(Late(packed_shard(digits(3))))._repr_html_()).text


def test_no_password_is_shown(tmp_path):
    """The URL of a dataset is shown without what lets one in."""
    text = Dataset(f"{tmp_path}/u//user:hunter2@host/0.tar?sig=hunter2")._repr_html_()
    assert "0.tar" in text
    assert "hunter2" not in text


def unpacked(data: bytes) -> np.ndarray:
    """The pixels of a PNG as our writer makes them."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = int.from_bytes(chunks[b"IHDR"][:4], "big"), int.from_bytes(chunks[b"IHDR"][4:8], "big")
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, -1)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))))
def test_images_are_exact(pixels):
    """The PNG has the pixels that went in."""
    np.testing.assert_array_equal(unpacked(html.png(pixels)), pixels)
    np.testing.assert_array_equal(unpacked(html.png(pixels[:, :, 0]))[:, :, 0], pixels[:, :, 0])


IMAGES = [
    (np.zeros((8, 8), np.uint8), True),
    (np.zeros((500, 300, 3), np.uint8), True),
    (np.zeros((3, 224, 224), np.uint8), True),
    (np.ones((28, 28), bool), True),
    (np.full((28, 28), 0.5, np.float32), True),
    (np.full((28, 28), 5.0), False),
    (np.full((28, 28), np.nan), False),
    (np.zeros((28, 28), np.int64), False),
    (np.zeros((28, 28), np.complex64), False),
    (np.zeros(100, np.uint8), False),
    (np.zeros((2, 2), np.uint8), False),
    (np.zeros((8, 8, 8), np.uint8), False),
    (np.zeros((3, 0, 8), np.uint8), False),
    (np.zeros((0, 0), np.uint8), False),
]


@pytest.mark.parametrize(("array", "expected"), IMAGES)
def test_what_is_an_image(array, expected):
    """Height and width, 1, 3 or 4 channels first or last; bytes, or fractions. Thumbnails are small."""
    image = html._image(array)
    assert (image is not None) is expected
    if image:
        assert len(image) < 30_000


@packable
class Row:
    x: NDArray


@given(
    hnp.arrays(
        st.sampled_from(["?", "u1", "i8", "f2", "f8", "c8", "M8[s]", "m8[s]", "U3", "S2"]).map(np.dtype),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    )
)
def test_any_array_is_shown(array):
    """Every array has a dtype and a shape in the table, and no warning or exception comes of it."""
    shown = parsed(SampleBatch([Row(array)])._repr_html_()).text
    assert re.search(re.escape(f"{array.dtype} {array.shape}"), shown)
