"""Ended processes are swept once, and no living process is taken for an ended one."""

import asyncio
import logging
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import IntegrityError, OperationalError

from realtime.closing import CloseReason
from realtime.fleet import sweep
from realtime.fleet.announcements import Announcements
from realtime.fleet.rounds import Reaper
from realtime.layers import groups
from realtime.models import Connection, Membership, Process, Round
from realtime.process import pids
from realtime.records import Opening, connection_rows, process_rows
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles import rows

pytestmark = [
    pytest.mark.usefixtures("memory_layer"),
    pytest.mark.skipif(sys.platform != "linux", reason="pids are judged on Linux"),
]

HOST = socket.gethostname()


async def database(call: Any, *arguments: object) -> Any:
    return await database_sync_to_async(call)(*arguments)


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Return another process of this machine, which runs until a test kills it."""
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def began_of(child: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])


async def recorded(
    child: subprocess.Popen[bytes],
    *,
    host: str = HOST,
    namespace: str | None = None,
    began: int | None = None,
) -> uuid.UUID:
    """Record a server process with this pid and one connection in two groups, and return its id."""
    began = began_of(child) if began is None else began
    namespace = pids.own().namespace if namespace is None else namespace
    channel = await get_channel_layer().new_channel()
    process: uuid.UUID = await database(
        process_rows.start_process, channel, host, child.pid, namespace, began
    )
    await give_a_connection(process, channel)
    return process


async def give_a_connection(process: uuid.UUID, channel: str) -> None:
    (connection,) = await database(rows.open_connections, process, 1)
    await database(connection_rows.open_memberships, rows.joins(process, [connection], "g", "h"))
    for group in ("g", "h"):
        await get_channel_layer().group_add(group, channel)


def kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


async def is_running(process: uuid.UUID) -> bool:
    return await Process.objects.running().filter(pk=process).aexists()


async def nothing_left(process: uuid.UUID) -> bool:
    return not (
        await Connection.objects.open().filter(process=process).aexists()
        or await Membership.objects.to_leave().filter(process=process).aexists()
    )


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_process_without_a_pid_is_lost_in_the_next_round(
    neighbour: subprocess.Popen[bytes],
) -> None:
    process = await recorded(neighbour)
    kill(neighbour)
    # Longer than a test may take: the round waits for no process, and no second round is needed.
    reaper = Reaper(interval=600, timeout=300, misses_allowed=5)
    async with asyncio.timeout(10):
        report = await reaper.round()
    await reaper.close()
    assert report is not None
    assert (report.asked, report.lost, report.reaped, report.discarded) == (0, 1, 1, 2)
    row = await Process.objects.aget(pk=process)
    assert row.lost
    assert row.stopped_at is not None
    assert not get_channel_layer().groups.get("g")


async def test_a_process_that_starts_sweeps_its_predecessor(
    neighbour: subprocess.Popen[bytes],
) -> None:
    process = await recorded(neighbour)
    kill(neighbour)
    home = await lifecycle.hub()
    try:

        async def is_swept() -> bool:
            return not await is_running(process) and await nothing_left(process)

        async with asyncio.timeout(10):
            while not await is_swept():
                await asyncio.sleep(0.01)
        assert await is_running(home.process)
        assert not await Round.objects.filter(number__gt=0).aexists()
        record = await Connection.objects.aget(process=process)
        assert record.close_reason == CloseReason.SERVER_LOST.value
    finally:
        await lifecycle.stop()


async def test_the_next_start_finishes_an_unfinished_sweep(
    neighbour: subprocess.Popen[bytes],
) -> None:
    process = await recorded(neighbour)
    kill(neighbour)
    assert len(await sweep.declare_gone(database)) == 1
    assert not await nothing_left(process)
    await sweep.sweep_predecessors()
    assert await nothing_left(process)


async def test_a_living_process_is_left_alone(neighbour: subprocess.Popen[bytes]) -> None:
    process = await recorded(neighbour)
    await sweep.sweep_predecessors()
    assert await is_running(process)
    assert not await nothing_left(process)


@pytest.mark.parametrize(
    "changes", [{"host": "another-host"}, {"namespace": "another boot"}, {"namespace": ""}], ids=str
)
async def test_a_pid_of_another_machine_is_not_checked(
    neighbour: subprocess.Popen[bytes], changes: dict[str, str]
) -> None:
    process = await recorded(neighbour, **changes)
    kill(neighbour)
    await sweep.sweep_predecessors()
    assert await is_running(process)
    assert not await nothing_left(process)


async def test_a_process_of_unknown_namespace_judges_no_process(
    neighbour: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await recorded(neighbour, namespace="")
    kill(neighbour)
    monkeypatch.setattr(pids, "_namespace", lambda _: "")
    await sweep.sweep_predecessors()
    assert await sweep.declare_gone(database) == []
    assert await is_running(process)


async def test_a_process_is_lost_if_its_pid_was_reused(neighbour: subprocess.Popen[bytes]) -> None:
    process = await recorded(neighbour, began=1)
    await sweep.sweep_predecessors()
    assert not await is_running(process)
    assert await nothing_left(process)


async def test_a_failing_layer_does_not_stop_other_sweeps(
    neighbour: subprocess.Popen[bytes],
) -> None:
    stuck, other = await recorded(neighbour), await recorded(neighbour)
    await Process.objects.filter(pk=stuck).aupdate(channel_name="elsewhere:specific.0!1")
    kill(neighbour)
    lost = await sweep.declare_gone(database)
    swept = await sweep.sweep(lost, database, lambda: False, Announcements(own_thread=True), keep_closed=3600)
    (failure,) = swept.failures
    assert 'no "elsewhere" layer' in str(failure)
    assert (swept.reaped, swept.discarded, swept.written_off) == (2, 2, 0)
    assert await nothing_left(other)
    assert not await Connection.objects.open().aexists()
    assert await Membership.objects.to_leave().filter(process=stuck).acount() == 2


@pytest.mark.parametrize(
    ("error", "others_are_swept"), [(IntegrityError("refused"), True), (OperationalError("down"), False)]
)
async def test_a_refused_row_does_not_stop_other_sweeps(
    neighbour: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    others_are_swept: bool,
) -> None:
    poisoned, other = await recorded(neighbour), await recorded(neighbour)
    kill(neighbour)
    lost = await sweep.declare_gone(database)
    close = connection_rows.close_lost_records

    def refuse(process: uuid.UUID, stamp: uuid.UUID) -> list[Opening]:
        if process == poisoned:
            raise error
        return close(process, stamp)

    monkeypatch.setattr(connection_rows, "close_lost_records", refuse)
    in_order = sorted(lost, key=lambda each: each.id != poisoned)
    swept = await sweep.sweep(
        in_order, database, lambda: False, Announcements(own_thread=True), keep_closed=None
    )
    assert swept.failures == (error,)
    assert await nothing_left(other) is others_are_swept


async def test_an_incomplete_sweep_is_logged_without_a_traceback(
    neighbour: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    process = await recorded(neighbour)
    await Process.objects.filter(pk=process).aupdate(channel_name="elsewhere:specific.0!1")
    kill(neighbour)
    await sweep.sweep_predecessors()
    (error,) = errors(caplog)
    assert error.startswith(
        "Earlier processes of this machine were not swept at the start; rounds will sweep them:"
    )
    assert 'no "elsewhere" layer' in error
    assert "Traceback" not in caplog.text


async def test_only_one_of_several_processes_declares_it_lost(neighbour: subprocess.Popen[bytes]) -> None:
    await recorded(neighbour)
    kill(neighbour)
    found = await asyncio.gather(*(sweep.declare_gone(database) for _ in range(4)))
    assert sum(len(lost) for lost in found) == 1


async def test_a_process_that_stopped_as_planned_is_not_lost(neighbour: subprocess.Popen[bytes]) -> None:
    process = await recorded(neighbour)
    await database(process_rows.stop_process, process)
    kill(neighbour)
    await sweep.sweep_predecessors()
    assert not (await Process.objects.aget(pk=process)).lost
    assert await nothing_left(process)


async def test_a_sweep_that_hangs_neither_delays_nor_fails_the_start(
    neighbour: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = await recorded(neighbour)
    kill(neighbour)
    discarding = asyncio.Event()

    async def hang(*_: object) -> None:
        discarding.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(groups, "discard", hang)
    monkeypatch.setattr(sweep, "sweep_predecessors", partial(sweep.sweep_predecessors, 0.5))
    async with asyncio.timeout(10):
        home = await lifecycle.hub()
        assert not discarding.is_set(), "the hub waited for the sweep"
        await eventually_async(lambda: errors(caplog), within=5)
    await lifecycle.stop()
    assert discarding.is_set()
    (error,) = errors(caplog)
    assert "rounds will sweep them" in error
    assert not await nothing_left(process)
    assert home.process != process


async def test_a_database_that_fails_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("down")

    monkeypatch.setattr(process_rows, "processes_of", fail)
    await sweep.sweep_predecessors()
    assert len(errors(caplog)) == 1


async def test_a_process_with_an_inline_ledger_sweeps_nothing(
    neighbour: subprocess.Popen[bytes], realtime_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(sweep, "sweep_predecessors", lambda: called.append(1))
    realtime_settings(LEDGER="inline")
    await lifecycle.hub()
    await lifecycle.stop()
    assert not called
