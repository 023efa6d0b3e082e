"""Read what the kernel knows of a TCP connection: the bytes on their way to the peer, and the peer's room.

This works on Linux only (`SIOCOUTQ`, `TCP_INFO`). On other systems, and for sockets that are not TCP, nothing
is known. Behind a proxy the connection is the one to the proxy, which may take bytes that the client never
reads.
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
    """Bytes that the peer's kernel has not acknowledged."""
    acknowledged: int
    """Bytes that the peer's kernel has acknowledged since the connection opened."""
    window: int
    """Bytes for which the peer's kernel has room. If its program does not read, each byte that arrives takes
    one from it.
    """


def look(connection: Any) -> Line | None:
    """Read the line of a connected socket.

    Args:
        connection: A socket, or an object with its `fileno` and `getsockopt`.

    Returns:
        None if nothing is known, as for a closed socket. No exception is raised.
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
