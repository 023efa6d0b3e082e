"""Bring the counts of this process and those of the others together, without I/O.

`Sharing` says which call to Redis comes next, and takes its answer. There is one call at a time, because
numbers that are written as they are must arrive in order.

If a call fails, it is not known whether Redis has carried it out, or will yet, or which keys it has lost. So
the process goes on under a new id, and writes all of its numbers again. The numbers under its old id count
for nothing from then on, also if a call under this id arrives late.

Private: docs/reference.md lists the public names.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from realtime.limits.counts import Counts, Place, subject_of
from realtime.limits.shared_counts import COUNT, NOT_ALIVE, REGISTER, RENEW, Wanted, count_arguments
from realtime.scripts import Argument, KeyScript

#: Numbers that are written, and new connections that are asked for, in one call. Redis answers other clients
#: between two calls.
NUMBERS_PER_CALL = 500
WANTED_PER_CALL = 100

#: The answer for a connection that takes its places.
FREE = 0
#: The answer while Redis is away, if connections are refused then.
AWAY = -1


@dataclass(slots=True, eq=False)
class Request:
    """The places that a new connection wants, each with the limit of its subject."""

    wanted: Wanted
    repeated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call to Redis.

    Attributes:
        script: The script.
        arguments: Its arguments.
        process: The id of this process in the call.
        requests: The requests that it answers.
        is_last: True if this process counts for nothing from then on.
    """

    script: KeyScript
    arguments: Sequence[Argument]
    process: str
    requests: Sequence[Request] = ()
    is_last: bool = False


#: A request with its answer: FREE, AWAY, or the number of the first place that is not free, from 1.
Decision = tuple[Request, int]


@dataclass(slots=True)
class Sharing:
    """The counts of this process, and what Redis knows of them.

    Attributes:
        lifetime: Seconds for which this process counts as alive without a call.
        opens: While Redis is away, decide by the counts of this process alone. Otherwise refuse.
        counts: The connections of this process.
        away: True from a failed call until all numbers are in Redis again.
    """

    lifetime: float
    opens: bool = True
    counts: Counts = field(default_factory=Counts)
    away: bool = False
    _process: str = ""
    """The id under which Redis has this process; empty if it must be made alive first."""
    _old: str = ""
    """The last id, while the numbers under it may still count."""
    _changed: set[Place] = field(default_factory=set)
    """The places with numbers that Redis does not have yet."""
    _waiting: deque[Request] = field(default_factory=deque)
    _renewing: bool = False
    _leaving: bool = False
    _trying: bool = False
    """True while a call may be made although Redis is away."""

    # -- connections -------------------------------------------------------------------------------

    def ask(self, wanted: Wanted) -> tuple[Request, int | None]:
        """Ask for the places of a new connection.

        Returns:
            The request with its answer; None instead of the answer if a call to Redis must tell.
        """
        request = Request(wanted)
        self._leaving = False
        # This needs no call: those of the other processes come on top.
        if full := self._full_here(request):
            return request, full
        if self.away:
            return self._decide_here(request)
        self._waiting.append(request)
        return request, None

    def withdraw(self, request: Request) -> bool:
        """Ask no longer. Return False if a call that is under way will tell the answer."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        return True

    def give_back(self, places: Iterable[Place]) -> None:
        """Give back the places of a connection that has ended."""
        for place in places:
            self.counts.remove(place)
            if self._process:
                # Otherwise all numbers are written when this process is alive again.
                self._changed.add(place)

    # -- calls -------------------------------------------------------------------------------------

    def next_call(self, new_id: str) -> Call | None:
        """Return the next call; None if there is none to make now.

        Args:
            new_id: A random id of ID_LENGTH characters, with which no call was made yet.
        """
        if self.away and not self._trying:
            return None
        if not self._process:
            # While Redis is away, this call finds out if it is back.
            if self._leaving or not (self._waiting or self.counts or self.away):
                return None
            return Call(REGISTER, (new_id, self._old, _milliseconds(self.lifetime)), new_id)
        if self._leaving:
            return Call(RENEW, (self._process, 0), self._process, is_last=True)
        if self._changed or self._waiting:
            return self._next_count()
        if self._renewing:
            return Call(RENEW, (self._process, _milliseconds(self.lifetime)), self._process)
        return None

    def _next_count(self) -> Call:
        places = {self._changed.pop() for _ in range(min(len(self._changed), NUMBERS_PER_CALL))}
        requests: list[Request] = []
        # Numbers first: a decision before other processes know what is held here could be wrong for long.
        while self._waiting and not self._changed and len(requests) < WANTED_PER_CALL:
            requests.append(self._waiting.popleft())
        places.update(place for request in requests for place, _ in request.wanted)
        arguments = count_arguments(
            self._process,
            self.lifetime,
            [(place, self.counts.number(place)) for place in places],
            [request.wanted for request in requests],
        )
        return Call(COUNT, arguments, self._process, requests)

    def answered(self, call: Call, answer: Any) -> list[Decision]:
        """Take the answer of a call. Return the requests that are decided now."""
        decisions: list[Decision] = []
        if call.script is REGISTER:
            self._process, self._old = call.process, ""
            self._changed = set(self.counts.places())
        elif call.is_last:
            self._process = ""
            self._changed.clear()
        elif answer == NOT_ALIVE:
            self._process = ""
            decisions = self._repeat(call.requests)
        elif call.script is COUNT:
            for request, full in zip(call.requests, answer, strict=True):
                if full == FREE:
                    self._take(request)
                decisions.append((request, full))
        self._renewing = False
        if self._process and not self._changed:
            self.away = self._trying = False
        return decisions

    def failed(self, call: Call) -> list[Decision]:
        """Note that a call failed. Return the requests that are decided now: all that wait."""
        if call.script is not REGISTER:
            self._old = call.process
        self._process, self._renewing, self._trying, self.away = "", False, False, True
        self._changed.clear()
        waiting = [*call.requests, *self._waiting]
        self._waiting.clear()
        return [self._decide_here(request) for request in waiting]

    def _repeat(self, requests: Sequence[Request]) -> list[Decision]:
        """Ask again, after this process was made alive. Decide requests that were repeated already."""
        decisions = []
        for request in reversed(requests):
            if request.repeated:
                decisions.append(self._decide_here(request))
            else:
                request.repeated = True
                self._waiting.appendleft(request)
        return decisions

    # -- times -------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Keep this process alive by the next call."""
        self._renewing = bool(self.counts)

    def write_all(self) -> None:
        """Write all numbers by the next calls: Redis may have lost some, and keeps none for ever."""
        self._changed.update(self.counts.places())

    def try_again(self) -> None:
        """Make calls although Redis is away, until one fails."""
        self._trying = self.away

    def leave(self) -> None:
        """Give back all places by the next call, because the connections of this process are about to end."""
        self._leaving = True

    # -- decisions ---------------------------------------------------------------------------------

    def _full_here(self, request: Request) -> int:
        """Return the number of the first place that is not free by the counts of this process; 0 for none."""
        for number, (place, limit) in enumerate(request.wanted, start=1):
            needed = self.counts.cost(place)
            if needed and self.counts.taken(subject_of(place)) + needed > limit:
                return number
        return FREE

    def _decide_here(self, request: Request) -> Decision:
        if not self.opens:
            return request, AWAY
        full = self._full_here(request)
        if full == FREE:
            self._take(request)
        return request, full

    def _take(self, request: Request) -> None:
        for place, _ in request.wanted:
            self.counts.add(place)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
