"""The values that records are written from."""

import uuid
from dataclasses import dataclass

from realtime.closing import CloseReason

__all__ = ["Closing", "Join", "Opening"]


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection to record. Text may be anything that came from a client: it is cleaned and cut here."""

    id: uuid.UUID
    process_id: uuid.UUID
    user_id: str
    path: str
    remote_address: str
    user_agent: str
    subprotocol: str


@dataclass(frozen=True, slots=True)
class Closing:
    """A record to close. `code` is the close code that was sent or received, None where there was none."""

    id: uuid.UUID
    reason: CloseReason
    code: int | None


@dataclass(frozen=True, slots=True)
class Join:
    """A connection's membership, to open or to leave."""

    connection_id: uuid.UUID
    process_id: uuid.UUID
    group: str
