"""The AppView as others ask it: `@atproto/api`'s client with our lexicons, and the reference PDS for its accounts."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from network.atproto_network import Account, Network
from network.system import System, start_system
from postgres import TestDatabases

from atdata.atmosphere import AtmosphereClient
from atdata.atmosphere.load import resolve_path
from atdata.errors import NotFoundError
from atdata.lexicon import load_lexicons
from atdata.nsid import DATASET, LABEL, LENS, PREFIX, SAMPLE_SCHEMA
from atdata_appview.routes.xrpc import METHODS

HERE = Path(__file__).parent
LEXICONS = list(load_lexicons().documents.values())
LIMIT = 30


@pytest.fixture(scope="module")
def system(network: Network, postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Indexer and AppView, at a name that the PDS resolves: of did:webs it asks localhost alone without TLS."""
    with (
        postgres.database() as url,
        start_system(network, url, tmp_path_factory.mktemp("clients"), ATDATA_HOST="localhost") as system,
    ):
        yield system


@pytest.fixture(scope="module")
def ada(network: Network) -> Account:
    return network.create_account()


def known(system: System, account: Account) -> None:
    """Wait until all that was published is indexed, and the handle of *account* was confirmed."""
    # Who was never heard of is behind in nothing, so that first.
    system.until(lambda: system.sql("SELECT FROM repositories WHERE handle = %s", account.handle), "a handle")
    system.settled()


def at(day: int) -> str:
    return f"2026-03-{day:02}T00:00:00.000Z"


def schema(name: str, fields: dict[str, str], version: str = "1.0.0") -> dict[str, Any]:
    kind = "ac.foundation.dataset.schemaType#primitive"
    return {
        "name": name,
        "version": version,
        "fields": [
            {"name": field, "fieldType": {"$type": kind, "primitive": primitive}, "optional": False}
            for field, primitive in fields.items()
        ],
        "createdAt": at(1),
    }


def dataset(name: str, schema_ref: str, day: int = 1, **more: Any) -> dict[str, Any]:
    storage = {"$type": PREFIX + "storageExternal", "urls": ["https://example.com/{0..3}.tar"]}
    return {"name": name, "schemaRef": schema_ref, "storage": storage, "createdAt": at(day), **more}


@pytest.fixture(scope="module")
def uris(system: System, ada: Account) -> dict[str, str]:
    """A record of each kind on the PDS, and in the index; their URIs by name."""

    def publish(collection: str, record: dict[str, Any]) -> str:
        uri: str = ada.create_record(collection, record)["uri"]
        return uri

    wide = publish(SAMPLE_SCHEMA, schema("Recording", {"caption": "str", "length": "int"}))
    narrow = publish(SAMPLE_SCHEMA, schema("Caption", {"text": "str"}))
    uris = {
        "wide": wide,
        "narrow": narrow,
        "lens": publish(LENS, {"name": "to_caption", "sourceSchema": wide, "targetSchema": narrow, "createdAt": at(1)}),
        "dataset": publish(DATASET, dataset("Owls", wide, tags=["audio"], description="Calls of owls at night.")),
        "similar": publish(DATASET, dataset("Bats", wide, tags=["audio"], description="Calls of bats at night.")),
    }
    blob = ada.upload_blob(b"0" * 1024, "application/x-tar")
    storage = {"$type": PREFIX + "storageBlobs", "blobs": [blob]}
    uris["blobs"] = publish(DATASET, dataset("Blobs", narrow, storage=storage))
    uris["label"] = publish(
        LABEL, {"name": "owls", "datasetUri": uris["dataset"], "version": "1.0.0", "createdAt": at(1)}
    )
    known(system, ada)
    return uris


Call = tuple[str, dict[str, Any]]


def call_all(service: str, calls: Sequence[Call], *, lexicons: Sequence[Any] = LEXICONS, **more: Any) -> list[Any]:
    """What `clients.mjs` makes of *calls*, given by method's name and parameters."""
    asked = [{"nsid": PREFIX + method, "params": params} for method, params in calls]
    done = subprocess.run(
        ["node", "clients.mjs"],
        input=json.dumps({"lexicons": lexicons, "service": service, "calls": asked, **more}),
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def calls(ada: Account, uris: dict[str, str]) -> list[Call]:
    """Calls of every method that have something to answer."""
    wide, narrow = uris["wide"], uris["narrow"]
    found: list[Call] = [
        ("searchDatasets", {"q": "owls", "facets": ["tags", "license"], "limit": 5}),
        ("searchDatasets", {"loadableAs": narrow}),
        ("searchSchemas", {"q": "recording"}),
        ("similarDatasets", {"uri": uris["dataset"]}),
        ("getDatasets", {"uris": [uris["dataset"], uris["lens"]]}),
        ("listDatasets", {"publisher": ada.did, "limit": 1}),
        ("getSchemas", {"uris": [wide]}),
        ("listSchemas", {"publisher": ada.handle}),
        ("getLenses", {"uris": [uris["lens"]]}),
        ("listLenses", {"source": wide}),
        ("getRecord", {"uri": uris["label"]}),
        ("getStatus", {}),
        ("compareSchemas", {"from": wide, "to": narrow}),
        ("resolveSchema", {"publisher": ada.handle, "name": "Recording", "version": "^1.0.0"}),
        ("getLensPath", {"from": wide, "to": narrow}),
        ("getLensGraph", {"root": wide}),
        ("resolveDataset", {"dataset": f"@{ada.handle}/owls@1.0.0"}),
        ("resolveDataset", {"dataset": uris["blobs"]}),
        ("resolveLabel", {"publisher": ada.did, "name": "owls"}),
        ("resolveBlobs", {"uri": uris["dataset"], "limit": 2}),
        ("resolveBlobs", {"uri": uris["blobs"]}),
        ("listPublishers", {"q": ada.handle[:4]}),
    ]
    assert {PREFIX + method for method, _ in found} == set(METHODS), "a method is not asked"
    return found


# --- @atproto/api


def test_every_answer_passes_the_reference_client(system: System, calls: list[Call]) -> None:
    """Its lexicon library takes our documents and parameters, and finds every answer as they promise."""
    for call, answer in zip(calls, call_all(system.url, calls), strict=True):
        assert "data" in answer, f"{call}: {answer}"


def test_the_reference_client_does_check_answers(system: System, calls: list[Call]) -> None:
    """Were something else promised, no answer would pass."""
    promising = copy.deepcopy(LEXICONS)
    for document in promising:
        output = document["defs"].get("main", {}).get("output", {}).get("schema", {})
        if output.get("type") == "object":
            output["required"] = [*output["required"], "somethingElse"]
            output["properties"]["somethingElse"] = {"type": "string"}
    for (method, _), answer in zip(calls, call_all(system.url, calls, lexicons=promising), strict=True):
        assert answer.get("error") == ("InvalidResponse" if method != "getRecord" else None), f"{method}: {answer}"


@pytest.mark.usefixtures("uris")
def test_errors_have_their_names_in_the_reference_client(system: System) -> None:
    """Status and name arrive as they are."""
    did = "did:plc:" + "z" * 24
    answers = call_all(
        system.url,
        [
            ("getRecord", {"uri": f"at://{did}/{DATASET}/x"}),
            ("resolveDataset", {"dataset": f"@{did}/x"}),
            ("resolveLabel", {"publisher": did, "name": "x"}),
            ("listDatasets", {"cursor": "x"}),
        ],
    )
    assert [(answer["status"], answer["error"]) for answer in answers] == [
        (404, "RecordNotFound"),
        (404, "DatasetNotFound"),
        (404, "LabelNotFound"),
        (400, "InvalidRequest"),
    ]


# --- Names, as the library finds them


@pytest.fixture(scope="module")
def named(system: System, network: Network) -> Account:
    """An account with datasets and labels that want to be told apart."""
    account = network.create_account()
    for rkey, name, day in [("one", "Owls", 3), ("two", "Owls", 5), ("three", "Owls", 4), ("four", "Bats", 1)]:
        # Each has shards and a schema of its own, by which it is known.
        storage = {"$type": PREFIX + "storageExternal", "urls": [f"https://example.com/{rkey}.tar"]}
        ref = f"at://{account.did}/{SAMPLE_SCHEMA}/{rkey}"
        account.put_record(DATASET, rkey, dataset(name, ref, day, storage=storage))
    target = f"at://{account.did}/{DATASET}"
    for rkey, name, to, version, day in [
        ("z", "owls", "one", "1.10.0", 1),
        ("a", "owls", "two", "1.9.0", 2),
        ("b", "owls", "three", "1.9.0", 2),
        ("c", "Bats", "four", None, 1),
        ("d", "handle", "one", None, 1),
    ]:
        at_handle = f"at://{account.handle}/{DATASET}/{to}"
        record = {
            "name": name,
            "datasetUri": at_handle if name == "handle" else f"{target}/{to}",
            "createdAt": at(day),
            **({"version": version} if version else {}),
        }
        account.put_record(LABEL, rkey, record)
    # A label of a label, as the library follows one.
    chain = {"name": "chain", "datasetUri": f"at://{account.did}/{LABEL}/z", "createdAt": at(1)}
    account.put_record(LABEL, "e", chain)
    known(system, account)
    return account


@pytest.mark.parametrize(
    "name",
    [
        "Owls",
        "owls",
        "owls@1.9.0",
        "owls@1.10.0",
        "owls@",
        "owls@2",
        "OWLS",
        "Bats",
        "Bats@1",
        "Owls@1.9.0",
        "handle",
        "chain",
        "nothing",
    ],
)
@pytest.mark.parametrize("by", ["handle", "did"])
def test_names_stand_for_what_the_library_finds(
    name: str, by: str, named: Account, system: System, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same dataset as at the publisher's own server, with the same schema; or none, here as there."""
    monkeypatch.setenv("ATDATA_PLC_URL", network.plc)
    monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
    path = f"@{getattr(named, by)}/{name}"
    answer = system.get(f"/xrpc/{PREFIX}resolveDataset", dataset=path)
    client = AtmosphereClient(network.pds)
    try:
        found = resolve_path(path, client)
    except NotFoundError:
        assert answer.status_code == 404, answer.text
        return
    record = answer.json()["dataset"]["record"]
    assert (found.schema_ref, list(found.source.list_shards())) == (record["schemaRef"], record["storage"]["urls"])
    assert answer.json()["pds"] == network.pds


# --- Through the PDS


def test_an_account_asks_through_its_pds(system: System, ada: Account, network: Network, calls: list[Call]) -> None:
    """`atproto-proxy` names the AppView: the PDS finds it by its did:web, signs for the account, and passes all on."""
    did = httpx.get(f"{system.url}/.well-known/did.json").json()["id"]
    login = {"identifier": ada.handle, "password": ada.password}
    proxied = call_all(network.pds, calls, login=login, proxy=f"{did}#atdata_appview")
    for call, answer in zip(calls, proxied, strict=True):
        assert "data" in answer, f"{call}: {answer}"


def test_a_token_of_the_pds_is_let_in_once(system: System, ada: Account) -> None:
    """Those that the reference PDS signs pass; used again, for another method or service, they are refused by name."""
    did = httpx.get(f"{system.url}/.well-known/did.json").json()["id"]

    def ask(audience: str, method: str, text: str | None = None) -> tuple[int, str]:
        token = text or ada.service_token(audience, PREFIX + method)
        answer = httpx.get(
            f"{system.url}/xrpc/{PREFIX}listDatasets", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        return answer.status_code, answer.json().get("error", "")

    token = ada.service_token(did, PREFIX + "listDatasets")
    assert ask(did, "", token) == (200, "")
    assert ask(did, "", token) == (401, "BadJwt")
    assert ask(did, "listSchemas") == (401, "BadJwtLexiconMethod")
    assert ask("did:web:example.com", "listDatasets") == (401, "BadJwtAudience")


def test_accounts_behind_one_pds_have_limits_of_their_own(
    network: Network, postgres: TestDatabases, tmp_path: Path
) -> None:
    """One that asks too often is told so through its PDS; another is not."""
    with (
        postgres.database() as url,
        start_system(network, url, tmp_path, ATDATA_HOST="localhost", ATDATA_RATE_LIMIT=str(LIMIT)) as system,
    ):
        did = httpx.get(f"{system.url}/.well-known/did.json").json()["id"]
        for _ in range(2):
            account = network.create_account()
            login = {"identifier": account.handle, "password": account.password}
            asked: list[Call] = [("listDatasets", {})] * (LIMIT + 3)
            answers = call_all(network.pds, asked, login=login, proxy=f"{did}#atdata_appview")
            assert [answer.get("status", 200) for answer in answers[:LIMIT]] == [200] * LIMIT
            assert (answers[-1]["status"], answers[-1]["error"]) == (429, "RateLimitExceeded")
