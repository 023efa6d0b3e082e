"""The pauses between two tries while the database takes nothing."""

import asyncio
import logging
import random

logger = logging.getLogger("realtime.records")


class Retry:
    """Pauses between the tries of all writes that the database did not take.

    One waiting write retries, with growing pauses. When any write succeeds, all retry. If the one that
    retries ends in any other way, its caller must call `over`; otherwise the others would wait for ever.

    Args:
        shortest: Seconds before the second try, at most.
        longest: Seconds to which the pauses grow.
    """

    def __init__(self, shortest: float = 0.1, longest: float = 5.0) -> None:
        self._shortest = shortest
        self._longest = longest
        self._back = asyncio.Event()
        self._one_retries = False
        self._failures = 0

    async def pause(self, error: Exception) -> None:
        """Wait until it is time to try again.

        Args:
            error: The failure of the last try. The first one of an outage is logged.
        """
        if not self._failures:
            self._back.clear()
            logger.warning("A record could not be closed; trying until the database takes it: %s", error)
        self._failures += 1
        if self._one_retries:
            await self._back.wait()
            return
        self._one_retries = True
        # Thousands of writes may have failed, and two to the power of thousands is no float.
        doublings = min(self._failures - 1, 100)
        pause = min(self._shortest * 2**doublings, self._longest)
        try:
            async with asyncio.timeout(random.uniform(pause / 2, pause)):  # noqa: S311 - not a secret
                await self._back.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # The write that was to retry is gone; wake the others.
            self.over()
            raise
        finally:
            self._one_retries = False

    def over(self) -> None:
        """Let all waiting writes try again, because one was written or because the retrying one ended."""
        if self._failures:
            self._failures = 0
            self._back.set()
