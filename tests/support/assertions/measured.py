"""What a test measured: one line for whoever watches, and one for the table of a whole run."""

import json
import os
from pathlib import Path

TABLE = "MEASURED_JSON"
"""The environment variable that names a file; each figure is appended to it as one line of JSON."""


def measured(fault: str, pairing: object, **figures: object) -> None:
    """Print the figures of one fault on one line (pytest -s shows it), and keep them when somebody collects.

    `fault` names the row of the table, `pairing` is layer, server and database (or what stands for them);
    `figures` keep the order in which they are given, floats are seconds unless their name says otherwise and
    are rounded to 3 places. The line of JSON: {"test": id, "fault": …, "pairing": …, **figures}.
    """
    rounded = {
        name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()
    }
    line = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rounded.items())
    print(f"\n{fault} | {pairing} | {line}", flush=True)  # noqa: T201 - shown by pytest -s
    if path := os.environ.get(TABLE):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
        with Path(path).open("a") as table:
            row = {"test": test, "fault": fault, "pairing": str(pairing), **rounded}
            table.write(json.dumps(row, default=str) + "\n")
