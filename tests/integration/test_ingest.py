"""The indexer whole, over a local WebSocket: bad input among the good, replays, relays that say no, a lost database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard
from conformance import shared_folder
from frames import DATASET, DID, Repo, account, block, commit, commit_body, dataset, did_document, frame
from web import Reply
from web import serve as serve_web
from websockets.asyncio.server import ServerConnection, serve

from atdata.errors import ConfigError
from atdata_backend.search import open_engine
from atdata_backend.search.base import Query
from atdata_indexer import ingest
from atdata_indexer.ingest import Indexer
from atdata_indexer.settings import IndexerSettings


class Relay:
    """Sends *frames* to whoever subscribes, those after the cursor by their position; more can be added."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = list(frames)
        self.queries: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.url = ""
        self._more = asyncio.Condition()

    async def send(self, *frames: bytes) -> None:
        async with self._more:
            self.frames += frames
            self._more.notify_all()

    async def handle(self, socket: ServerConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        assert socket.request is not None
        self.queries.append(socket.request.path.partition("?")[2])
        at = 0
        while True:
            for data in self.frames[at:]:
                await socket.send(data)
            at = len(self.frames)
            async with self._more:
                await self._more.wait_for(lambda at=at: len(self.frames) > at)


@asynccontextmanager
async def relay(frames: Sequence[bytes]) -> AsyncIterator[Relay]:
    source = Relay(frames)
    async with serve(source.handle, "127.0.0.1", 0, max_size=None) as server:
        host, port = server.sockets[0].getsockname()
        source.url = f"ws://{host}:{port}"
        try:
            yield source
        finally:
            for task in source.tasks:
                task.cancel()


@asynccontextmanager
async def indexer(url: str, relay_url: str, folder: Path, **more: Any) -> AsyncIterator[asyncio.Task[None]]:
    """An indexer that takes its keys from a directory of its own."""

    def document(path: str) -> Reply:
        return Reply(json.dumps(did_document(path.removeprefix("/"), "http://127.0.0.1:1")).encode())

    with serve_web(document) as plc:
        settings = IndexerSettings(
            database_url=url,
            search_dir=folder,
            relay=relay_url,
            plc_url=plc.url,
            allow_private_hosts=True,
            **{"backfill": False, **more},
        )
        engine = settings.open_engine()
        task = asyncio.ensure_future(Indexer(settings, engine).run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            engine.close()


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


async def until(condition: Callable[[], object], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            if task.done():
                task.result()
            await asyncio.sleep(0.02)


def _numbered(seq: int, **changes: Any) -> bytes:
    return frame("#commit", commit_body(seq, [("create", f"{DATASET}/{seq}", dataset())]) | changes)


BAD = {
    "not-cbor": b"\xff\xfe\xfd this is no CBOR",
    "bad-frame": b"\x01",
    "unknown-type": frame("#novelty", {"seq": 3}),
    "unknown-operation": frame("#commit", {"seq": 4}, op=9),
    "frame-too-large": commit(5, []) + b"\x00" * 6_000_000,
    "blocks-too-large": _numbered(6, blocks=b"\x00" * 3_000_000),
    "bad-field": _numbered(7, rev=None),
    "bad-commit": _numbered(8, ops="create"),
    "bad-car": _numbered(9, blocks=b"\x00\x01\x02"),
    "nul-character": commit(10, [("create", f"{DATASET}/nul", dataset("a\x00b"))]),
    "bad-record": commit(
        12, [("create", f"{DATASET}/deep", block({"x": None}).replace(b"\xf6", b"\x81" * 500 + b"\x01"))], since=10
    ),
}


async def test_bad_input_is_set_aside_and_the_stream_goes_on(database_url: str, tmp_path: Path) -> None:
    """Each bad frame is in quarantine with its reason and its bytes, counted; the good ones around it are indexed."""
    truncated = _numbered(13)[:-30]
    frames = [commit(1, [("create", f"{DATASET}/first", dataset("First"))])]
    frames += [*BAD.values(), truncated]
    frames += [commit(20, [("create", f"{DATASET}/last", dataset("Last"))], since=12)]
    async with relay(frames) as source, indexer(database_url, source.url, tmp_path) as task:
        await until(lambda: rows(database_url, "SELECT 1 FROM records WHERE rkey = 'last'"), task)
        kept = dict(rows(database_url, "SELECT bytes, reason FROM quarantine"))
        assert kept == {**{data: reason for reason, data in BAD.items()}, truncated: "not-cbor"}
        counts = dict(rows(database_url, "SELECT reason, times FROM quarantine_counts"))
        assert counts == {**dict.fromkeys(BAD, 1), "not-cbor": 2}
        await until(
            lambda: (rows(database_url, "SELECT status FROM indexer_status") or [({},)])[0][0].get("rejected") == 12,
            task,
        )
        ((status,),) = rows(database_url, "SELECT status FROM indexer_status")
        assert (status["rejected"], status["quarantined"], status["connected"]) == (12, 12, True)
        assert {name for (name,) in rows(database_url, "SELECT name FROM records")} == {"First", "Last"}
        await until(lambda: not rows(database_url, "SELECT 1 FROM search_outbox"), task)
    engine = open_engine(folder=tmp_path, meili_url=None)
    assert [hit.uri for hit in engine.search(Query("last")).hits] == [f"at://{DID}/{DATASET}/last"]
    engine.close()


async def test_what_comes_together_is_applied_in_portions(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames whose records are much JSON together are applied a few at a time, in order, each with its cursor."""
    monkeypatch.setattr(ingest, "_MAX_BATCH_JSON", 500)
    repo = Repo()
    commits = [repo.commit(n, [("create", f"{DATASET}/{n}", dataset("x" * 300))]) for n in range(1, 9)]
    async with relay(commits[:1]) as source, indexer(database_url, source.url, tmp_path) as task:
        await until(lambda: rows(database_url, "SELECT 1 FROM records"), task)  # by now its key is known
        for data in commits[1:]:
            await source.send(data)
        await until(lambda: rows(database_url, "SELECT seq FROM cursors") == [(8,)], task)
        assert rows(database_url, "SELECT count(*), count(DISTINCT xmin::text) FROM records") == [(8, 8)]


async def test_the_real_frames_pass_by(database_url: str, tmp_path: Path) -> None:
    """Real traffic concerns nobody here: nothing is stored but the cursor, which the next start goes on from."""
    packed = (shared_folder() / "conformance/relay-capture/frames.bin.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    frames, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    async with relay(frames) as source:
        async with indexer(database_url, source.url, tmp_path) as task:
            # Saved after five seconds at the latest.
            await until(lambda: rows(database_url, "SELECT seq FROM cursors") == [(31527015471,)], task)
            assert rows(database_url, "SELECT count(*) FROM records") == [(0,)]
            assert rows(database_url, "SELECT count(*) FROM quarantine") == [(0,)]
        async with indexer(database_url, source.url, tmp_path) as task:
            await until(lambda: len(source.queries) == 2, task)
    assert source.queries == ["", "cursor=31527015471"]


async def test_an_absurd_seq_does_not_move_the_cursor(database_url: str, tmp_path: Path) -> None:
    """One frame with a number from nowhere would put everything after it behind the cursor."""
    frames = [commit(1, [("create", f"{DATASET}/a", dataset())]), frame("#surprise", {"seq": 2**62})]
    async with relay(frames) as source, indexer(database_url, source.url, tmp_path) as task:
        await until(lambda: rows(database_url, "SELECT 1 FROM quarantine"), task)
        await source.send(commit(2, [("create", f"{DATASET}/b", dataset())], since=1))
        await until(lambda: len(rows(database_url, "SELECT 1 FROM records")) == 2, task)
        assert rows(database_url, "SELECT seq FROM cursors") == [(2,)]


async def test_a_future_cursor_stops_the_indexer(database_url: str, tmp_path: Path) -> None:
    """The relay was reset or mixed up: an operator has to look, and is told what to type."""
    async with relay([frame("", {"error": "FutureCursor", "message": "Cursor in the future."}, op=-1)]) as source:
        async with indexer(database_url, source.url, tmp_path) as task:
            with pytest.raises(ConfigError, match="forget-cursor"):
                async with asyncio.timeout(30):
                    await task


async def test_an_outdated_cursor_starts_a_sweep(database_url: str, tmp_path: Path) -> None:
    """What the relay no longer has, only the repositories can tell: all of ours are compared with their hosts."""
    async with relay([commit(1, [("create", f"{DATASET}/a", dataset())])]) as source:
        async with indexer(database_url, source.url, tmp_path, backfill=True) as task:
            await until(lambda: rows(database_url, "SELECT 1 FROM records"), task)
            await source.send(frame("#info", {"name": "OutdatedCursor", "message": "gone"}))
            gap = f"{source.url.removeprefix('ws://')} no longer had the events after 1"
            await until(lambda: gap in str(rows(database_url, "SELECT reason FROM sweeps")), task)


async def test_a_jump_in_seq_starts_a_sweep(database_url: str, tmp_path: Path) -> None:
    """Relays do not announce what they lost: the numbers do."""
    async with relay([commit(1, [("create", f"{DATASET}/a", dataset())])]) as source:
        async with indexer(database_url, source.url, tmp_path, backfill=True) as task:
            await until(lambda: rows(database_url, "SELECT 1 FROM records"), task)
            await source.send(account(2, active=True, did="did:plc:" + "z" * 24))
            await source.send(account(9, active=True, did="did:plc:" + "z" * 24))
            await until(lambda: "went from 2 to 9" in str(rows(database_url, "SELECT reason FROM sweeps")), task)


async def test_a_relay_read_for_the_first_time_starts_a_sweep(database_url: str, tmp_path: Path) -> None:
    """Without a cursor, the stream tells of what happens from its connection on: the rest is asked for after it."""
    async with relay([commit(1, [("create", f"{DATASET}/a", dataset())])]) as source:
        async with indexer(database_url, source.url, tmp_path, backfill=True) as task:
            await until(lambda: "for the first time" in str(rows(database_url, "SELECT reason FROM sweeps")), task)


async def test_the_next_relay_when_one_is_out_of_reach(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two relays is read when the first does not answer, each from a cursor of its own."""
    monkeypatch.setattr("atdata_indexer.ingest._FAILOVER", 1)
    async with relay([commit(7, [("create", f"{DATASET}/a", dataset())])]) as source:
        async with indexer(database_url, f"ws://127.0.0.1:1,{source.url}", tmp_path) as task:
            await until(lambda: rows(database_url, "SELECT 1 FROM records"), task)
            host = source.url.removeprefix("ws://")
            assert rows(database_url, "SELECT host, seq FROM cursors") == [(host, 7)]
            await until(lambda: rows(database_url, "SELECT status->>'relay' FROM indexer_status") == [(host,)], task)


async def test_a_lost_database_is_waited_for(database_url: str, tmp_path: Path) -> None:
    """A connection cut by the server costs a reconnect, no event."""
    async with relay([commit(1, [("create", f"{DATASET}/a", dataset())])]) as source:
        async with indexer(database_url, source.url, tmp_path) as task:
            await until(lambda: rows(database_url, "SELECT 1 FROM records"), task)
            with psycopg.connect(database_url, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            await source.send(commit(2, [("create", f"{DATASET}/b", dataset())], since=1))
            await until(lambda: len(rows(database_url, "SELECT 1 FROM records")) == 2, task)


async def test_search_is_filled_from_postgres(database_url: str, tmp_path: Path) -> None:
    """An engine that lost its files is fed everything again at the next start."""
    frames = [commit(n, [("create", f"{DATASET}/{n}", dataset(f"Owl {n}"))], since=n - 1 or None) for n in range(1, 21)]
    async with relay(frames) as source:
        async with indexer(database_url, source.url, tmp_path / "one") as task:
            await until(lambda: len(rows(database_url, "SELECT 1 FROM records")) == 20, task)
            await until(lambda: not rows(database_url, "SELECT 1 FROM search_outbox"), task)
        async with indexer(database_url, source.url, tmp_path / "two") as task:
            other = open_engine(folder=tmp_path / "two", meili_url=None)
            await until(lambda: other.count() == 20, task)
            other.close()
