"""One record with its publisher, as the index keeps it and the AppView shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from atdata.nsid import Kind, kind_of
from atdata.syntax import format_datetime

#: What the protocol says in place of a handle that is unknown or not confirmed both ways.
NO_HANDLE = "handle.invalid"


# Not frozen: each search makes a page of them, and that would take three times as long.
@dataclass(slots=True)
class Published:
    """A record, and what is said of it beside: whose it is, what is wrong with it, whether it is proven.

    ``json`` is the record as the database writes it: answers copy it, and only pages parse it. ``verified`` says that
    signature, CID and place in the repository's tree were checked.
    """

    uri: str
    cid: str
    did: str
    handle: str | None
    json: str
    problems: Sequence[str]
    verified: bool
    indexed_at: datetime

    @property
    def collection(self) -> str:
        return self.uri.split("/")[3]

    @property
    def rkey(self) -> str:
        return self.uri.split("/")[4]

    @property
    def kind(self) -> Kind | None:
        """None for a collection that we do not know."""
        return kind_of(self.collection)

    def view(self, **more: Any) -> dict[str, Any]:
        """As `datasetView`, `schemaView` or `lensView`, with *more* members."""
        view = {
            "uri": self.uri,
            "cid": self.cid,
            "publisher": {"did": self.did, "handle": self.handle or NO_HANDLE},
            "record": orjson.Fragment(self.json),
            "indexedAt": format_datetime(self.indexed_at),
            "verified": self.verified,
        }
        if self.problems:
            view["problems"] = self.problems
        view.update(more)
        return view

    def parsed(self) -> Any:
        """The record as Python data; None if it cannot be one. Records are hostile: this is not always a mapping."""
        try:
            return orjson.loads(self.json)
        except orjson.JSONDecodeError:  # nested deeper than a parser likes; Postgres does not mind
            return None
