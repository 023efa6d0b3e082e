"""The tuning of a server process: autobahn's debug log and the garbage collector."""

import gc
import inspect
import sys
from collections.abc import Iterator
from pprint import pformat
from types import ModuleType
from typing import Any

import pytest
from autobahn import util
from autobahn.twisted import websocket
from autobahn.websocket import protocol

from realtime.process import tuning

OPTIONS = [("openHandshakeTimeout", 5, "WebSocketFactory"), ("tcpNoDelay", True, "WebSocketProtocol")] * 10


@pytest.fixture
def autobahn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Autobahn's module with lazy formatting; afterwards it is as before."""
    for module in (protocol, websocket):
        for name, original in (("pformat", pformat), ("hltype", util.hltype), ("hlval", util.hlval)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, original)
    tuning.format_autobahn_log_lazily()
    return protocol


class Option:
    shown = 0

    def __repr__(self) -> str:
        self.shown += 1
        return "option"


def test_arguments_of_the_log_are_formatted_with_their_line(autobahn: Any) -> None:
    option = Option()
    options, value = autobahn.pformat([option]), autobahn.hlval(option)
    assert option.shown == 0
    assert f"{options}" == "[option]"
    assert "option" in f"{value}"
    assert option.shown == 2


def test_a_formatted_line_has_the_same_text(autobahn: Any) -> None:
    assert f"\n{autobahn.pformat(OPTIONS)}" == f"\n{pformat(OPTIONS)}"
    assert f"{websocket.hlval(17)}" == util.hlval(17)
    assert f"{autobahn.hltype(autobahn.WebSocketProtocol)}" == util.hltype(autobahn.WebSocketProtocol)


def test_text_for_other_uses_is_formatted_immediately(autobahn: Any) -> None:
    assert autobahn.pformat({"a": 1}) == "{'a': 1}"
    assert str(autobahn.Timings()) == "{}"


def test_an_unknown_version_of_autobahn_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("autobahn.websocket.protocol")
    other.hltype = repr  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autobahn.websocket.protocol", other)
    tuning.format_autobahn_log_lazily()
    assert other.hltype is repr
    monkeypatch.delitem(sys.modules, "autobahn.websocket.protocol")
    tuning.format_autobahn_log_lazily()


@pytest.mark.parametrize("module", [protocol, websocket])
def test_only_the_log_gets_lazy_values(module: ModuleType) -> None:
    lines = [line.strip() for line in inspect.getsource(module).splitlines()]
    used = [line for line in lines if "hltype(" in line or "hlval(" in line]
    assert used
    # Keyword arguments of a call of the log, each on a line of its own or with the format before it.
    keywords = ("func=", "meth=", "peer=", "data_len=", "reason=", "end_of_header=", '"{')
    assert all(line.startswith(keywords) for line in used)


# -- the garbage collector -------------------------------------------------------------------------


@pytest.fixture
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuning, "_tuned", False)
    threshold = gc.get_threshold()
    # A hub may have started in this process.
    gc.unfreeze()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("as_at_the_start")
def test_loaded_objects_are_frozen_and_thresholds_set() -> None:
    tuning.tune_gc((12_345, 6, 7))
    assert gc.get_threshold() == (12_345, 6, 7)
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("as_at_the_start")
def test_the_collector_is_tuned_once() -> None:
    tuning.tune_gc((12_345, 6, 7))
    gc.unfreeze()
    tuning.tune_gc((54_321, 6, 7))
    assert gc.get_threshold() == (12_345, 6, 7)
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("as_at_the_start")
def test_without_a_threshold_python_keeps_its_own() -> None:
    before = gc.get_threshold()
    tuning.tune_gc(None)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
