"""Bring group events that are no messages to the handlers of the members.

The reader of the channel layer puts events in and goes on reading. There are two lanes. In one, stale
database connections are closed before handlers run, as Channels does before each handler. That needs a
thread, which may be busy. One visit to the thread serves all events that wait, with all their members. The
members of the other lane never wait for it.
"""

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from realtime.hub.connection import Connection
from realtime.hub.fanout import Members
from realtime.hub.window import Window
from realtime.process import old_connections
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.hub")

#: Seconds of handlers after which the loop gets a turn.
SLICE = 0.005
#: Members whose handlers are called between two readings of the clock.
STRIDE = 8
#: If more events wait in a lane, its members queue them for themselves, and further events stay in the layer.
MAX_WAITING = 100

_IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})


class GroupEvent(NamedTuple):
    """An event on its way to the members of a group that the group had when the event arrived."""

    group: str
    event: Event
    members: Sequence[Connection]

    def is_for_those_of(self, other: "GroupEvent") -> bool:
        """Return True if the other event has the same group and members."""
        return self.group == other.group and self.members == other.members


class Lanes:
    """The two lanes to the handlers of all members.

    Args:
        members: The members of each group. It is read at the arrival of each event.
        window: The setting COALESCE_WINDOW, in seconds.
    """

    def __init__(self, members: Mapping[str, Members], window: float) -> None:
        self._members = members
        self._lanes = tuple(Lane(window, closes_old_connections=closes) for closes in (False, True))

    def __iter__(self) -> Iterator["Lane"]:
        return iter(self._lanes)

    async def put(self, group: str, event: Event) -> None:
        """Call the handlers of all members of the group, in their turn. If too much waits, wait."""
        lanes: tuple[list[Connection], list[Connection]] = ([], [])
        for connection in self._members.get(group, ()):
            lanes[connection.closes_old_connections].append(connection)
        for lane, members in zip(self._lanes, lanes, strict=True):
            if members:
                await lane.put(GroupEvent(group, event, members))


class Lane:
    """Events that are handled one after the other.

    Args:
        window: The setting COALESCE_WINDOW, in seconds.
        closes_old_connections: Close stale database connections before handlers run.
    """

    def __init__(self, window: float, *, closes_old_connections: bool) -> None:
        self._window = Window(window)
        self._closes_old_connections = closes_old_connections
        self._waiting: deque[GroupEvent] = deque()
        self._something = asyncio.Event()
        self._changed = asyncio.Event()
        self._closing = False
        """True while stale database connections are closed."""
        self._loop = asyncio.get_running_loop()
        self._pause_at = 0.0

    async def put(self, event: GroupEvent) -> None:
        """Queue an event. If too much waits, wait."""
        self._waiting.append(event)
        self._something.set()
        while len(self._waiting) > MAX_WAITING:
            if self._closing:
                self._leave_to_members()
            else:
                self._changed.clear()
                await self._changed.wait()

    async def run(self) -> None:
        """Call handlers until cancelled."""
        while True:
            while not self._waiting:
                self._something.clear()
                await self._something.wait()
            if (wait := self._window.left(self._waiting[0].group, self._loop.time())) > 0:
                await asyncio.sleep(wait)
            if self._closes_old_connections:
                await self._close_old_connections()
            # Events that arrive from now on may come after a pause of any length, so they wait.
            left = len(self._waiting)
            while left:
                events = self._take(left)
                left -= len(events)
                self._changed.set()
                began = self._loop.time()
                await self._call(events)
                self._window.wrote(events[0].group, began, self._loop.time())
                # A handler may have woken a task of its own, which runs before the next event.
                await self._take_turn()

    def _take(self, most: int) -> list[GroupEvent]:
        """Remove and return the next event, with those behind it that are for the same members."""
        events = [self._waiting.popleft()]
        while len(events) < most and self._waiting[0].is_for_those_of(events[0]):
            events.append(self._waiting.popleft())
        return events

    async def _close_old_connections(self) -> None:
        self._closing = True
        self._changed.set()
        try:
            await old_connections.close()
        except Exception:
            logger.exception("Stale database connections could not be closed")
        finally:
            self._closing = False

    async def _call(self, events: Sequence[GroupEvent]) -> None:
        """Call the handlers of each member for events that have the same group and members.

        What the handlers of one member send for all these events leaves in one write.
        """
        (group, _, members), written = events[0], 0
        self._pause_at = self._loop.time() + SLICE
        try:
            for event in events:
                copied, is_last = copier(event.event), event is events[-1]
                for start in range(0, len(members), STRIDE):
                    some = members[start : start + STRIDE]
                    for connection in some:
                        # Check again: the membership may have ended since the event arrived.
                        if group in connection.groups:
                            connection.transport.hold()
                            connection.on_group_event(copied())
                    # After the handlers of the others: code runs faster many times in a row.
                    if is_last:
                        release(some)
                        written = start + STRIDE
                    if self._loop.time() > self._pause_at:
                        await self._take_turn()
                if not is_last:
                    await self._take_turn()
        except Exception:
            logger.exception("An event of group %s could not be handed to its handlers", group)
        finally:
            # After an error, or if the hub stops.
            release(members[written:])

    async def _take_turn(self) -> None:
        """Give the event loop a turn."""
        await asyncio.sleep(0)
        self._pause_at = self._loop.time() + SLICE

    def _leave_to_members(self) -> None:
        """Let each member queue all events that wait, and close stale connections for itself."""
        while self._waiting:
            event = self._waiting.popleft()
            copied = copier(event.event)
            for connection in event.members:
                if event.group in connection.groups:
                    connection.on_event(copied())


def release(members: Sequence[Connection]) -> None:
    """Have the transports of these members write what they held back."""
    for connection in members:
        connection.transport.release()


def copier(event: Event) -> Callable[[], Event]:
    """Return a function that copies the event. A handler may change its copy."""
    if all(type(value) in _IMMUTABLE for value in event.values()):
        return event.copy
    return lambda: copy.deepcopy(event)
