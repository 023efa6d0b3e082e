"""The admin's words for times and clients."""

from datetime import timedelta

import pytest

from realtime.admin.wording import ago, device, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (12, "12 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (192, "3 min 12 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86399, "23 h 59 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
        (30 * 86400, "30 d"),
    ],
)
def test_a_duration_is_given_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s ago"), (12, "12 s ago"), (192, "3 min ago"), (7500, "2 h ago"), (200_000, "2 d ago")],
)
def test_how_long_ago_is_given_in_the_largest_unit(seconds: float, text: str) -> None:
    assert ago(timedelta(seconds=seconds)) == text


WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/142.0.0.0 Safari/537.36",
            "Chrome 142 on Windows",
        ),
        (
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/142.0.0.0 Safari/537.36"
            " Edg/142.0.0.0",
            "Edge 142 on Windows",
        ),
        (
            f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/142.0.0.0 Safari/537.36",
            "Chrome 142 on Linux",
        ),
        (
            f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/141.0.0.0 Safari/537.36 OPR/120.0.0.0",
            "Opera 120 on ChromeOS",
        ),
        (
            f"Mozilla/5.0 (Linux; Android 15; SM-S931B) {WEBKIT} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile"
            " Safari/537.36",
            "Samsung Internet 28 on Android",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
            " Version/18.6 Mobile/15E148 Safari/604.1",
            "Safari 18 on iPhone",
        ),
        (
            "Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
            " CriOS/140.0 Mobile/15E148 Safari/604.1",
            "Chrome 140 on iPad",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
            " Version/18.6 Safari/605.1.15",
            "Safari 18 on macOS",
        ),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox 145 on Linux"),
        ("Mozilla/5.0 (Android 14; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0", "Firefox 145 on Android"),
        ("Mozilla/5.0 (Windows NT 10.0) Something/3", "Windows"),
        ("Mozilla/5.0", "Mozilla 5.0"),
        ("okhttp/4.12.0", "okhttp 4.12"),
        ("Dart/3.5 (dart:io)", "Dart 3.5"),
        ("MyApp/5.2 (iPhone; iOS 17.5) CFNetwork/1494 Darwin/23.4", "MyApp 5.2"),
        ("Python/3.11 websockets/17.4", "websockets 17.4"),
        ("Python/3.11", "Python 3.11"),
        ("curl", "curl"),
        ("", ""),
        ("()", ""),
    ],
)
def test_a_client_gets_a_short_name_from_its_user_agent(user_agent: str, name: str) -> None:
    assert device(user_agent) == name


def test_no_user_agent_makes_a_long_name() -> None:
    assert len(device("a" * 512)) <= 60
    assert len(device("Chrome/" + "9" * 505)) <= 60
    assert device("(" * 512) == ""
