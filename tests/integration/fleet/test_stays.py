"""The ending of stays, and who is told: receivers of signals, and the processes that watch."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError

from realtime import signals
from realtime.fleet import announcements, stays
from realtime.fleet.announcements import Announcements
from realtime.fleet.database import on_shared_thread
from realtime.fleet.mailbox import Mailbox
from realtime.fleet.rounds import Reaper, run_rounds
from realtime.fleet.stays import Stays
from realtime.layers.messages import Control, PresenceChanges
from realtime.models import PresentUser
from realtime.records import presence_rows, process_rows
from realtime.records.entries import ONLINE, Changes, Place, Stay
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.usefixtures("memory_layer")


@pytest.fixture(autouse=True)
def _short_grace(realtime_settings: Any) -> None:
    realtime_settings(PRESENCE_GRACE=0.3)


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []

    async def online(user_id: str, **_: Any) -> None:
        found.append(("online", user_id))

    async def offline(user_id: str, **_: Any) -> None:
        found.append(("offline", user_id))

    signals.user_online.connect(online)
    signals.user_offline.connect(offline)
    yield found
    signals.user_online.disconnect(online)
    signals.user_offline.disconnect(offline)


@database_sync_to_async
def come_and_go(*users: str, group: str = ONLINE) -> None:
    """Write the rows of users that have just closed their last connection."""
    places = [Place(group, user) for user in users]
    presence_rows.settle(places)
    presence_rows.settle((), places)


class Watcher:
    """A process that watches a group."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.received: list[Control] = []
        mailbox.listen(self.received.append)


@pytest.fixture
async def watcher() -> Any:
    mailbox = await Mailbox.open()
    process = await database_sync_to_async(process_rows.start_process)(mailbox.address, "h", 1)
    await database_sync_to_async(presence_rows.watch)(process, "g")
    yield Watcher(mailbox)
    await mailbox.close()


def some_stays(**options: Any) -> Stays:
    return Stays(on_shared_thread, Announcements(own_thread=False), **{"interval": 60.0, **options})


async def test_a_stay_ends_when_its_grace_is_over(told: Any, watcher: Watcher) -> None:
    await come_and_go("anne")
    await come_and_go("anne", group="g")
    await come_and_go("anne", group="other")
    ending = some_stays()
    running = asyncio.ensure_future(ending.run())
    try:
        ending.departed()
        await asyncio.sleep(0.1)
        assert await PresentUser.objects.acount() == 3
        await eventually_async(lambda: told == [("offline", "anne")], within=5)
        await eventually_async(lambda: len(watcher.received) == 1, within=5)
    finally:
        running.cancel()
    (changes,) = watcher.received
    assert isinstance(changes, PresenceChanges)
    assert [stay[1:] for stay in map(tuple, changes.ended)] == [("g", "anne")]
    assert not await PresentUser.objects.aexists()


async def test_stays_that_another_process_left_behind_are_found(told: Any) -> None:
    await come_and_go("anne")
    running = asyncio.ensure_future(some_stays(interval=0.4).run())
    try:
        await eventually_async(lambda: told == [("offline", "anne")], within=5)
    finally:
        running.cancel()


async def test_of_many_processes_one_ends_each_stay(told: Any) -> None:
    users = [str(number) for number in range(60)]
    await come_and_go(*users)
    running = [asyncio.ensure_future(some_stays(interval=0.2).run()) for _ in range(4)]
    try:
        await eventually_async(lambda: len(told) >= 60, within=10)
        await asyncio.sleep(0.3)
    finally:
        for each in running:
            each.cancel()
    assert sorted(told) == sorted(("offline", user) for user in users)


async def test_a_database_that_is_down_is_asked_again(told: Any, caplog: pytest.LogCaptureFixture) -> None:
    await come_and_go("anne")
    refuses = True

    async def database(call: Callable[..., Any], *arguments: object) -> Any:
        if refuses:
            raise OperationalError("the database is starting up")
        return await database_sync_to_async(call)(*arguments)

    running = asyncio.ensure_future(Stays(database, Announcements(own_thread=False), interval=0.2).run())
    try:
        with caplog.at_level(logging.WARNING, logger="realtime.fleet"):
            await eventually_async(lambda: "starting up" in caplog.text, within=5)
        refuses = False
        await eventually_async(lambda: told == [("offline", "anne")], within=5)
    finally:
        running.cancel()


async def test_no_more_stays_end_than_receivers_keep_up_with(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "MAX_WAITING", 0)
    await come_and_go("anne")
    await asyncio.sleep(0.4)
    await some_stays().end_due()
    assert await PresentUser.objects.acount() == 1
    assert told == []


async def test_a_process_that_stops_tells_of_the_stays_that_it_ended(told: Any) -> None:
    """The write goes on when the task that waits for it is cancelled."""
    await come_and_go("anne")
    writing, goes_on = asyncio.Event(), asyncio.Event()

    async def database(call: Callable[..., Any], *arguments: object) -> Any:
        result = await database_sync_to_async(call)(*arguments)
        if call is presence_rows.end_stays and not goes_on.is_set():
            writing.set()
            await goes_on.wait()
        return result

    signals = Announcements(own_thread=False)
    ending = Stays(database, signals, interval=0.2)
    running = asyncio.ensure_future(ending.run())
    async with asyncio.timeout(5):
        await writing.wait()
    running.cancel()
    asyncio.get_running_loop().call_later(0.1, goes_on.set)
    await ending.finish(5)
    await signals.finish(5)
    assert told == [("offline", "anne")]


async def test_a_process_sends_itself_no_message(watcher: Watcher) -> None:
    taken: list[Changes] = []
    await come_and_go("anne", group="g")
    await asyncio.sleep(0.4)
    await some_stays(address=watcher.mailbox.address, take=taken.append).end_due()
    await asyncio.sleep(0.1)
    assert watcher.received == []
    assert [stay.user_id for stay in taken[0].ended] == ["anne"]


async def test_a_stay_that_began_is_told(told: Any, watcher: Watcher) -> None:
    began = [Stay(1, ONLINE, "anne"), Stay(2, "g", "anne"), Stay(3, "other", "anne")]
    some_stays().tell(Changes(began=began, watchers={watcher.mailbox.address: {"g"}}))
    await eventually_async(lambda: told == [("online", "anne")], within=5)
    await eventually_async(lambda: len(watcher.received) == 1, within=5)
    assert watcher.received == [PresenceChanges([(2, "g", "anne")], [])]


async def test_a_reaper_ends_stays_between_its_rounds(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stays, "LOOK_EVERY", 0.02)
    reaper = Reaper(interval=20.0, timeout=0.1, misses_allowed=1)
    running = asyncio.ensure_future(run_rounds(reaper, lambda _: None))
    try:
        await asyncio.sleep(0.5)
        await come_and_go("anne")
        await eventually_async(lambda: told == [("offline", "anne")], within=5)
    finally:
        reaper.stop()
        await running
        await reaper.close()
