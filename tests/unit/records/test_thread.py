"""The thread of a ledger."""

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


def test_jobs_run_in_order_and_the_last_one_ends_the_thread() -> None:
    writer, done = Writer("a ledger"), []
    for number in range(100):
        writer.do(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    writer.join(10)
    assert not is_alive(writer)
    assert done == [(number, "a ledger") for number in range(100)]


def test_a_process_exits_although_its_database_hangs() -> None:
    began = time.monotonic()
    assert run(HANGS) == "hangs\n"
    assert time.monotonic() - began < 10


def test_a_write_under_way_is_finished_at_the_exit() -> None:
    assert run(WRITES) == "written\n"


def test_an_unused_writer_has_no_thread() -> None:
    before = threading.active_count()
    writer = Writer("a ledger")
    writer.join(1)
    assert threading.active_count() == before
    assert not is_alive(writer)
