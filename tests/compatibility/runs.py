"""Runs of another project's suite: its files, its process, its results."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from project import private_redis
from tests.compatibility.suites import Suite
from tests.support.programs.servers import CHECKOUT
from tests.support.programs.wheels import FOREIGN_ENVIRONMENT, write_constraints

HERE = Path(__file__).parent
#: Source distributions stay here, so that each is downloaded once.
CACHE = CHECKOUT / "var" / "sdists"
#: The environment variable that names a folder with checkouts, each under the name of its distribution.
CHECKOUTS = "CHECKOUTS"
#: Seconds that one run may take. The slowest takes one minute.
LIMIT = 240
#: The words to put before a command, to run it as the first process of a network and a pid namespace of its own.
ISOLATED = [
    *("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(() if os.geteuid() == 0 else ("--map-root-user",)),
]

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Run:
    """One finished run of a suite.

    Args:
        results: "passed", "failed", "error" or "skipped" by the name of the test.
        reasons: The message of each test that failed, by its name.
        got: The names that held our classes, as `module.Class`.
    """

    results: dict[str, str]
    reasons: dict[str, str]
    got: frozenset[str]


def sources_of(suite: Suite, folder: Path) -> Path:
    """Return the folder with the files of the suite. It skips the test if they cannot be had.

    Raises:
        AssertionError: The checkout is of another version than the installed distribution.
    """
    if not suite.published:
        return _checkout(suite)
    with tarfile.open(_source_distribution(suite.name)) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    return sources


def has_sources(suite: Suite) -> bool:
    """Return True unless the suite needs a checkout and `CHECKOUTS` has none."""
    return suite.published or _checkout(suite).is_dir()


def _checkout(suite: Suite) -> Path:
    return Path(os.environ.get(CHECKOUTS, "/nonexistent")) / suite.name


def _source_distribution(name: str) -> Path:
    """Return the archive of the installed version, from the cache or from PyPI."""
    version = importlib.metadata.version(name)
    archive = CACHE / f"{name}-{version}.tar.gz"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            download = (*_PIP, "download", "--retries", "1", "--no-deps", "--no-binary", name)
            done = _run([*download, "--dest", folder, f"{name}=={version}"])
            if done.returncode != 0:
                last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
                pytest.skip(f"The source distribution of {name} {version} cannot be downloaded from PyPI: {last}")
            (downloaded,) = Path(folder).iterdir()
            downloaded.replace(archive)
    return archive


class Runs:
    """The two runs of one suite, side by side: both mostly wait."""

    def __init__(self, suite: Suite, sources: Path, folder: Path, tests: Iterable[str] = ()) -> None:
        self._suite = suite
        self._sources = sources
        self._folder = folder
        self._tests = tuple(tests) or suite.tests

    def finish(self) -> tuple[Run, Run]:
        """Run the suite on the classes of Channels and on ours, and return both runs."""
        paths = [self._needs()] if self._suite.needs else []
        with contextlib.ExitStack() as running:
            plain = _Process(self, "plain", (), paths)
            ours = _Process(self, "ours", ("-p", "realtime_in_place"), paths)
            for process in (plain, ours):
                running.enter_context(process)
            return plain.result(), ours.result()

    def _needs(self) -> Path:
        """Install what only this suite needs into a folder of its own, and return the folder."""
        folder = self._folder / "needs"
        constraints = write_constraints(self._folder)
        done = _run([*_PIP, "install", "--target", folder, "--constraint", constraints, *self._suite.needs])
        assert done.returncode == 0, done.stderr
        return folder

    def prepare(self, name: str) -> Path:
        """Make the folder of one run: the files of the suite, ours that it lacks, and `realtime`."""
        folder = self._folder / name
        folder.mkdir()
        for each in self._suite.copied:
            source = self._sources / each
            if source.is_dir():
                shutil.copytree(source, folder / each)
            elif source.exists():
                (folder / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / each)
        helpers = HERE / "helpers" / self._suite.name
        if helpers.is_dir():
            # Theirs are never replaced.
            for helper in helpers.glob("*.py"):
                assert not (folder / "tests" / helper.name).exists(), f"{self._suite.name} has {helper.name} now"
                shutil.copy(helper, folder / "tests")
            (folder / "tests" / "__init__.py").touch()
        # A link to the package alone: the checkout has a package "tests", as most suites have.
        (folder / "site").mkdir()
        (folder / "site" / "realtime").symlink_to(CHECKOUT / "realtime")
        return folder

    def command(self, folder: Path, options: tuple[str, ...]) -> list[str]:
        suite = self._suite
        command = [sys.executable, "-m", "pytest", *self._tests, *options, *suite.options]
        command += ["-p", "no:xdist", "-p", "no:cacheprovider", "-q", "--tb=short"]
        command += ["--junitxml=results.xml", *(f"--ignore={path}" for path in suite.ignored)]
        if suite.redis:
            program = str(HERE / "inside" / "with_redis.py")
            command = [*ISOLATED, sys.executable, program, private_redis.server_program(), *command]
        return command

    def environment(self, folder: Path, paths: list[Path]) -> dict[str, str]:
        python_path = os.pathsep.join(str(path) for path in (folder / "site", HERE / "inside", *paths))
        return {**FOREIGN_ENVIRONMENT, **self._suite.environment, "PYTHONPATH": python_path}


class _Process:
    """The process of one run."""

    def __init__(self, runs: Runs, name: str, options: tuple[str, ...], paths: list[Path]) -> None:
        self._folder = runs.prepare(name)
        self._log = self._folder / "output.txt"
        self._command = runs.command(self._folder, options)
        self._environment = runs.environment(self._folder, paths)

    def __enter__(self) -> "_Process":
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def result(self) -> Run:
        """Wait for the end of the run, and return it.

        Raises:
            AssertionError: pytest itself failed; the message has its output.
        """
        code = self._process.wait(LIMIT)
        # 0: all passed; 1: some failed.
        assert code in (0, 1), f"{self._command} ended with {code}:\n{self._log.read_text()[-4000:]}"
        results: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for case in ElementTree.parse(self._folder / "results.xml").iter("testcase"):  # noqa: S314 - our own file
            name = f"{case.get('classname')}::{case.get('name')}"
            outcome = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
            results[name] = (
                "passed" if outcome is None else outcome.tag.replace("failure", "failed")
            )
            if outcome is not None:
                reasons[name] = (outcome.get("message") or "").strip().splitlines()[0][:300]
        report = self._folder / "in-place.json"
        got = json.loads(report.read_text()) if report.exists() else ()
        return Run(results, reasons, frozenset(got))


def require_namespaces() -> None:
    """Skip the test, with the reason, if network namespaces cannot be made here."""
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program} (apt-get install iproute2 util-linux)")
    done = _run([*ISOLATED, "true"])
    if done.returncode != 0:
        pytest.skip(f"needs a network namespace: {done.stderr.strip()}")


def _run(command: Iterable[str | Path]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(part) for part in command],
        env=FOREIGN_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
