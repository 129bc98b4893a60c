"""Publishing and finding datasets on the AT Protocol network: the public names of `atdata.atmosphere`.

Names are loaded on first use, so that `atdata.atmosphere.uri` can be imported without the AT Protocol SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atdata.atmosphere.uri import AtUri

__all__ = ["AtUri"]

_MODULE_OF = {"AtUri": "uri"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
