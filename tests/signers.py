"""Signing keys of accounts, for tests: what they sign is as the protocol has it."""

from __future__ import annotations

import libipld
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


class Signer:
    """An account's key of either curve, which signs as the protocol says or otherwise."""

    def __init__(self, curve: str, secret: int = 0xC0FFEE) -> None:
        self.curve: ec.EllipticCurve = ec.SECP256K1() if curve == "secp256k1" else ec.SECP256R1()
        self.prefix = {"secp256k1": b"\xe7\x01", "p256": b"\x80\x24"}[curve]
        self.order = {
            "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
            "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        }[curve]
        self.private = ec.derive_private_key(secret, self.curve)

    def point(self, form: serialization.PublicFormat = serialization.PublicFormat.CompressedPoint) -> bytes:
        return self.private.public_key().public_bytes(serialization.Encoding.X962, form)

    @property
    def key(self) -> str:
        return libipld.encode_multibase("z", self.prefix + self.point())

    def numbers(self, message: bytes) -> tuple[int, int]:
        """r and the lower s."""
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))
        return r, min(s, self.order - s)

    def sign(self, message: bytes) -> bytes:
        r, s = self.numbers(message)
        return raw(r, s)


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
