"""A program of a site that calls `notify()` from its only thread, as a worker does.

`python -m tests.support.programs.notifier` reads the arguments of one call from each line of its input, as a
JSON object, and prints the result and its duration in seconds.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Self

from tests.support.programs.servers import CHECKOUT
from tests.support.programs.site import Site


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one call."""

    taken: bool
    seconds: float


class Notifier:
    """The program, as the test sees it. Its first call has connected to the database and to Redis already."""

    def __init__(self, site: Site) -> None:
        self._log = (site.folder / "notifier.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs.notifier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=CHECKOUT,
            env=site.environment,
            text=True,
        )

    async def notify(self, user: object, data: object, **options: Any) -> Outcome:
        """Call `notify`, and wait for the result."""
        return await asyncio.to_thread(self._call, {"user": user, "data": data, **options})

    def _call(self, arguments: dict[str, Any]) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def main() -> None:
    # Django must be set up before the models are imported.
    import django

    django.setup()
    from realtime.notifying import notify

    for line in sys.stdin:
        arguments = json.loads(line)
        began = time.monotonic()
        taken = notify(arguments.pop("user"), arguments.pop("data"), **arguments)
        print(json.dumps([taken, time.monotonic() - began]), flush=True)  # noqa: T201 - its product


if __name__ == "__main__":
    main()
