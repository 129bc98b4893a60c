"""Methods about lenses: get, list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atdata_appview.routes.parameters import filter_uri, publisher
from atdata_appview.routes.records import get_of_kind
from atdata_appview.services import Services


async def get_lenses(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The lenses with these URIs."""
    return await get_of_kind(services, params["uris"], "lens", "lenses")


async def list_lenses(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Lenses, the latest first."""
    listing = await services.store.lenses(
        publisher=await publisher(services.store, params),
        source=await filter_uri(services.store, "source", params),
        target=await filter_uri(services.store, "target", params),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    return listing.answer("lenses")
