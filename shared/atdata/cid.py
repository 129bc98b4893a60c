"""Make and check CIDs, the names of content by its hash. No I/O.

Only CIDv1 with SHA-256, as the AT Protocol uses it: https://atproto.com/specs/data-model#link-and-cid-formats
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import cbrrr

__all__ = ["generate_cid", "raw_cid", "sha256_in", "verify_cid"]

_MAX_NESTING = 128


def generate_cid(obj: Any) -> str:
    """The CID of *obj*, a record or any other JSON-like data, encoded as DAG-CBOR.

    >>> generate_cid({"hello": "world"})
    'bafyreidykglsfhoixmivffc5uwhcgshx4j465xwqntbmu43nb2dzqwfvae'

    Links and bytes may be in the protocol's JSON form (`{"$link": …}`, `{"$bytes": …}`); bytes may be Python's, too.
    Raises ValueError or TypeError for what DAG-CBOR cannot hold: NaN, integers beyond 64 bits, keys that are no text.
    Specification: https://ipld.io/specs/codecs/dag-cbor/spec/
    """
    return cbrrr.CID.cidv1_dag_cbor_sha256_32_from(cbrrr.encode_dag_cbor(_plain(obj, 0))).encode()


def verify_cid(cid: str, obj: Any) -> bool:
    """Whether *cid* is the CID of *obj*; see `generate_cid`.

    >>> verify_cid(generate_cid([1, 2]), [1, 2]), verify_cid(generate_cid([1, 2]), [2, 1])
    (True, False)
    """
    return generate_cid(obj) == cid


def raw_cid(digest: bytes) -> str:
    """The CID of the bytes, a blob's, whose SHA-256 is *digest*.

    >>> raw_cid(sha256(b"hello world").digest())
    'bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e'
    """
    assert len(digest) == sha256().digest_size
    return cbrrr.CID(b"\x01\x55\x12\x20" + digest).encode()


def sha256_in(cid: str) -> bytes:
    """The SHA-256 that *cid* holds. Raises ValueError when it is no CIDv1 of raw bytes or DAG-CBOR with one."""
    try:
        parsed = cbrrr.CID.decode(cid)
    except (ValueError, binascii.Error) as e:
        raise ValueError(f"{cid[:100]!r} is not a CID: {e}") from None
    if not (parsed.is_cidv1_raw_sha256_32() or parsed.is_cidv1_dag_cbor_sha256_32()):
        raise ValueError(f"{cid[:100]} is not a CIDv1 with a SHA-256 of raw bytes")
    return bytes(parsed)[4:]


def _plain(value: Any, depth: int) -> Any:
    if depth > _MAX_NESTING:
        raise ValueError(f"nested deeper than {_MAX_NESTING} levels")
    if isinstance(value, Mapping):
        if len(value) == 1:
            ((key, inner),) = value.items()
            if key == "$link" and isinstance(inner, str):
                return cbrrr.CID.decode(inner)
            if key == "$bytes" and isinstance(inner, str):
                text = inner.rstrip("=")
                return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1) for one in value]
    return value
