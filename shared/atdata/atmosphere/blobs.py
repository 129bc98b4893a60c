"""Own a dataset's shards as blobs of an account: packed to fit the server, streamed up from disk, found again.

An upload that was interrupted goes on where it was. What was uploaded is kept in a small file in the cache folder; as
servers forget blobs to which no record refers, the file is believed for a while only.
Specification: https://atproto.com/specs/blob
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import cache
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

from atdata import network
from atdata.atmosphere.client import AtmosphereClient
from atdata.atmosphere.records import Blob
from atdata.atmosphere.uri import AtUri, BlobUri
from atdata.cid import generate_cid, raw_cid
from atdata.errors import ArgumentError, ConfigError, NetworkError, NotFoundError, SampleError, ShardError
from atdata.network import StatusError
from atdata.shards import iter_samples

if TYPE_CHECKING:
    from atdata.dataset import Dataset
    from atdata.sources import BlobSource

__all__ = [
    "TAR",
    "UPLOAD",
    "PDSBlobStore",
    "StoredBlob",
    "blob_url",
    "forget_blobs",
    "hold_blobs",
    "read_blob",
    "release_blobs",
    "stored_blob",
]

T = TypeVar("T")

TAR: Final = "application/x-tar"
# A record of this collection refers to the blobs of a dataset that is not published yet, so that the server serves and
# keeps them. It is no part of the dataset namespace: indexes need not know it.
UPLOAD: Final = "ac.foundation.atdata.upload"
# A record has at most some 150 kB, a reference to a blob 150 bytes.
_BLOBS_IN_UPLOAD: Final = 500

_BLOCK: Final = 512
# Two empty blocks, as POSIX has it. tar on a tape would add more.
_END: Final = bytes(2 * _BLOCK)
# The specification asks servers to keep blobs without a record for an hour at least.
_TRUSTED_SECONDS: Final = 3600.0
_KEPT_SECONDS: Final = 7 * 24 * 3600.0


# --- Packing


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard on disk."""

    path: Path
    name: str
    size: int
    samples: int
    cid: str


@dataclass(slots=True)
class _Limits:
    """How large a shard may become."""

    maxcount: int
    maxsize: float
    refused: float = inf
    """The smallest size that the server refused."""

    @property
    def aim(self) -> float:
        return min(self.maxsize, self.refused / 2)


class _Archive:
    """A shard in the making: a POSIX tar archive without times and owners, so that equal samples make equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self._length = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    @staticmethod
    def length_of(data: bytes) -> int:
        """How much longer *data* makes an archive."""
        return _BLOCK + len(data) + -len(data) % _BLOCK

    def size_with(self, length: int) -> int:
        """The size of the closed archive, were it *length* longer."""
        return self._length + length + len(_END)

    def add(self, key: str, data: bytes) -> None:
        header = tarfile.TarInfo(f"{key}.msgpack")
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % _BLOCK))
        self.samples += 1

    def close(self, name: str) -> _Shard:
        self._write(_END)
        self._file.close()
        return _Shard(self.path, name, self._length, self.samples, raw_cid(self._hash.digest()))

    def abandon(self) -> None:
        self._file.close()

    def _write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._file.write(piece)
            self._hash.update(piece)
            self._length += len(piece)


def _pack(samples: Iterable[tuple[str, str, bytes]], folder: Path, prefix: str, limits: _Limits) -> Iterator[_Shard]:
    """Shards of *samples*, each with the shard and the key that it comes from; one is on disk at a time.

    Raises SampleError for a sample that no shard can hold.
    """
    archive: _Archive | None = None
    number = 0
    try:
        for i, (origin, key, data) in enumerate(samples):
            length = _Archive.length_of(data)
            if archive is not None and (archive.samples >= limits.maxcount or archive.size_with(length) > limits.aim):
                finished, archive = archive, None
                yield finished.close(f"{prefix}-{number:06d}.tar")
                number += 1
            if archive is None:
                archive = _Archive(folder / f"{number:06d}.tar")
                if archive.size_with(length) > limits.maxsize:
                    raise SampleError(
                        f"alone makes a shard of {archive.size_with(length):,} bytes, more than maxsize="
                        f"{limits.maxsize:,.0f}; raise maxsize if the server takes it, or make samples smaller",
                        key=key,
                        shard=origin,
                    )
            # Keys are unique within a shard only, and samples of several may meet in one.
            archive.add(f"{i:09d}", data)
        if archive is not None:
            finished, archive = archive, None
            yield finished.close(f"{prefix}-{number:06d}.tar")
    finally:
        if archive is not None:
            archive.abandon()


def _halves(shard: _Shard) -> list[_Shard]:
    """The samples of *shard* in two shards of about the same size."""
    archives = [_Archive(shard.path.with_suffix(suffix + ".tar")) for suffix in (".a", ".b")]
    stem = shard.name.removesuffix(".tar")
    try:
        with shard.path.open("rb") as stream:
            for i, (key, data) in enumerate(iter_samples(stream, shard.name)):
                is_first = archives[0].size_with(_Archive.length_of(data)) <= shard.size / 2
                archives[0 if i == 0 or (is_first and not archives[1].samples) else 1].add(key, data)
        return [archive.close(f"{stem}{suffix}.tar") for archive, suffix in zip(archives, "ab", strict=True)]
    finally:
        for archive in archives:
            archive.abandon()


def _packed(ds: Dataset[Any]) -> Iterator[tuple[str, str, bytes]]:
    """Each sample of *ds* as its type packs it, with the shard and the key that it comes from."""
    for shard in ds.list_shards():
        stream = ds.source.open_shard(shard)
        try:
            for key, data in iter_samples(stream, shard):
                try:
                    packed = ds.wrap({"__key__": key, "msgpack": data}).packed
                except SampleError as e:
                    raise SampleError(e.problem, e.field, key, shard) from None
                yield shard, key, packed
        finally:
            stream.close()


# --- What was uploaded


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a server has, or had when it was uploaded; `samples` when it is a shard that we packed."""

    blob: Blob
    samples: int | None = None
    uploaded_at: float = 0.0


class _Uploads:
    """What was uploaded to one account within the last days, also by other processes."""

    def __init__(self, did: str) -> None:
        # A DID may be too long for the name of a file.
        name = hashlib.sha256(did.encode()).hexdigest()[:32]
        self._path = _cache_folder() / "uploads" / f"{name}.jsonl"
        self._known: dict[str, StoredBlob] = {}
        with suppress(OSError):
            lines = self._path.read_text("utf-8").splitlines()
            for line in lines:
                self._read(line)
            if len(lines) > 2 * len(self._known) + 100:
                self._rewrite()

    def _read(self, line: str) -> None:
        # Lines of two processes may have run into each other: an entry too few costs an upload, no more.
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            blob = Blob(str(entry["cid"]), int(entry["size"]), str(entry["mimeType"]))
            uploaded = StoredBlob(blob, int(entry["samples"]), float(entry["at"]))
            if 0 <= time.time() - uploaded.uploaded_at < _KEPT_SECONDS:
                self._known[blob.cid] = uploaded
            else:
                self._known.pop(blob.cid, None)

    def find(self, cid: str) -> StoredBlob | None:
        return self._known.get(cid)

    def add(self, uploaded: StoredBlob) -> None:
        self._known[uploaded.blob.cid] = uploaded
        self._append(uploaded)

    def forget(self, cid: str) -> None:
        known = self._known.pop(cid, None)
        if known is not None:
            self._append(StoredBlob(known.blob, known.samples, 0.0))

    def _append(self, uploaded: StoredBlob) -> None:
        blob = uploaded.blob
        entry = {
            "cid": blob.cid,
            "size": blob.size,
            "mimeType": blob.mime_type,
            "samples": uploaded.samples,
            "at": uploaded.uploaded_at,
        }
        # Without the file an interrupted upload begins anew, which is no reason to fail.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _rewrite(self) -> None:
        """Keep what is still of use, so that the file does not grow for ever."""
        known, self._known = self._known, {}
        self._path.unlink()
        for uploaded in known.values():
            self.add(uploaded)


@cache
def _uploads_of(did: str) -> _Uploads:
    return _Uploads(did)


def _cache_folder() -> Path:
    """`ATDATA_CACHE`, else the folder that the XDG Base Directory Specification names."""
    if chosen := os.environ.get("ATDATA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atdata"


def stored_blob(client: AtmosphereClient, uri: BlobUri) -> StoredBlob:
    """What a record has to say of the blob at *uri*, which was uploaded lately or belongs to a record already.

    Raises NotFoundError when the account's server has no such blob.
    """
    known = _uploads_of(uri.did).find(uri.cid)
    if known is not None and _is_fresh(known):
        return known
    served = _served(client, uri)
    if served is None:
        raise NotFoundError(f"{uri}: the server has no such blob, or has forgotten it; upload it again")
    return StoredBlob(served, known.samples if known else None)


def forget_blobs(client: AtmosphereClient, blobs: Iterable[Blob]) -> None:
    """Do not believe any more that *blobs* are uploaded."""
    for blob in blobs:
        _uploads_of(client.did).forget(blob.cid)


def _is_fresh(uploaded: StoredBlob) -> bool:
    return 0 <= time.time() - uploaded.uploaded_at < _TRUSTED_SECONDS


def _served(client: AtmosphereClient, uri: BlobUri) -> Blob | None:
    """The blob at *uri* if a record refers to it; others are not served."""
    try:
        # The body is not read.
        pds, is_trusted = client.server_of(uri.did)
        with network.open_response(_get_blob(pds, uri), trusted=is_trusted) as response:
            size, mime_type = response.headers.get("content-length", ""), response.headers.get("content-type")
    except StatusError as e:
        if e.status in (400, 404):
            return None
        raise
    return Blob(uri.cid, int(size), mime_type or TAR) if size.isascii() and size.isdigit() else None


def blob_url(client: AtmosphereClient, uri: BlobUri) -> str:
    """Where anybody can read the blob at *uri*.

    https://docs.bsky.app/docs/api/com-atproto-sync-get-blob
    """
    return _get_blob(client.pds_of(uri.did), uri)


def _get_blob(pds: str, uri: BlobUri) -> str:
    return f"{pds}/xrpc/com.atproto.sync.getBlob?{urlencode({'did': uri.did, 'cid': uri.cid})}"


def hold_blobs(client: AtmosphereClient, prefix: str, blobs: Sequence[Blob]) -> None:
    """Have the server serve and keep *blobs*, of which no dataset record speaks yet."""
    for some in _batches(blobs):
        record = {"prefix": prefix, "blobs": [blob.to_record() for blob in some]}
        client.put_record(UPLOAD, _upload_key(some), record)


def release_blobs(client: AtmosphereClient, blobs: Sequence[Blob]) -> None:
    """Take back `hold_blobs` for these blobs; nothing happens where they are not held."""
    # What they are published for is done; a record too many harms nobody.
    with suppress(NetworkError):
        for some in _batches(blobs):
            client.delete_record(AtUri(client.did, UPLOAD, _upload_key(some)))


def _batches(blobs: Sequence[Blob]) -> Iterator[Sequence[Blob]]:
    return (blobs[at : at + _BLOBS_IN_UPLOAD] for at in range(0, len(blobs), _BLOBS_IN_UPLOAD))


def _upload_key(blobs: Sequence[Blob]) -> str:
    # Made of the content, so that it is found again by whoever publishes the blobs.
    return generate_cid([blob.cid for blob in blobs])


# --- The store


class PDSBlobStore:
    """Keeps shards as blobs of the account that *client* is logged in to.

    >>> store = PDSBlobStore(client)
    >>> urls = store.write_shards(dataset, prefix="digits/v1")
    >>> dataset = atdata.Dataset[Digit](store.create_source(urls))

    A server serves and keeps a blob while a record refers to it. Until a dataset is published, that is a small record
    of the collection `ac.foundation.atdata.upload`, which goes when `DatasetPublisher` writes the dataset's.
    """

    def __init__(self, client: AtmosphereClient) -> None:
        self.client = client

    def write_shards(
        self, ds: Dataset[Any], *, prefix: str, maxcount: int = 10_000, maxsize: float = 50e6
    ) -> list[str]:
        """Upload the samples of *ds* in shards of at most *maxcount* samples and *maxsize* bytes; the blobs' AT URIs.

        >>> store.write_shards(dataset, prefix="digits/v1", maxsize=20e6)
        ['at://did:plc:…/blob/bafkrei…', …]

        *prefix* names the shards in messages. Shards that an interrupted run has uploaded are not uploaded again. When
        the server takes less than *maxsize*, shards are halved, with a warning. `ATDATA_NO_PROGRESS=1` hides the
        progress bar. Raises SampleError for a sample that alone is too large, LoginError before login, ShardError when
        the dataset cannot be read, RateLimitError and NetworkError.
        """

        def hold(stored: Sequence[StoredBlob]) -> list[str]:
            hold_blobs(self.client, prefix, [one.blob for one in stored])
            return [str(BlobUri(self.client.did, one.blob.cid)) for one in stored]

        return self.store(ds, hold, prefix=prefix, maxcount=maxcount, maxsize=maxsize)

    def store(
        self,
        ds: Dataset[Any],
        refer: Callable[[Sequence[StoredBlob]], T],
        *,
        prefix: str,
        maxcount: int = 10_000,
        maxsize: float = 50e6,
    ) -> T:
        """As `write_shards`, and what *refer* returns, which writes the record that refers to the blobs.

        When the server refuses it because a blob is gone (uploading took long, or the dataset of an earlier run was
        deleted), nothing is believed of earlier runs any more, and the shards are uploaded once more.
        """
        stored = self._upload_all(ds, prefix, maxcount, maxsize)
        try:
            return refer(stored)
        except StatusError as e:
            if e.error != "BlobNotFound":
                raise
        forget_blobs(self.client, [one.blob for one in stored])
        return refer(self._upload_all(ds, prefix, maxcount, maxsize))

    def _upload_all(self, ds: Dataset[Any], prefix: str, maxcount: int, maxsize: float) -> list[StoredBlob]:
        """The blobs of *ds*, which are not served yet, nor kept for long."""
        self.client.pds_of()  # raises before anything is packed
        for name, value in (("maxcount", maxcount), ("maxsize", maxsize)):
            if not isinstance(value, int | float):
                raise ArgumentError(f"{name} is a number, not {value!r}; write maxsize=50e6 for 50 MB")
        if maxcount < 1:
            raise ValueError(f"a shard holds at least 1 sample, not {maxcount}")
        limits = _Limits(maxcount, maxsize)
        uploaded: list[StoredBlob] = []
        try:
            with TemporaryDirectory(prefix="atdata-") as folder, _progress(prefix) as advance:
                for shard in _pack(_packed(ds), Path(folder), prefix, limits):
                    uploaded += self._put(shard, limits, advance)
        except OSError as e:
            if e.errno not in (ENOSPC, EDQUOT):
                raise
            raise ConfigError(
                f"no space is left in {gettempdir()}, where each shard is packed before it is uploaded; set TMPDIR to "
                f"a folder with room for {2 * maxsize:,.0f} bytes, or lower maxsize"
            ) from e
        if not uploaded:
            raise ShardError(prefix, "the dataset has no samples; there is nothing to publish")
        return uploaded

    def _put(self, shard: _Shard, limits: _Limits, advance: Callable[[int], object]) -> Iterator[StoredBlob]:
        """Upload *shard*, in parts if need be, and remove it from the disk."""
        waiting = [shard]
        while waiting:
            shard = waiting.pop(0)
            stored = self._find(shard, advance)
            # What is larger than something that was refused need not be tried.
            if stored is None and shard.size < limits.refused:
                stored = self._upload(shard, limits, advance)
            if stored is not None:
                yield stored
            elif shard.samples == 1:
                raise ShardError(
                    shard.name,
                    f"with one sample has {shard.size:,} bytes, and {self.client.pds_of()} refuses {limits.refused:,}; "
                    "make samples smaller, or keep the shards elsewhere",
                )
            else:
                waiting[:0] = _halves(shard)
            shard.path.unlink()

    def _find(self, shard: _Shard, advance: Callable[[int], object]) -> StoredBlob | None:
        """The blob of an earlier upload, if it is still there."""
        uploads = _uploads_of(self.client.did)
        known = uploads.find(shard.cid)
        if known is None:
            return None
        if not _is_fresh(known) and _served(self.client, BlobUri(self.client.did, shard.cid)) is None:
            uploads.forget(shard.cid)
            return None
        advance(shard.size)
        return known

    def _upload(self, shard: _Shard, limits: _Limits, advance: Callable[[int], object]) -> StoredBlob | None:
        """The blob that *shard* has become; None when it is too large for the server."""
        try:
            answer = self.client.upload_blob(shard.path, TAR, progress=advance)
        except StatusError as e:
            if e.status != 413 and e.error != "BlobTooLarge":
                raise
            limits.refused = shard.size
            warnings.warn(
                f"{shard.name}: {self.client.pds_of()} refuses {shard.size:,} bytes; halved, and from now on shards "
                f"have at most {limits.aim:,.0f}: give maxsize to know beforehand",
                stacklevel=6,
            )
            return None
        stored = StoredBlob(read_blob(answer), shard.samples, time.time())
        if (stored.blob.cid, stored.blob.size) != (shard.cid, shard.size):
            raise ShardError(
                shard.name,
                f"the server has got other bytes than were sent: {stored.blob.size} with CID {stored.blob.cid}, "
                f"not {shard.size} with CID {shard.cid}; try again",
            )
        _uploads_of(self.client.did).add(stored)
        return stored

    def read_url(self, url: str) -> str:
        """Where anybody can read the blob at *url*, an AT URI as `write_shards` gives them.

        >>> store.read_url("at://did:plc:abc/blob/bafkrei…")
        'https://pds.example.com/xrpc/com.atproto.sync.getBlob?did=did%3Aplc%3Aabc&cid=bafkrei…'

        Raises UriError, a ValueError, for what names no blob, and NetworkError when the account's server is not known.
        """
        return blob_url(self.client, _blob_uri(url))

    def create_source(self, urls: Iterable[str]) -> BlobSource:
        """A data source of the blobs at *urls*, AT URIs or what `read_url` makes of them.

        >>> atdata.Dataset[Digit](store.create_source(entry.data_urls))

        Raises UriError, a ValueError, for what names no blob.
        """
        uris = [_blob_uri(url) for url in ([urls] if isinstance(urls, str) else urls)]
        return self.client.blob_source([{"did": uri.did, "cid": uri.cid} for uri in uris])

    def supports_streaming(self) -> bool:
        """True: blobs are read while they arrive."""
        return True

    def __repr__(self) -> str:
        return f"PDSBlobStore({self.client!r})"


def read_blob(answer: Mapping[str, Any]) -> Blob:
    """The blob that a server speaks of. Raises NetworkError when it is none."""
    try:
        return Blob(str(answer["ref"]["$link"]), int(answer["size"]), str(answer["mimeType"]))
    except (KeyError, TypeError, ValueError):
        raise NetworkError(f"the server answers to an upload with {str(answer)[:200]}, which is no blob") from None


def _blob_uri(url: str) -> BlobUri:
    if url.startswith(("http://", "https://")) and urlsplit(url).path.endswith("/xrpc/com.atproto.sync.getBlob"):
        query = parse_qs(urlsplit(url).query)
        url = f"at://{query.get('did', [''])[0]}/blob/{query.get('cid', [''])[0]}"
    return BlobUri.parse(url)


@contextmanager
def _progress(prefix: str) -> Iterator[Callable[[int], object]]:
    """A bar of the bytes that were uploaded, unless `ATDATA_NO_PROGRESS` is set to something else than "" and 0."""
    from tqdm import tqdm

    is_hidden = os.environ.get("ATDATA_NO_PROGRESS", "0") not in ("", "0")
    with tqdm(desc=prefix, unit="B", unit_scale=True, disable=is_hidden) as bar:
        yield bar.update
