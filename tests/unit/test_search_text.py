"""How text becomes words, queries and highlights."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata_backend.search import text
from atdata_backend.search.text import Asked, Marker, asked, fold, forms, typos_allowed, within, words

TEXTS = st.text(max_size=80) | st.text("ab \"-_.'’sSéßİﬁ中日本ｶﾞไทย한국हिंदी🐋\u0301\u200d", max_size=30)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("ImageNet-1k", ["imagenet", "1k"]),
        ("word_count", ["word", "count"]),
        ("AG’s News", ["ag", "news"]),
        ("Alzheimer's", ["alzheimer"]),
        ("l'image", ["l", "image"]),
        ("Größe CAFÉ", ["grosse", "cafe"]),
        ("cafe\u0301", ["cafe"]),
        ("Øresund Łódź", ["oresund", "lodz"]),
        ("ＡＢＣ 𝐃", ["abc", "d"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("数据集", ["数据", "据集", "集"]),
        ("数", ["数"]),
        ("GPT数据 x", ["gpt", "数据", "据", "x"]),
        ("데이터 세트", ["데이터", "세트"]),
        ("dogs🐶🐋", ["dogs", "🐶", "🐋"]),
        ("", []),
        ("... --- !", []),
    ],
)
def test_words(given_text: str, expected: list[str]) -> None:
    """Words are split at all that is no letter, digit or mark, and lose case and accents."""
    assert words(given_text) == expected


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("ImageNet", {"image", "net"}),
        ("imagenet-1k", {"imagenet1k"}),
        ("CC100", {"cc", "100"}),
        ("iNaturalist", {"naturalist"}),
        ("SQuAD", set()),
        ("Speech", set()),
        ("a b c d", {"ab", "bc", "cd", "abc", "bcd"}),
        ("数据 集", set()),
    ],
)
def test_forms(given_text: str, expected: set[str]) -> None:
    """Identifiers are found by their parts and joined; a word of odd capitals has no parts."""
    assert forms(given_text) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Asked()),
        ("  \t", Asked()),
        ("speech", Asked(words=("speech",), whole="speech")),
        ("the", Asked(words=("the",), whole="the")),
        ("of whales", Asked(words=("whales",), asides=("of",), joined=("ofwhales",), whole="ofwhales")),
        ('"of the whale"', Asked(phrases=(("of", "the", "whale"),))),
        ("“a whale” song", Asked(words=("song",), phrases=(("a", "whale"),), whole="song")),
        ('"song', Asked(words=("song",), whole="song")),
        ('""', Asked()),
        ("WikiQA", Asked(words=("wikiqa",), split=(("wiki", "qa"),), whole="wikiqa")),
        ("数据集", Asked(words=("数据", "据集"), whole="数据集")),
        ("x x x", Asked(words=("x",), joined=("xx", "xx", "xxx"), whole="xxx")),
    ],
)
def test_asked(query: str, expected: Asked) -> None:
    """A query is words, phrases in double quotes, and other ways to write them; stop words count only alone."""
    assert asked(query) == expected


@given(TEXTS)
def test_asked_takes_any_text(query: str) -> None:
    """Any text is a query, of at most so many words, each of them a word that documents have."""
    found = asked(query)
    assert len(found.words) + len(found.asides) <= text.MAX_WORDS
    for word in (*found.words, *(word for phrase in found.phrases for word in phrase)):
        assert word
        assert not re.search(r"\s", word)


@given(TEXTS)
def test_words_are_what_is_asked(given_text: str) -> None:
    """A text's own words are found in it: documents and queries are taken apart alike."""
    query = given_text.replace('"', " ")
    assert set(asked(query).words) <= set(words(text.clean(query)))


@given(TEXTS)
def test_fold_is_stable(given_text: str) -> None:
    """Folding what is folded changes nothing."""
    assert fold(fold(given_text)) == fold(given_text)


def edits(a: str, b: str) -> int:
    """The optimal string alignment distance, in full."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            choices = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])]
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                choices.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(choices)
    return table[len(a), len(b)]


@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.integers(1, 2))
def test_within(a: str, b: str, allowed: int) -> None:
    """Two words are within so many edits exactly if their distance is."""
    assert within(a, b, allowed) == (edits(a, b) <= allowed)


@pytest.mark.parametrize(
    ("word", "allowed"), [("abc", 0), ("abcd", 1), ("abcdefg", 1), ("abcdefgh", 2), ("20192019", 0), ("数据数据", 0)]
)
def test_typos_allowed(word: str, allowed: int) -> None:
    """Longer words forgive more; numbers and scripts without spaces nothing."""
    assert typos_allowed(word) == allowed


@given(TEXTS, st.sampled_from([None, 10, 40]))
def test_highlights_are_the_text(given_text: str, limit: int | None) -> None:
    """Without its marks a highlight is the escaped text, or a part of it between ellipses."""
    clean = text.clean(given_text)
    marked = Marker(lambda word: len(word) % 2 == 0, []).html(clean, limit=limit)
    if marked is None:
        return
    plain = html.unescape(marked.replace("<mark>", "").replace("</mark>", ""))
    assert plain.strip("…") in clean
    assert marked.count("<mark>") == marked.count("</mark>") >= 1
    if limit is None:
        assert plain == clean


@pytest.mark.parametrize(
    ("given_text", "marked"),
    [
        ("ImageNet, imagenets & inet", "<mark>ImageNet</mark>, imagenets &amp; inet"),
        ("an image net", "an <mark>image net</mark>"),
        ("中文数据集合", "中文<mark>数据</mark>集合"),
        ("no such thing", None),
        ("", None),
    ],
)
def test_marker(given_text: str, marked: str | None) -> None:
    """Whole words are marked, neighbours that make one, and in scripts without spaces the characters."""
    assert Marker({"imagenet", "数据"}.__contains__, ["imagenet"]).html(given_text) == marked


def test_marker_chooses_the_best_place() -> None:
    """Of a long text the part with the most different matches is quoted, cut at spaces."""
    long = "whale " + "filler " * 100 + "a whale and a dolphin " + "filler " * 100
    marker = Marker({"whale", "dolphin"}.__contains__, ["whale", "dolphin"])
    quoted = marker.html(long, limit=100)
    assert quoted is not None
    assert "a <mark>whale</mark> and a <mark>dolphin</mark>" in quoted
    assert quoted.startswith("…filler ")
    assert quoted.endswith(" filler…")
    assert len(quoted) < 150


def test_columns_are_bounded() -> None:
    """A column is asked for in three forms at most; of a schema, so many fields count, and of each its beginning."""
    assert text.column_forms("image:ndarray:uint8") == ["image", "image:ndarray", "image:ndarray:uint8"]
    assert text.column_forms("a:b:c:d:e") == ["a", "a:b", "a:b:c:d:e"]
    kept = text.columns(["x" * 5_000] * 5_000)
    assert kept == ["x" * text.MAX_COLUMN] * text.MAX_COLUMNS
