"""What fault tests measured becomes a page with a row for each fault."""

import json
from pathlib import Path

import pytest

from tests.faults import table

FAULTS = Path(table.__file__).parent
#: These are about rules of one pairing, and measure nothing.
WITHOUT_FIGURES = {"test_pid_namespaces"}


def test_every_module_of_faults_has_its_row_and_every_row_its_module() -> None:
    modules = {path.stem for path in FAULTS.glob("test_*.py")}
    assert {row.module for row in table.ROWS} == modules - WITHOUT_FIGURES


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.module)
def test_what_a_row_calls_a_fault_is_what_its_module_calls_it(row: table.Row) -> None:
    source = (FAULTS / f"{row.module}.py").read_text()
    missing = [name for name in row.names if f'"{name}' not in source]
    assert missing == []


def test_a_figure_stands_under_its_layer_with_its_server_and_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"clients": 20, "back_after": 1.25, "reasons": {"client_lost": 2}}
    lines = [
        {"test": "t", "fault": "FLUSHALL", "pairing": "core-daphne-postgres, with a reaper", **figures},
        {"test": "t", "fault": "FLUSHALL", "pairing": "pubsub-uvicorn-sqlite", "clients": 5},
    ]
    file = tmp_path / "measured.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    table.main([str(file)])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| FLUSHALL")]
    _, _, _, core, pubsub, _, _ = row.split("|")
    assert core.strip() == (
        "*FLUSHALL, daphne postgres, with a reaper:* clients 20, back after 1.25, reasons client_lost 2"
    )
    assert pubsub.strip() == "*FLUSHALL, uvicorn sqlite:* clients 5"


def test_a_figure_that_no_row_is_about_is_refused_with_its_name() -> None:
    with pytest.raises(SystemExit, match="'a fire' is about 0 rows"):
        table.page([{"test": "t", "fault": "a fire", "pairing": "core-daphne-sqlite"}])
