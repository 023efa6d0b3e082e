"""The figures of fault tests become a page with a row for each fault."""

import json
from pathlib import Path

import pytest

from tests.faults import table

FAULTS = Path(table.__file__).parent
#: These are about rules of one pairing, and measure nothing.
WITHOUT_FIGURES = {"test_pid_namespaces", "test_removed_layer"}


def test_every_fault_module_has_a_row_and_every_row_a_module() -> None:
    modules = {path.stem for path in FAULTS.glob("test_*.py")}
    assert {row.module for row in table.ROWS} == modules - WITHOUT_FIGURES


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.module)
def test_what_a_row_calls_a_fault_is_what_its_module_calls_it(row: table.Row) -> None:
    source = (FAULTS / f"{row.module}.py").read_text()
    missing = [name for name in row.names if f'"{name}' not in source]
    assert missing == []


def made(tmp_path: Path, capsys: pytest.CaptureFixture[str], *measured: dict[str, object]) -> list[str]:
    """The lines of the page for these measurements."""
    file = tmp_path / "measured.jsonl"
    file.write_text("\n".join(json.dumps({"test": "t", **each}) for each in measured))
    table.main([str(file)])
    return capsys.readouterr().out.splitlines()


def test_the_overview_tells_the_least_and_the_most_of_each_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [("core-daphne-postgres", 0.25), ("core-uvicorn-sqlite", 1.5), ("pubsub-daphne-sqlite", 1234.5)]
    lines = made(
        tmp_path,
        capsys,
        *(
            {"fault": "Redis restarted", "pairing": pairing, "receiving_again_after": seconds}
            for pairing, seconds in runs
        ),
    )
    (row,) = [line for line in lines if line.startswith("| Redis restarted")]
    _, _, _, core, pubsub, again, _ = map(str.strip, row.split("|"))
    assert (core, pubsub) == ("receiving again after 0.25 to 1.5", "receiving again after 1234")
    assert again == "`pytest tests/faults/test_redis_restart.py`"
    (other,) = [line for line in lines if line.startswith("| SIGKILL")]
    assert "cleaned up after not measured" in other


def test_each_run_has_its_line_with_all_of_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {"client_lost": 2, "client_closed": 1}
    lines = made(
        tmp_path,
        capsys,
        {"fault": "ends during a fan-out", "pairing": "pubsub-uvicorn-postgres", "clients": 3},
        {"fault": "ends during a fan-out", "pairing": "core-daphne-sqlite", "reasons": reasons},
    )
    first = lines.index("**ends during a fan-out**")
    assert lines[first + 2 : first + 6] == [
        "| on | clients | reasons |",
        "| --- | --- | --- |",
        "| core, daphne, sqlite |  | client_lost 2; client_closed 1 |",
        "| pub/sub, uvicorn, postgres | 3 |  |",
    ]


def test_a_figure_that_no_row_is_about_is_refused_with_its_name() -> None:
    with pytest.raises(SystemExit, match="'a fire' belongs to 0 rows"):
        table.page([{"test": "t", "fault": "a fire", "pairing": "core-daphne-sqlite"}])
