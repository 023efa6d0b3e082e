"""Hand what clients send to their server in turn, and no faster than this process can take it.

A server parses everything that it has read from a socket before it looks at the next one. A few clients that
send thousands of frames would make all others wait. An inflow stands before the parser of one client. It
counts frames by their headers, which costs a hundredth of parsing them. The first frames of a client are
parsed immediately. If it sends many in a short time, the rest waits for its turn, and its socket is read only
now and then.

Private: docs/reference.md lists the public names.
"""

import asyncio
import enum
import time
import weakref
from collections import deque
from typing import Protocol

from realtime.wire.rfc6455 import FrameCounter

#: Seconds between two turns, and the longest turn. Other work waits that long for the clients that wait.
PAUSE, LONGEST_TURN = 0.004, 0.002
#: The share of the time of this process in which the bytes of clients that wait are parsed, at most.
LARGEST_SHARE = 1 / 3
#: The share for clients that have sent much: at first, and at least. Each turn, it grows by `GROWTH`.
FIRST_SHARE, LEAST_SHARE, GROWTH = 0.05, 0.02, 1.25
#: If a turn begins later than this, the process is busy, perhaps with the handlers of what was parsed. Then
#: the share is halved.
LATE = 0.003
#: The bytes of one client that are parsed in one go: about ten of the smallest frames.
SLICE = 256
#: Clients that may wait for their turn before each of them is read only now and then, and the seconds between
#: two reads of one of them then.
CROWD, READ_EVERY = 10, 0.05
#: Seconds between the ends of the pauses of clients above their rates, and how much longer than usual a pause
#: is at most, as a factor. The clients of one attack are above their rates together, and to end them is work.
APART, LONGER = 0.008, 1.5
#: The bytes of a client that was closed that are still parsed. Among them is its close frame.
AFTER_CLOSE = 64 * 1024


class Turn(enum.Enum):
    """When bytes of a client are parsed."""

    NOW = enum.auto()
    SOON = enum.auto()
    """In turn with other clients that have sent a little more than most."""
    IN_TURN = enum.auto()
    """In turn with other clients that have sent much, and more slowly if the process is busy."""
    LATER = enum.auto()
    """After a second in which nothing is read from the client: it sends more than it may."""
    NEVER = enum.auto()
    """Its connection has ended for that."""


class Inlet(Protocol):
    """The transport of a client, as its inflow uses it."""

    @property
    def is_busy(self) -> bool:
        """True if frames of the client are at its handlers, or wait for them."""

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        """Count frames that were read, of which this many bytes wait now, and return when they are parsed."""

    def parse(self, data: bytes) -> object:
        """Have the server parse bytes of the client."""

    def pause_reading(self) -> None:
        """Read nothing from the client until `resume_reading`."""

    def resume_reading(self) -> None:
        """Read from the client again."""


class Inflow:
    """What one client sends.

    Args:
        inlet: The transport of the client.
        rest: Seconds for which nothing is read from a client that sends more than it may.
    """

    __slots__ = ("_above", "_counter", "_held", "_inlet", "_queue", "_rest", "sent_much")

    def __init__(self, inlet: Inlet, rest: float) -> None:
        self._inlet: Inlet | None = inlet
        self._rest = rest
        self._counter = FrameCounter()
        # The bytes that wait for their turn. Most clients never have any.
        self._held: bytearray | None = None
        # The bytes that were above the rate, with the number and the payload of their frames.
        self._above: tuple[bytes, int, int] | None = None
        self._queue: Turnstile | None = None
        self.sent_much = False
        """True if the client has sent much lately."""

    @property
    def waiting(self) -> int:
        """The bytes that wait for their turn."""
        return len(self._held or ())

    def received(self, data: bytes) -> None:
        """Take bytes that were read from the client."""
        if self._above is not None:
            # Read before the pause began.
            self._above = (self._above[0] + data, *self._counted(data, *self._above[1:]))
        else:
            self._take(data, *self._counter.feed(data))

    def began(self, data: bytes) -> None:
        """Note the part of a frame that was read before the first call of `received`."""
        self._counter.feed(data)

    def close(self) -> bytes:
        """Take no more, and return what waits."""
        held = bytes(self._held or b"") + (self._above[0] if self._above is not None else b"")
        if self._above is not None:
            turnstiles().end_rest()
        self._inlet = self._held = self._above = None
        return held

    def _counted(self, data: bytes, frames: int, size: int) -> tuple[int, int]:
        more_frames, more_size = self._counter.feed(data)
        return frames + more_frames, size + more_size

    def _take(self, data: bytes, frames: int, size: int) -> None:
        inlet = self._inlet
        if inlet is None:
            return
        turn = inlet.arrived(frames, size, self.waiting + len(data))
        match turn:
            case Turn.NOW if not self._held:
                inlet.parse(data)
            case Turn.NOW | Turn.SOON | Turn.IN_TURN:
                self.sent_much = turn is Turn.IN_TURN
                if self._hold(data).is_crowded:
                    self._rest_for(READ_EVERY)
            case Turn.LATER:
                self._above = data, frames, size
                self._rest_for(turnstiles().begin_rest(self._rest))
            case Turn.NEVER:
                self.close()

    def _hold(self, data: bytes) -> "Turnstile":
        """Keep bytes until their turn, and return the turnstile at which they wait."""
        if self._held is None:
            self._held = bytearray()
        self._held += data
        if self._queue is None:
            self._queue = turnstiles().of(self)
            self._queue.add(self)
        return self._queue

    def _rest_for(self, seconds: float) -> None:
        if self._inlet is not None:
            self._inlet.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        above, self._above = self._above, None
        if above is not None:
            turnstiles().end_rest()
            self._take(*above)
        if self._inlet is not None and self._above is None:
            self._inlet.resume_reading()

    @property
    def is_busy(self) -> bool:
        """True if frames of the client are at its handlers, or wait for them."""
        return self._inlet is not None and self._inlet.is_busy

    def parse_slice(self) -> None:
        """Have the next bytes parsed."""
        held, inlet = self._held, self._inlet
        if held and inlet is not None:
            data = bytes(memoryview(held)[:SLICE])
            del held[:SLICE]
            inlet.parse(data)
        if not self._held:
            self._held = self._queue = None

    def moves(self) -> bool:
        """Wait at another turnstile if the client has sent much since it began to wait."""
        right = turnstiles().of(self)
        if right is self._queue:
            return False
        self._queue = right
        right.add(self)
        return True


class Turnstile:
    """The inflows of one event loop whose bytes wait. Each has a slice parsed in turn.

    Args:
        most: Clients whose frames are at their handlers at the same time. The handlers of more of them might
            go on together, and all other work would wait for that.
        yields: The share of the time is smaller while the process is busy.
    """

    def __init__(self, *, most: int, yields: bool) -> None:
        self._waiting: deque[Inflow] = deque()
        self._most = most
        self._working: list[Inflow] = []
        """The clients that had their turn, until their handlers are done."""
        self._yields = yields
        self._share = LARGEST_SHARE
        self._credit = 0.0
        """The seconds for which bytes may be parsed now. It is below zero after a slice that took longer."""
        self._last = 0.0
        self._is_running = False

    @property
    def is_crowded(self) -> bool:
        """True if so many clients wait that each is read only now and then."""
        return len(self._waiting) > CROWD

    def add(self, inflow: Inflow) -> None:
        """Have an inflow take its turns until nothing of it waits."""
        self._waiting.append(inflow)
        if not self._is_running:
            loop = asyncio.get_running_loop()
            self._is_running, self._credit, self._last = True, 0.0, loop.time()
            self._share = FIRST_SHARE if self._yields else LARGEST_SHARE
            loop.call_soon(self._take_turns, loop, loop.time())

    def _take_turns(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = loop.time()
        if self._yields:
            late = now - due > LATE
            self._share = (
                max(LEAST_SHARE, self._share / 2) if late else min(LARGEST_SHARE, self._share * GROWTH)
            )
        self._credit = min(LONGEST_TURN, self._credit + (now - self._last) * self._share)
        self._last = now
        self._working = [inflow for inflow in self._working if inflow.is_busy]
        # Each of them once at most.
        for _ in range(len(self._waiting)):
            if self._credit < 0 or len(self._working) >= self._most:
                break
            inflow = self._waiting.popleft()
            if not inflow.is_busy:
                began = time.perf_counter()
                inflow.parse_slice()
                self._credit -= time.perf_counter() - began
                self._working.append(inflow)
            if inflow.waiting and not inflow.moves():
                self._waiting.append(inflow)
        self._is_running = bool(self._waiting)
        if self._is_running:
            due = loop.time() + PAUSE
            loop.call_at(due, self._take_turns, loop, due)


class Turnstiles:
    """The two turnstiles of one event loop, and the pauses of clients above their rates.

    After a restart, thousands of honest clients join their groups again. They send a little more than usual.
    They must not wait behind a flood, nor as long as one.
    """

    def __init__(self) -> None:
        self._little = Turnstile(most=20, yields=False)
        self._much = Turnstile(most=5, yields=True)

        self._resting = 0

    def begin_rest(self, seconds: float) -> float:
        """Return the seconds for which nothing is read from a client above its rate.

        Args:
            seconds: The pause if no other client is above its rate.
        """
        longer = min(seconds * LONGER, self._resting * APART)
        self._resting += 1
        return seconds + longer

    def end_rest(self) -> None:
        """Note that the pause of a client is over."""
        self._resting -= 1

    def of(self, inflow: Inflow) -> Turnstile:
        """Return the turnstile at which an inflow waits."""
        return self._much if inflow.sent_much else self._little


_turnstiles: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turnstiles] = weakref.WeakKeyDictionary()


def turnstiles() -> Turnstiles:
    """Return the turnstiles of this event loop."""
    loop = asyncio.get_running_loop()
    if (found := _turnstiles.get(loop)) is None:
        found = _turnstiles[loop] = Turnstiles()
    return found


class Rest:
    """What a client still sends after it was closed: some bytes are parsed, because of its close frame."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = AFTER_CLOSE

    def takes(self, data: bytes) -> bool:
        """Return True if these bytes are to be parsed."""
        self._left -= len(data)
        return self._left >= 0
