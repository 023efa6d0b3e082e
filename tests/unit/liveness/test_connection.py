"""`realtime.liveness.connection`: a client that answers is kept, one that does not is evicted.

All times are multiples of 1/64 s. Floats add these without rounding, so bounds are checked to the instant.
"""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from realtime.conf import Settings
from realtime.liveness.clock import RunningTime
from realtime.liveness.connection import LOOK, NOTHING, PING, Limits, Liveness, Verdict

INSTANT = 1 / 64
TINY = 1e-9  # seconds, for results of divisions
EVICTIONS = {Verdict.SILENT, Verdict.SLOW, Verdict.IDLE}


def durations(least, most):
    return st.integers(int(least / INSTANT), int(most / INSTANT)).map(lambda instants: instants * INSTANT)


spreads = st.integers(0, 63).map(lambda part: part / 64)


def pinged_blindly(live, now):
    """Ping a connection while nothing is known of its line."""
    n = live.pinged(now)
    live.no_line()
    return n


def opened(now=0.0, *, spread=0.0, pingable=True, **limits):
    """A connection with the default settings, except for these limits."""
    return Liveness(replace(Settings().limits(), **limits), now, spread=spread, pingable=pingable)


def unanswered(live):
    """The number of pings that are not answered."""
    return len(live._unanswered)


def answered(now=0.0, **limits):
    """A connection after a ping and its pong."""
    live = opened(now, **limits)
    live.ponged(live.pinged(now), now)
    return live


# Regular pings.


@pytest.mark.parametrize(("spread", "first_at"), [(0.0, 110.0), (0.5, 115.0), (0.75, 117.5)])
def test_the_first_ping_comes_after_half_to_one_interval(spread, first_at):
    live = opened(100.0, spread=spread)
    assert live.look_at == first_at
    assert live.verdict(first_at - INSTANT) is Verdict.ALIVE
    assert live.verdict(first_at) is Verdict.PROBE


def test_the_next_ping_comes_one_interval_after_the_last():
    live = opened()
    live.pinged(10.0)
    live.ponged(1, 11.0)
    assert live.look_at == 30.0
    assert live.verdict(30.0) is Verdict.PROBE


def test_pings_are_numbered_from_one():
    live = opened()
    assert [live.pinged(1.0), live.pinged(2.0), live.pinged(3.0)] == [1, 2, 3]
    live.ponged(3, 3.0)
    assert live.pinged(4.0) == 4


def test_other_frames_postpone_the_next_ping_by_one_interval():
    live = opened()
    live.received(4.0)
    assert live.look_at == 24.0


def test_other_frames_postpone_a_ping_by_two_intervals_at_most():
    live = opened()
    live.pinged(10.0)
    live.ponged(1, 10.0)
    for now in range(11, 50):
        live.received(float(now))
    assert live.look_at == 50.0


# Pongs.


def test_silent_when_a_ping_is_not_answered_in_time():
    live = opened()
    pinged_blindly(live, 10.0)
    assert live.verdict(18.0 - INSTANT) is Verdict.ALIVE
    assert live.look_at == 18.0
    assert live.verdict(18.0) is Verdict.SILENT


def test_a_pong_answers_its_ping_and_every_earlier_one():
    live = opened()
    for now in (1.0, 2.0, 3.0):
        live.pinged(now)
    assert live.ponged(2, 4.0)
    assert unanswered(live) == 1
    assert live.ponged(3, 4.0)
    assert unanswered(live) == 0


@pytest.mark.parametrize("n", [-1, 0, 1, 2, 5, 2**53])
def test_a_pong_to_no_unanswered_ping_has_no_effect(n):
    live = opened()
    for now in (1.0, 2.0):
        live.pinged(now)
    live.ponged(2, 2.5)
    live.wrote(10, 2.5)
    live.pinged(3.0)
    live.pinged(4.0)
    before = (live.look_at, unanswered(live), live.unacked_bytes, live.last_proof_at, live.round_trip)
    assert not live.ponged(n, 9.0)
    assert (live.look_at, unanswered(live), live.unacked_bytes, live.last_proof_at, live.round_trip) == before
    live.no_line()
    assert live.verdict(11.0) is Verdict.SILENT


def test_a_pong_before_any_ping_has_no_effect():
    live = opened()
    assert not live.ponged(1, 5.0)
    assert live.last_proof_at == 0.0


def test_other_frames_answer_no_ping():
    live = opened()
    pinged_blindly(live, 10.0)
    live.received(17.0)
    assert live.verdict(18.0) is Verdict.SILENT


def test_a_pong_starts_the_time_of_the_next_ping():
    live = opened()
    for now in (1.0, 2.0, 3.0):
        live.pinged(now)
    for n, now in ((1, 9.0), (2, 17.0), (3, 25.0)):
        assert live.verdict(now - INSTANT) is not Verdict.SILENT
        assert live.ponged(n, now)
        assert live.verdict(now) is not Verdict.SILENT
    assert unanswered(live) == 0


def test_the_round_trip_is_that_of_the_last_answered_ping():
    live = opened()
    assert live.round_trip is None
    live.pinged(1.0)
    live.pinged(2.0)
    live.ponged(2, 2.25)
    assert live.round_trip == 0.25


def test_pongs_and_other_frames_are_proofs_of_life():
    live = opened(1.0)
    assert live.last_proof_at == 1.0
    live.pinged(2.0)
    live.wrote(1, 3.0)
    assert live.last_proof_at == 1.0
    live.ponged(1, 4.0)
    assert live.last_proof_at == 4.0
    live.received(5.0)
    assert live.last_proof_at == 5.0


# Probes.


def test_a_write_soon_after_a_proof_is_probed_after_probe_after():
    live = opened(spread=0.5)
    live.pinged(10.0)
    live.ponged(1, 11.0)
    assert live.wrote(10, 12.5) == LOOK
    assert live.look_at == 17.5
    assert live.verdict(17.5) is Verdict.PROBE


def test_a_write_long_after_a_proof_is_probed_at_the_spread():
    live = opened(spread=0.5)
    live.wrote(10, 9.0)
    assert live.look_at == 11.5
    assert opened(spread=0.0).look_at == 10.0


def test_further_writes_do_not_postpone_a_probe():
    live = answered()
    assert live.wrote(10, 4.0) == LOOK
    for tenth in range(41, 80):
        assert live.wrote(10, tenth / 10) == NOTHING
    assert live.look_at == 9.0


@pytest.mark.parametrize(
    ("every", "leaves_at"),
    [
        pytest.param(0.5, 4.0, id="often"),
        pytest.param(1.0, 4.0, id="now and then"),
        pytest.param(1.5, 4.5, id="seldom"),
        pytest.param(4.5, 4.5, id="almost too seldom"),
    ],
)
def test_a_ping_follows_a_write_a_little_before_its_time(every, leaves_at):
    live = answered(10.0)
    now, asked = 10.0, []
    while now < 15.0:
        if live.wrote(10, now) == PING:
            asked.append(now - 10.0)
            break
        now += every
    assert asked == [leaves_at]


def test_without_a_write_a_ping_is_sent_at_its_own_time():
    live = answered(10.0)
    live.wrote(10, 10.0)
    live.wrote(10, 10.5)
    assert live.look_at == 15.0
    assert live.verdict(15.0) is Verdict.PROBE


def test_other_frames_do_not_postpone_a_probe():
    live = answered()
    live.wrote(10, 1.0)
    live.received(4.0)
    assert live.look_at == 6.0


def test_a_write_during_a_ping_is_probed_after_its_pong():
    live = opened()
    pinged_blindly(live, 10.0)
    live.wrote(10, 11.0)
    assert live.look_at == 18.0
    live.ponged(1, 12.0)
    assert live.unacked_bytes == 10
    assert live.look_at == 17.0


def test_a_pong_arms_no_probe_while_a_ping_is_unanswered():
    live = opened()
    live.pinged(1.0)
    live.wrote(10, 1.5)
    live.pinged(2.0)
    live.ponged(1, 3.0)
    live.no_line()
    assert live.unacked_bytes == 10
    assert live.look_at == 11.0


def test_a_ping_acknowledges_all_that_was_written_before_it():
    live = opened()
    live.wrote(10, 1.0)
    live.pinged(2.0)
    live.wrote(5, 3.0)
    assert live.unacked_bytes == 15
    live.ponged(1, 4.0)
    assert live.unacked_bytes == 5


def test_messages_are_acknowledged_as_bytes_are():
    live = opened()
    live.wrote(10, 1.0)
    live.wrote(30, 1.5, messages=3)
    live.pinged(2.0)
    live.wrote(5, 3.0)
    assert live.unacked_messages == 5
    live.ponged(1, 4.0)
    assert (live.unacked_messages, live.unacked_bytes) == (1, 5)


def test_a_probe_follows_probe_bytes_immediately():
    live = opened(probe_bytes=100)
    assert live.wrote(99, 1.0) == LOOK
    assert live.wrote(1, 2.0) == PING
    live.pinged(2.0)
    assert live.wrote(99, 2.0) == NOTHING
    assert live.wrote(1, 2.0) == PING


# Slow and idle.


def test_slow_above_the_cap_after_a_second_without_a_pong():
    live = opened(probe_bytes=100, max_unacked_bytes=250)
    live.wrote(100, 1.0)
    pinged_blindly(live, 1.0)
    live.wrote(150, 1.5)
    pinged_blindly(live, 1.5)
    assert live.verdict(2.0) is Verdict.ALIVE
    assert live.wrote(1, 1.5) == LOOK
    assert live.look_at == 2.0
    assert live.verdict(2.0 - INSTANT) is Verdict.ALIVE
    assert live.verdict(2.0) is Verdict.SLOW
    live.ponged(1, 2.0)
    assert live.verdict(2.0) is Verdict.ALIVE


def test_a_burst_above_the_cap_is_not_slow_within_a_second():
    live = opened()
    assert live.wrote(10 * 1024 * 1024, 1.0) == PING
    pinged_blindly(live, 1.0)
    assert live.verdict(1.9) is Verdict.ALIVE
    live.ponged(1, 1.9)
    assert live.verdict(2.0) is Verdict.ALIVE


def test_idle_when_the_client_sends_nothing_of_its_own():
    live = opened(idle_timeout=60.0)
    live.received(5.0)
    for now in (20.0, 40.0, 60.0):
        live.ponged(live.pinged(now), now)
    assert live.look_at == 65.0
    assert live.verdict(65.0) is Verdict.IDLE


def test_without_pings_a_connection_can_only_become_idle():
    live = opened(pingable=False)
    live.wrote(100 * 1024 * 1024, 1.0)
    assert live.look_at == math.inf
    assert live.verdict(1e9) is Verdict.ALIVE
    live = opened(pingable=False, idle_timeout=60.0)
    live.wrote(10, 50.0)
    assert live.look_at == 60.0
    assert live.verdict(60.0) is Verdict.IDLE


@pytest.mark.parametrize(
    ("idle", "unpinged", "expected"),
    [(None, None, None), (None, 9.0, 9.0), (60.0, None, 60.0), (60.0, 9.0, 9.0), (5.0, 9.0, 5.0)],
)
def test_the_shorter_idle_time_counts_without_pings(idle, unpinged, expected):
    limits = replace(Settings().limits(), idle_timeout=idle, unpinged_idle_timeout=unpinged)
    assert limits.of_unpinged.idle_timeout == expected
    assert limits.of_unpinged.ping_interval == limits.ping_interval


@given(spread=spreads, wrote_at=durations(0, 60))
def test_a_fan_out_is_probed_at_the_spread_of_each_connection(spread, wrote_at):
    live = opened(spread=spread, ping_interval=1000.0)
    live.wrote(10, wrote_at)
    assert live.look_at == wrote_at + 5.0 * spread, "it was never pinged"
    live = answered(spread=spread, ping_interval=1000.0)
    live.wrote(10, wrote_at)
    assert live.look_at == wrote_at + 5.0 * (spread if wrote_at > 5.0 else 1.0)


# The line of bytes on their way to the client.


def test_the_line_is_looked_at_while_a_ping_is_not_answered():
    live = opened()
    live.pinged(10.0)
    assert live.look_at == 10.25
    assert live.verdict(10.25) is Verdict.LINE
    live.line(500, 1000, 64_000, 10.25)
    assert live.look_at == 10.5
    live.line(0, 1500, 64_000, 10.5)
    assert live.look_at == 11.5, "less often, once the ping has left the line"
    live = opened()
    live.ponged(live.pinged(10.0), 10.1)
    assert live.look_at == 30.0


def test_a_ping_that_advances_in_the_line_is_not_late():
    live = opened(ping_interval=100.0)
    live.wrote(1_000_000, 9.0)
    live.pinged(10.0)
    for second in range(11, 60):
        now = float(second)
        assert live.verdict(now) is Verdict.LINE
        live.line(1_000_000 - 10_000 * second, 10_000 * second, 0, now)
        assert live.verdict(now) is Verdict.ALIVE
    assert live.look_at == 59.25
    # The client has vanished.
    for quarter in range(1, 32):
        live.line(410_000, 590_000, 0, 59.0 + quarter / 4)
        assert live.verdict(59.0 + quarter / 4) is Verdict.ALIVE
    live.no_line()
    assert live.verdict(67.0) is Verdict.SILENT


def test_a_ping_is_late_if_the_peer_makes_no_room():
    live = opened()
    live.wrote(1_000_000, 9.0)
    live.pinged(10.0)
    for second in range(11, 18):
        live.line(1_000_000 - 5000 * second, 5000 * second, 100_000 - 5000 * second, float(second))
    live.no_line()
    assert live.verdict(18.0) is Verdict.SILENT


def arrived_behind(size, **limits):
    """A connection with a ping that arrived in the peer's kernel at 10.5, behind `size` bytes."""
    live = opened(ping_interval=1000.0, probe_bytes=8000, **limits)
    live.wrote(size, 9.0)
    live.pinged(10.0)
    live.line(0, 1000 + size, 64_000, 10.5)
    return live


def test_an_arrived_ping_is_late_after_the_reading_time():
    live = arrived_behind(12_000)  # at 1,000 bytes a second
    for second in range(11, 30):
        live.line(0, 13_000, 64_000, float(second))
        assert live.verdict(float(second)) in (Verdict.ALIVE, Verdict.PROBE)
    live.line(0, 13_000, 64_000, 30.0)
    assert live.verdict(30.0) is Verdict.SILENT


def test_a_ping_behind_nothing_is_late_after_pong_timeout():
    live = arrived_behind(0)
    for second in range(11, 18):
        live.line(0, 1000, 64_000, float(second))
    assert live.verdict(18.0) is Verdict.LINE
    live.line(0, 1000, 64_000, 18.0)
    assert live.verdict(18.0) is Verdict.SILENT


def test_a_peer_is_late_if_its_kernel_stops_answering():
    live = arrived_behind(100_000)
    pings = 0
    for second in range(11, 40):
        now = float(second)
        # The peer vanishes at 15.0. Pings that are sent afterwards wait.
        live.line(40 * pings if second > 15 else 0, 101_000, 64_000, now)
        verdict = live.verdict(now)
        if verdict is Verdict.PROBE:
            live.pinged(now)
            pings += 1
        if verdict is Verdict.SILENT:
            break
    assert 18.0 <= now <= 18.0 + 3.0
    assert pings >= 2


def test_the_reading_time_begins_when_the_ping_leaves_the_line():
    live = opened(probe_bytes=1_000_000)
    live.wrote(1000, 9.0)
    live.pinged(10.0)
    live.line(50_000, 500_000, 0, 10.25)
    live.line(0, 550_000, 0, 15.0)
    live.no_line()
    assert live.look_at == 23.0
    assert live.verdict(23.0) is Verdict.SILENT


def test_a_window_that_widens_again_is_no_progress():
    live = opened()
    live.wrote(1_000_000, 9.0)
    live.pinged(10.0)
    for now, window in ((11.0, 50_000), (12.0, 40_000), (13.0, 45_000), (14.0, 50_000)):
        live.line(500_000, 500_000, window, now)
    live.no_line()
    assert live.verdict(18.0) is Verdict.SILENT


def test_above_the_cap_a_client_that_reads_is_not_slow():
    live = opened()
    live.wrote(8 * 1024 * 1024, 1.0)
    live.pinged(1.0)
    for quarter in range(1, 40):
        now = 1.0 + quarter / 4
        live.line(8_000_000 - quarter, quarter, 0, now)
        assert live.verdict(now) is Verdict.ALIVE
    live.no_line()
    assert live.verdict(now + 1.0 - INSTANT) is Verdict.ALIVE
    assert live.verdict(now + 1.0) is Verdict.SLOW


def test_a_handler_waits_while_half_the_cap_is_unacknowledged():
    live = opened()
    live.wrote(2 * 1024 * 1024, 1.0)
    live.pinged(1.0)
    assert not live.is_full
    live.wrote(1, 1.0)
    assert live.is_full
    live.ponged(1, 2.0)
    assert not live.is_full
    live = opened(pingable=False)
    live.wrote(100 * 1024 * 1024, 1.0)
    assert not live.is_full, "no pong would ever end the wait"


# Any interleaving.

TICK = 1.0


class Peer:
    """The other end of the connection, and a model of it on a clock of its own.

    The model knows nothing of `Liveness` except for the numbers of its pings.
    """

    def __init__(self, now):
        self.honest = True
        self.sent = 0
        self.pings = []  # (n, sent_at, bytes written before it), unanswered
        self.last_ping = None  # (sent_at, bytes written before it)
        self.last_pong_at = now
        self.written = 0
        self.acked = 0
        self.received_at = now
        self.stopped_at = None
        self.stalled_since_stop = False
        self.received_since_stop = False
        self.unproven_since = None
        self.on = "a fast link"
        self.acknowledged = 0
        self.was_in_line = False
        self.moved_at = -math.inf
        self.may_read_until = -math.inf

    def look_at_line(self, limits, now):
        """Return the state of the line: the waiting bytes, the acknowledged ones and the window."""
        in_line = self.on in ("a slow link", "a stalled link")
        if self.on == "a slow link" and self.stopped_at is None:
            self.acknowledged += 1
            if self.was_in_line:
                self.moved_at = now
        self.was_in_line = in_line
        self.may_read_until = -math.inf
        if not in_line:
            unread = self.pings[0][2] - self.acked
            self.may_read_until = self.answer_by(limits) + unread * limits.pong_timeout / limits.probe_bytes
        # All bytes ever written, and headers and pings, so that the oldest ping is certainly in the line.
        return (self.written + 100_000 if in_line else 0), self.acknowledged, 0

    def stop(self, now):
        self.honest = False
        self.stopped_at = now
        if self.written > self.acked:
            self.unproven_since = now

    def answer_by(self, limits):
        """Return the last instant at which an honest peer answers its next ping."""
        answer_by = max(self.pings[0][1], self.last_pong_at, self.moved_at) + limits.pong_timeout
        return max(answer_by, self.may_read_until)

    def is_slow(self, limits, now):
        over = self.written - self.acked > limits.max_unacked_bytes
        since = max(self.pings[0][1], self.moved_at) if self.pings else now
        return bool(over and self.pings and now - since >= limits.slow_after)

    def is_idle(self, limits, now):
        return limits.idle_timeout is not None and now - self.received_at >= limits.idle_timeout

    def gone_by(self, limits):
        """Return the instant by which a peer that stopped answering must have been found."""
        bounds = [self.stopped_at + 2 * limits.ping_interval]
        if not self.received_since_stop:
            bounds.append(self.stopped_at + limits.ping_interval)
        if self.unproven_since is not None:
            bounds.append(self.unproven_since + limits.probe_after)
        # If its kernel still answers, it may have to read the bytes that were written before.
        unread = self.written - self.acked if self.on == "a fast link" else 0
        return min(bounds) + limits.pong_timeout * (1 + unread / limits.probe_bytes)


class ConnectionLife(RuleBasedStateMachine):
    """One connection on links of all kinds, with a hub that looks as late as it may, and stalls.

    The hub reads its clock at least once a tick, reports answers before it judges, and pings when told to.
    It looks at every instant that `look_at` names or, if it is lazy, only at ticks.
    """

    @initialize(
        limits=st.builds(
            Limits,
            ping_interval=durations(2, 10),
            pong_timeout=durations(1, 12),
            probe_after=durations(1, 5),
            # A power of two, so that all times are exact.
            probe_bytes=st.sampled_from([1 << bits for bits in range(11)]),
            max_unacked_bytes=st.integers(1, 3000),
            slow_after=durations(0.5, 2),
            idle_timeout=st.none() | durations(5, 60),
        ),
        spread=spreads,
        lazy=st.booleans(),
        opened_at=durations(0, 5),
    )
    def open(self, limits, spread, lazy, opened_at):
        self.limits = limits
        self.spread = spread
        self.lazy = lazy
        self.real = self.ours = opened_at
        self.clock = RunningTime(self.real, longest_step=TICK)
        self.connect()

    def connect(self):
        self.peer = Peer(self.ours)
        self.live = Liveness(self.limits, self.ours, spread=self.spread)

    # Time.

    def step(self, seconds, *, stalled=False):
        """Let time pass. On the model's clock a stall takes one tick."""
        self.real += seconds
        self.ours += min(seconds, TICK) if stalled else seconds
        assert self.clock.now(self.real) == self.ours

    def judge(self):
        """Judge as the hub does. After an eviction a new client connects."""
        peer, limits, now = self.peer, self.limits, self.ours
        announced = now >= self.live.look_at
        verdict = self.live.verdict(now)
        assert (verdict is not Verdict.ALIVE) == announced
        if verdict is Verdict.LINE:
            if peer.on == "an unknown link":
                self.live.no_line()
            else:
                self.live.line(*peer.look_at_line(limits, now), now)
            verdict = self.live.verdict(now)
            assert verdict is not Verdict.LINE, "the hub would never finish"
        self.check_that_no_dead_peer_is_kept(found=verdict in EVICTIONS)
        if verdict is Verdict.SILENT:
            assert not peer.honest
            self.connect()
            return
        assert (verdict is Verdict.SLOW) == peer.is_slow(limits, now)
        if verdict is not Verdict.SLOW:
            assert (verdict is Verdict.IDLE) == peer.is_idle(limits, now)
        if verdict in EVICTIONS:
            self.connect()
        elif verdict is Verdict.PROBE:
            self.send_a_ping()
            # Otherwise the hub would never finish.
            assert self.live.verdict(now) is Verdict.ALIVE
            assert self.live.look_at > now

    def send_a_ping(self):
        peer = self.peer
        if peer.last_ping is not None:
            self.check_that_this_ping_is_needed(*peer.last_ping)
        peer.sent += 1
        assert self.live.pinged(self.ours) == peer.sent
        peer.last_ping = (self.ours, peer.written)
        peer.pings.append((peer.sent, *peer.last_ping))

    def check_that_no_dead_peer_is_kept(self, *, found):
        if not self.peer.honest:
            # A lazy or stalled hub is up to a tick late with the ping, and up to another with the verdict.
            late = 2 * TICK if self.lazy or self.peer.stalled_since_stop else 0
            bound = self.peer.gone_by(self.limits) + late
            assert self.ours < bound + TINY or (found and self.ours == bound)

    def check_that_this_ping_is_needed(self, sent_at, written):
        limits, since = self.limits, self.ours - sent_at
        assert (
            since >= limits.ping_interval
            # It may be sent earlier, after a write.
            or (since >= limits.probe_after / 2 and self.peer.written > self.peer.acked)
            or self.peer.written - written >= limits.probe_bytes
            # Only the kernel of this peer shows that the peer is still there.
            or (self.peer.may_read_until > -math.inf and since >= limits.pong_timeout / 8 - TINY)
        )

    def answer_in_time(self):
        """Let an honest peer answer at the last instant, before the hub judges."""
        peer = self.peer
        while peer.honest and peer.pings and self.ours >= peer.answer_by(self.limits):
            self.answer(0)

    def answer(self, position):
        peer = self.peer
        n, _, peer.acked = peer.pings[position]
        del peer.pings[: position + 1]
        peer.last_pong_at = self.ours
        peer.was_in_line, peer.may_read_until = False, -math.inf
        assert self.live.ponged(n, self.ours)

    def next_stop(self, until):
        """Return the next instant at which something happens by itself."""
        stops = [until]
        if self.peer.honest and self.peer.pings:
            stops.append(self.peer.answer_by(self.limits))
        if not self.lazy and self.live.look_at > self.ours:
            stops.append(self.live.look_at)
        return min(stops)

    @rule(
        seconds=durations(INSTANT, 40),
        at_every_tick=st.sampled_from(
            ["nothing", "a frame comes", "we write", "a false pong comes", "all that"]
        ),
    )
    def time_passes(self, seconds, at_every_tick):
        end = self.ours + seconds
        while self.ours < end:
            tick_ends = min(self.ours + TICK, end)
            while self.ours < tick_ends:
                self.step(self.next_stop(tick_ends) - self.ours)
                self.answer_in_time()
                if not self.lazy or self.ours == tick_ends:
                    self.judge()
            if at_every_tick in ("a frame comes", "all that"):
                self.the_peer_sends_another_frame()
            if at_every_tick in ("we write", "all that"):
                self.we_write(20)
            if at_every_tick in ("a false pong comes", "all that"):
                self.the_peer_answers_a_ping_that_was_not_sent(1)
                self.the_peer_repeats_an_answer(0)

    @rule(seconds=durations(1, 600))
    def the_process_stalls(self, seconds):
        self.peer.stalled_since_stop = not self.peer.honest
        self.step(seconds, stalled=True)
        self.answer_in_time()
        self.judge()

    # The two ends.

    @precondition(lambda self: self.peer.honest and self.peer.pings)
    @rule(data=st.data())
    def the_peer_answers(self, data):
        self.answer(data.draw(st.integers(0, len(self.peer.pings) - 1)))

    @precondition(lambda self: self.peer.honest)
    @rule(
        link=st.sampled_from(
            [
                "a fast link",
                "a slow link",
                "a stalled link",
                "an unknown link",
            ]
        )
    )
    def the_peer_moves_to(self, link):
        self.peer.on = link
        self.peer.was_in_line, self.peer.may_read_until = False, -math.inf
        # Earlier looks at another link do not apply to this one.
        self.live._reach, self.live._reads_until = None, -math.inf
        self.answer_in_time()

    @rule(ahead=st.integers(1, 10))
    def the_peer_answers_a_ping_that_was_not_sent(self, ahead):
        assert not self.live.ponged(self.peer.sent + ahead, self.ours)

    @rule(back=st.integers(0, 10))
    def the_peer_repeats_an_answer(self, back):
        answered = self.peer.sent - len(self.peer.pings)
        assert not self.live.ponged(answered - back, self.ours)

    @rule()
    def the_peer_sends_another_frame(self):
        self.peer.received_at = self.ours
        if not self.peer.honest:
            self.peer.received_since_stop = True
        self.live.received(self.ours)

    @rule(size=st.integers(1, 400))
    def we_write(self, size):
        peer = self.peer
        peer.written += size
        if not peer.honest and peer.unproven_since is None:
            peer.unproven_since = self.ours
        before = self.live.look_at
        then = self.live.wrote(size, self.ours)
        assert then != NOTHING or self.live.look_at == before or before <= self.ours
        if then == PING:
            self.send_a_ping()
        if not self.lazy:
            self.judge()

    @rule()
    def the_hub_looks(self):
        self.judge()

    @precondition(lambda self: self.peer.honest)
    @rule()
    def the_peer_stops_answering(self):
        self.peer.stop(self.ours)

    @invariant()
    def both_ends_count_the_same(self):
        assert unanswered(self.live) == len(self.peer.pings)
        assert self.live.unacked_bytes == self.peer.written - self.peer.acked


TestConnectionLife = ConnectionLife.TestCase
TestConnectionLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# Running time.


def test_running_time_follows_real_time_without_stalls():
    clock = RunningTime(100.0, longest_step=1.0)
    assert [clock.now(real) for real in (100.0, 100.5, 101.5, 101.5)] == [100.0, 100.5, 101.5, 101.5]
    assert clock.stalled == 0.0


def test_running_time_counts_one_step_of_a_stall():
    clock = RunningTime(100.0, longest_step=1.0)
    assert clock.now(3700.0) == 101.0
    assert clock.stalled == 3599.0
    assert clock.now(3700.25) == 101.25
    assert clock.stalled == 3599.0


def test_running_time_never_goes_back():
    clock = RunningTime(100.0, longest_step=1.0)
    assert clock.now(100.5) == 100.5
    assert clock.now(90.0) == 100.5
    assert clock.now(100.75) == 100.75
    assert clock.stalled == 0.0


@given(st.lists(durations(-5, 50), max_size=30))
@settings(deadline=None)
def test_running_time_and_stalls_make_up_the_real_time(steps):
    clock = RunningTime(0.0, longest_step=2.0)
    real = latest = before = 0.0
    for step in steps:
        real += step
        latest = max(latest, real)
        now = clock.now(real)
        assert before <= now <= before + 2.0
        assert now + clock.stalled == latest
        before = now


def test_after_an_hour_of_sigstop_a_client_that_answers_stays():
    clock = RunningTime(0.0, longest_step=1.0)
    live = opened(clock.now(0.0))
    for real in range(1, 11):
        now = clock.now(float(real))
    assert live.verdict(now) is Verdict.PROBE
    pinged_blindly(live, now)
    now = clock.now(3600.0)
    assert live.verdict(now) is Verdict.ALIVE
    assert live.ponged(1, now)
    assert live.verdict(now) is Verdict.ALIVE
