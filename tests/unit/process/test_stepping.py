"""A coroutine that takes its first step outside of its task behaves as if the task had taken it."""

import asyncio
import contextvars
from typing import Any

import pytest

from realtime.process import stepping
from realtime.process.stepping import Suspended

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nothing")


class Owner:
    """A task that waits, and goes on with what another task has begun for it."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self.begun: Suspended | None = None
        self._told = asyncio.Event()
        self.task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        cancelled = None
        try:
            await self._told.wait()
        except asyncio.CancelledError as error:
            cancelled = error
        assert self.begun is not None
        rest = stepping.finish(self.begun) if cancelled is None else stepping.cancel(self.begun, cancelled)
        await stepping.in_context(self.context, _awaiting(rest))

    async def begin(self, work: Any) -> Suspended | None:
        """Take the first step in this task's place."""
        await asyncio.sleep(0)
        self.begun = stepping.step_as(self.task, self.context, work)
        return self.begun

    async def end(self) -> None:
        """Let the task go on, and wait for it."""
        self._told.set()
        await self.task

    def forget(self) -> None:
        self.task.cancel()
        self.begun = Suspended(_nothing(), None)


async def _awaiting(rest: Any) -> None:
    await rest


async def _nothing() -> None:
    pass


async def test_work_that_never_waits_is_done_after_one_step() -> None:
    seen: list[Any] = []

    async def work() -> None:
        seen.append(asyncio.current_task())

    owner, here = Owner(), asyncio.current_task()
    assert await owner.begin(work()) is None
    assert seen == [owner.task]
    assert asyncio.current_task() is here
    owner.forget()
    await asyncio.wait([owner.task])


async def test_the_task_goes_on_where_the_first_step_stopped() -> None:
    seen: list[Any] = []

    async def work() -> None:
        NAME.set("ours")
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())
        seen.append(NAME.get())

    owner = Owner()
    assert await owner.begin(work()) is not None
    await owner.end()
    assert seen == [owner.task, owner.task, "ours"]
    assert NAME.get() == "nothing"
    assert owner.context[NAME] == "ours"


async def test_an_error_of_the_first_step_is_raised_to_the_caller() -> None:
    async def work() -> None:
        raise KeyError("first")

    owner, here = Owner(), asyncio.current_task()
    with pytest.raises(KeyError, match="first"):
        await owner.begin(work())
    assert asyncio.current_task() is here
    owner.forget()
    await asyncio.wait([owner.task])


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_time_limit_inside_interrupts_only_the_work(seconds: float) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(60)
        except TimeoutError:
            seen.append("late")
        await asyncio.sleep(0)
        seen.append("goes on")

    owner = Owner()
    await owner.begin(work())
    await asyncio.sleep(0)
    await owner.end()
    assert seen == ["late", "goes on"]


async def test_a_task_group_begun_in_the_first_step_works() -> None:
    seen: list[str] = []

    async def child(name: str) -> None:
        await asyncio.sleep(0.001)
        seen.append(name)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("one"))
            group.create_task(child("two"))
        seen.append("both")

    owner = Owner()
    await owner.begin(work())
    await owner.end()
    assert seen == ["one", "two", "both"]


async def test_a_cancelled_task_interrupts_the_work_where_it_waits() -> None:
    seen: list[Any] = []
    waited_for = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await waited_for
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    owner = Owner()
    await owner.begin(work())
    owner.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner.end()
    assert seen == ["cancelled", "cleaned up"]
    assert waited_for.cancelled()


async def test_work_that_swallows_a_cancellation_goes_on() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("swallowed")

    owner = Owner()
    await owner.begin(work())
    owner.task.cancel()
    await owner.end()
    assert seen == ["swallowed"]
