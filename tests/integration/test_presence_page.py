"""The examples of `docs/howto/show-who-is-here.md`, run as they stand there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from django.contrib.auth.models import User
from django.core import mail
from django.core.cache import cache
from django.http import HttpRequest
from django.test import TestCase, override_settings

from realtime import signals
from realtime.hub import watches
from realtime.presence import apresence
from realtime.routing import websocket_urlpatterns
from realtime.testing import connect
from tests.support.applications.tutorial import blocks

GROUP = "public.lobby"
PAGE = "show-who-is-here.md"

_view, _api, _tasks, _people, _consumers, _apps, _policy, _set_policy, _narrow, _test = blocks(PAGE, "python")

pytestmark = pytest.mark.usefixtures("rooms")


def example(source: str, name: str = __name__) -> dict[str, Any]:
    """Run a block, and return its names."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(source, PAGE, "exec"), names)  # noqa: S102 - our own documentation
    return names


def modules() -> dict[str, ModuleType]:
    """Return the application of the page, as far as its blocks import it."""
    found = {"rooms": ModuleType("rooms")}
    with mock.patch.dict(sys.modules, found):
        for name, source in (("people", _people), ("consumers", _consumers), ("policy", _policy)):
            module = found[f"rooms.{name}"] = ModuleType(f"rooms.{name}")
            vars(module).update(example(source, module.__name__))
            sys.modules[module.__name__] = module
    return found


with mock.patch.dict(sys.modules, modules()):
    RoomTest: type[TestCase] = example(_test)["RoomTest"]


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch, realtime_settings: Callable[..., None]) -> None:
    realtime_settings(PRESENCE_GRACE=0)
    monkeypatch.setattr(watches, "TELL_EVERY", 0.05)
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    cache.clear()


async def users(*names: str) -> list[User]:
    return [await User.objects.acreate_user(name, f"{name}@example.com") for name in names]


@pytest.mark.django_db(transaction=True)
async def test_the_view_and_its_template_show_names() -> None:
    (page,) = blocks(PAGE, "html")
    loader = ("django.template.loaders.locmem.Loader", {"room.html": page})
    templates = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [loader]},
    }
    anne, bob = await users("anne", "<b>")
    routes = URLRouter(websocket_urlpatterns)
    async with (
        connect(routes, f"/ws/{GROUP}/", user=anne),
        connect(routes, f"/ws/{GROUP}/", user=bob),
        connect(routes, f"/ws/{GROUP}/"),
    ):
        with override_settings(TEMPLATES=[templates]):
            answer = await sync_to_async(example(_view)["room"])(HttpRequest(), "lobby")
    assert answer.content.decode() == (
        '<h2>2 here, and 1 without a login</h2>\n<ul id="here"><li>anne</li><li>&lt;b&gt;</li></ul>\n'
    )


@pytest.mark.django_db(transaction=True)
async def test_the_endpoint_needs_a_login_and_shows_names() -> None:
    pytest.importorskip("rest_framework")
    from rest_framework.test import APIRequestFactory, force_authenticate

    (anne,) = await users("anne")
    view = example(_api)["PeopleView"].as_view()
    request = APIRequestFactory().get("/")
    assert (await sync_to_async(view)(request, name="lobby")).status_code in (401, 403)

    force_authenticate(request, anne)
    async with connect(URLRouter(websocket_urlpatterns), f"/ws/{GROUP}/", user=anne):
        answer = await sync_to_async(view)(request, name="lobby")
    assert answer.data == {"people": [{"id": str(anne.pk), "name": "anne"}], "guests": 0, "total": 1}


@pytest.mark.django_db(transaction=True)
async def test_the_tasks_know_who_is_online() -> None:
    pytest.importorskip("celery")
    tasks = example(_tasks)
    mail_if_away, is_empty = (sync_to_async(tasks[name].run) for name in ("mail_if_away", "is_empty"))
    anne, bob = await users("anne", "bob")
    assert await is_empty("lobby")
    async with connect(URLRouter(websocket_urlpatterns), f"/ws/{GROUP}/", user=anne):
        await mail_if_away(anne.pk, "to anne")
        await mail_if_away(bob.pk, "to bob")
        assert not await is_empty("lobby")
    assert [(message.to, message.body) for message in mail.outbox] == [(["bob@example.com"], "to bob")]


@pytest.mark.django_db(transaction=True)
def test_names_take_one_query_and_then_none(django_assert_num_queries: Any) -> None:
    people = example(_people)["people"]
    known = [User.objects.create_user(f"u{number}") for number in range(20)]
    keys = [str(user.pk) for user in reversed(known)]
    with django_assert_num_queries(1):
        found = people([*keys, "0"])
    assert found == [{"id": str(user.pk), "name": user.get_username()} for user in reversed(known)]
    with django_assert_num_queries(0):
        assert people(keys) == found


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["RoomConsumer", "SyncRoomConsumer"])
async def test_a_consumer_tells_who_comes_and_leaves(name: str) -> None:
    consumer = example(_consumers)[name]
    anne, bob = await users("anne", "bob")
    async with connect(consumer.as_asgi(), "/", user=anne) as room:
        assert await room.receive_frame() == {"here": [{"id": str(anne.pk), "name": "anne"}], "guests": 0}
        async with connect(consumer.as_asgi(), "/", user=bob):
            came = await room.receive_frame()
            assert came == {"came": [{"id": str(bob.pk), "name": "bob"}], "left": [], "guests": 0}
        assert await room.receive_frame() == {"came": [], "left": [str(bob.pk)], "guests": 0}


@pytest.mark.django_db(transaction=True)
async def test_the_receivers_keep_when_a_user_was_last_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def filter_(user: str) -> Any:
        return SimpleNamespace(update=lambda last_seen: written.append(user))

    models = ModuleType("rooms.models")
    models.Profile = SimpleNamespace(objects=SimpleNamespace(filter=filter_))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rooms.models", models)
    names = example(_apps, "rooms.apps")
    receiver = names["note_last_seen"]
    monkeypatch.setitem(sys.modules, "rooms.apps", ModuleType("rooms.apps"))
    names["RoomsConfig"].ready(None)
    try:
        (anne,) = await users("anne")
        async with connect(URLRouter(websocket_urlpatterns), "/ws/", user=anne):
            pass
        assert written[:1] == [str(anne.pk)]
    finally:
        assert signals.user_online.disconnect(receiver)
        assert signals.user_offline.disconnect(receiver)


@pytest.mark.django_db(transaction=True)
async def test_the_policy_hides_who_is_there(realtime_settings: Callable[..., None]) -> None:
    realtime_settings(**example(_set_policy)["REALTIME"])
    async with connect(URLRouter(websocket_urlpatterns), "/ws/") as client:
        for frame, answer in (
            ({"type": "join", "group": GROUP, "ref": 1, "presence": True}, "forbidden"),
            ({"type": "presence", "group": GROUP, "ref": 2}, "forbidden"),
            ({"type": "join", "group": GROUP, "ref": 3}, None),
        ):
            await client.send(frame)
            assert (await client.receive_frame()).get("code") == answer


@pytest.mark.django_db(transaction=True)
async def test_groups_without_a_pattern_have_no_presence(realtime_settings: Callable[..., None]) -> None:
    realtime_settings(**example(_narrow)["REALTIME"])
    assert (await apresence("team.blue")).total == 0
    async with connect(URLRouter(websocket_urlpatterns), "/ws/") as client:
        await client.send({"type": "presence", "group": GROUP, "ref": 1})
        assert (await client.receive_frame())["code"] == "no_presence"


_SHOWING = """
const shown = [];
globalThis.document = {
  getElementById: () => ({
    replaceChildren: (...items) => shown.push(items.map((item) => item.textContent)),
  }),
  createElement: () => ({}),
};
let people = [];
globalThis.fetch = async () => ({ ok: true, json: async () => ({ people }) });
const joins = [];
class Connection extends EventTarget {
  join(...what) {
    joins.push(what);
  }
}
globalThis.connection = new Connection();
const turn = () => new Promise((resolve) => setTimeout(resolve));
globalThis.tell = async (...users) => {
  connection.dispatchEvent(Object.assign(new Event("presence"), { detail: { users } }));
  await turn();
};
"""

_TELLING = """
people = [{ id: "2", name: "<b>bob</b>" }, { id: "10", name: "anne" }];
await tell("10");
tell("10", "2");
await tell("2");
await tell("2", "gone");
people = [{ id: "7", name: "carl" }];
await tell("2", "7");
console.log(JSON.stringify({ joins, shown }));
"""


def test_the_page_shows_the_latest_users_as_text(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js (apt-get install nodejs)")
    (showing,) = blocks(PAGE, "javascript")
    program = tmp_path / "showing.mjs"
    program.write_text(_SHOWING + showing + _TELLING)
    done = subprocess.run([node, str(program)], capture_output=True, text=True, timeout=30, check=True)
    found = json.loads(done.stdout)
    assert found["joins"] == [[GROUP, {"presence": True}]]
    assert found["shown"][0] == ["anne"]
    assert found["shown"][-1] == ["<b>bob</b>", "carl"]
