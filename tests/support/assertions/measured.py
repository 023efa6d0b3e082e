"""The figures of a test: one line for the reader, and one for the table of a whole run."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

TABLE = "MEASURED_JSON"
"""The environment variable that names a file; each figure is appended to it as one line of JSON."""


def measured(fault: str, pairing: object, **figures: object) -> None:
    """Print the figures of one fault on one line, and append them to the file that `TABLE` names.

    The line of JSON: {"test": id, "fault": …, "pairing": …, **figures}.

    Args:
        fault: The name of the row in the table.
        pairing: The layer, server and database, or a text in their place.
        figures: Printed in this order. A float is in seconds unless its name says otherwise, and is rounded
            to 3 places.
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


@contextmanager
def measuring(fault: str, pairing: object) -> Iterator[SimpleNamespace]:
    """Collect figures as attributes within the block, and pass them to `measured` at its end.

    The block causes the fault and measures; the test judges the figures after it. If the block raises, no
    figures are kept.
    """
    figures = SimpleNamespace()
    yield figures
    measured(fault, pairing, **vars(figures))
