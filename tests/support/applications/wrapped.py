"""The demo project behind each shape of middleware: `/<shape>/ws/…` is `/ws/…` behind that middleware."""

from typing import Any

from project.asgi import application as demo
from tests.support.applications.middlewares import SHAPES

_behind = {shape: wrap(demo) for shape, wrap in SHAPES.items()}


async def application(scope: Any, receive: Any, send: Any) -> None:
    _, shape, *rest = scope.get("path", "").split("/")
    if shape in _behind:
        await _behind[shape]({**scope, "path": "/" + "/".join(rest)}, receive, send)
    else:
        await demo(scope, receive, send)
