"""The admin's action to disconnect users, up to the messages to processes."""

import re

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import F
from django.db.models.functions import Now
from django.test import Client
from django.urls import path, reverse

from realtime.admin import ConnectionAdmin, PresentUserAdmin, ProcessAdmin
from realtime.models import Connection, PresentUser, Process
from tests.integration.admin.pages import (
    HOSTILE,
    USER,
    a_member_of_staff,
    confirm,
    page_of,
    post,
    words,
)
from tests.integration.admin.test_users import become_dormant, come, online
from tests.support.doubles.rows import a_process

pytestmark = pytest.mark.django_db

LIST = "/admin/realtime/presentuser/"


class RoomAdmin(ConnectionAdmin):
    """The admin of a project that shows only some connections to its staff."""

    def get_queryset(self, request):
        return super().get_queryset(request).filter(path__startswith="/ws/room/")


rooms = admin.AdminSite(name="rooms")
rooms.register(Connection, RoomAdmin)
rooms.register(Process, ProcessAdmin)
rooms.register(PresentUser, PresentUserAdmin)
users_alone = admin.AdminSite(name="users_alone")
users_alone.register(PresentUser, PresentUserAdmin)
#: With `urls = __name__`, these are the addresses of the project.
urlpatterns = [
    path("admin/", admin.site.urls),
    path("rooms/", rooms.urls),
    path("users/", users_alone.urls),
]


def rows_of(*users: str) -> list[int]:
    return [online(user).pk for user in users]


def text(response) -> str:
    return words(response.content.decode())


def test_all_connections_of_the_users_are_asked_in_all_processes(admin_client, told):
    one, two = a_process(channel_name="specific.one", pid=1), a_process(channel_name="specific.two", pid=2)
    phone, laptop = come(one, "7", "news"), come(two, "7")
    other, unselected = come(two, "8"), come(two, "9")

    response = post(admin_client, rows_of("7", "8"), LIST)
    page = text(response)
    assert told == []
    said = confirm(admin_client, response, LIST)

    assert "asked to disconnect 3 open connections" in page
    assert all(f"{each.id} {each.user_id} on " in page for each in (phone, laptop, other))
    assert sorted(told) == [
        ("specific.one", [str(phone.id)]),
        ("specific.two", sorted([str(laptop.id), str(other.id)])),
    ]
    assert str(unselected.id) not in str(told)
    assert said == ["Asked 2 processes to disconnect 3 connections."]


def test_users_and_connections_are_in_the_log_of_the_admin(admin_client, admin_user, told):
    held = come(a_process(), "7")

    confirm(admin_client, post(admin_client, rows_of("7"), LIST), LIST)

    entries = {entry.object_id: entry for entry in LogEntry.objects.all()}
    assert set(entries) == {str(held.id), str(online("7").pk)}
    assert {(entry.user, entry.change_message) for entry in entries.values()} == {
        (admin_user, "Asked to disconnect.")
    }
    history = page_of(admin_client, "admin:realtime_presentuser_history", online("7").pk)
    assert "Asked to disconnect." in history


def test_connections_opened_after_the_confirmation_are_asked_too(admin_client, told):
    process = a_process()
    first = come(process, "7")
    response = post(admin_client, rows_of("7"), LIST)
    second = come(process, "7")

    confirm(admin_client, response, LIST)

    assert [ids for _, ids in told] == [sorted([str(first.id), str(second.id)])]


def test_an_unreachable_process_is_named(admin_client, told):
    well = come(a_process(host="web-1", pid=1), "7")
    come(a_process(channel_name="specific.unreachable", host="web-2", pid=2), "7")

    said = confirm(admin_client, post(admin_client, rows_of("7"), LIST), LIST)

    assert [ids for _, ids in told] == [[str(well.id)]]
    assert said == [
        "Asked 1 process to disconnect 1 connection.",
        "web-2:2 could not be asked about 1 connection: The channel layer failed to kick (it is full).",
    ]


def test_a_dormant_user_has_nothing_to_disconnect(admin_client, told):
    become_dormant(a_process(), "7")

    response = post(admin_client, rows_of("7"), LIST)

    assert "have no open connections that can be disconnected" in text(response)
    assert confirm(admin_client, response, LIST) == ["These users have no open connections."]
    assert LogEntry.objects.count() == 0


def test_select_across_leaves_out_users_who_came_later(admin_client, told):
    process = a_process()
    held = [come(process, user) for user in ("7", "8")]
    PresentUser.objects.update(since=F("since") - (Now() - F("since")))

    response = post(admin_client, rows_of("7"), LIST, select_across="1")
    come(process, "9")
    PresentUser.objects.filter(user_id="9").update(since="2199-01-01T00:00:00Z")
    said = confirm(admin_client, response, LIST)

    assert [ids for _, ids in told] == [sorted(str(each.id) for each in held)]
    assert said == ["Asked 1 process to disconnect 2 connections."]


def test_one_action_disconnects_a_limited_number(admin_client, told, monkeypatch):
    monkeypatch.setattr(PresentUserAdmin, "disconnect_limit", 2)
    process = a_process()
    for _ in range(3):
        come(process, "7")

    response = post(admin_client, rows_of("7"), LIST)

    assert "the first 2 of the list. Repeat the action for the rest." in text(response)
    assert confirm(admin_client, response, LIST) == ["Asked 1 process to disconnect 2 connections."]


def test_a_confirmation_of_many_users_takes_few_queries(admin_client, told, django_assert_num_queries):
    process = a_process()
    for number in range(60):
        come(process, str(100 + number))
    few, many = rows_of("100"), rows_of(*map(str, range(100, 160)))
    post(admin_client, few, LIST)
    # Session and user. For the list: count, rows, usernames, details. For the plan: connections, processes,
    # usernames.
    for ids in (few, many):
        with django_assert_num_queries(9):
            assert post(admin_client, ids, LIST).status_code == 200


def test_the_button_of_a_user_shows_the_confirmation(admin_client, told):
    come(a_process(), "7")
    page = page_of(admin_client, USER, *rows_of("7"))

    form = re.search(r'<form id="rt-disconnect".*?</form>', page, re.DOTALL).group(0)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    response = admin_client.post(re.search(r'action="([^"]*)"', form).group(1), fields)
    assert "asked to disconnect 1 open connection." in text(response)

    become_dormant(a_process(), "8")
    assert 'id="rt-disconnect"' not in page_of(admin_client, USER, *rows_of("8"))


@pytest.mark.parametrize("permission", ["disconnect_connection", "change_connection"])
def test_the_permission_to_disconnect_is_enough(client, django_user_model, told, permission):
    client.force_login(
        a_member_of_staff(django_user_model, "view_presentuser", "view_connection", permission)
    )
    come(a_process(), "7")

    said = confirm(client, post(client, rows_of("7"), LIST), LIST)

    assert said == ["Asked 1 process to disconnect 1 connection."]


@pytest.mark.parametrize(
    "permissions",
    [
        ["view_presentuser"],
        ["view_presentuser", "view_connection"],
        ["view_presentuser", "disconnect_connection"],
        ["view_connection", "disconnect_connection"],
        ["view_presentuser", "change_presentuser", "view_connection"],
    ],
    ids="+".join,
)
def test_without_each_permission_no_user_is_disconnected(client, django_user_model, told, permissions):
    client.force_login(a_member_of_staff(django_user_model, *permissions))
    come(a_process(), "7")
    row = rows_of("7")

    post(client, row, LIST, confirmed="yes")

    assert told == []
    page = client.get(reverse(USER, args=row))
    assert b"rt-disconnect" not in page.content


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("across", [{}, {"select_across": "1"}], ids=["selected", "all"])
def test_only_connections_that_the_site_shows_are_disconnected(admin_client, told, across):
    process = a_process()
    shown, _ = come(process, "7", path="/ws/room/7/"), come(process, "7", path="/ws/other/")

    post(admin_client, rows_of("7"), "/rooms/realtime/presentuser/", confirmed="yes", **across)

    assert [ids for _, ids in told] == [[str(shown.id)]]


@pytest.mark.urls(__name__)
def test_a_site_without_connections_disconnects_no_users(admin_client, told):
    come(a_process(), "7")

    post(admin_client, rows_of("7"), "/users/realtime/presentuser/", confirmed="yes")

    assert told == []


@pytest.mark.parametrize("confirmed", [{}, {"confirmed": "yes"}], ids=["asked", "confirmed"])
@pytest.mark.parametrize("id", ["nonsense", "", "\0", str(2**63), "-" + "9" * 30, "1e3"])
def test_an_invalid_id_is_a_bad_request(admin_client, told, id, confirmed):
    come(a_process(), "7")

    assert post(admin_client, [*rows_of("7"), id], LIST, **confirmed).status_code == 400
    assert told == []


def test_a_confirmation_needs_the_csrf_token(admin_user, told):
    stranger = Client(enforce_csrf_checks=True)
    stranger.force_login(admin_user)
    come(a_process(), "7")

    assert post(stranger, rows_of("7"), LIST, confirmed="yes").status_code == 403
    assert told == []


def test_the_confirmation_escapes_text_from_clients(admin_client, told):
    come(a_process(), HOSTILE, path=f"/{HOSTILE}")

    page = post(admin_client, rows_of(HOSTILE), LIST).content.decode()

    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert") == 2
