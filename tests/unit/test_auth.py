"""Tests of `realtime.auth.OriginCheck`: which pages may open a WebSocket."""

import pytest
from pytest_django import Settings

from realtime import metrics
from realtime.auth import OriginCheck
from realtime.limits import refusals
from realtime.rights.authorization import NEEDS_TICKET

HOSTS = ["shop.example", "127.0.0.1"]


@pytest.fixture(autouse=True)
def site(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings.REALTIME = {}
    # Each test sees the first refusal of its kind, which is logged.
    monkeypatch.setattr(refusals, "_tally", refusals.Tally(60, 100, refusals.OTHERS))
    settings.ALLOWED_HOSTS = HOSTS
    settings.CSRF_TRUSTED_ORIGINS = ["https://admin.example", "https://*.trusted.example"]
    return settings


def allows(origin: str | None, *, host: str = "shop.example", **more: object) -> bool:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])
    scope = {"type": "websocket", "path": "/ws/", "headers": headers, "server": ["127.0.0.1", 8000], **more}
    return OriginCheck(None).allows(scope)


def test_a_client_without_an_origin_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    # Every browser sends one, so the client is no browser.
    assert not allows(None)
    assert "ALLOW_MISSING_ORIGIN" in caplog.text


def test_a_setting_accepts_clients_without_an_origin(site: Settings) -> None:
    site.REALTIME = {"ALLOW_MISSING_ORIGIN": True}
    assert allows(None)


@pytest.mark.parametrize(
    "handshake",
    [{"query_string": b"a=1&ticket=abc"}, {"subprotocols": ["realtime.v1", "realtime.ticket.abc"]}],
    ids=["query", "subprotocol"],
)
async def test_without_an_origin_a_ticket_must_be_verified(handshake: dict[str, object]) -> None:
    given: list[dict[str, object]] = []

    async def application(scope: dict[str, object], receive: object, send: object) -> None:
        given.append(scope)

    scope = {"type": "websocket", "path": "/ws/", "headers": [(b"host", b"shop.example")], **handshake}
    await OriginCheck(application)(scope, None, None)
    assert given[0][NEEDS_TICKET] is True
    assert "abc" not in repr(given[0])


def test_a_ticket_does_not_open_the_door_to_other_sites() -> None:
    assert not allows("http://evil.example", query_string=b"ticket=abc")


def test_an_allowed_origin_is_accepted(site: Settings) -> None:
    site.REALTIME = {"ALLOWED_ORIGINS": ["https://app.example", "https://*.apps.example"]}
    assert allows("https://app.example")
    assert allows("https://a.apps.example")
    assert not allows("https://app.example.evil.example")
    assert not allows("http://app.example")


def test_the_origin_null_is_refused_whatever_the_lists_say(
    site: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    # A sandboxed frame of any site has it.
    site.REALTIME = {"ALLOW_MISSING_ORIGIN": True}
    site.CSRF_TRUSTED_ORIGINS = ["null"]
    assert not allows("null")
    assert not allows("null", query_string=b"ticket=abc")
    assert "no list can allow it" in caplog.text


@pytest.mark.parametrize(
    "origin",
    [
        r"https://evil.example\.apps.example",
        "https://evil.example@a.apps.example",
        "https://a.apps.example/path",
        "https://a.apps.example?",
        "https://evil\t.apps.example",
        "https://A.apps.example",
        "https://b\xfccher.apps.example",
        "https://evilapps.example",
        "https://a.apps.example:444",
    ],
)
def test_a_wildcard_takes_only_what_a_browser_sends(site: Settings, origin: str) -> None:
    site.REALTIME = {"ALLOWED_ORIGINS": ["https://*.apps.example"]}
    assert not allows(origin)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://shop.example", "shop.example"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
    ],
)
def test_a_page_of_the_same_site_is_accepted(origin: str, host: str) -> None:
    assert allows(origin, host=host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://shop.example.evil.example",
        "http://shop.example:8001",  # another program's port
        "https://shop.example",  # another scheme
        "http://shop.example/path",
        "http://evil.example@shop.example",
        "null",  # a sandboxed frame, a file
        "",
        "http://[broken",
        "\xff\xfe",
    ],
)
def test_a_page_of_another_site_is_refused(origin: str) -> None:
    assert not allows(origin)


def test_a_foreign_name_for_this_server_is_refused() -> None:
    # DNS rebinding: Origin and Host agree, and neither is in ALLOWED_HOSTS.
    assert not allows("http://evil.example:8000", host="evil.example:8000")


def test_any_host_allowed_does_not_mean_any_page(site: Settings) -> None:
    site.ALLOWED_HOSTS = ["*"]

    assert allows("http://anything.example", host="anything.example")
    assert not allows("http://evil.example", host="shop.example")


@pytest.mark.parametrize(
    "origin", ["https://admin.example", "https://a.trusted.example", "https://a.b.trusted.example"]
)
def test_a_trusted_origin_is_accepted(origin: str) -> None:
    assert allows(origin)


@pytest.mark.parametrize(
    "origin", ["http://admin.example", "https://admin.example:444", "https://eviltrusted.example"]
)
def test_nearly_a_trusted_origin_is_refused(origin: str) -> None:
    assert not allows(origin)


def test_the_scheme_behind_a_proxy_follows_djangos_setting(site: Settings) -> None:
    site.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    headers = [
        (b"host", b"shop.example"),
        (b"x-forwarded-proto", b"https"),
        (b"origin", b"https://shop.example"),
    ]

    assert allows("ignored", headers=headers)
    assert not allows("https://shop.example")


def test_the_scheme_wss_is_https() -> None:
    assert allows("https://shop.example", scheme="wss")
    assert not allows("http://shop.example", scheme="wss")


def test_many_refusals_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def number() -> float:
        return metrics.limited.labels(limit="ALLOWED_ORIGINS")._value.get()

    before = number()
    for _ in range(50):
        assert not allows("http://evil.example")
    assert number() - before == 50
    assert len(caplog.records) == 1


def test_a_refusal_names_the_setting_to_change(caplog: pytest.LogCaptureFixture) -> None:
    assert not allows("http://evil.example\n")

    assert "CSRF_TRUSTED_ORIGINS" in caplog.text
    assert r"'http://evil.example\n'" in caplog.text


async def test_a_refused_handshake_never_reaches_the_application() -> None:
    async def application(*_: object) -> None:
        pytest.fail("the application was called")

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    headers = [(b"host", b"shop.example"), (b"origin", b"http://evil.example")]
    await OriginCheck(application)({"type": "websocket", "path": "/ws/", "headers": headers}, receive, send)

    assert sent == ["websocket.close"]


async def test_an_allowed_handshake_keeps_the_servers_callables() -> None:
    # A transport recognizes the server by its `send`, so a middleware must not wrap it.
    given: list[object] = []

    async def application(*arguments: object) -> None:
        given.extend(arguments)

    headers = [(b"host", b"shop.example"), (b"origin", b"http://shop.example")]
    scope = {"type": "websocket", "path": "/ws/", "headers": headers}
    receive, send = object(), object()
    await OriginCheck(application)(scope, receive, send)

    assert [id(each) for each in given] == [id(scope), id(receive), id(send)]


def test_a_connection_that_is_no_websocket_is_an_error() -> None:
    with pytest.raises(ValueError, match="WebSockets only"):
        OriginCheck(None)({"type": "http", "headers": []}, None, None)
