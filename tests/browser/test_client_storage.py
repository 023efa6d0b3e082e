"""Positions that outlive a page: the option `remember` of realtime.js and `sessionStorage`."""

import json
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.browser.scripted import Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

G = "public.a"
KEY = "realtime:wss://site.test/ws/"
STORE = "sessionStorage.getItem('realtime:wss://site.test/ws/')"


@pytest_asyncio.fixture(loop_scope="module")
async def client(page: Page) -> Client:
    return await life(Client(page))


async def life(client: Client, remember: bool | str = True) -> Client:
    """Load the page, connect, and join a group."""
    await client.start(options={"remember": remember})
    await client.accept()
    await client.run("watch('join', connection.join(argument))", G)
    return client


async def since(client: Client) -> list[Any]:
    texts = await client.page.evaluate("WebSocket.all.at(-1).sent")
    return [frame.get("since") for frame in map(json.loads, texts) if frame["type"] == "join"]


async def joined(client: Client, offset: int, **fields: Any) -> None:
    frame = {"type": "joined", "group": G, "ref": 1, "epoch": "e", "offset": offset, **fields}
    await client.sends(json.dumps(frame))


async def message(client: Client, offset: int) -> None:
    frame = {"type": "message", "group": G, "data": offset, "epoch": "e", "offset": offset}
    await client.sends(json.dumps(frame))


async def stored(client: Client) -> Any:
    return json.loads(str(await client.get(STORE)))


async def test_a_page_that_is_loaded_again_recovers(client: Client) -> None:
    assert await since(client) == [None]
    await joined(client, 3)
    await message(client, 4)
    await life(client)
    assert await since(client) == [{"epoch": "e", "offset": 4}]
    await joined(client, 5, recovered=True)
    await message(client, 5)
    [event] = await client.events("message")
    assert (event["data"], event["recovered"]) == (5, True)


async def test_without_the_option_nothing_is_stored(page: Page) -> None:
    client = await life(Client(page), False)
    await joined(client, 3)
    await life(client, False)
    assert (await since(client), await client.get("sessionStorage.length")) == ([None], 0)


async def test_the_storage_is_written_once_a_second(client: Client) -> None:
    await client.run(
        "const set = Storage.prototype.setItem; window.writes = 0;"
        "Storage.prototype.setItem = function (...item) { writes += 1; set.apply(this, item); }"
    )
    await joined(client, 0)
    for offset in range(1, 30):
        await message(client, offset)
    await client.passes(1.1)
    assert (await client.get("writes"), await stored(client)) == (1, {G: {"epoch": "e", "offset": 29}})


@pytest.mark.parametrize("event", ["visibilitychange", "freeze"])
async def test_a_page_that_goes_away_writes_immediately(client: Client, event: str) -> None:
    await joined(client, 7)
    await client.run("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
    await client.run("document.dispatchEvent(new Event(argument))", event)
    assert await stored(client) == {G: {"epoch": "e", "offset": 7}}


async def test_a_group_that_was_left_is_forgotten(client: Client) -> None:
    await joined(client, 7)
    await client.passes(1.1)
    await client.run("connection.leave(argument)", G)
    await client.passes(1.1)
    assert await stored(client) == {}


async def test_a_position_in_the_call_comes_before_the_storage(client: Client) -> None:
    await joined(client, 7)
    await client.start(options={"remember": True})
    await client.accept()
    await client.run("connection.join(argument, { since: { epoch: 'f', offset: 1 } })", G)
    assert await since(client) == [{"epoch": "f", "offset": 1}]


async def test_two_connections_have_names_of_their_own(page: Page) -> None:
    client = await life(Client(page), "chat")
    await joined(client, 7)
    await client.passes(1.1)
    assert await client.get("Object.keys(sessionStorage)") == ["realtime:chat"]
    await life(client, "news")
    assert await since(client) == [None]


async def test_a_storage_of_another_program_is_ignored(client: Client) -> None:
    texts = [
        *("not JSON", "null", "5", '"text"', "[]", "[null, 1]", '{"public.a": null}'),
        *('{"public.a": {"epoch": 5, "offset": 1}}', '{"public.a": {"epoch": "e", "offset": 1.5}}'),
        '{"public.a": {"epoch": "e", "offset": "1"}, "__proto__": {"epoch": "e", "offset": 1}}',
    ]
    for text in texts:
        positions = await client.page.evaluate(
            "([key, text, group]) => { sessionStorage.setItem(key, text);"
            "return new module.RealtimeConnection('/ws/', { remember: true }).position(group); }",
            [KEY, text, G],
        )
        assert positions is None, text


@pytest.mark.parametrize("fault", ["full", "forbidden"])
async def test_a_storage_that_throws_changes_nothing(page: Page, fault: str) -> None:
    throws = "throw new DOMException('no', 'QuotaExceededError')"
    scripts = {
        "full": f"Storage.prototype.setItem = () => {{ {throws} }}",
        "forbidden": f"Object.defineProperty(window, 'sessionStorage', {{ get() {{ {throws} }} }})",
    }
    await page.add_init_script(scripts[fault])
    client = await life(Client(page))
    await joined(client, 3)
    await message(client, 4)
    await client.passes(2)
    await client.run("dispatchEvent(new PageTransitionEvent('pagehide'))")
    assert await client.get(f"connection.position('{G}')") == {"epoch": "e", "offset": 4}
