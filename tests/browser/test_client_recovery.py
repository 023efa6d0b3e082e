"""Recovery in realtime.js: what the client asks, holds, drops and reports, in Chromium.

Offsets and epochs are those of one group; the frames follow docs/reference.md.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.scripted import Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

G = "public.a"
MODEL = Path(__file__).parent / "model_server.js"


async def says(client: Client, type_: str, **fields: Any) -> None:
    await client.sends(json.dumps({"type": type_, "group": G, **fields}))


async def message(client: Client, *offsets: int, epoch: str = "e") -> None:
    for offset in offsets:
        await says(client, "message", data=f"{epoch}{offset}", offset=offset, epoch=epoch)


async def welcome(client: Client, groups: tuple[str, ...] = (), **positions: Any) -> None:
    await client.run("WebSocket.all.at(-1).accept()")
    frame = {"type": "welcome", "connection": "c", "max_silence": 45, "groups": groups}
    await client.sends(json.dumps({**frame, "positions": positions}))


async def joined(client: Client, offset: int, epoch: str = "e", **fields: Any) -> None:
    """Answer the newest join."""
    await says(client, "joined", ref=(await joins(client))[-1]["ref"], offset=offset, epoch=epoch, **fields)


async def joins(client: Client) -> list[dict[str, Any]]:
    texts = await client.page.evaluate("WebSocket.all.at(-1).sent")
    return [frame for frame in map(json.loads, texts) if frame["type"] == "join"]


async def delivered(client: Client) -> list[Any]:
    """Return the data of messages in the order of their events; recovered ones end with an asterisk."""
    messages = await client.events("message")
    return [f"{one['data']}{'*' if one.get('recovered') else ''}" for one in messages]


async def resets(client: Client) -> list[Any]:
    return [(one["reason"], one["position"]) for one in await client.events("reset")]


async def recoveries(client: Client) -> list[Any]:
    return [one["messages"] for one in await client.events("recovered")]


async def position(client: Client) -> object:
    return await client.get(f"connection.position('{G}')")


def at(offset: int, epoch: str = "e") -> dict[str, Any]:
    return {"epoch": epoch, "offset": offset}


async def reconnect(client: Client) -> None:
    await client.drops(1006)
    await client.run("connection.connect()")


async def member(client: Client, offset: int = 3) -> None:
    """Join the group for the first time, at this offset."""
    await welcome(client)
    await client.run("watch('join', connection.join(argument))", G)
    await joined(client, offset)


# A connection that comes back.


async def test_the_first_join_asks_for_nothing_that_was_before(client: Client) -> None:
    await member(client, 3)
    assert [join.get("since") for join in await joins(client)] == [None]
    assert await position(client) == at(3)
    await message(client, 4)
    assert (await delivered(client), await recoveries(client), await resets(client)) == (["e4"], [], [])


async def test_a_later_join_asks_for_everything_after_the_last(client: Client) -> None:
    await member(client)
    await message(client, 4, 5)
    await reconnect(client)
    await welcome(client)
    assert [join["since"] for join in await joins(client)] == [at(5)]
    await joined(client, 7, recovered=True)
    await message(client, 6, 7)
    assert await recoveries(client) == [2]
    await message(client, 8)
    assert await delivered(client) == ["e4", "e5", "e6*", "e7*", "e8"]
    assert await resets(client) == []


async def test_a_recovery_of_nothing_is_reported_immediately(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await joined(client, 3, epoch="f", recovered=True)
    assert await recoveries(client) == [0]
    # The newer name of the same message, which the server remembers for longer.
    assert await position(client) == at(3, "f")


async def test_a_recovery_that_breaks_goes_on_where_it_broke(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await joined(client, 6, recovered=True)
    await message(client, 4)
    await reconnect(client)
    await welcome(client)
    assert [join["since"] for join in await joins(client)] == [at(4)]
    await joined(client, 6, recovered=True)
    await message(client, 5, 6)
    assert (await delivered(client), await recoveries(client)) == (["e4*", "e5*", "e6*"], [2])


async def test_a_refused_recovery_is_a_reset_at_the_new_position(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await joined(client, 90, epoch="f", recovered=False)
    assert await resets(client) == [("refused", at(90, "f"))]
    await message(client, 91, epoch="f")
    assert (await delivered(client), await recoveries(client)) == (["f91"], [])


async def test_a_group_that_stopped_keeping_history_is_a_reset(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await says(client, "joined", ref=(await joins(client))[-1]["ref"])
    assert await resets(client) == [("refused", None)]
    await says(client, "message", data="plain")
    assert await delivered(client) == ["plain"]
    await reconnect(client)
    await welcome(client)
    assert "since" not in (await joins(client))[-1]


async def test_a_reset_of_the_server_moves_the_position(client: Client) -> None:
    await member(client)
    await message(client, 4)
    await says(client, "reset", epoch="f", offset=0)
    await message(client, 1, epoch="f")
    assert await resets(client) == [("reset", at(0, "f"))]
    assert await delivered(client) == ["e4", "f1"]
    await reconnect(client)
    await welcome(client)
    assert [join["since"] for join in await joins(client)] == [at(1, "f")]


async def test_a_reset_during_a_recovery_ends_it(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await joined(client, 6, recovered=True)
    await message(client, 4)
    await says(client, "reset", epoch="f", offset=2)
    await message(client, 3, epoch="f")
    assert (await delivered(client), await recoveries(client)) == (["e4*", "f3"], [])


async def test_another_epoch_without_a_reset_is_accepted(client: Client) -> None:
    await member(client)
    await message(client, 4)
    await message(client, 5, epoch="f")
    assert (await delivered(client), await position(client)) == (["e4", "f5"], at(5, "f"))
    assert len(await joins(client)) == 1


async def test_duplicates_are_dropped_by_their_position(client: Client) -> None:
    await member(client)
    await message(client, 4, 4, 3, 5, 4)
    assert await delivered(client) == ["e4", "e5"]


async def test_a_gap_is_filled_before_what_follows_it(client: Client) -> None:
    await member(client)
    await message(client, 4, 7, 8)
    assert await delivered(client) == ["e4"]
    assert [join.get("since") for join in await joins(client)] == [None, at(4)]
    await joined(client, 7, recovered=True)
    await message(client, 5, 6, 7)
    assert await delivered(client) == ["e4", "e5*", "e6*", "e7*", "e8"]
    assert (await recoveries(client), await resets(client)) == ([3], [])


async def test_a_recovery_with_a_hole_is_never_called_whole(client: Client) -> None:
    await member(client)
    await reconnect(client)
    await welcome(client)
    await joined(client, 7, recovered=True)
    await message(client, 4, 6, 7, 8)
    assert await resets(client) == [("refused", at(5))]
    assert (await recoveries(client), await delivered(client)) == ([], ["e4*", "e6*", "e7*", "e8"])


async def test_a_group_without_history_is_joined_as_before(client: Client) -> None:
    await welcome(client)
    await client.run("watch('join', connection.join(argument))", G)
    await says(client, "joined", ref=(await joins(client))[-1]["ref"])
    await says(client, "message", data="one")
    await says(client, "message", data="one")
    await reconnect(client)
    await welcome(client)
    assert "since" not in (await joins(client))[-1]
    assert await delivered(client) == ["one", "one"]
    assert await position(client) is None


async def test_a_closed_connection_recovers_when_it_connects(client: Client) -> None:
    await member(client)
    await client.run("connection.close()")
    await client.run("connection.connect()")
    await welcome(client)
    assert [join["since"] for join in await joins(client)] == [at(3)]


async def test_leaving_forgets_the_position(client: Client) -> None:
    await member(client)
    await client.run("connection.leave(argument)", G)
    await client.run("watch('again', connection.join(argument))", G)
    assert [join.get("since") for join in await joins(client)] == [None, None]


async def test_a_given_position_is_sent_with_the_first_join(client: Client) -> None:
    await welcome(client)
    await client.run("watch('join', connection.join(argument[0], {since: argument[1]}))", [G, at(40)])
    assert [join["since"] for join in await joins(client)] == [at(40)]
    await joined(client, 41, recovered=True)
    assert (await client.get("outcomes.join"))["recovered"] is True  # type: ignore[index]
    await message(client, 41)
    assert await delivered(client) == ["e41*"]


async def test_a_position_that_is_none_is_not_sent(client: Client) -> None:
    await welcome(client)
    wrong = [None, 5, "e:5", {"epoch": "e"}, {"epoch": "e" * 65, "offset": 1}, at(-1), at(2**53)]
    await client.run(
        "argument.forEach((since, n) => watch(n, connection.join(`public.${n}`, { since })))", wrong
    )
    assert [join.get("since") for join in await joins(client)] == [None] * len(wrong)


# Groups that the address joins.


async def test_a_group_of_the_address_begins_at_its_position(client: Client) -> None:
    await client.run("watch('join', connection.join(argument))", G)
    await welcome(client, (G,), **{G: at(8)})
    assert await joins(client) == []
    assert (await client.get("outcomes.join"))["offset"] == 8  # type: ignore[index]
    await reconnect(client)
    await welcome(client, (G,), **{G: at(11)})
    assert [join["since"] for join in await joins(client)] == [at(8)]


async def test_live_messages_wait_for_the_recovered_ones(client: Client) -> None:
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(10)})
    await message(client, 11, 12, 13)
    assert await delivered(client) == []
    await joined(client, 12, recovered=True)
    assert await delivered(client) == []
    await message(client, 9, 10, 11, 12)
    assert await delivered(client) == ["e9*", "e10*", "e11*", "e12*", "e13"]
    await message(client, 13, 14)
    assert (await delivered(client))[4:] == ["e13", "e14"]
    assert await recoveries(client) == [4]


async def test_held_messages_follow_a_refused_recovery(client: Client) -> None:
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(0, "f")})
    await message(client, 1, 2, epoch="f")
    await joined(client, 1, epoch="f", recovered=False)
    await message(client, 3, epoch="f")
    assert await delivered(client) == ["f2", "f3"]
    assert await resets(client) == [("refused", at(1, "f"))]


async def test_held_messages_of_several_epochs_are_asked_for(client: Client) -> None:
    """Only the server knows whether they are older or newer than the position of its answer."""
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(9, "f")})
    await message(client, 10, epoch="f")
    await joined(client, 11, epoch="g", recovered=False)
    assert await resets(client) == [("refused", at(11, "g"))]
    assert (await joins(client))[-1]["since"] == at(11, "g")
    await joined(client, 12, epoch="g", recovered=True)
    await message(client, 12, epoch="g")
    assert await delivered(client) == ["g12*"]


async def test_held_messages_of_a_broken_socket_are_asked_for(client: Client) -> None:
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(8)})
    await message(client, 9)
    await reconnect(client)
    await welcome(client, (G,), **{G: at(9)})
    assert [join["since"] for join in await joins(client)] == [at(8)]
    await joined(client, 9, recovered=True)
    await message(client, 9)
    assert await delivered(client) == ["e9*"]


async def test_a_member_that_may_not_ask_stays_and_is_reset(client: Client) -> None:
    await client.run("watch('join', connection.join(argument))", G)
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(9)})
    await message(client, 10)
    ref = (await joins(client))[-1]["ref"]
    await client.sends(json.dumps({"type": "error", "code": "forbidden", "detail": "No.", "ref": ref}))
    assert await resets(client) == [("refused", None)]
    assert (await delivered(client), await client.get("connection.groups")) == (["e10"], [G])
    assert await client.events("error") == []


async def test_a_recovery_that_came_too_fast_is_asked_for_later(client: Client) -> None:
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(9)})
    await message(client, 10)
    ref = (await joins(client))[-1]["ref"]
    await client.sends(json.dumps({"type": "error", "code": "rate_limited", "detail": "Slow.", "ref": ref}))
    await client.passes(1)
    assert [join["since"] for join in await joins(client)] == [at(8), at(8)]
    await joined(client, 10, recovered=True)
    await message(client, 9, 10)
    assert await delivered(client) == ["e9*", "e10*"]


# Listeners that act.


@pytest.mark.parametrize("event", ["message", "recovered"])
async def test_a_listener_that_closes_loses_nothing(client: Client, event: str) -> None:
    await welcome(client, (G,), **{G: at(8)})
    await reconnect(client)
    await welcome(client, (G,), **{G: at(9)})
    await message(client, 10, 11)
    await client.run("connection.addEventListener(argument, () => connection.close(), { once: true })", event)
    await joined(client, 9, recovered=True)
    await message(client, 9)
    assert (await delivered(client), await client.state()) == (["e9*"], "closed")
    assert await position(client) == at(9)


async def test_a_listener_that_joins_again_keeps_the_order(client: Client) -> None:
    await member(client)
    await client.run(
        "connection.addEventListener('message', () => connection.join(argument), { once: true })", G
    )
    await message(client, 4, 5, 6)
    assert await delivered(client) == ["e4"]
    await joined(client, 6, recovered=True)
    await message(client, 5, 6, 7)
    assert await delivered(client) == ["e4", "e5*", "e6*", "e7"]


# The random walk.


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_walk_delivers_each_message_once(client: Client, seed: int) -> None:
    await client.page.add_script_tag(path=MODEL)
    result: dict[str, Any] = await client.page.evaluate(
        "async (seeds) => {"
        "  connection.close();"
        "  const sum = {}; const faults = [];"
        "  for (const seed of seeds) {"
        "    const walked = walk(module, seed, 400);"
        "    WebSocket.all.length = 0;"
        "    faults.push(...walked.faults);"
        "    for (const name in walked.counts) sum[name] = (sum[name] ?? 0) + walked.counts[name];"
        "    await null;"
        "  }"
        "  return { faults: faults.slice(0, 5), counts: sum };"
        "}",
        list(range(seed * 50, seed * 50 + 50)),
    )
    assert result["faults"] == []
    # The walk came everywhere.
    assert all(count > 20 for count in result["counts"].values()), result["counts"]
