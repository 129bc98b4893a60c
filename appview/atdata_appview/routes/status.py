"""The method about what we hold and how far behind we are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atdata_appview.services import Services


async def get_status(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, cursors, lag and backlog."""
    return (await services.status.get()).answer()
