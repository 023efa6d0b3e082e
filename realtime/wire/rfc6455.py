"""Build WebSocket frames of a server, and read short ones of a client (RFC 6455 section 5.2)."""

TEXT = 0x1
BINARY = 0x2
PING = 0x9
PONG = 0xA

_FIN = _MASKED = 0x80
_RESERVED = 0x70
_MASK = 4
_SHORTEST_LENGTH = 0x7F
_HEADER = 2 + _MASK
#: The longest payload of a short frame, which has its length in the second byte.
_SHORT = 125
#: Bytes of the longest short frame of a client.
LONGEST_SHORT = _HEADER + _SHORT
#: The most digits that the number of a ping has in a pong.
LONGEST_NUMBER = 15


def frame(opcode: int, payload: bytes) -> bytes:
    """Build one frame of a server: unfragmented, without mask or extension."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8) + payload


def short_frame(data: bytes) -> tuple[int, bytes] | None:
    """Read bytes that are exactly one short frame of a client: final, masked, without extension.

    Returns:
        The opcode and the payload; None for any other bytes.
    """
    size = len(data) - _HEADER
    if not 0 <= size <= _SHORT or data[1] != _MASKED | size or data[0] & (_FIN | _RESERVED) != _FIN:
        return None
    mask = (data[2:_HEADER] * (size // _MASK + 1))[:size]
    payload = (int.from_bytes(data[_HEADER:]) ^ int.from_bytes(mask)).to_bytes(size)
    return data[0] ^ _FIN, payload


def is_number(payload: bytes) -> bool:
    """Return True if the payload of a pong can be the number of a ping."""
    return payload.isdigit() and len(payload) <= LONGEST_NUMBER


class FrameCounter:
    """Counts the frames in what a client sends, without parsing more than their headers."""

    __slots__ = ("_head", "_skip")

    def __init__(self) -> None:
        # The part of a header that has come, and the bytes until the next header.
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes) -> tuple[int, int]:
        """Count the frames that begin in the next bytes.

        Returns:
            The number of headers that are complete now, and the bytes of the payload that they announce.
        """
        if self._head:
            data, self._head = self._head + data, b""
        frames = payload = 0
        at, end = self._skip, len(data)
        while at + 2 <= end:
            second = data[at + 1]
            length = second & _SHORTEST_LENGTH
            head = _HEADER if second & _MASKED else 2
            if length > _SHORT:
                extended = 2 if length == _SHORT + 1 else 8
                if at + 2 + extended > end:
                    break
                length = int.from_bytes(data[at + 2 : at + 2 + extended])
                head += extended
            frames += 1
            payload += length
            at += head + length
        if at < end:
            self._head, self._skip = data[at:], 0
        else:
            self._skip = at - end
        return frames, payload
