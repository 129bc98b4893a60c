"""What surrounds every request: limits, headers, measuring, and exceptions turned into answers. Plain ASGI."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atdata_appview.auth import Authenticator
from atdata_appview.errors import RateLimitExceeded, RequestError, TooLarge, UriTooLong, request_error
from atdata_appview.limits import RateLimiter
from atdata_appview.metrics import RequestMetrics
from atdata_appview.models import to_json
from atdata_appview.routes.xrpc import METHODS, SUBSCRIPTIONS

ErrorPage = Callable[[Request, RequestError], Awaitable[Response]]

# A hundred URIs, percent-encoded, take a third of that.
_MAX_QUERY = 32 * 1024
# Nothing here reads a body. A small one does no harm.
_MAX_BODY = 64 * 1024

_HEADERS = [
    # Everything here is public and read-only, so any page may ask.
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"*"),
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
                                 b"base-uri 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    # The wildcard does not cover Authorization: https://fetch.spec.whatwg.org/#http-access-control-allow-headers
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Max-Age": "86400",
}

# A host of accounts may ask as often as so many clients.
_ACCOUNTS_OF_HOST = 10

_UNLIMITED = ("/xrpc/_health", "/metrics", "/static/")


class Edge:
    """The middleware, around everything but the routes' own code."""

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics, limiter: RateLimiter | None, page: ErrorPage) -> None:
        self.app = app
        self._metrics = metrics
        self._limiter = limiter
        self._hosts = RateLimiter(_ACCOUNTS_OF_HOST * limiter.per_minute) if limiter else None
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._subscription(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 0
        headers = list(_HEADERS)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self._admit(scope, headers)
            _refuse_oversize(scope)
            if _is_preflight(scope):
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except Exception as error:
            if status:
                raise  # too late for an answer: the server closes the connection
            response = await self.answer(scope, request_error(error))
            await response(scope, receive, send_with_headers)
        finally:
            self._metrics.observe(_method_of(scope["path"]), status or 500, perf_counter() - started)

    async def _subscription(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket takes a token when it is opened; until then, errors are answered as those of a request are."""
        is_open = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_open
            is_open = True
            await send(message)

        try:
            await self._admit(scope, [])
            _refuse_oversize(scope)
            await self.app(scope, receive, send_and_note)
        except OSError:
            pass  # the client has gone
        except Exception as error:
            if is_open:
                raise
            response = await self.answer(scope, request_error(error))
            await response(scope, receive, send)

    async def _admit(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        """Let who asks in, and add to *headers* how often they still may. Raises RequestError.

        An account has its own limit. Its PDS, which asks for thousands, pays in full for tokens that are not valid, and
        for others a tenth: anybody can make accounts.
        """
        limiter = None if scope["path"].startswith(_UNLIMITED) else self._limiter
        address = scope["client"][0] if scope.get("client") else ""
        others = len(headers)
        if limiter:
            headers += _rate_headers(limiter, address)
        issuer = await _issuer(scope)
        if limiter and self._hosts and issuer:
            limiter.give_back(address)
            _rate_headers(self._hosts, address)
            del headers[others:]
            headers += _rate_headers(limiter, issuer)

    async def answer(self, scope: Scope, error: RequestError) -> Response:
        """*error* in the form that the address asks for: XRPC's, or a page."""
        if scope["type"] == "websocket" or scope["path"].startswith("/xrpc/"):
            body = to_json({"error": error.name, "message": error.message})
            response = Response(body, error.status, media_type="application/json")
        else:
            response = await self._page(Request(scope), error)
        response.headers.update({"Cache-Control": "no-store", **error.headers})
        return response


async def _issuer(scope: Scope) -> str | None:
    """The account for which its PDS calls a method, None if nobody says so. Raises AuthenticationRequired."""
    method = scope["path"].removeprefix("/xrpc/")
    if method not in METHODS and method not in SUBSCRIPTIONS:
        return None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            authenticator: Authenticator = scope["app"].state.services.authenticator
            issuer: str = await authenticator.issuer(value[7:].strip().decode("latin-1"), method)
            return issuer
    return None


def _rate_headers(limiter: RateLimiter, client: str) -> list[tuple[bytes, bytes]]:
    """Take a token of *client*; the headers are the reference implementation's. Raises RateLimitExceeded."""
    allowance = limiter.take(client)
    described = {
        "RateLimit-Limit": str(limiter.per_minute),
        "RateLimit-Remaining": str(allowance.remaining),
        "RateLimit-Reset": str(math.ceil(allowance.reset)),
        "RateLimit-Policy": f"{limiter.per_minute};w=60",
    }
    if allowance.retry_after is not None:
        raise RateLimitExceeded(
            f"too many requests; try again in {allowance.retry_after} s",
            {**described, "Retry-After": str(allowance.retry_after)},
        )
    return [(name.lower().encode(), value.encode()) for name, value in described.items()]


def _refuse_oversize(scope: Scope) -> None:
    if len(scope["query_string"]) > _MAX_QUERY:
        raise UriTooLong(f"the query string is longer than {_MAX_QUERY} bytes; ask for less at once")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > _MAX_BODY:
            raise TooLarge(f"a request here has no body, least of all one of more than {_MAX_BODY} bytes")


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def _method_of(path: str) -> str:
    """The name under which a request is counted. Paths are anybody's to choose, so unknown ones share one name."""
    first, _, rest = path.removeprefix("/").partition("/")
    if first == "xrpc":
        return rest if rest in METHODS or rest in SUBSCRIPTIONS or rest == "_health" else "unknown method"
    return f"/{first}" if first in ("", "dataset", "schema", "docs", "static", "metrics") else "other"
