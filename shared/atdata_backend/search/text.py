"""Turn text into the words that are indexed, asked for and marked. Pure.

One analysis serves documents, queries and highlights, so that what is found is also what is marked.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

#: More words than this in a query are ignored, as is text beyond the limit: nobody types them.
MAX_WORDS = 32
MAX_QUERY = 2_000
#: Longer words are cut. Both sides cut alike, so they still match.
MAX_WORD = 64
#: A hostile schema must not cost more than its share: what lies beyond of its fields is not indexed.
MAX_COLUMNS = MAX_COLUMN = 200
#: No more words of a text are marked.
MAX_MARKS = 250

# Words too common in English to say what somebody is looking for. A query of nothing else keeps them.
STOP_WORDS = frozenset(
    """a an and are as at be but by can do for from has have how in into is it its of on or our s such t that the their
    them these they this to using via was we were what which who will with without you your""".split()  # noqa: SIM905
)

# Combining marks belong to the word around them, and \w does not know it: without them a Hindi word falls to
# pieces. U+200C and U+200D join within words.
_MARKS = "".join(
    chr(c) for r in ((0x300, 0x1E00), (0xA600, 0xAC00)) for c in range(*r) if unicodedata.category(chr(c))[0] == "M"
)
_MARKS += "\u200c\u200d\u3099\u309a\ufe20-\ufe2f"
# A word, or a pictogram. What follows an English genitive's apostrophe is matched to be passed over.
_WORD = re.compile(rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*|['’][sS](?![^\W_])|[\u2600-\u27bf\U0001f000-\U0001faff]")
# Scripts that put no spaces between words: Han, kana, Thai, Lao, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_CAMEL = re.compile(r"[A-Z]{2,}(?=[A-Z][a-z]|[^A-Za-z]|$)|[A-Z]?[a-z]{2,}|\d+")
_LATIN_MARKS = re.compile("[\u0300-\u036f\u200c\u200d]")
# Letters that no decomposition takes apart.
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"})
_NO_SEPARATORS = {code: None for code in range(128) if not chr(code).isalnum()}
_QUOTES = str.maketrans("“”„‟«»＂", '"' * 7)


@dataclass(frozen=True, slots=True)
class Asked:
    """A query's text, taken apart.

    ``words`` leaves out stop words, which are in ``asides``, unless there is nothing else. ``joined`` has neighbours
    written as one word (``image net``: ``imagenet``), ``split`` the parts of words written as one (``ImageNet``:
    ``image``, ``net``). ``whole`` is everything without spaces.
    """

    words: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    split: tuple[tuple[str, ...], ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    whole: str = ""

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.words or self.phrases)


def clean(text: str) -> str:
    """*text* in composed form and without lone surrogates, which no index can store."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())


def fold(text: str) -> str:
    """*text* without case, accents and width: ``Großé`` is ``grosse``."""
    if text.isascii():
        return text.lower()
    # Taken apart first, because some capitals are letters only then (𝐀), and again, because case can hide marks.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _LATIN_MARKS.sub("", folded).translate(_PLAIN))


def key(value: str) -> str:
    """What a filter's *value* is compared by: people write CC0-1.0 and cc0-1.0. As Meilisearch compares, too.

    >>> key(" CC0-1.0") == key("cc0-1.0")
    True
    """
    return unicodedata.normalize("NFKD", value.strip()).lower()


def words(text: str) -> list[str]:
    """The folded words of *text*: ``ImageNet-1k`` is ``imagenet``, ``1k``; 数据集 is 数据, 据集, 集."""
    return [word for token in _tokens(text) for word in _folded(token)]


def forms(text: str) -> set[str]:
    """Other ways to write the words of an identifier or a name.

    >>> sorted(forms("ImageNet-1k"))
    ['image', 'imagenet1k', 'net']
    """
    tokens = _tokens(text)[:100]
    return {part for token in tokens for part in _parts(token)} | set(_joined([fold(token) for token in tokens]))


def whole(text: str) -> str:
    """All words of *text* as one: ``ImageNet-1k`` is ``imagenet1k``."""
    return "".join(map(fold, _tokens(text)))


def columns(fields: Sequence[str]) -> list[str]:
    """A schema's *fields*, or those of a query, as they are indexed and asked for."""
    return [clean(field[:MAX_COLUMN]) for field in fields[:MAX_COLUMNS]]


def column_forms(column: str) -> list[str]:
    """``image:ndarray:uint8`` is asked for as ``image``, as ``image:ndarray`` and as itself."""
    parts = column.split(":", 2)  # a hostile name can have any number of colons
    return [":".join(parts[: i + 1]) for i in range(len(parts))]


def asked(text: str) -> Asked:
    """Take a query's text apart. Any text will do: nothing in it is syntax but paired double quotes."""
    pieces = clean(text[:MAX_QUERY]).translate(_QUOTES).split('"')
    if len(pieces) % 2 == 0:  # the last quote has no partner
        pieces[-2:] = [" ".join(pieces[-2:])]
    left = MAX_WORDS
    phrases: list[tuple[str, ...]] = []
    free: list[str] = []
    for i, piece in enumerate(pieces):
        tokens = _tokens(piece)[:left]
        left -= len(tokens)
        if i % 2 == 0:
            free += tokens
        elif found := [word for token in tokens for word in _folded(token, inside=True)]:
            phrases.append(tuple(found[:MAX_WORDS]))
    folded = list(dict.fromkeys(word for token in free for word in _folded(token, inside=True)))[:MAX_WORDS]
    telling = [word for word in folded if word not in STOP_WORDS]
    return Asked(
        words=tuple(telling or ([] if phrases else folded)),
        asides=tuple(word for word in folded if word in STOP_WORDS) if telling else (),
        joined=tuple(form for form in _joined([fold(token) for token in free]) if form not in folded),
        split=tuple(parts for token in free if len(parts := tuple(_parts(token))) > 1),
        phrases=tuple(phrases),
        whole="".join(map(fold, free)),
    )


def typos_allowed(word: str) -> int:
    """How many edits *word* forgives. Numbers forgive none: 2018 is not a misspelt 2019."""
    if word.isdigit() or len(word) < 4 or _UNSPACED.match(word):
        return 0
    return 1 if len(word) < 8 else 2


def may_begin(word: str) -> bool:
    """Whether *word* may stand for longer words. A single letter may not, a single character of Chinese may."""
    return len(word) > 1 or bool(_UNSPACED.match(word))


def within(a: str, b: str, edits: int) -> bool:
    """Whether *a* becomes *b* by at most so many insertions, deletions, substitutions and swaps of neighbours."""
    # An edit changes at most two letters of the set: this spares most words the table.
    if abs(len(a) - len(b)) > edits or len(set(a) ^ set(b)) > 2 * edits:
        return False
    before, last = [0], list(range(len(b) + 1))
    for i, x in enumerate(a):
        row = [i + 1]
        for j, y in enumerate(b):
            cost = min(last[j + 1] + 1, row[j] + 1, last[j] + (x != y))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                cost = min(cost, before[j - 1] + 1)
            row.append(cost)
        if min(row) > edits:
            return False
        before, last = last, row
    return last[-1] <= edits


class Marker:
    """Marks in HTML the words that *matches* holds for. It remembers words, so use one for a page of hits.

    Looking at each word of a page would take longer than finding it, while looking for strings takes nothing: so of
    plain text it looks at the words that begin with one of *begins*, or with one of the letters *near*. With such
    letters, and only then, words may match that begin otherwise: it looks for them where there are no others.

    >>> Marker({"imagenet"}.__contains__, ["imagenet"]).html("<b> ImageNet-1k")
    '&lt;b&gt; <mark>ImageNet</mark>-1k'
    """

    def __init__(self, matches: Callable[[str], bool], begins: Collection[str], near: Collection[str] = ()) -> None:
        self._matches = matches
        self._begins = begins
        self._near = near
        self._known: dict[str, list[tuple[int, int]]] = {}

    def html(self, text: str, *, limit: int | None = None, thorough: bool = True) -> str | None:
        """*text* with its matching words in ``<mark>``, or None if no word matches.

        With a *limit*, the fragment of about so many characters that has the most different matches. Not *thorough*, it
        does not look for those that begin otherwise.
        """
        is_plain = text.isascii()
        spans = self._spans(self._begun(text) if is_plain else _WORD.finditer(text))
        if not spans and is_plain and self._near and thorough:
            spans = self._spans(_WORD.finditer(text))
        if not spans and limit is None:
            spans = self._neighbours(text)
        if not spans:
            return None
        begin, stop = (0, len(text)) if limit is None or len(text) <= limit else _window(text, spans, limit)
        out = ["…"] if begin else []
        at = begin
        for start, end in spans:
            if begin <= start < stop:
                out += [html.escape(text[at:start]), "<mark>", html.escape(text[start : min(end, stop)]), "</mark>"]
                at = min(end, stop)
        return "".join([*out, html.escape(text[at:stop]), "…" if stop < len(text) else ""])

    def _spans(self, words: Iterable[re.Match[str]]) -> list[tuple[int, int]]:
        spans = []
        known = self._known
        for match in words:
            token = match[0]
            parts = known.get(token)
            if parts is None:
                parts = known[token] = self._parts(token)
            for start, end in parts:
                spans.append((match.start() + start, match.start() + end))
            if len(spans) > MAX_MARKS:
                break
        return spans

    def _begun(self, text: str) -> Iterator[re.Match[str]]:
        """The words of an ASCII *text* that begin with one of `begins`, or after a space with one of `near`."""
        lower = text.lower()
        starts: set[int] = set()
        for begin in self._begins:
            at = lower.find(begin)
            while at >= 0:
                if not at or not lower[at - 1].isalnum():
                    starts.add(at)
                at = lower.find(begin, at + 1)
        for letter in self._near:  # which stands within most words, too
            spaced = f" {lower}"
            at = spaced.find(f" {letter}")
            while at >= 0:
                starts.add(at)
                at = spaced.find(f" {letter}", at + 1)
        return (match for at in sorted(starts) if (match := _WORD.match(text, at)))

    def _parts(self, token: str) -> list[tuple[int, int]]:
        """Where *token* is to be marked: all of it, or in a script without spaces the characters that match."""
        if token[0] in "'’":
            return []
        if token.isascii() or not _UNSPACED.search(token):
            return [(0, len(token))] if self._matches(fold(token)[:MAX_WORD]) else []
        hit = [False] * len(token)
        for i in range(len(token)):
            hit[i] |= self._matches(fold(token[i]))
            if self._matches(fold(token[i : i + 2])):
                hit[i : i + 2] = [True] * len(token[i : i + 2])
        runs = [list(run) for flag, run in groupby(range(len(token)), key=hit.__getitem__) if flag]
        return [(run[0], run[-1] + 1) for run in runs]

    def _is_within(self, joined: str) -> bool:
        return any(begin in joined for begin in self._begins)

    def _neighbours(self, text: str) -> list[tuple[int, int]]:
        """A name written in parts where the query has one word: "image net", ``imagenet``."""
        if text.isascii() and not self._is_within(text.lower().translate(_NO_SEPARATORS)):
            return []
        tokens = list(_WORD.finditer(text))
        for n in (2, 3):
            for i in range(len(tokens) - n + 1):
                run = tokens[i : i + n]
                if self._matches("".join(fold(token[0]) for token in run)):
                    return [(run[0].start(), run[-1].end())]
        return []


def _tokens(text: str) -> list[str]:
    """The words of *text* as written."""
    return [token for token in _WORD.findall(text) if token[0] not in "'’"]


def _folded(token: str, *, inside: bool = False) -> list[str]:
    """The words that *token* is indexed as: itself, or pairs of characters where a script has no spaces.

    The last character of such a run stands alone, too, so that any single one can be found; not where the token is
    *inside* a query, since the text may go on where the query ends.
    """
    if token.isascii():
        return [token.lower()[:MAX_WORD]]
    out: list[str] = []
    at = 0
    folded = fold(token)
    for run in _UNSPACED.finditer(folded):
        out += [folded[at : run.start()], *map("".join, zip(run[0], run[0][1:], strict=False))]
        if not inside or len(run[0]) == 1:
            out.append(run[0][-1])
        at = run.end()
    # Taken apart, some characters are several words: ﷺ.
    return [word[:MAX_WORD] for piece in (*out, folded[at:]) for word in piece.split()]


def _parts(token: str) -> list[str]:
    """``WikiQA`` is ``wiki``, ``qa``; a word that is not written in parts has none."""
    if token.isalpha() and (token.islower() or token.istitle()):
        return []
    parts = [part.lower() for part in _CAMEL.findall(token)]
    covered = sum(map(len, parts))
    # One stray letter is usual (iNaturalist); more make it a word of odd capitals (SQuAD), not of parts.
    if parts and covered >= max(4, len(token) - 1) and parts != [token.lower()]:
        return parts
    return []


def _joined(tokens: list[str]) -> list[str]:
    """Two or three neighbours as one word."""
    return [
        form
        for n in (2, 3)
        for i in range(len(tokens) - n + 1)
        if len(form := "".join(tokens[i : i + n])) <= MAX_WORD and " " not in form and not _UNSPACED.search(form)
    ]


def _window(text: str, spans: list[tuple[int, int]], limit: int) -> tuple[int, int]:
    """Where the fragment begins and ends: at the first match that has the most different ones close after it."""

    def variety(i: int) -> int:
        reach = spans[i][0] + limit * 3 // 4
        return len({text[start:end].lower() for start, end in spans[i : i + 20] if end <= reach})

    start = spans[max(range(min(len(spans), 50)), key=variety) if len(spans) > 1 else 0][0]
    begin = max(0, start - limit // 4)
    if begin and (space := text.find(" ", begin, start)) >= 0:
        begin = space + 1
    stop = min(len(text), begin + limit)
    if stop < len(text) and (space := text.rfind(" ", start, stop)) > start:
        stop = space
    return begin, stop
