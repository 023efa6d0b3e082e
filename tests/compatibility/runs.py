"""Runs of another project's suite: its files, its process, its results."""

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
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

import pytest

from project import private_redis
from tests.compatibility.suites import Suite
from tests.support.programs.servers import CHECKOUT
from tests.support.programs.wheels import FOREIGN_ENVIRONMENT

HERE = Path(__file__).parent
#: Source distributions stay here, so that each is downloaded once.
CACHE = CHECKOUT / "var" / "sdists"
#: The environment variable that names a checkout of Channels, which publishes its tests only there.
CHECKOUT_OF_CHANNELS = "CHANNELS_CHECKOUT"
#: Seconds that one run may take. The slowest takes one minute on an idle machine.
LIMIT = 270
#: The words to put before a command, to run it in a network and a pid namespace of its own.
ISOLATED = [
    *("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(() if os.geteuid() == 0 else ("--map-root-user",)),
]

_WITH_REDIS = (sys.executable, str(HERE / "inside" / "with_redis.py"))
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Run:
    """One finished run of a suite.

    Args:
        results: "passed", "failed", "error" or "skipped" by the name of the test.
        reasons: The message of each test that failed, by its name.
        got: The names that held our classes or subclasses of them, as `module.Class`.
    """

    results: dict[str, str]
    reasons: dict[str, str]
    got: frozenset[str]


def sources_of(suite: Suite, folder: Path) -> Path:
    """Return the folder with the files of the suite. It skips the test if they cannot be had."""
    if not suite.published:
        return Path(os.environ[CHECKOUT_OF_CHANNELS])
    with tarfile.open(_source_distribution(suite.name)) as archive:
        archive.extractall(folder / "sources", filter="data")
    (sources,) = (folder / "sources").iterdir()
    return sources


def has_sources(suite: Suite) -> bool:
    """Return True unless the suite needs a checkout and the environment names none."""
    return suite.published or CHECKOUT_OF_CHANNELS in os.environ


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
                pytest.skip(f"the tests of {name} {version} cannot be downloaded from PyPI: {last}")
            (downloaded,) = Path(folder).iterdir()
            downloaded.replace(archive)
    return archive


def prepare(suite: Suite, sources: Path, folder: Path) -> None:
    """Copy the tests of a suite into a folder, with the files of ours that they lack."""
    for each in suite.copied:
        copy = shutil.copytree if (sources / each).is_dir() else shutil.copy
        copy(sources / each, folder / each)
    helpers = HERE / "helpers" / suite.name
    for helper in helpers.glob("*.py"):
        # Theirs are never replaced.
        assert not (folder / "tests" / helper.name).exists(), f"{suite.name} has {helper.name} now"
        shutil.copy(helper, folder / "tests")
        (folder / "tests" / "__init__.py").touch()


class Process:
    """pytest in a process of its own, in the folder of a suite.

    Args:
        folder: The folder of the suite.
        arguments: The arguments of pytest.
        scratch: A folder for what the run writes.
        ours: Our classes are in the places of the classes of Channels.
        redis: A Redis and a Sentinel run at their usual ports.
    """

    def __init__(
        self, folder: Path, arguments: Iterable[str], scratch: Path, *, ours: bool, redis: bool = False
    ) -> None:
        self._folder = folder
        self._log, self._results, self._got = (
            scratch / name for name in ("output.txt", "results.xml", "got.json")
        )
        self._command = [
            *([*ISOLATED, *_WITH_REDIS, private_redis.server_program()] if redis else ()),
            *(sys.executable, "-m", "pytest", *(("-p", "realtime_in_place") if ours else ()), *arguments),
            *("-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={self._results}"),
        ]
        # A link to the package alone: the checkout has a package "tests", as most suites have.
        site = scratch / "site"
        site.mkdir()
        (site / "realtime").symlink_to(CHECKOUT / "realtime")
        paths = [str(site), str(HERE / "inside"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **FOREIGN_ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(paths),
            "REALTIME_IN_PLACE": str(self._got),
        }

    def __enter__(self) -> Self:
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def finish(self) -> Run:
        """Wait for the end of the run, and return it.

        Raises:
            AssertionError: pytest itself failed; the message has its output.
        """
        code = self._process.wait(LIMIT)
        # 0: all passed; 1: some failed.
        assert code in (0, 1), f"{self._command} ended with {code}:\n{self._log.read_text()[-4000:]}"
        results: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for case in ElementTree.parse(self._results).iter("testcase"):  # noqa: S314 - pytest wrote the file
            name = f"{case.get('classname')}::{case.get('name')}"
            found = {each.tag: each.get("message") or "" for each in case}
            # A test that passed has an error if its fixtures fail then; one that failed has a second element.
            tag = next((tag for tag in ("failure", "error", "skipped") if tag in found), None)
            if results.get(name, "passed") == "passed":
                results[name] = {"failure": "failed", None: "passed"}.get(tag, tag or "")
                if tag in ("failure", "error"):
                    reasons[name] = found[tag].partition("\n")[0][:300]
        got = json.loads(self._got.read_text()) if self._got.exists() else ()
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
