"""The reference implementation subscribes to our changes: its client, its decoder and its check of our lexicon."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import cbrrr
import pytest
import uvicorn
from frames import block, cid
from holdings import ALICE, Holdings, Json, dataset
from network.atproto_network import HERE

import atdata
from atdata.nsid import DATASET, PREFIX
from atdata_appview.app import create_app
from atdata_appview.commands import listen, server_config
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine

NSID = PREFIX + "subscribeChanges"

# Prints messages, one a line, until one tells of the last record, or the stream ends with an error, which it prints.
CLIENT = """
import { readFileSync } from 'node:fs'
import { Subscription } from '@atproto/xrpc-server'
import { Lexicons, jsonToLex, lexToJson } from '@atproto/lexicon'
const [service, cursor, ...documents] = process.argv.slice(1)
const lexicons = new Lexicons(documents.map((path) => JSON.parse(readFileSync(path, 'utf8'))))
const validate = (message) => lexicons.assertValidXrpcMessage('NSID', message)
const options = { service, method: 'NSID', validate, getParams: () => ({ cursor }) }
try {
  for await (const message of new Subscription(options)) {
    console.log(JSON.stringify(lexToJson(message)))
    if (message.rkey === 'last') process.exit(0)
  }
} catch (error) {
  console.log(JSON.stringify({ error: error.customErrorName ?? error.error, message: error.message }))
  process.exit(0)
}
""".replace("NSID", NSID)


@asynccontextmanager
async def serving(database_url: str, folder: Path) -> AsyncIterator[str]:
    """The address of an AppView that holds some records."""
    settings = AppViewSettings(database_url=database_url, search_dir=folder, port=0, search_processes=0)
    with listen(settings) as listener:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            server = uvicorn.Server(server_config(app))
            running = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0)
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            await running


async def messages(service: str, cursor: int) -> list[Json]:
    """What the reference implementation's client gets."""
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules").is_dir():
        pytest.skip("the reference implementation is not installed: run tests/network/install")
    lexicons = Path(atdata.__file__).parent / "lexicons/ac/foundation/dataset/subscribeChanges.json"
    client = await asyncio.create_subprocess_exec(
        *(node, "--input-type=module", "--eval", CLIENT, "--", service, str(cursor), str(lexicons)),
        cwd=HERE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(client.communicate(), 60)
    return [json.loads(line) for line in output.splitlines()]


def cid_of(record: Json) -> str:
    """The CID of a record, which the client looks at."""
    return cbrrr.CID(cid(block(record))).encode()


async def test_the_reference_client(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message passes its check of our lexicon; records have links where theirs do; errors have their names."""
    monkeypatch.setattr("holdings.cid", cid_of)
    engine = TantivyEngine(tmp_path)
    holdings = Holdings(database_url, engine)
    holdings.account(ALICE)
    linked = dataset("Linked", extra={"$link": "bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"})
    holdings.add(ALICE, DATASET, "a", linked)
    holdings.account(ALICE, status="deactivated")
    holdings.account(ALICE)
    holdings.add(ALICE, DATASET, "last", dataset("Last"), verified=False)
    engine.close()
    async with serving(database_url, tmp_path) as service:
        first, hidden, shown, again, last = await messages(service, 0)
        assert first.pop("time")
        assert first == {
            "$type": f"{NSID}#record",
            "seq": 1,
            "did": ALICE,
            "uri": f"at://{ALICE}/{DATASET}/a",
            "collection": DATASET,
            "rkey": "a",
            "kind": "dataset",
            "action": "create",
            "cid": cid_of(linked),
            "record": linked,
            "verified": True,
        }
        assert [(it["$type"], it["active"], it.get("status")) for it in (hidden, shown)] == [
            (f"{NSID}#account", False, "deactivated"),
            (f"{NSID}#account", True, None),
        ]
        assert (again["uri"], last["verified"]) == (first["uri"], False)
        (error,) = await messages(service, 99)
        assert error["error"] == "FutureCursor"
