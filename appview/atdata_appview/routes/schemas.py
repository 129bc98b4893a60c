"""Methods about sample schemas: search, get, list, compare, resolve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from atdata.errors import SchemaError
from atdata.structure import Structure, compare, structure_of
from atdata_appview import naming
from atdata_appview.errors import InvalidRequest, SchemaNotFound
from atdata_appview.models import Record, field_view, structure_view
from atdata_appview.routes.parameters import FINGERPRINT, known_did, publisher, publishers, record_uris
from atdata_appview.routes.records import get_of_kind
from atdata_appview.search import query_of
from atdata_appview.services import Services
from atdata_appview.versions import SchemaVersion, in_range

# Versions that an answer lists, and that a message does.
_MAX_VERSIONS: Final = 100
_MAX_SAID: Final = 10

# Schemas of one structure among which the best is looked for.
_MAX_EQUAL: Final = 1000


async def search_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas that match."""
    named = dict(params)
    if "publishers" in params:
        named["publishers"] = await publishers(services.store, "publishers", params["publishers"])
    return (await services.search.schemas(query_of(named))).answer("schemas")


async def get_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas with these URIs."""
    return await get_of_kind(services, params["uris"], "schema", "schemas")


async def list_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Schemas, the latest first."""
    listing = await services.store.schemas(
        publisher=await publisher(services.store, params),
        name=params.get("name"),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    return listing.answer("schemas")


# --- Comparing


async def compare_schemas(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """What is different between two schemas, and who can still read what."""
    structures = await _structures(services, params, ("from", "to"))
    comparison = compare(*structures)
    differences = []
    for one in comparison.differences:
        view: dict[str, Any] = {"name": one.name, "change": one.change, "breaks": one.breaks, "text": str(one)}
        if one.before is not None:
            view["before"] = field_view(one.before)
        if one.after is not None:
            view["after"] = field_view(one.after)
        differences.append(view)
    return {
        "from": structure_view(comparison.old),
        "to": structure_view(comparison.new),
        "verdict": comparison.verdict,
        "differences": differences,
        "summary": comparison.summary,
    }


async def _structures(services: Services, params: Mapping[str, Any], names: Sequence[str]) -> list[Structure]:
    """The structures of the schemas whose URIs the parameters *names* hold."""
    uris = [(await record_uris(services.store, name, [params[name]]))[0] for name in names]
    records = await services.store.records([uri for uri in uris if uri], "schema")
    structures = []
    for name, uri in zip(names, uris, strict=True):
        if uri not in records:
            raise SchemaNotFound(f"{name}: there is no schema {params[name][:300]} here")
        try:
            structures.append(structure_of(records[uri].parsed()))
        except SchemaError as error:
            raise InvalidRequest(f"{name}: {error}") from None
    return structures


# --- Resolving


async def resolve_schema(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a publisher, a name and a range of versions stand for, or the one of a structure."""
    if "fingerprint" in params:
        for name in ("publisher", "name", "version"):
            if name in params:
                raise InvalidRequest(f"{name}: leave it out beside a fingerprint, which stands for schemas of anybody")
        return await _of_structure(services, params["fingerprint"])
    for name in ("publisher", "name"):
        if name not in params:
            raise InvalidRequest(f"{name}: is required, unless there is a fingerprint")
    return await _of_name(services, params["publisher"], params["name"], params.get("version"))


async def _of_name(services: Services, who: str, name: str, version: str | None) -> dict[str, Any]:
    did = await known_did(services.store, who)
    if did is None:
        raise SchemaNotFound(f"no publisher with the handle {who} is known here; check it, or give the DID")
    held = await services.store.schema_versions(did, name)
    try:
        versions = in_range(held, version or "*")
    except ValueError as error:
        raise InvalidRequest(f"version: {error}") from None
    record = await services.store.record(versions.matching[0].uri) if versions.matching else None
    if record is None:
        raise SchemaNotFound(await _instead(services, did, who, name, version, [*versions.others, *versions.ignored]))
    return _answer(services, record, versions.matching, versions.ignored)


async def _instead(
    services: Services, did: str, who: str, name: str, version: str | None, others: Sequence[SchemaVersion]
) -> str:
    """What there is instead of what was asked for, as a message."""
    if others:
        wanted = "stable version" if version is None else f"version {version[:100]}"
        said = ", ".join(one.version[:50] or "one without a version" for one in others[:_MAX_SAID])
        more = f" and {len(others) - _MAX_SAID} more" if len(others) > _MAX_SAID else ""
        return f"{who} has no {wanted} of the schema {name[:100]!r} here; there is {said}{more}"
    alternatives = naming.alternatives(name, await services.store.names(did, ["schema"]))
    return f"{who} has no schema {name[:100]!r} here" + (f"; {alternatives}" if alternatives else "")


async def _of_structure(services: Services, fingerprint: str) -> dict[str, Any]:
    if FINGERPRINT.fullmatch(fingerprint) is None:
        raise InvalidRequest("fingerprint: must be s1- and 40 hexadecimal digits in lower case")
    found = await services.store.most_used(services.graph.uris_of(fingerprint, _MAX_EQUAL))
    record = await services.store.record(found[0].uri) if found else None
    if record is None:
        raise SchemaNotFound("there is no schema of this structure here; searchSchemas finds some by their fields")
    return _answer(services, record, found, [])


def _answer(
    services: Services, record: Record, versions: Sequence[SchemaVersion], ignored: Sequence[SchemaVersion]
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "schema": record.view(),
        "versions": [one.view() for one in versions[:_MAX_VERSIONS]],
        "ignored": [one.view() for one in ignored[:_MAX_VERSIONS]],
    }
    try:
        structure = structure_of(record.parsed())
    except SchemaError:
        return answer
    answer["structure"] = structure_view(structure)
    if services.graph_keeper.is_ready:
        # The graph may be a moment behind, and not know of this one yet.
        is_known = structure.fingerprint in services.graph
        answer["sameStructure"] = services.graph.size_of(structure.fingerprint) - 1 if is_known else 0
    return answer
