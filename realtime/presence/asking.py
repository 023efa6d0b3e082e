"""Ask the database who is in a group, and who is online."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from realtime import conf
from realtime.errors import NoPresence
from realtime.layers import groups
from realtime.records import presence_rows, transactions
from realtime.records.entries import ONLINE

#: The largest number of users that clients are told at a time. In larger groups, they are told the total.
MAX_USERS = 1000


@dataclass(frozen=True, slots=True)
class Presence:
    """The users in a group.

    Attributes:
        group: The group.
        users: The primary keys of the users as text, each once, in the order of their arrival. If there are
            more than the limit, the first ones.
        anonymous: The number of anonymous connections.
        total: The number of all users.
    """

    group: str
    users: tuple[str, ...]
    anonymous: int
    total: int


def presence(group: str, *, limit: int = MAX_USERS) -> Presence:
    """Return who is in a group. It takes three short queries.

    Args:
        group: The group.
        limit: The largest number of users to name.

    Raises:
        BadGroup: No group can have this name.
        NoPresence: No pattern in PRESENCE matches the group.
        ValueError: The limit is negative.
        django.db.Error: The database cannot be reached.
    """
    require_tracked(group)
    if limit < 0:
        raise ValueError(f"limit is {limit}; use a number of users, zero or more.")
    users, total, anonymous = presence_rows.read(group, conf.get().PRESENCE_GRACE, limit)
    return Presence(group, tuple(users), anonymous, total)


async def apresence(group: str, *, limit: int = MAX_USERS) -> Presence:
    """Do what `presence` does, from asynchronous code."""
    return await transactions.call(partial(presence, limit=limit), group)


def is_online(user: Any) -> bool:
    """Return True if a connection of the user is open, or was less than PRESENCE_GRACE ago.

    Args:
        user: A user, or the primary key of one. An anonymous user is never online.

    Raises:
        NoPresence: PRESENCE is empty.
        django.db.Error: The database cannot be reached.
    """
    settings = conf.get()
    if not settings.PRESENCE:
        raise NoPresence(ONLINE)
    key = getattr(user, "pk", user)
    return key is not None and presence_rows.is_online(str(key), settings.PRESENCE_GRACE)


async def ais_online(user: Any) -> bool:
    """Do what `is_online` does, from asynchronous code."""
    return await transactions.call(is_online, user)


def require_tracked(group: str) -> None:
    """Check that the users of a group are tracked.

    Raises:
        BadGroup: No group can have this name.
        NoPresence: No pattern in PRESENCE matches the group.
    """
    groups.require_valid(group)
    if not conf.get().tracks_presence(group):
        raise NoPresence(group)
