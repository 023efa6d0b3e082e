"""The known events of one connection, in the order of time."""

from dataclasses import dataclass
from datetime import datetime

from realtime.closing import CloseReason
from realtime.models import Connection, Membership


@dataclass(frozen=True, slots=True)
class Entry:
    """One event."""

    at: datetime
    kind: str
    """One of `_ORDER`."""
    text: str
    detail: str = ""


_ORDER = ("opened", "joined", "seen", "left", "doubt", "closed")


def timeline(connection: Connection, memberships: list[Membership]) -> list[Entry]:
    """Return the events of a connection that had these memberships."""
    process = connection.process
    entries = [
        Entry(connection.opened_at, "opened", "Opened", f"{connection.path} on {process}"),
        Entry(connection.last_seen_at, "seen", "Last seen", "the last proof of life; recorded once a minute"),
    ]
    for membership in memberships:
        entries.append(Entry(membership.joined_at, "joined", "Joined", membership.group))
        if membership.left_at is not None:
            entries.append(Entry(membership.left_at, "left", "Left", membership.group))
    if connection.closed_at is not None:
        code = "" if connection.close_code is None else f", code {connection.close_code}"
        why = f"{connection.close_reason}{code}. {reason_text(connection)}"
        entries.append(Entry(connection.closed_at, "closed", "Closed", why))
    elif process.stopped_at is not None:
        how = "was lost" if process.lost else "stopped"
        entries.append(Entry(process.stopped_at, "doubt", "Suspect", f"its process {how}"))
    return sorted(entries, key=lambda entry: (entry.at, _ORDER.index(entry.kind)))


def reason_text(connection: Connection) -> str:
    """Return the sentence for the close reason; empty for a reason that this version does not know."""
    try:
        return CloseReason(connection.close_reason).text
    except ValueError:
        return ""
