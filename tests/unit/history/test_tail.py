"""A tail delivers every message once and in order, or a reset, although messages are lost and repeated."""

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from realtime.history.positions import MAX_FORKS, Entry, Log, Position
from realtime.history.tail import MAX_HELD, Delivery, Fate, Reset, Tail


@dataclass
class Redis:
    """A model of the history of one group."""

    epochs: itertools.count = field(default_factory=itertools.count)
    epoch: str = ""
    offset: int = 0
    kept: dict[int, str] = field(default_factory=dict)
    forks: tuple[Position, ...] = ()
    trusted: int = MAX_FORKS

    def lose(self) -> None:
        """Begin again, as after FLUSHALL."""
        self.epoch, self.offset, self.forks, self.trusted = f"e{next(self.epochs)}", 0, (), MAX_FORKS
        self.kept.clear()

    def fork(self, lost: int) -> None:
        """Go on as another Redis that lacks the latest messages."""
        self.offset = max(0, self.offset - lost)
        self.kept = {offset: text for offset, text in self.kept.items() if offset <= self.offset}
        self.begin_epoch(trusted=min(self.trusted + 1, MAX_FORKS))

    def distrust(self) -> None:
        """Go on in an epoch that trusts no earlier one."""
        self.begin_epoch(trusted=0)

    def begin_epoch(self, trusted: int) -> None:
        self.forks = (Position(self.epoch, self.offset), *self.forks)[:MAX_FORKS]
        self.epoch, self.trusted = f"e{next(self.epochs)}", trusted

    def publish(self, text: str) -> Position:
        self.offset += 1
        self.kept[self.offset] = text
        return Position(self.epoch, self.offset)

    def trim(self, size: int) -> None:
        self.kept = dict(list(self.kept.items())[-size:] if size else ())

    def read(self, after: int | None, limit: int) -> Log:
        first = min(self.kept, default=self.offset + 1)
        if after is None:
            offsets = sorted(self.kept)[-limit:]
        else:
            offsets = [offset for offset in sorted(self.kept) if offset > after][:limit]
        entries = tuple(Entry(offset, self.kept[offset]) for offset in offsets)
        return Log(self.epoch, self.offset, first, self.forks, entries, self.trusted)


class Messages(RuleBasedStateMachine):
    """Publish, lose, repeat, reorder, trim, fork, and read in between."""

    def __init__(self) -> None:
        super().__init__()
        self.redis = Redis()
        self.tail = Tail()
        self.numbers = itertools.count()
        self.arriving: list[tuple[Position, str]] = []
        self.reading: Log | None = None
        self.delivered: list[Delivery | Reset] = []
        self.clients: list[tuple[Position, int]] = []
        self.may_reset = False

    @initialize()
    def open(self) -> None:
        self.redis.lose()
        self.begin()
        self.end()
        assert not self.tail.behind

    # -- the channel layer -------------------------------------------------------------------------

    @rule()
    def publish(self) -> None:
        text = str(next(self.numbers))
        self.arriving.append((self.redis.publish(text), text))

    @precondition(lambda self: self.arriving)
    @rule(data=st.data(), repeats=st.booleans())
    def arrive(self, data: st.DataObject, repeats: bool) -> None:
        index = data.draw(st.integers(0, len(self.arriving) - 1))
        position, text = self.arriving[index] if repeats else self.arriving.pop(index)
        before = self.tail.position
        fate = self.tail.take(position, text)
        if fate is Fate.NEXT:
            assert not self.tail.behind
            assert position == Position(before.epoch, before.offset + 1)
            self.delivered.append(Delivery(position, text))
        elif fate is Fate.AHEAD and self.reading is None:
            self.begin()

    @precondition(lambda self: self.arriving)
    @rule(data=st.data())
    def lose_message(self, data: st.DataObject) -> None:
        self.arriving.pop(data.draw(st.integers(0, len(self.arriving) - 1)))

    # -- Redis -------------------------------------------------------------------------------------

    @rule(size=st.integers(0, 5))
    def trim(self, size: int) -> None:
        self.redis.trim(size)
        self.may_reset = True

    @rule()
    def lose_history(self) -> None:
        self.redis.lose()
        self.may_reset = True

    @rule(lost=st.integers(0, 4))
    def fork(self, lost: int) -> None:
        self.redis.fork(lost)
        self.may_reset = self.may_reset or lost > 0

    # -- readings ----------------------------------------------------------------------------------

    @precondition(lambda self: self.reading is None)
    @rule(limit=st.integers(1, 4))
    def begin(self, limit: int = 3) -> None:
        self.tail.begin()
        self.reading = self.redis.read(self.tail.offset if self.tail.is_open else None, limit)

    @precondition(lambda self: self.reading is not None)
    @rule()
    def end(self) -> None:
        assert self.reading is not None
        while self.tail.is_open and self.reading.lacks(self.tail.position):
            # As a follower does.
            if self.reading.epoch == self.redis.epoch:
                self.redis.distrust()
            self.reading = self.redis.read(self.tail.offset, 3)
        self.tail.merge(self.reading)
        self.reading = None
        while (each := self.tail.advance()) is not None:
            self.delivered.append(each)
        if not self.tail.finish():
            self.begin()

    @rule()
    def forget(self) -> None:
        self.tail.halve()

    # -- clients -----------------------------------------------------------------------------------

    @rule()
    def disconnect(self) -> None:
        self.clients.append((self.tail.position, len(self.delivered)))

    @precondition(lambda self: self.clients)
    @rule()
    def resume(self) -> None:
        position, received = self.clients.pop()
        if self.tail.log.reaches(position):
            # Also none that this process delivered and Redis lost.
            missed = [each for each in self.delivered[received:] if isinstance(each, Delivery)]
            assert self.tail.after(position, 10**9) == missed

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def each_message_follows_the_last(self) -> None:
        for before, after in itertools.pairwise(self.delivered):
            if isinstance(after, Delivery):
                assert after.position.offset == before.position.offset + 1

    @invariant()
    def no_message_comes_twice(self) -> None:
        texts = [each.text for each in self.delivered if isinstance(each, Delivery)]
        assert len(texts) == len(set(texts))

    @invariant()
    def there_is_no_reset_without_a_loss(self) -> None:
        assert self.may_reset or not any(isinstance(each, Reset) for each in self.delivered)

    def teardown(self) -> None:
        """After the last reading, the members have everything that Redis has."""
        if not self.tail.is_open:
            return
        for _ in range(2):
            # The first may have begun before the last change.
            if self.reading is None:
                self.begin()
            for _ in range(1000):
                if self.reading is not None:
                    self.end()
        assert not self.tail.behind
        assert self.tail.position == self.redis.read(None, 1).position
        kept = {
            each.position.offset: each.text
            for each in self.delivered
            if isinstance(each, Delivery) and each.position.offset in self.redis.kept
        }
        since_reset = next(
            (each.position.offset for each in reversed(self.delivered) if isinstance(each, Reset)), 0
        )
        for offset, text in self.redis.kept.items():
            assert offset <= since_reset or kept[offset] == text


TestMessages = Messages.TestCase
TestMessages.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def opened(epoch: str = "a", offset: int = 0) -> Tail:
    tail = Tail()
    tail.begin()
    tail.merge(Log(epoch, offset, offset + 1))
    assert tail.advance() is None
    assert tail.finish()
    return tail


def test_the_first_reading_fills_memory_and_delivers_nothing() -> None:
    tail = Tail()
    tail.begin()
    tail.merge(Log("a", 7, 3, entries=(Entry(6, "six"), Entry(7, "seven"))))
    assert tail.advance() is None
    assert tail.finish()
    assert (tail.position, tail.first) == (Position("a", 7), 6)
    assert [each.text for each in tail.after(Position("a", 6), 1000)] == ["seven"]


def test_a_message_during_a_reading_waits_for_those_before_it() -> None:
    tail = opened()
    tail.begin()
    assert tail.take(Position("a", 2), "two") is Fate.AHEAD
    tail.merge(Log("a", 1, 1, entries=(Entry(1, "one"),)))
    delivered = [tail.advance(), tail.advance()]
    assert [each.text for each in delivered if isinstance(each, Delivery)] == ["one", "two"]
    assert tail.advance() is None
    assert tail.finish()


def test_a_fork_without_loss_goes_on_without_a_reset() -> None:
    tail = opened("a", 5)
    assert tail.take(Position("b", 6), "six") is Fate.AHEAD
    tail.begin()
    tail.merge(Log("b", 6, 1, (Position("a", 5),), (Entry(6, "six"),)))
    assert tail.advance() == Delivery(Position("b", 6), "six")
    assert tail.advance() is None
    assert tail.finish()


def test_a_fork_behind_the_tail_resets_to_the_fork() -> None:
    tail = opened("a", 9)
    tail.begin()
    tail.merge(Log("b", 6, 1, (Position("a", 5),), ()))
    assert tail.advance() == Reset(Position("b", 5))
    assert not tail.finish()
    tail.begin()
    tail.merge(Log("b", 6, 1, (Position("a", 5),), (Entry(6, "six"),)))
    assert tail.advance() == Delivery(Position("b", 6), "six")
    assert tail.advance() is None
    assert tail.finish()


def test_a_message_that_no_history_has_is_dropped() -> None:
    tail = opened("a", 5)
    assert tail.take(Position("lost", 6), "six") is Fate.AHEAD
    tail.begin()
    tail.merge(Log("a", 5, 1))
    assert tail.advance() is None
    assert tail.finish()


def test_messages_beyond_the_bound_are_read_again() -> None:
    tail = opened()
    tail.begin()
    big = "x" * MAX_HELD
    assert tail.take(Position("a", 2), big) is Fate.AHEAD
    assert tail.take(Position("a", 3), "three") is Fate.AHEAD
    tail.merge(Log("a", 1, 1, entries=(Entry(1, "one"),)))
    while tail.advance() is not None:
        pass
    assert tail.offset == 2
    assert not tail.finish()


def test_after_returns_at_least_one_message() -> None:
    tail = opened()
    for offset in (1, 2, 3):
        assert tail.take(Position("a", offset), "x" * 100) is Fate.NEXT
    assert len(tail.after(Position("a", 0), 1)) == 1
    assert len(tail.after(Position("a", 0), 320)) == 2
    assert tail.after(Position("a", 3), 1) == []


def test_memory_forgets_the_oldest_messages_first() -> None:
    tail = opened()
    for offset in range(1, 9):
        tail.take(Position("a", offset), "x")
    tail.halve()
    assert tail.first == 5
    tail.trim(8)
    assert (tail.first, tail.offset) == (8, 8)
    tail.trim(100)
    assert (tail.first, tail.size) == (9, 0)
