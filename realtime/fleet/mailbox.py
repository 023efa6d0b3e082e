"""A channel on which a program hears what other processes say to it, and finds out whether it hears at all.

Messages of groups never come here, so a question, a kick or an echo waits behind none of them: a process that
is behind with its messages still answers (decision 17).
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from realtime.layers import groups
from realtime.process import tasks
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.mailbox")

#: Seconds until reading goes on after an event that could not be read.
PAUSE_AFTER_ERROR = 0.05
#: Seconds between two echoes of `hears_itself`: a SUBSCRIBE that was written is not yet one that is active.
ECHO_AGAIN_AFTER = 0.1


class Echo:
    """What a program sends to itself, one part over each connection on which it receives."""

    def __init__(self, address: str, channels: Sequence[str], number: int) -> None:
        self.number = number
        self._address = address
        self._channels = channels
        self._parts = 0
        self._back: set[int] = set()
        self._news = asyncio.Event()

    async def send(self) -> None:
        """Send all parts.

        Raises:
            LayerUnavailable: A part could not be sent, which says nothing about what is received.
        """
        self._parts = await groups.echo(self._address, self._channels, self.number)

    def returned(self, part: int) -> None:
        """Note that a part came back."""
        self._back.add(part)
        self._news.set()

    @property
    def missing(self) -> set[int]:
        """The parts that did not come back yet."""
        return set(range(self._parts)) - self._back

    async def is_back(self, patience: float, *, busy: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all parts are back.

        Args:
            patience: Seconds in which something has to arrive over each connection whose part is missing. A
                part that stands in line behind other messages is not missing while these arrive.
            busy: Returns true while a message is being taken, for which all others wait.

        Returns:
            False when nothing arrived over one of the connections for this long.
        """
        while True:
            before = groups.heard(self._address, self._channels)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    while self.missing:
                        self._news.clear()
                        await self._news.wait()
            if not self.missing:
                return True
            now = groups.heard(self._address, self._channels)
            if not busy() and any(now[part] == before[part] for part in self.missing):
                return False


class Mailbox:
    """A channel of this program, read by a task of its own from `open` to `close`."""

    def __init__(self, address: str) -> None:
        self.address = address
        """The address under which others reach it."""
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._echo: Echo | None = None
        self._numbers = itertools.count(1)
        self.reading = tasks.create(self._read())

    @classmethod
    async def open(cls, address: str | None = None) -> Self:
        """Open the mailbox of the server process at this address; without one, that of another program.

        Raises:
            LayerUnavailable: The channel could not be opened.
        """
        address = groups.new_control() if address is None else address
        await groups.open_control(address)
        return cls(address)

    async def close(self) -> None:
        """Stop reading."""
        self.reading.cancel()
        await asyncio.wait([self.reading])

    async def next(self) -> Event:
        """Wait for the next event that another process sent."""
        return await self._events.get()

    async def echo(self, *channels: str) -> Echo:
        """Send an echo to this mailbox, and to these other channels of this process.

        Raises:
            LayerUnavailable: It could not be sent.
        """
        self._echo = echo = Echo(self.address, channels, next(self._numbers))
        await echo.send()
        return echo

    def returned(self, event: Event) -> None:
        """Note an echo that came back, here or on another channel; only the last one counts."""
        if self._echo is not None and event["number"] == self._echo.number:
            self._echo.returned(event["part"])

    async def hears_itself(self, within: float) -> bool:
        """Find out within so many seconds whether what is sent to this mailbox arrives.

        Raises:
            LayerUnavailable: An echo could not be sent.
        """
        try:
            async with asyncio.timeout(within):
                while not await (await self.echo()).is_back(ECHO_AGAIN_AFTER):
                    pass
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        while True:
            try:
                event = await groups.receive_control(self.address)
                if event.get("type") == groups.ECHO:
                    self.returned(event)
                else:
                    self._events.put_nowait(event)
            except Exception:
                # Neither an event that makes no sense nor a layer that fails makes this program deaf. The
                # pause keeps a layer that fails immediately from filling the log.
                logger.exception("An event from another process could not be read")
                await asyncio.sleep(PAUSE_AFTER_ERROR)
