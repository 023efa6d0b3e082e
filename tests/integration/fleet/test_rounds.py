"""Rounds over real rows and a real layer. The processes are rows and channels that answer as a test says."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.utils import timezone

from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, RoundFailed
from realtime.fleet import sweep
from realtime.fleet.mailbox import Mailbox
from realtime.fleet.rounds import PATIENCE, Reaper, Report, run_enough_rounds, run_rounds
from realtime.layers import groups, messages
from realtime.models import Connection, Membership, Process
from realtime.records import connection_rows, detail_rows, process_rows
from realtime.records.entries import Closing, Join, Opening

pytestmark = pytest.mark.usefixtures("memory_layer")


class FakeProcess:
    """A process that answers rounds through the layer, in the database, both or not at all."""

    def __init__(self, *, through_layer: bool = True, in_database: bool = True) -> None:
        self.through_layer = through_layer
        self.in_database = in_database
        self.kicks: list[messages.Kick] = []
        self.received = asyncio.Queue[messages.Control]()

    async def start(self) -> "FakeProcess":
        self.channel = await get_channel_layer().new_channel()
        self.mailbox = await Mailbox.open(self.channel)
        self.mailbox.listen(self.received.put_nowait)
        self.id: uuid.UUID = await database_sync_to_async(process_rows.start_process)(self.channel, "host", 1)
        self.task = asyncio.create_task(self._run())
        return self

    async def hold(self, *names: str) -> uuid.UUID:
        """Open one connection that is a member of the groups, and return its id."""
        opening = Opening(uuid.uuid4(), self.id, "", "/ws/", "127.0.0.1", "", "")
        await database_sync_to_async(connection_rows.open_connections)([opening])
        joins = [Join(opening.id, self.id, name) for name in names]
        await database_sync_to_async(connection_rows.open_memberships)(joins)
        for name in names:
            await get_channel_layer().group_add(name, self.channel)
        return opening.id

    async def _run(self) -> None:
        while True:
            message = await self.received.get()
            if isinstance(message, messages.Kick):
                self.kicks.append(message)
                continue
            assert isinstance(message, messages.Ask)
            if self.through_layer:
                await groups.tell(message.reply_to, messages.Answer(message.round, self.id))
            if self.in_database and message.round:
                await database_sync_to_async(process_rows.answer_round)(
                    self.id, message.round, connections=0, loop_lag=0.0
                )

    async def row(self) -> Process:
        return await Process.objects.aget(pk=self.id)


@pytest_asyncio.fixture
async def processes() -> AsyncIterator[Callable[..., Any]]:
    running: list[FakeProcess] = []

    async def start(**options: bool) -> FakeProcess:
        process = await FakeProcess(**options).start()
        running.append(process)
        return process

    yield start
    for process in running:
        process.task.cancel()
        await process.mailbox.close()


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    made = Reaper(interval=0.2, timeout=0.15, misses_allowed=1)
    yield made
    await made.close()


async def next_round(reaper: Reaper) -> Report:
    while (report := await reaper.round()) is None:
        await asyncio.sleep(0.01)
    return report


async def test_a_round_ends_when_all_processes_have_answered(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    for _ in range(3):
        await processes()
    report = await next_round(reaper)
    assert (report.number, report.asked, report.answered, report.lost) == (1, 3, 3, 0)
    assert not report.repaired


@pytest.mark.parametrize("options", [{"through_layer": False}, {"in_database": False}])
async def test_a_process_that_answers_one_way_only_is_not_lost(
    reaper: Reaper, processes: Callable[..., Any], options: dict[str, bool]
) -> None:
    process = await processes(**options)
    for _ in range(4):
        await next_round(reaper)
    assert (await process.row()).stopped_at is None


async def test_an_answer_through_the_layer_alone_resets_misses(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    process = await processes(in_database=False)
    await Process.objects.filter(pk=process.id).aupdate(missed=1)
    await next_round(reaper)
    assert (await process.row()).missed == 0


async def test_a_silent_process_is_lost_after_the_second_round(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    dead, living = await processes(through_layer=False, in_database=False), await processes()
    lost_one, kept_one = await dead.hold("g", "h"), await living.hold("g")
    first = await next_round(reaper)
    assert (first.lost, (await dead.row()).missed) == (0, 1)
    second = await next_round(reaper)
    assert (second.lost, second.reaped, second.discarded) == (1, 1, 2)
    assert second.repaired
    record = await Connection.objects.aget(pk=lost_one)
    assert record.close_reason == CloseReason.SERVER_LOST.value
    assert set(get_channel_layer().groups["g"]) == {living.channel}
    assert not get_channel_layer().groups.get("h")
    assert await Membership.objects.to_leave().acount() == 1
    assert (await Connection.objects.aget(pk=kept_one)).closed_at is None
    assert not (await next_round(reaper)).repaired


async def test_a_process_that_could_not_be_asked_missed_nothing(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await processes(through_layer=False, in_database=False)

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("full")

    monkeypatch.setattr(groups, "tell", failing)
    for _ in range(4):
        await next_round(reaper)
    row = await process.row()
    assert (row.missed, row.stopped_at) == (0, None)


async def test_enough_rounds_fail_if_no_process_could_be_asked(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await processes()

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("full")

    monkeypatch.setattr(groups, "tell", failing)
    reports: list[Report] = []
    with pytest.raises(LayerUnavailable, match="1 processes could not be asked"):
        await run_enough_rounds(reaper, reports.append)
    assert (reports[0].asked, reports[0].unreachable, reports[0].answered) == (0, 1, 0)


async def test_two_reapers_share_the_rounds_and_count_nothing_twice(processes: Callable[..., Any]) -> None:
    dead = await processes(through_layer=False, in_database=False)
    for _ in range(5):
        await dead.hold("g")
    reapers = [Reaper(interval=0.2, timeout=0.1, misses_allowed=1) for _ in range(2)]
    reports: list[Report] = []

    async def run(reaper: Reaper) -> None:
        await run_rounds(
            reaper, lambda report: reports.append(report) if isinstance(report, Report) else None
        )

    tasks = [asyncio.create_task(run(reaper)) for reaper in reapers]
    async with asyncio.timeout(20):
        while await Connection.objects.open().aexists() or len(reports) < 4:
            await asyncio.sleep(0.05)
    for reaper in reapers:
        reaper.stop()
    await asyncio.gather(*tasks, *(reaper.close() for reaper in reapers))
    numbers = [report.number for report in reports]
    assert len(numbers) == len(set(numbers))
    assert sum(report.reaped for report in reports) == 5
    assert sum(report.lost for report in reports) == 1


async def test_the_next_round_finishes_the_work_of_a_dead_reaper(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    dead = await processes()
    dead.task.cancel()
    await dead.hold("g")
    await database_sync_to_async(process_rows.judge)(1, [dead.id], 0)
    report = await next_round(reaper)
    assert (report.lost, report.reaped, report.discarded) == (0, 1, 1)


async def test_a_layer_that_fails_leaves_the_rest_to_do(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = await processes()
    dead.task.cancel()
    await dead.hold("g")
    await database_sync_to_async(process_rows.judge)(1, [dead.id], 0)
    discard = groups.discard

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("hung")

    monkeypatch.setattr(groups, "discard", failing)
    with pytest.raises(RoundFailed, match="hung"):
        await next_round(reaper)
    assert await Membership.objects.to_leave().acount() == 1
    monkeypatch.setattr(groups, "discard", discard)
    assert (await next_round(reaper)).discarded == 1


async def test_a_living_process_is_told_to_finish_leaving(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    process = await processes()
    connection = await process.hold("g")
    await database_sync_to_async(connection_rows.close_connections)(
        [Closing(connection, CloseReason.CLIENT_LOST, None)], uuid.uuid4()
    )
    report = await next_round(reaper)
    assert report.kicked == 1
    async with asyncio.timeout(5):
        while not process.kicks:
            await asyncio.sleep(0.01)
    assert process.kicks[0].memberships == [(connection, "g")]


async def test_a_round_says_that_a_connection_was_superseded(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    """With another reason, its client would come back and supersede the newer connection."""
    process = await processes()
    older, lost = await process.hold("g"), await process.hold("h")
    for connection, reason in ((older, CloseReason.SUPERSEDED), (lost, CloseReason.CLIENT_LOST)):
        await database_sync_to_async(connection_rows.end_connections)(
            [Closing(connection, reason, None)], uuid.uuid4()
        )
    assert (await next_round(reaper)).kicked == 2
    async with asyncio.timeout(5):
        while len(process.kicks) < 2:
            await asyncio.sleep(0.01)
    assert {(kick.reason, *kick.connections) for kick in process.kicks} == {
        ("superseded", older),
        ("server_lost", lost),
    }


async def test_a_preview_writes_nothing(reaper: Reaper, processes: Callable[..., Any]) -> None:
    dead = await processes(through_layer=False, in_database=False)
    await dead.hold("g")
    report = await reaper.preview()
    assert (report.asked, report.lost, report.reaped, report.discarded) == (1, 1, 1, 1)
    row = await dead.row()
    assert (row.missed, row.stopped_at) == (0, None)
    assert await Connection.objects.open().acount() == 1
    assert await database_sync_to_async(process_rows.current_round)() == 0


async def test_enough_rounds_find_a_process_that_has_just_died(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    dead = await processes(through_layer=False, in_database=False)
    await dead.hold("g")
    reports: list[Report] = []
    assert await run_enough_rounds(reaper, reports.append)
    assert [report.number for report in reports] == [1, 2]
    assert not await run_enough_rounds(reaper, reports.append)


async def test_a_reaper_that_is_stopped_counts_no_misses(
    processes: Callable[..., Any],
) -> None:
    process = await processes(through_layer=False, in_database=False)
    reaper = Reaper(interval=60, timeout=30, misses_allowed=0)
    task = asyncio.create_task(run_rounds(reaper, lambda report: None))
    async with asyncio.timeout(5):
        while not await database_sync_to_async(process_rows.current_round)():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        reaper.stop()
        await task
    await reaper.close()
    assert (await process.row()).missed == 0


async def test_a_round_that_fails_is_reported_and_rounds_go_on(
    processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper = Reaper(interval=0.2, timeout=0.1, misses_allowed=1)
    reports: list[Any] = []
    failures = [LayerUnavailable("down")]
    ask = process_rows.processes_to_ask

    def failing() -> Any:
        if failures:
            raise failures.pop()
        return ask()

    monkeypatch.setattr(process_rows, "processes_to_ask", failing)
    task = asyncio.create_task(run_rounds(reaper, reports.append))
    async with asyncio.timeout(10):
        while len(reports) < 2:
            await asyncio.sleep(0.02)
    reaper.stop()
    await task
    await reaper.close()
    assert isinstance(reports[0], LayerUnavailable)
    assert isinstance(reports[1], Report)


@pytest.mark.acceptance  # for its seconds
async def test_a_reaper_that_receives_nothing_reconnects(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    living = await processes(in_database=False)
    rebuilt: list[str] = []
    layer = get_channel_layer()
    await reaper.round()
    mailbox, sending = reaper._required_mailbox, layer.send

    async def carry(channel: str, message: dict[str, Any]) -> None:
        if channel != mailbox.address:
            await sending(channel, message)

    async def echo(channels: Sequence[str], number: int) -> int:
        return len(channels)

    async def rebuild(address: str, parts: set[int]) -> None:
        assert parts == {0}
        rebuilt.append(address)

    monkeypatch.setattr(layer, "send", carry)
    monkeypatch.setattr(layer, "echo", echo)
    monkeypatch.setattr(groups, "rebuild", rebuild)
    for _ in range(4):
        await next_round(reaper)
    row = await living.row()
    assert (row.missed, row.stopped_at) == (0, None)
    assert rebuilt == [mailbox.address] * 4
    assert await database_sync_to_async(process_rows.finished_round)() == 1, "that of the first round"


@pytest.mark.acceptance  # for the seconds that it is stalled
async def test_a_reaper_that_stalled_counts_no_misses(
    processes: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    process = await processes(through_layer=False, in_database=False)
    reaper = Reaper(interval=10, timeout=0.3, misses_allowed=0)
    asyncio.get_running_loop().call_later(0.2, time.sleep, 1.6)
    report = await next_round(reaper)
    await reaper.close()
    assert (report.asked, report.answered, report.lost) == (1, 0, 0)
    assert "was stalled for" in caplog.text
    assert (await process.row()).missed == 0


async def test_a_layer_that_is_down_stops_no_kicks_in_another(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, living, full = await processes(), await processes(), await processes()
    dead.task.cancel()
    await dead.hold("g")
    for process in (living, full):
        connection = await process.hold("h")
        closing = Closing(connection, CloseReason.CLIENT_LOST, None)
        await database_sync_to_async(connection_rows.close_connections)([closing], uuid.uuid4())
    await database_sync_to_async(process_rows.judge)(1, [dead.id], 0)
    tell, discard = groups.tell, groups.discard

    async def discard_here(group: str, address: str) -> None:
        if address == dead.channel:
            raise LayerUnavailable("that layer is down")
        await discard(group, address)

    async def tell_here(address: str, message: messages.Control) -> None:
        if address == full.channel and isinstance(message, messages.Kick):
            raise LayerUnavailable("its channel is full")
        await tell(address, message)

    monkeypatch.setattr(groups, "discard", discard_here)
    monkeypatch.setattr(groups, "tell", tell_here)
    with pytest.raises(RoundFailed) as failed:
        await next_round(reaper)
    assert str(failed.value) == "that layer is down; its channel is full."
    async with asyncio.timeout(5):
        while not living.kicks:
            await asyncio.sleep(0.01)
    assert [group for _, group in living.kicks[0].memberships] == ["h"]


async def test_a_layer_that_hangs_costs_a_round_one_timeout(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        await processes()

    async def hanging(*_: Any) -> None:
        await asyncio.sleep(0.3)
        raise LayerUnavailable("hung")

    monkeypatch.setattr(groups, "tell", hanging)
    report = await next_round(reaper)
    assert (report.unreachable, report.asked) == (20, 0)
    assert report.seconds < 2


async def test_a_malformed_answer_does_not_end_the_reading(
    reaper: Reaper, processes: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await processes()
    await next_round(reaper)
    for answer in ({"type": "realtime.answer"}, {"type": "realtime.answer", "round": 2, "process": "x"}):
        await get_channel_layer().send(reaper._required_mailbox.address, answer)
    assert (await next_round(reaper)).answered == 1
    assert "a realtime.answer event that cannot be read" in caplog.text


async def test_rounds_delete_records_closed_long_ago(
    processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, running = await processes(), await processes()
    ended.task.cancel()
    old, fresh = await ended.hold("g"), await running.hold("g")
    for process in (ended, running):
        closing = Closing(old if process is ended else fresh, CloseReason.CLIENT_CLOSED, 1000)
        await database_sync_to_async(connection_rows.close_connections)([closing], uuid.uuid4())
        await database_sync_to_async(connection_rows.mark_groups_left)(process.id, ["g"])
    await database_sync_to_async(process_rows.stop_process)(ended.id)
    long_ago = timezone.now() - timedelta(days=2)
    await Connection.objects.filter(pk=old).aupdate(closed_at=long_ago)
    await Process.objects.filter(pk=ended.id).aupdate(stopped_at=long_ago)

    keeping = Reaper(interval=0.2, timeout=0.15, misses_allowed=1)
    assert (await next_round(keeping)).purged == 0
    await keeping.close()
    purging = Reaper(interval=0.2, timeout=0.15, misses_allowed=1, keep_closed=86_400)
    report = await next_round(purging)
    await purging.close()
    assert report.purged == 1
    assert not report.repaired
    assert "1 old records deleted" in report.line()
    assert [each.pk async for each in Connection.objects.all()] == [fresh]
    assert [each.pk async for each in Process.objects.all()] == [running.id]


async def test_rounds_delete_memberships_left_long_ago(processes: Callable[..., Any]) -> None:
    process = await processes()
    await process.hold("old", "held")
    await database_sync_to_async(connection_rows.mark_groups_left)(process.id, ["old"])
    long_ago = timezone.now() - timedelta(days=2)
    await Membership.objects.filter(group="old").aupdate(left_at=long_ago)

    purging = Reaper(interval=0.2, timeout=0.15, misses_allowed=1, keep_closed=86_400)
    report = await next_round(purging)
    await purging.close()
    assert (report.purged_memberships, report.purged, report.repaired) == (1, 0, False)
    assert report.line().endswith("1 old memberships deleted")
    assert [each.group async for each in Membership.objects.all()] == ["held"]


def one_slow_batch(older_than: float) -> int:
    """Stand in for a purge that never runs out of rows: one batch of 500 in 50 ms."""
    time.sleep(0.05)
    return 500


async def test_a_backlog_of_records_leaves_time_for_memberships(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper.purge_time = 0.2

    monkeypatch.setattr(connection_rows, "purge_closed", one_slow_batch)
    monkeypatch.setattr(connection_rows, "purge_left", one_slow_batch)
    reaper.keep_closed = 1.0
    report = await next_round(reaper)
    assert report.purged_memberships >= 500
    assert 500 <= report.purged <= 1500


async def test_deleting_old_records_takes_a_bounded_part_of_a_round(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper.purge_time = 0.2

    monkeypatch.setattr(connection_rows, "purge_closed", one_slow_batch)
    reaper.keep_closed = 1.0
    report = await next_round(reaper)
    assert 500 <= report.purged <= 2500


async def test_rounds_reduce_details_from_before_the_setting(processes: Callable[..., Any]) -> None:
    process = await processes()
    held = [await process.hold("g") for _ in range(3)]
    await Connection.objects.all().aupdate(
        remote_address="192.0.2.77",
        user_agent="Mozilla/5.0",
        opened_at=timezone.now() - timedelta(days=2),
    )

    # Without KEEP_CLOSED, nothing is deleted, and details are reduced all the same.
    reaper = Reaper(interval=0.2, timeout=0.15, misses_allowed=1, client_details="network")
    report = await next_round(reaper)
    again = await next_round(reaper)
    await reaper.close()

    assert (report.reduced, report.purged, report.repaired) == (len(held), 0, False)
    assert report.line().endswith("the client's details in 3 records reduced")
    assert again.reduced == 0
    assert {(each.remote_address, each.user_agent) async for each in Connection.objects.all()} == {
        ("192.0.2.0", "")
    }


async def test_rounds_visit_no_details_if_all_may_be_kept(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await processes()).hold("g")
    monkeypatch.setattr(detail_rows, "reduce_details", one_slow_batch)

    assert (await next_round(reaper)).reduced == 0


async def test_reducing_details_takes_a_bounded_part_of_a_round(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = []

    def one_slow_visit(*_: object) -> detail_rows.Visit:
        visits.append(time.sleep(0.05))
        return detail_rows.Visit(500, 500, None)

    reaper.purge_time = 0.2
    reaper.client_details = "none"
    monkeypatch.setattr(detail_rows, "reduce_details", one_slow_visit)
    report = await next_round(reaper)
    assert 500 <= report.reduced == 500 * len(visits) <= 2500


# -- a channel layer that no longer exists -------------------------------------------------------------


@pytest.fixture
async def stale(processes: Callable[..., Any]) -> FakeProcess:
    """Return a lost process with one connection in two groups, in a layer that was removed."""
    process: FakeProcess = await processes(through_layer=False, in_database=False)
    await process.hold("g", "h")
    await Process.objects.filter(pk=process.id).aupdate(channel_name="notifications:specific.0!1")
    await database_sync_to_async(process_rows.declare_lost)([process.id])
    return process


async def age(process: FakeProcess, seconds: float) -> None:
    """Put the end of a process and of its records back by this number of seconds."""
    then = timezone.now() - timedelta(seconds=seconds)
    await Process.objects.filter(pk=process.id).aupdate(stopped_at=then)
    await Connection.objects.closed().filter(process=process.id).aupdate(closed_at=then)


async def test_old_records_are_deleted_although_no_sweep_can_succeed(
    stale: FakeProcess, processes: Callable[..., Any]
) -> None:
    living, dead = await processes(), await processes(through_layer=False, in_database=False)
    await dead.hold("g")
    await database_sync_to_async(process_rows.declare_lost)([dead.id])
    old = [await living.hold() for _ in range(100)]
    closings = [Closing(each, CloseReason.CLIENT_CLOSED, 1000) for each in old]
    await database_sync_to_async(connection_rows.close_connections)(closings, uuid.uuid4())
    await age(living, 7200)
    await Process.objects.filter(pk=living.id).aupdate(stopped_at=None)

    purging = Reaper(interval=0.2, timeout=0.15, misses_allowed=1, keep_closed=3600)
    with pytest.raises(RoundFailed, match=r'no "notifications" layer.*3600 s after the process ended'):
        await next_round(purging)
    await purging.close()

    assert not await Connection.objects.filter(pk__in=old).aexists()
    assert not await Connection.objects.open().aexists(), "records are closed whatever the layer does"
    held = Membership.objects.to_leave().values_list("process", flat=True).distinct()
    assert [process async for process in held] == [stale.id], "the other process is swept"


@pytest.mark.parametrize(("keep_closed", "patience"), [(3600, 3600), (None, sweep.WRITE_OFF_AFTER)])
async def test_memberships_of_a_removed_layer_are_written_off_in_time(
    stale: FakeProcess, keep_closed: float | None, patience: float, caplog: pytest.LogCaptureFixture
) -> None:
    reaper = Reaper(interval=0.2, timeout=0.15, misses_allowed=1, keep_closed=keep_closed)
    await age(stale, patience - 60)
    with pytest.raises(RoundFailed):
        await next_round(reaper)
    assert await Membership.objects.to_leave().acount() == 2

    await age(stale, patience + 1)
    report = await next_round(reaper)
    assert (report.discarded, report.written_off, report.repaired) == (0, 2, True)
    assert "2 groups of a layer that no longer exists written off" in report.line()
    assert not await Membership.objects.to_leave().aexists()
    again = await next_round(reaper)
    assert (again.written_off, again.repaired) == (0, False)
    await reaper.close()
    assert caplog.text.count("are written off") == 1
    # The records and the process can now be purged.
    assert await Process.objects.filter(pk=stale.id).aexists() is (keep_closed is None)


async def test_a_removed_layer_without_members_fails_no_round(
    reaper: Reaper, processes: Callable[..., Any]
) -> None:
    process = await processes(through_layer=False, in_database=False)
    await process.hold()
    await Process.objects.filter(pk=process.id).aupdate(channel_name="notifications:specific.0!1")
    await database_sync_to_async(process_rows.declare_lost)([process.id])
    assert (await next_round(reaper)).reaped == 1


async def test_failures_of_sweep_and_purge_are_both_reported(
    stale: FakeProcess, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(older_than: float) -> int:
        raise OperationalError("disk full")

    monkeypatch.setattr(connection_rows, "purge_closed", fail)
    reaper.keep_closed = 3600
    with pytest.raises(RoundFailed, match=r'no "notifications" layer.*; disk full'):
        await next_round(reaper)


# -- rounds that are not carried through -----------------------------------------------------------------


async def test_only_a_complete_round_is_recorded_as_finished(
    reaper: Reaper, processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = database_sync_to_async(process_rows.finished_round)
    await processes()
    await next_round(reaper)
    assert await finished() == 1

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("full")

    with monkeypatch.context() as patched:
        patched.setattr(groups, "tell", failing)
        assert (await next_round(reaper)).unreachable == 1
    assert await finished() == 1
    with monkeypatch.context() as patched:
        patched.setattr(reaper, "_sweep", failing)
        with pytest.raises(LayerUnavailable):
            await next_round(reaper)
    assert await finished() == 1
    await next_round(reaper)
    assert await finished() == 4


async def test_incomplete_rounds_of_another_reaper_do_not_count(
    processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = await processes(through_layer=False, in_database=False)
    await dead.hold("g")
    broken, once = (Reaper(interval=0.4, timeout=0.1, misses_allowed=1) for _ in range(2))

    async def failing(*_: Any) -> None:
        raise LayerUnavailable("not from here")

    monkeypatch.setattr(broken, "_judge", failing)
    failures: list[Any] = []
    others = asyncio.create_task(run_rounds(broken, failures.append))
    async with asyncio.timeout(10):
        while not failures:
            await asyncio.sleep(0.01)
    reports: list[Report] = []
    async with asyncio.timeout(20):
        assert await run_enough_rounds(once, reports.append), "it has found what died"
    broken.stop()
    await others
    await asyncio.gather(broken.close(), once.close())
    assert len(reports) == 2
    assert sum(report.lost for report in reports) == 1
    assert {str(failure) for failure in failures} == {"not from here"}


async def test_enough_rounds_end_when_no_reaper_carries_one_through(reaper: Reaper) -> None:
    async def claim_all() -> None:
        while True:
            await database_sync_to_async(process_rows.claim_round)(0.0)
            await asyncio.sleep(0.02)

    claiming = asyncio.create_task(claim_all())
    began = asyncio.get_running_loop().time()
    try:
        with pytest.raises(LayerUnavailable, match="none was carried through"):
            await run_enough_rounds(reaper, lambda report: None)
    finally:
        claiming.cancel()
    assert asyncio.get_running_loop().time() - began >= PATIENCE * reaper.interval


def test_times_that_cannot_work_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="must be above zero and below"):
        Reaper.as_configured(interval=1, timeout=2)
