"""Own the outgoing HTTP to hosts that strangers name: servers in DID documents, did:web hosts, handles' domains.

Their URLs may point into our own network, their servers may answer without end, or a byte a minute. So: https only;
every connection goes to an address that was checked after the name was resolved; no redirects, cookies, proxies or
compression; limits on bytes, on seconds, and on requests at a time to one host.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohttp
import httpx
import orjson
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from atdata.errors import NetworkError

__all__ = [
    "Parameters",
    "Refused",
    "Resolve",
    "StatusError",
    "TooLong",
    "get",
    "get_json",
    "guarded_client",
    "is_public",
    "iter_limited",
    "raise_for_status",
    "read_limited",
]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, given its name and a port."""

Parameters = Mapping[str, str | int | Sequence[str]]
"""The query of a URL; a name with a sequence is repeated for each of its values."""

_TRUSTED: Final = "atdata_trusted"
_MAX_ADDRESSES: Final = 3
_MAX_ERROR_BODY: Final = 4096


class Refused(NetworkError):
    """We do not ask this host, or do not accept its answer; asking again changes nothing."""


class TooLong(Refused):
    """The answer is longer than we accept, or says that it will be."""


class StatusError(NetworkError):
    """The answer has an error status. *error* is the name that XRPC gives it; *retry_after* seconds are asked for."""

    def __init__(self, url: str, status: int, error: str | None, retry_after: float | None) -> None:
        super().__init__(f"{url}: {status}" + (f" {error}" if error else ""))
        self.status = status
        self.error = error
        self.retry_after = retry_after


def guarded_client(
    *, allow_private: bool, timeout: float = 10, per_host: int = 6, resolve: Resolve | None = None
) -> httpx.AsyncClient:
    """A client that may be given strangers' URLs. Everything that goes wrong is a NetworkError that names the URL.

    >>> async with guarded_client(allow_private=False) as client:
    ...     document = await get_json(client, "https://example.com/.well-known/did.json", limit=65_536, seconds=10)

    Plain http, and addresses that are not on the public internet (loopback, private, link-local, shared, multicast, and
    IPv4 addresses of these kinds inside IPv6 ones), are refused unless *allow_private*. *timeout* is for each step of
    an exchange, connecting or reading once; `get` limits the whole. At most *per_host* requests to a host run at a
    time. *resolve* replaces the system's resolver.
    """
    client = httpx.AsyncClient(
        transport=_GuardedTransport(allow_private, per_host, resolve),
        timeout=httpx.Timeout(timeout, pool=None),
        headers={
            "User-Agent": f"atdata-network/{version('atdata-network')}",
            # Compressed answers could be a thousand times longer than their limit.
            "Accept-Encoding": "identity",
        },
    )
    # Nobody's cookies are kept: they would pile up, and tell one stranger's host what another's subdomain set.
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


@asynccontextmanager
async def get(
    client: httpx.AsyncClient,
    url: str,
    *,
    seconds: float,
    params: Parameters | None = None,
    trusted: bool = False,
) -> AsyncIterator[httpx.Response]:
    """The answer to a GET, its body unread. Leaving the block ends the exchange, and so does its *seconds*th second.

    >>> async with get(client, url, seconds=10) as response:
    ...     body = await read_limited(response, 65_536)

    *trusted* is for URLs from the operator's settings, which may be on this machine whatever the client was told of
    private addresses. Raises NetworkError; any status is an answer, also a redirect.
    """
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            response = await _send(client, url, params, trusted)
            try:
                yield response
            finally:
                await response.aclose()
    except TimeoutError:
        if deadline.expired():
            raise NetworkError(f"{_name(url)}: not answered in full within {seconds:g} s") from None
        raise


async def _send(client: httpx.AsyncClient, url: str, params: Parameters | None, trusted: bool) -> httpx.Response:
    try:
        if httpx.URL(url).is_relative_url:
            raise Refused(f"{_name(url)}: only https:// URLs are asked")
        request = client.build_request("GET", url, params=params, extensions={_TRUSTED: trusted})
        return await client.send(request, stream=True, follow_redirects=False)
    # UnicodeError: a host that is no international domain name.
    except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as e:
        raise Refused(f"{_name(url)}: {e}") from e


async def get_json(
    client: httpx.AsyncClient,
    url: str,
    *,
    limit: int,
    seconds: float,
    params: Parameters | None = None,
    trusted: bool = False,
) -> Any:
    """The JSON at *url*, of at most *limit* bytes. Raises StatusError for other statuses than 2xx, else as `get`."""
    async with get(client, url, seconds=seconds, params=params, trusted=trusted) as response:
        await raise_for_status(response)
        body = await read_limited(response, limit)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise Refused(f"{_name(response.url)}: not JSON: {e}") from None


async def raise_for_status(response: httpx.Response) -> None:
    """Raise StatusError unless the status is 2xx."""
    if response.is_success:
        return
    error = None
    with suppress(NetworkError, orjson.JSONDecodeError):
        body = orjson.loads(await read_limited(response, _MAX_ERROR_BODY))
        if isinstance(body, dict) and isinstance(body.get("error"), str):
            error = body["error"][:100]
    raise StatusError(_name(response.url), response.status_code, error, _retry_after(response.headers, time.time()))


def _retry_after(headers: httpx.Headers, now: float) -> float | None:
    """The seconds that the server asks us to wait, from `Retry-After` or the reference PDS's `RateLimit-Reset`, a time.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    reset = headers.get("ratelimit-reset", "")
    if reset.isascii() and reset.isdigit():
        return max(0.0, float(reset[:12]) - now)
    return None


async def read_limited(response: httpx.Response, limit: int) -> bytes:
    """The body of *response*. Raises TooLong when it is longer than *limit* bytes, without reading on."""
    body = bytearray()
    async for piece in iter_limited(response, limit):
        body += piece
    return bytes(body)


async def iter_limited(response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
    """The body of *response* in pieces as they arrive. Raises TooLong when it is longer than *limit* bytes."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Refused(f"{_name(response.url)}: compressed although we asked for identity")
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise TooLong(f"{_name(response.url)}: {length[:20]} bytes, more than the {limit} we accept")
    received = 0
    async for piece in response.aiter_raw():
        received += len(piece)
        if received > limit:
            raise TooLong(f"{_name(response.url)}: more than the {limit} bytes we accept")
        yield piece


def _name(url: str | httpx.URL) -> str:
    """*url* fit for a message: without a password, and not endless."""
    return re.sub("//[^/]*@", "//", str(url)[:300])


# --- addresses ---

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


class _SystemResolver:
    """The system's resolver, in threads of its own: names that resolve slowly must not keep other work waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(16, "resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _CheckedResolver(AbstractResolver):
    """Resolves names to addresses that may be connected to, and to nothing else."""

    def __init__(self, resolve: Resolve, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await self._resolve(host, port)
        except UnicodeError as e:  # a label longer than 63 characters
            raise OSError(str(e)) from e
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.allowed(host, addresses)
        ]

    def allowed(self, host: str, addresses: Sequence[str]) -> list[str]:
        """Those of a host's *addresses* that may be connected to. Raises Refused when none may."""
        allowed = [address for address in addresses if self._allow_private or is_public(address)][:_MAX_ADDRESSES]
        if not allowed:
            raise Refused(f"{host} is at {', '.join(addresses[:3])}: not on the public internet")
        return allowed

    async def close(self) -> None:
        pass


class _GuardedTransport(httpx.AsyncBaseTransport):
    """httpx on aiohttp's connections, whose parser is not Python: a PDS sends a repository in hundreds of pieces."""

    def __init__(self, allow_private: bool, per_host: int, resolve: Resolve | None) -> None:
        self._allow_private = allow_private
        self._per_host = per_host
        self._system = _SystemResolver()
        self._resolver = _CheckedResolver(resolve or self._system, allow_private)
        self._context = httpx.create_ssl_context()
        self._guarded: aiohttp.ClientSession | None = None
        self._trusted: aiohttp.ClientSession | None = None
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def _session(self, trusted: bool) -> aiohttp.ClientSession:
        # Two of them, because a connection that the operator's URL opened must not serve a stranger's. They begin with
        # the first request, when there is an event loop.
        if trusted:
            self._trusted = self._trusted or self._opened(_CheckedResolver(self._system, allow_private=True))
            return self._trusted
        self._guarded = self._guarded or self._opened(self._resolver)
        return self._guarded

    def _opened(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=resolver,
                use_dns_cache=False,
                ssl=self._context,
                limit=100,
                keepalive_timeout=15,
                timeout_ceil_threshold=float("inf"),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        trusted = bool(request.extensions.get(_TRUSTED))
        if request.url.scheme != "https" and not (request.url.scheme == "http" and (trusted or self._allow_private)):
            raise Refused(f"{_name(request.url)}: only https:// URLs are asked")
        try:
            # httpx has made a header of whatever credentials there are.
            url = yarl.URL(str(request.url), encoded=True).with_user(None)
            host = url.host or ""
        except ValueError as e:
            raise Refused(f"{_name(request.url)}: {e}") from e
        timeout = request.extensions.get("timeout", {})
        turn = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        await turn.acquire()
        try:
            if not trusted and _is_address(host):
                self._resolver.allowed(host, [host])  # it is connected to without being resolved
            response = await self._session(trusted).request(
                request.method,
                url,
                headers=request.headers.multi_items(),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=timeout.get("connect"), sock_read=timeout.get("read")
                ),
            )
        except BaseException as e:
            turn.release()
            raise _translated(request.url, e) from e
        return httpx.Response(
            status_code=response.status,
            headers=list(response.raw_headers),
            stream=_Body(request.url, response, turn),
        )

    async def aclose(self) -> None:
        for session in (self._guarded, self._trusted):
            if session:
                await session.close()
        self._system.close()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class _Body(httpx.AsyncByteStream):
    """A response's body, which gives back the turn at its host when it is closed."""

    def __init__(self, url: httpx.URL, response: aiohttp.ClientResponse, turn: asyncio.Semaphore) -> None:
        self._url = url
        self._response = response
        self._turn: asyncio.Semaphore | None = turn

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except Exception as e:
            raise _translated(self._url, e) from e

    async def aclose(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            # Of an answer that was not read in full, there is no more to come: its connection ends with it.
            self._response.close()
            turn.release()


def _translated(url: httpx.URL, error: BaseException) -> BaseException:
    """*error* as one of ours that names the URL, if it is the network's."""
    if isinstance(error, Refused):
        return Refused(f"{_name(url)}: {error}")
    if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
        return NetworkError(f"{_name(url)}: {str(error) or type(error).__name__}")
    return error
