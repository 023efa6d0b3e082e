"""Synchronous consumers: their threads, what they send, and every ending."""

import asyncio
import functools
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.layers import get_channel_layer

from realtime import CloseReason, signals
from realtime.consumers import RealtimeConsumer, SyncRealtimeConsumer, SyncRealtimeMixin
from realtime.errors import ConnectionGone
from realtime.models import Connection
from realtime.serving import lifecycle, threads
from realtime.serving.runner import Runner, Times
from realtime.testing import connect
from tests.support.assertions.conversation import LAYER_OF, PATIENCE, Client
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

TIMES = Times(server_report=0.1)


@pytest.fixture(autouse=True)
def our_layer(use_layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_layers(LAYER_OF["ours"], "default")
    monkeypatch.setattr(Runner, "times", TIMES)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that handlers wait for. It is set at the end of the test, so that no thread stays behind."""
    event = threading.Event()
    yield event
    event.set()


class Recording(SyncRealtimeConsumer):
    """Notes the code of each ending, for each subclass apart."""

    groups = ("g",)
    ended: list[int]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.ended = []

    def disconnect(self, code: int) -> None:
        self.ended.append(code)


async def all_is_left() -> None:
    """Assert that no group and no record stays, once the hub has stopped."""
    await lifecycle.stop()
    assert not get_channel_layer().groups
    assert not await Connection.objects.open().aexists()


async def open_client(consumer: Any) -> Client:
    client = Client(consumer.as_asgi())
    assert (await client.connect())[0]
    return client


# -- every ending ----------------------------------------------------------------------------------


def raise_in_handler(consumer: Any) -> None:
    raise ZeroDivisionError


def stop(consumer: Any) -> None:
    raise StopConsumer


def close(consumer: Any) -> None:
    consumer.close(4001)


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (raise_in_handler, 4000, CloseReason.HANDLER_ERROR),
        (stop, 1000, CloseReason.APPLICATION_CLOSED),
        (close, 4001, CloseReason.APPLICATION_CLOSED),
    ],
)
@pytest.mark.parametrize("pool", [None, 2])
async def test_a_handler_that_ends_the_connection_does_so_once(
    realtime_settings: Any, end: Callable[[Any], None], code: int, reason: CloseReason, pool: int | None
) -> None:
    realtime_settings(THREADS=pool)

    class Ends(Recording):
        def note(self, event: Any) -> None:
            end(self)

    client = await open_client(Ends)
    await get_channel_layer().group_send("g", {"type": "note"})
    assert await client.receive_output() == {"type": "websocket.close", "code": code}
    if reason is CloseReason.HANDLER_ERROR:
        with pytest.raises(ZeroDivisionError):
            await client.wait()
    else:
        await client.wait()
    assert Ends.ended == [code]
    assert (await Connection.objects.aget()).close_reason == reason.value
    await all_is_left()


@pytest.mark.parametrize("where", ["client", "kick", "cancel"])
async def test_disconnect_runs_once_after_other_endings(where: str) -> None:
    class Ends(Recording):
        """Has no handlers of its own."""

    client = await open_client(Ends)
    if where == "client":
        await client.send_input({"type": "websocket.disconnect", "code": 1001})
    elif where == "kick":
        (connection,) = (await lifecycle.hub()).connections.values()
        await lifecycle.evict(connection, CloseReason.KICKED)
    else:
        client.future.cancel()
    await asyncio.wait([client.future], timeout=PATIENCE)
    await eventually_async(lambda: Ends.ended, within=PATIENCE)
    assert Ends.ended == [{"client": 1001, "kick": 4504, "cancel": 4000}[where]]
    await all_is_left()


async def test_disconnect_runs_when_a_thread_is_free_again(
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    realtime_settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1, thread=0.2))
    realtime_settings(DISCONNECT_TIMEOUT=0.3)
    begun = threading.Event()

    class Blocks(Recording):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            begun.set()
            gate.wait(PATIENCE)

    busy, leaves = await open_client(Blocks), await open_client(Blocks)
    await busy.send_to(text_data="x")
    await eventually_async(begun.is_set, within=PATIENCE)
    await leaves.send_to(text_data="never handled")
    await leaves.send_input({"type": "websocket.disconnect", "code": 1001})
    # The application ends without waiting for the thread, so the server does not kill it.
    await leaves.wait()
    assert Blocks.ended == []
    gate.set()
    await eventually_async(lambda: Blocks.ended == [1001], within=PATIENCE)
    await busy.disconnect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    await all_is_left()


async def test_a_disconnect_that_fails_late_is_logged(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1, thread=0.1))

    class Fails(SyncRealtimeConsumer):
        def disconnect(self, code: int) -> None:
            raise ZeroDivisionError

    client = await open_client(Fails)
    blocking = asyncio.create_task(sync_to_async(gate.wait)(PATIENCE))
    await asyncio.sleep(0)
    await client.send_input({"type": "websocket.disconnect", "code": 1001})
    await client.wait()
    gate.set()
    await blocking
    await eventually_async(lambda: "ZeroDivisionError" in caplog.text, within=PATIENCE)
    await all_is_left()


@pytest.mark.parametrize("by_event", [False, True])
async def test_waiting_for_a_thread_counts_against_no_limit(realtime_settings: Any, by_event: bool) -> None:
    realtime_settings(HANDLER_TIMEOUT=0.3)

    class Slow(Recording):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            time.sleep(0.1)
            self.send(text_data="done")

        def note(self, event: Any) -> None:
            self.receive()

    clients = [await open_client(Slow) for _ in range(8)]
    if by_event:
        await get_channel_layer().group_send("g", {"type": "note"})
    else:
        for client in clients:
            await client.send_to(text_data="x")
    for client in clients:
        assert await client.receive_from() == "done"
        await client.disconnect()
    await all_is_left()


async def test_a_handler_above_its_time_is_evicted(
    realtime_settings: Any, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    realtime_settings(HANDLER_TIMEOUT=0.2, THREADS=2)

    class Hangs(Recording):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            gate.wait(PATIENCE)
            self.send(text_data="too late")
            self.ended.append(-1)

    client = await open_client(Hangs)
    await client.send_to(text_data="x")
    assert await client.receive_output() == {"type": "websocket.close", "code": 4000}
    await client.wait()
    assert Hangs.ended == [4000]
    gate.set()
    await eventually_async(lambda: Hangs.ended == [4000, -1], within=PATIENCE)
    assert client.output_queue.empty()
    assert caplog.text.count("A handler failed (handler_timeout)") == 1
    await all_is_left()


async def test_receivers_of_signals_run_after_a_close_in_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    def opened(**what: Any) -> None:
        heard.append("opened")

    def closed(**what: Any) -> None:
        heard.append(what["reason"])

    class Closes(SyncRealtimeConsumer):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            async_to_sync(self.channel_layer.group_add)("g", self.channel_name)
            self.close()

    signals.connection_opened.connect(opened)
    signals.connection_closed.connect(closed)
    try:
        client = await open_client(Closes)
        await client.send_to(text_data="x")
        await client.receive_output()
        await client.wait()
        await eventually_async(lambda: len(heard) == 2, within=PATIENCE)
    finally:
        signals.connection_opened.disconnect(opened)
        signals.connection_closed.disconnect(closed)
    assert heard == ["opened", CloseReason.APPLICATION_CLOSED]
    assert "failed" not in caplog.text
    await all_is_left()


async def test_an_ended_connection_needs_no_garbage_collector() -> None:
    living: weakref.WeakSet[Any] = weakref.WeakSet()

    class Noted(SyncRealtimeConsumer):
        groups = ("g",)

        def connect(self) -> None:
            living.add(self)
            self.accept()

        def note(self, event: Any) -> None:
            self.send(text_data="noted")

    client = await open_client(Noted)
    await get_channel_layer().group_send("g", {"type": "note"})
    await client.receive_from()
    gc.disable()
    try:
        await client.disconnect()
        await client.wait()
        del client
        await eventually_async(lambda: not living, within=PATIENCE)
    finally:
        gc.enable()
    await all_is_left()


# -- handlers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["no.such", "close", "send", "_private", "dispatch", "helper", "later", "inner", "base_send"]
)
async def test_an_event_without_a_handler_is_ignored(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    class Member(SyncRealtimeConsumer):
        groups = ("g",)

        class inner:
            pass

        def _private(self, event: Any) -> None:
            raise AssertionError

        def helper(self, one: Any, two: Any) -> None:
            raise AssertionError

        async def later(self, event: Any) -> None:
            raise AssertionError

        def note(self, event: Any) -> None:
            self.send(text_data="noted")

        wrapped = functools.wraps(note)(functools.partialmethod(note))

    async with connect(Member.as_asgi(), "/", subprotocols=()) as client:
        for sent in (kind, "note"):
            await get_channel_layer().group_send("g", {"type": sent})
        assert await client.receive() == "noted"
    assert f"Member has no handler for events of type {kind!r}" in caplog.messages


async def test_handlers_behind_decorators_and_of_mixins_are_called() -> None:
    def logged(handler: Any) -> Any:
        @functools.wraps(handler)
        def call(self: Any, event: Any) -> Any:
            return handler(self, event)

        return call

    class Mixin:
        def inherited(self, event: Any) -> None:
            self.send(text_data="inherited")  # type: ignore[attr-defined]

    class Member(Mixin, SyncRealtimeConsumer):
        groups = ("g",)

        @logged
        def wrapped(self, event: Any) -> None:
            self.send(text_data="wrapped")

        def with_default(self, event: Any, more: Any = None) -> None:
            self.send(text_data="with.default")

    async with connect(Member.as_asgi(), "/", subprotocols=()) as client:
        for kind in ("inherited", "wrapped", "with.default"):
            await get_channel_layer().group_send("g", {"type": kind})
            assert await client.receive() == kind


async def test_a_bare_synchronous_consumer_is_served() -> None:
    class Theirs(SyncConsumer):
        async def dispatch(self, message: Any) -> None:
            await super().dispatch({**message, "passed": True})

        def websocket_connect(self, message: Any) -> None:
            assert message["passed"]
            async_to_sync(self.channel_layer.group_add)("g", self.channel_name)
            self.send({"type": "websocket.accept"})

        def websocket_receive(self, message: Any) -> None:
            self.send({"type": "websocket.send", "text": message["text"]})

        def websocket_disconnect(self, message: Any) -> None:
            raise StopConsumer

    for bases in ((SyncRealtimeMixin, Theirs), (Theirs, SyncRealtimeMixin)):
        consumer: Any = type("Chat", bases, {})
        async with connect(consumer.as_asgi(), "/", subprotocols=()) as client:
            await client.send(text="hello")
            assert await client.receive() == "hello"
            assert set(get_channel_layer().groups) == {"g"}
        assert not get_channel_layer().groups


async def test_the_methods_that_our_base_class_adds() -> None:
    class Member(SyncRealtimeConsumer):
        def connect(self) -> None:
            if self.scope["path"] == "/no/":
                self.refuse(CloseReason.FORBIDDEN)
                return
            self.group_add("g")
            self.accept()

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            self.group_discard("g")
            self.send(text_data=str(sorted(self.connection.groups)))

    async with connect(Member.as_asgi(), "/", subprotocols=()) as client:
        assert set(get_channel_layer().groups) == {"g"}
        await client.send(text="leave")
        assert await client.receive() == "[]"
        assert not get_channel_layer().groups
    client = Client(Member.as_asgi(), "/no/")
    await client.connect()
    assert (await client.receive_output())["code"] == CloseReason.FORBIDDEN.code
    await client.wait()


@pytest.mark.parametrize(
    ("bases", "sentence"),
    [
        ((RealtimeConsumer, WebsocketConsumer), "use SyncRealtimeConsumer"),
        ((SyncRealtimeConsumer, AsyncWebsocketConsumer), "use RealtimeConsumer"),
        ((SyncRealtimeConsumer, RealtimeConsumer), "use "),
    ],
)
def test_the_two_kinds_of_consumers_cannot_be_mixed(bases: tuple[type, ...], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        type("Mixed", bases, {})


def test_a_method_that_is_async_is_warned_of() -> None:
    async def receive(self: Any, text_data: str) -> None: ...

    with pytest.warns(RuntimeWarning, match=r"Moved\.receive is `async def`"):
        type("Moved", (SyncRealtimeConsumer,), {"receive": receive})


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread_sensitive", [False, True])
async def test_a_pool_runs_handlers_side_by_side(realtime_settings: Any, thread_sensitive: bool) -> None:
    realtime_settings(THREADS=3)
    together = threading.Barrier(2)
    shared = await sync_to_async(threading.get_ident)()

    class Meets(Recording):
        def note(self, event: Any) -> None:
            try:
                together.wait(0.5)
                self.send(text_data=f"met {threading.get_ident() == shared}")
            except threading.BrokenBarrierError:
                self.send(text_data=f"alone {threading.get_ident() == shared}")

    Meets.thread_sensitive = thread_sensitive
    clients = [await open_client(Meets) for _ in range(2)]
    await get_channel_layer().group_send("g", {"type": "note"})
    heard = {await client.receive_from() for client in clients}
    assert heard == ({"alone True"} if thread_sensitive else {"met False"})
    for client in clients:
        await client.disconnect()
    await all_is_left()


async def test_a_pool_serves_nested_synchronous_code(realtime_settings: Any) -> None:
    realtime_settings(THREADS=1)

    class Nested(Recording):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            inner = async_to_sync(self.on_the_loop)()
            self.send(text_data=str(inner == threading.get_ident()))

        async def on_the_loop(self) -> int:
            return await sync_to_async(threading.get_ident)()

    client = await open_client(Nested)
    await client.send_to(text_data="x")
    assert await client.receive_from() == "True"
    await client.disconnect()
    await all_is_left()


async def test_any_thread_may_use_the_consumer() -> None:
    outcomes: Future[list[Any]] = Future()

    class Elsewhere(SyncRealtimeConsumer):
        def connect(self) -> None:
            with ThreadPoolExecutor(1) as executor:
                executor.submit(self.in_thread).result(PATIENCE)

        def in_thread(self) -> None:
            async_to_sync(self.channel_layer.group_add)("theirs", self.channel_name)
            self.group_add("ours")
            self.accept()
            async_to_sync(self.channel_layer.group_discard)("theirs", self.channel_name)

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            threading.Thread(target=self.after_the_end, args=(threading.current_thread(),)).start()

        def after_the_end(self, handler: threading.Thread) -> None:
            self.send(text_data="before")
            self.close(4001)
            found: list[Any] = [self.send(text_data="after"), self.close(4002)]
            for function, arguments in ((self.accept, ()), (self.group_add, ("late",))):
                try:
                    found.append(function(*arguments))
                except ConnectionGone as error:
                    found.append(type(error))
            outcomes.set_result(found)

    client = await open_client(Elsewhere)
    await eventually_async(lambda: set(get_channel_layer().groups) == {"ours"}, within=PATIENCE)
    await client.send_to(text_data="x")
    assert await client.receive_from() == "before"
    assert await client.receive_output() == {"type": "websocket.close", "code": 4001}
    found = await asyncio.wait_for(asyncio.wrap_future(outcomes), PATIENCE)
    assert found == [None, None, ConnectionGone, ConnectionGone]
    await client.wait()
    await all_is_left()


async def test_the_consumer_cannot_wait_for_its_own_loop() -> None:
    class OnLoop(SyncRealtimeConsumer):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            async_to_sync(self.on_the_loop)()

        async def on_the_loop(self) -> None:
            self.send(text_data="sent")
            try:
                self.close()
            except RuntimeError as error:
                self.send(text_data=str(error))

    async with connect(OnLoop.as_asgi(), "/", subprotocols=()) as client:
        await client.send(text="x")
        assert await client.receive() == "sent"
        assert "event loop" in str(await client.receive())


def test_a_closed_loop_means_that_the_connection_is_gone() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    outbox = threads.Outbox(loop)
    outbox.put(object(), {"type": "websocket.send"})  # type: ignore[arg-type]
    outbox.deliver()
    with pytest.raises(ConnectionGone):
        threads.call(loop, asyncio.sleep, 0)


# -- sending ---------------------------------------------------------------------------------------


async def test_a_handler_that_sends_much_waits_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, sent = asyncio.Event(), []
    drained = lifecycle.drained

    async def slow(connection: Any) -> None:
        await reading.wait()
        await drained(connection)

    monkeypatch.setattr(lifecycle, "drained", slow)

    class Sends(SyncRealtimeConsumer):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            for number in range(20):
                self.send(bytes_data=b"x" * 100_000)
                sent.append(number)

    client = await open_client(Sends)
    await client.send_to(text_data="go")
    await eventually_async(lambda: len(sent) == 3, within=PATIENCE)
    await asyncio.sleep(0.1)
    assert len(sent) == 3
    reading.set()
    for _ in range(20):
        assert await client.receive_from() == b"x" * 100_000
    await client.disconnect()
    await all_is_left()


async def test_the_thread_does_not_wait_for_a_client_between_events(
    monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    reading, drained, slow = asyncio.Event(), lifecycle.drained, []

    async def wait(connection: Any) -> None:
        if connection in slow:
            await reading.wait()
        await drained(connection)

    monkeypatch.setattr(lifecycle, "drained", wait)

    class Member(Recording):
        def note(self, event: Any) -> None:
            self.send(bytes_data=b"x" * 500_000)

    clients = [await open_client(Member) for _ in range(2)]
    slow.append(next(iter((await lifecycle.hub()).connections.values())))
    for _ in range(3):
        await get_channel_layer().group_send("g", {"type": "note"})
    # The slow one comes first in the group, and gets one event. The other one gets all.
    for _ in range(3):
        await clients[1].receive_from()
    assert clients[0].output_queue.qsize() == 1
    reading.set()
    for _ in range(3):
        await clients[0].receive_from()
    for client in clients:
        await client.disconnect()
    await all_is_left()


async def test_a_frame_that_cannot_be_written_ends_only_its_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Member(Recording):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            self.send(text_data=text_data)

    bad, good = await open_client(Member), await open_client(Member)
    send = lifecycle.send

    def fail(connection: Any, event: Any) -> None:
        if event.get("text") == "bad":
            raise ZeroDivisionError
        send(connection, event)

    monkeypatch.setattr(lifecycle, "send", fail)
    await bad.send_to(text_data="bad")
    assert await bad.receive_output() == {"type": "websocket.close", "code": 4000}
    await bad.wait()
    await good.send_to(text_data="good")
    assert await good.receive_from() == "good"
    await good.disconnect()
    assert caplog.text.count("A frame could not be sent") == 1
    await all_is_left()


async def test_a_text_that_is_none_raises_in_the_handler() -> None:
    class Careless(SyncRealtimeConsumer):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            with pytest.raises(AttributeError):
                self.send(text_data=7)
            with pytest.raises(UnicodeEncodeError):
                self.send(text_data="\ud800")
            self.send(text_data="still here")

    async with connect(Careless.as_asgi(), "/", subprotocols=()) as client:
        await client.send(text="go")
        assert await client.receive() == "still here"
