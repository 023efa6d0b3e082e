"""One conversation with the same consumer, once on plain Channels and once on `realtime`.

A test gives the source of a consumer as a function of its base class, and a conversation with it. The fixture
`both` runs the conversation on Channels' base class and layer, and then on ours. What went over the wire, the
calls of handlers with their arguments, and what the conversation returned must be the same, and nothing may
stay open.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import channel_layers, get_channel_layer
from channels.testing import WebsocketCommunicator

from realtime.consumers import (
    RealtimeConsumer,
    RealtimeJsonConsumer,
    SyncRealtimeConsumer,
    SyncRealtimeJsonConsumer,
)
from realtime.models import Connection, Membership
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times

LAYER_OF = {
    "plain": "channels.layers.InMemoryChannelLayer",
    "ours": "realtime.layers.MemoryLayer",
}

#: Channels' base class and ours, by (sync, json).
BASES = {
    (False, False): (AsyncWebsocketConsumer, RealtimeConsumer),
    (False, True): (AsyncJsonWebsocketConsumer, RealtimeJsonConsumer),
    (True, False): (WebsocketConsumer, SyncRealtimeConsumer),
    (True, True): (JsonWebsocketConsumer, SyncRealtimeJsonConsumer),
}

PATIENCE = 5.0  # seconds

ACCEPT = {"type": "websocket.accept", "subprotocol": None}

Calls = list[Any]


def text(content: str) -> dict[str, str]:
    """The event that sends this text."""
    return {"type": "websocket.send", "text": content}


class Client(WebsocketCommunicator):
    """Channels' own test client. It remembers each event that was sent to it, in `wire`."""

    def __init__(self, application: Any, path: str = "/", **options: Any) -> None:
        super().__init__(application, path, **options)
        self.wire: list[dict[str, Any]] = []

    # Each method of Channels has a timeout of one second, which is short on a busy machine.

    async def receive_output(self, *_: float) -> Any:
        self.wire.append(await super().receive_output(PATIENCE))
        return self.wire[-1]

    async def wait(self, *_: float) -> None:
        await super().wait(PATIENCE)

    async def disconnect(self, code: int = 1000, *_: float) -> None:
        await super().disconnect(code)
        while not self.output_queue.empty():
            self.wire.append(self.output_queue.get_nowait())


@dataclass
class Run:
    """One base class: the calls of its consumer, in their order, and the clients that talked to it."""

    base: type
    calls: Calls = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    def client(self, application: Any, path: str = "/", **options: Any) -> Client:
        """Add a client of this application; it does not connect yet."""
        self.clients.append(Client(application, path, **options))
        return self.clients[-1]

    @property
    def wire(self) -> list[list[dict[str, Any]]]:
        return [client.wire for client in self.clients]


Conversation = Callable[[Run], Awaitable[Any]]
Both = Callable[..., Awaitable[tuple[Run, Run]]]


@pytest.fixture
def use_layers(settings: Any) -> Callable[..., None]:
    """`use_layers(backend, *aliases)` sets CHANNEL_LAYERS for one test; the backend None means no layer."""

    def use(backend: str | None, *aliases: str) -> None:
        settings.CHANNEL_LAYERS = {alias: {"BACKEND": backend} for alias in aliases} if backend else {}
        channel_layers.backends.clear()

    return use


@pytest_asyncio.fixture
async def both(use_layers: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Both]:
    """`await both(conversation)` holds a conversation on each base class, compares, and returns both runs."""
    # The test client of Channels reports no disconnect after a close, so the wait for one is short.
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1))

    async def run(
        conversation: Conversation,
        *,
        json: bool = False,
        sync: bool = False,
        layers: tuple[str, ...] = ("default",),
        same_wire: bool = True,
    ) -> tuple[Run, Run]:
        plain, ours = (Run(base) for base in BASES[sync, json])
        use_layers(LAYER_OF["plain"], *layers)
        seen = await conversation(plain)
        use_layers(LAYER_OF["ours"], *layers)
        assert await conversation(ours) == seen
        assert ours.calls == plain.calls
        if same_wire:
            assert ours.wire == plain.wire
        await lifecycle.stop()
        assert not await Connection.objects.open().aexists()
        assert not await Membership.objects.to_leave().aexists()
        for alias in layers:
            assert not get_channel_layer(alias).groups
        return plain, ours

    yield run
    await lifecycle.stop()
