"""Methods that tell what a name stands for, where its shards are, and who publishes: one request, no searching."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from atdata.atmosphere import records
from atdata.atmosphere.uri import AtUri
from atdata.errors import SourceError, UriError
from atdata.nsid import Kind, kind_of
from atdata_appview import cursors, naming
from atdata_appview.errors import DatasetNotFound, InvalidRequest, LabelNotFound, ShardsNotFound
from atdata_appview.models import Record, to_json
from atdata_appview.naming import Candidate, Name
from atdata_appview.routes.parameters import record_uris
from atdata_appview.services import Services
from atdata_appview.shards import Shard, is_public_url, shards_of
from atdata_appview.store import ANSWER_BYTES, Store


async def resolve_dataset(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset that a name or a URI stands for, its schema, and where its publisher's repository is."""
    store = services.store
    asked = params["dataset"]
    label = None
    if asked.startswith("at://"):
        uri = await _record_uri(store, asked)
        if kind_of(uri.collection) not in ("dataset", "label"):
            raise InvalidRequest(f"dataset: {asked[:300]} is no URI of a dataset or a label")
    else:
        found = await _named(store, _parsed_name(asked))
        if found.kind == "label":
            label = await store.record(found.uri)
            uri = await _target(store, found.uri, found.target)
        else:
            uri = AtUri.parse(found.uri)
    if kind_of(uri.collection) == "label":
        # Also a label may point to a label, once.
        record = await store.record(str(uri))
        if record is None:
            raise LabelNotFound(f"there is no label {uri} here")
        label = label or record
        uri = await _target(store, record.uri, _text(record, "datasetUri"))
    if kind_of(uri.collection) != "dataset":
        raise DatasetNotFound(f"the label points to {uri}, which is no dataset")
    dataset = await store.record(str(uri))
    if dataset is None:
        raise DatasetNotFound(f"there is no dataset {uri} here" + (", to which the label points" if label else ""))
    answer: dict[str, Any] = {"dataset": dataset.view()}
    if schema := await _schema_of(store, dataset):
        answer["schema"] = schema.view()
    if label is not None:
        answer["label"] = label.view()
    if pds := _usable(services, {dataset.did: dataset.pds}):
        answer["pds"] = pds[dataset.did]
    return answer


async def resolve_label(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """The newest label of a name, or of a name and version, and what it points to."""
    store = services.store
    name = Name(params["publisher"], params["name"], params.get("version"))
    did = await _did(store, name.publisher)
    if did is None:
        raise LabelNotFound(_nobody(name.publisher))
    candidates = await store.named(did, name.name)
    found = naming.newest_label(candidates, name.version)
    label = await store.record(found.uri) if found else None
    if found is None or label is None or found.target is None:
        raise LabelNotFound(await _no_label(store, did, name, candidates))
    answer: dict[str, Any] = {"label": label.view(), "datasetUri": found.target}
    try:
        uri = await _target(store, found.uri, found.target)
    except DatasetNotFound:
        return answer
    dataset = await store.record(str(uri))
    if dataset is not None and dataset.kind == "dataset":
        answer["dataset"] = dataset.view()
    return answer


async def resolve_blobs(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Where the shards of a dataset are, page by page."""
    store = services.store
    uri = (await record_uris(store, "uri", [params["uri"]]))[0]
    record = await store.record(uri) if uri else None
    if record is None or record.kind != "dataset":
        raise DatasetNotFound(f"there is no dataset {params['uri'][:300]} here")
    dataset = records.read_value(record.collection, record.parsed())
    storage = dataset.storage if isinstance(dataset, records.DatasetRecord) else None
    start = _place_in(record, params.get("cursor"))
    try:
        # Thousands of URLs take a moment to write out, in which others are answered.
        allow_private = services.settings.allow_private_hosts
        shards = await asyncio.to_thread(shards_of, record.did, storage, allow_private=allow_private)
    except (SourceError, UriError) as error:
        about = [problem for problem in record.problems if problem.startswith("storage")]
        problems = "; ".join([str(error), *about])
        raise ShardsNotFound(f"{record.uri}: its shards cannot be read: {problems}") from None
    views = await _views(services, record, shards[start : start + params["limit"]])
    answer: dict[str, Any] = {
        "uri": record.uri,
        "cid": record.cid,
        "storage": records.storage_kind(storage),
        "total": len(shards),
        "shards": views,
    }
    if start + len(views) < len(shards):
        answer["cursor"] = cursors.encode(record.cid, start + len(views))
    return answer


async def list_publishers(services: Services, params: Mapping[str, Any]) -> dict[str, Any]:
    """Who publishes, and how much."""
    prefix = params.get("q", "").removeprefix("@")
    listing = await services.store.publishers(
        prefix=prefix or None, sort=params["sort"], limit=params["limit"], cursor=params.get("cursor")
    )
    return listing.answer()


# --- Names


def _parsed_name(text: str) -> Name:
    try:
        return Name.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"dataset: {error}") from None


async def _named(store: Store, name: Name) -> Candidate:
    """What *name* stands for. Raises DatasetNotFound or LabelNotFound, which say what there is instead."""
    did = await _did(store, name.publisher)
    if did is None:
        raise DatasetNotFound(_nobody(name.publisher))
    candidates = await store.named(did, name.name)
    found = naming.chosen(candidates, name.version)
    if found is not None:
        return found
    if name.version is not None:
        raise LabelNotFound(await _no_label(store, did, name, candidates))
    raise DatasetNotFound(
        f"{name.publisher} has neither label nor dataset {name.name[:100]!r} here"
        + await _instead(store, did, name.name, ["label", "dataset"])
    )


async def _did(store: Store, publisher: str) -> str | None:
    return publisher if publisher.startswith("did:") else (await store.dids([publisher])).get(publisher.lower())


def _nobody(publisher: str) -> str:
    return f"no publisher with the handle {publisher} is known here; check it, or give the DID"


async def _no_label(store: Store, did: str, name: Name, candidates: Sequence[Candidate]) -> str:
    wanted = name.name[:100] if name.version is None else f"{name.name[:100]}@{name.version[:50]}"
    missing = f"{name.publisher} has no label {wanted} here"
    if versions := naming.versions(candidates):
        return f"{missing}; it has {versions}"
    return missing + await _instead(store, did, name.name, ["label"])


async def _instead(store: Store, did: str, name: str, kinds: Sequence[Kind]) -> str:
    names = [one for one in await store.names(did, kinds) if one != name]
    alternatives = naming.alternatives(name, names)
    return f"; {alternatives}" if alternatives else ""


# --- Records


async def _record_uri(store: Store, uri: str) -> AtUri:
    """*uri*, which the parameter ``dataset`` gave, with a DID as its authority."""
    (found,) = await record_uris(store, "dataset", [uri])
    if found is None:
        raise DatasetNotFound(_nobody(AtUri.parse(uri).authority))
    return AtUri.parse(found)


async def _target(store: Store, label: str, target: str | None) -> AtUri:
    """The record to which *label* points. Raises DatasetNotFound when that is none that we can know."""
    try:
        (found,) = await record_uris(store, "datasetUri", [target or ""])
    except InvalidRequest:
        found = None
    if found is None:
        shown = (target or "")[:300]
        raise DatasetNotFound(f"the label {label} points to {shown!r}, and there is no such dataset here")
    return AtUri.parse(found)


async def _schema_of(store: Store, dataset: Record) -> Record | None:
    try:
        (uri,) = await record_uris(store, "schemaRef", [_text(dataset, "schemaRef") or ""])
    except InvalidRequest:
        return None
    schema = await store.record(uri) if uri else None
    return schema if schema is not None and schema.kind == "schema" else None


def _text(record: Record, member: str) -> str | None:
    parsed = record.parsed()
    value = parsed.get(member) if isinstance(parsed, dict) else None
    return value if isinstance(value, str) else None


# --- Shards


def _usable(services: Services, hosts: Mapping[str, str | None]) -> dict[str, str]:
    """Those of *hosts*, which DID documents name, that may be asked."""
    allow_private = services.settings.allow_private_hosts
    return {
        did: host
        for did, host in hosts.items()
        if host and (allow_private or (host.startswith("https://") and is_public_url(host)))
    }


async def _views(services: Services, record: Record, shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """As many of *shards* as an answer holds, at least one."""
    dids = {shard.blob.did for shard in shards if shard.blob is not None}
    hosts = _usable(services, await services.store.hosts(dids)) if dids else {}
    for did in dids - hosts.keys():
        raise ShardsNotFound(
            f"{record.uri}: the server (PDS) of {did}, which has its blobs, is not known here, or not yet; try later,"
            " or look it up in the account's DID document"
        )
    views: list[dict[str, Any]] = []
    size = 0
    for shard in shards:
        view = shard.view(hosts)
        size += len(to_json(view))
        if views and size > ANSWER_BYTES:
            break
        views.append(view)
    return views


def _place_in(record: Record, cursor: str | None) -> int:
    """How many shards were given out before *cursor*."""
    if cursor is None:
        return 0
    cid, place = cursors.decode(cursor, (str, int))
    if cid != record.cid:
        raise InvalidRequest("cursor: the dataset was changed meanwhile; start again without it")
    return max(0, int(place))
