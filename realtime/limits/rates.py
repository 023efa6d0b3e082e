"""The frames and bytes per second of one client, and the second that it is given to slow down.

Private: docs/reference.md lists the public names.
"""

import enum

#: Seconds of the rate that a client may send together. A page that opens joins all of its groups, and a
#: client that comes back sends what it has kept. So honest clients send in bursts, which soon end.
BURST = 5.0
#: Seconds that a client above the rate is given to slow down, from the moment at which it is told.
GRACE = 1.0


#: The frames and bytes that a client may send within a moment and still be handled before all other work.
#: Honest clients send less most of the time.
FEW_FRAMES, FEW_BYTES = 3, 16 * 1024
#: The same for honest clients that open a page or come back.
SOME_FRAMES, SOME_BYTES = 20, 64 * 1024


class Verdict(enum.Enum):
    """What becomes of a frame."""

    PASSES = enum.auto()
    """It is handled."""
    TELL = enum.auto()
    """It is above the rate and must wait, and the client must be told."""
    WAIT = enum.auto()
    """It is above the rate and must wait. The client was told within the last second."""
    END = enum.auto()
    """The client goes on above the rate although it was told, so its connection must end."""


class ClientRates:
    """The token buckets of one client, for frames and for their bytes, in one small object.

    Args:
        frames: The frames per second; None for no limit.
        size: The bytes per second; None for no limit.
        now: The time in seconds, on a clock that never goes back.
    """

    __slots__ = ("_above_at", "_at", "_byte_rate", "_byte_tokens", "_frame_rate", "_frame_tokens", "_told_at")

    def __init__(self, frames: float | None, size: float | None, now: float) -> None:
        self._frame_rate = frames
        self._byte_rate = size
        self._frame_tokens = BURST * (frames or 0)
        self._byte_tokens = BURST * (size or 0)
        self._at = now
        self._told_at: float | None = None
        self._above_at = now

    def take(self, size: int, now: float, frames: int = 1, *, is_full: bool = False) -> Verdict:
        """Count what the client sent.

        Args:
            size: The bytes of its payload.
            now: The time in seconds. A time before the last one counts as the last one.
            frames: The number of frames.
            is_full: True if too many bytes of the client wait already.

        Returns:
            The verdict on all these frames together. Only those that pass are counted.
        """
        self._refill(now)
        if not is_full and not self.exceeded(size, frames):
            self._frame_tokens -= frames
            self._byte_tokens -= size
            return Verdict.PASSES
        if self._told_at is None or self._at - self._above_at >= BURST:
            # The last excess is long over: an empty bucket is full again after this time.
            self._told_at = self._above_at = self._at
            return Verdict.TELL
        self._above_at = self._at
        return Verdict.WAIT if self._at - self._told_at < GRACE else Verdict.END

    def sent_at_most(self, frames: int, size: int) -> bool:
        """Return True if the client has sent no more than this lately, beyond its rate."""
        few_frames = self._frame_rate is None or BURST * self._frame_rate - self._frame_tokens <= frames
        few_bytes = self._byte_rate is None or BURST * self._byte_rate - self._byte_tokens <= size
        return few_frames and few_bytes

    def exceeded(self, size: int, frames: int = 1) -> str:
        """Return the setting that these frames exceed; empty if none."""
        if self._frame_rate is not None and frames > self._frame_tokens:
            return "MAX_FRAMES_PER_SECOND"
        if self._byte_rate is not None and size > self._byte_tokens:
            return "MAX_BYTES_PER_SECOND"
        return ""

    def _refill(self, now: float) -> None:
        if now <= self._at:
            return
        passed, self._at = now - self._at, now
        if (rate := self._frame_rate) is not None:
            self._frame_tokens = min(BURST * rate, self._frame_tokens + passed * rate)
        if (rate := self._byte_rate) is not None:
            self._byte_tokens = min(BURST * rate, self._byte_tokens + passed * rate)
