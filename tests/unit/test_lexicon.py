"""What lexicons say of records and query parameters, right ones, wrong ones and hostile ones."""

import doctest
import json
import re
from importlib.resources import files

import pytest
from conformance import shared_folder
from hypothesis import given
from hypothesis import strategies as st

from atdata import lexicon, nsid
from atdata.errors import LexiconError
from atdata.lexicon import MAX_PROBLEMS, Lexicons, Problem, load_lexicons

CID = "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq"
FAMILY = "👩‍👩‍👦‍👦"  # one grapheme of 7 code points and 25 bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.sampled_from(["$type", "$bytes", "$link", "ref", "size"]), inner)
    ),
    max_leaves=10,
)


def interoperability(name: str):
    return json.loads((shared_folder() / "conformance/atproto-interop-tests/lexicon" / name).read_text("utf-8"))


def catalog() -> Lexicons:
    folder = shared_folder() / "conformance/atproto-interop-tests/lexicon/catalog"
    return Lexicons.from_documents(json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json")))


def document(main, id_="com.example.thing", **definitions):
    return {"lexicon": 1, "id": id_, "defs": {"main": main, **definitions}}


def record_of(schema, **definitions):
    """Lexicons with one record, `com.example.thing`, whose member `x` has *schema*."""
    body = {"type": "object", "properties": {"x": schema}}
    return Lexicons.from_documents([document({"type": "record", "key": "any", "record": body}, **definitions)])


def problems_of(schema, value, **definitions):
    record = {"$type": "com.example.thing", "x": value}
    return [str(problem) for problem in record_of(schema, **definitions).validate_record("com.example.thing", record)]


def nested(depth, value, wrap):
    for _ in range(depth):
        value = wrap(value)
    return value


# --- The protocol's own tests


def test_interoperability_valid_records():
    """Every record that the protocol's own tests call valid has no problem."""
    lexicons = catalog()
    for case in interoperability("record-data-valid.json"):
        assert lexicons.validate_record("example.lexicon.record", case["data"], case["rkey"]) == (), case["name"]


def test_interoperability_invalid_records():
    """Every record that the protocol's own tests call invalid has a problem, at the place where it was put."""
    lexicons = catalog()
    for case in interoperability("record-data-invalid.json"):
        problems = lexicons.validate_record("example.lexicon.record", case["data"], case["rkey"])
        places = {re.split(r"[.\[]", problem.path)[0] for problem in problems}
        wrong = {name for name in case["data"] if name not in ("$type", "integer")} or {"integer"}
        assert wrong <= places, case["name"]


def test_interoperability_valid_lexicons():
    """Every lexicon that the protocol's own tests call valid compiles."""
    for case in interoperability("lexicon-valid.json"):
        assert Lexicons.from_documents([case["lexicon"]]).documents, case["name"]


def test_interoperability_invalid_lexicons():
    """Every lexicon that the protocol's own tests call invalid is refused."""
    for case in interoperability("lexicon-invalid.json"):
        with pytest.raises(LexiconError):
            Lexicons.from_documents([case["lexicon"]])


# --- This package's lexicons


def test_packaged_lexicons_stand_at_their_nsid():
    """Each document of the package lies at the path that its NSID says, and is loaded."""
    folder = files("atdata") / "lexicons"
    documents = load_lexicons().documents
    for id_ in documents:
        assert json.loads(folder.joinpath(*id_.split(".")[:-1], id_.split(".")[-1] + ".json").read_text())["id"] == id_
    assert {nsid.SAMPLE_SCHEMA, nsid.SCHEMA, nsid.DATASET, nsid.LENS, nsid.LABEL} <= set(documents)
    assert {nsid.STORAGE_EXTERNAL, nsid.STORAGE_BLOBS, nsid.STORAGE_HTTP, nsid.STORAGE_S3} <= set(documents)
    assert load_lexicons() is load_lexicons()


def references(schema):
    if isinstance(schema, dict):
        if schema.get("type") in ("ref", "union"):
            yield from schema.get("refs") or [schema["ref"]]
        for value in schema.values():
            yield from references(value)


def test_packaged_references_lead_somewhere():
    """No document of the package refers to a definition that the package does not have."""
    lexicons = load_lexicons()
    for id_, found in lexicons.documents.items():
        for reference in references(found["defs"]):
            target = id_ + reference if reference.startswith("#") else reference
            assert lexicons.definition(target) is not None, f"{id_} refers to {reference}"


def test_packaged_unions_are_open():
    """No union is closed, so that a kind of storage or field which comes later is no problem."""
    record = {
        "$type": nsid.DATASET,
        "name": "digits",
        "schemaRef": "at://did:plc:abc/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a",
        "storage": {"$type": "com.example.storageTape", "reel": 5},
        "createdAt": "2026-01-02T00:00:00.000Z",
        "comesLater": {"a": [1]},
    }
    assert load_lexicons().validate_record(nsid.DATASET, record, "3jzfcijpj2z2a") == ()


@pytest.mark.parametrize(
    ("collection", "rkey", "is_right"),
    [
        (nsid.SAMPLE_SCHEMA, "3jzfcijpj2z2a", True),
        (nsid.SAMPLE_SCHEMA, "com.example.Sample", True),
        (nsid.SAMPLE_SCHEMA, "not/a/key", False),
        (nsid.DATASET, "3jzfcijpj2z2a", True),
        (nsid.DATASET, "my-dataset", False),
        (nsid.LABEL, "latest", False),
    ],
)
def test_packaged_record_keys(collection, rkey, is_right):
    """Schemas take any record key, the other records a TID."""
    keys = [str(p) for p in load_lexicons().validate_record(collection, {"$type": collection}, rkey) if not p.path]
    assert bool(keys) is not is_right


# --- Records


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "null"}, [None], [0, False, {}]),
        ({"type": "boolean"}, [True, False], [0, 1, "true", None]),
        ({"type": "boolean", "const": True}, [True], [False]),
        ({"type": "integer"}, [0, -5, 2**63 - 1, -(2**63)], [True, 1.0, "1", None, 2**63, -(2**63) - 1, 10**5000]),
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3], [0, 4]),
        ({"type": "integer", "enum": [1, 3]}, [1, 3], [2]),
        ({"type": "string"}, ["", "x" * 100_000, "a\x00b"], [1, None, ["x"], "\ud800", "x\udfff"]),
        ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "é", "éé", "😀"], ["a", "abcde", "ééé", "😀a"]),
        (
            {"type": "string", "minGraphemes": 2, "maxGraphemes": 3},
            ["ab", FAMILY * 2, FAMILY * 3, "e\u0301" * 3, "\r\n" * 3, "a\r\n"],
            ["", "a", FAMILY, "\r\n", "abcd", FAMILY * 4, "\r\n" * 4],
        ),
        ({"type": "string", "minGraphemes": 1}, ["a", "\r\n", "é", FAMILY], [""]),
        ({"type": "string", "enum": ["a", "b"]}, ["a"], ["c", ""]),
        ({"type": "string", "const": "a"}, ["a"], ["b"]),
        ({"type": "string", "knownValues": ["a"]}, ["a", "b", ""], [1]),
        ({"type": "string", "format": "did"}, ["did:plc:abc"], ["abc", "\ud800"]),
        ({"type": "bytes"}, [{"$bytes": ""}, {"$bytes": "AA"}, {"$bytes": "AA=="}], ["AA", {}, {"$bytes": 1}]),
        ({"type": "bytes"}, [], [{"$bytes": "A"}, {"$bytes": "!"}, {"$bytes": "AA", "x": 1}, {"$bytes": "A" * 5}]),
        ({"type": "bytes", "minLength": 1, "maxLength": 2}, [{"$bytes": "AAA"}], [{"$bytes": ""}, {"$bytes": "AAAA"}]),
        ({"type": "cid-link"}, [{"$link": CID}], [CID, {"$link": "."}, {"$link": 1}, {"$link": CID, "x": 1}]),
        ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2]], [(1,), ["a"], {}, None, [[1]]]),
        ({"type": "array", "items": {"type": "integer"}, "minLength": 1, "maxLength": 2}, [[1]], [[], [1, 2, 3]]),
        ({"type": "unknown"}, [{}, {"a": [1, {"b": None}]}, {"$type": "a.b.c"}], [1, [], None, {"$bytes": "AA"}]),
        ({"type": "unknown"}, [], [{"a": 1.5}, {"a": {"$type": 1}}, {"a": {1: 2}}, {"a": 2**63}, {"a": b"x"}]),
        ({"type": "unknown"}, [], [{"$link": CID}, {"$type": "blob"}, {"a": "\ud800"}, {"\ud800": 1}]),
        ({"type": "object", "properties": {}}, [{}, {"other": 1}], [[], None, {"other": 1.5}, {1: 2}]),
        (
            {
                "type": "object",
                "required": ["a"],
                "nullable": ["a"],
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
            [{"a": 1}, {"a": None}, {"a": 1, "b": 2}],
            [{}, {"b": 1}, {"a": 1, "b": None}],
        ),
        ({"type": "token", "description": "itself"}, [], ["com.example.thing#other", 1, None]),
    ],
)
def test_types(schema, right, wrong):
    """Each type of the lexicon language takes the values that it should, and no others."""
    assert [value for value in right if problems_of(schema, value)] == []
    assert [value for value in wrong if not problems_of(schema, value)] == []


def blob(mime_type="image/png", size=10, **more):
    return {"$type": "blob", "ref": {"$link": CID}, "mimeType": mime_type, "size": size, **more}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (blob(), None),
        (blob("text/csv"), None),
        (blob("text/plain"), "x.mimeType: must be one of 'image/*', 'text/csv' (is 'text/plain')"),
        (blob(size=100), None),
        (blob(size=101), "x.size: must be at most 100 bytes (is 101)"),
        (blob(size=-1), "x.size: must be a number of bytes, not -1"),
        (blob(size="1"), "x.size: must be a number of bytes, not '1'"),
        (blob(mime_type=None), "x.mimeType: must be a string, not null"),
        (blob(ref=CID), 'x.ref: must be a link such as {"$link": CID}'),
        ({"cid": CID, "mimeType": "image/png"}, "x: must be a blob, not an object"),
        ({"$link": CID}, "x: must be a blob, not a link"),
    ],
)
def test_blobs(value, problem):
    """A blob has a link, a type that is accepted, and a size within the limit; each failure is named."""
    schema = {"type": "blob", "accept": ["image/*", "text/csv"], "maxSize": 100}
    assert problems_of(schema, value) == ([problem] if problem else [])


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize(
    ("value", "open_problem", "closed_problem"),
    [
        ({"$type": "com.example.thing#a", "n": 1}, None, None),
        ({"$type": "com.example.other", "n": 1}, None, None),
        ({"$type": "com.example.other#main", "n": 1}, None, None),
        ({"$type": "com.example.thing#a", "n": "1"}, "x.n: must be an integer", "x.n: must be an integer"),
        ({"$type": "com.example.new", "n": "1"}, None, "x.$type: must be one of"),
        ({"$type": "com.example.new", "n": 0.5}, "x: must not hold a fraction", "x.$type: must be one of"),
        ({"n": 1}, "x: must be an object with a $type, not an object", "x: must be an object with a $type"),
        ({"$type": ""}, "x: must be an object with a $type", "x: must be an object with a $type"),
        ({"$type": ["a"]}, "x: must be an object with a $type", "x: must be an object with a $type"),
        ("a", "x: must be an object with a $type, not a string", "x: must be an object with a $type"),
    ],
)
def test_unions(is_closed, value, open_problem, closed_problem):
    """A union goes by `$type`; an open one takes types that it does not list, a closed one does not."""
    number = {"type": "object", "properties": {"n": {"type": "integer"}}}
    union = {"type": "union", "refs": ["#a", "com.example.other"], "closed": is_closed}
    record = {"type": "record", "key": "any", "record": {"type": "object", "properties": {"x": union}}}
    lexicons = Lexicons.from_documents([document(record, a=number), document(number, "com.example.other")])
    found = lexicons.validate_record("com.example.thing", {"$type": "com.example.thing", "x": value})
    expected = closed_problem if is_closed else open_problem
    assert bool(found) is bool(expected)
    assert str([*found, ""][0]).startswith(expected or "")


def test_tokens():
    """A token is named in full."""
    schema = {"type": "ref", "ref": "#fish"}
    assert problems_of(schema, "com.example.thing#fish", fish={"type": "token"}) == []
    assert problems_of(schema, "com.example.thing#bird", fish={"type": "token"}) == [
        "x: must be the token com.example.thing#fish"
    ]


def test_references_to_unknown_documents_take_anything():
    """Where a document is not at hand, its part of a record is not judged, beyond the data model."""
    schema = {"type": "ref", "ref": "com.example.elsewhere#thing"}
    assert problems_of(schema, {"a": [1, "b"]}) == []
    assert problems_of(schema, {"a": 0.5}) == ["x: must not hold a fraction, which the data model does not have"]


@pytest.mark.parametrize(
    ("record", "problems"),
    [
        (None, ["must be an object, not null"]),
        ([], ["must be an object, not an array"]),
        ({"x": 1}, ["$type: must be com.example.thing"]),
        ({"$type": "com.example.other", "x": 1}, ["$type: must be com.example.thing"]),
        ({"$type": "com.example.thing", "x": "1"}, ["x: must be an integer, not a string"]),
    ],
)
def test_records(record, problems):
    """A record is an object that says which collection it belongs to."""
    lexicons = record_of({"type": "integer"})
    assert [str(problem) for problem in lexicons.validate_record("com.example.thing", record)] == problems


@pytest.mark.parametrize("collection", ["com.example.unknown", "", None, ["com.example.thing"]])
def test_unknown_collections(collection):
    """A collection without a lexicon is a problem, not an exception."""
    assert "there is no lexicon for the collection" in str(record_of({"type": "null"}).validate_record(collection, {}))


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("tid", "3jzfcijpj2z2a", "self"),
        ("nsid", "a.b.c", "self"),
        ("literal:self", "self", "other"),
        ("any", "x", "."),
        ("any", "x", None.__class__),
    ],
)
def test_record_keys(key, right, wrong):
    """A record key is checked against the type that the lexicon gives it."""
    record = {"type": "record", "key": key, "record": {"type": "object"}}
    lexicons = Lexicons.from_documents([document(record)])
    assert lexicons.validate_record("com.example.thing", {"$type": "com.example.thing"}, right) == ()
    (problem,) = lexicons.validate_record("com.example.thing", {"$type": "com.example.thing"}, wrong)
    assert str(problem).startswith(f"must have a record key of type {key}")


def test_paths_lead_to_the_problem():
    """A problem's path names members with dots and items with brackets, and its text says what is there."""
    text = {"type": "string", "maxGraphemes": 150}
    inner = {"type": "object", "properties": {"tags": {"type": "array", "items": text}}}
    tags = ["ok", "ok", "ok", "é" * 300]
    assert problems_of(inner, {"tags": tags}) == ["x.tags[3]: must be at most 150 graphemes (has 300)"]
    rows = {"type": "array", "items": {"type": "array", "items": text}}
    assert problems_of(rows, [[], ["a", 1]]) == ["x[1][1]: must be a string, not an integer"]
    assert str(Problem("", "must be an object")) == "must be an object"


def test_problems_are_bounded():
    """However much is wrong, a record has at most MAX_PROBLEMS short problems."""
    schema = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    assert len(problems_of(schema, [["a"] * 1000] * 1000)) == MAX_PROBLEMS
    many = {f"{'k' * 10_000}{i}": 0.5 for i in range(1000)}
    found = problems_of({"type": "object", "properties": {}}, many)
    assert len(found) == MAX_PROBLEMS
    assert max(map(len, found)) < 300
    assert len(problems_of({"type": "string", "enum": ["a"]}, "b" * 10_000)[0]) < 300
    members = {f"m{i}": {"type": "integer"} for i in range(50)}
    assert len(problems_of({"type": "object", "required": list(members), "properties": members}, {})) == MAX_PROBLEMS


def test_depth_is_bounded():
    """Nesting far beyond Python's own limit is a problem, both where the lexicon looks and where it does not."""
    deep = nested(100_000, 1, lambda value: {"x": value})
    assert problems_of({"type": "unknown"}, deep) == ["x: is nested too deeply"]
    recursive = {"type": "ref", "ref": "#node"}
    node = {"type": "object", "properties": {"x": {"type": "ref", "ref": "#node"}}}
    (problem,) = problems_of(recursive, deep, node=node)
    assert problem.endswith("is nested too deeply")
    union = {"type": "union", "refs": ["#node"]}
    node = {"type": "object", "properties": {"x": union}}
    deep = nested(100_000, {"$type": "com.example.new"}, lambda value: {"$type": "com.example.thing#node", "x": value})
    (problem,) = problems_of(union, deep, node=node)
    assert problem.endswith("is nested too deeply")


@given(json_values)
def test_hostile_records_never_raise(value):
    """Any JSON is either right or has problems in words, whatever the collection."""
    for collection in nsid.KINDS:
        for record in (value, {"$type": collection, "storage": value, "fields": value, "size": value, "tags": [value]}):
            problems = load_lexicons().validate_record(collection, record)
            assert len(problems) <= MAX_PROBLEMS
            assert all(str(problem) for problem in problems)


# --- Lexicon documents


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "must be an object, not null"),
        ({"lexicon": 2, "id": "a.b.c", "defs": {"main": {"type": "token"}}}, "lexicon: must be 1"),
        ({"lexicon": True, "id": "a.b.c", "defs": {"main": {"type": "token"}}}, "lexicon: must be 1"),
        ({"lexicon": 1, "id": "a.b.c", "defs": {}}, "must define something"),
        ({"lexicon": 1, "id": "a.b.c", "defs": []}, "must be an object, not an array"),
        ({"lexicon": 1, "id": "a.b.c"}, "must define something"),
        (document("string"), "defs.main: must be an object, not a string"),
        (document({"type": "strange"}), "there is no type 'strange'"),
        (document({"type": ["string"]}), "there is no type"),
        (document({"type": "string", "format": "email"}), "there is no format 'email'"),
        (document({"type": "string", "maxLength": "5"}), "defs.main.maxLength: must be an integer, not a string"),
        (document({"type": "string", "maxLength": True}), "defs.main.maxLength: must be an integer, not a boolean"),
        (document({"type": "string", "enum": [1]}), "must hold values of type str only"),
        (document({"type": "string", "knownValues": [1]}), "must hold strings only"),
        (document({"type": "array"}), "an array must say what its items are"),
        (document({"type": "object", "required": ["a"]}), "'a' is required or nullable, and no property"),
        (document({"type": "object", "properties": {"a": {"type": "ref"}}}), "a ref must name a definition"),
        (
            document({"type": "object", "properties": {"a": {"type": "ref", "ref": "#gone"}}}),
            "lexicon com.example.thing: 'com.example.thing#gone' refers to nothing",
        ),
        (document({"type": "record", "record": {"type": "object"}}), "defs.main.key: must be any, tid, nsid"),
        (document({"type": "record", "key": "uuid", "record": {"type": "object"}}), "must be any, tid, nsid"),
        (document({"type": "token"}, other={"type": "query"}), "defs.other: query must be the main definition"),
        (document({"type": "union", "refs": []}), "union cannot be a definition of its own"),
        (document({"type": "query", "parameters": {"type": "object"}}), "must be of type params"),
        (
            document({"type": "query", "parameters": {"type": "params", "properties": {"a": {"type": "blob"}}}}),
            "a parameter cannot be of type blob",
        ),
        (document({"type": "query", "parameters": {"type": "params", "required": ["a"]}}), "'a' is no property"),
        (document({"type": "query", "errors": ["Oops"]}), "must be objects with a name"),
        (document({"type": "query", "output": {"schema": {"type": "no"}}}), "defs.main.output.schema: there is no"),
        (document({"type": "token"}, **{"no name": {"type": "token"}}), "is not a name"),
    ],
)
def test_broken_documents(broken, message):
    """A document that breaks the language is refused, and the error names the document and the place."""
    with pytest.raises(LexiconError) as caught:
        Lexicons.from_documents([broken])
    assert message in str(caught.value)


def test_documents_have_one_name_each():
    """Two documents of one name are refused: which one would hold?"""
    with pytest.raises(LexiconError, match="is used by two documents"):
        Lexicons.from_documents([document({"type": "token"}), document({"type": "token"})])


# --- Queries

SEARCH = document(
    {
        "type": "query",
        "description": "Look for things.",
        "parameters": {
            "type": "params",
            "required": ["q"],
            "properties": {
                "q": {"type": "string", "maxLength": 10},
                "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 25},
                "exact": {"type": "boolean"},
                "sort": {"type": "string", "enum": ["name", "date"], "default": "name"},
                "mood": {"type": "string", "knownValues": ["gay"]},
                "repo": {"type": "string", "format": "at-identifier"},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxLength": 2},
                "sizes": {"type": "array", "items": {"type": "integer"}},
            },
        },
        "output": {"encoding": "application/json", "schema": {"type": "ref", "ref": "#answer"}},
        "errors": [{"name": "BadMood", "description": "Not today."}, {"name": "Tired"}],
    },
    answer={"type": "object", "properties": {}},
)

LOOKUP = Lexicons.from_documents([SEARCH])


def test_queries_are_listed():
    """A service finds in a query all it needs to serve and describe it."""
    lexicons = Lexicons.from_documents([SEARCH, document({"type": "token"}, "com.example.other")])
    (query,) = lexicons.queries()
    assert query == lexicons.query("com.example.thing")
    assert lexicons.query("com.example.other") is None
    assert query.description == "Look for things."
    assert query.required == ("q",)
    assert query.parameters["limit"]["default"] == 25
    assert lexicons.definition("com.example.thing#answer") == {"type": "object", "properties": {}}
    assert lexicons.definition("com.example.thing#gone") is None
    assert query.output == {"type": "ref", "ref": "#answer"}
    assert query.errors == {"BadMood": "Not today.", "Tired": ""}


@pytest.mark.parametrize(
    ("params", "values"),
    [
        ({}, {}),
        ({"q": ["b"]}, {"q": "b"}),
        ({"limit": "1"}, {"limit": 1}),
        ({"exact": "true"}, {"exact": True}),
        ({"exact": "false"}, {"exact": False}),
        ({"sort": "date"}, {"sort": "date"}),
        ({"mood": "sad"}, {"mood": "sad"}),
        ({"tags": "a"}, {"tags": ["a"]}),
        ({"tags": ["a", "b"]}, {"tags": ["a", "b"]}),
        ({"tags": []}, {}),
        ({"sizes": ["-1", "0"]}, {"sizes": [-1, 0]}),
        ({"unheardOf": "x"}, {}),
    ],
)
def test_parameters(params, values):
    """Parameters come as strings and leave as what the lexicon says, with defaults; unknown ones are ignored."""
    expected = {"q": "a", "limit": 25, "sort": "name", **values}
    assert LOOKUP.validate_params("com.example.thing", {"q": "a", **params}) == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"q": []}, "q: is required"),
        ({"q": ["a", "b"]}, "q: must be given once, not 2 times"),
        ({"q": "x" * 11}, "q: must be at most 10 bytes (has 11)"),
        ({"q": "\ud800"}, "q: must be valid Unicode"),
        ({"q": 5}, "q: must be a string, not an integer"),
        ({"limit": "0"}, "limit: must be at least 1 (is 0)"),
        ({"limit": "101"}, "limit: must be at most 100 (is 101)"),
        ({"limit": ""}, "limit: must be an integer (is '')"),
        ({"limit": "1.0"}, "limit: must be an integer (is '1.0')"),
        ({"limit": "1_0"}, "limit: must be an integer (is '1_0')"),
        ({"limit": "１"}, "limit: must be an integer (is '１')"),
        ({"limit": "9" * 5000}, "limit: must be an integer (is '999"),
        ({"exact": "True"}, "exact: must be true or false (is 'True')"),
        ({"exact": "1"}, "exact: must be true or false (is '1')"),
        ({"sort": "size"}, "sort: must be one of 'name', 'date' (is 'size')"),
        ({"repo": "nobody"}, "repo: must be a valid at-identifier (is 'nobody')"),
        ({"tags": ["a", "b", "c"]}, "tags: must have at most 2 items (has 3)"),
        ({"tags": ["a", "x" * 6]}, "tags[1]: must be at most 5 bytes (has 6)"),
        ({"sizes": ["a"]}, "sizes: must be an integer (is 'a')"),
        ({"sizes": [["1"]]}, "sizes: must be a string, not an array"),
    ],
)
def test_wrong_parameters(params, message):
    """What the lexicon forbids is refused in a short message that starts with the parameter's name."""
    with pytest.raises(LexiconError) as caught:
        LOOKUP.validate_params("com.example.thing", {"q": "a", **params})
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


def test_methods_without_lexicon():
    """A method that no document defines is refused by name."""
    with pytest.raises(LexiconError, match="no lexicon defines a method 'com"):
        LOOKUP.validate_params("com.example.gone", {})


def test_interoperability_parameters():
    """The parameters of the protocol's own procedures and subscriptions are read as those of queries are."""
    lexicons = catalog()
    assert lexicons.validate_params("example.lexicon.subscription", {"cursor": "5"}) == {"cursor": 5}
    assert lexicons.validate_params("example.lexicon.procedure", {"boolean": "true"}) == {"boolean": True}
    assert [query.nsid for query in lexicons.queries()] == ["example.lexicon.query"]


@given(st.dictionaries(st.sampled_from(sorted(SEARCH["defs"]["main"]["parameters"]["properties"])), json_values))
def test_hostile_parameters(params):
    """Parameters are read or refused as a LexiconError that names one of them, whatever a caller hands over."""
    try:
        LOOKUP.validate_params("com.example.thing", params)
    except LexiconError as error:
        refused = str(error)
    else:
        refused = "q"
    assert refused.startswith(tuple(SEARCH["defs"]["main"]["parameters"]["properties"]))


def test_examples():
    """The examples in the documentation are true."""
    results = doctest.testmod(lexicon)
    assert results.attempted > 0
    assert results.failed == 0
