"""Code and test suites that look at a channel layer see the same on ours as on that of the library.

The same assertions run on both, except in the tests that need what only ours has.
"""

import asyncio
import copy
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import pytest_asyncio
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from realtime.layers import CoreLayer, MemoryLayer, PubSubLayer
from realtime.layers.stamped import STAMP
from tests.support.programs.servers import RedisServer

pytestmark = pytest.mark.acceptance  # for the real Redis

PATIENCE = 5.0  # seconds
EVENT = {"type": "chat.message", "words": ["a", "b"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


in_memory = pytest.mark.parametrize("layer", [InMemoryChannelLayer, MemoryLayer], indirect=True)
on_core = pytest.mark.parametrize("layer", [RedisChannelLayer, CoreLayer], indirect=True)
on_pubsub = pytest.mark.parametrize("layer", [RedisPubSubChannelLayer, PubSubLayer], indirect=True)


@pytest_asyncio.fixture
async def layer(request: pytest.FixtureRequest, server: RedisServer) -> AsyncIterator[Any]:
    options = {} if issubclass(request.param, InMemoryChannelLayer) else {"hosts": [server.url]}
    made = request.param(**options)
    yield made
    await made.flush()


async def joined(layer: Any) -> str:
    channel: str = await layer.new_channel()
    await layer.group_add("g", channel)
    await asyncio.sleep(0.1)  # the library's pub/sub layer does not wait until its subscription is active
    return channel


async def received(layer: Any, channel: str) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await layer.receive(channel)


# -- what the in-memory layer holds and hands out ----------------------------------------------------


@in_memory
async def test_the_queue_of_a_channel_holds_the_message_of_the_sender(layer: Any) -> None:
    channel = await joined(layer)
    await layer.group_send("g", EVENT)
    ((_, held),) = layer.channels[channel]._queue
    assert held == EVENT
    assert isinstance(held, dict)
    assert set(held) == set(EVENT)
    assert repr(held) == repr(EVENT)
    assert copy.deepcopy(held) == EVENT
    assert held["words"] is not EVENT["words"]
    assert await received(layer, channel) == EVENT


@in_memory
async def test_a_mocked_send_is_called_with_the_message_of_the_sender(layer: Any) -> None:
    channel = await joined(layer)
    with mock.patch.object(layer, "send", new_callable=mock.AsyncMock) as send:
        await layer.group_send("g", EVENT)
    send.assert_awaited_once_with(channel, EVENT)


async def test_a_hub_still_learns_the_group() -> None:
    layer = MemoryLayer()
    channel = await joined(layer)
    await layer.group_send("g", EVENT)
    assert await layer.receive_stamped(channel) == {**EVENT, STAMP: "g"}


# -- locks around methods ----------------------------------------------------------------------------


class _Guard:
    """A lock of threads that fails instead of waiting for ever."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        assert self._lock.acquire(timeout=PATIENCE), "two threads wait for each other"

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Calls:
    """A thread with an event loop, as that of synchronous code that publishes."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await work()

        async with asyncio.timeout(PATIENCE):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(whole(), self.loop))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def elsewhere() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    calls.close()


#: The methods that a known test suite puts a lock around; around `receive`, no layer would work.
LOCKED = (
    "_clean_expired",
    "_remove_from_groups",
    "close",
    "flush",
    "group_add",
    "group_discard",
    "group_send",
    "new_channel",
    "send",
)


@pytest.mark.parametrize("patched", [InMemoryChannelLayer, MemoryLayer])
async def test_a_lock_between_threads_stops_no_message(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Calls, patched: Any
) -> None:
    """A thread that holds the lock must not wait for the loop of a thread that waits for the lock."""
    guard = _Guard()

    def locked(method: Any) -> Any:
        if not inspect.iscoroutinefunction(method):

            def plain(*arguments: Any, **options: Any) -> Any:
                with guard:
                    return method(*arguments, **options)

            return plain

        async def waiting(*arguments: Any, **options: Any) -> Any:
            with guard:
                return await method(*arguments, **options)

        return waiting

    for name in LOCKED:
        monkeypatch.setattr(patched, name, locked(getattr(patched, name)))
    layer = MemoryLayer()
    channel = await joined(layer)
    receiving = asyncio.ensure_future(received(layer, channel))
    await asyncio.sleep(0)

    async def publish() -> None:
        for number in range(20):
            await layer.group_send("g", {"type": "x", "n": number})

    publishing = asyncio.ensure_future(elsewhere.do(publish))
    for number in range(20):
        await layer.group_add(f"other{number}", channel)
        await asyncio.sleep(0)
    await publishing
    numbers = [(await receiving)["n"], *[(await received(layer, channel))["n"] for _ in range(19)]]
    assert numbers == list(range(20))


async def test_a_lock_that_is_not_reentrant_stops_nothing_of_ours() -> None:
    """Channels' own `group_send` calls `send`, so no suite can have one lock of this kind around both."""
    layer, lock = MemoryLayer(), asyncio.Lock()

    def locked(method: Any) -> Any:
        async def waiting(*arguments: Any, **options: Any) -> Any:
            async with lock:
                return await method(*arguments, **options)

        return waiting

    methods = [
        name
        for name, method in inspect.getmembers(layer, inspect.iscoroutinefunction)
        if name not in ("receive", "receive_stamped", "send")
    ]
    assert {"echo", "re_add", "group_add", "group_send"} <= set(methods)
    for name in methods:
        setattr(layer, name, locked(getattr(layer, name)))
    async with asyncio.timeout(PATIENCE):
        channel = await joined(layer)
        await layer.re_add(["g", "h"], channel)
        await layer.group_send("h", EVENT)
        assert await layer.receive(channel) == EVENT
        assert await layer.echo([channel], 1) == 1
        assert (await layer.receive_stamped(channel))["number"] == 1


async def test_a_full_channel_of_another_loop_refuses_a_message(elsewhere: Calls) -> None:
    layer = MemoryLayer(capacity=2)
    channel = await layer.new_channel()
    await layer.open_channel(channel)

    async def send() -> None:
        await layer.send(channel, EVENT)

    for _ in range(2):
        await elsewhere.do(send)
        await asyncio.sleep(0)
    with pytest.raises(Exception, match="inmemory") as refusal:
        await elsewhere.do(send)
    assert type(refusal.value).__name__ == "ChannelFull"


# -- defaults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "defaults"),
    [
        (InMemoryChannelLayer, (100, 60)),
        (MemoryLayer, (10_000, 60)),
        (RedisChannelLayer, (100, 60)),
        (CoreLayer, (10_000, 3600)),
    ],
)
def test_the_defaults_are_those_of_the_howto(layer: Any, defaults: tuple[int, int]) -> None:
    made = layer()
    assert (made.capacity, made.expiry) == defaults


# -- messages that are no dicts ------------------------------------------------------------------------


async def outcome(call: Awaitable[None]) -> str:
    """Return the exception of a call as text; empty if there is none."""
    try:
        await call
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


#: What the libraries do with a str; the same with any other value that is no dict.
ASSERTION = "AssertionError: message is not a dict"


@in_memory
async def test_a_str_is_refused_by_the_memory_layer(layer: Any) -> None:
    channel = await joined(layer)
    assert await outcome(layer.group_send("g", "text")) == "AssertionError: Message is not a dict"
    assert await outcome(layer.group_send("nobody", "text")) == "AssertionError: Message is not a dict"
    assert await outcome(layer.send(channel, "text")) == ASSERTION


@on_core
async def test_a_str_is_refused_by_the_core_layer_if_a_member_is_there(layer: Any) -> None:
    channel = await joined(layer)
    error = "AttributeError: 'str' object has no attribute 'items'"
    assert await outcome(layer.group_send("g", "text")) == error
    assert await outcome(layer.group_send("nobody", "text")) == ""
    assert await outcome(layer.send(channel, "text")) == ASSERTION


@on_pubsub
async def test_a_str_goes_through_the_pubsub_layer(layer: Any) -> None:
    channel = await joined(layer)
    assert await outcome(layer.group_send("g", "to a group")) == ""
    assert await received(layer, channel) == "to a group"
    assert await outcome(layer.send(channel, "to a channel")) == ""
    assert await received(layer, channel) == "to a channel"
    assert await outcome(layer.group_send("g", [1, 2])) == ""
    assert await received(layer, channel) == [1, 2]
