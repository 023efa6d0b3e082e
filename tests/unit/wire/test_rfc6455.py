"""Frames built here are read by an independent parser of RFC 6455."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from realtime.wire import rfc6455
from tests.support.clients.raw import frame as client_frame


def read(wire: bytes, count: int) -> list[Frame]:
    """Read `count` frames as the library reads those of a server. Assert that no bytes are left."""
    stream = StreamReader()
    stream.feed_data(wire)
    stream.feed_eof()
    frames = []
    for _ in range(count):
        parsing = Frame.parse(stream.read_exact, mask=False)
        with pytest.raises(StopIteration) as done:
            next(parsing)
        frames.append(done.value.value)
    assert stream.buffer == b""
    return frames


payloads = st.one_of(
    st.binary(max_size=300), st.sampled_from([125, 126, 127, 65535, 65536, 70000]).map(bytes)
)


@given(payload=payloads, opcode=st.sampled_from([rfc6455.TEXT, rfc6455.BINARY]))
@settings(deadline=None)
def test_a_frame_is_read_as_it_was_made(payload: bytes, opcode: int) -> None:
    assert read(rfc6455.frame(opcode, payload), 1) == [Frame(Opcode(opcode), payload, fin=True)]


@given(parts=st.lists(payloads, max_size=5))
@settings(deadline=None)
def test_concatenated_frames_stay_separate(parts: list[bytes]) -> None:
    wire = b"".join(rfc6455.frame(rfc6455.TEXT, part) for part in parts)
    assert [frame.data for frame in read(wire, len(parts))] == parts


def of_a_client(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    """Build the bytes of a client's frame with the library: with a mask."""
    return Frame(opcode, payload, fin=fin).serialize(mask=True)


COMPRESSED = bytes((0x80 | 0x40 | Opcode.TEXT,)) + of_a_client(Opcode.TEXT, b"1")[1:]


@given(payload=st.binary(max_size=125), opcode=st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PONG]))
def test_a_short_frame_of_a_client_is_read(payload: bytes, opcode: Opcode) -> None:
    assert rfc6455.short_frame(of_a_client(opcode, payload)) == (opcode, payload)


@given(wire=st.binary(max_size=140))
def test_bytes_that_are_no_frame_raise_nothing(wire: bytes) -> None:
    read = rfc6455.short_frame(wire)
    assert read is None or len(read[1]) == len(wire) - 6


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(of_a_client(Opcode.PONG, b"17")[:-1], id="a part of a frame"),
        pytest.param(of_a_client(Opcode.PONG, b"17") * 2, id="two frames"),
        pytest.param(of_a_client(Opcode.TEXT, b"1", fin=False), id="a part of a message"),
        pytest.param(COMPRESSED, id="a compressed frame"),
        pytest.param(of_a_client(Opcode.TEXT, bytes(126)), id="a longer frame"),
        pytest.param(Frame(Opcode.PONG, b"17").serialize(mask=False), id="a frame without mask"),
    ],
)
def test_bytes_other_than_one_short_frame_are_not_read(wire: bytes) -> None:
    assert rfc6455.short_frame(wire) is None


def test_a_ping_is_a_ping() -> None:
    (frame,) = read(rfc6455.frame(rfc6455.PING, b"17"), 1)
    assert (frame.opcode, frame.data) == (Opcode.PING, b"17")


@given(parts=st.lists(st.tuples(payloads, st.booleans()), max_size=6), data=st.data())
@settings(deadline=None)
def test_frames_are_counted_however_they_are_cut(
    parts: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    wire = b"".join(client_frame(payload, masked=masked) for payload, masked in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    counter, frames, size = rfc6455.FrameCounter(), 0, 0
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        more, payload = counter.feed(wire[begin:end])
        frames, size = frames + more, size + payload
    assert (frames, size) == (len(parts), sum(len(payload) for payload, _ in parts))


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_can_be_counted(pieces: list[bytes]) -> None:
    counter = rfc6455.FrameCounter()
    for piece in pieces:
        frames, size = counter.feed(piece)
        # A header has two bytes at least.
        assert 0 <= frames <= len(piece) // 2 + 1
        assert size >= 0
