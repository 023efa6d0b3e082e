"""The thread of a ledger, whatever its jobs do."""

import subprocess
import sys
import threading
import time

from realtime.records.thread import Writer
from tests.support.assertions.threads import is_alive

HANGS = """
import threading
from realtime.records import thread

hung, job = threading.Event(), threading.Event()
writer = thread.Writer("a ledger", exit_wait=0.2)
writer.do(lambda: (hung.set(), job.wait()))
hung.wait()
print("hangs")
"""

WRITES = """
import threading
from realtime.records import thread

begun, goes_on = threading.Event(), threading.Event()
writer = thread.Writer("a ledger")
writer.do(lambda: (begun.set(), goes_on.wait(), print("written", flush=True)))
begun.wait()
threading.Timer(0.2, goes_on.set).start()
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_jobs_are_done_in_order_and_the_thread_ends_after_the_last() -> None:
    writer, done = Writer("a ledger"), []
    for number in range(100):
        writer.do(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    writer.join(10)
    assert not is_alive(writer)
    assert done == [(number, "a ledger") for number in range(100)]


def test_a_process_whose_database_hangs_exits_all_the_same() -> None:
    began = time.monotonic()
    assert run(HANGS) == "hangs\n"
    assert time.monotonic() - began < 10


def test_a_write_that_is_under_way_at_the_end_is_done() -> None:
    assert run(WRITES) == "written\n"


def test_a_writer_that_was_never_used_has_no_thread() -> None:
    before = threading.active_count()
    writer = Writer("a ledger")
    writer.join(1)
    assert threading.active_count() == before
    assert not is_alive(writer)
