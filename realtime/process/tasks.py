"""Tasks that go on whether or not somebody waits for them."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

Result = TypeVar("Result")

_running: set[asyncio.Task[Any]] = set()


def create(
    work: Coroutine[Any, Any, Result], *, name: str | None = None, context: Context | None = None
) -> asyncio.Task[Result]:
    """Create a task that does not run before its creator goes on.

    Under `asyncio.eager_task_factory` (Python 3.12) a task runs up to its first pause while it is created.
    The creators of tasks here first note the task, and what it is to read, and then let it run.
    """
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        return loop.create_task(work, name=name, context=context)
    # The factory may be an eager one, which nothing tells.
    return asyncio.Task(work, loop=loop, name=name, context=context)


def start(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task that nobody has to keep: the loop itself has only weak references to its tasks."""
    task = create(work)
    keep_reference(task, _running)
    return task


def keep_reference(task: asyncio.Task[Any], among: set[asyncio.Task[Any]]) -> None:
    """Have the task among these until it is done."""
    among.add(task)
    task.add_done_callback(among.discard)


async def shielded(task: asyncio.Task[None]) -> None:
    """Wait for a task that goes on when the waiter is cancelled, who then does not hear of its failure."""
    task.add_done_callback(retrieve_exception)
    await asyncio.shield(task)


def retrieve_exception(done: "asyncio.Future[Any]") -> None:
    """A callback for what nobody waits for any more, or asyncio would complain of a failure unheard."""
    if not done.cancelled():
        done.exception()
