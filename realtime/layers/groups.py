"""Every call to the channel layer: memberships, and messages between processes.

Each call is bounded in time. Every error of a layer becomes one exception, `LayerUnavailable`.

Other processes reach a process at its address: the name of its channel, and before it the alias of its layer
with a colon, unless that is the default layer. The address is all that a reaper needs to know of a process.

Messages of groups come to the channel of a process. Messages from other processes come to a second one, its
control channel, so that they wait behind no message of a group. The name of the control channel follows from
the name of the channel.
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
from realtime.history.positions import Log
from realtime.history.retention import Retention
from realtime.layers import OURS, messages
from realtime.layers.contents import Contents, StoredMembers
from realtime.layers.stamped import LAYER_ERRORS, Layer, Message
from realtime.process import background_loop
from realtime.wire import frames

#: Seconds after which a call to the layer is given up. A Redis that works answers in less than a millisecond.
CALL_TIMEOUT = 5.0
#: Seconds after which the listing of everything in a layer is given up.
LISTING_TIMEOUT = 60.0

#: The rule that the message of BadGroup ends with.
NAMES = 'use 1 to 99 ASCII letters, digits, "-", "_" and ".", not starting with "realtime.".'

#: The beginning of the name of every control channel. Names that start with "realtime." are reserved.
CONTROL = "realtime.control."

Result = TypeVar("Result")


# -- layers and addresses --------------------------------------------------------------------------


def layer(alias: str = DEFAULT_CHANNEL_LAYER) -> Layer:
    """Return the project's channel layer of this alias.

    Raises:
        NoSuchLayer: CHANNEL_LAYERS has no layer of this alias, or it is not a layer of this package.
    """
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


def aliases() -> list[str]:
    """Return the aliases of the project's channel layers that are layers of this package."""
    configured = getattr(settings, "CHANNEL_LAYERS", {})
    return [alias for alias in configured if isinstance(get_channel_layer(alias), OURS)]


def at(address: str) -> tuple[Layer, str]:
    """Return the layer and the channel of an address.

    Raises:
        NoSuchLayer: CHANNEL_LAYERS has no such layer.
    """
    return layer(alias_of(address)), address.rpartition(":")[2]


def alias_of(address: str) -> str:
    """Return the alias of the layer of an address."""
    alias, colon, _ = address.rpartition(":")
    return alias if colon else DEFAULT_CHANNEL_LAYER


def _address(alias: str, channel: str) -> str:
    return channel if alias == DEFAULT_CHANNEL_LAYER else f"{alias}:{channel}"


def control_of(channel: str) -> str:
    """Return the control channel of the process that has this channel. A control channel is its own."""
    if channel.startswith(CONTROL):
        return channel
    # All layers end the names of channels with something unique.
    return CONTROL + re.split("[.!]", channel)[-1]


def _control_at(address: str) -> tuple[Layer, str]:
    home, channel = at(address)
    return home, control_of(channel)


def require_valid(group: str) -> None:
    """Check the name of a group.

    Raises:
        BadGroup: No group can have this name.
    """
    if not frames.valid_group(group):
        raise BadGroup(f"{group!r} cannot be a group's name; {NAMES}")


# -- bounded calls ---------------------------------------------------------------------------------


async def call(name: str, work: Coroutine[Any, Any, Result]) -> Result:
    """Make a call to a layer.

    Args:
        name: The call, in words for the error and as the label `call` of `realtime_layer_errors_total`.
        work: The coroutine of the layer.

    Raises:
        LayerUnavailable: The layer failed, or did not answer within `CALL_TIMEOUT`.
    """
    try:
        return await bounded(work)
    except LAYER_ERRORS as error:
        raise unavailable(name, error) from error


async def bounded(work: Coroutine[Any, Any, Result]) -> Result:
    """Give a call to a layer up after `CALL_TIMEOUT`.

    Raises:
        TimeoutError: The layer did not answer in time.
    """
    async with asyncio.timeout(CALL_TIMEOUT):
        return await work


def unavailable(name: str, error: BaseException) -> LayerUnavailable:
    """Count an error of a layer, and return the exception that says which call failed.

    On the background loop of a process with greenlets, the error is not counted.
    """
    if background_loop.may_lock():
        metrics.layer_errors.labels(call=name).inc()
    detail = f"{type(error).__name__}: {error}".rstrip(": ")
    return LayerUnavailable(f"The channel layer failed to {name} ({detail}).")


# -- channels --------------------------------------------------------------------------------------


async def new_channel(alias: str = DEFAULT_CHANNEL_LAYER) -> str:
    """Open a channel of this process, which must go on receiving from it, and return its name.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    return await call("open a channel", layer(alias).new_channel())


async def new_address(alias: str) -> str:
    """Open a channel of this process in the layer of this alias, and return its address.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    return _address(alias, await new_channel(alias))


async def close_channel(address: str) -> None:
    """Undo `new_address` for a channel from which this process has not received yet.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    await call("close a channel", home.close_channel(channel))


async def forget_channel(address: str) -> None:
    """Remove what the layer stores for the channels of a process that no longer exists.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    for each in (channel, control_of(channel)):
        await call("forget a channel", home.forget_channel(each))


def new_control(alias: str = DEFAULT_CHANNEL_LAYER) -> str:
    """Return a new address for a program that has a control channel only."""
    return _address(alias, CONTROL + uuid.uuid4().hex)


async def open_control(address: str) -> None:
    """Open the control channel of this process, which must go on receiving from it.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = _control_at(address)
    await call("open a channel", home.open_channel(channel))


async def receive_control(address: str) -> Message:
    """Wait for the next event on the control channel of this process, without a bound."""
    home, channel = _control_at(address)
    return await home.receive(channel)


# -- memberships -----------------------------------------------------------------------------------


async def add(group: str, address: str) -> None:
    """Add the channel at this address to a group; return when it receives what is sent there.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    await call("add to a group", home.group_add(group, channel))


def add_now(group: str, address: str) -> bool:
    """Add the channel at this address to a group without waiting.

    Returns:
        False if its layer cannot do so: then nothing was changed. A layer in the memory of this process can.
    """
    home, channel = at(address)
    if home.ends_with_process:
        home.add_now(group, channel)
    return home.ends_with_process


def ends_with_process(address: str) -> bool:
    """Return True if the layer of this address ends with its process, and needs no cleanup after it."""
    home, _ = at(address)
    return home.ends_with_process


async def discard(group: str, address: str) -> None:
    """Remove the channel at this address from a group. It is no error if the channel is not in it.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    await call("discard from a group", home.group_discard(group, channel))


async def re_add(names: Sequence[str], address: str) -> None:
    """Call `add` for many groups together. It changes nothing for memberships that the layer still has.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    await call("assert memberships", home.re_add(names, channel))


async def holds(group: str, address: str) -> bool:
    """Return False if the layer has certainly lost this membership.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = at(address)
    return await call("look for a membership", home.holds(group, channel))


async def contents(alias: str) -> Contents:
    """Return the groups that the layer of this alias knows. Stored members are given as addresses.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home = layer(alias)
    # A longer bound than that of a call, because the listing takes many calls.
    try:
        async with asyncio.timeout(LISTING_TIMEOUT):
            found = await home.contents()
    except LAYER_ERRORS as error:
        raise unavailable("list its groups", error) from error
    if isinstance(found, StoredMembers):
        return StoredMembers(frozenset((group, _address(alias, channel)) for group, channel in found.pairs))
    return found


# -- history ---------------------------------------------------------------------------------------


async def read(
    group: str, address: str, after: int | None, keep: Retention, limit: int, max_bytes: int
) -> Log:
    """Read messages from the history of a group, oldest first, in the layer of this address.

    Args:
        group: The name of the group.
        address: An address in the layer.
        after: The offset after which to read; None for the newest messages.
        keep: The part of its history that the group keeps.
        limit: The largest number of messages.
        max_bytes: About the largest number of bytes. One message is read even if it is larger.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, _ = at(address)
    return await call("read a history", home.read(group, after, keep, limit, max_bytes))


async def distrust(group: str, address: str, keep: Retention, epoch: str) -> None:
    """Refuse every position of a group in an earlier epoch: messages were lost at a fork of this epoch.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, _ = at(address)
    await call("begin an epoch", home.distrust(group, keep, epoch))


async def positions(names: Collection[str], address: str) -> dict[str, Log]:
    """Return the histories of many groups, without messages, in the layer of this address.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, _ = at(address)
    return await call("look at histories", home.positions(names))


# -- health ----------------------------------------------------------------------------------------


async def check(alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Send a message to a group without members, to find out if the layer takes messages now.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home = layer(alias)
    await call("send", home.group_send("realtime.check", messages.encode(messages.GroupMessage(""))))


async def echo(address: str, channels: Sequence[str], number: int) -> int:
    """Send an echo to this process: one part for each connection on which it receives.

    Args:
        address: The address of this process. The control channel is part of the echo.
        channels: Other channels from which this process receives.
        number: The number of the echo.

    Returns:
        The number of parts, which are counted from 0.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, control = _control_at(address)
    return await call("send an echo", home.echo((control, *channels), number))


def received(address: str, channels: Sequence[str]) -> Sequence[int]:
    """Return, for each part of such an echo, the number of messages that its connection brought so far."""
    home, control = _control_at(address)
    return home.received((control, *channels))


async def rebuild(address: str, parts: Collection[int]) -> None:
    """Replace the connections on which these parts of an echo are missing.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, _ = at(address)
    await call("rebuild a connection", home.rebuild(parts))


# -- between processes -----------------------------------------------------------------------------


async def tell(address: str, message: messages.Control) -> None:
    """Send a message to the mailbox of the process at this address.

    Raises:
        LayerUnavailable: The layer failed, or did not answer in time.
    """
    home, channel = _control_at(address)
    await call(message.purpose, home.send(channel, messages.encode(message)))


async def tell_all(told: Mapping[str, messages.Control]) -> dict[str, LayerUnavailable]:
    """Send messages to many processes at the same time.

    A Redis that hangs costs one timeout in total, not one for each process.

    Args:
        told: The message for each address.

    Returns:
        The addresses of messages that the channel layer did not take, each with the reason.
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
