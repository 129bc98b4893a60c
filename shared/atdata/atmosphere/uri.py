"""AT URIs of records and blobs, parsed and written. No I/O.

The specification is https://atproto.com/specs/at-uri-scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

from atdata import syntax
from atdata.errors import UriError

__all__ = ["AtUri", "BlobUri"]

_SHAPE = "at://authority/collection/rkey"
_BLOB_SHAPE = "at://did/blob/cid"


@dataclass(frozen=True, slots=True, order=True)
class AtUri:
    """The address of one record: whose repository, which collection, which record key.

    >>> uri = AtUri.parse("at://did:plc:abc123/ac.foundation.dataset.record/3jzfcijpj2z2a")
    >>> uri.authority, uri.collection, uri.rkey
    ('did:plc:abc123', 'ac.foundation.dataset.record', '3jzfcijpj2z2a')
    >>> str(uri)
    'at://did:plc:abc123/ac.foundation.dataset.record/3jzfcijpj2z2a'

    The authority is a DID or a handle. Building one directly checks nothing: use `parse` for what comes from outside.
    """

    authority: str
    collection: str
    rkey: str

    @classmethod
    def parse(cls, s: str) -> AtUri:
        """The record that *s* names.

        Raises UriError, a ValueError, that says what is missing or wrong. Specification: see the module.
        """
        authority, path = _split(s, _SHAPE)
        if not syntax.is_at_identifier(authority):
            raise _error(s, f"has authority {_cut(authority)!r}, which is neither a DID nor a handle", _SHAPE)
        if not path or not path[0]:
            raise _error(s, "has no collection", _SHAPE)
        if path[0] == "blob":
            raise UriError(f"AT URI {_cut(s)!r} names a blob, not a record; read it with BlobUri.parse")
        if len(path) < 2 or not path[1]:
            raise _error(s, "has no record key", _SHAPE)
        if len(path) > 2:
            raise _error(s, "goes on after the record key", _SHAPE)
        collection, rkey = path
        if not syntax.is_nsid(collection):
            raise _error(s, f"has collection {_cut(collection)!r}, which is not an NSID", _SHAPE)
        if not syntax.is_record_key(rkey):
            raise _error(s, f"has an invalid record key {_cut(rkey)!r}", _SHAPE)
        return cls(authority, collection, rkey)

    def __str__(self) -> str:
        return f"at://{self.authority}/{self.collection}/{self.rkey}"


@dataclass(frozen=True, slots=True, order=True)
class BlobUri:
    """The name of one blob in an account's repository, as datasets in blob storage list their shards.

    >>> BlobUri.parse("at://did:plc:abc123/blob/bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity").did
    'did:plc:abc123'
    """

    did: str
    cid: str

    @classmethod
    def parse(cls, s: str) -> BlobUri:
        """The blob that *s* names. Raises UriError, a ValueError, that says what is missing or wrong."""
        did, path = _split(s, _BLOB_SHAPE)
        if not syntax.is_did(did):
            raise _error(s, f"has authority {_cut(did)!r}, which is not a DID", _BLOB_SHAPE)
        if not path or path[0] != "blob":
            raise _error(s, "does not name a blob", _BLOB_SHAPE)
        if len(path) < 2 or not path[1]:
            raise _error(s, "has no CID", _BLOB_SHAPE)
        if len(path) > 2:
            raise _error(s, "goes on after the CID", _BLOB_SHAPE)
        if not syntax.is_cid(path[1]):
            raise _error(s, f"has an invalid CID {_cut(path[1])!r}", _BLOB_SHAPE)
        return cls(did, path[1])

    def __str__(self) -> str:
        return f"at://{self.did}/blob/{self.cid}"


def _split(s: str, shape: str) -> tuple[str, list[str]]:
    """Authority and path segments; one segment more than a URI may have shows that there was too much."""
    if not isinstance(s, str):
        raise UriError(f"expected {shape} as a string, not {type(s).__name__}")
    if not s.startswith("at://"):
        raise _error(s, "does not start with at://", shape)
    if len(s) > 8192:
        raise _error(s, f"is {len(s)} characters long, the limit is 8192", shape)
    authority, *path = s[5:].split("/", 3)
    if not authority:
        raise _error(s, "has no authority", shape)
    return authority, path


def _error(s: str, what: str, shape: str) -> UriError:
    return UriError(f"AT URI {_cut(s)!r} {what}; expected {shape}")


def _cut(s: str) -> str:
    return s if len(s) <= 120 else s[:119] + "…"
