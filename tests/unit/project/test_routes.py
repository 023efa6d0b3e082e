"""What the demo project's own routing does instead of Channels'."""

import weakref
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from project.routes import Protocols


class Scope(dict[str, Any]):
    """A scope that can be asked whether it is still there."""


class Waits:
    """Suspends whoever awaits it."""

    def __await__(self) -> Generator[str]:
        yield "suspended"


def serving(scope: dict[str, Any], protocols: Protocols) -> Coroutine[Any, Any, None]:
    return protocols(scope, "receive", "send")


def test_each_protocol_has_its_application() -> None:
    called = []

    async def websocket(*arguments: Any) -> None:
        called.append(arguments)

    scope = {"type": "websocket"}
    with pytest.raises(StopIteration):
        serving(scope, Protocols({"http": None, "websocket": websocket})).send(None)
    assert called == [(scope, "receive", "send")]


def test_a_protocol_that_nothing_serves_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="'lifespan'"):
        serving({"type": "lifespan"}, Protocols({"http": None})).send(None)


def test_the_servers_scope_is_not_kept_while_its_application_runs() -> None:
    scope = Scope(type="websocket")
    known = weakref.ref(scope)
    running = serving(scope, Protocols({"websocket": lambda scope, receive, send: Waits()}))
    assert running.send(None) == "suspended"
    del scope
    assert known() is None
    running.close()
