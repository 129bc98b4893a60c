"""The tree of errors: drawn as it is, and able to travel between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from atdata import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_the_tree_is_drawn_as_it_is():
    """Each class stands in the module's drawing, below its parent, with what else it can be caught as."""
    drawn: dict[str, tuple[str | None, str]] = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+(?:Error))\s+(.*)", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            drawn[match[2]] = (above[depth - 1] if depth else None, match[3])
    assert set(drawn) == set(errors.__all__)
    for error in CLASSES:
        parent, text = drawn[error.__name__]
        assert parent is None or error.__bases__[0].__name__ == parent
        for base in error.__bases__[1:]:
            assert f"also {base.__name__}" in text


@pytest.mark.parametrize("error", CLASSES)
def test_errors_survive_pickling(error):
    """An error arrives from a worker process with its class, its message and its attributes."""
    raised = error("train-0.tar", "is odd") if issubclass(error, errors.ShardError) else error("is odd")
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is error
    assert str(again) == str(raised)
    assert again.__dict__ == raised.__dict__


def test_places_within_places():
    """A field within a field, and the shard and key around it, make one path."""
    inner = errors.SampleError("odd").inside("label").inside("[3]").inside("items").inside("outer")
    assert str(inner.located("s.tar", "000001")) == "s.tar: sample 000001: field outer.items[3].label: odd"
    missing = errors.MissingShardError("s.tar", "there is nothing")
    assert (str(missing), missing.filename) == ("s.tar: there is nothing", "s.tar")
    assert str(errors.UnknownShardError("s.tar", "is not listed")) == "s.tar: is not listed"


SECRETS = [
    ("http://user:hunter2@example.com/0.tar", "http://…@example.com/0.tar"),
    ("no https://hunter2@h: x, https://u:p@ss@h/a@b", "no https://…@h: x, https://…@h/a@b"),
    ("s3://u:hunter2@b/k", "s3://…@b/k"),
    (
        "https://b/k?X-Amz-Credential=hunter2%2F1&X-Amz-Expires=60&X-Amz-Signature=hunter2",
        "https://b/k?X-Amz-Credential=…&X-Amz-Expires=60&X-Amz-Signature=…",
    ),
    ("https://b/k?sv=1&sig=hunter2%3D&se=2: 403", "https://b/k?sv=1&sig=…&se=2: 403"),
    ("https://b/k?GoogleAccessId=a&Signature=hunter2: 403", "https://b/k?GoogleAccessId=a&Signature=…: 403"),
    ("'https://b/k?access_token=hunter2', 'x'", "'https://b/k?access_token=…', 'x'"),
    ("https://b/k?api_key=hunter2#token=hunter2", "https://b/k?api_key=…#token=…"),
    ("https://pds/xrpc/getBlob?did=did:plc:abc&cid=bafk", "https://pds/xrpc/getBlob?did=did:plc:abc&cid=bafk"),
    ("at://did:plc:abc/blob/bafk: design=1 @ x?author=me", "at://did:plc:abc/blob/bafk: design=1 @ x?author=me"),
]


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_errors_repeat_no_password(text, expected):
    """Whatever error a URL gets into, its user information and its signatures do not; all else stays."""
    assert errors.redacted(text) == expected
    for error in CLASSES:
        raised = error(text, text) if issubclass(error, errors.ShardError) else error(text)
        for shown in (str(raised), repr(raised), str(raised.__dict__)):
            assert "hunter2" not in shown
        assert expected in str(raised)
    assert errors.SampleError("odd").located(text, "k").shard == expected


@pytest.mark.parametrize("control", ["\x1b[2J", "\x1b]52;c;aGk=\x07", "\r", "\x9b31m", "\x7f", "\x00"])
def test_errors_have_nothing_that_a_terminal_obeys(control):
    """A stranger's words in an error move no cursor and write no clipboard; lines and tabs stay."""
    shown = str(errors.NetworkError(f"400: a{control}b\n\tc"))
    assert not any(c in shown for c in "\x1b\x07\r\x9b\x7f\x00")
    assert shown.endswith("b\n\tc")


def test_long_texts_are_redacted_in_no_time():
    """Texts of strangers, made to take long, do not."""
    for piece in ("?", "//", "?a", "#token", "&auth", "?authauth", ";a"):
        assert errors.redacted(piece * 100_000)
