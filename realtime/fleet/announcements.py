"""Send signals of what this process has written on behalf of the whole fleet.

Examples are `connection_closed` for the records of a lost process, and `user_offline`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.dispatch import Signal

from realtime import signals
from realtime.closing import CloseReason
from realtime.process import tasks
from realtime.records.entries import Opening, Stay

logger = logging.getLogger("realtime.fleet")

#: Signals that may wait for slow receivers. Above it, no more records are closed and no more stays ended
#: until there is room: the rows are the to-do list, and what waits here is lost if this process is killed.
MAX_WAITING = 5000
#: Signals that are sent at the same time if all receivers are asynchronous.
TOGETHER = 50
#: Seconds that a sweep which ends waits for the receivers.
FINISH_TIMEOUT = 60.0
#: The same if the process was told to stop.
STOP_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """One signal to send."""

    signal: Signal
    sender: Any
    what: Mapping[str, Any]
    """The arguments of the receivers."""


def closed(opening: Opening, reason: CloseReason) -> Announcement:
    """Return the announcement of a record that this process closed for another one."""
    return Announcement(signals.connection_closed, Opening, {"connection": opening, "reason": reason})


def online(stay: Stay) -> Announcement:
    """Return the announcement of a user who came online."""
    return Announcement(signals.user_online, Stay, {"user_id": stay.user_id})


def offline(stay: Stay) -> Announcement:
    """Return the announcement of a user who went offline."""
    return Announcement(signals.user_offline, Stay, {"user_id": stay.user_id})


class Announcements:
    """The signals of which the receivers in this process were not told yet.

    They are told in a task, so that slow receivers delay no round. Signals of different kinds keep their
    order.

    Args:
        own_thread: Call synchronous receivers on a thread of their own. A reaper does so, because its rounds
            use the thread that synchronous code shares, and a receiver may hold it up.
    """

    def __init__(self, *, own_thread: bool) -> None:
        self._own_thread = own_thread
        self._waiting: deque[Announcement] = deque()
        self._telling: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """False while MAX_WAITING signals wait, so nothing more should be written that must be announced."""
        return len(self._waiting) < MAX_WAITING

    def add(self, announcements: Iterable[Announcement]) -> None:
        """Tell the receivers soon."""
        self._waiting.extend(each for each in announcements if each.signal.receivers)
        if self._waiting and (self._telling is None or self._telling.done()):
            self._telling = tasks.start(self._tell_all())

    async def finish(self, within: float = FINISH_TIMEOUT) -> None:
        """Wait until every receiver was told, for at most `within` seconds."""
        if self._telling is None:
            return
        try:
            await asyncio.wait([self._telling], timeout=within)
        finally:
            if not self._telling.done():
                logger.error(
                    "The receivers of signals were too slow: they are not told of %d events",
                    len(self._waiting),
                )
                self._waiting.clear()

    async def _tell_all(self) -> None:
        late = 0
        async with AsyncExitStack() as stack:
            has_thread = False
            while self._waiting:
                some = self._next()
                if self._own_thread and not has_thread and not signals.are_all_async(some[0].signal):
                    await stack.enter_async_context(ThreadSensitiveContext())
                    stack.push_async_callback(sync_to_async(_leave_database))
                    has_thread = True
                in_time = await asyncio.gather(*(_tell(each) for each in some))
                if late == 0 and not all(in_time):
                    # Said now, because the rest may take long, and only once, because there may be thousands.
                    logger.error(signals.TOO_SLOW, signals.RECEIVERS_TIMEOUT)
                late += in_time.count(False)
        if late > 1:
            logger.error("The receivers of a signal were too slow for %d of the events", late)

    def _next(self) -> list[Announcement]:
        """Remove the signals that are sent together: of one kind, or one if a receiver is synchronous."""
        some = [self._waiting.popleft()]
        together = TOGETHER if signals.are_all_async(some[0].signal) else 1
        while len(some) < together and self._waiting and self._waiting[0].signal is some[0].signal:
            some.append(self._waiting.popleft())
        return some


async def _tell(announcement: Announcement) -> bool:
    return await signals.send(announcement.signal, announcement.sender, **announcement.what)


def _leave_database() -> None:
    """Close the database connections of the receivers' thread, which ends."""
    # In the main thread, a test of an application has its transaction open.
    if threading.current_thread() is not threading.main_thread():
        connections.close_all()
