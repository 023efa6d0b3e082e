"""A signal that has a server tidy its memory and log how much is left.

The size of the process alone says little: garbage that is not collected yet, free pages and the caches of
SQLite are many times larger than what a connection could leave in use.
"""

import ctypes
import gc
import os
import signal
import sys
import threading

TIDY = signal.SIGUSR2
TIDIED = "memory tidied, blocks held: "


def tidy_when_told() -> None:
    """Have this process obey SIGUSR2.

    It then collects its garbage, gives free memory back to the system, and writes to its log how many blocks
    of memory Python's objects hold.
    """
    # Only the main thread may set handlers, and autoreload imports settings in another one.
    if threading.current_thread() is threading.main_thread():
        signal.signal(TIDY, lambda number, frame: _tidy())


def _tidy() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    os.write(2, f"{TIDIED}{sys.getallocatedblocks()}\n".encode())
