"""The frames that a server sends, for clients that only have to be fast (RFC 6455 section 5.2)."""

import struct


def taken(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the whole frames in these bytes, each as opcode and payload, and the rest of the bytes."""
    found, at, size = list[tuple[int, bytes]](), 0, len(data)
    while size - at >= 2:
        length, head = data[at + 1] & 0x7F, 2
        if length > 125:
            head = 4 if length == 126 else 10
            if size - at < head:
                break
            length = int.from_bytes(data[at + 2 : at + head])
        if size - at < head + length:
            break
        found.append((data[at] & 0x0F, data[at + head : at + head + length]))
        at += head + length
    return found, data[at:]


def close_code(payload: bytes) -> int:
    """Return the code in a close frame; 1005 if it has none (RFC 6455 section 7.1.5)."""
    return int(struct.unpack("!H", payload[:2])[0]) if len(payload) >= 2 else 1005
