"""One accepted WebSocket as this process holds it."""

import asyncio
import ipaddress
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels import DEFAULT_CHANNEL_LAYER

from realtime import conf
from realtime.closing import CloseReason
from realtime.liveness.connection import Liveness
from realtime.records.entries import Opening
from realtime.transports.asgi import AsgiTransport, Event
from realtime.wire.frames import SUBPROTOCOL

if TYPE_CHECKING:
    # A name for the type checker only: a connection holds on to its hub and never calls it.
    from realtime.hub.hub import Hub


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
        """The client's address, of the handshake, as far as CLIENT_DETAILS has it kept."""
        client, details = self.scope.get("client"), conf.get().CLIENT_DETAILS
        if not client or details == "none":
            return ""
        address = str(client[0])
        return address if details == "full" else _network_of(address)

    @property
    def user_agent(self) -> str:
        """What the client says that it is; empty unless CLIENT_DETAILS has it kept."""
        if conf.get().CLIENT_DETAILS != "full":
            return ""
        headers = dict(self.scope.get("headers", ()))
        return str(headers.get(b"user-agent", b"").decode("latin-1"))

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


def _network_of(address: str) -> str:
    """Return the first address of the network: a /24 of IPv4, a /48 of IPv6. Empty if it is no address."""
    try:
        whole = ipaddress.ip_address(address)
    except ValueError:
        return ""
    # A server that listens on IPv6 alone reports IPv4 clients by mapped addresses.
    whole = getattr(whole, "ipv4_mapped", None) or whole
    if isinstance(whole, ipaddress.IPv4Address):
        return str(ipaddress.IPv4Network((int(whole), 24), strict=False).network_address)
    return str(ipaddress.IPv6Network((int(whole), 48), strict=False).network_address)
