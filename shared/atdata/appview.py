"""Own the client of an AppView: questions about the whole network, asked page by page, answers as frozen values.

An AppView is a stranger, whom somebody chose: what it sends is bounded in size and time, shapes that are not those of
its lexicons are errors that name what is wrong, and redirects are not followed. Loading checks each record against its
CID (`DatasetView.check`), and reads shards where the publisher's DID document says, not where the AppView does.
Specification: the lexicons `ac.foundation.dataset.*`, https://atproto.com/specs/xrpc
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict, TypeVar, Unpack
from urllib.parse import urlencode

from atdata import html, network, syntax
from atdata.atmosphere import records
from atdata.atmosphere.uri import AtUri
from atdata.errors import (
    ArgumentError,
    ConfigError,
    MissingExtraError,
    NetworkError,
    NotFoundError,
    RateLimitError,
    SchemaError,
    UriError,
    how_to_install,
    redacted,
)
from atdata.network import StatusError
from atdata.nsid import PREFIX, kind_of
from atdata.sample import DictSample, sample_type_of
from atdata.structure import Comparison, Structure, compare, covers, structure_of_type
from atdata.views import (
    AccountChange,
    DatasetView,
    FalseAnswerError,
    LabelView,
    LensGraph,
    LensPaths,
    LensView,
    Part,
    PublisherView,
    RecordChange,
    ResolvedDataset,
    ResolvedLabel,
    SchemaView,
    Shard,
    Status,
    StreamInfo,
    read_structure,
)

if TYPE_CHECKING:
    from atdata.atmosphere.client import AtmosphereClient

__all__ = ["AppView", "DatasetFilters", "Results"]

V = TypeVar("V")
R = TypeVar("R", DatasetView, SchemaView)

# An AppView's own answers are at most a few megabytes.
_MAX_ANSWER: Final = 12 << 20
# The questions are answered in milliseconds; this is for those that have to be tried again.
_SECONDS: Final = 30.0
_PAGE: Final = 50
_MAX_LIMIT: Final = 100
_MAX_PAGES: Final = 10_000
# Of all pages together: some hundred thousand records.
_MAX_LISTING: Final = 256 << 20
# What one search takes.
_MAX_FILTERS: Final = 30
# A record has at most 1 MB; its frame is somewhat longer.
_MAX_FRAME: Final = 3 << 20
# Why we close a connection on which something comes that we do not read: no WebSocket's, no text, too long.
# https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_NOT_READ: Final = frozenset({1002, 1007, 1009})
# What versions of OpenSSL call an answer that is no TLS.
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})

Facet = Literal["tags", "license", "schema", "publisher", "storage"]
Sort = Literal["relevance", "newest", "oldest", "samples", "name"]


class DatasetFilters(TypedDict, total=False):
    """What `AppView.search_datasets` takes beside words; it says what each means."""

    tags: Sequence[str]
    licenses: Sequence[str]
    schemas: Sequence[str]
    publishers: Sequence[str]
    storage: Sequence[records.StorageKind]
    fields: Sequence[str]
    min_samples: int | None
    max_samples: int | None
    min_bytes: int | None
    max_bytes: int | None
    created_after: datetime | None
    created_before: datetime | None
    sort: Sort
    facets: Sequence[Facet]


class Results(Generic[V]):
    """What was found, read page by page as it is asked for; nothing is asked before, and nothing comes twice.

    >>> found = appview.search_datasets("owls", facets=["tags"])
    >>> found.total, found.facets["tags"]
    (3, {'audio': 2, 'birds': 2})
    >>> for hit in found:
    ...     print(hit.name, hit.uri)

    Each loop begins with the first page, which is asked for once. Raises NetworkError while reading, and when the
    pages do not end.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, str]], tuple[Part, int]],
        read: Callable[[Part], Sequence[V]],
        key: Callable[[V], object],
    ) -> None:
        self._ask = ask
        self._read = read
        self._key = key
        self._first: tuple[Part, int, Sequence[V]] | None = None

    def _first_page(self) -> tuple[Part, int, Sequence[V]]:
        if self._first is None:
            answer, size = self._ask({})
            self._first = answer, size, self._read(answer)
        return self._first

    def __iter__(self) -> Iterator[V]:
        answer, size, items = self._first_page()
        seen: set[object] = set()
        cursors: set[str] = set()
        while True:
            for item in items:
                key = self._key(item)
                # An AppView may send one again that moved to a later page meanwhile.
                if key not in seen:
                    seen.add(key)
                    yield item
            cursor = answer.optional_text("cursor")
            if not cursor:
                return
            if cursor in cursors:
                raise answer.wrong(f"the pages go in a circle: the cursor {cursor[:80]!r} came before")
            if size > _MAX_LISTING or len(cursors) == _MAX_PAGES:
                raise answer.wrong(f"the pages do not end: there were {len(cursors) + 1:,}, of {size:,} bytes")
            cursors.add(cursor)
            answer, length = self._ask({"cursor": cursor})
            size += length
            items = self._read(answer)

    @property
    def total(self) -> int | None:
        """How many there are over all pages, by the AppView's count; None where it does not count."""
        return self._first_page()[0].optional_number("total")

    @property
    def facets(self) -> dict[str, dict[str, int]]:
        """By facet that was asked for, how many datasets have each value, the most frequent first."""
        facets = self._first_page()[0].optional("facets", lambda part: part)
        if facets is None:
            return {}
        return {
            name: {one.text("value"): one.number("count") for one in facets.parts(name)} for name in facets.members()
        }

    @property
    def is_truncated(self) -> bool:
        """Whether more structures lead to `loadable_as` than one search takes, so that datasets are missing."""
        answer = self._first_page()[0]
        return "truncated" in answer.members() and answer.flag("truncated")

    def __repr__(self) -> str:
        if self._first is None:
            return "Results(not asked for yet)"
        count = len(self._first[2]) if self.total is None else self.total
        return f"Results({count:,}{'' if self.total is not None else ' or more'})"

    def _repr_html_(self) -> str:
        try:
            _, _, items = self._first_page()
            more = "" if self.total is None else f" of {self.total:,}"
        except NetworkError as e:
            return html.table(str(e), [], [])
        rows = [
            [
                getattr(item, "name", None) or getattr(item, "did", None) or getattr(item, "url", ""),
                getattr(item, "description", None) or "",
                getattr(item, "publisher", None) or getattr(item, "handle", None) or "",
                getattr(item, "uri", ""),
            ]
            for item in items
        ]
        return html.table(f"{len(rows):,}{more}", ["name", "description", "publisher", "URI"], rows)


class AppView:
    """The AppView at *url*: what there is on the whole network, and how one thing is read as another.

    >>> appview = atdata.AppView("https://appview.example.com")
    >>> for hit in appview.search_datasets("speech recognition", licenses=["MIT"]):
    ...     print(hit.name, hit.publisher)
    >>> digits = appview.get_dataset(uri).load(split="train")

    Without *url*, that of `ATDATA_APPVIEW`. All methods raise NetworkError when it does not answer, or not as its
    lexicons say, RateLimitError when it wants us to come back later than we wait, and NotFoundError, a LookupError,
    for what it does not have. Raises UriError, a ValueError, for what is no URL, and ConfigError without one.
    """

    def __init__(self, url: str | None = None) -> None:
        url = url or os.environ.get("ATDATA_APPVIEW")
        if not url:
            raise ConfigError("no AppView is known: give its URL, AppView('https://…'), or set ATDATA_APPVIEW")
        if not isinstance(url, str):
            raise ArgumentError(
                f"url is the address of an AppView, not {type(url).__name__}; write AppView('https://…')"
            )
        if not re.match(r"https?://[^/\s]+", url):
            advice = f"http://{url}" if re.match(r"[\w.-]+(:\d+)?/?$", url) else "https://appview.example.com"
            raise UriError(f"{url[:200]!r} is no address of an AppView; write {advice}")
        self.url = url.rstrip("/").removesuffix("/xrpc")
        # Who reads what is found here; see `AtmosphereIndex`.
        self._client: AtmosphereClient | None = None

    def read_by(self, client: AtmosphereClient) -> AppView:
        """The same, where *client* reads the shards of what is found."""
        other = AppView(self.url)
        other._client = client
        return other

    def __repr__(self) -> str:
        return f"AppView({redacted(self.url)!r})"

    # --- Searching

    def search_datasets(
        self,
        q: str = "",
        *,
        tags: Sequence[str] = (),
        licenses: Sequence[str] = (),
        schemas: Sequence[str] = (),
        publishers: Sequence[str] = (),
        storage: Sequence[records.StorageKind] = (),
        fields: Sequence[str] = (),
        loadable_as: str | type[Any] | None = None,
        min_samples: int | None = None,
        max_samples: int | None = None,
        min_bytes: int | None = None,
        max_bytes: int | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        sort: Sort = "relevance",
        facets: Sequence[Facet] = (),
    ) -> Results[DatasetView]:
        """Datasets that have the words *q* and pass all filters; without words, everything that passes them.

        >>> appview.search_datasets("speach", tags=["audio"], fields=["wave:ndarray:float32"], min_samples=1000)

        Half-typed and slightly misspelt words match, too; "double quotes" ask for a phrase. A dataset has all of *tags*
        and *fields* (`name`, `name:type` or `name:ndarray:dtype`), and one each of *licenses*, *schemas* (AT URIs),
        *publishers* (handles or DIDs) and *storage*. *loadable_as* is a schema's AT URI, a structure's fingerprint or
        a sample type: datasets whose samples can be read so, directly or through lenses, each with its `path`; see
        `datasets_loadable_as`. *facets* are counted in `Results.facets`.
        """
        return self._datasets(
            {
                "q": q or None,
                "tags": _list("tags", tags),
                "licenses": _list("licenses", licenses),
                "schemas": _list("schemas", schemas),
                "publishers": _list("publishers", publishers),
                "storage": _list("storage", storage),
                "fields": _list("fields", fields),
                "loadableAs": None if loadable_as is None else _node(loadable_as),
                "minSamples": min_samples,
                "maxSamples": max_samples,
                "minBytes": min_bytes,
                "maxBytes": max_bytes,
                "createdAfter": created_after,
                "createdBefore": created_before,
                "sort": sort,
                "facets": _list("facets", facets),
            },
            self._read_datasets if loadable_as is None else self._read_loadable,
        )

    def datasets_loadable_as(
        self, sample_type: type[Any], q: str = "", **filters: Unpack[DatasetFilters]
    ) -> Results[DatasetView]:
        """Datasets that can be read as *sample_type*, a Python type; *q* and *filters* narrow them.

        >>> for hit in appview.datasets_loadable_as(Digit):
        ...     for digit in hit.load(Digit, split="train"): ...

        They are those of its structure or a wider one, whoever published it and whatever they call it, and those from
        which lenses lead there, each with its `path`. When nobody has published a schema of that structure, they are
        looked for by their fields, and only those that a *sample_type* can read directly come; `Results.total` counts
        those that were looked at. Raises SchemaError, a ValueError, for a type that no schema can express.
        """
        structure = _structure(sample_type)
        try:
            self._ask("resolveSchema", fingerprint=structure.fingerprint)
        except NotFoundError:
            wanted = [*_list("fields", filters.get("fields", ())), *_searchable(structure)]
            filters["fields"] = wanted[:_MAX_FILTERS]
            return self._by_fields(structure, q, **filters)
        return self.search_datasets(q, loadable_as=structure.fingerprint, **filters)

    def _by_fields(self, structure: Structure, q: str, **filters: Unpack[DatasetFilters]) -> Results[DatasetView]:
        held: dict[str, bool] = {}

        def read(answer: Part) -> list[DatasetView]:
            views = self._read_datasets(answer)
            unknown = sorted({view.schema_ref for view in views} - held.keys())
            held.update(dict.fromkeys(unknown, False))
            for schema in self._schemas([uri for uri in unknown if syntax.is_at_uri(uri)]):
                try:
                    is_covered = covers(schema.structure, structure)
                except SchemaError:  # then nobody can say which samples it describes
                    continue
                # A dataset may name its schema by a handle.
                held.update({uri: is_covered for uri in unknown if _is_referred_to(uri, schema)})
            return [view for view in views if held[view.schema_ref]]

        found = self.search_datasets(q, **filters)
        return Results(found._ask, read, _uri)

    def search_schemas(
        self,
        q: str = "",
        *,
        publishers: Sequence[str] = (),
        fields: Sequence[str] = (),
        sort: Literal["relevance", "newest", "oldest", "name"] = "relevance",
    ) -> Results[SchemaView]:
        """Sample schemas that have the words *q* in name, description or fields; by one of *publishers*, with all of
        *fields*.

        >>> appview.search_schemas("bounding boxes", fields=["image:ndarray:uint8"])
        """
        filters = {"publishers": _list("publishers", publishers), "fields": _list("fields", fields), "sort": sort}
        return self._results("searchSchemas", {"q": q or None, **filters}, self._read_schemas, _uri)

    def similar(self, uri: str | DatasetView, *, limit: int = 10) -> tuple[DatasetView, ...]:
        """Datasets like the one at *uri*, or that was found, the most alike first, each with its `similarity`.

        >>> appview.similar(hit)[0].similarity.shared_tags
        ('audio', 'birds')
        """
        answer, _ = self._ask("similarDatasets", uri=_uri_of(uri), limit=limit)
        return tuple(self._read_datasets(answer))

    def list_publishers(self, q: str = "", *, sort: Literal["newest", "datasets"] = "newest") -> Results[PublisherView]:
        """Who publishes, and how much; those whose handle begins with *q*."""

        def read(answer: Part) -> list[PublisherView]:
            return [PublisherView.read(one) for one in answer.parts("publishers")]

        return self._results("listPublishers", {"q": q or None, "sort": sort}, read, lambda one: one.did)

    def list_lenses(
        self,
        *,
        source: str | None = None,
        target: str | None = None,
        schema: str | None = None,
        publisher: str | None = None,
        equivalent: bool = False,
    ) -> Results[LensView]:
        """Lenses from the schema *source*, to *target*, from or to *schema*, by *publisher*; all of them without any.

        >>> appview.list_lenses(source=full_uri, equivalent=True)

        With *equivalent*, schemas stand for all of the same structure, whoever published them.
        """
        filters = {"source": source, "target": target, "schema": schema, "publisher": publisher}

        def read(answer: Part) -> list[LensView]:
            return [LensView.read(one) for one in answer.parts("lenses")]

        return self._results("listLenses", {**filters, "equivalent": equivalent or None}, read, _uri)

    # --- Looking up

    def get_dataset(self, uri: str) -> DatasetView:
        """The dataset at *uri*, checked against its CID; of a name, `@handle/name`, as `resolve_dataset` finds it."""
        if isinstance(uri, str) and uri.startswith("@"):
            return self.resolve_dataset(uri).dataset
        return self._one("getDatasets", uri, self._read_datasets)

    def get_schema(self, uri: str) -> SchemaView:
        """The sample schema at *uri*, checked against its CID."""
        return self._one("getSchemas", uri, self._read_schemas)

    def resolve_dataset(self, dataset: str) -> ResolvedDataset:
        """What `@handle/name`, `@handle/name@version` or an AT URI stands for, as `load_dataset` takes them.

        >>> appview.resolve_dataset("@alice.example.com/digits@1.2.0").dataset.uri
        'at://did:plc:…/ac.foundation.dataset.record/…'

        The newest label of this name, else the newest dataset of this name. What comes is checked: that records are
        what their CIDs say, and that they bear the name that was asked for.
        """
        answer, _ = self._ask("resolveDataset", dataset=dataset)
        found = ResolvedDataset(
            dataset=self._dataset(answer.part("dataset")).check(),
            schema=answer.optional("schema", lambda part: SchemaView.read(part, self).check()),
            label=answer.optional("label", lambda part: LabelView.read(part).check()),
            pds=answer.optional_text("pds"),
        )
        if (problem := _misses(dataset, found)) is not None:
            raise FalseAnswerError(str(answer.wrong(f"asked for {dataset[:200]}, it sends {problem}")))
        return found

    def resolve_label(self, publisher: str, name: str, version: str | None = None) -> ResolvedLabel:
        """The newest label *name* of *publisher*, a handle or a DID, or the newest of *version*.

        >>> appview.resolve_label("alice.example.com", "digits", "1.2.0").dataset_uri
        """
        answer, _ = self._ask("resolveLabel", publisher=publisher, name=name, version=version)
        return ResolvedLabel(
            label=LabelView.read(answer.part("label")).check(),
            dataset_uri=answer.text("datasetUri"),
            dataset=answer.optional("dataset", lambda part: self._dataset(part).check()),
        )

    def resolve_schema(self, publisher: str, name: str, version: str | None = None) -> SchemaView:
        """The newest schema *name* of *publisher*, of those in the range *version*, as npm writes ranges.

        >>> appview.resolve_schema("alice.example.com", "Digit", version=">=1.2")
        SchemaView('Digit', '1.10.0', @alice.example.com, 'at://…')

        1.10.0 is newer than 1.9.0. Without *version*, the newest stable one.
        """
        answer, _ = self._ask("resolveSchema", publisher=publisher, name=name, version=version)
        return SchemaView.read(answer.part("schema"), self).check()

    def resolve_blobs(self, uri: str | DatasetView) -> Results[Shard]:
        """Where the shards of the dataset at *uri* are: of blobs, the URLs at the server of their repository.

        >>> [shard.url for shard in appview.resolve_blobs(hit)]

        The URLs are strangers' words, and nobody has looked whether anything is there; `DatasetView.load` reads them
        with all checks.
        """

        def read(answer: Part) -> list[Shard]:
            return [Shard.read(one) for one in answer.parts("shards")]

        numbers = iter(range(10**9))  # a dataset may list a shard twice
        return self._results("resolveBlobs", {"uri": _uri_of(uri)}, read, lambda _: next(numbers), limit=1000)

    def compare_schemas(self, old: str, new: str) -> Comparison:
        """What is different between the schemas at two AT URIs, and whether readers of one can read data of the other.

        >>> print(appview.compare_schemas(v1_uri, v2_uri).summary)
        Backward compatible only. …

        The verdict is made here, of the two structures that the AppView sends: see `atdata.structure.compare`.
        """
        answer, _ = self._ask("compareSchemas", **{"from": str(old), "to": str(new)})
        return compare(read_structure(answer.part("from")), read_structure(answer.part("to")))

    def status(self) -> Status:
        """What the AppView holds, and how far it is behind the network."""
        return Status.read(self._ask("getStatus")[0])

    # --- Lenses

    def find_lens_path(
        self, source: str | type[Any], target: str | type[Any], *, max_hops: int = 4, k: int = 3
    ) -> LensPaths:
        """The best ways from samples of *source* to samples of *target*, at most *k* of at most *max_hops* lenses.

        >>> for path in appview.find_lens_path(full_uri, Simple):
        ...     print(path, [lens.getter_code for lens in path.lenses])

        Each is a schema's AT URI, a structure's fingerprint or a sample type. No code is fetched or run:
        `Dataset.as_type` uses lenses that are registered here. Raises SchemaError, a ValueError, for a type that no
        schema can express.
        """
        ends = {"from": _node(source), "to": _node(target)}
        return LensPaths.read(self._ask("getLensPath", **ends, maxHops=max_hops, k=k)[0])

    def lens_graph(
        self, root: str | type[Any], *, depth: int = 1, direction: Literal["in", "out", "both"] = "both"
    ) -> LensGraph:
        """The lenses around *root*, a schema's AT URI, a structure's fingerprint or a sample type: *depth* hops far.

        >>> appview.lens_graph(full_uri, depth=2, direction="out").edges
        """
        return LensGraph.read(self._ask("getLensGraph", root=_node(root), depth=depth, direction=direction)[0])

    # --- Changes

    def changes(self, cursor: int | None = None) -> Iterator[RecordChange | AccountChange | StreamInfo]:
        """What happens to records and accounts, as it happens: after *cursor*, the `seq` of an earlier change.

        >>> for change in appview.changes(cursor=0):
        ...     print(change.seq, change)

        0 asks for all that is kept, None for what comes from now on. Ends with a NetworkError when the connection does,
        which says with which cursor to go on: nothing is lost. Needs the extra `atmosphere`.
        """
        if cursor is not None and not hasattr(cursor, "__index__"):
            raise ArgumentError(f"cursor is the seq of a change, a whole number, not {str(cursor)[:100]!r}")
        try:
            from websockets.exceptions import ConnectionClosedError, InvalidStatus, WebSocketException
            from websockets.sync.client import ClientConnection, connect
        except ImportError:
            raise MissingExtraError(f"changes come over a WebSocket: {how_to_install('atmosphere')}") from None
        method = f"{PREFIX}subscribeChanges"
        query = f"?{urlencode({'cursor': cursor})}" if cursor is not None else ""
        where = f"{redacted(self.url)}: subscribeChanges"

        class Connection(ClientConnection):
            """Says what an answer without a WebSocket means, before a redirect is followed."""

            def handshake(self, *args: Any, **kwargs: Any) -> None:
                try:
                    super().handshake(*args, **kwargs)
                except InvalidStatus as e:
                    raise _no_stream(where, e.response.status_code, bytes(e.response.body or b"")) from None

        is_open = False
        try:
            with connect(
                f"ws{self.url.removeprefix('http')}/xrpc/{method}{query}",
                max_size=_MAX_FRAME,
                compression=None,
                create_connection=Connection,
            ) as stream:
                is_open = True
                for frame in stream:
                    change = _read_frame(frame, where)
                    if change is None:  # later versions have more to say
                        continue
                    if not isinstance(change, StreamInfo):
                        cursor = change.seq
                    yield change
        except (WebSocketException, OSError) as e:
            if (problem := self._not_tls(e)) is not None:
                raise NetworkError(f"{where}: {problem}") from e
            # Whoever goes on after a connection that was lost misses nothing; after anything else it fails again.
            advice = f"go on with changes(cursor={cursor})"
            if not is_open:
                advice = "check the address, and that an AppView is up there"
            elif isinstance(e, ConnectionClosedError) and e.sent is not None and e.sent.code in _NOT_READ:
                advice = "it may be newer than this library"
            raise NetworkError(f"{where}: {str(e) or type(e).__name__}; {advice}") from e
        raise NetworkError(f"{where}: the connection was closed; go on with changes(cursor={cursor})")

    # --- Asking

    def _ask(self, method: str, **params: Any) -> tuple[Part, int]:
        """What *method* answers, and how many bytes that is."""
        where = f"{redacted(self.url)}: {method}"
        url = f"{self.url}/xrpc/{PREFIX}{method}"
        given = {name: _as_text(value) for name, value in params.items() if value is not None}
        try:
            body = network.get_bytes(url, trusted=True, params=given, limit=_MAX_ANSWER, seconds=_SECONDS)
        except StatusError as e:
            raise _refusal(where, e) from None
        except NetworkError as e:
            if (problem := self._not_tls(e)) is None:
                raise
            raise NetworkError(f"{where}: {problem}") from e
        return Part(network.parse_json(url, body), where), len(body)

    def _not_tls(self, error: BaseException) -> str | None:
        """What to say where *error* means that TLS is spoken to a server that does not speak it."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause.reason not in _NO_TLS:
            return None
        return f"what answers does not speak https; if it is http, write http{redacted(self.url).removeprefix('https')}"

    def _results(
        self,
        method: str,
        params: Mapping[str, Any],
        read: Callable[[Part], Sequence[V]],
        key: Callable[[V], object],
        limit: int = _PAGE,
    ) -> Results[V]:
        return Results(lambda page: self._ask(method, **params, limit=limit, **page), read, key)

    def _datasets(
        self, params: Mapping[str, Any], read: Callable[[Part], Sequence[DatasetView]]
    ) -> Results[DatasetView]:
        return self._results("searchDatasets", params, read, _uri)

    def _dataset(self, part: Part) -> DatasetView:
        return DatasetView.read(part, self, self._client)

    def _read_datasets(self, answer: Part) -> list[DatasetView]:
        return [self._dataset(one) for one in answer.parts("datasets")]

    def _read_loadable(self, answer: Part) -> list[DatasetView]:
        views = self._read_datasets(answer)
        # Parameters that a service does not know are ignored: then it has not looked for what can be loaded.
        if any(view.path is None for view in views):
            raise answer.wrong("this AppView does not know loadableAs; it may be older than this library")
        return views

    def _read_schemas(self, answer: Part) -> list[SchemaView]:
        return [SchemaView.read(one, self) for one in answer.parts("schemas")]

    def _schemas(self, uris: Sequence[str]) -> Iterator[SchemaView]:
        """Those of the schemas at *uris* that there are."""
        for i in range(0, len(uris), _MAX_LIMIT):
            yield from self._read_schemas(self._ask("getSchemas", uris=uris[i : i + _MAX_LIMIT])[0])

    def _one(self, method: str, uri: str, read: Callable[[Part], Sequence[R]]) -> R:
        asked = AtUri.parse(str(uri))
        answer, _ = self._ask(method, uris=[str(asked)])
        views = read(answer)
        if not views:
            raise NotFoundError(f"{redacted(self.url)} has no record {asked}; check the URI, or ask its own server")
        if not _is_same_record(asked, views[0]):
            raise FalseAnswerError(str(answer.wrong(f"asked for {asked}, it sends {views[0].uri}")))
        return views[0].check()


def _uri(view: Any) -> object:
    return view.uri


def _uri_of(given: str | DatasetView) -> str:
    return given.uri if isinstance(given, DatasetView) else str(given)


def _list(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise ArgumentError(f"{name} is a list, not a text; write {name}=[{values[:100]!r}]")
    return list(values)


def _as_text(value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [str(one) for one in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return syntax.format_datetime(value) if isinstance(value, datetime) else str(value)


def _node(given: str | type[Any]) -> str:
    """What names a place in the lens graph: a URI or a fingerprint as they are, of a type its structure's."""
    return _structure(given).fingerprint if isinstance(given, type) else str(given)


def _structure(sample_type: Any) -> Structure:
    if not isinstance(sample_type, type):
        raise ArgumentError(
            f"sample_type is a class, not {str(sample_type)[:200]!r}; for a schema's AT URI write "
            "search_datasets(loadable_as=URI), and search_schemas finds schemas by name"
        )
    if sample_type is DictSample:
        raise SchemaError("DictSample has no fields of its own; give a sample type that has, made by @atdata.packable")
    return structure_of_type(sample_type_of(sample_type))


def _searchable(structure: Structure) -> list[str]:
    """The required fields of *structure*, as searches take them."""
    wanted = []
    for one in structure.fields:
        kind, _, rest = one.type.partition(":")
        dtype = rest.partition(":")[0]
        text = f"ndarray:{dtype}" if kind == "ndarray" else re.split("[<]", kind, maxsplit=1)[0]
        if not one.optional:
            wanted.append(f"{one.name}:{text}")
    return wanted


def _refusal(where: str, e: StatusError) -> NetworkError:
    """What an error status means."""
    said = e.message or e.error or ""
    if e.status == 404 and e.error:
        return NotFoundError(f"{where}: {said}")
    if e.status == 429:
        return RateLimitError(f"{where}: too many requests; try again in a minute")
    if 300 <= e.status < 400:
        return NetworkError(f"{where}: answers with a redirect ({e.status}); give the address to which it leads")
    if e.status == 501:
        return NetworkError(f"{where}: this AppView does not know the method; it may be older than this library")
    if e.status == 404:
        return NetworkError(f"{where}: there is no AppView at this address (404); check it")
    # What a PDS says of methods that it would pass on.
    if e.status == 400 and said.startswith("No service configured"):
        return NetworkError(f"{where}: there is no AppView at this address, but a PDS; check it")
    return StatusError(where, e.status, e.error, e.message)


def _no_stream(where: str, status: int, body: bytes) -> NetworkError:
    """What it means that a subscription is answered with *status*."""
    if status < 300:
        return NetworkError(f"{where}: answers, but with no WebSocket; check that it is an AppView")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    texts = answer if isinstance(answer, dict) else {}
    error, message = (str(texts[name])[:200] if name in texts else None for name in ("error", "message"))
    return _refusal(where, StatusError(where, status, error, message))


# --- Whether an answer is about what was asked


def _is_same_record(asked: AtUri, view: Any) -> bool:
    found = AtUri.parse(view.uri)
    is_owner: bool = view.publisher.is_called(asked.authority)
    return is_owner and (found.collection, found.rkey) == (asked.collection, asked.rkey)


def _misses(asked: str, found: ResolvedDataset) -> str | None:
    """What is wrong with *found* as an answer to *asked*."""
    dataset, label = found.dataset, found.label
    if found.schema is not None and not _is_referred_to(dataset.schema_ref, found.schema):
        return f"another schema than the dataset's: {found.schema.uri}"
    if label is not None and not _points_to(label, dataset):
        return f"a label that points elsewhere: to {label.dataset_uri[:200]}"
    if asked.startswith("at://"):
        first = dataset if label is None else label
        # An asked label may point to another one.
        return None if _is_same_record(AtUri.parse(asked), first) else first.uri
    repo, _, wanted = asked.removeprefix("@").partition("/")
    name, _, version = wanted.partition("@")
    named: DatasetView | LabelView = dataset if label is None else label
    if not named.publisher.is_called(repo) or named.name != name:
        return f"{named.name[:100]!r} of {named.publisher}"
    if version and (label is None or label.version != version):
        return f"another version: {'none' if label is None else str(label.version)[:50]}"
    return None


def _is_referred_to(reference: str, view: Any) -> bool:
    try:
        uri = AtUri.parse(reference)
    except UriError:
        return False
    # A handle may be another one today.
    is_owner = not uri.authority.startswith("did:") or uri.authority == view.publisher.did
    found = AtUri.parse(view.uri)
    return is_owner and (uri.collection, uri.rkey) == (found.collection, found.rkey)


def _points_to(label: LabelView, dataset: DatasetView) -> bool:
    try:
        is_label = kind_of(AtUri.parse(label.dataset_uri).collection) == "label"
    except UriError:
        return False
    # A label may point to a label, once: then its target is not there to compare with.
    return is_label or _is_referred_to(label.dataset_uri, dataset)


# --- Frames: https://atproto.com/specs/event-stream


def _read_frame(frame: Any, where: str) -> RecordChange | AccountChange | StreamInfo | None:
    import cbrrr

    if not isinstance(frame, bytes):
        raise NetworkError(f"{where}: expected a binary frame, found text")
    try:
        head, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(frame, atjson_mode=True)
    except (ValueError, TypeError) as e:
        raise NetworkError(f"{where}: a frame cannot be read: {e}") from None
    header, part = Part(head, where), Part(body, where)
    if header.number("op") == -1:
        raise NetworkError(f"{where}: {part.text('error')}: {part.optional_text('message') or ''}")
    match header.text("t"):
        case "#record":
            return RecordChange.read(part)
        case "#account":
            return AccountChange.read(part)
        case "#info":
            return StreamInfo.read(part)
        case _:
            return None
