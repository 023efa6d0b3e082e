"""The two clients of `docs/howto/other-clients.md`, taken from the page, against servers that die.

Each prints what it receives. Together the lines say that every message came once and in order.
"""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.applications.tutorial import blocks
from tests.support.assertions.eventually import eventually
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.servers import Program, Publisher
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

PAGE = "other-clients.md"
GROUP = "public.lobby"
LOAD = "load the state"
WS = "ws@8.18.3"
PATIENCE = 30.0  # seconds: a client may wait 16 s before its next attempt


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where Node.js finds the package `ws`."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm (apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder), WS]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {WS}: {done.stderr[-500:]}")
    return folder


@pytest.fixture(params=["python", "javascript"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The command that runs a client, without its arguments."""
    (program,) = blocks(PAGE, request.param)
    if request.param == "python":
        file, interpreter = tmp_path / "follow.py", sys.executable
    else:
        file, interpreter = request.getfixturevalue("modules") / "follow.mjs", "node"
    file.write_text(program)
    return [interpreter, str(file)]


class Following(Program):
    """A client that runs."""

    @property
    def printed(self) -> list[str]:
        """The lines about messages and states; errors between two connections are left out."""
        lines = self.log_text().splitlines()
        return [line for line in lines if line == LOAD or line.isdigit()]


@pytest.fixture
def site(start_site: StartSite) -> Site:
    return start_site(
        Pairing("pubsub", "daphne", "sqlite"),
        HISTORY={"public.*": {"size": 300, "ttl": 300}},
        ROUND_INTERVAL=2.0,
        ROUND_TIMEOUT=1.0,
        RECONNECT_WINDOW=0.5,
    )


@pytest.fixture
def publisher(site: Site) -> Iterator[Publisher]:
    with site.publisher(GROUP) as publisher:
        yield publisher


def test_each_message_is_printed_once_and_in_order(
    site: Site, publisher: Publisher, command: list[str], tmp_path: Path
) -> None:
    server = site.serve()
    expected: list[str] = []
    numbers = itertools.count()

    def publish(count: int) -> None:
        for number in itertools.islice(numbers, count):
            publisher.send(json.dumps(number))
            expected.append(str(number))

    with Following([*command, server.websocket(), GROUP], log=tmp_path / "client.log") as client:

        def expect() -> None:
            eventually(lambda: client.printed == expected, within=PATIENCE)

        expected.append(LOAD)
        expect()
        publish(10)
        expect()
        # A server process that is killed, and one that stops as planned. Messages are published meanwhile.
        for end in (server.kill, server.stop):
            publish(5)
            end()
            publish(10)
            server.start()
            publish(5)
            expect()
        with site.redis.client() as redis:
            redis.flushall()
        expected.append(LOAD)
        expect()
        publish(5)
        expect()
    assert publisher.finish() == 0
