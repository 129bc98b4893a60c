"""Own what is asked of the embedded index: which documents match a query, how well, in what order, counted by what."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, NamedTuple

import tantivy
from tantivy import FieldType, Occur, Order, Searcher
from tantivy import Query as Q  # noqa: N817 - ours is `Query`

from atdata_backend.search import cursors, ranking, text
from atdata_backend.search.base import FACET_VALUES, BadCursor, Facet, Hit, Query, Results, Sort
from atdata_backend.search.tantivy_documents import (
    Stored,
    amount,
    cut,
    facet_key,
    initial,
    micros,
    named,
    number,
    stems,
)

_MAX_PAGE = 1_000

# The values of a facet that are remembered by their numbers, and the counts of one commit: a few megabytes each.
_MAX_VALUES_KNOWN = 50_000
_MAX_COUNTS_KNOWN = 1_000

# A word that only begins with the one asked for, and a word within a typo or two, as parts of an average match. Each
# field here is another walk through its vocabulary, which is what takes time in a search.
_BEGUN = {"name": 2.0, "text": 0.3}
_NEAR = {"name": 1.4, "text": 0.5}
# Near misses of a word that many documents have are noise, and so are words that begin with it, but in names; with
# fewer than a page they are help.
_RARE = 25
# A word that so many have is hardly a mistake.
_SURE = 5
# A word that so many have, and so many times as many as have another of the query, does not say what is looked for: it
# only ranks. With Lucene, that is a common terms query.
_COMMON, _TIMES = 1_000, 10
# Words of a query that are looked for as if misspelt, each a walk through vocabularies; and of a page's words how many
# are compared with them.
_MAX_MISSPELT, _MAX_COMPARISONS = 6, 20_000
# What a phrase adds where it is more telling than in a text, as parts of what its words count.
_PHRASE = {"name": 3.0, "keywords": 1.5, "handle": 0.7}

# Of a document that others are compared with: words that are looked at, and the most telling ones that are asked for.
_MAX_WORDS_COMPARED, _MAX_PARTS_COMPARED = 500, 30

# A page is sought this many hits around where it should be, since documents come and go between pages.
_SLACK = 50

_FOREIGN = "this is not a cursor from here; ask again without it"
_INT64 = 2**63 - 1


# How many documents have each number that stands for a value.
_FacetCounts = dict[Facet, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index as it was at one commit."""

    id: str
    searcher: Searcher
    schema: tantivy.Schema
    facets: dict[tuple[str, Facet], Mapping[int, int]] = field(default_factory=dict)  # by query, once counted


@dataclass(frozen=True, slots=True)
class _Order:
    """A sort by a field of numbers, or of texts, of which nearly all are those of one document only."""

    field: str
    order: Order

    @property
    def sign(self) -> int:
        return 1 if self.order == Order.Asc else -1


_ORDERS: Mapping[Sort, _Order] = {
    "newest": _Order("by_created", Order.Desc),
    "oldest": _Order("by_created", Order.Asc),
    "samples": _Order("by_samples", Order.Desc),
    "name": _Order("by_name", Order.Asc),
}


def _order(query: Query, asked: text.Asked) -> _Order | None:
    """What to sort by; None: by how well it matches, for which there must be text."""
    if query.sort == "relevance":
        return None if asked else _ORDERS["newest"]
    return _ORDERS[query.sort]


@dataclass(frozen=True, slots=True)
class After:
    """Where a page ended: after the hit with this key to sort by and this id, the ``offset``-th of all.

    ``counts`` is what `_Counts` was told for the first page.
    """

    key: float | str
    id: int
    offset: int
    counts: Sequence[int]

    @classmethod
    def of(cls, query: Query, asked: text.Asked) -> After | None:
        """What *query*'s cursor says, if it has one. Raises `BadCursor`."""
        if query.cursor is None:
            return None
        by = _order(query, asked)
        key = (float, int) if by is None else str if by.field == "by_name" else int
        after = cls(*cursors.decode("tantivy", query, [key, int, int, list]))
        if not all(isinstance(count, int) and 0 <= count <= _INT64 for count in (after.offset, *after.counts)):
            raise BadCursor(_FOREIGN)
        return after


class _Place(NamedTuple):
    """A hit with its place in the order: ``rank``, numbers or texts, ascends, and among the same ``id`` does."""

    rank: Any
    id: int
    key: float | str
    address: tantivy.DocAddress


_by_order = itemgetter(0, 1)


class Search:
    """One query against one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        query: Query,
        asked: text.Asked,
        after: After | None,
        values: dict[Facet, dict[int, str]],
        threads: Executor,
    ) -> None:
        self._snapshot = snapshot
        self._searcher = snapshot.searcher
        self._query = query
        self._after = after
        self._values = values
        self._threads = threads
        self._limit = min(max(query.limit, 1), _MAX_PAGE)
        self._order = _order(query, asked)
        self._counts = _Counts(snapshot.searcher, after.counts if after else None)
        self._text = _TextQuery(snapshot.schema, asked, self._counts, marks=query.marks) if asked else None
        self._filters = _filters(snapshot.schema, query)

    def results(self) -> Results:
        """The page, the counts and the cursor."""
        counting = self._threads.submit(self._counted) if self._query.facets else None
        try:
            places, offset, total = self._by_relevance() if self._order is None else self._by_value(self._order)
            page, cursor = places[: self._limit], None
            if len(places) > self._limit:
                last = [page[-1].key, page[-1].id, offset + self._limit, self._counts.told]
                cursor = cursors.encode("tantivy", self._query, last)
            stored = [Stored.of(self._searcher, place.address) for place in page]
            marker = self._text.marker() if self._text else None
            hits = tuple(_hit(document, marker) for document in stored)
        finally:
            counts = counting.result() if counting else {}
        return Results(hits, total, self._facets(counts, stored), cursor)

    def _matching(self, without: Facet | None = None) -> Q:
        """What matches the text and all filters, or all but one; not how well."""
        must = [query for name, query in self._filters.items() if name != without]
        return _all_of([self._text.matching, *must] if self._text else must)

    def _by_relevance(self) -> tuple[list[_Place], int, int]:
        """The hits from where the page begins to beyond where it ends, the first one's offset, how many there are."""
        assert self._text is not None
        # A filter decides, it does not rank.
        ranked = _all_of([self._text.ranked, *(Q.const_score_query(query, 0.0) for query in self._filters.values())])
        after, start, want = self._after, 0, self._limit + 1
        if after:
            start, want = min(max(after.offset - _SLACK, 0), self._searcher.num_docs), want + 2 * _SLACK
        while True:
            found = self._searcher.search(ranked, want, offset=start, weight_by_field="tie")
            places = self._places(found, sign=-1)
            first = self._first(places, sign=-1)
            # Where hits are of one score, the index gives them in any order: those before the window must be better.
            if start and not (first and places[0].rank < places[first - 1].rank):
                start, want = max(start - want, 0), want * 2
            elif self._is_enough(places[first:], found, want):
                return places[first:], start + first, _total(found)
            else:
                want *= 2

    def _by_value(self, by: _Order) -> tuple[list[_Place], int, int]:
        """The same in an order that does not depend on the text."""
        matching, after, want = self._matching(), self._after, self._limit + 1
        following = _all_of([matching, self._from(after.key, by)]) if after else matching
        while True:
            found = self._searcher.search(following, want, order_by_field=by.field, order=by.order)
            places = self._places(found, by.sign)
            first = self._first(places, by.sign)
            if self._is_enough(places[first:], found, want):
                total = _count(self._searcher, matching) if after else _total(found)
                return places[first:], after.offset if after else 0, total
            want *= 4  # many are of the same moment, or have names that begin alike

    def _places(self, found: tantivy.SearchResult, sign: int) -> list[_Place]:
        """What was *found*, in an order that is the same at every commit."""
        ids = self._searcher.fast_field_values("id", [address for _, address in found.hits])
        places = [
            _Place(key if isinstance(key, str) else key * sign, int(id_ or 0), key, address)
            for (key, address), id_ in zip(found.hits, ids, strict=True)
        ]
        return sorted(places, key=_by_order)

    def _first(self, places: list[_Place], sign: int) -> int:
        """Which of *places* is the first after the page before."""
        if (after := self._after) is None:
            return 0
        rank = after.key if isinstance(after.key, str) else after.key * sign
        return bisect_right(places, (rank, after.id), key=_by_order)

    def _is_enough(self, places: list[_Place], found: tantivy.SearchResult, want: int) -> bool:
        """Whether *places* has all of the page, and none that is left out by chance goes before its last."""
        if len(found.hits) < want:
            return True
        return len(places) > self._limit and places[self._limit - 1].rank != places[-1].rank

    def _from(self, key: float | str, by: _Order) -> Q:
        """What comes from *key* on; of names, which have no ranges, all from its first letters on."""
        name, at = ("initial", initial(named(key))) if isinstance(key, str) else (by.field, int(key))
        low, high = (at, _INT64) if by.order == Order.Asc else (None, at)
        return Q.range_query(self._snapshot.schema, name, FieldType.Integer, low, high)

    def _counted(self) -> _FacetCounts:
        """How many matches have which number, by facet. It runs beside the search: to count takes longer."""
        # And people page, sort and come back to the same queries.
        known = self._snapshot.facets
        asked = cursors.fingerprint(replace(self._query, sort="relevance"))
        counts: _FacetCounts = {}
        shared: list[Facet] = []
        for facet in self._query.facets:
            if (before := known.pop((asked, facet), None)) is not None:
                counts[facet] = before
            elif facet in self._filters:
                counts |= self._aggregated(self._matching(without=facet), [facet])
            else:
                shared.append(facet)
        counts |= self._aggregated(self._matching(), shared)
        known.update({(asked, facet): found for facet, found in counts.items()})
        while len(known) > _MAX_COUNTS_KNOWN:  # the first is the one not asked for the longest
            known.pop(next(iter(known)), None)
        return counts

    def _aggregated(self, matching: Q, facets: list[Facet]) -> _FacetCounts:
        if not facets:
            return {}
        # segment_size: count all values, or those that are rare in one segment and common in another go wrong.
        terms = {
            facet: {"terms": {"field": facet, "size": FACET_VALUES, "segment_size": 1_000_000}} for facet in facets
        }
        buckets = self._searcher.aggregate(matching, terms)
        return {facet: {b["key"]: int(b["doc_count"]) for b in buckets[facet]["buckets"]} for facet in facets}

    def _facets(self, counts: _FacetCounts, page: Sequence[Stored]) -> dict[Facet, Mapping[str, int]]:
        """*counts* by value, most frequent first."""
        facets: dict[Facet, Mapping[str, int]] = {}
        # The documents of the page are at hand, and where few match have all values.
        held = [stored.facets for stored in page] if self._query.facets else []
        for facet in self._query.facets:
            values = self._values_of(facet, counts[facet], [value for of_one in held for value in of_one[facet]])
            found = [(values[number], count) for number, count in counts[facet].items()]
            facets[facet] = dict(sorted(found, key=lambda value: (-value[1], value[0])))
        return facets

    def _values_of(self, facet: Facet, numbers: Collection[int], page: Iterable[str]) -> Mapping[int, str]:
        """The values that *numbers* stand for, which any document that has them knows, in its spelling.

        Some are among those of the *page*.
        """
        known = self._values.setdefault(facet, {})
        found = {of: value for of in numbers if (value := known.get(of)) is not None}
        if len(found) < len(numbers):
            held = {number(facet_key(facet, value)): value for value in page}
            found |= {of: held.get(of) or self._value(facet, of) for of in numbers if of not in found}
            if len(known) > _MAX_VALUES_KNOWN:
                known.clear()
            known.update(found)
        return found

    def _value(self, facet: Facet, of: int) -> str:
        holder = Q.term_query(self._snapshot.schema, facet, of, "basic")
        ((_, address),) = self._searcher.search(holder, 1, count=False).hits
        held = Stored.of(self._searcher, address).facets[facet]
        return next(value for value in held if number(facet_key(facet, value)) == of)


def _hit(stored: Stored, marker: text.Marker | None) -> Hit:
    highlights = {}
    if marker:
        name = marker.html(stored.name)
        description = marker.html(stored.description, limit=200, thorough=not name)
        highlights = {key: html for key, html in (("name", name), ("description", description)) if html}
    return Hit(stored.uri, highlights, stored.structure, stored.record)


def similar(snapshot: Snapshot, uri: str, limit: int) -> tuple[Hit, ...]:
    """The document at *uri*, and those that have most in common with it."""
    searcher = snapshot.searcher

    def term(name: str, value: str | int) -> Q:
        return Q.term_query(snapshot.schema, name, value, "basic")

    itself = term("uri", text.clean(uri))
    if not (found := searcher.search(itself, 1, count=False).hits):
        return ()
    stored = Stored.of(searcher, found[0][1])
    words = [*text.words(stored.name) * 2, *text.words(stored.description)[:_MAX_WORDS_COMPARED]]
    words += [word for label in (*stored.facets["tags"], *stored.columns) for word in text.words(label)]
    parts: list[tuple[str, str | int, float]] = [
        ("stems", stem, min(times, 3)) for stem, times in Counter(stems(words)).items()
    ]
    parts += [("tags", number(facet_key("tags", tag)), 2.0) for tag in stored.facets["tags"]]
    parts += [("columns", number(text.key(column)), 1.0) for column in stored.columns]
    parts += [("structure", number(stored.structure), 3.0)] if stored.structure else []
    telling: list[tuple[float, Q]] = []
    for name, value, weight in parts:
        if (having := searcher.doc_freq(name, value)) > 1:  # another one has it, too
            telling.append((weight * ranking.rarity(having, searcher.num_docs), term(name, value)))
    telling.sort(key=lambda part: -part[0])
    likes = [(Occur.Should, Q.const_score_query(query, value)) for value, query in telling[:_MAX_PARTS_COMPARED]]
    if likes:
        query = Q.boolean_query([*likes, (Occur.MustNot, itself)])
        found += searcher.search(query, min(max(limit, 1), _MAX_PAGE), count=False, weight_by_field="tie").hits
    return tuple(_hit(Stored.of(searcher, address), None) for _, address in found)


def _total(found: tantivy.SearchResult) -> int:
    return int(found.count)  # type: ignore[attr-defined]  # the stubs forget it


def _count(searcher: Searcher, query: Q) -> int:
    """How many documents match, which need no scores for that."""
    return int(searcher.aggregate(query, {"n": {"value_count": {"field": "id"}}})["n"]["value"])


def _all_of(queries: Sequence[Q]) -> Q:
    if len(queries) < 2:
        return queries[0] if queries else Q.all_query()
    return Q.boolean_query([(Occur.Must, query) for query in queries])


def _any_of(queries: Sequence[Q]) -> Q:
    return queries[0] if len(queries) == 1 else Q.boolean_query([(Occur.Should, query) for query in queries])


def _filters(schema: tantivy.Schema, query: Query) -> dict[str, Q]:
    """One query per kind of filter, under the facet's name where it has one."""

    def term(name: str, value: str) -> Q:
        return Q.term_query(schema, name, number(value), "basic")

    def between(name: str, low: int | None, high: int | None) -> Q:
        return Q.range_query(schema, name, FieldType.Integer, low, high)

    filters: dict[str, Q] = {}
    if query.tags:
        filters["tags"] = _all_of([term("tags", facet_key("tags", cut(value))) for value in query.tags])
    if query.fields:
        filters["columns"] = _all_of([term("columns", text.key(value)) for value in text.columns(query.fields)])
    if query.structures:
        filters["structure"] = _any_of([term("structure", cut(value)) for value in query.structures])
    if query.uris:
        filters["uris"] = _any_of([term("id", text.clean(uri)) for uri in query.uris])
    if query.without:
        others = [(Occur.MustNot, term("id", text.clean(uri))) for uri in query.without]
        filters["without"] = Q.boolean_query([(Occur.Must, Q.all_query()), *others])
    one_of: dict[Facet, tuple[str, ...]] = {
        "license": query.licenses,
        "schema": query.schemas,
        "publisher": query.publishers,
        "storage": query.storage,
    }
    for facet, values in one_of.items():
        if values:
            filters[facet] = _any_of([term(facet, facet_key(facet, cut(value))) for value in values])
    amounts = {"samples": (query.min_samples, query.max_samples), "bytes": (query.min_bytes, query.max_bytes)}
    for name, (low, high) in amounts.items():
        if high is not None and high < 0:
            filters[name] = Q.empty_query()
        elif low is not None or high is not None:
            # From 1: who does not say how much there is has not said that there is little.
            filters[name] = between(name, amount(low or 0), None if high is None else amount(high))
    if query.created_after is not None or query.created_before is not None:
        first, last = (m if m is None else micros(m) for m in (query.created_after, query.created_before))
        filters["created"] = between("created", first, last)
    return filters


class _Counts:
    """What a query's words are found in, on which it depends what the query matches and how well.

    A cursor holds what was told for the first page, so that the others ask the same, whatever has come since. Raises
    `BadCursor` when that does not suffice.
    """

    def __init__(self, searcher: Searcher, before: Sequence[int] | None) -> None:
        self.told: list[int] = []
        self._searcher = searcher
        self._before = None if before is None else iter(before)

    def documents(self) -> int:
        """How many documents there are."""
        return self._tell(lambda: self._searcher.num_docs)

    def having(self, name: str, word: str) -> int:
        """How many documents have *word* in this field."""
        return self._tell(lambda: self._searcher.doc_freq(name, word))

    def beginning(self, name: str, word: str) -> int:
        """About how many documents have a word in this field that begins with *word*."""
        return self._tell(lambda: sum(n for _, n in self._searcher.terms_with_prefix(name, word, limit=100)))

    def matching(self, query: Q) -> int:
        """How many documents match *query*."""
        return self._tell(lambda: _count(self._searcher, query))

    def _tell(self, count: Callable[[], int]) -> int:
        known = count() if self._before is None else next(self._before, None)
        if known is None:
            raise BadCursor(_FOREIGN)
        self.told.append(known)
        return known


class _TextQuery:
    """A query's text: which documents it matches, how well, and which words of a hit to mark.

    ``matching`` and ``ranked`` match the same documents. The former is quicker, the latter says how well: every part
    of it counts the same for each document that has it, so that a document's score is its own.
    """

    def __init__(self, schema: tantivy.Schema, asked: text.Asked, counts: _Counts, *, marks: bool) -> None:
        self._schema = schema
        self._marks = marks
        self._asked = asked
        self._counts = counts
        self._documents = counts.documents()
        self._share = 1 / max(len(asked.words), 1)
        self._stems = dict(zip(asked.words, stems(asked.words), strict=True))
        self._near: dict[str, int] = {}
        self._rarity = 0.0
        self._is_misspelt = False
        self._matching: list[Q] = []
        self._ranked: list[Q] = []
        self._asides: list[Q] = []
        self._build()
        self.matching, self.ranked = self._combined()

    def marker(self) -> text.Marker | None:
        """Marks the words of a hit that the query matches, if they are to be marked."""
        if not self._marks:
            return None
        asked = self._asked
        exact = {*asked.words, *asked.joined}.union(*asked.split, *asked.phrases)
        prefixes = tuple(filter(text.may_begin, asked.words))
        word_stems = set(self._stems.values())
        stem_starts = tuple(stem[:3] for stem in word_stems)

        left = _MAX_COMPARISONS

        def matches(word: str) -> bool:
            """Whether to mark *word*, which is folded."""
            nonlocal left
            if word in exact or word.startswith(prefixes):
                return True
            for near, edits in self._near.items() if left > 0 else ():
                left -= 1
                if -edits <= len(word) - len(near) <= edits and text.within(word, near, edits):
                    return True
            # Stemming each word would take longer than all else.
            return word.startswith(stem_starts) and not word_stems.isdisjoint(stems([word]))

        begins = {*exact, *prefixes}
        # Words of one stem differ from it at the end at most: policy, polici, policies.
        begins |= {stem[:-1] if len(stem) > 3 else stem for stem in word_stems}
        shortest = [begin for begin in begins if not any(begin[:n] in begins for n in range(1, len(begin)))]
        return text.Marker(matches, shortest, {word[0] for word in self._near})

    def _combined(self) -> tuple[Q, Q]:
        """All of the phrases, or else any of the words; words beside a phrase only rank, as asides do."""
        phrases = [self._phrase("text", phrase) for phrase in self._asked.phrases]
        if phrases:
            may = [query for phrase in self._asked.phrases for query in self._phrase_ranked(phrase, 1.0)] + self._ranked
            matching, must = _all_of(phrases), [Q.const_score_query(phrase, 0.0) for phrase in phrases]
        else:
            may = []
            matching, must = _any_of(self._matching), [_any_of(self._ranked)]
        if not (may := may + self._asides):
            return matching, _all_of(must)
        return matching, Q.boolean_query([(Occur.Must, query) for query in must] + [(Occur.Should, q) for q in may])

    def _build(self) -> None:
        asked = self._asked
        found = {word: self._counts.having("stems", self._stems[word]) for word in asked.words}
        rarest = min((count for count in found.values() if count >= _RARE), default=_INT64)
        for i, (word, count) in enumerate(found.items()):
            if count > max(_COMMON, _TIMES * rarest):
                self._asides += self._exact(word, self._stems[word], count)
            else:
                self._add_word(word, count, is_last=i == len(found) - 1)
        self._add_whole()
        for form in asked.joined:
            (stem,) = stems([form])
            if count := self._counts.having("stems", stem):
                self._matching.append(self._term("stems", stem))
                self._ranked += self._exact(form, stem, count)
        for parts in asked.split:
            self._matching.append(self._phrase("text", parts))
            self._ranked += self._phrase_ranked(parts, 0.5)
        for word in asked.asides:
            if count := self._counts.having("name", word):
                self._asides.append(self._scored(self._term("name", word), 0.3 * self._rarity_of(count)))

    def _add_word(self, word: str, found: int, *, is_last: bool) -> None:
        """Documents with *word*, with a word that it begins, or with one within a typo or two, in that order."""
        if found:
            self._matching.append(self._term("stems", self._stems[word]))
            self._ranked += self._exact(word, self._stems[word], found)
        # A common word with others after it is complete. Else it would be the beginning of half the vocabulary.
        is_open = text.may_begin(word) and (is_last or found < _RARE)
        begun = self._counts.beginning("name", word) if is_open else 0
        self._rarity = self._rarity_of(max(found, begun) if is_last or not found else found)
        # A word that does not exist by itself is the beginning of another, so all of it counts.
        unit = self._rarity * (self._share if found else 1)
        queries = {"name": self._near_term("name", word, 0)} if begun else {}
        is_odd = False
        may_be_odd = text.typos_allowed(word) and len(self._near) < _MAX_MISSPELT
        if found < _SURE and may_be_odd and not (found and len(self._asked.words) > 1):
            # Few have it, or a word that begins with it: it may be misspelt.
            is_odd = (in_text := self._counts.beginning("text", word)) < _RARE
            is_open = is_open and in_text > 0
        # The beginning of an unfinished last word is sought in the whole text as well, but not two letters of it.
        if is_open and is_last and len(word) != 2 and found < _RARE:
            queries["text"] = self._near_term("text", word, 0)
        if queries:
            self._add(queries, _BEGUN, unit)
        if is_odd:
            # If the word exists, what is only like it comes after.
            self._add(self._typos(word), _NEAR, 0.001 if found else self._rarity)
            self._is_misspelt |= not found

    def _exact(self, word: str, stem: str, found: int) -> list[Q]:
        return [
            Q.const_score_query(self._term("rank", token), score)
            for token, score in ranking.found_as(word, stem, self._rarity_of(found), self._share)
        ]

    def _add(self, queries: Mapping[str, Q], weights: Mapping[str, float], unit: float) -> None:
        self._matching.append(queries.get("text") or queries["name"])  # in which is all that is in the name
        self._ranked += [self._scored(query, weights[name] * unit) for name, query in queries.items()]

    def _typos(self, word: str) -> dict[str, Q]:
        near: dict[str, Q] = {}
        edits = text.typos_allowed(word)
        for distance in range(1, edits + 1):
            near = {name: self._near_term(name, word, distance) for name in _NEAR}
            self._near[word] = distance
            # Two typos are likely only where one explains nothing.
            if distance == edits or self._counts.matching(near["text"]):
                break
        return near

    def _add_whole(self) -> None:
        """Documents whose name is what was asked for, or begins with it, or is within a typo of it."""
        whole = self._asked.whole
        if not text.may_begin(whole) or len(whole) > text.MAX_WORD:
            return
        unit = self._rarity if len(self._asked.words) == 1 else self._rarity_of(1)
        begun = self._near_term("whole", whole, 0)
        self._matching.append(begun)
        self._ranked += [self._scored(self._term("whole", whole), unit * 1.5), self._scored(begun, unit * 0.5)]
        if self._is_misspelt and text.typos_allowed(whole):
            near = self._near_term("whole", whole, 1)
            self._matching.append(near)
            self._ranked.append(self._scored(near, unit))

    def _phrase(self, name: str, words: Sequence[str]) -> Q:
        if len(words) == 1:
            return self._term(name, words[0])
        return Q.phrase_query(self._schema, name, list(words))

    def _phrase_ranked(self, words: Sequence[str], boost: float) -> list[Q]:
        unit = boost * sum(self._rarity_of(self._counts.having("text", word)) for word in words)
        return [
            self._scored(self._phrase("text", words), unit),
            *(self._scored(self._phrase(name, words), unit * weight) for name, weight in _PHRASE.items()),
        ]

    def _scored(self, query: Q, value: float) -> Q:
        return Q.const_score_query(query, ranking.points(value))

    def _term(self, name: str, word: str) -> Q:
        return Q.term_query(self._schema, name, word, "basic")

    def _near_term(self, name: str, word: str, edits: int) -> Q:
        """Words within so many edits of *word*; within none, words that begin with it."""
        return Q.fuzzy_term_query(self._schema, name, word, edits, True, edits == 0)

    def _rarity_of(self, found: int) -> float:
        return ranking.rarity(found, self._documents)
