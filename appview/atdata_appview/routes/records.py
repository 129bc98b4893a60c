"""The method about records of any kind, and what the methods that get records of one kind share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from atdata.nsid import Kind
from atdata_appview.errors import InvalidRequest, RecordNotFound
from atdata_appview.models import Record
from atdata_appview.routes.parameters import record_uris
from atdata_appview.services import Services
from atdata_appview.store import ANSWER_BYTES, Store


async def get_record(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The record at a URI, whatever its collection and however odd."""
    uri = (await record_uris(services.store, "uri", [params["uri"]]))[0]
    record = await services.store.record(uri) if uri else None
    if record is None:
        raise RecordNotFound(f"there is no record {params['uri'][:300]} here")
    return record.record_view()


async def _plain_views(store: Store, rows: Sequence[Record]) -> list[dict[str, Any]]:
    return [row.view() for row in rows]


async def get_of_kind(
    services: Services,
    asked: Sequence[str],
    kind: Kind,
    key: str,
    views: Callable[[Store, Sequence[Record]], Awaitable[Sequence[Mapping[str, Any]]]] = _plain_views,
) -> dict[str, Any]:
    """The records of *kind* at the URIs *asked* for, in that order, and the URIs at which there is none.

    Raises InvalidRequest when the records are too large for one answer: here is no cursor to end it early with.
    """
    uris = dict(zip(asked, await record_uris(services.store, "uris", asked), strict=True))
    records = await services.store.records([uri for uri in uris.values() if uri], kind)
    # Twice the same record, by DID and by handle, is one.
    found = dict.fromkeys(uri for uri in uris.values() if uri in records)
    fitting = sum(bool(record.json) for record in records.values())
    if fitting < len(records):
        raise InvalidRequest(
            f"uris: these records are more than {ANSWER_BYTES // 1_000_000} MB together; ask for {fitting} at a time"
        )
    return {
        key: await views(services.store, [records[uri] for uri in found if uri]),
        "notFound": [given for given, uri in uris.items() if uri not in records],
    }
