"""Take what the channel layer brings to the channel of this process: messages, echoes and events."""

import asyncio
import logging

from realtime import metrics
from realtime.errors import BadMessage
from realtime.fleet.mailbox import Mailbox
from realtime.history.positions import Position
from realtime.hub.fanout import Fanout
from realtime.hub.lanes import Lanes
from realtime.hub.recovery import Recovery
from realtime.layers import groups, messages
from realtime.layers.stamped import STAMP
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.hub")

#: Seconds until the hub goes on after an event that it could not take.
PAUSE_AFTER_ERROR = 0.05


class Events:
    """The reader of one channel.

    Args:
        address: The address of this process in its channel layer.
        fanout: Takes the messages of groups.
        recovery: Takes the messages of groups that keep history.
        lanes: Take all other group events.
        mailbox: Takes the echoes that come back.
    """

    def __init__(
        self, address: str, fanout: Fanout, recovery: Recovery, lanes: Lanes, mailbox: Mailbox
    ) -> None:
        self._address = address
        self._fanout = fanout
        self._recovery = recovery
        self._lanes = lanes
        self._mailbox = mailbox
        self.taking = False
        """True while an event is taken. If fan-out is behind, it lets the event wait."""
        self._logged: set[str] = set()

    async def run(self) -> None:
        """Take events until cancelled.

        One long-lived task runs this, and never under a timeout: a `receive` that times out deletes a
        pub/sub channel.
        """
        layer, channel = groups.at(self._address)
        while True:
            try:
                event = await layer.receive_stamped(channel)
                self.taking = True
                if not isinstance(event, dict):
                    self._log_once("A message that is no dict was sent to a group of this process.")
                    continue
                metrics.events.labels(type=event.get("type", "")).inc()
                await self._take(event)
            except Exception:
                # Neither a bad event nor a failing layer may stop the reader. The pause keeps a layer that
                # fails immediately from filling the log.
                logger.exception("The hub could not take an event")
                await asyncio.sleep(PAUSE_AFTER_ERROR)
            finally:
                self.taking = False

    async def _take(self, event: Event) -> None:
        group = event.pop(STAMP, None)
        match event.get("type"):
            case messages.MESSAGE if group is not None and event.get("epoch") is not None:
                await self._recovery.put(group, Position(event["epoch"], event["offset"]), event["text"])
            case messages.MESSAGE if group is not None:
                await self._fanout.put(group, event["text"])
            case messages.ECHO:
                self._take_echo(event)
            case messages.MARK:
                # A process of an older version sends it to itself, through a group that it joins.
                pass
            case _ if group is not None:
                await self._lanes.put(group, event)
            case kind:
                # A layer of another package sent it, or a program wrote to this channel. The event does not
                # say which members it is for.
                metrics.unstamped.inc()
                self._log_once(
                    f"An event of type {kind!r} did not say which group it was sent to; is every process "
                    "that sends configured with a layer of realtime.layers?"
                )

    def _take_echo(self, event: Event) -> None:
        """Note a part of an echo that came back."""
        try:
            message = messages.decode(event)
        except BadMessage as error:
            self._log_once(str(error))
            return
        if isinstance(message, messages.EchoPart):
            self._mailbox.returned(message)

    def _log_once(self, sentence: str) -> None:
        if sentence not in self._logged:
            self._logged.add(sentence)
            logger.error(sentence)
