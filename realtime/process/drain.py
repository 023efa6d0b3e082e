"""The drain: the planned stop of this process, and its time limit.

The drain runs before the server's own shutdown, because no server ends its connections properly. Daphne
cancels consumers, waits for the first only and sends no close frame; if a connection is younger than a
second, it raises KeyError. uvicorn closes with 1012. hypercorn closes with 1011,
granian without a close frame. The server's own shutdown stays in place. The drain is
started

- on Daphne: by a trigger of the Twisted reactor before its shutdown, which waits for the trigger's Deferred;
- on uvicorn: by a wrapper around its `Server.shutdown`;
- on a server that handles SIGTERM on asyncio's own loop (granian, and hypercorn without workers): by that
  handler, which the server's own one follows when the drain has ended;
- on hypercorn: by its event `terminated`, which a connection leads to;
- on any server with the lifespan protocol: by `lifespan.shutdown`, which comes when the server has ended its
  connections. The server then waits until the drain is recorded;
- in any process, at its exit: then the drain does what is still possible while the loop runs on in another
  thread. `runserver` with autoreload gives no other notice.

Anything that is not done in time stays on the to-do list in the database, as after a crash.
"""

import asyncio
import atexit
import functools
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from realtime import conf
from realtime.process import tasks

logger = logging.getLogger("realtime.process")

#: Seconds, after everything is recorded, for sockets to take their close frames and for peers to answer them.
#: Bytes that a server has buffered are lost when the process ends.
LINGER = 0.3
#: Seconds for the drain at the exit of a process if its server gives no notice. A reload waits for them.
EXIT_TIMEOUT = 2.0
#: Seconds for which hanging threads may delay the exit of a process that has stopped.
THREADS_TIMEOUT = 1.0
#: The exit code of a process that hanging threads delayed.
THREADS_HUNG = 1
#: Seconds between two checks for a second Ctrl-C on uvicorn.
FORCE_EXIT_POLL = 0.1

#: Evicts every connection before it returns. The returned coroutine ends when all of that is recorded.
Begin = Callable[[], Coroutine[Any, Any, None]]


class Drain:
    """The drain of one event loop. It happens once.

    Args:
        begin: Evicts every connection before it returns. The returned coroutine ends when all of that is
            recorded.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._ending: asyncio.Task[None] | None = None
        self._ended = threading.Event()

    @property
    def begun(self) -> bool:
        """True once the drain has been started."""
        return self._ending is not None

    def start(self) -> asyncio.Task[None]:
        """Evict every connection immediately.

        Returns:
            A task that ends when the evictions are recorded, or after DRAIN_TIMEOUT. A second call returns
            the same task.
        """
        if self._ending is None:
            logger.info("This process is told to stop")
            try:
                recording = self._begin()
            except Exception:
                # The server waits for this drain before it stops. So the drain must end after any failure.
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
        """Drain a loop that still runs in another thread, when the interpreter ends in the main thread."""
        if self.begun or not loop.is_running():
            return
        loop.call_soon_threadsafe(self.start)
        self._ended.wait(EXIT_TIMEOUT)


#: The drain of each event loop. Nothing in a drain may refer to its loop, or the loop would be kept for ever.
_drains: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Drain] = weakref.WeakKeyDictionary()
#: The event loops with a task that waits until the server says that it stops.
_waiting: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def prepare(begin: Begin) -> None:
    """Have `begin` called when the process of this event loop is told to stop. Later calls change nothing."""
    loop = asyncio.get_running_loop()
    if loop in _drains:
        return
    drain = _drains[loop] = Drain(begin)
    # Now, and not when this module is loaded: exit functions run in reverse order, so this one runs before
    # that of the threads that write records.
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    if not (_hook_twisted(drain) or _hook_uvicorn(drain)):
        _hook_signals(loop, drain)


async def finish() -> None:
    """Start the drain of the running event loop if it has not begun, and wait for its end."""
    drain = _drains.get(asyncio.get_running_loop())
    if drain is not None:
        await drain.start()
        _end_without_threads()


def begin_after(stopping: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Start the drain of the running event loop as soon as the server says that it stops.

    Args:
        stopping: Returns a coroutine that ends when the server begins to stop. It is called once.
    """
    loop = asyncio.get_running_loop()
    if loop not in _waiting:
        _waiting.add(loop)
        tasks.start(_begin_after(stopping()))


async def _begin_after(stopping: Coroutine[Any, Any, object]) -> None:
    await stopping
    drain = _drains.get(asyncio.get_running_loop())
    if drain is not None:
        drain.start()


def under_way() -> bool:
    """Return True if the process of the running event loop was told to stop."""
    drain = _drains.get(asyncio.get_running_loop())
    return drain is not None and drain.begun


# -- Daphne ----------------------------------------------------------------------------------------


def _hook_twisted(drain: Drain) -> bool:
    """Have the Twisted reactor start the drain before its shutdown. Return False if this loop is not its own.

    Twisted is taken from the loaded modules. It may not be installed, and an import would install a reactor.
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

    # It fires after Daphne's own trigger, in the same iteration of the loop. So every connection is evicted,
    # with the true reason, before the tasks that Daphne has cancelled run.
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    return True


# -- uvicorn ---------------------------------------------------------------------------------------


def _hook_uvicorn(drain: Drain) -> bool:
    """Have uvicorn's shutdown start the drain and wait for it. Return False if uvicorn does not serve here.

    The server is found by its signal handler. The handler of another program is left alone. Outside the main
    thread uvicorn sets no handler and is not found.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not type(server).__module__.startswith("uvicorn."):
        return False
    shutdown = server.shutdown

    async def drain_first(*arguments: Any, **options: Any) -> None:
        ending = drain.start()
        # A second Ctrl-C sets `force_exit`: do not wait.
        while not (ending.done() or server.force_exit):
            await asyncio.wait([ending], timeout=FORCE_EXIT_POLL)
        _end_without_threads()
        await shutdown(*arguments, **options)

    server.shutdown = drain_first
    return True


# -- other servers on asyncio's own loop -----------------------------------------------------------


def _hook_signals(loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
    """Have SIGTERM and SIGINT start the drain, and the server's own handlers follow it.

    Only handlers that the server has set with `loop.add_signal_handler` are replaced. uvloop does not tell
    them. There the drain starts before them, and they do not wait for it.
    """
    handlers: dict[int, asyncio.Handle] = getattr(loop, "_signal_handlers", None) or {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handle: Any = handlers.get(number)
        call, arguments = getattr(handle, "_callback", None), getattr(handle, "_args", ())
        if call is not None:
            loop.add_signal_handler(number, _drain_then, drain, functools.partial(call, *arguments))
        elif getattr(signal.getsignal(number), "__self__", None) is loop:
            _drain_before(number, loop, drain)


def _drain_then(drain: Drain, handle: Callable[[], object]) -> None:
    # Each signal is passed on, but not before the drain has ended. A worker may get a second signal: one from
    # its parent and one from the service manager.
    def ended(_: asyncio.Task[None]) -> None:
        _end_without_threads()
        handle()

    drain.start().add_done_callback(ended)


def _drain_before(number: int, loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
    before: Any = signal.getsignal(number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        # The loop runs this before the handler of the signal, of which it learns by its wakeup descriptor.
        loop.call_soon_threadsafe(drain.start)
        before(number, frame)

    signal.signal(number, on_signal)
    signal.siginterrupt(number, False)


# -- the exit --------------------------------------------------------------------------------------


def _at_exit() -> None:
    for loop, drain in list(_drains.items()):
        drain.at_exit(loop)


def _end_without_threads() -> None:
    """Limit the time for which hanging threads delay the exit of the interpreter.

    At its exit the interpreter waits without limit for each thread of each executor. A thread that waits for
    a hung database never ends. The process would need a SIGKILL.
    """
    threading.Thread(target=_watch_the_exit, name="realtime-exit", daemon=True).start()


def _watch_the_exit() -> None:
    probe = ThreadPoolExecutor(max_workers=1, thread_name_prefix="realtime-exit")
    try:
        while True:
            # An executor refuses work as soon as the interpreter ends.
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
