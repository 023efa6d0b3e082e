"""End stays when their grace is over, and tell which stays have begun and ended.

Server processes and reapers do this. If a process writes that users have gone, it ends their stays when the
grace is over. From time to time it looks for stays that other processes have left behind.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error as DatabaseFailure

from realtime import conf
from realtime.fleet import announcements
from realtime.fleet.announcements import Announcements
from realtime.fleet.database import Database
from realtime.layers import groups, messages
from realtime.process import tasks
from realtime.records import presence_rows
from realtime.records.entries import ONLINE, Changes, Stay

logger = logging.getLogger("realtime.fleet")

Result = TypeVar("Result")

#: Seconds by which a look is later than the end of the grace, because the clock of the database began later.
LATER = 0.05
#: Departures within this many seconds are ended together.
TOGETHER = 0.25
#: The part of an interval after which a process looks for stays that others have left behind.
LOOK_EVERY = 0.5


class Stays:
    """The ending and telling of stays in this process.

    Args:
        database: Runs each call of `realtime.records`.
        signals: Sends `user_online` and `user_offline`.
        interval: Seconds between two rounds.
        address: The address of this process, which needs no message from itself; empty for a reaper.
        take: Called with the changes of stays that this process ended.
    """

    def __init__(
        self,
        database: Database,
        signals: Announcements,
        *,
        interval: float,
        address: str = "",
        take: Callable[[Changes], None] | None = None,
    ) -> None:
        self._database = database
        self._signals = signals
        self._interval = interval
        self._address = address
        self._take = take
        self._looks: deque[float] = deque()
        """The times on the loop's clock at which the grace of some users is over."""
        self._wake = asyncio.Event()
        self._steps: set[asyncio.Task[Any]] = set()
        """The steps under way, which go on if their caller is cancelled."""

    def departed(self) -> None:
        """Note that users may have gone now: look for them when their grace is over."""
        at = asyncio.get_running_loop().time() + conf.get().PRESENCE_GRACE + LATER
        if not self._looks or self._looks[-1] < at - TOGETHER:
            self._looks.append(at + TOGETHER)
            self._wake.set()

    def tell(self, changes: Changes) -> None:
        """Tell the processes that watch, and the receivers of signals."""
        if any(address != self._address for address in changes.watchers):
            self._start(self._tell(changes))
        self._signals.add(announcements.online(stay) for stay in changes.began if stay.group == ONLINE)
        self._signals.add(announcements.offline(stay) for stay in changes.ended if stay.group == ONLINE)

    async def _tell(self, changes: Changes) -> None:
        failed = await groups.tell_all(
            {
                address: messages.PresenceChanges(
                    began=_of(changes.began, names), ended=_of(changes.ended, names)
                )
                for address, names in changes.watchers.items()
                if address != self._address
            }
        )
        for address, error in failed.items():
            logger.warning("%s was not told of presence; it compares within a round: %s", address, error)

    async def run(self) -> None:
        """End stays until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            until = loop.time() + self._interval * LOOK_EVERY
            while loop.time() < (at := min(until, self._looks[0]) if self._looks else until):
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(at):
                        await self._wake.wait()
            while self._looks and self._looks[0] <= loop.time():
                self._looks.popleft()
            try:
                await self.end_due()
            except DatabaseFailure as error:
                logger.warning("The users who have left could not be looked for: %s", error)

    async def end_due(self) -> None:
        """End all stays with a grace that is over.

        Raises:
            django.db.Error: The database cannot be reached.
        """
        settings = conf.get()
        grace = settings.PRESENCE_GRACE
        if not settings.PRESENCE or not await self._database(presence_rows.any_gone, grace):
            return
        # In a task of its own: if it were cancelled after the write, nothing would tell of these stays.
        while self._signals.has_room and await tasks.shielded(self._start(self._end_some(grace))):
            pass

    async def _end_some(self, grace: float) -> bool:
        """End some stays, and tell of them. Return True if there may be more."""
        if not (ended := await self._database(presence_rows.end_stays, grace)):
            return False
        changes = await self._watched(ended)
        self.tell(changes)
        if self._take is not None:
            self._take(changes)
        return True

    async def finish(self, within: float) -> None:
        """Wait until the stays that have ended were told, for at most `within` seconds."""
        until = asyncio.get_running_loop().time() + within
        # A task that ends stays starts another one that tells.
        while self._steps and (left := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(tuple(self._steps), timeout=left)

    def _start(self, step: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = tasks.start(step)
        tasks.keep_reference(task, self._steps)
        return task

    async def _watched(self, ended: Sequence[Stay]) -> Changes:
        try:
            return await self._database(presence_rows.changes, (), ended)
        except DatabaseFailure:
            # The stays have ended. Signals are sent, and the processes that watch compare within a round.
            logger.exception("The processes that watch presence could not be found")
            return Changes(ended=tuple(ended))


def _of(stays: Sequence[Stay], names: Collection[str]) -> list[tuple[int, str, str]]:
    return [(stay.id, stay.group, stay.user_id) for stay in stays if stay.group in names]
