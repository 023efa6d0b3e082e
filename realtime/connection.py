"""One accepted WebSocket as this process holds it."""

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels import DEFAULT_CHANNEL_LAYER

from realtime.closing import CloseReason
from realtime.frames import SUBPROTOCOL
from realtime.liveness import Liveness
from realtime.records import Opening
from realtime.transport import AsgiTransport, Event

if TYPE_CHECKING:
    # A name for the type checker only: a connection holds on to its hub and never calls it.
    from realtime.hub import Hub


class Connection:
    """The state of one connection that hub, pulse and lifecycle share. It decides nothing itself."""

    __slots__ = (
        "admission",
        "admitted",
        "alias",
        "announced",
        "changing",
        "channel_name",
        "close_code",
        "eviction",
        "groups",
        "hub",
        "id",
        "joined",
        "last_run",
        "liveness",
        "on_event",
        "opening",
        "reason",
        "scope",
        "subprotocol",
        "transport",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        on_event: Callable[[Event], None],
        alias: str = DEFAULT_CHANNEL_LAYER,
    ) -> None:
        self.id = uuid.uuid4()
        self.scope = scope
        self.channel_name = f"realtime.connection.{self.id.hex}"
        self.alias = alias
        """Of the channel layer that its groups are in."""
        self.on_event = on_event
        """Takes what the application's handlers are to see: group events that are no messages, and the
        eviction.
        """
        self.transport: AsgiTransport
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else ""
        """Until the handshake is complete, the one that will be chosen unless the application chooses
        another.
        """
        self.liveness: Liveness | None = None
        """From accept on; a client in its handshake cannot answer pings."""
        self.opening: Opening | None = None
        """What its record says; None until it is admitted."""
        self.hub: Hub | None = None
        """The hub that it was admitted to; it stays this one to the end, also when the process starts a new
        one.
        """
        self.announced = False
        """Whether `connection_opened` was sent, so that `connection_closed` is owed."""
        self.changing = asyncio.Lock()
        """Held by whoever adds or leaves groups: a row and its membership change together."""
        self.groups: set[str] = set()
        """Groups in which it receives now."""
        self.joined: set[str] = set()
        """Groups for which a membership row may be open: a superset of `groups`, and what eviction has to
        leave.
        """
        self.last_run = 0
        """The number of the last run of messages that fan-out wrote to it in its turn."""
        self.reason: CloseReason | None = None
        """Why it ended; the first reason counts."""
        self.close_code: int | None = None
        self.admission: asyncio.Task[None] | None = None
        """While it is under way, and when it failed."""
        self.admitted = False
        self.eviction: asyncio.Task[None] | None = None

    @property
    def speaks_v1(self) -> bool:
        """Whether pings, welcome and goodbye are spoken with this client."""
        return self.subprotocol == SUBPROTOCOL

    @property
    def gone(self) -> bool:
        return self.reason is not None

    @property
    def remote_address(self) -> str:
        """Captured from the handshake: a dead socket can no longer be asked."""
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    @property
    def user_id(self) -> str:
        """The user's primary key as text; empty for nobody."""
        user = self.scope.get("user")
        return str(user.pk) if user is not None and user.is_authenticated else ""

    def log_fields(self) -> dict[str, str]:
        """What every log line about a connection carries as fields."""
        return {
            "connection": str(self.id),
            "address": self.remote_address,
            "reason": self.reason.value if self.reason else "",
        }
