"""gevent and eventlet: whether one of them has patched this process, and what differs between the two.

Both replace parts of the standard library, so that `threading.Thread` starts a greenlet and a socket that
waits lets other greenlets run. Neither is imported here: a process that does not use them pays nothing.
"""

import asyncio
import importlib
import sys
from types import FrameType
from typing import Any, Protocol


class Library(Protocol):
    """One way to run concurrent code in this process."""

    name: str

    def original(self, module: str, attribute: str) -> Any:
        """Return this attribute of a module of the standard library as it was before the patch."""

    def wait_readable(self, fileno: int, timeout: float) -> None:
        """Let other greenlets run until the file descriptor can be read.

        Raises:
            TimeoutError: It cannot be read after `timeout` seconds.
        """

    def in_hub(self) -> bool:
        """Return whether the caller is a callback of the hub, and so must not wait."""


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

    Look at each call: gunicorn and Celery may patch after this package was imported.
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


#: Every callback and every step of a task of an asyncio loop runs below this function.
_STEP = asyncio.Handle._run.__code__


def runs_below_a_loop() -> bool:
    """Return whether the caller is code of an event loop, which a call that waits would block.

    asyncio keeps the running loop by OS thread, and all greenlets of a thread share it. So it also finds a
    loop that runs in another greenlet. Only the caller's own stack tells the two apart.
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
