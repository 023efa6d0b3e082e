"""Follow the history of one group, so that its members receive every message once and in order.

The follower reads the history in a task of its own, and only one reading runs at a time. All that wait for a
reading share it. Messages of other groups do not wait.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from realtime import metrics
from realtime.errors import LayerUnavailable
from realtime.history.positions import Entry, Log, Position
from realtime.history.retention import Retention
from realtime.history.tail import Delivery, Fate, Reset, Tail
from realtime.hub.connection import Connection
from realtime.hub.fanout import Fanout, Members
from realtime.layers import groups
from realtime.process import tasks
from realtime.transports.asgi import Shared
from realtime.wire import frames

logger = logging.getLogger("realtime.hub")

#: The most messages of one reading, and about the most bytes of them.
READ_LIMIT, READ_BYTES = 1000, 4 * 1024 * 1024
#: Bytes of missed messages that are written to a connection before it is asked if it may take more.
BATCH_BYTES = 64 * 1024
#: Batches of missed messages that are kept in encoded form: clients that lost one process come back together.
MAX_ENCODED = 8
#: The shortest and the longest pause, in seconds, before a reading that failed is tried again.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: Epochs that a follower remembers as unknown to the history.
MAX_FOREIGN = 64


class Unreachable(Exception):
    """The messages after a position cannot be had. `known` is False if the history does not have it."""

    def __init__(self, *, known: bool) -> None:
        self.known = known


class _Waiter(NamedTuple):
    """A task that waits for the reading of this number, or for a later one."""

    number: int
    done: "asyncio.Future[None]"


class CatchingUp:
    """A connection that is written what it missed, and not what is sent meanwhile.

    Attributes:
        at: The position of the group when this began; None if the follower was not open.
        resumes: True when a call of `resume` works for it.
        ended: Set when the connection is a member like all others, or left.
    """

    __slots__ = ("at", "ended", "resumes")

    def __init__(self, at: Position | None) -> None:
        self.at = at
        self.resumes = False
        self.ended = asyncio.Event()


class Follower:
    """The follower of one group.

    Args:
        group: The name of the group.
        keep: What the group keeps.
        address: The address of this process in its channel layer.
        members: The local members of each group.
        fanout: Writes to all members of the group.

    Attributes:
        tail: The newest messages.
        catching_up: The connections that fan-out leaves out.
    """

    __slots__ = (
        "_address",
        "_begun",
        "_done",
        "_encoded",
        "_fanout",
        "_foreign",
        "_fresh_from",
        "_keep",
        "_members",
        "_repair",
        "_waiters",
        "_wanted",
        "catching_up",
        "group",
        "tail",
    )

    def __init__(
        self, group: str, keep: Retention, address: str, members: Mapping[str, Members], fanout: Fanout
    ) -> None:
        self.group = group
        self.tail = Tail()
        self.catching_up: dict[Connection, CatchingUp] = {}
        self._keep = keep
        self._address = address
        self._members = members
        self._fanout = fanout
        self._repair: asyncio.Task[None] | None = None
        # Readings are numbered. Each joiner needs one that began after the process was in the group.
        self._begun = 0
        self._done = 0
        self._wanted = 0
        self._fresh_from = 1
        self._waiters: list[_Waiter] = []
        self._foreign: dict[str, None] = {}
        self._encoded: dict[tuple[int, int], Shared] = {}

    @property
    def is_needed(self) -> bool:
        """True while the group has members in this process, or connections that become members."""
        return bool(self._members.get(self.group) or self.catching_up)

    # -- live messages -------------------------------------------------------------------------------

    async def put(self, position: Position, text: str) -> None:
        """Take a message that the channel layer brought. If too much waits in fan-out, wait.

        Args:
            position: Its place in the history.
            text: The frame for clients, with its position.
        """
        match self.tail.take(position, text):
            case Fate.NEXT:
                self._trim()
                await self._fanout.put(self.group, text)
            case Fate.OLD:
                metrics.history_repeated.inc()
            case Fate.AHEAD:
                # A reading that runs will find out if one more is needed.
                if not self._is_reading:
                    self.read("gap")

    # -- readings ------------------------------------------------------------------------------------

    def stale(self) -> None:
        """Note that messages may have been missed: joiners need a reading that begins from now on."""
        self._fresh_from = self._begun + 1

    @property
    def is_fresh(self) -> bool:
        """True if every message since the last reading has come to this process, or will."""
        return self._done >= self._fresh_from

    async def ready(self) -> None:
        """Wait until the follower knows the position of its group.

        Raises:
            LayerUnavailable: The history could not be read.
        """
        if self.is_fresh:
            return
        if self._is_reading and self._begun >= self._fresh_from:
            # The reading that runs began after this process was in the group, so it will do.
            await self._reading(self._begun)
        else:
            await self.refresh("join")

    async def refresh(self, cause: str) -> None:
        """Read the history, and wait until what was missing is delivered.

        Args:
            cause: The label of the metric `realtime_history_reads_total`.

        Raises:
            LayerUnavailable: The history could not be read.
        """
        number = self._begun + 1
        self.read(cause)
        await self._reading(number)

    async def _reading(self, number: int) -> None:
        """Wait until what this reading found is delivered.

        Raises:
            LayerUnavailable: The history could not be read.
        """
        waiter = _Waiter(number, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(groups.CALL_TIMEOUT):
                await waiter.done
        except TimeoutError as error:
            raise LayerUnavailable(f"The history of group {self.group} could not be read in time.") from error

    def read(self, cause: str) -> None:
        """Have the history read. One more reading follows a reading that runs already."""
        self._wanted = self._begun + 1
        if not self._is_reading:
            # Before the task runs: what arrives until then must not overtake what is read.
            self.tail.behind = True
            self._repair = tasks.create(self._read_until_whole(cause), name="realtime history")

    @property
    def _is_reading(self) -> bool:
        return self._repair is not None and not self._repair.done()

    def stop(self) -> None:
        """Stop reading: the group has no members here."""
        if self._repair is not None:
            self._repair.cancel()

    async def _read_until_whole(self, cause: str) -> None:
        failures = 0
        while True:
            try:
                await self._read_once(cause)
            except LayerUnavailable as error:
                self._tell(self._begun, error)
                if not failures:
                    logger.warning("The history of group %s could not be read: %s", self.group, error)
            except Exception:
                # Without this task the members would receive nothing any more.
                logger.exception("The history of group %s could not be read", self.group)
            else:
                failures = 0
                if self._done >= self._wanted and self.tail.finish():
                    return
                continue
            failures += 1
            if not self.is_needed:
                return
            await asyncio.sleep(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(failures, 10)))

    async def _read_once(self, cause: str) -> None:
        self.tail.begin()
        self._begun += 1
        number = self._begun
        after = self.tail.offset if self.tail.is_open else None
        log = await self._read(after, READ_BYTES, cause)
        while self.tail.is_open and log.lacks(self.tail.position):
            # Members have messages that Redis lost. The clients of other processes, and those that are away,
            # do not have them, and must not take what they have for the whole. If another epoch began since
            # this was read, nothing was done, and it is tried again.
            await groups.distrust(self.group, self._address, self._keep, log.epoch)
            log = await self._read(after, READ_BYTES, cause)
        self.tail.merge(log)
        while (each := self.tail.advance()) is not None:
            await self._deliver(each)
        if self.tail.is_current:
            self._done = number
            self._tell(number)
        # Otherwise another reading follows. If a new history has not reached the offset of the lost one, this
        # one found no messages: clients that have some of them would be refused.

    async def _read(self, after: int | None, max_bytes: int, cause: str) -> Log:
        metrics.history_reads.labels(cause=cause).inc()
        limit = READ_LIMIT if after is not None else self._keep.size
        log = await groups.read(self.group, self._address, after, self._keep, limit, max_bytes)
        entries = (
            Entry(each.offset, frames.with_position(each.text, Position(log.epoch, each.offset)))
            for each in log.entries
        )
        return replace(log, entries=tuple(entries))

    async def _deliver(self, each: Delivery | Reset) -> None:
        if isinstance(each, Delivery):
            self._trim()
            metrics.history_repaired.inc()
            await self._fanout.put(self.group, each.text)
        else:
            self._foreign.clear()
            self._encoded.clear()
            metrics.history_resets.inc()
            logger.warning(
                "The history of group %s cannot be continued: its members are told to load their state",
                self.group,
            )
            await self._fanout.put(self.group, frames.build(reset_frame(self.group, each.position)))

    def _tell(self, number: int, error: LayerUnavailable | None = None) -> None:
        """Wake the tasks that wait for this reading."""
        waiting = self._waiters
        self._waiters = []
        for each in waiting:
            if each.number > number:
                self._waiters.append(each)
            elif each.done.done():
                pass
            elif error is None:
                each.done.set_result(None)
            else:
                each.done.set_exception(error)

    def _trim(self) -> None:
        self.tail.trim(self.tail.offset + 1 - self._keep.size)

    # -- what a connection missed ----------------------------------------------------------------------

    def missed(self, position: Position) -> list[Delivery] | None:
        """Return the first messages after a position; None if memory does not reach so far."""
        if not self.tail.log.reaches(position):
            return None
        return self.tail.after(position, BATCH_BYTES)

    async def read_missed(self, position: Position) -> list[Delivery]:
        """Read the first messages after a position that memory does not reach.

        Raises:
            Unreachable: Not all messages after it can be had.
            LayerUnavailable: The history could not be read.
        """
        if not self.tail.log.knows(position):
            # Another process may know more than this one: a later message, or another epoch.
            if position.epoch in self._foreign:
                raise Unreachable(known=False)
            await self.refresh("join")
            if not self.tail.log.knows(position):
                self._note_foreign(position.epoch)
                raise Unreachable(known=False)
            if (found := self.missed(position)) is not None:
                return found
        log = await self._read(position.offset, BATCH_BYTES, "page")
        if not log.reaches(position):
            raise Unreachable(known=log.knows(position))
        # Later ones are for fan-out, or still on their way to this process.
        return [
            Delivery(Position(log.epoch, each.offset), each.text)
            for each in log.entries
            if each.offset <= self.tail.offset
        ]

    def _note_foreign(self, epoch: str) -> None:
        if epoch == self.tail.epoch or any(fork.epoch == epoch for fork in self.tail.forks):
            return
        self._foreign[epoch] = None
        if len(self._foreign) > MAX_FOREIGN:
            del self._foreign[next(iter(self._foreign))]

    def encoded(self, messages: Sequence[Delivery]) -> Shared:
        """Return these messages as bytes and events, made once for all connections that missed the same."""
        key = messages[0].position.offset, messages[-1].position.offset
        shared = self._encoded.get(key)
        if shared is None:
            shared = self._encoded[key] = Shared([each.text for each in messages])
            if len(self._encoded) > MAX_ENCODED:
                del self._encoded[next(iter(self._encoded))]
        return shared


def reset_frame(group: str, position: Position) -> frames.Reset:
    """Return the frame that tells a client to load its state, and from where messages follow."""
    return frames.Reset(group=group, epoch=position.epoch, offset=position.offset)
