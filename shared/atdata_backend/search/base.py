"""The search engine's interface: what a dataset looks like to it, what can be asked, and what comes back.

An engine is derived data. The indexer feeds it from Postgres and can always rebuild it; the AppView asks it for hits,
and Postgres which of their records are still so, so that a stale engine can never show what was deleted or hidden.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, Protocol, get_args

from atdata_backend.published import Published

Facet = Literal["tags", "license", "schema", "publisher", "storage"]
Sort = Literal["relevance", "newest", "oldest", "samples", "name"]

FACETS: tuple[Facet, ...] = get_args(Facet)
SORTS: tuple[Sort, ...] = get_args(Sort)

#: The facets whose values people write by hand: case makes no difference. The others are identifiers, where it may.
CASELESS: frozenset[Facet] = frozenset({"tags", "license", "storage"})

#: A facet lists at most this many values, the most frequent first.
FACET_VALUES = 50


@dataclass(frozen=True, slots=True)
class Document:
    """One dataset as the engine sees it, or one schema, which has fewer of these.

    ``fields`` are the schema's fields as ``name:type`` or ``name:ndarray:dtype``; ``samples`` and ``bytes`` are None
    when the publisher did not say. ``structure`` names what its samples look like: datasets with the same one can be
    read alike. ``keywords`` are further words to be found by. ``record`` is what a hit brings along.
    """

    uri: str
    did: str
    handle: str | None
    name: str
    created_at: datetime
    description: str = ""
    tags: tuple[str, ...] = ()
    license: str | None = None
    schema_uri: str | None = None
    schema_name: str = ""
    fields: tuple[str, ...] = ()
    storage: str | None = None
    samples: int | None = None
    bytes: int | None = None
    structure: str | None = None
    keywords: tuple[str, ...] = ()
    record: Published | None = None

    @property
    def stamp(self) -> str:
        """A digest of all of it: two documents that differ in anything have different ones."""
        # Moments as numbers: who asks the database from another time zone is told the same ones otherwise.
        values: list[Any] = [getattr(self, name) for name in _STAMPED]
        values.append(self.created_at.timestamp())
        if one := self.record:
            values += [one.cid, one.handle, one.json, one.problems, one.verified, one.indexed_at.timestamp()]
        return hashlib.blake2b(json.dumps(values).encode(), digest_size=12).hexdigest()


_STAMPED = tuple(one.name for one in fields(Document) if one.name not in ("created_at", "record"))


@dataclass(frozen=True, slots=True)
class Query:
    """A search. An empty *text* browses: everything that passes the filters.

    *text* is free text over name, description, tags, publisher's handle, schema name and field names. A word matches
    itself, a word it is the beginning of, and words within a typo or two. ``"double quotes"`` ask for a phrase.

    Filters of different kinds must all hold. Within ``tags`` and ``fields`` every value must be present; within the
    others one of them. ``fields`` takes ``name``, ``name:type`` or ``name:type:dtype``. Case makes no difference,
    but in ``schemas``, ``structures`` and ``publishers``. None of ``structures`` is any; ``structures`` may change from
    page to page. ``uris`` are the only documents in question, none is any; those in ``without``, which may change from
    page to page, are not. Without ``marks``, hits have no highlights.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    publishers: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()
    min_samples: int | None = None
    max_samples: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    sort: Sort = "relevance"
    facets: tuple[Facet, ...] = ()
    limit: int = 25
    cursor: str | None = None
    uris: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Hit:
    """A dataset that matches, and what is its structure.

    ``highlights``: ``name`` and ``description`` as HTML, escaped, with matches in <mark>. ``record`` is the document's,
    where the engine keeps it; of one that is unusually large, all but its ``json``, which is empty.
    """

    uri: str
    highlights: Mapping[str, str] = field(default_factory=dict)
    structure: str | None = None
    record: Published | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """One page. ``cursor`` is None on the last one. ``facets`` maps a facet to its values' counts, most frequent first.

    Facet counts are disjunctive: a facet's own filter does not hide its other values. Values that differ in case only
    are counted together, under one of the spellings that were published.
    """

    hits: tuple[Hit, ...]
    total: int
    facets: Mapping[Facet, Mapping[str, int]] = field(default_factory=dict)
    cursor: str | None = None


class BadCursor(ValueError):
    """The cursor is not one that this engine gave out, or belongs to another query."""


class SearchEngine(Protocol):
    """What every engine does. Calls block: async code runs them in a thread. One process writes, many may read."""

    @property
    def schemas(self) -> SearchEngine:
        """The same for schemas, which are kept apart from datasets. It is closed with this one."""
        ...

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        """Store and remove documents. On return they are durable, and the next search in any process sees them."""
        ...

    def search(self, query: Query) -> Results:
        """The page of *query*. Raises `BadCursor`; NetworkError where the engine is a server that does not answer."""
        ...

    def similar(self, uri: str, limit: int) -> tuple[Hit, ...]:
        """The document at *uri*, and after it at most *limit* that are most like it; nothing if it is not here.

        They share its rarest words, its tags, its fields or its structure. Raises what `search` raises.
        """
        ...

    def count(self) -> int:
        """How many documents there are."""
        ...

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and `Document.stamp`, in no particular order."""
        ...

    def clear(self) -> None:
        """Remove every document."""
        ...

    def close(self) -> None:
        """Release files, locks and connections."""
        ...
