"""Which strings are the AT URI of a record or a blob, and what is said of those that are not."""

import doctest
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from conformance import shared_folder
from hypothesis import given
from hypothesis import strategies as st

import atdata.atmosphere
from atdata import errors, nsid
from atdata.atmosphere import uri
from atdata.atmosphere.uri import AtUri, BlobUri

CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"

dids = st.from_regex(r"did:[a-z]{1,8}:[a-zA-Z0-9._:%-]{0,30}[a-zA-Z0-9._-]", fullmatch=True)
handles = st.from_regex(r"([a-zA-Z0-9]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?\.){1,3}[a-zA-Z]{2,5}", fullmatch=True)
nsids = st.from_regex(r"[a-z]{2,5}(\.[a-z0-9]{1,8}){1,3}\.[a-zA-Z][a-zA-Z0-9]{0,10}", fullmatch=True)
rkeys = st.from_regex(r"[A-Za-z0-9._:~-]{1,40}", fullmatch=True).filter(lambda key: key not in (".", ".."))


def cases(name: str) -> list[str]:
    text = (shared_folder() / "conformance/atproto-interop-tests/syntax" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


@given(dids | handles, nsids, rkeys)
def test_round_trip(authority, collection, rkey):
    """A URI that is written reads back as the same URI."""
    original = AtUri(authority, collection, rkey)
    assert AtUri.parse(str(original)) == original


@given(dids)
def test_blob_round_trip(did):
    """A blob's URI that is written reads back as the same URI, and is not the URI of a record."""
    original = BlobUri(did, CID)
    assert BlobUri.parse(str(original)) == original
    with pytest.raises(errors.UriError, match="names a blob, not a record"):
        AtUri.parse(str(original))


@given(st.text() | st.text().map("at://".__add__))
def test_parse_reads_or_refuses(text):
    """Any string is either read, and written again as it was, or refused as a ValueError of our own."""
    for form in (AtUri, BlobUri):
        try:
            parsed = form.parse(text)
        except errors.UriError:
            continue
        assert str(parsed) == text


def test_interoperability_valid():
    """Every valid AT URI of the protocol's own tests is read if it names a record, else told what it lacks."""
    for case in cases("aturi_syntax_valid"):
        segments = case.removeprefix("at://").split("/")
        if len(segments) == 3:
            assert str(AtUri.parse(case)) == case
        else:
            with pytest.raises(errors.UriError, match=["has no collection", "has no record key"][len(segments) - 1]):
                AtUri.parse(case)


def test_interoperability_invalid():
    """Every invalid AT URI of the protocol's own tests is refused."""
    for case in cases("aturi_syntax_invalid"):
        with pytest.raises(errors.UriError):
            AtUri.parse(case)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "at://did:plc:x/abc",
            "AT URI 'at://did:plc:x/abc' has no record key; expected at://authority/collection/rkey",
        ),
        ("", "AT URI '' does not start with at://; expected at://authority/collection/rkey"),
        ("https://example.com", "does not start with at://"),
        ("at://", "has no authority"),
        ("at:///a.b.c/d", "has no authority"),
        ("at://did:plc:x", "has no collection"),
        ("at://did:plc:x/", "has no collection"),
        ("at://did:plc:x/a.b.c", "has no record key"),
        ("at://did:plc:x/a.b.c/", "has no record key"),
        ("at://did:plc:x/a.b.c/d/", "goes on after the record key"),
        ("at://did:plc:x/a.b.c/d/e/f", "goes on after the record key"),
        ("at://nobody/a.b.c/d", "has authority 'nobody', which is neither a DID nor a handle"),
        ("at://did:plc:x/abc/d", "has collection 'abc', which is not an NSID"),
        ("at://did:plc:x/a.b.c/d e", "has an invalid record key 'd e'"),
        ("at://did:plc:x/a.b.c/d#frag", "has an invalid record key 'd#frag'"),
        (f"at://did:plc:x/blob/{CID}", "names a blob, not a record; read it with BlobUri.parse"),
        ("at://did:plc:x/a.b.c/" + "d" * 9000, "is 9021 characters long, the limit is 8192"),
        (None, "expected at://authority/collection/rkey as a string, not NoneType"),
    ],
)
def test_what_is_missing(text, message):
    """The error says what is missing or wrong, and stays readable whatever the string."""
    with pytest.raises(errors.UriError) as caught:
        AtUri.parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at://did:plc:x/a.b.c/d", "does not name a blob; expected at://did/blob/cid"),
        ("at://did:plc:x", "does not name a blob"),
        ("at://did:plc:x/blob", "has no CID"),
        ("at://did:plc:x/blob/", "has no CID"),
        ("at://did:plc:x/blob/short", "has an invalid CID 'short'"),
        (f"at://did:plc:x/blob/{CID}/more", "goes on after the CID"),
        (f"at://alice.example.com/blob/{CID}", "has authority 'alice.example.com', which is not a DID"),
    ],
)
def test_what_is_missing_in_a_blob_uri(text, message):
    """A blob's URI needs a DID and a CID, and the error says which is missing."""
    with pytest.raises(errors.UriError) as caught:
        BlobUri.parse(text)
    assert message in str(caught.value)


def test_uris_are_values():
    """URIs can be compared, hashed and sorted, and not changed."""
    first, second = AtUri("did:a:a", "a.b.c", "1"), AtUri("did:a:a", "a.b.c", "2")
    assert sorted({second, first, AtUri("did:a:a", "a.b.c", "1")}) == [first, second]
    with pytest.raises(FrozenInstanceError):
        first.rkey = "3"


@pytest.mark.parametrize(
    ("collection", "kind"),
    [
        ("ac.foundation.dataset.sampleSchema", "schema"),
        ("ac.foundation.dataset.schema", "schema"),
        ("ac.foundation.dataset.record", "dataset"),
        ("ac.foundation.dataset.lens", "lens"),
        ("ac.foundation.dataset.label", "label"),
        ("science.alt.dataset.schema", "schema"),
        ("science.alt.dataset.entry", "dataset"),
        ("science.alt.dataset.lens", "lens"),
        ("science.alt.dataset.label", "label"),
        ("ac.foundation.dataset.somethingNew", None),
        ("ac.foundation.datasets.record", None),
        ("science.alt.dataset.record", None),
        ("app.bsky.feed.post", None),
    ],
)
def test_kinds_of_collections(collection, kind):
    """Each collection that we know has a kind; a new one, or somebody else's, has none."""
    assert nsid.kind_of(collection) == kind


def test_imports_are_light():
    """The package, URIs, lexicons and records load without the SDK, the servers' libraries or NumPy."""
    program = (
        "import sys, atdata, atdata.atmosphere.uri, atdata.atmosphere.records, atdata.lexicon\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"atproto", "atproto_client", "fastapi", "httpx", "numpy", "psycopg", "pydantic", "regex"}
    assert heavy.isdisjoint(answer.stdout.split())


def test_public_names():
    """What a package lists as public is there, and nothing else answers."""
    for package in (atdata, atdata.atmosphere):
        assert all(hasattr(package, name) for name in package.__all__)
        assert not hasattr(package, "no_such_name")
    assert atdata.atmosphere.AtUri is AtUri
    assert atdata.__version__


def test_every_error_is_in_the_tree():
    """Each error is an AtdataError, those about values are ValueErrors, and the drawing shows all of them."""
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.AtdataError)
        assert name in errors.__doc__
    for error in (errors.UriError, errors.RecordError, errors.LexiconError):
        assert issubclass(error, ValueError)


def test_examples():
    """The examples in the documentation are true."""
    for module in (uri, nsid):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0
