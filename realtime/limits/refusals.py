"""Log refusals: the first of each kind immediately, and then once a minute how many more there were.

A client that floods a server must not flood its log.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from realtime import addresses, conf, metrics

logger = logging.getLogger("realtime.limits")

#: Seconds for which refusals of one kind are counted together.
WINDOW = 60.0
#: Kinds of refusals that are counted at the same time. Further kinds are counted together, as `OTHERS`.
MAX_KINDS = 1000

K = TypeVar("K", bound=Hashable)


class Tally(Generic[K]):
    """Counts of refusals, by kind. The first one of each kind opens a window of time.

    Args:
        window: The length of a window in seconds.
        size: The largest number of kinds.
        others: The kind under which all are counted that do not fit.
    """

    def __init__(self, window: float, size: int, others: K) -> None:
        self._window = window
        self._size = size
        self._others = others
        # Oldest window first, because every new window is appended.
        self._open: dict[K, tuple[float, int]] = {}

    def note(self, kind: K, now: float) -> K | None:
        """Count a refusal.

        Returns:
            The kind to log now, because this is the first refusal in its window; otherwise None.
        """
        if kind not in self._open and len(self._open) >= self._size:
            kind = self._others
        began, more = self._open.get(kind, (now, -1))
        self._open[kind] = began, more + 1
        return kind if more < 0 else None

    def ended(self, now: float) -> list[tuple[K, int]]:
        """Close the windows that have ended. Return their kinds, each with the refusals after its first."""
        found = []
        while self._open:
            kind, (began, more) = next(iter(self._open.items()))
            if now < began + self._window:
                break
            del self._open[kind]
            if more:
                found.append((kind, more))
        return found

    @property
    def next_end(self) -> float | None:
        """The time at which the next window ends; None if none is open."""
        return next(iter(self._open.values()))[0] + self._window if self._open else None


#: A kind: the setting that is the limit, and the client.
Kind = tuple[str, str]

OTHERS = ("several limits", "many other clients")

_tally: Tally[Kind] = Tally(WINDOW, MAX_KINDS, OTHERS)
_loops_with_timer: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def note(limit: str, subject: str, remedy: str) -> None:
    """Count a refusal in the metrics, and log it unless the same was logged within a minute.

    Args:
        limit: The name of the setting.
        subject: The client, in words for the log.
        remedy: What an operator may do about it.
    """
    metrics.limited.labels(limit=limit).inc()
    kind = _tally.note((limit, subject), time.monotonic())
    if kind is not None:
        logger.warning("Refused %s: %s. %s", kind[1], kind[0], remedy)
        # Synchronous code may check an Origin. Then the next refusal on a loop sets the timer.
        with suppress(RuntimeError):
            _set_timer(asyncio.get_running_loop())


def client_in_words(address: str) -> str:
    """Return the address of a client for a log line, as far as CLIENT_DETAILS allows."""
    return addresses.reduced(address, conf.get().CLIENT_DETAILS) or "a client"


def _set_timer(loop: asyncio.AbstractEventLoop) -> None:
    at = _tally.next_end
    if at is not None and loop not in _loops_with_timer:
        _loops_with_timer.add(loop)
        loop.call_later(max(0.0, at - time.monotonic()), _log_ended, loop)


def _log_ended(loop: asyncio.AbstractEventLoop) -> None:
    _loops_with_timer.discard(loop)
    for (limit, subject), more in _tally.ended(time.monotonic()):
        logger.warning("Refused %s %d more times within %g s: %s", subject, more, WINDOW, limit)
    _set_timer(loop)
