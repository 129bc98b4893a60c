"""XRPC: from a method's name and a query string to its handler, and from what that returns to JSON.

The lexicons check the parameters; pydantic is not involved, neither coming nor going: this is the hot path.
Specification: https://atproto.com/specs/xrpc
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from atdata.lexicon import load_lexicons
from atdata.nsid import PREFIX
from atdata_appview.errors import InvalidRequest, MethodNotAllowed, MethodNotImplemented, UpgradeRequired
from atdata_appview.models import to_json
from atdata_appview.replies import cacheable
from atdata_appview.routes import datasets, lenses, lookups, records, schemas, status, subscriptions
from atdata_appview.services import Services

# What it answers, as JSON already where that was made elsewhere.
Handler = Callable[[Services, Mapping[str, Any]], Awaitable[Mapping[str, Any] | bytes]]

METHODS: Mapping[str, Handler] = {
    PREFIX + "searchDatasets": datasets.search_datasets,
    PREFIX + "searchSchemas": schemas.search_schemas,
    PREFIX + "similarDatasets": datasets.similar_datasets,
    PREFIX + "getDatasets": datasets.get_datasets,
    PREFIX + "listDatasets": datasets.list_datasets,
    PREFIX + "getSchemas": schemas.get_schemas,
    PREFIX + "listSchemas": schemas.list_schemas,
    PREFIX + "compareSchemas": schemas.compare_schemas,
    PREFIX + "resolveSchema": schemas.resolve_schema,
    PREFIX + "getLenses": lenses.get_lenses,
    PREFIX + "listLenses": lenses.list_lenses,
    PREFIX + "getLensPath": lenses.get_lens_path,
    PREFIX + "getLensGraph": lenses.get_lens_graph,
    PREFIX + "getRecord": records.get_record,
    PREFIX + "resolveDataset": lookups.resolve_dataset,
    PREFIX + "resolveLabel": lookups.resolve_label,
    PREFIX + "resolveBlobs": lookups.resolve_blobs,
    PREFIX + "listPublishers": lookups.list_publishers,
    PREFIX + "getStatus": status.get_status,
}

Subscriber = Callable[[Services, Mapping[str, Any], WebSocket], Awaitable[None]]

SUBSCRIPTIONS: Mapping[str, Subscriber] = {PREFIX + "subscribeChanges": subscriptions.subscribe_changes}

_MAX_FIELDS = 1000


async def call(request: Request) -> Response:
    """Answer one call of any method."""
    nsid = request.path_params["nsid"]
    handler = METHODS.get(nsid)
    if nsid in SUBSCRIPTIONS:
        raise UpgradeRequired(f"{nsid} is a subscription: connect with a WebSocket", {"Upgrade": "websocket"})
    if handler is None:
        raise MethodNotImplemented(f"there is no method {nsid[:100]!r} here; see /docs for those there are")
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(f"{nsid} is a query: ask for it with GET, not {request.method}", {"Allow": "GET, HEAD"})
    params = checked_params(nsid, request.scope["query_string"])
    answer = await handler(request.app.state.services, params)
    body = answer if isinstance(answer, bytes) else to_json(answer)
    return cacheable(request, body, "application/json")


async def subscribe(websocket: WebSocket) -> None:
    """Serve one subscription. What it raises before the WebSocket is there becomes an answer of HTTP."""
    nsid = websocket.path_params["nsid"]
    subscriber = SUBSCRIPTIONS.get(nsid)
    if subscriber is None and nsid in METHODS:
        raise InvalidRequest(f"{nsid} is a query: ask for it with GET, not with a WebSocket")
    if subscriber is None:
        raise MethodNotImplemented(f"there is no method {nsid[:100]!r} here; see /docs for those there are")
    params = checked_params(nsid, websocket.scope["query_string"])
    await subscriber(websocket.app.state.services, params, websocket)


def checked_params(nsid: str, query_string: bytes, *, skip_empty: bool = False) -> dict[str, Any]:
    """The parameters in *query_string*, as the lexicon of *nsid* types them, with its defaults.

    Raises InvalidRequest or LexiconError, both with the parameter's name in front.
    """
    given: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(query_string.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise InvalidRequest(f"there are more than {_MAX_FIELDS} parameters") from None
    for name, value in pairs:
        if "\0" in value:
            # Postgres has no text with NUL in it; neither has anything that we index.
            raise InvalidRequest(f"{name[:100]}: must not contain the character NUL")
        if value or not skip_empty:
            given.setdefault(name, []).append(_bare(nsid, name, value))
    return load_lexicons().validate_params(nsid, given)


def _bare(nsid: str, name: str, value: str) -> str:
    """*value* without the @ that people, and our own pages, put before handles; the protocol's handles have none."""
    query = load_lexicons().query(nsid)
    schema = query.parameters.get(name, {}) if query else {}
    is_account = schema.get("items", schema).get("format") == "at-identifier"
    return value.removeprefix("@") if is_account else value


# Every verb, so that the wrong one, too, is answered by what knows the method.
routes = [
    Route("/xrpc/{nsid:path}", call, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    WebSocketRoute("/xrpc/{nsid:path}", subscribe),
]
