"""One WebSocket connection as this process holds it."""

import asyncio
import enum
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from channels import DEFAULT_CHANNEL_LAYER

from realtime import addresses, conf
from realtime.closing import CloseReason
from realtime.history.positions import Position
from realtime.limits.counts import Place
from realtime.limits.subjects import address_of
from realtime.liveness.connection import Liveness
from realtime.records.entries import Opening
from realtime.rights.authorization import SCOPE_KEY, Authorization
from realtime.transports.asgi import AsgiTransport, Event
from realtime.wire.frames import SUBPROTOCOL

if TYPE_CHECKING:
    # Only for the type checker: a connection refers to its hub and never calls it.
    from realtime.hub.hub import Hub

logger = logging.getLogger("realtime.hub")


class State(enum.Enum):
    """The stages in the life of a connection. The names are those of RFC 6455 (sections 4 and 7)."""

    CONNECTING = "connecting"
    """From the first event until its record is committed and its hub holds it."""
    OPEN = "open"
    """Its hub holds it. `connection_opened` is sent, so `connection_closed` must follow."""
    CLOSING = "closing"
    """It has a reason to end and is out of its hub. Its eviction leaves its groups and closes its record."""
    CLOSED = "closed"
    """Its eviction is done."""


#: The transitions that exist. A connection may end before it was ever open.
_NEXT = {
    State.CONNECTING: {State.OPEN, State.CLOSING},
    State.OPEN: {State.CLOSING},
    State.CLOSING: {State.CLOSED},
    State.CLOSED: set(),
}


_NONE: Mapping[str, Position] = {}


class Connection:
    """The state that hub, heartbeat and lifecycle share. It decides nothing itself.

    Attributes:
        id: The primary key of its record.
        scope: The ASGI scope of the handshake.
        address: The address of the client at the handshake, behind TRUSTED_PROXIES; empty if it is not known.
        authorization: The right that it relies on; None for an anonymous connection without a ticket.
        rights_read: How often its rights were read again. A policy that was asked before that is asked again.
        asks_policy: True if its groups are those that the policy allows.
        unasked: The groups that its consumer joined without asking the policy; None if there are none.
        takes_refresh: True if the client understands the frame `refresh`.
        hears_rights: True if its consumer has a handler for changes of rights.
        place: What it takes of the limit of its network; empty if nothing, and None if it is not counted.
        user_place: What it takes of the limit of its user.
        channel_name: The name that its consumer knows as its channel.
        alias: The alias of the channel layer that its groups are in.
        on_event: Queues what the handlers of the application will see: group events that are no messages, and
            the news of the eviction.
        on_group_event: Takes the same group events, and calls their handler immediately if no other handler
            runs. It never raises.
        closes_old_connections: True if `on_group_event` must be called after stale database connections were
            closed.
        takes_notifications: True if the client understands the frame `notification`.
        transport: Writes to the client.
        client_id: The id that its client gave itself; empty if it gave none.
        subprotocol: The subprotocol. Until the handshake is complete, the one that will be chosen unless the
            application chooses another.
        liveness: Set when the handshake is complete: a client in its handshake cannot answer pings.
        opening: The values of its record, from the moment at which the record may exist.
        hub: The hub that it was admitted to. It stays this one, also if the process starts a new hub.
        changing: Held while groups change: a row and its membership change together.
        groups: The groups that it receives messages of.
        joined: The groups for which a membership row may be open. The eviction leaves all of them.
        positions: The positions from which it receives the messages of the groups with history that it joined
            before its handshake was complete.
        last_run: The number of the last run of messages that fan-out wrote to it in its turn.
        reason: Why it ends. The first reason counts.
        close_code: The close code that was sent or received.
        admission: The task that admits it, while that runs and after it failed.
        eviction: The task that evicts it.
    """

    __slots__ = (
        "_state",
        "address",
        "admission",
        "alias",
        "asks_policy",
        "authorization",
        "changing",
        "channel_name",
        "client_id",
        "close_code",
        "closes_old_connections",
        "eviction",
        "groups",
        "hears_rights",
        "hub",
        "id",
        "joined",
        "last_run",
        "liveness",
        "on_event",
        "on_group_event",
        "opening",
        "place",
        "positions",
        "reason",
        "rights_read",
        "scope",
        "subprotocol",
        "takes_notifications",
        "takes_refresh",
        "transport",
        "unasked",
        "user_place",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        on_event: Callable[[Event], None],
        alias: str = DEFAULT_CHANNEL_LAYER,
    ) -> None:
        self.id = uuid.uuid4()
        self.scope = scope
        self.address = address_of(scope)
        self.authorization: Authorization | None = scope.get(SCOPE_KEY)
        self.rights_read = 0
        self.place: Place | None = None
        self.user_place: Place | None = None
        self.channel_name = f"realtime.connection.{self.id.hex}"
        self.alias = alias
        self.on_event = on_event
        self.on_group_event = on_event
        self.closes_old_connections = False
        self.client_id = ""
        self.takes_notifications = False
        self.asks_policy = False
        self.unasked: set[str] | None = None
        self.takes_refresh = False
        self.hears_rights = False
        self.transport: AsgiTransport
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else ""
        self.liveness: Liveness | None = None
        self.opening: Opening | None = None
        self.hub: Hub | None = None
        self.changing = asyncio.Lock()
        self.groups: set[str] = set()
        self.joined: set[str] = set()
        # Most connections have none, and an empty dict is not small.
        self.positions: Mapping[str, Position] = _NONE
        self.last_run = 0
        self.reason: CloseReason | None = None
        self.close_code: int | None = None
        self.admission: asyncio.Task[None] | None = None
        self.eviction: asyncio.Task[None] | None = None
        self._state = State.CONNECTING

    @property
    def state(self) -> State:
        """The current stage of its life."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        """Move on to the next state.

        Raises:
            RuntimeError: The connection cannot come to this state from its current one; that is a bug.
        """
        if state not in _NEXT[self._state]:
            raise RuntimeError(f"A connection that is {self._state.value} cannot become {state.value}.")
        self._state = state
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("The connection is %s", state.value, extra=self.log_fields())

    @property
    def gone(self) -> bool:
        """True from the moment at which the connection has a reason to end."""
        return self.reason is not None

    def end(self, reason: CloseReason) -> None:
        """Give the connection its reason to end.

        Raises:
            RuntimeError: It has one already; that is a bug.
        """
        if self.reason is None:
            # Before the state, so that the log line of the transition has the reason.
            self.reason = reason
        self.state = State.CLOSING

    @property
    def speaks_v1(self) -> bool:
        """True if the client understands pings, welcome and goodbye of `realtime.v1`."""
        return self.subprotocol == SUBPROTOCOL

    @property
    def remote_address(self) -> str:
        """The client's address at the handshake, as far as CLIENT_DETAILS allows to keep it."""
        return addresses.reduced(self.address, conf.get().CLIENT_DETAILS)

    @property
    def user_agent(self) -> str:
        """The header User-Agent; empty unless CLIENT_DETAILS allows to keep it."""
        if conf.get().CLIENT_DETAILS != "full":
            return ""
        headers = dict(self.scope.get("headers", ()))
        return str(headers.get(b"user-agent", b"").decode("latin-1"))

    @property
    def user_id(self) -> str:
        """The user's primary key as text; empty for an anonymous client."""
        user = self.scope.get("user")
        return str(user.pk) if user is not None and user.is_authenticated else ""

    def log_fields(self) -> dict[str, str]:
        """Return the fields that every log line about a connection carries."""
        return {
            "connection": str(self.id),
            "address": self.remote_address,
            "reason": self.reason.value if self.reason else "",
        }
