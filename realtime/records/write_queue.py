"""Writes that wait for the database, and which of them one transaction takes.

A batch is written kind by kind: records are opened, then memberships joined, then left, then records
closed. So a write waits for the next batch when this one would do it before an earlier write of the same
connection.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar


class Kind(IntEnum):
    """In the order in which the kinds of one batch are written."""

    OPEN = 1
    JOIN = 2
    LEAVE = 3
    CLOSE = 4
    CALL = 5
    """Anything else: written alone, after everything that stands before it."""


class Write:
    """One write: rows of one kind, and the connections whose rows they are."""

    __slots__ = ("connections", "kind", "rows")

    def __init__(self, kind: Kind, rows: Sequence[Any], connections: Collection[Hashable] = ()) -> None:
        self.kind = kind
        self.rows = rows
        self.connections = connections


WriteType = TypeVar("WriteType", bound=Write)


class WriteQueue(Generic[WriteType]):
    """Writes in the order in which they were asked for."""

    def __init__(self) -> None:
        # Ordered and not a queue: a database that hangs must not make every withdrawal a search.
        self._waiting: OrderedDict[WriteType, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WriteType]:
        return iter(self._waiting)

    def put(self, write: WriteType) -> None:
        """Add a write behind all others."""
        self._waiting[write] = None

    def put_first(self, write: WriteType) -> None:
        """Add a call before all that wait; it must not depend on any of them."""
        self._waiting[write] = None
        self._waiting.move_to_end(write, last=False)

    def withdraw(self, write: WriteType) -> bool:
        """Take a write back; False when a batch has it already."""
        if write not in self._waiting:
            return False
        del self._waiting[write]
        return True

    def take(self, limit: int) -> list[WriteType]:
        """The next batch, in the order in which it is to be written: of at most `limit` rows, unless one
        write alone has more.
        """
        batch: list[WriteType] = []
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
                # It waits, and so does everything of these connections that was asked for after it.
                reached.update(dict.fromkeys(write.connections, Kind.CALL))
        for write in batch:
            del self._waiting[write]
        batch.sort(key=_kind)
        return batch


def _may_follow(kind: Kind, last: Kind | None) -> bool:
    """Whether a batch that has `last` of a connection may have this after it. Of two closes only one may
    find that it was the first, so they are never in one batch.
    """
    return last is None or (kind >= last and last is not Kind.CLOSE)


def _kind(write: Write) -> Kind:
    return write.kind
