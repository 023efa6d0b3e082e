"""A server on the library websockets that passes the publisher's messages to `broadcast()`.

Usage: `python -m benchmarks.peers.websockets_broadcast PORT`. It runs on asyncio's own loop, as in the
library's documentation, and without compression, which no client here offers.
"""

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

subscribers: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    assert connection.request is not None
    if connection.request.path == "/publish":
        async for text in connection:
            broadcast(subscribers, text)
        return
    subscribers.add(connection)
    try:
        await connection.wait_closed()
    finally:
        subscribers.discard(connection)


async def main(port: int) -> None:
    async with serve(handle, "127.0.0.1", port, compression=None, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
