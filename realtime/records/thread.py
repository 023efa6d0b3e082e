"""The thread on which one ledger writes."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable

#: Seconds that a process that exits waits for the write that is under way.
EXIT_WAIT = 3.0

Job = Callable[[], object]


class Writer:
    """A thread that runs jobs in order. The first job starts it.

    The thread is a daemon. Python waits for all other threads before it exits, so a thread that waits for a
    hung database would keep the process alive for ever. A write that is under way gets a moment to finish.

    Args:
        name: The name of the thread.
        exit_wait: Seconds that a process that exits waits for the job that is under way.
    """

    def __init__(self, name: str, exit_wait: float = EXIT_WAIT) -> None:
        self.exit_wait = exit_wait
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, job: Job) -> None:
        """Queue a job, which must not raise."""
        if self._thread is None:
            # The thread refers to the queue and not to this object, which can thereby be garbage-collected
            # without `shut`.
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            _running.add(self)
            self._thread.start()
        self._jobs.put(job)

    def shut(self) -> None:
        """End the thread after the queued jobs."""
        self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """Call `shut`, then wait until the thread has ended, at most `timeout` seconds."""
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
