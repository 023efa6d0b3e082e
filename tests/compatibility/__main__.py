"""Run any project's suite on the classes of Channels and on ours, and print where the results differ.

`python -m tests.compatibility FOLDER [ARGUMENTS OF PYTEST]` runs pytest in that folder, twice. What the suite
needs is installed in this environment, or in a folder that PYTHONPATH names.
"""

import sys
import tempfile
from pathlib import Path

from tests.compatibility.comparison import disagreements, summary
from tests.compatibility.runs import Process, Run
from tests.compatibility.suites import Suite


def main(folder: Path, *arguments: str) -> int:
    plain, ours = (_run(folder, arguments, ours=ours) for ours in (False, True))
    print(summary(folder.name, plain.results, ours.results))
    found = disagreements(Suite(folder.name, frozenset()), plain.results, ours.results)
    print(*found, sep="\n")
    for name, reason in ours.reasons.items():
        print(f"{name} on ours: {reason}")
    print(f"Our classes, and classes derived from ours: {', '.join(sorted(ours.got)) or 'none'}")
    return 1 if found else 0


def _run(folder: Path, arguments: tuple[str, ...], *, ours: bool) -> Run:
    with (
        tempfile.TemporaryDirectory() as scratch,
        Process(folder, arguments, Path(scratch), ours=ours) as process,
    ):
        return process.finish()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
