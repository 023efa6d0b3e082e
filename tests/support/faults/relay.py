"""TCP relays in processes of their own: to cut one program off, to move an address, and as a proxy.

`python -m tests.support.faults.relay PORT HOST PORT [HOST PORT …]` passes everything on, in both directions.
Of several targets, it takes the next one that accepts the connection. If the first PORT is `-`, its standard
input is the socket that listens.
"""

import asyncio
import itertools
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.assertions.eventually import eventually
from tests.support.programs.servers import STARTUP, Program, RedisServer, WebServer, free_port


class _Passing(Program):
    """A relay from `port` to the first of some targets that accepts."""

    def __init__(self, targets: Sequence[tuple[str, int]], *, port: int, log: Path) -> None:
        self.port = port
        words = itertools.chain.from_iterable((host, str(to)) for host, to in targets)
        super().__init__([sys.executable, "-m", "tests.support.faults.relay", str(port), *words], log=log)

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Relay(_Passing):
    """The relay between a Redis on a TCP port and one program, which uses `url`."""

    def __init__(self, redis: RedisServer, *, log: Path, port: int = 0) -> None:
        super().__init__([(redis.interface, redis.port)], port=port or free_port(), log=log)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Proxy(_Passing):
    """A proxy before some servers. A new connection goes to the next server that accepts it."""

    def __init__(self, servers: Sequence[WebServer], *, log: Path) -> None:
        super().__init__([(each.interface, each.port) for each in servers], port=free_port(), log=log)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


class RedisBehindAddress:
    """A Redis and its replica behind one address, which an operator moves from one to the other.

    They stop at the end of the block.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.master = RedisServer(folder, tcp=True, name="master")
        self.replica = RedisServer(
            folder,
            tcp=True,
            options=("--replicaof", "127.0.0.1", str(self.master.port)),
            name="replica",
        )
        self._relay = Relay(self.master, log=folder / "relay.log")
        self._port = self._relay.port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def hosts(self) -> list[Any]:
        """The value of `hosts` in CHANNEL_LAYERS."""
        return [self.url]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def part(self) -> None:
        """End the replication. From now on the replica lacks what the master takes."""
        self._in_step()
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")

    def move(self) -> None:
        """Kill the master, and move the address to the replica."""
        self._relay.kill()
        self.master.kill()
        self._relay = Relay(self.replica, log=self.folder / "relay.log", port=self._port)
        self._relay.start()

    def _in_step(self) -> None:
        """Wait until the replica has everything."""

        def same() -> bool:
            with self.master.client() as master, self.replica.client() as replica:
                there = replica.info("replication")
                return bool(
                    there.get("master_link_status") == "up"
                    and there["slave_repl_offset"] >= master.info("replication")["master_repl_offset"]
                )

        eventually(same, within=STARTUP)

    def __enter__(self) -> Self:
        try:
            for each in (self.master, self.replica, self._relay):
                each.start()
            self._in_step()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._relay.stop()
        for each in (self.master, self.replica):
            each.__exit__(None, None, None)


class Door(Program):
    """The relay from the host's network to a program in a network namespace, while its link is cut as well.

    A socket belongs to the network in which it was made. So the test makes the socket that listens, and the
    relay connects inside.

    Args:
        prefix: The words that start a program in the namespace.
        port: The port of the program there, on the loopback interface. The relay listens on the same port of
            the host, because Firefox refuses requests that name another port than its own.
        log: The file for the output of the process.
    """

    def __init__(self, prefix: Sequence[str], port: int, *, log: Path) -> None:
        self.stdin = socket.create_server(("127.0.0.1", port))
        to = ("-", "127.0.0.1", str(port))
        super().__init__([*prefix, sys.executable, "-m", "tests.support.faults.relay", *to], log=log)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.stdin.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def relay(listening: socket.socket, targets: Sequence[tuple[str, int]]) -> None:
    """Relay until cancelled."""
    turns = itertools.count()

    def in_turn() -> Iterator[tuple[str, int]]:
        turn = next(turns) % len(targets)
        yield from targets[turn:]
        yield from targets[:turn]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for host, to_port in in_turn():
            try:
                from_server, to_server = await asyncio.open_connection(host, to_port)
            except OSError:
                continue
            await asyncio.gather(_pass_on(reader, to_server), _pass_on(from_server, writer))
            return
        writer.close()

    server = await asyncio.start_server(connected, sock=listening, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    port, *rest = sys.argv[1:]
    targets = [(host, int(to)) for host, to in zip(rest[::2], rest[1::2], strict=True)]
    listening = socket.socket(fileno=0) if port == "-" else socket.create_server(("127.0.0.1", int(port)))
    asyncio.run(relay(listening, targets))
