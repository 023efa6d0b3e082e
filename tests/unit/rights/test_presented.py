"""`realtime.rights.presented`: a ticket is found in a handshake, and stays nowhere in its scope."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.rights import presented

SECRET = "the-secret.of-a.ticket"
texts = st.text(st.characters(codec="ascii", exclude_characters="&=%+ticket"), min_size=1, max_size=5)


def scope(query: bytes = b"", offered: list[str] | None = None) -> dict[str, Any]:
    offered = offered or []
    return {
        "query_string": query,
        "subprotocols": offered,
        "headers": [(b"host", b"x"), (b"sec-websocket-protocol", ", ".join(offered).encode())],
    }


@given(st.lists(st.tuples(texts, texts), max_size=4), st.integers(0, 4))
def test_a_ticket_is_taken_out_of_the_query(others: list[tuple[str, str]], at: int) -> None:
    parts = [f"{name}={value}" for name, value in others]
    handshake = scope("&".join([*parts[:at], f"ticket={SECRET}", *parts[at:]]).encode())
    assert presented.take(handshake) == [SECRET]
    assert handshake["query_string"] == "&".join(parts).encode()


@pytest.mark.parametrize("name", ["ticket", "%74icket", "tick%65t"])
def test_an_escaped_name_is_found_too(name: str) -> None:
    handshake = scope(f"{name}={SECRET}".encode())
    assert presented.take(handshake) == [SECRET]
    assert SECRET not in repr(handshake)


@pytest.mark.parametrize("offered", [["realtime.v1", "realtime.ticket." + SECRET]] * 2)
def test_a_ticket_is_taken_out_of_the_subprotocols_and_headers(offered: list[str]) -> None:
    handshake = scope(offered=offered)
    assert presented.take(handshake) == [SECRET]
    assert handshake["subprotocols"] == ["realtime.v1"]
    assert SECRET not in repr(handshake)


def test_several_tickets_are_all_found() -> None:
    handshake = scope(b"ticket=1&ticket=2", ["realtime.ticket.3"])
    assert presented.take(handshake) == ["1", "2", "3"]


def test_a_ticket_that_was_seen_can_still_be_taken() -> None:
    handshake = scope(f"ticket={SECRET}".encode())
    assert presented.is_there(handshake)
    assert presented.is_there(handshake)
    assert SECRET not in repr(handshake)
    assert presented.take(handshake) == [SECRET]
    assert presented.take(handshake) == []


@pytest.mark.parametrize("query", [b"", b"a=1", b"tickets=1&myticket=2", b"%ff=%00&&=", b"\xff\xfe=%zz"])
def test_a_handshake_without_a_ticket_stays_as_it_was(query: bytes) -> None:
    handshake = scope(query, ["realtime.v1"])
    before = {**handshake}
    assert not presented.is_there(handshake)
    assert presented.take(handshake) == []
    assert handshake == before
