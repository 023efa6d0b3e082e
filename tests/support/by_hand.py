"""The parts that long fault runs by hand share: their options, their site, and their output.

A run prints the command that repeats it. If it fails, its logs stay.
"""

import argparse
import contextlib
import random
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support.pairings import Pairing
from tests.support.programs.databases import Databases
from tests.support.programs.servers import RedisServer
from tests.support.programs.site import Site


def parser(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """Return a parser with the options that every run has.

    Args:
        description: The docstring of the program.
        minutes: The default of `--minutes`.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=minutes)
    made.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a new one")
    made.add_argument("--layer", choices=("core", "pubsub"), default="pubsub")
    made.add_argument("--server", choices=("daphne", "uvicorn"), default="daphne")
    made.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    made.add_argument("--plan", action="store_true", help="only print what would happen")
    return made


def pairing_of(options: argparse.Namespace) -> Pairing:
    """Return the pairing that the options name."""
    return Pairing(options.layer, options.server, options.database)


def command(program: str, pairing: Pairing, options: Mapping[str, str], *flags: str) -> str:
    """Return the command line that repeats a run."""
    named = {"layer": pairing.layer, "server": pairing.server, "database": pairing.database}
    words = [*(f"--{name}={value}" for name, value in {**options, **named}.items()), *flags]
    return shlex.join(["python", "-m", program, *words])


@contextlib.contextmanager
def site_by_hand(
    name: str,
    pairing: Pairing,
    again: str,
    redis: Callable[[Path], RedisServer | None] = lambda folder: None,
    **settings: object,
) -> Iterator[Site]:
    """Start a site for a run. Its folder is deleted if the run succeeds.

    Args:
        name: The beginning of the name of the folder.
        pairing: The layer, the server and the database.
        again: The command that repeats the run.
        redis: Returns the Redis of the site, in this folder; None for the usual one.
        **settings: Settings of REALTIME.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    with contextlib.ExitStack() as running:
        databases = Databases(folder)
        running.callback(databases.close)
        database = databases.new(pairing.database)
        site = running.enter_context(Site(folder, pairing, database, redis=redis(folder), **settings))
        try:
            yield site
        except BaseException:
            say(f"failed; logs are in {folder}; again: {again}")
            raise
    shutil.rmtree(folder)


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)  # noqa: T201 - the output of the program
