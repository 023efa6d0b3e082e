"""The suites of other projects pass on our classes as on plain Channels, except for named tests."""

import contextlib
from pathlib import Path

import pytest

from tests.compatibility import runs
from tests.compatibility.comparison import disagreements, summary
from tests.compatibility.runs import Run
from tests.compatibility.suites import DJANGOCHANNELSRESTFRAMEWORK, SUITES, Suite

pytestmark = pytest.mark.acceptance

#: What `make test` runs: the fastest modules of one suite.
SHORT = ("tests/test_consumer.py", "tests/test_permission.py", "tests/test_django_view_consumer.py")


def run_both(suite: Suite, scratch: Path, tests: tuple[str, ...]) -> tuple[Run, Run]:
    """Run the suite on plain Channels and on ours, side by side: both mostly wait."""
    if suite.redis:
        runs.require_namespaces()
    sources = runs.sources_of(suite, scratch)
    arguments = [*tests, *(f"--ignore={folder}" for folder in suite.ignored)]
    arguments += [f"-p{plugin}" for plugin in suite.plugins]
    with contextlib.ExitStack() as running:
        processes = []
        for name in ("plain", "ours"):
            folder, own = scratch / name, scratch / f"{name}-run"
            folder.mkdir()
            own.mkdir()
            runs.prepare(suite, sources, folder)
            process = runs.Process(folder, arguments, own, ours=name == "ours", redis=suite.redis)
            processes.append(running.enter_context(process))
        plain, ours = (process.finish() for process in processes)
    return plain, ours


def compare(suite: Suite, scratch: Path, *tests: str) -> None:
    plain, ours = run_both(suite, scratch, tests or ("tests",))
    print("\n" + summary(suite.name, plain.results, ours.results))  # noqa: T201 - shown by pytest -s
    found = disagreements(suite, plain.results, ours.results)
    assert not found, "\n".join([*found, *(f"{name} on ours: {why}" for name, why in ours.reasons.items())])
    assert plain.results, "no test ran"
    assert not plain.got
    assert suite.gets <= ours.got, f"without our classes: {sorted(suite.gets - ours.got)}"


def test_a_short_suite_passes_on_our_consumers(tmp_path: Path) -> None:
    compare(DJANGOCHANNELSRESTFRAMEWORK, tmp_path, *SHORT)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "suite", [pytest.param(suite, id=suite.name) for suite in SUITES if runs.has_sources(suite)]
)
def test_a_suite_passes_as_on_channels(suite: Suite, tmp_path: Path) -> None:
    compare(suite, tmp_path)
