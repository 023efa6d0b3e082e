"""Find the server's protocol of a connection behind any middleware.

A middleware may wrap `send` in a closure, an object, a queue with a task behind it. Messages must go through
it. What is known of the connection (pings, pongs, the backlog, its end) does not depend on it. So the
protocol is found in two ways, and neither calls or changes the middleware:

1. The server notes the protocol in a context variable when it starts the application for a connection. Every
   middleware runs in that task, or in a task with a copy of its context. The note is a weak reference,
   because a background task that a handler started may outlive the connection.
2. If there is no note (the server's module was loaded after the first connection was routed here, or the
   context is a new one), the objects behind `send` are searched.

In both ways a protocol counts only if the scope has an object that this protocol made: a copy of the scope
has the same list of headers. So the protocol of another connection is never taken, for example if a handler
runs an application for a client of its own.

Private: docs/reference.md lists the public names.
"""

import functools
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from realtime.transports import daphne, hypercorn, uvicorn

logger = logging.getLogger("realtime.transports")

#: The limits of a search behind `send`: the steps from it, and the objects.
MAX_DEPTH = 10
MAX_OBJECTS = 300

#: Objects of these types lead to no `send`. Containers are left out too, because a middleware may keep other
#: connections in one.
_LEAVES = (type, types.ModuleType, str, bytes, int, float, dict, list, tuple, set, frozenset, type(None))

_noted: ContextVar["weakref.ref[Any] | None"] = ContextVar("realtime_protocol", default=None)

_HOOKED = "_realtime_notes_protocols"


def protocol_of(scope: Mapping[str, Any], send: Any) -> Any:
    """Return the server's protocol of this connection, or None if it is not found.

    Args:
        scope: The ASGI scope, or a copy of it in which at most some values were replaced.
        send: The ASGI `send`, wrapped or not.
    """
    note = _noted.get()
    protocol = None if note is None else note()
    if protocol is not None and _made(protocol, scope):
        return protocol
    # A worker of gunicorn loads uvicorn's protocols when the application is loaded already.
    hook_servers()
    for each in _behind(send):
        if _made(each, scope):
            return each
    return None


def _made(protocol: Any, scope: Mapping[str, Any]) -> bool:
    """Return True if this is a server's protocol, and one of its own objects is in the scope."""
    originals = daphne.scope_of(protocol) or uvicorn.scope_of(protocol) or hypercorn.scope_of(protocol)
    return any(value and scope.get(key) is value for key, value in originals.items())


# -- the note --------------------------------------------------------------------------------------


def hook_servers() -> None:
    """Have the loaded servers note their protocols. A server that is not known is left alone.

    Modules are taken from the loaded ones: an import of Daphne would install a reactor.
    """
    _hook(getattr(sys.modules.get("daphne.server"), "Server", None), "create_application", _noting_argument)
    for name in uvicorn.MODULES:
        module = sys.modules.get(name)
        for each in list(vars(module).values()) if module is not None else ():
            if isinstance(each, type) and each.__module__ == name:
                _hook(each, "run_asgi", _noting_self)


def _hook(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    original = getattr(owner, name, None)
    if callable(original) and not hasattr(original, _HOOKED):
        hooked = functools.wraps(original)(wrap(original))
        setattr(hooked, _HOOKED, True)
        setattr(owner, name, hooked)


def _noting_argument(create_application: Callable[..., Any]) -> Callable[..., Any]:
    def noting(server: Any, protocol: Any, *arguments: Any, **options: Any) -> Any:
        token = _noted.set(_reference(protocol))
        try:
            # It makes the task of the application, which copies the context.
            return create_application(server, protocol, *arguments, **options)
        finally:
            _noted.reset(token)

    return noting


def _noting_self(run_asgi: Callable[..., Any]) -> Callable[..., Any]:
    def noting(protocol: Any, *arguments: Any, **options: Any) -> Any:
        # Not a coroutine function: its frame would stay in memory as long as the connection. uvicorn calls
        # this in the context of the connection's own socket, and then makes the task.
        _noted.set(_reference(protocol))
        return run_asgi(protocol, *arguments, **options)

    return noting


def _reference(protocol: Any) -> "weakref.ref[Any] | None":
    try:
        return weakref.ref(protocol)
    except TypeError:
        return None


# -- the search ------------------------------------------------------------------------------------


def _behind(send: Any) -> Iterator[Any]:
    """Yield the objects behind `send`, the nearest first, within the limits. None of their code runs."""
    seen, layer = {id(send)}, [send]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for target in layer:
            for each in _parts(target):
                if isinstance(each, _LEAVES) or id(each) in seen:
                    continue
                if len(seen) > MAX_OBJECTS:
                    return
                seen.add(id(each))
                following.append(each)
                yield each
        layer = following


def _parts(target: Any) -> Iterator[Any]:
    """Yield what a callable or an object refers to."""
    if isinstance(target, functools.partial):
        yield target.func
        yield from target.args
        yield from target.keywords.values()
    elif isinstance(target, types.MethodType):
        yield target.__self__
        yield target.__func__
    elif isinstance(target, types.FunctionType):
        for cell in target.__closure__ or ():
            # An empty cell raises.
            with suppress(ValueError):
                yield cell.cell_contents
        yield from target.__defaults__ or ()
        yield from (target.__kwdefaults__ or {}).values()
        yield from vars(target).values()
    else:
        # Read without `getattr`, which may run code.
        with suppress(AttributeError):
            yield from list(object.__getattribute__(target, "__dict__").values())
        for cls in type(target).__mro__:
            for member in vars(cls).values():
                if isinstance(member, types.MemberDescriptorType):
                    with suppress(AttributeError):
                        yield member.__get__(target)
