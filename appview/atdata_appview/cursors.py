"""The form of cursors that hold a position: opaque, and refused when they are not of this form. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from atdata_backend.search.base import BadCursor


def encode(*position: str | int) -> str:
    """A cursor that holds *position*.

    >>> decode(encode("newest", 5), (str, int))
    ['newest', 5]
    """
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode(cursor: str, types: Sequence[type]) -> list[Any]:
    """The position in *cursor*, of these *types*. Raises BadCursor for what `encode` cannot have made."""
    try:
        position = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        position = None
    if not isinstance(position, list) or [type(value) for value in position] != list(types):
        raise BadCursor("is not one that this method gave out; start again without it")
    if not all(_is_storable(value) for value in position):
        raise BadCursor("is not one that this method gave out; start again without it")
    return position


def _is_storable(value: str | int) -> bool:
    # No database takes numbers of more than 64 bits, half of a surrogate pair, or NUL.
    if isinstance(value, int):
        return abs(value) < 2**63
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
