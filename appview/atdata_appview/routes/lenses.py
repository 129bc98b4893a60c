"""Methods about lenses: get, list, and the graph that they make of schemas: paths, neighbourhoods."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Final

from atdata import syntax
from atdata_appview.errors import SchemaNotFound
from atdata_appview.lens_graph import Hop, LensGraph, Path
from atdata_appview.models import Record
from atdata_appview.routes.parameters import filter_uri, publisher, record_uris
from atdata_appview.routes.records import get_of_kind
from atdata_appview.services import Services
from atdata_appview.store import Store

# URIs that an answer shows of the nodes that were asked for; of the others it shows one.
_SCHEMAS: Final = 10

Json = dict[str, Any]


async def get_lenses(services: Services, params: Mapping[str, Any]) -> Json:
    """The lenses with these URIs."""
    return await get_of_kind(services, params["uris"], "lens", "lenses", lens_views)


async def list_lenses(services: Services, params: Mapping[str, Any]) -> Json:
    """Lenses, the latest first."""
    ends = {name: await filter_uri(services.store, name, params) for name in ("source", "target", "schema")}
    numbers = None
    if params["equivalent"] and any(ends.values()):
        numbers, ends = _equivalent(services.graph, **ends), {}
    listing = await services.store.lenses(
        publisher=await publisher(services.store, params),
        source=ends.get("source"),
        target=ends.get("target"),
        schema=ends.get("schema"),
        numbers=numbers,
        limit=params["limit"],
        cursor=params.get("cursor"),
    )
    views = await lens_views(services.store, listing.records)
    return {"lenses": views} if listing.cursor is None else {"lenses": views, "cursor": listing.cursor}


def _equivalent(graph: LensGraph, source: str | None, target: str | None, schema: str | None) -> list[int]:
    """The numbers of the lenses at schemas that are structurally equal to these."""
    if any(end not in graph for end in (source, target, schema) if end is not None):
        return []
    return graph.lenses_at(source=source, target=target, either=schema)


async def lens_views(store: Store, rows: Sequence[Record]) -> list[Json]:
    """*rows* as `lensView`s, which say which of their schemas are not here."""
    ends = [_ends(row) for row in rows]
    named = {uri for uris in ends for uri in uris}
    held = await store.held_schemas(named) if named else {}
    return [_lens_view(row, uris, held) for row, uris in zip(rows, ends, strict=True)]


def _ends(row: Record) -> list[str]:
    """The schemas that a lens names. What is no AT URI is said in the record's problems."""
    record = row.parsed()
    named = [record.get("sourceSchema"), record.get("targetSchema")] if isinstance(record, dict) else []
    return [uri for uri in named if isinstance(uri, str) and syntax.is_at_uri(uri)]


def _lens_view(row: Record, ends: Iterable[str], held: Container[str]) -> Json:
    missing = list(dict.fromkeys(uri for uri in ends if uri not in held))
    return row.view(missing=missing) if missing else row.view()


# --- The graph


async def get_lens_path(services: Services, params: Mapping[str, Any]) -> Json:
    """The best ways from one schema to another."""
    ends = [await _named(services.store, name, params[name]) for name in ("from", "to")]
    # Until the next question to the database, nobody changes the graph.
    graph = services.graph
    source, target = (_node(graph, name, params[name], end) for name, end in zip(("from", "to"), ends, strict=True))
    found = graph.paths(source, target, params["maxHops"], params["k"])
    nodes = [_node_view(graph, end, _SCHEMAS) for end in (source, target)]
    views, held = await path_views(services.store, found.paths, _schemas(nodes))
    return {
        "from": _with_name(nodes[0], held),
        "to": _with_name(nodes[1], held),
        "paths": [views[path] for path in found.paths if path in views],
        "truncated": found.is_truncated or len(views) < len(found.paths),
    }


async def get_lens_graph(services: Services, params: Mapping[str, Any]) -> Json:
    """What lies around a schema."""
    named = await _named(services.store, "root", params["root"])
    graph = services.graph
    root = _node(graph, "root", params["root"], named)
    found = graph.neighbourhood(root, params["depth"], params["direction"])
    nodes = [
        {**_node_view(graph, key if depth else root, 1 if depth else _SCHEMAS), "depth": depth}
        for key, depth in found.nodes.items()
    ]
    lenses, held = await asyncio.gather(
        services.store.lens_names(edge.lens for edge in found.edges if edge.lens is not None),
        services.store.held_schemas(_schemas(nodes)),
    )
    edges = []
    for edge in found.edges:
        view: Json = {"kind": _kind(edge), "from": edge.source, "to": edge.target, "hasPutter": edge.has_putter}
        if edge.lens is not None:
            if edge.lens not in lenses:
                continue  # it was deleted a moment ago
            view["lens"], name = lenses[edge.lens]
            view |= {"name": name} if name else {}
        edges.append(view)
    return {
        "root": nodes[0]["key"],
        "nodes": [_with_name(node, held) for node in nodes],
        "edges": edges,
        "truncated": found.is_truncated,
    }


async def graph_node(services: Services, name: str, given: str) -> str:
    """What the graph calls the schema, by AT URI, or the structure, by fingerprint, that parameter *name* gave.

    Raises InvalidRequest for a URI that names no record, SchemaNotFound for what is not in the graph, and Unavailable
    while that is still being read.
    """
    named = await _named(services.store, name, given)
    return _node(services.graph, name, given, named)


async def _named(store: Store, name: str, given: str) -> str | None:
    """*given* with a DID as its authority; None if its handle is not known here."""
    return (await record_uris(store, name, [given]))[0] if given.startswith("at://") else given


def _node(graph: LensGraph, name: str, given: str, named: str | None) -> str:
    if named is not None and named in graph:
        return named
    if given.startswith("at://"):
        raise SchemaNotFound(f"{name}: there is no schema {given[:300]} here, and no lens names it")
    raise SchemaNotFound(f"{name}: no schema here has the structure {given[:100]}; give a schema's AT URI instead")


async def path_views(
    store: Store, paths: Collection[Path], schemas: Iterable[str] = ()
) -> tuple[dict[Path, Json], dict[str, str]]:
    """*paths* as `lensPath`s; and of the schemas that they name, or *schemas* does, those that are here, with names.

    Those paths are absent of which a lens was deleted a moment ago, or that find no room in an answer.
    """
    hops = {hop.lens: hop for path in paths for hop in path.hops if hop.lens is not None}
    named = {uri for hop in hops.values() for uri in (hop.source_schema, hop.target_schema)}.union(schemas)
    rows, held = await asyncio.gather(store.lenses_numbered(hops), store.held_schemas(named))
    lenses = {
        number: _lens_view(row, (hops[number].source_schema, hops[number].target_schema), held)
        for number, row in rows.items()
        if row.json
    }
    views = {
        path: _path_view(path, lenses)
        for path in paths
        if all(hop.lens is None or hop.lens in lenses for hop in path.hops)
    }
    return views, held


def _path_view(path: Path, lenses: Mapping[int, Json]) -> Json:
    hops = []
    for hop in path.hops:
        view: Json = {
            "kind": _kind(hop),
            "from": hop.source,
            "to": hop.target,
            "fromSchema": hop.source_schema,
            "toSchema": hop.target_schema,
            "hasPutter": hop.has_putter,
        }
        if hop.lens is not None:
            view["lens"] = lenses[hop.lens]
        hops.append(view)
    return {
        "from": path.source,
        "to": path.target,
        "fromSchema": path.source_schema,
        "toSchema": path.target_schema,
        "hops": hops,
        "lenses": path.lenses,
        "projections": len(path.hops) - path.lenses,
        "invertible": path.is_invertible,
    }


def _kind(hop: Hop) -> str:
    return "projection" if hop.lens is None else "lens"


def _node_view(graph: LensGraph, node: str, limit: int) -> Json:
    """The node of which *node* is the key or a schema's URI, as `lensNode`; that schema comes first."""
    key = graph.key_of(node)
    schemas = graph.uris_of(key or node, limit)
    if key is not None:
        schemas = list(dict.fromkeys((node, *schemas)))[:limit]
    key = key or node
    return {"key": key, "state": graph.state_of(key), "schemas": schemas, "schemaCount": graph.size_of(key)}


def _schemas(nodes: Iterable[Json]) -> list[str]:
    return [uri for node in nodes for uri in node["schemas"]]


def _with_name(node: Json, names: Mapping[str, str]) -> Json:
    """A view of a node with what the first of its schemas is called that has a name."""
    name = next(filter(None, map(names.get, node["schemas"])), None)
    return node if name is None else {**node, "name": name}
