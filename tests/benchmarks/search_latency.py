"""How fast the embedded engine answers. One command, one JSON line, times in milliseconds:

    python tests/benchmarks/search_latency.py --documents 100000

It indexes synthetic datasets whose words, tags and publishers are as unevenly frequent as real ones (Zipf), then asks
a seeded mix of queries of seven kinds, each once without and once with all facets, from one thread. `--folder` keeps
the index, for another run over the same.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atdata_backend.search.base import FACETS, Document, Query
from atdata_backend.search.tantivy import TantivyEngine

DAY = datetime(2026, 1, 1, tzinfo=UTC)
SYLLABLES = [c + v + e for c in "bdfghklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s", "l", "m")]


class Zipf:
    """Draws from *values*, the n-th with a chance of 1/n."""

    def __init__(self, values: list[str], chance: random.Random) -> None:
        self._values = values
        self._chance = chance
        self._sums = list(itertools.accumulate(1 / (n + 1) for n in range(len(values))))

    def __call__(self) -> str:
        return self._values[bisect.bisect(self._sums, self._chance.random() * self._sums[-1])]


def vocabulary(size: int, chance: random.Random) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < size:
        words["".join(chance.choices(SYLLABLES, k=chance.choice([2, 2, 3, 3, 4])))] = None
    return list(words)


def documents(count: int, words: list[str], chance: random.Random) -> list[Document]:
    word, rare = Zipf(words, chance), words[len(words) // 20 :]
    tag = Zipf([f"{a}-{b}" for a, b in itertools.pairwise(words[100:600])], chance)
    publisher = Zipf([f"did:plc:{n:024}" for n in range(max(count // 20, 1))], chance)
    schema = Zipf([f"at://did:plc:{n:024}/ac.foundation.dataset.sampleSchema/{n:013}" for n in range(300)], chance)
    license_ = Zipf([f"license-{n}" for n in range(15)], chance)
    made = []
    for n in range(count):
        did = publisher()
        made.append(
            Document(
                uri=f"at://{did}/ac.foundation.dataset.record/{n:013}",
                did=did,
                handle=f"{words[int(did[-6:]) % len(words)]}.example",
                name=" ".join([chance.choice(rare), *(word() for _ in range(chance.randrange(3)))]).title(),
                created_at=DAY + timedelta(seconds=chance.randrange(10**8)),
                description=" ".join(word() for _ in range(chance.randrange(30, 120))),
                tags=tuple({tag() for _ in range(chance.randrange(8))}),
                license=license_(),
                schema_uri=schema(),
                schema_name=word().title(),
                fields=tuple(f"{word()}:str" for _ in range(5)),
                storage=chance.choice(["external", "blobs", "http", "s3"]),
                samples=chance.randrange(10**6),
            )
        )
    return made


def queries(words: list[str], chance: random.Random) -> dict[str, Callable[[], Query]]:
    def common() -> str:
        return words[chance.randrange(50)]

    def rare() -> str:
        return words[chance.randrange(len(words) // 2, len(words))]

    def typo() -> str:
        word = next(w for w in iter(rare, None) if len(w) >= 6)
        at = chance.randrange(1, len(word) - 1)
        return word[:at] + word[at + 1 :]

    return {
        "common": lambda: Query(common()),
        "rare": lambda: Query(rare()),
        "several": lambda: Query(f"{common()} {rare()} {common()}"),
        "typo": lambda: Query(typo()),
        "prefix": lambda: Query(rare()[:4]),
        "filter": lambda: Query(common(), tags=(f"{words[100]}-{words[101]}",)),
        "browse": lambda: Query(),
    }


def milliseconds(times: list[float]) -> dict[str, float]:
    times.sort()
    return {"p50": round(times[len(times) // 2] * 1e3, 2), "p99": round(times[int(len(times) * 0.99)] * 1e3, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--folder", type=Path, help="keep the index here")
    arguments = parser.parse_args()
    chance = random.Random(1)
    words = vocabulary(40_000, chance)
    with tempfile.TemporaryDirectory() as folder:
        engine = TantivyEngine(arguments.folder or Path(folder))
        figures: dict[str, object] = {"documents": arguments.documents}
        if engine.count() != arguments.documents:
            made = documents(arguments.documents, words, chance)
            engine.clear()
            start = time.perf_counter()
            for at in range(0, len(made), 1_000):
                engine.apply(made[at : at + 1_000], [])
            figures["documents_per_second"] = round(len(made) / (time.perf_counter() - start))
            singles = []
            for document in made[:30]:
                start = time.perf_counter()
                engine.apply([document], [])
                engine.search(Query("x"))
                singles.append(time.perf_counter() - start)
            figures["publish_to_searchable"] = milliseconds(singles)
            engine.close()
        chance = random.Random(2)
        kinds = queries(words, chance)
        for facets in ((), FACETS):
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for kind, make in list(kinds.items()) * arguments.queries:
                query = make()
                asked = Query(query.text, tags=query.tags, facets=facets)
                start = time.perf_counter()
                engine.search(asked)
                times[kind].append(time.perf_counter() - start)
            every = list(itertools.chain(*times.values()))
            figures["with_facets" if facets else "without_facets"] = {
                **milliseconds(every),
                **{kind: milliseconds(values) for kind, values in times.items()},
            }
        engine.close()
    figures["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
