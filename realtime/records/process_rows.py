"""Every read and write of the rows of processes and rounds. As in `records`, but for `start_process`,
`claim_round` and `judge`, which are not to be repeated.
"""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from django.db import connections, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Greatest, Now

from realtime.models import Process, Round
from realtime.records import rows
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
class Look:
    """What a process finds when it looks for rounds that it was not asked."""

    running: bool
    """False when it was stopped, declared lost or removed: it must start anew."""
    number: int
    """Of the last round; 0 before the first."""
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
        channel_name: Its address.
        host: As all the following, see `pids.Pid`.
        pid_namespace: Without it, no reaper judges the process by its pid.
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
        connections: How many connections it holds.
        loop_lag: Seconds by which its event loop was late.
        look_every: Seconds within which it looks for further rounds.
        hears: True when it hears what it sends to itself through the channel layer.

    Returns:
        False when this process was stopped, declared lost or removed: it must start anew.
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
    """Read what a process has to know of rounds, whether it was asked or not."""
    connection = connections[rows.database()]
    quote = connection.ops.quote_name
    process, last = quote(Process._meta.db_table), quote(Round._meta.db_table)
    # By hand, because each process asks this all the time, and the ORM takes ten times as long to build it.
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
    """Record that a process hears what it sends to itself, where no round comes that it could answer."""
    Process.objects.using(rows.database()).filter(pk=process_id).update(heard_at=Now())


def others_hear(process_id: uuid.UUID, within: float) -> bool:
    """Return true if another running process has heard itself in the last `within` seconds."""
    others = Process.objects.using(rows.database()).running().exclude(pk=process_id)
    return others.filter(heard_at__gte=Now() - timedelta(seconds=within)).exists()


def stop_process(process_id: uuid.UUID) -> bool:
    """Record a planned stop; False when the process had ended already."""
    running = Process.objects.using(rows.database()).running().filter(pk=process_id)
    return bool(running.update(stopped_at=Now()))


# Rounds


def claim_round(interval: float) -> int | None:
    """Claim the next round if the last one began `interval` seconds ago or earlier, on the database's clock.

    Any number of callers may try: one gets the number, the others None.
    """
    using = rows.database()
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
    claimed = rounds.filter(due, number=number).update(number=number + 1, started_at=Now(), interval=interval)
    return number + 1 if claimed else None


def current_round() -> int:
    """The number of the last round that was claimed; 0 before the first."""
    return Round.objects.using(rows.database()).filter(pk=1).values_list("number", flat=True).first() or 0


def finish_round(number: int) -> None:
    """Record that the reaper which claimed this round has carried it through."""
    Round.objects.using(rows.database()).filter(pk=1, finished__lt=number).update(finished=number)


def finished_round() -> int:
    """Return the highest number of a round that was carried through; 0 before the first."""
    return Round.objects.using(rows.database()).filter(pk=1).values_list("finished", flat=True).first() or 0


def processes_to_ask() -> list[Asked]:
    """Every running process."""
    running = Process.objects.using(rows.database()).running().order_by("started_at", "pk")
    return [Asked(*row) for row in running.values_list("id", "channel_name", "host", "pid", "missed")]


def judge(number: int, silent: Collection[uuid.UUID], misses_allowed: int) -> list[LostProcess]:
    """Count a missed round for each of these processes, and declare lost those that missed more than allowed.

    A process that has written an answer is spared. So is one whose first missed round is more recent than its
    `look_every`: the question may have been lost with its channel layer, and it has yet to look in the
    database. Not to be repeated: a repetition counts a second miss for one round.

    Args:
        number: The round.
        silent: The processes to which it was delivered and that did not answer its asker.
        misses_allowed: How many rounds in a row a process may leave unanswered.

    Returns:
        The processes that this call declared lost.
    """
    using = rows.database()
    with transaction.atomic(using=using):
        accused = Process.objects.using(using).running().filter(pk__in=silent, last_round__lt=number)
        # The locks are held to the end, so an answer comes wholly before the verdict or wholly after it.
        rows.lock(accused)
        accused.filter(Q(missed=0) | Q(spared_until__isnull=True)).update(
            spared_until=Now() + F("look_every")
        )
        accused.update(missed=F("missed") + 1)
        # A sum, because SQLite compares times as texts, and writes sums with more digits.
        now = Now() + timedelta(0)
        return _end(accused.filter(missed__gt=misses_allowed, spared_until__lte=now))


def has_spared(misses_allowed: int) -> bool:
    """Return true if a running process has missed too many rounds and still has time to look for them."""
    return Process.objects.using(rows.database()).running().filter(missed__gt=misses_allowed).exists()


def processes_that_answered(number: int, processes: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return those of these processes that have written an answer to this round, or to a later one."""
    found = Process.objects.using(rows.database()).filter(pk__in=processes, last_round__gte=number)
    return set(found.values_list("pk", flat=True))


def reset_misses(processes: Collection[uuid.UUID]) -> None:
    """Forget the misses of processes that answered a round, though perhaps not in their own row."""
    Process.objects.using(rows.database()).running().filter(pk__in=processes).update(missed=0)


# Processes whose pid is gone


def processes_of(host: str, pid_namespace: str) -> list[Neighbour]:
    """Running processes whose pids mean something to whoever is in this namespace of this host."""
    running = Process.objects.using(rows.database()).running().filter(host=rows.cut(host, Process, "host"))
    columns = running.filter(pid_namespace=pid_namespace).values_list("id", "pid", "pid_began")
    return [Neighbour(*row) for row in columns]


def declare_lost(processes: Collection[uuid.UUID]) -> list[LostProcess]:
    """Declare lost those of these that run, without a round; to be called only for processes that have
    certainly ended. Returns those that this call declared lost.
    """
    using = rows.database()
    with transaction.atomic(using=using):
        found = Process.objects.using(using).running().filter(pk__in=processes)
        rows.lock(found)
        return _end(found)


# What has ended


def lost_processes_to_sweep() -> list[LostProcess]:
    """Processes that ended, however and whenever, and still have open records or memberships."""
    return _lost(Process.objects.using(rows.database()).to_sweep())


def neighbours_to_sweep(host: str, pid_namespace: str) -> list[LostProcess]:
    """Those of `lost_processes_to_sweep` that ran in this namespace of this host."""
    ended = Process.objects.using(rows.database()).to_sweep().filter(host=rows.cut(host, Process, "host"))
    return _lost(ended.filter(pid_namespace=pid_namespace))


def has_ended_for(process_id: uuid.UUID, seconds: float) -> bool:
    """Return whether this process ended so many seconds ago or earlier, on the database's clock."""
    ended = Process.objects.using(rows.database()).ended().filter(pk=process_id)
    return ended.filter(stopped_at__lte=Now() - timedelta(seconds=seconds)).exists()


def purge_processes(older_than: float, limit: int = BATCH) -> int:
    """Delete up to `limit` processes, ended for `older_than` seconds or longer, that have no records left."""
    expired = Process.objects.using(rows.database()).to_purge(Now() - timedelta(seconds=older_than))
    return rows.delete_some(expired.order_by("stopped_at"), limit)


def _lost(processes: "QuerySet[Process]") -> list[LostProcess]:
    columns = processes.order_by("started_at", "pk").values_list("id", "channel_name", "host", "pid")
    return [LostProcess(*row) for row in columns]


def _end(processes: "QuerySet[Process]") -> list[LostProcess]:
    """Declare running processes lost whose rows this transaction has locked, and return them."""
    lost = _lost(processes)
    processes.filter(pk__in=[process.id for process in lost]).update(lost=True, stopped_at=Now())
    return lost
