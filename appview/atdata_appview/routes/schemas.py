"""Methods about sample schemas: get, list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atdata_appview.routes.parameters import publisher
from atdata_appview.routes.records import get_of_kind
from atdata_appview.services import Services


async def get_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas with these URIs."""
    return await get_of_kind(services, params["uris"], "schema", "schemas")


async def list_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Schemas, the latest first."""
    listing = await services.store.schemas(
        publisher=await publisher(services.store, params),
        name=params.get("name"),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    return listing.answer("schemas")
