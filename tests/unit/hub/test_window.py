"""`realtime.hub.window`: only a large group that was just written to waits, and never for long."""

from hypothesis import given
from hypothesis import strategies as st

from realtime.hub.window import SHORTEST_SLEEP, Window

SECONDS = st.floats(0, 10)


def after_a_write(took: float, longest: float = 0.002) -> Window:
    """Return the window after a write to the group `a` that ended at 100 s."""
    window = Window(longest)
    window.wrote("a", 100.0 - took, 100.0)
    return window


@given(longest=st.floats(0, 1), took=SECONDS, later=SECONDS)
def test_the_wait_is_bounded_by_the_setting_and_the_write(longest: float, took: float, later: float) -> None:
    left = after_a_write(took, longest).left("a", 100.0 + later)
    assert left <= longest + 1e-9
    assert left <= took / 2 + 1e-9


@given(took=SECONDS, later=SECONDS)
def test_another_group_never_waits(took: float, later: float) -> None:
    window = after_a_write(took)
    assert window.left("b", 100.0 + later) == 0
    assert window.is_quiet("b", 100.0 + later)


def test_a_large_group_waits_after_its_write() -> None:
    window = after_a_write(took=0.020)
    assert 0.0009 < window.left("a", 100.001) <= 0.001
    assert window.left("a", 100.003) < 0


def test_a_small_group_does_not_wait() -> None:
    assert after_a_write(took=SHORTEST_SLEEP).left("a", 100.0) == 0


def test_a_window_of_zero_never_waits() -> None:
    assert after_a_write(took=5.0, longest=0.0).left("a", 100.0) == 0


def test_a_group_is_quiet_some_time_after_its_write() -> None:
    window = after_a_write(took=0.020)
    assert not window.is_quiet("a", 100.001)
    assert window.is_quiet("a", 100.003)
