"""A queue of messages on their way from the channel layer to the members of their groups.

Messages of one group that wait one behind the other form a run, which leaves in one write. Each connection
receives messages in the order of `put`, across all of its groups, even if it is served ahead of the others.
"""

import itertools
from collections import deque
from collections.abc import Collection, Hashable
from typing import Any, Generic, TypeVar

M = TypeVar("M", bound=Hashable)

#: A run of at least this many characters takes no more messages: a slow reader gets a copy of all of it.
LONGEST_RUN = 64 * 1024


class Run(Generic[M]):
    """Messages of one group that leave together.

    Attributes:
        number: The position in the queue, counted from 1.
        group: The group that the messages were sent to.
        texts: The messages.
        length: The characters of all of them.
        served: The members that must not receive the run in its turn: they received it ahead of that, or get
            its messages in another way. Such a run takes no more messages.
        prepared: The messages in the form that the caller sends, made once.
    """

    __slots__ = ("group", "length", "number", "prepared", "served", "texts")

    def __init__(self, number: int, group: str, text: str) -> None:
        self.number = number
        self.group = group
        self.texts = [text]
        self.length = len(text)
        self.served: set[M] = set()
        self.prepared: Any = None


class RunQueue(Generic[M]):
    """A queue of runs."""

    def __init__(self) -> None:
        self._runs: deque[Run[M]] = deque()
        self._current: Run[M] | None = None
        self._numbers = itertools.count(1)
        self.length = 0
        """The characters of all runs that wait."""

    def __bool__(self) -> bool:
        """Return True while a member may still receive something."""
        return bool(self._runs) or self._current is not None

    @property
    def first(self) -> Run[M] | None:
        """The next run; None if the queue is empty."""
        return self._runs[0] if self._runs else None

    def put(self, group: str, text: str, skipped: Collection[M] = ()) -> None:
        """Add a message behind all others.

        Args:
            group: The group that it was sent to.
            text: The message.
            skipped: Members that must not receive it.
        """
        self.length += len(text)
        last = self._runs[-1] if self._runs else None
        # Never extend a run that a member has already received: that member would miss the addition.
        if (
            last is not None
            and last.group == group
            and not last.served
            and not skipped
            and last.length < LONGEST_RUN
        ):
            last.texts.append(text)
            last.length += len(text)
        else:
            run: Run[M] = Run(next(self._numbers), group, text)
            run.served.update(skipped)
            self._runs.append(run)

    def skip(self, member: M, group: str) -> None:
        """Keep all messages of a group that wait now from this member."""
        for run in (self._current, *self._runs):
            if run is not None and run.group == group:
                run.served.add(member)

    def take(self) -> Run[M]:
        """Remove and return the next run. The caller writes it from now until `finish`.

        Raises:
            IndexError: No run waits.
        """
        run = self._current = self._runs.popleft()
        self.length -= run.length
        return run

    def finish(self) -> None:
        """Note that the run that was taken is written to all its members."""
        self._current = None

    def serve(self, member: M, groups: Collection[str], last: int) -> list[Run[M]]:
        """Serve a member ahead of its turn, because another frame will be written to it.

        Args:
            member: The member.
            groups: The groups that it is in.
            last: The number of the last run that it received in its turn; 0 for none.

        Returns:
            The runs that it must still receive, in order. The first may be the run that is being written.
            The member is in their `served`.
        """
        current = self._current
        # Writing a run takes several turns of the event loop. Between them this member may be written to.
        begun = [current] if current is not None and current.number != last else []
        runs = [run for run in (*begun, *self._runs) if run.group in groups and member not in run.served]
        for run in runs:
            run.served.add(member)
        return runs
