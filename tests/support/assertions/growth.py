"""What connections leave behind in the memory of a server process."""

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
    """What a server holds that runs `tests.support.live`, once it has been tidied."""

    resident: int
    """Bytes, with what libraries in C keep: SQLite has a cache that comes and goes."""
    blocks: int
    """Of Python's objects, and the same to within a few hundred whenever as much is held."""


@dataclass(frozen=True, slots=True)
class Growth:
    """For each connection, over the second half of twice as many waves as asked for."""

    bytes: float
    """By how much the process was larger at most than in the first half."""
    blocks: float


async def memory(server: WebServer) -> Memory:
    def told() -> list[str]:
        return re.findall(rf"{TIDIED}(\d+)\n", server.log_text())

    before = len(told())
    os.kill(server.pid, TIDY)
    await eventually_async(lambda: len(told()) > before, within=10)
    return Memory(psutil.Process(server.pid).memory_info().rss, int(told()[-1]))


async def memory_at_rest(server: WebServer) -> Memory:
    """`memory`, without the connections that were closed a moment ago."""
    await asyncio.sleep(AT_REST)
    return await memory(server)


def connections_had(server: WebServer) -> int:
    """How many connections this process has ever admitted."""
    return int(scrape(server).value("realtime_connections_opened_total"))


async def wave(server: WebServer) -> None:
    """Many connections that join, receive, and end; half of them without a word. Nobody else is there."""
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
    """What each connection leaves behind for good."""
    largest, at_rest = [0, 0], [0, 0]
    for half in (0, 1):
        for _ in range(waves):
            await wave(server)
            largest[half] = max(largest[half], (await memory(server)).resident)
        at_rest[half] = (await memory_at_rest(server)).blocks
    connections = waves * WAVE
    return Growth((largest[1] - largest[0]) / connections, (at_rest[1] - at_rest[0]) / connections)
