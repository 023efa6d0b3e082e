"""The promises of all transports on real servers, and the abilities of the transport for Daphne.

The server runs `tests.support.applications.transports`. Its connections are only a transport, and the test
controls from outside what is written to them.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.applications.middlewares import SHAPES
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.raw import CLOSE, frame
from tests.support.programs.servers import DaphneServer, UvicornServer, WebServer

pytestmark = pytest.mark.acceptance

APPLICATION = "tests.support.applications.transports:application"
ENVIRONMENT = {
    **os.environ,
    "DJANGO_SETTINGS_MODULE": "tests.support.live",
    "ALLOWED_HOSTS": "*",
}
KILOBYTE = 1024
MEGABYTE = 1024 * KILOBYTE
FULL = 0.5  # seconds until the kernels have taken what they can of messages that go through a middleware
TCP_CLOSE = 7  # the state of a TCP connection that has ended (include/net/tcp_states.h)

Seen = dict[str, Any]
Open = Callable[..., Any]


class OftenPinging(DaphneServer):
    """Daphne with its own pings, every second."""

    def command_for(self, application: str) -> list[str]:
        *command, application = super().command_for(application)
        return [*command, "--ping-interval", "1", "--ping-timeout", "3", application]


def uvicorn_on(implementation: str, *options: str, log: Path) -> UvicornServer:
    """uvicorn with one of its libraries for WebSocket."""
    return UvicornServer(
        "--ws", implementation, *options, log=log, environment=ENVIRONMENT, application=APPLICATION
    )


class LateUvicorn(UvicornServer):
    """uvicorn in a program that loads the application first, as gunicorn's worker does."""

    def command_for(self, application: str) -> list[str]:
        module, name = application.split(":")
        program = (
            f"from {module} import {name}; import uvicorn;"
            f" uvicorn.run({name}, host={self.interface!r}, port={self.port}, lifespan='off')"
        )
        return [sys.executable, "-c", program]


class _InFolder(DaphneServer):
    """Daphne with its own files beside its log."""

    def __init__(self, *, log: Path, **options: Any) -> None:
        self.folder = log.parent
        super().__init__(log=log, **options)


class Tls(_InFolder):
    """Daphne with TLS and a certificate that signs itself."""

    def command_for(self, application: str) -> list[str]:
        command = super().command_for(application)
        endpoint = command.index("-e") + 1
        key, certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
        subprocess.run(
            [*make, "-days", "1", "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
        command[endpoint] = (
            f"ssl:{self.port}:interface={self.interface}:privateKey={key}:certKey={certificate}"
        )
        return command

    def websocket(self, path: str = "/ws/") -> str:
        return super().websocket(path).replace("ws://", "wss://")


class UnixSocket(_InFolder):
    """Daphne on a unix socket, as behind a proxy on the same machine."""

    def command_for(self, application: str) -> list[str]:
        command = super().command_for(application)
        self.path = self.folder / "daphne.sock"
        command[command.index("-e") + 1] = f"unix:{self.path}"
        return command

    def is_ready(self) -> bool:
        return self.path.exists()


class Control:
    """The control of connections in the server: a test has them do something, and sees their state."""

    def __init__(self, server: WebServer, **options: Any) -> None:
        self._connecting = connect(
            server.websocket("/control/"), proxy=None, max_size=None, ping_interval=None, **options
        )
        self._socket: ClientConnection

    async def __aenter__(self) -> Self:
        self._socket = await self._connecting
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._socket.close()

    async def tell(self, name: str, command: str, *arguments: Any) -> Seen:
        """Have a connection do something, and return its state afterwards."""
        await self._socket.send(json.dumps([name, command, *arguments]))
        answer: Seen = json.loads(await asyncio.wait_for(self._socket.recv(), 20))
        return answer

    async def until(self, name: str, happened: Callable[[Seen], object], *, within: float) -> Seen:
        """Ask for the state until it is as wanted. Raises TimeoutError."""
        seen: Seen = {}
        try:
            async with asyncio.timeout(within):
                while not happened(seen := await self.tell(name, "look")):
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise AssertionError(f"not within {within} s; last seen: {seen}") from error
        return seen


@dataclass
class Held:
    """One connection, seen from both ends."""

    name: str
    client: ClientConnection
    control: Control

    async def tell(self, command: str, *arguments: Any) -> Seen:
        return await self.control.tell(self.name, command, *arguments)

    async def until(self, happened: Callable[[Seen], object], *, within: float = 10) -> Seen:
        return await self.control.until(self.name, happened, within=within)

    async def receive(self, count: int) -> list[str]:
        """Receive `count` messages; a binary one is returned as text."""
        async with asyncio.timeout(20):
            messages = [await self.client.recv() for _ in range(count)]
        return [each.decode() if isinstance(each, bytes) else each for each in messages]

    async def rest(self) -> list[str]:
        """Receive all messages to the end of the connection."""
        messages = []
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(10):
                while True:
                    messages.append(str(await self.client.recv()))
        return messages

    def is_reset(self) -> bool:
        """True if the other end sent a RST. The kernel says it, because the client may not be reading."""
        raw = self.client.transport.get_extra_info("socket")
        return bool(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE)

    def stop_reading(self) -> None:
        self.client.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.client.transport.resume_reading()


_names = itertools.count(1)


@contextlib.asynccontextmanager
async def holding(server: WebServer, path: str = "held", **options: Any) -> AsyncIterator[Held]:
    """Open a connection with little room in the kernel at the client's end; `options` go to the server."""
    name = f"c{next(_names)}"
    query = "&".join(f"{key}={value}" for key, value in options.items())
    small = socket.create_connection((server.interface, server.port))
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KILOBYTE)
    async with (
        Control(server) as control,
        connect(
            server.websocket(f"/{path}/{name}/?{query}"),
            sock=small,
            proxy=None,
            compression=None,
            ping_interval=None,
            max_size=None,
            max_queue=None,
            close_timeout=1,
        ) as client,
    ):
        yield Held(name, client, control)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transports")


@pytest.fixture(scope="module")
def daphne(folder: Path) -> Iterator[WebServer]:
    with DaphneServer(log=folder / "daphne.log", environment=ENVIRONMENT, application=APPLICATION) as server:
        yield server
    # Twisted, asyncio and Daphne log an exception that nothing handled.
    assert "Traceback" not in server.log_text()


def _uvicorn(implementation: str) -> Callable[[Path], Iterator[WebServer]]:
    """Return a fixture: `uvicorn_on` this library."""

    @pytest.fixture(scope="module")
    def serving(folder: Path) -> Iterator[WebServer]:
        with uvicorn_on(implementation, log=folder / f"{implementation}.log") as server:
            yield server
        assert "Traceback" not in server.log_text()

    return serving


uvicorn = _uvicorn("websockets-sansio")
wsproto = _uvicorn("wsproto")


@pytest.fixture(
    params=[
        "DaphneTransport on daphne",
        "AsgiTransport on daphne",
        "UvicornTransport on uvicorn",
        "WrappedDaphneTransport on daphne behind closure",
        "UvicornTransport on uvicorn behind closure",
        pytest.param("WrappedDaphneTransport on daphne behind suspending", marks=pytest.mark.matrix),
        pytest.param("AsgiTransport on uvicorn", marks=pytest.mark.matrix),
        pytest.param("UvicornTransport on wsproto", marks=pytest.mark.matrix),
    ]
)
async def hold(request: pytest.FixtureRequest) -> Open:
    """Return a function that opens a connection, for each of the transports in turn."""
    kind, _, name, *behind = request.param.split()
    path = behind[-1] if behind else "held"
    server = request.getfixturevalue(name)

    @contextlib.asynccontextmanager
    async def held(**options: Any) -> AsyncIterator[Held]:
        async with holding(server, path, direct=int(kind != "AsgiTransport"), **options) as connection:
            assert (await connection.tell("look"))["kind"] == kind
            yield connection

    return held


# -- promises of all transports
# --------------------------------------------------------------------------------


async def test_writes_of_all_kinds_arrive_in_order(hold: Open) -> None:
    async with hold() as held:
        await held.tell("mix", 400)
        assert await held.receive(400) == [str(number) for number in range(400)]


async def test_large_messages_reach_a_slow_reader_whole_and_in_order(hold: Open) -> None:
    async with hold(max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        telling = asyncio.create_task(held.tell("mix_large", 60, 150 * KILOBYTE))
        await asyncio.sleep(0.2)
        held.go_on_reading()
        texts = await held.receive(60)
        assert [int(text[:5]) for text in texts] == list(range(60))
        assert {len(text) for text in texts} == {150 * KILOBYTE}
        assert (await telling)["failures"] == []


async def test_several_shared_messages_are_several_messages(hold: Open) -> None:
    async with hold() as held:
        await held.tell("share", "one", "zwei", "τρία")
        assert await held.receive(3) == ["one", "zwei", "τρία"]


async def test_a_goodbye_precedes_the_close_and_nothing_follows_it(hold: Open) -> None:
    async with hold() as held:
        await held.tell("close", 4000, "goodbye")
        await held.tell("share", "too late")
        await held.tell("write", "too late")
        assert await held.rest() == ["goodbye"]
        assert held.client.close_code == 4000
        assert (await held.tell("look"))["failures"] == []


async def test_a_close_code_that_the_server_refuses_still_closes(hold: Open) -> None:
    async with hold() as held:
        await held.tell("close", 1011)
        await held.rest()
        assert held.client.close_code in (1000, 1011)


async def test_a_write_to_a_peer_that_is_gone_raises_nothing(hold: Open) -> None:
    async with hold() as held:
        _reset(held.client)
        await held.tell("write", *["x"] * 10)
        await held.tell("share", *["x"] * 10)
        seen = await held.until(lambda seen: seen["disconnected"])
        assert set(seen["failures"]) <= {"send_failed"}
        await held.tell("write", "x")


async def test_frames_before_a_close_are_received_before_it(hold: Open) -> None:
    async with hold() as held:
        await held.client.send("my last word")
        await held.client.close(4321)
        seen = await held.until(lambda seen: seen["disconnected"] is not None)
        assert seen["received"] == ["my last word"]
        assert seen["disconnected"] in (1000, 4321)


async def test_a_handler_that_waits_for_a_slow_reader_goes_on(hold: Open) -> None:
    async with hold(max_unsent=MEGABYTE) as held:
        held.stop_reading()
        await held.tell("start_handling", 200 * KILOBYTE, 60)
        await asyncio.sleep(0.3)
        held.go_on_reading()
        assert len(await held.receive(60)) == 60
        seen = await held.until(lambda seen: not seen["handler_waits"])
        assert seen["failures"] == []


# -- promises of the transports for known servers ------------------------------------------------------


@pytest.fixture(params=["daphne", "uvicorn", "wsproto", "daphne behind closure", "uvicorn behind closure"])
def known(request: pytest.FixtureRequest) -> Open:
    """Return a function that opens a connection on each of the known servers, behind a middleware or not."""
    name, *behind = request.param.split()
    return functools.partial(holding, request.getfixturevalue(name), behind[-1] if behind else "held")


async def test_a_client_that_reads_nothing_is_slow_above_the_cap(known: Open) -> None:
    async with known(max_unsent=300 * KILOBYTE) as held:
        held.stop_reading()
        seen = await held.tell("fill", 64 * KILOBYTE, 400)
        assert set(seen["failures"]) == {"slow_consumer"}
        assert 300 * KILOBYTE < seen["unsent"] < 300 * KILOBYTE + 4 * 64 * KILOBYTE


async def test_one_message_above_the_cap_reaches_a_client_that_reads(known: Open) -> None:
    async with known(max_unsent=10 * KILOBYTE) as held:
        await held.tell("write", "x" * 900 * KILOBYTE)
        await held.tell("write", "and another one")
        assert [len(text) for text in await held.receive(2)] == [900 * KILOBYTE, 15]
        assert (await held.tell("look"))["failures"] == []


async def test_a_client_that_closes_and_reads_no_more_is_gone_soon(known: Open) -> None:
    async with known(max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        assert (await held.tell("fill", 64 * KILOBYTE, 200))["unsent"] > MEGABYTE
        await asyncio.sleep(FULL)
        await _send_close_frame(held.client)
        # Without an abort both servers would wait for ever here.
        await eventually_async(held.is_reset, within=5)
        seen = await held.until(lambda seen: seen["disconnected"] is not None)
        assert seen["disconnected"] == 1000


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (frame(struct.pack("!H", 4321), CLOSE), "client_closed"),
        (frame(b"", CLOSE), "client_closed"),
        (frame("of a reserved kind", opcode=3), "protocol_error"),
        (frame("x" * 2 * MEGABYTE), "too_large"),
        (b"", "client_lost"),
    ],
    ids=["close", "close-without-a-code", "bad-frame", "too-much", "reset"],
)
async def test_the_transport_knows_which_side_ended_it_and_why(known: Open, last: bytes, reason: str) -> None:
    async with known() as held:
        if last:
            held.client.transport.write(last)
        else:
            _reset(held.client)
        assert (await held.until(lambda seen: seen["ended_by"]))["ended_by"] == reason


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
async def test_a_missing_keepalive_answer_on_uvicorn_is_no_close(folder: Path, implementation: str) -> None:
    impatient = ("--ws-ping-interval", "0.5", "--ws-ping-timeout", "1")
    with uvicorn_on(implementation, *impatient, log=folder / "keepalive.log") as server:
        async with holding(server) as held:
            held.stop_reading()
            seen = await held.until(lambda seen: seen["disconnected"] is not None)
            assert seen["ended_by"] == "ping_timeout"


async def test_a_write_after_an_orderly_close_is_no_send_failure(known: Open) -> None:
    async with known() as held:
        held.client.transport.write(frame("tell me") + frame(struct.pack("!H", 4321), CLOSE))
        seen = await held.until(lambda seen: seen["disconnected"] is not None)
        # In one packet: the application writes its answer after the close frame was read.
        assert seen["received"] == ["tell me"]
        assert set(seen["failures"]) <= {"client_closed"}
        assert seen["ended_by"] == "client_closed"


@pytest.mark.parametrize("code", [4008, 4009, 4010])
async def test_a_client_that_reads_no_more_is_aborted_immediately(known: Open, code: int) -> None:
    async with known(max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        await held.tell("fill", 64 * KILOBYTE, 200)
        await asyncio.sleep(FULL)
        await held.tell("close", code)
        await eventually_async(held.is_reset, within=1.5)


async def test_a_closed_client_has_a_moment_to_read_its_backlog(known: Open) -> None:
    async with known(max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        await held.tell("fill", 64 * KILOBYTE, 100)
        await held.tell("close", 4504, "goodbye")
        held.go_on_reading()
        assert (await held.rest())[-1] == "goodbye"
        assert held.client.close_code == 4504


async def test_a_close_is_sent_even_if_the_turn_of_the_loop_is_long(known: Open) -> None:
    async with known() as held:
        await held.tell("close_and_stall", 4504, "goodbye", 2.5)
        assert (await held.rest())[-1:] == ["goodbye"]
        assert held.client.close_code == 4504


# -- abilities of the transport for Daphne
# -------------------------------------------------------------------------


async def test_pings_reach_the_client_and_its_pongs_come_back(daphne: WebServer) -> None:
    async with holding(daphne) as held:
        assert (await held.tell("ping", 17))["can_ping"]
        await held.until(lambda seen: seen["pongs"] == [17])
        await held.tell("ping", 18)
        await held.until(lambda seen: seen["pongs"] == [17, 18])


async def test_the_servers_own_pings_go_on_beside_ours(folder: Path) -> None:
    with OftenPinging(log=folder / "often.log", environment=ENVIRONMENT, application=APPLICATION) as server:
        async with holding(server) as held:
            until = time.monotonic() + 5.5
            for number in itertools.count():
                await held.tell("ping", number)
                await asyncio.sleep(0.2)
                if time.monotonic() > until:
                    break
            await held.tell("write", "still here")
            assert await held.receive(1) == ["still here"]
            seen = await held.until(lambda seen: number in seen["pongs"])
            assert seen["pongs"] == list(range(number + 1))
            assert seen["pongs_of_the_server"] >= 1


async def test_unsent_bytes_are_known_and_go_when_they_are_read(daphne: WebServer) -> None:
    async with holding(daphne, max_unsent=50 * MEGABYTE) as held:
        assert (await held.tell("look"))["unsent"] == 0
        held.stop_reading()
        seen = await held.tell("fill", 64 * KILOBYTE, 200)
        assert seen["unsent"] > MEGABYTE
        held.go_on_reading()
        assert len(await held.receive(200)) == 200
        assert (await held.until(lambda seen: seen["unsent"] == 0))["failures"] == []


async def test_a_closed_protocol_is_a_send_failure(daphne: WebServer) -> None:
    async with holding(daphne) as held:
        seen = await held.tell("share_when_dropped", "x")
        assert seen["failures"] == ["send_failed"]


async def test_after_an_orderly_close_of_the_client_nothing_fails(daphne: WebServer) -> None:
    async with holding(daphne, max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        await held.tell("fill", 64 * KILOBYTE, 200)
        await _send_close_frame(held.client)
        await held.until(lambda seen: not seen["open"])
        seen = await held.tell("share", "x")
        assert seen["failures"] == []


async def test_a_client_that_never_answers_a_close_goes_at_the_limit(daphne: WebServer) -> None:
    # The client's kernel has taken everything, so the server cannot see if the client still reads.
    async with holding(daphne, close_limit=2) as held:
        held.stop_reading()
        await held.tell("close", 4504)
        await held.until(lambda seen: seen["disconnected"] is not None, within=5)


async def test_a_client_that_is_closed_as_silent_is_gone_in_a_moment(daphne: WebServer) -> None:
    # The client has answered no ping, so the server does not wait for it until the limit.
    async with holding(daphne) as held:
        held.stop_reading()
        await held.tell("close", 4008)
        await held.until(lambda seen: seen["disconnected"] is not None, within=10)


async def test_a_client_that_reads_nothing_before_a_close_is_gone_soon(
    daphne: WebServer,
) -> None:
    async with holding(daphne, max_unsent=50 * MEGABYTE) as held:
        held.stop_reading()
        seen = await held.tell("fill", 64 * KILOBYTE, 200)
        assert seen["unsent"] > MEGABYTE
        await held.tell("close", 4504)
        await held.until(lambda seen: seen["disconnected"] is not None, within=10)


# -- behind a middleware that wraps `send` ---------------------------------------------------------------


#: The others have the mark `matrix`: the tests of faults have all shapes.
EVERYDAY = ("closure", "queue", "sentry", "opentelemetry")


@pytest.fixture(
    params=[pytest.param(shape, marks=() if shape in EVERYDAY else pytest.mark.matrix) for shape in SHAPES]
)
def wrapped(request: pytest.FixtureRequest) -> str:
    """Return the name of each shape of middleware in turn."""
    return str(request.param)


async def test_behind_any_middleware_pings_leave_and_pongs_are_seen(daphne: WebServer, wrapped: str) -> None:
    async with holding(daphne, wrapped) as held:
        seen = await held.tell("ping", 17)
        assert (seen["kind"], seen["can_ping"]) == ("WrappedDaphneTransport", True)
        await held.until(lambda seen: seen["pongs"] == [17])
        await held.client.send("a message")
        await held.tell("ping", 18)
        seen = await held.until(lambda seen: seen["pongs"] == [17, 18])
        assert seen["received"] == ["a message"]


@pytest.mark.parametrize("on", ["daphne", "uvicorn"])
async def test_a_middleware_sees_every_message_once_in_order(
    on: str, wrapped: str, request: pytest.FixtureRequest
) -> None:
    numbers = [str(number) for number in range(200)]
    async with holding(request.getfixturevalue(on), wrapped) as held:
        await held.tell("mix", 200)
        assert await held.receive(200) == numbers
        await held.tell("close", 4000, "goodbye")
        assert await held.rest() == ["goodbye"]
        assert held.client.close_code == 4000
        seen = await held.until(lambda seen: seen["disconnected"] is not None)
    assert seen["passed"] == ["websocket.accept", *["websocket.send"] * 201, "websocket.close"]
    # Every fourth message is binary.
    texts = [number for number in numbers if int(number) % 4 != 2]
    assert seen["texts_passed"] == [*texts, "goodbye"]
    assert seen["failures"] == []


async def test_a_flood_behind_a_middleware_is_bounded_by_the_cap(daphne: WebServer, wrapped: str) -> None:
    async with holding(daphne, wrapped, max_unsent=MEGABYTE) as held:
        held.stop_reading()
        highest = 0
        for _ in range(100):
            seen = await held.tell("share", "x" * 64 * KILOBYTE)
            highest = max(highest, seen["unsent"])
            if seen["failures"]:
                break
        assert set(seen["failures"]) == {"slow_consumer"}
        assert highest < MEGABYTE + 4 * 64 * KILOBYTE
        await held.tell("close", 4010)
        await eventually_async(held.is_reset, within=10)


async def test_a_reader_of_many_megabytes_behind_a_middleware_stays(daphne: WebServer, wrapped: str) -> None:
    async with holding(daphne, wrapped, max_unsent=MEGABYTE) as held:
        await held.tell("start_handling", 100 * KILOBYTE, 100)
        assert len(await held.receive(100)) == 100
        assert (await held.until(lambda seen: not seen["handler_waits"]))["failures"] == []


async def test_the_first_connection_of_a_late_server_is_known(folder: Path) -> None:
    with LateUvicorn(log=folder / "late.log", environment=ENVIRONMENT, application=APPLICATION) as server:
        # The first is found by the search, and the second, for which no search helps, by the note.
        for shape in ("closure", "queue"):
            async with holding(server, shape) as held:
                assert (await held.tell("share", "hello"))["kind"] == "UvicornTransport"
                assert await held.receive(1) == ["hello"]
        assert "cannot be pinged" not in server.log_text()


async def test_a_middleware_that_keeps_the_socket_keeps_it(daphne: WebServer) -> None:
    async with holding(daphne, "keeping", close_limit=1) as held:
        await held.tell("close", 4000)
        await asyncio.sleep(2.5)  # longer than the limit: nothing may happen
        seen = await held.tell("look")
        assert (seen["open"], seen["disconnected"]) == (True, None)
        await held.client.send("still here")
        await held.until(lambda seen: seen["received"] == ["still here"])


# -- cases without the fast way -------------------------------------------------------------------


async def test_the_setting_switches_the_fast_way_off(daphne: WebServer) -> None:
    async with holding(daphne, direct=0) as held:
        seen = await held.tell("share", "hello")
        assert (seen["kind"], seen["can_ping"]) == ("AsgiTransport", False)
        assert await held.receive(1) == ["hello"]


async def test_with_tls_the_fast_way_is_not_taken(folder: Path) -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with Tls(log=folder / "tls.log", environment=ENVIRONMENT, application=APPLICATION) as server:
        async with (
            Control(server, ssl=trusting) as control,
            connect(server.websocket("/held/tls/"), ssl=trusting, proxy=None) as client,
        ):
            seen = await control.tell("tls", "share", "hello")
            assert seen["kind"] == "AsgiTransport"
            assert await asyncio.wait_for(client.recv(), 10) == "hello"
            async with connect(server.websocket("/held/again/"), ssl=trusting, proxy=None):
                await control.tell("again", "look")
        assert server.log_text().count("cannot be pinged, because Daphne itself ends TLS") == 1


async def test_on_a_unix_socket_the_fast_way_is_taken(folder: Path) -> None:
    with UnixSocket(log=folder / "unix.log", environment=ENVIRONMENT, application=APPLICATION) as server:

        def dial() -> socket.socket:
            dialled = socket.socket(socket.AF_UNIX)
            dialled.connect(str(server.path))
            return dialled

        async with (
            Control(server, sock=dial()) as control,
            connect(server.websocket("/held/unix/"), sock=dial(), proxy=None) as client,
        ):
            seen = await control.tell("unix", "mix", 100)
            assert seen["kind"] == "DaphneTransport"
            texts = [await asyncio.wait_for(client.recv(), 10) for _ in range(100)]
            assert [int(text) for text in texts] == list(range(100))


def _reset(client: ClientConnection) -> None:
    raw = client.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


async def _send_close_frame(client: ClientConnection) -> None:
    """A close frame with code 1000, masked with zeros, and no wait for the answer."""
    client.transport.write(bytes((0x88, 0x82, 0, 0, 0, 0)) + struct.pack("!H", 1000))
