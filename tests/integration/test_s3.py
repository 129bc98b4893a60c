"""S3: shards are listed, streamed and verified, against a local server that speaks its protocol."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest
from shard_files import Digit, digits, packed_shard

from atdata import Dataset, S3Source, load_dataset, network
from atdata.atmosphere.records import Checksum
from atdata.errors import MissingShardError, ShardError
from atdata.sources import PublicS3Source, Subset

boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
server = pytest.importorskip("moto.server", reason="needs moto's server")

KEYS = {"endpoint": "", "access_key": "id", "secret_key": "secret", "region": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of our own, with three shards in a bucket."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    # Its buckets are the process's, and other tests' may be among them.
    httpx.post(f"{url}/moto-api/reset")
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="id", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    for i in range(3):
        shard = packed_shard(digits(4, i * 4))
        client.put_object(Bucket="bucket", Key=f"data/train-{i}.tar", Body=shard, ACL="public-read")
    odd = packed_shard(digits(2, 90))
    client.put_object(Bucket="bucket", Key="data/test {odd} +.tar", Body=odd, ACL="public-read")
    client.put_object(Bucket="bucket", Key="data/readme.md", Body=b"not a shard")
    client.close()
    yield url
    running.stop()


@pytest.fixture
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys where boto3 looks for them."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def labels(source: Any) -> list[int]:
    return [sample.label for sample in Dataset[Digit](source)]


def keys(endpoint: str) -> dict[str, str]:
    return {**KEYS, "endpoint": endpoint}


def test_shards_are_streamed(endpoint):
    """A source with an endpoint and keys reads its shards in order, also when made from URLs or credentials."""
    names = [f"data/train-{i}.tar" for i in range(3)]
    source = S3Source("bucket", names, **keys(endpoint))
    assert source.list_shards() == [f"s3://bucket/{name}" for name in names]
    assert labels(source) == list(range(12))
    assert [shard_id for shard_id, stream in source.shards if len(stream.read(512)) == 512] == source.list_shards()
    assert labels(S3Source.from_urls(["s3://bucket/data/train-{0..2}.tar"], **keys(endpoint))) == list(range(12))
    credentials = {
        "AWS_ENDPOINT": endpoint,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    assert labels(S3Source.from_credentials(credentials, "bucket", names[:1])) == [0, 1, 2, 3]


def test_urls_take_keys_from_the_environment(environment):
    """s3:// URLs are read like others."""
    assert labels("s3://bucket/data/train-{0..2}.tar") == list(range(12))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/data/", {"train": 12, "test": 2}),
        ("s3://bucket/data/train-*.tar", {"train": 12}),
        ("s3://bucket/data/train-{0..1}.tar", {"train": 8}),
        ("s3://bucket/", {"train": 12, "test": 2}),
        ("s3://bucket", {"train": 12, "test": 2}),
    ],
)
def test_buckets_are_loaded(environment, path, expected):
    """A prefix, a pattern, a bucket: load_dataset finds the shards and sorts them into splits."""
    splits = load_dataset(path, Digit)
    assert {name: len(list(dataset)) for name, dataset in splits.items()} == expected


def test_what_is_not_there_is_named(endpoint, environment):
    """An object, a prefix or a bucket that is not there is a FileNotFoundError with its URL."""
    with pytest.raises(MissingShardError, match=r"s3://bucket/no\.tar: there is nothing"):
        labels(S3Source("bucket", ["no.tar"], **keys(endpoint)))
    with pytest.raises(FileNotFoundError, match="no shards"):
        load_dataset("s3://bucket/empty/")
    with pytest.raises(ShardError, match="s3://nobody/: cannot be listed"):
        load_dataset("s3://nobody/")


def test_checksums_are_verified(endpoint):
    """A shard whose bytes do not match its checksum fails with its URL."""
    shard, key = "s3://bucket/data/train-0.tar", "data/train-0.tar"

    def source(data: bytes) -> S3Source:
        checksum = Checksum("sha256", sha256(data).hexdigest())
        return S3Source("bucket", [key], **keys(endpoint), checksums={shard: checksum})

    stored = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="id", aws_secret_access_key="secret")
    data = stored.get_object(Bucket="bucket", Key=key)["Body"].read()
    stored.close()
    assert labels(source(data)) == [0, 1, 2, 3]
    with pytest.raises(ShardError, match=f"{shard}: its bytes are not the right ones"):
        labels(source(b"other"))


def test_strangers_services_stay_on_the_public_internet(endpoint, environment, monkeypatch):
    """An endpoint from a record is not followed into a private network; where it may be, requests are not signed."""
    monkeypatch.delenv("ATDATA_ALLOW_PRIVATE_HOSTS", raising=False)
    names = ["data/train-0.tar", "data/test {odd} +.tar", "data/no.tar"]
    source = PublicS3Source("bucket", names, endpoint)
    with pytest.raises(ShardError, match=f"s3://bucket/{names[0]}: cannot be opened: .*not on the public internet"):
        labels(source)
    monkeypatch.setitem(sys.modules, "boto3", None)
    headers: list[str] = []
    monkeypatch.setattr(
        network, "open_response", lambda url, real=network.open_response, **options: spied(real(url, **options))
    )

    @contextmanager
    def spied(context: Any) -> Iterator[Any]:
        with context as response:
            headers.extend(response.request.headers)
            yield response

    allowed = PublicS3Source("bucket", names[:2], endpoint, allow_private=True)
    assert labels(allowed) == [0, 1, 2, 3, 90, 91]
    monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
    assert labels(Subset(source, [f"s3://bucket/{names[0]}"])) == [0, 1, 2, 3]
    assert "user-agent" in headers
    assert "authorization" not in headers
    with pytest.raises(MissingShardError, match=r"s3://bucket/data/no\.tar: there is nothing"):
        source.open_shard("s3://bucket/data/no.tar")


def test_strangers_checksums_are_verified(endpoint):
    """A shard of a stranger's bucket whose bytes do not match its checksum fails with its URL."""
    shard = "s3://bucket/data/train-0.tar"
    wrong = {shard: Checksum("sha256", sha256(b"other").hexdigest())}
    with pytest.raises(ShardError, match=f"{shard}: its bytes are not the right ones"):
        labels(PublicS3Source("bucket", ["data/train-0.tar"], endpoint, checksums=wrong, allow_private=True))


@pytest.mark.parametrize(
    "arguments", [{"region": "evil.com/?"}, {"region": "evil com"}, {"endpoint": "http://h:99999"}]
)
def test_what_boto3_does_not_take_is_an_error_of_ours(arguments):
    """A region or an endpoint that is none is a ShardError that names the shard."""
    with pytest.raises(ShardError, match=r"s3://bucket/0\.tar: cannot be opened"):
        labels(S3Source("bucket", ["0.tar"], **{**KEYS, "endpoint": None, **arguments}))
