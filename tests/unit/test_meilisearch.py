"""What the Meilisearch engine says on the wire, and what it makes of answers. The rest needs a real server."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from atdata.errors import ConfigError, NetworkError
from atdata_backend.search.base import Document, Query
from atdata_backend.search.meilisearch import MeilisearchEngine

NOW = "2026-01-01T00:00:00.000000Z"


class FakeServer:
    """Enough of Meilisearch's HTTP API to write documents and to browse them in an order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.settings: dict[str, Any] | None = None
        self.documents: dict[str, dict[str, Any]] = {}
        self.tasks: list[dict[str, Any]] = []
        self.failure: dict[str, Any] | None = None  # of every task
        self.refusal: tuple[int, str] | None = None  # of every request
        self.hits: list[dict[str, Any]] | None = None  # instead of the documents
        self.schemas: FakeServer | None = None  # the other index

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path, body))
        if self.refusal:
            return self.refusal
        if path.startswith("/indexes/schemas"):
            if self.schemas is None:
                self.schemas = FakeServer()
                self.schemas.tasks = self.tasks
            return self.schemas.answer(method, path.replace("/schemas", "/datasets", 1), body)
        if path == "/indexes/datasets/settings" and method == "PATCH":
            self.settings = {**(self.settings or {}), **body}
            return self._task("settingsUpdate")
        if path.startswith("/tasks/"):
            return 200, self.tasks[int(path.removeprefix("/tasks/"))]
        if self.settings is None:
            return 404, {"code": "index_not_found", "message": "Index `datasets` not found.", "type": "invalid_request"}
        if path == "/indexes/datasets/settings":
            return 200, self.settings
        if path == "/indexes/datasets/documents/delete":
            for id_ in re.findall(r'"([^"]*)"', body["filter"]):
                self.documents.pop(id_, None)
            return self._task("documentDeletion")
        if path == "/indexes/datasets/documents/fetch":
            meant = self._meant(body.get("filter"))
            page = meant[body.get("offset", 0) : body.get("offset", 0) + body["limit"]]
            return 200, {
                "results": page,
                "offset": body.get("offset", 0),
                "limit": body["limit"],
                "total": len(self.documents),
            }
        if path == "/indexes/datasets/documents" and method == "DELETE":
            self.documents.clear()
            return self._task("documentDeletion")
        if path == "/indexes/datasets/documents?primaryKey=id":
            self.documents.update((document["id"], document) for document in body)
            return self._task("documentAdditionOrUpdate")
        if path == "/indexes/datasets/search":
            return 200, {"hits": self._meant(body["filter"])[: body["limit"]]}
        if path == "/indexes/datasets/stats":
            return 200, {"numberOfDocuments": len(self.documents), "isIndexing": False, "fieldDistribution": {}}
        assert path == "/multi-search", path
        return 200, {"results": [self._search(query) for query in body["queries"]]}

    def _meant(self, expression: str | None) -> list[dict[str, Any]]:
        """The documents that pass a filter by id, of one or of all but one."""
        match = re.fullmatch(r'id (!?=) "([^"]*)"', expression) if expression else None
        return [d for d in self.documents.values() if not match or (d["id"] == match[2]) == (match[1] == "=")]

    def _task(self, kind: str) -> tuple[int, Any]:
        uid = len(self.tasks)
        task = {"uid": uid, "indexUid": "datasets", "status": "succeeded", "type": kind, "enqueuedAt": NOW}
        if self.failure:
            task |= {"status": "failed", "error": self.failure}
        self.tasks.append(task)
        return 202, {"taskUid": uid, "indexUid": "datasets", "status": "enqueued", "type": kind, "enqueuedAt": NOW}

    def _search(self, query: dict[str, Any]) -> dict[str, Any]:
        found = list(self.documents.values()) if self.hits is None else self.hits
        for rule in reversed(query.get("sort", [])):
            attribute, direction = rule.split(":")
            found.sort(key=lambda document: document[attribute], reverse=direction == "desc")
        result: dict[str, Any] = {"facetDistribution": {facet: {} for facet in query.get("facets", [])}}
        if "hitsPerPage" in query:
            return {**result, "totalHits": len(found), "hits": found[: query["hitsPerPage"]]}
        return {**result, "hits": found[query["offset"] : query["offset"] + query["limit"]]}

    def searches(self) -> list[dict[str, Any]]:
        """The searches of the last request."""
        return self.requests[-1][2]["queries"]


@pytest.fixture
def server() -> Iterator[tuple[FakeServer, str]]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if body and self.command != "DELETE":
                assert self.headers["Content-Type"] == "application/json"
            status, answer = fake.answer(self.command, self.path, json.loads(body) if body else None)
            raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - the base class's names

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def fake(server: tuple[FakeServer, str]) -> FakeServer:
    return server[0]


@pytest.fixture
def engine(server: tuple[FakeServer, str]) -> MeilisearchEngine:
    return MeilisearchEngine(server[1], "key")


def dataset(key: object, **values: Any) -> Document:
    made = Document(
        uri=f"at://did:plc:alice/ac.foundation.dataset.record/{key}",
        did="did:plc:alice",
        handle="alice.example",
        name=f"Set {key}",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(made, **values)


def test_first_write_sets_the_index_up(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Settings go out before the first document, once, and again only where the server's differ."""
    engine.apply([dataset(1)], [])
    engine.apply([dataset(2)], [])
    changes = [body for method, _, body in fake.requests if method == "PATCH"]
    assert len(changes) == 1
    assert changes[0]["searchableAttributes"][0] == "name"
    assert changes[0]["pagination"]["maxTotalHits"] >= 100_000

    # The server orders its sets as it likes and has settings that we do not know.
    assert fake.settings is not None
    fake.settings["filterableAttributes"].reverse()
    fake.settings["typoTolerance"]["disableOnWords"] = []
    again = MeilisearchEngine(engine._url, "key")
    again.apply([dataset(3)], [])
    assert len([method for method, _, _ in fake.requests if method == "PATCH"]) == 1

    fake.settings["rankingRules"] = ["words"]
    MeilisearchEngine(engine._url, "key").apply([dataset(4)], [])
    assert fake.settings["rankingRules"][-1] == "tie:asc"


def test_an_index_that_was_set_up_otherwise_is_filled_anew(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Its documents lack what is asked for now: made ready, it is empty, and who feeds it finds that; a batch stays."""
    engine.apply([dataset(1)], [])
    assert fake.settings is not None
    fake.settings["filterableAttributes"].remove("structure")
    MeilisearchEngine(engine._url, "key").apply([dataset(2)], [])
    assert engine.count() == 2
    MeilisearchEngine(engine._url, "key").apply([], [])
    assert engine.count() == 2
    fake.settings["filterableAttributes"].remove("structure")
    MeilisearchEngine(engine._url, "key").apply([], [])
    assert engine.count() == 0
    assert "structure" in fake.settings["filterableAttributes"]


def test_schemas_have_an_index_of_their_own(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Of the same settings, on the same server."""
    engine.apply([dataset(1)], [])
    assert engine.schemas.count() == 0
    engine.schemas.apply([dataset(2, keywords=("ndarray", "float32"), structure="s1-a")], [])
    assert fake.schemas is not None
    assert fake.schemas.settings == fake.settings
    (stored,) = fake.schemas.documents.values()
    assert (stored["keywords"], stored["structure"]) == (["ndarray", "float32"], "s1-a")
    assert (engine.count(), engine.schemas.count()) == (1, 1)
    engine.schemas.search(Query("x"))
    assert {search["indexUid"] for search in fake.searches()} == {"schemas"}


def test_similar_asks_for_what_tells_most(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """The words of its name, tags and fields, of which the rarest matter most; not for the document itself."""
    made = dataset(
        1, name="The whale songs", tags=("sea-life", "whale"), fields=("waveform:ndarray",), structure="s1-a"
    )
    engine.apply([made, dataset(2, structure="s1-b")], [])
    assert [(hit.uri, hit.structure) for hit in engine.similar(made.uri, 5)] == [
        (made.uri, "s1-a"),
        (dataset(2).uri, "s1-b"),
    ]
    _, path, asked = fake.requests[-1]
    assert path == "/indexes/datasets/search"
    assert asked["q"] == "whale songs sea life waveform"
    assert asked["matchingStrategy"] == "frequency"
    assert asked["limit"] == 5
    assert engine.similar(dataset(3).uri, 5) == ()


def test_documents_have_hashed_ids(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """An AT URI is no Meilisearch id; what is stored has an id of letters and digits, and deletes find it."""
    engine.apply([dataset(1, fields=("image:ndarray:uint8",)), dataset(1), dataset(2)], [])
    assert all(re.fullmatch("[0-9a-f]{64}", id_) for id_ in fake.documents)
    assert sorted(dict(engine.stamps())) == [dataset(1).uri, dataset(2).uri]
    engine.apply([], [dataset(1).uri])
    assert [document["uri"] for document in fake.documents.values()] == [dataset(2).uri]
    assert engine.count() == 1
    engine.clear()
    assert engine.count() == 0


def test_missing_index_is_empty(engine: MeilisearchEngine) -> None:
    """Before the first write there is nothing to find, and that is no error."""
    assert engine.search(Query("x", facets=("tags",))).facets == {"tags": {}}
    assert engine.count() == 0
    assert list(dict(engine.stamps())) == []


def test_failed_task(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """A task that the server took and then failed is an error that quotes the server."""
    fake.failure = {"message": "Index already has a primary key: `key`.", "code": "index_primary_key_already_exists"}
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:\d+ did not do task 0 .*already has a primary key"):
        engine.apply([dataset(1)], [])


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        ((403, {"code": "invalid_api_key", "message": "The API key is invalid."}), ConfigError, "refuses the API key"),
        (
            (400, {"code": "invalid_search_filter", "message": "Bad filter."}),
            NetworkError,
            "cannot do that: Bad filter",
        ),
        ((502, "<html>Bad Gateway</html>"), NetworkError, "Bad Gateway"),
        ((200, "<html>Welcome to nginx</html>"), NetworkError, "not as Meilisearch does"),
        ((200, {"hello": "world"}), NetworkError, "not as Meilisearch does"),
    ],
)
def test_refusals(
    fake: FakeServer, engine: MeilisearchEngine, refusal: tuple[int, Any], error: type[Exception], message: str
) -> None:
    """What a server says instead of an answer becomes one of our errors, with the server's URL and words."""
    fake.refusal = refusal
    for ask in (lambda: engine.search(Query("x")), engine.count):
        with pytest.raises(error, match=message) as raised:
            ask()
        assert engine._url in str(raised.value)


def test_server_away(server: tuple[FakeServer, str]) -> None:
    """No server: the error names the URL and says what to try."""
    engine = MeilisearchEngine("http://127.0.0.1:9", "key")
    for ask in (lambda: engine.search(Query("x")), lambda: engine.apply([dataset(1)], []), engine.count):
        with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:9 does not answer .*check that it runs"):
            ask()


def test_filters(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Filters are one expression each, all of which must hold; quotes and backslashes in values are escaped."""
    engine.apply([dataset(1)], [])
    engine.search(
        Query(
            tags=('a"b', "c"),
            licenses=("mit\\", "x"),
            fields=("image:ndarray",),
            min_samples=1,
            max_samples=5,
            max_bytes=7,
            structures=("s1-a", "s1-b"),
            created_after=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        )
    )
    assert fake.searches()[0]["filter"] == [
        'tags = "a\\"b"',
        'tags = "c"',
        'columns = "image:ndarray"',
        'license IN ["mit\\\\", "x"]',
        'structure IN ["s1-a", "s1-b"]',
        "samples >= 1",
        "samples <= 5",
        "bytes >= 0",
        "bytes <= 7",
        "created >= 1000000",
    ]


def test_documents_are_named_by_their_ids(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Only some documents, or all but some, are asked for by the hashes that are their ids; marks only where wanted."""
    engine.apply([dataset(1)], [])
    engine.search(Query("x", uris=("at://a", "at://b"), without=("at://c",), marks=False))
    asked = fake.searches()[0]
    a, b, c = (hashlib.sha256(uri).hexdigest() for uri in (b"at://a", b"at://b", b"at://c"))
    assert asked["filter"] == [f'id IN ["{a}", "{b}"]', f'id NOT IN ["{c}"]']
    assert "attributesToHighlight" not in asked


def test_facets_are_disjunctive(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """A facet with a filter of its own is counted by a search of its own, without that filter."""
    engine.apply([dataset(1)], [])
    facets = ("tags", "license", "storage")
    assert list(engine.search(Query(licenses=("mit",), tags=("a",), facets=facets)).facets) == list(facets)
    _, shared, tags, license_ = fake.searches()
    assert shared["facets"] == ["storage"]
    assert shared["filter"] == ['tags = "a"', 'license IN ["mit"]']
    assert (tags["facets"], tags["filter"]) == (["tags"], ['license IN ["mit"]'])
    assert (license_["facets"], license_["filter"]) == (["license"], ['tags = "a"'])


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("the songs of the whale", "songs whale"),
        ("the", "the"),
        ('"songs of the whale" blue', '"songs of the whale" blue'),
        ('songs "whale', "songs whale"),
        ("-whale --song", "whale song"),
        ("  ", ""),
        ("w " * 5_000, " ".join(["w"] * 32)),
    ],
)
def test_text(fake: FakeServer, engine: MeilisearchEngine, text: str, sent: str) -> None:
    """Stop words, lone quotes and the minus, which is an operator there, are left out of the query."""
    engine.apply([dataset(1)], [])
    engine.search(Query(text))
    assert {search["q"] for search in fake.searches()} == {sent}


def test_highlights(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """Marks come between delimiters that no stored text can hold, and everything else is escaped."""
    engine.apply([dataset(1, name="\ue000<b>\ue001", description="\ue000")], [])
    (stored,) = fake.documents.values()
    assert (stored["name"], stored["description"]) == ("<b>", "")
    formatted = {"name": "<b> \ue000whale\ue001 & co", "description": "no match <i>"}
    fake.hits = [{"uri": "at://x", "tie": 1, "_rankingScore": 0.5, "_formatted": formatted}]
    (hit,) = engine.search(Query("whale")).hits
    assert hit.highlights == {"name": "&lt;b&gt; <mark>whale</mark> &amp; co"}


def test_pages_are_stable(fake: FakeServer, engine: MeilisearchEngine) -> None:
    """While documents come and go, also the last one shown and hundreds at once, those that stay come exactly once."""

    def record(n: int) -> Document:
        return dataset(n, created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n // 3))

    engine.apply([record(n) for n in range(1_000)], [])
    seen: list[str] = []
    query: Query | None = Query(limit=20)
    gone: set[int] = set()
    for step in range(100):
        if query is None:
            break
        page = engine.search(query)
        seen += [hit.uri for hit in page.hits]
        query = replace(query, cursor=page.cursor) if page.cursor else None
        last = int(seen[-1].rsplit("/", 1)[1])
        leaving = {last, *range(990, 700, -1)} if step == 15 else {last} if step % 5 == 0 else set()
        gone |= leaving
        coming = range(2_000, 2_300) if step == 20 else [3_000 + step]
        engine.apply([record(n) for n in coming], [record(n).uri for n in leaving])
    stayed = [record(n).uri for n in range(1_000) if n not in gone]
    assert [uri for uri in seen if uri in set(stayed)] == sorted(stayed, key=seen.index)
    assert set(stayed) <= set(seen)
    assert len(set(seen)) == len(seen)
