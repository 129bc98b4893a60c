"""Typed datasets on the AT Protocol: the client library's public names.

Importing this package loads nothing heavy: NumPy, the AT Protocol SDK and the rest arrive with the module that needs
them.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    # Looked up when asked for: importing importlib.metadata costs more than the rest of this package.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("atdata-network")
        except PackageNotFoundError:  # run from a source tree that was never installed
            found = "0+source"
        globals()["__version__"] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
