"""Comparing database, layer and sockets of a real hub: every difference is named, and repaired."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import CommandError, call_command

from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.fleet import explain
from realtime.fleet.differences import Kind
from realtime.fleet.explain import Explained, Explainer
from realtime.fleet.rounds import Reaper, run_enough_rounds
from realtime.hub.connection import Connection
from realtime.layers import groups, messages
from realtime.models import Connection as Record
from realtime.models import Membership, PresentUser, Process
from realtime.presence import apresence
from realtime.records import connection_rows, process_rows
from realtime.serving import lifecycle
from realtime.transports.asgi import AsgiTransport, Event, Options, Watcher
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles import rows

pytestmark = pytest.mark.usefixtures("site")


@pytest_asyncio.fixture
async def explainer() -> AsyncIterator[Explainer]:
    made = Explainer(timeout=0.4, look_again_after=0.1)
    yield made
    await made.close()


async def a_peer(*names: str, user: Any = None) -> Connection:
    """Return a connection in these groups, with a socket that takes everything."""
    scope = {"path": "/ws/", "client": ["127.0.0.1", 5], "user": user or AnonymousUser()}
    connection = Connection(scope, lambda event: None)

    async def send(event: Event) -> None: ...

    send.__module__ = "daphne.server"
    connection.transport = AsgiTransport(send, Options(max_unsent=1000, send_timeout=5), Watcher())
    for name in names:
        await lifecycle.group_add(connection, name)
    await lifecycle.admit(connection)
    return connection


async def told(explainer: Explainer, *, rounds: Any = None) -> tuple[list[Explained], bool]:
    found: list[Explained] = []
    repaired = await explain.look_and_repair(explainer, found.append, rounds)
    return found, repaired


async def no_rounds() -> bool:
    return False


async def test_agreement_reports_nothing(explainer: Explainer) -> None:
    await a_peer("g", "h")
    await a_peer("g")
    assert await told(explainer, rounds=no_rounds) == ([], False)


async def test_a_record_without_a_socket_is_closed(explainer: Explainer) -> None:
    home = await lifecycle.hub()
    (lone,) = await database_sync_to_async(rows.open_connections)(home.process, 1)
    await database_sync_to_async(connection_rows.open_memberships)(rows.joins(home.process, [lone], "g"))
    found, repaired = await told(explainer, rounds=no_rounds)
    assert [each.difference.kind for each in found] == [Kind.RECORD_WITHOUT_SOCKET, Kind.ROW_WITHOUT_MEMBER]
    assert all(each.repaired for each in found)
    assert repaired
    assert (await Record.objects.aget(pk=lone)).close_reason == CloseReason.SERVER_LOST.value
    assert not await Membership.objects.to_leave().aexists()


async def test_a_socket_without_a_record_is_closed(explainer: Explainer) -> None:
    connection = await a_peer("g")
    await Record.objects.filter(pk=connection.id).aupdate(
        closed_at=(await Record.objects.aget()).opened_at, close_reason="idle"
    )
    found, _ = await told(explainer, rounds=no_rounds)
    assert [each.difference.kind for each in found] == [Kind.SOCKET_WITHOUT_RECORD]
    assert connection.reason is CloseReason.SERVER_LOST


async def test_a_member_without_a_row_gets_one(explainer: Explainer) -> None:
    await a_peer("g")
    await Membership.objects.all().adelete()
    found, _ = await told(explainer, rounds=no_rounds)
    assert [(each.difference.kind, each.repaired) for each in found] == [(Kind.MEMBER_WITHOUT_ROW, True)]
    assert await Membership.objects.to_leave().filter(group="g").acount() == 1


async def test_the_new_row_of_a_member_has_its_user(explainer: Explainer) -> None:
    anne = await User.objects.acreate_user("anne")
    await a_peer("g", user=anne)
    await Membership.objects.all().adelete()
    await PresentUser.objects.filter(group="g").adelete()
    await told(explainer, rounds=no_rounds)
    assert (await apresence("g")).users == (str(anne.pk),)
    assert (await Membership.objects.aget()).user_id == str(anne.pk)


async def test_a_row_without_a_member_does_not_keep_its_user_present(
    explainer: Explainer, realtime_settings: Any
) -> None:
    realtime_settings(PRESENCE_GRACE=0)
    connection = await a_peer("g", user=await User.objects.acreate_user("anne"))
    assert connection.hub is not None
    connection.hub.memberships.remove(connection, "g")
    found, _ = await told(explainer, rounds=no_rounds)
    assert [each.difference.kind for each in found] == [Kind.ROW_WITHOUT_MEMBER]
    assert (await apresence("g")).users == ()


async def test_lost_memberships_are_re_added_and_strays_left(explainer: Explainer) -> None:
    home = await lifecycle.hub()
    await a_peer("g")
    await get_channel_layer().group_discard("g", home.channel)
    await get_channel_layer().group_add("stray", home.channel)
    await get_channel_layer().group_add("strange", "specific.somebody-elses")
    found, repaired = await told(explainer, rounds=no_rounds)
    assert [(each.difference.kind, each.difference.group, each.repaired) for each in found] == [
        (Kind.NOT_IN_LAYER, "g", True),
        (Kind.ONLY_IN_LAYER, "stray", True),
        (Kind.UNKNOWN_CHANNEL, "strange", None),
    ]
    assert repaired
    assert {name for name, members in get_channel_layer().groups.items() if members} == {"g", "strange"}


async def test_a_stray_membership_of_an_ended_process_is_discarded(explainer: Explainer) -> None:
    ended = await database_sync_to_async(rows.a_process)(channel_name="specific.ended")
    await database_sync_to_async(process_rows.stop_process)(ended)
    await get_channel_layer().group_add("g", "specific.ended")
    found, _ = await told(explainer, rounds=no_rounds)
    assert [(each.difference.kind, each.process, each.repaired) for each in found] == [
        (Kind.ONLY_IN_LAYER, "web-1:4711", True)
    ]


@pytest.mark.acceptance  # for the seconds that rounds take
async def test_repairs_by_rounds_are_reported(explainer: Explainer) -> None:
    channel = await get_channel_layer().new_channel()
    silent = await database_sync_to_async(rows.a_process)(channel_name=channel)
    ended = await database_sync_to_async(rows.a_process)(channel_name="specific.ended")
    for process in (silent, ended):
        (connection,) = await database_sync_to_async(rows.open_connections)(process, 1)
        await database_sync_to_async(connection_rows.open_memberships)(rows.joins(process, [connection], "g"))
    await database_sync_to_async(process_rows.stop_process)(ended)
    reaper = Reaper(interval=0.2, timeout=0.15, misses_allowed=1)
    found, repaired = await told(explainer, rounds=lambda: run_enough_rounds(reaper, lambda report: None))
    await reaper.close()
    assert [(each.difference.kind, each.repaired) for each in found] == [
        (Kind.PROCESS_SILENT, True),
        (Kind.RECORD_OF_ENDED_PROCESS, True),
        (Kind.MEMBERSHIP_OF_ENDED_PROCESS, True),
    ]
    assert repaired
    assert (await Process.objects.aget(pk=silent)).lost


async def test_a_dry_run_repairs_nothing(explainer: Explainer) -> None:
    await a_peer("g")
    await Membership.objects.all().adelete()
    found, repaired = await told(explainer)
    assert [(each.difference.kind, each.done, each.repaired) for each in found] == [
        (Kind.MEMBER_WITHOUT_ROW, "nothing", None)
    ]
    assert not repaired
    assert not await Membership.objects.aexists()


async def test_a_change_in_progress_is_no_difference(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await a_peer("g")
    look, looks = explainer._look, []

    async def meanwhile() -> Any:
        found = await look()
        looks.append(found[0])
        # As if its row was not yet written at the first look.
        await database_sync_to_async(connection_rows.open_memberships)(
            rows.joins((await lifecycle.hub()).process, [connection.id], "g")
        )
        return found

    monkeypatch.setattr(explainer, "_look", meanwhile)
    await Membership.objects.all().adelete()
    assert await told(explainer, rounds=no_rounds) == ([], False)
    assert [len(found) for found in looks] == [1, 0]


async def test_a_difference_that_stays_is_an_error(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_peer("g")
    await Membership.objects.all().adelete()
    monkeypatch.setattr(connection_rows, "open_memberships", lambda joins: None)
    found: list[Explained] = []
    with pytest.raises(LayerUnavailable, match="1 differences are still there"):
        await explain.look_and_repair(explainer, found.append, no_rounds)
    assert found[0].done == "recorded, and it is still there"


async def test_a_process_answers_in_pages(explainer: Explainer) -> None:
    (await lifecycle.hub()).names_per_page = 3
    for _ in range(4):
        await a_peer("a", "b", "c", "d")
    assert await told(explainer, rounds=no_rounds) == ([], False)


@pytest.mark.acceptance  # for its seconds
async def test_a_process_with_a_missing_page_counts_as_silent(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await lifecycle.hub()).names_per_page = 2
    await a_peer("a", "b")
    tell = groups.tell

    async def once(address: str, message: messages.Control) -> None:
        if isinstance(message, messages.Holdings) and message.page:
            raise LayerUnavailable("full")
        await tell(address, message)

    monkeypatch.setattr(groups, "tell", once)
    found, _ = await told(explainer)
    assert [each.difference.kind for each in found] == [Kind.PROCESS_SILENT]


async def test_a_malformed_answer_does_not_end_the_explainer(
    explainer: Explainer, caplog: pytest.LogCaptureFixture
) -> None:
    await a_peer("g")
    await explainer.look()
    assert explainer._mailbox is not None
    await get_channel_layer().send(explainer._mailbox.address, {"type": "realtime.holdings"})
    await eventually_async(lambda: "realtime.holdings event that cannot be read" in caplog.text, within=5)
    assert await explainer.look() == []


def test_a_difference_is_one_line_or_one_object() -> None:
    found = Explained(
        explain.Difference(Kind.NOT_IN_LAYER, str(uuid.UUID(int=1)), "specific.p!1", group="g"),
        "web-1:7",
        "",
        True,
    )
    assert found.line().startswith("not_in_layer: a process has members in a group")
    assert "(group g, process web-1:7)" in found.line()
    assert json.loads(json.dumps(found.fields()))["difference"] == "not_in_layer"
    unknown = found._replace(difference=explain.Difference(Kind.UNKNOWN_CHANNEL, address="a", group="g"))
    assert "channel a" in unknown._replace(process="").line()


def test_explaining_needs_once_or_a_dry_run() -> None:
    with pytest.raises(CommandError, match="--explain compares once") as refused:
        call_command("reap_connections", "--explain")
    assert refused.value.returncode == 2


@pytest.mark.acceptance  # for the seconds that rounds take
def test_the_exit_code_says_if_anything_was_repaired(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = rows.a_process()
    process_rows.stop_process(ended)
    rows.open_connections(ended, 1)
    options = ["--interval", "0.3", "--timeout", "0.2", "--explain", "--format", "json"]
    for extra, status, done in (("--dry-run", 0, "nothing"), ("--once", 3, "closed by a round")):
        with pytest.raises(SystemExit) as exit:
            call_command("reap_connections", *options, extra)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (difference,) = [line for line in lines if "difference" in line]
        assert exit.value.code == status
        assert (difference["difference"], difference["done"]) == ("record_of_ended_process", done)
    with pytest.raises(SystemExit) as exit:
        call_command("reap_connections", *options, "--once")
    assert exit.value.code == 0


async def test_a_look_is_bounded_if_nothing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = Explainer(timeout=0.4, echo_timeout=0.3)

    async def lost(*_: Any) -> int:
        return 1

    monkeypatch.setattr(groups, "echo", lost)
    with pytest.raises(LayerUnavailable):
        async with asyncio.timeout(5):
            await explainer.look()
    await explainer.close()
