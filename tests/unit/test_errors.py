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
