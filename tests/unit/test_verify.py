"""What proves a commit and what does not: keys and signatures, nodes of the tree, operations undone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import count, islice
from typing import Any

import cbrrr
import coincurve
import libipld
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from repositories import cid_of, encode, tree
from signers import Signer, raw

from atdata_backend import signatures
from atdata_backend.signatures import BadSignature, check_bytes
from atdata_indexer import verify
from atdata_indexer.car import walk_mst
from atdata_indexer.verify import NotProven, Op, check_signature, record_at, tree_before

Records = Mapping[str, bytes]
Blocks = Mapping[bytes, bytes | memoryview]

EMPTY = cid_of(bytes.fromhex("a2616580616cf6"))


def cid(n: int) -> bytes:
    """The *n*-th of some CIDs of records."""
    return cid_of(encode(n))


def layer(key: str) -> int:
    """The specification, to the letter: leading zeros of the hash, two bits at a time."""
    bits = "".join(f"{byte:08b}" for byte in sha256(key.encode()).digest())
    return (len(bits) - len(bits.lstrip("0"))) // 2


def _by_layer(layers: int, each: int) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(layers)]
    for n in count():
        # Neighbours share beginnings of many lengths.
        key = f"a.b.{'cde'[n % 3]}/{n % 7}{'x' * (n % 5)}{n}"
        if layer(key) < layers and len(found[layer(key)]) < each:
            found[layer(key)].append(key)
            if all(len(keys) == each for keys in found):
                return found
    raise AssertionError


KEYS = _by_layer(6, 8)
LOW, HIGH, TOP = KEYS[0], KEYS[1], KEYS[4]


def reason(call: Any, *arguments: Any) -> str:
    """Why it is not proven."""
    with pytest.raises((NotProven, BadSignature)) as caught:
        call(*arguments)
    assert str(caught.value)
    return caught.value.reason


def outcome(call: Any, *arguments: Any) -> Any:
    """What is proven, or why nothing is."""
    try:
        return call(*arguments)
    except (NotProven, BadSignature) as e:
        return e.reason


# --- signatures


@pytest.fixture(params=["secp256k1", "p256"])
def signer(request: pytest.FixtureRequest) -> Signer:
    return Signer(request.param)


MESSAGE = b"a message"
COMMIT = {
    "did": "did:plc:" + "a" * 24,
    "rev": "3lqdkdjpy6t2e",
    "data": cbrrr.CID(EMPTY),
    "prev": None,
    "version": 3,
}


def signed(signer: Signer, **fields: Any) -> bytes:
    commit = {**COMMIT, **fields}
    return encode({**commit, "sig": signer.sign(encode(commit))})


def test_signed_commits(signer: Signer) -> None:
    """A commit proves itself by its account's key, as bytes or as a view of them."""
    block = signed(signer)
    check_signature(block, signer.key)
    check_signature(memoryview(block), signer.key)


def test_unknown_fields_are_signed_over(signer: Signer) -> None:
    """Fields that nobody knows are part of what is signed: with them it holds, without or changed it does not."""
    block = signed(signer, futureField=[1, {"nested": b"bytes"}], a="x")
    check_signature(block, signer.key)
    commit = cbrrr.decode_dag_cbor(block)
    assert reason(check_signature, encode({**commit, "a": "y"}), signer.key) == "bad-signature"
    del commit["futureField"]
    assert reason(check_signature, encode(commit), signer.key) == "bad-signature"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 2}, "bad-commit"),
        ({"version": 4}, "bad-commit"),
        ({"version": "3"}, "bad-commit"),
        ({"version": True}, "bad-commit"),
        ({"version": None}, "bad-commit"),
    ],
)
def test_other_versions(signer: Signer, fields: dict[str, Any], why: str) -> None:
    """A commit of another version than 3 is none, however well signed."""
    assert reason(check_signature, signed(signer, **fields), signer.key) == why


@pytest.mark.parametrize("signature", [None, "x" * 64, [0] * 64, cbrrr.CID(EMPTY)])
def test_commits_without_a_signature(signer: Signer, signature: Any) -> None:
    """A commit whose signature is missing or not bytes is not signed."""
    assert reason(check_signature, encode({**COMMIT, "sig": signature}), signer.key) == "bad-commit"
    assert reason(check_signature, encode(COMMIT), signer.key) == "bad-commit"


def _non_canonical(signer: Signer) -> Iterator[tuple[str, bytes]]:
    """Blocks that a lenient decoder would read as the same well-signed commit."""
    block = signed(signer)
    at = block.index(b"\x67version\x03")
    yield "an integer longer than it need be", block[:at] + b"\x67version\x18\x03" + block[at + 9 :]
    yield "a length longer than it need be", b"\xb8\x06" + block[1:]
    yield "a map without a length", b"\xbf" + block[1:] + b"\xff"
    yield "something behind", block + b"\x00"
    yield "the same again behind", block + block
    yield "an integer as a float", block[:at] + b"\x67version\xfb" + bytes.fromhex("4008000000000000") + block[at + 9 :]
    yield "a key twice", b"\xa7" + block[1:] + b"\x67version\x03"
    yield "keys in another order", b"\xa6" + block[at:] + block[1:at]
    yield "a tag", b"\xc0" + block
    yield "cut off", block[:-1]
    yield "empty", b""
    yield "a list", encode([1])
    yield "a number", encode(1)
    yield "deep", b"\x81" * 2000
    yield "deeper", b"\x81" * 100_000
    yield "claims more than there is", b"\x9a\xff\xff\xff\xff"


def test_non_canonical_commits(signer: Signer) -> None:
    """Only the canonical encoding of a commit is one: else two blocks, two CIDs, would be the same signed commit."""
    for what, block in _non_canonical(signer):
        assert reason(check_signature, block, signer.key) == "bad-commit", what


def test_every_flipped_bit_of_a_commit(signer: Signer) -> None:
    """Whichever bit of a signed commit is flipped, it is refused."""
    block = signed(signer)
    for at in range(len(block)):
        damaged = bytearray(block)
        damaged[at] ^= 1 << at % 8
        assert reason(check_signature, bytes(damaged), signer.key) in ("bad-commit", "bad-signature")


def test_every_flipped_bit_of_a_signature(signer: Signer) -> None:
    """Whichever bit of a signature is flipped, it is refused."""
    signature = signer.sign(MESSAGE)
    check_bytes(MESSAGE, signature, signer.key)
    for bit in range(512):
        damaged = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
        assert reason(check_bytes, MESSAGE, damaged, signer.key) == "bad-signature"


def test_another_form_of_the_signature(signer: Signer) -> None:
    """Of a valid signature, nothing else that a lenient verifier would take for it is accepted."""
    r, s = signer.numbers(MESSAGE)
    n = signer.order
    check_bytes(MESSAGE, raw(r, s), signer.key)
    check_bytes(MESSAGE, memoryview(raw(r, s)).tobytes(), signer.key)
    others = {
        "upper s": raw(r, n - s),
        "r of zero": raw(0, s),
        "s of zero": raw(r, 0),
        "both zero": bytes(64),
        "r of the order": raw(n, s),
        "s of the order": raw(r, n),
        "s just above half": raw(r, n // 2 + 1),
        "all ones": b"\xff" * 64,
        "r and s swapped": raw(s, r),
        "DER": signer.private.sign(MESSAGE, ec.ECDSA(hashes.SHA256())),
        "DER to 64 bytes": signer.private.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))[:64],
        "recoverable": raw(r, s) + b"\x00",
        "cut off": raw(r, s)[:-1],
        "padded in front": b"\x00" + raw(r, s),
        "empty": b"",
        "hexadecimal": raw(r, s).hex().encode(),
    }
    if r + n < 2**256:  # very rarely
        others["r beyond the order"] = raw(r + n, s)
    for what, signature in others.items():
        assert reason(check_bytes, MESSAGE, signature, signer.key) == "bad-signature", what


@pytest.mark.parametrize(("above", "is_accepted"), [(-1, True), (0, True), (1, False), (2, False)])
def test_the_middle_of_s(signer: Signer, above: int, is_accepted: bool) -> None:
    """Half of the curve's own order, rounded down, is the greatest s there is.

    For any nonce k, r and s there is a private key of which they are a signature: (sk - e) / r.
    """
    n, k = signer.order, 0xDECADE
    s = n // 2 + above
    r = ec.derive_private_key(k, signer.curve).public_key().public_numbers().x % n
    e = int.from_bytes(sha256(MESSAGE).digest(), "big")
    signer.private = ec.derive_private_key((s * k - e) * pow(r, -1, n) % n, signer.curve)
    signer.private.public_key().verify(encode_dss_signature(r, s), MESSAGE, ec.ECDSA(hashes.SHA256()))
    result = outcome(check_bytes, MESSAGE, raw(r, s), signer.key)
    assert result == (None if is_accepted else "bad-signature")


def test_the_libraries_alone_would_not_do() -> None:
    """OpenSSL accepts the upper s, so this module has to refuse it; libsecp256k1 refuses it itself."""
    p256, k256 = Signer("p256"), Signer("secp256k1")
    r, s = p256.numbers(MESSAGE)
    p256.private.public_key().verify(encode_dss_signature(r, p256.order - s), MESSAGE, ec.ECDSA(hashes.SHA256()))
    r, s = k256.numbers(MESSAGE)
    public = coincurve.PublicKey(k256.point())
    assert public.verify(encode_dss_signature(r, s), MESSAGE)
    assert not public.verify(encode_dss_signature(r, k256.order - s), MESSAGE)


def test_another_key_or_message(signer: Signer) -> None:
    """A signature is of one key over one message."""
    signature = signer.sign(MESSAGE)
    other = Signer("p256" if signer.prefix == b"\xe7\x01" else "secp256k1")
    assert reason(check_bytes, MESSAGE + b"!", signature, signer.key) == "bad-signature"
    assert reason(check_bytes, MESSAGE, signature, other.key) == "bad-signature"


def test_the_other_point_of_the_same_x(signer: Signer) -> None:
    """The compressed point's first byte counts: the same x with the other y is another key."""
    point = signer.point()
    negative = libipld.encode_multibase("z", signer.prefix + bytes([5 - point[0]]) + point[1:])
    assert reason(check_bytes, MESSAGE, signer.sign(MESSAGE), negative) == "bad-signature"


def test_keys_that_are_none(signer: Signer) -> None:
    """A key is a compressed point on its own curve, with its prefix, in base58: all else is refused as a key."""
    point, uncompressed = signer.point(), signer.point(serialization.PublicFormat.UncompressedPoint)
    signature = signer.sign(MESSAGE)

    def base58(key: bytes) -> str:
        return libipld.encode_multibase("z", key)

    off_curve = next(
        x
        for x in range(1, 100)
        if outcome(check_bytes, MESSAGE, signature, base58(signer.prefix + b"\x02" + x.to_bytes(32, "big")))
        == "bad-key"
    )
    keys = {
        "uncompressed": base58(signer.prefix + uncompressed),
        "hybrid": base58(signer.prefix + bytes([6 + uncompressed[64] % 2]) + uncompressed[1:]),
        "x only": base58(signer.prefix + point[1:]),
        "first byte of an uncompressed point": base58(signer.prefix + b"\x04" + point[1:]),
        "first byte 0": base58(signer.prefix + b"\x00" + point[1:]),
        "first byte 5": base58(signer.prefix + b"\x05" + point[1:]),
        "infinity": base58(signer.prefix + b"\x00"),
        "not on the curve": base58(signer.prefix + b"\x02" + off_curve.to_bytes(32, "big")),
        "x beyond the field": base58(signer.prefix + b"\x02" + b"\xff" * 32),
        "a byte more": base58(signer.prefix + point + b"\x00"),
        "a byte less": base58(signer.prefix + point[:-1]),
        "no prefix": base58(point),
        "prefix of ed25519": base58(b"\xed\x01" + point[1:]),
        "prefix of P-384": base58(b"\x81\x24" + point),
        "only a prefix": base58(signer.prefix),
        "nothing": base58(b""),
        "base16": libipld.encode_multibase("f", signer.prefix + point),
        "base64": libipld.encode_multibase("u", signer.prefix + point),
        "no multibase": signer.key[1:],
        "a did:key": "did:key:" + signer.key,
        "white space": signer.key + "\n",
        "not base58": signer.key[:-1] + "0",
        "not ASCII": signer.key[:-1] + "é",
        "half a surrogate pair": signer.key[:-1] + "\ud800",
        "empty": "",
        "z": "z",
        "long": "z" * 100_000,
        "zeros": "z" + "1" * 60,
    }
    for what, key in keys.items():
        assert reason(check_bytes, MESSAGE, signature, key) == "bad-key", what


@settings(deadline=None)
@given(st.binary(max_size=300), st.text(max_size=60), st.binary(max_size=70))
@example(b"\xa0", "z", b"")
def test_any_commit_and_key(block: bytes, key: str, signature: bytes) -> None:
    """Whatever comes for a commit, a signature or a key is refused as NotProven or BadSignature and nothing else."""
    assert reason(check_signature, block, key) in ("bad-commit", "bad-key", "bad-signature")
    assert reason(check_bytes, block, signature, key) in ("bad-key", "bad-signature")
    assert reason(check_bytes, block, signature, Signer("p256").key) == "bad-signature"


def test_the_memory_of_keys_is_bounded() -> None:
    """Decoded keys are remembered up to a number, and refused ones not at all."""
    assert signatures._public_key.cache_info().maxsize is not None
    before = signatures._public_key.cache_info().currsize
    for n in range(50):
        assert reason(check_bytes, MESSAGE, bytes(64), f"z{n}") == "bad-key"
    assert signatures._public_key.cache_info().currsize == before


# --- trees: what they prove of one record


def test_the_layer_of_a_key() -> None:
    """The layer is what the specification says, for keys of all layers, and the bounds on hashes say the same."""
    for number, keys in enumerate(KEYS):
        for key in keys:
            assert verify._layer(key.encode()) == layer(key) == number
            least, beyond = verify._HASHES[number]
            assert least <= sha256(key.encode()).digest() < beyond


keys = st.sampled_from([key for keys in KEYS for key in keys])
contents = st.dictionaries(keys, st.integers(0, 3).map(cid), max_size=30)


@settings(deadline=None)
@given(contents, st.lists(keys, max_size=5))
def test_records_and_their_absence(records: dict[str, bytes], others: list[str]) -> None:
    """Every record of a tree is found with its CID, and of every other path it is proven that there is none."""
    root, blocks = tree(records)
    assert dict(walk_mst(root, blocks)) == records
    for path in [*records, *others]:
        assert record_at(root, path, blocks) == records.get(path)
        needed = nodes_on_the_way(root, path, blocks)
        assert record_at(root, path, {node: blocks[node] for node in needed}) == records.get(path)
        for node in needed:
            if node != EMPTY:
                rest = {other: block for other, block in blocks.items() if other != node}
                assert reason(record_at, root, path, rest) == "missing-block"


def nodes_on_the_way(root: bytes, path: str, blocks: Blocks) -> list[bytes]:
    """The nodes that a search for *path* visits, found by decoding and walking, apart from the code under test."""
    found = []
    link: cbrrr.CID | None = cbrrr.CID(root)
    while link is not None:
        found.append(link.cid_bytes)
        node = cbrrr.decode_dag_cbor(bytes(blocks[link.cid_bytes]))
        keys = keys_of(node)
        at = bisect_left(keys, path)
        if at < len(keys) and keys[at] == path:
            break
        link = node["e"][at - 1]["t"] if at else node["l"]
    return found


def keys_of(node: Any) -> list[str]:
    keys, key = [], b""
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        keys.append(key.decode())
    return keys


BAD_PATHS = ["", "a", "a/", "/a", "a/b/c", "a/ü", "a/\ud800", "a/x\n", "a b/c", "a/\0", "a.b.c/" + "x" * 1020]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_what_is_no_path(path: str) -> None:
    """What cannot be the path of a record is refused, in an operation and in a question."""
    root, blocks = tree({LOW[0]: cid(1)})
    assert reason(record_at, root, path, blocks) == "op-mismatch"
    assert reason(tree_before, root, [Op(path, None, cid(1))], blocks) == "op-mismatch"


# --- trees: what is no node


def common(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def node_of(*paths: bytes, left: Any = None) -> dict[str, Any]:
    """A node of *paths*, as it comes out of a decoder."""
    entries, before = [], b""
    for path in paths:
        shared = common(before, path)
        entries.append({"p": shared, "k": path[shared:], "v": cbrrr.CID(cid(1)), "t": None})
        before = path
    return {"l": left, "e": entries}


# A small tree: three keys on the lowest layer, left of one on the next.
ABOVE = max(KEYS[1]).encode()
A, B, C = (path.encode() for path in sorted(path for path in KEYS[0] if path.encode() < ABOVE)[:3])
BEYOND = b"a.b.z/0"


def below(block: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """A tree that has *block* for its lowest layer."""
    root = encode(node_of(ABOVE, left=cbrrr.CID(cid_of(block))))
    return cid_of(root), {cid_of(root): root, cid_of(block): block}


def _malformed() -> Iterator[tuple[str, bytes]]:
    whole = node_of(A, B, C)
    block = encode(whole)

    def entry(at: int, /, **fields: Any) -> bytes:
        entries = [dict(each) for each in whole["e"]]
        entries[at].update(fields)
        return encode({**whole, "e": [{k: v for k, v in each.items() if v is not ...} for each in entries]})

    some = cbrrr.CID(cid(1))
    shared = common(A, B)
    assert shared > 1
    yield "another field", encode({**whole, "x": 1})
    yield "no left", encode({"e": whole["e"]})
    yield "no entries", encode({"l": None})
    yield "entries as a map", encode({**whole, "e": {"a": 1}})
    yield "entries as null", encode({**whole, "e": None})
    yield "left as text", encode({**whole, "l": "x"})
    yield "left as bytes", encode({**whole, "l": cid(1)})
    yield "left false", encode({**whole, "l": False})
    yield "not a map", encode([1, 2])
    yield "a record", encode({"$type": "a.b.c", "text": "x"})
    yield "empty", encode(node_of())
    yield "nothing", b""
    yield "only its end", b"al\xf6"
    yield "another field in an entry", entry(1, x=1)
    for name in "pkvt":
        yield f"an entry without {name}", entry(1, **{name: ...})
        for value in ("text", -1, 2**40, 1.5, True, [], {}):
            yield f"{name} of {value!r}", entry(1, **{name: value})
    yield "an entry that is none", encode({**whole, "e": [1]})
    yield "a null entry", encode({**whole, "e": [*whole["e"], None]})
    yield "less shared than could be", entry(1, p=shared - 1, k=B[shared - 1 :])
    yield "nothing shared", entry(1, p=0, k=B)
    yield "more shared than there is", entry(1, p=len(A) + 1)
    yield "the first shares something", entry(0, p=1)
    yield "an empty own part", entry(1, p=len(A), k=b"")
    yield "the key before again", entry(1, p=0, k=A)
    yield "keys in another order", encode(node_of(B, A))
    yield "a key twice", encode(node_of(A, A))
    for odd in (b"\x00", b" ", b"\xff", "ü".encode(), b"\n", b"%"):
        yield f"a key with {odd!r}", entry(2, k=whole["e"][2]["k"] + odd)
    yield "a key of another layer", encode(node_of(*sorted([A, B, min(KEYS[1]).encode()])))
    yield "only keys of another layer", encode(node_of(min(KEYS[1]).encode()))
    yield "a key beyond its place", encode(node_of(A, lowest_key(b"a.b.z/")))
    yield "a key too long", encode(node_of(A, lowest_key(b"a.b.c/" + b"x" * 1020)))
    yield (
        "two long parts that make a key too long",
        encode(node_of(first := lowest_key(b"a.b.c/" + b"x" * 700), lowest_key(first + b"y" * 700))),
    )
    yield "a kid below the lowest layer", entry(1, t=some)
    yield "a left kid below the lowest layer", encode({**whole, "l": some})
    yield "a way down from the lowest layer", encode(node_of(left=some))
    yield "a record without a CID", entry(1, v=None)
    for what, prefix in {"raw": b"\x01\x55\x12\x20", "CIDv0": b"\x12\x20", "SHA-512": b"\x01\x71\x13\x20"}.items():
        link = b"\xd8\x2a" + encode(b"\x00" + prefix + bytes(32))
        valid = b"\xd8\x2a" + encode(b"\x00" + cid(1))
        yield f"a record's CID of {what}", block.replace(valid, link, 1)
    at = block.index(b"\x61p" + bytes([shared]))
    yield "a longer integer", block[: at + 2] + b"\x18" + block[at + 2 :]
    yield "a still longer integer", block[: at + 2] + b"\x19\x00" + block[at + 2 :]
    own = B[shared:]
    head = b"\x61k" + bytes([0x40 + len(own)]) + own
    yield "a longer length", block.replace(head, b"\x61k\x58" + bytes([len(own)]) + own)
    yield "a still longer length", block.replace(head, b"\x61k\x59\x00" + bytes([len(own)]) + own)
    yield "a wrong length, more", block.replace(head, b"\x61k" + bytes([0x41 + len(own)]) + own)
    yield "a wrong length, less", block.replace(head, b"\x61k" + bytes([0x3F + len(own)]) + own)
    yield "bytes without a length", block.replace(head, b"\x61k\x5f" + bytes([0x40 + len(own)]) + own + b"\xff")
    yield "text for bytes", block.replace(head, b"\x61k" + bytes([0x60 + len(own)]) + own)
    yield "a longer list head", block[:3] + b"\x98\x03" + block[4:]
    yield "a list without a length", block[:3] + b"\x9f" + block[4:-3] + b"\xff" + block[-3:]
    yield "more entries than there are", block[:3] + b"\x84" + block[4:]
    yield "fewer entries than there are", block[:3] + b"\x82" + block[4:]
    yield "a longer map head", b"\xb8\x02" + block[1:]
    yield "a map without a length", b"\xbf" + block[1:] + b"\xff"
    yield "fields in another order", b"\xa2" + block[-3:] + block[1:-3]
    yield "undefined for null", block[:-1] + b"\xf7"
    yield "another tag", block.replace(b"\xd8\x2a", b"\xd8\x2b", 1)
    yield "something behind", block + b"\x00"
    yield "something in front", b"\x00" + block
    yield "the same again behind", block + block
    yield "a pad between entries", block.replace(b"\xa4\x61k", b"\x00\xa4\x61k", 1)


def lowest_key(start: bytes) -> bytes:
    """A key of the lowest layer that starts so."""
    return next(key for n in count() if layer((key := start + str(n).encode()).decode()) == 0)


MALFORMED = list(_malformed())


@pytest.mark.parametrize(("what", "block"), MALFORMED, ids=[what for what, _ in MALFORMED])
def test_malformed_nodes(what: str, block: bytes) -> None:
    """A node in any other than its one encoding, or out of place, proves nothing: not as a root and not below one."""
    root, blocks = below(block)
    path = B.decode()
    assert reason(record_at, root, path, blocks) == "bad-tree"
    assert reason(tree_before, root, [Op(path, cid(1), None)], blocks) == "bad-tree"
    assert reason(tree_before, root, [Op(path, None, cid(1))], blocks) == "bad-tree"
    if block != encode(node_of()) and what not in AS_ROOT:
        assert reason(record_at, cid_of(block), path, blocks) == "bad-tree"


# Wrong on the lowest layer, and in a tree of their own only some other way.
AS_ROOT = ("only keys of another layer", "a key beyond its place")


def test_every_truncation_of_a_node() -> None:
    """Wherever a node is cut off, it proves nothing."""
    block = encode(node_of(A, B, C))
    for end in range(len(block)):
        assert reason(record_at, cid_of(block[:end]), B.decode(), {cid_of(block[:end]): block[:end]}) == "bad-tree"


def test_the_valid_node_beside_the_malformed() -> None:
    """The tree from which the malformed ones are made is valid itself."""
    root, blocks = below(encode(node_of(A, B, C)))
    assert [path.encode() for path, _ in walk_mst(root, blocks)] == [A, B, C, ABOVE]
    assert record_at(root, B.decode(), blocks) == cid(1)
    assert record_at(cid_of(encode(node_of(A, B, C))), B.decode(), blocks) == cid(1)


def test_a_link_that_ends_like_none() -> None:
    """A node whose left link ends in the bytes that mean that there is none is read as any other."""
    ending = cid(1)[:-3] + b"al\xf6"
    root = encode(node_of(ABOVE, left=cbrrr.CID(ending)))
    assert record_at(cid_of(root), ABOVE.decode(), {cid_of(root): root}) == cid(1)
    entries = node_of(A, B)
    entries["e"][1]["v"] = cbrrr.CID(ending)
    last = encode(entries)
    assert record_at(cid_of(last), B.decode(), {cid_of(last): last}) == ending


def test_leafless_roots() -> None:
    """A root without a key proves nothing, unless it is the empty tree, whose block nobody needs."""
    lowest = encode(node_of(A))
    root = encode(node_of(left=cbrrr.CID(cid_of(lowest))))
    blocks = {cid_of(lowest): lowest, cid_of(root): root}
    assert reason(record_at, cid_of(root), A.decode(), blocks) == "bad-tree"
    assert reason(tree_before, cid_of(root), [], blocks) == "bad-tree"
    assert record_at(EMPTY, A.decode(), {}) is None
    assert tree_before(EMPTY, [], {}) == EMPTY
    assert reason(record_at, cid_of(lowest), A.decode(), {}) == "missing-block"


def test_part_of_a_link() -> None:
    """A node shorter than the link that it seems to end in proves nothing."""
    top = max(KEYS[2]).encode()
    for size in range(4, 48):
        for at in range(4, size):
            block = (b"\xa2ae\x80".ljust(at, b"\x00") + b"al\xd8*X%\x00" + cid(1))[:size]
            root = encode(node_of(top, left=cbrrr.CID(cid_of(block))))
            result = outcome(record_at, cid_of(root), A.decode(), {cid_of(root): root, cid_of(block): block})
            # Whole, it is a way down to a node that is not there.
            assert result == ("missing-block" if (size, at) == (47, 4) else "bad-tree")


class Read(dict[bytes, bytes]):
    """Blocks that count how often each is asked for."""

    def __init__(self, blocks: Mapping[bytes, bytes]) -> None:
        super().__init__(blocks)
        self.times: dict[bytes, int] = {}

    def get(self, key: bytes, default: Any = None) -> Any:
        self.times[key] = self.times.get(key, 0) + 1
        return super().get(key, default)


def test_a_way_down_without_end() -> None:
    """A chain of nodes without keys is followed no deeper than the root's layer, however long it is."""
    blocks: dict[bytes, bytes] = {}
    link = cid(1)
    for _ in range(20_000):
        block = encode(node_of(left=cbrrr.CID(link)))
        blocks[link := cid_of(block)] = block
    top = max(KEYS[5]).encode()
    root = encode(node_of(top, left=cbrrr.CID(link)))
    blocks[cid_of(root)] = root
    path = A.decode()
    for call, arguments in ((record_at, [path]), (tree_before, [[Op(path, cid(1), None)]])):
        read = Read(blocks)
        assert reason(call, cid_of(root), *arguments, read) == "bad-tree"
        assert len(read.times) <= 6
    read = Read(blocks)
    assert reason(tree_before, cid_of(root), [Op(top.decode(), None, cid(1))], read) == "op-mismatch"
    assert len(read.times) == 1


def test_each_node_is_read_once() -> None:
    """However many operations pass through a node, its block is read once."""
    after = {f"a.b.c/{n}": cid(n) for n in range(3000)}
    root, blocks = tree(after)
    ops = [Op(f"a.b.c/{n}", cid(n), None if n % 3 else cid(0)) for n in range(0, 3000, 7)]
    ops += [Op(f"a.b.c/{n}x", None, cid(n)) for n in range(0, 3000, 11)]
    read = Read(blocks)
    before = {**after, **{op.path: op.prev for op in ops if op.prev}}
    for op in ops:
        if op.prev is None:
            del before[op.path]
    assert tree_before(root, ops, read) == tree(before)[0]
    assert max(read.times.values()) == 1


def test_the_same_subtree_twice() -> None:
    """A subtree in two places is out of place in one of them."""
    lowest = encode(node_of(A, B, C))
    link = cbrrr.CID(cid_of(lowest))
    root_node = node_of(ABOVE, left=link)
    root_node["e"][0]["t"] = link
    root = encode(root_node)
    blocks = {cid_of(lowest): lowest, cid_of(root): root}
    assert record_at(cid_of(root), A.decode(), blocks) == cid(1)
    assert reason(record_at, cid_of(root), BEYOND.decode(), blocks) == "bad-tree"
    both = [Op(A.decode(), cid(1), None), Op(BEYOND.decode(), None, cid(2))]
    assert reason(tree_before, cid_of(root), both, blocks) == "bad-tree"
    assert reason(tree_before, cid_of(root), both[::-1], blocks) == "bad-tree"


class Invalid(Exception):
    pass


def by_the_letter(root: bytes, path: str, blocks: Blocks) -> bytes | None:
    """`record_at` as the specification says it, slowly: decode, check, encode again, search."""

    def read(link: cbrrr.CID, at_layer: int | None, low: str, high: str) -> bytes | None:
        block = bytes(blocks[link.cid_bytes])
        try:
            value = cbrrr.decode_dag_cbor(block)
            if cbrrr.encode_dag_cbor(value) != block:
                raise Invalid
            if not isinstance(value, dict) or set(value) != {"l", "e"} or not isinstance(value["e"], list):
                raise Invalid
            before = b""
            for entry in value["e"]:
                if not isinstance(entry, dict) or set(entry) != set("pkvt") or type(entry["p"]) is not int:
                    raise Invalid
                if not isinstance(entry["k"], bytes) or not 0 <= entry["p"] <= len(before):
                    raise Invalid
                key = before[: entry["p"]] + entry["k"]
                if common(before, key) != entry["p"] or key <= before or len(key) > 1024:
                    raise Invalid
                if not all(c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_~.:/-" for c in key):
                    raise Invalid
                before = key
        except ValueError:
            raise Invalid from None
        links = [entry["v"] for entry in value["e"]]
        kids = [value["l"], *(entry["t"] for entry in value["e"])]
        for each in [*links, *(kid for kid in kids if kid is not None)]:
            if not isinstance(each, cbrrr.CID) or not each.cid_bytes.startswith(b"\x01\x71\x12\x20"):
                raise Invalid
            if len(each.cid_bytes) != 36:
                raise Invalid
        keys = keys_of(value)
        if not keys and (kids == [None] or at_layer is None):
            raise Invalid
        at_layer = layer(keys[0]) if at_layer is None else at_layer
        if any(layer(key) != at_layer for key in keys) or not all(low < key < high for key in keys):
            raise Invalid
        if at_layer == 0 and kids.count(None) != len(kids):
            raise Invalid
        at = bisect_left(keys, path)
        if at < len(keys) and keys[at] == path:
            return links[at].cid_bytes
        if kids[at] is None:
            return None
        return read(kids[at], at_layer - 1, keys[at - 1] if at else low, keys[at] if at < len(keys) else high)

    return read(cbrrr.CID(root), None, "", "\x7f")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_to_a_node(data: st.DataObject) -> None:
    """Whatever bytes of a node are changed, it is taken or refused exactly as by a reading of the specification."""
    records = {path: cid(1) for path in data.draw(st.lists(st.sampled_from(KEYS[0] + KEYS[1] + KEYS[2]), min_size=1))}
    root, blocks = tree(records)
    target = data.draw(st.sampled_from(sorted(blocks)))
    block = bytearray(blocks[target])
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(block) - 1))
        new = data.draw(st.sampled_from(list(bytes(block[at : at + 1]) + b"\x00\x17\x18\x19\x40\x58\x80\x98\xf6apx")))
        block[at : at + data.draw(st.integers(0, 2))] = bytes([new])
    blocks = relink(blocks, target, bytes(block))
    root = next(iter(blocks))
    path = data.draw(st.sampled_from([*records, KEYS[0][0]]))
    try:
        expected = by_the_letter(root, path, blocks)
    except (Invalid, KeyError):
        assert reason(record_at, root, path, blocks) in ("bad-tree", "missing-block")
        # Undoing looks at the same nodes and more.
        assert reason(tree_before, root, [Op(path, cid(1), cid(2))], blocks) in ("bad-tree", "missing-block")
    else:
        assert record_at(root, path, blocks) == expected


def relink(blocks: Mapping[bytes, bytes], target: bytes, block: bytes) -> dict[bytes, bytes]:
    """*blocks*, root first, with the block *target* replaced and all links to it kept right."""
    changed = {target: block}
    for old, content in reversed(blocks.items()):
        new = changed.get(old, content)
        for was, now in list(changed.items()):
            if was != old:
                new = new.replace(was, cid_of(now))
        changed[old] = new
    return {cid_of(changed[old]): changed[old] for old in blocks}


# --- trees: operations undone


def covering(root: bytes, path: str, blocks: Blocks, records: Records) -> set[bytes]:
    """The nodes that a PDS sends for an operation: on the way to its path, and to the neighbours of that."""
    order = sorted(records)
    at = bisect_left(order, path)
    beyond = at + (at < len(order) and order[at] == path)
    return {
        node
        for each in (path, *order[max(at - 1, 0) : at], *order[beyond : beyond + 1])
        for node in nodes_on_the_way(root, each, blocks)
    }


def test_the_empty_tree() -> None:
    """The first record of all leads back to the empty tree, and the deletion of the last one from it."""
    for path in (LOW[0], HIGH[0], TOP[0]):
        root, blocks = tree({path: cid(1)})
        assert tree_before(root, [Op(path, cid(1), None)], blocks) == EMPTY
        assert tree_before(EMPTY, [Op(path, None, cid(1))], {}) == root
        assert reason(tree_before, EMPTY, [Op(path, cid(1), None)], {}) == "op-mismatch"
        assert reason(tree_before, EMPTY, [Op(path, cid(1), cid(2))], {}) == "op-mismatch"


@st.composite
def commits(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, bytes], list[Op]]:
    """Records before, records after, and the operations that lead from the one to the other, in any order."""
    before = draw(contents)
    after = dict(before)
    ops: list[list[Op]] = []
    for path in draw(st.lists(keys, max_size=12, unique=True)):
        old = before.get(path)
        # Where a path is named again, the reference PDS gives what was before the commit, others what was just before.
        is_reference = draw(st.booleans())
        values = draw(
            st.lists(st.none() | st.integers(4, 6).map(cid), min_size=1, max_size=draw(st.sampled_from([1, 3])))
        )
        chain, current = [], old
        for value in values:
            if value is None and current is None:
                continue
            chain.append(Op(path, value, old if is_reference else current))
            current = value
        # A reference PDS that deletes what it just created writes an operation from nothing to nothing.
        if not chain or (chain[0].cid is None and chain[0].prev is None):
            continue
        ops.append(chain)
        if current is None:
            after.pop(path, None)
        else:
            after[path] = current
    chains = draw(st.permutations(ops))
    return before, after, [op for chain in chains for op in chain]


@settings(max_examples=120, deadline=None)
@given(commits())
def test_operations_undone(commit: tuple[dict[str, bytes], dict[str, bytes], list[Op]]) -> None:
    """Undone on the nodes that a PDS sends, or on all of them, the operations of a commit lead to the tree before."""
    before, after, ops = commit
    root, blocks = tree(after)
    expected, _ = tree(before)
    assert tree_before(root, ops, blocks) == expected
    sent = set().union(*(covering(root, op.path, blocks, after) for op in ops)) | {root}
    assert tree_before(root, ops, {node: blocks[node] for node in sent}) == expected
    views = {node: memoryview(blocks[node]) for node in sent}
    assert tree_before(root, ops, views) == expected


any_op = st.builds(Op, keys, st.none() | st.integers(0, 4).map(cid), st.none() | st.integers(0, 4).map(cid))


def undone(after: Records, ops: list[Op]) -> dict[str, bytes] | None:
    """The records before *ops*, None when they cannot have led to *after*: `tree_before` without a tree."""
    net: dict[str, tuple[bytes | None, bytes | None]] = {}
    for path, now, prev in ops:
        if path not in net:
            if now is None and prev is None:
                return None
            net[path] = now, prev
        elif prev in net[path]:
            net[path] = now, net[path][1]
        else:
            return None
    before = dict(after)
    for path, (now, prev) in net.items():
        if before.pop(path, None) != now:
            return None
        if prev is not None:
            before[path] = prev
    return before


@settings(max_examples=120, deadline=None)
@given(contents, st.lists(any_op, max_size=6), st.data())
def test_any_operations(after: dict[str, bytes], ops: list[Op], data: st.DataObject) -> None:
    """Any operations on any tree lead to exactly the tree before them, or are refused when they cannot be true."""
    # Half of the claims about what is there now are true, so that more than a few get through.
    ops = [op._replace(cid=after.get(op.path)) if data.draw(st.booleans()) else op for op in ops]
    root, blocks = tree(after)
    before = undone(after, ops)
    if before is None:
        assert reason(tree_before, root, ops, blocks) == "op-mismatch"
    else:
        assert tree_before(root, ops, blocks) == tree(before)[0]
    # With a part of the nodes it is the same, or not proven.
    part = {node: block for node, block in blocks.items() if data.draw(st.booleans())}
    if before is None:
        assert outcome(tree_before, root, ops, part) in ("op-mismatch", "missing-block")
    else:
        assert outcome(tree_before, root, ops, part) in (tree(before)[0], "missing-block")


@settings(max_examples=120, deadline=None)
@given(commits(), st.data())
def test_altered_operations(commit: tuple[dict[str, bytes], dict[str, bytes], list[Op]], data: st.DataObject) -> None:
    """Operations altered in any way that changes what they claim do not lead to the same tree before."""
    before, after, ops = commit
    assume(ops)
    root, blocks = tree(after)
    at = data.draw(st.integers(0, len(ops) - 1))
    op = ops[at]
    match data.draw(st.sampled_from(["path", "cid", "prev", "swap", "drop", "add", "order"])):
        case "path":
            altered = [*ops[:at], op._replace(path=data.draw(keys)), *ops[at + 1 :]]
        case "cid":
            altered = [*ops[:at], op._replace(cid=data.draw(st.none() | st.just(cid(9)))), *ops[at + 1 :]]
        case "prev":
            altered = [*ops[:at], op._replace(prev=data.draw(st.none() | st.just(cid(9)))), *ops[at + 1 :]]
        case "swap":
            altered = [*ops[:at], op._replace(cid=op.prev, prev=op.cid), *ops[at + 1 :]]
        case "drop":
            altered = [*ops[:at], *ops[at + 1 :]]
        case "add":
            altered = [*ops, data.draw(any_op)]
        case _:
            altered = data.draw(st.permutations(ops))
    claimed = undone(after, altered)
    result = outcome(tree_before, root, altered, blocks)
    assert result == ("op-mismatch" if claimed is None else tree(claimed)[0])
    assert (result == tree(before)[0]) == (claimed == before)


Nested = dict[str, list[Any]]


def expanded(root: bytes, blocks: Blocks) -> Nested:
    """A tree as nested nodes, to be bent out of shape."""
    value = cbrrr.decode_dag_cbor(bytes(blocks[root]))
    kids = [value["l"], *(entry["t"] for entry in value["e"])]
    return {
        "keys": keys_of(value),
        "values": [entry["v"].cid_bytes for entry in value["e"]],
        "kids": [None if kid is None else expanded(kid.cid_bytes, blocks) for kid in kids],
    }


def collapsed(nested: Nested) -> tuple[bytes, dict[bytes, bytes]]:
    """The root and blocks of nested nodes, in or out of shape."""
    blocks: dict[bytes, bytes] = {}

    def close(nested: Nested) -> cbrrr.CID:
        kids = [None if kid is None else close(kid) for kid in nested["kids"]]
        value = node_of(*(key.encode() for key in nested["keys"]), left=kids[0])
        for entry, kid, link in zip(value["e"], kids[1:], nested["values"], strict=True):
            entry["t"], entry["v"] = kid, cbrrr.CID(link)
        block = encode(value)
        blocks[cid_of(block)] = block
        return cbrrr.CID(cid_of(block))

    return close(nested).cid_bytes, blocks


def on_layer(nested: Nested, at_layer: int, wanted: int) -> list[Nested]:
    """All nodes on a layer, and new ones where a kid of the layer above is missing."""
    if at_layer == wanted:
        return [nested]
    found = []
    for at, kid in enumerate(nested["kids"]):
        if kid is None:
            kid = nested["kids"][at] = {"keys": [], "values": [], "kids": [None]}
        found += on_layer(kid, at_layer - 1, wanted)
    return found


def pruned(nested: Nested) -> Nested | None:
    nested["kids"] = [None if kid is None else pruned(kid) for kid in nested["kids"]]
    return nested if nested["keys"] or nested["kids"] != [None] else None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_created_in_the_wrong_place(data: st.DataObject) -> None:
    """Records put anywhere into a tree lead back to that tree only if they were put into their right place.

    Taken out again, they leave the tree before in order, wherever they were: what has to be seen is that the tree with
    them was not.
    """
    before = data.draw(st.dictionaries(keys, st.just(cid(1)), min_size=1, max_size=20))
    root, blocks = tree(before)
    created = data.draw(st.lists(keys.filter(lambda path: path not in before), min_size=1, max_size=3, unique=True))
    nested = expanded(root, blocks)
    top = max(map(layer, before))
    for path in created:
        while top < layer(path):
            nested = {"keys": [], "values": [], "kids": [nested]}
            top += 1
        node = data.draw(st.sampled_from(on_layer(nested, top, layer(path))))
        right = bisect_left(node["keys"], path)
        at = data.draw(st.sampled_from([right, right, *range(len(node["keys"]) + 1)]))
        kid = node["kids"][at]
        node["kids"][at : at + 1] = data.draw(st.sampled_from([[kid, None], [None, kid]]))
        node["keys"].insert(at, path)
        node["values"].insert(at, cid(2))
    bent = pruned(nested)
    assert bent is not None
    after, after_blocks = collapsed(bent)
    ops = [Op(path, cid(2), None) for path in created]
    is_right = after == tree({**before, **dict.fromkeys(created, cid(2))})[0]
    for order in (ops, ops[::-1]):
        result = outcome(tree_before, after, order, after_blocks)
        assert (result == root) == is_right
        assert is_right or result in ("bad-tree", "op-mismatch")


def test_one_path_several_times() -> None:
    """Operations on one path count as one, each starting where the one before ended or, as in the reference PDS, all
    from before the commit; in another order they are refused."""
    path = LOW[0]
    rest = dict.fromkeys(LOW[1:] + HIGH + TOP, cid(0))

    def before(now: bytes | None, *ops: tuple[bytes | None, bytes | None]) -> bytes:
        root, blocks = tree(rest if now is None else {**rest, path: now})
        return tree_before(root, [Op(path, *op) for op in ops], blocks)

    none, held = tree(rest)[0], tree({**rest, path: cid(1)})[0]
    assert before(cid(3), (cid(2), None), (cid(3), cid(2))) == none
    assert before(cid(3), (cid(2), None), (cid(3), None)) == none
    assert before(cid(3), (cid(2), cid(1)), (cid(3), cid(2))) == held
    assert before(cid(3), (cid(2), cid(1)), (cid(3), cid(1))) == held
    assert before(cid(3), (None, cid(1)), (cid(3), None)) == held
    assert before(cid(3), (None, cid(1)), (cid(3), cid(1))) == held
    assert before(None, (cid(2), None), (None, cid(2))) == none
    assert before(None, (cid(2), None), (None, None)) == none
    assert before(None, (cid(2), cid(1)), (None, cid(1))) == held
    for now, *ops in [
        (cid(3), (cid(3), cid(2)), (cid(2), None)),  # the other way round
        (cid(3), (cid(2), cid(1)), (cid(3), cid(5))),  # from a record that never was
        (cid(3), (cid(3), None), (cid(2), None)),  # the last is not what is there
        (cid(3), (cid(3), None), (None, cid(3))),  # deleted, and yet there
        (None, (None, cid(1)), (cid(3), None)),  # created, and yet not there
        (None, (None, None)),
        (None, (None, None), (cid(2), None), (None, cid(2))),
    ]:
        assert reason(before, now, *ops) == "op-mismatch"


@pytest.mark.parametrize(
    "link",
    [
        b"",
        cid(1)[:-1],
        cid(1) + b"\x00",
        b"\x01\x55\x12\x20" + bytes(32),
        b"\x12\x20" + bytes(34),
        cid(1) + b"\xa4\x61k",
    ],
)
def test_cids_that_are_none(link: bytes) -> None:
    """An operation whose CIDs are no CIDs of records is refused before they become part of a node."""
    root, blocks = tree({LOW[0]: cid(1)})
    for op in (Op(LOW[0], link, None), Op(LOW[0], cid(1), link), Op(LOW[1], None, link)):
        assert reason(tree_before, root, [op], blocks) == "op-mismatch"


def test_large_nodes() -> None:
    """Nodes of hundreds and thousands of entries are read and written as any other."""
    found = list(islice((path for n in count() if layer(path := f"a.b.c/{n}") == 0), 5000))
    for size in (23, 24, 25, 255, 256, 257, 5000):
        records = dict.fromkeys(found[:size], cid(1))
        root, blocks = tree(records)
        assert len(blocks) == 1
        assert tree_before(root, [Op(found[0], cid(1), cid(2))], blocks) == tree({**records, found[0]: cid(2)})[0]
        more = {**records, HIGH[0]: cid(3)}
        assert tree_before(root, [Op(HIGH[0], None, cid(3))], blocks) == tree(more)[0]
        assert tree_before(tree(more)[0], [Op(HIGH[0], cid(3), None)], tree(more)[1]) == root


def test_keys_of_all_lengths() -> None:
    """Keys whose own parts and shared parts take one, two or three bytes to count are read and written."""
    records = {}
    for size in (1, 2, 15, 16, 17, 18, 230, 248, 249, 250, 251, 600, 1010):
        start = lowest_key(b"a.b.c/" + b"y" * size)
        for path in (start, lowest_key(start + b"z"), lowest_key(b"a.b.c/" + b"w" * size)):
            if len(path) <= 1024:
                records[path.decode()] = cid(size)
    root, blocks = tree(records)
    assert dict(walk_mst(root, blocks)) == records
    for path, value in records.items():
        rest = {other: link for other, link in records.items() if other != path}
        assert record_at(root, path, blocks) == value
        assert tree_before(root, [Op(path, value, None)], blocks) == tree(rest)[0]
        assert tree_before(*(lambda r, b: (r, [Op(path, None, value)], b))(*tree(rest))) == root


def test_errors_name_the_culprit() -> None:
    """What is not proven says which path or node is at fault, and what was expected of it."""
    root, blocks = tree({LOW[0]: cid(1)})
    with pytest.raises(NotProven, match=rf"{LOW[0]} is bafyrei\w+ in the tree, not bafyrei\w+") as caught:
        tree_before(root, [Op(LOW[0], cid(2), None)], blocks)
    assert caught.value.reason == "op-mismatch"
    with pytest.raises(NotProven, match=f"{LOW[1]} is not in the tree"):
        tree_before(root, [Op(LOW[1], cid(2), None)], blocks)
    with pytest.raises(NotProven, match=f"{LOW[0]} is in the tree, though it was deleted"):
        tree_before(root, [Op(LOW[0], None, cid(2))], blocks)
    with pytest.raises(NotProven, match=f"the node {cbrrr.CID(root).encode()} is not among the blocks"):
        tree_before(root, [Op(LOW[0], cid(1), None)], {})
