"""Service-auth tokens: what is let in, as whom, and what is refused, over HTTP with a real Postgres and a directory."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from holdings import ALICE, BOB, Asker, serving
from hypothesis import given
from hypothesis import strategies as st
from integration import test_subscribe_changes
from servers import Server, response, serve
from signers import Signer, raw
from websockets.exceptions import InvalidStatus

from atdata.nsid import PREFIX
from atdata_appview import auth
from atdata_appview.auth import Authenticator, read_token
from atdata_appview.errors import AuthenticationRequired, Unavailable
from atdata_appview.settings import AppViewSettings
from atdata_appview.store import Store
from atdata_backend.http import guarded_client
from atdata_backend.identity import Resolver
from atdata_backend.postgres import open_pool

SERVICE = "did:web:appview.test"
METHOD = PREFIX + "listDatasets"
ALICES, BOBS = Signer("secp256k1"), Signer("p256", 0xB0B)


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(signer: Signer = ALICES, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A good token of Alice's, but for what is given; a claim of None is left out."""
    algorithm = "ES256K" if signer.curve.name == "secp256k1" else "ES256"
    now = int(time.time())
    jti = f"{time.perf_counter_ns():032x}"
    given_claims = {"iss": ALICE, "aud": SERVICE, "iat": now, "exp": now + 60, "lxm": METHOD, "jti": jti, **claims}
    words = {name: value for name, value in given_claims.items() if value is not None}
    signed = f"{encoded({'typ': 'JWT', 'alg': algorithm, **(header or {})})}.{encoded(words)}"
    return f"{signed}.{encoded(signer.sign(signed.encode()))}"


class Directory:
    """A directory of did:plc with the keys of these accounts; ``is_up`` is whether it answers."""

    def __init__(self, **keys: str) -> None:
        self.keys = keys
        self.is_up = True

    async def answer(self, target: str) -> bytes:
        did = target.removeprefix("/")
        if not self.is_up:
            return response(b"", "503 Service Unavailable")
        if did not in self.keys:
            return response(b"", "404 Not Found")
        method = {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": self.keys[did]}
        return response({"id": did, "verificationMethod": [method]})


@pytest.fixture
def directory() -> Directory:
    return Directory(**{ALICE: ALICES.key, BOB: BOBS.key})


@pytest.fixture
async def plc(directory: Directory) -> AsyncIterator[Server]:
    async with serve(directory.answer) as server:
        yield server


def configured(database_url: str, plc: Server, folder: Path, **more: Any) -> AppViewSettings:
    return AppViewSettings(
        database_url=database_url,
        search_dir=folder,
        plc_url=plc.url,
        did=SERVICE,
        **{"rate_limit": 0, "search_processes": 0, **more},
    )


@pytest.fixture
async def ask(database_url: str, plc: Server, tmp_path: Path) -> AsyncIterator[Asker]:
    async with serving(configured(database_url, plc, tmp_path)) as asker:
        yield asker


async def call(ask: Asker, text: str, method: str = METHOD, scheme: str = "Bearer") -> httpx.Response:
    return await ask.client.get(f"/xrpc/{method}", headers={"Authorization": f"{scheme} {text}"})


async def refusal(ask: Asker, text: str) -> str:
    """The name of the error with which *text* is refused."""
    answer = await call(ask, text)
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.keys() == {"error", "message"}
    assert body["message"]
    name: str = body["error"]
    return name


# --- What is let in


@pytest.mark.parametrize(
    "text",
    [
        lambda: token(),
        lambda: token(BOBS, iss=BOB),
        lambda: token(aud=f"{SERVICE}#atdata_appview"),
        lambda: token(header={"typ": "jwt"}),
        lambda: token(iat=None),
        lambda: token(jti=None),
        lambda: token(exp=int(time.time()) + 3600),
        lambda: token(iat=int(time.time()) + 30),
        lambda: token(exp=time.time() + 30.5),
        lambda: token(somethingNew={"a": 1}),
    ],
)
async def test_good_tokens(text: Any, ask: Asker) -> None:
    """Of either curve, for the service by its DID or as DID#service, with what some servers leave out."""
    answer = await call(ask, text())
    assert answer.status_code == 200, answer.text


async def test_the_scheme_has_no_case_and_others_are_nobodys(ask: Asker, plc: Server) -> None:
    """`bearer` is Bearer; Basic and DPoP are not ours to judge, and anonymous."""
    assert (await call(ask, token(), scheme="bearer")).status_code == 200
    assert (await call(ask, "nonsense", scheme="bEARER")).status_code == 401
    asked = len(plc.requests)
    for scheme in ("Basic", "DPoP"):
        assert (await call(ask, "nonsense", scheme=scheme)).status_code == 200
    assert len(plc.requests) == asked


async def test_only_methods_look_at_tokens(ask: Asker, plc: Server) -> None:
    """Pages, health and what does not exist answer as ever: a token is for a method."""
    for path, status in (("/xrpc/_health", 200), ("/", 200), ("/metrics", 200), (f"/xrpc/{PREFIX}nothing", 501)):
        answer = await ask.client.get(path, headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == status
    assert plc.requests == []


async def test_subscriptions_look_at_tokens_too(database_url: str, plc: Server, tmp_path: Path) -> None:
    """A WebSocket is opened for a token of that method, and refused for another one."""
    method = PREFIX + "subscribeChanges"
    settings = configured(database_url, plc, tmp_path, port=0)
    async with test_subscribe_changes.serving(settings) as service:
        async with service.subscribe(additional_headers={"Authorization": f"Bearer {token(lxm=method)}"}):
            pass
        with pytest.raises(InvalidStatus) as caught:
            await service.subscribe(additional_headers={"Authorization": f"Bearer {token()}"})
    refused = caught.value.response
    assert (refused.status_code, json.loads(refused.body)["error"]) == (401, "BadJwtLexiconMethod")


# --- What is refused

NOW = 1_800_000_000


def claim(**changes: Any) -> str:
    return token(**{"iat": NOW, "exp": NOW + 60, **changes})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "BadJwt"),
        ("nonsense", "BadJwt"),
        ("a.b", "BadJwt"),
        ("a.b.c", "BadJwt"),
        (f"{claim()}.x", "BadJwt"),
        (f" {claim()}", "BadJwt"),
        (f"{claim()}=", "BadJwt"),
        (f"{encoded([])}.{encoded({})}.x", "BadJwt"),
        (f"{encoded(b'[' * 3000)}.{encoded({})}.{encoded(b'x')}", "BadJwt"),
        (claim(padding="x" * 4096), "BadJwt"),
        (claim(header={"alg": 5}), "BadJwt"),
        (claim(header={"typ": ["JWT"]}), "BadJwt"),
        (claim(header={"crit": ["exp"]}), "BadJwt"),
        (claim(header={"typ": "at+jwt"}), "BadJwtType"),
        (claim(header={"typ": "AT+JWT"}), "BadJwtType"),
        (claim(header={"typ": "refresh+jwt"}), "BadJwtType"),
        (claim(header={"typ": "dpop+jwt"}), "BadJwtType"),
        (claim(iss=None), "BadJwt"),
        (claim(iss=5), "BadJwt"),
        (claim(aud=None), "BadJwt"),
        (claim(aud=[SERVICE]), "BadJwt"),
        (claim(exp=None), "BadJwt"),
        (claim(exp="soon"), "BadJwt"),
        (claim(exp=True), "BadJwt"),
        (claim(iat="now"), "BadJwt"),
        (claim(jti=5), "BadJwt"),
        (claim(exp=NOW - 1), "JwtExpired"),
        (claim(exp=NOW + 3700), "BadJwt"),
        (claim(exp=1e300), "BadJwt"),
        (claim(iat=NOW + 100), "BadJwt"),
        (claim(aud="did:web:other.test"), "BadJwtAudience"),
        (claim(aud=f"{SERVICE}#atproto_labeler"), "BadJwtAudience"),
        (claim(aud=SERVICE.upper()), "BadJwtAudience"),
        (claim(lxm=None), "BadJwtLexiconMethod"),
        (claim(lxm=""), "BadJwtLexiconMethod"),
        (claim(lxm="*"), "BadJwtLexiconMethod"),
        (claim(lxm=PREFIX + "getStatus"), "BadJwtLexiconMethod"),
        (claim(iss="alice.test"), "BadJwtIss"),
        (claim(iss=f"{ALICE}#atproto_labeler"), "BadJwtIss"),
        (claim(iss="did:plc:"), "BadJwtIss"),
    ],
)
def test_what_tokens_must_say(text: str, name: str) -> None:
    """Names of errors are those of the reference implementation."""
    with pytest.raises(AuthenticationRequired) as caught:
        read_token(text, audiences=(SERVICE, f"{SERVICE}#atdata_appview"), method=METHOD, now=NOW)
    assert caught.value.name == name


@given(st.text() | st.lists(st.binary().map(encoded), min_size=3, max_size=3).map(".".join))
def test_anything_else_is_refused_and_nothing_fails(text: str) -> None:
    """Whatever comes is AuthenticationRequired."""
    with pytest.raises(AuthenticationRequired):
        read_token(text, audiences=(SERVICE,), method=METHOD, now=NOW)


def altered(text: str) -> str:
    """*text* with other claims under the same signature."""
    header, claims, signature = text.split(".")
    words = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{header}.{encoded({**words, 'iss': BOB})}.{signature}"


def high(text: str, signer: Signer = ALICES) -> str:
    """*text* with the other value of s, which is valid as well to those who do not look."""
    signed, _, signature = text.rpartition(".")
    data = base64.urlsafe_b64decode(signature + "==")
    s = signer.order - int.from_bytes(data[32:], "big")
    return f"{signed}.{encoded(raw(int.from_bytes(data[:32], 'big'), s))}"


@pytest.mark.parametrize(
    "text",
    [
        lambda: token(BOBS),
        lambda: token(iss=BOB),
        lambda: token(Signer("secp256k1", 5)),
        lambda: token(header={"alg": "ES256"}),
        lambda: token(header={"alg": "none"}),
        lambda: token(header={"alg": "HS256"}),
        lambda: altered(token()),
        lambda: high(token()),
        lambda: high(token(BOBS, iss=BOB), BOBS),
        lambda: token().rpartition(".")[0] + "." + encoded(bytes(64)),
        lambda: token().rpartition(".")[0] + "." + encoded(b"x"),
    ],
)
async def test_signatures_that_are_not_the_issuers(text: Any, ask: Asker) -> None:
    """By another key, with another algorithm than the key's, over other words, with the upper s, or none at all."""
    assert await refusal(ask, text()) == "BadJwtSignature"


@pytest.mark.parametrize(
    "issuer", ["did:plc:" + "z" * 24, "did:web:127.0.0.1", "did:web:localhost%3A1", "did:key:zQ3shx"]
)
async def test_an_issuer_whose_key_cannot_be_read(issuer: str, ask: Asker) -> None:
    """Nor are hosts of our own network asked for it; the answer does not say what is there."""
    answer = await call(ask, token(iss=issuer))
    assert answer.json() == {
        "error": "AuthenticationRequired",
        "message": "the key of the token's issuer cannot be read from its DID document",
    }
    assert answer.status_code == 401


async def test_a_token_is_used_once(ask: Asker) -> None:
    """Again, it is refused, also if its signature is another one of the same key, or has no nonce."""
    for text in (token(), token(jti=None)):
        assert (await call(ask, text)).status_code == 200
        assert await refusal(ask, text) == "BadJwt"
    first, again = token(jti="same"), token(jti="same", exp=int(time.time()) + 50)
    assert (await call(ask, first)).status_code == 200
    assert await refusal(ask, again) == "BadJwt"
    # The nonce is the issuer's own.
    assert (await call(ask, token(BOBS, iss=BOB, jti="same"))).status_code == 200


async def test_a_token_that_was_refused_is_not_used_up(ask: Asker) -> None:
    """Nobody can spoil the token of another by sending its nonce first."""
    forged = token(BOBS, jti="mine")
    assert await refusal(ask, forged) == "BadJwtSignature"
    assert (await call(ask, token(jti="mine"))).status_code == 200


# --- Keys


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def authenticating(database_url: str, plc: Server, clock: Clock) -> AsyncIterator[Authenticator]:
    pool = await open_pool(database_url)
    async with guarded_client(allow_private=False) as client:
        yield Authenticator(SERVICE, Store(pool), Resolver(client, plc_url=plc.url), clock)
    await pool.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def authenticator(database_url: str, plc: Server, clock: Clock) -> AsyncIterator[Authenticator]:
    async with authenticating(database_url, plc, clock) as found:
        yield found


def hold(database_url: str, did: str, key: str) -> None:
    """Have the indexer know this key."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO repositories (did, signing_key) VALUES (%s, %s)"
            " ON CONFLICT (did) DO UPDATE SET signing_key = excluded.signing_key",
            [did, key],
        )


def fresh(clock: Clock, signer: Signer = ALICES, **claims: Any) -> str:
    return token(signer, **{"iat": clock.now, "exp": clock.now + 60, **claims})


async def test_the_indexers_keys_come_first(
    database_url: str, plc: Server, clock: Clock, authenticator: Authenticator
) -> None:
    """The directory is asked for others only, once in ten minutes each."""
    hold(database_url, ALICE, ALICES.key)
    for _ in range(3):
        assert await authenticator.issuer(fresh(clock), METHOD) == ALICE
    assert plc.requests == []
    for _ in range(3):
        assert await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD) == BOB
    assert plc.requests == [f"/{BOB}"]
    clock.now += 601
    assert await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD) == BOB
    assert plc.requests == [f"/{BOB}"] * 2


async def test_a_new_key_is_looked_up_when_the_old_does_not_fit(
    database_url: str, plc: Server, clock: Clock, directory: Directory, authenticator: Authenticator
) -> None:
    """At once, but not for each bad token: a key that was read a moment ago is the key."""
    hold(database_url, ALICE, Signer("secp256k1", 77).key)
    assert await authenticator.issuer(fresh(clock), METHOD) == ALICE
    assert plc.requests == [f"/{ALICE}"]
    for _ in range(5):
        with pytest.raises(AuthenticationRequired, match="not by its issuer"):
            await authenticator.issuer(fresh(clock, BOBS), METHOD)
    assert plc.requests == [f"/{ALICE}"]
    rotated = Signer("p256", 99)
    directory.keys[ALICE] = rotated.key
    clock.now += 31
    assert await authenticator.issuer(fresh(clock, rotated), METHOD) == ALICE
    with pytest.raises(AuthenticationRequired):
        await authenticator.issuer(fresh(clock), METHOD)
    assert plc.requests == [f"/{ALICE}"] * 2


async def test_a_directory_that_is_down_takes_no_key_away(
    database_url: str, clock: Clock, directory: Directory, authenticator: Authenticator
) -> None:
    """Whoever is known goes on; a forged token cannot change that. Who is not known is looked up again in a moment."""
    hold(database_url, ALICE, ALICES.key)
    directory.is_up = False
    with pytest.raises(AuthenticationRequired):
        await authenticator.issuer(fresh(clock, BOBS), METHOD)
    assert await authenticator.issuer(fresh(clock), METHOD) == ALICE
    with pytest.raises(AuthenticationRequired, match="cannot be read"):
        await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD)
    directory.is_up = True
    with pytest.raises(AuthenticationRequired, match="cannot be read"):
        await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD)
    clock.now += 31
    assert await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD) == BOB


async def test_hosts_that_do_not_answer_keep_nobody_from_the_directory(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, authenticator: Authenticator
) -> None:
    """Whoever's key is at hosts that strangers named takes no turn of those in the directory, and is told to wait."""
    monkeypatch.setattr(auth, "_READING", 0.2)
    document = authenticator._resolver.document

    async def slow(did: str) -> Any:
        return await (asyncio.Event().wait() if did.startswith("did:web:") else document(did))

    monkeypatch.setattr(authenticator._resolver, "document", slow)
    tokens = [fresh(clock, BOBS, iss=f"did:web:{n}.example") for n in range(60)]
    waiting = [asyncio.create_task(authenticator.issuer(token, METHOD)) for token in tokens]
    assert await authenticator.issuer(fresh(clock), METHOD) == ALICE
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in refused} == {AuthenticationRequired, Unavailable}


async def test_what_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, authenticator: Authenticator
) -> None:
    """Keys and used tokens are forgotten when there are too many, and used tokens when they have expired."""
    monkeypatch.setattr(auth, "_MAX_USED", 20)
    monkeypatch.setattr(auth, "_MAX_KEYS", 1)
    for _ in range(40):
        await authenticator.issuer(fresh(clock), METHOD)
        await authenticator.issuer(fresh(clock, BOBS, iss=BOB), METHOD)
    assert len(authenticator._used) == 20
    assert len(authenticator._keys) == 1
    clock.now += 61
    for _ in range(20):
        await authenticator.issuer(fresh(clock), METHOD)
    assert len(authenticator._used) == 20
    clock.now += 61
    for _ in range(11):
        await authenticator.issuer(fresh(clock), METHOD)
    assert len(authenticator._used) == 11


# --- Limits


@pytest.fixture
async def limited(database_url: str, plc: Server, tmp_path: Path) -> AsyncIterator[Asker]:
    async with serving(configured(database_url, plc, tmp_path, rate_limit=4)) as asker:
        yield asker


async def test_an_account_has_a_limit_of_its_own(limited: Asker) -> None:
    """Of thousands behind one PDS, none uses up what another has, nor what the PDS has itself."""
    for signer, did in ((ALICES, ALICE), (BOBS, BOB)):
        answers = [await call(limited, token(signer, iss=did)) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 4 + [429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0", "0"]
    assert [(await limited.get("listDatasets")).status_code for _ in range(5)] == [200] * 4 + [429]


async def test_accounts_are_no_way_around_the_limit(limited: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make them: who speaks for many has ten times as much as who speaks for none."""

    async def issuer(self: Authenticator, text: str, method: str) -> str:
        return f"did:web:{text}.example"

    monkeypatch.setattr(Authenticator, "issuer", issuer)
    answers = [(await call(limited, str(n))).status_code for n in range(42)]
    assert answers == [200] * 40 + [429] * 2


async def test_bad_tokens_are_at_the_expense_of_their_sender(limited: Asker, plc: Server) -> None:
    """Then nothing more is verified or looked up for this address."""
    answers = [await call(limited, token(BOBS)) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [401] * 4 + [429] * 2
    assert answers[0].headers["ratelimit-remaining"] == "3"
    asked = len(plc.requests)
    assert (await call(limited, token(BOBS, iss="did:plc:" + "y" * 24))).status_code == 429
    assert len(plc.requests) == asked
