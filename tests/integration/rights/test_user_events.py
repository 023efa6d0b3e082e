"""Django's signals end connections and have the policy asked again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import transaction
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext

from realtime import user_events
from realtime.layers import groups
from realtime.models import Connection as Record
from tests.support.clients.logged_in import Device, device, make_user

pytestmark = pytest.mark.usefixtures("site", "_no_pause")

GONE, FORBIDDEN = 4501, 4503


@pytest.fixture
def policy(realtime_settings: Any) -> None:
    """A policy that asks Django's groups and permissions."""
    realtime_settings(POLICY=f"{__name__}.by_permission")


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_events, "_paused_until", 0.0)


def by_permission(scope: dict[str, Any], action: str, group: str) -> bool:
    user = scope["user"]
    if group == "staff.only":
        return bool(user.is_staff)
    return bool(user.has_perm("auth.add_user") or user.groups.filter(name=group).exists())


in_thread = database_sync_to_async


async def test_a_logout_closes_the_connections_of_its_session() -> None:
    user = await make_user("anne")
    one, other = await device(user), await device(user)
    await one.log_out()
    assert await one.closes() == GONE
    assert await other.stays()
    record = await Record.objects.aget(closed_at__isnull=False)
    assert record.close_reason == "not_authenticated"


async def test_a_logout_is_told_by_its_signal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_thread(post_delete.disconnect)(sender=Session, dispatch_uid="realtime.rights")
    user = await make_user("anne")
    one = await device(user)
    await one.log_out()
    assert await one.closes() == GONE


async def test_a_new_password_closes_all_connections_of_the_user() -> None:
    user = await make_user("anne")
    one, other = await device(user), await device(user)
    stranger = await device(await make_user("bob"))

    @in_thread
    def change() -> None:
        user.set_password("new")
        user.save(update_fields=["password"])

    await change()
    assert [await each.closes() for each in (one, other)] == [GONE, GONE]
    assert await stranger.stays()


@pytest.mark.parametrize("how", ["deactivated", "deleted"])
async def test_a_user_that_is_no_more_is_forbidden(how: str) -> None:
    user = await make_user("anne")
    one = await device(user)
    if how == "deleted":
        await user.adelete()
    else:
        user.is_active = False
        await user.asave()
    assert await one.closes() == FORBIDDEN


async def test_a_flushed_session_closes_its_connections() -> None:
    user = await make_user("anne")
    one, other = await device(user), await device(user)

    @in_thread
    def flush() -> None:
        one.browser.session.flush()

    await flush()
    assert await one.closes() == GONE
    assert await other.stays()


CHANGES: dict[str, Callable[[User, Group, Permission], object]] = {
    "user.groups.remove": lambda user, group, _: user.groups.remove(group),
    "user.groups.clear": lambda user, *_: user.groups.clear(),
    "group.user_set.remove": lambda user, group, _: group.user_set.remove(user),
    "group.user_set.clear": lambda _, group, __: group.user_set.clear(),
    "group.permissions.remove": lambda _, group, right: group.permissions.remove(right),
    "group.permissions.clear": lambda _, group, __: group.permissions.clear(),
    "permission.group_set.clear": lambda _, __, right: right.group_set.clear(),
    "group.delete": lambda _, group, __: group.delete(),
}


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("change", CHANGES)
async def test_a_lost_permission_removes_from_the_groups_that_need_it(change: str) -> None:
    user, group = await make_user("anne"), await Group.objects.acreate(name="editors")
    right = await Permission.objects.aget(codename="add_user")
    await in_thread(group.permissions.add)(right)
    await in_thread(user.groups.add)(group)
    one = await device(user)
    await one.join("public.lobby")
    await in_thread(CHANGES[change])(user, group, right)
    removed = await one.receive("removed")
    assert removed == {"type": "removed", "group": "public.lobby", "reason": "forbidden"}
    await one.send(type="join", ref=2, group="public.lobby")
    assert (await one.receive("error"))["code"] == "forbidden"


@pytest.mark.usefixtures("policy")
async def test_a_permission_of_the_user_alone_counts() -> None:
    user, right = await make_user("anne"), await Permission.objects.aget(codename="add_user")
    await in_thread(user.user_permissions.add)(right)
    one = await device(user)
    await one.join("public.lobby")
    await right.user_set.aremove(user)
    assert (await one.receive("removed"))["group"] == "public.lobby"


@pytest.mark.usefixtures("policy")
async def test_a_group_of_the_url_is_closed() -> None:
    user = await make_user("anne", is_staff=True)
    one = await device(user, "/ws/staff.only/")
    user.is_staff = False
    await user.asave()
    assert await one.closes() == FORBIDDEN


async def test_a_rollback_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    async def tell_all(messages: dict[str, object]) -> dict[str, object]:
        told.append(messages)
        return {}

    user = await make_user("anne")
    one = await device(user)
    monkeypatch.setattr(groups, "tell_all", tell_all)

    @in_thread
    def fail() -> None:
        with transaction.atomic():
            user.is_active = False
            user.save()
            one.browser.session.flush()
            user.groups.clear()
            transaction.set_rollback(True)

    await fail()
    assert not told
    assert await one.stays()


async def test_users_of_one_transaction_are_told_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    async def tell_all(messages: dict[str, object]) -> dict[str, object]:
        told.append(messages)
        return {}

    several = [await make_user(f"user{number}") for number in range(5)]
    devices = [await device(user) for user in several]
    monkeypatch.setattr(groups, "tell_all", tell_all)

    @in_thread
    def change() -> None:
        with transaction.atomic():
            with transaction.atomic():
                several[0].save()
                transaction.set_rollback(True)
            for user in several[1:]:
                user.save()

    await change()
    ((message,),) = [messages.values() for messages in told]
    assert set(message.users) == {str(user.pk) for user in several[1:]}
    assert all([await each.stays(0.05) for each in devices])


@pytest.mark.parametrize("save", ["login", "raw", "new"])
async def test_a_save_without_news_asks_nothing(save: str) -> None:
    user = await make_user("anne")

    @in_thread
    def queries() -> list[str]:
        from django.db import connection

        with CaptureQueriesContext(connection) as captured:
            if save == "login":
                user.save(update_fields=["last_login"])
            elif save == "raw":
                user.save_base(raw=True)
            else:
                User.objects.create_user("new")
        return [each["sql"] for each in captured if "realtime" in each["sql"]]

    assert await queries() == []


async def test_a_user_without_connections_costs_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    await device(await make_user("bob"))
    user = await make_user("anne")

    async def tell_all(messages: dict[str, object]) -> dict[str, object]:
        raise AssertionError(messages)

    monkeypatch.setattr(groups, "tell_all", tell_all)

    @in_thread
    def queries() -> list[str]:
        from django.db import connection

        with CaptureQueriesContext(connection) as captured:
            user.save()
        return [each["sql"] for each in captured if "realtime" in each["sql"]]

    assert len(await queries()) == 1


async def test_an_error_does_not_reach_the_application(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    user = await make_user("anne")
    one = await device(user)

    async def tell_all(messages: dict[str, object]) -> dict[str, object]:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(groups, "tell_all", tell_all)
    monkeypatch.setattr(user_events, "TELL_TIMEOUT", 0.05)
    await user.asave()
    await user.asave()
    assert [each.message for each in caplog.records if "were not told" in each.message] != []
    assert len([each for each in caplog.records if "were not told" in each.message]) == 1
    assert await one.stays(0.05)


async def test_clearsessions_stays_one_statement_without_requests() -> None:
    """A receiver of `post_delete` would make it load every expired session."""

    @in_thread
    def statements() -> list[str]:
        from django.db import connection

        post_delete.disconnect(sender=Session, dispatch_uid="realtime.rights")
        user_events.connect()
        with CaptureQueriesContext(connection) as captured:
            call_command("clearsessions")
        return [each["sql"] for each in captured if "session" in each["sql"]]

    (statement,) = await statements()
    assert statement.startswith("DELETE")


async def test_the_first_request_hears_of_flushed_sessions() -> None:
    @in_thread
    def hears() -> list[bool]:
        post_delete.disconnect(sender=Session, dispatch_uid="realtime.rights")
        user_events.connect()
        before = post_delete.has_listeners(Session)
        Device().browser.get("/health/live")
        return [before, post_delete.has_listeners(Session)]

    assert await hears() == [False, True]
