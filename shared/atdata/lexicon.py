"""Check data against lexicon documents: records, and the parameters of queries. No network.

A lexicon says what a record or a query looks like: https://atproto.com/specs/lexicon. The Python SDK's own
`atproto_lexicon` only parses such documents into models for its code generator, and no other library checks records
against them, so this module does. Each definition is compiled once into a function. A check never raises, whatever the
data, and says at most MAX_PROBLEMS things. Data is JSON in the protocol's form (`{"$link": …}`, `{"$bytes": …}`,
`{"$type": "blob", …}`): https://atproto.com/specs/data-model#json-representation
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple

from atdata import syntax
from atdata.errors import LexiconError

__all__ = ["MAX_PROBLEMS", "Lexicons", "Problem", "Query", "Subscription", "load_lexicons", "type_name"]

MAX_PROBLEMS: Final = 20
# Deeper than any honest record, and well within Python's own limit on recursion.
_MAX_DEPTH: Final = 64

Json = Mapping[str, Any]


class Problem(NamedTuple):
    """One thing that is wrong with a record: where, and what.

    >>> str(Problem("tags[3]", "must be at most 150 graphemes (has 300)"))
    'tags[3]: must be at most 150 graphemes (has 300)'
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


# A compiled definition: the problems of a value at a depth, with paths relative to it; nothing when it is right.
# The callers prefix the paths, so that a right value, the common case, costs no string.
_Problems = list[Problem] | None
_Check = Callable[[Any, int], _Problems]


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a lexicon, as the documents say it; enough to serve it and to describe it.

    `parameters` maps each parameter to its schema, `required` names those without which the query is refused,
    `output` is the schema of a JSON answer and `errors` maps the names of errors to their descriptions.
    """

    nsid: str
    description: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    output: Json | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of a lexicon, as the documents say it; enough to serve it and to describe it.

    `messages` maps the names of messages, such as `#info`, to their schemas; the rest is as it is in `Query`.
    Specification: https://atproto.com/specs/event-stream
    """

    nsid: str
    description: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    messages: Mapping[str, Json] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


@cache
def load_lexicons() -> Lexicons:
    """The lexicons of this package, parsed and compiled on the first call.

    >>> load_lexicons().validate_record("ac.foundation.dataset.label", {"$type": "ac.foundation.dataset.label"})[0].path
    'name'
    """
    from importlib.resources import files  # not before it is needed: it costs more than this module

    return Lexicons.from_documents(
        json.loads(file.read_text(encoding="utf-8")) for file in _json_files(files("atdata") / "lexicons")
    )


def _json_files(folder: Any) -> Iterator[Any]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _json_files(entry)
        elif entry.name.endswith(".json"):
            yield entry


class Lexicons:
    """A set of lexicon documents and the checks compiled from them.

    >>> lexicons = load_lexicons()
    >>> lexicons.validate_record("ac.foundation.dataset.label", {"$type": "ac.foundation.dataset.label", "name": 5,
    ...     "datasetUri": "at://did:plc:abc123", "createdAt": "2026-01-02T00:00:00Z"})
    (Problem(path='name', message='must be a string, not an integer'),)

    Specification: https://atproto.com/specs/lexicon
    """

    def __init__(self) -> None:
        self._documents: dict[str, Json] = {}
        self._checks: dict[str, _Check] = {}
        self._references: set[tuple[str, str]] = set()
        self._records: dict[str, tuple[_Check, Callable[[str], bool], str]] = {}
        self._parameters: dict[str, _Parameters] = {}
        self._queries: dict[str, Query] = {}
        self._subscriptions: dict[str, Subscription] = {}

    @classmethod
    def from_documents(cls, documents: Iterable[Any]) -> Lexicons:
        """Compile *documents*, each the parsed JSON of one lexicon.

        Raises LexiconError for a document that breaks the language, naming the document and the place in it. A
        reference to a document that is not among them is allowed, and anything is right where it stands.
        """
        lexicons = cls()
        for document in documents:
            _Compiler(lexicons, document).compile()
        for id_, target in lexicons._references:
            if target.partition("#")[0] in lexicons._documents and target not in lexicons._checks:
                raise LexiconError(f"lexicon {id_}: {target!r} refers to nothing")
        return lexicons

    @property
    def documents(self) -> Mapping[str, Json]:
        """The documents by NSID, as they were given."""
        return self._documents

    def query(self, nsid: str) -> Query | None:
        """The query named *nsid*, or None if no document defines it."""
        return self._queries.get(nsid)

    def queries(self) -> tuple[Query, ...]:
        """Every query, sorted by name."""
        return tuple(self._queries[nsid] for nsid in sorted(self._queries))

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Every subscription, sorted by name."""
        return tuple(self._subscriptions[nsid] for nsid in sorted(self._subscriptions))

    def definition(self, reference: str) -> Json | None:
        """The schema that `nsid#name` (or `nsid`, for its main definition) stands for, or None."""
        nsid, _, name = reference.partition("#")
        document = self._documents.get(nsid)
        found: Json | None = None if document is None else document["defs"].get(name or "main")
        return found

    def validate_record(self, collection: str, record: Any, rkey: str | None = None) -> tuple[Problem, ...]:
        """What is wrong with *record* as a member of *collection*, at most MAX_PROBLEMS things; () if nothing is.

        Never raises. The record key is checked when it is given.
        """
        entry = self._records.get(collection) if isinstance(collection, str) else None
        if entry is None:
            return (Problem("", f"there is no lexicon for the collection {_shown(collection)}"),)
        check, is_key, key = entry
        problems = list(check(record, 0) or ())
        if isinstance(record, dict) and record.get("$type") != collection:
            problems.append(Problem("$type", f"must be {collection}"))
        if rkey is not None and not is_key(rkey):
            problems.append(Problem("", f"must have a record key of type {key} (is {_shown(rkey)})"))
        return tuple(problems[:MAX_PROBLEMS])

    def validate_params(self, nsid: str, params: Mapping[str, str | list[str]]) -> dict[str, Any]:
        """The parameters of a call, from a query string's strings to the types of the lexicon, with defaults filled in.

        A parameter that the lexicon does not know is ignored. Raises LexiconError, a ValueError, whose message starts
        with the parameter's name, for what the lexicon forbids, and for a method that no document defines.
        Specification: https://atproto.com/specs/xrpc#lexicon-http-endpoints
        """
        parameters = self._parameters.get(nsid)
        if parameters is None:
            raise LexiconError(f"no lexicon defines a method {_shown(nsid)}")
        return parameters.read(params)


# --- What values are called


def type_name(value: Any) -> str:
    """What a person calls the type of a JSON value: `a string`, `null`, `an object`.

    >>> type_name([]), type_name(1.5)
    ('an array', 'a fraction')
    """
    return _TYPE_NAMES.get(type(value)) or f"a {type(value).__name__[:50]}"


_TYPE_NAMES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a fraction",
    str: "a string",
    bytes: "raw bytes",
    list: "an array",
    dict: "an object",
}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:59] + "…")
    return str(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else type_name(value)


def _wrong(message: str) -> list[Problem]:
    return [Problem("", message)]


def _prefixed(prefix: Any, problems: list[Problem]) -> Iterator[Problem]:
    prefix = prefix if isinstance(prefix, str) and len(prefix) <= 60 else _shown(prefix)
    for path, message in problems:
        yield Problem(f"{prefix}{path}" if path[:1] in ("", "[") else f"{prefix}.{path}", message)


# --- The data model, where no definition says more


def _check_data(value: Any, depth: int = 0) -> _Problems:
    """Anything that the data model allows, however deep its author went: walked without recursion."""
    stack = [(value, depth)]
    while stack:
        value, depth = stack.pop()
        kind = type(value)
        if kind is str:
            if not value.isascii() and not _is_unicode(value):
                return _wrong("must be valid Unicode")
        elif kind is int:
            if not -(2**63) <= value < 2**63:
                return _wrong("must not hold an integer of more than 64 bits")
        elif kind is dict or kind is list:
            if depth >= _MAX_DEPTH:
                return _wrong("is nested too deeply")
            depth += 1
            if kind is dict:
                if any(type(key) is not str for key in value):
                    return _wrong("must have strings for keys")
                if "$type" in value and (type(value["$type"]) is not str or not value["$type"]):
                    return _wrong("must not hold a $type that is no name")
                stack.extend((key, depth) for key in value if not key.isascii())
                value = value.values()
            stack.extend((inner, depth) for inner in value)
        elif kind is float:
            return _wrong("must not hold a fraction, which the data model does not have")
        elif kind is not bool and value is not None:
            return _wrong(f"must not hold {type_name(value)}")
    return None


def _is_unicode(s: str) -> bool:
    try:
        s.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from a JSON escape
        return False
    return True


def _is_blob(value: Any) -> bool:
    return isinstance(value, dict) and value.get("$type") == "blob"


def _check_null(value: Any, depth: int) -> _Problems:
    return None if value is None else _wrong(f"must be null, not {type_name(value)}")


def _check_unknown(value: Any, depth: int) -> _Problems:
    if not isinstance(value, dict) or "$bytes" in value or "$link" in value or _is_blob(value):
        return _wrong(f"must be an object, not {_data_type_name(value)}")
    return _check_data(value, depth)


def _data_type_name(value: Any) -> str:
    if isinstance(value, dict):
        for key, name in (("$bytes", "bytes"), ("$link", "a link")):
            if key in value:
                return name
        if _is_blob(value):
            return "a blob"
    return type_name(value)


def _is_link(value: Any) -> bool:
    link = value.get("$link") if isinstance(value, dict) and len(value) == 1 else None
    return isinstance(link, str) and syntax.is_cid(link)


def _check_link(value: Any, depth: int) -> _Problems:
    return None if _is_link(value) else _wrong(_NO_LINK)


_NO_LINK: Final = 'must be a link such as {"$link": CID}'


# --- Counting what a person sees as one character (UAX #29)


def _count_graphemes(s: str) -> int:
    if s.isascii():
        return len(s) - s.count("\r\n")
    import regex  # type: ignore[import-untyped]  # not before a text comes near its limit; most never do

    return sum(1 for _ in regex.finditer(r"\X", s))


def _count_bytes(s: str) -> int:
    return len(s) if s.isascii() else len(s.encode("utf-8", "surrogatepass"))


# --- Compiling

_PRIMARY: Final = frozenset({"record", "query", "procedure", "subscription", "permission-set"})
_NOT_NAMED: Final = frozenset({"ref", "union", "unknown", "params"})
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,127}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")


class _Compiler:
    """Compiles one document into a set of lexicons."""

    def __init__(self, lexicons: Lexicons, document: Any) -> None:
        self.lexicons = lexicons
        self.document = document
        self.id: str = "?"

    def fail(self, where: str, message: str) -> LexiconError:
        return LexiconError(f"lexicon {self.id}: {where}: {message}")

    def member(self, schema: Json, where: str, key: str, kind: type, default: Any = None) -> Any:
        """The member *key* of a schema, of the JSON type that the language gives it, or *default*."""
        value = schema.get(key, default)
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.fail(f"{where}.{key}", f"must be {_TYPE_NAMES[kind]}, not {type_name(value)}")
        return value

    def names(self, schema: Json, where: str, key: str) -> tuple[str, ...]:
        names = self.member(schema, where, key, list, [])
        if not all(isinstance(name, str) for name in names):
            raise self.fail(f"{where}.{key}", "must hold strings only")
        return tuple(names)

    def target(self, reference: str) -> str:
        """*reference* as `nsid#name`, whether it was written short, long or without `#main`; noted for a later look."""
        nsid, _, name = reference.partition("#")
        target = f"{nsid or self.id}#{name or 'main'}"
        self.lexicons._references.add((self.id, target))
        return target

    def compile(self) -> None:
        document = self.document
        if not isinstance(document, dict):
            raise LexiconError(f"a lexicon document must be an object, not {type_name(document)}")
        id_ = document.get("id")
        self.id = id_ if isinstance(id_, str) else _shown(id_)
        if not isinstance(id_, str) or not syntax.is_nsid(id_):
            raise self.fail("id", "must be an NSID")
        if document.get("lexicon") != 1 or document["lexicon"] is True:
            raise self.fail("lexicon", "must be 1, the only version of the language")
        if id_ in self.lexicons._documents:
            raise self.fail("id", "is used by two documents")
        definitions = self.member(document, "document", "defs", dict)
        if not definitions:
            raise self.fail("defs", "must define something")
        for name, schema in definitions.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self.fail("defs", f"{_shown(name)} is not a name")
            self.define(name, schema)
        self.lexicons._documents[id_] = document

    def define(self, name: str, schema: Any) -> None:
        where = f"defs.{name}"
        if not isinstance(schema, dict):
            raise self.fail(where, f"must be an object, not {type_name(schema)}")
        type_ = schema.get("type")
        if not isinstance(type_, str):
            raise self.fail(where, f"there is no type {_shown(type_)}")
        if type_ in _NOT_NAMED:
            raise self.fail(where, f"{type_} cannot be a definition of its own")
        if type_ in _PRIMARY and name != "main":
            raise self.fail(where, f"{type_} must be the main definition")
        if type_ == "record":
            check = self.define_record(schema, where)
        elif type_ in ("query", "procedure", "subscription"):
            check = self.define_method(type_, schema, where)
        elif type_ == "permission-set":
            check = _check_data  # what an account may grant; there is no data to check
        else:
            check = self.check(schema, where)
        self.lexicons._checks[f"{self.id}#{name}"] = check

    def define_record(self, schema: Json, where: str) -> _Check:
        body = self.member(schema, where, "record", dict)
        if body is None or body.get("type") != "object":
            raise self.fail(f"{where}.record", "must be of type object")
        key = self.member(schema, where, "key", str)
        is_key = self.record_key(key, where)
        check = self.check(body, f"{where}.record")
        self.lexicons._records[self.id] = (check, is_key, key)
        return check

    def record_key(self, key: str | None, where: str) -> Callable[[str], bool]:
        kinds: dict[str | None, Callable[[str], bool]] = {
            "any": syntax.is_record_key,
            "tid": syntax.is_tid,
            "nsid": syntax.is_nsid,
        }
        if key in kinds:
            is_key = kinds[key]
        elif key is not None and key.startswith("literal:"):
            is_key = key.removeprefix("literal:").__eq__
        else:
            raise self.fail(f"{where}.key", "must be any, tid, nsid or literal:…")
        return lambda rkey: isinstance(rkey, str) and is_key(rkey) is True

    def define_method(self, type_: str, schema: Json, where: str) -> _Check:
        parameters = self.member(schema, where, "parameters", dict, {"type": "params"})
        compiled = self.parameters(parameters, f"{where}.parameters")
        self.lexicons._parameters[self.id] = compiled
        for side in ("input", "output", "message"):
            body = self.member(schema, where, side, dict)
            if body is not None and "schema" in body:
                self.check(body["schema"], f"{where}.{side}.schema")
        errors = self.member(schema, where, "errors", list, [])
        if not all(isinstance(error, dict) and isinstance(error.get("name"), str) for error in errors):
            raise self.fail(f"{where}.errors", "must be objects with a name")
        described = {
            "nsid": self.id,
            "description": self.member(schema, where, "description", str, ""),
            "parameters": parameters.get("properties", {}),
            "required": self.names(parameters, where, "required"),
            "errors": {error["name"]: error.get("description", "") for error in errors},
        }
        if type_ == "query":
            output = self.member(schema, where, "output", dict, {})
            self.lexicons._queries[self.id] = Query(**described, output=output.get("schema"))
        elif type_ == "subscription":
            messages = self.messages(schema, where)
            self.lexicons._subscriptions[self.id] = Subscription(**described, messages=messages)
        return _check_data

    def messages(self, schema: Json, where: str) -> dict[str, Json]:
        """The messages of a subscription that its document defines."""
        union = self.member(schema, where, "message", dict, {}).get("schema", {"type": "union"})
        if union.get("type") != "union":
            raise self.fail(f"{where}.message.schema", "must be of type union")
        definitions = self.document["defs"]
        references = [reference.removeprefix(self.id) for reference in self.names(union, f"{where}.message", "refs")]
        return {
            reference: definitions[reference[1:]]
            for reference in references
            if reference.startswith("#") and isinstance(definitions.get(reference[1:]), dict)
        }

    def parameters(self, schema: Json, where: str) -> _Parameters:
        if schema.get("type") != "params":
            raise self.fail(where, "must be of type params")
        required = self.names(schema, where, "required")
        found: dict[str, _Parameter] = {}
        for name, inner in self.member(schema, where, "properties", dict, {}).items():
            place = f"{where}.properties.{name}"
            check = self.check(inner, place)
            is_array = inner["type"] == "array"
            type_ = inner["items"]["type"] if is_array else inner["type"]
            if type_ not in ("boolean", "integer", "string"):
                raise self.fail(place, f"a parameter cannot be of type {type_}")
            found[name] = _Parameter(name, type_, is_array, check, name in required, inner.get("default"))
        for name in required:
            if name not in found:
                raise self.fail(f"{where}.required", f"{name!r} is no property")
        return _Parameters(tuple(found.values()))

    def check(self, schema: Any, where: str) -> _Check:
        if not isinstance(schema, dict):
            raise self.fail(where, f"must be an object, not {type_name(schema)}")
        type_ = schema.get("type")
        compile_ = _COMPILERS.get(type_) if isinstance(type_, str) else None
        if compile_ is None:
            raise self.fail(where, f"there is no type {_shown(type_)}")
        return compile_(self, schema, where)

    def boolean(self, schema: Json, where: str) -> _Check:
        const = self.member(schema, where, "const", bool)

        def check(value: Any, depth: int) -> _Problems:
            if value is not True and value is not False:
                return _wrong(f"must be a boolean, not {type_name(value)}")
            if const is not None and value is not const:
                return _wrong(f"must be {str(const).lower()}")
            return None

        return check

    def integer(self, schema: Json, where: str) -> _Check:
        low = max(self.member(schema, where, "minimum", int, -(2**63)), -(2**63))
        high = min(self.member(schema, where, "maximum", int, 2**63 - 1), 2**63 - 1)
        allowed = self.allowed(schema, where, int)

        def check(value: Any, depth: int) -> _Problems:
            if type(value) is not int:
                return _wrong(f"must be an integer, not {type_name(value)}")
            if value < low:
                return _wrong(f"must be at least {low} (is {_shown(value)})")
            if value > high:
                return _wrong(f"must be at most {high} (is {_shown(value)})")
            if allowed is not None and value not in allowed:
                return _wrong(f"must be {_choice(allowed)} (is {_shown(value)})")
            return None

        return check

    def allowed(self, schema: Json, where: str, kind: type) -> tuple[Any, ...] | None:
        """The values to which `const` or `enum` confine a field, or None when they do not."""
        const, enum = self.member(schema, where, "const", kind), self.member(schema, where, "enum", list)
        if enum is not None and not all(type(value) is kind for value in enum):
            raise self.fail(f"{where}.enum", f"must hold values of type {kind.__name__} only")
        return (const,) if const is not None else None if enum is None else tuple(enum)

    def string(self, schema: Json, where: str) -> _Check:
        min_bytes: int = self.member(schema, where, "minLength", int, 0)
        max_bytes: int | None = self.member(schema, where, "maxLength", int)
        min_graphemes: int = self.member(schema, where, "minGraphemes", int, 0)
        max_graphemes: int | None = self.member(schema, where, "maxGraphemes", int)
        # An ASCII text of a length between these is within all limits: it has as many bytes as characters, and at
        # most as many graphemes, at least half as many (a CR LF pair is one).
        surely_long = max(min_bytes, 2 * min_graphemes - 1)
        surely_short = min(limit for limit in (max_bytes, max_graphemes, sys.maxsize) if limit is not None)

        def check_size(value: str) -> _Problems:
            if not _is_unicode(value):
                return _wrong("must be valid Unicode")
            length = len(value)
            if not length and (min_bytes or min_graphemes):
                return _wrong("must not be empty")
            # Counting is for texts near a limit only: a code point has 1 to 4 bytes, and a grapheme 1 or more of them.
            if max_bytes is not None and 4 * length > max_bytes and (size := _count_bytes(value)) > max_bytes:
                return _wrong(f"must be at most {max_bytes} bytes (has {size})")
            if length < min_bytes and (size := _count_bytes(value)) < min_bytes:
                return _wrong(f"must be at least {min_bytes} bytes (has {size})")
            if (
                max_graphemes is not None
                and max_graphemes < length
                and max_graphemes < (size := _count_graphemes(value))
            ):
                return _wrong(f"must be at most {max_graphemes} graphemes (has {size})")
            if min_graphemes > 1 and (size := _count_graphemes(value)) < min_graphemes:
                return _wrong(f"must be at least {min_graphemes} graphemes (has {size})")
            return None

        allowed = self.allowed(schema, where, str)
        self.names(schema, where, "knownValues")  # advice to writers, never a limit
        format_ = self.member(schema, where, "format", str)
        is_well_formed = None if format_ is None else syntax.FORMATS.get(format_)
        if format_ is not None and is_well_formed is None:
            raise self.fail(f"{where}.format", f"there is no format {format_!r}")

        def check(value: Any, depth: int) -> _Problems:
            if not isinstance(value, str):
                return _wrong(f"must be a string, not {type_name(value)}")
            if not (surely_long <= len(value) <= surely_short and value.isascii()):
                wrong = check_size(value)
                if wrong is not None:
                    return wrong
            if allowed is not None and value not in allowed:
                return _wrong(f"must be {_choice(allowed)} (is {_shown(value)})")
            if is_well_formed is not None and not is_well_formed(value):
                return _wrong(f"must be a valid {format_} (is {_shown(value)})")
            return None

        return check

    def bytes_(self, schema: Json, where: str) -> _Check:
        low = self.member(schema, where, "minLength", int, 0)
        high = self.member(schema, where, "maxLength", int, 2**63)

        def check(value: Any, depth: int) -> _Problems:
            text = value.get("$bytes") if isinstance(value, dict) and len(value) == 1 else None
            if not isinstance(text, str):
                return _wrong(f"must be bytes, not {_data_type_name(value)}")
            digits = len(text.rstrip("=")) if _BASE64.fullmatch(text) else 1
            if digits % 4 == 1:
                return _wrong("must be bytes in base64")
            length = digits * 3 // 4
            if length < low:
                return _wrong(f"must be at least {low} bytes (has {length})")
            if length > high:
                return _wrong(f"must be at most {high} bytes (has {length})")
            return None

        return check

    def blob(self, schema: Json, where: str) -> _Check:
        max_size = self.member(schema, where, "maxSize", int, 2**63)
        accept = self.names(schema, where, "accept")
        prefixes = tuple(pattern.removesuffix("*") for pattern in accept if pattern.endswith("*") and pattern != "*/*")
        takes_all = not accept or "*/*" in accept

        def check(value: Any, depth: int) -> _Problems:
            if not _is_blob(value):
                return _wrong(f"must be a blob, not {_data_type_name(value)}")
            problems = [] if _is_link(value.get("ref")) else [Problem("ref", _NO_LINK)]
            mime_type, size = value.get("mimeType"), value.get("size")
            if not isinstance(mime_type, str):
                problems.append(Problem("mimeType", f"must be a string, not {type_name(mime_type)}"))
            elif not takes_all and mime_type not in accept and not (prefixes and mime_type.startswith(prefixes)):
                problems.append(Problem("mimeType", f"must be {_choice(accept)} (is {_shown(mime_type)})"))
            if type(size) is not int or size < 0:
                problems.append(Problem("size", f"must be a number of bytes, not {_shown(size)}"))
            elif size > max_size:
                problems.append(Problem("size", f"must be at most {max_size} bytes (is {_shown(size)})"))
            return problems or None

        return check

    def array(self, schema: Json, where: str) -> _Check:
        low = self.member(schema, where, "minLength", int, 0)
        high = self.member(schema, where, "maxLength", int, 2**63)
        if "items" not in schema:
            raise self.fail(where, "an array must say what its items are")
        check_item = self.check(schema["items"], f"{where}.items")

        def check(value: Any, depth: int) -> _Problems:
            if not isinstance(value, list):
                return _wrong(f"must be an array, not {_data_type_name(value)}")
            problems: list[Problem] = []
            if not value and low:
                problems.append(Problem("", "must not be empty"))
            elif len(value) < low:
                problems.append(Problem("", f"must have at least {low} items (has {len(value)})"))
            elif len(value) > high:
                problems.append(Problem("", f"must have at most {high} items (has {len(value)})"))
            for i, item in enumerate(value):
                wrong = check_item(item, depth)
                if wrong:
                    problems.extend(_prefixed(f"[{i}]", wrong))
                    if len(problems) >= MAX_PROBLEMS:
                        break
            return problems or None

        return check

    def object(self, schema: Json, where: str) -> _Check:
        properties = self.member(schema, where, "properties", dict, {})
        required = self.names(schema, where, "required")
        nullable = frozenset(self.names(schema, where, "nullable"))
        for name in (*required, *nullable):
            if name not in properties:
                raise self.fail(where, f"{name!r} is required or nullable, and no property")
        checks = {name: self.check(inner, f"{where}.properties.{name}") for name, inner in properties.items()}
        find = checks.get

        def check(value: Any, depth: int) -> _Problems:
            if not isinstance(value, dict):
                return _wrong(f"must be an object, not {type_name(value)}")
            problems: list[Problem] = [Problem(name, "is required") for name in required if name not in value]
            for name, inner in value.items():
                check_inner = find(name)
                if check_inner is not None:
                    if inner is None and name in nullable:
                        continue
                    wrong = check_inner(inner, depth)
                elif name == "$type" and type(inner) is str:
                    continue
                else:
                    # Members that the lexicon does not know are allowed; they come with later versions of it.
                    wrong = _check_data({name: inner}, depth)
                if wrong:
                    problems.extend(_prefixed(name, wrong))
                    if len(problems) >= MAX_PROBLEMS:
                        break
            return problems or None

        return check

    def reference(self, schema: Json, where: str) -> _Check:
        reference = self.member(schema, where, "ref", str)
        if reference is None:
            raise self.fail(where, "a ref must name a definition")
        target = self.target(reference)
        find = self.lexicons._checks.get

        def check(value: Any, depth: int) -> _Problems:
            if depth >= _MAX_DEPTH:
                return _wrong("is nested too deeply")
            return find(target, _check_data)(value, depth + 1)

        return check

    def union(self, schema: Json, where: str) -> _Check:
        references = self.names(schema, where, "refs")
        is_closed = self.member(schema, where, "closed", bool, False)
        targets: dict[str, str] = {}
        for reference in references:
            target = self.target(reference)
            targets[target] = target
            if target.endswith("#main"):
                targets[target.removesuffix("#main")] = target
        find = self.lexicons._checks.get

        def check(value: Any, depth: int) -> _Problems:
            type_ = value.get("$type") if isinstance(value, dict) else None
            if not isinstance(type_, str) or not type_:
                return _wrong(f"must be an object with a $type, not {_data_type_name(value)}")
            if depth >= _MAX_DEPTH:
                return _wrong("is nested too deeply")
            target = targets.get(type_)
            if target is not None:
                return find(target, _check_data)(value, depth + 1)
            if is_closed:
                return [Problem("$type", f"must be {_choice(tuple(targets))} (is {_shown(type_)})")]
            return _check_data(value, depth)

        return check

    def token(self, schema: Json, where: str) -> _Check:
        name = f"{self.id}#{where.rpartition('.')[2]}"

        def check(value: Any, depth: int) -> _Problems:
            return None if value == name or f"{value}#main" == name else _wrong(f"must be the token {name}")

        return check


_COMPILERS: Final[Mapping[str, Callable[[_Compiler, Json, str], _Check]]] = {
    "array": _Compiler.array,
    "blob": _Compiler.blob,
    "boolean": _Compiler.boolean,
    "bytes": _Compiler.bytes_,
    "cid-link": lambda compiler, schema, where: _check_link,
    "integer": _Compiler.integer,
    "null": lambda compiler, schema, where: _check_null,
    "object": _Compiler.object,
    "ref": _Compiler.reference,
    "string": _Compiler.string,
    "token": _Compiler.token,
    "union": _Compiler.union,
    "unknown": lambda compiler, schema, where: _check_unknown,
}


def _choice(allowed: tuple[Any, ...]) -> str:
    shown = ", ".join(map(_shown, allowed[:10]))
    return shown if len(allowed) == 1 else f"one of {shown}{', …' if len(allowed) > 10 else ''}"


# --- Query parameters


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    type: str
    is_array: bool
    check: _Check
    is_required: bool
    default: Any

    def read(self, given: Any) -> Any:
        texts = given if isinstance(given, list) else [given]
        if self.is_array:
            value: Any = [self.coerce(text) for text in texts]
        elif len(texts) == 1:
            value = self.coerce(texts[0])
        else:
            raise LexiconError(f"{self.name}: must be given once, not {len(texts)} times")
        for problem in _prefixed(self.name, self.check(value, 0) or []):
            raise LexiconError(str(problem))
        return value

    def coerce(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise LexiconError(f"{self.name}: must be a string, not {type_name(text)}")
        if self.type == "integer":
            if not _INTEGER.fullmatch(text):
                raise LexiconError(f"{self.name}: must be an integer (is {_shown(text)})")
            return int(text)
        if self.type == "boolean":
            if text not in ("true", "false"):
                raise LexiconError(f"{self.name}: must be true or false (is {_shown(text)})")
            return text == "true"
        return text


@dataclass(frozen=True, slots=True)
class _Parameters:
    all: tuple[_Parameter, ...]

    def read(self, params: Mapping[str, str | list[str]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for parameter in self.all:
            # No value at all (an empty list) is the same as no parameter.
            if parameter.name in params and params[parameter.name] != []:
                values[parameter.name] = parameter.read(params[parameter.name])
            elif parameter.default is not None:
                values[parameter.name] = parameter.default
            elif parameter.is_required:
                raise LexiconError(f"{parameter.name}: is required")
        return values
