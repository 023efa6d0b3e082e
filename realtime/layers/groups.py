"""Every call to the channel layer but those that publish: membership, and what processes say to each other.

Each call is bounded, and whatever the layer raises becomes one exception, `LayerUnavailable`.

A process is reached at an address: the name of its channel, and before it the alias of the layer with a colon
where that is not the default one. Whoever knows the address of a process, as rounds do, needs nothing else.
Messages of groups come to that channel. What processes say to each other goes to a second one, whose name
follows from the first, so that it waits behind no message.
"""

import asyncio
import re
import uuid
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import get_channel_layer
from django.conf import settings

from realtime import metrics
from realtime.errors import BadGroup, LayerUnavailable, NoSuchLayer
from realtime.layers import LAYER_ERRORS, OURS, Layer, Message, messages
from realtime.layers.contents import Contents, StoredMembers
from realtime.wire import frames

#: Seconds after which a call to the layer is given up. Redis answers in under a millisecond or is not well.
CALL_TIMEOUT = 5.0
#: Seconds after which the listing of everything in a layer is given up.
LISTING_TIMEOUT = 60.0

#: The rule that the message of BadGroup ends with.
NAMES = 'use 1 to 99 ASCII letters, digits, "-", "_" and ".", not starting with "realtime.".'

#: The beginning of the names of channels for what processes say to each other.
CONTROL = "realtime.control."

Result = TypeVar("Result")


def layer(alias: str = DEFAULT_CHANNEL_LAYER) -> Layer:
    """The project's channel layer of this alias. Raises NoSuchLayer if there is none, or not one of ours."""
    found = get_channel_layer(alias)
    if found is None:
        raise NoSuchLayer(
            f'CHANNEL_LAYERS has no "{alias}" layer; set its BACKEND to "realtime.layers.PubSubLayer".'
        )
    if not isinstance(found, OURS):
        raise NoSuchLayer(
            f"{type(found).__module__}.{type(found).__name__} does not say which group a message was sent "
            'to; set the BACKEND in CHANNEL_LAYERS to "realtime.layers.PubSubLayer" or '
            '"realtime.layers.CoreLayer".'
        )
    return cast(Layer, found)


def at(address: str) -> tuple[Layer, str]:
    """The layer and the channel behind an address. Raises NoSuchLayer when this layer is not here."""
    return layer(alias_of(address)), address.rpartition(":")[2]


def _address(alias: str, channel: str) -> str:
    return channel if alias == DEFAULT_CHANNEL_LAYER else f"{alias}:{channel}"


def alias_of(address: str) -> str:
    """The alias of the layer in which this address is."""
    alias, colon, _ = address.rpartition(":")
    return alias if colon else DEFAULT_CHANNEL_LAYER


def control_of(channel: str) -> str:
    """The channel for what is said to the process that has this channel; one of these is its own."""
    if channel.startswith(CONTROL):
        return channel
    # All layers end the names of channels with something unique.
    return CONTROL + re.split("[.!]", channel)[-1]


def _control_at(address: str) -> tuple[Layer, str]:
    home, channel = at(address)
    return home, control_of(channel)


def require_valid(group: str) -> None:
    """Raises BadGroup unless this is a name that a group can have."""
    if not frames.valid_group(group):
        raise BadGroup(f"{group!r} cannot be a group's name; {NAMES}")


async def call(name: str, work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return await bounded(work)
    except LAYER_ERRORS as error:
        raise unavailable(name, error) from error


async def bounded(work: Coroutine[Any, Any, Result]) -> Result:
    async with asyncio.timeout(CALL_TIMEOUT):
        return await work


def unavailable(name: str, error: BaseException) -> LayerUnavailable:
    """Count an error of the layer, and say which call failed."""
    metrics.layer_errors.labels(call=name).inc()
    detail = f"{type(error).__name__}: {error}".rstrip(": ")
    return LayerUnavailable(f"The channel layer failed to {name} ({detail}).")


# -- membership ------------------------------------------------------------------------------------


async def new_channel(alias: str = DEFAULT_CHANNEL_LAYER) -> str:
    """A channel of this process; whoever opens it has to go on receiving from it."""
    return await call("open a channel", layer(alias).new_channel())


async def new_address(alias: str) -> str:
    """A channel of this process in the layer of this alias, as the address at which others reach it."""
    return _address(alias, await new_channel(alias))


async def close_channel(address: str) -> None:
    """Undo `new_address` where nobody has received from the channel yet."""
    home, channel = at(address)
    await call("close a channel", home.close_channel(channel))


def new_control(alias: str = DEFAULT_CHANNEL_LAYER) -> str:
    """A new address for what is said to a program that has no channel for messages."""
    return _address(alias, CONTROL + uuid.uuid4().hex)


async def open_control(address: str) -> None:
    """Open the channel for what is said to the process at this address, which has to go on receiving."""
    home, channel = _control_at(address)
    await call("open a channel", home.open_channel(channel))


async def receive_control(address: str) -> Message:
    """Wait for the next event that was said to this process, however long that takes."""
    home, channel = _control_at(address)
    return await home.receive(channel)


def aliases() -> list[str]:
    """The project's channel layers that are ours; others are none of our business."""
    return [alias for alias in settings.CHANNEL_LAYERS if isinstance(get_channel_layer(alias), OURS)]


async def check(alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Raises LayerUnavailable unless the layer takes a message now."""
    home = layer(alias)
    await call("send", home.group_send("realtime.check", messages.encode(messages.Mark(0, ""))))


async def add(group: str, address: str) -> None:
    home, channel = at(address)
    await call("add to a group", home.group_add(group, channel))


async def discard(group: str, address: str) -> None:
    home, channel = at(address)
    await call("discard from a group", home.group_discard(group, channel))


async def forget_channel(address: str) -> None:
    """Remove what the layer stores for the channel of a process that is gone."""
    home, channel = at(address)
    for each in (channel, control_of(channel)):
        await call("forget a channel", home.forget_channel(each))


# -- healing ---------------------------------------------------------------------------------------


async def echo(address: str, channels: Sequence[str], number: int) -> int:
    """Send events to oneself, one over each connection on which one receives what is said to this address,
    and what comes to these `channels` beside it; returns how many.
    """
    home, control = _control_at(address)
    return await call("send an echo", home.echo((control, *channels), number))


def heard(address: str, channels: Sequence[str]) -> Sequence[int]:
    """How much has come in so far over the connection of each part of such an echo, as numbers that grow."""
    home, control = _control_at(address)
    return home.heard((control, *channels))


async def rebuild(address: str, parts: Collection[int]) -> None:
    """Receive at this address on new connections in place of those on which a part of an echo is missing."""
    home, _ = at(address)
    await call("rebuild a connection", home.rebuild(parts))


async def holds(group: str, address: str) -> bool:
    """False when the layer has certainly lost this membership."""
    home, channel = at(address)
    return await call("look for a membership", home.holds(group, channel))


async def reassert(names: Sequence[str], address: str) -> None:
    """`add` for many groups in one go, which changes nothing where the layer still has the membership."""
    home, channel = at(address)
    await call("assert memberships", home.reassert(names, channel))


# -- between processes -----------------------------------------------------------------------------


async def mark(group: str, number: int, address: str) -> None:
    """Ask the layer to carry a mark through `group`; it comes back to `address` once the membership is
    active.
    """
    home, _ = at(address)
    await call("mark a group", home.group_send(group, messages.encode(messages.Mark(number, address))))


async def tell(address: str, message: messages.Control) -> None:
    """Send a message to the mailbox of the process at this address.

    Raises:
        LayerUnavailable: The channel layer did not take the message.
    """
    home, channel = _control_at(address)
    await call(message.purpose, home.send(channel, messages.encode(message)))


async def tell_all(told: Mapping[str, messages.Control]) -> dict[str, LayerUnavailable]:
    """Send messages to many processes at the same time.

    A Redis that hangs costs one timeout in total, not one for each process.

    Args:
        told: The message for each address.

    Returns:
        The addresses whose message the channel layer did not take, each with the reason.
    """
    outcomes = await asyncio.gather(
        *(tell(address, message) for address, message in told.items()), return_exceptions=True
    )
    failed = {}
    for address, outcome in zip(told, outcomes, strict=True):
        if isinstance(outcome, LayerUnavailable):
            failed[address] = outcome
        elif outcome is not None:
            raise outcome
    return failed


async def contents(alias: str) -> Contents:
    """Return the groups that the layer of this alias knows. Stored members are given as addresses.

    Raises:
        LayerUnavailable: The layer did not list them within `LISTING_TIMEOUT`.
    """
    home = layer(alias)
    # Longer than a call, because it takes many.
    try:
        async with asyncio.timeout(LISTING_TIMEOUT):
            found = await home.contents()
    except LAYER_ERRORS as error:
        raise LayerUnavailable(f"The channel layer failed to list its groups ({error!r}).") from error
    if isinstance(found, StoredMembers):
        return StoredMembers(frozenset((group, _address(alias, channel)) for group, channel in found.pairs))
    return found
