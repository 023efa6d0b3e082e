"""Messages on their way from the channel layer to the members of their groups.

Messages of one group that wait one behind the other form a run, which leaves in one write. What one
connection receives keeps the order in which it was put here, across its groups, also when it is given its
part ahead of the others.
"""

import itertools
from collections import deque
from collections.abc import Collection, Hashable
from typing import Any, Generic, TypeVar

M = TypeVar("M", bound=Hashable)

#: Characters from which on a run is not added to: all of it is copied for each member that reads slowly.
LONGEST_RUN = 64 * 1024


class Run(Generic[M]):
    """Messages of one group that leave together; `served` are the members that received theirs ahead."""

    __slots__ = ("group", "length", "number", "prepared", "served", "texts")

    def __init__(self, number: int, group: str, text: str) -> None:
        self.number = number
        """Counted from 1 for each queue."""
        self.group = group
        self.texts = [text]
        self.length = len(text)
        self.served: set[M] = set()
        self.prepared: Any = None
        """The messages as the caller sends them, made once; a run with `served` members grows no more."""


class RunQueue(Generic[M]):
    """A queue of runs."""

    def __init__(self) -> None:
        self._runs: deque[Run[M]] = deque()
        self._current: Run[M] | None = None
        self._numbers = itertools.count(1)
        self.length = 0
        """Characters that wait."""

    def __bool__(self) -> bool:
        """True while a member may still have something to receive."""
        return bool(self._runs) or self._current is not None

    @property
    def first(self) -> Run[M] | None:
        """The run whose turn is next."""
        return self._runs[0] if self._runs else None

    def put(self, group: str, text: str) -> None:
        """Add a message behind all others."""
        self.length += len(text)
        last = self._runs[-1] if self._runs else None
        # Who was served out of turn would miss what is added to the same run afterwards.
        if last is not None and last.group == group and not last.served and last.length < LONGEST_RUN:
            last.texts.append(text)
            last.length += len(text)
        else:
            self._runs.append(Run(next(self._numbers), group, text))

    def take(self) -> Run[M]:
        """Remove the run whose turn it is, which is written from now until `finish`.

        Raises:
            IndexError: Nothing waits.
        """
        run = self._current = self._runs.popleft()
        self.length -= run.length
        return run

    def finish(self) -> None:
        """The run that was taken is written to all its members."""
        self._current = None

    def serve(self, member: M, groups: Collection[str], last: int) -> list[Run[M]]:
        """Take what a member has still to receive, ahead of its turn.

        Args:
            member: The member that something else is about to be written to.
            groups: The groups that it is in.
            last: The number of the last run that it received in its turn; 0 for none.

        Returns:
            The runs in order, the one that is being written first. The member is in their `served`.
        """
        current = self._current
        # Writing a run takes several turns of the event loop, in which this member may be written to.
        begun = [current] if current is not None and current.number != last else []
        runs = [run for run in (*begun, *self._runs) if run.group in groups and member not in run.served]
        for run in runs:
            run.served.add(member)
        return runs
