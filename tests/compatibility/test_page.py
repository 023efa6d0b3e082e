"""docs/compatibility.md says what the lists of the suites say."""

import importlib.metadata
import re

import pytest

from tests.compatibility.suites import SUITES, Suite
from tests.support.programs.servers import CHECKOUT

PAGE = (CHECKOUT / "docs/compatibility.md").read_text()


@pytest.mark.parametrize("suite", [pytest.param(suite, id=suite.name) for suite in SUITES])
def test_the_page_names_the_version_that_runs(suite: Suite) -> None:
    assert f"| {suite.name} {importlib.metadata.version(suite.name)} |".lower() in PAGE.lower()


def test_the_page_names_exactly_the_exceptions() -> None:
    listed = [name for suite in SUITES for name in (*suite.exceptions, *suite.left_out)]
    modules = {name.partition("::")[0].rpartition(".")[2] for name in listed}
    section = PAGE.partition("## Exceptions")[2].partition("### channels-demultiplexer")[0]
    on_the_page = set(re.findall(r"`(?:\w+::)?(test_\w+)`", section)) - modules
    assert on_the_page == {name.partition("::")[2] for name in listed}
