"""The knowledge of one client of one group: its position, and everything that it was shown.

Sans I/O. The client feeds each frame of the group in the order of arrival. The rules are those of the
protocol: the client keeps `since` itself, moves it with each message, sends it with each join, and holds live
messages back until its join is answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from realtime.history.positions import Position

#: The source of a message, and its number among the messages of that source.
Number = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Shown:
    """A message that a client was shown. All clients of a process share one object.

    Attributes:
        position: Its place, as the frame said.
        number: Its content.
        at: When the first client of the process was shown it, in seconds of the monotonic clock.
    """

    position: Position
    number: Number
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Given:
    """A position that the server gave to a client, instead of the messages before it.

    Attributes:
        position: The client's `since` from then on.
        why: "joined" for a join without `since`, "refused" for `recovered: false`, or "reset".
        at: When, in seconds of the monotonic clock.
    """

    position: Position
    why: str
    at: float = 0.0

    @property
    def told(self) -> bool:
        """True if the client was told that it may have missed messages."""
        return self.why != "joined"


Event = Shown | Given


@dataclass(slots=True)
class Following:
    """One group of one client, over all of its connections.

    Attributes:
        events: Everything that happened to the application, in order.
        since: The position of the latest message that the application was shown, or that it was given.
        dropped: The number of held messages that recovery had shown already.
        recoveries: For each `recovered: true`, the number of messages that were to follow.
        broken: Sentences about frames that break the protocol.
    """

    events: list[Event] = field(default_factory=list)
    since: Position | None = None
    dropped: int = 0
    recoveries: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _settled: bool = False
    """False until the position of this connection is known."""
    _asked: Position | None = None
    """The `since` of the join that waits for its answer."""
    _until: int | None = None
    """The offset with which the recovery is complete."""
    _held: list[Shown] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """True if the client is a member and its recovery is complete."""
        return self._settled and self._until is None

    def connect(self) -> None:
        """Begin a new connection, which knows nothing of the group."""
        self._settled, self._until = False, None
        self._held.clear()

    def welcome(self, position: Position | None, at: float) -> bool:
        """Take the group's entry in `positions` of the welcome.

        Returns:
            True if the client has to send a join.
        """
        if self.since is not None or position is None:
            return True
        self._give(position, "joined", at)
        self._release(position)
        return False

    def ask(self) -> dict[str, Any]:
        """Return the fields of the join that the client sends now, except `group` and `ref`."""
        self._asked = self.since
        if self.since is None:
            return {}
        return {"since": {"epoch": self.since.epoch, "offset": self.since.offset}}

    def joined(self, position: Position | None, recovered: bool | None, at: float) -> None:
        """Take the answer to the join."""
        if position is None:
            self.broken.append("joined has no position")
            return
        asked = self._asked
        if (recovered is None) is not (asked is None):
            self.broken.append(f"joined says recovered={recovered} to a join since {asked}")
            return
        if not recovered or asked is None:
            self._give(position, "joined" if asked is None else "refused", at)
            self._release(position)
            return
        missed = position.offset - asked.offset
        self.recoveries.append(missed)
        self._settled, self.since = True, asked
        if missed < 0:
            self.broken.append(f"recovered from {asked} to {position}, which is before it")
        if missed <= 0:
            self._release(position)
        else:
            self._until = position.offset

    def message(self, shown: Shown) -> None:
        """Take a message."""
        if not self._settled:
            self._held.append(shown)
            return
        self._show(shown)
        if self._until is not None and shown.position.offset >= self._until:
            self._release(shown.position)

    def reset(self, position: Position, at: float) -> None:
        """Take a reset. Before the join is answered it says nothing: the answer is newer."""
        if not self._settled:
            self._held.clear()
            return
        self._give(position, "reset", at)
        self._release(position)

    def _give(self, position: Position, why: str, at: float) -> None:
        self._settled, self.since = True, position
        self.events.append(Given(position, why, at))

    def _show(self, shown: Shown) -> None:
        self.since = shown.position
        self.events.append(shown)

    def _release(self, position: Position) -> None:
        """Show what was held back and comes after this position, with which recovery is complete."""
        self._until = None
        held, self._held = self._held, []
        for each in held:
            # A message of another epoch was sent before the server knew of this one, so it is part of what
            # was recovered, or lost.
            if each.position.epoch == position.epoch and each.position.offset > position.offset:
                self._show(each)
            else:
                self.dropped += 1


def shown(events: Sequence[Event]) -> list[Shown]:
    """Return the messages among the events of a group."""
    return [each for each in events if isinstance(each, Shown)]


def given(events: Sequence[Event]) -> list[Given]:
    """Return the positions that the server gave, among the events of a group."""
    return [each for each in events if isinstance(each, Given)]
