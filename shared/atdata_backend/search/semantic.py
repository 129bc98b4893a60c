"""Own search by meaning: another engine's search by words, and beside its hits those whose vectors are near.

A page is planned once, when a search begins: the best hits by words and the nearest documents are put in one order, by
reciprocal rank fusion. Of this order, the cursor holds where the neighbours stand; the hits by words between them come
from the other engine, whose cursor goes along. So pages neither repeat nor skip while documents come and go.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import NoneType

from atdata.errors import NetworkError
from atdata_backend.search import cursors, text
from atdata_backend.search.base import (
    CASELESS,
    FACET_VALUES,
    BadCursor,
    Document,
    Facet,
    Hit,
    Query,
    Results,
    SearchEngine,
)
from atdata_backend.search.embedding import Embedder, Vector
from atdata_backend.search.vectors import NoVectors, Row, Vectors

log = logging.getLogger(__name__)

# Hits by words and neighbours that are put in one order.
_WINDOW = 50
# Of Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
# SIGIR 2009: how little the first ranks count more than those after them.
_K = 60
# How far a neighbour has come from the likeness of unrelated texts to that of equal ones, at least.
_LEAST = 0.3
# Shorter queries are the beginning of a word, of which a model makes nothing.
_SHORTEST = 4
# What is read of a description: some 200 tokens.
_DESCRIPTION, _TAGS = 1_000, 10

_MAX_PAGE = 1_000
_KNOWN = 1_000

_FOREIGN = "this is not a cursor from here; ask again without it"


class SemanticEngine:
    """Search by words in the engine *inner*, and by meaning with the *model*, whose vectors are in Postgres at *url*.

    >>> engine = SemanticEngine(TantivyEngine(folder), Embedder(model_folder), "postgresql://…")
    >>> [hit.uri for hit in engine.search(Query("kitten photos")).hits]  # of a dataset "Pictures of cats"
    ['at://did:plc:…/ac.foundation.dataset.record/3l…']

    A text matches what it matches in *inner*, and the documents nearest in meaning, 50 at most, none that is not near.
    Totals and facets count both. Phrases, beginnings of words, and all orders but relevance are left to *inner*, as
    are schemas. While the vectors cannot be used, searches go on by words.
    """

    def __init__(self, inner: SearchEngine, model: Embedder, url: str) -> None:
        self._inner = inner
        self._model = model
        self._url = url
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        self._vectors: Vectors | None = None
        self._is_ready = False
        self._is_behind = False
        self._trouble = ""
        # People page, sort, filter and come back to the same queries.
        self._vector: Callable[[str], Vector | None] = lru_cache(_KNOWN)(model.query)

    @property
    def schemas(self) -> SearchEngine:
        """The other engine's: schemas are searched by words."""
        return self._inner.schemas

    def apply(self, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        """Store and remove documents, then their vectors; a text that has not changed keeps its own.

        With nothing to do, it opens both for writing, and compares them. Where one lacks what the other has, `count`
        is zero until the next batch, so that whoever starts next fills both.
        """
        self._inner.apply(upserts, deletes)
        with self._writing:
            self._is_ready &= bool(upserts or deletes)
            vectors = self._prepared()
            self._is_behind = not (upserts or deletes) and _sum(self._inner.stamps()) != _sum(vectors.stamps())
            if upserts or deletes:
                self._embed(vectors, upserts, deletes)

    def _embed(self, vectors: Vectors, upserts: Sequence[Document], deletes: Sequence[str]) -> None:
        documents = {text.clean(document.uri): document for document in upserts}
        texts = {uri: _text(document) for uri, document in documents.items()}
        digests = {uri: hashlib.sha256(value.encode()).hexdigest()[:32] for uri, value in texts.items()}
        gone = set(map(text.clean, deletes))
        held = vectors.digests([uri for uri in documents if uri not in gone])
        changed = [uri for uri, digest in digests.items() if held.get(uri) != digest]
        rows = [Row(uri, documents[uri].stamp, digests[uri], self._model.document(texts[uri])) for uri in changed]
        restamped = {uri: documents[uri].stamp for uri in documents.keys() - set(changed)}
        vectors.store(rows, restamped, list(gone))

    def search(self, query: Query) -> Results:
        """The page of *query*. Raises `BadCursor`."""
        asked = text.asked(query.text)
        is_beginning = len(asked.whole) < _SHORTEST and asked.whole.isascii()
        if query.sort != "relevance" or not asked or asked.phrases or is_beginning or query.uris or query.without:
            return self._inner.search(query)
        table = self._table()
        if query.cursor is not None:
            return self._next_page(query, table)
        near = self._near(query.text, table)
        if not near:
            return self._by_words(query, _Plan(table.table))
        return self._first_page(query, table, near)

    def _first_page(self, query: Query, table: Vectors, near: Mapping[str, int]) -> Results:
        found = self._among(query, near)
        words = self._inner.search(replace(query, limit=_WINDOW, marks=False))
        order = fused([hit.uri for hit in words.hits], [uri for uri in near if uri in found])
        plan = _Plan(table.table, slots=tuple(near[uri] if uri in found else None for uri in order))
        return self._page(query, plan, found, near, self._facets(query, words.facets, near))

    def _next_page(self, query: Query, table: Vectors) -> Results:
        plan = _Plan.read(query, table.table)
        if not plan.numbers:
            return self._by_words(query, plan)
        try:
            uris = table.uris(plan.numbers)
        except NoVectors:
            raise BadCursor(_FOREIGN) from None
        near = {uris[number]: number for number in plan.numbers if number in uris}
        facets: Mapping[Facet, Mapping[str, int]] = {}
        if query.facets:
            words = self._inner.search(replace(query, cursor=None, limit=1, marks=False))
            facets = self._facets(query, words.facets, self._near(query.text, table))
        return self._page(query, plan, self._among(query, near), near, facets)

    def _page(
        self,
        query: Query,
        plan: _Plan,
        found: Mapping[str, Hit],
        near: Mapping[str, int],
        facets: Mapping[Facet, Mapping[str, int]],
    ) -> Results:
        """What *plan* says comes next. Of all that are *near*, those *found* pass the filters."""
        limit = min(max(query.limit, 1), _MAX_PAGE)
        uris = {number: uri for uri, number in near.items()}
        slots = [slot for slot in plan.slots if slot is None or uris.get(slot) in found]
        slots += [None] * (limit - len(slots))
        words = replace(query, cursor=None, facets=(), without=tuple(near))
        wanted = slots[:limit].count(None)
        results, after = None, plan.after
        if wanted and after is not None:
            results = self._inner.search(replace(words, limit=wanted, cursor=after or None))
            after = results.cursor
        by_words = iter(results.hits if results else ())
        hits: list[Hit] = []
        shown: list[int] = []
        taken = 0
        while len(hits) < limit and taken < len(slots):
            slot = slots[taken]
            taken += 1
            if slot is not None:
                shown.append(slot)
                hits.append(found[uris[slot]])
            elif hit := next(by_words, None):
                hits.append(hit)
        if marked := self._marked(query, [uris[number] for number in shown]):
            hits = [marked.get(hit.uri, hit) for hit in hits]
        left = replace(plan, after=after, shown=(*plan.shown, *shown), slots=tuple(slots[taken:]))
        counted = results or self._inner.search(replace(words, limit=1, marks=False))
        return Results(tuple(hits), counted.total + len(found), facets, left.cursor(query))

    def _by_words(self, query: Query, plan: _Plan) -> Results:
        results = self._inner.search(replace(query, cursor=plan.after or None))
        return replace(results, cursor=replace(plan, after=results.cursor).cursor(query))

    def _near(self, asked: str, table: Vectors) -> dict[str, int]:
        """The numbers, by URI, of the documents that are near in meaning to what is *asked*, nearest first."""
        vector = self._vector(text.clean(asked[: text.MAX_QUERY]))
        if vector is None:
            return {}
        trouble, near = "", []
        try:
            near = table.nearest(vector, _WINDOW, self._model.likeness(_LEAST))
        except NoVectors:
            trouble = "no indexer has made vectors with the model of ATDATA_SEMANTIC_MODEL: set the same one there"
        except NetworkError as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            log.warning("searching by words only: %s", trouble)
        self._trouble = trouble
        return {uri: number for number, uri in near}

    def _among(self, query: Query, uris: Iterable[str]) -> dict[str, Hit]:
        """Those of *uris* that pass the filters of *query*, whatever its words."""
        asking = replace(query, text="", cursor=None, facets=(), uris=tuple(uris))
        if not asking.uris:
            return {}
        return {hit.uri: hit for hit in self._inner.search(replace(asking, limit=len(asking.uris))).hits}

    def _marked(self, query: Query, uris: Sequence[str]) -> dict[str, Hit]:
        """Those of *uris* that *query* matches by words, too, with its words marked."""
        if not uris or not query.marks:
            return {}
        asking = replace(query, cursor=None, facets=(), uris=tuple(uris), limit=len(uris))
        return {hit.uri: hit for hit in self._inner.search(asking).hits}

    def _facets(
        self, query: Query, by_words: Mapping[Facet, Mapping[str, int]], near: Iterable[str]
    ) -> Mapping[Facet, Mapping[str, int]]:
        """The counts of what matches *by_words*, and those of what is only *near*."""
        uris = tuple(near)
        if not uris or not query.facets:
            return by_words
        # Without filters: a facet also counts what its own filter keeps out.
        matching = self._inner.search(Query(query.text, uris=uris, limit=len(uris), marks=False)).hits
        others = tuple(set(uris) - {hit.uri for hit in matching})
        if not others:
            return by_words
        near_only = self._inner.search(replace(query, text="", cursor=None, uris=others, limit=1)).facets
        return {facet: _added(facet, by_words[facet], near_only[facet]) for facet in query.facets}

    def similar(self, uri: str, limit: int) -> tuple[Hit, ...]:
        """What the other engine says."""
        return self._inner.similar(uri, limit)

    def count(self) -> int:
        """How many documents there are; none where vectors have to be made first, see `apply`."""
        return 0 if self._is_behind else self._inner.count()

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Every document's URI and stamp, in no particular order."""
        return self._inner.stamps()

    def clear(self) -> None:
        """Remove every document and every vector."""
        self._inner.clear()
        with self._writing:
            self._prepared().clear()

    def close(self) -> None:
        """Release both engines' files, locks and connections."""
        with self._opening:
            vectors, self._vectors = self._vectors, None
        if vectors:
            vectors.close()
        self._inner.close()

    def _table(self) -> Vectors:
        with self._opening:
            if self._vectors is None:
                self._vectors = Vectors(self._url, self._model.id, self._model.dimensions)
            return self._vectors

    def _prepared(self) -> Vectors:
        """The table, which is there when this returns."""
        vectors = self._table()
        if not self._is_ready:
            vectors.prepare()
            self._is_ready = True
        return vectors


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is still to come of a search, and what must not come again.

    ``slots`` are the numbers of neighbours, with None where a hit by words comes; after them, hits by words go on.
    ``after`` is the other engine's cursor, "" at the beginning, None at the end. ``shown`` are the numbers of the
    neighbours on pages before. ``table`` is where numbers stand for documents.
    """

    table: str
    after: str | None = ""
    shown: tuple[int, ...] = ()
    slots: tuple[int | None, ...] = ()

    @property
    def numbers(self) -> list[int]:
        """All neighbours."""
        return [*self.shown, *(slot for slot in self.slots if slot is not None)]

    def cursor(self, query: Query) -> str | None:
        """The plan as a cursor for *query*; None when nothing is to come."""
        gaps, gap = [], 0
        for slot in self.slots:
            if slot is None:
                gap += 1
            else:
                gaps.append(gap)
                gap = 0
        if self.after is None and not gaps:
            return None
        return cursors.encode("semantic", query, [self.table, self.after, self.numbers, gaps])

    @classmethod
    def read(cls, query: Query, table: str) -> _Plan:
        """The plan in *query*'s cursor, for the neighbours in *table*. Raises `BadCursor`."""
        of, after, numbers, gaps = cursors.decode("semantic", query, [str, (str, NoneType), list, list])
        is_sound = (
            of == table
            and len(gaps) <= len(numbers) <= _WINDOW
            and all(type(number) is int and 0 < number < 2**63 for number in numbers)
            and all(type(gap) is int and 0 <= gap <= _WINDOW for gap in gaps)
            and len(set(numbers)) == len(numbers)
        )
        if not is_sound:
            raise BadCursor(_FOREIGN)
        shown, waiting = numbers[: len(numbers) - len(gaps)], numbers[len(numbers) - len(gaps) :]
        slots: list[int | None] = []
        for gap, number in zip(gaps, waiting, strict=True):
            slots += [*[None] * gap, number]
        return cls(of, after, tuple(shown), tuple(slots))


def fused(by_words: Sequence[str], by_meaning: Sequence[str]) -> list[str]:
    """Both rankings as one, by reciprocal rank fusion. Of equals, those that match by words come first.

    >>> fused(["a", "b", "c"], ["c", "d"])
    ['c', 'a', 'b', 'd']
    """
    scores: dict[str, float] = {}
    for ranking in (by_words, by_meaning):
        for rank, uri in enumerate(ranking, start=1):
            scores[uri] = scores.get(uri, 0.0) + 1 / (_K + rank)
    return sorted(scores, key=lambda uri: -scores[uri])  # a stable sort


def _text(document: Document) -> str:
    """What is embedded of *document*."""
    parts = [document.name, ", ".join(document.tags[:_TAGS]), document.description[:_DESCRIPTION]]
    return text.clean(". ".join(part for part in parts if part))


def _sum(stamps: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """What two collections of *stamps* have in common only if they are the same, in whatever order."""
    count = total = 0
    for stamp in stamps:
        count += 1
        total += hash(stamp)
    return count, total


def _added(facet: Facet, *counts: Mapping[str, int]) -> dict[str, int]:
    """The sum of *counts*, most frequent first; values that differ in case only are one, as in engines."""
    spellings: dict[str, str] = {}
    total: Counter[str] = Counter()
    for values in counts:
        for value, count in values.items():
            total[spellings.setdefault(text.key(value) if facet in CASELESS else value, value)] += count
    return dict(sorted(total.items(), key=lambda value: (-value[1], value[0]))[:FACET_VALUES])
