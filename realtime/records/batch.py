"""How one batch of the ledger is written: a few bulk statements, in one transaction.

Synchronous, for the ledger's own thread.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from django.db import DataError, Error, IntegrityError, close_old_connections, reset_queries

from realtime.records import connection_rows, write_queue
from realtime.records.entries import Closing
from realtime.records.write_queue import Kind


class Write(write_queue.Write):
    """One write to the tables; `call` is what a `Kind.CALL` does."""

    __slots__ = ("call", "stamp")

    def __init__(
        self,
        kind: Kind,
        rows: Sequence[Any] = (),
        connections: Collection[uuid.UUID] = (),
        call: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(kind, rows, connections)
        self.call = call
        self.stamp: uuid.UUID | None = None
        """Of the first batch that has this close in it. A close that is repeated keeps it: after a COMMIT
        whose answer was lost, it finds its own.
        """


def settle(batch: Sequence[Write]) -> list[Any]:
    """Write a batch; returns for each write its result, or the exception that it failed with.

    A batch that is refused for one of its rows is written again in halves, so that only the culprit fails.
    """
    try:
        return _transact(batch)
    except Exception as error:
        if len(batch) == 1 or not is_for_its_rows(error):
            return [error] * len(batch)
    middle = len(batch) // 2
    return settle(batch[:middle]) + settle(batch[middle:])


def settle_on_fresh_connections(batch: Sequence[Write]) -> list[Any]:
    """`settle`, where no request begins or ends: only there Django drops connections that broke or grew old,
    and with DEBUG the texts of the last thousands of queries.
    """
    try:
        reset_queries()
        close_old_connections()
        try:
            return settle(batch)
        finally:
            close_old_connections()
    except BaseException as error:
        # The thread goes on whatever this was, or nobody would be told.
        return [error] * len(batch)


def is_for_its_rows(error: BaseException) -> bool:
    """Whether the rows are what the database refuses; else it is the database that is not well."""
    return isinstance(error, IntegrityError | DataError) or not isinstance(error, Error)


def _transact(batch: Sequence[Write]) -> list[Any]:
    if batch[0].call is not None:
        return [batch[0].call()]
    rows: dict[Kind, list[Any]] = defaultdict(list)
    endings: dict[uuid.UUID, list[Closing]] = defaultdict(list)
    new_stamp = uuid.uuid4()
    for write in batch:
        rows[write.kind] += write.rows
        if write.kind is Kind.CLOSE:
            write.stamp = write.stamp or new_stamp
            endings[write.stamp] += write.rows
    closed: set[uuid.UUID] = set()
    with connection_rows.in_one_transaction():
        if openings := rows[Kind.OPEN]:
            connection_rows.open_connections(openings)
        if joins := rows[Kind.JOIN]:
            connection_rows.open_memberships(joins)
        if leaves := rows[Kind.LEAVE]:
            connection_rows.leave_memberships(leaves)
        for stamp, closings in endings.items():
            closed |= connection_rows.close_connections(closings, stamp)
    return [write.rows[0].id in closed if write.kind is Kind.CLOSE else None for write in batch]
