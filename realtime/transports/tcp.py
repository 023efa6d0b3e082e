"""What the kernel knows of a TCP connection: bytes on their way to the peer, and the room that it has.

Linux only (`SIOCOUTQ`, `TCP_INFO`); elsewhere, and for sockets that are not TCP, nothing is known. Behind a
proxy this is the connection to the proxy, which may take bytes that the client never reads.
"""

import fcntl
import socket
import struct
import sys
import termios
from typing import Any, NamedTuple

#: Offsets in `struct tcp_info` (include/uapi/linux/tcp.h) of tcpi_bytes_acked, Linux 4.1, and tcpi_snd_wnd,
#: Linux 5.4. Fields are only ever added at its end.
_BYTES_ACKED, _SND_WND = 120, 228
_SIZE = _SND_WND + 4


class Line(NamedTuple):
    """The bytes on their way to one peer."""

    waiting: int
    """How many the peer's kernel has not acknowledged."""
    acknowledged: int
    """How many it has, in all."""
    window: int
    """For how many more it has room. A program that does not read lets it shrink by as many as arrive."""


def look(connection: Any) -> Line | None:
    """Look at a connected socket, or at anything with its `fileno` and `getsockopt`; None where nothing is
    known.

    Raises nothing: a socket that is closed is one of which nothing is known.
    """
    if sys.platform != "linux":
        return None
    try:
        waiting = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        if len(info) < _SIZE:
            return None
        (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
        (window,) = struct.unpack_from("=I", info, _SND_WND)
    except (OSError, ValueError, AttributeError):
        return None
    return Line(int.from_bytes(waiting, sys.byteorder), acknowledged, window)
