"""The frames and events that wait for the handlers of one connection.

The socket is read all the time, even while a handler runs: otherwise the server would buffer without limit,
and a pong would not be seen. Waiting frames are counted, and too many of them end the connection. Too many
events of the channel layer are dropped.
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

logger = logging.getLogger("realtime.serving")

#: The events that only a server may report.
SERVER_EVENTS = frozenset({"websocket.connect", "websocket.receive", "websocket.disconnect"})
#: Frames that may wait in all, as a multiple of MAX_INBOUND_QUEUE, if handlers take them slowly.
MOST_QUEUES = 10
#: Events of the layer that may wait for a busy handler. Layers, too, drop what exceeds their capacity.
MAX_EVENTS = 1000
#: The longest `realtime.v1` ping or pong, in bytes. Longer frames go to the handler unparsed.
LONGEST_CONTROL = 64
#: The reasons with which frames still go to the handlers. A write may notice that the client closed before
#: everything that the client sent was read.
_STILL_READ = frozenset({None, CloseReason.CLIENT_CLOSED})


class Inbox:
    """One queue, in order of arrival.

    Args:
        connection: The connection that is read.
        settings: Give the bounds of the queue.
    """

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
        # Not an asyncio.Queue: an empty one takes a tenth of all the memory of a connection.
        self._events: list[Event] = []
        self._arrival: asyncio.Future[None] | None = None
        # The number of waiting frames, the number that came since a handler took one, and their bytes.
        self._frames_waiting = 0
        self._frames_since = 0
        self._bytes_waiting = 0

    @property
    def empty(self) -> bool:
        return not self._events

    def arrival(self) -> asyncio.Future[None]:
        """Return a future that is done at the next arrival. For one task at a time, while this is `empty`."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    def take(self) -> Event:
        """Remove and return the event that has waited longest.

        Raises:
            IndexError: No event waits.
        """
        event = self._events.pop(0)
        if event["type"] == "websocket.receive":
            self._frames_waiting -= 1
            self._frames_since = 0
            self._bytes_waiting -= _size(event)
        return event

    def put(self, event: Event) -> bool:
        """Queue an event of the channel layer.

        Returns:
            False if it has no type, or the type of an event that only a server may report.
        """
        if not is_for_handlers(event):
            return False
        if len(self._events) < MAX_EVENTS:
            self._queue(event)
        else:
            metrics.events_dropped.inc()
        return True

    def _queue(self, event: Event) -> None:
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        """Wake the task that waits for an arrival."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def read(self, receive: Receive) -> None:
        """Read the server's events until it reports that the connection is over."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                if self._connection.reason in _STILL_READ and not self._handled_here(event):
                    if self._frames_since >= self._max_frames:
                        # All frames of one packet are read in one turn of the loop. Give a handler that is
                        # not busy a turn, so that it takes one now.
                        await asyncio.sleep(0)
                    self._queue_frame(event)
                continue
            if event["type"] == "websocket.disconnect":
                # Evict now, not when a busy handler comes to it: until then other code would write to a
                # socket that is gone.
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

    def _handled_here(self, event: Event) -> bool:
        """Evict for a frame that is too large, and take pings and pongs.

        Returns:
            False if the frame must go to a handler.
        """
        text, connection, size = event.get("text"), self._connection, _size(event)
        if size > self._max_message:
            lifecycle.evict(connection, CloseReason.TOO_LARGE)
            return True
        if text is not None and connection.speaks_v1 and size <= LONGEST_CONTROL and self._took_control(text):
            return True
        if connection.hub is not None:
            connection.hub.heartbeat.heard(connection)
        return False

    def _took_control(self, text: str) -> bool:
        """Answer a ping or take a pong of `realtime.v1`; return False for any other frame."""
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


def is_for_handlers(event: Event) -> bool:
    """Return False if an event of the channel layer has no type, or a type that only a server may report."""
    kind = event.get("type")
    return isinstance(kind, str) and kind not in SERVER_EVENTS


def _size(event: Event) -> int:
    """Return the bytes of a frame's payload."""
    text = event.get("text")
    return len(event["bytes"]) if text is None else len(text.encode(errors="replace"))
