"""An application that writes each signal of `realtime` to the file that SIGNALS_LOG names.

A line is a list of JSON: the kind of the signal, the id of the connection or of the user, and for
`connection_closed` the reason. The lines of all processes have the order of the calls of their receivers.
"""

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
        signals.connection_dormant.connect(dormant)
        signals.user_online.connect(online)
        signals.user_offline.connect(offline)


def opened(connection: Opening, **_: Any) -> None:
    _write(["opened", str(connection.id), ""])


async def closed(connection: Opening, reason: CloseReason, **_: Any) -> None:
    _write(["closed", str(connection.id), reason.value])


async def dormant(connection: Opening, **_: Any) -> None:
    _write(["dormant", str(connection.id), connection.user_id])


async def online(user_id: str, **_: Any) -> None:
    _write(["online", user_id, ""])


async def offline(user_id: str, **_: Any) -> None:
    _write(["offline", user_id, ""])


def _write(line: list[str]) -> None:
    # In one write, because several processes append to the file.
    file = os.open(os.environ["SIGNALS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(file)
