"""The comparison tells of each test that differs, and of each line of the lists that is not true."""

import pytest

from tests.compatibility.comparison import disagreements, summary
from tests.compatibility.suites import Suite

PASSED, FAILED = {"m::test": "passed"}, {"m::test": "failed"}


def suite(*, exceptions: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> Suite:
    reasons = [dict.fromkeys(names, "a reason") for names in (exceptions, left_out)]
    return Suite("theirs", frozenset(), *reasons)


@pytest.mark.parametrize(
    ("lists", "plain", "ours"),
    [
        pytest.param({}, PASSED, PASSED, id="both pass"),
        pytest.param({}, {"m::test": "skipped"}, {"m::test": "skipped"}, id="both skip"),
        pytest.param({"exceptions": ("m::test",)}, PASSED, FAILED, id="a named exception fails"),
        pytest.param({"left_out": ("m::test",)}, FAILED, FAILED, id="a test that is left out fails"),
        pytest.param({"left_out": ("m::test",)}, FAILED, PASSED, id="it may pass on ours"),
        pytest.param({"exceptions": ("other::test",)}, PASSED, PASSED, id="its module did not run"),
    ],
)
def test_nothing_is_said_if_all_is_as_promised(
    lists: dict[str, tuple[str, ...]], plain: dict[str, str], ours: dict[str, str]
) -> None:
    assert disagreements(suite(**lists), plain, ours) == []


@pytest.mark.parametrize(
    ("lists", "plain", "ours", "says"),
    [
        pytest.param({}, PASSED, FAILED, "passed on plain Channels, failed on ours", id="fails on ours"),
        pytest.param({}, PASSED, {"m::test": "error"}, "error on ours", id="an error on ours"),
        pytest.param({}, PASSED, {"m::test": "skipped"}, "skipped on ours", id="skipped on ours"),
        pytest.param({}, FAILED, FAILED, "fault of the suite or of this machine", id="fails on both"),
        pytest.param({}, PASSED, {}, "ran only on plain Channels", id="runs on one only"),
        pytest.param({}, {}, PASSED, "ran only on ours", id="runs on ours only"),
        pytest.param({"exceptions": ("m::test",)}, PASSED, PASSED, "remove it", id="an exception passes"),
        pytest.param({"left_out": ("m::test",)}, PASSED, PASSED, "remove it", id="a left out test passes"),
        pytest.param({"exceptions": ("m::gone",)}, PASSED, PASSED, "no such test ran", id="no such test"),
        pytest.param({"exceptions": ("m.C::gone",)}, PASSED, PASSED, "no such test ran", id="of a class"),
    ],
)
def test_a_broken_promise_or_a_wrong_line_is_told(
    lists: dict[str, tuple[str, ...]], plain: dict[str, str], ours: dict[str, str], says: str
) -> None:
    (sentence,) = disagreements(suite(**lists), plain, ours)
    assert says in sentence


def test_the_summary_has_the_figures_of_the_table() -> None:
    line = summary("theirs", {"m::a": "passed", "m::b": "passed"}, {"m::a": "passed", "m::b": "failed"})
    assert line == "theirs: of 2 tests, 2 pass on plain Channels and 1 on ours"
