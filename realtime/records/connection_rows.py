"""Every read and write of the rows of connections and memberships.

All functions are synchronous. Each is one statement, or one atomic block for each `BATCH` rows. All times
come from the database's clock. A write that decides something is a conditional UPDATE and returns what this
call changed. Each call may be repeated with the same arguments, so a caller that never saw the answer to its
COMMIT calls again. Reads go to the database that is written to, because a replica may be behind. If the
database cannot be reached or refuses a row, each function raises a `django.db.Error`.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from realtime import conf
from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process
from realtime.records import presence_rows, rows
from realtime.records.entries import ONLINE, Closing, Join, Opening, Place

BATCH = rows.BATCH


@dataclass(frozen=True, slots=True)
class Leftover:
    """A membership of a closed connection that its running process still has to leave."""

    process_id: uuid.UUID
    channel_name: str
    connection_id: uuid.UUID
    group: str
    reason: str
    """The `value` of the `CloseReason` in the record of the connection."""


@dataclass(frozen=True, slots=True)
class Held:
    """An open connection, and the running process that holds it."""

    process_id: uuid.UUID
    channel_name: str
    connection_id: uuid.UUID


class Forgotten(NamedTuple):
    """The outcome of `forget_user`."""

    deleted: int
    """The number of records that were deleted."""
    emptied: int
    """The number of records that are still needed and only lost what names the user."""


def in_one_transaction() -> AbstractContextManager[Any]:
    """Return a context that commits calls of the next functions and of `settle` together or not at all."""
    return transaction.atomic(using=rows.database())


def open_connections(openings: Sequence[Opening]) -> None:
    """Insert the records of new connections. A record that exists is left as it is, even if it is closed.

    Connections of one client get different times, in the order of `openings`.
    """
    for some in _without_repeated_clients(openings):
        _open_connections(some)


def _without_repeated_clients(openings: Sequence[Opening]) -> list[list[Opening]]:
    """Divide openings so that no part has a client twice: all rows of a statement have the same time."""
    parts: list[list[Opening]] = []
    counts: Counter[tuple[str, str]] = Counter()
    for opening in openings:
        client = (opening.user_id, opening.client_id)
        part = counts[client] if opening.client_id else 0
        counts[client] += 1
        if part == len(parts):
            parts.append([])
        parts[part].append(opening)
    return parts


def _open_connections(openings: Sequence[Opening]) -> None:
    texts = ("user_id", "path", "remote_address", "user_agent", "subprotocol", "client_id")
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


def close_connections(
    closings: Sequence[Closing], stamp: uuid.UUID, *, skip_locked: bool = False
) -> dict[uuid.UUID, str]:
    """Close these records, if they are open.

    Args:
        closings: The records to close.
        stamp: A value that no other batch has. A call that is repeated with its stamp returns the same ids
            again.
        skip_locked: Pass over memberships that another writer has locked, because it marks them as left.

    Returns:
        The ids of the records that were closed with this stamp, with their users. Of any number of callers
        that close a record, exactly one stamp gets its id.
    """
    using = rows.database()
    mine: dict[uuid.UUID, str] = {}
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
            closed = dict(records.filter(closed_by=stamp).values_list("pk", "user_id"))
            # In the same transaction, so that every membership of a closed record is found as a leftover.
            _note_closed(closed, skip_locked=skip_locked)
        mine.update(closed)
    return mine


def end_connections(closings: Sequence[Closing], stamp: uuid.UUID) -> dict[uuid.UUID, str]:
    """Close records of other processes, and note in the same transaction who has gone.

    The arguments and the result are those of `close_connections`.
    """
    with in_one_transaction():
        # The process of a connection may end it at the same time. Its batch locks first the memberships that
        # it leaves, and then the record: to wait here for these memberships would be a deadlock.
        closed = close_connections(closings, stamp, skip_locked=True)
        presence_rows.settle((), places_of(closed))
    return closed


def _note_closed(connections: Collection[uuid.UUID], *, skip_locked: bool = False) -> None:
    """Note in the memberships of closed connections that they do not count for presence any more."""
    held = Membership.objects.using(rows.database()).to_leave().filter(connection__in=connections)
    if not skip_locked or not rows.locks_rows(held):
        rows.lock(held)
        held.update(connection_closed=True)
        return
    free = held.select_for_update(no_key=True, skip_locked=True)
    for some in rows.batches(free.values_list("pk", flat=True)):
        held.filter(pk__in=some).update(connection_closed=True)


def places_of(connections: Mapping[uuid.UUID, str]) -> set[Place]:
    """Return the places that closed connections held, except the groups that were left before.

    Args:
        connections: The ids of the connections with their users.
    """
    known = {id_: user for id_, user in connections.items() if user}
    places = {Place(ONLINE, user) for user in known.values()}
    held = Membership.objects.using(rows.database()).to_leave()
    for batch in rows.batches(known):
        found = held.filter(connection__in=batch).exclude(user_id="")
        places.update(Place(*row) for row in found.values_list("group", "user_id").distinct())
    return places


def open_memberships(joins: Sequence[Join]) -> None:
    """Insert memberships. A membership that is open already is left as it is."""
    rows.insert_new(
        Membership,
        ("connection_id", "process_id", "group", "user_id"),
        [
            (join.connection_id, join.process_id, join.group, rows.cut(join.user_id, Membership, "user_id"))
            for join in joins
        ],
        now=("joined_at",),
    )


def restore_memberships(joins: Sequence[Join]) -> None:
    """Insert the missing rows of memberships, with the users of their connections.

    The processes that watch presence find the users when they compare.
    """
    records = Connection.objects.using(rows.database())
    users: dict[uuid.UUID, str] = {}
    for batch in rows.batches({join.connection_id for join in joins}):
        users.update(records.filter(pk__in=batch).values_list("pk", "user_id"))
    named = [replace(join, user_id=users.get(join.connection_id, "")) for join in joins]
    with in_one_transaction():
        open_memberships(named)
        presence_rows.settle(set(tracked_places(named)))


def tracked_places(joins: Iterable[Join]) -> Iterator[Place]:
    """Yield the places of memberships that presence depends on, with users as the database stores them."""
    tracks = conf.get().tracks_presence
    for join in joins:
        if join.user_id and tracks(join.group):
            yield Place(join.group, rows.cut(join.user_id, Membership, "user_id"))


def mark_memberships_left(joins: Sequence[Join]) -> int:
    """Mark memberships as left. Call it after their `group_discard`s returned.

    Returns:
        The number of memberships that this call marked.
    """
    using = rows.database()
    left = 0
    for batch in rows.batches(joins):
        groups = defaultdict(set)
        for join in batch:
            groups[join.connection_id].add(join.group)
        # One condition for all connections that leave the same groups: a condition costs more than its rows.
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
    """Note that these connections gave a proof of life. The time is only displayed."""
    using = rows.database()
    for batch in rows.batches(ids):
        records = Connection.objects.using(using).open().filter(pk__in=batch)
        with transaction.atomic(using=using):
            rows.lock(records)
            records.update(last_seen_at=Now())


# Rows of ended processes, and old rows


def close_lost_records(process_id: uuid.UUID, stamp: uuid.UUID, limit: int = BATCH) -> list[Opening]:
    """Close up to `limit` open records of an ended process as SERVER_LOST.

    Rows that another writer is closing at this moment are passed over.

    Args:
        process_id: The ended process.
        stamp: A value that no other call has. If the answer of the database is lost,
            `lost_records_closed_by` finds by it what the call did.
        limit: The largest number of records.

    Returns:
        The records that this call closed; each record is returned to one caller only. Call the function until
        it returns none.
    """
    using = rows.database()
    ended = Process.objects.using(using).ended().filter(pk=process_id)
    records = Connection.objects.using(using)
    with transaction.atomic(using=using):
        batch = rows.lock_some(records.open().filter(process__in=ended), limit)
        if not batch:
            return []
        records.open().filter(pk__in=batch).update(
            closed_at=Now(), close_reason=CloseReason.SERVER_LOST.value, closed_by=stamp
        )
        # The stamp again, because SQLite locks no rows: another writer may have closed some of them.
        closed = _openings(records.filter(pk__in=batch, closed_by=stamp))
        users = {opening.id: opening.user_id for opening in closed}
        _note_closed(users)
        presence_rows.settle((), places_of(users))
        return closed


def lost_records_closed_by(process_id: uuid.UUID, stamp: uuid.UUID) -> list[Opening]:
    """Return the records that a call of `close_lost_records` with this stamp closed."""
    records = Connection.objects.using(rows.database()).closed()
    return _openings(
        records.filter(process=process_id, close_reason=CloseReason.SERVER_LOST.value, closed_by=stamp)
    )


def openings(ids: Collection[uuid.UUID]) -> list[Opening]:
    """Return the records with these ids."""
    using = rows.database()
    return [
        opening
        for batch in rows.batches(ids)
        for opening in _openings(Connection.objects.using(using).filter(pk__in=batch))
    ]


def groups_to_leave(process_id: uuid.UUID, limit: int = BATCH) -> list[str]:
    """Return the first names of groups that a process has not left yet, in order."""
    memberships = Membership.objects.using(rows.database()).to_leave().filter(process=process_id)
    return list(memberships.order_by("group").values_list("group", flat=True).distinct()[:limit])


def mark_groups_left(process_id: uuid.UUID, groups: Collection[str]) -> set[str]:
    """Mark a process's memberships in these groups as left.

    Call it after the process's `group_discard`s returned. If the channel layer no longer exists, call it
    instead of them.

    Returns:
        The groups with a membership that this call marked. Each group is returned to one caller only.
    """
    using = rows.database()
    left: set[str] = set()
    for batch in rows.batches(groups):
        with transaction.atomic(using=using):
            memberships = (
                Membership.objects.using(using).to_leave().filter(process=process_id, group__in=batch)
            )
            # A write that changes nothing comes first. It makes callers for one process take turns, and a
            # deferred transaction of SQLite that began with a read would fail at its first write.
            Process.objects.using(using).filter(pk=process_id).update(stopped_at=F("stopped_at"))
            rows.lock(memberships)
            left.update(memberships.values_list("group", flat=True).distinct())
            # Nearly always none: the records of the process were closed before.
            counted = memberships.filter(connection_closed=False).exclude(user_id="")
            places = {Place(*row) for row in counted.values_list("group", "user_id").distinct()}
            memberships.update(left_at=Now())
            presence_rows.settle((), places)
    return left


def leftovers(process_id: uuid.UUID | None = None, limit: int = BATCH) -> list[Leftover]:
    """Return the oldest memberships of closed connections that running processes still have to leave.

    Args:
        process_id: If given, only memberships of this process.
        limit: The largest number of memberships.
    """
    held = Membership.objects.using(rows.database()).leftovers().order_by("pk")
    if process_id is not None:
        held = held.filter(process=process_id)
    columns = held.values_list(
        "process_id", "process__channel_name", "connection_id", "group", "connection__close_reason"
    )
    return [Leftover(*row) for row in columns[:limit]]


def purge_closed(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` records that were closed `older_than` seconds ago or earlier and have left all
    groups.

    Returns:
        The number of deleted records.
    """
    expired = Connection.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("closed_at"), limit)


def purge_left(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` memberships that were left `older_than` seconds ago or earlier.

    The memberships of a closed connection would be deleted with its record. But a connection that lives for
    months and joins and leaves all the time collects more and more of them.

    Returns:
        The number of deleted memberships.
    """
    expired = Membership.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("left_at"), limit)


def forget_user(user_id: str, limit: int = BATCH) -> Forgotten:
    """Remove everything that names this user, at any age.

    Records of closed connections are deleted. A record is needed until its connection has closed and left its
    groups. Until then it only loses the user, the address and the user agent.

    Args:
        user_id: The user's primary key as text, as it stands in records.
        limit: The number of records that one transaction deletes.

    Raises:
        ValueError: The key is empty. Records of anonymous clients have an empty key.
    """
    if not user_id:
        raise ValueError("An empty key is that of every anonymous client")
    using = rows.database()
    theirs = Connection.objects.using(using).filter(user_id=user_id)
    deleted = 0
    while number := rows.delete_some(theirs.to_purge(Now()).order_by("closed_at"), limit):
        deleted += number
    # This reads the whole table. An index only for this would cost something with every join.
    memberships = Membership.objects.using(using)
    named = memberships.filter(user_id=user_id).order_by("pk").values_list("pk", flat=True)
    for some in rows.batches(list(named), limit):
        with transaction.atomic(using=using):
            rows.lock(memberships.filter(pk__in=some))
            memberships.filter(pk__in=some).update(user_id="")
    with transaction.atomic(using=using):
        rows.lock(theirs)
        emptied = theirs.update(user_id="", remote_address="", user_agent="", client_id="")
        presence_rows.forget_user(user_id)
    return Forgotten(deleted, emptied)


# Reads


def open_of_user(user_id: str) -> list[Held]:
    """Return the open connections of a user in running processes.

    Args:
        user_id: The user's primary key as text.

    Raises:
        ValueError: The key is empty. Records of anonymous clients have an empty key.
    """
    if not user_id:
        raise ValueError("An empty key is that of every anonymous client")
    theirs = Connection.objects.using(rows.database()).open()
    found = theirs.filter(user_id=rows.cut(user_id, Connection, "user_id"), process__stopped_at__isnull=True)
    return [Held(*row) for row in found.values_list("process_id", "process__channel_name", "pk")]


def open_connections_with(
    user_id: str | None = None, group: str | None = None, connection_id: uuid.UUID | None = None
) -> list[Held]:
    """Return the open connections in running processes that fulfil all conditions.

    Args:
        user_id: The user's primary key as text; None for every user and for anonymous clients.
        group: The name of a group; None for every group and for connections in none.
        connection_id: The id of a connection; None for every connection.

    Raises:
        ValueError: The key is empty. Records of anonymous clients have an empty key.
    """
    if user_id == "":
        raise ValueError("An empty key is that of every anonymous client")
    found = Connection.objects.using(rows.database()).open().filter(process__stopped_at__isnull=True)
    if user_id is not None:
        found = found.filter(user_id=rows.cut(user_id, Connection, "user_id"))
    if group is not None:
        # In one call of `filter`, so that both conditions are about the same membership.
        found = found.filter(memberships__group=group, memberships__left_at__isnull=True)
    if connection_id is not None:
        found = found.filter(pk=connection_id)
    return [Held(*row) for row in found.values_list("process_id", "process__channel_name", "pk")]


def count_open_records(process_id: uuid.UUID) -> int:
    """Return the number of open records of a process. The query reads as many rows of an index."""
    return Connection.objects.using(rows.database()).open().filter(process=process_id).count()


def _openings(records: QuerySet[Connection]) -> list[Opening]:
    columns = [field.name for field in fields(Opening)]
    return [Opening(*row) for row in records.values_list(*columns)]


def _code(code: int | None) -> int | None:
    """Return a close code that RFC 6455 section 7.4 allows, or None: a peer may send any two bytes."""
    return code if code is not None and 1000 <= code <= 4999 else None
