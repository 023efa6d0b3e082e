"""Tickets, refreshes and removals in realtime.js: how a client keeps its rights, and how it loses them."""

import json
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Raw
from playwright.async_api import Page

from realtime.closing import CloseReason
from realtime.wire import frames
from tests.browser.scripted import HALF, Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

G = "staff.news"
SECRET = "secret-ticket"


@pytest_asyncio.fixture(loop_scope="module")
async def client(page: Page) -> Client:
    """A client with a first ticket on its way."""
    return await Client(page).start(tickets=True)


async def tickets(client: Client) -> int:
    """Return how often the client has asked for a ticket."""
    return int(await client.get("asked.length"))  # type: ignore[call-overload]


async def hand_out(client: Client, ticket: object, number: int = -1) -> None:
    """Answer one call of `ticket`, by default the newest."""
    await client.run("asked.at(argument[0]).resolve(argument[1])", [number, ticket])


async def refuse(client: Client, error: str = "new Error('no')") -> None:
    """Reject the newest call of `ticket`."""
    await client.run(f"asked.at(-1).reject({error})")


async def connected(client: Client) -> None:
    await hand_out(client, f"{SECRET}-{await tickets(client)}")
    await client.accept()


async def offered(client: Client) -> Any:
    return await client.get("WebSocket.all.map(({ protocols }) => protocols.slice(1))")


async def refreshes(client: Client) -> list[frames.ClientFrame]:
    return [frame for frame in await client.sent() if isinstance(frame, frames.ClientRefresh)]


async def last_reason(client: Client) -> Any:
    return await client.get("connection.lastClose.reason")


# Tickets.


async def test_each_attempt_has_a_ticket_of_its_own(client: Client) -> None:
    assert (await client.state(), await client.sockets()) == ("connecting", 0)
    await hand_out(client, "one")
    assert await client.get("WebSocket.all[0].protocols") == [frames.SUBPROTOCOL, "realtime.ticket.one"]
    await client.accept()
    await client.drops(1006)
    await client.passes(HALF)
    assert (await client.state(), await client.sockets()) == ("connecting", 1)
    await hand_out(client, " two\n")
    assert await offered(client) == [["realtime.ticket.one"], ["realtime.ticket.two"]]
    await client.accept()
    assert await client.state() == "open"


async def test_a_function_that_returns_a_text_serves_as_well(page: Page) -> None:
    client = await Client(page).start(connect=False)
    await client.run(
        "window.connection = new module.RealtimeConnection('/ws/', { ticket: () => 'plain' });"
        "connection.connect()"
    )
    assert await offered(client) == [["realtime.ticket.plain"]]


@pytest.mark.parametrize(
    "function",
    [
        "() => { throw new Error('no') }",
        "async () => { throw undefined }",
        "async () => undefined",
        "async () => ({ ticket: 'text' })",
        "async () => 'two words'",
    ],
)
async def test_without_a_ticket_the_client_tries_again_later(page: Page, function: str) -> None:
    client = await Client(page).start(connect=False)
    await client.run(
        f"window.connection = new module.RealtimeConnection('/ws/', {{ ticket: {function} }});"
        "connection.connect()"
    )
    assert (await client.state(), await client.sockets()) == ("waiting", 0)
    assert await client.get("[connection.lastClose.code, connection.lastClose.reason]") == [None, "no_ticket"]
    assert await client.waited() == HALF
    await client.passes(HALF)
    assert (await client.state(), await client.waited()) == ("waiting", 2 * HALF)


async def test_a_rejected_ticket_is_followed_by_another(client: Client) -> None:
    await refuse(client)
    await client.passes(HALF)
    assert await tickets(client) == 2
    await connected(client)
    assert await client.state() == "open"


async def test_an_error_with_stop_is_final(client: Client) -> None:
    await client.run("watch('join', connection.join(argument))", G)
    await refuse(client, "Object.assign(new Error('signed out'), { stop: true })")
    assert (await client.state(), await last_reason(client)) == ("closed", "no_ticket")
    assert await client.get("outcomes.join") == "closed"
    await client.shown()
    await client.passes(3600)
    assert await tickets(client) == 1
    await client.run("connection.connect()")
    await connected(client)
    assert await client.state() == "open"


async def test_a_ticket_that_never_comes_ends_the_attempt(client: Client) -> None:
    await client.passes(29)
    assert await client.state() == "connecting"
    await client.passes(1)
    assert (await client.state(), await last_reason(client)) == ("waiting", "never_opened")
    await client.passes(HALF)
    assert await tickets(client) == 2
    await hand_out(client, "late", number=0)
    assert await client.sockets() == 0
    await hand_out(client, "new")
    assert await offered(client) == [["realtime.ticket.new"]]


async def test_a_slow_ticket_leaves_less_time_for_the_socket(client: Client) -> None:
    await client.passes(29)
    await hand_out(client, "slow")
    assert await client.sockets() == 1
    await client.passes(1)
    assert (await client.state(), await last_reason(client)) == ("waiting", "never_opened")


async def test_a_ticket_for_a_closed_connection_opens_nothing(client: Client) -> None:
    await client.run("connection.close()")
    assert (await client.state(), await last_reason(client)) == ("closed", "closed_here")
    await client.run("connection.connect()")
    await hand_out(client, "old", number=0)
    assert await client.sockets() == 0
    await hand_out(client, "new")
    await client.accept()
    assert (await client.state(), await offered(client)) == ("open", [["realtime.ticket.new"]])


async def test_a_page_that_wakes_up_asks_for_one_ticket(client: Client) -> None:
    await client.shown()
    await client.run("connection.connect(); dispatchEvent(new Event('online'))")
    await client.passes(5)
    assert (await client.state(), await tickets(client)) == ("connecting", 1)


async def test_a_page_that_slept_during_the_ticket_asks_for_another(client: Client) -> None:
    """The first ticket may be too old by now, and the attempt certainly is."""
    await client.sleeps(600)
    await client.passes(0.1)
    assert await client.state() == "waiting"
    await hand_out(client, "old", number=0)
    await client.passes(1)
    assert (await tickets(client), await client.sockets()) == (2, 0)


# The codes.


@pytest.mark.parametrize("goodbye", [True, False])
async def test_4501_reconnects_with_another_ticket(client: Client, goodbye: bool) -> None:
    await connected(client)
    if goodbye:
        await client.says(frames.Goodbye(CloseReason.NOT_AUTHENTICATED.value, reconnect=False))
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    assert (await client.state(), await client.waited()) == ("waiting", HALF)
    await client.passes(HALF)
    await connected(client)
    assert (await client.state(), len(await offered(client))) == ("open", 2)


async def test_refused_tickets_are_tried_ever_more_slowly(client: Client) -> None:
    for attempt in range(8):
        await hand_out(client, "bad")
        await client.run("WebSocket.all.at(-1).accept()")
        await client.says(frames.Goodbye(CloseReason.NOT_AUTHENTICATED.value, reconnect=False))
        await client.drops(CloseReason.NOT_AUTHENTICATED.code)
        assert await client.waited() == min(30, 2**attempt) * HALF
        await client.passes(await client.waited())


@pytest.mark.parametrize("reason", [CloseReason.FORBIDDEN, CloseReason.KICKED])
async def test_other_final_codes_are_final_with_tickets(client: Client, reason: CloseReason) -> None:
    await connected(client)
    await client.drops(reason.code)
    assert await client.state() == "closed"


async def test_4501_without_tickets_is_final(page: Page) -> None:
    client = await Client(page).start()
    await client.accept()
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    assert (await client.state(), await client.get("connection.lastClose.code")) == ("closed", 4501)


@pytest.mark.parametrize("reason", [CloseReason.RATE_LIMITED, CloseReason.TOO_MANY_CONNECTIONS])
async def test_limits_make_the_client_wait_and_come_back(page: Page, reason: CloseReason) -> None:
    client = await Client(page).start()
    for attempt in range(3):
        await client.run("WebSocket.all.at(-1).accept()")
        await client.says(frames.Goodbye(reason.value, reconnect=True))
        await client.drops(reason.code)
        assert (await client.waited(), await last_reason(client)) == (2**attempt * HALF, reason.value)
        await client.passes(await client.waited())
    await client.accept()
    assert await client.state() == "open"


# Refreshes.


async def test_a_refresh_sends_a_new_ticket(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    assert await client.events("refresh") == [{"event": "refresh", "type": "refresh", "within": 30}]
    assert (await tickets(client), await refreshes(client)) == (2, [])
    await hand_out(client, "newer")
    (sent,) = await refreshes(client)
    assert sent == frames.ClientRefresh(ref=1, ticket="newer")
    await client.says(frames.Refreshed(ref=1, expires_in=3600.0))
    await client.passes(40)
    assert (await client.state(), await tickets(client), await client.sockets()) == ("open", 2, 1)
    assert await client.events("error") == []


async def test_a_refresh_without_tickets_has_none(page: Page) -> None:
    client = await Client(page).start()
    await client.accept()
    await client.says(frames.Refresh(within=30.0))
    assert await refreshes(client) == [frames.ClientRefresh(ref=1)]
    await client.says(frames.Refreshed(ref=1))
    assert await client.state() == "open"


async def test_a_refresh_that_gets_no_ticket_is_tried_again(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    for failure in range(3):
        await refuse(client)
        await client.passes(2**failure * HALF)
        assert await tickets(client) == failure + 3
    await hand_out(client, "newer")
    assert len(await refreshes(client)) == 1
    assert (await client.state(), await client.events("error")) == ("open", [])


async def test_a_refresh_that_is_stopped_ends_with_the_connection(client: Client) -> None:
    await connected(client)
    stop = "Object.assign(new Error('signed out'), { stop: true })"
    await client.says(frames.Refresh(within=30.0))
    await refuse(client, stop)
    await client.passes(20)
    assert (await client.state(), await tickets(client)) == ("open", 2)
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    await client.passes(1)
    await refuse(client, stop)
    assert (await client.state(), await tickets(client)) == ("closed", 3)


@pytest.mark.parametrize("code", ["bad_ticket", "rate_limited", "internal"])
async def test_a_refresh_that_is_refused_is_reported_and_tried_again(client: Client, code: str) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await hand_out(client, SECRET)
    await client.says(frames.Error(code=code, detail="Not now.", ref=1))
    assert await client.events("error") == [{"event": "error", "code": code, "detail": "Not now."}]
    await client.passes(HALF)
    await hand_out(client, "newer")
    assert [frame.ticket for frame in await refreshes(client)] == [SECRET, "newer"]  # type: ignore[union-attr]
    await client.says(frames.Refreshed(ref=2))
    await client.passes(20)
    assert (await tickets(client), len(await client.events("error"))) == (3, 1)


async def test_a_ticket_for_an_ended_socket_is_not_sent(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    await client.passes(HALF)
    assert await tickets(client) == 3
    await connected(client)
    await hand_out(client, "for the first socket", number=1)
    assert (await client.state(), await refreshes(client)) == ("open", [])


async def test_a_failed_refresh_of_an_ended_socket_is_forgotten(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await refuse(client)
    await client.drops(1006)
    await client.passes(HALF)
    await connected(client)
    await client.passes(20)
    assert (await tickets(client), await refreshes(client)) == (3, [])


async def test_a_refresh_that_hangs_does_not_hold_up_the_client(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await client.says(frames.Message(G, Raw(b"1")))
    await client.passes(30)
    assert (await client.state(), len(await client.events("message"))) == ("open", 1)
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    await client.passes(HALF)
    await connected(client)
    assert (await client.state(), await tickets(client)) == ("open", 3)


async def test_an_answer_that_comes_late_harms_nothing(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await hand_out(client, "newer")
    await client.drops(1006)
    await client.says(frames.Refreshed(ref=1))
    await client.passes(HALF)
    await connected(client)
    await client.run("watch('join', connection.join(argument))", G)
    # Refs are never used twice, so this answers nothing.
    await client.says(frames.Refreshed(ref=1))
    assert await client.get("outcomes.join") == "pending"
    await client.says(frames.Joined(ref=2, group=G))
    assert await client.get("outcomes.join.type") == "joined"
    assert await client.events("error") == []


async def test_a_refresh_that_waited_while_the_page_slept_is_answered(client: Client) -> None:
    """The server waits longer than the page slept: the socket is alive."""
    await connected(client)
    await client.sleeps(20)
    await client.says(frames.Refresh(within=30.0))
    await client.passes(0.1)
    await hand_out(client, "newer")
    assert (await client.state(), len(await refreshes(client))) == ("open", 1)


async def test_a_refresh_of_a_socket_that_died_in_sleep_is_ignored(client: Client) -> None:
    await connected(client)
    await client.sleeps(600)
    await client.passes(1)
    assert (await last_reason(client), await tickets(client)) == ("silent", 2)
    await client.says(frames.Refresh(within=30.0), socket=0)
    assert (await client.events("refresh"), await tickets(client)) == ([], 2)
    await connected(client)
    assert await client.state() == "open"


async def test_an_unanswered_refresh_finds_a_dead_socket(client: Client) -> None:
    await connected(client)
    await client.says(frames.Refresh(within=30.0))
    await hand_out(client, "newer")
    await client.passes(11)
    assert (await last_reason(client), await client.state()) == ("silent", "connecting")


# Groups from which the server removes the client.


async def in_group(client: Client) -> None:
    await connected(client)
    await client.run("watch('join', connection.join(argument))", G)
    await client.sends(json.dumps({"type": "joined", "group": G, "ref": 1, "epoch": "e", "offset": 7}))


async def test_a_removed_group_is_forgotten_and_told(client: Client) -> None:
    await in_group(client)
    await client.says(frames.Removed(G, "forbidden"))
    assert await client.events("removed") == [
        {"event": "removed", "type": "removed", "group": G, "reason": "forbidden"}
    ]
    assert (await client.events("groups"))[-1]["groups"] == []
    assert await client.get(
        "[connection.groups, connection.position(argument)]".replace("argument", f"'{G}'")
    ) == [
        [],
        None,
    ]
    await client.drops(1006)
    await client.passes(HALF)
    await connected(client)
    assert await client.sent() == []


async def test_the_application_may_join_a_removed_group_again(client: Client) -> None:
    await in_group(client)
    await client.run(
        "connection.addEventListener('removed', () => watch('again', connection.join(argument)))", G
    )
    await client.says(frames.Removed(G, "forbidden"))
    assert (await client.sent())[-1] == frames.Join(group=G, ref=2)
    await client.says(frames.Error(code="forbidden", detail="No.", ref=2))
    assert (await client.get("outcomes.again"), await client.events("error")) == ("forbidden", [])
    await client.run("watch('later', connection.join(argument))", G)
    await client.says(frames.Joined(ref=3, group=G))
    assert await client.get("connection.groups") == [G]


async def test_the_answer_to_a_join_counts_more_than_a_removal(client: Client) -> None:
    """The server got the join after it had removed the client, and the rights were back."""
    await in_group(client)
    await client.run("watch('again', connection.join(argument))", G)
    await client.says(frames.Removed(G, "forbidden"))
    assert await client.get("connection.groups") == []
    await client.sends(
        json.dumps({"type": "joined", "group": G, "ref": 2, "epoch": "e", "offset": 8, "recovered": True})
    )
    await client.says(frames.Message(G, Raw(b"8"), offset=8, epoch="e"))
    assert await client.get("[outcomes.again.type, connection.groups]") == ["joined", [G]]
    assert len(await client.events("message")) == 1
    await client.drops(1006)
    await client.passes(HALF)
    await connected(client)
    assert isinstance((await client.sent())[-1], frames.Join)


async def test_a_removal_of_an_unknown_group_harms_nothing(client: Client) -> None:
    await connected(client)
    await client.says(frames.Removed("public.other", "forbidden"))
    await client.sends('{"type": "removed"}')
    assert (await client.state(), len(await client.events("removed"))) == ("open", 1)


async def test_a_removed_group_is_not_remembered(page: Page) -> None:
    client = await Client(page).start(options={"remember": True}, tickets=True)
    await in_group(client)
    await client.passes(1)
    assert G in str(await client.get("JSON.stringify({ ...sessionStorage })"))
    await client.says(frames.Removed(G, "forbidden"))
    await client.passes(1)
    assert G not in str(await client.get("JSON.stringify({ ...sessionStorage })"))


# Secrecy.


async def test_no_ticket_appears_anywhere_but_in_the_handshake(page: Page) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    client = await Client(page).start(options={"remember": True, "queue": True}, tickets=True)
    await hand_out(client, f"{SECRET} is no token")
    await client.passes(HALF)
    await connected(client)
    await client.run("watch('join', connection.join(argument))", G)
    await client.says(frames.Refresh(within=30.0))
    await hand_out(client, SECRET)
    await client.says(frames.Error(code="bad_ticket", detail="This ticket is not valid.", ref=2))
    await client.passes(HALF)
    await hand_out(client, SECRET)
    await client.drops(CloseReason.NOT_AUTHENTICATED.code)
    await client.passes(2)
    await refuse(client, f"new Error('{SECRET}')")
    await client.passes(2)
    seen = await client.get(
        "JSON.stringify([seen, outcomes, connection, { ...sessionStorage }, { ...localStorage },"
        " document.cookie, connection.url, connection.lastClose, WebSocket.all.map(({ url }) => url)])"
    )
    assert "never_opened" in str(seen) or "no_ticket" in str(seen)
    assert SECRET not in str(seen)
    assert said == []
