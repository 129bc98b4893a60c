"""Frames of the real relay from a socket to decoded and filtered, one process, beside the Python SDK's own client.

    python tests/benchmarks/firehose_replay.py [--frames 400000] [--sdk-frames 4000] [--rounds 3]

A process on loopback sends the capture over and over, as ready-made WebSocket frames and as fast as they are taken,
with sequence numbers that go on. Ours reads them with `Stream` and `events.parse`, and follows 200,000 repositories,
none of which is in the capture; the SDK's client decodes each message and its CAR, as those who use it do. Each reader
is a process of its own; they run in turn, and each one's best round counts, for other work on the machine only slows.
``cpu_us`` is processor time a frame, the kernel's part included. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvloop
import zstandard
from conformance import shared_folder
from frames import DATASET, commit, dataset
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from atdata import nsid
from atdata_indexer.events import Scope, parse
from atdata_indexer.stream import Stream

TRACKED = 200_000
FIRST = 32_000_000_000  # the first sequence number of the replay


def capture() -> list[bytes]:
    """The frames of the real relay."""
    packed = (shared_folder() / "conformance/relay-capture/frames.bin.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    frames, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def with_ours(frames: Sequence[bytes]) -> list[bytes]:
    """*frames*, twice, and a hundredth as many again that bring a dataset."""
    mixed = list(frames) * 2
    for n in range(len(mixed) // 100):
        record = dataset(f"Owls {n}", description="Hoo. " * 120)
        mixed.insert(n * 101, commit(FIRST + n, [("create", f"{DATASET}/{n}", record)], at=n))
    return mixed


def did(n: int) -> str:
    """The *n*-th of many repositories, none of them real."""
    return f"did:plc:{n:024d}".translate(str.maketrans("0189", "abcd"))


@contextmanager
def relay(frames: Sequence[bytes], total: int) -> Iterator[str]:
    """The address of a process that sends *frames* over and over to whoever connects, *total* of them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            _send(frames, total, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123
        port = int(pipe.readline())
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _send(frames: Sequence[bytes], total: int, report: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    os.write(report, b"%d\n" % listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, frames, total), daemon=True).start()


def _answer(connection: socket.socket, frames: Sequence[bytes], total: int) -> None:
    once, ends, places = bytearray(), [0], []
    for frame in frames:
        once += Frame(Opcode.BINARY, frame).serialize(mask=False)
        ends.append(len(once))
        places.append(once.index(b"cseq\x1b", ends[-2]) + 5)
    seq = FIRST
    try:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        (key,) = (
            line[18:].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")
        )
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
        )
        while left := total - (seq - FIRST):
            for place in places:
                struct.pack_into(">Q", once, place, seq)
                seq += 1
            if left < len(frames):
                seq = FIRST + total
            connection.sendall(memoryview(once)[: ends[min(left, len(frames))]])
        while connection.recv(4096):
            pass
    except OSError:
        pass


def ours(url: str, total: int) -> int:
    """Read *total* frames; how many had events in scope."""
    scope = Scope((nsid.PREFIX,), {did(n) for n in range(TRACKED)})

    async def read() -> int:
        seen = concerned = 0
        async with asyncio.timeout(600):
            async for frames in Stream(url, cursor=lambda: None).batches():
                for frame in frames:
                    if parse(frame, scope).events:
                        concerned += 1
                seen += len(frames)
                if seen >= total:
                    return concerned
        raise AssertionError("the stream ended")

    return uvloop.run(read())


def sdk(url: str, total: int) -> int:
    """The same with the Python SDK, after the example in its documentation."""
    from atproto import CAR, FirehoseSubscribeReposClient, models, parse_subscribe_repos_message

    client = FirehoseSubscribeReposClient(base_uri=f"{url}/xrpc")
    left = cycle(range(total - 1, -1, -1))
    concerned = 0

    def handle(message) -> None:  # type: ignore[no-untyped-def]
        nonlocal concerned
        event = parse_subscribe_repos_message(message)
        if isinstance(event, models.ComAtprotoSyncSubscribeRepos.Commit) and event.blocks:
            car = CAR.from_bytes(event.blocks)
            for op in event.ops:
                if op.path.startswith(nsid.PREFIX) and op.cid is not None and car.blocks.get(op.cid) is not None:
                    concerned += 1
        if not next(left):
            client.stop()

    client.start(handle)
    return concerned


def measure(reader: str, frames: Sequence[bytes], total: int) -> dict[str, float]:
    """Run *reader* in a new process: frames a second, and microseconds of processor time for each."""
    with relay(frames, total) as url:
        run = subprocess.run(
            [sys.executable, __file__, "--run", reader, url, str(total)], stdout=subprocess.PIPE, text=True, check=True
        )
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure, or be measured."""
    if sys.argv[1:2] == ["--run"]:
        reader, url, total = sys.argv[2], sys.argv[3], int(sys.argv[4])
        # Imports are not what is measured.
        if reader == "sdk":
            import atproto  # noqa: F401
        started, used = time.perf_counter(), time.process_time()
        concerned = {"ours": ours, "sdk": sdk}[reader](url, total)
        elapsed, used = time.perf_counter() - started, time.process_time() - used
        print(json.dumps({"rate": total / elapsed, "cpu_us": used / total * 1e6, "concerned": concerned}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=400_000, help="frames for our own reader")
    parser.add_argument("--sdk-frames", type=int, default=4_000, help="frames for the SDK's client")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    real = capture()
    mixture = with_ours(real)
    plain, mixed, theirs = (
        max(rounds, key=lambda measured: measured["rate"])
        for rounds in zip(
            *(
                (
                    measure("ours", real, arguments.frames),
                    measure("ours", mixture, arguments.frames),
                    measure("sdk", real, arguments.sdk_frames),
                )
                for _ in range(arguments.rounds)
            ),
            strict=True,
        )
    )
    print(
        json.dumps(
            {
                "benchmark": "firehose_replay",
                "frames": arguments.frames,
                "frames_per_second": round(plain["rate"]),
                "cpu_us": round(plain["cpu_us"], 1),
                "with_1_percent_of_ours": {
                    "frames_per_second": round(mixed["rate"]),
                    "cpu_us": round(mixed["cpu_us"], 1),
                    "in_scope": mixed["concerned"],
                },
                "sdk": {"frames_per_second": round(theirs["rate"]), "cpu_us": round(theirs["cpu_us"], 1)},
                "ratio": round(plain["rate"] / theirs["rate"], 1),
                "cpu_ratio": round(theirs["cpu_us"] / plain["cpu_us"], 1),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
