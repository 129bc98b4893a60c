"""Search by meaning, beside search by words: a real Postgres with pgvector, and a small model of real files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import frames
import lsa
import numpy as np
import psycopg
import pytest
from frames import DATASET, DID, Repo, multikey
from psycopg.conninfo import make_conninfo

from atdata.errors import ConfigError, NetworkError
from atdata_backend.search import cursors, embedding
from atdata_backend.search.base import FACETS, BadCursor, Document, Query
from atdata_backend.search.embedding import Embedder, Vector
from atdata_backend.search.semantic import SemanticEngine, fused
from atdata_backend.search.tantivy import TantivyEngine
from atdata_indexer.events import Scope, parse
from atdata_indexer.feed import Feed
from atdata_indexer.store import Item, Store

# Words that stand in the same texts are near: kittens are cats, automobiles are cars.
TEXTS = [
    *["cat kitten pet whiskers", "kitten cat fur", "cat kitten purrs"] * 3,
    *["car automobile road", "automobile car engine", "car automobile wheel"] * 3,
    *["volcano lava ash", "lava volcano eruption"] * 3,
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lsa.make(tmp_path_factory.mktemp("lsa") / "model", TEXTS, 3)


@pytest.fixture
def engine(model_folder: Path, database_url: str, tmp_path: Path) -> Iterator[SemanticEngine]:
    opened = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model_folder), database_url)
    yield opened
    opened.close()


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    """A model to be broken."""
    return Path(shutil.copytree(model_folder, tmp_path / "broken"))


def uri(key: object) -> str:
    return f"at://did:plc:alice/ac.foundation.dataset.record/{key}"


def dataset(key: str, name: str, **values: Any) -> Document:
    given: dict[str, Any] = {"did": "did:plc:alice", "handle": None, "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return Document(uri=uri(key), name=name, **{**given, **values})


def keys(engine: SemanticEngine, query: Query) -> list[str]:
    return [hit.uri.rsplit("/", 1)[1] for hit in engine.search(query).hits]


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        query = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'semantic%'"
        return [name for (name,) in connection.execute(query).fetchall()]


def all_pages(engine: SemanticEngine, query: Query, between: Callable[[], None] = lambda: None) -> list[str]:
    found: list[str] = []
    while True:
        page = engine.search(query)
        assert len(page.hits) == query.limit or page.cursor is None
        found += [hit.uri.rsplit("/", 1)[1] for hit in page.hits]
        if page.cursor is None:
            return found
        assert len(page.cursor) <= 4096  # as the lexicon has it
        query = replace(query, cursor=page.cursor)
        between()


# What is found


def test_finds_what_other_words_say(engine: SemanticEngine, tmp_path: Path) -> None:
    """A dataset is found by words that it does not have but that mean the same, and only then."""
    engine.apply([dataset("cats", "cat"), dataset("cars", "car")], [])
    assert TantivyEngine(tmp_path / "search").search(Query("kitten")).total == 0
    results = engine.search(Query("kitten"))
    assert [hit.uri for hit in results.hits] == [uri("cats")]
    assert results.total == 1
    assert results.cursor is None
    assert keys(engine, Query("automobile")) == ["cars"]


@pytest.mark.parametrize("query", ["volcano", "xyzzy plugh", "1234567", "数据 集 学习"])
def test_what_is_not_near_is_no_hit(engine: SemanticEngine, query: str) -> None:
    """What nothing is near to, or the model knows nothing of, finds nothing."""
    engine.apply([dataset("cats", "cat"), dataset("cars", "car"), dataset("odd", "frobnicated gizmos")], [])
    assert engine.search(Query(query)).total == 0


def test_words_and_meaning_together_come_first(engine: SemanticEngine) -> None:
    """Who matches by words and by meaning comes before who matches by either, and words are marked."""
    engine.apply(
        [
            dataset("both", "sounds: a kitten"),
            dataset("meaning", "cat"),
            dataset("words", "kitten sounds of volcano lava ash eruption volcano lava ash eruption"),
        ],
        [],
    )
    hits = engine.search(Query("kitten sounds")).hits
    assert hits[0].uri == uri("both")
    assert {hit.uri for hit in hits} == {uri("both"), uri("meaning"), uri("words")}
    assert hits[0].highlights["name"] == "<mark>sounds</mark>: a <mark>kitten</mark>"
    assert next(hit for hit in hits if hit.uri == uri("meaning")).highlights == {}
    assert all(not hit.highlights for hit in engine.search(Query("kitten sounds", marks=False)).hits)


@pytest.mark.parametrize(
    "query", [Query('"kitten"'), Query("kit"), Query("kitten", sort="newest"), Query("kitten", uris=(uri("cars"),))]
)
def test_what_asks_for_words_finds_words(engine: SemanticEngine, query: Query) -> None:
    """Phrases, beginnings of words, and orders but relevance are by words only."""
    engine.apply([dataset("cats", "cat"), dataset("cars", "car")], [])
    assert engine.search(query).total == 0


def test_browsing_and_schemas_are_as_ever(engine: SemanticEngine) -> None:
    """Without text, everything is found; schemas are found by words."""
    engine.apply([dataset("cats", "cat"), dataset("cars", "car")], [])
    engine.schemas.apply([dataset("cat", "cat")], [])
    assert engine.search(Query()).total == 2
    assert [hit.uri for hit in engine.schemas.search(Query("cat")).hits] == [uri("cat")]
    assert engine.schemas.search(Query("kitten")).total == 0
    assert next(hit.uri for hit in engine.similar(uri("cats"), 5)) == uri("cats")
    assert sorted(of for of, _ in engine.stamps()) == [uri("cars"), uri("cats")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"publishers": ("did:plc:bob",)}, ["b"]),
        ({"tags": ("pets",)}, ["a"]),
        ({"tags": ("pets", "none")}, []),
        ({"min_samples": 5}, ["b"]),
        ({"structures": ("s",)}, ["a"]),
        ({"without": (uri("a"),)}, []),
    ],
)
def test_neighbours_pass_the_filters(engine: SemanticEngine, given: dict[str, Any], expected: list[str]) -> None:
    """Filters hold for what is found by meaning."""
    engine.apply(
        [
            dataset("a", "cat", tags=("pets",), samples=1, structure="s"),
            dataset("b", "cat fur", did="did:plc:bob", samples=9, structure="t"),
        ],
        [],
    )
    assert keys(engine, Query("kitten", **given)) == expected
    assert engine.search(Query("kitten", **given)).total == len(expected)


def test_rank_fusion() -> None:
    """Both is better than one; of equals, words come first; each once."""
    assert fused(["a", "b"], ["c", "b"]) == ["b", "a", "c"]
    assert fused([], ["x", "y"]) == ["x", "y"]
    assert fused(["x", "y"], []) == ["x", "y"]


# Counting and paging


def shelf(count: int) -> list[Document]:
    """Datasets that match "kitten sounds" by words, by meaning, by both, or not at all."""
    names = ["kitten sounds", "sounds of volcano lava ash eruption lava", "cat", "cat fur pet", "volcano lava"]
    return [
        dataset(
            f"{i:03}",
            names[i % 5],
            tags=(f"tag{i % 3}", "Common" if i % 2 else "common"),
            license=["mit", "cc0-1.0", None][i % 3],
            created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=i),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("given", [{}, {"tags": ("tag1",)}, {"licenses": ("mit",), "tags": ("tag0",)}])
def test_totals_and_facets_count_all_hits(engine: SemanticEngine, given: dict[str, Any]) -> None:
    """The total is how many hits there are on all pages; facets count the same, but for their own filter."""
    documents = {document.uri: document for document in shelf(60)}
    engine.apply(list(documents.values()), [])
    everything = [documents[uri(key)] for key in all_pages(engine, Query("kitten sounds", limit=7))]
    found = all_pages(engine, Query("kitten sounds", limit=7, **given))
    assert len(found) == len(set(found)) > 3
    query: Query | None = Query("kitten sounds", limit=7, facets=FACETS, **given)
    while query:
        page = engine.search(query)
        assert page.total == len(found)
        passing = [d for d in everything if "licenses" not in given or d.license == "mit"]
        passing = [d for d in passing if set(given.get("tags", ())) <= set(d.tags)]
        assert page.facets["publisher"] == {"did:plc:alice": len(passing)}
        for_license = [d for d in everything if set(given.get("tags", ())) <= set(d.tags)]
        assert page.facets["license"] == Counter(d.license for d in for_license if d.license)
        query = replace(query, cursor=page.cursor) if page.cursor else None


@pytest.mark.parametrize("limit", [1, 7, 25, 60, 100])
def test_pages_neither_repeat_nor_skip(engine: SemanticEngine, limit: int) -> None:
    """All pages together are what one page would be, in the same order, beyond what was fused as well."""
    engine.apply(shelf(300), [])
    found = all_pages(engine, Query("kitten sounds", limit=limit))
    assert found == keys(engine, Query("kitten sounds", limit=1_000))
    # All that match by words, and the 50 that are nearest.
    assert len(found) == len(set(found)) >= 120
    assert engine.search(Query("kitten sounds")).total == len(found)


def test_pages_are_stable_while_documents_come_and_go(engine: SemanticEngine) -> None:
    """What is there all the time is shown once, whatever is stored and removed between the pages."""
    documents = shelf(200)
    engine.apply(documents, [])
    expected = keys(engine, Query("kitten sounds", limit=1_000))
    steps = iter(range(1_000))

    def between() -> None:
        step = next(steps)
        new = [dataset(f"new{step}-{i}", name) for i, name in enumerate(["kitten sounds", "cat", "sounds"])]
        engine.apply([*new, replace(documents[-step - 1], description="now changed")], [uri(f"{step * 3:03}")])

    found = all_pages(engine, Query("kitten sounds", limit=9), between)
    steps_taken = next(steps)
    assert steps_taken > 5
    assert len(found) == len(set(found))
    touched = {f"{step * 3:03}" for step in range(steps_taken)} | {f"{199 - step:03}" for step in range(steps_taken)}
    assert {key for key in expected if key not in touched} <= set(found)


def test_pages_of_neighbours_only(engine: SemanticEngine) -> None:
    """Where nothing matches by words, the neighbours have pages, too, and each says how many there are."""
    engine.apply([dataset(f"{i}", "cat") for i in range(20)], [])
    query = Query("kitten", limit=6)
    first = engine.search(query)
    second = engine.search(replace(query, cursor=first.cursor))
    assert (first.total, second.total, len(second.hits)) == (20, 20, 6)
    assert len(set(all_pages(engine, query))) == 20


@pytest.mark.parametrize(
    "position",
    [
        ["semantic_00000000", "", [], []],
        ["TABLE", 7, [], []],
        ["TABLE", "", [1, 1], [0, 0]],
        ["TABLE", "", [1], [0, 0]],
        ["TABLE", "", [-1], [0]],
        ["TABLE", "", ["1"], [0]],
        ["TABLE", "", [1], [10**9]],
        ["TABLE", "", [*range(1, 1_000)], []],
        ["TABLE", "nonsense", [], []],
        ["TABLE", ""],
    ],
)
def test_bad_cursors(engine: SemanticEngine, database_url: str, position: list[Any]) -> None:
    """A cursor that was not given out here is refused."""
    engine.apply([dataset("cats", "cat")], [])
    position = [tables(database_url)[0] if value == "TABLE" else value for value in position]
    query = Query("kitten")
    with pytest.raises(BadCursor):
        engine.search(replace(query, cursor=cursors.encode("semantic", query, position)))
    with pytest.raises(BadCursor):
        engine.search(replace(query, cursor=cursors.encode("tantivy", query, [1.0, 1, 1, []])))


# Keeping vectors


class Counting(Embedder):
    """Remembers what it was asked to embed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def document(self, text: str) -> Vector | None:
        self.asked.append(text)
        return super().document(text)


def test_only_changed_texts_are_embedded(model_folder: Path, database_url: str, tmp_path: Path) -> None:
    """A document whose text is as it was keeps its vector, also when the rest of it changed."""
    model = Counting(model_folder)
    engine = SemanticEngine(TantivyEngine(tmp_path / "search"), model, database_url)
    engine.apply([dataset("a", "cat", tags=("x",)), dataset("b", "car")], [])
    assert model.asked == ["cat. x", "car"]
    engine.apply([dataset("a", "cat", tags=("x",), samples=7), dataset("b", "lava")], [])
    assert model.asked == ["cat. x", "car", "lava"]
    assert keys(engine, Query("automobile")) == []
    assert keys(engine, Query("eruption")) == ["b"]
    engine.apply([], [uri("b")])
    assert keys(engine, Query("eruption")) == []
    engine.apply([dataset("b", "lava")], [uri("b")])
    assert keys(engine, Query("eruption")) == ["b"]
    engine.clear()
    assert engine.search(Query("eruption")).total == engine.count() == 0
    engine.close()


def test_switching_on_asks_to_be_filled(model_folder: Path, database_url: str, tmp_path: Path) -> None:
    """Over an index that was filled without vectors, or with others, the engine counts nothing until it is fed."""
    documents = [dataset("a", "cat"), dataset("b", "car")]
    words = TantivyEngine(tmp_path / "search")
    words.apply(documents, [])
    words.close()
    for _ in range(2):  # interrupted before it was filled
        engine = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model_folder), database_url)
        assert engine.count() == 2  # as a reader
        engine.apply([], [])
        assert engine.count() == 0
        engine.close()
    engine = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model_folder), database_url)
    engine.apply([], [])
    engine.apply(documents, [])
    assert engine.count() == 2
    engine.apply([], [])
    assert engine.count() == 2
    engine.close()
    words = TantivyEngine(tmp_path / "search")  # the model is switched off for a while
    words.apply([dataset("a", "volcano")], [])
    words.close()
    engine = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model_folder), database_url)
    engine.apply([], [])
    assert engine.count() == 0
    engine.close()


async def test_the_feed_fills_what_is_switched_on(engine: SemanticEngine, database_url: str, tmp_path: Path) -> None:
    """An indexer that is started with a model embeds what it had indexed without."""
    store = await Store.open(database_url, "relay.example")
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("INSERT INTO repositories (did, signing_key) VALUES (%s, %s)", [DID, multikey(DID)])
    frame = Repo().commit(1, [("create", f"{DATASET}/1", frames.dataset("cat"))])
    events = parse(frame, Scope(("ac.foundation.dataset.",), {DID})).events
    await store.apply([Item(event, frame, None) for event in events], None)
    words = TantivyEngine(tmp_path / "search")
    await Feed(store, words).step()
    assert words.count() == 1
    words.close()
    feed = Feed(store, engine)
    await feed.start()
    assert engine.search(Query("kitten")).total == 0
    assert await feed.step() == 1
    assert engine.search(Query("kitten")).total == 1
    await feed.start()
    assert await feed.step() == 0
    await store.close()


def test_another_model_starts_anew(
    engine: SemanticEngine, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Vectors of another model, or of other dimensions, are replaced; who still has the old model searches by words."""
    engine.apply([dataset("a", "cat")], [])
    (before,) = tables(database_url)
    first = engine.search(Query("kitten", limit=1))
    assert first.total == 1
    engine._inner.close()  # the writer's lock
    other = Embedder(lsa.make(tmp_path / "other", TEXTS, 2))
    newer = SemanticEngine(TantivyEngine(tmp_path / "search"), other, database_url)
    newer.apply([], [])
    assert newer.count() == 0
    newer.apply([dataset("a", "cat")], [])
    (after,) = tables(database_url)
    assert before != after
    assert newer.search(Query("kitten")).total == 1
    assert caplog.records == []
    for _ in range(2):
        assert engine.search(Query("kitten")).total == 0
        assert engine.search(Query("cat")).total == 1
    assert [record.getMessage() for record in caplog.records] == [
        "searching by words only: no indexer has made vectors with the model of ATDATA_SEMANTIC_MODEL: set the same "
        "one there"
    ]
    newer.close()


def test_a_lost_table_is_made_anew(engine: SemanticEngine, database_url: str) -> None:
    """A writer whose table another one has dropped says so, and makes it when it is opened again, as the feed does."""
    engine.apply([dataset("a", "cat")], [])
    with psycopg.connect(database_url) as connection:
        connection.execute(f"DROP TABLE {tables(database_url)[0]}")
    with pytest.raises(NetworkError, match="has no vectors of the model in ATDATA_SEMANTIC_MODEL"):
        engine.apply([dataset("b", "cat")], [])
    engine.apply([], [])
    assert engine.count() == 0
    engine.apply([dataset("a", "cat"), dataset("b", "cat")], [])
    assert sorted(keys(engine, Query("kitten"))) == ["a", "b"]


def test_without_the_database_searches_go_on(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader whose database is gone finds by words, on every page, and says so once; a writer tells its caller."""
    caplog.set_level(logging.WARNING, "atdata_backend")
    words = TantivyEngine(tmp_path / "search")
    words.apply([dataset(f"{i}", "cat") for i in range(3)], [])
    engine = SemanticEngine(words, Embedder(model_folder), "postgresql://postgres@127.0.0.1:9/none")
    assert len(set(all_pages(engine, Query("cat", limit=2)))) == 3
    assert engine.search(Query("kitten")).total == 0
    ours = [record.getMessage() for record in caplog.records if record.name == "atdata_backend.search.semantic"]
    assert len(ours) == 1
    assert "searching by words only" in ours[0]
    with pytest.raises(NetworkError, match=r"the vectors in the database none at 127\.0\.0\.1 cannot be used"):
        engine.apply([dataset("x", "cat")], [])
    engine.close()


def test_a_database_without_pgvector(model_folder: Path, database_url: str, tmp_path: Path) -> None:
    """Who may not add pgvector is told who may."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE semantic_reader LOGIN")
    try:
        url = make_conninfo(database_url, user="semantic_reader")
        engine = SemanticEngine(TantivyEngine(tmp_path / "search"), Embedder(model_folder), url)
        with pytest.raises(ConfigError, match="as a superuser, run `CREATE EXTENSION vector`"):
            engine.apply([], [])
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        with pytest.raises(ConfigError, match='GRANT USAGE, CREATE ON SCHEMA public TO "semantic_reader"'):
            engine.apply([], [])
        engine.close()
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP ROLE semantic_reader")


# The model


def test_vectors_are_means_of_tokens(tmp_path: Path) -> None:
    """A vector is the mean over the tokens, or the first one, of length one; the prompts of the folder go before."""
    vectors = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=np.float32)
    folder = lsa.save(tmp_path / "model", ["a", "b", "c"], vectors)
    model = Embedder(folder)
    assert model.dimensions == 2
    assert np.allclose(model.document("A b"), np.array([3, 1]) / np.sqrt(10))
    assert model.document("b c") is None  # of no length
    assert model.document("") is None
    assert model.document("unknown") is None
    prompted = Embedder(lsa.save(tmp_path / "prompted", ["a", "b", "c"], vectors, prompts={"query": "b "}))
    assert np.allclose(prompted.query("a"), model.document("b a"))
    assert np.allclose(prompted.document("a"), [1, 0])
    assert prompted.id != model.id
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert np.allclose(Embedder(folder).document("a b"), [1, 0])
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    assert np.allclose(Embedder(folder).document("b b b a a"), [0, 1])


def test_likeness_starts_where_unrelated_texts_are(tmp_path: Path) -> None:
    """A model that finds everything alike has a higher bound."""
    words = sorted({word for text in embedding._UNRELATED for word in text.split()})
    chance = np.random.default_rng(1).normal(size=(len(words), 20)).astype(np.float32)
    apart = Embedder(lsa.save(tmp_path / "apart", words, chance))
    alike = Embedder(lsa.save(tmp_path / "alike", words, chance + 3))
    assert apart.likeness(0) < 0.2 < 0.8 < alike.likeness(0) < alike.likeness(0.3) < alike.likeness(1) == 1


def _modules(*types: str) -> str:
    return json.dumps([{"type": f"sentence_transformers.models.{name}", "path": f"1_{name}"} for name in types])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("onnx/model.onnx", None, "onnx/model.onnx is missing"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("modules.json", None, "modules.json is missing"),
        ("modules.json", "{", "modules.json cannot be read"),
        ("modules.json", "{}", "modules.json is not what it should be"),
        ("modules.json", "[7]", "modules.json does not list modules"),
        ("modules.json", "[]", "no module Pooling"),
        ("modules.json", _modules("Transformer", "Pooling", "Dense"), "a module Dense, which is not supported"),
        ("1_Pooling/config.json", None, "asks for no pooling, not mean or cls"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "asks for max_tokens, not mean or cls"),
        ("config_sentence_transformers.json", '{"prompts": 7}', "prompts in config_sentence_transformers.json"),
        ("onnx/model.onnx", "no model", "."),
        ("tokenizer.json", "{}", "."),
    ],
)
def test_unfit_folders_are_named(broken: Path, name: str, content: str | None, message: str) -> None:
    """A folder that is no model is a mistake in the settings, with the next thing to try."""
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        _ = Embedder(broken).id
    assert str(broken) in str(raised.value)
    assert "ATDATA_SEMANTIC_MODEL" in str(raised.value)


def test_a_missing_extra_is_named(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a model in the settings says how to install it."""
    monkeypatch.setattr(embedding, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(
        ConfigError, match=r"onnxruntime cannot be imported: run `pip install 'atdata-network\[semantic"
    ):
        Embedder(model_folder)


def test_nothing_is_loaded_without_a_model(tmp_path: Path) -> None:
    """Without the setting, neither the extra nor these modules are imported."""
    code = (
        "import sys; from atdata_backend.settings import BackendSettings\n"
        "engine = BackendSettings.load().open_engine(); engine.apply([], []); engine.close()\n"
        "print(type(engine).__name__, [m for m in sys.modules if 'onnx' in m or 'tokenizers' in m or 'semantic' in m])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ATDATA_")}
    environment |= {"ATDATA_DATABASE_URL": "postgresql://none", "ATDATA_SEARCH_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "TantivyEngine []\n", ran.stderr
