"""The values that the ledger and the rows are written from, and the ones that writes return."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from realtime.closing import CloseReason

ONLINE = ""
"""The name that stands for a group in the rows and changes that say who is online."""


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
    client_id: str = field(default="", repr=False)
    """The id that the client gave itself; empty if it gave none. Not for logs: it is the client's secret."""


class Client(NamedTuple):
    """A client, as its connections name it."""

    user_id: str
    client_id: str


class Superseded(NamedTuple):
    """The record of a connection that a newer one of the same client supersedes."""

    opening: Opening
    address: str
    """The address of the process that holds the connection."""


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
    user_id: str = ""
    """The user of the connection; empty if it is anonymous, or if presence does not depend on it."""


class Closed(NamedTuple):
    """The outcome of closing a record."""

    was_first: bool
    """True if this call closed the record, False if another writer had done so."""
    is_dormant: bool = False
    """True if the connection ended by silence and its user has no other open connection."""


class Place(NamedTuple):
    """A user in a group, as presence counts them. In the group ONLINE, it is a user with any connection."""

    group: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Stay:
    """The presence of one user in one group, from the first membership to the end of the grace."""

    id: int
    """Higher than that of every earlier stay of the user in the group."""
    group: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of committed writes that others must be told."""

    began: Sequence[Stay] = ()
    """The stays that began."""
    ended: Sequence[Stay] = ()
    """The stays that ended, when their grace was over."""
    watchers: Mapping[str, Collection[str]] = field(default_factory=dict)
    """For the address of each process that watches some of their groups, these groups."""
    departed: bool = False
    """True if users may have gone: their grace runs from now on."""
