"""Ask if a client may do something: its ticket and the policy, with the rights that it has now."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from realtime import policy
from realtime.errors import ConnectionGone
from realtime.hub.connection import Connection
from realtime.hub.rights import Rechecks

#: A state of the rights of a connection. It is another one after every change of which the process knows.
Moment: TypeAlias = tuple[int, int]

#: The joins under way for which the policy is asked, counted.
_joining: Counter[tuple[Connection, str]] = Counter()


async def may(connection: Connection, action: str, group: str) -> bool:
    """Return True if a client may do something.

    If its rights change while the policy is asked, the policy is asked again.

    Args:
        connection: The connection of the client.
        action: "join", "publish" or "presence".
        group: A valid group name.

    Raises:
        ConnectionGone: The connection ended meanwhile.
        Exception: Any exception of the policy. It means no.
    """
    while True:
        asked_at, relies = moment(connection), connection.authorization
        if relies is not None and relies.groups is not None and group not in relies.groups:
            return False
        allowed = await policy.allows(connection.scope, action, group)
        if moment(connection) == asked_at:
            return allowed
        if connection.gone:
            raise ConnectionGone


def moment(connection: Connection) -> Moment:
    """Return the state of the rights of a connection. If it is still the same later, nothing has changed."""
    return connection.rights_read, Rechecks.count


@contextmanager
def joining(connection: Connection, group: str) -> Iterator[None]:
    """Note a join, from before the policy is asked until the client has its answer.

    Meanwhile the client is not told that it was removed: the caller does that, after the answer.
    """
    _joining[connection, group] += 1
    try:
        yield
    finally:
        _joining[connection, group] -= 1
        if not _joining[connection, group]:
            del _joining[connection, group]


def is_joining(connection: Connection, group: str) -> bool:
    """Return True while the client waits for the answer to a join."""
    return (connection, group) in _joining
