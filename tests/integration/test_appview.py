"""What the AppView answers over XRPC, from a real Postgres and the embedded search engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from holdings import ALICE, BOB, Asker, Holdings, cid, dataset, label, lens, schema, serving

from atdata import __version__
from atdata.nsid import DATASET, LABEL, LENS, PREFIX, SAMPLE_SCHEMA
from atdata_appview.settings import AppViewSettings
from atdata_backend.search import cursors
from atdata_backend.search.base import Query
from atdata_backend.search.tantivy import TantivyEngine


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test")
    held.account(BOB)
    yield held
    engine.close()


@pytest.fixture
async def ask(holdings: Holdings, tmp_path: Path) -> AsyncIterator[Asker]:
    settings = AppViewSettings(
        database_url=holdings.database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0
    )
    async with serving(settings) as asker:
        yield asker


def names(answer: dict[str, Any], key: str = "datasets") -> list[str]:
    return [view["record"]["name"] for view in answer[key]]


async def pages(ask: Asker, method: str, key: str, **params: Any) -> list[dict[str, Any]]:
    """Every answer of a method, from the first page to the last."""
    answers = [await ask(method, **params)]
    while "cursor" in answers[-1]:
        answers.append(await ask(method, **params, cursor=answers[-1]["cursor"]))
        assert len(answers) < 100, "the pages do not end"
    return answers


# --- Views


async def test_a_view_embeds_the_record_verbatim(holdings: Holdings, ask: Asker) -> None:
    """Whatever the record holds comes back, also members that nobody knows, beside what we know of it."""
    record = dataset(metadata={"$bytes": "gaFhAQ"}, unheardOf={"deep": [1, {"a": None}]})
    uri = holdings.add(ALICE, DATASET, "one", record)
    (view,) = (await ask("listDatasets"))["datasets"]
    assert view.pop("indexedAt").endswith("Z")
    assert view == {
        "uri": uri,
        "cid": cid(record),
        "publisher": {"did": ALICE, "handle": "alice.test"},
        "record": record,
        "verified": True,
    }


async def test_a_handle_that_is_not_confirmed_is_invalid(holdings: Holdings, ask: Asker) -> None:
    """The protocol's name for that is handle.invalid."""
    holdings.add(BOB, DATASET, "one", dataset(), verified=False)
    (view,) = (await ask("listDatasets"))["datasets"]
    assert view["publisher"] == {"did": BOB, "handle": "handle.invalid"}
    assert view["verified"] is False


ODD: list[Any] = [
    {"$type": DATASET, "name": 7, "tags": "none", "storage": {"$type": "x"}},
    {"$type": DATASET, "name": "", "schemaRef": "javascript:alert(1)", "size": {"samples": -1}},
    {"$type": DATASET, "deep": {"a": [[[[[{}]]]]]}, "createdAt": "yesterday"},
]


@pytest.mark.parametrize("record", ODD)
async def test_an_odd_record_is_listed_and_flagged(record: Any, holdings: Holdings, ask: Asker) -> None:
    """One malformed record spoils no page: it is there, as it is, with what is wrong with it."""
    holdings.add(ALICE, DATASET, "good", dataset("Good"))
    uri = holdings.add(ALICE, DATASET, "odd", record)
    for method in ("listDatasets", "searchDatasets"):
        views = {view["uri"]: view for view in (await ask(method))["datasets"]}
        assert len(views) == 2
        assert views[uri]["record"] == record
        assert views[uri]["problems"]
        assert "problems" not in views[f"at://{ALICE}/{DATASET}/good"]


async def test_nothing_of_an_account_that_is_not_active_is_shown(holdings: Holdings, ask: Asker) -> None:
    """No method and no page shows a record, a handle or a count of it, though the search engine still has it."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Secret"))
    uri = holdings.add(ALICE, DATASET, "one", dataset("Secret", digit, tags=["t"]))
    arrow = holdings.add(ALICE, LENS, "arrow", lens("Secret", digit, digit))
    holdings.add(ALICE, LABEL, "v1", label("Secret", uri))
    for status in ("deactivated", "suspended", "takendown", "deleted"):
        holdings.account(ALICE, "alice.test", status)
        assert (await ask("searchDatasets", q="secret"))["datasets"] == []
        assert (await ask("searchDatasets", q="secret"))["total"] == 0
        assert (await ask("listDatasets"))["datasets"] == []
        assert (await ask("listDatasets", tag="t"))["datasets"] == []
        assert (await ask("listSchemas"))["schemas"] == []
        assert (await ask("listLenses"))["lenses"] == []
        assert (await ask("getDatasets", uris=[uri]))["notFound"] == [uri]
        assert (await ask("getSchemas", uris=[digit]))["notFound"] == [digit]
        assert (await ask("getLenses", uris=[arrow]))["notFound"] == [arrow]
        assert (await ask.get("getRecord", uri=uri)).status_code == 404
        assert (await ask.get("listDatasets", publisher="alice.test")).status_code == 400
        for path in (f"/dataset/{ALICE}/one", f"/schema/{ALICE}/digit"):
            assert (await ask.client.get(path)).status_code == 404
    holdings.account(ALICE, "alice.test")
    assert names(await ask("searchDatasets", q="secret")) == ["Secret"]


# --- Searching


async def test_a_search_finds_and_marks_words(holdings: Holdings, ask: Asker) -> None:
    """The words of the query are marked in name and description, which are escaped."""
    holdings.add(ALICE, DATASET, "owls", dataset("Tawny <owls>", description="Calls of owls & bats."))
    holdings.add(ALICE, DATASET, "cats", dataset("Cats"))
    answer = await ask("searchDatasets", q="owls")
    assert answer["total"] == 1
    (view,) = answer["datasets"]
    assert view["highlights"] == {
        "name": "Tawny &lt;<mark>owls</mark>&gt;",
        "description": "Calls of <mark>owls</mark> &amp; bats.",
    }


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, {"a", "b", "c"}),
        ({"tags": "x"}, {"a", "b"}),
        ({"tags": ["x", "y"]}, {"b"}),
        ({"tags": "X"}, {"a", "b"}),
        ({"licenses": "cc0-1.0"}, {"b"}),
        ({"licenses": ["MIT", "CC0-1.0"]}, {"a", "b"}),
        ({"schemas": f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"}, {"a", "b"}),
        ({"schemas": f"at://Alice.Test/{SAMPLE_SCHEMA}/digit"}, {"a", "b"}),
        ({"publishers": BOB}, {"c"}),
        ({"publishers": "ALICE.test"}, {"a", "b"}),
        ({"publishers": "@alice.test"}, {"a", "b"}),
        ({"publishers": ["@alice.test", BOB]}, {"a", "b", "c"}),
        ({"publishers": ["alice.test", BOB]}, {"a", "b", "c"}),
        ({"publishers": "did:plc:nobody"}, set()),
        ({"storage": "external"}, {"a", "b", "c"}),
        ({"storage": "blobs"}, set()),
        ({"fields": ["image:ndarray:uint8", "label"]}, {"a", "b"}),
        ({"minSamples": 10}, {"b"}),
        ({"maxSamples": 10}, {"a"}),
        ({"createdAfter": "2026-01-02T00:00:00Z"}, {"b", "c"}),
        ({"createdBefore": "2026-01-01T23:00:00-01:00"}, {"a", "b"}),
        ({"q": "a", "tags": "y"}, set()),
    ],
)
async def test_filters(params: dict[str, Any], found: set[str], holdings: Holdings, ask: Asker) -> None:
    """Each filter narrows the search as its description says; accounts are DIDs or handles."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    other = f"at://{ALICE}/{SAMPLE_SCHEMA}/other"
    holdings.add(ALICE, DATASET, "a", dataset("a", digit, tags=["x"], license="MIT", size={"samples": 5}))
    holdings.add(ALICE, DATASET, "b", dataset("b", digit, 1, tags=["x", "y"], license="CC0-1.0", size={"samples": 50}))
    holdings.add(BOB, DATASET, "c", dataset("c", other, 2))
    assert set(names(await ask("searchDatasets", **params))) == found


async def test_facets_are_counted_when_asked_for(holdings: Holdings, ask: Asker) -> None:
    """Only the facets asked for come back, the most frequent values first; a facet's own filter does not narrow it."""
    holdings.add(ALICE, DATASET, "a", dataset("a", tags=["x", "y"], license="MIT"))
    holdings.add(ALICE, DATASET, "b", dataset("b", tags=["y"], license="CC0-1.0"))
    assert "facets" not in await ask("searchDatasets")
    facets = (await ask("searchDatasets", facets=["tags", "license", "publisher"], licenses="MIT"))["facets"]
    assert facets == {
        "tags": [{"value": "x", "count": 1}, {"value": "y", "count": 1}],
        "license": [{"value": "CC0-1.0", "count": 1}, {"value": "MIT", "count": 1}],
        "publisher": [{"value": ALICE, "count": 1}],
    }


@pytest.mark.parametrize("sort", ["relevance", "newest", "oldest", "samples", "name"])
async def test_paging_through_a_search_returns_each_once(sort: str, holdings: Holdings, ask: Asker) -> None:
    """Every order has cursors, and no cursor on the last page."""
    rows = [(f"r{i}", dataset(f"Thing {i:02}", day=i % 3, size={"samples": i % 4})) for i in range(7)]
    holdings.add_all(ALICE, DATASET, rows)
    answers = await pages(ask, "searchDatasets", "datasets", q="thing", sort=sort, limit=3)
    assert [len(answer["datasets"]) for answer in answers] == [3, 3, 1]
    assert sorted(name for answer in answers for name in names(answer)) == [f"Thing {i:02}" for i in range(7)]


async def test_hits_whose_record_is_gone_make_room_for_others(holdings: Holdings, ask: Asker) -> None:
    """A page is filled up from what comes after it, and the total does not count what is not shown."""
    uris = holdings.add_all(ALICE, DATASET, [(f"r{i}", dataset(f"Thing {i}", day=-i)) for i in range(8)])
    for uri in uris[:2]:
        holdings.delete(uri)
    answer = await ask("searchDatasets", sort="newest", limit=3)
    assert names(answer) == ["Thing 2", "Thing 3", "Thing 4"]
    assert answer["total"] == 6
    rest = await ask("searchDatasets", sort="newest", limit=3, cursor=answer["cursor"])
    assert names(rest) == ["Thing 5", "Thing 6", "Thing 7"]
    assert "cursor" not in rest


# --- Getting and listing

GETS = [("getDatasets", "datasets"), ("getSchemas", "schemas"), ("getLenses", "lenses")]


def one_of_each(holdings: Holdings, rkey: str) -> dict[str, str]:
    """A schema, a dataset and a lens; their URIs by the key under which methods return them."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, rkey, schema(rkey))
    return {
        "schemas": digit,
        "datasets": holdings.add(ALICE, DATASET, rkey, dataset(rkey, digit)),
        "lenses": holdings.add(ALICE, LENS, rkey, lens(rkey, digit, digit)),
    }


@pytest.mark.parametrize(("method", "key"), GETS)
async def test_get_keeps_the_order_and_says_what_is_missing(
    method: str, key: str, holdings: Holdings, ask: Asker
) -> None:
    """Each record once, where it was first asked for; URIs by handle are found; other kinds are not."""
    first, second = one_of_each(holdings, "first"), one_of_each(holdings, "second")
    by_handle = first[key].replace(ALICE, "alice.test")
    wrong_kind = first["schemas" if key != "schemas" else "datasets"]
    missing = first[key] + "x"
    nobody = first[key].replace(ALICE, "nobody.test")
    asked = [second[key], missing, by_handle, first[key], wrong_kind, nobody]
    answer = await ask(method, uris=asked)
    assert [view["uri"] for view in answer[key]] == [second[key], first[key]]
    assert answer["notFound"] == [missing, wrong_kind, nobody]


@pytest.mark.parametrize(
    ("method", "key"), [("listDatasets", "datasets"), ("listSchemas", "schemas"), ("listLenses", "lenses")]
)
async def test_listings_page_from_the_latest(method: str, key: str, holdings: Holdings, ask: Asker) -> None:
    """What comes or goes between two pages moves nothing else."""
    uris = [one_of_each(holdings, f"r{i}")[key] for i in range(5)]
    answer = await ask(method, limit=2)
    assert [view["uri"] for view in answer[key]] == [uris[4], uris[3]]
    one_of_each(holdings, "late")
    holdings.delete(uris[4])
    answer = await ask(method, limit=1, cursor=answer["cursor"])
    assert [view["uri"] for view in answer[key]] == [uris[2]]
    # Also when the very record at which the page ended is gone.
    holdings.delete(uris[2])
    answer = await ask(method, limit=2, cursor=answer["cursor"])
    assert [view["uri"] for view in answer[key]] == [uris[1], uris[0]]
    assert "cursor" not in answer


@pytest.mark.parametrize(
    ("method", "key", "params", "found"),
    [
        ("listDatasets", "datasets", {"publisher": "alice.test"}, ["two", "one"]),
        ("listDatasets", "datasets", {"publisher": "@alice.test"}, ["two", "one"]),
        ("listDatasets", "datasets", {"publisher": BOB}, ["three"]),
        ("listDatasets", "datasets", {"schema": f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"}, ["one"]),
        ("listDatasets", "datasets", {"schema": f"at://alice.test/{SAMPLE_SCHEMA}/digit"}, ["one"]),
        ("listDatasets", "datasets", {"tag": "x"}, ["two"]),
        ("listDatasets", "datasets", {"tag": "x", "publisher": BOB}, []),
        ("listSchemas", "schemas", {"name": "Digit"}, ["Digit"]),
        ("listSchemas", "schemas", {"name": "digit"}, []),
        ("listSchemas", "schemas", {"publisher": BOB}, []),
        ("listLenses", "lenses", {"source": f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"}, ["there"]),
        ("listLenses", "lenses", {"target": f"at://alice.test/{SAMPLE_SCHEMA}/digit"}, ["back"]),
        ("listLenses", "lenses", {"publisher": BOB}, ["back"]),
    ],
)
async def test_listings_filter(
    method: str, key: str, params: dict[str, Any], found: list[str], holdings: Holdings, ask: Asker
) -> None:
    """Each filter narrows the listing as its description says."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
    picture = holdings.add(ALICE, SAMPLE_SCHEMA, "picture", schema("Picture"))
    holdings.add(ALICE, DATASET, "one", dataset("one", digit, tags=["xy"]))
    holdings.add(ALICE, DATASET, "two", dataset("two", picture, tags=["y", "x"]))
    holdings.add(BOB, DATASET, "three", dataset("three", picture, tags="x"))
    holdings.add(ALICE, LENS, "there", lens("there", digit, picture))
    holdings.add(BOB, LENS, "back", lens("back", picture, digit))
    assert names(await ask(method, **params), key) == found


@pytest.mark.parametrize(
    ("collection", "record", "kind"),
    [
        (DATASET, dataset(), "dataset"),
        (SAMPLE_SCHEMA, {"$type": SAMPLE_SCHEMA, "name": []}, "schema"),
        (LABEL, label("mnist", f"at://{ALICE}/{DATASET}/x"), "label"),
        (PREFIX + "somethingNew", {"$type": PREFIX + "somethingNew", "what": "ever"}, None),
        ("science.alt.dataset.entry", {"$type": "science.alt.dataset.entry", "name": "x"}, "dataset"),
    ],
)
async def test_any_record_can_be_got(
    collection: str, record: Any, kind: str | None, holdings: Holdings, ask: Asker
) -> None:
    """A record of any collection, known or not, well-formed or not, by DID or handle."""
    uri = holdings.add(ALICE, collection, "self", record)
    for asked in (uri, uri.replace(ALICE, "alice.test")):
        view = await ask("getRecord", uri=asked)
        assert (view["uri"], view["collection"], view["record"]) == (uri, collection, record)
        assert view.get("kind") == kind


@pytest.mark.parametrize("authority", [ALICE, "alice.test", "nobody.test"])
async def test_a_record_that_is_not_held_is_not_found(authority: str, ask: Asker) -> None:
    """Status 404 and a name of its own."""
    response = await ask.get("getRecord", uri=f"at://{authority}/{DATASET}/nothing")
    assert response.status_code == 404
    assert response.json()["error"] == "RecordNotFound"


# --- Status


async def test_status_counts_what_is_held(holdings: Holdings, ask: Asker) -> None:
    """Records by kind, repositories, relays, the indexer, search, backlog and quarantine."""
    one_of_each(holdings, "one")
    holdings.add(ALICE, PREFIX + "somethingNew", "self", {})
    holdings.account("did:plc:gone", None, "deleted")
    holdings.add("did:plc:gone", DATASET, "hidden", dataset())
    holdings.execute("INSERT INTO cursors (host, seq) VALUES ('relay.test', 31500000000)")
    holdings.execute("INSERT INTO search_outbox (uri) VALUES ('at://x'), ('at://y')")
    holdings.execute("INSERT INTO quarantine_counts VALUES ('bad frame', 3)")
    holdings.execute("""INSERT INTO indexer_status (status) VALUES ('{"connected": true, "lagSeconds": 0.75}')""")
    status = await ask("getStatus")
    assert status["version"] == __version__
    assert status["records"] == {"dataset": 1, "schema": 1, "lens": 1, "label": 0, "unknown": 1}
    assert status["repositories"] == {"active": 2, "hidden": 1, "desynchronized": 0}
    assert [(relay["host"], relay["seq"]) for relay in status["relays"]] == [("relay.test", 31500000000)]
    # Lexicons have no fractions.
    assert status["indexer"]["status"] == {"connected": True, "lagSeconds": 1}
    assert (status["searchDocuments"], status["backlog"]) == (2, 2)
    assert status["quarantine"] == [{"reason": "bad frame", "count": 3}]


async def test_status_of_an_empty_instance(ask: Asker) -> None:
    """Before anything is there, everything is zero and nothing fails."""
    status = await ask("getStatus")
    assert set(status["records"].values()) == {0}
    assert "indexer" not in status


# --- Large records


BIG = 900_000


async def test_a_listing_ends_a_page_early_when_its_records_are_large(holdings: Holdings, ask: Asker) -> None:
    """An answer holds some megabytes of records; its cursor leads to the others, each once, in their order."""
    rows = [(f"b{n}", dataset(f"big {n}", description="z" * BIG)) for n in range(10)]
    holdings.add_all(ALICE, DATASET, rows)
    answers = await pages(ask, "listDatasets", "datasets", limit=100)
    assert [name for answer in answers for name in names(answer)] == [f"big {n}" for n in reversed(range(10))]
    assert [len(answer["datasets"]) for answer in answers] == [5, 5]


async def test_a_search_ends_a_page_early_when_its_records_are_large(holdings: Holdings, ask: Asker) -> None:
    """So does a search, in any order, also where hits were deleted a moment ago."""
    rows = [(f"b{n:02}", dataset(f"big {n:02}", description="z" * BIG)) for n in range(12)]
    uris = holdings.add_all(ALICE, DATASET, rows)
    for n in (0, 4, 7):
        holdings.delete(uris[n])
    held = [f"big {n:02}" for n in range(12) if n not in (0, 4, 7)]
    for params in ({"sort": "name"}, {"q": "big"}):
        answers = await pages(ask, "searchDatasets", "datasets", limit=100, facets=["tags"], **params)
        assert sorted(name for answer in answers for name in names(answer)) == held
        assert all(len(answer["datasets"]) <= 5 for answer in answers)
        assert "facets" in answers[0]


async def test_records_too_large_for_one_answer_are_refused(holdings: Holdings, ask: Asker) -> None:
    """A list of URIs has no cursor: the error says how many to ask for, and so many are answered."""
    rows = [(f"b{n}", dataset(f"big {n}", description="z" * BIG)) for n in range(8)]
    uris = holdings.add_all(ALICE, DATASET, rows)
    refused = await ask.get("getDatasets", uris=uris)
    assert refused.status_code == 400
    assert refused.json()["message"] == "uris: these records are more than 4 MB together; ask for 5 at a time"
    assert names(await ask("getDatasets", uris=uris[:5])) == [f"big {n}" for n in range(5)]


async def test_a_forged_cursor_is_refused(holdings: Holdings, ask: Asker) -> None:
    """A cursor of half a character, which JSON can express and no engine takes, is the asker's mistake."""
    holdings.add(ALICE, DATASET, "one", dataset())
    cursor = cursors.encode("tantivy", Query(sort="name"), ["\ud800"])
    refused = await ask.get("searchDatasets", sort="name", cursor=cursor)
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")


async def test_a_damaged_search_index_is_not_our_askers_fault(holdings: Holdings, ask: Asker, tmp_path: Path) -> None:
    """Searches say that they are not available; all else goes on."""
    holdings.add(ALICE, DATASET, "one", dataset())
    next((tmp_path / "search").glob("index-*/meta.json")).write_text("{broken")
    for path in (f"/xrpc/{PREFIX}searchDatasets", "/xrpc/_health", "/"):
        assert (await ask.client.get(path)).status_code == 503
    assert names(await ask("listDatasets")) == ["Digits"]
