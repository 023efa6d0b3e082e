"""Limits on open connections, asked of consumers as servers call them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.db.backends.utils import CursorWrapper
from django.utils.functional import SimpleLazyObject

from realtime import metrics
from realtime.closing import CloseReason
from realtime.consumers import GroupConsumer, RealtimeConsumer, SyncRealtimeConsumer
from realtime.limits import admission, handshakes, refusals
from realtime.limits.admission import Admission
from realtime.models import Connection, Process
from realtime.serving import lifecycle
from realtime.wire import frames

ADDRESS = "203.0.113.7"


class Author(RealtimeConsumer):
    connected = 0

    async def connect(self) -> None:
        type(self).connected += 1
        await self.accept()


class SyncAuthor(SyncRealtimeConsumer):
    pass


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    handshakes._rates.clear()
    refusals._tally._open.clear()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every SQL statement of every thread."""
    found: list[str] = []
    execute = CursorWrapper.execute

    def noted(self: Any, sql: str, params: Any = None) -> Any:
        found.append(sql)
        return execute(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", noted)
    return found


def only_background(statements: list[str]) -> bool:
    """Return True if ten refused connections caused no statement: the hub itself has a few."""
    return len(statements) < 5 and not any(each.startswith(("INSERT", "UPDATE")) for each in statements)


def client(
    consumer: type = Author,
    *,
    address: str = ADDRESS,
    user: Any = None,
    query: str = "",
    v1: bool = True,
) -> WebsocketCommunicator:
    made = WebsocketCommunicator(
        consumer.as_asgi(),  # type: ignore[attr-defined]
        f"/ws/?{query}",
        subprotocols=[frames.SUBPROTOCOL] if v1 else [],
    )
    made.scope["client"] = [address, 5555]
    if user is not None:
        made.scope["user"] = user
    return made


async def is_accepted(made: WebsocketCommunicator) -> bool:
    """Connect; return False if the server says goodbye because of a limit."""
    accepted, _ = await made.connect(timeout=5)
    assert accepted
    first = await made.receive_output(timeout=5)
    if '"goodbye"' not in first.get("text", ""):
        return True
    assert '"too_many_connections"' in first["text"]
    closing = await made.receive_output(timeout=5)
    assert (closing["type"], closing["code"]) == ("websocket.close", 4030)
    return False


async def answer_to(made: WebsocketCommunicator) -> Any:
    """Return the next frame that is no ping."""
    while (frame := await made.receive_json_from(timeout=5))["type"] == "ping":
        pass
    return frame


@asynccontextmanager
async def several(number: int, **options: Any) -> AsyncIterator[list[WebsocketCommunicator]]:
    made = [client(**options) for _ in range(number)]
    for each in made:
        assert await is_accepted(each)
    yield made
    for each in made:
        await each.disconnect()


@pytest.mark.usefixtures("site")
class TestLimits:
    @pytest.mark.parametrize("consumer", [Author, SyncAuthor, GroupConsumer])
    async def test_anonymous_clients_of_one_address_are_limited(
        self, consumer: type, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=2)
        async with several(2, consumer=consumer) as held:
            assert not await is_accepted(client(consumer))
            async with several(1, consumer=consumer, address="203.0.113.8"):
                pass
            await held[0].disconnect()
            async with several(1, consumer=consumer):
                assert not await is_accepted(client(consumer))

    async def test_users_are_limited_each_for_itself(self, realtime_settings: Callable[..., None]) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_USER=2, MAX_CONNECTIONS_PER_ADDRESS=1)
        anne, bob = [await User.objects.acreate_user(name) for name in ("anne", "bob")]
        async with several(2, user=anne), several(2, user=bob), several(1):
            assert not await is_accepted(client(user=anne, address="203.0.113.8"))
            assert not await is_accepted(client())

    async def test_users_of_one_address_are_limited_together(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_USER_CONNECTIONS_PER_ADDRESS=2)
        users = [await User.objects.acreate_user(name) for name in ("anne", "bob", "carl")]
        async with several(1, user=users[0]), several(1, user=users[1]):
            assert not await is_accepted(client(user=users[2]))
            async with several(1, user=users[2], address="203.0.113.8"), several(1):
                pass

    async def test_a_process_is_limited(self, realtime_settings: Callable[..., None]) -> None:
        realtime_settings(MAX_CONNECTIONS=2)
        async with several(1), several(1, address=""):
            assert not await is_accepted(client(address="203.0.113.8"))
        async with several(2):
            pass

    async def test_a_user_that_cannot_be_read_yet_counts_as_anonymous(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        anne = await User.objects.acreate_user("anne")

        class Later(RealtimeConsumer):
            async def connect(self) -> None:
                self.scope["user"] = anne
                await self.accept()

        lazy = SimpleLazyObject(lambda: User.objects.get(username="anne"))
        async with several(1, consumer=Later, user=lazy):
            assert not await is_accepted(client(Later, user=lazy))
            assert (await Connection.objects.open().aget()).user_id == str(anne.pk)

    async def test_a_refused_connection_costs_no_statement(
        self, realtime_settings: Callable[..., None], statements: list[str]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        async with several(1):
            rows = await Connection.objects.acount(), await Process.objects.acount()
            author, before = Author.connected, len(statements)
            for _ in range(20):
                assert not await is_accepted(client())
            assert only_background(statements[before:])
            assert Author.connected == author
            assert (await Connection.objects.acount(), await Process.objects.acount()) == rows

    async def test_the_first_connection_of_a_process_may_be_refused(
        self, realtime_settings: Callable[..., None], statements: list[str]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        other = Admission("default")
        assert await other.admit(lifecycle.Connection({"client": [ADDRESS, 5]}, lambda _: None)) is None
        assert not await is_accepted(client())
        assert statements == []

    async def test_a_client_that_comes_back_replaces_its_lost_connection(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_USER=2)
        anne = await User.objects.acreate_user("anne")

        def phone(name: str) -> WebsocketCommunicator:
            return client(GroupConsumer, user=anne, query=f"client={name}")

        # Nothing tells the server that they are lost.
        lost = [phone("phone-000"), phone("tablet-00")]
        assert [await is_accepted(each) for each in lost] == [True, True]
        assert not await is_accepted(phone("laptop-00"))
        back = [phone("phone-000"), phone("tablet-00")]
        assert [await is_accepted(each) for each in back] == [True, True]
        assert not await is_accepted(phone("laptop-00"))
        for each in back:
            await each.disconnect()

    async def test_a_connection_gives_its_place_back_however_it_ends(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)

        class Ending(RealtimeConsumer):
            connected: ClassVar[set[str]] = set()

            async def connect(self) -> None:
                query = self.scope["query_string"].decode()
                self.connected.add(query)
                await asyncio.sleep(0.05)
                match query:
                    case "refuse":
                        await self.close()
                    case "raise":
                        raise ValueError
                    case "hang":
                        await asyncio.Event().wait()

        for query in ("refuse", "raise", "hang"):
            ending = client(Ending, query=query)
            await ending.send_input({"type": "websocket.connect"})
            async with asyncio.timeout(5):
                while query not in Ending.connected:
                    await asyncio.sleep(0.01)
            assert admission.here().held == 1
            if query == "hang":
                await ending.send_input({"type": "websocket.disconnect", "code": 1006})
            async with asyncio.timeout(5):
                while admission.here().held:
                    await asyncio.sleep(0.01)
        async with several(1):
            assert admission.here().held == 1

    async def test_an_undeclared_proxy_has_no_limit_by_address(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        proxied = [client(address="127.0.0.1") for _ in range(3)]
        for each in proxied:
            each.scope["headers"] = [(b"x-forwarded-for", b"198.51.100.1")]
            assert await is_accepted(each)
        for each in proxied:
            await each.disconnect()

    async def test_too_many_handshakes_are_not_accepted(
        self, realtime_settings: Callable[..., None], statements: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0)
        async with several(1):
            before = len(statements)
            for _ in range(10):
                refused = client()
                await refused.send_input({"type": "websocket.connect"})
                assert (await refused.receive_output(timeout=5))["type"] == "websocket.close"
            assert only_background(statements[before:])

    async def test_many_refusals_are_logged_in_one_line(
        self, realtime_settings: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        before = metrics.limited.labels(limit="MAX_CONNECTIONS_PER_ADDRESS")._value.get()
        with caplog.at_level(logging.WARNING):
            async with several(1):
                for _ in range(10):
                    assert not await is_accepted(client())
        [line] = [record.getMessage() for record in caplog.records if record.name == "realtime.limits"]
        assert ADDRESS in line
        assert "TRUSTED_PROXIES" in line
        assert metrics.limited.labels(limit="MAX_CONNECTIONS_PER_ADDRESS")._value.get() == before + 10


@pytest.mark.usefixtures("site")
class TestGroups:
    async def test_a_client_is_told_that_it_has_too_many_groups(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_GROUPS=2)
        async with several(1, consumer=GroupConsumer) as [made]:
            for number, kind in enumerate(["joined", "joined", "error"]):
                await made.send_json_to({"type": "join", "ref": number, "group": f"public.{number}"})
                answer = await answer_to(made)
                assert (answer["type"], answer["ref"]) == (kind, number)
            assert answer["code"] == "too_many_groups"
            # It is no error of the protocol, so it never closes the connection.
            for number in range(GroupConsumer.MAX_ERRORS_PER_MINUTE + 1):
                await made.send_json_to({"type": "join", "ref": number, "group": "public.2"})
                assert (await answer_to(made))["code"] == "too_many_groups"
            # A group that it is in costs nothing, and one that it left is free.
            for frame, kind in [
                ({"type": "join", "ref": 3, "group": "public.0"}, "joined"),
                ({"type": "leave", "ref": 4, "group": "public.0"}, "left"),
                ({"type": "join", "ref": 5, "group": "public.2"}, "joined"),
            ]:
                await made.send_json_to(frame)
                assert (await answer_to(made))["type"] == kind

    @pytest.mark.parametrize("accepts_first", [True, False])
    async def test_an_uncaught_exception_closes_without_a_traceback(
        self, accepts_first: bool, realtime_settings: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        realtime_settings(MAX_GROUPS=2)

        class Greedy(RealtimeConsumer):
            async def connect(self) -> None:
                if accepts_first:
                    await self.accept()
                for number in range(5):
                    await self.channel_layer.group_add(f"public.{number}", self.channel_name)

        made = client(Greedy)
        await made.send_input({"type": "websocket.connect"})
        sent = []
        while not sent or sent[-1]["type"] != "websocket.close":
            sent.append(await made.receive_output(timeout=5))
        assert sent[-1]["code"] == 4029
        assert '"rate_limited"' in sent[-2]["text"]
        [line] = [record for record in caplog.records if record.name == "realtime.limits"]
        assert "MAX_GROUPS" in line.getMessage()
        assert not any(record.exc_info for record in caplog.records)

    async def test_concurrent_joins_do_not_exceed_the_limit(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_GROUPS=3)
        made: list[Any] = []

        class Joining(RealtimeConsumer):
            async def connect(self) -> None:
                made.append(self.connection)
                joins = (lifecycle.group_add(self.connection, f"public.{number}") for number in range(10))
                outcomes = await asyncio.gather(*joins, return_exceptions=True)
                made.extend(outcomes)
                await self.accept()

        async with several(1, consumer=Joining):
            assert len(made[0].groups) == 3
            assert sum(outcome is None for outcome in made[1:]) == 3


def arriving(number: int = 1, address: str = ADDRESS) -> list[lifecycle.Connection]:
    return [lifecycle.Connection({"client": [address, 5]}, lambda _: None) for _ in range(number)]


@pytest.mark.usefixtures("memory_layer")
class TestAdmission:
    async def test_processes_count_together(self, realtime_settings: Callable[..., None]) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=3)
        one, two = Admission("default"), Admission("default")
        answers = [await each.admit(arriving()[0]) for each in (one, two, one, two)]
        assert answers == [None, None, None, "MAX_CONNECTIONS_PER_ADDRESS"]

    async def test_connects_of_one_turn_share_a_call(
        self, realtime_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls, layer = [], get_channel_layer()
        run_script = layer.run_script

        async def noted(*arguments: Any) -> Any:
            calls.append(arguments)
            return await run_script(*arguments)

        monkeypatch.setattr(layer, "run_script", noted)
        one = Admission("default")
        await asyncio.gather(*(one.admit(each) for each in arriving(50)))
        assert len(calls) == 2, "one to be alive, and one to count"
        await asyncio.gather(*(one.admit(each) for each in arriving(50)))
        assert len(calls) == 3

    async def test_a_connection_cancelled_while_it_waits_holds_no_place(
        self, realtime_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        goes_on, layer = asyncio.Event(), get_channel_layer()
        run_script = layer.run_script

        async def held_up(*arguments: Any) -> Any:
            answer = await run_script(*arguments)
            await goes_on.wait()
            return answer

        monkeypatch.setattr(layer, "run_script", held_up)
        one = Admission("default")
        waiting = asyncio.create_task(one.admit(arriving()[0]))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        goes_on.set()
        assert await one.admit(arriving()[0]) is None
        assert await one.admit(arriving()[0]) == "MAX_CONNECTIONS_PER_ADDRESS"
        assert one.held == 1

    async def test_a_connection_that_ended_while_it_waited_holds_no_place(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=1)
        one, [gone] = Admission("default"), arriving()
        waiting = asyncio.create_task(one.admit(gone))
        await asyncio.sleep(0)
        gone.end(CloseReason.CLIENT_LOST)
        await waiting
        assert one.held == 0
        assert await one.admit(arriving()[0]) is None

    @pytest.mark.parametrize("answer", ["accept", "refuse"])
    async def test_a_redis_that_hangs_delays_connects_once(
        self,
        answer: str,
        realtime_settings: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        realtime_settings(LIMITS_WITHOUT_REDIS=answer, MAX_CONNECTIONS_PER_ADDRESS=30)
        hangs, layer = True, get_channel_layer()
        run_script = layer.run_script

        async def hanging(*arguments: Any) -> Any:
            if hangs:
                await asyncio.Event().wait()
            return await run_script(*arguments)

        monkeypatch.setattr(layer, "run_script", hanging)
        monkeypatch.setattr(admission, "RETRY_EVERY", 0.05)
        clock = asyncio.get_running_loop().time
        one, began = Admission("default"), clock()
        first = await asyncio.gather(*(one.admit(each) for each in arriving(20)))
        assert clock() - began < 3
        began = clock()
        later = [await one.admit(each) for each in arriving(20)]
        assert clock() - began < 1, "each connect waits again"
        if answer == "accept":
            assert first == [None] * 20
            assert later == [None] * 10 + ["MAX_CONNECTIONS_PER_ADDRESS"] * 10
        else:
            assert {*first, *later} == {admission.WITHOUT_REDIS}
        lines = [
            record.getMessage() for record in caplog.records if "cannot be counted" in record.getMessage()
        ]
        assert sum("LIMITS_WITHOUT_REDIS" in line for line in lines) >= 1
        hangs = False
        async with asyncio.timeout(10):
            while one._sharing.away:
                await asyncio.sleep(0.01)
        # What was accepted meanwhile counts for the other processes, too.
        other = Admission("default")
        answers = [await other.admit(each) for each in arriving(1)]
        assert answers == (["MAX_CONNECTIONS_PER_ADDRESS"] if answer == "accept" else [None])

    async def test_a_process_that_stops_gives_all_places_back_first(
        self, realtime_settings: Callable[..., None]
    ) -> None:
        realtime_settings(MAX_CONNECTIONS_PER_ADDRESS=2)
        one, two, held = Admission("default"), Admission("default"), arriving(2)
        assert [await one.admit(each) for each in held] == [None, None]
        await one.leave()
        assert [await two.admit(each) for each in arriving(2)] == [None, None]
        for each in held:
            one.give_back(each)
        assert one.held == 0
        assert await one.admit(arriving()[0]) == "MAX_CONNECTIONS_PER_ADDRESS"
