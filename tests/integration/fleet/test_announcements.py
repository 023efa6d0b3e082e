"""`connection_closed` is sent once for each record that a reaper closed; slow receivers delay no round."""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import OperationalError

from realtime import signals
from realtime.closing import CloseReason
from realtime.fleet import announcements, sweep
from realtime.fleet.announcements import Announcements
from realtime.fleet.explain import Explainer
from realtime.fleet.rounds import Reaper
from realtime.models import Connection
from realtime.records import Opening, connection_rows, process_rows
from realtime.records.process_rows import LostProcess
from realtime.serving import lifecycle
from tests.support.doubles import rows

pytestmark = pytest.mark.usefixtures("memory_layer")

Connect = Callable[[Callable[..., Any]], None]


@pytest.fixture
def receives() -> Iterator[Connect]:
    """`receives(function)` connects a receiver of `connection_closed` for the length of a test."""
    connected = []

    def connect(receiver: Callable[..., Any]) -> None:
        signals.connection_closed.connect(receiver)
        connected.append(receiver)

    yield connect
    for each in connected:
        signals.connection_closed.disconnect(each)


class Told:
    """An asynchronous receiver and a synchronous one, which note what they are told."""

    def __init__(self) -> None:
        self.sync: list[tuple[Opening, CloseReason]] = []
        self.asynchronous: list[tuple[Opening, CloseReason]] = []
        self.threads: set[threading.Thread] = set()

    def take(self, connection: Opening, reason: CloseReason, **_: Any) -> None:
        self.sync.append((connection, reason))
        self.threads.add(threading.current_thread())
        assert Connection.objects.get(pk=connection.id).close_reason == reason.value

    async def atake(self, connection: Opening, reason: CloseReason, **_: Any) -> None:
        self.asynchronous.append((connection, reason))


async def lost(count: int) -> tuple[LostProcess, list[uuid.UUID]]:
    """Record a lost process with this number of connections."""
    channel = await get_channel_layer().new_channel()
    process = await database_sync_to_async(rows.a_process)(channel_name=channel)
    ids = await database_sync_to_async(rows.open_connections)(process, count)
    (gone,) = await database_sync_to_async(rows.make_lost)(process)
    return gone, ids


def a_reaper() -> Reaper:
    return Reaper(interval=0.2, timeout=0.1, misses_allowed=0)


async def run(*reapers: Reaper, rounds: int) -> None:
    async def one(reaper: Reaper) -> None:
        for _ in range(rounds):
            await reaper.round()
            await reaper.until_next()
        await reaper.close()

    await asyncio.gather(*(one(reaper) for reaper in reapers))


async def test_of_three_reapers_one_announces_each_ending(receives: Connect) -> None:
    told = Told()
    receives(told.take)
    receives(told.atake)
    gone, ids = await lost(300)
    await run(a_reaper(), a_reaper(), a_reaper(), rounds=2)
    for each in (told.sync, told.asynchronous):
        assert Counter(opening.id for opening, _ in each) == dict.fromkeys(ids, 1)
        assert {reason for _, reason in each} == {CloseReason.SERVER_LOST}
    expected = rows.an_opening(gone.id, id=ids[0])
    assert expected in [opening for opening, _ in told.sync]


async def test_a_record_that_its_process_closed_is_not_announced_again(receives: Connect) -> None:
    told = Told()
    receives(told.atake)
    _, ids = await lost(3)
    await database_sync_to_async(connection_rows.close_connections)(rows.closings(ids[:1]), uuid.uuid4())
    await run(a_reaper(), rounds=1)
    assert {opening.id for opening, _ in told.asynchronous} == set(ids[1:])


async def test_thousands_of_endings_stop_no_round(receives: Connect) -> None:
    told: list[uuid.UUID] = []

    async def slow(connection: Opening, **_: Any) -> None:
        await asyncio.sleep(0.01)
        told.append(connection.id)

    receives(slow)
    _, ids = await lost(5000)
    reaper = a_reaper()
    report = await reaper.round()
    assert report is not None
    assert report.reaped == 5000
    assert len(told) < 5000, "the round waited for the receivers"
    await reaper.close()
    assert Counter(told) == dict.fromkeys(ids, 1)


async def test_a_sync_receiver_that_hangs_stops_no_round(
    receives: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signals, "RECEIVERS_TIMEOUT", 0.05)
    goes_on, told = threading.Event(), Told()

    def hangs(**_: Any) -> None:
        assert goes_on.wait(10)

    receives(hangs)
    receives(told.atake)
    _, ids = await lost(3)
    reaper = a_reaper()
    try:
        async with asyncio.timeout(5):
            assert await reaper.round()
            await reaper.until_next()
            assert await reaper.round(), "the reaper's queries wait for the receiver"
    finally:
        goes_on.set()
        await reaper.close()
    assert {opening.id for opening, _ in told.asynchronous} <= set(ids)
    assert caplog.text.count("took more than 0.05 s") == 1
    assert "too slow for 3 of the events" in caplog.text


async def test_sync_receivers_of_a_reaper_run_on_their_own_thread(receives: Connect) -> None:
    told = Told()
    receives(told.take)
    await lost(3)
    await run(a_reaper(), rounds=1)
    shared = await sync_to_async(threading.current_thread)()
    assert len(told.threads) == 1
    assert told.threads.isdisjoint({shared, threading.main_thread()})
    assert not any(thread.is_alive() for thread in told.threads)


async def test_a_receiver_that_fails_is_logged_once_for_each_ending(
    receives: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    def broken(**_: Any) -> None:
        raise ValueError("a receiver's own fault")

    receives(broken)
    receives(told.atake)
    await lost(40)
    await run(a_reaper(), rounds=1)
    assert len(told.asynchronous) == 40
    assert caplog.text.count("Traceback") == 40


async def test_a_sweep_closes_no_more_than_receivers_can_take(
    receives: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "MAX_WAITING", 10)
    goes_on, told = asyncio.Event(), Told()

    async def waits(**_: Any) -> None:
        await goes_on.wait()

    receives(waits)
    receives(told.atake)
    gone, ids = await lost(1250)
    waiting = Announcements(own_thread=False)
    for expected in (500, 0):
        swept = await sweep.sweep([gone], database, lambda: False, waiting, keep_closed=None)
        assert swept.reaped == expected
    goes_on.set()
    await waiting.finish()
    for expected in (500, 250):
        swept = await sweep.sweep([gone], database, lambda: False, waiting, keep_closed=None)
        assert swept.reaped == expected
        await waiting.finish()
    assert Counter(opening.id for opening, _ in told.asynchronous) == dict.fromkeys(ids, 1)


async def database(call: Any, *arguments: object) -> Any:
    return await database_sync_to_async(call)(*arguments)


async def test_an_ending_is_announced_if_the_answer_to_commit_is_lost(
    receives: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, close = Told(), connection_rows.close_lost_records
    receives(told.atake)
    _, ids = await lost(3)
    lose_it = [True]

    def close_and_lose_the_answer(process: uuid.UUID, stamp: uuid.UUID) -> list[Opening]:
        closed = close(process, stamp)
        if lose_it.pop():
            lose_it.append(False)
            raise OperationalError("the server closed the connection unexpectedly")
        lose_it.append(False)
        return closed

    monkeypatch.setattr(connection_rows, "close_lost_records", close_and_lose_the_answer)
    await run(a_reaper(), rounds=1)
    assert Counter(opening.id for opening, _ in told.asynchronous) == dict.fromkeys(ids, 1)


async def test_a_reaper_that_stops_says_how_many_endings_were_not_told(
    receives: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("realtime.fleet.rounds.STOP_TIMEOUT", 0.1)
    monkeypatch.setattr(signals, "RECEIVERS_TIMEOUT", 1.0)
    began = time.monotonic()

    async def hangs(**_: Any) -> None:
        await asyncio.Event().wait()

    receives(hangs)
    await lost(70)
    reaper = a_reaper()
    await reaper.round()
    reaper.stop()
    await reaper.close()
    assert time.monotonic() - began < 5
    assert "they are not told of 20 events" in caplog.text


async def test_a_record_that_explain_closed_is_announced(receives: Connect) -> None:
    told = Told()
    receives(told.atake)
    home = await lifecycle.hub()
    ids = await database_sync_to_async(rows.open_connections)(home.process, 2)
    explainer = Explainer(timeout=5.0, look_again_after=0.05)
    await explainer.repair(await explainer.look())
    await explainer.close()
    await lifecycle.stop()
    assert Counter(opening.id for opening, _ in told.asynchronous) == dict.fromkeys(ids, 1)


async def test_a_process_that_starts_announces_what_it_swept(
    receives: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    receives(told.take)
    receives(told.atake)
    gone, ids = await lost(3)
    monkeypatch.setattr(process_rows, "neighbours_to_sweep", lambda *_: [gone])
    await sweep.sweep_predecessors()
    assert {opening.id for opening, _ in told.asynchronous} == set(ids)
    assert {opening.id for opening, _ in told.sync} == set(ids)
