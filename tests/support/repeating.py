"""Work that goes on beside a test."""

import asyncio
from abc import ABC, abstractmethod
from typing import Self


class Repeating(ABC):
    """Takes a step again and again until it is told to stop, or its block ends; an async context manager.

    The step under way is always finished: one that is cut in its middle may have published what it has not
    yet noted, and the test would take that for a message doubled or out of order. Stopping raises what a step
    raised.
    """

    _stopped = False

    @abstractmethod
    async def step(self) -> None:
        """Do it once, and wait as long as there should be between two."""

    async def stop(self) -> None:
        self._stopped = True
        await self._repeating

    async def __aenter__(self) -> Self:
        self._repeating = asyncio.create_task(self._repeat())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def _repeat(self) -> None:
        while not self._stopped:
            await self.step()
