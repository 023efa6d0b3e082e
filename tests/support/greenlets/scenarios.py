"""Uses of `publish()` in a process with greenlets; see `patched` and tests/acceptance/test_greenlets.py.

Each scenario publishes to the group "g", and prints its result for the test.
"""

import asyncio
import contextlib
import os
import signal
import warnings
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.management import call_command
from django.db import transaction
from django.test import override_settings

from realtime import publish
from realtime.errors import BadGroup, LayerUnavailable, RealtimeError, UnpublishableData
from realtime.layers import groups
from realtime.notifying import notify
from realtime.process import background_loop
from realtime.reading import history
from realtime.records.connection_rows import open_connections
from tests.support.doubles.rows import a_process, an_opening
from tests.support.greenlets.patched import Eventlet, Gevent

Library = Gevent | Eventlet


def _say(what: object) -> None:
    print(what, flush=True)  # noqa: T201 - what the test reads


def every_call(library: Library) -> None:
    for number in range(5):
        publish("g", number)


def commits(library: Library) -> None:
    def change(number: int, fails: bool) -> None:
        with transaction.atomic():
            publish("g", number, on_commit=True)
            transaction.set_rollback(fails)

    for wait in [library.spawn(change, number, number % 2 == 1) for number in range(4)]:
        wait()
    publish("g", "without a transaction", on_commit=True)


def many_greenlets(library: Library) -> None:
    def publish_three(first: int) -> None:
        for number in range(first, first + 3):
            publish("g", number)

    for wait in [library.spawn(publish_three, first) for first in range(0, 300, 3)]:
        wait()


def positions(library: Library) -> None:
    with override_settings(REALTIME={"HISTORY": {"g": {"size": 100, "ttl": 60}}}):
        name = str(os.getpid())
        first = publish("g", "kept", id=name)
        _say(publish("g", "kept again", id=name) == first)
        for wait in [library.spawn(publish, "g", number) for number in range(20)]:
            wait()
        _say(sorted(each.data for each in history("g", first).messages) == list(range(20)))


def notifications(library: Library) -> None:
    """Notify a user with a connection in the process of the test, and one without any."""
    call_command("migrate", verbosity=0)
    process = a_process(channel_name=os.environ["ADDRESS"])
    open_connections([an_opening(process, user_id="7")])
    _say(notify("7", "first", timeout=30.0))
    waiting = [library.spawn(notify, "7", number) for number in range(100)]
    _say(sum(wait() for wait in waiting))
    _say(notify("8", "hello"))


def hung_redis(library: Library) -> None:
    """The greenlet that continues Redis must run while another one waits for Redis."""
    redis = int(os.environ["REDIS_PID"])
    publish("g", "before")
    os.kill(redis, signal.SIGSTOP)
    try:
        waiting = library.spawn(publish, "g", "hung")
        library.sleep(0.2)
    finally:
        os.kill(redis, signal.SIGCONT)
    waiting()


def redis_that_stays_hung(library: Library) -> None:
    redis = int(os.environ["REDIS_PID"])
    groups.CALL_TIMEOUT = 0.3
    publish("g", "before")
    os.kill(redis, signal.SIGSTOP)
    try:
        _say_error("g", "hung")
    finally:
        os.kill(redis, signal.SIGCONT)
    groups.CALL_TIMEOUT = 5.0
    publish("g", "after")


def errors(library: Library) -> None:
    _say_error("not a group", 1)
    _say_error("g", object())
    layer: Any = get_channel_layer()
    send = layer.group_send

    async def refuse(group: str, message: Any) -> None:
        raise ConnectionRefusedError("no Redis here")

    layer.group_send = refuse
    _say_error("g", 2)
    layer.group_send = send
    publish("g", 3)


def _say_error(group: str, data: object) -> None:
    try:
        publish(group, data)
    except (BadGroup, UnpublishableData, LayerUnavailable) as error:
        _say(f"{type(error).__name__}: {error}")


def unreachable_redis(library: Library) -> None:
    for number in range(3):
        _say_error("g", number)


def fork(library: Library) -> None:
    publish("g", "parent")
    # eventlet warns of forks.
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        publish("g", "child")
        publish("g", "child again")
        # The child ends as any Python process does.
        return
    _, status = os.waitpid(child, 0)
    publish("g", "parent again")
    _say(f"the child ended with {os.waitstatus_to_exitcode(status)}")


def native_threads(library: Library) -> None:
    for number in range(3):
        library.in_native_thread(publish, "g", number)


def inside_a_loop(library: Library) -> None:
    async def main() -> None:
        publish("g", "never")

    for _ in range(2):
        try:
            asyncio.run(main())
        except RealtimeError as error:
            _say(error)


def inside_the_hub(library: Library) -> None:
    def callback() -> None:
        try:
            publish("g", "never")
        except RealtimeError as error:
            _say(error)

    library.in_hub(callback)
    library.sleep(0.1)
    publish("g", "after")


def beside_a_loop(library: Library) -> None:
    ended = []

    async def main() -> None:
        while not ended:
            await asyncio.sleep(0.01)

    running = library.spawn(async_to_sync(main))
    library.sleep(0.1)
    for number in range(3):
        publish("g", number)
    ended.append(True)
    running()


def greenlet_that_times_out(library: Library) -> None:
    layer: Any = get_channel_layer()
    send = layer.group_send
    cancelled = []

    async def hang(group: str, message: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    layer.group_send = hang
    timeout = library.timeout(0.2)
    try:
        publish("g", "never")
    except type(timeout):
        _say("timed out")
    finally:
        timeout.cancel()
    layer.group_send = send
    publish("g", "after")
    _say("cancelled" if cancelled else "still waiting")


def loop_that_hangs(library: Library) -> None:
    """The event loop itself stops, which should never happen: the greenlet has its own deadline."""
    read, write = os.pipe()

    async def block() -> None:
        os.read(read, 1)

    with contextlib.suppress(TimeoutError):
        background_loop.shared.run(block(), within=0.2)
        _say("no deadline")
    os.write(write, b"!")
    publish("g", "after")


def patched_later(library: Library) -> None:
    """Publish before the patch, as an application may that `gunicorn --preload` imports first."""
    publish("g", "plain")
    library.patch()
    publish("g", "patched")
    publish("g", "patched again")
