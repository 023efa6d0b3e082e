"""The chat of Channels' tutorial before and after its move: the diff in the documentation as code."""

import re
from pathlib import Path
from typing import Any

from django.urls import re_path

HOWTO = Path(__file__).resolve().parents[3] / "docs" / "howto"


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of one language on a page of `docs/howto`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (HOWTO / page).read_text(), re.DOTALL | re.MULTILINE)


def side(diff: str, sign: str) -> str:
    """Return the text before a change (`-`) or after it (`+`)."""
    lines = (line for line in diff.splitlines() if line[:1] in (" ", sign))
    return "".join(f"{line[1:]}\n" for line in lines)


def _consumer(source: str) -> Any:
    names: dict[str, Any] = {"__name__": "chat.consumers"}
    exec(compile(source, "move-an-existing-project.md", "exec"), names)  # noqa: S102 - our own documentation
    return names["ChatConsumer"]


_DIFF, _SYNC_DIFF = blocks("move-an-existing-project.md", "diff")
CHAT_BEFORE = _consumer(side(_DIFF, "-"))
CHAT_AFTER = _consumer(side(_DIFF, "+"))
SYNC_CHAT_BEFORE = _consumer(side(_SYNC_DIFF, "-"))
SYNC_CHAT_AFTER = _consumer(side(_SYNC_DIFF, "+"))


def websocket_urlpatterns(consumer: Any) -> list[Any]:
    """Return the URL patterns of the tutorial's chat/routing.py."""
    return [re_path(r"ws/chat/(?P<room_name>\w+)/$", consumer.as_asgi())]
