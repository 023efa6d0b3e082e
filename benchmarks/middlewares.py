"""Memory and time of the routers and middlewares in front of a consumer: Channels' and this package's.

`python -m benchmarks.middlewares` calls each stack for some thousand connections with the scope of a browser,
and waits until all applications run. Then it reads how much the Python objects take for each connection
(tracemalloc), without the server's scope and the application's own coroutine, which every stack has. The
clients have no session cookie. It starts no server, so the memory does not depend on the load of the machine.
"""

import argparse
import asyncio
import gc
import os
import time
import tracemalloc
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup()

import channels.auth  # noqa: E402
import channels.routing  # noqa: E402
import channels.security.websocket  # noqa: E402
from django.urls import re_path  # noqa: E402

import realtime.auth  # noqa: E402
import realtime.routing  # noqa: E402

HEADERS = (
    ("host", "localhost:8000"),
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "*/*"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("origin", "http://localhost:8000"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-protocol", "realtime.v1"),
    ("sec-websocket-extensions", "permessage-deflate"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
#: The four layers from the outside in: the class of Channels and the class of this package.
LAYERS = (
    (channels.routing.ProtocolTypeRouter, realtime.routing.ProtocolTypeRouter),
    (channels.security.websocket.AllowedHostsOriginValidator, realtime.auth.OriginCheck),
    (channels.auth.AuthMiddlewareStack, realtime.auth.AuthMiddlewareStack),
    (channels.routing.URLRouter, realtime.routing.URLRouter),
)


class Crowd:
    """An application that waits until the crowd may go."""

    def __init__(self) -> None:
        self.arrived = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.arrived += 1
        await self.go.wait()

    async def gather(self, application: Any, number: int, headers: list[tuple[bytes, bytes]]) -> list[Any]:
        """Call the application for some connections, and return their tasks when all wait in here."""
        expected = self.arrived + number
        running = [
            asyncio.ensure_future(application(scope=scope(headers), receive=None, send=None))
            for _ in range(number)
        ]
        while self.arrived < expected:
            await asyncio.sleep(0)
        return running


def scope(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return a scope with the keys of Daphne's."""
    return {
        "type": "websocket",
        "path": "/ws/public.lobby/",
        "raw_path": b"/ws/public.lobby/",
        "root_path": "",
        "headers": headers,
        "query_string": b"",
        "client": ["127.0.0.1", 50000],
        "server": ["127.0.0.1", 8000],
        "subprotocols": ["realtime.v1"],
        "asgi": {"version": "3.0"},
    }


def stack(crowd: Crowd, chosen: tuple[bool, ...]) -> Any:
    """Build the stack: for each layer, True takes this package's class and False takes Channels'."""
    protocols, origin, auth, routes = (pair[ours] for pair, ours in zip(LAYERS, chosen, strict=True))
    return protocols(
        {"websocket": origin(auth(routes([re_path(r"^ws/(?P<group>[^/]+)/$", crowd)])))},
    )


async def measure(chosen: tuple[bool, ...] | None, number: int) -> tuple[float, float]:
    """Return the bytes and the microseconds of a connection; `None` measures the application alone."""
    crowd = Crowd()
    application = crowd if chosen is None else stack(crowd, chosen)
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    running = await crowd.gather(application, 100, headers)  # imports and caches
    begun = time.process_time()
    running += await crowd.gather(application, number, headers)
    seconds = time.process_time() - begun
    gc.collect()
    tracemalloc.start()
    running += await crowd.gather(application, number, headers)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    crowd.go.set()
    await asyncio.gather(*running)
    return size / number, seconds / number * 1e6


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--connections", type=int, default=5_000, metavar="N")
    number = asked.parse_args().connections
    ours = (True,) * len(LAYERS)
    rows: list[tuple[str, tuple[bool, ...]]] = [
        ("all of Channels", (False,) * len(LAYERS)),
        ("all of realtime", ours),
    ]
    for at, (theirs, _) in enumerate(LAYERS):
        rows.append((f"realtime, with Channels' {theirs.__name__}", (*ours[:at], False, *ours[at + 1 :])))
    alone = asyncio.run(measure(None, number))
    print(f"{'':62} bytes   µs")
    for name, chosen in rows:
        size, microseconds = asyncio.run(measure(chosen, number))
        print(f"{name:60} {size - alone[0]:7.0f} {microseconds - alone[1]:4.0f}")


if __name__ == "__main__":
    main()
