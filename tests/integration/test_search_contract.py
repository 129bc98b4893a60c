"""What every search engine does, checked against each of them.

The embedded engine always runs, by itself and with a sentence-embedding model beside it. Meilisearch runs where
ATDATA_TEST_MEILI_URL names a server (its key in ATDATA_TEST_MEILI_KEY; its indexes `datasets` and `schemas` are
emptied), or where a `meilisearch` binary is on the PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lsa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import TestDatabases

from atdata_backend.search.base import FACETS, SORTS, BadCursor, Document, Query, Results, SearchEngine
from atdata_backend.search.embedding import Embedder
from atdata_backend.search.meilisearch import MeilisearchEngine
from atdata_backend.search.semantic import SemanticEngine
from atdata_backend.search.tantivy import TantivyEngine

DAY = datetime(2026, 1, 1, tzinfo=UTC)

Open = Callable[[], SearchEngine]


@pytest.fixture(scope="session")
def meilisearch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Meilisearch server: the one that is named, or one of our own."""
    if url := os.environ.get("ATDATA_TEST_MEILI_URL"):
        yield url
        return
    binary = shutil.which("meilisearch")
    if binary is None:
        pytest.skip("ATDATA_TEST_MEILI_URL is not set and no `meilisearch` binary is on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("meilisearch")
    server = subprocess.Popen(
        [binary, "--http-addr", address, "--db-path", str(folder / "data"), "--no-analytics"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/health", timeout=1):
                    break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "the Meilisearch server stopped"
                assert time.monotonic() < deadline, "the Meilisearch server does not answer"
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def semantic_settings(postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A model, and a database for its vectors. It knows none of the words here, so that nothing is near another."""
    with postgres.database() as url:
        yield lsa.make(tmp_path_factory.mktemp("model"), ["wug zibble", "frob quux", "blick"], 2), url


@pytest.fixture(params=["tantivy", "semantic", "meilisearch"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens an engine on one store, which starts empty; again and again gives further readers of it."""
    opened: list[SearchEngine] = []

    def open_one() -> SearchEngine:
        engine: SearchEngine
        if request.param == "tantivy":
            engine = TantivyEngine(tmp_path / "search")
        elif request.param == "semantic":
            model, database = request.getfixturevalue("semantic_settings")
            engine = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model), database)
        else:
            url = request.getfixturevalue("meilisearch_url")
            engine = MeilisearchEngine(url, os.environ.get("ATDATA_TEST_MEILI_KEY"))
        opened.append(engine)
        return engine

    if request.param != "tantivy":
        first = open_one()
        first.clear()
        first.schemas.clear()
        first.close()  # an embedded index has one writer
    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(open_engine: Open) -> SearchEngine:
    return open_engine()


def uri(key: object, did: str = "did:plc:alice") -> str:
    return f"at://{did}/ac.foundation.dataset.record/{key}"


def dataset(name: str, **values: Any) -> Document:
    """A dataset at the URI that its name makes, unless told otherwise."""
    did = values.pop("did", "did:plc:alice")
    key = values.pop("key", "".join(c if c.isascii() and c.isalnum() else "." for c in name) or "x")
    return Document(uri=uri(key, did), did=did, name=name, **{"handle": "alice.example", "created_at": DAY, **values})


def fill(engine: SearchEngine, *documents: Document) -> None:
    engine.apply(documents, [])


def names(results: Results) -> list[str]:
    """The record keys of a page, which in these tests are the names."""
    return [hit.uri.rsplit("/", 1)[1] for hit in results.hits]


def pages(engine: SearchEngine, query: Query, between: Callable[[], None] = lambda: None) -> list[str]:
    """The URIs of every page of *query*, in order."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = engine.search(
            Query(**{name: getattr(query, name) for name in query.__slots__ if name != "cursor"}, cursor=cursor)
        )
        assert len(page.hits) <= query.limit
        found += [hit.uri for hit in page.hits]
        cursor = page.cursor
        if cursor is None:
            return found
        between()


# Keeping documents


def test_stores_documents(engine: SearchEngine) -> None:
    """What was applied is found, counted and listed."""
    fill(engine, dataset("mnist"), dataset("imagenet"))
    assert names(engine.search(Query("mnist"))) == ["mnist"]
    assert engine.count() == 2
    assert set(dict(engine.stamps())) == {uri("mnist"), uri("imagenet")}


def test_replaces_documents(engine: SearchEngine) -> None:
    """A document of the same URI takes the old one's place, also within one batch."""
    fill(engine, dataset("mnist", key="a"))
    fill(engine, dataset("cifar", key="a"), dataset("imagenet", key="a"))
    assert engine.count() == 1
    assert names(engine.search(Query("imagenet"))) == ["a"]
    assert engine.search(Query("mnist")).total == engine.search(Query("cifar")).total == 0


def test_deletes_documents(engine: SearchEngine) -> None:
    """A deleted document is gone; deleting what is not there does nothing."""
    fill(engine, dataset("mnist"), dataset("imagenet"))
    engine.apply([], [uri("mnist"), uri("unknown")])
    assert list(dict(engine.stamps())) == [uri("imagenet")]
    assert engine.search(Query("mnist")).total == 0


def test_deletes_come_first(engine: SearchEngine) -> None:
    """A URI in both lists of a batch is there afterwards."""
    fill(engine, dataset("mnist"))
    engine.apply([dataset("mnist", description="again")], [uri("mnist")])
    assert engine.search(Query("again")).total == 1


def test_takes_large_batches(engine: SearchEngine) -> None:
    """A thousand documents go in at once, and nothing at all is fine, too."""
    fill(engine, *(dataset(f"set {i}", key=i) for i in range(1_000)))
    engine.apply([], [])
    assert engine.count() == len(set(dict(engine.stamps()))) == 1_000


def test_is_durable(open_engine: Open) -> None:
    """What was applied is there after closing and opening again."""
    first = open_engine()
    fill(first, dataset("mnist"))
    first.close()
    assert open_engine().count() == 1


def test_other_readers_see_it(open_engine: Open) -> None:
    """Another reader sees a commit at its next search, the first one and later ones."""
    writer, reader = open_engine(), open_engine()
    assert reader.search(Query("mnist")).total == reader.count() == 0
    fill(writer, dataset("mnist"))
    assert names(reader.search(Query("mnist"))) == ["mnist"]
    writer.apply([dataset("cifar")], [uri("mnist")])
    assert names(reader.search(Query())) == ["cifar"]


def test_clears(engine: SearchEngine) -> None:
    """Clearing removes every document, and the engine goes on working."""
    fill(engine, dataset("mnist"))
    engine.clear()
    assert engine.count() == 0
    assert list(dict(engine.stamps())) == []
    assert engine.search(Query("mnist")) == engine.search(Query()) == Results(hits=(), total=0)
    fill(engine, dataset("cifar"))
    assert engine.count() == 1


def test_an_empty_engine_has_empty_facets(engine: SearchEngine) -> None:
    """Asked for facets, an engine without documents has them, without values."""
    assert engine.search(Query(facets=FACETS)).facets == {facet: {} for facet in FACETS}


# Finding


CATALOGUE = [
    dataset("ImageNet-1k", description="Photographs of a thousand kinds of things", tags=("vision",)),
    dataset("MNIST", description="Handwritten digits", tags=("vision", "image-classification")),
    dataset("word_count", description="How often each term is used in recipes", fields=("lemma:str", "frequency:int")),
    dataset("WikiQA", description="Questions with answers from an encyclopaedia", schema_name="QuestionAnswer"),
    dataset("Common Voice", description="Read speech in many languages", handle="mozilla.example", did="did:plc:moz"),
]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mnist", "MNIST"),  # case
        ("handwritten", "MNIST"),  # description
        ("image-classification", "MNIST"),  # a tag
        ("classification", "MNIST"),  # a part of a tag
        ("frequency", "word.count"),  # a field's name
        ("questionanswer", "WikiQA"),  # the schema's name
        ("mozilla", "Common.Voice"),  # the publisher's handle
        ("imagenet", "ImageNet.1k"),  # identifiers: whole, by their parts, written otherwise
        ("imagenet-1k", "ImageNet.1k"),
        ("ImageNet", "ImageNet.1k"),
        ("image net", "ImageNet.1k"),
        ("imagenet1k", "ImageNet.1k"),
        ("word_count", "word.count"),
        ("word count", "word.count"),
        ("wordcount", "word.count"),
        ("wiki", "WikiQA"),  # prefixes
        ("ima", "ImageNet.1k"),
        ("comm voi", "Common.Voice"),
        ("encyclop", "WikiQA"),
        ("mnsit", "MNIST"),  # typos: swapped, wrong, missing, added
        ("mnizt", "MNIST"),
        ("mnit", "MNIST"),
        ("mniist", "MNIST"),
        ("imgenet", "ImageNet.1k"),
        ("handwriten", "MNIST"),
        ("handritten digitz", "MNIST"),
        ("photgraphss", "ImageNet.1k"),  # two in a long word
        ("common voice speech unheardof", "Common.Voice"),  # not every word need match
        ('"handwritten digits"', "MNIST"),  # a phrase
    ],
)
def test_finds(engine: SearchEngine, text: str, key: str) -> None:
    """Words of every field are found first: as written, by their beginning, in parts, with typos, as phrases."""
    fill(engine, *CATALOGUE)
    if isinstance(engine, MeilisearchEngine) and text == "comm voi":
        pytest.xfail("in Meilisearch only the last word may be unfinished")
    assert names(engine.search(Query(text)))[:1] == [key]


def test_does_not_find_everything(engine: SearchEngine) -> None:
    """What no document has finds nothing; a short word forgives no typo, nor does a number."""
    fill(engine, *CATALOGUE, dataset("year", description="as of 2019"))
    for text in ("zzyzx", "wikj", "2018", '"digits handwritten"', '"handwritten recipes"'):
        assert "year" not in names(engine.search(Query(text)))
        if text != "wikj":
            assert engine.search(Query(text)).total == 0, text


def test_exact_before_near(engine: SearchEngine) -> None:
    """The word itself comes before words within a typo of it, wherever it stands."""
    fill(
        engine,
        dataset("near", key="near", description="casts of plaster"),
        dataset("Casts", key="name"),
        dataset("exact", key="exact", description="a long story, in which many words stand about carts and horses"),
    )
    assert names(engine.search(Query("carts")))[0] == "exact"


def test_name_before_description(engine: SearchEngine) -> None:
    """A name weighs more than a tag, a tag more than a description, the word itself more than its beginning."""
    story = "recorded over many years at sea and on land, by people who listen, for people who like to listen " * 3
    fill(
        engine,
        dataset("other", key="described", description="about whales and songs"),
        dataset("another", key="tagged", tags=("whales", "sound", "sea"), description="of something or other"),
        dataset("Sounds of Whales", key="named", description=story),
        *(dataset(f"filler {i}", key=f"f{i}", description="something else entirely") for i in range(20)),
    )
    assert names(engine.search(Query("whales"))) == ["named", "tagged", "described"]


def test_more_and_rarer_words_first(engine: SearchEngine) -> None:
    """Of several words, documents with more of them come first, and among equals those with the rarer one."""
    fill(
        engine,
        dataset("a", key="both", description="speech of whales"),
        dataset("b", key="rare", description="songs of whales"),
        *(dataset(f"c{i}", key=f"common{i}", description="speech of people") for i in range(20)),
    )
    assert names(engine.search(Query("whales speech")))[:2] == ["both", "rare"]


def test_stop_words_do_not_dominate(engine: SearchEngine) -> None:
    """Words like "the" do not bring up documents that have nothing else of the query, yet alone they are words."""
    fill(
        engine,
        dataset("The Of And", key="stop", description="the of and the of and the"),
        dataset("Whale songs", key="whale"),
    )
    assert names(engine.search(Query("the songs of the whale")))[0] == "whale"
    assert names(engine.search(Query("the")))[0] == "stop"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cafe", True),
        ("CAFÉ", True),
        ("cafe\u0301", True),
        ("grosse", True),
        ("日本語", True),
        ("日本", True),
        ("データ", True),
        ("데이터", True),
        ("данные", True),
        ("🐋", True),
        ("中国", False),
    ],
)
def test_unicode(engine: SearchEngine, text: str, found: bool) -> None:
    """Case and accents make no difference; scripts without spaces are found by what stands in them."""
    fill(engine, dataset("Café Größe 日本語データ集 데이터 Данные 🐋", key="u"))
    if isinstance(engine, MeilisearchEngine) and text in ("grosse", "🐋", "日本", "データ"):
        pytest.xfail("Meilisearch takes these apart in its own way")
    assert names(engine.search(Query(text))) == (["u"] if found else [])


GARBAGE = [
    '"',
    '"""',
    '"unbalanced',
    "AND",
    "a AND NOT (b OR c",
    "name:x^2~3 [a TO b] {x}",
    "+ - && || ! ( ) { } [ ] ^ ~ * ? : \\ /",
    ".*",
    "(a+)+$",
    "\x00",
    "im\x00agenet",
    "\ud800 lone surrogate",
    "\u202e rtl \u200b zero width \ufeff",
    "🐋🐋🐋 👩‍👩‍👧‍👦 🏳️‍🌈",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "x" * 10_000,
    "word " * 2_000,
    " ".join(f"w{i}" for i in range(3_000)),
    '"' + "word " * 2_000 + '"',
    "中" * 5_000,
    "\n\t\r",
    "e" + "\u0301" * 3_000,
    "ﷺ" * 500,
]


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_survives_garbage(engine: SearchEngine, text: str) -> None:
    """No text is an error, in the query or in any filter."""
    fill(engine, *CATALOGUE)
    assert engine.search(Query(text, facets=FACETS)).total <= len(CATALOGUE)
    values = (text, "other")
    filtered = Query(tags=values, licenses=values, schemas=values, publishers=values, storage=values, fields=values)
    assert engine.search(filtered).total == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text("ab \"-_'éßİ中日ｶﾞ🐋\u0301\u200d\x00", max_size=20))
def test_survives_any_text(engine: SearchEngine, text: str) -> None:
    """Whatever is in a document can be stored and asked for, and what comes back is well-formed."""
    fill(engine, dataset(text, key="k", description=text, tags=(text,), fields=(text,), handle=text, schema_name=text))
    for sort in SORTS:
        assert engine.search(Query(text, sort=sort, facets=FACETS)).total <= 1
    for hit in engine.search(Query(text)).hits:
        for marked in hit.highlights.values():
            assert marked.count("<mark>") == marked.count("</mark>") >= 1
            assert "<" not in marked.replace("<mark>", "").replace("</mark>", "")
    if not isinstance(engine, MeilisearchEngine):
        assert engine.search(Query(tags=(text,))).total == 1


# Filters


@pytest.fixture
def shelf(engine: SearchEngine) -> SearchEngine:
    """Four datasets that differ in everything one can filter by."""
    fill(
        engine,
        dataset(
            "one",
            tags=("vision", "small"),
            license="mit",
            schema_uri=uri("s1"),
            storage="external",
            fields=("image:ndarray:uint8", "label:int"),
            structure="s1-one",
            samples=0,
            bytes=10**9,
            created_at=DAY,
        ),
        dataset(
            "two",
            tags=("vision",),
            license="apache-2.0",
            schema_uri=uri("s2"),
            storage="blobs",
            fields=("image:ndarray:float32",),
            structure=uri("s2"),
            samples=100,
            bytes=0,
            created_at=DAY + timedelta(days=1),
        ),
        dataset(
            "three",
            did="did:web:bob.example",
            tags=("audio", "small"),
            license="mit",
            schema_uri=uri("s1"),
            storage="external",
            fields=("image:bytes", "label:str"),
            structure="s1-three",
            samples=10_000,
            created_at=DAY + timedelta(days=2),
        ),
        dataset("four", did="did:plc:carol", created_at=DAY + timedelta(days=3, microseconds=1)),
    )
    return engine


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(tags=("vision",)), {"one", "two"}),
        (Query(tags=("vision", "small")), {"one"}),
        (Query(tags=("visio",)), set()),
        (Query(licenses=("mit",)), {"one", "three"}),
        (Query(licenses=("mit", "apache-2.0")), {"one", "two", "three"}),
        (Query(schemas=(uri("s2"),)), {"two"}),
        (Query(publishers=("did:web:bob.example", "did:plc:carol")), {"three", "four"}),
        (Query(storage=("blobs",)), {"two"}),
        (Query(fields=("image",)), {"one", "two", "three"}),
        (Query(fields=("image:ndarray",)), {"one", "two"}),
        (Query(fields=("image:ndarray:uint8",)), {"one"}),
        (Query(fields=("image", "label:int")), {"one"}),
        (Query(fields=("imag",)), set()),
        (Query(min_samples=0), {"one", "two", "three"}),
        (Query(min_samples=100), {"two", "three"}),
        (Query(min_samples=101), {"three"}),
        (Query(max_samples=100), {"one", "two"}),
        (Query(max_samples=99), {"one"}),
        (Query(max_samples=-1), set()),
        (Query(min_samples=100, max_samples=100), {"two"}),
        (Query(min_samples=2**63, max_samples=2**80), set()),
        (Query(min_samples=100, max_samples=99), set()),
        (Query(min_samples=-1), {"one", "two", "three"}),
        (Query(min_bytes=0), {"one", "two"}),
        (Query(min_bytes=1), {"one"}),
        (Query(max_bytes=10**9), {"one", "two"}),
        (Query(max_bytes=10**9 - 1), {"two"}),
        (Query(min_bytes=10**9, max_bytes=10**9), {"one"}),
        (Query(max_bytes=-1), set()),
        (Query(min_bytes=2**63, max_bytes=2**80), set()),
        (Query(min_bytes=0, min_samples=1), {"two"}),
        (Query(structures=("s1-one",)), {"one"}),
        (Query(structures=("s1-one", uri("s2"), "s1-unheard-of")), {"one", "two"}),
        (Query(structures=("s1-on",)), set()),
        (Query("image", structures=("s1-three",), tags=("audio",)), {"three"}),
        (Query("image", structures=("s1-three",), tags=("vision",)), set()),
        (Query(created_after=DAY + timedelta(days=2), created_before=DAY), set()),
        (Query(created_after=datetime(2026, 1, 4), created_before=datetime(9999, 1, 1)), {"four"}),
        (Query(created_after=DAY + timedelta(days=1)), {"two", "three", "four"}),
        (Query(created_before=DAY + timedelta(days=1)), {"one", "two"}),
        (Query(created_before=DAY + timedelta(days=3)), {"one", "two", "three"}),
        (Query(created_after=DAY, created_before=DAY), {"one"}),
        (Query(licenses=("mit",), storage=("external",), tags=("audio",)), {"three"}),
        (Query("two", licenses=("mit",)), set()),
        (Query("one", licenses=("mit",), min_samples=0), {"one"}),
    ],
)
def test_filters(shelf: SearchEngine, query: Query, expected: set[str]) -> None:
    """Kinds of filters are a conjunction; ranges are inclusive; who gave no amount is in no range of it."""
    results = shelf.search(query)
    assert set(names(results)) == expected
    assert results.total == len(expected)


@pytest.mark.parametrize("value", ["it's", 'say "hi"', "back\\slash", "a' OR tags = 'b", "a, b", "{x}", "é", " "])
def test_filter_values_are_taken_literally(engine: SearchEngine, value: str) -> None:
    """Quotes, backslashes and operators in a filter's value are part of the value."""
    fill(engine, dataset("a", tags=(value,), license=value), dataset("b", tags=("b",), license="b"))
    assert names(engine.search(Query(tags=(value,)))) == ["a"]
    assert names(engine.search(Query(licenses=(value,)))) == ["a"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(licenses=("cc0-1.0",)), {"upper", "lower"}),
        (Query(licenses=("CC0-1.0",)), {"upper", "lower"}),
        (Query(licenses=("Cc0-1.0", "mit")), {"upper", "lower", "other"}),
        (Query(tags=("SPEECH",)), {"upper", "lower"}),
        (Query(tags=("speech", "NLP")), {"upper"}),
        (Query(tags=("éCLAIR",)), {"lower"}),
        (Query(tags=("speec",)), set()),
        (Query(storage=("Blobs",)), {"upper"}),
        (Query(fields=("image",)), {"upper", "lower"}),
        (Query(fields=("IMAGE:NDArray:uint8",)), {"upper"}),
        (Query(publishers=("did:plc:alice",)), {"upper", "lower", "other"}),
    ],
)
def test_filters_ignore_case(engine: SearchEngine, query: Query, expected: set[str]) -> None:
    """People write CC0-1.0 and cc0-1.0, and mean the same."""
    fill(engine, *SPELLINGS)
    results = engine.search(query)
    assert set(names(results)) == expected
    assert results.total == len(expected)


SPELLINGS = [
    dataset(
        "upper", tags=("Speech", "nlp"), license="CC0-1.0", fields=("Image:ndarray:uint8",), storage="blobs", samples=1
    ),
    dataset("lower", tags=("speech", "Éclair", "ÉCLAIR"), license="cc0-1.0", fields=("image:bytes",)),
    dataset("other", tags=("vision",), license="MIT"),
]


def test_uris_of_schemas_are_exact(engine: SearchEngine) -> None:
    """A record key is not the same in capitals."""
    fill(engine, dataset("a", schema_uri=uri("Key")), dataset("b", schema_uri=uri("key")))
    if isinstance(engine, MeilisearchEngine):
        pytest.xfail("Meilisearch compares all texts without case")
    assert names(engine.search(Query(schemas=(uri("Key"),)))) == ["a"]
    assert engine.search(Query(facets=("schema",))).facets == {"schema": {uri("Key"): 1, uri("key"): 1}}


# Facets


def test_spellings_are_counted_together(engine: SearchEngine) -> None:
    """A facet's count is what its filter finds; it is shown as somebody published it, not as it is compared."""
    fill(engine, *SPELLINGS)
    facets = engine.search(Query(facets=FACETS)).facets
    assert {value.lower(): count for value, count in facets["license"].items()} == {"cc0-1.0": 2, "mit": 1}
    assert "MIT" in facets["license"]
    assert set(facets["tags"]) & {"Éclair", "ÉCLAIR"}
    assert {value.lower(): count for value, count in facets["tags"].items()} == {
        "speech": 2,
        "nlp": 1,
        "vision": 1,
        "éclair": 1,
    }
    for facet in ("license", "tags"):
        for value, count in facets[facet].items():
            query = Query(licenses=(value,)) if facet == "license" else Query(tags=(value,))
            assert engine.search(query).total == count


def test_a_facet_may_share_its_values_with_another(engine: SearchEngine) -> None:
    """The same word as a tag and as a license, in two spellings, keeps both."""
    fill(engine, dataset("a", tags=("mit",), license="MIT"))
    assert engine.search(Query(facets=("tags", "license"))).facets == {"tags": {"mit": 1}, "license": {"MIT": 1}}


def test_facets_count_what_matches(shelf: SearchEngine) -> None:
    """Each facet counts the values among the matches, the most frequent first."""
    facets = shelf.search(Query(facets=FACETS)).facets
    assert facets == {
        "tags": {"small": 2, "vision": 2, "audio": 1},
        "license": {"mit": 2, "apache-2.0": 1},
        "schema": {uri("s1"): 2, uri("s2"): 1},
        "publisher": {"did:plc:alice": 2, "did:plc:carol": 1, "did:web:bob.example": 1},
        "storage": {"external": 2, "blobs": 1},
    }
    assert list(facets["tags"]) == ["small", "vision", "audio"]
    assert shelf.search(Query("three", facets=("tags",))).facets == {"tags": {"audio": 1, "small": 1}}
    assert shelf.search(Query("three")).facets == {}


def test_facets_are_disjunctive(shelf: SearchEngine) -> None:
    """A facet's own filter does not hide its other values; other filters do."""
    results = shelf.search(Query(licenses=("apache-2.0",), facets=("license", "storage", "tags")))
    assert names(results) == ["two"]
    assert results.facets == {
        "license": {"mit": 2, "apache-2.0": 1},
        "storage": {"blobs": 1},
        "tags": {"vision": 1},
    }
    both = shelf.search(Query(licenses=("mit",), tags=("audio",), facets=("license", "tags"))).facets
    assert both == {"license": {"mit": 1}, "tags": {"small": 2, "audio": 1, "vision": 1}}


def test_facets_are_bounded(engine: SearchEngine) -> None:
    """A facet lists the fifty most frequent values, counted in full however the documents came."""
    for batch in range(3):
        fill(engine, *(dataset(f"{batch}-{i}", tags=(f"tag{i:03}",)) for i in range(120)))
    fill(engine, *(dataset(f"x{i}", tags=(f"tag{i:03}",)) for i in range(70, 120)))
    facets = engine.search(Query(facets=("tags",))).facets
    assert facets == {"tags": {f"tag{i:03}": 4 for i in range(70, 120)}}


def test_only_some_documents(engine: SearchEngine) -> None:
    """A query may be about some documents, or about all but some, whatever else it asks for."""
    fill(engine, *(dataset(name, tags=(name,), description="whales") for name in ("a", "b", "c")))
    for text in ("whales", ""):
        some = engine.search(Query(text, uris=(uri("a"), uri("c"), uri("nowhere")), facets=("tags",)))
        assert sorted(names(some)) == ["a", "c"]
        assert (some.total, some.facets["tags"]) == (2, {"a": 1, "c": 1})
        assert names(engine.search(Query(text, uris=(uri("a"),), tags=("b",)))) == []
        assert names(engine.search(Query(text, without=(uri("a"), uri("c"))))) == ["b"]
    first = engine.search(Query("whales", limit=1, without=(uri("a"),)))
    second = engine.search(Query("whales", limit=1, without=(uri("a"), uri("nowhere")), cursor=first.cursor))
    assert sorted(names(first) + names(second)) == ["b", "c"]


def test_marks_may_be_left_out(engine: SearchEngine) -> None:
    """Hits have no highlights where nobody will look at them."""
    fill(engine, dataset("whales"))
    assert engine.search(Query("whales")).hits[0].highlights
    assert not engine.search(Query("whales", marks=False)).hits[0].highlights


def test_facets_heed_structures(shelf: SearchEngine) -> None:
    """What a structure leaves out is not counted."""
    found = shelf.search(Query(structures=("s1-one", "s1-three"), facets=("tags", "license")))
    assert found.facets == {"tags": {"small": 2, "audio": 1, "vision": 1}, "license": {"mit": 2}}


# Order and pages


def test_browsing_is_newest_first(shelf: SearchEngine) -> None:
    """Without text, by relevance means the newest first."""
    assert names(shelf.search(Query())) == names(shelf.search(Query("  "))) == ["four", "three", "two", "one"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("newest", ["four", "three", "two", "one"]),
        ("oldest", ["one", "two", "three", "four"]),
        ("samples", ["three", "two", "one", "four"]),
        ("name", ["four", "one", "three", "two"]),
    ],
)
def test_sorts(shelf: SearchEngine, sort: Any, expected: list[str]) -> None:
    """Each sort has its order, with or without text; an unknown number of samples comes last."""
    assert names(shelf.search(Query(sort=sort))) == expected
    assert names(shelf.search(Query("one two", sort=sort))) == [name for name in expected if name in ("one", "two")]


def test_names_sort_as_people_read_them(engine: SearchEngine) -> None:
    """By name ignores case and accents, and goes on where long names begin alike."""
    ordered = ["apple", "Banana", "éclair", "Imagenet-1k a", "imagenet-1k B", "imagenet-1k C", "Zebra"]
    fill(engine, *(dataset(name, key=f"k{i}") for i, name in enumerate(ordered)))
    assert names(engine.search(Query(sort="name"))) == [f"k{i}" for i in range(len(ordered))]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("text", ["", "speech"])
def test_pages_are_complete(engine: SearchEngine, sort: Any, text: str) -> None:
    """Paged through, every hit comes exactly once, in the order of one large page, also where they tie."""
    fill(
        engine,
        *(
            dataset(
                f"speech {i % 7}",
                key=i,
                created_at=DAY + timedelta(seconds=i % 5),
                samples=None if i % 3 else i % 4,
            )
            for i in range(103)
        ),
    )
    whole = engine.search(Query(text, sort=sort, limit=200))
    assert whole.total == len(whole.hits) == 103
    assert whole.cursor is None
    assert pages(engine, Query(text, sort=sort, limit=10)) == [hit.uri for hit in whole.hits]


def test_the_last_page_has_no_cursor(engine: SearchEngine) -> None:
    """Also where it is full."""
    fill(engine, *(dataset(f"speech {i}", key=i) for i in range(10)))
    for query in (Query(limit=5), Query("speech", limit=5), Query("speech", limit=10)):
        assert len(pages(engine, query)) == 10


@pytest.mark.parametrize(
    "name", ["", "a", "songs", "speech", "speeches", "\tspeech\t", "a speech of many words", "日本"]
)
def test_pages_of_one_name(engine: SearchEngine, name: str) -> None:
    """By name, those of the same name come each once, however short or long it is."""
    fill(engine, *(dataset(name, key=i) for i in range(30)), dataset("zebra"), dataset("0", key="first"))
    whole = engine.search(Query(sort="name", limit=100))
    assert len(whole.hits) == 32
    assert pages(engine, Query(sort="name", limit=7)) == [hit.uri for hit in whole.hits]


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_stable(open_engine: Open, sort: Any) -> None:
    """While documents come and go, what was there throughout comes exactly once."""
    writer, reader = open_engine(), open_engine()

    def record(i: int, generation: str) -> Document:
        return dataset(
            f"speech {generation}" if i % 2 else "read speech",
            key=f"{generation}{i}",
            created_at=DAY + timedelta(seconds=(i * 7919) % 600),
            samples=(i * 31) % 50 or None,
            description="speech " * (i % 5) + "words " * (i % 11),
        )

    fill(writer, *(record(i, "stays") for i in range(950)), *(record(i, "goes") for i in range(50)))
    changes = iter(range(19))

    def churn() -> None:
        if (i := next(changes, None)) is not None:
            coming = [record(j, f"comes{i}x") for j in range(i * 3, i * 3 + 3)]
            writer.apply(coming, [uri(f"goes{j}") for j in range(i * 3, min(i * 3 + 3, 50))])

    found = pages(reader, Query("speech", sort=sort, limit=50), between=churn)
    stayed = [u for u in found if "stays" in u]
    assert sorted(stayed) == sorted(uri(f"stays{i}") for i in range(950))
    assert len(set(found)) == len(found)


def test_pages_are_stable_for_new_readers(open_engine: Open) -> None:
    """So they are if every page is asked of a process that was not there before, by relevance, too."""
    writer = open_engine()

    def record(i: int, generation: str) -> Document:
        return dataset(f"speech {i}", key=f"{generation}{i}", description="speech " * (i % 3) + "words " * (i % 7))

    fill(writer, *(record(i, "stays") for i in range(200)), *(record(i, "goes") for i in range(40)))
    query, seen = Query("speech", limit=30), list[str]()
    for step in range(20):
        page = open_engine().search(query)
        seen += [hit.uri for hit in page.hits]
        if page.cursor is None:
            break
        writer.apply([record(i, f"comes{step}x") for i in range(4)], [uri(f"goes{step * 4 + i}") for i in range(4)])
        query = Query("speech", limit=30, cursor=page.cursor)
    assert page.cursor is None
    assert len(seen) == len(set(seen))
    assert {uri(f"stays{i}") for i in range(200)} <= set(seen)


def test_structures_may_change_between_pages(engine: SearchEngine) -> None:
    """Which structures lead to another depends on lenses, which come and go: paging goes on with those of now."""
    fill(engine, *(dataset(f"speech {i}", key=i, structure=f"s{i % 3}") for i in range(30)))
    for query in (Query("speech", limit=4), Query(limit=4)):
        page = engine.search(replace(query, structures=("s0", "s1")))
        seen = [hit.uri for hit in page.hits]
        while page.cursor:
            page = engine.search(replace(query, structures=("s0", "s2"), cursor=page.cursor))
            seen += [hit.uri for hit in page.hits]
        assert len(seen) == len(set(seen))
        assert {uri(i) for i in range(0, 30, 3)} <= set(seen)


BAD_CURSORS = ["", "x", "====", "e30", "bnVsbA", "WzEsMiwzLDRd", "\x00", "é", "a" * 10_000, "W1tbW1tb" * 500]


@pytest.mark.parametrize("cursor", BAD_CURSORS, ids=range(len(BAD_CURSORS)))
def test_refuses_bad_cursors(engine: SearchEngine, cursor: str) -> None:
    """A cursor that is not one is refused, whatever it looks like."""
    fill(engine, *CATALOGUE)
    for query in (Query(cursor=cursor), Query("mnist", cursor=cursor), Query(sort="name", cursor=cursor)):
        with pytest.raises(BadCursor):
            engine.search(query)


@pytest.mark.parametrize("sort", SORTS)
def test_refuses_another_querys_cursor(engine: SearchEngine, sort: Any) -> None:
    """A cursor goes with the text, filters and sort that it came from; page size and facets may change."""
    fill(engine, *(dataset(f"speech {i}", key=i) for i in range(10)))
    cursor = engine.search(Query("speech", sort=sort, limit=2)).cursor
    assert len(engine.search(Query("speech", sort=sort, limit=5, facets=("tags",), cursor=cursor)).hits) == 5
    for other in (
        Query("words", sort=sort, cursor=cursor),
        Query("speech", sort=sort, tags=("a",), cursor=cursor),
        Query("speech", sort="oldest" if sort == "newest" else "newest", cursor=cursor),
    ):
        with pytest.raises(BadCursor):
            engine.search(other)


# Highlights


def test_highlights_escape(engine: SearchEngine) -> None:
    """Highlights are HTML: the text escaped, only the marks are tags."""
    fill(
        engine,
        dataset(
            "<script>alert('whale')</script>",
            key="k",
            description='<img src=x onerror="whale()"> & <mark>whale</mark>',
        ),
    )
    highlights = engine.search(Query("whale")).hits[0].highlights
    assert highlights["name"] == "&lt;script&gt;alert(&#x27;<mark>whale</mark>&#x27;)&lt;/script&gt;"
    assert highlights["description"] == (
        "&lt;img src=x onerror=&quot;<mark>whale</mark>()&quot;&gt; &amp; &lt;mark&gt;<mark>whale</mark>&lt;/mark&gt;"
    )


def test_highlights_quote_the_place(engine: SearchEngine) -> None:
    """A name is given whole, of a long description the part around the match; where nothing matches, nothing."""
    text = "filler " * 300 + "then whales sing " + "filler " * 300
    fill(engine, dataset("A " + "long " * 30 + "name of whales", key="k", description=text))
    fill(engine, dataset("unmarked", key="u", description="whales"))
    found = {hit.uri: hit.highlights for hit in engine.search(Query("whales")).hits}
    assert found[uri("k")]["name"] == "A " + "long " * 30 + "name of <mark>whales</mark>"
    assert "then <mark>whales</mark> sing" in found[uri("k")]["description"]
    assert len(found[uri("k")]["description"]) < 260
    assert set(found[uri("u")]) == {"description"}


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("whal", "<mark>Whales</mark> sing"),
        ("whlaes", "<mark>Whales</mark> sing"),
        ("sing", "Whales <mark>sing</mark>"),
        ("the whales", "<mark>Whales</mark> sing"),
        ('"whales sing"', "<mark>Whales</mark> <mark>sing</mark>"),
    ],
)
def test_highlights_mark_what_matched(engine: SearchEngine, text: str, marked: str) -> None:
    """A word is marked that was found by its beginning, by a typo or in a phrase."""
    fill(engine, dataset("Whales sing", key="k"))
    (hit,) = engine.search(Query(text)).hits
    found = hit.highlights["name"]
    if isinstance(engine, MeilisearchEngine):  # marks only as much of the word as matched
        found, marked = (s.replace("<mark>", "").replace("</mark>", "") for s in (found, marked))
    assert found == marked


def test_browsing_has_no_highlights(shelf: SearchEngine) -> None:
    """Without text there is nothing to mark."""
    assert all(not hit.highlights for hit in shelf.search(Query(sort="name")).hits)


# What is similar


def test_similar(engine: SearchEngine) -> None:
    """What shares rare words, tags, fields or structure comes, the most alike first, and never itself."""
    fill(
        engine,
        dataset("Whale songs", tags=("bioacoustics", "sea"), fields=("waveform:ndarray:float32",), structure="s1-a"),
        dataset("Songs of humpback whales", key="twin", tags=("Bioacoustics",), structure="s1-a"),
        dataset("Orca whale calls", key="cousin", description="songs and clicks"),
        dataset("Traffic signs", key="stranger", tags=("vision",), fields=("image:bytes",), structure="s1-b"),
        *(dataset(f"filler {i}", key=f"f{i}", description="something else entirely") for i in range(20)),
    )
    itself, *others = engine.similar(uri("Whale.songs"), 10)
    assert (itself.uri, itself.structure) == (uri("Whale.songs"), "s1-a")
    assert [hit.uri for hit in others][:2] == [uri("twin"), uri("cousin")]
    assert others[0].structure == "s1-a"
    assert uri("stranger") not in {hit.uri for hit in others}
    assert len(engine.similar(uri("Whale.songs"), 1)) == 2


def test_similar_to_nothing(engine: SearchEngine) -> None:
    """Nothing is similar to what is not here, and to what has nothing in common with anything."""
    assert engine.similar(uri("Whale.songs"), 10) == ()
    fill(engine, dataset("mnist", did="did:plc:one", handle=None), dataset("", key="empty", did="did:plc:two"))
    assert engine.similar(uri("unheard-of"), 10) == ()
    assert [hit.uri for hit in engine.similar(uri("mnist", "did:plc:one"), 10)] == [uri("mnist", "did:plc:one")]


# Schemas


def test_schemas_are_apart(open_engine: Open) -> None:
    """Schemas are searched like datasets, and neither is found among the others."""
    engine = open_engine()
    fill(engine, dataset("Whale songs"))
    schema = dataset("Song", fields=("waveform:ndarray:float32",), keywords=("ndarray", "float32"), structure="s1-a")
    engine.schemas.apply([schema, dataset("Digit", fields=("label:int",), keywords=("int",))], [])
    for text, found in (("sogn", "Song"), ("wavef", "Song"), ("float32", "Song"), ("int", "Digit"), ("whale", None)):
        assert names(engine.schemas.search(Query(text)))[:1] == ([found] if found else []), text
    assert names(engine.schemas.search(Query(fields=("waveform:ndarray",)))) == ["Song"]
    assert names(engine.search(Query("song"))) == ["Whale.songs"]
    assert (engine.count(), engine.schemas.count()) == (1, 2)
    assert names(open_engine().schemas.search(Query(sort="name"))) == ["Digit", "Song"]
    engine.clear()
    assert (engine.count(), engine.schemas.count()) == (0, 2)
    engine.schemas.clear()


# Threads


def test_searches_in_threads(engine: SearchEngine) -> None:
    """Searches run in many threads at once while documents are applied."""
    fill(engine, *(dataset(f"speech {i}", key=i) for i in range(100)))
    query = Query("speech", facets=FACETS, limit=10)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(engine.search, query) for _ in range(200)]
        for i in range(10):
            fill(engine, dataset(f"speech {i}", key=i, description="again"))
        assert {future.result().total for future in running} == {100}
