"""A flood beside clients that talk to each other. Every part runs in a process of its own."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import psutil

from realtime.conf import Settings
from tests.support.programs.servers import CHECKOUT, WebServer
from tests.support.programs.site import Site
from tests.support.unlimited import UNLIMITED

#: The limits as users have them, behind a proxy on this machine.
LIMITED: dict[str, Any] = {
    **{name: getattr(Settings(), name) for name in UNLIMITED},
    "TRUSTED_PROXIES": ["127.0.0.0/8"],
}


@dataclass(frozen=True, slots=True)
class Flooded:
    """The figures of one flood. Times are in seconds, latencies in milliseconds, memory in bytes.

    Attributes:
        opened: Flooders that were connected.
        cut: For each flooder that was refused or cut, the time from its first frame to that, sorted.
        open: Flooders that were neither.
        told: Flooders that got an error frame `rate_limited` first.
        codes: The close codes that flooders saw, or the statuses of refused handshakes, counted.
        sent: Frames, or handshakes, that the flooders have sent.
        missed: Messages that honest clients did not receive.
        lost: The ends of honest connections.
        refused: Error frames that honest clients got.
        phases: The latencies of honest clients, by phase: calm, flood, after.
        memory: The server that was flooded: before, at the most, and after.
        rows: Rows of connections that were written during the flood.
    """

    opened: int
    cut: list[float]
    open: int
    told: int
    codes: dict[str, int]
    sent: int
    missed: int
    lost: list[str]
    refused: int
    phases: dict[str, dict[str, float]]
    memory: tuple[int, int, int]
    rows: int


class _Process:
    """A program of `tests.support.clients` that answers with lines of JSON."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.support.clients.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def end_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class _Memory(threading.Thread):
    """Notes the largest resident size of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.most = self.now()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, self.now())

    def stop(self) -> None:
        self._over.set()
        self.join()


def flooded(
    site: Site,
    servers: Sequence[WebServer],
    kind: str,
    *options: str,
    connections: int = 200,
    rate: float = 1000.0,
    seconds: float = 20.0,
    honest: int = 20,
    every: float = 0.5,
    calm: float = 5.0,
) -> Flooded:
    """Flood the first server while honest clients talk to each other through all of them.

    Args:
        site: The site of the servers.
        servers: The servers.
        kind: A kind of `tests.support.clients.flooders`.
        *options: More options of it.
        connections: The number of flooders.
        rate: Frames per second of each flooder, or handshakes per second of all.
        seconds: The longest time of the flood.
        honest: The number of honest clients.
        every: Seconds between two messages of each of them.
        calm: Seconds before the flood, and after it.
    """
    flood = ["flooders", servers[0].interface, servers[0].port, kind]
    flood += ["--connections", connections, "--rate", rate, "--seconds", seconds, *options]
    addresses = [server.address for server in servers]
    with _Process("honest", *addresses, "--count", honest, "--every", every) as talk:
        assert talk.answer()["opened"] == honest
        time.sleep(1.0)
        talk.say("calm")
        time.sleep(calm)
        with _Process(*flood) as flooders:
            talk.say("connecting")
            opened = flooders.answer()["opened"]
            rows, memory = _rows(site), _Memory(servers[0].serving_pid)
            before = memory.now()
            memory.start()
            talk.say("flood")
            flooders.say("go")
            figures = flooders.answer()
            talk.say("after")
            time.sleep(calm)
            memory.stop()
        after = memory.now()
        talk.end_input()
        told = talk.answer()
    return Flooded(
        opened=opened,
        cut=figures["cut"],
        open=figures["open"],
        told=figures["told"],
        codes=figures["codes"],
        sent=figures["sent"],
        missed=told["missed"],
        lost=told["lost"],
        refused=told["refused"],
        phases=told["phases"],
        memory=(before, memory.most, after),
        rows=_rows(site) - rows,
    )


def _rows(site: Site) -> int:
    (row,) = site.database.query("SELECT count(*) AS number FROM realtime_connection")
    return int(row["number"])
