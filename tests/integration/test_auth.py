"""Tests of the user and the session that a consumer finds in its scope."""

from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack as FullAuthMiddlewareStack
from channels.auth import login
from channels.db import database_sync_to_async
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.db import SessionStore
from django.test import Client
from django.utils.functional import SimpleLazyObject

from realtime.auth import AuthMiddlewareStack

pytestmark = pytest.mark.django_db(transaction=True)  # Channels looks for the user in another thread


async def scope_of(stack: Any, cookie: str = "", **changes: Any) -> dict[str, Any]:
    """Return the scope with which the stack calls its application."""
    seen: list[dict[str, Any]] = []

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)

    headers = [(b"host", b"testserver")] + ([(b"cookie", cookie.encode("latin-1"))] if cookie else [])
    await stack(application)({"type": "websocket", "path": "/", "headers": headers, **changes}, None, None)
    return seen[0]


@database_sync_to_async
def logged_in_as(name: str) -> tuple[Any, str]:
    """Return a new user and the cookie header of its browser after a login."""
    user, client = get_user_model().objects.create_user(name), Client()
    client.force_login(user)
    return user, f"theme=dark; {django_settings.SESSION_COOKIE_NAME}={client.session.session_key}"


@pytest.mark.parametrize("cookie", ["", "theme=dark; csrftoken=abc", "nonsense"])
async def test_without_a_session_cookie_the_scope_is_as_in_channels(cookie: str) -> None:
    ours, theirs = [await scope_of(stack, cookie) for stack in (AuthMiddlewareStack, FullAuthMiddlewareStack)]
    assert set(ours) == set(theirs)
    assert ours["cookies"] == theirs["cookies"]
    assert ours["user"] == theirs["user"]
    assert isinstance(ours["user"], AnonymousUser)
    assert isinstance(ours["session"], SessionBase)
    assert (ours["session"].session_key, dict(ours["session"].items())) == (None, {})


async def test_without_a_session_cookie_no_user_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    async def get_user(scope: dict[str, Any]) -> AnonymousUser:
        asked.append(scope)
        return AnonymousUser()

    monkeypatch.setattr("channels.auth.get_user", get_user)
    await scope_of(AuthMiddlewareStack, "theme=dark")
    assert asked == []
    await scope_of(AuthMiddlewareStack, f"{django_settings.SESSION_COOKIE_NAME}=abc")
    assert len(asked) == 1


async def test_a_logged_in_user_is_in_the_scope() -> None:
    user, cookie = await logged_in_as("ada")
    scope = await scope_of(AuthMiddlewareStack, cookie)
    assert scope["user"] == user
    assert scope["user"].is_authenticated
    assert scope["cookies"]["theme"] == "dark"


async def test_the_cookie_may_have_another_name(settings: Any) -> None:
    settings.SESSION_COOKIE_NAME = "my_session"
    user, cookie = await logged_in_as("ada")
    assert cookie.partition("; ")[2].startswith("my_session=")
    assert (await scope_of(AuthMiddlewareStack, cookie))["user"] == user


async def test_a_session_that_has_ended_is_anonymous() -> None:
    scope = await scope_of(AuthMiddlewareStack, f"{django_settings.SESSION_COOKIE_NAME}=gone")
    assert not scope["user"].is_authenticated


async def test_a_handler_may_log_a_user_in() -> None:
    scope = await scope_of(AuthMiddlewareStack)
    user, _ = await logged_in_as("ada")
    await login(scope, user, backend="django.contrib.auth.backends.ModelBackend")
    await database_sync_to_async(scope["session"].save)()
    assert scope["user"] == user
    cookie = f"{django_settings.SESSION_COOKIE_NAME}={scope['session'].session_key}"
    assert (await scope_of(AuthMiddlewareStack, cookie))["user"] == user


async def test_a_user_that_is_already_in_the_scope_stays() -> None:
    user, _ = await logged_in_as("ada")
    scope = await scope_of(AuthMiddlewareStack, session=SimpleLazyObject(SessionStore), user=user)
    assert scope["user"] is user


async def test_the_scope_of_the_server_is_left_as_it_was() -> None:
    given: dict[str, Any] = {"type": "websocket", "path": "/", "headers": []}

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["mine"] = True

    await AuthMiddlewareStack(application)(given, None, None)
    assert given == {"type": "websocket", "path": "/", "headers": []}
