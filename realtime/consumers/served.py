"""The part of every consumer that hands its connection to a runner, and its events to its handlers.

Private: docs/reference.md lists the public names.
"""

import functools
import inspect
import logging
import warnings
from collections.abc import Coroutine, Iterable
from typing import Any

from asgiref.sync import markcoroutinefunction
from channels.consumer import AsyncConsumer, SyncConsumer

from realtime import conf
from realtime.hub.connection import Connection
from realtime.process import old_connections
from realtime.serving import handlers, threads
from realtime.serving.handlers import Target
from realtime.serving.inbox import SERVER_EVENTS
from realtime.serving.runner import Runner, ignore
from realtime.transports.asgi import Event, Receive, Send

logger = logging.getLogger("realtime.consumers")

#: The methods that an author overrides and that Channels calls.
HANDLERS = (
    *("connect", "disconnect", "receive", "receive_json"),
    *("websocket_connect", "websocket_disconnect", "websocket_receive"),
)
#: The methods that this module overrides, and that base classes of other packages may override as well.
_SHARED = frozenset({"__call__", "as_asgi", "dispatch"})
#: The handlers of server events that a consumer may lack: there is nothing to do for it.
_OPTIONAL = frozenset({"websocket.disconnect"})


class Served(AsyncConsumer):
    """The base of `RealtimeMixin` and `SyncRealtimeMixin`.

    A base class of another package may override `__call__`, `as_asgi` or `dispatch`. If it comes before this
    class in the method resolution order, it calls this class with `super()`, and this class does the work.
    If it comes after this class, this class passes the call on with `super()`, and `Terminal` does the work
    below it. So both orders work.
    """

    #: True gives the connection a channel of its own in the layer, for
    #: `channel_layer.send(self.channel_name, …)`. It costs a subscription per connection: set it to False if
    #: the application never sends to single connections.
    own_channel = True

    #: True closes stale database connections before each event, as Channels does, for handlers that use the
    #: ORM.
    closes_old_connections = True

    #: The name of the query parameter with the random id of a client. If it is set, a new connection of a
    #: client supersedes the older one of the same client and user, in any process. None reads no parameter.
    client_parameter: str | None = None

    #: True sends the client the notifications to its user (`realtime.notifying`), as frames `notification`.
    #: Leave it False for a client that speaks a protocol of its own.
    takes_notifications = False

    #: True sends the client the frame `refresh` before its right to the connection ends. Set it if your
    #: client answers with a new ticket, and pass that to `self.refresh`.
    takes_refresh = False

    #: True asks the policy again about the groups of the connection when the rights of its user change. A
    #: group that it does not allow any more is left. Set it if you ask the policy before every join.
    asks_policy = False

    #: Set when the consumer is called. An author may use the name for another attribute.
    connection: Connection

    # Names with two underscores, because authors name their own attributes as they like.
    __passes_on = False
    __serving: Runner

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if handlers.overrides(cls, Served, _SHARED):
            _end_with_a_terminal(cls)
            cls.__passes_on = True

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        # Read at start, so that a wrong setting stops the server and not each single connection.
        conf.get()
        if cls.__passes_on:
            return super().as_asgi(**initkwargs)
        return _as_asgi(cls, super().as_asgi(**initkwargs), initkwargs)

    # Marked as a coroutine function, so that asgiref takes an instance for an ASGI 3 application. Test suites
    # pass instances to `WebsocketCommunicator`.
    @markcoroutinefunction
    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if self.__passes_on:
            return self.__call_theirs(super().__call__(scope, receive, send))
        return self.__serve(scope, receive, send)

    async def __call_theirs(self, call: Coroutine[Any, Any, None]) -> None:
        await call
        if "_Served__serving" not in vars(self):
            logger.error(
                "%s was not served by realtime: a base class overrides `__call__` without `super()`",
                type(self).__qualname__,
            )

    def __serve(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        self.scope = scope
        self.__serving = serving = Runner(self, scope, send)
        self.connection = serving.connection
        base_send: Any = serving.send
        if self._sync:
            plain = type(self).dispatch is Served.dispatch and not self.__passes_on
            base_send = threads.prepare(self, serving, shares_visits=plain)
        self.base_send = base_send
        return serving.run(receive)

    async def dispatch(self, message: Event) -> None:
        """Call the handler of an event.

        `realtime.serving.handlers` has the rule for handlers of events of the channel layer. An event of any
        other type is logged once and ignored. Channels would end every member of the group for it (after a
        rolling deploy or a typo), or let any program that can write to Redis call any method.
        """
        if not self.__passes_on:
            await self.__handle(message)
        elif message["type"] in SERVER_EVENTS or handlers.admits(self, message["type"]):
            await super().dispatch(message)
        else:
            ignore(type(self), message["type"])

    async def __handle(self, message: Event) -> None:
        kind = message["type"]
        consumer: type = type(self)
        if kind not in SERVER_EVENTS and handlers.target(consumer, kind) is not Target.HANDLER:
            ignore(consumer, kind)
            return
        handler = getattr(self, handlers.name_of(kind), None)
        if handler is None:
            if kind not in _OPTIONAL:
                raise ValueError(f"{consumer.__name__} has no handler for {kind}.")
            return
        if self._sync:
            await threads.handle(self, self.__serving, handler, message)
            return
        if self.closes_old_connections and not self.__serving.closed_old_connections:
            await old_connections.close()
        await handler(message)


class Terminal(AsyncConsumer):
    """The work of `Served`, at the end of the method resolution order."""

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        return _as_asgi(cls, super().as_asgi(**initkwargs), initkwargs)

    @markcoroutinefunction
    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        serving: Coroutine[Any, Any, None] = self._Served__serve(scope, receive, send)
        return serving

    async def dispatch(self, message: Event) -> None:
        await self._Served__handle(message)


class SyncTerminal(Terminal, SyncConsumer):
    """The same for a synchronous consumer: it comes before `SyncConsumer`, which has a `dispatch` too."""


def _end_with_a_terminal(cls: type) -> None:
    """Give the class one more base, so that the terminal comes after each base class of another package.

    The method resolution order keeps the order of bases, so the new base comes after all other bases, and it
    comes before the class of Channels that it derives from.
    """
    terminal = SyncTerminal if issubclass(cls, SyncConsumer) else Terminal
    bases = [base for base in cls.__bases__ if base is not terminal]
    position = next((i for i, base in enumerate(bases) if issubclass(terminal, base)), len(bases))
    cls.__bases__ = (*bases[:position], terminal, *bases[position:])


def _as_asgi(consumer: type, theirs: Any, initkwargs: dict[str, Any]) -> Any:
    """Return the application of `as_asgi`, with the attributes that Channels gives its own.

    Neither this application nor `__call__` is a coroutine function: its frame would stay in memory as long as
    the connection.
    """

    def app(scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        serving: Coroutine[Any, Any, None] = consumer(**initkwargs)(scope, receive, send)
        return serving

    return markcoroutinefunction(functools.update_wrapper(app, theirs))


def warn_of_methods(cls: type, names: Iterable[str], are_async: bool, sentence: str) -> None:
    """Warn of each method of this class that is not written as the base class calls it.

    Args:
        cls: The class of an author that is being made.
        names: The methods to look at, if the class itself defines them.
        are_async: True if the base class awaits them.
        sentence: The warning. `{}` is the name of the method.
    """
    for name in names:
        method = vars(cls).get(name)
        if inspect.isfunction(method) and handlers.is_async(method) is not are_async:
            warnings.warn(sentence.format(f"{cls.__name__}.{name}"), RuntimeWarning, stacklevel=3)
