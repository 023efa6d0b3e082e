"""`manage.py reap_connections`: rounds that ask every server process, and put right what the lost ones
held.
"""

import asyncio
import json
import signal
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseFailure

from realtime import conf, groups
from realtime.reaper import Reaper, Report, enough_rounds, rounds

ROUND_FAILED, MISCONFIGURED, REPAIRED = 1, 2, 3


class Command(BaseCommand):
    help = (
        "Ask every server process in rounds; close the records of those that are lost and leave their "
        "groups. Runs until SIGTERM. Any number may run. With --once exits 0 (nothing found), "
        "1 (a round failed), 2 (misconfigured), 3 (something was repaired)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--interval", type=float, metavar="S", help="seconds between rounds (ROUND_INTERVAL)"
        )
        parser.add_argument(
            "--timeout", type=float, metavar="S", help="seconds to wait for answers (ROUND_TIMEOUT)"
        )
        parser.add_argument(
            "--once", action="store_true", help="as many rounds as it takes to judge, then exit"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="ask once, say what would be done, write nothing"
        )
        parser.add_argument("--format", choices=("text", "json"), default="text", help="one line a round")

    def handle(self, **options: Any) -> None:
        self._json = options["format"] == "json"
        try:
            reaper = self._reaper(options["interval"], options["timeout"])
            groups.layer()
        except (ImproperlyConfigured, groups.LayerUnavailable) as error:
            raise CommandError(str(error), returncode=MISCONFIGURED) from error
        try:
            status = asyncio.run(self._run(reaper, once=options["once"], dry_run=options["dry_run"]))
        except (groups.LayerUnavailable, DatabaseFailure) as error:
            raise CommandError(f"The round failed: {error}", returncode=ROUND_FAILED) from error
        sys.exit(status)

    def _reaper(self, interval: float | None, timeout: float | None) -> Reaper:
        settings = conf.get()
        interval = settings.ROUND_INTERVAL if interval is None else interval
        timeout = settings.ROUND_TIMEOUT if timeout is None else timeout
        if not 0 < timeout < interval:
            raise CommandError(
                f"--timeout ({timeout:g}) must be above zero and below --interval ({interval:g}).",
                returncode=MISCONFIGURED,
            )
        return Reaper(interval=interval, timeout=timeout, misses_allowed=settings.MISSES_ALLOWED)

    async def _run(self, reaper: Reaper, *, once: bool, dry_run: bool) -> int:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, reaper.stop)
        try:
            if dry_run:
                self._report(await reaper.preview())
            elif once:
                return REPAIRED if await enough_rounds(reaper, self._report) else 0
            else:
                await rounds(reaper, self._report)
            return 0
        finally:
            await reaper.close()

    def _report(self, round_: Report | Exception) -> None:
        if isinstance(round_, Exception):
            line = json.dumps({"error": str(round_)}) if self._json else f"round failed: {round_}"
        elif self._json:
            line = json.dumps(asdict(round_))
        else:
            line = (
                f"round {round_.number}: asked {round_.asked}, answered {round_.answered}, "
                f"lost {round_.lost}, reaped {round_.reaped}, discarded {round_.discarded}, "
                f"kicked {round_.kicked}, {round_.seconds:.2f} s"
            )
            if round_.unreachable:
                line += f"; {round_.unreachable} could not be asked"
        self.stdout.write(line)
        self.stdout.flush()
