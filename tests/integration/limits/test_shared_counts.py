"""The scripts that count connections across processes: the same in a real Redis and in memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from realtime.layers import CoreLayer, MemoryLayer, PubSubLayer
from realtime.limits.counts import Counts, Place
from realtime.limits.shared_counts import COUNT, KEY, NOT_ALIVE, REGISTER, RENEW, count_arguments
from tests.support.programs.servers import RedisServer, redis_program

pytestmark = pytest.mark.acceptance  # for the real Redis

ONE, TWO = "process-one-0000", "process-two-0000"
LONG = 60_000


@pytest.fixture(scope="module", params=["redis", pytest.param("valkey", marks=pytest.mark.matrix)])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RedisServer]]:
    program = redis_program(request.param)
    folders = [tmp_path_factory.mktemp("redis") for _ in range(2)]
    with RedisServer(folders[0], program=program) as one, RedisServer(folders[1], program=program) as two:
        yield [one, two]


@pytest_asyncio.fixture(params=["pubsub", "sharded", "core", "memory"])
async def layer(request: pytest.FixtureRequest, servers: list[RedisServer]) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryLayer()
        return
    for each in servers:
        with each.client() as client:
            client.flushall()
    urls = [each.url for each in servers[: 2 if request.param == "sharded" else 1]]
    made = (CoreLayer if request.param == "core" else PubSubLayer)(hosts=urls)
    yield made
    await made.flush()


async def count(
    layer: Any, process: str, *wanted: list[tuple[Place, int]], numbers: dict[Place, int] | None = None
) -> Any:
    arguments = count_arguments(process, LONG / 1000, (numbers or {}).items(), wanted)
    return await layer.run_script(COUNT, KEY, arguments)


async def test_a_process_that_is_not_alive_counts_nothing(layer: Any) -> None:
    assert await count(layer, ONE, [("u:1", 1)], numbers={"u:1": 0}) == NOT_ALIVE
    assert await layer.run_script(RENEW, KEY, (ONE, LONG)) == NOT_ALIVE
    await layer.run_script(REGISTER, KEY, (ONE, "", LONG))
    assert await layer.run_script(RENEW, KEY, (ONE, LONG)) == 1
    assert await count(layer, ONE, [("u:1", 1)], [("u:1", 1)], numbers={"u:1": 0}) == [0, 1]


async def test_a_process_that_ends_gives_its_places_back(layer: Any) -> None:
    await layer.run_script(REGISTER, KEY, (ONE, "", LONG))
    await layer.run_script(REGISTER, KEY, (TWO, "", 50))
    await layer.run_script(COUNT, KEY, count_arguments(TWO, 0.05, [("u:1", 0)], [[("u:1", 1)]]))
    async with asyncio.timeout(5):
        while await count(layer, ONE, [("u:1", 1)], numbers={"u:1": 0}) == [1]:
            await asyncio.sleep(0.01)
    assert await count(layer, ONE, [("u:1", 1)], numbers={"u:1": 1}) == [1]


async def test_a_new_id_replaces_the_old_one(layer: Any) -> None:
    await layer.run_script(REGISTER, KEY, (ONE, "", LONG))
    assert await count(layer, ONE, [("u:1", 1)], numbers={"u:1": 0}) == [0]
    await layer.run_script(REGISTER, KEY, (TWO, ONE, LONG))
    assert await count(layer, TWO, [("u:1", 1)], numbers={"u:1": 0}) == [0]
    assert await count(layer, ONE, numbers={"u:1": 1}) == NOT_ALIVE


@pytest.mark.parametrize("seed", range(5))
async def test_random_calls_are_answered_as_in_memory(layer: Any, seed: int) -> None:
    chance, memory = random.Random(seed), MemoryLayer()
    subjects = ["u:1", "n:203.0.113.7", "203.0.113.7", 'u:é "\\']
    clients = ["", "", "client-1", "client-2"]
    processes = {f"process-{number}".ljust(16, "0"): Counts() for number in range(3)}
    for name in processes:
        for each in (layer, memory):
            await each.run_script(REGISTER, KEY, (name, "", LONG))
    for _ in range(60):
        name = chance.choice(list(processes))
        counts = processes[name]
        for place in list(counts.places()):
            if chance.random() < 0.2:
                counts.remove(place)
        wanted: list[list[tuple[Place, int]]] = []
        for _ in range(chance.randrange(4)):
            client = chance.choice(clients)
            chosen = chance.sample(subjects, chance.randrange(1, 3))
            wanted.append([((subject, client) if client else subject, 3) for subject in chosen])
        named = {place for each in wanted for place, _ in each}
        every: list[Place] = [*((s, c) if c else s for s in subjects for c in set(clients))]
        numbers = {place: counts.number(place) for place in {*named, *every}}
        answers = [await count(each, name, *wanted, numbers=numbers) for each in (layer, memory)]
        assert answers[0] == answers[1]
        for each_wanted, answer in zip(wanted, answers[0], strict=True):
            if answer == 0:
                for place, _ in each_wanted:
                    counts.add(place)
        if chance.random() < 0.1:
            for each in (layer, memory):
                await each.run_script(RENEW, KEY, (name, 0))
                await each.run_script(REGISTER, KEY, (name, "", LONG))
            processes[name] = Counts()


async def test_a_process_is_not_alive_in_a_redis_that_was_restarted(servers: list[RedisServer]) -> None:
    made = PubSubLayer(hosts=[servers[0].url])
    with servers[0].client() as client:
        client.flushall()
        await made.run_script(REGISTER, KEY, (ONE, "", LONG))
        assert await made.run_script(RENEW, KEY, (ONE, LONG)) == 1
        # Data of an earlier Redis has another replication id.
        client.set(f"asgi:{KEY}:alive:{ONE}", "0" * 40, keepttl=True)
        assert await made.run_script(RENEW, KEY, (ONE, LONG)) == NOT_ALIVE
        assert client.keys("*") == []
    await made.flush()


async def test_nothing_stays_in_redis_for_ever(servers: list[RedisServer]) -> None:
    made = PubSubLayer(hosts=[servers[0].url])
    with servers[0].client() as client:
        client.flushall()
        await made.run_script(REGISTER, KEY, (ONE, "", LONG))
        await count(
            made, ONE, [("u:1", 3)], [(("u:2", "client-1"), 3)], numbers={"u:1": 0, ("u:2", "client-1"): 0}
        )
        keys = client.keys("*")
        assert len(keys) == 3
        assert all(0 < client.pttl(key) <= 3_600_000 for key in keys)
        assert not any("client-1" in field for field in client.hgetall(f"asgi:{KEY}:u:2"))
        await count(made, ONE, numbers={"u:1": 0, ("u:2", "client-1"): 0})
        assert client.keys("*") == [f"asgi:{KEY}:alive:{ONE}"]
    await made.flush()
