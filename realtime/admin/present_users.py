"""The groups and the open connections of the users on one page, in one query at a cost that does not grow
with them.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery
from django.utils.translation import ngettext

from realtime.admin.memberships import COUNTED, NAMED, CountUpTo, Groups
from realtime.admin.wording import device
from realtime.models import Connection, PresentUser
from realtime.records.entries import ONLINE

DEVICES = 5
"""The number of open connections of a user whose devices are named."""


@dataclass(frozen=True, slots=True)
class UserDetails:
    """The groups and the open connections of one user."""

    groups: Groups = field(default_factory=Groups)
    connections: int = 0
    """The number of open connections, at most `COUNTED`."""
    devices: tuple[str, ...] = ()
    """The different devices of the first `DEVICES` open connections."""

    @property
    def number(self) -> str:
        """The number of open connections as text, with a plus sign if there may be more."""
        return f"{self.connections}{'+' if self.connections == COUNTED else ''}"

    @property
    def more_devices(self) -> str:
        """A text for the connections without a device here; empty if there are none."""
        rest = self.connections - DEVICES
        if rest <= 0:
            return ""
        more = f"{rest}{'+' if self.connections == COUNTED else ''} more"
        return f"and {more} {ngettext('connection', 'connections', rest)}"


def details_of(users: Collection[str]) -> dict[str, UserDetails]:
    """Return the groups and the open connections of the given users who have a row."""
    groups = stays(OuterRef("user_id"))
    # In the order of the index that holds only open connections. In the order of time, the index by user
    # would be read past all that closed.
    held = Connection.objects.open().filter(user_id=OuterRef("user_id")).order_by("client_id")
    rows = PresentUser.objects.users().filter(user_id__in=users)
    found = rows.values_list(
        "user_id",
        CountUpTo(groups.values("group")[:COUNTED]),
        CountUpTo(held.order_by().values("pk")[:COUNTED]),
        *(Subquery(groups.values("group")[number : number + 1]) for number in range(NAMED)),
        *(Subquery(held.values("user_agent")[number : number + 1]) for number in range(DEVICES)),
    )
    return {
        user: UserDetails(Groups(tuple(filter(None, texts[:NAMED])), joined), opened, devices(texts[NAMED:]))
        for user, joined, opened, *texts in found
    }


def stays(user_id: Any) -> QuerySet[PresentUser]:
    """Return the rows of a user in groups, in the order of the names of the groups."""
    # "Greater" and not "unequal", because an index finds it.
    return PresentUser.objects.filter(user_id=user_id, group__gt=ONLINE).order_by("group")


def devices(user_agents: Iterable[str | None]) -> tuple[str, ...]:
    """Return the short names of user agents, each once and in their order."""
    return tuple(dict.fromkeys(filter(None, (device(agent) for agent in user_agents if agent))))
