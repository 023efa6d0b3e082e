"""The first minute of a person with the demo: the page, a connection, messages, and the commands."""

import asyncio
import json
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator

import pytest

from tests.support.assertions.eventually import eventually, eventually_async
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

PING_INTERVAL = 1.5
PONG_TIMEOUT = 1.0
SLACK = 2.0  # seconds for a busy machine, on top of a bound

#: All frames that a client may see if it did not offer `realtime.v1`.
FRAMES_FOR_ANYBODY = {"message", "joined", "left", "published", "presence", "error"}


# Always both servers, because each has its own way to end a connection.
@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT)


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


@pytest.fixture
async def client(server: WebServer) -> AsyncIterator[Client]:
    """A client of `realtime.v1` in no group."""
    async with Client(server.websocket("/ws/")) as client:
        await client.welcomed()
        yield client


# -- the page and the publish command


def test_the_page_answers(server: WebServer) -> None:
    with urllib.request.urlopen(server.http("/"), timeout=10) as answer:  # noqa: S310 - loopback
        assert answer.status == 200
        assert "text/html" in answer.headers["Content-Type"]


async def test_a_plain_client_gets_what_the_publish_command_sends(site: Site, server: WebServer) -> None:
    async with Client(server.websocket("/ws/public.lobby/"), plain=True) as plain:
        done = await site.amanage("publish", "public.lobby", '{"hello": 1}')

        assert done.returncode == 0, done.stderr
        frame = await plain.seen(lambda frame: frame["type"] == "message")
        assert frame == {"type": "message", "group": "public.lobby", "data": {"hello": 1}}


async def test_a_plain_client_is_pinged_without_frames_of_the_protocol(
    server: WebServer,
) -> None:
    async with Client(server.websocket("/ws/public.quiet/"), plain=True) as plain:
        await plain.send({"type": "ping", "n": 7})
        with pytest.raises(AssertionError):
            await plain.closes(within=2 * PING_INTERVAL + PONG_TIMEOUT)
        assert {frame["type"] for frame in plain.frames} <= FRAMES_FOR_ANYBODY
        assert (await plain.join("public.other"))["type"] == "joined"


async def test_each_line_of_standard_input_is_published_in_order(site: Site, server: WebServer) -> None:
    values = [1, "zwei", None, [3, {"vier": 4.5}], {"grüße": "☃"}]
    lines = "".join(json.dumps(value) + "\n" for value in values)
    async with Client(server.websocket("/ws/public.lines/")) as client:
        await client.welcomed()
        done = await site.amanage("publish", "public.lines", stdin=lines)

        assert done.returncode == 0, done.stderr
        await eventually_async(lambda: client.data == values, within=5)


async def test_a_line_is_published_before_the_input_ends(site: Site, server: WebServer) -> None:
    async with Client(server.websocket("/ws/public.stream/")) as client:
        await client.welcomed()
        publisher = site.publisher("public.stream")
        publisher.send("1")
        await eventually_async(lambda: client.data == [1], within=10)
        publisher.send("2")
        await eventually_async(lambda: client.data == [1, 2], within=10)
        assert publisher.finish() == 0


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["public.lobby", "{not json"], ""),
        (["no spaces allowed", "1"], ""),
        (["realtime.reserved", "1"], ""),
        (["public.lobby"], "{not json\n"),
    ],
)
def test_a_bad_publish_fails_with_a_sentence(site: Site, arguments: list[str], stdin: str) -> None:
    done = site.manage("publish", *arguments, stdin=stdin)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


# -- the subprotocol


async def test_welcome_is_the_first_frame_and_names_the_groups(server: WebServer) -> None:
    async with Client(server.websocket("/ws/public.lobby/")) as client:
        welcome = await client.welcomed()

        assert client.subprotocol == "realtime.v1"
        assert client.frames[0] == welcome
        assert welcome["groups"] == ["public.lobby"]
        assert welcome["max_silence"] == 45.0
        assert len(welcome["connection"]) >= 32


async def test_two_connections_have_two_names(server: WebServer, client: Client) -> None:
    async with Client(server.websocket("/ws/")) as other:
        assert (await other.welcomed())["connection"] != (await client.welcomed())["connection"]


async def test_a_client_that_answers_stays_and_pings_count_from_one(client: Client) -> None:
    await client.seen(lambda frame: frame == {"type": "ping", "n": 3}, within=4 * PING_INTERVAL + SLACK)

    assert [frame["n"] for frame in client.of_type("ping")] == [1, 2, 3]
    assert client.is_open


async def test_a_client_that_does_not_answer_is_closed_with_4008(server: WebServer) -> None:
    async with Client(server.websocket("/ws/public.lobby/")) as silent:
        silent.answers_pings = False
        code = await silent.closes(within=PING_INTERVAL + PONG_TIMEOUT + SLACK)

        assert code == 4008
        assert silent.of_type("goodbye") == []


async def test_a_ping_of_the_client_is_answered_with_its_number(client: Client) -> None:
    await client.send({"type": "ping", "n": 41})

    assert await client.seen(lambda frame: frame["type"] == "pong") == {"type": "pong", "n": 41}


async def test_join_publish_and_leave_answer_with_their_ref(client: Client) -> None:
    joined = await client.join("public.room")
    published = await client.publish("public.room", {"text": "hello"})
    message = await client.seen(lambda frame: frame["type"] == "message")
    left = await client.leave("public.room")

    assert joined == {"type": "joined", "ref": 1, "group": "public.room"}
    assert published == {"type": "published", "ref": 2, "group": "public.room"}
    # `from` is null, not absent: the server says that an anonymous client sent this.
    assert message == {"type": "message", "group": "public.room", "data": {"text": "hello"}, "from": None}
    assert left == {"type": "left", "ref": 3, "group": "public.room"}


async def test_no_message_arrives_after_leaving_a_group(client: Client) -> None:
    await client.join("public.left")
    await client.join("public.kept")
    await client.leave("public.left")
    await client.publish("public.left", "lost on me")
    await client.publish("public.kept", "end")

    await client.seen(lambda frame: frame["type"] == "message")
    assert client.data == ["end"]


async def test_a_ref_may_be_a_text(client: Client) -> None:
    await client.send({"type": "join", "ref": "first", "group": "public.room"})

    assert (await client.seen(lambda frame: frame.get("ref") == "first"))["type"] == "joined"


async def test_unknown_fields_are_ignored(client: Client) -> None:
    assert (await client.ask("join", group="public.room", colour="blue"))["type"] == "joined"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{nonsense", "bad_frame"),
        ('["no", "object"]', "bad_frame"),
        ({"type": "join", "group": "public.room"}, "bad_frame"),
        ({"type": "join", "ref": "r", "group": 5}, "bad_frame"),
        ({"type": "dance", "ref": "r"}, "unknown_type"),
        ({"type": "join", "ref": "r", "group": "staff.room"}, "forbidden"),
        ({"type": "join", "ref": "r", "group": "elsewhere"}, "forbidden"),
        ({"type": "publish", "ref": "r", "group": "user.1", "data": 0}, "forbidden"),
        ({"type": "join", "ref": "r", "group": "with space"}, "bad_group"),
        ({"type": "join", "ref": "r", "group": "realtime.x"}, "bad_group"),
        ({"type": "leave", "ref": "r", "group": "public.never-joined"}, "not_joined"),
    ],
)
async def test_a_refused_frame_is_answered_and_the_connection_goes_on(
    client: Client, frame: object, code: str
) -> None:
    await client.send(frame)
    error = await client.seen(lambda frame: frame["type"] == "error")

    assert error["code"] == code
    assert error["detail"]
    assert error.get("ref") == (frame.get("ref") if isinstance(frame, dict) else None)
    assert (await client.join("public.room"))["type"] == "joined"


async def test_an_empty_close_is_recorded_as_the_clients_own(site: Site, server: WebServer) -> None:
    async with Client(server.websocket("/ws/public.lobby/")) as client:
        name = (await client.welcomed())["connection"].replace("-", "")

    def reason() -> str | None:
        rows = site.database.query(
            "SELECT id, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
        )
        return next((row["close_reason"] for row in rows if str(row["id"]).replace("-", "") == name), None)

    assert await eventually_async(reason, within=5) == "client_closed"


# -- reap_connections


@pytest.mark.parametrize(
    "options",
    [
        ["--interval", "0"],
        ["--interval", "-1"],
        ["--interval", "nan"],
        ["--timeout", "0"],
        ["--interval", "2", "--timeout", "3"],
    ],
)
def test_reap_connections_refuses_impossible_times(site: Site, options: list[str]) -> None:
    done = site.manage("reap_connections", "--once", *options)

    assert done.returncode == 2
    sentence = done.stderr.strip()
    assert sentence.count("\n") == 0, sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("options", [["--interval", "soon"], ["--format", "xml"], ["--unknown"]])
def test_reap_connections_refuses_options_that_it_cannot_read(site: Site, options: list[str]) -> None:
    done = site.manage("reap_connections", "--once", *options)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_reap_connections_ends_within_two_seconds_of_sigterm(site: Site, server: WebServer) -> None:
    reaper = site.reaper("--interval", "1", "--timeout", "0.5")
    reaper.wait_for_a_round()
    reaper.terminate()

    assert reaper.exit_code(within=2 + SLACK) == 0
    assert "Traceback" not in reaper.log_text()


def test_reap_connections_ends_in_two_seconds_within_a_round(site: Site, start_site: StartSite) -> None:
    site = start_site(site.pairing)
    frozen = site.serve()
    # The process gets its row with its first connection, and then answers nothing.
    asyncio.run(_open_and_close(frozen.websocket("/ws/public.lobby/")))
    # If it were stopped in the middle of a write, it would keep SQLite's lock, and no other program could
    # write.
    eventually(lambda: _nothing_to_write(site), within=10)
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        reaper = site.reaper("--interval", "60", "--timeout", "30")
        eventually(lambda: site.database.query("SELECT number FROM realtime_round"), within=10)
        reaper.terminate()

        assert reaper.exit_code(within=2 + SLACK) == 0
        assert site.database.value("SELECT missed FROM realtime_process") == 0
    finally:
        frozen.process.send_signal(signal.SIGCONT)


def _nothing_to_write(site: Site) -> bool:
    return not site.database.query(
        "SELECT 1 FROM realtime_connection WHERE closed_at IS NULL "
        "UNION SELECT 1 FROM realtime_membership WHERE left_at IS NULL"
    )


async def _open_and_close(url: str) -> None:
    async with Client(url) as client:
        await client.welcomed()


def _killed_with_connections(site: Site, count: int) -> None:
    server = site.serve()

    async def connect_and_kill() -> None:
        clients = [await Client(server.websocket("/ws/public.lobby/")).open() for _ in range(count)]
        for client in clients:
            await client.welcomed()
        server.kill()
        for client in clients:
            await client.close()

    asyncio.run(connect_and_kill())


ONCE = ("reap_connections", "--once", "--interval", "1", "--timeout", "0.5")


def test_once_exits_3_after_repairs_and_0_otherwise(site: Site, start_site: StartSite) -> None:
    site = start_site(site.pairing)
    healthy = site.serve()
    asyncio.run(_open_and_close(healthy.websocket("/ws/public.lobby/")))
    assert site.manage(*ONCE).returncode == 0

    _killed_with_connections(site, 3)
    repaired = site.manage(*ONCE)

    assert repaired.returncode == 3, repaired.stdout + repaired.stderr
    assert site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL") == 0
    assert site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL") == 0
    assert site.manage(*ONCE).returncode == 0


def test_once_exits_1_when_a_round_failed(site: Site, start_site: StartSite) -> None:
    site = start_site(site.pairing)
    _killed_with_connections(site, 1)
    site.look_remote()
    site.redis.kill()
    done = site.manage(*ONCE)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL") == 1


def test_dry_run_reports_and_changes_nothing(site: Site, start_site: StartSite) -> None:
    site = start_site(site.pairing)
    _killed_with_connections(site, 3)

    def everything() -> list[object]:
        tables = [
            site.database.query("SELECT * FROM realtime_connection ORDER BY id"),
            site.database.query("SELECT * FROM realtime_membership ORDER BY id"),
            site.database.query("SELECT * FROM realtime_process ORDER BY id"),
            site.database.query("SELECT * FROM realtime_round"),
        ]
        with site.redis.client() as redis:
            return [*tables, sorted(redis.keys("asgi:group:*"))]

    before = everything()
    done = site.manage(*ONCE, "--dry-run", "--format", "json")

    assert done.returncode in (0, 3), done.stderr
    assert everything() == before
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["reaped"] == 3


def test_a_round_is_one_line_of_text_or_of_json(site: Site, server: WebServer) -> None:
    asyncio.run(_open_and_close(server.websocket("/ws/public.lobby/")))
    words = {"asked", "answered", "lost", "reaped", "discarded"}
    for line in _lines(site.manage(*ONCE)):
        assert all(word in line for word in words), line
    for line in _lines(site.manage(*ONCE, "--format", "json")):
        report = json.loads(line)
        assert words | {"seconds"} <= report.keys()
        assert report["asked"] == report["answered"] == 1
        assert report["lost"] == 0


def test_once_says_so_when_another_reaper_ran_the_rounds(site: Site, start_site: StartSite) -> None:
    site = start_site(site.pairing)
    site.reaper("--interval", "0.6", "--timeout", "0.3").wait_for_a_round()
    # Its own round would come 5 s after the last one, and the other reaper always runs one before.
    once = ("reap_connections", "--once", "--interval", "5", "--timeout", "0.3")
    done = site.manage(*once)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.stdout.startswith("Another reaper ran these rounds")
    assert site.manage(*once, "--format", "json").stdout == ""


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    return lines
