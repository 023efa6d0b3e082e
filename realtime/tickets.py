"""Issue tickets: signed texts with which clients without cookies connect."""

import time
from collections.abc import Iterable
from typing import Any

from asgiref.sync import sync_to_async
from msgspec import UNSET, UnsetType

from realtime.rights import tickets

__all__ = ["aticket", "ticket"]


def ticket(
    user: Any = None,
    *,
    groups: Iterable[str] | None = None,
    ttl: float | None = None,
    connection_ttl: float | UnsetType | None = UNSET,
) -> str:
    """Return a ticket with which one client may connect once.

    The client sends it as the query parameter `ticket`, or as the subprotocol `realtime.ticket.<ticket>`.
    Give it only to a client that has proven to be this user. Nothing is stored for it.

    Args:
        user: The user of the connection; None for an anonymous client.
        groups: The only groups that the connection may join, publish to and see. The policy is asked as well.
            None for all groups that the policy allows.
        ttl: Seconds within which it must be used; None means the setting TICKET_TTL.
        connection_ttl: Seconds from its use until the client must send another one. None never asks for one.
            Without it, the setting CONNECTION_TTL.

    Returns:
        A text of letters, digits, "-", "_" and ".".

    Raises:
        ValueError: A time is not above zero, the user is not saved, or there are too many groups.
        BadGroup: No group can have one of the names.
    """
    return tickets.issue(user, groups, ttl, connection_ttl, time.time())


async def aticket(
    user: Any = None,
    *,
    groups: Iterable[str] | None = None,
    ttl: float | None = None,
    connection_ttl: float | UnsetType | None = UNSET,
) -> str:
    """Do what `ticket` does, from asynchronous code: the user may be a lazy object that reads the database.

    Args:
        user: The user of the connection; None for an anonymous client.
        groups: The only groups that the connection may join, publish to and see.
        ttl: Seconds within which it must be used; None means the setting TICKET_TTL.
        connection_ttl: Seconds from its use until the client must send another one; None for no end.

    Returns:
        A text of letters, digits, "-", "_" and ".".

    Raises:
        ValueError: A time is not above zero, the user is not saved, or there are too many groups.
        BadGroup: No group can have one of the names.
    """
    return await sync_to_async(ticket)(user, groups=groups, ttl=ttl, connection_ttl=connection_ttl)
