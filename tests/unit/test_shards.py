"""Shards: every archive that tar programs write is read; damage, truncation and other files are errors."""

import contextlib
import gzip
import io
import random
import shutil
import subprocess
import tarfile
import warnings
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_files import digits, packed_shard, tar

from atdata.errors import ShardError
from atdata.shards import iter_samples


class Dribble:
    """A stream that gives a few bytes at a time, as networks do."""

    def __init__(self, data: bytes, size: int = 100) -> None:
        self._data = io.BytesIO(data)
        self._size = size

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(self._size, size) if size >= 0 else self._size)

    def close(self) -> None:
        pass


def read(data: bytes) -> list[tuple[str, bytes]]:
    return list(iter_samples(io.BytesIO(data), "s.tar"))


SAMPLES = digits(50)
SHARD = packed_shard(SAMPLES)
EXPECTED = [(f"{i:06d}", sample.packed) for i, sample in enumerate(SAMPLES)]


def test_webdatasets_shards_are_read():
    """What webdataset's writer writes is read, in order, with keys and bytes."""
    assert read(SHARD) == EXPECTED


@pytest.mark.parametrize("size", [1, 100, 512, 4097])
def test_pieces_of_any_size_will_do(size):
    """How the bytes arrive does not matter."""
    assert list(iter_samples(Dribble(SHARD, size), "s.tar")) == EXPECTED


def test_compressed_shards_are_read():
    """gzip is recognised by its bytes, whatever the name."""
    assert read(gzip.compress(SHARD)) == EXPECTED
    assert list(iter_samples(Dribble(gzip.compress(SHARD), 7), "s.tar")) == EXPECTED


NAMES = {
    "short": "a.msgpack",
    "dots in the key": "a.b.c.msgpack",
    "a folder": "x/y/a.msgpack",
    "exactly 100": "n" * 92 + ".msgpack",
    "101": "n" * 93 + ".msgpack",
    "a prefix": "folder/" * 18 + "n" * 60 + ".msgpack",
    "1000": "n" * 992 + ".msgpack",
    "unicode": "prüfung/数据-😀.msgpack",
}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_all_formats(name, format):
    """Long names and foreign letters are read as pax, GNU and ustar write them."""
    try:
        data = tar({name: b"1", "next.msgpack": b"2"}, format)
    except ValueError:
        pytest.skip("this format cannot hold the name")
    assert read(data) == [(name.removesuffix(".msgpack"), b"1"), ("next", b"2")]


members = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150).map(
        lambda key: f"{key}.msgpack"
    ),
    st.binary(max_size=2000),
    min_size=1,
    max_size=5,
)


@given(members, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 700))
def test_what_tarfile_writes_is_read(contents, format, size):
    """Any members, in either format with long names, in pieces of any size."""
    found = list(iter_samples(Dribble(tar(contents, format), size), "s.tar"))
    assert found == [(name.removesuffix(".msgpack"), data) for name, data in contents.items()]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program is installed")
@pytest.mark.parametrize("format", ["gnu", "posix", "ustar", "v7"])
def test_what_the_tar_program_writes_is_read(tmp_path, format):
    """The system's tar, in each of its formats, with folders and links beside the samples."""
    folder = tmp_path / "data"
    folder.mkdir()
    for key, data in EXPECTED[:3]:
        (folder / f"{key}.msgpack").write_bytes(data)
    (folder / "link.msgpack").symlink_to("000000.msgpack")
    (folder / "notes.txt").write_text("not a sample")
    subprocess.run(["tar", f"--format={format}", "-cf", "s.tar", "data"], cwd=tmp_path, check=True)
    found = read((tmp_path / "s.tar").read_bytes())
    assert sorted(found) == [(f"data/{key}", data) for key, data in EXPECTED[:3]]


def test_other_members_are_passed_over():
    """Files that are no samples, however large, are not in the way."""
    found = read(tar({"readme.md": b"x" * 3_000_000, "a.msgpack": b"1", "a.jpg": b"y", "b.msgpack": b"2"}))
    assert found == [("a", b"1"), ("b", b"2")]


def test_pax_headers_about_something_else_change_nothing():
    """Global headers, and headers of members without content, do not leak into the next member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"comment": "path=x size=3"}) as archive:
        folder = tarfile.TarInfo("folder" * 40)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("a.msgpack")
        info.size = 2
        info.pax_headers = {"mtime": "1.5", "note": "größer = besser"}
        archive.addfile(info, io.BytesIO(b"ok"))
    assert read(buffer.getvalue()) == [("a", b"ok")]


def header(size: bytes, name: bytes = b"a.msgpack", kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def test_sizes_in_every_spelling():
    """Octal with or without zeros, spaces and NULs, and GNU's base 256."""
    for size in (b"00000000003\0", b"3", b"  3 ", b"000000000003", b"\x80" + bytes(10) + b"\x03"):
        assert read(header(size) + b"abc".ljust(512, b"\0") + bytes(1024)) == [("a", b"abc")]
    pax = tar({"a.msgpack": b"abc"})
    body = b"9 size=3\n"
    extended = header(b"%o" % len(body), b"x", b"x") + body.ljust(512, b"\0")
    assert read(extended + header(b"0") + pax[512:]) == [("a", b"abc")]


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "nothing": (b"", "is empty"),
        "a web page": (b"<!DOCTYPE html><html>" + b" " * 600, "looks like a web page"),
        "JSON": (b'{"error": "NotFound"}' + b" " * 600, "looks like JSON"),
        "a ZIP": (b"PK\x03\x04" + bytes(600), "ZIP"),
        "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        "noise": (random.Random(5).randbytes(2000), "is no tar archive"),
        "text": (b"hello " * 200, "is no tar archive; check its address"),
        "a few bytes": (b"hello", "is no tar archive"),
        "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        "no size": (header(b"xyz"), "has no size"),
        "octal eight": (header(b"00000000008\0"), "has no size"),
        "8 EiB": (header(b"\x80" + b"\x7f" * 11), "claims"),
        "1 GiB that is not there": (header(b"10000000000\0") + bytes(512), "truncated"),
        "a pax header of 1 TiB": (header(b"\x80" + bytes(5) + b"\1" + bytes(5), b"x", b"x"), "claims"),
        "a bad pax header": (
            header(b"%o" % 20, b"x", b"x") + b"99 path=x\n".ljust(512, b"\0") + SHARD,
            "extended header cannot be read",
        ),
        "a pax size that is none": (
            header(b"%o" % 10, b"x", b"x") + b"10 size=-3\n"[:10].ljust(512, b"\0") + SHARD,
            "extended header cannot be read",
        ),
        "no samples": (tar({"a.jpg": b"1", "a.json": b"2"}), r"has no samples.*\{key\}\.msgpack.*'a\.jpg'"),
        "cut gzip": (gzip.compress(SHARD)[:-100], "truncated|cannot be read"),
        "damaged gzip": (gzip.compress(SHARD)[:200] + b"junk" + gzip.compress(SHARD)[204:], "cannot be read|damaged"),
        "endless padding": (SHARD + bytes(65 << 20), "goes on and on"),
    }.values(),
)
def test_what_is_no_shard_is_an_error(data, message):
    """Every other file is a ShardError that names the shard, says what is wrong and what to do."""
    with pytest.raises(ShardError, match=message) as caught:
        read(data)
    assert caught.value.shard == "s.tar"
    assert str(caught.value).startswith("s.tar: ")


def test_what_follows_the_end_of_an_archive_is_an_error():
    """Samples behind a header that became zeros, or of a second archive, are missed in words, not in silence."""
    ten = tar({f"{i}.msgpack": b"x" for i in range(10)})
    damaged = ten[: 8 * 512] + bytes(512) + ten[9 * 512 :]
    joined = tar({"a.msgpack": b"1"}) + tar({"b.msgpack": b"2"})
    for data in (damaged, joined, SHARD + bytes(9000) + b"\1", gzip.compress(joined)):
        with pytest.raises(ShardError, match=r"goes on after the end of its archive.*tar --concatenate"):
            read(data)
        with pytest.raises(ShardError, match="goes on after the end"):
            list(iter_samples(Dribble(data), "s.tar"))


class Counted(io.BytesIO):
    """A stream that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_limit_holds_for_what_is_unpacked():
    """With a limit, neither more bytes of an archive are read than that, nor more unpacked; up to it, all are there."""
    bomb = header(b"%o" % (64 << 20)) + bytes(64 << 20) + bytes(1024)
    for data in (bomb, gzip.compress(bomb, 1)):
        stream = Counted(data)
        with pytest.raises(ShardError, match="has more than 100000 bytes up to here"):
            list(iter_samples(stream, "s.tar", limit=100_000))
        assert stream.count <= 200_000
    assert list(iter_samples(io.BytesIO(SHARD), "s.tar", limit=len(SHARD))) == EXPECTED
    assert list(iter_samples(io.BytesIO(gzip.compress(SHARD)), "s.tar", limit=len(SHARD))) == EXPECTED


def test_a_compressed_sample_may_not_be_huge():
    """A sample of a compressed shard that claims more than memory should hold is refused before it is unpacked."""
    stream = Counted(gzip.compress(header(b"%o" % (257 << 20)) + bytes(5 << 20)))
    with pytest.raises(ShardError, match=r"'a\.msgpack' claims \d+ bytes; decompress the shard to read it"):
        list(iter_samples(stream, "s.tar"))


def test_every_truncation_is_noticed():
    """Wherever a shard is cut, between members as well, the end of the archive is missed."""
    whole = packed_shard(digits(3))
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in [*range(0, end, 97), *range(512, end + 1, 512)]:
        with pytest.raises(ShardError, match=r"truncated|empty|no tar archive"):
            read(whole[:length])


@given(st.integers(0, len(SHARD) // 10), st.integers(1, 255))
def test_a_flipped_byte_never_crashes(at, change):
    """With one byte changed, samples come out or a ShardError, never anything else, nor fewer samples silently."""
    damaged = bytearray(SHARD[: len(SHARD) // 10 // 512 * 512] + bytes(1024))
    at = min(at, len(damaged) - 1)
    damaged[at] ^= change
    honest = len(read(bytes(SHARD[: len(SHARD) // 10 // 512 * 512]) + bytes(1024)))
    with suppress(ShardError):
        # A changed name makes a member no sample.
        assert len(read(bytes(damaged))) in (honest, honest - 1)


@given(st.binary(max_size=3000))
def test_any_bytes_are_samples_or_an_error(data):
    """Whatever the bytes: samples, or a ShardError."""
    with contextlib.suppress(ShardError):
        read(data)


def test_an_empty_archive_has_no_samples():
    """An archive without members is a shard without samples."""
    assert read(tar({})) == []


def test_errors_of_streams_become_ours():
    """A disk or a connection that fails in the middle is a ShardError with the cause."""

    class Broken(Dribble):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            if not data:
                raise OSError("the disk is on fire")
            return data

    with pytest.raises(ShardError, match="the disk is on fire") as caught:
        list(iter_samples(Broken(SHARD[:2000]), "s.tar"))
    assert isinstance(caught.value.__cause__, OSError)


def test_the_stream_is_read_to_its_end():
    """What follows the end of the archive is read, too: only there can a checksum be compared."""
    stream = io.BytesIO(SHARD + bytes(100_000))
    list(iter_samples(stream, "s.tar"))
    assert stream.tell() == len(SHARD) + 100_000


def test_memory_does_not_grow_with_what_is_passed_over():
    """A large member that is no sample is skipped in pieces."""
    import tracemalloc

    class Zeros:
        def __init__(self) -> None:
            self.head = io.BytesIO(header(b"%o" % (200 << 20), b"big.bin"))
            self.left = 200 << 20
            self.tail = io.BytesIO(tar({"a.msgpack": b"1"}))

        def read(self, size: int = -1) -> bytes:
            if data := self.head.read(size):
                return data
            if self.left:
                size = min(size, self.left)
                self.left -= size
                return bytes(size)
            return self.tail.read(size)

        def close(self) -> None:
            pass

    with warnings.catch_warnings():
        tracemalloc.start()
        found = list(iter_samples(Zeros(), "s.tar"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found == [("a", b"1")]
    assert peak < 20 << 20
