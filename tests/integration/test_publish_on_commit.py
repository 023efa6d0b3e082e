"""`publish(…, on_commit=True)` sends after the commit, and nothing after a rollback, for each caller."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from django.core.management import call_command
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, TestCase, TransactionTestCase
from django.urls import path

from realtime import apublish, publish, publishing
from realtime.errors import BadGroup, NoSuchLayer, UnpublishableData

pytestmark = pytest.mark.usefixtures("memory_layer")


@pytest.fixture
def sent(memory_layer: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the data of the messages that the layer was given so far."""
    sent: list[Any] = []

    async def group_send(group: str, message: Any) -> None:
        sent.append(json.loads(message["text"])["data"])

    monkeypatch.setattr(get_channel_layer(), "group_send", group_send)
    return sent


def apublish_from_sync(group: str, data: object, **options: Any) -> None:
    async_to_sync(apublish)(group, data, **options)


both = pytest.mark.parametrize("send", [publish, apublish_from_sync])
Send = Callable[..., None]


@both
def test_a_message_leaves_after_the_commit(send: Send, sent: list[Any]) -> None:
    with transaction.atomic():
        send("g", 1, on_commit=True)
        send("g", 2)
        send("g", 3, on_commit=True)
        assert sent == [2]
    assert sent == [2, 1, 3]


@both
def test_a_rollback_sends_nothing(send: Send, sent: list[Any]) -> None:
    with transaction.atomic():
        send("g", 1, on_commit=True)
        transaction.set_rollback(True)
    with transaction.atomic(durable=True):
        send("g", 2, on_commit=True)
    assert sent == [2]


@both
def test_without_a_transaction_a_message_leaves_immediately(send: Send, sent: list[Any]) -> None:
    send("g", 1, on_commit=True)
    assert sent == [1]


@both
def test_a_savepoint_that_is_rolled_back_takes_its_messages(send: Send, sent: list[Any]) -> None:
    with transaction.atomic():
        send("g", "before", on_commit=True)
        with transaction.atomic():
            send("g", "lost", on_commit=True)
            with transaction.atomic():
                send("g", "lost too", on_commit=True)
            transaction.set_rollback(True)
        with transaction.atomic():
            send("g", "after", on_commit=True)
    assert sent == ["before", "after"]


@both
def test_using_names_the_database_of_the_transaction(send: Send, sent: list[Any]) -> None:
    with transaction.atomic():
        send("g", 1, on_commit=True, using="default")
        assert sent == []
    assert sent == [1]
    with pytest.raises(Exception, match="elsewhere"):
        send("g", 1, on_commit=True, using="elsewhere")


@both
def test_the_setting_is_the_default(send: Send, sent: list[Any], realtime_settings: Any) -> None:
    realtime_settings(PUBLISH_ON_COMMIT=True)
    with transaction.atomic():
        send("g", 1)
        send("g", 2, on_commit=False)
        call_command("publish", "g", "3")
        assert sent == [2, 3]
    assert sent == [2, 3, 1]


@both
@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("a b", 1), {}, BadGroup),
        (("g", object()), {}, UnpublishableData),
        (("g", 1), {"alias": "elsewhere"}, NoSuchLayer),
    ],
)
def test_a_bad_message_is_refused_at_the_call(
    send: Send, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with transaction.atomic():
        with pytest.raises(error):
            send(*arguments, on_commit=True, **options)
        assert transaction.get_connection().run_on_commit == []


@both
def test_data_are_encoded_at_the_call(send: Send, sent: list[Any]) -> None:
    data = {"n": 1}
    with transaction.atomic():
        send("g", data, on_commit=True)
        data["n"] = 2
    assert sent == [{"n": 1}]


@both
def test_a_layer_that_fails_after_the_commit_is_logged_once(
    send: Send, redis_is_down: None, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    with transaction.atomic():
        send("g", 1, on_commit=True)
        transaction.on_commit(lambda: done.append("the next callback"))
    assert done == ["the next callback"]
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.name == "realtime.publishing"
    assert "After a commit, a message to the group g was not published" in line.getMessage()
    assert line.exc_info is None


def test_without_autocommit_django_says_what_is_wrong(sent: list[Any]) -> None:
    connections["default"].ensure_connection()
    transaction.set_autocommit(False)
    try:
        with pytest.raises(transaction.TransactionManagementError):
            publish("g", 1, on_commit=True)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_a_database_is_not_connected_to_for_a_message(sent: list[Any]) -> None:
    connections["default"].close()
    publish("g", 1, on_commit=True)
    assert sent == [1]
    assert connections["default"].connection is None


# -- asynchronous callers ------------------------------------------------------------------------------


async def test_sync_code_of_an_async_caller_waits_for_its_commit(sent: list[Any]) -> None:
    def code() -> None:
        with transaction.atomic():
            publish("g", 1, on_commit=True)
            async_to_sync(apublish)("g", 2, on_commit=True)
            assert sent == []

    await sync_to_async(code)()
    assert sent == [1, 2]


async def test_an_async_caller_without_a_transaction_sends_immediately(sent: list[Any]) -> None:
    await apublish("g", 1, on_commit=True)
    assert sent == [1]


async def test_the_commit_does_not_block_the_loop(
    memory_layer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, sending = [], threading.Event()

    async def slow(group: str, message: Any) -> None:
        sending.set()
        await asyncio.sleep(0.3)

    monkeypatch.setattr(get_channel_layer(), "group_send", slow)

    def code() -> None:
        with transaction.atomic():
            async_to_sync(apublish)("g", 1, on_commit=True)

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)
            if sending.is_set():
                ticks.append(time.monotonic())

    ticking = asyncio.create_task(tick())
    await sync_to_async(code)()
    ticking.cancel()
    assert len(ticks) >= 2


async def test_a_commit_on_a_running_loop_publishes_in_a_task(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with transaction.atomic():
        # Directly, because apublish would look for a transaction in the other thread.
        transaction.on_commit(lambda: _committed(1))
        assert sent == []
    async with asyncio.timeout(5):
        while not sent:
            await asyncio.sleep(0.01)
    assert sent == [1]
    connections["default"].close()


def _committed(data: object) -> None:
    publishing._committed(publishing._publication("g", data, None, None, "default"))


async def view(request: HttpRequest) -> HttpResponse:
    await apublish("g", "before", on_commit=True)
    await sync_to_async(_atomic_part)()
    await apublish("g", "after", on_commit=True)
    return HttpResponse()


@transaction.atomic
def _atomic_part() -> None:
    publish("g", "at the commit", on_commit=True)
    async_to_sync(_nested)()


async def _nested() -> None:
    await apublish("g", "at the commit, too", on_commit=True)
    await apublish("g", "in the transaction")


@transaction.atomic
def atomic_view(request: HttpRequest) -> HttpResponse:
    publish("g", "at the commit", on_commit=True)
    publish("g", "in the transaction")
    return HttpResponse()


urlpatterns = [path("async/", view), path("sync/", atomic_view)]


async def test_views_under_asgi_send_after_their_commit(sent: list[Any], settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    client = AsyncClient()
    assert (await client.get("/async/")).status_code == 200
    assert sent == ["before", "in the transaction", "at the commit", "at the commit, too", "after"]
    sent.clear()
    assert (await client.get("/sync/")).status_code == 200
    assert sent == ["in the transaction", "at the commit"]


# -- Django's test cases ---------------------------------------------------------------------------------


class _Recording:
    @pytest.fixture(autouse=True)
    def _keep_sent(self, sent: list[Any]) -> None:
        self.sent = sent


class InATestCase(_Recording, TestCase):
    def test_captured_callbacks_publish(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            publish("g", 1, on_commit=True)
            async_to_sync(apublish)("g", 2, on_commit=True)
            assert self.sent == []
        assert len(callbacks) == 2
        assert self.sent == [1, 2]

    def test_without_capturing_nothing_is_published(self) -> None:
        publish("g", 1, on_commit=True)
        assert self.sent == []

    async def test_an_async_test_waits_for_the_commit_of_the_test(self) -> None:
        await apublish("g", 1, on_commit=True)
        assert self.sent == []


class InATransactionTestCase(_Recording, TransactionTestCase):
    async def test_an_async_test_publishes_immediately(self) -> None:
        await apublish("g", 1, on_commit=True)
        assert self.sent == [1]
