"""Rounds and sweeps over a database of many open records: the inner part of `python -m benchmarks.records`.

`python -m benchmarks.rounds ROWS PROCESSES SWEEPS ROUNDS` fills the database of the settings, runs rounds
with the real reaper against PROCESSES processes that answer, and sweeps SWEEPS of them, one after another. It
prints one line of JSON.
"""

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

import django

django.setup()

from channels.db import database_sync_to_async  # noqa: E402

from benchmarks import filling  # noqa: E402
from realtime.fleet import sweep  # noqa: E402
from realtime.fleet.announcements import Announcements  # noqa: E402
from realtime.fleet.mailbox import Mailbox  # noqa: E402
from realtime.fleet.rounds import Reaper  # noqa: E402
from realtime.layers import groups, messages  # noqa: E402
from realtime.models import Connection, Process  # noqa: E402
from realtime.records import connection_rows, process_rows  # noqa: E402

# The name of another machine, so that no process here judges these processes by their pids.
HOST = "elsewhere"
#: Seconds between two rounds; all processes answer long before that.
INTERVAL = 1.0


class Timed:
    """Caller of `records` in a thread, as in the reaper, that keeps the seconds of each call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    async def __call__(self, call: Callable[..., Any], /, *arguments: object) -> Any:
        began = time.perf_counter()
        try:
            return await database_sync_to_async(call)(*arguments)
        finally:
            self.seconds.setdefault(call.__name__, []).append(time.perf_counter() - began)


async def answer(process: uuid.UUID, mailbox: Mailbox) -> None:
    """Answer rounds as a hub does: by the row and by a message."""
    questions = asyncio.Queue[messages.Control]()
    mailbox.listen(questions.put_nowait)
    write = database_sync_to_async(process_rows.answer_round)
    while True:
        question = await questions.get()
        if isinstance(question, messages.Ask):
            await write(process, question.round, connections=0, loop_lag=0.0)
            await groups.tell(question.reply_to, messages.Answer(question.round, process))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    channels = [await groups.new_channel() for _ in range(options.processes)]
    processes = await database_sync_to_async(filling.start_processes)(channels, HOST)
    began = time.perf_counter()
    await database_sync_to_async(filling.fill)(processes, options.rows)
    filled_in = time.perf_counter() - began
    mailboxes = [await Mailbox.open(channel) for channel in channels]
    answering = [
        asyncio.create_task(answer(process, mailbox))
        for process, mailbox in zip(processes, mailboxes, strict=True)
    ]
    reaper = Reaper(interval=INTERVAL, timeout=0.9 * INTERVAL, misses_allowed=1)
    rounds = []
    for _ in range(options.rounds + 1):
        while (report := await reaper.round()) is None:
            await reaper.until_next()
        rounds.append(report.seconds)
        if report.answered != options.processes or report.repaired:
            raise SystemExit(f"a round that should have lost no process: {report}")
    touched = await database_sync_to_async(touch)(processes[-1])
    sweeps = [await swept(process) for process in processes[: options.sweeps]]
    await reaper.close()
    for task in answering:
        task.cancel()
    for mailbox in mailboxes:
        await mailbox.close()
    # Leave out the first round, which opens connections to Redis.
    return {"filled_in": filled_in, "rounds": rounds[1:], "touched": touched, "sweeps": sweeps}


def touch(process: uuid.UUID) -> float:
    """Return seconds to write that 10,000 connections are alive, which a process does every minute."""
    ids = list(Connection.objects.open().filter(process=process).values_list("pk", flat=True)[:10_000])
    began = time.perf_counter()
    connection_rows.touch_connections(ids)
    return (time.perf_counter() - began) * 10_000 / len(ids)


async def swept(process: uuid.UUID) -> dict[str, Any]:
    """Declare a process lost and clean up after it, as the reaper does at the end of its round."""
    await database_sync_to_async(declare_lost)([process])
    timed = Timed()
    began = time.perf_counter()
    lost = await timed(process_rows.lost_processes_to_sweep)
    done = await sweep.sweep(
        lost, timed, lambda: False, announcements=Announcements(own_thread=True), keep_closed=None
    )
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "reaped": done.reaped,
        "discarded": done.discarded,
        "longest": {name: max(each) for name, each in timed.seconds.items()},
        "total": {name: sum(each) for name, each in timed.seconds.items()},
        "batches": sum(map(len, timed.seconds.values())),
    }


def declare_lost(processes: Collection[uuid.UUID]) -> None:
    lost = process_rows.declare_lost(processes)
    assert len(lost) == Process.objects.filter(pk__in=processes).count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "processes", "sweeps", "rounds"):
        parser.add_argument(name, type=int)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
