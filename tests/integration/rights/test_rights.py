"""The rights of the connections of one process: what is read, when, and what it leads to."""

import asyncio
import json
import time
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.db import OperationalError
from django.urls import path
from django.utils import timezone

from realtime import apublish, policy
from realtime.closing import CloseReason
from realtime.consumers import GroupConsumer, RealtimeConsumer
from realtime.errors import BadGroup, LayerUnavailable
from realtime.hub import rights
from realtime.layers import groups
from realtime.models import Connection as Record
from realtime.models import Membership
from realtime.revoking import adisconnect, arecheck, disconnect, recheck
from realtime.rights import sessions, users
from realtime.rights.authorization import SCOPE_KEY, Authorization
from realtime.serving import lifecycle
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.logged_in import Device, device, groups_application, make_user

pytestmark = pytest.mark.usefixtures("site")

GONE, FORBIDDEN = 4501, 4503
in_thread = database_sync_to_async
allowed: dict[str, bool] = {}


async def by_table(scope: dict[str, Any], action: str, group: str) -> bool:
    """A policy that relies on something which Django does not know."""
    return allowed.get(group, True)


@pytest.fixture
def table(realtime_settings: Any) -> dict[str, bool]:
    allowed.clear()
    realtime_settings(POLICY=f"{__name__}.by_table")
    return allowed


@pytest.fixture
def often(realtime_settings: Any) -> None:
    realtime_settings(ROUND_INTERVAL=0.3, ROUND_TIMEOUT=0.1)


# -- rounds ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("change", "code"),
    [({"is_active": False}, FORBIDDEN), ({"password": "other"}, GONE), (None, FORBIDDEN)],
    ids=["inactive", "password", "deleted"],
)
async def test_a_user_changed_by_sql_is_found_within_a_round(
    change: dict[str, Any] | None, code: int
) -> None:
    user = await make_user("anne")
    one, other = await device(user), await device(await make_user("bob"))
    row = User.objects.filter(pk=user.pk)
    if change is None:
        await database_sync_to_async(row._raw_delete)(row.db)
    else:
        await row.aupdate(**change)
    assert await one.closes() == code
    assert await other.stays()


@pytest.mark.usefixtures("often")
async def test_permissions_changed_by_sql_are_found_within_a_round(realtime_settings: Any) -> None:
    realtime_settings(POLICY="tests.integration.rights.test_user_events.by_permission")
    user, group = await make_user("anne"), await Group.objects.acreate(name="editors")
    right = await Permission.objects.aget(codename="add_user")
    await in_thread(group.permissions.add)(right)
    await in_thread(user.groups.add)(group)
    one = await device(user)
    await one.join("public.lobby")
    await all_checked()
    rows = Group.permissions.through.objects.all()
    await database_sync_to_async(rows._raw_delete)(rows.db)
    assert (await one.receive("removed"))["group"] == "public.lobby"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("how", ["expired", "deleted"])
async def test_a_session_changed_by_sql_is_found_within_a_round(how: str) -> None:
    one = await device(await make_user("anne"))
    row = Session.objects.filter(session_key=one.session)
    if how == "expired":
        await row.aupdate(expire_date=timezone.now())
    else:
        await database_sync_to_async(row._raw_delete)(row.db)
    assert await one.closes() == GONE


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("engine", ["db", "cached_db", "cache", "file"])
async def test_every_session_engine_is_read(engine: str, settings: Any, tmp_path: Any) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": tmp_path}
    }
    user = await make_user("anne")
    one, other = await device(user), await device(user)
    assert await other.stays(rights.CHECK_NEW_AFTER * 2)
    await database_sync_to_async(one.browser.session.delete)(one.session)
    assert await one.closes() == GONE
    assert await other.stays()
    await database_sync_to_async(cache.clear)()


@pytest.mark.usefixtures("often")
async def test_a_session_in_a_cookie_stays_until_its_age(settings: Any) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.SESSION_COOKIE_AGE = 3
    one = await device(await make_user("anne"))
    assert await one.stays(1)
    assert await one.closes() == GONE


class Slow:
    """The events of a policy that waits. Each test has its own loop, and so its own events."""

    began: asyncio.Event
    answered: asyncio.Event


@pytest.fixture
async def slow(realtime_settings: Any) -> type[Slow]:
    realtime_settings(POLICY=f"{__name__}.slow_yes")
    Slow.began, Slow.answered = asyncio.Event(), asyncio.Event()
    return Slow


# -- the moment of the handshake ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["session", "user", "staff"])
async def test_a_right_that_ends_during_the_handshake_is_found(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middleware has read it, and no record says yet which process must be told."""
    user = await make_user("anne", is_staff=True)
    one = await Device().log_in(user)
    admit = lifecycle._admit

    async def late(connection: Any) -> None:
        if what == "session":
            rows = Session.objects.filter(session_key=one.session)
            await database_sync_to_async(rows._raw_delete)(rows.db)
        elif what == "user":
            await User.objects.filter(pk=user.pk).aupdate(is_active=False)
        else:
            await User.objects.filter(pk=user.pk).aupdate(is_staff=False)
        await admit(connection)

    monkeypatch.setattr(lifecycle, "_admit", late)
    await one.connect("/ws/staff.only/")
    expected = {"session": GONE, "user": FORBIDDEN, "staff": FORBIDDEN}
    assert await one.closes() == expected[what]


async def test_a_join_that_races_with_the_revocation_is_undone(slow: type[Slow]) -> None:
    """The policy answers yes from what it read before the change."""
    user = await make_user("anne", is_staff=True)
    one = await device(user)
    await one.send(type="join", ref=1, group="staff.only")
    await slow.began.wait()
    user.is_staff = False
    await user.asave()
    await eventually_async(lambda: one_connection().rights_read > 0, within=5)
    slow.answered.set()
    assert (await one.receive("error"))["code"] == "forbidden"
    assert not await Membership.objects.filter(group="staff.only").aexists()


async def test_a_member_that_joins_again_is_told_of_its_removal(slow: type[Slow]) -> None:
    """The policy says no to the second join, and the recheck removed the member while it was asked."""
    user = await make_user("anne", is_staff=True)
    one = await device(user)
    slow.answered.set()
    await one.join("staff.only")
    await all_checked()
    slow.answered.clear()
    slow.began.clear()
    await one.send(type="join", ref=2, group="staff.only")
    await slow.began.wait()
    before = one_connection().rights_read
    user.is_staff = False
    await user.asave()
    await eventually_async(lambda: one_connection().rights_read > before, within=5)
    slow.answered.set()
    assert (await one.receive("error"))["code"] == "forbidden"
    assert (await one.receive("removed"))["group"] == "staff.only"
    await eventually_async(lambda: not one_connection().groups, within=5)


async def slow_yes(scope: dict[str, Any], action: str, group: str) -> bool:
    answer = bool(scope["user"].is_staff)
    Slow.began.set()
    await Slow.answered.wait()
    return answer


async def all_checked() -> None:
    """Wait until all connections were checked for the first time."""
    hub = lifecycle._hubs_here()._by_alias["default"].result()
    await eventually_async(lambda: all(each.rights_read for each in hub.connections.values()), within=5)
    await eventually_async(lambda: not hub.rights._askers, within=5)


def one_connection() -> Any:
    (connection,) = lifecycle._hubs_here()._by_alias["default"].result().connections.values()
    return connection


async def test_a_join_whose_record_is_late_is_undone_after_its_answer(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, bool]
) -> None:
    one = await device(await make_user("anne"))
    hub = one_connection().hub
    join, go_on = hub.ledger.join, asyncio.Event()

    async def late(row: Any) -> None:
        await go_on.wait()
        await join(row)

    monkeypatch.setattr(hub.ledger, "join", late)
    await one.send(type="join", ref=1, group="public.lobby")
    await eventually_async(lambda: "public.lobby" in one_connection().joined, within=5)
    table["public.lobby"] = False
    await arecheck(group="public.lobby")
    await eventually_async(lambda: rights.Rechecks.count > 0, within=5)
    go_on.set()
    await one.receive("joined")
    assert (await one.receive("removed"))["group"] == "public.lobby"
    assert one_connection().groups == set()
    await eventually_async(lambda: not one_connection().joined, within=5)
    await eventually_async(lambda: one_connection().hub.cleanups == set(), within=5)
    assert await Membership.objects.filter(left_at__isnull=True).acount() == 0


# -- recheck -----------------------------------------------------------------------------------------------


async def test_a_recheck_of_a_group_asks_about_its_members_only(table: dict[str, bool]) -> None:
    one, other = await device(await make_user("anne")), await device(await make_user("bob"))
    await one.join("public.a")
    await one.join("public.b")
    await other.join("public.b")
    await all_checked()
    table |= {"public.a": False, "public.b": False}
    await arecheck(group="public.a")
    assert (await one.receive("removed"))["group"] == "public.a"
    assert await one.stays()
    assert await other.stays(0.05)
    await database_sync_to_async(recheck)(user=(await User.objects.aget(username="bob")))
    assert (await other.receive("removed"))["group"] == "public.b"
    assert await one.stays(0.1)


async def test_a_recheck_of_everything_asks_about_anonymous_clients(table: dict[str, bool]) -> None:
    stranger = WebsocketCommunicator(groups_application, "/ws/", subprotocols=["realtime.v1"])
    await stranger.connect()
    await stranger.send_json_to({"type": "join", "ref": 1, "group": "public.a"})
    one = await device(await make_user("anne"))
    await one.join("public.a")
    table["public.a"] = False
    await arecheck()
    assert (await one.receive("removed"))["group"] == "public.a"
    while (await stranger.receive_json_from(timeout=5))["type"] != "removed":
        pass


async def test_a_policy_that_fails_means_no(table: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    one = await device(await make_user("anne"))
    await one.join("public.a")

    async def fails(*_: Any) -> bool:
        raise KeyError("room")

    monkeypatch.setattr(policy, "allows", fails)
    await arecheck(group="public.a")
    assert (await one.receive("removed"))["group"] == "public.a"


@pytest.mark.usefixtures("often")
async def test_a_policy_without_a_database_is_asked_again(
    table: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await device(await make_user("anne"))
    await one.join("public.a")
    down = True

    async def allows(*_: Any) -> bool:
        if down:
            raise OperationalError("away")
        return False

    monkeypatch.setattr(policy, "allows", allows)
    await arecheck(group="public.a")
    assert await one.stays(0.5)
    down = False
    assert (await one.receive("removed"))["group"] == "public.a"


async def test_a_group_that_a_subclass_chose_itself_stays(table: dict[str, bool]) -> None:
    class Inside(GroupConsumer):
        async def connect(self) -> None:
            await self.group_add("internal.news")
            await super().connect()

    stack = URLRouter([path("ws/", Inside.as_asgi())])
    one = await device(await make_user("anne"), application=with_session(stack))
    await one.join("public.a")
    table |= {"public.a": False, "internal.news": False}
    await arecheck()
    assert (await one.receive("removed"))["group"] == "public.a"
    await apublish("internal.news", 1)
    assert (await one.receive("message"))["data"] == 1


def with_session(inner: Any) -> Any:
    from realtime.auth import AuthMiddlewareStack

    stack = AuthMiddlewareStack(inner)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await stack(scope, receive, send)

    return application


async def test_the_handler_of_an_author_is_told_of_changes() -> None:
    class Own(RealtimeConsumer):
        async def connect(self) -> None:
            await self.accept("realtime.v1")

        async def rights_changed(self, event: dict[str, Any]) -> None:
            staff = self.scope["user"].is_staff
            await self.send(json.dumps({"type": "told", "groups": event["groups"], "staff": staff}))

    user = await make_user("anne")
    one = await device(user, application=with_session(Own.as_asgi()))
    user.is_staff = True
    await user.asave()
    assert await one.receive("told") == {"type": "told", "groups": None, "staff": True}


async def test_a_handler_that_hangs_does_not_delay_its_revocation() -> None:
    class Hangs(RealtimeConsumer):
        async def connect(self) -> None:
            await self.accept("realtime.v1")

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await asyncio.sleep(60)

    one = await device(await make_user("anne"), application=with_session(Hangs.as_asgi()))
    for _ in range(50):
        await one.send(type="x")
    await one.log_out()
    assert await one.closes() == GONE


# -- ends --------------------------------------------------------------------------------------------------


async def test_a_ticket_that_ends_is_refreshed_or_closed(realtime_settings: Any) -> None:
    realtime_settings(REFRESH_BEFORE=0.4)
    relies = Authorization(user_id="", is_ticket=True, expires_at=time.time() + 0.8)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "user": AnonymousUser(), SCOPE_KEY: relies}
        await GroupConsumer.as_asgi()(scope, receive, send)

    one = await Device().log_in(await make_user("anne"))
    await one.connect(application=application)
    within = (await one.receive("refresh"))["within"]
    assert 0 < within <= 0.4
    connection = one_connection()
    connection.authorization = Authorization(user_id="", is_ticket=True, expires_at=time.time() + 0.6)
    connection.hub.rights.changed(connection)
    assert (await one.receive("refresh"))["within"] <= 0.4
    assert await one.closes() == GONE


@pytest.mark.usefixtures("often")
async def test_a_session_that_is_renewed_in_time_stays(realtime_settings: Any) -> None:
    realtime_settings(REFRESH_BEFORE=0.5)
    one = await device(await make_user("anne"))
    row = Session.objects.filter(session_key=one.session)
    await row.aupdate(expire_date=timezone.now() + timedelta(seconds=1.2))
    await one.receive("refresh")
    await row.aupdate(expire_date=timezone.now() + timedelta(seconds=2.2))
    await one.receive("refresh")
    assert await one.closes() == GONE


# -- outages -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("reader", [users, sessions], ids=["users", "sessions"])
async def test_an_outage_of_the_database_keeps_connections(
    reader: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    user = await make_user("anne")
    one = await device(user)

    def fails(*_: Any) -> dict[str, Any]:
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(reader, "read", fails)
        await User.objects.filter(pk=user.pk).aupdate(is_active=False)
        rows = Session.objects.filter(session_key=one.session)
        if reader is sessions:
            await User.objects.filter(pk=user.pk).aupdate(is_active=True)
            await database_sync_to_async(rows._raw_delete)(rows.db)
        assert await one.stays(0.8)
    assert len([each for each in caplog.records if "cannot be read" in each.message]) == 1
    assert await one.closes() == (GONE if reader is sessions else FORBIDDEN)


async def test_a_user_without_a_row_is_left_alone_by_rounds(
    often: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Stranger:
        __slots__ = ()
        pk, is_authenticated, is_staff = 7, True, False

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await GroupConsumer.as_asgi()({**scope, "user": Stranger()}, receive, send)

    one = await Device().log_in(await make_user("anne"))
    await one.connect(application=application)
    await one.receive("welcome")
    assert await one.stays(0.8)
    assert not [each for each in caplog.records if "cannot be read" in each.message]
    assert one_connection().authorization == Authorization(user_id="7")


async def test_anonymous_connections_are_not_looked_at() -> None:
    stranger = WebsocketCommunicator(groups_application, "/ws/", subprotocols=["realtime.v1"])
    await stranger.connect()
    held = one_connection().hub.rights
    assert (held._known, held._users, held._near) == ({}, {}, {})


async def test_nothing_is_kept_of_connections_that_ended() -> None:
    user = await make_user("anne")
    several = [await device(user) for _ in range(3)]
    held = lifecycle._hubs_here()._by_alias["default"].result().rights
    assert len(held._known) == 3
    for one in several:
        await one.socket.disconnect()
    await eventually_async(lambda: not held._known, within=5)
    assert (held._users, held._near, held._asking, held._ask_later) == ({}, {}, {}, {})


# -- disconnect --------------------------------------------------------------------------------------------


async def test_all_conditions_of_a_disconnect_count(table: dict[str, bool]) -> None:
    anne, bob = await make_user("anne"), await make_user("bob")
    one, two, three = [await device(user) for user in (anne, anne, bob)]
    for each in (one, three):
        await each.join("public.a")
    assert await adisconnect(user=anne, group="public.a", reason=CloseReason.FORBIDDEN) == 1
    assert await one.closes() == FORBIDDEN
    assert await two.stays(0.1)
    assert await adisconnect(group="public.a") == 1
    assert await three.closes() == 4504
    record = await Record.objects.aget(pk=one_connection().id)
    assert await database_sync_to_async(disconnect)(connection=str(record.pk), user=bob) == 0
    assert await database_sync_to_async(disconnect)(connection=record.pk) == 1
    assert await two.closes() == 4504


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        ({}, TypeError),
        ({"user": AnonymousUser()}, ValueError),
        ({"user": ""}, ValueError),
        ({"group": "no spaces"}, BadGroup),
        ({"connection": "7"}, ValueError),
    ],
    ids=["none", "anonymous", "empty", "group", "connection"],
)
async def test_a_disconnect_without_a_right_condition_is_refused(
    conditions: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await adisconnect(**conditions)


async def test_a_disconnect_that_was_not_told_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one = await device(await make_user("anne"))

    async def tell_all(messages: dict[str, object]) -> dict[str, LayerUnavailable]:
        return dict.fromkeys(messages, LayerUnavailable("Redis is away."))

    monkeypatch.setattr(groups, "tell_all", tell_all)
    with pytest.raises(LayerUnavailable, match=r"Redis is away\..*stay open"):
        await adisconnect(user=await User.objects.aget())
    assert await one.stays(0.05)
