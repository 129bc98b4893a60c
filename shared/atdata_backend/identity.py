"""Own identities: what a DID document says of an account, and whether the handle in it points back.

Documents and handles' domains are strangers' claims; `atdata_backend.http` decides which of their servers are asked.
Specifications: https://atproto.com/specs/did and https://atproto.com/specs/handle.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.rdtypes.ANY.TXT
import dns.resolver
import httpx
import libipld

from atdata import syntax
from atdata.errors import AtdataError, NetworkError
from atdata_backend.http import StatusError, get, get_json, raise_for_status, read_limited

__all__ = ["DidNotFound", "Identity", "IdentityError", "Resolver", "read_document"]

_MAX_DOCUMENT: Final = 256 * 1024
_MAX_DID_TEXT: Final = 4096

# In seconds. A handle that cannot be confirmed soon is no handle for now; nothing waits for slow name servers.
_DOCUMENT_DEADLINE: Final = 15.0
_HANDLE_DEADLINE: Final = 6.0
_DNS_DEADLINE: Final = 4.0

_PLC_NAME = re.compile("[a-z2-7]{24}")

# The multicodec prefixes of compressed public keys.
_LEGACY_KEYS: Final = {
    "EcdsaSecp256k1VerificationKey2019": b"\xe7\x01",
    "EcdsaSecp256r1VerificationKey2019": b"\x80\x24",
}

# Names that no public name server answers for: https://atproto.com/specs/handle#additional-non-syntax-restrictions
_NO_DOMAINS: Final = frozenset({"alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion", "test"})


class IdentityError(AtdataError):
    """A DID, or the document at the end of it, is not what its specification allows."""


class DidNotFound(IdentityError):
    """There is no such DID, as far as its directory knows; *is_closed*: it was closed for good."""

    def __init__(self, message: str, *, is_closed: bool) -> None:
        super().__init__(message)
        self.is_closed = is_closed


@dataclass(frozen=True, slots=True)
class Identity:
    """What an account's DID document says. None stands for what it does not say in a valid form."""

    did: str
    handle: str | None
    """Confirmed both ways, in lower case. None as well where nobody tried to confirm it: see `Resolver.document`."""
    pds: str | None
    """Where the repository is, as `https://host`."""
    signing_key: str | None
    """The public key of commits, as a Multikey: `z…`."""


class Resolver:
    """Reads DID documents, and confirms the handles in them.

    >>> resolver = Resolver(client, plc_url="https://plc.directory")
    >>> await resolver.resolve("did:plc:z72i7hdynmk6r22z27h6tvur")
    Identity(did='did:plc:z72i7hdynmk6r22z27h6tvur', handle='bsky.app', pds='https://…', signing_key='zQ3…')

    *client* is a `guarded_client`. Handles are looked up by DNS and HTTPS, or at the service *handle_resolver* (a PDS
    or an AppView) where there is one: for local networks, whose handles no name server knows. *allow_private* admits
    did:web on other ports than 443, and on localhost by http. *dns_resolver* replaces the system's.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        plc_url: str,
        handle_resolver: str | None = None,
        allow_private: bool = False,
        dns_resolver: dns.asyncresolver.Resolver | None = None,
    ) -> None:
        self._client = client
        self._plc_url = plc_url.rstrip("/")
        self._handle_resolver = handle_resolver.rstrip("/") if handle_resolver else None
        self._allow_private = allow_private
        self._dns = dns_resolver

    async def document(self, did: str) -> Identity:
        """What the document of *did* says now of its host and key. Its handle is not looked at, and None.

        >>> (await resolver.document("did:plc:z72i7hdynmk6r22z27h6tvur")).handle is None
        True

        Raises DidNotFound when there is none, IdentityError when it is malformed, and NetworkError when the directory
        or the domain does not answer.
        """
        identity, _ = await self._read(did)
        return identity

    async def resolve(self, did: str) -> Identity:
        """As `document`, with the handle if it points back to *did*: DNS may take seconds to say so.

        A handle that cannot be confirmed, for whatever reason, is None.
        """
        identity, claimed = await self._read(did)
        if claimed is None or not await self._is_confirmed(claimed, did):
            return identity
        return replace(identity, handle=claimed)

    async def _read(self, did: str) -> tuple[Identity, str | None]:
        url, trusted = self._location(did)
        try:
            document = await get_json(
                self._client, url, limit=_MAX_DOCUMENT, seconds=_DOCUMENT_DEADLINE, trusted=trusted
            )
        except StatusError as e:
            # https://web.plc.directory/spec/v0.1/did-plc: 404 for unknown DIDs, 410 for those closed by a tombstone.
            if e.status in (404, 410):
                # A domain speaks for its did:web. A directory that does not know a DID may be the wrong one.
                is_closed = e.status == 410 or did.startswith("did:web:")
                raise DidNotFound(f"{did}: {url} answers {e.status}", is_closed=is_closed) from None
            raise
        return read_document(did, document)

    def _location(self, did: str) -> tuple[str, bool]:
        """Where the document of *did* is, and whether the operator named that place."""
        if not syntax.is_did(did):
            raise IdentityError(f"{did[:80]!r} is not a DID")
        _, method, name = did.split(":", 2)
        if method == "plc":
            # Nothing else must become a path of the directory.
            if not _PLC_NAME.fullmatch(name):
                raise IdentityError(f"{did[:80]} is not a did:plc: 24 characters of base32 must follow")
            return f"{self._plc_url}/{did}", True
        if method != "web":
            raise IdentityError(f"{did[:80]}: the protocol knows did:plc and did:web only")
        host, _, port = name.partition("%3A")
        is_localhost = host == "localhost" and self._allow_private
        if not syntax.is_handle(host) and not is_localhost:
            raise IdentityError(f"{did[:80]}: a did:web names a host, without a path")
        if host != name and not (self._allow_private and re.fullmatch("[0-9]{1,5}", port)):
            raise IdentityError(f"{did[:80]}: a did:web has no port")
        # The development form of the specification, which the reference implementation reads the same way.
        scheme = "http" if is_localhost else "https"
        return f"{scheme}://{host}{':' + port if port else ''}/.well-known/did.json", False

    async def _is_confirmed(self, handle: str, did: str) -> bool:
        try:
            async with asyncio.timeout(_HANDLE_DEADLINE):
                return await self._did_of(handle) == did
        except (AtdataError, TimeoutError):
            return False

    async def _did_of(self, handle: str) -> str | None:
        if self._handle_resolver is not None:
            answer = await get_json(
                self._client,
                f"{self._handle_resolver}/xrpc/com.atproto.identity.resolveHandle",
                params={"handle": handle},
                limit=_MAX_DID_TEXT,
                seconds=_HANDLE_DEADLINE,
                trusted=True,
            )
            found = answer.get("did") if isinstance(answer, dict) else None
            return found if isinstance(found, str) else None
        if handle.rpartition(".")[2] in _NO_DOMAINS:
            return None
        by_https = asyncio.create_task(self._by_https(handle))
        try:
            # Both are asked at once; where they differ, DNS counts.
            return await self._by_dns(handle) or await by_https
        finally:
            by_https.cancel()
            await asyncio.wait([by_https])

    async def _by_dns(self, handle: str) -> str | None:
        try:
            if self._dns is None:
                self._dns = dns.asyncresolver.Resolver()
            answer = await self._dns.resolve(f"_atproto.{handle}", "TXT", lifetime=_DNS_DEADLINE)
        except (dns.exception.DNSException, OSError):
            return None
        texts = (b"".join(record.strings) for record in answer if isinstance(record, dns.rdtypes.ANY.TXT.TXT))
        found = {text[4:].decode("ascii", "replace") for text in texts if text.startswith(b"did=")}
        # Two answers are none: https://atproto.com/specs/handle#dns-txt-method
        return found.pop() if len(found) == 1 else None

    async def _by_https(self, handle: str) -> str | None:
        url = f"https://{handle}/.well-known/atproto-did"
        try:
            async with get(self._client, url, seconds=_HANDLE_DEADLINE) as response:
                await raise_for_status(response)
                body = await read_limited(response, _MAX_DID_TEXT)
        except NetworkError:
            return None
        return body.decode("ascii", "replace").strip()


def read_document(did: str, document: Any) -> tuple[Identity, str | None]:
    """What the DID document of *did* says, and apart from that the handle it claims. Raises IdentityError.

    >>> read_document("did:web:example.com", {"id": "did:web:example.com", "alsoKnownAs": ["at://Example.com"]})
    (Identity(did='did:web:example.com', handle=None, pds=None, signing_key=None), 'example.com')
    """
    if not isinstance(document, dict) or document.get("id") != did:
        raise IdentityError(f"{did[:80]}: the document found there is not of this DID")
    names = (name[5:] for name in _list(document, "alsoKnownAs") if isinstance(name, str) and name.startswith("at://"))
    claimed = next((name.lower() for name in names if syntax.is_handle(name)), None)
    service = _find(document, "service", did, "#atproto_pds")
    is_pds = service.get("type") == "AtprotoPersonalDataServer"
    pds = _origin(service.get("serviceEndpoint")) if is_pds else None
    return Identity(did, None, pds, _multikey(_find(document, "verificationMethod", did, "#atproto"))), claimed


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []


def _find(document: dict[str, Any], name: str, did: str, fragment: str) -> dict[str, Any]:
    """The first entry whose id is *fragment*, in full or relative to the document."""
    for entry in _list(document, name):
        if isinstance(entry, dict) and entry.get("id") in (fragment, did + fragment):
            return entry
    return {}


def _multikey(method: dict[str, Any]) -> str | None:
    """The key of a verification method as a Multikey: https://atproto.com/specs/cryptography#public-key-encoding"""
    kind, key = method.get("type"), method.get("publicKeyMultibase")
    if not isinstance(kind, str) or not isinstance(key, str) or len(key) > 200:
        return None
    if kind == "Multikey":
        return key if key.isascii() and key.isalnum() else None  # base58
    if kind not in _LEGACY_KEYS:
        return None
    # Older documents name the curve in the type, and leave the point uncompressed.
    try:
        _, point = libipld.decode_multibase(key)
    except ValueError:
        return None
    if len(point) == 65 and point[0] == 4:
        point = bytes([2 + point[64] % 2]) + point[1:33]
    return libipld.encode_multibase("z", _LEGACY_KEYS[kind] + point) if len(point) == 33 else None


def _origin(url: Any) -> str | None:
    """*url* as `scheme://host[:port]`, or None when it is not an http(s) URL of a host."""
    if not isinstance(url, str) or len(url) > 1000 or not (url.isascii() and url.isprintable()):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
