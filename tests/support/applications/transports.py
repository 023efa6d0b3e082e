"""An ASGI application with connections that are only a transport, and that a test controls from outside.

`/held/<name>/` is a connection behind Channels' session middleware, as consumers are. `/<shape>/<name>/` is
one behind a middleware of `tests.support.applications.middlewares`. Query parameters: `direct` (0 or 1),
`max_unsent` and `close_limit`. `/control/` takes JSON lists `[name, command, *arguments]`, and answers each
with the state of the connection.

Served by a `WebServer(application="tests.support.applications.transports:application")`.
"""

import asyncio
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import django

# Sessions may be imported only when Django is set up.
django.setup()

# isort: split

from channels.sessions import SessionMiddlewareStack  # noqa: E402

from realtime.closing import CloseReason  # noqa: E402
from realtime.transports import transport_for  # noqa: E402
from realtime.transports.asgi import Options, Ping, Shared, Watcher  # noqa: E402
from realtime.transports.daphne import OnDaphne  # noqa: E402
from tests.support.applications.middlewares import SHAPES, Keeping, Passed  # noqa: E402

Held = dict[str, Any]


class _Held(Watcher):
    """One connection, and what its transport reported."""

    def __init__(self, name: str, scope: Any, send: Any) -> None:
        options = dict(parse_qsl(scope["query_string"].decode()))
        self.name = name
        self.failures: list[str] = []
        self.pongs: list[int] = []
        self.pongs_of_the_server = 0
        self.received: list[str] = []
        self.disconnected: int | None = None
        self.ended_by = ""
        self.handler_waits = False
        self.passed: Passed = scope.get("passed", [])
        self.transport = transport_for(
            send,
            Options(
                max_unsent=int(options.get("max_unsent", 1024 * 1024)),
                send_timeout=10.0,
                close_limit=float(options.get("close_limit", 60.0)),
            ),
            self,
            scope=scope,
            direct=options.get("direct", "1") == "1",
        )

    def send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        self.failures.append(reason.value)

    def ponged(self, n: int, *, v1: bool) -> bool:
        self.pongs.append(n)
        return not v1

    async def serve(self, receive: Any) -> None:
        while True:
            event = await receive()
            if event["type"] == "websocket.connect":
                await self.transport.accept({"type": "websocket.accept"})
                if isinstance(self.transport, OnDaphne):
                    self.transport._protocol.onPong = self._count(self.transport._protocol.onPong)
            elif event["type"] == "websocket.receive":
                self.received.append(event.get("text"))
                if event.get("text") == "tell me":
                    self.share("an answer")
            elif event["type"] == "websocket.disconnect":
                self.disconnected = event.get("code", 1005)
                self.ended_by = self.transport.ended_by(event).value
                self.transport.abandon()
                return

    def _count(self, pass_on: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """Count the pongs that answer Daphne's own pings, which carry no number."""

        def on_pong(payload: bytes) -> object:
            self.pongs_of_the_server += not payload.isdigit()
            return pass_on(payload)

        return on_pong

    def write(self, *texts: str) -> None:
        for text in texts:
            self.transport.write({"type": "websocket.send", "text": text}, len(text))

    def write_bytes(self, text: str) -> None:
        self.transport.write({"type": "websocket.send", "bytes": text.encode()}, len(text))

    def share(self, *texts: str) -> None:
        self.transport.write_shared(Shared(texts))

    def fill(self, size: int, count: int) -> None:
        """Write until something fails, at most `count` messages of `size` letters."""
        shared = Shared(["x" * size])
        for _ in range(count):
            if not self.failures:
                self.transport.write_shared(shared)

    def mix(self, count: int) -> None:
        """Write numbers from 0, in every way in turn, with pings between them if the transport can ping."""
        for number in range(count):
            match number % 4:
                case 0:
                    self.write(str(number))
                case 1:
                    self.share(str(number))
                case 2:
                    self.write_bytes(str(number))
                case 3 if self.transport.can_ping:
                    self.write(str(number))
                    self.transport.ping(Ping(number, False))
                case _:
                    self.write(str(number))

    async def mix_large(self, count: int, size: int) -> None:
        """Write numbered messages of `size` letters, faster than a slow reader takes them."""
        for number in range(count):
            text = f"{number:05}".ljust(size, ".")
            (self.share if number % 2 else self.write)(text)
            if number % 8 == 0:
                await asyncio.sleep(0)

    async def handle(self, size: int, count: int) -> None:
        """Send as a handler that sends without end: wait after each message."""
        self.handler_waits = True
        for _ in range(count):
            self.write("x" * size)
            await self.transport.drained()
        self.handler_waits = False

    def start_handling(self, size: int, count: int) -> None:
        _tasks.append(asyncio.get_running_loop().create_task(self.handle(size, count)))

    def ping(self, number: int) -> None:
        self.transport.ping(Ping(number, False))

    def close(self, code: int, last: str | None = None) -> None:
        last_words = None if last is None else {"type": "websocket.send", "text": last}
        self.transport.close({"type": "websocket.close", "code": code}, last_words)

    async def close_and_stall(self, code: int, last: str, seconds: float) -> None:
        """Close, and then block the event loop, as the closing of thousands of others does at a stop.

        On Daphne a timer of Twisted is due in that turn, so that Twisted looks at all of its timers.

        Args:
            seconds: For how long to block.
        """
        if "twisted.internet.reactor" in sys.modules:
            sys.modules["twisted.internet.reactor"].callLater(0.0, _nothing)
            time.sleep(0.01)  # noqa: ASYNC251 - that turn
            # The rest runs before the timers of the next turn.
            await asyncio.sleep(0)
        self.close(code, last)
        time.sleep(seconds)  # noqa: ASYNC251 - the fault under test

    def share_when_dropped(self, text: str) -> None:
        """Write after autobahn has dropped the connection, as it does if its own ping is not answered."""
        assert isinstance(self.transport, OnDaphne)
        self.transport._protocol.dropConnection(abort=True)
        self.share(text)

    def look(self) -> None:
        """Do nothing."""

    @property
    def seen(self) -> Held:
        return {
            "kind": type(self.transport).__name__,
            "can_ping": self.transport.can_ping,
            "unsent": self.transport.unsent,
            "open": not isinstance(self.transport, OnDaphne) or self.transport._protocol.state == 3,
            "failures": self.failures,
            "pongs": self.pongs,
            "pongs_of_the_server": self.pongs_of_the_server,
            "received": self.received,
            "disconnected": self.disconnected,
            "ended_by": self.ended_by,
            "handler_waits": self.handler_waits,
            "passed": [kind for kind, _ in self.passed],
            "texts_passed": [text for _, text in self.passed if text is not None],
        }


def _nothing() -> None:
    """The call of a timer that only has to be due."""


_held: dict[str, _Held] = {}
_tasks: list[asyncio.Task[None]] = []


async def _hold(scope: Any, receive: Any, send: Any) -> None:
    name = scope["path"].strip("/").split("/")[-1]
    held = _held[name] = _Held(name, scope, send)
    await held.serve(receive)


async def _control(receive: Any, send: Any) -> None:
    while True:
        event = await receive()
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif event["type"] == "websocket.disconnect":
            return
        else:
            name, command, *arguments = json.loads(event["text"])
            done = getattr(_held[name], command)(*arguments)
            if isinstance(done, types.CoroutineType):
                await done
            await send({"type": "websocket.send", "text": json.dumps(_held[name].seen)})


_behind_sessions = SessionMiddlewareStack(_hold)
_behind = {shape: wrap(_hold) for shape, wrap in SHAPES.items()}
_behind["keeping"] = Keeping(_hold)


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"].startswith("/control/"):
        await _control(receive, send)
    elif scope["type"] == "websocket":
        shape = scope["path"].strip("/").split("/")[0]
        await _behind.get(shape, _behind_sessions)(scope, receive, send)
