"""`background_loop` and `native_loop` in a process without gevent or eventlet."""

import _thread
import asyncio
import select
import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from realtime.process.background_loop import BackgroundLoop
from realtime.process.native_loop import NativeLoop, PollSelector


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    made = BackgroundLoop()
    yield made
    made.stop()


@pytest.fixture
def native() -> Iterator[NativeLoop]:
    made = NativeLoop(select.poll(), _thread.start_new_thread)
    yield made
    made.close()


async def loop_of_this_call() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_all_calls_share_a_loop(background: BackgroundLoop) -> None:
    assert background.run(loop_of_this_call()) is background.run(loop_of_this_call())


def test_a_stopped_loop_is_closed_and_replaced(background: BackgroundLoop) -> None:
    first = background.run(loop_of_this_call())
    background.stop()
    assert first.is_closed()
    assert background.run(loop_of_this_call()) is not first


def test_a_running_call_is_cancelled_when_the_loop_stops(background: BackgroundLoop) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def start() -> "asyncio.Task[None]":
        return asyncio.create_task(wait())

    task = background.run(start())
    assert started.wait(5)
    background.stop()
    assert cancelled.is_set()
    assert task.cancelled()


def test_a_caller_waits_no_longer_than_its_limit(background: BackgroundLoop) -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        background.run(wait(), within=0.05)
    assert cancelled.wait(5)


def test_a_thread_that_cannot_start_is_an_oserror(
    background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            background.run(loop_of_this_call())
    assert background.run(loop_of_this_call()).is_running()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_native_loop_connects(native: NativeLoop, host: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def converse() -> bytes:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"hello\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    assert native.run_until_complete(converse()) == b"hello\n"


def test_the_native_loop_tells_why_it_cannot_connect(native: NativeLoop) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            native.run_until_complete(asyncio.open_connection("127.0.0.1", unused.getsockname()[1]))
    with pytest.raises(FileNotFoundError):
        native.run_until_complete(asyncio.open_unix_connection("/nowhere/socket"))


def test_a_function_in_a_native_thread_returns_or_raises(native: NativeLoop) -> None:
    async def call(text: str) -> int:
        return await asyncio.to_thread(int, text)

    assert native.run_until_complete(call("7")) == 7
    with pytest.raises(ValueError, match="seven"):
        native.run_until_complete(call("seven"))


def test_the_selector_reports_ready_files() -> None:
    selector = PollSelector(select.poll())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        selector.register(ours, selectors.EVENT_READ, "data")
        with pytest.raises(KeyError):
            selector.register(ours, selectors.EVENT_READ)
        assert selector.select(0) == []
        theirs.send(b"!")
        ((key, events),) = selector.select(1)
        assert (key.fileobj, key.data, events) == (ours, "data", selectors.EVENT_READ)
        selector.modify(ours, selectors.EVENT_READ | selectors.EVENT_WRITE)
        ((_, events),) = selector.select(1)
        assert events == selectors.EVENT_READ | selectors.EVENT_WRITE
        selector.unregister(ours)
        assert selector.select(0) == []
        with pytest.raises(KeyError):
            selector.unregister(ours)


def test_the_selector_reports_a_hang_up_to_the_reader() -> None:
    selector = PollSelector(select.poll())
    ours, theirs = socket.socketpair()
    with ours:
        selector.register(ours, selectors.EVENT_READ)
        theirs.close()
        ((_, events),) = selector.select(1)
        assert events == selectors.EVENT_READ
