"""The planned stop of this process: how it hears of one, and how long it may take.

Whoever is to be stopped is told before the server closes anything, because a server that stops cannot be
trusted with its connections: Daphne cancels consumers, waits for the first only and sends no close frame,
or raises KeyError when a connection is younger than a second; uvicorn closes with 1012. Each of the ways to
hear of a stop leaves the server's own in place:

- Daphne: a trigger of the Twisted reactor before its shutdown, which waits for the Deferred that it gets;
- uvicorn: in front of its `Server.shutdown`;
- any process, at its exit: what can still be done while the loop runs on in another thread, as under
  `runserver` with autoreload, which tells nobody else.

What is not done in time is on the to-do list in the database, like everything after a crash.
"""

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from realtime import conf
from realtime.process import tasks

logger = logging.getLogger("realtime.drain")

#: Seconds for which sockets may still take their close frames, and peers answer them, once all is recorded:
#: what a server has buffered dies with it.
LINGER = 0.3
#: Seconds at the exit of a process whose server has no stop of its own; a reload waits for them.
EXIT_TIMEOUT = 2.0
#: Seconds that threads which hang may keep a process that has stopped.
THREADS_TIMEOUT = 1.0
#: The exit code of a process that was kept by threads which hang.
THREADS_HUNG = 1
#: Seconds between two looks whether uvicorn was told to wait for nothing.
FORCE_EXIT_POLL = 0.1

#: Evicts every connection before it returns; what it returns ends when all that is recorded.
Begin = Callable[[], Coroutine[Any, Any, None]]


class Drain:
    """The stop of one event loop, which happens once."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._ending: asyncio.Task[None] | None = None
        self._ended = threading.Event()

    @property
    def begun(self) -> bool:
        return self._ending is not None

    def start(self) -> asyncio.Task[None]:
        """Evict every connection, at once; the task ends when that is recorded, or DRAIN_TIMEOUT is over.

        Called again, it returns the same task.
        """
        if self._ending is None:
            logger.info("This process is told to stop")
            try:
                recording = self._begin()
            except Exception:
                # The server waits for this before it stops, so it must go on, whatever fails here.
                logger.exception("Stopping failed; rounds will do what is left")
                recording = asyncio.sleep(0)
            self._ending = tasks.create(self._end(recording))
        return self._ending

    async def _end(self, recording: Coroutine[Any, Any, None]) -> None:
        clock, limit = asyncio.get_running_loop().time, conf.get().DRAIN_TIMEOUT
        began = clock()
        try:
            async with asyncio.timeout(limit):
                await recording
                await asyncio.sleep(LINGER)
            logger.info("The stop is recorded after %.1f s", clock() - began)
        except TimeoutError:
            logger.error("Stopping took longer than %s s; rounds will do what is left", limit)
        except Exception:
            logger.exception("Stopping failed; rounds will do what is left")
        finally:
            self._ended.set()

    def at_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called in the main thread when the interpreter ends; the loop may still run in another one."""
        if self.begun or not loop.is_running():
            return
        loop.call_soon_threadsafe(self.start)
        self._ended.wait(EXIT_TIMEOUT)


#: By event loop, to which nothing in here may refer, or it would be kept for ever.
_drains: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Drain] = weakref.WeakKeyDictionary()


def prepare(begin: Begin) -> None:
    """Have `begin` called when the process of this event loop is told to stop; the first call counts."""
    loop = asyncio.get_running_loop()
    if loop in _drains:
        return
    drain = _drains[loop] = Drain(begin)
    # Now, and not when this module is loaded: what is registered last runs first, and the threads that write
    # records have an exit of their own.
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    if not _hook_twisted(drain):
        _hook_uvicorn(drain)


def under_way() -> bool:
    """Whether the process of the running event loop has been told to stop."""
    drain = _drains.get(asyncio.get_running_loop())
    return drain is not None and drain.begun


# -- Daphne ----------------------------------------------------------------------------------------


def _hook_twisted(drain: Drain) -> bool:
    """Whether this loop is the running Twisted reactor's, which will then tell us before its shutdown.

    Twisted is looked for among what is loaded: it may not be installed, and `import` would install a reactor.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    threads: Any = sys.modules.get("twisted.python.threadable")
    deferreds: Any = sys.modules.get("twisted.internet.defer")
    if reactor is None or not (reactor.running and threads.isInIOThread()):
        return False

    def stop() -> Any:
        ended = deferreds.Deferred.fromFuture(drain.start())
        _end_without_threads()
        return ended

    # Fires after Daphne's own trigger and in the same loop turn: the tasks that it has cancelled do not run
    # before every connection is evicted, for the reason that is true.
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    return True


# -- uvicorn ---------------------------------------------------------------------------------------


def _hook_uvicorn(drain: Drain) -> None:
    """Where uvicorn serves this process, have its own shutdown wait for the drain, whatever it stops for.

    The server is found by the handler that it has set for signals; another program's is left alone. In any
    thread but the main one uvicorn sets none, and is not found.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not type(server).__module__.startswith("uvicorn."):
        return
    shutdown = server.shutdown

    async def drain_first(*arguments: Any, **options: Any) -> None:
        ending = drain.start()
        # Set by a second Ctrl-C, which means "now".
        while not (ending.done() or server.force_exit):
            await asyncio.wait([ending], timeout=FORCE_EXIT_POLL)
        _end_without_threads()
        await shutdown(*arguments, **options)

    server.shutdown = drain_first


# -- the exit --------------------------------------------------------------------------------------


def _at_exit() -> None:
    for loop, drain in list(_drains.items()):
        drain.at_exit(loop)


def _end_without_threads() -> None:
    """Let threads that hang keep the interpreter from its end only so long.

    At its exit it waits without limit for each thread of each executor, and one that waits for a database
    which hangs never ends: the process would need a SIGKILL.
    """
    threading.Thread(target=_watch_the_exit, name="realtime-exit", daemon=True).start()


def _watch_the_exit() -> None:
    probe = ThreadPoolExecutor(max_workers=1, thread_name_prefix="realtime-exit")
    try:
        while True:
            # Refused from the moment at which the interpreter ends.
            probe.submit(int).result()
            time.sleep(0.1)
    except RuntimeError:
        time.sleep(THREADS_TIMEOUT)
    others = [each for each in threading.enumerate() if each is not threading.main_thread()]
    hung = [thread.name for thread in others if not thread.daemon]
    if not hung:
        return
    logger.error("These threads hang, and are left to the operating system: %s", ", ".join(hung))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(THREADS_HUNG)
