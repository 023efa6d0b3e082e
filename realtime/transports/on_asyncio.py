"""The base of the transports on servers that write to an asyncio transport of their own.

Messages go through the server's `send`. The asyncio transport behind it has public methods, which tell what
is buffered and abort the connection.

Private: docs/reference.md lists the public names.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any

from realtime.transports.aborting import AbortingTransport
from realtime.transports.asgi import Event, Options, Send, Watcher


class OnAsyncio(AbortingTransport):
    """An `AsgiTransport` that knows the asyncio transport of its connection.

    Args:
        send: The ASGI `send` of the connection.
        stream: The asyncio transport.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
        wrapped: True if `send` is a middleware's, and not that of the server.
    """

    __slots__ = ("_asyncio", "_wrapped")

    def __init__(
        self, send: Send, stream: asyncio.Transport, options: Options, watcher: Watcher, *, wrapped: bool
    ) -> None:
        super().__init__(send, options, watcher)
        self._asyncio = stream
        self._wrapped = wrapped

    def write(self, event: Event, size: int) -> None:
        """Write through ASGI, and tell the watcher if the server has buffered anything."""
        super().write(event, size)
        if self._asyncio.get_write_buffer_size():
            self._watcher.is_behind()

    def stop_reading(self) -> bool:
        super().stop_reading()
        # A loop may refuse this on a transport that is closing, and then nothing is read anyway.
        with suppress(RuntimeError):
            self._asyncio.pause_reading()
        return False

    def abort(self) -> None:
        # Without SO_LINGER the kernel would go on sending the peer what it has buffered. If a loop gives no
        # socket to set it on, only that is lost.
        with suppress(Exception):
            raw = self._asyncio.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._asyncio.abort()

    def _buffered(self) -> int:
        return self._asyncio.get_write_buffer_size()

    def _socket(self) -> Any:
        return self._asyncio.get_extra_info("socket")

    def _is_over(self) -> bool:
        # A transport that is closing writes its whole buffer before it ends.
        return self._asyncio.is_closing() and not self._buffered()

    def _is_held_back(self) -> bool:
        # The server itself holds a close back while the client does not read.
        return self._wrapped and not self._buffered() and self._state() == "OPEN"

    def _state(self) -> str:
        """Return the name of the state of the WebSocket; empty before the handshake."""
        raise NotImplementedError
