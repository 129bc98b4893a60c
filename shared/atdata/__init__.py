"""Typed datasets on the AT Protocol: the client library's public names.

Importing this package loads nothing heavy: NumPy, the AT Protocol SDK and the rest arrive with the module that needs
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atdata import atmosphere, errors, schema
    from atdata.appview import AppView
    from atdata.cid import generate_cid, verify_cid
    from atdata.dataset import Dataset, SampleBatch
    from atdata.errors import AtdataError
    from atdata.lens import Lens, LensNetwork, check_lens_laws, lens
    from atdata.load import DatasetDict, load_dataset
    from atdata.protocols import AbstractDataStore, AbstractIndex, DataSource, IndexEntry, Packable
    from atdata.sample import DictSample, PackableSample, packable
    from atdata.schema import schema_to_type
    from atdata.sources import BlobSource, S3Source, URLSource

__all__ = [
    "AbstractDataStore",
    "AbstractIndex",
    "AppView",
    "AtdataError",
    "BlobSource",
    "DataSource",
    "Dataset",
    "DatasetDict",
    "DictSample",
    "IndexEntry",
    "Lens",
    "LensNetwork",
    "Packable",
    "PackableSample",
    "S3Source",
    "SampleBatch",
    "URLSource",
    "__version__",
    "atmosphere",
    "check_lens_laws",
    "errors",
    "generate_cid",
    "lens",
    "load_dataset",
    "packable",
    "schema",
    "schema_to_type",
    "verify_cid",
]

__version__: str

_MODULES = frozenset({"atmosphere", "errors", "schema", "lens"})
_MODULE_OF = {
    "AppView": "appview",
    **dict.fromkeys(("generate_cid", "verify_cid"), "cid"),
    **dict.fromkeys(("Dataset", "SampleBatch"), "dataset"),
    "AtdataError": "errors",
    **dict.fromkeys(("Lens", "LensNetwork", "check_lens_laws"), "lens"),
    **dict.fromkeys(("DatasetDict", "load_dataset"), "load"),
    **dict.fromkeys(("AbstractDataStore", "AbstractIndex", "DataSource", "IndexEntry", "Packable"), "protocols"),
    **dict.fromkeys(("DictSample", "PackableSample", "packable"), "sample"),
    "schema_to_type": "schema",
    **dict.fromkeys(("BlobSource", "S3Source", "URLSource"), "sources"),
}

if not TYPE_CHECKING:  # type checkers know every name from the imports above

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name == "__version__":
            # Looked up when asked for: importing importlib.metadata costs more than the rest of this package.
            from importlib.metadata import PackageNotFoundError, version

            try:
                found = version("atdata-network")
            except PackageNotFoundError:  # run from a source tree that was never installed
                found = "0+source"
        elif name in _MODULE_OF:
            found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
