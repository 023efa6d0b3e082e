"""The clock by which connections are judged."""


class RunningTime:
    """A clock that does not count the time for which this process was stalled.

    It must be read far more often than every `longest_step` seconds. A longer gap between two readings was a
    stall: a blocked event loop, SIGSTOP, a suspended machine. Only `longest_step` seconds of the gap count.

    Args:
        real: A reading of a monotonic clock, in seconds.
        longest_step: The most seconds that count between two readings.
    """

    def __init__(self, real: float, *, longest_step: float) -> None:
        self._real = self._now = real
        self._longest_step = longest_step
        self.stalled = 0.0
        """Seconds that were not counted, in total."""

    def now(self, real: float) -> float:
        """Return the running time at this reading of the monotonic clock. It never goes back."""
        gap = max(0.0, real - self._real)
        step = min(gap, self._longest_step)
        self._real = max(self._real, real)
        self._now += step
        self.stalled += gap - step
        return self._now
