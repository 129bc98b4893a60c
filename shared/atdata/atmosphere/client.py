"""Own the session with an account's server (PDS), and records and blobs as XRPC reads and writes them.

Writing goes through the AT Protocol SDK, which keeps the session; it is loaded when somebody logs in, for that takes
seconds. Reading needs neither: a record comes from the server of its own repository, found through the DID document.
Specification: https://atproto.com/specs/xrpc
"""

from __future__ import annotations

import json
import random
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from atdata import network, nsid, syntax
from atdata.atmosphere import records
from atdata.atmosphere.records import Reading
from atdata.atmosphere.uri import AtUri
from atdata.errors import (
    ArgumentError,
    LoginError,
    MissingExtraError,
    NetworkError,
    NotFoundError,
    RateLimitError,
    RecordError,
    UriError,
    how_to_install,
    redacted,
)
from atdata.network import DidNotFoundError, DidResolver, Identity, StatusError
from atdata.sources import BlobSource

if TYPE_CHECKING:
    # The SDK has type hints, and no marker that says so.
    from atproto_client import Client  # type: ignore[import-untyped]
    from atproto_client.exceptions import RateLimitExceededError  # type: ignore[import-untyped]

__all__ = ["AtmosphereClient", "StoredRecord", "check_blob"]

# Accounts under .bsky.social log in here, whichever of its servers they are on.
_ENTRYWAY: Final = "https://bsky.social"

_ATTEMPTS: Final = 5
# Servers count requests in windows of five minutes and of a day; nobody waits for the latter.
_LONGEST_WAIT: Final = 300.0
_RETRIED: Final = frozenset({500, 502, 503, 504})
_PIECE: Final = 1 << 18

_PAGE: Final = 100
# A record has at most 1 MB, most have a few kB; more than this is an attack.
_MAX_ANSWER: Final = 32 << 20
_ANSWER_SECONDS: Final = 120.0
_MAX_PAGES: Final = 10_000
# Of all pages together: some hundred thousand records.
_MAX_LISTING: Final = 256 << 20


class StoredRecord(dict[str, Any]):
    """A record as its repository has it: its members are the items, its address is beside them.

    >>> schema = index.get_schema("at://did:plc:abc/ac.foundation.dataset.sampleSchema/xyz")
    >>> schema["name"], schema.uri, schema.problems
    ('ImageSample', 'at://did:plc:abc/ac.foundation.dataset.sampleSchema/xyz', ())

    A record that is odd is kept as it is, and `problems` says what is wrong with it.
    """

    def __init__(self, record: Mapping[str, Any], uri: str, cid: str) -> None:
        super().__init__(record)
        self.uri = uri
        self.cid = cid

    @cached_property
    def reading(self) -> Reading:
        """What could be read of the record."""
        return records.read(AtUri.parse(self.uri).collection, self)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the record, if anything."""
        return self.reading.problems

    def __repr__(self) -> str:
        return f"StoredRecord({self.uri!r}, {super().__repr__()})"

    def _repr_html_(self) -> str:
        from atdata import html

        value = self.reading.value
        about = {"uri": self.uri, "problems": "; ".join(self.problems) or None}
        if isinstance(value, records.SchemaRecord):
            return html.schema(value) + html.facts("", about)
        return html.facts(str(self.get("name", "")), {**self, **about})


class _Account(NamedTuple):
    """Who is logged in, and where."""

    did: str
    handle: str
    pds: str


class AtmosphereClient:
    """An account on the AT Protocol network, or, before `login`, a reader of everybody's public records.

    >>> client = AtmosphereClient()
    >>> client.login("alice.bsky.social", "app-password")
    >>> client.did
    'did:plc:…'

    *base_url* is the account's server (PDS); without it, the server is found by the handle. *plc_url* is the directory
    of did:plc, else `ATDATA_PLC_URL`, else the public one. Raises UriError, a ValueError, when *base_url* is no URL.
    """

    def __init__(self, base_url: str | None = None, plc_url: str | None = None) -> None:
        if base_url is not None and not re.match(r"https?://[^/]", base_url):
            raise UriError(f"base_url {base_url[:200]!r} is no address of a server; write https://pds.example.com")
        self._base_url = base_url.rstrip("/").removesuffix("/xrpc") if base_url else None
        self.plc_url = plc_url
        self._resolver = DidResolver(plc_url)
        self._sdk: Client | None = None
        self._account: _Account | None = None

    # --- Sessions

    def login(self, handle: str, app_password: str) -> None:
        """Log in with an app password, which one makes in the settings of one's account; the main one works, too.

        >>> client.login("alice.example.com", "xxxx-xxxx-xxxx-xxxx")

        Raises LoginError when the server does not let us in, NotFoundError for a handle that leads to no account, and
        NetworkError when the server does not answer.
        """
        if not isinstance(handle, str) or not isinstance(app_password, str):
            missing = "the handle" if not isinstance(handle, str) else "the app password"
            raise LoginError(f"{missing} is no text; is the variable set that it comes from?")
        handle = handle.strip().removeprefix("@")
        if not handle or not app_password:
            raise LoginError("give a handle and an app password; a server asks for both")
        pds, is_trusted = (self._base_url, True) if self._base_url else self._find_pds(handle)
        sdk = self._connect(pds, is_trusted)
        _retrying(
            f"{pds}: login of {handle}",
            lambda: sdk.login(handle, app_password, fetch_bsky_profile=False),
            attempts=1,  # somebody is waiting, and servers count logins
        )
        self._sdk = sdk

    def export_session(self) -> str:
        """The session as text, a secret, for `login_with_session`; with the newest tokens, so call it last.

        >>> Path("session").write_text(client.export_session())

        Raises LoginError before login.
        """
        self._need_account()
        assert self._sdk is not None
        return str(self._sdk.export_session_string())

    def login_with_session(self, session: str) -> None:
        """Go on with an exported session, without asking anyone yet; tokens that expire are renewed.

        >>> AtmosphereClient().login_with_session(Path("session").read_text())

        Raises LoginError for a text that is no session, and for a session that has expired.
        """
        sdk = self._connect(_ENTRYWAY)
        problem = "this is no session as export_session() gives it; log in with an app password"
        try:
            from atproto_client import Session

            given = Session.decode(session.strip())
            # The SDK looks at these when a request is made: better now.
            access, refresh = given.access_jwt_payload.exp, given.refresh_jwt_payload.exp
        except Exception as e:  # noqa: BLE001 — the SDK takes the text apart, and has no error of its own for it
            raise LoginError(f"{problem} ({type(e).__name__})") from None
        is_server = re.match(r"https?://[^/]", given.pds_endpoint or "") is not None
        if access is None or refresh is None or not is_server or not syntax.is_did(given.did):
            raise LoginError(problem)
        if refresh < time.time():
            raise LoginError(f"the session of {given.handle} has expired; log in with an app password")
        sdk.login(session_string=given.export(), fetch_bsky_profile=False)
        self._sdk = sdk

    @property
    def is_authenticated(self) -> bool:
        """Whether somebody is logged in."""
        return self._account is not None

    @property
    def did(self) -> str:
        """The DID of the account. Raises LoginError before login."""
        return self._need_account().did

    @property
    def handle(self) -> str:
        """The handle of the account. Raises LoginError before login."""
        return self._need_account().handle

    def _need_account(self) -> _Account:
        if self._account is None:
            raise LoginError("nobody is logged in; call login(handle, app_password) or login_with_session(session)")
        return self._account

    def _connect(self, pds: str, is_trusted: bool = True) -> Client:
        try:
            import httpx
            from atproto_client import Client
            from atproto_client.request import Request  # type: ignore[import-untyped]
        except ImportError as e:
            raise MissingExtraError(
                f"logging in needs the AT Protocol SDK ({e.name}): {how_to_install('atmosphere')}"
            ) from None

        # The server of a handle is what its DNS and its DID document say: strangers' words until somebody is let in.
        transport = None if is_trusted else network.guarded_transport()
        request = Request(timeout=httpx.Timeout(60, connect=10), transport=transport)
        sdk = Client(pds, request=request)
        # Weakly, lest the connections, which are closed when the client goes, keep it.
        weak = weakref.ref(self)
        weakref.finalize(self, request.close)

        def keep(_: Any, session: Any) -> None:
            pds = session.pds_endpoint.rstrip("/").removesuffix("/xrpc")
            if (client := weak()) is not None:
                client._account = _Account(session.did, session.handle, pds)

        sdk.on_session_change(keep)
        return sdk

    def __repr__(self) -> str:
        who = self._account.handle if self._account else "not logged in"
        return f"AtmosphereClient({redacted(self._base_url or 'any server')}, {who})"

    # --- Accounts

    def resolve_repo(self, repo: str | None = None) -> str:
        """The DID of *repo*, a handle or a DID; of our own account when it is None.

        >>> client.resolve_repo("alice.example.com")
        'did:plc:…'

        Raises NotFoundError for a handle without an account, UriError for what is neither handle nor DID, and
        LoginError for None before login. Specification: https://atproto.com/specs/handle#handle-resolution
        """
        if repo is None:
            return self.did
        if syntax.is_did(repo):
            return repo
        handle = repo.removeprefix("@").lower()
        if not syntax.is_handle(handle):
            raise UriError(f"{repo[:200]!r} is neither a handle such as alice.example.com nor a DID")
        if self._account is not None and handle == self._account.handle.lower():
            return self._account.did
        did = self._ask_own_server(handle)
        unreached = None
        if did is None:
            try:
                did = _by_dns(handle)
            except NetworkError as e:
                unreached = e
        did = did or self._by_https(handle)
        if did is None and unreached is not None:
            raise unreached
        if did is None:
            raise NotFoundError(
                f"{handle}: no account has this handle: there is no DNS record _atproto.{handle}, and nothing at "
                f"https://{handle}/.well-known/atproto-did; check its spelling"
            )
        if self._identity(did).handle != handle:
            raise NotFoundError(f"{handle}: leads to {did}, which claims another handle; use the DID if you trust it")
        return did

    def pds_of(self, repo: str | None = None) -> str:
        """The server of *repo*, as `https://host`. Raises as `resolve_repo` does, and NetworkError without one."""
        return self.server_of(self.resolve_repo(repo))[0]

    def server_of(self, did: str) -> tuple[str, bool]:
        """The server of *did*, and whether it may be on a private network; else as `pds_of`."""
        if self._account is not None and did == self._account.did:
            return self._account.pds, True
        pds = self._identity(did).pds
        if pds is None:
            raise NetworkError(f"{did}: its DID document names no server (PDS) that we ask")
        return pds, self._resolver.trusts_private_hosts

    def _identity(self, did: str) -> Identity:
        try:
            return self._resolver.resolve(did)
        except DidNotFoundError as e:
            raise NotFoundError(str(e)) from None

    @property
    def trusts_private_hosts(self) -> bool:
        """Whether strangers may name hosts of private networks: the operator says so, or runs the directory."""
        return self._resolver.trusts_private_hosts

    def _find_pds(self, name: str) -> tuple[str, bool]:
        if "@" in name or name.lower().endswith(".bsky.social"):
            return _ENTRYWAY, True
        return self.server_of(self.resolve_repo(name))

    def _ask_own_server(self, handle: str) -> str | None:
        # First, for handles of test networks and new accounts are not in the DNS.
        pds = self._account.pds if self._account is not None else self._base_url
        if pds is None:
            return None
        try:
            answer = network.get_json(
                f"{pds}/xrpc/com.atproto.identity.resolveHandle", trusted=True, params={"handle": handle}
            )
        except StatusError as e:
            if e.status in _RETRIED or e.status == 429:
                raise
            return None
        did = answer.get("did") if isinstance(answer, dict) else None
        return did if isinstance(did, str) and syntax.is_did(did) else None

    def _by_https(self, handle: str) -> str | None:
        url = f"https://{handle}/.well-known/atproto-did"
        try:
            trusted = self._resolver.trusts_private_hosts
            text = network.get_bytes(url, trusted=trusted, limit=4096, follow_redirects=True).decode().strip()
        except (NetworkError, UnicodeDecodeError):
            return None
        return text if syntax.is_did(text) else None

    # --- Reading

    def get_record(self, uri: str | AtUri) -> StoredRecord:
        """The record at *uri*.

        >>> client.get_record("at://alice.example.com/ac.foundation.dataset.record/3jzfcijpj2z2a")["name"]
        'Digits'

        Raises NotFoundError when there is none, UriError for what is no AT URI, and NetworkError.
        """
        parsed = uri if isinstance(uri, AtUri) else AtUri.parse(uri)
        did = self.resolve_repo(parsed.authority)
        try:
            answer = self._query(
                "com.atproto.repo.getRecord", did, repo=did, collection=parsed.collection, rkey=parsed.rkey
            )
        except StatusError as e:
            # "Could not locate record" without a name is what the reference server says for repositories it lacks.
            if e.error == "RecordNotFound" or e.status == 404 or "Could not locate record" in (e.message or ""):
                raise NotFoundError(f"{parsed}: there is no such record; check it, or list what is there") from None
            raise
        value = answer.get("value") if isinstance(answer, dict) else None
        if not isinstance(value, dict):
            raise NetworkError(f"{parsed}: the server answers without a record")
        return StoredRecord(value, f"at://{did}/{parsed.collection}/{parsed.rkey}", str(answer.get("cid") or ""))

    def list_records(self, collection: str, repo: str | None = None) -> list[StoredRecord]:
        """All records of *collection* in *repo*, a handle or a DID, else our own; highest record key first.

        >>> for label in client.list_records("ac.foundation.dataset.label"): ...

        Pages through to the end. Raises NotFoundError for an account that is not there, and NetworkError, also for a
        server that sends more than 256 MiB.
        """
        return list(self.iter_records(collection, repo))

    def iter_records(self, collection: str, repo: str | None = None) -> Iterator[StoredRecord]:
        """The same, page by page as they are asked for."""
        if not syntax.is_nsid(collection):
            raise UriError(f"{collection[:200]!r} is no collection such as {nsid.DATASET}")
        did = self.resolve_repo(repo)
        where = f"at://{did}/{collection}"
        cursors: set[str] = set()
        position: dict[str, str] = {}
        size = 0
        while True:
            try:
                page, length = self._ask(
                    "com.atproto.repo.listRecords", did, repo=did, collection=collection, limit=str(_PAGE), **position
                )
            except StatusError as e:
                if e.error == "RepoNotFound" or "Could not find repo" in (e.message or ""):
                    raise NotFoundError(f"{repo or did}: its server has no such account: {e.message}") from None
                raise
            items = page.get("records") if isinstance(page, dict) else None
            if not isinstance(items, list):
                raise NetworkError(f"{where}: the server answers without records")
            size += length
            if len(items) > _PAGE or size > _MAX_LISTING or len(cursors) == _MAX_PAGES:
                raise NetworkError(f"{where}: the server goes on and on; {len(items)} records in its last answer")
            for item in items:
                if (record := _stored(item, did, collection)) is not None:
                    yield record
            cursor = page.get("cursor")
            # Some servers give a cursor with the last page, too, or an empty one; none may lead in a circle.
            if not items or not isinstance(cursor, str) or not cursor or cursor in cursors:
                return
            cursors.add(cursor)
            position = {"cursor": cursor}

    def get_blob(self, did: str, cid: str) -> bytes:
        """The bytes of a blob in the repository of *did*, checked against *cid*.

        >>> client.get_blob("did:plc:z72i7hdynmk6r22z27h6tvur", "bafkrei…")

        Holds all of it in memory; `BlobSource` streams. Raises ShardError when it is not there, or not what *cid* says.
        """
        source = self.blob_source([{"did": self.resolve_repo(did), "cid": cid}])
        stream = source.open_shard(source.list_shards()[0])
        try:
            return stream.read()
        finally:
            stream.close()

    def blob_source(self, refs: list[dict[str, str]]) -> BlobSource:
        """A source of the blobs *refs*, each `{"did": …, "cid": …}`; our own are read from our own server."""
        is_own = self._account is not None and all(ref.get("did") == self._account.did for ref in refs)
        return BlobSource(refs, self.pds_of() if is_own else None, plc_url=self.plc_url)

    def _query(self, method: str, did: str, **parameters: str) -> Any:
        """What the server of *did* answers to a query."""
        return self._ask(method, did, **parameters)[0]

    def _ask(self, method: str, did: str, **parameters: str) -> tuple[Any, int]:
        """The same, and how many bytes it is."""
        pds, is_trusted = self.server_of(did)
        url = f"{pds}/xrpc/{method}"
        try:
            body = network.get_bytes(
                url, trusted=is_trusted, params=parameters, limit=_MAX_ANSWER, seconds=_ANSWER_SECONDS
            )
        except StatusError as e:
            if e.status == 429:
                raise RateLimitError(f"{pds}: too many requests; try again in some minutes") from e
            raise
        return network.parse_json(url, body), len(body)

    # --- Writing

    def create_record(self, collection: str, record: Mapping[str, Any], rkey: str | None = None) -> str:
        """Write a new record to our repository; its AT URI. Without *rkey* it gets a TID.

        >>> client.create_record("ac.foundation.dataset.label", {"name": "digits", …})
        'at://did:plc:…/ac.foundation.dataset.label/3jzfcijpj2z2a'

        Raises RecordError, a ValueError, for what is no record, or when there is another one at *rkey*; LoginError,
        RateLimitError and NetworkError.
        """
        # Chosen here, so that a request whose answer got lost can be repeated without making a second record.
        body = self._body(collection, rkey or syntax.new_tid(), record)
        uri = AtUri(self.did, collection, body["rkey"])

        def is_there() -> Mapping[str, Any] | None:
            try:
                there = self.get_record(uri)
            except NetworkError:
                return None
            if there != body["record"]:
                raise RecordError(f"{uri}: there is another record at this key; replace it with put_record")
            return {"uri": there.uri}

        return str(self._procedure("com.atproto.repo.createRecord", body, is_there).get("uri", uri))

    def put_record(self, collection: str, rkey: str, record: Mapping[str, Any]) -> str:
        """Write a record to our repository at *rkey*, in place of the one there if there is one; its AT URI.

        >>> client.put_record("ac.foundation.dataset.label", "3jzfcijpj2z2a", {"name": "digits", …})

        Raises as `create_record` does.
        """
        body = self._body(collection, rkey, record)
        self._procedure("com.atproto.repo.putRecord", body)
        return str(AtUri(self.did, collection, rkey))

    def delete_record(self, uri: str | AtUri) -> None:
        """Delete a record of ours; when there is none at *uri*, nothing happens.

        >>> client.delete_record("at://did:plc:…/ac.foundation.dataset.label/3jzfcijpj2z2a")

        Raises LoginError for records of others.
        """
        parsed = uri if isinstance(uri, AtUri) else AtUri.parse(uri)
        if self.resolve_repo(parsed.authority) != self.did:
            raise LoginError(f"{parsed}: is not in the repository of {self.handle}; log in as its owner")
        body = {"repo": self.did, "collection": parsed.collection, "rkey": parsed.rkey}
        self._procedure("com.atproto.repo.deleteRecord", body)

    def upload_blob(
        self,
        data: bytes | Path,
        mime_type: str = "application/octet-stream",
        *,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, Any]:
        """Upload bytes, or a file, which is streamed; the blob as a record refers to it.

        >>> client.upload_blob(Path("0.tar"), "application/x-tar")
        {'$type': 'blob', 'ref': {'$link': 'bafkrei…'}, 'mimeType': 'application/x-tar', 'size': 10240}

        Servers forget blobs to which no record refers, some within the hour. *progress* is called with the number of
        bytes that were sent, a negative one when they have to be sent again. Raises StatusError with status 413 when it
        is too large for the server, LoginError, RateLimitError and NetworkError.
        """
        check_blob("data", data)
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        sent = 0

        def count(number: int) -> None:
            nonlocal sent
            sent += number
            if progress is not None and number:
                progress(number)

        def pieces() -> Iterator[bytes]:
            count(-sent)
            for piece in _pieces(data):
                yield piece
                count(len(piece))

        headers = {"Content-Type": mime_type, "Content-Length": str(size)}
        try:
            answer = self._write("com.atproto.repo.uploadBlob", pieces, headers)
        except NetworkError:
            count(-sent)
            raise
        blob = answer.get("blob")
        if not isinstance(blob, dict) or not isinstance(blob.get("ref"), dict):
            raise NetworkError(f"{self.pds_of()}: answers to an upload without a blob")
        return blob

    def _body(self, collection: str, rkey: str, record: Mapping[str, Any]) -> dict[str, Any]:
        if not syntax.is_nsid(collection):
            raise UriError(f"{collection[:200]!r} is no collection such as {nsid.DATASET}")
        if not syntax.is_record_key(rkey):
            raise UriError(f"{rkey[:200]!r} is no record key: 1 to 512 of A-Z a-z 0-9 . - _ : ~")
        if record.get("$type", collection) != collection:
            raise RecordError(f"a record of type {str(record['$type'])[:200]} does not belong into {collection}")
        body = {
            "repo": self.did,
            "collection": collection,
            "rkey": rkey,
            "record": {"$type": collection, **record},
        }
        try:
            # https://atproto.com/specs/data-model has no floats.
            as_sent: dict[str, Any] = json.loads(json.dumps(body, allow_nan=False), parse_float=_refuse_float)
        except (TypeError, ValueError, RecursionError) as e:
            raise RecordError(
                f"a record of {collection} is JSON, with bytes as {{'$bytes': base64}} and without floats: {e}"
            ) from None
        return as_sent

    def _procedure(
        self, method: str, body: Mapping[str, Any], is_done: Callable[[], Mapping[str, Any] | None] | None = None
    ) -> Mapping[str, Any]:
        data = json.dumps(body).encode()
        try:
            return self._write(method, lambda: data, {"Content-Type": "application/json"}, is_done)
        except StatusError as e:
            if e.status != 413:
                raise
            raise RecordError(
                f"{self.pds_of()} refuses a record of {len(data):,} bytes as too large; "
                "shorten its texts, or give its dataset fewer and larger shards"
            ) from e

    def _write(
        self,
        method: str,
        content: Callable[[], bytes | Iterator[bytes]],
        headers: dict[str, str],
        is_done: Callable[[], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        pds = self._need_account().pds
        sdk = self._sdk
        assert sdk is not None

        def call() -> Any:
            return sdk.invoke_procedure(method, content=content(), headers=headers).content

        answer = _retrying(f"{pds}/xrpc/{method}", lambda: _renewing(sdk, call), is_done=is_done)
        # deleteRecord may answer with nothing.
        return answer if isinstance(answer, Mapping) else {}


def _renewing(sdk: Client, call: Callable[[], Any]) -> Any:
    """What *call* returns, with new tokens if the server says that the ones we have are too old."""
    from atproto_client.exceptions import RequestErrorBase

    try:
        return call()
    except RequestErrorBase as e:
        # The SDK renews tokens by the clock of this machine, which may be slow; servers may end them early as well.
        if _error_name(e) != "ExpiredToken":
            raise
    sdk._refresh_and_set_session()
    return call()


def _refuse_float(text: str) -> None:
    raise ValueError(f"{text} is a float; write it as text")


def _stored(item: Any, did: str, collection: str) -> StoredRecord | None:
    """One item of a page; None for what has no address in the repository that was asked for."""
    uri = item.get("uri") if isinstance(item, dict) else None
    try:
        parsed = AtUri.parse(uri) if isinstance(uri, str) else None
    except UriError:
        parsed = None
    if parsed is None or parsed.collection != collection or parsed.authority != did:
        return None
    value = item.get("value")
    return StoredRecord(value if isinstance(value, dict) else {}, str(parsed), str(item.get("cid") or ""))


def check_blob(name: str, data: object) -> None:
    """Raise ArgumentError when *data* is neither bytes nor the path of a file."""
    if not isinstance(data, bytes | Path):
        advice = "pathlib.Path(…) for a file" if isinstance(data, str) else "bytes, as buffer.getvalue() gives them"
        raise ArgumentError(f"{name} is bytes or a pathlib.Path, not {type(data).__name__}; give {advice}")


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, Path):
        with data.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    else:
        for at in range(0, len(data), _PIECE):
            yield data[at : at + _PIECE]


def _by_dns(handle: str) -> str | None:
    """The DID in the DNS; None when there is none, NetworkError when the DNS does not answer."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:  # comes with the SDK; most handles can be found by HTTPS as well
        return None
    try:
        answer = dns.resolver.resolve(f"_atproto.{handle}", "TXT", lifetime=5)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN):
        return None  # that is what the DNS says, while other errors are that it says nothing
    except (dns.exception.DNSException, OSError) as e:
        problem = str(e)[:200] or type(e).__name__
        raise NetworkError(
            f"{handle}: could not be looked up, neither in the DNS ({problem}) nor at https://{handle}/; check the "
            "connection of this machine to the internet"
        ) from None
    texts = [b"".join(record.strings).decode(errors="replace") for record in answer if hasattr(record, "strings")]
    found = {text[4:] for text in texts if text.startswith("did=") and syntax.is_did(text[4:])}
    # Two answers are none: https://atproto.com/specs/handle#dns-txt-method
    return found.pop() if len(found) == 1 else None


# --- What to do when a request fails


class _Failure(NamedTuple):
    error: NetworkError
    is_passing: bool = False
    """Whether it may go well the next time."""
    wait: float | None = None
    """The seconds that the server asks us to wait."""


def _retrying(
    name: str,
    call: Callable[[], Any],
    *,
    attempts: int = _ATTEMPTS,
    is_done: Callable[[], Any] | None = None,
) -> Any:
    """What *call* to the SDK returns, tried again while what goes wrong may pass. Raises errors of ours only.

    *is_done* is asked when the server refuses: maybe an earlier attempt succeeded, and only its answer got lost.
    """
    import httpx
    from atproto_core.exceptions import AtProtocolError  # type: ignore[import-untyped]

    attempt = 0
    while True:
        attempt += 1
        try:
            return call()
        except (AtProtocolError, httpx.HTTPError, httpx.InvalidURL, ValueError) as e:
            failure, cause = _read_failure(name, e), e
        if isinstance(failure.error, StatusError) and is_done is not None and (done := is_done()) is not None:
            return done
        wait = _backoff(attempt) if failure.wait is None else failure.wait
        if not failure.is_passing or attempt == attempts or wait > _LONGEST_WAIT:
            raise failure.error from cause
        _pause(wait)


def _read_failure(name: str, error: Exception) -> _Failure:
    """What an exception of the SDK or of httpx means."""
    import httpx
    from atproto_client import exceptions

    response = getattr(error, "response", None)
    if isinstance(error, exceptions.LoginRequiredError):
        return _Failure(LoginError(f"{name}: the session cannot be used; log in again"))
    if not isinstance(error, exceptions.RequestErrorBase) or response is None:
        # The SDK wraps some of httpx's errors, and lets others through.
        cause = error if isinstance(error, httpx.HTTPError) else error.__cause__ or error
        problem = (str(cause) or type(cause).__name__)[:300]
        if isinstance(cause, httpx.TransportError) and not isinstance(cause, httpx.UnsupportedProtocol):
            return _Failure(NetworkError(f"{name}: {problem}; check the address, and that the server is up"), True)
        return _Failure(NetworkError(f"{name}: is not answered as the protocol says: {problem}"))
    code, message = _error_name(error), getattr(response.content, "message", None)
    if code in ("ExpiredToken", "InvalidToken"):
        return _Failure(LoginError(f"{name}: the session has expired; log in again"))
    if code == "AuthFactorTokenRequired":
        return _Failure(LoginError(f"{name}: the account asks for a second factor; use an app password"))
    if response.status_code == 401:
        what = message or code or "not let in"
        return _Failure(LoginError(f"{name}: {what}; check the handle, and use an app password of the account"))
    if isinstance(error, exceptions.RateLimitExceededError):
        wait = _asked_wait(error, time.time())
        return _Failure(RateLimitError(f"{name}: too many requests; try again in {wait:.0f} s"), True, wait)
    status = response.status_code
    return _Failure(StatusError(name, status, code, message), status in _RETRIED)


def _error_name(error: Exception) -> str | None:
    """The error of XRPC that an exception of the SDK is about."""
    from atproto_client.models.common import XrpcError  # type: ignore[import-untyped]

    said = getattr(getattr(error, "response", None), "content", None)
    return str(said.error) if isinstance(said, XrpcError) else None


def _asked_wait(error: RateLimitExceededError, now: float) -> float:
    """The seconds until the server takes requests again: by Retry-After, else by ratelimit-reset, an instant."""
    try:
        if error.retry_after is not None:
            return float(error.retry_after)
        if error.reset_at is not None:
            return max(1.0, float(error.reset_at.timestamp()) - now)
    except (ValueError, OverflowError, OSError):  # an instant that no clock will show
        pass
    # A server that does not say is asked again after a while.
    return 10.0


def _backoff(attempt: int) -> float:
    # Half of it random, so that many writers to one server do not come back together.
    return float(2 ** (attempt - 1)) * random.uniform(0.5, 1)  # noqa: S311 — a pause is no secret


def _pause(seconds: float) -> None:
    time.sleep(seconds)
