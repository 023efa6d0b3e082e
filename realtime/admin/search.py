"""What a text in the search field means: one comparison, because no index has two of them in order."""

import ipaddress
import uuid
from typing import Any

from django.db.models import QuerySet

from realtime.admin.people import key_of
from realtime.models import Connection

#: How many of the newest connections an address or a path is looked for in. Neither has an index, which every
#: connect would pay for.
SOUGHT = 10_000
HELP = (
    f"a connection's id; a user's name or key; or, among the newest {SOUGHT:,} of the list, an address or the"
    " beginning of a path"
)


def search(connections: QuerySet[Any], text: str) -> QuerySet[Any]:
    """Those of the connections that `text` means."""
    text = text.strip()
    if text.startswith("/"):
        return _newest(connections).filter(path__startswith=text)
    if _is_address(text):
        return _newest(connections).filter(remote_address=text)
    try:
        id = uuid.UUID(text)
    except ValueError:
        return connections.filter(user_id=key_of(text) or text)
    # A user's key may be a UUID, too.
    if Connection.objects.filter(pk=id).exists():
        return connections.filter(pk=id)
    return connections.filter(user_id=str(id))


def _newest(connections: QuerySet[Any]) -> QuerySet[Any]:
    times = connections.order_by("-opened_at").values_list("opened_at", flat=True)
    last = times[SOUGHT : SOUGHT + 1].first()
    return connections if last is None else connections.filter(opened_at__gt=last)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
