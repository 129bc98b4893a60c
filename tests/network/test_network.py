"""What the reference PDS does, and that our handles on it work. The docstrings are facts to build on."""

import base64
import hashlib
import hmac
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import libipld
import pytest
from network.atproto_network import (
    HERE,
    Account,
    Network,
    NetworkError,
    XrpcError,
    creation,
    deletion,
    start_network,
    update,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

DATASET = "ac.foundation.dataset.record"
RECORD = {
    "name": "Harbour sounds",
    "schemaRef": "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/ac.foundation.dataset.sampleSchema/3jzfcijpj2z2a",
    "storage": {
        "$type": "ac.foundation.dataset.storageExternal",
        "urls": ["https://data.example.org/harbour/{000..003}.tar"],
    },
    "createdAt": "2026-01-01T00:00:00Z",
}

Frame = tuple[str, dict[str, Any]]


# --- what an account's events are ---


def test_a_new_account_is_identity_then_account_then_an_empty_commit_then_sync(account: Account) -> None:
    """createAccount emits #identity, #account, #commit with no ops, `since` null and no `prevData`, and #sync.

    The commit's CAR holds the signed commit and the empty root; #sync repeats its rev, with the commit alone.
    """
    (_, identity), (_, active), (_, commit), (_, sync) = frames = events(account, 4)
    assert kinds(frames) == ["#identity", "#account", "#commit", "#sync"]
    assert identity["handle"] == account.handle
    assert active["active"] is True
    assert "status" not in active
    assert (commit["ops"], commit["since"]) == ([], None)
    assert "prevData" not in commit
    assert len(blocks(commit)) == 2
    assert sync["rev"] == commit["rev"]
    assert blocks(sync).keys() == {commit["commit"]}


def test_each_write_is_a_commit_that_continues_the_one_before(account: Account) -> None:
    """create, update and delete are a #commit each, with `since` the rev and `prevData` the root before.

    An op has `prev` unless it creates, a `cid` unless it deletes; `blobs` is always empty.
    """
    created = account.create_record(DATASET, RECORD)
    rkey = key_of(created)
    updated = account.put_record(DATASET, rkey, RECORD | {"name": "Harbour sounds, 2"})
    account.delete_record(DATASET, rkey)
    commits = of_kind("#commit", events(account, 7))
    path = f"{DATASET}/{rkey}"
    assert [op for commit in commits for op in commit["ops"]] == [
        {"action": "create", "path": path, "cid": cid_bytes(created["cid"])},
        {"action": "update", "path": path, "cid": cid_bytes(updated["cid"]), "prev": cid_bytes(created["cid"])},
        {"action": "delete", "path": path, "cid": None, "prev": cid_bytes(updated["cid"])},
    ]
    for before, after in itertools.pairwise(commits):
        assert after["since"] == before["rev"]
        assert after["prevData"] == root(before)
        assert after["blobs"] == []
    assert blocks(commits[1])[cid_bytes(created["cid"])] == {"$type": DATASET} | RECORD


def test_a_write_that_changes_nothing_is_no_event(account: Account) -> None:
    """putRecord of the same content, and deleteRecord of no record, succeed and emit nothing."""
    created = account.create_record(DATASET, RECORD)
    again = account.put_record(DATASET, key_of(created), RECORD)
    account.delete_record(DATASET, "nothing-here")
    last = account.create_record(DATASET, RECORD)
    assert again["cid"] == created["cid"]
    assert "commit" not in again
    assert [op["path"] for commit in of_kind("#commit", events(account, 6)) for op in commit["ops"]] == [
        f"{DATASET}/{key_of(created)}",
        f"{DATASET}/{key_of(last)}",
    ]


def test_apply_writes_is_one_commit(account: Account) -> None:
    """applyWrites emits one #commit, with its ops in the order of the writes."""
    first, _ = account.apply_writes([creation(DATASET, RECORD), creation(DATASET, RECORD, "second")])
    account.apply_writes([update(DATASET, "second", RECORD | {"name": "New"}), deletion(DATASET, key_of(first))])
    _, created, changed = of_kind("#commit", events(account, 6))
    assert [(op["action"], op["path"]) for op in created["ops"] + changed["ops"]] == [
        ("create", f"{DATASET}/{key_of(first)}"),
        ("create", f"{DATASET}/second"),
        ("update", f"{DATASET}/second"),
        ("delete", f"{DATASET}/{key_of(first)}"),
    ]


def test_a_commit_may_name_one_record_twice(account: Account) -> None:
    """Writes that create and delete one key are two ops with that path, and the record's block is missing.

    The tree is as it was before: only the last op for a path says what it holds now.
    """
    account.apply_writes([creation(DATASET, RECORD, "twice"), deletion(DATASET, "twice")])
    *_, (_, commit) = events(account, 5)
    assert [(op["action"], op["path"], "prev" in op) for op in commit["ops"]] == [
        ("create", f"{DATASET}/twice", False),
        ("delete", f"{DATASET}/twice", False),
    ]
    assert commit["ops"][0]["cid"] not in blocks(commit)
    assert commit["prevData"] == root(commit)


def test_deactivation_is_account_and_activation_is_account_identity_sync(account: Account) -> None:
    """deactivateAccount emits #account `deactivated`; activateAccount #account, #identity and #sync.

    That #sync has the rev that the repository had all along.
    """
    account.deactivate()
    account.activate()
    frames = events(account, 8)[3:]
    assert kinds(frames) == ["#sync", "#account", "#account", "#identity", "#sync"]
    (_, before), (_, hidden), (_, shown), (_, identity), (_, after) = frames
    assert (hidden["active"], hidden["status"]) == (False, "deactivated")
    assert shown["active"] is True
    assert "status" not in shown
    assert identity["handle"] == account.handle
    assert after["rev"] == before["rev"]


def test_a_new_handle_is_identity_even_when_it_is_the_old_one(account: Account) -> None:
    """updateHandle emits #identity with the handle, also when that has not changed."""
    new = account.handle.replace("user", "u2")
    account.update_handle(new)
    account.update_handle(new)
    (kind, first), (_, second) = events(account, 6)[4:]
    assert (kind, first["handle"], second["handle"]) == ("#identity", new, new)


def test_takedown_and_its_end_are_account_alone(network: Network, account: Account) -> None:
    """A takedown emits #account `takendown`, its end #account: no #identity, no #sync, and history replays."""
    account.create_record(DATASET, RECORD)
    network.takedown(account.did)
    network.restore(account.did)
    frames = events(account, 7)
    assert kinds(frames)[4:] == ["#commit", "#account", "#account"]
    assert [body.get("status") for _, body in frames[5:]] == ["takendown", None]


def test_deletion_takes_the_account_out_of_the_replay(network: Network, account: Account) -> None:
    """A deletion emits #account `deleted`; from then on the replay has a gap in place of all its other events."""
    account.create_record(DATASET, RECORD)
    last = events(account, 5)[-1][1]["seq"]
    account.delete_account()
    kind, body = events(account, 1)[0]
    assert (kind, body["active"], body["status"]) == ("#account", False, "deleted")
    assert body["seq"] > last


# --- the firehose's cursor ---


def test_a_cursor_is_exclusive(network: Network, account: Account) -> None:
    """`cursor=N` starts with the first event after N; `cursor=0` with all that the PDS keeps."""
    seqs = [body["seq"] for _, body in events(account, 4)]
    with firehose(network, seqs[1]) as stream:
        assert [next(stream)[1]["seq"], next(stream)[1]["seq"]] == seqs[2:]


def test_no_cursor_means_live_events_only(network: Network, account: Account) -> None:
    """Without a cursor the stream starts now. (Events of the last instants before may still be among it.)"""
    settled = events(account, 4)[-1][1]["seq"]
    with firehose(network) as stream:
        account.create_record(DATASET, RECORD)
        kind, body = next(frame for frame in stream if frame[1]["seq"] > settled)
    assert (kind, body["repo"]) == ("#commit", account.did)


def test_a_cursor_in_the_future_is_an_error_frame_and_the_end(network: Network) -> None:
    """A cursor beyond the last event is answered by the error frame FutureCursor and close code 1008."""
    with connect(f"{network.firehose}?cursor=999999999", max_size=None) as connection:
        header, body = decoded(connection)
        assert (header["op"], body["error"]) == (-1, "FutureCursor")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "FutureCursor")


def test_an_outdated_cursor_is_announced_by_info() -> None:
    """A cursor older than the PDS keeps is answered by #info OutdatedCursor; the stream starts where it can."""
    with start_network(settings={"repoBackfillLimitMs": 0}) as network:
        account = network.create_account()
        with firehose(network, 1) as stream:
            kind, body = next(stream)
    assert (kind, body["name"]) == ("#info", "OutdatedCursor")
    assert "seq" not in body
    assert account.did.startswith("did:plc:")


def test_a_stopped_pds_breaks_the_stream_off_and_goes_on_where_it_was(network: Network, account: Account) -> None:
    """When the PDS stops, connections end without a close frame; afterwards `seq` continues, nothing is lost."""
    seq = events(account, 4)[-1][1]["seq"]
    with connect(f"{network.firehose}?cursor={seq}", max_size=None) as connection:
        network.stop_pds()
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
        assert closed.value.rcvd is None
        with pytest.raises(httpx.ConnectError):
            network.query("_health")
        network.start_pds()
    account.create_record(DATASET, RECORD)
    assert events(account, 5)[-1][1]["seq"] == seq + 1


# --- what the PDS answers about a repository ---


@pytest.mark.parametrize(
    ("state", "status", "error"),
    [
        ("active", {"active": True}, None),
        ("deactivated", {"active": False, "status": "deactivated"}, "RepoDeactivated"),
        ("takendown", {"active": False, "status": "takendown"}, "RepoTakendown"),
        ("deleted", "RepoNotFound", "RepoNotFound"),
    ],
)
def test_a_repository_that_is_not_active_is_listed_but_not_served(
    network: Network, account: Account, state: str, status: Mapping[str, Any] | str, error: str | None
) -> None:
    """Inactive repositories stay in listRepos and getRepoStatus (no rev there); deleted ones are RepoNotFound.

    getLatestCommit, getRepo, getRecord, getBlob and describeRepo answer 400 with an error that names the state.
    """
    uri = account.create_record(DATASET, RECORD)["uri"]
    latest = network.query("com.atproto.sync.getLatestCommit", did=account.did)
    {
        "active": lambda: None,
        "deactivated": account.deactivate,
        "takendown": lambda: network.takedown(account.did),
        "deleted": account.delete_account,
    }[state]()

    if isinstance(status, str):
        assert refusal(network, "com.atproto.sync.getRepoStatus", did=account.did) == status
        assert account.did not in listed_repositories(network)
    else:
        expected = {"did": account.did, **status}
        rev = {"rev": latest["rev"]} if status["active"] else {}
        assert network.query("com.atproto.sync.getRepoStatus", did=account.did) == expected | rev
        assert listed_repositories(network)[account.did] == expected | {"head": latest["cid"], "rev": latest["rev"]}

    assert refusal(network, "com.atproto.sync.getLatestCommit", did=account.did) == error
    assert refusal(network, "com.atproto.sync.getRepo", did=account.did) == error
    assert refusal(network, "com.atproto.repo.describeRepo", repo=account.did) == error
    record = {"did": account.did, "collection": DATASET, "rkey": uri.rsplit("/", 1)[1]}
    assert refusal(network, "com.atproto.sync.getRecord", **record) == error


def test_describe_repo_lists_the_collections(network: Network, account: Account) -> None:
    """describeRepo names the collections that hold records, and the DID document (from a cache)."""
    account.create_record(DATASET, RECORD)
    described = network.query("com.atproto.repo.describeRepo", repo=account.did)
    assert (described["collections"], described["handle"]) == ([DATASET], account.handle)
    assert described["didDoc"]["id"] == account.did


def test_get_repo_is_a_car_with_every_record(network: Network, account: Account) -> None:
    """getRepo's CAR has the commit as its root, and the blocks of tree and records."""
    written = account.create_record(DATASET, RECORD)
    response = network.get("com.atproto.sync.getRepo", did=account.did)
    header, by_cid = libipld.decode_car(response.content)
    latest = network.query("com.atproto.sync.getLatestCommit", did=account.did)
    assert header["roots"] == [cid_bytes(latest["cid"])]
    assert by_cid[cid_bytes(written["cid"])] == {"$type": DATASET} | RECORD
    assert response.headers["content-type"] == "application/vnd.ipld.car"


def test_a_page_of_list_repos_has_a_cursor_until_it_is_empty(network: Network, account: Account) -> None:
    """listRepos gives a cursor with the last page of repositories, too; the page after it is empty, without one."""
    page = network.query("com.atproto.sync.listRepos", limit=1)
    seen = []
    while "cursor" in page:
        seen += page["repos"]
        page = network.query("com.atproto.sync.listRepos", limit=1, cursor=page["cursor"])
    assert page["repos"] == []
    assert seen[-1]["did"] == account.did


@pytest.mark.parametrize(
    "nsid",
    ["com.atproto.sync.listReposByCollection", "com.atproto.sync.listHosts", "com.atproto.identity.resolveIdentity"],
)
def test_what_only_relays_and_appviews_answer_is_refused(network: Network, nsid: str) -> None:
    """The PDS would pass unknown methods on to an AppView; it has none here, and answers 400 InvalidRequest."""
    with pytest.raises(XrpcError, match="No service configured") as refused:
        network.query(nsid)
    assert (refused.value.status, refused.value.error) == (400, "InvalidRequest")


# --- identity ---


def test_a_handle_resolves_at_the_pds(network: Network, account: Account) -> None:
    """There is no DNS for `.test`: ask the PDS, by resolveHandle or by /.well-known/atproto-did with Host set.

    Handles of unknown or inactive accounts are 400 InvalidRequest in the one and 404 in the other.
    """
    well_known = f"{network.pds}/.well-known/atproto-did"
    resolved = network.query("com.atproto.identity.resolveHandle", handle=account.handle)
    assert resolved == {"did": account.did}
    assert httpx.get(well_known, headers={"host": account.handle}).text == account.did
    account.deactivate()
    assert refusal(network, "com.atproto.identity.resolveHandle", handle=account.handle) == "InvalidRequest"
    assert httpx.get(well_known, headers={"host": account.handle}).status_code == 404


def test_the_plc_directory_has_the_did_document(network: Network, account: Account) -> None:
    """The PLC directory answers /{did} with handle, key and PDS, current at once; deletion leaves it be."""
    account.update_handle(account.handle.replace("user", "u3"))
    account.delete_account()
    document = httpx.get(f"{network.plc}/{account.did}").json()
    assert document["alsoKnownAs"] == [f"at://{account.handle}"]
    (service,) = document["service"]
    assert (service["id"], service["serviceEndpoint"]) == ("#atproto_pds", network.pds)
    (key,) = document["verificationMethod"]
    assert key["id"] == "#atproto"
    assert key["publicKeyMultibase"].startswith("z")
    assert httpx.get(f"{network.plc}/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa").status_code == 404


# --- records and blobs ---


def test_a_blob_is_served_once_a_record_refers_to_it(network: Network, account: Account) -> None:
    """getBlob knows a blob only from when a record of its account refers to it."""
    blob = account.upload_blob(b"shard" * 100, "application/x-tar")
    where = {"did": account.did, "cid": blob["ref"]["$link"]}
    assert refusal(network, "com.atproto.sync.getBlob", **where) == "InvalidRequest"
    storage = {"$type": "ac.foundation.dataset.storageBlobs", "blobs": [blob]}
    account.create_record(DATASET, RECORD | {"storage": storage})
    response = network.get("com.atproto.sync.getBlob", **where)
    assert (response.content, response.headers["content-type"]) == (b"shard" * 100, "application/x-tar")


def test_list_records_pages_through_to_the_end(account: Account) -> None:
    """list_records returns more records than a page has, the highest key first."""
    account.apply_writes([creation(DATASET, RECORD, f"k{n:03}") for n in range(150)])
    keys = [record["uri"].rsplit("/", 1)[1] for record in account.list_records(DATASET)]
    assert keys == [f"k{n:03}" for n in reversed(range(150))]
    assert account.list_records("ac.foundation.dataset.label") == []


@pytest.mark.parametrize(
    ("record", "status"),
    [({"name": 1.5}, 400), ({"name": "x" * 160_000}, 413)],
    ids=["a float", "a request over 150 KiB"],
)
def test_the_pds_refuses(account: Account, record: Mapping[str, Any], status: int) -> None:
    """Records have no floats, and a request no more than 150 KiB of JSON, whatever the protocol allows."""
    with pytest.raises(XrpcError) as refused:
        account.create_record(DATASET, record)
    assert refused.value.status == status


def test_a_service_token_names_its_issuer_audience_and_method(network: Network, account: Account) -> None:
    """service_token is a JWT of the account for one service and method."""
    claims = claims_of(account.service_token("did:web:appview.test", "ac.foundation.dataset.getRecord"))
    assert claims["iss"] == account.did
    assert claims["aud"] == "did:web:appview.test"
    assert claims["lxm"] == "ac.foundation.dataset.getRecord"


# --- starting and stopping ---


def test_a_data_folder_continues_in_a_later_run(tmp_path: Path) -> None:
    """With `data`, a second run has the ports, accounts, identities and events of the first."""
    with start_network(data=tmp_path) as first:
        account = first.create_account("ada")
        written = account.create_record(DATASET, RECORD)
    with start_network(data=tmp_path) as second:
        assert (second.pds, second.plc) == (first.pds, first.plc)
        assert httpx.get(f"{second.plc}/{account.did}").json()["alsoKnownAs"] == ["at://ada.test"]
        account.network = second
        assert [record["uri"] for record in account.list_records(DATASET)] == [written["uri"]]
        assert len(events(account, 5)) == 5

        secret = json.loads((tmp_path / "network.json").read_text())["jwtSecret"]
        account.access_jwt = expired = signed(claims_of(account.access_jwt) | {"iat": 1, "exp": 2}, secret)
        account.create_record(DATASET, RECORD)
        assert account.access_jwt != expired, "an expired session is renewed"


def test_settings_reach_the_pds_and_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`settings` are the PDS's own, such as blobUploadLimit; when the network stops, its files are gone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start_network(settings={"blobUploadLimit": 10}) as network:
        with pytest.raises(XrpcError) as refused:
            network.create_account().upload_blob(b"eleven byte")
        assert refused.value.status == 413
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_start_says_why() -> None:
    """NetworkError carries what the servers wrote to stderr."""
    with (
        pytest.raises(NetworkError, match="Invalid handle domain: nodot"),
        start_network(settings={"serviceHandleDomains": ["nodot"]}),
    ):
        pass


@pytest.mark.parametrize(
    ("version", "complaint"),
    [(None, "Node.js 20 or newer is needed, with npm"), ("18", "Node.js 20 or newer is needed, this is 18")],
)
def test_install_says_which_node_it_needs(tmp_path: Path, version: str | None, complaint: str) -> None:
    """Without a Node.js that is recent enough, the install script names the version it needs and ends."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    if version:
        for tool in ("node", "npm"):
            (tmp_path / tool).write_text(f"#!/bin/sh\necho {version}\n")
            (tmp_path / tool).chmod(0o755)
    done = subprocess.run(
        [HERE / "install"], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert complaint in done.stderr


# --- helpers ---


@contextmanager
def firehose(network: Network, cursor: int | None = None) -> Iterator[Iterator[Frame]]:
    """The frames of the PDS, as (type, body)."""
    query = "" if cursor is None else f"?cursor={cursor}"
    with connect(network.firehose + query, max_size=None) as connection:
        yield frames(connection)


def frames(connection: ClientConnection) -> Iterator[Frame]:
    while True:
        header, body = decoded(connection)
        yield header["t"], body


def decoded(connection: ClientConnection) -> tuple[dict[str, Any], dict[str, Any]]:
    header, body = libipld.decode_dag_cbor_multi(connection.recv(timeout=30, decode=False))
    return header, body


def events(account: Account, count: int) -> list[Frame]:
    """The first *count* events about *account*, from the beginning."""
    with firehose(account.network, 0) as stream:
        own = (frame for frame in stream if account.did in (frame[1].get("did"), frame[1].get("repo")))
        return [next(own) for _ in range(count)]


def kinds(frames: list[Frame]) -> list[str]:
    return [kind for kind, _ in frames]


def of_kind(kind: str, frames: list[Frame]) -> list[dict[str, Any]]:
    return [body for this, body in frames if this == kind]


def blocks(body: Mapping[str, Any]) -> dict[bytes, Any]:
    """The decoded blocks of a commit or sync frame, by CID."""
    return libipld.decode_car(body["blocks"])[1]


def root(commit: Mapping[str, Any]) -> bytes:
    """The CID of the tree after *commit*."""
    data: bytes = blocks(commit)[commit["commit"]]["data"]
    return data


def cid_bytes(cid: str) -> bytes:
    """The binary form that libipld gives CIDs in."""
    return base64.b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))


def key_of(written: Mapping[str, Any]) -> str:
    key: str = written["uri"].rsplit("/", 1)[1]
    return key


def refusal(network: Network, nsid: str, **parameters: Any) -> str | None:
    """The error that the PDS answers with, None if it does not."""
    try:
        network.get(nsid, **parameters)
    except XrpcError as error:
        return error.error
    return None


def listed_repositories(network: Network) -> dict[str, dict[str, Any]]:
    return {repo["did"]: repo for repo in network.query("com.atproto.sync.listRepos", limit=1000)["repos"]}


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def signed(claims: Mapping[str, Any], secret: str) -> str:
    """A session token of the PDS with these claims."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    content = f"{part(json.dumps({'typ': 'at+jwt', 'alg': 'HS256'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{content}.{part(hmac.digest(secret.encode(), content.encode(), hashlib.sha256))}"
