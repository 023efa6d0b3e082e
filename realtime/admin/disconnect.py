"""Disconnect: what somebody with the right to do so asks the processes to do.

Nothing is written here. The process that holds a connection evicts it, and closes its record, as after any
other ending; what a lost process held is the business of rounds.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db.models import QuerySet

from realtime import publishing
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.models import Process

AT_ONCE = 5_000
"""How many connections one action looks at; of more, it takes the first of the list, and says so."""
PER_MESSAGE = 1_000
"""How many ids one message to a process names, about 40 KB."""


class Row(NamedTuple):
    """What the plan has to know of an open connection."""

    id: uuid.UUID
    user_id: str
    path: str


@dataclass(slots=True)
class Plan:
    """Who would be asked about which open connections, and who cannot be."""

    living: dict[Process, list[Row]] = field(default_factory=dict)
    lost: dict[Process, list[Row]] = field(default_factory=dict)
    """Connections whose process has ended: there is nobody to ask."""
    closed: int = 0
    """Already closed."""
    cut: bool = False
    """There were more than `AT_ONCE`."""

    @property
    def asked(self) -> int:
        return sum(map(len, self.living.values()))


@dataclass(frozen=True, slots=True)
class Outcome:
    asked: dict[Process, list[Row]]
    unreachable: dict[Process, LayerUnavailable]


def plan(connections: QuerySet[Any]) -> Plan:
    """The plan for up to `AT_ONCE` of these connections."""
    made = Plan()
    rows = connections.values_list("process", "closed_at", "id", "user_id", "path")[:AT_ONCE]
    held: dict[uuid.UUID, list[Row]] = {}
    for process_id, closed_at, *row in rows:
        if closed_at is None:
            held.setdefault(process_id, []).append(Row(*row))
        else:
            made.closed += 1
    made.cut = made.closed + sum(map(len, held.values())) == AT_ONCE
    for process in Process.objects.filter(pk__in=held).order_by("host", "pid"):
        side = made.living if process.stopped_at is None else made.lost
        side[process] = held[process.pk]
    return made


def carry_out(made: Plan) -> Outcome:
    """Ask every living process at once."""
    waiting: dict[str, list[str]] = {}
    for process, rows in made.living.items():
        waiting.setdefault(process.channel_name, []).extend(str(row.id) for row in rows)
    failed: dict[str, LayerUnavailable] = {}
    while waiting:
        batch = {address: ids[:PER_MESSAGE] for address, ids in waiting.items()}
        failed |= publishing.disconnect(batch, CloseReason.KICKED.value)
        # Who could not be asked is not asked again: each time may take as long as a call to Redis may.
        waiting = {
            address: ids[PER_MESSAGE:]
            for address, ids in waiting.items()
            if ids[PER_MESSAGE:] and address not in failed
        }
    asked, unreachable = {}, {}
    for process, rows in made.living.items():
        if process.channel_name in failed:
            unreachable[process] = failed[process.channel_name]
        else:
            asked[process] = rows
    return Outcome(asked, unreachable)
