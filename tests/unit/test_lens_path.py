"""Views through published lenses: which are registered here, what is composed of them, what is missing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import answers
import numpy as np
import pytest
from answers import ALICE, Network, hop, lens, path, refusal, serving, view
from numpy.typing import NDArray
from shard_files import packed_shard

import atdata
from atdata import Dataset, DictSample, load_dataset
from atdata.errors import LensError
from atdata.lens import read_as
from atdata.nsid import DATASET, SAMPLE_SCHEMA
from atdata.schema import schema_to_type

FULL, SIMPLE, NAMED = (f"at://{ALICE}/{SAMPLE_SCHEMA}/{name}" for name in ("full", "simple", "named"))
URI = f"at://{ALICE}/{DATASET}/x"


@atdata.packable
class Full:
    image: NDArray[np.uint8]
    label: str
    score: float


@atdata.packable
class Simple:
    label: str
    score: float


@atdata.packable
class SimpleToo:
    """Of the same structure."""

    score: float
    label: str


@atdata.packable
class Named:
    name: str
    origin: str | None = None


@atdata.packable
class Name:
    """Narrower."""

    name: str


pytestmark = pytest.mark.usefixtures("own_lenses")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """An AppView that has a dataset of full samples, and its shards."""
    with serving(Network()) as fake:
        monkeypatch.setenv("ATDATA_PLC_URL", fake.url)
        monkeypatch.delenv("ATDATA_APPVIEW", raising=False)
        fake.files["/full.tar"] = packed_shard(Full(np.zeros(2, np.uint8), f"n{i}", i / 2) for i in range(3))
        record = answers.dataset("full", FULL, f"{fake.url}/full.tar")
        fake.answers["resolveDataset"] = {"dataset": view(record), "schema": view(answers.schema(Full), "full")}
        yield fake


SIMPLIFY = lens("simplify", FULL, SIMPLE, "lenses/simple.py:simplify_getter")
NAME = lens("name-it", SIMPLE, NAMED, "lenses/names.py:Names.name")
THERE = path(hop(Full, Simple, SIMPLIFY), hop(Simple, Named, NAME))


def register_simplify() -> None:
    @atdata.lens
    def simplify_getter(source: Full) -> Simple:
        return Simple(source.label, source.score)

    @simplify_getter.putter
    def put(view: Simple, source: Full) -> Full:
        return Full(source.image, view.label, view.score)


def register_name() -> None:
    """From another class than `simplify_getter` gives."""

    @atdata.lens
    def name(source: SimpleToo) -> Named:
        return Named(f"{source.label}/{source.score}")

    @name.putter
    def put(view: Named, source: SimpleToo) -> SimpleToo:
        return SimpleToo(source.score, view.name.split("/")[0])


def test_a_path_of_registered_lenses_is_followed(fake: Network) -> None:
    """A dataset that was loaded through an AppView is viewed through lenses that lead between other classes.

    Neither its own type, which was made of its schema, nor the classes between the lenses are the same.
    """
    register_simplify()
    register_name()
    fake.answers["getLensPath"] = answers.paths(THERE)
    dataset = load_dataset(URI, appview=fake.url, split="train")
    named = dataset.as_type(Named)
    assert fake.asked[-1] == (
        "getLensPath",
        {"from": [FULL], "to": [answers.key(Named)], "maxHops": ["4"], "k": ["10"]},
    )
    assert named.sample_type is Named
    assert [sample.name for sample in named] == ["n0/0.0", "n1/0.5", "n2/1.0"]
    assert fake.methods == ["resolveDataset", "getLensPath", "/full.tar"]
    lens = named._lens
    assert lens is not None
    changed = lens.put(Named("new/9"), Full(np.ones(2, np.uint8), "old", 0.5))
    assert (changed.label, changed.score, changed.image.tolist()) == ("new", 0.5, [1, 1])


def test_lenses_that_lead_from_type_to_type_need_no_appview(fake: Network) -> None:
    """Several hops are followed, and nobody is asked."""
    register_simplify()

    @atdata.lens
    def name(source: Simple) -> Named:
        return Named(source.label)

    dataset = Dataset[Full](f"{fake.url}/full.tar")
    dataset._appview = fake.url
    assert [sample.name for sample in dataset.as_type(Named)] == ["n0", "n1", "n2"]
    assert fake.methods == ["/full.tar"]


def test_an_appview_of_the_environment_is_asked(fake: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """For datasets that were not loaded through one, by the structure of their type."""
    register_simplify()
    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple, SIMPLIFY)))
    dataset = Dataset[Full](f"{fake.url}/full.tar")
    with pytest.raises(LensError, match="no lens leads from Full to SimpleToo; declare one"):
        dataset.as_type(SimpleToo)
    monkeypatch.setenv("ATDATA_APPVIEW", fake.url)
    assert [sample.score for sample in dataset.as_type(SimpleToo)] == [0.0, 0.5, 1.0]
    assert fake.asked[0][1]["from"] == [answers.key(Full)]


def test_a_view_can_be_viewed_again(fake: Network) -> None:
    """What a lens has made is read as the class that the next one takes."""
    register_simplify()
    register_name()
    fake.answers["getLensPath"] = answers.paths(path(hop(Simple, Named, NAME)))
    dataset = Dataset[Full](f"{fake.url}/full.tar").as_type(Simple)
    dataset._appview = fake.url
    assert [sample.name for sample in dataset.as_type(Named)] == ["n0/0.0", "n1/0.5", "n2/1.0"]
    assert fake.asked[0][1]["from"] == [answers.key(Simple)]


def test_what_needs_no_code_needs_none(fake: Network) -> None:
    """The same structure under another name, and a narrower one, are read as they are stored."""
    dataset = load_dataset(URI, appview=fake.url, split="train")
    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple)))
    assert [sample.label for sample in dataset.as_type(SimpleToo)] == ["n0", "n1", "n2"]
    fake.answers["getLensPath"] = answers.paths(path())
    assert [sample.label for sample in dataset.as_type(Full)] == ["n0", "n1", "n2"]


@atdata.packable
class Score:
    """Narrower than the dataset's structure, which has it; nobody has published it."""

    score: float


def test_a_narrower_type_that_nobody_published_needs_no_lens(fake: Network) -> None:
    """What `datasets_loadable_as(T)` finds by its fields, `as_type(T)` reads, as `load(T)` does."""
    fake.answers["getLensPath"] = refusal(404, "SchemaNotFound", "to: no schema of it is here")
    dataset = load_dataset(URI, appview=fake.url, split="train")
    scores = dataset.as_type(Score)
    assert [(type(sample), sample.score) for sample in scores] == [(Score, 0.0), (Score, 0.5), (Score, 1.0)]
    # Also after a lens, whose samples are read as the narrower type.
    register_simplify()
    full = Dataset[Full](f"{fake.url}/full.tar").as_type(Simple)
    full._appview = fake.url
    assert [sample.score for sample in full.as_type(Score)] == [0.0, 0.5, 1.0]


def test_where_lenses_are_missing_a_type_that_needs_none_is_told_of(
    fake: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an AppView, or with one that fails, nobody knows what a lens would do; one may still load directly."""
    monkeypatch.setattr("atdata.network._pause", lambda _: None)
    fake.answers["getLensPath"] = refusal(500, "InternalServerError")
    advice = r"; or read the samples as they are stored: load_dataset\(uri, Score\)$"
    for dataset in (Dataset[Full](f"{fake.url}/full.tar"), load_dataset(URI, appview=fake.url, split="train")):
        with pytest.raises(LensError, match=f"leads from Full to Score; .*{advice}"):
            dataset.as_type(Score)
        with pytest.raises(LensError, match=r"[^)]$"):
            dataset.as_type(Named)


def test_a_projection_after_a_lens(fake: Network) -> None:
    """Samples of the lens's type are read as the narrower one; putting back keeps what that does not know."""
    register_simplify()
    register_name()
    fake.answers["getLensPath"] = answers.paths(path(*THERE["hops"], hop(Named, Name)))
    dataset = load_dataset(URI, appview=fake.url, split="train").as_type(Name)
    assert [sample.name for sample in dataset] == ["n0/0.0", "n1/0.5", "n2/1.0"]


def test_what_is_missing_is_listed_with_where_it_is(fake: Network) -> None:
    """Repository, commit and path of each lens that is not registered; nothing is fetched but the path."""
    register_simplify()
    fake.answers["getLensPath"] = answers.paths(THERE)
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(ValueError, match="no lens registered here leads from Full to Named") as error:
        dataset.as_type(Named)
    said = str(error.value)
    assert said.endswith("install and import: name-it (at://" + ALICE + "/ac.foundation.dataset.lens/name-it): "
                         "https://example.com/lenses at abc123, lenses/names.py:Names.name")  # fmt: skip
    assert "simplify" not in said
    assert fake.methods == ["resolveDataset", "getLensPath"]


def test_of_several_paths_one_that_is_registered_is_taken(fake: Network) -> None:
    """Though it be longer; where none is, the one is named for which there is least to install."""
    direct = path(hop(Full, Named, lens("shortcut", FULL, NAMED, "x.py:shortcut")))
    longer = path(*(hop(Full, Full, lens(f"turn{i}", FULL, FULL, f"x.py:turn{i}")) for i in range(3)))
    fake.answers["getLensPath"] = answers.paths(longer, direct, THERE)
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(LensError, match="install and import: shortcut ") as error:
        dataset.as_type(Named)
    assert "turn" not in str(error.value)
    register_simplify()
    register_name()
    assert next(iter(dataset.as_type(Named))).name == "n0/0.0"


def test_a_lens_of_the_same_ends_and_another_name_is_not_taken(fake: Network) -> None:
    """A path names its lenses: another function may do another thing."""

    @atdata.lens
    def invent(source: Full) -> Simple:
        return Simple("?", 0.0)

    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple, SIMPLIFY)))
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(LensError, match="install and import: simplify"):
        dataset.as_type(Simple)


def test_a_lens_of_the_same_name_and_other_ends_is_not_taken(fake: Network) -> None:
    """What it takes is not what there is."""

    @atdata.lens
    def simplify_getter(source: Named) -> Simple:
        return Simple("?", 0.0)

    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple, SIMPLIFY)))
    with pytest.raises(LensError, match="install and import: simplify"):
        load_dataset(URI, appview=fake.url, split="train").as_type(Simple)


def test_a_lens_whose_record_names_no_code_is_known_by_its_name(fake: Network) -> None:
    """And when it is not registered, its publisher is who to ask."""
    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple, lens("simplify_getter", FULL, SIMPLE))))
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(LensError, match=r"of whose code the record says nothing: ask @alice\.test"):
        dataset.as_type(Simple)
    register_simplify()
    assert next(iter(dataset.as_type(Simple))).label == "n0"


def test_steps_that_do_not_fit_are_no_path(fake: Network) -> None:
    """An AppView that puts lenses together whose types have nothing to do with each other is not believed."""
    register_simplify()
    register_name()
    fake.answers["getLensPath"] = answers.paths(
        path(hop(Simple, Named, NAME), hop(Full, Simple, SIMPLIFY)), path(hop(Full, Simple, SIMPLIFY))
    )
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(LensError, match="no path of published lenses leads to Named"):
        dataset.as_type(Named)


PROBLEMS: dict[str, tuple[Any, str]] = {
    "no path": (answers.paths(), "no path of published lenses leads to Named"),
    "no such structure": (refusal(404, "SchemaNotFound", "to: no schema of it is here"), "to: no schema of it is here"),
    "a fault": (refusal(500, "InternalServerError"), "500 InternalServerError"),
    "nonsense": ({"paths": 7}, "from: expected an object"),
}


@pytest.mark.parametrize(("answer", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_whatever_the_appview_says_a_missing_lens_is_a_value_error(
    fake: Network, monkeypatch: pytest.MonkeyPatch, answer: Any, problem: str
) -> None:
    """It names the types, the AppView, and what that said."""
    monkeypatch.setattr("atdata.network._pause", lambda _: None)
    fake.answers["getLensPath"] = answer
    dataset = load_dataset(URI, appview=fake.url, split="train")
    with pytest.raises(ValueError, match=f"leads from Full to Named; .*{fake.url}[:,] .*{problem}"):
        dataset.as_type(Named)


def test_a_schema_that_the_appview_lacks_is_asked_for_by_its_structure(fake: Network) -> None:
    """Somebody else may have published the same."""
    register_simplify()
    fake.answers["getLensPath"] = lambda query: (
        refusal(404, "SchemaNotFound", "from: none")
        if query["from"] == [FULL]
        else answers.paths(path(hop(Full, Simple, SIMPLIFY)))
    )
    dataset = load_dataset(URI, appview=fake.url, split="train")
    assert next(iter(dataset.as_type(Simple))).label == "n0"


def test_what_is_no_sample_type_is_no_question(fake: Network) -> None:
    """Nobody is asked for a way to a list, nor from samples without a type to what they do not have."""
    dataset = load_dataset(URI, appview=fake.url, split="train")
    for view_type in (list, DictSample):
        with pytest.raises(LensError, match="no lens leads from"):
            dataset.as_type(view_type)
    assert fake.methods == ["resolveDataset"]


def test_a_hit_is_loaded_along_its_path(fake: Network) -> None:
    """`datasets_loadable_as(T)` and then `load(T)`: through the lenses where there are any, else as it is stored."""
    register_simplify()
    shown = fake.answers["resolveDataset"]
    assert isinstance(shown, dict)
    fake.answers["resolveSchema"] = {"schema": view(answers.schema(Simple), "simple"), "versions": [], "ignored": []}
    fake.answers["getSchemas"] = {"schemas": [view(answers.schema(Full), "full")], "notFound": []}
    fake.answers["getLensPath"] = answers.paths(path(hop(Full, Simple, SIMPLIFY)))
    appview = atdata.AppView(fake.url)
    for way, is_through_lens in ((path(hop(Full, Simple, SIMPLIFY)), True), (path(hop(Full, Simple)), False)):
        fake.answers["searchDatasets"] = {"datasets": [{**shown["dataset"], "path": way}], "total": 1}
        fake.asked.clear()
        (hit,) = appview.datasets_loadable_as(Simple)
        assert [type(sample) for sample in hit.load(Simple, split="train")] == [Simple] * 3
        assert ("getLensPath" in fake.methods) == is_through_lens


def test_views_along_paths_can_be_sent_to_other_processes(fake: Network) -> None:
    """What is between the lenses is made anew there."""
    lens = read_as(Full, Simple)
    again = pickle.loads(pickle.dumps(lens))
    assert again(Full(np.zeros(1, np.uint8), "a", 1.0)) == Simple("a", 1.0)


def test_reading_as_another_type_keeps_what_that_does_not_know() -> None:
    """Putting back changes the fields of the view, and no others."""
    lens = read_as(Full, Simple)
    source = Full(np.arange(3, dtype=np.uint8), "a", 1.0)
    assert lens.put(Simple("b", 2.0), source) == Full(source.image, "b", 2.0)
    assert lens.put(lens.get(source), source) == source


def test_decoded_types_are_types_like_any_other() -> None:
    """A view of a type that was made of a schema is read back as the class that lenses take."""
    decoded: Any = schema_to_type(answers.schema(Full))
    assert read_as(decoded, Full)(decoded(np.zeros(1, np.uint8), "a", 1.0)) == Full(np.zeros(1, np.uint8), "a", 1.0)
