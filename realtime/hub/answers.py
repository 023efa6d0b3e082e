"""Answer the rounds of reapers: this process lives, and holds this number of connections.

A process answers twice, through its database and through its channel layer. A process that lost only one of
the two is not lost (decision 17).
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from django.db import Error as DatabaseFailure

from realtime import conf
from realtime.errors import LayerUnavailable, RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.healing import Healer
from realtime.hub.heartbeat import Heartbeat
from realtime.layers import groups, messages
from realtime.records import process_rows
from realtime.records.ledger import Ledger

logger = logging.getLogger("realtime.hub")

#: The hub touches the records of its connections, for display, at most once in this many seconds.
TOUCH_INTERVAL = 60.0


class Answers:
    """The answers of one process.

    Args:
        process: The id of its row.
        ledger: Where the answers are written.
        connections: The connections that it holds, by id.
        heartbeat: Says how late the event loop is.
        healer: Says whether the process hears what it sends to itself.
        lost: Called when the row says that the process was declared lost.
    """

    def __init__(
        self,
        process: uuid.UUID,
        ledger: Ledger,
        connections: Mapping[uuid.UUID, Connection],
        heartbeat: Heartbeat,
        healer: Healer,
        lost: Callable[[], None],
    ) -> None:
        self._process = process
        self._ledger = ledger
        self._connections = connections
        self._heartbeat = heartbeat
        self._healer = healer
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._look_every = look_every()
        self._look_sooner = asyncio.Event()
        """Set when the next look for rounds must come earlier than planned."""
        self._answered = 0
        """The last round that this process answered in the database."""
        self._answered_at = 0.0
        self._touched_at = self._loop.time()

    async def follow_rounds(self) -> None:
        """Look in the database for unanswered rounds, and whether this process was declared lost.

        A question may not arrive: this process may be cut off from Redis, or its connection there may carry
        nothing. A process that was stopped and goes on looks immediately, because its pause is over.
        """
        while True:
            self._look_sooner.clear()
            with suppress(TimeoutError):
                # Twice in the promised time, so that a look that is a little late still keeps the promise.
                async with asyncio.timeout(self._look_every / 2):
                    await self._look_sooner.wait()
            try:
                found = await self._ledger.look_for_rounds(self._process)
                self._look_every = look_every(found.interval)
                if not found.running:
                    self._lost()
                elif found.number > self._answered:
                    await self._answer_in_database(found.number)
                elif self._healer.hears and self._loop.time() - self._answered_at > conf.get().ROUND_INTERVAL:
                    self._answered_at = self._loop.time()
                    await self._ledger.call(process_rows.note_heard, self._process)
            except (RecordsUnavailable, DatabaseFailure) as error:
                logger.warning("It is not known whether this process was declared lost: %s", error)

    async def answer(self, number: int, reply_to: str, interval: float) -> None:
        """Answer a round through the channel layer and in the database.

        Args:
            number: The round; 0 asks without a write.
            reply_to: The address of the reaper.
            interval: Seconds between the rounds of that reaper; 0 if they are not known.
        """
        if (sooner := look_every(interval)) < self._look_every:
            # Before the answer, which promises it.
            self._look_every = sooner
            self._look_sooner.set()
        try:
            await groups.tell(reply_to, messages.Answer(number, self._process))
        except LayerUnavailable as error:
            logger.warning("Round %d could not be answered through the channel layer: %s", number, error)
        if number == 0:
            return
        try:
            await self._answer_in_database(number)
        except RecordsUnavailable as error:
            logger.warning("Round %d could not be answered in the database: %s", number, error)

    async def _answer_in_database(self, number: int) -> None:
        running = await self._ledger.answer_round(
            self._process,
            number,
            connections=len(self._connections),
            loop_lag=self._heartbeat.lag,
            look_every=self._look_every,
            hears=self._healer.hears,
        )
        if not running:
            self._lost()
            return
        self._answered, self._answered_at = max(self._answered, number), self._loop.time()
        if self._answered_at - self._touched_at >= TOUCH_INTERVAL:
            self._touched_at = self._answered_at
            await self._ledger.touch(tuple(self._connections))


def look_every(interval: float = 0.0) -> float:
    """Return the seconds within which a process looks for rounds of a reaper that has this interval."""
    shortest = min(interval or conf.get().ROUND_INTERVAL, conf.get().ROUND_INTERVAL)
    # Half of it: a process that did not receive the question has looked before the next round is judged.
    return shortest / 2
