"""The pictures of the groups that connections of a process watch, and the changes that they are told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from realtime import apublish
from realtime.errors import RecordsUnavailable
from realtime.hub import watches
from realtime.hub.connection import Connection
from realtime.hub.hub import Hub
from realtime.layers import groups, messages
from realtime.models import PresenceWatch, PresentUser
from realtime.records import presence_rows
from realtime.records.entries import Place, Stay
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.usefixtures("site")

GROUP = "public.room"


class Client:
    """A connection that notes the frames that are written to it."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.accepted = True
        self.can_ping = self.server_pings = True
        self.unsent = 0
        self.connection = Connection({}, lambda _: None)
        self.connection.transport = self  # type: ignore[assignment]

    async def join(self, group: str = GROUP) -> None:
        await lifecycle.group_add(self.connection, group)

    async def watch(self, group: str = GROUP) -> Any:
        return await lifecycle.watch(self.connection, group)

    def write(self, event: dict[str, Any], size: int) -> None:
        self.frames.append(json.loads(event["text"]))

    def write_shared(self, shared: Any) -> None:
        self.frames += [json.loads(event["text"]) for event, _ in shared.events]

    def close(self, *_: Any) -> None: ...

    def ping(self, *_: Any) -> None: ...

    @property
    def changes(self) -> list[tuple[list[str], list[str]]]:
        return [
            (frame.get("joined", []), frame.get("left", []))
            for frame in self.frames
            if frame["type"] == "presence"
        ]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch, realtime_settings: Any) -> None:
    monkeypatch.setattr(watches, "TELL_EVERY", 0.1)
    realtime_settings(ROUND_INTERVAL=0.5, ROUND_TIMEOUT=0.2)


async def a_watcher() -> Client:
    client = Client()
    await client.join()
    await client.watch()
    return client


@database_sync_to_async
def arrive(*users: str) -> list[Stay]:
    """Write the rows of users as another process does that then dies before it tells this one."""
    return presence_rows.settle([Place(GROUP, user) for user in users])[0]


@database_sync_to_async
def leave(*users: str) -> None:
    PresentUser.objects.filter(group=GROUP, user_id__in=users).delete()


async def test_a_change_that_was_not_told_is_found_within_a_round() -> None:
    client = await a_watcher()
    await arrive("anne", "bob")
    await eventually_async(lambda: client.changes == [(["anne", "bob"], [])], within=5)
    await leave("anne")
    await eventually_async(lambda: client.changes[1:] == [([], ["anne"])], within=5)


async def test_a_change_that_another_process_tells_is_told_once() -> None:
    client, home = await a_watcher(), await lifecycle.hub()
    (stay,) = await arrive("anne")
    told = messages.PresenceChanges([(stay.id, stay.group, stay.user_id)], [])
    for _ in range(3):
        await groups.tell(home.channel, told)
    await eventually_async(lambda: client.changes == [(["anne"], [])], within=5)
    await asyncio.sleep(0.7)  # more than one comparison
    assert len(client.changes) == 1


async def test_members_are_told_at_most_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, realtime_settings: Any
) -> None:
    monkeypatch.setattr(watches, "TELL_EVERY", 0.5)
    realtime_settings(ROUND_INTERVAL=60.0)  # nothing is compared with the rows, of which there are none
    client, home = await a_watcher(), await lifecycle.hub()
    for number in range(20):
        home.watches.note([Stay(number + 1, GROUP, str(number))], [])
        await asyncio.sleep(0.01)
    assert len(client.changes) == 1
    await eventually_async(lambda: len(client.changes) == 2, within=5)
    joined = [user for change in client.changes for user in change[0]]
    assert sorted(joined, key=int) == [str(number) for number in range(20)]


async def test_a_group_is_read_once_for_all_watchers() -> None:
    clients = [Client() for _ in range(5)]
    for client in clients:
        await client.join()
    await arrive("anne")
    with _counted("stays") as read:
        found = await asyncio.gather(*(client.watch() for client in clients))
    assert [list(each.users) for each in found] == [["anne"]] * 5
    assert len(read) == 1
    assert await PresenceWatch.objects.acount() == 1


class _counted:
    """Counts the calls of a function of `presence_rows`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Any] = []
        self.original: Callable[..., Any] = getattr(presence_rows, name)

    def __enter__(self) -> list[Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append(arguments)
            return self.original(*arguments)

        setattr(presence_rows, self.name, call)
        return self.calls

    def __exit__(self, *_: object) -> None:
        setattr(presence_rows, self.name, self.original)


async def test_after_a_failure_the_next_watcher_reads_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: str) -> dict[str, int]:
        raise OperationalError("the database is starting up")

    client = Client()
    await client.join()
    with monkeypatch.context() as patch:
        patch.setattr(presence_rows, "stays", fail)
        with pytest.raises(RecordsUnavailable, match="starting up"):
            await client.watch()
    assert (await client.watch()).total == 0


async def test_a_process_stops_to_watch_after_its_last_watcher() -> None:
    client = await a_watcher()
    assert await PresenceWatch.objects.acount() == 1
    await lifecycle.group_discard(client.connection, GROUP)
    async with asyncio.timeout(10):
        while await PresenceWatch.objects.aexists():
            await asyncio.sleep(0.05)
    home = await lifecycle.hub()
    assert home.watches.present(GROUP) is None
    again = await a_watcher()
    await arrive("anne")
    await eventually_async(lambda: again.changes == [(["anne"], [])], within=5)


async def test_a_process_that_stops_watches_nothing() -> None:
    await a_watcher()
    await lifecycle.stop()
    assert not await PresenceWatch.objects.aexists()


async def test_a_member_that_left_meanwhile_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    await client.join()
    home = await lifecycle.hub()
    reading = asyncio.ensure_future(client.watch())
    await asyncio.sleep(0)
    client.connection.groups.discard(GROUP)
    await reading
    home.watches.note([Stay(1, GROUP, "anne")], [])
    await asyncio.sleep(0.3)
    assert client.changes == []


async def test_no_message_makes_a_query() -> None:
    client, home = await a_watcher(), await lifecycle.hub()
    with _Queries(home) as made:
        for number in range(50):
            await apublish(GROUP, number)
        await eventually_async(lambda: len(client.frames) == 50, within=5)
    assert [query for query in made.found if "round" not in query and "presen" not in query] == []


class _Queries:
    """The statements that the ledger of a hub executes."""

    def __init__(self, home: Hub) -> None:
        self._home = home
        self.found: list[str] = []
        self._capture = CaptureQueriesContext(connection)

    def __enter__(self) -> "_Queries":
        self._original = self._home.ledger._queue.put

        def put(write: Any) -> None:
            self.found.append(str(write.call or write.kind))
            self._original(write)

        self._home.ledger._queue.put = put  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._home.ledger._queue.put = self._original  # type: ignore[method-assign]


async def test_a_group_is_not_forgotten_while_its_first_watcher_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison may have its turn between the reading and the task that waits for it."""
    client = Client()
    await client.join()
    home = await lifecycle.hub()
    load = home.watches._load

    async def then_forget_idle(watched: Any) -> None:
        await load(watched)
        await home.watches._forget_idle()

    monkeypatch.setattr(home.watches, "_load", then_forget_idle)
    await client.watch()
    await arrive("anne")
    await eventually_async(lambda: client.changes == [(["anne"], [])], within=5)
