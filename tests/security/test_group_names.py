"""Names of groups with every special character: by frame, by URL and from Python.

A name that no group can have is refused before the policy, the database or Redis is asked. It is written into
no log, and reaches no other client.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from urllib.parse import quote

import pytest
import pytest_asyncio
import redis

from realtime import publish, tickets
from realtime.errors import BadGroup
from realtime.presence import presence
from realtime.publishing import apublish
from realtime.reading import ahistory, history
from realtime.revoking import adisconnect, arecheck, disconnect, recheck
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.raw import RawClient, frame
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

ALLOWED = "-_."
LONGEST = "public.-_." + "x" * 89
assert len(LONGEST) == 99

SPECIAL = [chr(code) for code in range(128) if not chr(code).isalnum() and chr(code) not in ALLOWED]
assert len(SPECIAL) == 63
CONFUSABLES = [
    "\u0440ublic.x",  # a Cyrillic letter
    "\uff50ublic.x",  # a fullwidth one
    "public\u2024x",  # dots that are none
    "public\u3002x",
    "public.\u00e9",
    "public.e\u0301",
    "public.x\u200b",  # characters that are not seen
    "public.x\u00ad",
    "public.x\u202e",
    "\ufeffpublic.x",
    "\u017ftaff.x",  # letters that become others by a change of case
    "staff.\u212a",
    "user.\u0661",  # digits that `int` reads
    "user.\uff11",
    "public.\U0001f600",
    "public.\u2028x",
]
TRAVERSAL = [
    *("../staff.x", "public.x/../staff.x", "/public.x", "public.x/", "..\\staff.x", "public.%2e%2e"),
    *("public.x%00", "public.x%0a", "public.x%252f", "%70ublic.x", "public.x?group=staff.x", "public.x#"),
]
WILDCARDS = [
    "*",
    "**",
    "public.*",
    "user.*",
    "public.?",
    "public.[a-z]",
    "public.(a|b)",
    "public.{a,b}",
    "public.\\*",
]
REDIS = [
    *(
        "asgi:group:public.room",
        "public.room\r\nFLUSHALL",
        "public.{room}",
        "asgi__group__*",
        "__keyspace@0__:*",
    ),
    *("*1\r\n$8\r\nFLUSHALL\r\n", 'public."room"', "public.room\\r\\n"),
]
#: The text after a line break would look like a line of its own in a log.
LINES = [
    f"public.x{end}INJECTED ERROR realtime: forged" for end in ("\n", "\r", "\r\n", "\x0b", "\x85", "\u2028")
]
RESERVED = ["realtime.", "realtime.check", "realtime.control.0123", "realtime.*"]
LONG = ["x" * 100, "public." + "x" * 93, "public." + "x" * 50_000]
IMPOSSIBLE = [
    "",
    *(f"public.{each}" for each in SPECIAL),
    *(f"{each}public.x" for each in SPECIAL),
    *(f"public{each}x" for each in SPECIAL),
    *CONFUSABLES,
    *TRAVERSAL,
    *WILDCARDS,
    *REDIS,
    *LINES,
    *RESERVED,
    *LONG,
]
#: Names that groups can have, and that look like names of the default policy. An anonymous client joins none.
FORBIDDEN = [
    *("public", "Public.x", "PUBLIC.x", ".public.x", "xpublic.x", "public-x", "public_x", "-public.x"),
    *(
        "staff.x",
        "user.1",
        "user.",
        "user.None",
        "user",
        "..",
        ".",
        "-",
        "_",
        "Realtime.x",
        "realtime",
        "asgi",
    ),
]


# -- from Python: neither the database nor Redis may be asked, and none is there


def of(call: Callable[..., object]) -> Callable[[str], object]:
    return lambda name: call(group=name)


SYNCHRONOUS: dict[str, Callable[[str], object]] = {
    "publish": lambda name: publish(name, 1),
    "history": history,
    "presence": presence,
    "ticket": lambda name: tickets.ticket(groups=["public.x", name]),
    "disconnect": of(disconnect),
    "recheck": of(recheck),
}
ASYNCHRONOUS: dict[str, Callable[[str], object]] = {
    "apublish": lambda name: apublish(name, 1),
    "ahistory": ahistory,
    "aticket": lambda name: tickets.aticket(groups=[name]),
    "adisconnect": of(adisconnect),
    "arecheck": of(arecheck),
}


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_python_refuses_impossible_names(name: str) -> None:
    for group in IMPOSSIBLE:
        with pytest.raises(BadGroup) as raised:
            SYNCHRONOUS[name](group)
        assert_on_one_line(str(raised.value))


@pytest.mark.parametrize("name", ASYNCHRONOUS)
async def test_asynchronous_python_refuses_impossible_names(name: str) -> None:
    for group in IMPOSSIBLE:
        with pytest.raises(BadGroup) as raised:
            await ASYNCHRONOUS[name](group)  # type: ignore[misc]
        assert_on_one_line(str(raised.value))


async def test_a_consumer_joins_no_group_with_an_impossible_name() -> None:
    """A consumer of an author may take the name from a client. The connection is not even looked at."""
    for group in IMPOSSIBLE:
        with pytest.raises(BadGroup):
            await lifecycle.group_add(None, group)  # type: ignore[arg-type]


def assert_on_one_line(text: str) -> None:
    assert len(text.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f\u200b\u202e\u2028]", text)


# -- by frame and by URL, on a real server


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    history = {"*": {"size": 10, "ttl": 60}}
    return start_shared_site(pairing, HISTORY=history, PRESENCE=["*"])


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


@pytest.fixture
def nothing_leaks(site: Site, server: WebServer) -> Iterator[None]:
    """Check that no impossible name is in the log, in Redis or in a row when the test ends."""
    yield
    log = server.log_text()
    assert "Traceback" not in log
    assert not [line for line in log.splitlines() if line.lstrip().startswith("INJECTED")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x85\u200b\u202e\u2028]", log)
    with redis.Redis.from_url(site.redis.url) as client:
        keys = [name.decode() for name in client.scan_iter()]
        channels = [name.decode() for name in client.pubsub_channels()]
    assert keys
    assert not [key for key in keys if not key.startswith("asgi")]
    assert not [each for each in channels if not each.startswith(("asgi", "realtime.control."))]
    # The names of groups and of our own, and the separators of the layers.
    assert not [name for name in keys + channels if not re.fullmatch(r"[A-Za-z0-9._:!\-]+", name)]
    rows = site.database.query('SELECT "group" FROM realtime_membership')
    assert {row["group"] for row in rows} <= {"public.room", "public.only", LONGEST}
    assert site.database.query('SELECT "group" FROM realtime_presentuser') == []


@pytest_asyncio.fixture
async def neighbour(server: WebServer, nothing_leaks: None) -> AsyncIterator[Client]:
    """A member of a group, who must not notice anything."""
    async with Client(server.websocket("/ws/public.room/")) as client:
        await client.welcomed()
        yield client
        await client.publish("public.room", "still here")
        await client.seen(lambda each: each.get("data") == "still here")
        assert client.data == ["still here"]


def frames_with(name: str) -> list[dict[str, object]]:
    return [
        {"type": "join", "group": name},
        {"type": "join", "group": name, "presence": True, "since": {"epoch": "e", "offset": 0}},
        {"type": "publish", "group": name, "data": "stolen"},
        {"type": "presence", "group": name},
        {"type": "leave", "group": name},
    ]


async def answers(server: WebServer, sent: list[dict[str, object]]) -> list[dict[str, object]]:
    """Send frames on as many connections as it takes, because the eleventh error closes one."""

    async def some(part: list[dict[str, object]]) -> list[dict[str, object]]:
        async with Client(server.websocket("/ws/")) as client:
            await client.welcomed()
            return [await client.ask(**{"kind": each["type"], **without_type(each)}) for each in part]

    found: list[dict[str, object]] = []
    for first in range(0, len(sent), 400):
        parts = [sent[at : at + 10] for at in range(first, min(first + 400, len(sent)), 10)]
        found += [answer for part in await asyncio.gather(*map(some, parts)) for answer in part]
    return found


def without_type(sent: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in sent.items() if name != "type"}


@pytest.mark.acceptance
async def test_no_frame_reaches_a_group_with_an_impossible_name(server: WebServer, neighbour: Client) -> None:
    sent = [each for name in IMPOSSIBLE for each in frames_with(name)]
    codes = {
        (json.dumps(asked)[:200], answer["type"], answer.get("code"))
        for asked, answer in zip(sent, await answers(server, sent), strict=True)
    }
    assert {code[1:] for code in codes} == {("error", "bad_group")}, [
        each for each in codes if each[1:] != ("error", "bad_group")
    ]


@pytest.mark.acceptance
async def test_no_frame_reaches_a_group_that_the_policy_refuses(server: WebServer, neighbour: Client) -> None:
    sent = [each for name in FORBIDDEN for each in frames_with(name)]
    found = await answers(server, sent)
    assert {answer["type"] for answer in found} == {"error"}
    assert {(asked["type"], answer["code"]) for asked, answer in zip(sent, found, strict=True)} == {
        ("join", "forbidden"),
        ("publish", "forbidden"),
        ("presence", "forbidden"),
        ("leave", "not_joined"),
    }


@pytest.mark.acceptance
async def test_a_name_with_a_lone_surrogate_is_no_frame(server: WebServer, neighbour: Client) -> None:
    async with RawClient(server.websocket("/ws/")) as client:
        await client.open()
        await client.seen("welcome")
        await client.send(frame('{"type":"join","ref":1,"group":"public.\\ud800"}'))
        assert (await client.seen("error"))["code"] == "bad_frame"


def targets() -> dict[bytes, set[int]]:
    """Return paths, each with the close codes or the HTTP statuses that may answer it."""
    found: dict[bytes, set[int]] = {}
    for name in IMPOSSIBLE:
        if len(name) > 10_000:
            continue
        # A slash in a name leads to no route, and an empty one to the path without a group.
        refused = {403} if "/" in name else {4500}
        if name:
            found[f"/ws/{quote(name, safe='')}/".encode()] = refused
    for name in FORBIDDEN:
        found[f"/ws/{name}/".encode()] = {4501}
        # All characters may be percent-encoded: it is the same name.
        found[b"/ws/" + b"".join(b"%%%02x" % code for code in name.encode()) + b"/"] = {4501}
    for target in (b"/ws/public.%c0%ae/", b"/ws/public.%ff/", b"/ws/public.%u0041/", b"/ws/%/"):
        found[target] = {4500}
    for target in (b"/ws/public.room/../staff.x/", b"/ws//public.room/", b"/ws/public.room"):
        found[target] = {403}
    for target in (b"/ws/public.room/..%2fstaff.x/", b"/ws/./public.room/", b"/WS/public.room/"):
        found[target] = {403}
    found[b"/ws/public.room;staff.x/"] = {4500}
    return found


@pytest.mark.acceptance
async def test_no_url_reaches_a_group_that_it_may_not(server: WebServer, neighbour: Client) -> None:
    slots = asyncio.Semaphore(20)

    async def connect(target: bytes) -> tuple[int | None, list[str]]:
        async with slots, RawClient(server.websocket()) as client:
            await client.open(target=target)
            code: int | None = client.status
            if code == 101:
                with suppress(TimeoutError):
                    code = await client.closes(within=5)
            return code, [each["type"] for each in client.frames]

    expected = targets()
    outcomes = dict(zip(expected, await asyncio.gather(*map(connect, expected)), strict=True))
    assert {target: each for target, each in outcomes.items() if each[0] not in expected[target]} == {}
    # Of a refused connection, the client learns the reason and nothing else.
    assert {kind for _, kinds in outcomes.values() for kind in kinds} == {"goodbye"}


@pytest.mark.acceptance
async def test_the_longest_name_of_all_characters_is_a_group(server: WebServer, neighbour: Client) -> None:
    """The control of the tests above: a name at the border is refused by nothing."""
    async with (
        Client(server.websocket(f"/ws/{LONGEST}/")) as by_url,
        Client(server.websocket("/ws/")) as by_frame,
    ):
        assert (await by_url.welcomed())["groups"] == [LONGEST]
        assert (await by_frame.join(LONGEST))["type"] == "joined"
        await by_url.publish(LONGEST, 1)
        await eventually_async(lambda: by_frame.data == [1], within=10)


@pytest.mark.acceptance
async def test_a_ticket_for_one_group_opens_no_similar_one(server: WebServer, neighbour: Client) -> None:
    text = tickets.ticket(groups=["public.only"])
    similar = [
        "public.only.",
        "public.on",
        "public.Only",
        "public.only-",
        "public.onlyx",
        "public.room",
        "public.",
    ]
    async with Client(server.websocket(f"/ws/?ticket={text}")) as client:
        await client.welcomed()
        for name in similar:
            assert (await client.join(name))["code"] == "forbidden"
        assert (await client.join("public.only"))["type"] == "joined"
        assert (await client.join("public.*"))["code"] == "bad_group"
    assert text not in server.log_text()
