"""The memory that ended connections leave in use in a server process."""

import asyncio
import os
import re
from dataclasses import dataclass

import psutil

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import close_all, connect_many
from tests.support.programs.servers import WebServer
from tests.support.programs.tidy import TIDIED, TIDY

WAVE = 150
WAVES = 8
MANY_WAVES = 100  # after as many connections even the fragments of memory are used again
ROOM, HALL = "public.growth", "public.growth-hall"
AT_REST = 3.0  # seconds; a connection that was closed is aborted only after two, and is kept as long


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a server that runs `tests.support.live`, after it was tidied."""

    resident: int
    """Bytes, with the caches of libraries in C, such as that of SQLite, which comes and goes."""
    blocks: int
    """Blocks of Python's objects; the same to within a few hundred whenever the process holds as much."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth for each connection, over the second half of twice as many waves as asked for."""

    bytes: float
    """The growth of the largest size of the process, from the first half to the second."""
    blocks: float


async def memory(server: WebServer) -> Memory:
    """Have the server tidy its memory, and return its size."""

    def told() -> list[str]:
        return re.findall(rf"{TIDIED}(\d+)\n", server.log_text())

    before = len(told())
    os.kill(server.pid, TIDY)
    await eventually_async(lambda: len(told()) > before, within=10)
    return Memory(psutil.Process(server.pid).memory_info().rss, int(told()[-1]))


async def memory_at_rest(server: WebServer) -> Memory:
    """Return `memory` without the connections that were closed a moment ago."""
    await asyncio.sleep(AT_REST)
    return await memory(server)


def connections_had(server: WebServer) -> int:
    """Return the number of connections that this process has ever admitted."""
    return int(scrape(server).value("realtime_connections_opened_total"))


async def wave(server: WebServer) -> None:
    """Open many connections that join, receive, and end, half of them without a close frame.

    No other connection is open in the process.
    """
    clients = await connect_many(WAVE, server.websocket(f"/ws/{ROOM}/"))
    try:
        await asyncio.gather(*(client.join(HALL) for client in clients))
        await clients[0].publish(HALL, "x" * 1000)
        for client in clients[::2]:
            client.abort()
    finally:
        await close_all(clients)
    await eventually_async(lambda: scrape(server).value("realtime_connections") == 0, within=10)


async def growth_per_connection(server: WebServer, waves: int = WAVES) -> Growth:
    """Return what each connection leaves in use for good."""
    largest, at_rest = [0, 0], [0, 0]
    for half in (0, 1):
        for _ in range(waves):
            await wave(server)
            largest[half] = max(largest[half], (await memory(server)).resident)
        at_rest[half] = (await memory_at_rest(server)).blocks
    connections = waves * WAVE
    return Growth((largest[1] - largest[0]) / connections, (at_rest[1] - at_rest[0]) / connections)
