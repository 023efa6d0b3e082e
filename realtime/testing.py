"""Connections to consumers for the test suites of applications, without Redis, a reaper or a server.

    async with connect(application, "/ws/public.lobby/", user=anne) as client:
        await apublish("public.lobby", {"hello": 1})
        assert await client.receive_message() == {"hello": 1}

Inside the block, groups are kept in memory, and records are written in the test's own thread and
transaction. So this works in Django's `TestCase` and with pytest-django's `db`. Each client answers the pings
of `realtime.v1` as the client of a browser does.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

from channels.layers import channel_layers
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.test import override_settings

from realtime.closing import CloseReason
from realtime.errors import BadFrame
from realtime.serving import lifecycle
from realtime.wire import frames

__all__ = ["Client", "Refused", "connect"]

#: Seconds that a client waits for the application.
PATIENCE = 5.0

_IN_MEMORY = {"BACKEND": "realtime.layers.MemoryLayer"}


class Client:
    """The client's end of one connection."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self._communicator = communicator
        self._connection: Any = None
        self._end_expected = False
        self.subprotocol: str | None = None
        self.welcome: dict[str, Any] | None = None
        """The welcome frame, if the client offered `realtime.v1`."""

    async def send(self, frame: Any = None, *, text: str | None = None, data: bytes | None = None) -> None:
        """Send one frame.

        Args:
            frame: An object, sent as JSON.
            text: A text, sent as it is instead of `frame`.
            data: Bytes, sent as they are instead of `frame` and `text`.
        """
        if data is not None:
            await self._communicator.send_to(bytes_data=data)
        else:
            await self._communicator.send_to(text_data=json.dumps(frame) if text is None else text)

    async def receive(self, *, within: float = PATIENCE) -> str | bytes:
        """Return the next frame that is no ping, as text or bytes.

        Args:
            within: Seconds to wait for it.

        Raises:
            AssertionError: The connection was closed (the message has the code), or no frame came in time.
        """
        deadline = asyncio.get_running_loop().time() + within
        while True:
            event = await self._event(deadline)
            if event["type"] == "websocket.close":
                raise AssertionError(f"The connection was closed with {event.get('code', 1000)}.")
            content: str | bytes = event["bytes"] if event.get("text") is None else event["text"]
            if not await self._answered(content):
                return content

    async def receive_frame(self, *, within: float = PATIENCE) -> Any:
        """Return the next frame, decoded from JSON. Arguments and errors are those of `receive`."""
        return json.loads(await self.receive(within=within))

    async def receive_message(self, *, within: float = PATIENCE) -> Any:
        """Return the data of the next message. Frames of other types before it are skipped.

        Arguments and errors are those of `receive`.
        """
        while True:
            frame = await self.receive_frame(within=within)
            if frame.get("type") == "message":
                return frame["data"]

    async def assert_closed(self, reason: CloseReason | int, *, within: float = PATIENCE) -> None:
        """Wait until the server closes for this reason or with this code. Frames before it are skipped.

        Args:
            reason: The expected reason or close code.
            within: Seconds to wait for the close.

        Raises:
            AssertionError: The server closed with another code or did not close in time.
        """
        code = reason if isinstance(reason, int) else reason.code
        deadline = asyncio.get_running_loop().time() + within
        while (event := await self._event(deadline))["type"] != "websocket.close":
            pass
        self._end_expected = True
        found = event.get("code", 1000)
        if found != code:
            raise AssertionError(f"The connection was closed with {found}, not with {code}.")

    async def close(self, code: int = 1000) -> None:
        """Close from the client's side, and wait until the application has finished.

        A second call does nothing.

        Args:
            code: The close code that the application gets.

        Raises:
            Exception: The exception that a handler raised, unless `assert_closed` has seen the close.
        """
        if not self._communicator.future.done():
            await self._communicator.send_input({"type": "websocket.disconnect", "code": code})
        try:
            await self._communicator.wait(PATIENCE)
        except Exception:
            if not self._end_expected:
                raise

    async def _event(self, deadline: float) -> dict[str, Any]:
        """Return the next ASGI event. Channels' own method would cancel an application that is late."""
        try:
            async with asyncio.timeout_at(deadline):
                event: dict[str, Any] = await self._communicator.output_queue.get()
        except TimeoutError as error:
            if self._communicator.future.done():
                self._communicator.future.result()
            raise AssertionError("Nothing came from the application in time.") from error
        return event

    async def _answered(self, content: str | bytes) -> bool:
        if self.subprotocol != frames.SUBPROTOCOL or not isinstance(content, str):
            return False
        try:
            frame = frames.parse_server(content)
        except BadFrame:
            # The author of a consumer may send texts that are no frames of the protocol.
            return False
        if isinstance(frame, frames.Ping):
            await self.send(text=frames.build(frames.ClientPong(n=frame.n)))
            return True
        return False


@asynccontextmanager
async def connect(
    application: Any,
    path: str,
    user: Any = None,
    *,
    subprotocols: tuple[str, ...] = (frames.SUBPROTOCOL,),
    headers: tuple[tuple[bytes, bytes], ...] = (),
    scope: dict[str, Any] | None = None,
) -> AsyncIterator[Client]:
    """Connect a client to an ASGI application.

    At the end of the block, the connection is closed. With the last one, the process stops as in a planned
    stop.

    Args:
        application: The application, or a consumer's `as_asgi()`.
        path: The path of the URL.
        user: The user that Channels' auth middleware would find; anonymous without it.
        subprotocols: The subprotocols that the client offers.
        headers: Further headers of the handshake.
        scope: Further keys of the scope.

    Yields:
        The client, after the application accepted it.

    Raises:
        Refused: The application did not accept the connection.
    """
    async with _process():
        communicator = WebsocketCommunicator(application, path, list(headers), list(subprotocols))
        communicator.scope.update(
            {"user": user or AnonymousUser(), "client": ["127.0.0.1", 0], **(scope or {})}
        )
        client = Client(communicator)
        accepted, answer = await communicator.connect(timeout=PATIENCE)
        if not accepted:
            await client.close()
            raise Refused(f"The application refused the handshake (code {answer}).")
        client.subprotocol = answer
        if answer == frames.SUBPROTOCOL:
            client.welcome = await client.receive_frame()
        try:
            yield client
        finally:
            await client.close()


class Refused(AssertionError):
    """The application did not accept the connection."""


_open: dict[asyncio.AbstractEventLoop, int] = {}


@asynccontextmanager
async def _process() -> AsyncIterator[None]:
    """Provide one server process for each event loop, as long as a client of it is connected."""
    loop = asyncio.get_running_loop()
    if loop in _open:
        _open[loop] += 1
        try:
            yield
        finally:
            _open[loop] -= 1
        return
    _open[loop] = 1
    layers = {"default", *getattr(settings, "CHANNEL_LAYERS", {})}
    settings_of_tests = override_settings(
        CHANNEL_LAYERS=dict.fromkeys(layers, _IN_MEMORY),
        REALTIME={**getattr(settings, "REALTIME", {}), "LEDGER": "inline"},
    )
    # Channels closes old database connections around each event, and it takes the one with the test's
    # transaction for old. Django's own test client switches that off, too.
    with settings_of_tests, mock.patch("channels.db.close_old_connections"):
        channel_layers.backends.clear()
        try:
            yield
        finally:
            del _open[loop]
            await lifecycle.stop()
