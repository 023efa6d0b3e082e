"""Find out if gevent or eventlet has patched this process, and hide the differences between the two.

Both replace parts of the standard library, so that `threading.Thread` starts a greenlet and a socket that
waits lets other greenlets run. This module does not import them. So a process that does not use them pays
nothing.
"""

import asyncio
import importlib
import sys
from types import FrameType
from typing import Any, Protocol


class Library(Protocol):
    """A library that runs greenlets, with the operations that this package needs."""

    name: str

    def original(self, module: str, attribute: str) -> Any:
        """Return an attribute of a module of the standard library as it was before the patch."""

    def wait_readable(self, fileno: int, timeout: float) -> None:
        """Let other greenlets run until the file descriptor can be read.

        Raises:
            TimeoutError: The descriptor could not be read within `timeout` seconds.
        """

    def in_hub(self) -> bool:
        """Return True if the caller is a callback of the hub, and so must not wait."""


class Gevent:
    """gevent, after `gevent.monkey.patch_all()`."""

    name = "gevent"

    def original(self, module: str, attribute: str) -> Any:
        return importlib.import_module("gevent.monkey").get_original(module, attribute)

    def wait_readable(self, fileno: int, timeout: float) -> None:
        importlib.import_module("gevent.socket").wait_read(fileno, timeout, TimeoutError("timed out"))

    def in_hub(self) -> bool:
        gevent = importlib.import_module("gevent")
        return gevent.getcurrent() is gevent.get_hub()


class Eventlet:
    """eventlet, after `eventlet.monkey_patch()`."""

    name = "eventlet"

    def original(self, module: str, attribute: str) -> Any:
        return getattr(importlib.import_module("eventlet.patcher").original(module), attribute)

    def wait_readable(self, fileno: int, timeout: float) -> None:
        hubs = importlib.import_module("eventlet.hubs")
        hubs.trampoline(fileno, read=True, timeout=timeout, timeout_exc=TimeoutError)

    def in_hub(self) -> bool:
        hub = importlib.import_module("eventlet.hubs").get_hub()
        return importlib.import_module("eventlet").getcurrent() is hub.greenlet


_GEVENT, _EVENTLET = Gevent(), Eventlet()


def patched() -> Library | None:
    """Return the library that has patched this process, or None.

    Every call checks again, because gunicorn and Celery may patch after this package was imported.
    """
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and (gevent.is_module_patched("threading") or gevent.is_module_patched("socket")):
        return _GEVENT
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and (
        eventlet.is_monkey_patched("thread") or eventlet.is_monkey_patched("socket")
    ):
        return _EVENTLET
    return None


#: An asyncio loop calls every callback, and every step of a task, from this function.
_STEP = asyncio.Handle._run.__code__


def runs_below_a_loop() -> bool:
    """Return True if an event loop called the caller, so that a blocking call would block that loop.

    asyncio keeps the running loop by OS thread, and all greenlets of a thread share it. So asyncio also
    reports a loop that runs in another greenlet. Only the caller's own stack distinguishes the two.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    if patched() is None:
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _STEP:
            return True
        frame = frame.f_back
    return False
