"""The view of the demo project that names the users who are in a group."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from project import views
from realtime.records import presence_rows
from realtime.records.entries import Place

pytestmark = pytest.mark.django_db(transaction=True)  # Channels closes the connection of the thread


def came(group: str, *users: User) -> None:
    presence_rows.settle([Place(group, str(user.pk)) for user in users])


def ask(client: Client, group: str, *ids: object) -> tuple[int, dict[str, Any]]:
    response = client.get("/names", {"group": group, "id": [str(each) for each in ids]})
    return response.status_code, response.json()


def test_only_users_in_the_group_are_named(client: Client) -> None:
    anne = User.objects.create_user("anne", first_name="Anne", last_name="Lee")
    bob, eve = User.objects.create_user("bob"), User.objects.create_user("eve")
    came("public.lobby", anne, bob)
    came("public.other", eve)
    found = {"names": {str(anne.pk): "Anne Lee", str(bob.pk): "bob"}}
    assert ask(client, "public.lobby", anne.pk, bob.pk, eve.pk, "none", "\0", "") == (200, found)
    assert ask(client, "public.lobby") == (200, {"names": {}})


def test_names_of_a_group_go_to_those_who_may_see_it(client: Client) -> None:
    anne = User.objects.create_user("anne", is_staff=True)
    came("staff.news", anne)
    assert ask(client, "staff.news", anne.pk)[0] == 403
    client.force_login(User.objects.create_user("bob"))
    assert ask(client, "staff.news", anne.pk)[0] == 403
    client.force_login(anne)
    assert ask(client, "staff.news", anne.pk) == (200, {"names": {str(anne.pk): "anne"}})


@pytest.mark.parametrize("group", ["public.\0", "public.<b>", "public." + "g" * 100])
def test_a_name_that_no_group_has_is_refused(client: Client, group: str) -> None:
    assert ask(client, group, 1)[0] == 404


def test_names_are_asked_for_in_bounded_numbers(client: Client) -> None:
    ids = range(views.MAX_NAMES)
    assert ask(client, "public.lobby", *ids)[0] == 200
    assert ask(client, "public.lobby", *ids, "one more")[0] == 400


def test_answers_with_names_are_not_stored_by_caches(client: Client) -> None:
    assert "no-store" in client.get("/names", {"group": "public.lobby"})["Cache-Control"]
    assert client.post("/names").status_code == 405
