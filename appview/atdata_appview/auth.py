"""Who asks: service-auth tokens, which a PDS signs for its accounts when it passes their requests on.

What a token says is judged by `read_token`, which is pure; `Authenticator` finds the keys and remembers what was used.
Nothing here needs an account. Those who have one have a rate limit of their own, not that of their PDS.
Specification: https://atproto.com/specs/xrpc#inter-service-authentication-jwt
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

import orjson

from atdata import syntax
from atdata.errors import NetworkError
from atdata_appview.errors import AuthenticationRequired, Unavailable
from atdata_appview.store import Store
from atdata_backend.identity import IdentityError, Resolver
from atdata_backend.signatures import BadSignature, check_bytes, jwt_algorithm

log = logging.getLogger(__name__)

# The largest that honest ones come near to is 1 kB.
_MAX_TOKEN: Final = 4096
_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")

# Tokens for other purposes: https://www.rfc-editor.org/rfc/rfc9068, https://www.rfc-editor.org/rfc/rfc9449, and what
# the reference implementation calls its own.
_OTHER_TYPES: Final = frozenset({"at+jwt", "refresh+jwt", "dpop+jwt"})

# In seconds. The reference PDS gives out tokens for an hour at most.
_LONGEST: Final = 3600
_SKEW: Final = 60


@dataclass(frozen=True, slots=True)
class Token:
    """A token for us and this method, in its time; whether its issuer signed it is to be seen."""

    issuer: str
    algorithm: str
    expires_at: float
    nonce: str
    signed: bytes
    signature: bytes


def read_token(text: str, *, audiences: Sequence[str], method: str, now: float) -> Token:
    """What *text* says, if it is a token for one of *audiences* and for *method*, and neither too old nor too new.

    Raises AuthenticationRequired. Names of errors are those of the reference implementation, `@atproto/xrpc-server`.
    """
    match = _TOKEN.fullmatch(text) if len(text) <= _MAX_TOKEN else None
    if match is None:
        raise AuthenticationRequired("the token is no JWT", "BadJwt")
    header, claims = _decoded(match[1]), _decoded(match[2])
    algorithm, kind = header.get("alg"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kind, str) or "crit" in header:
        raise AuthenticationRequired("the token's header is not one that is understood here", "BadJwt")
    if kind.lower() in _OTHER_TYPES:
        raise AuthenticationRequired(f"the token is of type {kind}: it is for another purpose", "BadJwtType")
    issuer, audience, expires_at = claims.get("iss"), claims.get("aud"), _moment(claims.get("exp"))
    issued_at, nonce = _moment(claims.get("iat", now)), claims.get("jti", "")
    if not (isinstance(issuer, str) and isinstance(audience, str) and isinstance(nonce, str)):
        raise AuthenticationRequired("the token's iss, aud or jti is no text", "BadJwt")
    if expires_at is None or issued_at is None:
        raise AuthenticationRequired("the token's exp or iat is no time in seconds", "BadJwt")
    if expires_at < now:
        raise AuthenticationRequired("the token has expired", "JwtExpired")
    if issued_at > now + _SKEW or expires_at > now + _LONGEST + _SKEW:
        raise AuthenticationRequired("the token is from the future, or for more than an hour", "BadJwt")
    if audience not in audiences:
        raise AuthenticationRequired(f"the token is not for {audiences[0]}", "BadJwtAudience")
    if claims.get("lxm") != method:
        raise AuthenticationRequired(f"the token's lxm must be {method}", "BadJwtLexiconMethod")
    if not syntax.is_did(issuer):
        raise AuthenticationRequired("the token's iss is not the DID of an account", "BadJwtIss")
    signed = text[: match.end(2)].encode()
    return Token(issuer, algorithm, expires_at, nonce, signed, _bytes(match[3]))


def _decoded(part: str) -> dict[str, Any]:
    try:
        value = orjson.loads(_bytes(part))
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise AuthenticationRequired("the token is no JWT", "BadJwt")
    return value


def _bytes(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise AuthenticationRequired("the token is no JWT", "BadJwt") from None


def _moment(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


# In seconds: a key that is not our indexer's is read again after that; and no key is read sooner than that because a
# signature does not fit, nor after it could not be read.
_KEY_LIFETIME: Final = 600.0
_KEY_PATIENCE: Final = 30.0
# Some 3 MB of keys, and as much of tokens. Of more, the oldest are forgotten.
_MAX_KEYS: Final = 10_000
_MAX_USED: Final = 50_000
# Documents that are read at a time, of each method: hosts that do not answer must not use up all connections, nor those
# that strangers name (did:web) keep anyone from the directory (did:plc).
_MAX_READING: Final = 20
# Seconds that reading a document may take, and waiting for a turn to.
_READING: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Key:
    """The signing key of an account, None if it could not be read. ``read_at`` is None while it is the indexer's."""

    value: str | None
    known_at: float
    read_at: float | None


class Authenticator:
    """Checks tokens in full, and that each is used once.

    Keys are those that the indexer knows, else those of DID documents. One process remembers the tokens that it saw.
    """

    def __init__(self, did: str, store: Store, resolver: Resolver, clock: Callable[[], float] = time.time) -> None:
        self._audiences = (did, f"{did}#atdata_appview")
        self._store = store
        self._resolver = resolver
        self._clock = clock
        self._keys: dict[str, _Key] = {}
        self._reading = {method: asyncio.Semaphore(_MAX_READING) for method in ("plc", "web")}
        self._used: dict[bytes, float] = {}

    async def issuer(self, text: str, method: str) -> str:
        """The DID of the account that the token *text* is of, for a call of *method*.

        Raises AuthenticationRequired for a token that is not valid, and what the database raises when it is gone.
        """
        token = read_token(text, audiences=self._audiences, method=method, now=self._clock())
        key = await self._key(token.issuer)
        if not _is_signed(token, key):
            fresh = await self._fresh_key(token.issuer)
            if fresh == key or not _is_signed(token, fresh):
                if fresh is None:
                    raise AuthenticationRequired("the key of the token's issuer cannot be read from its DID document")
                raise AuthenticationRequired("the token's signature is not by its issuer", "BadJwtSignature")
        self._use(token)
        return token.issuer

    def _use(self, token: Token) -> None:
        """Note that *token* was used. Raises AuthenticationRequired when it was before."""
        # There are servers that leave the nonce out. Then the same words are the same token.
        which = token.nonce.encode("utf-8", "replace") if token.nonce else token.signed
        name = blake2b(which, digest_size=16, key=blake2b(token.issuer.encode(), digest_size=32).digest()).digest()
        now = self._clock()
        if self._used.get(name, 0.0) >= now:
            raise AuthenticationRequired("the token was used before; get another for each request", "BadJwt")
        self._used.pop(name, None)
        self._used[name] = token.expires_at
        # Most live for a minute: those that came first can go first, as soon as they are too old.
        for oldest in tuple(islice(self._used, 2)):
            if self._used[oldest] < now or len(self._used) > _MAX_USED:
                del self._used[oldest]

    async def _key(self, did: str) -> str | None:
        known = self._keys.get(did)
        if known is not None and self._clock() - known.known_at < (_KEY_LIFETIME if known.value else _KEY_PATIENCE):
            return known.value
        held = await self._store.signing_key(did)
        if held is None:
            return await self._fresh_key(did)
        self._keep(did, _Key(held, self._clock(), None))
        return held

    async def _fresh_key(self, did: str) -> str | None:
        """The key as the DID document has it, which was read a moment ago at most."""
        async with self._turn(did):
            known = self._keys.get(did)
            if known is not None and known.read_at is not None and self._clock() - known.read_at < _KEY_PATIENCE:
                return known.value
            try:
                async with asyncio.timeout(_READING):
                    key = (await self._resolver.document(did)).signing_key
            except (IdentityError, NetworkError, TimeoutError) as error:
                # Not for the answer: what is in our network is nobody's business.
                log.info("the key of an issuer cannot be read: %s", error)
                # A directory that is down takes no key away.
                key = known.value if known is not None else None
            now = self._clock()
            self._keep(did, _Key(key, now, now))
            return key

    @asynccontextmanager
    async def _turn(self, did: str) -> AsyncIterator[None]:
        """One of those that read documents of the method of *did*. Raises Unavailable when there are too many."""
        turns = self._reading.get(did.split(":")[1], self._reading["web"])
        try:
            async with asyncio.timeout(_READING):
                await turns.acquire()
        except TimeoutError:
            raise Unavailable("too many keys of issuers are being read; try again in a minute") from None
        try:
            yield
        finally:
            turns.release()

    def _keep(self, did: str, key: _Key) -> None:
        self._keys.pop(did, None)
        self._keys[did] = key
        if len(self._keys) > _MAX_KEYS:
            del self._keys[next(iter(self._keys))]


def _is_signed(token: Token, key: str | None) -> bool:
    """Whether *token* is signed by *key*, a Multikey, with the algorithm of such keys."""
    if key is None:
        return False
    try:
        if jwt_algorithm(key) != token.algorithm:
            return False
        check_bytes(token.signed, token.signature, key)
    except BadSignature:
        return False
    return True
