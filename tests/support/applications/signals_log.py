"""An application that writes each signal of `realtime` to the file that SIGNALS_LOG names."""

import json
import os
from typing import Any

from django.apps import AppConfig

from realtime.closing import CloseReason
from realtime.records import Opening


class SignalsLog(AppConfig):
    name = "tests.support.applications.signals_log"
    label = "signals_log"

    def ready(self) -> None:
        from realtime import signals

        signals.connection_opened.connect(opened)
        signals.connection_closed.connect(closed)


def opened(connection: Opening, **_: Any) -> None:
    _write(["opened", str(connection.id), ""])


async def closed(connection: Opening, reason: CloseReason, **_: Any) -> None:
    _write(["closed", str(connection.id), reason.value])


def _write(line: list[str]) -> None:
    # In one write, because several processes append to the file.
    file = os.open(os.environ["SIGNALS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(file)
