"""A token bucket: a rate that holds on average, and a burst above it."""


class TokenBucket:
    """The tokens of one client. It is full at first, and is refilled as time passes.

    Args:
        rate: Tokens per second that are added.
        burst: The largest number of tokens.
        now: The time in seconds, on a clock that never goes back.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, cost: float, now: float) -> bool:
        """Take tokens.

        Args:
            cost: The number of tokens.
            now: The time in seconds. A time before the last one counts as the last one.

        Returns:
            False if there are too few. Then none are taken.
        """
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def is_full(self, now: float) -> bool:
        """Return True if a new bucket would do the same."""
        return self._tokens + max(0.0, now - self._at) * self._rate >= self._burst
