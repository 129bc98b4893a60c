"""Frames of an event stream, as bytes: two objects of DAG-CBOR, a header and a body, one after the other. Pure.

Specification: https://atproto.com/specs/event-stream
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cbrrr
import orjson

from atdata.syntax import format_datetime
from atdata_appview.changes import ShownChange

_ERROR: Final = cbrrr.encode_dag_cbor({"op": -1})


def message(type_: str, body: Mapping[str, Any]) -> bytes:
    """A message of *type_*, as the lexicon names it; *body* is data in the protocol's JSON form.

    >>> message("#info", {"name": "OutdatedCursor"}).hex(" ")
    'a2 61 74 65 23 69 6e 66 6f 62 6f 70 01 a1 64 6e 61 6d 65 6e 4f 75 74 64 61 74 65 64 43 75 72 73 6f 72'

    Raises ValueError or TypeError for what the data model does not have, such as a fraction.
    """
    header = cbrrr.encode_dag_cbor({"op": 1, "t": type_})
    return header + cbrrr.encode_dag_cbor(dict(body), atjson_mode=True)


def error(name: str, text: str) -> bytes:
    """An error, after which the server closes the connection.

    >>> error("FutureCursor", "no").hex(" ")
    'a1 62 6f 70 20 a2 65 65 72 72 6f 72 6c 46 75 74 75 72 65 43 75 72 73 6f 72 67 6d 65 73 73 61 67 65 62 6e 6f'
    """
    return _ERROR + cbrrr.encode_dag_cbor({"error": name, "message": text})


def change(shown: ShownChange) -> bytes:
    """A change, as `#record` or `#account` of `subscribeChanges`."""
    body: dict[str, Any] = {"seq": shown.seq, "time": format_datetime(shown.at), "did": shown.did}
    if shown.action == "account":
        is_active = shown.status == "active"
        return message("#account", {**body, "active": is_active, **({} if is_active else {"status": shown.status})})
    body |= {"uri": shown.uri, "collection": shown.collection, "rkey": shown.rkey, "action": shown.action}
    if shown.kind is not None:
        body["kind"] = shown.kind
    if shown.action == "delete":
        return message("#record", body)
    body |= {"cid": shown.cid, "verified": shown.verified}
    try:
        return message("#record", {**body, "record": orjson.loads(shown.json)})
    except (ValueError, TypeError):  # not from a repository: what is, was DAG-CBOR before
        return message("#record", body)
