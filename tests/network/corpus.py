"""Dataset cards, and the records that publish them. Real cards where the shared corpora are, else our own few."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from network.atproto_network import Account, creation

from atdata.syntax import new_tid

HERE = Path(__file__).parent
SCHEMA = "ac.foundation.dataset.sampleSchema"
DATASET = "ac.foundation.dataset.record"

# What the PDS takes in one applyWrites; the bytes leave room for what surrounds the writes.
MAX_WRITES = 200
MAX_REQUEST_BYTES = 140_000

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Card:
    """What people wrote about a dataset. `citation_title` is a query that should find it, never published."""

    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    license: str | None
    examples: int
    bytes: int
    fields: tuple[Json, ...]
    citation_title: str | None
    source: str
    """`shared` for the real cards, `own` for those in own_cards.jsonl."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record and the place that it is written for: the `schemaRef` and `ref` of others may name its URI."""

    did: str
    collection: str
    rkey: str
    value: Json

    @property
    def uri(self) -> str:
        return f"at://{self.did}/{self.collection}/{self.rkey}"


def load_cards() -> list[Card]:
    """The 500 cards of $ATDATA_SHARED (default: `shared` beside the repository), else our own few."""
    shared = Path(os.environ.get("ATDATA_SHARED", HERE.parents[2] / "shared")) / "corpora" / "dataset_cards.jsonl"
    return _cards(shared, "shared") if shared.exists() else own_cards()


def own_cards() -> list[Card]:
    """Our own cards, which are everywhere the same: what the README shows is found among them."""
    return _cards(HERE / "own_cards.jsonl", "own")


def card_records(card: Card, did: str) -> list[Record]:
    """The records of *card* in the repository *did*: its schemas, those of struct columns first, then the dataset.

    Field names stay as the card has them (`Complaint ID`, `1_generalNL`): the lexicon does not restrict them.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    *nested, schema = _schemas(card.title, card.fields, did, now)
    shards = max(1, math.ceil(card.bytes / 500_000_000))
    files = "000000" if shards == 1 else f"{{000000..{shards - 1:06}}}"
    sizes = {"samples": card.examples, "bytes": card.bytes, "shards": shards}
    dataset = {
        "$type": DATASET,
        "name": card.title,
        "schemaRef": schema.uri,
        "storage": {
            "$type": "ac.foundation.dataset.storageExternal",
            "urls": [f"https://data.example.org/{card.name}/{files}.tar"],
        },
        "description": card.description,
        "tags": list(card.tags[:30]),
        "size": {key: size for key, size in sizes.items() if size},  # a card's 0 means that nobody counted
        "createdAt": now,
    }
    if card.license is not None:
        dataset["license"] = card.license
    return [*nested, schema, Record(did, DATASET, new_tid(), dataset)]


def publish(cards: Iterable[Card], accounts: Sequence[Account]) -> dict[str, str]:
    """Write the records of *cards*, dealt out to *accounts* in turn; the datasets' URIs by card name."""
    uris: dict[str, str] = {}
    records: dict[str, list[Record]] = {account.did: [] for account in accounts}
    for card, account in zip(cards, cycle(accounts), strict=False):
        own = card_records(card, account.did)
        records[account.did] += own
        uris[card.name] = own[-1].uri
    for account in accounts:
        for writes in batches(creation(r.collection, r.value, r.rkey) for r in records[account.did]):
            account.apply_writes(writes)
    return uris


def batches(writes: Iterable[Json]) -> Iterator[list[Json]]:
    """The writes in lists that the PDS takes in one applyWrites each."""
    batch: list[Json] = []
    size = 0
    for write in writes:
        length = len(json.dumps(write))
        if batch and (len(batch) == MAX_WRITES or size + length > MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += length
    if batch:
        yield batch


def _cards(path: Path, source: str) -> list[Card]:
    with path.open(encoding="utf-8") as lines:
        return [_card(json.loads(line), source) for line in lines]


def _card(row: Json, source: str) -> Card:
    return Card(
        name=row["name"],
        title=row["title"],
        description=row["description"],
        tags=tuple(row["tags"]),
        license=row["license"],
        examples=row["examples"],
        bytes=row["bytes"],
        fields=tuple(row["fields"]),
        citation_title=row["citation_title"],
        source=source,
    )


def _schemas(name: str, columns: Iterable[Json], did: str, now: str) -> list[Record]:
    """The schema named *name*, after those that it refers to."""
    nested: list[Record] = []

    def field_type(column: Json) -> dict[str, Any]:
        match column["kind"]:
            case "value":
                return _type("primitive", primitive=_primitive(column["dtype"]))
            case "ndarray":
                return _type("ndarray", dtype=column["dtype"], shape=[length or 0 for length in column["shape"]])
            case "list":
                return _type("array", items=field_type(column["items"]))
            case "struct":
                nested.extend(_schemas(f"{name}: {column['name']}", column["fields"], did, now))
                return _type("ref", ref=nested[-1].uri)
            case kind:
                raise ValueError(f"{name}: column {column['name']!r} is of kind {kind!r}, which has no field type")

    fields = [{"name": column["name"], "fieldType": field_type(column), "optional": False} for column in columns]
    value = {"$type": SCHEMA, "name": name[:100], "version": "1.0.0", "fields": fields, "createdAt": now}
    return [*nested, Record(did, SCHEMA, new_tid(), value)]


def _type(kind: str, **members: Any) -> dict[str, Any]:
    return {"$type": f"ac.foundation.dataset.schemaType#{kind}", **members}


def _primitive(dtype: str) -> str:
    # Times have no type of their own; people write them out.
    prefixes = {
        "string": "str",
        "timestamp": "str",
        "int": "int",
        "uint": "int",
        "float": "float",
        "bool": "bool",
        "binary": "bytes",
    }
    for prefix, primitive in prefixes.items():
        if dtype.startswith(prefix):
            return primitive
    raise ValueError(f"the column type {dtype!r} has no primitive type")
