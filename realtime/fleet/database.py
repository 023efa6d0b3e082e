"""The database, called from coroutines of the fleet's work."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

from channels.db import database_sync_to_async
from django.db import close_old_connections, connections

from realtime.records.thread import Writer

Result = TypeVar("Result")


class Database(Protocol):
    """Runs a function of `realtime.records` on a thread that may use the database."""

    def __call__(self, call: Callable[..., Result], /, *arguments: object) -> Awaitable[Result]: ...


async def on_shared_thread(call: Callable[..., Result], /, *arguments: object) -> Result:
    """Run a function on the thread that all synchronous code of the process shares."""
    result: Result = await database_sync_to_async(call)(*arguments)
    return result


class OwnThread:
    """A `Database` with a thread and a database connection of its own, so that no other work waits for it."""

    def __init__(self, name: str) -> None:
        self._thread = Writer(name)

    async def __call__(self, call: Callable[..., Result], /, *arguments: object) -> Result:
        done: Future[Result] = Future()
        self._thread.do(partial(_run, done, partial(call, *arguments)))
        return await asyncio.wrap_future(done)

    def shut(self) -> None:
        """Close the connection and end the thread, after the calls that were made."""
        self._thread.do(connections.close_all)
        self._thread.shut()


def _run(done: "Future[Any]", call: Callable[[], object]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        # Outside a request, Django does not drop broken connections by itself.
        close_old_connections()
        done.set_result(call())
    except BaseException as error:
        done.set_exception(error)
