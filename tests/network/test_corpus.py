"""Cards become valid records, and reach the PDS."""

import itertools
from pathlib import Path

import pytest
from network.atproto_network import Network, creation
from network.corpus import DATASET, SCHEMA, Card, batches, card_records, load_cards, publish

from atdata.lexicon import load_lexicons

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture(params=["shared", "own"])
def cards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Card]:
    if request.param == "own":
        monkeypatch.setenv("ATDATA_SHARED", str(tmp_path))
    cards = load_cards()
    if cards[0].source != request.param:
        pytest.skip("the shared corpora are not here: set ATDATA_SHARED to their folder")
    return cards


def test_every_card_becomes_valid_records(cards: list[Card]) -> None:
    """All records of all cards satisfy their lexicons, and what they refer to comes before them."""
    lexicons = load_lexicons()
    for card in cards:
        records = card_records(card, DID)
        problems = {r.uri: lexicons.validate_record(r.collection, r.value, r.rkey) for r in records}
        assert not any(problems.values()), (card.name, problems)
        for index, record in enumerate(records):
            assert references(record.value) <= {earlier.uri for earlier in records[:index]}


def test_what_a_card_says_is_published_but_its_citation_title_is_not(cards: list[Card]) -> None:
    """Title, description, tags, licence and sizes are in the dataset record; the citation title is in none."""
    for card in cards:
        *schemas, dataset = card_records(card, DID)
        assert (dataset.collection, {schema.collection for schema in schemas}) == (DATASET, {SCHEMA})
        assert (dataset.value["name"], dataset.value["description"]) == (card.title, card.description)
        assert dataset.value["tags"] == list(card.tags[:30])
        assert dataset.value.get("license") == card.license
        assert dataset.value["size"].get("samples", 0) == card.examples
        assert [field["name"] for field in schemas[-1].value["fields"]] == [field["name"] for field in card.fields]
        if card.citation_title is not None and card.citation_title not in card.title + card.description:
            assert card.citation_title not in str(dataset.value)


@pytest.mark.parametrize(
    ("column", "field_type"),
    [
        ({"kind": "value", "dtype": "uint8"}, {"primitive": "int"}),
        ({"kind": "value", "dtype": "bool_"}, {"primitive": "bool"}),
        ({"kind": "value", "dtype": "binary"}, {"primitive": "bytes"}),
        ({"kind": "value", "dtype": "timestamp[s, tz=UTC]"}, {"primitive": "str"}),
        ({"kind": "ndarray", "dtype": "uint8", "shape": [None, 3]}, {"dtype": "uint8", "shape": [0, 3]}),
        (
            {"kind": "list", "items": {"kind": "value", "dtype": "float64"}},
            {"items": {"$type": "ac.foundation.dataset.schemaType#primitive", "primitive": "float"}},
        ),
    ],
)
def test_a_columns_kind_decides_the_fields_type(column: dict[str, object], field_type: dict[str, object]) -> None:
    """Values are primitives, lists arrays of their items, and unknown lengths of an ndarray 0."""
    (schema, _) = card_records(card({"name": "column", **column}), DID)
    (field,) = schema.value["fields"]
    kind = {"value": "primitive", "list": "array"}.get(str(column["kind"]), column["kind"])
    assert field["fieldType"] == {"$type": f"ac.foundation.dataset.schemaType#{kind}", **field_type}


def test_a_struct_column_is_a_schema_of_its_own() -> None:
    """A struct is a `ref` to a schema that is named after the card and the column."""
    column = {"name": "weather", "kind": "struct", "fields": [{"name": "rain", "kind": "value", "dtype": "bool"}]}
    nested, schema, _ = card_records(card(column), DID)
    assert nested.value["name"] == "Bees: weather"
    assert schema.value["fields"][0]["fieldType"] == {
        "$type": "ac.foundation.dataset.schemaType#ref",
        "ref": nested.uri,
    }


def test_a_column_of_an_unknown_type_is_refused() -> None:
    """A column type without a counterpart is an error that names it."""
    with pytest.raises(ValueError, match="'complex128'"):
        card_records(card({"name": "z", "kind": "value", "dtype": "complex128"}), DID)


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(0, 1, []), (401, 1, [200, 200, 1]), (7, 60_000, [2, 2, 2, 1]), (2, 150_000, [1, 1])],
)
def test_a_batch_is_no_more_than_the_pds_takes(count: int, size: int, lengths: list[int]) -> None:
    """A batch has at most 200 writes and 140 kB, or one write that is larger than that; none is lost."""
    writes = [creation(DATASET, {"name": "x" * size}, str(n)) for n in range(count)]
    made = list(batches(writes))
    assert [len(batch) for batch in made] == lengths
    assert list(itertools.chain.from_iterable(made)) == writes


def test_publish_deals_the_cards_out_to_the_accounts(network: Network) -> None:
    """publish writes every record and returns the URI of each card's dataset."""
    cards = load_cards()[:20]
    accounts = [network.create_account(), network.create_account()]
    uris = publish(cards, accounts)
    held = {r["uri"]: r["value"] for account in accounts for r in account.list_records(DATASET)}
    assert {name: held[uri]["name"] for name, uri in uris.items()} == {card.name: card.title for card in cards}
    schemas = {r["uri"] for account in accounts for r in account.list_records(SCHEMA)}
    assert {record["schemaRef"] for record in held.values()} <= schemas
    counts = [len(account.list_records(DATASET)) for account in accounts]
    assert max(counts) - min(counts) <= 1


def card(*columns: dict[str, object]) -> Card:
    return Card("bees", "Bees", "Counts of bees.", (), None, 1, 1, columns, None, "own")


def references(value: object) -> set[str]:
    """The AT URIs anywhere in *value*."""
    if isinstance(value, dict):
        return set(itertools.chain.from_iterable(map(references, value.values())))
    if isinstance(value, list):
        return set(itertools.chain.from_iterable(map(references, value)))
    return {value} if isinstance(value, str) and value.startswith("at://") else set()
