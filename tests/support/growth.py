"""What connections leave behind in the memory of a server process."""

import asyncio

import psutil

from tests.support.clients import close_all, connect_many
from tests.support.eventually import eventually_async
from tests.support.scrape import scrape
from tests.support.servers import WebServer

WAVE = 150
WAVES = 8  # so many connections as may end before a process looks for what they left behind
MANY_WAVES = 100  # after as many connections even the fragments of memory are used again
ROOM, HALL = "public.growth", "public.growth-hall"


def memory(server: WebServer) -> int:
    """The resident memory of a process, in bytes."""
    return psutil.Process(server.pid).memory_info().rss


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


async def growth_per_connection(server: WebServer, waves: int = WAVES) -> float:
    """Bytes that each connection leaves behind for good: by how much the process is larger at most in the
    second half of twice as many waves than in the first.
    """
    largest = [0, 0]
    for half in (0, 1):
        for _ in range(waves):
            await wave(server)
            largest[half] = max(largest[half], memory(server))
    return (largest[1] - largest[0]) / (waves * WAVE)
