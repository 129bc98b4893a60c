"""Schemas as types: what the AppView says of their structure, of what changed, and of which version is meant."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from holdings import ALICE, BOB, Asker, Holdings, cid, dataset, lens, schema, serving

from atdata.nsid import DATASET, JSON_SCHEMA_FORMAT, LENS, SAMPLE_SCHEMA, SCHEMA
from atdata.structure import structure_of
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test")
    held.account(BOB)
    yield held
    engine.close()


Open = Callable[[], AbstractAsyncContextManager[Asker]]


@pytest.fixture
def appview(holdings: Holdings, tmp_path: Path) -> Open:
    """Opens an AppView that knows from its start what is held then."""
    settings = AppViewSettings(
        database_url=holdings.database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0
    )
    return lambda: serving(settings)


@pytest.fixture
async def ask(appview: Open) -> AsyncIterator[Asker]:
    async with appview() as asker:
        yield asker


def field(name: str, kind: str, optional: bool = False) -> dict[str, Any]:
    field_type = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": kind}
    return {"name": name, "fieldType": field_type, "optional": optional}


def schema_of(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return schema(fields=list(fields), **more)


def uri_of(did: str, rkey: str, collection: str = SAMPLE_SCHEMA) -> str:
    return f"at://{did}/{collection}/{rkey}"


async def refused(ask: Asker, method: str, status: int, error: str, **params: Any) -> str:
    """The message with which a call is refused, in the form that is promised."""
    response = await ask.get(method, **params)
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "message"}
    assert body["error"] == error
    message: str = body["message"]
    return message


# --- Comparing


async def test_equal_schemas_of_different_publishers_are_identical(holdings: Holdings, ask: Asker) -> None:
    """Names, versions, order, descriptions and the shape of the record make no difference."""
    old = holdings.add(ALICE, SAMPLE_SCHEMA, "one", schema_of(field("label", "int"), field("text", "str", True)))
    json_schema = {
        "$type": JSON_SCHEMA_FORMAT,
        "type": "object",
        "properties": {"text": {"type": "string", "description": "Words."}, "label": {"type": "integer"}},
        "required": ["label"],
    }
    later = {"name": "Other", "version": "3.0.0", "schemaType": "jsonSchema", "schema": json_schema}
    new = holdings.add(BOB, SCHEMA, "two", {"$type": SCHEMA, "createdAt": "2026-01-02T00:00:00.000Z", **later})
    answer = await ask("compareSchemas", **{"from": old, "to": new})
    fields = [{"name": "label", "type": "int", "optional": False}, {"name": "text", "type": "str", "optional": True}]
    assert answer["from"] == answer["to"] == {"fingerprint": answer["to"]["fingerprint"], "fields": fields}
    assert (answer["verdict"], answer["differences"]) == ("identical", [])
    assert answer["summary"].startswith("The structures are identical")
    assert await ask("compareSchemas", **{"from": "at://alice.test/" + old.split("/", 3)[3], "to": old}) == {
        **answer,
        "to": answer["from"],
    }


async def test_a_comparison_says_what_breaks_what(holdings: Holdings, ask: Asker) -> None:
    """Each difference has both fields and the directions it breaks; the other way round, they change places."""
    old = holdings.add(ALICE, SAMPLE_SCHEMA, "old", schema_of(field("a", "int"), field("b", "int"), field("c", "int")))
    new = holdings.add(
        ALICE, SAMPLE_SCHEMA, "new", schema_of(field("a", "int", True), field("b", "float"), field("d", "str"))
    )
    answer = await ask("compareSchemas", **{"from": old, "to": new})
    assert answer["verdict"] == "breaking"
    a, b, c, d = answer["differences"]
    assert a == {
        "name": "a",
        "change": "optionality",
        "before": {"name": "a", "type": "int", "optional": False},
        "after": {"name": "a", "type": "int", "optional": True},
        "breaks": ["forward"],
        "text": "a may now be absent",
    }
    assert (b["change"], b["breaks"]) == ("type", ["backward", "forward"])
    assert (c["change"], c["breaks"], "after" in c) == ("removed", ["forward"], False)
    assert (d["change"], d["breaks"], "before" in d) == ("added", ["backward"], False)
    assert "Readers of the new schema cannot read data of the old one: b was int and is float;" in answer["summary"]
    back = await ask("compareSchemas", **{"from": new, "to": old})
    assert [one["change"] for one in back["differences"]] == ["optionality", "type", "added", "removed"]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([field("a", "int")], [field("a", "int"), field("b", "int", True)], "full"),
        ([field("a", "int"), field("b", "int")], [field("a", "int")], "backward"),
        ([field("a", "int")], [field("a", "int"), field("b", "int")], "forward"),
        ([field("a", "int")], [field("a", "str")], "breaking"),
    ],
)
async def test_verdicts(old: Any, new: Any, verdict: str, holdings: Holdings, ask: Asker) -> None:
    """The verdicts are those of schema registries."""
    before = holdings.add(ALICE, SAMPLE_SCHEMA, "old", schema_of(*old))
    after = holdings.add(ALICE, SAMPLE_SCHEMA, "new", schema_of(*new))
    assert (await ask("compareSchemas", **{"from": before, "to": after}))["verdict"] == verdict


async def test_what_is_no_schema_is_not_compared(holdings: Holdings, ask: Asker) -> None:
    """The parameter that names no schema, or none that can be read, stands in front of the message."""
    good = holdings.add(ALICE, SAMPLE_SCHEMA, "good", schema())
    other = holdings.add(ALICE, DATASET, "data", dataset())
    for absent in (uri_of(ALICE, "none"), other, "at://nobody.test/ac.foundation.dataset.sampleSchema/good"):
        for params, name in (({"from": good, "to": absent}, "to"), ({"from": absent, "to": good}, "from")):
            message = await refused(ask, "compareSchemas", 404, "SchemaNotFound", **params)
            assert message == f"{name}: there is no schema {absent} here"
    deep: Any = {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "int"}
    for _ in range(100):
        deep = {"$type": "ac.foundation.dataset.schemaType#array", "items": deep}
    for i, fields in enumerate(
        [None, "x", [[]], [field("a", "long")], [field("a", "int")] * 20_000, [{"name": "a", "fieldType": deep}]]
    ):
        odd = holdings.add(ALICE, SAMPLE_SCHEMA, f"odd{i}", schema(fields=fields))
        message = await refused(ask, "compareSchemas", 400, "InvalidRequest", **{"from": good, "to": odd})
        assert message.startswith("to: the schema cannot be read: fields")
    assert (await refused(ask, "compareSchemas", 400, "InvalidRequest", **{"from": good})).startswith("to")
    message = await refused(ask, "compareSchemas", 400, "InvalidRequest", **{"from": good, "to": "at://alice.test"})
    assert message.startswith("to: ")


async def test_nothing_of_a_hidden_account_is_compared(holdings: Holdings, ask: Asker) -> None:
    """A schema of an account that is not active is not there."""
    good = holdings.add(ALICE, SAMPLE_SCHEMA, "good", schema())
    hidden = holdings.add(BOB, SAMPLE_SCHEMA, "hidden", schema())
    holdings.account(BOB, status="takendown")
    assert hidden in await refused(ask, "compareSchemas", 404, "SchemaNotFound", **{"from": good, "to": hidden})
    for version in ("^1", "^9"):
        message = await refused(
            ask, "resolveSchema", 404, "SchemaNotFound", publisher=BOB, name="Digit", version=version
        )
        assert message == f"{BOB} has no schema 'Digit' here"


# --- Versions


def publish(holdings: Holdings, *versions: Any, name: str = "Digit", did: str = ALICE, **more: Any) -> None:
    keys = [f"{cid(name)[7:17]}{i}" for i in range(len(versions))]
    rows = [(key, schema(name, version, **more)) for key, version in zip(keys, versions, strict=True)]
    holdings.add_all(did, SAMPLE_SCHEMA, rows)


def found(answer: dict[str, Any]) -> list[str]:
    assert answer["versions"][0]["uri"] == answer["schema"]["uri"]
    return [one["version"] for one in answer["versions"]]


async def test_the_newest_version_is_the_answer(holdings: Holdings, ask: Asker) -> None:
    """1.10.0 is newer than 1.9.0, whenever they were published; prereleases are asked for."""
    publish(holdings, "1.10.0", "0.9.0", "2.0.0-rc.1", "1.9.0", "one", "1.2.0")
    publish(holdings, "9.0.0", name="Other")
    publish(holdings, "8.0.0", did=BOB)
    for publisher in (ALICE, "alice.test", "@alice.test", "Alice.Test"):
        answer = await ask("resolveSchema", publisher=publisher, name="Digit")
        assert answer["schema"]["record"]["version"] == "1.10.0"
        assert found(answer) == ["1.10.0", "1.9.0", "1.2.0", "0.9.0"]
        assert [one["version"] for one in answer["ignored"]] == ["one"]
        assert answer["structure"]["fingerprint"] == structure_of(schema()).fingerprint
    for version, versions in [
        ("^1.2", ["1.10.0", "1.9.0", "1.2.0"]),
        ("~1.9", ["1.9.0"]),
        ("1.x", ["1.10.0", "1.9.0", "1.2.0"]),
        (">=0.9 <1.10", ["1.9.0", "1.2.0", "0.9.0"]),
        ("1.2.0", ["1.2.0"]),
        (">=2.0.0-0", ["2.0.0-rc.1"]),
    ]:
        assert found(await ask("resolveSchema", publisher=ALICE, name="Digit", version=version)) == versions


async def test_of_one_version_the_latest_record_counts(holdings: Holdings, ask: Asker) -> None:
    """A version that was published twice is there once, as its last key has it, whatever the order of arrival."""
    holdings.add(ALICE, SAMPLE_SCHEMA, "3kbbbbbbbbb2b", schema(description="late"))
    holdings.add(ALICE, SAMPLE_SCHEMA, "3kaaaaaaaaa2a", schema(description="early"))
    answer = await ask("resolveSchema", publisher=ALICE, name="Digit")
    assert answer["schema"]["record"]["description"] == "late"
    assert found(answer) == ["1.0.0"]


async def test_what_there_is_instead_is_said(holdings: Holdings, ask: Asker) -> None:
    """Who finds nothing is told of other versions, of other names, or that nobody has this handle."""
    publish(holdings, "1.0.0", "1.1.0", "x")
    publish(holdings, "1.0.0-rc.1", name="Preview")
    publish(holdings, *(f"1.0.{i}" for i in range(15)), name="Many")

    async def missing(**params: Any) -> str:
        return await refused(ask, "resolveSchema", 404, "SchemaNotFound", **params)

    who = {"publisher": "alice.test"}
    assert await missing(**who, name="Digit", version="^2") == (
        "alice.test has no version ^2 of the schema 'Digit' here; there is 1.1.0, 1.0.0, x"
    )
    assert await missing(**who, name="Preview") == (
        "alice.test has no stable version of the schema 'Preview' here; there is 1.0.0-rc.1"
    )
    assert (await missing(**who, name="Many", version="3")).endswith(", 1.0.6, 1.0.5 and 5 more")
    assert await missing(**who, name="Digits") == "alice.test has no schema 'Digits' here; did you mean Digit?"
    assert "nobody.test" in await missing(publisher="nobody.test", name="Digit")
    assert await missing(publisher=BOB, name="Digit") == f"{BOB} has no schema 'Digit' here"


@pytest.mark.parametrize(
    ("params", "start"),
    [
        ({"publisher": ALICE}, "name: is required"),
        ({"name": "Digit"}, "publisher: is required"),
        ({}, "publisher: is required"),
        ({"publisher": ALICE, "name": "Digit", "version": "latest"}, "version: 'latest' is no range of semantic"),
        ({"publisher": ALICE, "name": "Digit", "version": ">=1.0 <" + "9" * 300}, "version: "),
        ({"publisher": ALICE, "name": "Di\0git"}, "name: must not contain the character NUL"),
        ({"publisher": "no one", "name": "Digit"}, "publisher: "),
        ({"fingerprint": "s1-abc"}, "fingerprint: must be s1- and 40"),
        ({"fingerprint": "s1-" + "A" * 40}, "fingerprint: must be s1- and 40"),
        ({"fingerprint": "s1-" + "a" * 40, "name": "Digit"}, "name: leave it out beside a fingerprint"),
        ({"fingerprint": "s1-" + "a" * 40, "version": "^1"}, "version: leave it out beside a fingerprint"),
    ],
)
async def test_wrong_parameters_are_named(params: dict[str, str], start: str, ask: Asker) -> None:
    """A parameter that is missing, wrong or too much is the first word of the message."""
    assert (await refused(ask, "resolveSchema", 400, "InvalidRequest", **params)).startswith(start)


async def test_a_schema_that_cannot_be_read_is_found_without_a_structure(holdings: Holdings, ask: Asker) -> None:
    """Its version is known all the same; what it says of samples is not."""
    publish(holdings, "1.0.0", fields=[field("a", "long")])
    answer = await ask("resolveSchema", publisher=ALICE, name="Digit")
    assert found(answer) == ["1.0.0"]
    assert answer["schema"]["problems"]
    assert answer.keys() == {"schema", "versions", "ignored"}


async def test_records_without_a_version_or_a_name_of_length(holdings: Holdings, ask: Asker) -> None:
    """What says no version is told of; names that begin alike are told apart."""
    begin = "n\u0303\u0323" * 99
    publish(holdings, 5, "1.0.0", name=begin + "x")
    publish(holdings, "2.0.0", name=begin + "y")
    answer = await ask("resolveSchema", publisher=ALICE, name=begin + "x")
    assert found(answer) == ["1.0.0"]
    assert [one["version"] for one in answer["ignored"]] == [""]


async def test_an_answer_has_a_bounded_number_of_versions(holdings: Holdings, ask: Asker) -> None:
    """A hundred versions are listed, and the newest is among them though it came first."""
    publish(holdings, *(f"1.{i}.0" for i in reversed(range(300))), *(f"odd{i}" for i in range(150)))
    answer = await ask("resolveSchema", publisher=ALICE, name="Digit", version="^1")
    assert found(answer) == [f"1.{i}.0" for i in range(299, 199, -1)]
    assert len(answer["ignored"]) == 100


# --- By structure


async def test_a_fingerprint_stands_for_the_best_schema_of_its_structure(holdings: Holdings, appview: Open) -> None:
    """A verified one comes before one that is not, then that of most datasets, then the oldest; all are listed."""
    fingerprint = structure_of(schema()).fingerprint
    uris = {
        rkey: holdings.add(did, SAMPLE_SCHEMA, rkey, schema(rkey.title(), version, description=rkey), verified=verified)
        for did, rkey, version, verified in [
            (BOB, "unproven", "4.0.0", False),
            (ALICE, "old", "1.0.0", True),
            (BOB, "used", "2.0.0", True),
            (ALICE, "young", "3.0.0", True),
        ]
    }
    holdings.add(ALICE, SAMPLE_SCHEMA, "other", schema_of(field("a", "int")))
    for i, name in enumerate(["unproven", "unproven", "used"]):
        holdings.add(ALICE, DATASET, f"d{i}", dataset(schema_ref=uris[name]))
    async with appview() as ask:
        answer = await ask("resolveSchema", fingerprint=fingerprint)
        assert [one["uri"] for one in answer["versions"]] == [
            uris[rkey] for rkey in ("used", "old", "young", "unproven")
        ]
        assert answer["schema"]["uri"] == uris["used"]
        assert answer["structure"]["fingerprint"] == fingerprint
        assert answer["sameStructure"] == 3
        assert answer["ignored"] == []
        named = await ask("resolveSchema", publisher=ALICE, name="Old")
        assert named["sameStructure"] == 3
        message = await refused(ask, "resolveSchema", 404, "SchemaNotFound", fingerprint="s1-" + "0" * 40)
        assert message.startswith("there is no schema of this structure here")


async def test_a_hidden_schema_stands_for_no_structure(holdings: Holdings, appview: Open) -> None:
    """What is hidden or deleted after the start is not found, also while the graph still knows of it."""
    holdings.add(BOB, SAMPLE_SCHEMA, "one", schema())
    gone = holdings.add(ALICE, SAMPLE_SCHEMA, "two", schema())
    left = holdings.add(ALICE, SAMPLE_SCHEMA, "three", schema(), verified=False)
    async with appview() as ask:
        holdings.account(BOB, status="deactivated")
        holdings.delete(gone)
        answer = await ask("resolveSchema", fingerprint=structure_of(schema()).fingerprint)
        assert [one["uri"] for one in answer["versions"]] == [left]
        holdings.delete(left)
        await refused(ask, "resolveSchema", 404, "SchemaNotFound", fingerprint=structure_of(schema()).fingerprint)


async def test_only_schemas_count_as_equal(holdings: Holdings, appview: Open) -> None:
    """A URI that a lens names and that holds no schema is none of the others."""
    one = holdings.add(ALICE, SAMPLE_SCHEMA, "one", schema())
    holdings.add(ALICE, LENS, "lens", lens("L", one, uri_of(BOB, "missing")))
    async with appview() as ask:
        assert (await ask("resolveSchema", publisher=ALICE, name="Digit"))["sameStructure"] == 0


async def test_hostile_schemas_never_fail_the_service(holdings: Holdings, appview: Open) -> None:
    """Whatever a schema holds, it is answered with or said to be unreadable."""
    hostile: list[Any] = [
        {"$type": SAMPLE_SCHEMA, "name": "Digit", "version": "1.0.0", "fields": [field("a", "int")] * 100_000},
        {"$type": SAMPLE_SCHEMA, "name": "Digit", "version": "1.0.1", "fields": {"a": 1}},
        {"$type": SAMPLE_SCHEMA, "name": "Digit", "version": "1.0.2", "fields": [{"name": ["a"], "fieldType": 5}]},
        {"$type": 5, "name": "Digit", "version": "1.0.3", "fields": []},
        {"$type": SAMPLE_SCHEMA, "name": "Digit", "version": "1.0.4", "schema": {"properties": [[]]}},
    ]
    for i, record in enumerate(hostile):
        holdings.add(ALICE, SAMPLE_SCHEMA, f"h{i}", record)
    nested = json.dumps(hostile[1]).replace('{"a": 1}', "[" * 5000 + "]" * 5000)
    holdings.execute("UPDATE records SET record = %s WHERE rkey = 'h1'", [nested])
    async with appview() as ask:
        for i in range(len(hostile)):
            response = await ask.get("resolveSchema", publisher=ALICE, name="Digit", version=f"1.0.{i}")
            assert response.status_code == 200
            params = {"from": uri_of(ALICE, f"h{i}"), "to": uri_of(ALICE, f"h{i}")}
            assert (await ask.get("compareSchemas", **params)).status_code == 400
