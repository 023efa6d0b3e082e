"""The sequences of writes: the state of the database, the layer and the hub after each of them."""

import asyncio
import gc
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import OperationalError

from realtime import publishing, signals
from realtime.closing import CloseReason
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.hub import Hub
from realtime.layers import groups, messages
from realtime.limits.subjects import address_of
from realtime.models import Connection as Record
from realtime.models import Membership, Process
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Closing, Opening
from realtime.records.ledger import Ledger
from realtime.records.retry import Retry
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import eventually_left, members_in_layer
from tests.support.assertions.threads import is_alive
from tests.support.doubles.eager import eager_tasks
from tests.support.doubles.peer import Peer

pytestmark = pytest.mark.usefixtures("site")


@pytest.mark.parametrize(
    ("details", "address", "kept", "agent"),
    [
        ("full", "203.0.113.77", "203.0.113.77", "Firefox"),
        ("network", "203.0.113.77", "203.0.113.0", ""),
        ("network", "::ffff:203.0.113.77", "203.0.113.0", ""),
        ("network", "2001:db8:1:2::7", "2001:db8:1::", ""),
        ("network", "fe80::1%eth0", "fe80::", ""),
        ("network", "/run/server.sock", "", ""),
        ("none", "203.0.113.77", "", ""),
    ],
)
async def test_records_and_logs_keep_only_the_set_client_details(
    details: str,
    address: str,
    kept: str,
    agent: str,
    realtime_settings: Callable[..., None],
) -> None:
    realtime_settings(CLIENT_DETAILS=details)
    peer = Peer()
    peer.connection.scope |= {"client": [address, 5], "headers": [(b"user-agent", b"Firefox")]}
    peer.connection.address = address_of(peer.connection.scope)
    await peer.open()
    record = await peer.record()
    assert (record.remote_address, record.user_agent) == (kept, agent)
    assert peer.connection.log_fields()["address"] == kept


async def rows(query: Any) -> list[Any]:
    return [row async for row in query]


async def test_an_admitted_connection_is_recorded_and_in_the_hub() -> None:
    peer = await Peer().open()
    record = await peer.record()
    assert (record.path, record.remote_address, record.subprotocol) == ("/ws/", "127.0.0.1", "realtime.v1")
    assert record.closed_at is None
    assert peer.connection.id in (await lifecycle.hub()).connections


async def test_many_members_join_the_group_in_the_layer_once() -> None:
    await asyncio.gather(Peer().open("g"), Peer().open("g"), Peer().open("g"))
    assert await members_in_layer("g") == {(await lifecycle.hub()).channel}
    assert await Membership.objects.to_leave().filter(group="g").acount() == 3


async def test_the_row_is_committed_before_the_layer_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    add = groups.add

    async def watching(group: str, channel: str) -> None:
        seen.append(await database_sync_to_async(Membership.objects.to_leave().filter(group=group).count)())
        await add(group, channel)

    monkeypatch.setattr(groups, "add", watching)
    await Peer().open("g")
    assert seen == [1]


async def test_on_the_memory_layer_a_member_receives_from_the_call_on() -> None:
    peer = await Peer().open()
    joining = asyncio.ensure_future(lifecycle.group_add(peer.connection, "g"))
    await asyncio.sleep(0)
    assert not joining.done()
    await publishing.apublish("g", 1)
    await joining
    await eventually_async(lambda: len(peer.texts) == 1, within=5)
    await lifecycle.group_discard(peer.connection, "g")
    assert not await members_in_layer("g")


async def test_a_refused_row_leaves_no_membership_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = await Peer().open()

    async def failing(*_: Any) -> None:
        raise RecordsUnavailable("down")

    monkeypatch.setattr(Ledger, "join", failing)
    with pytest.raises(RecordsUnavailable):
        await lifecycle.group_add(peer.connection, "g")
    assert peer.connection.groups == set()
    await eventually_async(lambda: not get_channel_layer().groups.get("g"), within=5)


async def test_a_message_reaches_every_member_and_no_other_client() -> None:
    inside, other, outside = await Peer().open("g"), await Peer().open("g", "h"), await Peer().open("h")
    await publishing.apublish("g", {"n": 1})
    expected = ['{"type":"message","group":"g","data":{"n":1}}']
    await eventually_async(lambda: inside.texts == expected and other.texts == expected, within=5)
    assert outside.texts == []


async def test_a_member_that_left_receives_no_more_messages() -> None:
    leaving, staying = await Peer().open("g"), await Peer().open("g")
    done = asyncio.ensure_future(lifecycle.group_discard(leaving.connection, "g"))
    await publishing.apublish("g", 1)
    await done
    await eventually_async(lambda: len(staying.texts) == 1, within=5)
    assert leaving.texts == []
    assert len(await members_in_layer("g")) == 1


async def test_the_last_member_leaves_the_group_in_the_layer() -> None:
    first, last = await Peer().open("g"), await Peer().open("g")
    await lifecycle.group_discard(first.connection, "g")
    assert await members_in_layer("g")
    await lifecycle.group_discard(last.connection, "g")
    assert not await members_in_layer("g")
    assert not await Membership.objects.to_leave().aexists()


async def test_of_a_join_and_a_leave_together_the_last_call_decides() -> None:
    peer = await Peer().open()
    for _ in range(5):
        await asyncio.gather(
            lifecycle.group_add(peer.connection, "g"), lifecycle.group_discard(peer.connection, "g")
        )
        await lifecycle.group_add(peer.connection, "g")
        assert peer.connection.groups == {"g"}
        assert await Membership.objects.to_leave().filter(connection=peer.connection.id).acount() == 1
        assert await members_in_layer("g")
        await lifecycle.group_discard(peer.connection, "g")
        assert not await Membership.objects.to_leave().aexists()
        assert not await members_in_layer("g")


async def test_an_evicted_connection_leaves_the_hub_synchronously() -> None:
    peer = await Peer().open("g")
    home = await lifecycle.hub()
    lifecycle.evict(peer.connection, CloseReason.KICKED)
    assert peer.connection.id not in home.connections
    assert "g" not in home.memberships.groups
    assert [event["type"] for event in peer.sent[-2:]] == ["websocket.send", "websocket.close"]
    assert '"reason":"kicked"' in peer.texts[-1]
    assert peer.sent[-1]["code"] == 4504


async def test_eviction_leaves_every_group_and_closes_the_record() -> None:
    peer = await Peer().open("g", "h")
    await lifecycle.evict(peer.connection, CloseReason.PING_TIMEOUT)
    record = await peer.record()
    assert (record.close_reason, record.close_code) == ("ping_timeout", 4008)
    assert not await Membership.objects.to_leave().aexists()
    assert not await members_in_layer("g")
    assert not await members_in_layer("h")


async def test_the_first_reason_counts_and_a_second_call_waits() -> None:
    peer = await Peer().open("g")
    first = lifecycle.evict(peer.connection, CloseReason.SEND_FAILED)
    assert lifecycle.evict(peer.connection, CloseReason.PING_TIMEOUT) is first
    await first
    assert (await peer.record()).close_reason == "send_failed"


async def test_a_send_failure_evicts_before_the_disconnect_event() -> None:
    broken, well = await Peer().open("g"), await Peer().open("g")
    broken.broken = True
    await publishing.apublish("g", 1)
    # A ping may follow each message.
    await eventually_async(lambda: '"data":1' in "".join(well.texts), within=5)
    assert broken.connection.reason is CloseReason.SEND_FAILED
    await publishing.apublish("g", 2)
    await eventually_async(lambda: '"data":2' in "".join(well.texts), within=5)
    await lifecycle.evict(broken.connection, CloseReason.CLIENT_CLOSED)
    assert (await broken.record()).close_reason == "send_failed"


async def test_a_caller_that_is_cancelled_does_not_stop_the_eviction() -> None:
    peer = await Peer().open("g")

    async def consumer() -> None:
        await asyncio.shield(lifecycle.evict(peer.connection, CloseReason.CANCELLED))

    task = asyncio.create_task(consumer())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert peer.connection.eviction is not None
    await peer.connection.eviction
    assert (await peer.record()).closed_at is not None


async def test_a_connection_evicted_during_its_opening_is_closed() -> None:
    peer = Peer()
    opening = asyncio.ensure_future(lifecycle.admit(peer.connection))
    while peer.connection.opening is None:
        await asyncio.sleep(0)
    await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    with pytest.raises(ConnectionGone):
        await opening
    assert (await peer.record()).close_reason == "client_lost"
    assert not (await lifecycle.hub()).connections


async def test_an_eviction_during_a_join_leaves_nothing() -> None:
    peer = await Peer().open()
    joining = asyncio.ensure_future(lifecycle.group_add(peer.connection, "g"))
    await asyncio.sleep(0)
    await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    with pytest.raises(ConnectionGone):
        await joining
    assert not await Membership.objects.to_leave().aexists()
    assert not await members_in_layer("g")


async def test_a_connection_that_was_never_admitted_leaves_no_record() -> None:
    peer = Peer()
    await lifecycle.evict(peer.connection, CloseReason.APPLICATION_CLOSED)
    assert not await Record.objects.aexists()
    assert [event["type"] for event in peer.sent] == ["websocket.close"]


async def test_a_group_that_was_not_discarded_stays_on_the_to_do_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = await Peer().open("g", "h")
    discard = groups.discard

    async def failing(group: str, channel: str) -> None:
        if group == "g":
            raise LayerUnavailable("hung")
        await discard(group, channel)

    monkeypatch.setattr(groups, "discard", failing)
    await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert (await peer.record()).closed_at is not None
    assert [row.group for row in await rows(Membership.objects.to_leave())] == ["g"]
    leftovers = await database_sync_to_async(connection_rows.leftovers)()
    assert [leftover.group for leftover in leftovers] == ["g"]

    monkeypatch.setattr(groups, "discard", discard)
    home = await lifecycle.hub()
    await groups.tell(home.channel, messages.Kick([], [(peer.connection.id, "g")], "server_lost"))
    await eventually_left()
    assert not await members_in_layer("g")


async def test_a_join_that_the_layer_refuses_is_left_and_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = await Peer().open()

    async def failing(group: str, channel: str) -> None:
        raise LayerUnavailable("down")

    monkeypatch.setattr(groups, "add", failing)
    with pytest.raises(LayerUnavailable):
        await lifecycle.group_add(peer.connection, "g")
    await eventually_left()


async def test_without_a_database_no_client_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    await lifecycle.hub()

    async def failing(self: Ledger, opening: Opening) -> None:
        raise RecordsUnavailable("down")

    monkeypatch.setattr(Ledger, "open", failing)
    peer = Peer()
    with pytest.raises(RecordsUnavailable):
        await lifecycle.admit(peer.connection)
    await lifecycle.evict(peer.connection, CloseReason.SERVER_UNAVAILABLE)


async def test_a_close_is_repeated_until_the_database_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = await Peer().open("g")
    close, failures = connection_rows.close_connections, [OperationalError("down"), OperationalError("down")]

    def failing(*arguments: Any) -> set[Any]:
        if failures:
            raise failures.pop()
        return close(*arguments)

    monkeypatch.setattr(connection_rows, "close_connections", failing)
    await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert (await peer.record()).close_reason == "client_lost"


async def test_a_kick_for_an_unknown_reason_closes_as_kicked() -> None:
    # A process of a newer version may send a reason that this version does not know.
    peer = await Peer().open("g")
    home = await lifecycle.hub()

    await groups.tell(home.channel, messages.Kick([peer.connection.id], [], "moon_phase"))

    await eventually_async(lambda: peer.connection.reason is CloseReason.KICKED, within=5)


async def test_a_process_that_was_declared_lost_starts_again() -> None:
    peer = await Peer().open("g")
    old = await lifecycle.hub()
    await Process.objects.filter(pk=old.process).aupdate(last_round=0, missed=5, look_every=timedelta(0))
    lost = await database_sync_to_async(process_rows.judge)(9, [old.process], 1)
    assert [process.id for process in lost] == [old.process]

    await groups.tell(old.channel, messages.Ask(10, "realtime.nobody"))
    await eventually_async(lambda: peer.connection.reason is CloseReason.SERVER_LOST, within=5)
    assert peer.sent[-1]["code"] == 4000
    assert '"retry_after"' in peer.texts[-1]
    new: Hub = await lifecycle.hub()
    assert new.process != old.process
    assert new.channel != old.channel
    await Peer().open("g")
    await eventually_async(lambda: old.channel not in get_channel_layer().groups.get("g", {}), within=5)
    assert await members_in_layer("g") == {new.channel}


async def test_a_connection_that_opens_during_a_stop_is_closed() -> None:
    await lifecycle.hub()
    peer = Peer()
    opening = asyncio.ensure_future(lifecycle.admit(peer.connection))
    while peer.connection.opening is None:
        await asyncio.sleep(0)
    await lifecycle.stop()
    with pytest.raises(ConnectionGone):
        await opening
    assert peer.connection.eviction is not None
    await peer.connection.eviction
    assert (await peer.record()).close_reason == "server_restart"


async def test_each_opening_and_each_end_is_announced_once(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, Any]] = []

    def opened(connection: Opening, **_: Any) -> None:
        seen.append(("opened", connection.id))

    async def closed(connection: Opening, reason: CloseReason, **_: Any) -> None:
        seen.append((reason.value, connection.id))

    def broken(**_: Any) -> None:
        raise ValueError("a receiver's own fault")

    for signal, receiver in _connected(opened, closed, broken):
        signal.connect(receiver)
        request.addfinalizer(lambda signal=signal, receiver=receiver: signal.disconnect(receiver))
    peer = await Peer().open("g")
    await asyncio.gather(*(lifecycle.evict(peer.connection, CloseReason.KICKED) for _ in range(3)))
    assert seen == [("opened", peer.connection.id), ("kicked", peer.connection.id)]
    assert caplog.text.count("Traceback") == 1


def _connected(opened: Callable[..., Any], closed: Callable[..., Any], broken: Callable[..., Any]) -> Any:
    return [
        (signals.connection_opened, broken),
        (signals.connection_opened, opened),
        (signals.connection_closed, closed),
    ]


@pytest.fixture
def closings() -> Iterator[list[tuple[Any, CloseReason]]]:
    """Return the ids and reasons that a receiver of `connection_closed` was sent so far."""
    seen: list[tuple[Any, CloseReason]] = []

    async def closed(connection: Opening, reason: CloseReason, **_: Any) -> None:
        seen.append((connection.id, reason))

    signals.connection_closed.connect(closed)
    yield seen
    signals.connection_closed.disconnect(closed)


async def test_an_end_that_another_process_recorded_is_announced_there(
    closings: list[tuple[Any, CloseReason]],
) -> None:
    peer, other = await Peer().open("g"), await Peer().open("g")
    by_a_reaper = [Closing(peer.connection.id, CloseReason.SERVER_LOST, None)]
    await database_sync_to_async(connection_rows.close_connections)(by_a_reaper, uuid.uuid4())
    for each in (peer, other):
        await lifecycle.evict(each.connection, CloseReason.CLIENT_LOST)
    assert closings == [(other.connection.id, CloseReason.CLIENT_LOST)]


async def test_an_end_is_announced_when_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch, closings: list[tuple[Any, CloseReason]]
) -> None:
    monkeypatch.setattr(lifecycle, "CLEANUP_TIMEOUT", 0.1)
    monkeypatch.setattr("realtime.hub.hub.make_ledger", lambda: Ledger(retry=Retry(longest=0.03)))
    peer = await Peer().open("g")
    close, is_down = connection_rows.close_connections, [True]

    def closing(*arguments: Any) -> Any:
        if is_down[0]:
            raise OperationalError("down")
        return close(*arguments)

    monkeypatch.setattr(connection_rows, "close_connections", closing)
    await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert closings == []
    is_down[0] = False
    await eventually_async(lambda: len(closings) == 1, within=5)
    assert closings == [(peer.connection.id, CloseReason.CLIENT_LOST)]


async def test_a_hung_layer_does_not_keep_an_end_from_being_announced(
    monkeypatch: pytest.MonkeyPatch,
    hung_layer: Callable[[], None],
    closings: list[tuple[Any, CloseReason]],
) -> None:
    monkeypatch.setattr(lifecycle, "LEAVING_TIMEOUT", 0.1)
    peer = await Peer().open("g")
    hung_layer()
    monkeypatch.setattr(groups, "CALL_TIMEOUT", 5.0)
    eviction = lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    await eventually_async(lambda: len(closings) == 1, within=2)
    assert not eviction.done()
    monkeypatch.setattr(lifecycle, "CLEANUP_TIMEOUT", 0.1)


async def test_ends_that_are_recorded_late_in_the_drain_are_announced(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    peers = [await Peer().open("g") for _ in range(3)]
    home, close = await lifecycle.hub(), connection_rows.close_connections
    told = []

    async def takes_its_time(connection: Opening, **_: Any) -> None:
        await asyncio.sleep(0.2)
        told.append(connection.id)

    signals.connection_closed.connect(takes_its_time)
    request.addfinalizer(lambda: signals.connection_closed.disconnect(takes_its_time))

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return close(*arguments)

    monkeypatch.setattr(connection_rows, "close_connections", slow)
    for peer in peers:
        lifecycle.evict(peer.connection, CloseReason.SERVER_RESTART)
    await lifecycle._hubs_here()._retire(home, patience=0.05)
    assert set(told) == {peer.connection.id for peer in peers}


async def test_many_that_end_together_leave_their_group_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers = await asyncio.gather(*(Peer().open("g") for _ in range(20)))
    discard, discarded = groups.discard, []

    async def counting(group: str, channel: str) -> None:
        discarded.append(group)
        await discard(group, channel)

    monkeypatch.setattr(groups, "discard", counting)
    await asyncio.gather(*(lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST) for peer in peers))
    assert discarded == ["g"]
    assert not await Membership.objects.to_leave().aexists()


@pytest.fixture
def hung_layer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`hung_layer()` makes the layer take each call and answer none."""

    def hang() -> None:
        async def hanging(*_: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(groups, "CALL_TIMEOUT", 0.1)
        monkeypatch.setattr(get_channel_layer(), "group_add", hanging)
        monkeypatch.setattr(get_channel_layer(), "group_discard", hanging)

    return hang


async def test_a_hung_layer_is_waited_for_once_for_all_groups(
    hung_layer: Callable[[], None],
) -> None:
    names = [f"g{number}" for number in range(40)]
    peer = await Peer().open(*names)
    hung_layer()
    async with asyncio.timeout(2):
        await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert (await peer.record()).close_reason == "client_lost"
    assert await Membership.objects.to_leave().acount() == 40


async def test_a_hung_layer_delays_many_joins_once(hung_layer: Callable[[], None]) -> None:
    peers = await asyncio.gather(*(Peer().open() for _ in range(40)))
    hung_layer()
    async with asyncio.timeout(2):
        outcomes = await asyncio.gather(
            *(lifecycle.group_add(peer.connection, "g") for peer in peers), return_exceptions=True
        )
    assert {type(outcome) for outcome in outcomes} == {LayerUnavailable}


async def test_a_hung_database_blocks_no_handler_that_leaves_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "CLEANUP_TIMEOUT", 0.1)
    peer = await Peer().open("g")
    goes_on, leave = threading.Event(), connection_rows.mark_memberships_left

    def hanging(joins: Any) -> int:
        assert goes_on.wait(10)
        return leave(joins)

    monkeypatch.setattr(connection_rows, "mark_memberships_left", hanging)
    async with asyncio.timeout(2):
        await lifecycle.group_discard(peer.connection, "g")
        with pytest.raises(RecordsUnavailable):
            await lifecycle.group_add(peer.connection, "g")
    assert not await members_in_layer("g")
    goes_on.set()
    await eventually_left()
    await lifecycle.group_add(peer.connection, "g")
    assert await members_in_layer("g")


async def test_the_last_call_decides_though_the_first_is_not_done() -> None:
    peer = await Peer().open()
    await asyncio.gather(
        lifecycle.group_add(peer.connection, "g"), lifecycle.group_discard(peer.connection, "g")
    )
    assert peer.connection.groups == set()
    assert not await Membership.objects.to_leave().aexists()
    assert not await members_in_layer("g")


async def test_a_receiver_that_hangs_blocks_no_connection(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signals, "RECEIVERS_TIMEOUT", 0.05)

    async def hanging(**_: Any) -> None:
        await asyncio.Event().wait()

    for signal in (signals.connection_opened, signals.connection_closed):
        signal.connect(hanging)
        request.addfinalizer(lambda signal=signal: signal.disconnect(hanging))
    async with asyncio.timeout(2):
        peer = await Peer().open("g")
        await lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST)
    assert (await peer.record()).close_reason == "client_lost"
    assert caplog.text.count("are no longer waited for") == 2


async def test_an_ended_connection_is_freed() -> None:
    def how_many() -> int:
        gc.collect()
        return sum(isinstance(each, Connection) for each in gc.get_objects())

    home, before = await lifecycle.hub(), how_many()
    peers = await asyncio.gather(*(Peer().open("g", "h") for _ in range(20)))
    assert how_many() == before + 20
    await asyncio.gather(*(lifecycle.evict(peer.connection, CloseReason.CLIENT_LOST) for peer in peers))
    peers.clear()
    await eventually_async(lambda: how_many() == before, within=5)
    assert not home.memberships.groups
    assert not home.memberships._locks


async def test_a_process_that_is_told_twice_starts_again_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = await Peer().open("g")
    old = await lifecycle.hub()
    await Process.objects.filter(pk=old.process).adelete()
    for number in (1, 2, 3):
        await groups.tell(old.channel, messages.Ask(number, "realtime.nobody"))
    await eventually_async(lambda: not is_alive(old.ledger._writer), within=5)
    assert peer.connection.reason is CloseReason.SERVER_LOST
    assert caplog.text.count("declared lost") == 1
    assert "Traceback" not in caplog.text
    assert await lifecycle.hub() is not old


async def test_a_hub_that_is_being_started_does_not_outlive_the_stop() -> None:
    starting = asyncio.ensure_future(lifecycle.hub())
    await asyncio.sleep(0)
    await lifecycle.stop()
    home = await starting
    assert home.ending is CloseReason.SERVER_RESTART
    assert (await Process.objects.aget(pk=home.process)).stopped_at is not None


async def test_a_connection_works_under_an_eager_task_factory() -> None:
    async with eager_tasks():
        peer = await Peer().open("g")
        await publishing.apublish("g", 1)
        await eventually_async(lambda: len(peer.texts) == 1, within=5)
        ending = {"type": "websocket.disconnect", "code": 1001}
        eviction = lifecycle.evict(peer.connection, CloseReason.CLIENT_CLOSED, ending)
        assert peer.connection.eviction is eviction
        assert not eviction.done()
        await eviction
        record = await peer.record()
        assert (record.close_reason, record.close_code) == ("client_closed", 1001)
        await eventually_left()
        await lifecycle.stop()
