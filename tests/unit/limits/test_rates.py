"""`realtime.limits.rates`: the frames and bytes per second of one client."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.limits.rates import BURST, GRACE, ClientRates, Verdict

RATE, BYTES = 10, 1000
# Powers of two, so that sums are exact.
pauses = st.integers(0, 64).map(lambda number: number / 16)
sizes = st.integers(0, 600)


def empty(now: float = 0.0) -> ClientRates:
    """Return the rates of a client that has just sent its burst."""
    rates = ClientRates(RATE, None, now)
    assert rates.take(1, now, int(BURST * RATE)) is Verdict.PASSES
    return rates


@given(st.lists(st.tuples(pauses, sizes), max_size=200))
def test_never_more_passes_than_burst_and_rate_allow(sent: list[tuple[float, int]]) -> None:
    rates, now, passed = ClientRates(RATE, BYTES, 0.0), 0.0, list[tuple[float, int]]()
    for pause, size in sent:
        now += pause
        if rates.take(size, now) is Verdict.PASSES:
            passed.append((now, size))
    for first in range(len(passed)):
        began = passed[first][0]
        assert len(passed[first:]) <= RATE * (BURST + passed[-1][0] - began) + 1e-6
        assert sum(size for _, size in passed[first:]) <= BYTES * (BURST + passed[-1][0] - began) + 1e-6


@given(st.integers(1, 200))
def test_a_client_at_its_rate_is_never_told(frames: int) -> None:
    rates = ClientRates(RATE, BYTES, 0.0)
    for number in range(frames):
        assert rates.take(BYTES // RATE, number / RATE) is Verdict.PASSES


@given(st.lists(pauses, min_size=1, max_size=100))
def test_a_client_is_told_once_a_second_at_most(waits: list[float]) -> None:
    rates, now, told = empty(), 0.0, -math.inf
    for pause in waits:
        now += pause
        if rates.take(1, now, 1) is Verdict.TELL:
            assert now - told >= GRACE
            told = now


def test_a_client_above_the_rate_has_a_second() -> None:
    rates = empty()
    assert rates.take(1, 0.0) is Verdict.TELL
    assert rates.take(1, 0.0625) is Verdict.WAIT
    # In the meantime, it slows down for a moment.
    assert rates.take(1, 0.125) is Verdict.PASSES
    assert rates.take(1, 0.9375, 100) is Verdict.WAIT
    assert rates.take(1, 1.0, 100) is Verdict.END


def test_a_client_that_slowed_down_is_told_again() -> None:
    rates = empty()
    assert rates.take(1, 0.0) is Verdict.TELL
    assert rates.take(1, BURST, 50) is Verdict.PASSES
    assert rates.take(1, BURST) is Verdict.TELL


@pytest.mark.parametrize(
    ("frames", "size", "exceeded"),
    [(51, 0, "MAX_FRAMES_PER_SECOND"), (1, 5001, "MAX_BYTES_PER_SECOND"), (50, 5000, "")],
)
def test_the_exceeded_limit_is_named(frames: int, size: int, exceeded: str) -> None:
    assert ClientRates(RATE, BYTES, 0.0).exceeded(size, frames) == exceeded


def test_without_limits_everything_passes() -> None:
    assert ClientRates(None, None, 0.0).take(10**9, 0.0, 10**6) is Verdict.PASSES


def test_time_that_goes_back_adds_nothing() -> None:
    rates = empty(10.0)
    assert rates.take(1, 0.0) is Verdict.TELL
    assert rates.take(1, 10.0) is Verdict.WAIT
