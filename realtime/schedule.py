"""When which key needs a look: an alarm clock for many keys, each with at most one time."""

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Schedule(Generic[K]):
    """Times are seconds of whatever clock the caller uses; equal times come in the order they were set."""

    def __init__(self) -> None:
        # A heap cannot remove from its middle: an entry that was moved or discarded stays there until it
        # surfaces, and is known as stale by not being the key's own entry here.
        self._entries: dict[K, tuple[float, int, K]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, key: K, at: float) -> None:
        """Wake this key at that time and no other; an infinite time means never, which is `discard`."""
        if at == float("inf"):
            self.discard(key)
            return
        entry = self._entries.get(key)
        if entry is not None and entry[0] == at:
            return
        # The order is unique, so keys are never compared.
        entry = (at, next(self._order), key)
        self._entries[key] = entry
        heapq.heappush(self._heap, entry)
        # Rebuilt when most of it is stale, so memory follows the number of keys, not of moves.
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Forget this key, if it is known."""
        self._entries.pop(key, None)

    def due(self, now: float) -> list[K]:
        """The keys whose time has come, earliest first; they are forgotten."""
        keys = []
        while (at := self.next_at) is not None and at <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._entries[key]
            keys.append(key)
        return keys

    @property
    def next_at(self) -> float | None:
        """The earliest time at which `due` will have something; None while nothing is set."""
        while self._heap and self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
