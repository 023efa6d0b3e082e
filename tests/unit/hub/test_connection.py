"""Tests of `realtime.hub.connection`: the states of a connection, and the only transitions between them."""

import itertools
import logging

import pytest

from realtime.closing import CloseReason
from realtime.hub.connection import Connection, State

CONNECTING, OPEN, CLOSING, CLOSED = State
ALLOWED = {(CONNECTING, OPEN), (CONNECTING, CLOSING), (OPEN, CLOSING), (CLOSING, CLOSED)}
#: A way to each state.
WAYS = {
    CONNECTING: (),
    OPEN: (OPEN,),
    CLOSING: (OPEN, CLOSING),
    CLOSED: (OPEN, CLOSING, CLOSED),
}


def a_connection(state: State = CONNECTING) -> Connection:
    connection = Connection({"client": ["127.0.0.1", 5]}, lambda event: None)
    for each in WAYS[state]:
        connection.state = each
    return connection


def test_a_connection_begins_as_connecting() -> None:
    assert a_connection().state is CONNECTING


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED, key=str))
def test_each_transition_of_the_diagram_is_possible(before: State, after: State) -> None:
    connection = a_connection(before)

    connection.state = after

    assert connection.state is after


@pytest.mark.parametrize(
    ("before", "after"), sorted(set(itertools.product(State, repeat=2)) - ALLOWED, key=str)
)
def test_every_other_transition_is_refused(before: State, after: State) -> None:
    connection = a_connection(before)

    with pytest.raises(RuntimeError, match=f"that is {before.value} cannot become {after.value}"):
        connection.state = after

    assert connection.state is before


@pytest.mark.parametrize("before", [CONNECTING, OPEN])
def test_a_reason_to_end_begins_the_closing(before: State) -> None:
    connection = a_connection(before)
    assert not connection.gone

    connection.end(CloseReason.IDLE)

    assert (connection.state, connection.reason, connection.gone) == (CLOSING, CloseReason.IDLE, True)


def test_the_first_reason_stays() -> None:
    connection = a_connection(OPEN)
    connection.end(CloseReason.IDLE)

    with pytest.raises(RuntimeError):
        connection.end(CloseReason.KICKED)

    assert connection.reason is CloseReason.IDLE


def test_a_transition_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    connection = a_connection()
    with caplog.at_level(logging.DEBUG, logger="realtime.hub"):
        connection.state = OPEN

    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("DEBUG", "The connection is open")
    assert record.__dict__["connection"] == str(connection.id)
