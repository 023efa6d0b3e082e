"""A pytest plugin that puts our classes in the places of the classes of Channels and channels_redis.

A suite of another project runs with `-p realtime_in_place`, and no file of it changes. The plugin does what
the page "Move an existing project" asks for, and nothing more: other base classes, other channel layers,
"realtime" in `INSTALLED_APPS`, and tests that may use the database. The names are replaced in the modules of
Channels before pytest imports the tests. So the tests, and the library under test, import ours under the old
names.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from django.apps import apps
from django.conf import settings

Place = tuple[str, str]

#: The module and the name that others import; the module and the name of the class that they get.
CONSUMERS: dict[Place, Place] = {
    ("channels.generic.websocket", "AsyncWebsocketConsumer"): ("realtime.consumers", "RealtimeConsumer"),
    ("channels.generic.websocket", "AsyncJsonWebsocketConsumer"): (
        "realtime.consumers",
        "RealtimeJsonConsumer",
    ),
    ("channels.generic.websocket", "WebsocketConsumer"): ("realtime.consumers", "SyncRealtimeConsumer"),
    ("channels.generic.websocket", "JsonWebsocketConsumer"): (
        "realtime.consumers",
        "SyncRealtimeJsonConsumer",
    ),
}
LAYERS: dict[Place, Place] = {
    ("channels.layers", "InMemoryChannelLayer"): ("realtime.layers", "MemoryLayer"),
    ("channels_redis.core", "RedisChannelLayer"): ("realtime.layers", "CoreLayer"),
    ("channels_redis.pubsub", "RedisPubSubChannelLayer"): ("realtime.layers", "PubSubLayer"),
}

_ours: list[type] = []


_setup = django.setup


def _setup_with_realtime(*arguments: Any, **options: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "realtime"]
    if not getattr(settings, "CHANNEL_LAYERS", None):
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.MemoryLayer"}}
    _setup(*arguments, **options)
    _replace({**CONSUMERS, **LAYERS})


# pytest-django calls it at one of several moments, which depends on where the suite keeps its settings.
django.setup = _setup_with_realtime


def pytest_sessionstart() -> None:
    if not settings.configured:
        # A suite that does not use Django, such as one of channel layers.
        settings.configure()
        _replace(LAYERS)


def _replace(places: dict[Place, Place]) -> None:
    # Import all of ours before the first is replaced: they extend the classes of Channels.
    found = {
        place: getattr(importlib.import_module(module), name) for place, (module, name) in places.items()
    }
    for (module, name), ours in found.items():
        setattr(importlib.import_module(module), name, ours)
        _ours.append(ours)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if apps.ready else ():
        # Before a mark of the suite, which may ask for a transaction around the test.
        item.add_marker(pytest.mark.django_db(transaction=True), append=False)


def pytest_collection_finish() -> None:
    """Write the names that hold our classes or subclasses of them, for the program that compares."""
    got = sorted(
        f"{module}.{name}"
        for module, content in tuple(sys.modules.items())
        if module.partition(".")[0] not in ("channels", "channels_redis", "realtime", __name__)
        for name, value in tuple(getattr(content, "__dict__", {}).items())
        # Not `isinstance`, which would start the lazy objects of Django.
        if issubclass(type(value), type) and issubclass(value, tuple(_ours))
    )
    Path(os.environ["REALTIME_IN_PLACE"]).write_text(json.dumps(got))
