"""Every read and write of the rows of processes and rounds.

What `connection_rows` says of its functions holds here, too, with one exception: `start_process`,
`claim_round` and `judge` must not be repeated.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import connections, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Greatest, Now

from realtime.models import Connection, Process, Round
from realtime.records import presence_rows, rows
from realtime.records.rows import BATCH


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
    """A process that has ended. Its records and memberships must be swept."""

    id: uuid.UUID
    channel_name: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A running process on this machine, with the values that show if it still exists (`pids.is_gone`)."""

    id: uuid.UUID
    pid: int
    pid_began: int


@dataclass(frozen=True, slots=True)
class Look:
    """The state of rounds, as a process finds it when it looks for rounds that it was not asked."""

    running: bool
    """False if the process was stopped, declared lost or removed. Then it must start again."""
    number: int
    """The number of the last round; 0 before the first."""
    interval: float
    """Seconds between rounds; 0 before the first."""


def start_process(
    channel_name: str,
    host: str,
    pid: int,
    pid_namespace: str = "",
    pid_began: int = 0,
    look_every: float = 0.0,
) -> uuid.UUID:
    """Record a server process that starts.

    Args:
        channel_name: The address of its hub.
        host: The name of its host (`pids.Pid.host`).
        pid: Its pid (`pids.Pid.number`).
        pid_namespace: The namespace of the pid (`pids.Pid.namespace`). If it is empty, no reaper judges the
            process by its pid.
        pid_began: The start of the process (`pids.Pid.began`).
        look_every: Seconds within which it looks for rounds that it was not asked.

    Returns:
        The id of its row.
    """
    process = Process(
        channel_name=channel_name,
        host=rows.cut(host, Process, "host"),
        pid=pid,
        pid_namespace=rows.cut(pid_namespace, Process, "pid_namespace"),
        pid_began=pid_began,
        look_every=timedelta(seconds=look_every),
        started_at=Now(),
    )
    process.save(using=rows.database(), force_insert=True)
    return process.id


def answer_round(
    process_id: uuid.UUID,
    number: int,
    *,
    connections: int,
    loop_lag: float,
    look_every: float = 0.0,
    hears: bool = False,
) -> bool:
    """Write a running process's answer to a round.

    Args:
        process_id: The process that answers.
        number: The round.
        connections: The number of connections that it holds.
        loop_lag: Seconds by which its event loop was late.
        look_every: Seconds within which it looks for further rounds.
        hears: True if it receives what it sends to itself through the channel layer.

    Returns:
        False if this process was stopped, declared lost or removed. Then it must start again.
    """
    running = Process.objects.using(rows.database()).running().filter(pk=process_id)
    heard = {"heard_at": Now()} if hears else {}
    return bool(
        running.update(
            last_round=Greatest(F("last_round"), number),
            missed=0,
            connections=connections,
            loop_lag=loop_lag,
            look_every=timedelta(seconds=look_every),
            answered_at=Now(),
            **heard,
        )
    )


def look_for_rounds(process_id: uuid.UUID) -> Look:
    """Read what a process must know of rounds, also if it was not asked."""
    connection = connections[rows.database()]
    quote = connection.ops.quote_name
    process, last = quote(Process._meta.db_table), quote(Round._meta.db_table)
    # Without the ORM, which takes ten times as long to build the statement. Each process runs it often.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT r.number, r.{quote('interval')} FROM {process} p LEFT JOIN {last} r ON r.id = 1"  # noqa: S608 - names of our own tables
            " WHERE p.id = %s AND p.stopped_at IS NULL",
            [Process._meta.pk.get_db_prep_value(process_id, connection)],
        )
        found = cursor.fetchone()
    if found is None:
        return Look(running=False, number=0, interval=0.0)
    number, interval = found
    return Look(running=True, number=number or 0, interval=interval or 0.0)


def note_heard(process_id: uuid.UUID) -> None:
    """Record that a process receives what it sends to itself. It does so while no round comes to answer."""
    Process.objects.using(rows.database()).filter(pk=process_id).update(heard_at=Now())


def others_hear(process_id: uuid.UUID, within: float) -> bool:
    """Return True if another running process received from itself in the last `within` seconds."""
    others = Process.objects.using(rows.database()).running().exclude(pk=process_id)
    return others.filter(heard_at__gte=Now() - timedelta(seconds=within)).exists()


def stop_process(process_id: uuid.UUID) -> bool:
    """Record a planned stop.

    Returns:
        False if the process had ended already.
    """
    running = Process.objects.using(rows.database()).running().filter(pk=process_id)
    stopped = bool(running.update(stopped_at=Now()))
    presence_rows.unwatch(process_id)
    return stopped


# Rounds


def claim_round(interval: float) -> int | None:
    """Claim the next round if the last one began `interval` seconds ago or earlier, on the database's clock.

    Returns:
        The number of the round, or None. Of any number of callers, one gets the number.
    """
    using = rows.database()
    rounds = Round.objects.using(using).filter(pk=1)
    number = rounds.values_list("number", flat=True).first()
    if number is None:
        Round.objects.using(using).bulk_create([Round(pk=1)], ignore_conflicts=True)
        number = 0
    # A start in the future means that the clock was set back. Without the last condition, no round would
    # begin until the clock caught up.
    due = (
        Q(started_at__isnull=True)
        | Q(started_at__lte=Now() - timedelta(seconds=interval))
        | Q(started_at__gt=Now())
    )
    claimed = rounds.filter(due, number=number).update(number=number + 1, started_at=Now(), interval=interval)
    return number + 1 if claimed else None


def current_round() -> int:
    """Return the number of the last round that was claimed; 0 before the first."""
    return Round.objects.using(rows.database()).filter(pk=1).values_list("number", flat=True).first() or 0


def finish_round(number: int) -> None:
    """Record that the reaper that claimed this round has carried it through."""
    Round.objects.using(rows.database()).filter(pk=1, finished__lt=number).update(finished=number)


def finished_round() -> int:
    """Return the highest number of a round that was carried through; 0 before the first."""
    return Round.objects.using(rows.database()).filter(pk=1).values_list("finished", flat=True).first() or 0


def processes_to_ask() -> list[Asked]:
    """Return every running process, the oldest first."""
    running = Process.objects.using(rows.database()).running().order_by("started_at", "pk")
    return [Asked(*row) for row in running.values_list("id", "channel_name", "host", "pid", "missed")]


def addresses() -> list[str]:
    """Return the address of every running process."""
    running = Process.objects.using(rows.database()).running()
    return list(running.values_list("channel_name", flat=True))


def addresses_of_users(user_ids: Sequence[str]) -> list[str]:
    """Return the addresses of the running processes that hold open connections of these users.

    Args:
        user_ids: The primary keys of at most a few hundred users, as text.
    """
    keys = [rows.cut(each, Connection, "user_id") for each in user_ids]
    held = Connection.objects.using(rows.database()).open().filter(user_id__in=keys)
    running = held.filter(process__stopped_at__isnull=True)
    return list(running.values_list("process__channel_name", flat=True).distinct())


def judge(number: int, silent: Collection[uuid.UUID], misses_allowed: int) -> list[LostProcess]:
    """Count a missed round for each silent process, and declare it lost if it missed more than allowed.

    A process that has written an answer is spared. A process that missed its first round less than its
    `look_every` ago is spared, too: the question may have been lost with its channel layer, and the process
    has yet to look in the database. The call must not be repeated, because it would count a second miss for
    one round.

    Args:
        number: The round.
        silent: The processes that the round was delivered to and that did not answer.
        misses_allowed: The number of rounds in a row that a process may leave unanswered.

    Returns:
        The processes that this call declared lost.
    """
    using = rows.database()
    with transaction.atomic(using=using):
        accused = Process.objects.using(using).running().filter(pk__in=silent, last_round__lt=number)
        # The locks are held to the end, so an answer is written either before all that follows or after it.
        rows.lock(accused)
        accused.filter(Q(missed=0) | Q(spared_until__isnull=True)).update(
            spared_until=Now() + F("look_every")
        )
        accused.update(missed=F("missed") + 1)
        # A sum, because SQLite compares times as texts, and writes sums with more digits.
        now = Now() + timedelta(0)
        return _end(accused.filter(missed__gt=misses_allowed, spared_until__lte=now))


def has_spared(misses_allowed: int) -> bool:
    """Return True if a running process has missed too many rounds and still has time to look for them."""
    return Process.objects.using(rows.database()).running().filter(missed__gt=misses_allowed).exists()


def processes_that_answered(number: int, processes: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return the given processes that have written an answer to this round or to a later one."""
    found = Process.objects.using(rows.database()).filter(pk__in=processes, last_round__gte=number)
    return set(found.values_list("pk", flat=True))


def reset_misses(processes: Collection[uuid.UUID]) -> None:
    """Reset the misses of processes that answered a round.

    A process that cannot reach the database answers by message only, so its own row does not show the answer.
    """
    Process.objects.using(rows.database()).running().filter(pk__in=processes).update(missed=0)


# Processes with a pid that no longer exists


def processes_of(host: str, pid_namespace: str) -> list[Neighbour]:
    """Return the running processes of this host that have their pids in this PID namespace."""
    running = Process.objects.using(rows.database()).running().filter(host=rows.cut(host, Process, "host"))
    columns = running.filter(pid_namespace=pid_namespace).values_list("id", "pid", "pid_began")
    return [Neighbour(*row) for row in columns]


def declare_lost(processes: Collection[uuid.UUID]) -> list[LostProcess]:
    """Declare lost the given processes that run, without a round.

    Call it only for processes that have certainly ended.

    Returns:
        The processes that this call declared lost.
    """
    using = rows.database()
    with transaction.atomic(using=using):
        found = Process.objects.using(using).running().filter(pk__in=processes)
        rows.lock(found)
        return _end(found)


# Processes that ended


def lost_processes_to_sweep() -> list[LostProcess]:
    """Return all ended processes, lost or stopped, that still have open records or memberships."""
    return _lost(Process.objects.using(rows.database()).to_sweep())


def neighbours_to_sweep(host: str, pid_namespace: str) -> list[LostProcess]:
    """Return the ones of `lost_processes_to_sweep` that ran in this PID namespace of this host."""
    ended = Process.objects.using(rows.database()).to_sweep().filter(host=rows.cut(host, Process, "host"))
    return _lost(ended.filter(pid_namespace=pid_namespace))


def has_ended_for(process_id: uuid.UUID, seconds: float) -> bool:
    """Return True if this process ended `seconds` ago or earlier, on the database's clock."""
    ended = Process.objects.using(rows.database()).ended().filter(pk=process_id)
    return ended.filter(stopped_at__lte=Now() - timedelta(seconds=seconds)).exists()


def purge_processes(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` processes that ended `older_than` seconds ago or earlier and have no records left.

    Returns:
        The number of deleted processes.
    """
    expired = Process.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("stopped_at"), limit)


def _lost(processes: "QuerySet[Process]") -> list[LostProcess]:
    columns = processes.order_by("started_at", "pk").values_list("id", "channel_name", "host", "pid")
    return [LostProcess(*row) for row in columns]


def _end(processes: "QuerySet[Process]") -> list[LostProcess]:
    """Declare running processes lost, and return them. This transaction must have locked their rows."""
    lost = _lost(processes)
    processes.filter(pk__in=[process.id for process in lost]).update(lost=True, stopped_at=Now())
    for process in lost:
        presence_rows.unwatch(process.id)
    return lost
