"""The transport for uvicorn: the reason for an end, from the close frames that were sent and received."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.frames import Close
from wsproto.connection import ConnectionState

from realtime.closing import CloseReason
from realtime.transports import transport_for
from realtime.transports.asgi import Options
from realtime.transports.uvicorn import UvicornTransport
from tests.support.doubles.watching import Watching

REPORT = {"type": "websocket.disconnect", "code": 1005}
THEIRS = Close(1001, "")


class Transport:
    """A stand-in for asyncio's transport."""

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Protocol:
    """A stand-in for uvicorn's protocol. `conn` is the connection of the library behind it."""

    def __init__(self, *, marked: bool = False, **conn: Any) -> None:
        self.transport = Transport()
        self.close_sent = marked
        self.conn = SimpleNamespace(**conn)
        self.raises: Exception | None = None
        self.scope = {"headers": [(b"host", b"localhost")]}
        self.config = SimpleNamespace(ws_ping_interval=20.0, ws_ping_timeout=15.0)

    async def send(self, event: Any) -> None:
        if self.raises is not None:
            raise self.raises


Protocol.__module__ = Protocol.send.__module__ = "uvicorn.protocols.websockets.websockets_sansio_impl"


def transport_on(protocol: Protocol, failures: list[CloseReason] | None = None) -> UvicornTransport:
    transport = transport_for(
        protocol.send,
        Options(max_unsent=1000, send_timeout=1.0),
        Watching(lambda reason: (failures if failures is not None else []).append(reason)),
        scope={},
        direct=True,
    )
    assert isinstance(transport, UvicornTransport)
    return transport


def failures_of_a_write(protocol: Protocol) -> list[CloseReason]:
    """Write while uvicorn refuses because the connection has ended, and return the reported failures."""
    protocol.raises = OSError("ClientDisconnected")
    failures: list[CloseReason] = []
    transport = transport_on(protocol, failures)
    transport.accepted = True
    transport.write({"type": "websocket.send", "text": "hello"}, 5)
    return failures


@pytest.mark.parametrize(
    ("sent", "received", "seen"),
    [
        (None, None, CloseReason.CLIENT_LOST),
        (None, THEIRS, CloseReason.CLIENT_CLOSED),
        (THEIRS, THEIRS, CloseReason.CLIENT_CLOSED),
        (Close(1002, ""), None, CloseReason.PROTOCOL_ERROR),
        (Close(1007, ""), None, CloseReason.PROTOCOL_ERROR),
        (Close(1009, ""), None, CloseReason.TOO_LARGE),
        (Close(1011, "keepalive ping timeout"), None, CloseReason.PING_TIMEOUT),
        (
            Close(1011, "keepalive ping timeout"),
            Close(1011, "keepalive ping timeout"),
            CloseReason.PING_TIMEOUT,
        ),
        (Close(1012, ""), None, CloseReason.SERVER_RESTART),
        (Close(1012, ""), THEIRS, CloseReason.SERVER_RESTART),
        # Nothing is known of it except the code in the report.
        (Close(3000, ""), None, CloseReason.CLIENT_CLOSED),
    ],
)
def test_the_first_close_frame_tells_which_side_ended_it(
    sent: Close | None, received: Close | None, seen: CloseReason
) -> None:
    protocol = Protocol(close_sent=sent, close_rcvd=received)
    assert transport_on(protocol).ended_by(REPORT) is seen


@pytest.mark.parametrize(
    ("state", "marked", "code", "seen"),
    [
        ("OPEN", False, 1005, CloseReason.CLIENT_LOST),
        ("OPEN", False, 1002, CloseReason.PROTOCOL_ERROR),
        ("CLOSED", False, 1001, CloseReason.CLIENT_CLOSED),
        ("REMOTE_CLOSING", False, 1005, CloseReason.CLIENT_CLOSED),
        ("CLOSED", False, 1002, CloseReason.CLIENT_CLOSED),
        ("LOCAL_CLOSING", False, 1005, CloseReason.PROTOCOL_ERROR),
        ("LOCAL_CLOSING", True, 1005, CloseReason.PING_TIMEOUT),
        ("LOCAL_CLOSING", True, 1009, CloseReason.TOO_LARGE),
        ("LOCAL_CLOSING", False, 1012, CloseReason.SERVER_RESTART),
    ],
)
def test_the_end_by_wsprotos_state_and_uvicorns_code(
    state: str, marked: bool, code: int, seen: CloseReason
) -> None:
    protocol = Protocol(marked=marked, state=ConnectionState[state])
    assert transport_on(protocol).ended_by({**REPORT, "code": code}) is seen


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("OPEN", CloseReason.SEND_FAILED),
        ("CLOSED", CloseReason.CLIENT_CLOSED),
        # Only the report tells the reason for which uvicorn closed.
        ("LOCAL_CLOSING", CloseReason.SEND_FAILED),
    ],
)
def test_a_write_after_a_close_frame_on_wsproto_is_no_failure(state: str, reason: CloseReason) -> None:
    protocol = Protocol(state=ConnectionState[state])
    assert failures_of_a_write(protocol) == [reason]


def test_other_implementations_tell_only_the_code() -> None:
    transport = transport_on(Protocol())
    assert transport.ended_by(REPORT) is CloseReason.CLIENT_CLOSED
    assert transport.ended_by({**REPORT, "code": 1006}) is CloseReason.CLIENT_LOST


@pytest.mark.parametrize(
    ("received", "reason"), [(None, CloseReason.SEND_FAILED), (THEIRS, CloseReason.CLIENT_CLOSED)]
)
def test_a_write_after_a_close_frame_is_no_failure(received: Close | None, reason: CloseReason) -> None:
    protocol = Protocol(close_sent=None, close_rcvd=received)
    assert failures_of_a_write(protocol) == [reason]


def wrapped(protocol: Protocol) -> UvicornTransport:
    """Return a transport behind a middleware that looks like the server's `send`."""

    @functools.wraps(protocol.send)
    async def send(event: Any) -> None:
        await protocol.send(event)

    transport = transport_for(
        send, Options(max_unsent=1000, send_timeout=1.0), Watching(), scope=dict(protocol.scope), direct=True
    )
    assert isinstance(transport, UvicornTransport)
    return transport


def test_behind_a_middleware_the_end_is_seen() -> None:
    transport = wrapped(Protocol(close_sent=None, close_rcvd=THEIRS))
    assert transport.ended_by(REPORT) is CloseReason.CLIENT_CLOSED
    # Driven by hand, a middleware could cancel another task than its own.
    assert not transport._prompt


@pytest.mark.parametrize("state", list(ConnectionState))
def test_a_close_that_a_middleware_keeps_is_seen(state: ConnectionState) -> None:
    protocol = Protocol(state=state)
    assert wrapped(protocol)._is_held_back() is (state is ConnectionState.OPEN)
    assert not transport_on(protocol)._is_held_back()


@pytest.mark.parametrize("option", ["ws_ping_interval", "ws_ping_timeout"])
def test_uvicorn_pings_unless_an_option_says_no(option: str) -> None:
    protocol = Protocol()
    assert transport_on(protocol).server_pings
    setattr(protocol.config, option, None)
    assert not transport_on(protocol).server_pings
