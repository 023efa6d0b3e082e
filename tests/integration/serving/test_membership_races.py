"""A membership in the layer is always named by a committed row, in any order of its steps.

The database and the layer are doubles: each call waits until the test lets it succeed or fail. So a test
chooses the order of all steps, and checks the invariant at each of them. A process that is killed at any
moment then leaves a complete to-do list.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from realtime.closing import CloseReason
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable
from realtime.hub.connection import Connection, State
from realtime.hub.memberships import Memberships
from realtime.hub.recovery import Recovery
from realtime.hub.watches import Watches
from realtime.layers import groups
from realtime.records.entries import Closed, Closing, Join, Opening
from realtime.serving import lifecycle

ADDRESS = "specific.me"
PROCESS = uuid.UUID(int=7)


class World:
    """One process with three connections: what its rows and its layer say, and the calls that wait."""

    latest: "World"

    def __init__(self) -> None:
        self.open_rows: set[tuple[uuid.UUID, str]] = set()
        self.in_layer: set[str] = set()
        """Groups that the layer may have the process in: from the call of `add` to the end of a `discard`."""
        self.waiting: list[tuple[asyncio.Future[bool], set[uuid.UUID]]] = []
        self.refused = False
        """True if the layer or the database failed once: then something may be left on the to-do list."""
        self.calls: set[asyncio.Task[None]] = set()
        self.hub = Hub(self)
        self.connections = [self.connection() for _ in range(3)]

    def connection(self) -> Connection:
        made = Connection({}, lambda _: None)
        made.transport = Transport()  # type: ignore[assignment]
        made.hub = self.hub  # type: ignore[assignment]
        made.opening = Opening(made.id, PROCESS, "", "/", "", "", "")
        made.state = State.OPEN
        return made

    async def step(self, *connections: uuid.UUID) -> None:
        """Wait until the test lets this step go on.

        Args:
            connections: The connections that it writes rows of. The ledger keeps the order of writes of one.

        Raises:
            Refused: The test lets it fail.
        """
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((done, {*connections}))
        if not await done:
            raise Refused

    def check(self) -> None:
        named = {group for _, group in self.open_rows}
        assert self.in_layer <= named, f"no row names {self.in_layer - named}"

    # -- the steps of a test

    def call(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Make a call without awaiting it."""

        async def quietly() -> None:
            with suppress(ConnectionGone, LayerUnavailable, RecordsUnavailable):
                await work

        task = asyncio.ensure_future(quietly())
        self.calls.add(task)
        return task

    async def settle(self) -> None:
        """Let every task run until it waits for a step."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def let(self, number: int, *, succeed: bool) -> None:
        ready = [
            each
            for place, each in enumerate(self.waiting)
            if not any(each[1] & before for _, before in self.waiting[:place])
        ]
        if ready:
            done, _ = chosen = ready[number % len(ready)]
            self.waiting.remove(chosen)
            self.refused = self.refused or not succeed
            if not done.done():
                done.set_result(succeed)
            await self.settle()

    async def finish(self) -> None:
        """Let all that waits succeed, until nothing waits any more."""
        await self.settle()
        while self.waiting:
            await self.let(0, succeed=True)
        async with asyncio.timeout(5):
            await asyncio.gather(*self.calls, *self.hub.evictions, *self.hub.cleanups)


class Refused(Exception):
    """The test lets a step fail."""


class Transport:
    """Takes what an eviction does with the socket."""

    def close(self, *_: object) -> None: ...

    def abandon(self) -> None: ...


class Hub:
    """The parts of a hub that the lifecycle uses for groups."""

    ending = None
    process = PROCESS

    def __init__(self, world: World) -> None:
        self.memberships = Memberships(ADDRESS)
        # No group here keeps history.
        self.recovery = mock.Mock(spec=Recovery)
        self.watches = mock.Mock(spec=Watches)
        self.ledger = Ledger(world)
        self.evictions: set[asyncio.Task[None]] = set()
        self.endings: set[asyncio.Task[None]] = set()
        self.cleanups: set[asyncio.Task[None]] = set()

    def remove(self, connection: Connection) -> None:
        self.memberships.remove_from_all(connection)


class Ledger:
    """The database. Leaves are repeated until it takes them, as by the real ledger."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def join(self, join: Join) -> None:
        try:
            await self._world.step(join.connection_id)
        except Refused as error:
            raise RecordsUnavailable("refused") from error
        self._world.open_rows.add((join.connection_id, join.group))

    async def leave(self, joins: Sequence[Join]) -> None:
        while True:
            with suppress(Refused):
                await self._world.step(*(join.connection_id for join in joins))
                break
        self._world.open_rows.difference_update((join.connection_id, join.group) for join in joins)
        self._world.check()

    async def close(self, closing: Closing) -> Closed:
        return Closed(was_first=True)


@pytest.fixture
def in_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that ends with the process, so that no row has to name its memberships."""

    def add_now(group: str, address: str) -> bool:
        World.latest.in_layer.add(group)
        return True

    monkeypatch.setattr(groups, "add_now", add_now)
    monkeypatch.setattr(groups, "ends_with_process", lambda _: True)
    monkeypatch.setattr(World, "check", lambda _: None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]:
    """`run(test)` gives the test a new world, on a loop of its own."""

    async def add(group: str, address: str) -> None:
        world = World.latest
        world.in_layer.add(group)
        world.check()
        try:
            await world.step()
        except Refused as error:
            raise LayerUnavailable("refused") from error

    async def discard(group: str, address: str) -> None:
        world = World.latest
        try:
            await world.step()
        except Refused as error:
            raise LayerUnavailable("refused") from error
        world.in_layer.discard(group)

    monkeypatch.setattr(groups, "add", add)
    monkeypatch.setattr(groups, "add_now", lambda *_: False)
    monkeypatch.setattr(groups, "ends_with_process", lambda _: False)
    monkeypatch.setattr(groups, "discard", discard)

    def running(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            World.latest = World()
            await test(World.latest)

        asyncio.run(whole())

    return running


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.sampled_from("gh")),
        st.tuples(st.just("discard"), st.integers(0, 2), st.sampled_from("gh")),
        st.tuples(st.just("evict"), st.integers(0, 2), st.just("")),
        st.tuples(st.just("succeed"), st.integers(0, 5), st.just("")),
        st.tuples(st.just("succeed"), st.integers(0, 5), st.just("")),
        st.tuples(st.just("fail"), st.integers(0, 5), st.just("")),
    ),
    max_size=40,
)


#: A join and a discard that does not wait for it.
ADD, DISCARD = [("add", 0, "h")], [("discard", 0, "h")]
LEAVE = [("add", 0, "g"), ("discard", 0, "g")]


def test_a_row_names_every_membership_in_any_order(run: Any) -> None:
    in_any_order(run, rides_alone=False)


@pytest.mark.usefixtures("in_memory")
def test_members_in_memory_end_as_the_last_call_says(run: Any) -> None:
    in_any_order(run, rides_alone=True)


def in_any_order(run: Any, *, rides_alone: bool) -> None:
    """Try many orders of calls, evictions, successes and failures.

    Args:
        run: The fixture.
        rides_alone: A member receives from the call on also if it is the first of its group.
    """

    # A discard that comes after a second join, while the first discard has its turn.
    @example([*LEAVE, ("succeed", 0, ""), ("succeed", 0, ""), *LEAVE[:1], ("succeed", 0, ""), *LEAVE[1:]])
    # A second join while the first one was done after the call of the discard.
    @example([("add", 0, "h"), ("add", 0, "g"), ("succeed", 0, ""), *DISCARD, ("succeed", 0, ""), *ADD])
    @given(STEPS)
    @settings(deadline=None, max_examples=300)
    def in_this_order(steps: list[tuple[str, int, str]]) -> None:
        async def test(world: World) -> None:
            memberships, last = world.hub.memberships, dict[tuple[int, str], str]()
            for action, number, group in steps:
                if action == "add":
                    connection = world.connections[number]
                    rides = (rides_alone or memberships._has_recorded(group)) and not connection.gone
                    world.call(lifecycle.group_add(connection, group))
                    await asyncio.sleep(0)
                    assert group in connection.groups or not rides
                    last[number, group] = action
                elif action == "discard":
                    connection = world.connections[number]
                    world.call(lifecycle.group_discard(connection, group))
                    await asyncio.sleep(0)
                    assert group not in connection.groups
                    last[number, group] = action
                elif action == "evict":
                    lifecycle.evict(world.connections[number], CloseReason.KICKED)
                    assert not world.connections[number].groups
                else:
                    await world.let(number, succeed=action == "succeed")
                await world.settle()
                world.check()
            await world.finish()
            world.check()
            assert not memberships._riders
            if world.refused:
                return
            for (number, group), action in last.items():
                connection = world.connections[number]
                stays = action == "add" and not connection.gone
                assert (group in connection.groups) is stays
                assert ((connection.id, group) in world.open_rows) is stays
            assert world.in_layer == {group for _, group in world.open_rows} == set(memberships.groups)

        run(test)

    in_this_order()


def test_a_second_member_receives_from_the_call_on(run: Any) -> None:
    async def test(world: World) -> None:
        first, second, _ = world.connections
        world.call(lifecycle.group_add(first, "g"))
        await world.settle()
        assert first.groups == set()
        await world.finish()
        joining = world.call(lifecycle.group_add(second, "g"))
        await asyncio.sleep(0)
        assert second.groups == {"g"}
        await world.settle()
        assert not joining.done()
        await world.finish()
        assert world.open_rows == {(first.id, "g"), (second.id, "g")}

    run(test)


def test_the_last_recorded_member_ends_the_ride(run: Any) -> None:
    """A process that was killed now would leave no membership that no row names."""

    async def test(world: World) -> None:
        first, second, _ = world.connections
        world.call(lifecycle.group_add(first, "g"))
        await world.finish()
        world.call(lifecycle.group_add(second, "g"))
        await world.settle()
        lifecycle.evict(first, CloseReason.KICKED)
        assert second.groups == {"g"}
        await world.settle()
        assert second.groups == set()
        await world.finish()
        assert second.groups == {"g"}
        assert world.open_rows == {(second.id, "g")}

    run(test)


def test_a_refused_row_ends_the_ride(run: Any) -> None:
    async def test(world: World) -> None:
        first, second, _ = world.connections
        world.call(lifecycle.group_add(first, "g"))
        await world.finish()
        joining = asyncio.ensure_future(lifecycle.group_add(second, "g"))
        await world.settle()
        await world.let(0, succeed=False)
        with pytest.raises(RecordsUnavailable):
            await joining
        assert second.groups == set()
        assert list(world.hub.memberships.groups["g"]) == [first]
        await world.finish()

    run(test)


def test_a_repeated_call_waits_for_the_row_of_the_first(run: Any) -> None:
    async def test(world: World) -> None:
        first, second, _ = world.connections
        world.call(lifecycle.group_add(first, "g"))
        await world.finish()
        world.call(lifecycle.group_add(second, "g"))
        again = world.call(lifecycle.group_add(second, "g"))
        await world.settle()
        assert not again.done()
        await world.finish()

    run(test)


def test_a_rejoin_behind_a_leave_keeps_receiving(run: Any) -> None:
    async def test(world: World) -> None:
        first, second, _ = world.connections
        for connection in (first, second):
            world.call(lifecycle.group_add(connection, "g"))
        await world.finish()
        world.call(lifecycle.group_discard(second, "g"))
        world.call(lifecycle.group_add(second, "g"))
        await asyncio.sleep(0)
        while world.waiting or world.calls - {call for call in world.calls if call.done()}:
            assert second.groups == {"g"}
            await world.settle()
            await world.let(0, succeed=True)
        assert world.open_rows == {(first.id, "g"), (second.id, "g")}

    run(test)


def test_an_eviction_during_a_rejoin_leaves_no_row(run: Any) -> None:
    async def test(world: World) -> None:
        connection = world.connections[0]
        world.call(lifecycle.group_add(connection, "g"))
        await world.finish()
        world.call(lifecycle.group_discard(connection, "g"))
        world.call(lifecycle.group_add(connection, "g"))
        await world.settle()
        for _ in ("the layer's discard", "the row says left"):
            await world.let(0, succeed=True)
        assert (world.open_rows, len(world.waiting)) == (set(), 1)
        lifecycle.evict(connection, CloseReason.KICKED)
        await world.finish()
        assert (world.open_rows, world.in_layer) == (set(), set())

    run(test)
