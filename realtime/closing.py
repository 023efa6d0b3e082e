"""The reasons for which a connection ends, and their close codes.

`CloseReason.value` is the name of a reason everywhere: in frames, logs, metric labels and the database.

The codes are 1000 and the private range of RFC 6455 section 7.4.2, 4000-4999. Except for 3000-3999, an
application under Daphne may send no others. 4000-4499 mean "come back", 4500-4999 mean "do not come back".
"""

import enum
from typing import Self

__all__ = ["CloseReason"]

ABNORMAL_CLOSURE = 1006
"""Reported for a connection whose transport broke without a close frame (RFC 6455 section 7.1.5)."""


def may_reconnect(code: int) -> bool:
    """Return True if a client that was closed with `code` should come back.

    This includes 1000, with which Daphne closes any connection that reaches `--websocket_timeout`.
    """
    return not 4500 <= code <= 4999


class CloseReason(enum.Enum):
    """The reason for which a connection ended. The first reason that is given for a connection counts."""

    code: int
    """The close code sent to the client."""
    text: str
    """One sentence for people."""
    goodbye: bool
    """True if a goodbye frame precedes the close. None is sent to a client that closed, or does not read."""

    # Every member gives code and text. The defaults let type checkers accept `CloseReason(value)`.
    def __new__(cls, value: str, code: int = 0, text: str = "", goodbye: bool = True) -> Self:
        reason = object.__new__(cls)
        reason._value_ = value
        reason.code = code
        reason.text = text
        reason.goodbye = goodbye
        return reason

    CLIENT_CLOSED = "client_closed", 1000, "The client closed the connection.", False
    CLIENT_LOST = "client_lost", 1000, "The transport broke without a close frame.", False
    APPLICATION_CLOSED = "application_closed", 1000, "The application closed the connection.", False

    HANDLER_ERROR = "handler_error", 4000, "A handler raised an exception."
    HANDLER_TIMEOUT = "handler_timeout", 4000, "A handler ran for too long."
    CANCELLED = "cancelled", 4000, "The server cancelled the connection's task."
    SERVER_RESTART = "server_restart", 4000, "The server process is stopping."
    SERVER_LOST = "server_lost", 4000, "The server process stopped answering."
    SERVER_UNAVAILABLE = "server_unavailable", 4000, "The database or the channel layer was down."

    PING_TIMEOUT = "ping_timeout", 4008, "The client did not answer a ping in time.", False
    SEND_FAILED = "send_failed", 4009, "A message could not be sent to the client.", False
    SLOW_CONSUMER = "slow_consumer", 4010, "The client reads more slowly than it is written to.", False
    IDLE = "idle", 4011, "The client sent nothing for too long."
    RATE_LIMITED = "rate_limited", 4029, "The client sent more than it may."
    TOO_MANY_CONNECTIONS = "too_many_connections", 4030, "The user, the address or the process has too many."

    PROTOCOL_ERROR = "protocol_error", 4500, "The client broke the protocol."
    NOT_AUTHENTICATED = "not_authenticated", 4501, "The client is not logged in."
    FORBIDDEN = "forbidden", 4503, "The client may not have this connection."
    KICKED = "kicked", 4504, "A user or a program with the right to do so closed the connection."
    SUPERSEDED = "superseded", 4509, "A newer connection of the same client took its place."
    TOO_LARGE = "too_large", 4513, "The client sent a message above the size limit."

    @property
    def reconnect(self) -> bool:
        """True if the client should come back."""
        return may_reconnect(self.code)


SILENCE = frozenset({CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED})
"""The reasons of a client that stopped answering, such as a phone that fell asleep."""


def of_disconnect(code: int | None) -> CloseReason:
    """Return the reason behind a `websocket.disconnect` event that the server did not cause."""
    return CloseReason.CLIENT_LOST if code == ABNORMAL_CLOSURE else CloseReason.CLIENT_CLOSED
