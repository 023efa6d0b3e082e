"""The thread on which one ledger writes."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable

#: Seconds for which a process that exits waits for the write that is under way.
EXIT_WAIT = 3.0

Job = Callable[[], object]


class Writer:
    """A thread that does jobs in order, started with the first of them.

    A daemon: Python waits for all other threads before it exits, and one that waits for a database that
    hangs would keep the process for ever. A write that the database is taking gets a moment to be done.
    """

    def __init__(self, name: str, exit_wait: float = EXIT_WAIT) -> None:
        self.exit_wait = exit_wait
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, job: Job) -> None:
        """Queue a job, which must not raise."""
        if self._thread is None:
            # The thread knows the queue and not this object, which can so be forgotten without being shut.
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            _running.add(self)
            self._thread.start()
        self._jobs.put(job)

    def shut(self) -> None:
        """End the thread when it has done what is queued."""
        self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """`shut`, and wait until the thread has ended, or for `timeout` seconds."""
        self.shut()
        if self._thread is not None:
            self._thread.join(timeout)


_running: weakref.WeakSet[Writer] = weakref.WeakSet()


def _work(jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job()


def _finish() -> None:
    for writer in tuple(_running):
        writer.join(writer.exit_wait)


atexit.register(_finish)
