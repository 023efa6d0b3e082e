"""The frames and events that wait for the handlers of one connection.

The socket is read all the time, even while a handler runs: otherwise the server would buffer without limit,
and a pong would not be seen. Waiting frames are counted, and too many of them end the connection. Too many
events of the channel layer are dropped.

The frames and bytes per second are counted before a frame is parsed. A client above the rate is told, and
nothing is read from it for a second. If it is still above the rate then, its connection ends.
"""

import asyncio
import logging
import time

from realtime import metrics
from realtime.closing import CloseReason
from realtime.conf import Settings
from realtime.errors import BadFrame, ErrorCode
from realtime.hub.connection import Connection
from realtime.limits import refusals
from realtime.limits.rates import (
    FEW_BYTES,
    FEW_FRAMES,
    GRACE,
    SOME_BYTES,
    SOME_FRAMES,
    ClientRates,
    Verdict,
)
from realtime.serving import lifecycle
from realtime.transports.asgi import Event, Receive
from realtime.transports.inflow import Turn, turnstiles
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
#: Bytes of a client that may wait until they are parsed, while this process is busy with those of others.
MOST_WAITING = 256 * 1024
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
        "_rates",
        "_settings",
    )

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        # Made with the first frame that counts: most connections only listen.
        self._rates: ClientRates | None = None
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

    @property
    def has_frames(self) -> bool:
        """True if a frame waits for a handler."""
        return self._frames_waiting > 0

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
        """Read the server's events until it reports that the connection is over, or must be read no more."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                if not await self._read_frame(event):
                    return
                continue
            if event["type"] == "websocket.disconnect":
                # Evict now, not when a busy handler comes to it: until then other code would write to a
                # socket that is gone.
                lifecycle.evict(self._connection, self._connection.transport.ended_by(event), event)
                self._queue(event)
                return
            self._queue(event)

    async def _read_frame(self, event: Event) -> bool:
        """Take one frame. Return False if the server must not be asked for further events."""
        connection, size = self._connection, _size(event)
        transport = connection.transport
        if connection.reason is CloseReason.RATE_LIMITED:
            return transport.stop_reading()
        if not transport.counts_frames and not (self._rates is None and self._took_awaited_pong(event, size)):
            while (verdict := self._verdict(size)) is not Verdict.PASSES:
                if connection.reason not in _STILL_READ or not self._may_wait(verdict, size):
                    # Also a client that floods after this process has closed it for another reason.
                    return transport.stop_reading()
                # What the client sends meanwhile waits in the kernel, where it costs nothing.
                transport.pause_reading()
                pauses = turnstiles()
                try:
                    await asyncio.sleep(pauses.begin_rest(rest(self._settings)))
                finally:
                    pauses.end_rest()
                    transport.resume_reading()
        if connection.reason in _STILL_READ and not self._handled_here(event, size):
            if self._frames_since >= self._settings.MAX_INBOUND_QUEUE:
                # All frames of one packet are read in one turn of the loop. Give a handler that is not busy a
                # turn, so that it takes one now.
                await asyncio.sleep(0)
            self._queue_frame(event, size)
        return True

    def _queue_frame(self, event: Event, size: int) -> None:
        most, largest = self._settings.MAX_INBOUND_QUEUE, self._settings.MAX_MESSAGE_BYTES
        self._frames_waiting += 1
        self._frames_since += 1
        self._bytes_waiting += size
        if (
            self._frames_since > most
            or self._frames_waiting > MOST_QUEUES * most
            or self._bytes_waiting > most * largest
        ):
            lifecycle.evict(self._connection, CloseReason.RATE_LIMITED)
        elif self._connection.reason in _STILL_READ:
            self._queue(event)

    # -- rates --------------------------------------------------------------------------------------

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        """Count frames that the transport has read, and say when they are to be parsed.

        Args:
            frames: The number of frames.
            size: The bytes of their payload.
            waiting: The bytes of the client that were read and are not parsed yet.
        """
        verdict = self._verdict(size, frames, is_full=waiting > MOST_WAITING)
        if verdict is Verdict.PASSES:
            if self._rates is None or self._rates.sent_at_most(FEW_FRAMES, FEW_BYTES):
                return Turn.NOW
            return Turn.SOON if self._rates.sent_at_most(SOME_FRAMES, SOME_BYTES) else Turn.IN_TURN
        if self._may_wait(verdict, size, frames):
            return Turn.LATER
        self._connection.transport.stop_reading()
        return Turn.NEVER

    def _verdict(self, size: int, number: int = 1, *, is_full: bool = False) -> Verdict:
        """Count frames, and return what becomes of them."""
        frames_per_second = self._settings.MAX_FRAMES_PER_SECOND
        bytes_per_second = self._settings.MAX_BYTES_PER_SECOND
        if frames_per_second is None and bytes_per_second is None:
            return Verdict.PASSES
        now = time.monotonic()
        if self._rates is None:
            self._rates = ClientRates(frames_per_second, bytes_per_second, now)
        return self._rates.take(size, now, number, is_full=is_full)

    def _may_wait(self, verdict: Verdict, size: int, number: int = 1) -> bool:
        """Tell a client that it is above the rate. Return False if its connection ends instead."""
        connection = self._connection
        if verdict is Verdict.WAIT:
            return True
        limit = self._rates.exceeded(size, number) if self._rates is not None else ""
        refusals.note(
            limit or "MAX_BYTES_PER_SECOND",
            refusals.client_in_words(connection.address),
            "It sends more than its connection may. If your clients need more, raise the limit",
        )
        if verdict is Verdict.END or not (connection.speaks_v1 and connection.transport.accepted):
            lifecycle.evict(connection, CloseReason.RATE_LIMITED)
            return False
        detail = "You send more than you may. Nothing more is read from you for a second."
        lifecycle.write(connection, frames.Error(code=ErrorCode.RATE_LIMITED, detail=detail))
        return not connection.gone

    def _took_awaited_pong(self, event: Event, size: int) -> bool:
        """Take a pong that answers a ping of this process. Such pongs never come too often."""
        text, connection = event.get("text"), self._connection
        if text is None or not connection.speaks_v1 or size > LONGEST_CONTROL or connection.hub is None:
            return False
        n = frames.pong_number(text.encode(errors="replace"))
        return n is not None and connection.hub.heartbeat.ponged(connection, n)

    # -- frames that need no handler ------------------------------------------------------------------

    def _handled_here(self, event: Event, size: int) -> bool:
        """Evict for a frame that is too large, and take pings and pongs.

        Returns:
            False if the frame must go to a handler.
        """
        text, connection = event.get("text"), self._connection
        if size > self._settings.MAX_MESSAGE_BYTES:
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


def rest(settings: Settings) -> float:
    """Return the seconds for which nothing is read from a client that sends more than it may.

    Its pongs wait with the rest, so the time must be short against PONG_TIMEOUT.
    """
    return min(GRACE, settings.PONG_TIMEOUT / 4)


def is_for_handlers(event: Event) -> bool:
    """Return False if an event of the channel layer has no type, or a type that only a server may report."""
    kind = event.get("type")
    return isinstance(kind, str) and kind not in SERVER_EVENTS


def _size(event: Event) -> int:
    """Return the bytes of a frame's payload."""
    text = event.get("text")
    return len(event["bytes"]) if text is None else len(text.encode(errors="replace"))
