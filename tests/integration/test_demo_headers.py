"""The headers that protect the pages of the demo project."""

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import reverse

from project import csp

pytestmark = pytest.mark.django_db(transaction=True)  # Channels closes the connection of the thread

PAGES = ["index", "admin:login", "texts", "admin:index", "realtime-live"]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_a_strict_policy(client: Client, name: str) -> None:
    response = client.get(reverse(name))

    policy = response[csp.HEADER]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["X-Frame-Options"] == "DENY"


async def test_an_asynchronous_page_has_the_policy_too(async_client: AsyncClient) -> None:
    response = await async_client.get(reverse("realtime-live"))

    assert response[csp.HEADER] == csp.POLICY


def test_a_view_may_have_a_policy_of_its_own() -> None:
    own = HttpResponse(headers={csp.HEADER: "default-src 'self'"})

    assert csp._with_policy(own)[csp.HEADER] == "default-src 'self'"


@pytest.mark.parametrize(("debug", "has_policy"), [(True, False), (False, True)])
def test_only_the_error_pages_of_debug_have_none(
    client: Client, settings: object, debug: bool, has_policy: bool
) -> None:
    settings.DEBUG = debug  # type: ignore[attr-defined]

    assert client.get("/nowhere/").has_header(csp.HEADER) is has_policy
    assert client.get(reverse("realtime-live")).has_header(csp.HEADER)
