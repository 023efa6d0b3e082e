"""The admin's action to disconnect, up to the messages to processes.

`records/test_postgresql.py` repeats it on PostgreSQL.
"""

import html
import re
import uuid
from datetime import timedelta

import pytest
from channels.layers import channel_layers
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db.models.functions import Now
from django.test import Client
from django.urls import path, reverse

from realtime.admin import ConnectionAdmin, ProcessAdmin, disconnect
from realtime.closing import CloseReason
from realtime.layers import groups, messages
from realtime.models import Connection, Process
from realtime.process import background_loop
from realtime.records import connection_rows
from tests.integration.admin.pages import confirm, post
from tests.support.doubles.rows import USER_KEY, a_process, closings, make_lost, open_connections

pytestmark = pytest.mark.django_db

LIST = "/admin/realtime/connection/"


class RoomAdmin(ConnectionAdmin):
    """The admin of a project that shows only some connections to its staff."""

    def get_queryset(self, request):
        return super().get_queryset(request).filter(path__startswith="/ws/room/")


rooms = admin.AdminSite(name="rooms")
rooms.register(Connection, RoomAdmin)
rooms.register(Process, ProcessAdmin)
#: With `urls = __name__`, these are the addresses of the project.
urlpatterns = [path("admin/", admin.site.urls), path("rooms/", rooms.urls)]


def words(response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode())).split())


def test_the_confirmation_names_the_processes_and_asks_none(admin_client, told):
    one, two = a_process(host="web-1", pid=1), a_process(host="web-2", pid=2)
    ids = open_connections(one, 2) + open_connections(two, 1)

    page = words(post(admin_client, ids))

    assert "asked to disconnect 3 open connections" in page
    assert "web-1:1 2 web-2:2 1" in page
    assert all(f"{id} {USER_KEY} on /ws/" in page for id in ids)
    assert told == []


def test_a_confirmed_disconnect_asks_each_process(admin_client, told):
    one = a_process(channel_name="specific.one", pid=1)
    two = a_process(channel_name="other:specific.two", pid=2)
    mine, theirs, unselected = open_connections(one, 2), open_connections(two, 1), open_connections(two, 1)

    said = confirm(admin_client, post(admin_client, mine + theirs))

    assert sorted(told) == [
        ("other:specific.two", [str(theirs[0])]),
        ("specific.one", sorted(map(str, mine))),
    ]
    assert str(unselected[0]) not in str(told)
    assert said == ["Asked 2 processes to disconnect 3 connections."]
    # Only the process that holds a connection closes its record.
    assert Connection.objects.open().count() == 4


def test_a_disconnect_is_in_the_log_of_the_admin(admin_client, admin_user, told):
    (id,) = open_connections(a_process(), 1)

    confirm(admin_client, post(admin_client, [id]))

    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (
        admin_user,
        str(id),
        "Asked to disconnect.",
    )
    history = admin_client.get(reverse("admin:realtime_connection_history", args=[id]))
    assert "Asked to disconnect." in history.content.decode()


def test_an_unreachable_process_is_named_the_others_are_asked(admin_client, told):
    well = a_process(host="web-1", pid=1)
    unreachable = a_process(channel_name="specific.unreachable", host="web-2", pid=2)
    (mine,), theirs = open_connections(well, 1), open_connections(unreachable, 2)

    said = confirm(admin_client, post(admin_client, [mine, *theirs]))

    assert [connections for _, connections in told] == [[str(mine)]]
    assert said == [
        "Asked 1 process to disconnect 1 connection.",
        "web-2:2 could not be asked about 2 connections: The channel layer failed to kick (it is full).",
    ]
    assert [entry.object_id for entry in LogEntry.objects.all()] == [str(mine)]


def test_ten_of_many_unreachable_processes_are_named(admin_client, told):
    processes = [
        a_process(channel_name=f"{pid}.unreachable", host="web-1", pid=pid) for pid in range(1001, 1013)
    ]
    ids = [id for process in processes for id in open_connections(process, 1)]

    (said,) = confirm(admin_client, post(admin_client, ids))

    assert said.startswith("web-1:1001, web-1:1002, ")
    assert "web-1:1010 and 2 more could not be asked about 12 connections: The channel layer" in said


def test_a_bug_while_asking_is_not_reported_as_unreachable(admin_client, monkeypatch):
    async def tell(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(groups, "tell", tell)
    (id,) = open_connections(a_process(), 1)

    with pytest.raises(RuntimeError, match="a bug"):
        post(admin_client, [id], confirmed="yes")


def test_lost_and_closed_connections_are_named_as_such(admin_client, told):
    lost, well = a_process(host="web-1", pid=1), a_process(host="web-2", pid=2)
    held, (done,) = open_connections(lost, 2), open_connections(well, 1)
    make_lost(lost)
    connection_rows.close_connections(closings([done]), uuid.uuid4())

    response = post(admin_client, [*held, done])
    said = confirm(admin_client, response)

    assert "None of the selected connections can be disconnected." in words(response)
    assert "2 connections of web-1:1, which ended: no process holds them any more." in words(response)
    assert "1 is closed already." in words(response)
    assert 'type="submit" value="Disconnect' not in response.content.decode()
    assert said == [
        "2 connections of web-1:1, which ended: the next round closes these records.",
        "1 connection closed before.",
    ]
    assert told == []


def test_a_connection_that_closed_meanwhile_is_not_asked_for(admin_client, told):
    first, second = open_connections(a_process(), 2)
    address = f"{LIST}?state=open"
    response = post(admin_client, [first, second], address)
    connection_rows.close_connections(closings([first]), uuid.uuid4())

    said = confirm(admin_client, response, address)

    assert [connections for _, connections in told] == [[str(second)]]
    assert said == ["Asked 1 process to disconnect 1 connection.", "1 connection closed before."]


def test_a_connection_that_was_purged_meanwhile_is_reported(admin_client, told):
    (id,) = open_connections(a_process(), 1)
    response = post(admin_client, [id])
    Connection.objects.all().delete()

    assert confirm(admin_client, response) == ["None of these connections exists any more."]


def test_select_across_leaves_out_connections_opened_later(admin_client, told):
    process, other = a_process(pid=1), a_process(pid=2)
    ids = open_connections(process, 3)
    open_connections(other, 1)
    Connection.objects.update(opened_at=Now() - timedelta(seconds=5))
    address = f"{LIST}?process={process}"

    response = post(admin_client, ids[:1], address, select_across="1")
    (later,) = open_connections(process, 1)
    Connection.objects.filter(pk=later).update(opened_at=Now() + timedelta(seconds=5))
    said = confirm(admin_client, response, address)

    assert told == [(Process.objects.get(pk=process).channel_name, sorted(map(str, ids)))]
    assert said == ["Asked 1 process to disconnect 3 connections."]


def test_one_action_disconnects_a_limited_number(admin_client, told, monkeypatch):
    monkeypatch.setattr(ConnectionAdmin, "disconnect_limit", 2)
    ids = open_connections(a_process(), 3)

    response = post(admin_client, ids)

    assert "the first 2 of the list. Repeat the action for the rest." in words(response)
    assert confirm(admin_client, response) == ["Asked 1 process to disconnect 2 connections."]


def test_many_connections_are_asked_for_in_several_messages(told):
    one, two = a_process(channel_name="specific.one"), a_process(channel_name="specific.two")
    ids = open_connections(one, 5) + open_connections(two, 1)

    disconnect.carry_out(disconnect.plan(Connection.objects.all()), per_message=2)

    assert sorted(len(connections) for _, connections in told) == [1, 1, 2, 2]
    assert sorted(id for _, connections in told for id in connections) == sorted(map(str, ids))


def test_a_confirmation_of_many_connections_takes_few_queries(admin_client, told, django_assert_num_queries):
    process = a_process()
    few, many = open_connections(process, 1), open_connections(process, 100)
    post(admin_client, few)
    for ids in (few, many):
        # Session and user. For the list: count, rows, groups, usernames and twice the processes. For the
        # plan: connections, processes, usernames.
        with django_assert_num_queries(11):
            assert post(admin_client, ids).status_code == 200


def test_the_button_of_an_open_connection_shows_the_confirmation(admin_client, told):
    (id,) = open_connections(a_process(), 1)
    page_of_it = reverse("admin:realtime_connection_change", args=[id])

    form = re.search(
        r'<form id="rt-disconnect".*?</form>', admin_client.get(page_of_it).content.decode(), re.DOTALL
    ).group(0)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    response = admin_client.post(re.search(r'action="([^"]*)"', form).group(1), fields)
    assert "asked to disconnect 1 open connection." in words(response)

    connection_rows.close_connections(closings([id]), uuid.uuid4())
    assert 'id="rt-disconnect"' not in admin_client.get(page_of_it).content.decode()


@pytest.mark.parametrize("permission", ["disconnect_connection", "change_connection"])
def test_the_permission_to_disconnect_permits_no_change(client, django_user_model, told, permission):
    ada = django_user_model.objects.create_user("ada", is_staff=True)
    ada.user_permissions.set(Permission.objects.filter(codename__in=["view_connection", permission]))
    client.force_login(ada)
    (id,) = open_connections(a_process(), 1)

    said = confirm(client, post(client, [id]))

    assert said == ["Asked 1 process to disconnect 1 connection."]
    change = client.post(reverse("admin:realtime_connection_change", args=[id]), {"path": "/"})
    assert change.status_code == 403


@pytest.mark.parametrize("permissions", [["view_connection"], ["disconnect_connection"]])
def test_a_user_without_both_permissions_disconnects_nothing(client, django_user_model, told, permissions):
    ada = django_user_model.objects.create_user("ada", is_staff=True)
    ada.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(ada)
    (id,) = open_connections(a_process(), 1)

    post(client, [id], confirmed="yes")

    assert told == []


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("across", [{}, {"select_across": "1"}], ids=["selected", "all"])
def test_an_admin_disconnects_only_connections_that_it_shows(admin_client, told, across):
    shown, hidden = open_connections(a_process(), 2)
    Connection.objects.filter(pk=shown).update(path="/ws/room/7/")

    said = post(
        admin_client,
        [shown, hidden],
        "/rooms/realtime/connection/",
        confirmed="yes",
        follow=True,
        **across,
    )

    assert [connections for _, connections in told] == [[str(shown)]]
    assert [str(message) for message in said.context["messages"]] == [
        "Asked 1 process to disconnect 1 connection."
    ]


@pytest.mark.parametrize("confirmed", [{}, {"confirmed": "yes"}], ids=["asked", "confirmed"])
@pytest.mark.parametrize("id", ["nonsense", "", "\0"])
def test_an_invalid_id_is_a_bad_request(admin_client, told, id, confirmed):
    (well,) = open_connections(a_process(), 1)

    assert post(admin_client, [well, id], **confirmed).status_code == 400
    assert told == []


@pytest.mark.parametrize(
    "before",
    [
        "nonsense",
        "2020-13-45T99:99",
        "2020-01-01T00:00",
        "2020-01-01T00:00:00+99:99",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "\0",
    ],
)
def test_an_invalid_time_of_confirmation_is_a_bad_request(admin_client, told, before):
    (id,) = open_connections(a_process(), 1)

    response = post(admin_client, [id], select_across="1", before=before, confirmed="yes")

    assert response.status_code == 400
    assert told == []


def test_a_confirmation_works_without_time_zones(admin_client, told, settings):
    settings.USE_TZ = False
    (id,) = open_connections(a_process(), 1)
    Connection.objects.update(opened_at=Now() - timedelta(seconds=5))

    said = confirm(admin_client, post(admin_client, [id], select_across="1"))

    assert said == ["Asked 1 process to disconnect 1 connection."]


def test_a_confirmation_needs_the_csrf_token(admin_user, told):
    stranger = Client(enforce_csrf_checks=True)
    stranger.force_login(admin_user)
    (id,) = open_connections(a_process(), 1)

    assert post(stranger, [id], confirmed="yes").status_code == 403
    assert told == []


def test_the_confirmation_escapes_text_from_clients(admin_client, told):
    process = a_process(host="<script>1</script>")
    open_connections(process, 1)
    Connection.objects.update(path="/<script>2</script>", user_id="<script>3</script>")

    page = post(admin_client, Connection.objects.values_list("pk", flat=True)).content.decode()

    assert not re.search(r"<script>\d", page)
    assert len(re.findall(r"&lt;script&gt;\d", page)) == 3


def test_processes_are_asked_through_the_layer_with_a_kick(settings, admin_client):
    """Without a double: the event is read as the hub reads it."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.MemoryLayer"}}
    channel_layers.backends.clear()

    channel = background_loop.shared.run(groups.new_channel())
    (id,) = open_connections(a_process(channel_name=channel), 1)

    confirm(admin_client, post(admin_client, [id]))

    event = background_loop.shared.run(groups.receive_control(channel))
    assert messages.decode(event) == messages.Kick([id], [], CloseReason.KICKED.value)
