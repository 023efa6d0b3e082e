"""Histories in the memory of a process, for the in-memory layer.

Private: docs/reference.md lists the public names.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from realtime.history.positions import Entry, Log, Position
from realtime.history.retention import Retention
from realtime.history.streams import new_epoch

#: Seconds from one removal of everything that is no longer kept to the next.
SWEEP_EVERY = 60.0


@dataclass(slots=True)
class _History:
    epoch: str
    until: float
    """The time at which the position is forgotten."""
    offset: int = 0
    entries: deque[Entry] = field(default_factory=deque)
    entries_until: float = 0.0
    once: dict[str, tuple[Position, float]] = field(default_factory=dict)
    """The position that a publish id got, and the time at which the id is forgotten."""

    def forget(self, now: float) -> None:
        if self.entries_until <= now:
            self.entries.clear()

    def log(self, entries: Iterable[Entry] = ()) -> Log:
        return Log(self.epoch, self.offset, self.offset - len(self.entries) + 1, (), tuple(entries))


class Memory:
    """The histories of groups. The methods may be called in any thread.

    The times are seconds of a clock that never goes back.
    """

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}
        self._lock = threading.Lock()
        self._swept = 0.0

    def append(
        self, group: str, text: str, keep: Retention, once: str | None, now: float
    ) -> tuple[Position, bool]:
        """Append a message. `realtime.history.streams.Streams.append` describes the result."""
        with self._lock:
            self._sweep(now)
            history = self._of(group, keep.position_ttl, now)
            if once is not None:
                earlier, until = history.once.get(once, (None, 0.0))
                if earlier is not None and now < until:
                    return earlier, True
            history.offset += 1
            history.entries.append(Entry(history.offset, text))
            while len(history.entries) > keep.size:
                history.entries.popleft()
            history.entries_until = now + keep.ttl
            position = Position(history.epoch, history.offset)
            if once is not None:
                history.once[once] = position, now + keep.ttl
            return position, False

    def read(
        self,
        group: str,
        after: int | None,
        keep: Retention,
        limit: int,
        max_bytes: int,
        now: float,
    ) -> Log:
        """Read messages. `realtime.history.streams.Streams.read` describes the bounds and the result."""
        with self._lock:
            history = self._of(group, keep.position_ttl, now)
            found: list[Entry] = []
            size = 0
            for entry in reversed(history.entries) if after is None else history.entries:
                if after is not None and entry.offset <= after:
                    continue
                size += len(entry.text)
                if len(found) == limit or (found and size > max_bytes):
                    break
                found.append(entry)
            return history.log(found if after is not None else reversed(found))

    def positions(self, groups: Mapping[str, float], now: float) -> dict[str, Log]:
        """Return the histories without messages, and renew the lifetime of each position.

        Args:
            groups: The seconds for which its position is kept, by the name of the group.
            now: The time.
        """
        with self._lock:
            self._sweep(now)
            return {group: self._of(group, ttl, now).log() for group, ttl in groups.items()}

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._histories.clear()

    def _of(self, group: str, ttl: float, now: float) -> _History:
        history = self._histories.get(group)
        if history is None or history.until <= now:
            history = self._histories[group] = _History(new_epoch(), now)
        history.until = now + ttl
        history.forget(now)
        return history

    def _sweep(self, now: float) -> None:
        """Remove what is no longer kept, from time to time: groups may come and go."""
        if now - self._swept < SWEEP_EVERY:
            return
        self._swept = now
        for group, history in tuple(self._histories.items()):
            history.forget(now)
            history.once = {once: kept for once, kept in history.once.items() if now < kept[1]}
            if history.until <= now:
                del self._histories[group]
