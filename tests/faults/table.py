"""Every fault, what it must show, and what a run measured, as a page of Markdown.

    MEASURED_JSON=measured.jsonl make test-all
    python -m tests.faults.table measured.jsonl > docs/faults-measured.md

A churn that was run by hand is taken in too: it appends its outcome to the same file.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYERS = ("core", "pubsub")
Measured = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault; `names` are the beginnings of what tests call it in `measured`."""

    fault: str
    must_show: str
    names: tuple[str, ...]
    module: str


ROWS = (
    Row("idle for 35 s", "0 dropped", ("idle",), "test_idle"),
    Row(
        "half-open peers",
        "gone 15 s after the first write, 30 s without; 0 left; the healthy lose nothing",
        ("half-open",),
        "test_half_open",
    ),
    Row(
        "readers that stop; the same that go on sending; slow but honest ones",
        "evicted at `MAX_UNSENT_BYTES` or `MAX_UNACKED_BYTES`, memory comes back; the honest ones stay",
        ("readers that stop", "slow but honest"),
        "test_slow_readers",
    ),
    Row(
        "RST, orderly close, stop and close during a fan-out",
        "0 tracebacks, 0 left, each record closed once with its reason",
        ("ends during a fan-out",),
        "test_endings",
    ),
    Row("SIGKILL of a process", "25 s at the defaults", ("process killed",), "test_killed_process"),
    Row("bad frames, three times each", "0 leaks, 0 tracebacks", ("bad frames",), "test_bad_input"),
    Row(
        "handlers that raise, wait or are above their time",
        "evicted once with the cause logged; who answers pings stays",
        ("handler",),
        "test_handlers",
    ),
    Row("FLUSHALL", "receiving again within a round", ("FLUSHALL",), "test_flushall"),
    Row(
        "Redis restarted",
        "sockets stay open, receiving again 2 s after it is back, publishers are told",
        ("Redis restarted",),
        "test_redis_restart",
    ),
    Row(
        "the database is down",
        "open sockets receive; new ones are told to come back; nobody is reaped",
        ("database",),
        "test_database_down",
    ),
    Row(
        "the reaper is down, doubled, killed in a round",
        "hubs find zombies; nothing is counted twice; nobody healthy is reaped",
        ("reaper", "two reapers"),
        "test_reaper_down",
    ),
    Row("the event loop is blocked", "nobody is evicted", ("event loop blocked",), "test_blocked_loop"),
    Row(
        "SIGSTOP and SIGCONT of a process",
        "reaped; on waking closed with 4000 over a window, and started anew",
        ("stopped, then continued",),
        "test_stopped_process",
    ),
    Row(
        "SIGTERM with 500 clients",
        "goodbye and 4000 for each, delays spread, 0 left, exit within 10 s",
        ("SIGTERM",),
        "test_sigterm",
    ),
    Row(
        "500 vanish and come back at once",
        "500 back within 5 s, 0 left",
        ("vanish and come back",),
        "test_storm",
    ),
    Row(
        "a clock that is off by 5 minutes",
        "nobody healthy reaped, nobody dead kept, no message lost",
        ("clock off",),
        "test_wrong_clock",
    ),
    Row(
        "the subscriber connection carries nothing",
        "replaced within two intervals",
        ("subscriber connection",),
        "test_deaf_layer",
    ),
    Row(
        "Redis hangs and goes on",
        "evictions finish here at once, the to-do list is empty a round later",
        ("Redis hung",),
        "test_redis_hung",
    ),
    Row(
        "a row that the database refuses",
        "only the culprit fails",
        ("poisoned row", "user deleted"),
        "test_poisoned_row",
    ),
    Row(
        "churn",
        "open sockets = open records = memberships in the layer; no growth",
        ("churn",),
        "test_churn",
    ),
)


def page(measured: Iterable[Measured]) -> str:
    """The page. Raises SystemExit for a measurement that no row, or more than one, is about."""
    rows: dict[Row, dict[str, list[str]]] = {row: {layer: [] for layer in LAYERS} for row in ROWS}
    for figures in measured:
        about = [row for row in ROWS if figures["fault"].startswith(row.names)]
        if len(about) != 1:
            raise SystemExit(
                f"{figures['fault']!r} is about {len(about)} rows of {__name__}; it has to be one."
            )
        rows[about[0]][figures["pairing"].split("-")[0]].append(_line(figures))
    return "\n".join([HEAD, *(_table_row(row, cells) for row, cells in rows.items()), ""])


HEAD = """\
# Every fault, measured

What the tests of each fault measured in one run of `make test-all`, in seconds unless the name says
otherwise. Most settings are scaled down: compare with the bound of the same line, not across lines. What each
fault means, and its bound at the default settings, is in [Failure modes](failure-modes.md).

| fault | must show | core | pub/sub | again |
|---|---|---|---|---|"""


def _table_row(row: Row, cells: dict[str, list[str]]) -> str:
    measured = ["<br>".join(sorted(cells[layer])) or "not measured" for layer in LAYERS]
    return (
        f"| {' | '.join([row.fault, row.must_show, *measured, f'`pytest tests/faults/{row.module}.py`'])} |"
    )


def _line(figures: Measured) -> str:
    """`fault, server database: figure value, …`, without what all rows have."""
    where = " ".join(figures["pairing"].split("-")[1:])
    named = [
        f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in figures.items()
        if name not in ("test", "fault", "pairing")
    ]
    return f"*{figures['fault']}, {where}:* {', '.join(named)}"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {number}" for name, number in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what MEASURED_JSON named")
    lines = parser.parse_args(arguments).file.read_text().splitlines()
    print(page(map(json.loads, lines)), end="")  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
