"""Read shards: tar archives with one msgpack member a sample. Strict: damage and truncation are errors, never an end.

A shard is a stream that is read once, in pieces, so memory holds one piece and one sample. Format: POSIX.1-2024, pax,
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13 and GNU's long names.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Final, cast

from atdata.errors import ShardError
from atdata.protocols import Stream

__all__ = ["iter_samples"]

_BLOCK: Final = 512
_PIECE: Final = 1 << 20
_NO_BLOCK: Final = bytes(_BLOCK)
_SUFFIX: Final = b".msgpack"

# A long name, or the records of a pax header; nothing honest comes near.
_MAX_META: Final = 1 << 20
# msgpack's own limit for one value is 4 GiB.
_MAX_SAMPLE: Final = 2 << 30
# Of a compressed shard, where a gigabyte costs its author a megabyte.
_MAX_COMPRESSED_SAMPLE: Final = 256 << 20
# tar pads its archives to 10 KiB; some tools to more.
_MAX_PADDING: Final = 64 << 20

_REGULAR: Final = frozenset(b"0\0007")
# Links, devices, folders and pipes have no content, whatever their header says of a size.
_EMPTY: Final = frozenset(b"123456")
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"xgLK"


def iter_samples(stream: Stream, shard: str, *, limit: int | None = None) -> Iterator[tuple[str, bytes]]:
    """The key and the bytes of every sample in *stream*, to the end of the archive and of the stream.

    >>> with open("digits.tar", "rb") as stream:
    ...     for key, data in iter_samples(stream, "digits.tar"): ...

    Members that are not called `{key}.msgpack` are passed over. With *limit*, no more bytes of the archive than that
    are read, or unpacked if it is compressed. Raises ShardError, with the name *shard*, when the stream is no tar
    archive, is damaged or truncated, holds members but not one sample, or has more than *limit*.
    """
    window = _Window(stream, shard, limit)
    # What the last extended header said of the member that follows.
    long_name: bytes | None = None
    long_size: int | None = None
    found = False
    other: bytes | None = None
    # Small samples come by the hundred thousand a second, so this loop looks into the window itself.
    buffer, at = window.buffer, 0
    while True:
        if at + _BLOCK > len(buffer):
            buffer, at = window.move(at, _BLOCK), 0
        header = buffer[at : at + _BLOCK]
        if header == _NO_BLOCK:
            break
        # The sum of the header's bytes, with spaces in place of the sum. The lower half of Adler-32 is one more than
        # the sum, modulo 65,521, and several times as fast to compute as sum().
        adler = zlib.adler32(header[:148] + b"        " + header[156:]) & 0xFFFF
        if (_octal(header[148:156]) + 1) % 65521 != adler:
            raise window.no_header(at)
        size = _octal(header[124:136])
        if size < 0:
            raise window.damaged(at, "a header has no size")
        kind = header[156]
        body = at + _BLOCK
        at = body + size + -size % _BLOCK
        if kind in _REGULAR:
            if long_size is not None:
                size = long_size
                at = body + size + -size % _BLOCK
            name = _short_name(header) if long_name is None else long_name
            long_name = long_size = None
            if not name.endswith(_SUFFIX):
                other = other or name
                continue
            end = body + size
            if end > len(buffer):
                if size > window.max_sample:
                    raise ShardError(shard, f"its member {_text(name)} claims {size} bytes{window.advice}")
                buffer, at = window.move(body, size), at - body
                body, end = 0, size
            yield name[: -len(_SUFFIX)].decode(errors="backslashreplace"), buffer[body:end]
            found = True
        elif kind in (_PAX, _LONG_NAME):
            end = body + size
            if end > len(buffer):
                if size > _MAX_META:
                    raise window.damaged(body, f"an extended header claims {size} bytes")
                buffer, at = window.move(body, size), at - body
                body, end = 0, size
            if kind == _LONG_NAME:
                long_name = buffer[body:end].partition(b"\0")[0]
                continue
            extended = buffer[body:end]
            # Most say a time only, to the microsecond.
            if b"path=" in extended or b"size=" in extended:
                records = _pax_records(extended)
                if records is None or _number(records.get(b"size", b"0"), 10) < 0:
                    raise window.damaged(body, "an extended header cannot be read")
                long_name = records.get(b"path", long_name)
                long_size = _number(records[b"size"], 10) if b"size" in records else None
        else:
            if kind in _EMPTY:
                at = body
            # A header for every member that follows, or for the target of a link, ends nothing.
            if kind not in (_PAX_GLOBAL, _LONG_LINK):
                long_name = long_size = None
    if other is not None and not found:
        raise ShardError(shard, f"has no samples: its members are not called {{key}}.msgpack, one is {_text(other)}")
    window.drain(at)


def _octal(field: bytes) -> int:
    """The number in a field of a header; -1 for none."""
    if field[0] & 0x80:  # in base 256, for members of 8 GiB and more
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return _number(field.strip(b" \0"), 8)


def _number(digits: bytes, base: int) -> int:
    # int() would take signs, underscores and spaces as well.
    if not digits.isdigit() or len(digits) > 20:
        return -1
    try:
        return int(digits, base)
    except ValueError:  # an 8 in an octal number
        return -1


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's format, "ustar  ", has other things where POSIX has the folder.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """The records `length key=value newline` of a pax header; None if they are not that."""
    records = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 21].partition(b" ")[0]
        end = at + _number(digits, 10)
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if end > len(data) or not equals or data[end - 1 : end] != b"\n":
            return None
        records[key] = value
        at = end
    return records


def _text(name: bytes) -> str:
    return repr(name[:100].decode(errors="backslashreplace"))


class _Window:
    """A piece of a shard, which moves on over its bytes, decompressed."""

    def __init__(self, stream: Stream, shard: str, limit: int | None) -> None:
        self._shard = shard
        self._start = 0
        self._stream = stream
        self._limit = limit
        self._pulled = 0
        self.max_sample = _MAX_SAMPLE
        self.advice = ""
        self.buffer = self._pull()
        if not self.buffer:
            raise ShardError(shard, "is empty: 0 bytes are no tar archive")
        if self.buffer.startswith(b"\x1f\x8b"):
            # GzipFile needs no more of a file than read().
            whole = cast("IO[bytes]", _Rejoined(self.buffer, stream))
            self._stream = cast("Stream", gzip.GzipFile(fileobj=whole, mode="rb"))
            self.max_sample, self.advice = _MAX_COMPRESSED_SAMPLE, "; decompress the shard to read it"
            self._pulled = 0
            self.buffer = self._pull()

    def _pull(self) -> bytes:
        size = _PIECE if self._limit is None else min(_PIECE, self._limit - self._pulled + 1)
        try:
            piece = self._stream.read(size)
        except EOFError as e:  # of a compressed stream
            raise ShardError(self._shard, f"is truncated: {e}; fetch it again") from None
        except (OSError, zlib.error) as e:
            raise ShardError(self._shard, f"cannot be read after byte {self._start}: {e}") from e
        self._pulled += len(piece)
        if self._limit is not None and self._pulled > self._limit:
            raise ShardError(self._shard, f"has more than {self._limit} bytes up to here, and is read no further")
        return piece

    def move(self, at: int, size: int) -> bytes:
        """Begin at what is *at* now, and hold *size* bytes or more. Raises ShardError if there are fewer."""
        rest = self.buffer[at:]
        # Bytes that are passed over may be more than memory holds.
        to_skip = max(0, at - len(self.buffer))
        self._start += at
        pieces, have = [rest], len(rest)
        # A piece at a time: what a header claims need not be there.
        while have < size or to_skip:
            piece = self._pull()
            if not piece:
                length = self._start - to_skip + have
                raise self._truncated(length) if length >= _BLOCK else self.no_header(0)
            if to_skip:
                skipped = min(to_skip, len(piece))
                to_skip -= skipped
                piece = piece[skipped:]
            pieces.append(piece)
            have += len(piece)
        self.buffer = b"".join(pieces)
        return self.buffer

    def drain(self, at: int) -> None:
        """Read to the end of the stream, past the empty block *at*: all that follows is empty as well.

        What checks the bytes, a checksum say, can do so at the end only. Anything else there would be lost: samples
        behind a damaged header, or of a second archive.
        """
        piece = self.buffer[at:]
        passed = 0
        while piece:
            if piece.count(0) != len(piece):
                raise ShardError(
                    self._shard,
                    f"goes on after the end of its archive, at byte {self._start + at}: it is damaged, or made of "
                    "several; fetch it again, or join archives with tar --concatenate",
                )
            passed += len(piece)
            if passed > _MAX_PADDING:
                raise ShardError(self._shard, "goes on and on after the end of its archive")
            piece = self._pull()

    def _truncated(self, length: int) -> ShardError:
        return ShardError(
            self._shard,
            f"is truncated: it ends after {length} bytes, before the end of its archive; fetch it again, "
            "or write it again and close the writer",
        )

    def damaged(self, at: int, problem: str) -> ShardError:
        return ShardError(self._shard, f"is damaged at byte {self._start + at}: {problem}; fetch it again")

    def no_header(self, at: int) -> ShardError:
        if self._start + at:
            return self.damaged(at, "no tar header is there")
        begin = self.buffer[:100].lstrip()
        for magic, what in _MAGICS.items():
            if begin.startswith(magic):
                return ShardError(self._shard, f"is no tar archive: it looks like {what}")
        return ShardError(self._shard, "is no tar archive; check its address")


_MAGICS: Final = {
    b"<": "a web page; check its address",
    b"{": "JSON; check its address",
    b"version https://git-lfs": "the pointer that Git LFS keeps in its place; run git lfs pull",
    b"PK": "a ZIP archive; write it as a tar archive",
    b"BZh": "one compressed with bzip2; decompress it first, or use gzip",
    b"\xfd7zXZ": "one compressed with xz; decompress it first, or use gzip",
    b"\x28\xb5\x2f\xfd": "one compressed with zstd; decompress it first, or use gzip",
    b"PAR1": "a Parquet file; read it with pyarrow",
    b"\x93NUMPY": "a NumPy file; read it with np.load",
}


class _Rejoined:
    """A stream whose first piece was read already."""

    def __init__(self, first: bytes, rest: Stream) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._rest.read(size)
        end = len(self._first) if size < 0 else size
        data, self._first = self._first[:end], self._first[end:]
        return data
