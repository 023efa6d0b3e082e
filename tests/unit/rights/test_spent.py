"""`realtime.rights.tickets.SPEND` in memory: each ticket is accepted once, and forgotten after its time."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from realtime.rights.tickets import SPEND

uses = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30), st.sampled_from([1_000, 20_000])), max_size=40)


@given(uses)
def test_a_ticket_is_accepted_once_within_its_time(chosen: list[tuple[int, float, int]]) -> None:
    store: dict[str, Any] = {}
    until: dict[int, float] = {}
    now = 0.0
    for ticket, pause, milliseconds in chosen:
        now += pause
        expected = now >= until.get(ticket, 0.0)
        assert SPEND.in_memory(store, f"ticket:{ticket}", [milliseconds], now) == expected
        if expected:
            until[ticket] = now + milliseconds / 1000


def test_tickets_are_forgotten_behind_one_that_lasts() -> None:
    store: dict[str, Any] = {}
    SPEND.in_memory(store, "ticket:long", [10_000_000], 0.0)
    for number in range(10_000):
        SPEND.in_memory(store, f"ticket:{number}", [1_000], float(number))
    assert len(store["tickets"].until) <= 1_000
    assert SPEND.in_memory(store, "ticket:long", [1], 9_000.0) == 0
