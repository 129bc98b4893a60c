"""DID documents and handles, with every server at the wire made to order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata.errors import NetworkError
from atdata_backend import identity
from atdata_backend.identity import DidNotFound, Identity, IdentityError, Resolver, read_document

PLC = "http://plc.test:2582"
DID = "did:plc:2a7ygipkrbh544aqhcav53oy"
OTHER = "did:plc:2c6wev5ei4jzcy4imh5afa35"
KEY = "zQ3shrc8v5X6ZiANcZxA6JerfT2T4SskeCGxpmtDfMuHF9KRj"
# A key as an older directory writes it, and the same as the directory's operation log has it.
POINT = "zRVtzHAGZc17cWE7x5VzTrW1BueEMZjeJWNaPJQnz1Ly8dEmZoDyzaYBiP7Txhp9dPK6P54a3Usk7fyU6Kdpi9J5Z"
POINT_KEY = "zQ3shaxgkh3puqajX9XawMuSf4o4umeezcJymrHxaeSAsxqHu"
HANDLE = "ada.example.org"


def document(did: str = DID, **changes: Any) -> dict[str, Any]:
    return {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": did,
        "alsoKnownAs": [f"at://{HANDLE}"],
        "verificationMethod": [
            {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": KEY}
        ],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example.com"}
        ],
        **changes,
    }


Page = Any
"""What a URL answers: a status, text, bytes, a value in JSON, or a coroutine function that makes one."""


class Web:
    """Answers of the web by URL, everything else being 404; and what was asked of it."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self.pages = pages
        self.asked: list[str] = []
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        page = self.pages.get(str(request.url), 404)
        if callable(page):
            page = await page()
        if isinstance(page, int):
            return httpx.Response(page, content=_stream(b""))
        if isinstance(page, str):
            page = page.encode()
        return httpx.Response(200, content=_stream(page if isinstance(page, bytes) else json.dumps(page).encode()))


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def never() -> Page:
    await asyncio.Event().wait()


@asynccontextmanager
async def name_server(texts: dict[str, list[str]] | None, *, silent: bool = False) -> AsyncIterator[Any]:
    """A resolver that asks a DNS server of these TXT records; None for one that fails at every question."""

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            query = dns.message.from_wire(data)
            answer = dns.message.make_response(query)
            name = query.question[0].name
            if silent:
                return
            if texts is None:
                answer.set_rcode(dns.rcode.SERVFAIL)
            elif found := texts.get(name.to_text(omit_final_dot=True)):
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *found))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self.transport.sendto(answer.to_wire(), address)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    try:
        yield resolver
    finally:
        transport.close()


async def resolve(did: str, pages: dict[str, Page], texts: dict[str, list[str]] | None = None, **options: Any) -> Any:
    """The identity in a world of these pages and TXT records."""
    async with name_server(texts or {}) as names:
        web = Web(pages)
        async with web.client:
            return await Resolver(web.client, plc_url=PLC, dns_resolver=names, **options).resolve(did)


# --- documents ---


async def test_plc() -> None:
    """A did:plc is looked up in the directory; its handle, host and key are what the document says."""
    found = await resolve(DID, {f"{PLC}/{DID}": document()}, {f"_atproto.{HANDLE}": [f'"did={DID}"']})
    assert found == Identity(DID, HANDLE, "https://pds.example.com", KEY)


async def test_web() -> None:
    """A did:web is looked up at its host."""
    did = "did:web:accounts.example.net"
    pages = {"https://accounts.example.net/.well-known/did.json": document(did)}
    assert await resolve(did, pages) == Identity(did, None, "https://pds.example.com", KEY)


@pytest.mark.parametrize(
    ("did", "url"),
    [
        ("did:web:localhost%3A8080", "http://localhost:8080/.well-known/did.json"),
        ("did:web:localhost", "http://localhost/.well-known/did.json"),
        ("did:web:pds.test%3A8443", "https://pds.test:8443/.well-known/did.json"),
    ],
)
async def test_web_on_private_hosts(did: str, url: str) -> None:
    """Ports and localhost are for development: read where the operator allows private hosts, refused elsewhere."""
    assert await resolve(did, {url: document(did)}, allow_private=True)
    with pytest.raises(IdentityError, match=r"no port|names a host"):
        await resolve(did, {url: document(did)})


@pytest.mark.parametrize(
    "did",
    [
        "",
        "did:plc:",
        "did:plc:short",
        "did:plc:" + "A" * 24,
        "did:plc:" + "1" * 24,
        "did:plc:" + "a" * 25,
        "did:plc:..%2F..%2Fexport",
        "did:web:example",
        "did:web:127.0.0.1",
        "did:web:example.com:path",
        "did:web:example.com%2Fpath",
        "did:web:example.com%3A",
        "did:web:example.com%3A80%3A80",
        "did:web:user%40example.com",
        "did:web:localhost",
        "did:key:zQ3shrc8v5X6ZiANcZxA6JerfT2T4SskeCGxpmtDfMuHF9KRj",
        "did:example:alice",
        "at://example.com",
        "https://example.com",
    ],
)
async def test_other_dids(did: str) -> None:
    """What is neither a did:plc nor a did:web of a host is refused, and nobody is asked."""
    web = Web({})
    async with web.client:
        with pytest.raises(IdentityError):
            await Resolver(web.client, plc_url=PLC).resolve(did)
    assert web.asked == []


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("did", [DID, "did:web:example.com"])
async def test_no_such_did(did: str, status: int) -> None:
    """A DID that is unknown, or closed by a tombstone, is DidNotFound; a directory may just not know it."""
    pages = {f"{PLC}/{DID}": status, "https://example.com/.well-known/did.json": status}
    with pytest.raises(DidNotFound, match=rf"{did}: http.* answers {status}") as found:
        await resolve(did, pages)
    assert found.value.is_closed == (status == 410 or did != DID)


@pytest.mark.parametrize("page", [500, 429, 302, "<html>", b"\xff", "[" * 100_000, b"x" * 300_000])
async def test_directory_in_trouble(page: Page) -> None:
    """A directory that answers otherwise than with a document is a NetworkError: the DID may well exist."""
    with pytest.raises(NetworkError, match=f"{PLC}/{DID}"):
        await resolve(DID, {f"{PLC}/{DID}": page})


@pytest.mark.parametrize("page", [None, [], "document", {}, {"id": OTHER}, {"id": None}, {"id": [DID]}])
async def test_documents_of_others(page: Any) -> None:
    """A document that is not of the DID asked for is an error."""
    with pytest.raises(IdentityError, match="not of this DID"):
        read_document(DID, page)


def test_nothing_said() -> None:
    """A document need not say anything."""
    assert read_document(DID, {"id": DID}) == (Identity(DID, None, None, None), None)


@pytest.mark.parametrize(
    ("names", "handle"),
    [
        (["at://Ada.Example.ORG"], HANDLE),
        (["https://ada.example.org", "at://ada.example.org", "at://second.example.org"], HANDLE),
        (["at://", "at://no_handle", f"at://{DID}", 5, None, "at://ada.example.org"], HANDLE),
        (["at://ada.example.org/path", "at://ada.example.org?query"], None),
        (["ada.example.org"], None),
        ("at://ada.example.org", None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_claimed_handles(names: Any, handle: str | None) -> None:
    """The first valid handle counts, in lower case."""
    assert read_document(DID, document(alsoKnownAs=names))[1] == handle


def pds(endpoint: Any, **changes: Any) -> list[dict[str, Any]]:
    return [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint, **changes}]


@pytest.mark.parametrize(
    ("service", "origin"),
    [
        (pds("https://pds.example.com"), "https://pds.example.com"),
        (pds("https://PDS.example.com/"), "https://pds.example.com"),
        (pds("https://pds.example.com/path?query#fragment"), "https://pds.example.com"),
        (pds("http://localhost:2583"), "http://localhost:2583"),
        (pds("https://[2606:4700::1111]:443"), "https://[2606:4700::1111]:443"),
        (pds("https://pds.example.com", id=f"{DID}#atproto_pds"), "https://pds.example.com"),
        ([{"id": "#other"}, "text", None, *pds("https://a.example"), *pds("https://b.example")], "https://a.example"),
        (pds("https://pds.example.com", id="#atproto_labeler"), None),
        (pds("https://pds.example.com", id=f"{OTHER}#atproto_pds"), None),
        (pds("https://pds.example.com", type="AtprotoLabeler"), None),
        (pds("https://user:password@pds.example.com"), None),
        (pds("https://pds.example.com:port"), None),
        (pds("https://pds.example.com:99999"), None),
        (pds("https://"), None),
        (pds("https://[::1"), None),
        (pds("https://pds.exämple.com"), None),
        (pds("wss://pds.example.com"), None),
        (pds("file:///etc/passwd"), None),
        (pds("https://" + "a" * 1000), None),
        (pds(["https://pds.example.com"]), None),
        (pds({"uri": "https://pds.example.com"}), None),
        (pds(None), None),
        ({}, None),
        (None, None),
    ],
)
def test_hosts(service: Any, origin: str | None) -> None:
    """The host of the repository is the first service #atproto_pds, if it is a URL of a web server."""
    assert read_document(DID, document(service=service))[0].pds == origin


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"id": "#atproto", "type": "Multikey", "publicKeyMultibase": KEY}, KEY),
        ({"id": f"{DID}#atproto", "type": "Multikey", "publicKeyMultibase": KEY}, KEY),
        ({"id": f"{DID}#atproto_label", "type": "Multikey", "publicKeyMultibase": KEY}, None),
        ({"id": "#atproto", "type": "EcdsaSecp256k1VerificationKey2019", "publicKeyMultibase": POINT}, POINT_KEY),
        ({"id": "#atproto", "type": "EcdsaSecp256k1VerificationKey2019", "publicKeyMultibase": KEY}, None),
        ({"id": "#atproto", "type": "EcdsaSecp256k1VerificationKey2019", "publicKeyMultibase": "?"}, None),
        ({"id": "#atproto", "type": "EcdsaSecp256k1VerificationKey2019", "publicKeyMultibase": ""}, None),
        ({"id": "#atproto", "type": "Ed25519VerificationKey2018", "publicKeyMultibase": KEY}, None),
        ({"id": "#atproto", "type": ["Multikey"], "publicKeyMultibase": KEY}, None),
        ({"id": "#atproto", "type": "Multikey", "publicKeyMultibase": 5}, None),
        ({"id": "#atproto", "type": "Multikey", "publicKeyMultibase": "z" * 1000}, None),
        ({"id": "#atproto", "type": "Multikey"}, None),
        ({}, None),
    ],
)
def test_keys(method: Any, key: str | None) -> None:
    """The signing key is that of the verification method #atproto."""
    assert read_document(DID, document(verificationMethod=[method]))[0].signing_key == key


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", DID, "#atproto", "at://a.bc", "https://a.bc"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "type", "serviceEndpoint", "publicKeyMultibase"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["alsoKnownAs", "verificationMethod", "service"]), JSON))
def test_any_document(parts: dict[str, Any]) -> None:
    """Whatever a document holds, it is read; what is not valid in it is as if it were not there."""
    assert read_document(DID, {**parts, "id": DID})[0].did == DID


async def test_documents_alone() -> None:
    """Where host and key are enough, nobody is asked about the handle; it is None, though the document claims one."""
    web = Web({f"{PLC}/{DID}": document(), WELL_KNOWN: DID})
    async with web.client, name_server({f"_atproto.{HANDLE}": [f'"did={DID}"']}) as names:
        found = await Resolver(web.client, plc_url=PLC, dns_resolver=names).document(DID)
    assert found == Identity(DID, None, "https://pds.example.com", KEY)
    assert web.asked == [f"{PLC}/{DID}"]


# --- handles ---

WELL_KNOWN = f"https://{HANDLE}/.well-known/atproto-did"


async def handle_of(pages: dict[str, Page], texts: dict[str, list[str]] | None = None, **options: Any) -> str | None:
    """The confirmed handle of DID, which claims HANDLE."""
    found = await resolve(DID, {f"{PLC}/{DID}": document(), **pages}, texts, **options)
    assert (found.pds, found.signing_key) == ("https://pds.example.com", KEY)
    handle: str | None = found.handle
    return handle


@pytest.mark.parametrize(
    ("texts", "handle"),
    [
        ([f'"did={DID}"'], HANDLE),
        ([f'"did={DID[:10]}" "{DID[10:]}"'], HANDLE),
        (['"v=spf1 -all"', f'"did={DID}"'], HANDLE),
        ([f'"did={OTHER}"'], None),
        ([f'"did={DID}"', f'"did={OTHER}"'], None),
        ([f'"did={DID} "'], None),
        ([f'"{DID}"'], None),
        (['"did="'], None),
        (['"did=\\255\\254"'], None),
    ],
)
async def test_handles_by_dns(texts: list[str], handle: str | None) -> None:
    """A handle is confirmed by the one TXT record at `_atproto.` that names the DID."""
    assert await handle_of({}, {f"_atproto.{HANDLE}": texts}) == handle


@pytest.mark.parametrize(
    ("page", "handle"),
    [
        (DID, HANDLE),
        (f"\n{DID} \r\n", HANDLE),
        (OTHER, None),
        (f"{DID}\n{OTHER}", None),
        ("", None),
        (b"\xff", None),
        (b"x" * 10_000, None),
        (404, None),
        (500, None),
        (302, None),
    ],
)
async def test_handles_by_https(page: Page, handle: str | None) -> None:
    """A handle is confirmed by the DID at its domain's `/.well-known/atproto-did`."""
    assert await handle_of({WELL_KNOWN: page}) == handle


async def test_dns_counts_where_both_answer() -> None:
    """Where DNS and HTTPS differ, DNS counts."""
    texts = {f"_atproto.{HANDLE}": [f'"did={DID}"']}
    assert await handle_of({WELL_KNOWN: OTHER}, texts) == HANDLE
    assert await handle_of({WELL_KNOWN: DID}, {f"_atproto.{HANDLE}": [f'"did={OTHER}"']}) is None


async def test_dns_does_not_wait_for_https() -> None:
    """Once DNS has answered, a web server that does not answer is not waited for."""
    assert await handle_of({WELL_KNOWN: never}, {f"_atproto.{HANDLE}": [f'"did={DID}"']}) == HANDLE


@pytest.mark.parametrize("trouble", ["fails", "silent", "unconfigured"])
async def test_name_servers_in_trouble(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When DNS fails, or says nothing, HTTPS counts alone."""
    monkeypatch.setattr(identity, "_DNS_DEADLINE", 0.2)
    web = Web({f"{PLC}/{DID}": document(), WELL_KNOWN: DID})
    async with name_server(None, silent=trouble == "silent") as names, web.client:
        if trouble == "unconfigured":
            names.nameservers = []
        found = await Resolver(web.client, plc_url=PLC, dns_resolver=names).resolve(DID)
    assert found.handle == HANDLE


async def test_slow_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle whose servers do not answer in time is not confirmed; the rest of the identity is there."""
    monkeypatch.setattr(identity, "_HANDLE_DEADLINE", 0.2)
    web = Web({f"{PLC}/{DID}": document(), WELL_KNOWN: never})
    async with name_server({}, silent=True) as names, web.client:
        found = await Resolver(web.client, plc_url=PLC, dns_resolver=names).resolve(DID)
    assert found == Identity(DID, None, "https://pds.example.com", KEY)


@pytest.mark.parametrize("handle", ["ada.test", "ada.localhost", "router.local", "handle.invalid", "1.0.0.127.arpa"])
async def test_names_without_a_domain(handle: str) -> None:
    """For names that are reserved for other uses, nobody is asked."""
    web = Web({f"{PLC}/{DID}": document(alsoKnownAs=[f"at://{handle}"])})
    async with web.client:
        assert (await Resolver(web.client, plc_url=PLC).resolve(DID)).handle is None
    assert web.asked == [f"{PLC}/{DID}"]


RESOLVER = "http://localhost:2583"
ASKED = f"{RESOLVER}/xrpc/com.atproto.identity.resolveHandle?handle={HANDLE}"


@pytest.mark.parametrize(
    ("page", "handle"),
    [
        ({"did": DID}, HANDLE),
        ({"did": OTHER}, None),
        ({"did": [DID]}, None),
        ([DID], None),
        ("text", None),
        (400, None),
    ],
)
async def test_handle_resolver(page: Page, handle: str | None) -> None:
    """Where the operator names a service for handles, it alone is asked."""
    other_pages = {WELL_KNOWN: DID}
    texts = {f"_atproto.{HANDLE}": [f'"did={DID}"']}
    for url in (RESOLVER, RESOLVER + "/"):
        assert await handle_of({ASKED: page, **other_pages}, texts, handle_resolver=url) == handle


async def test_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory and the handle resolver may be on this machine, as the operator named them; documents may not."""
    trusted: dict[str, Callable[..., Awaitable[Any]]] = {}
    web = Web({f"{PLC}/{DID}": document(), ASKED: {"did": DID}})
    answer = web._answer

    async def noted(request: httpx.Request) -> httpx.Response:
        trusted[request.url.host] = request.extensions["atdata_trusted"]
        return await answer(request)

    async with name_server({}) as names, httpx.AsyncClient(transport=httpx.MockTransport(noted)) as client:
        await Resolver(client, plc_url=PLC, handle_resolver=RESOLVER).resolve(DID)
        resolver = Resolver(client, plc_url=PLC, dns_resolver=names)
        await resolver.resolve(DID)
        with pytest.raises(DidNotFound):
            await resolver.resolve("did:web:example.com")
    assert trusted == {"plc.test": True, "localhost": True, HANDLE: False, "example.com": False}


def test_what_no_database_holds() -> None:
    """A U+0000 in a key or in an address is neither: it would end whoever stores it."""
    did = "did:web:example.com"
    document = {
        "id": did,
        "verificationMethod": [{"id": "#atproto", "type": "Multikey", "publicKeyMultibase": "zQ3\x00"}],
        "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://a\x00b"}],
    }
    assert read_document(did, document)[0] == Identity(did, None, None, None)
