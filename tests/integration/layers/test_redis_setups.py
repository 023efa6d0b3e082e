"""The layers on the set-ups of operators: TLS, users with few rights, sockets, several hosts, a cluster."""

import asyncio
import contextlib
import logging
import re
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import get_channel_layer
from django.test import override_settings
from redis.exceptions import NoPermissionError

from realtime import apublish
from realtime.errors import LayerUnavailable
from realtime.history.retention import Retention
from realtime.layers import groups
from realtime.layers.messages import Ask, GroupMessage, encode
from realtime.layers.redis_pool import Sentinels
from realtime.limits.shared_counts import COUNT, KEY, REGISTER, RENEW, count_arguments
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.numbers import BACKENDS
from tests.support.programs import rights
from tests.support.programs.certificates import Authority
from tests.support.programs.sentinel import RedisWithSentinel
from tests.support.programs.servers import RedisServer, free_port

pytestmark = pytest.mark.acceptance  # for the real Redis

#: Seconds for a call to a Redis that works, or refuses.
PATIENCE = 1.0

BOTH = pytest.mark.parametrize("backend", ["core", "pubsub"])


@contextlib.asynccontextmanager
async def layer_on(backend: str, *hosts: Any) -> AsyncIterator[Any]:
    """Use a layer on these hosts as the default layer of this process."""
    with override_settings(
        CHANNEL_LAYERS={"default": {"BACKEND": BACKENDS[backend], "CONFIG": {"hosts": list(hosts)}}}
    ):
        made: Any = get_channel_layer()
        try:
            yield made
        finally:
            await (made.close_pools() if backend == "core" else made.flush())


async def within(seconds: float, what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await what


async def works(layer: Any, group: str = "g") -> bool:
    """True if a member of a group gets what is published to it."""
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    await asyncio.sleep(0.1)  # a SUBSCRIBE that was sent may not be active yet
    await apublish(group, 1)
    event = await within(5, layer.receive_stamped(channel))
    await layer.group_discard(group, channel)
    await layer.close_channel(channel)
    return bool(event["type"])


# -- unix sockets ----------------------------------------------------------------------------------


@BOTH
async def test_a_unix_socket_with_a_password_works(backend: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        async with layer_on(backend, server.url) as layer:
            assert await works(layer)
        async with layer_on(backend, f"unix://{server.socket}"):
            with pytest.raises(LayerUnavailable, match="AuthenticationError"):
                await apublish("g", 1)


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TlsRedis(RedisServer):
    """A Redis with TLS on the port `tls_port`."""

    def __init__(self, folder: Path, authority: Authority, *, ask_clients: bool = False) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("needs a redis-server with TLS on PATH (apt-get install redis-server)")
        self.tls_port = free_port()
        own = authority.issue("localhost")
        super().__init__(
            folder,
            program=program,
            options=(
                *("--tls-port", str(self.tls_port), "--bind", "127.0.0.1"),
                *("--tls-cert-file", str(own.chain), "--tls-key-file", str(own.key)),
                *("--tls-ca-cert-file", str(authority.path)),
                *("--tls-auth-clients", "yes" if ask_clients else "no"),
            ),
        )

    @property
    def tls_url(self) -> str:
        return f"rediss://localhost:{self.tls_port}/0"


@pytest.fixture(scope="module")
def tls_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    with TlsRedis(tmp_path_factory.mktemp("redis"), authority) as running:
        yield running


@BOTH
async def test_tls_with_a_private_ca_works(backend: str, tls_server: TlsRedis, authority: Authority) -> None:
    async with layer_on(
        backend, {"address": tls_server.tls_url, "ssl_ca_certs": str(authority.path)}
    ) as layer:
        assert await works(layer)
    async with layer_on(backend, f"{tls_server.tls_url}?ssl_ca_certs={authority.path}") as layer:
        assert await works(layer)


@BOTH
async def test_a_wrong_ca_is_an_error_with_its_cause(
    backend: str, tls_server: TlsRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Authority(tmp_path / "wrong")
    async with layer_on(backend, {"address": tls_server.tls_url, "ssl_ca_certs": str(wrong.path)}) as layer:
        with pytest.raises(LayerUnavailable, match="certificate verify failed") as caught:
            await apublish("g", 1)
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        # A receiver keeps trying, and says so once.
        channel = await layer.new_channel() if backend == "core" else "specific.x"
        receiving = asyncio.ensure_future(layer.receive(channel))
        await asyncio.sleep(1.0)
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError, redis.RedisError):
            await receiving
    about_redis = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(about_redis) <= 1, caplog.text
    assert "Traceback" not in caplog.text


@BOTH
async def test_a_client_certificate_is_shown(backend: str, authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("client")
    with TlsRedis(tmp_path, authority, ask_clients=True) as server:
        host = {"address": server.tls_url, "ssl_ca_certs": str(authority.path)}
        async with layer_on(
            backend, {**host, "ssl_certfile": str(own.chain), "ssl_keyfile": str(own.key)}
        ) as layer:
            assert await works(layer)
        async with layer_on(backend, host):
            with pytest.raises(LayerUnavailable):
                await apublish("g", 1)


# -- a user with few rights ------------------------------------------------------------------------

#: Rights that are missing in turn in `make test`: one in a script, and three without which nothing arrives.
EVERYDAY = ("zrange", "bzpopmin", "subscribe", "publish")


@contextlib.contextmanager
def restricted(server: RedisServer, backend: str, *more: str) -> Iterator[str]:
    """Make the user of the documentation, with more rules, and yield the URL with its name and password."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", rights.USER, *rights.rights(backend), *more)
        try:
            yield server.url.replace("unix://", f"unix://{rights.USER}:{rights.PASSWORD}@")
        finally:
            client.acl_deluser(rights.USER)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


async def use_everything(url: str, backend: str) -> list[str]:
    """Make every call to a layer that this package makes, and return the errors of those that failed."""
    errors: list[str] = []

    async def attempt(call: Awaitable[Any]) -> Any:
        try:
            return await within(PATIENCE, call)
        except LayerUnavailable as error:
            errors.append(str(error))
        except (NoPermissionError, TimeoutError) as error:
            errors.append(repr(error))
        return None

    async with layer_on(backend, {"address": url, "unused_for": 0.0}) as layer:
        channel = await attempt(groups.new_address("default")) or "specific.a!b"
        control = groups.new_control()
        await attempt(groups.open_control(control))
        reading = [
            asyncio.ensure_future(layer.receive_stamped(channel)),
            asyncio.ensure_future(groups.receive_control(control)),
        ]
        await attempt(groups.add("g", channel))
        await attempt(groups.call("send", layer.group_send("g", {"type": "x"})))
        await attempt(groups.echo(control, [], 1))
        await attempt(groups.tell(control, Ask(round=1, reply_to=control)))
        await attempt(groups.holds("g", channel))
        await attempt(groups.re_add(["g"], channel))
        await attempt(groups.contents("default"))
        await attempt(groups.discard("g", channel))
        await attempt(groups.forget_channel(channel))
        await attempt(groups.check())
        await attempt(asyncio.wait(reading[:1]))
        for each in reading:
            each.cancel()
        await asyncio.wait(reading)
        for each in reading:
            if not each.cancelled():
                each.exception()
        await attempt(groups.close_channel(channel))
    return errors


@BOTH
async def test_the_documented_rights_suffice(
    backend: str, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with restricted(server, backend) as url:
        assert await use_everything(url, backend) == []
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING], caplog.text
    with server.client() as client:
        refused = [each for each in client.acl_log() if each["username"] == rights.USER]
    assert {each["object"] for each in refused} <= {"client|setinfo"}, refused


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        pytest.param(each, command, marks=() if command in EVERYDAY else pytest.mark.matrix)
        for each in ("core", "pubsub")
        for command in rights.commands(rights.rights(each))
        # Without this one, connections that were not used are replaced.
        if command != "ping"
    ],
)
async def test_a_missing_right_is_an_error_that_names_the_command(
    backend: str, command: str, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with restricted(server, backend, f"-{command}") as url:
        errors = await use_everything(url, backend)
    told = "\n".join([*errors, caplog.text])
    assert re.search("NoPermissionError|NOPERM|Redis refuses a command|EXEC without MULTI", told), told
    assert command in told.lower(), told
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) <= 4, caplog.text
    assert "Traceback" not in caplog.text


# -- a user with few rights, and limits ------------------------------------------------------------


async def count_connections(url: str, backend: str) -> None:
    async with layer_on(backend, {"address": url}) as layer:
        await layer.run_script(REGISTER, KEY, ("process-one-0000", "process-two-0000", 60_000))
        await layer.run_script(RENEW, KEY, ("process-one-0000", 60_000))
        for number in (0, 1, 0):
            arguments = count_arguments("process-one-0000", 60, [("u:1", number)], [[("u:1", 5)]])
            assert await layer.run_script(COUNT, KEY, arguments) == [0]


@BOTH
async def test_the_documented_rights_suffice_for_limits(backend: str, server: RedisServer) -> None:
    with server.client() as client:
        # Other tests of this Redis try fewer rights.
        client.acl_log_reset()
    with restricted(server, backend, *rights.limits()) as url:
        await count_connections(url, backend)
    with server.client() as client:
        refused = [each for each in client.acl_log() if each["username"] == rights.USER]
    assert {each["object"] for each in refused} <= {"client|setinfo"}, refused


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=() if each == "hincrby" else pytest.mark.matrix)
        for each in rights.commands(rights.limits())
        # It is used only if there is another process.
        if each != "exists"
    ],
)
async def test_a_missing_right_for_limits_is_named(command: str, server: RedisServer) -> None:
    with server.client() as client:
        # It knows the scripts of other tests.
        client.script_flush()
    with (
        restricted(server, "pubsub", *rights.limits(), f"-{command}") as url,
        pytest.raises(NoPermissionError) as refused,
    ):
        await count_connections(url, "pubsub")
    assert command in str(refused.value).lower()


# -- a user with few rights, and history -----------------------------------------------------------

KEEP = Retention(5, 60)


async def use_history(url: str, backend: str) -> list[str]:
    """Make every call to a history, on a new group, and return the errors of those that failed."""
    errors: list[str] = []
    async with layer_on(backend, url) as layer:
        message = encode(GroupMessage("text"))
        for call in (
            lambda: layer.append("h", message, KEEP, "id"),
            lambda: layer.read("h", 0, KEEP, 10, 1000),
            lambda: layer.read("h", None, KEEP, 10, 1000),
            lambda: layer.positions(["h"]),
        ):
            try:
                await within(PATIENCE, groups.call("use a history", call()))
            except LayerUnavailable as error:
                errors.append(str(error))
    return errors


@BOTH
async def test_the_documented_rights_suffice_for_history(backend: str, server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        client.script_flush()
        client.acl_log_reset()
    with restricted(server, backend, *rights.history()) as url:
        assert await use_history(url, backend) == []
    with server.client() as client:
        refused = [each for each in client.acl_log() if each["username"] == rights.USER]
        # The position is lost, the messages are not.
        client.delete("asgi:position:h")
    assert {each["object"] for each in refused} <= {"client|setinfo"}, refused
    with restricted(server, backend, *rights.history()) as url:
        assert await use_history(url, backend) == []


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=() if command in ("info", "xadd", "eval") else pytest.mark.matrix)
        for command in rights.commands(rights.history())
    ],
)
async def test_a_missing_right_for_history_is_named_and_keeps_no_part(
    command: str, server: RedisServer
) -> None:
    with server.client() as client:
        client.flushall()
        client.script_flush()
        with restricted(server, "pubsub", *rights.history()) as url:
            await use_history(url, "pubsub")
        if command in ("eval", "del"):
            client.script_flush()
            client.delete("asgi:position:h")
        client.delete("asgi:once:h:id")
        with restricted(server, "pubsub", *rights.history(), f"-{command}") as url:
            errors = await use_history(url, "pubsub")
    assert errors
    assert all("NoPermissionError" in each and command in each.lower() for each in errors), errors
    # Afterwards, the history is whole: its messages are those that its position counts.
    async with layer_on("pubsub", server.url) as layer:
        log = await layer.read("h", None, KEEP, 10, 1000)
        assert [each.offset for each in log.entries] == list(range(log.first, log.offset + 1))
        place, _ = await layer.append("h", encode(GroupMessage("next")), KEEP, None)
        assert place.offset == log.offset + 1


async def test_a_group_outside_of_the_rights_is_refused_and_no_other(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with restricted(server, "pubsub", "resetchannels", "&asgispecific*", "&asgi__group__mine*") as url:
        async with layer_on("pubsub", url) as layer:
            channel = await layer.new_channel()
            with pytest.raises(LayerUnavailable, match="NoPermissionError"):
                await groups.add("yours", channel)
            assert await works(layer, "mine")
    assert caplog.text.count("Redis") == 1


# -- several hosts ---------------------------------------------------------------------------------


async def test_a_shard_that_is_down_fails_only_its_own_groups(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as first, RedisServer(folders[1]) as second:
        async with layer_on("pubsub", first.url, second.url) as layer:
            by_shard = {layer._get_shard(layer._get_group_channel_name(f"g{n}")): f"g{n}" for n in range(20)}
            here, there = (by_shard[shard] for shard in layer._shards)
            channel = await layer.new_channel()
            back: list[None] = []
            layer.on_back.add(lambda: back.append(None))
            for group in (here, there):
                await layer.group_add(group, channel)
            await asyncio.sleep(0.1)
            second.kill()
            await apublish(here, 1)
            assert (await within(5, layer.receive_stamped(channel)))["realtime.group"] == here
            with pytest.raises(LayerUnavailable, match="failed to publish"):
                await apublish(there, 1)
            await asyncio.to_thread(second.start)
            await eventually_async(lambda: back, within=5)
            await apublish(there, 2)
            assert (await within(5, layer.receive_stamped(channel)))["realtime.group"] == there


# -- Redis Cluster ---------------------------------------------------------------------------------


@BOTH
async def test_a_node_of_a_cluster_is_refused_with_the_reason(backend: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, tcp=True, options=("--cluster-enabled", "yes")) as node:
        async with layer_on(backend, node.url):
            with pytest.raises(LayerUnavailable, match=r"runs as a cluster.*Use a Redis without"):
                await apublish("g", 1)


# -- Sentinel --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisWithSentinel]:
    with RedisWithSentinel(tmp_path_factory.mktemp("sentinel")) as running:
        yield running


@contextlib.contextmanager
def vanished() -> Iterator[int]:
    """Yield the port of a Sentinel that takes connections and never answers, like a host that hangs."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield mute.getsockname()[1]


@BOTH
async def test_sentinels_that_are_gone_or_hang_are_skipped(backend: str, watched: RedisWithSentinel) -> None:
    (host,) = watched.hosts
    with vanished() as hung:
        gone = [["127.0.0.1", free_port()], ["127.0.0.1", hung]]
        async with layer_on(backend, {**host, "sentinels": gone + host["sentinels"]}) as layer:
            await within(3, apublish("g", 1))
            assert await works(layer)


@BOTH
async def test_no_master_is_an_error_with_each_sentinels_answer(
    backend: str, watched: RedisWithSentinel
) -> None:
    (host,) = watched.hosts
    gone, (_, port) = free_port(), host["sentinels"][0]
    async with layer_on(
        backend, {**host, "master_name": "typo", "sentinels": [["127.0.0.1", gone], *host["sentinels"]]}
    ):
        with pytest.raises(LayerUnavailable) as caught:
            await apublish("g", 1)
    told = str(caught.value)
    assert "No Sentinel names a working master 'typo'" in told
    assert f"127.0.0.1:{gone}: Error" in told
    assert f"127.0.0.1:{port} does not know this name" in told


@BOTH
async def test_a_replica_that_sentinel_names_is_refused(
    backend: str, watched: RedisWithSentinel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Sentinel that was cut off from the others names the old master."""

    async def names_the_replica(sentinels: Sentinels, name: str) -> tuple[str, int]:
        return "127.0.0.1", watched.replica.port

    monkeypatch.setattr(Sentinels, "discover_master", names_the_replica)
    async with layer_on(backend, *watched.hosts):
        with pytest.raises(LayerUnavailable, match=r"as the master, but it is a (slave|replica)"):
            await apublish("g", 1)


async def test_closing_a_layer_closes_its_connections_to_sentinel(watched: RedisWithSentinel) -> None:
    async with layer_on("pubsub", *watched.hosts) as layer:
        assert await works(layer)
        (client,) = layer._shards[0]._redis.connection_pool.sentinel_manager.sentinels
        assert any(each.is_connected for each in client.connection_pool._available_connections)
    assert not any(each.is_connected for each in client.connection_pool._available_connections)
