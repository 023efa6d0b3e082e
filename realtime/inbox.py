"""What came in for the handlers of one connection: frames of the client, and events of the channel layer.

The socket is read all the time, whatever the handlers do: a server that is not read from buffers without
limit, and a pong has to be seen while a handler runs. What waits is counted, and too much of it ends the
connection or is dropped.
"""

import asyncio
import logging

from realtime import frames, lifecycle, metrics
from realtime.closing import CloseReason, of_disconnect
from realtime.conf import Settings
from realtime.connection import Connection
from realtime.transport import Event, Receive

logger = logging.getLogger("realtime.inbox")

#: What a server reports; nobody else may.
SERVER_EVENTS = frozenset({"websocket.connect", "websocket.receive", "websocket.disconnect"})
#: Events of the layer that may wait for a busy handler; layers too drop what is above their capacity.
MAX_EVENTS = 1000
#: A `realtime.v1` ping or pong is not longer; anything longer is not looked at before its handler does.
LONGEST_CONTROL = 64


class Inbox:
    """One queue, in order of arrival."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._max_message = settings.MAX_MESSAGE_BYTES
        self._max_frames = settings.MAX_INBOUND_QUEUE
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._frames_waiting = 0

    async def next(self) -> Event:
        """The event that has waited longest."""
        event = await self._events.get()
        if event["type"] == "websocket.receive":
            self._frames_waiting -= 1
        return event

    def put(self, event: Event) -> bool:
        """Queue an event of the layer; False when it cannot be one: without a type, or of the server's."""
        kind = event.get("type")
        if not isinstance(kind, str) or kind in SERVER_EVENTS:
            return False
        if self._events.qsize() < MAX_EVENTS:
            self._events.put_nowait(event)
        else:
            metrics.events_dropped.inc()
        return True

    async def read(self, receive: Receive) -> None:
        """Read the server's events until it reports that the connection is over."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                if not self._connection.gone and self._is_for_handlers(event):
                    self._frames_waiting += 1
                    self._events.put_nowait(event)
                continue
            if event["type"] == "websocket.disconnect":
                # Now, not when a busy handler gets to it: until then other code would write to a socket
                # that is gone.
                lifecycle.evict(self._connection, of_disconnect(event.get("code")), event)
                self._events.put_nowait(event)
                return
            self._events.put_nowait(event)

    def _is_for_handlers(self, event: Event) -> bool:
        """Whether the frame goes on to a handler; if not, it was answered here or ended the connection."""
        text, connection = event.get("text"), self._connection
        size = len(event["bytes"]) if text is None else len(text.encode(errors="replace"))
        if size > self._max_message:
            lifecycle.evict(connection, CloseReason.TOO_LARGE)
            return False
        if text is not None and connection.speaks_v1 and size <= LONGEST_CONTROL and self._is_control(text):
            return False
        if connection.hub is not None:
            connection.hub.pulse.heard(connection)
        if self._frames_waiting >= self._max_frames:
            lifecycle.evict(connection, CloseReason.RATE_LIMITED)
            return False
        return True

    def _is_control(self, text: str) -> bool:
        """Answer a ping or take a pong of `realtime.v1`; everything else is the handlers'."""
        if '"pong"' not in text and '"ping"' not in text:
            return False
        try:
            frame = frames.parse(text)
        except frames.BadFrame:
            return False
        match frame:
            case frames.ClientPong(n=n):
                if self._connection.hub is not None:
                    self._connection.hub.pulse.ponged(self._connection, n)
            case frames.ClientPing(n=n):
                lifecycle.write(self._connection, frames.Pong(n=n))
            case _:
                return False
        return True
