"""A right that ended ends the connection, in two processes, while clients talk and a reaper runs."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from tests.support.assertions.eventually import eventually_async
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.actor import Actor
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

INTERVAL = 2.0  # ROUND_INTERVAL
SOON = 5.0  # seconds; a signal closes within one on a calm machine
GONE, FORBIDDEN, KICKED = 4501, 4503, 4504

_names = itertools.count(1)


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite", server="daphne"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(
        pairing,
        ROUND_INTERVAL=INTERVAL,
        ROUND_TIMEOUT=INTERVAL / 2,
        REFRESH_BEFORE=3.0,
        POLICY="tests.support.applications.permitted.policy",
    )


class User:
    """A user with one connection to each server, over which its client talks all the time."""

    def __init__(self, servers: list[WebServer], key: int, session: str) -> None:
        self.key = key
        self.session = session
        headers = {"Cookie": f"sessionid={session}"}
        self.clients = [Client(each.websocket("/ws/"), headers=headers) for each in servers]
        self.sent = 0

    async def talk(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for number in itertools.count(1):
                for client in self.clients:
                    await client.send(
                        {"type": "publish", "ref": f"t{number}", "group": "public.x", "data": 1}
                    )
                self.sent = number
                await asyncio.sleep(0.02)

    async def codes(self, within: float = SOON) -> set[int | None]:
        return {await client.closes(within=within) for client in self.clients}

    @property
    def is_connected(self) -> bool:
        return all(client.is_open for client in self.clients)


@asynccontextmanager
async def connected(actor: Actor, servers: list[WebServer]) -> AsyncIterator[User]:
    user = User(servers, *await actor.log_in(f"user{next(_names)}"))
    async with user.clients[0], user.clients[1]:
        for client in user.clients:
            await client.welcomed()
        talking = asyncio.create_task(user.talk())
        try:
            yield user
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)


@pytest_asyncio.fixture
async def user(actor: Actor, servers: list[WebServer]) -> AsyncIterator[User]:
    async with connected(actor, servers) as made:
        yield made


@pytest_asyncio.fixture
async def bystander(actor: Actor, servers: list[WebServer]) -> AsyncIterator[User]:
    """A user that keeps all rights: its connections must stay."""
    async with connected(actor, servers) as made:
        yield made
        assert made.is_connected


SIGNALS = {
    "logout": ("logout(request_of({session!r}))", GONE),
    "password": ("user = User.objects.get(pk={key}); user.set_password('x'); user.save()", GONE),
    "deactivated": ("user = User.objects.get(pk={key}); user.is_active = False; user.save()", FORBIDDEN),
    "deleted": ("User.objects.get(pk={key}).delete()", FORBIDDEN),
    "disconnect": ("assert disconnect(user={key}) == 2", KICKED),
}


@pytest.mark.parametrize("what", SIGNALS)
async def test_an_ended_right_closes_in_all_processes(
    actor: Actor, user: User, bystander: User, what: str
) -> None:
    statements, code = SIGNALS[what]
    await actor.do(statements.format(key=user.key, session=user.session))
    assert await user.codes() == {code}


SQL = {
    "deactivated": ("UPDATE auth_user SET is_active = {false} WHERE id = {key}", FORBIDDEN),
    "password": ("UPDATE auth_user SET password = 'x' WHERE id = {key}", GONE),
    "session deleted": ("DELETE FROM django_session WHERE session_key = '{session}'", GONE),
    "session expired": (
        "UPDATE django_session SET expire_date = '2000-01-01' WHERE session_key = '{session}'",
        GONE,
    ),
}


@pytest.mark.parametrize("what", SQL)
async def test_a_change_by_sql_is_found_within_a_round(
    site: Site, user: User, bystander: User, what: str
) -> None:
    statement, code = SQL[what]
    # PostgreSQL takes no number for a Boolean, and old SQLite no word.
    false = "false" if site.pairing.database == "postgres" else "0"
    site.database.query(statement.format(key=user.key, session=user.session, false=false))
    assert await user.codes(within=INTERVAL + SOON) == {code}


async def test_a_lost_permission_removes_a_client_that_goes_on_talking(
    actor: Actor, user: User, bystander: User
) -> None:
    """It asks to join again without a pause."""
    await actor.do(
        "group, _ = Group.objects.get_or_create(name='readers');"
        "group.permissions.add(Permission.objects.get(codename='view_user'));"
        f"User.objects.get(pk={user.key}).groups.add(group)"
    )
    for client in user.clients:
        assert (await client.join("secret.plans"))["type"] == "joined"
    rejoining = asyncio.create_task(rejoin(user.clients[0]))
    try:
        await actor.do("Group.objects.get(name='readers').permissions.clear()")
        for client in user.clients:
            removed = await client.seen(lambda frame: frame["type"] == "removed", within=SOON)
            assert removed == {"type": "removed", "group": "secret.plans", "reason": "forbidden"}
        assert (await user.clients[0].join("secret.plans"))["code"] == "forbidden"
        rejoining.cancel()
        before = [len(client.messages) for client in user.clients]
        await actor.do("from realtime import publish; publish('secret.plans', 1)")
        await bystander.clients[0].join("public.x")
        assert [len(client.messages) for client in user.clients] == before
    finally:
        rejoining.cancel()
        await asyncio.gather(rejoining, return_exceptions=True)
    assert user.is_connected


async def rejoin(client: Client) -> None:
    for number in itertools.count(1):
        if not client.of_type("removed"):
            # More than ten refusals in a minute would close it.
            await client.send({"type": "join", "ref": f"again{number}", "group": "secret.plans"})
        await asyncio.sleep(0.02)


async def test_a_client_that_floods_its_own_queue_is_closed_in_time(
    actor: Actor, user: User, bystander: User
) -> None:
    async def flood(client: Client) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                frames = [json.dumps({"type": "join", "ref": n, "group": f"public.{n}"}) for n in range(20)]
                for frame in frames:
                    await client.send(frame)
                await asyncio.sleep(0.01)

    flooding = [asyncio.create_task(flood(client)) for client in user.clients]
    try:
        await asyncio.sleep(0.3)
        await actor.log_out(user.session)
        # Or the flood has ended it already.
        assert await user.codes() <= {GONE, 4029}
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)


async def test_a_logout_reaches_a_process_that_stood_still(
    actor: Actor, servers: list[WebServer], user: User, bystander: User
) -> None:
    servers[1].freeze()
    try:
        took = await actor.log_out(user.session)
        assert took < SOON
        assert await user.clients[0].closes(within=SOON) == GONE
        assert user.clients[1].is_open
    finally:
        servers[1].thaw()
    assert await user.clients[1].closes(within=INTERVAL + SOON) == GONE


async def test_an_expiring_session_asks_for_a_refresh_and_then_closes(site: Site, user: User) -> None:
    in_4_s = (
        "datetime('now', '+4 seconds')" if site.pairing.database == "sqlite" else "now() + interval '4 s'"
    )
    soon = "UPDATE django_session SET expire_date = {} WHERE session_key = '{}'"
    site.database.query(soon.format(in_4_s, user.session))
    for client in user.clients:
        await client.seen(lambda frame: frame["type"] == "refresh", within=INTERVAL + SOON)
    assert await user.codes(within=SOON + 4) == {GONE}


async def test_a_recheck_of_a_group_removes_its_members_everywhere(
    site: Site, actor: Actor, user: User, bystander: User
) -> None:
    for client in (*user.clients, *bystander.clients):
        assert (await client.join(f"room.{user.key}"))["type"] == "joined"
    await actor.do(f"Group.objects.create(name='closed.{user.key}')")
    assert not any(client.of_type("removed") for client in (*user.clients, *bystander.clients))
    await actor.do(f"recheck(group='room.{user.key}')")
    for client in (*user.clients, *bystander.clients):
        await client.seen(lambda frame: frame["type"] == "removed", within=SOON)
    open_rows = "SELECT count(*) FROM realtime_membership WHERE left_at IS NULL AND \"group\" = 'room.{}'"
    await eventually_async(lambda: site.database.value(open_rows.format(user.key)) == 0, within=SOON)
