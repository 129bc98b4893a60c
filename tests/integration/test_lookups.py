"""What names stand for, where shards are and who publishes, from a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from holdings import ALICE, BOB, Asker, Holdings, dataset, label, lens, schema, serving

from atdata.nsid import DATASET, LABEL, LENS, SAMPLE_SCHEMA, SUCCESSOR_DATASET, SUCCESSOR_LABEL
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine

PDS = "https://pds.example.com"
CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"


@pytest.fixture
def holdings(database_url: str, tmp_path: Path) -> Iterator[Holdings]:
    engine = TantivyEngine(tmp_path / "search")
    held = Holdings(database_url, engine)
    held.account(ALICE, "alice.test", pds=PDS)
    held.account(BOB)
    yield held
    engine.close()


@pytest.fixture
def settings(holdings: Holdings, tmp_path: Path) -> AppViewSettings:
    return AppViewSettings(
        database_url=holdings.database_url, search_dir=tmp_path / "search", rate_limit=0, search_processes=0
    )


@pytest.fixture
async def ask(settings: AppViewSettings) -> AsyncIterator[Asker]:
    async with serving(settings) as asker:
        yield asker


async def missing(ask: Asker, method: str, error: str, **params: Any) -> str:
    """The message of a 404 with this name."""
    response = await ask.get(method, **params)
    assert (response.status_code, response.json()["error"]) == (404, error), response.text
    message: str = response.json()["message"]
    return message


def at(day: int) -> str:
    return f"2026-02-{day:02}T00:00:00.000Z"


# --- Names


async def test_everything_it_takes_to_load_comes_in_one_answer(holdings: Holdings, ask: Asker) -> None:
    """The dataset, its schema, the label that led to it, and where the publisher's repository is."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    uri = holdings.add(ALICE, DATASET, "one", dataset("Digits", digit))
    tag = holdings.add(ALICE, LABEL, "tag", label("digits", uri))
    answer = await ask("resolveDataset", dataset="@alice.test/digits")
    assert {key: value["uri"] for key, value in answer.items() if key != "pds"} == {
        "dataset": uri,
        "schema": digit,
        "label": tag,
    }
    assert answer["dataset"]["record"] == dataset("Digits", digit)
    assert answer["schema"]["record"] == schema()
    assert answer["label"]["record"] == label("digits", uri)
    assert answer["pds"] == PDS


async def test_what_is_not_known_is_left_out(holdings: Holdings, ask: Asker) -> None:
    """A schema that is not held here, a server that is not known and a label that was not needed are absent."""
    uri = holdings.add(BOB, DATASET, "one", dataset("Digits", f"at://{ALICE}/{SAMPLE_SCHEMA}/nowhere"))
    answer = await ask("resolveDataset", dataset=uri)
    assert answer.keys() == {"dataset"}


@pytest.fixture
def versions(holdings: Holdings) -> dict[str, str]:
    """Three datasets called Digits, and labels digits 1.0.0 and 1.10.0 for two of them; URIs by record key."""
    days = {"old": 1, "new": 3, "middle": 2}
    uris = {key: holdings.add(ALICE, DATASET, key, dataset("Digits", createdAt=at(day))) for key, day in days.items()}
    for key, name, to, more in [
        ("z", "digits", "old", {"version": "1.0.0", "createdAt": at(4)}),
        ("a", "digits", "middle", {"version": "1.10.0", "createdAt": at(5)}),
        ("b", "digits", "old", {"version": "1.9.0", "createdAt": at(3)}),
        ("c", "spring 2026/x", "old", {}),
    ]:
        holdings.add(ALICE, LABEL, key, label(name, uris[to], **more))
    return uris


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("@alice.test/Digits", "new"),
        ("alice.test/Digits", "new"),
        ("@ALICE.test/Digits", "new"),
        (f"@{ALICE}/Digits", "new"),
        (f"{ALICE}/Digits", "new"),
        ("@alice.test/digits", "middle"),
        ("@alice.test/digits@", "middle"),
        ("@alice.test/digits@1.0.0", "old"),
        ("@alice.test/digits@1.10.0", "middle"),
        ("@alice.test/spring 2026/x", "old"),
        (f"at://{ALICE}/{DATASET}/middle", "middle"),
        (f"at://alice.test/{DATASET}/middle", "middle"),
        (f"at://alice.test/{LABEL}/z", "old"),
    ],
)
async def test_labels_come_first_and_then_the_newest(
    asked: str, found: str, versions: dict[str, str], ask: Asker
) -> None:
    """The newest label of a name by its own date, whatever its version is, else the newest dataset of that name."""
    assert (await ask("resolveDataset", dataset=asked))["dataset"]["uri"] == versions[found]


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (
            "@alice.test/digits@2.0.0",
            "LabelNotFound",
            "alice.test has no label digits@2.0.0 here; it has 1.0.0,",
        ),
        ("@alice.test/Digits@1.0.0", "LabelNotFound", "did you mean digits?"),
        ("@alice.test/DIGITS", "DatasetNotFound", "neither label nor dataset 'DIGITS' here"),
        ("@alice.test/digist", "DatasetNotFound", "did you mean digits, Digits?"),
        ("@alice.test/owls", "DatasetNotFound", "there is Digits, digits, spring 2026/x"),
        (f"@{BOB}/digits", "DatasetNotFound", f"{BOB} has neither label nor dataset 'digits' here"),
        ("@nobody.test/digits", "DatasetNotFound", "no publisher with the handle nobody.test is known here"),
        (f"at://{ALICE}/{DATASET}/nothing", "DatasetNotFound", f"there is no dataset at://{ALICE}/{DATASET}/nothing"),
        (f"at://{ALICE}/{LABEL}/nothing", "LabelNotFound", f"there is no label at://{ALICE}/{LABEL}/nothing"),
        (f"at://nobody.test/{DATASET}/x", "DatasetNotFound", "no publisher with the handle nobody.test is known here"),
    ],
)
@pytest.mark.usefixtures("versions")
async def test_what_is_not_there_is_named_with_what_is(asked: str, error: str, words: str, ask: Asker) -> None:
    """Status 404, and names or versions that there are."""
    assert words in await missing(ask, "resolveDataset", error, dataset=asked)


@pytest.mark.parametrize(
    "asked",
    [
        "digits",
        "@alice.test",
        "@alice.test/",
        "@/digits",
        "@not a handle/digits",
        "https://example.com/digits.tar",
        f"at://{ALICE}",
        f"at://{ALICE}/blob/{CID}",
        f"at://{ALICE}/{SAMPLE_SCHEMA}/digit",
    ],
)
async def test_what_is_no_name_of_a_dataset_is_refused(asked: str, ask: Asker) -> None:
    """Status 400, and the parameter's name in front."""
    response = await ask.get("resolveDataset", dataset=asked)
    assert (response.status_code, response.json()["error"]) == (400, "InvalidRequest")
    assert response.json()["message"].startswith("dataset: ")


async def test_a_label_may_point_to_another_repository_and_once_to_a_label(holdings: Holdings, ask: Asker) -> None:
    """As in the library. Handles in the record count, too; the answer has the label that was asked for."""
    uri = holdings.add(ALICE, DATASET, "one", dataset())
    inner = holdings.add(ALICE, LABEL, "inner", label("inner", uri.replace(ALICE, "alice.test")))
    outer = holdings.add(BOB, LABEL, "outer", label("outer", inner))
    holdings.add(BOB, LABEL, "outermost", label("outermost", outer))
    answer = await ask("resolveDataset", dataset=f"@{BOB}/outer")
    assert (answer["dataset"]["uri"], answer["label"]["uri"]) == (uri, outer)
    assert answer["pds"] == PDS
    await missing(ask, "resolveDataset", "DatasetNotFound", dataset=f"@{BOB}/outermost")


@pytest.mark.parametrize(
    "target",
    [
        f"at://{ALICE}/{DATASET}/gone",
        f"at://{ALICE}/{SAMPLE_SCHEMA}/digit",
        f"at://nobody.test/{DATASET}/x",
        "javascript:alert(1)",
    ],
)
async def test_a_label_that_leads_nowhere_is_said_so(target: str, holdings: Holdings, ask: Asker) -> None:
    """The newest label counts also then, as in the library: an older one would be another dataset."""
    holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    uri = holdings.add(ALICE, DATASET, "one", dataset("Digits"))
    holdings.add(ALICE, LABEL, "old", label("Digits", uri, createdAt=at(1)))
    holdings.add(ALICE, LABEL, "new", label("Digits", target, createdAt=at(2)))
    assert "label" in await missing(ask, "resolveDataset", "DatasetNotFound", dataset="@alice.test/Digits")


@pytest.mark.parametrize(
    "odd",
    [
        {"datasetUri": 5},
        {"datasetUri": ""},
        {"datasetUri": None},
        {"createdAt": "tomorrow"},
        {"createdAt": 5},
        {"createdAt": "0000-01-01T00:00:00Z"},
        {"name": ["Digits"]},
    ],
)
async def test_an_odd_label_spoils_nothing(odd: dict[str, Any], holdings: Holdings, ask: Asker) -> None:
    """One that points nowhere is none, and one without a date is older than all others."""
    uri = holdings.add(ALICE, DATASET, "one", dataset("Digits"))
    good = holdings.add(ALICE, LABEL, "good", label("Digits", uri, createdAt=at(2)))
    holdings.add(ALICE, LABEL, "odd", {**label("Digits", f"at://{ALICE}/{DATASET}/two", createdAt=at(3)), **odd})
    answer = await ask("resolveDataset", dataset="@alice.test/Digits")
    assert answer["label"]["uri"] == good


async def test_the_successors_records_count_where_there_are_no_others(holdings: Holdings, ask: Asker) -> None:
    """What the library finds at the publisher's own server comes first, be it a dataset where they have a label."""
    entry = {"$type": SUCCESSOR_DATASET, "name": "Digits", "createdAt": at(9)}
    theirs = holdings.add(ALICE, SUCCESSOR_DATASET, "theirs", entry)
    holdings.add(
        ALICE, SUCCESSOR_LABEL, "label", {**label("Digits", theirs, createdAt=at(9)), "$type": SUCCESSOR_LABEL}
    )
    assert (await ask("resolveDataset", dataset="@alice.test/Digits"))["dataset"]["uri"] == theirs
    ours = holdings.add(ALICE, DATASET, "ours", dataset("Digits", createdAt=at(1)))
    assert (await ask("resolveDataset", dataset="@alice.test/Digits"))["dataset"]["uri"] == ours


async def test_of_two_of_one_moment_the_later_key_counts(holdings: Holdings, ask: Asker) -> None:
    """Keys are TIDs for most: of the same moment, the greater one was made later, whichever came first."""
    uris = holdings.add_all(ALICE, DATASET, [(rkey, dataset("Digits")) for rkey in ("b", "c", "a")])
    assert (await ask("resolveDataset", dataset="@alice.test/Digits"))["dataset"]["uri"] == uris[1]
    for rkey, uri in (("z", uris[0]), ("y", uris[2])):
        holdings.add(ALICE, LABEL, rkey, label("Digits", uri))
    assert (await ask("resolveDataset", dataset="@alice.test/Digits"))["dataset"]["uri"] == uris[0]


async def test_names_are_long(holdings: Holdings, ask: Asker) -> None:
    """Two names that only differ after hundreds of letters are two."""
    one = holdings.add(ALICE, DATASET, "one", dataset("é" * 400 + "1"))
    two = holdings.add(ALICE, DATASET, "two", dataset("é" * 400 + "2"))
    for uri, digit in ((one, 1), (two, 2)):
        assert (await ask("resolveDataset", dataset=f"@alice.test/{'é' * 400}{digit}"))["dataset"]["uri"] == uri
    holdings.add(ALICE, DATASET, "wide", dataset("\U0001f989" * 1000))


async def test_nothing_of_an_account_that_is_not_active_is_resolved(
    versions: dict[str, str], holdings: Holdings, ask: Asker
) -> None:
    """Neither by handle nor by DID nor through the label of somebody else; nor is it told what it had."""
    holdings.add(BOB, LABEL, "theirs", label("theirs", versions["old"]))
    holdings.account(ALICE, "alice.test", "takendown", PDS)
    for asked in ("@alice.test/Digits", f"@{ALICE}/Digits", versions["old"], f"@{BOB}/theirs"):
        assert "spring" not in await missing(ask, "resolveDataset", "DatasetNotFound", dataset=asked)
    await missing(ask, "resolveLabel", "LabelNotFound", publisher=ALICE, name="digits")
    await missing(ask, "resolveBlobs", "DatasetNotFound", uri=versions["old"])
    answer = await ask("resolveLabel", publisher=BOB, name="theirs")
    assert "dataset" not in answer


# --- Labels


@pytest.mark.parametrize(
    ("params", "found", "key"),
    [
        ({"publisher": "alice.test", "name": "digits"}, "middle", "a"),
        ({"publisher": "@alice.test", "name": "digits"}, "middle", "a"),
        ({"publisher": ALICE, "name": "digits", "version": "1.9.0"}, "old", "b"),
        ({"publisher": ALICE, "name": "spring 2026/x"}, "old", "c"),
    ],
)
async def test_the_newest_label(
    params: dict[str, str], found: str, key: str, versions: dict[str, str], ask: Asker
) -> None:
    """Of a name, or of a name and version, with what it points to."""
    answer = await ask("resolveLabel", **params)
    assert answer["label"]["uri"] == f"at://{ALICE}/{LABEL}/{key}"
    assert answer["datasetUri"] == answer["dataset"]["uri"] == versions[found]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"publisher": "alice.test", "name": "digits", "version": "3"}, "it has 1.0.0, 1.10.0, 1.9.0"),
        ({"publisher": "alice.test", "name": "digit"}, "did you mean digits?"),
        ({"publisher": "alice.test", "name": "Digits"}, "did you mean digits?"),
        ({"publisher": "nobody.test", "name": "digits"}, "no publisher with the handle nobody.test is known here"),
        ({"publisher": BOB, "name": "digits"}, f"{BOB} has no label digits here"),
    ],
)
@pytest.mark.usefixtures("versions")
async def test_labels_that_are_not_there(params: dict[str, str], words: str, ask: Asker) -> None:
    """Status 404, and which there are. A dataset's name is no label."""
    assert words in await missing(ask, "resolveLabel", "LabelNotFound", **params)


# --- Shards


def stored(storage: str, **members: Any) -> dict[str, Any]:
    return dataset(storage={"$type": f"ac.foundation.dataset.storage{storage}", **members})


def blob(**more: Any) -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": CID}, "mimeType": "application/x-tar", "size": 10240, **more}


SUM = {"algorithm": "sha256", "digest": "ab" * 32}


@pytest.mark.parametrize(
    ("record", "kind", "shards"),
    [
        (
            stored("External", urls=["https://e.com/{0..1}.tar", "s3://b/k.tar", "gs://b/k.tar"]),
            "external",
            [{"url": url} for url in ("https://e.com/0.tar", "https://e.com/1.tar", "s3://b/k.tar", "gs://b/k.tar")],
        ),
        (
            stored("Http", shards=[{"url": "https://e.com/{0}.tar", "checksum": SUM}]),
            "http",
            [{"url": "https://e.com/{0}.tar", "checksum": SUM}],
        ),
        (
            stored("Http", shards=[{"url": "https://e.com/0.tar", "checksum": {"algorithm": "none", "digest": ""}}]),
            "http",
            [{"url": "https://e.com/0.tar"}],
        ),
        (
            stored("S3", bucket="birds", shards=[{"key": "a b/0.tar", "checksum": SUM}, {"key": "1.tar"}]),
            "s3",
            [{"url": "s3://birds/a b/0.tar", "checksum": SUM}, {"url": "s3://birds/1.tar"}],
        ),
        (
            stored("S3", bucket="birds", endpoint="https://s3.e.com/", shards=[{"key": "a b/0.tar"}, {"key": "?"}]),
            "s3",
            [{"url": "https://s3.e.com/birds/a%20b/0.tar"}, {"url": "https://s3.e.com/birds/%3F"}],
        ),
    ],
)
async def test_every_kind_of_storage_has_urls(
    record: Any, kind: str, shards: list[Any], holdings: Holdings, ask: Asker
) -> None:
    """As the record has them: brace notation is written out, keys become s3 or https URLs, checksums come along."""
    uri = holdings.add(ALICE, DATASET, "one", record)
    answer = await ask("resolveBlobs", uri=uri)
    assert (answer["uri"], answer["storage"], answer["total"], answer["shards"]) == (uri, kind, len(shards), shards)
    assert "cursor" not in answer


async def test_blobs_are_at_the_server_of_their_repository(holdings: Holdings, ask: Asker) -> None:
    """Each has the URL that anybody can read it at, its CID, size and type, and the checksum of older records."""
    uri = holdings.add(ALICE, DATASET, "one", stored("Blobs", blobs=[blob(), {"blob": blob(size=5), "checksum": SUM}]))
    answer = await ask("resolveBlobs", uri=uri.replace(ALICE, "alice.test"))
    first, second = answer["shards"]
    url = urlsplit(first["url"])
    assert first["url"].startswith(f"{PDS}/xrpc/com.atproto.sync.getBlob?")
    assert parse_qs(url.query) == {"did": [ALICE], "cid": [CID]}
    assert ":" not in url.query
    assert {**first, "url": ""} == {"url": "", "cid": CID, "size": 10240, "mimeType": "application/x-tar"}
    assert {**second, "url": ""} == {**first, "url": "", "size": 5, "checksum": SUM}


async def test_blobs_of_others_are_at_their_servers(holdings: Holdings, ask: Asker) -> None:
    """Where a record names blobs by their AT URIs."""
    uri = holdings.add(BOB, DATASET, "one", stored("External", urls=[f"at://{ALICE}/blob/{CID}"]))
    (shard,) = (await ask("resolveBlobs", uri=uri))["shards"]
    assert shard["url"].startswith(f"{PDS}/xrpc/")
    assert shard["cid"] == CID


@pytest.mark.parametrize(
    "pds", [None, "http://pds.example.com", "https://127.0.0.1", "https://10.0.0.1:8443", "https://localhost"]
)
async def test_a_server_that_is_not_known_is_said_so(
    pds: str | None, holdings: Holdings, settings: AppViewSettings, ask: Asker
) -> None:
    """So is one of a private network, unless the operator allows such."""
    holdings.account(ALICE, "alice.test", pds=pds)
    uri = holdings.add(ALICE, DATASET, "one", stored("Blobs", blobs=[blob()]))
    assert f"{ALICE}, which has its blobs, is not known here" in await missing(
        ask, "resolveBlobs", "ShardsNotFound", uri=uri
    )
    assert "pds" not in await ask("resolveDataset", dataset=uri)
    async with serving(settings.model_copy(update={"allow_private_hosts": True})) as trusting:
        if pds is not None:
            assert (await trusting("resolveBlobs", uri=uri))["shards"][0]["url"].startswith(pds)
            assert (await trusting("resolveDataset", dataset=uri))["pds"] == pds


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (stored("External", urls=[]), "storage.urls"),
        (stored("External"), "storage.urls: is required"),
        (stored("External", urls=["https://e.com/0.tar", 5]), "storage.urls[1]"),
        (stored("External", urls=["pipe:cat /etc/passwd"]), "pipe: is not opened"),
        (stored("External", urls=["/data/0.tar"]), "a file on the machine of its publisher"),
        (stored("External", urls=["file:///data/0.tar"]), "a file on the machine of its publisher"),
        (stored("External", urls=["https://e.com/{0..10000}.tar"]), "stands for more than 10,000 shards"),
        (stored("External", urls=["https://e.com/" + "{0,1}" * 60]), "stands for more than 833 shards"),
        (stored("External", urls=["https://e.com/" + "{0,1}" * 13 + "{0}" * 300]), "stands for more than 159 shards"),
        (stored("External", urls=["https://e.com/" + "{0}" * 5001] * 2), "more than 10,000 braces"),
        (stored("External", urls=["https://e.com/{" + "a," * 30_000 + "}"]), "more than 50,000 characters"),
        (stored("External", urls=["https://e.com/{0..1.tar"]), "a brace has no partner"),
        (stored("External", urls=["http://127.0.0.1:6379/"]), "no host on the public internet"),
        (stored("External", urls=["at://did:plc:x/blob/"]), "has no CID"),
        (stored("Http", shards=[{"url": "http://169.254.169.254/latest", "checksum": SUM}]), "no host on the public"),
        (stored("Http", shards=[{"url": "s3://b/k", "checksum": SUM}]), "a s3: address"),
        (stored("Http", shards=[{"checksum": SUM}]), "storage.shards[0].url"),
        (stored("S3", bucket="Nope!", shards=[{"key": "k", "checksum": SUM}]), "is no bucket"),
        (stored("S3", bucket="birds", shards=[{"key": "../other/k", "checksum": SUM}]), "a key with . or .."),
        (
            stored("S3", bucket="birds", endpoint="http://10.0.0.1", shards=[{"key": "k"}]),
            "no host on the public internet",
        ),
        (stored("Blobs", blobs=[blob(), {"$type": "blob"}]), "storage.blobs[1].ref"),
        (stored("Blobs", blobs=[]), "storage.blobs"),
        (dataset(storage={"$type": "x"}), "storage"),
        (dataset(storage=5), "storage"),
    ],
)
async def test_shards_that_cannot_be_given_out(record: Any, words: str, holdings: Holdings, ask: Asker) -> None:
    """All or none, for a dataset must not look as if it were whole: status 404, and why."""
    uri = holdings.add(ALICE, DATASET, "one", record)
    message = await missing(ask, "resolveBlobs", "ShardsNotFound", uri=uri)
    assert message.startswith(f"{uri}: its shards cannot be read: ")
    assert words in message


async def test_only_datasets_have_shards(holdings: Holdings, ask: Asker) -> None:
    """A record of another kind, or none, is no dataset."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    for uri in (digit, f"at://{ALICE}/{DATASET}/nothing", f"at://nobody.test/{DATASET}/x"):
        await missing(ask, "resolveBlobs", "DatasetNotFound", uri=uri)


async def test_shards_come_page_by_page(holdings: Holdings, ask: Asker) -> None:
    """Each once and in order. A dataset that is changed meanwhile is begun anew: its shards may be others."""
    record = stored("External", urls=["https://e.com/{00..24}.tar"])
    uri = holdings.add(ALICE, DATASET, "one", record)
    answers = [await ask("resolveBlobs", uri=uri, limit=10)]
    while "cursor" in answers[-1]:
        answers.append(await ask("resolveBlobs", uri=uri, limit=10, cursor=answers[-1]["cursor"]))
    assert [len(answer["shards"]) for answer in answers] == [10, 10, 5]
    urls = [shard["url"] for answer in answers for shard in answer["shards"]]
    assert urls == [f"https://e.com/{n:02}.tar" for n in range(25)]
    holdings.execute("UPDATE records SET cid = cid || 'x' WHERE uri = %s", [uri])
    response = await ask.get("resolveBlobs", uri=uri, cursor=answers[0]["cursor"])
    assert (response.status_code, response.json()["message"]) == (
        400,
        "cursor: the dataset was changed meanwhile; start again without it",
    )


async def test_an_answer_of_shards_has_some_megabytes(holdings: Holdings, ask: Asker) -> None:
    """A page ends early where its URLs are long."""
    uri = holdings.add(ALICE, DATASET, "one", stored("External", urls=[f"https://e.com/{'x' * 3000}/{{0..1999}}.tar"]))
    first = await ask("resolveBlobs", uri=uri, limit=10_000)
    assert 1000 < len(first["shards"]) < 1400
    rest = await ask("resolveBlobs", uri=uri, limit=10_000, cursor=first["cursor"])
    assert len(first["shards"]) + len(rest["shards"]) == 2000
    assert "cursor" not in rest


# --- Publishers


def did(n: int) -> str:
    return f"did:plc:{n:024}"


async def everybody(ask: Asker, **params: Any) -> list[dict[str, Any]]:
    """All publishers, page by page."""
    answer = await ask("listPublishers", **params)
    found: list[dict[str, Any]] = answer["publishers"]
    while "cursor" in answer:
        answer = await ask("listPublishers", **{**params, "cursor": answer["cursor"]})
        found += answer["publishers"]
        assert len(found) < 100, "the pages do not end"
    return found


async def test_publishers_are_counted(holdings: Holdings, ask: Asker) -> None:
    """By kind of record; the latest that came is first; collections that nobody knows make no publisher."""
    digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
    uris = holdings.add_all(ALICE, DATASET, [(f"r{n}", dataset(f"d{n}", digit)) for n in range(3)])
    holdings.add(ALICE, LENS, "one", lens("one", digit, digit))
    holdings.add(ALICE, LABEL, "one", label("one", uris[0]))
    holdings.add(BOB, LABEL, "one", label("one", uris[0]))
    holdings.account(did(1), "quiet.test")
    holdings.add(did(1), "ac.foundation.dataset.somethingNew", "self", {})
    bob, alice = (await ask("listPublishers"))["publishers"]
    assert alice.pop("firstSeenAt") <= alice.pop("lastIndexedAt")
    assert alice == {"did": ALICE, "handle": "alice.test", "datasets": 3, "schemas": 1, "lenses": 1, "labels": 1}
    assert (bob["did"], bob["handle"], bob["datasets"], bob["labels"]) == (BOB, "handle.invalid", 0, 1)
    holdings.delete(uris[0])
    assert [one["datasets"] for one in (await ask("listPublishers", q="alice"))["publishers"]] == [2]


async def test_counts_follow_every_statement(holdings: Holdings, ask: Asker) -> None:
    """Upserts and updates count nothing twice, and who has nothing left is no publisher."""
    uri = holdings.add(ALICE, DATASET, "one", dataset())
    holdings.execute("UPDATE records SET indexed_at = now() + interval '1 day'")
    holdings.execute(
        "INSERT INTO records (did, collection, rkey, kind, cid, rev, record)"
        " SELECT did, collection, k, kind, cid, rev, record FROM records, unnest(ARRAY['one', 'two']) k"
        " ON CONFLICT (uri) DO UPDATE SET cid = excluded.cid"
    )
    (alice,) = (await ask("listPublishers"))["publishers"]
    assert alice["datasets"] == 2
    assert alice["lastIndexedAt"][:10] > alice["firstSeenAt"][:10]
    holdings.execute("DELETE FROM records")
    assert await ask("listPublishers") == {"publishers": []}
    holdings.add(ALICE, DATASET, "one", dataset())
    assert [one["datasets"] for one in (await ask("listPublishers"))["publishers"]] == [1]
    assert uri


@pytest.fixture
def crowd(holdings: Holdings) -> None:
    """Thirty publishers, the nth with n % 7 + 1 datasets."""
    for n in range(30):
        holdings.account(did(n), f"p{n:02}.crowd.test")
    with psycopg.connect(holdings.database_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO records (did, collection, rkey, kind, cid, rev, record, indexed_at)"
            " SELECT %s, %s, 'r' || i, 'dataset', 'bafyx', 'r', '{}', timestamptz '2026-01-01' + %s * interval '1 hour'"
            " FROM generate_series(0, %s) i",
            [(did(n), DATASET, n // 3, n % 7) for n in range(30)],
        )


@pytest.mark.parametrize("sort", ["newest", "datasets"])
@pytest.mark.parametrize("limit", [1, 7, 100])
@pytest.mark.usefixtures("crowd")
async def test_every_publisher_comes_once(sort: str, limit: int, ask: Asker) -> None:
    """In either order, also where several have the same place in it."""
    found = await everybody(ask, sort=sort, limit=limit)
    assert sorted(one["did"] for one in found) == [did(n) for n in range(30)]
    places = [one["firstSeenAt" if sort == "newest" else "datasets"] for one in found]
    assert places == sorted(places, reverse=True)


@pytest.mark.usefixtures("crowd")
async def test_the_list_of_publishers_holds_still(holdings: Holdings, ask: Asker) -> None:
    """Whoever comes, goes or publishes more between two pages moves nobody else."""
    first = await ask("listPublishers", limit=10)
    holdings.add(ALICE, DATASET, "late", dataset())
    last = first["publishers"][-1]["did"]
    holdings.execute("DELETE FROM records WHERE did = %s", [last])
    holdings.add_all(did(0), DATASET, [(f"more{n}", dataset(f"m{n}")) for n in range(20)])
    rest = await everybody(ask, limit=10, cursor=first["cursor"])
    found = [one["did"] for one in [*first["publishers"], *rest]]
    assert sorted(found) == [did(n) for n in range(30)]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("p1", 10),
        ("@P1", 10),
        ("p10.crowd.test", 1),
        ("10", 0),
        ("%", 0),
        ("p_", 0),
        ("é", 0),
        ("", 30),
        ("@", 30),
    ],
)
@pytest.mark.usefixtures("crowd")
async def test_publishers_by_the_beginning_of_their_handles(q: str, found: int, ask: Asker) -> None:
    """No letter has a meaning of its own, and upper case is none."""
    assert len(await everybody(ask, q=q, limit=4)) == found


@pytest.mark.usefixtures("crowd")
async def test_publishers_that_are_not_active_are_not_listed(holdings: Holdings, ask: Asker) -> None:
    """They come back with their account."""
    holdings.account(did(3), "p03.crowd.test", "deactivated")
    assert len(await everybody(ask)) == 29
    holdings.account(did(3), "p03.crowd.test")
    assert len(await everybody(ask)) == 30


@pytest.mark.parametrize("cursor", ["x", "W10", "WyJuZXdlc3QiLDEsMl0", "WyJkYXRhc2V0cyIsMSwiYSJd", "bnVsbA"])
@pytest.mark.parametrize("method", ["listPublishers", "resolveBlobs"])
async def test_cursors_of_others_are_refused(method: str, cursor: str, holdings: Holdings, ask: Asker) -> None:
    """Status 400: the parameter is named. A cursor of one order is none of another."""
    uri = holdings.add(ALICE, DATASET, "one", dataset())
    response = await ask.get(method, cursor=cursor, **({"uri": uri} if method == "resolveBlobs" else {}))
    assert (response.status_code, response.json()["error"]) == (400, "InvalidRequest")
    assert response.json()["message"].startswith("cursor: ")
