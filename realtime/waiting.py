"""Messages on their way from the channel layer to the members of their groups.

Messages of one group that wait one behind the other form a run, which leaves in one write. What one
connection receives keeps the order in which it was put here, across its groups, also when it is given its
part ahead of the others.
"""

from collections import deque
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

M = TypeVar("M", bound=Hashable)

#: Characters from which on a run is not added to: all of it is copied for each member that reads slowly.
LONGEST_RUN = 64 * 1024


class Run(Generic[M]):
    """Messages of one group that leave together; `served` are the members that were given theirs already."""

    __slots__ = ("group", "length", "served", "texts")

    def __init__(self, group: str, text: str) -> None:
        self.group = group
        self.texts = [text]
        self.length = len(text)
        self.served: set[M] = set()


class Waiting(Generic[M]):
    """A queue of runs."""

    def __init__(self) -> None:
        self._runs: deque[Run[M]] = deque()
        self.length = 0
        """Characters that wait."""

    def __bool__(self) -> bool:
        return bool(self._runs)

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
            self._runs.append(Run(group, text))

    def take(self) -> Run[M]:
        """Remove the run whose turn it is. Raises IndexError when nothing waits."""
        run = self._runs.popleft()
        self.length -= run.length
        return run

    def serve(self, member: M, groups: Collection[str]) -> list[Run[M]]:
        """The runs that wait for a member of these groups, who is given them now and not again."""
        runs = [run for run in self._runs if run.group in groups and member not in run.served]
        for run in runs:
            run.served.add(member)
        return runs
