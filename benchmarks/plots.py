"""Plots of benchmarks/results: fanout.png, and growth.png for the figures at several sizes.

Run `python -m benchmarks.plots` after the benchmarks. Growth is read from records.json and from
COMMAND-growth.json. To get the latter, give a command several sizes and the option
`--output benchmarks/results/COMMAND-growth.json`.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.results import FOLDER

#: Points of a line: the sizes and their figures.
Points = tuple[list[float], list[float]]
COLOURS = {
    "ours": "#0b6e4f",
    "plain": "#b3261e",
    "socket.io": "#6a4c93",
    "ws": "#8d99ae",
    "websockets": "#e08e0b",
}


def rows(name: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return found


def ours(name: str) -> list[dict[str, Any]]:
    return [row for row in rows(name) if row["contender"] == "ours"]


def lines(found: list[dict[str, Any]], figure: str, only: Callable[[Any], bool] = bool) -> dict[str, Points]:
    """Return `figure` over size for each contender; a size like "2000 sqlite" counts as its number."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        if not only(row["size"]) or figure not in row["medians"]:
            continue
        number = re.match(r"\d+", str(row["size"]))
        if number is not None:
            point = (float(number[0]), row["medians"][figure])
            points.setdefault(row["contender"], []).append(point)
    return {
        name: ([x for x, _ in sorted(some)], [y for _, y in sorted(some)]) for name, some in points.items()
    }


def draw(axes: Any, found: dict[str, Points], title: str, x: str, y: str, *, log: bool = True) -> None:
    for name, (sizes, figures) in found.items():
        axes.plot(sizes, figures, marker="o", markersize=4, label=name, color=COLOURS.get(name))
    axes.set(title=title, xlabel=x, ylabel=y)
    if log:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=7)


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(FOLDER / name, dpi=110)
    print(f"written to {FOLDER / name}", file=sys.stderr)


def fanout() -> None:
    found = rows("fanout")
    figure, (cost, late) = plt.subplots(1, 2, figsize=(11, 4.5))
    size = "connections in the group"
    draw(cost, lines(found, "server_us"), "CPU of the server for one delivery", size, "µs")
    draw(late, lines(found, "p50_ms"), "Latency at a calm rate, median", size, "ms")
    save(figure, "fanout.png")


def growth() -> None:
    """Plot growth on linear axes, on which proportional growth is a straight line through the origin."""

    def database(kind: str) -> Callable[[Any], bool]:
        return lambda size: str(size).endswith(kind)

    records = rows("records")
    panels: list[tuple[dict[str, Points], str, str, str]] = [
        (
            lines(rows("fanout-growth"), "message_ms"),
            "A message to all, CPU of the server",
            "connections",
            "ms",
        ),
        (lines(rows("fanout-growth"), "p50_ms"), "Latency at a calm rate, median", "connections", "ms"),
        (
            lines(rows("notify-growth"), "server_us", database("async")),
            "A message to one",
            "groups",
            "µs of CPU",
        ),
        (lines(rows("connect-growth"), "seconds", database("sqlite")), "All connected", "connections", "s"),
        (lines([*rows("idle-growth"), *ours("idle")], "mib"), "Memory of the server", "connections", "MiB"),
        (lines(records, "round_ms"), "A round that finds no lost process", "open records", "ms"),
        (lines(records, "sweep_s"), "Sweep of a process with a tenth of them", "open records", "s"),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return
    figure, grid = plt.subplots((len(panels) + 1) // 2, 2, figsize=(11, 2 * len(panels)), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw(axes, *panel, log=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    save(figure, "growth.png")


def main() -> None:
    if not FOLDER.exists():
        sys.exit(f"nothing was measured yet: {FOLDER} is empty")
    if rows("fanout"):
        fanout()
    growth()


if __name__ == "__main__":
    main()
