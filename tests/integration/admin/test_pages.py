"""The pages of the admin; `records/test_postgresql.py` repeats it on PostgreSQL."""

import html
import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin.sites import site
from django.db.models import F
from django.db.models.functions import Now
from django.urls import reverse

from realtime.admin import ConnectionAdmin, disconnect, filters, people, search
from realtime.admin.connections import NEWEST
from realtime.admin.readonly import BoundedPaginator
from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process, Round
from realtime.records import connection_rows, process_rows
from tests.integration.admin.pages import (
    CONNECTION,
    CONNECTIONS,
    HOSTILE,
    NOTHING,
    PROCESS,
    PROCESSES,
    a_member_of_staff,
    cells,
    fields,
    listed,
    page_of,
    queries_of,
    words,
)
from tests.support.doubles.rows import (
    USER_KEY,
    a_process,
    an_opening,
    closings,
    joins,
    make_lost,
    open_connections,
)
from tests.support.programs.servers import CHECKOUT

pytestmark = pytest.mark.django_db


def closed(id: uuid.UUID, reason: CloseReason) -> str:
    connection_rows.close_connections(closings([id], reason), uuid.uuid4())
    return str(id)


# -- the list of connections -----------------------------------------------------------------------


def test_the_list_shows_what_is_known_of_an_open_connection(admin_client, django_user_model):
    ada = django_user_model.objects.create_user("ada")
    process = a_process(host="web-1", pid=4711)
    firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
    opening = an_opening(process, path="/ws/news/", user_id=str(ada.pk), user_agent=firefox)
    connection_rows.open_connections([opening])
    connection_rows.open_memberships(joins(process, [opening.id], "b", "c", "a", "e", "d"))
    Connection.objects.update(opened_at=F("opened_at") - timedelta(seconds=192.5))
    Connection.objects.update(last_seen_at=F("last_seen_at") - timedelta(seconds=12.5))

    assert cells(admin_client, CONNECTIONS) == {
        "connection": f"open {str(opening.id)[:8]}",
        "user_and_groups": "ada a b c and 2 more",
        "path_and_process": "/ws/news/ web-1:4711",
        "client": "192.0.2.1 Firefox 145 on Linux",
        "opened": "3 min ago 3 min 12 s",
        "last_seen_and_reason": "12 s ago",
    }


def test_the_list_links_to_the_connection_and_its_process(admin_client):
    process = a_process()
    (id,) = open_connections(process, 1)

    page = page_of(admin_client, CONNECTIONS)

    assert f'href="{reverse(CONNECTION, args=[id])}" title="{id}"' in page
    assert f'href="{reverse(PROCESS, args=[process])}"' in page


def test_the_list_has_full_times_in_tooltips(admin_client):
    open_connections(a_process(), 1)

    assert re.search(r'<time datetime="[^"]+" title="\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC">0 s ago</time>',
                     page_of(admin_client, CONNECTIONS))  # fmt: skip


def test_the_list_shows_close_reason_and_lifetime(admin_client):
    (id,) = open_connections(a_process(), 1)
    Connection.objects.update(opened_at=F("opened_at") - timedelta(seconds=7500.5), user_id="")
    closed(id, CloseReason.SLOW_CONSUMER)

    shown = cells(admin_client, CONNECTIONS)

    assert shown["connection"].startswith("closed ")
    assert shown["opened"] == "2 h ago 2 h 5 min"
    assert shown["last_seen_and_reason"] == "0 s ago slow_consumer"
    assert shown["user_and_groups"].startswith("anonymous")
    assert CloseReason.SLOW_CONSUMER.text in page_of(admin_client, CONNECTIONS)


def test_an_open_record_of_an_ended_or_silent_process_is_suspect(admin_client):
    def state() -> str:
        return cells(admin_client, CONNECTIONS)["connection"].split()[0]

    process = a_process()
    open_connections(process, 1)
    assert state() == "open"
    process_rows.judge(1, [process], misses_allowed=1)
    assert state() == "suspect"
    process_rows.answer_round(process, 2, connections=1, loop_lag=0.0)
    assert state() == "open"
    make_lost(process, number=3)
    assert state() == "suspect"
    assert "the next round closes this record" in page_of(admin_client, CONNECTIONS)


def test_the_newest_connection_is_first(admin_client):
    oldest, middle, newest = open_connections(a_process(), 3)
    for id, age in ((oldest, 9), (middle, 5)):
        Connection.objects.filter(pk=id).update(opened_at=Now() - timedelta(seconds=age))

    assert listed(admin_client, CONNECTIONS) == [str(newest), str(middle), str(oldest)]


def test_the_list_names_three_of_a_thousand_groups(admin_client):
    process = a_process()
    (id,) = open_connections(process, 1)
    connection_rows.open_memberships(joins(process, [id], *[f"g{n:04}" for n in range(1001)]))

    assert (
        cells(admin_client, CONNECTIONS)["user_and_groups"] == f"{USER_KEY} g0000 g0001 g0002 and 997+ more"
    )


def test_groups_that_were_left_are_not_shown(admin_client):
    process = a_process()
    ids = open_connections(process, 1)
    connection_rows.open_memberships(joins(process, ids, "gone"))
    connection_rows.mark_memberships_left(joins(process, ids, "gone"))

    assert "gone" not in cells(admin_client, CONNECTIONS)["user_and_groups"]


# -- users -----------------------------------------------------------------------------------------


def test_keys_without_a_user_are_shown_as_they_are(admin_client):
    for key in ("2000000404", "no number", "9" * 255, "-1", "1.5", "+1", "01", "\u0661"):
        Connection.objects.all().delete()
        connection_rows.open_connections([an_opening(a_process(), user_id=key)])
        assert cells(admin_client, CONNECTIONS)["user_and_groups"] == f"{key} {NOTHING}"


class FakePk:
    """The primary key of a user model that has UUIDs."""

    def clean(self, value: str, instance: object) -> uuid.UUID:
        return uuid.UUID(value)


def test_usernames_are_found_with_any_user_model(monkeypatch):
    key, asked = uuid.uuid4(), []

    class Users:
        def filter(self, **query: object) -> "Users":
            asked.append(query)
            return self

        def values_list(self, *columns: str) -> list[tuple[uuid.UUID, str]]:
            assert columns == ("pk", "email")
            return [(key, "ada@example.com")]

    class Person:
        USERNAME_FIELD = "email"
        _base_manager = Users()
        _meta = type("Meta", (), {"pk": FakePk()})

    monkeypatch.setattr(people, "get_user_model", lambda: Person)

    assert people.usernames([str(key), "", str(key)]) == {str(key): "ada@example.com"}
    assert asked == [{"pk__in": {key: str(key)}}]


# -- filters ---------------------------------------------------------------------------------------


def test_connections_are_filtered_by_state_and_reason(admin_client):
    still_open, lost, idle = open_connections(a_process(), 3)
    closed(lost, CloseReason.CLIENT_LOST)
    closed(idle, CloseReason.IDLE)

    def found(**query: str) -> set[str]:
        return set(listed(admin_client, CONNECTIONS, **query))

    assert found() == {str(still_open), str(lost), str(idle)}
    assert found(state="open") == {str(still_open)}
    assert found(state="closed") == {str(lost), str(idle)}
    assert found(state="suspect") == set()
    assert found(reason="idle") == {str(idle)}
    assert found(reason="idle", state="open") == set()


def test_those_that_closed_last_come_first_among_the_closed(admin_client):
    first, last = open_connections(a_process(), 2)
    closed(last, CloseReason.IDLE)
    closed(first, CloseReason.IDLE)
    Connection.objects.filter(pk=last).update(closed_at=Now() - timedelta(seconds=5))

    assert listed(admin_client, CONNECTIONS, state="closed") == [str(first), str(last)]


def test_the_filter_finds_suspect_connections(admin_client):
    well, silent, lost = (a_process(pid=pid) for pid in range(3))
    open_connections(well, 1)
    (asked,) = open_connections(silent, 1)
    held, swept = open_connections(lost, 2)
    process_rows.judge(1, [silent], misses_allowed=1)
    make_lost(lost)
    closed(swept, CloseReason.SERVER_LOST)

    assert set(listed(admin_client, CONNECTIONS, state="suspect")) == {str(asked), str(held)}


def test_connections_are_filtered_by_process(admin_client):
    process, other = a_process(pid=1), a_process(pid=2)
    (mine,) = open_connections(process, 1)
    open_connections(other, 1)

    assert listed(admin_client, CONNECTIONS, process=str(process)) == [str(mine)]
    assert listed(admin_client, CONNECTIONS, process="no uuid") == []


def test_the_filter_names_running_and_chosen_processes(admin_client, monkeypatch):
    monkeypatch.setattr(filters.ProcessFilter, "limit", 2)
    for pid in (3, 1, 2):
        a_process(host="web-1", pid=pid)
    ended = a_process(host="web-9", pid=9)
    process_rows.stop_process(ended)

    named = words(page_of(admin_client, CONNECTIONS))
    chosen = words(page_of(admin_client, CONNECTIONS, process=str(ended)))

    assert "Process: All All web-1:1 web-1:2 Reason" in named
    assert "Process: web-9:9 All web-1:1 web-1:2 web-9:9 Reason" in chosen


def test_connections_are_filtered_by_a_current_group(admin_client):
    one, two = a_process(pid=1), a_process(pid=2)
    (first,), (second,) = open_connections(one, 1), open_connections(two, 1)
    connection_rows.open_memberships(joins(one, [first], "news", "sport"))
    connection_rows.open_memberships(joins(two, [second], "news"))
    connection_rows.mark_memberships_left(joins(one, [first], "sport"))

    assert set(listed(admin_client, CONNECTIONS, group=" news ")) == {str(first), str(second)}
    assert listed(admin_client, CONNECTIONS, group="news", process=str(two)) == [str(second)]
    assert listed(admin_client, CONNECTIONS, group="sport") == []
    assert len(listed(admin_client, CONNECTIONS, group="")) == 2


def test_the_filter_reads_a_limited_number_of_members(admin_client, monkeypatch):
    monkeypatch.setattr(filters.GroupFilter, "limit", 2)
    process = a_process()
    connection_rows.open_memberships(joins(process, open_connections(process, 3), "news"))

    assert len(listed(admin_client, CONNECTIONS, group="news")) == 2


def test_the_group_field_keeps_other_filters_and_the_search(admin_client):
    open_connections(a_process(), 1)

    page = page_of(admin_client, CONNECTIONS, group="old", state="open", q="7", p="1")

    form = re.search(r'<form class="rt-field".*?</form>', page, re.DOTALL).group(0)
    assert re.findall(r'name="(\w+)" value="(\w*)"', form) == [
        ("state", "open"),
        ("q", "7"),
        ("group", "old"),
    ]


# -- the date hierarchy ----------------------------------------------------------------------------


def test_a_day_narrows_the_list(admin_client):
    old, new = open_connections(a_process(), 2)
    Connection.objects.filter(pk=old).update(opened_at="2026-02-27T23:59:59Z")
    Connection.objects.filter(pk=new).update(opened_at="2026-02-28T00:00:00Z")

    page = page_of(admin_client, CONNECTIONS)
    link = re.search(r'<a href="(\?[^"]*)">February 28</a>', page).group(1)
    response = admin_client.get(reverse(CONNECTIONS) + html.unescape(link))

    assert [row.pk for row in response.context["cl"].result_list] == [new]
    assert "February 2026" in response.content.decode()


def test_a_day_that_is_none_is_refused_as_django_does(admin_client):
    open_connections(a_process(), 1)

    response = admin_client.get(reverse(CONNECTIONS), {"opened_at__year": "2026", "opened_at__month": "13"})

    assert response.headers["Location"].endswith("?e=1")


@pytest.mark.parametrize(
    "address",
    [
        "opened_at__day=99",
        "opened_at__day=0",
        "opened_at__day=99999999999999999999",
        "opened_at__month=13",
        "opened_at__year=1",
        "opened_at__year=9999&opened_at__month=12",
        "opened_at__year=9999&opened_at__month=12&opened_at__day=31",
        "opened_at__year=99999999999999999999",
        "opened_at__year=2026&opened_at__year=x",
    ],
)
def test_a_date_in_the_address_that_is_none_is_refused(admin_client, address):
    open_connections(a_process(), 1)

    response = admin_client.get(f"{reverse(CONNECTIONS)}?{address}")

    assert response.headers["Location"].endswith("?e=1")
    assert admin_client.get(response.headers["Location"]).status_code == 200


def test_a_day_without_its_year_selects_nothing(admin_client):
    open_connections(a_process(), 1)
    Connection.objects.update(opened_at="2026-02-28T12:00:00Z")

    assert listed(admin_client, CONNECTIONS, opened_at__month="2", opened_at__day="31") == []
    assert len(listed(admin_client, CONNECTIONS, opened_at__month="2", opened_at__day="28")) == 1


def test_an_empty_list_has_no_dates(admin_client):
    assert 'class="toplinks"' not in page_of(admin_client, CONNECTIONS)


# -- search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["7041", "198.51.100.9", "/ws/rare", "id", " id ", "grace"])
def test_a_connection_is_found_by_user_address_path_or_id(admin_client, django_user_model, text):
    process = a_process()
    django_user_model.objects.create_user("grace", pk=7041)
    wanted = an_opening(process, user_id="7041", remote_address="198.51.100.9", path="/ws/rare/")
    connection_rows.open_connections([wanted, an_opening(process)])

    assert listed(admin_client, CONNECTIONS, q=text.replace("id", str(wanted.id))) == [str(wanted.id)]


def test_a_user_with_a_uuid_as_key_is_found(admin_client):
    key = uuid.uuid4()
    wanted = an_opening(a_process(), user_id=str(key))
    connection_rows.open_connections([wanted, an_opening(wanted.process_id)])

    assert listed(admin_client, CONNECTIONS, q=key.hex.upper()) == [str(wanted.id)]


@pytest.mark.parametrize("text", ["zombie", "%", "/nowhere/", "::1", str(uuid.UUID(int=1)), "'--", "9" * 300])
def test_a_search_for_anything_else_finds_nothing(admin_client, text):  # fmt: skip
    open_connections(a_process(), 1)

    assert listed(admin_client, CONNECTIONS, q=text) == []


@pytest.mark.parametrize("text", ["/ws", "192.0.2.1"])
def test_paths_and_addresses_are_searched_among_the_newest(admin_client, monkeypatch, text):
    monkeypatch.setattr(ConnectionAdmin, "search_limit", 2)
    process = a_process()
    ids = open_connections(process, 3)
    for age, id in enumerate(ids):
        Connection.objects.filter(pk=id).update(opened_at=Now() - timedelta(seconds=age))
    newest, middle, oldest = map(str, ids)

    assert listed(admin_client, CONNECTIONS, q=text) == [newest, middle]
    closed(ids[0], CloseReason.IDLE)
    assert listed(admin_client, CONNECTIONS, q=text, state="open") == [middle, oldest]


# -- the page of a connection ----------------------------------------------------------------------


def test_the_page_of_a_connection_shows_its_fields(admin_client):
    process = a_process(host="web-1", pid=4711)
    (id,) = open_connections(process, 1)
    Connection.objects.update(opened_at=F("opened_at") - timedelta(seconds=192.5))
    closed(id, CloseReason.PING_TIMEOUT)

    shown = fields(admin_client, CONNECTION, id)

    times = {label: shown.pop(label) for label in ("Opened", "Last seen", "Closed")}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, \d+ \w+ ago", at) for at in times.values())
    assert times["Opened"].endswith("3 min ago")
    assert shown == {
        "State": "closed",
        "User": USER_KEY,
        "Path": "/ws/",
        "Process": "web-1:4711",
        "Remote address": "192.0.2.1",
        "Device": "Mozilla 5.0",
        "User agent": "Mozilla/5.0",
        "Subprotocol": "realtime.v1",
        "Lifetime": "3 min 12 s",
        "Reason": "ping_timeout (4008): The client did not answer a ping in time.",
    }


def timeline_of(client, id: uuid.UUID) -> list[str]:
    page = page_of(client, CONNECTION, id)
    entries = re.search(r'<ol class="rt-timeline">(.*?)</ol>', page, re.DOTALL).group(1)
    return [words(entry).split(" ", 2)[2] for entry in re.findall(r"<li.*?</li>", entries, re.DOTALL)]


def at(seconds: float):
    return Now() + timedelta(seconds=seconds)


def test_the_timeline_has_all_events_in_their_order(admin_client):
    process = a_process(host="web-1", pid=4711)
    (id,) = ids = open_connections(process, 1)
    connection_rows.open_memberships(joins(process, ids, "news", "sport"))
    connection_rows.mark_memberships_left(joins(process, ids, "news", "sport"))
    closed(id, CloseReason.KICKED)
    Connection.objects.update(opened_at=at(-60), last_seen_at=at(-30), closed_at=at(-10))
    Membership.objects.filter(group="news").update(joined_at=at(-59), left_at=at(-40))
    Membership.objects.filter(group="sport").update(joined_at=at(-20), left_at=at(-11))

    assert timeline_of(admin_client, id) == [
        "Opened /ws/ on web-1:4711",
        "Joined news",
        "Left news",
        "Last seen the last proof of life; recorded once a minute",
        "Joined sport",
        "Left sport",
        "Closed kicked, code 4504. A user or a program with the right to do so closed the connection.",
    ]


def test_the_timeline_shows_the_loss_of_the_process(admin_client):
    process = a_process(host="web-1", pid=4711)
    (id,) = open_connections(process, 1)
    make_lost(process)

    assert timeline_of(admin_client, id)[-1] == "Suspect its process was lost"


def test_a_reason_of_another_version_has_no_sentence(admin_client):
    (id,) = open_connections(a_process(), 1)
    Connection.objects.update(closed_at=Now(), close_reason="of_another_version")

    assert fields(admin_client, CONNECTION, id)["Reason"] == "of_another_version:"
    assert timeline_of(admin_client, id)[-1].startswith("Closed of_another_version.")
    assert "of_another_version" in cells(admin_client, CONNECTIONS)["last_seen_and_reason"]


def test_the_page_of_a_connection_shows_its_memberships(admin_client):
    process = a_process()
    mine, other = open_connections(process, 2)
    connection_rows.open_memberships(joins(process, [mine], "public.news"))
    connection_rows.open_memberships(joins(process, [other], "public.weather"))

    page = page_of(admin_client, CONNECTION, mine)

    assert f'href="{reverse(CONNECTIONS)}?group=public.news"' in page
    assert "public.weather" not in page


def test_a_page_shows_the_newest_of_many_memberships(admin_client):
    process = a_process()
    ids = open_connections(process, 1)
    connection_rows.open_memberships(joins(process, ids, "public.oldest"))
    connection_rows.open_memberships(joins(process, ids, *[f"public.room{n}" for n in range(NEWEST)]))

    page = page_of(admin_client, CONNECTION, ids[0])

    assert len(set(re.findall(r"public\.room\d+", page))) == NEWEST
    assert "public.oldest" not in page
    assert "are left out" in page


# -- processes -------------------------------------------------------------------------------------


def test_the_list_of_processes_shows_how_each_is_doing(admin_client):
    process = a_process(host="web-1", pid=4711)
    process_rows.answer_round(process, 1, connections=12, loop_lag=0.0315)
    process_rows.judge(2, [process], misses_allowed=1)
    Process.objects.update(started_at=at(-7500), answered_at=at(-8.5))

    assert cells(admin_client, PROCESSES) == {
        "process": "web-1:4711",
        "state": "silent",
        "last_answer": "8 s ago",
        "open_connections": "12",
        "lag": "32 ms",
        "missed": "1",
        "started": "2 h ago",
    }


def test_a_process_that_was_never_asked_has_no_last_answer(admin_client):
    a_process()

    assert cells(admin_client, PROCESSES)["last_answer"] == NOTHING


def test_processes_are_filtered_by_state(admin_client):
    running, silent, stopped, lost = (a_process(pid=pid) for pid in range(4))
    process_rows.judge(1, [silent], misses_allowed=1)
    process_rows.stop_process(stopped)
    make_lost(lost)

    assert set(listed(admin_client, PROCESSES)) == {str(id) for id in (running, silent, stopped, lost)}
    assert set(listed(admin_client, PROCESSES, state="running")) == {str(running), str(silent)}
    for state, id in (("silent", silent), ("stopped", stopped), ("lost", lost)):
        assert listed(admin_client, PROCESSES, state=state) == [str(id)]
        assert cells(admin_client, PROCESSES, state=state)["state"] == state


def test_a_process_leads_to_its_open_connections(admin_client):
    process, other = a_process(pid=1), a_process(pid=2)
    mine, gone = open_connections(process, 2)
    open_connections(other, 1)
    closed(gone, CloseReason.IDLE)
    query = {"process": str(process), "state": "open"}
    address = f"{reverse(CONNECTIONS)}?process={process}&amp;state=open"

    assert address in page_of(admin_client, PROCESSES)
    assert address in page_of(admin_client, PROCESS, process)
    assert listed(admin_client, CONNECTIONS, **query) == [str(mine)]


def test_a_process_page_shows_its_newest_open_connections(admin_client, django_user_model):
    ada = django_user_model.objects.create_user("ada")
    process = a_process(host="web-1", pid=4711)
    wanted = an_opening(process, user_id=str(ada.pk))
    connection_rows.open_connections([wanted])
    Process.objects.update(started_at=at(-7500))

    page = page_of(admin_client, PROCESS, process)

    assert reverse(CONNECTION, args=[wanted.id]) in page
    assert ">ada<" in page
    assert fields(admin_client, PROCESS, process)["Uptime"] == "2 h 5 min"


def test_the_page_of_an_ended_process_shows_when_it_ended(admin_client):
    process = a_process()
    process_rows.stop_process(process)

    assert fields(admin_client, PROCESS, process)["State"] == "stopped"
    assert "UTC" in fields(admin_client, PROCESS, process)["Ended"]
    assert "None." in words(page_of(admin_client, PROCESS, process))


# -- text from clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONNECTIONS, CONNECTION, PROCESS])
def test_what_came_from_a_client_stays_text(admin_client, name):
    process = a_process(host="<script>alert(2)</script>")
    wanted = an_opening(
        process, user_id=HOSTILE, path=f"/ws/{HOSTILE}", remote_address=HOSTILE[:64], user_agent=HOSTILE * 3
    )
    connection_rows.open_connections([wanted])
    # No group has such a name, but a row could be written by hand.
    connection_rows.open_memberships(joins(process, [wanted.id], HOSTILE, "a&b", "<b>"))

    page = page_of(admin_client, name, *({CONNECTION: [wanted.id], PROCESS: [process]}.get(name, [])))

    assert "<script>alert" not in page
    assert "<b>" not in page.replace(": <b>All</b></summary>", "")
    assert "&lt;script&gt;alert" in page
    assert "{{ 7|add:7 }}" in page


@pytest.mark.parametrize("text", [HOSTILE, "a\0b", "\N{EN DASH}" * 300])
def test_a_filter_or_search_that_came_from_a_link_stays_text(admin_client, text):
    open_connections(a_process(), 1)

    for name in ("group", "q", "state", "reason", "process"):
        assert "<script>alert" not in page_of(admin_client, CONNECTIONS, **{name: text})


# -- permissions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Connection, Process])
def test_nothing_can_be_added_changed_or_deleted(admin_client, model):
    open_connections(a_process(), 1)
    name = f"admin:realtime_{model._meta.model_name}"
    row = model.objects.get()
    before = model.objects.values().get()

    assert admin_client.get(reverse(f"{name}_add")).status_code == 403
    assert admin_client.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert admin_client.post(reverse(f"{name}_change", args=[row.pk]), {"path": "/"}).status_code == 403
    action = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    admin_client.post(reverse(f"{name}_changelist"), action)

    assert model.objects.values().get() == before


def test_no_page_offers_to_save(admin_client):
    process = a_process()
    (id,) = open_connections(process, 1)

    for name, key in ((CONNECTION, id), (PROCESS, process)):
        assert 'name="_save"' not in page_of(admin_client, name, key)


def test_staff_without_the_permission_see_nothing(client, django_user_model):
    (id,) = open_connections(a_process(), 1)
    client.force_login(a_member_of_staff(django_user_model))

    assert client.get(reverse(CONNECTIONS)).status_code == 403
    assert client.get(reverse(CONNECTION, args=[id])).status_code == 403


def test_staff_with_view_permission_cannot_disconnect(client, django_user_model):
    (id,) = open_connections(a_process(), 1)
    client.force_login(a_member_of_staff(django_user_model, "view_connection"))

    assert listed(client, CONNECTIONS) == [str(id)]
    assert "disconnect_selected" not in page_of(client, CONNECTIONS)
    assert "disconnect_selected" not in page_of(client, CONNECTION, id)


def test_rounds_and_memberships_have_no_lists_of_their_own():
    assert not site.is_registered(Round)
    assert not site.is_registered(Membership)


# -- queries ---------------------------------------------------------------------------------------


def add_rows(django_user_model, count: int) -> None:
    """Connections, each of a process and a user of its own, in more groups than are shown."""
    for pid in range(count):
        user = django_user_model.objects.create_user(f"user{uuid.uuid4().hex}")
        process = a_process(pid=pid)
        opening = an_opening(process, user_id=str(user.pk))
        connection_rows.open_connections([opening])
        connection_rows.open_memberships(joins(process, [opening.id], *[f"group{n}" for n in range(5)]))


@pytest.mark.parametrize("name", [CONNECTIONS, PROCESSES])
def test_a_list_takes_as_many_queries_for_many_rows_as_for_few(admin_client, django_user_model, name):
    add_rows(django_user_model, 3)
    few = queries_of(admin_client, name)
    add_rows(django_user_model, 27)
    many = queries_of(admin_client, name)

    # Session, user, count and rows. For connections also processes, usernames, groups, first and last day.
    assert len(many) == len(few) == {CONNECTIONS: 9, PROCESSES: 4}[name]


def test_many_memberships_take_no_more_queries_than_few(admin_client):
    process = a_process()
    few, many = open_connections(process, 2)
    connection_rows.open_memberships(joins(process, [few], *[f"few.{n}" for n in range(3)]))
    connection_rows.open_memberships(joins(process, [many], *[f"many.{n}" for n in range(30)]))

    queries = queries_of(admin_client, CONNECTION, many)

    assert len(queries) == len(queries_of(admin_client, CONNECTION, few)) == 7


def test_many_connections_take_no_more_queries_than_few(admin_client):
    few, many = a_process(pid=1), a_process(pid=2)
    open_connections(few, 2)
    open_connections(many, 30)

    assert len(queries_of(admin_client, PROCESS, many)) == len(queries_of(admin_client, PROCESS, few)) == 6


@pytest.mark.parametrize("name", [CONNECTIONS, PROCESSES])
def test_no_list_counts_a_whole_table(admin_client, name):
    open_connections(a_process(), 3)

    counts = [sql for sql in queries_of(admin_client, name) if sql.startswith("SELECT COUNT(")]

    assert len(counts) == 1
    assert f"LIMIT {BoundedPaginator.limit}" in counts[0]


def test_a_list_longer_than_the_limit_ends_at_the_limit(admin_client, monkeypatch):
    monkeypatch.setattr(BoundedPaginator, "limit", 51)
    open_connections(a_process(), 53)

    assert len(listed(admin_client, CONNECTIONS)) == 50
    assert len(listed(admin_client, CONNECTIONS, p="2")) == 1
    assert admin_client.get(reverse(CONNECTIONS), {"p": "3"}).status_code == 302


def test_the_how_to_names_the_limits_that_the_lists_have():
    page = (CHECKOUT / "docs/howto/look-at-connections.md").read_text()

    for limit in (filters.SOUGHT, search.SOUGHT, BoundedPaginator.limit, disconnect.AT_ONCE, NEWEST):
        assert f"{limit:,}" in page
