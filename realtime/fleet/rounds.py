"""Rounds: ask every process, wait, judge the silent processes, and clean up after the lost ones.

Any number of reapers may run. Each round has a number, and the database gives each number to one reaper. A
reaper that dies in the middle of a round leaves only to-do items behind (`left_at` is null, `closed_at` is
null). The next round finds them.
"""

import asyncio
import logging
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, RoundFailed
from realtime.fleet import sweep
from realtime.fleet.announcements import FINISH_TIMEOUT, STOP_TIMEOUT, Announcements
from realtime.fleet.database import on_shared_thread as database
from realtime.fleet.mailbox import Mailbox
from realtime.fleet.stays import Stays
from realtime.fleet.sweep import Swept
from realtime.layers import groups, messages
from realtime.process import tasks
from realtime.records import connection_rows, presence_rows, process_rows
from realtime.records.connection_rows import Leftover
from realtime.records.detail_rows import Details
from realtime.records.process_rows import Asked, LostProcess

logger = logging.getLogger("realtime.fleet")

#: How often in an interval a reaper that did not get a round checks for the next one.
CHECKS_PER_INTERVAL = 20
#: Checks for which a reaper lets the others go first after a round that it did not carry through. Otherwise a
#: reaper with only failing rounds would claim every round: it knows to the millisecond when the next is due.
CHECKS_YIELDED = 2
#: Intervals for which `run_enough_rounds` waits until a round is carried through, by this reaper or another.
PATIENCE = 3
#: If a wait ends more than this many seconds late, the reaper itself was stalled, and the round counts no
#: misses.
LONGEST_STALL = 1.0
#: Seconds in each round for deleting old records and reducing details. The next round continues.
PURGE_TIME = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one round."""

    number: int
    asked: int
    unreachable: int
    """Processes that the question could not be delivered to."""
    answered: int
    lost: int
    reaped: int
    """Records closed on behalf of lost processes."""
    discarded: int
    """(group, channel) pairs discarded on behalf of lost processes."""
    kicked: int
    """Memberships that living processes were told to finish leaving."""
    seconds: float
    """Duration of the round."""
    purged: int = 0
    """Old closed records that were deleted."""
    written_off: int = 0
    """(group, channel) pairs that were marked left without a discard, because their layer is gone."""
    purged_memberships: int = 0
    """Old left memberships that were deleted, except the ones that were deleted with their record."""
    reduced: int = 0
    """Records that had more of the client's address and user agent than CLIENT_DETAILS allows."""

    @property
    def repaired(self) -> bool:
        """True if the round found something to repair."""
        return bool(self.lost or self.reaped or self.discarded or self.kicked or self.written_off)

    def fields(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        return asdict(self)

    def line(self) -> str:
        """Return the report as one line for people."""
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
        if self.reduced:
            line += f"; the client's details in {self.reduced} records reduced"
        return line


class Poll:
    """One question to all processes, and their answers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[Asked] = []
        """The processes to which the question was delivered."""
        self.unreachable = 0
        """The number of processes that the question could not be delivered to."""
        self.answered: set[uuid.UUID] = set()

    @property
    def silent(self) -> list[Asked]:
        """The processes that were asked and did not answer."""
        return [process for process in self.asked if process.id not in self.answered]


class Reaper:
    """Runs rounds on the event loop on which it is used.

    Args:
        interval: Seconds between two rounds.
        timeout: Seconds that processes have to answer; less than `interval`.
        misses_allowed: Rounds in a row that a process may leave unanswered. One more, and it is lost.
        keep_closed: Seconds from the end of a record until it is deleted; None keeps all records.
        purge_time: Seconds in each round for deleting old records, and for reducing the details of clients.
        client_details: The details of clients that records may have: "full", "network" or "none".

    Raises:
        ImproperlyConfigured: `timeout` is not between 0 and `interval`.
    """

    def __init__(
        self,
        *,
        interval: float,
        timeout: float,
        misses_allowed: int,
        keep_closed: float | None = None,
        purge_time: float = PURGE_TIME,
        client_details: str = "full",
    ) -> None:
        self.interval = interval
        self.timeout = timeout
        self.misses_allowed = misses_allowed
        self.keep_closed = keep_closed
        self.purge_time = purge_time
        self.client_details = client_details
        if not 0 < timeout < interval:
            raise ImproperlyConfigured(
                f"--timeout ({timeout:g}) must be above zero and below --interval ({interval:g})."
            )
        self.stopping = asyncio.Event()
        self._claimed_at = 0.0
        self._carried_through = True
        """False if the last round that this reaper claimed was not carried through."""
        self._mailbox: Mailbox | None = None
        self._poll: Poll | None = None
        """The question that is waiting for answers."""
        self._answer_came = asyncio.Event()
        self._announcements = Announcements(own_thread=True)
        self.stays = Stays(database, self._announcements, interval=interval)
        self._checked = 0
        """The id up to which the rows of present users were checked."""
        self._details = Details()

    @classmethod
    def as_configured(cls, interval: float | None = None, timeout: float | None = None) -> "Reaper":
        """Return a reaper with these times; without them, with those of the settings.

        Raises:
            ImproperlyConfigured: `timeout` is not between 0 and `interval`.
        """
        settings = conf.get()
        return cls(
            interval=settings.ROUND_INTERVAL if interval is None else interval,
            timeout=settings.ROUND_TIMEOUT if timeout is None else timeout,
            misses_allowed=settings.MISSES_ALLOWED,
            keep_closed=settings.KEEP_CLOSED,
            client_details=settings.CLIENT_DETAILS,
        )

    async def round(self) -> Report | None:
        """Run one round.

        Returns:
            The report, or None if no round is due or another reaper has it.

        Raises:
            LayerUnavailable: The channel layer did not open a channel for the answers.
            django.db.Error: The database could not be asked.
            RoundFailed: The sweep or the purge left something undone. It stays on the to-do list.
        """
        await self._listen()
        number = await database(process_rows.claim_round, self.interval)
        if number is None:
            return None
        clock = asyncio.get_running_loop().time
        began = self._claimed_at = clock()
        self._carried_through = False
        gone = await sweep.declare_gone(database)
        poll = await self._ask(number)
        is_fair = await self._wait(poll)
        await self._read_rows(poll)
        # A process that did not have the whole time, or that this reaper could not receive, missed nothing.
        lost = await self._judge(poll) if is_fair and not self.stopping.is_set() else []
        failures: list[Exception] = []
        try:
            swept, kicked = await self._sweep(failures)
        except DatabaseFailure as error:
            failures.append(error)
        finally:
            # A sweep that can never succeed must not keep old records for ever.
            purged = await self._purge(failures)
        if failures:
            raise RoundFailed.of(failures)
        if is_fair and not poll.unreachable and not self.stopping.is_set():
            await database(process_rows.finish_round, number)
            self._carried_through = True
        return Report(
            number=number,
            asked=len(poll.asked),
            unreachable=poll.unreachable,
            answered=len(poll.asked) - len(poll.silent),
            lost=len(gone) + len(lost),
            reaped=swept.reaped,
            discarded=swept.discarded,
            kicked=kicked,
            seconds=clock() - began,
            purged=purged["records"],
            purged_memberships=purged["memberships"],
            written_off=swept.written_off,
            reduced=purged["reduced"],
        )

    async def preview(self) -> Report:
        """Ask all processes, and write nothing.

        Returns:
            A report of what a round would do. `lost` counts the processes that did not answer.

        Raises:
            LayerUnavailable: The channel layer did not open a channel for the answers.
            django.db.Error: The database could not be asked.
        """
        await self._listen()
        clock = asyncio.get_running_loop().time
        began = clock()
        poll = await self._ask(0)
        await self._wait(poll)
        ended = await database(process_rows.lost_processes_to_sweep)
        reaped = discarded = 0
        for process in [*(each.id for each in poll.silent), *(each.id for each in ended)]:
            reaped += await database(connection_rows.count_open_records, process)
            discarded += len(await database(connection_rows.groups_to_leave, process))
        return Report(
            number=0,
            asked=len(poll.asked),
            unreachable=poll.unreachable,
            answered=len(poll.asked) - len(poll.silent),
            lost=len(poll.silent),
            reaped=reaped,
            discarded=discarded,
            kicked=len(await database(connection_rows.leftovers)),
            seconds=clock() - began,
        )

    async def until_next(self) -> None:
        """Wait until the next round of this reaper is due, or until the next check for another's round."""
        now = asyncio.get_running_loop().time()
        due = self._claimed_at + self.interval
        if not self._carried_through:
            due += CHECKS_YIELDED * self.interval / CHECKS_PER_INTERVAL
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self.interval / CHECKS_PER_INTERVAL, due - now)):
                await self.stopping.wait()

    def stop(self) -> None:
        """End the wait for answers and begin no new batch. A batch that is being written is finished."""
        self.stopping.set()
        self._answer_came.set()

    async def close(self) -> None:
        """Stop receiving answers, and wait for the receivers of `connection_closed` for a limited time."""
        if self._mailbox is not None:
            await self._mailbox.close()
        await self.stays.finish(STOP_TIMEOUT)
        await self._announcements.finish(STOP_TIMEOUT if self.stopping.is_set() else FINISH_TIMEOUT)

    # -- ask ---------------------------------------------------------------------------------------

    async def _ask(self, number: int) -> Poll:
        self._poll = poll = Poll(number)
        processes = await database(process_rows.processes_to_ask)
        question = messages.Ask(number, self._required_mailbox.address, self.interval)
        failed = await groups.tell_all({process.channel_name: question for process in processes})
        for process in processes:
            if (error := failed.get(process.channel_name)) is None:
                poll.asked.append(process)
            else:
                # Silence counts only after a question that was delivered.
                poll.unreachable += 1
                logger.warning("%s:%d was not asked: %s", process.host, process.pid, error)
        return poll

    # -- wait --------------------------------------------------------------------------------------

    async def _wait(self, poll: Poll) -> bool:
        """Wait until every process has answered, the time is up, or the reaper must stop.

        Returns:
            True if the reaper would have received the answers of the silent processes, too.
        """
        clock, asked = asyncio.get_running_loop().time, {process.id for process in poll.asked}
        until = clock() + self.timeout
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not asked <= poll.answered and not self.stopping.is_set():
                    self._answer_came.clear()
                    await self._answer_came.wait()
        self._poll = None
        if asked <= poll.answered:
            return True
        if (late := clock() - until) > LONGEST_STALL:
            logger.warning("This reaper was stalled for %.1f s; this round counts no misses", late)
            return False
        return bool(poll.answered) or await self._check_reception()

    async def _read_rows(self, poll: Poll) -> None:
        """Add the processes that could not send their answer, but wrote it in the database."""
        if silent := [process.id for process in poll.silent]:
            poll.answered.update(await database(process_rows.processes_that_answered, poll.number, silent))

    async def _check_reception(self) -> bool:
        """Check that this reaper receives anything at all, and open new connections if it does not.

        Returns:
            True if an echo came back: the processes did not answer.
        """
        mailbox = self._required_mailbox
        try:
            missing = await mailbox.missing_parts(patience=self.timeout / 2)
            if not missing:
                return True
            logger.error(
                "No process answered, and an echo did not come back either; this round counts no misses"
            )
            await groups.rebuild(mailbox.address, missing)
        except LayerUnavailable as error:
            logger.warning(
                "No process answered, and the layer takes no message; this round counts no misses: %s",
                error,
            )
        return False

    # -- judge -------------------------------------------------------------------------------------

    async def _judge(self, poll: Poll) -> list[LostProcess]:
        if back := [process.id for process in poll.asked if process.missed and process.id in poll.answered]:
            # A process without its database answers by message only; reset its misses here.
            await database(process_rows.reset_misses, back)
        silent = [process.id for process in poll.silent]
        if not silent:
            return []
        # The database decides: a process that answered there, or was judged meanwhile, is spared.
        lost = await database(process_rows.judge, poll.number, silent, self.misses_allowed)
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
        """Clean up after ended processes, and tell living ones which groups they have to finish leaving.

        Args:
            failures: Receives everything that kept a part from being done.

        Returns:
            What was swept, and the number of memberships of which living processes were told.
        """
        ended = await database(process_rows.lost_processes_to_sweep)
        swept = await sweep.sweep(
            ended, database, self.stopping.is_set, self._announcements, keep_closed=self.keep_closed
        )
        failures += swept.failures
        if swept.reaped:
            self.stays.departed()
        checked: int | None = await database(presence_rows.note_departed, self._checked)
        self._checked = checked or 0
        await self.stays.end_due()
        # A layer that is down must not keep the processes of another layer from being told.
        kicked, not_told = await self._kick(await database(connection_rows.leftovers))
        failures += not_told
        return swept, kicked

    async def _kick(self, leftovers: list[Leftover]) -> tuple[int, list[LayerUnavailable]]:
        """Tell living processes which groups they have to finish leaving.

        A living process leaves its groups itself, because only it knows if other connections have joined them
        meanwhile.

        Returns:
            The number of memberships of which processes were told, and the errors of the other ones.
        """
        told = 0
        failures: list[LayerUnavailable] = []
        # The client of a superseded connection must not come back: it would supersede the newer one.
        superseded = CloseReason.SUPERSEDED.value
        for reason, some in (
            (superseded, [each for each in leftovers if each.reason == superseded]),
            (CloseReason.SERVER_LOST.value, [each for each in leftovers if each.reason != superseded]),
        ):
            by_address: dict[str, list[Leftover]] = defaultdict(list)
            for leftover in some:
                by_address[leftover.channel_name].append(leftover)
            failed = await groups.tell_all(
                {address: _kick(held, reason) for address, held in by_address.items()}
            )
            told += sum(len(held) for address, held in by_address.items() if address not in failed)
            failures += failed.values()
        return told, failures

    # -- purge -------------------------------------------------------------------------------------

    async def _purge(self, failures: list[Exception]) -> Counter[str]:
        """Delete rows that ended long enough ago, and reduce the details of clients, for a limited time.

        Args:
            failures: Receives the failures of the database.

        Returns:
            The number of deleted rows of each kind, and of the `reduced` records.
        """
        turns = deque[tuple[str, Callable[[], int]]]()
        if self.keep_closed is not None:
            turns += [
                ("records", partial(connection_rows.purge_closed, self.keep_closed)),
                ("memberships", partial(connection_rows.purge_left, self.keep_closed)),
                ("processes", partial(process_rows.purge_processes, self.keep_closed)),
                ("dormant", partial(presence_rows.purge_dormant, self.keep_closed)),
            ]
        if self.client_details != "full":
            turns.append(("visited", partial(self._details.visit, self.client_details)))
        clock = asyncio.get_running_loop().time
        until = clock() + self.purge_time
        before = self._details.reduced
        done: Counter[str] = Counter()
        # The kinds take turns, a batch each, so that a backlog of one kind does not take the whole time.
        while turns and clock() < until and not self.stopping.is_set():
            kind, work = turns.popleft()
            try:
                rows = await database(work)
            except DatabaseFailure as error:
                failures.append(error)
                continue
            done[kind] += rows
            if rows:
                turns.append((kind, work))
        done["reduced"] = self._details.reduced - before
        return done

    # -- answers -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._mailbox is None:
            self._mailbox = await Mailbox.open()
            self._mailbox.listen(self._take)

    @property
    def _required_mailbox(self) -> Mailbox:
        assert self._mailbox is not None, "the mailbox is opened before a process is asked"  # noqa: S101
        return self._mailbox

    def _take(self, message: messages.Control) -> None:
        match message:
            # A late answer to an earlier round does not answer this one, although the process has reset its
            # misses in its row.
            case messages.Answer(number, process) if self._poll is not None and number == self._poll.number:
                self._poll.answered.add(process)
        self._answer_came.set()


def _kick(leftovers: list[Leftover], reason: str) -> messages.Kick:
    return messages.Kick(
        connections=sorted({leftover.connection_id for leftover in leftovers}),
        memberships=[(leftover.connection_id, leftover.group) for leftover in leftovers],
        reason=reason,
    )


async def run_rounds(reaper: Reaper, report: Callable[[Report | Exception], None]) -> None:
    """Run round after round until the reaper must stop.

    A round that fails is reported, and the next one tries again: a reaper is most needed in an outage.

    Args:
        reaper: Runs the rounds.
        report: Called with the report of each round, or with the exception that it failed with.
    """
    ending = tasks.start(reaper.stays.run())
    try:
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
    finally:
        ending.cancel()


async def run_enough_rounds(reaper: Reaper, report: Callable[[Report], None]) -> bool:
    """Run as many rounds as it takes to find a process that has just died.

    The rounds of other reapers count, because they ask and judge the same processes. Only rounds that were
    carried through count: a round that failed may have found nothing.

    Args:
        reaper: Runs the rounds.
        report: Called with the report of each round.

    Returns:
        True if this reaper repaired anything.

    Raises:
        LayerUnavailable: This reaper could not ask every process, or no round was carried through for
            `PATIENCE` intervals.
        django.db.Error: As `Reaper.round` raises it.
        RoundFailed: As `Reaper.round` raises it.
    """
    clock = asyncio.get_running_loop().time
    last = await database(process_rows.current_round)
    carried_through, progress_at, repaired = 0, clock(), False
    while not reaper.stopping.is_set():
        done = await reaper.round()
        if done is not None:
            report(done)
            repaired = repaired or done.repaired
            if done.unreachable:
                raise LayerUnavailable(f"{done.unreachable} processes could not be asked.")
        finished = await database(process_rows.finished_round)
        if finished > last:
            # If several finished since the last check, only one is counted. That only takes longer.
            last, carried_through, progress_at = finished, carried_through + 1, clock()
        if carried_through > reaper.misses_allowed and not await database(
            process_rows.has_spared, reaper.misses_allowed
        ):
            break
        if clock() - progress_at > PATIENCE * reaper.interval:
            raise LayerUnavailable(
                f"Rounds are claimed, but for {PATIENCE * reaper.interval:g} s none was carried through; "
                "look at the output of the other reapers."
            )
        await reaper.until_next()
    return repaired
