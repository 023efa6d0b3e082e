"""Each way to end a connection, at each moment of its life: one eviction, and nothing of it is left.

A case is a moment and a way out. It holds a connection at the moment (`MOMENTS`: functions with `@moment`,
which names the ways that are possible there), lets the way end it (`WAYS`, with the reason that it must
have), checks what must be true immediately, releases what was held, and checks that nothing is left.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import OperationalError

from realtime import conf, metrics, signals
from realtime.closing import CloseReason
from realtime.fleet.rounds import Reaper
from realtime.hub.heartbeat import Heartbeat
from realtime.layers import groups, messages
from realtime.liveness.connection import Liveness
from realtime.models import Connection as Record
from realtime.records import batch, connection_rows, process_rows
from realtime.records.ledger import Ledger
from realtime.records.retry import Retry
from realtime.records.write_queue import Kind
from realtime.serving import lifecycle
from realtime.serving.inbox import Inbox
from realtime.transports.asgi import Event
from realtime.wire import frames
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of
from tests.support.doubles.life import GROUPS, Hold, Life

# Among the acceptance tests for the seconds that its cases take.
pytestmark = [pytest.mark.usefixtures("site", "impatient"), pytest.mark.acceptance]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limits."""
    monkeypatch.setattr(groups, "CALL_TIMEOUT", 0.1)
    monkeypatch.setattr(
        "realtime.hub.hub.make_ledger", lambda: Ledger(open_timeout=0.4, retry=Retry(longest=0.03))
    )
    monkeypatch.setattr(lifecycle, "CLEANUP_TIMEOUT", 0.25)
    monkeypatch.setattr("realtime.hub.hub.Heartbeat", functools.partial(Heartbeat, tick=0.02))


# -- moments: each holds the connection there for the length of its block

Moment = Callable[[Life], AbstractAsyncContextManager[None]]
MOMENTS: dict[str, tuple[Moment, str]] = {}

#: The ways to end a connection that only its consumer knows, that is being recorded, that is in the hub, that
#: is accepted.
UNKNOWN = "disconnected bug cancelled_again_and_again slow"
BEING_RECORDED = f"{UNKNOWN} hub_ends"
KNOWN = f"{BEING_RECORDED} kicked"
ACCEPTED = f"{KNOWN} send_fails pong_missing"


def moment(ways: str) -> Callable[[Any], Any]:
    def register(function: Callable[[Life], AsyncIterator[None]]) -> Any:
        MOMENTS[function.__name__] = (asynccontextmanager(function), ways)
        return function

    return register


@moment(UNKNOWN)
async def before_admit(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest()
    yield


@moment(UNKNOWN)
async def the_hub_being_started(life: Life) -> AsyncIterator[None]:
    hold = Hold()
    life.patch.setattr(process_rows, "start_process", hold.in_thread(process_rows.start_process))
    life.begin(life.admit)
    await hold.until_reached()
    yield
    hold.released.set()


@moment(BEING_RECORDED)
async def its_record_being_written(life: Life) -> AsyncIterator[None]:
    async with _held(life, connection_rows, "open_connections", life.admit):
        yield


@moment(BEING_RECORDED)
async def its_record_committed_and_the_answer_lost(life: Life) -> AsyncIterator[None]:
    lost = OperationalError("the server closed the connection unexpectedly")
    life.home = await lifecycle.hub()
    hold, transact = Hold(), batch._transact
    hold.error = lost
    held = hold.in_thread(transact, after=True)
    life.patch.setattr(
        batch,
        "_transact",
        lambda writes, unsure: (held if writes[0].kind is Kind.OPEN else transact)(writes, unsure),
    )
    life.begin(life.admit)
    await hold.until_reached()
    yield
    hold.released.set()


@moment(BEING_RECORDED)
async def its_record_waiting_behind_a_write_that_hangs(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    hold = Hold()
    life.patch.setattr(
        connection_rows, "touch_connections", hold.in_thread(connection_rows.touch_connections)
    )
    life.others.append(asyncio.create_task(life.home.ledger.call(connection_rows.touch_connections, ())))
    await hold.until_reached()
    life.begin(life.admit)
    await eventually_async(lambda: life.home.admitting, within=5, every=0.005)
    yield
    hold.released.set()


@moment(KNOWN)
async def being_announced(life: Life) -> AsyncIterator[None]:
    hold = Hold()

    async def nothing(**_: Any) -> None: ...

    receiver = hold.on_loop(nothing)
    signals.connection_opened.connect(receiver)
    life.home = await lifecycle.hub()
    life.begin(life.admit)
    await hold.until_reached()
    yield
    hold.released.set()
    assert life.connection.admission is not None
    await asyncio.wait([life.connection.admission])
    assert not life.closed_was_told, "the end was announced before the opening"
    signals.connection_opened.disconnect(receiver)


@moment(KNOWN)
async def after_commit(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.admit)
    yield


@moment(ACCEPTED)
async def its_membership_being_written(life: Life) -> AsyncIterator[None]:
    async with _held(life, connection_rows, "open_memberships", life.open, life.join("g")):
        yield


@moment(ACCEPTED)
async def between_commit_and_group_add(life: Life) -> AsyncIterator[None]:
    async with _held(life, get_channel_layer(), "group_add", life.open, life.join("g")):
        assert await life.to_leave() == {"g"}
        yield


@moment(ACCEPTED)
async def a_group_add_that_was_done_and_fails(life: Life) -> AsyncIterator[None]:
    layer, error = get_channel_layer(), OSError("connection lost")
    work = (life.open, life.join("g"))
    async with _held(life, layer, "group_add", *work, after=True, error=error):
        yield


@moment(ACCEPTED)
async def a_group_add_that_was_done_and_never_returns(life: Life) -> AsyncIterator[None]:
    async with _held(life, get_channel_layer(), "group_add", life.open, life.join("g"), after=True):
        yield
        await eventually_async(lambda: not life.home.memberships._locks, within=5)


@moment(ACCEPTED)
async def a_second_group_waiting_for_the_first(life: Life) -> AsyncIterator[None]:
    async with _held(life, get_channel_layer(), "group_add", life.open, life.join("g", "h")):
        yield


@moment(ACCEPTED)
async def a_second_group_waiting_for_the_row_of_the_first(life: Life) -> AsyncIterator[None]:
    async with _held(life, connection_rows, "open_memberships", life.open, life.join("g", "h")):
        yield


@moment(ACCEPTED)
async def a_member_of_two_groups(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    assert life.in_layer == set(GROUPS)
    yield


@moment(ACCEPTED)
async def evicted_already(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    hold = Hold()
    life.patch.setattr(get_channel_layer(), "group_discard", hold.on_loop(get_channel_layer().group_discard))
    lifecycle.evict(life.connection, CloseReason.SUPERSEDED)
    await hold.until_reached()
    yield
    hold.released.set()


@moment(ACCEPTED)
async def its_record_deleted(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    await Record.objects.filter(pk=life.connection.id).adelete()
    yield


@moment(ACCEPTED)
async def the_layer_hung(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    hold, layer = Hold(), get_channel_layer()
    discard = layer.group_discard
    life.patch.setattr(layer, "group_discard", hold.on_loop(discard))
    yield
    # The record is closed, and exactly what the layer did not do is on the to-do list.
    await _eviction(life)
    record = await life.row()
    assert record is not None
    assert record.closed_at is not None
    assert await life.to_leave() == set(GROUPS)
    for other in life.others:
        await asyncio.wait_for(other, 5)
    leftovers = await database_sync_to_async(connection_rows.leftovers)()
    ended = await database_sync_to_async(process_rows.lost_processes_to_sweep)()
    assert (len(leftovers), len(ended)) in ((len(GROUPS), 0), (0, 1))
    assert life.in_layer == set(GROUPS)
    life.patch.setattr(layer, "group_discard", discard)
    await _one_round()


@moment(ACCEPTED)
async def the_database_hung(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    hold = Hold()
    writes = (
        (connection_rows, "close_connections"),
        (connection_rows, "mark_memberships_left"),
        (process_rows, "stop_process"),
    )
    for owner, name in writes:
        life.patch.setattr(owner, name, hold.in_thread(getattr(owner, name)))
    yield
    # The groups are still left in the layer, and the rows say what must be written.
    await _eviction(life)
    assert life.in_layer == set()
    record = await life.row()
    assert record is not None
    assert record.closed_at is None
    assert await life.to_leave() == set(GROUPS)
    hold.released.set()


@moment(ACCEPTED)
async def the_database_refusing(life: Life) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    await life.at_rest(life.open, life.join(*GROUPS))
    refusals = {"close_connections": 2, "mark_memberships_left": 1}

    def refusing(name: str, write: Callable[..., Any], *arguments: Any) -> Any:
        if refusals[name]:
            refusals[name] -= 1
            raise OperationalError("database is locked")
        return write(*arguments)

    for name in refusals:
        life.patch.setattr(
            connection_rows, name, functools.partial(refusing, name, getattr(connection_rows, name))
        )
    yield


@asynccontextmanager
async def _held(
    life: Life,
    owner: Any,
    name: str,
    *work: Callable[[], Awaitable[None]],
    after: bool = False,
    error: Exception | None = None,
) -> AsyncIterator[None]:
    life.home = await lifecycle.hub()
    hold, call = Hold(), getattr(owner, name)
    hold.error = error
    wrap = hold.in_thread if owner is connection_rows else hold.on_loop
    life.patch.setattr(owner, name, wrap(call, after=after))
    life.begin(*work)
    await hold.until_reached()
    yield
    hold.released.set()


async def _eviction(life: Life) -> None:
    assert life.connection.eviction is not None
    await asyncio.wait_for(asyncio.shield(life.connection.eviction), 5)


async def _one_round() -> None:
    reaper = Reaper(interval=0.1, timeout=0.05, misses_allowed=1)
    assert await reaper.round() is not None
    await reaper.close()


# -- ways out

Way = Callable[[Life], Awaitable[None]]


async def send_fails(life: Life) -> None:
    life.broken = True
    lifecycle.write(life.connection, frames.Pong(n=1))


async def slow(life: Life) -> None:
    life.suspended = True
    # The first message is under way, and does not count as waiting.
    for _ in range(2):
        lifecycle.send(life.connection, {"type": "websocket.send", "text": "x" * 1001})


async def pong_missing(life: Life) -> None:
    now = life.home.heartbeat.now()
    liveness = Liveness(conf.get().limits(), now - 60, spread=0)
    liveness.pinged(now - 50)
    life.connection.liveness = liveness
    life.home.heartbeat._schedule.set(life.connection, now)
    await eventually_async(lambda: life.connection.gone, within=5, every=0.01)
    await eventually_async(lambda: len(life.home.heartbeat._schedule) == 0, within=5, every=0.01)


async def disconnected(life: Life) -> None:
    async def receive() -> Event:
        return {"type": "websocket.disconnect", "code": 1006}

    await Inbox(life.connection, conf.get()).read(receive)


async def bug(life: Life) -> None:
    lifecycle.evict(life.connection, CloseReason.HANDLER_ERROR)


async def cancelled_again_and_again(life: Life) -> None:
    """Cancel the consumer until it has ended, as Daphne does every second."""

    async def cancel() -> None:
        while not life.consumer.done():
            life.consumer.cancel()
            await asyncio.sleep(0.01)

    life.others.append(asyncio.create_task(cancel()))
    await eventually_async(lambda: life.connection.gone, within=5, every=0.005)


async def kicked(life: Life) -> None:
    kick = messages.Kick([life.connection.id], [], CloseReason.KICKED.value)
    await groups.tell(life.home.channel, kick)
    await eventually_async(lambda: life.connection.gone, within=5, every=0.005)


async def hub_ends(life: Life) -> None:
    life.others.append(asyncio.create_task(lifecycle.stop()))
    await eventually_async(lambda: life.connection.gone, within=5, every=0.005)


WAYS: dict[str, tuple[Way, CloseReason]] = {
    "send_fails": (send_fails, CloseReason.SEND_FAILED),
    "slow": (slow, CloseReason.SLOW_CONSUMER),
    "pong_missing": (pong_missing, CloseReason.PING_TIMEOUT),
    "disconnected": (disconnected, CloseReason.CLIENT_LOST),
    "bug": (bug, CloseReason.HANDLER_ERROR),
    "cancelled_again_and_again": (cancelled_again_and_again, CloseReason.CANCELLED),
    "kicked": (kicked, CloseReason.KICKED),
    "hub_ends": (hub_ends, CloseReason.SERVER_RESTART),
}

CASES = [pytest.param(at, way, id=f"{at}-{way}") for at, (_, ways) in MOMENTS.items() for way in ways.split()]

#: Moments without a record: it is not written yet, or it was deleted.
NO_RECORD = {"before_admit", "the_hub_being_started", "its_record_deleted"}


class Announced:
    """The signals that an application receives."""

    def __init__(self) -> None:
        self.life: Life
        self.opened = 0
        self.closed: list[CloseReason] = []

    async def on_opened(self, **_: Any) -> None:
        self.opened += 1

    async def on_closed(self, reason: CloseReason, **_: Any) -> None:
        self.closed.append(reason)
        self.life.closed_was_told = True


@pytest_asyncio.fixture
async def announced() -> AsyncIterator[Announced]:
    seen = Announced()
    signals.connection_opened.connect(seen.on_opened)
    signals.connection_closed.connect(seen.on_closed)
    yield seen
    signals.connection_opened.disconnect(seen.on_opened)
    signals.connection_closed.disconnect(seen.on_closed)


def _counted() -> dict[str, float]:
    return {reason.value: value_of(metrics.closed, reason=reason.value) for reason in CloseReason}


@pytest.mark.parametrize(("at", "way"), CASES)
async def test_each_way_out_at_each_moment_leaves_nothing(
    at: str, way: str, monkeypatch: pytest.MonkeyPatch, announced: Announced, caplog: pytest.LogCaptureFixture
) -> None:
    hold, _ = MOMENTS[at]
    end, reason = WAYS[way]
    if at == "evicted_already":
        reason = CloseReason.SUPERSEDED
    counted, gauge = _counted(), value_of(metrics.connections)
    life = announced.life = Life(monkeypatch)

    async with hold(life):
        await end(life)
        assert life.connection.reason is reason
        if at != "the_hub_being_started":
            assert life.is_out_of_the_hub()
    await asyncio.wait([life.consumer, *life.others], timeout=10)
    await _eviction(life)
    if at == "the_hub_being_started":
        life.home = await lifecycle.hub()

    await eventually_async(life.has_left_no_trace_in_the_process, within=5, every=0.01)
    async with asyncio.timeout(5):
        while await Record.objects.open().aexists() or await life.to_leave():
            await asyncio.sleep(0.01)
    assert life.in_layer == set()

    record = await life.row()
    if at in NO_RECORD:
        assert record is None
    elif record is not None or at != "its_record_waiting_behind_a_write_that_hangs":
        assert record is not None
        assert (record.close_reason, record.closed_at is None) == (reason.value, False)
    was_recorded = record is not None or at == "its_record_deleted"
    assert announced.closed == ([reason] if was_recorded else [])
    assert announced.opened == len(announced.closed)
    deaths = {label: count - counted[label] for label, count in _counted().items() if count != counted[label]}
    assert deaths == ({} if record is None else {reason.value: 1})
    assert value_of(metrics.connections) == gauge
    closes = [event for event in life.sent if event["type"] == "websocket.close"]
    assert len(closes) == (0 if reason in (CloseReason.CLIENT_LOST, CloseReason.SEND_FAILED) else 1)
    assert "Traceback" not in caplog.text
    assert asyncio.all_tasks() <= {asyncio.current_task(), *life.home._tasks, life.home.mailbox.reading}
