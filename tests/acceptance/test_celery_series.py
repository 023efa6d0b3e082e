"""The wheel beside `celery[redis]`, whose releases want very different versions of redis-py."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from channels.layers import channel_layers, get_channel_layer

from tests.support.programs.servers import RedisServer
from tests.support.programs.wheels import run

pytestmark = pytest.mark.acceptance

UV = Path(sys.executable).with_name("uv")

#: A project in one file. It sends a task through Redis, runs it in its own worker, and prints the result.
SHOP = """
import os

import django
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.conf import settings

url = os.environ["REDIS_URL"]
layer = {"BACKEND": "realtime.layers.PubSubLayer", "CONFIG": {"hosts": [url]}}
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "realtime"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}},
    CHANNEL_LAYERS={"default": layer},
)
django.setup()

from realtime import publish

app = Celery("shop", broker=url, backend=url)


@app.task
def ship(order):
    publish("orders", {"shipped": order})
    return redis.__version__


with start_worker(app, pool="solo", perform_ping_check=False):
    print(ship.delay(7).get(timeout=20))
"""


@pytest.mark.parametrize(
    ("series", "redis_py"),
    [
        # Its redis-py is older than any that the lock has.
        ("5.5", "5.2."),
        pytest.param("5.6", "", marks=pytest.mark.matrix),
        pytest.param("5.7", "", marks=pytest.mark.matrix),
    ],
)
async def test_a_task_of_each_celery_publishes(
    series: str, redis_py: str, wheel: Path, settings: Any, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    await asyncio.to_thread(_install, environment, f"celery[redis]~={series}.0", wheel, tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    with RedisServer(tmp_path, tcp=True) as redis:
        settings.CHANNEL_LAYERS = {
            "default": {"BACKEND": "realtime.layers.PubSubLayer", "CONFIG": {"hosts": [redis.url]}}
        }
        channel_layers.backends.clear()
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add("orders", channel)
        try:
            used = await asyncio.to_thread(
                run, environment / "bin/python", "shop.py", cwd=tmp_path, REDIS_URL=redis.url
            )
            async with asyncio.timeout(10):
                event = await layer.receive_stamped(channel)
        finally:
            await layer.group_discard("orders", channel)
            await layer.flush()
    assert json.loads(event["text"])["data"] == {"shipped": 7}
    assert used.startswith(redis_py)


def _install(environment: Path, celery: str, wheel: Path, folder: Path) -> None:
    """Let uv find versions that both accept, as it does for an application, and check that they agree."""
    run(UV, "venv", "--quiet", "--python", sys.executable, environment, cwd=folder)
    python = environment / "bin/python"
    run(UV, "pip", "install", "--quiet", "--python", python, wheel, celery, cwd=folder)
    run(UV, "pip", "check", "--quiet", "--python", python, cwd=folder)
