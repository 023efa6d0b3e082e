"""How long the event loop of a test does nothing else."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TICK = 0.005  # seconds


class Stalls:
    """The longest stall that a task which ticks every 5 ms has seen."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds of the processor that the loop's thread used between two ticks: not those for which other
        programs had the machine.
        """

    async def _tick(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, time.thread_time() - before)


@asynccontextmanager
async def watch_the_loop() -> AsyncIterator[Stalls]:
    """Watch for stalls within the block; not for those of the garbage collector, which has all of pytest to
    look through.
    """
    stalls = Stalls()
    gc.collect()
    gc.disable()
    ticking = asyncio.create_task(stalls._tick())
    await asyncio.sleep(2 * TICK)
    try:
        yield stalls
        # A stall at the very end is seen only when the loop has turned once more.
        await asyncio.sleep(2 * TICK)
    finally:
        gc.enable()
        ticking.cancel()
