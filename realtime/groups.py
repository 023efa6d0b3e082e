"""Every call to the channel layer: membership, publishing, and what processes say to each other.

Each call is bounded, and whatever the layer raises becomes one exception, `LayerUnavailable`.

A process is reached at an address: the name of its channel, and before it the alias of the layer with a colon
where that is not the default one. Whoever knows the address of a process, as rounds do, needs nothing else.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, cast

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import get_channel_layer
from msgspec import UNSET, UnsetType

from realtime import frames, layers, metrics
from realtime.errors import RealtimeError
from realtime.layers import LAYER_ERRORS, OURS, Layer

#: Seconds after which a call to the layer is given up. Redis answers in under a millisecond or is not well.
CALL_TIMEOUT = 5.0

# Types of the events that processes send each other; group names starting "realtime." are ours as well.
MESSAGE = layers.MESSAGE
MARK = layers.MARK
ASK = "realtime.ask"
ANSWER = "realtime.answer"
KICK = "realtime.kick"

Result = TypeVar("Result")


class LayerUnavailable(RealtimeError):
    """The channel layer did not do what it was asked; look at the Redis behind CHANNEL_LAYERS, then try
    again.
    """


class BadGroup(RealtimeError, TypeError, ValueError):
    """use 1 to 99 ASCII letters, digits, "-", "_" and ".", not starting with "realtime."."""


def layer(alias: str = DEFAULT_CHANNEL_LAYER) -> Layer:
    """The project's channel layer of this alias. Raises LayerUnavailable when there is none, or not one of
    ours.
    """
    found = get_channel_layer(alias)
    if found is None:
        raise LayerUnavailable(
            f'CHANNEL_LAYERS has no "{alias}" layer; set its BACKEND to "realtime.layers.PubSubLayer".'
        )
    if not isinstance(found, OURS):
        raise LayerUnavailable(
            f"{type(found).__module__}.{type(found).__name__} does not say which group a message was sent "
            'to; set the BACKEND in CHANNEL_LAYERS to "realtime.layers.PubSubLayer" or '
            '"realtime.layers.CoreLayer".'
        )
    return cast(Layer, found)


def at(address: str) -> tuple[Layer, str]:
    """The layer and the channel behind an address. Raises LayerUnavailable when this layer is not here."""
    alias, colon, channel = address.rpartition(":")
    return layer(alias if colon else DEFAULT_CHANNEL_LAYER), channel


def require_valid(group: str) -> None:
    """Raises BadGroup unless this is a name that a group can have."""
    if not frames.valid_group(group):
        raise BadGroup(f"{group!r} cannot be a group's name; {BadGroup.__doc__}")


async def _call(name: str, call: Coroutine[Any, Any, Result]) -> Result:
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            return await call
    except LAYER_ERRORS as error:
        metrics.layer_errors.labels(call=name).inc()
        detail = f"{type(error).__name__}: {error}".rstrip(": ")
        raise LayerUnavailable(f"The channel layer failed to {name} ({detail}).") from error


# -- membership ------------------------------------------------------------------------------------


async def new_channel(alias: str = DEFAULT_CHANNEL_LAYER) -> str:
    """A channel of this process; whoever opens it has to go on receiving from it."""
    return await _call("open a channel", layer(alias).new_channel())


async def new_address(alias: str) -> str:
    """A channel of this process in the layer of this alias, as the address at which others reach it."""
    channel = await new_channel(alias)
    return channel if alias == DEFAULT_CHANNEL_LAYER else f"{alias}:{channel}"


async def check() -> None:
    """Raises LayerUnavailable unless the layer takes a message now."""
    await _call("send", layer().group_send("realtime.check", {"type": MARK, "number": 0, "channel": ""}))


async def add(group: str, address: str) -> None:
    home, channel = at(address)
    await _call("add to a group", home.group_add(group, channel))


async def discard(group: str, address: str) -> None:
    home, channel = at(address)
    await _call("discard from a group", home.group_discard(group, channel))


async def forget_channel(address: str) -> None:
    """Remove what the layer stores for the channel of a process that is gone."""
    home, channel = at(address)
    await _call("forget a channel", home.forget_channel(channel))


# -- publishing ------------------------------------------------------------------------------------


async def apublish(
    group: str,
    data: object,
    *,
    alias: str = DEFAULT_CHANNEL_LAYER,
    sender: str | UnsetType | None = UNSET,
) -> None:
    """Send `data`, anything that JSON can carry, to every connection in `group` of the layer `alias`.

    The frame is encoded here, once for all receivers. `sender` is set for what a client published: its
    user, or None. Raises BadGroup, frames.UnpublishableData, LayerUnavailable.
    """
    require_valid(group)
    text = frames.build(frames.Message(group=group, data=frames.encode_data(data), from_=sender))
    await _call("publish", layer(alias).group_send(group, {"type": MESSAGE, "text": text}))
    metrics.published.inc()


def publish(group: str, data: object, *, alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """`apublish` for synchronous code: returns when the channel layer has taken the message.

    Raises what `apublish` raises, and RealtimeError when called on a running event loop, which it would
    block.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _background.run(apublish(group, data, alias=alias))
    else:
        raise RealtimeError(
            "publish() would block the event loop that is running here; use `await apublish(…)`."
        )


class _BackgroundLoop:
    """One event loop in a daemon thread, for synchronous callers of this process.

    A loop and a Redis connection made anew for each call, as `async_to_sync` does, cost 2.5 ms against 0.05.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(call, self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A thread does not survive a fork, and pre-forking servers fork after import.
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="realtime-publish", daemon=True).start()
            return self._loop


_background = _BackgroundLoop()


# -- between processes -----------------------------------------------------------------------------


async def mark(group: str, number: int, address: str) -> None:
    """Ask the layer to carry a mark through `group`; it comes back to `address` once the membership is
    active.
    """
    home, _ = at(address)
    await _call("mark a group", home.group_send(group, {"type": MARK, "number": number, "channel": address}))


async def ask(address: str, number: int, reply_to: str) -> None:
    """Ask the process at `address` to answer round `number`; 0 asks without anything being written."""
    home, channel = at(address)
    await _call("ask a process", home.send(channel, {"type": ASK, "round": number, "reply_to": reply_to}))


async def answer(reply_to: str, number: int, process: str) -> None:
    home, channel = at(reply_to)
    await _call("answer a round", home.send(channel, {"type": ANSWER, "round": number, "process": process}))


async def kick(
    address: str, connections: Sequence[str], memberships: Sequence[tuple[str, str]], reason: str
) -> None:
    """Tell the living process at `address` to evict these connections and to settle these (connection,
    group) pairs.
    """
    event = {
        "type": KICK,
        "connections": list(connections),
        "memberships": list(memberships),
        "reason": reason,
    }
    home, channel = at(address)
    await _call("kick", home.send(channel, event))
