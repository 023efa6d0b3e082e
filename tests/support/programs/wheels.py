"""This project as others install it: its distributions, and programs that see nothing of this checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.programs.servers import CHECKOUT

#: Nothing of this checkout or of the program that runs the tests reaches the other project.
FOREIGN_ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "VIRTUAL_ENV") and not name.startswith("COV")
}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command in the environment of another project, and return what it printed. It must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**FOREIGN_ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_distributions(folder: Path) -> Path:
    """Return the folder with the source distribution and the wheel that was built from it."""
    sources = folder / "sources"
    # A copy, because setuptools writes beside the sources.
    shutil.copytree(
        CHECKOUT,
        sources,
        ignore=shutil.ignore_patterns(
            ".*", "var", "build", "dist", "*.egg-info", "__pycache__", "htmlcov", "node_modules"
        ),
    )
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", sources, cwd=folder)
    return folder / "dist"


def write_constraints(folder: Path) -> Path:
    """Write a file that holds pip to the versions with which the tests run, and return its path.

    Changes in new releases are not for these tests to find.
    """
    constraints = folder / "constraints.txt"
    constraints.write_text(
        "".join(
            f"{found.metadata['Name']}=={found.version}\n"
            for found in importlib.metadata.distributions()
            if found.metadata["Name"] != "django-channels-realtime"
        )
    )
    return constraints
