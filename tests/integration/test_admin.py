"""Runs on the database of DATABASE_URL; tests/integration/test_postgresql.py repeats it on PostgreSQL."""

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin.sites import site
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from realtime import records
from realtime.admin import NEWEST, BoundedPaginator
from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process, Round
from tests.support.rows import a_process, an_opening, closings, joins, make_lost, open_connections

pytestmark = pytest.mark.django_db

CONNECTIONS = "admin:realtime_connection_changelist"
PROCESSES = "admin:realtime_process_changelist"


def listed(client, name: str, **query: str) -> set[str]:
    """The primary keys of the rows of a list, in the order of the page."""
    response = client.get(reverse(name), query)
    assert response.status_code == 200, response.headers
    return {str(row.pk) for row in response.context["cl"].result_list}


def cells(client, name: str, **query: str) -> dict[str, str]:
    """The text of each column in the only row of a list."""
    page = client.get(reverse(name), query).content.decode()
    row = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    found = re.findall(r'<t[dh] class="field-(\w+)[^"]*">(.*?)</t[dh]>', row.group(1), re.DOTALL)
    return {column: re.sub(r"<[^>]+>", "", text) for column, text in found}


def test_the_list_shows_what_is_known_of_an_open_connection(admin_client):
    process = a_process(host="web-1", pid=4711)
    opening = an_opening(process, path="/ws/news/", user_id="")
    records.open_connections([opening])

    shown = cells(admin_client, CONNECTIONS)

    assert shown.pop("opened_at") == shown.pop("last_seen_at") != "-"
    assert shown == {
        "id": str(opening.id),
        "state": "open",
        "user": "anonymous",
        "path": "/ws/news/",
        "process": "web-1:4711",
        "remote_address": "192.0.2.1",
        "closed_at": "-",
        "reason": "",
    }


def test_the_list_shows_why_a_connection_was_closed(admin_client):
    ids = open_connections(a_process(), 1)
    records.close_connections(closings(ids, CloseReason.SLOW_CONSUMER), uuid.uuid4())

    shown = cells(admin_client, CONNECTIONS)

    assert (shown["state"], shown["reason"], shown["user"]) == ("closed", "slow_consumer", "7")
    assert shown["closed_at"] != "-"


def test_connections_are_filtered_by_state_and_reason(admin_client):
    still_open, lost, idle = map(str, open_connections(a_process(), 3))
    records.close_connections(closings([lost], CloseReason.CLIENT_LOST), uuid.uuid4())
    records.close_connections(closings([idle], CloseReason.IDLE), uuid.uuid4())

    assert listed(admin_client, CONNECTIONS) == {still_open, lost, idle}
    assert listed(admin_client, CONNECTIONS, state="open") == {still_open}
    assert listed(admin_client, CONNECTIONS, state="closed") == {lost, idle}
    assert listed(admin_client, CONNECTIONS, reason="idle") == {idle}


@pytest.mark.parametrize("text", ["7041", "198.51.100.9", "/ws/rare", "id", " id "])
def test_a_connection_is_found_by_user_address_path_or_id(admin_client, text):
    process = a_process()
    wanted = an_opening(process, user_id="7041", remote_address="198.51.100.9", path="/ws/rare/")
    records.open_connections([wanted, an_opening(process)])

    assert listed(admin_client, CONNECTIONS, q=text.replace("id", str(wanted.id))) == {str(wanted.id)}


def test_a_search_for_anything_else_finds_nothing(admin_client):
    open_connections(a_process(), 1)

    assert listed(admin_client, CONNECTIONS, q="zombie") == set()


def test_the_page_of_a_connection_shows_its_memberships(admin_client):
    process = a_process()
    mine, other = open_connections(process, 2)
    records.open_memberships(joins(process, [mine], "public.news", "public.sport"))
    records.leave_memberships(joins(process, [mine], "public.sport"))
    records.open_memberships(joins(process, [other], "public.weather"))

    page = admin_client.get(reverse("admin:realtime_connection_change", args=[mine])).content.decode()

    assert "public.news" in page
    assert "public.sport" in page
    assert "public.weather" not in page


def test_the_page_of_a_connection_that_joined_often_shows_the_newest_memberships(admin_client):
    process = a_process()
    ids = open_connections(process, 1)
    records.open_memberships(joins(process, ids, "public.oldest"))
    Membership.objects.update(joined_at=Now() - timedelta(hours=1))
    records.open_memberships(joins(process, ids, *[f"public.room{n}" for n in range(NEWEST)]))

    page = admin_client.get(reverse("admin:realtime_connection_change", args=ids)).content.decode()

    assert len(set(re.findall(r"public\.room\d+", page))) == NEWEST
    assert "public.oldest" not in page


def test_the_list_of_processes_shows_how_each_is_doing(admin_client):
    process = a_process(host="web-1", pid=4711)
    records.answer_round(process, 1, connections=12, loop_lag=0.0315)
    records.judge(2, [process], misses_allowed=1)

    shown = cells(admin_client, PROCESSES)

    assert "-" not in (shown.pop("started_at"), shown.pop("answered_at"))
    assert shown == {
        "host": "web-1",
        "pid": "4711",
        "state": "running",
        "open_connections": "12",
        "lag": "32 ms",
        "missed": "1",
    }


def test_processes_are_filtered_by_state(admin_client):
    running, stopped, lost = (a_process(pid=pid) for pid in range(3))
    records.stop_process(stopped)
    make_lost(lost)

    assert listed(admin_client, PROCESSES, state="running") == {str(running)}
    assert listed(admin_client, PROCESSES, state="stopped") == {str(stopped)}
    assert listed(admin_client, PROCESSES, state="lost") == {str(lost)}
    assert cells(admin_client, PROCESSES, state="stopped")["state"] == "stopped"
    assert cells(admin_client, PROCESSES, state="lost")["state"] == "lost"


def test_a_process_leads_to_its_connections(admin_client):
    process, other = a_process(), a_process()
    ids = open_connections(process, 2)
    open_connections(other, 1)

    page = admin_client.get(reverse(PROCESSES)).content.decode()

    assert f"?process__id__exact={process}" in page
    assert listed(admin_client, CONNECTIONS, process__id__exact=str(process)) == set(map(str, ids))


@pytest.mark.parametrize("model", [Connection, Process])
def test_nothing_can_be_added_changed_or_deleted(admin_client, model):
    ids = open_connections(a_process(), 1)
    name = f"admin:realtime_{model._meta.model_name}"
    row = model.objects.get()
    before = model.objects.values().get()

    assert admin_client.get(reverse(f"{name}_add")).status_code == 403
    assert admin_client.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert admin_client.post(reverse(f"{name}_change", args=[row.pk]), {"path": "/"}).status_code == 403
    action = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    admin_client.post(reverse(f"{name}_changelist"), action)

    assert model.objects.values().get() == before
    assert ids


def test_the_memberships_of_a_connection_cannot_be_changed(admin_client):
    process = a_process()
    (id,) = open_connections(process, 1)
    records.open_memberships(joins(process, [id], "public.news"))

    page = admin_client.get(reverse("admin:realtime_connection_change", args=[id])).content.decode()

    assert "memberships-0-group" not in page
    assert 'name="_save"' not in page


def test_a_member_of_staff_without_the_permission_sees_nothing(client, django_user_model):
    client.force_login(django_user_model.objects.create_user("ada", is_staff=True))

    assert client.get(reverse(CONNECTIONS)).status_code == 403


def test_rounds_and_memberships_have_no_lists_of_their_own():
    assert not site.is_registered(Round)
    assert not site.is_registered(Membership)


def queries_of(client, name: str, *arguments: object) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(reverse(name, args=arguments)).status_code == 200
    return [query["sql"] for query in captured]


@pytest.mark.parametrize("name", [CONNECTIONS, PROCESSES])
def test_a_list_takes_the_same_few_queries_for_many_rows_as_for_few(admin_client, name):
    def add_rows(count: int) -> None:
        for pid in range(count):
            open_connections(a_process(pid=pid), 1)

    add_rows(3)
    few = queries_of(admin_client, name)
    add_rows(27)
    many = queries_of(admin_client, name)

    assert len(many) == len(few) <= 5


def test_the_page_of_a_connection_takes_the_same_queries_for_many_memberships_as_for_few(admin_client):
    process = a_process()
    few, many = open_connections(process, 2)
    records.open_memberships(joins(process, [few], *[f"few.{n}" for n in range(3)]))
    records.open_memberships(joins(process, [many], *[f"many.{n}" for n in range(30)]))

    page = "admin:realtime_connection_change"
    assert len(queries_of(admin_client, page, many)) == len(queries_of(admin_client, page, few)) <= 7


@pytest.mark.parametrize("name", [CONNECTIONS, PROCESSES])
def test_no_list_counts_a_whole_table(admin_client, name):
    open_connections(a_process(), 3)

    counts = [sql for sql in queries_of(admin_client, name) if "COUNT(" in sql and "realtime_" in sql]

    assert len(counts) == 1
    assert f"LIMIT {BoundedPaginator.limit}" in counts[0]


def test_a_list_longer_than_the_limit_ends_at_the_limit(admin_client, monkeypatch):
    monkeypatch.setattr(BoundedPaginator, "limit", 101)
    open_connections(a_process(), 103)

    assert len(listed(admin_client, CONNECTIONS)) == 100
    assert len(listed(admin_client, CONNECTIONS, p="2")) == 1
    assert admin_client.get(reverse(CONNECTIONS), {"p": "3"}).status_code == 302
