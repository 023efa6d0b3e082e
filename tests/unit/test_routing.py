"""Tests of `realtime.routing`: its routers answer like Channels', but keep nothing of a connection."""

import inspect
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from asgiref.compatibility import is_double_callable
from channels import routing as channels_routing
from django.core.exceptions import ImproperlyConfigured
from django.urls import include, path, re_path
from pytest_django import Settings

from realtime.routing import ProtocolTypeRouter, URLRouter

#: The routers that may be nested in each other.
ROUTERS = (URLRouter, channels_routing.URLRouter)


class Scope(dict[str, Any]):
    """A scope to which a weak reference can be made."""


class Waits:
    """An awaitable that suspends its task."""

    def __await__(self) -> Generator[str]:
        yield "suspended"


def serving(scope: dict[str, Any], router: ProtocolTypeRouter) -> Coroutine[Any, Any, None]:
    return router(scope, "receive", "send")


def application(name: str) -> Callable[..., Any]:
    """An application that answers with its name and the scope that it was called with."""

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> tuple[str, dict[str, Any]]:
        return name, scope

    return answer


async def called(router: Any, at: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The name of the application that the router calls for a path, and its `url_route`."""
    name, scope = await router({"type": "websocket", "path": at, **more}, None, None)
    return name, scope["url_route"]


async def refused(router: Any, at: str, **more: Any) -> bool:
    """True if the router refuses the handshake before an application is called."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await router({"type": "websocket", "path": at, **more}, receive, send)
    return sent == [{"type": "websocket.close"}]


class TestProtocolTypeRouter:
    def test_each_protocol_has_its_application(self) -> None:
        called = []

        async def websocket(*arguments: Any) -> None:
            called.append(arguments)

        scope = {"type": "websocket"}
        with pytest.raises(StopIteration):
            serving(scope, ProtocolTypeRouter({"http": None, "websocket": websocket})).send(None)
        assert called == [(scope, "receive", "send")]

    def test_an_unknown_protocol_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="'webtransport'"):
            serving({"type": "webtransport"}, ProtocolTypeRouter({"http": None})).send(None)

    async def test_lifespan_needs_no_application(self) -> None:
        arriving = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return arriving.pop(0)

        async def send(event: dict[str, Any]) -> None:
            answers.append(event)

        await ProtocolTypeRouter({"http": None})({"type": "lifespan"}, receive, send)
        assert answers == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]

    def test_an_application_for_lifespan_is_called(self) -> None:
        router = ProtocolTypeRouter({"lifespan": lambda scope, receive, send: Waits()})
        assert serving({"type": "lifespan"}, router).send(None) == "suspended"

    def test_the_servers_scope_is_not_kept(self) -> None:
        scope = Scope(type="websocket")
        known = weakref.ref(scope)
        running = serving(scope, ProtocolTypeRouter({"websocket": lambda scope, receive, send: Waits()}))
        assert running.send(None) == "suspended"
        del scope
        assert known() is None
        running.close()

    def test_servers_take_it_for_an_asgi_3_application(self) -> None:
        router = ProtocolTypeRouter({})

        assert inspect.iscoroutinefunction(router.__call__)  # uvicorn
        assert not is_double_callable(router)  # asgiref


class TestURLRouter:
    async def test_the_first_match_is_called_with_its_arguments(self) -> None:
        router = URLRouter(
            [
                path("other/", application("other")),
                path("room/<int:pk>/", application("room"), {"colour": "red"}),
                re_path(r"^(\w+)/(\w+)/$", application("last")),
            ]
        )

        assert await called(router, "/room/7/") == (
            "room",
            {"args": (), "kwargs": {"pk": 7, "colour": "red"}},
        )
        assert await called(router, "/room/x/") == ("last", {"args": ("room", "x"), "kwargs": {}})

    async def test_a_wrong_path_is_refused_and_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        assert await refused(URLRouter([path("ws/", application("ws"))]), "/wss\n/")
        assert r"No route found for path '/wss\n/'" in caplog.text

    def test_a_wrong_path_of_another_protocol_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="No route found for path '/'"):
            URLRouter([])({"type": "http", "path": "/"}, None, None)

    async def test_a_root_path_that_a_client_may_send_is_ignored(self) -> None:
        router = URLRouter([path("ws/", application("ws"))])

        assert await called(router, "/ws/", root_path="/ws") == ("ws", {"args": (), "kwargs": {}})
        assert await refused(router, "/other/ws/", root_path="/other")

    @pytest.mark.parametrize("at", ["/site/ws/", "/ws/"])
    async def test_the_script_name_of_the_settings_is_removed(self, settings: Settings, at: str) -> None:
        # A proxy may remove it or not.
        settings.FORCE_SCRIPT_NAME = "/site"

        name, scope = await URLRouter([path("ws/", application("ws"))])(
            {"type": "websocket", "path": at, "root_path": "/forged"}, None, None
        )

        assert (name, scope["root_path"]) == ("ws", "/site")

    @pytest.mark.parametrize("inside", ROUTERS)
    @pytest.mark.parametrize("outside", ROUTERS)
    async def test_routers_may_be_nested_in_channels_routers(self, outside: Any, inside: Any) -> None:
        def router() -> Any:
            return outside(
                [
                    path("<slug:site>/", inside([path("a/<int:pk>/", application("a"))])),
                    path("<slug:site>/b/", application("b")),
                ]
            )

        assert await called(router(), "/x/a/7/") == ("a", {"args": (), "kwargs": {"site": "x", "pk": 7}})
        # If a nested router has no route, the next entry is tried.
        assert await called(router(), "/x/b/") == ("b", {"args": (), "kwargs": {"site": "x"}})

    async def test_a_wrong_path_in_a_nested_router_is_refused(self) -> None:
        router = URLRouter([path("a/", URLRouter([path("b/", application("b"))]))])

        assert await refused(router, "/a/c/")

    async def test_the_servers_scope_is_left_as_it_was(self) -> None:
        scope = {"type": "websocket", "path": "/ws/"}
        await URLRouter([path("ws/", application("ws"))])(scope, None, None)

        assert scope == {"type": "websocket", "path": "/ws/"}

    def test_include_is_refused_as_in_channels(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="include"):
            URLRouter([path("a/", include([]))])

    def test_the_servers_scope_is_not_kept(self) -> None:
        scope = Scope(type="websocket", path="/ws/")
        known = weakref.ref(scope)
        router = URLRouter([path("ws/", lambda scope, receive, send: Waits())])
        running = router(scope, None, None).__await__()
        assert next(running) == "suspended"
        del scope
        assert known() is None
