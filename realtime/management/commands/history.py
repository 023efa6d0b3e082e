"""`manage.py history GROUP`: print the recent messages of a group, and follow it."""

import asyncio
import os
import select
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from realtime.errors import LayerUnavailable, NoSuchLayer, RealtimeError
from realtime.history.positions import Position
from realtime.reading import History, ahistory
from realtime.wire import frames

#: Seconds from one look at the history to the next.
FOLLOW_EVERY = 0.5

#: Messages in one reading while the command follows a group.
PAGE = 1000


class Command(BaseCommand):
    help = (
        "Print the recent messages of a group, one JSON object a line, oldest first. A message is printed as "
        "clients receive it. If the messages after --since, or after the last one that was printed, are not "
        "all kept, a line of the type `reset` says so."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("group", metavar="GROUP")
        add("--since", metavar="EPOCH:OFFSET", help="print the messages after this position")
        add("--limit", type=int, default=100, metavar="N", help="the largest number of messages (100)")
        add("--follow", action="store_true", help="go on with new messages until Ctrl-C")

    def handle(self, *, group: str, limit: int, follow: bool, **options: Any) -> None:
        since = _position(options["since"])
        if limit < 1:
            raise CommandError(f"--limit is {limit}; give 1 or more.")
        try:
            asyncio.run(self._run(group, since, limit, follow))
        except RealtimeError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # The reader of the pipe is gone. Python would complain when it flushes stdout at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def _run(self, group: str, since: Position | None, limit: int, follow: bool) -> None:
        since = self._print(group, await ahistory(group, since, limit), since)
        outage = False
        while follow:
            try:
                found = await ahistory(group, since, PAGE)
            except NoSuchLayer:
                raise
            except LayerUnavailable as error:
                if not outage:
                    self.stderr.write(f"{error} Trying again until it is back.")
                outage = True
            else:
                outage = False
                since = self._print(group, found, since)
                if since.offset < found.position.offset:
                    continue
            self._require_reader()
            await asyncio.sleep(FOLLOW_EVERY)

    def _print(self, group: str, found: History, since: Position | None) -> Position:
        """Print what was read, and return the position from which to go on."""
        if found.recovered is False:
            position = found.position
            self.stdout.write(frames.build(frames.Reset(group, position.epoch, position.offset)))
        for message in found.messages:
            self.stdout.write(message.frame)
        self.stdout.flush()
        if found.messages:
            return found.messages[-1].position
        # The epoch may have changed, although no message was missed.
        return found.position

    def _require_reader(self) -> None:
        """Raise BrokenPipeError if stdout is a pipe that no process reads: otherwise a write would tell."""
        try:
            number = self.stdout.fileno()
        except (AttributeError, OSError):
            return
        poll = select.poll()
        poll.register(number, 0)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            raise BrokenPipeError


def _position(text: str | None) -> Position | None:
    if text is None:
        return None
    epoch, colon, offset = text.rpartition(":")
    if not (epoch and colon and offset.isascii() and offset.isdigit()):
        raise CommandError(f"--since is {text!r}; give EPOCH:OFFSET, as `manage.py publish` prints it.")
    return Position(epoch, int(offset))
