"""An AppView for tests, and what it reads, put there without an indexer: rows in Postgres, documents in an engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI

from atdata.atmosphere import records
from atdata.lexicon import Lexicons, load_lexicons
from atdata.nsid import DATASET, LABEL, LENS, PREFIX, SAMPLE_SCHEMA, kind_of
from atdata_appview.app import create_app
from atdata_appview.commands import server_config
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.base import SearchEngine
from atdata_indexer.feed import documents, schema_documents
from atdata_indexer.store import Searchable

ALICE, BOB = "did:plc:" + "a" * 24, "did:plc:" + "b" * 24
START = datetime(2026, 1, 1, tzinfo=UTC)

Json = dict[str, Any]


def schema(name: str = "Digit", version: str = "1.0.0", **more: Any) -> Json:
    fields = [
        {"name": "image", "fieldType": _type("ndarray", dtype="uint8", shape=[28, 28]), "description": "In grey."},
        {"name": "label", "fieldType": _type("primitive", primitive="int"), "optional": False},
        {"name": "words", "fieldType": _type("array", items=_type("primitive", primitive="str")), "optional": True},
    ]
    record = {"$type": SAMPLE_SCHEMA, "name": name, "version": version, "fields": fields, "createdAt": _time(0)}
    return {**record, **more}


def dataset(name: str = "Digits", schema_ref: str = "", day: int = 0, **more: Any) -> Json:
    record = {
        "$type": DATASET,
        "name": name,
        "schemaRef": schema_ref or f"at://{ALICE}/{SAMPLE_SCHEMA}/digit",
        "storage": {
            "$type": "ac.foundation.dataset.storageExternal",
            "urls": ["https://example.com/digits-{000..009}.tar"],
        },
        "createdAt": _time(day),
    }
    return {**record, **more}


def lens(name: str, source: str, target: str, **more: Any) -> Json:
    ends = {"sourceSchema": source, "targetSchema": target}
    return {"$type": LENS, "name": name, **ends, "createdAt": _time(0), **more}


def label(name: str, dataset_uri: str, **more: Any) -> Json:
    return {"$type": LABEL, "name": name, "datasetUri": dataset_uri, "createdAt": _time(0), **more}


def _type(kind: str, **members: Any) -> Json:
    return {"$type": f"ac.foundation.dataset.schemaType#{kind}", **members}


def _time(day: int) -> str:
    return (START + timedelta(days=day)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Holdings:
    """One database and one engine, filled step by step."""

    def __init__(self, database_url: str, engine: SearchEngine) -> None:
        self.database_url = database_url
        self.engine = engine
        self._handles: dict[str, str | None] = {}
        self._schemas: dict[str, Searchable] = {}

    def account(self, did: str, handle: str | None = None, status: str = "active", pds: str | None = None) -> None:
        """Track the account, or change what is known of it."""
        self._handles[did] = handle
        self.execute(
            "INSERT INTO repositories (did, handle, status, pds) VALUES (%s, %s, %s, %s) ON CONFLICT (did) DO UPDATE "
            "SET handle = excluded.handle, status = excluded.status, pds = excluded.pds",
            [did, handle, status, pds],
        )

    def add(self, did: str, collection: str, rkey: str, record: Any, *, verified: bool = True) -> str:
        """Store one record, and index it if it is a dataset or a schema. Returns its URI."""
        return self.add_all(did, collection, [(rkey, record)], verified=verified)[0]

    def add_all(
        self, did: str, collection: str, rows: Iterable[tuple[str, Any]], *, verified: bool = True
    ) -> list[str]:
        """Store many records of one collection at once."""
        values: list[Sequence[Any]] = []
        schema_refs: dict[str, str | None] = {}
        for rkey, record in rows:
            uri = f"at://{did}/{collection}/{rkey}"
            reading = records.read(collection, record)
            value = reading.value
            tags = list(value.tags) if isinstance(value, records.DatasetRecord) else None
            copies = [
                getattr(value, name, None)
                for name in ("name", "version", "schema_ref", "source_schema", "target_schema", "dataset_uri")
            ]
            key = (did, collection, rkey, kind_of(collection), cid(record))
            values.append((*key, json.dumps(record), list(reading.problems), *copies, tags, verified))
            schema_refs[uri] = getattr(value, "schema_ref", None)
        with psycopg.connect(self.database_url) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO records (did, collection, rkey, kind, cid, rev, record, problems, name, version, "
                "schema_ref, source_schema, target_schema, dataset_ref, tags, verified_at) "
                "VALUES (%s, %s, %s, %s, %s, '3lqdkdjpy6t2e', %s, %s, %s, %s, %s, %s, %s, %s, %s, "
                "CASE WHEN %s THEN now() END)",
                values,
            )
            cursor.execute(
                "SELECT uri, cid, did, %s::text, record::text, problems, verified_at IS NOT NULL, indexed_at "
                "FROM records WHERE uri = ANY(%s) AND kind IN ('dataset', 'schema')",
                [self._handles.get(did), list(schema_refs)],
            )
            found = [Searchable(*row, schema_refs[row[0]]) for row in cursor]
        found_schemas = [row for row in found if row.kind == "schema"]
        self._schemas |= {row.uri: row for row in found_schemas}
        if found_datasets := [row for row in found if row.kind == "dataset"]:
            self.engine.apply(documents(found_datasets, self._schemas.values()), [])
        if found_schemas:
            self.engine.schemas.apply(schema_documents(found_schemas), [])
        return list(schema_refs)

    def delete(self, uri: str) -> None:
        """Delete a record from the database only, as it is a moment before the engine hears of it."""
        self.execute("DELETE FROM records WHERE uri = %s", [uri])

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(sql.encode(), params)


def cid(record: Mapping[str, Any] | Any) -> str:
    """Something in the form of a CID, different for every record."""
    return "bafyrei" + hashlib.sha256(json.dumps(record).encode()).hexdigest()[:52]


class Asker:
    """Asks an AppView, and checks that what it answers is what its lexicons promise."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def __call__(self, method: str, **params: Any) -> Json:
        """The answer of *method*, which is to be one."""
        response = await self.get(method, **params)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        assert breaches(PREFIX + method, answer) == ()
        return answer

    async def get(self, method: str, **params: Any) -> httpx.Response:
        return await self.client.get(f"/xrpc/{PREFIX}{method}", params=params)

    async def page(self, path: str) -> str:
        """The text of a page, which is to be there."""
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        return response.text


@asynccontextmanager
async def serving(settings: AppViewSettings, *, client: str = "127.0.0.1") -> AsyncIterator[Asker]:
    """An AppView in this process, started and, in the end, stopped."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://appview.test") as http:
            yield Asker(http)


def breaches(method: str, answer: Any) -> tuple[Any, ...]:
    """What the output schema of *method* says against *answer*."""
    lexicons = load_lexicons()
    query = lexicons.query(method)
    assert query is not None
    # An output is no definition of its own that could be checked by name: wrap it in a record that is.
    output = json.loads(json.dumps(query.output).replace('"ref": "#', f'"ref": "{method}#'))
    body = {"type": "object", "required": ["answer"], "properties": {"answer": output}}
    main = {"type": "record", "key": "any", "record": body}
    wrapper = {"lexicon": 1, "id": "test.appview.answer", "defs": {"main": main}}
    checker = Lexicons.from_documents([*lexicons.documents.values(), wrapper])
    return checker.validate_record("test.appview.answer", {"$type": "test.appview.answer", "answer": answer})


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The URL of an AppView on a server in a thread, for clients that block."""
    server = uvicorn.Server(server_config(app))

    async def run(listener: socket.socket) -> None:
        async with app.router.lifespan_context(app):
            await server.serve(sockets=[listener])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(run(listener)))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
