"""Which pages may open a WebSocket of the demo project."""

import pytest
from pytest_django import Settings

from project.origin import OriginCheck

HOSTS = ["shop.example", "127.0.0.1"]


@pytest.fixture(autouse=True)
def site(settings: Settings) -> Settings:
    settings.ALLOWED_HOSTS = HOSTS
    settings.CSRF_TRUSTED_ORIGINS = ["https://admin.example", "https://*.trusted.example"]
    return settings


def allows(origin: str | None, *, host: str = "shop.example", **more: object) -> bool:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])
    scope = {"type": "websocket", "path": "/ws/", "headers": headers, "server": ["127.0.0.1", 8000], **more}
    return OriginCheck(None).allows(scope)


def test_a_client_that_is_no_browser_sends_no_origin_and_is_let_in() -> None:
    assert allows(None)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://shop.example", "shop.example"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
    ],
)
def test_a_page_of_the_same_site_is_let_in(origin: str, host: str) -> None:
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


def test_a_page_whose_name_was_pointed_at_this_server_is_refused() -> None:
    # DNS rebinding: Origin and Host agree, and neither is ours.
    assert not allows("http://evil.example:8000", host="evil.example:8000")


def test_any_host_allowed_does_not_mean_any_page(site: Settings) -> None:
    site.ALLOWED_HOSTS = ["*"]

    assert allows("http://anything.example", host="anything.example")
    assert not allows("http://evil.example", host="shop.example")


@pytest.mark.parametrize(
    "origin", ["https://admin.example", "https://a.trusted.example", "https://a.b.trusted.example"]
)
def test_a_trusted_origin_is_let_in(origin: str) -> None:
    assert allows(origin)


@pytest.mark.parametrize(
    "origin", ["http://admin.example", "https://admin.example:444", "https://eviltrusted.example"]
)
def test_nearly_a_trusted_origin_is_refused(origin: str) -> None:
    assert not allows(origin)


def test_the_scheme_behind_a_proxy_is_what_django_is_told_to_believe(site: Settings) -> None:
    site.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    headers = [
        (b"host", b"shop.example"),
        (b"x-forwarded-proto", b"https"),
        (b"origin", b"https://shop.example"),
    ]

    assert allows(None, headers=headers)
    assert not allows("https://shop.example")


def test_a_server_that_ends_tls_itself_says_wss() -> None:
    assert allows("https://shop.example", scheme="wss")
    assert not allows("http://shop.example", scheme="wss")


def test_a_refusal_says_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    assert not allows("http://evil.example\n")

    assert "CSRF_TRUSTED_ORIGINS" in caplog.text
    assert r"'http://evil.example\n'" in caplog.text


async def test_a_refused_handshake_is_closed_before_the_application_sees_it() -> None:
    async def application(*_: object) -> None:
        pytest.fail("the application was called")

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    headers = [(b"host", b"shop.example"), (b"origin", b"http://evil.example")]
    await OriginCheck(application)({"type": "websocket", "path": "/ws/", "headers": headers}, receive, send)

    assert sent == ["websocket.close"]


async def test_an_allowed_handshake_reaches_the_application_with_the_servers_own_callables() -> None:
    # A transport recognises the server by its `send`, so nothing may be wrapped around it.
    given = []

    async def application(*arguments: object) -> None:
        given.extend(arguments)

    scope = {"type": "websocket", "path": "/ws/", "headers": [(b"host", b"shop.example")]}
    receive, send = object(), object()
    await OriginCheck(application)(scope, receive, send)

    assert [id(each) for each in given] == [id(scope), id(receive), id(send)]
