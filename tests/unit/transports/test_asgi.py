"""The transport for any server. Tests use an event loop only if a real server would need one."""

import asyncio
import functools
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from realtime.closing import CloseReason
from realtime.transports.asgi import AsgiTransport, Event, Options, finishes_in_one_step
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles.eager import eager_tasks
from tests.support.doubles.watching import Watching

OPTIONS = Options(max_unsent=1000, send_timeout=10.0)
MESSAGE: Event = {"type": "websocket.send", "text": "hello"}


class Server:
    """A server's `send`, which records events, and raises or suspends if told to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.raises: Exception | None = None
        self.suspends = False
        self.watcher = Watching()

    async def send(self, event: Event) -> None:
        if self.raises is not None:
            raise self.raises
        if self.suspends:
            await _suspend()
        self.events.append(event)

    send.__module__ = "daphne.server"

    def transport(self, *, max_unsent: int = 1000) -> AsgiTransport:
        return AsgiTransport(self.send, Options(max_unsent=max_unsent, send_timeout=10.0), self.watcher)

    @property
    def failures(self) -> list[tuple[CloseReason, BaseException | None]]:
        return list(zip(self.watcher.failures, self.watcher.errors, strict=True))

    def accepted(self, **options: Any) -> AsgiTransport:
        transport = self.transport(**options)
        run(transport.accept({"type": "websocket.accept"}))
        return transport

    @property
    def types(self) -> list[str]:
        return [event["type"].removeprefix("websocket.") for event in self.events]


@types.coroutine
def _suspend() -> Generator[None, None, None]:
    yield


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_a_prompt_send_is_finished_when_write_returns() -> None:
    server = Server()
    transport = server.accepted()
    transport.write(MESSAGE, 5)
    assert server.types == ["accept", "send"]
    assert transport.unsent == 0


def test_what_is_written_before_accept_waits_and_is_counted() -> None:
    server = Server()
    transport = server.transport()
    transport.write(MESSAGE, 5)
    assert server.events == []
    assert transport.unsent == 5


@pytest.mark.parametrize("error", [RuntimeError("closed"), OSError("gone"), Exception("invalid state")])
def test_a_send_that_raises_is_reported_once_to_the_watcher(error: Exception) -> None:
    server = Server()
    transport = server.accepted()
    server.raises = error
    transport.write(MESSAGE, 5)
    assert server.failures == [(CloseReason.SEND_FAILED, error)]


def test_more_unsent_bytes_than_allowed_are_a_slow_consumer() -> None:
    server = Server()
    transport = server.transport(max_unsent=9)
    transport.write(MESSAGE, 5)
    assert server.failures == []
    transport.write(MESSAGE, 5)
    assert server.failures == [(CloseReason.SLOW_CONSUMER, None)]


def test_nothing_is_written_after_close() -> None:
    server = Server()
    transport = server.accepted()
    transport.close({"type": "websocket.close", "code": 4000})
    transport.write(MESSAGE, 5)
    transport.close({"type": "websocket.close", "code": 4000})
    assert server.types == ["accept", "close"]


def test_a_goodbye_precedes_the_close() -> None:
    server = Server()
    server.accepted().close({"type": "websocket.close", "code": 4000}, MESSAGE)
    assert server.types == ["accept", "send", "close"]


def test_no_goodbye_is_sent_before_the_handshake() -> None:
    server = Server()
    server.transport().close({"type": "websocket.close", "code": 4000}, MESSAGE)
    assert server.types == ["close"]


def test_a_refused_close_code_becomes_a_plain_close() -> None:
    server = Server()
    transport = server.accepted()
    refused: list[Event] = []

    async def picky(event: Event) -> None:
        if event.get("code") == 1011:
            refused.append(event)
            raise Exception("invalid close code 1011")
        server.events.append(event)

    transport._send = picky
    transport.close({"type": "websocket.close", "code": 1011})
    assert refused
    assert server.events[-1] == {"type": "websocket.close"}


def test_nothing_is_sent_to_a_peer_that_is_gone() -> None:
    server = Server()
    transport = server.accepted()
    transport.abandon()
    transport.close({"type": "websocket.close", "code": 4000}, MESSAGE)
    assert server.types == ["accept"]


@pytest.mark.parametrize("module", ["daphne.server", "a.middleware"])
async def test_a_close_that_suspends_is_sent_after_its_goodbye(module: str) -> None:
    server = Server()

    async def send(event: Event) -> None:
        await asyncio.sleep(0)
        await server.send(event)

    send.__module__ = module
    transport = AsgiTransport(send, OPTIONS, server.watcher)
    await transport.accept({"type": "websocket.accept"})
    transport.close({"type": "websocket.close", "code": 4000}, MESSAGE)
    transport.write(MESSAGE, 5)
    await eventually_async(lambda: server.types == ["accept", "send", "close"], within=5)
    assert server.failures == []


async def test_a_close_that_waits_too_long_is_given_up() -> None:
    server = Server()
    given_up = asyncio.Event()

    async def send(event: Event) -> None:
        try:
            if event["type"] == "websocket.close":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    transport = AsgiTransport(
        send, Options(max_unsent=1000, send_timeout=0.05, close_limit=0.05), server.watcher
    )
    await transport.accept({"type": "websocket.accept"})
    transport.close({"type": "websocket.close", "code": 4000})
    await asyncio.wait_for(given_up.wait(), 5)
    assert server.failures == []


def _of_module(module: str) -> Callable[..., Any]:
    async def send(event: Event) -> None: ...

    send.__module__ = module
    return send


class _Wrapper:
    def __init__(self, send: Any) -> None:
        self.real_send = send

    async def send(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    ("send", "expected"),
    [
        (_of_module("daphne.server"), True),
        (_of_module("uvicorn.protocols.websockets.websockets_sansio_impl"), True),
        (functools.partial(_of_module("daphne.server"), object()), True),
        (_Wrapper(functools.partial(_of_module("daphne.server"), object())).send, True),
        (_of_module("hypercorn.asyncio"), False),
        (_of_module("sentry_sdk.integrations.asgi"), False),
        (_Wrapper(_of_module("hypercorn.asyncio")).send, False),
    ],
)
def test_only_the_send_of_a_known_server_is_driven_by_hand(send: Any, expected: bool) -> None:
    assert finishes_in_one_step(send) is expected


@pytest.mark.parametrize("way", ["close", "abandon"])
def test_a_handshake_that_has_ended_is_not_accepted(way: str) -> None:
    server = Server()
    transport = server.transport()
    if way == "close":
        transport.close({"type": "websocket.close", "code": 4000})
    else:
        transport.abandon()
    run(transport.accept({"type": "websocket.accept"}, MESSAGE))
    assert "accept" not in server.types
    assert "send" not in server.types


async def test_a_send_that_fails_in_the_queue_ends_with_a_close() -> None:
    server = Server()

    async def send(event: Event) -> None:
        if event["type"] == "websocket.send":
            await asyncio.sleep(0)
            raise OSError("gone")
        server.events.append(event)

    send.__module__ = "uvicorn.server"
    transport = AsgiTransport(
        send, OPTIONS, Watching(lambda _: transport.close({"type": "websocket.close", "code": 4009}))
    )
    await transport.accept({"type": "websocket.accept"})
    transport.write(MESSAGE, 5)
    await eventually_async(lambda: server.types == ["accept", "close"], within=5)


async def test_queues_are_sent_under_an_eager_task_factory() -> None:
    async with eager_tasks():
        server = Server()
        transport = server.transport()
        transport.write(MESSAGE, 5)
        # The queue is sent in one step.
        await transport.accept({"type": "websocket.accept"})
        await eventually_async(lambda: server.types == ["accept", "send"], within=5)
        server.suspends = True
        transport.write(MESSAGE, 5)
        transport.write(MESSAGE, 5)
        await eventually_async(lambda: server.types == ["accept", "send", "send", "send"], within=5)
        assert transport.unsent == 0
