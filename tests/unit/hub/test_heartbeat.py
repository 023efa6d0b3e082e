"""The pause of a process between two looks at its schedule of pings."""

import pytest

from realtime.hub.heartbeat import SHORTEST_TICK, TICK, pause

NOW = 1000.0


@pytest.mark.parametrize(
    ("next_at", "seconds"),
    [
        pytest.param(None, TICK, id="nothing to look at"),
        pytest.param(NOW + 60, TICK, id="much later"),
        pytest.param(NOW + (TICK + SHORTEST_TICK) / 2, (TICK + SHORTEST_TICK) / 2, id="soon"),
        pytest.param(NOW + SHORTEST_TICK / 2, SHORTEST_TICK, id="at once"),
        pytest.param(NOW - 1, SHORTEST_TICK, id="late"),
    ],
)
def test_the_next_look_comes_when_the_next_ping_is_due(next_at: float | None, seconds: float) -> None:
    assert pause(next_at, NOW) == pytest.approx(seconds)
