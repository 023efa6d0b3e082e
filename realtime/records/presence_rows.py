"""Every read and write of presence: the users in groups, the users online, the processes that watch.

The open memberships and connections are the truth. A write that opens or ends some of them calls `settle` in
the same transaction, which brings the rows of the users in line with them. Each function may be repeated.
Times come from the database's clock. If the database cannot be reached, each raises a `django.db.Error`.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Now

from realtime.models import Connection, Membership, PresenceWatch, PresentUser, Process
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
    arrived: Collection[Place],
    departed: Collection[Place] = (),
    silent: Mapping[str, uuid.UUID] = MappingProxyType({}),
    stamp: uuid.UUID | None = None,
) -> tuple[list[Stay], set[uuid.UUID]]:
    """Bring the rows of users in line with memberships and connections that this transaction has written.

    Rows are locked after those of memberships and connections, in one order, and before anything is read. So
    of two writers that end the last two memberships of a user, the later one sees that none is left.

    Args:
        arrived: Places that have a new membership or connection.
        departed: Places that have lost one, and perhaps have another.
        silent: For each user with a connection that ended by silence, the id of the last such connection.
        stamp: A value that no other write has. If the answer of the database is lost, `stays_begun_by` finds
            by it what the call did.

    Returns:
        The stays that began, and the connections in `silent` that made their user dormant by their end.
        A call that is repeated returns these connections again.
    """
    connection = connections[rows.database()]
    stamp = stamp or uuid.uuid4()
    arriving, departing = set(arrived), sorted(departed)
    began: list[Stay] = []
    # One statement locks and inserts, so that all writers take the rows in one order. SQLite locks no rows.
    locked = arriving.union(departing if connection.features.has_select_for_update else ())
    for some in rows.batches(sorted(locked), BATCH):
        began += _arrive(connection, some, arriving, stamp)
    dormant: set[uuid.UUID] = set()
    for some in rows.batches(departing, BATCH):
        _depart(connection, [place for place in some if place.group != ONLINE])
        dormant |= _go_offline(connection, [place.user_id for place in some if place.group == ONLINE], silent)
    return began, dormant


def _arrive(
    connection: BaseDatabaseWrapper, places: Sequence[Place], arriving: Collection[Place], stamp: uuid.UUID
) -> list[Stay]:
    """Insert or bring back the rows of places that are in `arriving`, and lock those of all places.

    Returns:
        The stays that began.
    """
    quote, now = connection.ops.quote_name, rows.now_sql(connection)
    table, group = _table(PresentUser, quote), quote("group")
    prepared = _prepared(stamp, connection)
    # A row that exists is locked also if it is not changed. The row of a dormant user begins a new stay.
    of_a_new_stay = ", ".join(
        f"{name} = CASE WHEN {table}.left_at IS NULL THEN {table}.{name} ELSE excluded.{name} END"
        for name in ("id", "since", "stamp")
    )
    gone = ["NULL" if place in arriving else now for place in places]
    statement = (
        f"INSERT INTO {table} ({group}, user_id, since, stamp, gone_at)"  # noqa: S608 - names of our own tables
        f" VALUES {', '.join(f'(%s, %s, {now}, %s, {each})' for each in gone)}"
        f" ON CONFLICT ({group}, user_id) DO UPDATE SET gone_at = NULL, left_at = NULL,"
        f" dormant_since = NULL, dormant_by = NULL, {of_a_new_stay}"
        f" WHERE {table}.gone_at IS NOT NULL AND excluded.gone_at IS NULL"
        f" RETURNING id, {group}, user_id, stamp"
    )
    values = [value for place in places for value in (*place, prepared)]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        new = [Stay(*row[:3]) for row in cursor.fetchall() if row[3] == prepared]
        # Of places that were only to be locked. Their rows were removed by hand, or never there.
        if absent := [stay.id for stay in new if Place(stay.group, stay.user_id) not in arriving]:
            cursor.execute(f"DELETE FROM {table} WHERE id IN ({_marks(absent)})", absent)  # noqa: S608 - as above
    return [stay for stay in new if stay.id not in absent]


def _depart(connection: BaseDatabaseWrapper, places: Sequence[Place]) -> None:
    """Note the time at which these places in groups lost their last membership, if they did."""
    if not places:
        return
    quote, now = connection.ops.quote_name, rows.now_sql(connection)
    table, group, held = _table(PresentUser, quote), quote("group"), _table(Membership, quote)
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET gone_at = {now} WHERE gone_at IS NULL AND id IN ({_ids_of(places, quote)})"  # noqa: S608 - names of our own tables
            f" AND NOT EXISTS (SELECT 1 FROM {held} m WHERE m.{group} = {table}.{group}"
            f" AND m.user_id = {table}.user_id AND m.left_at IS NULL AND NOT m.connection_closed)",
            [text for place in places for text in place],
        )


def _go_offline(
    connection: BaseDatabaseWrapper, users: Sequence[str], silent: Mapping[str, uuid.UUID]
) -> set[uuid.UUID]:
    """Note the time at which these users lost their last connection, if they did.

    Returns:
        The connections in `silent` that made their user dormant by their end.
    """
    quote, now = connection.ops.quote_name, rows.now_sql(connection)
    table = _table(PresentUser, quote)
    loud = [user for user in users if user not in silent]
    quiet = {user: _prepared(silent[user], connection) for user in users if user in silent}
    dormant: set[str] = set()
    with connection.cursor() as cursor:
        for some, change, values in (
            (loud, f"gone_at = {now}", ()),
            (
                list(quiet),
                f"gone_at = {now}, dormant_since = {now},"
                f" dormant_by = CASE user_id {'WHEN %s THEN %s ' * len(quiet)}END",
                [value for pair in quiet.items() for value in pair],
            ),
        ):
            if some:
                cursor.execute(
                    f"UPDATE {table} SET {change} WHERE gone_at IS NULL"  # noqa: S608 - names of our own tables
                    f" AND id IN ({_ids_of(some, quote)})"
                    f" AND NOT EXISTS (SELECT 1 FROM {_table(Connection, quote)} c"
                    f" WHERE c.user_id = {table}.user_id AND c.closed_at IS NULL)",
                    [*values, *(text for user in some for text in (ONLINE, user))],
                )
        if quiet:
            # Not what the UPDATE returns: a close that is repeated after a lost answer to its COMMIT
            # must find that it made the user dormant.
            cursor.execute(
                f"SELECT user_id, dormant_by FROM {table} WHERE id IN ({_ids_of(quiet, quote)})"  # noqa: S608 - as above
                " AND dormant_since IS NOT NULL",
                [text for user in quiet for text in (ONLINE, user)],
            )
            dormant = {user for user, connection_id in cursor.fetchall() if connection_id == quiet[user]}
    return {silent[user] for user in dormant}


def stays_begun_by(stamp: uuid.UUID, arrived: Collection[Place]) -> list[Stay]:
    """Return the stays that a call of `settle` with this stamp began, if they are not over yet."""
    connection = connections[rows.database()]
    quote = connection.ops.quote_name
    found: list[Stay] = []
    with connection.cursor() as cursor:
        for some in rows.batches(sorted(arrived), BATCH):
            cursor.execute(
                f"SELECT id, {quote('group')}, user_id FROM {_table(PresentUser, quote)}"  # noqa: S608 - as above
                f" WHERE id IN ({_ids_of(some, quote)}) AND stamp = %s",
                [*(text for place in some for text in place), _prepared(stamp, connection)],
            )
            found += [Stay(*row) for row in cursor.fetchall()]
    return found


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
    if rows.locks_rows(due):
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
    """End the presence of a user within a second. Call it in a transaction."""
    theirs = PresentUser.objects.using(rows.database()).filter(user_id=user_id)
    if rows.locks_rows(theirs):
        # In the order of `settle`, and not of the ids.
        list(theirs.order_by("group").select_for_update(no_key=True).values_list("pk"))
    theirs.filter(left_at__isnull=False).delete()
    theirs.update(gone_at=Now() - timedelta(days=365), dormant_since=None, dormant_by=None)


def purge_dormant(older_than: float, limit: int = rows.BATCH) -> int:
    """Delete up to `limit` rows of dormant users who went offline `older_than` seconds ago or earlier.

    Returns:
        The number of deleted rows.
    """
    expired = PresentUser.objects.using(rows.database()).filter(
        group=ONLINE, left_at__isnull=False, left_at__lte=Now() - timedelta(seconds=older_than)
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
        # PostgreSQL adds up integers to a decimal number.
        figures = sums.annotate(Count("pk"), Sum("pk"))
        users.update({name: (count, int(total)) for name, count, total in figures})
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
    connection = connections[rows.database()]
    quote = connection.ops.quote_name
    for some in rows.batches(sorted(groups)):
        with connection.cursor() as cursor:
            # Joins wait for it, and Django needs several times as long to build this query.
            cursor.execute(
                f"SELECT p.channel_name, w.{quote('group')} FROM {_table(PresenceWatch, quote)} w"  # noqa: S608 - as above
                f" JOIN {_table(Process, quote)} p ON p.id = w.process_id"
                f" WHERE w.{quote('group')} IN ({_marks(some)}) AND p.stopped_at IS NULL",
                list(some),
            )
            for address, group in cursor.fetchall():
                watchers[address].add(group)
    return Changes(tuple(began), tuple(ended), dict(watchers))


# -- SQL -------------------------------------------------------------------------------------------------


def _table(model: type[models.Model], quote: Any) -> str:
    return str(quote(model._meta.db_table))


def _ids_of(places: Collection[object], quote: Any) -> str:
    """Return a query for the ids of the rows of places. Its parameters are their groups and users."""
    # SQLite takes this join in the given order. For a condition on pairs of values, it would read the whole
    # table; for one on a group and some users, all users of the group.
    return (
        f"SELECT p.id FROM (VALUES {', '.join(['(%s, %s)'] * len(places))}) AS named"  # noqa: S608 - as above
        f" CROSS JOIN {_table(PresentUser, quote)} p"
        f" WHERE p.{quote('group')} = named.column1 AND p.user_id = named.column2"
    )


def _marks(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _prepared(stamp: uuid.UUID, connection: BaseDatabaseWrapper) -> Any:
    return PresentUser._meta.get_field("stamp").get_db_prep_save(stamp, connection)
