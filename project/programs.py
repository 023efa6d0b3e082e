"""The programs of the Procfile, run by honcho: in parallel, restarted after a kill, stopped in order."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

from honcho import manager, printer, process

#: Seconds from SIGTERM to SIGKILL: for the programs that use Redis, and then for Redis.
PATIENCE = 3.5
PATIENCE_WITH_REDIS = 1.0


#: If a program is killed more often within RESTARTS_WITHIN seconds, it stays down and the others end.
MOST_RESTARTS = 5
RESTARTS_WITHIN = 60.0


class Printer(printer.Printer):
    """A printer that outlives the terminal: an error here would end this process and leave the programs."""

    def write(self, message: printer.Message) -> None:
        with contextlib.suppress(OSError):
            super().write(message)


class Program(process.Process):
    """A program that starts again after a kill, so that you can try `kill -9` and see the result."""

    def __init__(self, *arguments: Any, stopping: Event, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stopping = stopping
        self._ends: list[float] = []

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        again = True
        while again:
            ended = len(self._ends)
            super().run(events, ignore_signals)
            again = len(self._ends) > ended

    def _send_message(self, data: Any, type: str = "line") -> None:
        if type == "stop" and self._starts_again(data["returncode"]):
            self._ends.append(time.monotonic())
            data, type = b"killed; starting again\n", "line"
        super()._send_message(data, type)

    def _starts_again(self, returncode: int) -> bool:
        killed = returncode < 0 and -returncode not in (signal.SIGINT, signal.SIGTERM)
        lately = [end for end in self._ends if end > time.monotonic() - RESTARTS_WITHIN]
        return killed and len(lately) < MOST_RESTARTS and not self._stopping.is_set()


class Manager(manager.Manager):
    """A manager that stops Redis last, because the other programs use it until they end."""

    _terminating: bool

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stopping = multiprocessing.Event()

    def add_program(self, name: str, command: str, env: dict[str, str]) -> None:
        """Add a program. A killed Redis is not restarted and the others end, because they need its data."""
        restarted = functools.partial(Program, stopping=self._stopping)
        self._process_ctor = process.Process if name == "redis" else restarted
        self.add_process(name, command, env=env)

    def terminate(self) -> None:
        # Use a thread: honcho calls this in its signal handler, possibly before every program has a process.
        if not self._terminating:
            self._terminating = True
            self._stopping.set()
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        first = [name for name in self._processes if name != "redis"]
        self._until(self._all_started, PATIENCE)
        self._signal(first, signal.SIGTERM)
        self._until(lambda: self._have_stopped(first), PATIENCE)
        self._signal(first, signal.SIGKILL)
        self._signal(["redis"], signal.SIGTERM)
        self._until(self._all_stopped, PATIENCE_WITH_REDIS)
        self._signal(["redis"], signal.SIGKILL)
        self._until(self._all_stopped, PATIENCE_WITH_REDIS)
        for program in self._processes.values():
            # honcho waits for the end of every program. A missing report of an end must not block it forever.
            program.setdefault("returncode", -signal.SIGKILL)

    def _have_stopped(self, names: list[str]) -> bool:
        return all("returncode" in self._processes[name] for name in names)

    def _signal(self, names: list[str], number: signal.Signals) -> None:
        for name in names:
            program = self._processes.get(name, {})
            if "pid" in program and "returncode" not in program:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program["pid"], number)

    @staticmethod
    def _until(done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            time.sleep(0.02)
