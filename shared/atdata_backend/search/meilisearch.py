"""Own the Meilisearch index: its settings, its documents, and what is asked of it over HTTP."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from meilisearch import Client
from meilisearch.errors import MeilisearchApiError, MeilisearchError
from pydantic import ValidationError

from atdata.errors import ConfigError, NetworkError
from atdata_backend.search import cursors, text
from atdata_backend.search.base import FACET_VALUES, FACETS, Document, Facet, Hit, Query, Results, Sort

log = logging.getLogger(__name__)

INDEX = "datasets"
SCHEMAS = "schemas"

# Seconds: for an answer, and for a batch to be indexed, which on a busy server waits for those before it.
_ANSWER, _INDEXING = 10, 300
_MAX_PAGE = 1_000
# More words of a query do not count.
_MAX_WORDS = 10
# A page is sought this many hits around where it should be, since documents come and go between pages.
_SLACK = 50
# Around a match in what the server returns. They are taken out of what is stored, so that they can mean nothing else.
_MARKS = ("\ue000", "\ue001")

_SETTINGS: Mapping[str, Any] = {
    "searchableAttributes": ["name", "forms", "tags", "schemaName", "fieldNames", "keywords", "handle", "description"],
    "filterableAttributes": sorted([*FACETS, "bytes", "columns", "created", "id", "samples", "structure"]),
    "sortableAttributes": ["byName", "created", "samples", "tie"],
    # `sort` first: who sorts by a value wants that order. The last rule makes every order a total one.
    "rankingRules": ["sort", "words", "typo", "proximity", "attribute", "exactness", "tie:asc"],
    "typoTolerance": {
        "enabled": True,
        "minWordSizeForTypos": {"oneTypo": 4, "twoTypos": 8},
        "disableOnNumbers": True,  # 2018 is not a misspelt 2019
    },
    "faceting": {"maxValuesPerFacet": FACET_VALUES, "sortFacetValuesBy": {"*": "count"}},
    "pagination": {"maxTotalHits": 1_000_000},
}

_SORTS: Mapping[Sort, tuple[str, bool]] = {  # attribute, whether it descends
    "newest": ("created", True),
    "oldest": ("created", False),
    "samples": ("samples", True),
    "name": ("byName", False),
}


class MeilisearchEngine:
    """Search in the index *index* of the Meilisearch server at *url*, version 1.15 or later.

    >>> engine = MeilisearchEngine("http://localhost:7700", "a key that may do all with indexes, documents and tasks")
    >>> engine.apply([document], deletes=[])
    >>> [hit.uri for hit in engine.search(Query("imagenet")).hits]
    ['at://did:plc:…/ac.foundation.dataset.record/3l…']

    Raises NetworkError if the server does not answer or cannot do what it is asked, ConfigError if it refuses the key.

    Where it differs from the embedded engine, by Meilisearch's nature: URIs of schemas and names of structures are
    compared without case, too, only the last word may be unfinished, words are dropped from the end of a query that
    nothing matches, and ten words count.
    """

    def __init__(self, url: str, api_key: str | None = None, index: str = INDEX) -> None:
        self._url = url.rstrip("/")
        self._key = api_key
        self._name = index
        self._is_set_up = False
        self._schemas = self if index == SCHEMAS else MeilisearchEngine(url, api_key, SCHEMAS)
        self._writing = threading.Lock()
        # The client changes its headers from request to request, so threads must not share one.
        self._clients = threading.local()

    @property
    def schemas(self) -> MeilisearchEngine:
        """The same for schemas, in the index `schemas`."""
        return self._schemas

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        """Store and remove documents, deletes first; durable and visible to all when it returns.

        With nothing to do, it makes the index ready. One that another version of this program has set up, whose
        documents lack what is asked for now, is emptied then, so that whoever starts next fills it.
        """
        documents = {document["id"]: document for document in map(_document, upserts)}
        with self._writing, self._asking() as client:
            was_other = self._set_up(client)
            index = client.index(self._name)
            tasks = []
            if deletes:
                ids = ", ".join(_literal(_id(text.clean(uri))) for uri in deletes)
                tasks.append(index.delete_documents(filter=f"id IN [{ids}]"))
            if documents:
                tasks.append(index.add_documents(list(documents.values()), primary_key="id"))
            if was_other and not tasks:
                log.info("emptying the index %s of Meilisearch, which was set up otherwise", self._name)
                tasks.append(index.delete_all_documents())
            for task in tasks:
                self._finish(client, task.task_uid)

    def search(self, query: Query) -> Results:
        """The page of *query*. Raises `BadCursor`."""
        search = _Search(query, self._name)
        try:
            with self._asking() as client:
                return search.results(lambda queries: client.multi_search(queries)["results"])
        except _NoIndex:
            return Results(hits=(), total=0, facets={facet: {} for facet in query.facets})

    def similar(self, uri: str, limit: int) -> tuple[Hit, ...]:
        """The document at *uri*, and after it those that are most like it; nothing if it is not here."""
        id_ = _id(text.clean(uri))
        try:
            with self._asking() as client:
                index = client.index(self._name)
                found = index.get_documents({"filter": f"id = {_literal(id_)}", "limit": 1}).results
                if not found:
                    return ()
                document = dict(found[0])
                asking = {
                    "filter": f"id != {_literal(id_)}",
                    "limit": min(max(limit, 1), _MAX_PAGE),
                    "attributesToRetrieve": ["uri", "structure"],
                    # Of the words, it drops those first that most documents have.
                    "matchingStrategy": "frequency",
                }
                alike = index.search(words, asking)["hits"] if (words := _telling_words(document)) else []
                return tuple(map(_hit, [document, *alike]))
        except _NoIndex:
            return ()

    def count(self) -> int:
        """How many documents there are."""
        try:
            with self._asking() as client:
                return int(client.index(self._name).get_stats().number_of_documents)
        except _NoIndex:
            return 0

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and stamp, in no particular order."""
        offset = 0
        while True:
            try:
                with self._asking() as client:
                    page = client.index(self._name).get_documents(
                        {"fields": ["uri", "stamp"], "limit": 1_000, "offset": offset}
                    )
            except _NoIndex:
                return
            yield from ((document.uri, getattr(document, "stamp", "")) for document in page.results)
            offset += len(page.results)
            if not page.results:
                return

    def clear(self) -> None:
        """Remove every document."""
        with self._writing, self._asking() as client:
            self._set_up(client)
            self._finish(client, client.index(self._name).delete_all_documents().task_uid)

    def close(self) -> None:
        """Nothing to release: each request has a connection of its own."""

    def _set_up(self, client: Client) -> bool:
        """Make the index and its settings what they should be, before the first write. Whether they were otherwise."""
        if self._is_set_up:
            return False
        current: dict[str, Any] | None
        try:
            current = client.index(self._name).get_settings()
        except MeilisearchApiError as error:
            if error.code != "index_not_found":
                raise
            current = None
        settings = dict(current or {})
        for name in ("filterableAttributes", "sortableAttributes"):  # sets, in the server's order
            settings[name] = sorted(settings.get(name, []), key=str)
        wrong = {name: value for name, value in _SETTINGS.items() if not _agrees(settings.get(name), value)}
        if wrong:
            self._finish(client, client.index(self._name).update_settings(wrong).task_uid)
        self._is_set_up = True
        return current is not None and bool(wrong)

    def _finish(self, client: Client, task_uid: int) -> None:
        task = client.wait_for_task(task_uid, timeout_in_ms=_INDEXING * 1_000, interval_in_ms=10)
        if task.status != "succeeded":
            reason = (task.error or {}).get("message") or f"the task was {task.status}"
            raise NetworkError(f"Meilisearch at {self._url} did not do task {task_uid} ({task.type}): {reason}")

    @contextmanager
    def _asking(self) -> Iterator[Client]:
        """This thread's client, its errors turned into ours."""
        client: Client | None = getattr(self._clients, "client", None)
        if client is None:
            client = self._clients.client = Client(self._url, self._key, timeout=_ANSWER)
        try:
            yield client
        except MeilisearchApiError as error:
            if error.code == "index_not_found":
                raise _NoIndex from error
            if error.status_code in (401, 403):
                message = (
                    f"Meilisearch at {self._url} refuses the API key ({error.message}); give it one that may write"
                )
                raise ConfigError(message) from error
            raise NetworkError(f"Meilisearch at {self._url} cannot do that: {error.message}") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            # A proxy's page, or another service. Before OSError, which requests makes of bad JSON as well.
            message = f"what runs at {self._url} answers, but not as Meilisearch does; check the URL"
            raise NetworkError(message) from error
        except (MeilisearchError, OSError) as error:
            message = (
                f"Meilisearch at {self._url} does not answer ({getattr(error, 'message', error)}); check that it runs "
                "and that this is its URL, or configure none to search in the embedded engine"
            )
            raise NetworkError(message) from error


class _NoIndex(Exception):
    """Nothing has been written yet."""


def _agrees(current: Any, wanted: Any) -> bool:
    """Whether *current* has all that is *wanted*; a server may say more than it was told."""
    if isinstance(wanted, Mapping):
        return isinstance(current, Mapping) and all(_agrees(current.get(key), value) for key, value in wanted.items())
    return bool(current == wanted)


def _id(uri: str) -> str:
    # Meilisearch ids allow only [A-Za-z0-9_-], so an AT URI is hashed.
    return hashlib.sha256(uri.encode()).hexdigest()


def _document(document: Document) -> dict[str, Any]:
    """*document* as the index has it."""
    uri, name = text.clean(document.uri), _unmarked(document.name)
    tags = list(dict.fromkeys(map(text.clean, document.tags)))
    columns = text.columns(document.fields)
    field_names = [column.split(":")[0] for column in columns]
    id_ = _id(uri)
    return {
        "id": id_,
        "tie": int(id_[:13], 16),  # numbers are doubles there, so 52 bits
        "uri": uri,
        "stamp": document.stamp,
        "name": name,
        "forms": sorted(text.forms(name).union(*map(text.forms, [*tags, document.schema_name, *field_names]))),
        "tags": tags,
        "schemaName": text.clean(document.schema_name),
        "fieldNames": field_names,
        "keywords": [text.clean(word) for word in document.keywords],
        "handle": text.clean(document.handle or ""),
        "description": _unmarked(document.description),
        "license": text.clean(document.license or "") or None,
        "schema": text.clean(document.schema_uri or "") or None,
        "publisher": text.clean(document.did),
        "storage": text.clean(document.storage or "") or None,
        "columns": sorted({prefix for column in columns for prefix in text.column_forms(column)}),
        "created": _micros(document.created_at),
        "structure": text.clean(document.structure or "") or None,
        "samples": _amount(document.samples),
        "bytes": _amount(document.bytes),
        "byName": text.fold(name)[:100],
    }


def _amount(given: int | None) -> int:
    """What is *given*, as far as a double holds it exactly; -1 for an unknown amount, which comes last."""
    return -1 if given is None else min(max(given, 0), 2**53)


def _unmarked(value: str) -> str:
    return text.clean(value).replace(_MARKS[0], "").replace(_MARKS[1], "")


def _micros(moment: datetime) -> int:
    """Microseconds since 1970: exact in a double for the next two hundred years."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _literal(value: str) -> str:
    """*value* in a filter, where backslash and quote are escaped and nothing else is special."""
    return '"' + text.clean(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _filters(query: Query) -> dict[str, list[str]]:
    """Filter expressions, all of which must hold, under the facet's name where it has one."""
    filters: dict[str, list[str]] = {
        "tags": [f"tags = {_literal(value)}" for value in query.tags],
        "columns": [f"columns = {_literal(value)}" for value in text.columns(query.fields)],
    }
    for name, values in (
        ("license", query.licenses),
        ("schema", query.schemas),
        ("publisher", query.publishers),
        ("storage", query.storage),
        ("structure", query.structures),
    ):
        filters[name] = [f"{name} IN [{', '.join(map(_literal, values))}]"] if values else []
    for name, uris, operator in (("uris", query.uris, "IN"), ("without", query.without, "NOT IN")):
        ids = ", ".join(_literal(_id(text.clean(uri))) for uri in uris)
        filters[name] = [f"id {operator} [{ids}]"] if uris else []
    bounds = []
    amounts = {"samples": (query.min_samples, query.max_samples), "bytes": (query.min_bytes, query.max_bytes)}
    for name, (low, high) in amounts.items():
        if low is not None or high is not None:
            # From 0: who does not say how much there is has not said that there is little.
            bounds.append(f"{name} >= {max(low or 0, 0)}")
        if high is not None:
            bounds.append(f"{name} <= {high}")
    if query.created_after is not None:
        bounds.append(f"created >= {_micros(query.created_after)}")
    if query.created_before is not None:
        bounds.append(f"created <= {_micros(query.created_before)}")
    return {**filters, "bounds": bounds}


def _words(asked: str) -> str:
    """A query's text as Meilisearch takes it: without stop words, and without its operator, the minus."""
    asked = text.clean(asked[: text.MAX_QUERY]).replace("“", '"').replace("”", '"')
    if asked.count('"') % 2:
        asked = asked[: asked.rindex('"')] + " " + asked[asked.rindex('"') + 1 :]
    words = [word.lstrip("-") for word in asked.split()]
    if '"' not in asked:
        words = [word for word in words if text.fold(word) not in text.STOP_WORDS] or words
    return " ".join(words[: text.MAX_WORDS])


@dataclass(frozen=True, slots=True)
class _Last:
    """The last hit of a page: the ``offset``-th of all, with the value ``key`` to sort by and the number ``tie``."""

    key: float | str
    tie: int
    offset: int


class _Search:
    """One query: the requests it takes and the page they make."""

    def __init__(self, query: Query, index: str) -> None:
        self._query = query
        self._index = index
        self._limit = min(max(query.limit, 1), _MAX_PAGE)
        self._words = _words(query.text)
        self._filters = _filters(query)
        sort: Sort = "newest" if query.sort == "relevance" and not self._words else query.sort
        self._by = _SORTS.get(sort)
        self._last: _Last | None = None
        if query.cursor is not None:
            types = [str if sort == "name" else (int, float), int, int]
            self._last = _Last(*cursors.decode("meilisearch", query, types))

    def results(self, ask: Any) -> Results:
        """The page, by way of *ask*, which sends searches together and returns their results."""
        offset = max(self._last.offset - _SLACK, 0) if self._last else 0
        want = self._limit + 1 + (2 * _SLACK if self._last else 0)
        own: list[Facet] = [facet for facet in self._query.facets if self._filters[facet]]
        shared: list[Facet] = [facet for facet in self._query.facets if not self._filters[facet]]
        found, counted, *others = ask(
            [
                self._hits(offset, want),
                self._counts(shared),
                *(self._counts([facet], without=facet) for facet in own),
            ]
        )
        hits = found["hits"]
        while True:
            start = self._after(hits)
            if start == 0 and offset > 0:  # so many are gone that the page begins before what we looked at
                offset, want = max(offset - want, 0), want * 2
            elif len(hits) - start <= self._limit and len(hits) == want:  # so many came that it ends behind it
                want *= 2
            else:
                break
            hits = ask([self._hits(offset, want)])[0]["hits"]
        page = hits[start : start + self._limit]
        cursor = None
        if len(hits) - start > self._limit:
            last = [*self._position(page[-1]), offset + start + self._limit]
            cursor = cursors.encode("meilisearch", self._query, last)
        facets = {facet: _facet(counted, facet) for facet in shared}
        facets |= {facet: _facet(other, facet) for facet, other in zip(own, others, strict=True)}
        return Results(
            hits=tuple(map(_hit, page)),
            total=counted["totalHits"],
            facets={facet: facets[facet] for facet in self._query.facets},
            cursor=cursor,
        )

    def _asking(self, without: Facet | None = None) -> dict[str, Any]:
        """What all searches for this query have in common."""
        must = [part for name, parts in self._filters.items() if name != without for part in parts]
        return {"indexUid": self._index, "q": self._words, "filter": must, "matchingStrategy": "last"}

    def _hits(self, offset: int, limit: int) -> dict[str, Any]:
        asking = {
            **self._asking(),
            "offset": offset,
            "limit": limit,
            "attributesToRetrieve": ["uri", "structure", "tie", *([self._by[0]] if self._by else [])],
        }
        if self._by:
            asking["sort"] = [f"{self._by[0]}:{'desc' if self._by[1] else 'asc'}", "tie:asc"]
        else:
            asking["showRankingScore"] = True
        if self._words and self._query.marks:
            asking |= {
                "attributesToHighlight": ["name", "description"],
                "attributesToCrop": ["description"],
                "cropLength": 30,
                "highlightPreTag": _MARKS[0],
                "highlightPostTag": _MARKS[1],
            }
        return asking

    def _counts(self, facets: Sequence[Facet], without: Facet | None = None) -> dict[str, Any]:
        """A search for exact counts, which Meilisearch gives only where pages are numbered."""
        return {**self._asking(without), "facets": list(facets), "hitsPerPage": 1, "attributesToRetrieve": ["tie"]}

    def _position(self, hit: Mapping[str, Any]) -> tuple[float | str, int]:
        return hit[self._by[0]] if self._by else hit["_rankingScore"], hit["tie"]

    def _after(self, hits: Sequence[Mapping[str, Any]]) -> int:
        """The first of *hits* that comes after the cursor."""
        if self._last is None:
            return 0
        for i, hit in enumerate(hits):
            if hit["tie"] == self._last.tie:
                return i + 1
        # The last hit shown is gone: the page goes on where it was.
        descends = self._by[1] if self._by else True
        for i, hit in enumerate(hits):
            key, tie = self._position(hit)
            if key == self._last.key:
                if tie > self._last.tie:
                    return i
            elif (key < self._last.key) if descends else (key > self._last.key):  # type: ignore[operator]
                return i
        return len(hits)


def _hit(hit: Mapping[str, Any]) -> Hit:
    formatted = hit.get("_formatted", {})
    highlights = {}
    for name in ("name", "description"):
        if _MARKS[0] in (value := formatted.get(name) or ""):
            escaped = html.escape(value)
            highlights[name] = escaped.replace(_MARKS[0], "<mark>").replace(_MARKS[1], "</mark>")
    return Hit(hit["uri"], highlights, hit.get("structure"))


def _telling_words(document: Mapping[str, Any]) -> str:
    """What to ask for to find documents like this one: the words of its name, tags and fields, as many as count."""
    labels = [document["name"], *document["tags"], document["schemaName"], *document["fieldNames"]]
    words = dict.fromkeys(word for label in labels for word in text.words(label) if word not in text.STOP_WORDS)
    return " ".join([*words][:_MAX_WORDS])


def _facet(result: Mapping[str, Any], facet: Facet) -> dict[str, int]:
    counts: dict[str, int] = result.get("facetDistribution", {}).get(facet, {})
    return dict(sorted(counts.items(), key=lambda value: (-value[1], value[0])))
