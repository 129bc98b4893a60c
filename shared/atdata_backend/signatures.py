"""Check signatures with the two curves of the protocol. Pure.

Specification: https://atproto.com/specs/cryptography
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import coincurve
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from atdata.errors import AtdataError

__all__ = ["BadSignature", "check_bytes", "jwt_algorithm"]


class BadSignature(AtdataError):
    """A signature does not prove what it should. ``reason`` is a slug to count by, `str()` says what is wrong.

    ===============  ==========================================================================================
    bad-key          the key is no compressed secp256k1 or P-256 point in the Multikey encoding
    bad-signature    the signature is not this key's over these bytes, or not in the one allowed form
    ===============  ==========================================================================================
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


_SECP256K1_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551

# Multicodec prefixes of public keys: https://atproto.com/specs/cryptography#public-key-encoding
_SECP256K1_PREFIX: Final = b"\xe7\x01"
_P256_PREFIX: Final = b"\x80\x24"
# Both kinds have 49 characters, and decoding base58 takes the square of the length.
_MAX_MULTIKEY: Final = 128


def check_bytes(message: bytes, signature: bytes, key: str) -> None:
    """Check that *signature*, 64 bytes of r and s, is over the SHA-256 of *message* by *key*, a Multikey.

    >>> check_bytes(b"words", bytes(64), "zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc")
    Traceback (most recent call last):
    atdata_backend.signatures.BadSignature: r and s of the signature are out of range, or s is in its upper half

    Raises BadSignature: bad-key or bad-signature. Of the two valid values of s only the lower is allowed: otherwise
    anyone could make a second signature of each.
    Specification: https://atproto.com/specs/cryptography#ecdsa-signature-malleability
    """
    public = _public_key(key)
    if len(signature) != 64:
        raise BadSignature("bad-signature", f"the signature has {len(signature)} bytes, not 64")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    order = _SECP256K1_ORDER if isinstance(public, coincurve.PublicKey) else _P256_ORDER
    if not 0 < r < order or not 0 < s <= order // 2:
        raise BadSignature("bad-signature", "r and s of the signature are out of range, or s is in its upper half")
    der = encode_dss_signature(r, s)
    if isinstance(public, coincurve.PublicKey):
        is_valid = public.verify(der, message)
    else:
        try:
            public.verify(der, message, ec.ECDSA(SHA256()))
            is_valid = True
        except InvalidSignature:
            is_valid = False
    if not is_valid:
        raise BadSignature("bad-signature", f"the signature is not by {key!r}")


def jwt_algorithm(key: str) -> str:
    """The `alg` of JWTs that are signed with *key*, a Multikey: https://www.rfc-editor.org/rfc/rfc8812#section-3.2

    >>> jwt_algorithm("zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc")
    'ES256K'

    Raises BadSignature: bad-key.
    """
    return "ES256K" if isinstance(_public_key(key), coincurve.PublicKey) else "ES256"


# Decompressing a point takes as long as a quarter of a verification. A few MB when full.
@lru_cache(maxsize=16_384)
def _public_key(key: str) -> coincurve.PublicKey | ec.EllipticCurvePublicKey:
    if not key.startswith("z") or len(key) > _MAX_MULTIKEY:
        raise BadSignature("bad-key", f"{key[:80]!r} is not a Multikey in base58")
    try:
        _, encoded = libipld.decode_multibase(key)
        prefix, point = encoded[:2], encoded[2:]
        # Longer ones are not compressed: the libraries read them, the protocol does not.
        if len(point) == 33:
            if prefix == _SECP256K1_PREFIX:
                return coincurve.PublicKey(point)
            if prefix == _P256_PREFIX:
                return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as e:
        raise BadSignature("bad-key", f"{key!r} is no public key: {e}") from None
    raise BadSignature("bad-key", f"{key!r} is no compressed point on secp256k1 or P-256")
