"""How often is tried again while the database takes nothing."""

import asyncio
import logging
import random

logger = logging.getLogger("realtime.ledger")

#: Seconds between two tries, from the first to the last.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0


class Outage:
    """The pauses between tries while the database takes nothing.

    One waiting write retries, with growing pauses. When any write succeeds, all retry. When the one that
    retries ends in another way, its caller says `over`, or the others would wait for ever.
    """

    def __init__(self) -> None:
        self._back = asyncio.Event()
        self._somebody_tries = False
        self._failures = 0

    async def pause(self, error: Exception) -> None:
        """Returns when it is time to try again."""
        if not self._failures:
            self._back.clear()
            logger.warning("A record could not be closed; trying until the database takes it: %s", error)
        self._failures += 1
        if self._somebody_tries:
            await self._back.wait()
            return
        self._somebody_tries = True
        longest = min(SHORTEST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        try:
            async with asyncio.timeout(random.uniform(longest / 2, longest)):  # noqa: S311 - not a secret
                await self._back.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # Whoever else waits must not wait for this one.
            self.over()
            raise
        finally:
            self._somebody_tries = False

    def over(self) -> None:
        """Let all writes that wait try again: one was written, or the one that tried ended otherwise."""
        if self._failures:
            self._failures = 0
            self._back.set()
