"""The controlling end of the load generator: starts it, sends commands and reads answers."""

import json
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tests.support.programs.servers import CHECKOUT


class GeneratorFailed(RuntimeError):
    """The load generator ended; its traceback is on standard error."""


class Crowd:
    """A running load generator. Its methods are the commands of `benchmarks.generator.Crowd`.

    Args:
        arguments: The command line of the generator.
        environment: Its environment.
        module: A module with more commands than `benchmarks.generator`.
    """

    def __init__(
        self, *arguments: object, environment: Mapping[str, str], module: str = "benchmarks.generator"
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env=dict(environment),
            text=True,
        )

    def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise GeneratorFailed(f"the load generator ended with {self._process.wait()} during {command}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def connect(self, number: int, **options: float) -> dict[str, Any]:
        return self._ask("connect", number=number, **options)

    def publish_by(self, how: str) -> None:
        self._ask("publish_by", how=how)

    def calm(self, *, rate: float, seconds: float) -> dict[str, Any]:
        return self._ask("calm", rate=rate, seconds=seconds)

    def saturate(self, *, unfinished: int, warm_up: float, seconds: float) -> dict[str, Any]:
        return self._ask("saturate", unfinished=unfinished, warm_up=warm_up, seconds=seconds)

    def idle(self, seconds: float) -> dict[str, Any]:
        return self._ask("idle", seconds=seconds)

    def memory(self) -> dict[str, Any]:
        return self._ask("memory")

    def recover(
        self, number: int, *, missed: int, since: dict[str, Any] | None, timeout: float
    ) -> dict[str, Any]:
        return self._ask("recover", number=number, missed=missed, since=since, timeout=timeout)

    def watch(self) -> dict[str, Any]:
        return self._ask("watch")

    def calm_until_left(self, *, rate: float, users: int, timeout: float) -> dict[str, Any]:
        return self._ask("calm_until_left", rate=rate, users=users, timeout=timeout)

    def join(self, number: int, *, presence: bool) -> dict[str, Any]:
        return self._ask("join", number=number, presence=presence)

    def close(self) -> dict[str, Any]:
        return self._ask("close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
