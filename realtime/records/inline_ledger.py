"""The ledger for test suites, with the setting `LEDGER = "inline"`; `realtime.testing` sets it."""

import asyncio
import threading
from typing import Any

from asgiref.sync import sync_to_async

from realtime.records import batch
from realtime.records.ledger import Ledger
from realtime.records.transactions import off_the_loop
from realtime.records.write_queue import Write


class InlineLedger(Ledger):
    """Writes in the thread and the transaction of a test. No other thread would see the test's data.

    Each write is written alone, for as long as it takes.
    """

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    def shut(self) -> None:
        """Do nothing: there is no thread."""

    async def _submit(self, write: Write, *, first: bool = False) -> Any:
        async with self._lock:
            if threading.current_thread() is threading.main_thread():
                # pytest-asyncio: the loop runs in the thread that holds the test's transaction.
                with off_the_loop():
                    written = batch.write_batch([write])
            else:
                # Django's TestCase: the loop runs beside that thread, and this is the way into it.
                written = await sync_to_async(batch.write_batch)([write])
        if written.changes is not None:
            self._tell(written.changes)
        (outcome,) = written.results
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
