"""The atmosphere package against the reference PDS: publish, find and load, over accounts, processes and storage."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network.atproto_network import Account, Network, XrpcError, creation, start_network
from numpy.typing import NDArray
from shard_files import Digit, Labelled, digits, packed_shard, write_shard
from web import Reply, serve

import atdata
from atdata.atmosphere import (
    AtmosphereClient,
    AtmosphereIndex,
    DatasetLoader,
    DatasetPublisher,
    LabelLoader,
    LabelPublisher,
    LensLoader,
    LensPublisher,
    PDSBlobStore,
    SchemaLoader,
    SchemaPublisher,
    blobs,
)
from atdata.errors import LoginError, NetworkError, NotFoundError, RateLimitError, ShardError, UriError

DATASET, SCHEMA, LABEL = (f"ac.foundation.dataset.{name}" for name in ("record", "sampleSchema", "label"))
NOW = "2026-01-01T00:00:00.000Z"


@pytest.fixture(autouse=True)
def environment(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test network's directory is the directory; nothing of other tests is remembered."""
    for name, value in {"PLC_URL": network.plc, "CACHE": str(tmp_path / "cache"), "NO_PROGRESS": "1"}.items():
        monkeypatch.setenv(f"ATDATA_{name}", value)


def logged_in(account: Account) -> AtmosphereClient:
    client = AtmosphereClient(base_url=account.network.pds)
    client.login(account.handle, account.password)
    return client


@pytest.fixture
def client(account: Account) -> AtmosphereClient:
    """A client of the test's own account."""
    return logged_in(account)


@pytest.fixture
def stranger(network: Network) -> AtmosphereClient:
    """Another account."""
    return logged_in(network.create_account())


@pytest.fixture
def dataset(tmp_path: Path) -> atdata.Dataset[Digit]:
    """100 digits in two shards."""
    for i in range(2):
        write_shard(tmp_path / f"d-{i}.tar", digits(50, i * 50))
    return atdata.Dataset[Digit](str(tmp_path / "d-{0..1}.tar"))


# --- Sessions


def test_an_app_password_is_enough(network: Network, account: Account):
    """An app password lets in, by handle and by DID, with or without an @, and writes records."""
    headers = {"authorization": f"Bearer {account.access_jwt}"}
    made = network.procedure("com.atproto.server.createAppPassword", {"name": "atdata"}, headers=headers)
    for name in (account.handle, account.did, f" @{account.handle} "):
        client = AtmosphereClient(network.pds)
        client.login(name, made["password"])
        assert (client.did, client.handle, client.is_authenticated) == (account.did, account.handle, True)
    assert client.create_record(LABEL, {"name": "x"}).startswith(f"at://{account.did}/{LABEL}/")


def test_the_server_is_found_by_the_did(account: Account):
    """Without base_url, the account's DID document says where to log in."""
    client = AtmosphereClient()
    client.login(account.did, account.password)
    assert client.pds_of() == account.network.pds


def test_a_session_goes_on_in_another_process(client: AtmosphereClient, tmp_path: Path):
    """What one process exports, another one logs in with, knowing neither server nor password."""
    (tmp_path / "session").write_text(client.export_session())
    code = (
        "import sys, pathlib; from atdata.atmosphere import AtmosphereClient; client = AtmosphereClient();"
        "client.login_with_session(pathlib.Path(sys.argv[1]).read_text());"
        f"print(client.create_record('{LABEL}', {{'name': 'from afar'}}), client.handle)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "session"], capture_output=True, text=True, check=True
    )
    uri, handle = run.stdout.split()
    assert handle == client.handle
    assert client.get_record(uri)["name"] == "from afar"


def test_an_expired_token_is_renewed(client: AtmosphereClient):
    """With an access token that has expired, the refresh token gets new ones, and they are exported."""
    handle, did, _, refresh, pds = client.export_session().split(":::")
    expired = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2ln"  # {"exp": 1}
    other = AtmosphereClient()
    other.login_with_session(":::".join((handle, did, expired, refresh, pds)))
    other.create_record(LABEL, {"name": "x"})
    _, _, new_access, new_refresh, _ = other.export_session().split(":::")
    assert new_access != expired
    assert new_refresh != refresh


def test_mistakes_of_a_person(network: Network, account: Account, client: AtmosphereClient):
    """Wrong password, unknown handle, no server, no record, no schema, no URI: each names the culprit."""
    for name, password in ((account.handle, "wrong"), ("nobody.test", "x")):
        with pytest.raises(LoginError, match=rf"{network.pds}: login of {name}: Invalid .* use an app password"):
            AtmosphereClient(network.pds).login(name, password)
    with pytest.raises(NetworkError, match=r"localhost:9: .*; check the address, and that the server is up"):
        AtmosphereClient("http://localhost:9").login(account.handle, "x")
    index = AtmosphereIndex(client)
    with pytest.raises(NotFoundError, match=r"nobody\.test: no account has this handle"):
        index.list_datasets("nobody.test")
    for collection, get in ((DATASET, index.get_dataset), (SCHEMA, index.decode_schema)):
        with pytest.raises(NotFoundError, match=f"at://{account.did}/{collection}/nothing: there is no such record"):
            get(f"at://{account.did}/{collection}/nothing")
        with pytest.raises(UriError, match="has no record key"):
            get(f"at://{account.did}/{collection}")
    unknown = "did:plc:" + "a" * 24
    with pytest.raises(NotFoundError, match=f"{unknown}: no such account"):
        index.list_datasets(unknown)


def test_a_server_that_limits_rates():
    """The reference PDS's 429 is a RateLimitError that says when to come back."""
    too_long = "x" * 600  # is refused without being hashed
    with start_network(settings={"rateLimitsEnabled": True}) as network:
        for _ in range(30):
            with pytest.raises(XrpcError, match="401"):
                network.procedure("com.atproto.server.createSession", {"identifier": "a.test", "password": too_long})
        with pytest.raises(RateLimitError, match=r"a\.test: too many requests; try again in \d+ s"):
            AtmosphereClient(network.pds).login("a.test", too_long)


# --- Records


def test_records_are_written_read_replaced_listed_and_deleted(client: AtmosphereClient, stranger: AtmosphereClient):
    """The thin calls do what XRPC does; listing pages to the end, newest first, from any account."""
    uri = client.create_record(LABEL, {"name": "one", "createdAt": NOW})
    record = stranger.get_record(uri.replace(client.did, client.handle))
    assert (record["name"], record["$type"], record.uri) == ("one", LABEL, uri)
    assert record.cid == atdata.generate_cid(dict(record))
    client.put_record(LABEL, uri.rpartition("/")[2], {"name": "two", "createdAt": NOW})
    assert client.get_record(uri)["name"] == "two"
    client.delete_record(uri)
    client.delete_record(uri)
    assert client.list_records(LABEL) == []
    with pytest.raises(NotFoundError):
        client.get_record(uri)


def test_listings_page_to_the_end(account: Account, stranger: AtmosphereClient):
    """More records than one page has are all listed, once, by DID and by handle, also by who is not logged in."""
    for start in (0, 150):
        account.apply_writes([creation(LABEL, {"name": str(i)}) for i in range(start, start + 150)])
    for reader in (stranger, AtmosphereClient(account.network.pds)):
        listed = reader.list_records(LABEL, account.handle)
        assert sorted(int(one["name"]) for one in listed) == list(range(300))
    assert len(AtmosphereClient().list_records(LABEL, account.did)) == 300


def test_blobs_of_any_account(account: Account, client: AtmosphereClient, stranger: AtmosphereClient):
    """upload_blob and get_blob carry bytes to the account's server and back from it, for others, too."""
    blob = client.upload_blob(b"some bytes" * 1000, "text/plain")
    client.create_record(LABEL, {"name": "x", "blob": blob})
    cid = blob["ref"]["$link"]
    for reader in (client, stranger, AtmosphereClient()):
        assert reader.get_blob(account.did, cid) == b"some bytes" * 1000


def test_one_odd_record_never_fails_a_listing(account: Account, client: AtmosphereClient, dataset: Any):
    """Among odd records of every kind, the good one is found, and the odd ones say what is wrong with them."""
    index = AtmosphereIndex(client)
    good = index.insert_dataset(dataset, name="good")
    odd: list[dict[str, Any]] = [
        {},
        {"name": 7},
        {"name": "x", "storage": []},
        {"storage": {"$type": f"{DATASET[:-6]}storageBlobs", "blobs": [{}]}},
        {"metadata": "text", "tags": {}, "createdAt": "yesterday"},
    ]
    account.apply_writes([creation(kind, record) for kind in (DATASET, SCHEMA) for record in odd])
    entries = index.list_datasets()
    assert len(entries) == len(odd) + 1
    assert [entry.uri for entry in entries if not entry.problems] == [good.uri]
    assert all(entry._repr_html_() for entry in entries)
    assert [schema["name"] for schema in index.list_schemas() if not schema.problems] == ["Digit"]


def test_entries_are_a_sequence_with_everything(client: AtmosphereClient, dataset: Any):
    """Entries have name, schema, URLs, metadata, URI and CID, can be counted and indexed, and show themselves."""
    index = AtmosphereIndex(client)
    inserted = index.insert_dataset(dataset, name="digits", tags=["a", "b"], license="MIT", metadata={"n": 1})
    entries = index.list_datasets()
    (entry,) = entries
    assert entries[0] is entry
    assert (entry.name, entry.tags, entry.license, entry.metadata) == ("digits", ("a", "b"), "MIT", {"n": 1})
    assert entry.data_urls == [dataset.url]
    assert (entry.uri, entry.cid) == (inserted.uri, inserted.cid)
    assert atdata.verify_cid(entry.cid, dict(entry.stored))
    assert [one.uri for one in index.datasets] == [entry.uri]
    (schema,) = index.list_schemas()
    assert [one.uri for one in index.schemas] == [schema.uri] == [entry.schema_ref]
    assert "digits" in entry._repr_html_()
    assert "NDArray[uint8]" in schema._repr_html_()


# --- Blobs

DTYPES = ("bool", "u1", "i8", "f2", "f4", "f8", "c8", "M8[us]")


@atdata.packable
class Mixed:
    """Arrays of eight dtypes, empty and 0-d ones, text and None."""

    booleans: NDArray[np.bool_]
    bytes_: NDArray[np.uint8]
    integers: NDArray[np.int64]
    halves: NDArray[np.float16]
    floats: NDArray[np.float32]
    doubles: NDArray[np.float64]
    complexes: NDArray[np.complex64]
    times: NDArray[np.datetime64]
    text: str
    maybe: NDArray[np.float32] | None
    words: list[str]
    note: str | None = None


def mixed(count: int) -> Iterator[Mixed]:
    rng = np.random.default_rng(7)
    shapes = [(), (0,), (3, 0, 2), (1,), (17,), (4, 5), (2, 3, 4)]
    for i in range(count):
        arrays = []
        for j, name in enumerate(DTYPES):
            dtype = np.dtype(name)
            shape = shapes[(i + j) % len(shapes)]
            raw = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
            if dtype.kind == "b":
                arrays.append(np.array(np.frombuffer(raw, np.uint8) % 2, bool).reshape(shape))
            else:  # any bits at all: NaNs with payloads, infinities, NaT
                arrays.append(np.frombuffer(raw, dtype).reshape(shape))
        text = "ünïcödé 🛰 \u0000 ” 漢字"[: i % 20]
        yield Mixed(*arrays, text, None if i % 3 else np.float32([i]), [text] * (i % 4), None if i % 2 else text)


def bits(sample: Any) -> dict[str, Any]:
    """Every value such that equal means the same bits."""
    return {
        name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in vars(sample).items()
    }


def test_a_thousand_samples_survive_the_journey_bit_for_bit(
    client: AtmosphereClient, stranger: AtmosphereClient, tmp_path: Path
):
    """1,000 samples of eight dtypes come back from PDS blobs as they were, as their own and as the decoded type."""
    samples = list(mixed(1000))
    dataset = atdata.Dataset[Mixed](write_shard(tmp_path / "m.tar", samples))
    entry = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="mixed")
    expected = [bits(sample) for sample in samples]
    assert [bits(one) for one in DatasetLoader(stranger).to_dataset(entry.uri, Mixed)] == expected
    decoded = AtmosphereIndex(stranger).decode_schema(entry.schema_ref)
    source = PDSBlobStore(stranger).create_source(entry.data_urls)
    assert [bits(one) for one in atdata.Dataset[decoded](source)] == expected
    assert entry.record.size is not None
    assert entry.record.size.samples == 1000


def test_a_small_limit_halves_shards(dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against a PDS whose blobs may have 5 kB, shards are halved with warnings until all are there."""
    with start_network(settings={"blobUploadLimit": 5000}) as network:
        monkeypatch.setenv("ATDATA_PLC_URL", network.plc)
        client = logged_in(network.create_account())
        index = AtmosphereIndex(client, PDSBlobStore(client))
        with pytest.warns(UserWarning, match="refuses .* halved") as said:
            entry = index.insert_dataset(dataset, name="digits")
        assert said[0].filename == __file__
        blobs = DatasetLoader(client).get_blobs(entry.uri)
        assert max(blob["size"] for blob in blobs) <= 5000
        assert list(DatasetLoader(client).to_dataset(entry.uri, Digit)) == digits(100)
        samples = [Digit(np.zeros(6000, np.uint8), i) for i in range(2)]
        big = atdata.Dataset[Digit](write_shard(tmp_path / "big.tar", samples))
        with pytest.warns(UserWarning, match="halved"), pytest.raises(ShardError, match="one sample"):
            index.insert_dataset(big, name="big")


def test_what_a_broken_run_has_uploaded_is_not_uploaded_again(
    account: Account, client: AtmosphereClient, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that breaks off at a damaged shard leaves blobs behind that the next run, another process, finds."""
    whole = (tmp_path / "d-1.tar").read_bytes()
    (tmp_path / "d-1.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"d-1\.tar: is truncated"):
        PDSBlobStore(client).write_shards(dataset, prefix="x", maxcount=10)
    (tmp_path / "d-1.tar").write_bytes(whole)
    uploads = next((tmp_path / "cache" / "uploads").iterdir())
    before = len(uploads.read_text().splitlines())
    assert 5 <= before < 10
    code = (
        "import os, sys; from shard_files import Digit; import atdata; from atdata.atmosphere import *;"
        "client = AtmosphereClient(); client.login_with_session(sys.argv[1]);"
        "dataset = atdata.Dataset[Digit](sys.argv[2]);"
        "print(*PDSBlobStore(client).write_shards(dataset, prefix='y', maxcount=10))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, client.export_session(), dataset.url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    urls = run.stdout.split()
    assert len(urls) == 10
    assert len(uploads.read_text().splitlines()) == 10  # one line for each upload
    assert list(atdata.Dataset[Digit](PDSBlobStore(client).create_source(urls))) == digits(100)


def test_blobs_of_a_record_are_found_whatever_the_cache_says(
    account: Account, client: AtmosphereClient, dataset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Blobs that a record holds can be published again by their URIs from a machine that never saw them."""
    entry = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="one")
    blobs._uploads_of.cache_clear()
    monkeypatch.setenv("ATDATA_CACHE", str(tmp_path / "elsewhere"))
    uri = DatasetPublisher(client).publish_with_urls(entry.data_urls, entry.schema_ref, name="two")
    assert DatasetLoader(client).get_blobs(uri) == DatasetLoader(client).get_blobs(entry.uri)
    client.delete_record(entry.uri)
    assert list(DatasetLoader(client).to_dataset(uri, Digit)) == digits(100)


def test_the_server_forgot_and_is_told_again(client: AtmosphereClient, dataset: Any):
    """A deleted dataset takes its blobs along; publishing again within the hour notices, and uploads them anew."""
    index = AtmosphereIndex(client, PDSBlobStore(client))
    first = index.insert_dataset(dataset, name="digits")
    client.delete_record(first.uri)
    second = index.insert_dataset(dataset, name="digits")
    assert second.data_urls == first.data_urls
    assert list(DatasetLoader(client).to_dataset(second.uri, Digit)) == digits(100)


def test_blobs_by_hand(client: AtmosphereClient, stranger: AtmosphereClient, tmp_path: Path):
    """publish_with_blobs takes bytes and files; the record has the type that the server found."""
    schema = SchemaPublisher(client).publish(Digit)
    path = Path(write_shard(tmp_path / "b.tar", digits(3, 5)))
    publisher = DatasetPublisher(client)
    uri = publisher.publish_with_blobs([packed_shard(digits(5)), path], schema, name="by hand", mime_type="text/plain")
    assert {blob["mimeType"] for blob in DatasetLoader(client).get_blobs(uri)} == {"application/x-tar"}
    assert list(DatasetLoader(stranger).to_dataset(uri, Digit)) == digits(8)


# --- Other storage


def storage_record(storage: dict[str, Any], schema: str) -> dict[str, Any]:
    kind = f"ac.foundation.dataset.{storage.pop('kind')}"
    return {"name": "x", "schemaRef": schema, "storage": {"$type": kind, **storage}, "createdAt": NOW}


def test_every_kind_of_storage_is_loaded_with_every_shard(
    client: AtmosphereClient, stranger: AtmosphereClient, dataset: Any
):
    """External URLs, HTTP shards with and without checksums, blobs in both forms: all samples, in order."""
    schema = SchemaPublisher(client).publish(Digit)
    shards = [packed_shard(digits(50, i * 50)) for i in range(2)]
    sums = [{"algorithm": "sha256", "digest": hashlib.sha256(shard).hexdigest()} for shard in shards]
    with serve(lambda path: Reply(shards[int(path[1])])) as web:
        urls = [f"{web.url}/{i}.tar" for i in range(2)]
        none = {"algorithm": "none", "digest": ""}
        refs = [client.upload_blob(shard, "application/x-tar") for shard in shards]
        kinds = {
            "external": {"kind": "storageExternal", "urls": [f"{web.url}/{{0..1}}.tar"]},
            "http": {
                "kind": "storageHttp",
                "shards": [{"url": url, "checksum": sum_} for url, sum_ in zip(urls, (sums[0], none), strict=True)],
            },
            "blobs": {"kind": "storageBlobs", "blobs": [refs[0], {"blob": refs[1], "checksum": sums[1]}]},
        }
        loader = DatasetLoader(stranger)
        for kind, storage in kinds.items():
            uri = client.create_record(DATASET, storage_record(storage, schema))
            assert loader.get_storage_type(uri) == kind
            assert list(loader.to_dataset(uri, Digit)) == digits(100)
            assert AtmosphereIndex(stranger).get_dataset(uri).data_urls
        wrong = {
            "kind": "storageHttp",
            "shards": [{"url": urls[0], "checksum": sums[0]}, {"url": urls[1], "checksum": sums[0]}],
        }
        uri = client.create_record(DATASET, storage_record(wrong, schema))
        with pytest.raises(ShardError, match=r"/1\.tar: its bytes are not the right ones"):
            list(loader.to_dataset(uri, Digit))


def test_s3_storage_is_loaded(client: AtmosphereClient, monkeypatch: pytest.MonkeyPatch):
    """A record of S3 storage at a service of its own is read from there, checksums verified."""
    boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
    moto = pytest.importorskip("moto.server", reason="needs moto's server")
    for name, value in {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        s3.create_bucket(Bucket="bucket")
        shard = packed_shard(digits(9))
        s3.put_object(Bucket="bucket", Key="a/0.tar", Body=shard, ACL="public-read")
        s3.close()
        storage = {"kind": "storageS3", "bucket": "bucket", "region": "us-east-1", "endpoint": endpoint}
        checksum = {"algorithm": "sha256", "digest": hashlib.sha256(shard).hexdigest()}
        record = storage_record(
            {**storage, "shards": [{"key": "a/0.tar", "checksum": checksum}]}, f"at://{client.did}/{SCHEMA}/x"
        )
        uri = client.create_record(DATASET, record)
        loader = DatasetLoader(client)
        assert (loader.get_storage_type(uri), loader.get_urls(uri)) == ("s3", ["s3://bucket/a/0.tar"])
        dataset = loader.to_dataset(uri, Digit)
        assert list(dataset) == digits(9)
        dataset.source._client.close()
    finally:
        server.stop()


# --- Labels, lenses, names


def test_labels_are_versions_of_a_name(client: AtmosphereClient, stranger: AtmosphereClient, dataset: Any):
    """A label resolves to its newest dataset, or to that of a version; what is not there is said."""
    index = AtmosphereIndex(client)
    old, new = (index.insert_dataset(dataset, name=f"digits {i}").uri for i in range(2))
    publisher, loader = LabelPublisher(client), LabelLoader(stranger)
    publisher.publish(name="digits", dataset_uri=old, version="1.0.0", description="The first")
    publisher.publish(name="digits", dataset_uri=new, version="2.0.0")
    assert loader.resolve(client.handle, "digits") == loader.resolve(client.did, "digits", "2.0.0") == new
    assert loader.resolve(client.did, "digits", version="1.0.0") == old
    publisher.publish(name="digits", dataset_uri=old, version="2.0.0")  # moved, as a git tag can be
    assert loader.resolve(client.did, "digits", "2.0.0") == old
    with pytest.raises(NotFoundError, match=r"has no label digits@3.0.0; it has 1.0.0, 2.0.0"):
        loader.resolve(client.did, "digits", "3.0.0")
    assert len(loader.list_all(client.did)) == 3


def test_datasets_are_loaded_by_name_and_by_address(client: AtmosphereClient, stranger: AtmosphereClient, dataset: Any):
    """load_dataset takes at:// and @handle/name[@version], gives the published type, and resolves labels first."""
    index = AtmosphereIndex(client, PDSBlobStore(client))
    entry = index.insert_dataset(dataset, name="digits")
    other = AtmosphereIndex(stranger)
    decoded = other.decode_schema(entry.schema_ref)
    for path in (entry.uri, f"@{client.handle}/digits", f"@{client.did}/digits"):
        splits = atdata.load_dataset(path, index=other)
        assert list(splits) == ["train"]
        assert splits["train"].sample_type is decoded
        assert [one.label for one in splits["train"]] == list(range(100))
    few = write_shard(Path(dataset.url).parent / "few.tar", digits(3))
    small = index.insert_dataset(atdata.Dataset[Digit](few), name="few").uri
    label = LabelPublisher(client).publish(name="digits", dataset_uri=small, version="0.1")
    for path in (f"@{client.handle}/digits", f"@{client.handle}/digits@0.1", label):
        assert list(atdata.load_dataset(path, Digit, split="train", index=other)) == digits(3)
    assert list(atdata.load_dataset(entry.uri, Digit, split="train")) == digits(100)
    assert list(atdata.load_dataset(entry.data_urls[0], Digit, split="train")) == digits(100)
    with pytest.raises(FileNotFoundError, match="has neither label nor dataset 'nothing'"):
        atdata.load_dataset(f"@{client.handle}/nothing", index=other)
    with pytest.raises(FileNotFoundError, match=r"has no label digits@9; it has 0\.1"):
        atdata.load_dataset(f"@{client.handle}/digits@9", index=other)
    with pytest.raises(UriError, match="write @handle/name"):
        atdata.load_dataset(f"@{client.handle}", index=other)


def test_a_dataset_whose_schema_is_gone(client: AtmosphereClient, dataset: Any):
    """Without its schema a dataset is not loaded by its path, and the error names both; with a type it is."""
    entry = AtmosphereIndex(client, PDSBlobStore(client)).insert_dataset(dataset, name="digits")
    client.delete_record(entry.schema_ref)
    with pytest.raises(FileNotFoundError, match=f"{entry.uri}: its schema cannot be read: {entry.schema_ref}"):
        atdata.load_dataset(entry.uri, index=AtmosphereIndex(client))
    index = AtmosphereIndex(client)
    assert list(atdata.load_dataset(entry.uri, Digit, split="train", index=index)) == digits(100)
    assert len(list(atdata.load_dataset(entry.uri, atdata.DictSample, split="train", index=index))) == 100
    assert list(DatasetLoader(client).to_dataset(entry.uri, Digit)) == digits(100)


def test_lenses_are_published_and_found(client: AtmosphereClient, stranger: AtmosphereClient):
    """Lenses are found by source, and by source and target, also by handle."""
    full, simple = (SchemaPublisher(client).publish(kind) for kind in (Digit, Labelled))
    publisher, loader = LensPublisher(client), LensLoader(stranger)
    there = publisher.publish(name="there", source_schema=full, target_schema=simple)
    back = publisher.publish(name="back", source_schema_uri=simple, target_schema_uri=full)
    same = publisher.publish(name="same", source_schema=full, target_schema=full)
    assert [one.uri for one in loader.list_all(client.did)] == [same, back, there]
    assert {one.uri for one in loader.find_by_schemas(full, repo=client.did)} == {there, same}
    assert [one.uri for one in loader.find_by_schemas(full, simple, client.handle)] == [there]
    by_handle = full.replace(client.did, client.handle)
    assert [one["name"] for one in loader.find_by_schemas(by_handle, full, client.did)] == ["same"]
    assert loader.get(there)["targetSchema"] == simple


def test_written_records_are_what_the_lexicons_say(client: AtmosphereClient, dataset: Any):
    """Everything the publishers write is read back without a problem, with a TID for a key and a CID that fits."""
    index = AtmosphereIndex(client, PDSBlobStore(client))
    schema = index.publish_schema(Digit, name="A name", version="1.2.3-rc.1", description="Text")
    SchemaPublisher(client).publish(Digit, metadata={"source": "training"})
    entry = index.insert_dataset(dataset, name="x", schema_ref=schema, description="d", tags=["t"], metadata={"a": 1})
    LabelPublisher(client).publish(name="x", dataset_uri=entry.uri)
    LensPublisher(client).publish(name="x", source_schema=schema, target_schema=schema, description="d")
    for kind in ("record", "sampleSchema", "lens", "label"):
        for stored in client.list_records(f"ac.foundation.dataset.{kind}"):
            assert stored.problems == ()
            assert stored.cid == atdata.generate_cid(dict(stored))
            assert len(stored.uri.rpartition("/")[2]) == 13
    assert SchemaLoader(client).get(schema)["version"] == "1.2.3-rc.1"
