"""The system checks: each wrong setting has an id and a hint that says what to do."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import checks as django_checks
from django.test import override_settings

from realtime import checks

PUBSUB = {"BACKEND": "realtime.layers.PubSubLayer", "CONFIG": {"hosts": ["redis://localhost"]}}
CORE = {"BACKEND": "realtime.layers.CoreLayer", "CONFIG": {"hosts": ["redis://localhost"]}}
SENTINEL = {"sentinels": [("a", 26379)], "master_name": "m"}
GOOD_SQLITE = {
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous=NORMAL;",
}


def ids(found: list[django_checks.CheckMessage]) -> list[str | None]:
    assert all(message.hint for message in found)
    return [message.id for message in found]


@pytest.mark.parametrize(
    ("realtime", "expected"),
    [
        ({}, []),
        ({"PING_INTERVAL": 30, "MAX_SILENCE": 61}, []),
        ({"PING_INTERVALL": 30}, ["realtime.E001"]),
        ({"PING_INTERVAL": "x", "PONG_TIMEOUT": -1}, ["realtime.E001", "realtime.E001"]),
        ({"PONG_TIMEOUT": 21}, ["realtime.E001"]),
        ({"HISTORY": {"": {"size": 1, "ttl": 1}, "realtime.x": {}}}, ["realtime.E001", "realtime.E001"]),
        ({"POLICY": "no.such.policy"}, ["realtime.E002"]),
        ({"POLICY": "realtime.policy"}, ["realtime.E002"]),
        (["PING_INTERVAL"], ["realtime.E001"]),
    ],
)
def test_settings(realtime: dict[str, Any], expected: list[str]) -> None:
    with override_settings(REALTIME=realtime):
        assert ids(checks.check_settings(None)) == expected


def with_config(layer: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {**layer, "CONFIG": {**layer["CONFIG"], **config}}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (PUBSUB, []),
        (CORE, []),
        (with_config(PUBSUB, hosts=["redis://a", "redis://b"]), []),
        (with_config(CORE, hosts=["redis://a", "redis://b"]), ["realtime.E005"]),
        (with_config(CORE, capacity=100), ["realtime.W004"]),
        (with_config(CORE, capacity=10_000), []),
        (with_config(CORE, expiry=60), ["realtime.W007"]),
        (with_config(CORE, expiry=3600), []),
        (with_config(PUBSUB, expiry=60), []),
        (with_config(CORE, group_expiry=60), ["realtime.W008"]),
        (with_config(CORE, group_expiry=3600), []),
        (with_config(PUBSUB, group_expiry=60), []),
        (with_config(CORE, hosts=[{"address": "redis://a", "socket_timeout": 5}]), ["realtime.E004"]),
        (with_config(PUBSUB, hosts=[{"address": "redis://a", "socket_timeout": 30}]), ["realtime.E004"]),
        (with_config(PUBSUB, hosts=[{"address": "redis://a", "socket_timeout": None}]), []),
        (with_config(CORE, hosts=["redis://a/0?socket_timeout=5"]), ["realtime.E004"]),
        (with_config(CORE, hosts=["redis://a/0?socket_keepalive=no"]), ["realtime.W006"]),
        (with_config(CORE, hosts=[{"host": "a", "socket_keepalive": False}]), ["realtime.W006"]),
        (with_config(CORE, hosts=[("a", 6379)]), []),
        (with_config(CORE, hosts="redis://a"), ["realtime.E006"]),
        (with_config(CORE, hosts=[SENTINEL]), []),
        (with_config(PUBSUB, hosts=["rediss://a:6380/0", "unix:///run/redis.sock"]), []),
        (with_config(CORE, hosts=["a:6379"]), ["realtime.E006"]),
        (with_config(CORE, hosts=["redis+cluster://a"]), ["realtime.E007"]),
        (with_config(PUBSUB, hosts=["rediss+cluster://a"]), ["realtime.E007"]),
        (with_config(PUBSUB, hosts=["rediss://clustercfg.x.cache.amazonaws.com:6379"]), ["realtime.E007"]),
        (with_config(CORE, hosts=[{"startup_nodes": [("a", 6379)]}]), ["realtime.E007"]),
        (with_config(CORE, hosts=[{"host": "clustercfg.x", "port": 6379}]), ["realtime.E007"]),
        (with_config(CORE, hosts=[{"sentinels": [("a", 26379)]}]), ["realtime.E008"]),
        (with_config(CORE, hosts=[{"master_name": "m"}]), ["realtime.E008"]),
        (with_config(CORE, hosts=[{**SENTINEL, "address": "redis://a"}]), ["realtime.E008"]),
        (with_config(CORE, hosts=[{**SENTINEL, "socket_timeout": 5}]), ["realtime.E004"]),
        (None, ["realtime.E003"]),
        ({"BACKEND": "channels_redis.core.RedisChannelLayer"}, ["realtime.E003"]),
        ({"BACKEND": "channels.layers.InMemoryChannelLayer"}, ["realtime.E003"]),
        ({"BACKEND": "no.such.Layer"}, ["realtime.E003"]),
        ({"BACKEND": "realtime.layers.MemoryLayer"}, ["realtime.W003"]),
    ],
)
def test_channel_layer(layer: dict[str, Any] | None, expected: list[str]) -> None:
    layers = {} if layer is None else {"default": layer}
    with override_settings(CHANNEL_LAYERS=layers, DEBUG=False):
        assert ids(checks.check_layer(None)) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"BACKEND": "channels.layers.InMemoryChannelLayer"}, []),
        (with_config(CORE, hosts=["redis://a?socket_timeout=5"]), ["realtime.E004"]),
    ],
)
def test_a_second_layer_of_other_code_is_allowed(other: dict[str, Any], expected: list[str]) -> None:
    with override_settings(CHANNEL_LAYERS={"default": PUBSUB, "other": other}, DEBUG=False):
        assert ids(checks.check_layer(None)) == expected


def test_no_sentence_has_a_password() -> None:
    layer = with_config(CORE, hosts=["tcp://user:secret@a:6379"])
    with override_settings(CHANNEL_LAYERS={"default": layer}):
        (message,) = checks.check_layer(None)
    assert "tcp://…@a:6379" in message.msg
    assert "secret" not in message.msg


def test_the_sentence_names_the_setting_that_was_meant() -> None:
    with override_settings(REALTIME={"PING_INTERVALL": 30}):
        (message,) = checks.check_settings(None)
    assert message.msg == "REALTIME has no setting 'PING_INTERVALL'; did you mean PING_INTERVAL?"


def test_the_sentence_names_both_settings_of_a_relation() -> None:
    with override_settings(REALTIME={"ROUND_TIMEOUT": 10.0}):
        (message,) = checks.check_settings(None)
    assert message.msg.startswith("ROUND_TIMEOUT (10.0) must be below ROUND_INTERVAL (10.0): ")


def test_the_in_memory_layer_is_allowed_in_debug() -> None:
    with override_settings(
        CHANNEL_LAYERS={"default": {"BACKEND": "realtime.layers.MemoryLayer"}}, DEBUG=True
    ):
        assert checks.check_layer(None) == []


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        ("sqlite3", {}, ["realtime.W001"]),
        ("sqlite3", {"transaction_mode": "IMMEDIATE"}, ["realtime.W001"]),
        ("sqlite3", {"init_command": "PRAGMA journal_mode=WAL;"}, ["realtime.W001"]),
        ("sqlite3", GOOD_SQLITE, []),
        ("postgresql", {}, []),
    ],
)
def test_database(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    options: dict[str, str],
    expected: list[str],
) -> None:
    database = {"ENGINE": f"django.db.backends.{engine}", "OPTIONS": options}
    monkeypatch.setitem(settings.DATABASES, "default", database)
    assert ids(checks.check_database(None)) == expected


def test_the_database_that_a_router_chose_is_checked(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {}}
    monkeypatch.setitem(settings.DATABASES, "records", bad)
    monkeypatch.setattr(checks.router, "db_for_write", lambda model: "records")
    assert ids(checks.check_database(None)) == ["realtime.W001"]


@pytest.mark.parametrize(
    ("apps", "expected"),
    [
        (["daphne", "django.contrib.staticfiles"], []),
        (["django.contrib.staticfiles", "daphne"], ["realtime.W005"]),
        (
            ["django.contrib.staticfiles.apps.StaticFilesConfig", "daphne.apps.DaphneConfig"],
            ["realtime.W005"],
        ),
        (["django.contrib.staticfiles"], []),
    ],
)
def test_order_of_the_installed_apps(settings: Any, apps: list[str], expected: list[str]) -> None:
    settings.INSTALLED_APPS = apps
    assert ids(checks.check_installation(None)) == expected


def test_another_distribution_of_the_import_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"realtime": ["django-channels-realtime", "realtime"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: names)
    assert ids(checks.check_installation(None)) == ["realtime.W002"]


@pytest.mark.parametrize("name", ["realtime/__init__.py", "realtime/consumers.py", "realtime.py"])
def test_a_package_of_our_name_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "realtime").mkdir()
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    assert ids(checks.check_installation(None)) == []
    (tmp_path / name).touch()
    (warning,) = checks.check_installation(None)
    assert warning.id == "realtime.W011"
    assert str(tmp_path / name.partition("/")[0]) in warning.msg


@pytest.mark.parametrize(("seconds", "expected"), [(9.0, []), (9.5, ["realtime.W009"])])
def test_a_budget_above_daphnes_limit(settings: Any, seconds: float, expected: list[str]) -> None:
    settings.REALTIME = {"DISCONNECT_TIMEOUT": seconds}
    assert ids(checks.check_budget(None)) == expected


@pytest.mark.parametrize(
    ("servers", "realtime", "expected"),
    [
        (["granian"], {}, ["realtime.W010"]),
        (["granian"], {"UNPINGED_IDLE_TIMEOUT": 3600}, []),
        (["granian"], {"IDLE_TIMEOUT": 3600}, []),
        (["granian", "hypercorn"], {}, []),
        (["daphne"], {}, []),
        (["uvicorn"], {"DIRECT_WRITES": False}, ["realtime.W010"]),
        ([], ["no dict"], []),
    ],
)
def test_clients_that_nothing_pings(
    servers: list[str], realtime: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> None:
        if name not in servers:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    with override_settings(REALTIME=realtime):
        assert ids(checks.check_server(None)) == expected


@pytest.mark.parametrize(
    ("realtime", "expected"),
    [
        ({}, []),
        ({"PRESENCE_GRACE": 5.1}, []),
        ({"PRESENCE_GRACE": 5.0}, ["realtime.W012"]),
        ({"PRESENCE_GRACE": 0}, ["realtime.W012"]),
        ({"RECONNECT_WINDOW": 30.0}, ["realtime.W012"]),
        ({"RECONNECT_WINDOW": 30.0, "PRESENCE": []}, []),
        ({"PRESENCE_GRACE": -1}, []),
        (["no dict"], []),
    ],
)
def test_a_grace_that_a_restart_exceeds(realtime: Any, expected: list[str]) -> None:
    with override_settings(REALTIME=realtime):
        assert ids(checks.check_grace(None)) == expected


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        ([], []),
        (["10.0.0.0/8", "unix"], []),
        (["0.0.0.0/0"], ["realtime.W013"]),
        (["10.0.0.0/8", "::/0"], ["realtime.W013"]),
        (["no address"], []),
    ],
)
def test_proxies_that_include_all_clients(proxies: list[str], expected: list[str]) -> None:
    with override_settings(REALTIME={"TRUSTED_PROXIES": proxies}):
        assert ids(checks.check_proxies(None)) == expected


def test_this_project_passes_all_checks() -> None:
    assert django_checks.run_checks(tags=["realtime"]) == []
