"""The AppView as one ASGI application: what is opened when it starts, and how its parts fit together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from atdata import __version__
from atdata_appview import pages
from atdata_appview.auth import Authenticator
from atdata_appview.changes import Follower
from atdata_appview.edge import Edge
from atdata_appview.event_stream import EventStream
from atdata_appview.graph import GraphKeeper
from atdata_appview.limits import RateLimiter
from atdata_appview.metrics import RequestMetrics
from atdata_appview.routes import service, xrpc
from atdata_appview.search import Search
from atdata_appview.services import CachedStatus, Services
from atdata_appview.settings import AppViewSettings
from atdata_appview.store import Store
from atdata_backend.http import guarded_client
from atdata_backend.identity import Resolver
from atdata_backend.postgres import open_pool


def create_app(settings: AppViewSettings) -> FastAPI:
    """The application. Database and engine are opened when it starts, and closed when it stops.

    Starting raises ConfigError when one of them cannot be opened.
    """
    metrics = RequestMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.open_engine().close()  # nothing but whether it can be
        pool = await open_pool(settings.database_url)
        store = Store(pool)
        search = Search(settings)
        client = guarded_client(allow_private=settings.allow_private_hosts)
        resolver = Resolver(client, plc_url=settings.plc_url, allow_private=settings.allow_private_hosts)
        authenticator = Authenticator(settings.service_did, store, resolver)
        changes = Follower(store)
        try:
            stream = EventStream(store, await store.latest_change())
            changes.listen(stream.take, after=stream.end)
            status = CachedStatus(store, search)
            keeper = GraphKeeper(store, changes)
            app.state.services = Services(
                settings, store, search, status, metrics, changes, stream, authenticator, keeper
            )
            async with changes.running(), keeper.running():
                yield
        finally:
            await client.aclose()
            await pool.close()
            await search.close()

    app = FastAPI(
        title="atdata AppView",
        version=__version__,
        lifespan=lifespan,
        routes=[
            *service.routes,
            *xrpc.routes,
            *pages.routes,
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        redirect_slashes=False,
        # Ours are made of the lexicons: see docs.py.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # What the router does not find goes the way of every other error.
        exception_handlers={HTTPException: _raise},
    )
    limiter = RateLimiter(settings.rate_limit) if settings.rate_limit else None
    app.add_middleware(Edge, metrics=metrics, limiter=limiter, page=pages.error)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    return app


async def _raise(request: Request, error: Exception) -> Response:
    raise error
