"""Reduce the addresses and user agents in old records to what CLIENT_DETAILS allows.

New records are written with the present setting, but older ones may have more: from before the setting was
changed, or from a process that still runs with the old one. Records are visited in the order of their times,
so that the place of the last visited one is all that has to be remembered.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import F, TextField, Value
from django.db.models.functions import Cast, Now

from realtime import addresses
from realtime.models import Connection
from realtime.records import rows

BATCH = rows.BATCH
#: The records that one transaction changes. Nearly each needs a statement of its own.
CHANGED_TOGETHER = 100
#: Seconds that a record must be old. Records are committed in another order than that of their times. If one
#: is committed later than this, only the next reaper that starts visits it.
SETTLED = 60.0


class Place(NamedTuple):
    """The place of a record in the order of their times."""

    opened_at: Any
    """The time as the database compares it."""
    id: uuid.UUID


class Visit(NamedTuple):
    """The outcome of one batch."""

    visited: int
    reduced: int
    """The number of records that had more than the setting allows."""
    last: Place | None
    """The last visited record; None if there was none."""


def reduce_details(
    details: str, after: Place | None = None, limit: int = BATCH, settled: float = SETTLED
) -> Visit:
    """Visit the next records, and reduce their details if they have more than the setting allows.

    Args:
        details: CLIENT_DETAILS.
        after: The last record that was visited; None begins with the oldest.
        limit: The largest number of records to visit.
        settled: Seconds that a record must be old.
    """
    using = rows.database()
    # SQLite compares times as texts. Some have three digits after the point, and a time that went through
    # Python has six.
    as_text = connections[using].vendor == "sqlite"
    records = Connection.objects.using(using).filter(opened_at__lte=Now() - timedelta(seconds=settled))
    if after is not None:
        time = Value(after.opened_at, output_field=TextField()) if as_text else after.opened_at
        records = records.filter(opened_at__gte=time).exclude(opened_at=time, pk__lte=after.id)
    visited = list(
        records.order_by("opened_at", "pk").values_list(
            "pk",
            Cast("opened_at", TextField()) if as_text else F("opened_at"),
            "remote_address",
            "user_agent",
        )[:limit]
    )
    if not visited:
        return Visit(0, 0, None)
    excessive = [pk for pk, _, address, agent in visited if _has_more(details, address, agent)]
    last = Place(visited[-1][1], visited[-1][0])
    reduced = sum(_reduce(details, some) for some in rows.batches(excessive, CHANGED_TOGETHER))
    return Visit(len(visited), reduced, last)


def _reduce(details: str, ids: Collection[uuid.UUID]) -> int:
    using = rows.database()
    chosen = Connection.objects.using(using).filter(pk__in=ids)
    with transaction.atomic(using=using):
        # What was read before the locks may have changed: a user may have been forgotten.
        rows.begin_write(using)
        rows.lock(chosen)
        networks: dict[str, list[uuid.UUID]] = defaultdict(list)
        for pk, address, agent in chosen.values_list("pk", "remote_address", "user_agent"):
            if _has_more(details, address, agent):
                networks[addresses.reduced(address, details)].append(pk)
        for network, some in networks.items():
            Connection.objects.using(using).filter(pk__in=some).update(remote_address=network, user_agent="")
    return sum(map(len, networks.values()))


def _has_more(details: str, address: str, user_agent: str) -> bool:
    """Return True if a record has more than the setting allows."""
    return details != "full" and (bool(user_agent) or addresses.reduced(address, details) != address)


class Details:
    """The way of one reaper through the records. A new reaper begins with the oldest."""

    def __init__(self) -> None:
        self._last: Place | None = None
        self.reduced = 0
        """The number of records that were reduced."""

    def visit(self, details: str, limit: int = BATCH, settled: float = SETTLED) -> int:
        """Visit the next records.

        Returns:
            The number of records that were visited; fewer than `limit` if no more are old enough.
        """
        visit = reduce_details(details, self._last, limit, settled)
        self._last = visit.last or self._last
        self.reduced += visit.reduced
        return visit.visited
