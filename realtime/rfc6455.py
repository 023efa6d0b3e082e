"""WebSocket frames as a server sends them: RFC 6455 section 5.2, unfragmented, without mask or extension."""

TEXT = 0x1
BINARY = 0x2
PING = 0x9

_FIN = 0x80


def frame(opcode: int, payload: bytes) -> bytes:
    """The frame with this payload, header and all."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8) + payload
