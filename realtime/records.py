"""Every read and write of rows. Synchronous; one statement or one atomic block for each `BATCH` rows.

Times are the database's. Writes that decide something are conditional UPDATEs and answer "was it me?". All
but `start_process`, `claim_round` and `judge` may be repeated with the same arguments, so a caller that never
saw the answer to its COMMIT simply calls again. Reads go to the database that is written to: a replica may be
behind. All raise a `django.db.Error` when the database cannot be reached or refuses a row.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

from django.db import connections, models, router, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Greatest, Now

from realtime import bulk
from realtime.closing import CloseReason
from realtime.differences import Process as StoredProcess
from realtime.differences import Stored
from realtime.models import Connection, Membership, Process, Round

BATCH = 500
"""How many rows one statement names; updates of more are several transactions, so that none is long."""

_T = TypeVar("_T")
_Row = TypeVar("_Row", bound=models.Model)


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection to record. Text may be anything that came from a client: it is cleaned and cut here."""

    id: uuid.UUID
    process_id: uuid.UUID
    user_id: str
    path: str
    remote_address: str
    user_agent: str
    subprotocol: str


@dataclass(frozen=True, slots=True)
class Closing:
    """A record to close. `code` is the close code that was sent or received, None where there was none."""

    id: uuid.UUID
    reason: CloseReason
    code: int | None


@dataclass(frozen=True, slots=True)
class Join:
    """A connection's membership, to open or to leave."""

    connection_id: uuid.UUID
    process_id: uuid.UUID
    group: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A process that a round asks."""

    id: uuid.UUID
    channel_name: str
    host: str
    pid: int
    missed: int


@dataclass(frozen=True, slots=True)
class LostProcess:
    """A process that is no more, and whose records and memberships are to be swept."""

    id: uuid.UUID
    channel_name: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A running process on this machine, and how to tell whether it still exists (see `pids.is_gone`)."""

    id: uuid.UUID
    pid: int
    pid_began: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """A membership that a running process still has to leave, although its connection is closed."""

    process_id: uuid.UUID
    channel_name: str
    connection_id: uuid.UUID
    group: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many processes run, connections are open, and memberships are not left."""

    processes: int
    connections: int
    memberships: int


# Processes


def start_process(
    channel_name: str, host: str, pid: int, pid_namespace: str = "", pid_began: int = 0
) -> uuid.UUID:
    """Record a server process that starts, and return its id. `pid_namespace` and `pid_began` are as in
    `pids.Pid`; without them, nobody judges it by its pid.
    """
    process = Process(
        channel_name=channel_name,
        host=_cut(host, Process, "host"),
        pid=pid,
        pid_namespace=_cut(pid_namespace, Process, "pid_namespace"),
        pid_began=pid_began,
        started_at=Now(),
    )
    process.save(using=_database(), force_insert=True)
    return process.id


def rename_process(process_id: uuid.UUID, channel_name: str) -> None:
    """Record that the hub of this process has a new channel."""
    Process.objects.using(_database()).filter(pk=process_id).update(channel_name=channel_name)


def answer_round(process_id: uuid.UUID, number: int, *, connections: int, loop_lag: float) -> bool:
    """Write a running process's answer to a round; `loop_lag` in seconds.

    False when this process was stopped, declared lost or removed: it must start anew.
    """
    running = Process.objects.using(_database()).running().filter(pk=process_id)
    return bool(
        running.update(
            last_round=Greatest(F("last_round"), number),
            missed=0,
            connections=connections,
            loop_lag=loop_lag,
            answered_at=Now(),
        )
    )


def is_running(process_id: uuid.UUID) -> bool:
    """False when this process was stopped, declared lost or removed."""
    return Process.objects.using(_database()).running().filter(pk=process_id).exists()


def stop_process(process_id: uuid.UUID) -> bool:
    """Record a planned stop; False when the process had ended already."""
    running = Process.objects.using(_database()).running().filter(pk=process_id)
    return bool(running.update(stopped_at=Now()))


# Connections and memberships


def in_one_transaction() -> AbstractContextManager[Any]:
    """For calls of the four functions that follow, to be committed together or not at all."""
    return transaction.atomic(using=_database())


def open_connections(openings: Sequence[Opening]) -> None:
    """Insert the records of new connections; those that exist are left as they are, even when closed."""
    texts = ("user_id", "path", "remote_address", "user_agent", "subprotocol")
    _insert(
        Connection,
        ("id", "process_id", *texts),
        [
            (
                opening.id,
                opening.process_id,
                *(_cut(getattr(opening, name), Connection, name) for name in texts),
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
    using = _database()
    mine: set[uuid.UUID] = set()
    for batch in _batches(closings):
        endings = defaultdict(list)
        for closing in batch:
            endings[closing.reason, _code(closing.code)].append(closing.id)
        records = Connection.objects.using(using).filter(pk__in=[closing.id for closing in batch])
        with transaction.atomic(using=using, savepoint=False):
            _lock(records.open())
            for (reason, code), ids in endings.items():
                records.open().filter(pk__in=ids).update(
                    closed_at=Now(), close_reason=reason.value, close_code=code, closed_by=stamp
                )
            closed = set(records.filter(closed_by=stamp).values_list("pk", flat=True))
            # In the same transaction, so that no record is closed whose memberships nobody looks for.
            held = Membership.objects.using(using).to_leave().filter(connection__in=closed)
            _lock(held)
            held.update(connection_closed=True)
        mine |= closed
    return mine


def open_memberships(joins: Sequence[Join]) -> None:
    """Insert memberships; those that are open already are left as they are."""
    _insert(
        Membership,
        ("connection_id", "process_id", "group"),
        [(join.connection_id, join.process_id, join.group) for join in joins],
        now=("joined_at",),
    )


def leave_memberships(joins: Sequence[Join]) -> int:
    """Mark memberships as left, after their `group_discard` returned; return how many this call marked."""
    using = _database()
    left = 0
    for batch in _batches(joins):
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
            _lock(memberships)
            left += memberships.update(left_at=Now())
    return left


def touch_connections(ids: Iterable[uuid.UUID]) -> None:
    """Note that these connections gave a proof of life; for display only."""
    using = _database()
    for batch in _batches(ids):
        records = Connection.objects.using(using).open().filter(pk__in=batch)
        with transaction.atomic(using=using):
            _lock(records)
            records.update(last_seen_at=Now())


# Rounds


def claim_round(interval: float) -> int | None:
    """Claim the next round if the last one began `interval` seconds ago or earlier, on the database's clock.

    Any number of callers may try: one gets the number, the others None.
    """
    using = _database()
    rounds = Round.objects.using(using).filter(pk=1)
    number = rounds.values_list("number", flat=True).first()
    if number is None:
        Round.objects.using(using).bulk_create([Round(pk=1)], ignore_conflicts=True)
        number = 0
    # A start in the future means that the clock was set back; no round would come until it caught up.
    due = (
        Q(started_at__isnull=True)
        | Q(started_at__lte=Now() - timedelta(seconds=interval))
        | Q(started_at__gt=Now())
    )
    claimed = rounds.filter(due, number=number).update(number=number + 1, started_at=Now())
    return number + 1 if claimed else None


def current_round() -> int:
    """The number of the last round that was claimed; 0 before the first."""
    return Round.objects.using(_database()).filter(pk=1).values_list("number", flat=True).first() or 0


def processes_to_ask() -> list[Asked]:
    """Every running process."""
    running = Process.objects.using(_database()).running().order_by("started_at", "pk")
    return [Asked(*row) for row in running.values_list("id", "channel_name", "host", "pid", "missed")]


def judge(number: int, silent: Collection[uuid.UUID], misses_allowed: int) -> list[LostProcess]:
    """Count a missed round for each of these processes, and declare lost those that missed more than allowed.

    `silent` are the processes to which round `number` was delivered and that did not answer its asker; of
    those, the ones that have written an answer are spared. Returns the processes that this call declared
    lost. Not to be repeated: a repetition counts a second miss for one round.
    """
    using = _database()
    with transaction.atomic(using=using):
        accused = Process.objects.using(using).running().filter(pk__in=silent, last_round__lt=number)
        # The locks are held to the end, so an answer comes wholly before the verdict or wholly after it.
        _lock(accused)
        accused.update(missed=F("missed") + 1)
        return _end(accused.filter(missed__gt=misses_allowed))


def answered(processes: Collection[uuid.UUID]) -> None:
    """Forget the misses of processes that answered a round, though perhaps not in their own row."""
    Process.objects.using(_database()).running().filter(pk__in=processes).update(missed=0)


# Processes whose pid is gone


def processes_of(host: str, pid_namespace: str) -> list[Neighbour]:
    """Running processes whose pids mean something to whoever is in this namespace of this host."""
    running = Process.objects.using(_database()).running().filter(host=_cut(host, Process, "host"))
    rows = running.filter(pid_namespace=pid_namespace).values_list("id", "pid", "pid_began")
    return [Neighbour(*row) for row in rows]


def declare_lost(processes: Collection[uuid.UUID]) -> list[LostProcess]:
    """Declare lost those of these that run, without a round; to be called only for processes that have
    certainly ended. Returns those that this call declared lost.
    """
    using = _database()
    with transaction.atomic(using=using):
        found = Process.objects.using(using).running().filter(pk__in=processes)
        _lock(found)
        return _end(found)


# Sweeps


def lost_processes_to_sweep() -> list[LostProcess]:
    """Processes that ended, however and whenever, and still have open records or memberships."""
    return _lost(Process.objects.using(_database()).to_sweep())


def neighbours_to_sweep(host: str, pid_namespace: str) -> list[LostProcess]:
    """Those of `lost_processes_to_sweep` that ran in this namespace of this host."""
    ended = Process.objects.using(_database()).to_sweep().filter(host=_cut(host, Process, "host"))
    return _lost(ended.filter(pid_namespace=pid_namespace))


def close_lost_records(process_id: uuid.UUID, stamp: uuid.UUID, limit: int = BATCH) -> int:
    """Close up to `limit` open records of an ended process as SERVER_LOST; call until it returns 0.

    Rows that another writer is closing at this moment are passed over.
    """
    using = _database()
    ended = Process.objects.using(using).ended().filter(pk=process_id)
    records = Connection.objects.using(using).open()
    with transaction.atomic(using=using):
        batch = _lock_some(records.filter(process__in=ended), limit)
        return records.filter(pk__in=batch).update(
            closed_at=Now(), close_reason=CloseReason.SERVER_LOST.value, closed_by=stamp
        )


def groups_to_leave(process_id: uuid.UUID, limit: int = BATCH) -> list[str]:
    """The names of groups that a process has not left yet, in order."""
    memberships = Membership.objects.using(_database()).to_leave().filter(process=process_id)
    return list(memberships.order_by("group").values_list("group", flat=True).distinct()[:limit])


def left_groups(process_id: uuid.UUID, groups: Collection[str]) -> set[str]:
    """Mark a process's memberships in these groups as left, after its `group_discard`s returned.

    Returns the groups in which this call marked any: of two callers, each group is one's.
    """
    using = _database()
    left: set[str] = set()
    for batch in _batches(groups):
        with transaction.atomic(using=using):
            memberships = (
                Membership.objects.using(using).to_leave().filter(process=process_id, group__in=batch)
            )
            # A write that changes nothing comes first: callers for one process take turns, and a deferred
            # transaction of SQLite that began with a read would fail at its first write.
            Process.objects.using(using).filter(pk=process_id).update(stopped_at=F("stopped_at"))
            _lock(memberships)
            left.update(memberships.values_list("group", flat=True).distinct())
            memberships.update(left_at=Now())
    return left


def leftovers(process_id: uuid.UUID | None = None, limit: int = BATCH) -> list[Leftover]:
    """Memberships of closed connections that running processes, or this one, still have to leave, oldest
    first.
    """
    rows = Membership.objects.using(_database()).leftovers().order_by("pk")
    if process_id is not None:
        rows = rows.filter(process=process_id)
    columns = rows.values_list("process_id", "process__channel_name", "connection_id", "group")
    return [Leftover(*row) for row in columns[:limit]]


def purge_closed(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` records, closed for `older_than` seconds or longer, that have left all groups."""
    using = _database()
    expired = Connection.objects.using(using).to_purge(Now() - timedelta(seconds=older_than))
    with transaction.atomic(using=using):
        batch = _lock_some(expired.order_by("closed_at"), limit)
        _, per_model = Connection.objects.using(using).filter(pk__in=batch).delete()
    return per_model.get(Connection._meta.label, 0)


def purge_processes(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` processes, ended for `older_than` seconds or longer, that have no records left."""
    using = _database()
    expired = Process.objects.using(using).to_purge(Now() - timedelta(seconds=older_than))
    with transaction.atomic(using=using):
        batch = _lock_some(expired.order_by("stopped_at"), limit)
        _, per_model = Process.objects.using(using).filter(pk__in=batch).delete()
    return per_model.get(Process._meta.label, 0)


# Reads


def counts() -> Counts:
    """Counted in the tables: exact, at a cost that grows with the number of open rows."""
    using = _database()
    return Counts(
        processes=Process.objects.using(using).running().count(),
        connections=Connection.objects.using(using).open().count(),
        memberships=Membership.objects.using(using).to_leave().count(),
    )


def count_open_records(process_id: uuid.UUID) -> int:
    """How many open records a process has; an index is read over as many rows."""
    return Connection.objects.using(_database()).open().filter(process=process_id).count()


def everything() -> Stored:
    """All that is open or to be left, and all processes: to be compared, at a cost that grows with it."""
    using = _database()
    memberships = {
        (str(connection_id), group): str(process_id)
        for connection_id, group, process_id in Membership.objects.using(using)
        .to_leave()
        .values_list("connection_id", "group", "process_id")
    }
    records = {
        str(id): str(process_id)
        for id, process_id in Connection.objects.using(using).open().values_list("id", "process_id")
    }
    # Last, so that every process of the above is among them.
    processes = {
        str(id): StoredProcess(address, f"{host}:{pid}", running=stopped_at is None)
        for id, address, host, pid, stopped_at in Process.objects.using(using).values_list(
            "id", "channel_name", "host", "pid", "stopped_at"
        )
    }
    return Stored(processes, records, memberships)


def _database() -> str:
    return router.db_for_write(Process)


def _lost(processes: "QuerySet[Process]") -> list[LostProcess]:
    rows = processes.order_by("started_at", "pk").values_list("id", "channel_name", "host", "pid")
    return [LostProcess(*row) for row in rows]


def _end(processes: "QuerySet[Process]") -> list[LostProcess]:
    """Declare running processes lost whose rows this transaction has locked, and return them."""
    lost = _lost(processes)
    processes.filter(pk__in=[process.id for process in lost]).update(lost=True, stopped_at=Now())
    return lost


def _lock(rows: "QuerySet[_Row]") -> None:
    """Take row locks in the order of the keys: two writers that meet in different orders would deadlock.

    SQLite has one writer at a time, and a read before the write would only make a deferred transaction fail.
    """
    if connections[rows.db].features.has_select_for_update:
        list(rows.order_by("pk").select_for_update(no_key=True).values_list("pk"))


def _lock_some(rows: "QuerySet[_Row]", limit: int) -> list[uuid.UUID]:
    """The keys of the first rows that no other writer has locked, locked."""
    free = rows.select_for_update(no_key=True, skip_locked=True)
    return list(free.values_list("pk", flat=True)[:limit])


def _insert(
    model: type[models.Model], names: Sequence[str], rows: Sequence[Sequence[Any]], now: Sequence[str]
) -> None:
    using = _database()
    with transaction.atomic(using=using, savepoint=False):
        for batch in _batches(rows):
            bulk.insert_new(model, names, batch, now=now, using=using)


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


@cache
def _length(model: type[models.Model], field: str) -> int | None:
    return cast("models.CharField[str, str]", model._meta.get_field(field)).max_length


def _cut(text: str, model: type[models.Model], field: str) -> str:
    """What every database stores: no NUL (PostgreSQL refuses it), no lone surrogate, cut to the column."""
    limit = _length(model, field)
    if not text.isascii() or "\0" in text:
        text = text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")
    return text[:limit]


def _code(code: int | None) -> int | None:
    """A peer may send any two bytes as its close code; the column holds what RFC 6455 section 7.4 allows."""
    return code if code is not None and 1000 <= code <= 4999 else None
