"""Rounds: ask every process, wait, judge those that stay silent, sweep what the lost ones held.

Any number of reapers may run: each round has one number, and the database gives each number to one reaper.
One that dies in the middle of a round leaves only to-do items behind (`left_at` is null, `closed_at` is
null), which the next round finds.
"""

import asyncio
import logging
import uuid
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from channels.db import database_sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, RoundFailed
from realtime.fleet import sweep
from realtime.fleet.mailbox import Mailbox
from realtime.fleet.sweep import Swept
from realtime.layers import groups
from realtime.process import tasks
from realtime.records import connection_rows, process_rows
from realtime.records.connection_rows import Leftover
from realtime.records.process_rows import Asked, LostProcess

logger = logging.getLogger("realtime.reaper")

#: How often in an interval somebody who did not get a round looks for the next one.
LOOKS_PER_INTERVAL = 20
#: Looks by which a reaper lets others go first after a round that it did not carry through. Otherwise one
#: whose rounds all fail would claim every round, because it knows to the millisecond when the next is due.
LOOKS_YIELDED = 2
#: Intervals that `enough_rounds` waits for a round to be carried through, by this reaper or another.
PATIENCE = 3
#: Seconds by which a wait may be late before this reaper was stopped itself, and nobody's silence counts.
LATE = 1.0
#: Seconds of a round for deleting old records, a batch at a time: the rest is left to the next one.
PURGE_TIME = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Report:
    """What one round found and did. `seconds` is how long it took."""

    number: int
    asked: int
    unreachable: int
    """Processes to whose channel the question could not be delivered."""
    answered: int
    lost: int
    reaped: int
    """Records closed on behalf of lost processes."""
    discarded: int
    """(group, channel) pairs discarded on behalf of lost processes."""
    kicked: int
    """Memberships that living processes were told to settle."""
    seconds: float
    purged: int = 0
    """Old closed records that were deleted."""
    written_off: int = 0
    """(group, channel) pairs that were marked left without a discard, because their layer is gone."""
    purged_memberships: int = 0
    """Old left memberships that were deleted, without those that went with their record."""

    @property
    def repaired(self) -> bool:
        return bool(self.lost or self.reaped or self.discarded or self.kicked or self.written_off)

    def fields(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)

    def line(self) -> str:
        """As one line for people."""
        line = (
            f"round {self.number}: asked {self.asked}, answered {self.answered}, lost {self.lost}, "
            f"reaped {self.reaped}, discarded {self.discarded}, kicked {self.kicked}, {self.seconds:.2f} s"
        )
        if self.unreachable:
            line += f"; {self.unreachable} could not be asked"
        if self.written_off:
            line += f"; {self.written_off} groups of a layer that no longer exists written off"
        if self.purged:
            line += f"; {self.purged} old records deleted"
        if self.purged_memberships:
            line += f"; {self.purged_memberships} old memberships deleted"
        return line


class Reaper:
    """Runs rounds on the event loop that it is used on; `interval` and `timeout` in seconds. Records are
    deleted `keep_closed` seconds after they were closed, unless that is None.
    """

    def __init__(
        self, *, interval: float, timeout: float, misses_allowed: int, keep_closed: float | None = None
    ) -> None:
        self.interval = interval
        self.timeout = timeout
        self.misses_allowed = misses_allowed
        self.keep_closed = keep_closed
        if not 0 < timeout < interval:
            raise ImproperlyConfigured(
                f"--timeout ({timeout:g}) must be above zero and below --interval ({interval:g})."
            )
        self.stopping = asyncio.Event()
        self._claimed_at = 0.0
        self._carried_through = True
        """Whether the last round that this reaper claimed was."""
        self._mailbox: Mailbox | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: dict[int, set[uuid.UUID]] = {}
        self._news = asyncio.Event()

    @classmethod
    def as_configured(cls, interval: float | None = None, timeout: float | None = None) -> "Reaper":
        """With these times, or those of the settings. Raises ImproperlyConfigured."""
        settings = conf.get()
        return cls(
            interval=settings.ROUND_INTERVAL if interval is None else interval,
            timeout=settings.ROUND_TIMEOUT if timeout is None else timeout,
            misses_allowed=settings.MISSES_ALLOWED,
            keep_closed=settings.KEEP_CLOSED,
        )

    async def round(self) -> Report | None:
        """One round, or None when it is not due or another reaper has it.

        Raises LayerUnavailable or a `django.db.Error` when processes could not be asked or judged, and
        RoundFailed when the sweep or the purge left something undone, which stays on the to-do list.
        """
        await self._listen()
        number = await _database(process_rows.claim_round, self.interval)
        if number is None:
            return None
        clock = asyncio.get_running_loop().time
        began = self._claimed_at = clock()
        self._carried_through = False
        gone = await sweep.declare_gone(_database)
        asked, unreachable = await self._ask(number)
        answered, fair = await self._wait(number, asked)
        await self._read_rows(number, asked, answered)
        # Who was not given the whole time to answer, or was not heard, has not missed the round.
        lost = await self._judge(number, asked, answered) if fair and not self.stopping.is_set() else []
        failures: list[Exception] = []
        try:
            swept, kicked = await self._sweep(failures)
        except DatabaseFailure as error:
            failures.append(error)
        finally:
            # Also after a sweep that cannot succeed: otherwise old records would be kept for ever.
            purged = await self._purge(failures)
        if failures:
            raise RoundFailed.of(failures)
        if fair and not unreachable and not self.stopping.is_set():
            await _database(process_rows.finish_round, number)
            self._carried_through = True
        return Report(
            number=number,
            asked=len(asked),
            unreachable=unreachable,
            answered=sum(process.id in answered for process in asked),
            lost=len(gone) + len(lost),
            reaped=swept.reaped,
            discarded=swept.discarded,
            kicked=kicked,
            seconds=clock() - began,
            purged=purged["records"],
            purged_memberships=purged["memberships"],
            written_off=swept.written_off,
        )

    async def preview(self) -> Report:
        """Ask, and say what a round would do, without writing anything anywhere. `lost` counts processes that
        stay silent.
        """
        await self._listen()
        clock = asyncio.get_running_loop().time
        began = clock()
        asked, unreachable = await self._ask(0)
        answered, _ = await self._wait(0, asked)
        silent = [process.id for process in asked if process.id not in answered]
        ended = [process.id for process in await _database(process_rows.lost_processes_to_sweep)]
        reaped = discarded = 0
        for process in silent + ended:
            reaped += await _database(connection_rows.count_open_records, process)
            discarded += len(await _database(connection_rows.groups_to_leave, process))
        return Report(
            number=0,
            asked=len(asked),
            unreachable=unreachable,
            answered=len(asked) - len(silent),
            lost=len(silent),
            reaped=reaped,
            discarded=discarded,
            kicked=len(await _database(connection_rows.leftovers)),
            seconds=clock() - began,
        )

    async def until_next(self) -> None:
        """Wait until this reaper's next round is due, or it is time to look whether another's has come."""
        now = asyncio.get_running_loop().time()
        due = self._claimed_at + self.interval
        if not self._carried_through:
            due += LOOKS_YIELDED * self.interval / LOOKS_PER_INTERVAL
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self.interval / LOOKS_PER_INTERVAL, due - now)):
                await self.stopping.wait()

    def stop(self) -> None:
        """Wait for nobody any more and begin no new batch; what is being written is finished."""
        self.stopping.set()
        self._news.set()

    async def close(self) -> None:
        """Stop listening for answers."""
        if self._mailbox is not None and self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            await self._mailbox.close()

    # -- ask ---------------------------------------------------------------------------------------

    async def _ask(self, number: int) -> tuple[list[Asked], int]:
        """The processes that were asked, and how many could not be."""
        processes = await _database(process_rows.processes_to_ask)
        self._answers = {number: set()}
        # All at once, so that a layer that hangs costs a round one timeout and not one for each process.
        outcomes = await asyncio.gather(*(self._ask_one(process, number) for process in processes))
        # Silence counts only after a question that was delivered.
        asked = [process for process, was_asked in zip(processes, outcomes, strict=True) if was_asked]
        return asked, len(processes) - len(asked)

    async def _ask_one(self, process: Asked, number: int) -> bool:
        try:
            await groups.ask(process.channel_name, number, self._required_mailbox.address, self.interval)
        except LayerUnavailable as error:
            logger.warning("%s:%d was not asked: %s", process.host, process.pid, error)
            return False
        return True

    # -- wait --------------------------------------------------------------------------------------

    async def _wait(self, number: int, asked: list[Asked]) -> tuple[set[uuid.UUID], bool]:
        """Wait until every process has answered, the time is up, or the reaper must stop.

        Returns:
            The processes that answered, and True if the reaper would have received all other answers, too.
        """
        clock, everybody = asyncio.get_running_loop().time, {process.id for process in asked}
        until = clock() + self.timeout
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not everybody <= self._answers[number] and not self.stopping.is_set():
                    self._news.clear()
                    await self._news.wait()
        answers = self._answers.pop(number)
        if everybody <= answers:
            return answers, True
        if (late := clock() - until) > LATE:
            logger.warning("This reaper stood still for %.1f s; this round judges nobody", late)
            return answers, False
        return answers, bool(answers) or await self._hears_itself()

    async def _read_rows(self, number: int, asked: list[Asked], answered: set[uuid.UUID]) -> None:
        """Add the processes whose answer is in the database, because they could not send it."""
        silent = [process.id for process in asked if process.id not in answered]
        if silent:
            answered.update(await _database(process_rows.processes_that_answered, number, silent))

    async def _hears_itself(self) -> bool:
        """Find out whether what is sent to this reaper arrives: if no process answers, it may be deaf."""
        mailbox = self._required_mailbox
        try:
            echo = await mailbox.echo()
            if await echo.is_back(self.timeout / 2):
                return True
            logger.error("Nobody answered, and an echo did not come back either; this round judges nobody")
            await groups.rebuild(mailbox.address, echo.missing)
        except LayerUnavailable as error:
            logger.warning(
                "Nobody answered, and the layer takes nothing; this round judges nobody: %s", error
            )
        return False

    # -- judge -------------------------------------------------------------------------------------

    async def _judge(self, number: int, asked: list[Asked], answered: set[uuid.UUID]) -> list[LostProcess]:
        if back := [process.id for process in asked if process.missed and process.id in answered]:
            # Who answered by message only, its database being down, has not written so in its row.
            await _database(process_rows.reset_misses, back)
        silent = [process.id for process in asked if process.id not in answered]
        if not silent:
            return []
        # The database has the last word: who answered there, or was judged meanwhile, is spared.
        lost = await _database(process_rows.judge, number, silent, self.misses_allowed)
        for process in lost:
            logger.error(
                "Process %s:%d is lost: it left %d rounds unanswered",
                process.host,
                process.pid,
                self.misses_allowed + 1,
            )
        metrics.processes_lost.inc(len(lost))
        return lost

    # -- sweep -------------------------------------------------------------------------------------

    async def _sweep(self, failures: list[Exception]) -> tuple[Swept, int]:
        """Put right what ended processes held, and tell living ones what they have left undone.

        Returns what was swept, and of how many memberships living processes were told. Everything that kept
        the rest from being done is added to `failures`.
        """
        ended = await _database(process_rows.lost_processes_to_sweep)
        swept = await sweep.sweep(ended, _database, self.stopping.is_set, keep_closed=self.keep_closed)
        failures += swept.failures
        # Also when a layer is down: what processes in another have left undone is done all the same.
        kicked, not_told = await self._kick(await _database(connection_rows.leftovers))
        failures += not_told
        return swept, kicked

    async def _kick(self, leftovers: list[Leftover]) -> tuple[int, list[LayerUnavailable]]:
        """A living process leaves its groups itself: only it knows whether somebody else has joined them
        meanwhile. Returns how many memberships were told of, and what kept others from it.
        """
        by_channel: dict[str, list[Leftover]] = {}
        for leftover in leftovers:
            by_channel.setdefault(leftover.channel_name, []).append(leftover)

        async def kick(channel: str, some: list[Leftover]) -> LayerUnavailable | None:
            connections = sorted({str(leftover.connection_id) for leftover in some})
            memberships = [(str(leftover.connection_id), leftover.group) for leftover in some]
            try:
                await groups.kick(channel, connections, memberships, CloseReason.SERVER_LOST.value)
            except LayerUnavailable as error:
                return error
            return None

        outcomes = await asyncio.gather(*(kick(channel, some) for channel, some in by_channel.items()))
        failures = [error for error in outcomes if error is not None]
        told = sum(
            len(some) for some, error in zip(by_channel.values(), outcomes, strict=True) if error is None
        )
        return told, failures

    # -- purge -------------------------------------------------------------------------------------

    async def _purge(self, failures: list[Exception]) -> Counter[str]:
        """Delete what has been over for long enough, for a limited time.

        Returns how many rows of each kind went. A failure of the database is added to `failures`.
        """
        purged: Counter[str] = Counter()
        if self.keep_closed is None:
            return purged
        clock = asyncio.get_running_loop().time
        until = clock() + PURGE_TIME
        # In turns, a batch each: a backlog of one kind must not take the whole time.
        turns = deque[tuple[str, Callable[[float], int]]](
            (
                ("records", connection_rows.purge_closed),
                ("memberships", connection_rows.purge_left),
                ("processes", process_rows.purge_processes),
            )
        )
        while turns and clock() < until and not self.stopping.is_set():
            kind, purge = turns.popleft()
            try:
                deleted = await _database(purge, self.keep_closed)
            except DatabaseFailure as error:
                failures.append(error)
                continue
            purged[kind] += deleted
            if deleted:
                turns.append((kind, purge))
        return purged

    # -- answers -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._mailbox is None:
            self._mailbox = await Mailbox.open()
            self._listening = tasks.create(self._read(self._mailbox))

    @property
    def _required_mailbox(self) -> Mailbox:
        assert self._mailbox is not None, "answers are listened for before anybody is asked"  # noqa: S101
        return self._mailbox

    async def _read(self, mailbox: Mailbox) -> None:
        while True:
            event = await mailbox.next()
            try:
                self._take(event)
            except Exception:
                # An answer that makes no sense does not make the reaper deaf.
                logger.exception("The reaper could not take an answer")

    def _take(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case groups.ANSWER:
                # A late answer to an earlier round is not this round's, though it has reset the process's
                # misses by its row.
                if (answers := self._answers.get(event["round"])) is not None:
                    answers.add(uuid.UUID(event["process"]))
        self._news.set()


async def rounds(reaper: Reaper, report: Callable[[Report | Exception], None]) -> None:
    """Round after round until the reaper is to stop.

    A round that fails is reported and the next one tries again: a reaper is most needed when things are down.
    """
    while not reaper.stopping.is_set():
        try:
            done = await reaper.round()
        except (LayerUnavailable, DatabaseFailure, RoundFailed) as error:
            metrics.rounds.labels(outcome="failed").inc()
            report(error)
        else:
            if done is not None:
                metrics.rounds.labels(outcome="done").inc()
                report(done)
        await reaper.until_next()


async def enough_rounds(reaper: Reaper, report: Callable[[Report], None]) -> bool:
    """Run as many rounds as it takes to find a process that has just died.

    Rounds that other reapers run meanwhile count, because they ask and judge the same processes, but only
    those that were carried through: a round that failed may have found nothing.

    Returns: whether this reaper repaired anything.

    Raises what `Reaper.round` raises, and LayerUnavailable when this reaper could not ask every process, or
    when no round is carried through for a while.
    """
    clock = asyncio.get_running_loop().time
    last = await _database(process_rows.current_round)
    carried_through, news_at, repaired = 0, clock(), False
    while not reaper.stopping.is_set():
        done = await reaper.round()
        if done is not None:
            report(done)
            repaired = repaired or done.repaired
            if done.unreachable:
                raise LayerUnavailable(f"{done.unreachable} processes could not be asked.")
        finished = await _database(process_rows.finished_round)
        if finished > last:
            # Of several since the last look one counts: the others only make this take longer.
            last, carried_through, news_at = finished, carried_through + 1, clock()
        if carried_through > reaper.misses_allowed and not await _database(
            process_rows.has_spared, reaper.misses_allowed
        ):
            break
        if clock() - news_at > PATIENCE * reaper.interval:
            raise LayerUnavailable(
                f"Rounds are claimed, and for {PATIENCE * reaper.interval:g} s none was carried through; "
                "look at what the other reapers say."
            )
        await reaper.until_next()
    return repaired


async def _database(call: Callable[..., Result], *arguments: object) -> Result:
    result: Result = await database_sync_to_async(call)(*arguments)
    return result
