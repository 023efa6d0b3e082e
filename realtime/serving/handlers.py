"""Decide which attributes of a consumer may handle events of the channel layer.

Any program that can write to Redis chooses the type of an event. So a type never reaches a method that
Channels or this package defines, or one that its author did not write as a handler.

Private: docs/reference.md lists the public names.
"""

import enum
import inspect
import weakref
from typing import Any

from asgiref.sync import iscoroutinefunction
from channels.consumer import AsyncConsumer, SyncConsumer

from realtime.serving.inbox import SERVER_EVENTS

#: Answers that are remembered of one class. Types of events come from the network, so the number is bounded.
MAX_ANSWERS = 1024

#: Methods of this package that only applications call. The event handler of an application may have the same
#: name.
_FREE_NAMES = frozenset({"presence"})

_SERVER_NAMES = frozenset(kind.replace(".", "_") for kind in SERVER_EVENTS)


class Target(enum.Enum):
    """The attribute of a consumer that the type of an event names."""

    HANDLER = "handler"
    """It handles events."""
    MISSING = "missing"
    """The consumer has no such attribute. A `dispatch` of another package may know what to do."""
    FORBIDDEN = "forbidden"
    """It is private or handles no events. No code may look it up for an event of the layer."""


def name_of(kind: str) -> str:
    """Return the name of the method that handles events of this type."""
    return kind.replace(".", "_")


# Weakly: test suites make classes inside tests, and a class that stays alive may still be subscribed to
# signals of Django.
_answers: weakref.WeakKeyDictionary[type, dict[str, Target]] = weakref.WeakKeyDictionary()


def target(consumer: type, kind: str) -> Target:
    """Find out which attribute the type of an event of the channel layer names.

    A handler is public and defined by the application alone. For an asynchronous consumer it is a coroutine
    function, or an object with an `async def __call__`. For a synchronous consumer it is a callable that is
    not asynchronous and takes one argument.

    Args:
        consumer: The class of the consumer. Attributes that it is given after the first event of a type are
            not seen.
        kind: The type of the event; not one that only servers report.
    """
    known = _answers.get(consumer)
    if known is None:
        known = _answers.setdefault(consumer, {})
    answer = known.get(kind)
    if answer is None:
        if len(known) >= MAX_ANSWERS:
            known.clear()
        answer = known[kind] = _find_target(consumer, kind)
    return answer


def _find_target(consumer: type, kind: str) -> Target:
    name = name_of(kind)
    if name.startswith("_") or name in _SERVER_NAMES:
        return Target.FORBIDDEN
    defined = [cls for cls in consumer.__mro__ if name in vars(cls)]
    if not defined:
        return Target.MISSING
    is_free = name in _FREE_NAMES and not is_of_a_framework(defined[0])
    if not is_free and any(is_of_a_framework(cls) for cls in defined):
        return Target.FORBIDDEN
    method = vars(defined[0])[name]
    if issubclass(consumer, SyncConsumer):
        handles = not is_async(method) and _takes_an_event(method)
    else:
        handles = is_async(method)
    return Target.HANDLER if handles else Target.FORBIDDEN


def admits(consumer: object, kind: str) -> bool:
    """Return True if an event of the layer with this type may come to the `dispatch` of this consumer.

    That is an event with a handler, and one with a type that names nothing: the `dispatch` of another package
    may know it.
    """
    cls: type = type(consumer)
    found = target(cls, kind)
    if found is Target.MISSING:
        return name_of(kind) not in vars(consumer)
    return found is Target.HANDLER


def is_of_a_framework(cls: type) -> bool:
    """Return True for a class of Channels or of this package."""
    return cls.__module__.partition(".")[0] in ("channels", "realtime")


def is_async(method: Any) -> bool:
    """Return True for a coroutine function, also under decorators or `database_sync_to_async`.

    Also return True for an object with an `async def __call__`, as decorators of other packages make.
    """
    candidates = (method, inspect.unwrap(method), type(method).__call__)
    return any(iscoroutinefunction(each) for each in candidates)


def _takes_an_event(method: Any) -> bool:
    """Return True for a method that can be called with an event, seen in the class that defines it."""
    if isinstance(method, staticmethod):
        method, arguments = method.__func__, 1
    else:
        # A function gets the instance too. Another object may be a descriptor that binds it.
        arguments = 2 if inspect.isroutine(method) else 1
    if not callable(method) or isinstance(method, type):
        return False
    try:
        inspect.signature(method).bind(*[None] * arguments)
    except (TypeError, ValueError):
        return False
    return True


def overrides(consumer: type, below: type, names: frozenset[str]) -> bool:
    """Return True if a class of another package, below the given class, overrides one of the methods.

    Args:
        consumer: The class. Its method resolution order is searched.
        below: Only classes between this one and Channels' `AsyncConsumer` count.
        names: The names of the methods.
    """
    order = consumer.__mro__
    between = order[order.index(below) + 1 : order.index(AsyncConsumer)]
    return any(not is_of_a_framework(cls) and not names.isdisjoint(vars(cls)) for cls in between)
