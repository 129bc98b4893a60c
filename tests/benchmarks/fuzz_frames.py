"""Mutated firehose frames through `events.parse`, and the commits that come out through their proofs.

    python tests/benchmarks/fuzz_frames.py [--frames 200000] [--seed 1] [--largest 5000000]

The frames are those of the real relay, half of whose repositories are followed, and made ones that bring records of
ours. A fault is an exception, a frame that takes more than a second of processor time, events that are not what
`parse` promises, or one that concerns us and comes out as nothing. The same seed makes the same frames. Prints one JSON
line, and faults before it; the exit status says whether there were any.

To extend it: a mutation is a function in `MUTATIONS`, what happens to events after `parse` is `follow`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import cbrrr
import orjson
import psutil
from benchmarks.firehose_replay import capture
from frames import DATASET, DID, SCHEMA, Op, Repo, account, dataset, frame, identity, multikey, schema

from atdata import nsid
from atdata_indexer import car
from atdata_indexer.events import Commit, Event, Frame, RecordWritten, Rejected, Scope, parse
from atdata_indexer.verify import NotProven, check_signature, tree_before

SLOW = 1.0  # seconds of processor time

_REASON = re.compile("[a-z]+(-[a-z0-9]+)*")


# What is mutated.


@dataclass(frozen=True)
class Corpus:
    """Frames to begin with, and as a header and a body those that are commits."""

    frames: Sequence[bytes]
    ours: Sequence[bytes]
    scope: Scope
    largest: int

    def any(self, random: Random) -> bytes:
        """A frame, every other time one that concerns us."""
        return random.choice(self.ours if random.random() < 0.5 else self.frames)

    def parts(self, random: Random) -> tuple[dict[str, Any], dict[str, Any]]:
        """The header and the body of a frame; each caller's own."""
        header, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(self.any(random))
        assert isinstance(header, dict)
        assert isinstance(body, dict)
        return header, body

    def commit(self, random: Random) -> dict[str, Any]:
        """The body of a commit that concerns us."""
        while True:
            header, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(random.choice(self.ours))
            if header["t"] == "#commit" and body["blocks"]:  # type: ignore[index, call-overload]
                return body  # type: ignore[return-value]

    def size(self, random: Random) -> int:
        """How much of something: mostly little, seldom as much as a frame may have."""
        top = self.largest if random.random() < 0.01 else min(self.largest, 30_000)
        return int(math.exp(random.uniform(0, math.log(top))))


def corpus(largest: int = 5_000_000) -> Corpus:
    """The capture, of whose repositories every other is followed, and frames with records of ours."""
    real = capture()
    dids = sorted({did for data in real for did in re.findall(rb"did:plc:[a-z2-7]{24}", data)})
    tracked = {did.decode() for did in dids[::2]} | {DID}
    scope = Scope((nsid.PREFIX,), frozenset(tracked))
    repo = Repo()
    made = []
    for n in range(1, 40):
        ops: list[Op] = [
            ("create", f"{DATASET}/{n}", dataset(f"Owls {n}", tags=["audio"])),
            ("create", f"x.y.z/{n}", {}),
        ]
        if n % 3 == 0:
            ops += [("update", f"{DATASET}/{n - 1}", dataset("Anew")), ("create", f"{SCHEMA}/{n}", schema())]
        if n % 5 == 0:
            ops.append(("delete", f"{DATASET}/{n - 2}", None))
        made.append(repo.commit(n, ops))
    made += [
        repo.sync(50),
        account(51, active=False, status="takendown"),
        account(52, active=True),
        identity(53),
        frame("#info", {"name": "OutdatedCursor", "message": "gone"}),
        frame("", {"error": "FutureCursor", "message": "no"}, op=-1),
        frame("#commit", repo.commit_body(54, []) | {"tooBig": True, "blocks": b"", "ops": []}),
    ]
    followed = [data for data in real if any(did.encode() in data[:400] for did in tracked)]
    return Corpus([*real, *made], [*followed, *made * 2], scope, largest)


# Values and encodings that nobody should send.


class Raw(bytes):
    """Bytes that are CBOR already, or pretend to be."""


def encode(value: Any) -> bytes:
    """DAG-CBOR, but for what is `Raw`. A list of pairs in a tuple is a map: in that order, and with repeated keys."""
    match value:
        case Raw():
            return bytes(value)
        case dict():
            items = sorted(value.items(), key=lambda item: (len(item[0]), item[0]))
            return encode(tuple(items))
        case tuple():
            return head(5, len(value)) + b"".join(encode(key) + encode(item) for key, item in value)
        case list():
            return head(4, len(value)) + b"".join(map(encode, value))
        case float() if not math.isfinite(value):
            return b"\xfb" + struct.pack(">d", value)
        case _:
            return cbrrr.encode_dag_cbor(value)


def head(major: int, value: int) -> bytes:
    """The head of an item, in its shortest form."""
    if value < 24:
        return bytes([major << 5 | value])
    size = 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4 if value < 1 << 32 else 8
    return bytes([major << 5 | 23 + size.bit_length()]) + value.to_bytes(size, "big")


def hostile(random: Random, corpus: Corpus) -> Any:
    """A value that does not belong where it is put."""
    size = corpus.size(random)
    return random.choice(
        [
            lambda: random.choice([None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
            lambda: random.choice([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf]),
            lambda: random.choice(
                ["", "\0", "a\0b", "\x1b[2J", "did:plc:", "at://", "🦉" * 50, "\u202e", "zzzzzzzzzzzzz"]
            ),
            lambda: random.choice(
                [b"", b"\0", [], {}, [[]], [{}], [None] * 30, {"": None}, {"$link": "x"}, {"path": 1}]
            ),
            lambda: random.choice(["x", "é", "did:plc:"]) * (size // 8 + 1),
            lambda: random.randbytes(size),
            lambda: Raw(b"\xd8\x2a" + encode(random.randbytes(random.choice([0, 1, 36, 37, 38])))),
            lambda: Raw(random.choice(ENCODINGS)),
            lambda: Raw(random.choice([b"\x81", b"\xa1\x61a", b"\xd8\x2a", b"\xc1"]) * size + b"\xf6"),
            lambda: Raw(random.choice([b"\x9a", b"\xba", b"\x5a", b"\x7a"]) + random.choice(CLAIMS)),
            lambda: Raw(head(4, size) + random.choice([b"\x80", b"\xa0", b"\x60", b"\x00", b"\xf6"]) * size),
            lambda: Raw(claims(random, size)),
        ]
    )()


#: What DAG-CBOR forbids: longer heads than needed, indefinite lengths, tags, simple values, short floats, bad UTF-8.
ENCODINGS = [
    *(b"\x18\x01", b"\x19\x00\x01", b"\x1a\x00\x00\x00\x01", b"\x1b\0\0\0\0\0\0\0\x01", b"\x38\x01", b"\x58\x01a"),
    *(b"\x78\x01a", b"\x98\x01\x00", b"\x99\x00\x01\x00", b"\xb8\x01\x61a\x00", b"\xbb\0\0\0\0\0\0\0\x01\x61a\x00"),
    *(b"\x9f\x01\xff", b"\xbf\x61a\x01\xff", b"\x5f\x41a\xff", b"\x7f\x61a\xff", b"\x9f", b"\xbf", b"\x5f", b"\xff"),
    *(b"\xc0\x60", b"\xc1\x01", b"\xd8\x2a\x01", b"\xd9\xd9\xf7\x01", b"\xdb\0\0\0\0\0\0\0\x2a\x40", b"\xd8\x2a\xf6"),
    *(b"\xe0", b"\xf7", b"\xf8\x20", b"\xf8\xff", b"\xf9\x3c\x00", b"\xf9\x7e\x00", b"\xfa\x3f\x80\0\0", b"\xfc"),
    *(b"\x1c", b"\x1f", b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xfb\x7f\xf8\0\0\0\0\0\x01", b"\x62\xc3\x28"),
    *(b"\x63\xed\xa0\x80", b"\xa1\x01\x02", b"\xa1\x40\x02", b"\xa2\x61a\x01\x61a\x02", b"\xa2\x61b\x01\x61a\x02", b""),
]
CLAIMS = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x0f\xff\xff", b"\x00\x00\x10\x00"]


def claims(random: Random, size: int) -> bytes:
    """Some *size* bytes of containers within each other that claim all that follows: a decoder may make room for it."""
    out = bytearray()
    is_map = random.random() < 0.5
    for _ in range(random.choice([10, 100, 900])):
        rest = size - len(out) - 7
        if rest <= 0:
            break
        out += (b"\xba" + (rest // 2).to_bytes(4, "big") + b"\x61a") if is_map else (b"\x9a" + rest.to_bytes(4, "big"))
    return bytes(out) + random.choice([b"\0", b"\x80", b"\x61"]) * max(0, size - len(out))


# Mutations: each makes a frame.


def flip(random: Random, corpus: Corpus) -> bytes:
    """Some bits."""
    data = bytearray(corpus.any(random))
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def flip_early(random: Random, corpus: Corpus) -> bytes:
    """Some bits where the structure is, before the blocks."""
    data = bytearray(corpus.any(random))
    for _ in range(random.randint(1, 4)):
        data[random.randrange(min(300, len(data)))] ^= 1 << random.randrange(8)
    return bytes(data)


def truncate(random: Random, corpus: Corpus) -> bytes:
    """Cut off, or something added."""
    data = corpus.any(random)
    if random.random() < 0.2:
        return data + random.choice(
            [b"\0", b"\xa0", data, random.randbytes(20), Raw(claims(random, corpus.size(random)))]
        )
    return data[: random.randrange(len(data))]


def splice(random: Random, corpus: Corpus) -> bytes:
    """The beginning of one and the end of another."""
    one, two = corpus.any(random), corpus.any(random)
    return one[: random.randrange(len(one))] + two[random.randrange(len(two)) :]


def repeat_span(random: Random, corpus: Corpus) -> bytes:
    """A part of it twice, or many times, or elsewhere, or not at all."""
    data = corpus.any(random)
    start = random.randrange(len(data))
    span = data[start : start + random.randint(1, 200)]
    at = start if random.random() < 0.5 else random.randrange(len(data))
    return data[:at] + span * random.choice([0, 1, 1, 2, 100]) + data[at:]


def noise(random: Random, corpus: Corpus) -> bytes:
    """Anything, now and then behind a header."""
    prefix = random.choice([b"", b"\xa2at" + encode("#commit") + b"bop\x01", b"\xa1bop\x20"])
    return prefix + random.randbytes(random.choice([0, 1, 10, 1000]))


def change_field(random: Random, corpus: Corpus) -> bytes:
    """A field, at any depth, with what does not belong there, or without its name, or twice, or out of order."""
    header, body = corpus.parts(random)
    places: list[dict[str, Any] | list[Any]] = [header, body]
    for container in places:
        values = container.values() if isinstance(container, dict) else container
        places += [value for value in values if isinstance(value, dict | list) and value]
    for _ in range(random.choice([1, 1, 2])):
        container = random.choice([*places, body, body, body])
        if not container:
            continue
        key: Any = random.choice(list(container)) if isinstance(container, dict) else random.randrange(len(container))
        match random.randrange(8) if isinstance(container, dict) else 7:
            case 0:
                del container[key]
            case 1:
                container[f"{key}x"] = container.pop(key)
            case 2:
                container[random.choice(["sig", "since", "tooBig", "prevData", "x" * 300, ""])] = hostile(
                    random, corpus
                )
            case _:
                container[key] = hostile(random, corpus)
    data = encode(body)
    if random.random() < 0.1:
        pairs = list(body.items())
        random.shuffle(pairs)
        data = encode((*pairs, *random.choices(pairs or [("", 0)], k=random.randint(0, 2))))
    return encode(header) + data


def not_a_frame(random: Random, corpus: Corpus) -> bytes:
    """Values that are no header and body."""
    return b"".join(encode(hostile(random, corpus)) for _ in range(random.randint(0, 4)))


def change_ops(random: Random, corpus: Corpus) -> bytes:
    """A commit of ours with other operations than its tree has."""
    body = corpus.commit(random)
    for _ in range(random.randint(1, 3)):
        body["ops"] = ops = [op for op in body["ops"] if isinstance(op, dict)]
        match random.randrange(5):
            case 0 if ops:
                op = dict(random.choice(ops))
                op[random.choice(["action", "cid", "prev"])] = random.choice(
                    ["create", "update", "delete", None, *(op.get("cid") for op in ops)]
                )
                ops.append(op)
            case 1:
                path = random.choice([f"{DATASET}/x", f"{DATASET}/", DATASET, f"{DATASET}/a/b", f"{DATASET}/é", "/"])
                ops.append({"action": random.choice(["create", "delete"]), "path": path, "cid": None})
            case 2 if ops:
                body["ops"] = (ops * random.choice([2, 10, 201]))[:201]
            case 3 if ops:
                ops.pop(random.randrange(len(ops)))
            case _:
                body["ops"] = [hostile(random, corpus) for _ in range(random.randint(1, 3))]
    return frame_of(body)


def change_car(random: Random, corpus: Corpus) -> bytes:
    """A commit of ours whose blocks are not what they are called, or miss, or are no CAR."""
    body = corpus.commit(random)
    roots, found = car.split(body["blocks"])
    sections = [cid + bytes(block) for cid, block in found.items()]
    header = encode({"version": 1, "roots": [cbrrr.CID(root) for root in roots]})
    at = random.randrange(len(sections))
    match random.randrange(10):
        case 0:
            sections.pop(at)
        case 1:
            sections.append(sections[at])
        case 2:
            section = bytearray(sections[at])
            section[random.randrange(len(section))] ^= 1 << random.randrange(8)
            sections[at] = bytes(section)
        case 3:
            sections[at] = sections[at][: random.randrange(len(sections[at]))]
        case 4:
            fields = {"version": 1, "roots": [cbrrr.CID(root) for root in roots]}
            fields[random.choice(["version", "roots", "x"])] = hostile(random, corpus)
            header = encode(fields)
        case 5:
            sections += [
                b"\x01\x71\x12\x20" + sha256(b"%d" % n).digest() + b"%d" % n for n in range(corpus.size(random) // 40)
            ]
        case 6:
            sections.insert(at, b"")
        case 7:
            random.shuffle(sections)
    data = b"".join(varint(len(part)) + part for part in [header, *sections])
    if random.random() < 0.2:
        claimed = random.choice([b"\xff" * 10, b"\xff\xff\xff\xff\x7f", b"\x80\x80\x00", b"\x80", b"\0" * 50])
        where = random.choice([0, len(data), random.randrange(len(data))])
        data = data[:where] + claimed + data[where:]
    body["blocks"] = data
    return frame_of(body)


def change_block(random: Random, corpus: Corpus) -> bytes:
    """A commit of ours in which a block says something else, and everything that links to it follows suit."""
    body = corpus.commit(random)
    _, found = car.split(body["blocks"])
    blocks = {cid: bytes(block) for cid, block in found.items()}
    victim = random.choice(list(blocks))
    value = blocks[victim]
    match random.randrange(4):
        case 0:
            changed = bytearray(value)
            for _ in range(random.randint(1, 4)):
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            value = bytes(changed)
        case 1:
            value = encode(hostile(random, corpus))
        case 2:
            fields = cbrrr.decode_dag_cbor(value)
            assert isinstance(fields, dict)
            fields[random.choice([*fields, "x"])] = hostile(random, corpus)
            value = encode(fields)
        case _:
            fields = cbrrr.decode_dag_cbor(value)
            assert isinstance(fields, dict)
            for entry in [e for e in fields.get("e", []) if random.random() < 0.3]:
                entry[random.choice(["p", "k", "v", "t"])] = random.choice([hostile(random, corpus), 0, b"x/y", None])
            value = encode(fields)
    # Links are to hashes: whoever links to the changed block changes too, up to the commit.
    renamed = {victim: b"\x01\x71\x12\x20" + sha256(value).digest()}
    blocks[victim] = value
    for _ in range(40):
        stale = next(((c, old) for old in renamed for c, b in blocks.items() if c != old and old in b), None)
        if stale is None:
            break
        cid, old = stale
        blocks[cid] = blocks[cid].replace(old, renamed[old])
        renamed[cid] = b"\x01\x71\x12\x20" + sha256(blocks[cid]).digest()
    sections = [renamed.get(cid, cid) + block for cid, block in blocks.items()]
    root = renamed.get(body["commit"].cid_bytes, body["commit"].cid_bytes)
    header = encode({"version": 1, "roots": [cbrrr.CID(root)]})
    body["blocks"] = b"".join(varint(len(part)) + part for part in [header, *sections])
    body["commit"] = cbrrr.CID(root)
    for op in body["ops"]:
        if op["cid"] is not None:
            op["cid"] = cbrrr.CID(renamed.get(op["cid"].cid_bytes, op["cid"].cid_bytes))
    return frame_of(body)


def claim_much(random: Random, corpus: Corpus) -> bytes:
    """Containers that claim more than there is, anywhere in a commit, or as many as there is room for."""
    size = corpus.size(random)
    value = Raw(random.choice([lambda: claims(random, size), lambda: head(4, size) + b"\x80" * size])())
    if random.random() < 0.3:
        return bytes(value)
    body = corpus.commit(random)
    body[random.choice(["a", "ops", "repo", "blocks", "zzzzzzzzzzzz"])] = value
    return frame_of(body)


def untouched(random: Random, corpus: Corpus) -> bytes:
    """As it came."""
    return corpus.any(random)


MUTATIONS: Sequence[Callable[[Random, Corpus], bytes]] = [
    *(flip, flip_early, truncate, splice, repeat_span, noise, change_field, change_field, not_a_frame),
    *(change_ops, change_car, change_block, change_block, claim_much, untouched),
]


def frame_of(body: Mapping[str, Any]) -> bytes:
    """A commit frame."""
    return encode({"op": 1, "t": "#commit"}) + encode(dict(body))


def varint(n: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


# What is checked.


@dataclass
class Report:
    """What became of the frames."""

    frames: int = 0
    in_scope: int = 0
    out_of_scope: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    proofs: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_mutation: str = ""
    faults: list[str] = field(default_factory=list)


class Fault(Exception):
    """What came out is not what `parse` promises."""


def fuzz(corpus: Corpus, frames: int, seed: int, *, slow: float = SLOW) -> Report:
    """Make *frames* mutated frames of *corpus*, and see what becomes of them. More than *slow* seconds are a fault."""
    random = Random(seed)
    report = Report()
    for number in range(frames):
        mutation = random.choice(MUTATIONS)
        data = mutation(random, corpus)
        if random.random() < 0.05:
            changed = bytearray(data or b"\0")
            changed[random.randrange(len(changed))] = random.randrange(256)
            data = bytes(changed)
        where = f"frame {number} of seed {seed}, {mutation.__name__}, {len(data)} bytes"
        started = time.process_time()
        try:
            parsed = parse(data, corpus.scope)
            _check(parsed, data, corpus.scope)
            follow(parsed, report)
        except Fault as fault:
            report.faults.append(f"{where}: {fault}")
        except Exception:  # noqa: BLE001
            report.faults.append(f"{where}: {traceback.format_exc()}")
        else:
            _count(parsed, report)
        took = time.process_time() - started
        if took > report.slowest:
            report.slowest, report.slowest_mutation = took, where
        if took > slow:
            report.faults.append(f"{where}: took {took:.1f} s")
        report.frames += 1
    return report


def follow(parsed: Frame, report: Report) -> None:
    """What is done with the events of a frame next: commits are proven, of the repository that we have the key of."""
    for event in parsed.events:
        if isinstance(event, Commit) and event.proof is not None:
            proof = event.proof
            try:
                before = tree_before(proof.data, proof.ops, proof.blocks)
                check_signature(proof.commit, multikey(DID))
            except NotProven as e:
                str(e).encode()
                report.proofs[e.reason] += 1
            else:
                report.proofs["proven" if before == proof.prev_data else "other-tree-before"] += 1


def _check(parsed: Frame, data: bytes, scope: Scope) -> None:
    if not isinstance(parsed, Frame) or not isinstance(parsed.events, tuple):
        raise Fault(f"a {type(parsed).__name__} came out")
    if not (parsed.seq is None or (type(parsed.seq) is int and 0 <= parsed.seq < 2**63)):
        raise Fault(f"seq is {parsed.seq!r:.80}")
    for event in parsed.events:
        if not isinstance(event, get_args(Event)):
            raise Fault(f"an event is a {type(event).__name__}")
        if isinstance(event, Rejected):
            # Postgres takes what can be encoded, and a reason is a word to count by.
            if not _REASON.fullmatch(event.reason) or len(event.detail) > 2000:
                raise Fault(f"the reason is {event.reason!r}, of {len(event.detail)} characters of detail")
            f"{event.detail}{event.did}".encode()
        elif isinstance(event, Commit):
            for op in event.ops:
                if not op.collection.startswith(scope.prefixes):
                    raise Fault(f"a record of {op.collection} is not in scope")
                if isinstance(op, RecordWritten):
                    orjson.loads(op.json)
                    if b"\\u0000" in op.json.replace(b"\\\\", b""):
                        raise Fault("a record has U+0000")
    if not parsed.events and _concerns_us(data, scope):
        raise Fault("it concerns us, and nothing came out")


def _concerns_us(data: bytes, scope: Scope) -> bool:
    """By another decoder, as far as that one reads it."""
    if len(data) > 100_000:
        return False
    try:
        header, body = cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(data)
    except ValueError:
        return False
    if not isinstance(header, dict) or not isinstance(body, dict):
        return True
    if header.get("op") != 1 or header.get("t") not in ("#commit", "#sync", "#identity", "#account"):
        return True
    did, ops = body.get("repo", body.get("did")), body.get("ops")
    paths = [op.get("path") for op in ops if isinstance(op, dict)] if isinstance(ops, list) else []
    return (isinstance(did, str) and did in scope.tracked) or any(
        isinstance(path, str) and path.startswith(scope.prefixes) for path in paths
    )


def _count(parsed: Frame, report: Report) -> None:
    rejected = [event for event in parsed.events if isinstance(event, Rejected)]
    report.reasons.update(event.reason for event in rejected)
    if rejected:
        report.rejected += 1
    elif parsed.events:
        report.in_scope += 1
    else:
        report.out_of_scope += 1


def main() -> int:
    """Fuzz, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--largest", type=int, default=5_000_000, help="bytes of the largest frames, one in hundreds")
    arguments = parser.parse_args()
    frames = corpus(arguments.largest)
    fuzz(frames, 1000, -1)  # what is imported and cached at first use is not what grows
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    report = fuzz(frames, arguments.frames, arguments.seed)
    seconds = time.perf_counter() - started
    for fault in report.faults[:20]:
        print(fault)
    print(
        json.dumps(
            {
                "benchmark": "fuzz_frames",
                "frames": report.frames,
                "seed": arguments.seed,
                "faults": len(report.faults),
                "in_scope": report.in_scope,
                "out_of_scope": report.out_of_scope,
                "rejected": report.rejected,
                "reasons": dict(report.reasons.most_common()),
                "proofs": dict(report.proofs.most_common()),
                "slowest_ms": round(report.slowest * 1000, 1),
                "slowest": report.slowest_mutation,
                "rss_growth_mb": round((process.memory_info().rss - before) / 1e6, 1),
                "rss_peak_mb": round(_peak() / 1e6),
                "seconds": round(seconds),
            }
        )
    )
    return 1 if report.faults else 0


def _peak() -> int:
    """The largest resident memory so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
