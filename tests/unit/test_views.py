"""Answers of an AppView, read: whatever stands in them, a value or a NetworkError, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import answers
import pytest
from answers import ALICE, hop, lens, path, view
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import Digit, Labelled

from atdata.errors import AtdataError, NetworkError
from atdata.nsid import DATASET, SAMPLE_SCHEMA
from atdata.views import (
    AccountChange,
    DatasetView,
    LabelView,
    LensGraph,
    LensPaths,
    LensView,
    Part,
    PublisherView,
    RecordChange,
    SchemaView,
    Shard,
    Status,
    StreamInfo,
    read_structure,
)

URI = f"at://{ALICE}/{DATASET}/x"
SCHEMA_URI = f"at://{ALICE}/{SAMPLE_SCHEMA}/x"
LENS = lens("simplify", SCHEMA_URI, SCHEMA_URI, "a.py:simplify")
PATH = path(hop(Digit, Labelled, LENS), hop(Labelled, Labelled))
EDGE = {"kind": "lens", "from": "a", "to": "a", "hasPutter": True, "lens": URI, "name": "n"}
COUNTS = dict.fromkeys(("datasets", "schemas", "lenses", "labels"), 1)
AT = {"seq": 1, "time": answers.TIME, "did": ALICE}

GOOD: dict[str, tuple[Callable[[Part], Any], Any]] = {
    "dataset": (
        DatasetView.read,
        view(
            answers.dataset(),
            highlights={"name": "<mark>a</mark>"},
            path=PATH,
            similarity={"sharedTags": ["a"], "sameStructure": True},
        ),
    ),
    "schema": (SchemaView.read, view(answers.schema(Digit), highlights={"name": "x"})),
    "lens": (LensView.read, view(LENS, missing=[URI])),
    "label": (LabelView.read, view(answers.label("x", URI, "1"))),
    "paths": (LensPaths.read, answers.paths(PATH)),
    "graph": (
        LensGraph.read,
        {"root": "a", "nodes": [answers.paths()["from"]], "edges": [EDGE], "truncated": False},
    ),
    "publisher": (
        PublisherView.read,
        {"did": ALICE, "handle": "a.test", "firstSeenAt": answers.TIME, "lastIndexedAt": answers.TIME, **COUNTS},
    ),
    "shard": (
        Shard.read,
        {"url": "https://x", "cid": "b", "size": 1, "checksum": {"algorithm": "sha256", "digest": "00"}},
    ),
    "status": (Status.read, {"version": "1", "records": {"dataset": 1}, "searchDocuments": 1, "backlog": 0}),
    "structure": (read_structure, {"fingerprint": "x", "fields": [{"name": "a", "type": "int", "optional": False}]}),
    "record change": (
        RecordChange.read,
        {**AT, "uri": URI, "kind": "dataset", "action": "create", "cid": "b", "record": {"a": 1}, "verified": True},
    ),
    "account change": (AccountChange.read, {**AT, "active": False, "status": "deleted"}),
    "info": (StreamInfo.read, {"name": "OutdatedCursor", "message": "x"}),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in *value* that something else can be put at."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    changed = copy.deepcopy(value)
    target = changed
    for key in at[:-1]:
        target = target[key]
    target[at[-1]] = new
    return changed


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([URI, ALICE, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", GOOD)
def test_good_answers_are_read_and_shown(name: str) -> None:
    """Each shape, whole."""
    read, answer = GOOD[name]
    value = read(Part(answer, "here"))
    assert repr(value)
    hash(value)
    if hasattr(value, "_repr_html_"):
        assert "<table>" in value._repr_html_()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_stands_in_an_answer(data: st.DataObject) -> None:
    """It is read, and then can be looked at and checked, or it is a NetworkError that says where."""
    read, answer = GOOD[data.draw(st.sampled_from(sorted(GOOD)))]
    changed = put(answer, data.draw(st.sampled_from(places(answer))), data.draw(JSON))
    try:
        value = read(Part(changed, "here"))
    except NetworkError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert said.startswith("here")
        return
    assert isinstance(repr(value), str)
    for name in dir(type(value)):
        if isinstance(getattr(type(value), name), property):
            try:
                getattr(value, name)
            except AtdataError:
                assert name == "structure"  # which says so
    if hasattr(value, "_repr_html_"):
        assert isinstance(value._repr_html_(), str)
    if hasattr(value, "check"):
        with suppress(NetworkError):
            assert value.check() is value


@pytest.mark.parametrize(
    ("name", "type_"), [("a", "array<" * 100_000 + "str" + ">" * 100_000), ("\ud800", "str"), ("a", "\udfff")]
)
def test_a_structure_that_no_schema_has(name: str, type_: str) -> None:
    """Arrays without end and halves of characters are an AppView's mistake, told as any other."""
    part = Part({"fields": [{"name": name, "type": type_, "optional": False}]}, "compareSchemas")
    with pytest.raises(NetworkError, match=r"arrays within|half a character"):
        read_structure(part)
