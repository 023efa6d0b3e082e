"""`manage.py publish GROUP [JSON]`: send to all members of a group from the command line."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from realtime import publishing
from realtime.errors import RealtimeError


class Command(BaseCommand):
    help = "Publish JSON to a group: the given value, or one value for each line of standard input."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument(
            "json", metavar="JSON", nargs="?", help="if absent, read from standard input, line by line"
        )
        parser.add_argument(
            "--id",
            metavar="ID",
            help="in a group that keeps history: a repeated publish with it sends nothing",
        )

    def handle(self, *, group: str, **options: Any) -> None:
        given: str | None = options["json"]
        if given is None and options["id"] is not None:
            raise CommandError("--id is for one value; give JSON as an argument.")
        lines: Iterable[str] = sys.stdin if given is None else [given]
        count = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                position = publishing.publish(group, json.loads(line), id=options["id"], on_commit=False)
            except json.JSONDecodeError as error:
                where = "" if given is not None else f"line {number}: "
                raise CommandError(
                    f"{where}{line.strip()[:80]!r} is not JSON ({error}); {count} published before it. "
                    "A text needs its quotes: '\"hello\"'."
                ) from error
            except RealtimeError as error:
                raise CommandError(f"{error} {count} published before it.") from error
            count += 1
            if given is not None and position is not None:
                self.stdout.write(str(position))
        if given is None:
            self.stdout.write(f"{count} published to {group}")
