"""The pages of the admin as tests see them."""

import html
import re

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

CONNECTIONS = "admin:realtime_connection_changelist"
CONNECTION = "admin:realtime_connection_change"
PROCESSES = "admin:realtime_process_changelist"
PROCESS = "admin:realtime_process_change"
USERS = "admin:realtime_presentuser_changelist"
USER = "admin:realtime_presentuser_change"
LIST = "/admin/realtime/connection/"
NOTHING = "\N{EN DASH}"
HOSTILE = "\"'><script>alert(1)</script>{{ 7|add:7 }}%s"


def listed(client, name: str, **query: str) -> list[str]:
    """The primary keys of the rows of a list, in the order of the page."""
    response = client.get(reverse(name), query)
    assert response.status_code == 200, response.headers
    return [str(row.pk) for row in response.context["cl"].result_list]


def page_of(client, name: str, *arguments: object, **query: str) -> str:
    response = client.get(reverse(name, args=arguments), query)
    assert response.status_code == 200, response.headers
    return response.content.decode()


def words(text: str) -> str:
    """Return the visible text of a piece of HTML, with one blank between any two words."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def cells(client, name: str, **query: str) -> dict[str, str]:
    """The text of each column in the only row of a list."""
    row = re.search(r"<tbody>(.*?)</tbody>", page_of(client, name, **query), re.DOTALL)
    found = re.findall(r'<t[dh] class="field-(\w+)[^"]*">(.*?)</t[dh]>', row.group(1), re.DOTALL)
    return {column: words(text) for column, text in found}


def fields(client, name: str, *arguments: object) -> dict[str, str]:
    """The text beside each label on the page of one row."""
    page = page_of(client, name, *arguments)
    found = re.findall(r"<label[^>]*>(.*?):</label>\s*<div class=\"readonly\">(.*?)</div>", page, re.DOTALL)
    return {words(label): words(text) for label, text in found}


def a_member_of_staff(django_user_model, *permissions: str):
    ada = django_user_model.objects.create_user("ada", is_staff=True)
    found = Permission.objects.filter(content_type__app_label="realtime", codename__in=permissions)
    assert found.count() == len(permissions)
    ada.user_permissions.set(found)
    return ada


def queries_of(client, name: str, *arguments: object, **query: str) -> list[str]:
    ContentType.objects.clear_cache()  # an earlier test may have filled it
    with CaptureQueriesContext(connection) as captured:
        assert client.get(reverse(name, args=arguments), query).status_code == 200
    return [query["sql"] for query in captured]


def post(client, ids, address: str = LIST, *, follow: bool = False, **more: str):
    selected = {"action": "disconnect_selected", "_selected_action": [str(id) for id in ids]}
    return client.post(address, {**selected, **more}, follow=follow)


def confirm(client, response, address: str = LIST) -> list[str]:
    """Send the form of the confirmation, and return the messages of the next page."""
    page = response.content.decode()
    form = re.search(r'<form method="post">(.*?)</form>', page, re.DOTALL).group(1)
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form):
        fields.setdefault(name, []).append(html.unescape(value))
    del fields["csrfmiddlewaretoken"]
    done = client.post(address, fields, follow=True)
    return [str(message) for message in done.context["messages"]]
