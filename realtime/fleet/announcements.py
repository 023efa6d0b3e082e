"""Send `connection_closed` for the records that this process closed on behalf of a lost process."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Collection
from contextlib import AsyncExitStack

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections

from realtime import signals
from realtime.closing import CloseReason
from realtime.process import tasks
from realtime.records.entries import Opening

logger = logging.getLogger("realtime.fleet")

#: Endings that may wait for slow receivers. Above it, a sweep closes no more records until there is room: the
#: records are the to-do list, and what only waits here is lost if this process is killed.
MAX_WAITING = 5000
#: Signals that are sent at the same time if all receivers are asynchronous.
TOGETHER = 50
#: Seconds that a sweep which ends waits for the receivers.
FINISH_TIMEOUT = 60.0
#: The same if the process was told to stop.
STOP_TIMEOUT = 5.0


class Announcements:
    """The endings of which the receivers in this process were not told yet.

    They are told in a task, so that slow receivers delay no round.

    Args:
        own_thread: Call synchronous receivers on a thread of their own. A reaper does so, because its rounds
            use the thread that synchronous code shares, and a receiver may hold it up.
    """

    def __init__(self, *, own_thread: bool) -> None:
        self._own_thread = own_thread
        self._waiting: deque[Opening] = deque()
        self._telling: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """False while MAX_WAITING endings wait, so no more records should be closed."""
        return len(self._waiting) < MAX_WAITING

    def add(self, closed: Collection[Opening]) -> None:
        """Tell the receivers soon that these records were closed as SERVER_LOST."""
        if not closed or not signals.connection_closed.receivers:
            return
        self._waiting.extend(closed)
        if self._telling is None or self._telling.done():
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
                    "The receivers of connection_closed were too slow: they are not told of %d endings",
                    len(self._waiting),
                )
                self._waiting.clear()

    async def _tell_all(self) -> None:
        late = 0
        async with AsyncExitStack() as stack:
            are_async = signals.are_all_async(signals.connection_closed)
            if self._own_thread and not are_async:
                await stack.enter_async_context(ThreadSensitiveContext())
                stack.push_async_callback(sync_to_async(_leave_database))
            together = TOGETHER if are_async else 1
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(together, len(self._waiting)))]
                in_time = await asyncio.gather(*(_tell(opening) for opening in some))
                if late == 0 and not all(in_time):
                    # Said now, because the rest may take long, and only once, because there may be thousands.
                    logger.error(signals.TOO_SLOW, signals.RECEIVERS_TIMEOUT)
                late += in_time.count(False)
        if late > 1:
            logger.error("The receivers of a signal were too slow for %d of the endings", late)


async def _tell(opening: Opening) -> bool:
    return await signals.send(
        signals.connection_closed, Opening, connection=opening, reason=CloseReason.SERVER_LOST
    )


def _leave_database() -> None:
    """Close the database connections of the receivers' thread, which ends."""
    # In the main thread, a test of an application has its transaction open.
    if threading.current_thread() is not threading.main_thread():
        connections.close_all()
