"""Parameters that name accounts and records: handles into DIDs, URIs into their parts.

A handle that we do not know is an error where it narrows a search, as it is in other atproto services: an empty answer
would hide a typing mistake. In a list of URIs to get, it is one more that is not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from atdata.atmosphere.uri import AtUri
from atdata.errors import UriError
from atdata_appview.errors import InvalidRequest
from atdata_appview.store import Store

#: What a structure's fingerprint looks like, see `atdata.structure`.
FINGERPRINT: Final = re.compile(r"s1-[0-9a-f]{40}")


async def publishers(store: Store, name: str, identifiers: Sequence[str]) -> list[str]:
    """The DIDs of *identifiers*, which parameter *name* gave. Raises InvalidRequest for a handle we do not know."""
    handles = [identifier for identifier in identifiers if not identifier.startswith("did:")]
    known = await store.dids(handles) if handles else {}
    return [x if x.startswith("did:") else _known(known, name, x) for x in identifiers]


async def publisher(store: Store, params: Mapping[str, Any]) -> str | None:
    """The DID that the parameter ``publisher`` names, if it is given. Raises InvalidRequest like `publishers`."""
    if "publisher" not in params:
        return None
    return (await publishers(store, "publisher", [params["publisher"]]))[0]


async def known_did(store: Store, identifier: str) -> str | None:
    """The DID that *identifier* is, or that has it for its handle; None for a handle we do not know."""
    return identifier if identifier.startswith("did:") else (await store.dids([identifier])).get(identifier.lower())


async def record_uris(store: Store, name: str, uris: Sequence[str]) -> list[str | None]:
    """*uris* with DIDs as authorities; None for one whose handle we do not know.

    Raises InvalidRequest for a URI that names no record.
    """
    parsed = [_parsed(name, uri) for uri in uris]
    handles = {uri.authority for uri in parsed if not uri.authority.startswith("did:")}
    known = await store.dids(handles) if handles else {}
    return [_with_did(uri, known) for uri in parsed]


async def filter_uris(store: Store, name: str, uris: Sequence[str]) -> list[str]:
    """*uris* as records spell them, with DIDs. Raises InvalidRequest for an unknown handle, or what names no record."""
    found = await record_uris(store, name, uris)
    return [uri or _known({}, name, _parsed(name, given).authority) for uri, given in zip(found, uris, strict=True)]


async def filter_uri(store: Store, name: str, params: Mapping[str, Any]) -> str | None:
    """The URI that parameter *name* holds, if it is given. Raises InvalidRequest like `filter_uris`."""
    return (await filter_uris(store, name, [params[name]]))[0] if name in params else None


def _with_did(uri: AtUri, known: Mapping[str, str]) -> str | None:
    if uri.authority.startswith("did:"):
        return str(uri)
    did = known.get(uri.authority.lower())
    return str(AtUri(did, uri.collection, uri.rkey)) if did else None


def _parsed(name: str, uri: str) -> AtUri:
    try:
        return AtUri.parse(uri)
    except UriError as error:
        raise InvalidRequest(f"{name}: {error}") from None


def _known(known: Mapping[str, str], name: str, handle: str) -> str:
    did = known.get(handle.lower())
    if did is None:
        raise InvalidRequest(f"{name}: no publisher with the handle {handle} is known here; check it, or give the DID")
    return did
