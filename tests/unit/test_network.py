"""Outgoing HTTP and DIDs: where requests go, where they never go, how often they are tried."""

from __future__ import annotations

import json
import pickle
import socket

import pytest
from web import Reply, Web, dripping, serve

from atdata import network
from atdata.errors import NetworkError
from atdata.network import DidNotFoundError, DidResolver, StatusError, get_json, is_public, open_response

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
OTHER = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing waits; what would have is noted."""
    noted: list[float] = []
    monkeypatch.setattr(network, "_pause", noted.append)
    for name in ("ATDATA_PLC_URL", "ATDATA_ALLOW_PRIVATE_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    return noted


def read(url: str, **options: object) -> bytes:
    with open_response(url, **options) as response:
        return b"".join(response.iter_raw())


ADDRESSES = [
    ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("127.0.0.1", False),
    ("10.1.2.3", False), ("192.168.0.1", False), ("172.16.0.1", False), ("169.254.169.254", False),
    ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
    ("192.0.0.192", False), ("168.63.129.16", False), ("::1", False), ("::", False), ("fe80::1", False),
    ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True),
    ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True), ("2002:7f00:1::", False),
    ("2001:0:7f00:1::", False), ("2001:db8::1", False), ("ff02::1", False), ("example.com", False), ("", False),
]  # fmt: skip


@pytest.mark.parametrize(("address", "expected"), ADDRESSES)
def test_public_addresses(address, expected):
    """Only hosts on the public internet are public, in whatever way an address is wrapped."""
    assert is_public(address) is expected


def test_strangers_urls_do_not_reach_private_hosts(monkeypatch):
    """Loopback, and names that resolve to it, are refused; trusted URLs, and the operator's word, open them."""
    with serve(lambda path: Reply(b"secret")) as web:
        port = web.url.rpartition(":")[2]
        for url in (web.url, f"http://localhost:{port}"):
            with pytest.raises(NetworkError, match=r"not on the public internet; set ATDATA_ALLOW_PRIVATE_HOSTS"):
                read(url)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
        with pytest.raises(NetworkError, match=r"innocent.example.com is at 10\.0\.0\.1"):
            read("http://innocent.example.com/")
        monkeypatch.undo()
        assert web.requests == []
        assert read(web.url, trusted=True) == b"secret"
        monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
        assert read(web.url) == b"secret"


def test_what_was_checked_is_what_is_connected_to(monkeypatch):
    """The name is resolved once: a second answer, with another address, is never asked for."""
    asked = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) > 1 else "203.0.114.7", port))]

    connected = []

    class Stop(Exception):
        pass

    def connect(self: object, host: str, *_: object) -> None:
        connected.append(host)
        raise Stop

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", connect)
    with pytest.raises(Stop):
        read("http://rebinding.example.com/")
    assert connected == ["203.0.114.7"]
    assert asked == ["rebinding.example.com"]


def test_redirects_do_not_reach_private_hosts(monkeypatch):
    """Every hop of a redirect is checked like the first."""
    with serve(lambda path: Reply(b"secret")) as inner:
        outer_url = ""

        def allow_outer(host: str, port: int) -> list[str]:
            if f"{host}:{port}" in outer_url:
                return [host]
            raise NetworkError(f"{host} is not on the public internet")

        with serve(lambda path: Reply(status=302, headers={"Location": inner.url})) as outer:
            outer_url = outer.url
            monkeypatch.setattr(network, "resolve_public", allow_outer)
            with pytest.raises(NetworkError, match="not on the public internet"):
                read(outer.url)
            assert len(outer.requests) == 1
            assert inner.requests == []
            assert read(outer.url, trusted=True) == b"secret"


def test_redirects_in_a_circle_end():
    """A server that redirects to itself is given up."""
    with serve(lambda path: Reply(status=302, headers={"Location": "/"})) as web:
        with pytest.raises(NetworkError):
            read(web.url, trusted=True)
        assert len(web.requests) < 10


def failing(times: int, reply: Reply) -> tuple[list[str], object]:
    seen: list[str] = []

    def answer(path: str) -> Reply:
        seen.append(path)
        return reply if len(seen) <= times else Reply(b"ok")

    return seen, answer


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_busy_servers_are_asked_again(status, pauses):
    """A server that says it is busy is asked again, with growing pauses."""
    seen, answer = failing(2, Reply(status=status))
    with serve(answer) as web:
        assert read(web.url, trusted=True) == b"ok"
    assert len(seen) == 3
    assert 0 < pauses[0] <= 1
    assert 0 < pauses[1] <= 2


def test_servers_may_say_when(pauses):
    """Retry-After is heeded, up to half a minute."""
    _, answer = failing(2, Reply(status=503, headers={"Retry-After": "7"}))
    with serve(answer) as web:
        read(web.url, trusted=True)
    assert pauses == [7.0, 7.0]
    _seen, answer = failing(1, Reply(status=503, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}))
    with serve(answer) as web:
        read(web.url, trusted=True)
    assert pauses[2:] == [30.0]


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2030 00:00:00 +99999999999999",
        "Mon, 01 Jan 2030 99999999999999999999:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2300",
        "99999999999999999999",
        "1e9",
        "a, b c d e f",
    ],
)
def test_servers_that_say_nonsense_of_when(value, pauses):
    """An odd Retry-After is a pause like others, never an exception of the standard library's."""
    with serve(lambda path: Reply(status=429, headers={"Retry-After": value})) as web:
        with pytest.raises(StatusError, match="429"):
            read(web.url, trusted=True)
    assert len(pauses) == 3
    assert max(pauses) <= 30


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_other_errors_are_final(status, pauses):
    """An error of ours is not repeated; the message has the status and what XRPC says of it."""
    body = json.dumps({"error": "RepoNotFound", "message": "Could not find repo"}).encode()
    with serve(lambda path: Reply(body, status)) as web:
        with pytest.raises(StatusError, match=f"{status} RepoNotFound Could not find repo") as caught:
            read(web.url, trusted=True)
        assert len(web.requests) == 1
    assert caught.value.status == status
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert pauses == []


def test_servers_that_are_down_are_named(pauses):
    """After some tries, the URL and the advice to check it."""
    with serve(lambda path: Reply()) as web:
        pass
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1.*check the address, and that the server is up"):
        read(web.url, trusted=True)
    assert len(pauses) == 3


@pytest.mark.parametrize("url", ["", "ftp://example.com/", "http://", "http://[::1", "x" * 70000])
def test_what_is_no_url_is_an_error(url, pauses):
    """Malformed URLs and other schemes are NetworkErrors at once."""
    with pytest.raises(NetworkError):
        read(url, trusted=True)
    assert pauses == []


def test_passwords_are_not_repeated():
    """A password in a URL does not get into the message."""
    with pytest.raises(NetworkError) as caught:
        read("ftp://user:hunter2@example.com/", trusted=True)
    assert "hunter2" not in str(caught.value)


DRIPS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a", b"\r\nContent-Length: 2\r\n\r\n{}"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 102\r\n\r\n", b" ", b"{}"),
    "the body of an error": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 102\r\n\r\n", b" ", b"{}"),
}


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "trusted"])
@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_slow_answers_end_in_time(drip, is_guarded, monkeypatch):
    """A deadline holds for all of an answer, whichever part of it a server drips."""
    monkeypatch.setattr(network, "resolve_public", lambda host, port: [host])
    with dripping(*drip) as server:
        # Of an error, the status was said in time.
        with pytest.raises(NetworkError, match=r"not answered in full within 0\.3 s|: 404$"):
            get_json(server.url, trusted=not is_guarded, seconds=0.3)
        assert not server.was_waited_for


@pytest.mark.parametrize("drip", [DRIPS["headers"], DRIPS["interim answers"]], ids=["headers", "interim answers"])
def test_answers_begin_in_time(drip, monkeypatch):
    """Also where a body may take as long as it likes, each attempt has a deadline until it begins."""
    monkeypatch.setattr(network, "_ANSWER_SECONDS", 0.1)
    with dripping(*drip) as server:
        with pytest.raises(NetworkError, match=r"not answered in full within 0\.1 s"):
            read(server.url, trusted=True)
        assert not server.was_waited_for


def test_an_inner_deadline_does_not_extend_an_outer_one(pauses):
    """What is over stays over: nothing is asked, and nobody pauses for longer than is left."""
    with serve(lambda path: Reply(status=503, headers={"Retry-After": "20"})) as web:
        with network.deadline(0), pytest.raises(NetworkError, match="not answered in full within 0 s"):
            get_json(web.url, trusted=True, seconds=60)
        assert web.requests == []
        with pytest.raises(StatusError, match="503"):
            get_json(web.url, trusted=True, seconds=10)
    assert pauses == []


def test_no_cookies_are_kept():
    """What a server sets is not sent back, neither to it nor to a neighbour of its."""
    with serve(lambda path: Reply(b"{}", headers={"Set-Cookie": "track=42; Path=/; Max-Age=99999"})) as web:
        for path in ("/a", "/b"):
            get_json(web.url + path, trusted=True)
        assert all("cookie" not in headers for headers in web.headers)
    assert not network._client(False).cookies


def test_json_is_limited():
    """Documents are small: more bytes, another type, and endless nesting are errors."""
    with serve(
        lambda path: Reply({"/long": b" " * 300_000, "/deep": b"[" * 100_000, "/ok": b"{}"}.get(path, b"<"))
    ) as web:
        assert get_json(f"{web.url}/ok", trusted=True) == {}
        for path, message in {"/long": "more than", "/deep": "not JSON", "/html": "not JSON"}.items():
            with pytest.raises(NetworkError, match=message):
                get_json(web.url + path, trusted=True)


# --- DIDs


def document(did: str, endpoint: object = "https://pds.example.com", **more: object) -> bytes:
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
    return json.dumps(
        {"id": did, "alsoKnownAs": ["https://x", "at://Alice.Example.com"], "service": [service], **more}
    ).encode()


def directory(**documents: bytes) -> object:
    def answer(path: str) -> Reply:
        found = documents.get(path[1:])
        return Reply(b'{"message": "not registered"}', 404) if found is None else Reply(found)

    return serve(answer)


def test_plc_documents_are_read_and_remembered():
    """The directory is asked once per DID; it says handle and server."""
    with directory(**{DID: document(DID)}) as web:
        resolver = DidResolver(web.url + "/")
        assert resolver.resolve(DID) == network.Identity(DID, "alice.example.com", "https://pds.example.com")
        assert resolver.pds(DID) == "https://pds.example.com"
        assert web.requests == [f"/{DID}"]
        resolver.forget(DID)
        resolver.resolve(DID)
        assert len(web.requests) == 2


def test_the_directory_can_come_from_the_environment(monkeypatch):
    """ATDATA_PLC_URL names it, unless an argument does."""
    with directory(**{DID: document(DID)}) as web:
        monkeypatch.setenv("ATDATA_PLC_URL", web.url)
        assert DidResolver().pds(DID) == "https://pds.example.com"


def test_a_local_directory_means_a_local_network(monkeypatch):
    """Its documents may name private hosts and plain http; the public directory's may not."""
    local = document(DID, "http://localhost:2583")
    with directory(**{DID: local}) as web:
        resolver = DidResolver(web.url)
        assert resolver.pds(DID) == "http://localhost:2583"
        assert resolver.trusts_private_hosts
        monkeypatch.setattr(network, "_is_local", lambda url: False)
        resolver = DidResolver(web.url)
        assert not resolver.trusts_private_hosts
        with pytest.raises(NetworkError, match="names no server"):
            resolver.pds(DID)


DOCUMENTS = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "another's": document(OTHER),
    "no service": document(DID, service=[]),
    "odd services": document(DID, service=["x", {"id": 5}, {"id": "#other", "serviceEndpoint": "https://x.com"}]),
    "services of a wrong type": document(DID, service={"id": "#atproto_pds"}),
    "no endpoint": document(DID, None),
    "file": document(DID, "file:///etc/passwd"),
    "with a password": document(DID, "https://user:pw@pds.example.com"),
    "no host": document(DID, "https://"),
    "a bad port": document(DID, "https://pds.example.com:99999999"),
    "not ASCII": document(DID, "https://pds.exämple.com"),
}


@pytest.mark.parametrize("body", DOCUMENTS.values(), ids=DOCUMENTS)
def test_odd_documents_are_errors(body):
    """A document without a server that we ask is an error that names the DID, whatever else it is."""
    with directory(**{DID: body}) as web, pytest.raises(NetworkError):
        DidResolver(web.url).pds(DID)


def test_unknown_accounts_are_named():
    """A DID that nobody registered is DidNotFoundError."""
    with directory() as web, pytest.raises(DidNotFoundError, match=f"{DID}: no such account"):
        DidResolver(web.url).resolve(DID)


@pytest.mark.parametrize(
    "did",
    [
        "", "alice", "did:plc:short", "did:plc:../../etc", "did:key:zQ3shunBKsXixLxKtC5qeSG9E4J5RkGN57im31pcTzbNQnm5w",
        "did:web:localhost", "did:web:127.0.0.1", "did:web:example.com%3A8080", "did:web:example.com:path", "did:web:a",
    ],
)  # fmt: skip
def test_dids_that_are_not_asked(did):
    """No request is made for malformed DIDs, other methods, and did:web of private hosts, ports and paths."""
    resolver = DidResolver("https://plc.example.com")
    with pytest.raises(NetworkError):
        resolver.resolve(did)


def test_did_web_on_localhost():
    """On a local network, did:web names localhost with a port, by http, as the reference implementation does."""

    def answer(path: str) -> Reply:
        return (
            Reply(document(f"did:web:localhost%3A{web.url.rpartition(':')[2]}"))
            if path.startswith("/.well")
            else Reply()
        )

    with serve(answer) as web:
        did = f"did:web:localhost%3A{web.url.rpartition(':')[2]}"
        assert DidResolver("http://127.0.0.1:1").pds(did) == "https://pds.example.com"
        assert web.requests == ["/.well-known/did.json"]


def test_requests_say_who_asks():
    """Requests name the library, and ask for the bytes as they are."""
    with serve(lambda path: Reply()) as web:
        read(web.url, trusted=True)
    assert isinstance(web, Web)
    assert web.headers[0]["user-agent"].startswith("atdata/")
    assert web.headers[0]["accept-encoding"] == "identity"
