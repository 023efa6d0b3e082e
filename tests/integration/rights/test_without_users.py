"""A project without `django.contrib.auth` has no users, and its connections are served as before."""

import subprocess
import sys

from tests.support.programs.servers import CHECKOUT

_PROGRAM = """
import asyncio
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["channels", "realtime"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    CHANNEL_LAYERS={"default": {"BACKEND": "realtime.layers.MemoryLayer"}},
    REALTIME={"LEDGER": "inline"},
)
import django
django.setup()
from channels.testing import WebsocketCommunicator
from django.core.management import call_command
from realtime.consumers import RealtimeConsumer

call_command("migrate", verbosity=0)

class Echo(RealtimeConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data)

async def main():
    communicator = WebsocketCommunicator(Echo.as_asgi(), "/")
    # A user of another service, as a middleware of the project makes it.
    communicator.scope["user"] = type("Guest", (), {"pk": 7, "is_authenticated": True})()
    assert (await communicator.connect())[0]
    await communicator.send_to(text_data="hello")
    print(await communicator.receive_from())
    await communicator.disconnect()

asyncio.run(main())
"""


def test_connections_are_served_without_the_app_of_users() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr[-3000:]
