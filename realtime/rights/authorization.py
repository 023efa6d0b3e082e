"""The right on which one connection relies."""

import hashlib
from dataclasses import dataclass

#: The key in the ASGI scope under which a middleware leaves the authorization of a ticket.
SCOPE_KEY = "realtime.authorization"
#: The key in the ASGI scope under which a middleware says that the connection needs a ticket.
NEEDS_TICKET = "realtime.needs_ticket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """The right of a connection. An anonymous connection without a ticket has none.

    Attributes:
        user_id: The primary key of the user as text; empty for the ticket of an anonymous client.
        session: The key of the session; empty if the connection relies on none.
        is_ticket: True if the connection relies on a ticket.
        groups: The only groups that the ticket is for; None for all groups that the policy allows.
        expires_at: The time at which the right ends, in seconds since the epoch; None if that is not known,
            or if it does not end by itself.
    """

    user_id: str
    session: str = ""
    is_ticket: bool = False
    groups: frozenset[str] | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        # A log line must not have the key of a session.
        return f"Authorization(user_id={self.user_id!r}, is_ticket={self.is_ticket})"


def digest(session: str) -> str:
    """Return a digest of the key of a session, for messages: it says which session, and gives no access."""
    return hashlib.sha256(f"realtime.session:{session}".encode()).hexdigest()[:32]
