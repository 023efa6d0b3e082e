"""Rules for every test of this project."""

import os
import signal
from collections.abc import Generator

import pytest

# Helpers assert too; their failures then show the values, as those of tests do.
pytest.register_assert_rewrite("tests.support.assertions", "tests.support.doubles")

#: With REQUIRE_ALL=1, as in CI, a test that would be skipped fails: a missing program there is a fault.
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"

# A shell starts background jobs with Ctrl-C ignored, and the servers that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL=1, and this would be skipped: {str(reason).removeprefix('Skipped: ')}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use three workers for the tests that run while a person works, which wait a third of their time.

    Other runs use no extra worker.
    """
    leaves_out = str(config.getoption("markexpr"))
    return 3 if all(f"not {name}" in leaves_out for name in ("acceptance", "faults", "browser")) else 0
