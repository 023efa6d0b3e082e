"""Group events of many synchronous consumers, handled in one visit to a thread."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer

from realtime.consumers import SyncRealtimeConsumer
from realtime.models import Connection
from realtime.serving import lifecycle, visits
from realtime.serving.runner import Runner, Times
from realtime.serving.visits import Visits
from tests.support.assertions.conversation import LAYER_OF, PATIENCE, Client
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

local = Local()
variable = ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def our_layer(use_layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_layers(LAYER_OF["ours"], "default")
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def members_visited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of members that each visit to a thread has called."""
    sizes: list[int] = []
    call = Visits._call_handlers

    def counted(self: Visits) -> Any:
        done = call(self)
        sizes.append(len(done))
        return done

    monkeypatch.setattr(Visits, "_call_handlers", counted)
    return sizes


async def send(kind: str = "note", **more: Any) -> None:
    await get_channel_layer().group_send("g", {"type": kind, **more})


async def open_clients(consumer: Any, *paths: str) -> list[Client]:
    """Connect a client for each path, and wait until no handler runs: otherwise events go to the inbox."""
    clients = [Client(consumer.as_asgi(), path) for path in paths]
    for client in clients:
        assert (await client.connect())[0]
    held = (await lifecycle.hub()).connections.values()
    # The runner takes the events of its connection.
    runners: list[Any] = [connection.on_event.__self__ for connection in held]  # type: ignore[attr-defined]
    await eventually_async(lambda: all(runner._idle_task for runner in runners), within=PATIENCE)
    return clients


async def leave(clients: list[Client]) -> None:
    for client in clients:
        await client.disconnect()
    await lifecycle.stop()
    assert not get_channel_layer().groups
    assert not await Connection.objects.open().aexists()


class Member(SyncRealtimeConsumer):
    groups = ("g",)

    def note(self, event: Any) -> None:
        self.send(text_data=str(event.get("text")))


async def test_an_event_for_many_members_takes_few_visits(members_visited: list[int]) -> None:
    clients = await open_clients(Member, *["/"] * 40)
    members_visited.clear()
    for number in range(3):
        await send(text=number)
    for client in clients:
        assert [await client.receive_from() for _ in range(3)] == ["0", "1", "2"]
    # The handlers send together, so a few visits at most begin before all members wait.
    assert sum(members_visited) <= 120
    assert len(members_visited) < 12
    await leave(clients)


@pytest.mark.parametrize("threads", [None, 3])
async def test_each_member_handles_one_event_at_a_time_in_order(realtime_settings: Any, threads: Any) -> None:
    realtime_settings(THREADS=threads)
    broken: list[str] = []

    class Busy(SyncRealtimeConsumer):
        groups = ("g",)

        def connect(self) -> None:
            self.lock, self.last = threading.Lock(), -1
            self.accept()

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            self.alone(f"frame {text_data}")

        def note(self, event: Any) -> None:
            if event["number"] != self.last + 1:
                broken.append("order")
            self.last = event["number"]
            self.alone(f"event {event['number']}")

        def alone(self, text: str) -> None:
            if not self.lock.acquire(blocking=False):
                broken.append("two at a time")
                return
            if random.random() < 0.2:
                async_to_sync(asyncio.sleep)(0.001)
            self.send(text_data=text)
            self.lock.release()

    clients = await open_clients(Busy, *["/"] * 8)
    for number in range(60):
        await send(number=number)
        for client in random.sample(clients, 2):
            await client.send_to(text_data=str(number))
        if number % 7 == 0:
            await asyncio.sleep(0.002)
    for client in clients:
        heard = Counter[str]()
        while heard["event"] < 60:
            heard[(await client.receive_from()).split()[0]] += 1
    assert broken == []
    await leave(clients)


async def test_a_handler_that_raises_ends_only_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Some(Member):
        def note(self, event: Any) -> None:
            if self.scope["path"] == "/bad":
                raise ZeroDivisionError
            super().note(event)

    bad, *good = await open_clients(Some, "/bad", *["/good"] * 6)
    await send(text="x")
    for client in good:
        assert await client.receive_from() == "x"
    assert await bad.receive_output() == {"type": "websocket.close", "code": 4000}
    with pytest.raises(ZeroDivisionError):
        await bad.wait()
    assert caplog.text.count("A handler failed (handler_error)") == 1
    await leave(good)


async def test_a_pool_goes_on_while_one_handler_waits(realtime_settings: Any, gate: threading.Event) -> None:
    realtime_settings(THREADS=2)

    class Some(Member):
        def note(self, event: Any) -> None:
            if self.scope["path"] == "/slow":
                gate.wait(PATIENCE)
            super().note(event)

    slow, *clients = await open_clients(Some, "/slow", *["/"] * 10)
    for number in range(2):
        await send(text=number)
        for client in clients:
            assert await client.receive_from() == str(number)
    assert slow.output_queue.empty()
    gate.set()
    assert [await slow.receive_from() for _ in range(2)] == ["0", "1"]
    await leave([slow, *clients])


async def test_a_member_that_left_is_skipped(gate: threading.Event) -> None:
    called: list[str] = []

    class Some(Member):
        def note(self, event: Any) -> None:
            called.append(self.scope["path"])

    clients = await open_clients(Some, "/", "/")
    blocking = asyncio.create_task(sync_to_async(gate.wait)(PATIENCE))
    await asyncio.sleep(0.01)
    await send()
    await asyncio.sleep(0.05)
    await clients[0].send_input({"type": "websocket.disconnect", "code": 1001})
    (connection, _) = (await lifecycle.hub()).connections.values()
    await eventually_async(lambda: connection.gone, within=PATIENCE)
    gate.set()
    await blocking
    await clients[0].wait()
    await eventually_async(lambda: len(called) == 1, within=PATIENCE)
    await leave(clients)


async def test_a_consumer_that_is_cancelled_meanwhile_logs_its_failure(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    begun, ended = threading.Event(), []

    class Some(SyncRealtimeConsumer):
        groups = ("g",)

        def note(self, event: Any) -> None:
            begun.set()
            gate.wait(PATIENCE)
            raise ZeroDivisionError

        def disconnect(self, code: int) -> None:
            ended.append(code)

    (client,) = await open_clients(Some, "/")
    await send()
    await eventually_async(begun.is_set, within=PATIENCE)
    client.future.cancel()
    await asyncio.wait([client.future], timeout=0.2)
    gate.set()
    await eventually_async(lambda: ended == [4000], within=PATIENCE)
    await eventually_async(lambda: "ZeroDivisionError" in caplog.text, within=PATIENCE)
    assert caplog.text.count("A handler failed") == 1
    await lifecycle.stop()


async def test_contexts_stay_apart_and_last() -> None:
    class Some(SyncRealtimeConsumer):
        groups = ("g",)

        def connect(self) -> None:
            variable.set(self.scope["path"])
            local.value = self.scope["path"]
            self.accept()

        def note(self, event: Any) -> None:
            # Nested code sees them too, and runs in this thread.
            nested = async_to_sync(sync_to_async(lambda: (variable.get(), threading.get_ident())))()
            assert nested == (variable.get(), threading.get_ident())
            self.send(text_data=f"{variable.get()} {local.value}")
            variable.set(variable.get() + "+")

    clients = await open_clients(Some, "/0", "/1", "/2")
    for plus in ("", "+"):
        await send()
        for number, client in enumerate(clients):
            assert await client.receive_from() == f"/{number}{plus} /{number}"
    assert variable.get() == "unset"
    await leave(clients)


@pytest.mark.parametrize("closes", [True, False])
async def test_stale_connections_are_closed_around_each_handler(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    calls: list[str] = []
    # Channels' test client replaces the function itself while it runs.
    closing = SimpleNamespace(close_old_connections=lambda: calls.append("close"))
    monkeypatch.setattr(visits, "db", closing)

    class Some(Member):
        closes_old_connections = closes

        def note(self, event: Any) -> None:
            calls.append("handler")
            super().note(event)

    clients = await open_clients(Some, *["/"] * 3)
    await send()
    for client in clients:
        await client.receive_from()
    await eventually_async(lambda: not closes or calls[-1] == "close", within=PATIENCE)
    assert "handler handler" not in " ".join(calls) if closes else "close" not in calls
    await leave(clients)


async def test_a_pool_that_is_shut_down_ends_the_connections(
    realtime_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ThreadPoolExecutor(1)
    realtime_settings(THREADS=1)
    monkeypatch.setattr("realtime.serving.threads._pool", lambda threads: pool)
    clients = await open_clients(Member, "/", "/")
    pool.shutdown()
    await send()
    for client in clients:
        with pytest.raises(RuntimeError, match="shutdown"):
            await client.wait()
    await lifecycle.stop()


async def test_without_asgirefs_internals_no_visit_is_shared(
    monkeypatch: pytest.MonkeyPatch, members_visited: list[int]
) -> None:
    monkeypatch.setattr(visits, "_restore_context", None)
    clients = await open_clients(Member, "/", "/")
    await send(text="x")
    for client in clients:
        assert await client.receive_from() == "x"
    assert members_visited == []
    await leave(clients)


async def test_a_flood_of_events_waits_in_the_inbox(
    monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    monkeypatch.setattr(visits, "MAX_EVENTS", 5)
    clients = await open_clients(Member, "/", "/")
    blocking = asyncio.create_task(sync_to_async(gate.wait)(PATIENCE))
    await asyncio.sleep(0.01)
    for number in range(20):
        await send(text=number)
    await asyncio.sleep(0.05)
    gate.set()
    await blocking
    for client in clients:
        assert [await client.receive_from() for _ in range(20)] == [str(number) for number in range(20)]
    await leave(clients)


async def test_an_event_goes_behind_those_in_the_inbox(
    monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    (client,) = await open_clients(Member, "/")
    (connection,) = (await lifecycle.hub()).connections.values()
    blocking = asyncio.create_task(sync_to_async(gate.wait)(PATIENCE))
    await asyncio.sleep(0.01)
    # In one turn of the loop, so that the connection's own task does not see the inbox meanwhile.
    for number, most in ((0, 1), (1, 1), (2, 100)):
        monkeypatch.setattr(visits, "MAX_EVENTS", most)
        connection.on_group_event({"type": "note", "text": number})
    gate.set()
    await blocking
    assert [await client.receive_from() for _ in range(3)] == ["0", "1", "2"]
    await leave([client])
