"""Methods about datasets: search, get, list, and those like another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from atdata.atmosphere.uri import AtUri
from atdata.nsid import kind_of
from atdata_appview.errors import DatasetNotFound, InvalidRequest
from atdata_appview.lens_graph import Path
from atdata_appview.models import Match
from atdata_appview.routes.lenses import path_views
from atdata_appview.routes.parameters import FINGERPRINT, filter_uri, filter_uris, publisher, publishers, record_uris
from atdata_appview.routes.records import get_of_kind
from atdata_appview.search import query_of
from atdata_appview.services import Services
from atdata_backend.published import Published
from atdata_backend.search import text
from atdata_backend.search.base import Query

# Structures that a search looks for: each takes some microseconds.
_STRUCTURES: Final = 300

Json = dict[str, Any]


async def search_datasets(services: Services, params: Mapping[str, Any]) -> Json | bytes:
    """The datasets that match, with counts by facet."""
    query, target = await _question(services, params)
    if target is None:
        return await services.search.dataset_answer(query)
    page = await services.search.datasets(query)
    answer = page.answer("datasets")
    views = await _paths(services, target, page.matches)
    for view, path in zip(answer["datasets"], views, strict=True):
        view |= {"path": path} if path else {}
    if target.is_truncated:
        answer["truncated"] = True
    return answer


async def search_query(services: Services, params: Mapping[str, Any]) -> Query:
    """The engine's query for *params*, which were checked against `searchDatasets`."""
    return (await _question(services, params))[0]


@dataclass(frozen=True, slots=True)
class _Target:
    """What samples are to become: the structures from which they can, and how."""

    key: str
    ways: Mapping[str, Path]
    is_truncated: bool


async def _question(services: Services, params: Mapping[str, Any]) -> tuple[Query, _Target | None]:
    named = dict(params)
    if "publishers" in params:
        named["publishers"] = await publishers(services.store, "publishers", params["publishers"])
    if "schemas" in params:
        named["schemas"] = await filter_uris(services.store, "schemas", params["schemas"])
    target = await _target(services, params["loadableAs"]) if "loadableAs" in params else None
    try:
        query = query_of(named)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return (query if target is None else replace(query, structures=tuple(target.ways))), target


async def _target(services: Services, given: str) -> _Target:
    """What leads to the schema, by AT URI, or the structure, by fingerprint, that is *given*."""
    if given.startswith("at://"):
        (given,) = await filter_uris(services.store, "loadableAs", [given])
    graph = services.graph
    if given not in graph:
        is_uri = given.startswith("at://")
        if not (kind_of(AtUri.parse(given).collection) == "schema" if is_uri else FINGERPRINT.fullmatch(given)):
            raise InvalidRequest(
                f"loadableAs: takes the AT URI of a schema or a structure's fingerprint, s1- and 40 hexadecimal digits "
                f"in lower case, not {given[:200]}; searchSchemas finds schemas by name"
            )
        # Neither the schema is here nor a lens that names it. Datasets that do are of whatever structure it has.
        return _Target(given, {given: Path(given, given, given, given)}, False)
    found = graph.loadable_as(given, limit=_STRUCTURES)
    return _Target(graph.key_of(given) or given, found, found.is_truncated)


async def _paths(services: Services, target: _Target, matches: Sequence[Match]) -> list[Json | None]:
    """For each of *matches* the way from its own schema; None where a lens on it was deleted a moment ago."""
    ways = [_way(target, match) for match in matches]
    views, _ = await path_views(services.store, {way for way in ways if way})
    return [views.get(way) if way else None for way in ways]


def _way(target: _Target, match: Match) -> Path | None:
    way = target.ways.get(match.structure or "")
    record = match.record.parsed()
    schema = record.get("schemaRef") if isinstance(record, dict) else None
    return way.starting_at(schema) if way and isinstance(schema, str) else way


async def similar_datasets(services: Services, params: Mapping[str, Any]) -> Json:
    """The datasets that are most like the one given."""
    uri = (await record_uris(services.store, "uri", [params["uri"]]))[0]
    found = await services.search.similar(uri, params["limit"]) if uri else None
    if found is None:
        raise DatasetNotFound(f"there is no dataset {params['uri'][:300]} here")
    itself, others = found
    return {"datasets": [other.view(similarity=_similarity(itself, other)) for other in others]}


def _similarity(one: Match, other: Match) -> Json:
    keys = {text.key(tag) for tag in _tags(one.record)}
    return {
        "sharedTags": [tag for tag in _tags(other.record) if text.key(tag) in keys],
        "sameStructure": one.structure is not None and one.structure == other.structure,
    }


def _tags(row: Published) -> list[str]:
    record = row.parsed()
    tags = record.get("tags") if isinstance(record, dict) else None
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


async def get_datasets(services: Services, params: Mapping[str, Any]) -> Json:
    """The datasets with these URIs."""
    return await get_of_kind(services, params["uris"], "dataset", "datasets")


async def list_datasets(services: Services, params: Mapping[str, Any]) -> Json:
    """Datasets, the latest first."""
    listing = await services.store.datasets(
        publisher=await publisher(services.store, params),
        schema=await filter_uri(services.store, "schema", params),
        tag=params.get("tag"),
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    return listing.answer("datasets")
