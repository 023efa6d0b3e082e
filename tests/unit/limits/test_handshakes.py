"""The handshakes of each network per second, and how refusals are logged."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import metrics
from realtime.limits import handshakes, subjects
from realtime.limits.buckets import TokenBucket
from realtime.limits.handshakes import Rates, admits
from realtime.limits.refusals import Tally


def scope(client: str | None = "203.0.113.7", forwarded: str = "", port: int = 5555) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "websocket", "headers": [(b"host", b"localhost")]}
    if client is not None:
        found["client"] = [client, port]
    if forwarded:
        found["headers"].append((b"x-forwarded-for", forwarded.encode()))
    return found


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    handshakes._rates.clear()
    subjects._warned.clear()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clients of which a refusal was noted."""
    found: list[str] = []
    monkeypatch.setattr(handshakes.refusals, "note", lambda limit, subject, remedy: found.append(subject))
    return found


class TestTokenBucket:
    @given(
        rate=st.floats(0.1, 1000),
        burst=st.floats(1, 1000),
        steps=st.lists(st.tuples(st.floats(-1, 5), st.floats(0, 50)), max_size=50),
    )
    def test_never_gives_more_than_burst_and_rate_allow(
        self, rate: float, burst: float, steps: list[tuple[float, float]]
    ) -> None:
        now, taken, latest = 100.0, 0.0, 100.0
        bucket = TokenBucket(rate, burst, now)
        for seconds, cost in steps:
            now += seconds
            latest = max(latest, now)
            if bucket.take(cost, now):
                taken += cost
            assert taken <= burst + (latest - 100.0) * rate + 1e-6

    @given(rate=st.floats(0.1, 1000), burst=st.floats(1, 1000))
    def test_is_full_again_when_the_burst_has_come_back(self, rate: float, burst: float) -> None:
        bucket = TokenBucket(rate, burst, 0.0)
        assert bucket.is_full(0.0)
        assert bucket.take(burst, 0.0)
        assert not bucket.is_full(0.0)
        assert bucket.is_full(1.001 * burst / rate)


class TestRates:
    def test_each_network_has_a_rate_of_its_own(self) -> None:
        rates = Rates(100)
        taken = [rates.take(each, 1, 2, 0.0) for each in ["a", "a", "a", "b", "b", "b"]]
        assert taken == [True, True, False, True, True, False]
        assert rates.take("a", 1, 2, 1.0)

    @given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 3)), max_size=300))
    def test_the_memory_is_bounded(self, steps: list[tuple[int, float]]) -> None:
        rates, now = Rates(20), 0.0
        for number, seconds in steps:
            now += seconds
            rates.take(str(number), 1, 5, now)
            assert len(rates) <= 20

    def test_a_flood_of_networks_forgets_no_active_one(self) -> None:
        rates = Rates(20)
        for number in range(1000):
            rates.take(f"other {number}", 1, 5, 0.0)
            rates.take("flood", 1, 5, 0.0)
        assert not rates.take("flood", 1, 5, 0.0)


class TestAdmits:
    def test_refuses_above_the_rate_and_its_burst(
        self, realtime_settings: Callable[..., None], refused: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=3.0)
        assert [admits(scope()) for _ in range(5)] == [True, True, True, False, False]
        assert admits(scope("203.0.113.8"))
        assert refused == ["203.0.113.7"] * 2

    def test_counts_a_handshake_once(
        self, realtime_settings: Callable[..., None], refused: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0)
        first = scope()
        assert [admits(first) for _ in range(5)] == [True] * 5
        assert not admits(scope())

    def test_the_network_of_an_ipv6_address_counts(
        self, realtime_settings: Callable[..., None], refused: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0)
        assert admits(scope("2001:db8:1:2::1"))
        assert not admits(scope("2001:db8:1:2:ffff::1"))
        assert admits(scope("2001:db8:1:3::1"))

    @pytest.mark.parametrize(
        ("given", "trusted"),
        [
            (scope(None), ()),
            (scope(""), ()),
            (scope("127.0.0.1", "198.51.100.1"), ()),
            (scope("10.0.0.3", "198.51.100.1"), ()),
            (scope("100.64.0.3", "198.51.100.1"), ()),
            (scope("10.0.0.3"), ("10.0.0.0/8",)),
        ],
        ids=["no address", "a Unix socket", "on this host", "private", "shared", "a proxy without a client"],
    )
    def test_clients_that_cannot_be_told_apart_are_not_limited(
        self,
        given: dict[str, Any],
        trusted: tuple[str, ...],
        realtime_settings: Callable[..., None],
        refused: list[str],
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0, TRUSTED_PROXIES=trusted)
        assert all(admits({**given}) for _ in range(5))

    @pytest.mark.parametrize(
        "given",
        [
            scope("127.0.0.1"),
            scope("192.168.1.5", "192.168.1.5", port=0),
            scope("8.8.8.8", "198.51.100.1"),
        ],
        ids=["this host without a header", "named by the server", "a stranger that names another"],
    )
    def test_clients_that_can_be_told_apart_are_limited(
        self, given: dict[str, Any], realtime_settings: Callable[..., None], refused: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0)
        assert [admits({**given}) for _ in range(2)] == [True, False]

    def test_clients_behind_a_trusted_proxy_are_told_apart(
        self, realtime_settings: Callable[..., None], refused: list[str]
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0, TRUSTED_PROXIES=("10.0.0.0/8",))
        forged = [scope("10.0.0.3", f"198.51.100.{number}, 203.0.113.9") for number in range(3)]
        assert [admits(each) for each in forged] == [True, False, False]
        assert admits(scope("10.0.0.3", "203.0.113.10"))

    def test_a_proxy_that_is_not_declared_is_named_once(
        self, realtime_settings: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1)
        for _ in range(3):
            admits(scope("10.0.0.3", "198.51.100.1"))
        [line] = [record.getMessage() for record in caplog.records]
        assert "10.0.0.3" in line
        assert "TRUSTED_PROXIES" in line

    def test_none_switches_the_limit_off(self, realtime_settings: Callable[..., None]) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=None)
        assert all(admits(scope()) for _ in range(1000))

    def test_refusals_are_counted(
        self, realtime_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        realtime_settings(MAX_HANDSHAKES_PER_SECOND=1, RECONNECT_WINDOW=1.0)
        monkeypatch.setattr(handshakes.refusals, "note", lambda *_: None)
        before = metrics.refused.labels(reason="rate_limited")._value.get()
        admits(scope())
        admits(scope())
        assert metrics.refused.labels(reason="rate_limited")._value.get() == before + 1


class TestTally:
    def test_the_first_is_logged_and_the_rest_is_counted(self) -> None:
        tally = Tally[str](60, 10, "others")
        assert [tally.note("a", now) for now in (0.0, 1.0, 2.0)] == ["a", None, None]
        assert tally.note("b", 3.0) == "b"
        assert tally.next_end == 60
        assert tally.ended(59.9) == []
        assert tally.ended(60.0) == [("a", 2)]
        assert tally.note("a", 61.0) == "a"
        # The one refusal of its window was logged when it came.
        assert tally.ended(200.0) == []
        assert tally.next_end is None

    @given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 20)), max_size=200))
    def test_every_refusal_is_counted_once_in_bounded_memory(self, steps: list[tuple[int, float]]) -> None:
        tally, now, logged = Tally[str](60, 5, "others"), 0.0, 0
        for number, seconds in steps:
            now += seconds
            logged += sum(more for _, more in tally.ended(now))
            logged += tally.note(str(number), now) is not None
            assert len(tally._open) <= 6
        logged += sum(more for _, more in tally.ended(now + 60))
        assert logged == len(steps)


def test_no_kind_of_refusal_is_logged_more_than_twice_a_minute() -> None:
    tally = Tally[str](60, 5, "others")
    lines = 0
    for now in itertools.takewhile(lambda now: now < 600, itertools.count(0.0, 0.1)):
        lines += len(tally.ended(now))
        lines += tally.note("a", now) is not None
    assert lines <= 2 * 600 / 60
