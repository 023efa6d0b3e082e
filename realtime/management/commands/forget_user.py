"""`manage.py forget_user KEY`: remove a user from the records."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from realtime.records import connection_rows


class Command(BaseCommand):
    help = "Delete the records of a user's closed connections, and remove the user's data from all others."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", metavar="KEY", help="the user's primary key; the user may be deleted")

    def handle(self, *, key: str, **options: Any) -> None:
        try:
            deleted, emptied = connection_rows.forget_user(key)
        except ValueError as error:
            raise CommandError(f"{error}; give a user's primary key.") from error
        self.stdout.write(f"records deleted: {deleted}; emptied, because they are still needed: {emptied}")
