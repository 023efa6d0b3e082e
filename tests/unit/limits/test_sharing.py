"""The counts of many processes: no connection too many while all is well, true numbers after any fault."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from realtime.limits.counts import Counts, Place, client_of, subject_of
from realtime.limits.shared_counts import ID_LENGTH, KEY, NOT_ALIVE
from realtime.limits.sharing import AWAY, FREE, Call, Request, Sharing

LIFETIME = 30.0
LIMIT = 3

places = st.sampled_from(["u:1", "u:2", "203.0.113.7", ("u:1", "phone"), ("u:1", "tablet"), ("u:2", "phone")])


def needed(connections: Counter[Place], subject: str) -> int:
    """Return the places of a subject that connections need, by the words of the rule."""
    return sum(
        max(1, number - 1) if client_of(place) else number
        for place, number in connections.items()
        if number and subject_of(place) == subject
    )


class TestCounts:
    @given(st.lists(st.tuples(places, st.booleans()), max_size=60))
    def test_count_by_subject_as_the_rule_says(self, steps: list[tuple[Place, bool]]) -> None:
        counts, model = Counts(), Counter[Place]()
        for place, adds in steps:
            if adds:
                before = needed(model, subject_of(place))
                cost = counts.cost(place)
                counts.add(place)
                model[place] += 1
                assert needed(model, subject_of(place)) == before + cost
            elif model[place]:
                counts.remove(place)
                model[place] -= 1
            assert counts.number(place) == model[place]
            assert counts.taken(subject_of(place)) == needed(model, subject_of(place))
        assert sorted(map(str, counts.places())) == sorted(str(each) for each in model if model[each])
        assert len(counts) == sum(1 for number in model.values() if number)

    def test_a_new_and_a_lost_connection_of_a_client_need_one_place(self) -> None:
        counts = Counts()
        for _ in range(2):
            counts.add(("u:1", "phone"))
        assert counts.taken("u:1") == 1
        counts.add(("u:1", "phone"))
        assert counts.taken("u:1") == 2


_ids = itertools.count()


def new_id() -> str:
    return f"{next(_ids):0{ID_LENGTH}}"


@dataclass
class Process:
    """One process, and the connections that it really has."""

    sharing: Sharing = field(default_factory=lambda: Sharing(LIFETIME))
    connections: Counter[Place] = field(default_factory=Counter)
    alive: bool = True


@dataclass
class Redis:
    """A Redis that can be emptied, and that may or may not carry out a call if its answer is lost."""

    store: dict[str, Any] = field(default_factory=dict)
    now: float = 0.0
    late: list[Call] = field(default_factory=list)

    def run(self, call: Call) -> Any:
        return call.script.in_memory(self.store, KEY, call.arguments, self.now)


def make_calls(process: Process, redis: Redis, most: int = 1000) -> list[tuple[Request, int]]:
    """Make all calls that are due, and take the answers."""
    decisions: list[tuple[Request, int]] = []
    for _ in range(most):
        call = process.sharing.next_call(new_id())
        if call is None:
            return decisions
        decisions += process.sharing.answered(call, redis.run(call))
    raise AssertionError("The calls do not end.")


class Fleet(RuleBasedStateMachine):
    """Processes that share a Redis. Faults end the promise that no limit is exceeded, and heal in time."""

    processes = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self.redis = Redis()
        self.all: list[Process] = []
        self.faulty = False

    @initialize(target=processes)
    def begin(self) -> Any:
        self.all = [Process(), Process()]
        return multiple(*self.all)

    @rule(target=processes)
    def start(self) -> Process:
        process = Process()
        self.all.append(process)
        return process

    @rule(
        process=processes,
        wanted=st.lists(st.lists(places, min_size=1, max_size=2, unique_by=subject_of), max_size=4),
    )
    def connect(self, process: Process, wanted: list[list[Place]]) -> None:
        if not process.alive:
            return
        decisions: list[tuple[Request, int]] = []
        for each in wanted:
            request, answer = process.sharing.ask([(place, LIMIT) for place in each])
            if answer is not None:
                decisions.append((request, answer))
        decisions += make_calls(process, self.redis)
        assert len(decisions) == len(wanted), "a connection was not answered"
        self._take(process, decisions)

    @rule(process=processes, data=st.data())
    def disconnect(self, process: Process, data: st.DataObject) -> None:
        held = [place for place, number in process.connections.items() if number]
        if process.alive and held:
            place = data.draw(st.sampled_from(held))
            process.connections[place] -= 1
            process.sharing.give_back([place])
            make_calls(process, self.redis)

    @rule(process=consumes(processes))
    def kill(self, process: Process) -> None:
        process.alive = False
        process.connections.clear()

    @rule(seconds=st.floats(0, LIFETIME / 3))
    def time_passes(self, seconds: float) -> None:
        """Let time pass; every process that lives renews itself in time."""
        self.redis.now += seconds
        for process in self._alive():
            process.sharing.renew()
            make_calls(process, self.redis)

    @rule(process=processes, seconds=st.floats(LIFETIME / 3, LIFETIME * 2))
    def stall(self, process: Process, seconds: float) -> None:
        """Let time pass while one process does nothing."""
        self.faulty = True
        self.redis.now += seconds
        for other in self._alive():
            if other is not process:
                other.sharing.renew()
                make_calls(other, self.redis)

    @rule()
    def empty_redis(self) -> None:
        self.faulty = True
        self.redis.store.clear()

    @rule(
        process=processes,
        wanted=st.lists(places, min_size=1, max_size=2, unique_by=subject_of),
        carried_out=st.booleans(),
    )
    def lose_an_answer(self, process: Process, wanted: list[Place], carried_out: bool) -> None:
        """Let a call fail. Redis has carried it out, or does so late."""
        if not process.alive:
            return
        request, answer = process.sharing.ask([(place, LIMIT) for place in wanted])
        decisions = [] if answer is None else [(request, answer)]
        call = process.sharing.next_call(new_id())
        if call is not None:
            self.faulty = True
            if carried_out:
                self.redis.run(call)
            else:
                self.redis.late.append(call)
            decisions += process.sharing.failed(call)
        self._take(process, decisions)
        assert decisions, "a connection waits for a Redis that is away"

    @rule()
    def late_calls_arrive(self) -> None:
        for call in self.redis.late:
            self.redis.run(call)
        self.redis.late.clear()

    @rule(process=processes)
    def redis_is_back(self, process: Process) -> None:
        if process.alive:
            process.sharing.try_again()
            make_calls(process, self.redis)
            assert not process.sharing.away

    @rule(process=processes)
    def leave(self, process: Process) -> None:
        """Stop as planned: all places are free immediately, and the connections end soon."""
        if process.alive and not process.sharing.away:
            process.sharing.leave()
            make_calls(process, self.redis)
            for place in list(process.connections.elements()):
                process.sharing.give_back([place])
            process.connections.clear()
            make_calls(process, self.redis)

    @invariant()
    def no_limit_is_exceeded_while_all_is_well(self) -> None:
        if not self.faulty:
            together = sum((process.connections for process in self._alive()), Counter[Place]())
            for subject in {subject_of(place) for place in together}:
                assert needed(together, subject) <= LIMIT

    @invariant()
    def each_process_knows_its_own(self) -> None:
        for process in self._alive():
            counts = process.sharing.counts
            assert {place: counts.number(place) for place in counts.places()} == dict(+process.connections)

    def teardown(self) -> None:
        """After all faults, Redis has the true numbers when a dead process does not count any more."""
        self.late_calls_arrive()
        for _ in range(2):
            for process in self._alive():
                process.sharing.try_again()
                process.sharing.renew()
                make_calls(process, self.redis)
        for _ in range(4):
            self.time_passes(LIFETIME / 3)
        together = sum((process.connections for process in self._alive()), Counter[Place]())
        for subject in {"u:1", "u:2", "203.0.113.7"}:
            free = max(0, LIMIT - needed(together, subject))
            prober = Process()
            for _ in range(LIMIT + 1):
                prober.sharing.ask([(subject, LIMIT)])
            granted = sum(answer == FREE for _, answer in make_calls(prober, self.redis))
            assert granted == free, f"{subject} has {together} and got {granted} more"

    def _alive(self) -> list[Process]:
        return [process for process in self.all if process.alive]

    def _take(self, process: Process, decisions: list[tuple[Request, int]]) -> None:
        for request, answer in decisions:
            if answer == FREE:
                process.connections.update(place for place, _ in request.wanted)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


class TestSharing:
    def test_connections_of_one_turn_share_a_call(self) -> None:
        process, redis = Process(), Redis()
        make_calls(process, redis)
        for number in range(50):
            process.sharing.ask([(f"u:{number}", LIMIT)])
        register = process.sharing.next_call(new_id())
        assert register is not None
        process.sharing.answered(register, redis.run(register))
        call = process.sharing.next_call(new_id())
        assert call is not None
        assert len(call.requests) == 50

    def test_a_full_subject_costs_no_call(self) -> None:
        process, redis = Process(), Redis()
        for _ in range(LIMIT):
            process.sharing.ask([("u:1", LIMIT)])
        make_calls(process, redis)
        assert process.sharing.ask([("u:1", LIMIT)])[1] == 1
        assert process.sharing.next_call(new_id()) is None

    def test_a_place_that_is_given_back_is_free_for_other_processes(self) -> None:
        process, other, redis = Process(), Process(), Redis()
        for _ in range(LIMIT):
            process.sharing.ask([("u:1", LIMIT)])
        make_calls(process, redis)
        process.sharing.give_back(["u:1"])
        make_calls(process, redis)
        for _ in range(2):
            other.sharing.ask([("u:1", LIMIT)])
        assert [answer for _, answer in make_calls(other, redis)] == [FREE, 1]

    def test_the_first_place_that_is_not_free_is_named(self) -> None:
        process, redis = Process(), Redis()
        for number in range(LIMIT):
            process.sharing.ask([(f"u:{number}", LIMIT), ("n:203.0.113.7", LIMIT)])
        make_calls(process, redis)
        other = Process()
        other.sharing.ask([("u:9", LIMIT), ("n:203.0.113.7", LIMIT)])
        [(_, answer)] = make_calls(other, redis)
        assert answer == 2
        # The place of the user was not taken.
        assert other.sharing.counts.number("u:9") == 0

    @pytest.mark.parametrize(("opens", "answers"), [(True, [FREE, FREE, FREE, 1]), (False, [AWAY] * 4)])
    def test_without_redis_the_own_counts_decide_or_all_are_refused(
        self, opens: bool, answers: list[int]
    ) -> None:
        process = Process(Sharing(LIFETIME, opens))
        first, _ = process.sharing.ask([("u:1", LIMIT)])
        call = process.sharing.next_call(new_id())
        assert call is not None
        decisions = process.sharing.failed(call)
        # Further connections do not wait for Redis.
        decisions += [process.sharing.ask([("u:1", LIMIT)]) for _ in range(3)]  # type: ignore[misc]
        assert decisions[0][0] is first
        assert [answer for _, answer in decisions] == answers
        assert process.sharing.next_call(new_id()) is None

    def test_a_process_that_never_stays_alive_decides_itself(self) -> None:
        process, redis = Process(), Redis()
        process.sharing.ask([("u:1", LIMIT)])
        decisions: list[tuple[Request, int]] = []
        for _ in range(10):
            if (call := process.sharing.next_call(new_id())) is None:
                break
            decisions += process.sharing.answered(call, redis.run(call))
            redis.store.clear()
        assert [answer for _, answer in decisions] == [FREE]

    def test_ended_connections_leave_nothing_while_redis_is_away(self) -> None:
        process = Process()
        process.sharing.ask([("u:0", LIMIT)])
        call = process.sharing.next_call(new_id())
        assert call is not None
        process.sharing.failed(call)
        for number in range(1000):
            process.sharing.ask([(f"u:{number}", LIMIT)])
            process.sharing.give_back([f"u:{number}"])
        assert len(process.sharing.counts) == 1
        assert not process.sharing._changed

    def test_many_numbers_are_written_in_parts(self) -> None:
        process, redis = Process(), Redis()
        for number in range(1200):
            process.sharing.ask([(f"u:{number}", LIMIT)])
        make_calls(process, redis)
        redis.store.clear()
        process.sharing.renew()
        calls = 0
        while (call := process.sharing.next_call(new_id())) is not None:
            process.sharing.answered(call, redis.run(call))
            calls += 1
        assert calls < 8
        other = Process()
        for number in range(0, 1200, 100):
            other.sharing.ask([(f"u:{number}", 1)])
        assert {answer for _, answer in make_calls(other, redis)} == {1}

    def test_a_call_of_a_process_that_was_given_up_changes_nothing(self) -> None:
        process, redis = Process(), Redis()
        process.sharing.ask([("u:1", LIMIT)])
        make_calls(process, redis)
        process.sharing.ask([("u:1", LIMIT)])
        hung = process.sharing.next_call(new_id())
        assert hung is not None
        process.sharing.failed(hung)
        process.sharing.try_again()
        make_calls(process, redis)
        assert redis.run(hung) == NOT_ALIVE
