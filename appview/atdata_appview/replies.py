"""Answers that may be cached: their ETag, and 304 for whoever has them already."""

from __future__ import annotations

from hashlib import sha256

from starlette.requests import Request
from starlette.responses import Response

# Seconds. What was published a moment ago shall show up in a moment.
_MAX_AGE = 5


def cacheable(request: Request, body: bytes, media_type: str, max_age: int = _MAX_AGE) -> Response:
    """*body* as the answer to *request*, or 304 when its `If-None-Match` names it (RFC 9110, section 13.1.2)."""
    etag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": f"public, max-age={max_age}"}
    asked = request.headers.get("if-none-match")
    if asked is not None and (
        asked.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in asked.split(","))
    ):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)
