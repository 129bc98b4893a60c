"""Own the library's outgoing HTTP and the lookup of DIDs: where it goes, where it never goes, and how often it tries.

URLs in records and DID documents are strangers' and may point into our own network. For them, every connection goes to
an address that was checked after the name was resolved, redirects included. URLs that the person at the keyboard gave
are trusted. Servers may be slow on purpose, so what has a `deadline` ends by then whatever they send, and when. Nothing
is remembered of one exchange for the next: no cookies. Specification of DIDs: https://atproto.com/specs/did
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpcore
import httpx

import atdata
from atdata import syntax
from atdata.errors import NetworkError, redacted

__all__ = [
    "DidNotFoundError",
    "DidResolver",
    "Identity",
    "StatusError",
    "allows_private_hosts",
    "deadline",
    "get_bytes",
    "get_json",
    "guarded_transport",
    "is_public",
    "open_response",
    "parse_json",
]

Params = Mapping[str, str | list[str]]
"""What stands behind the question mark; a list is one parameter several times."""

PLC_DIRECTORY: Final = "https://plc.directory"

# A server that sends nothing for a minute is gone.
_TIMEOUT: Final = httpx.Timeout(60, connect=10)
# Nor is one that answers a letter at a time: by then it has said which status the answer has, redirects included.
_ANSWER_SECONDS: Final = 60.0
_ATTEMPTS: Final = 4
_LONGEST_WAIT: Final = 30.0
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_MAX_REDIRECTS: Final = 5
_MAX_ADDRESSES: Final = 3

_MAX_DOCUMENT: Final = 256 * 1024
_DOCUMENT_DEADLINE: Final = 15.0
# Identities change rarely; ten minutes is what the network's own caches keep them for at least.
_DOCUMENT_LIFETIME: Final = 600.0
_MAX_DOCUMENTS: Final = 1000


class StatusError(NetworkError):
    """The answer has an error status. *error* and *message* are those of an XRPC error, if the answer is one."""

    def __init__(self, url: str, status: int, error: str | None = None, message: str | None = None) -> None:
        super().__init__(url, status, error, message)
        self.url = url
        self.status = status
        self.error = error
        self.message = message

    def __str__(self) -> str:
        return f"{self.url}: {self.status}" + "".join(f" {part}" for part in (self.error, self.message) if part)


class DidNotFoundError(NetworkError):
    """There is no such DID, or it was closed for good."""


def allows_private_hosts() -> bool:
    """Whether the operator lets strangers' URLs name hosts of private networks: `ATDATA_ALLOW_PRIVATE_HOSTS=1`."""
    return os.environ.get("ATDATA_ALLOW_PRIVATE_HOSTS", "").lower() in ("1", "true", "yes", "on")


# --- Deadlines


class _Deadline(NamedTuple):
    at: float
    seconds: float


_NEVER: Final = _Deadline(inf, inf)
_deadline: ContextVar[_Deadline] = ContextVar("deadline", default=_NEVER)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let what is asked and read in the block take *seconds* at most, all together; an earlier deadline stays.

    >>> with deadline(15), open_response(url) as response:
    ...     body = response.read()

    What is not there in time is an httpx.TimeoutException, and so a NetworkError or a ShardError.
    """
    new = _Deadline(time.monotonic() + seconds, seconds)
    token = _deadline.set(min(_deadline.get(), new))
    try:
        yield
    finally:
        _deadline.reset(token)


def _seconds_left() -> float:
    return _deadline.get().at - time.monotonic()


@contextmanager
def _in_time(timeout: float | None) -> Iterator[float | None]:
    """How long one operation on a connection may take: *timeout*, or what the deadline leaves of it."""
    left = _seconds_left()
    late = f"not answered in full within {_deadline.get().seconds:g} s"
    if left <= 0:
        raise httpcore.ReadTimeout(late)
    try:
        yield timeout if left == inf else left if timeout is None else min(left, timeout)
    except httpcore.TimeoutException as e:
        raise httpcore.ReadTimeout(late) if _seconds_left() <= 0 else e from None


# --- Requests


@contextmanager
def open_response(
    url: str,
    *,
    trusted: bool = False,
    params: Params | None = None,
    headers: Mapping[str, str] | None = None,
    follow_redirects: bool = True,
) -> Iterator[httpx.Response]:
    """The successful answer to a GET, its body unread. Leaving the block ends the exchange.

    >>> with open_response("https://example.com/0.tar") as response:
    ...     for piece in response.iter_raw(): ...

    Without *trusted*, hosts that are not on the public internet are refused (see `allows_private_hosts`). Connecting is
    tried again, with growing pauses, when it fails or the server says that it is busy; once the answer has begun,
    nothing is. The body has no deadline but that around it. Raises StatusError for every other status than 2xx, and
    NetworkError, both naming the URL.
    """
    response = _send(url, trusted, params, headers, follow_redirects)
    try:
        yield response
    finally:
        response.close()


def _send(
    url: str,
    trusted: bool,
    params: Params | None,
    headers: Mapping[str, str] | None,
    follow_redirects: bool,
) -> httpx.Response:
    client = _client(not (trusted or allows_private_hosts()))
    name = _name(url)
    attempt = 0
    while True:
        attempt += 1
        with deadline(_ANSWER_SECONDS):
            try:
                request = client.build_request("GET", url, params=params, headers=headers)
                response = client.send(request, stream=True, follow_redirects=follow_redirects)
            except httpx.TransportError as e:
                problem = f"{name}: {str(e) or type(e).__name__}; check the address, and that the server is up"
                failure: NetworkError = NetworkError(problem)
                failure.__cause__ = e
                may_pass, wait = not isinstance(e, httpx.UnsupportedProtocol), None
            # UnicodeError: a host that is no international domain name.
            except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as e:
                raise NetworkError(f"{name}: {e}") from e
            else:
                if response.is_success:
                    return response
                try:
                    failure = _status_error(name, response)
                finally:
                    response.close()
                may_pass, wait = response.status_code in _RETRIED, _retry_after(response.headers, time.time())
        wait = _backoff(attempt) if wait is None else min(wait, _LONGEST_WAIT)
        if not may_pass or attempt == _ATTEMPTS or wait >= _seconds_left():
            raise failure
        _pause(wait)


def get_bytes(
    url: str,
    *,
    trusted: bool = False,
    params: Params | None = None,
    limit: int = _MAX_DOCUMENT,
    seconds: float = _DOCUMENT_DEADLINE,
    follow_redirects: bool = False,
) -> bytes:
    """What is at *url*, of at most *limit* bytes. Raises as `open_response` does, and when it takes too long."""
    body = bytearray()
    options: dict[str, Any] = {"trusted": trusted, "params": params, "follow_redirects": follow_redirects}
    with deadline(seconds), open_response(url, **options) as response:
        try:
            for piece in response.iter_raw():
                body += piece
                if len(body) > limit:
                    raise NetworkError(f"{_name(url)}: more than the {limit} bytes we accept")
        except httpx.HTTPError as e:
            raise NetworkError(f"{_name(url)}: {str(e) or type(e).__name__}") from e
    return bytes(body)


def get_json(url: str, **options: Any) -> Any:
    """The JSON at *url*; else as `get_bytes`.

    >>> get_json("https://plc.directory/did:plc:z72i7hdynmk6r22z27h6tvur", trusted=True)["id"]
    'did:plc:z72i7hdynmk6r22z27h6tvur'
    """
    return parse_json(url, get_bytes(url, **options))


def parse_json(url: str, body: bytes) -> Any:
    """The JSON in *body*, the answer of *url*. Raises NetworkError, which names it, when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise NetworkError(f"{_name(url)}: not JSON: {e}") from None


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _backoff(attempt: int) -> float:
    # Half of it random, so that many readers of one server do not come back together.
    return float(2 ** (attempt - 2)) * random.uniform(0.5, 1)  # noqa: S311 — a pause is no secret


def _retry_after(headers: httpx.Headers, now: float) -> float | None:
    """The seconds that the server asks us to wait: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    value: str = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    # OverflowError: a year, or an hour, that no clock will show.
    except (ValueError, OverflowError):
        return None


def _status_error(name: str, response: httpx.Response) -> StatusError:
    body = b""
    try:
        for piece in response.iter_raw(4096):
            body = piece
            break
        answer = json.loads(body)
    except (httpx.HTTPError, ValueError, RecursionError):
        answer = None
    error = message = None
    if isinstance(answer, dict):
        error, message = (str(answer[key])[:200] if key in answer else None for key in ("error", "message"))
    return StatusError(name, response.status_code, error, message)


def _name(url: str) -> str:
    """*url* fit for a message: without a password, and not endless."""
    return redacted(url)[:300]


@cache
def _client(is_guarded: bool) -> httpx.Client:
    client = httpx.Client(
        # Proxies of the environment count for trusted URLs only.
        transport=guarded_transport() if is_guarded else None,
        timeout=_TIMEOUT,
        max_redirects=_MAX_REDIRECTS,
        # A cookie would tell a server who reads what, and when, over all its datasets.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={
            "User-Agent": f"atdata/{atdata.__version__}",
            # Shards are compressed or not as they are; what is hashed must be what was stored.
            "Accept-Encoding": "identity",
        },
    )
    if not is_guarded:
        for transport in (client._transport, *client._mounts.values()):
            if isinstance(transport, httpx.HTTPTransport):
                _pool(transport)._network_backend = _TimedBackend()
    return client


if hasattr(os, "register_at_fork"):
    # Two processes on one connection would read each other's answers.
    os.register_at_fork(after_in_child=_client.cache_clear)


# --- Addresses

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_REFUSED_V6 = (
    IPv6Network("2001::/23"),  # protocols' own, Teredo among them, which carries IPv4 addresses
    IPv6Network("2002::/16"),  # 6to4, which carries IPv4 addresses
    IPv6Network("3fff::/20"),  # documentation, unknown to older Pythons
)
_REFUSED_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocols' own; older Pythons know only a part of it. A cloud's metadata service.
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("168.63.129.16/32"),  # a cloud's control service, on a public address
)


def is_public(address: str) -> bool:
    """Whether *address* is a host's on the public internet.

    >>> is_public("93.184.216.34"), is_public("::ffff:127.0.0.1")
    (True, False)

    https://www.iana.org/assignments/iana-ipv4-special-registry/ and its sister for IPv6.
    """
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        elif parsed in _NAT64:
            # What a network without IPv4 calls an IPv4 host; the gateway connects to the last 32 bits.
            parsed = IPv4Address(int(parsed) & 0xFFFF_FFFF)
        elif parsed.scope_id or parsed not in _GLOBAL_UNICAST or any(parsed in network for network in _REFUSED_V6):
            return False
    if isinstance(parsed, IPv4Address) and any(parsed in network for network in _REFUSED_V4):
        return False
    return parsed.is_global and not parsed.is_multicast


def resolve_public(host: str, port: int) -> list[str]:
    """The addresses of *host*. Raises NetworkError when it has none on the public internet."""
    try:
        found = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    # UnicodeError: a label longer than 63 characters.
    except (OSError, UnicodeError) as e:
        raise httpcore.ConnectError(f"{host} does not resolve: {e}") from e
    public = [address for address in found if is_public(address)]
    if not public:
        raise NetworkError(
            f"{host} is at {', '.join(found[:3])}, not on the public internet; "
            "set ATDATA_ALLOW_PRIVATE_HOSTS=1 to read from it all the same"
        )
    return public


class _TimedStream(httpcore.NetworkStream):
    """A connection on which nothing is waited for beyond the deadline, whatever the answer is made of."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _in_time(timeout) as left:
            return self._inner.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _in_time(timeout) as left:
            self._inner.write(buffer, left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _in_time(timeout) as left:
            return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _TimedBackend(httpcore.NetworkBackend):
    """Connects as httpcore does, within the deadline."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        with _in_time(timeout) as left:
            return _TimedStream(self._inner.connect_tcp(host, port, left, local_address, socket_options))


class _CheckedBackend(_TimedBackend):
    """Connects to addresses, never to names: what was checked is what is connected to."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = resolve_public(host, port)[:_MAX_ADDRESSES]
        failure: Exception | None = None
        for address in addresses:
            try:
                # A share for each, lest a dead IPv6 route takes all the time.
                share = timeout and timeout / len(addresses)
                return super().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failure = e
        raise failure or httpcore.ConnectError(f"{host} has no address")


def guarded_transport() -> httpx.HTTPTransport:
    """httpx's own transport, over connections that go to the public internet only, and end in time."""
    transport = httpx.HTTPTransport()
    _pool(transport)  # what is replaced; were it elsewhere, connections would go unchecked
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(),
        network_backend=_CheckedBackend(),
        max_connections=100,
        max_keepalive_connections=20,
        keepalive_expiry=15,
    )
    return transport


def _pool(transport: httpx.HTTPTransport) -> httpcore.ConnectionPool:
    pool = transport._pool
    if not isinstance(pool, httpcore.ConnectionPool) or not isinstance(pool._network_backend, httpcore.NetworkBackend):
        raise TypeError("this version of httpx makes connections that cannot be checked; use httpx 0.28")
    return pool


# --- Identities


@dataclass(frozen=True, slots=True)
class Identity:
    """What an account's DID document says. None stands for what it does not say in a valid form."""

    did: str
    handle: str | None
    """As the document claims it: nobody has asked the handle's domain."""
    pds: str | None
    """Where the repository is, as `https://host`."""


class DidResolver:
    """Looks up DID documents: did:plc in the directory, did:web at its host. Remembers them for ten minutes.

    >>> DidResolver().resolve("did:plc:z72i7hdynmk6r22z27h6tvur").pds
    'https://puffball.us-east.host.bsky.network'

    The directory is *plc_url*, else `ATDATA_PLC_URL`, else the public one. A directory on this machine means a network
    on this machine: hosts in its documents may be private ones, too.
    """

    def __init__(self, plc_url: str | None = None) -> None:
        self._plc_url = (plc_url or os.environ.get("ATDATA_PLC_URL") or PLC_DIRECTORY).rstrip("/")
        self._is_local = _is_local(self._plc_url)
        self._known: dict[str, tuple[float, Identity]] = {}

    @property
    def trusts_private_hosts(self) -> bool:
        """Whether what the documents name may be on a private network."""
        return self._is_local or allows_private_hosts()

    def resolve(self, did: str) -> Identity:
        """The identity behind *did*. Raises DidNotFoundError, and NetworkError when nobody answers for it."""
        known = self._known.get(did)
        if known is not None and time.monotonic() - known[0] < _DOCUMENT_LIFETIME:
            return known[1]
        url, trusted = self._location(did)
        try:
            document = get_json(url, trusted=trusted)
        except StatusError as e:
            # https://web.plc.directory/spec/v0.1/did-plc: 404 for unknown DIDs, 410 for those closed by a tombstone.
            if e.status in (404, 410):
                raise DidNotFoundError(f"{did}: no such account; {url} answers {e.status}") from None
            raise
        identity = self._read(did, document)
        if len(self._known) >= _MAX_DOCUMENTS:
            self._known.clear()
        self._known[did] = time.monotonic(), identity
        return identity

    def pds(self, did: str) -> str:
        """The server that has the repository of *did*. Raises NetworkError when its document names none."""
        pds = self.resolve(did).pds
        if pds is None:
            raise NetworkError(f"{did}: its DID document names no server (PDS) that we ask")
        return pds

    def forget(self, did: str) -> None:
        """Look *did* up anew when it is asked for next."""
        self._known.pop(did, None)

    def _location(self, did: str) -> tuple[str, bool]:
        """Where the document of *did* is, and whether the person at the keyboard named that place."""
        if not syntax.is_did(did):
            raise NetworkError(f"{did[:80]!r} is not a DID such as did:plc:z72i7hdynmk6r22z27h6tvur")
        _, method, name = did.split(":", 2)
        if method == "plc":
            # Nothing else must become a path of the directory.
            if not re.fullmatch("[a-z2-7]{24}", name):
                raise NetworkError(f"{did[:80]} is not a did:plc: 24 characters of base32 must follow")
            return f"{self._plc_url}/{did}", True
        if method != "web":
            raise NetworkError(f"{did[:80]}: the protocol knows did:plc and did:web only")
        host, _, port = name.partition("%3A")
        is_private = self.trusts_private_hosts
        is_localhost = host == "localhost" and is_private
        if not syntax.is_handle(host) and not is_localhost:
            raise NetworkError(f"{did[:80]}: a did:web names a host, without a path")
        if host != name and not (is_private and re.fullmatch("[0-9]{1,5}", port)):
            raise NetworkError(f"{did[:80]}: a did:web has no port")
        # The development form of the specification, which the reference implementation reads the same way.
        scheme = "http" if is_localhost else "https"
        return f"{scheme}://{host}{':' + port if port else ''}/.well-known/did.json", is_private

    def _read(self, did: str, document: Any) -> Identity:
        if not isinstance(document, dict) or document.get("id") != did:
            raise NetworkError(f"{did[:80]}: the document found there is not of this DID")
        names = (one[5:] for one in _list(document, "alsoKnownAs") if isinstance(one, str) and one.startswith("at://"))
        handle = next((name.lower() for name in names if syntax.is_handle(name)), None)
        endpoint = next(
            (
                service.get("serviceEndpoint")
                for service in _list(document, "service")
                if isinstance(service, dict)
                and service.get("id") in ("#atproto_pds", f"{did}#atproto_pds")
                and service.get("type") == "AtprotoPersonalDataServer"
            ),
            None,
        )
        pds = _origin(endpoint)
        if pds is not None and pds.startswith("http:") and not self.trusts_private_hosts:
            pds = None
        return Identity(did, handle, pds)


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []


def _origin(url: Any) -> str | None:
    """*url* as `scheme://host[:port]`, or None when it is not an http(s) URL of a host."""
    if not isinstance(url, str) or len(url) > 1000 or not url.isascii():
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


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return not is_public(host)
