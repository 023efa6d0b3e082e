"""Check that SECURITY.md names only tests that exist, and that each row of the threat model has one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "SECURITY.md").read_text()


def named_in(path: Path) -> set[str]:
    """Return the names of the functions of a file, also of those in classes."""
    if not path.exists():
        return set()
    found = ast.walk(ast.parse(path.read_text()))
    return {each.name for each in found if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def named_tests(page: str) -> list[tuple[str, str]]:
    """Return the tests that a page names, each as its file and its function."""
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)))


def missing(page: str) -> list[str]:
    """Return the tests that a page names and that do not exist."""
    named = named_tests(page)
    files = {path: named_in(ROOT / path) for path, _ in named}
    return [f"{path}::{name}" for path, name in named if name not in files[path]]


def test_every_named_test_exists() -> None:
    assert len(named_tests(PAGE)) > 50
    assert missing(PAGE) == []


def test_every_row_of_the_threat_model_names_a_test() -> None:
    table = PAGE.partition("## Threat model")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::test_\w+` \|$", row)] == []


def test_every_file_of_attacks_is_named() -> None:
    attacks = {path.name for path in (ROOT / "tests" / "security").glob("test_*.py")}
    assert attacks <= {Path(path).name for path, _ in named_tests(PAGE)}
