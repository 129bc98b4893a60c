"""Own the status line: what the AppView's answer, or the lack of one, means to who looks at the terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import click
import httpx

from atdata.syntax import parse_datetime

# In seconds. Counting a large database takes a while; a Meilisearch says at once that it is well.
_STATUS, _HEALTH = 5.0, 2.0

# The indexer reports every few seconds, also when nothing happens.
_SILENT = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the AppView said when asked for its status: that, or what is wrong; neither while it does not listen."""

    status: Mapping[str, Any] | None = None
    trouble: str | None = None

    @property
    def is_listening(self) -> bool:
        return self.status is not None or self.trouble is not None


@dataclass(frozen=True, slots=True)
class Line:
    """The status line."""

    text: str
    is_trouble: bool = False


def ask(address: str) -> Answer:
    """The answer of our own AppView at *address*."""
    try:
        # A proxy in the environment is not for this machine.
        answer = httpx.get(f"{address}/xrpc/ac.foundation.dataset.getStatus", timeout=_STATUS, trust_env=False)
    except httpx.TimeoutException:
        return Answer(trouble=f"the AppView has not answered for {_STATUS:.0f} s")
    except httpx.HTTPError:
        return Answer()
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return Answer(trouble=f"what answers at {address} is not the AppView")
    if answer.status_code != 200:
        return Answer(trouble=f"the AppView says: {body.get('message') or answer.status_code}")
    return Answer(status=body)


def meilisearch_trouble(url: str) -> str | None:
    """What is wrong with the Meilisearch server at *url*; None if it is well. The AppView does not tell the public."""
    where = f"{urlsplit(url).hostname}:{urlsplit(url).port or '–'}".removesuffix(":–")
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=_HEALTH)
    except httpx.HTTPError as e:
        return f"Meilisearch at {where} does not answer ({e}): check that it runs, and ATDATA_MEILI_URL"
    if answer.status_code == 200 and b"available" in answer.content:
        return None
    return f"what runs at {where} is no Meilisearch that is well (HTTP {answer.status_code}): check ATDATA_MEILI_URL"


def line_of(status: Mapping[str, Any], started: datetime, now: datetime) -> Line:
    """The line for an answer of `getStatus`, for an indexer that was started at *started*.

    >>> line_of({"indexer": {"updatedAt": "2026-01-01T00:00:00Z", "status": {…}}, …}, started, now).text
    'seq 19  lag 0.0 s  records 1,303  0 frames/s  to search 0  to fetch 0  quarantined 0'
    """
    reported = status.get("indexer")
    if reported is None or (at := parse_datetime(reported["updatedAt"])) < started:
        # What is there is of an earlier run, its trouble included.
        return Line("waiting for the indexer …")
    indexer = reported["status"]
    if (silent := (now - at).total_seconds()) > _SILENT:
        return Line(f"the indexer has not reported for {silent:.0f} s", is_trouble=True)
    if indexer.get("trouble"):
        return Line(str(indexer["trouble"]), is_trouble=True)
    if not indexer.get("connected"):
        return Line(f"connecting to {indexer.get('relay')} …")
    seq, lag = indexer.get("seq"), indexer.get("lagSeconds")
    heard = [f"lag {lag:.1f} s"] if lag is not None else ["nothing new yet" if seq is not None else "nothing heard yet"]
    return Line(
        "  ".join(
            [
                *([f"seq {seq}"] if seq is not None else []),
                *heard,
                f"records {sum(status['records'].values()):,}",
                f"{indexer.get('framesPerSecond', 0):,.0f} frames/s",
                f"to search {status['backlog']:,}",
                f"to fetch {status['repositories']['desynchronized']:,}",
                f"quarantined {sum(q['count'] for q in status['quarantine']):,}",
            ]
        )
    )


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then, and at once when trouble comes."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._is_open = False
        self._next = 0.0
        self._last = Line("")

    def tell(self, text: str) -> None:
        """Print *text* on lines of its own."""
        self.close()
        click.echo(text)

    def show(self, line: Line) -> None:
        """Make *line* the status line."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            text = line.text if len(line.text) <= width else line.text[: width - 1] + "…"
            click.echo("\r\033[K" + text, nl=False)
            self._is_open = True
            return
        is_urgent = line.is_trouble and line != self._last
        if is_urgent or (line != self._last and time.monotonic() >= self._next):
            self._next = time.monotonic() + 5.0
            self._last = line
            click.echo(line.text)

    def close(self) -> None:
        """Leave what was shown last as it is."""
        if self._is_open:
            click.echo()
            self._is_open = False
