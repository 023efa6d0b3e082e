"""Create tasks that no caller has to keep or to await."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync

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


def outliving() -> Context | None:
    """Return a context for a task that may outlive its caller; None if the caller's own will do.

    In a thread, `async_to_sync` makes all synchronous code of its coroutine run in that thread, as long as
    the thread waits. Tasks inherit this with the context. A task that goes on longer would get an error.
    """
    waiting = getattr(AsyncToSync.executors, "current", None) is not None
    if not waiting and not SyncToAsync.deadlock_context.get(False):
        return None
    context = copy_context()
    context.run(setattr, AsyncToSync.executors, "current", None)
    context.run(SyncToAsync.deadlock_context.set, False)
    return context


async def shielded(task: asyncio.Task[Result]) -> Result:
    """Wait for a task, and return its result.

    If the waiter is cancelled, the task runs on, and its exception is raised nowhere.
    """
    task.add_done_callback(retrieve_exception)
    return await asyncio.shield(task)


def retrieve_exception(done: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a future that is not awaited; otherwise asyncio logs it as never retrieved.

    This is a callback for `add_done_callback`.
    """
    if not done.cancelled():
        done.exception()
