"""The records of this process's connections, written in the order in which they are asked for.

Writes run on one thread of the ledger's own, never on the thread that all consumers share for the ORM,
where one slow query would hold up every close. One thread also keeps the order: a close cannot overtake the
open of the same record.

A cancelled waiter does not cancel its write. Opens are tried once, because somebody is waiting to be let in;
one that has not had its turn when that took too long is withdrawn, or clients that come back again and again
would fill the queue of a database that hangs. Closes and leaves are repeated until the database takes them,
because nobody else in this process will.
"""

import asyncio
import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error, close_old_connections, connections

from realtime import conf, metrics, records
from realtime.errors import RealtimeError
from realtime.pids import Pid
from realtime.records import Closing, Join, Opening

logger = logging.getLogger("realtime.ledger")

#: Seconds that a client waits for its record before it is told to come back later.
OPEN_TIMEOUT = 5.0
#: Seconds between two tries of a close or a leave, from the first to the last.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0

Result = TypeVar("Result")


class RecordsUnavailable(RealtimeError):
    """The database did not take a record in time; look at DATABASES, the client is told to come back."""

    never_written = False
    """Whether it is certain that nothing was written; else the write may have been done, or be done yet."""


class Ledger:
    """Writes records for the event loop that it is used on."""

    #: Whether other processes see what is written, and this one what they wrote.
    shared = True

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="realtime-ledger")
        self._outage = _Outage()

    async def start_process(self, channel_name: str, pid: Pid) -> uuid.UUID:
        return await self._once(
            partial(records.start_process, channel_name, pid.host, pid.number, pid.namespace, pid.began)
        )

    async def answer_round(self, process: uuid.UUID, number: int, connections: int, lag: float) -> bool:
        """False when the process was declared lost. Raises RecordsUnavailable."""
        return await self._once(
            partial(records.answer_round, process, number, connections=connections, loop_lag=lag)
        )

    async def stop_process(self, process: uuid.UUID) -> bool:
        return await self._once(partial(records.stop_process, process))

    async def open(self, opening: Opening) -> None:
        """Returns when the record is committed. Raises RecordsUnavailable."""
        await self._once(partial(records.open_connections, [opening]))

    async def join(self, join: Join) -> None:
        """Returns when the membership is committed. Raises RecordsUnavailable."""
        await self._once(partial(records.open_memberships, [join]))

    async def leave(self, joins: Sequence[Join]) -> None:
        """To be called after the `group_discard`s returned. Returns when the rows say so."""
        if joins:
            await self._until_done(partial(records.leave_memberships, joins))

    async def close(self, closing: Closing) -> bool:
        """Returns whether it was this call that closed the record, once it is closed."""
        # The stamp is made before the first try: after a COMMIT whose answer was lost, the repeated call
        # finds its own.
        closed = await self._until_done(partial(records.close_connections, [closing], uuid.uuid4()))
        return closing.id in closed

    async def touch(self, connections: Sequence[uuid.UUID]) -> None:
        await self._once(partial(records.touch_connections, connections))

    async def call(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Any other call of `records`, in its turn, once and however long it takes. Raises what it raises."""
        return await self._submit(partial(call, *arguments))

    def shut(self) -> None:
        """Let go of the thread, and of its database connection, once what is queued has been written."""
        self._thread.submit(connections.close_all)
        self._thread.shutdown(wait=False)

    async def _once(self, write: Callable[[], Result]) -> Result:
        turn = _Turn(write)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                result = await self._submit(turn)
        except (Error, TimeoutError) as error:
            metrics.record_errors.inc()
            unavailable = RecordsUnavailable(f"The database did not take a record ({error!r}).")
            unavailable.never_written = turn.withdraw()
            raise unavailable from error
        self._outage.over()
        return result

    async def _until_done(self, write: Callable[[], Result]) -> Result:
        while True:
            try:
                result = await self._submit(write)
            except Error as error:
                metrics.record_errors.inc()
                await self._outage.pause(error)
            else:
                self._outage.over()
                return result

    async def _submit(self, write: Callable[[], Result]) -> Result:
        # Shielded, because cancelling would take a write out of the queue whose outcome somebody else
        # relies on.
        writing = asyncio.get_running_loop().run_in_executor(self._thread, _fresh, write)
        writing.add_done_callback(_heard)
        return await asyncio.shield(writing)


class InlineLedger(Ledger):
    """Writes in the thread and the transaction of a test, whose data no other thread would see."""

    shared = False

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._outage = _Outage()

    def shut(self) -> None:
        """There is nothing to let go of."""

    async def _submit(self, write: Callable[[], Result]) -> Result:
        async with self._lock:
            if threading.current_thread() is threading.main_thread():
                # pytest-asyncio: the loop runs in the thread that holds the test's transaction.
                with _off_the_loop():
                    return write()
            # Django's TestCase: the loop runs beside that thread, and this is the way into it.
            return await sync_to_async(write)()


class _Turn(Generic[Result]):
    """A write that waits for its turn: it is begun or withdrawn, never both."""

    def __init__(self, write: Callable[[], Result]) -> None:
        self._write = write
        self._taken = threading.Lock()

    def __call__(self) -> Result:
        if not self._taken.acquire(blocking=False):
            raise TimeoutError("nobody waits for this write any more")
        return self._write()

    def withdraw(self) -> bool:
        """False when it has begun."""
        return self._taken.acquire(blocking=False)


class _Outage:
    """The pauses between tries while the database takes nothing: of all that wait, one tries, ever more
    seldom; when anything was written again, all do.
    """

    def __init__(self) -> None:
        self._back = asyncio.Event()
        self._somebody_tries = False
        self._failures = 0

    async def pause(self, error: Exception) -> None:
        """Returns when it is time to try again."""
        if not self._failures:
            self._back.clear()
            logger.warning("A record could not be closed; trying until the database takes it: %s", error)
        self._failures += 1
        if self._somebody_tries:
            await self._back.wait()
            return
        self._somebody_tries = True
        longest = min(SHORTEST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        try:
            async with asyncio.timeout(random.uniform(longest / 2, longest)):  # noqa: S311 - not a secret
                await self._back.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # Whoever else waits must not wait for this one.
            self.over()
            raise
        finally:
            self._somebody_tries = False

    def over(self) -> None:
        """Something was written."""
        if self._failures:
            self._failures = 0
            self._back.set()


@contextmanager
def _off_the_loop() -> Iterator[None]:
    """On a running loop Django has other connections, and refuses to use them; a write waits for nothing."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def make() -> Ledger:
    """The ledger that the settings name."""
    return InlineLedger() if conf.get().LEDGER == "inline" else Ledger()


def _heard(writing: "asyncio.Future[Any]") -> None:
    """A waiter that was cancelled does not hear of a failure, and asyncio would complain that nobody did."""
    if not writing.cancelled():
        writing.exception()


def _fresh(write: Callable[[], Result]) -> Result:
    """Django drops connections that broke or grew old only between requests; here each write is one."""
    close_old_connections()
    try:
        return write()
    finally:
        close_old_connections()
