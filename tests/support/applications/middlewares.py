"""ASGI middlewares that wrap `send`, in each shape that applications and packages have.

Each passes on a copy of the scope. In the copy, `passed` lists the type of each event that came through,
and its text if that is short. Two of the shapes are real packages, with such a middleware between them and
the server.
"""

import asyncio
import functools
import warnings
from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

with warnings.catch_warnings():
    # Sentry imports eventlet where that is installed, and eventlet warns of itself.
    warnings.simplefilter("ignore")
    import sentry_sdk.utils  # noqa: F401
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

App = Callable[..., Any]
Passed = list[tuple[str, str | None]]

LONG = 100


def _note(passed: Passed, event: Any) -> Any:
    text = event.get("text")
    # Long texts are left out: tests of memory run behind this.
    passed.append((event["type"], text if text is not None and len(text) < LONG else None))
    return event


class _Middleware:
    """The base: counts the events that pass, by a `send` of its shape."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        passed: Passed = []
        await self.app({**scope, "passed": passed}, receive, self.wrap(send, passed))

    def wrap(self, send: Any, passed: Passed) -> Any:
        raise NotImplementedError


class Closure(_Middleware):
    """Wraps it in a function."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        async def counting(event: Any) -> None:
            await send(_note(passed, event))

        return counting


class Partial(_Middleware):
    """Wraps it in a partial function."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        return functools.partial(self._relay, send, passed)

    @staticmethod
    async def _relay(send: Any, passed: Passed, event: Any) -> None:
        await send(_note(passed, event))


class _Relay:
    __slots__ = ("_passed", "_send")

    def __init__(self, send: Any, passed: Passed) -> None:
        self._send = send
        self._passed = passed

    async def send(self, event: Any) -> None:
        await self._send(_note(self._passed, event))

    __call__ = send


class Method(_Middleware):
    """Passes the method of an object on."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        return _Relay(send, passed).send


class Object(_Middleware):
    """Passes an object on that can be called."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        return _Relay(send, passed)


class Suspending(_Middleware):
    """Suspends before it passes each event on."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        async def suspending(event: Any) -> None:
            await asyncio.sleep(0)
            await send(_note(passed, event))

        return suspending


class Queue(_Middleware):
    """Puts events in a queue, which a task of its own empties. Its `send` does not refer to the server's."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        waiting: asyncio.Queue[Any] = asyncio.Queue()
        passed: Passed = []

        async def empty() -> None:
            while True:
                await send(_note(passed, await waiting.get()))

        async def put(event: Any) -> None:
            waiting.put_nowait(event)

        # The application runs in another task than the one that the server made.
        emptying = asyncio.create_task(empty())
        try:
            await asyncio.create_task(self.app({**scope, "passed": passed}, receive, put))
        finally:
            emptying.cancel()


class Keeping(_Middleware):
    """Keeps the socket when the application closes, as a middleware with several consumers behind it does."""

    def wrap(self, send: Any, passed: Passed) -> Any:
        async def keeping(event: Any) -> None:
            if _note(passed, event)["type"] != "websocket.close":
                await send(event)

        return keeping


def _sentry(app: App) -> App:
    return Closure(SentryAsgiMiddleware(app))


def _opentelemetry(app: App) -> App:
    return Closure(OpenTelemetryMiddleware(app))


SHAPES: dict[str, Callable[[App], App]] = {
    "closure": Closure,
    "partial": Partial,
    "method": Method,
    "object": Object,
    "suspending": Suspending,
    "queue": Queue,
    "sentry": _sentry,
    "opentelemetry": _opentelemetry,
}
