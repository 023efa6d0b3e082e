"""The client for the tests of djangochannelsrestframework (its source distribution has none)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from channels.testing import WebsocketCommunicator


class PatientCommunicator(WebsocketCommunicator):
    """A communicator that lets the application go on when nothing comes from it in time."""

    async def receive_output(self, timeout: float = 1) -> dict[str, Any]:
        return await asyncio.wait_for(self.output_queue.get(), timeout)

    async def receive_many_json_from(self, timeout: float = 1) -> list[Any]:
        """Return what comes until nothing comes for `timeout` seconds."""
        received = []
        while True:
            try:
                received.append(await self.receive_json_from(timeout))
            except TimeoutError:
                return received


@asynccontextmanager
async def connected_communicator(consumer: Any, path: str = "/") -> AsyncIterator[PatientCommunicator]:
    communicator = PatientCommunicator(consumer, path)
    accepted, _ = await communicator.connect()
    assert accepted
    try:
        yield communicator
    finally:
        if not communicator.future.done():
            await communicator.disconnect()
