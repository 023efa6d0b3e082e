"""What a process held when it ended: its records are closed, its groups left, in that order of writes which
leaves a to-do list behind whoever dies in the middle.

Rounds sweep whatever ended anywhere. A server process that starts sweeps what ended on its own machine, so
that a development server needs no reaper.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, NoSuchLayer
from realtime.layers import groups
from realtime.process import pids
from realtime.records import connection_rows, process_rows
from realtime.records.batch import is_row_error
from realtime.records.ledger import Ledger
from realtime.records.process_rows import LostProcess

logger = logging.getLogger("realtime.sweep")

#: Seconds that a starting process spends on its predecessors; what is left then is left to rounds, or to the
#: next start.
START_TIMEOUT = 60.0
#: Seconds after the end of a process until memberships in a channel layer that CHANNEL_LAYERS no longer has
#: are written off, where KEEP_CLOSED is None; a month.
WRITE_OFF_AFTER = 2_592_000.0

NOT_SWEPT = "What an earlier process held was not swept at the start"

Result = TypeVar("Result")


class Database(Protocol):
    """Runs a call of `records` in a thread that may use the database."""

    def __call__(self, call: Callable[..., Result], /, *arguments: object) -> Awaitable[Result]: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """Result of one sweep."""

    reaped: int
    """Records closed."""
    discarded: int
    """(group, channel) pairs discarded."""
    written_off: int
    """(group, channel) pairs marked left without a discard, because their channel layer no longer exists."""
    failures: tuple[Exception, ...]
    """Everything that kept a process from being swept: LayerUnavailable or a `django.db.Error`."""


async def declare_gone(database: Database) -> list[LostProcess]:
    """Declare lost the processes of this machine whose pid is gone, and return those.

    Nobody has to be asked for that: unlike silence, the kernel's word is final. Only pids of our own PID
    namespace are looked at.
    """
    here = pids.own()
    if not here.namespace:
        return []
    neighbours = await database(process_rows.processes_of, here.host, here.namespace)
    gone = [each.id for each in neighbours if pids.is_gone(each.pid, each.pid_began)]
    if not gone:
        return []
    lost = await database(process_rows.declare_lost, gone)
    for process in lost:
        logger.warning("Process %s:%d is lost: its pid is gone", process.host, process.pid)
    metrics.processes_lost.inc(len(lost))
    return lost


async def sweep(
    processes: Sequence[LostProcess],
    database: Database,
    stopping: Callable[[], bool],
    *,
    keep_closed: float | None,
) -> Swept:
    """Close the records of these ended processes and leave their groups.

    A failure keeps no other process from being swept; what is left stays on the to-do list. May be repeated,
    and run by several reapers at the same time.

    Args:
        processes: the ended processes.
        database: runs each call of `records`.
        stopping: once it returns true, no new batch is begun.
        keep_closed: seconds after the end of a process until its memberships in a channel layer that no
            longer exists are written off; None means `WRITE_OFF_AFTER`.
    """
    patience = WRITE_OFF_AFTER if keep_closed is None else keep_closed
    reaped = discarded = written_off = 0
    failures: list[Exception] = []
    for process in processes:
        try:
            reaped += await _close_records(process, database, stopping)
            if (missing := _missing_layer(process)) is None:
                discarded += await _leave_groups(process, database, stopping)
            else:
                written_off += await _write_off(process, missing, database, stopping, patience)
        except LayerUnavailable as error:
            # The others may have been in another layer, which works.
            failures.append(error)
        except DatabaseFailure as error:
            failures.append(error)
            if not is_row_error(error):
                # The database is down, and would fail for the others, too.
                break
    return Swept(reaped, discarded, written_off, tuple(failures))


async def predecessors() -> None:
    """What a process does for its machine when it starts. Raises nothing: a failure is logged, and rounds or
    the next start do what was left.
    """
    ledger = Ledger()  # A thread of its own, so that no connection of this process waits behind a sweep.
    try:
        async with asyncio.timeout(START_TIMEOUT):
            here = pids.own()
            if not here.namespace:
                return
            await declare_gone(ledger.call)
            # Also what an earlier start left half done, which is declared lost already.
            ended = await ledger.call(process_rows.neighbours_to_sweep, here.host, here.namespace)
            done = await sweep(ended, ledger.call, lambda: False, keep_closed=conf.get().KEEP_CLOSED)
        for failure in done.failures:
            logger.error("%s; rounds will sweep it: %s", NOT_SWEPT, failure)
        if ended:
            logger.info(
                "Swept what %d processes of this machine held: %d records, %d groups",
                len(ended),
                done.reaped,
                done.discarded,
            )
    except Exception:
        logger.exception("%s; rounds will sweep it", NOT_SWEPT)
    finally:
        ledger.shut()


async def _close_records(process: LostProcess, database: Database, stopping: Callable[[], bool]) -> int:
    """In batches, each a transaction of its own, so that nobody else waits long for the tables."""
    stamp, closed = uuid.uuid4(), 0
    while not stopping() and (batch := await database(connection_rows.close_lost_records, process.id, stamp)):
        closed += batch
    metrics.closed.labels(reason=CloseReason.SERVER_LOST.value).inc(closed)
    return closed


async def _leave_groups(process: LostProcess, database: Database, stopping: Callable[[], bool]) -> int:
    discarded = 0
    while not stopping() and (batch := await database(connection_rows.groups_to_leave, process.id)):
        for group in batch:
            await groups.discard(group, process.channel_name)
        # Only what was discarded is written off: a layer that fails half-way leaves the rest on the
        # to-do list.
        # Another reaper may be sweeping the same process, and what it wrote off it has counted.
        discarded += len(await database(connection_rows.mark_groups_left, process.id, batch))
    await groups.forget_channel(process.channel_name)
    return discarded


def _missing_layer(process: LostProcess) -> NoSuchLayer | None:
    """Return why CHANNEL_LAYERS has no layer for this process any more, or None where it has one."""
    try:
        groups.at(process.channel_name)
    except NoSuchLayer as error:
        return error
    return None


async def _write_off(
    process: LostProcess,
    reason: NoSuchLayer,
    database: Database,
    stopping: Callable[[], bool],
    patience: float,
) -> int:
    """Mark the memberships of a process as left, although nothing was discarded.

    This is the only `left_at` without a `group_discard`: the layer that could be asked no longer exists, and
    while the memberships are on the to-do list neither the process nor its records can be purged.

    Returns: how many groups this call wrote off.

    Raises LayerUnavailable if there are memberships and the process ended less than `patience` seconds ago.
    """
    written_off = 0
    while not stopping() and (names := await database(connection_rows.groups_to_leave, process.id)):
        if not await database(process_rows.has_ended_for, process.id, patience):
            raise LayerUnavailable(
                f"The ended process {process.host}:{process.pid} cannot leave its groups: {reason} If that "
                "layer was removed for good, do nothing: what is left is written off "
                f"{patience:.0f} s after the process ended."
            )
        written_off += len(await database(connection_rows.mark_groups_left, process.id, names))
    if written_off:
        logger.error(
            "Process %s:%d: its memberships in %d groups are written off, %.0f s after it ended: %s",
            process.host,
            process.pid,
            written_off,
            patience,
            reason,
        )
    return written_off
