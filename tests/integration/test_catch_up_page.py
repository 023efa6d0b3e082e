"""The examples of `docs/howto/catch-up.md`, run as they stand there."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from django.http import HttpRequest
from django.test import override_settings

from realtime import LayerUnavailable, apublish
from realtime.routing import websocket_urlpatterns
from realtime.testing import Client, connect
from tests.support.applications.tutorial import blocks

GROUP = "public.orders"
PAGE = "catch-up.md"

_settings, _view, _consumers, _announcing = blocks(PAGE, "python")


def example(source: str) -> dict[str, Any]:
    """Run a block, and return its names."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, PAGE, "exec"), names)  # noqa: S102 - our own documentation
    return names


@pytest.fixture(autouse=True)
def history(db: None, realtime_settings: Callable[..., None]) -> None:
    realtime_settings(**example(_settings)["REALTIME"])


async def joined(client: Client, since: Any) -> dict[str, Any]:
    await client.send({"type": "join", "group": GROUP, "ref": 1, "since": since})
    answer: dict[str, Any] = await client.receive_frame()
    return answer


async def test_the_page_of_the_view_joins_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": 1, "text": "placed"}]
    models = ModuleType("orders.models")
    models.Order = SimpleNamespace(objects=SimpleNamespace(values=lambda *names: rows))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orders", ModuleType("orders"))
    monkeypatch.setitem(sys.modules, "orders.models", models)
    (page,) = blocks(PAGE, "html")
    loader = ("django.template.loaders.locmem.Loader", {"orders.html": page})
    templates = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [loader]},
    }
    async with connect(URLRouter(websocket_urlpatterns), "/ws/") as client:
        await apublish(GROUP, {"id": 1, "text": "placed"})
        with override_settings(TEMPLATES=[templates]):
            answer = await sync_to_async(example(_view)["orders"])(HttpRequest())
        # Between the view and the join of the page.
        await apublish(GROUP, {"id": 1, "text": "shipped"})
        text = answer.content.decode()
        read = {name: json.loads(value) for name, value in re.findall(r'<script id="(\w+)".*?>(.*?)<', text)}
        assert read["orders"] == rows
        assert (await joined(client, read["since"]))["recovered"] is True
        assert await client.receive_message() == {"id": 1, "text": "shipped"}


@pytest.mark.parametrize("name", ["OrdersConsumer", "SyncOrdersConsumer"])
async def test_a_client_of_the_consumer_catches_up(name: str) -> None:
    consumer = example(_consumers)[name]
    async with connect(consumer.as_asgi(), "/") as first:
        await first.send({})
        answer = await first.receive_frame()
        assert answer["recovered"] is None
        await apublish(GROUP, 1)
        await apublish(GROUP, 2)
        async with connect(consumer.as_asgi(), "/") as second:
            await second.send({"since": answer["since"]})
            assert [await second.receive_message() for _ in range(2)] == [1, 2]
            answer = await second.receive_frame()
            assert (answer["recovered"], answer["since"]["offset"]) == (True, 2)


@pytest.mark.parametrize(
    "since", [{"epoch": "unknown", "offset": 1}, {"epoch": "x", "offset": -1}, {"epoch": 1}, 7]
)
async def test_the_consumer_survives_any_position(since: Any) -> None:
    async with connect(example(_consumers)["OrdersConsumer"].as_asgi(), "/") as client:
        await client.send({"since": since})
        assert (await client.receive_frame())["recovered"] is not True


async def test_a_repeated_announcement_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    names = example(_announcing)
    publish, calls = names["publish"], []

    def unlucky(*arguments: Any, **options: Any) -> Any:
        calls.append(publish(*arguments, **options))
        if len(calls) == 1:
            raise LayerUnavailable("The answer was lost.")
        return calls[-1]

    names["publish"] = unlucky
    monkeypatch.setattr(names["time"], "sleep", lambda pause: None)
    async with connect(URLRouter(websocket_urlpatterns), f"/ws/{GROUP}/") as client:
        order = {"id": 4, "version": 2, "text": "shipped"}
        position = await sync_to_async(names["announce"])(order)
        await apublish(GROUP, "next")
        assert [await client.receive_message() for _ in range(2)] == [order, "next"]
    assert calls == [position, position]


_LOADING = """
let answer;
globalThis.fetch = async () => ({ json: () => new Promise((resolve) => (answer = resolve)) });
const turn = () => new Promise((resolve) => setTimeout(resolve));
const message = (id, text) => onMessage({ detail: { data: { id, text } } });

message(1, "lost in the reset");
const superseded = load();
await turn();
const first = answer;
const loading = load();
await turn();
message(2, "arrived");
first([{ id: 9, text: "of the first load" }]);
answer([{ id: 2, text: "loaded" }, { id: 3, text: "loaded" }]);
await Promise.all([superseded, loading]);
message(4, "afterwards");
console.log(JSON.stringify([...orders.values()].map(({ id, text }) => [id, text]), null, 0));
"""


def test_the_loaded_state_keeps_what_arrived_meanwhile(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js (apt-get install nodejs)")
    (loading,) = blocks(PAGE, "javascript")
    program = tmp_path / "loading.mjs"
    program.write_text(loading + _LOADING)
    done = subprocess.run([node, str(program)], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == [[2, "arrived"], [3, "loaded"], [4, "afterwards"]]
