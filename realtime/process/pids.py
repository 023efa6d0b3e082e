"""Whether a process of this machine still exists: what the kernel says of its processes.

A pid says something only to somebody in the same PID namespace of the same boot of the same machine, and only
together with the time at which its process began, because numbers are used again. Where that cannot be known
(no Linux, or a `/proc` of another namespace) nobody is judged by a pid, and rounds find the dead alone.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pid:
    """A process of the operating system, told apart from all others, also on other machines."""

    host: str
    number: int
    namespace: str
    """Where `number` means something; empty where that cannot be known."""
    began: int
    """Clock ticks from the machine's boot to its start (`starttime` in proc(5)); 0 where unknown."""


@dataclass(frozen=True, slots=True)
class _Stat:
    began: int
    ended: bool


def own() -> Pid:
    """This process."""
    number, namespace = os.getpid(), _namespace()
    stat = _stat(number) if namespace else None
    if stat is None:
        return Pid(socket.gethostname(), number, "", 0)
    return Pid(socket.gethostname(), number, namespace, stat.began)


def is_gone(number: int, began: int) -> bool:
    """Whether the process that had this pid in our own namespace, and began then, has certainly ended.

    False whenever there is a doubt: another user's process, a `/proc` that hides it.
    """
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # There is such a process, and it is not ours to signal.
        pass
    stat = _stat(number)
    return stat is not None and (stat.ended or stat.began != began)


def _namespace() -> str:
    """The boot, the PID namespace and the time namespace of this process, or an empty text.

    Inodes of namespaces are used again, but only after the last process of the old one has ended. Times of
    starts are shown as the reader's time namespace has it (time_namespaces(7)).
    """
    try:
        # After `unshare --pid`, /proc may still be the one of the namespace outside, with other numbers.
        if os.readlink(_PROC / "self") != str(os.getpid()):
            return ""
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return " ".join([boot, *(os.readlink(_PROC / "self/ns" / kind) for kind in ("pid", "time"))])
    except OSError:
        return ""


def _stat(number: int) -> _Stat | None:
    """What proc(5) says of a process in `/proc/<pid>/stat`, or None where it says nothing."""
    try:
        text = (_PROC / str(number) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, which may contain spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    # Counted from the third field on. A leader that ended before its other threads is a zombie too, so a
    # process has ended only when there is no other thread.
    state, threads, began = fields[0], int(fields[17]), int(fields[19])
    return _Stat(began=began, ended=state in "ZX" and threads <= 1)
