"""The views for operators, as strangers and operators see them through Django."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client

from realtime import operators, urls

pytestmark = pytest.mark.urls(__name__)

urlpatterns = urls.urlpatterns

RealtimeSettings = Callable[..., None]

GUARDED = ("/metrics", "/health/ready")
PROXY, STRANGER = "10.0.0.1", "203.0.113.9"
FORBIDDEN = b"Only operators may see this.\n"


@pytest.fixture(autouse=True)
def new_refusals(memory_layer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "refusals", operators.Refusals())


class ClientAt(AsyncClient):
    """Django's client with an address (None is a Unix socket), and with headers as a server reads them."""

    def __init__(self, peer: str | None, headers: dict[str, str]) -> None:
        super().__init__()
        self.peer = peer
        self.raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def _base_scope(self, **request: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._base_scope(**request)
        return scope | {
            "client": self.peer and [self.peer, 51_000],
            "headers": [*scope["headers"], *self.raw],
        }


async def ask(path: str, peer: str | None = "127.0.0.1", **headers: str) -> HttpResponse:
    return await ClientAt(peer, headers).get(path)


@pytest.mark.parametrize("path", GUARDED)
async def test_a_stranger_gets_403_and_learns_nothing(path: str) -> None:
    answer = await ask(path, STRANGER)

    assert (answer.status_code, answer.content) == (403, FORBIDDEN)
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_program_of_this_machine_is_an_operator(path: str, peer: str) -> None:
    answer = await ask(path, peer)

    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"


async def test_liveness_is_for_all() -> None:
    assert (await ask("/health/live", STRANGER, **{"X-Forwarded-For": STRANGER})).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto", "X-Forwarded-Host"],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", None])
async def test_what_an_undeclared_proxy_forwards_is_a_strangers(
    realtime_settings: RealtimeSettings, header: str, peer: str | None
) -> None:
    realtime_settings(OPERATORS=["127.0.0.1", "::1", "unix", "proxies"])

    assert (await ask("/metrics", peer, **{header: "127.0.0.1"})).status_code == 403


async def test_a_proxy_is_an_operator_and_its_clients_are_not(realtime_settings: RealtimeSettings) -> None:
    realtime_settings(TRUSTED_PROXIES=[PROXY])

    assert (await ask("/health/ready", PROXY)).status_code == 200
    assert (await ask("/health/ready", PROXY, **{"X-Forwarded-For": STRANGER})).status_code == 403
    assert (await ask("/health/ready", PROXY, **{"X-Forwarded-Proto": "https"})).status_code == 403


async def test_an_operator_behind_a_proxy_is_known(
    realtime_settings: RealtimeSettings,
) -> None:
    realtime_settings(TRUSTED_PROXIES=[PROXY], OPERATORS=["192.0.2.0/24"])

    assert (await ask("/metrics", PROXY, **{"X-Forwarded-For": "192.0.2.7"})).status_code == 200
    assert (await ask("/metrics", PROXY)).status_code == 403
    assert (await ask("/metrics", "192.0.2.7")).status_code == 200
    # A host that is no proxy may not speak for others, not even for operators.
    assert (await ask("/metrics", "192.0.2.7", **{"X-Forwarded-For": "192.0.2.7"})).status_code == 403


async def test_a_header_with_underscores_forwards_nothing(realtime_settings: RealtimeSettings) -> None:
    realtime_settings(TRUSTED_PROXIES=[PROXY], OPERATORS=["192.0.2.7"])

    spoofed = {"X_Forwarded_For": "192.0.2.7", "X-Forwarded-For": STRANGER}
    assert (await ask("/metrics", PROXY, **spoofed)).status_code == 403
    assert (await ask("/metrics", PROXY, X_Forwarded_For="192.0.2.7")).status_code == 403


async def test_a_unix_socket_is_an_operator_if_it_is_listed(realtime_settings: RealtimeSettings) -> None:
    assert (await ask("/metrics", None)).status_code == 403
    realtime_settings(OPERATORS=["unix"])
    assert (await ask("/metrics", None)).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_the_views_are_guarded_under_wsgi_too(path: str) -> None:
    client = Client()

    assert client.get(path).status_code == 200
    assert client.get(path, REMOTE_ADDR=STRANGER).status_code == 403
    # A server on a Unix socket gives an empty address.
    assert client.get(path, REMOTE_ADDR="").status_code == 403
    assert client.get(path, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403


@pytest.mark.parametrize(
    ("details", "client"), [("full", STRANGER), ("network", "203.0.113.0"), ("none", "a client")]
)
async def test_the_log_names_the_setting_once(
    realtime_settings: RealtimeSettings, caplog: pytest.LogCaptureFixture, details: str, client: str
) -> None:
    realtime_settings(CLIENT_DETAILS=details)
    with caplog.at_level(logging.WARNING, logger="realtime.views"):
        for _ in range(20):
            await ask("/metrics", STRANGER)

    (line,) = [record.getMessage() for record in caplog.records if record.name == "realtime.views"]
    assert line == f'Refused /metrics to {client}: it is not in REALTIME["OPERATORS"]'
