"""The web pages: what they show, made of the same queries as the methods' answers. No script runs in them.

Whatever a record holds is hostile: templates escape everything, links go to http and https only, and highlights are
taken apart and put together again.
"""

from __future__ import annotations

import asyncio
import html
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from atdata import __version__, nsid
from atdata.atmosphere import records
from atdata.atmosphere.uri import AtUri
from atdata.errors import NetworkError, UriError
from atdata.nsid import Kind
from atdata_appview import docs
from atdata_appview.errors import NotFound, RequestError
from atdata_appview.lens_picture import Node, Picture, draw
from atdata_appview.lens_table import State
from atdata_appview.models import Delay, Record, SearchPage, Status
from atdata_appview.replies import cacheable
from atdata_appview.routes.datasets import search_query
from atdata_appview.routes.lookups import resolve_dataset
from atdata_appview.routes.parameters import record_uris
from atdata_appview.routes.xrpc import checked_params
from atdata_appview.services import Services
from atdata_backend.published import NO_HANDLE, Published
from atdata_backend.search import text as search_text
from atdata_backend.search.base import CASELESS, FACETS, SORTS, Facet

_T = TypeVar("_T")

_SEARCH = nsid.PREFIX + "searchDatasets"

# Which parameter of a search a facet's values go to, and what a person calls it.
_FACET_PARAMETERS: Mapping[Facet, str] = {
    "tags": "tags",
    "license": "licenses",
    "schema": "schemas",
    "publisher": "publishers",
    "storage": "storage",
}
_FACET_TITLES: Mapping[Facet, str] = {
    "tags": "Tags",
    "license": "License",
    "schema": "Schema",
    "publisher": "Publisher",
    "storage": "Storage",
}
# What a filter is called where it stands alone.
_FILTER_TITLES = {
    "tags": "tag",
    "licenses": "license",
    "schemas": "schema",
    "publishers": "by",
    "storage": "stored as",
    "loadableAs": "loadable as",
    "fields": "with field",
    "minSamples": "samples ≥",
    "maxSamples": "samples ≤",
    "createdAfter": "since",
    "createdBefore": "until",
}
_SORT_TITLES = {
    "relevance": "best match",
    "newest": "newest first",
    "oldest": "oldest first",
    "samples": "most samples",
    "name": "by name",
}
_STORAGE_TITLES = {"external": "URLs", "blobs": "blobs", "http": "HTTP", "s3": "S3"}

# Shown at once; the rest of a list is counted, that of a text left to the answers of methods.
_SHOWN_SHARDS = 50
_SHOWN_FIELDS = 200
_SHOWN_TAGS = 50
_SHOWN_RELATED = 20
_SHOWN_LIKE = 3
_SHOWN_LOADABLE = 100
_SHOWN_NAME = 300
_SHOWN_TEXT = 20_000
_SHOWN_JSON = 100_000

# Characters of records. To read more takes long enough for other requests to notice, so a thread does it.
_READ_AT_ONCE = 64_000

# Letters and symbols of which there is nothing to see.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"

# What a card shows, and so all that is read of a record for it.
_CARD_MEMBERS = ("name", "schemaRef", "description", "tags", "license", "size", "createdAt")

# The collection that a page's short address means.
_COLLECTIONS: Mapping[Kind, str] = {"dataset": nsid.DATASET, "schema": nsid.SAMPLE_SCHEMA}


# --- The search page


@dataclass(frozen=True, slots=True)
class Card:
    """One dataset in a list."""

    row: Published
    dataset: records.DatasetRecord
    highlights: Mapping[str, str]

    @property
    def name(self) -> str:
        return titled(self.dataset.name, self.row.rkey)


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a facet, or one filter that is on; ``url`` turns it on, or off."""

    label: str
    url: str
    count: int | None = None
    is_on: bool = False
    title: str = ""


async def search(request: Request) -> Response:
    """The search box, and what it finds."""
    services: Services = request.app.state.services
    params = checked_params(_SEARCH, request.scope["query_string"], skip_empty=True)
    if "facets" not in params:
        params["facets"] = list(FACETS)
    query = await search_query(services, params)
    page = await services.search.datasets(query)
    # As they were resolved: a facet counts DIDs, whatever name the filter was given by.
    asked = _Asked({**params, "publishers": list(query.publishers), "schemas": list(query.schemas)})
    rows = [match.record for match in page.matches]
    summaries = await _apart(rows, lambda: [_summary(row) for row in rows])
    cards = [
        Card(match.record, summary, match.highlights) for match, summary in zip(page.matches, summaries, strict=True)
    ]
    names = await _names(services, page, cards, asked)
    status = await services.status.get()
    return await _page(
        request,
        "search.html",
        asked=asked,
        total=page.total,
        cards=cards,
        schema_names=names,
        facets=[
            (_FACET_TITLES[facet], _choices(facet, page.facets.get(facet, {}), asked, names))
            for facet in FACETS
            if facet in page.facets
        ],
        filters=asked.filters(names),
        next_url=asked.url(cursor=page.cursor) if page.cursor else None,
        sorts=[(sort, _SORT_TITLES[sort]) for sort in SORTS],
        storage_titles=_STORAGE_TITLES,
        status=status,
        delay=status.delay(datetime.now(UTC)),
    )


class _Asked:
    """What the address of a search page asks for, and the addresses of pages that ask for a little more or less."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.text: str = params.get("q", "")
        self.sort: str = params["sort"]
        self.is_first = "cursor" not in params
        skipped = {"q", "sort", "facets", "cursor"} | ({"limit"} if params["limit"] == 25 else set())
        self.pairs: list[tuple[str, str]] = [
            (name, str(value))
            for name, values in params.items()
            if name not in skipped
            for value in (values if isinstance(values, list) else [values])
        ]

    def url(
        self, add: Sequence[tuple[str, str]] = (), drop: Sequence[tuple[str, str]] = (), cursor: str | None = None
    ) -> str:
        """The address with the parameters *add* and without *drop*."""
        pairs = [("q", self.text)] if self.text else []
        pairs += [pair for pair in self.pairs if pair not in drop]
        pairs += add
        pairs += [("sort", self.sort)] if self.sort != "relevance" else []
        pairs += [("cursor", cursor)] if cursor else []
        return "/?" + urlencode(pairs) if pairs else "/"

    def values(self, name: str) -> list[str]:
        """The values of one parameter."""
        return [value for key, value in self.pairs if key == name]

    def filters(self, names: Mapping[str, str]) -> list[Choice]:
        """Everything that narrows the search, each with the address that takes it away."""
        return [
            Choice(
                _STORAGE_TITLES.get(value, value) if name == "storage" else names.get(value, value),
                self.url(drop=[(name, value)]),
                title=_FILTER_TITLES[name],
                is_on=True,
            )
            for name, value in self.pairs
            if name in _FILTER_TITLES
        ]


def _choices(facet: Facet, counts: Mapping[str, int], asked: _Asked, names: Mapping[str, str]) -> list[Choice]:
    parameter = _FACET_PARAMETERS[facet]
    # A filter may be spelled otherwise than what it finds, and twice.
    key = search_text.key if facet in CASELESS else str
    chosen: dict[str, list[tuple[str, str]]] = {}
    for value in asked.values(parameter):
        chosen.setdefault(key(value), []).append((parameter, value))
    # A chosen value that nothing has, and that so is not counted, must be there to be taken away.
    counted = set(map(key, counts))
    all_counts = {**{pairs[0][1]: 0 for asked_key, pairs in chosen.items() if asked_key not in counted}, **counts}
    choices = [
        Choice(
            label=_STORAGE_TITLES.get(value, value) if facet == "storage" else names.get(value, value),
            url=asked.url(drop=chosen[key(value)]) if key(value) in chosen else asked.url(add=[(parameter, value)]),
            count=count,
            is_on=key(value) in chosen,
            title=value,
        )
        for value, count in all_counts.items()
    ]
    return sorted(choices, key=lambda choice: not choice.is_on)


async def _names(services: Services, page: SearchPage, cards: Sequence[Card], asked: _Asked) -> dict[str, str]:
    """What people call the schemas and publishers that a search page mentions."""
    filters = [*asked.values("schemas"), *asked.values("loadableAs")]
    uris = [*page.facets.get("schema", ()), *filters, *(card.dataset.schema_ref for card in cards)]
    dids = [*page.facets.get("publisher", ()), *asked.values("publishers")]
    return {
        **await _schema_names(services, uris),
        **({did: f"@{handle}" for did, handle in (await services.store.handles(dids)).items()} if dids else {}),
    }


async def _schema_names(services: Services, uris: Iterable[str]) -> dict[str, str]:
    """What those schemas that we hold are called, by URI."""
    names = await services.store.schema_names(dict.fromkeys(uris))
    return {uri: titled(name, uri.rpartition("/")[2]) for uri, name in names.items()}


# --- The pages of one record


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One row of a schema's table."""

    name: str
    type: str
    ref: str | None
    is_optional: bool
    description: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One entry of a dataset's storage. ``href`` is None for what a browser cannot or must not open."""

    text: str
    href: str | None
    size: int | None = None


async def dataset(request: Request) -> Response:
    """One dataset: what it is, what its samples hold, where they are, and how to load them."""
    services: Services = request.app.state.services
    if request.path_params["authority"].startswith("@"):
        # As people name it everywhere else.
        name = "{authority}/{rkey}".format_map(request.path_params)
        found = await resolve_dataset(services, {"dataset": name})
        return RedirectResponse(page_path(found["dataset"]["uri"]) or "/", 302)
    row = await _record_at(request, "dataset")
    reading, pretty = await _apart([row], lambda: (_dataset(row), _pretty(row)))
    schema = (await services.store.records([reading.schema_ref], "schema")).get(reading.schema_ref)
    # Anybody may label anything; only the publisher's own say something about the dataset.
    labels = await services.store.labels(row.uri, publisher=row.did, limit=_SHOWN_RELATED)
    schema_value = None if schema is None else await _apart([schema], lambda: _schema(schema))
    label_values = await _apart(labels.records, lambda: [_value(label) for label in labels.records])
    shards, more_shards = _shards(row, reading.storage)
    fields, more_fields = ([], 0) if schema_value is None else _fields(schema_value)
    refs = [field.ref for field in fields if field.ref]
    like_it = await _like(services, row)
    return await _page(
        request,
        "dataset.html",
        like_it=await _apart(like_it, lambda: [Card(record, _summary(record), {}) for record in like_it]),
        row=row,
        dataset=reading,
        name=titled(reading.name, row.rkey),
        tags=reading.tags[:_SHOWN_TAGS],
        more_tags=len(reading.tags[_SHOWN_TAGS:]),
        schema_row=schema,
        schema=schema_value,
        fields=fields,
        more_fields=more_fields,
        schema_names=await _schema_names(services, refs) if refs else {},
        shards=shards,
        more_shards=more_shards,
        storage=records.storage_kind(reading),
        storage_titles=_STORAGE_TITLES,
        labels=label_values,
        json=pretty,
    )


async def _like(services: Services, row: Published) -> list[Published]:
    """Datasets that are most like that of *row*; none while the search engine does not answer."""
    try:
        found = await services.search.similar(row.uri, _SHOWN_LIKE)
    except NetworkError:
        found = None
    return [match.record for match in found[1]] if found else []


async def schema(request: Request) -> Response:
    """One schema: its fields, the datasets that are of it, and the lenses that lead from it and to it."""
    services: Services = request.app.state.services
    row = await _record_at(request, "schema")
    reading, pretty = await _apart([row], lambda: (_schema(row), _pretty(row)))
    found = await services.store.datasets(publisher=None, schema=row.uri, tag=None, limit=_SHOWN_RELATED, cursor=None)
    leading = await services.store.lenses(
        publisher=None, source=row.uri, target=None, limit=_SHOWN_RELATED, cursor=None
    )
    to_here = await services.store.lenses(
        publisher=None, source=None, target=row.uri, limit=_SHOWN_RELATED, cursor=None
    )
    # A lens from a schema to itself is in both lists.
    lens_rows = list({lens.uri: lens for lens in (*leading.records, *to_here.records)}.values())
    lenses = await _apart(lens_rows, lambda: [(lens, _lens(lens)) for lens in lens_rows])
    cards = await _apart(found.records, lambda: [Card(record, _summary(record), {}) for record in found.records])
    fields, more_fields = _fields(reading)
    ends = [uri for _, lens in lenses for uri in (lens.source_schema, lens.target_schema)]
    refs = [field.ref for field in fields if field.ref]
    picture, loadable = await _around(services, row, titled(reading.name, row.rkey))
    return await _page(
        request,
        "schema.html",
        row=row,
        schema=reading,
        name=titled(reading.name, row.rkey),
        fields=fields,
        more_fields=more_fields,
        cards=cards,
        more_url="/?" + urlencode({"schemas": row.uri}) if found.cursor else None,
        lenses=lenses,
        picture=picture,
        loadable=loadable,
        loadable_url="/?" + urlencode({"loadableAs": row.uri}),
        schema_names=await _schema_names(services, [*ends, *refs]),
        storage_titles=_STORAGE_TITLES,
        json=pretty,
    )


async def _around(services: Services, row: Record, name: str) -> tuple[Picture | None, int]:
    """The picture of a schema's lenses, and how many other structures can be read as its own; of very many, a hundred.

    None and 0 while the lens graph is still being read, or does not know of the schema yet.
    """
    if not services.graph_keeper.is_ready or row.uri not in services.graph:
        return None, 0
    graph = services.graph
    found = graph.neighbourhood(row.uri)
    loadable = len(graph.loadable_as(row.uri, limit=_SHOWN_LOADABLE + 1)) - 1
    places: dict[str, tuple[list[str], int, State]]
    places = {key: (graph.uris_of(key, 3), graph.size_of(key), graph.state_of(key)) for key in found.nodes}
    names = await _schema_names(services, (uri for uris, _, _ in places.values() for uri in uris))
    lens_names = await services.store.lens_names(edge.lens for edge in found.edges if edge.lens is not None)

    def node(key: str) -> Node:
        uris, size, state = places[key]
        if key == next(iter(found.nodes)):
            return Node(name, row.uri, size, state)
        uri = next((uri for uri in uris if uri in names), uris[0])
        return Node(names.get(uri, uri.rpartition("/")[2]), uri, size, state)

    return draw(found, node, lens_names), loadable


async def _record_at(request: Request, kind: Kind) -> Record:
    """The record that a page's address names. Raises NotFound."""
    services: Services = request.app.state.services
    path = request.path_params
    uri = f"at://{path['authority']}/{path.get('collection', _COLLECTIONS[kind])}/{path['rkey']}"
    try:
        resolved = (await record_uris(services.store, "address", [uri]))[0] if "\0" not in uri else None
    except RequestError:
        resolved = None
    row = (await services.store.records([resolved], kind)).get(resolved) if resolved else None
    if row is None:
        raise NotFound(f"There is no {kind} {uri[:300]} here. It may have been deleted, or not have arrived yet.")
    return row


async def _apart(rows: Iterable[Published], work: Callable[[], _T]) -> _T:
    """What *work* makes of *rows*; in a thread if there is so much to read that other requests would wait."""
    if sum(len(row.json) for row in rows) <= _READ_AT_ONCE:
        return work()
    return await asyncio.to_thread(work)


def _value(row: Published) -> records.Record | None:
    # What is wrong with a record was found when it was indexed, and is in its row.
    return records.read_value(row.collection, row.parsed())


def _summary(row: Published) -> records.DatasetRecord:
    parsed = row.parsed()
    members = {name: parsed[name] for name in _CARD_MEMBERS if name in parsed} if isinstance(parsed, dict) else {}
    value = records.read_value(row.collection, members)
    return value if isinstance(value, records.DatasetRecord) else records.DatasetRecord("", "", None)


def _dataset(row: Published) -> records.DatasetRecord:
    value = _value(row)
    return value if isinstance(value, records.DatasetRecord) else records.DatasetRecord("", "", None)


def _schema(row: Published) -> records.SchemaRecord:
    value = _value(row)
    return value if isinstance(value, records.SchemaRecord) else records.SchemaRecord("", "")


def _lens(row: Published) -> records.LensRecord:
    value = _value(row)
    return value if isinstance(value, records.LensRecord) else records.LensRecord("", "", "")


def _fields(schema: records.SchemaRecord) -> tuple[list[FieldRow], int]:
    """The fields to show, and how many more there are."""
    shown = [
        FieldRow(field.name, *_type(field.type), is_optional=field.optional, description=field.description or "")
        for field in schema.fields[:_SHOWN_FIELDS]
    ]
    return shown, len(schema.fields) - len(shown)


def _type(type_: records.FieldType | None) -> tuple[str, str | None]:
    """A field's type as Python would write it, and the schema that it refers to."""
    match type_:
        case records.Primitive(name):
            return name, None
        case records.NDArray(dtype, shape):
            lengths = " × ".join(str(length or "any") for length in shape or ())
            return (f"ndarray {dtype} [{lengths}]" if lengths else f"ndarray {dtype}"), None
        case records.Array(items):
            inner, ref = _type(items) if items is not None else ("any", None)
            return f"list of {inner}", ref
        case records.Ref(uri):
            return "sample", uri
        case None:
            return "unknown", None


def _shards(row: Record, storage: records.Storage | None) -> tuple[list[Shard], int]:
    """The shards to show, and how many more there are."""
    n = _SHOWN_SHARDS
    match storage:
        case records.StorageExternal(urls):
            return [Shard(url, safe_url(url)) for url in urls[:n]], len(urls[n:])
        case records.StorageHttp(shards):
            return [Shard(shard.url, safe_url(shard.url)) for shard in shards[:n]], len(shards[n:])
        case records.StorageS3(bucket, keys):
            return [Shard(f"s3://{bucket}/{shard.key}", None) for shard in keys[:n]], len(keys[n:])
        case records.StorageBlobs(blobs):
            shown = [Shard(f"at://{row.did}/blob/{b.cid}", _blob_url(row, b.cid), b.size) for b in blobs[:n]]
            return shown, len(blobs[n:])
        case None:
            return [], 0


def _blob_url(row: Record, cid: str) -> str | None:
    if not row.pds:
        return None
    return safe_url(f"{row.pds.rstrip('/')}/xrpc/com.atproto.sync.getBlob?" + urlencode({"did": row.did, "cid": cid}))


def _pretty(row: Published) -> str:
    parsed = row.parsed()
    parts = [row.json[: _SHOWN_JSON + 1]] if parsed is None else []
    length = 0
    if parsed is not None:
        # Piece by piece: all of a large record would take seconds.
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(parsed):
            parts.append(part)
            length += len(part)
            if length > _SHOWN_JSON:
                break
    text = "".join(parts)
    return text if len(text) <= _SHOWN_JSON else text[:_SHOWN_JSON] + "\n…"


# --- The other pages


async def documentation(request: Request) -> Response:
    """The methods, made from their lexicons."""
    return await _page(request, "docs.html", methods=docs.methods(), views=docs.views())


async def error(request: Request, error: RequestError) -> Response:
    """What a person sees when something went wrong. Asks nobody: the database may be what went wrong."""
    return HTMLResponse(_render("error.html", error=error), error.status)


routes = [
    Route("/", search),
    Route("/dataset/{authority}/{rkey}", dataset),
    Route("/dataset/{authority}/{collection}/{rkey}", dataset),
    Route("/schema/{authority}/{rkey}", schema),
    Route("/schema/{authority}/{collection}/{rkey}", schema),
    Route("/docs", documentation),
]


# --- Rendering


def page_path(uri: str) -> str | None:
    """The page of the record at *uri*, or None if it has none.

    >>> page_path("at://did:plc:abc123/ac.foundation.dataset.record/3jzfcijpj2z2a")
    '/dataset/did:plc:abc123/3jzfcijpj2z2a'
    >>> page_path("at://did:plc:abc123/ac.foundation.dataset.schema/3jzfcijpj2z2a")
    '/schema/did:plc:abc123/ac.foundation.dataset.schema/3jzfcijpj2z2a'
    """
    try:
        parsed = AtUri.parse(uri)
    except UriError:
        return None
    kind = nsid.kind_of(parsed.collection)
    if kind is None or kind not in _COLLECTIONS:
        return None
    parts = [parsed.authority, parsed.collection, parsed.rkey]
    if parsed.collection == _COLLECTIONS[kind]:
        del parts[1]
    return "/".join(["", kind, *(quote(part, safe=":@~") for part in parts)])


def safe_url(url: str | None) -> str | None:
    """*url* if a page may link to it: http or https, with a host, and one URL rather than a pattern of many.

    >>> safe_url("javascript:alert(1)"), safe_url("https://example.org/{00..07}.tar")
    (None, None)
    """
    if not url or any(character in url for character in '{}<>"\\ ') or not url.isprintable():
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def marked(highlight: str) -> Markup:
    """An engine's highlight, as HTML whose only element is `<mark>`, whatever the engine let through."""
    opened, closed = "\ue000", "\ue001"
    text = highlight.replace(opened, "").replace(closed, "").replace("<mark>", opened).replace("</mark>", closed)
    escaped = str(escape(html.unescape(text)))
    return Markup(escaped.replace(opened, "<mark>").replace(closed, "</mark>"))  # noqa: S704 - escaped just above


def with_code(text: str) -> Markup:
    """A lexicon's description, with what stands in backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def in_words(number: int, unit: str) -> str:
    """A number with its unit, the unit in plural where it is due.

    >>> in_words(60000, "sample"), in_words(1, "repository")
    ('60,000 samples', '1 repository')
    """
    units = f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
    return f"{number:,} {unit if number == 1 else units}"


def in_bytes(size: int) -> str:
    """A size in decimal units, as storage is sold.

    >>> in_bytes(11_594_722), in_bytes(512)
    ('11.6 MB', '512 B')
    """
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if amount < 999.5 or unit == "PB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def on_day(moment: datetime) -> str:
    """A date as everybody reads it the same way: `2 Jan 2026`."""
    return f"{moment.day} {moment:%b %Y}"


def at_time(moment: datetime) -> str:
    """A date with its time: `2 Jan 2026, 15:04 UTC`."""
    return f"{on_day(moment.astimezone(UTC))}, {moment.astimezone(UTC):%H:%M} UTC"


def publisher_name(row: Published) -> str:
    """A publisher's handle; the DID where there is none."""
    return f"@{row.handle}" if row.handle and row.handle != NO_HANDLE else row.did


def titled(name: str, otherwise: str) -> str:
    """*name* as a page shows it, or *otherwise* where there is nothing to see of it, and so nothing to click on.

    >>> titled("Digits", "3jz"), titled(" \\u200b", "3jz")
    ('Digits', '3jz')
    """
    shown = shortened(name.strip(), _SHOWN_NAME)
    is_visible = any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in shown)
    return shown if is_visible else otherwise


def shortened(text: str, length: int = 280) -> str:
    """The beginning of *text*, cut between words."""
    return text if len(text) <= length else "".join(text[:length].rsplit(None, 1)[:1]) + " …"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a record's text, as far as a page shows it."""
    shown = text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + " …"
    return shown.split("\n\n")


_OUT_OF_STEP: Mapping[Delay | None, str] = {
    "no indexer": "no indexer has run",
    "silent": "the indexer is not running",
    "unreached": "relay not reached yet",
    "lost": "relay not reached",
}


def behind(status: Status, delay: Delay | None) -> str:
    """How far the index is behind the network, in words; empty when the indexer has not said."""
    if delay in _OUT_OF_STEP:
        return _OUT_OF_STEP[delay]
    if status.lag is None:
        return ""
    if status.lag < 2:
        return "up to date"
    seconds = round(status.lag)
    return f"{in_words(seconds, 'second')} behind" if seconds < 120 else f"{in_words(seconds // 60, 'minute')} behind"


_STYLE = (Path(__file__).parent / "static" / "style.css").read_bytes()

_templates = Environment(
    loader=PackageLoader("atdata_appview"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "at_time": at_time,
    "behind": behind,
    "in_bytes": in_bytes,
    "in_words": in_words,
    "marked": marked,
    "on_day": on_day,
    "page_path": page_path,
    "paragraphs": paragraphs,
    "publisher_name": publisher_name,
    "safe_url": safe_url,
    "shortened": shortened,
    "titled": titled,
    "with_code": with_code,
}
# The style's address changes with the style, so that it can be kept for long.
_templates.globals |= {
    "version": __version__,
    "style_url": f"/static/style.css?{blake2b(_STYLE, digest_size=4).hexdigest()}",
}


def _render(template: str, **values: Any) -> str:
    return _templates.get_template(template).render(values)


async def _page(request: Request, template: str, **values: Any) -> Response:
    return cacheable(request, _render(template, **values).encode("utf-8", "replace"), "text/html; charset=utf-8")
