"""Rows for tests that begin in the middle: a running process, its open connections, their memberships."""

import uuid

from realtime.closing import CloseReason
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Closing, Join, Opening

USER_KEY = "2000000007"
"""The user of an opening: a key as users have it, above the numbers that other tests use up."""


def a_process(
    *,
    channel_name: str = "specific.0123456789abcdef",
    host: str = "web-1",
    pid: int = 4711,
    look_every: float = 0.0,
) -> uuid.UUID:
    return process_rows.start_process(channel_name, host, pid, look_every=look_every)


def an_opening(process_id: uuid.UUID, **changes: object) -> Opening:
    values = {
        "id": uuid.uuid4(),
        "process_id": process_id,
        "user_id": USER_KEY,
        "path": "/ws/",
        "remote_address": "192.0.2.1",
        "user_agent": "Mozilla/5.0",
        "subprotocol": "realtime.v1",
    }
    return Opening(**(values | changes))  # type: ignore[arg-type]


def open_connections(process_id: uuid.UUID, count: int) -> list[uuid.UUID]:
    openings = [an_opening(process_id) for _ in range(count)]
    connection_rows.open_connections(openings)
    return [opening.id for opening in openings]


def closings(ids: list[uuid.UUID], reason: CloseReason = CloseReason.PING_TIMEOUT) -> list[Closing]:
    return [Closing(id, reason, reason.code) for id in ids]


def joins(process_id: uuid.UUID, ids: list[uuid.UUID], *groups: str) -> list[Join]:
    return [Join(id, process_id, group) for id in ids for group in groups]


def make_lost(*process_ids: uuid.UUID, number: int = 1) -> list[process_rows.LostProcess]:
    """Declare processes lost by a round that they did not answer."""
    return process_rows.judge(number, process_ids, misses_allowed=0)
