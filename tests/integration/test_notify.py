"""Data for the connections of one user, in this process and in others, and whether one of them took it."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from channels.layers import channel_layers, get_channel_layer
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.test import TestCase

from realtime import metrics, notifying
from realtime.closing import CloseReason
from realtime.consumers import GroupConsumer, RealtimeConsumer
from realtime.errors import NoSuchLayer, RealtimeError, UnpublishableData
from realtime.layers import groups, messages
from realtime.notifying import anotify, notify
from realtime.process import background_loop
from realtime.records import process_rows
from realtime.records.connection_rows import open_connections
from realtime.serving import lifecycle
from realtime.testing import connect
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of
from tests.support.doubles.peer import OPTIONS, Peer
from tests.support.doubles.rows import a_process, an_opening
from tests.support.programs.servers import RedisServer

USER = "2000000011"
PATIENCE = 10.0  # seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["MemoryLayer", "PubSubLayer", "CoreLayer"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def process(
    kind: str, settings: Any, transactional_db: None, server: RedisServer
) -> AsyncIterator[None]:
    """A server process on each layer, and the same layer for all that notify."""
    config = {} if kind == "MemoryLayer" else {"CONFIG": {"hosts": [server.url]}}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"realtime.layers.{kind}", **config}}
    channel_layers.backends.clear()
    layer = get_channel_layer()
    yield
    await lifecycle.stop()
    # Its mailbox leaves Redis while there is one.
    await asyncio.to_thread(background_loop.shared.stop)
    await (layer.close_pools() if hasattr(layer, "close_pools") else layer.flush())
    channel_layers.backends.clear()


on_memory = pytest.mark.parametrize("kind", ["MemoryLayer"], indirect=True)


async def a_peer(user: object = USER, *, takes: bool = True, **options: Any) -> Peer:
    """Open a connection of a user."""
    peer = Peer(**options)
    peer.connection.scope["user"] = SimpleNamespace(pk=user, is_authenticated=True)
    peer.connection.takes_notifications = takes
    return await peer.open()


def notifications(peer: Peer) -> list[Any]:
    """Return the data of the notifications that were sent to a peer."""
    sent = [json.loads(text) for text in peer.texts]
    return [frame["data"] for frame in sent if frame["type"] == "notification"]


def pings(peer: Peer) -> list[int]:
    sent = [json.loads(text) for text in peer.texts]
    return [frame["n"] for frame in sent if frame["type"] == "ping"]


def answer(peer: Peer, n: int) -> None:
    assert peer.connection.hub is not None
    peer.connection.hub.heartbeat.ponged(peer.connection, n)


async def asking(**options: Any) -> "asyncio.Task[bool]":
    return asyncio.create_task(anotify(USER, "hello", confirm=True, timeout=PATIENCE, **options))


@pytest.mark.usefixtures("process")
async def test_each_connection_of_the_user_gets_the_frame() -> None:
    first, second, other = await a_peer(), await a_peer(), await a_peer("2000000012")
    assert await anotify(USER, {"text": "hello"})
    for peer in (first, second):
        await eventually_async(lambda peer=peer: notifications(peer) == [{"text": "hello"}], within=PATIENCE)
    assert notifications(other) == []


@pytest.mark.usefixtures("process")
async def test_one_ping_later_the_client_has_confirmed() -> None:
    peer = await a_peer()
    assert peer.connection.hub is not None
    heartbeat = peer.connection.hub.heartbeat
    heartbeat.ask(peer.connection)
    (earlier,) = pings(peer)
    call = await asking()
    await eventually_async(lambda: len(pings(peer)) == 2, within=PATIENCE)
    kinds = [json.loads(text)["type"] for text in peer.texts]
    assert kinds == ["ping", "notification", "ping"]
    answer(peer, earlier)
    await asyncio.sleep(0.05)
    assert not call.done()
    answer(peer, pings(peer)[1])
    assert await call
    assert not heartbeat._confirming


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_pong_to_a_later_ping_confirms_too() -> None:
    peer = await a_peer()
    call = await asking()
    await eventually_async(lambda: pings(peer), within=PATIENCE)
    peer.connection.hub.heartbeat.ask(peer.connection)
    answer(peer, pings(peer)[1])
    assert await call


@on_memory
@pytest.mark.usefixtures("process")
async def test_the_first_confirmation_counts_and_all_get_the_frame() -> None:
    silent, living = await a_peer(), await a_peer()
    call = await asking()
    await eventually_async(lambda: pings(living), within=PATIENCE)
    answer(living, pings(living)[0])
    assert await call
    assert notifications(silent) == ["hello"]


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_connection_that_ends_does_not_confirm() -> None:
    peer = await a_peer()
    heartbeat = peer.connection.hub.heartbeat
    call = await asking()
    await eventually_async(lambda: pings(peer), within=PATIENCE)
    lifecycle.evict(peer.connection, CloseReason.PING_TIMEOUT)
    assert not await asyncio.wait_for(call, 1)
    assert not heartbeat._confirming


@pytest.mark.usefixtures("process")
async def test_a_silent_client_does_not_confirm_in_time() -> None:
    peer = await a_peer()
    heartbeat = peer.connection.hub.heartbeat
    assert not await anotify(USER, "hello", confirm=True, timeout=0.3)
    assert notifications(peer) == ["hello"]
    await eventually_async(lambda: not heartbeat._confirming, within=PATIENCE)


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_client_that_cannot_be_pinged_does_not_confirm() -> None:
    peer = await a_peer(v1=False)
    assert not await asyncio.wait_for(await asking(), 1)
    assert await anotify(USER, "hello")
    assert notifications(peer) == ["hello", "hello"]


@on_memory
@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("confirm", [False, True])
async def test_a_write_that_fails_is_not_taken(confirm: bool) -> None:
    peer = await a_peer()
    peer.broken = True
    assert not await anotify(USER, "hello", confirm=confirm, timeout=PATIENCE)
    assert peer.connection.reason is CloseReason.SEND_FAILED


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_frame_behind_a_write_that_hangs_is_not_taken() -> None:
    peer = await a_peer()
    peer.suspended = True
    lifecycle.send(peer.connection, {"type": "websocket.send", "text": "before"})
    assert not await anotify(USER, "hello", timeout=0.3)
    assert not peer.connection.gone


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_slow_client_that_is_evicted_has_not_taken_it() -> None:
    peer = await a_peer()
    peer.suspended = True
    lifecycle.send(peer.connection, {"type": "websocket.send", "text": "before"})
    assert not await anotify(USER, "x" * (OPTIONS.max_unsent + 1), timeout=PATIENCE)
    assert peer.connection.reason is CloseReason.SLOW_CONSUMER


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_frame_that_had_to_wait_is_taken_when_it_left() -> None:
    peer = await a_peer()
    transport = peer.connection.transport
    transport._prompt = False
    lifecycle.send(peer.connection, {"type": "websocket.send", "text": '{"type":"before"}'})
    assert transport._queue
    assert await anotify(USER, "hello", timeout=PATIENCE)
    assert notifications(peer) == ["hello"]


@on_memory
@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("confirm", [False, True])
async def test_consumers_without_the_protocol_are_left_out(confirm: bool) -> None:
    peer = await a_peer(takes=False)
    assert not await anotify(USER, "hello", confirm=confirm, timeout=PATIENCE)
    assert peer.texts == []


@pytest.mark.usefixtures("process")
async def test_nobody_connected_is_told_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = await a_peer()
    await lifecycle.evict(closed.connection, CloseReason.CLIENT_CLOSED)

    async def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(groups, "tell_all", never)
    assert not await anotify(USER, "hello", confirm=True)


@pytest.mark.usefixtures("process")
async def test_a_process_that_does_not_answer_delays_no_other() -> None:
    dead = await database_sync_to_async(a_process)()
    await database_sync_to_async(open_connections)([an_opening(dead, user_id=USER)])
    began = time.monotonic()
    assert not await anotify(USER, "hello", timeout=0.5)
    assert time.monotonic() - began < 5
    peer = await a_peer()
    assert await asyncio.wait_for(anotify(USER, "hello", timeout=60), 10)
    assert notifications(peer) == ["hello"]


@on_memory
@pytest.mark.usefixtures("process")
async def test_processes_that_ended_are_not_asked() -> None:
    dead = await database_sync_to_async(a_process)()
    await database_sync_to_async(open_connections)([an_opening(dead, user_id=USER)])
    await database_sync_to_async(process_rows.stop_process)(dead)
    assert not await asyncio.wait_for(anotify(USER, "hello", timeout=60), 5)


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_process_that_cannot_be_told_says_no(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = await database_sync_to_async(a_process)(channel_name="nowhere:specific.0123456789abcdef")
    await database_sync_to_async(open_connections)([an_opening(elsewhere, user_id=USER)])
    assert not await asyncio.wait_for(anotify(USER, "hello", timeout=60), 5)
    assert 'CHANNEL_LAYERS has no "nowhere" layer' in caplog.text


@pytest.mark.usefixtures("redis_is_down", "transactional_db")
async def test_a_redis_that_is_down_says_no(caplog: pytest.LogCaptureFixture) -> None:
    process = await database_sync_to_async(a_process)()
    await database_sync_to_async(open_connections)([an_opening(process, user_id=USER)])
    assert not await asyncio.wait_for(anotify(USER, "hello", timeout=60), 30)
    assert "A process could not be told of a notification" in caplog.text


@pytest.mark.parametrize("kind", ["PubSubLayer", "CoreLayer"], indirect=True)
@pytest.mark.parametrize("known", [False, True], ids=["first call", "later call"])
@pytest.mark.usefixtures("process")
async def test_a_redis_that_hangs_costs_no_more_than_the_timeout(server: RedisServer, known: bool) -> None:
    await a_peer()
    if known:
        assert await anotify(USER, "hello")
    server.freeze()
    try:
        began = time.monotonic()
        assert not await anotify(USER, "hello", timeout=0.5)
        assert time.monotonic() - began < 4
    finally:
        server.thaw()
    assert await anotify(USER, "again", timeout=PATIENCE)


@pytest.mark.usefixtures("process")
async def test_synchronous_code_notifies_from_any_thread() -> None:
    peer = await a_peer()
    taken: list[bool] = []

    def work() -> None:
        taken.append(notify(USER, "hello", timeout=PATIENCE))
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert taken == [True]
    assert notifications(peer) == ["hello"]


async def test_notify_refuses_to_block_a_running_loop() -> None:
    with pytest.raises(RealtimeError, match="await anotify"):
        notify(USER, "hello")


@on_memory
@pytest.mark.usefixtures("process")
async def test_a_user_or_a_primary_key_names_the_user() -> None:
    user = await User.objects.acreate(username="anne")
    peer = await a_peer(user.pk)
    for each in (user, user.pk, str(user.pk)):
        assert await anotify(each, "hello")
    assert notifications(peer) == ["hello"] * 3


@on_memory
@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "user",
    [None, "", AnonymousUser(), User(username="unsaved")],
    ids=["None", "empty", "anonymous", "unsaved"],
)
async def test_an_anonymous_user_is_refused(user: object) -> None:
    with pytest.raises(ValueError, match="anonymous users have no primary key"):
        await anotify(user, "hello")


@on_memory
@pytest.mark.usefixtures("process")
async def test_arguments_that_cannot_work_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="above zero"):
        await anotify(USER, "hello", timeout=0)
    with pytest.raises(UnpublishableData):
        await anotify(USER, object())
    settings.CHANNEL_LAYERS = {}
    channel_layers.backends.clear()
    with pytest.raises(NoSuchLayer):
        await anotify(USER, "hello")


@on_memory
@pytest.mark.usefixtures("process")
async def test_notifications_are_counted_by_outcome() -> None:
    before = [value_of(metrics.notifications, outcome=each) for each in ("taken", "not_taken")]
    await a_peer()
    await anotify(USER, "hello")
    await anotify("2000000012", "hello")
    after = [value_of(metrics.notifications, outcome=each) for each in ("taken", "not_taken")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


# -- the mailbox for answers


@pytest.mark.usefixtures("process")
async def test_repeated_calls_share_a_mailbox_until_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = await a_peer()
    heard: list[str] = []
    deliver = peer.connection.hub.notifications.deliver

    async def note(message: messages.Notify) -> None:
        heard.append(message.reply_to)
        await deliver(message)

    monkeypatch.setattr(peer.connection.hub.notifications, "deliver", note)
    assert all(await asyncio.gather(*(anotify(USER, number) for number in range(20))))
    assert sorted(notifications(peer)) == list(range(20))
    assert len(set(heard)) == 1
    asker = notifying._asker()
    reading = asker._opening.result().reading
    monkeypatch.setattr(notifying, "CLOSE_AFTER", 0.05)
    assert await anotify(USER, "again")
    await eventually_async(reading.done, within=PATIENCE)
    assert await anotify(USER, "at last")
    assert len(set(heard)) == 2


@pytest.mark.usefixtures("process")
async def test_a_mailbox_that_has_gone_deaf_is_mended(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_peer()
    assert await anotify(USER, "hello")
    asker, rebuilt = notifying._asker(), []
    dead = await database_sync_to_async(a_process)()
    await database_sync_to_async(open_connections)([an_opening(dead, user_id="2000000012")])
    assert not await anotify("2000000012", "hello", timeout=0.1)
    mailbox = asker._opening.result()

    async def lost(*_: Any, **__: Any) -> set[int]:
        return {0}

    async def rebuild(address: str, parts: set[int]) -> None:
        rebuilt.append((address, parts))

    monkeypatch.setattr(mailbox, "missing_parts", lost)
    monkeypatch.setattr(groups, "rebuild", rebuild)
    assert await anotify(USER, "hello")
    assert rebuilt == [(mailbox.address, {0})]
    assert await anotify(USER, "hello")
    assert len(rebuilt) == 1


@on_memory
@pytest.mark.usefixtures("process")
def test_a_loop_that_ended_is_forgotten(transactional_db: None) -> None:
    process = a_process()
    open_connections([an_opening(process, user_id=USER)])
    for _ in range(3):
        assert not asyncio.run(anotify(USER, "hello", timeout=0.05))
    assert sum(loop.is_closed() for loop in notifying._askers) <= 1


# -- tests of applications


class PlainConsumer(RealtimeConsumer):
    """A consumer of an author. Its clients do not know the frame."""


class OwnConsumer(RealtimeConsumer):
    takes_notifications = True


async def _notified(user: User) -> list[Any]:
    """Notify a user with one connection to each kind of consumer; return what the clients get."""
    async with (
        connect(GroupConsumer.as_asgi(), "/", user=user) as group,
        connect(OwnConsumer.as_asgi(), "/", user=user) as own,
        connect(PlainConsumer.as_asgi(), "/", user=user) as plain,
    ):
        assert await anotify(user, "hello")
        received = [await group.receive_frame(), await own.receive_frame()]
        with pytest.raises(AssertionError, match="Nothing came"):
            await plain.receive_frame(within=0.05)
        return received


FRAME = {"type": "notification", "data": "hello"}


async def test_tests_of_applications_notify(db: None) -> None:
    user = User(pk=2000000011, username="anne")
    assert await _notified(user) == [FRAME, FRAME]


class NotifyingTestCase(TestCase):
    async def test_tests_of_django_notify(self) -> None:
        user = await User.objects.acreate(username="anne")
        assert await _notified(user) == [FRAME, FRAME]
