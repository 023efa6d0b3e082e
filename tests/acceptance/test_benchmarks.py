"""The benchmarks run: each command in its smallest form. These tests do not look at the figures."""

import shutil
import subprocess
import sys

import pytest

from tests.support.programs.servers import CHECKOUT

pytestmark = pytest.mark.acceptance

COMMANDS = [
    "fanout",
    "connect",
    "records",
    "notify",
    "idle",
    pytest.param("revocation", marks=pytest.mark.matrix),
    pytest.param("history", marks=pytest.mark.matrix),
    pytest.param("costs", marks=pytest.mark.matrix),
    pytest.param("presence", marks=pytest.mark.matrix),
    pytest.param("presence_group", marks=pytest.mark.matrix),
    pytest.param(
        "proxy",
        marks=[
            pytest.mark.matrix,
            pytest.mark.skipif(
                shutil.which("haproxy") is None, reason="needs HAProxy (apt-get install haproxy)"
            ),
        ],
    ),
]
PEERS = [
    "ours-asgi",
    "ours-history",
    "ours-core",
    "ours-uvicorn",
    "drop-in",
    "drop-in-sync",
    "plain-sync",
    "plain-core",
    "plain-uvicorn",
    "plain-recording",
    "websockets",
    *(
        pytest.param(name, marks=pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm"))
        for name in ("socket.io", "ws")
    ),
]


def run(command: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", "--quick", *options],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_runs_and_prints_its_table(command: str) -> None:
    said = run(command)
    assert f"{command}: medians" in said
    assert any(word in said for word in ("pubsub", "ours", "HAProxy", "checks", "tracked"))


@pytest.mark.matrix
@pytest.mark.parametrize("contender", PEERS)
def test_fan_out_is_measured_with_every_contender(contender: str) -> None:
    assert contender in run("fanout", "--only", contender).partition("fanout: medians")[2]


def test_an_unknown_contender_is_refused_with_a_list_of_all() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fanout", "--quick", "--only", "plainn"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "plain" in done.stderr
