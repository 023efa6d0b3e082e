"""Find out from the kernel if a process of this machine still exists.

A pid has a meaning only within one PID namespace of one boot of one machine. It identifies a process only
together with the time at which the process began, because the kernel reuses numbers. If these cannot be known
(not on Linux, or with a `/proc` of another namespace), no process is judged by its pid, and only rounds find
dead processes.

psutil does not help here: it knows no namespaces.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pid:
    """The identity of a process of the operating system, unique among all machines."""

    host: str
    number: int
    namespace: str
    """The boot and the namespaces in which `number` has a meaning; empty if they cannot be known."""
    began: int
    """The start of the process, in clock ticks since the boot (`starttime` in proc(5)); 0 if unknown."""


@dataclass(frozen=True, slots=True)
class _Stat:
    began: int
    ended: bool


def own(*, proc: Path = PROC) -> Pid:
    """Return the identity of this process.

    Args:
        proc: The kernel's directory of processes.
    """
    number, namespace = os.getpid(), _namespace(proc)
    stat = _stat(number, proc) if namespace else None
    if stat is None:
        return Pid(socket.gethostname(), number, "", 0)
    return Pid(socket.gethostname(), number, namespace, stat.began)


def is_gone(number: int, began: int, *, proc: Path = PROC) -> bool:
    """Return True if a process of our own namespace has certainly ended.

    If there is a doubt, return False: for another user's process, or if `/proc` hides it.

    Args:
        number: The pid of the process.
        began: Its start, as in `Pid.began`.
        proc: The kernel's directory of processes.
    """
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # There is such a process, but this one may not signal it.
        pass
    stat = _stat(number, proc)
    return stat is not None and (stat.ended or stat.began != began)


def _namespace(proc: Path) -> str:
    """Return the boot, the PID namespace and the time namespace of this process, or an empty text if unknown.

    The kernel reuses inodes of namespaces, but only after the last process of the old namespace has ended.
    The time namespace belongs to it because `/proc` shows start times in the time namespace of its reader
    (time_namespaces(7)).
    """
    try:
        # After `unshare --pid`, /proc may still be the one of the outer namespace, with other numbers.
        if os.readlink(proc / "self") != str(os.getpid()):
            return ""
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return " ".join([boot, *(os.readlink(proc / "self/ns" / kind) for kind in ("pid", "time"))])
    except OSError:
        return ""


def _stat(number: int, proc: Path) -> _Stat | None:
    """Read `/proc/<pid>/stat` (proc(5)); None if it cannot be read."""
    try:
        text = (proc / str(number) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, and the name may contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    # Counted from the third field on. A leader that ended before its other threads is a zombie, too. So a
    # process has ended only if it has no other thread.
    state, threads, began = fields[0], int(fields[17]), int(fields[19])
    return _Stat(began=began, ended=state in "ZX" and threads <= 1)
