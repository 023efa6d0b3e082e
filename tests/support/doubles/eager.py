"""An event loop that starts a task while it is created, as `asyncio.eager_task_factory` does."""

import asyncio
import types
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from typing import Any


@asynccontextmanager
async def eager_tasks() -> AsyncIterator[None]:
    """Have the running loop start each task at its creation, within the block."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", _begun))
    try:
        yield
    finally:
        loop.set_task_factory(None)


def _begun(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], *, context: Context | None = None
) -> asyncio.Task[Any]:
    """Create a task and take its first step. Stands in on Python 3.11 for the factory of 3.12."""
    context = copy_context() if context is None else context
    rest = _Rest(work)
    task = asyncio.Task(rest.run(), loop=loop, context=context)
    creator = asyncio.current_task(loop)
    if creator is not None:
        asyncio.tasks._leave_task(loop, creator)
    asyncio.tasks._enter_task(loop, task)
    try:
        context.run(rest.begin)
    finally:
        asyncio.tasks._leave_task(loop, task)
        if creator is not None:
            asyncio.tasks._enter_task(loop, creator)
    return task


class _Rest:
    """The rest of a coroutine after its first step."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        self._waits_for: Any = None
        self._outcome: list[Any] = []
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Take the first step."""
        try:
            self._waits_for = self._work.send(None)
        except StopIteration as end:
            self._outcome = [end.value]
        except BaseException as error:
            self._error = error

    async def run(self) -> Any:
        """Take all other steps."""
        if self._error is not None:
            raise self._error
        return self._outcome[0] if self._outcome else await self._go_on()

    @types.coroutine
    def _go_on(self) -> Generator[Any, Any, Any]:
        while True:
            try:
                sent = yield self._waits_for
            except BaseException as error:
                step, argument = self._work.throw, error
            else:
                step, argument = self._work.send, sent
            try:
                self._waits_for = step(argument)
            except StopIteration as end:
                return end.value
