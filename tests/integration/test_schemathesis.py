"""Every method, asked with what its description allows and with what it forbids: schemathesis over /openapi.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from holdings import ALICE, BOB, Holdings, dataset, label, lens, running, schema
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from postgres import TestDatabases
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from atdata.lexicon import load_lexicons
from atdata.nsid import DATASET, LABEL, LENS, PREFIX, SAMPLE_SCHEMA
from atdata_appview.app import create_app
from atdata_appview.routes.xrpc import METHODS
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine

CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"


def uri(collection: str, rkey: str, did: str = ALICE) -> str:
    return f"at://{did}/{collection}/{rkey}"


DIGIT, PICTURE, DIGITS, BLOBS, TAG = (
    uri(SAMPLE_SCHEMA, "digit"),
    uri(SAMPLE_SCHEMA, "picture"),
    uri(DATASET, "digits"),
    uri(DATASET, "blobs"),
    uri(LABEL, "tag"),
)
BLOB = {"$type": "blob", "ref": {"$link": CID}, "mimeType": "application/x-tar", "size": 10240}

#: Record keys and records by collection: whole and odd ones, that refer to each other and to what is not there.
RECORDS: dict[str, dict[str, Any]] = {
    SAMPLE_SCHEMA: {
        "digit": schema("Digit"),
        "digit2": schema("Digit", "1.10.0"),
        "picture": schema("Picture", fields=schema()["fields"][:1]),
        "odd": {"$type": SAMPLE_SCHEMA, "name": 7, "fields": "none"},
    },
    DATASET: {
        "digits": dataset("Digits", DIGIT, tags=["x", "é"], license="CC0-1.0", size={"samples": 5}),
        "blobs": dataset("Blobs", PICTURE, storage={"$type": PREFIX + "storageBlobs", "blobs": [BLOB]}),
        "dangling": dataset("Dangling", uri(SAMPLE_SCHEMA, "gone")),
        "odd": {"$type": DATASET, "name": [], "schemaRef": "javascript:alert(1)", "storage": 5, "tags": {"a": None}},
    },
    LENS: {
        "there": lens("there", DIGIT, PICTURE),
        "back": lens("back", PICTURE, DIGIT),
        "dangling": lens("dangling", DIGIT, uri(SAMPLE_SCHEMA, "gone")),
        "odd": {"$type": LENS, "name": None, "sourceSchema": DIGIT, "targetSchema": 5},
    },
    LABEL: {
        "tag": label("digits", DIGITS, version="1.0.0"),
        "odd": {"$type": LABEL, "name": "odd", "datasetUri": "x"},
    },
    PREFIX + "somethingNew": {"self": {"$type": PREFIX + "somethingNew"}},
}
URIS = [
    *(uri(collection, rkey) for collection, records in RECORDS.items() for rkey in records),
    uri(DATASET, "digits", "alice.test"),
    uri(DATASET, "nothing"),
    uri(DATASET, "x", "nobody.test"),
]
ACCOUNTS = [ALICE, BOB, "alice.test", "nobody.test", "did:plc:" + "z" * 24]
TEXTS = ["Digit", "digits", "Digits", "1.0.0", "^1", "@alice.test/digits", "@alice.test/digits@1.0.0", *URIS[:3]]

# Texts that are much too long make a URL that is too long.
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": [400, 414]}}})

# What a lexicon calls a string, most often one of those that lead somewhere.
schemathesis.openapi.format("at-uri", st.sampled_from(URIS))
schemathesis.openapi.format("at-identifier", st.sampled_from(ACCOUNTS))
schemathesis.openapi.format("did", st.sampled_from([ALICE, BOB]))
schemathesis.openapi.format("handle", st.sampled_from(["alice.test", "nobody.test"]))
schemathesis.openapi.format("nsid", st.sampled_from(sorted(RECORDS)))
schemathesis.openapi.format("cid", st.just(CID))
schemathesis.openapi.format("any text", st.sampled_from(TEXTS) | st.text())


@pytest.fixture(scope="module")
def url(postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An AppView that holds `RECORDS`."""
    folder = tmp_path_factory.mktemp("search")
    with postgres.database() as database_url:
        engine = TantivyEngine(folder)
        holdings = Holdings(database_url, engine)
        holdings.account(ALICE, "alice.test", pds="https://pds.example.com")
        holdings.account(BOB)
        for collection, records in RECORDS.items():
            holdings.add_all(ALICE, collection, records.items())
        with running(
            create_app(AppViewSettings(database_url=database_url, search_dir=folder, rate_limit=0, search_processes=0))
        ) as url:
            yield url
        engine.close()


@pytest.fixture(scope="module")
def described(url: str) -> Any:
    """The description, as schemathesis reads it, but that parameters of any text often are texts that are there."""
    document = httpx.get(f"{url}/openapi.json").json()
    for path in document["paths"].values():
        for parameter in path["get"]["parameters"]:
            if parameter["schema"]["type"] == "string" and parameter["name"] != "cursor":
                parameter["schema"].setdefault("format", "any text")
    return schemathesis.openapi.from_dict(document, config=CONFIG)


# Left out are those about other APIs: here is nothing that a request makes or deletes, or that needs a login. Nor must
# all that is allowed be answered: it may name an account that is not there.
load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "allow_header_conformance",
    ]
)


def ask_all(url: str, operation: Any, mode: GenerationMode, examples: int) -> set[int]:
    """Ask *examples* questions, the same in every run, check what comes, and return the statuses of the answers."""
    statuses: set[int] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        statuses.add(case.call_and_validate(base_url=url, checks=CHECKED).status_code)

    ask()
    return statuses


#: Questions that chance does not find: parameters that go together.
QUESTIONS: dict[str, dict[str, str]] = {
    "resolveSchema": {"publisher": ALICE, "name": "Digit", "version": "^1"},
    "resolveLabel": {"publisher": "alice.test", "name": "digits", "version": "1.0.0"},
    "getLensPath": {"from": DIGIT, "to": PICTURE},
    "searchDatasets": {"loadableAs": PICTURE},
}


@pytest.mark.parametrize("nsid", sorted(METHODS))
def test_what_the_description_allows(nsid: str, url: str, described: Any) -> None:
    """No 5xx; statuses, types of content and answers are as described; and among them are answers."""
    operation = described[f"/xrpc/{nsid}"]["GET"]
    statuses = ask_all(url, operation, GenerationMode.POSITIVE, 40)
    if query := QUESTIONS.get(nsid.removeprefix(PREFIX)):
        statuses.add(operation.Case(query=query).call_and_validate(base_url=url, checks=CHECKED).status_code)
    assert 200 in statuses


WITH_PARAMETERS = [nsid for nsid in sorted(METHODS) if load_lexicons().query(nsid).parameters]


@pytest.mark.parametrize("nsid", WITH_PARAMETERS)
def test_what_the_description_forbids(nsid: str, url: str, described: Any) -> None:
    """Is refused, and the refusal is as described."""
    operation = described[f"/xrpc/{nsid}"]["GET"]
    assert 400 in ask_all(url, operation, GenerationMode.NEGATIVE, 20)
