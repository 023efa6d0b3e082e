"""Users of `tests.support.applications.users` in one group, and clients that watch who is there."""

import asyncio
import contextlib
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from tests.support.clients.pictures import Picture, Pictures
from tests.support.clients.recovering import AT_ONCE, PATIENCE, Link
from tests.support.clients.websocket import Client, Frame
from tests.support.programs.servers import WebServer

_handshakes: "dict[asyncio.AbstractEventLoop, asyncio.Semaphore]" = {}


class Visitor:
    """One connection of a user, which comes back by itself whenever it has ended, to the next server.

    Args:
        user: The user; empty for an anonymous client.
        group: Its group.
        servers: The servers.
        pause: The shortest and the longest time in seconds until it comes back, unless the server says when.
    """

    def __init__(
        self, user: str, group: str, *servers: WebServer, pause: tuple[float, float] = (0.02, 0.3)
    ) -> None:
        self.user = user
        self.connects = 0
        self.is_in = False
        """True while it is welcome, so that it is a member of its group."""
        name = {"user": user} if user else {}
        self._target = f"/ws/{group}/?{urlencode({**name, 'client': uuid.uuid4().hex})}"
        self._servers = itertools.cycle(servers)
        self._pause = pause
        self._link: Link | None = None
        self._retry_after: float | None = None
        self._living: asyncio.Task[None] | None = None

    def start(self) -> Self:
        self._living = asyncio.create_task(self._live())
        return self

    async def stop(self) -> None:
        """Hang up, and stay away."""
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait([self._living])
        self.hang_up()
        self.is_in = False

    def hang_up(self) -> None:
        """End the connection without a close frame."""
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abort()

    async def _live(self) -> None:
        while True:
            self._retry_after = None
            if (link := await self._connect(next(self._servers))) is not None:
                await asyncio.wait([link.ended])
            self.is_in = False
            await asyncio.sleep(
                random.uniform(*self._pause) if self._retry_after is None else self._retry_after
            )

    async def _connect(self, server: WebServer) -> Link | None:
        slots = _handshakes.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
        async with slots:
            parts = urlsplit(server.websocket())
            link = self._link = Link(self._target, parts.netloc, self._take)
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.get_running_loop().create_connection(
                        lambda: link, str(parts.hostname), int(parts.port or 80)
                    )
                    await link.opened
            except (OSError, TimeoutError):
                if link.transport is not None:
                    link.transport.abort()
                return None
        self.connects += 1
        return link

    def _take(self, frame: Frame) -> None:
        if frame["type"] == "welcome":
            self.is_in = True
        elif frame["type"] == "goodbye":
            self._retry_after = frame.get("retry_after")


@contextlib.asynccontextmanager
async def visiting(*visitors: Visitor) -> AsyncIterator[None]:
    """Start all visitors, and stop them at the end of the block."""
    for each in visitors:
        each.start()
    try:
        yield
    finally:
        await asyncio.gather(*(each.stop() for each in visitors))


class Watcher(Client):
    """A client that keeps a picture of each group that it joins with `"presence": true`.

    Args:
        server: Its server.
        group: The group that it is in by its address.
        user: Its user; empty for an anonymous client.
    """

    def __init__(self, server: WebServer, group: str, user: str = "") -> None:
        super().__init__(server.websocket(f"/ws/{group}/" + (f"?user={user}" if user else "")))
        self.group = group
        self.pictures = Pictures()

    def _note(self, frame: Frame) -> None:
        super()._note(frame)
        self.pictures.take(frame)

    async def watch(self) -> Frame:
        """Join its group once more, with presence, and return the answer."""
        await self.welcomed()
        return await self.join(self.group, presence=True)

    @property
    def picture(self) -> Picture:
        return self.pictures.of[self.group]

    def sees(self, users: Iterable[str]) -> bool:
        """Return True if exactly these users are there; otherwise fail with the difference.

        Raises:
            AssertionError: Others are there.
        """
        wanted = {*users}
        found = self.picture.users
        assert found == wanted, f"missing {sorted(wanted - found)}, still there {sorted(found - wanted)}"
        return True


@contextlib.asynccontextmanager
async def watching(group: str, *servers: WebServer) -> AsyncIterator[list[Watcher]]:
    """Have an anonymous client on each server watch a group, and close the clients at the end."""
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(Watcher(server, group)) for server in servers]
        for each in watchers:
            await each.watch()
        yield watchers


def all_see(watchers: Collection[Watcher], users: Iterable[str]) -> bool:
    """Return True if every watcher sees exactly these users."""
    wanted = {*users}
    return all(each.sees(wanted) for each in watchers)


def changes_of(watchers: Sequence[Watcher]) -> list[dict[str, Any]]:
    """Return how often each watcher was told of each user, and in how many frames."""
    return [
        {"joined": dict(each.picture.joined), "left": dict(each.picture.left), "frames": each.picture.frames}
        for each in watchers
    ]
