"""Ask if a client may do something: its ticket and the policy, with the rights that it has now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from realtime import policy
from realtime.errors import ConnectionGone
from realtime.hub.connection import Connection
from realtime.hub.rights import Rechecks

#: A state of the rights of a connection. It is another one after every change of which the process knows.
Moment: TypeAlias = tuple[int, int]


class Join:
    """A join under way for which the policy is asked.

    Attributes:
        was_removed: True if the connection was removed from the group meanwhile, and its client not told.
    """

    __slots__ = ("was_removed",)

    def __init__(self) -> None:
        self.was_removed = False


#: The joins under way. A connection handles one frame at a time, so it has one join of a group.
_joins: dict[tuple[Connection, str], Join] = {}


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
def joining(connection: Connection, group: str) -> Iterator[Join]:
    """Note a join, from before the policy is asked until the client has its answer.

    If the connection is removed meanwhile, the caller tells the client, after the answer.
    """
    _joins[connection, group] = join = Join()
    try:
        yield join
    finally:
        del _joins[connection, group]


def leave_to_join(connection: Connection, group: str) -> bool:
    """Leave it to a join under way to tell the client that it was removed. Return False if there is none."""
    join = _joins.get((connection, group))
    if join is not None:
        join.was_removed = True
    return join is not None
