"""A timer wheel for many keys, each with at most one time at which it is due.

Keys are kept by their slot of time. So moving a key needs no search and no sorting. A
connection moves several times for each ping. With a heap, the moves took a third of the cost of a ping.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Slots in a second. The keys of one slot are checked together.
SLOTS = 20


class Schedule(Generic[K]):
    """Keys and the times at which they are due, in seconds of any clock that the caller uses."""

    def __init__(self) -> None:
        self._times: dict[K, float] = {}
        self._slots: dict[int, dict[K, None]] = {}
        """The keys of each slot, by its number. No slot is empty."""
        self._numbers: list[int] = []
        """A heap of the numbers of all slots, and of some that no longer exist."""

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: K, at: float) -> None:
        """Make the key due at this time instead of any earlier setting. Infinity means never: `discard`."""
        if at == float("inf"):
            self.discard(key)
            return
        number, old = int(at * SLOTS), self._times.get(key)
        self._times[key] = at
        if old is not None:
            last = int(old * SLOTS)
            if last == number:
                return
            self._remove(key, last)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            self._push(number)
        slot[key] = None

    def discard(self, key: K) -> None:
        """Forget the key, if it has a time."""
        at = self._times.pop(key, None)
        if at is not None:
            self._remove(key, int(at * SLOTS))

    def due(self, now: float) -> list[K]:
        """Forget all keys that are due now, and return them, earliest first."""
        found: list[tuple[float, K]] = []
        while self._numbers and self._numbers[0] <= now * SLOTS:
            number = self._numbers[0]
            keys = self._slots.get(number, {})
            for key in list(keys):
                if (at := self._times[key]) <= now:
                    del self._times[key], keys[key]
                    found.append((at, key))
            if keys:
                # The rest of this slot is due later, and so is every other slot.
                break
            heapq.heappop(self._numbers)
            self._slots.pop(number, None)
        found.sort(key=lambda each: each[0])
        return [key for _, key in found]

    @property
    def next_at(self) -> float | None:
        """A time before which no key is due; None if no key has a time."""
        return self._numbers[0] / SLOTS if self._times else None

    def _remove(self, key: K, number: int) -> None:
        slot = self._slots[number]
        del slot[key]
        if not slot:
            del self._slots[number]

    def _push(self, number: int) -> None:
        heapq.heappush(self._numbers, number)
        if len(self._numbers) > 2 * len(self._slots) + 64:
            # Memory grows with the number of keys, not with the number of moves.
            self._numbers = sorted(self._slots)
