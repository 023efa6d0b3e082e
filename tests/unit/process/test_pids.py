"""A pid shows that a process has ended only if the pid has a meaning here and there is no doubt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from realtime.process import pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture
def sleeper():
    """A running child process, and the time at which it began."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        yield child, _began(child.pid)
    finally:
        child.kill()
        child.wait()


def _began(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])


def test_this_process_is_not_gone() -> None:
    me = pids.own()
    assert me.number == os.getpid()
    assert me.namespace
    assert not pids.is_gone(me.number, me.began)


def test_a_child_sees_the_same_namespace_and_another_start() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from realtime.process import pids; print(pids.own().namespace)"
    )
    root = Path(__file__).resolve().parents[3]
    seen = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == pids.own().namespace


def test_a_process_that_was_killed_is_gone(sleeper) -> None:
    child, began = sleeper
    assert not pids.is_gone(child.pid, began)
    child.kill()
    child.wait()
    assert pids.is_gone(child.pid, began)


def test_a_killed_process_is_gone_before_its_parent_reaps_it(sleeper) -> None:
    child, began = sleeper
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert pids.is_gone(child.pid, began)


def test_a_stopped_process_is_not_gone(sleeper) -> None:
    child, began = sleeper
    child.send_signal(19)
    assert not pids.is_gone(child.pid, began)


def test_a_process_is_gone_if_another_has_its_pid(sleeper) -> None:
    child, began = sleeper
    assert pids.is_gone(child.pid, began - 1)


def test_a_process_that_is_hidden_from_us_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(number: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not pids.is_gone(4711, 1, proc=tmp_path)


def test_a_leader_that_ended_before_its_threads_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711" / "stat").write_text(f"4711 (a) b) Z {'0 ' * 16}2 0 99 0 0\n")
    monkeypatch.setattr(os, "kill", lambda number, signal: None)
    assert not pids.is_gone(4711, 99, proc=tmp_path)
    assert pids.is_gone(4711, 98, proc=tmp_path)


def test_without_proc_no_pid_is_judged(tmp_path: Path) -> None:
    me = pids.own(proc=tmp_path)
    assert (me.number, me.namespace, me.began) == (os.getpid(), "", 0)


def test_a_proc_of_another_pid_namespace_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("1")
    assert pids.own(proc=tmp_path).namespace == ""
