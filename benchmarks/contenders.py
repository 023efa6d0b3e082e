"""The contenders: variants of this project, variants of plain Channels, and servers without Channels."""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.programs.servers import CHECKOUT, DaphneServer, UvicornServer, WebServer

PEERS = CHECKOUT / "benchmarks" / "peers"


class DefaultDaphneServer(WebServer):
    """Daphne as its own documentation starts it: `daphne -b HOST -p PORT`."""

    def command_for(self, application: str) -> list[str]:
        daphne = str(Path(sys.executable).with_name("daphne"))
        return [daphne, "-b", self.interface, "-p", str(self.port), application]


class NodeServer(WebServer):
    """Server that runs a script of benchmarks/peers; `application` is its name."""

    def command_for(self, application: str) -> list[str]:
        return ["node", str(PEERS / application), str(self.port)]


class PythonServer(WebServer):
    """Server that runs a module with a port as its argument."""

    def command_for(self, application: str) -> list[str]:
        return [sys.executable, "-m", application, str(self.port)]


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the servers that are compared.

    `path` is the path for clients of a room, and `group` is the name of the room's group; {} is the room.
    `publish` is a name that `benchmarks.publisher` knows. `publish_path`, in its place, is the path for a
    connection that publishes.
    """

    name: str
    about: str
    server: type[WebServer]
    application: str
    path: str
    group: str = "{}"
    publish: str = ""
    publish_path: str = ""
    subprotocol: str = ""
    engine_io: bool = False
    settings: str = ""
    layer: str = "pubsub"
    realtime: Mapping[str, object] = field(default_factory=dict)
    node: bool = False

    @property
    def is_django(self) -> bool:
        return bool(self.settings)


def _ours(name: str, about: str, server: type[WebServer] = DaphneServer, **options: object) -> Contender:
    return Contender(
        name,
        about,
        server,
        application="project.asgi:application",
        path="/ws/public.{}/",
        group="public.{}",
        publish="realtime",
        subprotocol="realtime.v1",
        settings="tests.support.live",
        **options,  # type: ignore[arg-type]
    )


def _tutorial(name: str, about: str, server: type[WebServer] = DaphneServer, **options: object) -> Contender:
    values: dict[str, object] = {
        "application": "benchmarks.plain.asgi:application",
        "settings": "benchmarks.plain.settings",
        **options,
    }
    return Contender(
        name,
        about,
        server,
        path="/ws/chat/{}/",
        group="chat_{}",
        publish="channels",
        **values,  # type: ignore[arg-type]
    )


CONTENDERS = {
    contender.name: contender
    for contender in (
        _tutorial("plain", "the Channels tutorial: pub/sub layer, Daphne"),
        _tutorial("plain-core", "the Channels tutorial: core layer, Daphne", layer="core"),
        _tutorial("plain-uvicorn", "the Channels tutorial: pub/sub layer, uvicorn", UvicornServer),
        _tutorial(
            "plain-recording",
            "the Channels tutorial with one ORM write per connect and per disconnect",
            application="benchmarks.plain.asgi:recording",
        ),
        _tutorial("plain-default", "the Channels tutorial under `daphne -b -p`", DefaultDaphneServer),
        Contender(
            "daphne",
            "Daphne alone: an ASGI application that accepts and waits",
            DaphneServer,
            application="benchmarks.plain.bare:application",
            path="/",
            settings="benchmarks.plain.settings",
        ),
        _tutorial(
            "drop-in",
            "the tutorial's consumer on RealtimeConsumer, its own events: Daphne",
            application="benchmarks.dropin.asgi:application",
            settings="tests.support.live",
        ),
        _tutorial(
            "plain-sync",
            "the tutorial's synchronous consumer: pub/sub layer, Daphne",
            application="benchmarks.plain.asgi:synchronous",
        ),
        _tutorial(
            "drop-in-sync",
            "the tutorial's synchronous consumer on SyncRealtimeConsumer: Daphne",
            application="benchmarks.dropin.asgi:synchronous",
            settings="tests.support.live",
        ),
        _ours("ours", "GroupConsumer: pub/sub layer, Daphne, DaphneTransport"),
        _ours(
            "ours-history",
            "GroupConsumer: Daphne, groups that keep history",
            realtime={"HISTORY": {"public.*": {"size": 300, "ttl": 300}}},
        ),
        _ours("ours-asgi", "GroupConsumer: Daphne, AsgiTransport", realtime={"DIRECT_WRITES": False}),
        _ours("ours-uvicorn", "GroupConsumer: uvicorn", UvicornServer),
        _ours("ours-core", "GroupConsumer: core layer, Daphne", layer="core"),
        Contender(
            "socket.io",
            "Socket.IO 4.8 on Node",
            NodeServer,
            application="socketio.js",
            path="/socket.io/?EIO=4&transport=websocket",
            publish_path="/socket.io/?EIO=4&transport=websocket&publisher=1",
            engine_io=True,
            node=True,
        ),
        Contender(
            "ws",
            "ws on Node",
            NodeServer,
            application="ws.js",
            path="/",
            publish_path="/publish",
            node=True,
        ),
        Contender(
            "websockets",
            "websockets.broadcast() in Python",
            PythonServer,
            application="benchmarks.peers.websockets_broadcast",
            path="/",
            publish_path="/publish",
        ),
    )
}


@cache
def node_is_ready() -> str:
    """Install the packages of the Node contenders. Return "", or the reason why they are not installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not on PATH"
    if not (PEERS / "node_modules" / "ws").exists():
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"],
            cwd=PEERS,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"npm ci failed: {done.stderr.strip()[-300:]}"
    return ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the measured packages that are installed."""
    names = (
        *("django", "channels", "channels-redis", "daphne", "twisted", "autobahn", "redis", "msgspec"),
        *("uvicorn", "uvloop", "websockets", "psycopg"),
    )
    found = {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in names}}
    if shutil.which("node"):
        found["node"] = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return found
