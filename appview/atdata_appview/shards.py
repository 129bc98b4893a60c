"""Where the shards of a dataset are: from its record to URLs. Pure.

Strangers chose these URLs. Nothing is opened here, and what no reader of the network is to open is not given out.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final
from unicodedata import normalize
from urllib.parse import urlencode, urlsplit

from atdata.atmosphere.records import Checksum, Storage, StorageBlobs, StorageExternal, StorageHttp, StorageS3
from atdata.atmosphere.uri import BlobUri
from atdata.errors import SourceError
from atdata.network import is_public
from atdata.sources import PublicS3Source, expand, scheme_of

# Characters of URLs in brace notation, which is read letter by letter.
_MAX_BRACED: Final = 50_000

# Shards that brace notation may stand for, and braces in it, times shards: to write out more takes longer than others
# should wait.
_MAX_EXPANDED: Final = 10_000
_MAX_WORK: Final = 50_000

# Names that lead nowhere but within a network: RFC 6761, 6762 and 8375, and what routers use.
_PRIVATE: Final = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".localdomain")

_WEB: Final = frozenset({"http", "https"})
_NETWORK: Final = _WEB | {"s3", "gs", "at"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: ``url`` says where it is, or ``blob`` which blob of whose repository it is."""

    url: str = ""
    blob: BlobUri | None = None
    size: int | None = None
    mime_type: str | None = None
    checksum: Checksum | None = None

    def view(self, hosts: Mapping[str, str]) -> dict[str, Any]:
        """As `resolveBlobs#shard`; *hosts* are those of repositories with blobs, by DID."""
        view: dict[str, Any] = {"url": self.url}
        if self.blob is not None:
            query = urlencode({"did": self.blob.did, "cid": self.blob.cid})
            view = {"url": f"{hosts[self.blob.did]}/xrpc/com.atproto.sync.getBlob?{query}", "cid": self.blob.cid}
        if self.size is not None:
            view["size"] = self.size
        if self.mime_type is not None:
            view["mimeType"] = self.mime_type
        if self.checksum is not None:
            view["checksum"] = self.checksum.to_record()
        return view


def shards_of(did: str, storage: Storage | None, *, allow_private: bool) -> Sequence[Shard]:
    """The shards of a dataset of *did*, all of them, in their order.

    Raises SourceError, a ValueError, when there are none or one cannot be read, and where one is not to be opened: a
    file on its publisher's machine or a host of a private network unless *allow_private*, a key that leads to another
    bucket, brace notation that is wrong or stands for too many.
    """
    shards: Sequence[Shard] = ()
    match storage:
        case StorageBlobs(blobs):
            shards = [Shard("", BlobUri(did, blob.cid), blob.size, blob.mime_type, blob.checksum) for blob in blobs]
            if not all(blob.cid for blob in blobs):
                # Without it, the dataset would look as if it were whole.
                raise SourceError("the reference to one of its blobs cannot be read")
        case StorageExternal(urls):
            schemes = _NETWORK | {"", "file"} if allow_private else _NETWORK
            shards = [_shard(url, None, schemes, allow_private) for url in _expanded(urls)]
        case StorageHttp(named):
            shards = [_shard(shard.url, shard.checksum, _WEB, allow_private) for shard in named]
        case StorageS3(bucket, objects, region, endpoint):
            source = PublicS3Source(bucket, [one.key for one in objects], endpoint or None, region or None)
            if endpoint:
                _check_host(endpoint, allow_private)
            shards = [
                Shard(source.urls[id_] if endpoint else id_, checksum=one.checksum)
                for id_, one in zip(source.list_shards(), objects, strict=True)
            ]
    if not shards:
        raise SourceError("it names none")
    return shards


def _expanded(urls: Sequence[str]) -> list[str]:
    if sum(len(url) for url in urls if "{" in url or "\\" in url) > _MAX_BRACED:
        raise SourceError(f"its URLs have more than {_MAX_BRACED:,} characters in brace notation")
    braces = [url.count("{") for url in urls]
    if sum(braces) > _MAX_EXPANDED:
        raise SourceError(f"its URLs have more than {_MAX_EXPANDED:,} braces")
    return expand(*urls, at_most=min(_MAX_EXPANDED, _MAX_WORK // max([1, *braces])))


def _shard(url: str, checksum: Checksum | None, schemes: Collection[str], allow_private: bool) -> Shard:
    scheme = scheme_of(url)
    if scheme not in schemes:
        what = "a file on the machine of its publisher" if scheme in ("", "file") else f"a {scheme}: address"
        raise SourceError(f"{url[:200]!r} is {what}, which is not opened")
    if scheme == "at":
        return Shard("", BlobUri.parse(url), checksum=checksum)
    if scheme in _WEB:
        _check_host(url, allow_private)
    return Shard(url, checksum=checksum)


def _check_host(url: str, allow_private: bool) -> None:
    if not allow_private and not is_public_url(url):
        raise SourceError(f"{url[:200]!r} names no host on the public internet")


def is_public_url(url: str) -> bool:
    """Whether *url* may lead to the public internet, as far as can be said without looking up names.

    >>> is_public_url("https://example.com/0.tar"), is_public_url("http://169.254.169.254/latest")
    (True, False)
    """
    # Browsers and libraries read these in different ways: `http://127.0.0.1\\@example.com`, `http://%31%32%37.0.0.1`.
    if any(c <= " " or c in "\\\x7f" for c in url):
        return False
    try:
        parts = urlsplit(url)
        # As libraries do before they look a name up: `１２７.0.0.1` is an address, and a soft hyphen is nothing.
        host = normalize("NFKC", parts.hostname or "").rstrip(".")
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        return False
    if "%" in parts.netloc:
        return False
    try:
        ip_address(host)
        return is_public(host)
    except ValueError:
        pass
    try:
        # As resolvers read addresses: `127.1`, `0x7f000001`.
        return is_public(socket.inet_ntoa(socket.inet_aton(host)))
    except (OSError, ValueError):
        return "." in host and not host.endswith(_PRIVATE)
