"""Write one batch of the ledger: a few bulk statements in one transaction.

Everything here is synchronous and runs on the ledger's own thread.
"""

import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.db import DataError, Error, IntegrityError, close_old_connections, reset_queries

from realtime.records import connection_rows
from realtime.records.entries import Closing
from realtime.records.write_queue import Kind, Write


def write_batch(batch: Sequence[Write]) -> list[Any]:
    """Write a batch. If the database refuses it because of one row, write it again in halves, so that only
    the write with that row fails.

    Returns:
        For each write its result, or the exception that it failed with.
    """
    try:
        return _transact(batch)
    except Exception as error:
        if len(batch) == 1 or not is_row_error(error):
            return [error] * len(batch)
    middle = len(batch) // 2
    return write_batch(batch[:middle]) + write_batch(batch[middle:])


def write_batch_outside_requests(batch: Sequence[Write]) -> list[Any]:
    """Write a batch on a thread that serves no requests.

    Django drops broken and old connections only when a request begins or ends, and with DEBUG also the texts
    of the last thousands of queries. This function does both around the batch.
    """
    try:
        reset_queries()
        close_old_connections()
        try:
            return write_batch(batch)
        finally:
            close_old_connections()
    except BaseException as error:
        # Also SystemExit and the like: the thread must go on, or no caller would get its answer.
        return [error] * len(batch)


def is_row_error(error: BaseException) -> bool:
    """Return True if the rows are the cause of a failure; otherwise the database itself is not well."""
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
            connection_rows.mark_memberships_left(leaves)
        for stamp, closings in endings.items():
            closed |= connection_rows.close_connections(closings, stamp)
    return [write.rows[0].id in closed if write.kind is Kind.CLOSE else None for write in batch]
