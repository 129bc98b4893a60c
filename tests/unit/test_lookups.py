"""The pure parts of look-ups: cursors, names, and which URLs may be given out."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata_appview import cursors, naming, shards
from atdata_appview.naming import Name, alternatives
from atdata_appview.shards import is_public_url
from atdata_backend import signatures
from atdata_backend.search.base import BadCursor

# What a database takes: no NUL, no half of a surrogate pair, no more than 64 bits.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NUMBER = st.integers(-(2**63) + 1, 2**63 - 1)


@given(st.lists(TEXT | NUMBER))
def test_cursors_keep_what_they_hold(position: list[Any]) -> None:
    """They need no escaping in a URL."""
    cursor = cursors.encode(*position)
    assert cursors.decode(cursor, [type(value) for value in position]) == position
    assert all(character.isalnum() or character in "-_" for character in cursor)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | TEXT | NUMBER, st.lists).map(cursors.encode))
def test_no_cursor_of_others_breaks_anything(cursor: str) -> None:
    """Either it holds what is expected, or it is a BadCursor."""
    try:
        text, number = cursors.decode(cursor, (str, int))
    except BadCursor:
        return
    assert (type(text), type(number)) == (str, int)


@pytest.mark.parametrize("value", ["\0", "\ud800", 2**63, -(2**63), 10**30, True])
def test_cursors_hold_nothing_that_a_database_refuses(value: Any) -> None:
    """JSON can express more than a column holds."""
    with pytest.raises(BadCursor):
        cursors.decode(cursors.encode(value), (type(value) if value is not True else int,))


@pytest.mark.parametrize(
    ("url", "is_public"),
    [
        ("https://example.com/0.tar", True),
        ("http://example.com:8080/0.tar", True),
        ("https://93.184.216.34/", True),
        ("https://[2606:2800:220:1::]/", True),
        ("https://localhost/", False),
        ("https://LOCALHOST./", False),
        ("https://db/", False),
        ("https://printer.local/", False),
        ("https://metadata.internal/", False),
        ("https://x.localhost/", False),
        ("http://127.0.0.1/", False),
        ("http://127.1/", False),
        ("http://0x7f000001/", False),
        ("http://2130706433/", False),
        ("http://0177.0.0.1/", False),
        ("http://１２７.0.0.1/", False),
        ("http://10.0.0.1./", False),
        ("http://[::1]/", False),
        ("http://[::ffff:10.0.0.1]/", False),
        ("http://[fe80::1%25eth0]/", False),
        ("http://user@127.0.0.1/", False),
        ("http://169.254.169.254/latest", False),
        ("http://[::1/", False),
        ("http://127.0.0.1\\@example.com/", False),
        ("http://%31%32%37.0.0.1/", False),
        ("http://127.0.0.1\xad/", False),
        ("http://169.254.169.254\u200b/", False),
        ("http://1.2.3.4\r\nX: y/", False),
        ("http://nas.lan/", False),
        ("http://nas.home.arpa/", False),
        ("https://bücher.example/", True),
        ("http:///x", False),
        ("https://", False),
    ],
)
def test_hosts_of_private_networks(url: str, is_public: bool) -> None:
    """Addresses in every spelling that resolvers read, and names that no public server has."""
    assert is_public_url(url) is is_public


@given(st.text())
def test_any_url_is_public_or_not(url: str) -> None:
    """Nothing that a record may hold for a URL fails."""
    assert is_public_url(url) in (True, False)
    assert is_public_url(f"http://{url}") in (True, False)


@given(st.text())
def test_any_text_is_a_name_or_not(text: str) -> None:
    """What is none is a ValueError; what is one has a publisher and a name."""
    try:
        name = Name.parse(text)
    except ValueError:
        return
    assert name.publisher
    assert name.name


@given(st.text(), st.lists(st.text(), max_size=50))
def test_alternatives_fit_a_message(name: str, names: list[str]) -> None:
    """However many and long the names are."""
    assert len(alternatives(name, names)) < 2000
    assert alternatives(name, []) == ""


@pytest.mark.parametrize("module", [cursors, naming, shards, signatures])
def test_examples_in_docstrings_are_true(module: Any) -> None:
    """They run as they stand."""
    assert doctest.testmod(module).failed == 0
