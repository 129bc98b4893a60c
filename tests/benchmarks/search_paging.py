"""Whether paging is exact while records come and go. One command, one JSON line:

    python tests/benchmarks/search_paging.py --hits 10000

In each order, with text and without, it pages through so many hits in steps of 50, over XRPC from an AppView on an
embedded Postgres and the embedded search engine, while 500 records arrive and 500 go, a few between any two pages.
Halfway a new AppView takes over, which remembers nothing. For each: pages, hits, records that came twice, records that
were there throughout and did not come, and milliseconds for a page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from holdings import ALICE, Holdings, dataset, serving
from postgres import databases
from search_latency import milliseconds

from atdata.nsid import DATASET
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.base import SORTS
from atdata_backend.search.tantivy import TantivyEngine

_PAGE = 50

_T = TypeVar("_T")


def batched(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def records(prefix: str, count: int, chance: random.Random) -> list[tuple[str, Any]]:
    made = []
    for n in range(count):
        name = " ".join(chance.choices(["speech", "song", "call", "noise"], k=1 + n % 3))
        description = " ".join(["speech", *chance.choices(["dawn", "sea", "city"], k=n % 9)])
        size = {"samples": n % 97} if n % 2 else {}
        made.append((f"{prefix}{n}", dataset(name, day=n % 300, description=description, size=size)))
    return made


async def page_through(holdings: Holdings, settings: AppViewSettings, hits: int, sort: str, q: str) -> dict[str, Any]:
    chance = random.Random(1)
    stay = {f"at://{ALICE}/{DATASET}/stay{n}" for n in range(hits - 500)}
    go = holdings.add_all(ALICE, DATASET, records(f"go-{sort}-{q}-", 500, chance))
    come = records(f"come-{sort}-{q}-", 500, chance)
    pages = hits // _PAGE
    # A commit takes the engine longer than a page: some changes at once, between every fifth page and the next.
    portion = 500 * 5 // pages + 1
    going, coming = batched(go, portion), batched(come, portion)
    seen: list[str] = []
    times: list[float] = []
    params: dict[str, Any] = {"sort": sort, "limit": _PAGE, **({"q": q} if q else {})}
    for half in range(2):
        async with serving(settings) as ask:
            while half or len(times) < pages // 2:
                start = time.perf_counter()
                answer = (await ask.get("searchDatasets", **params)).json()
                times.append(time.perf_counter() - start)
                seen += [view["uri"] for view in answer["datasets"]]
                if "cursor" not in answer:
                    break
                params["cursor"] = answer["cursor"]
                if len(times) % 5 == 0:
                    gone = next(going, ())
                    holdings.execute("DELETE FROM records WHERE uri = ANY(%s)", [list(gone)])
                    holdings.engine.apply([], gone)
                    holdings.add_all(ALICE, DATASET, next(coming, ()))
    return {
        "pages": len(times),
        "hits": len(seen),
        "twice": len(seen) - len(set(seen)),
        "missing": len(stay - set(seen)),
        **milliseconds(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hits", type=int, default=10_000)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"hits": arguments.hits}
    with databases() as server, server.database() as url, tempfile.TemporaryDirectory() as folder:
        engine = TantivyEngine(Path(folder))
        holdings = Holdings(url, engine)
        holdings.account(ALICE, "alice.test")
        settings = AppViewSettings(database_url=url, search_dir=Path(folder), rate_limit=0, search_processes=0)
        for batch in batched(records("stay", arguments.hits - 500, random.Random(2)), 1_000):
            holdings.add_all(ALICE, DATASET, batch)
        for sort in SORTS:
            for q in ("speech", ""):
                name = f"{sort}{'_with_text' if q else ''}"
                figures[name] = asyncio.run(page_through(holdings, settings, arguments.hits, sort, q))
        engine.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
