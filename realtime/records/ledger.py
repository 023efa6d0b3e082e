"""The writer of this process's records, in the order of the calls.

One batch is in flight at a time. Writes that are asked for meanwhile wait and become the next batch: a few
bulk statements in one transaction, for one client as for a thousand. Batches are written on a thread of the
ledger's own, never on the one that all consumers share for the ORM. There, one slow query would hold up every
close.

A cancelled caller does not cancel its write. Opens and joins are tried once, because a client is waiting to
be let in. One that is still queued after `open_timeout` is withdrawn. Otherwise clients that reconnect again
and again would fill the queue of a database that hangs. Closes and leaves are repeated until the database
takes them, because no other code in this process will write them.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from django.db import Error, connections
from django.utils.module_loading import import_string

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import RecordsUnavailable
from realtime.process.pids import Pid
from realtime.records import batch, client_rows, connection_rows, process_rows
from realtime.records.entries import Changes, Client, Closed, Closing, Join, Opening, Superseded
from realtime.records.process_rows import Look
from realtime.records.retry import Retry
from realtime.records.thread import Writer
from realtime.records.write_queue import Kind, Write, WriteQueue

#: Seconds that a client waits for its record before it is told to come back later.
OPEN_TIMEOUT = 5.0
#: Rows that one batch writes. SQLite has one writer at a time, and other processes need their turn.
BATCH = 200

#: The class for each value of the setting LEDGER. By name, so that no server imports the one for tests.
_CLASSES = {
    "thread": "realtime.records.ledger.Ledger",
    "inline": "realtime.records.inline_ledger.InlineLedger",
}

logger = logging.getLogger("realtime.records")

Result = TypeVar("Result")


class Ledger:
    """Writes records for the event loop that it is used on.

    Args:
        open_timeout: Seconds after which a write that is tried once fails.
        retry: The pauses between the tries of closes and leaves.
    """

    #: True if other processes see the rows that this ledger writes, and it sees theirs.
    shared = True

    def __init__(self, open_timeout: float = OPEN_TIMEOUT, retry: Retry | None = None) -> None:
        self._open_timeout = open_timeout
        self._retry = Retry() if retry is None else retry
        self._queue = WriteQueue()
        self._writer = Writer("realtime-ledger")
        self._in_flight: list[Write] = []
        self._busy = False
        """True while a batch is in flight or about to be."""
        self._timer_set = False
        self._shutting = False
        self._unsure: list[batch.Arrivals] = []
        """Used on the thread only: the arrivals of batches that may have been committed."""
        self.on_changes: Callable[[Changes], None] = _ignore
        """Called with what a batch has changed in presence, before its callers have their answers."""

    async def start_process(self, channel_name: str, pid: Pid, look_every: float = 0.0) -> uuid.UUID:
        """Record a server process that starts.

        Args:
            channel_name: The address of its hub.
            pid: Its pid.
            look_every: Seconds within which it looks for rounds that it was not asked.

        Returns:
            The id of its row.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        process: uuid.UUID = await self._call_once(
            process_rows.start_process,
            channel_name,
            pid.host,
            pid.number,
            pid.namespace,
            pid.began,
            look_every,
        )
        return process

    async def answer_round(self, process: uuid.UUID, number: int, **state: Any) -> bool:
        """Write an answer to a round, before all writes that wait.

        Args:
            process: The process that answers.
            number: The round.
            **state: As in `process_rows.answer_round`.

        Returns:
            False if the process was declared lost.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        running: bool = await self._call_once(process_rows.answer_round, process, number, first=True, **state)
        return running

    async def look_for_rounds(self, process: uuid.UUID) -> Look:
        """Read what the process has to know of rounds, before all writes that wait.

        Raises:
            RecordsUnavailable: The database did not answer.
        """
        # A storm of clients fills the queue for many seconds, and a living process must answer in time.
        look: Look = await self._call_once(process_rows.look_for_rounds, process, first=True)
        return look

    async def stop_process(self, process: uuid.UUID) -> bool:
        """Record a planned stop.

        Returns:
            False if the process had ended already.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        stopped: bool = await self._call_once(process_rows.stop_process, process)
        return stopped

    async def open(self, opening: Opening) -> None:
        """Open a record. Returns when it is committed.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        await self._try_once(Write(Kind.OPEN, (opening,), (opening.id,)))

    async def join(self, join: Join) -> None:
        """Open a membership. Returns when it is committed.

        The record may still be waiting to be opened: its open comes first, in the same batch if possible.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        await self._try_once(Write(Kind.JOIN, (join,), (join.connection_id,)))

    async def leave(self, joins: Sequence[Join]) -> None:
        """Mark memberships as left. Call it after the `group_discard`s returned.

        Returns when the rows are committed, however long that takes.
        """
        for start in range(0, len(joins), BATCH):
            rows = joins[start : start + BATCH]
            await self._repeat(Kind.LEAVE, rows, {join.connection_id for join in rows})

    async def close(self, closing: Closing) -> Closed:
        """Close a record. Returns when it is closed, however long that takes."""
        closed: Closed = await self._repeat(Kind.CLOSE, (closing,), (closing.id,))
        return closed

    async def supersede(self, clients: Collection[Client]) -> list[Superseded]:
        """Close the open records of these clients, except the newest one of each.

        Call it when the newest records are committed. Returns when the others are closed, however long that
        takes.

        Args:
            clients: The clients, as `client_rows.clients_of` returns them.

        Returns:
            The records that this call closed. Each is returned to one caller only.
        """
        found = await self._repeat_call(client_rows.superseded, clients)
        if not found:
            return []
        reason = CloseReason.SUPERSEDED
        closings = [Closing(each.opening.id, reason, reason.code) for each in found]
        # With one stamp, so that a repeated call returns again what an earlier one closed.
        closed = await self._repeat_call(connection_rows.end_connections, closings, uuid.uuid4())
        return [each for each in found if each.opening.id in closed]

    async def touch(self, connections: Sequence[uuid.UUID]) -> None:
        """Note that these connections gave a proof of life.

        Raises:
            RecordsUnavailable: The database did not take it.
        """
        # In several calls, so that no new client waits until ten thousand rows are written.
        for start in range(0, len(connections), connection_rows.BATCH):
            some = connections[start : start + connection_rows.BATCH]
            await self._call_once(connection_rows.touch_connections, some)

    async def call(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Call any other function of `records` in its turn, once, however long it takes.

        Raises:
            Exception: Any exception of the function.
        """
        result: Result = await self._submit(Write(Kind.CALL, call=partial(call, *arguments)))
        return result

    def shut(self) -> None:
        """End the thread and close its database connection, after the waiting writes were written."""
        self._shutting = True
        if not self._busy:
            self._end_thread()

    def _end_thread(self) -> None:
        self._writer.do(connections.close_all)
        self._writer.shut()

    async def _call_once(
        self, call: Callable[..., Any], *arguments: object, first: bool = False, **options: Any
    ) -> Any:
        return await self._try_once(Write(Kind.CALL, call=partial(call, *arguments, **options)), first=first)

    async def _try_once(self, write: Write, *, first: bool = False) -> Any:
        write.deadline = asyncio.get_running_loop().time() + self._open_timeout
        try:
            result = await self._submit(write, first=first)
        except Error as error:
            metrics.record_errors.inc()
            remedy = " Run `manage.py migrate`." if _lacks_a_table(error) else ""
            raise RecordsUnavailable(f"The database did not take a record ({error!r}).{remedy}") from error
        self._retry.over()
        return result

    async def _repeat_call(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Call a function of `records`, before all writes that wait, until the database answers."""
        result: Result = await self._repeat(Kind.CALL, call=partial(call, *arguments), first=True)
        return result

    async def _repeat(
        self,
        kind: Kind,
        rows: Sequence[Any] = (),
        connections: Collection[uuid.UUID] = (),
        *,
        call: Callable[[], Any] | None = None,
        first: bool = False,
    ) -> Any:
        stamp = None
        while True:
            write = Write(kind, rows, connections, call=call, stamp=stamp)
            try:
                result = await self._submit(write, first=first)
            except Error as error:
                metrics.record_errors.inc()
                if batch.is_row_error(error):
                    # The write was tried alone and refused, so it would be refused for ever. The database
                    # works, so the writes that wait for this one go on.
                    self._retry.over()
                    raise
                stamp = write.stamp
                await self._retry.pause(error)
            except BaseException:
                # Perhaps all other writes wait for this one, and its outcome is no longer known here.
                self._retry.over()
                raise
            else:
                self._retry.over()
                return result

    async def _submit(self, write: Write, *, first: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        write.done = done = loop.create_future()
        if first:
            self._queue.put_first(write)
        else:
            self._queue.put(write)
        if not self._busy:
            self._busy = True
            # Not in this turn of the loop, so that all writes that it asks for are in the same batch.
            loop.call_soon(self._write_next)
        if not self._timer_set:
            self._set_timer()
        # A caller that is cancelled cancels this future, and not the write.
        return await done

    def _set_timer(self) -> None:
        """Look for late writes soon: one timer for all, because nearly no write is ever late."""
        self._timer_set = True
        asyncio.get_running_loop().call_later(self._open_timeout / 10, self._withdraw_late)

    def _withdraw_late(self) -> None:
        """Fail every write that is late, and withdraw it if no batch has taken it."""
        self._timer_set = False
        if self._busy:
            self._set_timer()
        now = asyncio.get_running_loop().time()
        for write in (*self._in_flight, *self._queue):
            if write.deadline is not None and now >= write.deadline and not write.answered:
                metrics.record_errors.inc()
                unavailable = RecordsUnavailable(
                    f"The database did not take a record in {self._open_timeout} s."
                )
                unavailable.never_written = self._queue.withdraw(write)
                write.answer(unavailable)

    def _write_next(self) -> None:
        self._in_flight = writes = self._queue.take(BATCH)
        self._busy = bool(writes)
        if writes:
            self._writer.do(partial(self._write, asyncio.get_running_loop(), writes))
        elif self._shutting:
            self._end_thread()

    def _write(self, loop: asyncio.AbstractEventLoop, writes: list[Write]) -> None:
        """Write a batch, on the ledger's thread."""
        written = batch.write_batch_outside_requests(writes, self._unsure)
        # If the loop is closed by now, no caller waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._written, writes, written)

    def _tell(self, changes: Changes) -> None:
        try:
            self.on_changes(changes)
        except Exception:
            # The callers of the batch must get their answers.
            logger.exception("A change in presence could not be told; it is found within a round")

    def _written(self, writes: list[Write], written: batch.Written) -> None:
        self._write_next()
        if written.changes is not None:
            self._tell(written.changes)
        for write, result in zip(writes, written.results, strict=True):
            write.answer(result)


def _ignore(changes: Changes) -> None:
    """Do nothing with changes in presence."""


def _lacks_a_table(error: Error) -> bool:
    """Return True if a table of this package is missing, in the words of SQLite or PostgreSQL."""
    text = str(error)
    return "no such table" in text or ("relation" in text and "does not exist" in text)


def make() -> Ledger:
    """Return a new ledger of the class that the setting LEDGER names."""
    made: Ledger = import_string(_CLASSES[conf.get().LEDGER])()
    return made
