"""Figures of runs: medians, ratios, a table for the terminal, and a small JSON file to keep."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, versions
from tests.support.programs.servers import CHECKOUT

FOLDER = CHECKOUT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: a figure, its heading and its digits."""

    figure: str
    heading: str
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal: at least `bar`, or at most `bar` if `most` is set. If it was not run, `measured` is None."""

    text: str
    measured: float | None
    bar: float
    most: bool = False

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bar if self.most else self.measured >= self.bar


class Results:
    """The results of one command: runs of contenders at sizes, each a dict of figures."""

    def __init__(self, command: str, options: argparse.Namespace) -> None:
        self.command = command
        self.options = options
        self.began = time.monotonic()
        self.runs: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        self.left_out: dict[str, str] = {}

    def add(self, contender: str, size: Any, figures: dict[str, Any], said: str) -> None:
        """Add a finished run, and print a line about it that shows progress."""
        self.runs.setdefault((contender, size), []).append(figures)
        at = time.monotonic() - self.began
        print(f"{at:6.0f} s  {contender:16} {size!s:>16}  {said}", file=sys.stderr, flush=True)

    def leave_out(self, contender: str, why: str) -> None:
        if contender not in self.left_out:
            print(f"{contender} is left out: {why}", file=sys.stderr, flush=True)
        self.left_out[contender] = why

    def median(self, contender: str, size: Any, figure: str) -> float | None:
        found = [run[figure] for run in self.runs.get((contender, size), []) if run.get(figure) is not None]
        return statistics.median(found) if found else None

    def ratio(self, figure: str, one: tuple[str, Any], other: tuple[str, Any]) -> float | None:
        """Return the median of `one` divided by the median of `other`, both from this run of the command."""
        above, below = self.median(*one, figure), self.median(*other, figure)
        return above / below if above is not None and below else None

    def worst(self, figure: str, *, of: Callable[[str], bool] = bool) -> float:
        """Return the sum over all runs of a figure that should be zero."""
        return sum(run.get(figure) or 0 for key, runs in self.runs.items() if of(key[0]) for run in runs)

    def show(
        self,
        columns: Sequence[Column],
        size: str,
        goals: Sequence[Goal] = (),
        *,
        only: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        """Print a table of medians, and the goals.

        Args:
            columns: The columns of the table.
            size: The heading of the sizes.
            goals: The goals to print below it.
            only: Returns True for the sizes that the table has.
        """
        print(f"\n{self.command}: medians; {time.strftime('%Y-%m-%d')}, {machine()['cpu']}")
        wide = max(len(size), *(len(str(at)) for _, at in self.runs if only(at)), 0)
        head = f"{size:>{wide}}  {'':18}" + "".join(f"{column.heading:>14}" for column in columns)
        print(head)
        last = None
        sizes = list(dict.fromkeys(at for _, at in self.runs))
        shown = [each for each in self.runs if only(each[1])]
        for contender, at in sorted(shown, key=lambda key: sizes.index(key[1])):
            line = f"{'' if at == last else at!s:>{wide}}  {contender:18}"
            for column in columns:
                value = self.median(contender, at, column.figure)
                line += f"{'-' if value is None else format(value, f',.{column.digits}f'):>14}"
            print(line)
            last = at
        for contender, why in self.left_out.items():
            print(f"{'':{wide}}  {contender:18} left out: {why}")
        print()
        for goal in () if self.options.quick else goals:
            word = {None: "not run", True: "reached", False: "FELL SHORT"}[goal.reached]
            measured = "-" if goal.measured is None else f"{goal.measured:,.2f}"
            print(f"  {word:10} {measured:>10}  ({'≤' if goal.most else '≥'} {goal.bar:g})  {goal.text}")

    def save(self, goals: Sequence[Goal] = (), **more: Any) -> None:
        """Write benchmarks/results/COMMAND.json, or the file of --output. With --quick, only the latter."""
        if self.options.quick and self.options.output is None:
            return
        path = self.options.output or FOLDER / f"{self.command}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = sorted({name for runs in self.runs.values() for run in runs for name in run})
        rows = [
            {
                "contender": contender,
                "size": size,
                "medians": {
                    name: _short(value)
                    for name in figures
                    if (value := self.median(contender, size, name)) is not None
                },
                "runs": [{name: _short(value) for name, value in run.items()} for run in runs],
            }
            for (contender, size), runs in self.runs.items()
        ]
        content = {
            "command": " ".join(["python -m", f"benchmarks.{self.command}", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions(),
            "left_out": self.left_out,
            "goals": [
                {
                    "goal": f"{goal.text}: {'at most' if goal.most else 'at least'} {goal.bar:g}",
                    "measured": _short(goal.measured),
                    "reached": goal.reached,
                }
                for goal in goals
            ],
            **more,
            "rows": rows,
        }
        path.write_text(_dumped(content))
        print(f"\nwritten to {path}", file=sys.stderr)


def parser(
    about: str | None, known: Iterable[str] = CONTENDERS, *, repeats: int = 3
) -> argparse.ArgumentParser:
    """Return a parser of the common options; `known` are the contenders that --only accepts."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help=f"runs of each; default: {repeats}")
    made.add_argument(
        "--only", nargs="+", choices=sorted(known), metavar="CONTENDER", help=", ".join(sorted(known))
    )
    made.add_argument("--quick", action="store_true", help="one tiny run, to show that the command works")
    made.add_argument("--output", type=Path, help="the JSON file; default: benchmarks/results/COMMAND.json")
    return made


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu
        )
    return {"cpu": f"{os.cpu_count()} CPUs, {cpu}", "system": f"{platform.system()} {platform.release()}"}


def _short(value: Any) -> Any:
    """Round to four digits, more than these figures are accurate to."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return value


def _dumped(content: dict[str, Any]) -> str:
    """Return readable JSON, with one line for each run."""
    text = json.dumps({**content, "rows": "ROWS"}, indent=2, ensure_ascii=False)
    rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
    return text.replace('"ROWS"', f"[\n{rows}\n  ]") + "\n"
