"""Positions in the history of a group, and the rule which missed messages can be handed on.

A group that keeps history numbers its messages: 1, 2, 3 and so on. The number is the offset. An offset means
something only within an epoch, a random name of one unbroken sequence. A new epoch begins

- when Redis has lost the history: nothing of the earlier epochs is known any more;
- when another Redis, or a restarted one, goes on with the history. It may lack the latest messages. So its
  first message gets a new epoch, which remembers where it forked off: the earlier epoch, and the last offset
  that both share. A client that is behind the fork has missed nothing by the change, as far as is known. A
  client that is beyond it has seen messages that Redis no longer has;
- when a process finds that it is beyond a fork. Then messages are lost for sure, also to clients behind the
  fork. The new epoch trusts no earlier one: every position in them is refused.

Recovery is whole or refused: a client gets every message after its position, or is told that it cannot.
"""

from dataclasses import dataclass, field

#: Forks that an epoch remembers. A position in an epoch that is older than these is refused.
MAX_FORKS = 8


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a message in the history of its group. Offset 0 is before the first message."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in a history.

    Attributes:
        offset: Its number in the group, from 1.
        text: The frame for clients, without its position.
    """

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    """The history of a group as one reading found it.

    Attributes:
        epoch: The current epoch.
        offset: The offset of the latest message; 0 if there was none.
        first: The offset of the oldest message that is kept; `offset + 1` if none is.
        forks: The earlier epochs that this one continues, latest first. Each has the last offset that this
            epoch took from it.
        entries: Messages that were read, oldest first, without a gap between two of them.
        trusted: The number of forks, from the latest on, across which no loss is known. A position in an
            epoch beyond them is refused.
    """

    epoch: str
    offset: int
    first: int
    forks: tuple[Position, ...] = ()
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    trusted: int = MAX_FORKS

    @property
    def position(self) -> Position:
        """The place of the latest message."""
        return Position(self.epoch, self.offset)

    def knows(self, position: Position) -> bool:
        """Return True if this history goes on from this position, and no loss on the way is known."""
        shared, forks = self._shared(position)
        return 0 <= position.offset <= shared and forks <= self.trusted

    def lacks(self, position: Position) -> bool:
        """Return True if this position shows for the first time that this history has lost messages."""
        shared, forks = self._shared(position)
        return 0 <= shared < position.offset and 0 < forks <= self.trusted

    def reaches(self, position: Position) -> bool:
        """Return True if every message after this position is still kept."""
        return self.knows(position) and self.first <= position.offset + 1

    def restart(self, lost: Position) -> Position:
        """Return the position from which to go on, if recovery from another one is refused.

        If every message since the fork is kept, they follow: no reader has seen them. Otherwise the reader
        must load its state anyway, so it goes on with the latest message.
        """
        shared, _ = self._shared(lost)
        fork = max(0, min(lost.offset, shared))
        return Position(self.epoch, fork if self.first <= fork + 1 else self.offset)

    def _shared(self, position: Position) -> tuple[int, int]:
        """Return the last offset that this history shares with the epoch of a position, and the number of
        forks between them. The offset is -1 if they share nothing.
        """
        shared = self.offset
        if position.epoch == self.epoch:
            return shared, 0
        for number, fork in enumerate(self.forks, start=1):
            # A later fork may lie before an earlier one, and then cuts off what that one shared.
            shared = min(shared, fork.offset)
            if position.epoch == fork.epoch:
                return shared, number
        return -1, 0


@dataclass(frozen=True, slots=True)
class Joined:
    """The outcome of joining a group that keeps history.

    Attributes:
        position: The place of the latest message at that moment. If `recovered` is None or False, the
            messages after it follow.
        recovered: True if every message after the given position follows. False if that cannot be done: then
            the application must load its state. None if no position was given.
    """

    position: Position
    recovered: bool | None = None
