"""Run the reference PDS and PLC directory, and act as their users and as their operator.

    with start_network() as network:
        ada = network.create_account("ada")
        uri = ada.create_record("ac.foundation.dataset.label", {...})["uri"]

As a command it runs a network in the foreground, with two accounts, until Ctrl-C (`demo` adds datasets):

    python tests/network/atproto_network.py
"""

import argparse
import base64
import contextlib
import json
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

HERE = Path(__file__).parent

# Node needs three seconds to load the PDS; on a busy machine several times that.
START_DEADLINE = 120.0
STOP_DEADLINE = 30.0


class NetworkError(Exception):
    """The servers could not be installed or started, or did not do as told."""


class XrpcError(Exception):
    """The PDS refused a request: `status` and `error` say how."""

    def __init__(self, nsid: str, status: int, error: str, message: str) -> None:
        super().__init__(f"{nsid}: {status} {error}: {message}")
        self.status = status
        self.error = error


@dataclass
class Network:
    """A running PDS and PLC directory. `start_network` makes one."""

    pds: str
    plc: str
    pds_did: str
    admin_password: str
    _process: subprocess.Popen[str]
    _stderr: IO[str]
    _http: httpx.Client = field(default_factory=lambda: _http_client())

    @property
    def relay(self) -> str:
        """The PDS as a relay's address: its firehose is the relay's protocol."""
        return self.pds.replace("http", "ws", 1)

    @property
    def firehose(self) -> str:
        """The URL of `com.atproto.sync.subscribeRepos`."""
        return f"{self.relay}/xrpc/com.atproto.sync.subscribeRepos"

    def create_account(self, name: str | None = None) -> "Account":
        """A new account, its handle *name*`.test`: 3 to 18 letters, digits, hyphens. Random if not given."""
        name = name or f"user-{secrets.token_hex(5)}"
        password = secrets.token_hex(16)
        session = self.procedure(
            "com.atproto.server.createAccount",
            {"handle": f"{name}.test", "email": f"{name}@mail.test", "password": password},
        )
        return Account(self, session["did"], session["handle"], password, session["accessJwt"])

    def takedown(self, did: str) -> None:
        """Take the account down, as the PDS's operator."""
        self._set_takedown(did, {"applied": True, "ref": "test"})

    def restore(self, did: str) -> None:
        """Undo `takedown`."""
        self._set_takedown(did, {"applied": False})

    def delete_account(self, did: str) -> None:
        """Delete the account for good, as the operator: its owner would need a code from an e-mail."""
        self.procedure("com.atproto.admin.deleteAccount", {"did": did}, headers=self._as_admin)

    def stop_pds(self) -> None:
        """Stop the PDS, which breaks every firehose connection off. The PLC directory goes on."""
        self._command("stop", STOP_DEADLINE)
        self._http.close()
        self._http = _http_client()

    def start_pds(self) -> None:
        """Start the PDS again after `stop_pds`, at the same URL, with all it had."""
        self._command("start", START_DEADLINE)

    def restart_pds(self) -> None:
        """Stop the PDS and start it again."""
        self.stop_pds()
        self.start_pds()

    def query(self, nsid: str, *, headers: Mapping[str, str] | None = None, **parameters: Any) -> Any:
        """The answer to an XRPC query; `XrpcError` if the PDS refuses."""
        return self.get(nsid, headers=headers, **parameters).json()

    def get(self, nsid: str, *, headers: Mapping[str, str] | None = None, **parameters: Any) -> httpx.Response:
        """As `query`, for answers that are not JSON, such as the CAR of `com.atproto.sync.getRepo`."""
        response = self._http.get(f"{self.pds}/xrpc/{nsid}", params=parameters, headers=headers)
        _checked(nsid, response)
        return response

    def procedure(
        self,
        nsid: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer to an XRPC procedure, None if it has none; `XrpcError` if the PDS refuses."""
        payload: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        response = self._http.post(f"{self.pds}/xrpc/{nsid}", headers=headers, **payload)
        _checked(nsid, response)
        return response.json() if response.content else None

    @property
    def _as_admin(self) -> dict[str, str]:
        credentials = base64.b64encode(f"admin:{self.admin_password}".encode()).decode()
        return {"authorization": f"Basic {credentials}"}

    def _set_takedown(self, did: str, takedown: Mapping[str, Any]) -> None:
        subject = {"$type": "com.atproto.admin.defs#repoRef", "did": did}
        self.procedure(
            "com.atproto.admin.updateSubjectStatus",
            {"subject": subject, "takedown": takedown},
            headers=self._as_admin,
        )

    def _command(self, name: str, deadline: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = _answer(self._process, self._stderr, deadline)
        if answer != {"done": name}:
            raise NetworkError(f"the test network could not {name} the PDS: {answer['error']}")


@dataclass
class Account:
    """An account on the test PDS, logged in. Answers are those of the XRPC methods.

    A session that has expired is renewed with the password.
    """

    network: Network
    did: str
    handle: str
    password: str
    access_jwt: str

    def create_record(self, collection: str, record: Mapping[str, Any], rkey: str | None = None) -> dict[str, Any]:
        """Write a new record; the answer has its `uri` and `cid`. Without *rkey* the PDS takes a TID."""
        body = {"repo": self.did, "collection": collection, "record": _typed(collection, record)}
        if rkey is not None:
            body["rkey"] = rkey
        written: dict[str, Any] = self._procedure("com.atproto.repo.createRecord", body)
        return written

    def put_record(self, collection: str, rkey: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record, new or not; the answer has its `uri` and `cid`. No change makes no commit."""
        body = {"repo": self.did, "collection": collection, "rkey": rkey, "record": _typed(collection, record)}
        written: dict[str, Any] = self._procedure("com.atproto.repo.putRecord", body)
        return written

    def delete_record(self, collection: str, rkey: str) -> None:
        """Delete the record. If there is none, nothing happens."""
        self._procedure("com.atproto.repo.deleteRecord", {"repo": self.did, "collection": collection, "rkey": rkey})

    def apply_writes(self, writes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One commit of up to 200 writes, made by `creation`, `update` and `deletion`; a result for each.

        The PDS takes at most 150 KiB of JSON in one request.
        """
        body = {"repo": self.did, "writes": list(writes)}
        results: list[dict[str, Any]] = self._procedure("com.atproto.repo.applyWrites", body)["results"]
        return results

    def upload_blob(self, data: bytes, mime: str = "application/octet-stream") -> dict[str, Any]:
        """Upload a blob; the answer goes into a record. Until then the PDS does not serve it."""
        headers = {"content-type": mime}
        blob: dict[str, Any] = self._procedure("com.atproto.repo.uploadBlob", data, headers)["blob"]
        return blob

    def list_records(self, collection: str) -> list[dict[str, Any]]:
        """All records of *collection*, as `{uri, cid, value}`, highest key first."""
        records: list[dict[str, Any]] = []
        position: dict[str, Any] = {}
        while True:
            page = self.network.query(
                "com.atproto.repo.listRecords",
                repo=self.did,
                collection=collection,
                limit=100,
                **position,
            )
            records += page["records"]
            if "cursor" not in page:
                return records
            position = {"cursor": page["cursor"]}

    def deactivate(self) -> None:
        """Hide the account, as its owner."""
        self._procedure("com.atproto.server.deactivateAccount", {})

    def activate(self) -> None:
        """Undo `deactivate`."""
        self._procedure("com.atproto.server.activateAccount")

    def delete_account(self) -> None:
        """Delete the account for good: `Network.delete_account`."""
        self.network.delete_account(self.did)

    def update_handle(self, new: str) -> None:
        """Take the handle *new*, in full: `ada-lovelace.test`."""
        self._procedure("com.atproto.identity.updateHandle", {"handle": new})
        self.handle = new

    def service_token(self, audience: str, method: str) -> str:
        """A service-auth token with which the account may call *method* at the service *audience*, a DID."""
        query = {"aud": audience, "lxm": method}
        token: str = self._renewing(
            lambda headers: self.network.query("com.atproto.server.getServiceAuth", headers=headers, **query)
        )["token"]
        return token

    def _procedure(
        self,
        nsid: str,
        body: Mapping[str, Any] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return self._renewing(
            lambda session: self.network.procedure(nsid, body, headers={**session, **(headers or {})})
        )

    def _renewing(self, call: Callable[[dict[str, str]], Any]) -> Any:
        """Make *call* with the session's header, once more with a new session if it has expired."""
        try:
            return call({"authorization": f"Bearer {self.access_jwt}"})
        except XrpcError as error:
            if error.error != "ExpiredToken":
                raise
        login = {"identifier": self.did, "password": self.password}
        self.access_jwt = self.network.procedure("com.atproto.server.createSession", login)["accessJwt"]
        return call({"authorization": f"Bearer {self.access_jwt}"})


def creation(collection: str, record: Mapping[str, Any], rkey: str | None = None) -> dict[str, Any]:
    """A write for `Account.apply_writes`. Without *rkey* the PDS takes a TID."""
    return {**_write("create", collection, rkey), "value": _typed(collection, record)}


def update(collection: str, rkey: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A write for `Account.apply_writes`; the record must exist."""
    return {**_write("update", collection, rkey), "value": _typed(collection, record)}


def deletion(collection: str, rkey: str) -> dict[str, Any]:
    """A write for `Account.apply_writes`; the record must exist."""
    return _write("delete", collection, rkey)


def install() -> None:
    """Install the servers unless they are; `NetworkError`, with the reason, if that fails."""
    done = subprocess.run([HERE / "install"], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(done.stderr)


def has_node() -> bool:
    """Whether Node.js and npm are on the PATH."""
    return shutil.which("node") is not None and shutil.which("npm") is not None


@contextlib.contextmanager
def start_network(
    *,
    data: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    pds_port: int | None = None,
    plc_port: int | None = None,
) -> Iterator[Network]:
    """Run a PDS and a PLC directory, installed if need be, until the block ends.

    *data* is a folder that keeps everything for a later run; without it nothing stays. *settings* are
    the PDS's own, by their names in `@atproto/pds/dist/config/env.d.ts`:

        with start_network(settings={"blobUploadLimit": 1_000_000, "rateLimitsEnabled": True}) as network:
            ...

    Raises `NetworkError`, with what the servers wrote to stderr, if they do not start.
    """
    install()
    options = {"--data": data and data.resolve(), "--pds-port": pds_port, "--plc-port": plc_port}
    command = ["node", "network.mjs"]
    command += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    command += [f"--set={name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(
            command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            ready = _answer(process, stderr, START_DEADLINE)
            network = Network(ready["pds"], ready["plc"], ready["pdsDid"], ready["adminPassword"], process, stderr)
            try:
                yield network
            finally:
                network._http.close()
        finally:
            _stop(process)


def _http_client() -> httpx.Client:
    # Some answers take the PDS long, such as the repository of a benchmark.
    return httpx.Client(timeout=60)


def _checked(nsid: str, response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {"error": response.reason_phrase, "message": response.text}
    raise XrpcError(nsid, response.status_code, problem.get("error", ""), problem.get("message", ""))


def _typed(collection: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"$type": collection, **record}


def _write(action: str, collection: str, rkey: str | None) -> dict[str, Any]:
    write = {"$type": f"com.atproto.repo.applyWrites#{action}", "collection": collection}
    return write if rkey is None else {**write, "rkey": rkey}


def _answer(process: subprocess.Popen[str], stderr: IO[str], deadline: float) -> dict[str, Any]:
    """The next line that network.mjs writes."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], deadline)
    line = process.stdout.readline() if readable else ""
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    stderr.seek(0)
    problem = "ended" if readable else f"said nothing for {deadline:.0f} s"
    raise NetworkError(f"tests/network/network.mjs {problem}; it wrote:\n{stderr.read()}")


def _stop(process: subprocess.Popen[str]) -> None:
    """Close stdin, which asks network.mjs to end; that works as well when Python is killed."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    """Run a network in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a PDS and a PLC directory with two accounts, until Ctrl-C.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep everything here for the next run")
    parser.add_argument("--pds-port", type=int, help="default: a free one")
    parser.add_argument("--plc-port", type=int, help="default: a free one")
    parser.add_argument("--publish", action="store_true", help="publish dataset cards from the two accounts, once")
    options = parser.parse_args()
    for name in ("pds", "plc"):
        port = getattr(options, f"{name}_port")
        if port and _is_taken(port):
            parser.error(f"port {port} is taken: stop what uses it, or choose another with --{name}-port")
    with (
        contextlib.suppress(KeyboardInterrupt),
        start_network(data=options.data, pds_port=options.pds_port, plc_port=options.plc_port) as network,
    ):
        accounts = _kept_accounts(network, options.data)
        print(f"PDS      {network.pds}")
        print(f"PLC      {network.plc}")
        for account in accounts:
            print(f"account  {account.handle}  password {account.password}")
        if options.publish:
            # As a script, this file stands outside of the package that the corpus imports it from.
            sys.path.insert(0, str(HERE.parent))
            from network.corpus import DATASET, own_cards, publish

            if not any(account.list_records(DATASET) for account in accounts):
                publish(own_cards(), accounts)
            print(f"datasets {sum(len(account.list_records(DATASET)) for account in accounts)}")
        # An index of this network and of no other.
        index = f"{options.data}/index" if options.data else '"$(mktemp -d)"'
        user = accounts[0]
        print(
            f"""
To index and search it, in another terminal:
  deploy/up --relay {network.relay} --plc {network.plc} --data {index}

To publish in it and to load from it, as {user.handle}:
  export ATDATA_PLC_URL={network.plc} ATDATA_ALLOW_PRIVATE_HOSTS=1
and in Python:
  client = AtmosphereClient("{network.pds}")
  client.login("{user.handle}", "{user.password}")

Ctrl-C stops it.""",
            flush=True,
        )
        threading.Event().wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port whose connections are only just closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _kept_accounts(network: Network, data: Path | None) -> list[Account]:
    """Two accounts: those of the run before, where *data* keeps them, else new ones."""
    file = data / "accounts.json" if data else None
    if file is not None and file.exists():
        logins = [{"identifier": did, "password": password} for did, password in json.loads(file.read_text())]
        sessions = [network.procedure("com.atproto.server.createSession", login) for login in logins]
        return [
            Account(network, session["did"], session["handle"], login["password"], session["accessJwt"])
            for login, session in zip(logins, sessions, strict=True)
        ]
    accounts = [network.create_account(name) for name in ("ada", "grace")]
    if file is not None:
        file.touch(0o600)
        file.write_text(json.dumps([[account.did, account.password] for account in accounts]))
    return accounts


if __name__ == "__main__":
    main()
