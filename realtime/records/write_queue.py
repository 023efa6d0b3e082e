"""The queue of writes that wait for the database, and the choice of the writes of one transaction.

A batch is written kind by kind: first records are opened, then memberships joined, then memberships left,
then records closed. Within one batch, that order could put a write before an earlier write of the same
connection. Such a write waits for the next batch.
"""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the future belongs to the ledger; this file only carries it
    import asyncio


class Kind(IntEnum):
    """The kinds of writes, in the order that a batch writes them."""

    OPEN = 1
    JOIN = 2
    LEAVE = 3
    CLOSE = 4
    CALL = 5
    """Any other call of `records`. It is written alone, after every write that stands before it."""


class Write:
    """One write that the ledger was asked for.

    Args:
        kind: The kind of the write.
        rows: The rows to write, all of this kind; empty for a call.
        connections: The ids of the connections that the rows belong to.
        call: The function that a `Kind.CALL` calls.
        stamp: The stamp of a close that is repeated, see below.
    """

    __slots__ = ("call", "connections", "deadline", "done", "kind", "rows", "stamp")

    def __init__(
        self,
        kind: Kind,
        rows: Sequence[Any] = (),
        connections: Collection[Hashable] = (),
        *,
        call: Callable[[], Any] | None = None,
        stamp: uuid.UUID | None = None,
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.connections = connections
        self.call = call
        self.stamp = stamp
        """The stamp of the first batch that contains this close. A repeated close keeps it. If a COMMIT
        succeeded and its answer was lost, the repetition thereby finds the rows that it closed itself.
        """
        self.deadline: float | None = None
        """The time, on the loop's clock, when the caller gives up; None if the caller waits without limit."""
        self.done: asyncio.Future[Any] | None = None
        """The future that the caller waits for, from the moment when the write is queued."""

    @property
    def answered(self) -> bool:
        """True if no caller waits: it has its answer, was cancelled, or never waited."""
        return self.done is None or self.done.done()

    def answer(self, outcome: Any) -> None:
        """Give the caller its result, or raise the exception `outcome` there, if it still waits."""
        if self.done is None or self.done.done():
            return
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class WriteQueue:
    """Writes in the order of the calls."""

    def __init__(self) -> None:
        # An ordered dict and not a queue, so that withdrawing a write is no search. While the database hangs,
        # thousands wait and are withdrawn.
        self._waiting: OrderedDict[Write, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Write]:
        return iter(self._waiting)

    def put(self, write: Write) -> None:
        """Add a write behind all others."""
        self._waiting[write] = None

    def put_first(self, write: Write) -> None:
        """Add a call before all writes that wait; it must not depend on any of them."""
        self._waiting[write] = None
        self._waiting.move_to_end(write, last=False)

    def withdraw(self, write: Write) -> bool:
        """Take a write back.

        Returns:
            False if a batch has taken the write already.
        """
        if write not in self._waiting:
            return False
        del self._waiting[write]
        return True

    def take(self, limit: int) -> list[Write]:
        """Remove the writes of the next batch.

        Args:
            limit: The largest number of rows in the batch. A single write that has more is taken alone.

        Returns:
            The writes, in the order that they must be written; empty if none waits.
        """
        batch: list[Write] = []
        reached: dict[Hashable, Kind] = {}
        rows = 0
        for write in self._waiting:
            if write.kind is Kind.CALL:
                if not batch and not reached:
                    batch.append(write)
                break
            if batch and rows + len(write.rows) > limit:
                break
            if all(_may_follow(write.kind, reached.get(each)) for each in write.connections):
                batch.append(write)
                rows += len(write.rows)
                reached.update(dict.fromkeys(write.connections, write.kind))
            else:
                # This write waits, and so does every later write of its connections.
                reached.update(dict.fromkeys(write.connections, Kind.CALL))
        for write in batch:
            del self._waiting[write]
        batch.sort(key=_kind)
        return batch


def _may_follow(kind: Kind, last: Kind | None) -> bool:
    """Return True if a batch may take a write of `kind` after `last`, its last write of that connection.

    Two closes of one connection are never in one batch: only one of them may find that it was the first.
    """
    return last is None or (kind >= last and last is not Kind.CLOSE)


def _kind(write: Write) -> Kind:
    return write.kind
