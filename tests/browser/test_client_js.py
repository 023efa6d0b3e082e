"""realtime.js in Chromium, with the test as its clock, its network and its server.

Frames to the client are built and frames from it parsed by `realtime.wire.frames`, so the two ends of the
protocol cannot drift apart.
"""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec import Raw
from playwright.async_api import Page

from realtime import closing
from realtime.wire import frames
from realtime.wire.payload import encode_data
from tests.browser.scripted import HALF, Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

# The protocol.


async def test_it_offers_the_subprotocol_and_takes_the_pages_scheme(client: Client) -> None:
    assert await client.get("connection.url") == "wss://site.test/ws/"
    assert str(await client.get("WebSocket.all[0].url")).startswith("wss://site.test/ws/?")
    assert await client.get("WebSocket.all[0].protocols") == [frames.SUBPROTOCOL]


async def test_it_is_open_only_after_the_welcome(client: Client) -> None:
    await client.run("WebSocket.all[0].accept()")
    assert await client.state() == "connecting"
    await client.says(frames.Welcome("c-1", 30.0, ["user.7"]))
    assert await client.state() == "open"
    assert await client.get("[connection.id, connection.maxSilence]") == ["c-1", 30]
    assert await client.get("connection.groups") == ["user.7"]


async def test_a_ping_is_answered_before_any_listener_runs(client: Client) -> None:
    await client.accept()
    await client.run(
        "connection.addEventListener('ping', () => (window.sentBefore = WebSocket.all[0].sent.length))"
    )
    await client.says(frames.Ping(17))
    assert await client.sent() == [frames.ClientPong(17)]
    assert await client.get("sentBefore") == 1


async def test_messages_arrive_with_the_fields_of_the_server(client: Client) -> None:
    await client.accept()
    await client.says(
        frames.Message("public.lobby", encode_data({"hello": 1}), from_=None, offset=4, epoch="e")
    )
    assert await client.events("message") == [
        {
            "event": "message",
            "type": "message",
            "group": "public.lobby",
            "data": {"hello": 1},
            "from": None,
            "offset": 4,
            "epoch": "e",
        }
    ]


async def test_a_notification_is_an_event(client: Client) -> None:
    await client.accept()
    await client.sends('{"type":"notification","data":{"hello":1}}')
    expected = {"event": "notification", "type": "notification", "data": {"hello": 1}}
    assert await client.events("notification") == [expected]


async def test_frames_that_it_does_not_understand_are_ignored(client: Client) -> None:
    await client.accept()
    for text in (
        '{"type":"presence","group":"public.lobby","count":3}',
        '{"type":"constructor"}',
        '{"type":5}',
        "{}",
        "[]",
        "null",
        "not JSON",
        '{"type":"pong"}',
        '{"type":"joined"}',
    ):
        await client.sends(text)
    await client.sends('{"type":"ping","n":1,"colour":"green"}')
    assert await client.state() == "open"
    assert await client.sent() == [frames.ClientPong(1)]


async def test_a_command_resolves_with_the_frame_of_its_ref(client: Client) -> None:
    await client.accept()
    await client.run("watch('first', connection.publish('public.a', {x: 1}))")
    await client.run("watch('second', connection.publish('public.a', 'text'))")
    first, second = await client.sent()
    assert first == frames.Publish("public.a", Raw(b'{"x":1}'), first.ref, first.id)  # type: ignore[union-attr]
    assert len({first.id, second.id, None}) == 3, "each message has an id of its own"  # type: ignore[union-attr]
    await client.says(frames.Published(second.ref, "public.a"))  # type: ignore[union-attr]
    outcomes = await client.get("outcomes")
    assert outcomes["first"] == "pending"  # type: ignore[index]
    assert outcomes["second"]["type"] == "published"  # type: ignore[index]


async def test_a_refused_command_rejects_with_the_code_of_the_error(client: Client) -> None:
    await client.accept()
    await client.run("watch('join', connection.join('staff.news'))")
    await client.says(frames.Error("forbidden", "Only staff may join.", await client.ref()))
    assert await client.get("outcomes.join") == "forbidden"
    assert await client.get("connection.groups") == []
    assert await client.events("error") == []


async def test_an_error_that_answers_no_command_is_an_event(client: Client) -> None:
    await client.accept()
    await client.says(frames.Error("rate_limited", "Slow down."))
    [error] = await client.events("error")
    assert (error["code"], error["detail"]) == ("rate_limited", "Slow down.")


async def test_publishing_without_connection_or_data_fails(client: Client) -> None:
    await client.run("watch('early', connection.publish('public.a', 1))")
    await client.accept()
    await client.run("watch('nothing', connection.publish('public.a', undefined))")
    assert await client.get("outcomes") == {"early": "not_connected", "nothing": "TypeError"}
    assert await client.sent() == []


async def test_a_sent_command_rejects_when_the_connection_is_lost(client: Client) -> None:
    await client.accept()
    await client.run("watch('publish', connection.publish('public.a', 1))")
    await client.drops(1006)
    assert await client.get("outcomes.publish") == "disconnected"


# The client id.


async def client_ids(client: Client) -> list[str]:
    """Return the client id that each socket has in its URL."""
    urls = await client.page.evaluate("WebSocket.all.map((socket) => socket.url)")
    return [parse_qs(urlsplit(url).query)["client"][0] for url in urls]


async def test_every_connect_has_the_same_client_id(client: Client) -> None:
    await client.drops(1006)
    await client.passes(1)
    await client.run("connection.close(); connection.connect()")
    ids = await client_ids(client)
    assert (len(ids), len(set(ids))) == (3, 1)
    assert re.fullmatch(r"[A-Za-z0-9._-]{8,64}", ids[0])


async def test_every_connection_has_a_client_id_of_its_own(client: Client) -> None:
    """A duplicated tab has a copy of the storage, too."""
    await client.run(
        "for (const _ of '123') new module.RealtimeConnection('/ws/', { remember: true }).connect()"
    )
    assert len(set(await client_ids(client))) == 4
    assert await client.get("Object.values({ ...sessionStorage, ...localStorage })") == []


async def test_the_client_id_follows_the_query_of_the_application(page: Page) -> None:
    client = await Client(page).start("/ws/?next=%20a+b&x=(1)")
    [client_id] = await client_ids(client)
    assert (
        await client.get("WebSocket.all[0].url") == f"{await client.get('connection.url')}&client={client_id}"
    )
    assert await client.get("connection.url") == "wss://site.test/ws/?next=%20a+b&x=(1)"


async def test_a_client_id_of_the_application_is_the_only_one(page: Page) -> None:
    """The server refuses two."""
    client = await Client(page).start("/ws/?client=chosen-by-the-page")
    assert await client.get("WebSocket.all[0].url") == "wss://site.test/ws/?client=chosen-by-the-page"


@pytest.mark.parametrize("missing", ["randomUUID", "getRandomValues"])
async def test_client_ids_need_no_secure_context(client: Client, missing: str) -> None:
    script = {
        "randomUUID": "Object.defineProperty(crypto, 'randomUUID', { value: undefined })",
        "getRandomValues": (
            "Object.defineProperty(window, 'crypto', { value: undefined });"
            "let n = 0; Math.random = () => (n = (n + 0.123) % 1)"
        ),
    }
    await client.run(script[missing])
    await client.run("for (const _ of '123') new module.RealtimeConnection().connect()")
    ids = await client_ids(client)
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{8,64}", each) for each in ids)


@pytest.mark.parametrize("goodbye", [True, False])
async def test_a_superseded_client_comes_back_by_another_id(client: Client, goodbye: bool) -> None:
    """A late attempt of its own was served after the current socket: no other client has its id."""
    await client.accept()
    if goodbye:
        await client.says(frames.Goodbye(reason="superseded", reconnect=False))
    await client.drops(closing.CloseReason.SUPERSEDED.code)
    assert await client.get("connection.lastClose.code") == 4509
    await client.passes(5)
    first, second = await client_ids(client)
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9._-]{8,64}", second)


async def test_a_superseded_client_with_a_chosen_id_stays_away(page: Page) -> None:
    """Another tab may have the same id. The goodbye may be lost: the code alone must be enough."""
    client = await Client(page).start("/ws/?client=chosen-by-the-page")
    await client.accept()
    await client.drops(closing.CloseReason.SUPERSEDED.code)
    assert (await client.state(), await client.get("connection.lastClose.code")) == ("closed", 4509)
    await client.shown()
    await client.run("dispatchEvent(new Event('online'))")
    await client.passes(3600)
    assert await client.sockets() == 1


# Reconnecting.


async def test_it_reconnects_after_the_codes_that_ask_for_it(client: Client) -> None:
    codes = {reason.code for reason in closing.CloseReason} | {1000, 1001, 1006, 1011, 4499, 4999}
    # A superseded client has tests of its own.
    for code in sorted(codes - {closing.CloseReason.SUPERSEDED.code}):
        sockets = await client.sockets()
        await client.accept()
        await client.drops(code)
        await client.passes(30)
        reconnected = await client.sockets() > sockets
        assert reconnected is closing.may_reconnect(code), code
        if not reconnected:
            assert await client.state() == "closed", code
            await client.run("connection.connect()")


async def test_4503_is_final_until_the_page_connects_again(client: Client) -> None:
    await client.accept()
    await client.says(frames.Goodbye("forbidden", False))
    await client.drops(4503)
    await client.passes(3600)
    await client.shown()
    assert await client.sockets() == 1
    assert await client.get("connection.lastClose.reason") == "forbidden"
    await client.run("connection.connect()")
    assert await client.sockets() == 2


async def test_a_goodbye_without_reconnect_is_final_with_any_code(client: Client) -> None:
    await client.accept()
    await client.says(frames.Goodbye("kicked", False))
    await client.drops(1006)
    await client.passes(60)
    assert (await client.state(), await client.sockets()) == ("closed", 1)


async def test_a_page_that_wakes_up_keeps_the_servers_slot(client: Client) -> None:
    await client.accept()
    await client.says(frames.Goodbye("server_restart", True, 7.5))
    await client.drops(4000)
    assert await client.state() == "waiting"
    await client.passes(7.4)
    await client.shown()
    assert await client.sockets() == 1
    await client.passes(0.2)
    assert await client.sockets() == 2


async def test_a_goodbye_without_a_close_is_a_close(client: Client) -> None:
    await client.accept()
    await client.says(frames.Goodbye("server_restart", True, 1.0))
    await client.passes(7)
    assert await client.sockets() == 2


async def test_back_off_doubles_up_to_its_cap_and_takes_a_random_part(client: Client) -> None:
    waits = []
    for _ in range(8):
        await client.drops(1006)
        waits.append(await client.waited())
        await client.passes(waits[-1])
    assert waits == [HALF * window for window in (1, 2, 4, 8, 16, 30, 30, 30)]


async def test_without_a_network_the_back_off_stays_short(client: Client) -> None:
    await client.run("window.online = false")
    await client.run("Object.defineProperty(navigator, 'onLine', { get: () => window.online })")
    for window in (1, 1.5, 1.5, 1.5, 1.5, 1.5):
        await client.drops(1006)
        assert await client.waited() == HALF * window
        await client.passes(HALF * window)
    await client.run("window.online = true")
    await client.drops(1006)
    assert await client.waited() == HALF * 30


async def test_only_a_connection_that_lasted_resets_the_back_off(client: Client) -> None:
    for lasted, expected in ((0, 1), (1, 2), (9, 4), (11, 1), (1, 2)):
        await client.accept()
        await client.passes(lasted)
        await client.drops(1006)
        assert await client.waited() == HALF * expected
        await client.passes(HALF * expected)


async def test_a_server_that_never_says_welcome_is_given_up(client: Client) -> None:
    await client.run("WebSocket.all[0].accept()")
    await client.passes(29)
    assert await client.state() == "connecting"
    await client.passes(2)
    assert await client.get("connection.lastClose.reason") == "never_opened"
    await client.passes(1)
    assert await client.sockets() == 2


async def test_close_is_final_and_cancels_a_reconnect_that_is_due(client: Client) -> None:
    await client.accept()
    await client.drops(1006)
    await client.run("connection.close()")
    await client.passes(60)
    await client.shown()
    assert (await client.state(), await client.sockets()) == ("closed", 1)


async def test_frames_of_an_ended_socket_are_ignored(client: Client) -> None:
    await client.accept(max_silence=10)
    await client.passes(11)
    await client.passes(1)
    await client.accept(groups=["public.lobby"])
    assert await client.get("WebSocket.all[0].readyState") == 2, "the old socket was not closed"
    await client.says(frames.Message("public.lobby", Raw(b'"late"')), socket=0)
    await client.says(frames.Ping(9), socket=0)
    await client.says(frames.Goodbye("kicked", False), socket=0)
    await client.drops(4503, socket=0)
    assert (await client.state(), await client.get("connection.id")) == ("open", "connection-2")
    assert await client.get("connection.groups") == ["public.lobby"]
    assert await client.get("connection.lastClose.reason") == "silent"
    assert await client.events("message") == []
    assert await client.sent(socket=0) == []
    await client.passes(9)
    assert (await client.state(), await client.sockets()) == ("open", 2)


# Silence.


async def test_a_silent_server_is_left_after_max_silence(client: Client) -> None:
    await client.accept(max_silence=45.0)
    await client.passes(44)
    assert await client.state() == "open"
    await client.passes(2)
    assert await client.get("connection.lastClose.reason") == "silent"
    await client.passes(1)
    assert await client.sockets() == 2


@pytest.mark.parametrize("text", ['{"type":"ping","n":1}', '{"type":"from-the-future"}', "not JSON"])
async def test_any_frame_breaks_the_silence(client: Client, text: str) -> None:
    await client.accept(max_silence=10)
    for _ in range(5):
        await client.passes(8)
        await client.sends(text)
    assert (await client.state(), await client.sockets()) == ("open", 1)


async def test_a_page_that_slept_for_max_silence_notices_immediately(client: Client) -> None:
    await client.accept(max_silence=45)
    await client.passes(3)
    await client.sleeps(600)
    await client.passes(1)
    assert await client.get("connection.lastClose.reason") == "silent"


async def test_frames_that_queued_during_a_stall_are_handled_first(client: Client) -> None:
    await client.accept(max_silence=10)
    # After the timers that are due, and before the timers that these start, as after a long task in the page.
    await client.run('setTimeout(() => WebSocket.all[0].deliver(\'{"type":"ping","n":1}\'), 1000)')
    await client.sleeps(30)
    await client.passes(5)
    assert (await client.state(), await client.sockets()) == ("open", 1)


@pytest.mark.parametrize(
    "event",
    [
        "document.dispatchEvent(new Event('visibilitychange'))",
        "document.dispatchEvent(new Event('resume'))",
        "window.dispatchEvent(new Event('online'))",
        "window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
        "window.dispatchEvent(new Event('focus'))",
    ],
)
async def test_a_page_that_wakes_up_asks_and_leaves_a_silent_server(client: Client, event: str) -> None:
    await client.accept()
    await client.passes(20)
    await client.run(event)
    assert await client.sent() == [frames.ClientPing(1)]
    await client.passes(4)
    assert await client.state() == "open"
    await client.passes(2)
    assert await client.get("connection.lastClose.reason") == "silent"


async def test_waking_up_on_a_living_socket_changes_nothing(client: Client) -> None:
    await client.accept()
    await client.shown()
    await client.passes(1)
    await client.says(frames.Pong(1))
    await client.passes(40)
    assert (await client.state(), await client.sockets()) == ("open", 1)


async def test_the_events_of_one_wake_up_share_one_question(client: Client) -> None:
    await client.accept()
    for _ in range(3):
        await client.shown()
    assert await client.sent() == [frames.ClientPing(1)]
    await client.says(frames.Pong(1))
    await client.shown()
    assert (await client.sent())[1:] == [frames.ClientPing(2)]


async def test_a_frame_from_before_the_sleep_proves_nothing(client: Client) -> None:
    await client.accept()
    await client.shown()
    await client.says(frames.Message("public.lobby", Raw(b'"was in a buffer"')))
    await client.passes(7)
    assert await client.get("connection.lastClose.reason") == "silent"


async def test_a_pong_behind_other_frames_is_waited_for(client: Client) -> None:
    await client.accept()
    await client.shown()
    for _ in range(5):
        await client.passes(4)
        await client.says(frames.Message("public.lobby", Raw(b"1")))
    await client.says(frames.Pong(1))
    await client.passes(40)
    assert (await client.state(), await client.sockets()) == ("open", 1)


async def test_a_page_that_wakes_up_while_waiting_tries_immediately(client: Client) -> None:
    for _ in range(5):
        await client.drops(1006)
        await client.passes(await client.waited())
    await client.drops(1006)
    sockets = await client.sockets()
    await client.shown()
    assert await client.sockets() == sockets + 1


async def test_a_command_after_silence_asks_the_server(client: Client) -> None:
    await client.accept()
    await client.run("watch('publish', connection.publish('public.a', 1))")
    await client.passes(6)
    assert (await client.sent())[1:] == [frames.ClientPing(1)]
    await client.passes(6)
    assert await client.get("outcomes.publish") == "disconnected"


async def test_check_measures_the_round_trip(client: Client) -> None:
    await client.accept()
    await client.run("watch('check', connection.check())")
    await client.passes(0.25)
    await client.says(frames.Pong(1))
    assert await client.get("outcomes.check") == pytest.approx(0.25)
    assert await client.get("connection.roundTrip") == pytest.approx(0.25)


async def test_a_clock_that_is_set_back_delays_no_deadline(client: Client) -> None:
    await client.accept()
    await client.page.clock.set_system_time(1_700_000_100 - 36_000)
    await client.passes(50)
    assert await client.get("connection.lastClose.reason") == "silent"


# Pages that sleep.


async def test_a_frozen_page_opens_no_socket(client: Client) -> None:
    await client.accept()
    await client.run("document.dispatchEvent(new Event('freeze'))")
    await client.drops(1006)
    await client.passes(120)
    await client.run("window.dispatchEvent(new Event('online'))")
    assert (await client.state(), await client.sockets()) == ("waiting", 1)
    await client.run("document.dispatchEvent(new Event('resume'))")
    assert (await client.state(), await client.sockets()) == ("connecting", 2)


async def test_a_frozen_page_keeps_the_socket_that_it_has(client: Client) -> None:
    await client.accept()
    await client.run("document.dispatchEvent(new Event('freeze'))")
    await client.says(frames.Ping(1))
    await client.run("document.dispatchEvent(new Event('resume'))")
    assert await client.sent() == [frames.ClientPong(1), frames.ClientPing(1)]
    assert await client.sockets() == 1


async def test_a_page_that_closed_while_frozen_connects_later(client: Client) -> None:
    await client.accept()
    await client.run("document.dispatchEvent(new Event('freeze'))")
    await client.drops(4503)
    await client.run("document.dispatchEvent(new Event('resume')); connection.connect()")
    await client.drops(1006)
    await client.passes(1)
    assert await client.sockets() == 3


async def test_a_hidden_page_reconnects(client: Client) -> None:
    await client.accept()
    await client.run("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
    await client.shown()
    await client.drops(1006)
    await client.passes(1)
    assert await client.sockets() == 2


# Groups.


async def test_groups_are_joined_again_after_a_reconnect(client: Client) -> None:
    await client.accept()
    for group in ("public.a", "public.b"):
        await client.run("connection.join(argument)", group)
        await client.says(frames.Joined(await client.ref(), group))
    await client.run("connection.leave('public.a')")
    await client.says(frames.Left(await client.ref(), "public.a"))
    await client.drops(1006)
    assert await client.get("connection.groups") == []
    await client.passes(1)
    await client.accept()
    assert [frame.group for frame in await client.sent()] == ["public.b"]  # type: ignore[union-attr]
    await client.says(frames.Joined(await client.ref(), "public.b"))
    assert await client.get("connection.groups") == ["public.b"]


async def test_a_join_waits_for_the_connection_however_often_it_breaks(client: Client) -> None:
    await client.run("watch('join', connection.join('public.a'))")
    await client.accept()
    await client.drops(1006)
    await client.passes(1)
    await client.accept()
    assert await client.get("outcomes.join") == "pending"
    await client.says(frames.Joined(await client.ref(), "public.a"))
    assert (await client.get("outcomes.join"))["group"] == "public.a"  # type: ignore[index]


async def test_a_group_that_the_address_joins_can_be_left_for_good(client: Client) -> None:
    await client.run("watch('join', connection.join('public.a'))")
    await client.accept(groups=["public.a"])
    assert await client.sent() == []
    assert (await client.get("outcomes.join"))["group"] == "public.a"  # type: ignore[index]
    await client.run("connection.leave('public.a')")
    await client.says(frames.Left(await client.ref(), "public.a"))
    await client.drops(1006)
    await client.passes(1)
    await client.accept(groups=["public.a"])
    assert await client.sent() == [frames.Leave("public.a", await client.ref())]


async def test_a_rejoin_that_is_refused_is_given_up_and_reported(client: Client) -> None:
    await client.accept()
    await client.run("connection.join('public.a')")
    await client.says(frames.Joined(await client.ref(), "public.a"))
    await client.drops(1006)
    await client.passes(1)
    await client.accept()
    await client.says(frames.Error("forbidden", "No longer.", await client.ref()))
    [error] = await client.events("error")
    assert (error["code"], error["group"]) == ("forbidden", "public.a")
    await client.passes(40)
    assert len(await client.sent()) == 1


async def test_a_rejoin_that_came_too_fast_is_tried_again_later(client: Client) -> None:
    await client.accept()
    await client.run("connection.join('public.a')")
    await client.says(frames.Joined(await client.ref(), "public.a"))
    await client.drops(1006)
    await client.passes(1)
    await client.accept()
    await client.says(frames.Error("rate_limited", "Slow down.", await client.ref()))
    assert len(await client.sent()) == 1
    await client.passes(1)
    assert len(await client.sent()) == 2
    await client.says(frames.Joined(await client.ref(), "public.a"))
    assert await client.get("connection.groups") == ["public.a"]


async def test_a_listener_that_closes_on_open_leaves_nothing_behind(client: Client) -> None:
    await client.run(
        "connection.addEventListener('state', ({ detail }) => detail.state === 'open' && connection.close())"
    )
    await client.run("watch('join', connection.join('public.a'))")
    await client.accept()
    await client.passes(60)
    assert (await client.state(), await client.sockets()) == ("closed", 1)
    assert await client.get("outcomes.join") == "closed"


async def test_a_closed_connection_ignores_events_of_the_page(page: Page) -> None:
    client = await Client(page).start(connect=False)
    await client.run(
        """window.signals = [];
        for (const target of [window, document]) {
            const add = target.addEventListener;
            target.addEventListener = function (name, listener, options) {
                signals.push(options.signal);
                add.call(this, name, listener, options);
            };
        }
        connection.connect();"""
    )
    listeners = await client.get("signals.length")
    assert listeners > 0  # type: ignore[operator]
    assert await client.get("signals.filter((signal) => signal.aborted).length") == 0
    await client.run("connection.close()")
    assert await client.get("signals.filter((signal) => signal.aborted).length") == listeners
