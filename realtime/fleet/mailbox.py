"""A channel on which a program receives messages of other processes, and a check that it receives anything.

Messages of groups never come here, so a question, a kick or an echo does not wait behind them. A process that
is behind with the messages of groups still answers (decision 17).
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from realtime import metrics
from realtime.errors import BadMessage
from realtime.layers import groups, messages
from realtime.layers.messages import Control, EchoPart, GroupMessage
from realtime.process import tasks
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.fleet")

#: Seconds until reading goes on after an event that could not be read.
PAUSE_AFTER_ERROR = 0.05
#: Seconds within which a program must hear itself: a process that starts, or one that a probe asks.
HEARING_TIMEOUT = 2.0
#: Seconds between two echoes of `hears_itself`. A SUBSCRIBE that was sent may not be active yet.
ECHO_AGAIN_AFTER = 0.1


class Echo:
    """Messages that a program sends to itself, one part over each connection on which it receives.

    Args:
        address: The address of the program's mailbox.
        channels: Other channels from which the program receives.
        number: The number of the echo.
    """

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
            LayerUnavailable: A part could not be sent. This says nothing about receiving.
        """
        self._parts = await groups.echo(self._address, self._channels, self.number)

    def returned(self, part: int) -> None:
        """Note that a part came back."""
        self._back.add(part)
        self._news.set()

    @property
    def missing(self) -> set[int]:
        """The parts that have not come back yet."""
        return set(range(self._parts)) - self._back

    async def is_back(self, patience: float, *, busy: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all parts are back.

        Args:
            patience: Seconds within which each connection that still owes a part must bring a message. A part
                may wait behind other messages; it is not given up while these arrive.
            busy: Returns True while the program handles a message, for which all others wait.

        Returns:
            True if all parts came back. False if one of the connections brought nothing for this long.
        """
        while True:
            before = groups.received(self._address, self._channels)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    while self.missing:
                        self._news.clear()
                        await self._news.wait()
            if not self.missing:
                return True
            now = groups.received(self._address, self._channels)
            if not busy() and any(now[part] == before[part] for part in self.missing):
                return False


class Mailbox:
    """A channel of this program, which a task reads from `open` to `close`.

    Messages that arrive before `listen` wait for it. An event that is no message is logged once for each type
    and dropped.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        """The address under which other processes reach the mailbox."""
        self._take: Callable[[Control], object] | None = None
        self._waiting: list[Control] = []
        self._echo: Echo | None = None
        self._numbers = itertools.count(1)
        self._logged: set[str] = set()
        self.reading = tasks.create(self._read(), name="realtime mailbox")

    @classmethod
    async def open(cls, address: str | None = None) -> Self:
        """Open a mailbox.

        Args:
            address: The address of this server process; None for a program that has no channel.

        Raises:
            LayerUnavailable: The channel could not be opened.
        """
        address = groups.new_control() if address is None else address
        await groups.open_control(address)
        return cls(address)

    def listen(self, take: Callable[[Control], object]) -> None:
        """Pass every message from other processes to `take`. If it raises, the error is logged."""
        self._take = take
        while self._waiting:
            self._deliver(self._waiting.pop(0))

    async def close(self) -> None:
        """Stop reading."""
        self.reading.cancel()
        await asyncio.wait([self.reading])

    async def echo(self, *channels: str) -> Echo:
        """Send an echo to this mailbox, and to these other channels of this program.

        Raises:
            LayerUnavailable: It could not be sent.
        """
        self._echo = echo = Echo(self.address, channels, next(self._numbers))
        await echo.send()
        return echo

    async def missing_parts(
        self, *channels: str, patience: float, busy: Callable[[], bool] = lambda: False
    ) -> set[int]:
        """Send an echo and wait until it is back.

        Args:
            *channels: As for `echo`.
            patience: As for `Echo.is_back`.
            busy: As for `Echo.is_back`.

        Returns:
            The parts that did not come back: their connections carry nothing.

        Raises:
            LayerUnavailable: The echo could not be sent.
        """
        echo = await self.echo(*channels)
        await echo.is_back(patience, busy=busy)
        return echo.missing

    def returned(self, echo: EchoPart) -> None:
        """Note a part of an echo that came back, here or on another channel. Only the last echo counts."""
        if self._echo is not None and echo.number == self._echo.number:
            self._echo.returned(echo.part)

    async def hears_itself(self, within: float = HEARING_TIMEOUT) -> bool:
        """Return True if an echo to this mailbox comes back in time.

        Args:
            within: Seconds for which echoes are sent.

        Raises:
            LayerUnavailable: An echo could not be sent.
        """
        try:
            async with asyncio.timeout(within):
                while await self.missing_parts(patience=ECHO_AGAIN_AFTER):
                    pass
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        while True:
            try:
                self._sort(await groups.receive_control(self.address))
            except Exception:
                # A failing layer must not end the reading. The pause keeps a layer that fails immediately
                # from filling the log.
                logger.exception("An event from another process could not be read")
                await asyncio.sleep(PAUSE_AFTER_ERROR)

    def _sort(self, event: Event) -> None:
        if event.get("type") != messages.ECHO:
            self._count(event.get("type", ""))
        try:
            message = messages.decode(event)
        except BadMessage as error:
            if (kind := repr(event.get("type"))) not in self._logged:
                self._logged.add(kind)
                logger.error("%s", error)
            return
        match message:
            case EchoPart():
                self.returned(message)
            case GroupMessage():
                # It goes to groups only, and no mailbox is in a group.
                pass
            case _ if self._take is None:
                self._waiting.append(message)
            case _:
                self._deliver(message)

    def _count(self, kind: str) -> None:
        metrics.events.labels(type=kind).inc()

    def _deliver(self, message: Control) -> None:
        assert self._take is not None, "messages wait until there is a listener"  # noqa: S101
        try:
            self._take(message)
        except Exception:
            # A message that cannot be handled must not end the reading.
            logger.exception(
                "A message from another process could not be handled: %s", type(message).__name__
            )
