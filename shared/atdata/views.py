"""The AppView's answers as frozen values: read from JSON that a stranger sent, and shown in notebooks. No I/O.

The shapes are those of the lexicons `ac.foundation.dataset.views` and of its methods. Of an answer, what is used is
checked; members that are not known here come with later versions of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape, unescape
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from atdata import html, nsid, syntax
from atdata.atmosphere.client import AtmosphereClient, StoredRecord
from atdata.atmosphere.index import DatasetEntry
from atdata.atmosphere.records import (
    Checksum,
    CodeReference,
    LabelRecord,
    LensRecord,
    SchemaRecord,
)
from atdata.atmosphere.uri import AtUri
from atdata.cid import generate_cid
from atdata.errors import NetworkError, SchemaError, UriError
from atdata.lexicon import type_name
from atdata.nsid import Kind
from atdata.structure import Field, Structure, structure_of, structure_of_type

if TYPE_CHECKING:
    from atdata.appview import AppView
    from atdata.dataset import Dataset
    from atdata.load import DatasetDict
    from atdata.sample import PackableSample

__all__ = [
    "AccountChange",
    "DatasetView",
    "FalseAnswerError",
    "LabelView",
    "LensEdge",
    "LensGraph",
    "LensHop",
    "LensNode",
    "LensPath",
    "LensPaths",
    "LensView",
    "Part",
    "Publisher",
    "PublisherView",
    "RecordChange",
    "ResolvedDataset",
    "ResolvedLabel",
    "SchemaView",
    "Shard",
    "Similarity",
    "Status",
    "StreamInfo",
    "read_structure",
]

T = TypeVar("T")

# What the protocol says in place of a handle that is not confirmed: https://atproto.com/specs/handle
_NO_HANDLE: Final = "handle.invalid"

# Arrays within arrays, of a type that an AppView tells of: more than anybody has, fewer than Python can count down.
_MAX_DEPTH: Final = 100


# --- Reading answers


class FalseAnswerError(NetworkError):
    """What an AppView sends cannot be right: a record that is not what its CID says, or not the one asked for."""


class Part:
    """An object in an answer, and where it is. What is asked of it is there and of its kind, or it is a NetworkError.

    >>> Part({"total": "many"}, "https://appview.example.com: searchDatasets").number("total")
    Traceback (most recent call last):
    atdata.errors.NetworkError: https://appview.example.com: searchDatasets: total: expected a number, found a string
    """

    __slots__ = ("_value", "_where")

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise self.wrong(f"expected an object, found {type_name(value)}")
        self._value: Mapping[str, Any] = value

    def wrong(self, problem: str) -> NetworkError:
        """The error that says what is wrong with this part."""
        return NetworkError(f"{self._where}: {problem}")

    def _is_there(self, name: str) -> bool:
        return self._value.get(name) is not None

    def _get(self, name: str, kind: type[T], what: str) -> T:
        value = self._value.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = "nothing" if value is None else type_name(value)
            raise self.wrong(f"{name}: expected {what}, found {found}")
        return value

    def text(self, name: str) -> str:
        found: str = self._get(name, str, "a text")
        if not found.isascii() and any("\ud800" <= c <= "\udfff" for c in found):
            raise self.wrong(f"{name}: half a character")  # which nothing can write
        return found

    def number(self, name: str) -> int:
        return self._get(name, int, "a number")

    def flag(self, name: str) -> bool:
        return self._get(name, bool, "true or false")

    def object(self, name: str) -> dict[str, Any]:
        return self._get(name, dict, "an object")

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts under *name*, none when there is no such member."""
        if not self._is_there(name):
            return ()
        found = self._get(name, list, "a list")
        if not all(isinstance(one, str) for one in found):
            raise self.wrong(f"{name}: expected a list of texts")
        return tuple(found)

    def part(self, name: str) -> Part:
        return Part(self.object(name), f"{self._where}: {name}")

    def parts(self, name: str) -> list[Part]:
        found = self._get(name, list, "a list")
        return [Part(one, f"{self._where}: {name}[{i}]") for i, one in enumerate(found)]

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if self._is_there(name) else None

    def optional_number(self, name: str) -> int | None:
        return self.number(name) if self._is_there(name) else None

    def optional(self, name: str, read: Callable[[Part], T]) -> T | None:
        """What *read* makes of the object under *name*, if there is one."""
        return read(self.part(name)) if self._is_there(name) else None

    def moment(self, name: str) -> datetime:
        try:
            return syntax.parse_datetime(self.text(name))
        except ValueError as e:
            raise self.wrong(f"{name}: {e}") from None

    def members(self) -> Mapping[str, Any]:
        return self._value


# --- Publishers and records


@dataclass(frozen=True, slots=True)
class Publisher:
    """The account that published a record. `handle` is None when none is confirmed."""

    did: str
    handle: str | None

    @classmethod
    def read(cls, part: Part) -> Self:
        did, handle = part.text("did"), part.text("handle")
        if not syntax.is_did(did):
            raise part.wrong(f"did: {did[:100]!r} is no DID")
        return cls(did, handle if handle != _NO_HANDLE and syntax.is_handle(handle) else None)

    def is_called(self, identifier: str) -> bool:
        """Whether *identifier*, a DID or a handle, is this account's."""
        wanted = identifier.removeprefix("@")
        return wanted == self.did or (self.handle is not None and wanted.lower() == self.handle.lower())

    def __str__(self) -> str:
        return f"@{self.handle}" if self.handle else self.did


@dataclass(frozen=True)
class _View:
    """A record as the AppView has it. `verified` is the AppView's word for that it checked signature and CID."""

    stored: StoredRecord = field(hash=False)
    publisher: Publisher
    indexed_at: datetime
    verified: bool

    @classmethod
    def _members(cls, part: Part, kind: Kind) -> dict[str, Any]:
        publisher = Publisher.read(part.part("publisher"))
        try:
            uri = AtUri.parse(part.text("uri"))
        except UriError as e:
            raise part.wrong(f"uri: {e}") from None
        if uri.authority != publisher.did:
            raise part.wrong(f"uri: {uri} is not in the repository of {publisher.did}")
        if nsid.kind_of(uri.collection) != kind:
            raise part.wrong(f"uri: {uri} is no {kind}")
        return {
            "stored": StoredRecord(part.object("record"), str(uri), part.text("cid")),
            "publisher": publisher,
            "indexed_at": part.moment("indexedAt"),
            "verified": part.flag("verified"),
        }

    @property
    def uri(self) -> str:
        """The AT URI of the record."""
        return self.stored.uri

    @property
    def cid(self) -> str:
        """The CID of the record, as the AppView says; `check` compares."""
        return self.stored.cid

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the record, if anything."""
        return self.stored.problems

    def check(self) -> Self:
        """The same. Raises FalseAnswerError, a NetworkError, when the record is not what its CID says.

        >>> appview.get_dataset(uri).check()

        Nothing is loaded without this check. It shows that nothing was changed on the way; that the record is in its
        repository, only the publisher's own server shows, which is asked where no AppView is.
        """
        try:
            actual = generate_cid(dict(self.stored))
        except (ValueError, TypeError, RecursionError) as e:
            problem = f"{self.uri}: its record, as the AppView has it, cannot be encoded: {e}"
            raise FalseAnswerError(problem) from None
        if actual != self.cid:
            raise FalseAnswerError(
                f"{self.uri}: the AppView says that its CID is {self.cid[:100]}, and sends a record with CID {actual}"
            )
        return self

    def _facts(self) -> dict[str, Any]:
        """What a notebook shows of every view."""
        return {
            "publisher": self.publisher,
            "verified": "yes" if self.verified else "no",
            "uri": self.uri,
            "problems": "; ".join(self.problems) or None,
        }


@dataclass(frozen=True, slots=True)
class Similarity:
    """What a dataset has in common with the one that `similar` was asked about."""

    shared_tags: tuple[str, ...]
    same_structure: bool

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(part.texts("sharedTags"), part.flag("sameStructure"))


@dataclass(frozen=True, repr=False)
class DatasetView(_View, DatasetEntry):
    """A dataset as the AppView has it, with all that an entry of an index has.

    >>> hit = next(iter(appview.search_datasets("digits")))
    >>> hit.name, hit.publisher.handle, hit.verified
    ('digits', 'alice.example.com', True)
    >>> for sample in hit.load(split="train"): ...
    """

    highlights: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Where the words of a search occur in `name` and `description`: HTML, escaped, with the matches in `<mark>`."""
    path: LensPath | None = None
    """How its samples become those that were asked for with `loadable_as`; without hops where they are already."""
    similarity: Similarity | None = None
    appview: AppView | None = field(default=None, compare=False)
    client: AtmosphereClient | None = field(default=None, compare=False)
    """Who reads the shards; without one, somebody who is not logged in."""

    @classmethod
    def read(cls, part: Part, appview: AppView | None = None, client: AtmosphereClient | None = None) -> Self:
        return cls(
            **cls._members(part, "dataset"),
            highlights=part.optional("highlights", _highlights) or {},
            path=part.optional("path", LensPath.read),
            similarity=part.optional("similarity", Similarity.read),
            appview=appview,
            client=client,
        )

    @overload
    def load(self, sample_type: type[T], *, split: str) -> Dataset[T]: ...
    @overload
    def load(self, sample_type: type[T], *, split: None = None) -> DatasetDict[T]: ...
    @overload
    def load(self, sample_type: None = None, *, split: str) -> Dataset[Any]: ...
    @overload
    def load(self, sample_type: None = None, *, split: None = None) -> DatasetDict[Any]: ...
    def load(self, sample_type: type[Any] | None = None, *, split: str | None = None) -> Any:
        """What `load_dataset` gives for this dataset: one split of it, or all of them by name.

        >>> hit.load(split="train")
        Dataset[Digit](…)
        >>> for hit in appview.datasets_loadable_as(Digit):
        ...     for digit in hit.load(Digit, split="train"): ...

        Where `path` leads through lenses to the structure of *sample_type*, the samples are viewed through them, as
        `Dataset.as_type` does. Raises as `load_dataset` does, NetworkError when the record is not what its CID says,
        and LensError when a lens on the way is not registered here.
        """
        from atdata.load import load_view

        return load_view(self, sample_type, split=split)

    def __repr__(self) -> str:
        return f"DatasetView({self.name[:100]!r}, {self.publisher}, {self.uri!r})"

    def _repr_html_(self) -> str:
        way = None if self.path is None else str(self.path)
        return super()._repr_html_() + html.facts("", {**self._facts(), "uri": None, "path": way, "problems": None})


def _highlights(part: Part) -> dict[str, str]:
    return {name: _marked(part.text(name)) for name in part.members()}


def _marked(text: str) -> str:
    """*text*, a stranger's HTML, with nothing in it but escaped text and `<mark>`."""
    pieces = re.split(r"(</?mark>)", text)
    safe = "".join(piece if i % 2 else escape(unescape(piece)) for i, piece in enumerate(pieces))
    # As many ends as beginnings, in turn, or none.
    marks = pieces[1::2]
    return safe if marks == ["<mark>", "</mark>"] * (len(marks) // 2) else re.sub("</?mark>", "", safe)


@dataclass(frozen=True, repr=False)
class SchemaView(_View):
    """A sample schema as the AppView has it.

    >>> schema = appview.resolve_schema("alice.example.com", "Digit", version=">=1.2")
    >>> schema.version, schema.field_names
    ('1.4.0', ('image', 'label'))
    >>> Digit = schema.to_type()
    """

    highlights: Mapping[str, str] = field(default_factory=dict, hash=False)
    appview: AppView | None = field(default=None, compare=False)

    @classmethod
    def read(cls, part: Part, appview: AppView | None = None) -> Self:
        highlights = part.optional("highlights", _highlights) or {}
        return cls(**cls._members(part, "schema"), highlights=highlights, appview=appview)

    @property
    def record(self) -> SchemaRecord:
        """What could be read of the record."""
        value = self.stored.reading.value
        assert isinstance(value, SchemaRecord)
        return value

    @property
    def name(self) -> str:
        """What the schema is called."""
        return self.record.name

    @property
    def version(self) -> str:
        """Its version."""
        return self.record.version

    @property
    def description(self) -> str | None:
        """What it is, in words."""
        return self.record.description

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names of its fields, in order."""
        return tuple(one.name for one in self.record.fields)

    @property
    def structure(self) -> Structure:
        """Its structure, made of the record. Raises SchemaError, a ValueError, when its fields cannot be read."""
        return structure_of(self.stored)

    def to_type(self) -> type[PackableSample]:
        """The sample type that it describes, nested ones included. Raises as `AtmosphereIndex.decode_schema` does."""
        from atdata.schema import schema_to_type

        self.check()
        appview = self.appview
        resolve = None if appview is None else lambda uri: appview.get_schema(uri).stored
        return schema_to_type(self.stored, resolve=resolve)

    def __repr__(self) -> str:
        return f"SchemaView({self.name[:100]!r}, {self.version[:50]!r}, {self.publisher}, {self.uri!r})"

    def _repr_html_(self) -> str:
        return html.schema(self.record) + html.facts("", self._facts())


@dataclass(frozen=True, repr=False)
class LensView(_View):
    """A lens as the AppView has it. Its code is named, never fetched or run."""

    missing: tuple[str, ...] = ()
    """Those of its two schemas that the AppView does not have."""

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(**cls._members(part, "lens"), missing=part.texts("missing"))

    @property
    def record(self) -> LensRecord:
        """What could be read of the record."""
        value = self.stored.reading.value
        assert isinstance(value, LensRecord)
        return value

    @property
    def name(self) -> str:
        """What the lens is called."""
        return self.record.name

    @property
    def description(self) -> str | None:
        """What it does, in words."""
        return self.record.description

    @property
    def source_schema(self) -> str:
        """The AT URI of the schema from which it leads."""
        return self.record.source_schema

    @property
    def target_schema(self) -> str:
        """The AT URI of the schema to which it leads."""
        return self.record.target_schema

    @property
    def getter_code(self) -> CodeReference | None:
        """Where the getter's source is."""
        return self.record.getter_code

    @property
    def putter_code(self) -> CodeReference | None:
        """Where the putter's source is, if it has one."""
        return self.record.putter_code

    def __repr__(self) -> str:
        return f"LensView({self.name[:100]!r}, {self.publisher}, {self.uri!r})"

    def _repr_html_(self) -> str:
        code = self.getter_code
        return html.facts(
            self.name,
            {
                "description": self.description,
                "from": self.source_schema,
                "to": self.target_schema,
                "code": code and f"{code.repository} at {code.commit}: {code.path}",
                "missing": ", ".join(self.missing) or None,
                **self._facts(),
            },
        )


@dataclass(frozen=True, repr=False)
class LabelView(_View):
    """A label as the AppView has it: a name that points to a dataset."""

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(**cls._members(part, "label"))

    @property
    def record(self) -> LabelRecord:
        """What could be read of the record."""
        value = self.stored.reading.value
        assert isinstance(value, LabelRecord)
        return value

    @property
    def name(self) -> str:
        """The label's name."""
        return self.record.name

    @property
    def version(self) -> str | None:
        """The label's version."""
        return self.record.version

    @property
    def dataset_uri(self) -> str:
        """The AT URI to which it points, as its record has it."""
        return self.record.dataset_uri

    def __repr__(self) -> str:
        version = f"@{self.version[:50]}" if self.version else ""
        return f"LabelView({self.name[:100] + version!r}, {self.publisher}, {self.uri!r})"

    def _repr_html_(self) -> str:
        return html.facts(self.name, {"version": self.version, "dataset": self.dataset_uri, **self._facts()})


@dataclass(frozen=True, slots=True)
class PublisherView:
    """Who publishes, and how many records of each kind the AppView has of them."""

    did: str
    handle: str | None
    datasets: int
    schemas: int
    lenses: int
    labels: int
    first_seen_at: datetime
    last_indexed_at: datetime

    @classmethod
    def read(cls, part: Part) -> Self:
        account = Publisher.read(part)
        return cls(
            did=account.did,
            handle=account.handle,
            datasets=part.number("datasets"),
            schemas=part.number("schemas"),
            lenses=part.number("lenses"),
            labels=part.number("labels"),
            first_seen_at=part.moment("firstSeenAt"),
            last_indexed_at=part.moment("lastIndexedAt"),
        )


@dataclass(frozen=True, slots=True)
class ResolvedDataset:
    """What a name or a URI stands for, with all that reading it takes.

    `schema` and `label` are None where the AppView has none or none led there; `pds` is its word for where the
    publisher's repository is, which the library does not follow: it asks the publisher's DID document.
    """

    dataset: DatasetView
    schema: SchemaView | None
    label: LabelView | None
    pds: str | None


@dataclass(frozen=True, slots=True)
class ResolvedLabel:
    """A label, and the dataset to which it points, if the AppView has that."""

    label: LabelView
    dataset_uri: str
    dataset: DatasetView | None


@dataclass(frozen=True, slots=True)
class Shard:
    """Where one shard of a dataset is. The URL is a stranger's. Sizes and checksums are as the record says."""

    url: str
    cid: str | None = None
    size: int | None = None
    mime_type: str | None = None
    checksum: Checksum | None = None

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            url=part.text("url"),
            cid=part.optional_text("cid"),
            size=part.optional_number("size"),
            mime_type=part.optional_text("mimeType"),
            checksum=part.optional("checksum", lambda one: Checksum(one.text("algorithm"), one.text("digest"))),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Status:
    """What an AppView holds, and how far it is behind. `answer` is all that it says of itself, and is shown."""

    version: str
    records: Mapping[str, int] = field(hash=False)
    """How many, by kind."""
    search_documents: int
    backlog: int
    answer: Mapping[str, Any] = field(hash=False)

    @classmethod
    def read(cls, part: Part) -> Self:
        records = part.part("records")
        return cls(
            version=part.text("version"),
            records={name: records.number(name) for name in records.members()},
            search_documents=part.number("searchDocuments"),
            backlog=part.number("backlog"),
            answer=part.members(),
        )

    def __repr__(self) -> str:
        return f"Status({dict(self.answer)})"


def read_structure(part: Part) -> Structure:
    """A `structureView`. Its fingerprint is made here, and not taken from the answer."""
    fields = [Field(one.text("name"), one.text("type"), one.flag("optional")) for one in part.parts("fields")]
    if any(field.type.count("array") > _MAX_DEPTH for field in fields):
        raise part.wrong(f"fields: arrays within more than {_MAX_DEPTH} arrays")
    try:
        return Structure(tuple(fields))
    except SchemaError as e:
        raise part.wrong(str(e)) from None


# --- The lens graph


@dataclass(frozen=True, slots=True)
class LensHop:
    """One step of a path: a lens, or a projection, which reads a sample as one that asks for less and needs no code.

    Keys are the fingerprints of structures, or AT URIs of schemas whose structure the AppView does not know.
    """

    kind: str
    from_key: str
    to_key: str
    from_schema: str
    to_schema: str
    lens: LensView | None
    has_putter: bool

    @classmethod
    def read(cls, part: Part) -> Self:
        kind = part.text("kind")
        # Of a kind that is not known here, nobody knows what to do.
        if kind not in ("lens", "projection"):
            raise part.wrong(f"kind: expected lens or projection, found {kind[:50]!r}")
        return cls(
            kind=kind,
            from_key=part.text("from"),
            to_key=part.text("to"),
            from_schema=part.text("fromSchema"),
            to_schema=part.text("toSchema"),
            lens=LensView.read(part.part("lens")) if kind == "lens" else None,
            has_putter=part.flag("hasPutter"),
        )

    def __str__(self) -> str:
        return self.lens.name[:100] if self.lens is not None else "projection"


@dataclass(frozen=True, slots=True)
class LensPath:
    """A way from the samples of one schema to those of another. Without hops, the two have the same structure."""

    from_key: str
    to_key: str
    hops: tuple[LensHop, ...]
    from_schema: str | None = None
    to_schema: str | None = None

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            from_key=part.text("from"),
            to_key=part.text("to"),
            hops=tuple(map(LensHop.read, part.parts("hops"))),
            from_schema=part.optional_text("fromSchema"),
            to_schema=part.optional_text("toSchema"),
        )

    @property
    def lenses(self) -> tuple[LensView, ...]:
        """The lenses on the way."""
        return tuple(hop.lens for hop in self.hops if hop.lens is not None)

    def leads_to(self, sample_type: type[Any]) -> bool:
        """Whether it leads through lenses to the structure of *sample_type*."""
        try:
            return bool(self.lenses) and structure_of_type(sample_type).fingerprint == self.to_key
        except SchemaError:  # no schema can express it
            return False

    @property
    def is_invertible(self) -> bool:
        """Whether it can be run backwards: every hop is a lens with a putter."""
        return all(hop.has_putter for hop in self.hops)

    def __str__(self) -> str:
        return " → ".join(map(str, self.hops)) or "the same structure"

    def __repr__(self) -> str:
        return f"LensPath({self})"


@dataclass(frozen=True, slots=True)
class LensNode:
    """A place in the lens graph: all schemas of one structure, or one schema whose structure is not known there.

    `state` is `readable`, `unreadable` (its fields cannot be read) or `missing` (lenses name it, and it is not there).
    """

    key: str
    state: str
    schemas: tuple[str, ...]
    """At most ten."""
    schema_count: int
    name: str | None = None
    depth: int | None = None

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            key=part.text("key"),
            state=part.text("state"),
            schemas=part.texts("schemas"),
            schema_count=part.number("schemaCount"),
            name=part.optional_text("name"),
            depth=part.optional_number("depth"),
        )


@dataclass(frozen=True, slots=True)
class LensEdge:
    """An edge of the lens graph. `lens` is the AT URI of a lens, None in a projection."""

    kind: str
    from_key: str
    to_key: str
    lens: str | None
    name: str | None
    has_putter: bool

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            kind=part.text("kind"),
            from_key=part.text("from"),
            to_key=part.text("to"),
            lens=part.optional_text("lens"),
            name=part.optional_text("name"),
            has_putter=part.flag("hasPutter"),
        )


@dataclass(frozen=True)
class LensPaths:
    """The best ways from one schema to another, the best first; none when there is none.

    >>> for path in appview.find_lens_path(full_uri, simple_uri):
    ...     print(path, path.is_invertible)
    simplify True
    """

    source: LensNode
    target: LensNode
    paths: tuple[LensPath, ...]
    is_truncated: bool
    """Whether there was more to look at than one request may: better paths, or further ones, may be missing."""

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            source=LensNode.read(part.part("from")),
            target=LensNode.read(part.part("to")),
            paths=tuple(map(LensPath.read, part.parts("paths"))),
            is_truncated=part.flag("truncated"),
        )

    def __iter__(self) -> Iterator[LensPath]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> LensPath:
        return self.paths[i]

    def _repr_html_(self) -> str:
        rows = [
            [str(path), len(path.lenses), "yes" if path.is_invertible else "no", ", ".join(x.uri for x in path.lenses)]
            for path in self.paths
        ]
        title = f"{self.source.name or self.source.key} → {self.target.name or self.target.key}"
        return html.table(title, ["path", "lenses", "invertible", "URIs"], rows)


@dataclass(frozen=True)
class LensGraph:
    """The lenses around a schema: nodes, the root first, and edges between them."""

    root: str
    nodes: tuple[LensNode, ...]
    edges: tuple[LensEdge, ...]
    is_truncated: bool
    """Whether there is more than one answer holds."""

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(
            root=part.text("root"),
            nodes=tuple(map(LensNode.read, part.parts("nodes"))),
            edges=tuple(map(LensEdge.read, part.parts("edges"))),
            is_truncated=part.flag("truncated"),
        )

    def _repr_html_(self) -> str:
        names = {node.key: node.name or node.key for node in self.nodes}
        rows = [
            [names.get(e.from_key, e.from_key), e.name or e.kind, names.get(e.to_key, e.to_key)] for e in self.edges
        ]
        return html.table(f"{len(self.nodes)} structures, {len(rows)} edges", ["from", "lens", "to"], rows)


# --- Changes


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record was created, updated or deleted. `record` is None with `delete`, and when it has changed again since."""

    seq: int
    time: datetime
    did: str
    uri: str
    kind: str | None
    action: str
    cid: str | None = None
    record: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    verified: bool = False

    @classmethod
    def read(cls, part: Part) -> Self:
        held = part.members().get("record") is not None
        return cls(
            seq=part.number("seq"),
            time=part.moment("time"),
            did=part.text("did"),
            uri=part.text("uri"),
            kind=part.optional_text("kind"),
            action=part.text("action"),
            cid=part.optional_text("cid"),
            record=part.object("record") if held else None,
            verified=held and part.flag("verified"),
        )


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account changed. When it is not active, its records are not shown any more; `status` says why."""

    seq: int
    time: datetime
    did: str
    is_active: bool
    status: str | None = None

    @classmethod
    def read(cls, part: Part) -> Self:
        members = part.number("seq"), part.moment("time"), part.text("did"), part.flag("active")
        return cls(*members, part.optional_text("status"))


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Something about the stream itself. `OutdatedCursor`: changes after the cursor are no longer kept."""

    name: str
    message: str | None

    @classmethod
    def read(cls, part: Part) -> Self:
        return cls(part.text("name"), part.optional_text("message"))
