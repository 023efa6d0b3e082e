"""The publisher: for each line of standard input (a group, a tab and a text), it publishes the text.

`python -m benchmarks.publisher HOW TASKS` publishes TASKS lines at any time. It is a separate process,
because applications publish from other processes, and so that it costs the measured server nothing. It prints
a line when it is ready.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

import realtime

Publish = Callable[[str, str], Coroutine[Any, Any, None]]
#: The position of the time in a text of the generator: after `seq=`, ten digits and ` at=`.
TIME_AT = 18


async def through_channels(group: str, text: str) -> None:
    """Publish as the Channels tutorial does."""
    await get_channel_layer().group_send(group, {"type": "chat.message", "message": text})


def through_channels_from_sync(group: str, text: str) -> None:
    """Publish as the Channels documentation does outside of consumers."""
    async_to_sync(get_channel_layer().group_send)(group, {"type": "chat.message", "message": text})


FROM_ASYNC: dict[str, Publish] = {"channels": through_channels, "realtime": realtime.apublish}
FROM_SYNC = {"channels-sync": through_channels_from_sync, "realtime-sync": realtime.publish}


def call_of(line: str) -> tuple[str, str]:
    """Return the group and the text of a line, with the current time in the text."""
    group, _, text = line.rstrip("\n").partition("\t")
    return group, f"{text[:TIME_AT]}{time.monotonic_ns():020d}{text[TIME_AT + 20 :]}"


async def publish_each_line(publish: Publish, tasks: int) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    free = asyncio.Semaphore(tasks)
    running = set()

    def done(task: asyncio.Task[None]) -> None:
        running.discard(task)
        free.release()
        task.result()

    while line := await lines.readline():
        if tasks == 1:
            # Keep the order: one after another.
            await publish(*call_of(line.decode()))
            continue
        await free.acquire()
        task = loop.create_task(publish(*call_of(line.decode())))
        running.add(task)
        task.add_done_callback(done)


def publish_each_line_from_sync(publish: Callable[[str, str], None], tasks: int) -> None:
    def call(line: str) -> None:
        publish(*call_of(line))

    print("ready", flush=True)
    with ThreadPoolExecutor(tasks) as threads:
        for line in sys.stdin:
            threads.submit(call, line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=(*FROM_ASYNC, *FROM_SYNC))
    parser.add_argument("tasks", type=int)
    options = parser.parse_args()
    django.setup()
    if options.how in FROM_ASYNC:
        asyncio.run(publish_each_line(FROM_ASYNC[options.how], options.tasks))
    else:
        publish_each_line_from_sync(FROM_SYNC[options.how], options.tasks)


if __name__ == "__main__":
    main()
