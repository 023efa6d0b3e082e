"""`realtime.liveness.schedule`, compared with a plain dictionary of times."""

import math
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from realtime.liveness.schedule import SLOTS, Schedule

# Few of each, so that keys are moved and times are shared.
keys = st.integers(0, 5)
times = st.integers(0, 40).map(lambda number: number / (2 * SLOTS))


class ScheduleAgainstADictionary(RuleBasedStateMachine):
    """After any settings, moves and discards, exactly the due keys are returned, earliest first."""

    @initialize()
    def open(self):
        self.schedule = Schedule()
        self.times = {}

    @rule(key=keys, at=times)
    def set(self, key, at):
        self.schedule.set(key, at)
        self.times[key] = at

    @rule(key=keys)
    def set_to_never(self, key):
        self.schedule.set(key, math.inf)
        self.times.pop(key, None)

    @rule(key=keys)
    def discard(self, key):
        self.schedule.discard(key)
        self.times.pop(key, None)

    @rule(now=times)
    def due(self, now):
        due = self.schedule.due(now)
        assert sorted(due) == sorted(key for key, at in self.times.items() if at <= now)
        assert [self.times.pop(key) for key in due] == sorted(self.times_before[key] for key in due)
        assert self.schedule.due(now) == []

    @invariant()
    def agree(self):
        assert len(self.schedule) == len(self.times)
        if self.times:
            assert self.schedule.next_at <= min(self.times.values())
        else:
            assert self.schedule.next_at is None
        self.times_before = dict(self.times)


TestScheduleAgainstADictionary = ScheduleAgainstADictionary.TestCase
TestScheduleAgainstADictionary.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_the_next_time_is_at_most_a_slot_early():
    schedule = Schedule()
    schedule.set("key", 7.03)
    assert 7.03 - 1 / SLOTS < schedule.next_at <= 7.03


def test_an_empty_schedule_has_no_next_time():
    schedule = Schedule()
    assert schedule.next_at is None
    assert schedule.due(math.inf) == []


def test_equal_times_come_in_the_order_they_were_set():
    schedule = Schedule()
    for key in ("c", "a", "b"):
        schedule.set(key, 1.0)
    assert schedule.due(1.0) == ["c", "a", "b"]


def test_keys_need_not_be_comparable():
    schedule = Schedule()
    one, other = object(), object()
    schedule.set(one, 1.0)
    schedule.set(other, 1.0)
    assert schedule.due(1.0) == [one, other]


def test_a_key_that_was_due_can_be_set_again():
    schedule = Schedule()
    schedule.set("key", 1.0)
    assert schedule.due(1.0) == ["key"]
    schedule.set("key", 1.0)
    assert schedule.due(1.0) == ["key"]


def test_a_key_discarded_and_set_again_is_due_once():
    schedule = Schedule()
    schedule.set("key", 1.0)
    schedule.discard("key")
    schedule.set("key", 1.0)
    assert schedule.due(1.0) == ["key"]


def test_memory_follows_the_number_of_keys_and_not_of_moves():
    schedule = Schedule()
    for move in range(100_000):
        schedule.set(move % 10, float(move))
    assert len(schedule) == 10
    assert len(schedule._numbers) < 200


def test_the_order_survives_many_moves():
    schedule, random = Schedule(), Random(0)
    for _ in range(10):
        at = {key: random.random() for key in range(100)}
        for key in at:
            schedule.set(key, at[key])
    assert schedule.due(0.5) == sorted((key for key in at if at[key] <= 0.5), key=at.get)


def test_discarded_keys_are_not_kept_alive_by_their_slots():
    schedule = Schedule()
    schedule.set("far", 1e9)
    for key in range(100_000):
        schedule.set(key, 1e8 + key)
        schedule.discard(key)
    assert len(schedule) == 1
    assert len(schedule._numbers) < 200
