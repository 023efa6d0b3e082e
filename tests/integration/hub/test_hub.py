"""The hub and events that are not messages: rounds, kicks, and events that make no sense."""

import asyncio
import logging
import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer

from realtime import metrics, publishing
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.fleet.mailbox import Mailbox
from realtime.hub import fanout, hub
from realtime.layers import groups, messages
from realtime.models import Process
from realtime.records import process_rows
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of
from tests.support.doubles.peer import Peer

pytestmark = pytest.mark.usefixtures("site")


async def answers_to(home: hub.Hub, number: int, interval: float = 0.0) -> messages.Control:
    mailbox = await Mailbox.open()
    answers = asyncio.Queue[messages.Control]()
    mailbox.listen(answers.put_nowait)
    await groups.tell(home.channel, messages.Ask(number, mailbox.address, interval))
    async with asyncio.timeout(5):
        answer = await answers.get()
    await mailbox.close()
    return answer


async def test_a_round_is_answered_by_message_and_in_the_database() -> None:
    home = await lifecycle.hub()
    answer = await answers_to(home, 7)
    assert answer == messages.Answer(7, home.process)
    async with asyncio.timeout(5):
        while (await Process.objects.aget(pk=home.process)).last_round != 7:
            await asyncio.sleep(0.01)


async def test_round_zero_is_answered_and_writes_nothing() -> None:
    home = await lifecycle.hub()
    assert await answers_to(home, 0) == messages.Answer(0, home.process)
    assert (await Process.objects.aget(pk=home.process)).answered_at is None


async def test_a_process_follows_rounds_that_come_faster() -> None:
    home = await lifecycle.hub()
    assert (await Process.objects.aget(pk=home.process)).look_every == timedelta(seconds=5)
    await answers_to(home, 7, interval=2.0)
    async with asyncio.timeout(5):
        while (await Process.objects.aget(pk=home.process)).look_every != timedelta(seconds=1):
            await asyncio.sleep(0.01)


async def test_a_group_event_without_a_stamp_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    home, before = await lifecycle.hub(), value_of(metrics.unstamped)
    with caplog.at_level(logging.ERROR, logger="realtime.hub"):
        for _ in range(3):
            await get_channel_layer().send(home.channel, {"type": "chat.message"})
        await eventually_async(lambda: value_of(metrics.unstamped) - before == 3, within=5)
    assert [each.name for each in caplog.records].count("realtime.hub") == 1
    assert "did not say which group" in caplog.text


@pytest.mark.parametrize("event", [{"type": messages.MESSAGE}, {"type": messages.ECHO}, {}])
async def test_an_event_that_makes_no_sense_does_not_make_the_hub_deaf(event: dict[str, Any]) -> None:
    home = await lifecycle.hub()
    await get_channel_layer().group_add("g", home.channel)
    await get_channel_layer().group_send("g", event)
    assert isinstance(await answers_to(home, 0), messages.Answer)


async def test_a_mark_of_an_older_version_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    home, before = await lifecycle.hub(), value_of(metrics.unstamped)
    await get_channel_layer().group_add("g", home.channel)
    await get_channel_layer().group_send("g", {"type": messages.MARK, "number": 1, "channel": home.channel})
    assert isinstance(await answers_to(home, 0), messages.Answer)
    assert value_of(metrics.unstamped) == before
    assert "realtime.hub" not in [each.name for each in caplog.records]


async def test_a_hub_with_a_task_that_ended_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = await lifecycle.hub()

    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(old.fanout, "_write_to_all", breaks)
    monkeypatch.setattr(fanout, "_log_unwritten", lambda _: 1 / 0)
    old.memberships.groups["g"] = {object(): None for _ in range(20)}  # type: ignore[misc]
    await publishing.apublish("h", 1)
    old.fanout._waiting.put("g", "1")
    old.fanout._something.set()
    await eventually_async(lambda: old.ending is CloseReason.SERVER_LOST, within=5)
    old.memberships.groups.clear()
    assert (await lifecycle.hub()) is not old
    assert "The task realtime fan-out ended by itself" in caplog.text
    assert "A part of this process has failed" in caplog.text


async def test_a_hub_with_a_cancelled_task_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = await lifecycle.hub()

    async def stray(*_: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(old.heartbeat, "_judge_due", stray)
    monkeypatch.setattr(old.heartbeat._schedule, "due", lambda _: ["somebody"])
    await eventually_async(lambda: old.ending is CloseReason.SERVER_LOST, within=5)
    assert (await lifecycle.hub()) is not old
    assert "The task realtime pings ended by itself" in caplog.text


async def test_a_process_that_does_not_hear_itself_admits_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = get_channel_layer()

    async def lost(*_: Any) -> int:
        return 1

    with monkeypatch.context() as deaf:
        deaf.setattr(layer, "echo", lost)
        deaf.setattr(hub.Hub, "start", partial(hub.Hub.start, hearing_timeout=0.2))
        with pytest.raises(LayerUnavailable, match="does not hear"):
            await lifecycle.hub()
        assert value_of(metrics.deaf, layer="default") == 1
    assert not await Process.objects.aexists()
    await lifecycle.hub()
    assert value_of(metrics.deaf, layer="default") == 0


async def test_a_round_that_was_not_asked_is_answered_in_the_database(
    realtime_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    realtime_settings(ROUND_INTERVAL=0.4, ROUND_TIMEOUT=0.2)
    home = await lifecycle.hub()
    number = await database_sync_to_async(process_rows.claim_round)(0.0)
    async with asyncio.timeout(5):
        while (await Process.objects.aget(pk=home.process)).last_round != number:
            await asyncio.sleep(0.01)


async def test_a_process_keeps_the_pace_of_the_last_reapers_rounds(
    realtime_settings: Any,
) -> None:
    realtime_settings(ROUND_INTERVAL=1.0, ROUND_TIMEOUT=0.5)
    home = await lifecycle.hub()
    row = await Process.objects.aget(pk=home.process)
    assert row.look_every == timedelta(seconds=0.5)
    await database_sync_to_async(process_rows.claim_round)(0.1)
    async with asyncio.timeout(5):
        while (await Process.objects.aget(pk=home.process)).look_every != timedelta(seconds=0.05):
            await asyncio.sleep(0.01)


@pytest.mark.acceptance  # for its seconds
async def test_a_stall_of_the_loop_closes_no_client(caplog: pytest.LogCaptureFixture) -> None:
    home = await lifecycle.hub()
    before = home.heartbeat.now()
    await asyncio.sleep(0.2)
    time.sleep(1.5)  # noqa: ASYNC251 - the fault under test
    await eventually_async(lambda: "The event loop stalled" in caplog.text, within=5)
    assert home.heartbeat.now() - before < 1.3


async def test_a_connection_that_cannot_be_judged_stops_no_other_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = await lifecycle.hub()
    judged: list[str] = []

    class Judged:
        gone = False

        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def liveness(self) -> None:
            judged.append(self.name)
            if self.name == "broken":
                raise ZeroDivisionError("a bug")

        def log_fields(self) -> dict[str, str]:
            return {}

    for name in ("broken", "well"):
        home.heartbeat._schedule.set(Judged(name), home.heartbeat.now())  # type: ignore[arg-type]
    await eventually_async(lambda: judged == ["broken", "well"], within=5)
    assert "could not be judged" in caplog.text


async def test_many_callers_start_the_hub_of_a_loop_once() -> None:
    first, *others = await asyncio.gather(*(lifecycle.hub() for _ in range(10)))
    assert all(other is first for other in others)
    assert await Process.objects.acount() == 1


async def test_a_planned_stop_is_recorded() -> None:
    home = await lifecycle.hub()
    await lifecycle.stop()
    row = await Process.objects.aget(pk=home.process)
    assert row.stopped_at is not None
    assert not row.lost


async def test_connections_that_nothing_pings_are_counted() -> None:
    before = value_of(metrics.unpinged)
    plain, page = await Peer(v1=False).open(), await Peer().open()
    assert value_of(metrics.unpinged) - before == 1
    await lifecycle.evict(page.connection, CloseReason.KICKED)
    assert value_of(metrics.unpinged) - before == 1
    await lifecycle.evict(plain.connection, CloseReason.KICKED)
    assert value_of(metrics.unpinged) == before
