"""The lens graph over a real Postgres: what it answers, and that it follows what happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from holdings import ALICE, BOB, Asker, Holdings, lens, schema, serving

from atdata.nsid import LENS, SAMPLE_SCHEMA
from atdata.structure import structure_of
from atdata_appview import graph as graph_module
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine

CAROL = "did:plc:" + "c" * 24
GONE = f"at://{BOB}/{SAMPLE_SCHEMA}/gone"
CODE = {"repository": "https://example.org/lenses", "commit": "abc123", "path": "lenses.py:back"}


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test")
    held.account(BOB, "bob.test")
    held.account(CAROL)
    yield held
    engine.close()


@pytest.fixture
async def ask(holdings: Holdings, tmp_path: Path) -> AsyncIterator[Asker]:
    async with serving(settings(holdings, tmp_path)) as asker:
        yield asker


def settings(holdings: Holdings, folder: Path) -> AppViewSettings:
    return AppViewSettings(
        database_url=holdings.database_url, search_dir=folder / "search", rate_limit=0, search_processes=0
    )


def narrow(name: str = "Label") -> dict[str, Any]:
    """A schema with the label of a digit only."""
    return schema(name, fields=schema()["fields"][1:2])


def key(record: dict[str, Any]) -> str:
    return structure_of(record).fingerprint


class World:
    """Alice's schema and Bob's are the same; Carol's is narrower; lenses lead on from there."""

    def __init__(self, holdings: Holdings) -> None:
        self.digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema("Digit"))
        self.number = holdings.add(BOB, SAMPLE_SCHEMA, "number", schema("Number", "2.0.0"))
        self.label = holdings.add(CAROL, SAMPLE_SCHEMA, "label", narrow())
        text = [
            {"name": "text", "fieldType": {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "str"}}
        ]
        self.text = holdings.add(CAROL, SAMPLE_SCHEMA, "text", schema("Text", fields=text))
        self.spell = holdings.add(CAROL, LENS, "spell", lens("Spell", self.label, self.text, putterCode=CODE))
        self.read = holdings.add(BOB, LENS, "read", lens("Read", self.number, self.text))
        self.lose = holdings.add(BOB, LENS, "lose", lens("Lose", self.text, GONE), verified=False)


@pytest.fixture
def world(holdings: Holdings) -> World:
    return World(holdings)


async def eventually(ask: Callable[[], Any]) -> Any:
    """What *ask* gives as soon as that is something: the graph follows a fraction of a second behind."""
    async with asyncio.timeout(10):
        while not (found := await ask()):
            await asyncio.sleep(0.02)
    return found


# --- Paths


async def test_a_path_has_its_lenses_records(world: World, ask: Asker) -> None:
    """Each hop says where it leads from and to, by node and by schema, and the lens is there as it was published."""
    answer = await ask("getLensPath", **{"from": world.digit, "to": world.text})
    assert answer["truncated"] is False
    assert answer["from"] == {
        "key": key(schema()),
        "state": "readable",
        "schemas": [world.digit, world.number],
        "schemaCount": 2,
        "name": "Digit",
    }
    by_bob, by_carol = answer["paths"]
    (hop,) = by_bob["hops"]
    assert hop["lens"]["uri"] == world.read
    assert hop["lens"]["record"]["name"] == "Read"
    assert "missing" not in hop["lens"]
    assert (hop["kind"], hop["fromSchema"], hop["toSchema"]) == ("lens", world.number, world.text)
    assert (hop["from"], hop["to"], hop["hasPutter"]) == (key(schema()), answer["to"]["key"], False)
    assert (by_bob["fromSchema"], by_bob["toSchema"]) == (world.digit, world.text)
    assert (by_bob["lenses"], by_bob["projections"], by_bob["invertible"]) == (1, 0, False)
    projection, spell = by_carol["hops"]
    assert projection == {
        "kind": "projection",
        "from": key(schema()),
        "to": key(narrow()),
        "fromSchema": world.digit,
        "toSchema": world.label,
        "hasPutter": False,
    }
    assert (spell["lens"]["uri"], spell["hasPutter"]) == (world.spell, True)
    assert (by_carol["lenses"], by_carol["projections"], by_carol["invertible"]) == (1, 1, False)
    (back,) = (await ask("getLensPath", **{"from": world.label, "to": world.text}))["paths"]
    assert back["invertible"] is True


async def test_places_have_several_names(world: World, ask: Asker) -> None:
    """A schema is asked for by URI, with a handle or a DID, and a structure by its fingerprint."""
    for source in (f"at://alice.test/{SAMPLE_SCHEMA}/digit", world.number, key(schema())):
        answer = await ask("getLensPath", **{"from": source, "to": world.text, "k": 1})
        assert answer["from"]["key"] == key(schema())
        assert [path["hops"][0]["lens"]["uri"] for path in answer["paths"]] == [world.read]


async def test_equal_structures_are_one_place(world: World, ask: Asker) -> None:
    """The path between schemas of different publishers with the same structure is there, and has no hops."""
    (path,) = (await ask("getLensPath", **{"from": world.digit, "to": world.number}))["paths"]
    assert path["hops"] == []
    assert path["invertible"] is True
    assert (path["fromSchema"], path["toSchema"]) == (world.digit, world.number)


async def test_no_way_is_an_answer(world: World, ask: Asker) -> None:
    """Where no path is, or none of so many lenses, the list is empty."""
    assert (await ask("getLensPath", **{"from": world.text, "to": world.digit}))["paths"] == []
    assert (await ask("getLensPath", **{"from": world.digit, "to": GONE, "maxHops": 1}))["paths"] == []
    assert len((await ask("getLensPath", **{"from": world.digit, "to": GONE, "maxHops": 2}))["paths"]) == 2


@pytest.mark.parametrize("method", ["getLensPath", "getLensGraph"])
@pytest.mark.parametrize(
    ("given", "status", "error"),
    [
        (f"at://{ALICE}/{SAMPLE_SCHEMA}/nothing", 404, "SchemaNotFound"),
        (f"at://nobody.test/{SAMPLE_SCHEMA}/digit", 404, "SchemaNotFound"),
        ("s1-" + "a" * 32, 404, "SchemaNotFound"),
        (f"at://{ALICE}", 400, "InvalidRequest"),
        ("at://", 400, "InvalidRequest"),
        ("", 400, "InvalidRequest"),
    ],
)
async def test_what_is_not_there(method: str, given: str, status: int, error: str, world: World, ask: Asker) -> None:
    """What neither is a schema here nor is named by a lens is not found; what names no record is wrong."""
    params = {"from": world.text, "to": given} if method == "getLensPath" else {"root": given}
    response = await ask.get(method, **params)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert response.json()["message"].startswith("to: " if "to" in params else "root: ")


async def test_what_is_missing_is_told(world: World, holdings: Holdings, ask: Asker) -> None:
    """A schema that a lens names and nobody has is a place of its own, and the lens says that it misses it."""
    answer = await ask("getLensPath", **{"from": world.text, "to": GONE})
    assert (answer["to"]["state"], answer["to"]["schemas"]) == ("missing", [GONE])
    (path,) = answer["paths"]
    assert path["hops"][0]["lens"]["missing"] == [GONE]
    for method, params in (("getLenses", {"uris": [world.lose]}), ("listLenses", {"target": GONE})):
        (view,) = (await ask(method, **params))["lenses"]
        assert view["missing"] == [GONE]


async def test_a_schema_that_cannot_be_read_is_a_place_of_its_own(holdings: Holdings, world: World, ask: Asker) -> None:
    """It is not missing; nobody knows its structure, and lenses from it and to it are used all the same."""
    odd = holdings.add(ALICE, SAMPLE_SCHEMA, "odd", {"$type": SAMPLE_SCHEMA, "name": 7, "fields": "none"})
    holdings.add(ALICE, LENS, "mend", lens("Mend", odd, world.digit))

    async def paths() -> Any:
        response = await ask.get("getLensPath", **{"from": odd, "to": world.text, "k": 1})
        return response.json().get("paths")

    await eventually(paths)
    answer = await ask("getLensPath", **{"from": odd, "to": world.text, "k": 1})
    assert (answer["from"]["key"], answer["from"]["state"]) == (odd, "unreadable")
    assert [hop["lens"]["record"]["name"] for hop in answer["paths"][0]["hops"]] == ["Mend", "Read"]


async def test_a_path_of_records_beyond_the_answer_is_left_out(world: World, holdings: Holdings, ask: Asker) -> None:
    """Records fill an answer up to 4 MB; the paths for which there is no room are missing, and that is said."""
    for n in range(6):
        publisher = (ALICE, BOB, CAROL)[n % 3]
        holdings.add(publisher, LENS, f"large{n}", lens("x" * 900_000, world.text, GONE))

    async def is_truncated() -> Any:
        return (await ask("getLensPath", **{"from": world.text, "to": GONE, "k": 10}))["truncated"]

    await eventually(is_truncated)
    assert len((await ask("getLensPath", **{"from": world.text, "to": GONE, "k": 10}))["paths"]) < 6


# --- Neighbourhoods


async def test_a_neighbourhood_has_nodes_and_edges(world: World, ask: Asker) -> None:
    """The root first; each node once, with its name and distance; lenses by URI and name, projections without."""
    answer = await ask("getLensGraph", root=world.number, depth=1)
    assert answer["truncated"] is False
    assert answer["root"] == key(schema())
    root, *others = answer["nodes"]
    assert (root["name"], root["depth"], root["schemaCount"]) == ("Number", 0, 2)
    assert {(node["name"], node["depth"]) for node in others} == {("Text", 1), ("Label", 1)}
    edges = {(edge["kind"], edge.get("lens"), edge.get("name"), edge["hasPutter"]) for edge in answer["edges"]}
    assert edges == {("lens", world.read, "Read", False), ("projection", None, None, False)}


async def test_a_neighbourhood_goes_as_far_and_where_one_asks(world: World, ask: Asker) -> None:
    """Outwards along the arrows, inwards against them; a node that is missing is one like others."""

    async def names(**params: Any) -> set[str]:
        nodes = (await ask("getLensGraph", **params))["nodes"]
        return {node.get("name", node["key"]) for node in nodes}

    assert await names(root=world.text, direction="out") == {"Text", GONE}
    assert await names(root=world.text, direction="in") == {"Text", "Label", "Digit"}
    assert await names(root=GONE, direction="in", depth=2) == {GONE, "Text", "Label", "Digit"}
    assert await names(root=GONE, direction="out", depth=4) == {GONE}
    assert await names(root=world.digit, depth=0) == {"Digit"}


# --- Lists


async def test_lenses_are_listed_by_either_end(world: World, ask: Asker) -> None:
    """From a schema, to one, either, or both; by the URI itself, or whatever has the same structure."""

    async def uris(**params: Any) -> list[str]:
        return [view["uri"] for view in (await ask("listLenses", **params))["lenses"]]

    assert await uris() == [world.lose, world.read, world.spell]
    assert await uris(schema=world.text) == [world.lose, world.read, world.spell]
    assert await uris(target=world.text) == [world.read, world.spell]
    assert await uris(source=world.text, schema=GONE) == [world.lose]
    assert await uris(source=world.label, target=world.text) == [world.spell]
    assert await uris(source=world.digit) == []
    assert await uris(source=world.digit, equivalent=True) == [world.read]
    assert await uris(schema=world.digit, equivalent=True) == [world.read]
    assert await uris(source=world.digit, target=world.text, equivalent=True) == [world.read]
    assert await uris(target=world.digit, equivalent=True) == []
    assert await uris(schema=world.text, equivalent=True, publisher="bob.test") == [world.lose, world.read]
    assert await uris(equivalent=True) == [world.lose, world.read, world.spell]
    assert await uris(source=f"at://{ALICE}/{SAMPLE_SCHEMA}/nothing", equivalent=True) == []
    first = await ask("listLenses", schema=world.text, equivalent=True, limit=2)
    last = await ask("listLenses", schema=world.text, equivalent=True, limit=2, cursor=first["cursor"])
    assert [view["uri"] for view in first["lenses"] + last["lenses"]] == [world.lose, world.read, world.spell]
    assert "cursor" not in last


# --- Following


async def test_the_graph_follows_what_happens(world: World, holdings: Holdings, ask: Asker) -> None:
    """A lens, a schema, a change, a deletion and an account that is hidden and comes back: all within a moment."""

    async def names(source: str, target: str) -> list[list[str]] | None:
        response = await ask.get("getLensPath", **{"from": source, "to": target, "k": 10})
        return [
            [hop["lens"]["record"]["name"] for hop in path["hops"] if "lens" in hop]
            for path in response.json().get("paths", [])
        ]

    async def becomes(source: str, target: str, expected: list[list[str]]) -> None:
        async def is_so() -> bool:
            return await names(source, target) == expected

        await eventually(is_so)

    await becomes(world.digit, world.text, [["Read"], ["Spell"]])
    quick = holdings.add(ALICE, LENS, "quick", lens("Quick", world.digit, world.text, putterCode=CODE))
    await becomes(world.digit, world.text, [["Quick"], ["Read"], ["Spell"]])
    holdings.delete(quick)
    await becomes(world.digit, world.text, [["Read"], ["Spell"]])
    # Bob's lens leads from a schema of another structure now.
    holdings.execute(
        "UPDATE records SET record = jsonb_set(record, '{fields}', record->'fields'->0), cid = 'new' WHERE uri = %s",
        [world.number],
    )
    await becomes(world.digit, world.text, [["Spell"]])
    holdings.account(CAROL, status="suspended")
    await becomes(world.digit, world.text, []) if await names(world.digit, world.text) else None
    response = await ask.get("getLensPath", **{"from": world.digit, "to": world.label})
    assert response.status_code in (200, 404)
    holdings.account(CAROL, status="active")
    await becomes(world.digit, world.text, [["Spell"]])
    # What a lens misses arrives.
    holdings.add(BOB, SAMPLE_SCHEMA, "gone", schema("Found"))
    await becomes(world.text, world.digit, [["Lose"]])


async def test_a_schema_is_read_beside_the_requests(
    world: World, holdings: Holdings, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile megabyte takes a while to read, and nobody else waits for that: a thread of its own reads it."""
    readers = set[threading.Thread]()

    def watched(record: Any) -> Any:
        readers.add(threading.current_thread())
        return structure_of(record)

    monkeypatch.setattr(graph_module, "structure_of", watched)
    new = holdings.add(BOB, SAMPLE_SCHEMA, "new", schema("New", fields=schema()["fields"][:1]))

    async def is_known() -> bool:
        return (await ask.get("getLensGraph", root=new)).status_code == 200

    await eventually(is_known)
    assert readers
    assert threading.current_thread() not in readers


async def test_a_purged_account_leaves_nothing(world: World, holdings: Holdings, ask: Asker) -> None:
    """Hidden and deleted in one moment or one after the other: its schemas are missing, its lenses are gone."""
    holdings.execute("WITH gone AS (DELETE FROM records WHERE did = %s) UPDATE repositories SET status = 'deleted' "
                     "WHERE did = %s", [BOB, BOB])  # fmt: skip

    async def state() -> Any:
        return (await ask.get("getLensGraph", root=world.number, depth=0)).status_code == 404

    await eventually(state)
    answer = await ask("getLensGraph", root=world.digit, depth=4)
    assert answer["nodes"][0]["schemaCount"] == 1
    assert {edge.get("name") for edge in answer["edges"]} == {"Spell", None}


async def test_until_it_is_read_there_is_no_answer_yet(
    world: World, holdings: Holdings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large graph takes its time: until then 503 with Retry-After, in XRPC's form, and everything else works."""
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    read = graph_module.GraphKeeper._read

    async def read_and_wait(keeper: graph_module.GraphKeeper) -> Any:
        result = await read(keeper)
        has_read.set()
        await may_go_on.wait()
        return result

    monkeypatch.setattr(graph_module.GraphKeeper, "_read", read_and_wait)
    monkeypatch.setattr(graph_module, "_PATIENCE", 0.0)
    async with serving(settings(holdings, tmp_path)) as ask:
        for method, params in (
            ("getLensPath", {"from": world.digit, "to": world.text}),
            ("getLensGraph", {"root": world.digit}),
            ("listLenses", {"schema": world.digit, "equivalent": True}),
        ):
            response = await ask.get(method, **params)
            assert (response.status_code, response.json()["error"]) == (503, "ServiceUnavailable")
            assert int(response.headers["retry-after"]) > 0
        health = (await ask.client.get("/xrpc/_health")).json()
        assert health["lensGraph"] == "reading"
        assert len((await ask("listLenses", schema=world.text))["lenses"]) == 3
        # What happens meanwhile is not lost.
        await has_read.wait()
        holdings.delete(world.read)
        may_go_on.set()

        async def paths() -> Any:
            return (await ask.get("getLensPath", **{"from": world.digit, "to": world.text})).json().get("paths")

        async def is_up_to_date() -> bool:
            return [path["hops"][-1]["lens"]["uri"] for path in await paths() or ()] == [world.spell]

        await eventually(is_up_to_date)
        assert (await ask.client.get("/xrpc/_health")).json()["lensGraph"] == "ready"


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), ZeroDivisionError("a mistake of ours")])
async def test_reading_is_tried_again(
    error: Exception, world: World, holdings: Holdings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database can go away while the graph is read; and whatever else goes wrong, the next try may go right."""
    read = graph_module.GraphKeeper._read
    tries: list[int] = []

    async def fail_first(keeper: graph_module.GraphKeeper) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise error
        return await read(keeper)

    monkeypatch.setattr(graph_module.GraphKeeper, "_read", fail_first)
    monkeypatch.setattr(graph_module, "_PAUSE", 0.0)
    async with serving(settings(holdings, tmp_path)) as ask:

        async def is_ready() -> bool:
            return (await ask.get("getLensGraph", root=world.digit)).status_code == 200

        await eventually(is_ready)
    assert len(tries) == 2


async def test_a_graph_that_missed_changes_is_read_anew(world: World, holdings: Holdings, ask: Asker) -> None:
    """Changes are not kept for ever: who is behind the oldest reads everything again."""
    # As after days without the database: changes beyond what is kept, of which one is all that is left.
    holdings.execute("ALTER TABLE records DISABLE TRIGGER USER")
    holdings.add(ALICE, LENS, "unseen", lens("Unseen", world.digit, world.text))
    holdings.execute("ALTER TABLE records ENABLE TRIGGER USER")
    holdings.execute(
        "WITH latest AS (SELECT coalesce(max(seq), 0) AS seq FROM changes), pruned AS"
        " (UPDATE changes_pruned SET seq = latest.seq + 10 FROM latest)"
        " INSERT INTO changes (seq, action, did, status) OVERRIDING SYSTEM VALUE"
        " SELECT seq + 20, 'account', %s, 'active' FROM latest",
        [ALICE],
    )

    async def is_seen() -> bool:
        response = await ask.get("getLensPath", **{"from": world.digit, "to": world.text})
        return len(response.json().get("paths", [])) == 3

    await eventually(is_seen)


# --- The picture on a schema's page


async def test_a_page_shows_what_leads_to_a_schema_and_where_it_leads(world: World, ask: Asker) -> None:
    """Boxes with links to the others' pages, arrows with the lenses' names, and what the schema itself is."""
    html = await ask.page(f"/schema/{BOB}/number")
    svg = html[html.index('<svg class="graph"') : html.rindex("</svg>")]
    assert ">Number</text>" in svg
    assert ">2 equal schemas</text>" in svg
    assert f'<a href="/schema/{CAROL}/text">' in svg
    assert ">Read</text>" in svg
    assert 'class="arrow projection"' in svg
    assert ">fewer fields</text>" in svg
    assert "marker-start" not in svg
    html = await ask.page(f"/schema/{CAROL}/text")
    svg = html[html.index('<svg class="graph"') : html.rindex("</svg>")]
    assert ">not here</text>" in svg
    assert f"/schema/{BOB}/gone" not in svg
    assert svg.count("marker-start") == 1  # Carol's lens has a putter


async def test_a_page_links_to_the_datasets_that_are_loadable(world: World, ask: Asker) -> None:
    """Where other structures can be read as this one, it says how many, and where to find their datasets."""
    html = await ask.page(f"/schema/{CAROL}/text")
    assert "2 other structures" in html
    assert f"/?loadableAs=at%3A%2F%2F{CAROL.replace(':', '%3A')}%2F{SAMPLE_SCHEMA}%2Ftext" in html
    html = await ask.page(f"/schema/{ALICE}/digit")
    assert "loadableAs" not in html


async def test_a_page_draws_no_more_than_has_room(world: World, holdings: Holdings, ask: Asker) -> None:
    """Of very many places the first are drawn, and the others counted; hostile names are text."""
    evil = "<script>alert(1)</script>"
    for n in range(20):
        holdings.add(ALICE, LENS, f"many{n}", lens(evil, f"at://{ALICE}/{SAMPLE_SCHEMA}/from{n}", world.digit))

    async def page() -> Any:
        html = await ask.page(f"/schema/{ALICE}/digit")
        return html if "14 more places lead here" in html else None

    html = await eventually(page)
    assert html.count('class="missing"') == 6
    assert "<script" not in html
    assert "&lt;script&gt;alert(1…</text>" in html


async def test_a_page_without_lenses_has_no_picture(holdings: Holdings, ask: Asker) -> None:
    """Nor has one of a schema of which the graph does not know yet."""
    holdings.add(ALICE, SAMPLE_SCHEMA, "alone", schema("Alone"))
    assert "<svg" not in await ask.page(f"/schema/{ALICE}/alone")
