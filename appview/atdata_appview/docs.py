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
from atdata.lexicon import Query, load_lexicons
from atdata.nsid import PREFIX

Json = Mapping[str, Any]

_STATUSES = {"InvalidRequest": 400, "RecordNotFound": 404}

# What a lexicon's string format is in JSON Schema. Others keep their names, as JSON Schema allows.
_FORMATS = {"datetime": "date-time"}


def openapi(url: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the service at *url*: https://spec.openapis.org/oas/v3.1.0."""
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "required": ["error", "message"],
            "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
        }
    }
    paths = {f"/xrpc/{query.nsid}": {"get": _operation(query, schemas)} for query in load_lexicons().queries()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "atdata AppView", "version": __version__, "summary": "Datasets on the AT Protocol"},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _operation(query: Query, schemas: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": "OK",
            "content": {"application/json": {"schema": _schema(query.output or {}, query.nsid, schemas)}},
        }
    }
    for name, description in query.errors.items():
        responses[str(_STATUSES.get(name, 400))] = {
            "description": f"{name}: {description}",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
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
class Method:
    """One method as the page shows it."""

    nsid: str
    name: str
    description: str
    parameters: tuple[Parameter, ...]
    output: tuple[Parameter, ...]
    errors: Mapping[str, str]
    example: str


# Questions that have an answer on any instance, for the page's links.
_EXAMPLES = {
    "searchDatasets": "?q=image&facets=tags&facets=license&limit=5",
    "listDatasets": "?limit=5",
    "listSchemas": "?limit=5",
    "listLenses": "?limit=5",
    "getStatus": "",
}


@cache
def methods() -> tuple[Method, ...]:
    """Every method, for the page: those that search first, as most people come for them."""
    found = [_method(query) for query in load_lexicons().queries()]
    return tuple(sorted(found, key=lambda method: not method.name.startswith("search")))


@dataclass(frozen=True, slots=True)
class View:
    """One object that answers hold."""

    name: str
    description: str
    members: tuple[Parameter, ...]


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
        parameters=tuple(
            _parameter(key, schema, query.required, ", repeatable") for key, schema in query.parameters.items()
        ),
        output=_members(output),
        errors=query.errors,
        example=f"/xrpc/{query.nsid}{_EXAMPLES[name]}" if name in _EXAMPLES else "",
    )


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
