"""The same consumers on Channels' base classes and on ours, on a real server with real clients.

`tests/integration/serving/test_drop_in_*.py` have the whole list. These tests need a real server.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.assertions.eventually import eventually_async
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import SERVERS, Site

pytestmark = pytest.mark.acceptance

PATIENCE = 10.0  # seconds

Open = Callable[..., Any]


@pytest.fixture(scope="module", params=pairings("core-daphne-postgres"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing)


@contextlib.contextmanager
def serving(site: Site) -> Any:
    environment = {**site.environment, "ALLOWED_HOSTS": "localhost,127.0.0.1"}
    log = site.folder / "drop-in.log"
    program = SERVERS[site.pairing.server]
    with program(
        log=log, environment=environment, application="tests.support.applications.drop_in:application"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def server(site: Site) -> Any:
    with serving(site) as server:
        yield server


@pytest.fixture
async def both(site: Site, server: WebServer) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """`await both(conversation)` holds it under `/plain/` and `/ours/`, and returns what both saw."""

    async def run(
        conversation: Callable[[Open], Awaitable[Any]], prefixes: Sequence[str] = ("plain", "ours")
    ) -> Any:
        seen = []
        for prefix in prefixes:

            def open_at(path: str, prefix: str = prefix, **options: Any) -> Any:
                return connect(server.websocket(f"/{prefix}{path}"), proxy=None, **options)

            async with asyncio.timeout(30):
                seen.append(await conversation(open_at))
        assert seen == [seen[-1]] * len(prefixes)
        return seen[-1]

    yield run
    await eventually_async(
        lambda: site.open_connections(server) == site.open_memberships(server) == 0, within=PATIENCE
    )


async def heard(client: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(client.recv(), PATIENCE)


async def ending(client: ClientConnection) -> tuple[int | None, str | None]:
    """Return the code and the reason of the server's close frame."""
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(client.recv(), PATIENCE)
    return client.close_code, client.close_reason


async def test_two_browsers_in_the_tutorials_chat(both: Any) -> None:
    async def conversation(open_at: Open) -> Any:
        async with (
            open_at("/ws/chat/lobby/") as anne,
            open_at("/ws/chat/lobby/") as bob,
            open_at("/ws/chat/elsewhere/") as stranger,
        ):
            said = []
            for client, word in ((anne, "hello"), (bob, "hi"), (anne, "bye")):
                await client.send(json.dumps({"message": word}))
                said.append([await heard(anne), await heard(bob)])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stranger.recv(), 0.2)
            return said

    assert await both(conversation) == [
        [f'{{"message": "{word}"}}', f'{{"message": "{word}"}}'] for word in ("hello", "hi", "bye")
    ]


async def test_members_on_either_base_class_are_in_the_same_room(server: WebServer) -> None:
    """A deployment moves one server after the other."""
    rooms = [server.websocket(f"/{prefix}/ws/chat/lobby/") for prefix in ("plain", "ours")]
    async with connect(rooms[0], proxy=None) as before, connect(rooms[1], proxy=None) as after:
        for client in (before, after):
            await client.send('{"message": "hello"}')
            assert [await heard(before), await heard(after)] == ['{"message": "hello"}'] * 2


async def test_text_binary_and_json_frames(both: Any) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/echo/") as echo, open_at("/json/") as as_json:
            await echo.send("hé\0llo")
            await echo.send(b"\x00\xff")
            await as_json.send("[1, null]")
            return [await heard(echo), await heard(echo), await heard(as_json)]

    assert await both(conversation) == ["hé\0llo", b"\x00\xff", '{"you": [1, null]}']


async def test_the_handshake(both: Any, site: Site) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/echo/", subprotocols=["a", "b"]) as chosen, open_at("/echo/") as none:
            headers = chosen.response.headers.get("X-Served-By")
            subprotocols = [chosen.subprotocol, none.subprotocol]
        with pytest.raises(InvalidStatus) as refused:
            async with open_at("/closing/before/"):
                pass
        return headers, subprotocols, refused.value.response.status_code

    # Daphne drops the headers of an accept.
    header = None if site.pairing.server == "daphne" else "a test"
    assert await both(conversation) == (header, ["b", None], 403)


async def test_closing(both: Any, site: Site) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/closing/after/") as one, open_at("/closing/after/") as two:
            await one.send("now")
            await two.send("bye")
            return await ending(one), await heard(two), await ending(two)

    # Daphne drops the reason.
    reason = "" if site.pairing.server == "daphne" else "a reason"
    assert await both(conversation) == ((4001, reason), "bye", (4002, ""))


async def test_the_own_channel_and_a_second_layer(both: Any) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/noted/") as noted, open_at("/other/") as one, open_at("/other/") as two:
            said = [await heard(client) for client in (noted, one, two)]
            await one.send("to all others")
            return said, await heard(one), await heard(two)

    assert await both(conversation) == (["to your own channel"] * 3, "to all others", "to all others")


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_the_code_of_a_client_that_closes_reaches_disconnect(both: Any, code: int) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/told/") as stays, open_at("/told/") as goes:
            await goes.close(code)
            # A member of the test before may still be leaving. It closes with 1000.
            while (said := await heard(stays)) == "somebody left with 1000" and code != 1000:
                pass
            return said

    assert await both(conversation) == f"somebody left with {code}"


async def test_frames_before_a_disconnect_are_handled(both: Any, site: Site) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/ws/chat/lobby/") as stays:
            async with open_at("/ws/chat/lobby/") as goes:
                for number in range(5):
                    await goes.send(json.dumps({"message": str(number)}))
            return [await heard(stays) for _ in range(5)]

    # On uvicorn plain Channels loses some: its consumer ends if it sends to a client that has left.
    prefixes = ("plain", "ours") if site.pairing.server == "daphne" else ("ours",)
    assert await both(conversation, prefixes) == [f'{{"message": "{number}"}}' for number in range(5)]


# -- synchronous consumers -------------------------------------------------------------------------


SYNC = ("plain-sync", "ours-sync")


async def test_two_browsers_in_a_synchronous_chat(both: Any) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/ws/chat/lobby/") as anne, open_at("/ws/chat/lobby/") as bob:
            said = []
            for client, word in ((anne, "hello"), (bob, "hi"), (anne, "bye")):
                await client.send(word)
                said.append([await heard(anne), await heard(bob)])
            return said

    assert await both(conversation, SYNC) == [[word, word] for word in ("hello", "hi", "bye")]


async def test_a_synchronous_consumer_is_told_the_clients_code(both: Any) -> None:
    async def conversation(open_at: Open) -> Any:
        async with open_at("/told/") as stays, open_at("/told/") as goes:
            await goes.close(4123)
            return await heard(stays)

    assert await both(conversation, SYNC) == "somebody left with 4123"


async def test_a_synchronous_report_arrives_whole_before_the_close(both: Any) -> None:
    """The thread waits for the client, which would otherwise be evicted as slow."""

    async def conversation(open_at: Open) -> Any:
        async with open_at("/report/", max_size=None) as client:
            await client.send(json.dumps({"count": 200, "size": 50_000, "close": 4002}))
            numbers = [int(str(await heard(client)).split()[0]) for _ in range(200)]
            return numbers, await ending(client)

    numbers, end = await both(conversation, SYNC)
    assert (numbers, end) == (list(range(200)), (4002, ""))


async def test_a_killed_process_leaves_its_groups_of_a_second_layer(site: Site) -> None:
    with serving(site) as doomed:
        async with connect(doomed.websocket("/ours/other/"), proxy=None) as client:
            assert await heard(client) == "to your own channel"
            (address,) = [
                row["channel_name"]
                for row in site.database.query("SELECT channel_name, pid FROM realtime_process")
                if row["pid"] == doomed.pid
            ]
            assert address.startswith("other:")
            key = "other:group:others"
            with site.redis.client() as redis:
                if site.pairing.layer == "core":
                    assert redis.zrange(key, 0, -1) == [address.removeprefix("other:")]
                doomed.kill()
                done = await site.amanage(
                    "reap_connections", "--once", "--interval", "0.5", "--timeout", "0.3"
                )
                assert done.returncode == 3, done.stdout + done.stderr
                assert redis.zrange(key, 0, -1) == []
            assert site.open_connections(doomed) == site.open_memberships(doomed) == 0
