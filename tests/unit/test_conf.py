"""The settings: every wrong key, value and relation has a sentence of its own."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from realtime import conf
from realtime.consumers import RealtimeConsumer
from realtime.history.retention import Retention
from realtime.liveness.connection import Limits


def test_the_defaults_have_no_problem() -> None:
    assert conf.problems({}) == []


def test_the_default_limits_of_liveness() -> None:
    assert conf.Settings().limits() == Limits(
        ping_interval=20.0,
        pong_timeout=8.0,
        probe_after=5.0,
        probe_bytes=262_144,
        max_unacked_bytes=4_194_304,
        slow_after=1.0,
        idle_timeout=None,
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"PING_INTERVALL": 5}, "did you mean PING_INTERVAL?"),
        ({"ping_interval": 5}, "did you mean PING_INTERVAL?"),
        ({"COLOUR": 5}, "known keys are"),
        ({"PING_INTERVAL": "20"}, "PING_INTERVAL is '20'; set a number of seconds above zero."),
        ({"PING_INTERVAL": True}, "set a number of seconds"),
        ({"PING_INTERVAL": None}, "set a number of seconds"),
        ({"PING_INTERVAL": 0}, "set a number of seconds above zero."),
        ({"PING_INTERVAL": -1}, "set a number of seconds above zero."),
        ({"IDLE_TIMEOUT": 0}, "set a number of seconds above zero, or None."),
        ({"MAX_MESSAGE_BYTES": 1.5}, "set a whole number above zero."),
        ({"MAX_MESSAGE_BYTES": 1024.0}, "set a whole number above zero."),
        ({"MAX_INBOUND_QUEUE": True}, "set a whole number above zero."),
        ({"MAX_ECHOES_MISSED": 0}, "set a whole number above zero, or None."),
        ({"MISSES_ALLOWED": -1}, "set a whole number, zero or more."),
        ({"COALESCE_WINDOW": -0.001}, "set a number of seconds, zero or more."),
        ({"DIRECT_WRITES": 1}, "DIRECT_WRITES is 1; set True or False."),
        ({"POLICY": "policy"}, "POLICY is 'policy'; set a dotted path."),
        ({"POLICY": None}, "set a dotted path."),
        ({"LEDGER": "fast"}, 'set "thread" or "inline"'),
        ({"CLIENT_DETAILS": "some"}, 'set "full", "network" or "none"'),
        ({"CLIENT_DETAILS": None}, 'set "full", "network" or "none"'),
        ({"GC_THRESHOLD": 10_000}, "GC_THRESHOLD is 10000; set three whole numbers above zero, or None"),
        ({"GC_THRESHOLD": (10_000, 10)}, "set three whole numbers above zero, or None"),
        ({"GC_THRESHOLD": (0, 10, 10)}, "set three whole numbers above zero, or None"),
        ({"PONG_TIMEOUT": 20.0}, "PONG_TIMEOUT (20.0) must be below PING_INTERVAL (20.0)"),
        ({"MAX_SILENCE": 40.0}, "MAX_SILENCE (40.0) must be above 2 * PING_INTERVAL (40.0)"),
        ({"ROUND_TIMEOUT": 10.0}, "ROUND_TIMEOUT (10.0) must be below ROUND_INTERVAL"),
        ({"PROBE_BYTES": 2**30}, "must not be above MAX_UNACKED_BYTES"),
        ({"HISTORY": ["g"]}, "HISTORY is ['g']; set a dict such as"),
        ({"HISTORY": {"a b": {"size": 1, "ttl": 1}}}, "the pattern 'a b': no group has such a name"),
        ({"HISTORY": {"a": 300}}, """the pattern 'a': its value is 300; set {"size": …, "ttl": …}"""),
        ({"PRESENCE": "room.*"}, "PRESENCE is 'room.*'; set a list of patterns of group names"),
        ({"PRESENCE": ["a", "b c"]}, "PRESENCE has the pattern 'b c': no group has such a name"),
        ({"PRESENCE": ["realtime.*"]}, 'names that start with "realtime." are reserved'),
        ({"PRESENCE_GRACE": -1}, "set a number of seconds, zero or more."),
        ({"HISTORY_TAIL_BYTES": 0}, "set a whole number above zero."),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], words: str) -> None:
    (problem,) = conf.problems(given)
    assert words in problem


@pytest.mark.parametrize(
    "given",
    [
        {"IDLE_TIMEOUT": None},
        {"HANDLER_TIMEOUT": 5},
        {"MISSES_ALLOWED": 0},
        {"PING_INTERVAL": 10},
        {"COALESCE_WINDOW": 0},
        {"COALESCE_WINDOW": 0.005},
        {"DIRECT_WRITES": False},
        {"CLIENT_DETAILS": "network"},
        {"LEDGER": "inline"},
        {"GC_THRESHOLD": None},
        {"GC_THRESHOLD": [700, 10, 10]},
        {"MAX_ECHOES_MISSED": None},
        {"PRESENCE": ["room.*", "lobby"]},
        {"PRESENCE": ()},
        {"PRESENCE_GRACE": 0},
        {"HISTORY": {"user.*": {"size": 10, "ttl": 0.5}, "*": {"size": 1, "ttl": 60}}},
    ],
)
def test_right_settings_are_accepted(given: dict[str, Any]) -> None:
    assert conf.problems(given) == []


def test_the_project_settings_are_read_again_when_they_change() -> None:
    with override_settings(REALTIME={"PING_INTERVAL": 9}):
        assert conf.get().PING_INTERVAL == 9
    assert conf.get().PING_INTERVAL == 20


def test_the_history_of_a_group_follows_the_settings() -> None:
    with override_settings(REALTIME={"HISTORY": {"a*": {"size": 2, "ttl": 3}}}):
        assert conf.get().retention("ab") == Retention(2, 3)
        assert conf.get().retention("ab") is conf.get().retention("ab")
        assert conf.get().retention("b") is None
    assert conf.get().retention("ab") is None


@pytest.mark.parametrize(
    ("patterns", "tracked"),
    [(["room.*", "lobby"], True), (["*"], True), (["lobby", "room"], False), ([], False)],
)
def test_the_tracked_groups_follow_the_settings(patterns: list[str], tracked: bool) -> None:
    with override_settings(REALTIME={"PRESENCE": patterns}):
        assert conf.get().tracks_presence("room.7") is tracked
    assert conf.get().tracks_presence("room.7")


def test_wrong_project_settings_raise_all_their_sentences() -> None:
    with (
        override_settings(REALTIME={"PING": 9, "PROBE_AFTER": "x"}),
        pytest.raises(ImproperlyConfigured, match=r"no setting 'PING'.*PROBE_AFTER is 'x'"),
    ):
        conf.get()


def test_a_server_with_wrong_settings_does_not_start() -> None:
    with (
        override_settings(REALTIME={"PING": 9}),
        pytest.raises(ImproperlyConfigured, match="no setting 'PING'"),
    ):
        RealtimeConsumer.as_asgi()
