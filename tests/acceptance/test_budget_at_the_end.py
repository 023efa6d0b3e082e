"""Daphne never has to kill a consumer, whatever its handlers do when the connection has ended."""

import asyncio
import time

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.databases import SqliteDatabase

pytestmark = pytest.mark.acceptance

APPLICATION = "tests.support.applications.misbehaving:application"
#: The default of Daphne's `application_close_timeout` in seconds, and the time until its next check.
DAPHNES_LIMIT, DAPHNES_CHECK = 10.0, 1.0


async def test_daphne_kills_no_consumer_after_the_end(start_site: StartSite) -> None:
    site = start_site(Pairing("pubsub", "daphne", "sqlite"))
    database = site.database
    assert isinstance(database, SqliteDatabase)
    server = site.serve(application=APPLICATION)
    slow_disconnect = Client(server.websocket("/disconnect/sleep%2060/"))
    stuck, stuck_twice = Client(server.websocket("/ws/")), Client(server.websocket("/disconnect/sleep%2060/"))
    hung_query = Client(server.websocket("/disconnect/write/"))
    failing = Client(server.websocket("/disconnect/sleep%2060/"))
    clients = [slow_disconnect, stuck, stuck_twice, hung_query, failing]
    for client in clients:
        await client.__aenter__()
    names = [(await client.welcomed())["connection"] for client in clients]
    for client, text in ((stuck, "sleep 60"), (stuck_twice, "sleep 60"), (failing, "raise")):
        await client.send(text)
    assert await failing.closes(within=5) == 4000
    with database.locked():
        began = time.monotonic()
        for client in clients:
            await client.__aexit__(None, None, None)
        await asyncio.sleep(DAPHNES_LIMIT + 2 * DAPHNES_CHECK)
    assert time.monotonic() - began > DAPHNES_LIMIT + DAPHNES_CHECK

    reasons = [await eventually_async(lambda name=name: site.close_reason(name), within=30) for name in names]
    assert reasons == ["client_closed"] * 4 + ["handler_error"]
    log = server.log_text()
    assert "was killed" not in log
    # Each of the five hangs in `disconnect`, and two hang before it. The two come to their own `disconnect`
    # when the query already holds the thread on which stale database connections are closed.
    assert log.count("A handler failed (handler_timeout)") == 7
    assert "never retrieved" not in log
    async with Client(server.websocket("/ws/")) as client:
        await client.send("echo")
        await client.seen(lambda frame: frame["type"] == "echo")
