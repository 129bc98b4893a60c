"""How well the embedded engine finds real datasets. One command, one JSON line:

    python tests/benchmarks/search_quality.py
    python tests/benchmarks/search_quality.py --model all-MiniLM-L6-v2

With the folder of a sentence-embedding model, it searches by meaning, too, with vectors in an embedded Postgres. It
indexes the 500 cards of $ATDATA_SHARED/corpora (by default `<repo>/../shared`) and asks for them:

- `citation_mrr10`: the title of the paper that introduced the dataset, which is not indexed; mean reciprocal rank
  of the card within the first ten.
- `other_words_mrr10`, `other_words_top10`: the same without the words that the card's name has.
- `typo_top5`: the name with one random typo inside a word of four letters or more; share of cards in the first five.
- `prefix_top10`: the first three letters of the name; share of cards in the first ten. Where more than ten names
  begin alike, not all can be: `prefix_top10_best` is the share that a perfect ranking would reach.
- `prefix_word_top10`: the share of these queries whose first ten hits, as far as there are that many such names, all
  have a word in their name that begins so.
- `search_ms`: the median of the searches for citations; with a model, `embed_ms` a card and `model_mb`, by which the
  process grew when the model was read in.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from atdata_backend.search import open_engine, text
from atdata_backend.search.base import Document, Query, SearchEngine

SHARED = Path(os.environ.get("ATDATA_SHARED", Path(__file__).parents[3] / "shared"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def document(card: dict[str, Any], number: int) -> Document:
    return Document(
        uri=f"at://did:plc:cards/ac.foundation.dataset.record/{number:04}",
        did="did:plc:cards",
        handle="cards.example",
        name=card["title"],
        created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        description=card["description"] or "",
        tags=tuple(card["tags"][:30]),
        license=card["license"],
        schema_name="",
        fields=tuple(f"{field['name']}:{field.get('dtype', field['kind'])}" for field in card["fields"]),
        samples=card["examples"],
        bytes=card["bytes"],
    )


def with_typo(name: str, chance: random.Random) -> str | None:
    """*name* with one substitution, deletion, insertion or swap inside a word of four letters or more."""
    words = list(re.finditer(r"[^\W\d_]{4,}", name))
    if not words:
        return None
    word = chance.choice(words)
    kind = chance.choice(["substitute", "delete", "insert", "swap"])
    at = chance.randrange(word.start(), word.end() - (kind == "swap"))
    letter = chance.choice(LETTERS)
    middle = {
        "substitute": letter,
        "delete": "",
        "insert": letter + name[at],
        "swap": name[at : at + 2][::-1],
    }[kind]
    changed = name[:at] + middle + name[at + (2 if kind == "swap" else 1) :]
    return changed if changed.lower() != name.lower() else with_typo(name, chance)


@contextmanager
def opened(model: Path | None) -> Iterator[SearchEngine]:
    """An empty engine, with a *model* if there is one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = ""
        if model:
            sys.path.insert(0, str(Path(__file__).parents[1]))
            from postgres import databases

            url = stack.enter_context(stack.enter_context(databases()).database())
        engine = open_engine(folder=folder, meili_url=None, model=model, database_url=url)
        stack.callback(engine.close)
        yield engine


def other_words(title: str, name: str) -> str | None:
    """*title* without the words of *name*, if three or more that say something are left."""
    left = [word for word in text.words(title) if word not in text.words(name)]
    return " ".join(left) if len(set(left) - text.STOP_WORDS) >= 3 else None


def share(found: Iterable[bool]) -> float:
    values = list(found)
    return round(sum(values) / len(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the typos (default 1)")
    parser.add_argument("--model", type=Path, help="folder of a sentence-embedding model")
    parser.add_argument("--misses", action="store_true", help="print what was not found, to learn from it")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    lines = (SHARED / "corpora" / "dataset_cards.jsonl").read_text("utf-8").splitlines()
    cards = [json.loads(line) for line in lines]
    documents = [document(card, number) for number, card in enumerate(cards)]
    titles = {document.uri: document.name for document in documents}

    with opened(arguments.model) as engine:
        before = psutil.Process().memory_info().rss
        engine.apply([], [])  # reads the model in
        grown = psutil.Process().memory_info().rss - before
        start = time.perf_counter()
        engine.apply(documents, [])
        fed = time.perf_counter() - start
        times: list[float] = []

        def top(query: str, limit: int) -> list[str]:
            start = time.perf_counter()
            results = engine.search(Query(query, limit=limit))
            times.append(time.perf_counter() - start)
            return [hit.uri for hit in results.hits]

        def rank(query: str, uri: str, limit: int) -> int | None:
            found = top(query, limit)
            if uri in found:
                return found.index(uri) + 1
            if arguments.misses:
                print(f"{query!r} should find {titles[uri]!r}, finds {[titles[u] for u in found[:5]]}")
            return None

        citations = [(card["citation_title"], d.uri) for card, d in zip(cards, documents, strict=True)]
        ranks = [rank(query, uri, 10) for query, uri in citations if query]
        search_ms = statistics.median(times) * 1000
        others = [(other_words(query or "", titles[uri]), uri) for query, uri in citations]
        other_ranks = [rank(query, uri, 10) for query, uri in others if query]
        typos = [(typo, d.uri) for d in documents if (typo := with_typo(d.name, chance))]
        near = [rank(query, uri, 5) is not None for query, uri in typos]
        prefixes = [(d.name[:3], d.uri) for d in documents]
        sizes = Counter(prefix.lower() for prefix, _ in prefixes)
        begin = [rank(prefix, uri, 10) is not None for prefix, uri in prefixes]
        begins = re.compile(r"[^\W_]+")
        sensible = []
        for prefix, _ in prefixes:
            fitting = {
                uri
                for uri, title in titles.items()
                if title.lower().startswith(prefix.lower())
                or any(word.lower().startswith(prefix.strip().lower()) for word in begins.findall(title))
            }
            sensible.append(all(uri in fitting for uri in top(prefix, 10)[: len(fitting)]))

    figures = {
        "documents": len(documents),
        "citation_queries": len(ranks),
        "citation_mrr10": round(sum(1 / rank for rank in ranks if rank) / len(ranks), 4),
        "citation_top10": share(rank is not None for rank in ranks),
        "other_words_queries": len(other_ranks),
        "other_words_mrr10": round(sum(1 / rank for rank in other_ranks if rank) / len(other_ranks), 4),
        "other_words_top10": share(rank is not None for rank in other_ranks),
        "typo_queries": len(near),
        "typo_top5": share(near),
        "prefix_queries": len(begin),
        "prefix_top10": share(begin),
        "prefix_top10_best": round(sum(min(1, 10 / sizes[p.lower()]) for p, _ in prefixes) / len(prefixes), 4),
        "prefix_word_top10": share(sensible),
        "search_ms": round(search_ms, 2),
    }
    if arguments.model:
        figures |= {"embed_ms": round(fed / len(documents) * 1000, 1), "model_mb": round(grown / 1e6)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
