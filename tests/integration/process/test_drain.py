"""The drain: the work when it begins, the work that it waits for, and the signals that start it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.db.models.functions import Now
from django.test import AsyncClient

from realtime import publishing
from realtime.closing import CloseReason
from realtime.consumers import RealtimeConsumer
from realtime.errors import ConnectionGone
from realtime.hub.connection import Connection
from realtime.layers import groups
from realtime.models import Connection as Record
from realtime.models import Membership, Process
from realtime.process import drain
from realtime.process.drain import Drain
from realtime.routing import lifespan
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles.eager import eager_tasks
from tests.support.doubles.peer import Peer

DATABASE = pytest.mark.usefixtures("site")


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for close frames, because these tests have no sockets."""
    monkeypatch.setattr(drain, "LINGER", 0.0)


def this_drain() -> Drain:
    """Return the drain of the running event loop, which the first connection prepared."""
    return drain._drains[asyncio.get_running_loop()]


# -- evictions and records ---------------------------------------------------------------------------


@DATABASE
async def test_all_are_closed_when_it_starts_and_recorded_when_it_ends() -> None:
    peers = await asyncio.gather(*(Peer().open("g") for _ in range(5)))
    home = await lifecycle.hub()
    ending = this_drain().start()
    for peer in peers:
        assert peer.connection.reason is CloseReason.SERVER_RESTART
        assert '"reason":"server_restart"' in peer.texts[-1]
        assert peer.sent[-1] == {"type": "websocket.close", "code": 4000}
    assert not home.connections
    await ending
    assert await Record.objects.filter(close_reason="server_restart", close_code=4000).acount() == 5
    assert not await Membership.objects.to_leave().aexists()
    process = await Process.objects.aget(pk=home.process)
    assert process.stopped_at is not None
    assert not process.lost


@DATABASE
async def test_a_drain_happens_once() -> None:
    await Peer().open("g")
    first = this_drain().start()
    assert this_drain().start() is first
    await first
    assert this_drain().start() is first


async def test_an_eager_drain_begins_before_it_records() -> None:
    begun = []

    async def recording() -> None:
        begun.append(stop.begun)

    stop = Drain(recording)
    async with eager_tasks():
        await stop.start()
    assert begun == [True]


@DATABASE
async def test_a_later_client_is_told_and_leaves_no_record() -> None:
    await Peer().open("g")
    await this_drain().start()
    handled: list[str] = []

    class Consumer(RealtimeConsumer):
        async def connect(self) -> None:
            handled.append("connect")
            await self.accept()

    client = WebsocketCommunicator(Consumer.as_asgi(), "/", subprotocols=["realtime.v1"])
    assert await client.connect() == (True, "realtime.v1")
    assert '"reason":"server_restart","reconnect":true,"retry_after"' in await client.receive_from()
    assert await client.receive_output() == {"type": "websocket.close", "code": 4000}
    await client.wait()
    assert handled == []
    assert await Record.objects.acount() == 1


@DATABASE
async def test_a_connection_that_is_being_admitted_ends_too() -> None:
    peer = Peer()
    # Its hub is still being started.
    opening = asyncio.ensure_future(lifecycle.admit(peer.connection))
    while asyncio.get_running_loop() not in drain._drains:
        await asyncio.sleep(0)
    ending = this_drain().start()
    with pytest.raises(ConnectionGone):
        await opening
    await ending
    assert not await Record.objects.filter(closed_at=None).aexists()
    assert not await Process.objects.filter(stopped_at=None).aexists()


@DATABASE
async def test_the_drain_waits_for_disconnect_handlers() -> None:
    said = asyncio.Event()

    class Consumer(RealtimeConsumer):
        async def disconnect(self, code: int) -> None:
            await asyncio.sleep(0.05)
            said.set()

    client = WebsocketCommunicator(Consumer.as_asgi(), "/")
    await client.connect()
    ending = this_drain().start()
    assert await client.receive_output() == {"type": "websocket.close", "code": 4000}
    await client.send_input({"type": "websocket.disconnect", "code": 4000})
    await ending
    assert said.is_set()


@DATABASE
async def test_a_hung_handler_costs_the_limit_and_no_record(
    realtime_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    realtime_settings(DRAIN_TIMEOUT=0.3)
    monkeypatch.setattr(Runner, "times", Times(cleanup=0.05))

    class Consumer(RealtimeConsumer):
        async def disconnect(self, code: int) -> None:
            await asyncio.Event().wait()

    client = WebsocketCommunicator(Consumer.as_asgi(), "/")
    await client.connect()
    async with asyncio.timeout(2):
        await this_drain().start()
    assert await Record.objects.filter(close_reason="server_restart").acount() == 1
    assert not await Process.objects.filter(stopped_at=None).aexists()
    await client.send_input({"type": "websocket.disconnect", "code": 4000})
    client.future.cancel()
    await asyncio.wait([client.future])


@DATABASE
async def test_rows_are_written_although_the_layer_hangs(
    realtime_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    realtime_settings(DRAIN_TIMEOUT=0.6)
    peer = await Peer().open("g")

    async def hanging(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(groups, "discard", hanging)
    async with asyncio.timeout(2):
        await this_drain().start()
    assert (await peer.record()).close_reason == "server_restart"
    assert not await Process.objects.filter(stopped_at=None).aexists()
    # The next round does that.
    assert await Membership.objects.to_leave().acount() == 1


@DATABASE
async def test_a_process_that_stops_is_not_ready() -> None:
    await Peer().open()
    assert not drain.under_way()
    ending = this_drain().start()
    answer = await AsyncClient().get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "process": "stopping"})
    assert (await AsyncClient().get("/health/live")).status_code == 200
    await ending


async def fails_later() -> None:
    raise ValueError("broken")


def fails_immediately() -> Coroutine[Any, Any, None]:
    raise ValueError("broken")


@pytest.mark.parametrize("fails", [fails_later, fails_immediately])
async def test_a_drain_that_fails_ends(fails: drain.Begin, caplog: pytest.LogCaptureFixture) -> None:
    await Drain(fails).start()
    assert "Stopping failed" in caplog.text


@DATABASE
async def test_a_failed_eviction_does_not_keep_others(caplog: pytest.LogCaptureFixture) -> None:
    peers = [await Peer().open("g") for _ in range(4)]

    def broken(*_: Any) -> None:
        raise ValueError("broken")

    for peer in peers[:3]:
        peer.connection.on_event = broken
    await this_drain().start()
    assert caplog.text.count("A connection was not evicted") == 3
    assert await Record.objects.filter(close_reason="server_restart").acount() == 4


# -- a process that was declared lost ----------------------------------------------------------------


@DATABASE
async def test_a_lost_process_closes_its_sockets_over_a_window(
    realtime_settings: Callable[..., None],
) -> None:
    realtime_settings(RECONNECT_WINDOW=0.4)
    loop = asyncio.get_running_loop()
    peers = await asyncio.gather(*(Peer().open("g") for _ in range(8)))
    old = await lifecycle.hub()
    began = loop.time()
    old._owner.hub_is_lost(old)
    await publishing.apublish("g", "too late")
    closed: dict[Connection, float] = {}

    def all_closed() -> bool:
        for peer in peers:
            if peer.connection.gone:
                closed.setdefault(peer.connection, loop.time() - began)
        return len(closed) == len(peers)

    await eventually_async(all_closed, within=5, every=0.005)
    assert max(closed.values()) - min(closed.values()) > 0.2, "closed in one instant"
    assert {peer.connection.reason for peer in peers} == {CloseReason.SERVER_LOST}
    assert not any("too late" in text for peer in peers for text in peer.texts)
    assert await lifecycle.hub() is not old


@DATABASE
async def test_no_client_joins_a_group_in_a_lost_process(realtime_settings: Callable[..., None]) -> None:
    realtime_settings(RECONNECT_WINDOW=60)
    peers = [await Peer().open("g") for _ in range(4)]
    old = await lifecycle.hub()
    old._owner.hub_is_lost(old)
    await eventually_async(lambda: any(peer.connection.gone for peer in peers), within=5)
    waiting = [peer for peer in peers if not peer.connection.gone]
    assert len(waiting) == 3
    with pytest.raises(ConnectionGone):
        await lifecycle.group_add(waiting[0].connection, "h")
    assert waiting[0].connection.reason is CloseReason.SERVER_LOST
    assert [peer.connection.gone for peer in waiting] == [True, False, False]
    # A stop does not wait for the window.
    async with asyncio.timeout(3):
        await this_drain().start()
    assert all(peer.connection.gone for peer in peers)
    assert not await Record.objects.filter(closed_at=None).aexists()


@DATABASE
async def test_a_process_finds_out_that_it_was_declared_lost(
    realtime_settings: Callable[..., None],
) -> None:
    realtime_settings(ROUND_INTERVAL=0.1, ROUND_TIMEOUT=0.05)
    peer = await Peer().open("g")
    home = await lifecycle.hub()
    # Rounds no longer ask it.
    await Process.objects.filter(pk=home.process).aupdate(lost=True, stopped_at=Now())
    await eventually_async(lambda: peer.connection.reason is CloseReason.SERVER_LOST, within=5)
    assert await lifecycle.hub() is not home


# -- uvicorn -----------------------------------------------------------------------------------------


class Server:
    """A stand-in for uvicorn's server, with a signal handler and a shutdown."""

    def __init__(self) -> None:
        self.force_exit = False
        self.closed: list[object] = []

    def handle_exit(self, number: int, frame: FrameType | None) -> None: ...

    async def shutdown(self, sockets: list[object] | None = None) -> None:
        self.closed.append(sockets)


Server.__module__ = "uvicorn.server"


@pytest.fixture
def handlers() -> Iterator[Callable[[Any], None]]:
    """Set the handler of SIGTERM. At the end it is as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def server(handlers: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server that serves this process."""
    monkeypatch.setattr(drain, "_end_without_threads", lambda: None)
    server = Server()
    handlers(server.handle_exit)
    return server


async def test_uvicorn_closes_nothing_before_the_stop_is_recorded(server: Server) -> None:
    recorded = asyncio.Event()

    async def record() -> None:
        await recorded.wait()

    drain.prepare(record)
    stopping = asyncio.create_task(server.shutdown(sockets=["a socket"]))
    await eventually_async(drain.under_way, within=5)
    await asyncio.sleep(2 * drain.FORCE_EXIT_POLL)
    assert server.closed == []
    recorded.set()
    await stopping
    assert server.closed == [["a socket"]]


async def test_after_a_second_ctrl_c_uvicorn_does_not_wait(server: Server) -> None:
    recorded = asyncio.Event()

    async def record() -> None:
        await recorded.wait()

    drain.prepare(record)
    stopping = asyncio.create_task(server.shutdown())
    await eventually_async(drain.under_way, within=5)
    server.force_exit = True
    await stopping
    assert server.closed == [None]
    recorded.set()
    await this_drain().start()


async def test_other_programs_that_handle_signals_are_left_alone(handlers: Callable[[Any], None]) -> None:
    class Other(Server):
        """A server of another program, with the same methods."""

    def another_handler(number: int, frame: FrameType | None) -> None: ...

    other = Other()
    for handler in (another_handler, other.handle_exit, signal.SIG_DFL, signal.SIG_IGN):
        handlers(handler)
        drain._hook_uvicorn(Drain(never_ends))
        assert signal.getsignal(signal.SIGTERM) == handler
    assert "shutdown" not in vars(other)


async def test_a_loop_in_another_thread_is_not_uvicorns(server: Server) -> None:
    async def first_connection() -> None:
        drain.prepare(never_ends)

    await asyncio.to_thread(lambda: asyncio.run(first_connection()))
    assert "shutdown" not in vars(server)


async def never_ends() -> None:
    await asyncio.Event().wait()


# -- other servers -----------------------------------------------------------------------------------

SERVER = """
import asyncio, os, signal, sys
from realtime.process import drain

async def serve():
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (print("the server stops", flush=True), stopped.set()))

    async def record():
        await asyncio.sleep(0.3)
        print("recorded", flush=True)

    def begin():
        print("begun", flush=True)
        return record()

    drain.prepare(begin)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    await stopped.wait()
    await drain.finish()

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(serve())
else:
    asyncio.run(serve())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_server_on_asyncios_loop_stops_after_the_drain(name: str) -> None:
    assert said_by_a_server("asyncio", name) == ["begun", "recorded", "the server stops"]


def test_on_uvloop_the_drain_begins_before_the_server_stops() -> None:
    pytest.importorskip("uvloop")
    assert said_by_a_server("uvloop", "SIGTERM") == ["begun", "the server stops", "recorded"]


def said_by_a_server(loop: str, number: str) -> list[str]:
    """Run a program that sets handlers as granian and hypercorn do, and tells itself to stop."""
    code = "import django; django.setup()" + SERVER
    result = subprocess.run(
        [sys.executable, "-c", code, loop, number], capture_output=True, text=True, timeout=30, check=True
    )
    return result.stdout.splitlines()


@DATABASE
async def test_lifespan_shutdown_is_answered_when_the_stop_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drain, "_end_without_threads", lambda: None)
    peer = await Peer().open("g")
    answers: list[str] = []
    arriving = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "lifespan.shutdown.complete":
            assert await Record.objects.filter(close_reason="server_restart").acount() == 1
        else:
            assert not drain.under_way()
        answers.append(event["type"])

    await lifespan({"type": "lifespan"}, receive, send)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert peer.connection.reason is CloseReason.SERVER_RESTART


# -- the exit ----------------------------------------------------------------------------------------


def test_a_loop_in_another_thread_is_drained_at_the_exit() -> None:
    done: list[str] = []
    running, over = threading.Event(), threading.Event()

    async def record() -> None:
        done.append("recorded")

    async def serve() -> None:
        drain.prepare(record)
        running.set()
        await asyncio.to_thread(over.wait)

    server = threading.Thread(target=lambda: asyncio.run(serve()))
    server.start()
    try:
        assert running.wait(5)
        drain._at_exit()
        assert done == ["recorded"]
    finally:
        over.set()
        server.join()
    drain._at_exit()
    assert done == ["recorded"]


EXIT = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from realtime.process import drain

drain.THREADS_TIMEOUT = 0.3
drain._end_without_threads()
{what}
"""
HANGS = "ThreadPoolExecutor(1).submit(threading.Event().wait)"
IS_SLOW = "atexit.register(lambda: [time.sleep(1), print('done')])"


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("what", "code", "said"), [(HANGS, drain.THREADS_HUNG, "These threads hang"), (IS_SLOW, 0, "done")]
)
def test_the_exit_waits_for_slow_threads_but_not_for_hung_ones(what: str, code: int, said: str) -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", EXIT.format(what=what)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.support.settings"},
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stdout + ended.stderr
    assert time.monotonic() - began < 15
