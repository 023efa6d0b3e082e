"""Processes in real PID namespaces: a pid of one namespace says nothing in another."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from realtime.process import pids
from tests.support.programs.servers import CHECKOUT

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"),
]

OWN = """
import dataclasses, json
from realtime.process import pids
print(json.dumps(dataclasses.asdict(pids.own())))
"""


def own_in(*unshare: str) -> pids.Pid:
    """Return the pid that a process reports of itself, started by `unshare` with these options."""
    done = subprocess.run(
        ["unshare", *unshare, "--fork", sys.executable, "-c", OWN],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return pids.Pid(**json.loads(done.stdout))


def test_a_process_in_its_own_namespace_has_another_place() -> None:
    inside = own_in("--pid", "--mount-proc")
    assert inside.number == 1
    assert inside.namespace not in ("", pids.own().namespace)
    assert inside.namespace.split()[0] == pids.own().namespace.split()[0], "the boot is the same"


def test_with_the_outer_proc_a_process_has_no_place() -> None:
    inside = own_in("--pid")
    assert (inside.number, inside.namespace, inside.began) == (1, "", 0)


def test_a_process_in_its_own_time_namespace_has_another_place() -> None:
    # /proc shows the start of a process by the time of the reader, so we would read another one.
    inside = own_in("--time", "--boottime", "1000000")
    assert inside.namespace not in ("", pids.own().namespace)
    assert inside.namespace.split()[:2] == pids.own().namespace.split()[:2]
