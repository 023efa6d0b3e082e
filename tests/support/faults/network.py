"""A network of its own for clients, where a test can drop packets: the only real half-open connection.

In the host's network only one veth interface is added; it is removed with the namespace.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.programs.servers import Program

# In both directions: no FIN and no RST of either side arrives, as if a phone has lost its network.
_DROP_ALL = """
table inet silence {
    chain input { type filter hook input priority 0; policy drop; }
    chain output { type filter hook output priority 0; policy drop; }
}
"""

# In one direction: packets of a program inside to these ports never leave, and all others arrive.
_MUTE = """
table inet mute {{
    chain output {{
        type filter hook output priority 0; policy accept;
        tcp dport {{ {ports} }} drop
    }}
}}
"""

_numbers = itertools.count(1)


def require_namespaces() -> None:
    """Skip the test, with the reason, if network namespaces cannot be made here."""
    for program in ("ip", "nft", "tc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program} (apt-get install iproute2 nftables)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")


class NetworkNamespace:
    """A namespace joined to the host by a veth pair. Servers listen on `host_address`; clients run inside."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"clients-{os.getpid()}-{number}"
        self.outside, self.inside = (f"rt{side}{os.getpid() % 10**7}-{number}" for side in "ab")
        self.host_address, self.client_address = _free_addresses()

    def __enter__(self) -> Self:
        try:
            _run("ip", "netns", "add", self.name)
            _run(
                *("ip", "link", "add", self.outside, "type", "veth"),
                *("peer", "name", self.inside, "netns", self.name),
            )
            _run("ip", "address", "add", f"{self.host_address}/30", "dev", self.outside)
            _run("ip", "link", "set", self.outside, "up")
            _run("ip", "-n", self.name, "address", "add", f"{self.client_address}/30", "dev", self.inside)
            _run("ip", "-n", self.name, "link", "set", self.inside, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def drop(self) -> None:
        """Drop every packet from now on, in both directions. Neither side is told."""
        _run(*self.prefix, "nft", "-f", "-", stdin=_DROP_ALL)

    def restore(self) -> None:
        """Let packets pass again."""
        _run(*self.prefix, "nft", "delete", "table", "inet", "silence")

    def cut(self) -> None:
        """Take the link down. The kernels of both sides see it, and no socket is told."""
        _run("ip", "-n", self.name, "link", "set", self.inside, "down")

    def mend(self) -> None:
        """Take the link up again after `cut`. The kernel of the inside side has forgotten its routes."""
        _run("ip", "-n", self.name, "link", "set", self.inside, "up")
        self.lead_out()

    def lead_out(self) -> None:
        """Give programs inside a loopback interface and a default route: a browser asks if there is one."""
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        _run("ip", "-n", self.name, "route", "replace", "default", "via", self.host_address)

    def slow_down(self, bits_per_second: int) -> None:
        """Bound the rate at which packets reach the clients; faster packets wait, and then are dropped."""
        rate = f"{bits_per_second}bit"
        _run(
            *("tc", "qdisc", "replace", "dev", self.outside, "root"),
            *("tbf", "rate", rate, "burst", "16kb", "limit", "64kb"),
        )

    def mute(self, ports: Iterable[int]) -> None:
        """Drop every packet that a program inside sends to these ports of the host.

        Neither side is told, and all other connections go on.
        """
        _run(*self.prefix, "nft", "-f", "-", stdin=_MUTE.format(ports=", ".join(map(str, ports))))

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words to put before a command line to run it inside."""
        return ("ip", "netns", "exec", self.name)

    def _remove(self) -> None:
        # The interface goes first: a namespace lives while sockets of killed clients still close in it.
        for command in (["ip", "link", "delete", self.outside], ["ip", "netns", "delete", self.name]):
            subprocess.run(command, capture_output=True, check=False)


def _run(*command: str, stdin: str = "") -> str:
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout


def _free_addresses() -> tuple[str, str]:
    """Return the two host addresses of a network of four in 10.64.0.0/10 that this machine does not use."""
    in_use = _run("ip", "-4", "-oneline", "address")
    while True:
        network = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        if f" {network}." not in in_use:
            return f"{network}.1", f"{network}.2"


class ClientProcess(Program):
    """`count` clients for each address in a process of their own.

    Args:
        namespace: The network of the process; None for that of the host.
        url: The address that the clients connect to.
        count: The number of clients for each address.
        more: More addresses.
        log: The file for the output of the process.
        plain: The clients do not offer `realtime.v1`.
    """

    def __init__(
        self,
        namespace: NetworkNamespace | None,
        url: str,
        count: int,
        *more: str,
        log: Path,
        plain: bool = False,
    ) -> None:
        self.count = count * (1 + len(more))
        command = [sys.executable, "-m", "tests.support.clients.process", url, *more, "--count", str(count)]
        command += ["--plain"] if plain else []
        super().__init__([*(namespace.prefix if namespace else ()), *command], log=log)

    def is_ready(self) -> bool:
        """True if every client is connected."""
        return bool(self.reports()) and self.reports()[0]["open"] == self.count

    def reports(self) -> list[dict[str, Any]]:
        """Return the lines that the process has printed, each as a dict."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]
