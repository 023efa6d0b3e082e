"""The admin of realtime for users without each permission, and for hostile requests.

docs/reference.md#admin says what each permission allows. These tests check that nothing else is allowed.
"""

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from realtime.admin import ConnectionAdmin
from realtime.models import Connection, PresentUser, Process
from tests.integration.admin.conftest import told
from tests.integration.admin.pages import a_member_of_staff, post
from tests.integration.admin.test_users import come, online
from tests.support.doubles.rows import USER_KEY, a_process

__all__ = ["told"]

pytestmark = pytest.mark.django_db

MODELS = {"connection": Connection, "process": Process, "presentuser": PresentUser}
#: The lists that have the action.
ACTING = ("connection", "presentuser")
OF_DJANGO = sorted(
    f"{verb}_{model._meta.model_name}"
    for model in apps.get_app_config("realtime").get_models()
    for verb in ("add", "change", "delete", "view")
)
PERMISSIONS = [*OF_DJANGO, "disconnect_connection"]

#: The models whose pages one permission opens. In Django's admin, the permission to change includes viewing.
OPENS = {f"{verb}_{model}": model for verb in ("view", "change") for model in MODELS}

#: All sets of permissions with which the action may be used, on each list. `change_connection` is both.
SUFFICIENT = {
    "connection": [{"change_connection"}, {"view_connection", "disconnect_connection"}],
    "presentuser": [
        {"view_presentuser", "change_connection"},
        {"view_presentuser", "view_connection", "disconnect_connection"},
        {"change_presentuser", "change_connection"},
        {"change_presentuser", "view_connection", "disconnect_connection"},
    ],
}


@pytest.fixture
def keys() -> dict[str, object]:
    """One row of each model, by the name of the model: a process that holds a connection of a user."""
    process = a_process()
    connection = come(process, USER_KEY, "public.room")
    return {"connection": connection.id, "process": process, "presentuser": online().pk}


def address(model: str, page: str, *arguments: object) -> str:
    return reverse(f"admin:realtime_{model}_{page}", args=arguments)


def pages_to_view(model: str, key: object) -> list[str]:
    return [address(model, "changelist"), *(address(model, page, key) for page in ("change", "history"))]


def everything() -> list[list[dict[str, object]]]:
    return [list(model.objects.order_by("pk").values()) for model in MODELS.values()]


def attempts_to_write(client: Client, model: str, key: object) -> list[int]:
    """Try to add, change and delete a row, and return the statuses of the answers."""
    fields: dict[str, object] = {"path": "/stolen/", "user_id": "1", "host": "stolen", "closed_at": ""}
    answers = [
        client.get(address(model, "add")),
        client.post(address(model, "add"), fields),
        client.post(address(model, "change", key), {**fields, "_save": "Save"}),
        client.get(address(model, "delete", key)),
        client.post(address(model, "delete", key), {"post": "yes"}),
    ]
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("permission", [None, *PERMISSIONS], ids=str)
def test_one_permission_opens_its_own_pages_only(client, django_user_model, told, keys, permission):
    client.force_login(a_member_of_staff(django_user_model, *[permission] if permission else []))
    before = everything()

    for model, key in keys.items():
        expected = 200 if OPENS.get(permission) == model else 403
        statuses = {each: client.get(each).status_code for each in pages_to_view(model, key)}
        assert set(statuses.values()) == {expected}, statuses
        assert attempts_to_write(client, model, key) == [403] * 5

    assert everything() == before


@pytest.mark.parametrize("model", ACTING)
@pytest.mark.parametrize("permission", [None, *PERMISSIONS], ids=str)
def test_the_action_needs_all_of_its_permissions(client, django_user_model, told, keys, model, permission):
    """Each permission alone, and each one missing from a set that is sufficient."""
    sets = [{permission} if permission else set()]
    sets += [needed - {permission} for needed in SUFFICIENT[model] if permission in needed]
    ada = a_member_of_staff(django_user_model)
    client.force_login(ada)
    for given in sets:
        if any(needed <= given for needed in SUFFICIENT[model]):
            continue
        found = Permission.objects.filter(content_type__app_label="realtime", codename__in=given)
        assert found.count() == len(given)
        ada.user_permissions.set(found)
        for across in ({}, {"select_across": "1"}):
            post(client, [keys[model]], address(model, "changelist"), confirmed="yes", **across)
            assert told == [], given
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize(
    ("model", "needed"),
    [(model, tuple(sorted(needed))) for model, all_sets in SUFFICIENT.items() for needed in all_sets],
    ids=lambda each: each if isinstance(each, str) else "+".join(each),
)
def test_the_action_needs_no_more_than_documented(client, django_user_model, told, keys, model, needed):
    client.force_login(a_member_of_staff(django_user_model, *needed))

    post(client, [keys[model]], address(model, "changelist"), confirmed="yes")

    assert [ids for _, ids in told] == [[str(keys["connection"])]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("action", ["delete_selected", "disconnect_selected", "__class__", "", "delete"])
def test_no_other_action_exists(admin_client, told, keys, model, action):
    before = everything()
    for more in ({}, {"post": "yes"}, {"select_across": "1", "post": "yes"}):
        selected = {"action": action, "_selected_action": [str(keys[model])], **more}
        assert admin_client.post(address(model, "changelist"), selected).status_code in (200, 302)
    assert everything() == before
    assert told == []


@pytest.mark.parametrize("kind", ["anonymous", "no_staff", "no_staff_superuser", "inactive"])
def test_only_active_staff_sees_anything(client, django_user_model, told, keys, kind):
    if kind != "anonymous":
        ada = a_member_of_staff(django_user_model, "view_connection", "disconnect_connection", "view_process")
        ada.is_staff, ada.is_active = kind == "inactive", kind != "inactive"
        ada.is_superuser = kind == "no_staff_superuser"
        ada.save()
        client.force_login(ada)
    before = everything()

    for model, key in keys.items():
        for each in pages_to_view(model, key):
            answer = client.get(each)
            assert (answer.status_code, answer.url.partition("?")[0]) == (302, "/admin/login/")
        assert attempts_to_write(client, model, key) == [302] * 5
        post(client, [key], address(model, "changelist"), confirmed="yes")

    assert everything() == before
    assert told == []


@pytest.mark.parametrize("model", MODELS)
def test_every_post_needs_the_token_against_csrf(admin_user, told, keys, model):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    before = everything()

    for more in ({}, {"confirmed": "yes"}, {"confirmed": "yes", "csrfmiddlewaretoken": "x" * 64}):
        assert post(browser, [keys[model]], address(model, "changelist"), **more).status_code == 403
    assert browser.post(address(model, "delete", keys[model]), {"post": "yes"}).status_code == 403
    # The action is no GET, which a link or an image of another page could send.
    link = {"action": "disconnect_selected", "_selected_action": str(keys[model]), "confirmed": "yes"}
    browser.get(address(model, "changelist"), link)

    assert everything() == before
    assert told == []


@pytest.mark.parametrize("model", MODELS)
def test_no_field_of_a_form_reaches_a_row(admin_client, told, keys, model):
    """A superuser sends every column, in the forms of all pages that Django's admin has."""
    before = everything()
    columns = {field.name: "7" for field in MODELS[model]._meta.concrete_fields}
    formset = {"form-TOTAL_FORMS": "1", "form-INITIAL_FORMS": "1", "form-0-id": str(keys[model])}
    editable = {f"form-0-{name}": value for name, value in columns.items()}
    for fields in (columns, {**columns, "_saveasnew": "1"}, {**columns, "_continue": "1"}):
        assert admin_client.post(address(model, "change", keys[model]), fields).status_code == 403
    admin_client.post(address(model, "changelist"), {**formset, **editable, **columns, "_save": "Save"})
    if model in ACTING:
        # Not confirmed: the form of the confirmation is all that the answer has.
        post(admin_client, [keys[model]], address(model, "changelist"), **columns)

    assert everything() == before
    assert told == []


@pytest.mark.parametrize("model", MODELS)
def test_the_index_names_only_what_may_be_viewed(client, django_user_model, keys, model):
    client.force_login(a_member_of_staff(django_user_model, f"view_{model}"))
    for page in (reverse("admin:index"), reverse("admin:app_list", args=["realtime"])):
        text = client.get(page).content.decode()
        assert {each for each in MODELS if f"/admin/realtime/{each}/" in text} == {model}


def test_the_autocomplete_of_the_admin_needs_the_permission_too(client, django_user_model, keys):
    client.force_login(a_member_of_staff(django_user_model, "view_connection", "disconnect_connection"))
    query = {"app_label": "realtime", "model_name": "connection", "field_name": "process", "term": ""}

    assert client.get(reverse("admin:autocomplete"), query).status_code == 403


HOSTILE = {
    "quotes": "'\"`;--",
    "nul": "a\0b",
    "only_nul": "\0",
    "percent": "%s%(x)s%%{0}",
    "broken_expression": "[",
    "slow_expression": "(a+)+$",
    "long": "x" * 5_000,
    "large_number": "9" * 400,
    "negative": "-1",
    "not_a_number": "NaN",
    "first_year": "0001-01-01 00:00:00",
    "last_year": "9999-12-31 23:59:59+00:00",
    "no_date": "2026-13-41",
    "surrogate": "\N{LATIN SMALL LETTER E WITH ACUTE}\U0001f600\u202e",
    "list": "a,b,,",
    "json": '{"$ne": 1}',
    "uuid": "00000000-0000-0000-0000-000000000000",
    "empty": "",
}


def parameters(model: str) -> list[str]:
    """All parameters of a list, and lookups of each of its columns that links of a stranger could have."""
    admin = ["q", "o", "p", "e", "all", "_facets", "_popup", "_to_field", "_changelist_filters", "next"]
    filters = ["state", "reason", "process", "group", "before", "select_across"]
    dates = [f"opened_at__{unit}" for unit in ("year", "month", "day", "gte", "date", "week")]
    kinds = ("", "__exact", "__regex", "__iregex", "__in", "__isnull", "__gte", "__contains", "__nonsense")
    columns = [field.name for field in MODELS[model]._meta.concrete_fields] + ["pk", "nonsense", "_meta"]
    relations = ["process__host__regex", "memberships__group", "process__process__process", "__", "a__b__c"]
    return [
        *admin,
        *filters,
        *dates,
        *(f"{column}{kind}" for column in columns for kind in kinds),
        *relations,
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_parameter_of_a_list_is_an_error_of_the_server(admin_client, keys, model, name):
    for parameter in parameters(model):
        try:
            answer = admin_client.get(address(model, "changelist"), {parameter: HOSTILE[name]})
        except Exception as error:
            raise AssertionError(f"{parameter}={HOSTILE[name]!r} raised {error!r}") from error
        assert answer.status_code in (200, 302, 400), parameter


@pytest.mark.parametrize("model", MODELS)
def test_two_hostile_parameters_are_no_error_either(admin_client, keys, model):
    query = {
        "q": "'",
        "state": ["open", "\0"],
        "group": ["a", "%"],
        "o": ["1.-2.x"],
        "p": "-9",
        "all": ["1", "2"],
    }
    for first in query:
        for second in query:
            both = {first: query[first], second: query[second]}
            assert admin_client.get(address(model, "changelist"), both).status_code in (200, 302, 400)


class AuditAdmin(ConnectionAdmin):
    """The admin of a project that filters by columns of its choice."""

    list_filter = (*ConnectionAdmin.list_filter, "path", ("last_seen_at", admin.DateFieldListFilter))


@pytest.mark.parametrize(
    ("lookup", "allowed"),
    [
        ("state", True),
        ("user_id", True),
        ("opened_at__year", True),
        ("path", True),
        ("last_seen_at__gte", True),
        ("path_or_so", False),
        ("remote_address", False),
        ("user_id__regex", False),
        ("opened_at__regex", False),
        ("process__host", False),
    ],
)
def test_a_project_may_add_filters_by_other_columns(lookup, allowed, rf):
    audit = AuditAdmin(Connection, admin.site)
    assert audit.lookup_allowed(lookup, "7", rf.get("/")) == allowed


@pytest.mark.parametrize("key", ["nonsense", "\\0", "_5F", "..", "'", "%25", "9" * 400, "-1", "_", "é"])
@pytest.mark.parametrize("model", MODELS)
def test_no_key_in_the_address_is_an_error_of_the_server(admin_client, keys, model, key):
    for page in ("change", "history", "delete"):
        answer = admin_client.get(address(model, page, key))
        assert answer.status_code in (302, 403, 404), (page, answer.status_code)
