"""The time to wait, after a large group was written to, for more that can leave in the same write.

Private: docs/reference.md lists the public names.
"""

#: Shorter waits, in seconds, are not worth their cost: selectors sleep whole milliseconds.
SHORTEST_SLEEP = 0.001


class Window:
    """The wait before the next write to the group that was written to last.

    It is at most half of the time that the last write took: a second write for what came meanwhile would take
    as long as the first. So a group that is quiet or small does not wait.

    Args:
        longest: The setting COALESCE_WINDOW, in seconds.
    """

    __slots__ = ("_ended_at", "_group", "_longest", "_took")

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._group = ""
        self._ended_at = 0.0
        self._took = 0.0

    def wrote(self, group: str, began: float, ended: float) -> None:
        """Note a write to all members of a group, with the loop times of its begin and end."""
        self._group, self._ended_at, self._took = group, ended, ended - began

    def left(self, group: str, now: float) -> float:
        """Return the seconds to wait before the next write to this group; 0 or less for none."""
        window = min(self._longest, self._took / 2)
        if group != self._group or window < SHORTEST_SLEEP:
            return 0.0
        return self._ended_at + window - now

    def is_quiet(self, group: str, now: float) -> bool:
        """Return True if this group was not just written to."""
        return group != self._group or now - self._ended_at > max(self._longest, SHORTEST_SLEEP)
