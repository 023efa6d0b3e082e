"""Wait until a condition is true, with a deadline. Above unit level no test sleeps and hopes."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NeverHappened(AssertionError):
    """The deadline passed. The message has the source of the condition and the last value that was seen."""


class _Attempts:
    """The calls of one check: how many, the last result, and the deadline."""

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
    """Call `check` until it returns a true value, and return that value.

    Args:
        check: Called at least once. An AssertionError means "not yet"; any other exception passes through.
        within: Seconds until the deadline.
        every: Seconds between two calls.

    Raises:
        NeverHappened: The deadline passed.
    """
    attempts = _Attempts(check, within)
    while not attempts.succeeds():
        attempts.give_up_if_late()
        time.sleep(every)
    return attempts.last  # type: ignore[return-value]


async def eventually_async(check: Callable[[], T], *, within: float, every: float = 0.05) -> T:
    """Do the same while the clients of the test go on answering pings; `check` must not block."""
    attempts = _Attempts(check, within)
    while not attempts.succeeds():
        attempts.give_up_if_late()
        await asyncio.sleep(every)
    return attempts.last  # type: ignore[return-value]


async def seconds_until(
    check: Callable[[], object], *, within: float, every: float = 0.05, since: float | None = None
) -> float:
    """Wait as `eventually_async` does, and return how long it took.

    Args:
        since: A time of the monotonic clock from which to count; by default, the time of this call.

    Returns:
        The seconds from `since` until `check` was true.
    """
    began = time.monotonic() if since is None else since
    await eventually_async(check, within=within, every=every)
    return time.monotonic() - began


def _source(check: Callable[[], object]) -> str:
    try:
        return inspect.getsource(check).strip()
    except (OSError, TypeError):
        return repr(check)
