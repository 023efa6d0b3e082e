"""An event loop in a thread of its own, on which synchronous code of this process runs coroutines.

If gevent or eventlet has patched the process, the thread is still a native one, and a caller that waits lets
other greenlets run. A patched thread would be a greenlet of the caller's own thread.
"""

import _socket
import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from realtime.errors import RealtimeError
from realtime.process import greenlets
from realtime.process.greenlets import Library
from realtime.process.native_loop import NativeLoop

#: Seconds that a caller waits. The coroutines of this package have shorter limits of their own.
CALL_TIMEOUT = 10.0
#: Seconds that `stop`, and so the exit of the process, waits while the loop closes its connections.
STOP_TIMEOUT = 1.0

Result = TypeVar("Result")


def require_blocking(name: str, alternative: str) -> None:
    """Check that the caller may wait.

    Args:
        name: The name of the function that it called.
        alternative: The name of the function for coroutines.

    Raises:
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    if greenlets.runs_below_a_loop():
        raise RealtimeError(
            f"{name}() would block the event loop that is running here; use `await {alternative}(…)`."
        )
    library = greenlets.patched()
    if library is not None and library.in_hub():
        raise RealtimeError(
            f"{name}() would block every greenlet, because it was called in a callback of {library.name}'s "
            f"hub; use `{library.name}.spawn({name}, …)`."
        )


def may_lock() -> bool:
    """Return False on the background loop of a process that gevent or eventlet has patched.

    Locks that they have patched, such as those of the metrics, do not work between native threads.
    """
    return not isinstance(asyncio._get_running_loop(), NativeLoop)


class BackgroundLoop:
    """The loop of this process, started for the first call and stopped when the process exits.

    A call costs 0.05 ms. `async_to_sync` makes a new loop and a new Redis connection for each call, which
    costs 2.5 ms.
    """

    def __init__(self) -> None:
        # One for each library, because gunicorn may patch a process that has published already.
        self._threads: dict[str, _Thread] = {}
        self._of_parents: list[dict[str, _Thread]] = []
        os.register_at_fork(after_in_child=self._forget_the_parents_loops)
        atexit.register(self.stop)

    def run(self, call: Coroutine[Any, Any, Result], within: float = CALL_TIMEOUT) -> Result:
        """Run a coroutine on the loop and wait for its result.

        Args:
            call: The coroutine. It is cancelled if the caller stops waiting.
            within: Seconds to wait.

        Returns:
            The result of the coroutine. An exception of the coroutine is raised.

        Raises:
            TimeoutError: The coroutine has not ended in time.
            OSError: No thread can be started, or the process is exiting.
        """
        library = greenlets.patched()
        try:
            thread = self._running(library)
        except BaseException:
            call.close()
            raise
        if library is None:
            return _wait(call, thread.loop, within)
        return _wait_cooperatively(call, thread.loop, library, within)

    def stop(self) -> None:
        """Stop the loop and close its connections. The next call starts a new loop.

        A loop from before the patch runs on: at its end, its thread would look for itself among greenlets.
        """
        thread = self._threads.pop(_key(greenlets.patched()), None)
        if thread is not None:
            thread.stop()

    def _forget_the_parents_loops(self) -> None:
        """Make a child process start a loop of its own, because the threads of its parent do not run in it.

        The child keeps the parent's loops. If it deleted them, they would close sockets that it shares with
        its parent.
        """
        self._of_parents.append(self._threads)
        self._threads = {}

    def _running(self, library: Library | None) -> "_Thread":
        key = _key(library)
        running = self._threads.get(key)
        if running is not None:
            return running
        made = _Thread(library)
        # Without a lock, because a patched lock is not safe between native threads. If two callers get here,
        # the second uses the loop of the first.
        running = self._threads.setdefault(key, made)
        if running is not made:
            made.loop.close()
            return running
        try:
            made.start()
        except RuntimeError as error:
            del self._threads[key]
            made.loop.close()
            raise OSError(str(error)) from error
        return made


def _key(library: Library | None) -> str:
    return library.name if library is not None else ""


class _Thread:
    """A native thread and the loop that it runs."""

    def __init__(self, library: Library | None) -> None:
        self._library = library
        if library is None:
            self.loop = asyncio.new_event_loop()
            self._ended = threading.Lock()
        else:
            self.loop = NativeLoop(
                library.original("select", "poll")(), library.original("_thread", "start_new_thread")
            )
            self._ended = library.original("_thread", "allocate_lock")()
        self._ended.acquire()

    def start(self) -> None:
        if self._library is None:
            threading.Thread(target=self._serve, name="realtime-publish", daemon=True).start()
        else:
            self._library.original("_thread", "start_new_thread")(self._serve, ())

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._ended.acquire(timeout=STOP_TIMEOUT)

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks) if tasks else asyncio.sleep(0))
            # The layers of channels_redis close their connections with the loop.
            self.loop.close()
        finally:
            self._ended.release()


def _wait(call: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop, within: float) -> Result:
    future = asyncio.run_coroutine_threadsafe(call, loop)
    try:
        return future.result(within)
    except BaseException:
        future.cancel()
        raise


def _wait_cooperatively(
    call: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop, library: Library, within: float
) -> Result:
    """Wait on a file descriptor, the only way to wait for another native thread that both libraries have.

    The caller reads one end of a pair of sockets, and the loop closes the other end. So each end is closed by
    its own thread, and a caller that stops waiting disturbs nothing.
    """
    try:
        ours, theirs = _socket.socketpair()
    except OSError:
        call.close()
        raise
    started: list[asyncio.Task[Result]] = []
    left = False

    def start() -> None:
        if left:
            call.close()
            theirs.close()
        else:
            # Nothing here depends on the moment at which the task begins.
            task = loop.create_task(call)
            started.append(task)
            task.add_done_callback(end)

    def end(task: asyncio.Task[Result]) -> None:
        if not task.cancelled():
            # The caller may have stopped waiting, and asyncio logs an exception that was never retrieved.
            task.exception()
        theirs.close()

    def leave() -> None:
        for task in started:
            task.cancel()

    try:
        _submit(start, call, loop, theirs)
        try:
            library.wait_readable(ours.fileno(), within)
        except BaseException as error:
            left = True
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(leave)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"the background loop has not answered within {within:g} s") from None
            raise
    finally:
        ours.close()
    try:
        return started[0].result()
    except asyncio.CancelledError:
        raise ConnectionAbortedError("the process is exiting") from None


def _submit(
    start: Callable[[], None],
    call: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    theirs: _socket.socket,
) -> None:
    try:
        loop.call_soon_threadsafe(start)
    except RuntimeError as error:
        call.close()
        theirs.close()
        raise ConnectionAbortedError("the process is exiting") from error


#: The loop for all functions of this package that synchronous code calls. They share connections to Redis.
shared = BackgroundLoop()
