"""The groups of the connections on one page, in one query at a cost that does not grow with the groups."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import IntegerField, OuterRef, Subquery

from realtime.models import Connection, Membership

NAMED = 3
COUNTED = 1000


class CountUpTo(Subquery):
    """The number of rows of a sliced subquery."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) subquery)"
    output_field = IntegerField()


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one connection."""

    names: tuple[str, ...] = ()
    """The names of the first groups."""
    count: int = 0
    """The number of all groups, at most `COUNTED`."""

    @property
    def more(self) -> str:
        """A text for the groups without a name here; empty if there are none."""
        rest = self.count - len(self.names)
        return "" if not rest else f"and {rest}{'+' if self.count == COUNTED else ''} more"


def current_groups(connections: Collection[uuid.UUID]) -> dict[uuid.UUID, Groups]:
    """Return the current groups of the given connections."""
    held = Membership.objects.to_leave().filter(connection=OuterRef("pk")).order_by("group")
    rows = Connection.objects.filter(pk__in=connections).values_list(
        "pk",
        *(Subquery(held.values("group")[number : number + 1]) for number in range(NAMED)),
        CountUpTo(held.values("group")[:COUNTED]),
    )
    return {pk: Groups(tuple(filter(None, names)), count) for pk, *names, count in rows}
