"""What the name of a dataset stands for: labels first, then the newest dataset. Pure.

The answers are those of `atdata.load_dataset`, which asks the publisher's own server: `atdata.atmosphere.load`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher, get_close_matches
from heapq import nlargest
from typing import Final, Self

from atdata import syntax
from atdata.nsid import PREFIX, SUCCESSOR_PREFIX, Kind

_LONG_AGO: Final = datetime(1, 1, 1, tzinfo=UTC)
# How many names or versions a message lists, and how long each may be there.
_MAX_LISTED: Final = 20
_MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Name:
    """A dataset's name as people write it: `@handle/name` or `@handle/name@version`, with a DID or a handle."""

    publisher: str
    name: str
    version: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name in *text*; the @ in front may be missing. Raises ValueError that says what a name looks like.

        >>> Name.parse("@alice.example.com/digits@1.2.0")
        Name(publisher='alice.example.com', name='digits', version='1.2.0')
        """
        publisher, _, wanted = text.removeprefix("@").partition("/")
        name, _, version = wanted.partition("@")
        if not name or not syntax.is_at_identifier(publisher):
            raise ValueError(
                f"{text[:200]!r} is no name of a dataset: write @handle/name, @handle/name@version or an AT URI"
            )
        return cls(publisher, name, version or None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A label or a dataset of a publisher that has the name asked for. ``target`` is what a label points to.

    The texts are the record's, ``created_at`` and ``target`` None where it has no text there.
    """

    uri: str
    kind: Kind
    collection: str
    rkey: str
    version: str | None
    target: str | None
    created_at: str | None

    @property
    def age(self) -> tuple[datetime, str]:
        """When the record was made, by its own word, and its key, a TID for most, where the word is the same."""
        try:
            return syntax.parse_datetime(self.created_at or ""), self.rkey
        except ValueError:
            return _LONG_AGO, self.rkey


def newest_label(candidates: Sequence[Candidate], version: str | None) -> Candidate | None:
    """The newest label among *candidates* that points anywhere, or the newest of *version*."""
    found = (_newest("label", inside, version) for inside in _by_namespace(candidates))
    return next(filter(None, found), None)


def chosen(candidates: Sequence[Candidate], version: str | None) -> Candidate | None:
    """What the name stands for: the newest label, of *version* if that is given; without, else the newest dataset."""
    for inside in _by_namespace(candidates):
        found = _newest("label", inside, version)
        if found is None and version is None:
            found = _newest("dataset", inside, None)
        if found is not None:
            return found
    return None


def _by_namespace(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    # The library looks in the first one only: what it finds at the publisher's own server, it finds here.
    for prefix in (PREFIX, SUCCESSOR_PREFIX):
        yield [one for one in candidates if one.collection.startswith(prefix)]


def _newest(kind: Kind, candidates: Iterable[Candidate], version: str | None) -> Candidate | None:
    fitting = [one for one in candidates if one.kind == kind and version in (None, one.version)]
    pointing = [one for one in fitting if one.target or kind != "label"]
    return max(pointing, key=lambda one: one.age, default=None)


def versions(candidates: Iterable[Candidate]) -> str:
    """The versions that the labels among *candidates* have, for a message; empty if none has one."""
    return _listed(sorted({one.version for one in candidates if one.kind == "label" and one.version}))


def alternatives(name: str, names: Sequence[str]) -> str:
    """What to ask for in place of *name*, of *names* that there are, for a message; empty if there are none."""
    shown = sorted({one[:_MAX_SHOWN] for one in names})
    matcher: SequenceMatcher[str] = SequenceMatcher(b=name[:_MAX_SHOWN], autojunk=False)

    def likeness(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.quick_ratio()

    # To compare two names in full takes the square of their length: only the few that have the right letters.
    likely = nlargest(_MAX_LISTED, shown, key=likeness)
    if near := get_close_matches(name[:_MAX_SHOWN], likely, n=5):
        return f"did you mean {_listed(near)}?"
    return f"there is {_listed(shown)}" if shown else ""


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_LISTED
    listed = ", ".join(text[:_MAX_SHOWN] for text in texts[:_MAX_LISTED])
    return f"{listed} and {more} more" if more > 0 else listed
