"""The atmosphere package when the network misbehaves: a server of our own says what a real one says on bad days."""

from __future__ import annotations

import base64
import errno
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from shard_files import Digit, Labelled, digits, packed_shard, write_shard
from web import Reply, serve

import atdata
from atdata import atmosphere, network
from atdata.atmosphere import (
    AtmosphereClient,
    AtmosphereIndex,
    DatasetLoader,
    DatasetPublisher,
    LabelLoader,
    LabelPublisher,
    LensPublisher,
    PDSBlobStore,
    SchemaPublisher,
    blobs,
)
from atdata.atmosphere import (
    client as client_module,
)
from atdata.atmosphere.client import StoredRecord
from atdata.atmosphere.index import DatasetEntry
from atdata.cid import generate_cid, raw_cid
from atdata.errors import (
    ArgumentError,
    ConfigError,
    LensError,
    LoginError,
    MissingExtraError,
    MissingShardError,
    NetworkError,
    NotFoundError,
    RateLimitError,
    RecordError,
    SampleError,
    SchemaError,
    ShardError,
    SourceError,
    UriError,
)
from atdata.schema import type_to_schema
from atdata.shards import iter_samples
from atdata.sources import Subset

ADA = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
BEN = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
DATASET, SCHEMA, LABEL = (f"ac.foundation.dataset.{name}" for name in ("record", "sampleSchema", "label"))
SCHEMA_URI = f"at://{ADA}/{SCHEMA}/3jzfcijpj2z2a"


# --- A PDS and a PLC directory of our own


class Drop(Exception):
    """The connection ends without an answer."""


def token(lifetime: float, **claims: Any) -> str:
    """A JWT that nobody signed: clients only look at when it expires."""
    parts = [{"alg": "HS256"}, {"exp": int(time.time() + lifetime), **claims}]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts), "c2ln"])


Json = dict[str, Any]
Fault = Callable[[], tuple[int, Json, dict[str, str]] | None]


class FakePds:
    """Accounts ADA and BEN on one server, with their records and blobs in memory. `faults` come before answers."""

    def __init__(self) -> None:
        self.url = ""
        self.records: dict[tuple[str, str, str], Json] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.limit = 10**9
        self.refreshed = 0

    def called(self, method: str) -> int:
        return self.requests.count(method)

    def fail(self, method: str, *faults: Fault) -> None:
        self.faults.setdefault(method, []).extend(faults)

    def answer(self, method: str, query: Json, body: bytes, headers: Any) -> tuple[int, Any, dict[str, str]]:
        self.requests.append(method)
        if self.faults.get(method) and (fault := self.faults[method].pop(0)()) is not None:
            return fault
        found = getattr(self, "do_" + method.rpartition(".")[2].replace(":", "_"), None)
        if found is None:
            return 404, {"error": "MethodNotImplemented", "message": method}, {}
        return found(query, body, headers)

    def do_createSession(self, query: Json, body: bytes, headers: Any) -> Any:
        given = json.loads(body)
        if given["password"] != "right":
            return 401, {"error": "AuthenticationRequired", "message": "Invalid identifier or password"}, {}
        return 200, {"did": ADA, "handle": "ada.test", "accessJwt": token(7200), "refreshJwt": token(9**7)}, {}

    def do_refreshSession(self, query: Json, body: bytes, headers: Any) -> Any:
        self.refreshed += 1
        return 200, {"did": ADA, "handle": "ada.test", "accessJwt": token(7200, n=1), "refreshJwt": token(9**7)}, {}

    def do_resolveHandle(self, query: Json, body: bytes, headers: Any) -> Any:
        dids = {"ada.test": ADA, "ben.test": BEN, "liar.test": BEN}
        if query["handle"] not in dids:
            return 400, {"error": "InvalidRequest", "message": "Unable to resolve handle"}, {}
        return 200, {"did": dids[query["handle"]]}, {}

    def do_createRecord(self, query: Json, body: bytes, headers: Any) -> Any:
        given = json.loads(body)
        key = given["repo"], given["collection"], given["rkey"]
        if key in self.records:
            return 500, {"error": "InternalServerError", "message": "Internal Server Error"}, {}
        return self._write(key, given["record"])

    def do_putRecord(self, query: Json, body: bytes, headers: Any) -> Any:
        given = json.loads(body)
        return self._write((given["repo"], given["collection"], given["rkey"]), given["record"])

    def _write(self, key: tuple[str, str, str], record: Json) -> Any:
        missing = [cid for cid in _links(record) if cid not in self.blobs]
        if missing:
            return 400, {"error": "BlobNotFound", "message": f"Could not find blob: {missing[0]}"}, {}
        self.records[key] = record
        return 200, {"uri": "at://" + "/".join(key), "cid": generate_cid(record)}, {}

    def do_deleteRecord(self, query: Json, body: bytes, headers: Any) -> Any:
        given = json.loads(body)
        self.records.pop((given["repo"], given["collection"], given["rkey"]), None)
        return 200, {}, {}

    def do_getRecord(self, query: Json, body: bytes, headers: Any) -> Any:
        key = query["repo"], query["collection"], query["rkey"]
        if key not in self.records:
            return 400, {"error": "RecordNotFound", "message": "Could not locate record"}, {}
        return 200, {"uri": "at://" + "/".join(key), "cid": "bafyx", "value": self.records[key]}, {}

    def do_listRecords(self, query: Json, body: bytes, headers: Any) -> Any:
        keys = sorted((key for key in self.records if key[:2] == (query["repo"], query["collection"])), reverse=True)
        keys = [key for key in keys if "cursor" not in query or key[2] < query["cursor"]][: int(query["limit"])]
        items = [{"uri": "at://" + "/".join(key), "cid": "bafyx", "value": self.records[key]} for key in keys]
        return 200, {"records": items, **({"cursor": keys[-1][2]} if keys else {})}, {}

    def do_uploadBlob(self, query: Json, body: bytes, headers: Any) -> Any:
        if len(body) > self.limit:
            return 413, {"error": "PayloadTooLarge", "message": "request entity too large"}, {}
        cid = raw_cid(sha256(body).digest())
        self.blobs[cid] = body
        mime = headers["content-type"]
        return 200, {"blob": {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime, "size": len(body)}}, {}

    def do_getBlob(self, query: Json, body: bytes, headers: Any) -> Any:
        cid = query["cid"]
        if not any(cid in _links(record) for record in self.records.values()) or cid not in self.blobs:
            return 400, {"error": "InvalidRequest", "message": "Blob not found"}, {}
        return 200, self.blobs[cid], {"Content-Type": "application/x-tar"}

    def document(self, did: str) -> Any:
        handle = {ADA: "ada.test", BEN: "ben.test"}.get(did)
        if handle is None:
            return 404, {"message": "not registered"}, {}
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": self.url}
        return 200, {"id": did, "alsoKnownAs": [f"at://{handle}"], "service": [service]}, {}


def _links(value: Any) -> list[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$link"), str):
            return [value["$link"]]
        value = list(value.values())
    return [link for inner in value for link in _links(inner)] if isinstance(value, list) else []


@contextmanager
def running(pds: FakePds) -> Iterator[FakePds]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece, or each waits for an acknowledgement

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            try:
                if parts.path.startswith("/xrpc/"):
                    status, answer, headers = pds.answer(parts.path[6:], query, body, self.headers)
                else:
                    status, answer, headers = pds.document(parts.path[1:])
            except Drop:
                self.close_connection = True
                return
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 — as the base class wants it

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not read to the end is part of some tests

    with Server(("127.0.0.1", 0), Handler) as server:
        pds.url = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield pds
        finally:
            for is_guarded in (True, False):
                network._client(is_guarded).close()
            network._client.cache_clear()
            server.shutdown()
            thread.join()


@pytest.fixture
def pds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePds]:
    """A server, the only one that is asked; nothing of other tests is remembered."""
    blobs._uploads_of.cache_clear()
    with running(FakePds()) as pds:
        for name, value in {"PLC_URL": pds.url, "CACHE": str(tmp_path / "cache"), "NO_PROGRESS": "1"}.items():
            monkeypatch.setenv(f"ATDATA_{name}", value)
        yield pds


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited, without the waiting."""
    waited: list[float] = []
    monkeypatch.setattr(client_module, "_pause", waited.append)
    monkeypatch.setattr(network, "_pause", waited.append)
    return waited


@pytest.fixture
def client(pds: FakePds, pauses: list[float]) -> AtmosphereClient:
    """ADA, logged in."""
    client = AtmosphereClient(base_url=pds.url)
    client.login("ada.test", "right")
    return client


@pytest.fixture
def dataset(tmp_path: Path) -> atdata.Dataset[Digit]:
    """100 digits in two shards whose keys are the same."""
    for i in range(2):
        write_shard(tmp_path / f"d-{i}.tar", digits(50, i * 50))
    return atdata.Dataset[Digit](str(tmp_path / "d-{0..1}.tar"))


@pytest.fixture
def schema(pds: FakePds) -> None:
    """The schema of digits at SCHEMA_URI."""
    written = type_to_schema(Digit, created_at=datetime(2026, 1, 1, tzinfo=UTC)).to_record()
    pds.records[ADA, SCHEMA, SCHEMA_URI.rpartition("/")[2]] = {"$type": SCHEMA, **written}


def refuse(status: int, error: str = "Busy", **headers: str) -> Fault:
    return lambda: (
        status,
        {"error": error, "message": "not now"},
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


def drop() -> None:
    raise Drop


LABEL_RECORD = {"name": "a", "datasetUri": f"at://{ADA}/{DATASET}/3jzfcijpj2z2a", "createdAt": "2026-01-01T00:00:00Z"}


# --- The package


def test_documented_names_are_public_and_load_nothing_before_they_are_used():
    """`__all__` is what is exported; the SDK is loaded by login, the HTTP client by reading."""
    for name in atmosphere.__all__:
        assert getattr(atmosphere, name) is not None
    code = (
        "import sys, atdata.atmosphere as a; a.AtUri; assert 'httpx' not in sys.modules and 'numpy' not in sys.modules"
    )
    more = "a.AtmosphereClient().is_authenticated; a.AtmosphereIndex; assert 'atproto_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}\n{more}"], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = atmosphere.Nothing


def test_the_classes_fit_the_protocols(client: AtmosphereClient):
    """An index is an AbstractIndex, a store an AbstractDataStore, an entry an IndexEntry; checking asks no server."""
    asked = AtmosphereIndex(AtmosphereClient())
    assert isinstance(asked, atdata.AbstractIndex)
    assert isinstance(PDSBlobStore(client), atdata.AbstractDataStore)
    assert isinstance(DatasetEntry(StoredRecord({}, f"at://{ADA}/{DATASET}/a", "")), atdata.IndexEntry)


# --- Sessions


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda url: AtmosphereClient("pds.example.com"), UriError, "write https://pds.example.com"),
        (lambda url: AtmosphereClient(url).login("ada.test", "wrong"), LoginError, "Invalid identifier or password; "),
        (lambda url: AtmosphereClient(url).login("ada.test", ""), LoginError, "give a handle and an app password"),
        (lambda url: AtmosphereClient(url).did, LoginError, "nobody is logged in; call login"),
        (lambda url: AtmosphereClient(url).export_session(), LoginError, "nobody is logged in"),
        (lambda url: AtmosphereClient(url).create_record(LABEL, {}), LoginError, "nobody is logged in"),
        (lambda url: AtmosphereIndex(AtmosphereClient(url)).list_datasets(), LoginError, "nobody is logged in"),
        (lambda url: PDSBlobStore(AtmosphereClient(url)).write_shards(None, prefix=""), LoginError, "nobody is"),
        (lambda url: AtmosphereClient("http://localhost:9").login("ada.test", "x"), NetworkError, "localhost:9.*is up"),
        (lambda url: AtmosphereClient(url + "/nowhere").login("ada.test", "x"), NetworkError, "nowhere"),
        (lambda url: AtmosphereClient().login_with_session("nonsense"), LoginError, "no session as export_session"),
        (lambda url: AtmosphereClient().login_with_session("a:::b:::c:::d:::e"), LoginError, "no session as export"),
        (
            lambda url: AtmosphereClient().login_with_session(
                f"ada.test:::{ADA}:::{token(-9)}:::{token(-9)}:::http://localhost:9"
            ),
            LoginError,
            "the session of ada.test has expired; log in",
        ),
        (
            lambda url: AtmosphereClient().login_with_session(f"a.test:::{ADA}:::{token(9)}:::{token(9)}:::file:///x"),
            LoginError,
            "no session as export_session",
        ),
        (lambda url: AtmosphereClient(url).resolve_repo("nobody.test"), NotFoundError, "no account has this handle"),
        (lambda url: AtmosphereClient(url).resolve_repo("liar.test"), NotFoundError, "claims another handle"),
        (lambda url: AtmosphereClient(url).resolve_repo("no handle"), UriError, "neither a handle such as"),
        (lambda url: AtmosphereClient(url).get_record("at://ada.test"), UriError, "has no collection"),
        (lambda url: AtmosphereClient(url).list_records(LABEL, ADA[:-1] + "c"), NotFoundError, "no such account"),
        (
            lambda url: AtmosphereClient(url).get_record(f"at://{ADA}/{LABEL}/nothing"),
            NotFoundError,
            f"at://{ADA}/{LABEL}/nothing: there is no such record",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_errors_of_ours_that_say_what_to_do(
    pds: FakePds, pauses: list[float], monkeypatch: pytest.MonkeyPatch, make: Any, error: type[Exception], says: str
):
    """What a person gets wrong is one of our exceptions, and names the culprit."""
    monkeypatch.setattr(client_module, "_by_dns", lambda handle: None)  # no test asks the world
    with pytest.raises(error, match=says):
        make(pds.url)


def test_an_expired_access_token_is_renewed_and_the_new_one_exported(pds: FakePds):
    """A session goes on in another client; a token that has expired is renewed before the request is made."""
    one = AtmosphereClient()
    stale = token(-60)
    one.login_with_session(f"ada.test:::{ADA}:::{stale}:::{token(9**7)}:::{pds.url}")
    assert (one.did, one.handle, one.is_authenticated) == (ADA, "ada.test", True)
    one.create_record(LABEL, LABEL_RECORD)
    assert pds.refreshed == 1
    assert stale not in one.export_session()
    two = AtmosphereClient()
    two.login_with_session(one.export_session() + "\n")
    two.create_record(LABEL, LABEL_RECORD)
    assert pds.refreshed == 1


def test_a_token_that_the_server_calls_expired_is_renewed(pds: FakePds, client: AtmosphereClient, dataset: Any):
    """Whatever our clock says of a token, ExpiredToken is answered with new ones, and the request is made again."""
    pds.fail("com.atproto.repo.createRecord", refuse(400, "ExpiredToken"))
    uri = client.create_record(LABEL, LABEL_RECORD)
    assert (pds.refreshed, pds.called("com.atproto.repo.createRecord")) == (1, 2)
    assert client.get_record(uri)["name"] == "a"
    pds.fail("com.atproto.repo.uploadBlob", refuse(401, "ExpiredToken"))
    sent: list[int] = []
    blob = client.upload_blob(b"some bytes" * 100_000, progress=sent.append)
    assert len(pds.blobs[blob["ref"]["$link"]]) == sum(sent) == 1_000_000
    assert pds.refreshed == 2


@pytest.mark.parametrize("refreshed", [True, False])
def test_a_session_that_the_server_has_ended_is_a_login_error(
    pds: FakePds, client: AtmosphereClient, refreshed: bool, pauses: list[float]
):
    """When new tokens are refused, or of no use either, the error says to log in again; nothing is tried for long."""
    pds.fail("com.atproto.repo.createRecord", *[refuse(400, "ExpiredToken")] * 2)
    if not refreshed:
        pds.fail("com.atproto.server.refreshSession", refuse(400, "ExpiredToken"))
    with pytest.raises(LoginError, match="log in again"):
        client.create_record(LABEL, LABEL_RECORD)
    assert pds.called("com.atproto.repo.createRecord") == 1 + refreshed
    assert pds.called("com.atproto.server.refreshSession") == 1
    assert pauses == []


def test_too_many_logins_are_not_waited_for(pds: FakePds, pauses: list[float]):
    """429 at login is an error at once, which says when to come back."""
    pds.fail("com.atproto.server.createSession", refuse(429, retry_after="250"))
    with pytest.raises(RateLimitError, match="try again in 250 s"):
        AtmosphereClient(pds.url).login("ada.test", "right")
    assert pauses == []


# --- Faults while writing


def test_a_busy_server_is_waited_for_as_long_as_it_asks(
    pds: FakePds, client: AtmosphereClient, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    """Retry-After and ratelimit-reset are heeded; without either, and for 5xx, pauses grow."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    pds.fail(
        "com.atproto.repo.putRecord",
        refuse(429, retry_after="7"),
        refuse(429, ratelimit_reset="1000042"),
        refuse(503),
        refuse(502),
    )
    client.put_record(LABEL, "3jzfcijpj2z2a", LABEL_RECORD)
    assert pauses[:2] == [7.0, 42.0]
    assert 2 <= pauses[2] <= 4 <= pauses[3] <= 8


@pytest.mark.parametrize(
    "header",
    [
        {"ratelimit_reset": "9" * 30},
        {"ratelimit_reset": "-" + "9" * 15},
        {"retry_after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"retry_after": "inf"},
    ],
)
def test_a_limit_until_never_is_waited_for_a_while(
    pds: FakePds, client: AtmosphereClient, pauses: list[float], header: dict[str, str]
):
    """An instant that no clock will show is as good as none."""
    pds.fail("com.atproto.repo.putRecord", refuse(429, **header))
    client.put_record(LABEL, "3jzfcijpj2z2a", LABEL_RECORD)
    assert pauses == [10.0]


@pytest.mark.parametrize("header", [{"retry_after": "86400"}, {"ratelimit_reset": str(2**33)}])
def test_a_limit_of_a_day_is_an_error(
    pds: FakePds, client: AtmosphereClient, pauses: list[float], header: dict[str, str]
):
    """Nobody waits for hours: the error says when the server takes requests again."""
    pds.fail("com.atproto.repo.putRecord", refuse(429, **header))
    with pytest.raises(RateLimitError, match=r"too many requests; try again in \d{5,} s"):
        client.put_record(LABEL, "3jzfcijpj2z2a", LABEL_RECORD)
    assert pauses == []


def test_a_server_that_stays_down_is_an_error_in_the_end(pds: FakePds, client: AtmosphereClient, pauses: list[float]):
    """Five attempts, then a NetworkError with the address."""
    pds.fail("com.atproto.repo.putRecord", *[drop] * 9)
    with pytest.raises(NetworkError, match=f"{pds.url}/xrpc/com.atproto.repo.putRecord"):
        client.put_record(LABEL, "3jzfcijpj2z2a", LABEL_RECORD)
    assert (pds.called("com.atproto.repo.putRecord"), len(pauses)) == (5, 4)


def test_a_record_whose_answer_got_lost_is_not_written_twice(pds: FakePds, client: AtmosphereClient):
    """The server writes, and the connection breaks before it says so: the repetition finds the record there."""
    original = pds.do_createRecord

    def once(query: Json, body: bytes, headers: Any) -> Any:
        pds.do_createRecord = original
        original(query, body, headers)
        raise Drop

    pds.do_createRecord = once
    uri = client.create_record(LABEL, LABEL_RECORD)
    assert [f"at://{'/'.join(key)}" for key in pds.records] == [uri]


def test_another_record_at_a_key_is_not_replaced(pds: FakePds, client: AtmosphereClient):
    """create_record at a key that is taken is a RecordError, even if the server only says 500."""
    client.create_record(LABEL, LABEL_RECORD, rkey="3jzfcijpj2z2a")
    with pytest.raises(RecordError, match="another record at this key; replace it with put_record"):
        client.create_record(LABEL, LABEL_RECORD | {"name": "b"}, rkey="3jzfcijpj2z2a")
    assert client.get_record(f"at://{ADA}/{LABEL}/3jzfcijpj2z2a")["name"] == "a"


@pytest.mark.parametrize(
    ("collection", "rkey", "record", "error", "says"),
    [
        (LABEL, None, {"x": float("nan")}, RecordError, "without floats"),
        (LABEL, None, {"x": [{"y": 1.5}]}, RecordError, "1.5 is a float; write it as text"),
        (LABEL, None, {"x": b"bytes"}, RecordError, "bytes as"),
        (LABEL, None, {"$type": SCHEMA}, RecordError, "does not belong into"),
        ("label", None, {}, UriError, "is no collection"),
        (LABEL, "no key", {}, UriError, "is no record key"),
    ],
)
def test_what_is_no_record_is_not_sent(
    pds: FakePds, client: AtmosphereClient, collection: str, rkey: str | None, record: Json, error: Any, says: str
):
    """A record that JSON or the protocol cannot hold is an error before the server is asked."""
    with pytest.raises(error, match=says):
        client.create_record(collection, record, rkey)
    assert pds.records == {}


def test_records_of_others_are_not_deleted(client: AtmosphereClient):
    """Deleting in another repository is a LoginError that names the record."""
    with pytest.raises(LoginError, match="log in as its owner"):
        client.delete_record(f"at://{BEN}/{LABEL}/3jzfcijpj2z2a")


# --- Faults while reading


def test_an_odd_record_never_fails_a_page(pds: FakePds, client: AtmosphereClient):
    """Records that are odd are listed with their problems; what has no address in the repository is passed over."""
    good = {"name": "b", "datasetUri": LABEL_RECORD["datasetUri"], "createdAt": "2026-01-01T00:00:00Z", "$type": LABEL}
    items = [
        {"uri": f"at://{ADA}/{LABEL}/a", "cid": "bafya", "value": good},
        {"uri": f"at://{ADA}/{LABEL}/b", "cid": None, "value": "text"},
        {"uri": f"at://{ADA}/{LABEL}/c", "value": {"$type": LABEL, "name": 5}},
        {"uri": f"at://{BEN}/{LABEL}/d", "cid": "bafyd", "value": good},
        {"uri": "nonsense", "value": good},
        "nonsense",
        None,
    ]
    pds.fail("com.atproto.repo.listRecords", lambda: (200, {"records": items}, {}))
    listed = client.list_records(LABEL)
    assert [(one.uri[-1], bool(one.problems)) for one in listed] == [("a", False), ("b", True), ("c", True)]
    assert listed[2]["name"] == 5
    assert all("<table" in one._repr_html_() for one in listed)


def test_an_odd_dataset_makes_an_entry(pds: FakePds):
    """An entry of a record with nothing right about it has all attributes, and says what is wrong."""
    for record in ({}, {"name": 1, "storage": {"$type": "?"}}, {"metadata": {"$bytes": "////"}, "tags": "a"}):
        entry = DatasetEntry(StoredRecord(record, f"at://{ADA}/{DATASET}/a", ""))
        assert (entry.name, entry.schema_ref, entry.data_urls, entry.metadata) == ("", "", [], None)
        assert entry.problems
        assert entry.uri in entry._repr_html_()


def test_listing_pages_to_the_end_and_not_in_circles(pds: FakePds, client: AtmosphereClient):
    """Pages are asked for until one is empty, or its cursor came before."""
    for i in range(250):
        pds.records[BEN, LABEL, f"key{i:04}"] = LABEL_RECORD
    assert len(client.list_records(LABEL, "ben.test")) == 250
    page = (200, {"records": [{"uri": f"at://{BEN}/{LABEL}/a", "value": {}}], "cursor": "same"}, {})
    pds.fail("com.atproto.repo.listRecords", lambda: page, lambda: page)
    assert len(client.list_records(LABEL, BEN)) == 2
    pds.fail("com.atproto.repo.listRecords", lambda: (200, {"records": "none"}, {}))
    with pytest.raises(NetworkError, match="without records"):
        client.list_records(LABEL, BEN)
    pds.fail("com.atproto.repo.listRecords", refuse(400, "RepoNotFound"))
    with pytest.raises(NotFoundError, match="no such account"):
        client.list_records(LABEL, BEN)


def test_an_empty_cursor_is_the_end(pds: FakePds, client: AtmosphereClient):
    """A page with an empty cursor is the last one, and not the first of the same once more."""
    page = {"records": [{"uri": f"at://{BEN}/{LABEL}/a", "value": {}}], "cursor": ""}
    pds.fail("com.atproto.repo.listRecords", lambda: (200, page, {}))
    assert len(client.list_records(LABEL, BEN)) == 1
    assert pds.called("com.atproto.repo.listRecords") == 1


def test_listings_that_go_on_and_on_are_errors(pds: FakePds, client: AtmosphereClient, monkeypatch: pytest.MonkeyPatch):
    """More records on a page than were asked for, more bytes than fit, pages without end: an error that says so."""

    def page(count: int) -> Fault:
        items = [{"uri": f"at://{BEN}/{LABEL}/{i}", "value": {"x": "y" * 1000}} for i in range(count)]
        return lambda: (200, {"records": items, "cursor": str(len(pds.requests))}, {})

    def listed(*faults: Fault) -> int:
        pds.faults.clear()
        pds.fail("com.atproto.repo.listRecords", *faults, lambda: (200, {"records": []}, {}))
        return len(client.list_records(LABEL, BEN))

    assert listed(page(100), page(100)) == 200
    with pytest.raises(NetworkError, match=f"at://{BEN}/{LABEL}: the server goes on and on; 101 records"):
        listed(page(101))
    monkeypatch.setattr(client_module, "_MAX_LISTING", 250_000)
    with pytest.raises(NetworkError, match="goes on and on; 100 records"):
        listed(page(100), page(100), page(100))
    monkeypatch.undo()
    monkeypatch.setattr(client_module, "_MAX_PAGES", 2)
    with pytest.raises(NetworkError, match="goes on and on"):
        listed(page(1), page(1), page(1), page(1))


def test_listings_begin_with_the_newest(pds: FakePds, client: AtmosphereClient):
    """Schemas of both collections are listed by when they were made, whatever their keys are; odd ones are the last."""
    both = SCHEMA, "ac.foundation.dataset.schema"
    times = {
        (both[0], "org.example.old"): "2020-01-01T00:00:00Z",
        (both[1], "3aaaaaaaaaaaa"): "2026-01-01T00:00:00Z",
        (both[0], "3bbbbbbbbbbbb"): "2023-01-01T00:00:00+01:00",
        (both[0], "3cccccccccccc"): "2023-01-01T00:00:00+01:00",
        (both[1], "zzz"): "yesterday",
    }
    for (collection, rkey), at in times.items():
        pds.records[ADA, collection, rkey] = {**schema_record(), "$type": collection, "createdAt": at}
        pds.records[ADA, DATASET, rkey] = {"$type": DATASET, "name": "x", "createdAt": at}
    index = AtmosphereIndex(client)
    expected = ["3aaaaaaaaaaaa", "3cccccccccccc", "3bbbbbbbbbbbb", "org.example.old", "zzz"]
    assert [one.uri.rpartition("/")[2] for one in index.list_schemas()] == expected
    assert [one.uri.rpartition("/")[2] for one in index.list_datasets()] == expected
    assert {one.uri for one in index.schemas} == {one.uri for one in index.list_schemas()}


def test_a_handle_whose_host_breaks_off_has_no_account(pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    """A host that breaks off, drips or goes on in what it says of its handle is one that says nothing."""
    real = network.get_bytes
    monkeypatch.setattr(client_module, "_by_dns", lambda handle: None)
    replies = {"/broken": Reply(b"did:plc:" + b"a" * 24, cut=5), "/long": Reply(b" " * 5000)}
    asked: list[str] = []
    with serve(replies.__getitem__) as web:
        for path in replies:

            def elsewhere(url: str, path: str = path, **options: Any) -> bytes:
                asked.append(url)
                return real(web.url + path, **{**options, "trusted": True})

            monkeypatch.setattr(network, "get_bytes", elsewhere)
            with pytest.raises(NotFoundError, match="no account has this handle"):
                AtmosphereClient().resolve_repo("evil.example.com")
    assert asked == ["https://evil.example.com/.well-known/atproto-did"] * 2


def test_a_password_goes_to_no_private_host_that_a_stranger_names(
    pds: FakePds, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    """A server that was found by a DID document is asked over checked connections, also by the SDK."""
    client = AtmosphereClient()
    monkeypatch.setattr(AtmosphereClient, "server_of", lambda self, did: (pds.url, False))
    with pytest.raises(NetworkError, match="not on the public internet"):
        client.login(ADA, "right")
    assert pds.called("com.atproto.server.createSession") == 0


def test_our_own_records_need_no_directory(pds: FakePds, client: AtmosphereClient, monkeypatch: pytest.MonkeyPatch):
    """Whoever is logged in reads their repository, by DID and by handle, without any DID document."""
    monkeypatch.setattr(pds, "document", lambda did: pytest.fail("the directory was asked"))
    uri = client.create_record(LABEL, LABEL_RECORD)
    assert client.get_record(uri)["name"] == "a"
    assert client.get_record(uri.replace(ADA, "ada.test")).uri == uri
    assert len(client.list_records(LABEL)) == 1
    source = PDSBlobStore(client).create_source([f"at://{ADA}/blob/{raw_cid(bytes(32))}"])
    with pytest.raises(ShardError, match="Blob not found"):
        source.open_shard(source.list_shards()[0])


# --- Shards


def test_shards_keep_both_limits_to_the_byte(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """No shard has more samples than maxcount, nor more bytes than maxsize, tar's own included; none is lost."""
    store = PDSBlobStore(client)
    by_size = store.write_shards(dataset, prefix="x", maxsize=9000)
    by_count = store.write_shards(dataset, prefix="x", maxcount=30)
    for urls, limit in ((by_size, 9000), (by_count, 10**9)):
        shards = [pds.blobs[url.rpartition("/")[2]] for url in urls]
        assert max(map(len, shards)) <= limit
        assert list(atdata.Dataset[Digit](store.create_source(urls))) == digits(100)
    counts = [len(list(iter_samples(_Stream(pds.blobs[url.rpartition("/")[2]]), ""))) for url in by_count]
    assert counts == [30, 30, 30, 10]


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        data, self._data = (self._data, b"") if size < 0 else (self._data[:size], self._data[size:])
        return data

    def close(self) -> None:
        pass


def test_shards_are_archives_that_others_read(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """Python's own tarfile reads what was uploaded; keys are unique although those of the sources are not."""
    import io
    import tarfile

    (url,) = PDSBlobStore(client).write_shards(dataset, prefix="x")
    with tarfile.open(fileobj=io.BytesIO(pds.blobs[url.rpartition("/")[2]])) as archive:
        names = archive.getnames()
    assert (len(set(names)), names[0], names[-1]) == (100, "000000000.msgpack", "000000099.msgpack")


def test_a_sample_that_no_shard_can_hold_is_named(client: AtmosphereClient, dataset: Any):
    """A sample that is larger than maxsize is a SampleError with its shard and its key, not a shard too large."""
    with pytest.raises(SampleError, match=r"d-0.tar: sample 000000: alone .* more than maxsize=1,000; raise maxsize"):
        PDSBlobStore(client).write_shards(dataset, prefix="x", maxsize=1000)
    with pytest.raises(ValueError, match="at least 1 sample"):
        PDSBlobStore(client).write_shards(dataset, prefix="x", maxcount=0)


def test_a_sample_of_another_type_is_not_published(client: AtmosphereClient, pds: FakePds, tmp_path: Path):
    """Shards that do not hold what the dataset's type says are an error with shard and key, before the upload."""
    path = write_shard(tmp_path / "l.tar", [Labelled(1)])
    with pytest.raises(SampleError, match=r"l.tar: sample 000000: field image: is missing"):
        PDSBlobStore(client).write_shards(atdata.Dataset[Digit](path), prefix="x")
    assert pds.blobs == {}


def test_413_halves_shards_and_says_so(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """A shard that the server refuses is halved until it fits, those after it are smaller at once; all is there."""
    pds.limit = 20_000
    store = PDSBlobStore(client)
    with pytest.warns(UserWarning, match=r"x-000000a?\.tar: .* refuses [\d,]+ bytes; halved, .* give maxsize") as said:
        urls = store.write_shards(dataset, prefix="x", maxcount=60)
    assert said[0].filename == __file__
    assert len(said) == pds.called("com.atproto.repo.uploadBlob") - len(urls)
    assert list(atdata.Dataset[Digit](store.create_source(urls))) == digits(100)


def test_413_for_one_sample_is_an_error(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """A sample that alone is too large for the server cannot be halved."""
    pds.limit = 1000
    with pytest.warns(UserWarning, match="halved"), pytest.raises(ShardError, match=r"with one sample .* refuses"):
        PDSBlobStore(client).write_shards(dataset, prefix="x")


def test_an_upload_is_repeated_from_its_first_byte(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """Dropped connections and 5xx while a shard is uploaded cost a repetition; progress counts no byte twice."""
    pds.fail("com.atproto.repo.uploadBlob", drop, refuse(503), drop)
    (url,) = PDSBlobStore(client).write_shards(dataset, prefix="x")
    assert pds.called("com.atproto.repo.uploadBlob") == 4
    sent: list[int] = []
    pds.fail("com.atproto.repo.uploadBlob", drop)
    data = pds.blobs[url.rpartition("/")[2]]
    client.upload_blob(data, progress=sent.append)
    assert sum(sent) == len(data)
    pds.fail("com.atproto.repo.uploadBlob", refuse(400))
    with pytest.raises(NetworkError, match="400 Busy not now"):
        client.upload_blob(data, progress=sent.append)
    assert sum(sent) == len(data)


def test_an_interrupted_upload_goes_on_where_it_was(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """Shards that were uploaded before the interruption are not uploaded again, also not by another process."""
    store = PDSBlobStore(client)
    pds.fail("com.atproto.repo.uploadBlob", lambda: None, lambda: None, *[refuse(503)] * 5)
    with pytest.raises(NetworkError, match="503"):
        store.write_shards(dataset, prefix="x", maxcount=20)
    assert len(pds.blobs) == 2
    blobs._uploads_of.cache_clear()  # what another process would know
    pds.requests.clear()
    urls = store.write_shards(dataset, prefix="another name", maxcount=20)
    assert (len(urls), pds.called("com.atproto.repo.uploadBlob")) == (5, 3)
    store.write_shards(dataset, prefix="x", maxcount=20)
    assert pds.called("com.atproto.repo.uploadBlob") == 3


def test_an_old_upload_is_believed_only_while_a_record_holds_it(
    client: AtmosphereClient, pds: FakePds, dataset: Any, monkeypatch: pytest.MonkeyPatch
):
    """After an hour the server is asked whether it still has a blob: what it has forgotten is uploaded again."""
    store = PDSBlobStore(client)
    stored = store.store(dataset, list, prefix="x", maxcount=50)
    held, _ = (one.blob.cid for one in stored)
    pds.records[ADA, DATASET, "a"] = {"storage": {"$link": held}}
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    store.store(dataset, list, prefix="x", maxcount=50)
    assert pds.called("com.atproto.repo.uploadBlob") == 3


@pytest.mark.usefixtures("schema")
def test_a_server_that_forgot_blobs_gets_them_again(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """When the record is refused because a blob is gone, its shards are uploaded anew, once."""
    index = AtmosphereIndex(client, PDSBlobStore(client))
    PDSBlobStore(client).store(dataset, list, prefix="x")
    pds.blobs.clear()
    entry = index.insert_dataset(dataset, name="digits")
    assert len(entry.data_urls) == len(pds.blobs) == 1
    assert pds.called("com.atproto.repo.uploadBlob") == 2
    client.delete_record(entry.uri)
    pds.blobs.clear()
    urls = PDSBlobStore(client).write_shards(dataset, prefix="x")
    assert urls == entry.data_urls
    assert pds.called("com.atproto.repo.uploadBlob") == 3
    assert list(atdata.Dataset[Digit](PDSBlobStore(client).create_source(urls))) == digits(100)
    pds.blobs.clear()
    with pytest.raises(NotFoundError, match=f"{urls[0][-20:]}.*: the server has forgotten it; call write_shards again"):
        DatasetPublisher(client).publish_with_urls(urls, SCHEMA_URI, name="x")
    uris = PDSBlobStore(client).write_shards(dataset, prefix="x")
    assert DatasetPublisher(client).publish_with_urls(uris, SCHEMA_URI, name="x").startswith(f"at://{ADA}/{DATASET}/")


@pytest.mark.usefixtures("schema")
def test_a_blob_that_is_listed_twice_is_read_twice(client: AtmosphereClient):
    """A dataset of two equal shards has the samples of both, as its size says."""
    shard = packed_shard(digits(5))
    uri = DatasetPublisher(client).publish_with_blobs([shard, shard], SCHEMA_URI, name="x")
    assert client.get_record(uri)["size"]["shards"] == 2
    assert list(DatasetLoader(client).to_dataset(uri, Digit)) == digits(5) * 2


def test_a_damaged_or_unwritable_cache_costs_an_upload_at_most(
    client: AtmosphereClient, pds: FakePds, dataset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Lines that cannot be read are passed over; without a cache folder everything works, for this process."""
    store = PDSBlobStore(client)
    store.write_shards(dataset, prefix="x")
    (path,) = (tmp_path / "cache" / "uploads").iterdir()
    path.write_text("{not json\n[]\n" + path.read_text() + '{"cid": "x"}\n')
    blobs._uploads_of.cache_clear()
    store.write_shards(dataset, prefix="x")
    assert pds.called("com.atproto.repo.uploadBlob") == 1
    blobs._uploads_of.cache_clear()
    monkeypatch.setenv("ATDATA_CACHE", "/dev/null/x")
    for _ in range(2):
        store.write_shards(dataset, prefix="x")
    assert pds.called("com.atproto.repo.uploadBlob") == 2


def test_the_cache_does_not_grow_for_ever(client: AtmosphereClient, tmp_path: Path):
    """Entries of no use any more leave the file when there are many."""
    uploads = blobs._uploads_of(ADA)
    for i in range(300):
        cid = raw_cid(sha256(str(i % 2).encode()).digest())
        uploads.add(blobs.StoredBlob(blobs.Blob(cid, 1, "a/b"), 1, time.time()))
    (path,) = (tmp_path / "cache" / "uploads").iterdir()
    assert len(path.read_text().splitlines()) == 300
    assert blobs._Uploads(ADA)._known == uploads._known
    assert len(path.read_text().splitlines()) == 2


def test_a_server_that_stores_other_bytes_is_found_out(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """The CID in the answer is compared with that of what was sent."""
    blob = {"$type": "blob", "ref": {"$link": raw_cid(bytes(32))}, "mimeType": "a/b", "size": 3}
    pds.fail("com.atproto.repo.uploadBlob", lambda: (200, {"blob": blob}, {}), lambda: (200, {"ok": True}, {}))
    with pytest.raises(ShardError, match=r"x-000000.tar: the server has got other bytes than were sent"):
        PDSBlobStore(client).write_shards(dataset, prefix="x")
    with pytest.raises(NetworkError, match="without a blob"):
        PDSBlobStore(client).write_shards(dataset, prefix="x")


@pytest.mark.usefixtures("schema")
def test_blobs_are_held_until_a_dataset_is_published(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """write_shards leaves a record that refers to the blobs, so that they are served; publishing them removes it."""
    urls = PDSBlobStore(client).write_shards(dataset, prefix="x", maxcount=50)
    held = client.list_records(blobs.UPLOAD)
    assert [sorted(_links(one)) for one in held] == [sorted(url.rpartition("/")[2] for url in urls)]
    uri = DatasetPublisher(client).publish_with_urls(urls, SCHEMA_URI, name="digits")
    assert client.list_records(blobs.UPLOAD) == []
    storage = client.get_record(uri)["storage"]
    assert (storage["$type"], len(storage["blobs"])) == ("ac.foundation.dataset.storageBlobs", 2)
    assert client.get_record(uri)["size"] == {
        "samples": 100,
        "bytes": sum(len(data) for data in pds.blobs.values()),
        "shards": 2,
    }


@pytest.mark.usefixtures("schema")
def test_urls_of_blobs_that_are_not_there_are_not_published(client: AtmosphereClient):
    """A dataset of our own blobs is published only if the server has them."""
    with pytest.raises(NotFoundError, match="has no such blob"):
        DatasetPublisher(client).publish_with_urls([f"at://{ADA}/blob/{raw_cid(bytes(32))}"], SCHEMA_URI, name="x")


@pytest.mark.parametrize("hidden", ["1", "0"])
def test_progress_is_shown_unless_it_is_hidden(
    client: AtmosphereClient, dataset: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any, hidden: str
):
    """A bar goes to stderr; `ATDATA_NO_PROGRESS=1` hides it."""
    monkeypatch.setenv("ATDATA_NO_PROGRESS", hidden)
    PDSBlobStore(client).write_shards(dataset, prefix="digits/v1")
    assert ("digits/v1:" in capfd.readouterr().err) is (hidden == "0")


# --- What is published


def test_what_the_lexicon_forbids_is_an_error_before_anything_is_sent(
    client: AtmosphereClient, pds: FakePds, dataset: Any
):
    """A dataset that cannot be described as asked is refused before its shards and its schema are published."""
    index = AtmosphereIndex(client, PDSBlobStore(client))
    for about, says in (
        ({"name": ""}, "name"),
        ({"name": "x", "tags": ["a"] * 31}, "tags"),
        ({"name": "x", "tags": "images"}, "tags is a list"),
        ({"name": "x", "metadata": {"a": "b" * 100_001}}, "metadata"),
        ({"name": "x", "metadata": {"a": object()}}, "metadata cannot be written"),
        ({"name": "x", "license": 5}, "license"),
    ):
        with pytest.raises(RecordError, match=says):
            index.insert_dataset(dataset, **about)
    assert (pds.records, pds.blobs) == ({}, {})


def test_metadata_come_back_as_they_went(client: AtmosphereClient, tmp_path: Path, dataset: Any):
    """Metadata are written as msgpack in bytes; those of the dataset itself are used when none are given."""
    index = AtmosphereIndex(client)
    given = {"a": 1.5, "b": [None, "ü"], "c": b"\x00", "array": np.arange(3)}
    entry = index.insert_dataset(dataset, name="x", metadata=given)
    assert set(entry.stored["metadata"]) == {"$bytes"}
    assert entry.metadata is not None
    assert {**entry.metadata, "array": 0} == {**given, "array": 0}
    assert entry.metadata["array"].tolist() == [0, 1, 2]
    (tmp_path / "m.msgpack").write_bytes(b"\x81\xa1a\x01")
    with_own = atdata.Dataset[Digit](dataset.url, str(tmp_path / "m.msgpack"))
    assert DatasetLoader(client).get_metadata(index.insert_dataset(with_own, name="y").uri) == {"a": 1}


def test_an_equal_schema_is_not_published_twice(client: AtmosphereClient, dataset: Any):
    """Publishing datasets of one type leaves one schema of it; another version, or other fields, another one."""
    index = AtmosphereIndex(client)
    first = index.publish_schema(Digit, description="By hand")
    entries = [index.insert_dataset(dataset, name=f"d{i}") for i in range(3)]
    assert {entry.schema_ref for entry in entries} == {first}
    DatasetPublisher(client).publish(dataset, name="e", schema_version="2.0.0")
    assert [schema["version"] for schema in index.list_schemas()] == ["2.0.0", "1.0.0"]
    assert index.publish_schema(Digit) != first  # to publish is to publish


@atdata.packable
class Inner:
    """A sample within a sample."""

    box: NDArray[np.float32]


@atdata.packable
class Outer:
    """A sample that holds others."""

    inner: Inner
    more: list[Inner]
    maybe: Inner | None


@atdata.packable
class Endless:
    """A sample that holds itself."""

    next: Endless | None


def test_nested_samples_get_schemas_and_come_back(client: AtmosphereClient):
    """The schema of a nested sample is published first, once, and decoded through its own record."""
    index = AtmosphereIndex(client)
    uris = [index.publish_schema(Outer) for _ in range(2)]
    assert [schema["name"] for schema in index.list_schemas()].count("Inner") == 1
    decoded = index.decode_schema(uris[0])
    assert decoded is index.decode_schema(uris[1])
    sample = Outer(Inner(np.ones(2, np.float32)), [Inner(np.zeros(1, np.float32))], None)
    assert decoded.from_bytes(sample.packed).packed == sample.packed
    with pytest.raises(SchemaError, match="holds samples of its own type"):
        index.publish_schema(Endless)


def schema_record(*refs: str) -> Json:
    fields = [
        {
            "name": f"f{i}",
            "fieldType": {"$type": "ac.foundation.dataset.schemaType#ref", "ref": ref},
            "optional": False,
        }
        for i, ref in enumerate(refs)
    ]
    return {"$type": SCHEMA, "name": "S", "version": "1.0.0", "fields": fields, "createdAt": "2026-01-01T00:00:00Z"}


def test_schemas_in_circles_deep_or_without_end_are_refused(client: AtmosphereClient, pds: FakePds):
    """References that lead in a circle, too deep, to too many or to nothing are errors; others may be of others."""
    index = AtmosphereIndex(client)
    uri = "at://{}/" + SCHEMA + "/{}"
    pds.records[ADA, SCHEMA, "circle"] = schema_record(uri.format(BEN, "circle"))
    pds.records[BEN, SCHEMA, "circle"] = schema_record(uri.format(ADA, "circle"))
    with pytest.raises(SchemaError, match="in a circle"):
        index.decode_schema(uri.format(ADA, "circle"))
    for i in range(150):
        pds.records[BEN, SCHEMA, f"leaf{i}"] = schema_record()
    pds.records[ADA, SCHEMA, "wide"] = schema_record(*(uri.format(BEN, f"leaf{i}") for i in range(150)))
    with pytest.raises(SchemaError, match="refers to more than 100 others"):
        index.decode_schema(uri.format(ADA, "wide"))
    pds.records[ADA, SCHEMA, "lost"] = schema_record(uri.format(BEN, "nothing"))
    with pytest.raises(NotFoundError, match=f"at://{BEN}/{SCHEMA}/nothing"):
        index.decode_schema(uri.format(ADA, "lost"))
    pds.records[ADA, SCHEMA, "other"] = schema_record(f"at://{BEN}/{LABEL}/x")
    with pytest.raises(UriError, match="is a label, not a schema"):
        index.decode_schema(uri.format(ADA, "other"))


@pytest.mark.usefixtures("schema")
def test_a_dataset_without_a_type_has_no_schema_of_its_own(client: AtmosphereClient, dataset: Any):
    """DictSamples are published only with a schema that is given."""
    untyped = atdata.Dataset(dataset.url)
    with pytest.raises(SchemaError, match="DictSample declares no fields"):
        AtmosphereIndex(client).insert_dataset(untyped, name="x")
    assert AtmosphereIndex(client).insert_dataset(untyped, name="x", schema_ref=SCHEMA_URI).schema_ref == SCHEMA_URI
    with pytest.raises(RecordError, match="auto_publish_schema"):
        DatasetPublisher(client).publish(dataset, name="x", auto_publish_schema=False)


def test_a_view_is_published_only_where_its_samples_are_stored(client: AtmosphereClient, dataset: Any):
    """URLs of a dataset that is viewed through a lens hold other samples; a data store stores the views."""

    @atdata.lens
    def label_only(source: Digit) -> Labelled:
        return Labelled(source.label)

    view = dataset.as_type(Labelled)
    with pytest.raises(RecordError, match="viewed through a lens"):
        AtmosphereIndex(client).insert_dataset(view, name="x")
    entry = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(view, name="x")
    assert [one.label for one in DatasetLoader(client).to_dataset(entry.uri, Labelled)] == list(range(100))


def test_another_data_store_says_where_its_shards_are(client: AtmosphereClient, dataset: Any):
    """What any AbstractDataStore returns is recorded as URLs."""

    class Store:
        def write_shards(self, ds: Any, /, *, prefix: str) -> list[str]:
            return [f"https://example.com/{prefix}.tar"]

        def read_url(self, url: str, /) -> str:
            return url

        def supports_streaming(self) -> bool:
            return True

    entry = AtmosphereIndex(client, Store()).insert_dataset(dataset, name="x")
    assert entry.data_urls == ["https://example.com/x.tar"]


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "{0.tar,pipe:id}", "gopher://x/0.tar"])
def test_urls_that_nobody_opens_are_not_published(client: AtmosphereClient, pds: FakePds, url: str):
    """A scheme that could run a command is refused in what is written, inside brace notation, too."""
    with pytest.raises(SourceError, match="is not opened"):
        DatasetPublisher(client).publish_with_urls([url], SCHEMA_URI, name="x")
    assert pds.records == {}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (atdata.S3Source("b", ["0.tar"], endpoint="https://minio.internal"), "a service that s3:// URLs do not name"),
        (
            Subset(atdata.S3Source("b", ["0.tar"], endpoint="https://minio.internal"), ["s3://b/0.tar"]),
            "a service that s3:// URLs do not name",
        ),
        ("https://user:hunter2@example.com/0.tar", r"https://…@example.com/0.tar: has a password"),
        ("https://{example.com,u:hunter2@h}/0.tar", "has a password"),
        ("{https://example.com/0.tar,s3://u:hunter2@h/1.tar}", "has a password"),
        ("/home/me/0.tar", "a file of this machine, which nobody else can open"),
        ("data-{0..9}.tar", "a file of this machine"),
        ("file:///home/me/0.tar", "a file of this machine"),
        (["https://example.com/0.tar", "1.tar"], "a file of this machine"),
    ],
)  # fmt: skip
def test_shards_that_others_do_not_find_are_not_published(
    client: AtmosphereClient, pds: FakePds, monkeypatch: pytest.MonkeyPatch, source: Any, says: str
):
    """A service of one's own, a password and a file are refused, with what to do, before anything is written."""
    monkeypatch.setattr(AtmosphereClient, "trusts_private_hosts", False)
    with pytest.raises(SourceError, match=f"{says}.*; publish https:// URLs with publish_with_urls, or") as caught:
        DatasetPublisher(client).publish(atdata.Dataset[Digit](source), name="x")
    assert "hunter2" not in str(caught.value)
    assert pds.records == {}


@pytest.mark.usefixtures("schema")
def test_what_is_found_by_its_url_is_published(client: AtmosphereClient, pds: FakePds, monkeypatch: pytest.MonkeyPatch):
    """Addresses of the web, of S3 itself and of blobs are recorded; files where one's own network is all there is."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    publisher = DatasetPublisher(client)

    def recorded(source: Any) -> list[str]:
        uri = publisher.publish(atdata.Dataset[Digit](source), name=f"x{len(pds.records)}", schema_uri=SCHEMA_URI)
        return client.get_record(uri)["storage"]["urls"]

    assert recorded("data-{0..9}.tar") == ["data-{0..9}.tar"]
    monkeypatch.setattr(AtmosphereClient, "trusts_private_hosts", False)
    assert recorded("https://example.com/@me/{0..9}.tar?a=b@c") == ["https://example.com/@me/{0..9}.tar?a=b@c"]
    assert recorded(atdata.S3Source("b", ["0.tar", "{1}.tar"])) == ["s3://b/0.tar", r"s3://b/\{1\}.tar"]
    blob = f"at://{BEN}/blob/{raw_cid(bytes(32))}"
    assert recorded(atdata.BlobSource([{"did": BEN, "cid": blob.rpartition("/")[2]}])) == [blob]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.internal")
    with pytest.raises(SourceError, match="a service that s3:// URLs do not name"):
        recorded("s3://b/0.tar")


@pytest.mark.parametrize("is_local", [True, False], ids=["local network", "public network"])
def test_our_keys_are_for_our_own_records(
    client: AtmosphereClient, pds: FakePds, monkeypatch: pytest.MonkeyPatch, is_local: bool
):
    """Records of others are read from S3 as anybody can; only in a network of one's own may that be a private host."""
    storages = [
        s3_storage(endpoint="http://localhost:9", region="x-y-1"),
        {"$type": "ac.foundation.dataset.storageExternal", "urls": ["s3://bucket/0.tar"]},
        {"$type": "ac.foundation.dataset.storageExternal", "urls": ["gs://bucket/0.tar"]},
    ]
    keys: list[str] = []
    hosts: list[tuple[str, bool]] = []

    @contextmanager
    def asked(url: str, *, trusted: bool, **_: Any) -> Iterator[None]:
        hosts.append((urlsplit(url).netloc, trusted))
        raise NetworkError("not from here")
        yield

    def connect(self: Any, session: Any) -> None:
        keys.append(str(self._endpoint))
        raise ValueError("not from here")

    monkeypatch.setattr(AtmosphereClient, "trusts_private_hosts", is_local)
    monkeypatch.setattr(atdata.S3Source, "_connect", connect)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for did, storage in ((did, storage) for did in (ADA, BEN) for storage in storages):
        pds.records[did, DATASET, "a"] = {"name": "x", "schemaRef": SCHEMA_URI, "storage": storage, "$type": DATASET}
        loader = DatasetLoader(client)
        dataset = loader.to_dataset(f"at://{did}/{DATASET}/a", Digit)
        with monkeypatch.context() as patch:
            patch.setattr(network, "open_response", asked)
            with pytest.raises((ShardError, MissingExtraError)):
                list(dataset)
    assert keys == ["http://localhost:9", "None"]
    expected = ["localhost:9", "bucket.s3.amazonaws.com", "storage.googleapis.com"]
    assert hosts == [(host, is_local) for host in expected]


def s3_storage(**members: str) -> Json:
    return {"$type": "ac.foundation.dataset.storageS3", "bucket": "bucket", "shards": [{"key": "0.tar"}], **members}


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        (s3_storage(bucket="arn:aws:s3:us-west-2:1:accesspoint/x"), "no bucket"),
        (s3_storage(endpoint="http://["), "an S3 endpoint is"),
        (s3_storage(region="evil.com/?"), "no region"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["https://e/{0..99999}"] * 99}, "more than 100"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["pipe:id"]}, "pipe: is not opened"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["a-{0..1}.tar", "{x,pipe:id}"]}, "pipe: is not"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["/etc/passwd"]}, "a file on the machine"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["file:///etc/passwd"]}, "a file on the machine"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": ["https://x.org/0", 5]}, r"storage.urls\[1\]"),
        ({"$type": "ac.foundation.dataset.storageExternal", "urls": []}, "storage.urls"),
        ({"$type": "ac.foundation.dataset.storageHttp", "shards": [{"url": "s3://b/k"}]}, "a s3: address"),
        ({"$type": "ac.foundation.dataset.storageHttp", "shards": [{}]}, r"storage.shards\[0\].url"),
        ({"$type": "ac.foundation.dataset.storageS3", "shards": [{"key": "a"}]}, "storage.bucket"),
        ({"$type": "ac.foundation.dataset.storageBlobs", "blobs": [{"$type": "blob"}]}, r"storage.blobs\[0\]"),
        ({"$type": "ac.foundation.dataset.storageNew"}, "shards cannot be read"),
    ],
)  # fmt: skip
def test_storage_of_strangers_that_cannot_or_must_not_be_read(
    pds: FakePds, monkeypatch: pytest.MonkeyPatch, storage: Json, says: str
):
    """Records of others open no command and no file of ours, and a shard that cannot be read is not left out."""
    client = AtmosphereClient(pds.url)
    pds.records[BEN, DATASET, "a"] = {"name": "x", "schemaRef": SCHEMA_URI, "storage": storage, "$type": DATASET}
    loader = DatasetLoader(client)
    record = loader.get(f"at://{BEN}/{DATASET}/a")
    monkeypatch.setattr(AtmosphereClient, "trusts_private_hosts", False)
    with pytest.raises((SourceError, RecordError), match=says):
        loader.source(record)


def test_storage_kinds_and_what_is_asked_of_the_wrong_one(client: AtmosphereClient, dataset: Any):
    """get_urls is for URLs and get_blob_urls for blobs; the other one says so."""
    loader = DatasetLoader(client)
    external = AtmosphereIndex(client).insert_dataset(dataset, name="x").uri
    blob = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="y").uri
    assert (loader.get_storage_type(external), loader.get_storage_type(blob)) == ("external", "blobs")
    assert loader.get_urls(external) == [dataset.url]
    (url,) = loader.get_blob_urls(blob)
    (ref,) = loader.get_blobs(blob)
    assert PDSBlobStore(client).create_source([url]).list_shards() == [f"at://{ADA}/blob/{ref['ref']['$link']}"]
    with pytest.raises(RecordError, match="use get_blob_urls"):
        loader.get_urls(blob)
    with pytest.raises(RecordError, match="use get_urls"):
        loader.get_blob_urls(external)
    with pytest.raises(UriError, match="is a schema, not a dataset"):
        loader.get(SCHEMA_URI)
    for uri in (external, blob):
        assert list(loader.to_dataset(uri, Digit)) == digits(100)


def test_a_blob_with_wrong_bytes_fails_with_its_name(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """What a server sends is compared with the CID that the record names."""
    entry = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="x")
    (cid,) = pds.blobs
    pds.blobs[cid] = packed_shard(digits(3))
    with pytest.raises(ShardError, match=f"at://{ADA}/blob/{cid}: its bytes are not the right ones"):
        list(DatasetLoader(client).to_dataset(entry.uri, Digit))
    with pytest.raises(ShardError, match="its bytes are not the right ones"):
        client.get_blob(ADA, cid)
    pds.blobs.clear()
    with pytest.raises((ShardError, MissingShardError), match=cid):
        client.get_blob("ada.test", cid)


# --- Lenses


def getter(source: Digit) -> Labelled:
    """Keep the label."""
    return Labelled(source.label)


@pytest.mark.usefixtures("schema")
def test_code_references_in_both_spellings(client: AtmosphereClient):
    """A mapping, or repository, commit and paths one by one, make the same record."""
    publisher = LensPublisher(client)
    code = {"repository": "https://example.com/r", "commit": "abc", "path": "a.py:f"}
    new = publisher.publish(
        name="l",
        source_schema=SCHEMA_URI,
        target_schema=SCHEMA_URI,
        getter_code=code,
        putter_code={**code, "path": "a.py:g"},
    )
    old = publisher.publish(
        name="l",
        source_schema_uri=SCHEMA_URI,
        target_schema_uri=SCHEMA_URI,
        code_repository="https://example.com/r",
        code_commit="abc",
        getter_path="a.py:f",
        putter_path="a.py:g",
    )
    assert [{**client.get_record(uri), "createdAt": ""} for uri in (new, old)] == [
        {**client.get_record(new), "createdAt": ""}
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give source_schema, once"),
        ({"source_schema": SCHEMA_URI, "source_schema_uri": SCHEMA_URI}, "give source_schema, once"),
        ({"source_schema": SCHEMA_URI, "target_schema": "x"}, "targetSchema"),
        ({"source_schema": SCHEMA_URI, "target_schema": SCHEMA_URI, "getter_code": {"path": "a"}}, "lacks repository"),
        ({"source_schema": SCHEMA_URI, "target_schema": SCHEMA_URI, "getter_path": "a"}, "lacks repository, commit"),
        (
            {
                "source_schema": SCHEMA_URI,
                "target_schema": SCHEMA_URI,
                "putter_code": {"repository": "r", "commit": "c", "path": "p", "run": "x"},
            },
            "the code of the putter has no member run",
        ),
    ],
)  # fmt: skip
def test_lenses_that_cannot_be_written(client: AtmosphereClient, pds: FakePds, arguments: Json, says: str):
    """What is missing, said twice or unknown is a RecordError that names it."""
    with pytest.raises(RecordError, match=says):
        LensPublisher(client).publish(name="l", **arguments)
    assert pds.records == {}


@pytest.mark.usefixtures("schema")
def test_a_lens_says_its_name_and_where_its_code_is(client: AtmosphereClient):
    """publish_from_lens takes name, description and paths from the functions, relative to the repository's root."""
    lens = atdata.Lens(getter)
    lens.putter(lambda view, source: source)
    publisher = LensPublisher(client)
    schemas = {"source_schema": SCHEMA_URI, "target_schema": SCHEMA_URI}
    bare = client.get_record(publisher.publish_from_lens(lens, **schemas))
    assert (bare["name"], bare["description"], "getterCode" in bare) == ("getter", "Keep the label.", False)
    full = client.get_record(
        publisher.publish_from_lens(lens, **schemas, name="n", code_repository="https://example.com/r", code_commit="c")
    )
    assert full["getterCode"]["path"].endswith("tests/unit/test_atmosphere.py:getter")
    assert full["putterCode"]["path"].startswith(full["getterCode"]["path"].removesuffix("getter"))
    with pytest.raises(RecordError, match="lacks commit"):
        publisher.publish_from_lens(lens, **schemas, code_repository="https://example.com/r")


def test_the_newest_label_is_the_one_made_last(client: AtmosphereClient, pds: FakePds):
    """Labels are ordered by when they were made, whatever their keys are; those that point nowhere do not count."""
    old, new = (f"at://{ADA}/{DATASET}/{key}" for key in ("old", "new"))
    label = {"$type": LABEL, "name": "digits"}
    for key, uri, at in (("z", old, "2026-01-01T00:00:00Z"), ("m", new, "2026-01-01T02:00:00+01:00"), ("x", old, "")):
        pds.records[BEN, LABEL, key] = {**label, "datasetUri": uri, "createdAt": at}
    pds.records[BEN, LABEL, "zz"] = {**label, "datasetUri": 5, "createdAt": "2027-01-01T00:00:00Z"}
    pds.records[BEN, LABEL, "y"] = {**label, "name": "other", "datasetUri": old, "createdAt": "2027-01-01T00:00:00Z"}
    assert LabelLoader(client).resolve("ben.test", "digits") == new
    with pytest.raises(NotFoundError, match=r"ben\.test has no label digits@1\.0\.0"):
        LabelLoader(client).resolve("ben.test", "digits", "1.0.0")


# --- Records as they are written


@pytest.mark.usefixtures("schema")
def test_record_keys_are_what_the_lexicon_says(client: AtmosphereClient):
    """A schema may have any record key, a dataset a TID only."""
    assert SchemaPublisher(client).publish(Digit, rkey="org.example.digit@1.0.0".replace("@", ":")).endswith(":1.0.0")
    with pytest.raises(RecordError, match="record key"):
        DatasetPublisher(client).publish_with_urls(["a.tar"], SCHEMA_URI, name="x", rkey="not-a-tid")


def test_a_record_that_is_too_large_for_the_server(client: AtmosphereClient, pds: FakePds):
    """413 for a record says what to do about it."""
    pds.fail("com.atproto.repo.createRecord", refuse(413, "PayloadTooLarge"))
    with pytest.raises(RecordError, match="fewer and larger shards"):
        client.create_record(LABEL, LABEL_RECORD)


# --- Mistakes


NOWHERE = f"at://{ADA}/{SCHEMA}/3jzfcijpj2zzz"


def test_records_that_are_not_there_are_not_referred_to(client: AtmosphereClient, pds: FakePds, dataset: Any):
    """A schema or dataset that does not exist is refused before anything is published, with what to do."""
    publisher = DatasetPublisher(client)
    lens = {"source_schema": NOWHERE, "target_schema": NOWHERE}
    for publish in (
        lambda: AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="x", schema_ref=NOWHERE),
        lambda: AtmosphereIndex(client).insert_dataset(dataset, name="x", schema_ref=NOWHERE),
        lambda: publisher.publish_with_urls(["https://example.com/0.tar"], NOWHERE, name="x"),
        lambda: publisher.publish_with_blobs([packed_shard(digits(1))], NOWHERE, name="x"),
        lambda: LensPublisher(client).publish(name="x", **lens),
    ):
        with pytest.raises(NotFoundError, match=f"{NOWHERE}: there is no such record; .* with publish_schema"):
            publish()
    gone = f"at://{ADA}/{DATASET}/3jzfcijpj2zzz"
    with pytest.raises(NotFoundError, match=f"{gone}: there is no such record; .* with insert_dataset"):
        LabelPublisher(client).publish(name="x", dataset_uri=gone)
    with pytest.raises(UriError, match="is a dataset, not a schema"):
        LensPublisher(client).publish(name="x", source_schema=gone, target_schema=gone)
    assert (pds.records, pds.blobs) == ({}, {})


@pytest.mark.usefixtures("schema")
def test_a_schema_that_does_not_fit_is_refused(client: AtmosphereClient, pds: FakePds, tmp_path: Path):
    """A dataset is published with a schema only if its type has the fields; one that has more fits."""

    @atdata.packable
    class Named:
        image: NDArray[np.uint8]
        label: str

    @atdata.packable
    class More:
        image: NDArray[np.uint8]
        label: int
        more: float

    index = AtmosphereIndex(client)
    url = write_shard(tmp_path / "0.tar", digits(1))
    for sample_type, says in (
        (Labelled, "Labelled lacks its field image"),
        (Named, "has str in label, where it has int"),
    ):
        with pytest.raises(SchemaError, match=f"{SCHEMA_URI}: .*{says}; leave the schema out"):
            index.insert_dataset(atdata.Dataset[sample_type](url), name="x", schema_ref=SCHEMA_URI)
    assert index.insert_dataset(atdata.Dataset[More](url), name="x", schema_ref=SCHEMA_URI).schema_ref == SCHEMA_URI


def test_a_schema_whose_server_is_down_does_not_keep_from_publishing(client: AtmosphereClient, dataset: Any):
    """What cannot be looked up is not refused."""
    elsewhere = f"at://did:web:nobody.invalid/{SCHEMA}/3jzfcijpj2z2a"
    assert AtmosphereIndex(client).insert_dataset(dataset, name="x", schema_ref=elsewhere).schema_ref == elsewhere


@pytest.mark.usefixtures("schema")
def test_what_is_no_shard_is_not_uploaded(client: AtmosphereClient, pds: FakePds, tmp_path: Path):
    """Blobs are tar archives with samples, or nothing is uploaded; the record says how many samples they have."""
    publisher = DatasetPublisher(client)
    good = packed_shard(digits(3))
    for bad, error, says in (
        (b"not a tar", ShardError, r"blobs\[1\]: "),
        (good[:1000], ShardError, r"blobs\[1\]: "),
        (bytes(10240), ShardError, r"blobs\[1\]: is a shard without samples"),
        (tmp_path / "none.tar", MissingShardError, "there is no such file"),
        (io.BytesIO(good), ArgumentError, r"blobs\[1\] is bytes or a pathlib.Path, not BytesIO; .*getvalue"),
    ):
        with pytest.raises(error, match=says):
            publisher.publish_with_blobs([good, bad], SCHEMA_URI, name="x")  # type: ignore[list-item]
    assert pds.blobs == {}
    uri = publisher.publish_with_blobs([good, good], SCHEMA_URI, name="x")
    assert client.get_record(uri)["size"]["samples"] == 6


def test_a_second_dataset_or_schema_of_one_name_is_warned_of(client: AtmosphereClient, dataset: Any, tmp_path: Path):
    """Another dataset of a name, and another schema of a name and version, are published with a warning."""
    index = AtmosphereIndex(client)
    first = index.insert_dataset(dataset, name="x")
    for store in (None, PDSBlobStore(client)):
        with pytest.warns(UserWarning, match="there is a dataset 'x' already, at://"):
            assert AtmosphereIndex(client, store).insert_dataset(dataset, name="x").uri != first.uri
    other = atdata.packable(type("Digit", (), {"__annotations__": {"label": str}}))
    with pytest.warns(UserWarning, match=f"another schema Digit 1.0.0 already, {first.schema_ref}, with other fields"):
        index.publish_schema(other)
    index.publish_schema(other, version="2.0.0")


def test_what_is_no_dataset_is_not_published(client: AtmosphereClient, pds: FakePds, dataset: Any, tmp_path: Path):
    """Likely mistakes are errors of ours that say what to write instead."""
    index, store = AtmosphereIndex(client), PDSBlobStore(client)
    splits = atdata.load_dataset(dataset.url, Digit)
    lens = {"name": "x", "source_schema": SCHEMA_URI, "target_schema": SCHEMA_URI}
    empty = atdata.Dataset[Digit](str(tmp_path / "empty.tar"))
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    mistakes: list[tuple[Any, type[Exception], str]] = [
        (lambda: index.insert_dataset(splits, name="x"), ArgumentError, r"publish a split of it: splits\['train'\]"),
        (lambda: index.insert_dataset("x.tar", name="x"), ArgumentError, r"atdata.Dataset\[YourType\]\('x.tar'\)"),
        (lambda: index.insert_dataset(dataset, name="x", metadata=[1]), RecordError, "metadata is a mapping"),
        (lambda: index.publish_schema(int), SchemaError, "int is not a sample type; decorate"),
        (lambda: client.upload_blob("s"), ArgumentError, r"not str; give pathlib.Path\(…\) for a file"),
        (lambda: client.login(None, "right"), LoginError, "the handle is no text"),
        (lambda: client.login("ada.test", None), LoginError, "the app password is no text"),
        (lambda: LensPublisher(client).publish(**lens, getter_code="a.py:f"), RecordError, "getter_code is a mapping"),
        (
            lambda: LensPublisher(client).publish_from_lens(getter, source_schema=SCHEMA_URI, target_schema=SCHEMA_URI),
            LensError,
            "getter is no lens; make one of a function: @atdata.lens",
        ),
        (lambda: store.write_shards(dataset, prefix="x", maxsize="1MB"), ArgumentError, "maxsize is a number"),
        (lambda: AtmosphereIndex(AtmosphereClient), ArgumentError, r"give an instance of it: AtmosphereClient\(\)"),
        (lambda: AtmosphereIndex(client, PDSBlobStore), ArgumentError, r"PDSBlobStore\(client\)"),
        (lambda: store.write_shards(empty, prefix="x"), ShardError, "the dataset has no samples"),
        (lambda: index.get_dataset("@ada.test/x"), UriError, r"atdata.load_dataset\('@ada.test/x'\) loads"),
    ]
    for make, error, says in mistakes:
        with pytest.raises(error, match=says):
            make()
    assert (pds.records, pds.blobs) == ({}, {})


def test_a_full_disk_is_named(client: AtmosphereClient, dataset: Any, monkeypatch: pytest.MonkeyPatch):
    """Where there is no room to pack a shard, the error names the folder and what moves it."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blobs._Archive, "add", full)
    with pytest.raises(ConfigError, match=r"no space is left in .*; set TMPDIR"):
        PDSBlobStore(client).write_shards(dataset, prefix="x")


def test_a_missing_label_comes_with_those_there_are(client: AtmosphereClient):
    """A label that is not found is an error that lists the others."""
    with pytest.raises(NotFoundError, match="has no label digits; it has no labels"):
        LabelLoader(client).resolve("ada.test", "digits")
    client.create_record(LABEL, {**LABEL_RECORD, "name": "letters"})
    with pytest.raises(NotFoundError, match="has no label digits; its labels are letters"):
        LabelLoader(client).resolve("ada.test", "digits")


@pytest.mark.parametrize("is_reached", [True, False])
def test_a_dns_that_does_not_answer_is_not_one_without_the_handle(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch, is_reached: bool
):
    """A handle is called nonexistent only when the DNS says so; offline it could not be looked up."""
    import dns.resolver

    def resolve(*_: Any, **options: Any) -> Any:
        raise dns.resolver.NXDOMAIN if is_reached else dns.resolver.LifetimeTimeout(timeout=5, errors=[])

    def offline(url: str, **options: Any) -> bytes:
        raise NetworkError(f"{url}: no route")

    monkeypatch.setattr(dns.resolver, "resolve", resolve)
    monkeypatch.setattr(network, "get_bytes", offline)
    with pytest.raises(NetworkError, match="no account has" if is_reached else "could not be looked up") as raised:
        AtmosphereClient().resolve_repo("ada.example.com")
    assert isinstance(raised.value, NotFoundError) is is_reached
