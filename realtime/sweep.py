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

from realtime import groups, metrics, pids, process_records, records
from realtime.closing import CloseReason
from realtime.ledger import Ledger
from realtime.process_records import LostProcess

logger = logging.getLogger("realtime.sweep")

#: Seconds that a starting process spends on its predecessors; what is left then is left to rounds, or to the
#: next start.
START_TIMEOUT = 60.0

Result = TypeVar("Result")


class Database(Protocol):
    """Runs a call of `records` in a thread that may use the database."""

    def __call__(self, call: Callable[..., Result], /, *arguments: object) -> Awaitable[Result]: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep put right: records closed, and (group, channel) pairs discarded."""

    reaped: int
    discarded: int


async def declare_gone(database: Database) -> list[LostProcess]:
    """Declare lost the processes of this machine whose pid is gone, and return those.

    Nobody has to be asked for that: unlike silence, the kernel's word is final. Only pids of our own PID
    namespace are looked at.
    """
    here = pids.own()
    if not here.namespace:
        return []
    neighbours = await database(process_records.processes_of, here.host, here.namespace)
    gone = [each.id for each in neighbours if pids.is_gone(each.pid, each.pid_began)]
    if not gone:
        return []
    lost = await database(process_records.declare_lost, gone)
    for process in lost:
        logger.warning("Process %s:%d is lost: its pid is gone", process.host, process.pid)
    metrics.processes_lost.inc(len(lost))
    return lost


async def sweep(processes: Sequence[LostProcess], database: Database, stopping: Callable[[], bool]) -> Swept:
    """Put right what these ended processes held; once `stopping` returns true, no new batch is begun.

    Raises LayerUnavailable, after all the others, when a process's layer failed, or a `django.db.Error`; what
    is left then stays on the to-do list. May be repeated, and run by several at once.
    """
    reaped = discarded = 0
    failures = []
    for process in processes:
        reaped += await _close_records(process, database, stopping)
        try:
            discarded += await _leave_groups(process, database, stopping)
        except groups.LayerUnavailable as error:
            # The others may have been in another layer, which works.
            failures.append(error)
    if failures:
        raise failures[0]
    return Swept(reaped, discarded)


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
            ended = await ledger.call(process_records.neighbours_to_sweep, here.host, here.namespace)
            done = await sweep(ended, ledger.call, lambda: False)
        if ended:
            logger.info(
                "Swept what %d processes of this machine held: %d records, %d groups",
                len(ended),
                done.reaped,
                done.discarded,
            )
    except Exception:
        logger.exception("What an earlier process held was not swept at the start; rounds will sweep it")
    finally:
        ledger.shut()


async def _close_records(process: LostProcess, database: Database, stopping: Callable[[], bool]) -> int:
    """In batches, each a transaction of its own, so that nobody else waits long for the tables."""
    stamp, closed = uuid.uuid4(), 0
    while not stopping() and (batch := await database(records.close_lost_records, process.id, stamp)):
        closed += batch
    metrics.closed.labels(reason=CloseReason.SERVER_LOST.value).inc(closed)
    return closed


async def _leave_groups(process: LostProcess, database: Database, stopping: Callable[[], bool]) -> int:
    discarded = 0
    while not stopping() and (batch := await database(records.groups_to_leave, process.id)):
        for group in batch:
            await groups.discard(group, process.channel_name)
        # Only what was discarded is written off: a layer that fails half-way leaves the rest on the
        # to-do list.
        # Another reaper may be sweeping the same process, and what it wrote off it has counted.
        discarded += len(await database(records.left_groups, process.id, batch))
    await groups.forget_channel(process.channel_name)
    return discarded
