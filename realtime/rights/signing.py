"""The texts of tickets: signed, so that no client can make or change one.

A text has only letters, digits, "-", "_" and ".", so it can be part of a URL and of a subprotocol (a token of
RFC 9110 section 5.6.2). It is not encrypted: a client can read it.
"""

import secrets
from collections.abc import Sequence
from typing import Annotated

import msgspec
from django.core.signing import BadSignature, Signer
from msgspec import Meta

from realtime.errors import BadTicket

#: Only a text that was signed with this salt can be a ticket.
SALT = "realtime.ticket"
#: The purpose of every ticket. A ticket for another purpose would have another one.
PURPOSE = "connect"
#: Characters in the longest text. A proxy may refuse a longer header or URL.
MAX_LENGTH = 4096


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What a ticket says. The names are short, because each connection sends them.

    Attributes:
        purpose: PURPOSE.
        user_id: The primary key of the user as text; None for an anonymous client.
        auth: A digest of the user's session auth hash, which changes with the password; empty if the user has
            none.
        groups: The only groups that the connection may use; None for all that the policy allows.
        expires: The time after which it cannot be used any more, in seconds since the epoch.
        connection_ttl: Seconds from its use to the end of the right to the connection; None for no end.
        nonce: A random text. Two tickets never have the same.
    """

    user_id: str | None = msgspec.field(name="u")
    expires: float = msgspec.field(name="e")
    connection_ttl: Annotated[float, Meta(gt=0)] | None = msgspec.field(name="c")
    auth: str = msgspec.field(name="a", default="")
    groups: Sequence[str] | None = msgspec.field(name="g", default=None)
    purpose: str = msgspec.field(name="p", default=PURPOSE)
    nonce: Annotated[str, Meta(min_length=16, max_length=64)] = msgspec.field(
        name="n", default_factory=lambda: secrets.token_urlsafe(16)
    )


class _Serializer:
    """Encodes tickets for Django's signer."""

    def dumps(self, ticket: Ticket) -> bytes:
        return msgspec.json.encode(ticket)

    def loads(self, data: bytes) -> Ticket:
        return msgspec.json.decode(data, type=Ticket)


def sign(ticket: Ticket) -> str:
    """Return the text of a ticket.

    Raises:
        ValueError: It is too long, because it names too many groups.
    """
    text = _signer().sign_object(ticket, serializer=_Serializer)
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"The ticket has {len(text)} characters, and {MAX_LENGTH} are the most. Name fewer groups, and "
            "let the policy decide about the others."
        )
    return text


def read(text: str, now: float) -> Ticket:
    """Read the text of a ticket.

    Args:
        text: Any text.
        now: The time in seconds since the epoch.

    Raises:
        BadTicket: It was not signed here, or it was signed for another purpose, or its time is over.
    """
    if len(text) > MAX_LENGTH:
        raise BadTicket("The ticket is too long.")
    try:
        ticket: Ticket = _signer().unsign_object(text, serializer=_Serializer)
    except (BadSignature, UnicodeError):
        raise BadTicket("The ticket was not signed by this site.") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        # Signed with the same key and salt: perhaps by another version.
        raise BadTicket("The ticket cannot be read.") from None
    if ticket.purpose != PURPOSE:
        raise BadTicket("The ticket is for another purpose.")
    if ticket.expires <= now:
        raise BadTicket("The time in which the ticket could be used is over.")
    return ticket


def _signer() -> Signer:
    # Made each time, because a test may change SECRET_KEY. The default separator is not for subprotocols.
    return Signer(salt=SALT, sep=".")
