"""The queue of publishes in realtime.js: what waits, what is sent again, and what is given up."""

import json
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.browser.scripted import Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

G = "public.a"
PLAIN = "public.plain"


@pytest_asyncio.fixture(loop_scope="module")
async def client(page: Page) -> Client:
    """A client with a queue, in a group that keeps history."""
    client = await Client(page).start(options={"queue": {"size": 3, "ttl": 60}})
    await client.accept()
    await client.run("connection.join(argument)", G)
    await client.sends(json.dumps({"type": "joined", "group": G, "ref": 1, "epoch": "e", "offset": 0}))
    return client


async def publish(client: Client, data: Any, group: str = G) -> None:
    await client.run(
        "watch(argument[0], connection.publish(argument[1], argument[2]))", [str(data), group, data]
    )


async def published(client: Client) -> list[dict[str, Any]]:
    """Return the publish frames on the newest socket."""
    texts = await client.page.evaluate("WebSocket.all.at(-1).sent")
    return [frame for frame in map(json.loads, texts) if frame["type"] == "publish"]


async def data(client: Client) -> list[Any]:
    return [frame["data"] for frame in await published(client)]


async def answer(client: Client, **fields: Any) -> None:
    """Answer all publish frames on the newest socket."""
    for frame in await published(client):
        await client.sends(
            json.dumps({"type": "published", "group": frame["group"], "ref": frame["ref"], **fields})
        )


async def outcome(client: Client, name: object) -> Any:
    return await client.get(f"outcomes['{name}']?.type ?? outcomes['{name}']")


async def test_publishes_wait_for_the_connection_in_order(client: Client) -> None:
    await client.drops(1006)
    for number in (1, 2, 3):
        await publish(client, number)
    await client.run("connection.connect()")
    assert await data(client) == []
    await client.accept()
    assert await data(client) == [1, 2, 3]
    assert await outcome(client, 1) == "pending"
    await answer(client)
    assert await outcome(client, 3) == "published"


async def test_a_waiting_publish_is_a_copy_of_its_data(client: Client) -> None:
    await client.drops(1006)
    await client.run("const data = {n: 1}; watch('copy', connection.publish(argument, data)); data.n = 2", G)
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == [{"n": 1}]


async def test_a_listener_of_open_publishes_after_what_waits(client: Client) -> None:
    await client.drops(1006)
    await publish(client, 1)
    await client.run(
        "connection.addEventListener('state', ({ detail }) => "
        "  detail.state === 'open' && connection.publish(argument, 2))",
        G,
    )
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == [1, 2]


async def test_a_full_queue_refuses_the_newest(client: Client) -> None:
    await client.drops(1006)
    for number in (1, 2, 3, 4):
        await publish(client, number)
    assert await outcome(client, 4) == "queue_full"
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == [1, 2, 3]


async def test_a_publish_that_waited_too_long_is_given_up(client: Client) -> None:
    await client.drops(1006)
    await client.passes(1)
    await publish(client, 1)
    await client.passes(20)
    await publish(client, 2)
    await client.passes(41)
    assert (await outcome(client, 1), await outcome(client, 2)) == ("expired", "pending")
    await client.run("connection.close(); connection.connect()")
    await client.accept()
    assert await outcome(client, 2) == "closed"
    assert await data(client) == []


async def test_a_page_that_slept_sends_nothing_too_old(client: Client) -> None:
    await client.drops(1006)
    await publish(client, 1)
    # The wall clock jumps while no timer fires, as in a page that was frozen.
    await client.page.clock.set_system_time(1_700_000_100 + 600)
    await client.run("connection.connect()")
    await client.accept()
    assert (await data(client), await outcome(client, 1)) == ([], "expired")


async def test_an_unanswered_publish_is_sent_again_with_its_id(client: Client) -> None:
    await publish(client, 1)
    await publish(client, 2)
    before = await published(client)
    await client.drops(1006)
    await publish(client, 3)
    await client.run("connection.connect()")
    await client.accept()
    after = await published(client)
    assert [(frame["data"], frame["id"]) for frame in after[:2]] == [
        (frame["data"], frame["id"]) for frame in before
    ]
    assert await data(client) == [1, 2, 3]
    await answer(client, epoch="e", offset=1)
    assert [await outcome(client, number) for number in (1, 2, 3)] == ["published"] * 3


async def test_an_answered_publish_is_not_sent_again(client: Client) -> None:
    await publish(client, 1)
    await answer(client, epoch="e", offset=1)
    await client.drops(1006)
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == []


async def test_without_history_nothing_is_sent_twice(client: Client) -> None:
    await publish(client, 1, PLAIN)
    await client.drops(1006)
    assert await outcome(client, 1) == "disconnected"
    await publish(client, 2, PLAIN)
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == [2]


async def test_an_answer_with_a_position_shows_that_there_is_history(client: Client) -> None:
    await publish(client, 1, PLAIN)
    await answer(client, epoch="x", offset=1)
    await publish(client, 2, PLAIN)
    await client.drops(1006)
    await client.run("connection.connect()")
    await client.accept()
    assert await data(client) == [2]


async def test_a_repetition_that_comes_too_late_may_have_arrived(client: Client) -> None:
    """It was sent once, so `expired` would promise too much."""
    await publish(client, 1)
    await client.drops(1006)
    await client.passes(61)
    assert await outcome(client, 1) == "disconnected"


async def test_no_more_are_sent_again_than_the_queue_holds(client: Client) -> None:
    for number in range(1, 6):
        await publish(client, number)
    await client.drops(1006)
    outcomes = [await outcome(client, number) for number in range(1, 6)]
    assert outcomes == ["pending"] * 3 + ["disconnected"] * 2


@pytest.mark.parametrize(("end", "sent"), [("connection.close()", "disconnected"), (None, "disconnected")])
async def test_a_final_close_ends_the_waiting(client: Client, end: str | None, sent: str) -> None:
    await publish(client, "sent")
    if end:
        await client.run(end)
    else:
        await client.drops(4503)
    await publish(client, "late")
    assert (await outcome(client, "sent"), await outcome(client, "late")) == (sent, "not_connected")


async def test_close_gives_up_what_waits(client: Client) -> None:
    await client.drops(1006)
    await publish(client, "waits")
    await client.run("connection.close()")
    assert await outcome(client, "waits") == "closed"


async def test_a_refusal_of_a_waiting_publish_has_its_code(client: Client) -> None:
    await client.drops(1006)
    await publish(client, 1)
    await client.run("connection.connect()")
    await client.accept()
    [frame] = await published(client)
    error = {"type": "error", "code": "rate_limited", "detail": "Slow down.", "ref": frame["ref"]}
    await client.sends(json.dumps(error))
    assert await outcome(client, 1) == "rate_limited"


async def test_an_id_of_the_application_is_sent(client: Client) -> None:
    await client.run("watch('mine', connection.publish(argument, 1, { id: 'order-7' }))", G)
    assert [frame["id"] for frame in await published(client)] == ["order-7"]


@pytest.mark.parametrize("missing", ["randomUUID", "getRandomValues"])
async def test_ids_differ_without_a_secure_context(client: Client, missing: str) -> None:
    script = {
        "randomUUID": "Object.defineProperty(crypto, 'randomUUID', { value: undefined })",
        "getRandomValues": (
            "Object.defineProperty(window, 'crypto', { value: undefined });"
            "let n = 0; Math.random = () => (n = (n + 0.123) % 1)"
        ),
    }
    await client.run(script[missing])
    for number in range(5):
        await publish(client, number)
    ids = [frame["id"] for frame in await published(client)]
    assert len(set(ids)) == 5
    assert all(1 <= len(each) <= 64 for each in ids)
