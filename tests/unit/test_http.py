"""Outgoing HTTP: where it goes, where it never goes, and when it stops. Against a real server on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from servers import response, serve

from atdata.errors import NetworkError
from atdata_backend.http import (
    Refused,
    Resolve,
    StatusError,
    TooLong,
    _retry_after,
    get,
    get_json,
    guarded_client,
    is_public,
    iter_limited,
    read_limited,
)


def resolving(*addresses: str, asked: list[str] | None = None) -> Resolve:
    """A resolver that gives these addresses for every name, and notes the names."""

    async def resolve(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        return list(addresses)

    return resolve


def always(answer: bytes) -> Callable[[str], Any]:
    async def answers(target: str) -> bytes:
        return answer

    return answers


async def fetch(client: httpx.AsyncClient, url: str, limit: int = 1000, **options: Any) -> bytes:
    async with get(client, url, seconds=30, **options) as answer:
        return await read_limited(answer, limit)


# --- where requests go ---


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2a00:1450::1"]
)
def test_public_addresses(address: str) -> None:
    """Hosts of the public internet may be asked."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%1",
        "2606:4700::1111%1",
        "fec0::1",
        "ff02::1",
        "",
        "example.com",
        "127.1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    """Loopback, private, link-local, shared, multicast and reserved addresses are not public, however written."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
async def test_loopback_is_refused(host: str) -> None:
    """However loopback is written, no connection is made, and the error names the URL."""
    async with serve(always(response())) as server, guarded_client(allow_private=False) as client:
        with pytest.raises(
            NetworkError, match=r"https://.*/secret.*(not on the public internet|does not resolve|not a canonical)"
        ):
            await fetch(client, f"https://{host}:{server.port}/secret")
        assert server.connections == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254"])
async def test_names_of_private_addresses_are_refused(address: str) -> None:
    """A name that resolves to a private address is refused with both in the message."""
    async with guarded_client(allow_private=False, resolve=resolving(address)) as client:
        with pytest.raises(Refused, match=f"https://pds.test/x: pds.test is at {address}"):
            await fetch(client, "https://pds.test/x")


async def test_connections_go_to_checked_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved once a connection, private addresses are dropped, and the rest is connected to by number.

    So a name server that answers differently the second time (rebinding) gains nothing.
    """
    connected = []

    async def connect(*, addr_infos: Sequence[Any], **_: Any) -> Any:
        connected.extend(address[:2] for *_, address in addr_infos)
        raise OSError(113, "no route")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", connect)
    asked: list[str] = []
    resolve = resolving("10.0.0.1", "2606:4700::1111", "127.0.0.1", "1.1.1.1", asked=asked)
    async with guarded_client(allow_private=False, resolve=resolve) as client:
        with pytest.raises(NetworkError, match=r"https://pds\.test/x: .*no route"):
            await fetch(client, "https://pds.test/x")
    assert asked == ["pds.test"]
    assert connected == [("2606:4700::1111", 443), ("1.1.1.1", 443)]


async def test_the_next_address_is_tried() -> None:
    """When one address of a name does not answer, the next one is asked."""
    async with serve(always(response(b"here"))) as server:
        # Nobody listens at 127.0.0.2, as the server has bound one address only.
        async with guarded_client(allow_private=True, resolve=resolving("127.0.0.2", "127.0.0.1")) as client:
            assert await fetch(client, f"http://pds.test:{server.port}/") == b"here"
        assert server.headers[0]["host"] == f"pds.test:{server.port}"


@pytest.mark.parametrize(
    "url", ["http://1.1.1.1/", "ftp://1.1.1.1/", "file:///etc/passwd", "pipe:id", "gopher://1.1.1.1/"]
)
async def test_only_https(url: str) -> None:
    """Nothing but https is spoken with strangers."""
    async with guarded_client(allow_private=False) as client:
        with pytest.raises(Refused, match=url[:10]):
            await fetch(client, url)


async def test_allowed_private_hosts() -> None:
    """Where the operator allows private hosts, loopback and plain http are fine."""
    async with serve(always(response(b"hello"))) as server, guarded_client(allow_private=True) as client:
        assert await fetch(client, f"{server.url}/path", params={"did": "did:plc:a b"}) == b"hello"
        assert server.requests == ["/path?did=did%3Aplc%3Aa+b"]


async def test_trusted_urls() -> None:
    """A URL from the operator's settings may be local; that opens nothing to strangers who name the same place."""
    async with serve(always(response(b"hello"))) as server, guarded_client(allow_private=False) as client:
        assert await fetch(client, server.url, trusted=True) == b"hello"
        with pytest.raises(Refused):
            await fetch(client, server.url)
        assert await fetch(client, server.url, trusted=True) == b"hello"
        assert server.connections == 1
        assert len(server.requests) == 2


async def test_trusted_connections_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection kept open for the operator's URL does not serve a stranger's https URL of the same place."""
    tls = certificate(tmp_path, monkeypatch, "localhost")
    async with serve(always(response(b"hello")), tls=tls) as server, guarded_client(allow_private=False) as client:
        url = f"https://localhost:{server.port}/"
        assert await fetch(client, url, trusted=True) == b"hello"
        with pytest.raises(Refused, match="not on the public internet"):
            await fetch(client, url)
        assert len(server.requests) == 1


async def test_redirects_are_not_followed() -> None:
    """A redirect is an answer like any other; where it points is not asked."""
    async with serve(always(response(status="302 Found", location="/secret"))) as server:
        async with guarded_client(allow_private=True) as client:
            async with get(client, server.url, seconds=30) as answer:
                assert (answer.status_code, answer.headers["location"]) == (302, "/secret")
            with pytest.raises(StatusError, match=f"{server.url}: 302"):
                await get_json(client, server.url, limit=100, seconds=30)
        assert server.requests == ["/", "/"]


async def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server must prove the name in the URL, although the connection goes to an address."""
    tls = certificate(tmp_path, monkeypatch, "pds.test")
    async with serve(always(response(b"hello")), tls=tls) as server:
        async with guarded_client(allow_private=True, resolve=resolving("127.0.0.1")) as client:
            assert await fetch(client, f"https://pds.test:{server.port}/") == b"hello"
            with pytest.raises(NetworkError, match=r"https://other\.test:\d+/: .*certificate"):
                await fetch(client, f"https://other.test:{server.port}/")
        assert len(server.requests) == 1


def certificate(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> ssl.SSLContext:
    """A server's side of TLS as *name*, with a fresh authority that clients of this test trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return context


async def test_what_we_say_of_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests name this program and its version, ask for no compression, carry no cookies and use no proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    answer = always(response(set_cookie="session=1; Path=/"))
    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        for _ in range(2):
            await fetch(client, server.url)
    for headers in server.headers:
        assert headers["user-agent"].startswith("atdata-network/0.")
        assert headers["accept-encoding"] == "identity"
        assert "cookie" not in headers


# --- when answers end ---


async def test_limits_on_bytes() -> None:
    """A body of exactly the limit is read; one byte more is refused, announced or not."""
    body = b"x" * 1000

    async def answer(target: str) -> bytes:
        if target == "/announced":
            return response(body)
        chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n"

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        for path in ("/announced", "/chunked"):
            assert await fetch(client, server.url + path, 1000) == body
            with pytest.raises(Refused, match=f"{path}: .*more than the 999"):
                await fetch(client, server.url + path, 999)


async def test_what_is_too_long() -> None:
    """A body longer than its limit can be told from one that is refused for other reasons."""

    async def answer(target: str) -> bytes:
        return response(b"xx", content_encoding="gzip") if target == "/gzip" else response(b"xx")

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        for path, is_too_long in [("/", True), ("/gzip", False)]:
            with pytest.raises(Refused) as raised:
                await fetch(client, server.url + path, 1)
            assert isinstance(raised.value, TooLong) == is_too_long


async def test_small_pieces_are_joined() -> None:
    """A body that comes in a thousand small pieces is handed on in few."""

    async def answer(target: str) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 1000 + b"0\r\n\r\n"

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        async with get(client, server.url, seconds=30) as answered:
            pieces = [piece async for piece in iter_limited(answered, 10_000)]
    assert b"".join(pieces) == b"abc" * 1000
    assert len(pieces) < 10


async def test_slow_pieces_are_handed_on() -> None:
    """A piece is handed on when it comes: who reads may want to see the pace."""
    more = asyncio.Event()

    async def answer(target: str) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na"
        await more.wait()
        yield b"b"

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        async with get(client, server.url, seconds=30) as answered:
            pieces = iter_limited(answered, 10)
            assert await anext(pieces) == b"a"
            more.set()
            assert await anext(pieces) == b"b"


async def test_endless_bodies() -> None:
    """A body without end is read up to the limit, and the connection closed."""
    closed = asyncio.Event()

    async def answer(target: str) -> AsyncIterator[bytes]:
        try:
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            while True:
                yield b"x" * 10_000
        finally:
            closed.set()

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(Refused, match="more than the 50000 bytes"):
            await fetch(client, server.url, 50_000)
        await asyncio.wait_for(closed.wait(), 30)


@pytest.mark.parametrize("headers", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Drip: "])
async def test_dripping_answers(headers: bytes) -> None:
    """A server that sends a byte now and then, of its headers or its body, is cut off when the time is up."""

    async def answer(target: str) -> AsyncIterator[bytes]:
        yield headers
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(NetworkError, match=rf"{server.url}: not answered in full within 0.3 s"):
            async with get(client, server.url, seconds=0.3) as slow:
                await read_limited(slow, 100_000)


async def test_silent_servers() -> None:
    """A server that takes the connection and says nothing is left after the client's timeout."""

    async def answer(target: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with serve(answer) as server, guarded_client(allow_private=True, timeout=0.2) as client:
        with pytest.raises(NetworkError, match=f"{server.url}: .*Timeout"):
            await fetch(client, server.url)


async def test_other_timeouts_pass_through() -> None:
    """A TimeoutError from within the block is not mistaken for the exchange's own."""
    async with serve(always(response())) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(TimeoutError, match="mine"):
            async with get(client, server.url, seconds=30):
                raise TimeoutError("mine")


async def test_compressed_answers() -> None:
    """A compressed body, which we did not ask for, is refused: it could unfold to any size."""
    answer = always(response(b"\x1f\x8b", content_encoding="gzip"))
    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(Refused, match="compressed"):
            await fetch(client, server.url)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut off",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000,
    ],
)
async def test_broken_answers(answer: bytes) -> None:
    """Whatever a server gets wrong is a NetworkError that names the URL."""

    async def broken(target: str) -> AsyncIterator[bytes]:
        yield answer

    async with serve(broken) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(NetworkError, match=server.url):
            await fetch(client, server.url)


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https:///path",
        "https://exa mple.com/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://a..b/",
        "https://" + "a" * 64 + ".com/",
        "https://xn--a/",
        "//example.com",
        "example.com",
        "",
        "https://\x00/",
    ],
)
async def test_broken_urls(url: str) -> None:
    """A URL that is none is a NetworkError like any other."""
    async with guarded_client(allow_private=False) as client:
        with pytest.raises(NetworkError):
            await fetch(client, url)


async def test_nobody_listens() -> None:
    """A refused connection is a NetworkError that names the URL, without any password in it."""
    async with serve(always(b"")) as server:
        pass
    async with guarded_client(allow_private=True) as client:
        with pytest.raises(NetworkError, match=f"http://127.0.0.1:{server.port}/x: "):
            await fetch(client, f"http://me:secret@127.0.0.1:{server.port}/x")


# --- turns ---


async def test_requests_at_a_time() -> None:
    """At most so many requests to one host run at once; other hosts do not wait for them."""
    gate = asyncio.Event()
    arrived = asyncio.Semaphore(0)

    async def answer(target: str) -> bytes:
        if target == "/slow":
            arrived.release()
            await gate.wait()
        return response(b"done")

    client = guarded_client(allow_private=True, per_host=2, resolve=resolving("127.0.0.1"))
    async with serve(answer) as server, client, asyncio.TaskGroup() as tasks:
        slow = [tasks.create_task(fetch(client, f"http://a.test:{server.port}/slow")) for _ in range(5)]
        for _ in range(2):
            await arrived.acquire()
        assert await fetch(client, f"http://b.test:{server.port}/") == b"done"
        assert server.requests == ["/slow", "/slow", "/"]
        gate.set()
        assert [await task for task in slow] == [b"done"] * 5


async def test_turns_are_given_back() -> None:
    """Whichever way an exchange ends, the next one in the line for its host goes ahead."""

    async def answer(target: str) -> AsyncIterator[bytes]:
        yield {"/good": response(b"good"), "/cut": response(b"cut", length=100)}.get(target, b"no HTTP")

    async with serve(answer) as server, guarded_client(allow_private=True, per_host=1) as client:
        outcomes = await asyncio.gather(
            fetch(client, f"{server.url}/bad"),
            fetch(client, f"{server.url}/cut"),
            fetch(client, f"{server.url}/good", 2),
            fetch(client, f"{server.url}/good"),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [NetworkError, NetworkError, TooLong, bytes]


# --- statuses ---


async def test_json() -> None:
    """A JSON answer is returned as its value; what is not JSON is a NetworkError."""

    async def answer(target: str) -> bytes:
        return response({"a": [1]}) if target == "/good" else response("<html>")

    async with serve(answer) as server, guarded_client(allow_private=True) as client:
        assert await get_json(client, f"{server.url}/good", limit=100, seconds=30) == {"a": [1]}
        with pytest.raises(NetworkError, match=f"{server.url}/bad: not JSON"):
            await get_json(client, f"{server.url}/bad", limit=100, seconds=30)


@pytest.mark.parametrize(
    ("answer", "status", "error", "retry_after"),
    [
        (response({"error": "RepoNotFound", "message": "…"}, "400 Bad Request"), 400, "RepoNotFound", None),
        (response({"error": 1}, "400 Bad Request"), 400, None, None),
        (response([], "404 Not Found"), 404, None, None),
        (response("<html>", "502 Bad Gateway"), 502, None, None),
        (response(b"x" * 10_000, "500 Oops"), 500, None, None),
        (response(b"", "429 Slow", retry_after=7), 429, None, 7.0),
        (response(b"", "304 Same"), 304, None, None),
    ],
)
async def test_error_statuses(answer: bytes, status: int, error: str | None, retry_after: float | None) -> None:
    """An answer that is not 2xx is a StatusError with XRPC's name for it, and the wait that it asks for."""
    async with serve(always(answer)) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(StatusError, match=f"{server.url}: {status}") as raised:
            await get_json(client, server.url, limit=100, seconds=30)
    assert (raised.value.status, raised.value.error, raised.value.retry_after) == (status, error, retry_after)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "9" * 400}, 999_999_999),
        ({"retry-after": "Wed, 01 Jan 2025 00:00:30 GMT"}, 30),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}, 0),
        ({"ratelimit-reset": "1735689645"}, 45),
        ({"ratelimit-reset": "1"}, 0),
        ({"ratelimit-reset": "later"}, None),
        ({"ratelimit-reset": "1735689645", "retry-after": "3"}, 3),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After is seconds or a date, RateLimit-Reset a time; nonsense is no request to wait."""
    now = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
    assert _retry_after(httpx.Headers(headers, encoding="utf-8"), now) == seconds
