"""The demo project, and one more page: it lists the messages of a group in the order of their arrival.

`/listing/?group=G` serves `listing.html` beside this file.
"""

from pathlib import Path
from typing import Any

from project.asgi import application as project

PAGE = Path(__file__).with_name("listing.html")


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or scope["path"] != "/listing/":
        await project(scope, receive, send)
        return
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE.read_bytes()})
