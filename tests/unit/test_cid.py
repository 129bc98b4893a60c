"""CIDs: those of the protocol's own examples, of records, and of blobs."""

import base64
import doctest
import json
from hashlib import sha256

import cbrrr
import pytest
from conformance import shared_folder

from atdata import cid as module
from atdata.cid import generate_cid, raw_cid, sha256_in, verify_cid


def test_the_protocols_own_examples():
    """Each fixture of the data model, in its JSON form, has the CID that is written beside it."""
    folder = shared_folder() / "conformance/atproto-interop-tests/data-model"
    fixtures = json.loads((folder / "data-model-fixtures.json").read_text())
    assert fixtures
    for fixture in fixtures:
        assert generate_cid(fixture["json"]) == fixture["cid"]
        assert verify_cid(fixture["cid"], fixture["json"])
        assert not verify_cid(fixture["cid"], {**fixture["json"], "more": 1})


def test_bytes_and_links_in_either_form():
    """Python's bytes and the protocol's `$bytes`, a CID object and `$link`, tuples and lists are the same data."""
    cid = generate_cid({})
    assert generate_cid({"a": b"x"}) == generate_cid({"a": {"$bytes": "eA"}}) == generate_cid({"a": {"$bytes": "eA=="}})
    assert generate_cid([cbrrr.CID.decode(cid)]) == generate_cid(({"$link": cid},))
    assert generate_cid({"b": 1, "aa": 2}) == generate_cid({"aa": 2, "b": 1})


@pytest.mark.parametrize("obj", [float("nan"), 2**64, {1: 2}, object(), {"$link": "nonsense"}, {"$bytes": "?"}])
def test_what_is_no_data_is_an_error(obj):
    """DAG-CBOR has no NaN, no integers beyond 64 bits, no keys but text."""
    with pytest.raises((ValueError, TypeError)):
        generate_cid(obj)


def test_endless_nesting_is_an_error():
    """Nesting beyond any honest one is a ValueError."""
    value: list = []
    for _ in range(500):
        value = [value]
    with pytest.raises(ValueError, match="nested"):
        generate_cid(value)


def test_blobs_have_raw_cids():
    """A blob's CID is that of its bytes, and the hash can be taken out again."""
    digest = sha256(b"hello world").digest()
    expected = "b" + base64.b32encode(b"\x01\x55\x12\x20" + digest).decode().rstrip("=").lower()
    assert raw_cid(digest) == expected == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert sha256_in(raw_cid(digest)) == digest
    assert len(sha256_in(generate_cid({}))) == 32


@pytest.mark.parametrize(
    "cid", ["", "x", "bafyrei111", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "bafkrei" + "a" * 60]
)
def test_other_cids_are_refused(cid):
    """What is no CIDv1 with SHA-256 is a ValueError."""
    with pytest.raises(ValueError, match="CID"):
        sha256_in(cid)


def test_examples():
    """The examples in the documentation are true."""
    assert doctest.testmod(module).failed == 0
