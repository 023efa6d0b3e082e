"""The example of the README, run as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.utils.module_loading import import_string

from realtime.layers import PubSubLayer
from realtime.testing import connect

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
FILES: dict[str, str] = dict(BLOCKS)


def run(name: str, source: str, **names: Any) -> ModuleType:
    """Run the source as the module of this name."""
    module = ModuleType(name)
    vars(module).update(names)
    exec(compile(source, f"README.md: {name}", "exec"), vars(module))  # noqa: S102 - our own documentation
    return module


def test_the_settings_of_the_example_name_a_layer_that_exists() -> None:
    settings = run("settings", FILES["settings.py"], INSTALLED_APPS=["channels"])

    assert settings.INSTALLED_APPS == ["channels", "realtime"]
    assert import_string(settings.CHANNEL_LAYERS["default"]["BACKEND"]) is PubSubLayer


@pytest.mark.django_db
async def test_the_example_sends_what_one_client_says_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = run("chat.consumers", FILES["chat/consumers.py"])
    monkeypatch.setitem(sys.modules, "chat", ModuleType("chat"))
    monkeypatch.setitem(sys.modules, "chat.consumers", consumers)
    application = run("mysite.asgi", FILES["mysite/asgi.py"]).application
    page = ((b"host", b"testserver"), (b"origin", b"http://testserver"))

    async with (
        connect(application, "/ws/chat/", subprotocols=(), headers=page) as one,
        connect(application, "/ws/chat/", subprotocols=(), headers=page) as two,
    ):
        await one.send(text="hello")
        assert [await client.receive() for client in (one, two)] == ["hello", "hello"]
