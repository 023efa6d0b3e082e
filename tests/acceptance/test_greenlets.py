"""`publish()` and `notify()` in processes that gevent or eventlet has patched: gunicorn, Celery, Python."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from channels.layers import channel_layers, get_channel_layer

from realtime.fleet.mailbox import Mailbox
from realtime.layers import groups, messages
from realtime.process import tasks
from tests.support.programs.servers import CHECKOUT, Program, RedisServer, WebServer

pytestmark = pytest.mark.acceptance

BACKENDS = {"pubsub": "realtime.layers.PubSubLayer", "core": "realtime.layers.CoreLayer"}
both_libraries = pytest.mark.parametrize("library", ["gevent", "eventlet"])
both_layers = pytest.mark.parametrize("backend", ["pubsub", "core"])


class Listener:
    """A member of a group, in the process of the test."""

    def __init__(self, layer: Any, channel: str) -> None:
        self._layer = layer
        self._channel = channel

    async def hear(self, count: int) -> list[Any]:
        """Return the data of `count` messages, and fail if there are more."""
        async with asyncio.timeout(10):
            heard = [await self._next() for _ in range(count)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                heard.append(await self._next())
        return heard

    async def _next(self) -> Any:
        return json.loads((await self._layer.receive_stamped(self._channel))["text"])["data"]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), tcp=True) as running:
        yield running


@pytest.fixture
def backend() -> str:
    return "pubsub"


@pytest.fixture
async def listener(settings: Any, backend: str, redis_server: RedisServer) -> AsyncIterator[Listener]:
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": BACKENDS[backend], "CONFIG": {"hosts": [redis_server.url]}}
    }
    channel_layers.backends.clear()
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    yield Listener(layer, channel)
    await layer.group_discard("g", channel)
    await layer.flush()


@pytest.fixture
def environment(backend: str, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        # A host name, so that it must be looked up.
        "REDIS_URL": redis_server.url.replace("127.0.0.1", "localhost"),
        "REDIS_PID": str(redis_server.pid),
        "CHANNEL_LAYER_BACKEND": backend,
    }


async def run(library: str, scenario: str, environment: dict[str, str]) -> list[str]:
    """Run a scenario to its end, and return the lines that it printed. It must write nothing to stderr."""
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.support.greenlets.patched", library, scenario],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


@both_libraries
@both_layers
async def test_every_call_publishes(library: str, listener: Listener, environment: dict[str, str]) -> None:
    await run(library, "every_call", environment)
    assert await listener.hear(5) == [0, 1, 2, 3, 4]


@both_libraries
async def test_messages_wait_for_the_commit_of_their_greenlet(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    await run(library, "commits", environment)
    assert sorted(map(str, await listener.hear(3))) == ["0", "2", "without a transaction"]


@both_libraries
@both_layers
async def test_a_greenlet_learns_the_position_and_reads_history(
    library: str, environment: dict[str, str]
) -> None:
    assert await run(library, "positions", environment) == ["True", "True"]


@both_libraries
@both_layers
async def test_many_greenlets_publish(library: str, listener: Listener, environment: dict[str, str]) -> None:
    await run(library, "many_greenlets", environment)
    heard = await listener.hear(300)
    assert sorted(heard) == list(range(300))
    for first in range(0, 300, 3):
        assert [number for number in heard if first <= number < first + 3] == [first, first + 1, first + 2]


class Asked:
    """The mailbox of a process that says yes to each notification."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.address = mailbox.address
        self.texts: list[str] = []
        mailbox.listen(self._take)

    def _take(self, message: messages.Control) -> None:
        assert isinstance(message, messages.Notify)
        self.texts.append(message.text)
        tasks.start(groups.tell(message.reply_to, messages.Notified(message.request, uuid.uuid4(), True)))


@pytest.fixture
async def asked(listener: Listener) -> AsyncIterator[Asked]:
    mailbox = await Mailbox.open()
    assert await mailbox.hears_itself(10.0)
    yield Asked(mailbox)
    await mailbox.close()


@both_libraries
@both_layers
async def test_many_greenlets_notify(library: str, asked: Asked, environment: dict[str, str]) -> None:
    printed = await run(library, "notifications", environment | {"ADDRESS": asked.address})
    assert printed == ["True", "100", "False"]
    assert len(asked.texts) == 101


@both_libraries
async def test_a_forked_child_publishes(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    assert await run(library, "fork", environment) == ["the child ended with 0"]
    assert await listener.hear(4) == ["parent", "child", "child again", "parent again"]


@both_libraries
async def test_other_greenlets_run_while_one_publishes(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    await run(library, "hung_redis", environment)
    assert await listener.hear(2) == ["before", "hung"]


@both_libraries
async def test_a_redis_that_hangs_is_an_error_in_time(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    printed = await run(library, "redis_that_stays_hung", environment)
    assert printed == ["LayerUnavailable: The channel layer failed to publish (TimeoutError)."]
    assert (await listener.hear(3))[-1] == "after"


@both_libraries
async def test_errors_reach_the_caller(library: str, listener: Listener, environment: dict[str, str]) -> None:
    printed = await run(library, "errors", environment)
    assert [line.partition(":")[0] for line in printed] == [
        "BadGroup",
        "UnpublishableData",
        "LayerUnavailable",
    ]
    assert "ConnectionRefusedError: no Redis here" in printed[2]
    assert await listener.hear(1) == [3]


@both_libraries
async def test_a_redis_that_is_down_is_an_error_in_every_call(
    library: str, environment: dict[str, str]
) -> None:
    printed = await run(
        library, "unreachable_redis", environment | {"REDIS_URL": "unix:///nowhere/redis.sock"}
    )
    assert len(printed) == 3
    assert all(line.startswith("LayerUnavailable: The channel layer failed to publish") for line in printed)


@both_libraries
async def test_native_threads_publish(library: str, listener: Listener, environment: dict[str, str]) -> None:
    await run(library, "native_threads", environment)
    assert await listener.hear(3) == [0, 1, 2]


@both_libraries
async def test_a_greenlet_publishes_beside_an_event_loop(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    await run(library, "beside_a_loop", environment)
    assert await listener.hear(3) == [0, 1, 2]


@both_libraries
async def test_publish_refuses_to_block_the_loop_of_its_greenlet(
    library: str, environment: dict[str, str]
) -> None:
    printed = await run(library, "inside_a_loop", environment)
    assert len(printed) == 2
    assert all("would block the event loop" in line for line in printed)


@both_libraries
async def test_publish_refuses_to_block_the_hub(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    (printed,) = await run(library, "inside_the_hub", environment)
    assert f"{library}.spawn(publish, …)" in printed
    assert await listener.hear(1) == ["after"]


@both_libraries
async def test_a_greenlet_that_times_out_withdraws_its_call(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    assert await run(library, "greenlet_that_times_out", environment) == ["timed out", "cancelled"]
    assert await listener.hear(1) == ["after"]


@both_libraries
async def test_a_greenlet_does_not_wait_for_ever_for_the_loop(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    assert await run(library, "loop_that_hangs", environment) == []
    assert await listener.hear(1) == ["after"]


@both_libraries
async def test_a_process_that_is_patched_later_goes_on_publishing(
    library: str, listener: Listener, environment: dict[str, str]
) -> None:
    # An address: asyncio looks up names in a thread, which would complain at its end of the patch.
    address = environment["REDIS_URL"].replace("localhost", "127.0.0.1")
    await run(library, "patched_later", environment | {"REDIS_URL": address})
    assert await listener.hear(3) == ["plain", "patched", "patched again"]


async def test_every_call_publishes_on_the_asyncio_hub_of_eventlet(
    listener: Listener, environment: dict[str, str]
) -> None:
    await run("eventlet", "every_call", environment | {"EVENTLET_HUB": "asyncio"})
    assert await listener.hear(5) == [0, 1, 2, 3, 4]


class Gunicorn(WebServer):
    """Run gunicorn with one worker of the given class."""

    def __init__(self, worker: str, *options: str, **more: Any) -> None:
        self.worker = worker
        self.options = options
        super().__init__(**more)

    def command_for(self, application: str) -> list[str]:
        return [
            sys.executable,
            *("-m", "gunicorn", "-k", self.worker, "-w", "1", "-b", self.address),
            # It would be in the home of the user, and with eventlet on Python 3.13 it changes the exit code.
            *("--no-control-socket", *self.options),
            application,
        ]

    def publish(self, number: int) -> str:
        url = self.http(f"/g/{number}")
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own server
            return str(answer.read().decode())

    def stop(self) -> None:
        workers = psutil.Process(self.pid).children(recursive=True) if self.is_alive else []
        super().stop()
        # gunicorn ends them itself, except if it was killed because it hung.
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()

    def is_ready(self) -> bool:
        return "Booting worker" in self.log_text() and super().is_ready()


@both_libraries
@both_layers
async def test_gunicorn_publishes(
    library: str, listener: Listener, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "gunicorn.log"
    application = "tests.support.greenlets.wsgi:application"
    with Gunicorn(library, log=log, environment=environment, application=application) as server:
        assert [await asyncio.to_thread(server.publish, number) for number in range(3)] == ["published"] * 3
        answers = [asyncio.to_thread(server.publish, number) for number in range(3, 20)]
        assert await asyncio.gather(*answers) == ["published"] * 17
        assert sorted(await listener.hear(20)) == list(range(20))
        server.terminate()
        assert await asyncio.to_thread(server.exit_code, within=20) == 0
    assert "Traceback" not in server.log_text()


@both_libraries
async def test_gunicorn_publishes_before_and_after_its_fork(
    library: str, listener: Listener, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "gunicorn.log"
    application = "tests.support.greenlets.preloaded:application"
    with Gunicorn(library, "--preload", log=log, environment=environment, application=application) as server:
        assert [await asyncio.to_thread(server.publish, number) for number in (1, 2, 3)] == ["published"] * 3
        assert await listener.hear(4) == [0, 1, 2, 3]


class CeleryWorker(Program):
    def __init__(self, library: str, *, log: Path, environment: dict[str, str]) -> None:
        super().__init__(
            [
                sys.executable,
                *(
                    "-m",
                    "celery",
                    "-A",
                    "tests.support.greenlets.celery_app",
                    "worker",
                    "-P",
                    library,
                    "-c",
                    "20",
                ),
                *("-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"),
            ],
            log=log,
            environment=environment,
        )

    def is_ready(self) -> bool:
        return " ready." in self.log_text()


@both_libraries
@both_layers
async def test_celery_publishes(
    library: str, listener: Listener, environment: dict[str, str], tmp_path: Path
) -> None:
    with CeleryWorker(library, log=tmp_path / "celery.log", environment=environment) as worker:
        sending = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tests.support.greenlets.celery_app"],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert sending.returncode == 0, sending.stderr
        assert set(sending.stdout.split()) == {str(worker.pid)}
        assert sorted(await listener.hear(30)) == list(range(30))
        worker.terminate()
        assert await asyncio.to_thread(worker.exit_code, within=20) == 0
    assert "Traceback" not in worker.log_text()
