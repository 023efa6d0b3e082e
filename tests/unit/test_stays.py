"""The comparison of the signals about a user with the changes that the database noted."""

import pytest

from tests.support.assertions.stays import OFFLINE, ONLINE, OUT_OF_TURN, Change, signals_out_of_turn


def changes(*times: float) -> list[Change]:
    return [Change("7", (ONLINE, OFFLINE)[number % 2], at) for number, at in enumerate(times)]


def test_a_signal_for_each_change_in_order_is_right() -> None:
    assert signals_out_of_turn(changes(0, 10, 20), [ONLINE, OFFLINE, ONLINE], []) == 0


@pytest.mark.parametrize(
    "signals", [[ONLINE], [ONLINE, ONLINE], [ONLINE, OFFLINE, OFFLINE], [OFFLINE, ONLINE]]
)
def test_a_signal_that_is_missing_or_too_much_is_found(signals: list[str]) -> None:
    with pytest.raises(AssertionError):
        signals_out_of_turn(changes(0, 10), signals, [])


def test_the_signal_of_a_process_that_was_killed_may_be_missing() -> None:
    assert signals_out_of_turn(changes(0, 10, 20), [ONLINE, ONLINE], kills=[10.5]) == 0
    with pytest.raises(AssertionError, match="not told"):
        signals_out_of_turn(changes(0, 10, 20), [ONLINE, ONLINE], kills=[9.5])


def test_signals_of_two_processes_may_overtake_each_other() -> None:
    near, far = 10 + OUT_OF_TURN / 2, 10 + 2 * OUT_OF_TURN
    assert signals_out_of_turn(changes(0, 10, near), [ONLINE, ONLINE, OFFLINE], []) == 1
    with pytest.raises(AssertionError, match="out of order"):
        signals_out_of_turn(changes(0, 10, far), [ONLINE, ONLINE, OFFLINE], [])
