"""The longest stall of the event loop of a test."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TICK = 0.005  # seconds


class Stalls:
    """The longest stall, seen by a task that ticks every 5 ms."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds of processor time that the loop's thread used between two ticks.

        The time that other programs used does not count.
        """

    async def _tick(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, time.thread_time() - before)


@asynccontextmanager
async def watch_the_loop() -> AsyncIterator[Stalls]:
    """Watch for stalls within the block.

    The garbage collector is off, because it would look through all of pytest.
    """
    stalls = Stalls()
    gc.collect()
    gc.disable()
    ticking = asyncio.create_task(stalls._tick())
    await asyncio.sleep(2 * TICK)
    try:
        yield stalls
        # The task sees a stall at the very end only at its next tick.
        await asyncio.sleep(2 * TICK)
    finally:
        gc.enable()
        ticking.cancel()
