"""A TCP relay in a process of its own: while it is stopped, only one program cannot reach a server.

`python -m tests.support.faults.relay PORT HOST PORT` passes everything on, in both directions.
"""

import asyncio
import socket
import sys
from pathlib import Path

from tests.support.programs.servers import Program, RedisServer, free_port


class Relay(Program):
    """The relay between a Redis on a TCP port and one program, which uses `url`."""

    def __init__(self, redis: RedisServer, *, log: Path) -> None:
        self.port = free_port()
        to = (str(self.port), redis.interface, str(redis.port))
        super().__init__([sys.executable, "-m", "tests.support.faults.relay", *to], log=log)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def relay(port: int, host: str, to_port: int) -> None:
    """Relay until cancelled."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(host, to_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, to_server), _pass_on(from_server, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
