"""The client of the AppView: what it asks, what it makes of answers, and what it does not believe."""

from __future__ import annotations

import inspect
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import answers
import cbrrr
import numpy as np
import pytest
from answers import ALICE, BOB, TIME, Network, refusal, reply, serving, view
from numpy.typing import NDArray
from shard_files import Digit, Labelled, digits, packed_shard
from web import Reply, dripping
from websockets.sync.server import serve as serve_stream

import atdata
from atdata import AppView, load_dataset, network
from atdata import appview as appview_module
from atdata.appview import DatasetFilters
from atdata.atmosphere import AtmosphereClient, AtmosphereIndex, DatasetEntry
from atdata.cid import generate_cid
from atdata.errors import (
    ArgumentError,
    ConfigError,
    MissingShardError,
    NetworkError,
    NotFoundError,
    RateLimitError,
    RecordError,
    SchemaError,
    UriError,
)
from atdata.nsid import DATASET, PREFIX, SAMPLE_SCHEMA
from atdata.structure import structure_of_type
from atdata.views import AccountChange, LensPath, RecordChange, StreamInfo

README = (Path(__file__).parents[2] / "shared" / "README.md").read_text("utf-8")
URI = f"at://{ALICE}/{DATASET}/x"
SCHEMA_URI = f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """A network of one server, the only one that is asked."""
    with serving(Network()) as fake:
        monkeypatch.setenv("ATDATA_PLC_URL", fake.url)
        monkeypatch.delenv("ATDATA_APPVIEW", raising=False)
        monkeypatch.delenv("ATDATA_ALLOW_PRIVATE_HOSTS", raising=False)
        yield fake


@pytest.fixture
def appview(fake: Network) -> AppView:
    return AppView(fake.url)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing waits; what would have is noted."""
    noted: list[float] = []
    monkeypatch.setattr(network, "_pause", noted.append)
    return noted


# --- Where it is


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:8000", "write http://localhost:8000"),
        ("appview.example.com/", "write http://appview.example.com/"),
        ("ftp://example.com", "is no address of an AppView"),
        ("https://", "is no address of an AppView"),
        ("at://did:plc:x", "is no address of an AppView"),
    ],
)
def test_what_is_no_url_is_an_error(url: str, problem: str) -> None:
    """The error says what to write."""
    with pytest.raises(UriError, match=problem):
        AppView(url)


def test_its_url_is_given_or_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ATDATA_APPVIEW` stands in for the argument; without either there is an error that names both."""
    monkeypatch.setenv("ATDATA_APPVIEW", "https://one.example.com/")
    assert AppView().url == "https://one.example.com"
    assert AppView("https://two.example.com/xrpc/").url == "https://two.example.com"
    assert repr(AppView("https://ada:secret@two.example.com")) == "AppView('https://…@two.example.com')"
    monkeypatch.delenv("ATDATA_APPVIEW")
    with pytest.raises(ConfigError, match="set ATDATA_APPVIEW"):
        AppView()
    with pytest.raises(ArgumentError, match="write AppView"):
        AppView(7)  # type: ignore[arg-type]


# --- Questions and answers


def test_every_filter_is_sent_as_the_lexicon_has_it(fake: Network, appview: AppView) -> None:
    """Lists are repeated, times are UTC, what is not given is not sent."""
    fake.answers["searchDatasets"] = {"datasets": [], "total": 0}
    list(
        appview.search_datasets(
            "owls & bats",
            tags=["a", "b"],
            licenses=["MIT"],
            schemas=[SCHEMA_URI],
            publishers=["@alice.test"],
            storage=["blobs"],
            fields=["image:ndarray:uint8"],
            loadable_as=Digit,
            min_samples=0,
            max_samples=9,
            min_bytes=1,
            max_bytes=2,
            created_after=datetime(2026, 1, 2, tzinfo=UTC),
            created_before=datetime(2026, 1, 3, tzinfo=UTC),
            sort="newest",
            facets=["tags"],
        )
    )
    list(appview.search_datasets())
    assert fake.asked == [
        (
            "searchDatasets",
            {
                "q": ["owls & bats"],
                "tags": ["a", "b"],
                "licenses": ["MIT"],
                "schemas": [SCHEMA_URI],
                "publishers": ["@alice.test"],
                "storage": ["blobs"],
                "fields": ["image:ndarray:uint8"],
                "loadableAs": [structure_of_type(Digit).fingerprint],
                "minSamples": ["0"],
                "maxSamples": ["9"],
                "minBytes": ["1"],
                "maxBytes": ["2"],
                "createdAfter": ["2026-01-02T00:00:00.000Z"],
                "createdBefore": ["2026-01-03T00:00:00.000Z"],
                "sort": ["newest"],
                "facets": ["tags"],
                "limit": ["50"],
            },
        ),
        ("searchDatasets", {"sort": ["relevance"], "limit": ["50"]}),
    ]
    with pytest.raises(ArgumentError, match=r"write tags=\['audio'\]"):
        appview.search_datasets(tags="audio")


def test_the_filters_have_one_list() -> None:
    """What `DatasetFilters` names, for the methods that pass filters on, is what a search takes."""
    explicit = inspect.signature(AppView.search_datasets).parameters
    assert set(explicit) - {"self", "q", "loadable_as"} == set(DatasetFilters.__annotations__)


def test_a_dataset_is_an_entry_with_what_the_appview_adds(fake: Network, appview: AppView) -> None:
    """The names of an index's entries, and publisher, highlights, path, verified, similarity."""
    record = {**answers.dataset(), "metadata": {"a": 1}, "tags": ["t"], "size": {"samples": 7}}
    more = {
        "highlights": {"name": "<mark>digits</mark>"},
        "path": answers.path(answers.hop(Digit, Labelled, answers.lens("simplify", SCHEMA_URI, SCHEMA_URI))),
    }
    fake.answers["searchDatasets"] = {
        "datasets": [view(record, **more)],
        "total": 12,
        "facets": {"tags": [{"value": "t", "count": 3}]},
    }
    found = appview.search_datasets("digits", facets=["tags"])
    assert repr(found) == "Results(not asked for yet)"
    (hit,) = found
    assert isinstance(hit, DatasetEntry)
    assert isinstance(hit, atdata.IndexEntry)
    assert (hit.name, hit.schema_ref, hit.data_urls) == ("digits", SCHEMA_URI, ["https://example.com/digits.tar"])
    assert (hit.metadata, hit.uri, hit.cid, hit.problems) == ({"a": 1}, URI, generate_cid(record), ())
    assert (hit.publisher.did, hit.publisher.handle, hit.verified) == (ALICE, "alice.test", True)
    assert hit.highlights == {"name": "<mark>digits</mark>"}
    assert isinstance(hit.path, LensPath)
    assert str(hit.path) == "simplify"
    assert [lens.name for lens in hit.path.lenses] == ["simplify"]
    assert (found.total, found.facets, found.is_truncated) == (12, {"tags": {"t": 3}}, False)
    assert repr(hit) == f"DatasetView('digits', @alice.test, '{URI}')"
    assert repr(found) == "Results(12)"
    assert fake.methods == ["searchDatasets"]
    assert hit == next(iter(found))
    assert len({hit, next(iter(found))}) == 1


def test_schemas(fake: Network, appview: AppView) -> None:
    """Searched, looked up, resolved by a range: each with its fields and structure, and as a Python type."""
    shown = view(answers.schema(Digit), "digit")
    fake.answers["searchSchemas"] = {"schemas": [shown], "total": 1}
    fake.answers["getSchemas"] = {"schemas": [shown], "notFound": []}
    fake.answers["resolveSchema"] = {"schema": shown, "versions": [], "ignored": []}
    found = [*appview.search_schemas("digit", fields=["image"]), appview.get_schema(SCHEMA_URI)]
    found.append(appview.resolve_schema("alice.test", "Digit", version=">=1.0"))
    for schema in found:
        assert (schema.name, schema.version, schema.uri) == ("Digit", "1.0.0", SCHEMA_URI)
        assert schema.field_names == ("image", "label")
        assert schema.structure == structure_of_type(Digit)
        assert schema.to_type().__name__ == "Digit"
        assert "Digit 1.0.0" in schema._repr_html_()
    assert fake.asked[0][1]["fields"] == ["image"]
    assert fake.asked[-1][1] == {"publisher": ["alice.test"], "name": ["Digit"], "version": [">=1.0"]}


def test_look_ups(fake: Network, appview: AppView) -> None:
    """Labels, shards, publishers, lenses, comparisons, status."""
    fake.answers |= {
        "resolveLabel": {"label": view(answers.label("digits", URI, "1.0")), "datasetUri": URI},
        "resolveBlobs": {
            "uri": URI,
            "cid": "bafy",
            "storage": "blobs",
            "total": 2,
            "shards": [{"url": "https://pds.test/1", "cid": "bafk", "size": 3}, {"url": "https://pds.test/1"}],
        },
        "listPublishers": {
            "publishers": [
                {
                    "did": BOB,
                    "handle": "handle.invalid",
                    "firstSeenAt": TIME,
                    "lastIndexedAt": TIME,
                    **dict.fromkeys(("datasets", "schemas", "lenses", "labels"), 2),
                }
            ]
        },
        "listLenses": {"lenses": [view(answers.lens("simplify", SCHEMA_URI, SCHEMA_URI, "a.py:f"), missing=[URI])]},
        "compareSchemas": {
            "from": {"fingerprint": "lie", "fields": [{"name": "label", "type": "int", "optional": False}]},
            "to": {"fingerprint": "lie", "fields": []},
            "verdict": "identical",
            "differences": [],
            "summary": "",
        },
        "getStatus": {
            "version": "1.0",
            "records": {"dataset": 3},
            "searchDocuments": 3,
            "backlog": 0,
            "repositories": {},
            "relays": [],
            "quarantine": [],
        },
        "similarDatasets": {
            "datasets": [view(answers.dataset(), similarity={"sharedTags": ["t"], "sameStructure": True})]
        },
        "getLensGraph": {
            "root": "s1-x",
            "nodes": [{"key": "s1-x", "state": "readable", "schemas": [SCHEMA_URI], "schemaCount": 1, "name": "Digit"}],
            "edges": [{"kind": "lens", "from": "s1-x", "to": "s1-x", "hasPutter": False, "name": "turn"}],
            "truncated": False,
        },
    }
    label = appview.resolve_label("alice.test", "digits")
    assert (label.label.version, label.dataset_uri, label.dataset) == ("1.0", URI, None)
    shards = list(appview.resolve_blobs(URI))
    assert [(shard.url, shard.cid, shard.size) for shard in shards] == [
        ("https://pds.test/1", "bafk", 3),
        ("https://pds.test/1", None, None),
    ]
    (publisher,) = appview.list_publishers()
    assert (publisher.did, publisher.handle, publisher.datasets) == (BOB, None, 2)
    (lens,) = appview.list_lenses(source=SCHEMA_URI, equivalent=True)
    assert lens.getter_code is not None
    assert (lens.name, lens.getter_code.path, lens.missing) == ("simplify", "a.py:f", (URI,))
    assert fake.asked[-1][1] == {"source": [SCHEMA_URI], "equivalent": ["true"], "limit": ["50"]}
    assert appview.compare_schemas(SCHEMA_URI, SCHEMA_URI).verdict == "backward"
    assert appview.status().records == {"dataset": 3}
    assert "'quarantine': []" in repr(appview.status())
    (similar,) = appview.similar(URI)
    assert similar.similarity is not None
    assert similar.similarity.shared_tags == ("t",)
    graph = appview.lens_graph(Digit, depth=2)
    assert (graph.nodes[0].name, graph.edges[0].name) == ("Digit", "turn")
    for shown in (lens, label.label, graph, similar, appview.list_lenses()):
        assert "<table>" in shown._repr_html_()


# --- Pages


def paged(*pages: tuple[list[str], str | None]) -> Callable[[Any], Any]:
    """An answer to searches: pages of datasets of these keys, each found by the cursor of the one before."""

    def answer(query: Any) -> Any:
        n = int(query.get("cursor", ["0"])[0])
        keys, cursor = pages[min(n, len(pages) - 1)]
        found = {"datasets": [view(answers.dataset(key), key) for key in keys], "total": 9}
        return found if cursor is None else {**found, "cursor": cursor}

    return answer


def test_pages_are_read_as_they_are_asked_for(fake: Network, appview: AppView) -> None:
    """Nothing is asked before, no page too many, and the first one once, however often it is looked at."""
    fake.answers["searchDatasets"] = paged((["a", "b"], "1"), (["c"], "2"), ([], "3"), (["d"], None))
    found = appview.search_datasets()
    assert fake.asked == []
    assert found.total == 9
    assert [hit.name for hit in islice(found, 2)] == ["a", "b"]
    assert len(fake.asked) == 1
    assert [hit.name for hit in found] == ["a", "b", "c", "d"]
    assert [query.get("cursor") for _, query in fake.asked] == [None, ["1"], ["2"], ["3"]]


def test_nothing_comes_twice(fake: Network, appview: AppView) -> None:
    """What an AppView sends again on a later page is left out."""
    fake.answers["searchDatasets"] = paged((["a", "b", "a"], "1"), (["b", "c"], ""))
    assert [hit.name for hit in appview.search_datasets()] == ["a", "b", "c"]


def test_cursors_that_loop_end_with_an_error(fake: Network, appview: AppView, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before the circle was closed has been handed out."""
    monkeypatch.setattr(appview_module, "_MAX_PAGES", 20)
    fake.answers["searchDatasets"] = paged((["a"], "1"), (["b"], "2"), (["c"], "1"))
    found: list[str] = []
    with pytest.raises(NetworkError, match="searchDatasets: the pages go in a circle: the cursor '1' came before"):
        found.extend(hit.name for hit in appview.search_datasets())
    assert found == ["a", "b", "c"]
    assert len(fake.asked) == 3


def test_pages_that_do_not_end_are_an_error(fake: Network, appview: AppView, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in number nor in bytes, though each be new."""
    fake.answers["searchDatasets"] = lambda query: {
        "datasets": [],
        "total": 0,
        "cursor": str(int(query.get("cursor", ["0"])[0]) + 1),
    }
    monkeypatch.setattr(appview_module, "_MAX_PAGES", 5)
    with pytest.raises(NetworkError, match="the pages do not end: there were 6"):
        list(appview.search_datasets())
    monkeypatch.setattr(appview_module, "_MAX_PAGES", 10_000)
    monkeypatch.setattr(appview_module, "_MAX_LISTING", 300)
    with pytest.raises(NetworkError, match="the pages do not end"):
        list(appview.search_datasets())
    assert len(fake.asked) < 30


# --- Answers that are none


GOOD = view(answers.dataset())
SHAPES: dict[str, tuple[Any, str]] = {
    "a list": ([], "searchDatasets: expected an object, found an array"),
    "null": (None, "searchDatasets: expected an object, found null"),
    "no datasets": ({"total": 1}, "searchDatasets: datasets: expected a list, found nothing"),
    "datasets of another kind": ({"datasets": {}}, "datasets: expected a list, found an object"),
    "a dataset of another kind": ({"datasets": [7]}, r"datasets\[0\]: expected an object, found an integer"),
    "no record": (
        {"datasets": [{**GOOD, "record": None}]},
        r"datasets\[0\]: record: expected an object, found nothing",
    ),
    "a record of another kind": ({"datasets": [{**GOOD, "record": "x"}]}, "record: expected an object, found a string"),
    "no publisher": ({"datasets": [{**GOOD, "publisher": {}}]}, "publisher: did: expected a text, found nothing"),
    "no DID": ({"datasets": [{**GOOD, "publisher": {"did": "x", "handle": "y"}}]}, "'x' is no DID"),
    "no URI": ({"datasets": [{**GOOD, "uri": "https://x"}]}, r"datasets\[0\]: uri: AT URI 'https://x'"),
    "another's URI": ({"datasets": [{**GOOD, "uri": URI.replace(ALICE, BOB)}]}, f"is not in the repository of {ALICE}"),
    "a URI of another kind": ({"datasets": [{**GOOD, "uri": SCHEMA_URI}]}, "is no dataset"),
    "no truth": ({"datasets": [{**GOOD, "verified": 1}]}, "verified: expected true or false, found an integer"),
    "no time": ({"datasets": [{**GOOD, "indexedAt": "now"}]}, "indexedAt: 'now' is not a datetime"),
    "no path": ({"datasets": [{**GOOD, "path": {"from": "a", "to": "b", "hops": 3}}]}, "path: hops: expected a list"),
    "no highlights": ({"datasets": [{**GOOD, "highlights": ["x"]}]}, "highlights: expected an object"),
    "no cursor": ({"datasets": [], "cursor": 5}, "cursor: expected a text, found an integer"),
}


@pytest.mark.parametrize(("answer", "problem"), SHAPES.values(), ids=SHAPES)
def test_unexpected_shapes_are_named(fake: Network, appview: AppView, answer: Any, problem: str) -> None:
    """The error says which AppView, which method, which member, and what was there instead."""
    fake.answers["searchDatasets"] = reply(answer)
    with pytest.raises(NetworkError, match=problem) as error:
        list(appview.search_datasets())
    assert str(error.value).startswith(f"{fake.url}: searchDatasets: ")
    # A notebook shows that, too.
    assert "searchDatasets" in appview.search_datasets()._repr_html_() or isinstance(answer, dict)


def test_a_path_of_a_kind_that_is_not_known_is_an_error(fake: Network, appview: AppView) -> None:
    """A step that is neither lens nor projection is none that one could take, nor leave out."""
    fake.answers["getLensPath"] = answers.paths(answers.path(answers.hop(Digit, Labelled, kind="teleport")))
    with pytest.raises(NetworkError, match="kind: expected lens or projection, found 'teleport'"):
        appview.find_lens_path(Digit, Labelled)


BODIES = {
    "no JSON": (b"<html>", "not JSON"),
    "nested too deeply": (b"[" * 100_000, "not JSON|expected an object"),
    "too long": (b" " * 2000, "more than the 1000 bytes we accept"),
}


@pytest.mark.parametrize(("body", "problem"), BODIES.values(), ids=BODIES)
def test_bodies_that_are_no_answers(
    fake: Network, appview: AppView, monkeypatch: pytest.MonkeyPatch, body: bytes, problem: str
) -> None:
    """What is no JSON, and what is larger than any honest answer, is a NetworkError."""
    fake.answers["searchDatasets"] = Reply(body)
    monkeypatch.setattr(appview_module, "_MAX_ANSWER", 1000 if b" " in body else 10**6)
    with pytest.raises(NetworkError, match=problem):
        list(appview.search_datasets())


def test_an_odd_record_fails_no_page(fake: Network, appview: AppView) -> None:
    """It is there, with what is wrong with it."""
    odd = {"$type": DATASET, "name": 7, "schemaRef": [], "storage": "x", "tags": {}, "fraction": 1.5}
    fake.answers["searchDatasets"] = {"datasets": [{**GOOD, "record": odd}, view(answers.dataset("good"), "y")]}
    first, second = appview.search_datasets()
    assert second.name == "good"
    assert (first.name, first.schema_ref, first.data_urls) == ("", "", [])
    assert first.problems
    assert "problems" in first._repr_html_()
    with pytest.raises(RecordError, match="its shards cannot be read"):
        view_of(first.stored).load(Digit)


def view_of(record: Any) -> Any:
    from atdata.views import DatasetView, Part

    return DatasetView.read(Part(view({**record, "fraction": 1}), "test"))


def test_highlights_are_safe_html() -> None:
    """Whatever an AppView sends in them, only text and `<mark>` is left."""
    from atdata.views import _marked

    assert _marked("a &lt;b&gt; <mark>c</mark> &amp; d") == "a &lt;b&gt; <mark>c</mark> &amp; d"
    assert _marked("<script>x</script><mark>y</mark>") == "&lt;script&gt;x&lt;/script&gt;<mark>y</mark>"
    assert _marked("<mark onclick=x>y</mark>") == "&lt;mark onclick=x&gt;y"
    assert _marked("</mark><mark>") == ""


def test_what_strangers_write_is_escaped_in_notebooks(fake: Network, appview: AppView) -> None:
    """Names and descriptions are text."""
    record = {**answers.dataset("<script>"), "description": "<img src=x>"}
    fake.answers["searchDatasets"] = {"datasets": [view(record)], "total": 1}
    found = appview.search_datasets()
    for shown in (found._repr_html_(), next(iter(found))._repr_html_()):
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&lt;script&gt;" in shown


# --- Errors, limits, redirects


STATUSES = {
    "no such thing": (404, "DatasetNotFound", NotFoundError, "there is no such dataset"),
    "a wrong parameter": (400, "InvalidRequest", NetworkError, "400 InvalidRequest there is no such dataset"),
    "a method that it lacks": (501, "MethodNotImplemented", NetworkError, "may be older than this library"),
    "too many": (429, "RateLimitExceeded", RateLimitError, "too many requests"),
    "a fault": (500, "InternalServerError", NetworkError, "500 InternalServerError"),
}


@pytest.mark.parametrize(("status", "name", "kind", "problem"), STATUSES.values(), ids=STATUSES)
def test_error_statuses(fake: Network, appview: AppView, status: int, name: str, kind: type, problem: str) -> None:
    """Each becomes the error that says what to do, with the service's message."""
    fake.answers["resolveDataset"] = refusal(status, name, "there is no such dataset")
    with pytest.raises(kind, match=problem) as error:
        appview.resolve_dataset("@alice.test/digits")
    assert str(error.value).startswith(f"{fake.url}: resolveDataset: ")
    assert type(error.value) is kind or kind is NetworkError


def test_what_is_no_appview(fake: Network, appview: AppView) -> None:
    """A 404 without a name of the protocol is another server's."""
    fake.answers["getStatus"] = Reply(b"<html>not here", 404)
    with pytest.raises(NetworkError, match="there is no AppView at this address"):
        appview.status()


def test_a_pds_is_no_appview(fake: Network, appview: AppView) -> None:
    """What the reference implementation of one says of a method that it would pass on is understood."""
    fake.answers["searchDatasets"] = refusal(400, "InvalidRequest", f"No service configured for {PREFIX}searchDatasets")
    with pytest.raises(NetworkError, match="there is no AppView at this address, but a PDS; check it"):
        list(appview.search_datasets())


def test_https_where_http_is_spoken_is_named(fake: Network) -> None:
    """Not in the words of OpenSSL, but with the address to write."""
    appview = AppView(fake.url.replace("http:", "https:"))
    for ask in (lambda: list(appview.search_datasets()), lambda: list(appview.changes())):
        with pytest.raises(NetworkError, match=f"does not speak https; if it is http, write {fake.url}$") as error:
            ask()
        assert "SSL" not in str(error.value)


def test_a_busy_appview_is_waited_for_as_long_as_it_asks(fake: Network, appview: AppView, pauses: list[float]) -> None:
    """429 with Retry-After is asked again after so many seconds; one that would be too long is an error at once."""
    busy = iter([refusal(429, "RateLimitExceeded", **{"Retry-After": "7"})])
    good = {"schemas": [], "total": 0}
    fake.answers["searchSchemas"] = lambda _: next(busy, good)
    assert list(appview.search_schemas()) == []
    assert pauses == [7.0]
    fake.answers["searchSchemas"] = refusal(429, "RateLimitExceeded", **{"Retry-After": "86400"})
    with pytest.raises(RateLimitError, match="too many requests"):
        list(appview.search_schemas())
    assert pauses == [7.0]


def test_redirects_are_not_followed(fake: Network, appview: AppView) -> None:
    """Whoever answers for an AppView cannot send us elsewhere, least of all into our own network."""
    fake.answers["getStatus"] = Reply(b"", 302, headers={"Location": f"{fake.url}/secret"})
    fake.files["/secret"] = b"{}"
    with pytest.raises(NetworkError, match="answers with a redirect"):
        appview.status()
    assert fake.methods == ["getStatus"]


def test_an_answer_that_takes_its_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it drips, it ends by the deadline."""
    monkeypatch.setattr(appview_module, "_SECONDS", 0.3)
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", b" ", b"}") as drip:
        with pytest.raises(NetworkError, match="not answered in full within"):
            AppView(drip.url).status()
        assert not drip.was_waited_for


def test_an_appview_that_is_down_is_named() -> None:
    """With what to check."""
    with pytest.raises(NetworkError, match="check the address, and that the server is up"):
        AppView("http://127.0.0.1:9").status()


# --- What is not believed


def resolved(**more: Any) -> Any:
    return {"dataset": view(answers.dataset()), "schema": view(answers.schema(Digit), "digit"), **more}


OTHER_SCHEMA = f"at://{ALICE}/{SAMPLE_SCHEMA}/other"
LIES: dict[str, tuple[Any, str]] = {
    "a record that was changed": (
        resolved(dataset={**GOOD, "record": answers.dataset("digits", SCHEMA_URI, "https://evil.example/x.tar")}),
        "sends a record with CID",
    ),
    "a schema that was changed": (
        resolved(schema={**view(answers.schema(Digit), "digit"), "record": answers.schema(Labelled)}),
        "sends a record with CID",
    ),
    "another schema": (resolved(schema=view(answers.schema(Labelled), "other")), f"another schema .*{OTHER_SCHEMA}"),
    "another name": (resolved(dataset=view(answers.dataset("Digits"))), "it sends 'Digits' of @alice.test"),
    "another publisher": (
        resolved(dataset=view(answers.dataset(), did=BOB)),
        "it sends 'digits' of @bob.test",
    ),
    "a label of another name": (resolved(label=view(answers.label("digit", URI))), "it sends 'digit' of @alice.test"),
    "a label of somebody else": (resolved(label=view(answers.label("digits", URI), did=BOB)), "of @bob.test"),
    "a label that points elsewhere": (
        resolved(label=view(answers.label("digits", f"at://{BOB}/{DATASET}/x"))),
        "a label that points elsewhere",
    ),
    "a record with a fraction that no CID covers": (
        resolved(dataset={**GOOD, "record": {**answers.dataset(), "x": float("1e400")}}),
        "cannot be encoded",
    ),
}


@pytest.mark.parametrize(("answer", "problem"), LIES.values(), ids=LIES)
def test_an_answer_to_another_question_is_an_error(fake: Network, appview: AppView, answer: Any, problem: str) -> None:
    """Records are compared with their CIDs, and with what was asked for."""
    fake.answers["resolveDataset"] = answer
    with pytest.raises(NetworkError, match=problem):
        appview.resolve_dataset(f"@{'alice.test'}/digits")


def test_a_version_is_the_one_that_was_asked_for(fake: Network, appview: AppView) -> None:
    """A label of another version, or none, is not what stands behind the @."""
    for label in (view(answers.label("digits", URI, "2.0")), None):
        fake.answers["resolveDataset"] = resolved(label=label)
        with pytest.raises(NetworkError, match="another version"):
            appview.resolve_dataset("@alice.test/digits@1.0")
    fake.answers["resolveDataset"] = resolved(label=view(answers.label("digits", URI, "1.0")))
    found = appview.resolve_dataset(f"{ALICE}/digits@1.0")
    assert found.label is not None
    assert found.label.version == "1.0"


def test_look_ups_by_uri_give_that_record(fake: Network, appview: AppView) -> None:
    """Another one is an error, none a NotFoundError, a LookupError."""
    fake.answers["getDatasets"] = {"datasets": [view(answers.dataset(), "y")], "notFound": []}
    with pytest.raises(NetworkError, match=f"asked for {URI}, it sends"):
        appview.get_dataset(URI)
    fake.answers["getDatasets"] = {"datasets": [], "notFound": [URI]}
    with pytest.raises(LookupError, match="has no record"):
        appview.get_dataset(URI)
    fake.answers["getDatasets"] = {"datasets": [{**GOOD, "cid": generate_cid({})}], "notFound": []}
    with pytest.raises(NetworkError, match="says that its CID is"):
        appview.get_dataset(URI)
    with pytest.raises(UriError):
        appview.get_dataset("digits")


def test_what_was_found_stands_for_its_uri(fake: Network, appview: AppView) -> None:
    """A hit goes where its URI goes; and a name where a dataset's URI does."""
    fake.answers["similarDatasets"] = fake.answers["searchDatasets"] = {"datasets": [GOOD], "total": 1}
    fake.answers["resolveBlobs"] = {"shards": []}
    (hit,) = appview.search_datasets()
    for ask in (appview.similar, lambda one: list(appview.resolve_blobs(one))):
        for one in (hit, URI):
            ask(one)
            assert fake.asked[-1][1]["uri"] == [URI]
    fake.answers["resolveDataset"] = resolved()
    assert appview.get_dataset("@alice.test/digits").uri == URI
    assert fake.asked[-1] == ("resolveDataset", {"dataset": ["@alice.test/digits"]})


# --- Loading


@pytest.fixture
def published(fake: Network) -> Network:
    """A dataset of alice's, in her repository and in the AppView."""
    fake.files["/digits.tar"] = packed_shard(digits(3))
    record = answers.dataset("digits", SCHEMA_URI, f"{fake.url}/digits.tar")
    fake.records = {URI: record, SCHEMA_URI: answers.schema(Digit)}
    fake.answers["resolveDataset"] = resolved(dataset=view(record))
    return fake


def labels(dataset: Any) -> list[int]:
    return [sample.label for sample in dataset]


FROM_PDS = [
    f"/{ALICE}",  # the directory
    "com.atproto.repo.listRecords",  # labels of the name
    "com.atproto.repo.listRecords",  # labels of any
    "com.atproto.repo.listRecords",  # datasets
    "com.atproto.repo.getRecord",  # the dataset
    "com.atproto.repo.getRecord",  # its schema
]


@pytest.mark.parametrize("name", [f"@{ALICE}/digits", URI])
def test_loading_by_name_takes_one_request(published: Network, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Through the AppView, record and schema come with one answer; shards are read where the record says."""
    splits = load_dataset(name, appview=published.url)
    assert published.methods == ["resolveDataset"]
    assert published.asked[0][1] == {"dataset": [name]}
    assert labels(splits["train"]) == [0, 1, 2]
    assert published.methods == ["resolveDataset", "/digits.tar"]
    # The same by the environment, and by an index.
    published.asked.clear()
    index = AtmosphereIndex(appview=published.url)
    assert labels(load_dataset(name, index=index, split="train")) == [0, 1, 2]
    monkeypatch.setenv("ATDATA_APPVIEW", published.url)
    assert labels(load_dataset(name, split="train")) == [0, 1, 2]
    assert published.methods == ["resolveDataset", "/digits.tar"] * 2


def test_without_an_appview_the_publishers_server_is_asked(published: Network) -> None:
    """As ever: the directory, labels, datasets, the record and its schema."""
    assert labels(load_dataset(f"@{ALICE}/digits", split="train")) == [0, 1, 2]
    assert published.methods == [*FROM_PDS, "/digits.tar"]


FAILURES: dict[str, Any] = {
    "it does not know the dataset": refusal(404, "DatasetNotFound", "there is none"),
    "it is broken": refusal(500, "InternalServerError"),
    "it is no AppView": Reply(b"<html>", 404),
    "it sends something else": Reply(b"[]"),
    **{name: answer for name, (answer, _) in LIES.items()},
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_where_the_appview_fails_the_publishers_server_is_asked(published: Network, answer: Any) -> None:
    """What it does not know, or gets wrong, costs requests, and changes nothing of what is loaded."""
    by_appview = load_dataset(f"@{ALICE}/digits", appview=published.url)["train"]
    published.answers["resolveDataset"] = answer
    published.asked.clear()
    is_lie = any(answer is lie for lie, _ in LIES.values())
    with pytest.warns(UserWarning, match="tell whoever runs this AppView") if is_lie else nullcontext():
        dataset = load_dataset(f"@{ALICE}/digits", appview=published.url)["train"]
    assert [method for method in published.methods if method != "resolveDataset"] == FROM_PDS
    assert dataset.sample_type is by_appview.sample_type
    assert dataset.list_shards() == by_appview.list_shards()
    assert repr(list(dataset)) == repr(list(by_appview))


def test_an_appview_that_is_down_costs_little(published: Network, pauses: list[float]) -> None:
    """The publisher's server answers all the same."""
    assert labels(load_dataset(f"@{ALICE}/digits", appview="http://127.0.0.1:9", split="train")) == [0, 1, 2]
    assert sum(pauses) < 10


def test_a_record_that_is_not_what_its_cid_says_is_told(published: Network) -> None:
    """It is not used, and the warning, at the caller's line, names record and AppView."""
    changed = {**view(published.records[URI]), "record": answers.dataset("digits", SCHEMA_URI, "https://evil.test/x")}
    published.answers["resolveDataset"] = resolved(dataset=changed)
    said = f"{URI}: the AppView says that its CID is .*; what {published.url} sent was not used"
    with pytest.warns(UserWarning, match=said) as warned:
        dataset = load_dataset(f"@{ALICE}/digits", appview=published.url, split="train")
    assert labels(dataset) == [0, 1, 2]
    assert [one.filename for one in warned] == [__file__]
    # Nor is it forgotten when the publisher's server does not help.
    del published.records[URI]
    with pytest.raises(MissingShardError, match=r"says that its CID is .*; without the AppView: .*neither label nor"):
        load_dataset(f"@{ALICE}/digits", appview=published.url)


def test_what_nobody_has_is_not_found(published: Network) -> None:
    """The error is that of the publisher's server; with an AppView, after what that has said, which may know better."""
    published.answers["resolveDataset"] = refusal(404, "DatasetNotFound", "did you mean digits?")
    for appview, said in ((published.url, "did you mean digits.; without the AppView: "), (None, "")):
        with pytest.raises(MissingShardError, match=f"{said}{ALICE} has neither label nor dataset 'cats'"):
            load_dataset(f"@{ALICE}/cats", appview=appview)


def test_an_appview_that_is_down_is_told_where_nobody_else_helps(published: Network) -> None:
    """Both reasons stand in the error: that of the AppView, and that of the publisher's server."""
    published.answers["com.atproto.repo.listRecords"] = refusal(502, "UpstreamFailure")
    with pytest.raises(NetworkError, match=r"127.0.0.1:9/.*is up; without the AppView: .*502 UpstreamFailure"):
        load_dataset(f"@{ALICE}/digits", appview="http://127.0.0.1:9")


def test_an_index_has_an_appview_of_its_own(published: Network) -> None:
    """Two that might differ are refused."""
    with pytest.raises(ArgumentError, match="AtmosphereIndex"):
        load_dataset(URI, index=AtmosphereIndex(), appview=published.url)


def test_what_is_ours_is_asked_of_our_own_server(published: Network) -> None:
    """A label that we have just moved is there at once, and at the AppView a moment later."""
    client = AtmosphereClient()
    client._account = type("Account", (), {"did": ALICE, "handle": "alice.test", "pds": published.url})()  # type: ignore[assignment]
    index = AtmosphereIndex(client, appview=published.url)
    for name in (f"@{ALICE}/digits", "@alice.test/digits", URI):
        load_dataset(name, index=index)
    assert "resolveDataset" not in published.methods


def test_what_was_found_is_loaded_in_one_call(published: Network, appview: AppView) -> None:
    """Without asking for its record again: of the published type, with its schema, or of the one that is given."""
    published.answers["searchDatasets"] = {"datasets": [resolved(dataset=view(published.records[URI]))["dataset"]]}
    published.answers["getSchemas"] = {"schemas": [view(answers.schema(Digit), "digit")], "notFound": []}
    (hit,) = appview.search_datasets("digits")
    assert labels(hit.load(split="train")) == [0, 1, 2]
    assert published.methods == ["searchDatasets", "getSchemas", "/digits.tar"]
    splits = hit.load(Digit)
    assert splits.sample_type is Digit
    assert type(next(iter(splits["train"]))) is Digit
    assert published.methods == ["searchDatasets", "getSchemas", "/digits.tar", "/digits.tar"]
    with pytest.raises(ValueError, match="there is no split 'test'; there are: 'train'"):
        hit.load(Digit, split="test")
    # What the AppView does not know of its schema, the publisher's server does.
    published.answers["getSchemas"] = {"schemas": [], "notFound": [SCHEMA_URI]}
    assert labels(hit.load(split="train")) == [0, 1, 2]
    assert "com.atproto.repo.getRecord" in published.methods


def test_what_was_found_and_changed_is_not_loaded(published: Network, appview: AppView) -> None:
    """A record that is not what its CID says opens no shard."""
    changed = {**view(published.records[URI]), "record": answers.dataset("digits", SCHEMA_URI, f"{published.url}/x")}
    published.answers["searchDatasets"] = {"datasets": [changed]}
    (hit,) = appview.search_datasets()
    with pytest.raises(NetworkError, match="says that its CID is"):
        hit.load(Digit)
    assert published.methods == ["searchDatasets"]


def test_a_loaded_dataset_can_be_sent_to_other_processes(published: Network) -> None:
    """It remembers which AppView knows it, and no connection."""
    dataset = load_dataset(URI, Digit, appview=published.url, split="train")
    again = pickle.loads(pickle.dumps(dataset))
    assert (again._schema_ref, again._appview) == (SCHEMA_URI, published.url)
    assert labels(again) == [0, 1, 2]


# --- By type


@atdata.packable
class Extended:
    image: NDArray[np.uint8]
    label: int
    words: list[str]
    note: str | None = None


def test_datasets_of_a_type_are_asked_for_by_fingerprint(fake: Network, appview: AppView) -> None:
    """Where its structure is published, the AppView knows what leads there."""
    fake.answers["resolveSchema"] = {"schema": view(answers.schema(Digit), "digit"), "versions": [], "ignored": []}
    fake.answers["searchDatasets"] = {"datasets": [{**GOOD, "path": answers.path()}], "total": 1, "truncated": True}
    found = appview.datasets_loadable_as(Digit, "words", tags=["t"])
    assert [hit.name for hit in found] == ["digits"]
    assert found.is_truncated
    fingerprint = structure_of_type(Digit).fingerprint
    assert fake.asked[0] == ("resolveSchema", {"fingerprint": [fingerprint]})
    assert fake.asked[1][1]["loadableAs"] == [fingerprint]
    assert fake.asked[1][1]["tags"] == ["t"]
    # One that ignores the question has all datasets for an answer.
    fake.answers["searchDatasets"] = {"datasets": [GOOD], "total": 1}
    with pytest.raises(NetworkError, match="this AppView does not know loadableAs"):
        list(appview.search_datasets(loadable_as=SCHEMA_URI))


def test_datasets_of_a_type_that_nobody_published_are_found_by_their_fields(fake: Network, appview: AppView) -> None:
    """Those come whose schemas have all that the type needs; others with fields of these names do not."""
    schemas = {
        "wide": answers.schema(Extended),
        "optional": answers.schema(atdata.packable(type("Maybe", (), {"__annotations__": {"label": int | None}}))),
        "odd": {"$type": SAMPLE_SCHEMA, "name": "odd", "fields": 7},
    }
    fake.answers["resolveSchema"] = refusal(404, "SchemaNotFound", "none")
    fake.answers["searchDatasets"] = {
        "datasets": [
            view(answers.dataset(f"{name}{n}", f"at://{ALICE}/{SAMPLE_SCHEMA}/{name}"), f"{name}{n}")
            for n in range(2)
            for name in (*schemas, "unknown")
        ],
        "total": 8,
    }
    fake.answers["getSchemas"] = lambda query: {
        "schemas": [view(schemas[k], k) for k in (uri.split("/")[-1] for uri in query["uris"]) if k in schemas],
        "notFound": [],
    }
    assert [hit.name for hit in appview.datasets_loadable_as(Labelled)] == ["wide0", "wide1"]
    assert fake.methods == ["resolveSchema", "searchDatasets", "getSchemas"]
    assert fake.asked[1][1]["fields"] == ["label:int"]
    by_handle = answers.dataset("by handle", f"at://alice.test/{SAMPLE_SCHEMA}/wide")
    fake.answers["searchDatasets"] = {"datasets": [view(by_handle)], "total": 1}
    assert [hit.name for hit in appview.datasets_loadable_as(Labelled)] == ["by handle"]
    fake.asked[3:] = []
    list(appview.datasets_loadable_as(Extended))
    assert fake.asked[4][1]["fields"] == ["image:ndarray:uint8", "label:int", "words:array"]


def test_a_type_that_no_schema_can_express_is_named(appview: AppView) -> None:
    """Nobody can have published that."""

    @atdata.packable
    class Anything:
        value: Any

    for ask in (appview.datasets_loadable_as, lambda t: appview.find_lens_path(t, Digit)):
        with pytest.raises(SchemaError, match=r"Anything\.value"):
            ask(Anything)


NO_TYPES: list[tuple[Any, type[Exception], str]] = [
    ("Kitchen", ArgumentError, "sample_type is a class, not 'Kitchen'; for a schema's AT URI write search_datasets"),
    (3, ArgumentError, "sample_type is a class, not '3'"),
    (dict, SchemaError, "dict is not a sample type; decorate the class"),
    (atdata.DictSample, SchemaError, "DictSample has no fields of its own"),
]


@pytest.mark.parametrize(("given", "kind", "problem"), NO_TYPES)
def test_what_is_no_sample_type_is_named(
    appview: AppView, fake: Network, given: Any, kind: type[Exception], problem: str
) -> None:
    """Before anybody is asked."""
    with pytest.raises(kind, match=problem):
        appview.datasets_loadable_as(given)
    if isinstance(given, type):
        with pytest.raises(kind, match=problem):
            appview.search_datasets(loadable_as=given)
    assert fake.asked == []


# --- The documentation


def test_the_readme_shows_what_happens(published: Network, capsys: pytest.CaptureFixture[str]) -> None:
    """Its examples print what their comments say, on an AppView with those datasets."""
    section = README[README.index("## How to find datasets") : README.index("class InWords")]
    code = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    calls = {**answers.dataset("Market Calls"), "size": {"samples": 6240}}
    found = {True: published.records[URI], False: calls}
    published.answers["searchDatasets"] = lambda query: {"datasets": [view(found["fields" in query])], "total": 1}
    published.answers["resolveSchema"] = refusal(404, "SchemaNotFound", "nobody has published that")
    published.answers["getSchemas"] = {"schemas": [view(published.records[SCHEMA_URI], "digit")], "notFound": []}
    code = code.replace("http://127.0.0.1:8000", published.url).replace("ada.test", "alice.test")
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    printed = [line.replace("ada.test", "alice.test") for line in re.findall(r"print\(.*#\s*(.*)", section)]
    assert len(printed) == 3
    assert capsys.readouterr().out.splitlines() == printed


# --- The index


def test_without_an_appview_an_index_says_what_to_give(fake: Network) -> None:
    """What one repository can answer still works."""
    fake.records = {URI: answers.dataset()}
    index = AtmosphereIndex()
    for ask in (
        index.search_datasets,
        lambda: index.similar(URI),
        lambda: index.find_lens_path(Digit, Labelled),
        lambda: index.datasets_loadable_as(Digit),
    ):
        with pytest.raises(ConfigError, match="give appview=URL"):
            ask()
    assert [entry.name for entry in index.list_datasets(ALICE)] == ["digits"]
    assert index.get_dataset(URI).name == "digits"


def test_an_index_asks_its_appview(fake: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as a URL, as an AppView, or by the environment; its client reads what is found."""
    fake.answers["searchDatasets"] = {"datasets": [GOOD], "total": 1}
    fake.answers["similarDatasets"] = {"datasets": []}
    fake.answers["getLensPath"] = answers.paths()
    client = AtmosphereClient()
    monkeypatch.setenv("ATDATA_APPVIEW", fake.url)
    for index in (
        AtmosphereIndex(client, appview=fake.url),
        AtmosphereIndex(client, appview=AppView(fake.url)),
        AtmosphereIndex(client),
    ):
        (hit,) = index.search_datasets("digits", licenses=["MIT"])
        assert hit.client is client
        assert index.similar(URI) == ()
        assert len(index.find_lens_path(Digit, Labelled, k=1)) == 0
    assert "appview=AppView(" in repr(index)


# --- Changes


@contextmanager
def streaming(*frames: bytes | str) -> Iterator[tuple[str, list[str]]]:
    """A server that sends these frames to whoever comes, and closes."""
    asked: list[str] = []

    def send(connection: Any) -> None:
        asked.append(connection.request.path)
        for frame in frames:
            connection.send(frame)

    with serve_stream(send, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def frame(type_: str | None, **body: Any) -> bytes:
    head: dict[str, Any] = {"op": -1} if type_ is None else {"op": 1, "t": type_}
    return cbrrr.encode_dag_cbor(head) + cbrrr.encode_dag_cbor(body, atjson_mode=True)


ABOUT = {"time": TIME, "did": ALICE, "uri": URI, "collection": DATASET, "rkey": "x", "kind": "dataset"}


def test_changes_come_in_order_until_the_connection_ends() -> None:
    """Each as what it is; the error at the end says with which cursor to go on."""
    record = {"$type": DATASET, "link": {"$link": generate_cid({})}}
    created = {**ABOUT, "action": "create", "cid": "bafy", "record": record, "verified": True}
    frames = (
        frame("#info", name="OutdatedCursor", message="gone"),
        frame("#record", seq=5, **created),
        frame("#news", anything=True),
        frame("#record", seq=7, **ABOUT, action="delete"),
        frame("#account", seq=8, time=TIME, did=ALICE, active=False, status="deleted"),
    )
    seen: list[Any] = []
    with streaming(*frames) as (url, asked):
        with pytest.raises(NetworkError, match=r"the connection was closed; go on with changes\(cursor=8\)"):
            seen.extend(AppView(url).changes(cursor=3))
    assert asked == [f"/xrpc/{PREFIX}subscribeChanges?cursor=3"]
    assert seen[0] == StreamInfo("OutdatedCursor", "gone")
    created_change, deleted, account = seen[1:]
    assert isinstance(created_change, RecordChange)
    assert (created_change.seq, created_change.action, created_change.record) == (5, "create", record)
    assert isinstance(deleted, RecordChange)
    assert (deleted.seq, deleted.action, deleted.record, deleted.verified) == (7, "delete", None, False)
    assert account == AccountChange(8, datetime(2026, 1, 2, tzinfo=UTC), ALICE, False, "deleted")


WRONG_FRAMES = {
    "text": ("hello", "expected a binary frame"),
    "no CBOR": (b"\xff\xff", "a frame cannot be read"),
    "one object": (cbrrr.encode_dag_cbor({"op": 1}), "a frame cannot be read"),
    "three objects": (frame("#info", name="x") + cbrrr.encode_dag_cbor({}), "a frame cannot be read"),
    "no object": (cbrrr.encode_dag_cbor([]) + cbrrr.encode_dag_cbor({}), "expected an object, found an array"),
    "no number": (frame("#record", **{**ABOUT, "seq": "x"}), "seq: expected a number, found a string"),
    "an error": (frame(None, error="FutureCursor", message="the latest is 3"), "FutureCursor: the latest is 3"),
}


@pytest.mark.parametrize(("sent", "problem"), WRONG_FRAMES.values(), ids=WRONG_FRAMES)
def test_frames_that_are_none(sent: bytes | str, problem: str) -> None:
    """Each is an error that says what is wrong."""
    with streaming(sent) as (url, _), pytest.raises(NetworkError, match=problem):
        list(AppView(url).changes())


def test_nobody_to_subscribe_to() -> None:
    """A server that is not there is a NetworkError, which does not advise to go on: nothing was lost."""
    with pytest.raises(NetworkError, match=r"subscribeChanges: .* check the address, and that an AppView is up there$"):
        list(AppView("http://127.0.0.1:9").changes(cursor=0))


HTTP_ANSWERS: dict[str, tuple[Any, type[Exception], str]] = {
    "a wrong parameter": (refusal(400, "InvalidRequest", "cursor: no"), NetworkError, "400 InvalidRequest cursor: no$"),
    "too many": (refusal(429, "RateLimitExceeded", "ten"), RateLimitError, "too many requests; try again in a minute$"),
    "another server": (Reply(b"<html>", 404), NetworkError, "there is no AppView at this address"),
    "no WebSocket": (Reply(b"{}"), NetworkError, "answers, but with no WebSocket; check that it is an AppView$"),
    "elsewhere": (Reply(b"", 302, headers={"Location": "http://127.0.0.1:9"}), NetworkError, "answers with a redirect"),
    "no HTTP": (Reply(b"", 99), NetworkError, "check the address, and that an AppView is up there$"),
}


@pytest.mark.parametrize(("answer", "kind", "problem"), HTTP_ANSWERS.values(), ids=HTTP_ANSWERS)
def test_subscriptions_that_are_refused(
    fake: Network, appview: AppView, answer: Any, kind: type[Exception], problem: str
) -> None:
    """They fail as questions do: asking the same again would end the same way."""
    fake.answers["subscribeChanges"] = answer
    with pytest.raises(kind, match=problem):
        list(appview.changes(cursor=3))


def test_what_is_no_cursor_is_named(fake: Network, appview: AppView) -> None:
    """Before anybody is asked."""
    with pytest.raises(ArgumentError, match="cursor is the seq of a change, a whole number, not 'abc'"):
        list(appview.changes(cursor="abc"))  # type: ignore[arg-type]
    assert fake.asked == []


def test_a_frame_that_is_too_long_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come again, after the same cursor."""
    monkeypatch.setattr(appview_module, "_MAX_FRAME", 10)
    with streaming(frame("#account", seq=8, time=TIME, did=ALICE, active=True)) as (url, _):
        with pytest.raises(NetworkError, match=r"subscribeChanges: .*too big.*; it may be newer than this library$"):
            list(AppView(url).changes(cursor=3))
