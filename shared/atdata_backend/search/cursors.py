"""Own the form of cursors: opaque, bound to the query and the engine that gave them out. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from atdata_backend.search.base import BadCursor, Query

_FOREIGN = "this is not a cursor from here; ask again without it"


# The page, the facets, and what may change from page to page.
_FREE = {"cursor", "limit", "facets", "structures", "without", "marks"}
_decisive = attrgetter(*(field.name for field in fields(Query) if field.name not in _FREE))


def fingerprint(query: Query) -> str:
    """What decides which hits there are and in what order."""
    return hashlib.sha256(repr(_decisive(query)).encode("utf-8", "replace")).hexdigest()[:12]


def encode(engine: str, query: Query, position: Sequence[Any]) -> str:
    """A cursor of *engine* for the page of *query* after *position*."""
    value = [engine, fingerprint(query), *position]
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def decode(engine: str, query: Query, types: Sequence[type | tuple[type, ...]]) -> list[Any]:
    """The position in *query*'s cursor. Raises `BadCursor` unless `encode` made it, with values of these *types*."""
    cursor = query.cursor or ""
    position: list[Any]
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        name, asked, *position = json.loads(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadCursor(_FOREIGN) from error
    if name != engine or len(position) != len(types):
        raise BadCursor(_FOREIGN)
    if asked != fingerprint(query):
        raise BadCursor("this cursor belongs to another query; ask again without it")
    if not all(isinstance(value, type_) for value, type_ in zip(position, types, strict=True)):
        raise BadCursor(_FOREIGN)
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in position):
        raise BadCursor(_FOREIGN)
    # Half of a surrogate pair, from a JSON escape: no engine takes it.
    if any(isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value) for value in position):
        raise BadCursor(_FOREIGN)
    return position
