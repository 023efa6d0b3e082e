"""Check that the failure page names only sections, tests, settings, metrics and log lines that exist."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from realtime import metrics
from realtime.conf import Settings

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "failure-modes.md").read_text()
SECTIONS = PAGE.split("\n## ")[1:]
CONTENTS = [line for line in PAGE.splitlines() if line.startswith("| [")]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def in_backquotes(pattern: str) -> set[str]:
    # A line of the page may end within backquotes.
    return set(re.findall(f"`({pattern})", re.sub(r"\s+", " ", PAGE)))


def test_the_contents_list_every_section_in_its_order() -> None:
    headings = [section.partition("\n")[0] for section in SECTIONS]
    assert [re.findall(r"\[(.*?)\]\((#.*?)\)", row)[0] for row in CONTENTS] == [
        (heading, f"#{anchor(heading)}") for heading in headings
    ]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_every_section_says_the_same_four_things(section: str) -> None:
    assert re.findall(r"^\*\*(.*?):\*\*", section, re.M) == ["Clients", "You", "Within", "Changed by"]


def test_every_link_within_the_page_leads_somewhere() -> None:
    anchors = {f"#{anchor(section.partition(chr(10))[0])}" for section in SECTIONS}
    assert set(re.findall(r"\]\((#[^)]*)\)", PAGE)) <= anchors


def test_every_fault_has_its_test() -> None:
    named = re.findall(r"`(test_\w+\.py)`", PAGE)
    assert len(named) >= len(CONTENTS)
    folders = [ROOT / "tests" / folder for folder in ("faults", "security")]
    assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set()


def test_every_setting_on_it_exists() -> None:
    named = in_backquotes(r"[A-Z]+(?:_[A-Z]+)+\b")
    assert named
    assert named <= set(Settings.__dataclass_fields__)


def test_every_metric_on_it_exists() -> None:
    declared = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    names = {metric._name + ("_total" if metric._type == "counter" else "") for metric in declared}
    named = in_backquotes(r"realtime_\w+")
    assert named
    assert named <= names


def spoken(module: str) -> str:
    """Return the strings of the modules that log under this name, joined as the compiler joins them."""
    sources = [path.read_text() for path in (ROOT / "realtime").rglob("*.py")]
    (name,) = {name for source in sources for name in re.findall(rf'getLogger\("({module})"\)', source)}
    texts = [source for source in sources if f'getLogger("{name}")' in source]
    return re.sub(r'"\s+"', "", " ".join(" ".join(texts).split()))


def test_every_line_of_the_log_on_it_is_written_somewhere() -> None:
    lines = in_backquotes(r"realtime\.\w+: [^`]+")
    assert lines
    for line in sorted(lines):
        logger, _, text = line.partition(": ")
        assert text.strip() in spoken(logger), line
