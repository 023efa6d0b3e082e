"""Compare the lists in the documentation with the code."""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.testing import WebsocketCommunicator
from django.utils.module_loading import import_string
from prometheus_client.metrics import MetricWrapperBase

from realtime import errors, metrics
from realtime.closing import CloseReason
from realtime.conf import Settings
from realtime.consumers import RealtimeJsonConsumer, SyncRealtimeJsonConsumer
from realtime.consumers.served import Served
from realtime.errors import ErrorCode
from realtime.fleet.differences import Kind
from realtime.testing import Client
from realtime.urls import urlpatterns
from realtime.wire import frames
from tests.support.applications.tutorial import HOWTO, blocks

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the table rows below a heading of any level, without backquotes."""
    found = re.search(rf"^(#+) {heading}$", text, re.MULTILINE)
    assert found is not None, heading
    section = re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_every_close_reason_is_listed_with_its_code() -> None:
    expected = [
        [reason.value, str(reason.code), "yes" if reason.goodbye else "no", reason.text]
        for reason in CloseReason
    ]
    assert rows(REFERENCE, "Close reasons") == expected


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {row[0]: row[1] for row in rows(REFERENCE, "Settings")}
    defaults = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    assert listed == {
        name: f'"{default}"' if isinstance(default, str) else str(default)
        for name, default in defaults.items()
    }


def fields_of(frame: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(frame)}


def test_every_frame_is_listed_with_its_fields() -> None:
    listed = [(row[0], set(filter(None, row[1].split(", ")))) for row in rows(REFERENCE, "Frames")]
    every = (*get_args(frames.ServerFrame), *get_args(frames.ClientFrame))
    expected = [(frame.__struct_config__.tag, fields_of(frame)) for frame in every]
    assert sorted(listed, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_of_an_error_frame_is_listed(code: ErrorCode) -> None:
    assert f"`{code}`" in REFERENCE


def test_every_metric_is_listed_with_its_help_text() -> None:
    declared = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    listed = {re.sub(r"\{.*\}", "", row[0]): row[1] for row in rows(REFERENCE, "Metrics")}
    expected = {
        metric._name + ("_total" if metric._type == "counter" else ""): metric._documentation
        for metric in declared
    }
    assert listed == expected


def test_every_name_of_the_test_client_is_listed() -> None:
    client = Client(WebsocketCommunicator(None, "/"))
    offered = {name for name in {*vars(Client), *vars(client)} if not name.startswith("_")}
    assert {row[0] for row in rows(REFERENCE, "Testing")} == offered


def test_every_http_path_is_listed() -> None:
    assert [row[0] for row in rows(REFERENCE, "HTTP")] == [f"/{each.pattern}" for each in urlpatterns]


def test_every_exception_is_listed() -> None:
    raised = {name for name in errors.__all__ if issubclass(getattr(errors, name), Exception)}
    assert {row[0] for row in rows(REFERENCE, "Exceptions")} == raised


def test_every_environment_variable_of_the_demo_is_listed() -> None:
    source = (ROOT / "project/settings.py").read_text()
    read = set(re.findall(r'env\.(?:ENVIRON\.)?\w+\(\s*"(\w+)"', source))
    assert {row[0] for row in rows(REFERENCE, "Demo project")} == read


def test_every_option_of_the_commands_is_listed() -> None:
    source = (ROOT / "realtime/management/commands/reap_connections.py").read_text()
    for option in re.findall(r'"(--[a-z-]+)"', source):
        assert option in REFERENCE


def test_every_difference_is_listed() -> None:
    assert rows(REFERENCE, "Differences") == [[kind.label, kind.text, kind.remedy] for kind in Kind]


def test_every_system_check_is_listed_with_its_level() -> None:
    source = (ROOT / "realtime/checks.py").read_text()
    levels = {"E": "error", "W": "warning"}
    declared = {(found, levels[found[9]]) for found in re.findall(r'id="(realtime\.[EW]\d{3})"', source)}
    listed = [(row[0], row[1]) for row in rows(REFERENCE, "System checks")]
    assert len(listed) == len(set(listed))
    assert set(listed) == declared
    assert listed == sorted(listed)


def test_every_name_that_our_consumers_add_is_listed() -> None:
    ours = {*dir(RealtimeJsonConsumer), *inspect.get_annotations(Served)}
    ours |= {*dir(SyncRealtimeJsonConsumer)}
    theirs = {*dir(AsyncJsonWebsocketConsumer), *dir(JsonWebsocketConsumer)}
    added = {name for name in ours - theirs if not name.startswith("_")}
    assert {row[0] for row in rows(REFERENCE, "Consumers")} == added
    page = (ROOT / "docs/howto/move-an-existing-project.md").read_text()
    (sentence,) = re.findall(r"^The names (.*?) are new on the base class", page, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", sentence)) == added


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_every_dotted_name_on_a_page_exists(page: Path) -> None:
    for dotted in set(re.findall(r"`(?:[^`]* )?(realtime\.[\w.]*[A-Za-z]\w*)[`(]", page.read_text())):
        if dotted == "realtime.v1" or re.fullmatch(r"realtime\.[EW]\d{3}", dotted):
            continue
        assert _exists(dotted), dotted


def _exists(dotted: str) -> bool:
    try:
        import_string(dotted)
    except ImportError:
        return importlib.util.find_spec(dotted) is not None
    return True


def test_uvicorn_takes_larger_messages_than_clients_may_send() -> None:
    command = re.search(
        r"^uvicorn project.*--ws-max-size (\d+)", (ROOT / "docs/howto/servers.md").read_text(), re.M
    )
    assert command is not None
    assert int(command[1]) > Settings().MAX_MESSAGE_BYTES


# -- the browser client


@pytest.mark.parametrize(("name", "language"), [("orders.html", "html"), ("useGroup.ts", "ts")])
def test_the_page_of_the_client_shows_its_example_files(name: str, language: str) -> None:
    assert (HOWTO / "client" / name).read_text() in blocks("use-the-client.md", f'{language} title="{name}"')


DECLARED = (ROOT / "realtime/static/realtime/realtime.d.ts").read_text()


def _declared(interface: str) -> set[str]:
    (body,) = re.findall(rf"^export (?:interface|class) {interface}\b[^\n]*\n(.*?)^}}", DECLARED, re.M | re.S)
    names = set(re.findall(r"^  (?:readonly )?(\w+)[?]?[:(]", body, re.MULTILINE))
    return names - {"constructor", "addEventListener", "removeEventListener"}


def _first_cells(heads: str) -> set[str]:
    """Return the names in the first column of the table with this head, in the section of the client."""
    section = REFERENCE.partition("\n## Browser client\n")[2].partition("\n## ")[0]
    (table,) = re.findall(rf"^\| {heads} \|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", section, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines())))


def test_every_option_event_and_member_of_the_client_is_listed() -> None:
    assert _first_cells("option") == _declared("Options")
    assert _first_cells("event") == _declared("RealtimeEventMap")
    assert _first_cells("member of a connection") == _declared("RealtimeConnection")


def test_every_error_code_of_the_client_is_listed() -> None:
    (union,) = re.findall(r"^export type ErrorCode =\n(.*?);$", DECLARED, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'"(\w+)"', union)) == _first_cells("code") | set(ErrorCode)
    script = (ROOT / "realtime/static/realtime/realtime.js").read_text()
    assert all(f'"{code}"' in script for code in _first_cells("code"))
