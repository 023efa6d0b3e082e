"""`realtime.history.streams`: a message with its position, as the pub/sub layer carries it."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.history import streams
from realtime.history.positions import Position


@given(st.binary(), st.integers(0, 2**53 - 1))
def test_a_position_is_taken_off_a_message(content: bytes, offset: int) -> None:
    epoch = streams.new_epoch()
    packed = streams.MARKER + f"{epoch} {offset} ".encode() + content
    assert streams.split(packed) == (Position(epoch, offset), content)


@given(st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists, max_leaves=3))
def test_no_message_without_a_position_looks_like_one(value: object) -> None:
    for content in (msgpack.packb(value), str(value).encode(errors="replace")):
        assert streams.split(content) == (None, content)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\xc1e", b"\xc1e ", b"\xc1e x y", b"\xc1 "])
def test_a_broken_position_is_left_in_the_message(content: bytes) -> None:
    assert streams.split(content) == (None, content)


def test_epochs_are_different_names_without_escapes() -> None:
    names = {streams.new_epoch() for _ in range(100)}
    assert len(names) == 100
    assert all(name.isascii() and name.replace("-", "").replace("_", "").isalnum() for name in names)
