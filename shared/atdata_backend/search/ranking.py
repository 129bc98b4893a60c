"""Own how good a match is: what is indexed for each word of a dataset, and what finding it counts. Pure.

The score of a dataset depends on it and on the query only, never on what else is indexed: so a page can go on where
another ended, days later, in another process, with neither repeats nor gaps. BM25, whose shape this has, takes the
average length and the rarity of words from the index. Here lengths are compared with constants, which is done while
indexing, and how rare the words of a query are is found out once and goes into the cursor.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

# How much more a word counts the more often it stands in a field, and the less the longer the field: BM25's k1 and b.
_K1, _B = 1.2, 0.75

# Words of a usual field. What the fields of a name or a list of tags add for a word is shared out among a query's
# words: one or two words name a dataset, ten describe it, and then each name has some of them.
_LENGTHS = {"all": 80, "name": 3, "loose": 12, "keywords": 12, "handle": 3}
_WEIGHTS = {"name": 3.0, "loose": 1.5, "keywords": 1.5, "handle": 0.7}

# Scores are rounded to these steps, each a posting list of its own, named by the letter after the word: those of a word
# stand together in the vocabulary, and are found at one go.
_LEAST = "z"
_BASE = {_LEAST: 0.05, "a": 0.45, "b": 0.65, "c": 0.9, "d": 1.2, "e": 1.6}
_EXTRA = {"f": 0.5, "g": 0.8, "h": 1.3, "i": 2.0, "j": 3.0, "k": 4.5, "l": 6.5}

# Scores are sums of whole numbers: those are exact in floating point, in whatever order an engine adds them.
_UNIT = 32


def impacts(fields: Mapping[str, Sequence[str]], stems: Sequence[str], others: Sequence[str]) -> Iterator[str]:
    """What is indexed for the words of *fields*, for the *stems* of all words of a document, and for *others*.

    >>> sorted(impacts({"name": ["birdsong"]}, ["birdsong", "record", "of", "bird"], []))
    ['bird:d', 'birdsong:d', 'birdsong:k', 'of:d', 'record:d']
    """
    base = _saturated("all", stems)
    for stem, value in base.items():
        yield f"{stem}:{_letter(_BASE_STEPS, value)}"
    yield from (f"{stem}:{_LEAST}" for stem in dict.fromkeys(others) if stem not in base)
    extra: dict[str, float] = {}
    for name, words in fields.items():
        for word, value in _saturated(name, words).items():
            extra[word] = extra.get(word, 0.0) + _WEIGHTS[name] * value
    for word, value in extra.items():
        yield f"{word}:{_letter(_EXTRA_STEPS, value)}"


def found_as(word: str, stem: str, rarity: float, share: float) -> Iterator[tuple[str, float]]:
    """What to look for to find *word*, and what each counts. Of a query's words it has this *share*."""
    for letter, value in _BASE.items():
        yield f"{stem}:{letter}", points(value * rarity)
    for letter, value in _EXTRA.items():
        yield f"{word}:{letter}", points(value * rarity * share)


def rarity(found: int, count: int) -> float:
    """How much it says that a word is there which *found* of *count* documents have."""
    count = max(count, found)
    return math.log(1 + (count - found + 0.5) / (found + 0.5))


def points(value: float) -> float:
    """*value* as a score that adds up exactly."""
    return float(max(round(value * _UNIT), 1))


def _saturated(name: str, words: Sequence[str]) -> dict[str, float]:
    length = _K1 * (1 - _B + _B * len(words) / _LENGTHS[name])
    return {word: times * (_K1 + 1) / (times + length) for word, times in Counter(words).items()}


def _between(steps: Mapping[str, float]) -> tuple[str, list[float]]:
    """The letters of *steps*, and where one gives way to the next."""
    values = list(steps.values())
    return "".join(steps), [math.sqrt(low * high) for low, high in itertools.pairwise(values)]


_BASE_STEPS, _EXTRA_STEPS = _between(_BASE), _between(_EXTRA)


def _letter(steps: tuple[str, list[float]], value: float) -> str:
    letters, borders = steps
    return letters[bisect(borders, value)]
