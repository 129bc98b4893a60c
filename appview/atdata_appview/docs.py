"""The methods described: their lexicons as OpenAPI, and as what the page at /docs shows. Pure.

FastAPI's own /docs loads its scripts from another host, which a strict content policy and a machine without a network
both forbid; this is a page of our own, and the OpenAPI document is there for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from atdata import __version__
from atdata.lexicon import Query, Subscription, load_lexicons
from atdata.nsid import PREFIX

Json = Mapping[str, Any]

# What any method may answer, whatever its lexicon says.
_COMMON = {
    401: "A service-auth token was sent, and it is not valid: `BadJwt`, `JwtExpired`, `BadJwtAudience`, "
    "`BadJwtLexiconMethod`, `BadJwtSignature` …",
    414: "`InvalidRequest`: the query string is longer than any honest question.",
    429: "`RateLimitExceeded`: too many requests; `Retry-After` says when to come back.",
    503: "`ServiceUnavailable`: the database or the search engine does not answer; it passes.",
}

# What a lexicon's string format is in JSON Schema. Others keep their names, as JSON Schema allows.
_FORMATS = {"datetime": "date-time"}


def openapi(url: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the service at *url*: https://spec.openapis.org/oas/v3.1.0."""
    schemas: dict[str, Any] = {"Error": _error()}
    paths = {f"/xrpc/{query.nsid}": {"get": _operation(query, schemas)} for query in load_lexicons().queries()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "atdata AppView", "version": __version__, "summary": "Datasets on the AT Protocol"},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _operation(query: Query, schemas: dict[str, Any]) -> dict[str, Any]:
    errors: dict[int, dict[str, str]] = {400: {}}
    for name, description in query.errors.items():
        errors.setdefault(404 if name.endswith("NotFound") else 400, {})[name] = description
    # Also a method without parameters refuses those that are no text.
    errors[400].setdefault("InvalidRequest", "A parameter is wrong; the message begins with its name.")
    responses: dict[str, Any] = {
        "200": _response("OK", _schema(query.output or {}, query.nsid, schemas)),
        "304": {"description": "What `If-None-Match` names is still the answer."},
    }
    for status, names in errors.items():
        told = "\n\n".join(f"`{name}`: {description}" for name, description in names.items())
        responses[str(status)] = _response(told, _error(*names))
    for status, told in _COMMON.items():
        responses[str(status)] = _response(told, {"$ref": "#/components/schemas/Error"})
    return {
        "operationId": query.nsid,
        "summary": query.description.partition(". ")[0].rstrip("."),
        "description": query.description,
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in query.required,
                "description": schema.get("description", ""),
                "schema": _schema({k: v for k, v in schema.items() if k != "description"}, query.nsid, schemas),
                # `tags=a&tags=b`
                **({"style": "form", "explode": True} if schema["type"] == "array" else {}),
            }
            for name, schema in query.parameters.items()
        ],
        "responses": responses,
    }


def _response(description: str, schema: Json) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(*names: str) -> dict[str, Any]:
    """The schema of an error, which has one of *names*, or any."""
    name = {"type": "string", "enum": list(names)} if names else {"type": "string"}
    return {
        "type": "object",
        "required": ["error", "message"],
        "properties": {"error": name, "message": {"type": "string"}},
    }


def _schema(schema: Json, nsid: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """*schema*, of the lexicon *nsid*, as JSON Schema. What it refers to lands in *schemas*."""
    type_ = schema.get("type")
    out: dict[str, Any] = {"description": schema["description"]} if "description" in schema else {}
    if type_ == "ref":
        home, _, name = str(schema["ref"]).partition("#")
        home, name = home or nsid, name or "main"
        key = f"{home.rpartition('.')[2]}.{name}"
        if key not in schemas:
            schemas[key] = {}  # first, in case it refers to itself
            schemas[key] = _schema(load_lexicons().definition(f"{home}#{name}") or {}, home, schemas)
        return {**out, "$ref": f"#/components/schemas/{key}"}
    out["type"] = "object" if type_ == "unknown" else type_
    if type_ == "array":
        limits = {"minLength": "minItems", "maxLength": "maxItems"}
        out["items"] = _schema(schema["items"], nsid, schemas)
    else:
        limits = {"minimum": "minimum", "maximum": "maximum"}
    out |= {limits[key]: schema[key] for key in limits if key in schema}
    if type_ == "string":
        # A lexicon counts bytes, JSON Schema characters, of which there are no more.
        if "maxLength" in schema:
            out["maxLength"] = schema["maxLength"]
        if schema.get("minLength"):
            out["minLength"] = 1
        if "format" in schema:
            out["format"] = _FORMATS.get(schema["format"], schema["format"])
        if "knownValues" in schema:
            out["examples"] = schema["knownValues"]
    out |= {key: schema[key] for key in ("enum", "default") if key in schema}
    if type_ == "object":
        out["properties"] = {
            name: _schema(inner, nsid, schemas) for name, inner in schema.get("properties", {}).items()
        }
        if required := schema.get("required"):
            out["required"] = required
    return out


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of a method's table."""

    name: str
    type: str
    limits: str
    description: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class View:
    """One object that answers hold, or a message of a subscription."""

    name: str
    description: str
    members: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """One method as the page shows it. A query has an ``output``, a subscription ``messages``."""

    nsid: str
    name: str
    description: str
    parameters: tuple[Parameter, ...]
    errors: Mapping[str, str]
    output: tuple[Parameter, ...] = ()
    messages: tuple[View, ...] = ()
    example: str = ""


# Questions that have an answer on any instance, for the page's links.
_EXAMPLES = {
    "searchDatasets": "?q=image&facets=tags&facets=license&limit=5",
    "listDatasets": "?limit=5",
    "listSchemas": "?limit=5",
    "listLenses": "?limit=5",
    "listPublishers": "?sort=datasets&limit=5",
    "getStatus": "",
}


@cache
def methods() -> tuple[Method, ...]:
    """Every method, for the page: those that search first, as most people come for them; subscriptions last."""
    found = [_method(query) for query in load_lexicons().queries()]
    found.sort(key=lambda method: not method.name.startswith("search"))
    return (*found, *map(_subscription, load_lexicons().subscriptions()))


@cache
def views() -> tuple[View, ...]:
    """Every object that answers of several methods hold, for the page."""
    definitions = load_lexicons().documents[PREFIX + "views"]["defs"]
    return tuple(View(name, schema["description"], _members(schema)) for name, schema in definitions.items())


def _method(query: Query) -> Method:
    name = query.nsid.rpartition(".")[2]
    output = query.output or {}
    if output.get("type") == "ref":
        output = load_lexicons().definition(str(output["ref"])) or {}
    return Method(
        nsid=query.nsid,
        name=name,
        description=query.description,
        parameters=_parameters(query),
        output=_members(output),
        errors=query.errors,
        example=f"/xrpc/{query.nsid}{_EXAMPLES[name]}" if name in _EXAMPLES else "",
    )


def _subscription(subscription: Subscription) -> Method:
    return Method(
        nsid=subscription.nsid,
        name=subscription.nsid.rpartition(".")[2],
        description=subscription.description,
        parameters=_parameters(subscription),
        messages=tuple(
            View(name, schema.get("description", ""), _members(schema))
            for name, schema in subscription.messages.items()
        ),
        errors=subscription.errors,
    )


def _parameters(method: Query | Subscription) -> tuple[Parameter, ...]:
    return tuple(_parameter(key, schema, method.required, ", repeatable") for key, schema in method.parameters.items())


def _range(schema: Json) -> str:
    # The largest number of the data model is no limit that anybody meets.
    is_open = schema["maximum"] >= 2**53 - 1
    return f"{schema['minimum']} or more" if is_open else f"{schema['minimum']}–{schema['maximum']}"


def _members(schema: Json) -> tuple[Parameter, ...]:
    required = schema.get("required", ())
    return tuple(_parameter(key, inner, required, "[]") for key, inner in schema.get("properties", {}).items())


def _parameter(name: str, schema: Json, required: Sequence[str], many: str) -> Parameter:
    items = schema["items"] if schema["type"] == "array" else schema
    type_ = items.get("ref", items.get("format", items["type"])).rpartition("#")[2]
    limits = [_range(schema)] if "maximum" in schema else []
    limits += [f"up to {schema['maxLength']}"] if schema["type"] == "array" and "maxLength" in schema else []
    limits += [", ".join(map(str, items["enum"]))] if "enum" in items else []
    limits += [f"default {schema['default']}"] if "default" in schema else []
    return Parameter(
        name=name,
        type=type_ + many if schema["type"] == "array" else type_,
        limits="; ".join(limits),
        description=schema.get("description", ""),
        is_required=name in required,
    )
