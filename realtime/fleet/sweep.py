"""Clean up after ended processes: close their records and leave their groups.

The order of the writes leaves a to-do list behind if the process that sweeps dies in the middle.

Rounds sweep all ended processes. A server process that starts sweeps those of its own machine, so that a
development server needs no reaper.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, NoSuchLayer
from realtime.fleet import announcements as news
from realtime.fleet.announcements import Announcements
from realtime.fleet.database import Database, OwnThread
from realtime.layers import groups
from realtime.process import pids
from realtime.records import connection_rows, process_rows
from realtime.records.batch import is_row_error
from realtime.records.entries import Opening
from realtime.records.process_rows import LostProcess

logger = logging.getLogger("realtime.fleet")

#: Seconds that a starting process spends on its predecessors. Rounds or the next start do the rest.
START_TIMEOUT = 60.0
#: Seconds from the end of a process until its memberships in a channel layer that CHANNEL_LAYERS no longer
#: has are written off, if KEEP_CLOSED is None; a month.
WRITE_OFF_AFTER = 2_592_000.0

NOT_SWEPT = "Earlier processes of this machine were not swept at the start"


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of one sweep."""

    reaped: int
    """Records closed."""
    discarded: int
    """(group, channel) pairs discarded."""
    written_off: int
    """(group, channel) pairs marked left without a discard, because their channel layer no longer exists."""
    failures: tuple[Exception, ...]
    """Everything that kept a process from being swept: LayerUnavailable or a `django.db.Error`."""


async def declare_gone(database: Database) -> list[LostProcess]:
    """Declare lost the processes of this machine that no longer exist.

    They need not be asked: the kernel knows. Only the pids of this process's own PID namespace are checked.

    Returns:
        The processes that were declared lost.
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
    announcements: Announcements,
    *,
    keep_closed: float | None,
) -> Swept:
    """Close the records of ended processes and leave their groups.

    A process that cannot be swept stays on the to-do list and does not stop the sweep of the others. A sweep
    may be repeated, and several reapers may sweep at the same time.

    Args:
        processes: The ended processes.
        database: Runs each call of `realtime.records`.
        stopping: Once it returns True, no new batch is begun.
        announcements: Takes the records that this sweep closed.
        keep_closed: Seconds from the end of a process until its memberships in a channel layer that no
            longer exists are written off; None means `WRITE_OFF_AFTER`.
    """
    patience = WRITE_OFF_AFTER if keep_closed is None else keep_closed
    reaped = discarded = written_off = 0
    failures: list[Exception] = []
    for process in processes:
        try:
            reaped += await _close_records(process, database, stopping, announcements)
            if (missing := _missing_layer(process)) is None:
                discarded += await _leave_groups(process, database, stopping)
            else:
                written_off += await _write_off(process, missing, database, stopping, patience)
        except LayerUnavailable as error:
            # The other processes may have been in another layer, which works.
            failures.append(error)
        except DatabaseFailure as error:
            failures.append(error)
            if not is_row_error(error):
                # The database is down, and would fail for the other processes, too.
                break
    return Swept(reaped, discarded, written_off, tuple(failures))


async def sweep_predecessors(within: float = START_TIMEOUT) -> None:
    """Sweep the ended processes of this machine. A server process does so when it starts.

    A failure is logged and not raised. Rounds or the next start do the rest.

    Args:
        within: Seconds after which the sweep is given up.
    """
    # A thread of its own, so that no client of this process waits for a sweep.
    database, announcements = OwnThread("realtime-sweep"), Announcements(own_thread=False)
    try:
        async with asyncio.timeout(within):
            here = pids.own()
            if not here.namespace:
                return
            await declare_gone(database)
            # Includes processes that an earlier start declared lost and did not finish to sweep.
            ended = await database(process_rows.neighbours_to_sweep, here.host, here.namespace)
            done = await sweep(
                ended, database, lambda: False, announcements, keep_closed=conf.get().KEEP_CLOSED
            )
        for failure in done.failures:
            logger.error("%s; rounds will sweep them: %s", NOT_SWEPT, failure)
        if ended:
            logger.info(
                "Swept %d ended processes of this machine: %d records, %d groups",
                len(ended),
                done.reaped,
                done.discarded,
            )
    except Exception:
        logger.exception("%s; rounds will sweep them", NOT_SWEPT)
    finally:
        database.shut()
    await announcements.finish()


async def _close_records(
    process: LostProcess, database: Database, stopping: Callable[[], bool], announcements: Announcements
) -> int:
    """Close records in batches, each in a transaction: other processes must not wait long for the tables."""
    closed = 0
    while not stopping() and announcements.has_room and (batch := await _close_some(process, database)):
        closed += len(batch)
        # Per batch, because a later one may fail.
        metrics.closed.labels(reason=CloseReason.SERVER_LOST.value).inc(len(batch))
        announcements.add(news.closed(opening, CloseReason.SERVER_LOST) for opening in batch)
    return closed


async def _close_some(process: LostProcess, database: Database) -> list[Opening]:
    stamp = uuid.uuid4()
    try:
        return await database(connection_rows.close_lost_records, process.id, stamp)
    except DatabaseFailure as error:
        if is_row_error(error):
            raise
        # If only the answer to the COMMIT was lost, no later call would return these records.
        if closed := await database(connection_rows.lost_records_closed_by, process.id, stamp):
            return closed
        raise


async def _leave_groups(process: LostProcess, database: Database, stopping: Callable[[], bool]) -> int:
    discarded = 0
    while not stopping() and (batch := await database(connection_rows.groups_to_leave, process.id)):
        for group in batch:
            await groups.discard(group, process.channel_name)
        # Only discarded groups are marked as left. If the layer fails half-way, the rest stays on the to-do
        # list. Another reaper may be sweeping the same process; it counts the groups that it marks.
        discarded += len(await database(connection_rows.mark_groups_left, process.id, batch))
    await groups.forget_channel(process.channel_name)
    return discarded


def _missing_layer(process: LostProcess) -> NoSuchLayer | None:
    """Return the reason why CHANNEL_LAYERS has no layer for this process any more, or None if it has one."""
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

    This is the only `left_at` without a `group_discard`. The layer that would have to be asked no longer
    exists. While the memberships are on the to-do list, neither the process nor its records can be purged.

    Args:
        process: The ended process.
        reason: The reason why its layer no longer exists, for texts.
        database: Runs each call of `realtime.records`.
        stopping: Once it returns True, no new batch is begun.
        patience: Seconds from the end of the process until its memberships are written off.

    Returns:
        The number of groups that this call wrote off.

    Raises:
        LayerUnavailable: There are memberships, and the process ended less than `patience` seconds ago.
    """
    written_off = 0
    while not stopping() and (names := await database(connection_rows.groups_to_leave, process.id)):
        if not await database(process_rows.has_ended_for, process.id, patience):
            raise LayerUnavailable(
                f"The ended process {process.host}:{process.pid} cannot leave its groups: {reason} If that "
                "layer was removed for good, do nothing: its memberships are written off "
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
