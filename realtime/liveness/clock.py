"""The clock by which connections are judged."""


class RunningTime:
    """A clock of ours that stands still while this process does.

    It is to be read far more often than every `longest_step` seconds; a longer gap between two readings was a
    stall (a blocked event loop, SIGSTOP, a suspended machine), and only `longest_step` of it counts.
    """

    def __init__(self, real: float, *, longest_step: float) -> None:
        self._real = self._now = real
        self._longest_step = longest_step
        self.stalled = 0.0
        """Seconds that were not counted, in total."""

    def now(self, real: float) -> float:
        """The running time at this reading of a monotonic clock; never less than the last one."""
        gap = max(0.0, real - self._real)
        step = min(gap, self._longest_step)
        self._real = max(self._real, real)
        self._now += step
        self.stalled += gap - step
        return self._now
