"""Run a command beside a Redis and a Sentinel at the ports that are written in the suite of channels_redis.

`python with_redis.py REDIS_SERVER COMMAND…` runs as the first process of a network and a pid namespace of
its own. The ports are free there, and the kernel ends both servers with this process.
"""

import pathlib
import socket
import subprocess
import sys
import tempfile
import time

REDIS, SENTINEL = 6379, 26379

#: The name and the password are those of the suite.
CONFIGURATION = f"""
port {SENTINEL}
requirepass channels_redis
sentinel monitor sentinel 127.0.0.1 {REDIS} 1
"""


def main(server: str, *command: str) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="redis-"))
    configuration = folder / "sentinel.conf"
    configuration.write_text(CONFIGURATION)
    start(server, "--port", str(REDIS), "--save", "", "--dir", str(folder))
    wait_for(REDIS)
    start(server, str(configuration), "--sentinel", "--dir", str(folder))
    wait_for(SENTINEL)
    return subprocess.run(command, check=False).returncode


def start(*command: str) -> None:
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
