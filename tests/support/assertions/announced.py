"""Compare the signals that the programs of a site received with its records."""

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.programs.site import Site

#: A process may have closed a record this many seconds before its SIGKILL without announcing it.
BEFORE_A_KILL = 2.0


@dataclass(frozen=True, slots=True)
class Announced:
    """The result of a comparison."""

    opened: int
    closed: int
    cut_off: int
    """Records that a process closed just before it was killed, and so did not announce."""


def signals_equal_records(site: Site, log: Path, kills: Sequence[float]) -> Announced:
    """Check that each closed record was announced once, with its reason.

    Args:
        site: The site; no connection is open and no record is being closed.
        log: The file that the application `signals_log` wrote.
        kills: The times at which processes were killed, as seconds since 1970.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    opened = Counter(id for kind, id, _ in lines if kind == "opened")
    closed = {(id, reason): 0 for kind, id, reason in lines if kind == "closed"}
    for kind, id, reason in lines:
        if kind == "closed":
            closed[id, reason] += 1
    rows = site.database.query(
        "SELECT id, close_reason, closed_at FROM realtime_connection WHERE closed_at IS NOT NULL"
    )
    records = {(str(uuid.UUID(str(row["id"]))), row["close_reason"]): _time(row["closed_at"]) for row in rows}
    assert [each for each, count in closed.items() if count > 1] == []
    assert [id for id, count in opened.items() if count > 1] == []
    assert closed.keys() - records.keys() == set()
    missing = {each: records[each] for each in records.keys() - closed.keys()}
    unexplained = {
        each: at for each, at in missing.items() if not any(0 <= kill - at <= BEFORE_A_KILL for kill in kills)
    }
    assert unexplained == {}
    # Only a process that died between the commit of the record and the signal announced no opening.
    assert [each for each in closed if each[0] not in opened and each[1] != "server_lost"] == []
    # Each opening has its end, announced or cut off.
    assert opened.keys() - {id for id, _ in records} == set()
    return Announced(opened=opened.total(), closed=sum(closed.values()), cut_off=len(missing))


def _time(value: Any) -> float:
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
