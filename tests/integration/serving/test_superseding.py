"""A new connection of a client takes the place of the older one: its frames, records and signals."""

import asyncio
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User
from django.db import OperationalError

from realtime import metrics, signals
from realtime.closing import CloseReason
from realtime.consumers import RealtimeConsumer, SyncRealtimeConsumer
from realtime.errors import LayerUnavailable
from realtime.layers import groups, messages
from realtime.models import Connection, PresentUser
from realtime.records import client_rows, connection_rows
from realtime.records.entries import Closing, Opening
from realtime.routing import websocket_urlpatterns
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of
from tests.support.doubles.life import Hold
from tests.support.doubles.rows import a_process, an_opening

pytestmark = pytest.mark.usefixtures("site")

CLIENT = "0123456789abcdef"
GROUP = "public.room"
ELSEWHERE = "specific.elsewhere"


class Device(RealtimeConsumer):
    client_parameter = "device"


class SyncDevice(SyncRealtimeConsumer):
    client_parameter = "device"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch, realtime_settings: Any) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.2))
    realtime_settings(ROUND_INTERVAL=0.5, ROUND_TIMEOUT=0.2)


@pytest.fixture
def told() -> Iterator[list[tuple[str, uuid.UUID]]]:
    """The signals of connections, in order: "opened" or the reason, and the connection."""
    found: list[tuple[str, uuid.UUID]] = []

    def opened(connection: Opening, **_: Any) -> None:
        found.append(("opened", connection.id))

    def closed(connection: Opening, reason: CloseReason, **_: Any) -> None:
        found.append((reason.value, connection.id))

    signals.connection_opened.connect(opened)
    signals.connection_closed.connect(closed)
    yield found
    signals.connection_opened.disconnect(opened)
    signals.connection_closed.disconnect(closed)


@pytest.fixture
def kicks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, messages.Control]]:
    """The messages that this process sends to others, with their addresses."""
    sent: list[tuple[str, messages.Control]] = []

    async def tell(address: str, message: messages.Control) -> None:
        sent.append((address, message))

    monkeypatch.setattr(groups, "tell", tell)
    return sent


def open_client(
    user: Any = None, query: str = f"client={CLIENT}", path: str = "/ws/", application: Any = None
) -> WebsocketCommunicator:
    client = WebsocketCommunicator(application or URLRouter(websocket_urlpatterns), f"{path}?{query}")
    client.scope["user"] = user or AnonymousUser()
    client.scope["subprotocols"] = ["realtime.v1"]
    return client


async def connected(*args: Any, **options: Any) -> WebsocketCommunicator:
    client = open_client(*args, **options)
    assert (await client.connect())[0]
    assert json.loads(await client.receive_from(timeout=5))["type"] == "welcome"
    return client


async def end_of(client: WebsocketCommunicator) -> tuple[dict[str, Any], int]:
    """Return the goodbye and the close code, which are all that the client is still sent."""
    goodbye = json.loads(await client.receive_from(timeout=5))
    event = await client.receive_output(timeout=5)
    assert event["type"] == "websocket.close"
    return goodbye, event["code"]


def is_end_of_a_superseded_one(end: tuple[dict[str, Any], int]) -> bool:
    goodbye, code = end
    assert goodbye == {"type": "goodbye", "reason": "superseded", "reconnect": False}
    assert code == 4509
    return True


async def reasons() -> list[str]:
    """The reasons of all records in the order of their opening; empty for open ones."""
    return [
        reason
        async for reason in Connection.objects.order_by("opened_at").values_list("close_reason", flat=True)
    ]


async def user(name: str) -> User:
    return await User.objects.acreate_user(name)


async def _newer_elsewhere(user_id: str = "") -> Opening:
    """Open a connection of the client in another process, which closes the older records."""

    def write() -> Opening:
        newer = an_opening(a_process(channel_name=ELSEWHERE), user_id=user_id, client_id=CLIENT)
        connection_rows.open_connections([newer])
        older = client_rows.superseded(client_rows.clients_of([newer]))
        closings = [Closing(each.opening.id, CloseReason.SUPERSEDED, 4509) for each in older]
        connection_rows.end_connections(closings, uuid.uuid4())
        return newer

    return await sync_to_async(write)()


async def test_the_older_connection_says_goodbye_and_closes(told: Any) -> None:
    before = value_of(metrics.closed, reason="superseded")
    older = await connected()
    newer = await connected()

    assert is_end_of_a_superseded_one(await end_of(older))

    assert await reasons() == ["superseded", ""]
    await older.disconnect()
    await newer.disconnect()
    await eventually_async(lambda: len(told) == 4, within=5)
    (_, first), (_, second), *ends = told
    assert sorted(ends) == [("client_closed", second), ("superseded", first)]
    assert value_of(metrics.closed, reason="superseded") == before + 1


async def test_presence_does_not_notice() -> None:
    anne = await user("anne")
    older = await connected(anne, path=f"/ws/{GROUP}/")
    newer = await connected(anne, path=f"/ws/{GROUP}/")

    assert is_end_of_a_superseded_one(await end_of(older))
    await older.disconnect()

    home = await lifecycle.hub()
    await eventually_async(lambda: not home.cleanups, within=5)
    present = [row async for row in PresentUser.objects.order_by("group").values_list("group", "gone_at")]
    assert present == [("", None), (GROUP, None)]
    await newer.disconnect()


async def test_other_users_and_other_clients_are_untouched() -> None:
    anne, bob = await user("anne"), await user("bob")
    others = [
        await connected(bob),
        await connected(),
        await connected(anne, query="client=another-device"),
        await connected(anne, query=""),
    ]
    older, newer = await connected(anne), await connected(anne)

    assert is_end_of_a_superseded_one(await end_of(older))

    assert await reasons() == ["", "", "", "", "superseded", ""]
    for client in (*others, newer):
        await client.disconnect()


async def test_connections_without_an_id_cost_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    monkeypatch.setattr(client_rows, "superseded", looks.append)
    monkeypatch.setattr(client_rows, "superseded_of", lambda *arguments: looks.append(arguments))
    clients = [await connected(query="") for _ in range(2)]

    await asyncio.sleep(0.6)  # more than the time between two looks

    assert looks == []
    for client in clients:
        await client.disconnect()


@pytest.mark.parametrize(
    "query", ["client=short", "client=", f"client={CLIENT}&client={CLIENT}", "client=secret%20id"]
)
async def test_a_malformed_id_is_refused_and_logged_once(
    query: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_client(query=query)
    with caplog.at_level(logging.INFO, logger="realtime"):
        assert (await client.connect())[0]
        goodbye, code = await end_of(client)

    assert (goodbye["reason"], code) == ("protocol_error", 4500)
    assert await reasons() == []
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.exc_info for record in lines] == [None]
    assert "query parameter client" in caplog.text
    assert "secret" not in caplog.text


async def test_no_log_line_has_the_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="realtime"):
        older, newer = await connected(), await connected()
        await end_of(older)
        await newer.disconnect()
    assert CLIENT not in caplog.text


@pytest.mark.parametrize("consumer", [Device, SyncDevice])
async def test_a_consumer_of_an_author_names_the_parameter(consumer: Any) -> None:
    application = consumer.as_asgi()
    older = await connected(query=f"device={CLIENT}", application=application)
    newer = await connected(query=f"device={CLIENT}", application=application)

    assert is_end_of_a_superseded_one(await end_of(older))
    await newer.disconnect()


async def test_a_consumer_of_an_author_reads_no_parameter_unasked() -> None:
    application = RealtimeConsumer.as_asgi()
    clients = [await connected(query="client=web", application=application) for _ in range(2)]

    assert [row async for row in Connection.objects.values_list("client_id", flat=True)] == ["", ""]
    assert await clients[0].receive_nothing(timeout=0.3)
    for client in clients:
        await client.disconnect()


async def test_the_process_of_the_older_connection_is_told(told: Any, kicks: Any) -> None:
    def write() -> Opening:
        older = an_opening(a_process(channel_name=ELSEWHERE), user_id="", client_id=CLIENT)
        connection_rows.open_connections([older])
        return older

    older = await sync_to_async(write)()

    newer = await connected()

    await eventually_async(lambda: ("superseded", older.id) in told and kicks, within=5)
    assert kicks == [(ELSEWHERE, messages.Kick([older.id], [], "superseded"))]
    assert await reasons() == ["superseded", ""]
    await newer.disconnect()


async def test_a_process_that_cannot_be_told_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    async def fail(address: str, message: messages.Control) -> None:
        raise LayerUnavailable("Redis is down.")

    monkeypatch.setattr(groups, "tell", fail)
    await sync_to_async(
        lambda: connection_rows.open_connections(
            [an_opening(a_process(channel_name=ELSEWHERE), user_id="", client_id=CLIENT)]
        )
    )()

    newer = await connected()

    await eventually_async(lambda: "was not told of superseded connections" in caplog.text, within=5)
    assert [kind for kind, _ in told if kind != "opened"] == ["superseded"]
    await newer.disconnect()


async def test_a_kick_evicts_and_is_not_counted_again(told: Any) -> None:
    before = value_of(metrics.closed, reason="superseded")
    client = await connected()
    home = await lifecycle.hub()
    (id_,) = home.connections
    await _newer_elsewhere()

    await groups.tell(home.channel, messages.Kick([id_], [], "superseded"))

    assert is_end_of_a_superseded_one(await end_of(client))
    await client.disconnect()
    await eventually_async(lambda: not home.evictions and not home.cleanups, within=5)
    assert await reasons() == ["superseded", ""]
    # The process that closed the record announces the end.
    assert told == [("opened", id_)]
    assert value_of(metrics.closed, reason="superseded") == before


async def test_a_connection_whose_kick_is_lost_ends_within_a_round() -> None:
    client = await connected()
    await _newer_elsewhere()

    assert is_end_of_a_superseded_one(await end_of(client))


async def test_an_end_during_the_admission_is_announced_once(told: Any) -> None:
    """Its record is committed and closed by another process before this process knows of the commit."""
    await (await connected(query="")).disconnect()
    await eventually_async(lambda: len(told) == 2, within=5)
    told.clear()
    home, hold = await lifecycle.hub(), Hold()
    home.ledger.open = hold.on_loop(home.ledger.open, after=True)  # type: ignore[method-assign]
    client = open_client()
    connecting = asyncio.create_task(client.connect())
    await hold.until_reached()
    (connection,) = home.admitting
    await _newer_elsewhere()

    await groups.tell(home.channel, messages.Kick([connection.id], [], "superseded"))
    await eventually_async(lambda: connection.gone, within=5)
    hold.released.set()

    await eventually_async(lambda: not home.evictions and not home.cleanups, within=5)
    assert connection.reason is CloseReason.SUPERSEDED
    assert told == [("opened", connection.id)], "the other process sends connection_closed"
    assert await reasons() == ["client_closed", "superseded", ""]
    await asyncio.wait([connecting], timeout=2)


async def test_a_client_that_is_gone_before_its_record_supersedes_none() -> None:
    """It gave the connection up because the record took long, and has a newer one."""
    await (await connected(query="")).disconnect()
    newer = await connected()
    home, hold = await lifecycle.hub(), Hold()
    home.ledger.open = hold.on_loop(home.ledger.open, after=True)  # type: ignore[method-assign]
    late = open_client()
    connecting = asyncio.create_task(late.connect())
    await hold.until_reached()
    await late.send_input({"type": "websocket.disconnect", "code": 1006})
    (connection,) = home.admitting
    await eventually_async(lambda: connection.gone, within=5)
    hold.released.set()

    await eventually_async(lambda: not home.evictions and not home.cleanups, within=5)

    assert await reasons() == ["client_closed", "", "client_lost"]
    assert await newer.receive_nothing(timeout=0.2)
    connecting.cancel()
    await newer.disconnect()


async def test_a_database_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    superseded, failures = client_rows.superseded, []

    def fail_once(clients: Any) -> Any:
        if not failures:
            failures.append(clients)
            raise OperationalError("the database is down")
        return superseded(clients)

    older = await connected()
    monkeypatch.setattr(client_rows, "superseded", fail_once)
    newer = await connected()

    assert is_end_of_a_superseded_one(await end_of(older))
    assert len(failures) == 1
    await newer.disconnect()


async def test_a_client_that_flaps_leaves_no_record_open(told: Any) -> None:
    clients: list[WebsocketCommunicator] = []
    endings = []
    for _ in range(15):
        clients.append(await connected())
        if len(clients) % 3:
            # Its close crosses the look of the next one.
            endings.append(asyncio.create_task(clients[-1].disconnect()))
    await asyncio.gather(*endings)
    home = await lifecycle.hub()
    await clients[-1].disconnect()
    await eventually_async(lambda: not home.connections and not home.cleanups, within=5)

    await eventually_async(lambda: len(told) == 30, within=5)
    opened = [id_ for kind, id_ in told if kind == "opened"]
    closed = {id_: kind for kind, id_ in told if kind != "opened"}
    assert len(set(opened)) == 15
    assert set(opened) == closed.keys()
    rows = Connection.objects.values_list("pk", "close_reason")
    assert {pk: reason async for pk, reason in rows} == closed
