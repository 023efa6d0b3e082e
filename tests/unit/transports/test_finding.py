"""The server's protocol behind a `send` that a middleware wraps: the note, the search, and the proof."""

import functools
import gc
import sys
import weakref
from collections.abc import Iterator
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from realtime.transports import finding
from realtime.transports.finding import hook_servers, protocol_of


class Protocol:
    """A stand-in for Daphne's protocol of a WebSocket."""

    def __init__(self) -> None:
        self.clean_headers = [(b"host", b"localhost")]
        self.client_addr: list[Any] | None = ["127.0.0.1", 5]
        self.server_addr = ["127.0.0.1", 80]

    def scope(self) -> dict[str, Any]:
        return {"headers": self.clean_headers, "client": self.client_addr, "server": self.server_addr}


Protocol.__module__ = "daphne.ws_protocol"


class UvicornProtocol:
    """A stand-in for uvicorn's protocol of a WebSocket."""

    def __init__(self) -> None:
        self.scope = {"headers": [(b"host", b"localhost")], "extensions": {"a": 1}, "state": {}}

    async def send(self, event: Any) -> None: ...


UvicornProtocol.__module__ = "uvicorn.protocols.websockets.wsproto_impl"


async def handle_reply(protocol: Any, event: Any) -> None: ...


def send_of(protocol: Any) -> Any:
    return functools.partial(handle_reply, protocol)


# -- the search -------------------------------------------------------------------------------------------


def in_closure(send: Any) -> Any:
    async def wrapped(event: Any) -> None:
        await send(event)

    return wrapped


def in_decorated(send: Any) -> Any:
    @functools.wraps(send)
    async def wrapped(event: Any) -> None: ...

    return wrapped


def in_default(send: Any) -> Any:
    async def wrapped(event: Any, *, pass_on: Any = send) -> None: ...

    return wrapped


class Wrapper:
    def __init__(self, send: Any) -> None:
        self.inner = send

    async def send(self, event: Any) -> None: ...

    __call__ = send

    @property
    def trap(self) -> Any:
        raise AssertionError("code of the middleware ran")


class Slotted:
    __slots__ = ("empty", "inner")

    def __init__(self, send: Any) -> None:
        self.inner = send

    async def send(self, event: Any) -> None: ...


WRAPPERS = [
    in_closure,
    in_decorated,
    in_default,
    lambda send: functools.partial(handle_reply, send),
    lambda send: functools.partial(handle_reply, pass_on=send),
    Wrapper,
    lambda send: Wrapper(send).send,
    Slotted,
    lambda send: Slotted(send).send,
    lambda send: in_closure(Wrapper(in_decorated(Slotted(send).send))),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_protocol_is_found_behind_each_wrapper(wrap: Any) -> None:
    protocol, other = Protocol(), UvicornProtocol()
    assert protocol_of(protocol.scope(), wrap(send_of(protocol))) is protocol
    assert protocol_of(other.scope, wrap(other.send)) is other


@pytest.mark.parametrize("kept", ["headers", "client", "server"])
def test_a_copied_scope_proves_it_by_any_value_that_stayed(kept: str) -> None:
    protocol = Protocol()
    scope = {key: value if key == kept else list(value) for key, value in protocol.scope().items()}
    assert protocol_of(scope, in_closure(send_of(protocol))) is protocol


def test_a_protocol_of_another_connection_is_not_taken() -> None:
    mine, another = Protocol(), Protocol()
    assert mine.scope() == another.scope()
    assert protocol_of(another.scope(), in_closure(send_of(mine))) is None


def test_of_several_protocols_the_right_one_is_taken() -> None:
    mine, another = Protocol(), Protocol()
    both = in_closure(Wrapper(functools.partial(handle_reply, send_of(another), send_of(mine))))
    assert protocol_of(mine.scope(), both) is mine


def test_values_that_connections_share_prove_nothing() -> None:
    protocol = Protocol()
    protocol.client_addr = None
    assert protocol_of({"client": None, "headers": []}, in_closure(send_of(protocol))) is None


def test_containers_are_not_searched() -> None:
    protocol = Protocol()
    assert protocol_of(protocol.scope(), Wrapper({"all": [send_of(protocol)]})) is None


def test_the_search_ends_at_its_limits() -> None:
    protocol = Protocol()
    send = send_of(protocol)
    for _ in range(finding.MAX_DEPTH):
        send = functools.partial(handle_reply, send)
    assert protocol_of(protocol.scope(), send) is None
    many = functools.partial(handle_reply, *(Wrapper(None) for _ in range(finding.MAX_OBJECTS + 1)))
    assert protocol_of(protocol.scope(), functools.partial(many, send_of(protocol))) is None


def test_a_wrapper_that_refers_to_itself_ends_the_search() -> None:
    wrapper = Wrapper(None)
    wrapper.inner = wrapper
    assert protocol_of(Protocol().scope(), wrapper) is None


# -- the note ---------------------------------------------------------------------------------------------


async def blind(event: Any) -> None:
    """A `send` that leads nowhere, as one that puts events in a queue."""


@pytest.fixture
def daphne(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Server:
        def create_application(self, protocol: Any, scope: Any) -> Any:
            """Return what a task would have: a copy of the context."""
            return copy_context()

    monkeypatch.setitem(sys.modules, "daphne.server", SimpleNamespace(Server=Server))  # type: ignore[arg-type]
    hook_servers()
    return Server()


@pytest.fixture
def uvicorn(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    class Noted(UvicornProtocol):
        def run_asgi(self) -> Any:
            return copy_context()

    name = UvicornProtocol.__module__
    Noted.__module__ = name
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(Noted=Noted, other=1))  # type: ignore[arg-type]
    hook_servers()
    yield Noted
    finding._noted.set(None)


def test_daphnes_task_has_the_note_and_no_other_has(daphne: Any) -> None:
    protocol = Protocol()
    context = daphne.create_application(protocol, protocol.scope())
    assert context.run(protocol_of, protocol.scope(), blind) is protocol
    assert protocol_of(protocol.scope(), blind) is None


def test_uvicorns_task_has_the_note(uvicorn: Any) -> None:
    protocol = uvicorn()
    context = protocol.run_asgi()
    assert context.run(protocol_of, dict(protocol.scope), blind) is protocol


def test_the_note_is_not_taken_for_another_connection(daphne: Any) -> None:
    mine, another = Protocol(), Protocol()
    context = daphne.create_application(mine, mine.scope())
    assert context.run(protocol_of, another.scope(), blind) is None


def test_the_note_keeps_no_protocol(daphne: Any) -> None:
    protocol = Protocol()
    context, scope = daphne.create_application(protocol, protocol.scope()), protocol.scope()
    gone = weakref.ref(protocol)
    del protocol
    gc.collect()
    assert gone() is None
    assert context.run(protocol_of, scope, blind) is None


def test_a_server_is_hooked_once(daphne: Any) -> None:
    hooked = type(daphne).create_application
    hook_servers()
    assert type(daphne).create_application is hooked


def test_a_protocol_that_cannot_be_noted_is_served(daphne: Any) -> None:
    assert daphne.create_application(17, {}) is not None


def test_an_unknown_version_of_a_server_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "daphne.server", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, UvicornProtocol.__module__, SimpleNamespace(Old=UvicornProtocol))  # type: ignore[arg-type]
    hook_servers()
    assert not hasattr(UvicornProtocol, "run_asgi")
