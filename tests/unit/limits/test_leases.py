"""`realtime.limits.leases`, with the script about a bucket as the in-memory layer runs it."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from realtime.limits.leases import KEPT, PORTIONS, Decision, Lease, portion
from realtime.limits.publishes import TAKE
from realtime.limits.rates import BURST

pauses = st.integers(0, 128).map(lambda number: number / 64)
processes = st.integers(0, 2)


class PublishesOfOneUser(RuleBasedStateMachine):
    """Three processes share the bucket of one user."""

    @initialize(rate=st.integers(1, 60))
    def open(self, rate: int) -> None:
        self.rate = rate
        self.now = 0.0
        self.store: dict[str, Any] = {}
        self.leases = [Lease() for _ in range(3)]
        self.asked: list[list[float]] = [[] for _ in self.leases]
        self.allowed: list[float] = []

    @rule(pause=pauses)
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule(process=processes, count=st.integers(1, 100))
    def publish(self, process: int, count: int) -> None:
        for _ in range(count):
            self.publish_once(process)

    def publish_once(self, process: int) -> None:
        lease = self.leases[process]
        decision = lease.take(self.now)
        if decision is Decision.ASK:
            arguments = (self.rate, BURST * self.rate, portion(self.rate))
            lease.granted(TAKE.in_memory(self.store, "user", arguments, self.now), self.rate, self.now)
            self.asked[process].append(self.now)
            decision = lease.take(self.now)
            # One question settles it.
            assert decision is not Decision.ASK
        if decision is Decision.ALLOW:
            self.allowed.append(self.now)

    @rule(process=processes)
    def publish_after_silence(self, process: int) -> None:
        self.now += KEPT + BURST
        before = len(self.allowed)
        self.publish_once(process)
        assert len(self.allowed) == before + 1

    @invariant()
    def the_rate_holds_over_all_processes(self) -> None:
        # A portion may be used long after it was taken from the bucket, but each only once.
        held = len(self.leases) * portion(self.rate)
        assert len(self.allowed) <= self.rate * (BURST + self.now) + held + 1e-6

    @invariant()
    def redis_is_asked_seldom(self) -> None:
        for asked in self.asked:
            most = (BURST + self.now) * self.rate / portion(self.rate) + self.now * (PORTIONS + self.rate)
            assert len(asked) <= most + 2


TestPublishesOfOneUser = PublishesOfOneUser.TestCase
TestPublishesOfOneUser.settings = settings(max_examples=100, stateful_step_count=30)


def test_a_user_who_publishes_now_and_then_is_seldom_asked_about() -> None:
    lease, asked = Lease(), 0
    for second in range(50):
        if lease.take(float(second)) is Decision.ASK:
            asked += 1
            lease.granted(portion(50), 50, float(second))
            assert lease.take(float(second)) is Decision.ALLOW
    assert asked == 50 / portion(50)


def test_what_is_left_of_a_portion_lapses() -> None:
    lease = Lease()
    lease.granted(10, 50, 0.0)
    assert not lease.lapsed(KEPT - 1)
    assert lease.lapsed(KEPT)
    assert lease.take(KEPT) is Decision.ASK


def test_an_empty_bucket_is_not_asked_again_at_once() -> None:
    lease = Lease()
    lease.granted(0, 50, 0.0)
    assert lease.take(0.19) is Decision.REFUSE
    assert lease.take(0.2) is Decision.ASK
