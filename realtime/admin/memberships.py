"""The groups of the connections on one page, in one query that costs the same however many there are."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import IntegerField, OuterRef, Subquery

from realtime.models import Connection, Membership

NAMED = 3
COUNTED = 1000


class _CountUpTo(Subquery):
    """How many rows a sliced subquery has."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) subquery)"
    output_field = IntegerField()


@dataclass(frozen=True, slots=True)
class Groups:
    """The first groups of a connection by name, and how many there are besides; at most `COUNTED` in all."""

    names: tuple[str, ...] = ()
    count: int = 0

    @property
    def more(self) -> str:
        rest = self.count - len(self.names)
        return "" if not rest else f"and {rest}{'+' if self.count == COUNTED else ''} more"


def current_groups(connections: Collection[uuid.UUID]) -> dict[uuid.UUID, Groups]:
    """The groups in which these connections are now."""
    held = Membership.objects.to_leave().filter(connection=OuterRef("pk")).order_by("group")
    rows = Connection.objects.filter(pk__in=connections).values_list(
        "pk",
        *(Subquery(held.values("group")[number : number + 1]) for number in range(NAMED)),
        _CountUpTo(held.values("group")[:COUNTED]),
    )
    return {pk: Groups(tuple(filter(None, names)), count) for pk, *names, count in rows}
