"""Waiting for something to become true, with a deadline: above unit level nothing may sleep and hope."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NeverHappened(AssertionError):
    """The deadline passed; the message says what was awaited and what was seen last."""


class _Attempts:
    """Calls the check, remembers what it saw, and knows when to give up."""

    def __init__(self, check: Callable[[], object], within: float) -> None:
        self.check = check
        self.within = within
        self.count = 0
        self.last: object = None
        self.deadline = time.monotonic() + within

    def succeeds(self) -> bool:
        self.count += 1
        try:
            self.last = self.check()
        except AssertionError as error:
            self.last = error
            return False
        return bool(self.last)

    def give_up_if_late(self) -> None:
        if time.monotonic() > self.deadline:
            raise NeverHappened(
                f"not true within {self.within} s ({self.count} attempts): {_source(self.check)}\n"
                f"  last seen: {self.last!r}"
            )


def eventually(check: Callable[[], T], *, within: float, every: float = 0.05) -> T:
    """Call `check` until it returns something true, and return that.

    An AssertionError inside `check` means "not yet"; any other exception passes through. `within` and `every`
    are seconds; `check` runs at least once. Raises NeverHappened when the time is over.
    """
    attempts = _Attempts(check, within)
    while not attempts.succeeds():
        attempts.give_up_if_late()
        time.sleep(every)
    return attempts.last  # type: ignore[return-value]


async def eventually_async(check: Callable[[], T], *, within: float, every: float = 0.05) -> T:
    """The same for a test whose clients must go on answering pings meanwhile; `check` must not block."""
    attempts = _Attempts(check, within)
    while not attempts.succeeds():
        attempts.give_up_if_late()
        await asyncio.sleep(every)
    return attempts.last  # type: ignore[return-value]


def _source(check: Callable[[], object]) -> str:
    try:
        return inspect.getsource(check).strip()
    except (OSError, TypeError):
        return repr(check)
