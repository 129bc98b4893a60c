"""Publishing and finding datasets on the AT Protocol network: the public names of `atdata.atmosphere`.

Names are loaded on first use, so that `atdata.atmosphere.uri` can be imported without the AT Protocol SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atdata.atmosphere.blobs import PDSBlobStore
    from atdata.atmosphere.client import AtmosphereClient, StoredRecord
    from atdata.atmosphere.index import AtmosphereIndex, DatasetEntry
    from atdata.atmosphere.load import DatasetLoader, LabelLoader, LensLoader, SchemaLoader
    from atdata.atmosphere.publish import DatasetPublisher, LabelPublisher, LensPublisher, SchemaPublisher
    from atdata.atmosphere.uri import AtUri, BlobUri

__all__ = [
    "AtUri",
    "AtmosphereClient",
    "AtmosphereIndex",
    "BlobUri",
    "DatasetEntry",
    "DatasetLoader",
    "DatasetPublisher",
    "LabelLoader",
    "LabelPublisher",
    "LensLoader",
    "LensPublisher",
    "PDSBlobStore",
    "SchemaLoader",
    "SchemaPublisher",
    "StoredRecord",
]

_MODULE_OF = {
    "PDSBlobStore": "blobs",
    **dict.fromkeys(("AtmosphereClient", "StoredRecord"), "client"),
    **dict.fromkeys(("AtmosphereIndex", "DatasetEntry"), "index"),
    **dict.fromkeys(("DatasetLoader", "LabelLoader", "LensLoader", "SchemaLoader"), "load"),
    **dict.fromkeys(("DatasetPublisher", "LabelPublisher", "LensPublisher", "SchemaPublisher"), "publish"),
    **dict.fromkeys(("AtUri", "BlobUri"), "uri"),
}

if not TYPE_CHECKING:  # type checkers know every name from the imports above

    def __getattr__(name):
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
