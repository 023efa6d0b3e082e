"""pyproject.toml, the lock, the runs with other versions, and the workflow for a public host agree."""

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import realtime
from tests.support import versions

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
GROUPS = PYPROJECT["dependency-groups"]
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(file: str) -> list[Requirement]:
    """The pins of a requirements file, without those of the files that it includes."""
    lines = ((line.partition("#")[0].strip()) for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def members(group: str) -> Iterator[Requirement]:
    """The requirements of a group and of the groups that it includes."""
    for entry in GROUPS[group]:
        if isinstance(entry, str):
            yield Requirement(entry)
        else:
            yield from members(entry["include-group"])


def run_requirements() -> list[Requirement]:
    return [*versions.package_requirements(), *members("run")]


RUN = locked("requirements.txt")
DEV = locked("requirements-dev.txt")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("wanted", "pins"), [(run_requirements(), RUN), (list(members("dev")), RUN + DEV)], ids=["run", "dev"]
)
def test_the_lock_meets_every_requirement(
    python: str, wanted: list[Requirement], pins: list[Requirement]
) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        versions = [
            pin.specifier
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(versions) == 1, f"{requirement} has {versions}: run `make lock`"
        assert requirement.specifier.contains(str(versions[0]).removeprefix("==")), "run `make lock`"


def test_every_locked_version_is_exact_and_stands_in_one_file() -> None:
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in RUN + DEV)
    assert {pin.name for pin in RUN} & {pin.name for pin in DEV} == set()


@pytest.mark.parametrize("requirement", versions.package_requirements(), ids=lambda each: each.name)
def test_the_wheel_has_one_lower_and_no_upper_bound(requirement: Requirement) -> None:
    """An upper bound would keep an application from a release that this package has not seen."""
    assert [each.operator for each in requirement.specifier] == [">="]


def test_each_lower_bound_is_what_the_lowest_run_installs() -> None:
    (lowest,) = [run for run in versions.RUNS if run.lowest]
    assert lowest.python == PYTHONS[0]
    assert lowest.tests == versions.FAST
    bounds = {each.name: versions.lower_bound(each) for each in versions.package_requirements()}
    assert versions.differences(lowest, {**bounds, "redis": "8.1.0"}) == [
        f"redis=={bounds['redis']}, not 8.1.0"
    ]
    (recorded,) = re.findall(
        r"^\| `lowest` \| 3\.11\.\d+ \| (.*) \| \d+ passed \|$", CONTRIBUTING, re.MULTILINE
    )
    assert recorded.split(" | ") == [bounds[name] for name in versions.SHOWN]


def test_the_lowest_run_pins_what_only_the_tests_need() -> None:
    lowest, newest = versions.RUNS[:2]
    own = {str(each) for each in versions.package_requirements()}
    assert own <= set(versions.requirements(lowest)) & set(versions.requirements(newest))
    assert str(versions.locked()["pytest"]) in versions.requirements(lowest)
    assert "pytest" in versions.requirements(newest)
    # The group `run` names the series of the locked Django, which would keep each run from the others.
    assert "django~=5.2.0" not in versions.requirements(lowest)


def test_the_table_has_every_run_and_declared_versions_passed() -> None:
    declared = set(re.findall(r"(Python|Django) :: (\d+\.\d+)", "\n".join(PROJECT["classifiers"])))
    table = re.findall(r"^\| `([^`]+)` \| (.*) \|$", CONTRIBUTING, re.MULTILINE)
    assert [name for name, _ in table] == [run.name for run in versions.RUNS]
    passed = [name.split("-") for name, cells in table if " passed" in cells and "failed" not in cells]
    newest = [parts for parts in passed if parts[0] == "newest"]
    assert declared == {
        each for _, python, _, django in newest for each in (("Python", python), ("Django", django))
    }


def test_the_newest_release_of_the_changelog_is_the_version() -> None:
    releases = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[:1] in ([], [realtime.__version__])


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest == PYTHONS[0] == PYPROJECT["tool"]["mypy"]["python_version"]
    assert f"py{oldest.replace('.', '')}" == PYPROJECT["tool"]["ruff"]["target-version"]
    assert f"--python-version {oldest} " in (ROOT / "project/lock.sh").read_text()


def test_the_workflow_runs_every_python_that_is_declared() -> None:
    (listed,) = re.findall(r"^ +python: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    pythons = re.findall(r"3\.\d+", listed)
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tuple(pythons) == PYTHONS
    assert set(declared) <= set(pythons)


def test_the_workflow_makes_every_run_with_its_python() -> None:
    jobs = re.findall(r'image: "([\d.]+)", runs: "([^"]+)"', WORKFLOW)
    for run in versions.RUNS:
        patterns = [each for python, runs in jobs if python == run.python for each in runs.split()]
        assert any(fnmatch.fnmatch(run.name, each) for each in patterns), run.name


# -- the browser client as an npm package


PACKAGE = json.loads((ROOT / "package.json").read_text())


def test_the_npm_package_has_the_version_of_the_wheel() -> None:
    assert PACKAGE["version"] == realtime.__version__
    assert (PACKAGE["name"], PACKAGE["license"]) == (PROJECT["name"], PROJECT["license"])
    assert PACKAGE["homepage"] == PROJECT["urls"]["Homepage"]


def test_the_npm_package_exports_the_files_that_it_has() -> None:
    entry = PACKAGE["exports"]["."]
    assert {entry["types"], entry["default"]} == {f"./{name}" for name in PACKAGE["files"]}
    assert PACKAGE["types"] == entry["types"]
    assert all((ROOT / name).is_file() for name in PACKAGE["files"])
    # An import that is not used must be removable, and Node must take the file for a module.
    assert (PACKAGE["sideEffects"], PACKAGE["type"]) == (False, "module")
    assert "dependencies" not in PACKAGE
