"""`realtime.liveness.connection.RollCall`: no process is lost that answered, and no dead one is kept."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from realtime.liveness.connection import Outcome, RollCall


def outcome(*, asked=False, failed=False, answered=False, missed=0, misses_allowed=1):
    roll = RollCall(misses_allowed=misses_allowed)
    if asked:
        roll.asked("process")
    if failed:
        roll.not_asked("process")
    if answered:
        roll.answered("process")
    return roll.outcome("process", missed)


def test_a_process_that_answered_has_missed_nothing():
    assert outcome(asked=True, answered=True, missed=1) == Outcome(missed=0, lost=False)


def test_a_process_that_was_not_asked_stays_as_it_was():
    assert outcome(missed=1) == Outcome(missed=1, lost=False)
    assert outcome(failed=True, missed=1) == Outcome(missed=1, lost=False)
    assert outcome(asked=True, failed=True, missed=1) == Outcome(missed=1, lost=False)


def test_an_answer_counts_even_where_the_question_seemed_undeliverable():
    assert outcome(failed=True, answered=True, missed=1) == Outcome(missed=0, lost=False)


def test_a_process_is_lost_when_it_missed_more_rounds_than_are_allowed():
    assert outcome(asked=True, missed=0) == Outcome(missed=1, lost=False)
    assert outcome(asked=True, missed=1) == Outcome(missed=2, lost=True)
    assert outcome(asked=True, missed=0, misses_allowed=0) == Outcome(missed=1, lost=True)


def test_one_process_answers_for_itself_only():
    roll = RollCall(misses_allowed=0)
    roll.asked("one")
    roll.asked("other")
    roll.answered("one")
    assert roll.outcome("one", 0) == Outcome(missed=0, lost=False)
    assert roll.outcome("other", 0) == Outcome(missed=1, lost=True)


sendings = st.sampled_from(["well", "well", "failed", "failed after it was noted", "failed but arrived"])
answerings = st.sampled_from(["row", "message", "both"])


class Row:
    """What the database keeps of a process."""

    def __init__(self):
        self.last_round = 0
        self.missed = 0
        self.lost = False


class Reaper:
    """One round in the making, and what a bystander saw of it."""

    def __init__(self, number, roll, processes):
        self.number = number
        self.roll = roll
        self.to_ask = list(processes)
        self.answered = set()
        self.ignored = set()


class Rounds(RuleBasedStateMachine):
    """Several reapers, each of which may be killed at any point of its round, over rows that outlive them.

    A question may fail to be sent, before or after the reaper noted it, and may yet arrive. An answer reaches
    the row, the reaper that asked, or both. A sleeping process ignores questions, and may answer on waking.
    """

    @initialize(processes=st.integers(1, 3), misses_allowed=st.integers(0, 2))
    def start(self, processes, misses_allowed):
        self.misses_allowed = misses_allowed
        self.number = 0
        self.rows = {name: Row() for name in "abc"[:processes]}
        self.asleep = set()
        self.ever_ignored = set()
        self.reapers = []

    # What happens.

    def claim_a_round(self):
        self.number += 1
        running = [name for name, row in self.rows.items() if not row.lost]
        self.reapers.append(Reaper(self.number, RollCall(misses_allowed=self.misses_allowed), running))

    def ask_the_next(self, reaper, sent, answers_by):
        name = reaper.to_ask.pop()
        if sent in ("well", "failed after it was noted"):
            reaper.roll.asked(name)
        if sent != "well":
            reaper.roll.not_asked(name)
        if sent in ("failed", "failed after it was noted"):
            return
        if name not in self.asleep:
            if answers_by != "message":
                self.answer_by_row(name, reaper.number)
            if answers_by != "row":
                reaper.roll.answered(name)
                reaper.answered.add(name)
        elif sent == "well":
            reaper.ignored.add(name)
            self.ever_ignored.add(name)

    def answer_by_row(self, name, number):
        self.rows[name].last_round = max(self.rows[name].last_round, number)
        self.rows[name].missed = 0

    def judge(self, reaper):
        self.reapers.remove(reaper)
        for name, row in self.rows.items():
            if row.lost:
                continue
            if row.last_round >= reaper.number:
                reaper.roll.answered(name)
                reaper.answered.add(name)
            ignored = name in reaper.ignored - reaper.answered
            expected = 0 if name in reaper.answered else row.missed + ignored
            row.missed, row.lost = reaper.roll.outcome(name, row.missed)
            assert row.missed == expected
            assert row.lost == (ignored and row.missed > self.misses_allowed)

    # In any order.

    @precondition(lambda self: len(self.reapers) < 3)
    @rule()
    def a_reaper_claims_a_round(self):
        self.claim_a_round()

    @precondition(lambda self: any(reaper.to_ask for reaper in self.reapers))
    @rule(data=st.data(), sent=sendings, answers_by=answerings)
    def a_process_is_asked(self, data, sent, answers_by):
        reaper = data.draw(st.sampled_from([reaper for reaper in self.reapers if reaper.to_ask]))
        self.ask_the_next(reaper, sent, answers_by)

    @precondition(lambda self: self.reapers)
    @rule(data=st.data())
    def a_reaper_judges(self, data):
        self.judge(data.draw(st.sampled_from(self.reapers)))

    @precondition(lambda self: self.reapers)
    @rule(data=st.data())
    def a_reaper_is_killed(self, data):
        self.reapers.remove(data.draw(st.sampled_from(self.reapers)))

    @rule(happens=st.lists(st.tuples(sendings, answerings), min_size=3, max_size=3))
    def a_whole_round_passes(self, happens):
        self.claim_a_round()
        reaper = self.reapers[-1]
        for sent, answers_by in happens[: len(reaper.to_ask)]:
            self.ask_the_next(reaper, sent, answers_by)
        self.judge(reaper)

    @rule(data=st.data())
    def a_process_falls_asleep(self, data):
        self.asleep.add(data.draw(st.sampled_from(sorted(self.rows))))

    @precondition(lambda self: self.asleep)
    @rule(data=st.data(), answers_late=st.booleans())
    def a_process_wakes(self, data, answers_late):
        name = data.draw(st.sampled_from(sorted(self.asleep)))
        self.asleep.remove(name)
        if answers_late:
            self.answer_by_row(name, self.number)

    @invariant()
    def nobody_is_lost_who_answered_every_question_that_was_delivered(self):
        assert {name for name, row in self.rows.items() if row.lost} <= self.ever_ignored


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(misses_allowed=st.integers(0, 3), rounds=st.lists(st.sampled_from(["judged", "killed", "not asked"])))
@settings(deadline=None)
def test_a_dead_process_is_lost_in_the_round_after_those_it_may_miss(misses_allowed, rounds):
    missed, lost, judged = 0, False, 0
    for happens in rounds:
        roll = RollCall(misses_allowed=misses_allowed)
        if happens != "not asked":
            roll.asked("process")
        if happens != "killed":
            missed, lost = roll.outcome("process", missed)
        judged += happens == "judged"
        assert missed == judged
        if lost:
            break
    assert lost == (judged > misses_allowed)
