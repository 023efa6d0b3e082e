"""The newest messages of one group as one process knows them: what is delivered, and in which order.

A process receives the messages of a group from the channel layer, which may lose, repeat or reorder them. The
tail decides what a message is: the next one, an old one, or one that came ahead of others. If messages are
missing, the tail is behind: the process reads the history, and the tail puts what was read and what arrived
meanwhile in order. So members receive every message once, in order, or a reset.

Private: docs/reference.md lists the public names.
"""

import enum
import itertools
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from realtime.history.positions import Entry, Log, Position

#: The most bytes of messages that arrive while the history is read and are held until then. More of them are
#: dropped here, and read again.
MAX_HELD = 1024 * 1024


class Fate(enum.Enum):
    """What becomes of a message that arrived."""

    NEXT = "next"
    """Deliver it: the tail has taken it."""
    OLD = "old"
    """Drop it: the members have received it, or it is in no history that is still valid."""
    AHEAD = "ahead"
    """Read the history: messages before it are missing. The tail holds it."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The history could not be continued, and goes on after this position."""

    position: Position


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message for the members, with its place."""

    position: Position
    text: str


@dataclass(frozen=True, slots=True)
class _Held:
    position: Position
    text: str
    begun: int
    """The number of readings that had begun when it arrived."""


class Tail:
    """The newest messages of one group.

    Use it like this. For each message that arrives, call `take`. If it returns AHEAD, or if the history may
    have changed in another way, begin to read:

        tail.begin()
        while True:
            log = read(after=tail.offset)        # None before the first reading: the newest messages
            tail.merge(log)
            while (each := tail.advance()) is not None:
                deliver(each)
            if tail.finish():
                break
            tail.begin()

    Attributes:
        epoch: The current epoch; empty before the first reading.
        offset: The offset of the last message that was delivered.
        forks: The earlier epochs that this one continues, as in `Log`.
        trusted: The number of forks across which no loss is known, as in `Log`.
        behind: True while the history is read: messages that arrive are held.
        size: Bytes of memory that the texts use.
    """

    __slots__ = (
        "_begun",
        "_held",
        "_held_size",
        "_log_offset",
        "_must_read",
        "_pending",
        "_texts",
        "behind",
        "epoch",
        "forks",
        "offset",
        "size",
        "trusted",
    )

    def __init__(self) -> None:
        self.epoch = ""
        self.offset = 0
        self.forks: tuple[Position, ...] = ()
        self.trusted = 0
        self.behind = False
        self.size = 0
        self._texts: deque[Delivery] = deque()
        # Messages that arrived while the tail is behind, in the order of arrival.
        self._held: list[_Held] = []
        self._held_size = 0
        # What was read and is not delivered yet. No deque, because an empty one is large.
        self._pending: list[Delivery | Reset] = []
        self._log_offset = 0
        self._begun = 0
        self._must_read = False

    # -- what it knows -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """True after the first reading."""
        return bool(self.epoch)

    @property
    def is_current(self) -> bool:
        """True if everything that the last reading knew of was delivered."""
        return self.offset >= self._log_offset

    @property
    def position(self) -> Position:
        """The place of the last message that was delivered."""
        return Position(self.epoch, self.offset)

    @property
    def first(self) -> int:
        """The offset of the oldest message in memory; `offset + 1` if there is none."""
        return self.offset + 1 - len(self._texts)

    @property
    def log(self) -> Log:
        """What is known of the history without asking Redis."""
        return Log(self.epoch, self.offset, self.first, self.forks, trusted=self.trusted)

    def after(self, position: Position, max_size: int) -> list[Delivery]:
        """Return messages after a position that `log.reaches`, oldest first: as many as fit, at least one.

        Args:
            position: The place of the last message before them.
            max_size: The bytes of memory that all but the first may use.

        Returns:
            An empty list if there are none.
        """
        found: list[Delivery] = []
        size = 0
        for each in itertools.islice(self._texts, position.offset + 1 - self.first, None):
            size += sys.getsizeof(each.text)
            if found and size > max_size:
                break
            found.append(each)
        return found

    # -- what arrives --------------------------------------------------------------------------------

    def take(self, position: Position, text: str) -> Fate:
        """Take a message that the channel layer brought.

        Args:
            position: Its place, as the publisher got it from Redis.
            text: The frame for clients, with its position.
        """
        if position.epoch == self.epoch:
            if position.offset <= self.offset:
                return Fate.OLD
            if position.offset == self.offset + 1 and not self.behind:
                self._append(Delivery(position, text))
                return Fate.NEXT
        elif any(fork.epoch == position.epoch for fork in self.forks):
            return Fate.OLD
        if self._held_size < MAX_HELD:
            self._held.append(_Held(position, text, self._begun))
            self._held_size += sys.getsizeof(text)
        else:
            self._must_read = True
        return Fate.AHEAD

    def begin(self) -> None:
        """Begin a reading: hold the messages that arrive until `finish` returns True."""
        self.behind = True
        self._must_read = False
        self._begun += 1

    def merge(self, log: Log) -> None:
        """Take what was read after `begin`. Call `advance` for what must be delivered.

        Args:
            log: The history, with messages after `offset`. For the first reading, with the newest messages.
        """
        self._log_offset = log.offset
        if not self.is_open:
            # There were no members here, so nothing is delivered.
            self._go_on_with(log, log.entries[0].offset - 1 if log.entries else log.offset)
            for entry in log.entries:
                self._append(_delivery(log.epoch, entry))
        elif log.reaches(self.position):
            self._go_on_with(log, self.offset)
            self._plan(log)
        else:
            at = log.restart(self.position)
            self._forget_texts()
            self._go_on_with(log, at.offset)
            self._pending.append(Reset(at))
            self._plan(log)
        # Redis had each of these when it was asked. If it does not know one now, no history will have it.
        self._hold(
            each
            for each in self._held
            if each.begun >= self._begun
            or (each.position.epoch == log.epoch and each.position.offset <= log.offset)
        )

    def advance(self) -> Delivery | Reset | None:
        """Return the next message or reset for the members, and note that it is delivered.

        Returns:
            None if nothing follows. Messages may still be missing: `finish` tells.
        """
        if not self._pending and self._held:
            self._plan_held()
        if not self._pending:
            return None
        each = self._pending.pop(0)
        if isinstance(each, Delivery):
            self._append(each)
        return each

    def finish(self) -> bool:
        """End the reading, after `advance` returned None.

        Returns:
            False if messages are still missing. Then the tail stays behind; read again.
        """
        if self._held or self._must_read or not self.is_current:
            return False
        self.behind = False
        return True

    # -- what it keeps -------------------------------------------------------------------------------

    def trim(self, first: int) -> None:
        """Forget the messages with offsets below `first`."""
        while self._texts and self.first < first:
            self.size -= sys.getsizeof(self._texts.popleft().text)

    def halve(self) -> None:
        """Forget the older half of the messages."""
        self.trim(self.offset + 1 - len(self._texts) // 2)

    # -- parts ---------------------------------------------------------------------------------------

    def _go_on_with(self, log: Log, offset: int) -> None:
        self.epoch, self.forks, self.trusted, self.offset = log.epoch, log.forks, log.trusted, offset

    def _plan(self, log: Log) -> None:
        """Plan the delivery of the messages that were read and follow without a gap."""
        last = self.offset
        for entry in log.entries:
            if entry.offset == last + 1:
                self._pending.append(_delivery(log.epoch, entry))
                last += 1

    def _append(self, message: Delivery) -> None:
        self._texts.append(message)
        self.size += sys.getsizeof(message.text)
        self.offset = message.position.offset

    def _forget_texts(self) -> None:
        self._texts.clear()
        self._pending.clear()
        self.size = 0

    def _plan_held(self) -> None:
        """Plan the delivery of the held messages that follow without a gap, and drop the old ones."""
        ours = {each.position.offset: each for each in self._held if each.position.epoch == self.epoch}
        last = self.offset
        while (held := ours.get(last + 1)) is not None:
            self._pending.append(Delivery(held.position, held.text))
            last += 1
        self._hold(
            each for each in self._held if each.position.epoch != self.epoch or each.position.offset > last
        )

    def _hold(self, messages: Iterable[_Held]) -> None:
        self._held = list(messages)
        self._held_size = sum(sys.getsizeof(each.text) for each in self._held)


def _delivery(epoch: str, entry: Entry) -> Delivery:
    return Delivery(Position(epoch, entry.offset), entry.text)
