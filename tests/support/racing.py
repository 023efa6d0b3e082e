"""Run the same work in several threads, or several processes, at the same moment."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

import django
from django.db import connections

T = TypeVar("T")


def race(*calls: Callable[[], T]) -> list[T]:
    """Call each in its own thread, all together. Return the results in order; raise what a call raised."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        try:
            start.wait(timeout=30)
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(run, call) for call in calls]]


def race_processes(count: int, call: Callable[[], T]) -> list[T]:
    """Call a function of a module in `count` new processes that use the test's database."""
    name = str(connections["default"].settings_dict["NAME"])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_join_test, initargs=(name,)
    ) as processes:
        return [future.result() for future in [processes.submit(call) for _ in range(count)]]


def _join_test(database: str) -> None:
    django.setup()
    connections["default"].settings_dict["NAME"] = database
