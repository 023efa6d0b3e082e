"""The list of users online and the page of one; `records/test_postgresql.py` repeats it on PostgreSQL."""

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib import admin
from django.db.models import F
from django.db.models.functions import Now
from django.urls import path, reverse

from realtime.admin import ConnectionAdmin, PresentUserAdmin, ProcessAdmin, filters, people, present_users
from realtime.admin.readonly import BoundedPaginator
from realtime.admin.users import GROUPS, LAST, NEWEST
from realtime.closing import CloseReason
from realtime.models import Connection, PresentUser, Process
from realtime.records import presence_rows
from realtime.records.batch import write_batch
from realtime.records.entries import Closing, Join, Opening
from realtime.records.write_queue import Kind, Write
from tests.integration.admin.pages import (
    CONNECTION,
    CONNECTIONS,
    HOSTILE,
    NOTHING,
    PROCESS,
    USER,
    USERS,
    a_member_of_staff,
    cells,
    fields,
    listed,
    page_of,
    queries_of,
    words,
)
from tests.support.doubles.rows import USER_KEY, a_process, an_opening
from tests.support.programs.servers import CHECKOUT

pytestmark = pytest.mark.django_db

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


def come(process: uuid.UUID, user: str = USER_KEY, *groups: str, **changes: object) -> Opening:
    """Open a connection of a user who joins groups, as the ledger does."""
    opening = an_opening(process, user_id=user, **changes)
    joins = [Join(opening.id, process, group, user) for group in groups]
    writes = [Write(Kind.OPEN, (opening,), (opening.id,))]
    writes += [Write(Kind.JOIN, (join,), (opening.id,)) for join in joins]
    assert write_batch(writes).results == [None] * len(writes)
    return opening


def go(opening: Opening, reason: CloseReason = CloseReason.PING_TIMEOUT) -> None:
    """Close a connection, as the ledger does."""
    write_batch([Write(Kind.CLOSE, (Closing(opening.id, reason, reason.code),), (opening.id,))])


def online(user: str = USER_KEY) -> PresentUser:
    return PresentUser.objects.users().get(user_id=user)


def become_dormant(process: uuid.UUID, user: str = USER_KEY, *groups: str) -> Opening:
    opening = come(process, user, *groups)
    go(opening)
    presence_rows.end_stays(-1.0)
    return opening


# -- the list --------------------------------------------------------------------------------------


def test_the_list_shows_a_user_with_groups_and_devices(admin_client, django_user_model):
    ada = str(django_user_model.objects.create_user("ada").pk)
    process = a_process()
    for client in ("phone", "tab-1", "tab-2"):
        agent = "okhttp/4.12.0" if client == "phone" else FIREFOX
        come(process, ada, "b", "c", "a", "d", user_agent=agent, client_id=client)
    PresentUser.objects.update(since=F("since") - timedelta(seconds=192.5))

    assert cells(admin_client, USERS) == {
        "user": "ada",
        "state": "online",
        "online_since": "3 min ago",
        "open_connections": "3",
        "groups": "a b c and 1 more",
        "devices": "okhttp 4.12 Firefox 145 on Linux",
        "dormant": NOTHING,
    }


def test_the_list_has_only_users_not_their_groups(admin_client):
    process = a_process()
    come(process, "7", "news", "sport")
    come(process, "", "news")

    assert listed(admin_client, USERS) == [str(online("7").pk)]


def test_a_user_in_the_grace_is_shown_as_gone(admin_client):
    go(come(a_process(), USER_KEY, "news"), CloseReason.CLIENT_CLOSED)
    PresentUser.objects.update(gone_at=F("gone_at") - timedelta(seconds=3.5))

    shown = cells(admin_client, USERS)

    assert shown["state"] == "gone for 3 s"
    assert (shown["open_connections"], shown["devices"], shown["dormant"]) == ("0", NOTHING, NOTHING)
    assert shown["groups"] == "news"
    assert "until the grace of 15 s is over" in page_of(admin_client, USERS)


def test_a_user_whose_grace_is_over_says_that_it_ends(admin_client):
    go(come(a_process()), CloseReason.CLIENT_CLOSED)
    PresentUser.objects.update(gone_at=F("gone_at") - timedelta(seconds=90.5))

    assert cells(admin_client, USERS)["state"] == "gone for 1 min 30 s"
    assert "ends the presence soon" in page_of(admin_client, USERS)


def test_a_dormant_user_stays_in_the_list(admin_client):
    become_dormant(a_process(), USER_KEY, "news")
    PresentUser.objects.update(dormant_since=Now() - timedelta(seconds=3600.5))

    shown = cells(admin_client, USERS)

    assert (shown["state"], shown["dormant"], shown["groups"]) == ("dormant", "1 h ago", NOTHING)


def test_the_user_who_came_last_is_first(admin_client):
    process = a_process()
    for user in "123":
        come(process, user)

    assert listed(admin_client, USERS) == [str(online(user).pk) for user in "321"]


def test_five_connections_of_a_user_name_their_devices(admin_client):
    process = a_process()
    for number in range(7):
        come(process, user_agent=f"client-{number}/1", client_id=f"client-{number}")

    named = " ".join(f"client-{number} 1" for number in range(5))
    assert cells(admin_client, USERS)["devices"] == f"{named} and 2 more connections"


def test_a_thousand_groups_and_connections_are_counted(admin_client, monkeypatch):
    monkeypatch.setattr(present_users, "COUNTED", 4)
    process = a_process()
    for _ in range(6):
        come(process, USER_KEY, *"abcde")

    shown = cells(admin_client, USERS)

    assert shown["open_connections"] == "4+"
    assert present_users.details_of([USER_KEY])[USER_KEY].groups.count == 4


def test_a_user_leads_to_the_open_connections(admin_client):
    process = a_process()
    mine, gone = come(process, "7"), come(process, "7")
    come(process, "77")
    go(gone)

    assert f"{reverse(CONNECTIONS)}?user_id=7&amp;state=open" in page_of(admin_client, USERS)
    assert listed(admin_client, CONNECTIONS, user_id="7", state="open") == [str(mine.id)]


@pytest.mark.parametrize(
    "key", ["2000000404", "no number", "9" * 255, "-1", "1.5", "+1", "01", "\u0661", "a/b&c"]
)
def test_a_key_without_a_user_is_shown_as_it_is(admin_client, key):
    opening = come(a_process(), key)
    row = online(key)

    assert cells(admin_client, USERS)["user"] == key
    assert listed(admin_client, USERS, q=key) == [str(row.pk)]
    assert fields(admin_client, USER, row.pk)["Key"] == key
    assert fields(admin_client, CONNECTION, opening.id)["User"] == key
    link = re.search(r'href="([^"]*\?user_id=[^"]*)"', page_of(admin_client, USERS)).group(1)
    found = admin_client.get(link.replace("&amp;", "&")).context["cl"].result_list
    assert [each.pk for each in found] == [opening.id]


# -- filters and search ----------------------------------------------------------------------------


def test_users_are_filtered_by_state(admin_client):
    process = a_process()
    become_dormant(process, "dormant")
    go(come(process, "in grace"))
    come(process, "online")

    def found(**query: str) -> set[str]:
        return {PresentUser.objects.get(pk=pk).user_id for pk in listed(admin_client, USERS, **query)}

    assert found() == {"dormant", "in grace", "online"}
    assert found(state="online") == {"in grace", "online"}
    assert found(state="dormant") == {"dormant"}


def test_the_dormant_user_who_left_last_is_first(admin_client):
    process = a_process()
    for user in "123":
        become_dormant(process, user)
    PresentUser.objects.filter(user_id="2").update(left_at=Now() + timedelta(seconds=5))

    assert listed(admin_client, USERS, state="dormant")[0] == str(online("2").pk)


def test_users_are_filtered_by_a_group(admin_client):
    process = a_process()
    come(process, "1", "news", "sport")
    come(process, "2", "news")
    come(process, "3", "sport")

    assert listed(admin_client, USERS, group=" news ") == [str(online(user).pk) for user in "21"]
    assert listed(admin_client, USERS, group="empty") == []
    assert len(listed(admin_client, USERS, group="")) == 3


def test_the_filter_reads_a_limited_number_of_users(admin_client, monkeypatch):
    monkeypatch.setattr(filters.UserGroupFilter, "limit", 2)
    process = a_process()
    for user in "123":
        come(process, user, "news")

    assert listed(admin_client, USERS, group="news") == [str(online(user).pk) for user in "32"]


def test_a_user_is_found_by_name_or_key(admin_client, django_user_model):
    ada = str(django_user_model.objects.create_user("ada").pk)
    key = uuid.uuid4()
    process = a_process()
    for user in (ada, str(key), "other"):
        come(process, user, "news")

    for text, user in (("ada", ada), (f" {ada} ", ada), (key.hex.upper(), str(key)), ("other", "other")):
        assert listed(admin_client, USERS, q=text) == [str(online(user).pk)]
    assert len(listed(admin_client, USERS, q=" ")) == 3


@pytest.mark.parametrize("text", ["zombie", "%", "news", "'--", "9" * 300, HOSTILE])
def test_a_search_for_anything_else_finds_no_user(admin_client, text):
    come(a_process(), USER_KEY, "news")

    assert listed(admin_client, USERS, q=text) == []


# -- the page of a user ----------------------------------------------------------------------------


def test_the_page_of_a_user_shows_connections_and_groups(admin_client, django_user_model):
    ada = str(django_user_model.objects.create_user("ada").pk)
    process = a_process(host="web-1", pid=4711)
    opening = come(process, ada, "news", "sport", path="/ws/a/", user_agent=FIREFOX)
    gone = come(process, ada, user_agent="gone/1")
    go(gone, CloseReason.CLIENT_CLOSED)
    PresentUser.objects.filter(group="news").update(since=Now() - timedelta(seconds=3600.5))

    page = page_of(admin_client, USER, online(ada).pk)

    shown = fields(admin_client, USER, online(ada).pk)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, \d+ s ago", shown.pop("Online since"))
    assert shown == {
        "State": "online",
        "User": "ada",
        "Key": ada,
        "Connections": "1",
        "Last connection gone": "",
        "Dormant since": "",
        "Offline since": "",
        "Last closed connection": "",
    }
    text = words(page)
    assert f"{str(opening.id)[:8]} /ws/a/ 192.0.2.1 Firefox 145 on Linux web-1:4711 0 s ago" in text
    assert str(gone.id)[:8] not in text
    assert f"Group Since Gone news 1 h ago {NOTHING} sport 0 s ago {NOTHING}" in text
    for address in (
        reverse(CONNECTION, args=[opening.id]),
        reverse(PROCESS, args=[process]),
        f"{reverse(USERS)}?group=news",
        f"{reverse(CONNECTIONS)}?user_id={ada}&amp;state=open",
    ):
        assert f'href="{address}"' in page


def test_the_page_of_a_dormant_user_shows_the_last_connection(admin_client):
    process = a_process()
    first, last = come(process, USER_KEY, "news"), come(process)
    go(last, CloseReason.CLIENT_CLOSED)
    go(first, CloseReason.PING_TIMEOUT)
    presence_rows.end_stays(-1.0)
    Connection.objects.filter(pk=last.id).update(closed_at=F("closed_at") - timedelta(seconds=5))

    page = page_of(admin_client, USER, online().pk)
    shown = fields(admin_client, USER, online().pk)

    assert shown["State"] == "dormant"
    assert "ago" in shown["Dormant since"]
    assert "ago" in shown["Offline since"]
    assert shown["Last closed connection"].startswith(str(first.id)[:8])
    assert shown["Last closed connection"].endswith(
        "ago. ping_timeout: The client did not answer a ping in time."
    )
    assert reverse(CONNECTION, args=[first.id]) in page
    assert words(page).count("None.") == 2


def test_a_dormant_user_without_records_has_a_page(admin_client):
    become_dormant(a_process())
    Connection.objects.all().delete()

    assert fields(admin_client, USER, online().pk)["Last closed connection"] == ""


def test_the_page_shows_some_of_many_groups(admin_client):
    come(a_process(), USER_KEY, *[f"public.room{number:03}" for number in range(GROUPS + 1)])

    page = page_of(admin_client, USER, online().pk)

    assert f"First {GROUPS} groups" in page
    assert f"public.room{GROUPS - 1:03}" in page
    assert f"public.room{GROUPS:03}" not in page


def test_only_users_have_pages(admin_client):
    come(a_process(), USER_KEY, "news")
    in_group = PresentUser.objects.get(group="news")

    for key in (in_group.pk, "no number", "9" * 30):
        assert admin_client.get(reverse(USER, args=[key])).status_code == 302


def test_the_page_of_a_connection_leads_to_its_user(admin_client, django_user_model):
    ada = str(django_user_model.objects.create_user("ada").pk)
    process = a_process()
    opening, anonymous = come(process, ada), come(process, "")
    link = f'<a href="{reverse(USER, args=[online(ada).pk])}" title="key {ada}">ada</a>'

    assert link in page_of(admin_client, CONNECTION, opening.id)
    assert not re.search(r"/presentuser/\d", page_of(admin_client, CONNECTION, anonymous.id))
    PresentUser.objects.all().delete()
    assert link not in page_of(admin_client, CONNECTION, opening.id)
    assert fields(admin_client, CONNECTION, opening.id)["User"] == "ada"


# -- text from clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [USERS, USER])
def test_text_of_a_user_stays_text(admin_client, name):
    process = a_process(host="<script>alert(2)</script>")
    come(
        process,
        HOSTILE,
        HOSTILE,
        "a&b",
        "<b>",
        path=f"/ws/{HOSTILE}",
        remote_address=HOSTILE[:64],
        user_agent=f"<b>/{HOSTILE}",
    )

    page = page_of(admin_client, name, *([online(HOSTILE).pk] if name == USER else []))

    assert "<script>alert" not in page
    assert "<b>" not in page.replace(": <b>All</b></summary>", "")
    assert "&lt;script&gt;alert" in page
    assert "{{ 7|add:7 }}" in page


def test_the_name_of_a_user_stays_text(admin_client, django_user_model):
    key = str(django_user_model.objects.create_user("<b>ada</b>").pk)
    opening = come(a_process(), key)

    for name, arguments in ((USERS, []), (USER, [online(key).pk]), (CONNECTION, [opening.id])):
        page = page_of(admin_client, name, *arguments)
        assert "<b>ada" not in page
        assert "&lt;b&gt;ada" in page


@pytest.mark.parametrize("text", [HOSTILE, "a\0b", "\N{EN DASH}" * 300])
def test_a_filter_or_search_for_users_from_a_link_stays_text(admin_client, text):
    come(a_process())

    for name in ("group", "q", "state"):
        assert "<script>alert" not in page_of(admin_client, USERS, **{name: text})


# -- permissions -----------------------------------------------------------------------------------


def test_no_user_can_be_added_changed_or_deleted(admin_client):
    come(a_process())
    row, name = online(), "admin:realtime_presentuser"
    before = PresentUser.objects.values().get()

    assert admin_client.get(reverse(f"{name}_add")).status_code == 403
    assert admin_client.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert admin_client.post(reverse(f"{name}_change", args=[row.pk]), {"user_id": "1"}).status_code == 403
    action = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    admin_client.post(reverse(f"{name}_changelist"), action)

    assert PresentUser.objects.values().get() == before
    assert 'name="_save"' not in page_of(admin_client, USER, row.pk)


def test_staff_without_the_permission_see_no_users(client, django_user_model):
    opening = come(a_process(), USER_KEY)
    client.force_login(a_member_of_staff(django_user_model, "view_connection"))

    assert client.get(reverse(USERS)).status_code == 403
    assert client.get(reverse(USER, args=[online().pk])).status_code == 403
    page = page_of(client, CONNECTION, opening.id)
    assert "/presentuser/" not in page
    assert f'<span title="key {USER_KEY}">' in page


@pytest.mark.parametrize("dormant", [False, True])
def test_staff_who_view_only_users_get_no_other_links(client, django_user_model, dormant):
    opening = come(a_process(host="web-1", pid=4711))
    if dormant:
        go(opening)
        presence_rows.end_stays(-1.0)
    client.force_login(a_member_of_staff(django_user_model, "view_presentuser"))

    for page in (page_of(client, USERS), page_of(client, USER, online().pk)):
        assert "/connection/" not in page
        assert "/process/" not in page
    assert str(opening.id)[:8] in page
    assert dormant or "web-1:4711" in page


class OwnUserAdmin(PresentUserAdmin):
    """The admin of a project that shows staff only some users."""

    def get_queryset(self, request):
        return super().get_queryset(request).exclude(user_id="2")


@pytest.mark.parametrize("hidden", [False, True])
def test_a_subclass_restricts_the_users_of_a_site(admin_client, settings, hidden):
    site = admin.AdminSite()
    site.register(Connection, ConnectionAdmin)
    site.register(Process, ProcessAdmin)
    if not hidden:
        site.register(PresentUser, OwnUserAdmin)
    settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": (path("admin/", site.urls),)})
    process = a_process()
    one, two = come(process, "1"), come(process, "2")

    link = re.compile(r"/presentuser/\d")
    assert bool(link.search(page_of(admin_client, CONNECTION, one.id))) is not hidden
    assert not link.search(page_of(admin_client, CONNECTION, two.id))
    if not hidden:
        assert listed(admin_client, USERS) == [str(online("1").pk)]
        assert admin_client.get(reverse(USER, args=[online("2").pk])).status_code == 302


# -- queries ---------------------------------------------------------------------------------------


def add_users(django_user_model, count: int) -> None:
    """Users, each with two connections of a process of its own, in more groups than are shown."""
    for pid in range(count):
        user = str(django_user_model.objects.create_user(f"user{uuid.uuid4().hex}").pk)
        process = a_process(pid=pid)
        for client in ("phone", "tab"):
            come(process, user, *[f"group{number}" for number in range(5)], client_id=client)


def test_many_users_take_no_more_queries_than_few(admin_client, django_user_model):
    add_users(django_user_model, 3)
    few = queries_of(admin_client, USERS)
    add_users(django_user_model, 27)
    many = queries_of(admin_client, USERS)

    # Session, user, count, rows, usernames, and the groups and connections of all.
    assert len(many) == len(few) == 6
    assert len(listed(admin_client, USERS)) == 30


def test_many_connections_of_a_user_take_no_more_queries(admin_client):
    come(a_process(pid=0), "few", "news")
    for pid in range(30):
        come(a_process(pid=pid), "many", *[f"group{number}" for number in range(20)])

    few = queries_of(admin_client, USER, online("few").pk)
    many = queries_of(admin_client, USER, online("many").pk)

    # Session, user, row, groups and connections counted, groups, newest connections, content type.
    assert len(many) == len(few) == 7


def test_the_list_of_users_counts_no_whole_table(admin_client):
    come(a_process())

    counts = [sql for sql in queries_of(admin_client, USERS) if sql.startswith("SELECT COUNT(")]

    assert len(counts) == 1
    assert f"LIMIT {BoundedPaginator.limit}" in counts[0]


def test_usernames_of_a_page_are_read_once(admin_client, monkeypatch):
    asked = []
    monkeypatch.setattr(people, "usernames", lambda keys: asked.append(sorted(keys)) or {})
    process = a_process()
    for user in "123":
        come(process, user)

    assert len(listed(admin_client, USERS)) == 3
    assert asked == [["1", "2", "3"]]


def test_the_how_to_names_the_limits_of_the_users_pages():
    page = (CHECKOUT / "docs/howto/look-at-connections.md").read_text()

    for limit in (present_users.DEVICES, GROUPS, NEWEST, LAST):
        assert f"{limit:,}" in page
