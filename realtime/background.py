"""Tasks that go on whether or not somebody waits for them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_running: set[asyncio.Task[Any]] = set()


def start(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task that nobody has to keep: the loop itself has only weak references to its tasks."""
    task = asyncio.get_running_loop().create_task(work)
    keep(task, _running)
    return task


def keep(task: asyncio.Task[Any], among: set[asyncio.Task[Any]]) -> None:
    """Have the task among these until it is done."""
    among.add(task)
    task.add_done_callback(among.discard)


async def uninterrupted(task: asyncio.Task[None]) -> None:
    """Wait for a task that goes on when the waiter is cancelled, who then does not hear of its failure."""
    task.add_done_callback(heard)
    await asyncio.shield(task)


def heard(done: "asyncio.Future[Any]") -> None:
    """A callback for what nobody waits for any more, or asyncio would complain of a failure unheard."""
    if not done.cancelled():
        done.exception()
