"""A connection with a consumer that a test can hold at any moment of its life, and end there."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from channels.layers import get_channel_layer

from realtime.closing import CloseReason
from realtime.errors import RealtimeError
from realtime.hub.hub import Hub
from realtime.models import Connection as Record
from realtime.models import Membership
from realtime.serving import lifecycle
from realtime.transports.asgi import Options
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles.peer import Peer

GROUPS = ("g", "h")
#: The bounds of a transport, in less time.
IMPATIENT = Options(max_unsent=1000, send_timeout=0.2, close_limit=0.2)


class Hold:
    """A call that a test can hold before or after its work."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()
        self.error: Exception | None = None
        """Raised when the call is released, though its work was done."""

    def in_thread(self, call: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        """Wrap a call that runs in a thread; it waits after its work, or before it."""

        def held(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options) if after else None
            self.reached.set()
            assert self.released.wait(10)
            if self.error is not None:
                raise self.error
            return result if after else call(*arguments, **options)

        return held

    def on_loop(self, call: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        """Wrap a coroutine function in the same way."""

        async def held(*arguments: Any, **options: Any) -> Any:
            result = await call(*arguments, **options) if after else None
            self.reached.set()
            await eventually_async(self.released.is_set, within=10, every=0.005)
            if self.error is not None:
                raise self.error
            return result if after else await call(*arguments, **options)

        return held

    async def until_reached(self) -> None:
        """Wait until the call is held."""
        await eventually_async(self.reached.is_set, within=5, every=0.005)


class Life(Peer):
    """One connection with a consumer as a server runs it. The end of the consumer always evicts it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.evicted = asyncio.Event()
        super().__init__(options=IMPATIENT, on_event=lambda _: self.evicted.set())
        self.patch = patch
        self.home: Hub
        self.closed_was_told = False
        self.consumer: asyncio.Task[None]
        self.others: list[asyncio.Task[Any]] = []
        """Tasks that run beside it until the end of the case."""

    def begin(self, *work: Callable[[], Awaitable[None]]) -> None:
        """Start the consumer, which does this work and then waits for its end."""
        self.consumer = asyncio.create_task(self._consume(work))

    async def _consume(self, work: tuple[Callable[[], Awaitable[None]], ...]) -> None:
        try:
            for step in work:
                await step()
            await self.evicted.wait()
        except RealtimeError:
            pass
        finally:
            await asyncio.wait([lifecycle.evict(self.connection, CloseReason.CANCELLED)])

    async def admit(self) -> None:
        await lifecycle.admit(self.connection)

    def join(self, *names: str) -> Callable[[], Awaitable[None]]:
        """Return work that joins these groups, all together."""

        async def joining() -> None:
            await asyncio.gather(*(lifecycle.group_add(self.connection, name) for name in names))

        return joining

    async def at_rest(self, *work: Callable[[], Awaitable[None]]) -> None:
        """Wait until the consumer has done this work and waits for events."""
        done = asyncio.Event()

        async def tell() -> None:
            done.set()

        self.begin(*work, tell)  # type: ignore[arg-type]
        await asyncio.wait_for(done.wait(), 5)

    # -- the traces of it

    @property
    def in_layer(self) -> set[str]:
        """The groups that the process has in the layer."""
        layer = get_channel_layer()
        return {name for name in GROUPS if self.home.channel in layer.groups.get(name, {})}

    async def row(self) -> Record | None:
        """Return the row of this connection, if there is one."""
        return await Record.objects.filter(pk=self.connection.id).afirst()

    async def to_leave(self) -> set[str]:
        """Return the groups of this connection on the to-do list."""
        names = Membership.objects.to_leave().filter(connection_id=self.connection.id)
        return {name async for name in names.values_list("group", flat=True)}

    def is_out_of_the_hub(self) -> bool:
        """Check the synchronous part of `evict`."""
        home, connection = self.home, self.connection
        assert connection.id not in home.connections
        assert not any(connection in members for members in home.memberships.groups.values())
        assert not connection.groups
        assert len(home.heartbeat._schedule) == 0
        assert connection.transport.closed
        return True

    def has_left_no_trace_in_the_process(self) -> bool:
        """Check that the hub holds nothing any more."""
        home = self.home
        assert self.is_out_of_the_hub()
        assert not home.connections
        assert not home.memberships.groups
        assert not home.admitting
        assert not home.evictions
        assert not home.cleanups
        assert not home.memberships._locks
        # If a hub that has ended could not leave a group, a round leaves it.
        assert not home.memberships._in_layer or home.ending
        return True
