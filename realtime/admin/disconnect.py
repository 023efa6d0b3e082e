"""Plan a disconnect and ask the processes to carry it out.

Nothing is written here. The process that holds a connection evicts it and closes its record, as at any other
ending. Rounds close the records of lost processes.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db.models import QuerySet

from realtime import revoking
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.models import Process

AT_ONCE = 5_000
"""The number of connections that one action disconnects. If more are selected, it takes the first ones of
the list and says so.
"""
PER_MESSAGE = 1_000
"""The number of ids in one message to a process, about 40 KB."""


class Row(NamedTuple):
    """The columns of an open connection that the plan needs."""

    id: uuid.UUID
    user_id: str
    path: str


@dataclass(slots=True)
class Plan:
    """The selected connections, by the processes that hold them."""

    living: dict[Process, list[Row]] = field(default_factory=dict)
    """Open connections of running processes, which can be asked."""
    lost: dict[Process, list[Row]] = field(default_factory=dict)
    """Open connections of ended processes, which cannot be asked."""
    closed: int = 0
    """The number of connections that are closed already."""
    cut: bool = False
    """True if more connections than the limit of the plan may be selected."""

    @property
    def asked(self) -> int:
        """The number of connections that the processes will be asked to disconnect."""
        return sum(map(len, self.living.values()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The processes that were asked, and the processes that could not be asked."""

    asked: dict[Process, list[Row]]
    unreachable: dict[Process, LayerUnavailable]


def plan(connections: QuerySet[Any], limit: int = AT_ONCE) -> Plan:
    """Sort connections by the processes that hold them.

    Args:
        connections: The selected connections.
        limit: The plan takes this many of them, the first ones.
    """
    made = Plan()
    rows = connections.values_list("process", "closed_at", "id", "user_id", "path")[:limit]
    held: dict[uuid.UUID, list[Row]] = {}
    for process_id, closed_at, *row in rows:
        if closed_at is None:
            held.setdefault(process_id, []).append(Row(*row))
        else:
            made.closed += 1
    made.cut = made.closed + sum(map(len, held.values())) == limit
    for process in Process.objects.filter(pk__in=held).order_by("host", "pid"):
        side = made.living if process.stopped_at is None else made.lost
        side[process] = held[process.pk]
    return made


def carry_out(made: Plan, per_message: int = PER_MESSAGE) -> Outcome:
    """Ask all running processes of a plan side by side.

    Args:
        made: The plan.
        per_message: The number of ids in one message to a process.

    Returns:
        The processes that were asked, and the processes that could not be asked, each with its error.
    """
    waiting: dict[str, list[uuid.UUID]] = {}
    for process, rows in made.living.items():
        waiting.setdefault(process.channel_name, []).extend(row.id for row in rows)
    failed: dict[str, LayerUnavailable] = {}
    while waiting:
        batch = {address: ids[:per_message] for address, ids in waiting.items()}
        failed |= revoking.kick(batch, CloseReason.KICKED)
        # A process that could not be asked is not asked again, because each call may take its whole timeout.
        waiting = {
            address: ids[per_message:]
            for address, ids in waiting.items()
            if ids[per_message:] and address not in failed
        }
    asked, unreachable = {}, {}
    for process, rows in made.living.items():
        if process.channel_name in failed:
            unreachable[process] = failed[process.channel_name]
        else:
            asked[process] = rows
    return Outcome(asked, unreachable)
