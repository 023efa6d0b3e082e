"""A connection with thousands of groups ends, is kicked, or is cleaned up by a later check.

The event loop goes on meanwhile, writes keep their order, and work that is not done in time stays on the
to-do list.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from channels.layers import channel_layers, get_channel_layer

from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.hub import healing
from realtime.hub.connection import Connection
from realtime.layers import groups, messages
from realtime.models import Connection as Record
from realtime.models import Membership, Process
from realtime.records import connection_rows
from realtime.records.entries import Join
from realtime.serving import lifecycle
from tests.integration.process.test_drain import this_drain
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import eventually_left, members_in_layer
from tests.support.doubles.peer import Peer
from tests.support.faults.stalls import watch_the_loop
from tests.support.programs.servers import RedisServer

MANY = 20_000
#: Seconds for which the loop may be blocked. Before memberships were left in slices, these were 0.26 to 0.4
#: on the memory layer and 0.43 to 1.4 on the Redis layers; since then they are 0.01 to 0.04 and 0.01 to 0.08.
LONGEST_STALL = {"MemoryLayer": 0.13, "PubSubLayer": 0.25, "CoreLayer": 0.25}

in_memory = pytest.mark.usefixtures("site")


async def is_in(peer: Peer, *names: str) -> None:
    """Put the connection into these groups, in a second instead of a minute."""
    connection, home = peer.connection, await lifecycle.hub()
    joins = [Join(connection.id, home.process, name) for name in names]
    await database_sync_to_async(connection_rows.open_memberships)(joins)
    home.memberships._in_layer.update(names)
    for first in range(0, len(names), 500):
        # Together: each waits until Redis has acknowledged its subscription.
        await asyncio.gather(*(groups.add(name, home.channel) for name in names[first : first + 500]))
    home.memberships.groups |= {name: {connection: None} for name in names}
    connection.groups.update(names)
    connection.joined.update(names)


def named(count: int) -> list[str]:
    return [f"g{number}" for number in range(count)]


# -- stalls of the loop ------------------------------------------------------------------------------


@pytest_asyncio.fixture(
    params=["MemoryLayer", "PubSubLayer", pytest.param("CoreLayer", marks=pytest.mark.matrix)]
)
async def layer(
    request: pytest.FixtureRequest, settings: Any, transactional_db: None, tmp_path: Path
) -> AsyncIterator[str]:
    """The name of the channel layer of this process; the Redis layers have their own Redis."""
    with RedisServer(tmp_path) as redis:
        config = {} if request.param == "MemoryLayer" else {"hosts": [redis.url]}
        settings.CHANNEL_LAYERS = {
            "default": {"BACKEND": f"realtime.layers.{request.param}", "CONFIG": config}
        }
        channel_layers.backends.clear()
        yield request.param
        await lifecycle.stop()
        await get_channel_layer().flush()
        channel_layers.backends.clear()


async def ends(connection: Connection) -> None:
    await lifecycle.evict(connection, CloseReason.CLIENT_CLOSED)


async def ends_with_its_process(connection: Connection) -> None:
    await lifecycle.stop()


async def is_kicked(connection: Connection) -> None:
    home = await lifecycle.hub()
    home.remove(connection)
    memberships = [(connection.id, group) for group in connection.joined]
    await lifecycle._kick(home, messages.Kick([], memberships, CloseReason.SERVER_LOST.value))


async def is_settled(connection: Connection) -> None:
    home = await lifecycle.hub()
    home.memberships.remove_from_all(connection)
    await home.healer._finish()


@pytest.mark.acceptance  # for the real Redis, and its seconds
@pytest.mark.parametrize(
    "ending",
    [
        ends,
        pytest.param(ends_with_its_process, marks=pytest.mark.matrix),
        pytest.param(is_kicked, marks=pytest.mark.matrix),
        pytest.param(is_settled, marks=pytest.mark.matrix),
    ],
)
async def test_the_loop_goes_on_while_very_many_groups_are_left(
    layer: str, ending: Callable[[Connection], Awaitable[None]]
) -> None:
    peer = await Peer().open()
    await is_in(peer, *named(MANY))
    await asyncio.sleep(0.5)  # Redis confirms each subscription
    async with watch_the_loop() as stalls:
        await ending(peer.connection)
    assert stalls.longest < LONGEST_STALL[layer]
    await eventually_left()


@in_memory
async def test_many_connections_are_kicked_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "SLICE", 5)
    peers = [await Peer().open() for _ in range(20)]
    home = await lifecycle.hub()
    ids = [peer.connection.id for peer in peers]
    kicking = asyncio.create_task(lifecycle._kick(home, messages.Kick(ids, [], "kicked")))
    await asyncio.sleep(0)
    assert sum(peer.connection.gone for peer in peers) == 5
    await kicking
    assert all(peer.connection.reason is CloseReason.KICKED for peer in peers)


# -- the order of writes -----------------------------------------------------------------------------


@in_memory
async def test_the_rows_of_a_slice_are_written_when_it_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "SLICE", 3)
    peer = await Peer().open(*named(9))
    discard, discarded, go_on = groups.discard, list[str](), asyncio.Event()

    async def only_six(group: str, address: str) -> None:
        if len(discarded) == 6:
            await go_on.wait()
        discarded.append(group)
        await discard(group, address)

    monkeypatch.setattr(groups, "discard", only_six)
    ending = lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)

    async def left() -> set[str]:
        rows = Membership.objects.filter(left_at__isnull=False).values_list("group", flat=True)
        return {group async for group in rows}

    async with asyncio.timeout(5):
        while len(await left()) < 6:
            await asyncio.sleep(0.01)
    assert await left() == set(discarded)
    go_on.set()
    await ending
    assert await left() == set(named(9))


@in_memory
async def test_a_hung_database_delays_none_of_many_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "SLICE", 3)
    peer = await Peer().open(*named(9))
    goes_on, leave = threading.Event(), connection_rows.mark_memberships_left

    def hanging(joins: Any) -> int:
        assert goes_on.wait(10)
        return leave(joins)

    monkeypatch.setattr(connection_rows, "mark_memberships_left", hanging)
    lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    try:
        await eventually_async(
            lambda: not any(get_channel_layer().groups.get(name) for name in named(9)), within=5
        )
    finally:
        goes_on.set()
    await eventually_left()


# -- work that is not in time ------------------------------------------------------------------------


@in_memory
async def test_a_hung_layer_is_waited_for_once_not_for_each_slice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "SLICE", 5)
    peer = await Peer().open(*named(100))
    home, layer = await lifecycle.hub(), get_channel_layer()

    async def hanging(*_: Any) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as hung:
        hung.setattr(groups, "CALL_TIMEOUT", 0.1)
        hung.setattr(layer, "group_discard", hanging)
        async with asyncio.timeout(2):
            await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
        assert await Membership.objects.to_leave().acount() == 100
        assert "95 more groups were not left; a later round will" in caplog.text
    # The layer works again, and the next check of the process does the rest.
    await home.healer._finish()
    assert not await Membership.objects.to_leave().aexists()
    assert not any(layer.groups.get(name) for name in named(100))


@in_memory
async def test_a_stop_that_takes_too_long_keeps_the_to_do_list(
    monkeypatch: pytest.MonkeyPatch, realtime_settings: Any
) -> None:
    realtime_settings(DRAIN_TIMEOUT=1.0)
    monkeypatch.setattr(lifecycle, "SLICE", 3)
    peer = await Peer().open(*named(9))
    home = await lifecycle.hub()
    discard, discarded = groups.discard, list[str]()

    async def only_six(group: str, address: str) -> None:
        if len(discarded) == 6:
            await asyncio.Event().wait()
        discarded.append(group)
        await discard(group, address)

    monkeypatch.setattr(groups, "discard", only_six)
    async with asyncio.timeout(5):
        await this_drain().start()
    to_do = Membership.objects.to_leave().values_list("group", flat=True)
    assert {group async for group in to_do} == set(named(9)) - set(discarded)
    assert (await Record.objects.aget(pk=peer.connection.id)).close_reason == "server_restart"
    assert (await Process.objects.aget(pk=home.process)).stopped_at is not None
    assert not home.cleanups


@in_memory
async def test_the_rest_of_many_groups_is_left_in_one_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = connection_rows.BATCH + 100
    peer, home = await Peer().open(), await lifecycle.hub()
    await is_in(peer, *named(count))

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("down")

    with monkeypatch.context() as down:
        down.setattr(groups, "discard", failing)
        await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert await Membership.objects.to_leave().acount() == count
    await home.healer._finish()
    assert not await Membership.objects.to_leave().aexists()
    assert not home.memberships.leave_failed


@in_memory
async def test_a_living_connection_leaves_many_groups_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 2 * healing.BATCH + 50
    peer, home = await Peer().open("stays"), await lifecycle.hub()
    await is_in(peer, *named(count))
    for name in named(count):
        home.memberships.remove(peer.connection, name)
    leave, written = home.ledger.leave, list[int]()

    async def counting(joins: Any) -> None:
        for join in joins:
            assert not await members_in_layer(join.group), "the layer comes first"
        written.append(len(joins))
        await leave(joins)

    monkeypatch.setattr(home.ledger, "leave", counting)
    await home.healer._finish()
    assert written == [healing.BATCH, healing.BATCH, 50]
    assert peer.connection.joined == peer.connection.groups == {"stays"}
    held = Membership.objects.to_leave().values_list("group", flat=True)
    assert [group async for group in held] == ["stays"]
