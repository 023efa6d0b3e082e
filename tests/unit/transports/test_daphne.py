"""The transport for Daphne: the `send` that gets it, its writes, its pongs and its pings."""

import asyncio
import functools
import sys
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from channels.sessions import InstanceSessionWrapper

from realtime.closing import CloseReason
from realtime.transports import transport_for
from realtime.transports.asgi import AsgiTransport, Options, Ping, Shared, Watcher
from realtime.transports.daphne import HIGH_WATER, DaphneTransport, OnDaphne, WrappedDaphneTransport
from tests.support.clients.raw import BINARY, PING, PONG, TEXT, frame
from tests.support.doubles.watching import Watching


class Socket:
    """A socket that takes `room` bytes more, and then blocks or raises."""

    def __init__(self) -> None:
        self.taken = b""
        self.room = 1_000_000
        self.raises: OSError | None = None

    def send(self, data: bytes) -> int:
        if self.raises is not None:
            raise self.raises
        if not self.room:
            raise BlockingIOError
        taken = data[: self.room]
        self.taken += taken
        self.room -= len(taken)
        return len(taken)


class Server:
    """A stand-in for Twisted's transport."""

    TLS = False
    disconnected = 0

    def __init__(self) -> None:
        self.dataBuffer, self.offset, self._tempDataLen = b"", 0, 0
        self.socket = Socket()
        self.reads = True

    def write(self, data: bytes) -> None:
        self.dataBuffer += data

    def abortConnection(self) -> None: ...

    def pauseProducing(self) -> None:
        self.reads = False

    def resumeProducing(self) -> None:
        self.reads = True


Server.__module__ = "twisted.internet.tcp"


class Protocol:
    """A stand-in for autobahn's protocol, as Daphne extends it."""

    STATE_CLOSED, STATE_CONNECTING, STATE_OPEN = 0, 1, 3
    maskServerFrames = logOctets = logFrames = wasClean = failedByMe = False
    wasMaxMessagePayloadSizeExceeded = wasMaxFramePayloadSizeExceeded = False
    autoFragmentSize = maxMessagePayloadSize = 0
    _perMessageCompress = None

    def __init__(self) -> None:
        self.state = 1
        self.send_queue: deque[Any] = deque()
        self.transport = Server()
        self.data, self.current_frame, self.inside_message = b"", None, False
        self.last_ping = 1.0
        self.received = b""
        self.clean_headers = [(b"host", b"localhost")]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def sendData(self, data: bytes) -> None:
        if self.send_queue:
            self.send_queue.append((data, True))
        else:
            self.transport.write(data)

    def onPong(self, payload: bytes) -> None: ...

    def onCloseFrame(self, code: int, reason: bytes) -> None: ...


Protocol.__module__ = "daphne.ws_protocol"


async def handle_reply(protocol: Any, event: Any) -> None:
    if event["type"] == "websocket.accept":
        protocol.state = protocol.STATE_OPEN
    else:
        protocol.transport.write(b"[by Daphne]")


handle_reply.__module__ = "daphne.server"


def chosen(send: Any, *, direct: bool = True) -> type[AsgiTransport]:
    options = Options(max_unsent=1, send_timeout=1.0)
    return type(transport_for(send, options, Watcher(), scope={}, direct=direct))


def daphnes(protocol: Any = None) -> Any:
    return functools.partial(handle_reply, protocol or Protocol())


def in_session(send: Any) -> Any:
    wrapper = InstanceSessionWrapper.__new__(InstanceSessionWrapper)
    wrapper.real_send = send
    return wrapper.send


def test_daphnes_send_is_known_also_behind_channels_session() -> None:
    assert chosen(daphnes()) is DaphneTransport
    assert chosen(in_session(daphnes())) is DaphneTransport
    assert chosen(in_session(in_session(daphnes()))) is DaphneTransport


def test_without_direct_writes_it_is_not_used() -> None:
    assert chosen(daphnes(), direct=False) is AsgiTransport


async def unknown(event: Any) -> None: ...


@pytest.mark.parametrize(
    "send",
    [
        unknown,
        in_session(unknown),
        functools.partial(unknown, Protocol()),
        functools.partial(handle_reply, Protocol(), None),
        functools.partial(handle_reply, protocol=Protocol()),
        functools.partial(handle_reply, object()),
        SimpleNamespace(real_send=daphnes()).real_send.func,
    ],
)
def test_any_other_send_is_unknown(send: Any) -> None:
    assert chosen(send) is AsgiTransport


class _Subclass(InstanceSessionWrapper):
    async def send(self, message: Any) -> None: ...


def test_a_wrapper_that_resembles_channels_session_is_unknown() -> None:
    wrapper = _Subclass.__new__(_Subclass)
    wrapper.real_send = daphnes()
    assert chosen(wrapper.send) is AsgiTransport


def _set(name: str, value: Any) -> Callable[[Protocol], None]:
    return lambda protocol: setattr(protocol, name, value)


def _lacks(name: str) -> Callable[[Protocol], None]:
    return lambda protocol: delattr(protocol.transport, name)


@pytest.mark.parametrize(
    "change",
    [
        _set("_perMessageCompress", object()),
        _set("maskServerFrames", True),
        _set("autoFragmentSize", 100),
        _set("logFrames", True),
        _set("state", "open"),
        _set("failedByMe", None),
        _set("send_queue", None),
        _set("sendData", None),
        _set("maxMessagePayloadSize", None),
        _set("transport", object()),
        _set("transport", SimpleNamespace(**vars(Server()))),
        lambda protocol: setattr(protocol.transport, "TLS", True),
        _lacks("dataBuffer"),
        _lacks("_tempDataLen"),
        _lacks("socket"),
    ],
)
def test_a_protocol_that_differs_from_daphnes_is_unknown(change: Callable[[Protocol], None]) -> None:
    protocol = Protocol()
    change(protocol)
    assert chosen(daphnes(protocol)) is AsgiTransport


# -- writes -----------------------------------------------------------------------------------------------


class Opened:
    """A transport after its handshake, and the calls that it made to its watcher."""

    def __init__(self, send: Any = None, protocol: Protocol | None = None, **attributes: Any) -> None:
        self.protocol = protocol or Protocol()
        self.watcher = Watching()
        self.failures = self.watcher.failures
        transport = transport_for(
            send or daphnes(self.protocol),
            Options(max_unsent=100, send_timeout=1.0),
            self.watcher,
            scope={"headers": self.protocol.clean_headers},
            direct=True,
        )
        assert isinstance(transport, OnDaphne)
        self.transport = transport
        vars(self.protocol).update(attributes)
        with pytest.raises(StopIteration):
            transport.accept({"type": "websocket.accept"}).send(None)

    def write(self, text: str) -> None:
        self.transport.write({"type": "websocket.send", "text": text}, len(text))

    @property
    def in_socket(self) -> bytes:
        return self.protocol.transport.socket.taken

    @property
    def in_twisted(self) -> bytes:
        return self.protocol.transport.dataBuffer


def test_a_frame_goes_to_the_socket_while_nothing_is_queued() -> None:
    opened = Opened()
    opened.write("hello")
    opened.transport.write_shared(Shared(["one", "two"]))
    assert opened.in_socket == b"\x81\x05hello\x81\x03one\x81\x03two"
    assert opened.transport.unsent == 0


def test_held_back_frames_leave_together() -> None:
    opened = Opened()
    opened.transport.hold()
    opened.write("one")
    opened.write("two")
    assert opened.in_socket == b""
    opened.transport.release()
    assert opened.in_socket == b"\x81\x03one\x81\x03two"
    opened.write("now")
    assert opened.in_socket.endswith(b"now")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (lambda transport: transport.ping(Ping(7, speaks_v1=False)), b"\x89\x017"),
        (lambda transport: transport.write_shared(Shared(["all"])), b"\x81\x03all"),
    ],
)
def test_held_back_frames_keep_their_place(other: Any, expected: bytes) -> None:
    opened = Opened()
    opened.transport.hold()
    opened.write("one")
    other(opened.transport)
    opened.write("two")
    opened.transport.release()
    assert opened.in_socket == b"\x81\x03one" + expected + b"\x81\x03two"


async def test_held_back_frames_leave_before_another_way_is_taken() -> None:
    opened = Opened()
    opened.transport.hold()
    opened.write("one")
    # An empty message goes to Daphne, and so does the close.
    opened.write("")
    opened.write("two")
    opened.transport.close({"type": "websocket.close"})
    opened.transport.release()
    assert opened.in_socket == b"\x81\x03one"
    assert opened.in_twisted == b"[by Daphne]\x81\x03two[by Daphne]"


def test_a_bounded_number_of_bytes_is_held_back() -> None:
    opened = Opened()
    opened.transport.hold()
    for _ in range(3):
        opened.write("x" * (HIGH_WATER - 1000))
    assert len(opened.in_socket) > HIGH_WATER
    opened.transport.release()
    assert opened.in_socket.count(b"x") == 3 * (HIGH_WATER - 1000)


def test_held_back_frames_for_a_peer_that_is_gone_are_dropped() -> None:
    opened = Opened()
    opened.transport.hold()
    opened.write("one")
    opened.transport.abandon()
    opened.transport.release()
    assert opened.in_socket + opened.in_twisted == b""


@pytest.mark.parametrize("room", range(10))
def test_after_a_short_write_all_bytes_go_through_twisted(room: int) -> None:
    opened = Opened()
    opened.protocol.transport.socket.room = room
    opened.write("hello")
    opened.protocol.transport.socket.room = 0 if room < 7 else 1_000
    opened.write("again")
    assert opened.in_socket + opened.in_twisted == b"\x81\x05hello\x81\x05again"
    assert (opened.in_twisted == b"") is (room >= 7)
    assert opened.transport.unsent == len(opened.in_twisted)
    assert opened.failures == []


def test_what_autobahn_has_queued_goes_first() -> None:
    opened = Opened()
    opened.protocol.send_queue.append((b"queued", True))
    opened.write("hello")
    assert opened.in_socket == b""
    assert list(opened.protocol.send_queue) == [(b"queued", True), (b"\x81\x05hello", True)]
    assert opened.transport.unsent == 13


def test_a_socket_that_fails_is_a_send_failure() -> None:
    opened = Opened()
    opened.protocol.transport.socket.raises = ConnectionResetError("gone")
    opened.write("hello")
    assert opened.failures == [CloseReason.SEND_FAILED]


@pytest.mark.parametrize(("clean", "failures"), [(False, [CloseReason.SEND_FAILED]), (True, [])])
def test_a_write_after_close_fails_unless_the_peer_closed(clean: bool, failures: list[CloseReason]) -> None:
    opened = Opened()
    opened.protocol.state, opened.protocol.wasClean = 0, clean
    opened.write("hello")
    assert (opened.failures, opened.in_socket) == (failures, b"")


def test_too_much_behind_the_current_message_is_a_slow_consumer() -> None:
    opened = Opened()
    opened.protocol.transport.socket.room = 0
    opened.write("x" * 200)
    assert opened.failures == []
    opened.write("x" * 90)
    assert opened.failures == []
    opened.write("x" * 10)
    assert opened.failures == [CloseReason.SLOW_CONSUMER]


@pytest.mark.parametrize(
    "event",
    [
        {"text": "a", "bytes": b"b"},
        {"text": "", "bytes": None},
        {"text": "\ud800"},
        {"bytes": bytearray(b"x")},
        {"text": "longer than Daphne allows"},
    ],
)
def test_events_that_daphne_refuses_are_passed_to_daphne(event: dict[str, Any]) -> None:
    opened = Opened()
    assert isinstance(opened.transport, DaphneTransport)
    opened.transport._largest = 10
    opened.transport.write({"type": "websocket.send", **event}, 1)
    assert (opened.in_socket, opened.in_twisted) == (b"", b"[by Daphne]")


def test_with_compression_everything_goes_through_daphne() -> None:
    opened = Opened(_perMessageCompress=object())
    opened.write("hello")
    opened.transport.write_shared(Shared(["one", "two"]))
    assert (opened.in_socket, opened.in_twisted) == (b"", b"[by Daphne]" * 3)


def test_pongs_are_reported_until_the_end() -> None:
    opened = Opened()
    opened.protocol.onPong(b"1")
    opened.transport.abandon()
    opened.protocol.onPong(b"2")
    assert opened.watcher.pongs == [1]
    # The protocol no longer refers to the transport.
    assert {"onPong", "onCloseFrame", "dataReceived"}.isdisjoint(vars(opened.protocol))


@pytest.mark.parametrize("payload", [b"", b"x1", b"-1", b"1.5", b"9" * 16, b"\xb2"])
def test_a_pong_without_a_number_is_ignored(payload: bytes) -> None:
    opened = Opened()
    opened.protocol.onPong(payload)
    assert opened.watcher.pongs == []


# -- reads of one pong ------------------------------------------------------------------------------------

MASK = b"\x12\x34\x56\x78"


def masked(payload: bytes, opcode: int) -> bytes:
    """Build a short frame as a browser sends it."""
    head = bytes((0x80 | opcode, 0x80 | len(payload)))
    return head + MASK + bytes(byte ^ MASK[position % 4] for position, byte in enumerate(payload))


V1_PONG = b'{"type":"pong","n":17}'


def test_a_read_of_one_pong_bypasses_autobahn() -> None:
    opened = Opened()
    opened.protocol.dataReceived(masked(b"16", PONG))
    opened.protocol.dataReceived(masked(V1_PONG, TEXT))
    opened.protocol.dataReceived(frame(b'{"type": "pong", "n": 18}', TEXT))
    assert (opened.watcher.pongs, opened.watcher.v1_pongs) == ([16], [17, 18])
    assert opened.protocol.received == b""
    assert opened.protocol.last_ping > 1.0, "Daphne pings clients that sent it nothing"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(masked(V1_PONG, TEXT) * 2, id="two at once"),
        pytest.param(masked(V1_PONG, TEXT)[:-1], id="a part"),
        pytest.param(frame(V1_PONG, TEXT, masked=False), id="unmasked"),
        pytest.param(frame(V1_PONG, TEXT, last=False), id="a fragment"),
        pytest.param(frame(V1_PONG, TEXT, reserved=4), id="compressed"),
        pytest.param(frame(V1_PONG, BINARY), id="binary"),
        pytest.param(frame(b"17", PING), id="a ping"),
        pytest.param(frame(b"a pong", PONG), id="without a number"),
        pytest.param(frame(b'{"type":"pong","n":17} ', TEXT), id="written otherwise"),
        pytest.param(frame(b'{"type":"join","group":"g","ref":1}', TEXT), id="another frame"),
        pytest.param(frame(V1_PONG.ljust(126), TEXT), id="long"),
    ],
)
def test_any_other_read_goes_to_autobahn(data: bytes) -> None:
    opened = Opened()
    opened.protocol.dataReceived(data)
    assert (opened.watcher.pongs, opened.watcher.v1_pongs) == ([], [])
    assert opened.protocol.received == data


async def test_a_flooder_that_was_closed_is_read_no_more() -> None:
    opened = Opened()
    opened.protocol.dataReceived(frame(b"{}", TEXT))
    opened.transport.close({"type": "websocket.close", "code": CloseReason.RATE_LIMITED.code})
    assert not opened.protocol.transport.reads
    assert "dataReceived" not in vars(opened.protocol)


async def test_after_another_close_only_a_little_is_parsed() -> None:
    opened = Opened()
    opened.transport.close({"type": "websocket.close", "code": CloseReason.PROTOCOL_ERROR.code})
    opened.protocol.dataReceived(b"x" * 1000)
    assert len(opened.protocol.received) == 1000
    opened.protocol.dataReceived(b"x" * 100_000)
    assert len(opened.protocol.received) == 1000
    assert not opened.protocol.transport.reads


@pytest.mark.parametrize(
    "before",
    [
        {"data": b"\x81"},
        {"current_frame": object()},
        {"inside_message": True},
        {"state": 2},
    ],
)
def test_a_pong_within_another_frame_goes_to_autobahn(before: dict[str, Any]) -> None:
    opened = Opened()
    vars(opened.protocol).update(before)
    opened.protocol.dataReceived(masked(V1_PONG, TEXT))
    assert (opened.watcher.v1_pongs, opened.protocol.received) == ([], masked(V1_PONG, TEXT))


def test_a_pong_between_fragments_is_handled() -> None:
    opened = Opened()
    opened.protocol.inside_message = True
    opened.protocol.dataReceived(masked(b"16", PONG))
    assert opened.watcher.pongs == [16]


def test_pong_text_of_a_client_without_v1_is_a_message() -> None:
    opened = Opened()
    opened.watcher.speaks_v1 = False
    opened.protocol.dataReceived(masked(V1_PONG, TEXT))
    assert opened.protocol.received == masked(V1_PONG, TEXT)


@pytest.mark.parametrize("name", ["data", "current_frame", "inside_message", "last_ping"])
def test_an_unknown_autobahn_gets_all_reads(name: str) -> None:
    opened = Opened(**{name: "something else"})
    opened.protocol.dataReceived(masked(V1_PONG, TEXT))
    assert (opened.watcher.v1_pongs, opened.protocol.received) == ([], masked(V1_PONG, TEXT))


# -- pings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ping", "wire"), [(Ping(7, False), b"\x89\x017"), (Ping(7, True), b'\x81\x15{"type":"ping","n":7}')]
)
def test_a_ping_follows_the_messages_written_before_it(ping: Ping, wire: bytes) -> None:
    opened = Opened()
    opened.transport.write_shared(Shared(["one"]))
    opened.transport.ping(ping)
    assert opened.in_socket == b"\x81\x03one" + wire


def test_a_ping_waits_behind_queued_messages() -> None:
    opened = Opened()
    opened.protocol.transport.socket.room = 0
    opened.write("hello")
    opened.transport.ping(Ping(7, False))
    assert opened.in_twisted == b"\x81\x05hello\x89\x017"


def test_bytes_that_wait_in_this_process_are_reported() -> None:
    opened = Opened()
    opened.write("hello")
    assert opened.watcher.times_behind == 0
    opened.protocol.transport.socket.room = 3
    opened.write("hello")
    opened.write("again")
    assert opened.watcher.times_behind == 2


@pytest.mark.parametrize(
    ("failed", "seen"),
    [
        ({}, CloseReason.CLIENT_LOST),
        ({"failedByMe": True}, CloseReason.PROTOCOL_ERROR),
        ({"failedByMe": True, "wasMaxMessagePayloadSizeExceeded": True}, CloseReason.TOO_LARGE),
        ({"failedByMe": True, "wasMaxFramePayloadSizeExceeded": True}, CloseReason.TOO_LARGE),
    ],
)
def test_the_reason_for_which_autobahn_dropped_a_client(failed: dict[str, bool], seen: CloseReason) -> None:
    opened = Opened()
    vars(opened.protocol).update(failed, state=0)
    assert opened.transport.ended_by({"type": "websocket.disconnect", "code": 1006}) is seen
    opened.write("hello")
    assert opened.failures == [CloseReason.SEND_FAILED if seen is CloseReason.CLIENT_LOST else seen]


# -- behind a middleware ----------------------------------------------------------------------------------


def behind(protocol: Protocol | None = None, **attributes: Any) -> Opened:
    """Return a transport behind a middleware that wraps `send`."""
    protocol = protocol or Protocol()
    send = daphnes(protocol)

    async def wrapped(event: Any) -> None:
        await send(event)

    opened = Opened(wrapped, protocol, **attributes)
    assert isinstance(opened.transport, WrappedDaphneTransport)
    return opened


def test_behind_a_middleware_only_pings_go_to_the_socket() -> None:
    opened = behind()
    opened.transport.ping(Ping(7, False))
    assert opened.in_socket == b"\x89\x017"
    assert opened.transport.can_ping


def test_a_ping_waits_behind_what_the_middleware_has_passed_on() -> None:
    opened = behind()
    opened.protocol.transport.write(b"[by Daphne]")
    opened.transport.ping(Ping(7, False))
    assert (opened.in_socket, opened.in_twisted) == (b"", b"[by Daphne]\x89\x017")


async def test_messages_and_pings_of_v1_go_through_the_middleware() -> None:
    opened = behind()
    opened.write("hello")
    opened.transport.write_shared(Shared(["one", "two"]))
    opened.transport.ping(Ping(7, True))
    assert opened.transport.unsent > 0
    await opened.transport.drained()
    assert (opened.in_socket, opened.in_twisted) == (b"", b"[by Daphne]" * 4)


def test_pongs_of_v1_go_through_the_middleware_and_others_not() -> None:
    opened = behind()
    opened.protocol.dataReceived(masked(b"16", PONG))
    opened.protocol.onPong(b"17")
    opened.protocol.dataReceived(masked(V1_PONG, TEXT))
    assert (opened.watcher.pongs, opened.watcher.v1_pongs) == ([16, 17], [])
    assert opened.protocol.received == masked(V1_PONG, TEXT)


async def test_the_queue_waits_while_daphne_has_buffered_much() -> None:
    opened = behind()
    opened.protocol.transport.dataBuffer = b"x" * (HIGH_WATER + 1)
    opened.write("hello")
    await asyncio.sleep(0.03)
    assert opened.in_twisted[-1:] == b"x"
    opened.protocol.transport.dataBuffer = b""
    await opened.transport.drained()
    assert opened.in_twisted == b"[by Daphne]"


async def test_more_than_the_cap_in_the_queue_is_a_slow_consumer() -> None:
    opened = behind()
    opened.protocol.transport.dataBuffer = b"x" * (HIGH_WATER + 1)
    opened.transport.write_shared(Shared(["x" * 90, "x" * 90]))
    opened.write("x" * 90)
    assert opened.failures == []
    opened.write("x" * 90)
    assert opened.failures == [CloseReason.SLOW_CONSUMER]
    opened.transport.abandon()


def test_what_a_middleware_writes_by_itself_is_bounded_too() -> None:
    opened = behind()
    opened.protocol.transport.dataBuffer = b"x" * (HIGH_WATER + 101)
    opened.transport.ping(Ping(7, False))
    assert opened.failures == [CloseReason.SLOW_CONSUMER]


@pytest.mark.parametrize(
    ("state", "clean", "failures"),
    [(0, False, [CloseReason.SEND_FAILED]), (0, True, []), (2, False, [])],
)
def test_behind_a_middleware_an_end_is_seen(state: int, clean: bool, failures: list[CloseReason]) -> None:
    opened = behind()
    opened.protocol.state, opened.protocol.wasClean = state, clean
    opened.write("hello")
    opened.transport.ping(Ping(7, False))
    assert set(opened.failures) == set(failures)
    assert (opened.in_socket, opened.in_twisted, opened.transport.unsent) == (b"", b"", 0)


def test_a_handshake_that_a_middleware_delays_is_no_failure() -> None:
    opened = behind()
    opened.protocol.state = opened.protocol.STATE_CONNECTING
    opened.transport.ping(Ping(7, False))
    assert (opened.in_socket, opened.failures) == (b"", [])


def test_of_two_consumers_on_one_connection_the_first_pings() -> None:
    first = behind()
    second = behind(first.protocol)
    assert (first.transport.can_ping, second.transport.can_ping) == (True, False)
    second.transport.abandon()
    first.protocol.onPong(b"1")
    assert (first.watcher.pongs, second.watcher.pongs) == ([1], [])


# -- connections that cannot be pinged --------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "realtime.transports"]


def open_on(send: Any, protocol: Protocol | None = None, *, direct: bool = True, v1: bool = False) -> None:
    scope = {
        "headers": protocol.clean_headers if protocol else [],
        "subprotocols": ["realtime.v1"] if v1 else [],
        "asgi": {"version": "3.0"},
    }
    transport_for(send, Options(max_unsent=1, send_timeout=1.0), Watcher(), scope=scope, direct=direct)


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.transports._warned", set())


@pytest.mark.usefixtures("unwarned")
def test_one_warning_for_each_reason_names_the_consequence(caplog: pytest.LogCaptureFixture) -> None:
    tls, new = Protocol(), Protocol()
    tls.transport.TLS, new.state = True, "open"  # type: ignore[assignment,misc]
    for _ in range(2):
        open_on(daphnes(tls), tls)
        open_on(daphnes(new), new)
        open_on(daphnes(), direct=False)
    reasons = ["Daphne itself ends TLS", "this version of the server", "DIRECT_WRITES"]
    assert len(warnings_of(caplog)) == len(reasons)
    for warning, reason in zip(warnings_of(caplog), reasons, strict=True):
        assert reason in warning
        assert "If such a client vanishes, this process does not find out" in warning


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ({}, "this server is not known"),
        ({"twisted.internet.reactor": SimpleNamespace(running=False)}, "this server is not known"),
        ({"twisted.internet.reactor": SimpleNamespace(running=True)}, "a middleware hides"),
        ({"uvicorn.protocols.websockets.wsproto_impl": SimpleNamespace()}, "a middleware hides"),
        ({"hypercorn.protocol.ws_stream": SimpleNamespace()}, "a middleware hides"),
        ({"granian._granian": SimpleNamespace()}, "granian sends no pings"),
    ],
)
def test_the_warning_tells_a_server_from_a_middleware(
    modules: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(("twisted.internet.reactor", "uvicorn.protocols.websockets.", "hypercorn.")):
            monkeypatch.delitem(sys.modules, name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    open_on(unknown)
    (warning,) = warnings_of(caplog)
    assert reason in warning
    assert f"{__name__}.unknown" in warning


@pytest.mark.usefixtures("unwarned")
def test_a_client_of_v1_and_a_test_client_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    open_on(unknown, v1=True)
    open_on(daphnes())
    assert chosen(asyncio.Queue().put) is AsgiTransport
    assert warnings_of(caplog) == []
