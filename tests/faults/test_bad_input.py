"""Mistakes of a client: each gets the answer of the contract, and leaves nothing behind.

A neighbour in the same group must not notice anything.
"""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.raw import BINARY, CLOSE, CONTINUATION, PING, RawClient, frame
from tests.support.clients.sessions import logged_in
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

GROUP = "public.room"
MAX_MESSAGE_BYTES = 64 * 1024

#: The answers of the servers themselves to frames that are no WebSocket: uvicorn says why, Daphne hangs up.
REFUSED_BY_SERVER = {"daphne": {None}, "uvicorn": {1002, 1007, 1009}}


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite", "core-uvicorn-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing)


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


class Watch:
    """The server before and after one test: its log, its gauges, its rows."""

    def __init__(self, site: Site, server: WebServer, neighbour: Client) -> None:
        self.site = site
        self.server = server
        self.neighbour = neighbour
        self.log_began = len(server.log_text())

    def log(self) -> str:
        """Return the server's log, without the traceback that uvicorn itself logs with its code 1007."""
        text = self.server.log_text()[self.log_began :]
        return re.sub(
            r"Invalid UTF-8 sequence.*?^UnicodeDecodeError", "", text, flags=re.DOTALL | re.MULTILINE
        )

    async def gauges(self) -> tuple[int, int]:
        """Return the number of connections and of groups of the process."""
        text = await asyncio.to_thread(_get, self.server.http("/metrics"))
        values = dict(re.findall(r"^(realtime_connections|realtime_groups) ([0-9.]+)$", text, re.MULTILINE))
        return int(float(values["realtime_connections"])), int(float(values["realtime_groups"]))

    async def nothing_is_left(self) -> None:
        """Wait until only the neighbour is there, and check that it receives messages."""

        def rows() -> bool:
            assert self.site.open_connections(self.server) == 1
            assert self.site.open_memberships(self.server) == 1
            return True

        await eventually_async(rows, within=10)
        assert await self.gauges() == (1, 1)
        await self.neighbour.publish(GROUP, {"still": "here"})
        await self.neighbour.seen(lambda each: each.get("data") == {"still": "here"})
        assert self.neighbour.is_open
        assert self.neighbour.of_type("error") == []
        assert "Traceback" not in self.log()
        assert " ERROR " not in self.log()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        return str(answer.read().decode())


@pytest_asyncio.fixture
async def watch(site: Site, server: WebServer) -> AsyncIterator[Watch]:
    async with Client(server.websocket(f"/ws/{GROUP}/")) as neighbour:
        await neighbour.welcomed()
        watch = Watch(site, server, neighbour)
        yield watch
        await watch.nothing_is_left()


# -- frames


@dataclass(frozen=True)
class Error:
    """The answer is an error frame, and the connection goes on."""

    code: str
    ref: int | str | None = None


@dataclass(frozen=True)
class Answer:
    """The frame is right, though it looks wrong; this frame answers it."""

    fields: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Closed:
    """The connection is closed with this code, or by the server itself (0), and recorded with this reason."""

    code: int
    reason: str = ""


def publish(data: str) -> bytes:
    return frame(f'{{"type":"publish","ref":1,"group":"{GROUP}","data":{data}}}')


def join(group: str) -> bytes:
    return frame(f'{{"type":"join","ref":1,"group":{group}}}')


def fragments(size: int, count: int) -> bytes:
    more = frame(b"x" * size, CONTINUATION, last=False) * (count - 1)
    return frame(b"x" * size, last=False) + more


BAD, UNKNOWN, GROUP_NAME = Error("bad_frame"), Error("unknown_type"), Error("bad_group", 1)
PROTOCOL_ERROR = Closed(4500, "protocol_error")
TOO_LARGE = Closed(4513, "too_large")
BY_SERVER, TOO_LARGE_FOR_SERVER = Closed(0, "protocol_error"), Closed(0, "too_large")

FRAMES: dict[str, tuple[bytes, Error | Answer | Closed]] = {
    "nothing": (frame(""), BAD),
    "white space": (frame(" \n"), BAD),
    "not JSON": (frame("{nonsense"), BAD),
    "half an object": (frame('{"type":"join","ref":1,'), BAD),
    "two objects": (frame('{"type":"ping","n":1}{"type":"ping","n":2}'), BAD),
    "a byte order mark": (frame('\ufeff{"type":"ping","n":1}'), BAD),
    "a NUL after it": (frame('{"type":"ping","n":1}\0'), BAD),
    "an array": (frame('["join"]'), BAD),
    "a number": (frame("5"), BAD),
    "a string": (frame('"join"'), BAD),
    "null": (frame("null"), BAD),
    "no type": (frame("{}"), BAD),
    "a type that is no string": (frame('{"type":5}'), BAD),
    "a type that is an array": (frame('{"type":["join"]}'), BAD),
    "a type that is not known": (frame('{"type":"dance","ref":1}'), Error("unknown_type", 1)),
    "a type of the server": (frame('{"type":"goodbye","reason":"kicked","reconnect":false}'), UNKNOWN),
    "a refresh with no ticket of ours": (
        frame('{"type":"refresh","ref":"a","ticket":"x"}'),
        Error("bad_ticket", "a"),
    ),
    "presence without a group": (frame('{"type":"presence","ref":"a"}'), Error("bad_frame", "a")),
    "presence of a group with a bad name": (
        frame('{"type":"presence","ref":"a","group":"realtime.x"}'),
        Error("bad_group", "a"),
    ),
    "an event of the layer": (frame('{"type":"realtime.kick","connections":[]}'), UNKNOWN),
    "no ref": (frame(f'{{"type":"join","group":"{GROUP}"}}'), BAD),
    "a ref that is an object": (frame('{"type":"join","ref":{},"group":"public.x"}'), BAD),
    "a ref of 400 digits": (frame(f'{{"type":"join","ref":{"9" * 400},"group":"public.x"}}'), BAD),
    "a ref of 10 KB": (frame(f'{{"type":"join","ref":"{"r" * 10_000}","group":"public.x"}}'), BAD),
    "a group that is a number": (join("7"), Error("bad_frame", 1)),
    "a group that is null": (join("null"), Error("bad_frame", 1)),
    "an empty group": (join('""'), GROUP_NAME),
    "a group of 100 letters": (join(f'"{"g" * 100}"'), GROUP_NAME),
    "a group with a space": (join('"public. x"'), GROUP_NAME),
    "a group with a NUL": (join('"public.\\u0000"'), GROUP_NAME),
    "a group with a line break": (join('"public.x\\n"'), GROUP_NAME),
    "a group beyond ASCII": (join('"public.größe"'), GROUP_NAME),
    "a group of ours": (join('"realtime.check"'), GROUP_NAME),
    "a group with a lone surrogate": (join('"public.\\ud800"'), BAD),
    "a since that is a number": (
        frame(f'{{"type":"join","ref":1,"group":"{GROUP}","since":5}}'),
        Error("bad_frame", 1),
    ),
    "data with a lone surrogate": (publish('"\\ud800"'), BAD),
    "data that is no JSON": (publish("undefined"), BAD),
    "data that is NaN": (publish("NaN"), BAD),
    "data beyond every number": (publish("1e400"), Error("bad_frame", 1)),
    "data of 60,000 digits": (publish("9" * 60_000), Error("bad_frame", 1)),
    "data 100 levels deep": (publish("[" * 100 + "]" * 100), BAD),
    "data 30,000 levels deep": (publish("[" * 30_000 + "]" * 30_000), BAD),
    "no data": (frame(f'{{"type":"publish","ref":1,"group":"{GROUP}"}}'), Error("bad_frame", 1)),
    "a leave of a group never joined": (
        frame('{"type":"leave","ref":1,"group":"public.y"}'),
        Error("not_joined", 1),
    ),
    "a ping of no number": (frame('{"type":"ping","n":"1"}'), BAD),
    "a ping below zero": (frame('{"type":"ping","n":-1}'), BAD),
    "a pong that nobody asked for": (
        frame('{"type":"pong","n":99}') + frame('{"type":"ping","n":7}'),
        Answer({"type": "pong", "n": 7}),
    ),
    "duplicate keys": (
        frame('{"type":"join","ref":1,"ref":2,"group":"a b","group":"public.z"}'),
        Answer({"type": "joined", "ref": 2, "group": "public.z"}),
    ),
    "eleven errors at once": (frame("{") * 11, PROTOCOL_ERROR),
    "binary": (frame(b"\0\1\2", BINARY), PROTOCOL_ERROR),
    "binary and empty": (frame(b"", BINARY), PROTOCOL_ERROR),
    "JSON in binary": (frame('{"type":"ping","n":1}', BINARY), PROTOCOL_ERROR),
    "over size": (frame("x" * (MAX_MESSAGE_BYTES + 1)), TOO_LARGE),
    "over size in bytes, not in letters": (frame("ß" * (MAX_MESSAGE_BYTES // 2 + 1)), TOO_LARGE),
    "over size in fragments": (fragments(20_000, 4) + frame("x", CONTINUATION), TOO_LARGE),
    "over the server's size": (frame("x" * (17 << 20)), TOO_LARGE_FOR_SERVER),
    "endless fragments": (fragments(60_000, 300), TOO_LARGE_FOR_SERVER),
    "invalid UTF-8": (frame(b'{"type":"\xff"}'), BY_SERVER),
    "invalid UTF-8 in a fragment": (frame(b"\xc3", last=False) + frame(b"(", CONTINUATION), BY_SERVER),
    "a surrogate in UTF-8": (frame(b"\xed\xa0\x80"), BY_SERVER),
    "no mask": (frame("{}", masked=False), BY_SERVER),
    "a reserved opcode": (frame("{}", 3), BY_SERVER),
    "a reserved bit": (frame("{}", reserved=4), BY_SERVER),
    "a continuation of nothing": (frame("{}", CONTINUATION), BY_SERVER),
    "a new message within one": (frame("{", last=False) + frame("{}"), BY_SERVER),
    "a ping of 126 bytes": (frame(b"x" * 126, PING), BY_SERVER),
    "a ping in fragments": (frame(b"x", PING, last=False), BY_SERVER),
    "a close of one byte": (frame(b"\x03", CLOSE), BY_SERVER),
    "a close with code 999": (frame(b"\x03\xe7", CLOSE), BY_SERVER),
    "a close for a reason in no UTF-8": (frame(b"\x03\xe8\xff", CLOSE), BY_SERVER),
    "bytes that are no frame": (b"GET / HTTP/1.1\r\n\r\n", BY_SERVER),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_each_bad_frame_is_answered_and_leaves_nothing(name: str, site: Site, watch: Watch) -> None:
    raw, expected = FRAMES[name]
    async with RawClient(watch.server.websocket(f"/ws/{GROUP}/")) as client:
        await client.open()
        welcome = await client.seen("welcome")
        await client.send(raw)
        match expected:
            case Error(code=code, ref=ref):
                error = await client.seen("error")
                assert (error["code"], error.get("ref")) == (code, ref), error
                assert error["detail"]
                await goes_on(client)
            case Answer(fields=fields):
                assert await client.seen(fields["type"]) == fields
                await goes_on(client)
            case Closed(code=code, reason=reason):
                if code:
                    assert await client.closes() == code
                    assert client.frames[-1] == {"type": "goodbye", "reason": reason, "reconnect": False}
                else:
                    assert await client.closes() in REFUSED_BY_SERVER[site.pairing.server]
                await eventually_async(lambda: site.close_reason(welcome["connection"]) == reason, within=5)


async def goes_on(client: RawClient) -> None:
    await client.send(frame('{"type":"join","ref":"next","group":"public.next"}'))
    assert await client.seen("joined") in client.frames
    async with asyncio.timeout(5):
        while not any(each.get("ref") == "next" for each in client.frames):
            await asyncio.sleep(0.01)
    assert not client.ended.is_set()


async def test_all_bad_frames_three_times_together_leave_nothing(site: Site, watch: Watch) -> None:
    async def break_it(raw: bytes) -> None:
        async with RawClient(watch.server.websocket(f"/ws/{GROUP}/")) as client:
            await client.open()
            await client.seen("welcome")
            await client.send(raw)

    raws = [raw for raw, _ in FRAMES.values()] * 3
    await asyncio.gather(*(break_it(raw) for raw in raws))
    await watch.nothing_is_left()
    measured(
        "bad frames",
        site.pairing,
        kinds=len(FRAMES),
        connections=len(raws),
        left=site.open_memberships(watch.server) - 1,
        tracebacks=watch.log().count("Traceback"),
    )


async def test_half_a_frame_leaves_nothing(watch: Watch) -> None:
    async with RawClient(watch.server.websocket(f"/ws/{GROUP}/")) as client:
        await client.open()
        await client.seen("welcome")
        await client.send(b"\x81\xfe\x10\x00only this")


async def test_frames_before_the_handshake_is_answered_are_harmless(watch: Watch) -> None:
    """A client must not send them (RFC 6455 section 4.1). The servers ignore them."""
    early = frame("{") + frame(b"\0", BINARY)
    async with RawClient(watch.server.websocket(f"/ws/{GROUP}/")) as client:
        await client.open(then=early)
        await client.seen("welcome")
        await goes_on(client)


async def test_a_plain_client_gets_the_same_answers_without_a_goodbye(watch: Watch) -> None:
    async with RawClient(watch.server.websocket(f"/ws/{GROUP}/")) as client:
        await client.open(v1=False)
        await client.send(frame("{"))
        assert (await client.seen("error"))["code"] == "bad_frame"
        await client.send(frame(b"\0", BINARY))
        assert await client.closes() == 4500
        assert {each["type"] for each in client.frames} == {"error"}


# -- handshakes

OK, FORBIDDEN, ANYTHING_BUT_OK = "accepted", "answered with 403", "refused by the server"
EIGHT_KB = 8_000  # uvicorn itself refuses a line of 8,192

Header = tuple[str, bytes | str]
HANDSHAKES: dict[str, tuple[bytes, tuple[Header, ...], str | int]] = {
    "a path with a NUL": (b"/ws/%00/", (), 4500),
    "a group with a NUL": (b"/ws/public.%00/", (), 4500),
    "a path of 8 KB": (b"/ws/" + b"g" * EIGHT_KB + b"/", (), 4500),
    "a path of 8 KB that leads nowhere": (b"/" + b"g/" * (EIGHT_KB // 2), (), FORBIDDEN),
    "a path that leads nowhere": (b"/nowhere/", (), FORBIDDEN),
    "a path in no UTF-8": (b"/ws/%ff%fe/", (), 4500),
    "a path with a surrogate": (b"/ws/%ed%a0%80/", (), 4500),
    "a path with a line break": (b"/ws/public.x%0d%0a/", (), 4500),
    "a path that climbs": (b"/ws/%2e%2e/", (), 4501),
    "a query of 8 KB": (b"/ws/public.room/?" + b"q" * EIGHT_KB, (), OK),
    "a user agent of 8 KB": (b"/ws/public.room/", (("User-Agent", "u" * EIGHT_KB),), OK),
    "a user agent in no UTF-8": (b"/ws/public.room/", (("User-Agent", b"\xff\xfe\x80"),), OK),
    "a user agent with a NUL": (b"/ws/public.room/", (("User-Agent", b"a\0b"),), ANYTHING_BUT_OK),
    "a header of 100 KB": (b"/ws/public.room/", (("X-Long", "x" * 100_000),), ANYTHING_BUT_OK),
    "a forged root path": (b"/ws/public.room/", (("Daphne-Root-Path", "/ws"),), OK),
    "a forged root path with a NUL": (b"/ws/public.room/", (("Daphne-Root-Path", "/%00"),), OK),
    "a forged root path of another path": (
        b"/other/ws/public.room/",
        (("Daphne-Root-Path", "/other"),),
        FORBIDDEN,
    ),
    "a forged address": (b"/ws/public.room/", (("X-Forwarded-For", "'; DROP TABLE users\0"[:-1]),), OK),
    "no origin": (b"/ws/public.room/", (), OK),
    "the origin of another site": (b"/ws/public.room/", (("Origin", "https://evil.example"),), FORBIDDEN),
    "the origin null": (b"/ws/public.room/", (("Origin", "null"),), FORBIDDEN),
    "an origin with another port": (b"/ws/public.room/", (("Origin", "http://127.0.0.1:1"),), FORBIDDEN),
    "a host that is not ours": (
        b"/ws/public.room/",
        (("Host", "evil.example"), ("Origin", "http://evil.example")),
        FORBIDDEN,
    ),
    "a session that never was": (b"/ws/public.room/", (("Cookie", "sessionid=" + "s" * 32),), OK),
    "a session of 8 KB": (b"/ws/public.room/", (("Cookie", "sessionid=" + "s" * 7_900),), OK),
    "a cookie that is none": (b"/ws/public.room/", (("Cookie", b"sessionid=\xff; =;;;"),), OK),
    "no key": (b"/ws/public.room/", (("Sec-WebSocket-Key", ""),), ANYTHING_BUT_OK),
    "a version to come": (b"/ws/public.room/", (("Sec-WebSocket-Version", "99"),), ANYTHING_BUT_OK),
    "a hundred subprotocols": (
        b"/ws/public.room/",
        (("Sec-WebSocket-Protocol", ", ".join(f"p{n}" for n in range(100)) + ", realtime.v1"),),
        OK,
    ),
    "somebody else's group": (b"/ws/user.1/", (), 4501),
    "a group of ours": (b"/ws/realtime.check/", (), 4500),
}


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_each_bad_handshake_is_answered_and_leaves_nothing(name: str, watch: Watch) -> None:
    target, headers, expected = HANDSHAKES[name]
    async with RawClient(watch.server.websocket()) as client:
        await client.open(*headers, target=target)
        match expected:
            case int():
                assert client.status == 101
                assert await client.closes() == expected
                assert [each["type"] for each in client.frames] == ["goodbye"]
            case str() if expected == OK:
                assert (await client.seen("welcome"))["groups"] == [GROUP]
                await goes_on(client)
            case str() if expected == FORBIDDEN:
                assert client.status == 403
            case _:
                assert client.status != 101


async def test_a_handshake_that_never_ends_holds_nothing(watch: Watch) -> None:
    reader, writer = await asyncio.open_connection(watch.server.interface, watch.server.port)
    writer.write(b"GET /ws/public.room/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n")
    await writer.drain()
    assert await watch.gauges() == (1, 1)
    writer.close()
    await reader.read()


async def test_text_that_a_record_cannot_hold_is_cut(site: Site, watch: Watch) -> None:
    async with RawClient(watch.server.websocket()) as client:
        agent = "\xff" + "u" * EIGHT_KB
        await client.open(("User-Agent", agent), target=b"/ws/public.room/?" + b"q" * EIGHT_KB)
        welcome = await client.seen("welcome")
        rows = site.database.query("SELECT id, user_agent, path FROM realtime_connection")
        hexadecimal = welcome["connection"].replace("-", "")
        (row,) = [row for row in rows if str(row["id"]).replace("-", "") == hexadecimal]
        assert row["user_agent"] == agent[:512]
        assert row["path"] == "/ws/public.room/"


async def test_a_deleted_user_with_a_valid_session_is_anonymous(site: Site, watch: Watch) -> None:
    pk, session = await logged_in(site)
    cookie = ("Cookie", f"sessionid={session}")
    own = f"/ws/user.{pk}/".encode()

    async with RawClient(watch.server.websocket()) as client:
        await client.open(cookie, target=own)
        assert (await client.seen("welcome"))["groups"] == [f"user.{pk}"]
    site.database.query(f"DELETE FROM auth_user WHERE id = {int(pk)}")  # noqa: S608 - a number

    async with RawClient(watch.server.websocket()) as client:
        await client.open(cookie, target=own)
        assert await client.closes() == 4501
    async with RawClient(watch.server.websocket()) as client:
        await client.open(cookie, target=b"/ws/public.room/")
        assert (await client.seen("welcome"))["groups"] == [GROUP]
