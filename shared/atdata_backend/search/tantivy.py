"""Own the embedded search index: a folder that one process writes and many read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tantivy
from tantivy import FieldType, Occur, Order, Searcher
from tantivy import Query as Q  # noqa: N817 - ours is `Query`

from atdata.errors import ConfigError
from atdata_backend.search import cursors, text
from atdata_backend.search.base import (
    CASELESS,
    FACET_VALUES,
    FACETS,
    BadCursor,
    Document,
    Facet,
    Hit,
    Query,
    Results,
    Sort,
)

log = logging.getLogger(__name__)

# The least that tantivy takes. One thread is enough: a batch of 1,000 takes well under a second.
_WRITER_BYTES = 15_000_000

# Paging by relevance needs the index as it was on the first page. A snapshot costs next to nothing in memory, but
# keeps files from being freed, so only those used last are kept.
_SNAPSHOTS = 32

# A hostile record must not cost more than its share: what lies beyond is neither indexed nor marked.
_MAX_NAME, _MAX_DESCRIPTION, _MAX_VALUE, _MAX_VALUES = 500, 10_000, 1_000, 500
_MAX_PAGE = 1_000

# The values of facets that are remembered by their numbers, and the counts of one commit: a few megabytes each.
_MAX_VALUES_KNOWN = 50_000
_MAX_COUNTS_KNOWN = 1_000

# All words of a document are in `text`, and their stems in `stems`, wherever they stand: a word's rarity is judged over
# everything. What the other fields add for a word that they have is shared out among a query's words: one or two
# words name a dataset, ten describe it, and then each name has some of them.
_WEIGHTS = {"name": 3.0, "loose": 1.5, "keywords": 1.5, "handle": 0.7}
# A word that only begins with the one asked for, and a word within a typo or two, as parts of an average match. Each
# field here is another walk through its vocabulary, which is what takes time in a search.
_BEGUN = {"name": 2.0, "text": 0.3}
_NEAR = {"name": 1.4, "text": 0.5}
# Near misses of a word that many documents have are noise; with fewer than a page they are help.
_RARE = 25

_INT64 = 2**63 - 1

# How tantivy, which has one exception for everything, says that a file is not as it was written. Not among them: a
# lock that another holds, a folder that is closed to us, a disk that is full.
_DAMAGE = (
    "Data corrupt",
    "FileDoesNotExist(",
    "kind: InvalidData",
    "kind: UnexpectedEof",
    "the schema does not match",
    "IncompatibleIndex",
)

# What tantivy keeps in an index's folder: two lists, a lock or two, and the files of segments.
_FILE = re.compile(r"meta\.json|\.managed\.json|\.tantivy-[a-z]+\.lock|\.tmp\w+|[0-9a-f]{32}\.[0-9a-z.]+")


@dataclass(frozen=True, slots=True)
class _Order:
    """A sort by a stored value. ``key`` is unique to each document and sorts like ``value``, a number."""

    key: str
    value: str
    order: Order


_ORDERS: Mapping[Sort, _Order] = {
    "newest": _Order("by_created", "created", Order.Desc),
    "oldest": _Order("by_created", "created", Order.Asc),
    "samples": _Order("by_samples", "samples", Order.Desc),
    "name": _Order("by_name", "initial", Order.Asc),
}


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The index as it was at one commit."""

    id: str
    searcher: Searcher
    schema: tantivy.Schema
    facets: dict[tuple[str, Facet], Mapping[str, int]] = field(default_factory=dict)  # by query, once counted


class TantivyEngine:
    """Search in an embedded tantivy index in *folder*.

    >>> engine = TantivyEngine(Path("search"))
    >>> engine.apply([document], deletes=[])
    >>> [hit.uri for hit in engine.search(Query("imagenet")).hits]
    ['at://did:plc:…/ac.foundation.dataset.record/3l…']

    Any number of processes may read; they see a commit at their next search. Without an index, readers find nothing.
    The first write opens the index for writing: ConfigError if another process has it open already. An index whose
    files are damaged or of another schema is replaced by an empty one then, with a warning; readers raise ConfigError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"index-{FORMAT:08x}"
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._index: tantivy.Index | None = None
        self._writer: tantivy.IndexWriter | None = None
        self._current: _Snapshot | None = None
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()
        # By facet and number; only those that were ever among the most frequent.
        self._values: dict[tuple[Facet, int], str] = {}

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        """Store and remove documents, deletes first; durable and visible to all when it returns.

        With nothing to do, it opens the index for writing, and so replaces a damaged one. A batch that finds the index
        damaged leaves an empty one and raises ConfigError, so that whoever starts next fills it with everything.
        """
        with self._writing:
            try:
                writer = self._open_writer()
                if upserts or deletes:
                    self._write(writer, upserts, deletes)
            except ValueError as error:
                if not _is_damage(error):
                    raise
                self._start_over(error)
                if upserts or deletes:
                    raise ConfigError(
                        f"the search index in {self._folder.parent} was damaged and is empty now; "
                        "start again: it will be filled again"
                    ) from error

    def _write(self, writer: tantivy.IndexWriter, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        try:
            for uri in deletes:
                writer.delete_documents_by_term("uri", text.clean(uri))
            for document in upserts:
                writer.delete_documents_by_term("uri", text.clean(document.uri))
                writer.add_document(_index_document(document))
            writer.commit()
        except BaseException:
            writer.rollback()
            raise

    def search(self, query: Query) -> Results:
        """The page of *query*. Raises `BadCursor`."""
        asked = text.asked(query.text)
        after: _Ranked | str | None = None
        if query.sort == "relevance" and (asked.words or asked.phrases):
            if query.cursor is not None:
                after = _Ranked(*cursors.decode("tantivy", query, [(float, int), int, str, int]))
        elif query.cursor is not None:
            (after,) = cursors.decode("tantivy", query, [str])
        now = self._snapshot()
        if now is None:
            return Results(hits=(), total=0, facets={facet: {} for facet in query.facets})
        then = self._snapshots.get(after.snapshot) if isinstance(after, _Ranked) else None
        with self._intact():
            search = _Search(then or now, query, asked, after, self._values)
            results = search.results()
        if results.cursor and search.is_ranked:
            self._keep(search.snapshot)
        return results

    def count(self) -> int:
        """How many documents there are."""
        snapshot = self._snapshot()
        return snapshot.searcher.num_docs if snapshot else 0

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and stamp, in no particular order, as of now."""
        snapshot = self._snapshot()
        if snapshot and (count := snapshot.searcher.num_docs):
            with self._intact():
                hits = snapshot.searcher.search(Q.all_query(), count, count=False).hits
            for _, address in hits:
                with self._intact():
                    stored = _Stored.of(snapshot.searcher, address)
                yield stored.uri, stored.stamp

    def clear(self) -> None:
        """Remove every document."""
        with self._writing:
            try:
                writer = self._open_writer()
                writer.delete_all_documents()
                writer.commit()
            except ValueError as error:
                if not _is_damage(error):
                    raise
                self._start_over(error)

    def close(self) -> None:
        """Give up the writer's lock, when running merges are done, and the files."""
        with self._writing:
            if self._writer:
                self._writer.wait_merging_threads()
            self._writer = None
        with self._reading:
            self._index = self._current = None
            self._snapshots.clear()

    def _snapshot(self) -> _Snapshot | None:
        """The index as of the last commit of any process, or None if there is no index."""
        with self._reading:
            try:
                # A commit replaces this file: asking for it takes microseconds, tantivy's own watcher half a second.
                stat = (self._folder / "meta.json").stat()
            except FileNotFoundError:
                self._index = self._current = None
                return None
            commit = f"{stat.st_ino:x}-{stat.st_mtime_ns:x}"
            try:
                if self._index is None:
                    self._index = tantivy.Index.open(str(self._folder))
                    self._index.config_reader("manual")
                    self._current = None
                if self._current is None or self._current.id != commit:
                    self._index.reload()
                    self._current = _Snapshot(commit, self._index.searcher(), self._index.schema)
            except (OSError, ValueError) as error:
                raise self._unreadable(error) from error
            return self._current

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """Raises ConfigError when the files turn out to be damaged, which tantivy finds where it reads them."""
        try:
            yield
        except BaseException as error:
            # Some damage makes tantivy panic, which Python sees as an exception of no public type.
            is_panic = type(error).__name__ == "PanicException"
            if is_panic or _is_damage(error) or str(error).startswith("An IO error occurred"):
                raise self._unreadable(error) from error
            raise

    def _unreadable(self, error: BaseException) -> ConfigError:
        return ConfigError(
            f"cannot read the search index in {self._folder.parent} ({error}); check that this process may "
            "write there, too, since readers lock a file, or delete the folder: it will be filled again"
        )

    def _keep(self, snapshot: _Snapshot) -> None:
        """Hold *snapshot* for the pages to come."""
        with self._reading:
            self._snapshots[snapshot.id] = snapshot
            self._snapshots.move_to_end(snapshot.id)
            while len(self._snapshots) > _SNAPSHOTS:
                self._snapshots.popitem(last=False)

    def _open_writer(self) -> tantivy.IndexWriter:
        if self._writer:
            return self._writer
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            index = tantivy.Index(_schema(), path=str(self._folder))
            self._writer = index.writer(_WRITER_BYTES, 1)
        except (OSError, ValueError) as error:
            if _is_damage(error):
                raise
            folder = self._folder.parent
            if "LockBusy" in str(error):
                message = (
                    f"another process is writing the search index in {folder}; stop it, or give this one its own folder"
                )
            else:
                message = (
                    f"cannot open the search index in {folder} for writing ({error}); check that the folder is "
                    "writable and the disk not full, or delete it: it will be filled again"
                )
            raise ConfigError(message) from error
        for old in self._folder.parent.glob("index-*"):
            if old != self._folder and _is_index(old):
                log.info("removing the search index %s, which %s replaces", old, self._folder.name)
                shutil.rmtree(old, ignore_errors=True)
        return self._writer

    def _start_over(self, error: BaseException) -> None:
        """Replace the damaged index by an empty one. Nothing is lost: it is derived from the database."""
        if not _is_index(self._folder):
            raise ConfigError(
                f"{self._folder} should be a search index and holds something else; move it away, or set another folder"
            ) from error
        log.warning("the search index in %s is damaged (%s); starting an empty one", self._folder, error)
        self._writer = None
        with self._reading:
            self._index = self._current = None
            self._snapshots.clear()
        # Out of the readers' way in one step: they find nothing rather than a half. Opening the new one removes it.
        aside = self._folder.with_name(f"{self._folder.name}-damaged")
        try:
            if aside.exists() and _is_index(aside):
                shutil.rmtree(aside)
            self._folder.rename(aside)
        except OSError as failure:
            message = f"cannot replace the damaged search index in {self._folder.parent} ({failure}); delete it"
            raise ConfigError(message) from failure
        self._open_writer()


def _is_index(folder: Path) -> bool:
    """Whether there is nothing in *folder* but what tantivy writes, so that it is ours to remove."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return bool(names) and all(map(_FILE.fullmatch, names))


def _schema() -> tantivy.Schema:
    schema = tantivy.SchemaBuilder()
    # The words come analysed and are only taken apart at spaces.
    for name in ("name", "keywords", "handle", "text"):
        schema.add_text_field(name, tokenizer_name="whitespace", index_option="position")
    for name in ("stems", "loose"):
        schema.add_text_field(name, tokenizer_name="whitespace", index_option="freq")
    for name in ("uri", "whole"):
        schema.add_text_field(name, tokenizer_name="raw", index_option="basic")
    for name in ("by_created", "by_samples", "by_name"):
        schema.add_text_field(name, tokenizer_name="raw", index_option="basic", fast=True)
    for name in ("id", "created", "samples", "initial"):
        schema.add_integer_field(name, fast=True)
    # What is only compared is kept as a number: to count numbers takes a third of the time that strings take.
    for name in (*FACETS, "columns"):
        schema.add_integer_field(name, indexed=True, fast=True)
    schema.add_bytes_field("stored", stored=True)
    return schema.build()


_STEMMER = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).filter(tantivy.Filter.stemmer("english")).build()


def _index_document(document: Document) -> tantivy.Document:
    """*document* as the index has it."""
    uri, name = text.clean(document.uri), text.clean(document.name[:_MAX_NAME])
    description = text.clean(document.description[:_MAX_DESCRIPTION])
    tags = list(dict.fromkeys(map(_cut, document.tags[:_MAX_VALUES])))
    columns = text.columns(document.fields)
    labels = [*tags, _cut(document.schema_name), *dict.fromkeys(column.split(":")[0] for column in columns)]
    words = text.words(name)
    keywords = [word for label in labels for word in text.words(label)]
    handle = text.words(_cut(document.handle or ""))
    loose = sorted(text.forms(name).union(*map(text.forms, labels)))
    all_words = " ".join([*text.words(description), *words, *keywords, *handle])
    facets: dict[Facet, list[str]] = {
        "tags": tags,
        "license": [_cut(document.license)] if document.license else [],
        "schema": [_cut(document.schema_uri)] if document.schema_uri else [],
        "publisher": [_cut(document.did)],
        "storage": [_cut(document.storage)] if document.storage else [],
    }
    id_ = _number(uri)
    created, samples, folded_name = _micros(document.created_at), _samples(document.samples), text.fold(name)
    values: dict[str, Any] = {
        "uri": uri,
        "id": id_,
        "name": " ".join(words),
        "loose": " ".join(loose),
        "whole": text.whole(name)[: text.MAX_WORD],
        "keywords": " ".join(keywords),
        "handle": " ".join(handle),
        "text": " ".join([all_words, *loose]),
        "stems": " ".join(_STEMMER.analyze(all_words)),
        **{facet: _numbers(_key(facet, value) for value in of_facet) for facet, of_facet in facets.items()},
        "columns": _numbers(text.key(form) for column in columns for form in text.column_forms(column)),
        "created": created,
        "samples": samples,
        "initial": _initial(folded_name),
        "by_created": f"{created:016x}{id_:016x}",
        "by_samples": f"{samples:016x}{id_:016x}",
        "by_name": f"{folded_name[:100]}\t{id_:016x}",
        "stored": json.dumps([uri, name, description, facets, document.stamp]).encode(),
    }
    return tantivy.Document.from_dict(values)


def _cut(value: str) -> str:
    return text.clean(value[:_MAX_VALUE])


def _key(facet: Facet, value: str) -> str:
    """What a facet's *value* is counted and filtered by."""
    return text.key(value) if facet in CASELESS else value


def _numbers(values: Iterable[str]) -> list[int]:
    return list(dict.fromkeys(map(_number, values)))  # each once, or it would be counted twice


def _number(value: str) -> int:
    """A number that stands for *value*: of any two values, it is the same one time in 2**63."""
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1


def _micros(moment: datetime) -> int:
    """Microseconds since the year 1, which no datetime precedes."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime.min.replace(tzinfo=UTC)) // timedelta(microseconds=1)


def _samples(samples: int | None) -> int:
    """One more than *samples*, so that zero can stand for an unknown number and comes last."""
    return 0 if samples is None else min(max(samples, 0), _INT64 - 2) + 1


def _initial(name: str) -> int:
    """The beginning of *name* as a number that sorts like it."""
    return int.from_bytes(name.encode()[:7].ljust(7, b"\0"), "big")


# One document with something of everything that the analysis treats in its own way.
_SPECIMEN = Document(
    uri="at://did:plc:x/ac.foundation.dataset.record/x",
    did="did:plc:x",
    handle="x.example",
    name="The WikiQA imageNet-1k Café of Æ 数据集 🐋",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    description="Anybody's policies, 2018: e\u0301, สวัสดี, हिन्दी " + "word " * 3,
    tags=(" Speech-Recognition", "speech-recognition", "ﬁn"),
    license="CC0-1.0",
    schema_uri="at://did:plc:x/ac.foundation.dataset.sampleSchema/X",
    schema_name="ImageText",
    fields=("Image:ndarray:uint8", "label_id:int"),
    storage="external",
    samples=7,
    bytes=7,
)


def _format() -> int:
    """A number of all that decides what is in an index: its schema, tantivy's release, what we make of a document."""
    definition = _schema().__reduce__()[1]  # as for pickle: the fields with their options
    release = version("tantivy")  # whose files another may not read
    made = _index_document(_SPECIMEN).to_dict()
    stamp = json.dumps([definition, release, made], sort_keys=True, default=lambda value: bytes(value).hex())
    return int.from_bytes(hashlib.sha256(stamp.encode()).digest()[:4], "big")


#: The index's folder is named after it, so that a change of the schema or of the analysis cannot be forgotten: the next
#: writer then starts an empty index and removes the old one, readers find nothing until it has, and the feed fills it.
FORMAT = _format()


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the index gives back of a document."""

    uri: str
    name: str
    description: str
    facets: Mapping[Facet, list[str]]
    stamp: str

    @classmethod
    def of(cls, searcher: Searcher, address: tantivy.DocAddress) -> _Stored:
        return cls(*json.loads(bytes(searcher.doc(address).get_first("stored") or b"")))


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Where a page by relevance ended: exactly, as long as its snapshot is held, and by its last hit else."""

    score: float
    id: int
    snapshot: str
    offset: int


class _Search:
    """One query against one snapshot."""

    def __init__(
        self,
        snapshot: _Snapshot,
        query: Query,
        asked: text.Asked,
        after: _Ranked | str | None,
        values: dict[tuple[Facet, int], str],
    ) -> None:
        self.snapshot = snapshot
        self._searcher = snapshot.searcher
        self._query = query
        self._after = after
        self._values = values
        self._limit = min(max(query.limit, 1), _MAX_PAGE)
        self._text = _TextQuery(snapshot, asked) if asked.words or asked.phrases else None
        self._marker = self._text.marker() if self._text else None
        self._filters = _filters(snapshot.schema, query)
        self.is_ranked = query.sort == "relevance" and self._text is not None

    def results(self) -> Results:
        matching = self._matching()
        hits, total, position = self._by_relevance(matching) if self.is_ranked else self._by_value(matching)
        return Results(
            hits=tuple(map(self._hit, hits)),
            total=total,
            facets=self._facets(matching),
            cursor=cursors.encode("tantivy", self._query, position) if position else None,
        )

    def _matching(self, without: Facet | None = None) -> Q:
        """What matches the text and all filters, or all but one."""
        must = [query for name, query in self._filters.items() if name != without]
        if self._text:
            # A filter decides, it does not rank.
            must = [self._text.query, *(Q.const_score_query(query, 0.0) for query in must)]
        return _all_of(must)

    def _by_relevance(self, matching: Q) -> tuple[list[tantivy.DocAddress], int, list[Any]]:
        """The page, how many hits there are, and where the page ends, if others follow."""
        offset = self._offset(matching)
        found = self._searcher.search(matching, self._limit, offset=offset)
        hits = [address for _, address in found.hits]
        end, total = offset + len(hits), _total(found)
        if not hits or end >= total:
            return hits, total, []
        (id_,) = self._searcher.fast_field_values("id", hits[-1:])
        return hits, total, [found.hits[-1][0], id_, self.snapshot.id, end]

    def _offset(self, matching: Q) -> int:
        """How many hits have been shown."""
        after, count = self._after, self._searcher.num_docs
        if not isinstance(after, _Ranked) or not count:
            return 0
        if after.snapshot == self.snapshot.id:
            return min(max(after.offset, 0), count)
        # The snapshot is gone: it was long ago, or in another process. Scores shift a little as documents come and
        # go, so look for the last hit itself near where it was; without it, go on at its score.
        hits = self._searcher.search(matching, min(max(after.offset, 0) + _MAX_PAGE, count), count=False).hits
        ids = self._searcher.fast_field_values("id", [address for _, address in hits])
        return ids.index(after.id) + 1 if after.id in ids else sum(score >= after.score for score, _ in hits)

    def _by_value(self, matching: Q) -> tuple[list[tantivy.DocAddress], int, list[Any]]:
        by = _ORDERS["newest" if self._query.sort == "relevance" else self._query.sort]
        ascends = by.order == Order.Asc
        is_everything = self._text is None and not self._filters
        total = self._searcher.num_docs if is_everything else _total(self._searcher.search(matching, 1))
        after = self._after
        if isinstance(after, str):
            matching = _all_of([matching, self._from(after, by)])
        want = self._limit + 1
        while True:
            found = self._searcher.search(matching, want, count=False, order_by_field=by.key, order=by.order)
            left = found.hits
            if isinstance(after, str):
                left = [hit for hit in left if (hit[0] > after if ascends else hit[0] < after)]
            if len(left) > self._limit or len(found.hits) < want:
                break
            want *= 4  # many names begin alike
        page = left[: self._limit]
        return [address for _, address in page], total, [page[-1][0]] if len(left) > self._limit else []

    def _from(self, after: str, by: _Order) -> Q:
        """What comes after the key *after*; of names, which have no ranges, all from its first letters on."""

        def between(name: str, low: int, high: int) -> Q:
            return Q.range_query(self.snapshot.schema, name, FieldType.Integer, low, high)

        def beyond(name: str, number: int) -> Q:
            bounds = (number + 1, _INT64) if by.order == Order.Asc else (-1, number - 1)
            return between(name, *bounds) if bounds[0] <= bounds[1] else Q.empty_query()

        if by.value == "initial":
            return between("initial", _initial(after), _INT64)
        try:
            value, id_ = (min(max(int(part, 16), 0), _INT64 - 1) for part in (after[:16], after[16:]))
        except ValueError as error:
            raise BadCursor("this is not a cursor from here; ask again without it") from error
        tied = _all_of([between(by.value, value, value), beyond("id", id_)])
        return Q.boolean_query([(Occur.Should, beyond(by.value, value)), (Occur.Should, tied)])

    def _hit(self, address: tantivy.DocAddress) -> Hit:
        stored = _Stored.of(self._searcher, address)
        if not self._marker:
            return Hit(stored.uri)
        name = self._marker.html(stored.name)
        description = self._marker.html(stored.description, limit=200, thorough=not name)
        return Hit(stored.uri, {key: html for key, html in (("name", name), ("description", description)) if html})

    def _facets(self, matching: Q) -> dict[Facet, Mapping[str, int]]:
        # To count takes longer than to search, and people page, sort and come back to the same queries.
        known, asked = self.snapshot.facets, cursors.fingerprint(replace(self._query, sort="relevance"))
        counts: dict[Facet, Mapping[str, int]] = {}
        shared: list[Facet] = []
        for facet in self._query.facets:
            if (before := known.pop((asked, facet), None)) is not None:
                counts[facet] = before
            elif self._filters.get(facet) is not None:
                counts |= self._counts(self._matching(without=facet), [facet])
            else:
                shared.append(facet)
        counts |= self._counts(matching, shared)
        known.update({(asked, facet): found for facet, found in counts.items()})
        while len(known) > _MAX_COUNTS_KNOWN:  # the first is the one not asked for the longest
            known.pop(next(iter(known)), None)
        return {facet: counts[facet] for facet in self._query.facets}

    def _counts(self, matching: Q, facets: list[Facet]) -> dict[Facet, Mapping[str, int]]:
        if not facets:
            return {}
        # segment_size: count all values, or those that are rare in one segment and common in another go wrong.
        terms = {
            facet: {"terms": {"field": facet, "size": FACET_VALUES, "segment_size": 1_000_000}} for facet in facets
        }
        buckets = self._searcher.aggregate(matching, terms)
        counts: dict[Facet, Mapping[str, int]] = {}
        for facet in facets:
            found = [(self._value(facet, b["key"]), int(b["doc_count"])) for b in buckets[facet]["buckets"]]
            counts[facet] = dict(sorted(found, key=lambda value: (-value[1], value[0])))
        return counts

    def _value(self, facet: Facet, number: int) -> str:
        """The value that *number* stands for, which any document that has it knows, in that document's spelling."""
        value = self._values.get((facet, number))
        if value is None:
            holder = Q.term_query(self.snapshot.schema, facet, number, "basic")
            ((_, address),) = self._searcher.search(holder, 1, count=False).hits
            held = _Stored.of(self._searcher, address).facets[facet]
            value = next(value for value in held if _number(_key(facet, value)) == number)
            if len(self._values) > _MAX_VALUES_KNOWN:
                self._values.clear()
            self._values[facet, number] = value
        return value


def _is_damage(error: BaseException) -> bool:
    """Whether *error* comes of files that are not as they were written."""
    return any(sign in str(error) for sign in _DAMAGE)


def _total(found: tantivy.SearchResult) -> int:
    return int(found.count)  # type: ignore[attr-defined]  # the stubs forget it


def _all_of(queries: Sequence[Q]) -> Q:
    if len(queries) < 2:
        return queries[0] if queries else Q.all_query()
    return Q.boolean_query([(Occur.Must, query) for query in queries])


def _filters(schema: tantivy.Schema, query: Query) -> dict[str, Q]:
    """One query per kind of filter, under the facet's name where it has one."""

    def term(name: str, value: str) -> Q:
        return Q.term_query(schema, name, _number(value), "basic")

    def between(name: str, low: int | None, high: int | None) -> Q:
        return Q.range_query(schema, name, FieldType.Integer, low, high)

    filters: dict[str, Q] = {}
    if query.tags:
        filters["tags"] = _all_of([term("tags", _key("tags", _cut(value))) for value in query.tags])
    if query.fields:
        filters["columns"] = _all_of([term("columns", text.key(value)) for value in text.columns(query.fields)])
    one_of: dict[Facet, tuple[str, ...]] = {
        "license": query.licenses,
        "schema": query.schemas,
        "publisher": query.publishers,
        "storage": query.storage,
    }
    for facet, values in one_of.items():
        if values:
            terms = [term(facet, _key(facet, _cut(value))) for value in values]
            filters[facet] = Q.boolean_query([(Occur.Should, one) for one in terms])
    if query.min_samples is not None or query.max_samples is not None:
        # From 1: who does not say how many samples there are has not said that there are few.
        low, high = query.min_samples, query.max_samples
        if high is not None and high < 0:
            filters["samples"] = Q.empty_query()
        else:
            filters["samples"] = between("samples", _samples(low or 0), None if high is None else _samples(high))
    if query.created_after is not None or query.created_before is not None:
        first, last = (m if m is None else _micros(m) for m in (query.created_after, query.created_before))
        filters["created"] = between("created", first, last)
    return filters


class _TextQuery:
    """A query's text against one snapshot: what it matches, and which words of a hit to mark."""

    def __init__(self, snapshot: _Snapshot, asked: text.Asked) -> None:
        self._searcher = snapshot.searcher
        self._schema = snapshot.schema
        self._asked = asked
        self._exact = {*asked.words, *asked.joined}.union(*asked.split, *asked.phrases)
        self._stems = set(_stems(asked.words))
        self._stem_starts = tuple(stem[:3] for stem in self._stems)
        self._prefixes = tuple(filter(text.may_begin, asked.words))
        self._near: dict[str, int] = {}
        self._rarity = 0.0
        self._is_misspelt = False
        self._share = 1 / max(len(asked.words), 1)
        self.query = self._build()

    def marker(self) -> text.Marker:
        """Marks the words of a hit that the query matches."""
        begins = {*self._exact, *self._prefixes}
        # Words of one stem differ from it at the end at most: policy, polici, policies.
        begins |= {stem[:-1] if len(stem) > 3 else stem for stem in self._stems}
        begins |= {word[0] for word in self._near}  # most typos are further on
        shortest = [begin for begin in begins if not any(begin[:n] in begins for n in range(1, len(begin)))]
        return text.Marker(self._matches, shortest)

    def _matches(self, word: str) -> bool:
        """Whether to mark *word*, which is folded."""
        if word in self._exact or word.startswith(self._prefixes):
            return True
        for near, edits in self._near.items():
            if -edits <= len(word) - len(near) <= edits and text.within(word, near, edits):
                return True
        # Stemming each word would take longer than all else.
        return word.startswith(self._stem_starts) and not self._stems.isdisjoint(_stems([word]))

    def _build(self) -> Q:
        asked = self._asked
        words = [self._word(word, is_last=i == len(asked.words) - 1) for i, word in enumerate(asked.words)]
        extras = [*words, *self._whole()]
        extras += [self._sum(form) for form in asked.joined if self._found(form)]
        extras += [self._phrase(parts, boost=0.5) for parts in asked.split]
        any_word = Q.boolean_query([(Occur.Should, query) for query in extras]) if extras else None
        must = [self._phrase(phrase) for phrase in asked.phrases]
        # Words beside a phrase, and stop words beside words, only rank.
        may = [any_word] if must and any_word else []
        must += [any_word] if not must and any_word else []
        may += [Q.boost_query(self._term("name", word), 0.3) for word in asked.asides if self._df("name", word)]
        return Q.boolean_query([(Occur.Must, query) for query in must] + [(Occur.Should, query) for query in may])

    def _word(self, word: str, *, is_last: bool) -> Q:
        """Documents with *word*, with a word that it begins, or with one within a typo or two, in that order."""
        found = found_or_begun = self._found(word)
        choices = [self._sum(word)] if found else []
        # A common word with others after it is complete. Else it would be the beginning of half the vocabulary.
        if text.may_begin(word) and (is_last or found < _RARE):
            # The beginning of an unfinished last word is sought in the whole text as well, but not two letters of it.
            fields = [name for name in _BEGUN if name == "name" or (is_last and len(word) != 2)]
            begun = {name: self._near_term(name, word, 0) for name in fields}
            if is_last or not found:
                found_or_begun = max(found, _total(self._searcher.search(begun["name"], 1)))
            # A word that does not exist by itself is the beginning of another, so all of it counts.
            unit = self._idf(found_or_begun) * (self._share if found else 1)
            choices += [Q.const_score_query(query, _BEGUN[name] * unit) for name, query in begun.items()]
        self._rarity = self._idf(found_or_begun)
        is_odd = not found or len(self._asked.words) == 1
        if is_odd and found_or_begun < _RARE and (near := self._typos(word)):
            # If the word exists, what is only like it comes after.
            unit = 0.001 if found else self._rarity
            self._is_misspelt |= not found
            choices += [Q.const_score_query(query, _NEAR[name] * unit) for name, query in near.items()]
        return Q.disjunction_max_query(choices)

    def _sum(self, word: str) -> Q:
        """Documents with *word* in any field: the better the more fields, and the more telling ones, have it."""
        terms = [
            Q.boost_query(self._term(name, word), weight * self._share)
            for name, weight in _WEIGHTS.items()
            if self._df(name, word)
        ]
        terms += [self._term("stems", stem) for stem in _stems([word]) if self._df("stems", stem)]
        return Q.boolean_query([(Occur.Should, term) for term in terms])

    def _typos(self, word: str) -> dict[str, Q]:
        near: dict[str, Q] = {}
        edits = text.typos_allowed(word)
        for distance in range(1, edits + 1):
            near = {name: self._near_term(name, word, distance) for name in _NEAR}
            self._near[word] = distance
            # Two typos are likely only where one explains nothing.
            if distance == edits or _total(self._searcher.search(near["text"], 1)):
                break
        return near

    def _whole(self) -> list[Q]:
        """Documents whose name is what was asked for, or begins with it, or is within a typo of it."""
        whole = self._asked.whole
        if not text.may_begin(whole) or len(whole) > text.MAX_WORD:
            return []
        unit = self._rarity if len(self._asked.words) == 1 else self._idf(1)
        queries = [
            Q.const_score_query(self._term("whole", whole), unit * 2.0),
            Q.const_score_query(self._near_term("whole", whole, 0), unit * 0.5),
        ]
        if self._is_misspelt and text.typos_allowed(whole):
            queries.append(Q.const_score_query(self._near_term("whole", whole, 1), unit))
        return [Q.disjunction_max_query(queries)]

    def _phrase(self, words: Sequence[str], boost: float = 1.0) -> Q:
        queries = []
        for name in ("name", "keywords", "handle", "text"):
            query = Q.phrase_query(self._schema, name, list(words)) if len(words) > 1 else self._term(name, words[0])
            queries.append(Q.boost_query(query, _WEIGHTS.get(name, 1.0) * boost))
        return Q.boolean_query([(Occur.Should, query) for query in queries])

    def _term(self, name: str, word: str) -> Q:
        return Q.term_query(self._schema, name, word, "freq")

    def _near_term(self, name: str, word: str, edits: int) -> Q:
        """Words within so many edits of *word*; within none, words that begin with it."""
        return Q.fuzzy_term_query(self._schema, name, word, edits, True, edits == 0)

    def _df(self, name: str, word: str) -> int:
        return self._searcher.doc_freq(name, word)

    def _found(self, word: str) -> int:
        """About how many documents have *word*."""
        stem = _stems([word])
        return max([self._df("loose", word), self._df("handle", word), *(self._df("stems", s) for s in stem)])

    def _idf(self, found: int) -> float:
        count = max(self._searcher.num_docs, found)
        return math.log(1 + (count - found + 0.5) / (found + 0.5))


def _stems(words: Sequence[str]) -> list[str]:
    return _STEMMER.analyze(" ".join(words))
