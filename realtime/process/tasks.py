"""Create tasks that no caller has to keep or to await."""

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
    But the code of this package stores the new task, and what the task reads, before the task may run.
    """
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        return loop.create_task(work, name=name, context=context)
    # The factory may be an eager one, which cannot be found out.
    return asyncio.Task(work, loop=loop, name=name, context=context)


def start(work: Coroutine[Any, Any, Result], *, context: Context | None = None) -> asyncio.Task[Result]:
    """Create a task and keep it until it is done, because the loop has only weak references to its tasks."""
    task = create(work, context=context)
    keep_reference(task, _running)
    return task


def keep_reference(task: asyncio.Task[Any], among: set[asyncio.Task[Any]]) -> None:
    """Keep the task in this set until it is done."""
    among.add(task)
    task.add_done_callback(among.discard)


async def shielded(task: asyncio.Task[None]) -> None:
    """Wait for a task. If the waiter is cancelled, the task runs on, and its exception is raised nowhere."""
    task.add_done_callback(retrieve_exception)
    await asyncio.shield(task)


def retrieve_exception(done: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a future that is not awaited; otherwise asyncio logs it as never retrieved.

    This is a callback for `add_done_callback`.
    """
    if not done.cancelled():
        done.exception()
