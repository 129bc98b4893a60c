"""Where shards are: which URLs are opened, what brace notation stands for, and that bytes are the right ones."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import sys
from hashlib import md5, sha256
from types import SimpleNamespace
from typing import Any

import pytest
from braceexpand import braceexpand
from hypothesis import assume, given
from hypothesis import strategies as st
from shard_files import Digit, digits, packed_shard, write_shard
from web import Reply, serve

import atdata
from atdata import network
from atdata.atmosphere.records import Checksum
from atdata.cid import generate_cid, raw_cid
from atdata.errors import (
    MissingExtraError,
    MissingShardError,
    NetworkError,
    ShardError,
    SourceError,
    UnknownShardError,
)
from atdata.sources import (
    BlobSource,
    PublicS3Source,
    S3Source,
    Subset,
    URLSource,
    _extent,
    expand,
    literal,
    open_url,
    scheme_of,
)

SHARD = packed_shard(digits(20))
DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = raw_cid(sha256(SHARD).digest())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_pause", lambda seconds: None)
    for name in ("ATDATA_PLC_URL", "ATDATA_ALLOW_PRIVATE_HOSTS"):
        monkeypatch.delenv(name, raising=False)


def labels(source: Any) -> list[int]:
    return [sample.label for sample in atdata.Dataset[Digit](source).ordered()]


# --- Brace notation and schemes


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-{3..1}.tar", ["a-3.tar", "a-2.tar", "a-1.tar"]),
        ("{train-{0..1},test}.tar", ["train-0.tar", "train-1.tar", "test.tar"]),
        ("s3://b/{a,b}/{0..1}.tar", ["s3://b/a/0.tar", "s3://b/a/1.tar", "s3://b/b/0.tar", "s3://b/b/1.tar"]),
        ("a-{0..4..2}.tar", ["a-0.tar", "a-2.tar", "a-4.tar"]),
        ("{a..c}.tar", ["a.tar", "b.tar", "c.tar"]),
        ("a{1}.tar", ["a{1}.tar"]),
        (r"a\{0..1\}.tar", ["a{0..1}.tar"]),
        (r"with\backslash.tar", [r"with\backslash.tar"]),
    ],
)
def test_brace_notation(pattern, expected):
    """Braces stand for what bash and webdataset take them for."""
    assert expand(pattern) == expected
    assert URLSource(pattern).list_shards() == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "a-{000000..100000}.tar",
        "a-{0..99999999999999999999}.tar",
        "{0..1" + "0" * 5000 + "}",
        "{0..99999}" * 20,
        "{a,b}" * 17,
        "{a..z}" * 4,
        "{" + ",".join(["{a,b}" * 8] * 500) + "}",
        "{x,{0..999}{0..999}}",
        "{{{{0..999},{0..99999}},{0..99999}},y}",
        "{0..999999999\n}",
        "{0..999},{0..999}",
        "{0..999}{x{0..999}}",
        "{٠..٩٩٩٩٩٩}",
    ],
)
def test_too_many_shards_are_refused_before_they_are_made(pattern):
    """More than 100,000 shards are an error, at once, however they are nested."""
    with pytest.raises(SourceError, match="more than 100,000 shards"):
        expand(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x" * 1000 + "{0..99999}", "more than 32 MiB"),
        ("{" + "x" * 1000 + ",y}{0..49999}", "more than 32 MiB"),
        ("{a," * 2000 + "}" * 2000, "more than 20 deep"),
        ("{" * 100_000, "more than 20 deep"),
        ("}{{0..999},{0..999}}{", "no partner"),
        ("}" * 100_000, "no partner"),
    ],
)
def test_long_and_deep_patterns_are_refused(pattern, message):
    """A short pattern does not become more text than memory should hold, nor a call within a call without end."""
    with pytest.raises(SourceError, match=message):
        expand(pattern)


def test_many_patterns_are_counted_together():
    """A list of patterns stands for no more shards than one may; long URLs that are written out are fine."""
    with pytest.raises(SourceError, match="more than 100,000 shards"):
        URLSource(["a-{0..99999}.tar"] * 1000)
    with pytest.raises(SourceError, match="more than 32 MiB"):
        URLSource(["x" * 1000 + "{0..19999}"] * 2)
    assert len(expand(*["x" * 100_000] * 400)) == 400


@given(
    st.lists(st.sampled_from(["{", "}", ",", "..", "0", "12", "a", "\\", "\n", "٣", "{0..9}", "{a,b}"]), max_size=14)
)
def test_nothing_is_larger_than_it_was_counted(tokens):
    """braceexpand never makes more of a pattern, nor longer URLs, than we reckon with."""
    pattern = "".join(tokens)
    with contextlib.suppress(SourceError):
        extent = _extent(pattern)
        assume(extent.count < 3000)
        made = list(braceexpand(pattern))
        assert len(made) <= extent.count
        assert sum(map(len, made)) <= extent.length


@given(st.text("{},.0\\a\n", min_size=1, max_size=12).filter(lambda name: "\0" not in name))
def test_a_literal_stands_for_itself(name):
    """Whatever a file is called, there is a pattern for it alone."""
    assert expand(literal(name)) == [name]


def test_several_urls_are_one_in_braces():
    """The URL of several stands for the same shards."""
    urls = ["a-{0..2}.tar", "b,c.tar", r"d\e.tar"]
    source = URLSource(urls)
    assert URLSource(source.url).list_shards() == source.list_shards()
    blobs = atdata.Dataset(BlobSource([{"did": DID, "cid": CID}]))
    assert blobs.url == f"at://{DID}/blob/{CID}"


def test_many_shards_are_fine():
    """100,000 are not too many."""
    source = URLSource("a-{000000..099999}.tar")
    assert len(source.list_shards()) == 100_000
    with pytest.raises(SourceError, match="more than 100,000"):
        URLSource(["a-{000000..099999}.tar", "b.tar"])


@pytest.mark.parametrize("pattern", ["a{.tar", "a}.tar", "a{0..1.tar"])
def test_a_brace_without_a_partner_is_an_error(pattern):
    """The message says how to write a brace that is part of a name."""
    with pytest.raises(SourceError, match="a brace has no partner"):
        expand(pattern)


@given(st.text("{},.0123\\ab", max_size=25))
def test_any_pattern_is_expanded_or_refused(pattern):
    """Any string: URLs, or a SourceError."""
    with contextlib.suppress(SourceError):
        assert expand(pattern)


COMMANDS = [
    "pipe:cat /etc/passwd",
    "PIPE:cat x",
    "pipe:curl -s https://example.com/0.tar",
    "{pipe,file}:x",
    "p{ip,x}e:x",
    "{a.tar,pipe:x}",
    "ok-{0..1}.tar::pipe:x",
    "ht:x",
    "ssh://host/x",
    "ftp://host/x",
    "hf://datasets/x",
    "ais://x",
    "data:application/x-tar,x",
    "javascript:x",
    "hdfs://x",
    "sftp://x",
    "file+pipe:x",
]


@pytest.mark.parametrize("url", COMMANDS)
@pytest.mark.parametrize("wrap", [lambda url: url, lambda url: [url, "a.tar"]], ids=["alone", "in a list"])
def test_other_schemes_are_refused_before_anything_is_opened(url, wrap, monkeypatch):
    """pipe: and every scheme that is not on the list: SourceError from the constructor, also within braces."""
    for name in ("system", "popen", "posix_spawn", "execv", "execve"):
        monkeypatch.setattr(os, name, lambda *_, **__: pytest.fail("a command was run"))
    for use in (
        URLSource,
        atdata.Dataset,
        lambda one: atdata.load_dataset(one) if isinstance(one, str) else URLSource(one),
    ):
        with pytest.raises(SourceError, match="is not opened"):
            use(wrap(url))


@pytest.mark.parametrize("url", [" pipe:touch hacked", "\npipe:touch hacked", "./pipe:touch hacked", "|touch hacked"])
def test_odd_names_are_files(url, tmp_path, monkeypatch):
    """Whatever a path looks like, it is opened as a file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingShardError):
        list(atdata.Dataset(url))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["", "a\0b"])
def test_what_is_no_address_is_an_error(url):
    """An empty address, as an unreadable record gives it, and one that no file can have."""
    with pytest.raises(SourceError, match="no address"):
        scheme_of(url)


# --- Files


def test_files(tmp_path, monkeypatch):
    """Relative and absolute paths, Path objects and file: URLs are all one file."""
    path = write_shard(tmp_path / "a b.tar", digits(3))
    monkeypatch.chdir(tmp_path)
    for address in (path, "a b.tar", tmp_path / "a b.tar", f"file://{path.replace(' ', '%20')}", f"file:{path}"):
        assert labels(address) == [0, 1, 2]
    with pytest.raises(SourceError, match="names another host"):
        labels(f"file://elsewhere{path}")


def test_files_that_cannot_be_read(tmp_path):
    """What is missing, a folder, or unreadable is a ShardError that names it and says what to do."""
    with pytest.raises(MissingShardError, match="there is no such file; the current folder is"):
        labels(str(tmp_path / "no.tar"))
    with pytest.raises(FileNotFoundError):
        labels(str(tmp_path / "no.tar"))
    with pytest.raises(ShardError, match=r"is a folder; atdata\.load_dataset"):
        labels(str(tmp_path))
    with pytest.raises(ShardError, match="cannot be opened"):
        labels("x" * 5000 + ".tar")


def test_sources_list_and_open(tmp_path):
    """A source lists its shards, iterates over them, and opens one by its id; an unknown one is a KeyError."""
    for i in range(3):
        write_shard(tmp_path / f"{i}.tar", digits(2, i * 2))
    source = URLSource(f"{tmp_path}/{{0..2}}.tar")
    assert isinstance(source, atdata.DataSource)
    assert source.list_shards() == [f"{tmp_path}/{i}.tar" for i in range(3)]
    streams = []
    for shard_id, stream in source.shards:
        assert len(stream.read(512)) == 512
        streams.append((shard_id, stream))
    assert [shard_id for shard_id, _ in streams] == source.list_shards()
    assert all(stream.closed for _, stream in streams)
    assert labels(source) == list(range(6))
    with source.open_shard(source.list_shards()[1]) as stream:
        assert len(stream.read()) > 1000
    with pytest.raises(KeyError):
        source.open_shard("other.tar")
    with pytest.raises(UnknownShardError, match=r"other\.tar: is no shard of this source, which has"):
        source.open_shard("other.tar")
    assert pickle.loads(pickle.dumps(source)).list_shards() == source.list_shards()
    some = Subset(source, source.list_shards()[:2])
    assert labels(some) == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        some.open_shard(source.list_shards()[2])


def test_a_shard_that_is_listed_twice_is_read_twice(tmp_path):
    """Ids are the list that was given, whatever it repeats."""
    path = write_shard(tmp_path / "a.tar", digits(2))
    assert labels([path, path]) == [0, 1, 0, 1]
    assert BlobSource([{"did": DID, "cid": CID}] * 2).list_shards() == [f"at://{DID}/blob/{CID}"] * 2
    for source in (S3Source("b-b", ["k", "l", "k"]), PublicS3Source("b-b", ["k", "l", "k"])):
        assert source.list_shards() == ["s3://b-b/k", "s3://b-b/l", "s3://b-b/k"]
    with pds(**{CID: SHARD}) as web:
        assert labels(BlobSource([{"did": DID, "cid": CID}] * 2, web.url)) == list(range(20)) * 2


def test_no_password_is_shown():
    """Sources, datasets and errors show URLs without user information and signatures; requests have them."""
    with serve(lambda path: Reply(status=403)) as web:
        url = web.url.replace("//", "//user:hunter2@") + "/0.tar?X-Amz-Signature=hunter2"
        source = URLSource(url)
        with pytest.raises(ShardError) as caught:
            labels(source)
        assert web.requests == ["/0.tar?X-Amz-Signature=hunter2"]
        assert web.headers[0]["authorization"].startswith("Basic ")
    error = caught.value
    shown = [str(error), repr(error), error.shard, repr(source), repr(atdata.Dataset(source)), repr(Subset(source, []))]
    for use in (
        lambda: URLSource("ftp://user:hunter2@h/x.tar"),
        lambda: URLSource("http://user:" + "hunter2" * 100 + "@h/{"),
        lambda: URLSource("http://user:hunter2@h/{0..999999}"),
        lambda: source.open_shard("http://user:hunter2@h/y.tar"),
        lambda: S3Source("b", ["k"], endpoint="https://user:hunter2@h"),
        lambda: S3Source.from_urls(["http://user:hunter2@h/x"]),
        lambda: atdata.load_dataset("file://user:hunter2@h/x.tar", split="train").source.open_shard(
            "file://user:hunter2@h/x.tar"
        ),
    ):
        with pytest.raises((SourceError, ShardError)) as refused:
            use()
        shown += [str(refused.value), repr(refused.value)]
    assert [text for text in shown if "hunter2" in text] == []


CHECKSUMS = [
    (Checksum("sha256", sha256(SHARD).hexdigest()), None),
    (Checksum("SHA-256", sha256(SHARD).hexdigest().upper()), None),
    (Checksum("sha256", "sha256:" + sha256(SHARD).hexdigest()), None),
    (Checksum("md5", md5(SHARD).hexdigest()), None),
    (None, None),
    (Checksum("sha256", sha256(b"").hexdigest()), "its bytes are not the right ones: expected e3b0c442"),
    (Checksum("crc32", "0"), "its checksum is 'crc32', of which we know"),
    (Checksum("shake_128", "0"), "of which we know"),
    (Checksum("", ""), "of which we know"),
    (Checksum("none", "0"), "of which we know"),
]


@pytest.mark.parametrize(("checksum", "problem"), CHECKSUMS)
def test_checksums_are_verified_while_reading(tmp_path, checksum, problem):
    """A shard whose bytes do not match its checksum fails with its name; samples before that were read."""
    path = tmp_path / "a.tar"
    path.write_bytes(SHARD)
    source = URLSource(str(path), checksums={str(path): checksum} if checksum else None)
    if problem is None:
        assert labels(source) == list(range(20))
    else:
        with pytest.raises(ShardError, match=problem) as caught:
            labels(source)
        assert caught.value.shard == str(path)


# --- HTTP


def test_http_shards_are_streamed():
    """Shards at http URLs are read in order."""
    with serve(lambda path: Reply(packed_shard(digits(3, int(path[1]) * 3)))) as web:
        assert labels(f"{web.url}/{{0..2}}.tar") == list(range(9))
        assert web.requests == ["/0.tar", "/1.tar", "/2.tar"]


def test_http_failures_are_named():
    """Nothing there, an error page, a connection that breaks off: a ShardError with the URL."""
    replies = {
        "/missing.tar": Reply(status=404),
        "/forbidden.tar": Reply(status=403),
        "/page.tar": Reply(b"<!DOCTYPE html>" + b" " * 1000),
        "/cut.tar": Reply(SHARD, cut=3000),
    }
    with serve(lambda path: replies[path]) as web:
        with pytest.raises(MissingShardError, match=r"missing\.tar: there is nothing: .*404"):
            labels(f"{web.url}/missing.tar")
        with pytest.raises(ShardError, match=r"forbidden\.tar: cannot be opened: .*403"):
            labels(f"{web.url}/forbidden.tar")
        with pytest.raises(ShardError, match=r"page\.tar: is no tar archive: it looks like a web page"):
            labels(f"{web.url}/page.tar")
        with pytest.raises(ShardError, match=r"cut\.tar: broke off after 3000 bytes"):
            labels(f"{web.url}/cut.tar")
        url = web.url
    with pytest.raises(ShardError, match=r"cannot be opened: .*check the address"):
        labels(f"{url}/gone.tar")


def test_strangers_urls_stay_on_the_public_internet(monkeypatch):
    """URLs from records do not reach hosts of private networks, unless the operator says so."""
    with serve(lambda path: Reply(SHARD)) as web:
        source = URLSource(f"{web.url}/0.tar", trusted=False)
        with pytest.raises(ShardError, match="not on the public internet"):
            labels(source)
        assert web.requests == []
        monkeypatch.setenv("ATDATA_ALLOW_PRIVATE_HOSTS", "1")
        assert labels(source) == list(range(20))


# --- Blobs


def pds(**blobs: bytes) -> Any:
    """A server with blobs by CID, which is the directory of DIDs, too."""

    def answer(path: str) -> Reply:
        if path == f"/{DID}":
            service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": web[0].url}
            return Reply(json.dumps({"id": DID, "service": [service]}).encode())
        for cid, data in blobs.items():
            if path == f"/xrpc/com.atproto.sync.getBlob?did={DID.replace(':', '%3A')}&cid={cid}":
                return Reply(data)
        if path.startswith("/did:"):
            return Reply(status=404)
        return Reply(b'{"error": "BlobNotFound", "message": "Blob not found"}', 400)

    web: list[Any] = []
    context = serve(answer)

    class Both:
        def __enter__(self) -> Any:
            web.append(context.__enter__())
            return web[0]

        def __exit__(self, *error: object) -> None:
            context.__exit__(*error)

    return Both()


def test_blobs_are_read_and_verified():
    """Blobs are found through the DID document, streamed and verified; with an endpoint nobody is asked for one."""
    with pds(**{CID: SHARD}) as web:
        source = BlobSource.from_refs([{"did": DID, "cid": CID}], plc_url=web.url)
        assert source.list_shards() == [f"at://{DID}/blob/{CID}"]
        assert labels(source) == list(range(20))
        assert web.requests[0] == f"/{DID}"
        web.requests.clear()
        assert labels(BlobSource([{"did": DID, "cid": CID}], web.url + "/")) == list(range(20))
        assert len(web.requests) == 1
        again = pickle.loads(pickle.dumps(source))
        assert labels(again) == list(range(20))


def test_urls_of_blobs_are_read_by_every_source(monkeypatch):
    """at://did/blob/cid is a URL like others; the directory is the environment's."""
    with pds(**{CID: SHARD}) as web:
        monkeypatch.setenv("ATDATA_PLC_URL", web.url)
        assert labels(f"at://{DID}/blob/{CID}") == list(range(20))
    with pytest.raises(ValueError, match="blob"):
        labels(f"at://{DID}/ac.foundation.dataset.record/abc")


@pytest.mark.parametrize("data", [SHARD[:-1] + b"\1", SHARD + bytes(512), SHARD[512:], SHARD[:-512], b""])
def test_blobs_with_other_bytes_are_an_error_that_names_them(data):
    """A server that sends other bytes than the CID says is found out, behind the end of the archive as well."""
    with pds(**{CID: data}) as web:
        with pytest.raises(ShardError) as caught:
            labels(BlobSource([{"did": DID, "cid": CID}], web.url))
        assert caught.value.shard == f"at://{DID}/blob/{CID}"


def test_a_verified_blob_of_other_bytes_names_both_cids():
    """The message has the CID that was expected and the one that the bytes have."""
    other = packed_shard(digits(3))
    with pds(**{CID: other}) as web, pytest.raises(ShardError, match=f"expected {CID}, got bafkrei"):
        labels(BlobSource([{"did": DID, "cid": CID}], web.url))


def test_blobs_that_cannot_be_read():
    """A blob that is not there, an account that is not there, a CID of another kind: ShardErrors that name the blob."""
    with pds() as web:
        with pytest.raises(ShardError, match=f"{CID}: cannot be opened: .*BlobNotFound"):
            labels(BlobSource([{"did": DID, "cid": CID}], web.url))
        other = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
        with pytest.raises(ShardError, match=f"{other}.*its server is not known: .*no such account"):
            labels(BlobSource([{"did": other, "cid": CID}], plc_url=web.url))
        with pytest.raises(ShardError, match="is not a CID"):
            labels(BlobSource([{"did": DID, "cid": "bafyrei111"}], web.url))
        with pytest.raises(ShardError, match="cannot be opened"):
            labels(BlobSource([{"did": DID, "cid": generate_cid({})}], web.url))


@pytest.mark.parametrize("ref", [{}, {"did": DID}, {"cid": CID}, "at://x", {"did": "alice.example.com", "cid": CID}])
def test_what_is_no_blob_is_an_error(ref):
    """A reference without DID or CID is refused in words."""
    with pytest.raises(SourceError):
        BlobSource([ref])


def test_strangers_servers_stay_on_the_public_internet(monkeypatch):
    """A DID document that names a private host is not followed, unless the directory is local."""
    with pds(**{CID: SHARD}) as web:
        source = BlobSource([{"did": DID, "cid": CID}], plc_url=web.url)
        monkeypatch.setattr(network, "_is_local", lambda url: False)
        with pytest.raises(ShardError, match="names no server"):
            labels(source)
        assert len(web.requests) == 1


# --- S3 and Google, without their libraries


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that would be connected to, without anybody's library; nothing is."""
    hosts: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        hosts.append(f"{host}:{port}")
        raise NetworkError("not from here")

    monkeypatch.setattr(network, "resolve_public", resolve)
    for module in ("boto3", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return hosts


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("s3://their-bucket/a/0.tar", "their-bucket.s3.amazonaws.com:443"),
        ("s3://their.bucket/a/0.tar", "s3.amazonaws.com:443"),
        ("gs://their_bucket/a/0.tar", "storage.googleapis.com:443"),
    ],
)
def test_strangers_buckets_are_read_without_our_keys(connected, url, host):
    """s3: and gs: URLs that a stranger chose go to the service itself, not through libraries that know our keys."""
    for read in (lambda: labels(URLSource(url, trusted=False)), lambda: open_url(url, trusted=False)):
        with pytest.raises(ShardError, match=f"{url}: cannot be opened: not from here"):
            read()
    assert connected == [host, host]


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_strangers_do_not_choose_files_of_ours(tmp_path, prefix):
    """A path or file: URL that a stranger chose is not opened, but in a network of one's own."""
    path = prefix + write_shard(tmp_path / "a.tar", digits(2))
    with pytest.raises(SourceError, match="is a file of this machine, which no stranger chooses"):
        labels(URLSource(path, trusted=False))
    assert labels(URLSource(path, trusted=False, allow_private=True)) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ({"region": "eu-west-1"}, "bucket.s3.eu-west-1.amazonaws.com:443"),
        ({"region": "eu-west-1", "bucket": "a.b"}, "s3.eu-west-1.amazonaws.com:443"),
        ({"endpoint": "https://minio.example.com"}, "minio.example.com:443"),
        ({"endpoint": "http://minio.example.com:9000/"}, "minio.example.com:9000"),
        ({"endpoint": "https://example.com/storage/v1/s3", "region": "x"}, "example.com:443"),
        ({"endpoint": "http://127.0.0.1:9000"}, "127.0.0.1:9000"),
        ({"endpoint": "http://[::1]:9000"}, "::1:9000"),
    ],
)
def test_strangers_services_are_asked_over_checked_connections(connected, arguments, host):
    """Whatever the endpoint of a record is, the host that it names is the one that is checked, once."""
    source = PublicS3Source(**{"bucket": "bucket", "keys": ["0.tar"], **arguments})
    with pytest.raises(ShardError, match="not from here"):
        labels(source)
    assert connected == [host]


@pytest.mark.parametrize(
    "arguments",
    [
        {"endpoint": "http://127.0.0.1:1\\@93.184.216.34"},
        {"endpoint": "http://93.184.216.34:80\\@127.0.0.1"},
        {"endpoint": "http://user@93.184.216.34"},
        {"endpoint": "http://127.0.0.1:1#@93.184.216.34/"},
        {"endpoint": "http://127.0.0.1:1?@93.184.216.34"},
        {"endpoint": "http://["},
        {"endpoint": "http://[::1/"},
        {"endpoint": "http:///x"},
        {"endpoint": "http://h\n/"},
        {"endpoint": "ftp://h"},
        {"endpoint": ""},
        {"region": "evil.com/?"},
        {"region": "x@evil.com"},
        {"region": "evil com", "endpoint": "http://93.184.216.34"},
        {"bucket": "evil.com/"},
        {"bucket": "x@evil.com"},
        {"bucket": "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/x"},
        {"bucket": "arn:aws:s3:us-west-2:123456789012:accesspoint/x"},
        {"bucket": "b"},
        {"bucket": ""},
        {"keys": ["../other/0.tar"]},
        {"keys": [""]},
        {"keys": "0.tar"},
    ],
)
def test_addresses_in_s3_that_libraries_could_read_differently(connected, arguments):
    """What is no plain bucket, key, region or endpoint is refused in words before anybody is asked."""
    with pytest.raises(SourceError):
        PublicS3Source(**{"bucket": "bucket", "keys": ["0.tar"], **arguments})
    if "endpoint" in arguments and "region" not in arguments:
        with pytest.raises(SourceError, match="an S3 endpoint is"):
            S3Source("bucket", ["0.tar"], endpoint=arguments["endpoint"])
    assert connected == []


def test_a_service_that_is_two_hosts_is_one(monkeypatch):
    """A name that resolves to a public address first and to a private one then is connected to at the first."""
    asked: list[str] = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) > 1 else "203.0.114.7", port))]

    class Stop(Exception):
        pass

    def connect(self: object, host: str, *_: object) -> None:
        asked.append(host)
        raise Stop

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", connect)
    with pytest.raises(Stop):
        labels(PublicS3Source("bucket", ["0.tar"], endpoint="http://rebinding.example.com"))
    assert asked == ["rebinding.example.com", "203.0.114.7"]


def test_s3_sources_are_made_from_urls_and_credentials():
    """Each way of making one gives the same shards; what does not fit is refused."""
    source = S3Source.from_urls(["s3://b/a-{0..1}.tar", "s3://b/c/d.tar"])
    assert source.list_shards() == ["s3://b/a-0.tar", "s3://b/a-1.tar", "s3://b/c/d.tar"]
    assert repr(source) == "S3Source('b', 3 shards)"
    credentials = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_ENDPOINT": "http://localhost:1"}
    source = S3Source.from_credentials(credentials, "b", ["a.tar"])
    assert source.list_shards() == ["s3://b/a.tar"]
    assert "hush" not in repr(source)
    assert "hush" not in str(atdata.Dataset(source))
    with pytest.raises(SourceError, match="found b, c"):
        S3Source.from_urls(["s3://b/a.tar", "s3://c/a.tar"])
    with pytest.raises(SourceError, match="no URL"):
        S3Source.from_urls([])
    for url in ("s3://b", "s3:///a", "s3:b/a", "a.tar"):
        with pytest.raises(SourceError, match="expected s3://bucket/key"):
            S3Source.from_urls([url])
    with pytest.raises(SourceError, match="a list of keys"):
        S3Source("b", "a.tar")
    with pytest.raises(SourceError, match="endpoint"):
        S3Source("b", ["a.tar"], endpoint="localhost:9000")
    with pytest.raises(KeyError):
        source.open_shard("s3://b/b.tar")


def test_missing_packages_are_named(monkeypatch):
    """Without boto3 or gcsfs, the message says what to install."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atdata-network\[s3\]'"):
        labels(S3Source("b", ["a.tar"]))
    with pytest.raises(ImportError, match="pip install gcsfs"):
        labels("gs://b/a.tar")


def test_google_storage_is_read_by_gcsfs(tmp_path, monkeypatch):
    """gs: URLs go to gcsfs, where it is installed."""
    path = tmp_path / "a.tar"
    path.write_bytes(SHARD)

    class FileSystem:
        def open(self, url: str, mode: str) -> Any:
            if url != "gs://b/a.tar":
                raise FileNotFoundError(url)
            return path.open(mode)

    monkeypatch.setitem(sys.modules, "gcsfs", SimpleNamespace(GCSFileSystem=FileSystem))
    assert labels("gs://b/a.tar") == list(range(20))
    with pytest.raises(MissingShardError, match="no such object"):
        labels("gs://b/b.tar")
