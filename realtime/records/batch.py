"""Write one batch of the ledger: a few bulk statements in one transaction.

Presence is brought in line at the end of the transaction, when all memberships and connections of the batch
are written. Its locks come after all others.

Everything here is synchronous and runs on the ledger's own thread.
"""

import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from django.db import DataError, Error, IntegrityError, close_old_connections, reset_queries

from realtime import conf
from realtime.closing import SILENCE
from realtime.models import PresentUser
from realtime.records import connection_rows, presence_rows
from realtime.records.entries import ONLINE, Changes, Closed, Closing, Place, Stay
from realtime.records.rows import again_after_conflict, cut, is_conflict
from realtime.records.write_queue import Kind, Write

logger = logging.getLogger("realtime.records")


class Written(NamedTuple):
    """The outcome of a batch."""

    results: list[Any]
    """For each write its result, or the exception that it failed with."""
    changes: Changes | None = None
    """The changes that others must be told; None if there are none."""


@dataclass(slots=True)
class _Settled:
    """The changes of transactions in presence."""

    began: list[Stay] = field(default_factory=list)
    dormant: set[uuid.UUID] = field(default_factory=set)
    """The connections that made their user dormant by their end."""
    departed: bool = False
    """True if users may have gone."""

    def add(self, other: "_Settled") -> None:
        self.began += other.began
        self.dormant |= other.dormant
        self.departed = self.departed or other.departed


class Arrivals(NamedTuple):
    """The arrivals of a transaction with a COMMIT that was not answered."""

    stamp: uuid.UUID
    places: Collection[Place]


def write_batch(batch: Sequence[Write], unsure: list[Arrivals] | None = None) -> Written:
    """Write a batch.

    If the database refuses it because of one row, it is written again in halves, so that only the write with
    that row fails. If PostgreSQL rolls it back because another writer was in its way, it is written again.

    Args:
        batch: The writes.
        unsure: Arrivals of earlier batches that may have been committed. The first batch that is written
            finds out, returns their stays as its own, and empties the list. A batch adds its own if its
            COMMIT is not answered.
    """
    settled = _Settled()
    unsure = [] if unsure is None else unsure
    results = _write_in_parts(batch, settled, unsure)
    if unsure and not all(isinstance(result, Exception) for result in results):
        settled.began += _begun(unsure)
    return Written(results, _changes(settled) if settled.began or settled.departed else None)


def write_batch_outside_requests(batch: Sequence[Write], unsure: list[Arrivals] | None = None) -> Written:
    """Write a batch on a thread that serves no requests.

    Django drops broken and old connections only when a request begins or ends, and with DEBUG also the texts
    of the last thousands of queries. This function does both around the batch.
    """
    try:
        reset_queries()
        close_old_connections()
        try:
            return write_batch(batch, unsure)
        finally:
            close_old_connections()
    except BaseException as error:
        # Also SystemExit and the like: the thread must go on, or no caller would get its answer.
        return Written([error] * len(batch))


def is_row_error(error: BaseException) -> bool:
    """Return True if the rows are the cause of a failure; otherwise the database itself is not well."""
    return isinstance(error, IntegrityError | DataError) or not isinstance(error, Error)


def _write_in_parts(batch: Sequence[Write], settled: _Settled, unsure: list[Arrivals]) -> list[Any]:
    try:
        results, part = _transact(batch, unsure)
    except Exception as error:
        if len(batch) == 1 or not is_row_error(error):
            return [error] * len(batch)
    else:
        settled.add(part)
        return results
    middle = len(batch) // 2
    return [
        *_write_in_parts(batch[:middle], settled, unsure),
        *_write_in_parts(batch[middle:], settled, unsure),
    ]


def _transact(batch: Sequence[Write], unsure: list[Arrivals]) -> tuple[list[Any], _Settled]:
    """Write a batch in one transaction. Return the results of its writes, and what it changed in presence."""
    if batch[0].call is not None:
        return [batch[0].call()], _Settled()
    rows: dict[Kind, list[Any]] = defaultdict(list)
    endings: dict[uuid.UUID, list[Closing]] = defaultdict(list)
    new_stamp = uuid.uuid4()
    for write in batch:
        rows[write.kind] += write.rows
        if write.kind is Kind.CLOSE:
            write.stamp = write.stamp or new_stamp
            endings[write.stamp] += write.rows
    arrivals = Arrivals(new_stamp, _arrived(rows))

    def write_all() -> tuple[Collection[uuid.UUID], _Settled]:
        closed: dict[uuid.UUID, str] = {}
        committing = False
        try:
            with connection_rows.in_one_transaction():
                if openings := rows[Kind.OPEN]:
                    connection_rows.open_connections(openings)
                if joins := rows[Kind.JOIN]:
                    connection_rows.open_memberships(joins)
                if leaves := rows[Kind.LEAVE]:
                    connection_rows.mark_memberships_left(leaves)
                for stamp, closings in endings.items():
                    closed.update(connection_rows.close_connections(closings, stamp))
                settled = _settle(rows, closed, arrivals)
                committing = True
        except Exception as error:
            # A refusal is an answer: nothing was committed.
            if committing and arrivals.places and not (is_row_error(error) or is_conflict(error)):
                unsure.append(arrivals)
            raise
        return closed, settled

    closed, settled = again_after_conflict(write_all)
    results = [
        _closed(write.rows[0], closed, settled.dormant) if write.kind is Kind.CLOSE else None
        for write in batch
    ]
    return results, settled


def _arrived(rows: Mapping[Kind, Sequence[Any]]) -> set[Place]:
    if not conf.get().PRESENCE:
        return set()
    users = {cut(opening.user_id, PresentUser, "user_id") for opening in rows[Kind.OPEN] if opening.user_id}
    return {*(Place(ONLINE, user) for user in users), *connection_rows.tracked_places(rows[Kind.JOIN])}


def _settle(
    rows: Mapping[Kind, Sequence[Any]], closed: Mapping[uuid.UUID, str], arrivals: Arrivals
) -> _Settled:
    """Bring presence in line with the rows of a batch.

    Args:
        rows: The rows of the batch.
        closed: The connections that it closed, with their users.
        arrivals: The places that have new memberships and connections.
    """
    if not conf.get().PRESENCE:
        return _Settled()
    left = connection_rows.tracked_places(rows[Kind.LEAVE])
    departed = {*left, *connection_rows.places_of(closed)}
    if not arrivals.places and not departed:
        return _Settled()
    silent = {
        closed[closing.id]: closing.id
        for closing in rows[Kind.CLOSE]
        if closing.reason in SILENCE and closed.get(closing.id)
    }
    began, dormant = presence_rows.settle(arrivals.places, departed, silent, arrivals.stamp)
    return _Settled(began, dormant, bool(departed))


def _begun(unsure: list[Arrivals]) -> list[Stay]:
    """Return the stays that began by writes without an answer to their COMMIT, and empty the list."""
    try:
        found = [stay for each in unsure for stay in presence_rows.stays_begun_by(*each)]
    except Exception:
        # The next batch tries again.
        logger.exception("The stays of a write without an answer could not be found")
        return []
    unsure.clear()
    return found


def _closed(closing: Closing, closed: Collection[uuid.UUID], dormant: Collection[uuid.UUID]) -> Closed:
    return Closed(was_first=closing.id in closed, is_dormant=closing.id in dormant)


def _changes(settled: _Settled) -> Changes:
    try:
        changes = presence_rows.changes(settled.began)
    except Exception:
        # The stays are committed. The processes that watch find them with their next comparison.
        logger.exception("The processes that watch presence could not be found")
        changes = Changes(tuple(settled.began))
    return replace(changes, departed=settled.departed)
