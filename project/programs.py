"""Run the programs of a Procfile side by side: one output, a restart after a kill, an ordered stop.

No library does all three. honcho restarts nothing, has no order, and leaves programs behind if Ctrl-C comes
while they start. circus goes on without a program that has ended, and needs pyzmq and tornado.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping

#: The others need the data of this program. It stops last. If it is killed, the others end too.
NEEDED = "redis"
#: Seconds that the needed program has from SIGTERM to SIGKILL.
PATIENCE_WITH_NEEDED = 1.0
#: Seconds between a kill and the restart, so that a program that always crashes does not fill the output.
PAUSE = 0.5
#: The most bytes in one line of output.
LONGEST_LINE = 2**24


class Program:
    """One program of the Procfile. It has a session of its own, so Ctrl-C reaches only this process."""

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.running = asyncio.create_task(self._run())

    async def stop(self, patience: float) -> None:
        """Send SIGTERM. If the program still runs after `patience` seconds, send SIGKILL."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        await asyncio.wait({self.running}, timeout=patience)
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.running}, timeout=1.0)

    async def _run(self) -> int:
        """Run the program until it ends, and again if it was killed. Return its exit code."""
        while True:
            code = await self._run_once()
            killed = code < 0 and -code not in (signal.SIGINT, signal.SIGTERM)
            if self._stopping or self.name == NEEDED or not killed:
                self._print(f"ended with exit code {code}")
                return code
            self._print("killed; starting again")
            await asyncio.sleep(PAUSE)

    async def _run_once(self) -> int:
        self._process = process = await asyncio.create_subprocess_shell(
            self._command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=LONGEST_LINE,
        )
        if self._stopping:
            self._signal(signal.SIGTERM)
        if process.stdout is not None:
            async for line in process.stdout:
                self._print(line.decode(errors="replace").rstrip())
        code = await process.wait()
        self._process = None
        return code

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and to the processes that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _print(self, line: str) -> None:
        # If the terminal is gone, an error here must not leave the programs behind.
        with contextlib.suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {self.name:8}| {line}", flush=True)  # noqa: T201 - the output of `make run`


async def run(commands: Mapping[str, str], patience: float = 3.5) -> int:
    """Run all programs until one ends or a signal arrives. Then stop the others.

    Args:
        commands: The command lines by name.
        patience: Seconds that all programs except the needed one have from SIGTERM to SIGKILL.

    Returns:
        The exit code: 0 after SIGINT, SIGTERM or SIGHUP, otherwise that of the program that ended, or 1.
    """
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    programs = [Program(name, command) for name, command in commands.items()]
    waiting = asyncio.create_task(told.wait())
    tasks = {waiting, *(program.running for program in programs)}
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*(program.stop(patience) for program in programs if program.name != NEEDED))
    await asyncio.gather(*(program.stop(PATIENCE_WITH_NEEDED) for program in programs))
    return 0 if waiting in ended else ended.pop().result() or 1
