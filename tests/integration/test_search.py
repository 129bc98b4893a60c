"""Searching over XRPC: what can be loaded as a type, what is similar, schemas, and paging while everything changes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from holdings import ALICE, BOB, Asker, Holdings, dataset, lens, schema, serving

from atdata.nsid import DATASET, LENS, SAMPLE_SCHEMA
from atdata.structure import structure_of
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.base import SORTS
from atdata_backend.search.tantivy import TantivyEngine

Json = dict[str, Any]

TEXT: Json = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "str"}
NUMBER: Json = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "int"}


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test")
    held.account(BOB, "bob.test")
    yield held
    engine.close()


@pytest.fixture
def settings(holdings: Holdings, tmp_path: Path) -> AppViewSettings:
    return AppViewSettings(
        database_url=holdings.database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0
    )


@pytest.fixture
async def ask(settings: AppViewSettings) -> AsyncIterator[Asker]:
    """An AppView over what is there when it is first asked."""
    async with AsyncExitStack() as stack:

        class Late:
            asker: Asker | None = None

            async def __call__(self, method: str, **params: Any) -> Json:
                self.asker = self.asker or await stack.enter_async_context(serving(settings))
                return await self.asker(method, **params)

            async def get(self, method: str, **params: Any) -> Any:
                self.asker = self.asker or await stack.enter_async_context(serving(settings))
                return await self.asker.get(method, **params)

        yield Late()  # type: ignore[misc]


def names(answer: Json, key: str = "datasets") -> list[str]:
    return [view["record"]["name"] for view in answer[key]]


def fields(**types: Json) -> list[Json]:
    return [{"name": name, "fieldType": type_, "optional": False} for name, type_ in types.items()]


# --- What can be loaded as a type


@pytest.fixture
def types(holdings: Holdings) -> dict[str, str]:
    """Schemas: a caption, the same of another publisher, a wider one, and one from which a lens leads there."""
    made = {
        "caption": (ALICE, fields(text=TEXT)),
        "twin": (BOB, fields(text=TEXT)),
        "wider": (ALICE, fields(text=TEXT, likes=NUMBER)),
        "source": (BOB, fields(words=TEXT, stars=NUMBER)),
        "other": (BOB, fields(label=NUMBER)),
    }
    uris = {
        name: holdings.add(did, SAMPLE_SCHEMA, name, schema(name.title(), fields=its_fields))
        for name, (did, its_fields) in made.items()
    }
    putter = {"repository": "https://git.example/lenses", "commit": "0" * 40, "path": "a.py:put"}
    holdings.add(BOB, LENS, "l", lens("words to wider", uris["source"], uris["wider"], putterCode=putter))
    uris["missing"] = f"at://{ALICE}/{SAMPLE_SCHEMA}/missing"
    for day, (name, uri) in enumerate(uris.items()):
        holdings.add(ALICE, DATASET, name, dataset(f"{name} set", uri, day, tags=["odd" if day % 2 else "even"]))
    return uris


async def test_what_can_be_loaded_as_a_schema(types: dict[str, str], ask: Asker) -> None:
    """Datasets of it, of an equal or a wider one, and of those from which lenses lead there; each with its path."""
    answer = await ask("searchDatasets", loadableAs=types["caption"], sort="oldest")
    assert names(answer) == ["caption set", "twin set", "wider set", "source set"]
    assert answer["total"] == 4
    assert "truncated" not in answer
    paths = {view["record"]["name"]: view["path"] for view in answer["datasets"]}
    kinds = {name: [hop["kind"] for hop in path["hops"]] for name, path in paths.items()}
    assert kinds == {
        "caption set": [],
        "twin set": [],
        "wider set": ["projection"],
        "source set": ["lens", "projection"],
    }
    target = structure_of(schema(fields=fields(text=TEXT))).fingerprint
    assert {path["to"] for path in paths.values()} == {target}
    assert paths["twin set"]["fromSchema"] == types["twin"]
    assert paths["source set"]["fromSchema"] == paths["source set"]["hops"][0]["fromSchema"] == types["source"]
    assert paths["source set"]["hops"][0]["lens"]["record"]["name"] == "words to wider"
    assert (paths["source set"]["lenses"], paths["wider set"]["lenses"]) == (1, 0)


async def test_what_can_be_loaded_as_a_structure(types: dict[str, str], ask: Asker) -> None:
    """A fingerprint names a structure, whoever published schemas of it."""
    fingerprint = structure_of(schema(fields=fields(text=TEXT))).fingerprint
    by_name = await ask("searchDatasets", loadableAs=fingerprint, sort="oldest")
    assert names(by_name) == ["caption set", "twin set", "wider set", "source set"]
    unheard_of = await ask("searchDatasets", loadableAs="s1-" + "0" * 40)
    assert (unheard_of["datasets"], unheard_of["total"]) == ([], 0)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"q": "twin"}, ["twin set"]),
        ({"tags": "even"}, ["caption set", "wider set"]),
        ({"publishers": "bob.test"}, []),
        ({"schemas": "SOURCE"}, ["source set"]),
        ({"fields": "likes:int"}, ["wider set"]),
        ({"sort": "newest", "limit": 2}, ["source set", "wider set"]),
    ],
)
async def test_loadable_and_other_filters(
    params: dict[str, Any], found: list[str], types: dict[str, str], ask: Asker
) -> None:
    """All hold at once."""
    params = {name: types["source"] if value == "SOURCE" else value for name, value in params.items()}
    answer = await ask("searchDatasets", loadableAs=types["caption"], **{"sort": "oldest", **params})
    assert names(answer) == found


async def test_loadable_facets(types: dict[str, str], ask: Asker) -> None:
    """Only what can be loaded is counted."""
    answer = await ask("searchDatasets", loadableAs=types["caption"], facets="tags")
    assert answer["facets"]["tags"] == [{"value": "even", "count": 2}, {"value": "odd", "count": 2}]


@pytest.mark.parametrize("uri", ["missing", "nobody"])
async def test_loadable_as_a_schema_that_is_not_here(uri: str, types: dict[str, str], ask: Asker) -> None:
    """It stands for itself: the datasets that name it are of whatever structure it has."""
    answer = await ask("searchDatasets", loadableAs=types.get(uri, f"at://{BOB}/{SAMPLE_SCHEMA}/nobody"))
    assert names(answer) == (["missing set"] if uri == "missing" else [])
    for view in answer["datasets"]:
        assert (view["path"]["hops"], view["path"]["fromSchema"]) == ([], types["missing"])


async def test_loadable_as_a_schema_that_cannot_be_read(holdings: Holdings, ask: Asker) -> None:
    """It stands for itself, too, and lenses still lead to it."""
    odd = holdings.add(ALICE, SAMPLE_SCHEMA, "odd", {"$type": SAMPLE_SCHEMA, "name": "Odd", "fields": 7})
    source = holdings.add(ALICE, SAMPLE_SCHEMA, "source", schema(fields=fields(text=TEXT)))
    holdings.add(ALICE, LENS, "l", lens("to odd", source, odd))
    holdings.add(ALICE, DATASET, "a", dataset("of it", odd, 1))
    holdings.add(ALICE, DATASET, "b", dataset("from elsewhere", source, 2))
    answer = await ask("searchDatasets", loadableAs=odd, sort="oldest")
    assert names(answer) == ["of it", "from elsewhere"]
    assert [view["path"]["lenses"] for view in answer["datasets"]] == [0, 1]


async def test_loadable_from_too_many_structures(
    holdings: Holdings, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes the nearest structures, and says that there are more."""
    monkeypatch.setattr("atdata_appview.routes.datasets._STRUCTURES", 3)
    target = holdings.add(ALICE, SAMPLE_SCHEMA, "t", schema("T", fields=fields(text=TEXT)))
    for n in range(5):
        uri = holdings.add(ALICE, SAMPLE_SCHEMA, f"s{n}", schema(f"S{n}", fields=fields(**{f"x{n}": NUMBER})))
        holdings.add(ALICE, LENS, f"l{n}", lens(f"l{n}", uri, target))
        holdings.add(ALICE, DATASET, f"d{n}", dataset(f"d{n}", uri))
    answer = await ask("searchDatasets", loadableAs=target)
    assert answer["truncated"] is True
    assert answer["total"] == 2


NO_SCHEMAS = ["Digit", "s1-12", "s1-" + "A" * 40, f"at://{BOB}/{DATASET}/x", f"at://{BOB}/a.b.c/x"]


@pytest.mark.parametrize("value", ["", "at://", "at://nobody.test/a.b.c/x", "x" * 3_000, *NO_SCHEMAS])
async def test_odd_values_of_loadable(value: str, ask: Asker) -> None:
    """What is no schema's URI or fingerprint, or of a handle that nobody has, is an error that names the parameter.

    An empty answer would say that nothing can be loaded so.
    """
    response = await ask.get("searchDatasets", loadableAs=value)
    assert response.status_code == 400, response.text
    message = response.json()["message"]
    assert message.startswith("loadableAs")
    if value in NO_SCHEMAS:
        assert "takes the AT URI of a schema or a structure's fingerprint" in message
        assert value in message


# --- Size


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"minBytes": 1_000}, {"large"}),
        ({"maxBytes": 1_000}, {"small"}),
        ({"minBytes": 0}, {"small", "large"}),
        ({"minBytes": 10, "maxBytes": 10}, {"small"}),
        ({"minBytes": 10, "minSamples": 2}, {"large"}),
    ],
)
async def test_filters_by_bytes(params: Json, found: set[str], holdings: Holdings, ask: Asker) -> None:
    """Inclusive, and who does not say how many bytes there are is in no range of them."""
    holdings.add(ALICE, DATASET, "a", dataset("small", size={"bytes": 10, "samples": 1}))
    holdings.add(ALICE, DATASET, "b", dataset("large", size={"bytes": 10**12, "samples": 5}))
    holdings.add(ALICE, DATASET, "c", dataset("unknown", size={"samples": 5}))
    assert set(names(await ask("searchDatasets", **params))) == found


# --- What is similar


async def test_similar_datasets(holdings: Holdings, ask: Asker) -> None:
    """The most alike come first, with what they share; never the dataset itself, nor one that is not to be seen."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    uri = holdings.add(ALICE, DATASET, "a", dataset("Whale songs", digit, tags=["Bioacoustics", "sea"]))
    holdings.add(ALICE, DATASET, "b", dataset("Songs of whales", digit, tags=["bioacoustics", "land"]))
    holdings.add(BOB, DATASET, "c", dataset("Whale calls", f"at://{BOB}/{SAMPLE_SCHEMA}/x"))
    hidden = "did:plc:" + "c" * 24
    holdings.account(hidden, status="takendown")
    holdings.add(hidden, DATASET, "d", dataset("Whale songs again", digit))
    gone = holdings.add(ALICE, DATASET, "e", dataset("Whale songs once more", digit))
    holdings.delete(gone)
    answer = await ask("similarDatasets", uri=uri)
    assert names(answer) == ["Songs of whales", "Whale calls"]
    assert [view["similarity"] for view in answer["datasets"]] == [
        {"sharedTags": ["bioacoustics"], "sameStructure": True},
        {"sharedTags": [], "sameStructure": False},
    ]
    assert names(await ask("similarDatasets", uri=uri.replace(ALICE, "alice.test"), limit=1)) == ["Songs of whales"]


async def test_similar_to_what_is_not_here(holdings: Holdings, ask: Asker) -> None:
    """A dataset that is not here, or not to be seen, is not found, and of one that is like no other there are none."""
    lonely = holdings.add(ALICE, DATASET, "a", dataset("Unlike any other"))
    assert (await ask("similarDatasets", uri=lonely))["datasets"] == []
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    hidden = "did:plc:" + "c" * 24
    holdings.account(hidden, status="takendown")
    concealed = holdings.add(hidden, DATASET, "d", dataset("Whale songs"))
    for uri in (f"at://{ALICE}/{DATASET}/nothing", f"at://nobody.test/{DATASET}/a", digit, concealed):
        response = await ask.get("similarDatasets", uri=uri)
        assert (response.status_code, response.json()["error"]) == (404, "DatasetNotFound"), uri


# --- Schemas


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"q": "caption"}, ["Caption"]),
        ({"q": "capt"}, ["Caption"]),
        ({"q": "catpion"}, ["Caption"]),
        ({"q": "written"}, ["Caption"]),  # description
        ({"q": "waveform"}, ["Recording"]),  # a field
        ({"q": "float32"}, ["Recording"]),  # its type
        ({"q": "bob"}, ["Recording"]),  # the publisher
        ({"publishers": "@alice.test", "sort": "name"}, ["Caption"]),
        ({"fields": "waveform:ndarray"}, ["Recording"]),
        ({"fields": ["waveform", "text"]}, []),
        ({"sort": "name"}, ["Caption", "Recording"]),
    ],
)
async def test_search_schemas(params: Json, found: list[str], holdings: Holdings, ask: Asker) -> None:
    """By name, description, field, type and publisher, half-typed and misspelt."""
    sound = {"$type": "ac.foundation.dataset.schemaType#ndarray", "dtype": "float32"}
    holdings.add(ALICE, SAMPLE_SCHEMA, "c", schema("Caption", fields=fields(text=TEXT), description="As written."))
    holdings.add(BOB, SAMPLE_SCHEMA, "r", schema("Recording", fields=fields(waveform=sound)))
    holdings.add(ALICE, DATASET, "d", dataset("Captions and waveforms"))
    answer = await ask("searchSchemas", **params)
    assert names(answer, "schemas") == found
    assert answer["total"] == len(found)


async def test_schemas_are_marked_and_paged(holdings: Holdings, ask: Asker) -> None:
    """Where the words occur is marked; pages are complete."""
    rows = [(f"s{n}", schema(f"Caption {n}", fields=fields(text=TEXT))) for n in range(7)]
    holdings.add_all(ALICE, SAMPLE_SCHEMA, rows)
    seen, cursor = list[str](), {}
    while True:
        answer = await ask("searchSchemas", q="caption", limit=3, **cursor)
        seen += [view["highlights"]["name"] for view in answer["schemas"]]
        if "cursor" not in answer:
            break
        cursor = {"cursor": answer["cursor"]}
    assert sorted(seen) == [f"<mark>Caption</mark> {n}" for n in range(7)]


# --- Paging while everything changes


def _record(n: int, chance: random.Random) -> Json:
    words = " ".join(chance.choices(["speech", "song", "call", "noise"], k=1 + n % 9))
    name = chance.choice(["Speech", "Read speech", "Field recordings"])
    return dataset(name, day=n % 5, description=f"speech {words}", size={"samples": n % 7} if n % 2 else {})


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("q", ["speech", ""])
async def test_paging_while_records_come_and_go(
    sort: str, q: str, holdings: Holdings, settings: AppViewSettings
) -> None:
    """Whoever was there throughout comes exactly once, though an AppView that has just started is asked each page."""
    chance = random.Random(1)
    stay = holdings.add_all(ALICE, DATASET, ((f"stay{n}", _record(n, chance)) for n in range(300)))
    go = holdings.add_all(ALICE, DATASET, ((f"go{n}", _record(n, chance)) for n in range(60)))
    await _page_through(sort, q, holdings, lambda: serving(settings), stay, go, chance, limit=50, portion=15)


async def _page_through(
    sort: str,
    q: str,
    holdings: Holdings,
    start: Callable[[], Any],
    stay: list[str],
    go: list[str],
    chance: random.Random,
    *,
    limit: int,
    portion: int,
) -> None:
    seen: list[str] = []
    cursor: Json = {}
    for step in range(1_000):
        async with start() as ask:
            answer = await ask("searchDatasets", sort=sort, limit=limit, **({"q": q} if q else {}), **cursor)
        seen += [view["uri"] for view in answer["datasets"]]
        if "cursor" not in answer:
            break
        cursor = {"cursor": answer["cursor"]}
        going, go = go[:portion], go[portion:]
        for uri in going:
            holdings.delete(uri)
        if going:
            coming = ((f"come{step}x{n}", _record(n, chance)) for n in range(portion))
            holdings.add_all(ALICE, DATASET, coming)
            holdings.engine.apply([], going)
    assert len(seen) == len(set(seen))
    assert set(stay) <= set(seen)


# --- Records that hits bring along


async def test_hits_bring_their_records_along(holdings: Holdings, ask: Asker) -> None:
    """They look as those of the database do, but for very large ones, which the database is asked for."""
    made = {
        "plain": dataset("Owl", tags=["birds"]),
        "odd": dataset("Owl \u2028 é 🦉", tags=["a", 7], license=["no text"], big=2**63 - 1),
        "large": dataset("Owl", description="of the night " * 1_000),
    }
    uris = [holdings.add(ALICE, DATASET, rkey, record, verified=rkey != "odd") for rkey, record in made.items()]
    found = (await ask("searchDatasets", q="owl"))["datasets"]
    assert all("highlights" in view for view in found)
    stored = (await ask("getDatasets", uris=uris))["datasets"]
    assert {view["uri"]: {**view, "highlights": None} for view in found} == {
        view["uri"]: {**view, "highlights": None} for view in stored
    }
    # With the CIDs that they have, which nobody does but a test: it tells where a record comes from.
    holdings.execute("""UPDATE records SET record = record || '{"name": "Wren"}'""")
    assert sorted(names(await ask("searchDatasets", q="owl"))) == ["Owl", "Owl \u2028 é 🦉", "Wren"]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("DELETE FROM records WHERE rkey = 'owl'", None),
        ("UPDATE records SET cid = 'bafyreinew', record = record || '{\"size\": {}}' WHERE rkey = 'owl'", "size"),
        ("UPDATE records SET verified_at = NULL WHERE rkey = 'owl'", "verified"),
        ("UPDATE repositories SET status = 'takendown' WHERE handle = 'alice.test'", None),
        ("UPDATE repositories SET handle = 'carol.test' WHERE handle = 'alice.test'", "carol.test"),
        ("UPDATE repositories SET handle = NULL WHERE handle = 'alice.test'", "handle.invalid"),
    ],
)
async def test_what_has_changed_since_is_looked_up(
    change: str, shown: str | None, holdings: Holdings, ask: Asker
) -> None:
    """However little time ago, and whatever the engine still has; words that may be gone are not marked."""
    holdings.add(ALICE, DATASET, "owl", dataset("Owl"))
    holdings.add(BOB, DATASET, "other", dataset("Other owl"))
    assert (await ask("searchDatasets", q="owl"))["total"] == 2
    holdings.execute(change)
    views = {view["uri"].rpartition("/")[2]: view for view in (await ask("searchDatasets", q="owl"))["datasets"]}
    assert set(views) == ({"other"} if shown is None else {"owl", "other"})
    assert [rkey for rkey, view in views.items() if "highlights" in view] == ["other"]
    if shown == "size":
        assert views["owl"]["record"]["size"] == {}
    elif shown == "verified":
        assert not views["owl"]["verified"]
    elif shown:
        assert views["owl"]["publisher"]["handle"] == shown
