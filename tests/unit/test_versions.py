"""Versions: which of them a range holds, and which is the newest."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atdata.syntax import is_semver
from atdata_appview.versions import SchemaVersion, in_range


def named(*versions: str) -> list[SchemaVersion]:
    return [SchemaVersion(f"at://did:plc:abc/x/{i}", version) for i, version in enumerate(versions)]


def matching(versions: list[str], text: str) -> list[str]:
    return [one.version for one in in_range(named(*versions), text).matching]


HELD = ["1.9.0", "0.2.1", "1.10.0", "2.0.0-rc.1", "1.2.3", "2.0.0-beta.11", "2.0.0-beta.2", "0.2.0", "1.2.0", "2.1.0"]

# What npm's own implementation (semver 7) makes of them.
RANGES = [
    ("*", ["2.1.0", "1.10.0", "1.9.0", "1.2.3", "1.2.0", "0.2.1", "0.2.0"]),
    ("", ["2.1.0", "1.10.0", "1.9.0", "1.2.3", "1.2.0", "0.2.1", "0.2.0"]),
    ("^1.2", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    ("^1.2.1", ["1.10.0", "1.9.0", "1.2.3"]),
    ("^0.2", ["0.2.1", "0.2.0"]),
    ("^0.2.1", ["0.2.1"]),
    ("^0", ["0.2.1", "0.2.0"]),
    ("~1.2", ["1.2.3", "1.2.0"]),
    ("~1", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    ("1", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    ("1.x", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    ("1.2.x", ["1.2.3", "1.2.0"]),
    ("1.2.0", ["1.2.0"]),
    ("=1.2.0", ["1.2.0"]),
    ("v1.2.0", ["1.2.0"]),
    (">=1.0 <2", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    (">= 1.0, < 2", ["1.10.0", "1.9.0", "1.2.3", "1.2.0"]),
    ("1.2 - 1.9", ["1.9.0", "1.2.3", "1.2.0"]),
    ("^0.2 || ~1.9", ["1.9.0", "0.2.1", "0.2.0"]),
    (">1.10.0", ["2.1.0"]),
    ("2.0.0-rc.1", ["2.0.0-rc.1"]),
    (">=2.0.0-0", ["2.1.0", "2.0.0-rc.1", "2.0.0-beta.11", "2.0.0-beta.2"]),
    ("~2.0.0-beta.3", ["2.0.0-rc.1", "2.0.0-beta.11"]),
    ("^3", []),
    ("<0", []),
]


@pytest.mark.parametrize(("text", "versions"), RANGES)
def test_ranges(text, versions):
    """A range holds what npm's does, the newest first: numbers are compared as numbers, prereleases are asked for."""
    assert matching(HELD, text) == versions


@pytest.mark.parametrize(
    "text",
    [
        "latest",
        "1.2.3.4",
        "01.2.3",
        "^",
        ">>1",
        "a.b.c",
        "^^1",
        "!1",
        "1.2.3-",
        "٣.1.1",
        "é",
        "\x00",
        "1" * 257 + "x",
        "9||" * 85,
        ">=0 " * 60,
    ],
)
def test_what_is_no_range_is_an_error(text):
    """What is no range is an error that says how they are written."""
    with pytest.raises(ValueError, match=r"is no range of semantic versions; write 1\.2\.0"):
        in_range(named("1.0.0"), text)


# https://semver.org/#spec-item-11
PRECEDENCE = [
    "1.0.0-1", "1.0.0-2", "1.0.0-11", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
    "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.1.0", "1.9.0", "1.10.0", "2.0.0",
]  # fmt: skip


def test_precedence_is_that_of_the_specification():
    """Any two versions are ordered as the specification says."""
    for one, other in itertools.combinations(PRECEDENCE, 2):
        assert [found.version for found in in_range(named(one, other), "^9").others] == [other, one]


def test_build_metadata_orders_nothing():
    """Versions that differ in it are equal: the first stays first, unless the range says another one in full."""
    held = ["1.0.0+b", "1.0.0+a", "1.0.0"]
    assert matching(held, "^1") == held
    assert matching(held, "1.0.0+a") == ["1.0.0+a", "1.0.0+b", "1.0.0"]
    assert matching(held, "1.0.0") == ["1.0.0", "1.0.0+b", "1.0.0+a"]


def test_what_is_no_version_is_set_aside():
    """Versions that are none have no place in any range, and those outside of a range are told apart from them."""
    odd = ["", "1", "1.0", "one", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0 ", "9" * 5000 + ".0.0", f"1.0.0-{'a' * 251}"]
    found = in_range(named("1.0.0", *odd, "2.0.0"), "1")
    assert [one.version for one in found.matching] == ["1.0.0"]
    assert [one.version for one in found.others] == ["2.0.0"]
    assert [one.version for one in found.ignored] == odd


numbers = st.integers(0, 3).map(str)
prereleases = st.lists(numbers | st.sampled_from(["a", "b", "rc"]), min_size=1, max_size=3).map(".".join)
versions = st.one_of(
    st.tuples(numbers, numbers, numbers).map(".".join),
    st.tuples(st.tuples(numbers, numbers, numbers).map(".".join), prereleases).map("-".join),
    st.from_regex(r"\A(?:[0-9]{1,3}|[a-z])\.[0-9]{1,2}\.[0-9]{1,2}(?:[-+][0-9a-z.-]{1,5})?\Z"),
)


@given(st.lists(versions, max_size=8), st.text("0123.xX*^~<>=| -va,", max_size=12))
def test_every_version_is_in_one_place(held, text):
    """Whatever the versions and the range, it is no range or each version is in it, outside of it, or none."""
    try:
        found = in_range(named(*held), text)
    except ValueError:
        return
    assert sorted(one.uri for one in (*found.matching, *found.others, *found.ignored)) == [
        one.uri for one in named(*held)
    ]
    assert all(is_semver(one.version) for one in (*found.matching, *found.others))
    assert not any(is_semver(one.version) for one in found.ignored)


@given(st.lists(versions, min_size=1, max_size=8))
def test_an_exact_version_finds_itself(held):
    """A version is the first of the range that is itself."""
    for version in filter(is_semver, held):
        assert matching(held, version)[0] == version
