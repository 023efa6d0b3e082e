"""The records of this process's connections, written in the order in which they are asked for.

One batch is in flight at a time. What is asked for meanwhile waits, and becomes the next batch: a few bulk
statements in one transaction, whether one client comes or a thousand. Batches are written on a thread of
the ledger's own, never on the one that all consumers share for the ORM, where one slow query would hold up
every close.

A cancelled waiter does not cancel its write. Opens and joins are tried once, because somebody is waiting to
be let in; one that has not had its turn when that took too long is withdrawn, or clients that come back
again and again would fill the backlog of a database that hangs. Closes and leaves are repeated until the
database takes them, because nobody else in this process will.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error, connections

from realtime import conf, metrics
from realtime.errors import RecordsUnavailable
from realtime.process.pids import Pid
from realtime.records import batch, connection_rows, process_rows
from realtime.records.entries import Closing, Join, Opening
from realtime.records.process_rows import Look
from realtime.records.retry import Outage
from realtime.records.thread import Writer
from realtime.records.write_queue import Kind, WriteQueue

#: Seconds that a client waits for its record before it is told to come back later.
OPEN_TIMEOUT = 5.0
#: Rows that one batch writes. SQLite has one writer at a time, and others want their turn.
BATCH = 200

Result = TypeVar("Result")


class _Write(batch.Write):
    """A write, and the future of whoever waits for it."""

    __slots__ = ("done", "loop", "until")

    def __init__(
        self,
        kind: Kind,
        rows: Sequence[Any] = (),
        connections: Collection[uuid.UUID] = (),
        call: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(kind, rows, connections, call)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()
        self.until: float | None = None
        """When its waiter gives up, on the loop's clock."""


class Ledger:
    """Writes records for the event loop that it is used on."""

    #: Whether other processes see what is written, and this one what they wrote.
    shared = True

    def __init__(self) -> None:
        self._outage = Outage()
        self._backlog: WriteQueue[_Write] = WriteQueue()
        self._writer = Writer("realtime-ledger")
        self._in_flight: list[_Write] = []
        self._busy = False
        """Whether a batch is in flight, or about to be."""
        self._looking = False
        self._shutting = False

    async def start_process(self, channel_name: str, pid: Pid, look_every: float = 0.0) -> uuid.UUID:
        """Record a server process that starts, and return its id. Raises RecordsUnavailable."""
        call = partial(
            process_rows.start_process,
            channel_name,
            pid.host,
            pid.number,
            pid.namespace,
            pid.began,
            look_every,
        )
        process: uuid.UUID = await self._once(_Write(Kind.CALL, call=call))
        return process

    async def answer_round(self, process: uuid.UUID, number: int, **state: Any) -> bool:
        """Write an answer to a round, before everything else that waits.

        Args:
            process: The process that answers.
            number: The round.
            **state: As in `process_records.answer_round`.

        Returns:
            False when the process was declared lost.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        call = partial(process_rows.answer_round, process, number, **state)
        running: bool = await self._once(_Write(Kind.CALL, call=call), first=True)
        return running

    async def look_for_rounds(self, process: uuid.UUID) -> Look:
        """Read what the process has to know of rounds, before everything else that waits.

        Raises:
            RecordsUnavailable: The database did not answer.
        """
        # A storm of clients fills the queue for many seconds, and a process that lives must answer in time.
        look: Look = await self._once(
            _Write(Kind.CALL, call=partial(process_rows.look_for_rounds, process)), first=True
        )
        return look

    async def stop_process(self, process: uuid.UUID) -> bool:
        stopped: bool = await self._once(_Write(Kind.CALL, call=partial(process_rows.stop_process, process)))
        return stopped

    async def open(self, opening: Opening) -> None:
        """Returns when the record is committed. Raises RecordsUnavailable."""
        await self._once(_Write(Kind.OPEN, (opening,), (opening.id,)))

    async def join(self, join: Join) -> None:
        """Returns when the membership is committed. Raises RecordsUnavailable.

        The record may still be waiting to be opened: its open comes first, in the same batch if it can.
        """
        await self._once(_Write(Kind.JOIN, (join,), (join.connection_id,)))

    async def leave(self, joins: Sequence[Join]) -> None:
        """To be called after the `group_discard`s returned. Returns when the rows say so."""
        for start in range(0, len(joins), BATCH):
            rows = joins[start : start + BATCH]
            await self._until_done(Kind.LEAVE, rows, {join.connection_id for join in rows})

    async def close(self, closing: Closing) -> bool:
        """Returns whether it was this call that closed the record, once it is closed."""
        was_it_me: bool = await self._until_done(Kind.CLOSE, (closing,), (closing.id,))
        return was_it_me

    async def touch(self, connections: Sequence[uuid.UUID]) -> None:
        # In turns, so that nobody who connects waits until ten thousand rows are written.
        for start in range(0, len(connections), connection_rows.BATCH):
            some = connections[start : start + connection_rows.BATCH]
            await self._once(_Write(Kind.CALL, call=partial(connection_rows.touch_connections, some)))

    async def call(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Any other call of `records`, in its turn, once and however long it takes. Raises what it raises."""
        result: Result = await self._do(_Write(Kind.CALL, call=partial(call, *arguments)))
        return result

    def shut(self) -> None:
        """Let go of the thread, and of its database connection, once what waits has been written."""
        self._shutting = True
        if not self._busy:
            self._let_go()

    def _let_go(self) -> None:
        self._writer.do(connections.close_all)
        self._writer.shut()

    async def _once(self, write: _Write, *, first: bool = False) -> Any:
        write.until = write.loop.time() + OPEN_TIMEOUT
        try:
            result = await self._do(write, first=first)
        except Error as error:
            metrics.record_errors.inc()
            raise RecordsUnavailable(f"The database did not take a record ({error!r}).") from error
        self._outage.over()
        return result

    async def _until_done(self, kind: Kind, rows: Sequence[Any], connections: Collection[uuid.UUID]) -> Any:
        stamp = None
        while True:
            write = _Write(kind, rows, connections)
            write.stamp = stamp
            try:
                result = await self._do(write)
            except Error as error:
                metrics.record_errors.inc()
                if batch.is_for_its_rows(error):
                    # Tried alone and refused: it would be refused for ever. The database works, so the
                    # writes that wait for this try go on.
                    self._outage.over()
                    raise
                stamp = write.stamp
                await self._outage.pause(error)
            except BaseException:
                # Perhaps all others wait for this try, whose outcome is not known here any more.
                self._outage.over()
                raise
            else:
                self._outage.over()
                return result

    async def _do(self, write: _Write, *, first: bool = False) -> Any:
        if first:
            self._backlog.put_first(write)
        else:
            self._backlog.put(write)
        if not self._busy:
            self._busy = True
            # Not at once, so that whatever else this turn of the loop asks for is in the same batch.
            write.loop.call_soon(self._write_next)
        if not self._looking:
            self._looking = True
            write.loop.call_later(OPEN_TIMEOUT / 10, self._look, write.loop)
        # A waiter that is cancelled cancels this future, and not the write.
        return await write.done

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Withdraw what waits for too long: one timer for all, because nearly none of them ever does."""
        self._looking = self._busy
        if self._looking:
            loop.call_later(OPEN_TIMEOUT / 10, self._look, loop)
        now = loop.time()
        for write in (*self._in_flight, *self._backlog):
            if write.until is not None and now >= write.until and not write.done.done():
                metrics.record_errors.inc()
                unavailable = RecordsUnavailable(f"The database did not take a record in {OPEN_TIMEOUT} s.")
                unavailable.never_written = self._backlog.withdraw(write)
                write.done.set_exception(unavailable)

    def _write_next(self) -> None:
        self._in_flight = writes = self._backlog.take(BATCH)
        self._busy = bool(writes)
        if writes:
            self._writer.do(partial(self._write, writes))
        elif self._shutting:
            self._let_go()

    def _write(self, writes: list[_Write]) -> None:
        """On the ledger's thread."""
        outcomes = batch.settle_on_fresh_connections(writes)
        # The loop may be closed by now; then nobody waits.
        with suppress(RuntimeError):
            writes[0].loop.call_soon_threadsafe(self._written, writes, outcomes)

    def _written(self, writes: list[_Write], outcomes: list[Any]) -> None:
        self._write_next()
        for write, outcome in zip(writes, outcomes, strict=True):
            _answer(write, outcome)


class InlineLedger(Ledger):
    """Writes in the thread and the transaction of a test, whose data no other thread would see.

    One by one, and for as long as it takes.
    """

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    def shut(self) -> None:
        """There is nothing to let go of."""

    async def _do(self, write: _Write, *, first: bool = False) -> Any:
        async with self._lock:
            if threading.current_thread() is threading.main_thread():
                # pytest-asyncio: the loop runs in the thread that holds the test's transaction.
                with _off_the_loop():
                    outcomes = batch.settle([write])
            else:
                # Django's TestCase: the loop runs beside that thread, and this is the way into it.
                outcomes = await sync_to_async(batch.settle)([write])
        _answer(write, outcomes[0])
        return await write.done


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


def _answer(write: _Write, outcome: Any) -> None:
    if write.done.done():
        # Its waiter was cancelled, or was told that it took too long.
        return
    if isinstance(outcome, BaseException):
        write.done.set_exception(outcome)
    else:
        write.done.set_result(outcome)
