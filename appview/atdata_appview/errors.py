"""Which answer an exception becomes: the one table from exceptions to statuses and error names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import psycopg
from starlette.exceptions import HTTPException

from atdata.errors import ConfigError, LexiconError, NetworkError
from atdata_backend.search.base import BadCursor

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is answered with an error. The names and statuses are those of https://atproto.com/specs/xrpc."""

    status = 500
    name = "InternalServerError"

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})


class InvalidRequest(RequestError):
    """A parameter is missing or wrong; the message begins with its name."""

    status = 400
    name = "InvalidRequest"


class NotFound(RequestError):
    """A page that does not exist."""

    status = 404
    name = "NotFound"


class RecordNotFound(NotFound):
    """We hold no such record, or do not show it."""

    name = "RecordNotFound"


class DatasetNotFound(NotFound):
    """No dataset here is what a name or a URI stands for; the message says what there is instead."""

    name = "DatasetNotFound"


class SchemaNotFound(NotFound):
    """There is no such schema here; the message says what there is instead."""

    name = "SchemaNotFound"


class LabelNotFound(NotFound):
    """There is no such label here; the message says which there are."""

    name = "LabelNotFound"


class ShardsNotFound(NotFound):
    """Where the shards of a dataset are cannot be said; the message says why."""

    name = "ShardsNotFound"


class AuthenticationRequired(RequestError):
    """Who sends a token is known by it, or gets no answer; ``name`` says what is wrong with it."""

    status = 401
    name = "AuthenticationRequired"

    def __init__(self, message: str, name: str = "AuthenticationRequired") -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})
        self.name = name


class MethodNotAllowed(RequestError):
    """The method exists and is asked for with another verb."""

    status = 405
    name = "InvalidRequest"


class TooLarge(RequestError):
    """A body, which no method here takes."""

    status = 413
    name = "PayloadTooLarge"


class UriTooLong(RequestError):
    """More parameters than any honest question has."""

    status = 414
    name = "InvalidRequest"


class UpgradeRequired(RequestError):
    """The method is a subscription, which wants a WebSocket."""

    status = 426
    name = "InvalidRequest"


class RateLimitExceeded(RequestError):
    """This client asked too often."""

    status = 429
    name = "RateLimitExceeded"


class MethodNotImplemented(RequestError):
    """There is no such method."""

    status = 501
    name = "MethodNotImplemented"


class Unavailable(RequestError):
    """Something that we need does not answer; it passes."""

    status = 503
    name = "ServiceUnavailable"


def request_error(error: Exception) -> RequestError:
    """The answer to *error*. What nobody foresaw is logged with its traceback, and told without any detail."""
    match error:
        case RequestError():
            return error
        case LexiconError():
            return InvalidRequest(str(error))
        case BadCursor():
            return InvalidRequest("cursor: is not one that this query gave out; start again without it")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            log.warning("the database does not answer: %s", error)
            return Unavailable("the database does not answer; try again shortly", {"Retry-After": "2"})
        case NetworkError() | ConfigError():
            log.warning("the search engine does not answer: %s", error)
            return Unavailable("the search engine does not answer; try again shortly", {"Retry-After": "2"})
        case HTTPException(status_code=404):
            return NotFound("there is nothing at this address")
        case HTTPException(status_code=405):
            return MethodNotAllowed("this address answers GET and HEAD", {"Allow": "GET, HEAD"})
        case _:
            log.error("a request failed", exc_info=error)
            return RequestError("the service failed to answer; this has been logged")
