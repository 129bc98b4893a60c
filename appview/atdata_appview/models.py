"""What the AppView answers with: rows as they come from the database, and their views as the lexicons define them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import orjson

from atdata import __version__
from atdata.structure import Field, Structure
from atdata.syntax import format_datetime
from atdata_backend.published import NO_HANDLE, Published
from atdata_backend.search.base import Facet

# No indentation, no sorting: the record's members keep the order that the database gives them.
_JSON_OPTIONS = orjson.OPT_UTC_Z


def to_json(value: Any) -> bytes:
    """*value* as JSON. `orjson.Fragment`s in it are copied as they are."""
    return orjson.dumps(value, option=_JSON_OPTIONS)


@dataclass(slots=True)
class Record(Published):
    """A record as the database has it. The fields are the columns of every query that returns records, in their order.

    ``json`` is empty where the records before it fill the answer.
    """

    id: int
    pds: str | None
    verified_at: datetime | None
    verified_key: str | None
    commit_cid: str | None

    def record_view(self) -> dict[str, Any]:
        """As `recordView`, which any record has."""
        view = self.view(collection=self.collection)
        if self.verified_at is not None and self.verified_key is not None and self.commit_cid is not None:
            view["proof"] = {
                "commit": self.commit_cid,
                "key": f"did:key:{self.verified_key}",
                "verifiedAt": format_datetime(self.verified_at),
            }
        if self.kind is not None:
            view["kind"] = self.kind
        return view


def structure_view(structure: Structure) -> dict[str, Any]:
    """As `structureView`."""
    return {"fingerprint": structure.fingerprint, "fields": [field_view(field) for field in structure.fields]}


def field_view(field: Field) -> dict[str, Any]:
    """As `structureField`."""
    return {"name": field.name, "type": field.type, "optional": field.optional}


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing. ``cursor`` is None on the last one."""

    records: Sequence[Record]
    cursor: str | None

    def answer(self, key: str) -> dict[str, Any]:
        """The answer of a list method whose records are called *key*."""
        answer: dict[str, Any] = {key: [record.view() for record in self.records]}
        if self.cursor is not None:
            answer["cursor"] = self.cursor
        return answer


@dataclass(frozen=True, slots=True)
class Publisher:
    """An account that publishes, and how many records of each kind it has here. The fields are a query's columns."""

    did: str
    handle: str | None
    datasets: int
    schemas: int
    lenses: int
    labels: int
    since: datetime
    indexed_at: datetime

    def view(self) -> dict[str, Any]:
        """As `listPublishers#publisherView`."""
        return {
            "did": self.did,
            "handle": self.handle or NO_HANDLE,
            "datasets": self.datasets,
            "schemas": self.schemas,
            "lenses": self.lenses,
            "labels": self.labels,
            "firstSeenAt": format_datetime(self.since),
            "lastIndexedAt": format_datetime(self.indexed_at),
        }


@dataclass(frozen=True, slots=True)
class PublisherListing:
    """One page of publishers. ``cursor`` is None on the last one."""

    publishers: Sequence[Publisher]
    cursor: str | None

    def answer(self) -> dict[str, Any]:
        """As the output of `listPublishers`."""
        answer: dict[str, Any] = {"publishers": [publisher.view() for publisher in self.publishers]}
        if self.cursor is not None:
            answer["cursor"] = self.cursor
        return answer


@dataclass(frozen=True, slots=True)
class Match:
    """A dataset or schema that a search found, where its words occur, as HTML, and what its structure is called."""

    record: Published
    highlights: Mapping[str, str]
    structure: str | None = None

    def view(self, **more: Any) -> dict[str, Any]:
        """As `datasetView` or `schemaView`, with *more* members."""
        return self.record.view(highlights=self.highlights, **more) if self.highlights else self.record.view(**more)


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of a search. ``facets`` are there only when asked for; ``cursor`` is None on the last page."""

    matches: Sequence[Match]
    total: int
    facets: Mapping[Facet, Mapping[str, int]] = field(default_factory=dict)
    cursor: str | None = None

    def answer(self, key: str) -> dict[str, Any]:
        """As the output of a search method whose records are called *key*."""
        answer: dict[str, Any] = {key: [match.view() for match in self.matches], "total": self.total}
        if self.facets:
            answer["facets"] = {
                facet: [{"value": value, "count": count} for value, count in values.items()]
                for facet, values in self.facets.items()
            }
        if self.cursor is not None:
            answer["cursor"] = self.cursor
        return answer


#: What keeps datasets from being shown: there was never an indexer; it is silent; it never reached its relay; it lost
#: it; repositories are still to be fetched; changes are still to be made searchable.
Delay = Literal["no indexer", "silent", "unreached", "lost", "fetching", "indexing"]

# An indexer that runs says so every few seconds.
_SILENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Relay:
    """How far a relay was read."""

    host: str
    seq: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Sweep:
    """A comparison of repositories with their hosts. ``finished_at`` is None while it is under way."""

    reason: str
    started_at: datetime
    finished_at: datetime | None
    checked: int
    differing: int
    unreachable: int

    def answer(self) -> dict[str, Any]:
        """As `sweep` in the output of `getStatus`."""
        answer: dict[str, Any] = {
            "reason": self.reason,
            "startedAt": format_datetime(self.started_at),
            "checked": self.checked,
            "differing": self.differing,
            "unreachable": self.unreachable,
        }
        if self.finished_at is not None:
            answer["finishedAt"] = format_datetime(self.finished_at)
        return answer


@dataclass(frozen=True, slots=True)
class Status:
    """What we hold and how far behind we are. ``indexer`` is what it last said of itself, None if none ever ran."""

    records: Mapping[str, int]
    repositories: Mapping[str, int]
    relays: Sequence[Relay]
    indexer: Mapping[str, Any] | None
    indexer_seen_at: datetime | None
    backlog: int
    quarantine: Mapping[str, int]
    sweep: Sweep | None
    search_documents: int

    @property
    def lag(self) -> float | None:
        """Seconds between an event's time and its arrival here, as the indexer reports them."""
        lag = (self.indexer or {}).get("lagSeconds")
        return float(lag) if isinstance(lag, int | float) else None

    @property
    def relay(self) -> str:
        """The host that the indexer reads, or is to read; empty if it has not said."""
        return str((self.indexer or {}).get("relay") or "")

    @property
    def trouble(self) -> str:
        """What last went wrong, as the indexer puts it; empty if nothing is wrong."""
        return str((self.indexer or {}).get("trouble") or "")

    @property
    def to_fetch(self) -> int:
        """Repositories still to be fetched. The indexer leaves out those of accounts that are not active."""
        desynced = (self.indexer or {}).get("desynced")
        return desynced if isinstance(desynced, int) else self.repositories["desynchronized"]

    def delay(self, now: datetime) -> Delay | None:
        """What keeps datasets from being shown, the gravest first; None when all that was published is here."""
        if self.indexer is None or self.indexer_seen_at is None:
            return "no indexer"
        if now - self.indexer_seen_at > _SILENCE:
            return "silent"
        if not self.indexer.get("connected"):
            return "lost" if any(relay.host == self.relay for relay in self.relays) else "unreached"
        if self.to_fetch:
            return "fetching"
        # Known, and not in the engine: it waits for its turn, or the engine is in trouble, or is not the indexer's.
        is_missing = self.records["dataset"] > 0 and self.search_documents == 0
        return "indexing" if self.backlog or is_missing else None

    def answer(self) -> dict[str, Any]:
        """As the output of `getStatus`."""
        answer: dict[str, Any] = {
            "version": __version__,
            "records": dict(self.records),
            "repositories": dict(self.repositories),
            "relays": [
                {"host": relay.host, "seq": relay.seq, "updatedAt": format_datetime(relay.updated_at)}
                for relay in self.relays
            ],
            "searchDocuments": self.search_documents,
            "backlog": self.backlog,
            "quarantine": [{"reason": reason, "count": count} for reason, count in self.quarantine.items()],
        }
        if self.sweep is not None:
            answer["sweep"] = self.sweep.answer()
        if self.indexer is not None and self.indexer_seen_at is not None:
            answer["indexer"] = {
                "status": _whole(self.indexer),
                "updatedAt": format_datetime(self.indexer_seen_at),
            }
        return answer


def _whole(value: Any) -> Any:
    # The protocol's data model, and so a lexicon's `unknown`, has no fractions.
    if isinstance(value, float):
        return round(value)
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return value
