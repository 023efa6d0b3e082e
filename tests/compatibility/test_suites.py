"""The suites of other projects pass on our classes as on those of Channels, but for named exceptions."""

from pathlib import Path

import pytest

from tests.compatibility import runs
from tests.compatibility.comparison import disagreements
from tests.compatibility.suites import DJANGOCHANNELSRESTFRAMEWORK, SUITES, Suite

pytestmark = pytest.mark.acceptance

#: What `make test` runs: the fastest modules of one suite.
SHORT = ("tests/test_consumer.py", "tests/test_permission.py", "tests/test_django_view_consumer.py")


def compare(suite: Suite, folder: Path, *tests: str) -> None:
    if suite.redis:
        runs.require_namespaces()
    (folder / "sources").mkdir()
    sources = runs.sources_of(suite, folder / "sources")
    plain, ours = runs.Runs(suite, sources, folder, tests).finish()
    found = disagreements(suite, plain.results, ours.results)
    print(  # noqa: T201 - shown by pytest -s, for the table of docs/compatibility.md
        f"\n{suite.name}: {_passed(plain)} of {len(plain.results)} pass on Channels, {_passed(ours)} on ours"
    )
    assert not found, "\n".join(
        [*found, "Messages of the run on ours:", *(f"{name}: {why}" for name, why in ours.reasons.items())]
    )
    assert plain.results, "no test ran"
    assert suite.gets <= ours.got, f"without our classes: {sorted(suite.gets - ours.got)}"
    assert not plain.got


def _passed(run: runs.Run) -> int:
    return sum(result == "passed" for result in run.results.values())


def test_a_short_suite_passes_on_our_consumers(tmp_path: Path) -> None:
    compare(DJANGOCHANNELSRESTFRAMEWORK, tmp_path, *SHORT)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "suite", [pytest.param(suite, id=suite.name) for suite in SUITES if runs.has_sources(suite)]
)
def test_a_suite_passes_as_on_channels(suite: Suite, tmp_path: Path) -> None:
    compare(suite, tmp_path)
