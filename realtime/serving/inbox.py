"""What came in for the handlers of one connection: frames of the client, and events of the channel layer.

The socket is read all the time, whatever the handlers do: a server that is not read from buffers without
limit, and a pong has to be seen while a handler runs. What waits is counted, and too much of it ends the
connection or is dropped.
"""

import asyncio
import logging

from realtime import metrics
from realtime.closing import CloseReason
from realtime.conf import Settings
from realtime.errors import BadFrame
from realtime.hub.connection import Connection
from realtime.serving import lifecycle
from realtime.transports.asgi import Event, Receive
from realtime.wire import frames

logger = logging.getLogger("realtime.inbox")

#: What a server reports; nobody else may.
SERVER_EVENTS = frozenset({"websocket.connect", "websocket.receive", "websocket.disconnect"})
#: How many times MAX_INBOUND_QUEUE frames may wait in all, where they come faster than they are taken.
MOST_QUEUES = 10
#: Events of the layer that may wait for a busy handler; layers too drop what is above their capacity.
MAX_EVENTS = 1000
#: A `realtime.v1` ping or pong is not longer; anything longer is not looked at before its handler does.
LONGEST_CONTROL = 64
#: What came from a connection is for its handlers while it has no reason to end, and where the client closed
#: it: a write may notice that before everything that the client had sent was read.
_STILL_READ = frozenset({None, CloseReason.CLIENT_CLOSED})


class Inbox:
    """One queue, in order of arrival."""

    __slots__ = (
        "_arrival",
        "_bytes_waiting",
        "_connection",
        "_events",
        "_frames_since",
        "_frames_waiting",
        "_max_frames",
        "_max_message",
    )

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._max_message = settings.MAX_MESSAGE_BYTES
        self._max_frames = settings.MAX_INBOUND_QUEUE
        # Not an asyncio.Queue, of which an empty one takes a tenth of all the memory of a connection.
        self._events: list[Event] = []
        self._arrival: asyncio.Future[None] | None = None
        # Of the frames that wait: how many, how many of them came since a handler took one, and their bytes.
        self._frames_waiting = 0
        self._frames_since = 0
        self._bytes_waiting = 0

    @property
    def empty(self) -> bool:
        return not self._events

    def arrival(self) -> asyncio.Future[None]:
        """Done when something has come in. For one task at a time, while this is `empty`."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    def take(self) -> Event:
        """The event that has waited longest. Raises IndexError when there is none."""
        event = self._events.pop(0)
        if event["type"] == "websocket.receive":
            self._frames_waiting -= 1
            self._frames_since = 0
            self._bytes_waiting -= _size(event)
        return event

    def put(self, event: Event) -> bool:
        """Queue an event of the layer; False when it cannot be one: without a type, or of the server's."""
        kind = event.get("type")
        if not isinstance(kind, str) or kind in SERVER_EVENTS:
            return False
        if len(self._events) < MAX_EVENTS:
            self._queue(event)
        else:
            metrics.events_dropped.inc()
        return True

    def _queue(self, event: Event) -> None:
        self._events.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def read(self, receive: Receive) -> None:
        """Read the server's events until it reports that the connection is over."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                if self._connection.reason in _STILL_READ and self._is_for_handlers(event):
                    if self._frames_since >= self._max_frames:
                        # All that came in one packet is read before anybody has a turn. A handler that is
                        # not busy takes one now, however many they are.
                        await asyncio.sleep(0)
                    self._queue_frame(event)
                continue
            if event["type"] == "websocket.disconnect":
                # Now, not when a busy handler gets to it: until then other code would write to a socket
                # that is gone.
                lifecycle.evict(self._connection, self._connection.transport.ended_by(event), event)
                self._queue(event)
                return
            self._queue(event)

    def _queue_frame(self, event: Event) -> None:
        self._frames_waiting += 1
        self._frames_since += 1
        self._bytes_waiting += _size(event)
        if (
            self._frames_since > self._max_frames
            or self._frames_waiting > MOST_QUEUES * self._max_frames
            or self._bytes_waiting > self._max_frames * self._max_message
        ):
            lifecycle.evict(self._connection, CloseReason.RATE_LIMITED)
        elif self._connection.reason in _STILL_READ:
            self._queue(event)

    def _is_for_handlers(self, event: Event) -> bool:
        """Whether the frame goes on to a handler; if not, it was answered here or ended the connection."""
        text, connection, size = event.get("text"), self._connection, _size(event)
        if size > self._max_message:
            lifecycle.evict(connection, CloseReason.TOO_LARGE)
            return False
        if text is not None and connection.speaks_v1 and size <= LONGEST_CONTROL and self._is_control(text):
            return False
        if connection.hub is not None:
            connection.hub.heartbeat.heard(connection)
        return True

    def _is_control(self, text: str) -> bool:
        """Answer a ping or take a pong of `realtime.v1`; everything else is the handlers'."""
        if '"pong"' not in text and '"ping"' not in text:
            return False
        try:
            frame = frames.parse(text)
        except BadFrame:
            return False
        match frame:
            case frames.ClientPong(n=n):
                if self._connection.hub is not None:
                    self._connection.hub.heartbeat.ponged(self._connection, n)
            case frames.ClientPing(n=n):
                lifecycle.write(self._connection, frames.Pong(n=n))
            case _:
                return False
        return True


def _size(event: Event) -> int:
    """Bytes of a frame's payload, as the client sent it."""
    text = event.get("text")
    return len(event["bytes"]) if text is None else len(text.encode(errors="replace"))
