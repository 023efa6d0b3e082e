"""Clients that come and go, written as the ledger writes them, without a ledger."""

import uuid
from collections.abc import Iterable
from datetime import timedelta

from django.db.models import F

from realtime.closing import CloseReason
from realtime.models import PresentUser
from realtime.records.batch import Written, write_batch
from realtime.records.entries import Closed, Closing, Join, Place, Stay
from realtime.records.write_queue import Kind, Write
from tests.support.doubles.rows import an_opening


def opening(process: uuid.UUID, user: str, **changes: object) -> Write:
    row = an_opening(process, user_id=user, **changes)
    return Write(Kind.OPEN, (row,), (row.id,))


def joining(process: uuid.UUID, id: uuid.UUID, user: str, group: str = "g") -> Write:
    return Write(Kind.JOIN, (Join(id, process, group, user),), (id,))


def leaving(process: uuid.UUID, id: uuid.UUID, user: str, group: str = "g") -> Write:
    return Write(Kind.LEAVE, (Join(id, process, group, user),), (id,))


def closing(id: uuid.UUID, reason: CloseReason = CloseReason.CLIENT_CLOSED) -> Write:
    return Write(Kind.CLOSE, (Closing(id, reason, None),), (id,))


def write(*writes: Write) -> Written:
    """Write a batch that must succeed."""
    written = write_batch(writes)
    for result in written.results:
        if isinstance(result, BaseException):
            raise result
    return written


def visit(process: uuid.UUID, user: str, *groups: str) -> uuid.UUID:
    """Open a connection of a user that joins these groups, in one batch."""
    opened = opening(process, user)
    (id,) = opened.connections
    write(opened, *(joining(process, id, user, group) for group in groups))  # type: ignore[arg-type]
    return id  # type: ignore[return-value]


def end(id: uuid.UUID, reason: CloseReason = CloseReason.CLIENT_CLOSED) -> Closed:
    """Close a record."""
    (closed,) = write(closing(id, reason)).results
    assert isinstance(closed, Closed)
    return closed


def began(written: Written) -> set[Place]:
    return places(written.changes.began) if written.changes is not None else set()


def places(stays: Iterable[Stay]) -> set[Place]:
    """Return the places of stays, which must be different."""
    found = [Place(stay.group, stay.user_id) for stay in stays]
    assert len(found) == len(set(found))
    return set(found)


def let_pass(seconds: float) -> None:
    """Make everything that happened to the users of groups happen earlier."""
    PresentUser.objects.update(
        **{name: F(name) - timedelta(seconds=seconds) for name in ("gone_at", "dormant_since", "left_at")}
    )
