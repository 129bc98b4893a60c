"""What the service says of itself: health, identity, numbers, and the description of its methods."""

from __future__ import annotations

import time

import psycopg
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from atdata import __version__
from atdata.errors import ConfigError, NetworkError
from atdata_appview import docs
from atdata_appview.errors import NotFound
from atdata_appview.models import Status, to_json
from atdata_appview.replies import cacheable
from atdata_appview.services import Services

# The documents change with a release.
_HOUR = 3600


async def report_health(request: Request) -> Response:
    """200 when questions can be answered, 503 when not. An indexer that stands still is said, and no reason for 503."""
    services: Services = request.app.state.services
    try:
        status = await services.status.get()
        await services.store.is_ready()
    except (psycopg.Error, NetworkError, ConfigError) as error:
        missing = "database" if isinstance(error, psycopg.Error) else "search engine"
        body = {"version": __version__, "error": "ServiceUnavailable", "message": f"the {missing} does not answer"}
        return Response(to_json(body), 503, {"Cache-Control": "no-store"}, "application/json")
    seen = status.indexer_seen_at
    health = {
        "version": __version__,
        "lag": status.lag,
        "backlog": status.backlog,
        "indexerSeen": None if seen is None else round(max(0.0, time.time() - seen.timestamp()), 1),
        "lensGraph": "ready" if services.graph_keeper.is_ready else "reading",
    }
    return Response(to_json(health), 200, {"Cache-Control": "no-store"}, "application/json")


async def did_document(request: Request) -> Response:
    """The DID document by which others find this service: https://atproto.com/specs/did#did-documents."""
    settings = request.app.state.services.settings
    if not settings.service_did.startswith("did:web:"):
        raise NotFound(f"this service is {settings.service_did}, whose document is elsewhere")
    document = {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": settings.service_did,
        "service": [{"id": "#atdata_appview", "type": "AtdataAppView", "serviceEndpoint": settings.url}],
    }
    return cacheable(request, to_json(document), "application/json", _HOUR)


async def metrics(request: Request) -> Response:
    """Everything that is counted, for Prometheus. Without the database, only what concerns requests."""
    services: Services = request.app.state.services
    gauges: dict[str, tuple[str, float]] = {}
    gauges["atdata_subscribers"] = ("Subscriptions to the changes.", services.stream.subscribers)
    try:
        status = await services.status.get()
    except (psycopg.Error, NetworkError, ConfigError):
        gauges["atdata_appview_ready"] = ("Whether database and search engine answer.", 0)
    else:
        gauges["atdata_appview_ready"] = ("Whether database and search engine answer.", 1)
        gauges["atdata_datasets"] = ("Datasets of active accounts.", status.records["dataset"])
        gauges["atdata_search_documents"] = ("Datasets in the search engine.", status.search_documents)
        gauges["atdata_search_backlog"] = ("Changes that the search engine has yet to take over.", status.backlog)
        if services.graph_keeper.is_ready:
            gauges["atdata_lens_graph_schemas"] = ("Schemas in the lens graph.", services.graph.schemas)
            gauges["atdata_lens_graph_nodes"] = ("Structures in it, and schemas without one.", services.graph.nodes)
            gauges["atdata_lens_graph_lenses"] = ("Lenses in the lens graph.", services.graph.lenses)
        gauges |= _of_the_indexer(status)
    return PlainTextResponse(
        services.metrics.render(gauges), media_type="text/plain; version=0.0.4", headers={"Cache-Control": "no-store"}
    )


def _of_the_indexer(status: Status) -> dict[str, tuple[str, float]]:
    repositories, sweep = status.repositories, status.sweep
    gauges: dict[str, tuple[str, float]] = {
        "atdata_repositories_active": ("Repositories that are shown.", repositories["active"]),
        "atdata_repositories_hidden": ("Repositories of accounts that are not active.", repositories["hidden"]),
        "atdata_repositories_desynchronized": ("Repositories to be read anew.", repositories["desynchronized"]),
        "atdata_quarantined": ("Times that something could not be understood.", sum(status.quarantine.values())),
    }
    if status.indexer is not None and status.indexer_seen_at is not None:
        connected = int(bool(status.indexer.get("connected")))
        seen = max(0.0, time.time() - status.indexer_seen_at.timestamp())
        gauges["atdata_indexer_connected"] = ("Whether the indexer, when last heard of, read its relay.", connected)
        gauges["atdata_indexer_seen_seconds"] = ("Since the indexer last reported.", round(seen, 1))
    if status.lag is not None:
        gauges["atdata_indexer_lag_seconds"] = ("How far the indexer is behind the network.", status.lag)
    if sweep is not None and sweep.finished_at is not None:
        finished = sweep.finished_at.timestamp()
        gauges["atdata_sweep_finished_timestamp_seconds"] = ("When all was last compared with its hosts.", finished)
        gauges["atdata_sweep_differing"] = ("Repositories that differed then.", sweep.differing)
        gauges["atdata_sweep_unreachable"] = ("Repositories that could not be compared then.", sweep.unreachable)
    return gauges


async def openapi(request: Request) -> Response:
    """The methods as OpenAPI, made from their lexicons."""
    document = docs.openapi(request.app.state.services.settings.url)
    return cacheable(request, to_json(document), "application/json", _HOUR)


routes = [
    Route("/xrpc/_health", report_health),
    Route("/.well-known/did.json", did_document),
    Route("/metrics", metrics),
    Route("/openapi.json", openapi),
]
