"""Tests of `project.programs`: how several programs start, restart and stop together."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from project import programs
from tests.support.assertions.eventually import eventually_async

SLEEPS = "exec sleep 60"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the programs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def stopped(commands: dict[str, str], *files: str, patience: float = 3.5) -> int:
    """Run the programs, send SIGTERM when they have made the files, and return the exit code."""
    running = asyncio.create_task(programs.run(commands, patience))
    await asyncio.sleep(0)  # now SIGTERM has a handler
    try:
        await eventually_async(lambda: all(Path(file).exists() for file in files), within=10, every=0.01)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        code = await running
    return code


async def test_each_line_has_the_time_and_the_name(capfd: pytest.CaptureFixture[str]) -> None:
    await programs.run({"first": "echo one; echo two >&2"})

    first, second, _ = capfd.readouterr().out.splitlines()
    assert (first[8:], second[8:]) == (" first   | one", " first   | two")
    assert first[2] == first[5] == ":"


async def test_a_long_line_stays_whole(capfd: pytest.CaptureFixture[str]) -> None:
    await programs.run({"first": "head -c 200000 /dev/zero | tr '\\0' x"})

    assert "x" * 200_000 in capfd.readouterr().out


async def test_a_program_that_ends_stops_the_others() -> None:
    assert await programs.run({"first": "exit 3", "second": SLEEPS}) == 3
    assert await programs.run({"first": "exit 0", "second": SLEEPS}) == 1


async def test_a_killed_program_starts_again(capfd: pytest.CaptureFixture[str]) -> None:
    command = "[ -e again ] && exit 5; touch again; kill -9 $$"

    assert await programs.run({"first": command}) == 5
    assert "killed; starting again" in capfd.readouterr().out


async def test_the_others_end_if_the_needed_one_is_killed() -> None:
    assert await programs.run({"redis": "kill -9 $$", "first": SLEEPS}) == -signal.SIGKILL


async def test_a_signal_stops_the_needed_program_last(folder: Path) -> None:
    def command(name: str, pause: float) -> str:
        return (
            f"trap 'sleep {pause}; echo {name} >>ends; exit' TERM; touch {name}; while :; do sleep 0.1; done"
        )

    commands = {"redis": command("redis", 0.0), "first": command("first", 0.2)}
    assert await stopped(commands, "redis", "first") == 0
    assert (folder / "ends").read_text() == "first\nredis\n"


async def test_a_program_that_ignores_sigterm_is_killed() -> None:
    command = "trap '' TERM; touch up; while :; do sleep 0.1; done"

    assert await stopped({"first": command}, "up", patience=0.2) == 0


async def test_a_signal_during_the_start_ends_the_program() -> None:
    begun = time.monotonic()

    assert await stopped({"first": SLEEPS}) == 0
    assert time.monotonic() - begun < 3  # it did not wait for SIGKILL
