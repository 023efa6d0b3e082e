"""A message to a group is written, in order, to the connections that are members when it is written."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime import metrics
from realtime.hub import fanout
from realtime.hub.fanout import Fanout
from realtime.serving import lifecycle
from realtime.transports.asgi import Shared
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of


class Member:
    """A connection that keeps each write as the list of its messages."""

    def __init__(self, *groups: str, then: Callable[[], object] = lambda: None) -> None:
        self.groups = set(groups)
        self.liveness = None
        self.last_run = 0
        self.transport = self
        self.writes: list[list[str]] = []
        self._then = then

    def write(self, event: dict[str, Any], size: int) -> None:
        self.writes.append([event["text"]])

    def write_shared(self, shared: Shared) -> None:
        self.writes.append([event["text"] for event, _ in shared.events])
        self._then()

    @property
    def texts(self) -> list[str]:
        return [text for write in self.writes for text in write]


class House:
    """A running fan-out, and the members that it looks up."""

    def __init__(self, window: float = 0.0, **limits: Any) -> None:
        self.groups: dict[str, dict[Any, None]] = {}
        pulse: Any = SimpleNamespace(now=lambda: 0.0, wrote=lambda *_: None)
        self.fanout = Fanout(self.groups, pulse, window, **limits)
        self._running: asyncio.Task[None] | None = None

    def add(self, *members: Member) -> None:
        for member in members:
            for group in member.groups:
                self.groups.setdefault(group, {})[member] = None

    async def put(self, group: str, *texts: str) -> None:
        for text in texts:
            await self.fanout.put(group, text)

    def say(self, member: Member, text: str) -> None:
        """Write to a member directly, as the hub does for the frames of a consumer."""
        self.fanout.flush(member)  # type: ignore[arg-type]
        member.write({"text": text}, len(text))

    def start(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self.fanout.run())

    async def start_idle(self) -> None:
        self.start()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.stop()


async def test_waiting_messages_of_a_group_leave_in_one_write(house: House) -> None:
    ann, ben = Member("a"), Member("a", "b")
    house.add(ann, ben)
    await house.put("a", "1", "2")
    await house.put("b", "3")
    await house.put("a", "4")
    house.start()
    await eventually_async(lambda: ben.texts == ["1", "2", "3", "4"], within=5)
    assert ann.writes == [["1", "2"], ["4"]]


async def test_a_few_members_are_written_to_immediately(house: House) -> None:
    ann, many = Member("a"), [Member("b") for _ in range(fanout.STRIDE + 1)]
    house.add(ann, *many)
    await house.start_idle()
    await house.put("a", "1")
    assert ann.writes == [["1"]]
    await house.put("b", "2")
    await house.put("a", "3")
    assert ann.writes == [["1"]]
    await eventually_async(lambda: ann.writes == [["1"], ["3"]], within=5)
    assert all(member.writes == [["2"]] for member in many)


async def test_quick_messages_to_few_members_leave_together(house: House) -> None:
    ann = Member("a")
    house.add(ann)
    await house.start_idle()
    await house.put("a", "1", "2", "3")
    await eventually_async(lambda: ann.writes == [["1"], ["2", "3"]], within=5)


async def test_a_failed_message_to_a_few_blocks_no_other_message(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    ann, ben = Member("a", then=fails), Member("b")
    house.add(ann, ben)
    await house.start_idle()
    await house.put("a", "1")
    await house.put("b", "2")
    assert ben.texts == ["2"]
    assert "group a could not be written" in caplog.text


async def test_one_of_a_few_that_leaves_during_a_write_gets_no_more(house: House) -> None:
    ben = Member("a")
    house.add(Member("a", then=lambda: house.groups["a"].pop(ben)), ben)
    await house.start_idle()
    await house.put("a", "1")
    assert ben.texts == []


async def test_a_member_that_leaves_during_a_write_receives_no_more(house: House) -> None:
    ben = Member("a")
    ann = Member("a", then=lambda: house.groups["a"].pop(ben))
    cho = Member("a")
    house.add(ann, ben, cho)
    house.start()
    await house.put("a", "1")
    await eventually_async(lambda: cho.texts == ["1"], within=5)
    assert ben.texts == []


async def test_waiting_messages_go_before_a_direct_write(house: House) -> None:
    ann, ben = Member("a", "b"), Member("a")
    house.add(ann, ben)
    await house.put("a", "1")
    await house.put("b", "2")
    house.fanout.flush(ann)  # type: ignore[arg-type]
    assert (ann.texts, ben.texts) == (["1", "2"], [])
    await house.put("a", "3")
    house.start()
    await eventually_async(lambda: ben.texts == ["1", "3"], within=5)
    assert ann.texts == ["1", "2", "3"]


async def test_a_direct_write_goes_behind_the_run_under_way() -> None:
    # The loop has its turn after every STRIDE members.
    house = House(slice=-1.0)
    members = [Member("a") for _ in range(3 * fanout.STRIDE)]
    house.add(*members)
    house.start()
    await house.put("a", "1")
    await eventually_async(lambda: members[0].texts == ["1"], within=5, every=0)
    assert members[-1].texts == []
    await house.put("a", "2")
    for member in (members[0], members[-1]):
        house.say(member, "pong")
    await eventually_async(lambda: members[-2].texts == ["1", "2"], within=5)
    assert members[0].texts == members[-1].texts == ["1", "2", "pong"]
    await house.stop()


@given(
    groups=st.lists(st.sets(st.sampled_from("ab"), min_size=1), min_size=1, max_size=3 * fanout.STRIDE),
    messages=st.lists(st.sampled_from("ab"), min_size=1, max_size=8),
    talk=st.lists(st.lists(st.integers(min_value=0), max_size=4), max_size=40),
)
@hypothesis_settings(deadline=None)
def test_order_survives_direct_writes_at_every_suspension(
    groups: list[set[str]], messages: list[str], talk: list[list[int]]
) -> None:
    """`talk` has, for each suspension of the fan-out, the members that are written to directly meanwhile."""

    async def attempt() -> None:
        house, talking = House(), iter(talk)
        members = [Member(*names) for names in groups]
        house.add(*members)

        async def pause() -> None:
            for number in next(talking, []):
                house.say(members[number % len(members)], "pong")
            await asyncio.sleep(0)

        house.fanout._pause = pause  # type: ignore[method-assign]
        house.start()
        for number, group in enumerate(messages):
            await house.put(group, str(number))
            if number % 3 == 2:
                await asyncio.sleep(0)
        await eventually_async(lambda: not house.fanout._waiting, within=5, every=0)
        await house.stop()
        for member in members:
            received = [text for text in member.texts if text != "pong"]
            assert received == [str(n) for n, group in enumerate(messages) if group in member.groups]

    asyncio.run(attempt())


async def test_a_send_of_the_author_goes_behind_waiting_messages(site: None) -> None:
    home, ann = await lifecycle.hub(), Member("a")
    home.memberships.groups["a"] = {ann: None}  # type: ignore[dict-item]
    await home.fanout.put("a", "1")
    home.write(ann, {"type": "websocket.send", "text": "2"}, 1)  # type: ignore[arg-type]
    assert ann.texts == ["1", "2"]
    del home.memberships.groups["a"]


async def test_each_delivery_is_counted(house: House) -> None:
    before = value_of(metrics.deliveries)
    ann, ben = Member("a"), Member("a")
    house.add(ann, ben)
    await house.put("a", "1", "2")
    house.fanout.flush(ann)  # type: ignore[arg-type]
    house.start()
    await eventually_async(lambda: ben.texts == ["1", "2"], within=5)
    await eventually_async(lambda: value_of(metrics.deliveries) - before == 4, within=5)


@pytest.mark.parametrize(("groups", "members", "idle"), [(1, 100, False), (100, 1, False), (100, 1, True)])
async def test_the_loop_runs_other_tasks_during_a_large_write(
    house: House, groups: int, members: int, idle: bool
) -> None:
    clock = SimpleNamespace(now=0.0)
    house.fanout._loop = SimpleNamespace(time=lambda: clock.now)  # type: ignore[assignment]

    def takes_its_time() -> None:
        clock.now += 0.0005

    turns: list[float] = []

    async def somebody_else() -> None:
        while True:
            turns.append(clock.now)
            await asyncio.sleep(0)

    names = [f"g{number}" for number in range(groups)]
    everybody = [Member(name, then=takes_its_time) for name in names for _ in range(members)]
    house.add(*everybody)
    if idle:
        await house.start_idle()
    other = asyncio.get_running_loop().create_task(somebody_else())
    await asyncio.sleep(0)
    for name in names:
        await house.put(name, "1")
    if not idle:
        house.start()
    await eventually_async(lambda: everybody[-1].texts == ["1"], within=5)
    other.cancel()
    longest = max(later - earlier for earlier, later in itertools.pairwise(turns))
    assert 0 < longest <= fanout.SLICE + fanout.STRIDE * 0.0005


async def test_a_window_delays_a_large_and_busy_group_and_no_other() -> None:
    house = House(window=0.1)
    # A group is large if it takes long to write to.
    ann, ben = Member("a", then=lambda: time.sleep(0.1)), Member("b")
    house.add(ann, ben)
    house.start()
    await house.put("a", "1")
    await eventually_async(lambda: ann.writes == [["1"]], within=5, every=0.001)
    await house.put("a", "2")
    await asyncio.sleep(0.01)
    await house.put("a", "3")
    await eventually_async(lambda: ann.writes == [["1"], ["2", "3"]], within=5, every=0.001)
    for text in ("4", "5"):
        await house.put("b", text)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ben.texts[-1] == text
    await house.stop()


async def test_messages_that_come_too_fast_wait_in_the_layer() -> None:
    house, ann = House(max_waiting=10), Member("a")
    house.add(ann)
    putting = asyncio.get_running_loop().create_task(house.put("a", "12345678", "12345678", "123"))
    await asyncio.sleep(0.01)
    assert not putting.done()
    house.start()
    await asyncio.wait_for(putting, 5)
    await eventually_async(lambda: ann.texts == ["12345678", "12345678", "123"], within=5)
    await house.stop()


async def test_a_message_that_cannot_be_written_blocks_no_other(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        if ann.texts == ["1"]:
            raise ZeroDivisionError("a bug")

    ann = Member("a", then=fail)
    house.add(ann)
    house.start()
    await house.put("a", "1")
    await eventually_async(lambda: "could not be written" in caplog.text, within=5)
    await house.put("a", "2")
    await eventually_async(lambda: ann.texts == ["1", "2"], within=5)


async def test_nothing_is_kept_for_a_group_without_members(house: House) -> None:
    await house.put("a", "1")
    assert not house.fanout._waiting
