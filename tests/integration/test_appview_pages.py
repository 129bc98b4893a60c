"""The AppView's web pages: what they show, what their links do, and what a hostile record cannot do to them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest
from holdings import ALICE, BOB, Asker, Holdings, dataset, label, lens, schema, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from atdata import nsid
from atdata.atmosphere import records
from atdata.nsid import DATASET, LABEL, LENS, SAMPLE_SCHEMA, STORAGE_BLOBS, STORAGE_EXTERNAL, STORAGE_HTTP, STORAGE_S3
from atdata_appview.pages import page_path
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine

PDS = "https://pds.example.org"


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test", pds=PDS)
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


@dataclass
class Page(HTMLParser):
    """A page taken apart: its text, its elements, and the targets of its links by their text."""

    html: str
    text: str = ""
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "a":
            self._open = [dict(attrs).get("href") or "", ""]

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._open:
            href, text = self._open
            self.links[" ".join(text.split())] = href
            self._open = []

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self._open[1] += data


async def page(ask: Asker, path: str) -> Page:
    return Page(await ask.page(path))


def assert_harmless(shown: Page) -> None:
    """Nothing on the page runs, nothing comes from elsewhere, and links go where links may go."""
    for tag, attributes in shown.elements:
        assert tag not in {"script", "style", "iframe", "object", "embed", "base"}
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src", "action"):
            target = attributes.get(name)
            if target is None:
                continue
            assert target.startswith(("/", "#", "https://", "http://")), target
            assert not target.startswith("//"), target
            if not target.startswith(("/", "#")):
                assert tag == "a"
                assert target == "https://atproto.com" or attributes.get("rel") == "nofollow noopener"


# --- Searching


def indexer_says(holdings: Holdings, ago: str = "1 second", **status: Any) -> None:
    """What the indexer said of itself so long ago."""
    said = {"relay": "relay.test", "connected": True, "trouble": None, "desynced": 0, **status}
    holdings.execute(
        "INSERT INTO indexer_status (status, updated_at) VALUES (%s, now() - %s::interval)"
        " ON CONFLICT (only_row) DO UPDATE SET status = excluded.status, updated_at = excluded.updated_at",
        [Jsonb(said), ago],
    )


async def test_before_anything_is_published(holdings: Holdings, ask: Asker) -> None:
    """The empty page shows how to publish, and says so only when the index is in step with the network."""
    indexer_says(holdings)
    shown = await page(ask, "/")
    assert "Nothing has been published yet" in shown.text
    assert "The indexer reads relay.test" in shown.text
    assert "insert_dataset" in shown.text
    assert_harmless(shown)


async def test_before_an_indexer_has_run(ask: Asker) -> None:
    """An empty database says nothing of the network."""
    shown = await page(ask, "/")
    assert "No indexer has run yet" in shown.text
    assert "atdata indexer run" in shown.text
    assert "Nothing has been published" not in shown.text


TROUBLE = "cannot read relay.test: <b>[Errno 111]</b> Connect call failed"


@pytest.mark.parametrize(
    ("said", "sql", "texts"),
    [
        (
            {"connected": False, "trouble": TROUBLE},
            "",
            ("The relay was not reached yet", "to read relay.test", TROUBLE),
        ),
        (
            {"connected": False, "trouble": TROUBLE},
            "INSERT INTO cursors (host, seq) VALUES ('relay.test', 7)",
            ("The relay does not answer", "has read relay.test before", TROUBLE),
        ),
        (
            {"connected": False, "trouble": None},
            "INSERT INTO cursors (host, seq) VALUES ('another.test', 7)",
            ("The relay was not reached yet",),
        ),
        ({"desynced": 1_234}, "", ("Catching up", "1,234 repositories are still to be fetched")),
        ({"desynced": 1}, "", ("Catching up", "1 repository is still to be fetched")),
        ({"ago": "5 minutes"}, "", ("The indexer is not running", "It was last heard of on")),
        ({}, "INSERT INTO search_outbox (uri) VALUES ('at://x')", ("Almost there",)),
        (
            {"trouble": "Meilisearch at http://x does not answer"},
            "INSERT INTO records (did, collection, rkey, kind, cid, rev, record) VALUES"
            f" ('{ALICE}', '{DATASET}', 'x', 'dataset', 'b', '3', '{{}}')",
            ("Almost there", "1 dataset arrived and cannot be searched yet", "Meilisearch at http://x does not answer"),
        ),
    ],
)
async def test_why_the_page_is_empty(
    said: dict[str, Any], sql: str, texts: tuple[str, ...], holdings: Holdings, ask: Asker
) -> None:
    """While datasets may be on their way, the page says what it waits for, and not that there are none."""
    indexer_says(holdings, **said)
    if sql:
        holdings.execute(sql)
    shown = await page(ask, "/")
    for text in texts:
        assert text in shown.text
    assert "Nothing has been published" not in shown.text
    assert "insert_dataset" not in shown.text
    assert_harmless(shown)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"lagSeconds": 0.4}, "up to date"),
        ({"lagSeconds": 600}, "10 minutes behind"),
        ({"lagSeconds": 0.4, "connected": False}, "relay not reached yet"),
        ({"lagSeconds": 0.4, "ago": "1 day"}, "the indexer is not running"),
        ({"lagSeconds": 0.4, "desynced": 2}, "up to date · 2 repositories still to fetch"),
    ],
)
async def test_every_search_says_how_complete_it_is(
    said: dict[str, Any], text: str, holdings: Holdings, ask: Asker
) -> None:
    """At the foot of the page: an index whose indexer or relay is gone is not up to date."""
    holdings.add(ALICE, DATASET, "one", dataset())
    indexer_says(holdings, **said)
    shown = await page(ask, "/?q=digits")
    assert f"1 dataset · 2 repositories · {text}" in shown.text


async def test_when_nothing_matches(holdings: Holdings, ask: Asker) -> None:
    """There is a way out, and an example of how to publish."""
    holdings.add(ALICE, DATASET, "one", dataset())
    shown = await page(ask, "/?q=zebra")
    assert "No dataset matches" in shown.text
    assert shown.links["see all datasets"] == "/"
    assert "insert_dataset" in shown.text


async def test_a_result_in_full(holdings: Holdings, ask: Asker) -> None:
    """Name, publisher, schema, date, description, size, license and tags, with what matched marked."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
    size = {"samples": 60000, "bytes": 11_594_722}
    record = dataset("Digits", digit, tags=["vision"], license="CC0-1.0", size=size, description="Written by hand.")
    holdings.add(ALICE, DATASET, "one", record)
    shown = await page(ask, "/?q=digits")
    for text in ("1 dataset", "@alice.test", "1 Jan 2026", "60,000 samples", "11.6 MB", "CC0-1.0", "Written by hand."):
        assert text in shown.text
    assert shown.links["Digits"] == f"/dataset/{ALICE}/one"
    assert shown.links["Digit"] == f"/schema/{ALICE}/digit"
    assert shown.links["vision"] == "/?tags=vision"
    assert "<mark>Digits</mark>" in shown.html
    assert_harmless(shown)


async def test_facets_are_links_that_filter(holdings: Holdings, ask: Asker) -> None:
    """Each value leads to the results that have it and keeps what was asked; chosen again, it goes away."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
    holdings.add(ALICE, DATASET, "one", dataset("Thing one", digit, tags=["x & y"], license="MIT"))
    holdings.add(BOB, DATASET, "two", dataset("Thing two"))
    first = await page(ask, "/?q=thing&sort=name")
    assert "2 datasets" in first.text
    for chosen in ("x & y 1", "MIT 1", "@alice.test 1"):
        filtered = await page(ask, first.links[chosen])
        assert "1 dataset" in filtered.text
        assert "q=thing" in first.links[chosen]
        assert "sort=name" in first.links[chosen]
        undo = filtered.links[chosen.removesuffix("1") + "×"]
        assert "2 datasets" in (await page(ask, undo)).text
    both = await page(ask, (await page(ask, first.links["MIT 1"])).links["@alice.test 1"])
    assert "1 dataset" in both.text
    assert both.links["Clear all"] == "/?q=thing"
    assert "1 dataset" in (await page(ask, both.links["license MIT ×remove"])).text
    assert both.links["license MIT ×remove"] == f"/?q=thing&publishers=did%3Aplc%3A{'a' * 24}&sort=name"


async def test_a_publisher_may_be_asked_for_by_handle(holdings: Holdings, ask: Asker) -> None:
    """The filter shows up as chosen, although facets know DIDs only; the @ that the page shows may be typed, too."""
    holdings.add(ALICE, DATASET, "one", dataset())
    for handle in ("alice.test", "@alice.test", "%40Alice.test"):
        shown = await page(ask, f"/?publishers={handle}")
        assert shown.links["@alice.test ×"] == "/"


@pytest.mark.parametrize("spelled", ["cc0-1.0", "CC0-1.0"])
async def test_a_filter_is_on_however_it_is_spelled(spelled: str, holdings: Holdings, ask: Asker) -> None:
    """The facet shows the published spelling, marked as chosen once, and takes away what was asked for."""
    holdings.add(ALICE, DATASET, "one", dataset("One", license="CC0-1.0", tags=["Speech"]))
    holdings.add(ALICE, DATASET, "two", dataset("Two", license="MIT", tags=["speech"]))
    shown = await page(ask, f"/?licenses={spelled}&tags=SPEECH")
    assert "1 dataset" in shown.text
    assert shown.links["CC0-1.0 ×"] == "/?tags=SPEECH"
    assert shown.links[f"license {spelled} ×remove"] == "/?tags=SPEECH"
    assert "cc0-1.0 0" not in shown.links
    both = await page(ask, "/?licenses=mit&licenses=MIT")
    assert both.links["MIT ×"] == "/"


async def test_next_page_leads_to_the_end(holdings: Holdings, ask: Asker) -> None:
    """Following it shows everything once; from a later page a link leads back."""
    holdings.add_all(ALICE, DATASET, [(f"r{i}", dataset(f"Thing {i:02}", day=i)) for i in range(60)])
    path: str | None = "/?q=thing"
    seen: list[str] = []
    while path:
        shown = await page(ask, path)
        seen += [
            text for text, href in shown.links.items() if text.startswith("Thing ") and href.startswith("/dataset/")
        ]
        path = shown.links.get("Next page")
    assert sorted(seen) == [f"Thing {i:02}" for i in range(60)]
    assert shown.links["back to the first page"] == "/?q=thing"


@pytest.mark.parametrize(
    "question", ["limit=0", "sort=x", "publishers=nobody.test", "cursor=x", "createdAfter=x", "q=%00"]
)
async def test_a_wrong_question_has_a_page_of_its_own(question: str, ask: Asker) -> None:
    """Status 400, the reason, and a way back."""
    response = await ask.client.get(f"/?{question}")
    assert response.status_code == 400
    shown = Page(response.text)
    assert question.partition("=")[0] in shown.text.lower() or "createdAfter".lower() in shown.text.lower()
    assert shown.links["Search datasets"] == "/"


async def test_fields_that_were_left_empty_do_not_count(holdings: Holdings, ask: Asker) -> None:
    """A form sends them along."""
    holdings.add(ALICE, DATASET, "one", dataset())
    assert "1 dataset" in (await page(ask, "/?q=&tags=&sort=relevance&cursor=")).text


# --- One dataset


async def test_a_dataset_by_its_name(holdings: Holdings, ask: Asker) -> None:
    """As people write it everywhere else; who mistypes it is told what there is."""
    uri = holdings.add(ALICE, DATASET, "x", dataset("digits"))
    answer = await ask.client.get("/dataset/@alice.test/digits")
    assert (answer.status_code, answer.headers["location"]) == (302, page_path(uri))
    wrong = await ask.client.get("/dataset/@alice.test/digts")
    assert wrong.status_code == 404
    assert "did you mean digits?" in Page(wrong.text).text


async def test_datasets_like_it(holdings: Holdings, ask: Asker) -> None:
    """A page leads on to what has most in common with it, the most first, and to nothing where nothing has."""
    uri = holdings.add(ALICE, DATASET, "x", dataset("Bird song", tags=["audio"]))
    assert "Datasets like it" not in await ask.page(page_path(uri) or "")
    holdings.add(BOB, DATASET, "z", dataset("Tax returns"))
    other = holdings.add(BOB, DATASET, "y", dataset("Bird calls", tags=["audio"]))
    page = Page(await ask.page(page_path(uri) or ""))
    assert page.links["Bird calls"] == page_path(other)
    assert page.text.index("Bird calls") < page.text.index("Tax returns")


@pytest.mark.parametrize("authority", [ALICE, "alice.test"])
async def test_a_dataset_page(authority: str, holdings: Holdings, ask: Asker) -> None:
    """What it is, how to load it, what its samples hold, where they are, and who vouches for it."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit", "1.2.0"))
    uri = holdings.add(ALICE, DATASET, "one", dataset("Digits", digit, license="MIT"))
    holdings.add(ALICE, LABEL, "v1", label("mnist", uri, version="3.1"))
    holdings.add(BOB, LABEL, "v1", label("spam", uri))
    shown = await page(ask, f"/dataset/{authority}/one")
    assert f'atdata.load_dataset( "{uri}", split="train", )' in shown.text
    for text in (
        "ndarray uint8 [28 × 28]",
        "list of str optional",
        "In grey.",
        "mnist 3.1",
        "verified",
        "version 1.2.0",
    ):
        assert text in shown.text
    assert "https://example.com/digits-{000..009}.tar" in shown.text
    assert "spam" not in shown.text
    assert shown.links["Digit"] == f"/schema/{ALICE}/digit"
    assert shown.links["MIT"] == "/?licenses=MIT"
    assert f'<link rel="canonical" href="/dataset/{ALICE}/one">' in shown.html
    assert_harmless(shown)


CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"
BLOB = {"$type": "blob", "ref": {"$link": CID}, "mimeType": "application/x-tar", "size": 1_200_000}
TAR = "https://example.com/0.tar"


@pytest.mark.parametrize(
    ("storage", "text", "href"),
    [
        ({"$type": STORAGE_EXTERNAL, "urls": [TAR]}, TAR, TAR),
        ({"$type": STORAGE_EXTERNAL, "urls": ["s3://b/0.tar"]}, "s3://b/0.tar", None),
        ({"$type": STORAGE_HTTP, "shards": [{"url": TAR}]}, TAR, TAR),
        ({"$type": STORAGE_S3, "bucket": "b", "shards": [{"key": "k"}]}, "s3://b/k", None),
        (
            {"$type": STORAGE_BLOBS, "blobs": [BLOB]},
            f"at://{ALICE}/blob/{CID}",
            f"{PDS}/xrpc/com.atproto.sync.getBlob?did=did%3Aplc%3A{'a' * 24}&cid={CID}",
        ),
        ({"$type": "ac.foundation.dataset.storageTape"}, "The record does not say where its shards are", None),
    ],
)
async def test_each_kind_of_storage(storage: Any, text: str, href: str | None, holdings: Holdings, ask: Asker) -> None:
    """Shards are listed, and linked where a browser can open them."""
    holdings.add(ALICE, DATASET, "one", dataset(storage=storage))
    shown = await page(ask, f"/dataset/{ALICE}/one")
    assert text in shown.text
    assert shown.links.get(text) == href
    assert_harmless(shown)


@pytest.mark.parametrize("storage", [None, {}, {"$type": "ac.foundation.dataset.storageTape"}, "nowhere"])
async def test_what_has_no_shards_is_not_to_be_loaded(storage: Any, holdings: Holdings, ask: Asker) -> None:
    """Code that can only fail is not offered."""
    holdings.add(ALICE, DATASET, "none", dataset("None", storage=storage))
    holdings.add(ALICE, DATASET, "empty", dataset("Empty", storage={"$type": STORAGE_EXTERNAL, "urls": []}))
    for rkey in ("none", "empty"):
        shown = await page(ask, f"/dataset/{ALICE}/{rkey}")
        assert "Load it" not in shown.text
        assert "load_dataset" not in shown.text
        assert "there is nothing to load" in shown.text


async def test_collections_of_other_generations_have_pages(holdings: Holdings, ask: Asker) -> None:
    """Their addresses name the collection, so that equal record keys do not collide."""
    for collection in (DATASET, nsid.SUCCESSOR_DATASET):
        holdings.add(ALICE, collection, "same", dataset(collection))
    for collection in (SAMPLE_SCHEMA, nsid.SCHEMA, nsid.SUCCESSOR_SCHEMA):
        holdings.add(ALICE, collection, "same", schema(collection))
    links = (await page(ask, "/")).links
    assert links[DATASET] == f"/dataset/{ALICE}/same"
    assert links[nsid.SUCCESSOR_DATASET] == f"/dataset/{ALICE}/{nsid.SUCCESSOR_DATASET}/same"
    for collection, href in links.items():
        if href.startswith("/dataset/"):
            assert f'<h1 dir="auto">{collection}</h1>' in await ask.page(href)
    assert nsid.SCHEMA in (await page(ask, f"/schema/{ALICE}/{nsid.SCHEMA}/same")).text


async def test_a_schema_page(holdings: Holdings, ask: Asker) -> None:
    """Its fields, the datasets of it, and the lenses from it and to it, with where their code is."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
    ref = {"name": "inner", "fieldType": {"$type": f"{nsid.FIELD_TYPE}#ref", "ref": digit}, "optional": False}
    picture = holdings.add(BOB, SAMPLE_SCHEMA, "picture", schema("Picture", fields=[ref]))
    holdings.add_all(ALICE, DATASET, [(f"r{i}", dataset(f"Thing {i}", digit)) for i in range(21)])
    code = {"repository": "https://example.com/lenses", "commit": "0123456789abcdef", "path": "a.py:get"}
    holdings.add(BOB, LENS, "there", lens("there", digit, picture, getterCode=code))
    holdings.add(BOB, LENS, "self", lens("self", digit, digit))
    shown = await page(ask, f"/schema/{ALICE}/digit")
    for text in ("ndarray uint8 [28 × 28]", "Thing 20", "there", "a.py:get at 0123456789ab", "Digit → Picture"):
        assert text in shown.text
    assert shown.text.count("Digit → Digit") == 1
    assert shown.links["Picture"] == f"/schema/{BOB}/picture"
    assert "21 datasets" in (await page(ask, shown.links["All datasets of this schema"])).text
    assert_harmless(shown)
    assert (await page(ask, f"/schema/{BOB}/picture")).links["Digit"] == f"/schema/{ALICE}/digit"


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        f"/dataset/{ALICE}/nothing",
        f"/schema/{ALICE}/one",
        "/dataset/nobody.test/one",
        "/dataset/x/y",
        f"/dataset/{ALICE}/not-a-collection/one",
        f"/dataset/{ALICE}/%00",
        "/static/nothing.css",
        "/static/../app.py",
        "/docs/",
    ],
)
async def test_a_page_that_is_not_there(path: str, holdings: Holdings, ask: Asker) -> None:
    """Status 404, in a friendly form, with a way on."""
    holdings.add(ALICE, DATASET, "one", dataset())
    response = await ask.client.get(path)
    assert response.status_code == 404
    assert Page(response.text).links["Search datasets"] == "/"


@pytest.mark.parametrize("name", ["", "  ", "\u200b", "\u3164 \u2800", "\u202e\u0301"])
async def test_a_name_of_which_nothing_is_to_be_seen(name: str, holdings: Holdings, ask: Asker) -> None:
    """The record key stands in for it, wherever there must be something to click on."""
    holdings.add(ALICE, SAMPLE_SCHEMA, "skey", schema(name))
    holdings.add(ALICE, DATASET, "dkey", dataset(name, f"at://{ALICE}/{SAMPLE_SCHEMA}/skey"))
    holdings.add(ALICE, LENS, "lkey", lens(name, f"at://{ALICE}/{SAMPLE_SCHEMA}/skey", ""))
    assert (await page(ask, "/")).links["dkey"] == f"/dataset/{ALICE}/dkey"
    shown = await page(ask, f"/dataset/{ALICE}/dkey")
    assert '<h1 dir="auto">dkey</h1>' in shown.html
    assert shown.links["skey"] == f"/schema/{ALICE}/skey"
    shown = await page(ask, f"/schema/{ALICE}/skey")
    assert '<h1 dir="auto">skey <' in shown.html
    assert "lkey by @alice.test" in shown.text


async def test_a_name_without_end_is_cut(holdings: Holdings, ask: Asker) -> None:
    """A heading has no more of it than a screen."""
    holdings.add(ALICE, DATASET, "one", dataset("word " * 100_000))
    for path in ("/", f"/dataset/{ALICE}/one"):
        assert 50 < (await page(ask, path)).text.partition("as it was published")[0].count("word") < 200


async def test_fields_that_are_samples_lead_to_their_schema(holdings: Holdings, ask: Asker) -> None:
    """By its name, on the pages of dataset and schema; one that is not known here is named, and leads nowhere."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
    lost = f"at://{ALICE}/{SAMPLE_SCHEMA}/lost"
    fields = [
        {"name": ref[-5:], "fieldType": {"$type": f"{nsid.FIELD_TYPE}#ref", "ref": ref}, "optional": False}
        for ref in (digit, lost)
    ]
    pair = holdings.add(ALICE, SAMPLE_SCHEMA, "pair", schema("Pair", fields=fields))
    holdings.add(ALICE, DATASET, "one", dataset("One", pair))
    for path in (f"/dataset/{ALICE}/one", f"/schema/{ALICE}/pair"):
        shown = await page(ask, path)
        assert shown.links["Digit"] == f"/schema/{ALICE}/digit"
        assert lost in shown.text
        assert lost not in shown.links
        assert "Description" not in shown.text, "a column that would be empty"


async def test_many_problems_are_folded_up(holdings: Holdings, ask: Asker) -> None:
    """The first few of a record's problems are shown; what it holds comes before the rest."""
    holdings.add(ALICE, DATASET, "odd", dataset(tags=[7] * 12))
    shown = await page(ask, f"/dataset/{ALICE}/odd")
    assert "tags[0]: must be a string" in shown.text
    before, _, folded = shown.html.partition("<details>")
    assert before.count("must be a string") == 5
    assert "7 more" in folded
    assert folded.partition("</details>")[0].count("must be a string") == 7


# --- Safety

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


async def test_a_hostile_record_stays_text(holdings: Holdings, ask: Asker) -> None:
    """Whatever its fields hold, pages show it as text, and no link leads where it wants."""
    target = f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"
    field_ = {"name": EVIL, "fieldType": {"$type": f"{nsid.FIELD_TYPE}#primitive", "primitive": EVIL}}
    evil_ref = {"name": "r", "fieldType": {"$type": f"{nsid.FIELD_TYPE}#ref", "ref": "javascript:alert(1)"}}
    holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema(EVIL, EVIL, description=EVIL, fields=[field_, evil_ref]))
    urls = ["javascript:alert(1)", EVIL, "https://example.com/" + EVIL, "data:text/html,x", "//example.com", "https://"]
    storage = {"$type": STORAGE_EXTERNAL, "urls": urls}
    uri = holdings.add(
        *(ALICE, DATASET, "one"),
        dataset(EVIL, target, description=EVIL + "script", tags=[EVIL], license=EVIL, storage=storage),
    )
    code = {"repository": "javascript:alert(1)", "commit": EVIL, "path": EVIL}
    holdings.add(ALICE, LENS, "l", lens(EVIL, target, "javascript:alert(1)", description=EVIL, getterCode=code))
    holdings.add(ALICE, LABEL, "v", label(EVIL, uri, version=EVIL))
    for path in ("/", "/?q=script", "/?q=%22%3E%3Cscript%3E", f"/dataset/{ALICE}/one", f"/schema/{ALICE}/digit"):
        shown = await page(ask, path)
        assert_harmless(shown)
        assert "alert(1)" in shown.text
        assert not any("alert" in (attributes.get("href") or "")[:20] for _, attributes in shown.elements)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
MEMBERS = ["name", "description", "tags", "license", "size", "storage", "schemaRef", "createdAt", "fields", "version"]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(record=JSON | st.dictionaries(st.sampled_from(MEMBERS), JSON))
async def test_any_record_has_a_page(record: Any, holdings: Holdings, ask: Asker) -> None:
    """Whatever JSON a collection of ours holds, the pages of it and the list with it in it are there, and harmless."""
    with psycopg.connect(holdings.database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM records")
        for collection, kind in ((DATASET, "dataset"), (SAMPLE_SCHEMA, "schema")):
            try:
                connection.execute(
                    "INSERT INTO records (did, collection, rkey, kind, cid, rev, record, problems) "
                    "VALUES (%s, %s, 'any', %s, 'bafyreiany', '3lqdkdjpy6t2e', %s, '{odd}')",
                    [ALICE, collection, kind, Jsonb(record)],
                )
            except psycopg.errors.UntranslatableCharacter:
                return  # Postgres has no NUL in JSON, so no row has one
    for path in (f"/dataset/{ALICE}/any", f"/schema/{ALICE}/any", "/"):
        assert_harmless(await page(ask, path))
    assert [view["record"] for view in (await ask.get("listDatasets")).json()["datasets"]] == [record]


async def test_every_answer_forbids_what_no_page_needs(ask: Asker) -> None:
    """A policy without scripts or foreign sources, no guessing of types, no referrers."""
    for path in ("/", "/docs", "/nothing", "/static/style.css"):
        headers = (await ask.client.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; img-src 'self';")
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_what_pages_load_is_there(ask: Asker) -> None:
    """The style and the icon come from the service itself."""
    shown = await page(ask, "/docs")
    assert_harmless(shown)
    targets = {attributes["href"] for tag, attributes in shown.elements if tag == "link"}
    targets |= {attributes["src"] for tag, attributes in shown.elements if tag == "img"}
    assert len(targets) == 2
    for target in targets:
        assert (await ask.client.get(str(target))).status_code == 200


# --- Large records


async def test_long_lists_are_counted(holdings: Holdings, ask: Asker) -> None:
    """A page shows the first tags, fields and shards of a record, and how many more there are."""
    primitive = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "int"}
    fields = [{"name": f"f{n}", "fieldType": primitive} for n in range(1_500)]
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema(fields=fields))
    urls = [f"https://example.com/{n}.tar" for n in range(2_000)]
    tags = [f"t{n}" for n in range(3_000)]
    storage = {"$type": STORAGE_EXTERNAL, "urls": urls}
    holdings.add(ALICE, DATASET, "one", dataset("One", digit, tags=tags, storage=storage))
    shown = await page(ask, f"/dataset/{ALICE}/one")
    for more in ("and 1,300 more fields", "and 1,950 more shards", "and 2,950 more"):
        assert more in shown.text
    assert len(shown.elements) < 2_000
    shown = await page(ask, f"/schema/{ALICE}/digit")
    assert "and 1,300 more fields" in shown.text
    assert len(shown.elements) < 2_000
    assert "+2992" in (await page(ask, "/")).text


async def test_a_hostile_records_size_does_not_multiply(holdings: Holdings, ask: Asker) -> None:
    """A record of empty objects and lines makes a page of its own size at most, and is read in a thread."""
    holdings.add(ALICE, DATASET, "maps", dataset("Maps", contentMetadata={"x": [{}] * 100_000}))
    holdings.add(ALICE, DATASET, "lines", dataset("Lines", description="\n\n" * 200_000))
    holdings.add(ALICE, DATASET, "blobs", dataset("Blobs", storage={"$type": STORAGE_BLOBS, "blobs": [{}] * 100_000}))
    for rkey in ("maps", "lines", "blobs"):
        shown = await page(ask, f"/dataset/{ALICE}/{rkey}")
        assert len(shown.elements) < 12_000
        assert len(shown.html) < 700_000
    assert "and 9,951 more shards" in shown.text
    assert "Maps" in (await page(ask, "/")).text


async def test_large_records_are_read_apart(holdings: Holdings, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large record, for its page or a card, does not keep the event loop from other requests."""
    holdings.add(ALICE, DATASET, "small", dataset("Small"))
    holdings.add(ALICE, DATASET, "large", dataset("Large", description="z" * 100_000))
    where: dict[str, set[bool]] = {}
    read = records.read_value

    def noted(collection: str, record: Any) -> Any:
        value = read(collection, record)
        where.setdefault(value.name, set()).add(threading.current_thread() is threading.main_thread())
        return value

    monkeypatch.setattr(records, "read_value", noted)
    for path in (f"/dataset/{ALICE}/small", f"/dataset/{ALICE}/large", "/?q=large"):
        await page(ask, path)
    assert where == {"Small": {True}, "Large": {False}}
