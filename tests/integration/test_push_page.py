"""The code of `docs/howto/push-when-asleep.md`, run as it stands there, against a push server."""

import asyncio
import base64
import contextlib
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import http_ece
import pytest
from channels.db import database_sync_to_async
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client as Browser
from django.test import TestCase
from py_vapid import Vapid02

from realtime import signals
from realtime.consumers import GroupConsumer
from realtime.signals import connection_dormant
from realtime.testing import Client, connect
from tests.support.applications.tutorial import blocks
from tests.support.doubles.rows import an_opening

PAGE = "push-when-asleep.md"
MESSAGE = {"id": "41", "title": "Anne", "text": "Are you there?"}

_python = {block.partition("\n")[0].removeprefix("# "): block for block in blocks(PAGE, "python")}
_example = blocks(PAGE, "python")[-1]
(_worker,) = blocks(PAGE, "javascript")
(_page,) = blocks(PAGE, "html")


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


# -- the push server, and the browsers that have subscribed there


@dataclass
class Device:
    """A browser with a subscription."""

    address: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    secret: bytes = field(default_factory=lambda: os.urandom(16))
    status: int = 201
    bodies: list[bytes] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    @property
    def subscription(self) -> dict[str, Any]:
        keys = {"p256dh": _text(_point(self.key)), "auth": _text(self.secret)}
        return {"endpoint": self.address, "keys": keys}

    @property
    def messages(self) -> list[Any]:
        """The messages that were pushed to it, decrypted with its keys."""
        return [
            json.loads(http_ece.decrypt(body, private_key=self.key, auth_secret=self.secret))
            for body in self.bodies
        ]


class PushServer:
    """A push service on the loopback interface."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        devices = self.devices

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                device = devices[self.path]
                device.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                device.authorizations.append(self.headers["Authorization"])
                self.send_response(device.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)

    def __enter__(self) -> "PushServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def device(self, user: User) -> Device:
        """Add a device of a user, with its row in the table of the page."""
        path = f"/{len(self.devices)}"
        device = self.devices[path] = Device(f"{self.origin}{path}")
        subscriptions(user).create(endpoint=device.address, **device.subscription["keys"])
        return device


def subscriptions(user: User) -> Any:
    return user.push_subscriptions  # type: ignore[attr-defined]


# -- the application of the page


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the settings, by the programs of the page."""
    folder = tmp_path_factory.mktemp("keys")
    install, generate, show = blocks(PAGE, "sh")[0].splitlines()
    assert install == "pip install pywebpush"
    vapid = Path(sys.executable).with_name("vapid")
    for command in (generate, show):
        name, *options = command.split()
        assert name == "vapid"
        done = subprocess.run(
            [vapid, *options], cwd=folder, capture_output=True, text=True, check=True, timeout=60
        )
    return {
        "PUSH_PRIVATE_KEY": str(folder / "private_key.pem"),
        "PUSH_PUBLIC_KEY": done.stdout.strip().rpartition(" ")[2],
    }


@pytest.fixture
def chat(
    keys: dict[str, str],
    settings: Any,
    transactional_db: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """The application `chat` with all files of the page, installed and migrated."""
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat/__init__.py").touch()
    for name, source in _python.items():
        if name.startswith("chat/"):
            (tmp_path / name).write_text(source)
    (tmp_path / "push_urls.py").write_text(
        _python["urls.py"]
        + "from django.contrib import admin\nurlpatterns.append(path('admin/', admin.site.urls))\n"
    )
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "push.js").write_text(_worker)
    (templates / "chat.html").write_text(_page)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    exec(compile(_python["settings.py"], PAGE, "exec"), names)  # noqa: S102 - our own documentation
    for name, value in names.items():
        if name.startswith("PUSH_"):
            setattr(settings, name, value)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [templates]}]
    settings.ROOT_URLCONF = "push_urls"
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "chat"]
    model = apps.get_model("chat", "PushSubscription")
    with connection.schema_editor() as editor:
        editor.create_model(model)
    yield
    receivers = sys.modules.get("chat.receivers")
    if receivers is not None:
        connection_dormant.disconnect(receivers.say_that_more_is_there)
    with connection.schema_editor() as editor:
        editor.delete_model(model)
    del apps.all_models["chat"]
    for name in [name for name in sys.modules if name == "push_urls" or name.split(".")[0] == "chat"]:
        del sys.modules[name]


@pytest.fixture
def push_server(chat: None) -> Iterator[PushServer]:
    with PushServer() as server:
        yield server


@pytest.fixture
def anne(transactional_db: None) -> User:
    return User.objects.create_user("anne")


async def send(user: User, message: dict[str, str]) -> None:
    """Call `send_message` of the page, as a worker does."""
    await database_sync_to_async(importlib.import_module("chat.sending").send_message)(user, message)


class Page:
    """A page of the user. It answers pings while it is awake."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._awake: asyncio.Task[None] | None = None
        self.shown: list[Any] = []

    def wake(self) -> None:
        self._awake = asyncio.create_task(self._read())

    async def sleep(self) -> None:
        if self._awake is not None:
            self._awake.cancel()
            await asyncio.wait([self._awake])

    async def _read(self) -> None:
        while True:
            frame = await self._client.receive_frame(within=60)
            if frame["type"] == "notification":
                self.shown.append(frame["data"])


@contextlib.asynccontextmanager
async def page_of(user: User) -> AsyncIterator[Page]:
    async with connect(GroupConsumer.as_asgi(), "/ws/", user=user) as client:
        page = Page(client)
        page.wake()
        yield page
        await page.sleep()


# -- sending


async def test_each_message_that_no_client_confirms_is_pushed_once(
    push_server: PushServer, anne: User, realtime_settings: Any
) -> None:
    realtime_settings(PONG_TIMEOUT=0.5)
    bob = await User.objects.acreate(username="bob")
    phone, tablet, of_bob = [
        await database_sync_to_async(push_server.device)(user) for user in (anne, anne, bob)
    ]
    messages = [{**MESSAGE, "id": str(number)} for number in range(6)]
    await send(anne, messages[0])  # no page is open
    async with page_of(bob):
        async with page_of(anne) as page:
            await send(anne, messages[1])
            await send(anne, messages[2])
            await page.sleep()
            await send(anne, messages[3])
        assert page.shown == messages[1:3]
        async with page_of(anne) as page:
            await send(anne, messages[4])
        assert page.shown == [messages[4]]
        await send(anne, messages[5])  # it was closed
    assert phone.messages == tablet.messages == [messages[0], messages[3], messages[5]]
    assert of_bob.messages == []


async def test_a_push_message_is_signed_and_encrypted(
    push_server: PushServer, anne: User, keys: dict[str, str]
) -> None:
    phone = await database_sync_to_async(push_server.device)(anne)
    await send(anne, MESSAGE)
    (body,), (authorization,) = phone.bodies, phone.authorizations
    assert MESSAGE["text"].encode() not in body
    assert phone.messages == [MESSAGE]
    signature = dict(part.split("=", 1) for part in authorization.removeprefix("vapid ").split(","))
    assert signature["k"] == keys["PUSH_PUBLIC_KEY"]
    assert Vapid02.verify(authorization)
    claims = json.loads(base64.urlsafe_b64decode(signature["t"].split(".")[1] + "=="))
    assert (claims["aud"], claims["sub"]) == (push_server.origin, "mailto:webmaster@example.com")


@pytest.mark.parametrize("status", [404, 410])
async def test_a_subscription_that_ended_is_deleted(push_server: PushServer, anne: User, status: int) -> None:
    gone, phone = [await database_sync_to_async(push_server.device)(anne) for _ in range(2)]
    gone.status = status
    await send(anne, MESSAGE)
    assert phone.messages == [MESSAGE]
    assert [each.endpoint async for each in subscriptions(anne).all()] == [phone.address]


async def test_a_push_service_that_fails_keeps_its_subscription(
    push_server: PushServer, anne: User, caplog: pytest.LogCaptureFixture
) -> None:
    failing, unreachable, phone = [await database_sync_to_async(push_server.device)(anne) for _ in range(3)]
    failing.status = 500
    await subscriptions(anne).filter(endpoint=unreachable.address).aupdate(endpoint="http://127.0.0.1:1/push")
    with caplog.at_level(logging.WARNING, logger="chat.sending"):
        await send(anne, MESSAGE)
    assert phone.messages == [MESSAGE]
    assert await subscriptions(anne).acount() == 3
    assert "A push message was not sent: " in caplog.text
    assert "A push service cannot be reached: " in caplog.text


async def test_the_task_sends_after_the_commit(
    push_server: PushServer, anne: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await database_sync_to_async(push_server.device)(anne)
    tasks = importlib.import_module("chat.tasks")
    # In the place of a worker.
    monkeypatch.setattr(tasks.deliver, "delay", tasks.deliver)

    def in_a_transaction() -> None:
        with transaction.atomic():
            tasks.deliver_after_commit(anne.pk, MESSAGE)
            assert phone.messages == []

    await database_sync_to_async(in_a_transaction)()
    assert phone.messages == [MESSAGE]


async def test_a_user_who_falls_asleep_is_pushed_to_once(push_server: PushServer, anne: User) -> None:
    phone = await database_sync_to_async(push_server.device)(anne)
    importlib.import_module("chat.receivers")
    opening = an_opening(anne.pk, user_id=str(anne.pk))
    await signals.send(connection_dormant, type(opening), connection=opening)
    assert [message["id"] for message in phone.messages] == ["more"]


# -- subscribing


def subscribe(browser: Browser, sent: object) -> int:
    return int(browser.post("/push/", json.dumps(sent), content_type="application/json").status_code)


@pytest.mark.usefixtures("chat")
def test_the_view_stores_the_subscription_of_the_user(anne: User, client: Browser) -> None:
    device = Device("https://fcm.googleapis.com/fcm/send/abc")
    assert subscribe(client, device.subscription) == 302
    for user in (User.objects.create_user("bob"), anne):
        client.force_login(user)
        assert subscribe(client, device.subscription) == 204
    (stored,) = apps.get_model("chat", "PushSubscription").objects.all()
    assert (stored.user, stored.endpoint) == (anne, device.address)
    assert {"p256dh": stored.p256dh, "auth": stored.auth} == device.subscription["keys"]


@pytest.mark.usefixtures("chat")
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://fcm.googleapis.com/abc",
        "https://127.0.0.1/abc",
        "https://evilpush.apple.com.example.com/",
        "https://notpush.apple.com/",
        "https://[/",
        "",
        None,
        7,
    ],
)
def test_the_view_refuses_other_servers(anne: User, client: Browser, endpoint: object) -> None:
    client.force_login(anne)
    assert subscribe(client, {**Device("").subscription, "endpoint": endpoint}) == 400


@pytest.mark.usefixtures("chat")
@pytest.mark.parametrize("sent", [None, [], {}, {"endpoint": "https://push.apple.com/a", "keys": None}])
def test_the_view_refuses_what_is_no_subscription(anne: User, client: Browser, sent: object) -> None:
    client.force_login(anne)
    assert subscribe(client, sent) == 400


# -- the page and its worker, in Node.js

_STUBS = """
const log = [];
const listeners = {};
const worker = {
  showNotification: async (title, options) => log.push(["shown", title, options]),
  pushManager: { subscribe: async (options) => ({ options, endpoint: "https://push.apple.com/a" }) },
};
"""

_AROUND_THE_WORKER = """
globalThis.self = {
  addEventListener: (name, listener) => (listeners[name] = listener),
  registration: worker,
  clients: { openWindow: async (url) => log.push(["opened", url]) },
};
%s
const waiting = [];
const waitUntil = (promise) => waiting.push(promise);
listeners.push({ data: { json: () => ({ id: "41", title: "Anne", text: "Hello" }) }, waitUntil });
listeners.notificationclick({ notification: { close: () => log.push(["closed"]) }, waitUntil });
await Promise.all(waiting);
console.log(JSON.stringify(log));
"""

_AROUND_THE_PAGE = """
class RealtimeConnection {
  addEventListener(name, listener) { listeners[name] = listener; }
  connect() { log.push(["connected"]); }
}
const define = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true });
const registered = [];
define("navigator", {
  serviceWorker: { register: (path) => registered.push(path), ready: Promise.resolve(worker) },
});
define("Notification", { permission: "granted" });
define("document", {
  hidden: false,
  createElement: () => ({}),
  getElementById: (id) => ({
    append: (line) => log.push(["line", line.textContent]),
    addEventListener: (name, listener) => (listeners[id] = listener),
  }),
  querySelector: () => ({ value: "the token" }),
});
define("fetch", async (path, { method, headers, body }) => {
  log.push([method, path, headers, JSON.parse(body)]);
});
%s
const notify = (id) => listeners.notification({ detail: { data: { id, title: "Anne", text: id } } });
await notify("1");
await notify("1");
document.hidden = true;
await notify("2");
await listeners.push();
console.log(JSON.stringify([registered, log]));
"""


def node(folder: Path, program: str) -> Any:
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs Node.js (apt-get install nodejs)")
    file = folder / "program.mjs"
    file.write_text(_STUBS + program)
    done = subprocess.run([found, str(file)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.usefixtures("chat")
def test_the_worker_shows_what_is_pushed(tmp_path: Path, client: Browser) -> None:
    served = client.get("/push.js")
    assert served["Content-Type"] == "text/javascript"
    message = {"id": "41", "title": "Anne", "text": "Hello"}
    assert node(tmp_path, _AROUND_THE_WORKER % served.content.decode()) == [
        ["shown", "Anne", {"body": "Hello", "tag": "41", "data": message}],
        ["closed"],
        ["opened", "/chat/"],
    ]


@pytest.mark.usefixtures("chat")
def test_the_page_shows_each_message_once(tmp_path: Path, client: Browser, keys: dict[str, str]) -> None:
    script = client.get("/chat/").content.decode().partition('<script type="module">')[2]
    imports = '  import { RealtimeConnection } from "/static/realtime/realtime.js";\n'
    assert imports in script
    script = script.partition("</script>")[0].replace(imports, "")
    registered, log = node(tmp_path, _AROUND_THE_PAGE % script)
    second = {"id": "2", "title": "Anne", "text": "2"}
    headers = {"Content-Type": "application/json", "X-CSRFToken": "the token"}
    options = {"userVisibleOnly": True, "applicationServerKey": keys["PUSH_PUBLIC_KEY"]}
    assert registered == ["/push.js"]
    assert log == [
        ["connected"],
        ["line", "Anne: 1"],
        ["line", "Anne: 2"],
        ["shown", "Anne", {"body": "2", "tag": "2", "data": second}],
        ["POST", "/push/", headers, {"options": options, "endpoint": "https://push.apple.com/a"}],
    ]


# -- the test on the page

_names: dict[str, Any] = {"__name__": __name__}
exec(compile(_example, PAGE, "exec"), _names)  # noqa: S102 - our own documentation
AwakeTest: type[TestCase] = _names["AwakeTest"]
