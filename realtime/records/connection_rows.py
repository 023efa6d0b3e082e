"""Every read and write of the rows of connections and memberships. Synchronous; one statement or one atomic
block for each `BATCH` rows.

Times are the database's. Writes that decide something are conditional UPDATEs and answer "was it me?". All
may be repeated with the same arguments, so a caller that never saw the answer to its COMMIT calls again.
Reads go to the database that is written to: a replica may be behind. All raise a `django.db.Error` when the
database cannot be reached or refuses a row.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process
from realtime.records import rows
from realtime.records.entries import Closing, Join, Opening

BATCH = rows.BATCH


@dataclass(frozen=True, slots=True)
class Leftover:
    """A membership that a running process still has to leave, although its connection is closed."""

    process_id: uuid.UUID
    channel_name: str
    connection_id: uuid.UUID
    group: str


class Forgotten(NamedTuple):
    """How many records of a user were deleted, and how many only lost what names the user."""

    deleted: int
    emptied: int


def in_one_transaction() -> AbstractContextManager[Any]:
    """For calls of the four functions that follow, to be committed together or not at all."""
    return transaction.atomic(using=rows.database())


def open_connections(openings: Sequence[Opening]) -> None:
    """Insert the records of new connections; those that exist are left as they are, even when closed."""
    texts = ("user_id", "path", "remote_address", "user_agent", "subprotocol")
    rows.insert_new(
        Connection,
        ("id", "process_id", *texts),
        [
            (
                opening.id,
                opening.process_id,
                *(rows.cut(getattr(opening, name), Connection, name) for name in texts),
            )
            for opening in openings
        ],
        now=("opened_at", "last_seen_at"),
    )


def close_connections(closings: Sequence[Closing], stamp: uuid.UUID) -> set[uuid.UUID]:
    """Close records that are open, and return the ids of those that were closed with this stamp.

    Of any number of callers exactly one stamp gets each id. A call that is repeated with its stamp returns
    the same ids again, so each new batch needs a new stamp.
    """
    using = rows.database()
    mine: set[uuid.UUID] = set()
    for batch in rows.batches(closings):
        endings = defaultdict(list)
        for closing in batch:
            endings[closing.reason, _code(closing.code)].append(closing.id)
        records = Connection.objects.using(using).filter(pk__in=[closing.id for closing in batch])
        with transaction.atomic(using=using, savepoint=False):
            rows.lock(records.open())
            for (reason, code), ids in endings.items():
                records.open().filter(pk__in=ids).update(
                    closed_at=Now(), close_reason=reason.value, close_code=code, closed_by=stamp
                )
            closed = set(records.filter(closed_by=stamp).values_list("pk", flat=True))
            # In the same transaction, so that no record is closed whose memberships nobody looks for.
            held = Membership.objects.using(using).to_leave().filter(connection__in=closed)
            rows.lock(held)
            held.update(connection_closed=True)
        mine |= closed
    return mine


def open_memberships(joins: Sequence[Join]) -> None:
    """Insert memberships; those that are open already are left as they are."""
    rows.insert_new(
        Membership,
        ("connection_id", "process_id", "group"),
        [(join.connection_id, join.process_id, join.group) for join in joins],
        now=("joined_at",),
    )


def mark_memberships_left(joins: Sequence[Join]) -> int:
    """Mark memberships as left, after their `group_discard` returned; return how many this call marked."""
    using = rows.database()
    left = 0
    for batch in rows.batches(joins):
        groups = defaultdict(set)
        for join in batch:
            groups[join.connection_id].add(join.group)
        # Those that leave the same groups together: each condition costs more than the rows that it names.
        leaving = defaultdict(list)
        for connection_id, names in groups.items():
            leaving[frozenset(names)].append(connection_id)
        named = Q(pk__in=())
        for same, ids in leaving.items():
            named |= Q(connection__in=ids, group__in=same)
        memberships = Membership.objects.using(using).to_leave().filter(named)
        with transaction.atomic(using=using, savepoint=False):
            rows.lock(memberships)
            left += memberships.update(left_at=Now())
    return left


def touch_connections(ids: Iterable[uuid.UUID]) -> None:
    """Note that these connections gave a proof of life; for display only."""
    using = rows.database()
    for batch in rows.batches(ids):
        records = Connection.objects.using(using).open().filter(pk__in=batch)
        with transaction.atomic(using=using):
            rows.lock(records)
            records.update(last_seen_at=Now())


# What an ended process has left


def close_lost_records(process_id: uuid.UUID, stamp: uuid.UUID, limit: int = BATCH) -> int:
    """Close up to `limit` open records of an ended process as SERVER_LOST; call until it returns 0.

    Rows that another writer is closing at this moment are passed over.
    """
    using = rows.database()
    ended = Process.objects.using(using).ended().filter(pk=process_id)
    records = Connection.objects.using(using).open()
    with transaction.atomic(using=using):
        batch = rows.lock_some(records.filter(process__in=ended), limit)
        return records.filter(pk__in=batch).update(
            closed_at=Now(), close_reason=CloseReason.SERVER_LOST.value, closed_by=stamp
        )


def groups_to_leave(process_id: uuid.UUID, limit: int = BATCH) -> list[str]:
    """The names of groups that a process has not left yet, in order."""
    memberships = Membership.objects.using(rows.database()).to_leave().filter(process=process_id)
    return list(memberships.order_by("group").values_list("group", flat=True).distinct()[:limit])


def mark_groups_left(process_id: uuid.UUID, groups: Collection[str]) -> set[str]:
    """Mark a process's memberships in these groups as left, after its `group_discard`s returned, or instead
    of them where the channel layer no longer exists.

    Returns the groups in which this call marked any: of two callers, each group is one's.
    """
    using = rows.database()
    left: set[str] = set()
    for batch in rows.batches(groups):
        with transaction.atomic(using=using):
            memberships = (
                Membership.objects.using(using).to_leave().filter(process=process_id, group__in=batch)
            )
            # A write that changes nothing comes first: callers for one process take turns, and a deferred
            # transaction of SQLite that began with a read would fail at its first write.
            Process.objects.using(using).filter(pk=process_id).update(stopped_at=F("stopped_at"))
            rows.lock(memberships)
            left.update(memberships.values_list("group", flat=True).distinct())
            memberships.update(left_at=Now())
    return left


def leftovers(process_id: uuid.UUID | None = None, limit: int = BATCH) -> list[Leftover]:
    """Memberships of closed connections that running processes, or this one, still have to leave, oldest
    first.
    """
    held = Membership.objects.using(rows.database()).leftovers().order_by("pk")
    if process_id is not None:
        held = held.filter(process=process_id)
    columns = held.values_list("process_id", "process__channel_name", "connection_id", "group")
    return [Leftover(*row) for row in columns[:limit]]


def purge_closed(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` records, closed for `older_than` seconds or longer, that have left all groups."""
    expired = Connection.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("closed_at"), limit)


def purge_left(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` memberships that were left `older_than` seconds ago or earlier.

    A connection that lives for months and joins and leaves all the time has ever more of them; those of a
    closed connection would otherwise go with its record.
    """
    expired = Membership.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("left_at"), limit)


def forget_user(user_id: str, limit: int = BATCH) -> Forgotten:
    """Remove everything that names this user, whatever its age.

    Records of closed connections are deleted. Others are needed until their connection has closed and left
    its groups: they lose the user, the address and the user agent.

    Args:
        user_id: The user's primary key as text, as records have it.

    Raises:
        ValueError: The key is empty, which is what records of anonymous clients have.
    """
    if not user_id:
        raise ValueError("an empty key is that of every anonymous client")
    using = rows.database()
    theirs = Connection.objects.using(using).filter(user_id=user_id)
    deleted = 0
    while number := rows.delete_some(theirs.to_purge(Now()).order_by("closed_at"), limit):
        deleted += number
    with transaction.atomic(using=using):
        rows.lock(theirs)
        emptied = theirs.update(user_id="", remote_address="", user_agent="")
    return Forgotten(deleted, emptied)


# Reads


def count_open_records(process_id: uuid.UUID) -> int:
    """How many open records a process has; an index is read over as many rows."""
    return Connection.objects.using(rows.database()).open().filter(process=process_id).count()


def _code(code: int | None) -> int | None:
    """A peer may send any two bytes as its close code; the column holds what RFC 6455 section 7.4 allows."""
    return code if code is not None and 1000 <= code <= 4999 else None
