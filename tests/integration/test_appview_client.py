"""`atdata.AppView` against the AppView itself, over HTTP: what the one asks, the other answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import holdings as holdings_module
import numpy as np
import pytest
from holdings import ALICE, BOB, Holdings, dataset, label, lens, running
from numpy.typing import NDArray
from shard_files import packed_shard
from web import Reply, serve

import atdata
from atdata import AppView, load_dataset
from atdata.atmosphere import AtmosphereIndex
from atdata.cid import generate_cid
from atdata.errors import LensError, NotFoundError
from atdata.nsid import DATASET, LABEL, LENS, SAMPLE_SCHEMA
from atdata.schema import type_to_schema
from atdata_appview.app import create_app
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine


@atdata.packable
class Full:
    image: NDArray[np.uint8]
    label: str
    score: float


@atdata.packable
class Simple:
    text: str
    score: float


@atdata.packable
class Score:
    """Narrower than both, and published by nobody."""

    score: float


pytestmark = pytest.mark.usefixtures("own_lenses")


@pytest.fixture
def holdings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holdings]:
    """Alice has schemas of full and of simple samples and a lens between them, Bob one that equals the latter."""
    monkeypatch.setattr(holdings_module, "cid", generate_cid)
    monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
    monkeypatch.setenv("ATDATA_PLC_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("ATDATA_APPVIEW", raising=False)
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test")
    held.account(BOB, "bob.test")
    for did, rkey, name, sample_type, version in (
        (ALICE, "full", "Full", Full, "1.0.0"),
        (ALICE, "simple", "Simple", Simple, "1.9.0"),
        (ALICE, "simple2", "Simple", Simple, "1.10.0"),
        (BOB, "easy", "Easy", Simple, "0.1.0"),
    ):
        record = type_to_schema(sample_type, name=name, version=version, created_at=holdings_module.START)
        held.add(did, SAMPLE_SCHEMA, rkey, record.to_record())
    code = {"repository": "https://example.com/lenses", "commit": "abc123", "path": "simple.py:simplify"}
    held.add(ALICE, LENS, "simplify", lens("simplify", FULL, SIMPLE, getterCode=code, putterCode=code))
    yield held
    engine.close()


@pytest.fixture
def appview(holdings: Holdings, tmp_path: Path) -> Iterator[AppView]:
    settings = AppViewSettings(
        database_url=holdings.database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0
    )
    with running(create_app(settings)) as url:
        yield AppView(url)


FULL, SIMPLE, SIMPLE_2 = (f"at://{ALICE}/{SAMPLE_SCHEMA}/{rkey}" for rkey in ("full", "simple", "simple2"))
EASY = f"at://{BOB}/{SAMPLE_SCHEMA}/easy"


def simplify() -> None:
    @atdata.lens
    def simplify(source: Full) -> Simple:
        return Simple(source.label, source.score)


def test_searches_are_paged_to_the_end(holdings: Holdings, appview: AppView) -> None:
    """Each match once, with filters, totals and facets."""
    rows = [(f"d{i}", dataset(f"Owls {i}", FULL, i, tags=["birds"] + ["even"] * (i % 2 == 0))) for i in range(130)]
    uris = holdings.add_all(ALICE, DATASET, rows)
    holdings.add(BOB, DATASET, "bats", dataset("Bats", EASY, license="MIT", tags=["night"]))
    found = appview.search_datasets("owls", facets=["tags"], sort="newest")
    assert [hit.uri for hit in found] == uris[::-1]
    assert found.total == 130
    assert found.facets["tags"] == {"birds": 130, "even": 65}
    assert len(list(appview.search_datasets(tags=["even"], publishers=["@alice.test"]))) == 65
    (bats,) = appview.search_datasets(fields=["text:str"], licenses=["MIT"], schemas=[EASY], storage=["external"])
    assert (bats.name, bats.publisher.handle, bats.verified) == ("Bats", "bob.test", True)
    assert list(appview.search_datasets("nothing of the kind")) == []


def test_look_ups(holdings: Holdings, appview: AppView) -> None:
    """By URI, by name, by version; what is not there is a LookupError that says what is."""
    uri = holdings.add(ALICE, DATASET, "one", dataset("digits", FULL))
    holdings.add(BOB, LABEL, "v1", label("mine", uri, version="1.0"))
    assert appview.get_dataset(f"at://alice.test/{DATASET}/one").uri == uri
    assert appview.get_schema(FULL).name == "Full"
    found = appview.resolve_dataset("@bob.test/mine@1.0")
    assert (found.dataset.uri, found.schema and found.schema.uri) == (uri, FULL)
    assert appview.resolve_label("bob.test", "mine").dataset_uri == uri
    assert appview.resolve_schema("alice.test", "Simple", version=">=1.2").version == "1.10.0"
    assert [shard.url for shard in appview.resolve_blobs(uri)][:1] == ["https://example.com/digits-000.tar"]
    assert {one.handle: one.schemas for one in appview.list_publishers()} == {"alice.test": 3, "bob.test": 1}
    assert appview.compare_schemas(FULL, SIMPLE).verdict == "breaking"
    assert appview.compare_schemas(SIMPLE, EASY).verdict == "identical"
    assert [one.name for one in appview.list_lenses(source=FULL)] == ["simplify"]
    assert [one.name for one in appview.list_lenses(target=EASY, equivalent=True)] == ["simplify"]
    assert appview.status().records["schema"] == 4
    for ask in (
        lambda: appview.get_dataset(f"at://{ALICE}/{DATASET}/none"),
        lambda: appview.resolve_dataset("@alice.test/none"),
        lambda: appview.resolve_label("alice.test", "none"),
        lambda: appview.resolve_schema("alice.test", "Simple", version=">2"),
    ):
        with pytest.raises(NotFoundError):
            ask()


def test_schemas_are_searched(appview: AppView, holdings: Holdings) -> None:
    """By words and by fields."""
    assert {one.name for one in appview.search_schemas(fields=["score:float"])} == {"Full", "Simple", "Easy"}
    assert [one.uri for one in appview.search_schemas("easy", publishers=["bob.test"])] == [EASY]


def test_similar_datasets(holdings: Holdings, appview: AppView) -> None:
    """With what they have in common."""
    one = holdings.add(ALICE, DATASET, "one", dataset("Owl calls at night", FULL, tags=["birds"]))
    two = holdings.add(BOB, DATASET, "two", dataset("Owl calls at dawn", FULL, tags=["birds"]))
    holdings.add(BOB, DATASET, "cars", dataset("Cars", SIMPLE))
    similar = appview.similar(one)
    assert similar[0].uri == two
    assert similar[0].similarity is not None
    assert similar[0].similarity.shared_tags == ("birds",)


def test_lens_paths_and_graphs(appview: AppView, holdings: Holdings) -> None:
    """Between URIs and types; schemas of one structure are one place."""
    for source, target in ((FULL, SIMPLE), (Full, Simple), (FULL, EASY), (Full, EASY)):
        (path,) = appview.find_lens_path(source, target)
        assert (str(path), path.is_invertible) == ("simplify", True)
    assert len(appview.find_lens_path(SIMPLE, FULL)) == 0
    graph = appview.lens_graph(FULL, depth=1, direction="out")
    assert {edge.name for edge in graph.edges if edge.kind == "lens"} == {"simplify"}
    with pytest.raises(NotFoundError):
        appview.find_lens_path(Score, FULL)


def test_from_finding_to_reading(holdings: Holdings, appview: AppView) -> None:
    """A dataset is found by type, loaded by name in one request, and viewed along the lens path."""
    shard = packed_shard(Full(np.zeros(2, np.uint8), f"n{i}", i / 2) for i in range(3))
    with serve(lambda path: Reply(shard)) as web:
        record = {**dataset("digits", FULL), "storage": {}}
        record["storage"] = {"$type": "ac.foundation.dataset.storageExternal", "urls": [f"{web.url}/full.tar"]}
        uri = holdings.add(ALICE, DATASET, "one", record)
        index = AtmosphereIndex(appview=appview)
        hits = {hit.uri: hit for hit in index.datasets_loadable_as(Simple)}
        assert set(hits) == {uri}
        dataset_of_full = load_dataset("@alice.test/digits", index=index, split="train")
        assert [sample.label for sample in dataset_of_full] == ["n0", "n1", "n2"]
        with pytest.raises(LensError, match="lenses at abc123, simple"):
            dataset_of_full.as_type(Simple)
        simplify()
        assert [sample.score for sample in dataset_of_full.as_type(Simple)] == [0.0, 0.5, 1.0]
        assert [type(sample) for sample in hits[uri].load(Simple, split="train")] == [Simple] * 3
        # Nobody has published this structure: by the fields, and read as it is stored.
        (narrow,) = index.datasets_loadable_as(Score)
        assert [sample.score for sample in narrow.load(Score, split="train")] == [0.0, 0.5, 1.0]


def test_what_the_appview_has_is_what_its_cid_says(holdings: Holdings, appview: AppView) -> None:
    """Odd as a record may be, it comes out of Postgres as it went in."""
    odd = {**dataset("odd", FULL), "more": {"z": [1, {"a": None, "$bytes": "gaFhAQ"}], "a": "Ω\u2028\U0001f600"}}
    odd["more"]["link"] = {"$link": generate_cid({})}
    uri = holdings.add(ALICE, DATASET, "odd", odd)
    assert dict(appview.get_dataset(uri).stored) == odd
