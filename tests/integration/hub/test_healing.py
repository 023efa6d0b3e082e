"""A real Redis forgets, restarts, hangs or falls silent, and a process receives again by itself."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import channel_layers, get_channel_layer
from django.db import OperationalError

from realtime import metrics, publishing
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, RecordsUnavailable
from realtime.hub import healing
from realtime.hub.hub import Hub
from realtime.layers import groups
from realtime.models import Membership
from realtime.records import connection_rows, process_rows
from realtime.serving import lifecycle
from realtime.transports.asgi import Options
from tests.support.assertions.eventually import eventually, eventually_async
from tests.support.assertions.in_process import eventually_left, value_of
from tests.support.doubles.peer import Peer
from tests.support.programs.servers import RedisServer

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("transactional_db")]

INTERVAL = 0.6

#: For behaviour that is the same on both layers.
one_layer = pytest.mark.parametrize(
    "home", ["CoreLayer", pytest.param("PubSubLayer", marks=pytest.mark.matrix)], indirect=True
)

#: The messages in this module never fill it.
ROOMY = Options(max_unsent=100_000, send_timeout=5)


async def member(*names: str) -> Peer:
    """Open a connection in these groups, of a client that does not offer `realtime.v1`."""
    return await Peer(v1=False, options=ROOMY).open(*names)


RoundSettings = Callable[..., None]


@pytest.fixture
def round_settings(realtime_settings: Callable[..., None]) -> RoundSettings:
    """`round_settings(MAX_ECHOES_MISSED=…)` changes settings, and keeps the rounds of this module."""

    def change(**values: object) -> None:
        realtime_settings(ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=INTERVAL / 2, **values)

    return change


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with RedisServer(tmp_path, tcp=True) as running:
        yield running


@pytest_asyncio.fixture(params=["CoreLayer", "PubSubLayer"])
async def home(
    request: pytest.FixtureRequest, settings: Any, round_settings: RoundSettings, server: RedisServer
) -> AsyncIterator[Hub]:
    """The hub of this process on a layer of its own."""
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": f"realtime.layers.{request.param}", "CONFIG": {"hosts": [server.url]}}
    }
    channel_layers.backends.clear()
    round_settings()
    yield await lifecycle.hub()
    await lifecycle.stop()
    layer = get_channel_layer()
    await (layer.close_pools() if hasattr(layer, "close_pools") else layer.flush())
    channel_layers.backends.clear()


def is_core() -> bool:
    return type(get_channel_layer()).__name__ == "CoreLayer"


def echoes(home: Hub) -> int:
    """Return the number of echoes that this hub has sent to itself."""
    return home.mailbox._echo.number if home.mailbox._echo is not None else 0


def reasserted(cause: str) -> float:
    return value_of(metrics.groups_reasserted, cause=cause)


async def test_after_flushall_members_receive_again_within_an_interval(
    home: Hub, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"g{number}" for number in range(250)]
    peers = [await member(*names[part::5]) for part in range(5)]

    def lost() -> int:
        return sum("has lost the membership" in record.message for record in caplog.records)

    before = reasserted("lost")
    with server.client() as client:
        client.flushall()
    assert await peers[0].receives("g0", within=5) < INTERVAL + 0.5
    assert await peers[4].receives("g249", within=5) < 0.5
    # The healer counts a slice after it has re-added all of its groups.
    expected = (1, 250) if is_core() else (0, 0)
    await eventually_async(lambda: (lost(), reasserted("lost") - before) == expected, within=5)


async def test_members_receive_two_seconds_after_a_restart_of_redis(
    home: Hub, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await member("g", "h")
    await peer.receives("g", within=5)
    await asyncio.to_thread(server.restart)
    assert await peer.receives("g", within=10) < 2
    assert await peer.receives("h", within=10) < 2
    assert not peer.connection.gone
    assert "Redis is back" in caplog.text


async def test_the_first_publish_after_a_restart_is_carried_out(home: Hub, server: RedisServer) -> None:
    await publishing.apublish("g", 1)
    await asyncio.to_thread(server.restart)
    for number in range(3):
        await publishing.apublish("g", number)


@pytest.mark.parametrize("home", ["PubSubLayer"], indirect=True)
async def test_a_message_that_is_no_dict_is_logged_once(home: Hub, caplog: pytest.LogCaptureFixture) -> None:
    peer = await member("g")
    for _ in range(3):
        await get_channel_layer().group_send("g", "text")
    await peer.receives("g", within=5)
    assert caplog.text.count("A message that is no dict") == 1
    assert "could not take an event" not in caplog.text


@one_layer
async def test_without_redis_a_publisher_gets_an_error_immediately(home: Hub, server: RedisServer) -> None:
    await asyncio.to_thread(server.stop)
    began = time.monotonic()
    with pytest.raises(LayerUnavailable, match="failed to publish"):
        await publishing.apublish("g", 1)
    assert time.monotonic() - began < 1
    await asyncio.to_thread(server.start)
    await publishing.apublish("g", 1)


async def test_a_dead_connection_is_replaced_within_two_intervals(
    home: Hub, server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await member("g")
    await peer.receives("g", within=5)
    rebuilds, missed = value_of(metrics.layer_rebuilds), value_of(metrics.echoes_missed)
    began = time.monotonic()
    deafen(get_channel_layer())
    await eventually_async(lambda: value_of(metrics.layer_rebuilds) > rebuilds, within=10, every=0.01)
    assert time.monotonic() - began < 2 * INTERVAL + 0.5
    assert value_of(metrics.echoes_missed) - missed >= healing.ECHOES
    assert await peer.receives("g", within=10) < 2
    assert "receives nothing from the channel layer" in caplog.text


async def lost(*_: Any) -> int:
    """Stand in for an echo that is sent, and that does not come back; it has one part."""
    return 1


async def in_vain(*_: Any) -> None:
    """Stand in for new connections to Redis."""


@one_layer
async def test_a_process_that_stays_deaf_logs_it_and_gives_up_clients(
    home: Hub,
    round_settings: RoundSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    round_settings(MAX_ECHOES_MISSED=4, RECONNECT_WINDOW=0.1)
    peers = [await member("g") for _ in range(3)]
    await healing.require_hearing()

    monkeypatch.setattr(groups, "echo", lost)
    monkeypatch.setattr(groups, "rebuild", in_vain)
    await eventually_async(lambda: value_of(metrics.deaf, layer="default") == 1, within=10)
    with pytest.raises(LayerUnavailable, match="does not hear"):
        await healing.require_hearing()
    assert not any(peer.connection.gone for peer in peers), "it has missed two echoes of four"
    await eventually_async(lambda: all(peer.connection.gone for peer in peers), within=10)
    assert {peer.connection.reason for peer in peers} == {CloseReason.SERVER_UNAVAILABLE}
    assert "This process stays deaf; it closes 3 connections" in caplog.text


@one_layer
@pytest.mark.parametrize(("others_hear", "gone"), [(True, True), (False, False)])
async def test_without_redis_clients_are_given_up_if_another_hears(
    home: Hub,
    round_settings: RoundSettings,
    monkeypatch: pytest.MonkeyPatch,
    others_hear: bool,
    gone: bool,
) -> None:
    round_settings(MAX_ECHOES_MISSED=2, RECONNECT_WINDOW=0.1)
    peer = await member("g")
    asked: list[float] = []

    def others(process: object, within: float) -> bool:
        asked.append(within)
        return others_hear

    monkeypatch.setattr(process_rows, "others_hear", others)
    monkeypatch.setattr(groups, "echo", unavailable)
    await eventually_async(lambda: len(asked) >= 2 or peer.connection.gone, within=10)
    await asyncio.sleep(0.3)
    assert peer.connection.gone is gone


@one_layer
async def test_a_process_that_sometimes_reaches_redis_keeps_clients(
    home: Hub, round_settings: RoundSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_settings(MAX_ECHOES_MISSED=2)
    peer = await member("g")
    tried = 0

    async def every_other_time(*arguments: Any) -> int:
        nonlocal tried
        tried += 1
        return await (unavailable if tried % 2 else lost)(*arguments)

    monkeypatch.setattr(process_rows, "others_hear", lambda *_: True)
    monkeypatch.setattr(groups, "echo", every_other_time)
    await eventually_async(lambda: tried >= 6, within=20)
    assert not peer.connection.gone


@one_layer
async def test_a_process_that_hears_again_resets_its_count(
    home: Hub, round_settings: RoundSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_settings(MAX_ECHOES_MISSED=4)
    peer = await member("g")
    monkeypatch.setattr(groups, "rebuild", in_vain)
    for _ in range(3):
        with monkeypatch.context() as deaf:
            deaf.setattr(groups, "echo", lost)
            await eventually_async(lambda: not home.healer.hears, within=10, every=0.01)
        await eventually_async(lambda: home.healer.hears, within=10, every=0.01)
    assert not peer.connection.gone


@one_layer
async def test_echoes_that_were_lost_with_their_redis_are_not_missed(
    home: Hub, round_settings: RoundSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_settings(MAX_ECHOES_MISSED=2)
    peer = await member("g")
    sent = 0

    async def lost_in_a_restart(*_: Any) -> int:
        nonlocal sent
        sent += 1
        home.healer._layer_is_back()
        return 1

    monkeypatch.setattr(groups, "rebuild", in_vain)
    monkeypatch.setattr(groups, "echo", lost_in_a_restart)
    await eventually_async(lambda: sent >= 6, within=20)
    assert home.healer.hears
    assert not peer.connection.gone


def deafen(layer: Any) -> None:
    """Stop reading the connections on which this process receives from Redis."""
    if is_core():
        (loops,) = layer._layers.values()
        pools = [redis.connection_pool for redis in loops._connections.values()]
        connections = [each for pool in pools for each in pool._in_use_connections]
    else:
        connections = [shard._pubsub.connection for shard in layer._shards]
    assert connections
    for connection in connections:
        connection._writer.transport.pause_reading()
        # Otherwise the stream would read again when its buffer is empty.
        connection._writer.transport.resume_reading = lambda: None


@one_layer
async def test_echoes_that_come_back_replace_nothing(home: Hub) -> None:
    await member("g")
    rebuilds, missed = value_of(metrics.layer_rebuilds), value_of(metrics.echoes_missed)
    sent = echoes(home)
    await eventually_async(lambda: echoes(home) >= sent + 2, within=10)
    assert (value_of(metrics.layer_rebuilds), value_of(metrics.echoes_missed)) == (rebuilds, missed)


@one_layer
async def test_an_echo_behind_waiting_messages_is_not_missing(
    home: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilds = value_of(metrics.layer_rebuilds)
    put = home.fanout.put

    async def slowly(group: str, text: str) -> None:
        await asyncio.sleep(0.05)
        await put(group, text)

    monkeypatch.setattr(home.fanout, "put", slowly)
    peer = await member("g")
    # This takes longer than the wait for two echoes.
    for number in range(36):
        await publishing.apublish("g", number)
    await eventually_async(lambda: len(peer.texts) == 36, within=20)
    assert value_of(metrics.layer_rebuilds) == rebuilds


@one_layer
async def test_a_group_older_than_the_layers_expiry_goes_on_receiving(
    home: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_channel_layer(), "group_expiry", 1, raising=False)
    peer = await member("g")
    await asyncio.sleep(1.5)  # the age itself
    assert await peer.receives("g", within=5) < 0.5


async def test_a_group_that_is_left_is_not_re_added(home: Hub, server: RedisServer) -> None:
    peer = await member("g", "h")
    for _ in range(30):
        await asyncio.gather(
            lifecycle.group_discard(peer.connection, "g"), home.healer._re_add(("g", "h"), "in_turn")
        )
        with server.client() as client:
            if is_core():
                assert client.zcard("asgi:group:g") == 0
                assert client.zcard("asgi:group:h") == 1
            else:
                eventually(lambda: dict(client.pubsub_numsub("asgi__group__g")).popitem()[1] == 0, within=2)
        await lifecycle.group_add(peer.connection, "g")


@one_layer
async def test_a_failed_leave_of_a_living_connection_is_retried(
    home: Hub, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await member("g", "h")
    with monkeypatch.context() as outage:
        outage.setattr(groups, "discard", unavailable)
        await lifecycle.group_discard(peer.connection, "g")
        assert await Membership.objects.to_leave().filter(group="g").aexists()
    await eventually_left("g", within=10)
    assert home.memberships.unfinished() == []
    await lifecycle.group_add(peer.connection, "g")
    await peer.receives("g", within=5)
    assert await Membership.objects.to_leave().acount() == 2


@one_layer
async def test_a_failed_leave_of_an_ended_connection_needs_no_round(
    home: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, living = await member("g", "h"), await member("h")
    with monkeypatch.context() as outage:
        outage.setattr(groups, "discard", unavailable)
        await lifecycle.evict(ended.connection, CloseReason.CLIENT_LOST)
        assert await Membership.objects.to_leave().filter(group="g").aexists()
    await eventually_left("g", within=10)
    assert not living.connection.gone
    assert await Membership.objects.to_leave().acount() == 1


async def unavailable(*_: Any) -> None:
    raise LayerUnavailable("hung")


async def test_a_redis_that_hangs_delays_no_eviction(
    home: Hub, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CALL_TIMEOUT", 0.5)
    peers = [await member("g", f"of-{number}") for number in range(5)]
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        for peer in peers:
            lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
        assert not home.connections
        assert not home.memberships.groups
        with pytest.raises(LayerUnavailable):
            await publishing.apublish("g", 1)
        await asyncio.gather(*(lifecycle.evict(peer.connection, CloseReason.IDLE) for peer in peers))
        assert time.monotonic() - began < 5
    finally:
        server.process.send_signal(signal.SIGCONT)
    await eventually_left(within=10)
    with server.client() as client:
        eventually(
            lambda: not client.keys("asgi:group:*") and not client.pubsub_channels("*group*"), within=5
        )


@one_layer
async def test_a_database_that_fails_does_not_stop_healing(
    home: Hub, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    peer = await member("g")

    def failing(*_: object) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(connection_rows, "leftovers", failing)
    home.memberships.leave_failed = True
    with server.client() as client:
        client.flushall()
    assert await peer.receives("g", within=5) < INTERVAL + 0.5


@one_layer
async def test_a_bug_in_one_check_does_not_end_the_checks(
    home: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(home.healer, "_probe_one", None)
        await eventually_async(lambda: "could not be checked" in caplog.text, within=5)
    sent = echoes(home)
    await eventually_async(lambda: echoes(home) >= sent + 2, within=5)
    (looked,) = [each for each in caplog.records if "could not be checked" in each.message]
    assert looked.levelno == logging.ERROR


async def test_a_process_that_could_not_start_leaves_no_channel_open(
    home: Hub, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OperationalError("gone")

    with server.client() as client:
        before = client.pubsub_channels("*")
        monkeypatch.setattr(process_rows, "start_process", failing)
        for _ in range(3):
            with pytest.raises(RecordsUnavailable):
                await Hub.start("default", home._owner)
        eventually(lambda: client.pubsub_channels("*") == before, within=5)
