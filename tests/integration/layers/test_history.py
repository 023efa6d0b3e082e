"""The history of groups on every layer: against a real Redis, and in memory."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_asyncio
import redis
from redis.exceptions import RedisError, ResponseError

from realtime.history.positions import MAX_FORKS, Entry, Log, Position
from realtime.history.retention import Retention
from realtime.history.streams import GROUPS_PER_CALL
from realtime.layers import CoreLayer, MemoryLayer, PubSubLayer
from realtime.layers.messages import GroupMessage, encode
from realtime.layers.stamped import STAMP, KeptUnsent
from tests.support.assertions.eventually import eventually_async
from tests.support.programs.servers import RedisServer, redis_program

pytestmark = pytest.mark.acceptance  # for the real Redis

KEEP = Retention(size=5, ttl=60)
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module", params=["redis", pytest.param("valkey", marks=pytest.mark.matrix)])
def program(request: pytest.FixtureRequest) -> str:
    return redis_program(request.param)


@pytest.fixture(scope="module")
def servers(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    folders = [tmp_path_factory.mktemp("redis") for _ in range(2)]
    with RedisServer(folders[0], program=program) as one, RedisServer(folders[1], program=program) as two:
        yield [one, two]


@pytest.fixture
def server(servers: list[RedisServer]) -> RedisServer:
    return servers[0]


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


@pytest_asyncio.fixture(params=["pubsub", "core"])
async def redis_layer(request: pytest.FixtureRequest, server: RedisServer) -> AsyncIterator[Any]:
    """A layer with its Redis, for tests that look at the keys."""
    with server.client() as client:
        client.flushall()
    made = {"core": CoreLayer, "pubsub": PubSubLayer}[request.param](hosts=[server.url])
    yield made
    await made.flush()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as made:
        yield made


async def append(layer: Any, *texts: str, group: str = "g", keep: Retention = KEEP) -> list[Position]:
    return [(await layer.append(group, message(text), keep, None))[0] for text in texts]


def message(text: str) -> dict[str, Any]:
    return encode(GroupMessage(text))


async def read(
    layer: Any, after: int | None = None, *, group: str = "g", limit: int = 100, max_bytes: int = MEGABYTE
) -> Log:
    log: Log = await layer.read(group, after, KEEP, limit, max_bytes)
    return log


async def position(layer: Any, group: str = "g") -> Log:
    log: Log = (await layer.positions([group]))[group]
    return log


def texts(log: Log) -> list[str]:
    return [entry.text for entry in log.entries]


async def member(layer: Any, group: str = "g") -> str:
    channel: str = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition that asks the layer."""
    async with asyncio.timeout(5):
        while not await check():
            await asyncio.sleep(0.02)


async def received(layer: Any, channel: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(5):
        return [await layer.receive_stamped(channel) for _ in range(count)]


# -- what is appended ------------------------------------------------------------------------------


async def test_offsets_count_from_one_in_each_group(layer: Any) -> None:
    first, second = await append(layer, "a", "b")
    (other,) = await append(layer, "a", group="h")
    assert (first.offset, second.offset, other.offset) == (1, 2, 1)
    assert first.epoch == second.epoch != other.epoch


async def test_a_member_gets_the_message_with_its_position(layer: Any) -> None:
    channel = await member(layer)
    (place,) = await append(layer, '{"data":"ü"}')
    assert await received(layer, channel, 1) == [
        {**message('{"data":"ü"}'), "epoch": place.epoch, "offset": 1, STAMP: "g"}
    ]


async def test_a_plain_receiver_gets_no_message_of_a_history(layer: Any) -> None:
    channel = await member(layer)
    await append(layer, "a")
    await layer.group_send("g", {"type": "x"})
    async with asyncio.timeout(5):
        assert await layer.receive(channel) == {"type": "x"}


async def test_concurrent_appends_have_an_offset_each_in_order(layer: Any) -> None:
    channel, keep = await member(layer), Retention(100, 60)
    appended = await asyncio.gather(
        *(layer.append("g", message(str(number)), keep, None) for number in range(50))
    )
    assert sorted(place.offset for place, _ in appended) == list(range(1, 51))
    by_offset = {place.offset: str(number) for number, (place, _) in enumerate(appended)}
    assert (await read(layer)).entries == tuple(Entry(offset, by_offset[offset]) for offset in range(1, 51))
    events = await received(layer, channel, 50)
    assert {event["offset"]: event["text"] for event in events} == by_offset
    if not isinstance(layer, CoreLayer):  # there, the send is a second step
        assert [event["offset"] for event in events] == list(range(1, 51))


async def test_a_repeated_id_appends_and_sends_nothing(layer: Any) -> None:
    channel = await member(layer)
    first = await layer.append("g", message("a"), KEEP, "id")
    await append(layer, "b")
    assert await layer.append("g", message("a again"), KEEP, "id") == (first[0], True)
    assert await layer.append("h", message("c"), KEEP, "id") != (first[0], True)
    assert (await layer.append("g", message("d"), KEEP, "other"))[0].offset == 3
    assert texts(await read(layer)) == ["a", "b", "d"]
    assert [event["text"] for event in await received(layer, channel, 3)] == ["a", "b", "d"]


async def test_of_concurrent_appends_with_one_id_one_counts(layer: Any) -> None:
    results = await asyncio.gather(*(layer.append("g", message("a"), KEEP, "id") for _ in range(20)))
    assert len({place for place, _ in results}) == 1
    assert sorted(repeated for _, repeated in results) == [False] + [True] * 19
    assert texts(await read(layer)) == ["a"]


async def test_an_id_is_forgotten_after_the_ttl(layer: Any) -> None:
    keep = Retention(5, 0.05)
    await layer.append("g", message("a"), keep, "id")

    async def appended_again() -> bool:
        return not (await layer.append("g", message("b"), keep, "id"))[1]

    await until(appended_again)
    assert (await position(layer)).offset == 2


async def test_the_latest_messages_are_kept(layer: Any) -> None:
    await append(layer, *"abcdefg")
    log = await read(layer)
    assert (log.offset, log.first, texts(log)) == (7, 3, list("cdefg"))
    await append(layer, "h", keep=Retention(2, 60))
    log = await read(layer)
    assert (log.offset, log.first, texts(log)) == (8, 7, ["g", "h"])


async def test_messages_are_kept_for_the_ttl_after_the_latest(layer: Any) -> None:
    (place,) = await append(layer, "a", keep=Retention(5, 0.1))

    async def is_empty() -> bool:
        return (await position(layer)).first == 2

    await until(is_empty)
    log = await read(layer, 0)
    assert (log.epoch, log.offset, log.first, log.entries) == (place.epoch, 1, 2, ())
    (following,) = await append(layer, "b")
    assert following == Position(place.epoch, 2)
    log = await read(layer, 1)
    assert (log.first, texts(log)) == (2, ["b"])


async def test_a_group_without_messages_has_a_position(layer: Any) -> None:
    log = await position(layer)
    assert (log.offset, log.first, log.forks, log.entries) == (0, 1, (), ())
    assert await position(layer) == log == await read(layer)
    assert (await append(layer, "a"))[0] == Position(log.epoch, 1)


# -- what is read ----------------------------------------------------------------------------------


async def test_messages_after_an_offset_are_read_oldest_first(layer: Any) -> None:
    await append(layer, *"abcde")
    assert texts(await read(layer, 0)) == list("abcde")
    assert texts(await read(layer, 3)) == ["d", "e"]
    assert texts(await read(layer, 0, limit=2)) == ["a", "b"]
    assert texts(await read(layer, 5)) == texts(await read(layer, 9)) == []


async def test_the_newest_messages_are_read_without_an_offset(layer: Any) -> None:
    await append(layer, *"abcde")
    log = await read(layer, limit=2)
    assert (log.first, texts(log)) == (1, ["d", "e"])


async def test_large_messages_are_read_within_the_bound(layer: Any) -> None:
    large = [str(number) * MEGABYTE for number in range(4)]
    await append(layer, *large, "small")
    assert texts(await read(layer, 0, max_bytes=1)) == large[:1]
    assert texts(await read(layer, 0, max_bytes=5 * MEGABYTE // 2)) == large[:2]
    assert texts(await read(layer, 4, max_bytes=1)) == ["small"]
    assert texts(await read(layer, max_bytes=5 * MEGABYTE // 2)) == [*large[2:], "small"]


async def test_many_small_messages_are_read(layer: Any) -> None:
    keep = Retention(1000, 60)
    await asyncio.gather(*(layer.append("g", message("x"), keep, None) for _ in range(300)))
    assert [entry.offset for entry in (await read(layer, 0, limit=290)).entries] == list(range(1, 291))
    assert [entry.offset for entry in (await read(layer, limit=290)).entries] == list(range(11, 301))


async def test_positions_of_many_groups_come_together(layer: Any) -> None:
    groups = [f"g{number}" for number in range(GROUPS_PER_CALL + 20)]
    for number, group in enumerate(groups):
        await append(layer, *"abc"[: number % 4], group=group)
    found = await layer.positions(groups)
    assert {group: log.offset for group, log in found.items()} == {
        group: number % 4 for number, group in enumerate(groups)
    }
    assert {log.first for log in found.values()} == {1}
    assert await layer.positions(groups) == found
    assert await layer.positions([]) == {}


# -- what Redis loses ------------------------------------------------------------------------------


async def test_an_emptied_redis_begins_an_epoch(redis_layer: Any, client: redis.Redis) -> None:
    _, last = await append(redis_layer, "a", "b")
    client.flushall()
    log = await position(redis_layer)
    assert (log.offset, log.first, log.knows(last)) == (0, 1, False)
    client.flushall()
    (first,) = await append(redis_layer, "c")
    assert first.offset == 1
    assert first.epoch not in (last.epoch, log.epoch)
    assert texts(await read(redis_layer, 0)) == ["c"]


@pytest.mark.parametrize("call", ["append", "read", "positions"])
async def test_a_lost_position_begins_an_epoch_without_messages(
    redis_layer: Any, client: redis.Redis, call: str
) -> None:
    _, last = await append(redis_layer, "a", "b")
    assert client.delete("asgi:position:g") == 1
    if call == "append":
        (place,) = await append(redis_layer, "c")
        assert place.offset == 1
    log = await (position if call == "positions" else read)(redis_layer)
    assert log.epoch != last.epoch
    assert (log.offset, log.first, log.forks) == ((1, 1, ()) if call == "append" else (0, 1, ()))
    assert texts(log) == (["c"] if call == "append" else [])


@pytest.mark.parametrize("field", ["epoch", "offset"])
async def test_a_position_in_parts_is_a_lost_one(redis_layer: Any, client: redis.Redis, field: str) -> None:
    _, last = await append(redis_layer, "a", "b")
    client.hdel("asgi:position:g", field)
    log = await position(redis_layer)
    assert (log.offset, log.first, log.knows(last)) == (0, 1, False)


async def test_lost_messages_leave_the_position(redis_layer: Any, client: redis.Redis) -> None:
    _, last = await append(redis_layer, "a", "b")
    assert client.delete("asgi:history:g") == 1
    log = await position(redis_layer)
    assert (log.position, log.first) == (last, 3)
    await append(redis_layer, "c")
    log = await read(redis_layer, 0)
    assert (log.epoch, log.offset, log.first, texts(log)) == (last.epoch, 3, 3, ["c"])


@pytest.mark.parametrize("number", [2, 9])
async def test_messages_of_another_position_are_deleted(
    redis_layer: Any, client: redis.Redis, number: int
) -> None:
    """Redis has refused a command in the middle of a script, or another program wrote."""
    await append(redis_layer, "a")
    client.xadd("asgi:history:g", {"m": "x"}, id=f"{number}-0")
    assert texts(await read(redis_layer, 0)) == []
    await append(redis_layer, "b")
    client.xadd("asgi:history:g", {"m": "x"}, id=f"{number + 1}-0")
    (place,) = await append(redis_layer, "c")
    assert (place.offset, texts(await read(redis_layer, 2))) == (3, ["c"])


async def test_positions_are_renewed_and_outlive_the_messages(redis_layer: Any, client: redis.Redis) -> None:
    day = 86_400_000
    await append(redis_layer, "a")
    assert day - 60_000 < client.pttl("asgi:position:g") <= day
    assert 0 < client.pttl("asgi:history:g") <= 60_000
    for call in (position, read):
        client.pexpire("asgi:position:g", 5000)
        await call(redis_layer)
        assert client.pttl("asgi:position:g") > day - 60_000
    assert client.pttl("asgi:history:g") <= 60_000
    await append(redis_layer, "a", keep=Retention(5, 1e6))
    assert client.pttl("asgi:position:g") > 10 * day
    assert client.pttl("asgi:history:g") > 10 * day
    await redis_layer.append("g", message("b"), KEEP, "id")
    assert 0 < client.pttl("asgi:once:g:id") <= 60_000


@pytest.mark.parametrize("key", ["asgi:position:g", "asgi:history:g", "asgi:once:g:id"])
async def test_a_key_of_another_type_is_an_error_and_nothing_changes(
    redis_layer: Any, client: redis.Redis, key: str
) -> None:
    await append(redis_layer, "a")
    client.delete(key)
    client.sadd(key, "foreign")
    before = sorted(client.keys())
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await redis_layer.append("g", message("b"), KEEP, "id")
    if "once" not in key:
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await read(redis_layer)
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await redis_layer.positions(["h", "g"])
    assert sorted(client.keys()) == before
    client.delete(key)
    log = await position(redis_layer)
    assert log.offset == (0 if key == "asgi:position:g" else 1)


async def test_a_full_redis_refuses_and_nothing_changes(redis_layer: Any, client: redis.Redis) -> None:
    await append(redis_layer, "a")
    client.config_set("maxmemory", 1)
    try:
        for group in ("g", "new"):
            with pytest.raises(RedisError, match=r"OOM|maxmemory"):
                await append(redis_layer, "b", group=group)
            with pytest.raises(RedisError, match=r"OOM|maxmemory"):
                await redis_layer.positions(["g", "new"])
        assert texts(await read(redis_layer, 0)) == ["a"]
        assert (await position(redis_layer)).offset == 1
    finally:
        client.config_set("maxmemory", 0)
    assert not client.exists("asgi:position:new", "asgi:history:new")
    assert (await append(redis_layer, "b"))[0].offset == 2


async def test_a_script_that_redis_forgot_is_sent_again(redis_layer: Any, client: redis.Redis) -> None:
    await append(redis_layer, "a")
    for _ in range(2):
        client.script_flush()
        assert (await position(redis_layer)).offset == 1
    client.script_flush()
    assert (await append(redis_layer, "b"))[0].offset == 2


# -- another Redis ---------------------------------------------------------------------------------

#: A replica is otherwise served after 5 s.
NO_DELAY = ("--repl-diskless-sync-delay", "0")

BOTH = pytest.mark.parametrize("backend", [PubSubLayer, CoreLayer])


@BOTH
async def test_a_redis_that_restarts_empty_begins_an_epoch(
    backend: Any, program: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, program=program) as server:
        layer = backend(hosts=[{"address": server.url, "unused_for": 0.0}])
        _, last = await append(layer, "a", "b")
        server.restart()
        log = await position(layer)
        assert (log.offset, log.knows(last), log.knows(Position(last.epoch, 0))) == (0, False, False)
        await layer.flush()


@BOTH
async def test_a_redis_that_restarts_with_old_data_forks(backend: Any, program: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, program=program) as server:
        layer = backend(hosts=[{"address": server.url, "unused_for": 0.0}])
        _, _, saved = await append(layer, "a", "b", "c")
        with server.client() as client:
            client.save()
        (lost,) = await append(layer, "lost")
        server.kill()
        server.start()
        (place,) = await append(layer, "d")
        log = await read(layer, 0)
        assert place == Position(log.epoch, 4)
        assert place.epoch != saved.epoch
        assert log.forks == (saved,)
        assert texts(log) == ["a", "b", "c", "d"]
        assert (log.reaches(saved), log.reaches(lost), log.restart(lost)) == (True, False, saved_in(log, 3))
        await layer.flush()


def saved_in(log: Log, offset: int) -> Position:
    return Position(log.epoch, offset)


@pytest.mark.parametrize("call", ["append", "read", "positions"])
async def test_every_call_forks_once(call: str, redis_layer: Any, client: redis.Redis) -> None:
    """A position with the replication id of another Redis is what a restart with data leaves."""
    _, last = await append(redis_layer, "a", "b")
    client.hset("asgi:position:g", "replid", "another")
    if call == "append":
        assert (await append(redis_layer, "c"))[0].offset == 3
    log = await (position if call == "positions" else read)(redis_layer)
    assert log.epoch != last.epoch
    assert log.forks == (last,)
    assert log.first == 1
    assert await position(redis_layer) == Log(log.epoch, log.offset, 1, (last,))


async def test_the_latest_forks_are_remembered(redis_layer: Any, client: redis.Redis) -> None:
    seen = []
    for number in range(MAX_FORKS + 2):
        seen += await append(redis_layer, str(number), keep=Retention(20, 60))
        client.hset("asgi:position:g", "replid", "another")
    log = await position(redis_layer)
    assert log.forks == tuple(reversed(seen))[:MAX_FORKS]
    assert [log.reaches(place) for place in seen] == [False, False] + [True] * MAX_FORKS


async def test_an_epoch_that_lost_messages_is_left(redis_layer: Any, client: redis.Redis) -> None:
    shared, _ = await append(redis_layer, "a", "b")
    # As a restart with data from before the last message leaves it.
    client.hset("asgi:position:g", mapping={"replid": "another", "offset": 1})
    client.xdel("asgi:history:g", "2-0")
    forked = await position(redis_layer)
    assert (forked.forks, forked.knows(shared)) == ((shared,), True)
    await redis_layer.distrust("g", KEEP, "of another time")
    assert await position(redis_layer) == forked
    await redis_layer.distrust("g", KEEP, forked.epoch)
    log = await position(redis_layer)
    assert log.epoch not in (forked.epoch, shared.epoch)
    assert (log.offset, log.forks, log.trusted) == (1, (forked.position, shared), 0)
    assert not log.knows(shared)
    await redis_layer.distrust("g", KEEP, forked.epoch)
    assert await position(redis_layer) == log
    (place,) = await append(redis_layer, "c")
    assert place == Position(log.epoch, 2)
    client.hset("asgi:position:g", "replid", "a third")
    log = await position(redis_layer)
    assert (log.knows(place), log.knows(forked.position), log.trusted) == (True, False, 1)


@BOTH
async def test_a_promoted_replica_that_lacks_messages_forks(
    backend: Any, program: str, tmp_path: Path
) -> None:
    with (
        RedisServer(tmp_path, tcp=True, program=program, name="master", options=NO_DELAY) as master,
        RedisServer(tmp_path, tcp=True, program=program, name="replica") as replica,
        replica.client() as of_replica,
    ):
        of_replica.replicaof("127.0.0.1", master.port)
        before, after = backend(hosts=[master.url]), backend(hosts=[replica.url])
        *_, shared = await append(before, "a", "b", "c")
        await eventually_async(lambda: of_replica.hget("asgi:position:g", "offset") == "3", within=10)
        with pytest.raises(RedisError, match=r"(?i)read.?only"):
            await append(after, "to a replica")
        of_replica.replicaof("NO", "ONE")
        (beyond,) = await append(before, "of the old master")
        log = await position(after)
        assert (log.offset, log.forks) == (3, (shared,))
        (place,) = await append(after, "d")
        log = await read(after, shared.offset)
        assert place == Position(log.epoch, 4) != beyond
        assert (log.reaches(shared), log.knows(beyond), texts(log)) == (True, False, ["d"])
        await before.flush()
        await after.flush()


# -- on the way ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("format_", ["msgpack", "json"])
async def test_encrypted_messages_are_kept_encrypted(
    backend: Any, format_: str, server: RedisServer, client: redis.Redis
) -> None:
    client.flushall()
    options = {"hosts": [server.url], "serializer_format": format_}
    layer = backend(**options, symmetric_encryption_keys=["old"])
    channel = await member(layer)
    await append(layer, "secret-a", "secret-b")
    assert [event["text"] for event in await received(layer, channel, 2)] == ["secret-a", "secret-b"]
    assert texts(await read(layer, 0)) == ["secret-a", "secret-b"]
    with redis.Redis.from_url(server.url) as raw:
        assert b"secret" not in repr(raw.xrange("asgi:history:g")).encode()
    both = backend(**options, symmetric_encryption_keys=["new", "old"])
    await append(both, "secret-c")
    assert texts(await read(both, 0)) == ["secret-a", "secret-b", "secret-c"]
    new = backend(**options, symmetric_encryption_keys=["new"])
    log = await read(new, 0)
    assert (log.first, log.offset, texts(log)) == (3, 3, ["secret-c"])
    for each in (layer, both, new):
        await each.flush()


@BOTH
async def test_another_prefix_has_other_histories(
    backend: Any, server: RedisServer, client: redis.Redis
) -> None:
    client.flushall()
    layer, other = backend(hosts=[server.url]), backend(hosts=[server.url], prefix="other")
    await append(layer, "a")
    assert (await position(other)).offset == 0
    assert all(key.startswith(("asgi:", "other:")) for key in client.scan_iter())
    for each in (layer, other):
        await each.flush()


async def test_redis_7_answers_in_resp3_alike(server: RedisServer, client: redis.Redis) -> None:
    client.flushall()
    layer = PubSubLayer(hosts=[{"address": server.url, "protocol": 3}])
    channel = await member(layer)
    places = await append(layer, "a", "b")
    assert [event["offset"] for event in await received(layer, channel, 2)] == [1, 2]
    assert (await read(layer, 0)).entries == (Entry(1, "a"), Entry(2, "b"))
    assert (await position(layer)).position == places[-1]
    await layer.flush()


async def test_the_core_layer_keeps_what_it_fails_to_send(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = CoreLayer(hosts=[server.url])

    async def failing(group: str, message: Any) -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(layer, "group_send", failing)
    with pytest.raises(KeptUnsent, match=r"was kept at .*, but not sent") as caught:
        await append(layer, "unsent", group="unsent")
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    log = await read(layer, 0, group="unsent")
    assert (log.position, texts(log)) == (caught.value.position, ["unsent"])
    await layer.flush()


async def test_a_message_with_a_broken_position_is_left_as_it_is(server: RedisServer) -> None:
    layer = PubSubLayer(hosts=[server.url])
    channel = await member(layer)
    shard = layer._shards[0]
    await shard.publish(layer._get_group_channel_name("g"), b"\xc1no position")
    with pytest.raises(msgpack.FormatError):
        await received(layer, channel, 1)
    await append(layer, "a")
    assert (await received(layer, channel, 1))[0]["text"] == "a"
    await layer.flush()


async def test_the_memory_layer_appends_from_another_loop() -> None:
    layer = MemoryLayer()
    channel = await member(layer)
    await layer.open_channel(channel)
    events = asyncio.ensure_future(received(layer, channel, 100))

    def elsewhere() -> None:
        async def run() -> None:
            for _ in range(50):
                await layer.append("g", message("x"), Retention(100, 60), None)

        asyncio.run(run())

    threads = [threading.Thread(target=elsewhere) for _ in range(2)]
    for each in threads:
        each.start()
    assert {event["offset"] for event in await events} == set(range(1, 101))
    for each in threads:
        each.join()
    assert [entry.offset for entry in (await read(layer, 0)).entries] == list(range(1, 101))


async def test_flushing_the_memory_layer_begins_an_epoch() -> None:
    layer = MemoryLayer()
    (place,) = await append(layer, "a")
    await layer.flush()
    log = await position(layer)
    assert (log.offset, log.knows(place)) == (0, False)
