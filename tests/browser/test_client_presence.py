"""Presence in realtime.js: what the client asks, and what it tells the application, in Chromium.

The frames are those of `realtime.wire.frames`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from realtime.wire import frames
from realtime.wire.payload import encode_data
from tests.browser.scripted import Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

G = "public.a"
MODELS = [Path(__file__).parent / name for name in ("model_server.js", "presence_server.js")]
JOIN = f"watch('join', connection.join('{G}', {{ presence: true }}))"


def present(*users: str, anonymous: int = 0, total: int | None = None) -> frames.Present:
    return frames.Present(users, anonymous, len(users) if total is None else total)


async def joins(client: Client) -> list[frames.Join]:
    return [frame for frame in await client.sent() if isinstance(frame, frames.Join)]


async def joined(client: Client, *users: str, **numbers: Any) -> None:
    """Answer the newest join."""
    ref = (await joins(client))[-1].ref
    await client.says(frames.Joined(ref, G, presence=present(*users, **numbers)))


async def change(
    client: Client, *, came: tuple[str, ...] = (), left: tuple[str, ...] = (), anonymous: int = 0, total: int
) -> None:
    await client.says(frames.Presence(G, anonymous, total, joined=[*came], left=[*left]))


async def refused(client: Client, code: str) -> None:
    """Refuse the newest join."""
    await client.says(frames.Error(code, "No.", (await joins(client))[-1].ref))


async def told(client: Client) -> list[tuple[Any, ...]]:
    """Return users, joined and left of each event since the last call."""
    events = await client.events("presence")
    await client.run("seen.length = 0")
    assert all(event["group"] == G for event in events)
    return [(event["users"], event["joined"], event["left"]) for event in events]


async def numbers(client: Client) -> list[tuple[Any, ...]]:
    return [(event["anonymous"], event["total"]) for event in await client.events("presence")]


async def watching(client: Client, *users: str, **numbers: Any) -> None:
    """Join the group with presence, and forget the first event."""
    await client.accept()
    await client.run(JOIN)
    await joined(client, *users, **numbers)
    await told(client)


async def reconnect(client: Client, *, groups: tuple[str, ...] = ()) -> None:
    await client.drops(1006)
    await client.run("connection.connect()")
    await client.accept(groups=[*groups])


# Asking once.


async def test_presence_resolves_with_the_users(client: Client) -> None:
    await client.accept()
    await client.run(f"watch('presence', connection.presence('{G}'))")
    ref = await client.ref()
    assert await client.sent() == [frames.ClientPresence(G, ref)]
    await client.says(frames.Presence(G, 2, 3, ref=ref, users=["7", "8", "9"]))
    answer: Any = await client.get("outcomes.presence")
    assert (answer["users"], answer["anonymous"], answer["total"]) == (["7", "8", "9"], 2, 3)
    assert await told(client) == []


@pytest.mark.parametrize("code", ["no_presence", "forbidden"])
async def test_presence_that_is_refused_rejects(client: Client, code: str) -> None:
    await client.accept()
    await client.run(f"watch('presence', connection.presence('{G}'))")
    await client.says(frames.Error(code, "No.", await client.ref()))
    assert (await client.get("outcomes.presence"), await client.events("error")) == (code, [])


async def test_presence_needs_a_connection(client: Client) -> None:
    await client.run(f"watch('early', connection.presence('{G}'))")
    await client.accept()
    await client.run(f"watch('lost', connection.presence('{G}'))")
    await client.drops(1006)
    assert await client.get("outcomes") == {"early": "not_connected", "lost": "disconnected"}


# Being told.


async def test_a_join_asks_for_presence_only_if_the_page_does(client: Client) -> None:
    await client.accept()
    await client.run("connection.join('public.b')")
    await client.run(JOIN)
    assert [(join.group, join.presence) for join in await joins(client)] == [("public.b", False), (G, True)]


async def test_the_first_users_are_all_new(client: Client) -> None:
    await client.accept()
    await client.run(JOIN)
    await joined(client, "7", "8", anonymous=4)
    assert (await client.get("outcomes.join"))["presence"]["users"] == ["7", "8"]  # type: ignore[index]
    assert await numbers(client) == [(4, 2)]
    assert await told(client) == [(["7", "8"], ["7", "8"], [])]


async def test_an_empty_group_is_told_too(client: Client) -> None:
    await client.accept()
    await client.run(JOIN)
    await joined(client)
    assert await told(client) == [([], [], [])]


async def test_changes_are_told_with_the_whole_list(client: Client) -> None:
    await watching(client, "7")
    await change(client, came=("8", "9"), total=3)
    await change(client, came=("10",), left=("7",), total=3)
    assert await told(client) == [
        (["7", "8", "9"], ["8", "9"], []),
        (["8", "9", "10"], ["10"], ["7"]),
    ]


async def test_what_the_page_knows_already_is_not_told_again(client: Client) -> None:
    await watching(client, "7", "8")
    await change(client, came=("7",), left=("9",), total=2)
    assert await told(client) == []
    await change(client, came=("8", "10"), left=("7", "9"), total=2)
    assert await told(client) == [(["8", "10"], ["10"], ["7"])]


async def test_numbers_alone_are_a_change(client: Client) -> None:
    await watching(client, "7")
    await change(client, anonymous=3, total=1)
    await change(client, anonymous=3, total=1)
    assert await numbers(client) == [(3, 1)]
    assert await told(client) == [(["7"], [], [])]


async def test_a_list_that_was_cut_says_the_total(client: Client) -> None:
    await client.accept()
    await client.run(JOIN)
    await joined(client, *map(str, range(1000)), total=1200)
    assert await numbers(client) == [(0, 1200)]
    await change(client, came=("1200",), left=("5", "1100"), total=1199)
    assert (await numbers(client))[1:] == [(0, 1199)]
    [_, (users, came, left)] = await told(client)
    assert (len(users), came, left) == (1000, ["1200"], ["5"])


async def test_a_list_that_the_page_changes_is_a_copy(client: Client) -> None:
    await client.run("connection.addEventListener('presence', ({ detail }) => detail.users.splice(0))")
    await watching(client, "7", "8")
    await change(client, left=("7",), total=1)
    assert [left for _, _, left in await told(client)] == [["7"]]
    assert await client.run("seen.length = 0") is None
    await change(client, came=("9",), total=2)
    assert [came for _, came, _ in await told(client)] == [["9"]]


async def test_groups_have_users_of_their_own(client: Client) -> None:
    await watching(client, "7")
    await client.says(frames.Presence("public.b", 0, 1, joined=["8"]))
    assert await told(client) == [], "the page did not ask for that group"


async def test_a_change_before_the_answer_is_newer_than_it(client: Client) -> None:
    """The server reads the users, and may write a change to this client before it writes the answer."""
    await client.accept()
    await client.run(JOIN)
    await change(client, came=("9",), left=("7",), total=2)
    assert await told(client) == []
    await joined(client, "7", "8")
    assert await numbers(client) == [(0, 2)]
    assert await told(client) == [(["8", "9"], ["8", "9"], [])]


async def test_only_the_answer_to_the_newest_join_counts(client: Client) -> None:
    """A client that misses a message joins again, perhaps before its first join is answered."""
    await client.accept()
    await client.run(JOIN)
    for offset in (1, 3):
        await client.says(frames.Message(G, encode_data(offset), offset=offset, epoch="e"))
    older, newer = await joins(client)
    await change(client, came=("9",), total=3)
    await client.says(frames.Joined(older.ref, G, presence=present("7")))
    assert await told(client) == []
    await client.says(frames.Joined(newer.ref, G, "e", 3, True, present("7", "8")))
    assert await told(client) == [(["7", "8", "9"], ["7", "8", "9"], [])]


# Coming back.


async def test_a_rejoin_tells_the_differences(client: Client) -> None:
    await watching(client, "7", "8")
    await change(client, came=("9",), total=3)
    await told(client)
    await reconnect(client)
    assert [join.presence for join in await joins(client)] == [True]
    await joined(client, "10", "9", "7")
    assert await told(client) == [(["10", "9", "7"], ["10"], ["8"])]


async def test_a_rejoin_without_differences_is_not_told(client: Client) -> None:
    await watching(client, "7", "8")
    await reconnect(client)
    await joined(client, "7", "8")
    assert await told(client) == []


async def test_changes_of_an_ended_socket_are_not_kept(client: Client) -> None:
    await client.accept()
    await client.run(JOIN)
    await change(client, came=("9",), total=1)
    await reconnect(client)
    await joined(client, "7")
    assert await told(client) == [(["7"], ["7"], [])]


async def test_a_closed_connection_asks_again_when_it_connects(client: Client) -> None:
    await watching(client, "7")
    await client.run("connection.close(); connection.connect()")
    await client.accept()
    await joined(client)
    assert await told(client) == [([], [], ["7"])]


async def test_a_group_that_was_left_is_forgotten(client: Client) -> None:
    await watching(client, "7")
    await client.run(f"connection.leave('{G}')")
    await change(client, came=("8",), total=2)
    await client.says(frames.Left(await client.ref(), G))
    assert await told(client) == []
    await client.run(f"connection.join('{G}')")
    assert [join.presence for join in await joins(client)] == [True, False]
    await client.says(frames.Joined(await client.ref(), G))
    await client.run(JOIN)
    await joined(client, "7")
    assert await told(client) == [(["7"], ["7"], [])]


async def test_a_rejoin_that_came_too_fast_asks_again(client: Client) -> None:
    await watching(client, "7")
    await reconnect(client)
    await refused(client, "rate_limited")
    await client.passes(1)
    assert [join.presence for join in await joins(client)] == [True, True]
    await joined(client, "8")
    assert await told(client) == [(["8"], ["8"], ["7"])]


# Members that ask later.


async def test_a_member_by_its_address_asks_by_a_join(client: Client) -> None:
    await client.accept(groups=[G])
    await client.run(JOIN)
    await joined(client, "7")
    await reconnect(client, groups=(G,))
    await joined(client, "8")
    assert await told(client) == [(["7"], ["7"], []), (["8"], ["8"], ["7"])]


async def test_a_join_before_the_welcome_waits_for_the_users(client: Client) -> None:
    """The welcome says that the connection is a member; the server must be asked for the users."""
    await client.run(JOIN)
    await client.accept(groups=[G])
    assert await client.get("outcomes.join") == "pending"
    await joined(client, "7")
    assert (await client.get("outcomes.join"))["group"] == G  # type: ignore[index]
    assert await told(client) == [(["7"], ["7"], [])]


async def test_a_member_that_asks_for_users_asks_for_no_messages(client: Client) -> None:
    await client.run(JOIN)
    await client.run("WebSocket.all.at(-1).accept()")
    position = {"epoch": "e", "offset": 8}
    welcome = {"type": "welcome", "connection": "c", "max_silence": 45, "groups": [G]}
    await client.sends(json.dumps({**welcome, "positions": {G: position}}))
    assert [(join.presence, join.since) for join in await joins(client)] == [(True, None)]
    assert await client.get(f"connection.position('{G}')") == position


async def test_a_second_join_may_ask_while_the_first_waits(client: Client) -> None:
    await client.accept()
    await client.run(f"watch('first', connection.join('{G}'))")
    await client.run(JOIN)
    await client.run(JOIN)
    assert [join.presence for join in await joins(client)] == [False, True]
    await client.says(frames.Joined((await joins(client))[0].ref, G))
    assert await told(client) == []
    await joined(client, "7")
    assert await told(client) == [(["7"], ["7"], [])]


# Refusals.


@pytest.mark.parametrize("code", ["no_presence", "forbidden"])
async def test_a_join_that_is_refused_rejects(client: Client, code: str) -> None:
    await client.accept()
    await client.run(JOIN)
    await refused(client, code)
    assert await client.get("outcomes.join") == code
    assert (await client.events("error"), await client.get("connection.groups")) == ([], [])
    # Without presence, it is a join like any other.
    await client.run(f"watch('again', connection.join('{G}'))")
    assert [join.presence for join in await joins(client)] == [True, False]


@pytest.mark.parametrize("code", ["no_presence", "forbidden"])
async def test_a_member_that_is_refused_stays_a_member(client: Client, code: str) -> None:
    await client.accept(groups=[G])
    await client.run(JOIN)
    await refused(client, code)
    assert (await client.get("outcomes.join"), await client.get("connection.groups")) == (code, [G])
    await reconnect(client, groups=(G,))
    assert await joins(client) == [], "it does not ask again"


async def test_a_rejoin_that_is_refused_is_reported(client: Client) -> None:
    await watching(client, "7")
    await reconnect(client)
    await refused(client, "no_presence")
    [error] = await client.events("error")
    assert (error["code"], error["group"]) == ("no_presence", G)
    await change(client, came=("8",), total=2)
    assert await told(client) == []


async def test_a_server_that_knows_no_presence_still_joins(client: Client) -> None:
    """While a deploy goes on, a server of an earlier version may answer."""
    await client.accept()
    await client.run(JOIN)
    await client.says(frames.Joined(await client.ref(), G))
    assert await client.get("connection.groups") == [G]
    assert await told(client) == []


# Listeners that act.


async def test_a_listener_that_leaves_hears_nothing_more(client: Client) -> None:
    await client.run(
        "connection.addEventListener('groups', ({ detail }) => {"
        "  if (detail.groups.length) connection.leave(detail.groups[0]);"
        "})"
    )
    await client.accept()
    await client.run(JOIN)
    await joined(client, "7")
    assert await told(client) == []


async def test_a_listener_that_closes_loses_nothing(client: Client) -> None:
    await client.run("connection.addEventListener('presence', () => connection.close(), { once: true })")
    await client.accept()
    await client.run(JOIN)
    await joined(client, "7")
    assert await client.state() == "closed"
    await client.run("connection.connect()")
    await client.accept()
    await joined(client, "7", "8")
    assert await told(client) == [(["7"], ["7"], []), (["7", "8"], ["8"], [])]


# The random walk.


async def test_a_random_walk_ends_with_the_users_of_the_server(client: Client) -> None:
    for model in MODELS:
        await client.page.add_script_tag(path=model)
    result: dict[str, Any] = await client.page.evaluate(
        "async () => {"
        "  connection.close();"
        "  const sum = {}; const faults = [];"
        "  for (let seed = 0; seed < 300; seed += 1) {"
        "    const walked = walkPresence(module, generator(seed), 150);"
        "    WebSocket.all.length = 0;"
        "    faults.push(...walked.faults.map((fault) => [seed, ...fault]));"
        "    for (const name in walked.counts) sum[name] = (sum[name] ?? 0) + walked.counts[name];"
        "    await null;"
        "  }"
        "  return { faults: faults.slice(0, 5), counts: sum };"
        "}"
    )
    assert result["faults"] == []
    # The walk came everywhere.
    assert all(count > 100 for count in result["counts"].values()), result["counts"]
