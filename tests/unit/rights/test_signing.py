"""`realtime.rights.signing`: only a text that was signed here, for this purpose and in time, is a ticket."""

import re
from typing import Any

import pytest
from django.core import signing as django_signing
from hypothesis import given
from hypothesis import strategies as st

from realtime.errors import BadTicket
from realtime.rights import signing
from realtime.rights.signing import Ticket

tickets = st.builds(
    Ticket,
    user_id=st.none() | st.text(max_size=20),
    auth=st.text("0123456789abcdef", max_size=32),
    groups=st.none() | st.lists(st.text(max_size=20), max_size=5),
    expires=st.floats(1, 1e10),
    connection_ttl=st.none() | st.floats(0.1, 1e9),
)
NOW = 1_000_000.0
TICKET = Ticket(user_id="7", expires=NOW + 60, connection_ttl=3600.0)


@given(tickets)
def test_a_ticket_is_read_as_it_was_signed(ticket: Ticket) -> None:
    assert signing.read(signing.sign(ticket), ticket.expires - 0.5) == ticket


@given(tickets)
def test_a_text_can_be_in_a_url_and_in_a_subprotocol(ticket: Ticket) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", signing.sign(ticket))


@given(st.text() | st.binary().map(lambda content: content.decode("latin-1")))
def test_any_other_text_is_a_bad_ticket(text: str) -> None:
    with pytest.raises(BadTicket):
        signing.read(text, NOW)


@given(st.integers(0, 500), st.characters(codec="ascii"))
def test_a_text_with_one_other_character_is_a_bad_ticket(position: int, character: str) -> None:
    text = signing.sign(TICKET)
    position %= len(text)
    if text[position] == character:
        return
    changed = text[:position] + character + text[position + 1 :]
    # The last character of a base64 text has bits that count for nothing.
    if position == len(text) - 1:
        return
    with pytest.raises(BadTicket):
        signing.read(changed, NOW)


@pytest.mark.parametrize("late", [0.0, 1e-3, 1e9])
def test_a_ticket_is_over_at_its_end(late: float) -> None:
    with pytest.raises(BadTicket, match="is over"):
        signing.read(signing.sign(TICKET), TICKET.expires + late)


def test_a_ticket_for_another_purpose_is_refused() -> None:
    other = Ticket(user_id="7", expires=NOW + 60, connection_ttl=None, purpose="refund")
    with pytest.raises(BadTicket, match="another purpose"):
        signing.read(signing.sign(other), NOW)


CONTENT: Any = {"u": "7", "e": NOW + 60, "c": None, "p": "connect", "n": "0" * 22}


@pytest.mark.parametrize(
    "text",
    [
        django_signing.dumps(CONTENT),
        django_signing.dumps(CONTENT, salt=signing.SALT),
        django_signing.Signer(sep=".").sign_object(CONTENT),
        django_signing.Signer(salt="django.contrib.sessions", sep=".").sign_object(CONTENT),
        django_signing.TimestampSigner(salt=signing.SALT, sep=".").sign_object(CONTENT),
        django_signing.Signer(key="another key", salt=signing.SALT, sep=".").sign_object(CONTENT),
    ],
    ids=["dumps", "dumps-with-our-salt", "no-salt", "sessions", "with-a-time", "another-key"],
)
def test_what_was_signed_for_something_else_is_no_ticket(text: str) -> None:
    with pytest.raises(BadTicket):
        signing.read(text, NOW)


@pytest.mark.parametrize(
    "content", [None, [], 1, "text", {}, {**CONTENT, "n": "short"}, {**CONTENT, "c": -1}]
)
def test_a_signed_text_without_a_ticket_in_it_cannot_be_read(content: Any) -> None:
    text = django_signing.Signer(salt=signing.SALT, sep=".").sign_object(content)
    with pytest.raises(BadTicket, match="cannot be read"):
        signing.read(text, NOW)


def test_too_many_groups_are_an_error_of_the_caller() -> None:
    names = [f"{number:099d}" for number in range(60)]
    with pytest.raises(ValueError, match="Name fewer groups"):
        signing.sign(Ticket(user_id="7", expires=NOW, connection_ttl=None, groups=names))


def test_a_very_long_text_is_refused_immediately() -> None:
    with pytest.raises(BadTicket, match="too long"):
        signing.read("a" * 100_000, NOW)


def test_two_tickets_differ() -> None:
    one, other = (Ticket(user_id="7", expires=NOW, connection_ttl=None) for _ in range(2))
    assert signing.sign(one) != signing.sign(other)
