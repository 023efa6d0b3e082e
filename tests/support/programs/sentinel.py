"""A Redis that Sentinel watches: a master, a replica, and the Sentinels that promote the replica."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis

from project import private_redis
from tests.support.assertions.eventually import eventually
from tests.support.programs.rights import PASSWORD, USER
from tests.support.programs.servers import STARTUP, Program, RedisServer, free_port

NAME = "realtime-master"
DATABASE = 1


class SentinelServer(Program):
    """One Sentinel, with a configuration file that it rewrites itself."""

    def __init__(
        self,
        folder: Path,
        master: RedisServer,
        *,
        number: int,
        quorum: int,
        password: str,
        down_after: float,
        program: str | None,
    ) -> None:
        self.port = free_port()
        self.password = password
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {NAME} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {NAME} {down_after * 1000:.0f}",
            f"sentinel failover-timeout {NAME} 5000",
        ]
        if master.password:
            lines.append(f"sentinel auth-pass {NAME} {master.password}")
        if password:
            lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        self.configuration = folder / f"sentinel-{number}.conf"
        self.configuration.write_text("\n".join(lines) + "\n")
        super().__init__(
            [program or private_redis.server_program(), self.configuration, "--sentinel"],
            log=folder / f"sentinel-{number}.log",
        )

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password or None, decode_responses=True)

    def state(self) -> dict[str, Any]:
        """Return what it says of the master."""
        with self.client() as client:
            found: dict[str, Any] = client.sentinel_masters()[NAME]
            return found

    def is_ready(self) -> bool:
        try:
            # It finds the replica by asking the master.
            return bool(self.state()["num-slaves"])
        except (redis.ConnectionError, redis.TimeoutError):
            return False


class RedisWithSentinel:
    """A master, its replica and some Sentinels. They stop at the end of the block.

    Args:
        folder: The folder of the logs and configuration files.
        sentinels: The number of Sentinels. The quorum is their majority.
        password: The password of both Redis.
        sentinel_password: The password of the Sentinels.
        rights: The rules of the user that the layers are. By default, they are the default user.
        program: The path of the server program; by default, the one that `make run` would start.
        down_after: Seconds of silence after which a Sentinel takes the master for dead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sentinels: int = 1,
        password: str = "",
        sentinel_password: str = "",
        rights: Sequence[str] = (),
        program: str | None = None,
        down_after: float = 1.0,
    ) -> None:
        login = ("--masterauth", password) if password else ()
        user = ("--user", USER, *rights) if rights else ()
        self.master = RedisServer(
            folder, tcp=True, password=password, options=(*login, *user), program=program, name="master"
        )
        self.replica = RedisServer(
            folder,
            tcp=True,
            password=password,
            options=(*login, *user, "--replicaof", "127.0.0.1", str(self.master.port)),
            program=program,
            name="replica",
        )
        self.sentinels = [
            SentinelServer(
                folder,
                self.master,
                number=number,
                quorum=sentinels // 2 + 1,
                password=sentinel_password,
                down_after=down_after,
                program=program,
            )
            for number in range(sentinels)
        ]
        self._login = (
            {"username": USER, "password": PASSWORD} if rights else {"password": password} if password else {}
        )
        self._sentinel_password = sentinel_password
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as starting:
            for each in (self.master, self.replica):
                starting.enter_context(each)
            eventually(self._is_replicated, within=STARTUP)
            for sentinel in self.sentinels:
                starting.enter_context(sentinel)
            others = len(self.sentinels) - 1
            eventually(
                lambda: all(each.state()["num-other-sentinels"] == others for each in self.sentinels),
                within=STARTUP,
            )
            self._running = starting.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        return self.master.url

    @property
    def hosts(self) -> list[Any]:
        """The value of `hosts` in CHANNEL_LAYERS, as JSON can hold it."""
        host: dict[str, Any] = {
            "sentinels": [["127.0.0.1", each.port] for each in self.sentinels],
            "master_name": NAME,
            "db": DATABASE,
            **self._login,
        }
        if self._sentinel_password:
            host["sentinel_kwargs"] = {"password": self._sentinel_password}
        return [host]

    def _is_replicated(self) -> bool:
        with self.replica.client() as client:
            return client.info("replication")["master_link_status"] == "up"

    def is_failed_over(self) -> bool:
        """True if the replica is the master, and all Sentinels that run say so."""
        running = [each for each in self.sentinels if each.is_alive]
        return all(each.state()["port"] == self.replica.port for each in running) and self.role() == "master"

    def role(self) -> str:
        """Return the role of the server that began as the replica."""
        with self.replica.client() as client:
            role: str = client.info("replication")["role"]
            return role
