"""`manage.py reap_connections`: run rounds that ask every server process, and clean up after lost ones."""

import asyncio
import json
import signal
import sys
from argparse import ArgumentParser
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseFailure

from realtime.errors import LayerUnavailable, RoundFailed
from realtime.fleet.explain import Explained, Explainer, look_and_repair
from realtime.fleet.rounds import Reaper, Report, run_enough_rounds, run_rounds
from realtime.layers import groups

ROUND_FAILED, MISCONFIGURED, REPAIRED = 1, 2, 3


class Command(BaseCommand):
    help = (
        "Ask every server process in rounds. Close the records of lost processes and leave their groups. "
        "Runs until SIGTERM. Any number of reapers may run. With --once exits 0 (nothing found), "
        "1 (a round failed), 2 (misconfigured), 3 (something was repaired)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--interval", type=float, metavar="S", help="seconds between rounds (ROUND_INTERVAL)")
        add("--timeout", type=float, metavar="S", help="seconds to wait for answers (ROUND_TIMEOUT)")
        add("--once", action="store_true", help="run as many rounds as are needed to judge, then exit")
        add("--dry-run", action="store_true", help="ask once, report what would be done, write nothing")
        add("--explain", action="store_true", help="compare records, channel layer and sockets, once")
        add(
            "--format",
            choices=("text", "json"),
            default="text",
            help="output: one line for each round or difference",
        )

    def handle(self, **options: Any) -> None:
        self._json = options["format"] == "json"
        self._lines = 0
        try:
            if options["explain"] and not (options["once"] or options["dry_run"]):
                raise ImproperlyConfigured(
                    "--explain compares once: add --once, or --dry-run to repair nothing."
                )
            reaper = Reaper.as_configured(options["interval"], options["timeout"])
            groups.layer()
        except (ImproperlyConfigured, LayerUnavailable) as error:
            raise CommandError(str(error), returncode=MISCONFIGURED) from error
        try:
            status = asyncio.run(self._run(reaper, options))
        except (LayerUnavailable, DatabaseFailure, RoundFailed) as error:
            raise CommandError(f"The round failed: {error}", returncode=ROUND_FAILED) from error
        sys.exit(status)

    async def _run(self, reaper: Reaper, options: dict[str, Any]) -> int:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, reaper.stop)
        explainer, dry_run, repaired = Explainer(timeout=reaper.timeout), options["dry_run"], False
        enough = partial(run_enough_rounds, reaper, self._report)
        try:
            if dry_run:
                self._report(await reaper.preview())
            if options["explain"]:
                repaired = await look_and_repair(explainer, self._report, None if dry_run else enough)
                self._say(f"Compared: {explainer.compared}.")
            elif options["once"] and not dry_run:
                repaired = await enough()
                if not self._lines and not reaper.stopping.is_set():
                    self._say("Another reaper ran these rounds and reports what they found.")
            elif not dry_run:
                await run_rounds(reaper, self._report)
        finally:
            await explainer.close()
            await reaper.close()
        return REPAIRED if repaired else 0

    def _report(self, what: Report | Explained | Exception) -> None:
        if isinstance(what, Exception):
            line = json.dumps({"error": str(what)}) if self._json else f"round failed: {what}"
        else:
            line = json.dumps(what.fields()) if self._json else what.line()
        self._lines += 1
        self.stdout.write(line)
        self.stdout.flush()

    def _say(self, sentence: str) -> None:
        """Write a sentence for people. Programs read JSON: one object for each round or difference."""
        if not self._json:
            self.stdout.write(sentence)
