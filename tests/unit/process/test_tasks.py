"""Tasks begin after their creator goes on, under any task factory of the loop."""

import asyncio
import contextvars
import re
from pathlib import Path

import pytest

from realtime.process import tasks
from tests.support.doubles.eager import eager_tasks

PACKAGE = Path(tasks.__file__).parents[1]


async def test_a_created_task_begins_after_its_creator_goes_on() -> None:
    steps: list[str] = []

    async def work() -> str:
        steps.append("begins")
        return "done"

    async with eager_tasks():
        task = tasks.create(work(), name="ours")
        steps.append("goes on")
        assert await task == "done"
    assert steps == ["goes on", "begins"]
    assert task.get_name() == "ours"


async def test_an_eager_loop_begins_other_tasks_at_their_creation() -> None:
    began = []

    async def work() -> int:
        began.append(True)
        await asyncio.sleep(0)
        return 7

    async with eager_tasks():
        task = asyncio.create_task(work())
        assert began
        assert await task == 7


@pytest.mark.parametrize("eager", [False, True])
async def test_a_created_task_runs_in_the_given_context(eager: bool) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")
    context = contextvars.copy_context()
    context.run(variable.set, "inner")

    async def work() -> str:
        return variable.get()

    if eager:
        async with eager_tasks():
            assert await tasks.create(work(), context=context) == "inner"
    else:
        assert await tasks.create(work(), context=context) == "inner"


def test_the_package_creates_all_of_its_tasks_here() -> None:
    creating = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\b(create_task|ensure_future|TaskGroup)\(", path.read_text())
    }
    # The second has an event loop of its own in a thread of its own. No application gives that a factory.
    assert creating == {"tasks.py", "background_loop.py"}
