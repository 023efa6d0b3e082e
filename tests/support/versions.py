"""Run tests with other versions of Python and of the packages than the locked ones.

Each run makes an environment of its own under build/versions/, with uv, and prints a row of the table in
CONTRIBUTING.md. If no such Python is on PATH, the row says so, and the run fails only under REQUIRE_ALL=1.

Usage: python -m tests.support.versions [NAME …] [-- OPTION …]
    NAME: the runs, for example `lowest` or `newest-*`. Without a name, all are made.
    OPTION: further options of pytest, for example `-n 2`.
"""

import dataclasses
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "versions"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: The packages that the table names, in this order.
SHOWN = ("django", "channels", "channels-redis", "redis", "daphne", "msgspec", "prometheus-client")

#: Tests that need neither servers nor faults. `test_packaging` compares files, also the table of these runs.
FAST = (
    *("tests/unit", "tests/integration", "--ignore", "tests/unit/test_packaging.py"),
    *("-m", "not acceptance and not faults and not browser"),
)

#: Tests of what the layers need from redis-py: each way in which a connection to Redis can end.
OF_REDIS = (
    *("tests/integration/layers", "tests/integration/hub"),
    *("tests/faults/test_idle.py", "tests/faults/test_redis_restart.py", "tests/faults/test_flushall.py"),
    "-k",
    "integration "
    "or (longer_than and (core-daphne-postgres or pubsub-uvicorn-postgres)) "
    "or (within_two_seconds and (core-uvicorn-sqlite or pubsub-uvicorn-postgres)) "
    "or (sent_away and pubsub-uvicorn-postgres) "
    "or (within_a_round and with-reaper-scaled and (core-daphne-postgres or pubsub-uvicorn-postgres))",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One environment, and the tests that are run in it.

    Attributes:
        name: Its name on the command line and in CONTRIBUTING.md.
        python: The Python, such as "3.12".
        wanted: Requirements on top of those of the package, such as "django~=6.0.0".
        lowest: Install the lowest release that the package accepts of each of its dependencies.
        tests: The arguments of pytest.
    """

    name: str
    python: str
    wanted: tuple[str, ...] = ()
    lowest: bool = False
    tests: tuple[str, ...] = FAST


def newest(python: str, django: str) -> Run:
    return Run(f"newest-{python}-django-{django}", python, (f"django~={django}.0",))


RUNS = (
    Run("lowest", "3.11", lowest=True),
    newest("3.11", "5.2"),
    *(newest(python, django) for python in ("3.12", "3.13", "3.14") for django in ("5.2", "6.0", "6.1")),
    *(
        Run(f"redis-py-{version}", "3.11", ("django~=5.2.0", f"redis=={version}"), tests=OF_REDIS)
        for version in ("5.0.3", "5.2.1", "5.3.*", "6.*", "7.*", "8.*")
    ),
)


def package_requirements() -> list[Requirement]:
    """Return the requirements of the wheel with all its extras."""
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def lower_bound(requirement: Requirement) -> str:
    """Return the version that the requirement accepts and none below it."""
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return bound


def locked() -> dict[str, Requirement]:
    """Return the pins of both requirements files by canonical name, for the running Python."""
    lines = (
        line.partition("#")[0].strip()
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / file).read_text().splitlines()
    )
    pins = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def tools() -> Iterator[Requirement]:
    """Yield what the tests need beside the package's own dependencies: the groups `run` and `test`."""
    own = {canonicalize_name(each.name) for each in package_requirements()}
    for group in ("run", "test"):
        for line in PYPROJECT["dependency-groups"][group]:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) not in own:
                yield requirement


def requirements(run: Run) -> list[str]:
    """Return what uv is to install. With the lowest dependencies, the tools are the locked ones."""
    own = [str(each) for each in package_requirements()]
    if not run.lowest:
        return [*own, *run.wanted, *map(str, tools())]
    pins = locked()
    return [*own, *run.wanted, *(str(pins[canonicalize_name(each.name)]) for each in tools())]


def install(run: Run) -> Path:
    """Make the environment of a run, and return its Python.

    Raises:
        LookupError: This machine has no such Python.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    environment = ENVIRONMENTS / run.name.replace("*", "x")
    quiet = (uv, "--quiet", "--no-python-downloads")
    if subprocess.run([*quiet, "python", "find", run.python], capture_output=True, check=False).returncode:
        raise LookupError(run.python)
    subprocess.run([*quiet, "venv", "--clear", "--python", run.python, str(environment)], check=True)
    python = environment / "bin" / "python"
    listed = environment / "requirements.in"
    listed.write_text("\n".join(requirements(run)) + "\n")
    resolution = "lowest-direct" if run.lowest else "highest"
    subprocess.run(
        [
            *(*quiet, "pip", "install", "--python", str(python)),
            *("--resolution", resolution, "--requirement", str(listed)),
        ],
        check=True,
    )
    return python


def installed(python: Path) -> dict[str, str]:
    """Return the versions in an environment by canonical name, and that of its Python as `python`."""
    program = (
        "import importlib.metadata as m, platform\n"
        "print('python', platform.python_version())\n"
        "for each in m.distributions(): print(each.metadata['Name'], each.version)"
    )
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    return {canonicalize_name(name): version for name, version in map(str.split, done.stdout.splitlines())}


def differences(run: Run, versions: dict[str, str]) -> list[str]:
    """Return what was not installed as the run says."""
    wanted = [Requirement(line) for line in run.wanted]
    if run.lowest:
        wanted += [Requirement(f"{each.name}=={lower_bound(each)}") for each in package_requirements()]
    return [
        f"{each}, not {versions[canonicalize_name(each.name)]}"
        for each in wanted
        if not each.specifier.contains(versions[canonicalize_name(each.name)])
    ]


def row(run: Run, versions: dict[str, str], result: str) -> str:
    shown = [versions.get(name, "") for name in ("python", *SHOWN)]
    return f"| `{run.name}` | {' | '.join(shown)} | {result} |"


def make(run: Run, options: list[str]) -> tuple[str, bool]:
    """Make one run.

    Returns:
        Its row of the table, and True unless it failed.
    """
    try:
        python = install(run)
    except LookupError:
        return row(run, {"python": run.python}, "no such Python here"), not os.environ.get("REQUIRE_ALL")
    except subprocess.CalledProcessError:
        return row(run, {"python": run.python}, "not installable"), False
    versions = installed(python)
    if wrong := differences(run, versions):
        return row(run, versions, f"installed otherwise: {'; '.join(wrong)}"), False
    log = python.parents[1] / "pytest.log"
    with log.open("w") as output:
        done = subprocess.run(
            [str(python), "-m", "pytest", *run.tests, "-q", "-p", "no:cacheprovider", *options],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    last = log.read_text().strip().rpartition("\n")[2].strip("= ")
    if done.returncode:
        return row(run, versions, f"{last}; see {log.relative_to(ROOT)}"), False
    return row(run, versions, re.sub(r" in [\d.]+s.*", "", last)), True


def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    patterns, options = arguments[:end], arguments[end + 1 :]
    chosen = [run for run in RUNS if any(fnmatch.fnmatch(run.name, each) for each in patterns or ["*"])]
    if not chosen:
        print("The runs are:", *(run.name for run in RUNS))
        return 2
    print(f"| run | Python | {' | '.join(SHOWN)} | result |")
    print(f"|{'---|' * (len(SHOWN) + 3)}")
    good = True
    for run in chosen:
        line, passed = make(run, options)
        print(line, flush=True)
        good &= passed
    return not good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
