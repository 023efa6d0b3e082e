"""Remember the states of the clients that were active most recently, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

#: Entries without use at the old end that each new one removes.
_REMOVED_TOGETHER = 2

State = TypeVar("State")


class Recent(Generic[State]):
    """The states of clients, by their names, the one used least recently first.

    Args:
        size: The largest number of states. Of more, the one that was used least recently is forgotten.
        is_as_new: Returns True if a new state would do the same at this time. Then it is forgotten earlier.
    """

    def __init__(self, size: int, is_as_new: Callable[[State, float], bool]) -> None:
        self._size = size
        self._is_as_new = is_as_new
        self._states: OrderedDict[str, State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def of(self, name: str, now: float, make: Callable[[], State]) -> State:
        """Return the state of a client. The first call makes it.

        Args:
            name: The name of the client.
            now: The time in seconds, on a clock that never goes back.
            make: Makes a new state.
        """
        state = self._states.get(name)
        if state is not None:
            self._states.move_to_end(name)
            return state
        self._make_room(now)
        self._states[name] = state = make()
        return state

    def clear(self) -> None:
        """Forget all clients."""
        self._states.clear()

    def _make_room(self, now: float) -> None:
        """Make room for one state."""
        for _ in range(_REMOVED_TOGETHER):
            if not self._states:
                break
            oldest = next(iter(self._states.values()))
            if len(self._states) < self._size and not self._is_as_new(oldest, now):
                break
            self._states.popitem(last=False)
