"""A connection without a server: a list stands in for its socket, and everything behind it is real."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from realtime import publishing
from realtime.errors import LayerUnavailable
from realtime.hub.connection import Connection
from realtime.models import Connection as Record
from realtime.serving import lifecycle
from realtime.transports.asgi import AsgiTransport, Event, Options
from realtime.wire import frames
from tests.support.doubles.watching import Watching

OPTIONS = Options(max_unsent=1000, send_timeout=5)


class Peer:
    """A connection that keeps each event it was sent in `sent`. A failed write evicts it, as in production.

    Args:
        v1: The client offers `realtime.v1`.
        options: The bounds of its transport.
        on_event: Called with each event that the connection hands to its consumer.
    """

    def __init__(
        self,
        *,
        v1: bool = True,
        options: Options = OPTIONS,
        on_event: Callable[[Event], object] = lambda _: None,
    ) -> None:
        self.sent: list[Event] = []
        self.broken = False
        """Each write fails."""
        self.suspended = False
        """No write returns, as on a socket that the client does not read."""
        scope = {
            "path": "/ws/",
            "client": ["127.0.0.1", 5],
            "subprotocols": [frames.SUBPROTOCOL] if v1 else [],
        }
        self.connection = Connection(scope, on_event)
        self.connection.transport = AsgiTransport(
            self._send, options, Watching(lambda reason: lifecycle.evict(self.connection, reason))
        )

    async def _send(self, event: Event) -> None:
        if self.broken:
            raise OSError("gone")
        if self.suspended and event["type"] == "websocket.send":
            await asyncio.Event().wait()
        self.sent.append(event)

    # The transport then drives it by hand, as it does with a server that it knows.
    _send.__module__ = "daphne.server"

    async def open(self, *names: str) -> Self:
        """Join these groups, be admitted and be accepted."""
        for name in names:
            await lifecycle.group_add(self.connection, name)
        await lifecycle.admit(self.connection)
        await self.connection.transport.accept({"type": "websocket.accept"})
        lifecycle.accepted(self.connection)
        return self

    @property
    def texts(self) -> list[str]:
        """The texts of the messages that were sent."""
        return [event["text"] for event in self.sent if event["type"] == "websocket.send"]

    async def record(self) -> Record:
        """The row of this connection. Raises Connection.DoesNotExist if there is none."""
        return await Record.objects.aget(pk=self.connection.id)

    async def receives(self, group: str, *, within: float) -> float:
        """Publish to the group until a message arrives.

        Args:
            group: A group of this connection.
            within: Seconds after which to give up.

        Returns:
            The seconds from the first attempt to the arrival.

        Raises:
            TimeoutError: Nothing arrived in time.
        """
        began, number = time.monotonic(), 0
        async with asyncio.timeout(within):
            while True:
                number += 1
                with suppress(LayerUnavailable):
                    await publishing.apublish(group, {"try": number, "group": group, "at": began})
                await asyncio.sleep(0.03)
                if any(str(began) in text for text in self.texts):
                    return time.monotonic() - began
