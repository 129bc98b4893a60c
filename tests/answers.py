"""An AppView for clients that block, and the server of the repositories behind it, which say what a test wants said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from web import Reply, serve

from atdata.cid import generate_cid
from atdata.nsid import DATASET, LABEL, LENS, PREFIX, SAMPLE_SCHEMA
from atdata.schema import type_to_schema
from atdata.structure import structure_of_type
from atdata.syntax import parse_datetime

ALICE, BOB = "did:plc:" + "a" * 24, "did:plc:" + "b" * 24
HANDLES = {ALICE: "alice.test", BOB: "bob.test"}
TIME = "2026-01-02T00:00:00.000Z"

Json = dict[str, Any]


# --- Records, and views of them


def dataset(name: str = "digits", schema_ref: str = f"at://{ALICE}/{SAMPLE_SCHEMA}/digit", *urls: str) -> Json:
    storage = {"$type": f"{PREFIX}storageExternal", "urls": list(urls or ("https://example.com/digits.tar",))}
    return {"$type": DATASET, "name": name, "schemaRef": schema_ref, "storage": storage, "createdAt": TIME}


def schema(sample_type: type[Any], version: str = "1.0.0") -> Json:
    return type_to_schema(sample_type, version=version, created_at=parse_datetime(TIME)).to_record()


def lens(name: str, source: str, target: str, path: str | None = None) -> Json:
    code = {"repository": "https://example.com/lenses", "commit": "abc123", "path": path}
    more = {} if path is None else {"getterCode": code}
    return {"$type": LENS, "name": name, "sourceSchema": source, "targetSchema": target, "createdAt": TIME, **more}


def label(name: str, uri: str, version: str | None = None) -> Json:
    more = {} if version is None else {"version": version}
    return {"$type": LABEL, "name": name, "datasetUri": uri, "createdAt": TIME, **more}


def view(record: Json, rkey: str = "x", did: str = ALICE, **more: Any) -> Json:
    """A record as an AppView shows it."""
    return {
        "uri": f"at://{did}/{record['$type']}/{rkey}",
        "cid": generate_cid(record),
        "publisher": {"did": did, "handle": HANDLES.get(did, "handle.invalid")},
        "record": record,
        "indexedAt": TIME,
        "verified": True,
        **more,
    }


def key(sample_type: type[Any]) -> str:
    return structure_of_type(sample_type).fingerprint


def hop(source: type[Any], target: type[Any], record: Json | None = None, **more: Any) -> Json:
    """A step of a path: through the lens *record*, or a projection."""
    kind = {"kind": "projection"} if record is None else {"kind": "lens", "lens": view(record, record["name"])}
    uris = {"fromSchema": f"at://{ALICE}/{SAMPLE_SCHEMA}/s", "toSchema": f"at://{ALICE}/{SAMPLE_SCHEMA}/t"}
    return {**kind, "from": key(source), "to": key(target), **uris, "hasPutter": False, **more}


def path(*hops: Json) -> Json:
    lenses = sum(hop["kind"] == "lens" for hop in hops)
    ends = {"from": hops[0]["from"], "to": hops[-1]["to"]} if hops else {"from": "s1-x", "to": "s1-x"}
    return {**ends, "hops": list(hops), "lenses": lenses, "projections": len(hops) - lenses, "invertible": False}


def paths(*found: Json) -> Json:
    node = {"key": "s1-x", "state": "readable", "schemas": [], "schemaCount": 1}
    return {"from": node, "to": node, "paths": list(found), "truncated": False}


# --- The server


@dataclass
class Network:
    """One server that is an AppView, by `answers`, and the PDS and the directory of `records`."""

    url: str = ""
    answers: dict[str, Json | Callable[[Mapping[str, list[str]]], Json | Reply] | Reply] = field(default_factory=dict)
    records: dict[str, Json] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """What was asked for, without the parameters: methods in our namespace by their last part."""
        return [name for name, _ in self.asked]

    def answer(self, target: str) -> Reply:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        name = parts.path.removeprefix("/xrpc/").removeprefix(PREFIX)
        self.asked.append((name, query))
        if parts.path in self.files:
            return Reply(self.files[parts.path])
        if name in self.answers:
            answer = self.answers[name]
            answer = answer(query) if callable(answer) else answer
            return answer if isinstance(answer, Reply) else reply(answer)
        if name.startswith("com.atproto.repo."):
            return self._repository(name, {name: values[0] for name, values in query.items()})
        did = parts.path.removeprefix("/")
        if did in HANDLES:
            service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": self.url}
            return reply({"id": did, "alsoKnownAs": [f"at://{HANDLES[did]}"], "service": [service]})
        return refusal(404, "NotFound", f"nothing at {parts.path}")

    def _repository(self, name: str, query: Mapping[str, str]) -> Reply:
        if name.endswith("getRecord"):
            uri = f"at://{query['repo']}/{query['collection']}/{query['rkey']}"
            record = self.records.get(uri)
            if record is None:
                return refusal(400, "RecordNotFound", "Could not locate record")
            return reply({"uri": uri, "cid": generate_cid(record), "value": record})
        prefix = f"at://{query['repo']}/{query['collection']}/"
        found = [(uri, record) for uri, record in self.records.items() if uri.startswith(prefix)]
        return reply({"records": [{"uri": uri, "cid": generate_cid(one), "value": one} for uri, one in found]})


def reply(answer: Any) -> Reply:
    return Reply(json.dumps(answer).encode(), headers={"Content-Type": "application/json"})


def refusal(status: int, error: str, message: str = "", **headers: str) -> Reply:
    return Reply(json.dumps({"error": error, "message": message}).encode(), status, headers=headers)


@contextmanager
def serving(network: Network) -> Iterator[Network]:
    """Serve *network* on loopback until the block ends."""
    with serve(network.answer) as web:
        network.url = web.url
        yield network
