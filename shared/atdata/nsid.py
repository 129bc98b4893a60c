"""The names of the collections and types in the dataset namespace, and what kind of record each holds.

The specification of an NSID is https://atproto.com/specs/nsid.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = [
    "DATASET",
    "FIELD_TYPE",
    "JSON_SCHEMA_FORMAT",
    "KINDS",
    "LABEL",
    "LENS",
    "NAMESPACE",
    "PREFIX",
    "SAMPLE_SCHEMA",
    "SCHEMA",
    "STORAGE_BLOBS",
    "STORAGE_EXTERNAL",
    "STORAGE_HTTP",
    "STORAGE_S3",
    "SUCCESSOR",
    "SUCCESSOR_DATASET",
    "SUCCESSOR_LABEL",
    "SUCCESSOR_LENS",
    "SUCCESSOR_PREFIX",
    "SUCCESSOR_SCHEMA",
    "Kind",
    "kind_of",
]

Kind = Literal["schema", "dataset", "lens", "label"]

NAMESPACE: Final = "ac.foundation.dataset"
# With the dot: `ac.foundation.datasets.x` is somebody else's.
PREFIX: Final = "ac.foundation.dataset."

SAMPLE_SCHEMA: Final = "ac.foundation.dataset.sampleSchema"
SCHEMA: Final = "ac.foundation.dataset.schema"
DATASET: Final = "ac.foundation.dataset.record"
LENS: Final = "ac.foundation.dataset.lens"
LABEL: Final = "ac.foundation.dataset.label"

# What some publishers write since 2026; read only.
SUCCESSOR: Final = "science.alt.dataset"
SUCCESSOR_PREFIX: Final = "science.alt.dataset."

SUCCESSOR_SCHEMA: Final = "science.alt.dataset.schema"
SUCCESSOR_DATASET: Final = "science.alt.dataset.entry"
SUCCESSOR_LENS: Final = "science.alt.dataset.lens"
SUCCESSOR_LABEL: Final = "science.alt.dataset.label"

STORAGE_EXTERNAL: Final = "ac.foundation.dataset.storageExternal"
STORAGE_BLOBS: Final = "ac.foundation.dataset.storageBlobs"
STORAGE_HTTP: Final = "ac.foundation.dataset.storageHttp"
STORAGE_S3: Final = "ac.foundation.dataset.storageS3"

FIELD_TYPE: Final = "ac.foundation.dataset.schemaType"
JSON_SCHEMA_FORMAT: Final = "ac.foundation.dataset.schema#jsonSchemaFormat"

KINDS: Final[dict[str, Kind]] = {
    SAMPLE_SCHEMA: "schema",
    SCHEMA: "schema",
    DATASET: "dataset",
    LENS: "lens",
    LABEL: "label",
    SUCCESSOR_SCHEMA: "schema",
    SUCCESSOR_DATASET: "dataset",
    SUCCESSOR_LENS: "lens",
    SUCCESSOR_LABEL: "label",
}


def kind_of(collection: str) -> Kind | None:
    """The kind of record that *collection* holds, or None if it is not one that we know.

    >>> kind_of("ac.foundation.dataset.record")
    'dataset'
    >>> kind_of("ac.foundation.dataset.somethingNew") is None
    True
    """
    return KINDS.get(collection)
