"""The judge of recovery: were messages lost, doubled or out of order?

Pure. It compares the publishes that returned with what each client was shown since its first join. A message
may be missing only where the client was told so, by a `reset` or by `recovered: false`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from realtime.history.positions import Position
from tests.support.clients.following import Event, Given, Number, Shown

#: What one client was shown, by group.
Log = Mapping[str, Sequence[Event]]


@dataclass(frozen=True, slots=True)
class Publication:
    """A publish that returned.

    Attributes:
        group: The group.
        number: Its content, which no other publish to this group has.
        position: The position that it returned.
        at: When it returned, in seconds of the monotonic clock.
        attempts: The number of calls, all but the last of which failed, with the same `id`.
    """

    group: str
    number: Number
    position: Position
    at: float = 0.0
    attempts: int = 1


@dataclass(slots=True)
class Verdict:
    """The result. Each sentence names the client, the group and the message.

    Attributes:
        lost: Publications that a client should have been shown, and was not; and holes between two offsets.
        doubled: Messages that a client was shown twice.
        out_of_order: Messages that a client was shown after a later one.
        moved: Messages that were shown at another position than publish returned, and positions that two
            messages have.
        gaps: How often a client was told that it may have missed messages.
        covered: Publications that a client was not shown and that lie in such a gap, over all clients.
        repeated: Messages that were shown again after a gap, because a publish was repeated when Redis had
            lost its `id`.
        shown: Messages that were shown, over all clients.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    gaps: int = 0
    covered: int = 0
    repeated: int = 0
    shown: int = 0

    @property
    def whole(self) -> bool:
        """True if no rule was broken."""
        return not (self.lost or self.doubled or self.out_of_order or self.moved)

    def __str__(self) -> str:
        faults = {
            name: getattr(self, name)
            for name in ("lost", "doubled", "out_of_order", "moved")
            if getattr(self, name)
        }
        head = (
            f"{self.shown} shown, {self.gaps} gaps told, {self.covered} covered, {self.repeated} repeated; "
            + ", ".join(f"{len(sentences)} {name}" for name, sentences in faults.items())
        )
        return "\n  ".join([head, *(f"{name}: {each}" for name, some in faults.items() for each in some[:8])])


def judge(publications: Iterable[Publication], clients: Mapping[str, Log]) -> Verdict:
    """Compare publishes with what clients were shown, when nothing is under way any more.

    Args:
        publications: The publishes that returned.
        clients: The events of each client.
    """
    verdict = Verdict()
    by_group: defaultdict[str, list[Publication]] = defaultdict(list)
    for each in publications:
        by_group[each.group].append(each)
    for group in {group for log in clients.values() for group in log}:
        logs = {name: log[group] for name, log in clients.items() if group in log}
        _Group(group, by_group[group], logs, verdict).judge()
    return verdict


class _Group:
    """One group: its publications in their order, and the log of each member."""

    def __init__(
        self,
        name: str,
        publications: Sequence[Publication],
        logs: Mapping[str, Sequence[Event]],
        verdict: Verdict,
    ) -> None:
        self.name = name
        self.verdict = verdict
        self.logs = logs
        self.publications = {each.number: each for each in publications}
        self.content: dict[Position, Number] = {}
        """The message at each position."""
        self.epochs = self._epochs(publications)
        self.ranks = {number: self.rank(each.position) for number, each in self.publications.items()}

    def _epochs(self, publications: Sequence[Publication]) -> dict[str, int]:
        """Return the number of each epoch, ordered by the time when it was seen first."""
        first: dict[str, float] = {}
        seen: list[Publication | Event] = list(publications)
        for events in self.logs.values():
            seen += events
        for each in seen:
            epoch = each.position.epoch
            first[epoch] = min(each.at, first.get(epoch, each.at))
        return {epoch: number for number, epoch in enumerate(sorted(first, key=lambda e: first[e]))}

    def rank(self, position: Position) -> tuple[int, int]:
        """Return a key that sorts the positions of all epochs."""
        return self.epochs[position.epoch], position.offset

    def rank_of(self, event: Event) -> tuple[int, int]:
        # A message that was recovered in a later epoch keeps the rank of its publication.
        if isinstance(event, Shown) and event.number in self.ranks:
            return self.ranks[event.number]
        return self.rank(event.position)

    def judge(self) -> None:
        for client, events in self.logs.items():
            if events:
                _Member(self, client).judge(events)


class _Member:
    """One client in one group."""

    def __init__(self, group: _Group, client: str) -> None:
        self.group = group
        self.who = f"{client} in {group.name}"
        self.seen: set[Number] = set()
        self.seen_in_span: set[Number] = set()
        self.last_of_source: dict[str, int] = {}
        self.holes: set[Number] = set()

    def judge(self, events: Sequence[Event]) -> None:
        verdict = self.group.verdict
        if not isinstance(events[0], Given):
            verdict.lost.append(f"{self.who}: {events[0]} came before any position was given")
            return
        gaps: list[tuple[tuple[int, int], tuple[int, int]]] = []
        last: Event = events[0]
        for each in events[1:]:
            if isinstance(each, Given):
                verdict.gaps += 1
                gaps.append((self.group.rank_of(last), self.group.rank_of(each)))
                self.seen_in_span.clear()
                last = each
            elif self._follows(last, each):
                last = each
        self._missing(self.group.rank_of(events[0]), gaps)

    def _follows(self, last: Event, now: Shown) -> bool:
        """Judge one message; return True if the position moves with it."""
        verdict, number = self.group.verdict, now.number
        told = f"{self.who}: {number} at {now.position}"
        verdict.shown += 1
        self._check_position(now, told)
        if number in self.seen:
            publication = self.group.publications.get(number)
            if number not in self.seen_in_span and (publication is None or publication.attempts > 1):
                verdict.repeated += 1
            else:
                verdict.doubled.append(told)
                return False
        elif number[1] <= self.last_of_source.get(number[0], -1):
            verdict.out_of_order.append(f"{told}, after {self.last_of_source[number[0]]} of this source")
        self.last_of_source[number[0]] = max(number[1], self.last_of_source.get(number[0], -1))
        self.seen.add(number)
        self.seen_in_span.add(number)
        step = now.position.offset - last.position.offset
        if step <= 0:
            verdict.out_of_order.append(f"{told}, after {last.position}")
            return False
        if step > 1:
            self._hole(last.position, now.position)
        return True

    def _check_position(self, now: Shown, told: str) -> None:
        verdict = self.group.verdict
        other = self.group.content.setdefault(now.position, now.number)
        if other != now.number:
            verdict.moved.append(f"{told}, where {other} is")
        publication = self.group.publications.get(now.number)
        if (
            publication is not None
            and publication.position.epoch == now.position.epoch
            and publication.position != now.position
        ):
            verdict.moved.append(f"{told}, but publish returned {publication.position}")

    def _hole(self, last: Position, now: Position) -> None:
        """Note the messages between two that were shown one after the other."""
        between = range(last.offset + 1, now.offset)
        known = {
            each.number
            for each in self.group.publications.values()
            if each.position.epoch in (last.epoch, now.epoch) and each.position.offset in between
        }
        self.holes |= known
        names = sorted(known) or "messages of no publish that returned"
        self.group.verdict.lost.append(f"{self.who}: {names} between {last} and {now}")

    def _missing(
        self, first: tuple[int, int], gaps: Sequence[tuple[tuple[int, int], tuple[int, int]]]
    ) -> None:
        """Judge the publications that were not shown."""
        for number in self.group.publications.keys() - self.seen - self.holes:
            rank = self.group.ranks[number]
            if rank <= first:
                continue
            if any(before < rank <= after for before, after in gaps):
                self.group.verdict.covered += 1
            else:
                position = self.group.publications[number].position
                self.group.verdict.lost.append(f"{self.who}: {number} at {position} was never shown")
