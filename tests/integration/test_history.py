"""Publishing to a group that keeps history, reading it, and the commands for both."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from channels.layers import channel_layers, get_channel_layer
from channels.routing import URLRouter
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction

from realtime import apublish, metrics, publish
from realtime.errors import BadGroup, BadId, LayerUnavailable, NoHistory, RealtimeError
from realtime.history.positions import Position
from realtime.reading import ahistory, history
from realtime.routing import websocket_urlpatterns
from realtime.testing import connect
from tests.support.assertions.eventually import eventually
from tests.support.assertions.in_process import value_of
from tests.support.programs.servers import CHECKOUT, RedisServer

KEEPS = {"public.*": {"size": 5, "ttl": 60}}
application = URLRouter(websocket_urlpatterns)


@pytest.fixture(autouse=True)
def _keeps_history(realtime_settings: Any, settings: Any) -> Iterator[None]:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.MemoryLayer"}}
    channel_layers.backends.clear()
    realtime_settings(HISTORY=KEEPS)
    yield
    channel_layers.backends.clear()


# -- publishing ------------------------------------------------------------------------------------


def test_publish_returns_the_position() -> None:
    first, second = publish("public.a", 1), publish("public.a", 2)
    assert first is not None
    assert second == Position(first.epoch, 2)
    assert str(first) == f"{first.epoch}:1"
    assert publish("private.a", 1) is None


async def test_apublish_returns_the_position() -> None:
    first, second = await apublish("public.a", 1), await apublish("public.a", 2)
    assert first is not None
    assert second == Position(first.epoch, 2)
    assert await apublish("private.a", 1) is None


def test_a_repeated_id_is_one_message_and_counted_once() -> None:
    published, appended = value_of(metrics.published), value_of(metrics.history_appended)
    first = publish("public.a", 1, id="x")
    assert publish("public.a", 2, id="x") == first
    assert [each.data for each in history("public.a").messages] == [1]
    assert value_of(metrics.published) == published + 1
    assert value_of(metrics.history_appended) == appended + 1


async def test_ids_of_the_server_and_of_each_user_are_kept_apart() -> None:
    senders: list[Any] = [msgspec.UNSET, None, "1", "2"]
    places = [await apublish("public.a", 1, id="x", sender=sender) for sender in senders]
    assert [place.offset for place in places if place is not None] == [1, 2, 3, 4]
    assert await apublish("public.a", 1, id="x", sender="2") == places[3]


def test_an_id_needs_history() -> None:
    with pytest.raises(NoHistory, match=r"'private.a' keeps no history: no pattern in REALTIME"):
        publish("private.a", 1, id="x")


@pytest.mark.parametrize("wrong", ["", "x" * 65, 5, "\ud800"])
async def test_an_impossible_id_is_refused(wrong: Any) -> None:
    with pytest.raises(BadId, match="use a str of 1 to 64 characters"):
        await apublish("public.a", 1, id=wrong)


@pytest.mark.django_db(transaction=True)
def test_a_message_that_waits_for_a_commit_has_no_position() -> None:
    with transaction.atomic():
        assert publish("public.a", 1, id="x", on_commit=True) is None
        assert history("public.a").messages == ()
    assert [each.position.offset for each in history("public.a").messages] == [1]
    assert publish("public.a", 1, id="x", on_commit=True) == history("public.a").position


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_message_that_is_kept_but_not_sent_is_published(
    asynchronous: bool, server: RedisServer, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    use(settings, server, "CoreLayer")

    async def failing(group: str, message: Any) -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(get_channel_layer(), "group_send", failing)
    before = value_of(metrics.history_unsent)
    place = asyncio.run(apublish("public.unsent", 1)) if asynchronous else publish("public.unsent", 1)
    assert place is not None
    assert value_of(metrics.history_unsent) == before + 1
    (line,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert "public.unsent" in line.getMessage()
    assert "gone" in line.getMessage()


@pytest.mark.django_db(transaction=True)
async def test_a_client_is_told_the_position_of_what_it_published() -> None:
    anne = await User.objects.acreate(username="anne")
    channel_layers.backends.clear()
    async with connect(application, "/ws/", user=anne) as client:

        async def answer(group: str, **fields: Any) -> Any:
            await client.send({"type": "publish", "group": group, "data": 1, "ref": 1, **fields})
            return await client.receive_frame()

        first = await answer("public.a", id="x")
        assert (first["type"], first["offset"]) == ("published", 1)
        assert await answer("public.a", id="x") == first
        assert (await answer("public.a"))["offset"] == 2
        # The id of the server is another one.
        assert (await apublish("public.a", 1, id="x")) == Position(first["epoch"], 3)


@pytest.mark.django_db(transaction=True)
async def test_the_id_of_a_client_has_no_effect_without_history(realtime_settings: Any) -> None:
    realtime_settings(HISTORY={})
    anne = await User.objects.acreate(username="anne")
    async with connect(application, "/ws/", user=anne) as client:
        for _ in range(2):
            await client.send({"type": "publish", "group": "public.a", "data": 1, "ref": 1, "id": "x"})
            assert await client.receive_frame() == {"type": "published", "ref": 1, "group": "public.a"}


# -- reading ---------------------------------------------------------------------------------------


async def test_the_history_of_a_group_is_read() -> None:
    for number in range(7):
        await apublish("public.a", {"n": number}, sender="5" if number == 6 else msgspec.UNSET)
    found = await ahistory("public.a")
    assert (found.position.offset, found.recovered) == (7, None)
    assert [each.data for each in found.messages] == [{"n": number} for number in range(2, 7)]
    assert [each.position for each in found.messages][-1] == found.position
    last = found.messages[-1]
    assert last.sender == "5"
    assert found.messages[0].sender is msgspec.UNSET
    assert last.frame == (
        '{"type":"message","group":"public.a","data":{"n":6},"from":"5","offset":7,'
        f'"epoch":"{found.position.epoch}"}}'
    )
    assert [each.data["n"] for each in (await ahistory("public.a", limit=2)).messages] == [5, 6]


async def test_messages_after_a_position_are_read_or_refused() -> None:
    places = [await apublish("public.a", number) for number in range(7)]
    found = await ahistory("public.a", places[4])
    assert (found.recovered, [each.data for each in found.messages]) == (True, [5, 6])
    found = await ahistory("public.a", places[1], limit=2)
    assert (found.recovered, [each.data for each in found.messages]) == (True, [2, 3])
    assert (await ahistory("public.a", places[6])).messages == ()
    for unknown in (places[0], Position("another", 5), Position(places[0].epoch, 8)):  # type: ignore[union-attr]
        found = await ahistory("public.a", unknown)
        assert (found.recovered, found.messages, found.position) == (False, (), places[6])


def test_an_impossible_reading_is_refused() -> None:
    with pytest.raises(BadGroup):
        history("a b")
    with pytest.raises(NoHistory):
        history("private.a")
    with pytest.raises(ValueError, match="limit is 0"):
        history("public.a", limit=0)


async def test_history_refuses_to_block_a_running_loop() -> None:
    with pytest.raises(RealtimeError, match="await ahistory"):
        history("public.a")


@pytest.mark.usefixtures("redis_is_down")
def test_a_redis_that_is_down_is_a_clear_error() -> None:
    with pytest.raises(LayerUnavailable, match="failed to read a history"):
        history("public.a")
    with pytest.raises(CommandError, match="failed to read a history"):
        call_command("history", "public.a")
    with pytest.raises(LayerUnavailable, match="failed to publish"):
        publish("public.a", 1)


# -- commands --------------------------------------------------------------------------------------


def called(*words: str) -> str:
    output = io.StringIO()
    call_command(*words, stdout=output)
    return output.getvalue()


def test_the_publish_command_prints_the_position() -> None:
    printed = called("publish", "public.a", "1", "--id", "x")
    assert called("publish", "public.a", "2", "--id", "x") == printed == f"{history('public.a').position}\n"
    assert called("publish", "private.a", "1") == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("publish", "private.a", "1", "--id", "x"), "keeps no history"),
        (("publish", "public.a", "1", "--id", "x" * 65), "cannot be a publish id"),
        (("publish", "public.a", "--id", "x"), "--id is for one value"),
        (("history", "a b"), "cannot be a group's name"),
        (("history", "private.a"), "keeps no history"),
        (("history", "public.a", "--since", "5"), "give EPOCH:OFFSET"),
        (("history", "public.a", "--since", "e:x"), "give EPOCH:OFFSET"),
        (("history", "public.a", "--since", ":5"), "give EPOCH:OFFSET"),
        (("history", "public.a", "--limit", "0"), "give 1 or more"),
    ],
)
def test_wrong_words_of_a_command_are_named(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        called(*words)


def test_the_history_command_prints_frames() -> None:
    for number in range(7):
        publish("public.a", number)
    found = history("public.a")
    assert called("history", "public.a").splitlines() == [each.frame for each in found.messages]
    assert called("history", "public.a", "--limit", "2").splitlines() == [
        each.frame for each in found.messages[-2:]
    ]
    epoch = found.position.epoch
    after = called("history", "public.a", "--since", f"{epoch}:5").splitlines()
    assert [json.loads(line)["offset"] for line in after] == [6, 7]
    assert called("history", "public.a", "--since", f"{epoch}:7") == ""
    assert json.loads(called("history", "public.a", "--since", "another:5")) == {
        "type": "reset",
        "group": "public.a",
        "epoch": epoch,
        "offset": 7,
    }


# -- against a real Redis --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


def use(settings: Any, server: RedisServer, backend: str) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": f"realtime.layers.{backend}", "CONFIG": {"hosts": [server.url]}}
    }
    channel_layers.backends.clear()


@pytest.mark.acceptance
@pytest.mark.parametrize("backend", ["PubSubLayer", "CoreLayer"])
def test_synchronous_code_publishes_and_reads(backend: str, server: RedisServer, settings: Any) -> None:
    use(settings, server, backend)
    group = f"public.{backend}"
    first = publish(group, "ü", id="x")
    assert publish(group, 2, id="x") == first
    publish(group, 3)
    found = history(group, first)
    assert ([each.data for each in found.messages], found.recovered) == ([3], True)


class Following:
    """`manage.py history GROUP --follow` as a program."""

    def __init__(self, server: RedisServer, group: str) -> None:
        program = (
            "import django; from django.conf import settings; from tests.support import settings as given\n"
            "options = {name: getattr(given, name) for name in dir(given) if name.isupper()}\n"
            f"options['REALTIME'] = {{'HISTORY': {KEEPS!r}}}\n"
            "options['CHANNEL_LAYERS'] = {'default': {'BACKEND': 'realtime.layers.PubSubLayer', "
            f"'CONFIG': {{'hosts': [{server.url!r}]}}}}}}\n"
            "settings.configure(**options); django.setup()\n"
            "from django.core.management import execute_from_command_line\n"
            f"execute_from_command_line(['manage.py', 'history', {group!r}, '--follow'])\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Following":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.mark.acceptance
def test_follow_prints_new_messages_and_survives_an_outage(tmp_path: Any, settings: Any) -> None:
    with RedisServer(tmp_path) as own:
        use(settings, own, "PubSubLayer")
        publish("public.a", 1)
        with Following(own, "public.a") as following:
            assert following.line()["data"] == 1
            publish("public.a", 2)
            assert following.line()["data"] == 2
            own.restart()

            def publish_again() -> bool:
                try:
                    return publish("public.a", 3) is not None
                except LayerUnavailable:
                    return False

            eventually(publish_again, within=10)
            reset = following.line()
            assert (reset["type"], reset["group"]) == ("reset", "public.a")
            if reset["offset"] == 0:
                assert following.line()["data"] == 3
            following.process.send_signal(signal.SIGINT)
            output, errors = following.process.communicate(timeout=10)
            assert (following.process.returncode, output) == (0, "")
            assert len(errors.splitlines()) <= 1
            assert "Traceback" not in errors


@pytest.mark.acceptance
def test_follow_ends_with_the_reader_of_its_pipe(server: RedisServer, settings: Any) -> None:
    use(settings, server, "PubSubLayer")
    publish("public.pipe", 1)
    with Following(server, "public.pipe") as following:
        assert following.line()["data"] == 1
        assert following.process.stdout is not None
        following.process.stdout.close()
        assert following.process.wait(10) == 0
        assert following.process.stderr is not None
        assert following.process.stderr.read() == ""
        following.process.stdout = None
