"""A transport that ends what uvicorn would wait for: until a peer that does not read has read the rest.

Writes go through ASGI. Of uvicorn's protocol only its asyncio transport is used, whose methods are public.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any

from realtime.aborting_transport import AbortingTransport
from realtime.transport import OnFailure, Send


class UvicornTransport(AbortingTransport):
    """An `AsgiTransport` that knows the asyncio transport of its connection."""

    __slots__ = ("_asyncio",)

    def __init__(
        self,
        send: Send,
        transport: asyncio.Transport,
        *,
        max_unsent: int,
        send_timeout: float,
        on_failure: OnFailure,
    ) -> None:
        super().__init__(send, max_unsent=max_unsent, send_timeout=send_timeout, on_failure=on_failure)
        self._asyncio = transport

    def abort(self) -> None:
        # Without it the kernel would go on offering the peer what it has taken. Where a loop gives no socket
        # to set it on, only that is lost.
        with suppress(Exception):
            raw = self._asyncio.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._asyncio.abort()

    def _buffered(self) -> int:
        return self._asyncio.get_write_buffer_size()


def transport_behind(send: Any) -> asyncio.Transport | None:
    """The asyncio transport (asyncio's own or uvloop's) of the connection, when this is uvicorn's `send`."""
    protocol = getattr(send, "__self__", None)
    if not type(protocol).__module__.startswith("uvicorn.protocols.websockets."):
        return None
    transport = getattr(protocol, "transport", None)
    usable = hasattr(transport, "abort") and hasattr(transport, "get_write_buffer_size")
    return transport if usable else None
