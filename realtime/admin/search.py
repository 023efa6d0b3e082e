"""The searches for connections and for users online. A text is compared with one column, because no index
orders two.
"""

import ipaddress
import uuid
from typing import Any

from django.db.models import QuerySet

from realtime.admin.people import key_of
from realtime.models import Connection

#: The number of newest connections that are searched for an address or a path. Neither has an index, because
#: every connect would have to write to it.
SOUGHT = 10_000
USER_HELP = "a user's name or key"
HELP = (
    f"a connection's id; a user's name or key; or, among the newest {SOUGHT:,} of the list, an address or the"
    " beginning of a path"
)


def search(connections: QuerySet[Any], text: str, newest: int = SOUGHT) -> QuerySet[Any]:
    """Search connections.

    Args:
        connections: The connections of the list, after its filters.
        text: The beginning of a path, an address, the id of a connection, or a user's name or key.
        newest: The number of newest connections that are searched for an address or a path.

    Returns:
        The connections that match, as a query.
    """
    text = text.strip()
    if text.startswith("/"):
        return _newest(connections, newest).filter(path__startswith=text)
    if _is_address(text):
        return _newest(connections, newest).filter(remote_address=text)
    try:
        id = uuid.UUID(text)
    except ValueError:
        return connections.filter(user_id=key_of(text) or text)
    # The key of a user may be a UUID, too.
    if Connection.objects.filter(pk=id).exists():
        return connections.filter(pk=id)
    return connections.filter(user_id=str(id))


def search_users(users: QuerySet[Any], text: str) -> QuerySet[Any]:
    """Search users online.

    Args:
        users: The users of the list, after its filters.
        text: A user's name or key; empty for all.

    Returns:
        The users who match, as a query.
    """
    text = text.strip()
    return users.filter(user_id=key_of(text) or _plain_key(text)) if text else users


def _plain_key(text: str) -> str:
    """Return a key as it stands in records. A UUID may be typed in other ways."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return text


def _newest(connections: QuerySet[Any], count: int) -> QuerySet[Any]:
    times = connections.order_by("-opened_at").values_list("opened_at", flat=True)
    last = times[count : count + 1].first()
    return connections if last is None else connections.filter(opened_at__gt=last)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
