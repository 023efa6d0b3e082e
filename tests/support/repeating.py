"""Work that is repeated while a test runs."""

import asyncio
from abc import ABC, abstractmethod
from typing import Self


class Repeating(ABC):
    """An async context manager that repeats a step until `stop`, or until the block ends.

    The step under way is always finished. If it were cancelled, it might have published a message without
    noting it, and the test would take that for a message doubled or out of order. `stop` raises what a step
    raised.
    """

    _stopped = False

    @abstractmethod
    async def step(self) -> None:
        """Do the work once, and then wait for the pause between two steps."""

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
