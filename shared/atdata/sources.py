"""Own where shards are: what a URL may be, how brace notation unfolds, and how each kind of place is opened.

No URL ever reaches a library that could run it: schemes are allow-listed, after braces are expanded. What a stranger
chose is asked for over checked connections only, and never with our keys: not by boto3 or gcsfs, which connect
themselves, and find keys and services in the environment.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, unquote, urlsplit

from braceexpand import braceexpand

from atdata import syntax
from atdata.atmosphere.records import Checksum
from atdata.atmosphere.uri import BlobUri
from atdata.cid import raw_cid, sha256_in
from atdata.errors import (
    MissingExtraError,
    MissingShardError,
    NetworkError,
    ShardError,
    SourceError,
    UnknownShardError,
    how_to_install,
    redacted,
)
from atdata.protocols import DataSource, Stream

if TYPE_CHECKING:
    import httpx

__all__ = [
    "BlobSource",
    "PublicS3Source",
    "S3Source",
    "Subset",
    "URLSource",
    "expand",
    "in_braces",
    "literal",
    "open_url",
    "scheme_of",
]

SCHEMES: Final = frozenset({"", "at", "file", "gs", "http", "https", "s3"})
"""What URLs may begin with; "" stands for a path."""

_MAX_SHARDS: Final = 100_000
# As many URLs of some three hundred letters.
_MAX_LENGTH: Final = 32 << 20
_MAX_DEPTH: Final = 20
# Two letters or more: `C:` is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_BUFFER: Final = 1 << 18


# --- URLs


def scheme_of(url: str) -> str:
    """The scheme of *url*, "" for a path. Raises SourceError, a ValueError, for one that is not opened.

    >>> scheme_of("data/0.tar"), scheme_of("https://example.com/0.tar")
    ('', 'https')
    """
    if not url or "\0" in url:
        raise SourceError(f"{url[:100]!r} is no address of a shard")
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if scheme not in SCHEMES:
        hint = f"; for a file of this name write ./{_shown(url)}" if match and "://" not in url else ""
        raise SourceError(
            f"{_shown(url)}: {scheme}: is not opened; use a path, or a file:, http:, https:, s3:, gs: or at: URL{hint}"
        )
    return scheme


def _shown(url: str) -> str:
    """*url* fit for a message: without a password, also where it is cut."""
    return redacted(url)[:200]


def expand(*patterns: str, at_most: int = _MAX_SHARDS) -> list[str]:
    """The URLs that *patterns* stand for in brace notation, each checked.

    >>> expand("digits-{08..10}.tar")
    ['digits-08.tar', 'digits-09.tar', 'digits-10.tar']

    A backslash before a brace or a comma takes it as it is. Raises SourceError, a ValueError, for braces without a
    partner, for more shards than *at_most*, 100,000 as a rule, for more than 32 MiB of URLs, and for schemes that are
    not opened.
    """
    # braceexpand would make them all, or worse, before anyone could count.
    total = _Extent(0, 0)
    for pattern in patterns:
        total += _extent(pattern) if _has_braces(pattern) else _Extent(1, 0)
        if total.count > at_most:
            raise SourceError(f"{_shown(pattern)}: stands for more than {at_most:,} shards")
        if total.length > _MAX_LENGTH:
            raise SourceError(f"{_shown(pattern)}: stands for more than {_MAX_LENGTH >> 20} MiB of URLs")
    expanded: list[str] = []
    for pattern in patterns:
        expanded += braceexpand(pattern) if _has_braces(pattern) else [pattern]
    for one in expanded:
        scheme_of(one)
    return expanded


def _has_braces(pattern: str) -> bool:
    return "{" in pattern or "}" in pattern


def literal(name: str) -> str:
    """*name* such that brace notation takes it as it is.

    >>> expand(literal("odd{1,2}.tar"))
    ['odd{1,2}.tar']
    """
    return re.sub(r"([\\{},])", r"\\\1", name) if _has_braces(name) else name


def in_braces(urls: Sequence[str]) -> str:
    """One URL in brace notation for several.

    >>> in_braces(["train-{0..9}.tar", "test.tar"])
    '{train-{0..9}.tar,test.tar}'
    """
    if len(urls) < 2:
        return "".join(urls)
    # braceexpand takes backslashes away twice inside of braces.
    plain = (url if "{" in url else url.replace("\\", "\\" * 4).replace(",", "\\,") for url in urls)
    return "{" + ",".join(plain) + "}"


_TOKEN = re.compile(r"\\.?|[{},]|[^\\{},]+", re.DOTALL)
# As braceexpand has them, to which a line break at the end is no difference.
_NUMBERS = re.compile(r"^(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_LETTERS = re.compile(r"^[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?$")


@dataclass(frozen=True, slots=True)
class _Extent:
    """How many strings a piece of a pattern stands for, and how long they are together."""

    count: int
    length: int

    def __add__(self, other: _Extent) -> _Extent:
        return _Extent(self.count + other.count, self.length + other.length)

    def __mul__(self, other: _Extent) -> _Extent:
        return _Extent(self.count * other.count, self.length * other.count + other.length * self.count)


@dataclass(slots=True)
class _Level:
    """What stands within one open brace, so far."""

    start: int
    before: _Extent = _Extent(0, 0)
    """The alternatives up to the last comma."""
    since: _Extent = _Extent(1, 0)


def _extent(pattern: str) -> _Extent:
    """The extent of *pattern*, never less than what braceexpand makes of it."""
    levels = [_Level(0)]
    for token in _TOKEN.finditer(pattern):
        level = levels[-1]
        match token[0]:
            case "{":
                if len(levels) > _MAX_DEPTH:
                    raise SourceError(f"{_shown(pattern)}: has braces more than {_MAX_DEPTH} deep")
                levels.append(_Level(token.end()))
            case "}":
                levels.pop()
                if not levels:
                    break
                piece = _range_extent(pattern[level.start : token.start()]) or level.before + level.since
                # Where they stand for nothing, the braces stay.
                levels[-1].since *= _Extent(1, 2) * piece
                if levels[-1].since.count > _MAX_SHARDS or levels[-1].since.length > _MAX_LENGTH:
                    return levels[-1].since
            case "," if len(levels) > 1:
                level.before += level.since
                level.since = _Extent(1, 0)
            case text:
                level.since *= _Extent(1, len(text))
    if len(levels) != 1:
        raise SourceError(f"{_shown(pattern)}: a brace has no partner; write \\{{ or \\}} for one in a name")
    return levels[0].since


def _range_extent(expression: str) -> _Extent | None:
    """The extent of `{0..99}` or `{a..z}`; None for what is neither."""
    if span := _NUMBERS.match(expression):
        # A number too long to count with is too many, too.
        if len(expression) > 60:
            return _Extent(_MAX_SHARDS + 1, 0)
        count = abs(int(span[2]) - int(span[1])) // max(1, int(span[3] or 1)) + 1
        return _Extent(count, count * max(len(span[1]), len(span[2])))
    return _Extent(52, 52) if _LETTERS.match(expression) else None


def open_url(url: str, *, trusted: bool = True, allow_private: bool = False) -> Stream:
    """The bytes at *url*, one URL without braces.

    A path or `file:` is opened; `http(s):`, `s3:`, `gs:` and `at://{did}/blob/{cid}` are streamed. Without *trusted*,
    objects of S3 and Google Storage are asked for without our keys, and files and hosts of private networks are refused
    unless *allow_private*. Raises SourceError for other schemes, MissingShardError when nothing is there, and
    ShardError, all naming the URL.
    """
    match scheme_of(url):
        case "" | "file" if not (trusted or allow_private):
            raise SourceError(f"{_shown(url)}: is a file of this machine, which no stranger chooses")
        case "":
            return _open_file(url, url)
        case "file":
            host, path = _host_and_path(url)
            if host not in ("", "localhost"):
                raise SourceError(f"{_shown(url)}: names another host; use file:///path")
            return _open_file(unquote(path), url)
        case "s3" if trusted:
            bucket, key = _bucket_and_key(url)
            return S3Source(bucket, [key]).open_shard(url)
        case "s3":
            bucket, key = _bucket_and_key(url)
            return PublicS3Source(bucket, [key], allow_private=allow_private).open_shard(url)
        case "gs" if trusted:
            return _open_gs(url)
        case "gs":
            bucket, key = _bucket_and_key(url, "gs")
            return _open_http(_public_url(_public_folder(bucket, _GOOGLE, None), key), url, trusted=allow_private)
        case "at":
            uri = BlobUri.parse(url)
            return BlobSource([{"did": uri.did, "cid": uri.cid}]).open_shard(url)
        case _:
            return _open_http(url, url, trusted=trusted or allow_private)


def _host_and_path(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise SourceError(f"{_shown(url)}: is no URL: {e}") from None
    return parts.netloc, parts.path


def _open_file(path: str, url: str) -> Stream:
    try:
        return Path(path).open("rb", buffering=_BUFFER)
    except FileNotFoundError:
        raise MissingShardError(url, f"there is no such file; the current folder is {Path.cwd()}") from None
    except IsADirectoryError:
        raise ShardError(url, "is a folder; atdata.load_dataset reads the shards in it") from None
    except (OSError, ValueError) as e:
        raise ShardError(url, f"cannot be opened: {e}") from e


def _open_gs(url: str) -> Stream:
    try:
        gcsfs = import_module("gcsfs")
    except ImportError:
        raise MissingExtraError(f"{url}: gs: URLs need the package gcsfs: pip install gcsfs") from None
    try:
        stream: Stream = gcsfs.GCSFileSystem().open(url, "rb")
    except FileNotFoundError:
        raise MissingShardError(url, "there is no such object") from None
    except Exception as e:  # a foreign library's errors have no common base
        raise ShardError(url, f"cannot be opened: {e}") from e
    return stream


def _open_http(url: str, shard: str, *, trusted: bool, params: Mapping[str, str] | None = None) -> Stream:
    from atdata import network  # not before it is needed: httpx costs more than the rest of this module

    try:
        context = network.open_response(url, trusted=trusted, params=params)
        return io.BufferedReader(_HttpBody(context, shard), _BUFFER)
    except network.StatusError as e:
        if e.status in (404, 410):
            raise MissingShardError(shard, f"there is nothing: {e}") from e
        raise ShardError(shard, f"cannot be opened: {e}") from e
    except NetworkError as e:
        raise ShardError(shard, f"cannot be opened: {e}") from e


class _HttpBody(io.RawIOBase):
    """The body of a response as a file."""

    def __init__(self, context: Any, shard: str) -> None:
        self._context = context
        self._shard = shard
        self._response: httpx.Response = context.__enter__()
        self._pieces = self._response.iter_raw()
        self._rest = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import httpx

        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except httpx.HTTPError as e:
                problem = f"broke off after {self._position} bytes: {str(e) or type(e).__name__}; try again"
                raise ShardError(self._shard, problem) from e
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self._position += size
        return size

    def close(self) -> None:
        if not self.closed:
            self._context.__exit__(None, None, None)
        super().close()


# --- Checksums


class _Verified(io.RawIOBase):
    """A stream whose last byte comes with the certainty that all were the right ones."""

    def __init__(
        self, stream: Stream, shard: str, algorithm: str, expected: str, spell: Callable[[bytes], str]
    ) -> None:
        self._stream = stream
        self._shard = shard
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._expected = expected
        self._spell = spell

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        if not data:
            actual = self._spell(self._hash.digest())
            if actual != self._expected:
                raise ShardError(
                    self._shard, f"its bytes are not the right ones: expected {self._expected}, got {actual}"
                )
            return 0
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _verified(stream: Stream, shard: str, checksum: Checksum | None) -> Stream:
    """*stream*, which fails at its end with a ShardError if its bytes do not match *checksum*."""
    if checksum is None:
        return stream
    algorithm = checksum.algorithm.lower().replace("-", "")
    # Those that hash to any length, or that are broken so far that they assure nothing, are not checks.
    if algorithm not in _ALGORITHMS:
        stream.close()
        raise ShardError(
            shard, f"its checksum is {checksum.algorithm[:50]!r}, of which we know {', '.join(sorted(_ALGORITHMS))}"
        )
    expected = checksum.digest.lower().removeprefix(f"{algorithm}:")
    return io.BufferedReader(_Verified(stream, shard, algorithm, expected, bytes.hex), _BUFFER)


_ALGORITHMS: Final = frozenset({"md5", "sha1", "sha256", "sha384", "sha512", "blake2b", "blake2s"})


# --- Sources


class _Source:
    """What the sources have in common: an ordered table of shards. A shard may be listed more than once."""

    locates_shards = True
    """Whether the ids alone say where the shards are, to anybody."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = tuple(ids)
        self._known = frozenset(self._ids)

    def list_shards(self) -> list[str]:
        """The ids of the shards, in order."""
        return list(self._ids)

    @property
    def shards(self) -> Iterator[tuple[str, Stream]]:
        """Each shard's id and its bytes. A stream is closed when the next one is asked for."""
        for shard_id in self._ids:
            stream = self._open(shard_id)
            try:
                yield shard_id, stream
            finally:
                stream.close()

    def open_shard(self, shard_id: str) -> Stream:
        """The bytes of one shard. Raises UnknownShardError, a KeyError, for an id that is not listed."""
        if shard_id not in self._known:
            known = ", ".join(self._ids[:3]) + (", …" if len(self._ids) > 3 else "")
            raise UnknownShardError(shard_id, f"is no shard of this source, which has {known or 'none'}")
        return self._open(shard_id)

    def _open(self, shard_id: str) -> Stream:
        raise NotImplementedError


class URLSource(_Source):
    """Shards at paths and URLs, in brace notation or not.

    >>> URLSource("digits-{000..009}.tar").list_shards()[-1]
    'digits-009.tar'

    Several URLs may be given as a list. *checksums*, by URL, are verified while the shards are read. *trusted* is False
    for URLs that a stranger chose: then our keys are not used, and files and hosts of private networks are refused
    unless *allow_private*. Raises SourceError, a ValueError, for URLs that are not opened; none is before a shard is
    read.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Iterable[str],
        *,
        checksums: Mapping[str, Checksum] | None = None,
        trusted: bool = True,
        allow_private: bool = False,
    ) -> None:
        if isinstance(url, os.PathLike):
            url = os.fspath(url)
        urls = [url] if isinstance(url, str) else list(url)
        super().__init__(expand(*urls))
        self._url = in_braces(urls)
        self._checksums = dict(checksums or {})
        self._trusted = trusted
        self._allow_private = allow_private

    @property
    def url(self) -> str:
        """The URL as it was given; several as alternatives in braces."""
        return self._url

    def _open(self, shard_id: str) -> Stream:
        stream = open_url(shard_id, trusted=self._trusted, allow_private=self._allow_private)
        return _verified(stream, shard_id, self._checksums.get(shard_id))

    def __repr__(self) -> str:
        return f"URLSource({redacted(self._url)!r})"


class S3Source(_Source):
    """Shards in a bucket of S3, or of a service that speaks its protocol at *endpoint*.

    >>> S3Source("my-bucket", ["train/0.tar"], endpoint="https://minio.example.com").list_shards()
    ['s3://my-bucket/train/0.tar']

    Without keys, boto3 finds them as it always does: in the environment, in `~/.aws`, at the machine's role. Needs the
    extra `s3`. *checksums*, by id, are verified while the shards are read. Raises SourceError, a ValueError, for an
    endpoint that is no URL of a host.
    """

    def __init__(
        self,
        bucket: str,
        keys: Iterable[str],
        endpoint: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        region: str | None = None,
        *,
        checksums: Mapping[str, Checksum] | None = None,
    ) -> None:
        super().__init__(_s3_ids(bucket, keys))
        self.locates_shards = endpoint is None
        self._bucket = bucket
        self._endpoint = None if endpoint is None else _checked_endpoint(endpoint)
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._checksums = dict(checksums or {})
        self._client: Any = None

    @classmethod
    def from_urls(cls, urls: Iterable[str], **options: Any) -> Self:
        """The shards at `s3://bucket/key` URLs, all in one bucket; *options* are those of the class.

        >>> S3Source.from_urls(["s3://my-bucket/0.tar", "s3://my-bucket/1.tar"])
        S3Source('my-bucket', 2 shards)
        """
        pairs = [_bucket_and_key(one) for one in expand(*urls)]
        buckets = sorted({bucket for bucket, _ in pairs})
        if len(buckets) != 1:
            raise SourceError(f"an S3Source has one bucket, found {', '.join(buckets) or 'no URL'}; make one for each")
        return cls(buckets[0], [key for _, key in pairs], **options)

    @classmethod
    def from_credentials(cls, credentials: Mapping[str, str], bucket: str, keys: Iterable[str]) -> Self:
        """The shards of a bucket, with *credentials* as files for S3 name them.

        >>> S3Source.from_credentials({"AWS_ACCESS_KEY_ID": "…", "AWS_SECRET_ACCESS_KEY": "…",
        ...                            "AWS_ENDPOINT": "https://minio.example.com"}, "my-bucket", ["0.tar"])
        S3Source('my-bucket', 1 shard)

        `AWS_ENDPOINT_URL` and `AWS_REGION` or `AWS_DEFAULT_REGION` are known as well, and the arguments' own names.
        """
        named = {name.upper().removeprefix("AWS_"): value for name, value in credentials.items()}
        return cls(
            bucket,
            keys,
            endpoint=named.get("ENDPOINT") or named.get("ENDPOINT_URL"),
            access_key=named.get("ACCESS_KEY_ID") or named.get("ACCESS_KEY"),
            secret_key=named.get("SECRET_ACCESS_KEY") or named.get("SECRET_KEY"),
            region=named.get("REGION") or named.get("DEFAULT_REGION"),
        )

    def list_keys(self, prefix: str) -> list[str]:
        """The keys in the bucket that begin with *prefix*. Raises ShardError when they cannot be listed."""
        client = self._connected(f"s3://{self._bucket}/{prefix}")
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [found["Key"] for page in pages for found in page.get("Contents", [])]
        except (BotoCoreError, ClientError) as e:
            raise ShardError(f"s3://{self._bucket}/{prefix}", f"cannot be listed: {e}; check bucket and keys") from e

    def _open(self, shard_id: str) -> Stream:
        client = self._connected(shard_id)
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            body = client.get_object(Bucket=self._bucket, Key=_bucket_and_key(shard_id)[1])["Body"]
        except ClientError as e:
            code = e.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "NoSuchBucket", "404"):
                raise MissingShardError(shard_id, f"there is nothing: {e}") from e
            raise ShardError(shard_id, f"cannot be opened: {e}; check the keys and the region") from e
        except BotoCoreError as e:
            raise ShardError(shard_id, f"cannot be opened: {e}") from e
        stream = io.BufferedReader(_S3Body(body, shard_id), _BUFFER)
        return _verified(stream, shard_id, self._checksums.get(shard_id))

    def _connected(self, shard: str) -> Any:
        if self._client is None:
            try:
                import boto3
                from botocore.exceptions import BotoCoreError
            except ImportError:
                raise MissingExtraError(f"S3 needs boto3: {how_to_install('s3')}") from None
            try:
                self._client = self._connect(boto3.session.Session())
            # ValueError: an endpoint that boto3 does not take.
            except (BotoCoreError, ValueError) as e:
                raise ShardError(shard, f"cannot be opened: {e}") from e
        return self._client

    def _connect(self, session: Any) -> Any:
        from botocore.config import Config

        return session.client(
            "s3",
            endpoint_url=self._endpoint,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            region_name=self._region,
            config=Config(
                retries={"mode": "standard", "max_attempts": 4},
                connect_timeout=10,
                read_timeout=60,
                # Services other than S3 have the bucket in the path.
                s3={"addressing_style": "path"} if self._endpoint else None,
            ),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}  # connections do not travel to other processes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bucket!r}, {_counted(self._ids)})"


class _S3Body(io.RawIOBase):
    def __init__(self, body: Any, shard: str) -> None:
        self._body = body
        self._shard = shard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from botocore.exceptions import BotoCoreError

        try:
            data: bytes = self._body.read(len(buffer))
        except (BotoCoreError, OSError) as e:
            raise ShardError(self._shard, f"broke off: {e}; try again") from e
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


class PublicS3Source(_Source):
    """Objects of S3 that anybody may read, as a stranger's record names them: asked for over HTTP, without keys.

    >>> PublicS3Source("their-bucket", ["train/0.tar"], region="eu-west-1").list_shards()
    ['s3://their-bucket/train/0.tar']

    Hosts of private networks are refused unless *allow_private*. Raises SourceError, a ValueError, for what is no
    bucket, key, endpoint or region.
    """

    def __init__(
        self,
        bucket: str,
        keys: Iterable[str],
        endpoint: str | None = None,
        region: str | None = None,
        *,
        checksums: Mapping[str, Checksum] | None = None,
        allow_private: bool = False,
    ) -> None:
        super().__init__(_s3_ids(bucket, keys))
        self.locates_shards = endpoint is None
        folder = _public_folder(bucket, endpoint, region)
        self.urls = {shard_id: _public_url(folder, _bucket_and_key(shard_id)[1]) for shard_id in self._ids}
        """Where anybody reads each shard, by its id."""
        self._checksums = dict(checksums or {})
        self._allow_private = allow_private

    def _open(self, shard_id: str) -> Stream:
        stream = _open_http(self.urls[shard_id], shard_id, trusted=self._allow_private)
        return _verified(stream, shard_id, self._checksums.get(shard_id))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._ids[0] if self._ids else ''!r}, {_counted(self._ids)})"


# A host, a port and a folder: nothing that two libraries could read differently.
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?")
_BUCKET = re.compile(r"[a-z0-9._-]{3,63}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_GOOGLE: Final = "https://storage.googleapis.com"


def _checked_endpoint(endpoint: str) -> str:
    if not _ENDPOINT.fullmatch(endpoint):
        raise SourceError(f"{_shown(endpoint)!r}: an S3 endpoint is an http:// or https:// URL of a host")
    return endpoint.rstrip("/")


def _public_folder(bucket: str, endpoint: str | None, region: str | None) -> str:
    """Below which URL anybody reads a bucket: https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html"""
    if not _BUCKET.fullmatch(bucket):
        raise SourceError(f"{bucket[:80]!r} is no bucket that is read without keys: 3 to 63 of a-z 0-9 . _ -")
    if region is not None and not _REGION.fullmatch(region):
        raise SourceError(f"{region[:50]!r} is no region of S3")
    if endpoint is not None:
        return f"{_checked_endpoint(endpoint)}/{bucket}"
    host = f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com"
    # A certificate is for one label. By their own hosts buckets are found without their region.
    is_label = "." not in bucket and "_" not in bucket
    return f"https://{bucket}.{host}" if is_label else f"https://{host}/{bucket}"


def _public_url(folder: str, key: str) -> str:
    # In a URL they lead elsewhere: to another object, or bucket.
    if {".", ".."} & set(key.split("/")):
        raise SourceError(f"{_shown(folder)}/{key[:100]}: a key with . or .. is not read without keys")
    return f"{folder}/{quote(key, errors='surrogatepass')}"


def _s3_ids(bucket: str, keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str):
        raise SourceError("the keys of a source in S3 are a list of keys, not one")
    return [f"s3://{bucket}/{key}" for key in keys]


def _bucket_and_key(url: str, scheme: str = "s3") -> tuple[str, str]:
    bucket, _, key = url.removeprefix(f"{scheme}://").partition("/")
    if not url.startswith(f"{scheme}://") or not bucket or not key:
        raise SourceError(f"{_shown(url)}: expected {scheme}://bucket/key")
    return bucket, key


class BlobSource(_Source):
    """Shards that are blobs on AT Protocol servers (PDS), each named by its account's DID and its CID.

    >>> BlobSource([{"did": "did:plc:z72i7hdynmk6r22z27h6tvur", "cid": "bafkrei…"}]).list_shards()
    ['at://did:plc:z72i7hdynmk6r22z27h6tvur/blob/bafkrei…']

    The server is *pds_endpoint*, else the one that the account's DID document names, found in the directory *plc_url*
    (`ATDATA_PLC_URL`, else the public one). Bytes that do not hash to their CID end in a ShardError.
    Specification: https://atproto.com/specs/blob
    """

    def __init__(
        self,
        blob_refs: Iterable[Mapping[str, str]],
        pds_endpoint: str | None = None,
        *,
        plc_url: str | None = None,
    ) -> None:
        blobs: list[BlobUri] = []
        for ref in blob_refs:
            try:
                uri = BlobUri(ref["did"], ref["cid"])
            except (KeyError, TypeError):
                raise SourceError(f'a blob is {{"did": …, "cid": …}}, found {str(ref)[:200]}') from None
            if not syntax.is_did(uri.did):
                raise SourceError(f"{uri.did[:100]!r} is not a DID")
            blobs.append(uri)
        super().__init__(map(str, blobs))
        self._blobs = dict(zip(self._ids, blobs, strict=True))
        self._pds_endpoint = pds_endpoint.rstrip("/") if pds_endpoint else None
        self._plc_url = plc_url
        self._resolver: Any = None

    @classmethod
    def from_refs(
        cls, refs: Iterable[Mapping[str, str]], pds_endpoint: str | None = None, *, plc_url: str | None = None
    ) -> Self:
        """The blobs that *refs* name, as `{"did": …, "cid": …}`; the other arguments are those of the class."""
        return cls(refs, pds_endpoint, plc_url=plc_url)

    def _open(self, shard_id: str) -> Stream:
        from atdata import network

        uri = self._blobs[shard_id]
        try:
            digest = sha256_in(uri.cid)
        except ValueError as e:
            raise ShardError(shard_id, str(e)) from None
        try:
            if self._pds_endpoint is not None:
                pds, trusted = self._pds_endpoint, True
            else:
                self._resolver = self._resolver or network.DidResolver(self._plc_url)
                pds, trusted = self._resolver.pds(uri.did), self._resolver.trusts_private_hosts
        except NetworkError as e:
            raise ShardError(shard_id, f"its server is not known: {e}") from e
        # https://docs.bsky.app/docs/api/com-atproto-sync-get-blob
        stream = _open_http(
            f"{pds}/xrpc/com.atproto.sync.getBlob", shard_id, trusted=trusted, params={"did": uri.did, "cid": uri.cid}
        )
        return io.BufferedReader(_Verified(stream, shard_id, "sha256", raw_cid(digest), raw_cid), _BUFFER)

    def __repr__(self) -> str:
        return f"BlobSource({_counted(self._ids)})"


class Subset(_Source):
    """Some shards of another source: one split of a dataset.

    >>> Subset(source, ["train-0.tar"]).list_shards()
    ['train-0.tar']
    """

    def __init__(self, source: DataSource, ids: Iterable[str]) -> None:
        self._source = source
        super().__init__(ids)
        self.locates_shards = getattr(source, "locates_shards", True)

    def _open(self, shard_id: str) -> Stream:
        return self._source.open_shard(shard_id)

    def __repr__(self) -> str:
        return f"Subset({self._source!r}, {_counted(self._ids)})"


def _counted(ids: Sequence[str]) -> str:
    return "1 shard" if len(ids) == 1 else f"{len(ids)} shards"
