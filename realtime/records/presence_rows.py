"""Every read and write of presence: the users in groups, the users online, the processes that watch.

The open memberships and connections are the truth. A write that opens or ends some of them calls `settle` in
the same transaction, which brings the rows of the users in line with them. Each function may be repeated.
Times come from the database's clock. If the database cannot be reached, each raises a `django.db.Error`.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Now

from realtime.models import Connection, Membership, PresenceWatch, PresentUser
from realtime.records import rows
from realtime.records.entries import ONLINE, Changes, Place, Stay

#: Places that one statement names. SQLite may limit the number of values to 999.
BATCH = 200


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers that show if a picture of a group is up to date."""

    users: int = 0
    """The number of users."""
    sum_of_ids: int = 0
    """The sum of the numbers of their stays."""
    anonymous: int = 0
    """The number of anonymous connections."""


# -- arrivals and departures -----------------------------------------------------------------------------


def settle(
    arrived: Collection[Place], departed: Collection[Place] = (), silent: Collection[str] = ()
) -> tuple[list[Stay], set[str]]:
    """Bring the rows of users in line with memberships and connections that this transaction has written.

    Rows are locked after those of memberships and connections, in one order, and before anything is read. So
    of two writers that end the last two memberships of a user, the later one sees that none is left.

    Args:
        arrived: Places that have a new membership or connection.
        departed: Places that have lost one, and perhaps have another.
        silent: The users of connections that ended by silence.

    Returns:
        The stays that began, and the users who became dormant.
    """
    using = rows.database()
    connection = connections[using]
    departing = sorted(departed)
    if departing and connection.features.has_select_for_update:
        _lock(connection, sorted({*arrived, *departed}))
    began = [stay for some in rows.batches(sorted(arrived), BATCH) for stay in _arrive(connection, some)]
    dormant: set[str] = set()
    for some in rows.batches(departing, BATCH):
        dormant.update(_depart(connection, some, silent))
    return began, dormant


def _lock(connection: BaseDatabaseWrapper, places: Sequence[Place]) -> None:
    """Lock the rows of places, in the order of the inserts of `_arrive`."""
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        for some in rows.batches(places, BATCH):
            cursor.execute(
                f"SELECT id FROM {_table(PresentUser, quote)} WHERE {_in(some, quote)}"  # noqa: S608 - names of our own tables
                f' ORDER BY {quote("group")} COLLATE "C", user_id COLLATE "C" FOR NO KEY UPDATE',
                _flat(some),
            )
            cursor.fetchall()


def _arrive(connection: BaseDatabaseWrapper, places: Sequence[Place]) -> list[Stay]:
    quote, now, stamp = connection.ops.quote_name, rows.now_sql(connection), uuid.uuid4()
    table, group = _table(PresentUser, quote), quote("group")
    prepared = PresentUser._meta.get_field("stamp").get_db_prep_save(stamp, connection)
    # A row that exists is locked also if it is not changed. The row of a dormant user begins a new stay.
    statement = (
        f"INSERT INTO {table} ({group}, user_id, since, stamp)"  # noqa: S608 - names of our own tables
        f" VALUES {', '.join([f'(%s, %s, {now}, %s)'] * len(places))}"
        f" ON CONFLICT ({group}, user_id) DO UPDATE SET gone_at = NULL, dormant_since = NULL, left_at = NULL,"
        f" since = CASE WHEN {table}.left_at IS NULL THEN {table}.since ELSE excluded.since END,"
        f" stamp = CASE WHEN {table}.left_at IS NULL THEN {table}.stamp ELSE excluded.stamp END"
        f" WHERE {table}.gone_at IS NOT NULL"
        f" RETURNING id, {group}, user_id, stamp"
    )
    values = [value for place in places for value in (*place, prepared)]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [Stay(*row[:3]) for row in cursor.fetchall() if row[3] == prepared]


def _depart(connection: BaseDatabaseWrapper, places: Sequence[Place], silent: Collection[str]) -> list[str]:
    """Note the time at which these places lost their last membership, if they did.

    Returns:
        The users who became dormant.
    """
    quote, now = connection.ops.quote_name, rows.now_sql(connection)
    table, group = _table(PresentUser, quote), quote("group")
    in_groups = [place for place in places if place.group != ONLINE]
    users = [place.user_id for place in places if place.group == ONLINE]
    with connection.cursor() as cursor:
        if in_groups:
            held = _table(Membership, quote)
            cursor.execute(
                f"UPDATE {table} SET gone_at = {now} WHERE gone_at IS NULL AND {_in(in_groups, quote)}"  # noqa: S608 - names of our own tables
                f" AND NOT EXISTS (SELECT 1 FROM {held} m WHERE m.{group} = {table}.{group}"
                f" AND m.user_id = {table}.user_id AND m.left_at IS NULL AND NOT m.connection_closed)",
                _flat(in_groups),
            )
        if not users:
            return []
        quiet = sorted(set(silent).intersection(users))
        dormant = f"CASE WHEN user_id IN ({_marks(quiet)}) THEN {now} END" if quiet else "NULL"
        cursor.execute(
            f"UPDATE {table} SET gone_at = {now}, dormant_since = {dormant}"  # noqa: S608 - names of our own tables
            f" WHERE gone_at IS NULL AND {group} = %s AND user_id IN ({_marks(users)})"
            f" AND NOT EXISTS (SELECT 1 FROM {_table(Connection, quote)} c"
            f" WHERE c.user_id = {table}.user_id AND c.closed_at IS NULL)"
            " RETURNING user_id",
            [*quiet, ONLINE, *users],
        )
        gone = {row[0] for row in cursor.fetchall()}
    return [user for user in quiet if user in gone]


def any_gone(grace: float) -> bool:
    """Return True if some user's grace is over. The query reads one entry of an index."""
    return _due(grace).exists()


def end_stays(grace: float, limit: int = rows.BATCH) -> list[Stay]:
    """End up to `limit` stays of users who have been gone for longer than their grace.

    Rows that another writer has locked are passed over: it ends them, or the user has just come back.

    Args:
        grace: The setting PRESENCE_GRACE, in seconds.
        limit: The largest number of stays.

    Returns:
        The stays that this call ended. Each is returned to one caller only.
    """
    using = rows.database()
    connection = connections[using]
    quote = connection.ops.quote_name
    table, due = _table(PresentUser, quote), _due(grace).order_by("gone_at")
    if connection.features.has_select_for_update:
        due = due.select_for_update(skip_locked=True)
    columns, now = f"id, {quote('group')}, user_id", rows.now_sql(connection)
    ended: list[Stay] = []
    with transaction.atomic(using=using), connection.cursor() as cursor:
        for change, some in (
            (f"DELETE FROM {table}", due.filter(dormant_since__isnull=True)),  # noqa: S608 - as above
            (f"UPDATE {table} SET left_at = {now}", due.filter(dormant_since__isnull=False)),  # noqa: S608
        ):
            keys, parameters = some.values("pk")[:limit].query.get_compiler(using).as_sql()
            cursor.execute(f"{change} WHERE id IN ({keys}) RETURNING {columns}", parameters)
            ended += [Stay(*row) for row in cursor.fetchall()]
    return ended


def _due(grace: float) -> "QuerySet[PresentUser]":
    present = PresentUser.objects.using(rows.database()).present()
    # A sum, because SQLite compares times as texts, and writes sums with more digits.
    return present.filter(gone_at__isnull=False, gone_at__lte=Now() - timedelta(seconds=grace))


def note_departed(after: int, limit: int = rows.BATCH) -> int | None:
    """Note the departure of users without a membership, in a part of the rows.

    `settle` notes each departure. This finds the ones that it could not see: rows that were deleted by hand,
    or by a version of this package that knows no presence.

    Args:
        after: The highest id of the part before; 0 for the first part.
        limit: The number of rows in a part.

    Returns:
        The highest id of this part; None if it was the last one.
    """
    present = PresentUser.objects.using(rows.database()).present().filter(gone_at__isnull=True, pk__gt=after)
    part = list(present.order_by("pk").values_list("pk", "group", "user_id")[:limit])
    if part:
        with transaction.atomic(using=rows.database()):
            settle((), [Place(group, user_id) for _, group, user_id in part])
    return part[-1][0] if len(part) == limit else None


def forget_user(user_id: str) -> None:
    """End the presence of a user within a second, and remove the user from all memberships."""
    using = rows.database()
    Membership.objects.using(using).filter(user_id=user_id).update(user_id="")
    theirs = PresentUser.objects.using(using).filter(user_id=user_id)
    theirs.filter(left_at__isnull=False).delete()
    theirs.update(gone_at=Now() - timedelta(days=365), dormant_since=None)


def purge_dormant(older_than: float, limit: int = rows.BATCH) -> int:
    """Delete up to `limit` rows of dormant users who went offline `older_than` seconds ago or earlier.

    Returns:
        The number of deleted rows.
    """
    expired = PresentUser.objects.using(rows.database()).filter(
        left_at__isnull=False, left_at__lte=Now() - timedelta(seconds=older_than)
    )
    return rows.delete_some(expired.order_by("left_at"), limit)


# -- reads -----------------------------------------------------------------------------------------------


def is_online(user_id: str, grace: float) -> bool:
    """Return True if a connection of the user is open, or was until `grace` seconds ago."""
    return _seen(grace).filter(group=ONLINE, user_id=user_id).exists()


def read(group: str, grace: float, limit: int) -> tuple[list[str], int, int]:
    """Read who is in a group.

    Args:
        group: The group.
        grace: The setting PRESENCE_GRACE, in seconds.
        limit: The largest number of users.

    Returns:
        The ids of the users in the order of their arrival, the number of all users, and the number of
        anonymous connections.
    """
    present = _seen(grace).filter(group=group)
    users = list(present.order_by("pk").values_list("user_id", flat=True)[:limit])
    total = len(users) if len(users) < limit else present.count()
    return users, total, _anonymous().filter(group=group).count()


def stays(group: str) -> dict[str, int]:
    """Return the id of the stay of each user in a group."""
    present = PresentUser.objects.using(rows.database()).present().filter(group=group)
    return dict(present.order_by("pk").values_list("user_id", "pk"))


def summaries(groups: Collection[str]) -> dict[str, Summary]:
    """Return a summary of each group. The query reads their entries in two indexes."""
    present = PresentUser.objects.using(rows.database()).present()
    users: dict[str, tuple[int, int]] = {}
    anonymous: dict[str, int] = {}
    for some in rows.batches(groups):
        sums = present.filter(group__in=some).order_by().values_list("group")
        users.update({name: (count, total) for name, count, total in sums.annotate(Count("pk"), Sum("pk"))})
        counts = _anonymous().filter(group__in=some).order_by().values_list("group")
        anonymous.update(dict(counts.annotate(Count("pk"))))
    return {name: Summary(*users.get(name, (0, 0)), anonymous.get(name, 0)) for name in groups}


def _seen(grace: float) -> "QuerySet[PresentUser]":
    """Return the rows of users who are present, also if the stays that are over were not ended yet."""
    present = PresentUser.objects.using(rows.database()).present()
    return present.filter(Q(gone_at__isnull=True) | Q(gone_at__gt=Now() - timedelta(seconds=grace)))


def _anonymous() -> "QuerySet[Membership]":
    memberships = Membership.objects.using(rows.database())
    return memberships.filter(left_at__isnull=True, connection_closed=False, user_id="")


# -- watches ---------------------------------------------------------------------------------------------


def watch(process_id: uuid.UUID, group: str) -> None:
    """Have this process told of the changes in a group that are committed from now on."""
    watches = PresenceWatch.objects.using(rows.database())
    watches.bulk_create([PresenceWatch(process_id=process_id, group=group)], ignore_conflicts=True)


def unwatch(process_id: uuid.UUID, groups: Collection[str] | None = None) -> None:
    """Have this process told nothing more of some groups; without `groups`, of any."""
    watches = PresenceWatch.objects.using(rows.database()).filter(process=process_id)
    if groups is None:
        watches.delete()
        return
    for some in rows.batches(groups):
        watches.filter(group__in=some).delete()


def changes(began: Sequence[Stay] = (), ended: Sequence[Stay] = ()) -> Changes:
    """Find out who must be told of stays that began or ended.

    Call it after the commit. A process that begins to watch reads the group after its watch is committed. So
    it finds a stay in the rows that it reads, or is told of it.
    """
    watchers: dict[str, set[str]] = defaultdict(set)
    groups = {stay.group for stay in (*began, *ended)} - {ONLINE}
    for some in rows.batches(sorted(groups)):
        watches = PresenceWatch.objects.using(rows.database()).filter(
            group__in=some, process__stopped_at__isnull=True
        )
        for address, group in watches.values_list("process__channel_name", "group"):
            watchers[address].add(group)
    return Changes(tuple(began), tuple(ended), dict(watchers))


# -- SQL -------------------------------------------------------------------------------------------------


def _table(model: type[models.Model], quote: Any) -> str:
    return str(quote(model._meta.db_table))


def _in(places: Sequence[Place], quote: Any) -> str:
    return f"({quote('group')}, user_id) IN (VALUES {', '.join(['(%s, %s)'] * len(places))})"


def _marks(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _flat(places: Iterable[Place]) -> list[str]:
    return [text for place in places for text in place]
