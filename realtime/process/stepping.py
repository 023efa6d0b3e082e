"""Drive coroutines step by step, outside of the task that will finish them.

A step runs a coroutine until it waits for something. A coroutine that never waits is done after one step, and
has cost neither a task nor a turn of the event loop.

Private: docs/reference.md lists the public names.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, NamedTuple


class Suspended(NamedTuple):
    """A coroutine that has taken its first step and waits for something.

    Attributes:
        coroutine: The coroutine.
        waits_for: The future that it waits for; None if it only gives the event loop a turn.
    """

    coroutine: Coroutine[Any, Any, None]
    waits_for: Any


def step_as(
    task: "asyncio.Task[Any]", context: Context, coroutine: Coroutine[Any, Any, None]
) -> Suspended | None:
    """Take the first step of a coroutine in the place of a task that waits for something else.

    The step sees that task as the current one, as `asyncio.timeout` and task groups need: they cancel the
    task in which they were entered. asyncio documents the functions that change the current task ("Extending
    asyncio", task lifetime support).

    Args:
        task: The task that will finish the coroutine if it suspends.
        context: The context of that task's code. No code may be running in it.
        coroutine: A coroutine that has not started.

    Returns:
        The suspended coroutine; None if it is done.

    Raises:
        BaseException: The coroutine raised it.
    """
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    if current is not None:
        asyncio._leave_task(loop, current)
    asyncio._enter_task(loop, task)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration:
        return None
    finally:
        asyncio._leave_task(loop, task)
        if current is not None:
            asyncio._enter_task(loop, current)
    return Suspended(coroutine, waits_for)


def finish(suspended: Suspended) -> Awaitable[None]:
    """Finish a suspended coroutine in the current task."""
    return _drive(suspended.coroutine, lambda _: suspended.waits_for, None)


def cancel(suspended: Suspended, error: asyncio.CancelledError) -> Awaitable[None]:
    """Finish a suspended coroutine in the current task, which was cancelled before it could begin to.

    As in any cancelled task, the coroutine is interrupted where it waits, and what it waits for is cancelled.

    Args:
        suspended: The coroutine.
        error: The exception that the task got.
    """
    if isinstance(suspended.waits_for, asyncio.Future):
        suspended.waits_for.cancel()
    return _drive(suspended.coroutine, suspended.coroutine.throw, error)


def in_context(context: Context, coroutine: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """Run a coroutine in the current task, with each of its steps in a context of its own.

    Between two steps other code may run in the same context, such as `step_as`. Python 3.11 does not tell the
    context of a task.
    """
    return _drive(coroutine, coroutine.send, None, context)


@types.coroutine
def _drive(
    coroutine: Coroutine[Any, Any, None],
    step: Callable[[Any], Any] | None,
    argument: Any,
    context: Context | None = None,
) -> Generator[Any, Any, None]:
    """Drive a coroutine to its end.

    Args:
        coroutine: The coroutine.
        step: The first step. It returns what the coroutine waits for.
        argument: Its argument.
        context: The context of each step; None for that of the caller.
    """
    while step is not None:
        try:
            waits_for = step(argument) if context is None else context.run(step, argument)
        except StopIteration:
            return
        # Nothing is kept while the coroutine waits: idle connections wait here.
        step = argument = None
        try:
            argument = yield waits_for
            step = coroutine.send
        except BaseException as error:
            step, argument = coroutine.throw, error
