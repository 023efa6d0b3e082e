"""The words of the admin for a user online and for the devices of a user."""

from datetime import UTC, datetime, timedelta

import pytest

from realtime.admin import cells
from realtime.admin.present_users import DEVICES, UserDetails, devices
from realtime.models import PresentUser

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("times", "tone", "text", "why"),
    [
        ({}, "good", "online", ""),
        ({"gone_at": ago(3.2)}, "doubt", "gone for 3 s", "the grace of 15 s"),
        ({"gone_at": ago(3.2), "dormant_since": ago(3.2)}, "doubt", "gone for 3 s", "the grace of 15 s"),
        ({"gone_at": ago(15)}, "doubt", "gone for 15 s", "the grace is over"),
        ({"gone_at": NOW + timedelta(seconds=1)}, "doubt", "gone for 0 s", "the grace of 15 s"),
        ({"gone_at": ago(90), "dormant_since": ago(90), "left_at": ago(75)}, "over", "dormant", "silence"),
    ],
)
def test_a_user_is_online_gone_or_dormant(times: dict[str, datetime], tone: str, text: str, why: str) -> None:
    label = cells.user_state(PresentUser(group="", user_id="7", since=ago(100), **times), NOW, 15.0)

    assert f"rt-{tone}" in label
    assert f">{text}<" in label
    assert why in label


def test_each_device_is_named_once_and_in_order() -> None:
    assert devices([FIREFOX, None, "okhttp/4.12.0", FIREFOX, ""]) == ("Firefox 145 on Linux", "okhttp 4.12")
    assert devices([]) == ()


@pytest.mark.parametrize(
    ("connections", "number", "more"),
    [
        (0, "0", ""),
        (DEVICES, "5", ""),
        (DEVICES + 1, "6", "and 1 more connection"),
        (DEVICES + 2, "7", "and 2 more connections"),
        (1000, "1000+", "and 995+ more connections"),
    ],
)
def test_a_user_with_many_connections_names_some(connections: int, number: str, more: str) -> None:
    details = UserDetails(connections=connections)

    assert (details.number, details.more_devices) == (number, more)
