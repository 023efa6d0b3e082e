"""The pauses between tries while the database takes nothing."""

import asyncio

from django.db import OperationalError

from realtime.records.retry import Retry

DOWN = OperationalError("the database is starting up")


async def test_one_write_retries_however_many_wait() -> None:
    retry = Retry(shortest=0.01, longest=0.02)
    waiting = [asyncio.create_task(retry.pause(DOWN)) for _ in range(2_000)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    assert sum(task.done() for task in waiting) == 1

    async with asyncio.timeout(5):
        await retry.pause(DOWN)
        retry.over()
        await asyncio.gather(*waiting)
