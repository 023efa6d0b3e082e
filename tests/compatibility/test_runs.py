"""The runs say what they lack, and read the results of pytest."""

from pathlib import Path

import pytest

from tests.compatibility import runs
from tests.compatibility.runs import Process
from tests.compatibility.suites import DJANGOCHANNELSRESTFRAMEWORK

SUITE = """
import pytest

class TestAll:
    def test_passes(self): pass
    def test_fails(self): assert False, "a reason"
    def test_skips(self): pytest.skip("never")

@pytest.fixture
def breaks():
    yield
    raise RuntimeError("in the fixture")

def test_breaks_late(breaks): pass
def test_breaks_twice(breaks): assert False, "first"
"""


@pytest.mark.acceptance
def test_without_pypi_the_skip_has_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CACHE", tmp_path)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
    }.items():
        monkeypatch.setitem(runs.FOREIGN_ENVIRONMENT, name, value)
    with pytest.raises(pytest.skip.Exception, match="cannot be downloaded from PyPI: ERROR"):
        runs.sources_of(DJANGOCHANNELSRESTFRAMEWORK, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.acceptance
def test_each_test_has_its_worst_result_and_first_reason(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "scratch").mkdir()
    with Process(tmp_path, ["test_it.py", "-p", "no:django"], tmp_path / "scratch", ours=False) as process:
        run = process.finish()
    assert run.results == {
        "test_it.TestAll::test_passes": "passed",
        "test_it.TestAll::test_fails": "failed",
        "test_it.TestAll::test_skips": "skipped",
        "test_it::test_breaks_late": "error",
        "test_it::test_breaks_twice": "failed",
    }
    assert "a reason" in run.reasons["test_it.TestAll::test_fails"]
    assert "in the fixture" in run.reasons["test_it::test_breaks_late"]
    assert "first" in run.reasons["test_it::test_breaks_twice"]
    assert run.got == frozenset()


@pytest.mark.acceptance
def test_a_suite_that_pytest_cannot_run_fails_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "scratch").mkdir()
    with (
        Process(tmp_path, ["test_it.py", "-p", "no:django"], tmp_path / "scratch", ours=False) as process,
        pytest.raises(AssertionError, match="nothing_of_this_name"),
    ):
        process.finish()
