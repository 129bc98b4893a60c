"""WebSocket frames into messages, whatever their fragments, the pieces they arrive in, and the sizes they claim."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from atdata_indexer.stream import Messages

LIMIT = 1000
PAYLOAD = st.binary(max_size=20) | st.sampled_from([b"x" * n for n in (125, 126, 127, LIMIT)])


def wire(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    return Frame(opcode, data, fin).serialize(mask=False)


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """*data*, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Messages, and how they are sent: in fragments, some of them empty, with control frames anywhere between."""
    sent, messages = b"", []
    control = st.sampled_from([b"", wire(Opcode.PING, b"?"), wire(Opcode.PONG, b"!"), wire(Opcode.PONG, b"!" * 125)])
    for fragments in draw(st.lists(st.lists(PAYLOAD, min_size=1, max_size=4), max_size=6)):
        message = b"".join(fragments)
        if len(message) <= LIMIT:
            messages.append(message)
        for n, fragment in enumerate(fragments):
            sent += draw(control)
            sent += wire(Opcode.CONT if n else Opcode.BINARY, fragment, fin=n == len(fragments) - 1)
    return messages, sent + draw(control)


@given(conversations().flatmap(lambda c: st.tuples(st.just(c[0]), pieces(c[1]))))
def test_messages_come_out_whole_and_in_order(conversation: tuple[list[bytes], list[bytes]]) -> None:
    """However a message was fragmented and its bytes arrive, it comes out as it went in; too long ones do not."""
    expected, sent = conversation
    messages = Messages(LIMIT)
    assert [message for data in sent for message in messages.feed(data)] == expected
    assert messages.error is None


@given(
    st.lists(
        st.builds(
            lambda first, length, data: bytes([first]) + length(len(data)) + data,
            st.sampled_from([0x82, 0x82, 0x82, 0x02, 0x01, 0x00, 0x80, 0x89, 0x8A]) | st.integers(0, 255),
            st.sampled_from(
                [
                    lambda n: bytes([n]),
                    lambda n: b"\x7e" + n.to_bytes(2, "big"),
                    lambda n: b"\x7f" + n.to_bytes(8, "big"),
                    lambda n: bytes([0x80 | n]),
                ]
            ),
            st.binary(max_size=125),
        ),
        max_size=8,
    ).map(b"".join)
    | st.binary(max_size=60),
)
@example(wire(Opcode.CONT))
@example(wire(Opcode.BINARY, fin=False) + wire(Opcode.BINARY))
@example(b"\x03\x7e")
def test_the_library_reads_the_same(data: bytes) -> None:
    """websockets' own parser finds the same messages in the same bytes, and what it refuses is refused."""
    library = ClientProtocol(parse_uri("ws://relay"), state=State.OPEN, max_size=None)
    library.receive_data(data)
    expected, message = [], b""
    for frame in library.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode in DATA_OPCODES:
            message += frame.data
            if frame.fin:
                expected.append(message)
                message = b""
    ours = Messages(10**6)
    assert ours.feed(data) == expected
    if library.parser_exc is not None:
        # A header is judged when it is whole, and what a close frame says is for the library to judge.
        ours.feed(bytes(8))
        assert ours.error or ours.close


@pytest.mark.parametrize("claimed", [LIMIT + 1, 2**31, 2**63])
def test_claimed_sizes_take_no_memory(claimed: int) -> None:
    """Of a message beyond the limit nothing is kept, however much of it arrives."""
    messages = Messages(LIMIT)
    assert messages.feed(b"\x82\x7f" + claimed.to_bytes(8, "big")) == []
    for _ in range(min(claimed // LIMIT, 50)):
        assert messages.feed(bytes(LIMIT)) == []
    assert len(messages._message) == len(messages._rest) == 0


def test_a_message_that_is_too_long_is_read_past() -> None:
    """It is counted at its end, be it one frame or many, and what follows is read as ever."""
    messages = Messages(LIMIT)
    long = wire(Opcode.BINARY, bytes(LIMIT + 1))
    assert messages.feed(wire(Opcode.BINARY, b"before") + long + wire(Opcode.BINARY, b"after")) == [b"before", b"after"]
    assert messages.oversize == 1
    assert messages.feed(wire(Opcode.BINARY, bytes(LIMIT), fin=False) + wire(Opcode.CONT, b"x", fin=False)) == []
    assert messages.oversize == 1
    assert messages.feed(wire(Opcode.CONT) + wire(Opcode.BINARY, b"last")) == [b"last"]
    assert messages.oversize == 2
    assert messages.whole == 5
    assert messages.error is None


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x82\x81\0\0\0\0x", "a server masks nothing"),
        (b"\xc2\x01x", "reserved bits are set"),
        (b"\x83\x00", "a fragment continues nothing, or a message begins within another"),
        (b"\x80\x00", "a fragment continues nothing, or a message begins within another"),
        (b"\x02\x00\x82\x00", "a fragment continues nothing, or a message begins within another"),
        (b"\x09\x00", "a control frame is fragmented or too long"),
        (b"\x89\x7e\x00\x7e", "a control frame is fragmented or too long"),
        (b"\x8b\x00", "there is no opcode 11"),
        (b"\x02\x00" + b"\x00\x00" * 10_000, "a message in more than 10000 fragments"),
        (b"\x8a\x00" * 1_001, "a flood of control frames"),
    ],
)
def test_what_breaks_the_protocol(data: bytes, error: str) -> None:
    """It is named, what came before it counts, and nothing after it does."""
    messages = Messages(LIMIT)
    assert messages.feed(b"\x82\x01a" + data + b"\x82\x01b") == [b"a"]
    assert messages.error == error
    assert messages.feed(b"\x82\x01c") == []


def test_nothing_counts_after_a_close() -> None:
    """The frame is kept for the library to answer."""
    messages = Messages(LIMIT)
    close = wire(Opcode.CLOSE, b"\x03\xe9bye")
    assert messages.feed(close[:3]) == []
    assert messages.close is None
    assert messages.feed(close[3:] + wire(Opcode.BINARY, b"late")) == []
    assert (messages.close, messages.error) == (close, None)


def test_signs_of_life() -> None:
    """Messages are, and control frames are, but not those within a message that has not ended."""
    messages = Messages(LIMIT)
    messages.feed(wire(Opcode.PING, b"1") + wire(Opcode.PONG) + wire(Opcode.BINARY))
    assert (messages.whole, messages.ping) == (3, b"1")
    messages.feed(wire(Opcode.BINARY, b"x", fin=False))
    messages.feed(wire(Opcode.PING, b"2") + wire(Opcode.PING, b"3") + wire(Opcode.CONT, b"x", fin=False))
    assert (messages.whole, messages.ping) == (3, b"3")
    assert messages.feed(wire(Opcode.CONT, b"x")) == [b"xxx"]
    assert messages.whole == 4
