"""Methods about datasets: search, get, list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atdata_appview.errors import InvalidRequest
from atdata_appview.routes.parameters import filter_uri, filter_uris, publisher, publishers
from atdata_appview.routes.records import get_of_kind
from atdata_appview.search import query_of
from atdata_appview.services import Services
from atdata_backend.search.base import Query


async def search_datasets(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The datasets that match, with counts by facet."""
    return (await services.search.datasets(await search_query(services, params))).answer()


async def search_query(services: Services, params: Mapping[str, Any]) -> Query:
    """The engine's query for *params*, which were checked against `searchDatasets`."""
    named = dict(params)
    if "publishers" in params:
        named["publishers"] = await publishers(services.store, "publishers", params["publishers"])
    if "schemas" in params:
        named["schemas"] = await filter_uris(services.store, "schemas", params["schemas"])
    try:
        return query_of(named)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


async def get_datasets(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The datasets with these URIs."""
    return await get_of_kind(services, params["uris"], "dataset", "datasets")


async def list_datasets(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Datasets, the latest first."""
    listing = await services.store.datasets(
        publisher=await publisher(services.store, params),
        schema=await filter_uri(services.store, "schema", params),
        tag=params.get("tag"),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    return listing.answer("datasets")
