"""Which versions of a schema a range means, and which of them is the newest. Pure.

Versions are those of https://semver.org; ranges are those of npm, https://github.com/npm/node-semver#ranges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import nodesemver

from atdata.syntax import is_semver

# As long as npm allows; a number of more digits than Python converts is beyond it, too.
_MAX_LENGTH: Final = 256

# What a range is made of, each of which is compared with every version.
_MAX_PARTS: Final = 20

_SEMVER = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([^+]+))?")


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """A schema, and its version as its record says it; empty where it says none."""

    uri: str
    version: str

    def view(self) -> dict[str, Any]:
        """As `version` in the output of `resolveSchema`."""
        return {"uri": self.uri, "version": self.version}


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of one schema: those in a range and the others, the newest first, and those that have no place there."""

    matching: Sequence[SchemaVersion]
    others: Sequence[SchemaVersion]
    ignored: Sequence[SchemaVersion]


def in_range(versions: Iterable[SchemaVersion], text: str) -> Versions:
    """Which of *versions* are in the range that *text* says: `1.2.0`, `^1.2`, `~1.2`, `1.x`, `>=1.0 <2`, `*` …

    >>> found = in_range([SchemaVersion(uri, "1.9.0"), SchemaVersion(other, "1.10.0")], "^1.2")
    >>> [one.version for one in found.matching]
    ['1.10.0', '1.9.0']

    A prerelease is only in ranges that name one of the same version, as `>=2.0.0-0` does. Of two versions that differ
    in build metadata only, that of *text* itself comes first, and else that which did. Raises ValueError when *text* is
    no range.
    """
    range_ = _range(text)
    ordered = []
    ignored = []
    for one in versions:
        precedence = _precedence(one.version)
        if precedence is None:
            ignored.append(one)
        else:
            ordered.append(((*precedence, one.version == text), one))
    ordered.sort(key=lambda pair: pair[0], reverse=True)
    matching = [one for _, one in ordered if range_.test(one.version)]
    chosen = {one.uri for one in matching}
    return Versions(matching, [one for _, one in ordered if one.uri not in chosen], ignored)


def _range(text: str) -> Any:
    try:
        if not text.isascii() or len(re.split(r"\|\||[\s,]+", text)) > _MAX_PARTS:
            raise ValueError
        # Cargo puts a comma where npm has a space.
        return nodesemver.make_range(text.replace(",", " "), False)
    except ValueError:
        raise ValueError(
            f"{text[:100]!r} is no range of semantic versions; write 1.2.0, ^1.2, ~1.2, 1.x or >=1.0 <2, "
            f"with {_MAX_PARTS} parts at most"
        ) from None


def _precedence(version: str) -> tuple[Any, ...] | None:
    """What orders versions (https://semver.org/#spec-item-11); None for what is no semantic version."""
    match = _SEMVER.match(version) if len(version) <= _MAX_LENGTH and is_semver(version) else None
    if match is None:
        return None
    *numbers, prerelease = match.groups()
    # Numbers come before words, fewer parts before more, and every prerelease before its release.
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in (prerelease or "").split(".")]
    return (*map(int, numbers), prerelease is None, parts)
