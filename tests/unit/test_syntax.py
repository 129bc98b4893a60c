"""What the checks of identifier syntax accept and refuse, and what makes a TID a TID."""

import doctest
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from conformance import shared_folder
from hypothesis import given
from hypothesis import strategies as st

from atdata import syntax

# The names that the interoperability files use, where they differ from the lexicon language's.
FORMAT_OF_FILE = {"atidentifier": "at-identifier", "aturi": "at-uri", "recordkey": "record-key"}


def cases(name: str) -> list[str]:
    """The lines of an interoperability file, with the white space that is part of the case."""
    text = (shared_folder() / "conformance/atproto-interop-tests/syntax" / f"{name}.txt").read_text(encoding="utf-8")
    found = [line for line in text.split("\n") if line and not line.startswith("#")]
    assert found
    return found


@pytest.mark.parametrize("format_", sorted(syntax.FORMATS))
def test_interoperability_valid(format_):
    """Every string that the protocol's own tests call valid is valid."""
    name = {format_: file for file, format_ in FORMAT_OF_FILE.items()}.get(format_, format_)
    assert [case for case in cases(f"{name}_syntax_valid") if not syntax.FORMATS[format_](case)] == []


@pytest.mark.parametrize("format_", sorted(syntax.FORMATS))
def test_interoperability_invalid(format_):
    """Every string that the protocol's own tests call invalid is invalid."""
    name = {format_: file for file, format_ in FORMAT_OF_FILE.items()}.get(format_, format_)
    assert [case for case in cases(f"{name}_syntax_invalid") if syntax.FORMATS[format_](case)] == []


@pytest.mark.parametrize("format_", ["datetime", "language"])
def test_interoperability_parse_invalid(format_):
    """What is well-formed and yet no date, or no language tag, is invalid as well."""
    assert [case for case in cases(f"{format_}_parse_invalid") if syntax.FORMATS[format_](case)] == []


def test_every_interoperability_file_is_used():
    """No format with test cases is left without a check."""
    folder = shared_folder() / "conformance/atproto-interop-tests/syntax"
    names = {path.name.split("_")[0] for path in folder.glob("*.txt")}
    assert {FORMAT_OF_FILE.get(name, name) for name in names} == set(syntax.FORMATS)


@given(st.sampled_from(sorted(syntax.FORMATS)), st.text())
def test_checks_never_raise(format_, text):
    """A check answers True or False to any string, and never lets a line end slip by."""
    assert syntax.FORMATS[format_](text) in (True, False)
    assert not syntax.FORMATS[format_](text + "\n")


@pytest.mark.parametrize(
    ("format_", "longest", "too_long"),
    [
        ("did", "did:a:" + "a" * 2042, "did:a:" + "a" * 2043),
        ("handle", "a." * 126 + "a", "a." * 126 + "aa"),
        ("nsid", "a." * 127 + "a" * 63, "a." * 128 + "a" * 62),
        ("record-key", "a" * 512, "a" * 513),
        ("at-uri", f"at://did:a:{'a' * 2042}/a.b.c/d", f"at://did:a:{'a' * 2043}/a.b.c/d"),
        ("uri", "a:" + "a" * 8190, "a:" + "a" * 8191),
    ],
)
def test_length_limits(format_, longest, too_long):
    """Each format has the length limit of its specification, to the character."""
    assert syntax.FORMATS[format_](longest)
    assert not syntax.FORMATS[format_](too_long)


@pytest.mark.parametrize(
    ("version", "is_valid"),
    [
        ("0.0.0", True),
        ("1.2.3", True),
        ("10.20.30-rc.1+build.5", True),
        ("1.0.0--", True),
        ("1.0.0+001", True),
        ("1.0.0-0a", True),
        ("1.0", False),
        ("v1.0.0", False),
        ("01.0.0", False),
        ("1.0.0-01", False),
        ("1.0.0-", False),
        ("1.0.0+", False),
        ("1.0.0 ", False),
        ("١.0.0", False),
        ("", False),
    ],
)
def test_semver(version, is_valid):
    """Versions are semantic versions 2.0, to the letter."""
    assert syntax.is_semver(version) is is_valid


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1985-04-12T23:20:50.123Z", datetime(1985, 4, 12, 23, 20, 50, 123000, UTC)),
        ("1985-04-12T23:20:50Z", datetime(1985, 4, 12, 23, 20, 50, 0, UTC)),
        ("1985-04-12T23:20:50.12345678901234567890Z", datetime(1985, 4, 12, 23, 20, 50, 123456, UTC)),
        ("1985-04-12T23:20:50+01:45", datetime(1985, 4, 12, 21, 35, 50, 0, UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_parse_datetime(text, moment):
    """A datetime is read into UTC, whatever its offset and precision."""
    parsed = syntax.parse_datetime(text)
    assert parsed == moment
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "1985-04-12",
        "1985-02-29T00:00:00Z",
        "1985-04-12T24:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "1985-04-12T23:20:50Z\n",
        "x" * 100_000,
    ],
)
def test_parse_datetime_refuses(text):
    """What names no instant that Python knows is refused, in a message that stays short."""
    with pytest.raises(ValueError, match="is not a datetime such as") as caught:
        syntax.parse_datetime(text)
    assert len(str(caught.value)) < 200


@given(st.datetimes(timezones=st.just(UTC)))
def test_format_datetime_round_trip(moment):
    """A datetime that is written is valid, ends in Z, and reads back as the same instant."""
    text = syntax.format_datetime(moment)
    assert syntax.is_datetime(text)
    assert text.endswith("Z")
    assert syntax.parse_datetime(text) == moment


def test_format_datetime():
    """Other time zones become UTC, milliseconds are always there, and a datetime without a time zone is refused."""
    moment = datetime(2024, 2, 29, 13, 0, 0, 120000, timezone(timedelta(hours=1)))
    assert syntax.format_datetime(moment) == "2024-02-29T12:00:00.120Z"
    with pytest.raises(ValueError, match="has no time zone"):
        syntax.format_datetime(datetime(2024, 2, 29))


def test_tids_are_valid_and_sort_by_age():
    """Each new TID is a TID, and greater than the one before."""
    tids = [syntax.new_tid() for _ in range(5000)]
    assert all(map(syntax.is_tid, tids))
    assert tids == sorted(set(tids))


def test_tids_sort_when_the_clock_is_set_back(monkeypatch):
    """A clock that stands still, or jumps back, does not make TIDs go back or repeat."""
    clock = iter([2_000_000_000_000_000_000, 2_000_000_000_000_000_000, 1_000_000_000_000_000_000, 0])
    monkeypatch.setattr(syntax, "_last_tid_time", 0)
    monkeypatch.setattr(syntax.time, "time_ns", lambda: next(clock))
    tids = [syntax.new_tid() for _ in range(4)]
    assert tids == sorted(set(tids))


def test_tid_tells_its_time(monkeypatch):
    """The first 53 bits of a TID are the microseconds since 1970."""
    monkeypatch.setattr(syntax, "_last_tid_time", 0)
    monkeypatch.setattr(syntax.time, "time_ns", lambda: 1_700_000_000_123_456_789)
    number = 0
    for character in syntax.new_tid():
        number = number * 32 + "234567abcdefghijklmnopqrstuvwxyz".index(character)
    assert number >> 10 == 1_700_000_000_123_456


def test_tids_of_threads_do_not_collide():
    """Threads that make TIDs at the same time make different ones."""
    tids: list[str] = []
    threads = [threading.Thread(target=lambda: tids.extend([syntax.new_tid() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tids)) == 8000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes fork on POSIX only")
def test_tids_of_a_moment():
    """TIDs made before a moment sort before it, those made afterwards behind it."""
    now = datetime.now(UTC)
    assert syntax.tid_at(now - timedelta(seconds=1)) < syntax.new_tid() < syntax.tid_at(now + timedelta(minutes=1))
    assert syntax.is_tid(syntax.tid_at(now))
    assert syntax.tid_at(datetime(1970, 1, 1, tzinfo=UTC)) == "2" * 13


def test_tids_of_forked_processes_do_not_collide():
    """Forked processes make different TIDs even in the same microsecond, and while their parent holds the lock."""
    program = """
import os, sys
from atdata import syntax
syntax.time.time_ns = lambda: 10**18
syntax.new_tid()
syntax._tid_lock.acquire()
for _ in range(3):
    if os.fork() == 0:
        os.write(1, "".join(syntax.new_tid() + "\\n" for _ in range(100)).encode())
        os._exit(0)
for _ in range(3):
    os.wait()
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    tids = answer.stdout.split()
    assert len(tids) == len(set(tids)) == 300


def test_examples():
    """The examples in the documentation are true."""
    results = doctest.testmod(syntax)
    assert results.attempted > 0
    assert results.failed == 0
