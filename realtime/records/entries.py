"""The values that the ledger and the rows are written from."""

import uuid
from dataclasses import dataclass

from realtime.closing import CloseReason


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection to record.

    The texts may be anything that a client sent. `connection_rows` cleans them and cuts them to size.
    """

    id: uuid.UUID
    process_id: uuid.UUID
    user_id: str
    path: str
    remote_address: str
    user_agent: str
    subprotocol: str


@dataclass(frozen=True, slots=True)
class Closing:
    """A record to close."""

    id: uuid.UUID
    reason: CloseReason
    code: int | None
    """The close code that was sent or received; None if there was none."""


@dataclass(frozen=True, slots=True)
class Join:
    """A connection's membership, to open or to leave."""

    connection_id: uuid.UUID
    process_id: uuid.UUID
    group: str
