"""Frames built here are read by an independent parser of RFC 6455."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from realtime.wire import rfc6455


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
