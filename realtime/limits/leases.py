"""The publishes that one process may still let a user make, without asking Redis again."""

import enum

#: Seconds after which what is left of a portion lapses. A user who publishes now and then is not asked about
#: in Redis for each message.
KEPT = 60.0
#: Portions in one second of the rate: Redis is asked about a user that often by each process, at most.
PORTIONS = 5


class Decision(enum.Enum):
    """What a process does with a publish."""

    ALLOW = enum.auto()
    REFUSE = enum.auto()
    ASK = enum.auto()
    """Redis must be asked for the next portion first."""


class Lease:
    """The portion of one user in one process. The bucket of which it is a portion is in Redis."""

    __slots__ = ("_ask_at", "_left", "_until")

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0
        self._ask_at = 0.0

    def take(self, now: float) -> Decision:
        """Decide about one publish, and count it if it is allowed.

        Args:
            now: The time in seconds, on a clock that never goes back.
        """
        if self._left and now < self._until:
            self._left -= 1
            return Decision.ALLOW
        return Decision.ASK if now >= self._ask_at else Decision.REFUSE

    def granted(self, count: int, rate: float, now: float) -> None:
        """Take what Redis granted.

        Args:
            count: The publishes that it granted: a whole portion, or all that the bucket had.
            rate: The publishes per second of the user.
            now: The time in seconds.
        """
        self._left, self._until = count, now + KEPT
        whole = portion(rate)
        # The bucket was emptied. It is not asked again before it has about a portion, however fast clients
        # publish.
        self._ask_at = now + whole / rate if count < whole else now

    def lapsed(self, now: float) -> bool:
        """Return True if a new lease would do the same."""
        return now >= max(self._until, self._ask_at)


def portion(rate: float) -> int:
    """Return the size of a portion for a rate per second."""
    return max(1, int(rate / PORTIONS))
