"""How the AppView behaves over HTTP: errors, caching, limits, what it says of itself, starting and stopping."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import psycopg
import pytest
from holdings import ALICE, Asker, Holdings, dataset, schema, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from atdata import __version__
from atdata.errors import ConfigError
from atdata.lexicon import load_lexicons
from atdata.nsid import DATASET, PREFIX, SAMPLE_SCHEMA
from atdata_appview.commands import serve
from atdata_appview.routes.xrpc import METHODS
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine


@pytest.fixture
def configured(database_url: str, tmp_path: Path) -> AppViewSettings:
    return AppViewSettings(database_url=database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0)


@pytest.fixture
async def ask(configured: AppViewSettings) -> AsyncIterator[Asker]:
    async with serving(configured) as asker:
        yield asker


def assert_error(response: httpx.Response, status: int, name: str) -> str:
    """The message of an answer that is to be an error in XRPC's form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "message"}
    assert body["error"] == name
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    message: str = body["message"]
    return message


# --- Wrong requests

URI = f"at://{ALICE}/{DATASET}/x"

BAD: list[tuple[str, list[tuple[str, str]], str]] = [
    *[
        (method, [(name, value)], name)
        for method in ("searchDatasets", "listDatasets", "listSchemas", "listLenses")
        for name, value in [
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "-1"),
            ("limit", "ten"),
            ("limit", ""),
            ("limit", "1.5"),
            ("limit", "9" * 30),
            ("cursor", "nonsense"),
            ("cursor", ""),
            ("cursor", "x" * 5000),
            ("cursor", "AAAAAAAAAAB"),
            ("cursor", "\0"),
        ]
        # Eight bytes are a cursor of a listing, if one before the first record.
        if (name, value) != ("cursor", "AAAAAAAAAAB") or method == "searchDatasets"
    ],
    ("searchDatasets", [("limit", "1"), ("limit", "2")], "limit"),
    ("searchDatasets", [("q", "x" * 1001)], "q"),
    ("searchDatasets", [("q", "a\0b")], "q"),
    ("searchDatasets", [("sort", "upwards")], "sort"),
    ("searchDatasets", [("facets", "colour")], "facets"),
    ("searchDatasets", [("facets", "tags")] * 6, "facets"),
    ("searchDatasets", [("tags", "x")] * 31, "tags"),
    ("searchDatasets", [("tags", "x" * 151)], "tags"),
    ("searchDatasets", [("schemas", "digit")], "schemas"),
    ("searchDatasets", [("schemas", f"at://{ALICE}")], "schemas"),
    ("searchDatasets", [("schemas", f"at://nobody.test/{SAMPLE_SCHEMA}/x")], "schemas"),
    ("searchDatasets", [("publishers", "not a name")], "publishers"),
    ("searchDatasets", [("publishers", "nobody.test")], "publishers"),
    ("searchDatasets", [("minSamples", "-1")], "minSamples"),
    ("searchDatasets", [("maxSamples", str(2**53))], "maxSamples"),
    ("searchDatasets", [("createdAfter", "yesterday")], "createdAfter"),
    ("searchDatasets", [("createdAfter", "0000-01-01T00:00:00Z")], "createdAfter"),
    ("searchDatasets", [("createdBefore", "2026-01-01")], "createdBefore"),
    *[
        (method, pairs, "uris")
        for method in ("getDatasets", "getSchemas", "getLenses")
        for pairs in (
            [],
            [("uris", "")],
            [("uris", "https://example.com")],
            [("uris", f"at://{ALICE}")],
            [("uris", f"at://{ALICE}/{DATASET}")],
            [("uris", URI)] * 101,
            [("uris", URI), ("uris", "x")],
        )
    ],
    ("listDatasets", [("publisher", "nobody.test")], "publisher"),
    ("listDatasets", [("publisher", "@")], "publisher"),
    ("listDatasets", [("schema", "x")], "schema"),
    ("listDatasets", [("tag", "\0")], "tag"),
    ("listSchemas", [("publisher", "nobody.test")], "publisher"),
    ("listSchemas", [("name", "x" * 101)], "name"),
    ("listLenses", [("source", "x")], "source"),
    ("listLenses", [("target", f"at://nobody.test/{SAMPLE_SCHEMA}/x")], "target"),
    ("getRecord", [], "uri"),
    ("getRecord", [("uri", f"at://{ALICE}/blob/bafkreiabc")], "uri"),
    ("getRecord", [("uri", URI), ("uri", URI)], "uri"),
]


async def test_a_wrong_parameter_is_named(ask: Asker) -> None:
    """Status 400, InvalidRequest, and a message that begins with the parameter's name; for every kind of mistake."""
    for method, pairs, name in BAD:
        response = await ask.client.get(f"/xrpc/{PREFIX}{method}?{urlencode(pairs)}")
        message = assert_error(response, 400, "InvalidRequest")
        assert message.startswith(name), f"{method} {pairs}: {message}"


@pytest.fixture
def things(configured: AppViewSettings) -> None:
    """Three datasets of alice.test."""
    engine = TantivyEngine(Path(str(configured.search_dir)))
    holdings = Holdings(configured.database_url, engine)
    holdings.account(ALICE, "alice.test")
    holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    holdings.add_all(ALICE, DATASET, [(f"r{i}", dataset(f"Thing {i}", tags=["x"])) for i in range(3)])
    engine.close()


@pytest.mark.usefixtures("things")
async def test_a_cursor_belongs_to_its_query(ask: Asker) -> None:
    """The cursor of one search is refused by another."""
    cursor = (await ask("searchDatasets", q="thing", limit=1))["cursor"]
    assert_error(await ask.get("searchDatasets", q="things", limit=1, cursor=cursor), 400, "InvalidRequest")


@pytest.mark.parametrize(
    "method", ["ac.foundation.dataset.noSuch", "com.atproto.repo.getRecord", DATASET, "x", "a/b", ""]
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_an_unknown_method_is_not_implemented(verb: str, method: str, ask: Asker) -> None:
    """501 whatever the verb, as XRPC says, also for what is a record's name and not a method's."""
    assert_error(await ask.client.request(verb, f"/xrpc/{method}"), 501, "MethodNotImplemented")


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_the_wrong_verb_is_said_to_be_wrong(verb: str, ask: Asker) -> None:
    """405 with the verbs that are right."""
    response = await ask.client.request(verb, f"/xrpc/{PREFIX}getStatus")
    assert_error(response, 405, "InvalidRequest")
    assert response.headers["allow"] == "GET, HEAD"


async def test_oversize_requests_are_refused(ask: Asker) -> None:
    """More parameters than anybody needs, or a body, have their own statuses."""
    assert_error(await ask.get("searchDatasets", tags=["x" * 100] * 400), 414, "InvalidRequest")
    assert_error(await ask.client.get("/xrpc/" + PREFIX + "getStatus?" + "a&" * 1001), 400, "InvalidRequest")
    response = await ask.client.post(f"/xrpc/{PREFIX}getStatus", content=b"x" * 70_000)
    assert_error(response, 413, "PayloadTooLarge")


_PARAMETERS = sorted({name for query in load_lexicons().queries() for name in query.parameters})
_VALUES = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(
        [ALICE, "alice.test", URI, "at://x", "tags", "newest", "name", '"', "a:b", "*", "-", "\ud800", "0"]
    ),
)


@pytest.mark.usefixtures("things")
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    method=st.sampled_from(sorted(METHODS)),
    pairs=st.lists(st.tuples(st.sampled_from(_PARAMETERS), _VALUES), max_size=6),
    raw=st.binary(max_size=20),
)
async def test_no_question_breaks_the_service(
    method: str, pairs: list[tuple[str, str]], raw: bytes, ask: Asker
) -> None:
    """Whatever is asked, the answer is one, or an error that says which parameter is wrong. The pages hold as well."""
    question = urlencode(pairs, errors="surrogatepass") + "&" + quote(raw, safe="=&+;")
    for path in (f"/xrpc/{method}", "/"):
        response = await ask.client.get(f"{path}?{question}")
        assert response.status_code in (200, 400, 404), response.text
        if path != "/" and response.status_code == 400:
            assert assert_error(response, 400, "InvalidRequest").startswith(tuple(_PARAMETERS)) or b"\0" in raw


# --- Caching and other origins


async def test_head_is_get_without_a_body(ask: Asker) -> None:
    """The same headers, for methods and pages."""
    for path in (f"/xrpc/{PREFIX}getStatus", "/", "/docs", "/xrpc/_health", "/.well-known/did.json"):
        got, head = await ask.client.get(path), await ask.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


async def test_an_answer_that_is_known_already_is_not_sent_again(ask: Asker) -> None:
    """304 for whoever holds the ETag, with other tags or a weak form beside it; 200 for anybody else."""
    path = f"/xrpc/{PREFIX}listDatasets"
    first = await ask.client.get(path)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "public, max-age=5"
    for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        again = await ask.client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await ask.client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_any_page_may_ask(ask: Asker) -> None:
    """CORS is open, on answers and on errors, and a preflight says so."""
    headers = {"Origin": "https://example.org"}
    for path in (f"/xrpc/{PREFIX}getStatus", "/xrpc/x"):
        assert (await ask.client.get(path, headers=headers)).headers["access-control-allow-origin"] == "*"
    preflight = {**headers, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "atproto-proxy"}
    response = await ask.client.options(f"/xrpc/{PREFIX}getStatus", headers=preflight)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    assert "GET" in response.headers["access-control-allow-methods"]


# --- Limits


async def test_a_client_that_asks_too_often_is_told_when_to_come_back(configured: AppViewSettings) -> None:
    """429 with Retry-After; every answer says how much is left; health and metrics are never refused."""
    async with serving(configured.model_copy(update={"rate_limit": 2})) as ask:
        left = [(await ask.get("listDatasets")).headers["ratelimit-remaining"] for _ in range(2)]
        assert left == ["1", "0"]
        refused = await ask.get("listDatasets")
        assert_error(refused, 429, "RateLimitExceeded")
        assert refused.headers["ratelimit-limit"] == "2"
        assert refused.headers["ratelimit-policy"] == "2;w=60"
        assert int(refused.headers["retry-after"]) in range(1, 31)
        assert (await ask.client.get("/xrpc/_health")).status_code == 200
        assert (await ask.client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(("trusted", "refused"), [("", True), ("10.0.0.0/8", True), ("127.0.0.1", False)])
async def test_a_proxy_is_believed_only_if_trusted(trusted: str, refused: bool, configured: AppViewSettings) -> None:
    """Without trust, X-Forwarded-For changes nothing: anybody could write it. With it, each client counts alone."""
    async with serving(configured.model_copy(update={"rate_limit": 1, "trusted_proxies": trusted})) as ask:
        path = f"/xrpc/{PREFIX}listDatasets"
        await ask.client.get(path, headers={"X-Forwarded-For": "192.0.2.1"})
        response = await ask.client.get(path, headers={"X-Forwarded-For": "192.0.2.2"})
        assert response.status_code == (429 if refused else 200)
        # What a client writes in front of the proxy's own entry is not believed in any case.
        if not refused:
            forged = await ask.client.get(path, headers={"X-Forwarded-For": "198.51.100.7, 192.0.2.2"})
            assert forged.status_code == 429


# --- When something is missing


async def test_a_mistake_of_ours_leaks_nothing(configured: AppViewSettings, ask: Asker) -> None:
    """500 in XRPC's form; what went wrong is in the log only."""
    with psycopg.connect(configured.database_url) as connection:
        connection.execute("ALTER TABLE records RENAME COLUMN kind TO secret_column")
    assert "column" not in assert_error(await ask.get("listDatasets"), 500, "InternalServerError")
    page = await ask.client.get(f"/dataset/{ALICE}/x")
    assert page.status_code == 500
    assert "column" not in page.text


async def test_a_database_that_was_away_is_found_again(configured: AppViewSettings, ask: Asker) -> None:
    """503 in XRPC's form while it is gone, answers once it is back, and nobody restarts anything."""
    name = conninfo_to_dict(configured.database_url)["dbname"]
    admin = make_conninfo(configured.database_url, dbname="postgres")

    def allow(connections: bool) -> None:
        with psycopg.connect(admin, autocommit=True) as connection:
            allowed = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            connection.execute(allowed.format(sql.Identifier(str(name)), sql.Literal(connections)))
            if not connections:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    assert (await ask.get("listDatasets")).status_code == 200
    allow(False)
    try:
        response = await ask.get("listDatasets")
        assert_error(response, 503, "ServiceUnavailable")
        assert response.headers["retry-after"]
        assert (await ask.client.get("/xrpc/_health")).status_code == 503
        assert (await ask.client.get("/")).status_code == 503
        assert "atdata_appview_ready 0" in (await ask.client.get("/metrics")).text
    finally:
        allow(True)
    async with asyncio.timeout(30):
        # Each question waits for a connection by itself.
        while (await ask.get("listDatasets")).status_code != 200:
            pass
    assert (await ask.client.get("/xrpc/_health")).status_code == 200


async def test_a_search_server_that_does_not_answer(configured: AppViewSettings) -> None:
    """Searches are 503; what needs no search is answered; the service is not ready."""
    async with serving(configured.model_copy(update={"meili_url": "http://127.0.0.1:1"})) as ask:
        assert_error(await ask.get("searchDatasets"), 503, "ServiceUnavailable")
        assert (await ask("listDatasets"))["datasets"] == []
        health = await ask.client.get("/xrpc/_health")
        assert (health.status_code, health.json()["error"]) == (503, "ServiceUnavailable")


# --- What the service says of itself


async def test_health(configured: AppViewSettings, ask: Asker) -> None:
    """Version, lag and backlog; nothing is known of an indexer that never ran."""
    health = (await ask.client.get("/xrpc/_health")).json()
    assert health == {"version": __version__, "lag": None, "backlog": 0, "indexerSeen": None, "lensGraph": "ready"}


@pytest.mark.parametrize(
    ("more", "did", "endpoint"),
    [
        ({}, "did:web:127.0.0.1%3A8000", "http://127.0.0.1:8000"),
        ({"host": "::1", "port": 80}, "did:web:%5B%3A%3A1%5D%3A80", "http://[::1]:80"),
        (
            {"public_url": "https://datasets.example.org/"},
            "did:web:datasets.example.org",
            "https://datasets.example.org",
        ),
        ({"public_url": "https://x.test", "did": "did:web:other.test"}, "did:web:other.test", "https://x.test"),
    ],
)
async def test_did_document(more: dict[str, Any], did: str, endpoint: str, configured: AppViewSettings) -> None:
    """The document names the service and where it is; the DID follows from the public URL unless it is given."""
    changed = AppViewSettings(**{**configured.model_dump(exclude_unset=True), **more})
    async with serving(changed) as ask:
        document = (await ask.client.get("/.well-known/did.json")).json()
    assert document["id"] == did
    service = {"id": "#atdata_appview", "type": "AtdataAppView", "serviceEndpoint": endpoint}
    assert document["service"] == [service]


async def test_a_document_that_is_elsewhere_is_not_ours(configured: AppViewSettings) -> None:
    """The document of a did:plc is in its directory."""
    async with serving(configured.model_copy(update={"did": "did:plc:abc"})) as ask:
        assert (await ask.client.get("/.well-known/did.json")).status_code == 404


async def test_metrics_count_requests(ask: Asker) -> None:
    """By method and status; paths that anybody can invent share one name."""
    await ask("listDatasets")
    await ask.client.get("/xrpc/made.up.name")
    await ask.client.get("/made-up")
    text = (await ask.client.get("/metrics")).text
    assert f'atdata_appview_request_seconds_count{{method="{PREFIX}listDatasets",status="200"}} 1' in text
    assert f'{{method="{PREFIX}listDatasets",status="200",le="+Inf"}} 1' in text
    assert 'method="unknown method",status="501"' in text
    assert 'method="other",status="404"' in text
    assert "made" not in text
    assert "atdata_appview_ready 1" in text


async def test_metrics_tell_of_the_indexer(ask: Asker, database_url: str) -> None:
    """What an alert asks for, whether the indexer runs or not."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO indexer_status (status, updated_at)"
            """ VALUES ('{"connected": false, "lagSeconds": 7.5}', now() - interval '1 hour')"""
        )
        connection.execute("INSERT INTO repositories (did, status) VALUES (%s, 'takendown')", [ALICE])
        connection.execute(
            "INSERT INTO sweeps (reason, started_at, finished_at, checked, differing, unreachable)"
            " VALUES ('a test', now(), now(), 5, 2, 1)"
        )
    found = dict(line.split(" ") for line in (await ask.client.get("/metrics")).text.splitlines() if line[0] != "#")
    assert float(found["atdata_indexer_seen_seconds"]) >= 3600
    assert {name: float(found[f"atdata_{name}"]) for name in EXPECTED} == EXPECTED


EXPECTED = {
    "indexer_connected": 0,
    "indexer_lag_seconds": 7.5,
    "repositories_active": 0,
    "repositories_hidden": 1,
    "repositories_desynchronized": 0,
    "quarantined": 0,
    "sweep_differing": 2,
    "sweep_unreachable": 1,
}


async def test_every_method_is_described(ask: Asker) -> None:
    """Handlers, lexicons, the page and the OpenAPI document have the same methods; references lead somewhere."""
    assert set(METHODS) == {query.nsid for query in load_lexicons().queries()}
    document = (await ask.client.get("/openapi.json")).json()
    assert set(document["paths"]) == {f"/xrpc/{nsid}" for nsid in METHODS}
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert {"uri", "record", "publisher"} <= set(schemas["views.datasetView"]["required"])
    search = {p["name"]: p for p in document["paths"][f"/xrpc/{PREFIX}searchDatasets"]["get"]["parameters"]}
    assert search["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 25}
    assert search["tags"]["schema"]["type"] == "array"
    page = await ask.page("/docs")
    for nsid in METHODS:
        assert f'id="{nsid.rpartition(".")[2]}"' in page


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [reference for inner in value.values() for reference in _references(inner)]
    return [reference for inner in value for reference in _references(inner)] if isinstance(value, list) else []


# --- Starting and stopping


def test_a_taken_port_is_found_before_anything_else() -> None:
    """One sentence that names the port, although the database is not there either."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = AppViewSettings(database_url="postgresql://127.0.0.1:1/nothing", search_dir=Path("x"), port=port)
        with pytest.raises(ConfigError, match=rf"127.0.0.1 port {port} is taken: .*--port"):
            serve(settings)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "cannot reach the database"),
        ({"search_dir": None}, "ATDATA_SEARCH_DIR"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
        ({"host": "no such host"}, "cannot listen on no such host"),
    ],
)
def test_what_is_missing_is_named(more: dict[str, Any], says: str) -> None:
    """A ConfigError says what cannot be opened."""
    given = {"database_url": "postgresql://127.0.0.1:1/nothing", "search_dir": Path("x"), "port": 0, **more}
    with pytest.raises(ConfigError, match=says):
        serve(AppViewSettings(**given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("public_url", "example.org"),
        ("public_url", "https://x.test/path"),
        ("did", "me"),
        ("rate_limit", "-1"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its environment variable."""
    monkeypatch.setenv("ATDATA_DATABASE_URL", "postgresql://x")
    monkeypatch.setenv(f"ATDATA_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"ATDATA_{name.upper()}"):
        AppViewSettings.load()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_requests_that_run_are_finished(stop: signal.Signals, database_url: str, tmp_path: Path) -> None:
    """`atdata appview run` told to stop answers what it is busy with, takes nothing new, and exits with 0."""
    engine = TantivyEngine(tmp_path)
    holdings = Holdings(database_url, engine)
    holdings.account(ALICE)
    holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    engine.close()
    environment = {**os.environ, "ATDATA_DATABASE_URL": database_url, "ATDATA_SEARCH_DIR": str(tmp_path)}
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "atdata", "appview", "run", "--port", "0"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert program.stderr is not None
        url = ""
        while not url:
            line = (await program.stderr.readline()).decode()
            assert line, "the program ended"
            url = line.rpartition("serving ")[2].strip() if "serving " in line else ""
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/xrpc/_health")).status_code == 200
            with psycopg.connect(database_url) as blocker:
                blocker.execute("LOCK TABLE records IN ACCESS EXCLUSIVE MODE")
                running = asyncio.create_task(client.get(f"/xrpc/{PREFIX}listSchemas"))
                with psycopg.connect(database_url, autocommit=True) as watcher:
                    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    while watcher.execute(waiting).fetchone() == (0,):
                        await asyncio.sleep(0)
                program.send_signal(stop)
                # Until nobody listens any more: then it is on its way out, and the lock may go.
                while await _is_open(httpx.URL(url).port or 0):
                    await asyncio.sleep(0)
            response = await running
            assert response.status_code == 200
            assert len(json.loads(response.content)["schemas"]) == 1
        assert await asyncio.wait_for(program.wait(), 30) == 0
        assert "Traceback" not in (await program.stderr.read()).decode()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
